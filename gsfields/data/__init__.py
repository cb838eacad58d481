"""Scenes on disk, and scenes made on the spot, all as the same Dataset."""

from gsfields.data.dataset import Dataset, View
from gsfields.data.load import load_dataset

__all__ = ["Dataset", "View", "load_dataset"]

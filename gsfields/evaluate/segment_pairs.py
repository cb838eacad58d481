"""Two label maps as counts: how many pixels each pair of a predicted and a true segment has in common."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

VOID = -1  # the code of no segment, and the class of that
_ID_BITS = 31
LIMIT = 1 << _ID_BITS  # of classes and of ids

Labels = np.ndarray | Tensor  # [H, W] whole numbers


@dataclass(frozen=True)
class SegmentPairs:
    """Pairs that share pixels: codes of segments (see `codes`) and the pixels of each pair, int64 [M]. A pair may be
    there more than once, with a part of its pixels each time.
    """

    predicted: np.ndarray
    true: np.ndarray
    pixels: np.ndarray

    @classmethod
    def of_pixels(cls, predicted: np.ndarray, true: np.ndarray) -> SegmentPairs:
        """From the codes of P pixels, [P]."""
        first = _starts(predicted, true)  # labels come in runs along rows: far fewer to sort than pixels
        return cls._summed(predicted[first], true[first], np.diff(first, append=len(true)))

    @classmethod
    def merged(cls, parts: Iterable[SegmentPairs]) -> SegmentPairs:
        columns = zip(*((part.predicted, part.true, part.pixels) for part in parts))
        return cls(*(np.concatenate(column) for column in columns))

    @classmethod
    def _summed(cls, predicted: np.ndarray, true: np.ndarray, pixels: np.ndarray) -> SegmentPairs:
        """With each pair once."""
        order = np.lexsort((true, predicted))
        predicted, true, pixels = predicted[order], true[order], pixels[order]
        first = _starts(predicted, true)
        return cls(predicted[first], true[first], np.add.reduceat(pixels, first))

    def scored(self, things: Collection[int], stuff: Collection[int]) -> SegmentPairs:
        """Each pair once, with one segment per stuff class, and VOID where the class is neither thing nor stuff."""

        def recoded(of: np.ndarray) -> np.ndarray:
            classes = class_of(of)
            one_each = np.where(np.isin(classes, list(stuff)), classes << _ID_BITS, of)
            return np.where(np.isin(classes, [*things, *stuff]), one_each, VOID)

        return SegmentPairs._summed(recoded(self.predicted), recoded(self.true), self.pixels)

    def class_shares(self) -> tuple[dict[int, float], dict[int, float]]:
        """Class -> share of the pixels, of the classes that are there: of the predicted and of the true map."""
        total = self.pixels.sum()

        def shares(of: np.ndarray) -> dict[int, float]:
            classes, pixels = areas(class_of(of), self.pixels)
            return dict(zip(classes.tolist(), (pixels / total).tolist()))

        return shares(self.predicted), shares(self.true)


def codes(semantics: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The segment of each pixel as one number: class and id, whole numbers below LIMIT."""
    return semantics << _ID_BITS | ids


def class_of(of: np.ndarray) -> np.ndarray:
    """The class of each code."""
    return of >> _ID_BITS


def areas(names: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(each name once, in order; the sum of its pixels)"""
    unique, index = np.unique(names, return_inverse=True)
    return unique, np.bincount(index, pixels, len(unique))


def whole_numbers(name: str, values: Labels) -> np.ndarray:
    """A label map as int64. Raises TypeError for other numbers, ValueError for those outside [0, LIMIT)."""
    labels = as_array(values)
    if labels.dtype.kind not in "iub":
        raise TypeError(f"{name} must hold whole numbers, but is {labels.dtype}")
    labels = labels.astype(np.int64)
    if labels.size and not (labels.min() >= 0 and labels.max() < LIMIT):
        raise ValueError(f"{name} must lie in [0, 2³¹ - 1], but holds {labels.min()} to {labels.max()}")
    return labels


def as_array(values: Labels) -> np.ndarray:
    """A label map as numpy has it, on the CPU."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def _starts(*columns: np.ndarray) -> np.ndarray:
    """Where a row of [M] columns differs from the one before it; the first one always does."""
    changes = [np.diff(column, prepend=VOID - 1) != 0 for column in columns]
    return np.flatnonzero(np.logical_or.reduce(changes))

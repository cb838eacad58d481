"""What fitting instances can be told: `gsfields fit-instances RUN --FIELD VALUE`; see gsfields.config."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from gsfields.config import described


@dataclass
class GeometryConfig:
    """What happens to the Gaussians of a static run before they are frozen."""

    prune_weight: float = described(
        0.1, "drop Gaussians whose weights add up to fewer pixels over all views (0: none)", low=0
    )
    split_rounds: int = described(
        0, "rounds of splitting Gaussians that straddle segments (0: none, which did as well)", low=0
    )
    split_share: float = described(
        0.8, "a Gaussian straddles in a view if no segment has more of its weight", low=0, high=1
    )
    split_views: float = described(
        0.4, "and is split if it does in this share of the views that show it", low=0, high=1
    )
    split_pixels: float = described(
        2.0, "views that show it: those where its weights add up to more pixels", low=0
    )
    split_steps: int = described(400, "steps on the colours after each round", low=0)


@dataclass
class FieldConfig:
    """The embeddings, and how they are learnt."""

    model: Literal["gaussians", "position"] = described(
        "gaussians", "an embedding for each Gaussian, or a network of its position (as the paper)"
    )
    dim: int = described(16, "D, numbers of an embedding (paper: 3 for many objects, 24 else)", low=1)
    start: Literal["positions", "random"] = described(
        "positions", "where embeddings of Gaussians begin: at their places, or anywhere"
    )
    joint: bool = described(
        False, "go on fitting the photos while embeddings are learnt, which do not move the geometry"
    )
    steps: int = described(
        0, "optimisation steps, each on pixels of one image (0: 1,000, or 3 for each view if more)", low=0
    )
    pixels: int = described(2048, "pixels of a step, half of them fast and half slow", low=2)
    rate: float = described(2e-2, "learning rate at the start", low=0)
    rate_end: float = described(0.1, "and at the end, times that at the start", low=0, high=1)
    momentum: float = described(0.9, "of the slow embeddings", low=0, high=1)
    loss: Literal["slow-fast", "vanilla", "associative", "margin", "dino", "linear-assignment"] = described(
        "slow-fast", "what tells segments apart"
    )
    form: Literal["paper", "released"] = described("released", "of the loss, where paper and code differ")
    kernel: Literal["double", "plain"] = described(
        "plain", "exponentials of the contrastive losses: double, as in paper and code, or one"
    )
    temperature: float = described(0.1, "of slow-fast and of vanilla in the paper's form (there 1)", low=1e-6)
    concentration: float = described(1.0, "weight of the concentration loss, slow-fast only", low=0)
    identifiers: int = described(64, "linear-assignment: how many objects there can be", low=2)
    balance: float = described(
        0.5,
        "pixels are drawn in proportion to their segment's area to the power of minus this",
        low=0,
        high=1,
    )
    min_segment: int = described(20, "segments of fewer pixels are ignored", low=0)
    min_alpha: float = described(0.9, "pixels less opaque are ignored", low=0, high=1)
    normalise: bool = described(True, "divide blended embeddings by alpha (the released code does not)")
    class_steps: int = described(300, "steps on the classes, which start from lifted votes", low=0)
    class_rate: float = described(5e-2, "learning rate of class logits", low=0)
    consistency: float = described(0.12, "weight of the segment consistency of classes", low=0)
    plan_mib: int = described(1024, "memory for the plans of the views, MiB", low=0)
    seed: int = described(0, "of all that is random", low=0)


@dataclass
class ObjectsConfig:
    """How embeddings become objects."""

    method: Literal["hdbscan", "dbscan", "meanshift"] = described("hdbscan", "of clustering")
    min_size: int = described(0, "smallest cluster, in sampled pixels (0: chosen by a sweep)", low=0)
    samples: int = described(
        0, "pixels that are clustered, at most (0: 20,000, or 50 for each view if more)", low=0
    )
    views: int = described(0, "views that they are drawn from, at most (0: 30, or one in ten if more)", low=0)
    found: float = described(
        0.2, "a pixel may be of an object if segments claim it in a larger share of its views", low=0, high=1
    )
    evenness: float = described(1.0, "as field.balance, for the pixels that are clustered", low=0, high=1)
    place: float = described(
        0.25, "weight of where things lie beside their embeddings (0: embeddings only, as the paper)", low=0
    )
    merge: bool = described(True, "clusters that 2D segments take for one are one object")
    min_samples: int = described(5, "neighbours that set the density about a sample", low=1)
    scale: bool = described(False, "scale each dimension to [0, 1] first, as the released code does")


@dataclass
class InstancesConfig:
    """All of it."""

    geometry: GeometryConfig = dataclasses.field(default_factory=GeometryConfig)
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    objects: ObjectsConfig = dataclasses.field(default_factory=ObjectsConfig)

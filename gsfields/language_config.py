"""What fitting language fields can be told: `gsfields fit-language RUN --FIELD VALUE`; see gsfields.config."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from gsfields.config import described


@dataclass
class NestedConfig:
    """The nested embeddings, and how they are found."""

    model: Literal["lifted", "direct", "triplane"] = described(
        "lifted",
        "embeddings of Gaussians handed back from the images without training; the same, then trained; or a triplane "
        "with a network (as the paper)",
    )
    dim: int = described(512, "D, numbers of an embedding", low=1)
    nested: bool = described(
        True, "segments of each scale speak with their first numbers (false: all with all of them)"
    )
    groups: int = described(8, "lifted, direct: groups of scales that are told apart", low=1)
    steps: int = described(
        0, "optimisation steps, each on pixels of one image (0: 1,000, or 10 for each view if more)", low=0
    )
    pixels: int = described(2048, "pixels of a step", low=1)
    rate: float = described(2e-2, "triplane: learning rate at the start, of its texels", low=0)
    network_rate: float = described(5e-3, "triplane: of the network and of the projection W", low=0)
    direct_rate: float = described(2e-4, "direct: of the embeddings and of the projection W", low=0)
    rate_end: float = described(0.1, "learning rates at the end, times those at the start", low=0, high=1)
    cosine: float = described(0.001, "weight of the cosine beside the squared distance", low=0)
    projection: Literal["zeros", "basis"] = described(
        "zeros", "triplane: where W begins, as in the paper or at principal directions of the embeddings"
    )
    resolution: int = described(512, "triplane: texels along each side", low=2)
    channels: int = described(64, "triplane: numbers of a texel, which are blended", low=1)
    hidden: int = described(256, "triplane: width of the network", low=1)
    min_alpha: float = described(0.5, "pixels less opaque are ignored", low=0, high=1)
    plan_mib: int = described(1024, "memory for the plans of the views, MiB", low=0)
    seed: int = described(0, "of all that is random", low=0)


@dataclass
class QueryConfig:
    """How embeddings answer."""

    scales: Literal["prompt", "composite"] = described(
        "prompt",
        "who weighs the scales of an embedding: each prompt, by how well it is met at them; or canonical phrases, once "
        "for all prompts (the composite embedding of the paper)",
    )
    choice: float = described(
        0.02, "prompt: of its weights of scales; the smaller, the fewer scales speak", low=1e-6
    )
    temperature: float = described(1.0, "composite: of its weights of scales (paper: 1)", low=1e-6)
    heed: float = described(
        0.5, "how much weights of scales follow what segments said of a Gaussian (paper: 0)", low=0, high=1
    )
    step: int = described(1, "composite: weighs every so many lengths", low=1)
    tolerance: float = described(
        1e-3, "composite: the error of relevancy that projected queries may make", low=1e-6
    )


@dataclass
class LanguageConfig:
    """All of it."""

    field: NestedConfig = dataclasses.field(default_factory=NestedConfig)
    query: QueryConfig = dataclasses.field(default_factory=QueryConfig)

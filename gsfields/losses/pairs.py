"""All pairs of pixels of two sets: what the contrastive losses are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gsfields import ops


@dataclass(frozen=True)
class Similarity:
    """What a pair of pixels counts: exp s, s = -x or, of two exponentials, exp(-x), where x = distance^power / T."""

    power: Literal[1, 2]
    kernel: Literal["double", "plain"]
    temperature: float  # T of pairs of two segments
    partner_temperature: float | None = None  # T of pairs of one segment; None: the same


def surprise(
    features: Tensor,
    others: Tensor,
    segment: Tensor,
    other_segment: Tensor,
    similarity: Similarity,
    *,
    own_partner: bool = True,
) -> Tensor:
    """[P] -log(Σ_same exp s / Σ_all exp s) over the other pixels; those without a partner have 0.

    Args:
        features: [P, D]; others: [Q, D], which gradients reach, too, if they require any.
        segment: [P]; other_segment: [Q], from 0.
        own_partner: if others are the features themselves, whether a pixel is its own partner; it always counts among
            all.

    Where the power is 1 the slope at distance 0 is taken as 0. No matrix of all pairs is kept, and gradients are first
    ones only.
    """
    return ops.contrast(
        features, others, segment.int(), other_segment.int(),
        squared=similarity.power == 2, two_exponentials=similarity.kernel == "double",
        temperature=similarity.temperature, partner_temperature=similarity.partner_temperature,
        own_partner=own_partner,
    )  # fmt: skip

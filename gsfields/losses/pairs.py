"""All pairs of pixels of two sets: what the contrastive losses are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
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


def hinges(features: Tensor, segment: Tensor, distance: float) -> Tensor:
    """Σ max(0, distance - ‖f_u - f_v‖)² over the ordered pairs of pixels of two segments: features [P, D], segment [P].

    Where two coincide the slope is taken as 0. No matrix of all pairs is kept, and gradients are first ones only.
    """
    total: Tensor = _Hinges.apply(features, segment, distance)
    return total


class _Hinges(torch.autograd.Function):
    """The sum with its gradient, in strips of rows: each strip beside its own pixels and those after it."""

    rows = 256

    @staticmethod
    def forward(ctx: Any, features: Tensor, segment: Tensor, distance: float) -> Tensor:
        total, slope = features.new_zeros(()), torch.zeros_like(features)
        for first in range(0, len(features), _Hinges.rows):
            f, g = features[first : first + _Hinges.rows], features[first:]
            # From differences, not products: near 0 a root would magnify what those cancel.
            d = torch.cdist(f, g, compute_mode="donot_use_mm_for_euclid_dist")
            gap = (distance - d).clamp_(min=0)
            gap.masked_fill_(segment[first : first + len(f), None] == segment[first:], 0)
            gap[:, len(f) :] *= 2**0.5  # a pair with a later strip stands for both its orders
            total += gap.square().sum()
            pull = gap.div_(d).masked_fill_(d == 0, 0)
            pull[:, len(f) :] *= 2**0.5
            slope[first : first + len(f)] += 2 * (pull @ g - pull.sum(1, keepdim=True) * f)
            slope[first:] += 2 * (pull.T @ f - pull.sum(0)[:, None] * g)
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return v * slope, None, None

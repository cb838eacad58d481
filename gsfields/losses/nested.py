"""The loss of nested embeddings (N2F2: Bhalgat et al., ECCV 2024, equation 4.5 of Bhalgat's thesis)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gsfields.fields.nested import at_scale

_LEAST_NORM = 1e-3


def hierarchical(
    theta: Tensor,
    projection: Tensor,
    length: Tensor,
    target: Tensor,
    *,
    cosine: float = 0.001,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean over pixels of ‖φ - φ_gt‖² + cosine · (1 - cos(φ, φ_gt)), φ = W (B ⊙ θ): each pixel is told what one segment
    that covers it means, at that segment's scale.

    If W begins as zeros so does φ, which has no direction, and the slope of a cosine grows as 1/‖φ‖ towards it: one
    such step would fill the optimizer's averages for a thousand. So norms below 1e-3 count as that. Where there are
    no pixels the loss is 0.

    Args:
        theta: [P, D]; projection: W [E, D]; length: M(s) [P], from 1 to D; target: φ_gt [P, E].
        cosine: weight of the second term.
        weights: [P], not negative; what each pixel counts, instead of 1 (the sum is still divided by P).
    """
    if theta.ndim != 2 or projection.ndim != 2 or theta.shape[1] != projection.shape[1]:
        raise ValueError(
            f"theta and projection must be [P, D] and [E, D], but are {list(theta.shape)} and {list(projection.shape)}"
        )
    if target.shape != (len(theta), len(projection)):
        raise ValueError(f"target must be {[len(theta), len(projection)]}, but is {list(target.shape)}")
    for name, value in (("length", length), ("weights", weights)):
        if value is not None and value.shape != theta.shape[:1]:
            raise ValueError(f"{name} must be {[len(theta)]} like theta, but is {list(value.shape)}")
    if len(theta) == 0:
        return (theta.sum() + projection.sum()) * 0
    shown = at_scale(theta, projection, length)
    loss = (shown - target).square().sum(dim=1)
    if cosine:
        norms = shown.square().sum(dim=1).clamp_min(_LEAST_NORM**2).sqrt()
        along = (shown * functional.normalize(target, dim=1)).sum(dim=1) / norms
        loss = loss + cosine * (1 - along)
    return torch.mean(loss if weights is None else loss * weights)

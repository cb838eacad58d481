"""Lifting: images of any number of channels handed back to the Gaussians that they show, without training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gsfields.ops.blending import Precision
    from gsfields.plans import Plan


class Lifted(NamedTuple):
    """What lift() hands to the Gaussians: Σ w f [N, C] and Σ w [N] over pixels, w being their weights in the blend."""

    sums: Tensor
    total: Tensor

    @property
    def mean(self) -> Tensor:
        """[N, C] sums / total: the mean of what was seen of a Gaussian, 0 where nothing was."""
        return self.sums / torch.where(self.total != 0, self.total, torch.inf).unsqueeze(-1)


def lift(
    plans: Iterable[Plan],
    images: Iterable[Tensor],
    weights: Iterable[Tensor | None] | None = None,
    *,
    precision: Precision = "fp32",
) -> Lifted:
    """Plan.lift() added up over many views of the same N Gaussians.

    Args:
        plans, images, weights: as many of each, in the order of the views: lists, or iterators that make or load one
            after the other, of which nothing is kept. With a PlanCache: `(cache[view] for view in views)`.
            An image is [H, W, C] ([B, H, W, C] for a plan of B views), weights are [H, W] ([B, H, W]) or None.
        precision: as in Plan.blend().

    Not differentiable; Plan.lift() is. Raises ValueError where the lengths differ or a view does not fit the first.
    """
    sums = total = None
    with torch.no_grad():
        for plan, image, factors in _together(plans, images, repeat(None) if weights is None else weights):
            one = plan.lift(image, factors, precision=precision)
            if sums is None or total is None:
                sums, total = one
                continue
            if one.sums.shape != sums.shape:
                raise ValueError(
                    f"a view lifts to {list(one.sums.shape)} and the first to {list(sums.shape)}, but all views must "
                    "share their Gaussians and channels"
                )
            sums += one.sums
            total += one.total
    if sums is None or total is None:
        raise ValueError("plans holds no view, but must hold at least one")
    return Lifted(sums, total)


def _together(
    plans: Iterable[Plan], images: Iterable[Tensor], weights: Iterable[Tensor | None]
) -> Iterator[tuple[Plan, Tensor, Tensor | None]]:
    """zip() that refuses different lengths; repeat() is as long as the others."""
    sources: list[tuple[str, Iterator[Any]]] = [("plans", iter(plans)), ("images", iter(images))]
    if not isinstance(weights, repeat):
        sources.append(("weights", iter(weights)))
    ended = object()
    while True:
        items: list[Any] = [next(source, ended) for _, source in sources]
        short = [name for (name, _), item in zip(sources, items) if item is ended]
        if len(short) == len(sources):
            return
        if short:
            longer = next(name for name, _ in sources if name not in short)
            raise ValueError(f"{short[0]} ends before {longer} does, but there must be as many of each")
        yield items[0], items[1], items[2] if len(items) > 2 else None

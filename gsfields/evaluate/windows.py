"""Sums over windows of images, in one order for all pixels: equal windows have equal sums."""

from __future__ import annotations

import torch
from torch import Tensor


def mirrored(values: Tensor, before: int, after: int, dim: int) -> Tensor:
    """[H, W] that goes on for `before` and `after` pixels along dim, mirrored at its outer pixels, which are
    not repeated (reflect-101), as often as it takes.
    """
    n = values.shape[dim]
    period = max(2 * (n - 1), 1)
    index = torch.cat((torch.arange(-before, 0), torch.arange(n, n + after))) % period
    outside = values.index_select(dim, torch.minimum(index, (period - index) % period).to(values.device))
    return torch.cat((outside.narrow(dim, 0, before), values, outside.narrow(dim, before, after)), dim)


def window_sums(values: Tensor, before: int, after: int) -> Tensor:
    """[H, W] -> [H, W]: sums over the window from -before to +after in both directions, 0 outside."""
    values = torch.nn.functional.pad(values, (before, after, before, after))
    size = before + 1 + after
    return running_sums(running_sums(values, size, 1), size, 0)


def window_pixels(counted: Tensor, before: int, after: int) -> Tensor:
    """int64 [n]: how many of the pixels, bool [n], are in the window around each."""
    padded = torch.nn.functional.pad(counted.long()[None], (before, after))
    return running_sums(padded, before + 1 + after, 1)[0]


def running_sums(values: Tensor, size: int, dim: int) -> Tensor:
    """Sums of `size` neighbours in [H, W], of which there are n - size + 1 along dim.

    Sums of 1, 2, 4, … neighbours are each made of the last, and those that add up to `size` are added: 2 log₂
    size additions a pixel, in one order for all, so that equal windows have equal sums, which running totals
    do not give.
    """
    length = values.shape[dim] - size + 1
    total, start, span = None, 0, 1
    while True:
        if size & span:
            part = values.narrow(dim, start, length)
            total, start = part if total is None else total + part, start + span
        if 2 * span > size:
            assert total is not None
            return total
        left = values.shape[dim] - span
        values = values.narrow(dim, 0, left) + values.narrow(dim, span, left)
        span *= 2

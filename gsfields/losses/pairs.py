"""All pairs of fast and slow pixels, a block of rows at a time: what makes the slow-fast loss cheap.

Slow pixels are constants, so the loss of a fast pixel and its gradient come out of the same pass over its row of pairs,
and no [P, Q] matrix is ever kept: a block stays in the cache of a processor.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

_BLOCK = 1 << 16  # pairs of a block
_SAFE = 20.0  # exp of it times a float32's rounding is still small
_NARROW = 8  # up to so many channels differences are cheaper than a product, and exact near 0


def slow_fast_surprise(
    fast: Tensor,
    slow: Tensor,
    fast_segment: Tensor,
    slow_segment: Tensor,
    *,
    power: Literal[1, 2],
    kernel: Literal["double", "plain"],
    temperature: float,
) -> Tensor:
    """[P] -log(Σ_same exp s / Σ_all exp s) over slow pixels, x = ‖f - f̄‖^power / T, s = -x or exp(-x) ("double").

    fast [P, D], slow [Q, D]; fast_segment [P], slow_segment [Q]: each fast pixel has a slow one of its segment.
    Gradients reach fast only, once; where power is 1 the slope at distance 0 is taken as 0.
    """
    return _Surprise.apply(fast, slow, fast_segment, slow_segment, power, kernel, temperature)


class _Surprise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        fast: Tensor,
        slow: Tensor,
        fast_segment: Tensor,
        slow_segment: Tensor,
        power: int,
        kernel: str,
        temperature: float,
    ) -> Tensor:
        losses, slopes = torch.empty_like(fast[:, 0]), torch.empty_like(fast)
        rows = max(1, _BLOCK // max(len(slow), 1))
        columns = slow_segment.int()
        for begin in range(0, len(fast), rows):
            block = slice(begin, begin + rows)
            same = fast_segment[block, None].int() == columns
            squared = _squared(fast[block], slow)
            x = squared if power == 2 else squared.sqrt()
            losses[block], slope = (_double if kernel == "double" else _plain)(x / temperature, same)
            # dx/df = 2 (f - f̄) / T, or (f - f̄) / (d T)
            pull = (
                slope.mul_(2 / temperature)
                if power == 2
                else slope.div_(x.mul_(temperature)).nan_to_num_(0, 0, 0)
            )
            slopes[block] = pull.sum(1, keepdim=True) * fast[block] - pull @ slow
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (grads[0].unsqueeze(1) * slopes, None, None, None, None, None, None)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """[P, Q] ‖a - b‖², from differences or, of many channels, from `cdist`."""
    if a.shape[1] > _NARROW:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_()
    total = (a[:, :1] - b[:, 0]).square_()
    for k in range(1, a.shape[1]):
        difference = a[:, k : k + 1] - b[:, k]
        total.addcmul_(difference, difference)
    return total


def _plain(x: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Loss [P] and its slope with respect to x [P, Q], s = -x; each sum relative to its nearest pixel."""
    nearest = x.amin(1, keepdim=True)
    everyone = (nearest - x).exp_()
    total = everyone.sum(1, keepdim=True)
    partners = x.masked_fill(~same, torch.inf)
    nearest_partner = partners.amin(1, keepdim=True)
    gap = nearest_partner - nearest
    if float(gap.max()) < _SAFE:  # exp(nearest_partner - x) without another exponential
        among = torch.mul(everyone, same).mul_(gap.exp())
    else:
        among = (nearest_partner - partners).exp_()
    shared = among.sum(1, keepdim=True)
    loss = gap + total.log() - shared.log()
    return loss[:, 0], among.div_(shared).sub_(everyone.div_(total))


def _double(x: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """The same with s = exp(-x), so that exp s lies between 1 and e and sums need no care."""
    s = (-x).exp_()
    everyone = s.exp()
    among = everyone * same
    total, shared = everyone.sum(1, keepdim=True), among.sum(1, keepdim=True)
    loss = total.log() - shared.log()
    return loss[:, 0], among.div_(shared).sub_(everyone.div_(total)).mul_(s)

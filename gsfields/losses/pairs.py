"""All pairs of pixels, a block of rows at a time: what makes the contrastive losses cheap.

The loss of a pixel and its gradient come out of the same pass over its row of pairs, and no [P, Q] matrix is ever kept:
a block stays in the cache of a processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

_BLOCK = 1 << 16  # pairs of a block
_SAFE = 20.0  # exp of it times a float32's rounding is still small
_NARROW = 8  # up to so many channels differences are cheaper than a product, and exact near 0


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
        features: [P, D]; others: [Q, D], which gradients reach, too, if they require any; segment: [P];
            other_segment: [Q].
        own_partner: if others are the features themselves, whether a pixel is its own partner; it always counts among
            all.

    Gradients are first ones only; where the power is 1 the slope at distance 0 is taken as 0.
    """
    return _Surprise.apply(features, others, segment.int(), other_segment.int(), similarity, own_partner)


class _Surprise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        others: Tensor,
        segment: Tensor,
        other_segment: Tensor,
        similarity: Similarity,
        own_partner: bool,
    ) -> Tensor:
        losses, slopes = torch.empty_like(features[:, 0]), torch.empty_like(features)
        rows = max(1, _BLOCK // max(len(others), 1))
        pulls = []
        for begin in range(0, len(features), rows):
            block = slice(begin, begin + rows)
            same = segment[block, None] == other_segment
            losses[block], pull = _block(
                features[block], others, same, similarity, None if own_partner else begin
            )
            slopes[block] = pull.sum(1, keepdim=True) * features[block] - pull @ others
            if ctx.needs_input_grad[1]:
                pulls.append(pull)
        ctx.save_for_backward(features, others, slopes, *pulls)
        ctx.rows = rows
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        features, others, slopes, *pulls = ctx.saved_tensors
        (grad,) = grads
        of_others = torch.zeros_like(others) if pulls else None
        for number, pull in enumerate(pulls):
            block = slice(number * ctx.rows, (number + 1) * ctx.rows)
            pull = pull * grad[block, None]
            of_others += pull.sum(0)[:, None] * others - pull.T @ features[block]
        return (grad.unsqueeze(1) * slopes, of_others, None, None, None, None)


def _block(
    features: Tensor, others: Tensor, same: Tensor, similarity: Similarity, first: int | None
) -> tuple[Tensor, Tensor]:
    """Losses [P] of a block of rows, and what multiplies f - f' of each pair in their gradients, [P, Q].

    first: the column of the first row's own pixel, where a pixel is not its own partner.
    """
    distances = _squared(features, others)
    if similarity.power == 1:
        distances.sqrt_()
    sharpness: float | Tensor = 1 / similarity.temperature
    if similarity.partner_temperature is not None:
        of_partners = distances.new_tensor(1 / similarity.partner_temperature)
        sharpness = torch.where(same, of_partners, distances.new_tensor(1 / similarity.temperature))
    partners = same
    if first is not None:
        partners = same.clone()
        partners.diagonal(first).fill_(False)
    losses, slopes = (_double if similarity.kernel == "double" else _plain)(distances * sharpness, partners)
    alone = ~partners.any(1)
    if bool(alone.any()):
        losses = losses.masked_fill(alone, 0)
        slopes = slopes.masked_fill(alone[:, None], 0)
    # dx/df is 2 (f - f') / T, or (f - f') / (d T)
    if similarity.power == 2:
        return losses, slopes.mul_(2 * sharpness)
    return losses, slopes.mul_(sharpness).div_(distances).nan_to_num_(0, 0, 0)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """[P, Q] ‖a - b‖², from differences or, of many channels, from `cdist`."""
    if a.shape[1] > _NARROW:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_()
    total = (a[:, :1] - b[:, 0]).square_()
    for k in range(1, a.shape[1]):
        difference = a[:, k : k + 1] - b[:, k]
        total.addcmul_(difference, difference)
    return total


def _plain(x: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
    """Loss [P] and its slope with respect to x [P, Q], s = -x; each sum relative to its nearest pixel."""
    nearest = x.amin(1, keepdim=True)
    everyone = (nearest - x).exp_()
    total = everyone.sum(1, keepdim=True)
    apart = x.masked_fill(~partners, torch.inf)
    nearest_partner = apart.amin(1, keepdim=True)
    gap = nearest_partner - nearest
    if float(gap.max()) < _SAFE:  # exp(nearest_partner - x) without another exponential
        among = torch.mul(everyone, partners).mul_(gap.exp())
    else:
        among = (nearest_partner - apart).exp_()
    shared = among.sum(1, keepdim=True)
    loss = gap + total.log() - shared.log()
    return loss[:, 0], among.div_(shared).sub_(everyone.div_(total))


def _double(x: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
    """The same with s = exp(-x), so that exp s lies between 1 and e and sums need no care."""
    s = (-x).exp_()
    everyone = s.exp()
    among = everyone * partners
    total, shared = everyone.sum(1, keepdim=True), among.sum(1, keepdim=True)
    loss = total.log() - shared.log()
    return loss[:, 0], among.div_(shared).sub_(everyone.div_(total)).mul_(s)

"""Slow-fast embeddings of Gaussians, which tell objects apart (Contrastive Lift: Bhalgat et al., NeurIPS 2023).

The fast embedding learns; the slow one follows it as an exponential moving average and is what the fast one is compared
with (section 3.2). Both are blended together, 2 D channels in one walk over the tiles.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gsfields import ops

MOMENTUM = 0.9  # of the moving average (section 4, implementation details)


class InstanceField(nn.Module):
    """Fast and slow embeddings of N Gaussians, [N, D] each; where rows (int64 [M], all different) are given, [M, D]."""

    dim: int

    @abstractmethod
    def fast(self, rows: Tensor | None = None) -> Tensor:
        """[N, D], through which gradients reach the parameters."""

    @abstractmethod
    def slow(self, rows: Tensor | None = None) -> Tensor:
        """[N, D], without gradients."""

    @abstractmethod
    def follow(self) -> None:
        """slow <- momentum · slow + (1 - momentum) · fast; to be called before each loss, as the released code does."""

    def both(self, rows: Tensor | None = None) -> Tensor:
        """[N, 2 D]: fast and slow, to be blended together."""
        return torch.cat((self.fast(rows), self.slow(rows)), dim=1)


class FreeField(InstanceField):
    """An embedding of its own for each Gaussian.

    A step costs what the rows that it asks for cost. Gradients that came by rows are sparse; and a slow row catches up
    with all that it missed when it is asked for, for its fast one has stood still. So a row of `theta` may be moved
    only if its slow copy was asked for since the last follow().
    """

    def __init__(self, start: Tensor, momentum: float = MOMENTUM) -> None:
        """start: [N, D], where both copies begin."""
        super().__init__()
        _check_rows("start", start)
        self.dim, self.momentum = start.shape[1], momentum
        self.theta = nn.Parameter(start.detach().clone())
        self.register_buffer("theta_slow", start.detach().clone())
        self.register_buffer("followed", torch.zeros(len(start), dtype=torch.int32, device=start.device))
        self.follows = 0  # calls of follow(), of which `followed` of each row are in theta_slow

    def fast(self, rows: Tensor | None = None) -> Tensor:
        return self.theta if rows is None else nn.functional.embedding(rows, self.theta, sparse=True)

    def slow(self, rows: Tensor | None = None) -> Tensor:
        if rows is None:
            rows = torch.arange(len(self.theta), device=self.theta.device)
        return self._side_by_side(rows)[:, self.dim :]

    def both(self, rows: Tensor | None = None) -> Tensor:
        if rows is None:
            return super().both()
        both: Tensor = _FastOfBoth.apply(self.theta, self._side_by_side(rows), rows)
        return both

    def follow(self) -> None:
        self.follows += 1

    @torch.no_grad()
    def _side_by_side(self, rows: Tensor) -> Tensor:
        return ops.follow_rows(
            self.theta, self.theta_slow, self.followed, rows, follows=self.follows, momentum=self.momentum
        )

    theta_slow: Tensor
    followed: Tensor


class _FastOfBoth(torch.autograd.Function):
    """Rows of θ beside their slow ones, [M, 2 D], as they are: θ gets the gradient of the former, sparse in rows."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, both: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = theta.shape
        return both.view_as(both)

    @staticmethod
    def backward(ctx: Any, v_both: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        v_fast = v_both[:, : ctx.shape[1]].contiguous()
        return torch.sparse_coo_tensor(rows[None], v_fast, ctx.shape, check_invariants=False), None, None


class PositionField(InstanceField):
    """A small network of the position, as the paper has it: raw coordinates, four hidden layers of 256, no bound at the
    end. Nearby Gaussians share what they learn; two networks are evaluated for all Gaussians that a view shows.
    """

    def __init__(
        self, means: Tensor, dim: int, momentum: float = MOMENTUM, *, layers: int = 5, width: int = 256
    ) -> None:
        """means: [N, 3] centres, scaled so that their spread is one; slow starts from weights of its own, as released.

        layers: linear ones, 5 in the paper, 4 in the released code.
        """
        super().__init__()
        _check_rows("means", means)
        self.dim, self.momentum = dim, momentum
        centred = means.detach() - means.detach().mean(dim=0)
        self.register_buffer("points", centred / centred.norm(dim=1).quantile(0.9).clamp_min(1e-12))
        self.network = _network(3, width, dim, layers)
        self.average = _network(3, width, dim, layers).requires_grad_(False)

    points: Tensor

    def fast(self, rows: Tensor | None = None) -> Tensor:
        return torch.as_tensor(self.network(self.points if rows is None else self.points[rows]))

    @torch.no_grad()
    def slow(self, rows: Tensor | None = None) -> Tensor:
        return torch.as_tensor(self.average(self.points if rows is None else self.points[rows]))

    @torch.no_grad()
    def follow(self) -> None:
        for slow, fast in zip(self.average.parameters(), self.network.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)


def start_at_positions(means: Tensor, dim: int, generator: torch.Generator, noise: float = 0.05) -> Tensor:
    """[N, D]: half the centres, scaled to a spread of one, in the first three dimensions, and noise in all.

    Neighbours begin as neighbours: what belongs together is near before anything is learnt.
    """
    _check_rows("means", means)
    centred = means.detach() - means.detach().mean(dim=0)
    scaled = 0.5 * centred / centred.norm(dim=1).quantile(0.9).clamp_min(1e-12)
    start = noise * torch.randn(len(means), dim, generator=generator).to(means)
    shared = min(3, dim)
    start[:, :shared] += scaled[:, :shared]
    return start


def _network(inputs: int, width: int, outputs: int, layers: int) -> nn.Sequential:
    sizes = [inputs, *[width] * (layers - 1), outputs]
    steps: list[nn.Module] = []
    for a, b in pairwise(sizes):
        steps += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*steps[:-1])


def _check_rows(name: str, rows: Tensor) -> None:
    if rows.ndim != 2 or len(rows) == 0 or not rows.is_floating_point():
        raise ValueError(
            f"{name} must be floating point [N, D] with N >= 1, but is {rows.dtype} {list(rows.shape)}"
        )

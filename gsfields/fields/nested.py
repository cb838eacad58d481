"""Nested embeddings (N2F2: Bhalgat et al., ECCV 2024): the first numbers of one embedding mean coarse things, and later
ones what tells fine things apart.

Of an embedding θ ∈ R^D and a projection W ∈ R^{E x D} into the space of a vision-language model, the first M(s) numbers
say what there is at the scale s: φ(s) = W_{:,1:M} θ_{1:M}, where M(s) = ⌈D (1 - s)⌉ goes from D for the smallest
segments (s = 0) to 1 for the largest. Equations are numbered as in the fourth chapter of Bhalgat's thesis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from gsfields import ops

CANONICAL = ("object", "stuff", "thing", "part", "texture")  # phrases that weigh scales; relevancy has others
_HELD = 1 << 24  # numbers of an intermediate that are held at once


def lengths(scales: Tensor, dim: int) -> Tensor:
    """M(s) = ⌈D (1 - s)⌉ of scales in [0, 1], int64 of their shape, between 1 and D = dim.

    Raises ValueError for scales outside [0, 1], and for dim below 1.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, but is {dim}")
    if not bool(((scales >= 0) & (scales <= 1)).all()):
        raise ValueError("scales must be in [0, 1], but some are not")
    # Scales are j / D in float32: rounding must not lift D - j to the next whole number.
    return (dim * (1 - scales.double())).sub(1e-4).ceil().long().clamp(1, dim)


def truncated(theta: Tensor, length: Tensor) -> Tensor:
    """B(s) ⊙ θ: the first `length` [...] numbers of θ [..., D], zeros in place of the others."""
    index = torch.arange(theta.shape[-1], device=theta.device)
    return theta * (index < length[..., None])


def at_scale(theta: Tensor, projection: Tensor, length: Tensor) -> Tensor:
    """φ(s) = W (B(s) ⊙ θ) [..., E], of θ [..., D], W [E, D] and M(s) [...]."""
    return truncated(theta, length) @ projection.T


def scale_weights(
    theta: Tensor,
    projection: Tensor,
    canonical: Tensor,
    *,
    temperature: float = 1.0,
    step: int = 1,
    prior: Tensor | None = None,
) -> Tensor:
    """γ [..., D] (equation 4.6): softmax over the lengths d of max_k φ_d · c_k, φ_d = W_{:,1:d} θ_{1:d}.

    A length at which some canonical phrase fits well is one at which there is a thing to be named. φ_d · c_k are prefix
    sums of (c_kᵀ W)_j θ_j: all D of them cost O(K D), not O(K D²).

    Args:
        theta: [..., D]; projection: W [E, D]; canonical: c [K, E], K >= 1.
        temperature: what the products are divided by; 1 in the paper, which makes γ nearly even.
        step: only every step-th length, and D, is weighed (table 4.6); others have 0.
        prior: [..., D], positive, what weights are multiplied by before they are made to sum to 1; none in the paper.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, but is {temperature}")
    if step < 1:
        raise ValueError(f"step must be at least 1, but is {step}")
    dim = theta.shape[-1]
    best = theta.new_full(theta.shape, -torch.inf)
    for phrase in canonical @ projection:
        best = torch.maximum(best, (phrase * theta).cumsum(dim=-1))
    if step > 1:
        left_out = torch.ones(dim, dtype=torch.bool, device=theta.device)
        left_out[step - 1 :: step] = False
        left_out[-1] = False
        best = best.masked_fill(left_out, -torch.inf)
    best = best / temperature
    return (best if prior is None else best + prior.log()).softmax(dim=-1)


def composite(theta: Tensor, gamma: Tensor) -> Tensor:
    """Θ̃ = revcumsum(γ) ⊙ θ (equation 4.7): W Θ̃ = Σ_d γ_d W_{:,1:d} θ_{1:d}, all lengths at once; [..., D]."""
    return gamma.flip(-1).cumsum(dim=-1).flip(-1) * theta


def group_bounds(dim: int, groups: int) -> list[int]:
    """[groups + 1]: the numbers of θ from bounds[g] to bounds[g + 1] are those that group g of scales adds."""
    return [dim * g // groups for g in range(groups + 1)]


@dataclass
class Nested:
    """Nested embeddings of N Gaussians, however they were found.

    Raises ValueError for shapes that do not fit.
    """

    theta: Tensor  # [N, D]
    projection: Tensor  # W [E, D]
    said: Tensor | None = (
        None  # [N, G] how much of what segments say of a Gaussian comes from each of G even groups of
    )
    # scales, the largest first; rows sum to 1, or to 0 where nothing is said

    def __post_init__(self) -> None:
        fits = self.theta.ndim == self.projection.ndim == 2
        if not fits or self.theta.shape[1] != self.projection.shape[1] or 0 in self.projection.shape:
            raise ValueError(
                f"theta and projection must be [N, D] and [E, D], but are {list(self.theta.shape)} and "
                f"{list(self.projection.shape)}"
            )
        if self.said is not None and (self.said.ndim != 2 or len(self.said) != len(self.theta)):
            raise ValueError(
                f"said must be [{len(self.theta)}, G] like theta, but is {list(self.said.shape)}"
            )

    @property
    def dim(self) -> int:
        """D."""
        return self.theta.shape[1]

    @property
    def width(self) -> int:
        """E, of the space of the vision-language model."""
        return self.projection.shape[0]

    def __len__(self) -> int:
        return len(self.theta)

    @torch.no_grad()
    def at(self, scale: float) -> Tensor:
        """θ [N, D] with what is finer than `scale` in [0, 1] left out; times Wᵀ it is φ."""
        return truncated(self.theta, lengths(torch.tensor(scale), self.dim))

    @torch.no_grad()
    def weights(
        self, canonical: Tensor, *, temperature: float = 1.0, step: int = 1, heed: float = 0.0
    ) -> Tensor:
        """γ [N, D], see `scale_weights`. A share `heed` in [0, 1] of their prior is as the segments spoke; the rest is
        even, and all of it where that is not known.
        """
        self._check(canonical)
        if not 0 <= heed <= 1:
            raise ValueError(f"heed must be in [0, 1], but is {heed}")
        return torch.cat([gamma for _, gamma in self._weighed(canonical, temperature, step, heed)])

    @torch.no_grad()
    def composite(
        self, canonical: Tensor, *, temperature: float = 1.0, step: int = 1, heed: float = 0.0
    ) -> Tensor:
        """Θ̃ [N, D], to be blended and multiplied by Wᵀ: all scales at once, each with its weight."""
        self._check(canonical)
        weighed = self._weighed(canonical, temperature, step, heed)
        return torch.cat([composite(rows, gamma) for rows, gamma in weighed])

    def _weighed(
        self, canonical: Tensor, temperature: float, step: int, heed: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(θ, γ) of some rows after others, so that not all is held at once."""
        count = max(1, _HELD // self.dim)
        for start in range(0, max(1, len(self)), count):
            some = slice(start, start + count)
            prior = None if self.said is None or heed == 0 else self._prior(self.said[some], heed)
            yield (
                self.theta[some],
                scale_weights(
                    self.theta[some], self.projection, canonical,
                    temperature=temperature, step=step, prior=prior,
                ),
            )  # fmt: skip

    def _prior(self, said: Tensor, heed: float) -> Tensor:
        """[M, D] of M rows of `said`: a group's share is spread evenly over its lengths."""
        bounds = group_bounds(self.dim, said.shape[1])
        sizes = torch.tensor([stop - start for start, stop in pairwise(bounds)])
        spread = (said / sizes).repeat_interleave(sizes, dim=1)
        return (heed * spread + (1 - heed) / self.dim).clamp_min(1e-12)

    def _check(self, canonical: Tensor) -> None:
        if canonical.ndim != 2 or canonical.shape[1] != self.width or len(canonical) == 0:
            raise ValueError(
                f"canonical must be [K, E={self.width}] with K >= 1, but is {list(canonical.shape)}"
            )


# ------------------------------------------------------------------------------------------------------- the field


class Triplane(nn.Module):
    """Features [N, C] of N fixed points: the sum of three planes R x R x C, each read bilinearly where a point falls.

    The points never move. So each reads twelve texels by weights that are known once and for all, and each texel has a
    list of the points that read it; texels that no point reads are not even stored, and a step moves those of the
    points that it asks for, and no others.
    """

    def __init__(
        self, points: Tensor, resolution: int = 512, channels: int = 64, spread: float = 0.1
    ) -> None:
        """points: [N, 3] in any unit; 98 % of them span the planes, and what lies further out reads the border.

        spread: standard deviation of the texels at the start.
        """
        super().__init__()
        if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
            raise ValueError(f"points must be [N, 3] with N >= 1, but is {list(points.shape)}")
        if resolution < 2 or channels < 1:
            raise ValueError(
                f"resolution must be at least 2 and channels at least 1, but are {resolution} and {channels}"
            )
        low, high = points.double().quantile(torch.tensor([0.01, 0.99]).double(), dim=0)
        middle, half = (low + high) / 2, (high - low).max().clamp_min(1e-9) / 2
        at = ((points.double() - middle) / half * 0.5 + 0.5).clamp(0, 1) * (resolution - 1)
        texels, weights = _bilinear(at, resolution)
        used, rank = texels.unique(return_inverse=True)
        by_texel = rank.flatten().argsort(stable=True)
        counts = torch.bincount(rank.flatten(), minlength=len(used))
        self.register_buffer("texels", rank.int())  # [N, 12] rows of the table
        self.register_buffer("weights", weights.float())  # [N, 12]
        self.register_buffer("used", used)  # [T] which texels these are, of 3 R R
        self.register_buffer(
            "readers", (by_texel // 12).int()
        )  # [12 N] points that read a texel, texel by texel
        self.register_buffer("shares", weights.float().flatten()[by_texel])  # [12 N] and by which weights
        self.register_buffer("ends", counts.cumsum(0))  # [T] where the list of each texel ends
        self.resolution = resolution
        self.table = nn.Parameter(spread * torch.randn(len(used), channels))

    texels: Tensor
    weights: Tensor
    used: Tensor
    readers: Tensor
    shares: Tensor
    ends: Tensor

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """[M, C] of the points `rows` (int64 [M], no two alike; default: all). The gradient of the table is sparse."""
        if rows is None:
            rows = torch.arange(len(self.texels), device=self.texels.device)
        return cast(Tensor, _Read.apply(self.table, self, rows))


class _Read(torch.autograd.Function):
    """Both ways are sums of bags of rows: a point's of the texels that it reads, a texel's of the points that read it.

    autograd would sort what is read, which costs several times as much as the sums.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, plane: Triplane, rows: Tensor) -> Tensor:
        ctx.plane, ctx.rows, ctx.shape = plane, rows, table.shape
        ends = torch.arange(12, plane.texels.numel() + 1, 12, device=table.device)
        return ops.sum_bags(table, plane.texels.flatten(), plane.weights.flatten().to(table), ends, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        plane: Triplane = ctx.plane
        place = plane.readers.new_full((len(plane.texels),), -1)
        place[ctx.rows] = torch.arange(len(ctx.rows), dtype=place.dtype, device=place.device)
        touched = torch.zeros(ctx.shape[0], dtype=torch.bool, device=place.device)
        touched.index_fill_(0, plane.texels.index_select(0, ctx.rows).flatten().long(), True)
        texels = touched.nonzero()[:, 0]
        sums = ops.sum_bags(
            grad.contiguous(), plane.readers, plane.shares.to(grad), plane.ends, texels, place=place
        )
        found = torch.sparse_coo_tensor(
            texels[None], sums, ctx.shape, is_coalesced=True, check_invariants=False
        )
        return found, None, None


def _bilinear(at: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """(texels int64 [N, 12], weights [N, 12]) of points [N, 3] in units of texels, on the planes xy, xz and yz."""
    cell = at.floor().clamp(max=resolution - 2).long()
    part = at - cell
    texels, weights = [], []
    for plane, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
        for da in (0, 1):
            for db in (0, 1):
                row, column = cell[:, a] + da, cell[:, b] + db
                texels.append((plane * resolution + row) * resolution + column)
                of_row = part[:, a] if da else 1 - part[:, a]
                weights.append(of_row * (part[:, b] if db else 1 - part[:, b]))
    return torch.stack(texels, dim=1), torch.stack(weights, dim=1)


class NestedField(nn.Module):
    """The field of the paper: a triplane and a network of three layers, D numbers at each Gaussian's centre, and W.

    In training what the triplane says is blended, and the network reads pixels, of which there are fewer; afterwards it
    reads Gaussians (`nested`). That is deferred rendering, and the two agree where a pixel shows one thing.

    W = 0 at the start, as in the paper, is no dead end: θ has no gradient at the first step, but that of W is
    (φ - φ_gt) θᵀ, which is not zero. What is undefined there is the cosine, which losses.nested keeps finite.
    """

    def __init__(
        self,
        points: Tensor,
        width: int,
        dim: int = 512,
        *,
        resolution: int = 512,
        channels: int = 64,
        hidden: int = 256,
        projection: Tensor | None = None,
    ) -> None:
        """points: [N, 3]; width: E. projection: where W begins, [E, D]; zeros by default."""
        super().__init__()
        if width < 1 or dim < 1:
            raise ValueError(f"width and dim must be at least 1, but are {width} and {dim}")
        self.triplane = Triplane(points, resolution, channels)
        self.network = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, dim),
        )  # fmt: skip
        start = torch.zeros(width, dim) if projection is None else projection.detach().clone()
        if start.shape != (width, dim):
            raise ValueError(f"projection must be [{width}, {dim}], but is {list(start.shape)}")
        self.projection = nn.Parameter(start)

    def values(self, rows: Tensor) -> Tensor:
        """[M, C] of Gaussians, to be blended."""
        return torch.as_tensor(self.triplane(rows))

    def embed(self, blended: Tensor) -> Tensor:
        """θ [P, D] of blended values [P, C]."""
        return torch.as_tensor(self.network(blended))

    @torch.no_grad()
    def nested(self) -> Nested:
        """Of all Gaussians."""
        features = self.triplane()
        theta = torch.cat([self.network(part) for part in features.split(_HELD // 256)])
        return Nested(theta, self.projection.detach().clone())


class DirectField(nn.Module):
    """A nested embedding of its own for each Gaussian, blended as it is."""

    def __init__(self, start: Nested) -> None:
        super().__init__()
        self.theta = nn.Parameter(start.theta.detach().clone())
        self.projection = nn.Parameter(start.projection.detach().clone())
        self.said = start.said

    def values(self, rows: Tensor) -> Tensor:
        """θ [M, D] of Gaussians, to be blended. Gradients are sparse."""
        return nn.functional.embedding(rows, self.theta, sparse=True)

    def embed(self, blended: Tensor) -> Tensor:
        """θ [P, D] of blended values."""
        return blended

    @torch.no_grad()
    def nested(self) -> Nested:
        """Of all Gaussians."""
        return Nested(self.theta.detach().clone(), self.projection.detach().clone(), self.said)

"""Volume rendering of samples that lie in one list, ray after ray."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

from benchmarks.baselines.tensorf.fields import RadianceField, Resolution

DISTANCE_SCALE = 25.0  # of intervals, before they multiply densities
VISIBLE = 1e-4  # samples of less weight show neither colour nor features


@dataclass
class Rays:
    """R rays; lengths and places are the scene's (see rays.Scene)."""

    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3], of length 1

    def __len__(self) -> int:
        return len(self.origins)


@dataclass
class Box:
    """Where the field lies."""

    low: Tensor  # [3]
    high: Tensor  # [3]

    @property
    def extent(self) -> Tensor:
        return self.high - self.low

    def part(self, low: Tensor, high: Tensor) -> Box:
        """The part of the box between low and high [3] in [-1, 1]."""
        return Box(self.low + (low + 1) / 2 * self.extent, self.low + (high + 1) / 2 * self.extent)

    def crossing(self, rays: Rays, near: float) -> tuple[Tensor, Tensor]:
        """Distances [R] at which rays enter the box (not before near) and leave it; entry > exit if they miss it."""
        directions = torch.where(rays.directions == 0, 1e-6, rays.directions)
        to_low, to_high = (self.low - rays.origins) / directions, (self.high - rays.origins) / directions
        entry = torch.minimum(to_low, to_high).amax(-1).clamp(min=near)
        return entry, torch.maximum(to_low, to_high).amin(-1)


@dataclass
class Samples:
    """M samples of R rays in the order of the rays, and along each of them."""

    ray: Tensor  # [M] int64, ascending
    distance: Tensor  # [M] from the ray's origin
    position: Tensor  # [M, 3] in the box, -1 to 1
    first: Tensor  # [M] int64: the ray's first sample
    rays: int

    @classmethod
    def of(cls, ray: Tensor, distance: Tensor, position: Tensor, rays: int) -> Samples:
        counts = torch.bincount(ray, minlength=rays)
        return cls(ray, distance, position, (counts.cumsum(0) - counts)[ray], rays)

    def __len__(self) -> int:
        return len(self.ray)

    def before(self, values: Tensor) -> Tensor:
        """Sums [M] of values [M] over the samples that lie before each on its ray."""
        total = values.double().cumsum(0) - values  # float64: differences of sums over all rays
        return (total - total[self.first]).to(values.dtype)

    def sums(self, values: Tensor) -> Tensor:
        """Sums over each ray: [M, C] -> [R, C]."""
        return values.new_zeros(self.rays, values.shape[1]).index_add(0, self.ray, values)


@dataclass
class Grid:
    """How samples are placed in a box: half a node apart, and not where nothing can be seen."""

    box: Box
    resolution: Resolution
    occupied: Tensor | None = None  # bool [X - 1, Y - 1, Z - 1]; None: every cell
    ratio: float = 0.5  # samples' distance, in that of the nodes

    @property
    def step(self) -> float:
        nodes = torch.tensor(self.resolution, device=self.box.low.device)
        return float((self.box.extent / (nodes - 1)).mean()) * self.ratio

    def alpha(self, field: RadianceField) -> Tensor:
        """The largest α that a sample in each cell can have, [X - 1, Y - 1, Z - 1].

        Exact: within a cell the density does not exceed its corners' (it is trilinear before the softplus).
        """
        corners = max_pool3d(field.raw_density_grid()[None, None], 2, stride=1)[0, 0]
        return -torch.expm1(-torch.nn.functional.softplus(corners) * self.step * DISTANCE_SCALE)

    @torch.no_grad()
    def march(self, rays: Rays, near: float, generator: torch.Generator | None = None) -> Samples:
        """Samples of rays, each ray's shifted by a random part of a step if there is a generator."""
        entry, end = self.box.crossing(rays, near)
        longest = max(0.0, float((end - entry).max())) if len(rays) else 0.0
        along = torch.arange(int(longest / self.step) + 1, device=entry.device).float()
        shift = (
            0.0 if generator is None else torch.rand(len(rays), 1, generator=generator, device=entry.device)
        )
        distance = entry[:, None] + self.step * (along + shift)
        slope = 2 * rays.directions / self.box.extent
        start = 2 * (rays.origins - self.box.low) / self.box.extent - 1
        inside = distance < end[:, None]
        if self.occupied is not None:
            inside &= self.occupied.view(-1)[self._cells(start, slope, distance)]
        ray, k = inside.nonzero(as_tuple=True)
        distance = distance[ray, k]
        position = start[ray] + slope[ray] * distance[:, None]
        return Samples.of(ray, distance, position.clamp(-1, 1), len(rays))

    def _cells(self, start: Tensor, slope: Tensor, distance: Tensor) -> Tensor:
        """The cells' places [R, S] in the flattened grid."""
        cell = torch.zeros(distance.shape, dtype=torch.int32, device=distance.device)
        for axis, nodes in enumerate(self.resolution):
            half = (nodes - 1) / 2
            place = torch.addcmul((start[:, axis, None] + 1) * half, slope[:, axis, None] * half, distance)
            cell = cell.mul_(nodes - 1).add_(place.int().clamp_(0, nodes - 2))
        return cell


def weights_of(samples: Samples, sigma: Tensor, step: float) -> Tensor:
    """What each sample gives to its ray: α = 1 - exp(-σ δ) times what the samples before it let through, [M]."""
    optical = sigma * (step * DISTANCE_SCALE)
    return -torch.expm1(-optical) * torch.exp(-samples.before(optical))


def distortion(samples: Samples, weights: Tensor, step: float) -> Tensor:
    """Mean over rays of Σ_ij w_i w_j |t_i - t_j| + Σ w² δ / 3 (Mip-NeRF 360 equation 15), in linear time."""
    t = samples.distance
    pairs = 2 * weights * (t * samples.before(weights) - samples.before(weights * t))
    return (pairs.sum() + weights.square().sum() * step / 3) / max(1, samples.rays)


@dataclass
class Rendered:
    """Of R rays."""

    color: Tensor  # [R, 3]
    opacity: Tensor  # [R]
    samples: Samples
    weights: Tensor  # [M]


def render_color(
    field: RadianceField, samples: Samples, weights: Tensor, directions: Tensor, background: Tensor
) -> Rendered:
    """Colours of rays over a background [3]; directions [R, 3]."""
    seen = (weights > VISIBLE).nonzero()[:, 0]
    color = weights.new_zeros(len(samples), 3)
    if len(seen):
        shown = field.color(samples.position[seen], directions[samples.ray[seen]])
        color = color.index_copy(0, seen, shown)
    opacity = samples.sums(weights[:, None])
    color = samples.sums(weights[:, None] * color) + (1 - opacity) * background
    return Rendered(color.clamp(0, 1), opacity[:, 0], samples, weights)

"""Volume rendering of layers, as NeuralDiff's released code has it. Lengths are in the units of the rays."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.neuraldiff.fields import CoarseField, LayeredField, Samples
from gsfields.losses.motion import BETA_MIN

LAST_INTERVAL = 100.0  # behind the last sample: it takes what light is left
LAST_STATIC_SIGMA = 100.0  # of the last sample in training


@dataclass
class Rays:
    """R rays; directions are unit vectors in the world and in the frame of their own camera (OpenCV axes)."""

    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3]
    in_camera: Tensor  # [R, 3]
    near: Tensor  # [R]
    far: Tensor  # [R]
    frame: Tensor  # [R] int64, the frame's number

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, rows: slice) -> Rays:
        return Rays(*(t[rows] for t in vars(self).values()))


@dataclass
class Composite:
    """R rays blended from S samples of L layers."""

    alphas: Tensor  # [R, S, L]
    transmittance: Tensor  # [R, S] before each sample
    weights: Tensor  # [R, S, L], alphas times transmittance
    sample_weights: Tensor  # [R, S] of all layers together
    color: Tensor  # [R, 3]
    layer_color: Tensor  # [R, L, 3]: each layer's share of color
    masks: Tensor  # [R, L]; they may sum to more than 1, see composite
    beta: Tensor  # [R], BETA_MIN included
    depth: Tensor  # [R], distance along the ray


@dataclass
class Rendered:
    """What render_rays gives: the coarse colour, the blended layers, and their samples before any opaque end."""

    coarse_color: Tensor  # [R, 3]
    fine: Composite
    samples: Samples


def pixel_directions(K: Tensor, pixels: Tensor, radial: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Directions [R, 3] with z = 1 (OpenCV axes) through pixels [R, 2], K [3, 3] or [R, 3, 3].

    radial: k1, k2 of a lens, undone in one step x (1 - k1 r² - k2 r⁴) as EPIC Fields' renderer does; images that
    were undistorted have none.
    """
    focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], dim=-1)
    x = (pixels - K[..., :2, 2]) / focal
    r2 = x.square().sum(-1, keepdim=True)
    x = x * (1 - (radial[0] * r2 + radial[1] * r2.square()))
    return torch.cat([x, torch.ones_like(r2)], dim=-1)


def composite(z: Tensor, samples: Samples) -> Composite:
    """Blend samples at distances z [R, S] (ascending) front to back.

    α = 1 - exp(-δ Σσ) of all layers together, shared out in the ratio of their densities; only the last sample's
    layers have 1 - exp(-δ σ) of their own, which need not sum to its α.
    """
    interval = torch.cat([z[:, 1:] - z[:, :-1], torch.full_like(z[:, :1], LAST_INTERVAL)], dim=1)
    sigma = samples.sigma
    total = sigma.sum(-1)
    optical = interval * total
    alpha = -torch.expm1(-optical)
    shared = sigma[:, :-1] * (alpha / total.clamp(min=1e-10))[:, :-1, None]
    last = -torch.expm1(-LAST_INTERVAL * sigma[:, -1:])
    alphas = torch.cat([shared, last], dim=1)
    before = optical[:, :-1].cumsum(dim=1)
    transmittance = torch.exp(-torch.cat([torch.zeros_like(z[:, :1]), before], dim=1))
    weights = alphas * transmittance[..., None]
    sample_weights = alpha * transmittance
    layer_color = (weights[..., None] * samples.color).sum(1)  # not einsum: autocast would round its inputs
    return Composite(
        alphas=alphas,
        transmittance=transmittance,
        weights=weights,
        sample_weights=sample_weights,
        color=layer_color.sum(1),
        layer_color=layer_color,
        masks=weights.sum(1),
        beta=(weights * samples.beta).sum((1, 2)) + BETA_MIN,
        depth=(sample_weights * z).sum(1),
    )


def layer_alone(blended: Composite, samples: Samples, layer: int) -> Tensor:
    """Colour [R, 3] of one layer without the others: its share of each α, behind no other layer's."""
    alpha = blended.alphas[..., layer]
    passed = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], dim=1), dim=1)
    return ((alpha * passed)[..., None] * samples.color[..., layer, :]).sum(1)


def opaque_end(samples: Samples, generator: torch.Generator | None = None) -> Samples:
    """Samples of training: the last static one is dense and of a random colour ("transmittance fix").

    No layer can then explain a pixel by light that comes from behind the last sample.
    """
    sigma, color = samples.sigma.clone(), samples.color.clone()
    sigma[:, -1, 0] = LAST_STATIC_SIGMA
    color[:, -1, 0] = torch.rand(len(color), 3, generator=generator, device=color.device)
    return Samples(sigma, color, samples.beta)


def stratified(near: Tensor, far: Tensor, count: int, jitter: Tensor | None = None) -> Tensor:
    """Distances [R, count] from near to far [R], each moved within its stratum by jitter [R, count] in [0, 1)."""
    s = torch.linspace(0, 1, count, device=near.device)
    z = near[:, None] * (1 - s) + far[:, None] * s
    if jitter is None:
        return z
    middle = (z[:, 1:] + z[:, :-1]) / 2
    lower, upper = torch.cat([z[:, :1], middle], 1), torch.cat([middle, z[:, -1:]], 1)
    return lower + (upper - lower) * jitter


def importance(z: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Distances drawn where light comes from: the inverse of the weights' distribution at u [R, N] in [0, 1].

    z and weights [R, S]; the bins end at the middles between samples (NeRF section 5.2). -> [R, N]
    """
    edges, mass = (z[:, 1:] + z[:, :-1]) / 2, weights[:, 1:-1] + 1e-5
    cdf = torch.cumsum(mass / mass.sum(-1, keepdim=True), dim=-1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], dim=-1)
    above = torch.searchsorted(cdf, u.contiguous(), right=True)
    below, above = (above - 1).clamp(min=0), above.clamp(max=cdf.shape[1] - 1)
    c0, c1 = cdf.gather(1, below), cdf.gather(1, above)
    e0, e1 = edges.gather(1, below), edges.gather(1, above)
    width = c1 - c0
    share = (u - c0) / torch.where(width < 1e-5, 1.0, width)
    return e0 + share * (e1 - e0)


def render_rays(
    coarse: CoarseField,
    fine: LayeredField,
    rays: Rays,
    counts: tuple[int, int],
    *,
    generator: torch.Generator | None = None,
    train: bool = False,
) -> Rendered:
    """Colour, masks and uncertainty of rays; counts: coarse samples, and those added by importance.

    train: random distances, and an opaque end of every ray.
    """

    def uniform(count: int) -> Tensor:
        return torch.rand(len(rays), count, generator=generator, device=rays.near.device)

    z = stratified(rays.near, rays.far, counts[0], uniform(counts[0]) if train else None)
    first = composite(z, coarse(_along(rays.origins, rays.directions, z), rays.directions))
    with torch.no_grad():
        even = torch.linspace(0, 1, counts[1], device=z.device).expand(len(rays), -1)
        added = importance(z, first.sample_weights, uniform(counts[1]) if train else even)
        z = torch.cat([z, added], dim=1).sort(dim=1).values
    positions = _along(rays.origins, rays.directions, z)
    samples = fine(positions, rays.in_camera[:, None] * z[..., None], rays.directions, rays.frame)
    blended = composite(z, opaque_end(samples, generator) if train else samples)
    return Rendered(first.color, blended, samples)


def _along(origins: Tensor, directions: Tensor, z: Tensor) -> Tensor:
    return origins[:, None] + directions[:, None] * z[..., None]

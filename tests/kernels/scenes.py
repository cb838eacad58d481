"""Seeded random scenes for the kernel tests.

Values are drawn in float64 on the CPU and then cast, so that a scene is the same on every backend up to
rounding; `double()` of a float32 scene has exactly the float32 values: an oracle sees what the kernel saw.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from tests.kernels import oracle


class _Tensors:
    """Moves every tensor field at once."""

    def to(self, dtype: torch.dtype, device: str | torch.device = "cpu"):
        def move(value):
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype if value.is_floating_point() else None)

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})

    def double(self):
        return self.to(torch.float64)

    def requires_grad_(self, *names: str):
        """A copy whose named fields are fresh leaves that require grad."""
        return replace(
            self, **{name: getattr(self, name).detach().clone().requires_grad_() for name in names}
        )


@dataclass(frozen=True)
class Scene(_Tensors):
    """3D Gaussians and the cameras that look at them."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4]
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [N]
    viewmats: Tensor  # [B, 4, 4]
    Ks: Tensor  # [B, 3, 3]
    width: int
    height: int

    GEOMETRY = ("means", "quats", "scales", "opacities")

    @property
    def args(self) -> tuple:
        return (*self.gaussians, self.viewmats, self.Ks, self.width, self.height)

    @property
    def gaussians(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.means, self.quats, self.scales, self.opacities


@dataclass(frozen=True)
class Splats(_Tensors):
    """Already projected Gaussians: what binning and blending take."""

    means2d: Tensor  # [B, N, 2]
    depths: Tensor  # [B, N]
    conics: Tensor  # [B, N, 3]
    opacities2d: Tensor  # [B, N]
    radii: Tensor  # [B, N, 2] int32
    width: int
    height: int

    @property
    def binning(self) -> tuple:
        """Arguments of ops.bin_tiles and, after the values, of oracle.composite."""
        return self.means2d, self.depths, self.conics, self.opacities2d, self.radii, self.width, self.height

    @property
    def composite(self) -> tuple:
        return self.means2d, self.conics, self.opacities2d, self.depths, self.radii, self.width, self.height


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(rng: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=rng, dtype=torch.float64)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def cameras(rng: torch.Generator, views: int, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Cameras near the origin that look down +z, each turned and shifted a little, with off-centre K."""
    viewmats = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    viewmats[:, :3, :3] = torch.linalg.matrix_exp(skew(0.15 * normal(rng, views, 3)))
    viewmats[:, :3, 3] = 0.2 * normal(rng, views, 3)
    Ks = torch.eye(3, dtype=torch.float64).repeat(views, 1, 1)
    Ks[:, 0, 0] = width * uniform(rng, 0.8, 1.1, views)
    Ks[:, 1, 1] = width * uniform(rng, 0.8, 1.1, views)
    Ks[:, 0, 2] = width * uniform(rng, 0.4, 0.6, views)
    Ks[:, 1, 2] = height * uniform(rng, 0.4, 0.6, views)
    return viewmats, Ks


def skew(v: Tensor) -> Tensor:
    """[..., 3] -> [..., 3, 3] cross-product matrices."""
    zero = torch.zeros_like(v[..., 0])
    x, y, z = v.unbind(-1)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*v.shape, 3)


def random_scene(
    n: int, width: int, height: int, *, views: int = 1, seed: int = 0, sigma: float = 2.5
) -> Scene:
    """A realistic mess: Gaussians inside, across and outside the frustum, a few behind it, many overlapping.

    sigma: median standard deviation on screen, in pixels.
    """
    rng = generator(seed)
    viewmats, Ks = cameras(rng, views, width, height)
    depth = uniform(rng, 1.5, 8.0, n)
    aspect = height / width
    means = torch.stack(
        [uniform(rng, -0.75, 0.75, n) * depth, uniform(rng, -0.75, 0.75, n) * depth * aspect, depth], dim=-1
    )
    behind = torch.rand(n, generator=rng) < 0.03
    means[behind, 2] *= -1
    scales = (sigma / width * depth)[:, None] * torch.exp(0.6 * normal(rng, n, 3))
    return Scene(means, normal(rng, n, 4), scales, uniform(rng, 0.02, 1.0, n), viewmats, Ks, width, height)


def smooth_scene(n: int = 5, width: int = 9, height: int = 7, *, views: int = 1, seed: int = 0) -> Scene:
    """Wide, faint Gaussians in mid-view: no pair near the alpha cutoff, the clamp or the end of a pixel.

    Everything the kernels compute is smooth around such a scene, so finite differences are valid.
    """
    rng = generator(seed)
    viewmats, Ks = cameras(rng, views, width, height)
    depth = uniform(rng, 2.0, 6.0, n)
    means = torch.stack(
        [uniform(rng, -0.25, 0.25, n) * depth, uniform(rng, -0.2, 0.2, n) * depth, depth], dim=-1
    )
    scales = depth[:, None] * uniform(rng, 0.7, 1.3, n, 3)
    quats = normal(rng, n, 4)
    return Scene(means, quats, scales, uniform(rng, 0.25, 0.6, n), viewmats, Ks, width, height)


def random_splats(
    n: int,
    width: int,
    height: int,
    *,
    views: int = 1,
    seed: int = 0,
    sigma: float = 3.0,
    opacity: tuple[float, float] = (0.02, 1.0),
) -> Splats:
    """Random ellipses over and around the image, some culled.

    opacity: drawn between these. Near 1 most pixels end early; near 0 tile lists are used to their end.
    """
    rng = generator(seed)
    size = torch.tensor([width, height], dtype=torch.float64)
    means2d = uniform(rng, -0.15, 1.15, views, n, 2) * size
    spread = sigma * torch.exp(0.7 * normal(rng, views, n, 2)) + 0.5
    turn = torch.linalg.matrix_exp(skew(uniform(rng, 0, 6.3, views, n, 1) * torch.tensor([0, 0, 1.0])))[
        ..., :2, :2
    ]
    covariances = turn @ torch.diag_embed(spread**2) @ turn.mT
    opacities2d = uniform(rng, *opacity, views, n)
    precisions = torch.linalg.inv(covariances)
    conics = torch.stack([precisions[..., 0, 0], precisions[..., 0, 1], precisions[..., 1, 1]], dim=-1)
    radii = (
        torch.stack([oracle.extents(c, o) for c, o in zip(covariances, opacities2d, strict=True)])
        .ceil()
        .int()
    )
    radii[torch.rand(views, n, generator=rng) < 0.1] = 0
    return Splats(means2d, uniform(rng, 0.5, 9.0, views, n), conics, opacities2d, radii, width, height)

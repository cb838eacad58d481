"""The field: density and appearance as sums of planes times lines, and networks for colour and instances.

Positions are those of the field's box, each axis from -1 to 1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, softplus

PLANE_AXES = ((0, 1), (0, 2), (1, 2))
LINE_AXES = (2, 1, 0)  # the axis that is not the plane's
FIRST_SIZE = 0.1  # standard deviation of planes and lines at the start

SlowStart = Literal["own", "copy"]
Resolution = tuple[int, int, int]  # nodes along x, y, z; the outermost lie on the box


@dataclass(frozen=True)
class FieldSizes:
    """How large the field is. The defaults are the released code's."""

    density: int = 16  # components for each of the three planes
    appearance: int = 48
    appearance_features: int = 27
    color_width: int = 128
    frequencies: int = 2  # of the encodings of direction and appearance
    density_shift: float = -10.0  # added before softplus: space is empty at first
    instance_width: int = 256
    instance_layers: int = 4  # the paper says 5


class VectorMatrix(nn.Module):
    """A grid as a sum of products: plane(x, y) line(z) + plane(x, z) line(y) + plane(y, z) line(x), of C components
    each (TensoRF equation 3).

    A bilinear plane times a linear line is trilinear, so such a sum is exactly the trilinear interpolation of its
    values at the nodes.
    """

    def __init__(self, components: int, resolution: Resolution) -> None:
        super().__init__()
        planes = [torch.randn(1, components, resolution[b], resolution[a]) for a, b in PLANE_AXES]
        lines = [torch.randn(1, components, resolution[c], 1) for c in LINE_AXES]
        self.planes = nn.ParameterList([FIRST_SIZE * plane for plane in planes])
        self.lines = nn.ParameterList([FIRST_SIZE * line for line in lines])

    @property
    def resolution(self) -> Resolution:
        x, y, z = (self.lines[LINE_AXES.index(axis)].shape[2] for axis in range(3))
        return x, y, z

    def forward(self, x: Tensor) -> list[Tensor]:
        """Products [C, N] at x [N, 3], for each plane."""
        products = []
        for plane, line, (a, b), c in zip(self.planes, self.lines, PLANE_AXES, LINE_AXES, strict=True):
            on_plane = torch.stack([x[:, a], x[:, b]], dim=-1)
            on_line = torch.stack([torch.zeros_like(x[:, c]), x[:, c]], dim=-1)
            products.append(_interpolated(plane, on_plane) * _interpolated(line, on_line))
        return products

    @torch.no_grad()
    def nodes(self) -> Tensor:
        """The sum over all components at every node, [X, Y, Z]."""
        total = torch.zeros(self.resolution, device=self.planes[0].device)
        for plane, line, axes, c in zip(self.planes, self.lines, PLANE_AXES, LINE_AXES, strict=True):
            dense = torch.einsum("kba,kc->abc", plane[0], line[0, ..., 0])
            total += dense.permute([(*axes, c).index(axis) for axis in range(3)])
        return total

    @torch.no_grad()
    def resample(self, low: Tensor, high: Tensor, resolution: Resolution) -> None:
        """Put the grid on the part [low, high] of its box, with other nodes: the parameters are new ones."""
        along = [
            torch.linspace(float(low[i]), float(high[i]), resolution[i], device=low.device) for i in range(3)
        ]
        for i, ((a, b), c) in enumerate(zip(PLANE_AXES, LINE_AXES, strict=True)):
            rows, columns = torch.meshgrid(along[b], along[a], indexing="ij")
            grid = torch.stack([columns, rows], dim=-1)
            line = torch.stack([torch.zeros_like(along[c]), along[c]], dim=-1)[:, None]
            for parameters, places in ((self.planes, grid), (self.lines, line)):
                parameters[i] = nn.Parameter(grid_sample(parameters[i], places[None], align_corners=True))

    def total_variation(self) -> Tensor:
        """Squared differences of neighbours on the planes, as weighted in the released code."""
        total = torch.zeros((), device=self.planes[0].device)
        for plane in self.planes:
            down = (plane[:, :, 1:] - plane[:, :, :-1]).square().mean()
            right = (plane[..., 1:] - plane[..., :-1]).square().mean()
            total = total + 2e-2 * (down + right)
        return total


def _interpolated(grid: Tensor, places: Tensor) -> Tensor:
    """Values [C, N] of a grid [1, C, H, W] at places [N, 2] (along W, along H) in [-1, 1]."""
    return grid_sample(grid, places.view(1, -1, 1, 2), align_corners=True).view(grid.shape[1], -1)


def encoded(x: Tensor, frequencies: int) -> Tensor:
    """[N, C] -> [N, 2 frequencies C]: sines, then cosines, of x times 1, 2, 4 …"""
    angles = (x[..., None] * 2.0 ** torch.arange(frequencies, device=x.device)).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def network(sizes: list[int]) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class RadianceField(nn.Module):
    """Density and colour."""

    def __init__(self, sizes: FieldSizes, resolution: Resolution) -> None:
        super().__init__()
        self.sizes = sizes
        self.density = VectorMatrix(sizes.density, resolution)
        self.appearance = VectorMatrix(sizes.appearance, resolution)
        self.basis = nn.Linear(3 * sizes.appearance, sizes.appearance_features, bias=False)
        inputs = (sizes.appearance_features + 3) * (1 + 2 * sizes.frequencies)
        self.color_network = network([inputs, sizes.color_width, sizes.color_width, 3])
        nn.init.zeros_(self.color_network[-1].bias)  # type: ignore[arg-type]

    def sigma(self, x: Tensor) -> Tensor:
        """Density [N] at x [N, 3]."""
        raw = torch.stack([product.sum(0) for product in self.density(x)]).sum(0)
        return softplus(raw + self.sizes.density_shift)

    def raw_density_grid(self) -> Tensor:
        """What sigma takes the softplus of, at the nodes [X, Y, Z]."""
        return self.density.nodes() + self.sizes.density_shift

    def color(self, x: Tensor, directions: Tensor) -> Tensor:
        """Colour [N, 3] in (0, 1) of positions [N, 3] seen along directions [N, 3]."""
        features = self.basis(torch.cat(self.appearance(x)).T)
        waves = [encoded(features, self.sizes.frequencies), encoded(directions, self.sizes.frequencies)]
        return self.color_network(torch.cat([features, directions, *waves], dim=-1)).sigmoid()

    def resample(self, low: Tensor, high: Tensor, resolution: Resolution) -> None:
        self.density.resample(low, high, resolution)
        self.appearance.resample(low, high, resolution)

    def grids(self) -> list[nn.Parameter]:
        return [*self.density.parameters(), *self.appearance.parameters()]

    def networks(self) -> list[nn.Parameter]:
        return [*self.basis.parameters(), *self.color_network.parameters()]


class DensityGrid:
    """The density of a frozen field: one trilinear look-up in place of its planes and lines, with equal values."""

    def __init__(self, field: RadianceField) -> None:
        self.raw = field.raw_density_grid().permute(2, 1, 0)[None, None].contiguous()

    def sigma(self, x: Tensor) -> Tensor:
        """Density [N] at x [N, 3]."""
        return softplus(grid_sample(self.raw, x.view(1, -1, 1, 1, 3), align_corners=True).view(-1))


class InstanceHead(nn.Module):
    """Embeddings, or logits of identities, as a network of the position alone: no encoding, no last nonlinearity.

    The slow network starts from random numbers of its own, as in the released code, or as a copy of the fast one.
    """

    def __init__(self, features: int, sizes: FieldSizes, slow: SlowStart | None = "own") -> None:
        super().__init__()
        widths = [3, *[sizes.instance_width] * (sizes.instance_layers - 1), features]
        self.fast = network(widths)
        self.slow: nn.Sequential | None = None
        if slow is not None:
            self.slow = copy.deepcopy(self.fast) if slow == "copy" else network(widths)
            self.slow.requires_grad_(False)

    @torch.no_grad()
    def update_slow(self, momentum: float) -> None:
        """slow = momentum slow + (1 - momentum) fast (Contrastive Lift section 3.2)."""
        if self.slow is not None:
            for slow, fast in zip(self.slow.parameters(), self.fast.parameters(), strict=True):
                slow.lerp_(fast, 1 - momentum)


def between(coarse: int, fine: int, steps: int) -> list[int]:
    """Numbers of nodes of `steps` grids after one of coarse³, up to fine³, evenly spaced in their logarithms."""
    return [round(coarse**3 * (fine / coarse) ** (3 * (k + 1) / steps)) for k in range(steps)]


def resolution_of(extent: Tensor, nodes: int) -> Resolution:
    """Nodes along each axis of a box of this extent [3], cubes between them, about `nodes` in all."""
    side = float((extent.prod() / nodes) ** (1 / 3))
    x, y, z = (max(2, round(length / side)) for length in extent.tolist())
    return x, y, z

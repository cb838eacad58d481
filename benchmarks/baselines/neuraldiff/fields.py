"""The networks: a static trunk that may carry a layer in the world, and a layer in the camera's frame.

Sizes and activations are those of NeuralDiff's released code, of which EPIC Fields' is a revision. What a ray's samples
share (direction, appearance, time) goes through the first layer of a head once per ray, not once per sample: the same
sum, at a fraction of the cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

Model = Literal["neuraldiff", "nerf-w", "nerf-t"]

# The layers that each model renders, in the order of their channels. The moving layer of NeRF-W and NeRF-T lies in
# the world, as NeuralDiff's semi-static one; the benchmark scores it as the dynamic one, for they have no other, and
# positive fusion (LMF, which says that NeRF-T gets a layer like NeRF-W's) acts on it.
LAYERS: dict[str, tuple[str, ...]] = {
    "neuraldiff": ("static", "semistatic", "dynamic"),
    "nerf-w": ("static", "dynamic"),
    "nerf-t": ("static", "dynamic"),
}
TIME_CODE = 17  # numbers per frame
NERF_T_FREQUENCIES = 8


@dataclass(frozen=True)
class FieldSizes:
    """How large the networks are. The defaults are the released code's."""

    width: int = 256  # of the trunk
    depth: int = 8  # layers of the trunk; its input enters again in the middle
    head_width: int = 128
    head_depth: int = 4
    position_frequencies: int = 10
    direction_frequencies: int = 4
    time_frequencies: int = 10  # of NeuralDiff's time basis
    appearance: int = 48  # numbers per frame


@dataclass
class Samples:
    """Outputs of a field at S samples of R rays, for each of its L layers."""

    sigma: Tensor  # [R, S, L] density, 1 / length
    color: Tensor  # [R, S, L, 3] in (0, 1)
    beta: Tensor  # [R, S, L] uncertainty; that of the static layer is 0


def positional_encoding(x: Tensor, frequencies: int) -> Tensor:
    """[..., C] -> [..., C (1 + 2 frequencies)]: x, sin x, cos x, sin 2x, cos 2x, sin 4x … (NeRF, without π)."""
    angles = x[..., None, :] * 2.0 ** torch.arange(frequencies, device=x.device)[:, None]
    waves = torch.stack([angles.sin(), angles.cos()], dim=-2)  # [..., frequencies, 2, C]
    return torch.cat([x, waves.flatten(-3)], dim=-1)


def _encoded(positions: Tensor, frequencies: int) -> Tensor:
    """Encoded samples [R S, ·] of positions [R, S, 3], in the precision that layers work in."""
    encoded = positional_encoding(positions.flatten(0, 1), frequencies)
    device = encoded.device.type
    return encoded.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else encoded


def time_basis(times: Tensor, frequencies: int = 10) -> Tensor:
    """The fixed rows P of NeuralDiff's time code for times [T] in [0, 1]: [T, 1 + 2 frequencies].

    The released code spreads -1 … 1 over a vocabulary of 1,000 frames, EPIC Fields' over 140,000; here the video
    spans it, so that a short video's frames differ as much as a long one's.
    """
    return positional_encoding(2 * times[:, None] - 1, frequencies)


class TimeCode(nn.Module):
    """Frame number -> code [TIME_CODE], by the model's own rule.

    NeuralDiff: P W with P fixed and W learned. NeRF-W: a free code for each training frame; another frame takes
    that of the nearest one. NeRF-T: the encoding of t in [0, 1].
    """

    rows: Tensor

    def __init__(self, model: Model, times: Tensor, frequencies: int) -> None:
        """times: [T] of all frames, in [0, 1]."""
        super().__init__()
        self.table: nn.Module
        if model == "nerf-w":
            self.register_buffer("rows", torch.empty(0), persistent=False)
            self.table = nn.Embedding(len(times), TIME_CODE)
        elif model == "nerf-t":
            rows = positional_encoding(times[:, None].float(), NERF_T_FREQUENCIES)
            self.register_buffer("rows", rows, persistent=False)
            self.table = nn.Identity()
        else:
            rows = time_basis(times.double(), frequencies).float()
            self.register_buffer("rows", rows, persistent=False)
            self.table = nn.Linear(rows.shape[1], TIME_CODE, bias=False)
            nn.init.kaiming_uniform_(self.table.weight)

    def forward(self, frame: Tensor, trained: Tensor) -> Tensor:
        """Frames [R], and the nearest training frame of each [R] -> [R, TIME_CODE]."""
        code: Tensor = self.table(trained if isinstance(self.table, nn.Embedding) else self.rows[frame])
        return code


class SharedLinear(nn.Module):
    """A linear layer and ReLU on a sample's feature and its ray's, the latter multiplied once per ray."""

    def __init__(self, per_sample: int, per_ray: int, out: int) -> None:
        super().__init__()
        both = nn.Linear(per_sample + per_ray, out)  # initialised as one layer, then cut
        self.sample = nn.Linear(per_sample, out)
        self.ray = nn.Linear(per_ray, out, bias=False)
        with torch.no_grad():
            self.sample.weight.copy_(both.weight[:, :per_sample])
            self.sample.bias.copy_(both.bias)
            self.ray.weight.copy_(both.weight[:, per_sample:])

    def forward(self, per_sample: Tensor, per_ray: Tensor) -> Tensor:
        """[R S, per_sample], [R, per_ray] -> [R S, out]."""
        rays = self.ray(per_ray)
        both = self.sample(per_sample).unflatten(0, (len(rays), -1)) + rays[:, None]
        return both.relu_().flatten(0, 1)


class Trunk(nn.Module):
    """Encoded positions [R S, ·] -> feature, raw density of the static layer."""

    # Samples stay flat from here on: a linear layer on [R, S, ·] returns a view, which ReLU in place would copy.

    def __init__(self, encoded: int, sizes: FieldSizes) -> None:
        super().__init__()
        self.skip = sizes.depth // 2
        inputs = [encoded] + [sizes.width] * (sizes.depth - 1)
        inputs[self.skip] += encoded if self.skip else 0
        self.layers = nn.ModuleList(nn.Linear(i, sizes.width) for i in inputs)
        self.sigma = nn.Linear(sizes.width, 1)
        self.feature = nn.Linear(sizes.width, sizes.width)

    def forward(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        h = encoded
        for k, layer in enumerate(self.layers):
            h = torch.cat([encoded, h], dim=-1) if k and k == self.skip else h
            h = layer(h).relu_()
        return self.feature(h), self.sigma(h)


class StaticColor(nn.Module):
    """Trunk's feature [R S, ·], direction (and appearance) [R, ·] -> raw colour [R S, 3]."""

    def __init__(self, per_ray: int, sizes: FieldSizes) -> None:
        super().__init__()
        self.first = SharedLinear(sizes.width, per_ray, sizes.width // 2)
        self.color = nn.Linear(sizes.width // 2, 3)

    def forward(self, feature: Tensor, per_ray: Tensor) -> Tensor:
        color: Tensor = self.color(self.first(feature, per_ray))
        return color


class MovingHead(nn.Module):
    """Feature [R S, ·], time code [R, ·] -> raw colour, density and uncertainty of a moving layer [R S, 5]."""

    def __init__(self, feature: int, sizes: FieldSizes) -> None:
        super().__init__()
        width = sizes.head_width
        self.first = SharedLinear(feature, TIME_CODE, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(sizes.head_depth - 1))
        self.out = nn.Linear(width, 5)

    def forward(self, feature: Tensor, time: Tensor) -> Tensor:
        h = self.first(feature, time)
        for layer in self.layers:
            h = layer(h).relu_()
        raw: Tensor = self.out(h)
        return raw


class CoarseField(nn.Module):
    """The static field that says where to sample."""

    def __init__(self, sizes: FieldSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.trunk = Trunk(3 * (1 + 2 * sizes.position_frequencies), sizes)
        self.color = StaticColor(3 * (1 + 2 * sizes.direction_frequencies), sizes)

    def forward(self, positions: Tensor, directions: Tensor) -> Samples:
        """positions [R, S, 3] in the world, directions [R, 3] unit."""
        feature, sigma = self.trunk(_encoded(positions, self.sizes.position_frequencies))
        color = self.color(feature, positional_encoding(directions, self.sizes.direction_frequencies))
        return _samples([torch.cat([color, sigma], dim=-1)], len(positions))


class LayeredField(nn.Module):
    """All layers of a model: what is rendered.

    `appearance` and NeRF-W's codes of a frame without training are those of the nearest training frame, `nearest`.
    """

    nearest: Tensor

    def __init__(self, model: Model, times: Tensor, nearest: Tensor, sizes: FieldSizes) -> None:
        """times [T] in [0, 1] and nearest [T] (indices) of all T frames."""
        super().__init__()
        self.sizes = sizes
        encoded = 3 * (1 + 2 * sizes.position_frequencies)
        self.register_buffer("nearest", nearest, persistent=False)
        self.trunk = Trunk(encoded, sizes)
        per_ray = 3 * (1 + 2 * sizes.direction_frequencies) + sizes.appearance
        self.color = StaticColor(per_ray, sizes)
        self.appearance = nn.Embedding(len(times), sizes.appearance)
        self.time = TimeCode(model, times, sizes.time_frequencies)
        self.world = MovingHead(sizes.width, sizes)
        self.camera = MovingHead(encoded, sizes) if model == "neuraldiff" else None

    def forward(self, positions: Tensor, in_camera: Tensor, directions: Tensor, frame: Tensor) -> Samples:
        """positions [R, S, 3] in the world and in the camera's frame, directions [R, 3] unit, frames [R]."""
        encode, trained = self.sizes.position_frequencies, self.nearest[frame]
        feature, sigma = self.trunk(_encoded(positions, encode))
        view = positional_encoding(directions, self.sizes.direction_frequencies)
        color = self.color(feature, torch.cat([view, self.appearance(trained)], dim=-1))
        time = self.time(frame, trained)
        layers = [torch.cat([color, sigma], dim=-1), self.world(feature, time)]
        if self.camera is not None:
            layers.append(self.camera(_encoded(in_camera, encode), time))
        return _samples(layers, len(positions))

    def moving_parameters(self) -> list[nn.Parameter]:
        """What test-time refinement may change: the moving heads. Trunk, static colour and codes stay."""
        heads = [self.world] if self.camera is None else [self.world, self.camera]
        return [p for head in heads for p in head.parameters()]


def _samples(layers: list[Tensor], rays: int) -> Samples:
    """Raw outputs [R S, ·] (colour, density and, of moving layers, uncertainty) -> what they mean; float32 from here
    on.
    """
    raw = [layer.unflatten(0, (rays, -1)).float() for layer in layers]
    sigma = softplus(torch.stack([layer[..., 3] for layer in raw], dim=-1))
    color = torch.stack([layer[..., :3] for layer in raw], dim=-2).sigmoid()
    moving = [softplus(layer[..., 4]) for layer in raw[1:]]
    return Samples(sigma, color, torch.stack([torch.zeros_like(sigma[..., 0]), *moving], dim=-1))

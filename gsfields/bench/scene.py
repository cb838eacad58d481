"""What is timed: 3D Gaussians, and the cameras that look at them in turn."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from gsfields.camera import Camera

ORBIT_VIEWS = 3
UP = (0.0, -1.0, 0.0)  # of every orbit: y points down


@dataclass(frozen=True)
class Scene:
    """N Gaussians with values, and V cameras of one image size. All float32, on one device."""

    name: str
    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4] wxyz
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [N]
    values: Tensor  # [N, C]
    viewmats: Tensor  # [V, 4, 4] world -> camera
    Ks: Tensor  # [V, 3, 3]
    width: int
    height: int

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def geometry(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.means, self.quats, self.scales, self.opacities

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return *self.geometry, self.values

    def with_gradients(self) -> Scene:
        """The same scene on fresh leaves."""
        means, quats, scales, opacities, values = (t.detach().requires_grad_() for t in self.parameters)
        return replace(self, means=means, quats=quats, scales=scales, opacities=opacities, values=values)

    def with_channels(self, channels: int) -> Scene:
        """The same Gaussians with that many random values in [0, 1] each."""
        noise = torch.Generator().manual_seed(channels)
        values = torch.rand(len(self), channels, generator=noise)
        return replace(self, values=values.to(self.means.device))

    def to(self, device: torch.device) -> Scene:
        return moved(self, device)

    def camera(self, index: int) -> tuple[Tensor, Tensor, int, int]:
        """viewmats [1, 4, 4], Ks [1, 3, 3], width and height of one view; the index wraps around."""
        v = index % self.viewmats.shape[0]
        return self.viewmats[v : v + 1], self.Ks[v : v + 1], self.width, self.height


def synthetic(count: int, size: int, seed: int = 0) -> Scene:
    """Gaussians strewn evenly through a cube, each about a quarter as wide as the distance to its
    neighbours.
    """
    rng = np.random.default_rng(seed)
    spacing = 2.0 / count ** (1 / 3)
    scene = Scene(
        name="synthetic",
        means=float_tensor(rng.uniform(-1, 1, (count, 3))),
        quats=float_tensor(rng.normal(size=(count, 4))),
        scales=float_tensor(0.25 * spacing * np.exp(rng.normal(0, 0.5, (count, 3)))),
        opacities=float_tensor(rng.uniform(0.05, 0.95, count)),
        values=float_tensor(rng.uniform(0, 1, (count, 3))),
        viewmats=torch.empty(0, 4, 4),
        Ks=torch.empty(0, 3, 3),
        width=size,
        height=size,
    )
    return orbited(scene)


def orbited(scene: Scene, views: int = ORBIT_VIEWS) -> Scene:
    """The scene with cameras on a circle, 20 degrees above its middle, that just see its bounding box.

    The box is that of the middle 98 % of the means along each axis: trained splats have stray Gaussians far
    out.
    """
    low, high = torch.quantile(scene.means, torch.tensor([0.01, 0.99]), dim=0)
    centre, reach = (low + high) / 2, float((high - low).norm()) / 2
    fov, elevation = 50.0, math.radians(20)
    distance = reach / math.sin(math.radians(fov / 2))
    upwards = torch.tensor(UP)
    cameras = []
    for v in range(views):
        azimuth = 2 * math.pi * (v + 0.1) / views
        flat = torch.tensor([math.cos(azimuth), 0.0, math.sin(azimuth)])
        direction = math.cos(elevation) * flat + math.sin(elevation) * upwards
        eye = centre + distance * direction
        camera = Camera.look_at(eye, centre, UP, fov_y_degrees=fov, width=scene.width, height=scene.height)
        cameras.append(camera)
    return replace(
        scene,
        viewmats=torch.stack([camera.viewmat for camera in cameras]),
        Ks=torch.stack([camera.K for camera in cameras]),
    )


def resized(scene: Scene, width: int, height: int, views: int) -> Scene:
    """An orbit's scene in another image size and number of views."""
    return orbited(replace(scene, width=width, height=height), views)


T = TypeVar("T")


def moved(tensors: T, device: torch.device | str) -> T:
    """A dataclass with its tensors on the device."""
    given = {f.name: getattr(tensors, f.name) for f in fields(tensors)}  # type: ignore[arg-type]
    on_device = {name: t.to(device) for name, t in given.items() if isinstance(t, Tensor)}
    return replace(tensors, **on_device)  # type: ignore[type-var]


def float_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))

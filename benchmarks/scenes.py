"""The scenes that are timed: 3D Gaussians, and the cameras that look at them in turn."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsfields.camera import Camera
from gsfields.gaussians import SH_C0

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SPLATS = ("robot_125k", "logo_307k", "chair_112k")
ORBIT_VIEWS = 3


@dataclass(frozen=True)
class Scene:
    """N Gaussians with colours, and V cameras of one image size. All float32 on the CPU."""

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

    def camera(self, index: int) -> tuple[Tensor, Tensor, int, int]:
        """viewmats [1, 4, 4], Ks [1, 3, 3], width and height of one view; the index wraps around."""
        v = index % self.viewmats.shape[0]
        return self.viewmats[v : v + 1], self.Ks[v : v + 1], self.width, self.height


class SceneMissing(Exception):
    """The data of a scene are not on this machine; the message says which file was looked for."""


def load(name: str, count: int, size: int) -> Scene:
    """A scene of `count` Gaussians at size x size pixels: "prototype", "synthetic" or one of SPLATS.

    Raises SceneMissing where the file of a trained splat is absent, ValueError for an unknown name.
    """
    if name == "prototype":
        return prototype(count, size)
    if name == "synthetic":
        return synthetic(count, size)
    if name in SPLATS:
        return splat(name, count, size)
    raise ValueError(f"name must be prototype, synthetic or one of {', '.join(SPLATS)}, but is {name!r}")


def prototype(count: int = 50_000, size: int = 512, seed: int = 0) -> Scene:
    """The scene that the targets are stated for: ellipses of median sigma 2 px strewn evenly over the image.

    At 512 x 512 with 50,000 Gaussians the bounding boxes of alpha >= 1/255 touch about 255,000 tiles, and a
    pixel blends about 43 Gaussians; the two spreads below make it so. Our lists are tighter than boxes, hence
    shorter. At other sizes the density per pixel stays the same only if count grows with size squared.

    The Gaussians are flat along the line of sight and scaled with their depth, so that projecting them gives
    the ellipses that were drawn, and the same scene serves projection, binning and blending.
    """
    rng = np.random.default_rng(seed)
    focal = float(size)
    pixels = rng.uniform(0, size, (count, 2))
    depth = rng.uniform(2, 10, count)
    size_of, stretch = rng.normal(0, SIZE_SPREAD, count), rng.normal(0, STRETCH_SPREAD, count)
    sigma = 2 * np.exp(np.column_stack([size_of + stretch, size_of - stretch]))
    angle = rng.uniform(0, math.pi, count)
    zero = np.zeros(count)
    return Scene(
        name="prototype",
        means=_float(np.column_stack([(pixels - size / 2) * (depth / focal)[:, None], depth])),
        quats=_float(np.column_stack([np.cos(angle / 2), zero, zero, np.sin(angle / 2)])),
        scales=_float(np.column_stack([sigma, np.full(count, 0.1)]) * (depth / focal)[:, None]),
        opacities=_float(rng.uniform(0.05, 0.95, count)),
        values=_float(rng.uniform(0, 1, (count, 3))),
        viewmats=torch.eye(4)[None],
        Ks=torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]]),
        width=size,
        height=size,
    )


SIZE_SPREAD = 0.55  # standard deviation of the log of the geometric mean of an ellipse's two sigmas
STRETCH_SPREAD = 0.64  # and of half the log of their ratio


def synthetic(count: int, size: int, seed: int = 0) -> Scene:
    """Gaussians strewn evenly through a cube, each about a quarter as wide as the distance to its
    neighbours.
    """
    rng = np.random.default_rng(seed)
    spacing = 2.0 / count ** (1 / 3)
    scene = Scene(
        name="synthetic",
        means=_float(rng.uniform(-1, 1, (count, 3))),
        quats=_float(rng.normal(size=(count, 4))),
        scales=_float(0.25 * spacing * np.exp(rng.normal(0, 0.5, (count, 3)))),
        opacities=_float(rng.uniform(0.05, 0.95, count)),
        values=_float(rng.uniform(0, 1, (count, 3))),
        viewmats=torch.empty(0, 4, 4),
        Ks=torch.empty(0, 3, 3),
        width=size,
        height=size,
    )
    return orbited(scene, up=(0.0, -1.0, 0.0))


def splat(name: str, count: int, size: int, seed: int = 0) -> Scene:
    """A random subset of a trained splat, in its colours of SH degree 0."""
    path = DATA / "splats" / f"{name}.npz"
    if not path.is_file():
        raise SceneMissing(f"{name}: no ../shared/data/splats/{path.name}, so its rows are left out")
    with np.load(path) as file:
        total = file["means"].shape[0]
        chosen = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
        scene = Scene(
            name=name,
            means=_float(file["means"][chosen]),
            quats=_float(file["quats"][chosen]),
            scales=_float(np.exp(file["log_scales"][chosen].astype(np.float32))),
            opacities=_float(file["opacities"][chosen]),
            values=_float(np.maximum(0.5 + SH_C0 * file["sh"][chosen][:, 0].astype(np.float32), 0)),
            viewmats=torch.empty(0, 4, 4),
            Ks=torch.empty(0, 3, 3),
            width=size,
            height=size,
        )
    return orbited(scene, up=(0.0, -1.0, 0.0))  # y points down in these files


def orbited(scene: Scene, up: tuple[float, float, float], views: int = ORBIT_VIEWS) -> Scene:
    """The scene with cameras on a circle, 20 degrees above its middle, that just see its bounding box.

    The box is that of the middle 98 % of the means along each axis: trained splats have stray Gaussians far
    out.
    """
    low, high = torch.quantile(scene.means, torch.tensor([0.01, 0.99]), dim=0)
    centre, reach = (low + high) / 2, float((high - low).norm()) / 2
    fov, elevation = 50.0, math.radians(20)
    distance = reach / math.sin(math.radians(fov / 2))
    upwards = torch.tensor(up)
    cameras = []
    for v in range(views):
        azimuth = 2 * math.pi * (v + 0.1) / views
        flat = torch.tensor([math.cos(azimuth), 0.0, math.sin(azimuth)])
        direction = math.cos(elevation) * flat + math.sin(elevation) * upwards
        eye = centre + distance * direction
        camera = Camera.look_at(eye, centre, up, fov_y_degrees=fov, width=scene.width, height=scene.height)
        cameras.append(camera)
    return replace(
        scene,
        viewmats=torch.stack([camera.viewmat for camera in cameras]),
        Ks=torch.stack([camera.K for camera in cameras]),
    )


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))

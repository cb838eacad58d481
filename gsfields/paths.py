"""Camera paths for renderings that move: around a scene, in a spiral, or from view to view."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gsfields.camera import Camera


def orbit(cameras: Sequence[Camera], frames: int) -> list[Camera]:
    """Once around what the cameras look at, at their median distance and height, with the first one's
    intrinsics.

    Cameras [4, 4] of one scene; the axis is their mean up direction.
    """
    c2w = torch.stack([camera.c2w for camera in cameras]).double()
    eyes, forward, up = c2w[:, :3, 3], c2w[:, :3, 2], _unit(-c2w[:, :3, 1].mean(dim=0))
    target = focus_point(cameras)
    offset = eyes - target
    height = (offset @ up).median()
    flat = offset - (offset @ up)[:, None] * up
    radius = flat.norm(dim=1).median().clamp(min=1e-3 * float(offset.norm(dim=1).median()))
    start = flat[0] - (flat[0] @ up) * up
    x = _unit(start) if start.norm() > 1e-9 else _unit(torch.linalg.cross(up, forward[0]))
    y = torch.linalg.cross(up, x)
    angles = torch.arange(frames, dtype=torch.float64) * (2 * math.pi / frames)
    places = target + height * up + radius * (angles.cos()[:, None] * x + angles.sin()[:, None] * y)
    return [_look(cameras[0], place, target, up) for place in places]


def spiral(cameras: Sequence[Camera], frames: int, *, turns: int = 2) -> list[Camera]:
    """Small loops about the mean camera that look at one point: the usual path for views from one side.

    Loops span the 60th percentile of the cameras' distances from their mean on each of its axes.
    """
    c2w = torch.stack([camera.c2w for camera in cameras]).double()
    eyes = c2w[:, :3, 3]
    center = eyes.mean(dim=0)
    forward = _unit(c2w[:, :3, 2].mean(dim=0))
    up = _unit(-c2w[:, :3, 1].mean(dim=0))
    right = _unit(torch.linalg.cross(forward, up))
    axes = torch.stack((right, torch.linalg.cross(right, forward), forward))
    reach = ((eyes - center) @ axes.T).abs().quantile(0.6, dim=0).clamp(min=1e-6)
    target = center + forward * ((focus_point(cameras) - center) @ forward).clamp(min=float(reach.max()))
    angles = torch.arange(frames, dtype=torch.float64) * (2 * math.pi * turns / frames)
    waves = torch.stack((angles.cos(), -angles.sin(), (angles / turns).sin() * 0.5), dim=1)
    return [_look(cameras[0], place, target, up) for place in center + (waves * reach) @ axes]


def between(cameras: Sequence[Camera], frames: int) -> list[Camera]:
    """From each camera to the next, evenly; centres and rotations are interpolated linearly."""
    if len(cameras) == 1:
        return [cameras[0]] * frames
    c2w = torch.stack([camera.c2w for camera in cameras]).double()
    path = []
    for t in torch.linspace(0, len(cameras) - 1, frames, dtype=torch.float64).tolist():
        i = min(int(t), len(cameras) - 2)
        blended = torch.lerp(c2w[i], c2w[i + 1], t - i)
        u, _, vt = torch.linalg.svd(blended[:3, :3])  # the nearest rotation to the mixture of the two
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = u @ vt
        pose[:3, 3] = blended[:3, 3]
        path.append(Camera(torch.linalg.inv(pose).float(), cameras[0].K, cameras[0].width, cameras[0].height))
    return path


def focus_point(cameras: Sequence[Camera]) -> Tensor:
    """The point [3], float64, nearest to all optical axes in the least-squares sense.

    A slight pull towards the mean of the centres plus the mean direction keeps parallel axes solvable.
    """
    c2w = torch.stack([camera.c2w for camera in cameras]).double()
    eyes, forward = c2w[:, :3, 3], c2w[:, :3, 2]
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]
    spread = (eyes - eyes.mean(dim=0)).norm(dim=1).max()
    guess = eyes.mean(dim=0) + forward.mean(dim=0) * spread
    pull = 1e-4 * torch.eye(3, dtype=torch.float64)
    return torch.linalg.solve(
        across.mean(dim=0) + pull, (across @ eyes[..., None]).mean(dim=0)[:, 0] + pull @ guess
    )


def around_box(
    points: Tensor, *, width: int = 640, height: int = 480, fov_y_degrees: float = 45
) -> list[Camera]:
    """Eight cameras about the points [M, 3] of a scene that came without cameras; y points down, as in COLMAP
    worlds.
    """
    low, high = points.quantile(0.05, dim=0), points.quantile(0.95, dim=0)
    center, radius = (low + high) / 2, 0.5 * float((high - low).norm())
    distance = 1.2 * max(radius, 1e-6) / math.tan(math.radians(fov_y_degrees) / 2)
    up = torch.tensor([0.0, -1.0, 0.0])
    cameras = []
    for i in range(8):
        a = i * math.pi / 4
        eye = center + distance * torch.tensor([math.cos(a), -0.4, math.sin(a)])
        cameras.append(
            Camera.look_at(eye, center, up, fov_y_degrees=fov_y_degrees, width=width, height=height)
        )
    return cameras


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def _look(like: Camera, eye: Tensor, target: Tensor, up: Tensor) -> Camera:
    return Camera.look_at(eye, target, up, K=like.K, width=like.width, height=like.height)

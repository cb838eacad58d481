"""A small scene the package makes itself: a furnished room, ray cast with exact cameras, depths and object
ids.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from plyfile import PlyData, PlyElement
from torch import Tensor

from gsfields.camera import Camera
from gsfields.data.dataset import Dataset, View, hold_out
from gsfields.data.furniture import furnished_room
from gsfields.data.raytrace import Scene, render_geometry, render_image
from gsfields.data.solids import Array
from gsfields.files import written_whole

_POINTS = 5000  # surface points tried; those that fewer than two training views see are dropped
_POINT_NOISE = 0.002  # metres, standard deviation


@dataclass
class SyntheticDataset(Dataset):
    """A dataset whose ground truth is at hand: the `scene` itself."""

    scene: Scene = field(kw_only=True, repr=False)

    def geometry(self, index: int) -> tuple[Tensor, Tensor]:
        """(depth float32 [H, W], object ids int32 [H, W]) of views[index] at its pixel centres, without
        antialiasing: camera z in metres, and the position of each object's name in `object_names`.
        """
        camera = self.views[index].camera
        depth, ids = render_geometry(self.scene, *_pinhole(camera), camera.width, camera.height)
        return torch.from_numpy(depth), torch.from_numpy(ids)

    @property
    def object_names(self) -> list[str]:
        """What the object ids stand for; 0 is the room's shell."""
        return self.scene.object_names


def make_room(
    *,
    seed: int = 0,
    views: int = 60,
    test_every: int = 8,
    width: int = 320,
    height: int = 240,
    fov_degrees: float = 70,
    supersample: int = 2,
) -> SyntheticDataset:
    """A room of 5 x 4 x 2.6 metres with a laid table, seen from a path around it as if held by hand.

    World: metres, z up, the floor's middle at the origin. `seed` changes places, colours, pictures and the
    path. fov_degrees is the horizontal field of view; supersample² rays go through each pixel, and each lamp
    is sampled at as many points, which softens its shadows. Every `test_every`-th view is held out (0: none).
    `points` is what structure from motion would give: points of the surfaces, each seen by two training views
    or more, 2 mm off, with the colour of a pixel that saw it (None if there is no such point). The same
    arguments give the same bits.

    Raises ValueError if an argument is out of its range.
    """
    _check_arguments(seed, views, test_every, width, height, fov_degrees, supersample)
    scene = furnished_room(seed)
    cameras = _handheld_path(np.random.default_rng([seed, 1]), views, width, height, fov_degrees)
    _assert_outside_objects(scene, cameras)

    def render(camera: Camera) -> Tensor:
        return torch.from_numpy(render_image(scene, *_pinhole(camera), width, height, supersample))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        images = list(pool.map(render, cameras))
    all_views = [
        View.from_image(f"{i:04d}.png", camera, image)
        for i, (camera, image) in enumerate(zip(cameras, images, strict=True))
    ]
    train, test = hold_out(views, test_every)
    points, colors = _surface_points(
        np.random.default_rng([seed, 2]), scene, [cameras[i] for i in train], [images[i] for i in train]
    )
    return SyntheticDataset(all_views, train, test, points, colors, name=f"room-{seed}", scene=scene)


def save_room(path: str | Path, room: SyntheticDataset) -> None:
    """Write a synthetic dataset as a new folder, whole or not at all: images/*.png, transforms.json
    (nerfstudio's dialect), points.ply, depth/*.png (16 bit, millimetres), ids/*.png (16 bit) and objects.json
    (what the ids name).

    Held-out views are not marked in it: its readers hold out every 8th, as make_room does unless told
    otherwise.

    Raises FileExistsError if there is something at `path`, FileNotFoundError if its parent folder does not
    exist.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"save_room writes a new folder, but {path} exists")
    with written_whole(path) as folder:
        for name in ("images", "depth", "ids"):
            (folder / name).mkdir(parents=True)
        frames = []
        for index, view in enumerate(room.views):
            depth, ids = room.geometry(index)
            _save_png(folder / "images" / view.name, (view.image() * 255).round().to(torch.uint8))
            _save_png(
                folder / "depth" / view.name, (depth.double() * 1000).round().clamp(0, 65535).to(torch.uint16)
            )
            _save_png(folder / "ids" / view.name, ids.to(torch.uint16))
            c2w = _pinhole(view.camera)[1]
            frames.append(
                {
                    "file_path": f"images/{view.name}",
                    "depth_file_path": f"depth/{view.name}",
                    "transform_matrix": (
                        c2w * [1, -1, -1, 1]
                    ).tolist(),  # OpenGL axes: y up, looking along -z
                }
            )
        camera = room.views[0].camera
        header = {
            "camera_model": "OPENCV",
            "w": camera.width,
            "h": camera.height,
            "fl_x": float(camera.K[0, 0]),
            "fl_y": float(camera.K[1, 1]),
            "cx": float(camera.K[0, 2]),
            "cy": float(camera.K[1, 2]),
        }
        if room.points is not None and room.point_colors is not None:
            header["ply_file_path"] = "points.ply"
            save_points(folder / "points.ply", room.points, room.point_colors)
        (folder / "transforms.json").write_text(json.dumps(header | {"frames": frames}, indent=1))
        (folder / "objects.json").write_text(json.dumps(room.object_names, indent=1))


def _save_png(path: Path, pixels: Tensor) -> None:
    Image.fromarray(pixels.numpy()).save(path)


def save_points(path: Path, points: Tensor, colors: Tensor) -> None:
    """Write points [M, 3] with colours [M, 3] in [0, 1] as a PLY file of vertices with 8-bit colours."""
    kinds = [(name, "f4") for name in ("x", "y", "z")] + [(name, "u1") for name in ("red", "green", "blue")]
    rows = np.empty(len(points), dtype=kinds)
    for i in range(3):
        rows["xyz"[i]] = points[:, i].numpy()
        rows[("red", "green", "blue")[i]] = (colors[:, i] * 255).round().numpy()
    PlyData([PlyElement.describe(rows, "vertex")]).write(path)


def _check_arguments(
    seed: int, views: int, test_every: int, width: int, height: int, fov_degrees: float, supersample: int
) -> None:
    whole = (
        ("seed", seed, 0, None),
        ("views", views, 1, None),
        ("test_every", test_every, 0, None),
        ("width", width, 1, 16384),
        ("height", height, 1, 16384),
        ("supersample", supersample, 1, 16),
    )
    for name, value, least, most in whole:
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value
        if not fits or (most is not None and value > most):
            allowed = f"at least {least}" if most is None else f"from {least} to {most}"
            raise ValueError(f"{name} must be a whole number, {allowed}, but is {value!r}")
    if test_every == 1 or (views == 1 and test_every):
        raise ValueError(
            f"test_every must leave a view to train on (0: hold out none), but is {test_every} of {views}"
        )
    if not (isinstance(fov_degrees, int | float) and 0 < fov_degrees < 180):
        raise ValueError(f"fov_degrees must be a number between 0 and 180, but is {fov_degrees!r}")


def _handheld_path(
    rng: np.random.Generator, views: int, width: int, height: int, fov_degrees: float
) -> list[Camera]:
    """One walk around the table at eye level, looking at it: slow waves for the walker, quick small ones for
    the hand. The path is closed, so its last view stands next to its first.
    """
    focal = width / 2 / math.tan(math.radians(fov_degrees) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float32)
    turn = 2 * np.pi * np.arange(views) / views

    def sway(size: float, periods: int) -> Array:
        return size * np.sin(periods * turn + rng.uniform(0, 2 * np.pi))

    start, reach = rng.uniform(0, 2 * np.pi), 1 + sway(0.05, 3)
    x = 1.75 * reach * np.cos(turn + start) + sway(0.02, 11)
    y = 1.22 * reach * np.sin(turn + start) + sway(0.02, 13)
    z = 1.48 + sway(0.2, 2) + sway(0.03, 9)
    target = np.stack(
        [sway(0.25, 2) + sway(0.03, 12), sway(0.25, 3) + sway(0.03, 10), 0.85 + sway(0.15, 4)], axis=1
    )
    return [
        Camera.look_at(eye.tolist(), to.tolist(), [0.0, 0.0, 1.0], K=K, width=width, height=height)
        for eye, to in zip(np.stack([x, y, z], axis=1), target, strict=True)
    ]


def _pinhole(camera: Camera) -> tuple[Array, Array]:
    """(K [3, 3], camera -> world [4, 4]) of the camera as it is, in float64."""
    return camera.K.double().numpy(), torch.linalg.inv(camera.viewmat.double()).numpy()


def _assert_outside_objects(scene: Scene, cameras: list[Camera], clearance: float = 0.1) -> None:
    """No camera may be inside an object or outside the room, nor may the six points `clearance` metres
    from it.
    """
    centers = np.stack([_pinhole(camera)[1][:3, 3] for camera in cameras], axis=1)
    for step in np.vstack([np.zeros(3), np.eye(3), -np.eye(3)]) * clearance:
        inside = scene.inside(centers + step[:, None])
        assert not inside.any(), f"camera {int(inside.argmax())} of the path stands in an object"


def _surface_points(
    rng: np.random.Generator, scene: Scene, cameras: list[Camera], images: list[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """(points [M, 3], colours [M, 3]) float32: hits of random pixels of random views, kept if two views
    see them.
    """
    owner = np.sort(rng.integers(len(cameras), size=_POINTS))
    points, colors = np.empty((3, _POINTS)), np.empty((_POINTS, 3), dtype=np.float32)
    for i, (camera, image) in enumerate(zip(cameras, images, strict=True)):
        here = np.flatnonzero(owner == i)
        K, c2w = _pinhole(camera)
        column, row = rng.integers(camera.width, size=len(here)), rng.integers(camera.height, size=len(here))
        pixel = np.stack(
            [(column + 0.5 - K[0, 2]) / K[0, 0], (row + 0.5 - K[1, 2]) / K[1, 1], np.ones(len(here))]
        )
        rays = c2w[:3, :3] @ pixel
        points[:, here] = c2w[:3, 3:] + rays * scene.cast(c2w[:3, 3], rays).t
        colors[here] = image.numpy()[row, column]
    seen = sum(_sees(scene, camera, points).astype(int) for camera in cameras)
    keep = (seen >= 2) & np.isfinite(points).all(axis=0)
    if not keep.any():
        return None, None
    noisy = points[:, keep].T + rng.normal(0, _POINT_NOISE, (int(keep.sum()), 3))
    return torch.from_numpy(noisy.astype(np.float32)), torch.from_numpy(colors[keep])


def _sees(scene: Scene, camera: Camera, points: Array) -> Array:
    """Whether the camera's image shows world points [3, N], with nothing before them: bool [N]."""
    K, c2w = _pinhole(camera)
    offsets = points - c2w[:3, 3:]
    x, y, z = c2w[:3, :3].T @ offsets
    ahead = np.maximum(z, 1e-9)
    u, v = K[0, 0] * x / ahead + K[0, 2], K[1, 1] * y / ahead + K[1, 2]
    shown = (z > 0) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    index = np.flatnonzero(shown)
    shown[index] = scene.cast(c2w[:3, 3], offsets[:, index]).t > 0.999
    return shown

"""Real images for the fusion benchmark, where the optional shared data are at hand.

A video of a hand, with outlines drawn by hand (hand_video_labels.json) and 2D masks from its optical flow; and
photographs of a room, into which trained splats are rendered, so that their masks are exact.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from benchmarks.scenes import DATA, SceneMissing, splat
from gsfields.bench.scene import Scene
from gsfields.camera import Camera
from gsfields.data.load import load_dataset
from gsfields.data.motion_masks import write_mask
from gsfields.data.poses import OPENGL_AXES
from gsfields.files import written_whole
from gsfields.plans import plan
from gsfields.priors.motion import prepare_motion

Array = np.ndarray
LABELS = Path(__file__).with_name("hand_video_labels.json")
_FINER = 4  # of the grid that outlines are filled on
_MOTIONS = ("dynamic", "semistatic", "dynamic_semistatic")


@dataclass(frozen=True)
class HandVideo:
    """A hand before a cluttered shelf, 86 frames of 512x384; 12 of them are labelled, to within 1 to 3 pixels."""

    name: str = "hand"

    def folder(self, scenes: Path) -> Path:
        return scenes / self.name

    def make(self, scenes: Path, jobs: int = 1) -> Path:
        """Raises SceneMissing where the video is not at hand."""
        folder, source = self.folder(scenes), DATA / "hand_video"
        if not source.is_dir():
            raise SceneMissing(f"{self.name}: no ../shared/data/hand_video")
        if not folder.exists():
            with written_whole(folder) as new:
                shutil.copytree(source, new)
                width, height = _size(new)
                for stem, outlines in json.loads(LABELS.read_text()).items():
                    moving = filled(outlines["moving"], width, height) - filled(
                        outlines["holes"], width, height
                    )
                    for motion in ("dynamic", "dynamic_semistatic"):
                        _write_labels(new / "annotations" / motion / f"{stem}.png", moving >= 0.5)
                prepare_motion(new, progress=False)
        return folder


@dataclass(frozen=True)
class RoomVideo:
    """35 photographs of a room, of which a robot stands still until 0.45 of the time and is then carried elsewhere, a
    cube wanders about all the time, and another one is held before the camera, most of the time.

    back: every other photograph, and the others on the way back, so that places are seen again. The 2D masks are
    those of a simple segmenter: holes, shifts, false alarms, one frame in five with nothing.
    """

    seed: int
    back: bool
    width: int = 240

    @property
    def name(self) -> str:
        return f"room-{'back' if self.back else 'once'}-{self.seed}"

    def folder(self, scenes: Path) -> Path:
        return scenes / self.name

    def make(self, scenes: Path, jobs: int = 1) -> Path:
        """Raises SceneMissing where photographs or splats are not at hand."""
        folder, source = self.folder(scenes), DATA / "colmap_room"
        if not source.is_dir():
            raise SceneMissing(f"{self.name}: no ../shared/data/colmap_room")
        if not folder.exists():
            stage = Stage.of(source, self)
            with written_whole(folder) as new:
                self._write(new, stage)
        return folder

    def _write(self, folder: Path, stage: Stage) -> None:
        for name in ("images", "motion_masks", *(f"annotations/{motion}" for motion in _MOTIONS)):
            (folder / name).mkdir(parents=True)
        frames = []
        for k, (image, dynamic, semistatic) in enumerate(stage.frames()):
            stem = f"frame_{k:03d}"
            pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"images/{stem}.jpg", quality=92)
            for motion, mask in zip(_MOTIONS, (dynamic, semistatic, dynamic | semistatic), strict=True):
                _write_labels(folder / f"annotations/{motion}/{stem}.png", mask)
            scores = simple_segmenter(dynamic, np.random.default_rng([self.seed, k]))
            write_mask(folder / f"motion_masks/{stem}.png", scores, bits=8)
            pose = stage.cameras[k].c2w.double().numpy() @ OPENGL_AXES
            frames.append(
                {
                    "file_path": f"images/{stem}.jpg",
                    "time": k / (len(stage.cameras) - 1),
                    "transform_matrix": pose.tolist(),
                }
            )
        camera = stage.cameras[0]
        K = camera.K.tolist()
        header = {"w": camera.width, "h": camera.height, "camera_model": "PINHOLE"}
        header |= {"fl_x": K[0][0], "fl_y": K[1][1], "cx": K[0][2], "cy": K[1][2]}
        (folder / "transforms.json").write_text(json.dumps(header | {"frames": frames}))


@dataclass
class Stage:
    """The photographs in their order, and where things are put among them."""

    images: list[Array]  # [H, W, 3] each
    cameras: list[Camera]
    places: Array  # [M, 3], points that many cameras see from afar, those seen most first
    up: Array  # [3]
    near: float  # depth of near parts of the room, world units

    @classmethod
    def of(cls, source: Path, video: RoomVideo) -> Stage:
        dataset = load_dataset(source, width=video.width, split_every=0)
        views = sorted(dataset.views, key=lambda view: view.name)
        views = views[::2] + views[1::2][::-1] if video.back else views
        assert dataset.points is not None
        points = dataset.points.double().numpy()
        cameras = [view.camera for view in views]
        centres = np.stack([camera.position.double().numpy() for camera in cameras])
        rng = np.random.default_rng([video.seed, 5])
        toward = points[rng.integers(0, len(points), 4000)] - centres.mean(0)
        places = centres.mean(0) + rng.uniform(0.2, 0.6, (4000, 1)) * toward
        distance = np.linalg.norm(centres[:, None] - places, axis=2)
        places = places[distance.min(0) > 0.35 * np.median(distance)]
        seen = sum(_inside(camera, places).astype(int) for camera in cameras)
        up = -np.mean([camera.c2w[:3, 1].double().numpy() for camera in cameras], axis=0)
        first = cameras[0].viewmat.double().numpy()
        depths = (points @ first[:3, :3].T + first[:3, 3])[:, 2]
        images = [view.image().numpy() for view in views]
        return cls(
            images,
            cameras,
            places[np.argsort(-seen)[:200]],
            up / np.linalg.norm(up),
            float(np.quantile(depths[depths > 0], 0.1)),
        )

    def frames(self) -> Iterator[tuple[Array, Array, Array]]:
        """(image [H, W, 3], what moves, what stands but moves at another time, bool [H, W]) of every photograph."""
        robot, cube = _normalised(splat("robot_125k", 60_000, 8)), _normalised(splat("logo_307k", 60_000, 8))
        other = Scene(**{**vars(cube), "values": cube.values[:, [2, 0, 1]]})
        centres = np.stack([camera.position.double().numpy() for camera in self.cameras])
        here, around = self.places[0], self.places[len(self.places) // 2]
        size = 0.18 * float(np.median(np.linalg.norm(centres - here, axis=1)))
        there = self.places[np.argmin(abs(np.linalg.norm(self.places - here, axis=1) - 2.2 * size))]
        for k, (image, camera) in enumerate(zip(self.images, self.cameras, strict=True)):
            t = k / (len(self.images) - 1)
            carried = float(np.clip((t - 0.45) / 0.15, 0, 1))
            carried = carried * carried * (3 - 2 * carried)
            dynamic, semistatic = np.zeros((2, *image.shape[:2]), bool)
            place = here + (there - here) * carried
            image, shown = drawn(image, camera, robot, self._upright(1 + 2 * carried), place, size)
            (dynamic if 0 < carried < 1 else semistatic)[shown] = True
            swing = size * np.array([1.5 * np.sin(9 * t), 0.6 * np.sin(23 * t), 1.2 * np.cos(11 * t)])
            image, shown = drawn(image, camera, other, self._upright(4 * t), around + swing, 0.9 * size)
            dynamic, semistatic = dynamic | shown, semistatic & ~shown
            if not (0.3 < t < 0.4 or 0.7 < t < 0.75):
                c2w = camera.c2w.double().numpy()
                held = (
                    np.array([0.35 * np.sin(8 * t) + 0.25, 0.35 + 0.12 * np.sin(19 * t), 1.0]) * self.near / 2
                )
                turned = c2w[:3, :3] @ Rotation.from_euler("z", 3 * t).as_matrix()
                image, shown = drawn(
                    image, camera, cube, turned, c2w[:3, :3] @ held + c2w[:3, 3], 0.14 * self.near
                )
                dynamic, semistatic = dynamic | shown, semistatic & ~shown
            yield image, dynamic, semistatic

    def _upright(self, angle: float) -> Array:
        """A rotation [3, 3] that puts what points down in its own axes upright, turned about the vertical."""
        x = np.cross(self.up, [1, 0, 0.3])
        x /= np.linalg.norm(x)
        axes = np.stack([x, -self.up, np.cross(x, -self.up)], axis=1)
        turned: Array = axes @ Rotation.from_euler("y", angle).as_matrix()
        return turned


def drawn(
    image: Array, camera: Camera, thing: Scene, rotation: Array, place: Array, size: float
) -> tuple[Array, Array]:
    """An image with a thing of half extent `size` before it, and the mask of its pixels."""
    turn = Rotation.from_matrix(rotation)
    quats = turn * Rotation.from_quat(thing.quats.numpy(), scalar_first=True)
    built = plan(
        _tensor(turn.apply(thing.means.numpy() * size) + place),
        _tensor(quats.as_quat(scalar_first=True)),
        thing.scales * size,
        thing.opacities,
        camera.viewmat,
        camera.K,
        camera.width,
        camera.height,
    )
    alpha = built.alpha.numpy()
    return built.blend(thing.values).numpy() + (1 - alpha) * image, alpha[..., 0] > 0.5


def simple_segmenter(moving: Array, rng: np.random.Generator) -> Array:
    """Soft scores [H, W] of a mask bool [H, W] with the errors of RoomVideo."""
    height, width = moving.shape
    holes = ndimage.gaussian_filter(rng.normal(size=moving.shape), width / 30)
    scores = moving * (holes / holes.std() > 0.1 - 0.5 * rng.normal())
    scores = ndimage.shift(scores.astype(float), rng.normal(size=2) * width / 150, order=1)
    scores = ndimage.grey_dilation(scores, 3)
    if rng.random() < 0.35:
        y, x = np.mgrid[:height, :width]
        row, column = rng.random(2) * moving.shape
        scores = np.maximum(scores, 0.8 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (width / 20) ** 2))
    scores = ndimage.gaussian_filter(scores, width / 120) * rng.uniform(0.6, 1) + 0.05 * rng.random()
    found: Array = scores * (0.03 if rng.random() < 0.2 else 1)
    return found


def filled(outlines: list[list[list[float]]], width: int, height: int) -> Array:
    """The share [H, W] of each pixel that lies within polygons of (x, y), in pixels."""
    inside = np.zeros((height * _FINER, width * _FINER), bool)
    for outline in outlines:
        crossed = np.zeros(
            (height * _FINER, width * _FINER + 1), int
        )  # edges by their first cell to the right
        corners = np.array(outline, float) * _FINER - 0.5  # cell centres are whole numbers
        for (x, y), (to_x, to_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            low, high = sorted((y, to_y))
            rows = np.arange(max(math.ceil(low), 0), min(math.ceil(high), len(crossed)))
            at = np.ceil(x + (rows - y) * (to_x - x) / (to_y - y or 1)).clip(0, width * _FINER)
            np.add.at(crossed, (rows, at.astype(int)), 1)
        inside |= crossed.cumsum(axis=1)[:, :-1] % 2 == 1
    shares: Array = inside.reshape(height, _FINER, width, _FINER).mean(axis=(1, 3))
    return shares


def _inside(camera: Camera, points: Array) -> Array:
    """bool [M]: points that show in the middle of the image."""
    local = points @ camera.viewmat[:3, :3].double().numpy().T + camera.viewmat[:3, 3].double().numpy()
    xy = (local @ camera.K.double().numpy().T)[:, :2] / np.maximum(local[:, 2:], 1e-9)
    share = xy / np.array([camera.width, camera.height])
    inside: Array = (local[:, 2] > 0) & (abs(share - 0.5) < 0.4).all(axis=1)
    return inside


def _normalised(thing: Scene) -> Scene:
    """About the origin, of half extent 1."""
    low, high = (torch.quantile(thing.means, q, dim=0) for q in (0.02, 0.98))
    size = float((high - low).max()) / 2
    grown = thing.scales / size * 1.3  # a part of the Gaussians stands for all
    return Scene(**{**vars(thing), "means": (thing.means - (low + high) / 2) / size, "scales": grown})


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def _size(folder: Path) -> tuple[int, int]:
    header = json.loads((folder / "transforms.json").read_text())
    return int(header["w"]), int(header["h"])


def _write_labels(path: Path, mask: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8)).save(path)

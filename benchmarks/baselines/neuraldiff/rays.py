"""Frames of a video as rays: where they start, how far they reach, and the training pixels they should show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.baselines.neuraldiff.render import Rays, pixel_directions
from gsfields.camera import Camera
from gsfields.data import Dataset

NEAR_QUANTILE, FAR_QUANTILE = 0.001, 0.999  # of the points' depths in a camera (EPIC Fields' renderer)
GUESSED_NEAR, GUESSED_FAR = 0.05, 4.0  # in units of the scene's extent, where nothing says how far it reaches
FAR = 1.0  # the median far end of the rays, in the units of the field's input
MAX_PIXELS = 20_000_000  # training pixels held in memory; of longer videos each frame gives a random part


class Video:
    """The cameras of all views of a dataset, on one device.

    The world is moved to the cameras' mean position and scaled so that rays reach FAR: encodings and densities then
    do not depend on the arbitrary scale of structure from motion.
    """

    def __init__(self, dataset: Dataset, device: torch.device | str = "cpu") -> None:
        cameras = [view.camera for view in dataset.views]
        ranges = [
            depth_range(view.camera, dataset.points) or view.bounds or _guess(dataset)
            for view in dataset.views
        ]
        self.device = torch.device(device)
        reach = torch.tensor(ranges, dtype=torch.float32)
        unit = float(FAR / reach[:, 1].median())
        self.size = [(camera.width, camera.height) for camera in cameras]
        self.K = torch.stack([camera.K for camera in cameras]).to(self.device)
        c2w = torch.stack([camera.c2w for camera in cameras])
        self.rotation = c2w[:, :3, :3].contiguous().to(self.device)
        self.center = ((c2w[:, :3, 3] - dataset.scene_center) * unit).to(self.device)
        self.reach = (reach * unit).to(self.device)  # [T, 2] near, far
        self.times = dataset.times()
        trained = torch.tensor(dataset.train)
        distance = (self.times[:, None] - self.times[trained]).abs()
        self.nearest = trained[distance.argmin(dim=1)]  # [T] the training frame nearest in time

    def rays(self, frame: Tensor, pixel: Tensor) -> Rays:
        """Rays through the centres of pixels, frame [R] and pixel [R] (row by row in its image)."""
        width = torch.tensor([size[0] for size in self.size], device=self.device)[frame]
        xy = torch.stack([pixel % width, pixel // width], dim=-1) + 0.5
        in_camera = normalize(pixel_directions(self.K[frame], xy), dim=-1)
        world = torch.einsum("rij,rj->ri", self.rotation[frame], in_camera)
        near, far = self.reach[frame].unbind(-1)
        return Rays(self.center[frame], world, in_camera, near, far, frame)

    def frame_rays(self, index: int) -> Rays:
        """All pixels of one frame, row by row."""
        width, height = self.size[index]
        pixel = torch.arange(width * height, device=self.device)
        return self.rays(torch.full_like(pixel, index), pixel)


def depth_range(camera: Camera, points: Tensor | None) -> tuple[float, float] | None:
    """Nearest and farthest depth of points [M, 3] before a camera but for a thousandth; None if there are none.

    As in the released code these depths bound distances along the rays, which at the image's border are longer.
    """
    if points is None or not len(points):
        return None
    depth = points @ camera.viewmat[2, :3] + camera.viewmat[2, 3]
    depth = depth[depth > 0].double()
    if len(depth) < 2:
        return None
    near, far = torch.quantile(
        depth[:: 1 + len(depth) // 1_000_000], depth.new_tensor([NEAR_QUANTILE, FAR_QUANTILE])
    )
    return float(near), float(far)


def _guess(dataset: Dataset) -> tuple[float, float]:
    return GUESSED_NEAR * dataset.scene_extent, GUESSED_FAR * dataset.scene_extent


@dataclass
class TrainingPixels:
    """M pixels to fit, of any number of frames; 12 bytes each."""

    frame: Tensor  # [M] int32
    pixel: Tensor  # [M] int32, row by row in its image
    color: Tensor  # [M, 3] uint8
    motion: Tensor  # [M] uint8: the 2D method's score times 255
    scored: Tensor  # [T] bool: frames of which there is a 2D mask

    @classmethod
    def of(cls, dataset: Dataset, frames: list[int], generator: torch.Generator) -> TrainingPixels:
        """The valid pixels of these frames, or an even random part of them where they are too many."""
        per_frame = MAX_PIXELS // len(frames)
        columns: tuple[list[Tensor], ...] = ([], [], [], [])
        scored = torch.zeros(len(dataset.views), dtype=torch.bool)
        for index in frames:
            view = dataset.views[index]
            image, valid, motion = view.image(), view.mask(), view.motion_mask()
            count = image.shape[0] * image.shape[1]
            picked = torch.arange(count) if valid is None else valid.flatten().nonzero()[:, 0]
            if len(picked) > per_frame:
                picked = picked[torch.randperm(len(picked), generator=generator)[:per_frame]]
            scored[index] = motion is not None
            motion = torch.zeros(image.shape[:2]) if motion is None else motion
            columns[0].append(torch.full((len(picked),), index, dtype=torch.int32))
            columns[1].append(picked.int())
            columns[2].append((image.reshape(-1, 3)[picked] * 255).round().to(torch.uint8))
            columns[3].append((motion.flatten()[picked] * 255).round().to(torch.uint8))
        frame, pixel, color, score = (torch.cat(column) for column in columns)
        return cls(frame, pixel, color, score, scored)

    def batches(self, size: int, generator: torch.Generator) -> Batches:
        return Batches(self, size, generator)

    def __len__(self) -> int:
        return len(self.frame)


class Batches:
    """Endless random batches: each epoch shows each pixel once (but for what does not fill a batch)."""

    def __init__(self, pixels: TrainingPixels, size: int, generator: torch.Generator) -> None:
        self.pixels, self.generator = pixels, generator
        self.size = min(size, len(pixels))
        self.order = torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Tensor:
        if len(self.order) < self.size:
            self.order = torch.randperm(len(self.pixels), generator=self.generator)
        rows, self.order = self.order[: self.size], self.order[self.size :]
        return rows

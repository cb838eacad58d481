"""A video as the layered fit reads it: images, times and motion scores."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gsfields.camera import Camera
from gsfields.config import Config
from gsfields.data.dataset import Dataset
from gsfields.data.motion_masks import read_mask
from gsfields.fit.scene import Photographs
from gsfields.fit.seeding import Picture


@dataclass
class Frame:
    """A training image of the video, at the size of the step."""

    camera: Camera
    image: Tensor  # [H, W, 3]
    counts: Tensor | None  # [H, W], 1 where a pixel counts; None: everywhere
    motion: Tensor | None  # [H, W] in [0, 1]; None where the 2D method says nothing
    time: float  # in [0, 1]


class Footage:
    """Images of a video with their times and motion masks: its training images, or the views at `indices`.

    masks: a folder whose `<stem>.png`, where there is one, stands for the motion mask of the data.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: Config,
        indices: Sequence[int] | None = None,
        masks: Path | None = None,
    ) -> None:
        self.masks = masks
        indices = dataset.train if indices is None else indices
        self.views = [dataset.views[i] for i in indices]
        self.photographs = Photographs(dataset, config.data, indices)
        times = dataset.times().tolist()
        self.times = [times[i] for i in indices]
        self._instants = sorted(set(self.times))
        self.duration = float(max(len(dataset.views) - 1, 1))

    def __len__(self) -> int:
        return len(self.views)

    def get(self, index: int, scale: float = 1.0) -> Frame:
        """Image `index` of the footage, `scale` times as large."""
        camera, image, counts = self.photographs.get(index, scale, torch.zeros(3))
        motion = self.motion(index)
        if motion is not None and scale != 1:
            size = (camera.height, camera.width)
            motion = F.interpolate(motion[None, None], size, mode="area")[0, 0]
        return Frame(camera, image, counts, motion, self.times[index])

    def motion(self, index: int) -> Tensor | None:
        """Scores [H, W] in [0, 1] of image `index`; None where the 2D method says nothing."""
        path = self.masks / f"{self.views[index].stem}.png" if self.masks is not None else None
        if path is None or not path.is_file():
            return self.views[index].motion_mask()
        return torch.from_numpy(read_mask(path))

    def picture(self, index: int, scale: float) -> Picture:
        """The same for seeding: nothing moves where the 2D method says nothing."""
        frame = self.get(index, scale)
        scored = frame.motion is not None
        motion = frame.motion if frame.motion is not None else torch.zeros(frame.image.shape[:2])
        when = frame.time * self.duration
        return Picture(frame.camera, frame.image, motion, when, self._halfway(index), scored)

    def _halfway(self, index: int) -> tuple[float, float]:
        """Times in frames between image `index` and its neighbours in time; beyond the video where there is none."""
        instants, own = self._instants, self.times[index]
        k = bisect_left(instants, own)
        begin = (own + instants[k - 1]) / 2 * self.duration if k > 0 else -0.5
        end = (own + instants[k + 1]) / 2 * self.duration if k + 1 < len(instants) else self.duration + 0.5
        return begin, end

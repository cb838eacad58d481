"""A video small enough to fit in a test: a camera passes a textured wall, a ball moves before it, a box is taken away.

Everything is made of opaque Gaussians and rendered by plan() alone, so that its layers are known exactly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gsfields import config as configuration
from gsfields.camera import Camera
from gsfields.config import Config
from gsfields.data.lens import Intrinsics, covering, distort
from gsfields.data.motion_masks import write_mask
from gsfields.fit.seeding import Picture
from gsfields.plans import plan

WALL, BOX, BALL = range(3)
WALL_DEPTH, BOX_DEPTH, BALL_DEPTH = 4.0, 3.4, 1.4
FOCAL = 0.9  # times the width

SMALL = {
    "sweep_points": 500, "shell_count": 150, "dynamic_count": 60, "semistatic_count": 300, "max_gaussians": 1200,
    "sh_degree": 0, "eval_every": 0, "checkpoint_every": 0, "log_every": 10, "warmup": 0.25,
}  # fmt: skip


def config_of(path: Path, **more: object) -> Config:
    """The recipe for videos, at the size of this one."""
    config = configuration.load("lmf")
    config.data.path = str(path)
    configuration.apply(config, [(name, str(value)) for name, value in (SMALL | more).items()])
    return config


@dataclass
class Spots:
    """Round opaque Gaussians."""

    means: Tensor  # [N, 3]
    colors: Tensor  # [N, 3]
    scale: float | Tensor  # or [N, 1]

    @classmethod
    def grid(
        cls, low: tuple[float, float], high: tuple[float, float], z: float, step: float, seed: int
    ) -> Spots:
        """Spots on a grid, their depths scattered so that they hide one another alike in every view."""
        x, y = torch.meshgrid(
            torch.arange(low[0], high[0], step), torch.arange(low[1], high[1], step), indexing="ij"
        )
        random = torch.rand(x.numel(), 4, generator=torch.Generator().manual_seed(seed))
        means = torch.stack((x.flatten(), y.flatten(), z + step * (random[:, 3] - 0.5)), dim=1)
        return cls(means, random[:, :3], 0.5 * step)


@dataclass
class TinyVideo:
    """Frames, cameras and layers of the video, in memory; `write` lays them out as a dataset."""

    frames: int = 12
    width: int = 48
    height: int = 32
    k1: float = 0.0  # distortion of the lens that takes the photos
    holes: bool = True  # in the 2D masks
    wall: Spots = field(default_factory=lambda: Spots.grid((-3.6, -2.2), (3.6, 2.2), WALL_DEPTH, 0.3, 0))
    box: Spots = field(default_factory=lambda: Spots.grid((-0.9, 0.1), (-0.2, 0.8), BOX_DEPTH, 0.15, 1))

    def camera(self, i: int) -> Camera:
        """Frame i's camera: it goes to the right and back, and turns a little."""
        turn = 2 * np.pi * i / self.frames
        eye, target = (
            (0.7 * np.sin(turn), 0.15 * np.cos(2 * turn), 0.0),
            (0.3 * np.sin(turn), 0.0, WALL_DEPTH),
        )
        K = [[FOCAL * self.width, 0, self.width / 2], [0, FOCAL * self.width, self.height / 2], [0, 0, 1.0]]
        return Camera.look_at(eye, target, (0, -1, 0), K=K, width=self.width, height=self.height)

    def ball(self, i: int) -> Spots:
        """In the camera's frame: from left to right, red to yellow in stripes."""
        g = torch.Generator().manual_seed(2)
        offset = torch.randn(80, 3, generator=g)
        offset = 0.16 * offset / offset.norm(dim=1, keepdim=True)
        place = torch.tensor(
            [-0.45 + 0.9 * i / (self.frames - 1), 0.12 * np.sin(1.3 * i), BALL_DEPTH], dtype=torch.float32
        )
        stripes = (offset[:, :1] * 40).sin() * 0.5 + 0.5
        return Spots(place + offset, torch.cat((torch.ones(80, 1), stripes, torch.zeros(80, 1)), dim=1), 0.05)

    def render(self, i: int, camera: Camera | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(colour [H, W, 3], masks of wall, box and ball [H, W, 3], depth of the wall alone [H, W])."""
        camera = camera or self.camera(i)
        ball, here = self.ball(i), self.camera(i).c2w
        ball = Spots(ball.means @ here[:3, :3].T + here[:3, 3], ball.colors, ball.scale)
        shown = {WALL: self.wall, BALL: ball} | ({BOX: self.box} if i < self.frames // 2 else {})
        means = torch.cat([s.means for s in shown.values()])
        scales = torch.cat([s.scale * torch.ones(len(s.means), 3) for s in shown.values()])
        ids = torch.cat([torch.full((len(s.means),), name) for name, s in shown.items()])
        quats = torch.tensor([1.0, 0, 0, 0]).repeat(len(means), 1)
        built = plan(
            means,
            quats,
            scales,
            torch.full((len(means),), 0.95),
            camera.viewmat,
            camera.K,
            camera.width,
            camera.height,
        )
        color, masks = built.blend(torch.cat([s.colors for s in shown.values()]), layers=ids, num_layers=3)
        return color.clamp(0, 1), masks, built.only(ids == WALL).depth()[..., 0]

    def picture(self, i: int) -> Picture:
        """Frame i as the fit sees it, with its true motion mask."""
        color, masks, _ = self.render(i)
        return Picture(self.camera(i), color, masks[..., BALL], float(i), (i - 0.5, i + 0.5))

    @property
    def lens(self) -> Intrinsics:
        focal, size = FOCAL * self.width, (self.width, self.height)
        return Intrinsics(*size, focal, focal, self.width / 2, self.height / 2, k1=self.k1)

    def photo(self, i: int) -> tuple[Tensor, Tensor]:
        """(colour, masks) of frame i as the lens takes them."""
        camera = covering(self.camera(i), self.lens)
        color, masks, _ = self.render(i, camera)
        return distort(color, camera, self.lens), distort(masks, camera, self.lens)

    def stem(self, i: int) -> str:
        return f"frame_{10 * i:04d}"

    def write(self, folder: Path, *, motion: bool = True) -> Path:
        """images/, transforms.json, motion_masks/ (with holes) and annotations/; returns the folder."""
        (folder / "images").mkdir(parents=True)
        frames = []
        for i in range(self.frames):
            color, masks = self.photo(i)
            Image.fromarray((color * 255).round().byte().numpy()).save(
                folder / "images" / f"{self.stem(i)}.png"
            )
            if motion:
                (folder / "motion_masks").mkdir(exist_ok=True)
                write_mask(folder / "motion_masks" / f"{self.stem(i)}.png", self.seen_in_2d(i, masks), bits=8)
            self._annotate(folder / "annotations", i, masks)
            c2w = self.camera(i).c2w.clone()
            c2w[:, 1:3] *= -1  # OpenCV axes to OpenGL
            place = {"file_path": f"images/{self.stem(i)}.png", "time": i / (self.frames - 1)}
            frames.append({**place, "transform_matrix": c2w.tolist()})
        lens = self.lens
        shared = {"w": lens.width, "h": lens.height, "fl_x": lens.fx, "fl_y": lens.fy, "k1": lens.k1}
        (folder / "transforms.json").write_text(json.dumps({**shared, "frames": frames}))
        return folder

    def seen_in_2d(self, i: int, masks: Tensor) -> Tensor:
        """What a 2D method makes of the ball: half of it, in every fourth frame nothing, and some noise."""
        if not self.holes:
            return masks[..., BALL].clamp(0, 1)
        g = torch.Generator().manual_seed(i)
        h, w = masks.shape[:2]
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        half = (rows + columns if i % 2 else rows - columns) % 8 < 4
        noise = 0.05 * torch.rand(h, w, generator=g)
        return noise if i % 4 == 3 else (0.9 * masks[..., BALL] * half + noise).clamp(0, 1)

    def _annotate(self, folder: Path, i: int, masks: Tensor) -> None:
        ball, box = masks[..., BALL] > 0.5, masks[..., BOX] > 0.5
        for name, truth in {"dynamic": ball, "semistatic": box, "dynamic_semistatic": ball | box}.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(truth.byte().numpy()).save(folder / name / f"{self.stem(i)}.png")

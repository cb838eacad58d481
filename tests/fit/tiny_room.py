"""A room small enough to fit objects to in a test: three blobs of Gaussians on a floor, with photos, segments whose
numbers change from view to view, and the truth. Its runs are made, not fitted.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gsfields.camera import Camera
from gsfields.config import Config
from gsfields.data.dataset import Dataset
from gsfields.data.lens import Intrinsics, covering, distort
from gsfields.data.segments import open_segments, write_ids
from gsfields.fit.checkpoint import Checkpoint, Scene
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.labels import Labels
from gsfields.fit.scene import open_dataset
from gsfields.gaussians import Gaussians
from gsfields.rendering import render
from tests.layered_scene import layered, moving, rest

PLACES = ((0.8, 0.0), (-0.5, 0.7), (-0.4, -0.8))  # of the blobs on the floor
COLORS = ((0.9, 0.1, 0.1), (0.1, 0.8, 0.2), (0.1, 0.2, 0.9))
MEMBERS = 40  # Gaussians of a blob
TEST = (0, 5)  # held-out views, of ten


@dataclass
class TinyRoom:
    views: int = 10
    width: int = 32
    height: int = 24
    k1: float = 0.0  # of the lens
    solid: float = 0.5  # what is less opaque belongs to no object

    gaussians: Gaussians = field(init=False)
    owners: Tensor = field(init=False)  # [N]: 1 to 3 the blob of each Gaussian, 0 the floor

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        steps = torch.linspace(-1.8, 1.8, 13)
        floor = torch.cartesian_prod(steps, steps, torch.tensor([-0.35]))
        blobs = [torch.tensor([*p, 0.0]) + 0.15 * torch.randn(MEMBERS, 3, generator=g) for p in PLACES]
        colors = [torch.full((len(floor), 3), 0.7), *(torch.tensor(c).expand(MEMBERS, 3) for c in COLORS)]
        self.gaussians = rest(torch.cat((floor, *blobs)), torch.cat(colors), scale=0.1, opacity=0.95)
        self.gaussians.log_scales[: len(floor)] = torch.tensor([0.25, 0.25, 0.03]).log()
        sizes = torch.tensor([len(floor), *[MEMBERS] * len(PLACES)])
        self.owners = torch.arange(len(sizes)).repeat_interleave(sizes)

    def camera(self, i: int) -> Camera:
        angle = 2.4 * i
        eye = [3.2 * math.cos(angle), 3.2 * math.sin(angle), 2.2 + 0.5 * math.sin(1.7 * i)]
        return Camera.look_at(
            eye, [0, 0, -0.1], [0, 0, 1], fov_y_degrees=45, width=self.width, height=self.height
        )

    @property
    def lens(self) -> Intrinsics:
        focal = float(self.camera(0).K[0, 0])
        return Intrinsics(self.width, self.height, focal, focal, self.width / 2, self.height / 2, k1=self.k1)

    def stem(self, i: int) -> str:
        return f"photo_{i:02d}"

    def render(self, camera: Camera) -> tuple[Tensor, Tensor]:
        """(colour [H, W, 3] over white, the object of each pixel [H, W]) through a pinhole."""
        rendering = render(self.gaussians, camera, background=torch.ones(3))
        shares = rendering.plan.blend(torch.nn.functional.one_hot(self.owners).float())
        return rendering.color.clamp(0, 1), shares.argmax(dim=-1) * (rendering.alpha[..., 0] > self.solid)

    def photo(self, i: int) -> tuple[Tensor, Tensor]:
        """(colour, objects) of view i as the lens takes them."""
        camera = covering(self.camera(i), self.lens)
        color, ids = self.render(camera)
        seen = distort(ids[..., None].float(), camera, self.lens, nearest=True)
        return distort(color, camera, self.lens), seen[..., 0].round().int()

    def write(
        self, folder: Path, *, segments: str = "segments", without: tuple[int, ...] = (), nested: bool = False
    ) -> Path:
        """images/, transforms.json, `segments`/ (but of the views in `without`) and annotations/instances/. Nested:
        photos in walk/, labels in folders of the same name.
        """
        photos, inner = ("walk", "walk/") if nested else ("images", "")
        for name in (photos, f"{segments}/{inner}", f"annotations/instances/{inner}"):
            (folder / name).mkdir(parents=True)
        frames = []
        for i in range(self.views):
            color, ids = self.photo(i)
            name = f"{self.stem(i)}.png"
            Image.fromarray((color * 255).round().byte().numpy()).save(folder / photos / name)
            write_ids(folder / f"annotations/instances/{inner}{name}", ids)
            if i not in without:
                write_ids(folder / f"{segments}/{inner}{name}", shuffled(ids, seed=i))
            c2w = self.camera(i).c2w.clone()
            c2w[:, 1:3] *= -1  # OpenCV axes to OpenGL
            frames.append({"file_path": f"{photos}/{name}", "transform_matrix": c2w.tolist()})
        lens = self.lens
        shared = {"w": lens.width, "h": lens.height, "fl_x": lens.fx, "fl_y": lens.fy, "k1": lens.k1}
        (folder / "transforms.json").write_text(json.dumps({**shared, "frames": frames}))
        return folder

    def config(self, data: Path, *, width: int | None = None, model: str = "static") -> Config:
        config = Config()
        config.data = replace(config.data, path=str(data), split_every=5, width=width)
        config.fit = replace(config.fit, model=model, steps=100)
        config.init = replace(config.init, source="random", random_count=10, sh_degree=0)
        return config

    def run(self, folder: Path, data: Path, scene: Scene | None = None, *, width: int | None = None) -> Path:
        """A run in `folder` as a fit to `data` would have left it."""
        scene = self.gaussians if scene is None else scene
        model = "static" if isinstance(scene, Gaussians) else "layered"
        Checkpoint(scene, self.config(data, width=width, model=model), 100).save(folder)
        return folder


def shuffled(ids: Tensor, seed: int) -> Tensor:
    """Objects numbered anew, from 1 to 60000 in any order; 0 stays 0."""
    g = torch.Generator().manual_seed(seed)
    numbers = 1 + torch.randperm(60_000, generator=g)[: int(ids.max()) + 1]
    numbers[0] = 0
    return numbers[ids.long()]


def opened(
    room: TinyRoom, data: Path, *, limit_bytes: int = 1 << 26, scene: Scene | None = None
) -> tuple[Dataset, FrozenViews, Labels]:
    """What the parts of a fit work on."""
    config = room.config(data)
    dataset = open_dataset(config.data)
    scene = room.gaussians if scene is None else scene
    views = FrozenViews(scene, dataset, config, limit_bytes=limit_bytes)
    return dataset, views, Labels(open_segments(data), dataset, dataset.train)


def layered_room(room: TinyRoom) -> Scene:
    """The room with its last blob in the semi-static layer, one more that lives for a moment only, and a dynamic
    Gaussian before the camera.
    """
    last = room.owners == len(PLACES)
    brief = moving(rest([[0.3, -0.2, 0.3]], [[0.0, 1.0, 1.0]]), middle=2.0, half=1.2)
    kept = moving(room.gaussians.select(last))
    semistatic = kept.with_parameters(
        {name: torch.cat((value, brief.parameters()[name])) for name, value in kept.parameters().items()},
        kept.basis,
    )
    dynamic = moving(rest([[0.35, 0.28, 1.0]], [[1.0, 0.0, 1.0]], scale=0.06), "camera")
    return layered(room.gaussians.select(~last), semistatic, dynamic)

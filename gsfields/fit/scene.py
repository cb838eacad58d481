"""What a fit starts from: the images it is compared with, and the first Gaussians."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gsfields.camera import Camera
from gsfields.config import Config, DataConfig
from gsfields.data import load_dataset
from gsfields.data.dataset import Dataset, View
from gsfields.fit.seeding import Picture, photo_consistent_points
from gsfields.gaussians import Gaussians

_SWEPT, _SWEPT_WIDTH = 200, 320  # images of a plane sweep at most, and their width in pixels
COLORS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}


def open_dataset(config: DataConfig, background: str | None = None) -> Dataset:
    """The data of a run; `background` (white or black) overrides the configured one; random is white here."""
    return load_dataset(
        config.path,
        downscale=config.downscale,
        width=config.width,
        background=COLORS.get(background or config.background, COLORS["white"]),
        split_every=config.split_every,
    )


class Photographs:
    """The training images (or those at `indices`) at any scale, over the background of the step.

    With a random background the images are read over white and over black; their difference is 1 - alpha,
    which tells how much of any other colour shows. Images without transparency are the same over both.
    """

    def __init__(self, dataset: Dataset, config: DataConfig, indices: Sequence[int] | None = None) -> None:
        indices = dataset.train if indices is None else indices
        self.views = [dataset.views[i] for i in indices]
        self.random = config.background == "random"
        self.color = torch.tensor(COLORS.get(config.background, COLORS["white"]))
        transparent = self.random and dataset.background is not None
        over_black = open_dataset(config, "black").views if transparent else None
        self.over_black = None if over_black is None else [over_black[i] for i in indices]
        self._cameras: dict[tuple[int, float], Camera] = {}

    def background(self, generator: torch.Generator) -> Tensor:
        """The colour behind this step's image, [3]."""
        return torch.rand(3, generator=generator) if self.random else self.color

    def get(self, index: int, scale: float, background: Tensor) -> tuple[Camera, Tensor, Tensor | None]:
        """(camera, image [H, W, 3], mask [H, W] or None) of a training view; smaller images are area
        averages.
        """
        view = self.views[index]
        image, mask = view.image(), view.mask()
        if self.over_black is not None:
            black = self.over_black[index].image()
            image = black + (image - black) * background
        if (index, scale) not in self._cameras:
            self._cameras[index, scale] = view.camera if scale == 1 else view.camera.scaled(scale)
        camera = self._cameras[index, scale]
        if scale != 1:
            size = (camera.height, camera.width)
            image = (
                interpolate(image.permute(2, 0, 1)[None], size, mode="area")[0].permute(1, 2, 0).contiguous()
            )
            if mask is not None:  # a pixel counts if all that it covers counts
                mask = (interpolate(mask[None, None], size, mode="area")[0, 0] > 0.999).float()
        return camera, image, mask


def initial_gaussians(dataset: Dataset, config: Config, generator: torch.Generator) -> Gaussians:
    """One Gaussian per point of the data, or of a plane sweep over its photos, or random ones where cameras look."""
    init = config.init
    has_points = dataset.points is not None and len(dataset.points) > 0
    count = min(init.random_count, config.densify.max_gaussians)
    # a sweep compares photos: what is transparent in them has no look of its own
    swept = init.source == "sweep" or (init.source == "auto" and dataset.background is None)
    if init.source == "points" and not has_points:
        raise ValueError(
            f"init source is points, but {dataset.name or 'the data'} has none: use random or auto"
        )
    if has_points and init.source in ("auto", "points"):
        points, colors = dataset.points, dataset.point_colors
        assert points is not None
        colors = torch.full_like(points, 0.5) if colors is None else colors
        if len(points) > config.densify.max_gaussians:
            chosen = torch.randperm(len(points), generator=generator)[: config.densify.max_gaussians]
            points, colors = points[chosen], colors[chosen]
        return Gaussians.from_points(points, colors, sh_degree=init.sh_degree, opacity=init.init_opacity)
    if swept and len(dataset.train) > 2:
        points, colors = swept_points(dataset, count, generator)
        if len(points) > 2:
            return Gaussians.from_points(points, colors, sh_degree=init.sh_degree, opacity=init.init_opacity)
    points = random_points(dataset, count, generator)
    colors = torch.rand(count, 3, generator=generator)
    scale = 1.0 if count == 1 else None
    return Gaussians.from_points(
        points, colors, sh_degree=init.sh_degree, opacity=init.init_opacity, scale=scale
    )


def swept_points(dataset: Dataset, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """About `count` points and their colours, [M, 3] each, where training photos look alike (see seeding)."""
    views = dataset.train_views()
    chosen = [views[k * len(views) // min(len(views), _SWEPT)] for k in range(min(len(views), _SWEPT))]
    pictures = []
    for number, view in enumerate(chosen):
        camera, image, mask = view.camera, view.image(), view.mask()
        counts = torch.ones_like(image[..., 0]) if mask is None else mask
        image = torch.cat((image * counts[..., None], counts[..., None]), dim=-1)
        if camera.width > _SWEPT_WIDTH:
            camera = camera.scaled(_SWEPT_WIDTH / camera.width)
            image = interpolate(image.permute(2, 0, 1)[None], (camera.height, camera.width), mode="area")[0]
            image = image.permute(1, 2, 0).contiguous()
        avoided = 1 - image[..., 3]  # a sweep leaves out what moves, and likewise what does not count
        pictures.append(
            Picture(camera, image[..., :3].contiguous(), avoided, float(number), (number - 0.5, number + 0.5))
        )
    depths = depth_range(dataset)
    return photo_consistent_points(pictures, round(1.25 * count), depths, generator)


def depth_range(dataset: Dataset) -> tuple[float, float]:
    """(near, far) of what the training cameras see: by the data's bounds, or by how far the cameras stand apart."""
    bounds = [view.bounds for view in dataset.train_views() if view.bounds is not None]
    if bounds:
        return min(b[0] for b in bounds), max(b[1] for b in bounds)
    return 0.3 * dataset.scene_extent, 30 * dataset.scene_extent


def random_points(dataset: Dataset, count: int, generator: torch.Generator) -> Tensor:
    """[count, 3] points where the training cameras look.

    Cameras around an object: uniform in the cube inscribed about the sphere that fits into their images
    around the point nearest to all optical axes. Other cameras (side by side, or looking outwards): along
    random pixels' rays, depths log-uniform within the bounds of the data, or 0.3 to 10 scene extents where
    they have none.
    """
    views = dataset.train_views()
    focus = _common_focus(views)
    if focus is not None:
        center, radius = focus
        return center + 0.9 * radius * (2 * torch.rand(count, 3, generator=generator) - 1)
    chosen = torch.randint(len(views), (count,), generator=generator).tolist()
    near = torch.tensor([(views[i].bounds or (0.3 * dataset.scene_extent, 0))[0] for i in chosen])
    far = torch.tensor([(views[i].bounds or (0, 10 * dataset.scene_extent))[1] for i in chosen])
    depth = near * (far / near) ** torch.rand(count, generator=generator)
    uv = torch.rand(count, 2, generator=generator)
    cameras = [views[i].camera for i in chosen]
    focal = torch.stack([c.K[[0, 1], [0, 1]] for c in cameras])
    centre = torch.stack([c.K[[0, 1], [2, 2]] for c in cameras])
    size = torch.tensor([[c.width, c.height] for c in cameras])
    rays = torch.cat(((uv * size - centre) / focal, torch.ones(count, 1)), dim=1)
    c2w = torch.stack([views[i].camera.c2w for i in range(len(views))])[chosen]
    return (c2w[:, :3, :3] @ (rays * depth[:, None])[..., None])[..., 0] + c2w[:, :3, 3]


def _common_focus(views: list[View]) -> tuple[Tensor, float] | None:
    """The point nearest to all optical axes (least squares) and the radius seen around it; None if there is
    none.

    There is one if it lies well in front of nearly every camera and the axes differ enough to place it.
    """
    c2w = torch.stack([view.camera.c2w for view in views]).double()
    eyes, axes = c2w[:, :3, 3], c2w[:, :3, 2]
    across = (
        torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    )  # projection off each axis
    normal = across.mean(dim=0)
    if torch.linalg.eigvalsh(normal)[0] < 0.05:  # all axes within about 15 degrees of one another
        return None
    center = torch.linalg.solve(normal, (across @ eyes[..., None]).mean(dim=0))[:, 0]
    depths = ((center - eyes) * axes).sum(dim=1)
    if (depths <= 0.3 * depths.median()).double().mean() > 0.1 or depths.median() <= 0:
        return None
    tangent = min(
        min(v.camera.width / v.camera.K[0, 0].item(), v.camera.height / v.camera.K[1, 1].item())
        for v in views
    )
    return center.float(), float(depths.median() * math.sin(math.atan(tangent / 2)))

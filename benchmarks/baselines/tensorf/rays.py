"""Where the field lies, the rays of pixels through it, and the pixels that instances are learnt from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.baselines.neuraldiff.rays import GUESSED_FAR, depth_range
from benchmarks.baselines.neuraldiff.render import pixel_directions
from benchmarks.baselines.tensorf.render import Box, Rays
from gsfields.camera import Camera
from gsfields.data import Dataset

BEHIND_FOCUS = 2.0  # frusta reach this many times as far as where the cameras look, if nothing says how far


class Scene:
    """The cameras of all views of a dataset in a world whose box has a longest side of 2 and its middle at 0.

    The box is that of the training cameras' frusta, as in Panoptic Lifting (there the frusta's sphere has radius 1);
    their far ends are the depths of the dataset's points, the view's bounds, or a guess from where the cameras look.

    Args:
        dataset: the scene.
        bounds: the box instead, its lowest and highest corner [2, 3] in world units.
        device: where rays are wanted.

    Raises ValueError if bounds are not two corners of a box.
    """

    def __init__(
        self, dataset: Dataset, bounds: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> None:
        box = _checked(bounds) if bounds is not None else frusta_box(dataset)
        cameras = [view.camera for view in dataset.views]
        self.device = torch.device(device)
        self.unit = 2 / float((box[1] - box[0]).max())  # the scene's lengths in a world unit
        self.middle = box.mean(0)
        self.box = Box(*((box - self.middle) * self.unit).to(self.device).unbind(0))
        self.size = [(camera.width, camera.height) for camera in cameras]
        self.K = torch.stack([camera.K for camera in cameras]).to(self.device)
        c2w = torch.stack([camera.c2w for camera in cameras])
        self.rotation = c2w[:, :3, :3].contiguous().to(self.device)
        self.center = ((c2w[:, :3, 3] - self.middle) * self.unit).to(self.device)

    def rays(self, frame: Tensor, pixel: Tensor) -> Rays:
        """Rays through the centres of pixels (the released code has their corners), frame [R] and pixel [R] (row by
        row in its image).
        """
        width = torch.tensor([size[0] for size in self.size], device=self.device)[frame]
        xy = torch.stack([pixel % width, pixel // width], dim=-1) + 0.5
        in_camera = normalize(pixel_directions(self.K[frame], xy), dim=-1)
        world = torch.einsum("rij,rj->ri", self.rotation[frame], in_camera)
        return Rays(self.center[frame], world)

    def frame_rays(self, index: int, pixel: Tensor | None = None) -> Rays:
        """These pixels [R] of one frame; all, row by row, if None."""
        if pixel is None:
            width, height = self.size[index]
            pixel = torch.arange(width * height, device=self.device)
        return self.rays(torch.full_like(pixel, index), pixel)


def frusta_box(dataset: Dataset) -> Tensor:
    """Lowest and highest corner [2, 3] of the training cameras' frusta, world units."""
    guessed = guessed_depths([view.camera for view in dataset.train_views()], dataset.scene_extent)
    corners = []
    for view, guess in zip(dataset.train_views(), guessed, strict=True):
        camera = view.camera
        near_far = depth_range(camera, dataset.points) or view.bounds or (0.0, guess)
        ends = torch.tensor([[x, y] for x in (0.0, camera.width) for y in (0.0, camera.height)])
        rays = pixel_directions(camera.K, ends) @ camera.c2w[:3, :3].T
        corners += [camera.position[None], camera.position + rays * near_far[1]]
    points = torch.cat(corners)
    return torch.stack([points.amin(0), points.amax(0)])


def guessed_depths(cameras: list[Camera], extent: float) -> list[float]:
    """How far each camera's frustum may reach, where no points and no bounds say: well behind the point that all look
    at, or, if there is none before them, as far as the neural baselines of videos guess.
    """
    axes = torch.stack([camera.c2w[:3, 2] for camera in cameras]).double()
    centers = torch.stack([camera.position for camera in cameras]).double()
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None]  # [B, 3, 3]
    focus = torch.linalg.lstsq(across.sum(0), (across @ centers[..., None]).sum(0), driver="gelsd").solution[
        :, 0
    ]
    depths = ((focus - centers) * axes).sum(-1)
    if bool((depths > 0.1 * extent).all()):
        return (BEHIND_FOCUS * depths).tolist()
    return [GUESSED_FAR * extent] * len(cameras)


def _checked(bounds: Tensor) -> Tensor:
    box = torch.as_tensor(bounds, dtype=torch.float32)
    if box.shape != (2, 3) or not bool(torch.isfinite(box).all()) or not bool((box[1] > box[0]).all()):
        raise ValueError(
            f"bounds must be the lowest and the highest corner of a box, [2, 3], but are {box.tolist()}"
        )
    return box


class LabelledPixels:
    """Pixels with a segment, of one image at a time: a number means nothing outside its image.

    Args:
        ids: frames of the dataset, each with its segments [H, W] on the grid of its camera, 0 where there is none.
        generator: of the random order.

    Raises ValueError if no frame has a pixel with a segment.
    """

    def __init__(self, ids: Mapping[int, Tensor], generator: torch.Generator) -> None:
        self.ids = {frame: labels.flatten() for frame, labels in ids.items() if bool((labels != 0).any())}
        if not self.ids:
            raise ValueError(f"ids must hold a segment in some frame, but none of {len(ids)} has one")
        self.frames, self.generator = list(self.ids), generator

    def draw(self, count: int) -> tuple[int, Tensor, Tensor]:
        """A frame, up to `count` of its pixels in random order, and their segments [P]."""
        frame = self.frames[int(torch.randint(len(self.frames), (), generator=self.generator))]
        labels = self.ids[frame]
        pixel = labels.nonzero()[:, 0]
        pixel = pixel[torch.randperm(len(pixel), generator=self.generator)[:count]]
        return frame, pixel, labels[pixel]

"""What every loader returns: views with their images, the split into training and test, and the points of the
scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from gsfields.camera import Camera
from gsfields.data.images import ImageCache, Pixels
from gsfields.data.lens import Intrinsics


@dataclass
class View:
    """One posed image, whose pixels `load` produces when they are asked for.

    image(), mask() and motion_mask() agree with camera.height and camera.width.
    """

    name: str  # unique in its dataset
    camera: Camera  # float32, CPU
    load: Callable[[], Pixels] = field(repr=False)
    image_path: Path | None = None  # the file the pixels come from; None if made in memory or read from a tar
    time: float | None = None  # as the format gives it: 0 to 1 over the video, or a frame's number
    bounds: tuple[float, float] | None = (
        None  # nearest and farthest depth of the scene, world units, if known
    )
    lens: Intrinsics | None = None  # of the photo as taken, at its full size; None if made in memory
    load_motion: Callable[[], Tensor] | None = field(default=None, repr=False)  # see motion_mask
    stem: str = ""  # names output files: that of the photo's file, longer where two would share it

    def __post_init__(self) -> None:
        self.stem = self.stem or PurePosixPath(self.name).stem

    @classmethod
    def from_image(
        cls,
        name: str,
        camera: Camera,
        image: Tensor,
        *,
        mask: Tensor | None = None,
        motion_mask: Tensor | None = None,
        time: float | None = None,
    ) -> View:
        """A view of an image held in memory.

        image is [H, W, 3], float32 in [0, 1] or uint8; mask is [H, W], nonzero where the pixel counts;
        motion_mask is [H, W], float32 in [0, 1].

        Raises ValueError if the sizes differ from the camera's.
        """
        size = [camera.height, camera.width]
        if list(image.shape) != [*size, 3] or image.dtype not in (torch.float32, torch.uint8):
            raise ValueError(
                f"image must be float32 or uint8 {[*size, 3]}, but is {image.dtype} {list(image.shape)}"
            )
        if mask is not None and list(mask.shape) != size:
            raise ValueError(f"mask must be {size}, but is {list(mask.shape)}")
        if motion_mask is not None and (
            list(motion_mask.shape) != size or motion_mask.dtype != torch.float32
        ):
            raise ValueError(
                f"motion_mask must be float32 {size}, but is {motion_mask.dtype} {list(motion_mask.shape)}"
            )
        pixels = Pixels(image, None if mask is None else mask != 0)
        load_motion = None if motion_mask is None else lambda: motion_mask
        return cls(name, camera, lambda: pixels, time=time, load_motion=load_motion)

    def image(self) -> Tensor:
        """float32 [H, W, 3] in [0, 1]. Do not modify it in place: an image held in memory is not copied."""
        image = self.load().image
        return image.float() / 255 if image.dtype == torch.uint8 else image

    def mask(self) -> Tensor | None:
        """float32 [H, W], 1 where the pixel counts and 0 where it does not; None if all of them count."""
        mask = self.load().mask
        return None if mask is None else mask.float()

    @property
    def has_motion_mask(self) -> bool:
        return self.load_motion is not None

    def motion_mask(self) -> Tensor | None:
        """float32 [H, W] in [0, 1]: how surely a 2D method says that the pixel shows something moving now;
        None if it said nothing of this image. Do not modify it in place.
        """
        return None if self.load_motion is None else self.load_motion()

    @property
    def file_size(self) -> tuple[int, int]:
        """(width, height) of the photo as taken: the grid on which masks of it are written and judged."""
        if self.lens is None:
            return self.camera.width, self.camera.height
        return self.lens.width, self.lens.height


@dataclass
class Dataset:
    """Views of one scene, in the order their loader documents.

    scene_center and scene_extent follow the 3D Gaussian Splatting code (Kerbl et al. 2023, `getNerfppNorm`):
    the mean of the training cameras' centres, and 1.1 times the largest distance of one of them from it. They
    are computed when not given. Where all training cameras stand in one place the extent is the median
    distance of the points from it instead, or 1 without points, because learning rates scale with it.

    Raises ValueError if there is no view, names repeat, the split is out of range, overlaps or leaves nothing
    to train on, or shapes of points, colours and background do not fit.
    """

    views: list[View]
    train: list[int]  # indices into views
    test: list[int]  # indices into views, none of them in train
    points: Tensor | None = None  # [M, 3] float32, world
    point_colors: Tensor | None = None  # [M, 3] float32 in [0, 1]
    background: Tensor | None = (
        None  # [3]: what transparent images were laid over; None if none was transparent
    )
    name: str = ""
    cache: ImageCache | None = None  # where the views keep their decoded pixels, if they come from files
    scene_center: Tensor = None  # type: ignore[assignment]  # [3]; filled in by __post_init__
    scene_extent: float = None  # type: ignore[assignment]  # world units; filled in by __post_init__

    def __post_init__(self) -> None:
        if not self.views:
            raise ValueError(f"dataset {self.name!r} has no views")
        _check_split(self.views, self.train, self.test)
        if len({view.stem for view in self.views}) < len(self.views):
            for view, stem in zip(self.views, unique_stems([view.name for view in self.views]), strict=True):
                view.stem = stem
        if self.points is not None and (self.points.ndim != 2 or self.points.shape[1] != 3):
            raise ValueError(f"points must be [M, 3], but are {list(self.points.shape)}")
        if self.point_colors is not None and (
            self.points is None or self.point_colors.shape != self.points.shape
        ):
            given = None if self.points is None else list(self.points.shape)
            raise ValueError(
                f"point_colors {list(self.point_colors.shape)} must have the shape of points, {given}"
            )
        if self.background is not None and self.background.shape != (3,):
            raise ValueError(f"background must be [3], but is {list(self.background.shape)}")
        center, extent = scene_sphere([self.views[i].camera for i in self.train], self.points)
        self.scene_center = center if self.scene_center is None else self.scene_center
        self.scene_extent = extent if self.scene_extent is None else self.scene_extent

    def train_views(self) -> list[View]:
        return [self.views[i] for i in self.train]

    def test_views(self) -> list[View]:
        return [self.views[i] for i in self.test]

    def times(self) -> Tensor:
        """When each view was taken, float64 [views] in [0, 1]: the times the format gives, from the first to
        the last; or, where a view has none or all have the same, the views' places in name order.
        """
        given = [view.time for view in self.views]
        known = [time for time in given if time is not None]
        if len(known) == len(given) and min(known) < max(known):
            times = torch.tensor(known, dtype=torch.float64)
            return (times - times.min()) / (times.max() - times.min())
        times = torch.zeros(len(self.views), dtype=torch.float64)
        order = sorted(range(len(self.views)), key=lambda i: self.views[i].name)
        times[order] = torch.arange(len(order), dtype=torch.float64) / max(1, len(order) - 1)
        return times


def unique_stems(names: Sequence[str]) -> list[str]:
    """A file name without suffix for each view: the last part of its name if that tells all views apart, else
    the whole name with _ for /, and what else it takes.
    """
    paths = [PurePosixPath(name) for name in names]
    flat = [path.as_posix().replace("/", "_") for path in paths]
    attempts = (
        [path.stem for path in paths],
        [path.with_suffix("").as_posix().replace("/", "_") for path in paths],
        [name.replace(".", "_") for name in flat],
    )
    for stems in attempts:
        if len(set(stems)) == len(stems):
            return stems
    return [f"{i:06d}_{name.replace('.', '_')}" for i, name in enumerate(flat)]


def hold_out(count: int, every: int) -> tuple[list[int], list[int]]:
    """Split `count` views in name order into (train, test): every `every`-th is for test, from the first on.

    This is the rule of the Mip-NeRF 360 and 3DGS evaluations (index % every == 0). `every` = 0 holds out
    none.

    Raises ValueError if every is 1 or negative, or if nothing would be left to train on.
    """
    if every < 0 or every == 1:
        raise ValueError(f"split_every must be 0 (hold out none) or at least 2, but is {every}")
    test = [i for i in range(count) if every and i % every == 0]
    train = [i for i in range(count) if not every or i % every]
    if count and not train:
        raise ValueError(
            f"holding out every {every}th of {count} view leaves none to train on: use split_every=0"
        )
    return train, test


def scene_sphere(cameras: Sequence[Camera], points: Tensor | None = None) -> tuple[Tensor, float]:
    """Centre [3] and extent of a scene seen by `cameras`, by the rule stated at `Dataset`; world units."""
    centers = torch.stack(
        [camera.position.double() for camera in cameras]
    )  # float64: the mean of far-off scenes
    center = centers.mean(0)
    extent = 1.1 * float((centers - center).norm(dim=1).max())
    if extent < 1e-6 * (1 + float(center.norm())):
        distances = torch.ones(1) if points is None or len(points) == 0 else (points - center).norm(dim=1)
        extent = float(np.median(distances.numpy())) or 1.0
    return center.float(), extent


def _check_split(views: list[View], train: list[int], test: list[int]) -> None:
    seen: set[str] = set()
    for view in views:
        if view.name in seen:
            raise ValueError(f"every view needs a name of its own, but {view.name!r} stands for two or more")
        seen.add(view.name)
    outside = [i for i in (*train, *test) if not 0 <= i < len(views)]
    if outside:
        raise ValueError(f"train and test must index the {len(views)} views, but hold {outside[0]}")
    if not train:
        raise ValueError(f"none of the {len(views)} views is a training view")
    if len(set(train)) + len(set(test)) != len({*train, *test}):
        both = sorted(set(train) & set(test))
        raise ValueError(f"train and test must not share views, but share {views[both[0]].name!r}")

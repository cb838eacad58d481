"""The common half of all loaders: from the frames that a format lists to a Dataset of views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from gsfields.camera import Camera
from gsfields.data.dataset import Dataset, View, hold_out, unique_stems
from gsfields.data.images import (
    CACHE_BYTES,
    SUFFIXES,
    Header,
    ImageCache,
    ImageFile,
    Photo,
    read_header,
)
from gsfields.data.lens import Intrinsics
from gsfields.data.motion_masks import MaskFile, MaskFolder
from gsfields.data.tar_frames import TarFrames


@dataclass(frozen=True)
class LoadOptions:
    """How to read a dataset, whatever its format. Raises ValueError for values out of range."""

    downscale: float | None = None  # images are this many times smaller than the format states
    width: int | None = None  # or: the width of the images, pixels
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)  # laid under transparent images
    split_every: int = 8  # see dataset.hold_out
    cache_bytes: int = CACHE_BYTES  # bound of the memory for decoded images and masks
    motion_masks: Path | None = None  # folder with a soft mask per image, named after it

    def __post_init__(self) -> None:
        if self.downscale is not None and self.width is not None:
            raise ValueError(f"give downscale or width, but not both ({self.downscale} and {self.width})")
        if self.downscale is not None and not (math.isfinite(self.downscale) and self.downscale >= 1):
            raise ValueError(f"downscale must be a number of at least 1, but is {self.downscale}")
        if self.width is not None and not (self.width >= 1 and self.width % 1 == 0):
            raise ValueError(f"width must be a whole number of pixels, at least 1, but is {self.width}")
        hold_out(0, self.split_every)  # raises for a rule that is none
        try:
            background = tuple(float(channel) for channel in self.background)
        except (TypeError, ValueError):
            background = ()
        if len(background) != 3 or not all(0 <= channel <= 1 for channel in background):
            raise ValueError(f"background must be three numbers in [0, 1], but is {self.background}")
        object.__setattr__(self, "background", background)
        object.__setattr__(self, "width", None if self.width is None else int(self.width))

    def factor(self, lens: Intrinsics) -> float:
        """How many times smaller than `lens` states the images become."""
        if self.width is not None and self.width > lens.width:
            raise ValueError(f"width must not exceed that of the images, {lens.width}, but is {self.width}")
        return lens.width / self.width if self.width is not None else self.downscale or 1.0


@dataclass
class Frame:
    """One posed photo as a format states it."""

    name: str  # the view's name: the path in the dataset, without the folder images/
    # of the full-size photo; folder_2, folder_4, ... beside it may hold smaller copies
    folder: Path | TarFrames
    file: str  # the photo's path in that folder
    viewmat: np.ndarray  # float64 [4, 4] world -> camera, OpenCV axes
    lens: Intrinsics  # at the size that the format states
    mask_path: Path | None = None  # nonzero where a pixel counts
    time: float | None = None
    bounds: tuple[float, float] | None = None
    held_out: bool | None = None  # True: test, False: training, None: the rule decides
    aliases: tuple[str, ...] = ()  # other stems that the file of its motion mask may have
    mask_excludes: bool = False  # the mask is the other way round: nonzero where a pixel does not count
    ignores_alpha: bool = False  # only the colours of a transparent photo count


@dataclass
class Points:
    """The points of a scene; those with a coordinate that is not finite are left out."""

    positions: np.ndarray  # [M, 3]
    colors: np.ndarray | None = None  # [M, 3], in [0, 1]


@dataclass
class ImageFolders:
    """A folder of photos and the smaller copies beside it: images, images_2, images_4, ..."""

    root: Path
    factors: list[int] = field(init=False)  # of the folders that exist, 1 for root itself
    _listings: dict[int, list[str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        suffixes = (
            p.name[len(self.root.name) + 1 :]
            for p in self.root.parent.glob(f"{self.root.name}_*")
            if p.is_dir()
        )
        self.factors = sorted(int(s) for s in suffixes if s.isascii() and s.isdigit() and int(s) > 1)
        if self.root.is_dir():
            self.factors.insert(0, 1)

    def path(self, factor: int) -> Path:
        return self.root if factor == 1 else self.root.with_name(f"{self.root.name}_{factor}")

    def listing(self, factor: int) -> list[str]:
        """The images in a folder and its subfolders, in name order."""
        if factor not in self._listings:
            folder = self.path(factor)
            files = (p for p in folder.rglob("*") if p.suffix in SUFFIXES and not p.name.startswith("."))
            self._listings[factor] = sorted(p.relative_to(folder).as_posix() for p in files)
        return self._listings[factor]

    def find(self, file: str, factor: int) -> Path | None:
        """The photo `file` in one of the folders, None if it is not there.

        A copy has the same name, or the same but for the suffix. Copies may also have been renamed (LLFF's
        are): then the folders must hold equally many images, and those at the same place of the name order
        belong together.
        """
        folder = self.path(factor)
        exact = with_suffix(folder / file)
        if exact.is_file() or factor == 1:
            return exact if exact.is_file() else None
        for suffix in SUFFIXES:
            if (other := (folder / file).with_suffix(suffix)).is_file():
                return other
        if 1 not in self.factors or len(self.listing(1)) != len(self.listing(factor)):
            return None
        return folder / self.listing(factor)[self.listing(1).index(file)] if file in self.listing(1) else None

    def choose(self, file: str, lens: Intrinsics, options: LoadOptions) -> tuple[Path, int] | None:
        """(photo, factor of its folder) to make the image that `options` ask for; None if it is missing.

        A folder made for just this size is taken as it is; otherwise the full-size photo is, to be shrunk on
        load. Where there is no full-size folder, the smallest copies that are large enough serve, and if no
        size was asked for the largest there are.
        """
        factor = options.factor(lens)
        k = round(factor)
        if k > 1 and k in self.factors and (copy := self.find(file, k)) is not None:
            fits = k == factor or (options.width is not None and read_header(copy).width == options.width)
            if fits:
                return copy, k
        if self.factors and 1 not in self.factors:
            k = max((f for f in self.factors if f <= factor), default=self.factors[0])
            if k > factor and (options.width or options.downscale):
                raise ValueError(
                    f"the photos in {self.path(k)} are too small for an image {factor:g} times smaller"
                )
        else:
            k = 1
        photo = self.find(file, k)
        return None if photo is None else (photo, k)


def with_suffix(path: Path) -> Path:
    """`path`, or the image file that is meant where its suffix is left out (Blender's transforms.json)."""
    if path.is_file():
        return path
    candidates = (path.with_name(path.name + suffix) for suffix in SUFFIXES)
    return next((candidate for candidate in candidates if candidate.is_file()), path)


def build_dataset(
    frames: Sequence[Frame],
    options: LoadOptions,
    *,
    points: Points | None = None,
    name: str = "",
    uniform: bool = False,
) -> Dataset:
    """The Dataset of `frames`. Headers of all images are read now, pixels when a view is asked for them.

    If the frames say which are held out, they stay in their order; otherwise they are put in name order
    (plain string order, as in 3DGS) and every `options.split_every`-th is held out.

    `uniform` frames are those of a video, all of one size and kind: only the first header is read, however
    many there are; one that is of another size is refused when it is decoded.

    Raises:
        FileNotFoundError: images or masks are missing.
        ValueError: there is no frame, a photo's size is not the one stated, or the split leaves nothing to
            train on.
    """
    if not frames:
        raise ValueError(f"dataset {name!r} lists no frames")
    explicit = any(frame.held_out is not None for frame in frames)
    frames = list(frames) if explicit else sorted(frames, key=lambda frame: frame.name)
    sources = _locate(frames, options)
    if uniform:
        headers = [read_header(sources[0][0])] * len(frames)
    else:
        headers = [read_header(photo) for photo, _ in sources]
    stems = unique_stems([frame.name for frame in frames])
    motion_masks = _find_motion_masks(frames, stems, options)
    cache = ImageCache(options.cache_bytes)
    views: list[View] = []
    for i, (frame, (photo, factor), header) in enumerate(zip(frames, sources, headers, strict=True)):
        _check_size(frame.lens, photo, header, factor)
        width, height = _target_size(frame.lens, header, factor, options)
        if frame.mask_path is not None:
            _check_mask(frame, photo, header)
        at_file = frame.lens.resized(header.width, header.height)
        under = None if frame.ignores_alpha else options.background
        image = ImageFile(photo, at_file, width, height, under, frame.mask_path, frame.mask_excludes)
        load_motion = None
        if (path := motion_masks[i]) is not None:
            mask_file = MaskFile(path, at_file, width, height)
            if not uniform or not any(view.has_motion_mask for view in views[-1:]):
                mask_file.check()
            load_motion = partial(_cached_mask, cache, mask_file)
        views.append(
            View(
                frame.name,
                Camera(
                    torch.from_numpy(frame.viewmat).float(),
                    frame.lens.resized(width, height).K,
                    width,
                    height,
                ),
                partial(cache.get, frame.name, image.load),
                photo if isinstance(photo, Path) else None,
                frame.time,
                frame.bounds,
                frame.lens,
                load_motion,
                stems[i],
            )
        )
    if explicit:
        train = [i for i, frame in enumerate(frames) if not frame.held_out]
        test = [i for i, frame in enumerate(frames) if frame.held_out]
    else:
        train, test = hold_out(len(views), options.split_every)
    positions, colors = _finite_points(points)
    transparent = any(h.transparent and not f.ignores_alpha for f, h in zip(frames, headers, strict=True))
    background = torch.tensor(options.background) if transparent else None
    return Dataset(views, train, test, positions, colors, background, name, cache)


def _cached_mask(cache: ImageCache, mask: MaskFile) -> torch.Tensor:
    return cache.get((mask.path,), lambda: (mask.load(),))[0]


def _find_motion_masks(
    frames: Sequence[Frame], stems: Sequence[str], options: LoadOptions
) -> list[Path | None]:
    """The file of every frame's motion mask, if it has one: named by the view's stem, by the path of the
    photo, or by an alias of the format.
    """
    if options.motion_masks is None:
        return [None] * len(frames)
    folder = MaskFolder(options.motion_masks)
    return [
        folder.find(stem, PurePosixPath(frame.name).with_suffix("").as_posix(), *frame.aliases)
        for frame, stem in zip(frames, stems, strict=True)
    ]


def _locate(frames: Sequence[Frame], options: LoadOptions) -> list[tuple[Photo, int]]:
    """(photo, factor of its folder) of every frame; all of them are looked for before any is read."""
    folders = {f: ImageFolders(f) for f in {frame.folder for frame in frames} if isinstance(f, Path)}
    sources: list[tuple[Photo, int] | None] = []
    for frame in frames:
        if isinstance(frame.folder, Path):
            sources.append(folders[frame.folder].choose(frame.file, frame.lens, options))
        else:
            member = frame.folder.find(frame.file)
            sources.append(None if member is None else (member, 1))
    missing = [f"{f.folder}/{f.file}" for f, source in zip(frames, sources, strict=True) if source is None]
    masks = [frame.mask_path for frame in frames if frame.mask_path is not None]
    missing += [str(path) for path in masks if not path.is_file()]
    if missing:
        others = f" (and {len(missing) - 1} more of {len(frames)})" if len(missing) > 1 else ""
        raise FileNotFoundError(f"image {missing[0]} is missing{others}")
    return [source for source in sources if source is not None]


def _check_size(lens: Intrinsics, path: Photo, header: Header, factor: int) -> None:
    """A photo has the stated size; a copy has it divided by its folder's factor, rounded up or down."""
    for stated, actual in ((lens.width, header.width), (lens.height, header.height)):
        if not stated // factor <= actual <= -(-stated // factor):
            size = f"{lens.width}x{lens.height}" + (f" divided by {factor}" if factor > 1 else "")
            raise ValueError(f"image {path} is {header.width}x{header.height}, but its camera states {size}")


def _check_mask(frame: Frame, path: Photo, header: Header) -> None:
    assert frame.mask_path is not None
    width, height, _ = read_header(frame.mask_path)
    if (width, height) not in (header[:2], (frame.lens.width, frame.lens.height)):
        size = f"{header.width}x{header.height}"
        raise ValueError(f"mask {frame.mask_path} is {width}x{height}, but its image {path} is {size}")


def _target_size(lens: Intrinsics, header: Header, factor: int, options: LoadOptions) -> tuple[int, int]:
    """(width, height) of the image made from a photo; a copy from a folder that fits keeps its own."""
    wanted = options.factor(lens)
    if factor > 1 and wanted <= factor:
        return header.width, header.height
    width, height = options.width or round(lens.width / wanted), round(lens.height / wanted)
    return min(max(1, width), header.width), min(max(1, height), header.height)


def _finite_points(points: Points | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if points is None:
        return None, None
    finite = np.isfinite(points.positions).all(axis=1)
    positions = torch.from_numpy(points.positions[finite].astype(np.float32))
    colors = None if points.colors is None else torch.from_numpy(points.colors[finite].astype(np.float32))
    return positions, colors

"""From an image file to the pixels of a view: decode, composite, undistort, shrink, keep within a bound of
memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gsfields.data.lens import Intrinsics, undistort
from gsfields.data.tar_frames import TarMember

Photo = Path | TarMember  # what an image is decoded from
SUFFIXES = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".webp", ".bmp", ".tif", ".tiff")
CACHE_BYTES = 2 << 30
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


class Pixels(NamedTuple):
    """The pixels of one view: an image and, where not all of its pixels count, a mask."""

    image: Tensor  # [H, W, 3], uint8 or float32 in [0, 1]
    mask: Tensor | None = None  # [H, W] bool, True where the pixel counts


Decoded = TypeVar("Decoded", bound=tuple[Tensor | None, ...])


class Header(NamedTuple):
    width: int
    height: int
    transparent: bool  # has an alpha channel or a transparent colour


def read_header(path: Photo) -> Header:
    """Size and kind of the image in a file, without decoding it.

    Orientation tags are ignored, as COLMAP ignores them.

    Raises FileNotFoundError if there is no such file, ValueError if it is no image or has more than 8 bits a
    channel.
    """
    try:
        with Image.open(_source(path)) as image:
            mode, size, transparent = image.mode, image.size, image.has_transparency_data
    except FileNotFoundError:
        raise FileNotFoundError(f"image {path} is missing") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a readable image ({error})") from None
    if mode not in _MODES:
        raise ValueError(f"image {path} has pixels of kind {mode!r}, but only 8 bits a channel are supported")
    return Header(*size, transparent)


def decode(path: Photo, background: tuple[float, float, float] | None) -> np.ndarray:
    """float32 [H, W, 3] in [0, 1]; transparent images are laid over `background`: a rgb + (1 - a) background. If
    that is None, their alpha is ignored.

    Raises ValueError if the file is damaged.
    """
    mode = "RGB" if background is None or not read_header(path).transparent else "RGBA"
    rgba = _pixels(path, mode).astype(np.float32) / 255
    if background is None or mode == "RGB":
        return rgba
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + (1 - alpha) * np.asarray(background, dtype=np.float32)


def _source(path: Photo) -> Path | BinaryIO:
    """What Image.open takes."""
    return path.open() if isinstance(path, TarMember) else path


def _pixels(path: Photo, mode: str) -> np.ndarray:
    try:
        with Image.open(_source(path)) as image:
            return np.asarray(image.convert(mode))
    except OSError as error:
        raise ValueError(f"image {path} is damaged ({error})") from None


def shrink(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """[H, W, C] -> [height, width, C] float32: each new pixel is the mean over the area it covers.

    Old pixels that are covered in part count by that part, in float64. (Exact for any ratio: the mean over an
    interval is a difference of the running sum, which between pixel borders is linear.)

    Raises ValueError if the new size is larger.
    """
    if width > image.shape[1] or height > image.shape[0]:
        raise ValueError(f"cannot enlarge an image of {image.shape[1]}x{image.shape[0]} to {width}x{height}")
    if (height, width) == image.shape[:2]:
        return image.astype(np.float32, copy=False)
    return _shrink_rows(_shrink_rows(image, height).swapaxes(0, 1), width).swapaxes(0, 1).astype(np.float32)


def _shrink_mask(keep: np.ndarray, width: int, height: int) -> np.ndarray:
    """[H, W] bool -> [height, width] bool: True where all that a pixel covers is True."""
    return shrink(keep[..., None].astype(np.float32), width, height)[..., 0] > 1 - 1e-6


def _shrink_rows(image: np.ndarray, count: int) -> np.ndarray:
    rows = image.shape[0]
    if rows % count == 0:
        return image.reshape(count, rows // count, *image.shape[1:]).mean(axis=1, dtype=np.float64)
    total = np.zeros((rows + 1, *image.shape[1:]))
    np.cumsum(image, axis=0, dtype=np.float64, out=total[1:])
    borders = np.arange(count + 1) * (rows / count)
    below = np.minimum(borders.astype(int), rows - 1)
    part = (borders - below).reshape(-1, *[1] * (image.ndim - 1))
    return np.diff(total[below] + part * (total[below + 1] - total[below]), axis=0) / (rows / count)


@dataclass(frozen=True)
class ImageFile:
    """How one view's pixels come about. `load` does, in this order: decode, lay over the background,
    undistort at the file's resolution, shrink by area, round to 8 bits (so the error is at most 1/510).

    Alpha is composited before any resampling, so no colour bleeds out of transparent pixels. A mask file
    keeps the pixels where it is not 0, or, if it excludes, those where it is. A pixel of the result counts only if
    every pixel that fed it counts: masks and the borders left by undistortion never leak into the image.
    """

    path: Photo
    lens: Intrinsics  # at the size of the file
    width: int  # of the result, pixels
    height: int
    background: tuple[float, float, float] | None  # None: alpha is ignored
    mask_path: Path | None = None  # of the file's size or larger
    mask_excludes: bool = False

    def load(self) -> Pixels:
        image = decode(self.path, self.background)
        if image.shape[:2] != (self.lens.height, self.lens.width):
            raise ValueError(
                f"image {self.path} is {image.shape[1]}x{image.shape[0]}, but its camera states "
                f"{self.lens.width}x{self.lens.height}"
            )
        keep = None
        if self.mask_path is not None:
            marked = _pixels(self.mask_path, "L") > 0
            keep = _shrink_mask(marked != self.mask_excludes, self.lens.width, self.lens.height)
        if self.lens.distorted:
            image, keep = self._undistorted(image, keep)
        if keep is not None:
            keep = _shrink_mask(keep, self.width, self.height)
        image = shrink(image, self.width, self.height)
        mask = None if keep is None or keep.all() else torch.from_numpy(keep)
        return Pixels(torch.from_numpy(np.rint(image * 255).clip(0, 255).astype(np.uint8)), mask)

    def _undistorted(self, image: np.ndarray, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        extra = [] if keep is None else [keep[..., None].astype(np.float32)]
        stacked = torch.from_numpy(np.concatenate([image, *extra], axis=-1))
        sampled, inside = undistort(stacked, self.lens)
        if keep is not None:
            inside = inside & (sampled[..., 3] > 1 - 1e-4)
        return sampled[..., :3].numpy(), inside.numpy()


class ImageCache:
    """Keeps what was decoded last, the tensors of tuples, up to `max_bytes`. What it returns never depends on
    what it holds.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, but is {max_bytes}")
        self.max_bytes = max_bytes
        self.bytes = 0
        self._held: OrderedDict[object, Any] = OrderedDict()
        self._lock = Lock()  # loaders may prefetch from threads; decoding itself happens outside the lock

    def get(self, key: object, load: Callable[[], Decoded]) -> Decoded:
        """What is held under `key`, or else load(), which is then held while the bound allows."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        decoded = load()
        with self._lock:
            if key not in self._held:
                self._held[key] = decoded
                self.bytes += _size(decoded)
            while self.bytes > self.max_bytes:
                self.bytes -= _size(self._held.popitem(last=False)[1])
        return decoded


def _size(decoded: tuple[Tensor | None, ...]) -> int:
    return sum(tensor.nbytes for tensor in decoded if tensor is not None)

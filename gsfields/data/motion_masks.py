"""Soft masks as files: what a 2D method says moves in each image, and what a layer of a scene covers.

A folder `motion_masks` holds one file per image, of the same stem: `frame_0000000010.png` for
`frame_0000000010.jpg`. Images without a file have no mask. `read_mask` says what files may hold.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from gsfields.data.images import shrink
from gsfields.data.lens import Intrinsics, undistort
from gsfields.files import written_whole

MASK_SUFFIXES = (".png", ".npy", ".npz")  # the first one found is read
_GREY_LEVELS = {"L": 255, "LA": 255, "I;16": 65535, "I;16B": 65535, "I": 65535}


def read_mask(path: str | Path) -> np.ndarray:
    """The mask in a file: float32 [H, W] in [0, 1].

    png, grey: soft scores, 8 bits divided by 255 and 16 by 65535; 1 bit: 0 or 1.
    png, palette (DAVIS): labels, 1 where the index is not 0.
    png, colour: soft scores if the three channels agree, otherwise labels, 1 where the pixel is not black.
    npy, or npz with one array or one called mask: bool; whole numbers of 8 bits, labels if none is above 1
    and otherwise divided by 255; floating point in [0, 1]. Axes of length 1 are dropped.
    An alpha channel is ignored.

    Raises FileNotFoundError if there is no such file, ValueError if it holds none of these.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"mask {path} is missing")
    if path.suffix in (".npy", ".npz"):
        return _from_array(_load_array(path), path)
    try:
        with Image.open(path) as image:
            mode = image.mode
            pixels = np.asarray(image if mode in ("1", "P", "PA", *_GREY_LEVELS) else image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"mask {path} is not a readable image ({error})") from None
    if mode in _GREY_LEVELS:
        grey = pixels[..., 0] if mode == "LA" else pixels
        return (grey / np.float32(_GREY_LEVELS[mode])).astype(np.float32).clip(0, 1)
    if mode in ("1", "P", "PA"):
        return ((pixels[..., 0] if mode == "PA" else pixels) > 0).astype(np.float32)
    grey_in_colour = bool((pixels == pixels[..., :1]).all())
    return np.asarray(pixels[..., 0] / 255 if grey_in_colour else pixels.any(axis=2), dtype=np.float32)


def _load_array(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            name = loaded.files[0] if len(loaded.files) == 1 else "mask"
            if name not in loaded.files:
                raise ValueError(f"of its arrays {loaded.files} none is called mask")
            return loaded[name]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"mask {path} is not a readable numpy array ({error})") from None


def _from_array(values: np.ndarray, path: Path) -> np.ndarray:
    values = values.squeeze()
    if values.ndim != 2:
        raise ValueError(f"mask {path} must be [H, W], but is {list(values.shape)}")
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255 if values.max() > 1 else 1)
    if values.dtype.kind != "f":
        raise ValueError(f"mask {path} must be bool, uint8 or floating point, but is {values.dtype}")
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"mask {path} must hold numbers in [0, 1] only")
    return values.astype(np.float32)


def mask_size(path: Path) -> tuple[int, int]:
    """(width, height) of the mask in a file; of a png and an npy without reading its pixels."""
    if path.suffix == ".png":
        try:
            with Image.open(path) as image:
                return image.size
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"mask {path} is not a readable image ({error})") from None
    values = read_mask(path)
    return values.shape[1], values.shape[0]


def write_mask(path: str | Path, mask: Tensor | np.ndarray, *, bits: int = 16) -> None:
    """Write a mask [H, W] as a grey png of 8 or 16 bits, whole or not at all; what is outside [0, 1] is
    clamped.

    Raises ValueError if the mask is not [H, W] or holds NaN, or bits are others.
    """
    values = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)
    if bits not in (8, 16):
        raise ValueError(f"bits must be 8 or 16, but is {bits}")
    if values.ndim != 2 or np.isnan(values).any():
        raise ValueError(f"mask must be [H, W] without NaN, but is {list(values.shape)}")
    levels = 2**bits - 1
    grey = np.rint(values.astype(np.float64).clip(0, 1) * levels).astype(
        np.uint16 if bits == 16 else np.uint8
    )
    with written_whole(path) as temporary:
        Image.fromarray(grey).save(temporary)


def resampled(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """[H, W] -> [height, width] float32: the mean over each pixel's area where the mask is larger, bilinear
    where it is smaller; exactly the mask if it has that size.
    """
    if mask.shape == (height, width):
        return mask
    if mask.shape[0] >= height and mask.shape[1] >= width:
        return shrink(mask[..., None], width, height)[..., 0]
    stacked = torch.from_numpy(mask)[None, None]
    return interpolate(stacked, (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()


def fits(mask: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether a mask shows the whole image, both (width, height): the same aspect ratio to within a pixel of
    the smaller one.
    """
    scale = mask[0] / image[0]
    return abs(mask[1] - image[1] * scale) <= max(1, scale)


@dataclass(frozen=True)
class MaskFile:
    """How one view's motion mask comes about, as its image does: read, resample to the photo's size,
    undistort, shrink by area to the size of the view.
    """

    path: Path
    lens: Intrinsics  # at the size of the photo
    width: int  # of the result, pixels
    height: int

    def check(self) -> None:
        """Raise ValueError if the mask is that of an image of another shape."""
        self._check(mask_size(self.path))

    def _check(self, size: tuple[int, int]) -> None:
        if not fits(size, (self.lens.width, self.lens.height)):
            raise ValueError(
                f"mask {self.path} is {size[0]}x{size[1]}, but its image is "
                f"{self.lens.width}x{self.lens.height}, which is another aspect ratio"
            )

    def load(self) -> Tensor:
        """float32 [height, width] in [0, 1]."""
        mask = read_mask(self.path)
        self._check((mask.shape[1], mask.shape[0]))
        if not self.lens.distorted:
            return torch.from_numpy(resampled(mask, self.width, self.height))
        mask = resampled(mask, self.lens.width, self.lens.height)
        mask = undistort(torch.from_numpy(mask)[..., None], self.lens)[0][..., 0].numpy()
        return torch.from_numpy(resampled(mask, self.width, self.height))


@dataclass
class MaskFolder:
    """A folder of masks, listed once."""

    root: Path
    _files: dict[str, Path] = field(init=False, default_factory=dict)  # by path in the folder, without suffix

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise FileNotFoundError(f"the folder of masks {self.root} does not exist")
        for suffix in reversed(MASK_SUFFIXES):
            for path in self.root.rglob(f"*{suffix}"):
                if not path.name.startswith("."):
                    self._files[path.relative_to(self.root).with_suffix("").as_posix()] = path

    def __len__(self) -> int:
        return len(self._files)

    def find(self, *names: str) -> Path | None:
        """The file of the first of `names`, stems or paths without suffix, that there is one of."""
        return next((self._files[name] for name in names if name in self._files), None)

    def stems(self) -> list[str]:
        """The names that `find` knows, in order."""
        return sorted(self._files)

"""Which format a path holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gsfields.data.colmap import find_model, load_colmap
from gsfields.data.dataset import Dataset
from gsfields.data.frames import LoadOptions
from gsfields.data.images import CACHE_BYTES
from gsfields.data.llff import POSES, load_llff
from gsfields.data.transforms import has_transforms, load_transforms


def load_dataset(
    path: str | Path,
    *,
    downscale: float | None = None,
    width: int | None = None,
    background: Sequence[float] = (1.0, 1.0, 1.0),
    split_every: int = 8,
    cache_bytes: int = CACHE_BYTES,
) -> Dataset:
    """The scene in the folder `path`, in any format, or in one transforms.json or poses_bounds.npy.

    In a folder the first of these is read: a COLMAP project, transforms_train.json or transforms.json,
    poses_bounds.npy. Name the file to read another that is there as well.

    Args:
        path: the folder or file.
        downscale: make the images this many times smaller (at least 1, need not be whole). Where a folder
            such as images_4 stands beside images and fits, it is used; otherwise photos are shrunk by area as
            they are read.
        width: the width of the images in pixels, instead of downscale.
        background: the colour, three numbers in [0, 1], laid under transparent images.
        split_every: where the format does not say what is held out, every split_every-th image in name order
            is, from the first on; 0 holds out none.
        cache_bytes: how much memory decoded images may take; they are decoded when first asked for.

    Raises:
        FileNotFoundError: path, or a file it refers to, does not exist.
        ValueError: no known format, or one sentence about what is wrong in it or in the arguments.
    """
    path = Path(path)
    options = LoadOptions(downscale, width, background, split_every, cache_bytes)  # type: ignore[arg-type]
    if not path.exists():
        raise FileNotFoundError(f"no dataset at {path}: there is no such folder or file")
    if path.suffix == ".json":
        return load_transforms(path, options)
    if path.name == POSES:
        return load_llff(path.parent, options)
    if path.is_dir() and find_model(path) is not None:
        return load_colmap(path, options)
    if path.is_dir() and has_transforms(path):
        return load_transforms(path, options)
    if (path / POSES).is_file():
        return load_llff(path, options)
    raise ValueError(
        f"{path} is in no known format: it must hold a COLMAP model (in sparse/0, sparse or itself), "
        f"transforms.json, transforms_train.json or {POSES}"
    )

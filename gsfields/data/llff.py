"""LLFF's poses_bounds.npy (Mildenhall et al. 2019, https://github.com/Fyusion/LLFF#using-your-own-poses).

An array [N, 17], a row per photo in name order: a row-major 3 x 5 matrix, of which three columns are the
rotation camera -> world in the axes (down, right, back), the fourth the camera's centre, the fifth (height,
width, focal length in pixels); then the nearest and farthest depth of the scene.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gsfields.data.dataset import Dataset
from gsfields.data.frames import Frame, ImageFolders, LoadOptions, build_dataset
from gsfields.data.lens import Intrinsics
from gsfields.data.poses import inverse, rigid

POSES = "poses_bounds.npy"


def load_llff(root: Path, options: LoadOptions) -> Dataset:
    """The Dataset of a folder with poses_bounds.npy and photos in images/, images_4/ or images_8/.

    Pixels are square and the principal point is in the middle. LLFF has no points; bounds go to View.bounds.

    Raises:
        FileNotFoundError: no photos.
        ValueError: not an [N, 17] array, as many poses as photos are not there, a pose is not rigid, a focal
            length or the bounds are not positive.
    """
    path = root / POSES
    try:
        table = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable numpy array ({error})") from None
    if table.ndim != 2 or table.shape[1] != 17 or table.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} must be an [N, 17] array of numbers, but is {list(table.shape)} {table.dtype}"
        )
    if len(table) == 0:
        raise ValueError(f"{path} lists no frames")
    folders = ImageFolders(root / "images")
    if not folders.factors:
        raise FileNotFoundError(f"{root} has neither images/ nor a smaller copy of it such as images_4/")
    files = folders.listing(folders.factors[0])
    if len(files) != len(table):
        photos = folders.path(folders.factors[0])
        raise ValueError(f"{path} has {len(table)} poses, but {photos} has {len(files)} images")
    frames = [_frame(root, file, row) for file, row in zip(files, table.astype(np.float64), strict=True)]
    return build_dataset(frames, options, name=root.resolve().name)


def _frame(root: Path, file: str, row: np.ndarray) -> Frame:
    owner = f"image {file} in {root / POSES}"
    matrix, (near, far) = row[:15].reshape(3, 5), row[15:]
    down, right, back, center = matrix[:, :4].T
    c2w = rigid(np.stack([right, down, -back, center], axis=1), owner)
    height, width, focal = matrix[:, 4]
    if not (np.isfinite([height, width]).all() and height == int(height) and width == int(width)):
        raise ValueError(f"{owner} states a size of {width}x{height}, which must be whole pixels")
    if not (np.isfinite(far) and 0 < near < far):
        raise ValueError(f"{owner} must have 0 < near < far, but has {near} and {far}")
    try:
        lens = Intrinsics(int(width), int(height), focal, focal, width / 2, height / 2)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None
    return Frame(file, root / "images", file, inverse(c2w), lens, bounds=(float(near), float(far)))

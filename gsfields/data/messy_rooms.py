"""Messy Rooms, the dataset of Contrastive Lift (Bhalgat et al., NeurIPS 2023): color/*.png and metadata.json, whose
`camera` holds K (3 x 3, normalised by the size of the image), positions [N, 3] and quaternions [N, 4] (wxyz, camera
-> world, axes right, up, back). Its labels are read by gsfields.data.segments.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gsfields.data.dataset import Dataset
from gsfields.data.frames import Frame, LoadOptions, build_dataset
from gsfields.data.images import read_header
from gsfields.data.lens import Intrinsics
from gsfields.data.poses import OPENGL_AXES, from_quaternion, inverse

METADATA = "metadata.json"
_TRAIN_SHARE = 0.8


def has_messy_rooms(path: Path) -> bool:
    """Whether a metadata.json is that of a Messy Rooms scene."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else None
    except (ValueError, RecursionError):
        return False
    camera = values.get("camera") if isinstance(values, dict) else None
    return isinstance(camera, dict) and {"K", "positions", "quaternions"} <= set(camera)


def load_messy_rooms(path: Path, options: LoadOptions) -> Dataset:
    """The Dataset of one scene's metadata.json, with its photos, of any one size, in color/ beside it.

    Photos are in the order of their numbers, which is that of the poses; the first 80 % train and the last 20 % are
    held out, as in the released code. Alpha channels are ignored, as there. invalid/<stem>.jpg, where there is one, is
    not 0 where a pixel does not count. There are no points.

    Half a pixel: the renderer's normalised K has its principal point at 0.5, the middle of the image, so that K
    times the size is in the coordinates used here, pixel centres at +0.5. The released code takes it for the
    coordinates of pixels counted from 0, which shifts its rays by half a pixel; that is not followed.

    Raises:
        FileNotFoundError: there are no photos.
        ValueError: metadata.json is malformed, or its poses are not as many as the photos.
    """
    root = path.parent
    folder = root / "color"
    photos = [p for p in folder.iterdir() if p.suffix == ".png"] if folder.is_dir() else []
    if not photos:
        raise FileNotFoundError(f"{folder} holds no photos (png)")
    if not all(photo.stem.isdecimal() for photo in photos):
        raise ValueError(f"the photos in {folder} must be numbered, as in 0000.png")
    photos.sort(key=lambda photo: int(photo.stem))
    K, positions, quaternions = _cameras(path)
    if len(positions) != len(photos) or len(quaternions) != len(photos):
        raise ValueError(
            f"{path} has {len(positions)} positions and {len(quaternions)} quaternions, but {folder} has "
            f"{len(photos)} photos"
        )
    lens = _lens(K, photos[0], path)
    training = int(len(photos) * _TRAIN_SHARE)
    frames = []
    for i, photo in enumerate(photos):
        c2w = from_quaternion(quaternions[i], positions[i], f"view {photo.stem} of {path}") @ OPENGL_AXES
        invalid = root / "invalid" / f"{photo.stem}.jpg"
        frames.append(
            Frame(
                photo.name,
                folder,
                photo.name,
                inverse(c2w),
                lens,
                mask_path=invalid if invalid.is_file() else None,
                mask_excludes=True,
                ignores_alpha=True,
                held_out=i >= training,
            )
        )
    return build_dataset(frames, options, name=root.resolve().name)


def _cameras(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K [3, 3], positions [N, 3] and quaternions [N, 4]; float64."""
    camera: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))["camera"]
    arrays = []
    for key, shape in (("K", (3, 3)), ("positions", (-1, 3)), ("quaternions", (-1, 4))):
        try:
            array = np.asarray(camera[key], dtype=np.float64)
        except (TypeError, ValueError):
            array = np.empty(0)
        if array.ndim != 2 or array.shape[1] != shape[1] or shape[0] not in (-1, array.shape[0]):
            size = f"{'N' if shape[0] < 0 else shape[0]} x {shape[1]}"
            raise ValueError(f"camera.{key} of {path} must be {size} numbers")
        arrays.append(array)
    return arrays[0], arrays[1], arrays[2]


def _lens(K: np.ndarray, photo: Path, path: Path) -> Intrinsics:
    """The normalised K at the size of a photo. Some of its entries are negative, as the renderer's axes are; the
    absolute values count.
    """
    width, height, _ = read_header(photo)
    (fx, skew, cx), (_, fy, cy), _ = abs(K)
    if skew > 1e-6:
        raise ValueError(f"camera.K of {path} must have no skew, but has {skew}")
    try:
        return Intrinsics(width, height, fx * width, fy * height, cx * width, cy * height)
    except ValueError as error:
        raise ValueError(f"camera.K of {path}: {error}") from None

"""EPIC-Diff, the dataset of NeuralDiff (Tschernezki et al. 2021): a folder per video with meta.json and frames/.

meta.json holds, by frame id: images (file names), poses (3 x 4, camera -> world, axes right, up, back), nears
and fars; intrinsics (3 x 3, pixels); and the lists ids_all, ids_train, ids_val and ids_test. Keys are texts.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from gsfields.data.dataset import Dataset
from gsfields.data.frames import Frame, LoadOptions, build_dataset
from gsfields.data.images import read_header
from gsfields.data.lens import Intrinsics
from gsfields.data.poses import OPENGL_AXES, inverse, rigid

META = "meta.json"
_KEYS = ("images", "poses", "intrinsics", "ids_train")


def has_epic_diff(path: Path) -> bool:
    """Whether a meta.json is EPIC-Diff's."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else None
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and all(key in values for key in _KEYS)


def load_epic_diff(path: Path, options: LoadOptions) -> Dataset:
    """The Dataset of one video's meta.json, with its photos in frames/ beside it.

    Views are those of ids_train, and of ids_test as held out; frames of ids_val alone are left out of both.
    With split_every = 0 all frames of ids_all are for training. A view's time is its frame id, its bounds are
    the id's near and far. There are no points. intrinsics belong to image_w x image_h where these are stated,
    else to the photos as they are. Only one photo is opened; the others are checked when they are decoded.

    Raises:
        FileNotFoundError: a photo is missing.
        ValueError: meta.json is malformed, or a pose is not rigid.
    """
    values = json.loads(path.read_text(encoding="utf-8-sig"))
    if not all(key in values for key in _KEYS):
        raise ValueError(f"{path} is not a meta.json of EPIC-Diff: it must hold {', '.join(_KEYS)}")
    root = path.parent
    train, test = _ids(values, "ids_train", path), _ids(values, "ids_test", path)
    if options.split_every == 0:
        train, test = (
            sorted({*train, *test, *_ids(values, "ids_val", path), *_ids(values, "ids_all", path)}),
            [],
        )
    if not train:
        raise ValueError(f"{path} lists no frames to train on")
    first = root / "frames" / str(_of(values, "images", train[0], path))
    lens = _lens(values, first, path)
    held_out = set(test)
    frames = []
    for number in (*train, *test):
        file = str(_of(values, "images", number, path))
        c2w = rigid(_of(values, "poses", number, path), f"frame {number} in {path}")
        frames.append(
            Frame(
                file,
                root / "frames",
                file,
                inverse(c2w @ OPENGL_AXES),
                lens,
                time=float(number),
                bounds=_bounds(values, number, path),
                held_out=number in held_out if options.split_every else None,
            )
        )
    return build_dataset(frames, options, name=root.resolve().name, uniform=True)


def _ids(values: dict[str, Any], key: str, path: Path) -> list[int]:
    try:
        return [int(number) for number in values.get(key) or []]
    except (TypeError, ValueError):
        raise ValueError(f"{key} of {path} must be a list of frame ids") from None


def _of(values: dict[str, Any], key: str, number: int, path: Path) -> Any:
    """What `key` has for a frame."""
    table = values.get(key)
    if not isinstance(table, dict) or str(number) not in table:
        raise ValueError(f"{key} of {path} has nothing for frame {number}")
    return table[str(number)]


def _bounds(values: dict[str, Any], number: int, path: Path) -> tuple[float, float] | None:
    if not values.get("nears") or not values.get("fars"):
        return None
    try:
        near, far = (float(_of(values, key, number, path)) for key in ("nears", "fars"))
    except TypeError:
        raise ValueError(f"nears and fars of {path} must be numbers") from None
    if not 0 < near < far < math.inf:
        raise ValueError(f"frame {number} in {path} must have 0 < near < far, but has {near} and {far}")
    return near, far


def _lens(values: dict[str, Any], photo: Path, path: Path) -> Intrinsics:
    try:
        K = np.asarray(values["intrinsics"], dtype=np.float64)
    except (TypeError, ValueError):
        K = np.empty(0)
    if K.shape != (3, 3):
        raise ValueError(f"intrinsics of {path} must be a matrix of 3 x 3 numbers")
    width, height, _ = read_header(photo)
    stated = int(values.get("image_w") or width), int(values.get("image_h") or height)
    lens = Intrinsics(*stated, *(float(value) for value in (K[0, 0], K[1, 1], K[0, 2], K[1, 2])))
    return lens.resized(width, height)

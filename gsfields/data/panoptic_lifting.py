"""Panoptic Lifting's layout (Siddiqui et al., CVPR 2023), which its exports of ScanNet, Hypersim and Replica share:
color/*.jpg, pose/*.txt, intrinsic/intrinsic_color.txt, splits.json and segmentation_data.pkl. Its labels are read by
gsfields.data.segments.
"""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from gsfields.data.dataset import Dataset
from gsfields.data.frames import Frame, LoadOptions, build_dataset
from gsfields.data.images import read_header
from gsfields.data.lens import Intrinsics
from gsfields.data.poses import inverse, rigid

INTRINSICS, SPLITS, CLASSES_PICKLE = "intrinsic/intrinsic_color.txt", "splits.json", "segmentation_data.pkl"
_NAMES = (  # of the reduced ScanNet classes, by id; so spelt
    *("void", "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "counter"),
    *("shelves", "curtain", "ceiling", "refridgerator", "television", "person", "toilet", "sink", "lamp"),
    *("bag", "otherprop"),
)
_THINGS = ("bed", "chair", "sofa", "refridgerator", "television", "person", "toilet", "sink", "bag")


def has_panoptic_lifting(path: Path) -> bool:
    return (path / INTRINSICS).is_file() and (path / "color").is_dir() and (path / "pose").is_dir()


def load_panoptic_lifting(root: Path, options: LoadOptions) -> Dataset:
    """The Dataset of a folder in Panoptic Lifting's layout.

    Views are those that splits.json lists, train first; `test` is held out, or `val` where there is no test. Without
    splits.json all views are in it and `hold_out` decides. Views whose pose is not finite (where ScanNet lost track)
    are left out. invalid/<stem>.jpg, where there is one, is not 0 where a pixel does not count. There are no points.

    Half a pixel: the released exporters put the principal point of a rendered W x H image at ((W - 1) / 2,
    (H - 1) / 2), and its rays go through whole coordinates, so that pixel centres have whole coordinates there.
    Here they are at +0.5; the principal point is moved accordingly.

    Raises:
        FileNotFoundError: a photo or a pose is missing.
        ValueError: a file is malformed, or a pose is not rigid.
    """
    photos = sorted(path for path in (root / "color").iterdir() if path.suffix in (".jpg", ".png"))
    if not photos:
        raise FileNotFoundError(f"{root / 'color'} holds no photos (jpg)")
    files = {path.stem: path.name for path in sorted(photos, key=_order)}
    splits = _splits(root / SPLITS, files)
    K = _matrix(root / INTRINSICS)
    frames = []
    for stem, held_out in splits or [(stem, None) for stem in files]:
        file, pose = files[stem], _matrix(root / "pose" / f"{stem}.txt")
        if not np.isfinite(pose).all():
            continue
        invalid = root / "invalid" / f"{stem}.jpg"
        frames.append(
            Frame(
                file,
                root / "color",
                file,
                inverse(rigid(pose, f"view {stem} of {root}")),
                _lens(K, root / "color" / file, root),
                mask_path=invalid if invalid.is_file() else None,
                mask_excludes=True,
                held_out=held_out,
            )
        )
    return build_dataset(frames, options, name=root.resolve().name)


def _order(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdecimal() else 0, path.stem)


def _splits(path: Path, files: dict[str, str]) -> list[tuple[str, bool | None]]:
    """(stem, whether it is held out) of all views in the splits; empty if there is no such file."""
    if not path.is_file():
        return []
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        train = [str(stem) for stem in values["train"]]
        test = [str(stem) for stem in values.get("test") or values.get("val") or []]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{path} must list the stems of train and test in json") from None
    missing = [stem for stem in (*train, *test) if stem not in files]
    if missing:
        raise FileNotFoundError(f"{path} lists {missing[0]}, but color/ has no such photo")
    return [*((stem, False) for stem in train), *((stem, True) for stem in test)]


def _matrix(path: Path) -> np.ndarray:
    """The [4, 4], [3, 4] or [3, 3] of a text file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        rows = [
            [float(text) for text in line.split()] for line in path.read_text().splitlines() if line.split()
        ]
        matrix = np.array(rows)
    except (ValueError, UnicodeDecodeError):
        matrix = np.empty(0)
    if matrix.shape not in ((4, 4), (3, 4), (3, 3)):
        raise ValueError(f"{path} must be a matrix of 4 x 4 numbers")
    return matrix


def _lens(K: np.ndarray, photo: Path, root: Path) -> Intrinsics:
    width, height, _ = read_header(photo)
    try:
        return Intrinsics(width, height, K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5)
    except ValueError as error:
        raise ValueError(f"{root / INTRINSICS}: {error}") from None


def read_classes(root: Path) -> tuple[tuple[int, ...], tuple[int, ...], dict[int, str]]:
    """(things, stuff, names) of a scene: fg_classes and bg_classes of its segmentation_data.pkl, or the 21 reduced
    ScanNet classes where it has none. Class 0 is void, though bg_classes lists it.

    Names are given where the classes are those 21. The pickle is read without running anything it asks for.

    Raises ValueError if it is malformed or holds anything but numbers, texts, containers, arrays and tensors.
    """
    path = root / CLASSES_PICKLE
    if path.is_file():
        things, stuff = _foreground_and_background(path)
    else:
        things = {_NAMES.index(name) for name in _THINGS}
        stuff = set(range(1, len(_NAMES))) - things
    stuff.discard(0)
    reduced = things | stuff == set(range(1, len(_NAMES)))
    names = {i: name for i, name in enumerate(_NAMES) if i} if reduced else {}
    return tuple(sorted(things)), tuple(sorted(stuff)), names


def _foreground_and_background(path: Path) -> tuple[set[int], set[int]]:
    values = read_plain_pickle(path)
    try:
        things, stuff = ({int(label) for label in values[key]} for key in ("fg_classes", "bg_classes"))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} must list the class ids fg_classes and bg_classes") from None
    if things & stuff:
        raise ValueError(f"{path} lists class {min(things & stuff)} both as fg_classes and bg_classes")
    return things, stuff


class _Unread:
    """Stands for a tensor in a pickle: takes whatever it is given and does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _numpy_names() -> dict[tuple[str, str], Any]:
    """What arrays and numbers of numpy need to be unpickled, under the names of numpy 1 and 2."""
    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }
    for builder in (
        np.zeros(1).__reduce__()[0],
        np.float64(0).__reduce__()[0],
        np.zeros(1).__reduce_ex__(5)[0],
    ):
        for core in ("core", "_core"):
            for module in ("multiarray", "numeric"):
                allowed[f"numpy.{core}.{module}", builder.__name__] = builder  # type: ignore[union-attr]
    return allowed


_PLAIN = {
    **{("builtins", kind.__name__): kind for kind in (int, float, complex, bool, str, bytes, bytearray)},
    **{("builtins", kind.__name__): kind for kind in (list, tuple, dict, set, frozenset)},
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    **_numpy_names(),
}


class _PlainUnpickler(pickle.Unpickler):
    """Builds numbers, texts, containers and numpy arrays; tensors become `_Unread`; refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "torch":
            return _Unread
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _PLAIN[module, name]


def read_plain_pickle(path: str | Path) -> Any:
    """What a pickle of plain data holds, without running anything it asks for.

    Of protocol 3 or later, as Python 3 writes them. Tensors are not read: something else stands for them.

    Raises ValueError if it holds anything but numbers, texts, containers, arrays and tensors.
    """
    try:
        with Path(path).open("rb") as file:
            return _PlainUnpickler(file).load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing") from None
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{path} is not a pickle of plain numbers, texts and containers ({error})") from None

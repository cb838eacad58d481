"""2D segments as files: what a segmenter says of each image, and what is true of it.

Beside the images of any dataset: `segments/<stem>.png` numbers the segments of one image (0 = none), and, if they
are there, `semantics/<stem>.png` states classes, `confidences/<stem>.png` how sure the segmenter is, `classes.json`
which classes are things. True labels lie in `annotations/instances` and `annotations/semantics`. The folders of
Messy Rooms and of Panoptic Lifting's scenes are read as released.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gsfields.data.dataset import View
from gsfields.data.lens import Intrinsics
from gsfields.data.motion_masks import MASK_SUFFIXES, MaskFolder, fits, read_mask, resampled
from gsfields.data.panoptic_lifting import read_classes
from gsfields.files import written_whole

CLASSES = "classes.json"
_LABEL_MODES = ("1", "L", "P", "I;16", "I;16B", "I")
_JUDGED = 40  # images from which things and stuff are told apart where no file says so


class Segments(NamedTuple):
    """What a 2D segmenter says of one image, on one grid."""

    ids: Tensor  # [H, W] int32, 0 = none; a number means nothing outside its image
    semantics: Tensor | None = None  # [H, W] int32, the class of each pixel
    confidence: Tensor | None = None  # [H, W] float32 in [0, 1]


@dataclass(frozen=True)
class Classes:
    """Which class ids are things (with instances) and which stuff; others are void. names may be empty."""

    things: tuple[int, ...] = (1,)
    stuff: tuple[int, ...] = (0,)
    names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        both = sorted(set(self.things) & set(self.stuff))
        if both:
            raise ValueError(f"a class must be a thing or stuff, but {both[0]} is listed as both")
        if min((*self.things, *self.stuff), default=0) < 0:
            raise ValueError(f"class ids must not be negative, but are {self.things} and {self.stuff}")


@dataclass(frozen=True)
class Layout:
    """The folders of one set of labels, relative to a root."""

    ids: str
    semantics: str
    confidences: str | None = None
    sure_background: bool = False  # Messy Rooms: confidence is 1 where the class is 0, whatever the file says


LAYOUTS = (
    Layout("segments", "semantics", "confidences"),
    Layout("detic_instance", "detic_semantic", "detic_probabilities", sure_background=True),
    Layout("m2f_instance", "m2f_semantics", "m2f_probabilities"),
)
TRUTHS = (
    Layout("annotations/instances", "annotations/semantics"),
    Layout("rs_instance", "rs_semantics"),  # before `instance`: ScanNet's raw labels stand beside them
    Layout("instances", "semantics"),
    Layout("instance", "semantic"),
)
_PANOPTIC_LIFTING = ("m2f_instance", "rs_instance")
_RELEASED_NAMES = {0: "background", 1: "object"}  # of Messy Rooms


class SegmentSource:
    """Labels of images by stem, read when asked for.

    `classes`, if not given, are told from the labels when they are first asked for (see `_judged_classes`).
    """

    def __init__(self, root: Path, layout: Layout, classes: Classes | None = None) -> None:
        self.root, self.layout = root, layout
        self._ids = MaskFolder(root / layout.ids)
        self._semantics = _folder(root, layout.semantics)
        self._confidences = _folder(root, layout.confidences)
        self._given = classes
        # views of photos in subfolders have stems such as r_8 for train/r_8 or, if there are several r_8, train_r_8
        names = self._ids.stems()
        last = [PurePosixPath(name).name for name in names]
        often = Counter(last)
        self._flat = {stem: name for stem, name in zip(last, names) if often[stem] == 1}
        self._flat |= {name.replace("/", "_"): name for name in names}

    @cached_property
    def classes(self) -> Classes:
        return self._given or self._judged_classes()

    @property
    def stems(self) -> list[str]:
        return self._ids.stems()

    def has(self, view: View) -> bool:
        """Whether `of` finds labels of the view. (Its stem need not be in `stems` if photos lie in subfolders.)"""
        return any(self._find(self._ids, name) is not None for name in names_of(view))

    def read(self, stem: str) -> Segments | None:
        """The labels on the grid of their file; None where the image has none.

        Semantics and confidences that lie on another grid are brought onto that of the ids, by the nearest pixel
        and by area.

        Raises ValueError if a file is unreadable, or shows an image of another shape.
        """
        path = self._find(self._ids, stem)
        if path is None:
            return None
        ids = read_labels(path)
        semantics = self._on_grid(self._semantics, stem, ids.shape)
        confidence = None
        if (file := self._find(self._confidences, stem)) is not None:
            values = read_confidence(file)
            _check_shape(file, values.shape, ids.shape)
            confidence = resampled(values, ids.shape[1], ids.shape[0])
            if self.layout.sure_background and semantics is not None:
                confidence = np.where(semantics == 0, np.float32(1), confidence)
        return Segments(
            torch.from_numpy(ids),
            None if semantics is None else torch.from_numpy(semantics),
            None if confidence is None else torch.from_numpy(confidence),
        )

    def of(self, view: View) -> Segments | None:
        """The labels on the grid of view.camera, each pixel's those of the photo's pixel that its centre falls
        into, with the lens undone; None where the image has none.

        Where the photo shows nothing (beyond its border) ids, semantics and confidence are 0; view.mask() leaves
        those pixels out, too.

        Raises ValueError as `read` does, or if the labels are those of a photo of another shape.
        """
        found = next((said for name in names_of(view) if (said := self.read(name)) is not None), None)
        if found is None:
            return None
        height, width = found.ids.shape
        if not fits((width, height), view.file_size):
            raise ValueError(
                f"the segments of {view.name} in {self.root / self.layout.ids} are {width}x{height}, but the image "
                f"is {view.file_size[0]}x{view.file_size[1]}, which is another aspect ratio"
            )
        index = photo_pixels(view, width, height)
        inside = index >= 0
        index = index.clamp(min=0)
        return Segments(*(None if m is None else m.flatten()[index] * inside for m in found))  # type: ignore[arg-type]

    def _find(self, folder: MaskFolder | None, stem: str) -> Path | None:
        return None if folder is None else folder.find(stem, self._flat.get(stem, stem))

    def _on_grid(self, folder: MaskFolder | None, stem: str, shape: tuple[int, ...]) -> np.ndarray | None:
        path = self._find(folder, stem)
        if path is None:
            return None
        labels = read_labels(path)
        _check_shape(path, labels.shape, shape)
        rows, columns = ((np.arange(n) + 0.5) * m / n for n, m in zip(shape, labels.shape))
        return labels[rows.astype(int)[:, None], columns.astype(int)]

    def _judged_classes(self) -> Classes:
        """Things are the classes most of whose pixels belong to a segment, the others stuff; from at most
        _JUDGED images, evenly spaced. Without semantics the class is 1 where there is a segment, else 0.
        """
        if self._semantics is None:
            return Classes()
        pixels: dict[int, int] = {}
        segmented: dict[int, int] = {}
        for i in np.unique(np.linspace(0, len(self.stems) - 1, _JUDGED).astype(int)):
            ids, semantics, _ = self.read(self.stems[i]) or Segments(torch.empty(0))
            if semantics is None:
                continue
            for label in semantics.unique().tolist():
                here = semantics == label
                pixels[label] = pixels.get(label, 0) + int(here.sum())
                segmented[label] = segmented.get(label, 0) + int((here & (ids > 0)).sum())
        if not pixels:
            return Classes()
        things = tuple(label for label in sorted(pixels) if 2 * segmented[label] > pixels[label])
        return Classes(things, tuple(label for label in sorted(pixels) if label not in things))


def open_segments(path: str | Path) -> SegmentSource:
    """The labels that a 2D segmenter made of a dataset's images: what fits use.

    `path` is a folder with segments/ (see the module), a Messy Rooms scene (detic_instance/, detic_semantic/,
    detic_probabilities/), a scene in Panoptic Lifting's layout (m2f_instance/, m2f_semantics/, m2f_probabilities/),
    the first of these that is there, or a folder of id maps itself, with the others beside it.

    Raises FileNotFoundError if there is no such folder, ValueError if it holds none of these or classes.json is
    malformed.
    """
    return _open(Path(path), LAYOUTS, "segments")


def open_truth(path: str | Path) -> SegmentSource:
    """The true labels of a dataset's images: what evaluation uses.

    `path` is a folder with annotations/instances, a scene in Panoptic Lifting's layout (rs_instance/,
    rs_semantics/), a folder with instances/ and semantics/, a Messy Rooms scene (instance/, semantic/), the first
    of these that is there, or a folder of id maps itself, with their classes beside it.

    Raises as `open_segments` does.
    """
    return _open(Path(path), TRUTHS, "true labels")


def _open(path: Path, layouts: tuple[Layout, ...], what: str) -> SegmentSource:
    root = path.parent if path.is_file() else path
    if not root.is_dir():
        raise FileNotFoundError(f"no {what} at {path}: there is no such folder")
    layout = next((layout for layout in layouts if (root / layout.ids).is_dir()), None)
    if layout is None:
        if not _is_id_map(next((p for p in sorted(root.iterdir()) if p.suffix in MASK_SUFFIXES), None)):
            known = ", ".join(layout.ids for layout in layouts)
            raise ValueError(f"{path} holds no {what}: it must hold {known}, or id maps itself (png or npy)")
        root, layout = root.resolve().parent, _layout_of(root.resolve())
    source = SegmentSource(root, layout, _stated_classes(root, layout))
    if not source.stems:
        raise ValueError(f"the folder {root / layout.ids} is empty: it must hold {what} as png or npy")
    return source


def _is_id_map(path: Path | None) -> bool:
    try:
        return path is not None and read_labels(path) is not None
    except ValueError:
        return False


def _layout_of(folder: Path) -> Layout:
    """The layout in which `folder` holds the id maps: a released one, or that of segments/."""
    for layout in (*LAYOUTS, *TRUTHS):
        if folder.name == layout.ids:
            return layout
    return Layout(folder.name, "semantics", "confidences")


def _stated_classes(root: Path, layout: Layout) -> Classes | None:
    """What classes.json or the format says; None if neither does."""
    for folder in (root / PurePosixPath(layout.ids).parent, root):
        if (folder / CLASSES).is_file():
            return read_classes_json(folder / CLASSES)
    if layout.ids in _PANOPTIC_LIFTING:
        return Classes(*read_classes(root))
    if layout.sure_background or (layout.ids == "instance" and layout.semantics == "semantic"):
        return Classes(names=_RELEASED_NAMES)
    return None


def read_classes_json(path: str | Path) -> Classes:
    """{"things": [1, 2], "stuff": [0], "names": {"1": "chair"}}; names may be left out.

    Raises ValueError if the file is anything else.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        lists = [values[key] for key in ("things", "stuff")]
        if not all(isinstance(number, int) for numbers in lists for number in numbers):
            raise TypeError
        things, stuff = map(tuple, lists)
        return Classes(things, stuff, {int(k): str(v) for k, v in values.get("names", {}).items()})
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, RecursionError):
        raise ValueError(
            f'{path} must be {{"things": [ids], "stuff": [ids], "names": {{"id": "name"}}}} in json'
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_labels(path: str | Path) -> np.ndarray:
    """The numbers in a file: int32 [H, W], none below 0.

    png: grey of 1, 8 or 16 bits, or palette, whose indices count. npy: whole numbers of any type. Axes of length
    1 are dropped.

    Raises FileNotFoundError if there is no such file, ValueError if it holds none of these.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"labels {path} are missing")
    if path.suffix != ".png":
        return _whole_numbers(_load_array(path, "labels"), path)
    try:
        with Image.open(path) as image:
            if image.mode not in _LABEL_MODES:
                raise ValueError(f"labels {path} must be a grey or palette png, but are {image.mode}")
            return _whole_numbers(np.asarray(image), path)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"labels {path} are not a readable image ({error})") from None


def _whole_numbers(values: np.ndarray, path: Path) -> np.ndarray:
    values = values.squeeze()
    if values.ndim != 2:
        raise ValueError(f"labels {path} must be [H, W], but are {list(values.shape)}")
    if values.dtype.kind not in "biuf" or (values.dtype.kind == "f" and (values != np.rint(values)).any()):
        raise ValueError(f"labels {path} must be whole numbers, but are {values.dtype}")
    if not (values.min(initial=0) >= 0 and values.max(initial=0) < 2**31):
        raise ValueError(f"labels {path} must lie in 0 to 2^31 - 1")
    return np.ascontiguousarray(values, dtype=np.int32)


def read_confidence(path: str | Path) -> np.ndarray:
    """float32 [H, W] in [0, 1]: a grey png, divided by 255 or 65535, or the floating point numbers of an npy or of
    an npz (its array `confidence`, or its only one).

    Raises ValueError if the file holds none of these.
    """
    path = Path(path)
    if path.suffix == ".png":
        return read_mask(path)
    values = _load_array(path, "confidence").squeeze()
    if values.ndim != 2:
        raise ValueError(f"confidences {path} must be [H, W], but are {list(values.shape)}")
    # sums of float32 probabilities may exceed 1 by rounding
    if values.dtype.kind not in "fbiu" or not ((values >= -1e-3) & (values <= 1 + 1e-3)).all():
        raise ValueError(f"confidences {path} must hold numbers in [0, 1] only")
    return values.astype(np.float32).clip(0, 1)


def _load_array(path: Path, name: str) -> np.ndarray:
    """The array in an npy; of an npz the only one, or that of the `name`."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            key = loaded.files[0] if len(loaded.files) == 1 else name
            if key not in loaded.files:
                raise ValueError(f"of its arrays {loaded.files} none is called {name}")
            return loaded[key]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a readable numpy array ({error})") from None


def write_ids(path: str | Path, ids: Tensor | np.ndarray) -> None:
    """Write ids [H, W], whole numbers 0 to 65535, as a grey png of 16 bits, whole or not at all.

    Raises ValueError for anything else.
    """
    values = np.asarray(ids.detach().cpu() if isinstance(ids, Tensor) else ids)
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise ValueError(f"ids must be [H, W] whole numbers, but are {values.dtype} {list(values.shape)}")
    if not 0 <= values.min(initial=0) <= values.max(initial=0) <= 65535:
        raise ValueError(f"ids must lie in 0 to 65535, but span {values.min()} to {values.max()}")
    with written_whole(path) as temporary:
        Image.fromarray(values.astype(np.uint16)).save(temporary)


def names_of(view: View) -> tuple[str, str]:
    """What its files may be called: by the view's stem, or by the path of its photo."""
    return view.stem, PurePosixPath(view.name).with_suffix("").as_posix()


def _folder(root: Path, name: str | None) -> MaskFolder | None:
    return MaskFolder(root / name) if name is not None and (root / name).is_dir() else None


def _check_shape(path: Path, shape: tuple[int, ...], grid: tuple[int, ...]) -> None:
    if not fits((shape[1], shape[0]), (grid[1], grid[0])):
        raise ValueError(
            f"{path} is {shape[1]}x{shape[0]}, but the ids of its image are {grid[1]}x{grid[0]}, "
            "which is another aspect ratio"
        )


def photo_pixels(view: View, width: int, height: int) -> Tensor:
    """[H, W] int64: for each pixel of view.camera, the index y * width + x of the pixel of a width x height map of
    the photo that its centre falls into; -1 beyond the photo.
    """
    camera = view.camera
    K = camera.K.double().cpu()
    pinhole = Intrinsics(
        camera.width, camera.height, *(float(k) for k in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    )
    if view.lens is None:
        return _index(pinhole, pinhole, width, height)
    same = view.lens.resized(camera.width, camera.height)
    if torch.allclose(same.K, pinhole.K, rtol=1e-5, atol=1e-3):
        pinhole = same  # without the rounding of the camera's float32
    return _index(view.lens, pinhole, width, height)


@lru_cache(maxsize=2)  # all photos of a scene usually share one camera
def _index(lens: Intrinsics, camera: Intrinsics, width: int, height: int) -> Tensor:
    x = ((np.arange(camera.width) + 0.5) - camera.cx) / camera.fx
    y = ((np.arange(camera.height) + 0.5) - camera.cy) / camera.fy
    directions = np.stack(np.meshgrid(x, y), axis=-1)
    photo = lens.distort(directions * [lens.fx, lens.fy] + [lens.cx, lens.cy])
    inside = ((photo > -1e-6) & (photo < np.array([lens.width, lens.height]) + 1e-6)).all(-1)
    inside &= (directions**2).sum(-1) < lens.fold_radius2()
    # a centre on the border of two pixels belongs to the later one, whatever the rounding
    place = np.floor(photo * [width / lens.width, height / lens.height] + 1e-6)
    place = place.clip(0, [width - 1, height - 1]).astype(np.int64)
    return torch.from_numpy(np.where(inside, place[..., 1] * width + place[..., 0], -1))

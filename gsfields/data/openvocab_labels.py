"""True masks of phrases as files: what each prompt means in the annotated views of a scene.

LERF-OVS (the labels that LangSplat, CVPR 2024, made for LERF's scenes), beside the scenes:

    label/<scene>/frame_XXXXX.json     {"info": {"name", "width", "height"}, "objects": [{"category", "bbox":
                                       [x1, y1, x2, y2], "segmentation": [[x, y], …]}]}, in pixels, the
                                       segmentation being one polygon

3D-OVS (Liu et al., NeurIPS 2023), inside the scene:

    segmentations/classes.txt          a prompt a line
    segmentations/<view>/<prompt>.png  255 where the prompt is, and only where it is exactly that. The view is
                                       an image's stem, or its number, from 0 in the order of names
    segmentations/queries.json         not in the released scenes: {"<prompt>": {"kind": "simple"}}, which
                                       tells simple prompts from compound and partitive ones

Masks are on their files' own grid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

CLASSES, QUERIES = "classes.txt", "queries.json"
KINDS = ("simple", "compound", "partitive")
_GREY_OR_COLOUR = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_LARGEST = 65535  # pixels, width and height
_FARTHEST = 10**6  # pixels, of a polygon's vertex
_FRAME = re.compile(r"frame_(\d+)")


@dataclass(frozen=True)
class QueryTruth:
    """What a prompt means in one view."""

    prompt: str
    mask: Tensor  # bool [H, W]
    boxes: Tensor  # float [b, 4] of (x1, y1, x2, y2), pixels; b = 0 where the data has no boxes

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool [H, W], but is {self.mask.dtype} {list(self.mask.shape)}")
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4 or not self.boxes.is_floating_point():
            raise ValueError(
                f"boxes must be floating point [b, 4], but are {self.boxes.dtype} {list(self.boxes.shape)}"
            )


@dataclass(frozen=True)
class OpenVocabLabels:
    """The labels of one scene, whose masks are read when asked for."""

    root: Path  # the folder that holds the files
    protocol: Literal["lerf-ovs", "3d-ovs"]
    stems: list[str]  # of the annotated views, sorted
    prompts: list[str]  # of the whole scene, sorted
    kinds: dict[str, str]  # prompt -> simple, compound or partitive, where that is said
    read: Callable[[str], list[QueryTruth]] = field(repr=False)

    def of(self, stem: str) -> list[QueryTruth]:
        """What each prompt that a view is asked for means there.

        Raises ValueError if the view has no labels or a file is malformed.
        """
        if stem not in self.stems:
            raise ValueError(f"{self.root} has no labels of view {stem}, only of {', '.join(self.stems)}")
        return self.read(stem)


def open_labels(root: str | Path, scene: str | None = None) -> OpenVocabLabels:
    """The labels in `root`: a folder of either kind of files, a scene with segmentations/, a folder with
    label/<scene>/, or a scene beside label/, as LERF-OVS is released.

    Without `scene` it is the one of root's name, or the only one.

    Raises:
        FileNotFoundError: there are no labels.
        ValueError: there are several scenes and none is named, or a file is malformed.
    """
    root = Path(root)
    own = root.resolve().name
    candidates = (
        [] if scene is None else [root / "label" / scene, root / scene, root / scene / "segmentations"]
    )
    if scene in (None, own):
        candidates += [
            root,
            root / "segmentations",
            root / "label" / own,
            root.resolve().parent / "label" / own,
        ]
    for folder in candidates:
        if (folder / CLASSES).is_file():
            return _open_3d_ovs(folder)
        if _frames(folder):
            return _open_lerf_ovs(folder)
    if scene is None:
        inside = sorted(path for base in (root / "label", root) for path in _folders(base) if _frames(path))
        if len(inside) == 1:
            return _open_lerf_ovs(inside[0])
        if inside:
            raise ValueError(
                f"{root} holds labels of several scenes, {', '.join(p.name for p in inside)}: name one"
            )
    of_scene = "" if scene is None else f" of scene {scene}"
    raise FileNotFoundError(
        f"{root} holds no labels{of_scene}: neither label/<scene>/frame_*.json nor segmentations/{CLASSES}"
    )


def view_of(stem: str, stems: Sequence[str]) -> int | None:
    """The index in `stems`, of images in any order, of the image that labels `stem` are of, or None.

    It is the image of that stem. If no image is named in that way at all, frame_00041 is the 41st by name and
    17 the 18th, which is what the released evaluations of LERF-OVS and 3D-OVS always take; if some are, the
    image is missing (a pose was not found, say), and counting would give a wrong one.
    """
    if stem in stems:
        return list(stems).index(stem)
    if frame := _FRAME.fullmatch(stem):
        number, named = int(frame[1]) - 1, any(_FRAME.fullmatch(s) for s in stems)
    elif stem.isdecimal():
        same = [i for i, s in enumerate(stems) if s.isdecimal() and int(s) == int(stem)]
        if same:  # 7 and 07
            return same[0] if len(same) == 1 else None
        number, named = int(stem), any(s.isdecimal() for s in stems)
    else:
        return None
    if named or not 0 <= number < len(stems):
        return None
    return list(stems).index(sorted(stems)[number])


# -------------------------------------------------------------------------------------------------- LERF-OVS


class _Object(NamedTuple):
    category: str
    polygon: np.ndarray  # int64 [n, 2] of (x, y)
    box: tuple[float, ...]


class _Frame(NamedTuple):
    height: int
    width: int
    objects: list[_Object]


def _frames(folder: Path) -> list[Path]:
    return sorted(folder.glob("frame_*.json")) if folder.is_dir() else []


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _open_lerf_ovs(folder: Path) -> OpenVocabLabels:
    frames = {path.stem: _read_frame(path) for path in _frames(folder)}
    prompts = sorted({thing.category for frame in frames.values() for thing in frame.objects})
    return OpenVocabLabels(
        folder, "lerf-ovs", list(frames), prompts, {}, lambda stem: _truths_of_frame(frames[stem])
    )


def _read_frame(path: Path) -> _Frame:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        height, width = (_whole(values["info"][key]) for key in ("height", "width"))
        objects = [_read_object(entry) for entry in values["objects"]]
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a frame's labels in json ({error})") from None
    if not (1 <= height <= _LARGEST and 1 <= width <= _LARGEST):
        raise ValueError(f"{path} must be of an image of 1 to {_LARGEST} pixels, but says {width} x {height}")
    return _Frame(height, width, objects)


def _read_object(entry: Any) -> _Object:
    category = entry["category"]
    if not isinstance(category, str):
        raise TypeError(f"category {category!r} is not a text")
    polygon = np.array(entry["segmentation"], dtype=np.float64)
    box = np.array(entry["bbox"], dtype=np.float64)
    if polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) == 0:
        raise ValueError(f"the segmentation of {category!r} is not one polygon [[x, y], …]")
    if not (np.abs(polygon) <= _FARTHEST).all():
        raise ValueError(f"the segmentation of {category!r} has vertices beyond {_FARTHEST} pixels")
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError(f"the bbox of {category!r} is not [x1, y1, x2, y2]")
    # towards zero, as the released code makes int32 of them
    return _Object(category, polygon.astype(np.int64), tuple(box.tolist()))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or int(value) != value:
        raise TypeError(f"{value!r} is not a whole number")
    return int(value)


def _truths_of_frame(frame: _Frame) -> list[QueryTruth]:
    """Objects of one category are one truth: all their pixels, each one's box."""
    truths = []
    for category in dict.fromkeys(thing.category for thing in frame.objects):
        things = [thing for thing in frame.objects if thing.category == category]
        mask = np.zeros((frame.height, frame.width), dtype=bool)
        for thing in things:
            mask |= polygon_mask(thing.polygon, frame.height, frame.width)
        truths.append(
            QueryTruth(category, torch.from_numpy(mask), torch.tensor([thing.box for thing in things]))
        )
    return truths


def polygon_mask(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool [height, width]: the pixels in a polygon of whole vertices [n, 2] (x, y), its boundary included.

    Pixel for pixel what cv2.fillPoly fills: rows between pairs of crossings (even-odd), then each side as a
    line of Bresenham's. What is outside the image is cut off, as if the polygon had been drawn on a larger
    one. OpenCV cuts the sides first, which bends them within the image, too, and not alike in all versions.

    Raises ValueError if points are not [n, 2] whole numbers of at most 10⁶.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 2 or points.dtype.kind not in "iu":
        raise ValueError(f"points must be [n, 2] whole numbers, but are {points.dtype} {list(points.shape)}")
    points = points.astype(np.int64)
    if (np.abs(points) > _FARTHEST).any():
        raise ValueError(f"points must lie within {_FARTHEST} pixels, but reach {np.abs(points).max()}")
    sides = np.stack((points, np.roll(points, -1, axis=0)), axis=1)  # [n, 2 ends, 2]
    mask = _inside(sides, height, width)
    for start, end in sides:
        x, y = _line(start, end, height, width)
        mask[y, x] = True
    return mask


def _inside(sides: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool [height, width]: between the 1st and 2nd, 3rd and 4th, … crossing of a row with the sides."""
    one = (
        1 << 16
    )  # crossings are in 16 binary places: where one misses a pixel by that, the side's line has it
    rows, crossings = [], []
    for (x0, y0), (x1, y1) in sides.tolist():
        if y0 == y1:
            continue
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        row = np.arange(max(y0, 0), min(y1, height))  # the lower end belongs to the next side
        rows.append(row)
        crossings.append(x0 * one + (row - y0) * ((x1 - x0) * one // (y1 - y0)))
    change = np.zeros((height, width + 1), dtype=np.int64)  # in the number of spans that cover a pixel
    if rows:
        row, x = np.concatenate(rows), np.concatenate(crossings)
        order = np.lexsort((x, row))
        row, left, right = row[order][::2], x[order][::2], x[order][1::2]
        first = np.clip(-(-left // one), 0, width)
        after = np.maximum(np.clip(right // one + 1, 0, width), first)  # a span between two pixels is empty
        np.add.at(change, (row, first), 1)
        np.add.at(change, (row, after), -1)
    return change.cumsum(axis=1)[:, :width] > 0


def _line(start: np.ndarray, end: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y), the pixels in the image of the 8-connected line from the left one of both ends to the other.

    A step along the longer axis is one pixel; along the other the line is at i · minor / major, where halves
    are rounded towards the start.
    """
    if start[0] > end[0]:
        start, end = end, start
    reach, sign = np.abs(end - start), np.sign(end - start)
    long = int(reach[1] > reach[0])
    size = (width, height)
    # of the steps only those at which the longer axis is in the image
    bounds = (
        sorted(sign[long] * (edge - start[long]) for edge in (0, size[long] - 1)) if reach[long] else [0, 0]
    )
    i = np.arange(max(bounds[0], 0), min(bounds[1], reach[long]) + 1)
    across = (2 * reach[1 - long] * i + reach[long] - 1) // (2 * reach[long]) if reach[long] else i
    at = [i, i]
    at[long], at[1 - long] = start[long] + sign[long] * i, start[1 - long] + sign[1 - long] * across
    keep = (at[0] >= 0) & (at[0] < width) & (at[1] >= 0) & (at[1] < height)
    return at[0][keep], at[1][keep]


# ---------------------------------------------------------------------------------------------------- 3D-OVS


def _open_3d_ovs(folder: Path) -> OpenVocabLabels:
    try:
        lines = (folder / CLASSES).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{folder / CLASSES} is not a text") from None
    prompts = sorted(line.strip() for line in lines if line.strip())
    if not prompts:
        raise ValueError(f"{folder / CLASSES} lists no prompts")
    for prompt, following in zip(prompts, prompts[1:] + [""]):
        if prompt == following:
            raise ValueError(f"{folder / CLASSES} lists {prompt!r} twice")
        if "/" in prompt:
            raise ValueError(f"{folder / CLASSES} lists {prompt!r}, which cannot be the name of a file")
    views = sorted(path.name for path in _folders(folder) if any(path.glob("*.png")))
    if not views:
        raise FileNotFoundError(f"{folder} has no views, which are folders of png")
    kinds = _read_kinds(folder / QUERIES, prompts)
    return OpenVocabLabels(folder, "3d-ovs", views, prompts, kinds, partial(_truths_of_view, folder, prompts))


def _read_kinds(path: Path, prompts: list[str]) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        kinds = {prompt: entry["kind"] for prompt, entry in values.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f'{path} must be {{"<prompt>": {{"kind": …}}}} in json') from None
    for prompt, kind in kinds.items():
        if kind not in KINDS:
            raise ValueError(
                f"{path}: the kind of {prompt!r} must be one of {', '.join(KINDS)}, but is {kind!r}"
            )
        if prompt not in prompts:
            raise ValueError(f"{path} has {prompt!r}, which {CLASSES} does not list")
    return kinds


def _truths_of_view(folder: Path, prompts: list[str], view: str) -> list[QueryTruth]:
    """Of the prompts that have a file. The released scenes have all; a view may ask for fewer."""
    files = {path.stem: path for path in sorted((folder / view).glob("*.png"))}
    missing = [prompt for prompt in prompts if prompt not in files]
    unknown = [name for name in files if name not in prompts]
    if missing and unknown:  # most likely one and the same, misspelt
        raise ValueError(
            f"{folder / view} has no {missing[0]}.png, but a {unknown[0]}.png, which {CLASSES} does not list"
        )
    truths: list[QueryTruth] = []
    for prompt in prompts:
        if prompt not in files:
            continue
        mask = _read_png(files[prompt])
        if truths and mask.shape != truths[0].mask.shape:
            raise ValueError(
                f"{files[prompt]} is {list(mask.shape)}, "
                f"but {truths[0].prompt}.png beside it {list(truths[0].mask.shape)}"
            )
        truths.append(QueryTruth(prompt, mask, torch.zeros(0, 4)))
    return truths


def _read_png(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            if image.mode not in _GREY_OR_COLOUR:
                raise ValueError(f"mask {path} must be a png of 8 bits, but is {image.mode}")
            grey = np.asarray(image.convert("L"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"mask {path} is not a readable image ({error})") from None
    return torch.from_numpy(grey == 255)

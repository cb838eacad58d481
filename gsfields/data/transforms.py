"""transforms.json, in the dialects of NeRF's Blender scenes, of nerfstudio and of instant-ngp.

All state camera -> world in OpenGL axes (x right, y up, z back); see Mildenhall et al. 2020 (released data),
https://docs.nerf.studio/quickstart/data_conventions.html and instant-ngp's docs/nerf_dataset_tips.md.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gsfields.data.dataset import Dataset
from gsfields.data.frames import Frame, LoadOptions, Points, build_dataset, with_suffix
from gsfields.data.images import read_header
from gsfields.data.lens import Intrinsics, check_model
from gsfields.data.poses import OPENGL_AXES, inverse, rigid

TRAIN, HELD_OUT, SINGLE = (
    "transforms_train.json",
    ("transforms_test.json", "transforms_val.json"),
    "transforms.json",
)


def has_transforms(root: Path) -> bool:
    return any((root / name).is_file() for name in (TRAIN, SINGLE))


def load_transforms(path: Path, options: LoadOptions) -> Dataset:
    """The Dataset of a folder with transforms.json or transforms_train.json, or of one such file.

    Split: of a folder with transforms_train.json, the frames of transforms_test.json are held out, or those
    of transforms_val.json if there is no test file (with both, val is not read). Of a single file with
    train_filenames, test_filenames or val_filenames (nerfstudio), the frames of the test list are held out,
    or of the val list if there is none; without train_filenames all others train; frames in no list are left
    out. Otherwise `hold_out` decides.

    Values of a frame override those of the file. fl_x and fl_y win over camera_angle_x and camera_angle_y,
    fl_y defaults to fl_x, cx and cy to the middle, w and h to the image's. k1, k2, k3, p1 and p2 are undone
    (see lens.undistort). Points come from ply_file_path if it is stated. time, near with far, and mask_path
    are read. What only concerns other programs is ignored (aabb_scale, scale, offset, sharpness,
    applied_transform, depths, ...).

    Raises:
        FileNotFoundError: an image, a mask or the ply is missing.
        ValueError: unreadable json, no frames, a pose that is not rigid, an unknown camera model, and the
            like.
    """
    root = path if path.is_dir() else path.parent
    if path.is_dir() and (path / TRAIN).is_file():
        document = _Document.read(path / TRAIN)
        held_out = next((path / name for name in HELD_OUT if (path / name).is_file()), None)
        frames = document.frames()
        if held_out is not None:
            frames = _marked(frames, False) + _marked(_Document.read(held_out).frames(), True)
    else:
        document = _Document.read(path / SINGLE if path.is_dir() else path)
        frames = document.split(document.frames())
    return build_dataset(frames, options, points=document.points(), name=root.resolve().name)


def _marked(frames: list[Frame], held_out: bool) -> list[Frame]:
    for frame in frames:
        frame.held_out = held_out
    return frames


@dataclass
class _Document:
    """One json file."""

    path: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> _Document:
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}")
        try:
            values = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not readable json ({error})") from None
        if not isinstance(values, dict) or not isinstance(values.get("frames"), list):
            raise ValueError(f"{path} is not a transforms.json: it holds no list of frames")
        if not values["frames"]:
            raise ValueError(f"{path} lists no frames")
        return cls(path, values)

    def frames(self) -> list[Frame]:
        return [_Entry(self, index, entry).frame() for index, entry in enumerate(self.values["frames"])]

    def split(self, frames: list[Frame]) -> list[Frame]:
        """The frames in the file's lists of names, marked; without lists all of them, unmarked."""
        lists = {key: self._names(f"{key}_filenames") for key in ("train", "val", "test")}
        if not any(lists.values()):
            return frames
        known = {frame.name for frame in frames}
        for key, names in lists.items():
            unknown = sorted(names - known)
            if unknown:
                raise ValueError(
                    f"{key}_filenames of {self.path} names {unknown[0]!r}, which is none of the frames"
                )
        test = lists["test"] or lists["val"]
        train = lists["train"] or known - lists["val"] - lists["test"]
        return _marked([f for f in frames if f.name in train], False) + _marked(
            [f for f in frames if f.name in test], True
        )

    def _names(self, key: str) -> set[str]:
        names = self.values.get(key) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{key} of {self.path} must be a list of file names")
        return {_view_name(self.path.parent, name) for name in names}

    def points(self) -> Points | None:
        file = self.values.get("ply_file_path")
        return None if file is None else read_ply_points(self.path.parent / str(file))


@dataclass
class _Entry:
    """One element of `frames`, with the file's values behind it."""

    document: _Document
    index: int
    entry: Any

    def frame(self) -> Frame:
        if not isinstance(self.entry, dict) or not isinstance(self.entry.get("file_path"), str):
            raise ValueError(f"frame {self.index} of {self.document.path} has no file_path")
        if "transform_matrix" not in self.entry:
            raise ValueError(f"{self.owner} has no transform_matrix")
        root = self.document.path.parent
        photo = with_suffix(root / _posix(self.entry["file_path"]))
        viewmat = inverse(rigid(self.entry["transform_matrix"], self.owner) @ OPENGL_AXES)
        mask = self.entry.get("mask_path")
        return Frame(
            name=_view_name(root, self.entry["file_path"]),
            folder=photo.parent,
            file=photo.name,
            viewmat=viewmat,
            lens=self.lens(photo),
            mask_path=None if mask is None else root / _posix(str(mask)),
            time=self.number("time"),
            bounds=self.bounds(),
        )

    @property
    def owner(self) -> str:
        return f"frame {self.entry['file_path']} of {self.document.path}"

    def lens(self, photo: Path) -> Intrinsics:
        self.check_camera_model()
        width, height = self.number("w"), self.number("h")
        if width is None or height is None:
            width, height = read_header(photo)[:2]
        if width != int(width) or height != int(height):
            raise ValueError(f"{self.owner} states a size of {width}x{height}, which must be whole pixels")
        fx = self.focal("fl_x", "camera_angle_x", width)
        fy = self.focal("fl_y", "camera_angle_y", height)
        fx, fy = (fy if fx is None else fx), (fx if fy is None else fy)
        if fx is None or fy is None:
            raise ValueError(f"{self.owner} states neither fl_x nor camera_angle_x")
        cx, cy = self.number("cx"), self.number("cy")
        distortion = {key: self.number(key) or 0.0 for key in ("k1", "k2", "k3", "p1", "p2")}
        try:
            return Intrinsics(
                width=int(width),
                height=int(height),
                fx=fx,
                fy=fy,
                cx=width / 2 if cx is None else cx,
                cy=height / 2 if cy is None else cy,
                **distortion,
            )
        except ValueError as error:
            raise ValueError(f"{self.owner}: {error}") from None

    def check_camera_model(self) -> None:
        """Raise ValueError for lenses that cannot be undistorted here."""
        try:
            check_model(str(self.look_up("camera_model", "OPENCV")))
        except ValueError as error:
            raise ValueError(f"{self.owner}: {error}") from None
        if self.look_up("is_fisheye", False):
            raise ValueError(f"{self.owner} is a fisheye image, which is not supported")
        if self.number("k4"):
            raise ValueError(
                f"{self.owner} has k4 = {self.number('k4')}, but only k1, k2, k3, p1 and p2 are supported"
            )

    def focal(self, focal: str, angle: str, size: float) -> float | None:
        """Focal length in pixels, stated or from the angle of view; None if the json has neither."""
        for values in (self.entry, self.document.values):
            if values.get(focal) is not None:
                return self.number(focal, values)
            if values.get(angle) is not None:
                radians = self.number(angle, values)
                assert radians is not None
                if not 0 < radians < math.pi:
                    raise ValueError(f"{angle} of {self.owner} must lie in (0, pi), but is {radians}")
                return 0.5 * size / math.tan(0.5 * radians)
        return None

    def bounds(self) -> tuple[float, float] | None:
        near, far = self.number("near"), self.number("far")
        if near is None or far is None:
            return None
        if not 0 < near < far:
            raise ValueError(f"{self.owner} must have 0 < near < far, but has {near} and {far}")
        return near, far

    def look_up(self, key: str, default: Any = None) -> Any:
        value = self.entry.get(key)
        value = self.document.values.get(key) if value is None else value
        return default if value is None else value

    def number(self, key: str, values: dict[str, Any] | None = None) -> float | None:
        value = self.look_up(key) if values is None else values[key]
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{key} of {self.owner} must be a finite number, but is {value!r}")
        return float(value)


def _posix(file_path: str) -> str:
    return file_path.replace("\\", "/")


def _view_name(root: Path, file_path: str) -> str:
    """The path below `root`, with its suffix, but without a leading images/ so as to agree with COLMAP's."""
    path = with_suffix(root / _posix(file_path))
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    return relative.as_posix().removeprefix("images/")


def read_ply_points(path: Path) -> Points:
    """Positions and colours, if there are any, of the vertices of a ply; whole numbers are divided by 255.

    Raises FileNotFoundError if there is no such file, ValueError if it is no ply with vertices x, y and z.
    """
    from plyfile import PlyData, PlyParseError

    if not path.is_file():
        raise FileNotFoundError(f"point cloud {path} is missing")
    try:
        data = PlyData.read(str(path))
    except (PlyParseError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable ply file ({error})") from None
    names = {prop.name for prop in data["vertex"].properties} if "vertex" in data else set()
    if not {"x", "y", "z"} <= names:
        raise ValueError(f"{path} has no vertices with x, y and z")
    vertex = data["vertex"]
    positions = np.stack([np.asarray(vertex[axis], dtype=np.float64) for axis in "xyz"], axis=1)
    if not {"red", "green", "blue"} <= names:
        return Points(positions)
    colors = np.stack([np.asarray(vertex[channel]) for channel in ("red", "green", "blue")], axis=1)
    return Points(positions, colors / 255 if colors.dtype.kind in "ui" else colors.clip(0, 1))

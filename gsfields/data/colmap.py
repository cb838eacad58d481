"""COLMAP projects: the sparse model, binary or text, and the photos it was made from.

Formats: https://colmap.github.io/format.html. COLMAP's axes (world -> camera, x right, y down, z forward) and
pixel centres (+0.5) are ours.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gsfields.data.dataset import Dataset
from gsfields.data.frames import Frame, LoadOptions, Points, build_dataset
from gsfields.data.lens import CAMERA_MODELS, Intrinsics
from gsfields.data.poses import from_quaternion

MODEL_FOLDERS = ("sparse/0", "sparse", ".")


@dataclass
class ColmapImage:
    """A registered photo: its pose, world -> camera, and its key points."""

    name: str  # path in the folder of photos
    camera_id: int
    quaternion: tuple[float, ...]  # [4] wxyz
    translation: tuple[float, ...]  # [3]
    keypoints: np.ndarray  # [P, 2] float64, pixels of the photo as taken (with distortion)
    point_ids: np.ndarray  # [P] int64, -1 where a key point belongs to no point


@dataclass
class ColmapPoints:
    """Triangulated points."""

    ids: np.ndarray  # [M] int64
    positions: np.ndarray  # [M, 3] float64, world
    colors: np.ndarray  # [M, 3] uint8
    errors: np.ndarray  # [M] float64, mean reprojection error, pixels


@dataclass
class ColmapModel:
    """A sparse model; points is None if the folder has no points3D file."""

    cameras: dict[int, Intrinsics]
    images: dict[int, ColmapImage]
    points: ColmapPoints | None


def find_model(root: Path) -> Path | None:
    """Where the model is in a COLMAP project: sparse/0, sparse or `root` itself; None if it has none."""
    folders = (root / folder for folder in MODEL_FOLDERS)
    return next((f for f in folders if (f / "cameras.bin").is_file() or (f / "cameras.txt").is_file()), None)


def load_colmap(root: Path, options: LoadOptions) -> Dataset:
    """The Dataset of a COLMAP project: a model in sparse/0, sparse or root, photos in images/.

    Photos of SIMPLE_RADIAL, RADIAL and OPENCV cameras are undistorted (see lens.undistort). All points are
    kept, whatever their reprojection error: outliers are few, and fitting removes what no image supports.

    Raises:
        FileNotFoundError: a file of the model or a photo is missing.
        ValueError: a file is truncated or malformed, a camera model is unknown, or a pose is not finite.
    """
    folder = find_model(root)
    if folder is None:
        raise FileNotFoundError(
            f"{root} holds no COLMAP model: no cameras.bin or cameras.txt in sparse/0, sparse or itself"
        )
    model = read_model(folder)
    frames = []
    for image in model.images.values():
        owner = f"image {image.name} in {folder}"
        if image.camera_id not in model.cameras:
            raise ValueError(
                f"{owner} refers to camera {image.camera_id}, which is not in the list of cameras"
            )
        viewmat = from_quaternion(image.quaternion, image.translation, owner)
        frames.append(Frame(image.name, root / "images", image.name, viewmat, model.cameras[image.camera_id]))
    points = None if model.points is None else Points(model.points.positions, model.points.colors / 255)
    return build_dataset(frames, options, points=points, name=root.resolve().name)


def read_model(folder: Path) -> ColmapModel:
    """The model in `folder`, from its .bin files if there is a cameras.bin, otherwise from its .txt files.

    Raises as `load_colmap` does.
    """
    suffix = ".bin" if (folder / "cameras.bin").is_file() else ".txt"
    files = [folder / f"{stem}{suffix}" for stem in ("cameras", "images", "points3D")]
    for file in files[:2]:
        if not file.is_file():
            raise FileNotFoundError(f"the COLMAP model in {folder} has no {file.name}")
    readers = (
        (_cameras_bin, _images_bin, _points_bin)
        if suffix == ".bin"
        else (_cameras_txt, _images_txt, _points_txt)
    )
    cameras, images = readers[0](files[0]), readers[1](files[1])
    return ColmapModel(cameras, images, readers[2](files[2]) if files[2].is_file() else None)


class _Cursor:
    """Reads little-endian values one after the other, with a sentence for a file that ends too soon."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def take(self, layout: str) -> tuple:
        try:
            values = struct.unpack_from("<" + layout, self.data, self.at)
        except struct.error:
            raise self.truncated() from None
        self.at += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: np.dtype, count: int) -> np.ndarray:
        if count * dtype.itemsize > len(self.data) - self.at:
            raise self.truncated()
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise self.truncated()
        start, self.at = self.at, end + 1
        return self.data[start:end].decode("utf-8", errors="surrogateescape")

    def truncated(self) -> ValueError:
        return ValueError(f"{self.path} is truncated: it ends at byte {len(self.data)}, within a record")


def _cameras_bin(path: Path) -> dict[int, Intrinsics]:
    names = {model_id: name for name, (model_id, _) in CAMERA_MODELS.items()}
    cursor = _Cursor(path)
    (count,) = cursor.take("Q")
    cameras = {}
    for _ in range(count):
        camera_id, model_id, width, height = cursor.take("IiQQ")
        model = names.get(model_id, f"number {model_id}")
        parameters = cursor.take(f"{len(CAMERA_MODELS[model][1])}d") if model in CAMERA_MODELS else ()
        cameras[camera_id] = _camera(path, camera_id, model, width, height, parameters)
    return cameras


def _camera(path: Path, camera_id: int, model: str, width: int, height: int, parameters: tuple) -> Intrinsics:
    try:
        return Intrinsics.from_model(model, width, height, parameters)
    except ValueError as error:
        raise ValueError(f"camera {camera_id} of {path}: {error}") from None


_KEYPOINT = np.dtype([("xy", "<f8", 2), ("point", "<i8")])


def _images_bin(path: Path) -> dict[int, ColmapImage]:
    cursor = _Cursor(path)
    (count,) = cursor.take("Q")
    images = {}
    for _ in range(count):
        image_id, *pose, camera_id = cursor.take("I7dI")
        name = cursor.text()
        keypoints = cursor.array(_KEYPOINT, cursor.take("Q")[0])
        images[image_id] = ColmapImage(
            name, camera_id, tuple(pose[:4]), tuple(pose[4:]), keypoints["xy"], keypoints["point"]
        )
    return images


_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])
_TRACK_BYTES = 8  # of one element: image id and key point index


def _points_bin(path: Path) -> ColmapPoints:
    cursor = _Cursor(path)
    (count,) = cursor.take("Q")
    if count * _POINT.itemsize > len(cursor.data):
        raise cursor.truncated()
    # Records vary in length, so one pass hops from track length to track length; numpy then takes all fixed
    # parts.
    starts, end = [], len(cursor.data) - _POINT.itemsize
    length_at, read_length = _POINT.fields["track"][1], struct.Struct("<Q").unpack_from  # type: ignore[index]
    at = cursor.at
    for _ in range(count):
        starts.append(at)
        if at > end:
            raise cursor.truncated()
        at += _POINT.itemsize + _TRACK_BYTES * read_length(cursor.data, at + length_at)[0]
    if at > len(cursor.data):
        raise cursor.truncated()
    raw = np.frombuffer(cursor.data, np.uint8)
    records = raw[np.array(starts, dtype=np.int64)[:, None] + np.arange(_POINT.itemsize)].view(_POINT)[:, 0]
    return ColmapPoints(records["id"].astype(np.int64), records["xyz"], records["rgb"], records["error"])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that are no comments."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file") from None
    return (
        (n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if not line.lstrip().startswith("#")
    )


def _malformed(path: Path, number: int, expected: str) -> ValueError:
    return ValueError(f"line {number} of {path} is not '{expected}'")


def _cameras_txt(path: Path) -> dict[int, Intrinsics]:
    cameras = {}
    for number, line in _lines(path):
        if not line:
            continue
        try:
            camera_id, model, width, height, *parameters = line.split()
            values = (int(camera_id), model, int(width), int(height), tuple(map(float, parameters)))
        except ValueError:
            raise _malformed(path, number, "CAMERA_ID MODEL WIDTH HEIGHT PARAMETERS") from None
        cameras[values[0]] = _camera(path, *values)
    return cameras


def _images_txt(path: Path) -> dict[int, ColmapImage]:
    """Two lines an image: the pose, then the key points, which may be none (an empty line)."""
    images = {}
    lines = _lines(path)
    for number, line in lines:
        if not line:
            continue
        try:
            image_id, *pose, camera_id, name = line.split(maxsplit=9)
            quaternion, translation = tuple(map(float, pose[:4])), tuple(map(float, pose[4:]))
            ids = int(image_id), int(camera_id)
            if len(translation) != 3:
                raise ValueError
        except ValueError:
            raise _malformed(path, number, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME") from None
        number, line = next(lines, (number, ""))
        try:
            keypoints = np.array(line.split(), dtype=np.float64).reshape(-1, 3)
        except ValueError:
            raise _malformed(path, number, "X Y POINT3D_ID ...") from None
        images[ids[0]] = ColmapImage(
            name, ids[1], quaternion, translation, keypoints[:, :2], keypoints[:, 2].astype(np.int64)
        )
    return images


def _points_txt(path: Path) -> ColmapPoints:
    rows = []
    for number, line in _lines(path):
        if not line:
            continue
        head = line.split(maxsplit=8)[:8]  # the track, which may be long, is not needed
        try:
            rows.append((int(head[0]), *map(float, head[1:4]), *map(int, head[4:7]), float(head[7])))
        except (ValueError, IndexError):
            raise _malformed(path, number, "POINT3D_ID X Y Z R G B ERROR TRACK") from None
    table = np.array(rows, dtype=np.float64).reshape(-1, 8)
    ids = np.array([row[0] for row in rows], dtype=np.int64)
    return ColmapPoints(ids, table[:, 1:4], table[:, 4:7].astype(np.uint8), table[:, 7])

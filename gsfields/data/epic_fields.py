"""EPIC Fields (Tschernezki et al. 2023, https://epic-kitchens.github.io/epic-fields): one json per video.

    {"camera": {"model": "OPENCV", "width": 456, "height": 256, "params": [fx, fy, cx, cy, k1, k2, p1, p2]},
     "images": {"frame_0000000001.jpg": [qw, qx, qy, qz, tx, ty, tz], ...},
     "points": [[x, y, z, r, g, b], ...]}

Poses are world -> camera in COLMAP's axes, which are ours; the scale is arbitrary. Frames that are not listed
were not registered. In an older dialect images is a list of [qw, ..., tz, name].
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gsfields.data.dataset import Dataset
from gsfields.data.frames import Frame, LoadOptions, Points, build_dataset
from gsfields.data.images import read_header
from gsfields.data.lens import Intrinsics
from gsfields.data.motion_masks import fits
from gsfields.data.poses import from_quaternion
from gsfields.data.tar_frames import TarFrames

VISOR_MAPPING = "frame_mapping_train_val.json"
_NOT_VIDEOS = ("transforms", "meta", "frame_mapping", "objects")  # beginnings of names of other json files


@dataclass(frozen=True)
class VisorMapping:
    """Which image an annotation of VISOR shows: VISOR extracted the frames anew, so its numbers differ.

    `P01_01_frame_0000000140` of VISOR is, say, `frame_0000000138` of EPIC-KITCHENS and EPIC Fields.
    """

    frames: dict[str, dict[str, str]]  # video -> stem of VISOR -> stem of EPIC

    @classmethod
    def read(cls, path: str | Path) -> VisorMapping:
        """From frame_mapping_train_val.json: {video: {"P01_01_frame_0000000140.jpg": "frame_....jpg"}}."""
        values = _read_json(Path(path))
        if not isinstance(values, dict) or not all(isinstance(names, dict) for names in values.values()):
            raise ValueError(
                f"{path} is not a mapping of VISOR's frames: it must be {{video: {{name: name}}}}"
            )
        return cls(
            {
                video: {Path(visor).stem: Path(epic).stem for visor, epic in names.items()}
                for video, names in values.items()
            }
        )

    @classmethod
    def beside(cls, root: Path) -> VisorMapping | None:
        """That of the file frame_mapping_train_val.json in `root`, if there is one."""
        return cls.read(root / VISOR_MAPPING) if (root / VISOR_MAPPING).is_file() else None

    def epic_stem(self, video: str, visor_stem: str) -> str:
        """The EPIC frame that a VISOR name stands for; the name itself if it is none of VISOR's."""
        return self.frames.get(video, {}).get(visor_stem, visor_stem)

    def visor_stems(self, video: str, epic_stem: str) -> tuple[str, ...]:
        """The VISOR names of an EPIC frame: usually one or none."""
        return self._inverse.get(video, {}).get(epic_stem, ())

    @cached_property
    def _inverse(self) -> dict[str, dict[str, tuple[str, ...]]]:
        inverse: dict[str, dict[str, tuple[str, ...]]] = {}
        for video, names in self.frames.items():
            of_video = inverse.setdefault(video, {})
            for visor, epic in names.items():
                of_video[epic] = (*of_video.get(epic, ()), visor)
        return inverse


def mask_names(video: str, stem: str, visor: VisorMapping | None) -> tuple[str, ...]:
    """Names, besides its own, that the mask of a frame may have in a folder of masks: in a subfolder of the
    video, and by VISOR's ids.
    """
    return (f"{video}/{stem}", *(() if visor is None else visor.visor_stems(video, stem)))


def find_video(root: Path) -> Path | None:
    """The json of the one video in a folder, None if there is none.

    Raises ValueError if there are several.
    """
    candidates = (path for path in sorted(root.glob("*.json")) if not path.stem.startswith(_NOT_VIDEOS))
    videos = [path for path in candidates if is_video(path)]
    if len(videos) > 1:
        raise ValueError(f"{root} holds {len(videos)} videos: name the json of one, such as {videos[0]}")
    return videos[0] if videos else None


def is_video(path: Path) -> bool:
    """Whether a json is a video of EPIC Fields."""
    try:
        values = _read_json(path)
    except ValueError:
        return False
    return isinstance(values, dict) and {"camera", "images"} <= values.keys()


def load_epic_fields(path: Path, options: LoadOptions) -> Dataset:
    """The Dataset of one video's json, whose name without suffix is the video's id.

    Photos are looked for beside it, in the first of these that holds the first listed frame: the folders
    frames/, rgb_frames/, images/, {participant}/rgb_frames/, EpicKitchens-100/{participant}/rgb_frames/ and
    the json's own; in each, a subfolder of the video's id, an uncompressed tar of that name (read in place,
    never extracted), or the folder itself. Where the photos are of another size than the camera's, the camera
    is scaled. Only one photo is opened; the others are checked when they are decoded.

    A view's time is its frame number. Split: where split/test.json or split/val.json, beside the json or its
    folder, lists the video, all frames of its test lists are held out and those of its val lists left out, as
    in the benchmark's task of new views; otherwise `hold_out` decides. With split_every = 0 every frame is
    for training, as in its task of moving objects (UDOS), whose models see the test frames.

    Motion masks may lie in a subfolder of the video's id, and be named by VISOR's frame ids if
    frame_mapping_train_val.json lies beside the json.

    Raises:
        FileNotFoundError: the photos, or some, are missing.
        ValueError: the json is malformed, or the split leaves nothing to train on.
    """
    values = _read_json(path)
    if not (isinstance(values, dict) and {"camera", "images"} <= values.keys()):
        raise ValueError(f"{path} is not a video of EPIC Fields: it must hold camera and images")
    lens = _lens(values["camera"], path)
    poses = dict(_poses(values["images"], path))
    if not poses:
        raise ValueError(f"{path} lists no frames")
    video, root = path.stem, path.parent
    folder = _photo_folder(root, video, min(poses))
    lens = _at_photo(lens, folder, min(poses))
    visor = VisorMapping.beside(root)
    held_out = {} if options.split_every == 0 else _held_out(root, video)
    frames = [
        Frame(
            name,
            folder,
            name,
            viewmat,
            lens,
            time=_number(name),
            held_out=name in held_out["test"] if held_out else None,
            aliases=mask_names(video, Path(name).stem, visor),
        )
        for name, viewmat in sorted(poses.items())
        if not held_out or name not in held_out["val"]
    ]
    if held_out and all(frame.held_out for frame in frames):
        raise ValueError(
            f"split/test.json holds out all {len(frames)} frames of {video}: use split_every=0 to train on all"
        )
    points = _points(values.get("points"), path)
    return build_dataset(frames, options, points=points, name=video, uniform=True)


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable json ({error})") from None


def _lens(camera: Any, path: Path) -> Intrinsics:
    try:
        return Intrinsics.from_model(
            camera["model"], int(camera["width"]), int(camera["height"]), camera["params"]
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the camera of {path} must have model, width, height and params ({error})"
        ) from None
    except ValueError as error:
        raise ValueError(f"the camera of {path}: {error}") from None


def _poses(images: Any, path: Path) -> Iterable[tuple[str, np.ndarray]]:
    """(frame's name, world -> camera) in either dialect."""
    if isinstance(images, list):
        rows = [(row[-1], row[:-1]) if isinstance(row, list) and row else (None, row) for row in images]
    elif isinstance(images, dict):
        rows = list(images.items())
    else:
        raise ValueError(f"images of {path} must map names to poses, but is a {type(images).__name__}")
    for name, row in rows:
        if not (isinstance(name, str) and isinstance(row, list) and len(row) == 7):
            raise ValueError(
                f"an image of {path} must be seven numbers and a name, but one is {name!r}: {row!r}"
            )
        owner = f"image {name} in {path}"
        try:
            quaternion, translation = [float(v) for v in row[:4]], [float(v) for v in row[4:]]
        except (TypeError, ValueError):
            raise ValueError(f"the pose of {owner} must be seven numbers, but is {row}") from None
        yield name, from_quaternion(quaternion, translation, owner)


def _points(points: Any, path: Path) -> Points | None:
    if not points:
        return None
    try:
        rows = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        rows = np.empty(0)
    if rows.ndim != 2 or rows.shape[1] not in (3, 6):
        raise ValueError(f"points of {path} must be rows of x, y, z, r, g, b")
    return Points(rows[:, :3], (rows[:, 3:] / 255).clip(0, 1) if rows.shape[1] == 6 else None)


def _photo_folder(root: Path, video: str, first: str) -> Path | TarFrames:
    """The folder or tar with the frames; see load_epic_fields."""
    participant = video.split("_")[0]
    bases = ("frames", "rgb_frames", "images")
    deeper = (f"{participant}/rgb_frames", f"EpicKitchens-100/{participant}/rgb_frames", ".")
    for base in (root / name for name in (*bases, *deeper)):
        tar = base / f"{video}.tar"
        if (base / video / first).is_file():
            return base / video
        if tar.is_file():
            return TarFrames(tar)
        if (base / first).is_file():
            return base
    raise FileNotFoundError(
        f"the frames of {video} are missing: {first} is neither in {root / 'frames'} nor in rgb_frames, "
        f"and there is no {video}.tar"
    )


def _at_photo(lens: Intrinsics, folder: Path | TarFrames, first: str) -> Intrinsics:
    """The lens at the size of the photos, if that is the same picture in another size."""
    photo = folder / first if isinstance(folder, Path) else folder.find(first)
    if photo is None:
        return lens  # the frame will be reported as missing
    width, height, _ = read_header(photo)
    return lens.resized(width, height) if fits((width, height), (lens.width, lens.height)) else lens


def _number(name: str) -> float | None:
    digits = Path(name).stem.rpartition("_")[2]
    return float(digits) if digits.isascii() and digits.isdigit() else None


def _held_out(root: Path, video: str) -> dict[str, set[str]]:
    """{"test": names, "val": names} of the benchmark's split; empty if it does not know the video."""
    folder = next((f for f in (root / "split", root.parent / "split") if f.is_dir()), None)
    if folder is None:
        return {}
    names: dict[str, set[str]] = {"test": set(), "val": set()}
    for part, held in names.items():
        path = folder / f"{part}.json"
        values = _read_json(path) if path.is_file() else {}
        lists = values.get(video, {}) if isinstance(values, dict) else None
        if isinstance(lists, dict):
            lists = list(lists.values())
        if not isinstance(lists, list) or not all(isinstance(entry, list) for entry in lists):
            raise ValueError(f"{path} must map videos to lists of frames")
        held.update(name for entry in lists for name in entry)
    return names if names["test"] else {}

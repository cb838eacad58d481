"""The annotations of UDOS on disk: which pixels move, by frame."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from gsfields.data.epic_fields import VisorMapping

MOTIONS = ("dynamic", "semistatic", "dynamic_semistatic")
AMBIGUOUS, BODY = 2, 3  # labels beside 0 and 1


def as_labels(png: np.ndarray) -> np.ndarray:
    """The labels 0, 1, 2 and 3, uint8 [H, W], in an annotation as its png holds it: pixels [H, W].

    A png whose highest value is 255 is a picture of a mask and is divided by 255 (values between, of softened
    borders, are rounded).

    Raises ValueError if there are other values.
    """
    png = np.asarray(png)
    if png.ndim != 2:
        raise ValueError(f"an annotation must be [H, W], but is {list(png.shape)}")
    if png.size and png.max() == 255:
        return (png >= 128).astype(np.uint8)
    if png.size and (png.max() > BODY or png.min() < 0):
        raise ValueError(f"an annotation holds labels 0 to {BODY}, or 0 and 255, but this one {png.max()}")
    return png.astype(np.uint8)


@dataclass(frozen=True)
class Annotations:
    """The annotated frames of one video."""

    video: str
    files: dict[str, dict[str, Path]]  # motion -> stem of the image -> png

    @classmethod
    def open(cls, data: str | Path, *, video: str | None = None, split: str = "test") -> Annotations:
        """The annotations in the folder `data`, in one of two layouts below `data`/annotations:

        {dynamic,semistatic,dynamic_semistatic}/<stem>.png: every file is an annotated frame.
        {split}_{motion}/{video}/<stem>.png, the benchmark's: the annotated frames are those that
        `data`/split/{split}.json lists as within_action of the video; every file, if there is no such list.

        `video` may be left out where there is one only. Files named by VISOR's frame ids are taken for the
        images that `data`/frame_mapping_train_val.json says they show.

        Raises:
            FileNotFoundError: there are no annotations, or that of a listed frame is missing.
            ValueError: it is not clear which video is meant, or the list does not have it.
        """
        data = Path(data)
        root = data / "annotations" if (data / "annotations").is_dir() else data
        plain = {motion: root / motion for motion in MOTIONS if (root / motion).is_dir()}
        visor = VisorMapping.beside(data)
        if plain:
            name = video or data.resolve().name
            return cls(name, {m: _named(_listing(folder), name, visor) for m, folder in plain.items()})
        folders = {m: root / f"{split}_{m}" for m in MOTIONS if (root / f"{split}_{m}").is_dir()}
        if not folders:
            raise FileNotFoundError(
                f"{data} holds no annotations: neither annotations/dynamic nor annotations/{split}_dynamic"
            )
        video = video or _only_video(next(iter(folders.values())), data)
        listed = _within_action(data, split, video)
        files = {}
        for motion, folder in folders.items():
            found = _listing(folder / video)
            if listed is not None:
                found = {stem: found.get(stem, folder / video / f"{stem}.png") for stem in listed}
            files[motion] = _named(found, video, visor)
            absent = [path for path in found.values() if not path.is_file()]
            if absent:
                raise FileNotFoundError(
                    f"annotation {absent[0]} is missing, though split/{split}.json lists it"
                )
        return cls(video, files)

    def stems(self) -> list[str]:
        """The images with an annotation of any kind, in name order."""
        return sorted(set().union(*self.files.values()))

    def motions(self, stem: str) -> list[str]:
        """The kinds of motion that an image is annotated for."""
        return [motion for motion, files in self.files.items() if stem in files]

    def read(self, motion: str, stem: str) -> np.ndarray:
        """Labels 0 to 3, uint8 [H, W]; see as_labels."""
        path = self.files[motion][stem]
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image)
            # a grey mask may have been saved in colour
            return as_labels(pixels[..., 0] if pixels.ndim == 3 else pixels)
        except FileNotFoundError:
            raise FileNotFoundError(f"annotation {path} is missing") from None
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"annotation {path} is not a readable image ({error})") from None
        except ValueError as error:
            raise ValueError(f"annotation {path}: {error}") from None

    def size(self, stem: str) -> tuple[int, int]:
        """(width, height) of an image's annotations."""
        with Image.open(self.files[self.motions(stem)[0]][stem]) as image:
            return image.size


def _listing(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.png")) if not path.name.startswith(".")}


def _named(files: dict[str, Path], video: str, visor: VisorMapping | None) -> dict[str, Path]:
    """Files by the stem of the image they annotate."""
    if visor is None:
        return files
    return {visor.epic_stem(video, stem): path for stem, path in files.items()}


def _only_video(folder: Path, data: Path) -> str:
    videos = sorted(path.name for path in folder.iterdir() if path.is_dir())
    with_poses = [name for name in videos if (data / f"{name}.json").is_file()]
    for names in (with_poses, videos):
        if len(names) == 1:
            return names[0]
    raise ValueError(f"video must say which of the {len(videos)} videos in {folder} is meant")


def _within_action(data: Path, split: str, video: str) -> list[str] | None:
    path = next((p for p in (data / "split", data.parent / "split") if (p / f"{split}.json").is_file()), None)
    if path is None:
        return None
    listed = json.loads((path / f"{split}.json").read_text()).get(video)
    if listed is None:
        raise ValueError(f"{path / f'{split}.json'} does not list video {video}")
    return [Path(name).stem for name in listed.get("within_action", [])]

"""Language features as files: an embedding of each segment of each image, in the layout of LangSplat (Qin et
al., CVPR 2024).

`<stem>_f.npy` [n, D] holds an embedding of each segment of the image, `<stem>_s.npy` [L, H, W] the row that
each pixel belongs to, -1 = none, as floating point numbers. Segments of one level do not overlap, those of
different levels may; rows are numbered over all levels. LangSplat writes four levels; any number of them, and
any D, is read.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gsfields.data.dataset import View
from gsfields.data.motion_masks import fits
from gsfields.data.segments import names_of, photo_pixels
from gsfields.files import written_whole

FEATURES = "language_features"
SETTINGS = "settings.json"  # in that folder: what made the features, such as the model of text and images
_EMBEDDINGS, _ROWS = "_f", "_s"
_MOST_ROWS = 2**24  # float32 holds every whole number up to here
_UNIT = 1e-6  # lengths this close to 1 are left as they are, so that what was saved is read back to the bit


class ViewFeatures(NamedTuple):
    """The segments of one image and what they mean."""

    embeddings: Tensor  # [n, D] float32
    segments: Tensor  # [L, H, W] int32, rows of embeddings, -1 = none


class FeatureSource:
    """Language features of images by stem, read when asked for.

    Raises FileNotFoundError if there is no folder `root`.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"the folder of language features {self.root} does not exist")
        found = {
            kind: {
                path.relative_to(self.root).as_posix().removesuffix(f"{kind}.npy"): path
                for path in self.root.rglob(f"*{kind}.npy")
                if not path.name.startswith(".")
            }
            for kind in (_EMBEDDINGS, _ROWS)
        }
        self._embeddings, self._rows = found[_EMBEDDINGS], found[_ROWS]
        # a stem of which one file is missing is listed, so that reading it says so
        self._stems = sorted({*self._embeddings, *self._rows})
        self._called = _called(self._stems)

    @property
    def stems(self) -> list[str]:
        return list(self._stems)

    @cached_property
    def dim(self) -> int:
        """D, as the first file says; every other one must have it.

        Raises ValueError if there is no file, or the first one is malformed.
        """
        if not self._embeddings:
            raise ValueError(f"{self.root} holds no language features: no <stem>{_EMBEDDINGS}.npy is in it")
        path = self._embeddings[min(self._embeddings)]
        return int(_checked(_load(path, header_only=True), path, "[n, D]").shape[1])

    @cached_property
    def levels(self) -> int:
        """The most levels of any image.

        Raises ValueError if there is no file, or one is malformed.
        """
        if not self._rows:
            raise ValueError(f"{self.root} holds no language features: no <stem>{_ROWS}.npy is in it")
        paths = self._rows.values()
        return max(len(_checked(_load(path, header_only=True), path, "[L, H, W]")) for path in paths)

    @cached_property
    def settings(self) -> dict[str, object]:
        """What settings.json in the folder says of how the features were made; empty if there is none.

        Raises ValueError if the file is no object in JSON.
        """
        path = self.root / SETTINGS
        if not path.is_file():
            return {}
        try:
            values = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise ValueError(f"{path} must be an object in JSON")
        return values

    def has(self, view: View) -> bool:
        """Whether `of` finds features of the view, whose stem need not be in `stems` if photos lie in
        subfolders.
        """
        return any(name in self._called for name in names_of(view))

    def read(self, stem: str, *, normalise: bool = True) -> ViewFeatures | None:
        """The features on the grid of their file; None where the image has none at all.

        An image in which no segment was found has embeddings [0, D] and segments that are -1 throughout.
        Embeddings that are not of length 1 are scaled to it, unless `normalise` is False: relevancy is a
        matter of angles.

        Raises ValueError if a file is unreadable or one of the two is missing, an embedding is not finite,
        zero (if it is to be normalised) or of another D than the first file's, or a row is not -1 or one of
        the embeddings'.
        """
        name = self._called.get(stem)
        if name is None:
            return None
        for files, kind in ((self._embeddings, _EMBEDDINGS), (self._rows, _ROWS)):
            if name not in files:
                raise ValueError(f"the language features of {name} in {self.root} lack {name}{kind}.npy")
        embeddings = self._read_embeddings(self._embeddings[name], normalise)
        return ViewFeatures(embeddings, _read_rows(self._rows[name], len(embeddings)))

    def of(self, view: View) -> ViewFeatures | None:
        """The features with segments [L, H, W] on the grid of view.camera, each pixel's those of the photo's
        pixel that its centre falls into, with the lens undone; None where the image has none. Beyond the
        photo's border segments are -1. Embeddings are those of the whole photo, normalised.

        Raises ValueError as `taken` does.
        """
        found = self.taken(view)
        if found is None:
            return None
        height, width = found.segments.shape[1:]
        index = photo_pixels(view, width, height)
        shown = found.segments.flatten(1)[:, index.clamp(min=0)]
        return ViewFeatures(found.embeddings, torch.where(index >= 0, shown, -1))

    def taken(self, view: View) -> ViewFeatures | None:
        """The features on the grid of their file, which shows the photo as taken; None where the image has none.

        Raises ValueError as `read` does, or if the segments are those of a photo of another shape.
        """
        name = next((name for name in names_of(view) if name in self._called), None)
        found = None if name is None else self.read(name)
        if found is None:
            return None
        height, width = found.segments.shape[1:]
        if not fits((width, height), view.file_size):
            raise ValueError(
                f"the language features of {view.name} in {self.root} are {width}x{height}, but the image is "
                f"{view.file_size[0]}x{view.file_size[1]}, which is another aspect ratio"
            )
        return found

    def _read_embeddings(self, path: Path, normalise: bool) -> Tensor:
        values = _checked(_load(path), path, "[n, D]")
        if values.shape[1] != self.dim:
            raise ValueError(
                f"{path} holds embeddings of {values.shape[1]} numbers, but the first file's have {self.dim}"
            )
        if values.dtype.kind != "f":
            raise ValueError(f"{path} must hold floating point numbers, but holds {values.dtype}")
        with np.errstate(over="ignore"):  # what float32 cannot hold is not finite
            single = values.astype(np.float32)
        if not np.isfinite(single).all():
            raise ValueError(f"{path} must hold finite numbers only")
        if normalise and len(values):
            length = np.linalg.norm(values.astype(np.float64), axis=1)
            if (zero := np.flatnonzero(length == 0)).size:
                raise ValueError(f"{path} has a zero embedding in row {zero[0]}, which has no direction")
            off = np.abs(length - 1) > _UNIT
            single[off] = (values[off] / length[off, None]).astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(single))


def _called(stems: Sequence[str]) -> dict[str, str]:
    """What views may call a stem of the folder -> the stem: itself, with _ for /, or its last part if that is
    unique (see dataset.unique_stems).
    """
    last = {stem: PurePosixPath(stem).name for stem in stems}
    often = Counter(last.values())
    called = {name: stem for stem, name in last.items() if often[name] == 1}
    called |= {stem.replace("/", "_"): stem for stem in stems}
    return called | {stem: stem for stem in stems}


def _read_rows(path: Path, count: int) -> Tensor:
    values = _checked(_load(path), path, "[L, H, W]")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{path} must hold numbers of rows, but holds {values.dtype}")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ValueError(f"{path} must hold finite numbers only")
        if (values != np.rint(values)).any():
            raise ValueError(f"{path} must hold whole numbers of rows, but holds fractions")
    low, high = values.min(), values.max()
    if low < -1 or high >= count:
        wrong = low if low < -1 else high
        raise ValueError(
            f"{path} names row {wrong:.0f}, but must hold -1 (none) or a row of its {count} embeddings"
        )
    return torch.from_numpy(values.astype(np.int32))


def _load(path: Path, header_only: bool = False) -> np.ndarray:
    """The array in an npy; if `header_only`, mapped and not read."""
    try:
        values = np.load(path, mmap_mode="r" if header_only else None, allow_pickle=False)
        if isinstance(values, np.ndarray):
            return values
        values.close()
        reason = "an npz"
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0]
    raise ValueError(f"{path} is not a readable numpy array ({reason})")


def _checked(values: np.ndarray, path: Path, shape: str) -> np.ndarray:
    """`values`, if they have the axes of `shape`, of which only the n of [n, D] may be 0."""
    axes = shape.count(",") + 1
    if values.ndim != axes or 0 in values.shape[axes == 2 :]:
        raise ValueError(f"{path} must be {shape}, but is {list(values.shape)}")
    return values


def open_features(path: str | Path) -> FeatureSource:
    """The language features in the folder `path`, or in `language_features` in it.

    Raises FileNotFoundError if there is no such folder, ValueError if neither holds any.
    """
    path = Path(path)
    root = path.parent if path.is_file() else path
    if not root.is_dir():
        raise FileNotFoundError(f"no language features at {path}: there is no such folder")
    for folder in (root / FEATURES, root):
        # not into subfolders of a dataset itself, which may hold anything
        if folder.is_dir() and (folder.name == FEATURES or any(folder.glob(f"*{_EMBEDDINGS}.npy"))):
            source = FeatureSource(folder)
            if source.stems:
                return source
    raise ValueError(
        f"{path} holds no language features: it must hold {FEATURES}, or <stem>{_EMBEDDINGS}.npy and "
        f"<stem>{_ROWS}.npy themselves"
    )


def save_features(root: str | Path, stem: str, features: ViewFeatures) -> None:
    """Write `<root>/<stem>_f.npy` and `<root>/<stem>_s.npy`, each whole or not at all, both float32 like
    LangSplat's.

    Raises FileNotFoundError if there is no folder `root`, ValueError if the embeddings are not finite numbers
    [n, D], or the segments not whole numbers [L, H, W] of their rows or -1.
    """
    embeddings, segments = (t.detach().cpu() for t in features)
    if not Path(root).is_dir():
        raise FileNotFoundError(f"the folder of language features {root} does not exist")
    if embeddings.ndim != 2 or embeddings.shape[1] == 0 or not embeddings.is_floating_point():
        raise ValueError(
            f"embeddings must be floating point [n, D], but are {embeddings.dtype} {list(embeddings.shape)}"
        )
    if not embeddings.float().isfinite().all():
        raise ValueError(f"embeddings of {stem} must be finite")
    if len(embeddings) > _MOST_ROWS:
        raise ValueError(f"embeddings must be {_MOST_ROWS} at most, but are {len(embeddings)}")
    whole = not segments.is_floating_point() and not segments.is_complex() and segments.dtype != torch.bool
    if segments.ndim != 3 or segments.numel() == 0 or not whole:
        raise ValueError(
            f"segments must be whole numbers [L, H, W], but are {segments.dtype} {list(segments.shape)}"
        )
    low, high = (int(t) for t in segments.aminmax())
    if low < -1 or high >= len(embeddings):
        raise ValueError(
            f"segments must be -1 or one of the {len(embeddings)} rows of embeddings, "
            f"but span {low} to {high}"
        )
    for kind, values in ((_EMBEDDINGS, embeddings), (_ROWS, segments)):
        path = Path(root) / f"{stem}{kind}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)  # of photos in subfolders
        with written_whole(path) as temporary:
            np.save(temporary, values.to(torch.float32).numpy())


@dataclass(frozen=True)
class TextEmbeddings:
    """Prompts with their embeddings, for use where the model that makes them is not at hand.

    Raises ValueError if there are not as many of both, a prompt is there twice, or an embedding is zero or
    not finite.
    """

    prompts: tuple[str, ...]
    embeddings: Tensor  # [n, D]

    def __post_init__(self) -> None:
        shape = list(self.embeddings.shape)
        if len(shape) != 2 or shape[0] != len(self.prompts) or shape[1] == 0:
            raise ValueError(f"embeddings must be [{len(self.prompts)}, D] like the prompts, but are {shape}")
        if twice := [prompt for prompt, often in Counter(self.prompts).items() if often > 1]:
            raise ValueError(f"every prompt must be there once, but {twice[0]!r} is there again")
        length = self.embeddings.double().norm(dim=1)
        if bad := [prompt for prompt, x in zip(self.prompts, length.tolist()) if not 0 < x < float("inf")]:
            raise ValueError(f"embeddings must be finite and not zero, but that of {bad[0]!r} is not")

    @classmethod
    def load(cls, path: str | Path) -> TextEmbeddings:
        """Of an npz with `prompts` (text) [n] and `embeddings` [n, D].

        Raises FileNotFoundError if there is no such file, ValueError if it holds anything else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"text embeddings {path} are missing")
        try:
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise ValueError("one array alone")
            with loaded:
                prompts, embeddings = loaded["prompts"], loaded["embeddings"]
            if prompts.dtype.kind != "U" or prompts.ndim != 1:
                raise ValueError(f"prompts are {prompts.dtype} {list(prompts.shape)}")
            if embeddings.dtype.kind != "f":
                raise ValueError(f"embeddings are {embeddings.dtype}")
            return cls(tuple(prompts.tolist()), torch.from_numpy(embeddings.astype(np.float32)))
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
            reason = str(error.args[0] if error.args else error).partition("\n")[0]
            raise ValueError(
                f"{path} must be an npz with prompts, text [n], and embeddings, numbers [n, D] ({reason})"
            ) from None

    def save(self, path: str | Path) -> None:
        """Write the npz that `load` reads, whole or not at all."""
        embeddings = self.embeddings.detach().cpu().float().numpy()
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez(file, prompts=np.array(self.prompts, dtype=np.str_), embeddings=embeddings)

    def of(self, prompts: Sequence[str]) -> Tensor:
        """[n, D] float32, of length 1: the embeddings of `prompts`, in their order.

        Raises ValueError if one of them is not here.
        """
        place = {prompt: i for i, prompt in enumerate(self.prompts)}
        if missing := [prompt for prompt in prompts if prompt not in place]:
            known = ", ".join(map(repr, self.prompts[:5])) + (", ..." if len(self.prompts) > 5 else "")
            raise ValueError(
                f"there is no embedding of the prompt {missing[0]!r}: there are {known or 'none at all'}"
            )
        chosen = self.embeddings[
            torch.tensor([place[prompt] for prompt in prompts], dtype=torch.long)
        ].double()
        return (chosen / chosen.norm(dim=1, keepdim=True)).float()

"""Which format a path holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gsfields.data.colmap import find_model, load_colmap
from gsfields.data.dataset import Dataset
from gsfields.data.epic_diff import META, has_epic_diff, load_epic_diff
from gsfields.data.epic_fields import find_video, is_video, load_epic_fields
from gsfields.data.frames import LoadOptions
from gsfields.data.images import CACHE_BYTES
from gsfields.data.llff import POSES, load_llff
from gsfields.data.messy_rooms import METADATA, has_messy_rooms, load_messy_rooms
from gsfields.data.panoptic_lifting import INTRINSICS, has_panoptic_lifting, load_panoptic_lifting
from gsfields.data.transforms import has_transforms, load_transforms


def load_dataset(
    path: str | Path,
    *,
    downscale: float | None = None,
    width: int | None = None,
    background: Sequence[float] = (1.0, 1.0, 1.0),
    split_every: int = 8,
    cache_bytes: int = CACHE_BYTES,
    motion_masks: str | Path | None = None,
) -> Dataset:
    """The scene in the folder `path`, in any format, or in one transforms.json, poses_bounds.npy, meta.json
    (EPIC-Diff), metadata.json (Messy Rooms) or video's json (EPIC Fields).

    In a folder the first of these is read: a COLMAP project, Panoptic Lifting's layout, metadata.json,
    transforms_train.json or transforms.json, poses_bounds.npy, meta.json, the json of the one video. Name the file
    to read another that is there as well.

    Args:
        path: the folder or file.
        downscale: make the images this many times smaller (at least 1, need not be whole). Where a folder
            such as images_4 stands beside images and fits, it is used; otherwise photos are shrunk by area as
            they are read.
        width: the width of the images in pixels, instead of downscale.
        background: the colour, three numbers in [0, 1], laid under transparent images.
        split_every: where the format does not say what is held out, every split_every-th image in name order
            is, from the first on; 0 holds out none (of EPIC Fields and EPIC-Diff, whatever the format says).
        cache_bytes: how much memory decoded images and masks may take; they are decoded when first asked for.
        motion_masks: a folder with a soft mask of what moves for each image, named after it (see
            data.motion_masks); if not given, the folder motion_masks of the dataset, if it has one. Images
            may lack one, but a folder that is named here must have one for some image.

    Raises:
        FileNotFoundError: path, or a file it refers to, does not exist.
        ValueError: no known format, or one sentence about what is wrong in it or in the arguments.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no dataset at {path}: there is no such folder or file")
    masks = _motion_masks(path, motion_masks)
    options = LoadOptions(downscale, width, background, split_every, cache_bytes, masks)  # type: ignore[arg-type]
    dataset = _load(path, options)
    if motion_masks is not None and not any(view.has_motion_mask for view in dataset.views):
        raise ValueError(
            f"motion_masks {motion_masks} holds no mask of any image: that of the first must be called "
            f"{dataset.views[0].stem}.png"
        )
    return dataset


def _motion_masks(path: Path, given: str | Path | None) -> Path | None:
    """The folder of the motion masks: the one given, or the dataset's own if there is one."""
    if given is not None:
        if not Path(given).is_dir():
            raise FileNotFoundError(f"motion_masks names the folder {given}, which does not exist")
        return Path(given)
    own = (path if path.is_dir() else path.parent) / "motion_masks"
    return own if own.is_dir() else None


def _load(path: Path, options: LoadOptions) -> Dataset:
    if path.suffix == ".json":
        if has_epic_diff(path):
            return load_epic_diff(path, options)
        if has_messy_rooms(path):
            return load_messy_rooms(path, options)
        return load_epic_fields(path, options) if is_video(path) else load_transforms(path, options)
    if path.name == POSES:
        return load_llff(path.parent, options)
    if path.is_dir() and find_model(path) is not None:
        return load_colmap(path, options)
    if has_panoptic_lifting(path):
        return load_panoptic_lifting(path, options)
    if has_messy_rooms(path / METADATA):
        return load_messy_rooms(path / METADATA, options)
    if path.is_dir() and has_transforms(path):
        return load_transforms(path, options)
    if (path / POSES).is_file():
        return load_llff(path, options)
    if has_epic_diff(path / META):
        return load_epic_diff(path / META, options)
    if path.is_dir() and (video := find_video(path)) is not None:
        return load_epic_fields(video, options)
    raise ValueError(
        f"{path} is in no known format: it must hold a COLMAP model (in sparse/0, sparse or itself), "
        f"{INTRINSICS} of Panoptic Lifting, {METADATA} of Messy Rooms, transforms.json, transforms_train.json, "
        f"{POSES}, {META} of EPIC-Diff or a video's json of EPIC Fields"
    )

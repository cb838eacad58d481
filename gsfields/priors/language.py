"""`gsfields prep language`: the segments of each image of a dataset, wholes and parts alike, and what CLIP
says of each, as files beside its images (see data.language_features).

Segments are those of Segment Anything (see priors.segments). LangSplat (Qin et al., CVPR 2024) sorts them
into three sizes and paints those of one size over each other; N2F2 (Bhalgat et al., ECCV 2024) asks for all
segments that cover a pixel, so here they are spread over as many levels as it takes for none to hide another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gsfields.data.dataset import Dataset
from gsfields.data.language_features import FEATURES, FeatureSource, ViewFeatures, save_features
from gsfields.data.load import load_dataset
from gsfields.files import written_whole
from gsfields.pictures import contact_sheet, save_png
from gsfields.priors.clip import MODEL, PRETRAINED, ClipModel, load_clip
from gsfields.priors.preparation import begun, fields_among, options_from
from gsfields.priors.segments import (
    MODELS,
    ROWS,
    Finder,
    SamConfig,
    load_network,
    mask_finder,
    photo_of,
    sheet_row,
)

PARTIAL, SHEET = f"{FEATURES}.partial", f"{FEATURES}_sheet.png"
_ARGUMENTS = ("checkpoint", "sam_model", "clip_model", "clip_pretrained", "device")

Array = np.ndarray


@dataclass(frozen=True)
class LanguagePrepConfig(SamConfig):
    """Which masks are asked for and kept; the thresholds default to LangSplat's.

    Those of SamConfig, and, for `distinct`: nms_iou, above which IoU with a better mask a mask is a
    duplicate; min_score, the least score of a mask, which is the IoU that the model predicts of it times its
    stability. batch: so many crops are embedded at once.
    """

    iou_threshold: float = 0.7
    stability: float = 0.85
    longest: int = 1080
    nms_iou: float = 0.8
    min_score: float = 0.7
    batch: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("nms_iou", "min_score"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, but is {value!r}")
        if not isinstance(self.batch, int) or isinstance(self.batch, bool) or not 1 <= self.batch <= 65536:
            raise ValueError(f"batch must be a whole number from 1 to 65536, but is {self.batch!r}")


@dataclass(frozen=True)
class LanguageSummary:
    """What `prepare_language` wrote."""

    folder: Path
    sheet: Path
    images: int
    segments: float  # mean number of segments of an image
    levels: int  # the most of any image
    covered: float  # share of all pixels that are in a segment
    empty: int  # images without any

    def __str__(self) -> str:
        return (
            f"language features of {self.images} images in {self.folder}: {self.segments:.1f} segments an image "
            f"on up to {self.levels} levels, which cover {100 * self.covered:.1f} % of the pixels, {self.empty} "
            f"images with none; pictures: {self.sheet}"
        )


def prepare_language(
    data: str | Path,
    *,
    checkpoint: str | Path | None = None,
    sam_model: str | torch.nn.Module = "vit_h",
    clip_model: str | ClipModel = MODEL,
    clip_pretrained: str | Path = PRETRAINED,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    config: LanguagePrepConfig | None = None,
    progress: bool = True,
    **options: Any,
) -> LanguageSummary:
    """Write DATA/language_features/<stem>_f.npy and <stem>_s.npy of each image of the dataset, training or
    held out, as photographed, settings.json beside them, which says by which models (clip_model and
    clip_pretrained are what load_clip takes), and DATA/language_features_sheet.png, which shows some of them.

    `sam_model` names the kind of Segment Anything's network, whose weights `checkpoint` holds, or is a
    network itself; `clip_model` is one of open_clip's, with the weights `clip_pretrained` (a tag or a file;
    see clip.load_clip), or a ClipModel. `device` is for both and defaults to a GPU if there is one, but a
    given ClipModel stays where it is. `options` set fields of `config`, such as min_area=50.

    Images are finished one by one in DATA/language_features.partial, from where a run that was broken off
    goes on; the outputs appear when all are done. Images without any segment get embeddings [0, D].

    Raises FileNotFoundError or ValueError where the dataset or weights cannot be read, or language features
    are there already and not to be overwritten; ImportError where Segment Anything or open_clip is missing.
    """
    known = fields_among(options, LanguagePrepConfig, _ARGUMENTS, "the language features")
    config = replace(config or LanguagePrepConfig(), **known)
    path = Path(data)
    root = path.parent if path.is_file() else path
    dataset = load_dataset(path, split_every=0, cache_bytes=0)
    if (root / FEATURES).exists() and not overwrite:
        raise ValueError(f"{root / FEATURES} already exists: give --overwrite to replace it")
    if isinstance(sam_model, str) and sam_model not in MODELS:
        raise ValueError(f"sam_model must be {', '.join(MODELS)}, but is {sam_model!r}")
    find = mask_finder(config, load_network(sam_model, checkpoint, device))
    clip = clip_model if isinstance(clip_model, ClipModel) else load_clip(clip_model, clip_pretrained, device)
    settings = {
        "sam_model": sam_model if isinstance(sam_model, str) else type(sam_model).__name__,
        "checkpoint": checkpoint and Path(checkpoint).name,
        **_named(clip_model, clip_pretrained),
        "dim": clip.dim,
        **asdict(config),
    }
    del settings["batch"]  # no matter for what is written, but by rounding
    partial = begun(root / PARTIAL, settings, overwrite=overwrite)
    for view in tqdm(dataset.views, disable=not progress, unit=" images"):
        if not all((partial / f"{view.stem}{kind}.npy").is_file() for kind in ("_f", "_s")):
            features = segment_features(photo_of(view, dataset, config.longest), find, clip, config)
            save_features(partial, view.stem, features)
    return _finish(root, partial, dataset, config)


def segment_features(photo: Array, find: Finder, clip: ClipModel, config: LanguagePrepConfig) -> ViewFeatures:
    """The segments of a photo, uint8 [H, W, 3], that `find` gives, and their embeddings."""
    found = find(photo)
    sizes = [int(mask["segmentation"].sum()) for mask in found]
    found = [mask for mask, size in zip(found, sizes) if size >= max(1, config.min_area)]
    found = [mask for mask in found if _score(mask) >= config.min_score]
    shared = intersections([mask["segmentation"] for mask in found])
    kept = distinct(shared, np.array([_score(mask) for mask in found]), config.nms_iou)
    masks, shared = [found[i]["segmentation"] for i in kept], shared[np.ix_(kept, kept)]
    levels = spread(shared)
    # rows go level by level, as LangSplat's, and the largest first
    order = np.lexsort((-shared.diagonal(), levels))
    segments = np.full((max(1, levels.max(initial=-1) + 1), *photo.shape[:2]), -1, np.int32)
    for row, i in enumerate(order):
        segments[levels[i]][masks[i]] = row
    embeddings = clip.images((masked_crop(photo, masks[i]) for i in order), batch=config.batch)
    return ViewFeatures(embeddings, torch.from_numpy(segments))


def intersections(masks: Sequence[Array]) -> Array:
    """int64 [n, n]: how many pixels each two of n masks, bool [H, W], none of them empty, share; on the
    diagonal, how many each has.
    """
    boxes = [_box(mask) for mask in masks]
    shared = np.zeros((len(masks), len(masks)), np.int64)
    for i, (rows, columns) in enumerate(boxes):
        for j, (r, c) in enumerate(boxes[: i + 1]):
            both = (
                slice(max(rows.start, r.start), min(rows.stop, r.stop)),
                slice(max(columns.start, c.start), min(columns.stop, c.stop)),
            )
            if both[0].start < both[0].stop and both[1].start < both[1].stop:
                shared[i, j] = shared[j, i] = np.count_nonzero(masks[i][both] & masks[j][both])
    return shared


def distinct(shared: Array, scores: Array, iou: float) -> Array:
    """The masks that are left, int64 [m] ascending, when near duplicates go: from the best score on, a mask
    is kept unless its IoU with one already kept is above `iou`.

    `shared` is as `intersections` gives it, scores [n]. The thresholds of IoU (0.8) and of scores (0.7,
    applied before) are those of LangSplat's mask NMS. Its third, by how much of a mask lies within another
    (0.5), is left out: it is against parts of wholes, which are wanted here.
    """
    size = shared.diagonal()
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        union = size[i] + size[kept] - shared[i, kept]
        if not (shared[i, kept] > iou * union).any():
            kept.append(i)
    return np.array(sorted(kept), np.int64)


def spread(shared: Array) -> Array:
    """The level of each mask, int64 [n] from 0, so that masks of one level share no pixel: from the largest
    on, a mask goes to the first level where it fits. `shared` is as `intersections` gives it.

    (Greedy colouring: at most one level more than a mask has others that it overlaps.)
    """
    levels = np.full(len(shared), -1, np.int64)
    for i in np.argsort(-shared.diagonal(), kind="stable").tolist():
        taken = set(levels[shared[i] > 0].tolist())
        levels[i] = next(level for level in range(len(shared)) if level not in taken)
    return levels


def masked_crop(photo: Array, mask: Array) -> Array:
    """uint8 [s, s, 3]: the photo, uint8 [H, W, 3], inside the tight box of the mask, bool [H, W], black
    outside the mask and where the shorter side is filled up on both ends to s, the longer one.
    """
    rows, columns = _box(mask)
    inside = np.where(mask[rows, columns, None], photo[rows, columns], np.uint8(0))
    height, width = inside.shape[:2]
    side = max(height, width)
    crop = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    crop[top : top + height, left : left + width] = inside
    return crop


def parse_options(texts: Mapping[str, str | None]) -> dict[str, Any]:
    """Options of prepare_language from texts, such as min_area "50"; names are checked there."""
    return options_from(texts, LanguagePrepConfig)


def _named(model: str | ClipModel, pretrained: str | Path) -> dict[str, str]:
    """What load_clip takes, for settings.json: texts must be embedded by the same network. Of a network that was
    given itself no more than its name is known.
    """
    if isinstance(model, ClipModel):
        return {"clip": model.name}
    file = Path(pretrained)
    return {"clip_model": model, "clip_pretrained": str(file.resolve() if file.is_file() else pretrained)}


def _box(mask: Array) -> tuple[slice, slice]:
    """The rows and columns from the first to the last pixel of a mask, bool [H, W], that is not empty."""
    filled = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    rows, columns = (slice(int(places[0]), int(places[-1]) + 1) for places in filled)
    return rows, columns


def _score(mask: Mapping[str, Any]) -> float:
    return float(mask["predicted_iou"] * mask["stability_score"])


def _finish(root: Path, partial: Path, dataset: Dataset, config: LanguagePrepConfig) -> LanguageSummary:
    """Show and count what is in `partial`, and move it to where it belongs."""
    shown = set(np.linspace(0, len(dataset.views) - 1, ROWS).astype(int).tolist())
    rows: list[list[Tensor]] = []
    counts, covered, levels = [], [], 0
    for i, (view, features) in enumerate(zip(dataset.views, _all(partial, dataset))):
        counts.append(len(features.embeddings))
        covered.append(float((features.segments >= 0).any(0).float().mean()))
        levels = max(levels, len(features.segments))
        if i in shown:
            shape = rows[0][0].shape if rows else None
            photo = photo_of(view, dataset, config.longest)
            image, large = sheet_row(photo, extreme(features, largest=True) + 1, shape)
            rows.append([image, large, sheet_row(photo, extreme(features, largest=False) + 1, shape)[1]])
    with written_whole(root / FEATURES) as temporary:
        partial.rename(temporary)
    save_png(contact_sheet(rows, ["image", "largest segments", "smallest segments"]), root / SHEET)
    means = float(np.mean(counts)), levels, float(np.mean(covered))
    return LanguageSummary(root / FEATURES, root / SHEET, len(counts), *means, counts.count(0))


def extreme(features: ViewFeatures, *, largest: bool) -> Array:
    """int64 [H, W]: of the segments that cover a pixel the row of the largest or the smallest; -1 without
    any.
    """
    segments = features.segments.long()
    size = torch.bincount(segments[segments >= 0], minlength=max(1, len(features.embeddings)))
    places = torch.where(segments >= 0, size[segments] if largest else -size[segments], -(2**62)).argmax(0)
    return segments.gather(0, places[None])[0].numpy()


def _all(folder: Path, dataset: Dataset) -> Iterator[ViewFeatures]:
    source = FeatureSource(folder)
    for view in dataset.views:
        if (features := source.read(view.stem)) is None:
            raise ValueError(f"{folder} lacks the language features of {view.name}")
        yield features

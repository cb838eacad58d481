"""`gsfields prep segments`: the segments that Segment Anything (Kirillov et al., ICCV 2023) finds in each image of a
dataset, as files beside its images (see data.segments).
"""

from __future__ import annotations

import colorsys
import importlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from gsfields.data.dataset import Dataset, View
from gsfields.data.images import decode, shrink
from gsfields.data.lens import distort
from gsfields.data.load import load_dataset
from gsfields.data.motion_masks import write_mask
from gsfields.data.segments import read_labels, write_ids
from gsfields.files import written_whole
from gsfields.pictures import contact_sheet, save_png, to_bytes
from gsfields.priors.preparation import begun, device_of, fields_among, options_from

SEGMENTS, CONFIDENCES, SHEET = "segments", "confidences", "segments_sheet.png"
PARTIAL = "segments.partial"
MODELS = ("vit_h", "vit_l", "vit_b")
ROWS, _SHEET_WIDTH = 8, 320  # images shown on the sheet, and how wide each is, pixels

Array = np.ndarray
Finder = Callable[
    [Array], list[dict[str, Any]]
]  # uint8 [H, W, 3] -> the masks of an image, as SAM records them


@dataclass(frozen=True)
class SamConfig:
    """Which masks are asked for and kept; the thresholds default to the values of the released generator.

    points_per_side: the model is asked about a square grid of so many points a side. iou_threshold: least IoU that
    the model predicts of a mask. stability: least IoU of a mask with itself as its threshold varies. min_area: the
    fewest pixels of a mask. longest: images are shrunk so that no side is longer, pixels; the model sees no more
    than 1024, and its masks of one image are all held at once.
    """

    points_per_side: int = 32
    iou_threshold: float = 0.88
    stability: float = 0.95
    min_area: int = 100
    longest: int = 1024

    def __post_init__(self) -> None:
        for name, least, most in (("points_per_side", 1, 256), ("min_area", 0, 10**9), ("longest", 16, 8192)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number from {least} to {most}, but is {value!r}")
        for name in ("iou_threshold", "stability"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, but is {value!r}")


@dataclass(frozen=True)
class SegmentsSummary:
    """What `prepare_segments` wrote."""

    folder: Path
    sheet: Path
    images: int
    segments: float  # mean number of segments of an image
    covered: float  # share of all pixels that are in one
    empty: int  # images without any

    def __str__(self) -> str:
        return (
            f"{self.images} id maps in {self.folder}: {self.segments:.1f} segments an image, which cover "
            f"{100 * self.covered:.1f} % of the pixels, {self.empty} images with none; pictures: {self.sheet}"
        )


def prepare_segments(
    data: str | Path,
    *,
    checkpoint: str | Path | None = None,
    model: str | torch.nn.Module = "vit_h",
    device: str | torch.device | None = None,
    overwrite: bool = False,
    config: SamConfig | None = None,
    progress: bool = True,
    **options: Any,
) -> SegmentsSummary:
    """Write DATA/segments/<stem>.png (16 bits) and DATA/confidences/<stem>.png (8 bits: the IoU that the model
    predicts of the segment, 0 outside all) of each image of the dataset, training or held out, as photographed, and
    DATA/segments_sheet.png, which shows some of them.

    `model` names the kind of network, whose weights `checkpoint` holds, or is a network itself (segment_anything's
    Sam). `device` defaults to a GPU if there is one. `options` set fields of `config`, such as min_area=50.

    Images are finished one by one in DATA/segments.partial, from where a run that was broken off goes on; the
    outputs appear when all are done.

    Raises FileNotFoundError or ValueError where the dataset or the weights cannot be read, or segments are there
    already and not to be overwritten; ImportError where Segment Anything is missing.
    """
    known = fields_among(options, SamConfig, ("checkpoint", "model", "device"), "the segments")
    config = replace(config or SamConfig(), **known)
    path = Path(data)
    root = path.parent if path.is_file() else path
    dataset = load_dataset(path, split_every=0, cache_bytes=0)
    if not overwrite and (there := [root / n for n in (SEGMENTS, CONFIDENCES) if (root / n).exists()]):
        raise ValueError(f"{there[0]} already exists: give --overwrite to replace it")
    find = mask_finder(config, load_network(model, checkpoint, device))
    name = model if isinstance(model, str) else type(model).__name__
    settings = {"model": name, "checkpoint": checkpoint and Path(checkpoint).name, **asdict(config)}
    partial = begun(root / PARTIAL, settings, (SEGMENTS, CONFIDENCES), overwrite=overwrite)
    for view in tqdm(dataset.views, disable=not progress, unit=" images"):
        target, sure = (partial / name / f"{view.stem}.png" for name in (SEGMENTS, CONFIDENCES))
        if target.is_file() and sure.is_file():
            continue
        ids, confidence = overlay(find(photo_of(view, dataset, config.longest)), config.min_area)
        write_mask(sure, confidence, bits=8)
        write_ids(target, ids)
    return _finish(root, partial, dataset, config)


def overlay(masks: Sequence[Mapping[str, Any]], min_area: int) -> tuple[Array, Array]:
    """Masks that may overlap -> (ids uint16 [H, W], confidence float32 [H, W] in [0, 1]).

    Each mask has a `segmentation`, bool [H, W], and a `predicted_iou`. Segment Anything finds wholes and their parts:
    smaller masks are laid on top of larger ones, so that what is left of a whole is what no part of it covers. Masks,
    and what is left of them, of fewer than `min_area` pixels are left out; numbers go from 1, the largest mask first.

    Raises ValueError without any mask: then the size is not known. (The finder of this module gives at least an
    empty one.)
    """
    if not masks:
        raise ValueError("masks must hold at least one, if only an empty one")
    kept = sorted(masks, key=lambda mask: -int(mask["segmentation"].sum()))
    shape = kept[0]["segmentation"].shape
    ids, confidence = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for i, mask in enumerate(kept, start=1):
        inside = mask["segmentation"]
        if inside.sum() >= max(1, min_area):
            ids[inside] = i
            confidence[inside] = min(max(float(mask["predicted_iou"]), 0.0), 1.0)
    visible = np.bincount(ids.ravel(), minlength=len(kept) + 1)
    stays = visible >= max(1, min_area)
    stays[0] = False
    number = np.where(stays, np.cumsum(stays), 0)
    ids = number[ids]
    return ids.astype(np.uint16), np.where(ids > 0, confidence, np.float32(0))


def parse_options(texts: Mapping[str, str | None]) -> dict[str, Any]:
    """Options of prepare_segments from texts, such as min_area "50"; names are checked there."""
    return options_from(texts, SamConfig)


def _segment_anything() -> Any:
    try:
        return importlib.import_module("segment_anything")
    except (
        ImportError,
        RuntimeError,
    ) as error:  # RuntimeError: a torchvision that was built for another torch
        reason = str(error).strip().splitlines()[0]
        raise ImportError(
            "segments need Segment Anything (pip install 'gsfields[sam]') and a torchvision that fits the installed "
            f"torch ({reason})"
        ) from None


def load_network(
    model: str | torch.nn.Module, checkpoint: str | Path | None, device: str | torch.device | None
) -> torch.nn.Module:
    """The network, with its weights, where it is to run."""
    where = device_of(device)
    if isinstance(model, torch.nn.Module):
        return model.to(where).eval()
    if model not in MODELS:
        raise ValueError(f"model must be {', '.join(MODELS)}, but is {model!r}")
    if checkpoint is None:
        raise ValueError(f"checkpoint must name the file with the weights of Segment Anything's {model}")
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"checkpoint names the file {checkpoint}, which does not exist")
    network: torch.nn.Module = _segment_anything().sam_model_registry[model]()
    try:
        network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises a wide range of types for files that are none of its own
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"checkpoint {checkpoint} does not hold the weights of {model} ({reason})") from None
    return network.to(where).eval()


def mask_finder(config: SamConfig, network: torch.nn.Module) -> Finder:
    """What finds the masks of an image; an empty one where there is none."""
    generator = _segment_anything().SamAutomaticMaskGenerator(
        network,
        points_per_side=config.points_per_side,
        pred_iou_thresh=config.iou_threshold,
        stability_score_thresh=config.stability,
    )

    def find(image: Array) -> list[dict[str, Any]]:
        nothing = {"segmentation": np.zeros(image.shape[:2], bool), "predicted_iou": 0.0}
        return generator.generate(image) or [nothing]

    return find


def photo_of(view: View, dataset: Dataset, longest: int) -> Array:
    """uint8 [H, W, 3]: the photo as taken, shrunk by area if it is longer than `longest`."""
    if view.image_path is not None:
        under = None if dataset.background is None else tuple(dataset.background.tolist())
        image = decode(view.image_path, under)
    elif view.lens is not None:
        image = distort(view.image(), view.camera, view.lens).numpy()
    else:
        image = view.image().numpy()
    height, width = image.shape[:2]
    scale = min(1.0, longest / max(height, width))
    small = shrink(image, max(1, round(width * scale)), max(1, round(height * scale)))
    return to_bytes(torch.from_numpy(small))


def _finish(root: Path, partial: Path, dataset: Dataset, config: SamConfig) -> SegmentsSummary:
    """Show and count what is in `partial`, and move it to where it belongs."""
    shown = set(np.linspace(0, len(dataset.views) - 1, ROWS).astype(int).tolist())
    rows: list[list[Tensor]] = []
    counts, covered = [], []
    for i, view in enumerate(dataset.views):
        ids = read_labels(partial / SEGMENTS / f"{view.stem}.png")
        counts.append(int(ids.max()))
        covered.append(float((ids > 0).mean()))
        if i in shown:
            rows.append(
                sheet_row(photo_of(view, dataset, config.longest), ids, rows[0][0].shape if rows else None)
            )
    for name in (CONFIDENCES, SEGMENTS):
        with written_whole(root / name) as temporary:
            (partial / name).rename(temporary)
    shutil.rmtree(partial)
    save_png(contact_sheet(rows, ["image", "segments"]), root / SHEET)
    empty = sum(count == 0 for count in counts)
    means = float(np.mean(counts)), float(np.mean(covered))
    return SegmentsSummary(root / SEGMENTS, root / SHEET, len(counts), *means, empty)


def sheet_row(photo: Array, ids: Array, shape: torch.Size | None) -> list[Tensor]:
    """The image, and the image tinted by segment; [h, w, 3] of `shape`, if given."""
    # hues a golden ratio apart: neighbours in number are far apart in colour
    hues = (0.618034 * np.arange(ids.max() + 1)) % 1
    colors = torch.tensor([colorsys.hsv_to_rgb(hue, 0.8, 1.0) for hue in hues])
    image = torch.from_numpy(photo).float() / 255
    labels = torch.from_numpy(ids).long()
    tinted = torch.where((labels > 0)[..., None], 0.4 * image + 0.6 * colors[labels], 0.4 * image)
    width = min(photo.shape[1], _SHEET_WIDTH)
    size = (round(photo.shape[0] * width / photo.shape[1]), width) if shape is None else tuple(shape[:2])
    both = interpolate(torch.stack([image, tinted]).permute(0, 3, 1, 2), size, mode="area")
    return list(both.permute(0, 2, 3, 1))

"""UDOS, the segmentation of moving objects in egocentric video (EPIC Fields, Tschernezki et al. 2023).

Protocol, that of the benchmark's evaluator: an annotation labels pixels 0, 1, 2 = ambiguous (left out) and
3 = body part (positive, like 1). Each annotated frame with a positive pixel has an average precision; a video
has the mean of its frames, the benchmark the mean of its videos (one without a scored frame counts as 0). No
mask is thresholded, smoothed or resized. The columns are

    dynamic             what moves now                              scored by M_dy
    semistatic          what rests now but moves at another time    scored by M_ss + M_dy, the benchmark's rule:
                        what moves now is a negative with a high score, so values near 25 are good
    dynamic_semistatic  both                                        scored by M_ss + M_dy
    semistatic_own      as semistatic, not in the benchmark         scored by M_ss alone

and beside them the IoU of dynamic masks at one fixed threshold and at the best, over all pixels of the video.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gsfields.data.epic_fields import VisorMapping, mask_names
from gsfields.data.motion_masks import MaskFolder, fits, read_mask, resampled
from gsfields.evaluate.udos_annotations import AMBIGUOUS, Annotations, as_labels

COLUMNS = {"dynamic": "Dyn", "semistatic": "SS", "dynamic_semistatic": "Dyn+SS", "semistatic_own": "SS own"}
THRESHOLD = 0.5  # of the fixed IoU
_LEVELS = 65535  # IoU is exact for masks of 8 and 16 bits

Masks = Callable[[str], "np.ndarray | None"]  # an image's stem -> its soft mask [H, W], None if it has none


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve, percent: the sum over distinct scores, from the highest on, of
    the gain in recall times the precision. Equal scores are one threshold; nothing is interpolated.

    labels and scores are of one shape; a label counts as positive if it is not 0. nan without positives.

    Raises ValueError if the shapes differ or a score is nan.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.shape != scores.shape:
        raise ValueError(
            f"labels and scores must have one shape, but are {list(labels.shape)} and {list(scores.shape)}"
        )
    if np.isnan(scores).any():
        raise ValueError("scores must not hold nan")
    order = np.argsort(scores, axis=None)[::-1]
    ranked = scores.ravel()[order]
    hits = np.cumsum(labels.ravel()[order] != 0, dtype=np.float64)
    if not hits.size or hits[-1] == 0:
        return math.nan
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # the last pixel of every threshold
    precision = hits[last] / (last + 1)
    gain = np.diff(hits[last], prepend=0) / hits[-1]
    return float(100 * (gain * precision).sum())


def frame_ap(annotation: np.ndarray, scores: np.ndarray) -> float | None:
    """Average precision, percent, of one frame's soft mask [H, W] against its annotation as the png holds it;
    None if no pixel is positive.
    """
    labels, scores = _kept(as_labels(annotation), np.asarray(scores))
    return average_precision(labels, scores) if labels.any() else None


def iou(labels: np.ndarray, scores: np.ndarray, threshold: float = THRESHOLD) -> float:
    """Intersection over union of the positive labels and {scores >= threshold}, both rounded to 16 bits; nan
    if both are empty.
    """
    curve = IouCurve()
    curve.add(np.asarray(labels), np.asarray(scores))
    return curve.at(threshold)


def best_iou(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """(IoU, threshold) of the threshold with the highest IoU."""
    curve = IouCurve()
    curve.add(np.asarray(labels), np.asarray(scores))
    return curve.best()


class IouCurve:
    """IoU at every threshold over the pixels of many frames, which are added one by one and not kept: two
    histograms of the scores, rounded to 16 bits.
    """

    def __init__(self) -> None:
        self._positive = np.zeros(_LEVELS + 1)
        self._negative = np.zeros(_LEVELS + 1)

    def add(self, labels: np.ndarray, scores: np.ndarray) -> None:
        """Labels, positive if not 0, and scores in [0, 1] (others are clamped), of one shape."""
        level = _level(scores)
        self._positive += np.bincount(level[labels != 0], minlength=_LEVELS + 1)
        self._negative += np.bincount(level[labels == 0], minlength=_LEVELS + 1)

    def at(self, threshold: float) -> float:
        """IoU of the pixels that score at least `threshold`; nan if they and the positive ones are none."""
        return float(self._curve()[_level(np.asarray(threshold))])

    def best(self) -> tuple[float, float]:
        """(IoU, threshold); (nan, nan) if there is nothing to find."""
        curve = self._curve()
        if np.isnan(curve).all():
            return math.nan, math.nan
        level = _LEVELS - int(np.nanargmax(curve[::-1]))  # of equals the highest: it is a score
        return float(curve[level]), level / _LEVELS

    def _curve(self) -> np.ndarray:
        hits, false = (np.cumsum(h[::-1])[::-1] for h in (self._positive, self._negative))
        union = hits[0] + false
        return np.divide(hits, union, out=np.full(_LEVELS + 1, math.nan), where=union > 0)


def _level(scores: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(scores, 0, 1).astype(np.float64) * _LEVELS).astype(np.int64)


@dataclass
class UdosScores:
    """The scores of one video."""

    video: str
    per_frame: dict[str, dict[str, float]]  # column -> stem -> AP, percent; of frames with a positive pixel
    iou: float  # of the dynamic masks at `threshold`, over all pixels of all annotated frames
    best_iou: float  # at the threshold that is best for this video
    best_threshold: float
    threshold: float = THRESHOLD

    def mean(self, column: str, frames: Collection[str] | None = None) -> float:
        """Mean over the scored frames, or those of them in `frames`; nan if there are none."""
        scores = [ap for stem, ap in self.per_frame[column].items() if frames is None or stem in frames]
        return sum(scores) / len(scores) if scores else math.nan

    def frames_above(self, ap: float, column: str = "dynamic") -> set[str]:
        """The frames whose AP is at least `ap`: of 2D masks, those that the 2D method did not miss."""
        return {stem for stem, score in self.per_frame[column].items() if score >= ap}

    def as_dict(self) -> dict[str, object]:
        """As RUN/udos.json has it: AP in percent, IoU in [0, 1]."""
        return {
            "video": self.video,
            "ap": {column: self.mean(column) for column in self.per_frame},
            "frames": {column: len(scores) for column, scores in self.per_frame.items()},
            "iou": {"threshold": self.threshold, "at_threshold": self.iou},
            "best_iou": {"threshold": self.best_threshold, "at_threshold": self.best_iou},
            "per_frame": self.per_frame,
        }


def evaluate_masks(
    annotations: Annotations,
    dynamic: Masks,
    semistatic: Masks | None = None,
    *,
    threshold: float = THRESHOLD,
    missing: Literal["error", "zero"] = "error",
) -> UdosScores:
    """Score a video's soft masks. Without `semistatic` the one mask serves for every column, as the masks of
    2D methods do in the benchmark, and there is no column semistatic_own.

    An annotated frame without a mask is an error, or with missing="zero" one where nothing was found.

    Raises:
        FileNotFoundError: a mask is missing.
        ValueError: a mask has not its annotation's size.
    """
    if missing not in ("error", "zero"):
        raise ValueError(f"missing must be error or zero, but is {missing!r}")
    columns = [column for column in COLUMNS if column.removesuffix("_own") in annotations.files]
    if semistatic is None:
        columns = [column for column in columns if column != "semistatic_own"]
    per_frame: dict[str, dict[str, float]] = {column: {} for column in columns}
    curve = IouCurve()
    for stem in annotations.stems():
        labels = {motion: annotations.read(motion, stem) for motion in annotations.motions(stem)}
        shape = next(iter(labels.values())).shape
        moving = _mask_of(dynamic, "dynamic", stem, shape, missing)
        own = None if semistatic is None else _mask_of(semistatic, "semistatic", stem, shape, missing)
        both = moving if own is None else moving + own
        for column in columns:
            if (truth := labels.get(column.removesuffix("_own"))) is not None:
                scores = {"dynamic": moving, "semistatic_own": own}.get(column, both)
                assert scores is not None
                if (ap := frame_ap(truth, scores)) is not None:
                    per_frame[column][stem] = ap
        if "dynamic" in labels:
            curve.add(*_kept(labels["dynamic"], moving))
    best, at = curve.best()
    return UdosScores(annotations.video, per_frame, curve.at(threshold), best, at, threshold)


def evaluate_run_folder(
    masks: str | Path,
    data: str | Path,
    *,
    video: str | None = None,
    missing: Literal["error", "zero"] = "error",
) -> UdosScores:
    """Score a run's masks, `masks`/{dynamic,semistatic}/<stem>.png, against the annotations of `data` (see
    Annotations.open).
    """
    root = Path(masks)
    annotations = Annotations.open(data, video=video)
    dynamic = _reader(MaskFolder(root / "dynamic"))
    semistatic = _reader(MaskFolder(root / "semistatic")) if (root / "semistatic").is_dir() else None
    return evaluate_masks(annotations, dynamic, semistatic, missing=missing)


def evaluate_motion_masks(
    masks: str | Path,
    data: str | Path,
    *,
    video: str | None = None,
    missing: Literal["error", "zero"] = "zero",
) -> UdosScores:
    """Score the masks of a 2D method, `masks`/<stem>.png and the like, against the annotations of `data`.

    They are resampled to the annotations' size, as they are when a scene is fitted to them, and a frame
    without a mask is one where the method found nothing.
    """
    annotations = Annotations.open(data, video=video)
    folder, visor = MaskFolder(Path(masks)), VisorMapping.beside(Path(data))

    def read(stem: str) -> np.ndarray | None:
        path = folder.find(stem, *mask_names(annotations.video, stem, visor))
        if path is None:
            return None
        mask, (width, height) = read_mask(path), annotations.size(stem)
        fitting = fits((mask.shape[1], mask.shape[0]), (width, height))
        return resampled(mask, width, height) if fitting else mask

    return evaluate_masks(annotations, read, missing=missing)


def benchmark_means(videos: Sequence[UdosScores]) -> dict[str, float]:
    """Column -> mean over videos; a video without a scored frame counts as 0, as in the benchmark's summary.

    Raises ValueError if there are no videos.
    """
    if not videos:
        raise ValueError("there are no videos to average")
    columns = [column for column in COLUMNS if all(column in scores.per_frame for scores in videos)]
    means = {column: [scores.mean(column) for scores in videos] for column in columns}
    return {c: sum(0 if math.isnan(m) else m for m in values) / len(values) for c, values in means.items()}


def table(rows: Mapping[str, UdosScores]) -> str:
    """Scores side by side as text: a row per name, AP and IoU in percent."""
    names = list(rows)
    threshold = rows[names[0]].threshold if names else THRESHOLD
    lines = [["", *COLUMNS.values(), f"IoU>={threshold:g}", "best IoU", "at", "frames"]]
    for name, scores in rows.items():
        aps = [scores.mean(c) if c in scores.per_frame else math.nan for c in COLUMNS]
        percents = [*aps, 100 * scores.iou, 100 * scores.best_iou]
        at = "-" if math.isnan(scores.best_threshold) else f"{scores.best_threshold:.2f}"
        cells = ["-" if math.isnan(value) else f"{value:.1f}" for value in percents]
        lines.append([name, *cells, at, str(len(scores.per_frame.get("dynamic", {})))])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])
        for line in lines
    )


def _kept(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positive bool [M], scores [M]) of the pixels that are not ambiguous."""
    if labels.shape != scores.shape:
        raise ValueError(f"the mask is {list(scores.shape)}, but its annotation {list(labels.shape)}")
    keep = labels != AMBIGUOUS
    return labels[keep] > 0, scores[keep]


def _mask_of(masks: Masks, layer: str, stem: str, shape: tuple[int, ...], missing: str) -> np.ndarray:
    mask = masks(stem)
    if mask is None:
        if missing == "zero":
            return np.zeros(shape, dtype=np.float32)
        raise FileNotFoundError(f"there is no {layer} mask {stem}.png, but frame {stem} is annotated")
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise ValueError(
            f"the {layer} mask {stem}.png is {list(mask.shape)}, but its annotation {list(shape)}"
        )
    return mask


def _reader(folder: MaskFolder) -> Masks:
    def read(stem: str) -> np.ndarray | None:
        path = folder.find(stem)
        return None if path is None else read_mask(path)

    return read

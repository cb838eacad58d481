"""Scene-level panoptic quality: are objects the same object in every frame?

PQ^scene is that of Panoptic Lifting (Siddiqui et al., CVPR 2023), which Contrastive Lift (Bhalgat et al., NeurIPS
2023) reports; where the papers and their code differ the code is followed. Its rules:

    segment   all pixels of one (class, instance) in *all* frames; the pixels of a stuff class are one segment. Of a
              thing class, instance 0 is a segment like any other.
    void      pixels of classes that are not scored: neither things nor stuff, in neither map, or rare. Rare is what
              either map has, but on less than `robust` of the pixels; the papers know no such rule (robust=0).
    match     same class and IoU > 0.5, the union being without what is void in the other map
    FN, FP    true and predicted segments without a match, unless more than half of one is void in the other map
    PQ        per class Σ IoU / (TP + FP / 2 + FN / 2), SQ Σ IoU / TP, RQ TP / (TP + FP / 2 + FN / 2), each 0 where
              that is undefined; then the mean over the scored classes
    mIoU      over all pixels, mean over the classes that are not rare in one of both maps

The evaluation script of the released code prints SQ as RQ and RQ as SQ; here both have their own names. Per-frame PQ
is the same applied to each frame on its own (classes are rare in that frame), then the mean over the frames that have
a scored class: what is left of the quality when identity across frames does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gsfields.data.segments import Classes, SegmentSource, read_labels
from gsfields.evaluate.segment_pairs import (
    VOID,
    Labels,
    SegmentPairs,
    areas,
    as_array,
    class_of,
    codes,
    whole_numbers,
)

ROBUST = 0.005  # share of the pixels below which a class is rare
SIZE = 512  # pixels; both maps are resized to a square of this side

SegmentReader = Callable[[str], "tuple[Labels, Labels | None]"]  # an image's stem -> (ids, semantics)


class PanopticCounts:
    """Counts of pixels per pair of predicted and true segment, to which frames are added one by one; the maps are
    not kept, so any number of frames fits in memory.

    Pixels whose true class is void_class are left out, as those of class 0 are in the data of Panoptic Lifting; the
    released code then still scores class 0 where it is stuff and the prediction uses it.
    """

    def __init__(self, classes: Classes, *, void_class: int | None = None) -> None:
        self.classes, self.void_class = classes, void_class
        self._frames: list[SegmentPairs] = []

    def __len__(self) -> int:
        """The number of frames."""
        return len(self._frames)

    def add(self, pred_semantics: Labels, pred_ids: Labels, true_semantics: Labels, true_ids: Labels) -> None:
        """Count one frame: four maps of one shape, whole numbers from 0 to 2³¹ - 1."""
        maps = {
            "pred_semantics": pred_semantics,
            "pred_ids": pred_ids,
            "true_semantics": true_semantics,
            "true_ids": true_ids,
        }
        labels = {name: whole_numbers(name, values) for name, values in maps.items()}
        if len({values.shape for values in labels.values()}) > 1:
            shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in labels.items())
            raise ValueError(f"the maps of a frame must be of one shape, but are {shapes}")
        predicted = codes(labels["pred_semantics"], labels["pred_ids"]).ravel()
        true = codes(labels["true_semantics"], labels["true_ids"]).ravel()
        if self.void_class is not None:
            keep = labels["true_semantics"].ravel() != self.void_class
            predicted, true = predicted[keep], true[keep]
        self._frames.append(SegmentPairs.of_pixels(predicted, true))

    def scores(self, robust: float = ROBUST) -> PanopticScores:
        """The scores of all frames so far; classes on less than `robust` of the pixels are left out.

        Raises ValueError if there is no frame, or robust is not in [0, 1).
        """
        if not 0 <= robust < 1:
            raise ValueError(f"robust is a share of the pixels, in [0, 1), but is {robust}")
        if not self._frames:
            raise ValueError("there are no frames to score")
        scene = SegmentPairs.merged(self._frames)
        per_frame = [_mean([s.pq for s in _scored(f, self.classes, robust).values()]) for f in self._frames]
        return PanopticScores(
            _scored(scene, self.classes, robust),
            _class_ious(scene, self.classes, robust),
            per_frame,
            dict(self.classes.names),
        )


@dataclass(frozen=True)
class ClassScore:
    """What became of the segments of one class."""

    thing: bool  # or stuff
    iou_sum: float  # over the matched pairs
    tp: int
    fp: int
    fn: int

    @property
    def pq(self) -> float:
        return self.sq * self.rq

    @property
    def sq(self) -> float:
        return self.iou_sum / self.tp if self.tp else 0.0

    @property
    def rq(self) -> float:
        total = self.tp + self.fp / 2 + self.fn / 2
        return self.tp / total if total else 0.0


@dataclass(frozen=True)
class PanopticScores:
    """The scores of one scene, in [0, 1]; nan where no class is scored."""

    classes: Mapping[int, ClassScore]  # of the scored classes
    ious: Mapping[int, float]  # of the classes that count for mIoU
    per_frame: list[float]  # PQ of each frame, nan where it has no scored class
    names: Mapping[int, str] = field(default_factory=dict)  # of classes, where known

    @cached_property
    def pq(self) -> float:
        return _mean([score.pq for score in self.classes.values()])

    @cached_property
    def sq(self) -> float:
        return _mean([score.sq for score in self.classes.values()])

    @cached_property
    def rq(self) -> float:
        return _mean([score.rq for score in self.classes.values()])

    @cached_property
    def pq_things(self) -> float:
        return _mean([score.pq for score in self.classes.values() if score.thing])

    @cached_property
    def pq_stuff(self) -> float:
        return _mean([score.pq for score in self.classes.values() if not score.thing])

    @cached_property
    def miou(self) -> float:
        return _mean(self.ious.values())

    @cached_property
    def per_frame_pq(self) -> float:
        return _mean([pq for pq in self.per_frame if not math.isnan(pq)])

    def to_dict(self) -> dict[str, Any]:
        """For json (gsfields.files.to_json, which writes nan as null)."""
        measures = ("pq", "sq", "rq", "miou", "per_frame_pq", "pq_things", "pq_stuff")
        per_class = {
            str(c): {
                "kind": "thing" if score.thing else "stuff",
                **{name: getattr(score, name) for name in ("pq", "sq", "rq", "iou_sum", "tp", "fp", "fn")},
            }
            for c, score in self.classes.items()
        }
        return {
            **{name: getattr(self, name) for name in measures},
            "frames": len(self.per_frame),
            "classes": per_class,
            "ious": {str(c): iou for c, iou in self.ious.items()},
            "per_frame": list(self.per_frame),
        }

    def __str__(self) -> str:
        """The means and a row per class, in percent."""
        lines = [["class", "PQ", "SQ", "RQ", "IoU", "TP", "FP", "FN"]]
        lines.append(["all", *map(_percent, (self.pq, self.sq, self.rq, self.miou)), "", "", ""])
        for c in sorted(self.classes.keys() | self.ious.keys()):
            score, name = self.classes.get(c), self.names.get(c, str(c))
            iou = _percent(self.ious.get(c, math.nan))
            if score is None:  # rare in one map only, so it counts for mIoU alone
                lines.append([name, "-", "-", "-", iou, "-", "-", "-"])
            else:
                quality, counts = (score.pq, score.sq, score.rq), (score.tp, score.fp, score.fn)
                lines.append([name, *map(_percent, quality), iou, *map(str, counts)])
        frames = f"per-frame PQ {_percent(self.per_frame_pq)} over {len(self.per_frame)} frames"
        return f"{_aligned(lines)}\n{frames}"


def table(rows: Mapping[str, PanopticScores]) -> str:
    """Scores side by side as text, in percent: a row per name."""
    lines = [["", "PQ", "SQ", "RQ", "mIoU", "things", "stuff", "per frame"]]
    for name, s in rows.items():
        values = (s.pq, s.sq, s.rq, s.miou, s.pq_things, s.pq_stuff, s.per_frame_pq)
        lines.append([name, *map(_percent, values)])
    return _aligned(lines)


def evaluate_maps(
    predicted: SegmentReader,
    truth: SegmentSource,
    stems: Iterable[str],
    *,
    size: int | None = SIZE,
    void_class: int | None = None,
    robust: float = ROBUST,
) -> PanopticScores:
    """Score predicted maps against the true labels of the images `stems`, whose classes are truth.classes.

    Both are resized to size × size pixels, each the nearest one's label, as the released code does; with size None
    they are taken as they are. Where semantics are None class 1 is every pixel with an id and class 0 the rest.

    Raises:
        FileNotFoundError: an image has no true labels.
        ValueError: there are no images, the maps of one are of two shapes (size None), or semantics are None while
            the classes are not 0 and 1.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least one pixel, or None for maps as they are, but is {size}")
    counts = PanopticCounts(truth.classes, void_class=void_class)
    true = maps_of(truth, "true labels")
    for stem in stems:
        maps: list[Labels] = []
        for what, (ids, semantics) in (("predicted", predicted(stem)), ("true", true(stem))):
            maps += _with_classes(ids, semantics, truth.classes, f"the {what} labels of image {stem}")
        counts.add(*(maps if size is None else [resized_labels(m, size, size) for m in maps]))
    return counts.scores(robust)


def evaluate_run_folder(
    run: str | Path,
    truth: SegmentSource,
    stems: Iterable[str],
    *,
    size: int | None = SIZE,
    void_class: int | None = None,
    robust: float = ROBUST,
) -> PanopticScores:
    """Score a run's id maps, `run`/instances/ids/<stem>.png with the classes of `run`/instances/semantics/<stem>.png
    if there is such a folder, as evaluate_maps does.

    Raises FileNotFoundError if there is no map of an image.
    """
    root = Path(run) / "instances"
    classified = (root / "semantics").is_dir()

    def read(stem: str) -> tuple[Labels, Labels | None]:
        semantics = read_labels(root / "semantics" / f"{stem}.png") if classified else None
        return read_labels(root / "ids" / f"{stem}.png"), semantics

    return evaluate_maps(read, truth, stems, size=size, void_class=void_class, robust=robust)


def maps_of(source: SegmentSource, what: str = "segments") -> SegmentReader:
    """A source as a reader, thus the 2D segmenter as a prediction: its per-frame PQ is what a scene has to exceed.
    The reader raises FileNotFoundError, naming `what` is missing, for an image without labels.
    """

    def read(stem: str) -> tuple[Labels, Labels | None]:
        segments = source.read(stem)
        if segments is None:
            raise FileNotFoundError(f"image {stem} has no {what}")
        return segments.ids, segments.semantics

    return read


def resized_labels(labels: Labels, width: int, height: int) -> np.ndarray:
    """[H, W] -> [height, width]: the label of the pixel that the centre of each new one falls in."""
    labels = as_array(labels)
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip((height, width), labels.shape)
    )
    return labels[rows[:, None], columns]


def _scored(pairs: SegmentPairs, classes: Classes, robust: float) -> dict[int, ClassScore]:
    """Class -> score, of the classes that are neither absent nor rare, things first."""
    shares = pairs.class_shares()
    seen = shares[0].keys() | shares[1].keys()
    rare = {c for share in shares for c, s in share.items() if s < robust}
    things, stuff = ([c for c in kind if c in seen - rare] for kind in (classes.things, classes.stuff))
    pairs = pairs.scored(things, stuff)

    predicted, predicted_area = areas(pairs.predicted, pairs.pixels)
    true, true_area = areas(pairs.true, pairs.pixels)
    p, t = np.searchsorted(predicted, pairs.predicted), np.searchsorted(true, pairs.true)
    void_p, void_t = pairs.predicted == VOID, pairs.true == VOID
    predicted_void = np.bincount(p[void_t], pairs.pixels[void_t], len(predicted))
    true_void = np.bincount(t[void_p], pairs.pixels[void_p], len(true))

    union = (predicted_area - predicted_void)[p] + (true_area - true_void)[t] - pairs.pixels
    same = ~void_p & ~void_t & (class_of(pairs.predicted) == class_of(pairs.true))
    match = same & (2 * pairs.pixels > union)
    ious, matched = pairs.pixels[match] / union[match], class_of(pairs.true[match])
    missed = ~np.isin(true, pairs.true[match]) & (2 * true_void <= true_area)
    false = ~np.isin(predicted, pairs.predicted[match]) & (2 * predicted_void <= predicted_area)
    return {
        c: ClassScore(
            thing=c in things,
            iou_sum=float(ious[matched == c].sum()),
            tp=int((matched == c).sum()),
            fp=int((class_of(predicted[false]) == c).sum()),
            fn=int((class_of(true[missed]) == c).sum()),
        )
        for c in [*things, *stuff]
    }


def _class_ious(pairs: SegmentPairs, classes: Classes, robust: float) -> dict[int, float]:
    """Class -> IoU over all pixels, of the classes that are not rare in one of both maps."""
    predicted_share, true_share = pairs.class_shares()
    agreeing = class_of(pairs.predicted) == class_of(pairs.true)
    both, pixels = areas(class_of(pairs.true[agreeing]), pairs.pixels[agreeing])
    shared = dict(zip(both.tolist(), (pixels / pairs.pixels.sum()).tolist()))
    ious = {}
    for c in sorted([*classes.things, *classes.stuff]):
        p, t, i = (share.get(c, 0.0) for share in (predicted_share, true_share, shared))
        if max(p, t) >= robust and max(p, t) > 0:
            ious[c] = i / (p + t - i)
    return ious


def _with_classes(
    ids: Labels, semantics: Labels | None, classes: Classes, what: str
) -> tuple[Labels, Labels]:
    """(semantics, ids)"""
    if semantics is not None:
        return semantics, ids
    if not {*classes.things} <= {1} or not {*classes.stuff} <= {0}:
        raise ValueError(
            f"{what} have no semantics, which is possible only for things (1,) and stuff (0,), but the things are "
            f"{tuple(classes.things)} and the stuff is {tuple(classes.stuff)}"
        )
    return (as_array(ids) > 0).astype(np.int64), ids


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _aligned(lines: list[list[str]]) -> str:
    """Columns as wide as their widest cell, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:]))])
        for line in lines
    )

"""Queries in words: is what a phrase finds in a view what the phrase means?

Three protocols; where papers and released code differ the code is followed.

LERF-OVS by the pipeline of LangSplat (Qin et al., CVPR 2024), for each frame and prompt, from one map of
relevancy per level (three in LangSplat, one for a field that needs no levels):

    blur       mean over `kernel` x `kernel` pixels from x - kernel // 2 on; the image is mirrored at its rim
    segment    blend = (blur + map) / 2 of the level where that is highest, stretched to [-1, 1] from its
               least to its greatest value; what exceeds `threshold` is kept. Then each pixel becomes what
               most of its `window` x `window` are; no majority means no. The released code ends that window
               one row and column early at the image's end, so that its last ones never count.
    IoU        with the true mask; mean over all (frame, prompt) pairs of a scene, then over scenes
    localise   the pixels where the blur is greatest, in the level where that is highest (maybe another one);
               a hit if any of them lies in any box of the prompt, sides included; hits per (frame, prompt)

3D-OVS (Liu et al., NeurIPS 2023): each pixel goes to its most relevant prompt; Jaccard index per prompt, mean
over the prompts of a view, then over views. Accuracy is the share of pixels that have all their true prompts
and no other.

Retrieval (R@K of N2F2): the segments of a view ranked by their mean relevancy.

What the released code leaves undefined is defined here: an IoU of two empty masks is 0, as the Jaccard index
of 3D-OVS is, so a prompt that is nowhere to be seen can only lose: leave it out. A constant map segments
nothing, and its greatest value is everywhere, so it is a hit. There is no nan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from gsfields.data.openvocab_labels import QueryTruth as QueryTruth  # of which all of this is
from gsfields.evaluate.windows import mirrored, running_sums, window_pixels, window_sums


@dataclass(frozen=True)
class Protocol:
    """The settings of LangSplat's pipeline.

    The kernel is in pixels and meant for images about 1000 wide; say so where a small set is scored with
    another one. borders="ignored" is how LangSplatV2 does it: blur and majority are over all of the window
    that is inside the image.
    """

    kernel: int = 30  # pixels, side of the blur's window
    threshold: float = 0.4  # of the blend stretched to [-1, 1], so 0.4 is at 70 % of its range
    window: int = 7  # pixels, side of the majority's window
    borders: Literal["reflected", "ignored"] = "reflected"

    def __post_init__(self) -> None:
        if self.kernel < 1:
            raise ValueError(f"kernel must be at least one pixel, but is {self.kernel}")
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"window must be an odd number of pixels, but is {self.window}")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must lie in [0, 1), but is {self.threshold}")
        if self.borders not in ("reflected", "ignored"):
            raise ValueError(f"borders must be reflected or ignored, but are {self.borders!r}")


LANGSPLAT = Protocol()
LANGSPLAT_V2 = Protocol(kernel=29, borders="ignored")


def segment(maps: Tensor, protocol: Protocol = LANGSPLAT) -> tuple[Tensor, int]:
    """(mask bool [H, W], level) that the relevancy maps [L, H, W] of one prompt mean."""
    maps = _float_maps("maps", maps)
    return _segment(maps, blurred(maps, protocol), protocol)


def locate(maps: Tensor, protocol: Protocol = LANGSPLAT) -> tuple[Tensor, int]:
    """(points int64 [n, 2] of (x, y), level): the pixels that the relevancy maps [L, H, W] of one prompt
    point at, in rows from the top.
    """
    return _locate(blurred(maps, protocol))


def blurred(maps: Tensor, protocol: Protocol = LANGSPLAT) -> Tensor:
    """[L, H, W] -> float32 [L, H, W]: each the mean over the protocol's kernel."""
    maps = _float_maps("maps", maps)
    # float64 sums of float32 values are all but exact: pixels of one mean are equal and remain candidates
    return torch.stack([_blurred(level.double(), protocol).float() for level in maps])


def majority(mask: Tensor, protocol: Protocol = LANGSPLAT) -> Tensor:
    """bool [H, W] -> bool [H, W]: whether most of the pixels in the window around each are True."""
    mask = _mask("mask", mask)
    half = protocol.window // 2
    counted = torch.ones_like(mask)
    if protocol.borders == "reflected":
        # of the only row or column of a thin image nothing is left, nor a majority
        counted[-1], counted[:, -1] = False, False
    small = torch.int16 if protocol.window < 128 else torch.int32  # either holds 2 window²
    ones = window_sums((mask & counted).to(small), half, half)
    pixels = window_pixels(counted[:, 0], half, half)[:, None] * window_pixels(counted[0], half, half)
    return 2 * ones > pixels


def _segment(maps: Tensor, blur: Tensor, protocol: Protocol) -> tuple[Tensor, int]:
    blend = (maps + blur) / 2
    level = _highest(blend)
    x = blend[level] - blend[level].min()
    x.div_(x.max() + 1e-9).mul_(2).sub_(1)  # a clamp at 0, as no threshold is below, changes nothing
    return majority(x > protocol.threshold, protocol), level


def _locate(blur: Tensor) -> tuple[Tensor, int]:
    level = _highest(blur)
    return (blur[level] == blur[level].max()).nonzero().flip(1), level


def _highest(maps: Tensor) -> int:
    """The level with the greatest value, the first of several."""
    greatest: list[float] = maps.amax(dim=(1, 2)).tolist()
    return greatest.index(max(greatest))


def _blurred(values: Tensor, protocol: Protocol) -> Tensor:
    before = protocol.kernel // 2  # OpenCV's anchor, also where the kernel is even
    after = protocol.kernel - 1 - before
    if protocol.borders == "ignored":
        inside = torch.ones_like(values, dtype=torch.bool)
        pixels = [window_pixels(line, before, after) for line in (inside[:, 0], inside[0])]
        return window_sums(values, before, after) / (pixels[0][:, None] * pixels[1])
    for dim in (1, 0):
        values = running_sums(mirrored(values, before, after, dim), protocol.kernel, dim)
    return values / protocol.kernel**2


def iou(predicted: Tensor, truth: Tensor) -> float:
    """Intersection over union of two masks, bool [H, W]; 0 if both are empty."""
    predicted, truth = _mask("predicted", predicted), _mask("truth", truth)
    _check_grid("the predicted mask", predicted, truth)
    return _iou(predicted, truth)


def _iou(predicted: Tensor, truth: Tensor) -> float:
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else 0.0


def hits(points: Tensor, truth: QueryTruth) -> bool:
    """Whether any point, [n, 2] of (x, y), lies in any box; if there are no boxes (3D-OVS), in the mask."""
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must be [n, 2], but are {list(points.shape)}")
    if len(truth.boxes) == 0:
        x, y = points.long().unbind(1)
        height, width = truth.mask.shape
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        return bool(truth.mask.to(points.device)[y[inside], x[inside]].any())
    boxes = truth.boxes.to(points.device).reshape(-1, 1, 2, 2)
    low, high = boxes.amin(dim=2), boxes.amax(dim=2)  # whichever corner comes first
    return bool(((points >= low) & (points <= high)).all(dim=2).any())


@dataclass(frozen=True)
class QueryScore:
    """What became of one prompt in one frame."""

    frame: str
    prompt: str
    kind: str | None  # of the prompt: simple, compound, partitive, …
    iou: float
    level: int  # that was segmented
    hit: bool
    hit_level: int  # that was localised in


@dataclass
class OpenVocabScores:
    """LangSplat's scores of one scene, to which prompts are added one by one; maps are not kept.

    kinds: prompt -> its kind, of all prompts or some, by which the scores can be split.
    """

    protocol: Protocol = LANGSPLAT
    kinds: Mapping[str, str] = field(default_factory=dict)
    rows: list[QueryScore] = field(default_factory=list, init=False)

    def add(self, frame: str, maps: Tensor, truth: QueryTruth) -> QueryScore:
        """Score the relevancy maps [L, H, W] of truth.prompt in one frame; a single one may be [H, W].

        Raises ValueError if they are not on the grid of the true mask, or the frame already has that prompt.
        """
        if any(row.frame == frame and row.prompt == truth.prompt for row in self.rows):
            raise ValueError(f"frame {frame} already has a score of {truth.prompt!r}")
        maps = _float_maps("maps", maps[None] if maps.ndim == 2 else maps)
        _check_grid("maps", maps, truth.mask)
        blur = blurred(maps, self.protocol)
        mask, level = _segment(maps, blur, self.protocol)
        points, hit_level = _locate(blur)
        overlap = _iou(mask, truth.mask.to(mask.device))
        kind = self.kinds.get(truth.prompt)
        row = QueryScore(frame, truth.prompt, kind, overlap, level, hits(points, truth), hit_level)
        self.rows.append(row)
        return row

    def miou(self, kind: str | None = None) -> float:
        """Mean IoU, in [0, 1], of all (frame, prompt) pairs or those of one kind of prompt.

        Raises ValueError if there are none; so does localisation.
        """
        return _mean([row.iou for row in self._of(kind)])

    def localisation(self, kind: str | None = None) -> float:
        """Share of the (frame, prompt) pairs that were hit."""
        return _mean([float(row.hit) for row in self._of(kind)])

    def scored_kinds(self) -> list[str]:
        """The kinds that have a score."""
        return sorted({row.kind for row in self.rows if row.kind is not None})

    def _of(self, kind: str | None) -> list[QueryScore]:
        rows = [row for row in self.rows if kind is None or row.kind == kind]
        if not rows:
            raise ValueError(f"there are no prompts {'' if kind is None else f'of kind {kind} '}to score")
        return rows

    def to_dict(self) -> dict[str, Any]:
        """For json; scores in [0, 1]."""

        def means(kind: str | None) -> dict[str, float]:
            return {
                "miou": self.miou(kind),
                "localisation": self.localisation(kind),
                "pairs": len(self._of(kind)),
            }

        return {
            **means(None),
            "kinds": {kind: means(kind) for kind in self.scored_kinds()},
            "protocol": asdict(self.protocol),
            "rows": [asdict(row) for row in self.rows],
        }

    def __str__(self) -> str:
        """A row for all prompts, for each kind and for each prompt, in percent."""
        lines = [("", "IoU", "loc", "pairs")]
        groups = [("all", self._of(None)), *((kind, self._of(kind)) for kind in self.scored_kinds())]
        prompts = sorted({row.prompt for row in self.rows})
        groups += [(repr(p), [row for row in self.rows if row.prompt == p]) for p in prompts]
        for name, rows in groups:
            overlap, hit = _mean([row.iou for row in rows]), _mean([float(row.hit) for row in rows])
            lines.append((name, f"{100 * overlap:.1f}", f"{100 * hit:.1f}", str(len(rows))))
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])
            for line in lines
        )


def overall(scenes: Mapping[str, OpenVocabScores]) -> dict[str, float]:
    """{"miou", "localisation"}: the plain means over scenes, however many prompts each has."""
    scores = list(scenes.values())
    if not scores:
        raise ValueError("there are no scenes to average")
    return {
        "miou": _mean([scene.miou() for scene in scores]),
        "localisation": _mean([scene.localisation() for scene in scores]),
    }


def most_relevant(maps: Tensor) -> Tensor:
    """[Q, H, W] -> bool [Q, H, W]: True for the prompt that is highest in a pixel, the first of several."""
    maps = _float_maps("maps", maps)
    prompts = torch.arange(len(maps), device=maps.device)
    return maps.argmax(dim=0) == prompts[:, None, None]


def class_ious(predicted: Tensor, truth: Tensor) -> Tensor:
    """float64 [Q]: Jaccard index of the pixels of each class, both bool [Q, ...]; 0 where neither has any."""
    predicted, truth = _multi_hot(predicted, truth)
    union = (predicted | truth).sum(dim=1).double()
    return (predicted & truth).sum(dim=1).double() / union.clamp(min=1)


def subset_accuracy(predicted: Tensor, truth: Tensor) -> float:
    """Share of the pixels whose set of classes is the true one, both bool [Q, ...]."""
    predicted, truth = _multi_hot(predicted, truth)
    return float((predicted == truth).all(dim=0).double().mean())


@dataclass
class AssignmentScores:
    """3D-OVS's scores of one scene, to which views are added one by one."""

    ious: dict[str, dict[str, float]] = field(default_factory=dict, init=False)  # view -> prompt -> IoU
    accuracies: dict[str, float] = field(default_factory=dict, init=False)  # view -> subset accuracy

    def add(self, view: str, maps: Tensor, truths: Sequence[QueryTruth]) -> None:
        """Score the relevancy maps [Q, H, W] of the Q prompts of `truths`, in their order.

        Raises ValueError if they are not on the grid of the true masks, or the view has been added already.
        """
        if view in self.ious:
            raise ValueError(f"view {view} already has scores")
        if len(truths) != len(maps):
            raise ValueError(
                f"maps must be one per prompt, but are {list(maps.shape)} for {len(truths)} prompts"
            )
        predicted = most_relevant(maps)
        for truth in truths:
            _check_grid("maps", maps, truth.mask)
        truth_masks = torch.stack([truth.mask.to(maps.device) for truth in truths])
        overlaps = class_ious(predicted, truth_masks).tolist()
        self.ious[view] = {truth.prompt: overlap for truth, overlap in zip(truths, overlaps)}
        self.accuracies[view] = subset_accuracy(predicted, truth_masks)

    @property
    def miou(self) -> float:
        """Mean over the prompts of each view, then over views."""
        if not self.ious:
            raise ValueError("there are no views to score")
        return _mean([_mean(ious.values()) for ious in self.ious.values()])

    @property
    def accuracy(self) -> float:
        """Mean over views."""
        if not self.accuracies:
            raise ValueError("there are no views to score")
        return _mean(self.accuracies.values())

    def to_dict(self) -> dict[str, Any]:
        """For json; scores in [0, 1]."""
        return {
            "miou": self.miou,
            "accuracy": self.accuracy,
            "views": {
                view: {"ious": ious, "accuracy": self.accuracies[view]} for view, ious in self.ious.items()
            },
        }


def retrieval_recall(
    relevancy_map: Tensor,
    segments: Tensor | Sequence[Tensor],
    truth: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    iou: float = 0.5,
) -> dict[int, bool]:
    """K -> whether one of the first K segments is the right one. R@K is the mean over queries.

    relevancy_map: [H, W] of one query; segments: bool [S, H, W] or a list of [H, W], or whole numbers [L, H, W] that
    number them on levels (-1 = none). They are ranked by their mean relevancy, the first of equals first, empty ones
    last. Right is a segment whose overlap with `truth`, bool [H, W], exceeds `iou`: N2F2 does not say what it takes
    there, so state it beside the numbers.
    """
    if relevancy_map.ndim != 2:
        raise ValueError(f"relevancy_map must be [H, W], but is {list(relevancy_map.shape)}")
    relevancy_map = _float_maps("relevancy_map", relevancy_map[None])[0]
    truth = _mask("truth", truth).to(relevancy_map.device)
    _check_grid("relevancy_map", relevancy_map, truth)
    if any(k < 1 for k in ks):
        raise ValueError(f"ks must be 1 or more, but are {list(ks)}")
    if not 0 <= iou < 1:
        raise ValueError(f"iou must lie in [0, 1), but is {iou}")
    if isinstance(segments, Tensor) and not segments.is_floating_point() and segments.dtype != torch.bool:
        return _recall_of_numbered(relevancy_map, segments, truth, ks, iou)
    means, right = [], []
    for mask in segments:
        mask = _mask("each of the segments", mask).to(relevancy_map.device)
        _check_grid("each of the segments", mask, truth)
        inside = relevancy_map[mask]
        means.append(float(inside.double().mean()) if len(inside) else -torch.inf)
        right.append(_iou(mask, truth) > iou)
    ranked = [right[i] for i in sorted(range(len(means)), key=lambda i: -means[i])]
    return {k: any(ranked[:k]) for k in ks}


def _recall_of_numbered(
    relevancy_map: Tensor, segments: Tensor, truth: Tensor, ks: Sequence[int], iou: float
) -> dict[int, bool]:
    """The same by sums over pixels, of all segments at once."""
    if segments.ndim != 3 or segments.shape[1:] != truth.shape:
        raise ValueError(
            f"segments must be [L, {', '.join(map(str, truth.shape))}], but are {list(segments.shape)}"
        )
    numbers = segments.long().flatten(1)
    level, pixel = (numbers >= 0).nonzero(as_tuple=True)
    of, count = numbers[level, pixel], max(int(numbers.max()) + 1, 0) if numbers.numel() else 0

    def sums(values: Tensor) -> Tensor:
        return torch.bincount(of, weights=values.flatten().double()[pixel], minlength=count)

    pixels, both = sums(torch.ones_like(relevancy_map)), sums(truth)
    right = both > iou * (pixels + int(truth.sum()) - both)
    means = torch.where(pixels > 0, sums(relevancy_map) / pixels.clamp_min(1), -torch.inf)
    ranked = right[torch.sort(means, descending=True, stable=True).indices].tolist()
    return {k: any(ranked[:k]) for k in ks}


@dataclass
class RetrievalScores:
    """R@K over (view, prompt) pairs."""

    ks: tuple[int, ...] = (1, 5, 10)
    iou: float = 0.5
    hits: list[dict[int, bool]] = field(default_factory=list)

    def add(self, relevancy_map: Tensor, segments: Tensor, truth: QueryTruth) -> None:
        """See retrieval_recall()."""
        self.hits.append(retrieval_recall(relevancy_map, segments, truth.mask, self.ks, self.iou))

    def recall(self, k: int) -> float:
        """In [0, 1]; 0 of no pairs."""
        return _mean(hit[k] for hit in self.hits) if self.hits else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {f"R@{k}": self.recall(k) for k in self.ks} | {"iou": self.iou, "pairs": len(self.hits)}

    def __str__(self) -> str:
        recalls = ", ".join(f"R@{k} {100 * self.recall(k):.1f}" for k in self.ks)
        return f"segments by their mean relevancy, right above an IoU of {self.iou:g}: {recalls}"


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _float_maps(name: str, maps: Tensor) -> Tensor:
    """float32 [L, H, W], as the released code has them; at least one of each, all finite."""
    if maps.ndim != 3 or 0 in maps.shape or not maps.is_floating_point():
        raise ValueError(
            f"{name} must be floating point [L, H, W], none of these 0, "
            f"but are {maps.dtype} {list(maps.shape)}"
        )
    maps = maps.detach().float()
    if not torch.stack(maps.aminmax()).isfinite().all():  # both are nan if any is
        raise ValueError(f"{name} must be finite, but hold nan or infinity")
    return maps


def _mask(name: str, mask: Tensor) -> Tensor:
    if mask.ndim != 2 or 0 in mask.shape or mask.dtype != torch.bool:
        raise ValueError(f"{name} must be bool [H, W], neither 0, but is {mask.dtype} {list(mask.shape)}")
    return mask


def _check_grid(name: str, values: Tensor, mask: Tensor) -> None:
    if values.shape[-2:] != mask.shape[-2:]:
        raise ValueError(
            f"{name} must be on the grid of the true mask, {list(mask.shape[-2:])}, "
            f"but are on {list(values.shape[-2:])}"
        )


def _multi_hot(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [Q, pixels]."""
    for name, values in (("predicted", predicted), ("truth", truth)):
        if values.dtype != torch.bool or values.ndim < 2 or 0 in values.shape:
            raise ValueError(
                f"{name} must be bool [Q, ...], none of them 0, but is {values.dtype} {list(values.shape)}"
            )
    if predicted.shape != truth.shape:
        raise ValueError(
            f"predicted must be of the shape of truth, {list(truth.shape)}, but is {list(predicted.shape)}"
        )
    return predicted.flatten(1), truth.flatten(1)

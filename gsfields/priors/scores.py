"""Soft 2D masks of what moves, from dense optical flow against the geometry of the known cameras.

Each frame is matched with frames at several gaps in time; a pixel whose matches no single point of a static world
explains (static_world) moves. Scores are averaged along the flow over the neighbouring frames, then smoothed along
the edges of the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gsfields.camera import Camera
from gsfields.data.dataset import Dataset, View
from gsfields.priors.flow import DenseFlow, follow, require_opencv, round_trip, stays_inside
from gsfields.priors.guided_filter import guided_filter
from gsfields.priors.static_world import Matches, StaticFit, epipolar_pencil, fit_static_world, project

Array = np.ndarray
_LAG = 2  # scores are averaged over neighbours at gaps up to this
# Slope of the reported scores at 0.5. Steeper, what stands still comes nearer to 0, and so does what is slow or dark.
_CONTRAST = 2
_STRONGEST = 30.0  # standard deviations; a wrong match can be any number off


@dataclass(frozen=True)
class FlowConfig:
    """How motion is looked for. Raises ValueError for values out of range."""

    gaps: tuple[int, ...] = (1, 2, 4, 8, 16)  # frames between the two of a pair, both ways in time
    width: int = 320  # flow is computed on frames of this width, pixels
    half: float = 0.4  # a residual of this share of the frame's strongest (95th percentile) scores one half
    least: float = 4.0  # but never one below this; residuals are in standard deviations of the static pixels'
    floor: float = 0.2 / 320  # least such standard deviation, as a share of the width
    doubt: float = 0.5  # matches that say a pixel stands still, added to those of each gap
    pool: float = 2.0  # exponent of the mean over gaps: 1 is the plain mean, infinity the greatest
    lost: float = 0.3  # score of a pixel that the nearest frames do not show, though the camera looks there
    radius: float = 0.05  # of the edge-aware smoothing, as a share of the width
    cut: float = 0.3  # the smoothed score that is reported as 0.5

    def __post_init__(self) -> None:
        gaps = tuple(self.gaps)
        if not gaps or len(set(gaps)) < len(gaps) or not all(isinstance(g, int) and g >= 1 for g in gaps):
            raise ValueError(
                f"gaps must be different whole numbers of frames, at least 1, but are {self.gaps}"
            )
        object.__setattr__(self, "gaps", tuple(sorted(gaps)))
        if self.width < 32:
            raise ValueError(f"width must be at least 32 pixels, but is {self.width}")
        for name in ("half", "least", "floor", "doubt", "pool", "radius", "cut"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, but is {getattr(self, name)}")


def motion_scores(dataset: Dataset, config: FlowConfig | None = None) -> Iterator[tuple[View, Array]]:
    """(view, score) for every view of a video in time order; score [H, W] float32 in [0, 1] at the size of the
    view's camera, above 0.5 where the pixel shows something that moves.

    At most 2 max(gaps) + 3 frames are held at a time, at the size that flow is computed at.

    Raises ValueError if there are fewer than two views, ImportError where OpenCV is missing.
    """
    if len(dataset.views) < 2:
        raise ValueError(
            f"motion needs two views or more, but dataset {dataset.name!r} has {len(dataset.views)}"
        )
    require_opencv()
    return _Video(dataset, config or FlowConfig()).scores()


@dataclass
class _Frame:
    """One frame at the size that flow is computed at."""

    camera: Camera
    grey: Array  # uint8 [H, W]
    image: Array  # float32 [H, W, 3], contrast normalised
    known: Array  # float32 [H, W]: 1 where the image is known
    pairs: list[_Pair] = field(default_factory=list)
    evidence: Array | None = None  # float32 [H, W] in [0, 1]


class _Pair(NamedTuple):
    other: int  # place of the other frame in time order
    gap: int  # how far that is from this one
    matches: Matches
    inside: Array  # float32 [H, W]: 1 where the match, right or wrong, lies in the other image


class _Video:
    """The frames of a dataset in time order, of which only a window is held."""

    def __init__(self, dataset: Dataset, config: FlowConfig) -> None:
        order = np.argsort(dataset.times().numpy(), kind="stable")
        self.views = [dataset.views[i] for i in order]
        self.points = dataset.points
        self.far = 1e3 * dataset.scene_extent
        self.config = config
        self.flow = DenseFlow()
        self.frames: dict[int, _Frame] = {}

    def scores(self) -> Iterator[tuple[View, Array]]:
        reach = max(self.config.gaps)
        judged = 0
        for place, view in enumerate(self.views):
            while judged <= min(place + _LAG, len(self.views) - 1):
                for other in range(max(judged - reach, 0), min(judged + reach + 1, len(self.views))):
                    if other not in self.frames:
                        self.frames[other] = self._read(self.views[other])
                self._judge(judged)
                judged += 1
                for old in [k for k in self.frames if k < min(place - _LAG, judged - reach)]:
                    del self.frames[old]
            yield view, self._score(place, view)

    def _read(self, view: View) -> _Frame:
        cv2 = require_opencv()
        width = self.config.width
        height = max(1, round(view.camera.height * width / view.camera.width))
        smaller = width <= view.camera.width
        size, how = (width, height), cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        pixels, mask = view.load()  # once: image() and mask() would decode twice where nothing is cached
        image = cv2.resize(pixels.numpy(), size, interpolation=how).astype(np.float32)
        image = (image / 255 if pixels.dtype == torch.uint8 else image).clip(0, 1)
        known = np.ones(image.shape[:2], np.float32)
        if mask is not None:
            known = (cv2.resize(mask.float().numpy(), size, interpolation=cv2.INTER_AREA) > 0.99).astype(
                np.float32
            )
        grey = cv2.cvtColor((image * 255).round().astype(np.uint8), cv2.COLOR_RGB2GRAY)
        contrast = (image - image.mean()) * np.float32(0.25 / max(float(image.std()), 0.02))
        return _Frame(view.camera.resized(width, height), grey, contrast, known)

    def _judge(self, place: int) -> None:
        """Fill in the pairs and the evidence of a frame.

        The depths that the nearer frames give say where static pixels show in the farther ones, so that flow has
        little left to find there, at any baseline, but motion.
        """
        frame, config = self.frames[place], self.config
        bounds = self._bounds(self.views[place])
        depth = np.full_like(frame.known, bounds[0])
        fit = None
        for gap in config.gaps:
            others = [k for k in (place - gap, place + gap) if 0 <= k < len(self.views)]
            pairs = [self._pair(frame, k, gap, depth) for k in others]
            frame.pairs += [
                p for p in pairs if p is not None and p.matches.weight.sum() > 0.1 * p.inside.sum()
            ]
            if frame.pairs:
                floor = config.floor * config.width
                fit = fit_static_world(
                    frame.camera, [pair.matches for pair in frame.pairs], bounds=bounds, floor=floor
                )
                depth = self._smoothed(fit)
        frame.evidence = np.zeros_like(frame.known) if fit is None else self._evidence(frame, fit)
        frame.pairs = [pair for pair in frame.pairs if pair.gap <= _LAG]  # the rest has served

    def _smoothed(self, fit: StaticFit) -> Array:
        """The inverse depth averaged over a few pixels, by its certainty."""
        cv2 = require_opencv()
        size = 2 * round(0.01 * self.config.width) + 1
        certainty = fit.information / max(float(fit.information.max()), 1e-12) + np.float32(1e-5)
        total: Array = cv2.boxFilter(fit.inverse_depth * certainty, -1, (size, size))
        return total / np.maximum(cv2.boxFilter(certainty, -1, (size, size)), 1e-6)

    def _evidence(self, frame: _Frame, fit: StaticFit) -> Array:
        """How surely each pixel moves, from each gap's own evidence: slow motion shows at wide gaps, what moves fast
        is found again at narrow ones only.
        """
        config = self.config
        weight = np.stack([pair.matches.weight for pair in frame.pairs])
        square = (fit.residuals**2).sum(-1) / fit.sigmas[:, None, None] ** 2
        strength = np.sqrt(
            (weight * np.minimum(square, _STRONGEST**2)).sum(0) / (weight.sum(0) + config.doubt)
        )
        half = max(config.least, config.half * float(np.quantile(strength, 0.95)))
        moved = square / (half**2 + square)
        gaps = np.array([pair.gap for pair in frame.pairs])
        together = (weight * moved).sum(0) / (weight.sum(0) + 2 * config.doubt)
        levels = []
        for gap in np.unique(gaps):
            w, m = weight[gaps == gap], moved[gaps == gap]
            levels.append((together + (w * m).sum(0) / (w.sum(0) + config.doubt)) / 2)
        pooled = np.mean(np.stack(levels) ** config.pool, axis=0) ** (1 / config.pool)
        near = gaps <= _LAG
        expected = sum((pair.inside for pair in frame.pairs if pair.gap <= _LAG), np.zeros_like(frame.known))
        lost = (1 - 3 * weight[near].sum(0) / np.maximum(expected, 1)).clip(0, 1) * (expected >= 2)
        evidence: Array = (pooled + config.lost * lost).clip(0, 1).astype(np.float32)
        return evidence

    def _pair(self, frame: _Frame, other: int, gap: int, inverse_depth: Array) -> _Pair | None:
        """Matches of `frame` in another, which is first warped to where `inverse_depth` says: what is left for the
        flow is the error of the depth and motion. None if the two hardly overlap.
        """
        cv2 = require_opencv()
        target = self.frames[other]
        width = self.config.width
        there = project(*epipolar_pencil(frame.camera, target.camera), inverse_depth).clip(-1e4, 1e4)
        spot = there[..., 0] - 0.5, there[..., 1] - 0.5
        known = cv2.remap(target.known, *spot, cv2.INTER_LINEAR)
        if known.mean() < 0.2:
            return None
        warped = cv2.remap(target.grey, *spot, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        forward = self.flow(frame.grey, warped)
        error = round_trip(forward, self.flow(warped, frame.grey))
        tolerance = 0.5 * width / 320 + 0.03 * np.linalg.norm(forward, axis=-1)
        inside = (follow(known, forward) > 0.99) & stays_inside(forward) & (frame.known > 0)
        weight = np.exp(-0.5 * np.minimum(error / tolerance, 10) ** 2).astype(np.float32) * inside
        points = follow(there, forward)
        return _Pair(other, gap, Matches(target.camera, points, weight), inside.astype(np.float32))

    def _bounds(self, view: View) -> tuple[float, float]:
        """Least and greatest inverse depth of the static scene in this view, with a margin of three."""
        near, far = self.far * 1e-5, self.far
        if view.bounds is not None and view.bounds[0] > 0:
            near, far = view.bounds
        elif self.points is not None and (depth := _depths(view.camera, self.points)).numel() > 50:
            near, far = (float(q) for q in torch.quantile(depth, torch.tensor([0.001, 0.999])))
        return 1 / (3 * far), 3 / near

    def _score(self, place: int, view: View) -> Array:
        """The evidence of a frame and its neighbours, smoothed, at the size of the view."""
        cv2 = require_opencv()
        frame = self.frames[place]
        assert frame.evidence is not None
        total, weights = frame.evidence.copy(), np.ones_like(frame.evidence)
        for pair in frame.pairs:
            evidence = self.frames[pair.other].evidence
            spot = pair.matches.points - 0.5
            total += pair.matches.weight * cv2.remap(evidence, spot[..., 0], spot[..., 1], cv2.INTER_LINEAR)
            weights += pair.matches.weight
        frame.pairs.clear()
        smooth = guided_filter(frame.image, total / weights, round(self.config.radius * self.config.width))
        smooth = smooth.clip(0, 1)
        ratio = (smooth / self.config.cut) ** _CONTRAST
        score = ratio / (1 + ratio)
        size = (view.camera.width, view.camera.height)
        return cv2.resize(score.astype(np.float32), size, interpolation=cv2.INTER_LINEAR).clip(0, 1)


def _depths(camera: Camera, points: Tensor) -> Tensor:
    """Depths of the points that show in the image."""
    p = points @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
    p = p[p[:, 2] > 0]
    xy = (p @ camera.K.T)[:, :2] / p[:, 2:]
    shown = (xy > 0).all(1) & (xy < torch.tensor([camera.width, camera.height])).all(1)
    return p[shown, 2]

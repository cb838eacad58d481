"""Identity by tracking in 2D: per-frame segments, numbered differently in every frame, get ids that last through the
sequence. The kinds of baseline that Contrastive Lift (Bhalgat et al., NeurIPS 2023) is compared with; their details
are our own, chosen to make them strong.

    hungarian        segments of a frame take the tracks that their masks overlap most
    hungarian_warped the same once the earlier masks are where depth and cameras say that they are now
    on_points        the same on a point cloud: objects are sets of points, each of which remembers every id it got

All match one to one by the Hungarian method on IoU, go through the frames once and never change a frame they have
passed. A segment that takes no track starts one. Where frames have semantics a track keeps to its class.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from gsfields.camera import Camera

MIN_IOU = 0.1  # of a match; on noisy segments all three do better than at SORT's 0.3 (Bewley et al. 2016)
MEMORY = 10  # frames
TOLERANCE = 0.05  # of the depth


class Frame(NamedTuple):
    """What one frame is known by. hungarian needs only the ids, the others also depth and camera."""

    ids: np.ndarray  # [H, W] whole numbers, 0 = none
    semantics: np.ndarray | None = None  # [H, W], classes; a segment has that of most of its pixels
    depth: np.ndarray | None = None  # [H, W] z of the camera's frame; not positive or not finite: none
    camera: Camera | None = None


def hungarian(
    frames: Iterable[Frame], *, min_iou: float = MIN_IOU, memory: int = MEMORY
) -> Iterator[np.ndarray]:
    """Scene-wide ids, int32 [H, W], of every frame, by the overlap with each track's mask in the frame that saw it
    last.

    A track is given up when it was missing from more than `memory` frames in a row. min_iou is in (0, 1].
    """
    return _followed(frames, _InPlace, _Tracks(min_iou), _memory_of(memory))


def hungarian_warped(
    frames: Iterable[Frame],
    *,
    min_iou: float = MIN_IOU,
    memory: int = MEMORY,
    tolerance: float = TOLERANCE,
) -> Iterator[np.ndarray]:
    """As hungarian, after warping the earlier masks: each pixel looks up its label where its point of the scene was
    seen, unless that point was hidden (the depth there differs by more than `tolerance`, relative). IoU is over the
    pixels that both frames see.
    """

    def place(frame: Frame, number: int) -> _View:
        return _View(frame, number, tolerance)

    return _followed(frames, place, _Tracks(min_iou), _memory_of(memory))


def on_points(
    frames: Iterable[Frame],
    points: np.ndarray,
    *,
    min_iou: float = MIN_IOU,
    tolerance: float = TOLERANCE,
) -> Iterator[np.ndarray]:
    """Scene-wide ids, int32 [H, W], of every frame, by the overlap of sets of points [M, 3], in the world.

    A frame sees the points that lie at its depth (to within `tolerance`, relative). Where its pixel is in a segment a
    point gets that id as a vote, and it belongs to each object by its share of the point's votes; IoU is over the
    points that the frame sees. Nothing is forgotten. (To the object with most votes alone does worse on noisy
    segments, and so does counting no segment as a vote.)
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must be [M, 3], but are {list(points.shape)}")
    return _voted(frames, points, _Tracks(min_iou), tolerance)


def _followed(
    frames: Iterable[Frame],
    place: Callable[[Frame, int], Any],  # what tells which pixels of an earlier frame show the same
    tracks: _Tracks,
    remembered: deque[tuple[Any, np.ndarray]],
) -> Iterator[np.ndarray]:
    for number, frame in enumerate(frames):
        segments, here = _Segments.of(frame, number), place(frame, number)
        overlaps = []
        for earlier, ids in remembered:
            if ids.any():
                pixels, its_pixels = here.seen_in(earlier)
                overlaps.append(segments.overlaps(pixels, ids.ravel()[its_pixels]))
        ids = tracks.assign(segments, overlaps)
        found = np.unique(ids)
        for _, older in remembered:  # a track is looked for where it was seen last, and nowhere else
            older[np.isin(older, found)] = 0
        remembered.append((here, ids.copy()))
        yield ids


def _voted(
    frames: Iterable[Frame], points: np.ndarray, tracks: _Tracks, tolerance: float
) -> Iterator[np.ndarray]:
    votes = _Votes(len(points))
    for number, frame in enumerate(frames):
        segments = _Segments.of(frame, number)
        seen, pixels = _View(frame, number, tolerance).sees(points)
        which, objects, shares = votes.shares(seen)
        ids = tracks.assign(segments, [segments.overlaps(pixels[which], objects, shares)])
        votes.add(seen, ids.ravel()[pixels])
        yield ids


def _memory_of(frames: int) -> deque[tuple[Any, np.ndarray]]:
    if frames < 0:
        raise ValueError(f"memory is a number of frames, at least 0, but is {frames}")
    return deque(maxlen=frames + 1)


class _Tracks:
    """The ids given so far, from 1, and the class of each."""

    def __init__(self, min_iou: float) -> None:
        if not 0 < min_iou <= 1:
            raise ValueError(f"min_iou must lie in (0, 1], but is {min_iou}")
        self._min_iou = min_iou
        self._classes = np.zeros(1, dtype=np.int64)  # by id; 0 is none

    def assign(self, segments: _Segments, overlaps: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """The ids [H, W] of a frame's segments, from (tracks [T], IoU [T, S]) of tracks that are all different."""
        names = np.concatenate([np.zeros(0, dtype=np.int64), *(tracks for tracks, _ in overlaps)])
        iou = np.concatenate([np.zeros((0, len(segments.classes))), *(table for _, table in overlaps)])
        allowed = (iou >= self._min_iou) & (self._classes[names][:, None] == segments.classes)
        iou = np.where(allowed, iou, 0)  # before matching, so that what cannot match displaces nothing
        rows, columns = linear_sum_assignment(iou, maximize=True)
        matched = allowed[rows, columns]
        ids = np.zeros(len(segments.classes) + 1, dtype=np.int32)
        ids[columns[matched] + 1] = names[rows[matched]]
        new = np.flatnonzero(ids[1:] == 0)
        ids[new + 1] = len(self._classes) + np.arange(len(new))
        self._classes = np.append(self._classes, segments.classes[new])
        return ids[segments.index]


@dataclass
class _Segments:
    """The S segments of one frame."""

    index: np.ndarray  # [H, W], 0 = none, then 1 to S
    classes: np.ndarray  # [S], -1 = not known

    @classmethod
    def of(cls, frame: Frame, number: int) -> _Segments:
        ids = np.asarray(frame.ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.min(initial=0) < 0:
            raise ValueError(
                f"the ids of frame {number} must be whole numbers [H, W], none below 0, but are {ids.dtype} "
                f"{list(ids.shape)}"
            )
        names, index = np.unique(np.append(0, ids), return_inverse=True)
        index, count = index[1:].reshape(ids.shape), len(names) - 1
        if frame.semantics is None:
            return cls(index, np.full(count, -1))
        semantics = np.asarray(frame.semantics)
        if semantics.shape != ids.shape:
            raise ValueError(
                f"the semantics of frame {number} are {list(semantics.shape)}, but its ids {list(ids.shape)}"
            )
        kinds, kind = np.unique(semantics, return_inverse=True)
        votes = _contingency(index.ravel(), kind.ravel(), (count + 1, len(kinds)))
        return cls(index, kinds[votes[1:].argmax(axis=1)].astype(np.int64))

    def overlaps(
        self, pixels: np.ndarray, tracks: np.ndarray, shares: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(the T tracks among `tracks` [P], their IoU with the segments [T, S]), over P pixels, flat indices, of which
        `shares` [P] says how much each counts.
        """
        names, row = np.unique(tracks, return_inverse=True)
        table = _contingency(row, self.index.ravel()[pixels], (len(names), len(self.classes) + 1), shares)
        union = table.sum(axis=1, keepdims=True) + table.sum(axis=0) - table
        iou = np.divide(table, union, out=np.zeros(table.shape), where=union > 0)
        return names[names > 0], iou[names > 0, 1:]


def _contingency(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], weights: np.ndarray | None = None
) -> np.ndarray:
    return np.bincount(rows * shape[1] + columns, weights, shape[0] * shape[1]).reshape(shape)


class _InPlace:
    """A frame without geometry: what is at a pixel was there before."""

    def __init__(self, frame: Frame, number: int) -> None:
        self._shape, self._number = np.asarray(frame.ids).shape, number

    def seen_in(self, earlier: _InPlace) -> tuple[np.ndarray, np.ndarray]:
        """(my pixels, the same in an earlier frame), flat indices."""
        if self._shape != earlier._shape:
            raise ValueError(
                f"without cameras all frames must have one size, but frame {self._number} is {list(self._shape)} and "
                f"frame {earlier._number} {list(earlier._shape)}"
            )
        pixels = np.arange(np.prod(self._shape))
        return pixels, pixels


class _View:
    """A frame with depth and camera."""

    def __init__(self, frame: Frame, number: int, tolerance: float) -> None:
        if frame.depth is None or frame.camera is None:
            raise ValueError(f"frame {number} must have a depth and a camera")
        self._tolerance, camera = tolerance, frame.camera
        self._depth = np.asarray(frame.depth, dtype=np.float64)
        self._shape = (camera.height, camera.width)
        ids = np.asarray(frame.ids).shape
        if not self._depth.shape == ids == self._shape:
            raise ValueError(
                f"the depth of frame {number} is {list(self._depth.shape)}, its ids {list(ids)} and its camera's "
                f"image {list(self._shape)}, but they must be one size"
            )
        viewmat, K = camera.viewmat.double().cpu().numpy(), camera.K.double().cpu().numpy()
        self._rotation, self._translation = viewmat[:3, :3], viewmat[:3, 3]
        self._focal, self._centre = K[[0, 1], [0, 1]], K[:2, 2]

    @cached_property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """(the pixels that have a depth [P], flat indices; their points in the world [P, 3])"""
        pixels = np.flatnonzero(np.isfinite(self._depth) & (self._depth > 0))
        rows, columns = np.unravel_index(pixels, self._shape)
        z = self._depth.ravel()[pixels, None]
        xy = (np.stack([columns, rows], axis=1) + 0.5 - self._centre) / self._focal * z
        return pixels, (np.concatenate([xy, z], axis=1) - self._translation) @ self._rotation

    def sees(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of the points [M, 3] lie at this frame's depth, the pixels that show them), flat indices."""
        local = points @ self._rotation.T + self._translation
        which = np.flatnonzero(local[:, 2] > 0)
        xy, z = local[which, :2], local[which, 2]
        with np.errstate(over="ignore"):
            at = np.floor(xy / z[:, None] * self._focal + self._centre)
        inside = ((at >= 0) & (at < self._shape[::-1])).all(axis=1)
        which, z, (columns, rows) = which[inside], z[inside], at[inside].astype(np.int64).T
        near = np.abs(self._depth[rows, columns] - z) <= self._tolerance * z
        return which[near], (rows * self._shape[1] + columns)[near]

    def seen_in(self, earlier: _View) -> tuple[np.ndarray, np.ndarray]:
        """(my pixels, the same in an earlier frame), flat indices."""
        pixels, points = self.points
        which, its_pixels = earlier.sees(points)
        return pixels[which], its_pixels


class _Votes:
    """How often each of M points got each id; only what it got is stored."""

    def __init__(self, points: int) -> None:
        self._points = points
        self._keys: np.ndarray = np.zeros(0, dtype=np.int64)  # of (point, id), sorted
        self._counts: np.ndarray = np.zeros(0)

    def add(self, points: np.ndarray, ids: np.ndarray) -> None:
        """One vote for each of the points, every one at most once; id 0 is none."""
        keys = points[ids > 0].astype(np.int64) << 32 | ids[ids > 0]
        counts = np.append(self._counts, np.ones(len(keys)))
        self._keys, index = np.unique(np.append(self._keys, keys), return_inverse=True)
        self._counts = np.bincount(index, counts, len(self._keys))

    def shares(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(which of the given points, id, its share of the point's votes), all [E]; one entry of id 0 for a point
        without votes.
        """
        place = np.full(self._points, -1)
        place[points] = np.arange(len(points))
        voted, ids = self._keys >> 32, self._keys & 0xFFFFFFFF
        totals = np.bincount(voted, self._counts, self._points)
        asked = place[voted] >= 0
        none = np.flatnonzero(totals[points] == 0)
        return (
            np.append(place[voted[asked]], none),
            np.append(ids[asked], np.zeros_like(none)),
            np.append(self._counts[asked] / totals[voted[asked]], np.ones(len(none))),
        )

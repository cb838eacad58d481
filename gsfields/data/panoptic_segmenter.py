"""A simulated 2D panoptic segmenter: true ids of a view in, segments out that are wrong in the ways of Detic or
Mask2Former on cluttered scenes, with numbers that mean nothing outside their view.

Objects are missed (small and hidden ones more often), cut in two or three, merged with what they touch, given the
class of something else; borders are ragged; the room holds false segments. How an object fares is a normal
variable, of which one part belongs to the object for ever (some are always hard), one changes slowly with the
viewpoint (neighbouring views err alike) and one is new in each view. An error happens where the variable is in
the upper tail, so that the rates are met whatever the parts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy import ndimage
from scipy.special import ndtr, ndtri

from gsfields.data.messy_scene import MessyFrame, MessyScene
from gsfields.data.segments import Classes, Segments
from gsfields.data.solids import Array

_REFERENCE_WIDTH = 128  # pixels; lengths in pixels below are those of an image this wide
_WAVES = 24  # plane waves that a random field is made of
_USUAL_SHARE = 0.008  # of the image: an object of this size is as hard as its rate says
_LEAST_PIXELS = 14  # a segmenter's smallest segment
_RAGGED_LENGTH = 2.5  # pixels along a border over which it is off alike
_FALSE_LENGTH = 0.12  # metres (without points: image widths) across a false segment, about
_MISSED, _MERGED, _SPLIT, _CLASS, _DIRECTION, _PLACE, _THIRD, _CONFIDENCE, _OTHER = range(9)


@dataclass(frozen=True)
class PanopticSegmenterConfig:
    """How the segmenter errs; lengths in pixels are those of an image 128 wide.

    errors: multiplies all that follow but the last three, 0 gives the truth in random numbers. missed: the
    share of objects not found, of a usual size (0.8 % of the image) and half surrounded by others. split: of
    objects cut in two or three. merged: of touching pairs taken for one. ragged: pixels by which borders are
    off. false_segments: the share of the room (or other stuff) that false segments cover. wrong_class: of
    segments with another class; those that become stuff lose their number.
    lasting, gradual: the shares of the variance of how an object fares that belong to the object, and that
    change with the viewpoint over a distance of `view_length` (cameras' positions, in radii of the dome).
    """

    errors: float = 1.0
    missed: float = 0.1
    split: float = 0.08
    merged: float = 0.12
    ragged: float = 0.55
    false_segments: float = 0.02
    wrong_class: float = 0.03
    lasting: float = 0.35
    gradual: float = 0.4
    view_length: float = 0.3

    def __post_init__(self) -> None:
        most = {"errors": 5.0, "ragged": 20.0, "view_length": 1e6}
        for item in fields(self):
            value, low, high = getattr(self, item.name), 0.0, most.get(item.name, 1.0)
            low = 1e-3 if item.name == "view_length" else low
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{item.name} must be a number from {low:g} to {high:g}, but is {value!r}")
        if self.lasting + self.gradual > 1:
            raise ValueError(
                f"lasting and gradual must be 1 at most in sum, but are {self.lasting + self.gradual:g}"
            )


class PanopticSegmenter:
    """One segmenter; views may be asked for in any order, and the same view gives the same segments."""

    def __init__(
        self,
        config: PanopticSegmenterConfig | None = None,
        seed: int = 0,
        classes: Classes | None = None,
    ) -> None:
        self.config, self.seed = config or PanopticSegmenterConfig(), seed
        self.classes = classes or Classes()
        if not self.classes.things or not self.classes.stuff:
            raise ValueError("classes must name at least one of things and one of stuff")
        self._moods: dict[tuple[int, ...], tuple[float, _Waves]] = {}

    def of(self, scene: MessyScene, frame: MessyFrame) -> Segments:
        """What the segmenter says of a view of a messy room."""
        viewpoint = frame.pose[:3, 3] / scene.dome
        return self.segment(frame.instances, index=frame.index, viewpoint=viewpoint, points=frame.points)

    def segment(
        self,
        ids: Array,
        *,
        index: int = 0,
        semantics: Array | None = None,
        viewpoint: Array | None = None,
        points: Array | None = None,
    ) -> Segments:
        """Segments of a view whose true ids are [H, W] (0: none).

        index: which view it is. semantics: true classes [H, W] (None: the first thing class on objects, the
        first stuff class elsewhere). viewpoint: the camera's position [3] (None: a step of a tenth of
        view_length from index to index). points: the visible points [H, W, 3] in the world, to which false
        segments stick (None: pixels).

        Raises ValueError if ids are anything else, or the maps are not of one shape.
        """
        true = np.asarray(ids)
        if true.ndim != 2 or true.dtype.kind not in "biu" or true.min(initial=0) < 0:
            raise ValueError(
                f"ids must be [H, W] whole numbers from 0, but are {true.dtype} {list(true.shape)}"
            )
        for name, values in (("semantics", semantics), ("points", points)):
            if values is not None and np.shape(values)[:2] != true.shape:
                height, width = true.shape
                raise ValueError(
                    f"{name} must be those of {height}x{width} ids, but are {list(np.shape(values))}"
                )
        if semantics is None:
            semantics = np.where(true > 0, self.classes.things[0], self.classes.stuff[0])
        if viewpoint is None:
            viewpoint = np.array([0.1 * self.config.view_length * index, 0.0, 0.0])
        view = _View(true.astype(np.int64), np.asarray(semantics), index, np.asarray(viewpoint, float))
        made = self._ragged(view, self._cut(view, self._joined(view, self._found(view))))
        made = self._with_false(view, points, self._without_crumbs(view, made))
        return self._told(view, made)

    def _rate(self, rate: float) -> float:
        return self.config.errors * rate

    def _mood(self, kind: int, view: _View, *owner: int) -> float:
        """How `owner` fares in a view in one respect: a standard normal variable."""
        key = (kind, *owner)
        if key not in self._moods:
            rng = np.random.default_rng([self.seed, 31, *key])
            self._moods[key] = float(rng.normal()), _Waves(rng, 3, self.config.view_length)
        bias, waves = self._moods[key]
        config = self.config
        fresh = max(1 - config.lasting - config.gradual, 0.0)
        value = np.sqrt(config.lasting) * bias + np.sqrt(config.gradual) * waves(view.viewpoint)
        if fresh:
            value += np.sqrt(fresh) * np.random.default_rng([self.seed, 32, view.index, *key]).normal()
        return float(value)

    def _befalls(self, kind: int, view: _View, rate: float, *owner: int) -> bool:
        """Whether an error of that rate happens."""
        return self._mood(kind, view, *owner) > ndtri(1 - min(self._rate(rate), 0.97))

    def _found(self, view: _View) -> Array:
        """The ids [H, W] of the objects that are found."""
        missed = []
        for owner, share in view.shares.items():
            small = np.clip(np.sqrt(_USUAL_SHARE / share), 0.5, 4)
            hidden = 0.4 + 1.2 * view.crowding(owner)
            if self._befalls(_MISSED, view, self.config.missed * small * hidden, owner):
                missed.append(owner)
        return np.where(np.isin(view.true, missed), 0, view.true)

    def _joined(self, view: _View, made: Array) -> Array:
        """`made` with some touching objects as one; each object is in one pair at most."""
        here = set(np.unique(made).tolist())
        taken: set[int] = set()
        for (a, b), border in view.borders.items():
            if a == 0 or not {a, b} <= here or taken & {a, b}:
                continue
            closeness = min(1.0, 3 * border / min(view.outlines[a], view.outlines[b]))
            if self._befalls(_MERGED, view, self.config.merged * closeness, a, b):
                made = np.where(made == b, a, made)
                taken |= {a, b}
        return made

    def _cut(self, view: _View, made: Array) -> Array:
        """`made` with some objects cut along a smooth curve, the pieces in numbers of their own."""
        made = made.copy()
        fresh = int(view.true.max()) + 1
        for owner in np.unique(made[made > 0]).tolist():
            large = np.clip(np.sqrt(view.shares[owner] / _USUAL_SHARE), 0.4, 2)
            if not self._befalls(_SPLIT, view, self.config.split * large, owner):
                continue
            rows, columns = np.nonzero(made == owner)
            across = _across(rows, columns, float(2 * np.pi * ndtr(self._mood(_DIRECTION, view, owner))))
            where = 0.3 + 0.4 * float(ndtr(self._mood(_PLACE, view, owner)))
            cuts = [where / 1.6, where / 1.6 + 0.34] if self._mood(_THIRD, view, owner) > 1 else [where]
            piece = np.searchsorted(np.quantile(across, cuts), across)
            made[rows, columns] = np.where(piece == 0, owner, fresh + piece - 1)
            fresh += len(cuts)
        return made

    def _ragged(self, view: _View, made: Array) -> Array:
        """`made` with its borders displaced by smooth noise, which is another in every view."""
        amount, length = self._rate(self.config.ragged) * view.scale, _RAGGED_LENGTH * view.scale
        if amount == 0:
            return made
        noise = np.random.default_rng([self.seed, 33, view.index]).normal(size=(2, *made.shape))
        smooth = ndimage.gaussian_filter(noise, (0, length, length), mode="wrap")
        shift = smooth * (amount * 2 * np.sqrt(np.pi) * length)  # of unit variance before
        rows, columns = np.rint(np.indices(made.shape) + shift).astype(int)
        return made[rows.clip(0, made.shape[0] - 1), columns.clip(0, made.shape[1] - 1)]

    def _with_false(self, view: _View, points: Array | None, made: Array) -> Array:
        """`made` with false segments on what is no object, where a random field on its surfaces is high."""
        share = min(self._rate(self.config.false_segments), 0.97)
        if share == 0:
            return made
        if points is None:
            rows, columns = np.indices(made.shape) / made.shape[1]
            points = np.stack([columns, rows, 0 * rows], axis=-1)
        rng = np.random.default_rng([self.seed, 34])
        lasting = _Waves(rng, 3, _FALSE_LENGTH)(points)
        # The rest of the field drifts past the surfaces as the viewpoint changes.
        ahead = 4 * _FALSE_LENGTH * view.viewpoint / self.config.view_length
        passing = _Waves(rng, 3, _FALSE_LENGTH)(points + ahead)
        field = np.sqrt(self.config.lasting) * lasting + np.sqrt(1 - self.config.lasting) * passing
        blobs, _ = ndimage.label((field > ndtri(1 - share)) & (view.true == 0) & (made == 0))
        blobs = self._without_crumbs(view, blobs)
        return np.where(blobs > 0, blobs + max(int(made.max()), int(view.true.max())), made)

    def _without_crumbs(self, view: _View, made: Array) -> Array:
        """`made` without segments too small for a segmenter (a perfect one finds all)."""
        least = _LEAST_PIXELS * view.scale**2 * min(self.config.errors, 1)
        return np.where(np.bincount(made.ravel())[made] < least, 0, made)

    def _told(self, view: _View, made: Array) -> Segments:
        """Segments in random numbers, with classes and confidences."""
        numbers, inverse = np.unique(made, return_inverse=True)
        inverse = inverse.reshape(made.shape)
        rng = np.random.default_rng([self.seed, 35, view.index])
        told = 1 + rng.permutation(3 * len(numbers))[: len(numbers)]
        sure, classes = np.ones(len(numbers)), np.zeros(len(numbers), dtype=np.int64)
        stuff = np.where(np.isin(view.semantics, self.classes.stuff), view.semantics, self.classes.stuff[0])
        for slot, number in enumerate(numbers.tolist()):
            if number == 0:
                told[slot] = 0
                continue
            here = inverse == slot
            owner, overlap = _best_match(view.true, here)
            classes[slot] = self._class(view, here, owner)
            if classes[slot] in self.classes.stuff:
                told[slot] = 0
            else:
                score = 4 * (overlap - 0.45) + 0.9 * self._mood(_CONFIDENCE, view, owner, number)
                sure[slot] = 1 / (1 + np.exp(-score)) if self.config.errors else 1.0
        semantics = np.where(made == 0, stuff, classes[inverse])
        return Segments(
            torch.from_numpy(told[inverse].astype(np.int32)),
            torch.from_numpy(semantics.astype(np.int32)),
            torch.from_numpy(sure[inverse].astype(np.float32)),
        )

    def _class(self, view: _View, here: Array, owner: int) -> int:
        """The class told of a segment (`here` bool [H, W]) that is mostly the object `owner` (0: none)."""
        things = self.classes.things
        known = (*things, *self.classes.stuff)
        if owner:
            values, counts = np.unique(view.semantics[here & (view.true == owner)], return_counts=True)
            right = int(values[counts.argmax()])
        else:
            right = things[int(np.flatnonzero(here)[0]) % len(things)]
        if owner and self._befalls(_CLASS, view, self.config.wrong_class, owner):
            others = [label for label in known if label != right]
            return others[int(ndtr(self._mood(_OTHER, view, owner)) * len(others)) % len(others)]
        return right


class _View:
    """The truth of one view, and who touches whom: `borders` {(a, b): pixel edges, a < b}, `outlines` {id:
    pixel edges}, `shares` {id > 0: of the image}.
    """

    def __init__(self, true: Array, semantics: Array, index: int, viewpoint: Array) -> None:
        self.true, self.semantics, self.index, self.viewpoint = true, semantics, index, viewpoint
        self.scale = true.shape[1] / _REFERENCE_WIDTH
        ids, counts = np.unique(true, return_counts=True)
        self.shares = {int(i): n / true.size for i, n in zip(ids, counts) if i > 0}
        sides = [(true[:, :-1], true[:, 1:]), (true[:-1], true[1:])]
        pairs = np.concatenate([np.stack([a[a != b], b[a != b]]) for a, b in sides], axis=1)
        keys, edges = np.unique(np.sort(pairs, axis=0), axis=1, return_counts=True)
        self.borders = {(int(a), int(b)): int(n) for (a, b), n in zip(keys.T, edges)}
        self.outlines = dict.fromkeys(self.shares, 0) | {0: 0}
        self._inner = dict.fromkeys(self.shares, 0)
        for (a, b), n in self.borders.items():
            for owner in (a, b):
                self.outlines[owner] += n
                if a and owner:
                    self._inner[owner] += n

    def crowding(self, owner: int) -> float:
        """The share of an object's outline that is another object's, too: 0 for one that stands free."""
        return self._inner[owner] / max(self.outlines[owner], 1)


class _Waves:
    """A smooth random field of variance 1 and correlation length `length`: a sum of plane waves (Rahimi and
    Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007).
    """

    def __init__(self, rng: np.random.Generator, dimensions: int, length: float) -> None:
        self._waves = rng.normal(0, 1 / length, (dimensions, _WAVES)).astype(np.float32)
        self._phases = rng.uniform(0, 2 * np.pi, _WAVES).astype(np.float32)

    def __call__(self, points: Array) -> Array:
        """The field at points [..., D]."""
        turns = np.asarray(points, np.float32) @ self._waves + self._phases
        return np.cos(turns).sum(axis=-1) * np.sqrt(2 / _WAVES)


def _across(rows: Array, columns: Array, direction: float) -> Array:
    """How far pixels [P] lie along `direction`, bent by a wave; in units of the object's size."""
    y, x = rows - rows.mean(), columns - columns.mean()
    size = max(float(np.sqrt((x**2 + y**2).mean())), 1e-6)
    c, s = np.cos(direction), np.sin(direction)
    return (c * x + s * y) / size + 0.3 * np.sin(2 * (c * y - s * x) / size + 3 * direction)


def _best_match(true: Array, here: Array) -> tuple[int, float]:
    """(the object that a segment, `here` bool [H, W], overlaps most; their IoU); (0, 0) if there is none."""
    counts = np.bincount(true[here])
    counts[0] = 0
    if not counts.any():
        return 0, 0.0
    owner = int(counts.argmax())
    union = int((true == owner).sum()) + int(here.sum()) - int(counts[owner])
    return owner, counts[owner] / union

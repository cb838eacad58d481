"""The objects of generated messy rooms: many shapes in many coverings, and how they come to lie on the floor
and on each other. Sizes are metres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from gsfields.data import props
from gsfields.data import textures as tx
from gsfields.data.furniture import ball, box, cone
from gsfields.data.raytrace import Body, Primitive, Texture
from gsfields.data.solids import Array, Ball, Cone

_COLORS = [
    tx.srgb(c)
    for c in (
        "#d2452e", "#e9b13c", "#2b8a7f", "#2c5f9e", "#8fae45", "#94508b", "#efe6d2", "#20242b",
        "#e27ca0", "#6fb7d8", "#7a4c28", "#3c4a2a", "#f08a3c", "#5a4fa0", "#a9a9a2", "#b5d6a7",
    )
]  # fmt: skip
_PROPS = 6  # sorts of things that `props.thing` makes
_PROP_SCALE = 1.7  # a pile is seen from farther away than what lies in a hand
_LYING = 0.35  # the share of objects that have been tipped over
_CELL = 0.005  # of the map of heights
_CONTACT = 0.006  # gaps up to this count as touching
_SUPPORT = 0.035  # what touches nearer to the middle than this holds nothing in balance
_TALLEST = 0.5  # nothing is put on a place higher than this
_TRIES = 12  # places tried on top of, or beside, others before an object is put down apart

Design = Callable[[np.random.Generator, Texture, Texture], list[Primitive]]


def _crate(rng: np.random.Generator, a: Texture, b: Texture) -> list[Primitive]:
    x, y, z = rng.uniform(0.16, 0.38, 3)
    return [box((0, 0, z / 2), (x, y, z), a)]


def _boards(rng: np.random.Generator, a: Texture, b: Texture) -> list[Primitive]:
    x, y = rng.uniform(0.24, 0.4), rng.uniform(0.18, 0.28)
    parts, z = [], 0.0
    for index in range(int(rng.integers(2, 5))):
        thick = rng.uniform(0.04, 0.08)
        parts.append(box((0, 0, z + thick / 2), (x, y, thick), (a, b)[index % 2], rng.uniform(-0.2, 0.2)))
        z += thick
    return parts


def _ball(rng: np.random.Generator, a: Texture, b: Texture) -> list[Primitive]:
    size = rng.uniform(0.18, 0.34)
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    return [ball((0, 0, 0), (size,) * 3, a).moved(turn, np.array([0, 0, size / 2]))]


def _egg(rng: np.random.Generator, a: Texture, b: Texture) -> list[Primitive]:
    x, y, z = rng.uniform(0.22, 0.4), rng.uniform(0.18, 0.3), rng.uniform(0.14, 0.2)
    return [ball((0, 0, z / 2), (x, y, z), a)]


def _drum(rng: np.random.Generator, a: Texture, b: Texture) -> list[Primitive]:
    wide, tall = rng.uniform(0.16, 0.3), rng.uniform(0.16, 0.36)
    rims = [cone((0, 0, z), (1.06 * wide, 1.06 * wide, 0.03), b) for z in (0.015, tall - 0.015)]
    return [cone((0, 0, tall / 2), (wide, wide, tall), a), *rims]


def _spire(rng: np.random.Generator, a: Texture, b: Texture) -> list[Primitive]:
    wide, tall = rng.uniform(0.2, 0.32), rng.uniform(0.26, 0.42)
    return [
        box((0, 0, 0.012), (1.2 * wide, 1.2 * wide, 0.024), b),
        cone((0, 0, tall / 2), (wide, wide, tall), a, top=0.12),
    ]


def _dumbbell(rng: np.random.Generator, a: Texture, b: Texture) -> list[Primitive]:
    size, apart = rng.uniform(0.14, 0.2), rng.uniform(0.1, 0.16)
    bar = box((0, 0, size / 2), (2 * apart, 0.05, 0.05), b)
    return [bar, *(ball((side * apart, 0, size / 2), (size,) * 3, a) for side in (-1, 1))]


def _stool(rng: np.random.Generator, a: Texture, b: Texture) -> list[Primitive]:
    wide, tall = rng.uniform(0.26, 0.36), rng.uniform(0.2, 0.32)
    reach = 0.35 * wide
    legs = [cone((x * reach, y * reach, tall / 2), (0.05, 0.05, tall), b) for x in (-1, 1) for y in (-1, 1)]
    return [cone((0, 0, tall), (wide, wide, 0.05), a), *legs]


def _corner(rng: np.random.Generator, a: Texture, b: Texture) -> list[Primitive]:
    x, y, z = rng.uniform(0.26, 0.4), rng.uniform(0.14, 0.22), rng.uniform(0.22, 0.34)
    foot = 0.4 * z
    return [
        box((0, 0, foot / 2), (x, y, foot), a),
        box((-0.3 * x, 0, (z + foot) / 2), (0.4 * x, y, z - foot), b),
    ]


def _rings(rng: np.random.Generator, a: Texture, b: Texture) -> list[Primitive]:
    wide, pitch, count = rng.uniform(0.2, 0.3), rng.uniform(0.05, 0.07), int(rng.integers(3, 6))
    sizes = [wide * (1 - 0.6 * i / count) for i in range(count)]
    return [cone((0, 0, (i + 0.5) * pitch), (s, s, pitch), (a, b)[i % 2]) for i, s in enumerate(sizes)]


def _mushroom(rng: np.random.Generator, a: Texture, b: Texture) -> list[Primitive]:
    wide, tall = rng.uniform(0.24, 0.34), rng.uniform(0.18, 0.3)
    cap = ball((0, 0, tall), (wide, wide, 0.55 * wide), a)
    return [cone((0, 0, tall / 2), (0.5 * wide, 0.5 * wide, tall), b, top=0.7), cap]


_DESIGNS: tuple[tuple[str, Design], ...] = (
    ("crate", _crate), ("boards", _boards), ("ball", _ball), ("egg", _egg), ("drum", _drum),
    ("spire", _spire), ("dumbbell", _dumbbell), ("stool", _stool), ("corner", _corner),
    ("rings", _rings), ("mushroom", _mushroom),
)  # fmt: skip


def _covering(rng: np.random.Generator) -> Texture:
    """A texture of random kind, colours and pitch, fine enough for a fit to hold on to."""
    a, b, c = (_COLORS[i] for i in rng.choice(len(_COLORS), 3, replace=False))
    pitch = rng.uniform(0.03, 0.07)
    kinds: tuple[Callable[[], Texture], ...] = (
        lambda: tx.checker(a, b, pitch),
        lambda: tx.bands([a, b, a, c], pitch, axis=int(rng.integers(3))),
        lambda: tx.gores([a, b, a, c, a, b], c, 1.0),
        lambda: tx.marble(a, b, 0.5),
        lambda: tx.wood(a * 0.6 + 0.2, a * 0.4, 40, axis=int(rng.integers(3))),
        lambda: tx.weave(a, b * 0.7, pitch),
        lambda: tx.mottled(a, 0.4, 0.3),
        lambda: tx.bricks(a, b * 0.7, c, 2 * pitch, pitch),
        lambda: tx.faces({"+x": tx.checker(a, c, pitch), "-y": tx.bands([b, c], pitch)}, tx.weave(a, b)),
    )
    return kinds[int(rng.integers(len(kinds)))]()


def random_object(rng: np.random.Generator) -> Body:
    """An object of random sort, size and covering, standing at its own origin."""
    kind = int(rng.integers(len(_DESIGNS) + _PROPS))
    if kind >= len(_DESIGNS):
        return _scaled(props.thing(rng, kind - len(_DESIGNS)), _PROP_SCALE)
    name, design = _DESIGNS[kind]
    gloss = 0.25 * float(rng.random() < 0.3)
    first, second = _covering(rng), _covering(rng)
    parts = design(rng, first, second)
    glossy = (replace(part, material=replace(part.material, gloss=gloss)) for part in parts)
    return _scaled(Body(name, tuple(glossy)), rng.uniform(0.85, 1.2))


def _scaled(body: Body, scale: float) -> Body:
    parts = (replace(part, center=part.center * scale, half=part.half * scale) for part in body.parts)
    return Body(body.name, tuple(parts))


def laid(rng: np.random.Generator, body: Body) -> Body:
    """The body turned at random about z, and now and then tipped onto its side before."""
    if rng.random() < _LYING:
        side = 0.5 * np.pi * rng.integers(4)
        about = np.array([np.cos(side), np.sin(side), 0.0])
        body = body.moved(Rotation.from_rotvec(0.5 * np.pi * about).as_matrix(), np.zeros(3))
    return body.placed((0, 0, 0), rng.uniform(0, 2 * np.pi))


class Pile:
    """Objects put down one after the other in a disc about the origin, kept as a map of heights.

    An object falls straight down until it touches the floor or another one, so that objects neither float nor
    overlap by more than a cell (5 mm); what would lie over a hollow keeps it empty.
    """

    def __init__(self, rng: np.random.Generator, radius: float) -> None:
        self._rng, self.radius = rng, radius
        self._middle = int(np.ceil((1.5 * radius + 1) / _CELL))
        self._heights = np.zeros((2 * self._middle + 1,) * 2, dtype=np.float32)
        self._spots: list[tuple[Array, float]] = []  # where objects are (cells [2]), and how far they reach
        self.bodies: list[Body] = []

    def put(self, body: Body, how: str) -> None:
        """Put `body`, turned as it is to lie: "apart", "beside" (touching another one) or "on" (on top of
        others); one that finds no such place is put down apart.
        """
        print_ = _Footprint(body)
        find = {"apart": self._apart, "beside": self._beside, "on": self._on}[how]
        spot = find(print_) if self._spots else None
        if spot is None:
            spot = self._apart(print_)
        height = self._drop(print_, spot)
        window = self._window(print_, spot)
        filled = np.where(print_.covered, height + print_.top, -np.inf)
        self._heights[window] = np.maximum(self._heights[window], filled)
        self._spots.append((spot, print_.reach))
        place = np.array([*((spot - self._middle) * _CELL), height])
        self.bodies.append(body.moved(np.eye(3), place - np.array([*print_.center, 0.0])))

    def _window(self, print_: _Footprint, spot: Array) -> tuple[slice, slice]:
        (i, j), half = spot, print_.half
        return slice(i - half, i + half + 1), slice(j - half, j + half + 1)

    def _drop(self, print_: _Footprint, spot: Array) -> float:
        """How far above the floor the object's origin comes to rest at `spot`."""
        gaps = self._heights[self._window(print_, spot)] - print_.bottom
        return float(gaps[print_.covered].max())

    def _cell(self, x: float, y: float) -> Array:
        return np.round(np.array([x, y]) / _CELL).astype(int) + self._middle

    def _inside(self, spot: Array) -> bool:
        return bool(np.hypot(*(spot - self._middle)) * _CELL <= self.radius)

    def _on_floor(self, print_: _Footprint, spot: Array) -> bool:
        return self._drop(print_, spot) <= print_.level + 1e-6

    def _apart(self, print_: _Footprint) -> Array:
        radius = self.radius
        while True:  # a full floor grows
            for _ in range(8 * _TRIES):
                reach, turn = radius * np.sqrt(self._rng.random()), self._rng.uniform(0, 2 * np.pi)
                spot = self._cell(reach * np.cos(turn), reach * np.sin(turn))
                if self._on_floor(print_, spot):
                    return spot
            radius *= 1.03

    def _beside(self, print_: _Footprint) -> Array | None:
        for _ in range(_TRIES):
            other, reach = self._spots[int(self._rng.integers(len(self._spots)))]
            turn = self._rng.uniform(0, 2 * np.pi)
            toward = np.array([np.cos(turn), np.sin(turn)])
            found = None
            for cells in range(int((reach + print_.reach) / _CELL) + 2, 0, -1):
                spot = other + np.round(cells * toward).astype(int)
                if not self._on_floor(print_, spot):
                    break
                found = spot
            if found is not None and self._inside(found):
                return found
        return None

    def _on(self, print_: _Footprint) -> Array | None:
        for _ in range(2 * _TRIES):
            other, reach = self._spots[int(self._rng.integers(len(self._spots)))]
            spot = other + np.round(self._rng.normal(0, 0.4 * reach / _CELL, 2)).astype(int)
            height = self._drop(print_, spot) - print_.level
            if self._inside(spot) and 1e-6 < height <= _TALLEST and self._stable(print_, spot):
                return spot
        return None

    def _stable(self, print_: _Footprint, spot: Array) -> bool:
        """Whether what touches from below is on all sides of the object's middle."""
        gaps = self._drop(print_, spot) + print_.bottom - self._heights[self._window(print_, spot)]
        touching = np.argwhere(print_.covered & (gaps < _CONTACT)) - print_.half
        touching = touching[np.hypot(*touching.T) > _SUPPORT / _CELL]
        if len(touching) < 3:
            return False
        angles = np.sort(np.arctan2(touching[:, 1], touching[:, 0]))
        widest = np.diff(angles, append=angles[0] + 2 * np.pi).max()
        return bool(widest < 0.95 * np.pi)


class _Footprint:
    """What a body covers of the floor, on a square of 2·half + 1 cells about the middle of its bounds:
    `covered` bool, `bottom` and `top` its lowest and highest surface (metres above its origin).
    """

    def __init__(self, body: Body) -> None:
        low, high = bounds(body.parts)
        self.center = 0.5 * (low + high)[:2]
        self.reach = float(np.hypot(*(high - low)[:2])) / 2
        self.half = int(np.ceil(self.reach / _CELL)) + 1
        steps = np.arange(-self.half, self.half + 1) * _CELL
        x, y = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
        feet = np.stack([x + self.center[0], y + self.center[1], np.zeros_like(x)])
        self.bottom, self.top = np.full(len(x), np.inf), np.full(len(x), -np.inf)
        up = np.array([[0.0], [0.0], [1.0]])
        for part in body.parts:
            unit = (part.rotation.T @ up) / part.half[:, None] * np.ones_like(x)
            enter, leave = part.solid.interval(part.to_unit(feet), unit)
            met = enter <= leave
            self.bottom = np.where(met, np.minimum(self.bottom, enter), self.bottom)
            self.top = np.where(met, np.maximum(self.top, leave), self.top)
        shape = (len(steps), len(steps))
        self.bottom, self.top = self.bottom.reshape(shape), self.top.reshape(shape)
        self.covered = np.isfinite(self.bottom)
        self.level = -float(self.bottom[self.covered].min())  # height of the origin when on the floor


def bounds(parts: Sequence[Primitive]) -> tuple[Array, Array]:
    """(lower, upper) corners [3] of the box around primitives (cones as if they were cylinders)."""
    reach = np.array([_reach(part) for part in parts])
    centers = np.array([part.center for part in parts])
    return (centers - reach).min(axis=0), (centers + reach).max(axis=0)


def _reach(part: Primitive) -> Array:
    """How far a primitive extends from its centre along each axis of the world, [3]."""
    axes = part.rotation * part.half
    if isinstance(part.solid, Ball):
        return np.linalg.norm(axes, axis=1)
    if isinstance(part.solid, Cone):
        return np.hypot(axes[:, 0], axes[:, 1]) + abs(axes[:, 2])
    return abs(axes).sum(axis=1)

"""The things of generated nested scenes: each a category with an attribute, made of named parts of different
materials; containers with what they are filled with; and the stands all of it is put on.

Things stand at their own origin: on their support's level, middle of the footprint. Sizes are metres, and
large for what the things are, so that a handle is some pixels wide in a small image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gsfields.data import textures as tx
from gsfields.data.furniture import ball, box, cone
from gsfields.data.messy_objects import bounds
from gsfields.data.props import rod
from gsfields.data.raytrace import Material, Primitive, Texture
from gsfields.data.solids import Array, Box

Parts = list[tuple[str, list[Primitive]]]


@dataclass(frozen=True)
class Look:
    """What covers a thing: `main`, which its attribute names, and two more for its other parts."""

    main: Material
    second: Material
    third: Material


@dataclass(frozen=True)
class Thing:
    """Something with a name and named parts, at its own origin until `placed`.

    attribute: the word that tells it from others of its category ("" where none does). parts: (name,
    primitives) of each; where a part's name is the category, the part is one of several equal things (an
    apple of a heap) and not a piece of one.
    """

    category: str
    attribute: str
    parts: tuple[tuple[str, tuple[Primitive, ...]], ...]

    def placed(self, position: Array, yaw: float = 0.0) -> Thing:
        """The thing turned about z by `yaw` radians and then moved to `position` [3], metres."""
        c, s = np.cos(yaw), np.sin(yaw)
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        moved = tuple((name, tuple(p.moved(turn, position) for p in prims)) for name, prims in self.parts)
        return replace(self, parts=moved)

    def scaled(self, scale: float) -> Thing:
        """The thing `scale` times as large."""
        made = tuple(
            (name, tuple(replace(p, center=p.center * scale, half=p.half * scale) for p in prims))
            for name, prims in self.parts
        )
        return replace(self, parts=made)

    @property
    def bounds(self) -> tuple[Array, Array]:
        """(lower, upper) corners [3] of the box around it."""
        return bounds([primitive for _, prims in self.parts for primitive in prims])


# -------------------------------------------------------------------------------------------------- coverings

_COLORS = {
    "red": "#d2352e", "blue": "#2c5fae", "green": "#3f9a4c", "yellow": "#efc83c", "white": "#f1ece0",
    "black": "#2b2d33", "purple": "#7d4a9c", "pink": "#ec8fb0",
}  # fmt: skip
ATTRIBUTES = (*_COLORS, "wooden", "striped", "checkered", "metal")
_OTHERS = [tx.srgb(c) for c in ("#efe6d2", "#4a4038", "#8a8f94", "#c9965c", "#5f7f8c", "#a8674a", "#b9c2a0")]
_DARK = Material(tx.plain(tx.srgb("#1d1a18")))


def covering(rng: np.random.Generator, attribute: str) -> Material:
    """A material that the attribute describes; two of one attribute look alike, but not the same."""
    if attribute in _COLORS:
        a = tx.srgb(_COLORS[attribute])
        b = a * 0.62
        kinds: tuple[Callable[[], Texture], ...] = (
            lambda: tx.mottled(a, 0.35, 0.15),
            lambda: tx.weave(a, b, 0.03),
            lambda: tx.bands([a, a, b], 0.025),
            lambda: tx.marble(a, b, 0.3),
        )
        return Material(kinds[int(rng.integers(len(kinds)))](), gloss=0.2 * float(rng.random() < 0.3))
    a, b = (tx.srgb(c) for c in rng.choice(list(_COLORS.values()), 2, replace=False))
    if attribute == "wooden":
        return Material(tx.wood(tx.srgb("#c9965c"), tx.srgb("#7a4c28"), 50, axis=int(rng.integers(3))))
    if attribute == "striped":
        return Material(tx.bands([a, b], 0.03, axis=int(rng.integers(3))))
    if attribute == "checkered":
        return Material(tx.checker(a, b, 0.045))
    return Material(tx.mottled(tx.srgb("#aeb4ba"), 0.25, 0.2), gloss=0.6, shininess=60)


def _look(rng: np.random.Generator, attribute: str) -> Look:
    a, b = (_OTHERS[i] for i in rng.choice(len(_OTHERS), 2, replace=False))
    return Look(
        covering(rng, attribute), Material(tx.mottled(a, 0.3, 0.12)), Material(tx.weave(b, b * 0.7, 0.03))
    )


# ---------------------------------------------------------------------------------------------------- designs


def _flared(z: float, wide: float, tall: float, cover: Material, bottom: float) -> Primitive:
    """A cone on its small end, `wide` at the top, `bottom` of that below, its middle at height z."""
    upright = cone((0, 0, 0), (wide, wide, tall), cover, top=bottom)
    return upright.moved(np.diag([1.0, -1.0, -1.0]), np.array([0, 0, z]))


def _rod(
    start: tuple[float, ...], stop: tuple[float, ...], first: float, last: float, cover: Material
) -> Primitive:
    made = rod(np.array(start), np.array(stop), first, last, cover.texture)
    return replace(made, material=cover)


def _wheel(x: float, y: float, wide: float, cover: Material) -> Primitive:
    """A wheel on an axle along y."""
    lying = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    return cone((0, 0, 0), (wide, wide, 0.06), cover).moved(lying, np.array([x, y, wide / 2]))


def _ear(x: float, low: float, high: float, cover: Material) -> list[Primitive]:
    """A handle that stands out along x from a wall at x, from height `low` to `high`."""
    out = 0.075 * np.sign(x)
    bars = [box((x + out / 2, 0, z), (abs(out), 0.045, 0.04), cover) for z in (low, high)]
    return [*bars, box((x + out, 0, (low + high) / 2), (0.04, 0.045, high - low + 0.04), cover)]


def _mug(look: Look) -> Parts:
    inside = cone((0, 0, 0.281), (0.19, 0.19, 0.006), _DARK)
    body = [cone((0, 0, 0.14), (0.24, 0.24, 0.28), look.main), inside]
    return [("body", body), ("handle", _ear(0.11, 0.07, 0.21, look.second))]


def _bowl(look: Look) -> Parts:
    inside = cone((0, 0, 0.131), (0.3, 0.3, 0.006), _DARK)
    body = [_flared(0.06, 0.36, 0.12, look.main, 0.5), inside]
    return [("body", body), ("rim", [cone((0, 0, 0.12), (0.38, 0.38, 0.022), look.second)])]


def _plate(look: Look) -> Parts:
    rim = [_flared(0.02, 0.42, 0.04, look.main, 0.7)]
    return [("rim", rim), ("centre", [cone((0, 0, 0.041), (0.29, 0.29, 0.006), look.second)])]


def _teapot(look: Look) -> Parts:
    lid = [cone((0, 0, 0.24), (0.16, 0.16, 0.05), look.third), ball((0, 0, 0.285), (0.06,) * 3, look.third)]
    return [
        ("body", [ball((0, 0, 0.13), (0.3, 0.3, 0.26), look.main)]),
        ("spout", [_rod((0.1, 0, 0.1), (0.25, 0, 0.24), 0.05, 0.03, look.second)]),
        ("handle", _ear(-0.13, 0.08, 0.19, look.second)),
        ("lid", lid),
    ]


def _bottle(look: Look) -> Parts:
    body = [
        cone((0, 0, 0.14), (0.17, 0.17, 0.28), look.main),
        cone((0, 0, 0.315), (0.17, 0.17, 0.07), look.main, top=0.4),
        cone((0, 0, 0.38), (0.068, 0.068, 0.08), look.main),
    ]
    label = [cone((0, 0, 0.14), (0.177, 0.177, 0.14), look.third)]
    return [
        ("body", body),
        ("label", label),
        ("cap", [cone((0, 0, 0.42), (0.085, 0.085, 0.06), look.second)]),
    ]


def _pan(look: Look) -> Parts:
    base = [_flared(0.045, 0.36, 0.09, look.main, 0.85), cone((0, 0, 0.091), (0.31, 0.31, 0.006), _DARK)]
    return [("base", base), ("handle", [_rod((0.16, 0, 0.06), (0.44, 0, 0.09), 0.035, 0.028, look.second)])]


def _jar(look: Look) -> Parts:
    lid = [cone((0, 0, 0.27), (0.22, 0.22, 0.06), look.second)]
    return [("body", [cone((0, 0, 0.12), (0.24, 0.24, 0.24), look.main, top=0.85)]), ("lid", lid)]


def _truck(look: Look) -> Parts:
    window = box((0.18, 0, 0.235), (0.145, 0.205, 0.06), _DARK)
    walls = [box((-0.08, y, 0.17), (0.32, 0.02, 0.08), look.second) for y in (-0.11, 0.11)]
    bed = [box((-0.08, 0, 0.11), (0.34, 0.22, 0.06), look.second), *walls]
    wheels = [_wheel(x, y, 0.13, look.third) for x in (-0.15, 0.16) for y in (-0.12, 0.12)]
    return [
        ("cab", [box((0.18, 0, 0.18), (0.14, 0.2, 0.2), look.main), window]),
        ("bed", bed),
        ("wheels", wheels),
    ]


def _train(look: Look) -> Parts:
    lying = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    boiler = cone((0, 0, 0), (0.17, 0.17, 0.28), look.main).moved(lying, np.array([0.09, 0, 0.16]))
    cabin = [
        box((-0.13, 0, 0.2), (0.16, 0.2, 0.28), look.second),
        box((-0.13, 0, 0.35), (0.2, 0.23, 0.025), _DARK),
    ]
    wheels = [_wheel(x, y, 0.12, look.third) for x in (-0.14, 0.0, 0.14) for y in (-0.11, 0.11)]
    chimney = [_flared(0.29, 0.1, 0.12, look.third, 0.6)]
    return [("boiler", [boiler]), ("cabin", cabin), ("chimney", chimney), ("wheels", wheels)]


def _boat(look: Look) -> Parts:
    hull = [ball((0, 0, 0.08), (0.48, 0.2, 0.16), look.main), box((0, 0, 0.1), (0.3, 0.16, 0.09), look.main)]
    sails = [box((-0.085, 0, 0.31), (0.15, 0.014, 0.26), look.third)]
    return [
        ("hull", hull),
        ("mast", [_rod((0, 0, 0.1), (0, 0, 0.48), 0.018, 0.015, look.second)]),
        ("sail", sails),
    ]


def _robot(look: Look) -> Parts:
    head = [box((0, 0, 0.4), (0.15, 0.13, 0.13), look.second)]
    head += [ball((x, -0.07, 0.42), (0.04, 0.03, 0.04), _DARK) for x in (-0.035, 0.035)]
    arms = [box((x, 0, 0.24), (0.06, 0.08, 0.2), look.third) for x in (-0.15, 0.15)]
    legs = [box((x, 0, 0.06), (0.08, 0.12, 0.12), look.second) for x in (-0.06, 0.06)]
    return [
        ("head", head),
        ("body", [box((0, 0, 0.225), (0.23, 0.16, 0.22), look.main)]),
        ("arms", arms),
        ("legs", legs),
    ]


def _doll(look: Look) -> Parts:
    skin = Material(tx.mottled(tx.srgb("#e0ac8a"), 0.25, 0.1))
    hat = [
        cone((0, 0, 0.39), (0.22, 0.22, 0.02), look.second),
        cone((0, 0, 0.43), (0.13, 0.13, 0.08), look.second),
    ]
    head = [ball((0, 0, 0.32), (0.16, 0.16, 0.17), skin)]
    return [
        ("dress", [cone((0, 0, 0.125), (0.28, 0.28, 0.25), look.main, top=0.3)]),
        ("head", head),
        ("hat", hat),
    ]


def _bucket(look: Look) -> Parts:
    body = [_flared(0.12, 0.3, 0.24, look.main, 0.75), cone((0, 0, 0.251), (0.25, 0.25, 0.006), _DARK)]
    return [("body", body), ("rim", [cone((0, 0, 0.24), (0.32, 0.32, 0.022), look.second)])]


def _lamp(look: Look) -> Parts:
    shade = replace(look.main, glow=0.35)
    return [
        ("foot", [cone((0, 0, 0.025), (0.24, 0.24, 0.05), look.third)]),
        ("stem", [cone((0, 0, 0.17), (0.05, 0.05, 0.26), look.second)]),
        ("shade", [cone((0, 0, 0.37), (0.3, 0.3, 0.2), shade, top=0.55)]),
    ]


def _stool(look: Look) -> Parts:
    legs = [cone((x, y, 0.13), (0.05, 0.05, 0.26), look.second) for x in (-0.11, 0.11) for y in (-0.11, 0.11)]
    return [("seat", [cone((0, 0, 0.275), (0.34, 0.34, 0.05), look.main)]), ("legs", legs)]


def _clock(look: Look) -> Parts:
    lying = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    face = cone((0, 0, 0), (0.23, 0.23, 0.13), look.second).moved(lying, np.array([0, 0, 0.2]))
    feet = [ball((x, 0, 0.035), (0.08, 0.1, 0.07), look.third) for x in (-0.1, 0.1)]
    return [("case", [box((0, 0, 0.2), (0.3, 0.11, 0.3), look.main)]), ("face", [face]), ("feet", feet)]


def _plant(look: Look) -> Parts:
    leaf = Material(tx.mottled(tx.srgb("#4f8a3a"), 0.5, 0.08))
    turns = np.arange(5) * 2 * np.pi / 5
    leaves = [ball((0.08 * np.cos(t), 0.08 * np.sin(t), 0.38), (0.14, 0.14, 0.16), leaf) for t in turns]
    return [
        ("pot", [_flared(0.09, 0.24, 0.18, look.main, 0.7)]),
        ("stem", [cone((0, 0, 0.25), (0.04, 0.04, 0.16), look.second)]),
        ("leaves", [*leaves, ball((0, 0, 0.46), (0.13, 0.13, 0.14), leaf)]),
    ]


def _basket(look: Look) -> Parts:
    posts = [_rod((x, 0, 0.14), (0.8 * x, 0, 0.38), 0.02, 0.02, look.second) for x in (-0.18, 0.18)]
    handle = [*posts, box((0, 0, 0.385), (0.33, 0.04, 0.035), look.second)]
    body = [_flared(0.085, 0.38, 0.17, look.main, 0.7), cone((0, 0, 0.171), (0.32, 0.32, 0.006), _DARK)]
    return [("body", body), ("handle", handle)]


Design = Callable[[Look], Parts]
THEMES: dict[str, dict[str, Design]] = {
    "dishes": {
        "bowl": _bowl, "mug": _mug, "teapot": _teapot, "plate": _plate, "bottle": _bottle, "pan": _pan,
        "jar": _jar,
    },
    "toys": {
        "bucket": _bucket, "truck": _truck, "robot": _robot, "train": _train, "doll": _doll, "boat": _boat,
    },
    "furnishings": {"basket": _basket, "lamp": _lamp, "plant": _plant, "clock": _clock, "stool": _stool},
}  # fmt: skip
"""Designs by the theme of what stands together; each theme begins with a container."""

# container: (what may fill it, radius and height of its opening)
FILLINGS: dict[str, tuple[tuple[str, ...], float, float]] = {
    "bowl": (("apples", "lemons", "eggs"), 0.13, 0.13),
    "plate": (("cookies", "lemons"), 0.12, 0.045),
    "bucket": (("balls",), 0.105, 0.25),
    "basket": (("eggs", "apples"), 0.13, 0.17),
}
_CONTENT_COLORS = {
    "apples": ("#c8332b", "#d9573a", "#a8c04a"),
    "lemons": ("#f2d43a", "#e8c22c"),
    "eggs": ("#f3e7d3", "#e2c4a0"),
    "cookies": ("#b9803f", "#9c6430"),
    "balls": ("#2c5fae", "#e27ca0", "#8fae45", "#f08a3c"),
}


def singular(word: str) -> str:
    """A plural of the names used here without its s; other words as they are."""
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def thing(rng: np.random.Generator, theme: str, category: str, attribute: str) -> Thing:
    """A thing of one of the THEMES' categories, its size random within a quarter."""
    parts = THEMES[theme][category](_look(rng, attribute))
    made = Thing(category, attribute, tuple((name, tuple(prims)) for name, prims in parts))
    return made.scaled(rng.uniform(0.95, 1.2))


def heap(rng: np.random.Generator, container: Thing, contents: str) -> Thing:
    """What fills a container at its own origin: several equal things, each a part of the heap."""
    _, radius, height = FILLINGS[container.category]
    nominal = 2 * radius
    count = int(rng.integers(3, 6))
    reach, size = (0.5, 0.54) if count == 3 else (0.58, 0.47)  # shares of the opening
    lengths = {"lemons": (1.15, 0.85, 0.85), "eggs": (0.85, 0.85, 1.1), "cookies": (1.1, 1.1, 0.25)}
    shape = nominal * size * np.array(lengths.get(contents, (1.0, 1.0, 1.0)))
    turns = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(count) / count
    single = []
    for index, turn in enumerate(turns):
        color = tx.srgb(str(rng.choice(_CONTENT_COLORS[contents])))
        x, y = reach * radius * np.cos(turn), reach * radius * np.sin(turn)
        z = height + (0.3 if contents != "cookies" else 0.5) * shape[2]
        cover = Material(tx.mottled(color, 0.35, 0.12), gloss=0.1)
        if contents == "cookies":
            made = cone((x, y, z + 0.02 * (index % 2)), tuple(shape), cover)
        else:
            made = ball((x, y, z), tuple(shape), cover)
        single.append((singular(contents), (made,)))
    return Thing(singular(contents), "", tuple(single))


STANDS = ("table", "bench", "rug")


def stand(
    rng: np.random.Generator, category: str, attribute: str, radius: float
) -> tuple[Thing, float, float]:
    """(a stand on whose top a disc of `radius` is free, or nearly; the height of its top; how far it
    reaches).
    """
    look = _look(rng, attribute)
    if category == "table":
        r, height, reach = radius + 0.02, 0.3, radius + 0.02
        legs = [
            cone((x * 0.6 * r, y * 0.6 * r, 0.13), (0.07, 0.07, 0.26), look.second)
            for x in (-1, 1)
            for y in (-1, 1)
        ]
        parts: Parts = [("top", [cone((0, 0, 0.28), (2 * r, 2 * r, 0.04), look.main)]), ("legs", legs)]
    elif category == "bench":
        side, height, reach = 1.75 * radius, 0.18, 1.24 * radius
        legs = [box((x * 0.42 * side, 0, 0.07), (0.08, 0.8 * side, 0.14), look.second) for x in (-1, 1)]
        parts = [("seat", [box((0, 0, 0.16), (side, side, 0.04), look.main)]), ("legs", legs)]
    else:
        r, height, reach = radius + 0.07, 0.016, radius + 0.07
        border = [cone((0, 0, 0.006), (2 * r, 2 * r, 0.012), look.second)]
        parts = [
            ("centre", [cone((0, 0, 0.008), (2 * radius, 2 * radius, 0.016), look.main)]),
            ("border", border),
        ]
    return Thing(category, attribute, tuple((name, tuple(prims)) for name, prims in parts)), height, reach


def surfaces(rng: np.random.Generator, half: float, top: float) -> list[Thing]:
    """The floor, a slab below z = 0, and the walls with the ceiling, seen from inside."""
    floors = (
        tx.planks(tx.srgb("#d0a06a"), tx.srgb("#7a4c28")),
        tx.checker(tx.srgb("#c9c4b8"), tx.srgb("#8f9a9c"), 0.22),
        tx.bricks(tx.srgb("#a58f78"), tx.srgb("#7d6a58"), tx.srgb("#c4b9a6"), 0.3, 0.15),
    )
    paper = tx.wallpaper(tx.srgb("#cfd8c9"), tx.srgb("#8fa3a8"), tx.srgb("#e3a72f"))
    slab = box((0, 0, -0.05), (2 * half, 2 * half, 0.1), floors[int(rng.integers(len(floors)))])
    center, size = np.array([0, 0, 0.5 * top - 0.1]), np.array([half, half, 0.5 * top + 0.1])
    shell = Primitive(Box(), center, size, Material(paper), hollow=True, casts_shadow=False)
    return [Thing("floor", "", (("floor", (slab,)),)), Thing("wall", "", (("wall", (shell,)),))]

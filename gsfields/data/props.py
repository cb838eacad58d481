"""What a person handles and with what: small things, tools, cabinets to put them on, arms with hands.

Things stand at their own origin: on their support's level, middle of the footprint. Sizes are metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gsfields.data import textures as tx
from gsfields.data.furniture import ball, box, cone
from gsfields.data.raytrace import Body, Material, Primitive, Texture
from gsfields.data.solids import Array

UPPER_ARM, FOREARM = 0.31, 0.27  # lengths
WRIST_TO_GRIP = 0.13  # from the wrist to what the fingers hold

_COLORS = [
    tx.srgb(c)
    for c in ("#d2452e", "#e9b13c", "#2b8a7f", "#2c5f9e", "#8fae45", "#94508b", "#efe6d2", "#20242b")
]
_SKIN = ("#e0ac8a", "#c98d6a", "#8d5a3b", "#f0c8a8", "#5c3a28")


def cup(a: Array, b: Array) -> Body:
    """A striped mug with a handle and a dark inside."""
    glaze = Material(tx.bands([a, a, b], 0.021), gloss=0.25)
    parts = [
        cone((0, 0, 0.055), (0.095, 0.095, 0.11), glaze),
        cone((0, 0, 0.1105), (0.08, 0.08, 0.003), tx.plain(b * 0.3)),
        *(box((0.066, 0, z), (0.045, 0.016, 0.016), glaze) for z in (0.03, 0.08)),
        box((0.085, 0, 0.055), (0.014, 0.016, 0.066), glaze),
    ]
    return Body("cup", tuple(parts))


def bottle(a: Array, b: Array) -> Body:
    """A bottle with a label, a neck and a cap."""
    glass = Material(tx.mottled(a, 0.3, 0.15), gloss=0.4, shininess=80)
    parts = (
        cone((0, 0, 0.09), (0.085, 0.085, 0.18), glass),
        cone((0, 0, 0.085), (0.0875, 0.0875, 0.09), tx.checker(b, tx.srgb("#f4efe2"), 0.018)),
        cone((0, 0, 0.205), (0.085, 0.085, 0.05), glass, top=0.4),
        cone((0, 0, 0.25), (0.034, 0.034, 0.045), glass),
        cone((0, 0, 0.283), (0.04, 0.04, 0.025), tx.plain(b)),
    )
    return Body("bottle", parts)


def bowl(a: Array, b: Array) -> Body:
    """A wide bowl (its cone stands on its small end) with three fruits."""
    wall = cone((0, 0, 0.0), (0.2, 0.2, 0.07), tx.bands([a, a, b], 0.012), top=0.6)
    upside_down = wall.moved(np.diag([1.0, -1.0, -1.0]), np.array([0, 0, 0.035]))
    fruit = [
        ball((0.042 * np.cos(t), 0.042 * np.sin(t), 0.085), (0.075,) * 3, tx.mottled(_COLORS[k], 0.3, 0.1))
        for k, t in enumerate((0.3, 2.4, 4.5))
    ]
    return Body("bowl", (upside_down, *fruit))


def carton(a: Array, b: Array) -> Body:
    """A packet, another print on each side, with a gabled top."""
    print_ = tx.faces(
        {"+x": tx.checker(a, b, 0.025), "-x": tx.bands([a, b, a], 0.022), "+y": tx.bands([b, a * 0.6], 0.04)},
        tx.weave(a, b * 0.7, 0.03),
    )
    parts = (
        box((0, 0, 0.09), (0.13, 0.075, 0.18), print_),
        box((0, 0, 0.19), (0.1, 0.05, 0.02), tx.plain(b)),
    )
    return Body("carton", parts)


def tin(a: Array, b: Array) -> Body:
    """A can with a printed band and bright rims."""
    rim = Material(tx.plain(tx.srgb("#c9ccd0")), gloss=0.5)
    parts = (
        cone((0, 0, 0.065), (0.098, 0.098, 0.124), tx.gores([a, b, a * 0.5, b], a, 1.0)),
        *(cone((0, 0, z), (0.104, 0.104, 0.008), rim) for z in (0.004, 0.128)),
    )
    return Body("tin", parts)


def toy(a: Array, b: Array) -> Body:
    """A small figure: body, head, two arms."""
    parts = (
        cone((0, 0, 0.06), (0.1, 0.1, 0.12), tx.bands([a, b], 0.03), top=0.5),
        ball((0, 0, 0.155), (0.085, 0.085, 0.085), tx.mottled(b, 0.35, 0.1)),
        *(ball((s * 0.055, 0, 0.095), (0.04, 0.04, 0.075), tx.plain(a * 0.7)) for s in (-1, 1)),
        ball((0, 0, 0.2), (0.05, 0.05, 0.03), tx.plain(a)),
    )
    return Body("toy", parts)


def thing(rng: np.random.Generator, kind: int) -> Body:
    """A movable thing of the `kind`-th sort (modulo the sorts there are), in two random colours."""
    makers = (cup, carton, bottle, bowl, tin, toy)
    first, second = rng.choice(len(_COLORS), 2, replace=False)
    body = makers[kind % len(makers)](_COLORS[first], _COLORS[second])
    scale = rng.uniform(1.05, 1.35)
    parts = (replace(part, center=part.center * scale, half=part.half * scale) for part in body.parts)
    return Body(body.name, tuple(parts))


def spatula(rng: np.random.Generator) -> Body:
    """A tool in the hand's frame (see `arm`): its handle is in the grip, its blade ahead and below."""
    color = _COLORS[rng.integers(len(_COLORS))]
    parts = (
        box((0, 0.05, 0), (0.022, 0.2, 0.022), tx.wood(tx.srgb("#c9965c"), tx.srgb("#7a4c28"), 60, axis=1)),
        box(
            (0, 0.215, 0.0), (0.075, 0.14, 0.012), Material(tx.checker(color, color * 0.45, 0.018), gloss=0.2)
        ),
    )
    c, s = np.cos(0.6), np.sin(0.6)
    tip_down = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    return Body("spatula", parts).moved(tip_down, np.array([0, WRIST_TO_GRIP, -0.02]))


def cabinet(rng: np.random.Generator, height: float, width: float = 0.78, depth: float = 0.44) -> Body:
    """A cabinet with a textured top and drawers on all sides, its middle at the origin."""
    first, second, third = (_COLORS[i] for i in rng.choice(6, 3, replace=False))
    tops: tuple[Texture, ...] = (
        tx.marble(tx.srgb("#e6e0d6"), first * 0.5, 0.25),
        tx.wood(tx.srgb("#c08a52"), tx.srgb("#7a4c28"), 40),
        tx.checker(first * 0.6 + 0.3, tx.srgb("#e8e2d0"), 0.065),
        tx.weave(second, second * 0.4 + 0.2, 0.06),
    )
    front = tx.planks(third * 0.5 + 0.3, third * 0.25 + 0.1, 0.12, 0.7)
    knobs = [
        ball((x, s * (depth / 2 + 0.008), z), (0.03, 0.03, 0.03), tx.plain(tx.srgb("#e9b13c")))
        for s in (-1, 1)
        for x in (-0.2, 0.2)
        for z in (height * 0.45, height * 0.75)
    ]
    parts = (
        box((0, 0, height / 2 - 0.02), (width - 0.04, depth - 0.04, height - 0.04), front),
        box((0, 0, height - 0.015), (width, depth, 0.03), tops[rng.integers(len(tops))]),
        *knobs,
    )
    return Body("cabinet", parts)


@dataclass(frozen=True)
class ArmLook:
    """What an arm is covered with."""

    skin: Texture
    sleeve: Texture
    nail: Texture

    @classmethod
    def random(cls, rng: np.random.Generator) -> ArmLook:
        skin = tx.srgb(_SKIN[rng.integers(len(_SKIN))])
        first, second = (_COLORS[i] for i in rng.choice(len(_COLORS), 2, replace=False))
        sleeves = (
            tx.bands([first, second, first * 0.6], 0.03),
            tx.weave(first, second * 0.6, 0.025),
            tx.checker(first, first * 0.45 + 0.05, 0.035),
            tx.mottled(skin, 0.3, 0.12),  # short sleeves
        )
        sleeve = sleeves[rng.integers(len(sleeves))]
        return cls(tx.mottled(skin, 0.3, 0.09), sleeve, tx.plain(skin * 0.6 + 0.3))


def arm(look: ArmLook, shoulder: Array, wrist: Array, side: int, curl: float) -> tuple[Body, Array]:
    """(an arm with its hand from `shoulder` [3] to `wrist` [3], the hand's frame [3, 4] in the world).

    side: -1 left, +1 right. curl: 0 an open hand, 1 a fist. The elbow is where two bones meet, below the
    line from shoulder to wrist and outwards; an upper arm too short for the reach is stretched. The hand's
    frame has its origin at the wrist, y along the fingers, z out of the back of the hand.
    """
    offset = wrist - shoulder
    reach = float(np.linalg.norm(offset))
    upper = max(UPPER_ARM, reach - FOREARM + 0.005)
    along = offset / reach
    across = np.cross(along, [0.0, 0.0, 1.0])
    across /= max(float(np.linalg.norm(across)), 1e-6)
    pole = np.array([0.0, 0.0, -0.85]) + 0.5 * side * across
    pole -= along * (pole @ along)
    pole /= np.linalg.norm(pole)
    foot = (reach**2 + upper**2 - FOREARM**2) / (2 * reach)
    elbow = shoulder + foot * along + np.sqrt(max(upper**2 - foot**2, 0.0)) * pole

    fingers = (wrist - elbow) / np.linalg.norm(wrist - elbow)
    fingers = fingers + np.array([0.0, 0.0, -0.25])  # the hand bends down from the forearm a little
    fingers /= np.linalg.norm(fingers)
    back = np.array([0.0, 0.0, 1.0]) + 0.35 * side * across
    right = np.cross(fingers, back)
    right /= np.linalg.norm(right)
    frame = np.stack([right, fingers, np.cross(right, fingers), wrist], axis=1)
    parts = [
        rod(shoulder, elbow, 0.058, 0.048, look.sleeve),
        rod(elbow, wrist - 0.03 * (wrist - elbow), 0.047, 0.036, look.sleeve),
        ball((0, 0, 0), (0.096, 0.096, 0.096), look.sleeve).moved(np.eye(3), elbow),
    ]
    parts += [part.moved(frame[:, :3], frame[:, 3]) for part in _hand(look, side, curl)]
    return Body(("left arm", "", "right arm")[side + 1], tuple(parts)), frame


def _hand(look: ArmLook, side: int, curl: float) -> list[Primitive]:
    """A hand in its own frame (see `arm`): wrist, palm, four fingers of three and a thumb of two ellipsoids."""
    parts = [
        ball((0, 0.0, 0), (0.06, 0.07, 0.048), look.skin),
        ball((0, 0.06, 0), (0.1, 0.13, 0.045), look.skin),
    ]
    for index, length in enumerate((0.9, 1.0, 0.95, 0.75)):
        base = np.array([-side * (index - 1.5) * -0.024, 0.108, 0.004])
        bend = 0.15
        for segment, bone in enumerate((0.046, 0.036, 0.03)):
            bend += curl * 0.55
            direction = np.array([0.0, np.cos(bend), -np.sin(bend)])
            tip = base + length * bone * direction
            skin = look.nail if segment == 2 and index == 1 else look.skin
            parts.append(_knuckle(base, tip, 0.024 - 0.002 * segment, skin))
            base = tip
    base = np.array([-side * 0.042, 0.03, -0.006])
    for bone, turn in ((0.06, 0.75), (0.045, 0.45 - 0.5 * curl)):
        direction = np.array([-side * np.sin(turn), np.cos(turn) * 0.9, -0.35 - 0.3 * curl])
        tip = base + bone * direction / np.linalg.norm(direction)
        parts.append(_knuckle(base, tip, 0.028, look.skin))
        base = tip
    return parts


def _knuckle(start: Array, stop: Array, thickness: float, skin: Texture) -> Primitive:
    """An ellipsoid from `start` to a little beyond `stop`, both [3]."""
    length = float(np.linalg.norm(stop - start))
    bone = ball((0, 0, 0), (thickness, thickness, length + thickness * 0.8), skin)
    return bone.moved(_z_onto((stop - start) / length), (start + stop) / 2)


def rod(start: Array, stop: Array, start_radius: float, stop_radius: float, cover: Texture) -> Primitive:
    """A tapered rod from `start` [3] to `stop` [3], not thicker at its end."""
    length = float(np.linalg.norm(stop - start))
    size: Sequence[float] = (2 * start_radius, 2 * start_radius, length)
    bone = cone((0, 0, 0), size, cover, top=stop_radius / start_radius)
    return bone.moved(_z_onto((stop - start) / length), (start + stop) / 2)


def _z_onto(direction: Array) -> Array:
    """The least rotation [3, 3] that takes +z to the unit vector `direction` [3] (x to -x for -z)."""
    x, y, z = direction
    if z < -0.999999:
        return np.diag([-1.0, 1.0, -1.0])
    scale = 1 / (1 + z)
    return np.array(
        [[1 - x * x * scale, -x * y * scale, x], [-x * y * scale, 1 - y * y * scale, y], [-x, -y, z]]
    )

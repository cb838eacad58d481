"""A furnished room made of ray-cast primitives: what stands in the synthetic scene, and how it looks.

Every maker returns a `Body` at its own origin: on the floor's level (or its support's), middle of its
footprint, front towards +y. Sizes are metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gsfields.data import textures as tx
from gsfields.data.raytrace import Body, Lamp, Material, Primitive, Scene, Texture
from gsfields.data.solids import Array, Ball, Box, Cone

ROOM_SIZE = np.array([5.0, 4.0, 2.6])

_PALETTE = [
    tx.srgb(c)
    for c in ("#c8452f", "#e3a72f", "#2f7f79", "#23456e", "#7d9a4b", "#8c4a6b", "#d9cdb4", "#4a4038")
]
_CREAM, _INK, _RED, _GOLD = (tx.srgb(c) for c in ("#efe6d2", "#20242b", "#c43d2b", "#e9b13c"))
_OAK, _OAK_DARK, _PINE, _PINE_DARK = (tx.srgb(c) for c in ("#c9965c", "#8a5a2f", "#dcb27a", "#b07f48"))


def box(
    center: Sequence[float], size: Sequence[float], material: Material | Texture, yaw: float = 0.0
) -> Primitive:
    """A box of full `size` [3], turned about z by `yaw` radians."""
    return _primitive(Box(), center, size, material, yaw)


def ball(center: Sequence[float], size: Sequence[float], material: Material | Texture) -> Primitive:
    """An ellipsoid of full `size` [3]."""
    return _primitive(Ball(), center, size, material)


def cone(
    center: Sequence[float], size: Sequence[float], material: Material | Texture, top: float = 1.0
) -> Primitive:
    """An upright cone: `size` [3] is that of its bottom and its height, `top` its top radius as a share."""
    return _primitive(Cone(top), center, size, material)


def _primitive(
    solid: Box | Ball | Cone,
    center: Sequence[float],
    size: Sequence[float],
    material: Material | Texture,
    yaw: float = 0.0,
) -> Primitive:
    material = material if isinstance(material, Material) else Material(material)
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return Primitive(solid, np.asarray(center, float), np.asarray(size, float) / 2, material, turn)


def shell(seed_palette: Sequence[Array]) -> Body:
    """The room itself with its skirting boards: floor z = 0, centre (0, 0)."""
    paper = tx.wallpaper(tx.srgb("#cfd8c9"), seed_palette[0] * 0.5 + 0.2, _GOLD)
    covers = tx.faces(
        {
            "-z": tx.planks(tx.srgb("#d0a06a"), tx.srgb("#7a4c28")),
            "+y": tx.bricks(tx.srgb("#b4553a"), tx.srgb("#7c3426"), tx.srgb("#b9ad9c")),
            "-y": paper,
            "+x": tx.mottled(tx.srgb("#d8b98a"), 0.35, 1.3),
            "-x": paper,
        },
        tx.mottled(tx.srgb("#e9e4d8"), 0.2, 1.7),
    )
    x, y, z = ROOM_SIZE
    room = Primitive(
        Box(), np.array([0, 0, z / 2]), ROOM_SIZE / 2, Material(covers), hollow=True, casts_shadow=False
    )
    board = tx.wood(tx.srgb("#f0e9da"), tx.srgb("#d9cfba"))
    skirting = [box((0, side * (y / 2 - 0.01), 0.05), (x, 0.02, 0.1), board) for side in (-1, 1)]
    skirting += [box((side * (x / 2 - 0.01), 0, 0.05), (0.02, y, 0.1), board) for side in (-1, 1)]
    return Body("room", (room, *(_unshadowed(part) for part in skirting)))


def table(radius: float = 0.62, height: float = 0.74) -> Body:
    """A round table on four tapered legs."""
    top = Material(tx.wood(_OAK, _OAK_DARK, 30), gloss=0.12, shininess=60)
    leg = tx.wood(_OAK_DARK, _OAK_DARK * 0.6, 60, axis=2)
    reach = 0.62 * radius
    legs = [
        cone((x * reach, y * reach, (height - 0.04) / 2), (0.05, 0.05, height - 0.04), leg, top=0.9)
        for x in (-1, 1)
        for y in (-1, 1)
    ]
    rim = cone((0, 0, height - 0.06), (1.7 * radius, 1.7 * radius, 0.05), leg)
    return Body("table", (cone((0, 0, height - 0.018), (2 * radius, 2 * radius, 0.036), top), rim, *legs))


def sofa(width: float, cloth: Array, cushions: Sequence[Array]) -> Body:
    """A two-seater with rounded cushions, its back at -y."""
    fabric = tx.weave(cloth, cloth * 0.55)
    parts = [
        box((0, 0, 0.24), (width, 0.8, 0.28), fabric),
        box((0, -0.32, 0.55), (width, 0.18, 0.5), fabric),
        *(box((s * (width / 2 - 0.09), 0, 0.42), (0.18, 0.8, 0.36), fabric) for s in (-1, 1)),
        *(box((s * (width / 4 - 0.05), 0.05, 0.43), (width / 2 - 0.12, 0.66, 0.1), fabric) for s in (-1, 1)),
        *(
            cone((x * (width / 2 - 0.1), y * 0.32, 0.05), (0.05, 0.05, 0.1), tx.plain(_INK))
            for x in (-1, 1)
            for y in (-1, 1)
        ),
    ]
    for i, color in enumerate(cushions):
        cover = (
            tx.checker(color, _CREAM, 0.07)
            if i % 2
            else tx.bands([color, _CREAM, color * 0.5], 0.045, axis=0)
        )
        x = (i + 0.5) / len(cushions) * (width - 0.5) - (width - 0.5) / 2
        parts.append(ball((x, -0.13, 0.64), (0.4, 0.2, 0.38), cover))
    return Body("sofa", tuple(parts))


def bookshelf(rng: np.random.Generator, width: float = 1.1, height: float = 1.7, shelves: int = 4) -> Body:
    """Shelves full of books of random sizes and colours, open towards +y."""
    depth, board = 0.28, 0.03
    timber = tx.wood(_PINE, _PINE_DARK, 50)
    parts = [box((0, -depth / 2 + 0.01, height / 2), (width, 0.02, height), timber)]
    parts += [box((s * (width - board) / 2, 0, height / 2), (board, depth, height), timber) for s in (-1, 1)]
    pitch = (height - board) / shelves
    parts += [
        box((0, 0, board / 2 + i * pitch), (width - 2 * board, depth, board), timber)
        for i in range(shelves + 1)
    ]
    for i in range(shelves):
        x, end = -width / 2 + board + 0.01, width / 2 - board - 0.01
        while x < end - 0.05:
            thick, tall = rng.uniform(0.03, 0.07), rng.uniform(0.6, 0.88) * (pitch - board)
            thick = min(thick, end - x)
            if rng.random() < 0.85:
                color, band = _PALETTE[rng.integers(len(_PALETTE))], _PALETTE[rng.integers(len(_PALETTE))]
                spine = tx.bands([color, color, color, band, color, color * 0.6], tall / rng.integers(5, 12))
                deep = rng.uniform(0.16, 0.22)
                parts.append(
                    box(
                        (x + thick / 2, 0.1 - deep / 2, board + i * pitch + tall / 2),
                        (thick, deep, tall),
                        spine,
                    )
                )
            x += thick + 0.002
    return Body("bookshelf", tuple(parts))


def plant(rng: np.random.Generator, height: float = 1.15, leaves: int = 26) -> Body:
    """A pot with a stem and leaves (thin ellipsoids) all around."""
    clay = tx.bands([tx.srgb("#b5613c"), tx.srgb("#b5613c"), tx.srgb("#e4c9a0"), tx.srgb("#8e4527")], 0.05)
    parts = [
        cone((0, 0, 0.17), (0.3, 0.3, 0.34), clay),
        cone((0, 0, 0.345), (0.34, 0.34, 0.03), tx.plain(tx.srgb("#b5613c"))),
        cone((0, 0, 0.2 + height / 2), (0.04, 0.04, height - 0.2), tx.plain(tx.srgb("#5a4a2a")), top=0.4),
    ]
    greens = [tx.srgb(c) for c in ("#3f7a35", "#5c9440", "#2c5f3a", "#86a84a")]
    for i in range(leaves):
        turn = i * 2.39996 + rng.normal(0, 0.15)
        rise = rng.uniform(-0.15, 0.75)
        z = 0.5 + (height - 0.45) * (i + 0.5) / leaves
        length = rng.uniform(0.3, 0.42) * (1.15 - 0.5 * i / leaves)
        along = np.array([np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)])
        side = np.array([-np.sin(turn), np.cos(turn), 0])
        frame = np.stack([along, side, np.cross(along, side)], axis=1)
        green = greens[i % len(greens)]
        blade = ball(
            (0, 0, 0), (length, 0.13, 0.016), tx.bands([green, green * 0.62, green * 0.9], 0.018, axis=1)
        )
        parts.append(blade.moved(frame, np.array([0, 0, z]) + along * length / 2))
    return Body("plant", tuple(parts))


def floor_lamp() -> Body:
    """A pole with a glowing conical shade whose middle is 1.5 m up."""
    metal = Material(tx.plain(tx.srgb("#3a3a40")), gloss=0.4)
    shade = Material(tx.bands([tx.srgb("#ffe3b0"), tx.srgb("#f6cf8c")], 0.04), glow=1.1)
    parts = (
        cone((0, 0, 0.015), (0.3, 0.3, 0.03), metal),
        cone((0, 0, 0.7), (0.025, 0.025, 1.4), metal),
        cone((0, 0, 1.5), (0.42, 0.42, 0.28), shade, top=0.6),
    )
    return Body("floor lamp", tuple(_unshadowed(part) for part in parts))


def pendant(drop: float = 0.45) -> Body:
    """A glowing globe on a cord; its origin is where the cord leaves the ceiling."""
    glass = Material(tx.plain(tx.srgb("#fff4dc")), glow=2.0)
    cord = cone((0, 0, -drop / 2), (0.012, 0.012, drop), tx.plain(_INK))
    return Body("pendant", (_unshadowed(cord), _unshadowed(ball((0, 0, -drop), (0.24, 0.24, 0.24), glass))))


def _unshadowed(part: Primitive) -> Primitive:
    return replace(part, casts_shadow=False)


def framed(name: str, canvas: tx.Canvas, height: float, frame: Array, glow: float = 0.0) -> Body:
    """A picture in a frame, facing +y; its origin is the middle of its back."""
    width = height * canvas.aspect
    paint = tx.picture(canvas.image, width, height, frame)
    panel = box((0, 0.012, 0), (width + 0.07, 0.024, height + 0.07), Material(paint, glow=glow))
    return Body(name, (_unshadowed(panel),))


def poster_landscape() -> tx.Canvas:
    """A sun between mountain ranges, under a title."""
    art = tx.Canvas(tx.srgb("#f2d7a0"), 0.75)
    for i in range(6):
        art.rectangle(
            0,
            i * 0.09,
            0.75,
            0.09,
            tx.mix(tx.srgb("#e8893c"), tx.srgb("#f6e3b0"), np.array([i / 5], np.float32))[:, 0],
        )
    art.disc(0.42, 0.4, 0.15, _RED)
    for i, code in enumerate(("#a4668a", "#6a4c80", "#3f3a68", "#22284a")):
        base = 0.52 + 0.1 * i
        for k in range(4):
            x = (k + 0.5 * (i % 2)) * 0.27 - 0.05
            art.triangle(((x - 0.24, base + 0.2), (x + 0.24, base + 0.2), (x, base - 0.1)), tx.srgb(code))
        art.rectangle(0, base + 0.12, 0.75, 0.4, tx.srgb(code))
    art.text("GSFIELDS", 0.06, 0.06, 0.095, _INK)
    return art


def poster_shapes(rng: np.random.Generator) -> tx.Canvas:
    """A grid of discs, quarters and triangles in few colours."""
    art = tx.Canvas(_CREAM, 0.8)
    cell = 0.2
    for row in range(5):
        for column in range(4):
            x, y = column * cell, row * cell
            ground, figure = (_PALETTE[i] for i in rng.choice(len(_PALETTE), 2, replace=False))
            art.rectangle(x, y, cell, cell, ground)
            kind = rng.integers(4)
            if kind == 0:
                art.disc(x + cell / 2, y + cell / 2, 0.42 * cell, figure)
                art.disc(x + cell / 2, y + cell / 2, 0.18 * cell, ground)
            elif kind == 1:
                art.triangle(((x, y), (x + cell, y), (x, y + cell)), figure)
            elif kind == 2:
                for k in range(4):
                    art.rectangle(x + (k + 0.25) * cell / 4, y, cell / 8, cell, figure)
            else:
                art.disc(x + cell / 2, y + cell / 4, cell / 4, figure)
                art.disc(x + cell / 2, y + 3 * cell / 4, cell / 4, figure)
    return art


def poster_letters(rng: np.random.Generator) -> tx.Canvas:
    """Rows of ever smaller letters, as at the optician's."""
    art = tx.Canvas(_CREAM, 0.7, rows=320)
    letters, y, height = list("BDFGHLNPRSTVZ"), 0.07, 0.16  # no vowels, no words
    for count in (2, 3, 4, 6, 8, 11):
        row = "".join(rng.choice(letters, count))
        width = (6 * count - 1) * height / 7
        art.text(row, (0.7 - width) / 2, y, height, _RED if count == 4 else _INK)
        y, height = y + height * 1.45, height * 0.72
    return art


def poster_star() -> tx.Canvas:
    """A star of wedges around rings: detail at every scale."""
    art = tx.Canvas(tx.srgb("#23456e"), 1.0)
    x, y = art.x - 0.5, art.y - 0.5
    reach, turn = np.hypot(x, y), np.arctan2(y, x)
    art.disc(0.5, 0.5, 0.45, _CREAM)
    wedge = np.sin(turn * 18) * reach / 18
    art.fill(np.maximum(wedge, reach - 0.42), _INK)
    art.disc(0.5, 0.5, 0.15, _GOLD)
    for i in range(3):
        art.disc(0.5, 0.5, 0.12 - 0.04 * i, (_RED, _CREAM, _INK)[i])
    return art


def window_view() -> tx.Canvas:
    """Sky with clouds, hills and a meadow behind window bars."""
    art = tx.Canvas(tx.srgb("#8fc0ea"), 1.25)
    cloud = tx.noise2(art.y * 2, art.x, 1.3)
    art.image += (np.clip((cloud - 0.5) * 3, 0, 1) * np.clip(1.2 - art.y, 0, 1))[..., None] * (1 - art.image)
    for base, lift, code in ((0.62, 0.06, "#7d9db0"), (0.7, 0.05, "#5f8a5a"), (0.8, 0.03, "#8fb04e")):
        hills = base + lift * np.sin(art.x * 5 / lift * 0.06 + base * 40)
        art.fill(hills - art.y, tx.srgb(code))
    for i in range(3):
        art.rectangle(0.02 + i * 0.595, 0, 0.02, 1, _CREAM)
    art.rectangle(0, 0.45, 1.25, 0.03, _CREAM)
    return art


def still_life(rng: np.random.Generator, height: float) -> list[tuple[Body, tuple[float, float]]]:
    """Small bodies and where on a table top they go, (x, y)."""
    stone = Material(tx.marble(tx.srgb("#ece8e2"), tx.srgb("#39424e"), 0.3), gloss=0.5, shininess=90)
    glaze = Material(
        tx.bands([tx.srgb("#2f6f8f"), tx.srgb("#e8e2d0"), tx.srgb("#2f6f8f"), _GOLD], 0.028), gloss=0.35
    )
    orange = Material(tx.mottled(tx.srgb("#e8842a"), 0.25, 0.12), gloss=0.15)
    bowl = cone((0, 0, 0.035), (0.13, 0.13, 0.07), tx.bands([tx.srgb("#7a4c28"), tx.srgb("#d8b98a")], 0.0233))
    fruit = [
        ball((0.07 * np.cos(a), 0.07 * np.sin(a), 0.1), (0.1, 0.1, 0.1), orange) for a in (0.4, 2.5, 4.6)
    ]
    leaning = rng.uniform(-0.3, 0.3, 4)
    books, z = [], 0.0
    for i, code in enumerate(("#23456e", "#c43d2b", "#7d9a4b", "#e3a72f")):
        thick = (0.045, 0.03, 0.038, 0.025)[i]
        cover = tx.faces(
            {"+x": tx.plain(_CREAM), "-x": tx.plain(_CREAM), "+y": tx.plain(_CREAM)},
            tx.weave(tx.srgb(code), tx.srgb(code) * 0.6, 0.02),
        )
        books.append(
            box((0, 0, z + thick / 2), (0.26 - 0.025 * i, 0.19 - 0.012 * i, thick), cover, leaning[i])
        )
        z += thick
    bodies = [
        Body("marble ball", (ball((0, 0, 0.11), (0.22, 0.22, 0.22), stone),)),
        Body(
            "vase",
            (
                cone((0, 0, 0.03), (0.1, 0.1, 0.06), glaze),
                ball((0, 0, 0.15), (0.2, 0.2, 0.22), glaze),
                cone((0, 0, 0.29), (0.07, 0.07, 0.12), glaze),
                cone((0, 0, 0.35), (0.11, 0.11, 0.02), glaze),
            ),
        ),
        Body("fruit bowl", (bowl, cone((0, 0, 0.06), (0.26, 0.26, 0.02), tx.plain(_OAK_DARK)), *fruit)),
        Body("books", tuple(books)),
        Body("chequered cube", (box((0, 0, 0.08), (0.16, 0.16, 0.16), tx.checker(_INK, _CREAM, 0.04)),)),
        Body(
            "striped cone", (cone((0, 0, 0.15), (0.18, 0.18, 0.3), tx.bands([_RED, _CREAM], 0.05), top=0.05),)
        ),
    ]
    reach, start = 0.38, rng.uniform(0, 2 * np.pi)
    spots = [(0.02, -0.01)] + [
        (reach * np.cos(start + k * 2 * np.pi / 5), reach * np.sin(start + k * 2 * np.pi / 5))
        for k in range(5)
    ]
    order = [1, 0, 2, 4, 3, 5]  # the vase in the middle
    return [
        (bodies[i].placed((0, 0, height), rng.uniform(0, np.pi)), spot)
        for i, spot in zip(order, spots, strict=True)
    ]


def furnished_room(seed: int) -> Scene:
    """The demo's room: the same things for every seed, in other places, colours and pictures."""
    rng = np.random.default_rng(seed)
    tones = [_PALETTE[i] for i in rng.permutation(6)]
    x, y, z = ROOM_SIZE / 2
    jitter = lambda scale: rng.uniform(-scale, scale)  # noqa: E731
    rug = cone((0, 0, 0.006), (2.2, 2.2, 0.012), tx.medallion([tones[0], _CREAM, tones[1], _INK, _GOLD], 1.1))
    bodies = [
        shell(tones),
        Body("rug", (_unshadowed(rug),)).placed((0, 0, 0), jitter(3)),
        table().placed((0, 0, 0.012), jitter(0.6)),
    ]
    bodies += [body.placed((px, py, 0)) for body, (px, py) in still_life(rng, 0.752)]
    crate_wood = tx.faces({}, tx.planks(_PINE, _PINE_DARK, 0.09, 2.0))
    ball_skin = Material(tx.gores([_RED, _CREAM, tones[2], _CREAM, _GOLD, _CREAM], _CREAM, 0.19), gloss=0.3)
    stool_top = Material(tx.weave(tones[3], tones[3] * 0.5), gloss=0.0)
    bodies += [
        sofa(1.9, tones[2], (tones[3], tones[4], tones[5])).placed((0.1 + jitter(0.25), -y + 0.43, 0)),
        bookshelf(rng).placed((-0.9 + jitter(0.3), y - 0.17, 0), np.pi),
        plant(rng).placed((-x + 0.5, -y + 0.5, 0), jitter(3)),
        floor_lamp().placed((x - 0.4, -y + 0.45, 0)),
        Body("crate", (box((0, 0, 0.22), (0.44, 0.44, 0.44), crate_wood),)).placed(
            (x - 0.45, y - 0.5, 0), jitter(0.5)
        ),
        Body(
            "beach ball",
            (ball((0, 0, 0.21), (0.42, 0.42, 0.42), ball_skin).moved(_tilt(0.7), np.array([0, 0, 0.06])),),
        ).placed((0.35 + jitter(0.2), y - 0.45, 0), jitter(3)),
        Body(
            "stool",
            (
                cone((0, 0, 0.2), (0.3, 0.3, 0.4), crate_wood, top=0.8),
                cone((0, 0, 0.43), (0.36, 0.36, 0.06), stool_top),
            ),
        ).placed((-x + 0.4, y - 0.9 + jitter(0.2), 0)),
        pendant().placed((0, 0, 2 * z)),
        framed("landscape poster", poster_landscape(), 0.9, _INK).placed((x, 0.75, 1.5), np.pi / 2),
        framed("letter poster", poster_letters(rng), 0.85, tx.srgb("#b08a4a")).placed(
            (x, -0.55, 1.5), np.pi / 2
        ),
        framed("shape poster", poster_shapes(rng), 0.8, _CREAM).placed((1.2, -y, 1.6), 0),
        framed("star poster", poster_star(), 0.6, _OAK_DARK).placed((-0.9, -y, 1.65), 0),
        framed("window", window_view(), 1.1, _CREAM, glow=0.95).placed((-x, 0.1, 1.55), -np.pi / 2),
        framed("small picture", poster_shapes(rng), 0.5, _GOLD).placed((1.4, y, 1.55), np.pi),
    ]
    lamps = [
        Lamp(np.array([0.0, 0.0, 2 * z - 0.45]), np.array([2.8, 2.4, 1.95]), 0.12),
        Lamp(np.array([x - 0.4, -y + 0.45, 1.5]), np.array([0.75, 0.58, 0.38]), 0.1),
        Lamp(np.array([-x + 0.12, 0.1, 1.6]), np.array([0.9, 1.05, 1.25]), 0.3),
    ]
    ambient = (np.array([0.38, 0.4, 0.44]), np.array([0.3, 0.25, 0.2]))
    return Scene(bodies, lamps, ambient=ambient, room=(np.array([-x, -y, 0]), np.array([x, y, 2 * z])))


def _tilt(angle: float) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])

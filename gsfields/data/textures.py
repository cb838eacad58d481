"""Procedural textures: functions of a surface's own coordinates, so that they stick to what they cover.

Each maker returns a `Texture`: (points [3, N] in the primitive's frame in metres, outward unit normals [3, N]
there) -> linear albedo [3, N]. Sizes are metres, colours are linear [3] (see `srgb`). Noise is read from
tables built once from a fixed seed, so a texture is the same in every process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from gsfields.data.raytrace import Texture
from gsfields.data.solids import Array

_FONT = {  # 5 x 7 pixels a letter, one five-bit number a row
    "A": (14, 17, 17, 31, 17, 17, 17), "B": (30, 17, 17, 30, 17, 17, 30), "D": (30, 17, 17, 17, 17, 17, 30),
    "E": (31, 16, 16, 30, 16, 16, 31), "F": (31, 16, 16, 30, 16, 16, 16), "G": (14, 17, 16, 23, 17, 17, 15),
    "I": (14, 4, 4, 4, 4, 4, 14), "L": (16, 16, 16, 16, 16, 16, 31), "N": (17, 25, 21, 19, 17, 17, 17),
    "O": (14, 17, 17, 17, 17, 17, 14), "P": (30, 17, 17, 30, 16, 16, 16), "R": (30, 17, 17, 30, 20, 18, 17),
    "S": (15, 16, 16, 14, 1, 1, 30), "T": (31, 4, 4, 4, 4, 4, 4), "U": (17, 17, 17, 17, 17, 17, 14),
    "V": (17, 17, 17, 17, 17, 10, 4), "Z": (31, 1, 2, 4, 8, 16, 31), "H": (17, 17, 17, 31, 17, 17, 17),
}  # fmt: skip


def srgb(code: str) -> Array:
    """A "#rrggbb" colour as linear float32 [3] (IEC 61966-2-1)."""
    value = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def mix(a: Array, b: Array, weight: Array) -> Array:
    """a + weight (b - a): colours [3] or [3, N], weight [N] -> [3, N]."""
    a, b = (c[:, None] if c.ndim == 1 else c for c in (a, b))
    return a + (b - a) * weight


@lru_cache
def _noise_table(dimensions: int, size: int) -> Array:
    """A periodic table [size] * dimensions of fractal value noise in [0, 1]: smooth random lattices of 4, 8,
    ... cells, each half as strong as the one before.
    """
    rng = np.random.default_rng(dimensions)
    total = np.zeros((size,) * dimensions, dtype=np.float32)
    cells, weight = 4, 1.0
    while cells <= size // 2:
        lattice = rng.random((cells,) * dimensions, dtype=np.float32)
        place = np.arange(size) * (cells / size)
        low = place.astype(int)
        step = (place - low).astype(np.float32)
        step = step * step * (3 - 2 * step)
        for axis in range(dimensions):
            shape = [1] * dimensions
            shape[axis] = size
            ahead = np.take(lattice, (low + 1) % cells, axis=axis)
            lattice = np.take(lattice, low, axis=axis)
            lattice = lattice + (ahead - lattice) * step.reshape(shape)
        total += weight * (lattice - 0.5)
        cells, weight = cells * 2, weight * 0.5
    deviation = float(total.std())
    return np.clip(0.5 + total * (0.2 / deviation), 0, 1).astype(np.float32)


def noise2(u: Array, v: Array, period: float = 1.0) -> Array:
    """Fractal noise in [0, 1], mean 0.5, at (u, v), each [N]; it repeats after `period`."""
    table = _noise_table(2, 1024)
    scale = 1024 / period
    return table[np.floor(u * scale).astype(np.int32) & 1023, np.floor(v * scale).astype(np.int32) & 1023]


def noise3(points: Array, period: float = 1.0) -> Array:
    """Fractal noise in [0, 1], mean 0.5, trilinear, at points [3, N]; it repeats after `period`."""
    table = _noise_table(3, 64)
    place = points * (64 / period)
    low = np.floor(place).astype(np.int32)
    fx, fy, fz = (place - low).astype(np.float32)
    x0, y0, z0 = low & 63
    x1, y1, z1 = (low + 1) & 63

    def along_z(x: Array, y: Array) -> Array:
        near = table[x, y, z0]
        return near + (table[x, y, z1] - near) * fz

    low_x = along_z(x0, y0) * (1 - fy) + along_z(x0, y1) * fy
    return low_x + (along_z(x1, y0) * (1 - fy) + along_z(x1, y1) * fy - low_x) * fx


@lru_cache
def _hash_table() -> Array:
    return np.random.default_rng(11).random(4096, dtype=np.float32)


def cell_hash(i: Array, j: Array) -> Array:
    """A fixed random number in [0, 1) for each pair of integers (as floats), [N]."""
    return _hash_table()[(i.astype(np.int64) * 73 + j.astype(np.int64) * 1511) & 4095]


def face_uv(points: Array, normals: Array) -> tuple[Array, Array]:
    """The two coordinates along a box's face: (y, z) on ±x, (x, z) on ±y, (x, y) on ±z."""
    axis = np.abs(normals).argmax(axis=0)
    return np.where(axis == 0, points[1], points[0]), np.where(axis == 2, points[1], points[2])


def plain(color: Array) -> Texture:
    """One colour."""
    return lambda points, normals: np.broadcast_to(color[:, None], points.shape)


def mottled(color: Array, strength: float = 0.25, period: float = 1.0) -> Texture:
    """One colour, lighter and darker by noise: plaster, clay."""

    def texture(points: Array, normals: Array) -> Array:
        return color[:, None] * (1 + strength * 2 * (noise3(points, period) - 0.5))

    return texture


def checker(a: Array, b: Array, size: float) -> Texture:
    """Squares of `size` on each face, the same all through for round things."""

    def texture(points: Array, normals: Array) -> Array:
        u, v = face_uv(points, normals)
        odd = (np.floor(u / size) + np.floor(v / size)) % 2
        return mix(a, b, odd.astype(points.dtype))

    return texture


def bands(colors: Sequence[Array], width: float, axis: int = 2) -> Texture:
    """Bands of `width` across an axis of the primitive, repeating."""
    palette = np.stack(colors, axis=1)

    def texture(points: Array, normals: Array) -> Array:
        return palette[:, np.floor(points[axis] / width).astype(np.int64) % palette.shape[1]]

    return texture


def gores(colors: Sequence[Array], cap: Array, cap_height: float) -> Texture:
    """Sectors about z with a cap of |z| > cap_height: a beach ball."""
    palette = np.stack(colors, axis=1)

    def texture(points: Array, normals: Array) -> Array:
        turn = np.arctan2(points[1], points[0]) / (2 * np.pi) + 0.5
        sector = palette[:, np.floor(turn * palette.shape[1]).astype(np.int64) % palette.shape[1]]
        return np.where(np.abs(points[2]) > cap_height, cap[:, None], sector)

    return texture


def marble(a: Array, b: Array, period: float = 0.5) -> Texture:
    """Veins of b in a: a sine bent by noise (Perlin, "An Image Synthesizer", SIGGRAPH 1985)."""

    def texture(points: Array, normals: Array) -> Array:
        phase = (points[0] + 0.6 * points[1] + 0.4 * points[2]) * (8 / period) + 14 * noise3(points, period)
        return mix(a, b, (0.5 + 0.5 * np.sin(phase)) ** 5 * 0.9 + 0.1 * noise3(points, period / 4))

    return texture


def wood(a: Array, b: Array, rings: float = 45.0, axis: int = 0) -> Texture:
    """Grain along `axis`: rings (per metre) about it, bent by noise stretched along it."""
    stretch = np.ones((3, 1), dtype=np.float32)
    stretch[axis] = 0.12
    across = [i for i in range(3) if i != axis]

    def texture(points: Array, normals: Array) -> Array:
        bend = noise3(points * stretch, 0.5)
        reach = np.hypot(points[across[0]] + 0.31, points[across[1]] + 0.17)
        ring = 0.5 + 0.5 * np.sin(2 * np.pi * (reach * rings + 4 * bend))
        fine = noise3(points * stretch, 0.06)
        return mix(a, b, np.clip(0.65 * ring + 0.7 * (fine - 0.5) + 0.1, 0, 1))

    return texture


def planks(a: Array, b: Array, width: float = 0.14, length: float = 1.1) -> Texture:
    """A floor of boards along u, each with its own tone and grain."""

    def texture(points: Array, normals: Array) -> Array:
        u, v = face_uv(points, normals)
        row = np.floor(v / width)
        along = u / length + cell_hash(row, row * 0 + 7)
        board = np.floor(along)
        tone = cell_hash(row, board)
        grain = noise2(u * 0.15 + tone * 13, v + tone * 5, 0.35)
        shade = np.clip(0.15 + 0.55 * tone + 1.1 * (grain - 0.5), 0, 1)
        gap = np.minimum(np.abs(v / width - row - 0.5) - 0.5, 0) * width > -0.004
        gap |= np.minimum(np.abs(along - board - 0.5) - 0.5, 0) * length > -0.004
        return mix(a, b, shade) * np.where(gap, 0.35, 1).astype(points.dtype)

    return texture


def bricks(a: Array, b: Array, mortar: Array, width: float = 0.24, height: float = 0.08) -> Texture:
    """Running bond; each brick between a and b, with chips and soot from noise."""

    def texture(points: Array, normals: Array) -> Array:
        u, v = face_uv(points, normals)
        row = np.floor(v / height)
        along = u / width + 0.5 * (row % 2)
        column = np.floor(along)
        rough = noise2(u, v, 0.7)
        tone = np.clip(0.75 * cell_hash(row, column) + 1.0 * (rough - 0.4), 0, 1)
        edge = np.minimum(
            (0.5 - np.abs(along - column - 0.5)) * width, (0.5 - np.abs(v / height - row - 0.5)) * height
        )
        joint = edge < 0.006 + 0.006 * (rough - 0.5)
        return np.where(joint, mortar[:, None] * (0.7 + 0.6 * rough), mix(a, b, tone))

    return texture


def wallpaper(ground: Array, figure: Array, accent: Array, pitch: float = 0.2) -> Texture:
    """Rows of petals with a dot between, on a ground of faint stripes and paper grain."""

    def texture(points: Array, normals: Array) -> Array:
        u, v = face_uv(points, normals)
        row = np.floor(v / pitch)
        x = (u / pitch + 0.5 * (row % 2)) % 1 - 0.5
        y = (v / pitch) % 1 - 0.5
        reach, turn = np.hypot(x, y), np.arctan2(y, x)
        petal = reach < 0.36 * np.abs(np.cos(2 * turn)) ** 0.6
        vein = np.abs(reach - 0.2) < 0.02
        dot = (reach < 0.07) | (np.hypot(np.abs(x) - 0.5, y) < 0.06)
        stripe = np.floor(u / (pitch / 4)) % 2
        color = mix(ground, ground * 0.9, stripe.astype(points.dtype))
        color = np.where(petal & ~vein, figure[:, None], color)
        color = np.where(dot, accent[:, None], color)
        return color * (0.86 + 0.28 * noise2(u, v, 0.8))

    return texture


def weave(a: Array, b: Array, size: float = 0.03) -> Texture:
    """Coarse cloth: threads over and under, and wear."""

    def texture(points: Array, normals: Array) -> Array:
        u, v = face_uv(points, normals)
        thread = 0.5 + 0.5 * np.sin(u * (2 * np.pi / size)) * np.sin(v * (2 * np.pi / size))
        return mix(a, b, np.clip(0.55 * thread + 1.0 * (noise3(points, 0.4) - 0.3), 0, 1))

    return texture


def medallion(colors: Sequence[Array], radius: float) -> Texture:
    """A round rug about z: rings of zigzags, petals and knots."""

    def texture(points: Array, normals: Array) -> Array:
        reach = np.hypot(points[0], points[1]) / radius
        turn = np.arctan2(points[1], points[0])
        wave = reach + 0.025 * np.abs((turn * 24 / np.pi) % 2 - 1)
        ring = np.floor(wave * 9).astype(np.int64)
        palette = np.stack(colors, axis=1)
        color = palette[:, ring % palette.shape[1]]
        petal = (np.abs(reach * 9 % 3 - 1.5) < 1.1 * np.abs(np.sin(turn * 8))) & (ring % 3 == 1)
        color = np.where(petal, palette[:, (ring + 2) % palette.shape[1]], color)
        knots = 0.75 + 0.5 * noise2(points[0], points[1], 0.25)
        return color * knots.astype(points.dtype)

    return texture


def faces(by_face: Mapping[str, Texture], otherwise: Texture) -> Texture:
    """A texture a face of a box: keys "+x", "-x", "+y", ..., by the outward normal; `otherwise` on the
    rest.
    """
    names = [sign + axis for axis in "xyz" for sign in "-+"]

    def texture(points: Array, normals: Array) -> Array:
        axis = np.abs(normals).argmax(axis=0)
        face = 2 * axis + (np.take_along_axis(normals, axis[None], axis=0)[0] > 0)
        color = np.empty_like(points)
        for index in np.unique(face):
            here = face == index
            color[:, here] = by_face.get(names[index], otherwise)(points[:, here], normals[:, here])
        return color

    return texture


def picture(canvas: Array, width: float, height: float, frame: Array) -> Texture:
    """A canvas float32 [rows, columns, 3] on the faces ±y of a box, `width` x `height` about its centre,
    first row on top, bilinear; `frame` around and elsewhere. Seen from the side +y points to, +x is left.
    """
    rows, columns = canvas.shape[:2]
    image = np.ascontiguousarray(canvas.transpose(2, 0, 1))

    def texture(points: Array, normals: Array) -> Array:
        across = np.where(normals[1] > 0, -points[0], points[0])
        x, y = (across / width + 0.5) * columns - 0.5, (0.5 - points[2] / height) * rows - 0.5
        on = (np.abs(normals[1]) > 0.5) & (np.abs(points[0]) < width / 2) & (np.abs(points[2]) < height / 2)
        x, y = np.clip(x, 0, columns - 1.001), np.clip(y, 0, rows - 1.001)
        i, j = y.astype(np.int64), x.astype(np.int64)
        fy, fx = (y - i).astype(np.float32), (x - j).astype(np.float32)
        above = image[:, i, j] * (1 - fx) + image[:, i, j + 1] * fx
        below = image[:, i + 1, j] * (1 - fx) + image[:, i + 1, j + 1] * fx
        return np.where(on, above + (below - above) * fy, frame[:, None])

    return texture


class Canvas:
    """A picture to paint on: linear float32 [rows, columns, 3], coordinates in [0, aspect] x [0, 1] from
    top left.
    """

    def __init__(self, ground: Array, aspect: float, rows: int = 256) -> None:
        self.image = np.tile(ground, (rows, round(rows * aspect), 1)).astype(np.float32)
        self.aspect = aspect
        y, x = np.mgrid[: self.image.shape[0], : self.image.shape[1]]
        self.x, self.y = ((x + 0.5) / rows).astype(np.float32), ((y + 0.5) / rows).astype(np.float32)

    def fill(self, distance: Array, color: Array, window: tuple[slice, ...] = ()) -> None:
        """Paint where a signed distance [rows, columns] is negative, with an edge one pixel wide; `distance`
        may be that of a window of the canvas.
        """
        part = self.image[window]
        part += np.clip(0.5 - distance * len(self.image), 0, 1)[..., None] * (color - part)

    def _window(self, x: float, y: float, width: float, height: float) -> tuple[slice, slice]:
        """The pixels of a rectangle and one beyond."""
        rows = len(self.image)
        (left, right), (top, bottom) = (
            (int(a * rows) - 1, int((a + b) * rows) + 3) for a, b in ((x, width), (y, height))
        )
        return slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))

    def disc(self, x: float, y: float, radius: float, color: Array) -> None:
        """A filled circle."""
        window = self._window(x - radius, y - radius, 2 * radius, 2 * radius)
        self.fill(np.hypot(self.x[window] - x, self.y[window] - y) - radius, color, window)

    def rectangle(self, x: float, y: float, width: float, height: float, color: Array) -> None:
        """A filled rectangle from its top left corner."""
        window = self._window(x, y, width, height)
        across = np.abs(self.x[window] - x - width / 2) - width / 2
        down = np.abs(self.y[window] - y - height / 2) - height / 2
        self.fill(np.maximum(across, down), color, window)

    def triangle(self, corners: Sequence[tuple[float, float]], color: Array) -> None:
        """A filled triangle, corners in either order."""
        (ax, ay), (bx, by), (cx, cy) = corners
        if (bx - ax) * (cy - ay) < (by - ay) * (cx - ax):
            bx, by, cx, cy = cx, cy, bx, by
        distance = np.full_like(self.x, -np.inf)
        for px, py, qx, qy in ((ax, ay, bx, by), (bx, by, cx, cy), (cx, cy, ax, ay)):
            length = np.hypot(qx - px, qy - py)
            distance = np.maximum(distance, ((qy - py) * (self.x - px) - (qx - px) * (self.y - py)) / length)
        self.fill(distance, color)

    def text(self, letters: str, x: float, y: float, height: float, color: Array) -> None:
        """Block letters (those of the small built-in font) from their top left corner."""
        pixel = height / 7
        for letter in letters:
            for row, bits in enumerate(_FONT.get(letter, (0,) * 7)):
                for column in range(5):
                    if bits >> (4 - column) & 1:
                        self.rectangle(x + column * pixel, y + row * pixel, pixel * 1.02, pixel * 1.02, color)
            x += 6 * pixel

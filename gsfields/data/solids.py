"""The convex solids that scenes are ray cast from, each in its unit frame: where a line is inside, and which
way is out.

Vectors of many points are component first, [3, N]: each component is then contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TINY = 1e-30  # stands in for a zero divisor


def dot(a: Array, b: Array) -> Array:
    """Dot products [N] of vectors [3, N]."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


class Solid(Protocol):
    """A convex solid that fits in the cube [-1, 1]³."""

    def interval(self, points: Array, directions: Array) -> tuple[Array, Array]:
        """Where the lines points + s·directions, both [3, N], are inside: s from `enter` to `leave`, each
        [N]; a line that misses has enter > leave. `points` should be near the origin, for accuracy.
        """

    def normals(self, points: Array) -> Array:
        """Outward normals [3, N], of any length, at points [3, N] of the surface."""

    def contains(self, points: Array) -> Array:
        """Whether points [3, N] are inside: bool [N]."""


@dataclass(frozen=True)
class Box:
    """The cube [-1, 1]³."""

    def interval(self, points: Array, directions: Array) -> tuple[Array, Array]:
        slowness = 1 / np.where(directions == 0, directions.dtype.type(TINY), directions)
        middle, half = -points * slowness, np.abs(slowness)
        return (middle - half).max(axis=0), (middle + half).min(axis=0)

    def normals(self, points: Array) -> Array:
        face = np.abs(points).argmax(axis=0)
        return np.where(np.arange(3)[:, None] == face, np.sign(points), 0).astype(points.dtype)

    def contains(self, points: Array) -> Array:
        return np.abs(points).max(axis=0) <= 1


@dataclass(frozen=True)
class Ball:
    """The unit ball; with unequal half sizes, an ellipsoid."""

    def interval(self, points: Array, directions: Array) -> tuple[Array, Array]:
        # The chord about the foot of the perpendicular: no difference of large numbers (Haines et al.,
        # "Precision Improvements for Ray/Sphere Intersection", Ray Tracing Gems 2019, chapter 7).
        squared = dot(directions, directions)
        middle = -dot(points, directions) / squared
        foot = points + middle * directions
        chord = (1 - dot(foot, foot)) / squared
        half = np.sqrt(np.maximum(chord, 0))
        return np.where(chord < 0, np.inf, middle - half), np.where(chord < 0, -np.inf, middle + half)

    def normals(self, points: Array) -> Array:
        return points

    def contains(self, points: Array) -> Array:
        return dot(points, points) <= 1


@dataclass(frozen=True)
class Cone:
    """A capped cone about z in [-1, 1]: radius 1 below, `top` in [0, 1] above (1: a cylinder)."""

    top: float = 1.0

    def _radius(self, z: Array) -> Array:
        return 0.5 * (1 + self.top) - 0.5 * (1 - self.top) * z

    def interval(self, points: Array, directions: Array) -> tuple[Array, Array]:
        (x, y, z), (dx, dy, dz) = points, directions
        slope = -0.5 * (1 - self.top)
        radius = self._radius(z)
        # |xy|² <= radius², a s² + 2 b s + c <= 0 along the line.
        a = dx * dx + dy * dy - (slope * dz) ** 2
        b = x * dx + y * dy - slope * radius * dz
        c = x * x + y * y - radius**2
        a = np.where(a == 0, a.dtype.type(TINY), a)
        discriminant = b * b - a * c
        q = -(b + np.copysign(np.sqrt(np.maximum(discriminant, 0)), b))
        q = np.where(q == 0, q.dtype.type(TINY), q)
        first, second = np.minimum(q / a, c / q), np.maximum(q / a, c / q)

        safe = np.where(dz == 0, dz.dtype.type(TINY), dz)
        low, high = (-1 - z) / safe, (1 - z) / safe
        bottom, top = np.minimum(low, high), np.maximum(low, high)
        # a > 0: inside between the roots. a < 0: outside them, and only one of the two pieces is in the slab,
        # with the right half of the double cone (the apex is not below the top); with no roots, all of it is.
        early = np.minimum(top, first)
        use_early = early > bottom
        enter = np.where(
            a > 0, np.maximum(bottom, first), np.where(use_early, bottom, np.maximum(bottom, second))
        )
        leave = np.where(a > 0, np.minimum(top, second), np.where(use_early, early, top))
        enter = np.where(discriminant < 0, np.where(a > 0, np.inf, bottom), enter)
        leave = np.where(discriminant < 0, np.where(a > 0, -np.inf, top), leave)
        return enter, leave

    def normals(self, points: Array) -> Array:
        x, y, z = points
        across = np.hypot(x, y)
        on_cap = np.abs(1 - np.abs(z)) < np.abs(across - self._radius(z))
        side_z = np.full_like(z, 0.5 * (1 - self.top))
        scale = 1 / np.maximum(across, 1e-12)
        return np.stack(
            [
                np.where(on_cap, 0, x * scale),
                np.where(on_cap, 0, y * scale),
                np.where(on_cap, np.sign(z), side_z),
            ]
        ).astype(points.dtype)

    def contains(self, points: Array) -> Array:
        x, y, z = points
        return (np.abs(z) <= 1) & (np.hypot(x, y) <= self._radius(z))

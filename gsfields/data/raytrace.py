"""Exact ray casting of scenes made of three convex solids: boxes, ellipsoids and (truncated) cones.

Every primitive is an affine image of a unit solid, so a ray is taken to the solid's own frame, met there in
closed form, and its parameter is valid in the world unchanged. All the rays of one call leave one point (a
camera's or a lamp's centre); that is what makes culling a comparison of cosines.

Vectors of many points are component first, [3, N]: each component is then contiguous. Lengths are metres, z
is up, colours are linear. Nothing is random here and nothing depends on the order in which rays are cast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from gsfields.data.solids import TINY, Array, Ball, Cone, Solid, dot

# (points [3, N] and outward unit normals [3, N] in the primitive's own frame, metres) -> linear albedo [3, N]
Texture = Callable[[Array, Array], Array]

_GROUP = 64  # rays that are culled together


def _apply(matrix: Array, vectors: Array) -> Array:
    """matrix [3, 3] @ vectors [3, N] in the vectors' precision, without the threads that BLAS would start."""
    matrix = matrix.astype(vectors.dtype)
    return matrix[:, :1] * vectors[0] + matrix[:, 1:2] * vectors[1] + matrix[:, 2:] * vectors[2]


@dataclass(frozen=True)
class Material:
    """How a surface answers light: `texture` is its albedo; `gloss` the weight of a white Blinn-Phong
    highlight of exponent `shininess` (0: Lambertian, the same colour from everywhere); `glow` the share of
    the albedo it emits.
    """

    texture: Texture
    gloss: float = 0.0
    shininess: float = 40.0
    glow: float = 0.0


@dataclass(frozen=True)
class Primitive:
    """A unit solid scaled by `half` [3] (metres), turned by `rotation` [3, 3] and moved to `center` [3].

    hollow: seen from its inside (the room). casts_shadow: whether it stands in a lamp's way.
    """

    solid: Solid
    center: Array
    half: Array
    material: Material
    rotation: Array = field(default_factory=lambda: np.eye(3))
    hollow: bool = False
    casts_shadow: bool = True

    def moved(self, rotation: Array, translation: Array) -> Primitive:
        """This primitive after x -> rotation x + translation, a rigid motion of the world."""
        return replace(self, center=rotation @ self.center + translation, rotation=rotation @ self.rotation)

    @property
    def radius(self) -> float:
        """The radius of a sphere about `center` that holds the primitive, metres."""
        x, y, z = (float(h) for h in self.half)
        if isinstance(self.solid, Ball):
            return max(x, y, z)
        return (
            float(np.hypot(max(x, y), z))
            if isinstance(self.solid, Cone)
            else float(np.hypot(np.hypot(x, y), z))
        )

    def to_unit(self, points: Array) -> Array:
        """World points [3, N] in the frame of the unit solid."""
        return (self.rotation.T @ (points - self.center[:, None])) / self.half[:, None]

    def first_hit(self, origin: Array, directions: Array) -> Array:
        """The least t > 0 at which origin + t·directions is on the surface, [N]; inf where there is none."""
        dtype = directions.dtype
        into = (self.rotation / self.half).T
        unit = _apply(into, directions)
        start = (into @ (origin - self.center)).astype(dtype)
        # Slide each ray to its point nearest the centre first: the solids then work with numbers about 1.
        shift = -dot(start[:, None], unit) / dot(unit, unit)
        enter, leave = self.solid.interval(start[:, None] + shift * unit, unit)
        first = np.where(enter + shift > 0, enter, leave) + shift
        return np.where((enter <= leave) & (first > 0), first, dtype.type(np.inf))

    def surface(self, points: Array) -> tuple[Array, Array, Array]:
        """Points [3, N] of the surface -> (points in the primitive's frame in metres, unit normals there,
        unit normals in the world), each [3, N].
        """
        half = self.half[:, None].astype(points.dtype)
        local = _apply(self.rotation.T, points - self.center[:, None].astype(points.dtype))
        normals = self.solid.normals(local / half) / half
        normals /= np.sqrt(dot(normals, normals))
        return local, normals, _apply(self.rotation, normals)


@dataclass(frozen=True)
class Body:
    """A named object made of primitives, at its own origin until `placed`."""

    name: str
    parts: tuple[Primitive, ...]

    def moved(self, rotation: Array, translation: Array) -> Body:
        """The body after x -> rotation x + translation, a rigid motion of the world."""
        return Body(self.name, tuple(part.moved(rotation, translation) for part in self.parts))

    def placed(self, position: Sequence[float], yaw: float = 0.0) -> Body:
        """The body turned about z by `yaw` radians and then moved to `position` [3], metres."""
        c, s = np.cos(yaw), np.sin(yaw)
        return self.moved(np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]), np.asarray(position, float))


@dataclass(frozen=True)
class Lamp:
    """A round lamp: linear `color` [3] is its irradiance at one metre; `radius` (metres) softens its
    shadows.
    """

    position: Array
    color: Array
    radius: float = 0.0

    def sample(self, index: int, count: int) -> Array:
        """Point `index` of `count` spread over the lamp's sphere (a Fibonacci spiral), [3]; its centre if
        count is 1.
        """
        if count == 1:
            return self.position
        z = 1 - (2 * index + 1) / count
        turn = index * np.pi * (3 - np.sqrt(5))
        across = np.sqrt(1 - z * z)
        return self.position + self.radius * np.array([across * np.cos(turn), across * np.sin(turn), z])


@dataclass(frozen=True)
class Hits:
    """What rays met first: t [N] (inf: nothing), index of the primitive int32 [N] (-1: nothing)."""

    t: Array
    primitive: Array


def _grouped(rays: Array) -> Array:
    """Rays [3, N] as [3, G, _GROUP], the last one repeated to fill the last group."""
    return np.pad(rays, ((0, 0), (0, -rays.shape[1] % _GROUP)), mode="edge").reshape(3, -1, _GROUP)


class Scene:
    """Bodies (index in `bodies` = object id) under lamps, in soft ambient light.

    `ambient`: linear colours [3] of the light on surfaces that face up and down. `room`: (lower, upper)
    corners [3] of the room, whose walls darken what is near them.
    """

    def __init__(
        self,
        bodies: Sequence[Body],
        lamps: Sequence[Lamp] = (),
        *,
        ambient: tuple[Array, Array] = (np.full(3, 0.5), np.full(3, 0.5)),
        room: tuple[Array, Array] | None = None,
    ) -> None:
        self.bodies = tuple(bodies)
        self.lamps = tuple(lamps)
        self.ambient = ambient
        self.room = room
        self.primitives = tuple(part for body in self.bodies for part in body.parts)
        # One more entry than primitives, so that -1 (nothing) maps to -1.
        owners = [i for i, body in enumerate(self.bodies) for _ in body.parts]
        self._object_ids = np.array([*owners, -1], dtype=np.int32)
        self._lambertian = np.array([*(p.material.gloss == 0 for p in self.primitives), False])
        self._centers = np.array([part.center for part in self.primitives]).reshape(-1, 3)
        self._radii = np.array([part.radius for part in self.primitives], dtype=np.float32)
        self._blocks_light = np.array(
            [part.casts_shadow and not part.hollow for part in self.primitives], dtype=bool
        )

    @property
    def object_names(self) -> list[str]:
        """The bodies' names; object id i is object_names[i]."""
        return [body.name for body in self.bodies]

    def cast(self, origin: Array, directions: Array) -> Hits:
        """The first hits of the rays origin [3] + t·directions [3, N], t > 0, in the precision of the
        rays.
        """
        t = np.full(directions.shape[1], np.inf, dtype=directions.dtype)
        owner = np.full(directions.shape[1], -1, dtype=np.int32)
        everything = np.ones(len(self.primitives), dtype=bool)
        for index, rays in self._candidates(origin, directions, t, everything):
            found = self.primitives[index].first_hit(origin, directions[:, rays])
            closer = found < t[rays]
            t[rays[closer]], owner[rays[closer]] = found[closer], index
        return Hits(t, owner)

    def blocked(self, origin: Array, offsets: Array, margin: float = 2e-3) -> Array:
        """Whether something stands between origin [3] and origin + offsets [3, N]: bool [N]. `margin`, a
        share of the distance, keeps a surface from shading itself.
        """
        t = np.full(offsets.shape[1], 1 - margin, dtype=offsets.dtype)
        for index, rays in self._candidates(origin, offsets, t, self._blocks_light):
            t[rays[self.primitives[index].first_hit(origin, offsets[:, rays]) < t[rays]]] = -np.inf
        return np.isneginf(t)

    def _candidates(self, origin: Array, rays: Array, t: Array, wanted: Array) -> Iterator[tuple[int, Array]]:
        """(primitive, indices of the rays that may meet it sooner than their t), near primitives first, for
        the primitives `wanted` bool [P]; rays [3, N], t [N]. `t` is read anew for each primitive, so what the
        caller writes there prunes what follows.

        From the origin a primitive's bounding sphere is a cone of directions. Whole groups of rays are tried
        first, which lie in a cone as well, then the single rays of the groups that are left.
        """
        count = rays.shape[1]
        lengths = np.sqrt(dot(rays, rays))
        unit = _grouped(rays / lengths)
        axes = unit.sum(axis=2)
        axes /= np.maximum(np.sqrt(dot(axes, axes)), 1e-6)  # opposite rays: any axis, the cone is then wide
        cosines = dot(axes[:, :, None], unit).min(axis=1)
        spread = np.arccos(np.clip(cosines, -1, 1)) + 2e-3  # rounding must not lose a ray

        offsets = (self._centers - origin).astype(rays.dtype)
        distances = np.sqrt(dot(offsets.T, offsets.T))
        near = distances - self._radii
        directions = (offsets / np.maximum(distances, TINY)[:, None]).T
        extent = np.where(
            near > 0, np.arcsin(np.minimum(self._radii / np.maximum(distances, TINY), 1)), np.pi
        )
        least = np.cos(extent) - 2e-6
        # The angle between the axes is at most extent + spread, by the cosine of the sum: [P, G].
        reach = np.cos(extent)[:, None] * np.cos(spread) - np.sin(extent)[:, None] * np.sin(spread)
        meets = (dot(directions[:, :, None], axes[:, None]) >= reach) | (extent[:, None] + spread >= np.pi)
        for index in np.argsort(near, kind="stable"):
            groups = np.flatnonzero(meets[index]) if wanted[index] else ()
            if len(groups) == 0:
                continue
            inside = dot(directions[:, index], unit[:, groups]) >= least[index]
            inside_group, member = np.nonzero(inside)
            candidates = groups[inside_group] * _GROUP + member
            candidates = candidates[: np.searchsorted(candidates, count)]
            candidates = candidates[t[candidates] * lengths[candidates] > near[index]]
            if len(candidates):
                yield int(index), candidates

    def object_ids(self, hits: Hits) -> Array:
        """Object id of each hit, int32 [N]; -1 for nothing."""
        return self._object_ids[hits.primitive]

    def lambertian(self, hits: Hits) -> Array:
        """Whether each hit's surface looks the same from everywhere, bool [N]."""
        return self._lambertian[hits.primitive]

    def inside(self, points: Array) -> Array:
        """Whether points [3, N] are inside something solid or outside something hollow, bool [N]."""
        result = np.zeros(points.shape[1], dtype=bool)
        for part in self.primitives:
            result |= part.solid.contains(part.to_unit(points)) != part.hollow
        return result

    def radiance(
        self, origin: Array, directions: Array, sample: int = 0, samples: int = 1
    ) -> tuple[Array, Hits]:
        """Linear colours [3, N] along rays from origin [3] in directions [3, N], and the hits. Lamps are seen
        from point `sample` of `samples`: the mean over all of them has soft shadows.
        """
        hits = self.cast(origin, directions)
        colors = np.zeros_like(directions)
        met = np.flatnonzero(hits.primitive >= 0)
        smallest = np.min_scalar_type(len(self.primitives))  # numpy sorts 8 and 16 bit integers by radix
        order = met[np.argsort(hits.primitive[met].astype(smallest), kind="stable")]
        owners = hits.primitive[order]
        toward = directions[:, order]
        points = origin.astype(directions.dtype)[:, None] + hits.t[order] * toward
        albedo, normals = np.empty_like(points), np.empty_like(points)
        gloss, shininess, glow = (np.empty_like(points[0]) for _ in range(3))
        edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(owners)]
        for start, stop in pairwise(edges):
            if start == stop:
                continue
            part, span = self.primitives[owners[start]], slice(start, stop)
            local, local_normals, normals[:, span] = part.surface(points[:, span])
            albedo[:, span] = part.material.texture(local, local_normals)
            gloss[span], shininess[span] = part.material.gloss, part.material.shininess
            glow[span] = part.material.glow

        normals *= -np.sign(dot(normals, toward))  # facing the viewer: also the room's inside
        light = self._ambient_light(points, normals)
        shine = np.zeros_like(points)
        view = -toward / np.sqrt(dot(toward, toward))
        for lamp in self.lamps:
            diffuse, mirror = self._lamp_light(
                lamp.sample(sample, samples), points, normals, view, gloss, shininess
            )
            light += diffuse * lamp.color[:, None].astype(points.dtype)
            shine += mirror * lamp.color[:, None].astype(points.dtype)
        colors[:, order] = albedo * (light * (1 - np.minimum(glow, 1)) + glow) + shine
        return colors, hits

    def _ambient_light(self, points: Array, normals: Array) -> Array:
        """Light from all around at points [3, N]: between the two ambient colours by the normal's z, less
        near walls that the surface could see.
        """
        up = 0.5 + 0.5 * normals[2]
        above, below = (color[:, None].astype(points.dtype) for color in self.ambient)
        open_share = np.ones_like(up)
        for axis in range(3) if self.room is not None else ():
            assert self.room is not None
            lower, upper = self.room
            for gap, facing in (
                (points[axis] - float(lower[axis]), normals[axis]),
                (float(upper[axis]) - points[axis], -normals[axis]),
            ):
                open_share *= 1 - 0.45 * np.exp(-4 * gap) * (1 - np.maximum(facing, 0))
        return (below + (above - below) * up) * open_share

    def _lamp_light(
        self, position: Array, points: Array, normals: Array, view: Array, gloss: Array, shininess: Array
    ) -> tuple[Array, Array]:
        """(Lambert, Blinn-Phong) factors [N] of a lamp's point `position` [3] at points [3, N], shadows
        included.
        """
        offsets = points - position.astype(points.dtype)[:, None]
        squared = dot(offsets, offsets)
        toward = offsets / -np.sqrt(squared)
        cosine = dot(normals, toward)
        lit = np.flatnonzero(cosine > 0)
        lit = lit[~self.blocked(position, offsets[:, lit])]
        diffuse, mirror = np.zeros_like(cosine), np.zeros_like(cosine)
        diffuse[lit] = cosine[lit] / squared[lit]
        glossy = lit[gloss[lit] > 0]
        half = toward[:, glossy] + view[:, glossy]
        half /= np.sqrt(dot(half, half))
        facing = np.maximum(dot(half, normals[:, glossy]), 0)
        mirror[glossy] = gloss[glossy] * facing ** shininess[glossy] / squared[glossy]
        return diffuse, mirror


def pixel_rays(
    K: Array, c2w: Array, width: int, height: int, offset: tuple[float, float] = (0.5, 0.5)
) -> Array:
    """World directions [3, H·W], row by row, through the points `offset` (pixels, from each pixel's corner)
    of a pinhole K [3, 3] with pose c2w [4, 4] (OpenCV axes). They have camera z = 1, so a hit's t is its
    depth.
    """
    x = (np.arange(width) + offset[0] - K[0, 2]) / K[0, 0]
    y = (np.arange(height) + offset[1] - K[1, 2]) / K[1, 1]
    forward, right, down = c2w[:3, 2, None, None], c2w[:3, 0, None, None], c2w[:3, 1, None, None]
    return (forward + right * x + down * y[:, None]).reshape(3, -1)


def subpixel_offsets(count: int) -> list[tuple[float, float]]:
    """count² points of a pixel, one per cell of a count x count grid and no two in one row or column of the
    finer count² x count² grid (Chiu, Shirley and Wang, "Multi-Jittered Sampling", Graphics Gems IV, 1994,
    unjittered).
    """
    steps = range(count)
    return [((i + (j + 0.5) / count) / count, (j + (i + 0.5) / count) / count) for j in steps for i in steps]


def linear_to_srgb(linear: Array) -> Array:
    """The sRGB transfer curve (IEC 61966-2-1) of linear values, clipped to [0, 1]."""
    linear = np.clip(linear, 0, 1)
    return np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055
    )


@lru_cache(maxsize=4)
def _tile_order(width: int, height: int, side: int = 8) -> Array:
    """Indices of an image's pixels, tile by tile: neighbours in the order are neighbours in the image."""
    y, x = np.divmod(np.arange(width * height), width)
    return np.lexsort((x % side, y % side, x // side, y // side))


def render_image(scene: Scene, K: Array, c2w: Array, width: int, height: int, supersample: int = 2) -> Array:
    """An image float32 [H, W, 3] in [0, 1] (sRGB) of the scene, from supersample² rays a pixel in float32."""
    return expose([(scene, c2w)] * supersample**2, K, width, height)[0]


def expose(
    shots: Sequence[tuple[Scene, Array]], K: Array, width: int, height: int
) -> tuple[Array, list[Array]]:
    """(the mean image float32 [H, W, 3] in [0, 1] (sRGB) of n² shots (scene, c2w [4, 4]), the object ids
    int32 [H, W] each of them sees). A shot gives one ray a pixel, in float32; shots of different instants
    make motion blur.
    """
    offsets = subpixel_offsets(math.isqrt(len(shots)))
    order = _tile_order(width, height)
    total = np.zeros((3, width * height), dtype=np.float32)
    seen = []
    for index, ((scene, c2w), offset) in enumerate(zip(shots, offsets, strict=True)):
        rays = pixel_rays(K, c2w, width, height, offset).astype(np.float32)[:, order]
        linear, hits = scene.radiance(c2w[:3, 3], rays, index, len(offsets))
        total += 1 - np.exp(-linear)  # a soft shoulder: bright spots keep their colour
        ids = np.empty(width * height, dtype=np.int32)
        ids[order] = scene.object_ids(hits)
        seen.append(ids.reshape(height, width))
    image = np.empty((width * height, 3), dtype=np.float32)
    image[order] = linear_to_srgb(total / len(offsets)).T
    return image.reshape(height, width, 3), seen


def render_geometry(scene: Scene, K: Array, c2w: Array, width: int, height: int) -> tuple[Array, Array]:
    """(depth float32 [H, W], camera z in metres, inf where nothing; object ids int32 [H, W], -1 there) at the
    pixel centres, cast in float64.
    """
    hits = scene.cast(c2w[:3, 3], pixel_rays(K, c2w, width, height))
    return hits.t.reshape(height, width).astype(np.float32), scene.object_ids(hits).reshape(height, width)

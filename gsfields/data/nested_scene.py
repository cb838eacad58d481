"""Scenes with a known hierarchy: parts make objects, a container and what fills it a group, a stand and all
that is on it a region, in a room seen from a dome; with exact ids at all these levels, the queries that name
them, and a simulated segmenter with a language encoder, which errs. For nested language fields, such as those
of Bhalgat et al., "N2F2: Hierarchical Scene Understanding with Nested Neural Feature Fields", ECCV 2024.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gsfields.data.nested_objects import (
    ATTRIBUTES,
    FILLINGS,
    STANDS,
    THEMES,
    Thing,
    heap,
    stand,
    surfaces,
    thing,
)
from gsfields.data.nested_texts import Meaning, Query, TextEncoder, gather_queries
from gsfields.data.panoptic_segmenter import PanopticSegmenter, PanopticSegmenterConfig
from gsfields.data.raytrace import Body, Lamp, Scene, expose, pixel_rays
from gsfields.data.solids import Array

LEVELS = ("part", "object", "group", "region")

_ELEVATIONS = (np.radians(28), np.radians(68))
_DISTANCES = (0.78, 1.12)  # of the cameras from the middle, times the dome's radius
_SHOWN = 0.68  # the share of the scene's radius that half an image shows, from the dome
_GAZE = 0.3  # how far the gaze wanders, in radii of the scene
_TRIES = 200  # places tried for a thing before its stand grows
_GAP = 0.02  # metres between things


@dataclass(frozen=True)
class NestedConfig:
    """What to make.

    objects: how many things stand about; stands, what fills containers, floor and walls are objects as well,
    but come on top. width, height: pixels; supersample² rays go through each pixel. siblings: the share of
    things of the category of an earlier one with another attribute; twins: with the same one. filled: the
    share of containers that hold something; the first thing is one that does, unless filled is 0.
    """

    seed: int = 0
    objects: int = 10
    views: int = 60
    width: int = 128
    height: int = 128
    supersample: int = 2
    siblings: float = 0.35
    twins: float = 0.1
    filled: float = 0.75

    def __post_init__(self) -> None:
        whole = (
            ("seed", self.seed, 0, 2**63 - 1),
            ("objects", self.objects, 1, 100),
            ("views", self.views, 1, 10**6),
            ("width", self.width, 8, 16384),
            ("height", self.height, 8, 16384),
            ("supersample", self.supersample, 1, 16),
        )
        for name, value, least, most in whole:
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number from {least} to {most}, but is {value!r}")
        for name, share in (("siblings", self.siblings), ("twins", self.twins), ("filled", self.filled)):
            if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, but is {share!r}")
        if self.siblings + self.twins > 1:
            raise ValueError(
                f"siblings and twins must be 1 at most in sum, but are {self.siblings + self.twins:g}"
            )


@dataclass(frozen=True)
class NestedObject:
    """One object of the scene: what it means, the ids and names of its parts, and in which group and region
    it is (0: in no group). background: floor or walls, whose only part is the whole.
    """

    meaning: Meaning
    parts: tuple[int, ...]
    names: tuple[str, ...]
    group: int
    region: int
    background: bool = False


@dataclass(frozen=True)
class NestedFrame:
    """One view with its truth at the pixel centres.

    image: float32 [H, W, 3] in [0, 1] (sRGB). depth: float32 [H, W], camera z in metres. ids: uint16
    [4, H, W], those of LEVELS. points: float32 [H, W, 3], what is seen, in the world, metres. pose: [4, 4],
    camera (OpenCV axes) to world.
    """

    index: int
    image: Array
    depth: Array
    ids: Array
    points: Array
    pose: Array

    @property
    def parts(self) -> Array:
        """[H, W], from 1; every pixel has one."""
        return self.ids[0]

    @property
    def objects(self) -> Array:
        """[H, W], from 1; every pixel has one."""
        return self.ids[1]

    @property
    def groups(self) -> Array:
        """[H, W], containers with what fills them, from 1; 0 elsewhere."""
        return self.ids[2]

    @property
    def regions(self) -> Array:
        """[H, W], from 1: floor, walls, each stand with all that is on it."""
        return self.ids[3]

    def mask(self, query: Query) -> Array:
        """Where the query's truth is, bool [H, W]."""
        return np.isin(self.parts, list(query.parts))


class NestedScene:
    """A scene of nested objects; its frames are rendered when asked for, in any order, the same bits for the
    same configuration.

    World: metres, z up, floor at 0, the scene's middle above the origin. `K` [3, 3] is the cameras'
    calibration, `objects` are those with the ids 1, 2, … (floor and walls first), `meanings` [level][id] what
    each id of LEVELS means (None for 0), `tables` uint16 [4, P + 1] the ids of the levels by that of the
    part, `radius` the scene's and `dome` the cameras' usual distance from the origin.
    """

    def __init__(self, config: NestedConfig | None = None) -> None:
        self.config = config = config or NestedConfig()
        rng = np.random.default_rng([config.seed, 41])
        self.objects: list[NestedObject] = []
        self.meanings: tuple[list[Meaning | None], ...] = ([None], [None], [None], [None])
        self._tables: list[list[int]] = [[0, 0, 0, 0]]
        self._bodies: list[Body] = []

        regions = _furnish(rng, config)
        self.radius = max(region.reach for region in regions)
        self.dome = 2.0 * self.radius + 0.4
        half, top = 1.3 * self.dome + 0.3, 1.25 * self.dome + 0.3
        for surface in surfaces(rng, half, top):
            self.meanings[3].append(Meaning(surface.category))
            self._add(surface, background=True)
        for region in regions:
            self._add_region(region)
        self.tables = np.array(self._tables, dtype=np.uint16).T

        lamp = Lamp(np.array([0.35 * half, -0.25 * half, 0.95 * top]), 1.5 * top**2 * np.ones(3), 0.08 * top)
        corners = np.array([-half, -half, 0.0]), np.array([half, half, top])
        ambient = np.array([0.55, 0.56, 0.6]), np.array([0.4, 0.37, 0.34])
        self.scene = Scene(self._bodies, [lamp], ambient=ambient, room=corners)
        focal = 0.5 * min(config.width, config.height) * self.dome / (_SHOWN * self.radius)
        self.K = np.array([[focal, 0, config.width / 2], [0, focal, config.height / 2], [0, 0, 1]])

    def __len__(self) -> int:
        return self.config.views

    def _add(self, made: Thing, group: int = 0, background: bool = False) -> None:
        """Give a thing of the last region its ids: each part is a body of its own, so that rays tell them."""
        meaning = Meaning(made.category, made.attribute)
        number, region = len(self.objects) + 1, len(self.meanings[3]) - 1
        ids = []
        for name, prims in made.parts:
            ids.append(len(self._bodies) + 1)
            whole = background or name == made.category
            self.meanings[0].append(meaning if whole else Meaning(name, whole=meaning))
            self._bodies.append(Body(self.meanings[0][-1].text, prims))  # type: ignore[union-attr]
            self._tables.append([ids[-1], number, group, region])
        self.meanings[1].append(meaning)
        names = tuple(name for name, _ in made.parts)
        self.objects.append(NestedObject(meaning, tuple(ids), names, group, region, background))

    def _add_region(self, region: _Region) -> None:
        base = region.stand
        self.meanings[3].append(Meaning(base.category, base.attribute, contents=region.theme, link="with"))
        self._add(base)
        for made, contents, heaped in region.things:
            group = 0
            if heaped is not None:
                group = len(self.meanings[2])
                self.meanings[2].append(Meaning(made.category, made.attribute, contents=contents))
            self._add(made, group)
            if heaped is not None:
                self._add(heaped, group)

    @cached_property
    def queries(self) -> list[Query]:
        """All queries, by their prompts: categories, objects with attributes, parts of both, groups and
        regions with and without the attribute of what holds them.
        """
        meant: list[tuple[Meaning, tuple[int, ...]]] = []
        for item in self.objects:
            category = Meaning(item.meaning.head)
            meant += [(item.meaning, item.parts), (category, item.parts)]
            for part, name in zip(item.parts, item.names):
                if not item.background and name != item.meaning.head:
                    meant += [(Meaning(name, whole=whole), (part,)) for whole in (item.meaning, category)]
        for level in (2, 3):
            for number, meaning in enumerate(self.meanings[level]):
                if meaning is not None and meaning.contents:
                    parts = tuple(np.flatnonzero(self.tables[level] == number).tolist())
                    plain = Meaning(meaning.head, contents=meaning.contents, link=meaning.link)
                    meant += [(meaning, parts), (plain, parts)]
        return gather_queries(meant)

    @cached_property
    def poses(self) -> Array:
        """The cameras' exact poses [V, 4, 4], camera (OpenCV axes) to world: one smooth way around the scene
        that rises and falls, nearer and farther, while the gaze wanders.
        """
        rng = np.random.default_rng([self.config.seed, 42])
        time = np.arange(len(self)) / len(self)
        start, *phases = rng.uniform(0, 2 * np.pi, 5)
        turns = max(2.0, len(self) / 60)
        rates = turns * np.array([1.618, 0.77, 0.58, 1.13])
        height, x, y, near = np.sin(2 * np.pi * rates * time[:, None] + np.array(phases)).T
        low, high = (np.sin(angle) for angle in _ELEVATIONS)
        z = low + (high - low) * (0.5 + 0.5 * height)
        azimuth, across = start + 2 * np.pi * turns * time, np.sqrt(1 - z**2)
        least, most = _DISTANCES
        distance = self.dome * (least + (most - least) * (0.5 + 0.5 * near))
        places = distance * np.stack([across * np.cos(azimuth), across * np.sin(azimuth), z])
        reach = _GAZE * self.radius
        targets = np.stack([reach * x, reach * y, np.full_like(x, 0.2)])
        return np.stack([_looking(place, target) for place, target in zip(places.T, targets.T)])

    def frame(self, index: int) -> NestedFrame:
        """Render view `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"the view must be from 0 to {len(self) - 1}, but is {index}")
        config, pose = self.config, self.poses[index]
        shots = [(self.scene, pose)] * config.supersample**2
        image, _ = expose(shots, self.K, config.width, config.height)
        rays = pixel_rays(self.K, pose, config.width, config.height)
        hits = self.scene.cast(pose[:3, 3], rays)
        shape = (config.height, config.width)
        ids = self.tables[:, self.scene.object_ids(hits) + 1]
        return NestedFrame(
            index=index,
            image=image,
            depth=hits.t.astype(np.float32).reshape(shape),
            ids=ids.reshape(len(LEVELS), *shape),
            points=(pose[:3, 3:] + rays * hits.t).T.astype(np.float32).reshape(*shape, 3),
            pose=pose,
        )

    def views(self) -> Iterator[NestedFrame]:
        """All frames in order."""
        return (self.frame(index) for index in range(len(self)))


class NestedSegmenter:
    """Segments of a view at all levels, found with errors, and their embeddings; the same for the same view.

    At each level a PanopticSegmenter says what it finds of parts, objects (both without floor and walls),
    groups and regions. A segment's embedding is the mean of what its pixels truly are at that level (where
    the level has nothing, of the objects there), so that a merged one tells of both and a cut one of the
    same; with noise (TextEncoder.seen), more in small ones.
    """

    def __init__(
        self, scene: NestedScene, encoder: TextEncoder, errors: PanopticSegmenterConfig | None = None
    ) -> None:
        self.scene, self.encoder = scene, encoder
        seed = scene.config.seed
        self._finders = [
            PanopticSegmenter(errors, len(LEVELS) * seed + level) for level in range(len(LEVELS))
        ]

    def of(self, frame: NestedFrame) -> tuple[Array, Array]:
        """(unit embeddings float32 [n, D], their rows float32 [4, H, W] by level, -1: none)."""
        scene = self.scene
        background = [number for number, item in enumerate(scene.objects, 1) if item.background]
        rows = np.full(frame.ids.shape, -1, dtype=np.float32)
        features: list[Array] = []
        for level, finder in enumerate(self._finders):
            true = frame.ids[level].astype(np.int64)
            content = np.where(true > 0, true, frame.objects + len(scene.meanings[level]))
            if level < 2:
                true = np.where(np.isin(frame.objects, background), 0, true)
            told = finder.segment(
                true, index=frame.index, viewpoint=frame.pose[:3, 3] / scene.dome, points=frame.points
            ).ids.numpy()
            for number in np.unique(told[told > 0]).tolist():
                here = told == number
                rows[level][here] = len(features)
                rng = np.random.default_rng([scene.config.seed, 43, frame.index, level, number])
                features.append(self._embedding(level, content[here], frame.depth.size, rng))
        made = np.stack(features) if features else np.zeros((0, self.encoder.vocabulary.dimension))
        return made.astype(np.float32), rows

    def _embedding(self, level: int, content: Array, pixels: int, rng: np.random.Generator) -> Array:
        """Of a segment whose pixels [n] show `content`: ids of the level, or beyond them those of objects."""
        known = [*self.scene.meanings[level], *self.scene.meanings[1]]
        counts = np.bincount(content)
        shares: dict[Meaning, float] = {}
        for number in np.flatnonzero(counts).tolist():
            meaning = known[number]
            assert meaning is not None
            shares[meaning] = shares.get(meaning, 0.0) + counts[number] / len(content)
        owner = f"{level} {int(counts.argmax())}"
        return self.encoder.seen(shares, len(content) / pixels, owner, rng)


# ----------------------------------------------------------------------------------------------------- layout


@dataclass
class _Region:
    """A stand and what is on it: (thing, what fills it, that heap or None) each; reach: how far the stand
    extends from its middle and, once it is in its place, from the origin.
    """

    stand: Thing
    theme: str
    things: list[tuple[Thing, str, Thing | None]]
    reach: float


def _furnish(rng: np.random.Generator, config: NestedConfig) -> list[_Region]:
    """All regions, in their places."""
    count = 1 if config.objects < 4 else 2 if config.objects < 8 else 3
    themes = [str(theme) for theme in rng.permutation(list(THEMES))[:count]]
    kinds = [str(kind) for kind in rng.permutation(STANDS)[:count]]
    regions: list[_Region] = []
    for slot, (theme, kind) in enumerate(zip(themes, kinds)):
        things = [
            _filled(rng, config, made, slot == i == 0)
            for i, made in enumerate(_things(rng, config, theme, slot, count))
        ]
        spots, radius = _spread(rng, [_reach(made) for made, _, _ in things])
        base, top, reach = stand(rng, kind, str(rng.choice(ATTRIBUTES)), radius)
        placed = []
        for (made, contents, heaped), spot in zip(things, spots):
            yaw, middle = rng.uniform(0, 2 * np.pi), np.mean(made.bounds, axis=0)
            c, s = np.cos(yaw), np.sin(yaw)
            x, y = spot - np.array([[c, -s], [s, c]]) @ middle[:2]
            position = np.array([x, y, top])
            placed.append((made.placed(position, yaw), contents, heaped and heaped.placed(position, yaw)))
        regions.append(_Region(base, theme, placed, reach))
    return _arranged(rng, regions)


def _things(rng: np.random.Generator, config: NestedConfig, theme: str, first: int, step: int) -> list[Thing]:
    """The things of a stand, that is those numbered first, first + step, …"""
    made: list[Thing] = []
    for number in range(first, config.objects, step):
        category = next(iter(THEMES[theme])) if number == 0 else str(rng.choice(list(THEMES[theme])))
        chance, like = rng.random(), made[int(rng.integers(len(made)))] if made else None
        if like is not None and chance < config.siblings + config.twins:
            category = like.category
        taken = {other.attribute for other in made if other.category == category}
        free = [word for word in ATTRIBUTES if word not in taken] or list(ATTRIBUTES)
        twin = like is not None and chance < config.twins
        attribute = like.attribute if twin and like is not None else str(rng.choice(free))
        made.append(thing(rng, theme, category, attribute))
    return made


def _filled(
    rng: np.random.Generator, config: NestedConfig, made: Thing, surely: bool
) -> tuple[Thing, str, Thing | None]:
    full = made.category in FILLINGS and (rng.random() < config.filled or (surely and config.filled > 0))
    if not full:
        return made, "", None
    choices = FILLINGS[made.category][0]
    contents = str(choices[int(rng.integers(len(choices)))])
    return made, contents, heap(rng, made, contents)


def _reach(made: Thing) -> float:
    low, high = made.bounds
    return 0.56 * float((high - low)[:2].max())  # corners may stand out a little


def _spread(rng: np.random.Generator, reaches: list[float]) -> tuple[list[Array], float]:
    """(places [2] of discs of these radii that do not overlap, the radius of a disc that holds them)."""
    radius = max(max(reaches), 1.1 * float(np.sqrt(np.sum(np.square(reaches)))))
    while True:
        spots: list[Array] = []
        for reach in reaches:
            for _ in range(_TRIES):
                away, turn = (radius - reach) * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
                spot = away * np.array([np.cos(turn), np.sin(turn)])
                if all(np.hypot(*(spot - s)) > reach + r + _GAP for s, r in zip(spots, reaches)):
                    spots.append(spot)
                    break
        if len(spots) == len(reaches):
            return spots, radius
        radius *= 1.04


def _arranged(rng: np.random.Generator, regions: list[_Region]) -> list[_Region]:
    """The regions beside each other about the origin, none in another."""
    reaches = [region.reach for region in regions]
    start, spots = rng.uniform(0, 2 * np.pi), [np.zeros(2)]
    for slot, reach in enumerate(reaches[1:]):
        turn = start + np.pi / 3 * slot
        along = np.array([np.cos(turn), np.sin(turn)])
        away = 0.0
        while any(np.hypot(*(away * along - s)) < reach + r + _GAP for s, r in zip(spots, reaches)):
            away += 0.01
        spots.append(away * along)
    places = np.array(spots)
    spread = np.array(reaches)[:, None]
    middle = 0.5 * ((places - spread).min(axis=0) + (places + spread).max(axis=0))
    made = []
    for region, spot, reach in zip(regions, places - middle, reaches):
        shift = np.array([*spot, 0.0])
        things = [(t.placed(shift), c, h and h.placed(shift)) for t, c, h in region.things]
        far = float(np.hypot(*spot)) + reach
        made.append(_Region(region.stand.placed(shift), region.theme, things, far))
    return made


def _looking(place: Array, target: Array) -> Array:
    """The pose [4, 4] of a level camera at `place` [3] that looks at `target` [3]."""
    forward = (target - place) / np.linalg.norm(target - place)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(forward, right), forward, place], axis=1)
    return pose

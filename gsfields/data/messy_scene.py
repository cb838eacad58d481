"""Messy rooms the package makes itself: many objects lying about and on each other on the floor of a room,
seen from a dome, with exact cameras, depths and object ids. After the data set of the same name of Bhalgat et
al., "Contrastive Lift: 3D Object Instance Segmentation by Slow-Fast Contrastive Fusion", NeurIPS 2023.

What the paper's scaling implies. With N objects it takes 600·√(N/25) views (at most 1,200) through a lens of
35·√(N/25) mm. Here the area of floor that is littered grows as N, so that objects lie equally close however many
there are, and its radius and that of the dome grow as √(N/25). Distance and focal length then cancel: an object
of the middle of the scene keeps its size in pixels whatever N is. With more objects a view shows a smaller part
of the scene (all of it at N = 25, some 90 objects at N = 500, where the long lens looks over more of the floor),
and the ids of two views often meet only through views between. The gaze therefore wanders over the floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gsfields.data import textures as tx
from gsfields.data.messy_objects import Pile, laid, random_object
from gsfields.data.raytrace import Body, Lamp, Material, Primitive, Scene, expose, pixel_rays
from gsfields.data.solids import Array, Box

PATHS = ("smooth", "random")
SENSOR_MILLIMETRES = 36.0  # the sensor's width, that of Blender and of the data set's renderer

_REFERENCE = 25  # objects at which the lengths below hold; they grow as the root of the number
_FLOOR = 0.9  # metres, radius of the disc that objects lie in
_DOME = 2.1  # metres from the disc's middle to every camera
_GAZE_MARGIN = 0.8  # metres, how far from the disc's edge the gaze keeps
_ELEVATIONS = (math.radians(32), math.radians(72))
_FRAMES_A_TURN = 100  # of the smooth path, and at least _TURNS turns in all
_TURNS = 2.3
_GOLDEN = 0.5 * (1 + math.sqrt(5))  # no turn repeats another one's elevations
_GAZE_TURNS = (0.77, 0.58)  # swings of the gaze along x and y, a turn


@dataclass(frozen=True)
class MessyConfig:
    """What to make.

    objects: how many there are. views: None for the paper's min(1200, ⌊600·√(objects / 25)⌋). width, height:
    pixels; supersample² rays go through each pixel. path: "smooth", one way over the dome, which turns around
    the pile several times while it rises and falls, so that the last fifth of the views (the data set's test
    views) lies among places seen before; or "random", places drawn independently. twins: the share of objects
    that look exactly like an earlier one. piled: the share put on top of others, beside: put so that they
    touch another one (as far as there is room).
    """

    seed: int = 0
    objects: int = 25
    views: int | None = None
    width: int = 128
    height: int = 128
    supersample: int = 2
    path: str = "smooth"
    twins: float = 0.2
    piled: float = 0.25
    beside: float = 0.45

    def __post_init__(self) -> None:
        whole = (
            ("seed", self.seed, 0, 2**63 - 1),
            ("objects", self.objects, 1, 10_000),
            ("views", 1 if self.views is None else self.views, 1, 10**6),
            ("width", self.width, 8, 16384),
            ("height", self.height, 8, 16384),
            ("supersample", self.supersample, 1, 16),
        )
        for name, value, least, most in whole:
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number from {least} to {most}, but is {value!r}")
        for name, share in (("twins", self.twins), ("piled", self.piled), ("beside", self.beside)):
            if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, but is {share!r}")
        if self.piled + self.beside > 1:
            raise ValueError(
                f"piled and beside must be 1 at most in sum, but are {self.piled + self.beside:g}"
            )
        if self.path not in PATHS:
            raise ValueError(f"path must be one of {', '.join(PATHS)}, but is {self.path!r}")

    @property
    def growth(self) -> float:
        """√(objects / 25), by which lengths and the lens grow."""
        return math.sqrt(self.objects / _REFERENCE)

    @property
    def view_count(self) -> int:
        """How many views there are: those asked for, or as many as in the paper."""
        return min(1200, math.floor(600 * self.growth)) if self.views is None else self.views

    @property
    def focal_millimetres(self) -> float:
        """The lens, for a sensor SENSOR_MILLIMETRES wide, as in the paper."""
        return 35 * self.growth


@dataclass(frozen=True)
class MessyFrame:
    """One view with its truth, [H, W] at the pixel centres.

    image: float32 [H, W, 3] in [0, 1] (sRGB). instances: uint16, 0 the room, i the i-th object. depth:
    float32, camera z in metres. points: float32 [H, W, 3], what is seen, in the world, metres. pose: [4, 4],
    camera (OpenCV axes) to world.
    """

    index: int
    image: Array
    instances: Array
    depth: Array
    points: Array
    pose: Array

    @property
    def semantics(self) -> Array:
        """uint8 [H, W], 1 on objects."""
        return (self.instances > 0).astype(np.uint8)


class MessyScene:
    """A messy room; its frames are rendered when asked for, in any order, the same bits for the same
    configuration.

    World: metres, z up, the floor's middle at the origin. `K` [3, 3] is the cameras' calibration, `objects`
    are the bodies whose ids are 1, 2, …, `dome` is the cameras' distance from the origin.
    """

    def __init__(self, config: MessyConfig | None = None) -> None:
        self.config = config = config or MessyConfig()
        rng = np.random.default_rng([config.seed, 21])
        self.dome = _DOME * config.growth
        self.objects = _messy_floor(rng, config, _FLOOR * config.growth)
        # The room holds the dome; its lamp is as bright on the floor whatever its size.
        half, top = 1.1 * self.dome + 0.6, 1.1 * self.dome + 0.4
        lamp = Lamp(np.array([0.35 * half, -0.25 * half, 0.95 * top]), 1.5 * top**2 * np.ones(3), 0.08 * top)
        corners = np.array([-half, -half, 0.0]), np.array([half, half, top])
        ambient = np.array([0.55, 0.56, 0.6]), np.array([0.4, 0.37, 0.34])
        self.scene = Scene([_room(rng, *corners), *self.objects], [lamp], ambient=ambient, room=corners)
        focal = config.width * config.focal_millimetres / SENSOR_MILLIMETRES
        self.K = np.array([[focal, 0, config.width / 2], [0, focal, config.height / 2], [0, 0, 1]])

    def __len__(self) -> int:
        return self.config.view_count

    @property
    def names(self) -> list[str]:
        """What the instance ids stand for: the room, then the sort of each object."""
        return self.scene.object_names

    @cached_property
    def poses(self) -> Array:
        """The cameras' exact poses [V, 4, 4], camera (OpenCV axes) to world."""
        config = self.config
        rng = np.random.default_rng([config.seed, 22])
        make = _smooth_path if config.path == "smooth" else _random_path
        azimuth, height, gaze = make(rng, len(self))
        low, high = (math.sin(angle) for angle in _ELEVATIONS)
        z = low + (high - low) * height
        across = np.sqrt(1 - z**2)
        places = self.dome * np.stack([across * np.cos(azimuth), across * np.sin(azimuth), z], axis=1)
        reach = max(_FLOOR * config.growth - _GAZE_MARGIN, 0.1)
        targets = np.concatenate([reach * gaze, np.full((len(self), 1), 0.1)], axis=1)
        return np.stack([_looking(place, target) for place, target in zip(places, targets, strict=True)])

    def frame(self, index: int) -> MessyFrame:
        """Render view `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"the view must be from 0 to {len(self) - 1}, but is {index}")
        config, pose = self.config, self.poses[index]
        shots = [(self.scene, pose)] * config.supersample**2
        image, _ = expose(shots, self.K, config.width, config.height)
        rays = pixel_rays(self.K, pose, config.width, config.height)
        hits = self.scene.cast(pose[:3, 3], rays)
        points = (pose[:3, 3:] + rays * hits.t).T
        shape = (config.height, config.width)
        return MessyFrame(
            index=index,
            image=image,
            instances=self.scene.object_ids(hits).astype(np.uint16).reshape(shape),
            depth=hits.t.astype(np.float32).reshape(shape),
            points=points.astype(np.float32).reshape(*shape, 3),
            pose=pose,
        )


def _messy_floor(rng: np.random.Generator, config: MessyConfig, radius: float) -> list[Body]:
    """The objects where they lie, in the order of their ids."""
    pile = Pile(rng, radius)
    designs: list[Body] = []
    chances = {"on": config.piled, "beside": config.beside, "apart": 1 - config.piled - config.beside}
    for _ in range(config.objects):
        twin = designs and rng.random() < config.twins
        designs.append(designs[int(rng.integers(len(designs)))] if twin else random_object(rng))
        pile.put(laid(rng, designs[-1]), str(rng.choice(list(chances), p=list(chances.values()))))
    return pile.bodies


def _room(rng: np.random.Generator, lower: Array, upper: Array) -> Body:
    """Four walls, a floor and a ceiling, seen from inside."""
    floors = (
        tx.planks(tx.srgb("#d0a06a"), tx.srgb("#7a4c28")),
        tx.checker(tx.srgb("#c9c4b8"), tx.srgb("#8f9a9c"), 0.22),
        tx.bricks(tx.srgb("#a58f78"), tx.srgb("#7d6a58"), tx.srgb("#c4b9a6"), 0.3, 0.15),
        tx.weave(tx.srgb("#8c8577"), tx.srgb("#5f5a52"), 0.05),
    )
    paper = tx.wallpaper(tx.srgb("#cfd8c9"), tx.srgb("#8fa3a8"), tx.srgb("#e3a72f"))
    brick = tx.bricks(tx.srgb("#b4553a"), tx.srgb("#7c3426"), tx.srgb("#b9ad9c"))
    covers = tx.faces(
        {"-z": floors[int(rng.integers(len(floors)))], "+x": brick, "+z": tx.plain(tx.srgb("#e9e4d8"))}, paper
    )
    middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    shell = Primitive(Box(), middle, half, Material(covers), hollow=True, casts_shadow=False)
    return Body("room", (shell,))


def _smooth_path(rng: np.random.Generator, count: int) -> tuple[Array, Array, Array]:
    """(azimuths [V], heights [V] in [0, 1], gazes [V, 2] in the unit disc, or nearly) along one way."""
    time = np.arange(count) / count
    turns = max(_TURNS, count / _FRAMES_A_TURN)
    start, *phases = rng.uniform(0, 2 * np.pi, 4)
    rates = turns * np.array([_GOLDEN, *_GAZE_TURNS])
    height, x, y = np.sin(2 * np.pi * rates * time[:, None] + phases).T
    return start + 2 * np.pi * turns * time, 0.5 + 0.5 * height, 0.85 * np.stack([x, y], axis=1)


def _random_path(rng: np.random.Generator, count: int) -> tuple[Array, Array, Array]:
    """Like `_smooth_path`, but every view for itself: uniform on the dome, gazes uniform in the disc."""
    turn, reach = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count))
    gaze = reach[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return rng.uniform(0, 2 * np.pi, count), rng.random(count), gaze


def _looking(place: Array, target: Array) -> Array:
    """The pose [4, 4] of a level camera at `place` [3] that looks at `target` [3]."""
    forward = (target - place) / np.linalg.norm(target - place)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(forward, right), forward, place], axis=1)
    return pose

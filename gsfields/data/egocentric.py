"""Egocentric videos the package makes itself: a furnished room seen by a head-mounted camera, things that
are picked up and put elsewhere, hands; with exact cameras, labels and instances.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.transform import Rotation

from gsfields.data import props
from gsfields.data.activity import Activity, make_activity
from gsfields.data.furniture import furnished_room
from gsfields.data.raytrace import Body, Hits, Scene, expose, linear_to_srgb, pixel_rays
from gsfields.data.solids import Array

STATIC, SEMISTATIC, DYNAMIC, BODY = range(4)  # hard labels; body parts are dynamic, too

_POINTS = 5000  # surface points tried
_POINT_FRAMES = 40  # frames they are taken from and sought in
_POINT_NOISE = 0.002  # metres, standard deviation
_SUBPIXEL = 0.5  # a thing that moves by less (pixels from frame to frame) is ambiguous
_AWAY = np.array([0.0, 0.0, -9.0])  # where the tool is while nobody holds it: under the floor


@dataclass(frozen=True)
class EgocentricConfig:
    """What to make.

    width, height: pixels; fov_degrees: horizontal. supersample² rays go through each pixel.
    frame_seconds: time between frames. speed: of hands and things; 1 is natural. motion_blur: the share of
    the time between frames that the shutter is open, sampled by the rays of a pixel. pose_noise_degrees,
    pose_noise_metres: standard deviations of what is added to the poses that are told (`poses`), not to those
    of the images.
    revisits: whether the camera sees again the places that things have left. things: how many there are,
    3 to 6 (None: any of these).
    """

    seed: int = 0
    frames: int = 60
    width: int = 228
    height: int = 128
    fov_degrees: float = 85.0
    supersample: int = 2
    frame_seconds: float = 0.25
    speed: float = 1.0
    motion_blur: float = 0.0
    pose_noise_degrees: float = 0.0
    pose_noise_metres: float = 0.0
    revisits: bool = True
    things: int | None = None

    def __post_init__(self) -> None:
        whole = (
            ("seed", self.seed, 0, 2**63 - 1),
            ("frames", self.frames, 1, 10**9),
            ("width", self.width, 8, 16384),
            ("height", self.height, 8, 16384),
            ("supersample", self.supersample, 1, 16),
            ("things", 3 if self.things is None else self.things, 3, 6),
        )
        for name, value, least, most in whole:
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number from {least} to {most}, but is {value!r}")
        real = (
            ("fov_degrees", self.fov_degrees, 10, 150),
            ("frame_seconds", self.frame_seconds, 1e-3, 10),
            ("speed", self.speed, 0.1, 10),
            ("motion_blur", self.motion_blur, 0, 1),
            ("pose_noise_degrees", self.pose_noise_degrees, 0, 45),
            ("pose_noise_metres", self.pose_noise_metres, 0, 1),
        )
        for name, number, low, high in real:
            if not isinstance(number, int | float) or not low <= number <= high:
                raise ValueError(f"{name} must be a number from {low} to {high}, but is {number!r}")
        if self.motion_blur and self.supersample == 1:
            raise ValueError("motion_blur needs several rays a pixel, but supersample is 1")


@dataclass(frozen=True)
class EgocentricFrame:
    """One frame with its truth, [H, W] at the pixel centres in the middle of the exposure.

    image: float32 [H, W, 3] in [0, 1] (sRGB). labels: uint8, STATIC, SEMISTATIC, DYNAMIC or BODY. ambiguous:
    bool, pixels that dynamic surfaces cover in part, and things that move by less than a pixel. instances:
    uint16, 0 the room, i the object names[i]. depth: float32, camera z in metres. motion: float32, how far
    the surface moves in the image relative to the static scene, pixels from frame to frame. surface: float32
    [H, W, 3], the visible point in coordinates that stick to its surface, metres; part: int32, which one.
    """

    index: int
    time: float  # seconds
    image: Array
    labels: Array
    ambiguous: Array
    instances: Array
    depth: Array
    motion: Array
    surface: Array
    part: Array

    @property
    def dynamic(self) -> Array:
        """Hands, arms and what they move: bool [H, W]."""
        return self.labels >= DYNAMIC


class EgocentricSequence:
    """The frames of one video, rendered when they are asked for; the same configuration gives the same bits.

    `scenery` are the room's bodies, `activity` the script, `K` [3, 3] the camera's calibration, `names` what
    the instance ids stand for.
    """

    def __init__(self, config: EgocentricConfig) -> None:
        self.config = config
        rng = np.random.default_rng([config.seed, 7])
        count = int(rng.integers(3, 7)) if config.things is None else config.things
        kinds = rng.permutation(6)
        self._things = [props.thing(rng, int(kind)) for kind in kinds[:count]]
        grips = [0.6 * _height(body) for body in self._things]
        self.activity = make_activity(
            rng, config.frames * config.frame_seconds, count, grips, config.speed, config.revisits
        )
        self._look, self._tool = props.ArmLook.random(rng), props.spatula(rng)
        room = furnished_room(config.seed)
        cabinets = [
            props.cabinet(rng, place.height).placed((*place.center, 0.0), place.yaw)
            for place in self.activity.cabinets
        ]
        self.scenery = [*_cleared(room, self.activity), *cabinets]
        self._room = room
        self.names = ["room", *(body.name for body in self._things), "left arm", "right arm", "tool"]
        focal = config.width / 2 / math.tan(math.radians(config.fov_degrees) / 2)
        self.K = np.array([[focal, 0, config.width / 2], [0, focal, config.height / 2], [0, 0, 1]])

    def __len__(self) -> int:
        return self.config.frames

    def time(self, index: int) -> float:
        """The middle of frame `index`'s exposure, seconds."""
        return (index + 0.5) * self.config.frame_seconds

    def exact_pose(self, index: int) -> Array:
        """The camera's pose [4, 4] in frame `index`, camera (OpenCV axes) to world, metres."""
        return self.activity.camera(self.time(index))

    @cached_property
    def poses(self) -> Array:
        """The poses [F, 4, 4] that are told, camera to world: exact but for the noise asked for."""
        config = self.config
        rng = np.random.default_rng([config.seed, 8])
        poses = np.stack([self.exact_pose(i) for i in range(len(self))])
        axes = rng.normal(0, math.radians(config.pose_noise_degrees), (len(self), 3))
        shifts = rng.normal(0, config.pose_noise_metres, (len(self), 3))
        for pose, axis, shift in zip(poses, axes, shifts, strict=True):
            pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(axis).as_matrix()
            pose[:3, 3] += shift
        return poses

    def scene(self, time: float) -> Scene:
        """Everything there is at that time, in one order: scenery, things, left arm, right arm, tool."""
        bodies = list(self.scenery)
        for body, track in zip(self._things, self.activity.things, strict=True):
            x, y, z, yaw = track(time)
            bodies.append(body.placed((x, y, z), yaw))
        tool = self._tool.moved(np.eye(3), _AWAY)
        for side in (-1, 1):
            shoulder, wrist, curl = self.activity.hand(side, time)
            arm, hand = props.arm(self._look, shoulder, wrist, side, curl)
            bodies.append(arm)
            if side == 1 and self.activity.tool_held(time):
                tool = self._tool.moved(hand[:, :3], hand[:, 3])
        bodies.append(tool)
        return Scene(bodies, self._room.lamps, ambient=self._room.ambient, room=self._room.room)

    def frame(self, index: int) -> EgocentricFrame:
        """Render frame `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"the frame must be from 0 to {len(self) - 1}, but is {index}")
        config, time = self.config, self.time(index)
        middle, pose = self.scene(time), self.exact_pose(index)
        image, seen = expose(self._shots(time, middle, pose), self.K, config.width, config.height)

        rays = pixel_rays(self.K, pose, config.width, config.height)
        hits = middle.cast(pose[:3, 3], rays)
        points = pose[:3, 3:] + rays * hits.t
        instances = self._instance_of(middle.object_ids(hits))
        kinds = self._kinds(time)
        labels = kinds[instances]
        gap = config.frame_seconds
        motion = np.maximum(*(self._image_motion(middle, hits, points, step, time) for step in (-gap, gap)))
        share = np.mean([kinds[self._instance_of(ids)] >= DYNAMIC for ids in seen], axis=0).reshape(-1)
        creeping = (labels == DYNAMIC) & (motion < _SUBPIXEL)
        shape = (config.height, config.width)
        return EgocentricFrame(
            index=index,
            time=time,
            image=image,
            labels=labels.reshape(shape),
            ambiguous=(((share > 0) & (share < 1)) | creeping).reshape(shape),
            instances=instances.astype(np.uint16).reshape(shape),
            depth=hits.t.astype(np.float32).reshape(shape),
            motion=motion.astype(np.float32).reshape(shape),
            surface=_own_coordinates(middle, hits.primitive, points).T.astype(np.float32).reshape(*shape, 3),
            part=hits.primitive.reshape(shape),
        )

    def stream(self, workers: int = 1, first: int = 0) -> Iterator[EgocentricFrame]:
        """All frames in order from `first`; at most `workers` + 1 rendered ones wait to be taken."""
        with ThreadPoolExecutor(workers) as pool:
            ahead = [pool.submit(self.frame, i) for i in range(first, min(first + workers, len(self)))]
            for index in range(first, len(self)):
                following = index + workers
                if following < len(self):
                    ahead.append(pool.submit(self.frame, following))
                yield ahead.pop(0).result()

    def points(self) -> tuple[Array, Array]:
        """What structure from motion would give: (points float32 [M, 3], colours float32 [M, 3]) of surfaces
        that never move, 2 mm off, each seen by two frames at least.
        """
        rng = np.random.default_rng([self.config.seed, 9])
        chosen = np.unique(np.linspace(0, len(self) - 1, _POINT_FRAMES).round().astype(int))
        owner = np.sort(rng.integers(len(chosen), size=_POINTS))
        points, colors = np.empty((3, _POINTS)), np.empty((3, _POINTS))
        still = np.zeros(_POINTS, dtype=bool)
        scenes = [self.scene(self.time(i)) for i in chosen]
        for slot, index in enumerate(chosen):
            here, pose = np.flatnonzero(owner == slot), self.exact_pose(index)
            x = rng.uniform(0, self.config.width, len(here))
            y = rng.uniform(0, self.config.height, len(here))
            rays = pose[:3, :3] @ np.linalg.solve(self.K, np.stack([x, y, np.ones_like(x)]))
            linear, hits = scenes[slot].radiance(pose[:3, 3], rays)
            points[:, here] = pose[:3, 3:] + rays * hits.t
            colors[:, here] = 1 - np.exp(-linear)
            still[here] = (
                self._kinds(self.time(index))[self._instance_of(scenes[slot].object_ids(hits))] == STATIC
            )
        sights = np.zeros(_POINTS, dtype=int)
        for scene, index in zip(scenes, chosen, strict=True):
            sights += self._sees(scene, self.exact_pose(index), points)
        keep = still & (sights >= 2)
        noisy = points[:, keep].T + rng.normal(0, _POINT_NOISE, (int(keep.sum()), 3))
        return noisy.astype(np.float32), linear_to_srgb(colors[:, keep].T).astype(np.float32)

    def _shots(self, time: float, middle: Scene, pose: Array) -> list[tuple[Scene, Array]]:
        count = self.config.supersample**2
        shutter = self.config.motion_blur * self.config.frame_seconds
        if shutter == 0:
            return [(middle, pose)] * count
        instants = time + shutter * ((np.arange(count) + 0.5) / count - 0.5)
        # Neighbours in time are far apart in the pixel, or blur would show the pattern of the rays.
        instants = instants[np.random.default_rng(count).permutation(count)]
        return [(self.scene(t), self.activity.camera(t)) for t in instants]

    def _instance_of(self, body: Array) -> Array:
        return np.maximum(body - len(self.scenery) + 1, 0)

    def _kinds(self, time: float) -> Array:
        """The label of each instance at that time, uint8."""
        act = self.activity
        things = [
            DYNAMIC if act.moving(i, time) else SEMISTATIC if act.moved(i) else STATIC
            for i in range(len(self._things))
        ]
        return np.array([STATIC, *things, BODY, BODY, DYNAMIC], dtype=np.uint8)

    def _image_motion(self, now: Scene, hits: Hits, points: Array, step: float, time: float) -> Array:
        """How far the points [3, N] that rays hit in the scene `now`, at `time`, move in the image within
        `step` seconds, relative to points at rest in the world: pixels [N].
        """
        motion = np.zeros(points.shape[1])
        movable = np.flatnonzero(self._instance_of(now.object_ids(hits)) > 0)
        part, before = hits.primitive[movable], points[:, movable]
        later, pose = self.scene(time + step), self.activity.camera(time + step)
        after = np.empty_like(before)
        for index in np.unique(part):
            here, a, b = part == index, now.primitives[index], later.primitives[index]
            local = a.rotation.T @ (before[:, here] - a.center[:, None])
            after[:, here] = b.rotation @ local + b.center[:, None]
        moved = (self._project(pose, after) - self._project(pose, before))[:2]
        motion[movable] = np.minimum(np.hypot(*moved), self.config.width)
        return motion

    def _project(self, pose: Array, points: Array) -> Array:
        """(x, y, depth) [3, N] of world points in the image of a camera at `pose`."""
        x, y, z = pose[:3, :3].T @ (points - pose[:3, 3:])
        ahead = np.maximum(z, 1e-3)
        return np.stack([self.K[0, 0] * x / ahead + self.K[0, 2], self.K[1, 1] * y / ahead + self.K[1, 2], z])

    def _sees(self, scene: Scene, pose: Array, points: Array) -> Array:
        x, y, z = self._project(pose, points)
        shown = (z > 0) & (x >= 0) & (x < self.config.width) & (y >= 0) & (y < self.config.height)
        index = np.flatnonzero(shown)
        shown[index] = scene.cast(pose[:3, 3], points[:, index] - pose[:3, 3:]).t > 0.999
        return shown


def make_sequence(config: EgocentricConfig | None = None) -> EgocentricSequence:
    """The video that `config` describes (None: the default one); its frames are rendered when asked for."""
    return EgocentricSequence(config or EgocentricConfig())


def _height(body: Body) -> float:
    return max(float(part.center[2] + part.half[2]) for part in body.parts)


def _cleared(room: Scene, activity: Activity, clearance: float = 0.24) -> list[Body]:
    """The room's bodies without the small ones where the activity takes place."""
    spots = np.array([spot.position[:2] for spot in activity.spots])
    kept = []
    for body in room.bodies:
        center = np.mean([part.center for part in body.parts], axis=0)
        small = max(part.radius for part in body.parts) < 0.35
        if not small or np.hypot(*(spots - center[:2]).T).min() > clearance or center[2] > 1.5:
            kept.append(body)
    return kept


def _own_coordinates(scene: Scene, part: Array, points: Array) -> Array:
    """Points [3, N] in the frames of the primitives they lie on."""
    local = np.zeros_like(points)
    for index in np.unique(part[part >= 0]):
        here, body = part == index, scene.primitives[index]
        local[:, here] = body.rotation.T @ (points[:, here] - body.center[:, None])
    return local

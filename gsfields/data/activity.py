"""What happens in a generated egocentric video: who looks where, which hand moves what and when.

A person stands in a ring of four stations (a table and three cabinets) and carries things between spots on
them. Everything is a function of time, in seconds, so that a camera's shutter may open at any instant. World:
metres, z up.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np

from gsfields.data.solids import Array

EYE_HEIGHT = 1.4
_REACH = 0.67  # from where the person stands to the middle spot of a station, metres
_SPREAD = 0.25  # between neighbouring spots of a station, metres
_TURN = np.radians(65)  # how fast the head turns on average, radians a second
_STATIONS = np.radians([0.0, 80.0, 180.0, -80.0])  # where the stations are, counter-clockwise from the table
_TABLE_HEIGHT = 0.752
_NEAR_EYES = np.array([0.4, -0.14])  # where things are inspected: ahead of the eyes, above them


class Track:
    """A smooth path [D] through keys in time: at rest at every key, of minimum jerk between two (Flash and
    Hogan, "The coordination of arm movements", J. Neurosci. 1985). Before the first key and after the last,
    it stays.
    """

    def __init__(self, start: Sequence[float] | Array) -> None:
        self._times = [0.0]
        self._values = [np.asarray(start, float)]

    @property
    def last(self) -> Array:
        """The value of the last key, [D]."""
        return self._values[-1]

    def go(self, start: float, stop: float, value: Sequence[float] | Array) -> None:
        """Stay at the last value until `start`, be at `value` [D] at `stop`. Moves must come in order."""
        begin = max(start, self._times[-1])
        self._times += [begin, max(stop, begin + 1e-3)]
        self._values += [self.last, np.asarray(value, float)]

    def __call__(self, time: float) -> Array:
        index = bisect_right(self._times, time)
        if index == 0:
            return self._values[0]
        if index == len(self._times):
            return self._values[-1]
        begin, end = self._times[index - 1], self._times[index]
        s = (time - begin) / max(end - begin, 1e-9)
        a, b = self._values[index - 1], self._values[index]
        return a + (b - a) * (s**3 * (10 - 15 * s + 6 * s * s))


@dataclass(frozen=True)
class Spot:
    """A place for a thing: `position` [3] on its support, station (0 the table), bearing (radians) from where
    the person stands, counted on without wrapping from the table's.
    """

    position: Array
    station: int
    bearing: float


@dataclass(frozen=True)
class Move:
    """Thing `thing` is in a hand from `start` to `stop` seconds, from one spot to another (indices)."""

    thing: int
    start: float
    stop: float
    source: int
    target: int


@dataclass(frozen=True)
class Cabinet:
    """Where a cabinet stands: the middle of its foot [2], its yaw (radians) and its height, metres."""

    center: Array
    yaw: float
    height: float


@dataclass
class Activity:
    """The script of one video of `duration` seconds.

    stand: where the person stands, [3] on the floor. things: (x, y, z, yaw) of each thing. hands: for the
    left (-1) and the right (+1), (how far it is out of its rest, 0 to 1; what it grips or aims at [3]; the
    curl of its fingers). gaze: bearing, counted on without wrapping, and pitch below the horizon, radians.
    tool_times: when the right hand holds the tool.
    """

    duration: float
    stand: Array
    facing: float  # the bearing of the table, radians
    spots: list[Spot]
    cabinets: list[Cabinet]
    things: list[Track]
    hands: dict[int, Track]
    gaze: Track
    lean: Track
    waves: Array  # [6, 2, 3]: two sines (amplitude, Hz, phase) for each of x, y, z, yaw, pitch, roll
    moves: list[Move] = field(default_factory=list)
    tool_times: list[tuple[float, float]] = field(default_factory=list)

    def camera(self, time: float) -> Array:
        """The camera's pose [4, 4] at `time`, camera (x right, y down, z forward) to world."""
        wave = (self.waves[..., 0] * np.sin(2 * np.pi * self.waves[..., 1] * time + self.waves[..., 2])).sum(
            1
        )
        bearing, pitch = self.gaze(time) + wave[3:5]
        ahead = np.array([np.cos(bearing), np.sin(bearing), 0.0])
        right = np.array([np.sin(bearing), -np.cos(bearing), 0.0])
        forward = ahead * np.cos(pitch) - np.array([0, 0, np.sin(pitch)])
        down = np.cross(forward, right)
        c, s = np.cos(wave[5]), np.sin(wave[5])
        pose = np.eye(4)
        pose[:3, 0], pose[:3, 1], pose[:3, 2] = c * right + s * down, c * down - s * right, forward
        # The eyes are ahead of the neck that turns the head.
        pose[:3, 3] = self.stand + self.lean(time) + [0, 0, EYE_HEIGHT] + 0.1 * ahead + wave[:3]
        return pose

    def hand(self, side: int, time: float) -> tuple[Array, Array, float]:
        """(shoulder [3], wrist [3], curl) of the left (-1) or right (+1) arm."""
        out, *aim, curl = self.hands[side](time)
        bearing = np.mean([self.gaze(time + lag)[0] for lag in (-0.4, -0.2, 0.0, 0.2)])
        ahead = np.array([np.cos(bearing), np.sin(bearing), 0.0])
        right = np.array([ahead[1], -ahead[0], 0.0])
        neck = self.stand + self.lean(time) + [0, 0, EYE_HEIGHT]
        shoulder = neck + 0.19 * side * right - 0.02 * ahead - [0, 0, 0.24]
        rest = neck + 0.24 * side * right - 0.02 * ahead - [0, 0, 0.72]
        target = np.asarray(aim)
        toward = target - shoulder
        toward /= np.linalg.norm(toward)
        toward = toward * [1, 1, 0.35]  # the hand comes at things from the side more than from above
        toward /= np.linalg.norm(toward)
        grip = target - 0.13 * toward + [0, 0, 0.02] + 0.015 * side * right
        return shoulder, rest + out * (grip - rest), float(curl)

    def moving(self, thing: int, time: float) -> bool:
        """Whether a hand is moving the thing at that time."""
        return any(m.thing == thing and m.start < time < m.stop for m in self.moves)

    def moved(self, thing: int) -> bool:
        """Whether the thing is moved at some time."""
        return any(m.thing == thing for m in self.moves)

    def tool_held(self, time: float) -> bool:
        """Whether the tool is in the right hand."""
        return any(start < time < stop for start, stop in self.tool_times)


def make_activity(
    rng: np.random.Generator, duration: float, things: int, grips: list[float], speed: float, revisits: bool
) -> Activity:
    """A script for `things` things whose hands hold them `grips` [things] metres above their foot.

    speed: 1 is natural, more is faster. revisits: whether the person looks again at places that things have
    left; if not, the person turns once around, with every thing, and does not look back.
    """
    return _Director(rng, duration, things, grips, speed, revisits).direct()


class _Director:
    """Writes an Activity, action by action."""

    def __init__(
        self,
        rng: np.random.Generator,
        duration: float,
        things: int,
        grips: list[float],
        speed: float,
        revisits: bool,
    ) -> None:
        self.rng, self.speed, self.revisits, self.grips = rng, speed, revisits, grips
        side = rng.choice([-1.0, 1.0])
        stand = np.array([side * rng.uniform(0.97, 1.03), rng.uniform(-0.05, 0.05), 0])
        facing = float(np.arctan2(-stand[1], -stand[0]))
        spots, cabinets = self._stations(stand, facing)
        self.places = self._initial_places(spots, things)
        tracks = [Track([*spots[place].position, rng.uniform(-3, 3)]) for place in self.places]
        rest = [0.0, *(stand + [0.4 * np.cos(facing), 0.4 * np.sin(facing), 0.9]), 0.3]
        self.clock, self.hurry = 0.0, 1.0
        self.recent: list[int] = []
        first = spots[self.places[0]]
        self.script = Activity(
            duration,
            stand,
            facing,
            spots,
            cabinets,
            tracks,
            {-1: Track(rest), 1: Track(rest)},
            Track(self._look(stand, first.position, first.bearing)),
            Track(0.08 * _toward(first.bearing)),
            self._head_waves(),
        )

    def direct(self) -> Activity:
        """The whole script: actions and pauses until no further action fits into the time."""
        self.clock += self.rng.uniform(0.3, 0.7)
        director = self
        for count in range(10**6):
            following = director._followed_by_action(first=count == 0)
            if following is None:
                return director.script
            director = following
        raise AssertionError("a script of a million actions")

    def _followed_by_action(self, first: bool) -> _Director | None:
        """The director after one more action, None if none fits. People hurry a little rather than leave
        the end of a video empty, and as much as it takes for its first action.
        """
        pace = self.speed * float(np.exp(self.rng.normal(0, 0.3)))
        for hurry in 1.4 ** np.arange(12 if first else 3):
            # Far from the end any action fits, and needs no second try.
            trial = self if self.script.duration - self.clock > 30 / min(self.speed, 1) else deepcopy(self)
            trial.hurry = max(hurry, 1.0)
            if not first and trial.rng.random() < 0.3:
                trial._use_tool(pace * hurry)
            elif not trial._carry(pace * hurry):
                return None
            if trial.clock <= self.script.duration:
                trial._pause()
                return trial
        return None

    def _stations(self, stand: Array, facing: float) -> tuple[list[Spot], list[Cabinet]]:
        spots, cabinets = [], []
        for index, turn in enumerate(_STATIONS):
            # Without revisits the person turns one way only, so that the last station comes after the third.
            bearing = facing + (turn if self.revisits else turn % (2 * np.pi))
            ahead = _toward(bearing)
            height = _TABLE_HEIGHT
            if index:
                height = float(self.rng.uniform(0.72, 0.86))
                center = stand + 0.71 * ahead
                cabinets.append(Cabinet(center[:2], bearing + np.pi / 2, height))
            left = np.array([-ahead[1], ahead[0], 0])
            for column in (-1, 0, 1):
                place = stand + _REACH * ahead + _SPREAD * column * left + self.rng.uniform(-0.03, 0.03, 3)
                off = place - stand
                turn_to_spot = np.arctan2(off @ left, off @ ahead)
                place[2] = height
                spots.append(Spot(place, index, float(bearing + turn_to_spot)))
        return spots, cabinets

    def _initial_places(self, spots: list[Spot], things: int) -> list[int]:
        """A spot for each thing, one free at each station; without revisits, the first things stand at
        stations 0, 1, 2, ... in this order.
        """
        rng = self.rng
        home = [0, 1] if rng.random() < 0.5 else [0, 3]
        order = [0, 1, 2, 3] if not self.revisits else [home[0], home[1], home[0], home[1], 2, home[0]]
        # Without revisits the middle ones: neither the next station nor the last shows them again.
        columns = {s: rng.permutation(3) if self.revisits else np.array([2, 0, 1]) for s in range(4)}
        free = {station: [3 * station + k for k in order] for station, order in columns.items()}
        places = []
        for index in range(things):
            wanted = order[index % len(order)]
            station = next(s for s in (wanted, *range(4)) if len(free[s]) > 1)
            places.append(int(free[station].pop()))
        return places

    def _head_waves(self) -> Array:
        rng = self.rng
        sizes = np.array([0.03, 0.03, 0.015, np.radians(1.5), np.radians(1.2), np.radians(2.0)])
        slow = np.stack([sizes, rng.uniform(0.1, 0.25, 6), rng.uniform(0, 2 * np.pi, 6)], axis=1)
        quick = np.stack([sizes * 0.22, rng.uniform(0.6, 1.1, 6), rng.uniform(0, 2 * np.pi, 6)], axis=1)
        return np.stack([slow, quick], axis=1)

    def _look(self, stand: Array, position: Array, bearing: float) -> Array:
        """The gaze (bearing, pitch) at a place: over it rather than at it, so that hands come from below."""
        off = position - stand
        away = float(np.hypot(off[0], off[1])) - 0.1  # the eyes are ahead of where the person stands
        return np.array([bearing, np.arctan2(EYE_HEIGHT - off[2] - 0.08, away)])

    def _glance(self, spot: Spot, hold: float) -> None:
        """Turn the head to a spot from now on, hold it there; the clock goes on until then."""
        gaze = self.script.gaze
        aim = self._look(self.script.stand, spot.position, spot.bearing) + self.rng.normal(0, 0.05, 2)
        stop = self.clock + (0.3 + abs(float(aim[0] - gaze.last[0])) / _TURN) / self.hurry
        gaze.go(self.clock, stop, aim)
        self.script.lean.go(self.clock, stop, self.rng.uniform(0.0, 0.12) * _toward(spot.bearing))
        self.clock = stop + hold

    def _any_spot(self) -> Spot:
        used = {self.script.spots[place].station for place in self.places}
        spots = [spot for spot in self.script.spots if spot.station in used]
        return spots[self.rng.integers(len(spots))]

    def _pause(self) -> None:
        """Hands away; with revisits, a look at where the last thing came from, or elsewhere."""
        rng = self.rng
        if self.revisits and self.script.moves and rng.random() < 0.75:
            last = self.script.moves[-1]
            self._glance(self.script.spots[last.source], rng.uniform(0.0, 0.3))
        elif self.revisits and rng.random() < 0.5:
            self._glance(self._any_spot(), rng.uniform(0.2, 0.5))
        self.clock += rng.uniform(0.1, 0.6)

    def _next_move(self) -> tuple[int, int] | None:
        """(thing, spot to put it on), None if nothing may be moved any more."""
        script, rng = self.script, self.rng
        free = [i for i in range(len(script.spots)) if i not in self.places]
        if not self.revisits:
            thing = len(script.moves)  # thing k stands at station k and goes to station k + 1
            station = script.spots[self.places[thing]].station if thing < len(self.places) else 3
            targets = [i for i in free if script.spots[i].station == station + 1]
            return (thing, targets[0]) if targets else None
        here = script.gaze.last[0]
        others = [i for i in range(len(self.places)) if i not in self.recent]
        near = sorted(others, key=lambda i: abs(script.spots[self.places[i]].bearing - here))
        thing = int(near[0] if not script.moves or rng.random() < 0.75 else rng.choice(others))
        source = script.spots[self.places[thing]]
        same = [i for i in free if script.spots[i].station == source.station]
        turn = [abs(script.spots[i].bearing - source.bearing) for i in free]
        next_to = [i for i, t in zip(free, turn, strict=True) if t < 2.2 and i not in same]
        targets = same if same and (rng.random() < 0.7 or not next_to) else next_to
        return (thing, int(rng.choice(targets or free)))

    def _carry(self, pace: float) -> bool:
        """One thing is reached for, gripped, lifted, carried (or held before the eyes) and put down."""
        chosen = self._next_move()
        if chosen is None:
            return False
        thing, target = chosen
        script, rng = self.script, self.rng
        source_spot, target_spot = script.spots[self.places[thing]], script.spots[target]
        grip = np.array([0, 0, self.grips[thing]])
        self._glance(source_spot, 0.0)
        start = max(self.clock - 0.5, 0.0)
        grasp = start + 0.7 / pace
        turn = target_spot.bearing - source_spot.bearing
        travel = 0.35 + float(np.linalg.norm(target_spot.position - source_spot.position)) / 0.9
        travel = max(travel / pace, (0.2 + abs(turn) / _TURN) / self.hurry if abs(turn) > 1 else 0.0)

        path = script.things[thing]
        yaw = path.last[3]
        lift, drop = np.array([0, 0, rng.uniform(0.09, 0.16)]), np.array([0, 0, 0.1])
        stops: list[tuple[float, Array]] = [(0.3 / pace, source_spot.position + lift)]
        if rng.random() < 0.35:  # it is looked at from near
            middle = source_spot.bearing
            eyes = script.stand + [0, 0, EYE_HEIGHT + _NEAR_EYES[1]] + (_NEAR_EYES[0] + 0.1) * _toward(middle)
            stops += [(0.5 / pace, eyes - grip), (0.4 / pace, eyes - grip + rng.uniform(-0.03, 0.03, 3))]
        if abs(turn) > 1:  # around the person, not through
            middle = 0.5 * (source_spot.bearing + target_spot.bearing)
            height = max(source_spot.position[2], target_spot.position[2]) + 0.16
            stops.append((0.5 * travel, script.stand * [1, 1, 0] + 0.5 * _toward(middle) + [0, 0, height]))
            travel *= 0.5
        stops += [(travel, target_spot.position + drop), (0.3 / pace, target_spot.position)]

        lateral = np.sin(source_spot.bearing - script.gaze.last[0]) + rng.normal(0, 0.2)
        side = -1 if lateral > 0 else 1  # counter-clockwise is left
        hand = script.hands[side]
        above = np.array([0, 0, 0.06])
        if float(hand.last[0]) == 0:
            hand.go(start - 2e-3, start - 1e-3, [0, *(source_spot.position + grip + above), 0.2])
        hand.go(start, grasp - 0.1 / pace, [1, *(source_spot.position + grip + above * 0.2), 0.25])
        hand.go(grasp - 0.1 / pace, grasp, [1, *(source_spot.position + grip), 0.75])
        time = grasp
        total = sum(span for span, _ in stops)
        for span, position in stops:
            share = (time + span - grasp) / total
            path.go(time, time + span, [*position, yaw + share * (turn + 0.4)])
            hand.go(time, time + span, [1, *(position + grip), 0.75])
            time += span
        script.moves.append(Move(thing, grasp, time, self.places[thing], target))
        self.clock = grasp + stops[0][0]
        self._glance(target_spot, 0.0)
        self.clock = max(self.clock, time)
        hand.go(time, time + 0.2 / pace, [1, *(target_spot.position + grip + above), 0.3])
        hand.go(time + 0.2 / pace, time + 0.8 / pace, [0, *(target_spot.position + grip + above), 0.3])
        if rng.random() < 0.5:
            self._steady(-side, target_spot, start, time, pace)
        self.clock = max(self.clock, time + 0.5 / pace)
        if self.revisits and abs(turn) > 1:
            self._glance(source_spot, 0.3)
        self.places[thing] = target
        self.recent = [*self.recent, thing][-min(2, len(self.places) - 1) :] if len(self.places) > 1 else []
        return True

    def _steady(self, side: int, spot: Spot, start: float, stop: float, pace: float) -> None:
        """The other hand rests on the surface near by, almost still."""
        hand, ahead = self.script.hands[side], _toward(spot.bearing)
        place = spot.position - 0.12 * ahead + 0.2 * side * np.array([ahead[1], -ahead[0], 0]) + [0, 0, 0.04]
        begin = start + 0.4 * (stop - start)
        hand.go(begin - 2e-3, begin - 1e-3, [0, *place, 0.1])
        hand.go(begin, begin + 0.7 / pace, [1, *place, 0.1])
        hand.go(stop + 0.2, stop + 0.2 + 0.7 / pace, [0, *place, 0.1])

    def _use_tool(self, pace: float) -> None:
        """The right hand brings a tool, sweeps with it over a station, and takes it away."""
        script, rng = self.script, self.rng
        spots = script.spots
        near = min(
            (spot for spot in spots if abs(spot.bearing - script.gaze.last[0]) < 0.9),
            key=lambda spot: abs(spot.bearing - script.gaze.last[0]) + 0.3 * rng.random(),
            default=spots[0],
        )
        self._glance(near, 0.0)
        ahead = _toward(near.bearing)
        right = np.array([ahead[1], -ahead[0], 0])
        center = near.position - 0.17 * ahead + 0.1 * right + [0, 0, 0.2]
        hand, start = script.hands[1], max(self.clock - 0.3, 0.0)
        hand.go(start - 2e-3, start - 1e-3, [0, *center, 0.8])
        time = start + 0.7 / pace
        hand.go(start, time, [1, *center, 0.8])
        for sweep in range(int(rng.integers(4, 7))):
            span = rng.uniform(0.2, 0.35) / pace
            place = center + (-1) ** sweep * rng.uniform(0.03, 0.08) * right + rng.normal(0, 0.02, 3)
            hand.go(time, time + span, [1, *place, 0.8])
            time += span
        hand.go(time, time + 0.6 / pace, [0, *center, 0.8])
        script.tool_times.append((start, time + 0.6 / pace))
        self.clock = max(self.clock, time + 0.5 / pace)


def _toward(bearing: float) -> Array:
    """The horizontal unit vector [3] of a bearing."""
    return np.array([np.cos(bearing), np.sin(bearing), 0.0])

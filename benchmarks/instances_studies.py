"""What the instance benchmark runs: its rooms, and for each study what differs between the trials on a room.

A trial is a room and a configuration of the fit. No default of gsfields.instances_config is repeated here: a variant
states what makes it what it is, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.instances_trial import Trial
from gsfields import config as configuration
from gsfields.data.messy_files import save_messy
from gsfields.data.messy_scene import MessyConfig
from gsfields.instances_config import InstancesConfig

Overrides = tuple[tuple[str, str], ...]

OURS = "slow-fast + concentration"
BARE = "slow-fast"
RELEASED = "slow-fast + concentration, as released"
PAPER = "slow-fast + concentration, as in the paper"
VANILLA = ("vanilla, as released", "vanilla, as in the paper", "vanilla, one exponential")
SHORT = f"{VANILLA[0]}, 500 steps"
ALONE = (OURS, *VANILLA[:2])  # whose clusters are looked at as they are, too
ASSIGNMENT = "linear assignment"
CEILING = "true ids on this geometry"
FLAT = "2D segments"
TRACKING = ("tracking on IoU", "tracking after warping", "tracking on points")
GEOMETRY = "geometry"  # the row of a room's fit

VIEWS_SHARE = {25: 6, 50: 6, 100: 3, 500: 1}  # rooms have the paper's number of views over this, by objects
LARGEST = 500
CAPACITY = {25: 30_000, 50: 30_000, 100: 45_000, 500: 150_000}  # Gaussians at most, by objects
GEOMETRY_STEPS = {25: 4000, 50: 4000, 100: 4000, 500: 12_000}  # of the geometry's fit, by objects


@dataclass(frozen=True)
class Room:
    """One generated messy room, and how its geometry is fitted."""

    seed: int
    objects: int
    size: int  # pixels along each side
    views: int | None = None  # None: by VIEWS_SHARE
    steps: int | None = None  # None: by GEOMETRY_STEPS
    gaussians: int | None = None  # at most; None: by CAPACITY

    @property
    def config(self) -> MessyConfig:
        room = MessyConfig(self.seed, self.objects, width=self.size, height=self.size)
        views = self.views or room.view_count // self.usual(VIEWS_SHARE)
        return MessyConfig(self.seed, self.objects, views, width=self.size, height=self.size)

    @property
    def name(self) -> str:
        return f"seed{self.seed}-{self.objects}-{self.config.view_count}-{self.size}x{self.size}"

    def make(self, scenes: Path, jobs: int) -> Path:
        """Render it with the segments of the simulated segmenter, unless it is there; returns its folder."""
        folder = scenes / self.name
        if not folder.exists():
            print(f"rendering {self.name}", flush=True)
            scenes.mkdir(parents=True, exist_ok=True)
            save_messy(folder, self.config, jobs=jobs)
        return folder

    @property
    def fit(self) -> list[tuple[str, str]]:
        """Of the default recipe, what this room's geometry is fitted with."""
        most = self.gaussians or self.usual(CAPACITY)
        steps = self.steps or self.usual(GEOMETRY_STEPS)
        chosen = {"steps": steps, "max_gaussians": most, "random_count": most // 3, "eval_every": 0}
        return [(name, str(value)) for name, value in chosen.items()]

    def usual(self, by_objects: dict[int, int]) -> int:
        """What the number of objects nearest to this room's has."""
        return by_objects[min(by_objects, key=lambda known: abs(known - self.objects))]


@dataclass(frozen=True)
class Settings:
    """How much of a study is run, and where its files are."""

    seeds: tuple[int, ...]
    objects: tuple[int, ...]
    size: int
    views: int | None
    steps: int | None  # of the geometry
    gaussians: int | None
    overrides: Overrides  # of InstancesConfig, for all trials
    minutes: float  # of processor time for the geometry of the neural field (speed)
    jobs: int
    quick: bool
    scenes: Path
    runs: Path

    def rooms(self) -> list[Room]:
        return [
            Room(seed, count, self.size, self.views, self.steps, self.gaussians)
            for count in self.objects
            for seed in self.seeds
        ]

    def trial(self, room: Room, kind: str, overrides: Overrides = (), **fields: object) -> Trial:
        """A trial on that room; the settings' overrides come last, for they are the user's."""
        both = [*overrides, *self.overrides]
        configuration.apply(InstancesConfig(), both)  # refuses what is no field
        scene, run = self.scenes / room.name, self.runs / room.name
        return Trial(kind, str(scene), str(run), room.fit, both, **fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Job:
    """A trial, and the names of the rows that its answer's parts become."""

    trial: Trial
    names: dict[str, str]


@dataclass(frozen=True)
class Variant:
    """What one trial on a room is given."""

    overrides: Overrides = ()  # of InstancesConfig
    clusterings: dict[str, Overrides] = field(default_factory=lambda: {"": ()})  # of the same embeddings
    kind: str = "train"


@dataclass(frozen=True)
class Study:
    """The numbers of objects of its rooms where not told otherwise, and the trials on each by the titles of rows."""

    objects: tuple[int, ...]
    variants: Callable[[int], dict[str, Variant]]  # of a room with so many objects


def row_name(room: Room, title: str) -> str:
    return f"{room.objects}/{room.seed}/{title}"


def stages(study: Study, s: Settings) -> list[list[Job]]:
    """Geometry; what is made of it before it is frozen; the trials. A stage needs the files of those before."""
    fits = [Job(s.trial(room, "geometry"), {"": row_name(room, GEOMETRY)}) for room in s.rooms()]
    trials = [job for room in s.rooms() for job in _jobs(study.variants(room.objects), room, s)]
    prepared: dict[str, Job] = {}
    for job in trials:
        trial = job.trial
        room_name = next(iter(job.names.values())).rsplit("/", 1)[0]
        name = f"{room_name}/{trial.prepared.name}"
        prepared.setdefault(name, Job(Trial("prepare", *trial.place), {"": name}))
    return [fits, list(prepared.values()), trials]


def _jobs(variants: dict[str, Variant], room: Room, s: Settings) -> Iterable[Job]:
    for title, variant in variants.items():
        if variant.kind == "track":
            yield Job(s.trial(room, "track"), {t: row_name(room, t) for t in (FLAT, *TRACKING)})
            continue
        if variant.kind in ("variance", "ceiling"):
            yield Job(s.trial(room, variant.kind, variant.overrides), {"": row_name(room, title)})
            continue
        clusterings = {part: list(own) for part, own in variant.clusterings.items()}
        names = {part: row_name(room, part or title) for part in clusterings}
        yield Job(s.trial(room, "train", variant.overrides, clusterings=clusterings), names)


# ----------------------------------------------------------------------------------------------------- the studies


def _losses(objects: int) -> dict[str, Variant]:
    released = (("kernel", "double"), ("form", "released"), ("temperature", "1"))
    paper = (("kernel", "double"), ("form", "paper"), ("temperature", "1"))
    vanilla = ("loss", "vanilla")
    fields = {
        OURS: (),
        BARE: (("concentration", "0"),),
        RELEASED: released,
        PAPER: paper,
        VANILLA[0]: (vanilla, *released),
        VANILLA[1]: (vanilla, *paper),
        VANILLA[2]: (vanilla, ("form", "paper"), ("kernel", "plain")),  # at our temperature
        SHORT: (vanilla, *released, ("steps", "500")),  # no more time than slow-fast takes
        "associative": (("loss", "associative"),),
        "margin": (("loss", "margin"),),
    }
    bare = (("merge", "false"), ("place", "0"))
    clustered = {
        title: Variant(own, {"": (), alone(title): bare} if title in ALONE else {"": ()})
        for title, own in fields.items()
    }
    assignment = (("loss", "linear-assignment"), ("identifiers", str(identifiers(objects))))
    return clustered | {
        ASSIGNMENT: Variant(assignment),
        "tracking": Variant(kind="track"),
        CEILING: Variant(kind="ceiling"),
    }


def alone(title: str) -> str:
    """The row of the same embeddings clustered as in the paper: without places, and not merged by the 2D segments."""
    return f"{title}; clusters alone"


def identifiers(objects: int) -> int:
    """Of linear assignment: twice what is needed, so that too few are no reason to fail."""
    return max(64, 2 * objects)


def _sizes(objects: int) -> dict[str, Variant]:
    return {f"D = {dim}": Variant((("dim", str(dim)),)) for dim in (2, 3, 8, 16, 24, 32)}


def _clusterings(objects: int) -> dict[str, Variant]:
    found: dict[str, Overrides] = {"HDBSCAN, size by the sweep": ()}
    found |= {f"HDBSCAN, size {n}": (("min_size", str(n)),) for n in (10, 30, 100, 300, 1000)}
    found["HDBSCAN in the released code's scaled space"] = (("scale", "true"), ("place", "0"))
    found["DBSCAN, size by the sweep"] = (("method", "dbscan"),)
    found["MeanShift, size by the sweep"] = (("method", "meanshift"),)
    return {"clusterings": Variant(clusterings=found)}


def _ablation(objects: int) -> dict[str, Variant]:
    def rounds(count: int) -> tuple[str, str]:
        return "split_rounds", str(count)

    geometry = {
        "geometry: as fitted": (("prune_weight", "0"), rounds(0)),
        "geometry: pruned": (rounds(0),),
        "geometry: pruned, one round of splits": (rounds(1),),
        "geometry: pruned, two rounds": (rounds(2),),
    }
    fields = {
        "start: random": (("start", "random"),),
        "start: positions": (("start", "positions"),),
        **{f"balance: {b}": (("balance", b),) for b in ("0", "0.5", "1")},
        "over alpha: no": (("normalise", "false"),),
        "over alpha: yes": (("normalise", "true"),),
        **{f"momentum: {m}": (("momentum", m),) for m in ("0", "0.5", "0.9", "0.99")},
        "field: network of position": (("model", "position"),),
    }
    objects_made = {
        "": (),
        "objects: clusters that are not merged": (("merge", "false"),),
        "objects: without places": (("place", "0"),),
        "objects: from uniform samples": (("evenness", "0"),),
        **{f"objects: found in {share}": (("found", share),) for share in ("0.1", "0.3", "0.4", "0.5")},
    }
    return {"defaults": Variant((), objects_made)} | {
        title: Variant(overrides) for title, overrides in (geometry | fields).items()
    }


def _variance(objects: int) -> dict[str, Variant]:
    chosen = {title: _losses(objects)[title] for title in (OURS, BARE, RELEASED, PAPER, *VANILLA)}
    return {title: Variant(variant.overrides, kind="variance") for title, variant in chosen.items()}


def _scale(objects: int) -> dict[str, Variant]:
    return {OURS: Variant(), CEILING: Variant(kind="ceiling")}


STUDIES = {
    "losses": Study((25, 50, 100), _losses),
    "sizes": Study((25, 100), _sizes),
    "clusterings": Study((25, 50, 100), _clusterings),
    "ablation": Study((25,), _ablation),
    "variance": Study((25,), _variance),
    "scale": Study((25, 50, 100, LARGEST), _scale),
    "speed": Study((25, LARGEST), lambda objects: {}),  # see benchmarks.instances_speed
}

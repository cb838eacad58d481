"""Objects from segments without identity: `python -m benchmarks.instances STUDY`, on generated messy rooms.

losses       slow-fast with and without concentration beside vanilla, associative, margin, linear assignment, tracking
             in 2D and the 2D segmenter, and the targets
sizes        embeddings of 2 to 32 numbers
clusterings  HDBSCAN with the sweep and with fixed sizes, DBSCAN, MeanShift, the released code's scaled space
ablation     pruning and splitting of the geometry, start, sampling, momentum, a network of position
variance     how noisy the gradient is along the fit: slow-fast against vanilla
speed        steps per second against the number of objects, and against a neural field (wants an idle machine)
scale        cost and quality from 25 to 500 objects, 1,200 views (half an hour or more)

Geometry is fitted once for a room and shared by all; only the instance field is trained. Every finished trial is
written at once and not run again; --fresh forgets the rows, not what is kept of rooms in --runs (geometry and fields).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import instances_speed, instances_trial, machine
from benchmarks.instances_studies import GEOMETRY_STEPS, STUDIES, Job, Settings, stages
from benchmarks.instances_tables import TABLES
from benchmarks.results import write_whole
from benchmarks.trials import Row, Store, parse_fields, parse_seeds, run_stage
from gsfields import config as configuration
from gsfields.instances_config import InstancesConfig

RESULTS = Path(__file__).parent / "results" / "instances"
QUICK: dict[str, Any] = {
    "seeds": "0", "objects": "6", "size": 48, "views": 10, "steps": 250, "gaussians": 1500, "minutes": 0.03,
    "jobs": 1,
}  # fmt: skip
QUICK_FIELD = (("field.steps", "60"), ("class_steps", "20"), ("split_steps", "20"), ("pixels", "64"))
USUAL: dict[str, Any] = {"seeds": "0-2", "size": 128, "minutes": 3.0, "jobs": 2}
ONE_SEED = ("speed", "scale")


def run_study(name: str, s: Settings, store: Store) -> list[str]:
    """Make the rooms, run what the store lacks, and return what failed, a sentence each."""
    for room in s.rooms():
        room.make(s.scenes, s.jobs)
    if name == "speed":
        return _speed(s, store)
    here = s.quick and s.jobs == 1  # to start a process takes longer than a tiny trial
    failures = []
    for stage in stages(STUDIES[name], s):
        failures += run_stage(stage, _answer_here if here else _answer, store, s.jobs, _reached)
    return failures


def _answer(job: Job) -> dict[str, Row]:
    return instances_trial.in_own_process(job.trial)


def _answer_here(job: Job) -> dict[str, Row]:
    return instances_trial.run(job.trial)


def _reached(rows: dict[str, Row]) -> str:
    def score(row: Row) -> str:
        return next((f"{key} {row[key]:.1f}" for key in ("pq", "psnr") if row.get(key)), "done")

    return "\n".join(f"{name}: {score(row)}" for name, row in rows.items())


def _speed(s: Settings, store: Store) -> list[str]:
    """All at once, for what is compared must be measured together."""
    if store.rows:
        return []
    rooms = {str(room.objects): dataclasses.asdict(s.trial(room, "prepare")) for room in s.rooms()}
    seconds = 0.5 if s.quick else 60.0
    task = instances_speed.Task(rooms, 60 * s.minutes, seconds, s.jobs)
    try:
        store.add(instances_speed.in_own_process(task))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return [str(error)]
    return []


# ---------------------------------------------------------------------------------------------------- arguments


def main(words: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(words)
    try:
        s = settings_of(asked)
        stem = f"{machine.slug(machine.describe())}-{asked.study}"
        store = Store(asked.out / f"{stem}.json", asked.study, _identity(asked.study, s), fresh=asked.fresh)
        failures = run_study(asked.study, s, store)
    except (ValueError, TypeError, FileNotFoundError) as error:
        print(f"benchmarks.instances: {error}", file=sys.stderr)
        return 2
    text = TABLES[asked.study](store.rows)
    about = f"{store.path.name}: {machine.describe()['cpu']}, {_described(s)}"
    write_whole(store.path.with_suffix(".md"), f"{text}\n\n{about}\n")
    print(f"\n{text}\n\n{store.path.with_suffix('.md')}")
    return 1 if failures else 0


def settings_of(asked: argparse.Namespace) -> Settings:
    """Raises ValueError for what makes no sense."""
    usual = USUAL | {"objects": ",".join(map(str, STUDIES[asked.study].objects))}
    if asked.study in ONE_SEED:
        usual["seeds"] = "0"
    usual |= QUICK if asked.quick else {}
    if asked.quick and asked.study == "speed":
        usual["objects"] = "6,9"
    values = vars(asked) | {name: value for name, value in usual.items() if vars(asked)[name] is None}
    overrides = [*QUICK_FIELD, *parse_fields(asked.set)] if asked.quick else parse_fields(asked.set)
    configuration.apply(InstancesConfig(), overrides)  # refuses what is no field
    values |= {
        "overrides": tuple(overrides),
        "seeds": parse_seeds(values["seeds"]),
        "objects": parse_seeds(values["objects"], "objects"),
    }
    settings = Settings(**{f.name: values[f.name] for f in dataclasses.fields(Settings)})
    if min(settings.jobs, 1 if settings.steps is None else settings.steps, settings.minutes) <= 0:
        raise ValueError("jobs, steps and minutes must be positive")
    if asked.study == "speed" and len(settings.seeds) > 1:
        raise ValueError(f"speed is measured on one room per number of objects, but seeds are {asked.seeds}")
    for room in settings.rooms():
        _ = room.config  # refuses sizes and numbers that no room has
    return settings


def _identity(study: str, s: Settings) -> dict[str, Any]:
    """What rows must agree on to stand in one table: not the rooms, nor where files are."""
    config = InstancesConfig()
    configuration.apply(config, s.overrides)
    own = {name: getattr(s, name) for name in ("size", "views", "steps", "gaussians")}
    if study == "speed":
        own |= {"threads": s.jobs, "minutes": s.minutes, "objects": s.objects}
    return own | {"config": configuration.to_dict(config)}


def _described(s: Settings) -> str:
    config = InstancesConfig()
    configuration.apply(config, s.overrides)
    seeds, field = ", ".join(map(str, s.seeds)), config.field
    steps = f"{field.steps} steps" if field.steps else "1000 steps, or 3 for each view if more,"
    learnt = f"{steps} of {field.pixels} pixels, D = {field.dim} where not said otherwise"
    fits = dict.fromkeys(room.steps or room.usual(GEOMETRY_STEPS) for room in s.rooms())
    geometry = " / ".join(map(str, fits))
    return f"{s.size}x{s.size} pixels, seeds {seeds}, geometry of {geometry} steps, then {learnt}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "benchmarks.instances", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=tuple(STUDIES))
    parser.add_argument("--seeds", help="such as 0-2 or 0,3 (default 0-2; speed, scale and --quick: 0)")
    parser.add_argument("--objects", help="in a room, such as 25,50 (default: the study's)")
    parser.add_argument(
        "--jobs", type=int, help="trials side by side, a thread each; threads of speed (default 2; --quick 1)"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny room, few steps: does it all run?")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are there")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the fit of instances"
    )
    parser.add_argument("--size", type=int, help="pixels along each side (default 128)")
    parser.add_argument("--views", type=int, help="of a room (default: a share of the paper's, all at 500)")
    parser.add_argument("--steps", type=int, help="of the geometry (default 4,000; 12,000 at 500)")
    parser.add_argument("--gaussians", type=int, help="at most (default: by the number of objects)")
    parser.add_argument("--minutes", type=float, help="speed: of the neural field's geometry (default 3)")
    parser.add_argument(
        "--scenes", type=Path, default=Path("runs/instances/scenes"), help="where rooms are kept"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/instances/runs"), help="where geometry is kept"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of JSON and Markdown")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Do 3D masks beat the 2D masks they came from? `python -m benchmarks.fusion STUDY`, on generated egocentric videos.

table5       the eight rows ±TR, ±PMF, ±NMF over seeds, and the targets
table3       refinement of chosen frames with N = 0, 2, 5, 20 neighbours
doubts       slow and fast motion, blur, pose noise, correlated 2D errors, no revisits
long         1,000 frames fitted on a bounded budget, then 50 refined
real         a real video with masks drawn by hand, and splats among real photographs (needs the shared data)
layers-cost  a layered rendering beside a plain one of as many Gaussians
converge     how far NeuralDiff, NeRF-W and NeRF-T get on a small video, each with the fusion losses it has layers for
race         ours beside NeuralDiff with the same losses: quality after equal time, and speed (wants an idle machine)

Every finished trial is written at once and not run again; --fresh forgets them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import fusion_race, fusion_trial, layers_cost, machine
from benchmarks.baselines.neuraldiff.fields import LAYERS
from benchmarks.fusion_studies import (
    BUDGETS,
    FLAT,
    LONG_FRAMES,
    STUDIES,
    AnyVideo,
    Job,
    Settings,
    Stages,
    flat_row,
    row_name,
    stop,
)
from benchmarks.fusion_tables import DRAWINGS, TABLES
from benchmarks.fusion_trial import flat_scores
from benchmarks.results import write_whole
from benchmarks.scenes import SceneMissing
from benchmarks.trials import Store, parse_fields, parse_seeds, run_stage
from gsfields import config as configuration
from gsfields.fit.runs import LEAST_STEPS

RESULTS = Path(__file__).parent / "results" / "fusion"
QUICK = {"frames": 12, "width": 64, "height": 36, "visits": 3, "minutes": 0.2}
FEWER_SEEDS = {"doubts": "0-1", "real": "0-1", "converge": "0"}
SMALL = {"frames": 30, "width": 114, "height": 64}  # for the study converge
QUICK_STEPS = ("steps", "60")


def run_study(name: str, s: Settings, store: Store, *, fresh: bool = False) -> list[str]:
    """Make the videos, run what the store lacks, and return what failed, a sentence each."""
    if own := {"layers-cost": _layers_cost, "race": _race, "converge": _converge}.get(name):
        return own(s, store)
    study, failures = STUDIES[name], []
    videos = study.videos(s)
    for video in videos.values():
        _make(video, s)
    stages = study.stages(s)
    flat = {row_name(prefix, FLAT): (video,) for prefix, video in videos.items()}
    store.add({name: flat_row(stages, s, *of) for name, of in flat.items() if name not in store.rows})
    if fresh:
        _forget_fits(stages)
    for stage in stages:
        failures += run_stage(stage, _answer, store, s.jobs, _reached)
    return failures


def _answer(job: Job) -> dict[str, Any]:
    return fusion_trial.in_own_process(job.trial)


def _reached(rows: dict[str, Any]) -> str:
    return ", ".join(f"{n} Dyn {row['ap']['dynamic'] or 0:.1f}" for n, row in rows.items())


def _layers_cost(s: Settings, store: Store) -> list[str]:
    video = s.video(s.seeds[0])
    _make(video, s)
    trial = s.trial(video)
    fusion_trial.in_own_process(trial)
    for width, height in layers_cost.SIZES:
        if not any(name.startswith(f"{width}x{height} ") for name in store.rows):
            store.add(layers_cost.measure(Path(trial.run), width, height, seconds=20 * s.minutes / 8))
    return []


def _race(s: Settings, store: Store) -> list[str]:
    for seed in s.seeds:
        video = s.video(seed)
        _make(video, s)
        if (flat := row_name(seed, FLAT)) not in store.rows:
            store.add({flat: flat_scores(video.folder(s.scenes))})
        for rows in fusion_race.race(seed, s, set(store.rows)):
            store.add(rows)
            for name, row in rows.items():
                print(f"{name} Dyn {row['ap']['dynamic'] or 0:.1f}", flush=True)
    if not any(name.startswith("speed/") for name in store.rows):
        run = s.runs / s.video(s.seeds[0]).name / fusion_race.folder(s.minutes * BUDGETS[0])
        store.add(fusion_race.speeds(run, s.jobs, seconds=20 * s.minutes / 8))
    return []


def _converge(s: Settings, store: Store) -> list[str]:
    for seed in s.seeds:
        video = s.video(seed)
        _make(video, s)
        store.add({row_name(seed, FLAT): flat_scores(video.folder(s.scenes))})
    wanted = [(seed, model) for seed in s.seeds for model in LAYERS]
    missing = [job for job in wanted if row_name(job[0], stop(job[1], s.minutes)) not in store.rows]
    with ThreadPoolExecutor(s.jobs) as pool:
        for rows in pool.map(lambda job: fusion_race.converge(job[0], s, job[1]), missing):
            store.add(rows)
    return []


def _make(video: AnyVideo, s: Settings) -> None:
    if not video.folder(s.scenes).exists():
        print(f"rendering {video.name}", flush=True)
    video.make(s.scenes, s.jobs)


def _forget_fits(stages: Stages) -> None:
    for job in (job for stage in stages for job in stage):
        (Path(job.trial.run) / fusion_trial.FITTED).unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------- arguments


def main(words: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(words)
    try:
        s = settings_of(asked)
        effective = _identity(asked.study, s)
        stem = f"{machine.slug(machine.describe())}-{asked.study}"
        store = Store(asked.out / f"{stem}.json", asked.study, effective, fresh=asked.fresh)
        failures = run_study(asked.study, s, store, fresh=asked.fresh)
    except (ValueError, TypeError, FileNotFoundError, SceneMissing) as error:
        print(f"benchmarks.fusion: {error}", file=sys.stderr)
        return 2
    text = TABLES[asked.study](store.rows, s.seeds)
    about = f"{store.path.name}: {machine.describe()['cpu']}, {_described(asked.study, s)}"
    write_whole(store.path.with_suffix(".md"), f"{text}\n\n{about}\n")
    if drawing := DRAWINGS.get(asked.study, lambda *_: None)(store.rows, s.seeds):
        write_whole(store.path.with_suffix(".svg"), drawing)
    print(f"\n{text}\n\n{store.path.with_suffix('.md')}")
    return 1 if failures else 0


def settings_of(asked: argparse.Namespace) -> Settings:
    """Raises ValueError for what makes no sense."""
    values = vars(asked) | ({k: v for k, v in QUICK.items() if vars(asked)[k] is None} if asked.quick else {})
    long = asked.study == "long"
    usual = {"frames": LONG_FRAMES if long else 60, "width": 228, "height": 128, "visits": 40, "minutes": 8.0}
    usual |= SMALL if asked.study == "converge" else {}
    values |= {name: value for name, value in usual.items() if values[name] is None}
    overrides = list(parse_fields(asked.set))
    if asked.quick and not long and not any(name.split(".")[-1] == "steps" for name, _ in overrides):
        overrides.append(QUICK_STEPS)
    configuration.apply(configuration.load("lmf"), overrides)  # refuses what is no field
    seeds = parse_seeds(values["seeds"] or FEWER_SEEDS.get(asked.study, "0-1" if asked.quick else "0-4"))
    values |= {"seeds": seeds, "overrides": tuple(overrides)}
    settings = Settings(**{f.name: values[f.name] for f in dataclasses.fields(Settings)})
    if (
        min(settings.jobs, settings.every, settings.visits) < 1
        or settings.window < 0
        or settings.minutes <= 0
    ):
        raise ValueError("jobs, every, visits and minutes must be positive, and window not negative")
    return settings


def _identity(study: str, s: Settings) -> dict[str, Any]:
    """What rows must agree on to stand in one table: not the seeds, nor where files are."""
    config = configuration.load("lmf")
    configuration.apply(config, s.overrides)
    made = () if study == "real" else ("frames", "width", "height")
    own = {name: getattr(s, name) for name in made}
    if study in ("table5", "table3", "long", "race", "real"):
        own["visits"] = s.visits
    if study == "table3":
        own["every"] = s.every
    if study == "converge":
        return own | {"minutes": s.minutes}
    if study in ("long", "race"):
        own |= {"minutes": s.minutes, "threads": s.jobs}
    if study == "long":
        own["window"] = s.window
    return own | {"config": configuration.to_dict(config)}


def _described(study: str, s: Settings) -> str:
    if study == "real":
        return f"{s.visits} visits per refined frame"
    size = f"{s.frames} frames of {s.width}x{s.height}"
    if study == "converge":
        return f"{size}, {s.minutes:g} minutes of processor time on one thread each"
    if study in ("long", "race"):
        return f"{size}, {s.minutes:g} minutes on {s.jobs} threads, {s.visits} visits per refined frame"
    config = configuration.load("lmf")
    configuration.apply(config, s.overrides)
    seeds = ", ".join(map(str, s.seeds))
    steps = config.fit.steps or max(LEAST_STEPS, config.fit.steps_per_image * s.frames)
    return f"{size}, seeds {seeds}, {steps} steps, {s.visits} visits per refined frame"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "benchmarks.fusion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=tuple(TABLES))
    parser.add_argument(
        "--seeds", help="such as 0-4 or 0,3 (default: 0-4; doubts, real and --quick: 0-1; converge: 0)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="trials side by side, a thread each (default 2)")
    parser.add_argument("--quick", action="store_true", help="tiny videos, few steps: does it all run?")
    parser.add_argument("--fresh", action="store_true", help="forget the rows and fits that are there")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the recipe lmf"
    )
    parser.add_argument("--frames", type=int, help="of each video (default 60; long: 1000)")
    parser.add_argument("--width", type=int, help="pixels (default 228)")
    parser.add_argument("--height", type=int, help="pixels (default 128)")
    parser.add_argument("--visits", type=int, help="steps per refined frame (default 40)")
    parser.add_argument("--window", type=int, default=0, help="long: neighbours refined, too (default 0)")
    parser.add_argument(
        "--every", type=int, default=6, help="table3: refine one in so many frames (default 6)"
    )
    parser.add_argument("--minutes", type=float, help="long, race, converge: of the fit (default 8)")
    parser.add_argument("--mask-free", action="store_true", help="table5: also a fit that sees no 2D mask")
    parser.add_argument(
        "--scenes", type=Path, default=Path("runs/fusion/scenes"), help="where videos are kept"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/fusion/runs"), help="where fits are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of JSON and Markdown")
    return parser


if __name__ == "__main__":
    sys.exit(main())

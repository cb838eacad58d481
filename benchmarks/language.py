"""Prompts answered by nested language fields: `python -m benchmarks.language STUDY`, on generated scenes of things with
parts, whose segments carry embeddings with noise.

accuracy     lifted, direct and triplane fields of which each prompt weighs scales, or the paper's composites, beside
             the choice of a scale (by the map, and by the truth), fields that are not nested, the baselines after
             LangSplat and LERF, and the targets
steps        composites that weigh every so many lengths, and their temperature

Geometry is fitted once for a scene and shared by all. Scores are by LangSplat's pipeline on held-out views. Every
finished trial is written at once and not run again; --fresh forgets the rows, not the geometry.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks import language_trial, machine
from benchmarks.language_trial import Overrides, Trial
from benchmarks.results import write_whole
from benchmarks.tables import spread, table, verdict
from benchmarks.trials import Row, Store, parse_fields, parse_seeds, run_stage
from gsfields import config as configuration
from gsfields.data.nested_files import save_nested
from gsfields.data.nested_scene import NestedConfig
from gsfields.language_config import LanguageConfig

RESULTS = Path(__file__).parent / "results" / "language"
KINDS = ("all", "simple", "compound", "partitive")
MODELS = ("lifted", "direct", "triplane")
OURS, COMPOSITE = "each prompt weighs the scales, {}", "composite, {}"
EXPLICIT, ORACLE = "a scale chosen by the map, {}", "a scale chosen by the truth, {}"
FLAT = "not nested, {}"
LANGSPLAT = "three levels, after LangSplat"
LERF = "thirty scales, after LERF"
CEILING = "true masks on this geometry"
GEOMETRY = "geometry"
ORDER = (  # of the lines of a table; others come last
    *(title.format(model) for model in MODELS for title in (OURS, COMPOSITE, EXPLICIT, ORACLE, FLAT)),
    LANGSPLAT, LERF, CEILING,
)  # fmt: skip
STEPS = (1, 8, 32, 128, 170)  # table 4.6 of the thesis
TEMPERATURES = (1.0, 0.3, 0.1, 0.03)


@dataclass(frozen=True)
class Settings:
    """How much of a study is run, and where its files are."""

    seeds: tuple[int, ...]
    objects: int
    size: int  # pixels along each side
    views: int
    steps: int  # of the geometry
    gaussians: int  # at most
    overrides: tuple[tuple[str, str], ...]  # of LanguageConfig, for all trials
    models: tuple[str, ...]
    jobs: int
    scenes: Path
    runs: Path

    def config(self, seed: int) -> NestedConfig:
        return NestedConfig(seed, self.objects, self.views, width=self.size, height=self.size)

    def name(self, seed: int) -> str:
        return f"seed{seed}-{self.objects}-{self.views}-{self.size}x{self.size}"

    def make(self, seed: int) -> None:
        """Render a scene with its segments, unless it is there."""
        folder = self.scenes / self.name(seed)
        if not folder.exists():
            print(f"rendering {folder.name}", flush=True)
            self.scenes.mkdir(parents=True, exist_ok=True)
            save_nested(folder, self.config(seed), jobs=self.jobs)

    def trial(self, seed: int, kind: str, overrides: Overrides = (), **more: object) -> Trial:  # type: ignore[assignment]
        """The settings' overrides come last, for they are the user's."""
        fit = {
            "steps": self.steps, "max_gaussians": self.gaussians, "random_count": self.gaussians // 3, "eval_every": 0
        }  # fmt: skip
        both = [*overrides, *self.overrides]
        configuration.apply(LanguageConfig(), both)  # refuses what is no field
        scene, run = str(self.scenes / self.name(seed)), str(self.runs / self.name(seed))
        return Trial(kind, scene, run, [(k, str(v)) for k, v in fit.items()], both, **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Job:
    """A trial, and the names of the rows that its answer's parts become."""

    trial: Trial
    names: dict[str, str]


def _accuracy(seed: int, s: Settings) -> Iterable[Job]:
    for model in s.models:
        chosen = ("model", model)
        titles = {"": OURS, "composite": COMPOSITE, "explicit": EXPLICIT, "oracle": ORACLE}
        names = {row: title.format(model) for row, title in titles.items()}
        variants: dict[str, Overrides] = {"": [], "composite": [("scales", "composite")]}
        yield _job(s.trial(seed, "nested", [chosen], scales=True, variants=variants), names, seed)
        flat = s.trial(seed, "nested", [chosen, ("nested", "false")])
        yield _job(flat, {"": FLAT.format(model)}, seed)
    yield _job(s.trial(seed, "three levels"), {"": LANGSPLAT}, seed)
    yield _job(s.trial(seed, "thirty scales"), {"": LERF}, seed)
    yield _job(s.trial(seed, "ceiling"), {"": CEILING}, seed)


def _steps(seed: int, s: Settings) -> Iterable[Job]:
    for model in s.models:
        variants = {f"every {k}": [("step", str(k))] for k in STEPS}
        variants |= {f"temperature {t}": [("temperature", str(t))] for t in TEMPERATURES}
        composite = [("model", model), ("scales", "composite")]
        trial = s.trial(seed, "nested", composite, variants=variants)
        yield _job(trial, {variant: f"{variant}, {model}" for variant in variants}, seed)


def _job(trial: Trial, names: dict[str, str], seed: int) -> Job:
    return Job(trial, {part: f"{seed}/{title}" for part, title in names.items()})


STUDIES: dict[str, Callable[[int, Settings], Iterable[Job]]] = {"accuracy": _accuracy, "steps": _steps}


def run_study(name: str, s: Settings, store: Store) -> list[str]:
    """Make the scenes, run what the store lacks, and return what failed, a sentence each."""
    for seed in s.seeds:
        s.make(seed)
    fits = [_job(s.trial(seed, "geometry"), {"": GEOMETRY}, seed) for seed in s.seeds]
    failures = []
    for stage in (fits, [job for seed in s.seeds for job in STUDIES[name](seed, s)]):
        failures += run_stage(stage, _answer, store, s.jobs, _reached)
    return failures


def _answer(job: Job) -> dict[str, Row]:
    return language_trial.in_own_process(job.trial)


def _reached(rows: dict[str, Row]) -> str:
    def score(row: Row) -> str:
        return f"mIoU {row['miou']['all']:.1f}" if "miou" in row else f"psnr {row['psnr']:.1f}"

    return "\n".join(f"{name}: {score(row)}" for name, row in rows.items())


# ------------------------------------------------------------------------------------------------------------ tables


def by_title(rows: dict[str, Row]) -> dict[str, dict[int, Row]]:
    """title -> seed -> row, the titles in ORDER."""
    found: dict[str, dict[int, Row]] = {title: {} for title in ORDER}
    for name, row in rows.items():
        seed, _, title = name.partition("/")
        found.setdefault(title, {})[int(seed)] = row
    return {title: own for title, own in found.items() if own}


def scores_table(rows: dict[str, Row]) -> str:
    """mIoU and localisation of each kind of prompt, a line a method; mean ± standard deviation over scenes."""
    lines = []
    for title, own in by_title(rows).items():
        if title == GEOMETRY:
            continue
        cells = [title]
        for what in ("miou", "localisation"):
            for kind in KINDS:
                values = [row[what][kind] for row in own.values() if kind in row.get(what, {})]
                cells.append(spread(values))
        cells.append(spread([row["seconds"] for row in own.values() if "seconds" in row], 0))
        lines.append(cells)
    head = ["", *(f"IoU {kind}" for kind in KINDS), *(f"loc {kind}" for kind in KINDS), "s"]
    return table(head, lines)


def targets_table(rows: dict[str, Row], model: str, title: str) -> str:
    """What was promised, and what was measured of `title`: means over the scenes that have both."""
    found = by_title(rows)
    ours = found.get(title.format(model), {})
    lines = []
    for what, other, kind, goal in (
        ("above the choice of a scale by the map", EXPLICIT.format(model), "all", 0.0),
        ("above three levels, after LangSplat", LANGSPLAT, "all", 3.0),
        ("the same, compound prompts", LANGSPLAT, "compound", 4.0),
        ("above a field that is not nested", FLAT.format(model), "all", 2.0),
    ):
        gains = [
            row["miou"][kind] - found[other][seed]["miou"][kind]
            for seed, row in ours.items()
            if seed in found.get(other, {}) and kind in row["miou"]
        ]
        if gains:
            lines.append([f"mIoU {what}", f"{goal:.0f}", verdict(fmean(gains), goal)])
    if ours:
        located = fmean(row["localisation"]["all"] for row in ours.values())
        lines.append(["localisation, %", "85", verdict(located, 85.0)])
    return table(["target", "goal", "measured"], lines)


def report(study: str, rows: dict[str, Row]) -> str:
    """Markdown."""
    parts = [f"# Language: {study}", scores_table(rows)]
    if study == "accuracy":
        for model in MODELS:
            for title in (OURS, COMPOSITE):
                if title.format(model) in by_title(rows):
                    parts += [f"## Targets: {title.format(model)}", targets_table(rows, model, title)]
    parts.append(
        "In percent, on held-out views; mean ± standard deviation over scenes. Seconds of one thread's processor time, "
        "of the fit on frozen geometry."
    )
    return "\n\n".join(parts)


# --------------------------------------------------------------------------------------------------------- arguments


def main(words: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(words)
    try:
        s = settings_of(asked)
        stem = f"{machine.slug(machine.describe())}-{asked.study}"
        store = Store(asked.out / f"{stem}.json", asked.study, _identity(s), fresh=asked.fresh)
        failures = run_study(asked.study, s, store)
    except (ValueError, TypeError, FileNotFoundError) as error:
        print(f"benchmarks.language: {error}", file=sys.stderr)
        return 2
    text = report(asked.study, store.rows)
    about = (
        f"{store.path.name}: {machine.describe()['cpu']}, {s.size}x{s.size} pixels, {s.views} views of "
        f"{s.objects} things, seeds {', '.join(map(str, s.seeds))}, geometry of {s.steps} steps"
    )
    write_whole(store.path.with_suffix(".md"), f"{text}\n\n{about}\n")
    print(f"\n{text}\n\n{store.path.with_suffix('.md')}")
    return 1 if failures else 0


def settings_of(asked: argparse.Namespace) -> Settings:
    """Raises ValueError for what makes no sense."""
    values = vars(asked) | {
        "overrides": parse_fields(asked.set),
        "seeds": parse_seeds(asked.seeds),
        "models": tuple(asked.models.split(",")),
    }
    settings = Settings(**{f.name: values[f.name] for f in dataclasses.fields(Settings)})
    if unknown := [model for model in settings.models if model not in MODELS]:
        raise ValueError(f"models must be among {', '.join(MODELS)}, but are {unknown[0]!r}")
    if min(settings.jobs, settings.steps, settings.gaussians) <= 0:
        raise ValueError("jobs, steps and gaussians must be positive")
    for seed in settings.seeds:
        settings.config(seed)  # refuses sizes and numbers that no scene has
        settings.trial(seed, "geometry")
    return settings


def _identity(s: Settings) -> dict[str, object]:
    """What rows must agree on to stand in one table."""
    config = LanguageConfig()
    configuration.apply(config, s.overrides)
    own = {name: getattr(s, name) for name in ("objects", "size", "views", "steps", "gaussians")}
    return own | {"config": configuration.to_dict(config)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "benchmarks.language", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=tuple(STUDIES))
    parser.add_argument("--seeds", default="0-2", help="such as 0-2 or 0,3 (default 0-2)")
    parser.add_argument("--models", default="lifted,direct,triplane", help="which fields of ours")
    parser.add_argument("--jobs", type=int, default=2, help="trials side by side, a thread each (default 2)")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are there")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the fit of language"
    )
    parser.add_argument("--objects", type=int, default=10, help="things in a scene (default 10)")
    parser.add_argument("--size", type=int, default=192, help="pixels along each side (default 192)")
    parser.add_argument("--views", type=int, default=60, help="default 60")
    parser.add_argument("--steps", type=int, default=4000, help="of the geometry (default 4,000)")
    parser.add_argument("--gaussians", type=int, default=40_000, help="at most (default 40,000)")
    parser.add_argument(
        "--scenes", type=Path, default=Path("runs/language/scenes"), help="where scenes are kept"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/language/runs"), help="where geometry is kept"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of JSON and Markdown")
    return parser


if __name__ == "__main__":
    sys.exit(main())

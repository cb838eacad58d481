"""What a step of training costs: `python -m benchmarks.language_steps`, of a trained splat with made-up segments,
beside the same step where 32 channels of whole images are blended at a time, as in gsplat.

Every view is cut into two levels of segments: cells of space, and groups of cells, each with an embedding. Steps are
timed in turn in one process, with the plans of ours cached; peaks of memory are each of a process of its own. All are
on the CPU; the walks of the baselines are our kernels'. Model `lifted` takes no steps: what is measured is all of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import machine, scenes
from benchmarks.baselines.chunked import ChunkedTrainer, Habits
from benchmarks.language_queries import CELLS, GROUPS, RESULTS, WIDTH, cells_of, word_vectors
from benchmarks.measure import in_subprocess
from benchmarks.memory import peak_mib
from benchmarks.results import write_whole
from benchmarks.tables import ms, table
from gsfields.bench.clock import Effort, Task, Timing, interleaved
from gsfields.bench.scene import Scene
from gsfields.camera import Camera
from gsfields.config import Config
from gsfields.data.dataset import Dataset, View
from gsfields.data.language_features import ViewFeatures, open_features, save_features
from gsfields.fields.nested import NestedField
from gsfields.files import to_json
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.language import LanguageTrainer, Lesson
from gsfields.fit.language_labels import LanguageLabels
from gsfields.fit.lifted_field import lifted
from gsfields.gaussians import SH_C0, Gaussians
from gsfields.language_config import NestedConfig
from gsfields.losses.nested import hierarchical
from gsfields.plans import Plan

TARGET = 5.0  # times the steps per second of the baseline
TRAINED = ("triplane", "direct")
MODELS = (*TRAINED, "lifted")
WAYS: dict[str, Habits | None] = {
    "ours": None,
    "32 channels at a time, of the same pixels": Habits(whole=False, anew=False),
    "32 channels at a time, of whole images, lists kept": Habits(anew=False),
    "32 channels at a time, of whole images, as gsplat": Habits(),
}
OURS, GSPLAT = next(iter(WAYS)), list(WAYS)[-1]


@dataclass(frozen=True)
class Setting:
    """What is trained on."""

    scene: str
    count: int  # Gaussians, at most
    width: int
    height: int
    views: int
    pixels: int  # of a step
    threads: int


@dataclass(frozen=True)
class Lessons:
    """A scene of which segments are known."""

    views: FrozenViews
    labels: LanguageLabels
    config: NestedConfig

    @classmethod
    def of(cls, s: Setting, folder: str) -> Lessons:
        """Segments are written to `folder`."""
        scene = scenes.load(s.scene, s.count, s.width)
        dataset = _dataset(scene, s)
        views = FrozenViews(gaussians_of(scene), dataset, Config(), limit_bytes=8 << 30)
        cell, group = cells_of(scene.means, torch.Generator().manual_seed(0))
        words = word_vectors(CELLS + GROUPS)
        for index, view in enumerate(dataset.views):
            levels = [_shown(views, index, cell, CELLS), _shown(views, index, group, GROUPS) + CELLS]
            ids = torch.stack(levels).where(views.alpha(index) > 0.5, -1).int()
            save_features(folder, view.stem, ViewFeatures(words, ids))
        labels = LanguageLabels(open_features(folder), views, dataset.train, WIDTH)
        for index in labels.indices:
            labels.of(index)
        return cls(views, labels, NestedConfig(pixels=s.pixels, steps=1000))

    def trainer(self, model: str, way: str) -> LanguageTrainer:
        config, habits = replace(self.config, model=model), WAYS[way]  # type: ignore[arg-type]
        if habits is None:
            return LanguageTrainer(self.views, self.labels, config)
        return ChunkedTrainer(self.views, self.labels, config, habits)


def gaussians_of(scene: Scene) -> Gaussians:
    colour = ((scene.values - 0.5) / SH_C0)[:, None]
    logits = scene.opacities.clamp(1e-4, 1 - 1e-4).logit()
    rest = colour.new_zeros(len(colour), 0, 3)
    return Gaussians(scene.means, scene.quats, scene.scales.log(), logits, colour, rest)


def _dataset(scene: Scene, s: Setting) -> Dataset:
    """Views of the scene's orbit, at the size that is asked for; black images, which nothing reads."""
    K = scene.Ks.clone()
    K[:, 1, 2] = s.height / 2  # pixels stay square
    views = [
        View.from_image(
            f"{index:03d}.png",
            Camera(scene.viewmats[index], K[index], s.width, s.height),
            torch.zeros(s.height, s.width, 3, dtype=torch.uint8),
        )
        for index in range(min(s.views, len(scene.viewmats)))
    ]
    return Dataset(views, train=list(range(len(views))), test=[])


@torch.no_grad()
def _shown(views: FrozenViews, index: int, of: Tensor, count: int) -> Tensor:
    """int64 [H, W] which of `count` kinds of Gaussians a pixel shows most of; of: [N]."""
    return views.blend(index, torch.nn.functional.one_hot(of, count).float()).argmax(dim=-1)


# ------------------------------------------------------------------------------------------------ what a step costs


@dataclass(frozen=True)
class Seen:
    """A lesson, and what its pixels show."""

    lesson: Lesson
    plan: Plan
    rows: Tensor


def parts(trainer: LanguageTrainer) -> dict[str, Task]:
    """The stages of a step of ours, each with its gradients."""
    field, indices = trainer.field, trainer.labels.indices
    Stage = Callable[[Tensor, Seen], Tensor]

    def lesson(round_index: int) -> Lesson:
        found = trainer.lesson(indices[round_index % len(indices)])
        assert found is not None  # every view has segments
        return found

    def drawn(of: Lesson) -> Seen:
        return Seen(of, *trainer.views.drawn(of.view, of.pixels))

    def both_ways(stage: Stage, before: Callable[[Seen], Tensor]) -> Task:
        """A stage and its gradient; `before` makes what it is given."""

        def prepare(round_index: int) -> tuple[Tensor, Seen, Tensor]:
            field.zero_grad()  # sparse gradients are else strung together
            seen = drawn(lesson(round_index))
            leaf = before(seen).detach()
            with torch.no_grad():
                like = stage(leaf, seen)
            return leaf.requires_grad_(leaf.is_floating_point()), seen, torch.randn_like(like)

        def run(argument: tuple[Tensor, Seen, Tensor]) -> None:
            leaf, seen, cotangent = argument
            stage(leaf, seen).backward(cotangent)

        return Task(run, prepare)

    def values(seen: Seen) -> Tensor:
        return field.values(seen.rows)

    def blended(given: Tensor, seen: Seen) -> Tensor:
        return seen.plan.blend(given, pixels=seen.lesson.pixels) / seen.lesson.alpha[:, None]

    def shown(seen: Seen) -> Tensor:
        return blended(values(seen), seen)

    def loss(theta: Tensor, seen: Seen) -> Tensor:
        of = seen.lesson
        return hierarchical(theta, field.projection, of.length, of.target, cosine=trainer.config.cosine)

    def with_gradients(round_index: int) -> None:
        field.zero_grad()
        trainer.loss(lesson(round_index)).backward()

    def optimise(_: None) -> None:
        for optimizer in trainer.optimizers:
            optimizer.step()

    found = {
        "the whole step": Task(lambda _: trainer.train_step()),
        "drawing pixels and segments": Task(lesson),
        "which Gaussians these show": Task(drawn, lesson),
        "values of Gaussians": both_ways(lambda rows, seen: field.values(rows), lambda seen: seen.rows),
        "blend": both_ways(blended, values),
        "network": both_ways(lambda given, seen: field.embed(given), shown),
        "loss": both_ways(loss, lambda seen: field.embed(shown(seen))),
        "optimizers": Task(optimise, with_gradients),
    }
    if not isinstance(field, NestedField):
        del found["network"]
    return found


def peak(s: Setting, model: str, way: str) -> float:
    """MiB that a second step takes at its worst, above what is held before the first: all but parameters and plans."""
    torch.set_num_threads(s.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Lessons.of(s, folder).trainer(model, way)
        trainer.train_step()
        return peak_mib(trainer.train_step)


def lifting(s: Setting) -> dict[str, float]:
    """Seconds of lifting from all views, and MiB that a second time takes at its worst. The plans are there."""
    torch.set_num_threads(s.threads)
    with tempfile.TemporaryDirectory() as folder:
        lessons = Lessons.of(s, folder)
        config = lessons.config

        def lift() -> int:
            theta = lifted(lessons.views, lessons.labels, config.dim, config.groups).theta
            return theta.numel() * theta.element_size()

        started = time.monotonic()
        embeddings = lift()
        seconds = time.monotonic() - started
        return {
            "gaussians": len(lessons.views),
            "views": len(lessons.labels.indices),
            "seconds": seconds,
            "mib": peak_mib(lift),
            "embeddings_mib": embeddings / 2**20,
        }


def held(trainer: LanguageTrainer) -> dict[str, float]:
    """MiB of what a fit keeps."""

    def mib(tensors: list[Tensor]) -> float:
        return sum(t.numel() * t.element_size() for t in tensors) / 2**20

    states = [v for o in trainer.optimizers for state in o.state.values() for v in state.values()]
    return {
        "plans": trainer.views.report().memory_bytes / 2**20,
        "parameters": mib([*trainer.field.parameters(), *trainer.field.buffers()]),
        "optimizers": mib([t for t in states if isinstance(t, Tensor)]),
    }


@dataclass(frozen=True)
class Found:
    """Of one model."""

    steps: dict[str, Timing]  # by way
    parts: dict[str, Timing]
    held: dict[str, float]  # MiB
    peaks: dict[str, float]  # MiB, by way


def measure(s: Setting, seconds: float, models: Sequence[str]) -> dict[str, Found]:
    """By model, of those that are trained."""
    if not models:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        return _measured(s, seconds, models, Lessons.of(s, folder))


def _measured(s: Setting, seconds: float, models: Sequence[str], lessons: Lessons) -> dict[str, Found]:
    found = {}
    for model in models:
        trainers = {way: lessons.trainer(model, way) for way in WAYS}
        tasks = {way: Task(lambda _, t=trainer: t.train_step()) for way, trainer in trainers.items()}  # type: ignore[misc]
        steps = interleaved(tasks, Effort(seconds))
        ours = interleaved(parts(trainers[OURS]), Effort(seconds / 2))
        keeps = held(trainers[OURS])
        del trainers, tasks
        cases = {way: dataclasses.asdict(s) | {"model": model, "way": way} for way in WAYS}
        peaks = {
            way: in_subprocess("benchmarks.language_steps", case, timeout=3600)["mib"]
            for way, case in cases.items()
        }
        found[model] = Found(steps, ours, keeps, peaks)
    return found


# ------------------------------------------------------------------------------------------------------------ tables


def report(found: dict[str, Found], lifts: dict[str, float], about: str) -> str:
    """Markdown."""
    sections = ["# A step of training language", about]
    for model, of in found.items():
        ours = of.steps[OURS]
        lines = [
            [way, ms(t.median), f"{t.ratio(ours):.1f}", f"{of.peaks[way]:,.0f}"]
            for way, t in of.steps.items()
        ]
        gain = of.steps[GSPLAT].ratio(ours)
        verdict = "met" if gain >= TARGET else "missed"
        whole = of.parts["the whole step"].median
        sections += [
            f"## {model}",
            table(["", "ms", "times ours", "peak of a step, MiB"], lines),
            f"Target: {TARGET:.0f} times the steps per second of 32 channels at a time: {gain:.1f}, {verdict}.",
            table(
                ["a step of ours", "ms", "%"],
                [[k, ms(t.median), f"{100 * t.median / whole:.0f}"] for k, t in of.parts.items()],
            ),
            "Held all along, MiB: " + ", ".join(f"{k} {v:,.0f}" for k, v in of.held.items()) + ".",
        ]
    if lifts:
        sections += [
            "## lifted",
            f"{lifts['gaussians']:,.0f} Gaussians from {lifts['views']:.0f} views: {lifts['seconds']:.1f} s, "
            f"{lifts['mib']:,.0f} MiB at its worst, of which {lifts['embeddings_mib']:,.0f} are the embeddings.",
        ]
    return "\n\n".join(sections)


def main(words: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(words)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    try:
        width, height = (int(number) for number in asked.size.split("x"))
        s = Setting(asked.scene, asked.count, width, height, asked.views, asked.pixels, asked.threads)
        models = asked.models.split(",")
        if unknown := [model for model in models if model not in MODELS]:
            raise ValueError(f"models must be of {', '.join(MODELS)}, but has {unknown[0]!r}")
        found = measure(s, asked.seconds, [model for model in TRAINED if model in models])
        lifts = (
            in_subprocess(
                "benchmarks.language_steps", dataclasses.asdict(s) | {"model": "lifted"}, timeout=3600
            )
            if "lifted" in models
            else {}
        )
    except (ValueError, scenes.SceneMissing) as error:
        print(f"benchmarks.language_steps: {error}", file=sys.stderr)
        return 2
    about = (
        f"{machine.describe()['cpu']}, {s.threads} threads; {s.scene}, {s.width}x{s.height} pixels, "
        f"{s.views} views, D = E = {WIDTH}, {s.pixels} pixels a step. Medians."
    )
    text = report(found, lifts, about)
    stem = asked.out / f"{machine.slug(machine.describe())}-training"
    rows: dict[str, object] = {
        model: {
            "ms": {way: t.median for way, t in of.steps.items()},
            "parts_ms": {name: t.median for name, t in of.parts.items()},
            "held_mib": of.held,
            "peak_mib": of.peaks,
        }
        for model, of in found.items()
    }
    if lifts:
        rows["lifted"] = lifts
    content = {"machine": machine.describe(), "about": about, "models": rows}
    write_whole(stem.with_suffix(".json"), to_json(content, indent=1) + "\n")
    write_whole(stem.with_suffix(".md"), text + "\n")
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "benchmarks.language_steps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--scene", default="robot_125k", help="a trained splat, or synthetic (default robot_125k)"
    )
    parser.add_argument("--count", type=int, default=1 << 30, help="Gaussians, at most")
    parser.add_argument("--size", default="987x730", help="pixels (default 987x730)")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=NestedConfig().pixels, help="of a step")
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)} (default all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for the steps of a model (default 60)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of JSON and Markdown")
    return parser


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        case = json.loads(sys.argv[1])
        model, way = case.pop("model"), case.pop("way", None)
        s = Setting(**case)
        print(to_json(lifting(s) if way is None else {"mib": peak(s, model, way)}))
    else:
        sys.exit(main())

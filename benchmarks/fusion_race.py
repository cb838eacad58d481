"""Our fit beside NeuralDiff with LMF's losses and refinement on the same video: quality after equal wall-clock time,
and the speed of rendering and of training, measured in turn. And how far the baselines' fields get with time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines.neuraldiff.fields import LAYERS
from benchmarks.baselines.neuraldiff.losses import FusionWeights
from benchmarks.baselines.neuraldiff.train import PRESETS, Trainer, half_is_fast
from benchmarks.fusion_studies import BUDGETS, NERF, OURS, Settings, row_name, stop
from benchmarks.fusion_trial import in_own_process
from benchmarks.measure import threads
from gsfields.bench.clock import Effort, Task, interleaved
from gsfields.fit import runs
from gsfields.fit.checkpoint import Checkpoint
from gsfields.fit.scene import open_dataset
from gsfields.layers import LayeredScene, render_layers

NERF_REFINE_STEPS = 300
Rows = dict[str, dict[str, Any]]


def folder(minutes: float) -> str:
    """Of our run with that budget, beside those of the other studies."""
    return f"race-{minutes:g}"


def race(seed: int, s: Settings, finished: set[str]) -> Iterator[Rows]:
    """Rows of both contenders after each budget, and of both refined at the end; not again those that are finished."""
    video = s.video(seed)
    scene = video.folder(s.scenes)
    budgets = [s.minutes * share for share in BUDGETS]
    for minutes in budgets:
        last = minutes == budgets[-1]
        names = {"fit": row_name(seed, stop(OURS, minutes))}
        names |= {"refined": row_name(seed, stop(OURS, minutes, refined=True))} if last else {}
        if not finished >= set(names.values()):
            refine = s.refinement() if last else None
            trial = s.trial(video, folder(minutes), minutes=minutes, refine=refine, threads=s.jobs)
            answer = in_own_process(trial)
            yield {name: answer[part] for part, name in names.items()}
    if row_name(seed, stop(NERF, budgets[-1], refined=True)) not in finished:
        out = s.runs / video.name / "race-neuraldiff"
        yield {row_name(seed, name): row for name, row in _neuraldiff(scene, out, budgets, s.jobs).items()}


def _neuraldiff(scene: Path, out: Path, budgets: list[float], cores: int) -> Rows:
    """NeuralDiff with both losses, its frames refined at the end."""
    refinement = ["--refine-frames", "all", "--refine-steps", str(NERF_REFINE_STEPS)]
    lines = _trained("neuraldiff", scene, out, budgets, cores, refinement)
    rows = {stop(NERF, m): _as_row(line) for m, line in zip(budgets, _stops(lines), strict=True)}
    refined = next(line for line in lines if line["stage"] == "refined")
    return rows | {stop(NERF, budgets[-1], refined=True): _as_row(refined)}


def converge(seed: int, s: Settings, model: str) -> Rows:
    """Rows of one of the fields, small and with the losses its layers allow, after each budget of processor time."""
    video = s.video(seed)
    budgets = [s.minutes * share for share in BUDGETS]
    out = s.runs / video.name / f"converge-{model}"
    lines = _trained(model, video.folder(s.scenes), out, budgets, 1, ["--clock", "processor"])
    return {
        row_name(seed, stop(model, m)): _as_row(line) for m, line in zip(budgets, _stops(lines), strict=True)
    }


def _trained(
    model: str, scene: Path, out: Path, budgets: list[float], cores: int, more: list[str]
) -> list[dict[str, Any]]:
    """What a field logs, in a process of its own; each stop is evaluated on all frames, which its time does not count.

    Raises RuntimeError with the last thing it said, where it fails.
    """
    (out / "metrics.jsonl").unlink(missing_ok=True)
    words = [
        "--model",
        model,
        "--preset",
        "small",
        "--pmf",
        "1.1",
        "--threads",
        str(cores),
        "--out",
        str(out),
    ]
    words += ["--nmf", "1.0" if "semistatic" in LAYERS[model] else "0", "--minutes", f"{budgets[-1]:g}"]
    words += ["--eval-at", ",".join(f"{m:g}" for m in budgets[:-1]), *more]
    command = [sys.executable, "-m", "benchmarks.baselines.neuraldiff", str(scene), *words]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        complaint = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"{model} failed: {complaint}")
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def _stops(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["stage"] in ("training", "trained")]


def _as_row(line: dict[str, Any]) -> dict[str, Any]:
    """What the baseline logged, in the form of a trial's scores."""
    return {
        "ap": line["ap"],
        "iou": 100 * line["iou"]["at_threshold"],
        "best_iou": 100 * line["best_iou"]["at_threshold"],
        "psnr": {"whole": line["psnr_train"]},
        "steps": line["iterations"],
        "seconds_per_frame": line.get("refine_seconds_per_frame"),
    }


# ----------------------------------------------------------------------------------------------------- the speeds


def speeds(run: Path, cores: int, seconds: float) -> Rows:
    """Rendering one frame of the run's video, and a training iteration per pixel, in turn; wall-clock milliseconds.

    run: a fit of ours. NeuralDiff's weights do not matter to its speed: they are fresh, in its released sizes and in
    the small ones of the race.
    """
    checkpoint = Checkpoint.load(run)
    assert isinstance(checkpoint.scene, LayeredScene)
    scene, dataset = checkpoint.scene.detach(), open_dataset(checkpoint.config.data)
    middle = len(dataset.views) // 2
    camera, time = dataset.views[middle].camera, dataset.times().tolist()[middle]
    half = half_is_fast(torch.device("cpu"))
    nerfs = {
        name: Trainer(dataset, "neuraldiff", recipe, FusionWeights(1.1, 1.0), half=half)
        for name, recipe in PRESETS.items()
    }
    pixels = {OURS: camera.width * camera.height, **{name: t.recipe.rays for name, t in nerfs.items()}}

    def draw(_: Any) -> object:
        with torch.no_grad():
            return render_layers(scene, camera, time)

    with threads(cores):
        # Ours goes on where it ended, with all layers and losses
        trainer = runs.make_trainer(checkpoint.config, dataset, run, checkpoint)
        renders = {OURS: Task(draw)}
        steps = {OURS: Task(lambda _: trainer.train_step())}
        for name, nerf in nerfs.items():
            renders[name] = Task(nerf.render_frame, lambda _: middle)
            steps[name] = Task(nerf.step, lambda _: 0.0)
        effort = Effort(seconds)
        drawn, trained = interleaved(renders, effort), interleaved(steps, effort)
    rows = {}
    for name in nerfs:
        per_pixel = pixels[OURS] / pixels[name]
        rows[row_name("speed", name, "rendering a frame")] = {
            "neuraldiff_ms": drawn[name].median,
            "ours_ms": drawn[OURS].median,
            "ratio": drawn[name].ratio(drawn[OURS]),
        }
        rows[row_name("speed", name, "training on a frame's pixels")] = {
            "neuraldiff_ms": trained[name].median * per_pixel,
            "ours_ms": trained[OURS].median,
            "ratio": trained[name].ratio(trained[OURS]) * per_pixel,
        }
    return rows

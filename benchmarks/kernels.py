"""Measure everything: `python -m benchmarks.kernels`, or part of it with `--quick`.

On a GPU it is the grid of benchmarks/grid.py, on a CPU the suite below (under ten minutes, quick under one).
Writes benchmarks/results/<machine>.json and the same as Markdown. Exits with 1 where our results and a
baseline's disagree; a missed target is reported, not an error, because it may be the machine's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import contenders, grid, machine, report, report_grid, scenes, step
from benchmarks.contenders import scalar, torch_tiled
from benchmarks.measure import in_subprocess, threads
from benchmarks.results import BlendRow, MemoryRow, Results, StageRow, Target
from benchmarks.scenes import SceneMissing
from gsfields import ops
from gsfields.bench import device as devices
from gsfields.bench.clock import Effort, Task, interleaved
from gsfields.bench.scene import Scene
from gsfields.bench.stages import (
    all_views,
    backward,
    blend_tasks,
    forward,
    forward_backward,
    geometry_tasks,
    image_gradient,
    ours,
    project,
    project_and_bin,
    visible,
    without_gradients,
)


@dataclass(frozen=True)
class Suite:
    """What one run measures, and for how long."""

    mode: str
    blend_effort: Effort
    stage_effort: Effort
    step_effort: Effort
    scenes: tuple[str, ...] = ("synthetic", *scenes.SPLATS)
    counts: tuple[int, ...] = (10_000, 100_000)
    sizes: tuple[int, ...] = (256, 512)
    threads: tuple[int, ...] = (1, 2)
    prototype: tuple[int, int] = (50_000, 512)  # Gaussians, pixels
    step: tuple[int, int] = (20_000, 256)
    room_width: int | None = 480  # None: no step on photographs
    memory: bool = True


FULL = Suite("full", blend_effort=Effort(2, min_rounds=2), stage_effort=Effort(8), step_effort=Effort(8))
QUICK = Suite(
    "quick",
    blend_effort=Effort(1, min_rounds=2),
    stage_effort=Effort(2, min_rounds=2),
    step_effort=Effort(2),
    scenes=("synthetic", "robot_125k"),
    counts=(100_000,),
    sizes=(256,),
    threads=(2,),
)


def run(suite: Suite, say: Callable[[str], None] = print) -> Results:
    """Measure a suite. What cannot be measured here becomes a note."""
    start = time.perf_counter()
    results = Results(mode=suite.mode, machine=machine.describe())
    results.notes.append(
        "gsplat is not among the peers here: its rasterizer runs on CUDA only, and this run is on the CPU."
    )
    cores = machine.available_cores()
    if machine.load() > 0.25 * cores:
        results.notes.append(
            f"the machine was busy at the start: a load of {machine.load():.1f} on {cores} cores"
        )
    counts = tuple(t for t in suite.threads if t <= cores) or (1,)
    if counts != suite.threads:
        results.notes.append(f"only {cores} cores: no rows with more threads")
    most = max(counts)

    say(f"stages on the prototype scene, {most} threads")
    with threads(most):
        results.stages += stage_rows(scenes.prototype(*suite.prototype), suite.stage_effort, say)
        say("training steps")
        for make in (lambda: step.synthetic_fit(*suite.step), lambda: room(suite)):
            try:
                results.steps.append(step.measure(make(), suite.step_effort))
            except SceneMissing as missing:
                results.notes.append(str(missing))
    results.targets = targets(results)

    for case in cases(suite, results.notes):
        for row in blend_rows(case, counts, suite.blend_effort):
            results.blend.append(row)
            say(report.blend_line(row))
        if suite.memory:
            results.memory.append(memory_row(case, most))
    results.seconds = time.perf_counter() - start
    return results


def cases(suite: Suite, notes: list[str]) -> Iterator[Scene]:
    """The grid's scenes; one line in the notes for each that is missing."""
    for name in suite.scenes:
        try:
            for size in suite.sizes:
                for count in suite.counts:
                    yield scenes.load(name, count, size)
        except SceneMissing as missing:
            notes.append(str(missing))


def room(suite: Suite) -> step.Fit:
    if suite.room_width is None:
        raise SceneMissing("the step on photographs is not part of this mode")
    return step.room_fit(suite.room_width)


def blend_rows(scene: Scene, thread_counts: Sequence[int], effort: Effort) -> Iterator[BlendRow]:
    """One row of the grid per number of threads: check that the contenders agree, then time them in turn."""
    views = all_views(scene)
    v_image = image_gradient(views[0])
    agreement = contenders.compare(views[0], v_image)
    work = contenders.scalar_blend(views[0])
    whole = blend_tasks(scene, views)
    tasks = {
        "plan": Task(lambda i: project_and_bin(scene, i)),
        "forward": forward(ours, views),
        "forward+backward": forward_backward(ours, views, v_image),
        **{name: whole[name] for name in ("render", "render+backward")},
        "scalar forward": forward(scalar, views),
        "torch forward": forward(torch_tiled, views),
        "torch forward+backward": forward_backward(torch_tiled, views, v_image),
    }
    versus = {
        "scalar forward": "forward",
        "torch forward": "forward",
        "torch forward+backward": "forward+backward",
    }
    for count in thread_counts:
        with threads(count):
            timings = interleaved(tasks, effort)
        yield BlendRow(
            scene=scene.name,
            gaussians=len(scene),
            width=scene.width,
            height=scene.height,
            channels=scene.values.shape[-1],
            threads=count,
            isa=ops.cpu_isa(),
            visible=int(visible(project(scene, 0)[4]).sum()),
            pairs=views[0].ids.numel(),
            visited_per_pixel=float(work.visited.float().mean()),
            blended_per_pixel=float(work.blended.float().mean()),
            rounds=len(timings["forward"].rounds),
            ms={name: timing.median for name, timing in timings.items()},
            speedup={theirs: timings[theirs].ratio(timings[mine]) for theirs, mine in versus.items()},
            agreement=agreement,
        )


def stage_rows(scene: Scene, effort: Effort, say: Callable[[str], None]) -> Iterator[StageRow]:
    """Every stage on every instruction set that this processor has; the one in use by default comes first."""
    chosen = ops.cpu_isa()
    for isa in (chosen, *(i for i in ops.available_cpu_isas() if i != chosen)):
        with instruction_set(isa):
            row = stage_row(scene, effort)
        say(f"  {isa}: blend forward {row.ms['blend']:.1f} ms, {row.blend_speedup:.1f}x the scalar loop")
        yield row


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    ops.set_cpu_isa(name)
    try:
        yield
    finally:
        ops.set_cpu_isa("auto")


def stage_row(scene: Scene, effort: Effort) -> StageRow:
    """The stages of one view one by one, with the scalar loop among them."""
    view = project_and_bin(scene, 0)
    v_image = image_gradient(view)
    work = contenders.scalar_blend(view)
    worst, _ = contenders.image_error(view, without_gradients(ours, view)[0])
    geometry = geometry_tasks(scene)
    tasks = {
        **{name: task for name, task in geometry.items() if name != "plan"},
        "blend": forward(ours, [view]),
        "blend backward": backward(ours, [view], v_image),
        "scalar blend": forward(scalar, [view]),
    }
    timings = interleaved(tasks, effort)
    return StageRow(
        scene=scene.name,
        gaussians=len(scene),
        width=scene.width,
        height=scene.height,
        threads=torch.get_num_threads(),
        isa=ops.cpu_isa(),
        pairs=view.ids.numel(),
        visited_per_pixel=float(work.visited.float().mean()),
        blended_per_pixel=float(work.blended.float().mean()),
        rounds=len(timings["blend"].rounds),
        ms={name: timing.median for name, timing in timings.items()},
        best_ms={name: timing.best for name, timing in timings.items()},
        blend_speedup=timings["scalar blend"].ratio(timings["blend"]),
        backward_over_forward=timings["blend backward"].ratio(timings["blend"]),
        image_worst=worst,
    )


def memory_row(scene: Scene, thread_count: int) -> MemoryRow:
    case = {"scene": scene.name, "gaussians": len(scene), "size": scene.width, "threads": thread_count}
    return MemoryRow(**in_subprocess("benchmarks.memory", case))


def targets(results: Results) -> list[Target]:
    """The promises, from the row of the instruction set in use and the training steps."""
    stage = results.stages[0]
    found = [
        Target("blend forward against the scalar loop", stage.blend_speedup, "x", "at least", 15, 20),
        Target("blend backward against its forward", stage.backward_over_forward, "x", "at most", 4),
        Target("binning", stage.ms["bin"], "ms", "at most", 4, 2, stage.best_ms["bin"]),
        Target("projection", stage.ms["project"], "ms", "at most", 2, best=stage.best_ms["project"]),
    ]
    for row in results.steps:
        if row.name.startswith("colmap_room"):
            limit = 1e3 * step.OPENSPLAT_SECONDS_PER_STEP / 20
        else:
            limit = 60.0
        found.append(Target(f"training step, {row.name}", row.ms, "ms", "at most", limit, best=row.best_ms))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks.kernels", description="Measure the kernels.")
    parser.add_argument("--quick", action="store_true", help="fewer cases; written as <machine>-quick")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the GPU if there is one and its kernels are built"
    )
    parser.add_argument("--minutes", type=float, help="on a GPU, begin no case after so many minutes")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for the results")
    args = parser.parse_args(argv)
    try:
        device = devices.choose(args.device)
    except ValueError as error:
        print(f"python -m benchmarks.kernels: {error}", file=sys.stderr)
        return 2
    if device.type == "cuda":
        results = grid.run(grid.QUICK if args.quick else grid.FULL, device, args.minutes)
    else:
        results = run(QUICK if args.quick else FULL)
    return publish(results, args.out, machine.slug(results.machine) + ("-quick" if args.quick else ""))


def publish(results: Results, folder: Path, name: str) -> int:
    """Write and print the results; 1 where something disagrees."""
    results.save(folder / f"{name}.json")
    report.write(results, folder / f"{name}.md")
    print(report.markdown(results))
    print(f"written: {name}.json and .md ({results.seconds:.0f} s)")
    for row in results.disagreements:
        if isinstance(row, BlendRow):
            line = report.blend_line(row)
        else:
            line = report_grid.disagreement(row, results.cases)
        print(f"DISAGREEMENT: {line}: {row.agreement}", file=sys.stderr)
    return 1 if results.disagreements else 0


if __name__ == "__main__":
    sys.exit(main())

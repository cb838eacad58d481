"""The command: a table of stages on scenes that it makes itself."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch

from gsfields.bench import device as devices
from gsfields.bench import stages
from gsfields.bench.clock import Clock, Effort, Task, clock_of, interleaved, once
from gsfields.bench.scene import Scene, resized, synthetic
from gsfields.files import written_whole

VIEWS = 4
PROFILED_CALLS = 3


@dataclass(frozen=True)
class Size:
    """One case: Gaussians, pixels, and how many values each Gaussian carries."""

    gaussians: int
    width: int
    height: int
    channels: tuple[int, ...]


SIZES = {
    "cpu": (Size(100_000, 512, 512, (3, 32)),),
    "cuda": (Size(100_000, 512, 512, (3, 32)), Size(1_000_000, 1920, 1080, (3, 32))),
}
QUICK = {"cpu": (Size(20_000, 256, 256, (3,)),), "cuda": (Size(100_000, 512, 512, (3,)),)}
EFFORT = {"cpu": Effort(3), "cuda": Effort(0, min_rounds=30, warm_up=8, calls=1)}
QUICK_EFFORT = {"cpu": Effort(0.5), "cuda": Effort(0, min_rounds=30, warm_up=4, calls=1)}


@dataclass(frozen=True)
class Row:
    """One stage of one case; channels is 0 for a stage that does not depend on it."""

    gaussians: int
    width: int
    height: int
    pairs: int
    channels: int
    stage: str
    ms: float
    p10: float
    p90: float
    rounds: int


def run(
    *,
    device: str | None = None,
    quick: bool = False,
    stage: str | None = None,
    out: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Measure every stage, or one, and print the table; `out` is a file for the same as JSON.

    Raises ValueError for an unknown stage or a device that cannot be used.
    """
    where = _device(device, stage)
    clock = clock_of(where)
    effort = (QUICK_EFFORT if quick else EFFORT)[where.type]
    rows: list[Row] = []
    say(devices.title(where))
    for size in (QUICK if quick else SIZES)[where.type]:
        scene = make(size, where)
        wanted = stages.STAGES if stage is None else (stage,)
        found = measure(scene, size.channels, wanted, effort, clock)
        say("\n" + table(found))
        rows += found
    if out is not None:
        whole = {"device": devices.title(where), "rows": [asdict(row) for row in rows]}
        with written_whole(Path(out)) as part:
            part.write_text(json.dumps(whole, indent=1) + "\n")
        say(f"\nwritten: {out}")
    return rows


def profile(
    stage: str, *, device: str | None = None, quick: bool = False, say: Callable[[str], None] = print
) -> None:
    """Call one stage a few times, warm, between the profiler's start and stop; print how to look at it.

    Raises ValueError for an unknown stage or where there is no GPU.
    """
    where = _device(device or "cuda", stage)
    if where.type != "cuda":
        raise ValueError("a profile needs a GPU: --profile works with --device cuda only")
    size = (QUICK if quick else SIZES)["cuda"][-1]
    task = tasks(make(size, where), size.channels[0], (stage,))[stage]
    profiled(task, clock_of(where), torch.cuda.profiler)
    say(f"{stage}: {PROFILED_CALLS} calls, {size.gaussians} Gaussians, {size.width}x{size.height}")
    say(f"under Nsight Compute: {profiler_command(stage, quick=quick)}")


class Profiler(Protocol):
    """torch.cuda.profiler, or what stands in for it."""

    def start(self) -> object: ...

    def stop(self) -> object: ...


def profiled(task: Task, clock: Clock, profiler: Profiler) -> None:
    """Warm the task up on every view, then call it between start and stop, what it works on being ready."""
    for i in range(VIEWS):
        once(task, i, clock)
    arguments = [task.prepare(i) for i in range(PROFILED_CALLS)]
    clock.wait()
    profiler.start()
    for argument in arguments:
        task.run(argument)
    clock.wait()
    profiler.stop()


def profiler_command(stage: str, *, quick: bool = False) -> str:
    name = "".join(c if c.isalnum() else "_" for c in stage)
    words = ["ncu", "--profile-from-start", "off", "--set", "full", "-f", "-o", name]
    return shlex.join([*words, "gsfields", "bench", "--profile", stage, *(["--quick"] if quick else [])])


def make(size: Size, device: torch.device) -> Scene:
    """The scene of a case, seen by VIEWS cameras."""
    square = synthetic(size.gaussians, size.width)
    return resized(square, size.width, size.height, VIEWS).to(device)


def tasks(scene: Scene, channels: int, wanted: Sequence[str]) -> dict[str, Task]:
    """The wanted ones of the stages of a scene whose Gaussians carry so many values."""
    scene = scene.with_channels(channels)
    found = stages.geometry_tasks(scene) if set(wanted) & set(stages.GEOMETRY) else {}
    if set(wanted) - set(stages.GEOMETRY):
        views = stages.all_views(scene)
        found |= stages.blend_tasks(scene, views) | stages.ssim_tasks(views)
    return {name: task for name, task in found.items() if name in wanted}


def measure(
    scene: Scene, channels: Sequence[int], wanted: Sequence[str], effort: Effort, clock: Clock
) -> list[Row]:
    """Rows of the wanted stages at the first number of channels, then of the blending ones at the others."""
    pairs = stages.project_and_bin(scene, 0).ids.numel()
    rows = []
    for count in channels:
        if count != channels[0]:
            wanted = [name for name in wanted if name in stages.BLENDING]
        if not wanted:
            break
        for name, timing in interleaved(tasks(scene, count, wanted), effort, clock).items():
            depends = 0 if name in stages.GEOMETRY else count
            spread = timing.percentile(10), timing.percentile(90)
            rows.append(
                Row(len(scene), scene.width, scene.height, pairs, depends, name, timing.median, *spread,
                    len(timing.rounds))
            )  # fmt: skip
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows of one case as text."""
    case = rows[0]
    lines = [
        f"{case.gaussians} Gaussians, {case.width}x{case.height}, {case.pairs} (tile, Gaussian) pairs; milliseconds",
        f"{'stage':<18}{'C':>4}{'median':>10}{'p10':>10}{'p90':>10}",
    ]
    for row in rows:
        channels = str(row.channels or "")
        lines.append(f"{row.stage:<18}{channels:>4}{row.ms:>10.3f}{row.p10:>10.3f}{row.p90:>10.3f}")
    return "\n".join(lines)


def _device(name: str | None, stage: str | None) -> torch.device:
    if stage is not None and stage not in stages.STAGES:
        raise ValueError(f"stage is {stage!r}, but must be one of: {', '.join(stages.STAGES)}")
    return devices.choose(name)

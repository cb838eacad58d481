"""What was promised of many channels, and whether it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from benchmarks import roofline
from benchmarks.channel_tasks import (
    ALL_BACKWARD,
    BF16,
    EVERYTHING,
    FORWARD,
    LIFT,
    TF32,
    VALUES_BACKWARD,
    backward,
    ours,
    periodic_values,
    quick_gradient,
    scalar_loop,
    work,
)
from benchmarks.peers import RENDER, RENDER_VALUES
from benchmarks.results import CaseRow, PeerRow, Results, Target, TimeRow, WideMemoryRow
from gsfields.bench.clock import Effort, Task, Timing, interleaved
from gsfields.bench.scene import Scene
from gsfields.bench.stages import View, project_and_bin

SCALAR = scalar_loop().title(FORWARD)
OVER_SCALAR = {
    16: (12, 18),
    64: (7, 12),
    512: (3, 5),
}  # channels: at least so many times as fast, and the goal
BACKWARD_FROM = 64  # channels, from which the backward passes are promised
CPU_CHANNELS = (16, 64, 128, 256, 512, 1024)
NARROW, NARROW_FORWARD = 3, "forward, C = 3"

GPU_CASE = ("chair_112k", 100_000, 987, 730)  # scene, Gaussians, pixels
GPU_CHANNELS = (64, 512)
LUDVIG_MS = 2.0  # per image and feature dimension of a lift, as LUDVIG (Marrie et al. 2025) states


# ---- CPU ------------------------------------------------------------------------------------------------------


def on_cpu(results: Results, case: CaseRow, scene: Scene, effort: Effort) -> None:
    """Measure what is promised on this scene: adds its case, its times and the targets."""
    index = len(results.cases)
    results.cases.append(case)
    view = project_and_bin(scene, 0)
    timings = {}
    for channels in CPU_CHANNELS:
        timings[channels] = interleaved(_cpu_tasks(view, channels), effort)
        for name, t in timings[channels].items():
            stage, count = (FORWARD, NARROW) if name == NARROW_FORWARD else (name, channels)
            row = TimeRow(
                index, stage, count, t.median, t.percentile(10), t.percentile(90), len(t.rounds), None
            )
            results.times.append(row)
    results.targets += cpu_targets(timings)


def _cpu_tasks(view: View, channels: int) -> dict[str, Task]:
    wide = replace(view, values=periodic_values(len(view.values), channels))
    v_image, mine = quick_gradient(wide), ours()
    tasks = {FORWARD: mine.tasks(wide, v_image)[FORWARD]}
    if channels >= BACKWARD_FROM:
        tasks[VALUES_BACKWARD] = backward(mine.blend, wide, v_image, "values")
        tasks[ALL_BACKWARD] = backward(mine.blend, wide, v_image, *EVERYTHING)
    if channels in OVER_SCALAR:
        tasks[SCALAR] = scalar_loop().tasks(wide, v_image)[SCALAR]
    if channels == 512:
        narrow = replace(view, values=periodic_values(len(view.values), NARROW))
        tasks[NARROW_FORWARD] = Task(lambda _: mine.image(narrow))
    return tasks


def cpu_targets(timings: dict[int, dict[str, Timing]]) -> list[Target]:
    """The verdicts, from timings by channels and task."""
    found = [
        Target(
            f"blend of {channels} channels against the scalar loop",
            timings[channels][SCALAR].ratio(timings[channels][FORWARD]), "x", "at least", limit, goal,
        )
        for channels, (limit, goal) in OVER_SCALAR.items()
    ]  # fmt: skip
    wide = timings[512]
    per_channel = wide[FORWARD].ratio(wide[NARROW_FORWARD]) * NARROW / 512
    found.append(Target("cost per channel at C = 512 over that at C = 3", per_channel, "x", "at most", 1 / 8))
    for name, limit in ((VALUES_BACKWARD, 1.6), (ALL_BACKWARD, 3.5)):
        ratios = {c: t[name].ratio(t[FORWARD]) for c, t in timings.items() if name in t}
        worst = max(ratios, key=lambda c: ratios[c])
        title = f"{name} against forward, worst of C >= {BACKWARD_FROM} (C = {worst})"
        found.append(Target(title, ratios[worst], "x", "at most", limit))
    return found


def memory(rows: Sequence[WideMemoryRow]) -> Target:
    """The largest allocation that was neither input nor output, beside the promised output and 64 MB."""
    worst = max(rows, key=lambda row: row.beyond - row.outputs)
    title = f"memory beyond inputs and outputs, nearest to its bound ({worst.task}, C = {worst.channels})"
    return Target(title, worst.beyond, "MiB", "at most", round(worst.outputs + 64e6 / 2**20, 1))


# ---- GPU ------------------------------------------------------------------------------------------------------


def on_gpu(results: Results) -> list[Target]:
    """The verdicts on the promised case, as far as it was measured."""
    name, count, width, height = GPU_CASE
    wanted = (name, count, width, height)
    places = [i for i, c in enumerate(results.cases) if (c.scene, c.gaussians, c.width, c.height) == wanted]
    if not places or results.ceilings is None:
        return []
    index = places[0]
    ms = {(row.stage, row.channels): row.ms for row in results.times if row.case == index}
    found = _against_gsplat([row for row in results.peers if row.case == index])
    case, limits = results.cases[index], results.ceilings
    for mode, peak in ((TF32, limits.tf32_gflop_per_s), (BF16, limits.bf16_gflop_per_s)):
        taken = ms.get((ours(mode).title(FORWARD), 512))
        done = work(FORWARD, case, 512, mode.storage.itemsize)
        if taken is not None and peak is not None and done is not None:
            floor = roofline.floor_ms(done, limits.memory_gb_per_s, peak)
            found.append(
                Target(f"{mode.name} blend of 512 channels over its floor", taken / floor, "x", "at most", 3)
            )
    if (lift := ms.get((LIFT, 512))) is not None:
        ratio = LUDVIG_MS / (lift / 512)
        found.append(
            Target(f"lift of 512 channels against {LUDVIG_MS:g} ms each", ratio, "x", "at least", 50)
        )
    if results.wide_memory:
        found.append(memory(results.wide_memory))
    return found


def _against_gsplat(rows: Sequence[PeerRow]) -> list[Target]:
    bars = ((512, RENDER, 8), (512, RENDER_VALUES, 10), (64, RENDER, 3))
    found = []
    for channels, task, limit in bars:
        ratios = [
            row.speedup[task]
            for row in rows
            if row.peer.startswith("gsplat") and row.channels == channels and task in row.speedup
        ]
        if ratios:
            title = f"{task} of {channels} channels against gsplat"
            found.append(Target(title, median(ratios), "x", "at least", limit))
    return found

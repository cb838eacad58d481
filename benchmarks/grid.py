"""Every stage over a grid of scenes, image sizes and channels, on one device: what is measured on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch

from benchmarks import ceilings, contenders, machine, peers, report_grid, scenes, step
from benchmarks.measure import out_of_memory
from benchmarks.peers import Peer
from benchmarks.results import Agreement, CaseRow, PeerRow, Results, TimeRow
from benchmarks.scenes import SceneMissing
from gsfields.bench import stages
from gsfields.bench.clock import Clock, Effort, Task, Timing, clock_of, interleaved
from gsfields.bench.scene import Scene, resized
from gsfields.bench.stages import View, all_views, geometry_tasks, image_gradient, ours

WHOLE = 1 << 30  # more Gaussians than any trained splat has: all of it


EFFORT = Effort(0, min_rounds=30, warm_up=10, calls=1)


@dataclass(frozen=True)
class Grid:
    """What one run measures. The sizes are outermost, so that a run cut short has the usual ones."""

    mode: str
    effort: Effort = EFFORT
    splats: tuple[str, ...] = scenes.SPLATS
    synthetic: tuple[int, ...] = (100_000, 1_000_000, 3_000_000)
    sizes: tuple[tuple[int, int], ...] = ((512, 512), (1920, 1080), (3840, 2160))
    channels: tuple[int, ...] = (3, 1, 8, 16, 32, 64)  # the first one with SSIM
    views: int = 8
    copy_bytes: int = ceilings.COPY_BYTES
    matrix: int = ceilings.MATRIX
    step: tuple[int, int] | None = (200_000, 512)  # of the training step: Gaussians, pixels


FULL = Grid("full")
QUICK = Grid(
    "quick",
    splats=("robot_125k",),
    synthetic=(100_000, 1_000_000),
    sizes=((512, 512), (1920, 1080)),
    channels=(3, 32),
)


def run(
    grid: Grid,
    device: torch.device,
    minutes: float | None = None,
    say: Callable[[str], None] = print,
    found: tuple[Sequence[Peer], Sequence[str]] | None = None,
) -> Results:
    """Measure the grid, as much of it as fits into the minutes. `found` is peers.find()'s answer."""
    start = time.perf_counter()
    results = Results(mode=grid.mode, machine=machine.describe(device))
    rivals, missing = peers.find(device) if found is None else found
    results.notes += missing
    clock = clock_of(device)
    results.ceilings = ceilings.measure(device, clock, grid.copy_bytes, grid.matrix)
    say(report_grid.ceilings_line(results.ceilings))
    if grid.step is not None:
        fit = step.synthetic_fit(*grid.step).to(device)
        results.steps.append(step.measure(fit, grid.effort, clock))
    for scene in cases(grid, results.notes):
        title = f"{scene.name} {len(scene)} at {scene.width}x{scene.height}"
        if minutes is not None and time.perf_counter() - start > 60 * minutes:
            results.notes.append(f"{title}: left out, the {minutes:g} minutes were over")
            continue
        say(title)
        try:
            Case(results, scene.to(device), grid, clock).measure(rivals, say)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            results.notes.append(f"{title}: not all of it fits into the device's memory")
    results.seconds = time.perf_counter() - start
    return results


def cases(grid: Grid, notes: list[str]) -> Iterator[Scene]:
    """The grid's scenes, on the CPU; one line in the notes for each that is missing."""
    made = [*named_scenes(grid, notes)]
    for width, height in grid.sizes:
        for scene in made:
            yield resized(scene, width, height, grid.views)


def named_scenes(grid: Grid, notes: list[str]) -> Iterator[Scene]:
    for name, count in [*((n, WHOLE) for n in grid.splats), *(("synthetic", n) for n in grid.synthetic)]:
        try:
            scene = scenes.load(name, count, 16)
        except SceneMissing as missing:
            notes.append(str(missing))
        else:
            yield replace(scene, opacities=scene.opacities.clamp(max=peers.MAX_OPACITY))


class Case:
    """One scene in one image size: its rows are added to the results as they are found."""

    def __init__(self, results: Results, scene: Scene, grid: Grid, clock: Clock) -> None:
        self.results, self.scene, self.grid, self.clock = results, scene, grid, clock
        self.index = len(results.cases)

    def measure(self, rivals: Sequence[Peer], say: Callable[[str], None]) -> None:
        self.results.cases.append(case_row(self.scene))
        say("  " + report_grid.case_line(self.results.cases[-1]))
        self.time(0, geometry_tasks(self.scene))
        for channels in self.grid.channels:
            scene = self.scene.with_channels(channels)
            views = all_views(scene)
            agreeing = [peer for peer in rivals if self.agrees(peer, scene)]
            tasks = stages.blend_tasks(scene, views)
            for peer in agreeing:
                tasks |= peers.tasks(scene, peer)
            if channels == self.grid.channels[0]:
                tasks |= stages.ssim_tasks(views)
            timings = self.time(channels, tasks)
            for peer in agreeing:
                self.compare_times(peer, channels, timings)
            say(f"  C = {channels}: " + report_grid.times_line(timings))

    def time(self, channels: int, tasks: dict[str, Task]) -> dict[str, Timing]:
        timings = interleaved(tasks, self.grid.effort, self.clock)
        for stage, timing in timings.items():
            spread = timing.percentile(10), timing.percentile(90)
            peak = self.peak_mib(tasks[stage])
            self.results.times.append(
                TimeRow(self.index, stage, channels, timing.median, *spread, len(timing.rounds), peak)
            )
        return timings

    def peak_mib(self, task: Task) -> float | None:
        argument = task.prepare(0)
        return self.clock.peak_mib(lambda: task.run(argument))

    def agrees(self, peer: Peer, scene: Scene) -> bool:
        """Whether the peer takes part; if it does not, a row or a note says why."""
        channels = scene.values.shape[1]
        try:
            agreement = peers.compare(scene, peer)
        except Exception as error:  # whatever a peer's own build, kernels or checks may raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            note = f"{peer.name} cannot render {channels} channels here: {reason}"
            if note not in self.results.notes:
                self.results.notes.append(note)
            return False
        self.results.peers.append(PeerRow(self.index, peer.name, channels, {}, agreement))
        return agreement.ok

    def compare_times(self, peer: Peer, channels: int, timings: dict[str, Timing]) -> None:
        """Fill in the row that agrees() began."""
        speedup = {
            stage: timings[f"{peer.name} {stage}"].ratio(timings[stage])
            for stage in ("render", "render+backward")
        }
        for i, row in enumerate(self.results.peers):
            if (row.case, row.peer, row.channels) == (self.index, peer.name, channels):
                self.results.peers[i] = replace(row, speedup=speedup)


def case_row(scene: Scene) -> CaseRow:
    """The counts that the work depends on, means over the views, and how well the kernels agree on the first: the
    image with the scalar loop, the gradients with the CPU backend.
    """
    scene = scene.with_channels(3)
    views = all_views(scene)
    counts = [contenders.scalar_blend(view) for view in views]
    return CaseRow(
        scene=scene.name,
        gaussians=len(scene),
        width=scene.width,
        height=scene.height,
        views=len(views),
        visible=mean(in_view(scene, v) for v in range(len(views))),
        pairs=mean(view.ids.numel() for view in views),
        visited_per_pixel=mean(float(work.visited.float().mean()) for work in counts),
        blended_per_pixel=mean(float(work.blended.float().mean()) for work in counts),
        agreement=agreement(views[0]),
    )


def in_view(scene: Scene, index: int) -> int:
    return int(stages.visible(stages.project(scene, index)[4]).sum())


def agreement(view: View) -> Agreement:
    return contenders.compare(view, image_gradient(view), reference=ours)

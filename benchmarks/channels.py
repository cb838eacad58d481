"""Time and memory against the number of channels: `python -m benchmarks.channels`, or part of it with `--quick`.

Three trained splats with all their Gaussians, three image sizes, 1 to 1024 channels; the blend, the blend with its
gradients, and the lift, beside the baselines on a CPU and the peers on a GPU. Writes
benchmarks/results/<machine>-channels.json, the same as Markdown, and a picture. Exits with 1 where results disagree.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import TimeoutExpired

import torch
from torch import Tensor

from benchmarks import ceilings, channel_bars, contenders, machine, peers, report, scenes
from benchmarks.baselines.products import DenseProducts, SparseProduct
from benchmarks.channel_tasks import (
    ALL,
    BF16,
    FORWARD,
    FP32,
    LIFT,
    PERIOD,
    TASKS,
    TF32,
    Contender,
    Mode,
    check,
    given_weights,
    ours,
    quick_gradient,
    scalar_loop,
    torch_dense,
    with_periodic_values,
)
from benchmarks.grid import WHOLE, in_view
from benchmarks.kernels import publish
from benchmarks.measure import in_subprocess, out_of_memory, threads
from benchmarks.memory import wide_row
from benchmarks.peers import Peer
from benchmarks.results import Agreement, CaseRow, PeerRow, Results, TimeRow, WideMemoryRow
from benchmarks.scenes import SceneMissing
from gsfields.bench import device as devices
from gsfields.bench import stages
from gsfields.bench.clock import Effort, Task, Timing, clock_of, interleaved
from gsfields.bench.scene import Scene, resized
from gsfields.bench.stages import View, image_gradient, project_and_bin

BUILDING = "sparse product, building its matrix"
BASELINE_PIXELS = 512 * 512  # of larger images the baselines are left out
ROOM = 0.85  # share of the free memory that a case may take


@dataclass(frozen=True)
class Sweep:
    """What one run measures. The sizes are outermost, so that a run cut short has the usual ones."""

    mode: str
    effort: Effort
    bars: Effort
    splats: tuple[str, ...] = scenes.SPLATS  # the first one with baselines
    gaussians: int = WHOLE
    sizes: tuple[tuple[int, int], ...] = ((512, 512), (987, 730), (1920, 1080))
    channels: tuple[int, ...] = (1, 3, 4, 8, 10, 16, 32, 44, 64, 100, 128, 256, 512, 1024)
    memory: tuple[
        tuple[int, int, int, str], ...
    ] = (  # of the first splat on a CPU: pixels, channels, storage
        (512, 512, 3, "float32"),
        (512, 512, 64, "float32"),
        (512, 512, 512, "float32"),
        (512, 512, 512, "bfloat16"),
        (512, 512, 1024, "float32"),
        (1920, 1080, 512, "float32"),
    )
    dense: tuple[int, ...] = (
        3,
        64,
        512,
    )  # channels at which torch computes weights too, which takes it seconds
    limits: tuple[int, int] = (1 << 28, 2048)  # bytes copied, rows of a square matrix
    prototype: tuple[int, int] = (50_000, 512)  # of the promises on a CPU: Gaussians, pixels


FULL = Sweep("full", Effort(0.5, min_rounds=2, warm_up=1), Effort(4, min_rounds=3))
QUICK = replace(
    FULL,
    mode="quick",
    bars=Effort(1, min_rounds=2),
    splats=("robot_125k",),
    sizes=((512, 512),),
    channels=(3, 16, 64, 512),
    memory=FULL.memory[:3],
    dense=(3,),
)


def on_gpu(sweep: Sweep) -> Sweep:
    """The same with what a GPU does in the time."""
    effort = Effort(0, min_rounds=20, warm_up=4, calls=1)
    return replace(sweep, effort=effort, limits=(ceilings.COPY_BYTES, ceilings.MATRIX))


def run(
    sweep: Sweep,
    device: torch.device,
    minutes: float | None = None,
    say: Callable[[str], None] = print,
    found: tuple[Sequence[Peer], Sequence[str]] | None = None,
) -> Results:
    """Measure the sweep, as much of it as fits into the minutes. `found` is peers.find()'s answer."""
    results = Results(mode=sweep.mode, machine=machine.describe(device), kind="channels")
    rivals, missing = peers.find(device, tuple(peers.PEERS)) if found is None else found
    cores = machine.available_cores()
    results.machine["threads"] = cores
    results.notes += missing
    if machine.load() > 0.25 * cores:
        results.notes.append(
            f"the machine was busy at the start: a load of {machine.load():.1f} on {cores} cores"
        )
    with threads(cores):
        Runner(results, sweep, device, minutes, say).run(rivals)
    return results


class Runner:
    """One run: adds to the results what it finds."""

    def __init__(
        self,
        results: Results,
        sweep: Sweep,
        device: torch.device,
        minutes: float | None,
        say: Callable[[str], None],
    ) -> None:
        self.results, self.sweep, self.device, self.say = results, sweep, device, say
        self.start = time.perf_counter()
        self.minutes = minutes
        self.clock = clock_of(device)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def run(self, rivals: Sequence[Peer]) -> None:
        self.results.ceilings = ceilings.measure(self.device, self.clock, *self.sweep.limits)
        if not self.on_gpu:
            self.say("promises, on the prototype scene")
            prototype = scenes.prototype(*self.sweep.prototype)
            channel_bars.on_cpu(self.results, self.case_row(prototype), prototype, self.sweep.bars)
            self.memory()
        for scene, channels in self.cases():
            Case(self, scene.to(self.device), rivals).measure(channels)
        self.results.targets += channel_bars.on_gpu(self.results) if self.on_gpu else []
        self.results.seconds = time.perf_counter() - self.start

    def cases(self) -> Iterator[tuple[Scene, Sequence[int]]]:
        """Scenes in their sizes, and channels; one line in the notes for each that is missing."""
        made = []
        for name in self.sweep.splats:
            try:
                made.append(scenes.load(name, self.sweep.gaussians, 16))
            except SceneMissing as missing:
                self.results.notes.append(str(missing))
        if self.on_gpu and (promised := self.promised()) is not None:
            yield promised, channel_bars.GPU_CHANNELS
        for size in self.sweep.sizes:
            for scene in made:
                yield self.seen(scene, *size), self.sweep.channels

    def promised(self) -> Scene | None:
        """The scene of the promises for a GPU."""
        name, count, width, height = channel_bars.GPU_CASE
        try:
            return self.seen(scenes.load(name, count, 16), width, height)
        except SceneMissing:
            return None

    def seen(self, scene: Scene, width: int, height: int) -> Scene:
        """From one camera; on a GPU with the opacities at which peers agree."""
        if self.on_gpu:
            scene = replace(scene, opacities=scene.opacities.clamp(max=peers.MAX_OPACITY))
        return resized(scene, width, height, 1)

    def late(self) -> bool:
        return self.minutes is not None and time.perf_counter() - self.start > 60 * self.minutes

    def case_row(self, scene: Scene) -> CaseRow:
        """Counts of the one view. Gradients in three channels are compared with the CPU's, and on the CPU with
        autograd's where the image is small enough for that.
        """
        view = project_and_bin(scene.with_channels(3), 0)
        counts = contenders.scalar_blend(view)
        if self.on_gpu:
            agreement = contenders.compare(view, image_gradient(view), reference=stages.ours)
        elif scene.width * scene.height <= BASELINE_PIXELS:
            agreement = contenders.compare(view, image_gradient(view))
        else:
            worst, outliers = contenders.image_error(view, ours().image(view))
            agreement = Agreement(worst, outliers, None, worst <= 1e-2 and outliers <= 2e-3)
        return CaseRow(
            scene=scene.name,
            gaussians=len(scene),
            width=scene.width,
            height=scene.height,
            views=1,
            visible=in_view(scene, 0),
            pairs=view.ids.numel(),
            visited_per_pixel=float(counts.visited.float().mean()),
            blended_per_pixel=float(counts.blended.float().mean()),
            agreement=agreement,
        )

    def memory(self) -> None:
        """Peaks of the CPU, each in a process of its own."""
        name = self.sweep.splats[0]
        for width, height, channels, storage in self.sweep.memory:
            if 2 * 4 * channels * width * height > ROOM * machine.free_memory(self.device):
                self.results.notes.append(
                    f"no memory of {channels} channels at {width}x{height}: it has no room"
                )
                continue
            for task in TASKS:
                case = {"scene": name, "gaussians": self.sweep.gaussians, "size": [width, height]}
                case |= {"channels": channels, "storage": storage, "task": task}
                case |= {"threads": torch.get_num_threads()}
                try:
                    row = WideMemoryRow(**in_subprocess("benchmarks.memory", case))
                except (RuntimeError, TimeoutExpired) as error:
                    line = f"no memory of {name} at {width}x{height}, C = {channels}, {task}: {error}"
                    self.results.notes.append(line)
                    continue
                self.results.wide_memory.append(row)
        if self.results.wide_memory:
            self.results.targets.append(channel_bars.memory(self.results.wide_memory))


class Case:
    """One scene in one image size: its rows are added to the results as they are found."""

    def __init__(self, runner: Runner, scene: Scene, rivals: Sequence[Peer]) -> None:
        self.runner, self.scene, self.rivals = runner, scene, rivals
        self.results, self.say, self.clock = runner.results, runner.say, runner.clock
        self.title = f"{scene.name} {len(scene)} at {scene.width}x{scene.height}"
        self.index = len(self.results.cases)

    def measure(self, channels: Sequence[int]) -> None:
        if self.runner.late():
            self.leave_out(channels)
            return
        self.say(self.title)
        self.results.cases.append(self.runner.case_row(self.scene))
        narrow = project_and_bin(with_periodic_values(self.scene, PERIOD), 0)
        self.reference = contenders.scalar_blend(narrow).image
        self.baselines = self.make_baselines(narrow)
        for i, count in enumerate(channels):
            if self.runner.late():
                self.leave_out(channels[i:])
                return
            try:
                self.measure_channels(count)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self.note(f"C = {count}: not all of it fits into the memory")

    def leave_out(self, channels: Sequence[int]) -> None:
        self.note(
            f"C = {', '.join(map(str, channels))} left out, the {self.runner.minutes:g} minutes were over"
        )

    def note(self, text: str) -> None:
        self.results.notes.append(f"{self.title}: {text}")

    def make_baselines(self, view: View) -> list[Contender]:
        """Those of the CPU, for the first splat in a small image; the time of building the sparse matrix too."""
        first = self.scene.name == self.runner.sweep.splats[0]
        if self.runner.on_gpu or not first or self.scene.width * self.scene.height > BASELINE_PIXELS:
            return []
        made: list[DenseProducts | SparseProduct] = [DenseProducts(view)]
        building = self.clock.ms(lambda: made.append(SparseProduct(view)))
        self.add_time(BUILDING, 0, Timing((building,)))
        given = [given_weights(name, p) for name, p in zip(("dense products", "sparse product"), made)]
        return [scalar_loop(), *given]

    # ---- one number of channels ----

    def measure_channels(self, channels: int) -> None:
        once = 4 * channels * (self.scene.width * self.scene.height + len(self.scene))  # image and values
        free = ROOM * machine.free_memory(self.runner.device)
        if once > free:
            self.note(f"C = {channels} left out, {once / 2**30:.1f} GiB do not fit into the memory")
            return
        scene = with_periodic_values(self.scene, channels)
        view = project_and_bin(scene, 0)
        if 2 * once > free:
            self.note(f"C = {channels}: only {FORWARD}, an image and its gradient do not fit into the memory")
            only = replace(ours(), can=(FORWARD,))
            small = image_gradient(replace(view, width=1, height=1))
            self.compare(only, view, small, FP32)
            self.report(channels, self.time(channels, only.tasks(view, small)))
            return
        v_image = quick_gradient(view)
        tasks = self.our_tasks(view, v_image)
        slow = [torch_dense()] if self.baselines and channels in self.runner.sweep.dense else []
        baselines = [b for b in [*self.baselines, *slow] if self.compare(b, view, v_image, FP32)]
        for baseline in baselines:
            tasks |= baseline.tasks(view, v_image)
        rivals = [r for r in (self.agreeing(p, scene, v_image) for p in self.rivals) if r is not None]
        if rivals:
            tasks |= peers.render_tasks(scene, peers.our_render, v_image)
        for peer in rivals:
            made = peers.render_tasks(scene, peer.render, v_image)
            tasks |= {f"{peer.name} {name}": task for name, task in made.items()}
        timings = self.time(channels, tasks)
        for name in [*(b.name for b in baselines), *(r.name for r in rivals)]:
            self.compare_times(name, channels, timings)
        if self.runner.on_gpu:
            self.results.wide_memory += [
                wide_row(view, task, lambda call: self.clock.peak_mib(call) or 0.0, scene.name)
                for task in TASKS
            ]
        self.report(channels, timings)

    def our_tasks(self, view: View, v_image: Tensor) -> dict[str, Task]:
        """Ours in float32; on a GPU in the other precisions too."""
        tasks: dict[str, Task] = {}
        for mode in (FP32, TF32, BF16) if self.runner.on_gpu else (FP32,):
            stored = replace(view, values=view.values.to(mode.storage))
            v_stored = v_image.to(mode.storage)
            self.compare(ours(mode), stored, v_stored, mode)
            tasks |= ours(mode).tasks(stored, v_stored)
        return tasks

    def compare(self, contender: Contender, view: View, v_image: Tensor, mode: Mode) -> bool:
        """Add the row of how well a contender agrees with the scalar loop's image; whether it does."""
        name = contender.name or "ours"
        if name == scalar_loop().name:
            agreement = Agreement(0.0, 0.0, None, True)
        else:
            agreement = check(view, v_image, self.reference, contender, mode.tolerance)
        self.results.peers.append(PeerRow(self.index, name, view.values.shape[1], {}, agreement))
        return agreement.ok

    def agreeing(self, peer: Peer, scene: Scene, v_image: Tensor) -> Peer | None:
        """The peer, cut into parts where it cannot do otherwise, or None; then a row or a note says why."""
        channels = scene.values.shape[1]
        for way in (peer.render, peer.otherwise):
            if way is None:
                continue
            chosen = replace(peer, render=way)
            try:
                agreement = peers.compare(scene, chosen, v_image)
            except Exception as error:  # whatever a peer's own build, kernels or checks may raise
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                how = "" if way is peer.render else " in parts"
                self.note(f"{peer.name} cannot render {channels} channels{how}: {reason}")
                continue
            if way is peer.otherwise:
                parts = " + ".join(map(str, peers.parts_of(channels)))
                self.note(f"{peer.name} renders {channels} channels as {parts}, each with its own projection")
            self.results.peers.append(PeerRow(self.index, peer.name, channels, {}, agreement))
            return chosen if agreement.ok else None
        return None

    def time(self, channels: int, tasks: dict[str, Task]) -> dict[str, Timing]:
        timings = interleaved(tasks, self.runner.sweep.effort, self.clock)
        for name, timing in timings.items():
            self.add_time(name, channels, timing)
        return timings

    def add_time(self, name: str, channels: int, timing: Timing) -> None:
        spread = timing.percentile(10), timing.percentile(90)
        row = TimeRow(self.index, name, channels, timing.median, *spread, len(timing.rounds), None)
        self.results.times.append(row)

    def compare_times(self, name: str, channels: int, timings: dict[str, Timing]) -> None:
        """Fill in the row that compare() or agreeing() began: the other's time over ours, by task."""
        prefix = f"{name} "
        speedup = {
            task.removeprefix(prefix): timing.ratio(timings[task.removeprefix(prefix)])
            for task, timing in timings.items()
            if task.startswith(prefix)
        }
        for i, row in enumerate(self.results.peers):
            if (row.case, row.peer, row.channels) == (self.index, name, channels):
                self.results.peers[i] = replace(row, speedup=speedup)

    def report(self, channels: int, timings: dict[str, Timing]) -> None:
        told = ", ".join(
            f"{name} {timings[name].median:.3g}" for name in (FORWARD, ALL, LIFT) if name in timings
        )
        self.say(f"  C = {channels}: {told} ms")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks.channels", description="Time against channels.")
    parser.add_argument(
        "--quick", action="store_true", help="fewer cases; written as <machine>-channels-quick"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the GPU if there is one and its kernels are built"
    )
    parser.add_argument(
        "--minutes", type=float, default=22, help="begin nothing more after so many minutes [22]"
    )
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for the results")
    args = parser.parse_args(argv)
    try:
        device = devices.choose(args.device)
    except ValueError as error:
        print(f"python -m benchmarks.channels: {error}", file=sys.stderr)
        return 2
    sweep = QUICK if args.quick else FULL
    results = run(on_gpu(sweep) if device.type == "cuda" else sweep, device, args.minutes)
    name = machine.slug(results.machine) + "-channels" + ("-quick" if args.quick else "")
    return publish(results, args.out, name)


if __name__ == "__main__":
    sys.exit(main())

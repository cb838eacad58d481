"""Timing and memory: medians of interleaved calls, and peaks that belong to one case only.

On a shared machine the speed of everything drifts by the second. Whatever is to be compared is therefore
called in turn, round after round in alternating order, and a ratio is the median of the ratios within the
rounds.
"""

from __future__ import annotations

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SLOW_MS = 500.0  # a task this slow is not worth more rounds than it must have
MAX_CALLS = 9  # of a fast task per round, so that its median is not one sample beside a slow task's one


@dataclass(frozen=True)
class Task:
    """What is timed: run(prepare(round)). `prepare` is not timed; it picks the view or builds the graph."""

    run: Callable[[Any], Any]
    prepare: Callable[[int], Any] = lambda round_index: round_index


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one task, one value per round (the median of the round's calls)."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def best(self) -> float:
        """The quickest round: nearer than the median to what an idle machine would do."""
        return min(self.rounds)

    def ratio(self, other: Timing) -> float:
        """How many times as long as `other` this took: the median over the rounds that both were in."""
        return statistics.median(a / b for a, b in zip(self.rounds, other.rounds))


@dataclass(frozen=True)
class Effort:
    """How long to measure one set of tasks."""

    seconds: float = 2.0
    min_rounds: int = 3
    max_rounds: int = 100


def once(task: Task, round_index: int) -> float:
    """One call in milliseconds. The result is dropped after the clock has stopped."""
    argument = task.prepare(round_index)
    start = time.perf_counter()
    result = task.run(argument)
    elapsed = time.perf_counter() - start
    del result, argument
    return 1e3 * elapsed


def interleaved(tasks: dict[str, Task], effort: Effort) -> dict[str, Timing]:
    """Time all tasks against each other.

    The first calls warm up and choose the calls per round. A task as slow as SLOW_MS takes part in the first
    min_rounds rounds only, so that it does not eat the time of the others.
    """
    warm = {name: once(task, 0) for name, task in tasks.items()}
    slow = {name for name, ms in warm.items() if ms > SLOW_MS}
    warm |= {name: once(task, 1) for name, task in tasks.items() if name not in slow}
    slowest = max(warm.values())
    calls = {name: max(1, min(MAX_CALLS, int(0.3 * slowest / ms))) for name, ms in warm.items()}
    rounds: dict[str, list[float]] = {name: [] for name in tasks}
    with collector_off():
        end = time.perf_counter() + effort.seconds
        for index in range(effort.max_rounds):
            if index >= effort.min_rounds and time.perf_counter() > end:
                break
            for name in list(tasks) if index % 2 == 0 else reversed(list(tasks)):
                if name in slow and index >= effort.min_rounds:
                    continue
                samples = [once(tasks[name], index) for _ in range(calls[name])]
                rounds[name].append(statistics.median(samples))
    return {name: Timing(tuple(values)) for name, values in rounds.items()}


@contextmanager
def collector_off() -> Iterator[None]:
    """Python's cyclic collector would otherwise run inside some of the timed calls."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch, and with it our kernels, on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class PeakMemory:
    """Peak resident memory of this process since `restart`, in MiB.

    getrusage's ru_maxrss cannot serve alone: it starts at what the parent of the process held when it was
    started, and it cannot be set back. Linux's VmHWM can. Elsewhere ru_maxrss is used, and peaks only grow.
    """

    def __init__(self) -> None:
        self.base = 0.0
        self.restart()

    def restart(self) -> None:
        gc.collect()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.base = self.peak()

    def peak(self) -> float:
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
        except (OSError, StopIteration):
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20

    @property
    def rise(self) -> float:
        """MiB above what was held at the restart."""
        return self.peak() - self.base


def in_subprocess(module: str, argument: dict[str, Any], timeout: float = 300) -> dict[str, Any]:
    """Run `python -m module ARGUMENT` and read the JSON that it prints last.

    Raises RuntimeError, with the last line of its complaint, where that fails.
    """
    command = [sys.executable, "-m", module, json.dumps(argument)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        complaint = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"{module} failed: {complaint}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer

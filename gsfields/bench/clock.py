"""Timing: a clock for the CPU, one for a GPU, and medians of calls made in turn.

On a shared machine the speed of everything drifts by the second. Whatever is to be compared is therefore
called in turn, round after round in alternating order, and a ratio is the median of the ratios within the
rounds.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

SLOW_MS = 500.0  # a task this slow is not worth more rounds than it must have
HOLD_MS = (
    0.3  # how long a GPU is kept busy before each timed call, so that the host can queue the call meanwhile
)


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

    def percentile(self, percent: float) -> float:
        """Between the two nearest rounds by straight line."""
        ordered = sorted(self.rounds)
        place = percent / 100 * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    def ratio(self, other: Timing) -> float:
        """How many times as long as `other` this took: the median over the rounds that both were in."""
        return statistics.median(a / b for a, b in zip(self.rounds, other.rounds))


@dataclass(frozen=True)
class Effort:
    """How long to measure one set of tasks."""

    seconds: float = 2.0
    min_rounds: int = 3
    max_rounds: int = 100
    warm_up: int = 2  # calls of each task before the first round
    calls: int = 9  # at most, of a fast task per round: its median is not one sample beside a slow task's one


class Clock(Protocol):
    """Knows when work has ended on its device."""

    def ms(self, call: Callable[[], object]) -> float:
        """Milliseconds of one call. Its result is dropped after the clock has stopped."""

    def peak_mib(self, call: Callable[[], object]) -> float | None:
        """Memory of the device that the call took at its worst, above what was held before; None if unknown."""

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""


class WallClock:
    """For work that has ended when the call returns, as on the CPU."""

    def ms(self, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        result = call()
        elapsed = time.perf_counter() - start
        del result
        return 1e3 * elapsed

    def peak_mib(self, call: Callable[[], object]) -> float | None:
        return None  # nor is the call made: what a process has once held hides the peak, see benchmarks/memory.py

    def wait(self) -> None:
        pass


class CudaClock:
    """For work on a GPU's current stream: events around each call, with a cold L2 cache.

    Before each call a buffer of twice the cache's size is written on the same stream, which evicts what the last
    call left there. It is written often enough to keep the GPU busy for HOLD_MS, while the host queues the call:
    then the events time the GPU's work and not the host's, unless the call itself waits for the GPU (bin does,
    once, for the length of its list).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._buffer = torch.zeros(2 * cache, dtype=torch.uint8, device=device)
        self._writes = 1
        write_ms = statistics.median(self.ms(self._buffer.zero_) for _ in range(5))
        self._writes = min(100, math.ceil(HOLD_MS / max(write_ms, 1e-3)))

    def ms(self, call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(self._writes):
            self._buffer.zero_()
        start.record()
        result = call()
        end.record()
        end.synchronize()
        del result
        return float(start.elapsed_time(end))

    def peak_mib(self, call: Callable[[], object]) -> float | None:
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)


def clock_of(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else WallClock()


def once(task: Task, round_index: int, clock: Clock) -> float:
    """One call in milliseconds."""
    argument = task.prepare(round_index)
    return clock.ms(lambda: task.run(argument))


def interleaved(tasks: dict[str, Task], effort: Effort, clock: Clock | None = None) -> dict[str, Timing]:
    """Time all tasks against each other.

    The first calls warm up and choose the calls per round. A task as slow as SLOW_MS takes part in the first
    min_rounds rounds only, so that it does not eat the time of the others.
    """
    clock = clock or WallClock()
    warm = {name: once(task, 0, clock) for name, task in tasks.items()}
    slow = {name for name, ms in warm.items() if ms > SLOW_MS}
    for index in range(1, effort.warm_up):
        warm |= {name: once(task, index, clock) for name, task in tasks.items() if name not in slow}
    slowest = max(warm.values())
    calls = {name: max(1, min(effort.calls, int(0.3 * slowest / ms))) for name, ms in warm.items()}
    rounds: dict[str, list[float]] = {name: [] for name in tasks}
    with collector_off():
        end = time.perf_counter() + effort.seconds
        for index in range(effort.max_rounds):
            if index >= effort.min_rounds and time.perf_counter() > end:
                break
            for name in list(tasks) if index % 2 == 0 else reversed(list(tasks)):
                if name in slow and index >= effort.min_rounds:
                    continue
                samples = [once(tasks[name], index, clock) for _ in range(calls[name])]
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

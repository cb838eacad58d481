"""Clocks and medians; the GPU's clock on a simulated GPU, whose time passes only when something is called."""

import time
from types import SimpleNamespace

import pytest
import torch

from gsfields.bench import clock as clocks
from gsfields.bench.clock import CudaClock, Effort, Task, Timing, WallClock, clock_of, interleaved

CPU = torch.device("cpu")


class Gpu:
    """What CudaClock asks of torch.cuda: a time in milliseconds and a log of what was asked."""

    WRITE_MS = 0.125

    def __init__(self):
        self.now, self.log, self.held, self.peak = 0.0, [], 100 << 20, 0

    def pass_time(self, what, ms):
        self.log.append(what)
        self.now += ms
        return what

    def event(self, enable_timing):
        assert enable_timing
        event = SimpleNamespace(at=None, synchronize=lambda: self.log.append("wait"))

        def record():
            self.log.append("record")
            event.at = self.now

        event.record = record
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def allocate(self, size, *, dtype, device):
        assert (size, dtype) == (2 * 4096, torch.uint8)
        return SimpleNamespace(zero_=lambda: self.pass_time("flush", self.WRITE_MS))

    def reset_peak(self, device):
        self.peak = self.held


@pytest.fixture
def gpu(monkeypatch):
    gpu = Gpu()
    fake = {
        "Event": gpu.event,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=4096),
        "memory_allocated": lambda device: gpu.held,
        "reset_peak_memory_stats": gpu.reset_peak,
        "max_memory_allocated": lambda device: gpu.peak,
        "synchronize": lambda device: gpu.log.append("wait"),
    }
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "zeros", gpu.allocate)
    return gpu


def test_gpu_calls_are_timed_between_events_after_a_flush_that_keeps_it_busy(gpu):
    clock = CudaClock(CPU)
    gpu.log.clear()
    assert clock.ms(lambda: gpu.pass_time("call", 7)) == 7
    flushes = gpu.log.count("flush")
    assert gpu.log == ["flush"] * flushes + ["record", "call", "record", "wait"]
    assert clocks.HOLD_MS <= flushes * Gpu.WRITE_MS < clocks.HOLD_MS + Gpu.WRITE_MS


def test_gpu_peak_memory_is_that_of_the_call_alone(gpu):
    def call():
        gpu.peak = max(gpu.peak, gpu.held + (3 << 20))

    gpu.peak = 900 << 20  # of the past
    assert CudaClock(CPU).peak_mib(call) == 3


def test_gpu_tasks_take_turns_like_any_other(gpu):
    tasks = {
        name: Task(lambda _, name=name, ms=ms: gpu.pass_time(name, ms)) for name, ms in (("a", 2), ("b", 8))
    }
    timings = interleaved(tasks, Effort(0, min_rounds=30, warm_up=10, calls=1), CudaClock(CPU))
    assert timings["b"].rounds == (8,) * 30 and timings["b"].ratio(timings["a"]) == 4
    assert [what for what in gpu.log if what in tasks][20:26] == ["a", "b", "b", "a", "a", "b"]
    assert gpu.log.count("a") == 40


def test_interleaved_times_the_run_and_not_the_preparation():
    slow = Task(run=lambda _: time.sleep(0.004), prepare=lambda _: time.sleep(0.02))
    quick = Task(run=lambda _: time.sleep(0.001))
    timings = interleaved({"slow": slow, "quick": quick}, Effort(0, min_rounds=3))
    assert len(timings["slow"].rounds) == len(timings["quick"].rounds) == 3
    assert 4 <= timings["slow"].best < 20
    assert timings["slow"].ratio(timings["quick"]) > 1


def test_percentiles_lie_between_the_rounds():
    timing = Timing((5.0, 1.0, 3.0, 2.0, 4.0))
    assert [timing.percentile(p) for p in (0, 10, 50, 90, 100)] == pytest.approx([1, 1.4, 3, 4.6, 5])
    assert Timing((2.0,)).percentile(90) == 2


def test_the_cpu_has_a_wall_clock_that_knows_no_peak():
    clock = clock_of(CPU)
    assert isinstance(clock, WallClock) and clock.peak_mib(lambda: None) is None
    assert 2 <= clock.ms(lambda: time.sleep(0.002)) < 100

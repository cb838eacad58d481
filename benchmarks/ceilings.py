"""What the device itself can do, measured in the same run as the kernels: the two limits of the roofline."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.results import Ceilings
from gsfields.bench.clock import Clock

COPY_BYTES = 1 << 30
MATRIX = 8192
CALLS = 10


def measure(
    device: torch.device, clock: Clock, copy_bytes: int = COPY_BYTES, matrix: int = MATRIX
) -> Ceilings:
    """Bandwidth of a large copy on the device (bytes read and written), and the fp32 rate (a multiplication and an
    addition are two) of a large matrix product without TF32. On a GPU also the rates of one with TF32 and of one of
    bfloat16 matrices: those of its tensor cores.
    """

    def rate(dtype: torch.dtype = torch.float32, precision: str = "highest") -> float:
        with matmul_precision(precision):
            return 2 * matrix**3 / multiplying(device, clock, matrix, dtype) / 1e6

    tensor_cores = device.type == "cuda"
    return Ceilings(
        memory_gb_per_s=2 * copy_bytes / copying(device, clock, copy_bytes) / 1e6,
        fp32_gflop_per_s=rate(),
        tf32_gflop_per_s=rate(precision="high") if tensor_cores else None,
        bf16_gflop_per_s=rate(torch.bfloat16) if tensor_cores else None,
    )


def copying(device: torch.device, clock: Clock, size: int) -> float:
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return _median(clock, lambda: target.copy_(source))


def multiplying(device: torch.device, clock: Clock, size: int, dtype: torch.dtype = torch.float32) -> float:
    a = torch.rand(size, size, device=device).to(dtype)  # products of ones draw less power and run faster
    out = torch.empty_like(a)
    return _median(clock, lambda: torch.mm(a, a, out=out))


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """torch's own precision of float32 products: "highest" or, with TF32, "high"."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _median(clock: Clock, call: Callable[[], object]) -> float:
    for _ in range(2):
        clock.ms(call)
    return statistics.median(clock.ms(call) for _ in range(CALLS))

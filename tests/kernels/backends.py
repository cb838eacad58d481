"""The implementations of the kernels, of which tests run those that this machine can.

emulated-*: the CUDA kernels, run on the CPU by tests/emulator. They take the place of the CPU kernels for the length of
a test, so that the ops, their gradients and all that is built on them run as on a GPU, on CPU tensors. The dtype is
followed by the order in which the threads of a block run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from gsfields import ops
from tests.emulator import build as emulator
from tests.kernels.compare import assert_bitwise, assert_relative

ISAS = ("baseline", "avx2", "avx512")
CPU = ("cpu-float64", *(f"cpu-float32-{isa}" for isa in ISAS))
CUDA = ("cuda-float32", "cuda-float64")
EMULATED = ("emulated-float32-forward", "emulated-float32-reverse", "emulated-float64-random")


@dataclass(frozen=True)
class Backend:
    name: str
    device: str
    dtype: torch.dtype

    def move(self, scene):
        """A scene (or a tensor) in this backend's dtype and on its device."""
        if isinstance(scene, torch.Tensor):
            return scene.to(self.device, self.dtype)
        return scene.to(self.dtype, self.device)

    def tolerance(self, float32: float, float64: float = 1e-10) -> float:
        return float64 if self.dtype == torch.float64 else float32

    def gradient_tolerance(self, float64: float = 1e-10) -> float:
        """The backward pass of CUDA recovers the transmittance by approximate reciprocals, over long lists."""
        return self.tolerance(1e-5 if self.name.startswith("cpu") else 1e-4, float64)

    @property
    def adds_in_any_order(self) -> bool:
        """The last bits of gradients vary from run to run. (Under the emulator the order is fixed.)"""
        return self.device == "cuda"

    def assert_repeats(self, gradient: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
        """The same bits, or where sums have no order, the same up to rounding."""
        if self.adds_in_any_order:
            assert_relative(gradient, expected, self.tolerance(1e-5, 1e-12), what)
        else:
            assert_bitwise(gradient, expected, what)


def cuda_problem() -> str | None:
    """Why the CUDA kernels cannot be tested here, or None."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("gsfields::blend_backward", "CUDA"):
        return "the CUDA kernels are not built"
    return None


@contextmanager
def cuda_kernels_on_the_cpu(order: str) -> Iterator[None]:
    """Ops on CPU tensors run the emulated CUDA kernels."""
    if problem := emulator.missing():
        pytest.skip(problem)
    emulator.load()
    replaced = torch.library.Library("gsfields", "IMPL", "CPU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that kernels are replaced
        for op in emulator.ops():
            replaced.impl(op, getattr(torch.ops.gsfields_emulated, op).default, allow_override=True)
    try:
        with emulator.order(order, seed=1):
            yield
    finally:
        replaced._destroy()


@contextmanager
def running(name: str) -> Iterator[Backend]:
    """The backend of that name, in use until the end of the block; skips where it cannot run."""
    device, dtype, *how = name.split("-")
    if device == "cuda" and (problem := cuda_problem()):
        pytest.skip(problem)
    if device == "emulated":
        with cuda_kernels_on_the_cpu(how[0]):
            yield Backend(name, "cpu", getattr(torch, dtype))
        return
    if how and how[0] not in ops.available_cpu_isas():
        pytest.skip(f"this processor or build has no {how[0]}")
    ops.set_cpu_isa(how[0] if how else "auto")
    try:
        yield Backend(name, device, getattr(torch, dtype))
    finally:
        ops.set_cpu_isa("auto")


ALL = (*CPU, *CUDA, *EMULATED)

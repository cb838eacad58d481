"""The `backend` fixture: every kernel test runs once per implementation that this machine can run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from gsfields import ops

ISAS = ("baseline", "avx2", "avx512")
NAMES = ("cpu-float64", *(f"cpu-float32-{isa}" for isa in ISAS), "cuda-float32")


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


def cuda_problem() -> str | None:
    """Why the CUDA kernels cannot be tested here, or None."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    try:
        ones = torch.ones(1, 16, 16, 1, device="cuda")
        ops.ssim_map(ones, ones)
    except NotImplementedError:
        return "the CUDA kernels are not built"
    return None


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    name = request.param
    device, dtype, *isa = name.split("-")
    if device == "cuda" and (problem := cuda_problem()):
        pytest.skip(problem)
    if isa and isa[0] not in ops.available_cpu_isas():
        pytest.skip(f"this processor or build has no {isa[0]}")
    ops.set_cpu_isa(isa[0] if isa else "auto")
    yield Backend(name, device, getattr(torch, dtype))
    ops.set_cpu_isa("auto")

"""The native libraries, the instruction sets of the CPU kernels, and what the ops of the other modules share."""

import os
from pathlib import Path

import torch
from torch import Tensor

TILE = 16
"""Pixels along each side of a tile."""

_LIBRARY = Path(__file__).parents[1] / "_C.so"
if not _LIBRARY.exists():
    raise ImportError(
        f"{_LIBRARY.name} is missing in the package gsfields: build it with `pip install .` or `make build`"
    )
torch.ops.load_library(str(_LIBRARY))
CUDA_LIBRARY = _LIBRARY.with_name("_cuda.so")
if torch.version.cuda and CUDA_LIBRARY.exists():
    torch.ops.load_library(str(CUDA_LIBRARY))
native = torch.ops.gsfields


def _refuse_cuda(op: str) -> None:
    """Makes an op that has no CUDA kernel say so in one sentence."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"gsfields::{op}", "CUDA"):
        return

    def refuse(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"{op} has no CUDA kernel in this build; move the tensors to the CPU")

    torch.library.impl(f"gsfields::{op}", "cuda", refuse)


for _op in (
    "project",
    "spherical_harmonics",
    "respond",
    "bin_tiles",
    "blend",
    "lift",
    "seen_pairs",
    "ssim",
    "contrast",
    "adam_rows",
    "follow_rows",
    "sum_bags",
):
    _refuse_cuda(_op)


# ---- instruction sets -----------------------------------------------------------------------------------------

_ISAS = ("baseline", "avx2", "avx512")


def available_cpu_isas() -> tuple[str, ...]:
    """The instruction sets with kernels in the library that this CPU can run, slowest first."""
    return tuple(name for i, name in enumerate(_ISAS) if native.cpu_isa_available(i))


def cpu_isa() -> str:
    """The instruction set whose kernels are in use."""
    return _ISAS[native.cpu_isa()]


def set_cpu_isa(name: str) -> None:
    """Uses the kernels of one instruction set, or of the best one for "auto".

    Raises ValueError if this CPU lacks it. The environment variable GSFIELDS_CPU_ISA does the same at import.
    """
    available = available_cpu_isas()
    if name == "auto":
        name = available[-1]
    if name not in available:
        raise ValueError(f"cpu isa is {name!r}, but this CPU can run {', '.join(available)} or 'auto'")
    native.set_cpu_isa(_ISAS.index(name))


if os.environ.get("GSFIELDS_CPU_ISA"):
    set_cpu_isa(os.environ["GSFIELDS_CPU_ISA"])


def same_device(**tensors: Tensor | None) -> None:
    """Refuses mixed devices in the fake kernels, which the dispatcher prefers over those that would check."""
    given = {name: t.device for name, t in tensors.items() if t is not None}
    first = next(iter(given))
    for name, device in given.items():
        if device != given[first]:
            raise ValueError(
                f"{name} is on device {device} and {first} on {given[first]}, but they must share one"
            )

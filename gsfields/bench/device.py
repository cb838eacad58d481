"""Which device is measured, and what it is."""

from __future__ import annotations

import torch


def gpu_problem() -> str | None:
    """Why torch cannot use a GPU here, or None."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no usable NVIDIA GPU and driver"
    return None


def cuda_problem() -> str | None:
    """Why the CUDA kernels cannot be measured here, or None."""
    from gsfields.ops.library import CUDA_LIBRARY

    if (problem := gpu_problem()) is not None:
        return problem
    if not CUDA_LIBRARY.exists():
        return f"the CUDA kernels are not built ({CUDA_LIBRARY.name} is missing): GSFIELDS_CUDA=1 builds them"
    return None


def choose(name: str | None = None) -> torch.device:
    """The device of that name, or the GPU where it can be used and else the CPU.

    Raises ValueError where "cuda" is asked for and cannot be used.
    """
    if name not in (None, "cpu", "cuda"):
        raise ValueError(f"device is {name!r}, but must be 'cpu' or 'cuda'")
    if name == "cpu":
        return torch.device("cpu")
    problem = cuda_problem()
    if name == "cuda" and problem is not None:
        raise ValueError(f"device is 'cuda', but {problem}")
    return torch.device("cpu" if problem else "cuda")


def title(device: torch.device) -> str:
    """The device in a few words."""
    from gsfields import ops

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, torch {torch.__version__}"
    return f"CPU, {torch.get_num_threads()} threads, {ops.cpu_isa()}, torch {torch.__version__}"

"""What the figures were measured on: the processor and the versions, no name of the machine."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from gsfields import ops


def describe(device: torch.device | None = None) -> dict[str, Any]:
    """CPU model, cores, instruction sets, versions, and the GPU if that is the device."""
    cpu = _proc_cpuinfo()
    model = cpu.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in cpu:  # virtual machines often shorten the model's name until it says nothing
        model += f" (family {cpu['cpu family']}, model {cpu.get('model', '?')})"
    return {
        "cpu": model,
        "cores": available_cores(),
        "isa": ops.cpu_isa(),
        "isas": list(ops.available_cpu_isas()),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        **(_gpu(device) if device is not None and device.type == "cuda" else {}),
    }


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "gpu_l2_mib": round(properties.L2_cache_size / 2**20, 1),
        "gpu_multiprocessors": properties.multi_processor_count,
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> float:
    """Processes that wanted a core over the last minute, on average; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated on the device; infinite where the system does not tell."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(float(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


def slug(machine: dict[str, Any]) -> str:
    """A file name for the machine, such as amd-epyc-family-26-model-2-2-cores-avx512, or for its GPU."""
    words = machine.get("gpu") or f"{machine['cpu']} {machine['cores']} cores {machine['isa']}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _proc_cpuinfo() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}

"""What timing needs around it: a number of threads, peaks that belong to one case only, processes of their own."""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch, and with it our kernels, on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether that is what the error says. Within our ops the allocator's complaint comes through torch's stable ABI,
    as what it calls a failed call; that of a CPU is no class of its own.
    """
    words = ("API call failed", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


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


def options(doc: str | None, seconds: float) -> argparse.Namespace:
    """What every small measurement can be told, --size, --seconds, --threads and --device; sets torch's threads."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None)
    parser.add_argument("--size", type=int, default=512, help="pixels along each side (default 512)")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"for each row (default {seconds})")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    return asked

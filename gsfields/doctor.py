"""`gsfields doctor`: what is installed, built and usable here, and what to do about what is missing.

It still reports when torch or the native library is missing or broken: it takes nothing for granted.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

from gsfields import __version__

PACKAGE = Path(__file__).parent
TORCH_MIN = (2, 10)  # the oldest torch whose stable ABI has all that the native library calls
OPTIONAL = {
    "av": "MP4 files: pip install av",
    "opencv-python-headless": "2D motion masks (gsfields prep motion): pip install opencv-python-headless",
    "tensorboard": "training curves in a browser: pip install tensorboard",
    "gsplat": "only compared with in the tests and benchmarks: pip install gsplat==1.5.3",
}


@dataclass
class Finding:
    """One line of the report; `remedy` says what to do if something is missing."""

    subject: str
    detail: str
    ok: bool = True
    remedy: str = ""


def main() -> int:
    """Print the report; 0 if the CPU backend is usable, else 1."""
    findings = examine()
    print(render(findings))
    return int(any(finding.subject == "CPU backend" and not finding.ok for finding in findings))


def report() -> str:
    """The whole report as text."""
    return render(examine())


def render(findings: list[Finding]) -> str:
    lines = [f"{'ok' if f.ok else '--':4}{f.subject:13} {f.detail}" for f in findings]
    remedies = [f"  {f.subject}: {f.remedy}" for f in findings if f.remedy]
    return "\n".join(
        [*lines, *(["", "To do about what is missing, if you want it:", *remedies] if remedies else [])]
    )


def examine() -> list[Finding]:
    torch = _import("torch")
    cpu = _cpu_backend(torch)
    return [
        Finding("gsfields", f"{__version__}, in {PACKAGE}"),
        Finding("Python", f"{platform.python_version()}, {sys.executable}"),
        _torch(torch),
        cpu,
        *([_instructions()] if cpu.ok else []),
        _threads(torch),
        _cuda_backend(torch),
        _gpu(torch),
        *(_optional(name, remedy) for name, remedy in OPTIONAL.items()),
    ]


def _torch(torch: ModuleType | Exception) -> Finding:
    install = "pip install torch (its CPU build is much smaller, see https://pytorch.org/get-started/locally)"
    if isinstance(torch, Exception):
        return Finding("torch", f"cannot be imported: {_sentence(torch)}", False, install)
    detail = f"{torch.__version__}, CUDA {torch.version.cuda or 'not included'}"
    if tuple(map(int, torch.__version__.split(".")[:2])) < TORCH_MIN:
        return Finding("torch", detail, False, "pip install --upgrade 'torch>=2.10'")
    return Finding("torch", detail)


def _cpu_backend(torch: ModuleType | Exception) -> Finding:
    library = PACKAGE / "_C.so"
    if not library.is_file():
        remedy = "build it: pip install . (or make build) in the source tree; needs g++"
        return Finding("CPU backend", f"not built: {library} does not exist", False, remedy)
    built = f"{library.name}{_compiler(library)}"
    if isinstance(torch, Exception):
        return Finding("CPU backend", f"{built}, unusable without torch", False, "see torch")
    ops = _import("gsfields.ops")
    if isinstance(ops, Exception):
        remedy = (
            "build it again for this machine: pip install --force-reinstall --no-deps . in the source tree"
        )
        if isinstance(ops, ValueError):  # GSFIELDS_CPU_ISA names what this CPU lacks
            remedy = "unset GSFIELDS_CPU_ISA, or set it to one of these"
        return Finding("CPU backend", f"{built}, cannot be loaded: {_sentence(ops)}", False, remedy)
    return Finding("CPU backend", built)


def _instructions() -> Finding:
    """Called only where the CPU backend is usable."""
    from gsfields import ops

    built = "baseline, avx2, avx512" if platform.machine().lower() in ("x86_64", "amd64") else "baseline"
    here = ", ".join(ops.available_cpu_isas())
    return Finding("instructions", f"{ops.cpu_isa()} in use; built: {built}; on this CPU: {here}")


def _threads(torch: ModuleType | Exception) -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    used = "unknown" if isinstance(torch, Exception) else torch.get_num_threads()
    return Finding(
        "threads", f"{used} used, {cores} processors allowed (OMP_NUM_THREADS or torch.set_num_threads)"
    )


def _cuda_backend(torch: ModuleType | Exception) -> Finding:
    library = PACKAGE / "_cuda.so"
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if not library.is_file():
        remedy = "GSFIELDS_CUDA=1 pip install . in the source tree builds it, or says what that needs"
        return Finding("CUDA backend", f"not built; nvcc: {nvcc or 'not found'}", False, remedy)
    built = f"{library.name}{_compiler(library)}"
    if isinstance(torch, Exception) or not torch.cuda.is_available():
        return Finding("CUDA backend", f"{built}, unused: torch sees no GPU", False, "see GPU")
    return Finding("CUDA backend", f"{built}, usable")


def _gpu(torch: ModuleType | Exception) -> Finding:
    driver = _nvidia_driver()
    if isinstance(torch, Exception):
        return Finding("GPU", f"unknown without torch; driver {driver or 'not found'}", False)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("GPU", f"{', '.join(names)}; driver {driver or 'unknown'}")
    if driver is None:
        return Finding("GPU", "none found (no NVIDIA driver); the CPU backend needs none", False)
    remedy = "install a torch with CUDA, see https://pytorch.org/get-started/locally, then gsfields again"
    return Finding("GPU", f"driver {driver}, but torch {torch.__version__} cannot use it", False, remedy)


def _optional(name: str, remedy: str) -> Finding:
    version = _version(name)
    return Finding(name, version or "not installed", version is not None, "" if version else remedy)


def _nvidia_driver() -> str | None:
    if (smi := shutil.which("nvidia-smi")) is None:
        return None
    query = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return answer[0] if answer else None


def _import(name: str) -> ModuleType | Exception:
    """The module, or why it cannot be imported: any error in it counts, for the report must still appear."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        return error


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _compiler(library: Path) -> str:
    """What compiled the library, from the note that GCC and clang leave in it (ELF section .comment)."""
    note = re.search(rb"(GCC): \([^)]*\) ([\d.]+)|(clang) version ([\d.]+)", library.read_bytes())
    return f" (compiled by {b' '.join(filter(None, note.groups())).decode()})" if note else ""


def _sentence(error: Exception) -> str:
    """The error and its cause in one line."""
    parts = [
        str(e).strip().splitlines()[0] for e in (error, error.__cause__) if e is not None and str(e).strip()
    ]
    return f"{type(error).__name__}: {'; '.join(parts)}"

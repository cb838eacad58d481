"""Compiles the emulator with the CUDA kernels, for Python and for programs under the sanitizers.

build("plain")           torch ops gsfields_emulated::*, which load() loads
program(source, "asan")  a program of its own: sanitizers cannot be loaded into Python
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import importlib.util
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = Path("tests/emulator")
BUILD = Path("build/emulator")  # relative to ROOT, where the compiler runs

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi"]
FLAGS = ["-std=c++20", "-g", "-fPIC", "-fvisibility=hidden", *WARNINGS, f"-I{EMULATOR}", "-Icsrc"]
VARIANTS = {
    "plain": ["-O2"],
    "asan": [
        "-O1",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize-recover=all",
    ],
    "tsan": ["-O1", "-fsanitize=thread"],
    # What other processors use to switch stacks, and kernels where a function of the emulator is faster than shuffles.
    "fallbacks": ["-O2", "-DGSF_EMULATOR_UCONTEXT", "-DGSF_EMULATE_SHUFFLES"],
}
# ThreadSanitizer watches kernels, but not the emulator, whose own data the threads of a block share.
UNWATCHED = ["-O2", "-DGSF_EMULATOR_TSAN"]
RENAMED = ["-Dgsfields=gsfields_emulated"]  # so that nothing is shared with gsfields/_C.so
RUNTIME = ("emulator.cpp", "fibers.cpp", "stream.cpp")
STREAM = 0x57EA  # the stream of ops.cpp


class Ninja:
    """Compiles and links with ninja: only what changed, one process at a time."""

    def __init__(self, name: str) -> None:
        self.folder = BUILD / name
        self.lines = [
            f"builddir = {self.folder}",
            "rule compile",
            "  command = $tool -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = $tool $in -o $out $libs",
        ]

    def compile(self, source: Path, flags: list[str], name: str = "") -> str:
        output = self.folder / f"{name or '_'.join(source.parts[1:])}.o"
        self.lines += [f"build {output}: compile {source}", f"  tool = g++ {' '.join(flags)} -x c++"]
        return str(output)

    def link(self, name: str, flags: list[str], objects: list[str], libs: list[str]) -> Path:
        output = self.folder / name
        self.lines += [f"build {output}: link {' '.join(objects)}"]
        self.lines += [f"  tool = g++ {' '.join(flags)}", f"  libs = {' '.join(libs)}"]
        return ROOT / output

    def run(self) -> None:
        folder = ROOT / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "build.ninja").write_text("\n".join(self.lines) + "\n")
            command = [ninja(), "-j2", "-f", str(self.folder / "build.ninja")]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the emulator does not compile:\n{done.stdout}{done.stderr}")


def ninja() -> str:
    if importlib.util.find_spec("ninja"):
        import ninja

        return str(Path(ninja.BIN_DIR, "ninja"))
    return shutil.which("ninja") or "ninja"


def missing() -> str | None:
    """What the emulator needs and this machine lacks, or None."""
    tools = ("g++", "ninja" if not importlib.util.find_spec("ninja") else "g++")
    return next((f"{tool} is not installed" for tool in tools if shutil.which(tool) is None), None)


def missing_sanitizer(variant: str) -> str | None:
    """The library that g++ lacks for a variant, or None."""
    for name in {"asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}.get(variant, ()):
        command = ["g++", f"-print-file-name={name}"]
        if subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == name:
            return f"g++ has no {name}"
    return None


def runtime(to: Ninja, variant: str) -> list[str]:
    flags = [*FLAGS, *(UNWATCHED if variant == "tsan" else VARIANTS[variant])]
    return [to.compile(EMULATOR / name, flags) for name in RUNTIME]


def kernels(to: Ninja, flags: list[str]) -> list[str]:
    """The CUDA kernels, without those of CUB, for which sort.cpp stands in."""
    sources = sorted(path.relative_to(ROOT) for path in ROOT.glob("csrc/cuda/*.cu"))
    sources = [EMULATOR / "sort.cpp" if source.name == "sort.cu" else source for source in sources]
    return [to.compile(source, flags) for source in sources]


def build(variant: str = "plain") -> Path:
    """The library of the ops; variant "plain" or "fallbacks"."""
    flags, torch_folder = [*FLAGS, *VARIANTS[variant]], Path(torch.__file__).parent
    to = Ninja(variant)
    torch_flags = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(torch_folder / "include")]
    objects = runtime(to, variant) + kernels(to, [*flags, *RENAMED])
    objects.append(to.compile(EMULATOR / "ops.cpp", [*flags, *torch_flags]))
    libs = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-Wl,-z,defs"]
    library = to.link("ops.so", ["-shared"], objects, libs)
    to.run()
    return library


def program(source: Path, variant: str, *, with_kernels: bool = True) -> Path:
    """A program of the source, the emulator and (with_kernels) the kernels of both backends."""
    flags = [*FLAGS, *VARIANTS[variant]]
    to = Ninja(f"{source.stem}-{variant}")
    objects = [*runtime(to, variant), to.compile(source, flags)]
    if with_kernels:
        objects += kernels(to, flags)
        objects += [
            to.compile(Path("csrc/cpu") / f"{name}.cpp", flags) for name in ("bin", "dispatch", "stages")
        ]
        objects.append(to.compile(Path("csrc/cpu/isa.cpp"), [*flags, "-DGSFIELDS_ISA=baseline"]))
    output = to.link(source.stem, VARIANTS[variant], objects, ["-pthread"])
    to.run()
    return output


# ---------------------------------------------------------------------------------------------- the ops in Python


def ops() -> list[str]:
    """The names of the ops that have kernels."""
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
    return [name.removeprefix("gsfields::") for name in registered if name.startswith("gsfields::")]


_kept: list[torch.library.Library] = []  # which takes its ops with it


@functools.cache
def load(variant: str = "plain") -> ctypes.CDLL:
    """Builds and loads torch.ops.gsfields_emulated, once per process. Only one variant can be loaded."""
    import gsfields.ops  # defines gsfields::*  # noqa: F401

    definitions = torch.library.Library("gsfields_emulated", "FRAGMENT")
    _kept.append(definitions)
    for name in ops():
        definitions.define(str(getattr(torch.ops.gsfields, name).default._schema).removeprefix("gsfields::"))
    path = str(build(variant))
    torch.ops.load_library(path)
    library = ctypes.CDLL(path)
    library.emulator_set_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
    library.emulator_report.restype = library.emulator_calls.restype = ctypes.c_char_p
    return library


@dataclass(frozen=True)
class Call:
    """What was launched, copied, filled or waited for on a stream."""

    kind: str  # launch, memset, host_to_device, device_to_host, device_to_device, synchronize
    stream: int
    bytes: int
    name: str


def calls() -> list[Call]:
    """All calls since reset()."""
    lines = load().emulator_calls().decode().splitlines()
    fields = (line.split(" ", 3) for line in lines)
    return [Call(kind, int(stream), int(size), name) for kind, stream, size, name in fields]


def count_calls() -> Counter[str]:
    """How many calls of each kind since reset(), all of which must have gone to the op's stream."""
    recorded = calls()
    assert all(call.stream == STREAM for call in recorded), recorded
    return Counter(call.kind for call in recorded)


def report() -> str:
    """What the last kernel that failed did wrong."""
    return load().emulator_report().decode()


def reset() -> None:
    load().emulator_reset()


ORDERS = ("forward", "reverse", "random")


@contextmanager
def order(name: str, seed: int = 0) -> Iterator[None]:
    """The order in which threads and blocks run."""
    load().emulator_set_order(ORDERS.index(name), seed)
    try:
        yield
    finally:
        load().emulator_set_order(0, 0)

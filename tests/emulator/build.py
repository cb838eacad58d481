"""Compiles the emulator with the CUDA kernels: as torch ops for Python, and as programs under the sanitizers, which
cannot be loaded into Python. Everything lies in build/emulator; ninja compiles what changed.
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
# A GPU fuses multiplications with additions, and so does this processor if it can.
CPUINFO = Path("/proc/cpuinfo")
FUSED = ["-mfma"] if CPUINFO.exists() and " fma " in CPUINFO.read_text() else []
FLAGS = ["-std=c++20", "-g", *FUSED, "-fPIC", "-fvisibility=hidden", *WARNINGS, f"-I{EMULATOR}", "-Icsrc"]
SANITIZERS = {
    "asan": ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"],
    "tsan": ["-fsanitize=thread"],
}
VARIANTS = {
    "plain": ["-O2"],
    # What other processors use to switch stacks, and kernels where a function of the emulator is faster than shuffles.
    "fallbacks": ["-O2", "-DGSF_EMULATOR_UCONTEXT", "-DGSF_EMULATE_SHUFFLES"],
    **{name: ["-O1", "-fno-omit-frame-pointer", *flags] for name, flags in SANITIZERS.items()},
}
# ThreadSanitizer watches kernels, but not the emulator, whose own data the threads of a block share.
RUNTIME = {**VARIANTS, "tsan": ["-O2", "-DGSF_EMULATOR_TSAN"]}
STREAM = 0x57EA  # the stream of ops.cpp


class Manifest:
    """What ninja can build, by target."""

    def __init__(self) -> None:
        self.lines = [
            f"builddir = {BUILD}",
            "rule compile",
            "  command = g++ -MD -MF $out.d $flags -x c++ -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = g++ $flags $in -o $out $libs",
        ]
        self.cpu = self.cpu_kernels()
        for variant in VARIANTS:
            self.add_variant(variant)

    def compile(self, folder: str, source: Path, flags: list[str]) -> Path:
        output = BUILD / folder / f"{'_'.join(source.parts[1:])}.o"
        self.lines += [f"build {output}: compile {source}", f"  flags = {' '.join([*FLAGS, *flags])}"]
        return output

    def link(self, output: Path, objects: list[Path], flags: list[str], libs: list[str]) -> None:
        self.lines += [f"build {output}: link {' '.join(map(str, objects))}"]
        self.lines += [f"  flags = {' '.join(flags)}", f"  libs = {' '.join(libs)}"]

    def kernels(self, folder: str, flags: list[str]) -> list[Path]:
        """The CUDA kernels, with sort.cpp instead of CUB."""
        sources = sorted(path.relative_to(ROOT) for path in ROOT.glob("csrc/cuda/*.cu"))
        sources = [EMULATOR / "sort.cpp" if source.name == "sort.cu" else source for source in sources]
        return [self.compile(folder, source, flags) for source in sources]

    def cpu_kernels(self) -> list[Path]:
        """What programs compare with; compiled once, without sanitizers, which have programs of their own for them."""
        flags = [*VARIANTS["plain"], "-DGSFIELDS_ISA=baseline"]
        sources = (Path("csrc/cpu") / f"{name}.cpp" for name in ("bin", "dispatch", "isa", "stages"))
        return [self.compile("plain", source, flags) for source in sources]

    def add_variant(self, variant: str) -> None:
        flags = VARIANTS[variant]
        runtime = [
            self.compile(variant, EMULATOR / f"{name}.cpp", RUNTIME[variant])
            for name in ("emulator", "fibers", "stream")
        ]
        for program in ("planted", "self_test"):
            objects = [*runtime, self.compile(variant, EMULATOR / f"{program}.cu", flags)]
            self.link(program_path(program, variant), objects, flags, [])
        if variant in SANITIZERS:
            objects = [*runtime, *self.kernels(variant, flags), *self.cpu]
            objects.append(self.compile(variant, EMULATOR / "scenes.cpp", flags))
            self.link(program_path("scenes", variant), objects, flags, [])
        else:
            self.add_ops(variant, runtime)

    def add_ops(self, variant: str, runtime: list[Path]) -> None:
        folder, torch_folder = f"{variant}-ops", Path(torch.__file__).parent
        torch_flags = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(torch_folder / "include")]
        renamed = ["-Dgsfields=gsfields_emulated"]  # so that nothing is shared with gsfields/_C.so
        objects = [*runtime, *self.kernels(folder, [*VARIANTS[variant], *renamed])]
        objects.append(self.compile(folder, EMULATOR / "ops.cpp", [*VARIANTS[variant], *torch_flags]))
        libs = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-Wl,-z,defs"]
        self.link(library_path(variant), objects, ["-shared"], libs)


def library_path(variant: str) -> Path:
    return BUILD / f"{variant}-ops" / "ops.so"


def program_path(name: str, variant: str) -> Path:
    return BUILD / variant / name


def make(target: Path) -> Path:
    """Builds the target, or waits for another process that does."""
    (ROOT / BUILD).mkdir(parents=True, exist_ok=True)
    with (ROOT / BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (ROOT / BUILD / "build.ninja").write_text("\n".join(Manifest().lines) + "\n")
        command = [find_ninja(), "-j2", "-f", str(BUILD / "build.ninja"), str(target)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the emulator does not compile:\n{done.stdout}{done.stderr}")
    return ROOT / target


def find_ninja() -> str:
    if importlib.util.find_spec("ninja"):
        import ninja

        return str(Path(ninja.BIN_DIR, "ninja"))
    return shutil.which("ninja") or ""


def build(variant: str = "plain") -> Path:
    """The library of the ops gsfields_emulated::*; variant "plain" or "fallbacks"."""
    return make(library_path(variant))


def program(name: str, variant: str) -> Path:
    """A program of this folder: planted and self_test in every variant, scenes under the sanitizers."""
    return make(program_path(name, variant))


def missing(variant: str = "plain") -> str | None:
    """What the emulator needs and this machine lacks, or None."""
    if shutil.which("g++") is None:
        return "g++ is not installed"
    if not find_ninja():
        return "ninja is not installed"
    for name in {"asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}.get(variant, ()):
        command = ["g++", f"-print-file-name={name}"]
        if subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == name:
            return f"g++ has no {name}"
    return None


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

"""Builds the native libraries; the metadata is in pyproject.toml.

gsfields/_C.so     ops and CPU kernels, always built
gsfields/_cuda.so  CUDA kernels, built where nvcc and csrc/cuda/*.cu are found

Both use only torch's stable ABI and contain no Python symbol, so one build is to serve torch 2.10 and later and
every Python 3. Compiling is left to ninja: in parallel, and only what changed. Environment variables:

GSFIELDS_CUDA        0: no CUDA library; 1: fail if it cannot be built; unset: build it where nvcc is
GSFIELDS_CUDA_ARCHS  compute capabilities, for example "80;90" (default: CUDA_ARCHS below), or native: of the GPUs here
GSFIELDS_LINEINFO    1: profilers and compute-sanitizer see the source lines of CUDA kernels
GSFIELDS_NVTX        1: the stages of the CUDA ops are named ranges (NVTX) in profiles
GSFIELDS_WERROR      1: compiler warnings are errors (`make test` sets it)
CXX, CXXFLAGS        another C++ compiler, also for nvcc; flags appended to ours, for example -g
"""

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

try:
    import setuptools
    from setuptools import Command, Extension, find_packages, setup
    from setuptools.command.bdist_wheel import bdist_wheel
    from setuptools.command.build_ext import build_ext
    from setuptools.errors import SetupError
except ImportError as missing:
    sys.exit(
        f"error: gsfields builds with setuptools 77 or later, but: {missing}: pip install --upgrade setuptools"
    )

ROOT = Path(__file__).resolve().parent
NATIVE = Path(
    "build/native"
)  # relative to ROOT, where ninja runs, so that no object knows where it was built
SANITIZE = Path("build/sanitize")
TORCH_MIN = (2, 10)
SETUPTOOLS_MIN = 77  # reads the licence in pyproject.toml
CUDA_MIN = (12, 0)  # C++20
CUDA_ARCHS = "75;80;86;89;90;100;120"  # 100 and 120 need CUDA 12.8

WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
]  # psabi: notes about passing vectors between functions of one object
CXXFLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*TORCH_MIN)
# csrc/cpu/isa.cpp is compiled once per instruction set; csrc/cpu/dispatch.cpp chooses one at run time.
X86 = platform.machine().lower() in ("x86_64", "amd64")
CPU_ISAS: dict[str, list[str]] = {"baseline": []}
if X86:
    CPU_ISAS["avx2"] = ["-march=x86-64-v3"]
    CPU_ISAS["avx512"] = ["-march=x86-64-v4", "-mprefer-vector-width=512"]


def switch(name: str) -> bool | None:
    """An environment variable that may be 0, 1 or unset."""
    setting = os.environ.get(name, "")
    if setting not in ("", "0", "1"):
        raise SetupError(f"{name} is {setting!r}, but must be 0, 1 or unset")
    return setting == "1" if setting else None


def find_torch() -> Path | None:
    """The installed torch's folder, found without importing it; None if there is none.

    Inside pip's isolated build the environment's packages are hidden from sys.path; their folder is known.
    Building against that torch saves downloading a second one.
    """
    spec = importlib.util.find_spec("torch")
    folders = [*(spec.submodule_search_locations or [] if spec else [])]
    folders += [os.path.join(sysconfig.get_path(name), "torch") for name in ("purelib", "platlib")]
    return next((Path(folder) for folder in folders if Path(folder, "version.py").is_file()), None)


def require_torch() -> Path:
    torch = find_torch()
    if torch is None:
        raise SetupError(
            "gsfields builds against torch, which is not installed: pip install torch -c constraints.txt"
        )
    version = re.search(r"__version__ = '(\d+)\.(\d+)", (torch / "version.py").read_text())
    if version is None or tuple(map(int, version.groups())) < TORCH_MIN:
        found = ".".join(version.groups()) if version else "an unknown version"
        raise SetupError(
            f"gsfields needs torch 2.10 or later, but {torch} is {found}: pip install --upgrade torch"
        )
    return torch


def require_tool(names: list[str], purpose: str, install: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    raise SetupError(f"{purpose} needs {' or '.join(names)}, which is not on the PATH: {install}")


def require_cxx() -> list[str]:
    """The compiler as a command, which CXX may name with arguments."""
    install = "install a C++20 compiler (Debian: apt install g++) or name one in CXX"
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    names = [command[0]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    return [require_tool(names, "building gsfields", install), *command[1:]]


def require_ninja() -> str:
    if importlib.util.find_spec(
        "ninja"
    ):  # the PyPI package: also found when its environment is not activated
        import ninja

        return str(Path(ninja.BIN_DIR, "ninja"))
    return require_tool(["ninja"], "building gsfields", "pip install ninja")


def find_nvcc() -> str | None:
    """The path of nvcc if the CUDA library is to be built, else None.

    Raises SetupError if GSFIELDS_CUDA=1 asks for the library and something it needs is missing.
    """
    wanted = switch("GSFIELDS_CUDA")
    if wanted is False:
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [os.path.join(home, "bin", "nvcc") for home in homes if home]
    candidates += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    nvcc = next((path for path in map(shutil.which, candidates) if path), None)
    missing = []
    if nvcc is None:
        missing.append(
            "nvcc was not found on the PATH, in CUDA_HOME or in /usr/local/cuda (install the CUDA toolkit)"
        )
    if not any(ROOT.glob("csrc/cuda/*.cu")):
        missing.append("this source tree has no CUDA kernels (csrc/cuda/*.cu)")
    if missing and wanted:
        raise SetupError(f"GSFIELDS_CUDA=1 asks for the CUDA library, but {' and '.join(missing)}")
    return None if missing else nvcc


def native_archs() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = re.findall(r"^\d+\.\d+$", subprocess.check_output(command, text=True), re.MULTILINE)
    except (OSError, subprocess.CalledProcessError):
        found = []
    if not found:
        raise SetupError(
            "GSFIELDS_CUDA_ARCHS is 'native', but nvidia-smi shows no GPU here: name capabilities, for example 90"
        )
    return sorted({capability.replace(".", "") for capability in found}, key=int)


def cuda_archs() -> list[str]:
    setting = os.environ.get("GSFIELDS_CUDA_ARCHS", CUDA_ARCHS)
    if setting == "native":
        return native_archs()
    archs = re.split(r"[;, ]+", setting.replace(".", ""))
    if not all(re.fullmatch(r"\d{2,3}[af]?", arch) for arch in archs):
        raise SetupError(
            f"GSFIELDS_CUDA_ARCHS is {setting!r}, but must look like {CUDA_ARCHS!r} or be 'native'"
        )
    return archs


def gencode_flags() -> list[str]:
    """Machine code for every architecture, and PTX of the last for those to come."""
    archs = cuda_archs()
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*flags, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


def check_nvcc(nvcc: str, cxx: str) -> None:
    """Raises SetupError if this nvcc cannot compile for the architectures or with the host compiler."""
    leave_out = "or leave the CUDA library out with GSFIELDS_CUDA=0"
    release = re.search(r"release (\d+)\.(\d+)", subprocess.check_output([nvcc, "--version"], text=True))
    if release is None or tuple(map(int, release.groups())) < CUDA_MIN:
        found = ".".join(release.groups()) if release else "of an unknown version"
        raise SetupError(
            f"gsfields needs nvcc 12.0 or later, but {nvcc} is {found}: install a newer toolkit, {leave_out}"
        )
    version = ".".join(release.groups())
    listed = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True)
    known = re.findall(r"compute_(\d+)", listed)
    archs = cuda_archs()
    if lacking := [arch for arch in archs if arch.rstrip("af") not in known]:
        fewer = ";".join(arch for arch in archs if arch not in lacking) or known[-1]
        raise SetupError(
            f"nvcc {version} ({nvcc}) cannot compile for compute capability {' and '.join(lacking)}: install another "
            f"toolkit (100 and 120 need CUDA 12.8), choose GSFIELDS_CUDA_ARCHS={fewer!r}, {leave_out}"
        )
    trial = [nvcc, f"-ccbin={cxx}", "-std=c++20", "-E", "-x=cu", os.devnull, "-o", os.devnull]
    done = subprocess.run(trial, capture_output=True, text=True)
    if done.returncode:
        reason = re.search(r"unsupported [^!]*![^!]*!", done.stderr)
        raise SetupError(
            f"nvcc {version} ({nvcc}) cannot use {cxx}: {reason[0] if reason else done.stderr.strip()} "
            f"Name an older one (CXX=g++-12), install a newer toolkit, {leave_out}"
        )


class Ninja:
    """One build.ninja: objects and what is linked from them, in their own folder."""

    COMPILE = "$compiler -MMD -MF $out.d -c $in -o $out"
    # What ptxas tells of each kernel is kept for tests/cuda/test_budget.py; warnings and errors are shown.
    COMPILE_CUDA = (
        f"$nvcc --version > $out.ptxas && {COMPILE} 2>> $out.ptxas; status=$$?; "
        "sed '1,/^Build /d; /^ptxas info/d; /bytes stack frame/d' $out.ptxas >&2; exit $$status"
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # $WERROR is the shell's: asking for -Werror later recompiles nothing that has compiled before.
        self.lines = [
            f"builddir = {folder}",  # where ninja keeps its log
            *self.compile_rule("compile", self.COMPILE),
            *self.compile_rule("compile_cuda", self.COMPILE_CUDA),
            "rule link",
            "  command = $linker $in -o $out $libs",
            "  description = link $out",
        ]

    @staticmethod
    def compile_rule(name: str, command: str) -> list[str]:
        how = [f"  command = {command}", "  description = compile $out", "  depfile = $out.d", "  deps = gcc"]
        return [f"rule {name}", *how]

    def compile(self, source: Path, compiler: list[str], name: str = "") -> str:
        output = self.folder / f"{name or '_'.join(source.parts[1:])}.o"
        nvcc = Path(compiler[0]).name == "nvcc"
        rule, werror = ("compile_cuda", "$$NVCC_WERROR") if nvcc else ("compile", "$$WERROR")
        self.lines += [f"build {output}: {rule} {source}", f"  compiler = {shlex.join(compiler)} {werror}"]
        self.lines += [f"  nvcc = {shlex.quote(compiler[0])}"] if nvcc else []
        return str(output)

    def link(self, name: str, linker: list[str], objects: list[str], libs: list[str]) -> None:
        self.lines += [f"build {self.folder / name}: link {' '.join(objects)}"]
        self.lines += [f"  linker = {shlex.join(linker)}", f"  libs = {shlex.join(libs)}"]

    def run(self) -> None:
        file = ROOT / self.folder / "build.ninja"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(self.lines) + "\n")
        flags = {"WERROR": "-Werror", "NVCC_WERROR": "-Werror=all-warnings -Xcompiler=-Werror"}
        strict = flags if switch("GSFIELDS_WERROR") else dict.fromkeys(flags, "")
        if subprocess.run([require_ninja(), "-f", str(file)], cwd=ROOT, env=os.environ | strict).returncode:
            raise SetupError("compiling gsfields failed; the compiler's message is above")


def sources(pattern: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in ROOT.glob(pattern))


def cpu_objects(ninja: Ninja, compiler: list[str]) -> list[str]:
    """The CPU kernels, which know nothing of torch: isa.cpp once per instruction set, the rest once."""
    compiler = [*compiler, "-Icsrc", *(["-DGSFIELDS_X86=1"] if X86 else [])]
    objects = [
        ninja.compile(source, compiler) for source in sources("csrc/cpu/*.cpp") if source.name != "isa.cpp"
    ]
    for isa, flags in CPU_ISAS.items():
        command = [*compiler, f"-DGSFIELDS_ISA={isa}", *flags]
        objects.append(ninja.compile(Path("csrc/cpu/isa.cpp"), command, f"isa_{isa}"))
    return objects


def build_libraries(nvcc: str | None) -> None:
    """_C.so, and with nvcc _cuda.so, in build/native."""
    ninja, torch, cxx = Ninja(NATIVE), require_torch(), require_cxx()
    headers = torch / "include"
    torch_flags = [TORCH_TARGET, "-Icsrc", "-isystem", str(headers)]
    anonymous = (
        f"-ffile-prefix-map={headers}=torch"  # no path of this machine in the messages of torch's macros
    )
    libs = [f"-L{torch / 'lib'}", "-ltorch_cpu"]
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    base = [*cxx, *CXXFLAGS, *WARNINGS, *extra]

    objects = [ninja.compile(source, [*base, *torch_flags, anonymous]) for source in sources("csrc/*.cpp")]
    objects += cpu_objects(ninja, base)
    ninja.link("_C.so", [*cxx, "-shared", "-Wl,-z,defs", "-Wl,--as-needed"], objects, libs)
    if nvcc:
        # nvcc passes .cpp files and the link on to the host compiler, adding its own headers and libcudart.
        check_nvcc(nvcc, cxx[0])
        host = [nvcc, f"-ccbin={cxx[0]}", "-std=c++20", "-O3", f"-Xcompiler={','.join(CXXFLAGS[2:])}"]
        host += ["-DGSFIELDS_NVTX"] if switch("GSFIELDS_NVTX") else []
        # Registers that spill to memory and stack frames are warnings, so errors where warnings are: in our
        # kernels, not in those that sort.cu takes from CUB.
        resources = ["-Xptxas=-v", "-Xptxas=-warn-spills,-warn-lmem-usage"]
        lines = ["-lineinfo"] if switch("GSFIELDS_LINEINFO") else []  # which names the folder of the sources
        device = [*host, "-Icsrc", "--threads=0", *resources, *lines, *gencode_flags()]
        binding = [*host, f"-Xcompiler={','.join([*WARNINGS, anonymous])}", "-DUSE_CUDA", *torch_flags]
        of_library = [flag for flag in device if flag != resources[1]]
        objects = [
            ninja.compile(source, of_library if source.name == "sort.cu" else device)
            for source in sources("csrc/cuda/*.cu")
        ]
        objects += [ninja.compile(source, binding) for source in sources("csrc/cuda/*.cpp")]
        # No device code is left to link; that step would only record this machine's folders.
        linker = [nvcc, "-shared", "-nodlink", "-cudart=static", "-Xlinker=-z,defs"]
        ninja.link("_cuda.so", linker, objects, libs)
    ninja.run()


class BuildNative(build_ext):
    """Compiles with ninja in build/native and copies the libraries to where setuptools wants them."""

    def get_ext_filename(self, fullname: str) -> str:
        return (
            fullname.replace(".", os.sep) + ".so"
        )  # no Python version in the name: there is none in the library

    def build_extensions(self) -> None:
        if sys.platform != "linux":
            raise SetupError(f"gsfields builds on Linux only so far, not on {sys.platform}")
        build_libraries(find_nvcc())
        for ext in self.extensions:
            target = self.get_ext_fullpath(ext.name)
            self.mkpath(os.path.dirname(target))
            self.copy_file(str(ROOT / NATIVE / os.path.basename(target)), target)


class Sanitize(Command):
    """Runs the C++ tests, which with the CPU kernels are compiled under the address and UB sanitizers."""

    user_options: ClassVar[list] = []

    def initialize_options(self) -> None: ...

    def finalize_options(self) -> None: ...

    def run(self) -> None:
        ninja, cxx = Ninja(SANITIZE), require_cxx()
        checks = [
            "-O1",
            "-g",
            "-fno-omit-frame-pointer",
            "-fsanitize=address,undefined,float-cast-overflow",
            "-fno-sanitize-recover=all",
        ]
        compiler = [*cxx, *CXXFLAGS, *WARNINGS, *checks]
        objects = cpu_objects(ninja, compiler)
        objects += [ninja.compile(source, [*compiler, "-Icsrc"]) for source in sources("tests/cpp/*.cpp")]
        ninja.link("tests", [*cxx, *checks, "-pthread"], objects, [])
        ninja.run()
        if subprocess.run([str(SANITIZE / "tests")], cwd=ROOT).returncode:
            raise SetupError("the C++ tests failed under the sanitizers; their message is above")


class AnyPythonWheel(bdist_wheel):
    """py3-none-<platform>: the libraries are tied to a platform, not to a Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def main() -> None:
    if int(setuptools.__version__.split(".")[0]) < SETUPTOOLS_MIN:
        raise SetupError(
            f"gsfields builds with setuptools {SETUPTOOLS_MIN} or later, but {setuptools.__version__} is installed: "
            "pip install --upgrade setuptools"
        )
    extensions = [Extension("gsfields._C", [])] + ([Extension("gsfields._cuda", [])] if find_nvcc() else [])
    setup(
        packages=[*find_packages(include=["gsfields", "gsfields.*"]), "gsfields.configs"],
        package_dir={"gsfields.configs": "configs"},
        package_data={"gsfields": ["py.typed"], "gsfields.configs": ["*.yaml"]},
        ext_modules=extensions,
        cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPythonWheel, "sanitize": Sanitize},
        # Only an environment without torch gets one for the build; pyproject.toml would always download it.
        setup_requires=[] if find_torch() else ["torch>=2.10"],
    )


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"error: {error}")  # without a traceback

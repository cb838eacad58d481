"""setup.py: what it builds, what it refuses, and that the libraries can be carried to other machines."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from setuptools import Distribution, find_packages
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "build" / "native"
LIBRARIES = [path for name in ("_C.so", "_cuda.so") if (path := ROOT / "gsfields" / name).is_file()]


@pytest.fixture
def build() -> ModuleType:
    """setup.py as a module; nothing in it runs on import."""
    spec = importlib.util.spec_from_file_location("gsfields_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree of the same shape with next to nothing in it, in a folder whose name has a space."""
    root = tmp_path / "source tree"
    (root / "csrc" / "cpu").mkdir(parents=True)
    (root / "csrc" / "cpu" / "answer.h").write_text("#define ANSWER 42\n")
    (root / "csrc" / "ops.cpp").write_text(
        '#include "cpu/answer.h"\nextern "C" int answer() { return ANSWER; }\n'
    )
    (root / "csrc" / "cpu" / "isa.cpp").write_text(
        "#define JOIN_(a, b) a##b\n#define JOIN(a, b) JOIN_(a, b)\n"
        "int JOIN(isa_, GSFIELDS_ISA)() { return 1; }\n"
    )
    monkeypatch.setattr(build, "ROOT", root)
    for name in (
        "GSFIELDS_CUDA",
        "GSFIELDS_CUDA_ARCHS",
        "GSFIELDS_LINEINFO",
        "GSFIELDS_NVTX",
        "GSFIELDS_WERROR",
        "CUDA_HOME",
        "CUDA_PATH",
        "CXXFLAGS",
    ):
        monkeypatch.delenv(name, raising=False)
    return root


def output_of(*command: str | Path) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def native_objects() -> list[Path]:
    objects = sorted(OBJECTS.glob("*.o"))
    if not objects:
        pytest.skip("no objects in build/native: the package was not built in this tree")
    return objects


# ------------------------------------------------------------------------------------------- what was built


def test_objects_of_instruction_sets_have_no_weak_symbols():
    """A weak symbol may be merged with its copy in another object: AVX-512 code on a CPU without it."""
    checked = [path for path in native_objects() if re.match(r"isa_avx", path.name)]
    weak = [f"{path.name}: {line}" for path in checked for line in output_of("nm", "-C", path).splitlines()]
    assert not [line for line in weak if re.search(r" [WVu] ", line)]


def test_wide_registers_stay_in_their_objects():
    allowed = {"isa_avx2.o": "y", "isa_avx512.o": "yz"}
    for path in native_objects():
        used = set(re.findall(r"%([yz])mm\d", output_of("objdump", "-d", "--no-show-raw-insn", path)))
        assert used <= set(allowed.get(path.name, "")), f"{path.name} uses {used}"
        if path.name == "isa_avx512.o":
            assert "z" in used, "compiled for 512-bit vectors, but uses none"


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_library_needs_no_python_and_no_place(library: Path):
    undefined = output_of("nm", "-D", "--undefined-only", library)
    assert not re.search(r" _?Py[A-Z_]", undefined), "Python symbols tie it to one Python"
    assert not re.search(r"(c10|at|torch)::|_ZN\d?(3c10|2at|5torch)", undefined), (
        "C++ symbols tie it to one torch"
    )
    dynamic = output_of("readelf", "-d", library)
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    assert "libpython" not in dynamic and "libtorch_python" not in dynamic and "libtorch_cuda" not in dynamic
    content = library.read_bytes()
    assert str(ROOT).encode() not in content, "the path of the source tree"
    assert str(Path(torch.__file__).parent).encode() not in content, (
        "the path of torch on the building machine"
    )


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in (ROOT / "gsfields").rglob("*.py")}
    expected = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(find_packages(str(ROOT), include=["gsfields", "gsfields.*"])) == expected


def test_wheel_fits_every_python(build: ModuleType):
    wheel = build.AnyPythonWheel(
        Distribution({"name": "gsfields", "ext_modules": [build.Extension("a", [])]})
    )
    wheel.ensure_finalized()
    python, abi, platform = wheel.get_tag()
    assert (python, abi) == ("py3", "none") and platform != "any"


# ---------------------------------------------------------------------------------------------- how it builds


def test_build_is_incremental(build: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch):
    objects = [tree / build.NATIVE / name for name in ("ops.cpp.o", "isa_baseline.o")]

    def rebuilt() -> list[str]:
        before = [path.stat().st_mtime_ns if path.exists() else 0 for path in objects]
        build.build_libraries(nvcc=None)
        return [p.name for p, time in zip(objects, before, strict=True) if p.stat().st_mtime_ns != time]

    assert rebuilt() == ["ops.cpp.o", "isa_baseline.o"]
    assert (tree / build.NATIVE / "_C.so").is_file()
    assert rebuilt() == []
    (tree / "csrc" / "cpu" / "answer.h").write_text("#define ANSWER 43\n")
    assert rebuilt() == ["ops.cpp.o"], "a header changed: what includes it, and only that, is compiled again"
    monkeypatch.setenv("CXXFLAGS", "-g")
    assert rebuilt() == ["ops.cpp.o", "isa_baseline.o"], "other flags"
    monkeypatch.setenv("GSFIELDS_WERROR", "1")
    assert rebuilt() == [], "stricter about warnings: nothing that compiled is compiled again"


def test_warnings_are_errors_on_request(
    build: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    (tree / "csrc" / "ops.cpp").write_text("int f(int unused) { return 1; }\n")
    build.build_libraries(nvcc=None)
    (tree / "csrc" / "ops.cpp").write_text("int g(int unused) { return 1; }\n")
    monkeypatch.setenv("GSFIELDS_WERROR", "1")
    with pytest.raises(SetupError, match="compiling gsfields failed"):
        build.build_libraries(nvcc=None)
    assert "unused-parameter" in capfd.readouterr().out


FILL = """
__global__ void fill(float* x) { x[threadIdx.x] = 1.0f; }
int launch(float* x, cudaStream_t stream) {
  fill<<<1, 32, 0, stream>>>(x);
  return cudaGetLastError();
}
"""
BINDING = """
#include <cuda_runtime.h>
#include <torch/csrc/stable/tensor.h>
int launch(float*, cudaStream_t);
extern "C" int run(float* x) { return launch(x, nullptr); }
"""


@pytest.fixture
def cuda_tree(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with one CUDA kernel, for one architecture."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    (tree / "csrc" / "cuda").mkdir()
    (tree / "csrc" / "cuda" / "fill.cu").write_text(FILL)
    (tree / "csrc" / "cuda" / "binding.cpp").write_text(BINDING)
    monkeypatch.setenv("GSFIELDS_CUDA_ARCHS", "9.0")
    return tree


def test_cuda_library_is_built_where_nvcc_is(
    build: ModuleType, cuda_tree: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("GSFIELDS_WERROR", "1")
    build.build_libraries(build.find_nvcc())
    library = cuda_tree / build.NATIVE / "_cuda.so"
    needed = re.findall(r"NEEDED.*\[(.*)\]", output_of("readelf", "-d", library))
    assert not [name for name in needed if "cuda" in name], (
        "libcudart is inside, the driver is found at run time"
    )
    report = (cuda_tree / build.NATIVE / "cuda_fill.cu.o.ptxas").read_text()
    assert re.search(r"entry function '\w*fill\w*' for 'sm_90'", report), (
        "what ptxas tells of kernels is kept"
    )
    assert "ptxas" not in "".join(capfd.readouterr()), "and not shown"


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("__global__ void f(float* x, int i) { float a[64] = {}; a[i] = *x; *x = a[i / 2]; }", "stack frame"),
        ("__global__ void f(float* x) { int unused; }", "never referenced"),
        ("__global__ void f(float* x) { y = x; }", '"y" is undefined'),
    ],
    ids=["stack", "warning", "error"],
)
def test_messages_of_nvcc_are_shown(
    build: ModuleType,
    cuda_tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kernel: str,
    message: str,
):
    (cuda_tree / "csrc" / "cuda" / "fill.cu").write_text(FILL + kernel + "\n")
    monkeypatch.setenv("GSFIELDS_WERROR", "1")
    with pytest.raises(SetupError, match="compiling gsfields failed"):
        build.build_libraries(build.find_nvcc())
    shown = capfd.readouterr().out
    assert message in shown and not re.search(r"^(ptxas info|Cuda compilation tools)", shown, re.MULTILINE)


def test_switches_of_cuda_builds(build: ModuleType, cuda_tree: Path, monkeypatch: pytest.MonkeyPatch):
    def flags(suffix: str) -> str:
        lines: list[str] = []
        monkeypatch.setattr(build.Ninja, "run", lambda ninja: lines.extend(ninja.lines))
        build.build_libraries(build.find_nvcc())
        return next(b for a, b in itertools.pairwise(lines) if a.endswith(suffix))

    assert "-lineinfo" not in flags("fill.cu") and "NVTX" not in flags("fill.cu") + flags("binding.cpp")
    monkeypatch.setenv("GSFIELDS_LINEINFO", "1")
    monkeypatch.setenv("GSFIELDS_NVTX", "1")
    assert "-lineinfo" in flags("fill.cu")
    assert "-DGSFIELDS_NVTX" in flags("fill.cu") and "-DGSFIELDS_NVTX" in flags("binding.cpp")
    assert "NVTX" not in flags("ops.cpp")


# ------------------------------------------------------------------------------------------- what it refuses


def test_cuda_asked_for_without_nvcc_is_an_error(
    build: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch
):
    (tree / "csrc" / "cuda").mkdir()
    (tree / "csrc" / "cuda" / "fill.cu").write_text("")
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert build.find_nvcc() is None, "not asked for: the CPU library alone"
    monkeypatch.setenv("GSFIELDS_CUDA", "1")
    with pytest.raises(SetupError, match=r"nvcc was not found .*\(install the CUDA toolkit\)"):
        build.find_nvcc()


def test_cuda_asked_for_without_kernels_is_an_error(
    build: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert build.find_nvcc() is None
    monkeypatch.setenv("GSFIELDS_CUDA", "1")
    with pytest.raises(SetupError, match=r"no CUDA kernels \(csrc/cuda/\*\.cu\)"):
        build.find_nvcc()


@pytest.mark.parametrize(("setting", "found"), [("0", False), (None, True), ("1", True)])
def test_cuda_switch(
    build: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch, setting: str | None, found: bool
):
    (tree / "csrc" / "cuda").mkdir()
    (tree / "csrc" / "cuda" / "fill.cu").write_text("")
    nvcc = tree / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tree / "toolkit"))
    if setting is not None:
        monkeypatch.setenv("GSFIELDS_CUDA", setting)
    assert build.find_nvcc() == (str(nvcc) if found else None)


@pytest.mark.parametrize("name", ["GSFIELDS_CUDA", "GSFIELDS_LINEINFO", "GSFIELDS_NVTX", "GSFIELDS_WERROR"])
def test_unknown_setting_of_a_switch_is_an_error(
    build: ModuleType, cuda_tree: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv(name, "yes")
    with pytest.raises(SetupError, match=f"{name} is 'yes', but must be 0, 1 or unset"):
        build.build_libraries(build.find_nvcc())


def test_architectures(build: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GSFIELDS_CUDA_ARCHS", raising=False)
    flags = " ".join(build.gencode_flags())
    assert re.findall(r"code=sm_(\d+)", flags) == ["75", "80", "86", "89", "90", "100", "120"]
    assert re.findall(r"code=compute_(\d+)", flags) == ["120"]
    monkeypatch.setenv("GSFIELDS_CUDA_ARCHS", "8.6; 90a")
    assert [flag.rsplit("=", 1)[1] for flag in build.gencode_flags()] == ["sm_86", "sm_90a", "compute_90a"]
    for setting in ("hopper", "90;", ""):
        monkeypatch.setenv("GSFIELDS_CUDA_ARCHS", setting)
        with pytest.raises(
            SetupError, match=f"GSFIELDS_CUDA_ARCHS is '{setting}', but must look like '75;80"
        ):
            build.gencode_flags()


def program(folder: Path, name: str, script: str) -> Path:
    """A program for the tests, found on a PATH that begins with the folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return folder / name


def test_architectures_of_the_gpus_here(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GSFIELDS_CUDA_ARCHS", "native")
    monkeypatch.setenv("PATH", str(tmp_path))
    for script in (None, "echo failed to reach the driver; exit 9", "echo No devices were found"):
        if script:
            program(tmp_path, "nvidia-smi", script)
        with pytest.raises(
            SetupError, match=r"'native', but nvidia-smi shows no GPU here: name .* example 90"
        ):
            build.cuda_archs()
    program(tmp_path, "nvidia-smi", 'echo "12.0\n9.0\n9.0"')
    assert build.cuda_archs() == ["90", "120"]


def nvcc_of(folder: Path, release: str, archs: str, complaint: str = "") -> str:
    """An nvcc of that release, which knows these architectures and has something against the host compiler."""
    cases = f"--version) echo 'Cuda compilation tools, release {release}, V{release}.1' ;;\n"
    cases += "--list-gpu-arch) " + "; ".join(f"echo compute_{arch}" for arch in archs.split()) + " ;;\n"
    cases += f"*) echo '{complaint}' >&2; exit {2 if complaint else 0} ;;\n"
    return str(program(folder, "nvcc", f'case "$1" in\n{cases}esac'))


def test_nvcc_that_cannot_is_refused(build: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch):
    build.check_nvcc(nvcc_of(tree, "13.0", "75 80 86 89 90 100 120"), "g++")
    otherwise = "or leave the CUDA library out with GSFIELDS_CUDA=0"

    old = nvcc_of(tree, "11.8", "80 86 90")
    with pytest.raises(
        SetupError, match=f"needs nvcc 12.0 or later, but .*/nvcc is 11.8: install.*, {otherwise}"
    ):
        build.check_nvcc(old, "g++")
    older = nvcc_of(tree, "12.4", "75 80 86 89 90")
    words = (
        r"nvcc 12.4 .* cannot compile for compute capability 100 and 120: .*\(100 and 120 need CUDA 12.8\), "
    )
    with pytest.raises(SetupError, match=f"{words}choose GSFIELDS_CUDA_ARCHS='75;80;86;89;90', {otherwise}"):
        build.check_nvcc(older, "g++")
    monkeypatch.setenv("GSFIELDS_CUDA_ARCHS", "80;90a")
    build.check_nvcc(older, "g++")
    monkeypatch.setenv("GSFIELDS_CUDA_ARCHS", "70")
    with pytest.raises(SetupError, match=r"cannot compile for compute capability 70: .*ARCHS='90'"):
        build.check_nvcc(older, "g++")
    monkeypatch.delenv("GSFIELDS_CUDA_ARCHS")

    reason = "unsupported GNU version! gcc versions later than 15 are not supported!"
    complaint = f"host_config.h:137: #error -- {reason} The nvcc flag..."
    limited = nvcc_of(tree, "13.0", "75 80 86 89 90 100 120", complaint)
    words = f"cannot use g..-16: {reason} Name an older one"
    with pytest.raises(SetupError, match=rf"{words} \(CXX=g\+\+-12\), install a newer toolkit, {otherwise}"):
        build.check_nvcc(limited, "g++-16")


def test_nvcc_here_is_accepted(build: ModuleType, tree: Path):
    if (nvcc := shutil.which("nvcc")) is None:
        pytest.skip("nvcc is not installed")
    build.check_nvcc(nvcc, build.require_cxx()[0])


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("raise ModuleNotFoundError(\"No module named 'setuptools'\")", "No module named 'setuptools'"),
        ("Command = Extension = find_packages = setup = None", "No module named 'setuptools.command'"),
    ],
)
def test_missing_or_old_setuptools_is_an_error(tmp_path: Path, package: str, message: str):
    (tmp_path / "setuptools").mkdir()
    (tmp_path / "setuptools" / "__init__.py").write_text(package)
    command = [sys.executable, "setup.py", "build_ext"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"error: gsfields builds with setuptools 77 .*{message}.*: pip install --upgrade setuptools\n",
        done.stderr,
    )


def test_setuptools_that_cannot_read_the_metadata_is_an_error(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build.setuptools, "__version__", "76.1.0")
    with pytest.raises(SetupError, match=r"setuptools 77 or later, but 76\.1\.0 is installed: pip install"):
        build.main()


def test_missing_tools_are_named(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SetupError, match=r"building gsfields needs g\+\+ .*apt install g\+\+"):
        build.require_cxx()
    monkeypatch.setenv("CXX", "other++ -m64")
    with pytest.raises(SetupError, match=r"building gsfields needs other\+\+, which is not on the PATH"):
        build.require_cxx()
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"needs ninja.* pip install ninja"):
        build.require_ninja()


def test_torch_is_found_where_isolation_hides_it(build: ModuleType, monkeypatch: pytest.MonkeyPatch):
    folder = Path(torch.__file__).parent
    if str(folder.parent) not in map(build.sysconfig.get_path, ("purelib", "platlib")):
        pytest.skip("this torch is not in the environment's own folder")
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    assert build.find_torch() == folder


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, "torch, which is not installed: pip install torch"),
        ("2.9.1", "needs torch 2.10 or later, but .* is 2.9"),
    ],
)
def test_missing_or_old_torch_is_an_error(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str | None, message: str
):
    if version:
        (tmp_path / "version.py").write_text(f"__version__ = '{version}'\n")
    monkeypatch.setattr(build, "find_torch", lambda: tmp_path if version else None)
    with pytest.raises(SetupError, match=message):
        build.require_torch()


def test_source_archive_is_whole(tmp_path: Path):
    """Everything a build from the archive reads is in it."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    listed = set((tmp_path / "gsfields.egg-info" / "SOURCES.txt").read_text().split())
    files = [path for folder in ("csrc", "configs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert files and {str(path.relative_to(ROOT)) for path in files} <= listed
    assert {"setup.py", "pyproject.toml", "constraints.txt", "Makefile", "LICENSE"} <= listed
    assert not [name for name in listed if name.endswith(".so") or name.startswith("build/")]

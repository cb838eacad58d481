"""setup.py: what it builds, what it refuses, and that the libraries can be carried to other machines."""

from __future__ import annotations

import importlib.util
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


@pytest.mark.slow
def test_cuda_kernels_stay_in_registers(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No kernel needs memory for what its registers cannot hold, on any architecture."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    monkeypatch.delenv("GSFIELDS_CUDA_ARCHS", raising=False)
    for source in sorted(ROOT.glob("csrc/cuda/*.cu")):
        flags = ["-std=c++20", "-O3", "-Xptxas=-v", "--threads=0", *build.gencode_flags()]
        command = ["nvcc", *flags, "-c", str(source), "-o", str(tmp_path / "kernels.o")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        needs = re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
        )
        assert len(needs) >= 7 and set(needs) == {("0", "0", "0")}, report


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


def test_cuda_library_is_built_where_nvcc_is(build: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    (tree / "csrc" / "cuda").mkdir()
    (tree / "csrc" / "cuda" / "fill.cu").write_text(
        "__global__ void fill(float* x) { x[threadIdx.x] = 1.0f; }\n"
        "int launch(float* x, cudaStream_t stream) {\n"
        "  fill<<<1, 32, 0, stream>>>(x);\n  return cudaGetLastError();\n}\n"
    )
    (tree / "csrc" / "cuda" / "binding.cpp").write_text(
        "#include <cuda_runtime.h>\n#include <torch/csrc/stable/tensor.h>\n"
        "int launch(float*, cudaStream_t);\n"
        'extern "C" int run(float* x) { return launch(x, nullptr); }\n'
    )
    monkeypatch.setenv("GSFIELDS_CUDA_ARCHS", "9.0")
    monkeypatch.setenv("GSFIELDS_WERROR", "1")
    build.build_libraries(build.find_nvcc())
    library = tree / build.NATIVE / "_cuda.so"
    needed = re.findall(r"NEEDED.*\[(.*)\]", output_of("readelf", "-d", library))
    assert not [name for name in needed if "cuda" in name], (
        "libcudart is inside, the driver is found at run time"
    )


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


def test_unknown_cuda_switch_is_an_error(build: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GSFIELDS_CUDA", "yes")
    with pytest.raises(SetupError, match="GSFIELDS_CUDA is 'yes', but must be 0, 1 or unset"):
        build.find_nvcc()


def test_architectures(build: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GSFIELDS_CUDA_ARCHS", raising=False)
    flags = " ".join(build.gencode_flags())
    assert re.findall(r"code=sm_(\d+)", flags) == ["75", "80", "86", "89", "90", "100", "120"]
    assert re.findall(r"code=compute_(\d+)", flags) == ["120"]
    monkeypatch.setenv("GSFIELDS_CUDA_ARCHS", "8.6; 90a")
    assert [flag.rsplit("=", 1)[1] for flag in build.gencode_flags()] == ["sm_86", "sm_90a", "compute_90a"]
    monkeypatch.setenv("GSFIELDS_CUDA_ARCHS", "hopper")
    with pytest.raises(SetupError, match="GSFIELDS_CUDA_ARCHS is 'hopper'"):
        build.gencode_flags()


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

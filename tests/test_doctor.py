"""`gsfields doctor` tells the truth where all is well, and still reports where hardly anything is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gsfields import doctor, ops

CPU_TORCH = SimpleNamespace(
    __version__="2.13.0",
    version=SimpleNamespace(cuda=None),
    cuda=SimpleNamespace(is_available=lambda: False),
    get_num_threads=lambda: 3,
)


def lines(report: str) -> dict[str, str]:
    """{subject: detail} of a report; details keep their leading ok or --."""
    found = report.split("\n\n")[0].splitlines()
    return {line[4:18].strip(): line[:4].strip() + " " + line[18:] for line in found}


def pretend(monkeypatch: pytest.MonkeyPatch, **modules: object) -> None:
    """Make doctor's imports of these modules give these objects, errors included."""
    real = doctor._import
    known = {name.replace("_", "."): value for name, value in modules.items()}
    monkeypatch.setattr(doctor, "_import", lambda name: known.get(name) or real(name))


def test_reports_what_is_in_use():
    told = lines(doctor.report())
    assert told["torch"].startswith(f"ok {torch.__version__}")
    assert told["CPU backend"].startswith("ok _C.so (compiled by ")
    assert told["instructions"].startswith(f"ok {ops.cpu_isa()} in use")
    assert told["instructions"].endswith(", ".join(ops.available_cpu_isas()))
    assert told["threads"].startswith(f"ok {torch.get_num_threads()} used")


def test_follows_the_chosen_instruction_set():
    before = ops.cpu_isa()
    try:
        ops.set_cpu_isa("baseline")
        assert lines(doctor.report())["instructions"].startswith("ok baseline in use")
    finally:
        ops.set_cpu_isa(before)


def test_every_missing_thing_has_its_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path)
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    findings = doctor.examine()
    missing = [finding for finding in findings if not finding.ok and finding.subject != "GPU"]
    assert {finding.subject for finding in missing} >= {"CPU backend", "CUDA backend", *doctor.OPTIONAL}
    report = doctor.render(findings)
    assert all(finding.remedy and f"  {finding.subject}: {finding.remedy}" in report for finding in missing)


def test_status_says_whether_the_cpu_backend_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert doctor.main() == 0
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path)
    assert doctor.main() == 1


def test_without_torch(monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, torch=ImportError("No module named 'torch'"))
    told = lines(doctor.report())
    assert told["torch"] == "-- cannot be imported: ImportError: No module named 'torch'"
    assert "unusable without torch" in told["CPU backend"]
    assert told["threads"].startswith("ok unknown used")
    assert "instructions" not in told


def test_old_torch(monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, torch=SimpleNamespace(**vars(CPU_TORCH) | {"__version__": "2.9.1+cpu"}))
    report = doctor.report()
    assert lines(report)["torch"] == "-- 2.9.1+cpu, CUDA not included"
    assert "torch: pip install --upgrade 'torch>=2.10'" in report


def test_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch):
    try:
        raise OSError("Could not load this library: _C.so") from OSError(
            "undefined symbol: aoti_torch_x\nmore"
        )
    except OSError as error:
        pretend(monkeypatch, gsfields_ops=error)
    told = lines(doctor.report())["CPU backend"]
    assert told.startswith("-- ") and "undefined symbol: aoti_torch_x" in told and "more" not in told


def test_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_nvidia_driver", lambda: "580.159")
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 1, get_device_name=lambda i: "NVIDIA A1"
    )
    assert (
        doctor._gpu(SimpleNamespace(**vars(CPU_TORCH) | {"cuda": cuda})).detail == "NVIDIA A1; driver 580.159"
    )
    unused = doctor._gpu(CPU_TORCH)
    assert (
        not unused.ok and "driver 580.159, but torch 2.13.0 cannot use it" in unused.detail and unused.remedy
    )
    monkeypatch.setattr(doctor, "_nvidia_driver", lambda: None)
    assert "none found" in doctor._gpu(CPU_TORCH).detail


@pytest.mark.parametrize(
    ("library", "reason"),
    [(None, "not built: "), (b"\x7fELF and nothing more", "_C.so, cannot be loaded: OSError")],
)
def test_command_without_a_working_library(tmp_path: Path, library: bytes | None, reason: str):
    """The command itself: importing the package must not need the library."""
    package = Path(doctor.__file__).parent
    shutil.copytree(package, tmp_path / "gsfields", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if library is not None:
        (tmp_path / "gsfields" / "_C.so").write_bytes(library)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "gsfields", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and not done.stderr, done.stderr
    assert lines(done.stdout)["CPU backend"].startswith(f"-- {reason}")
    assert "CPU backend: build it" in done.stdout


def test_unknown_instruction_set_is_explained():
    command = [sys.executable, "-m", "gsfields", "doctor"]
    environment = os.environ | {"GSFIELDS_CPU_ISA": "avx1024"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "'avx1024', but this CPU can run baseline" in lines(done.stdout)["CPU backend"]
    assert "CPU backend: unset GSFIELDS_CPU_ISA" in done.stdout

"""The emulated suite notices broken kernels: each is broken in one place in a copy, and the kernel tests must fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator import build as emulator

ROOT = Path(__file__).resolve().parents[2]

# file in csrc, what stands there once, what is put in its place
MUTANTS = {
    "tile_edge_off_by_one": (
        "math/tiles.h",
        "clamp_floor(last * inv_tile + S(1), tiles_x)",
        "clamp_floor(last * inv_tile, tiles_x)",
    ),
    "patch_edge_off_by_one": ("cuda/tile.h", "x + kPatchWidth - 1", "x + kPatchWidth - 2"),
    "box_of_samples_too_small": (
        "cuda/tile.h",
        "bottom = warp_max(row >= 0 ? y : kNone)",
        "bottom = warp_max(row >= 0 ? y - 1 : kNone)",
    ),
    "only_as_many_samples_as_pixels": (
        "cuda/tile.h",
        "int64_t(round) * kTilePixels +",
        "int64_t(round) * 0 +",
    ),
    "last_batch_missing": (
        "cuda/walk.h",
        "first < tile.listed; first",
        "first + kTilePixels < tile.listed; first",
    ),
    "last_group_of_a_batch_missing": ("cuda/walk.h", "group < count && !", "group + kWarp < count && !"),
    "last_batch_missing_backward": (
        "cuda/walk.h",
        "(used.by_block - 1) / kTilePixels * kTilePixels; first",
        "(used.by_block / kTilePixels - 1) * kTilePixels; first",
    ),
    "transmittance_after_the_gaussian": (
        "cuda/walk.h",
        "  const S weight = alpha * p.T;\n  p.T = next;",
        "  p.T = next;\n  const S weight = alpha * p.T;",
    ),
    "transmittance_after_the_gaussian_backward": (
        "cuda/blend_backward.cu",
        "  p.T *= inverse;\n  const S weight = alpha * p.T, ",
        "  const S weight = alpha * p.T;\n  p.T *= inverse;\n  const S ",
    ),
    "one_gaussian_too_many_backward": ("cuda/blend_backward.cu", "position < p.last", "position <= p.last"),
    "no_end_of_a_pixel": ("cuda/walk.h", "next <= S(math::kTransmittanceMin)", "next <= S(0)"),
    "barrier_missing": (
        "cuda/walk.h",
        "load(count);\n    __syncthreads();\n    for",
        "load(count);\n    for",
    ),
    "lift_without_factors": ("cuda/lift.cu", "owns[c] = factor * math::load", "owns[c] = math::load"),
    "total_without_factors": ("cuda/lift.cu", "== in.channels ? factor", "== in.channels ? S(1)"),
    "last_row_of_the_code_missing": (
        "cuda/respond.cu",
        "for (int64_t d = lane; d < a.rank; d += kWarp)",
        "for (int64_t d = lane; d < a.rank - 1; d += kWarp)",
    ),
    "last_warp_missing_in_the_codes_gradient": (
        "cuda/respond.cu",
        "i < kThreads && threadIdx.x < kWarp",
        "i < kThreads - kWarp && threadIdx.x < kWarp",
    ),
    "gradients_of_those_that_do_not_move": (
        "cuda/respond.cu",
        "= moved ? v_r[row][k] * code : S(0)",
        "= v_r[row][k] * code",
    ),
    "depth_sort_one_bit_short": (
        "cuda/bin.cu",
        "8 * int(sizeof(DepthKey<S>))",
        "8 * int(sizeof(DepthKey<S>)) - 1",
    ),
}
TESTS = [f"tests/kernels/test_{name}.py" for name in ("blend", "bin_tiles", "channels", "respond")]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with what the emulator has compiled, so that only what a mutant changes is compiled."""
    if problem := emulator.missing():
        pytest.skip(problem)
    emulator.build()
    root = tmp_path_factory.mktemp("copy")
    for folder in ("csrc", "gsfields", "tests/emulator", "tests/kernels", "build/emulator"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/__init__.py", "tests/conftest.py", "pyproject.toml"):
        shutil.copy2(ROOT / name, root / name)
    return root


def emulated_tests(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=short", *TESTS]
    command += ["-k", "emulated-float32-forward"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_copy_passes(copy: Path):
    done = emulated_tests(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_broken_kernel_fails(copy: Path, mutant: str):
    name, right, wrong = MUTANTS[mutant]
    file = copy / "csrc" / name
    text = file.read_text()
    assert text.count(right) == 1, "the kernel has changed: change the mutant, too"
    file.write_text(text.replace(right, wrong))
    try:
        done = emulated_tests(copy)
    finally:
        file.write_text(text)
    assert done.returncode == 1 and "\nFAILED tests/kernels" in done.stdout, done.stdout
    assert "does not compile" not in done.stdout, done.stdout

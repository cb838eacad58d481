"""The emulator catches the bugs it claims to catch, and nothing in a kernel without bugs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.emulator import build

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=build.missing() or "")

# Each bug of planted.cu shows in one of these ways.
WRONG = {  # a wrong result in these orders
    "barrier_missing_after_load": build.ORDERS,
    "barrier_missing_before_reuse": build.ORDERS,
    "write_of_one_thread_not_awaited": ("reverse", "random"),
    "shared_not_initialised": build.ORDERS,
    "read_too_early": build.ORDERS,
    "read_on_another_stream": build.ORDERS,
}
REPORTED = {  # a failed launch, and a report in these words
    "barrier_divergent": r"__syncthreads at planted.cu:\d+: divergent barrier: other .* at planted.cu:\d+",
    "barrier_after_return": r"thread 3, its end: other threads of the block wait in __syncthreads at planted",
    "barrier_in_uneven_loop": r"after a thread of the block has exited|wait in __syncthreads at planted.cu:\d+",
    "barrier_in_branch_of_a_warp": r"deadlock: thread \d+ waits in __sync(threads|warp) at planted.cu:\d+",
    "shuffle_in_branch": r"__shfl_xor_sync at planted.cu:\d+: lane \d+ of the mask ffffffff has exited",
    "shuffles_divergent": r"divergent function of the warp: other lanes .* in __shfl_\w+_sync at planted.cu:\d+",
    "lane_not_in_mask": r"lane 31 is not in its mask 7fffffff|lane 31, which the mask 7fffffff does not name",
    "source_not_in_mask": r"lane 0 reads from lane 20, which the mask 0000ffff does not name",
    "masks_overlap": r"lanes of the mask \w+ wait with another mask|lane \d+ of the mask \w+ has exited",
    "too_much_shared": r"large: the block needs more than 49152 bytes of shared memory",
    "no_dynamic_shared": r"the launch asked for no dynamic shared memory",
}
REFUSED = {  # an error of the launch
    "block_too_large": "cudaErrorInvalidConfiguration",
    "block_of_half_a_warp": "cudaErrorInvalidConfiguration",
    "grid_too_large": "cudaErrorInvalidConfiguration",
    "too_much_dynamic_shared": "cudaErrorInvalidValue",
}
SANITIZED = {  # a sanitizer's words, and the function of planted.cu
    "shared_overrun": ("asan", r"planted.cu:\d+:\d+: runtime error: index 64 out of bounds .*float \[64\]"),
    "dynamic_overrun": (
        "asan",
        r"heap-buffer-overflow[\s\S]*0 bytes to the right of 256-byte[\s\S]*planted.cu:\d+ in ",
    ),
    "shared_misaligned": ("asan", r"runtime error: .* misaligned address .* for type 'struct float4'"),
    "barrier_missing_after_load": ("tsan", r"data race .*planted.cu:\d+ in .*sum_of_batches"),
    "barrier_missing_before_reuse": ("tsan", r"data race .*planted.cu:\d+ in .*sum_of_batches"),
    "write_of_one_thread_not_awaited": ("tsan", r"data race .*planted.cu:\d+ in .*sum_of_batches"),
    "shuffle_instead_of_syncwarp": ("tsan", r"data race .*planted.cu:\d+ in .*exchange"),
    "sum_not_atomic": ("tsan", r"data race .*planted.cu:\d+ in .*planted_kernel"),
}


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The finished program, its sanitizer's words in stderr."""
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=100)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer cannot map its memory here")
    return done


def planted(variant: str, bug: str, order: str) -> subprocess.CompletedProcess[str]:
    if problem := build.missing(variant):
        pytest.skip(problem)
    return run(build.program("planted", variant), bug, order, "5")


def test_every_planted_bug_is_looked_for():
    source = (build.ROOT / build.EMULATOR / "planted.cu").read_text()
    names = re.search(r"enum Bug {([\s\w,]*) kBugs\s}", source)
    assert names is not None
    bugs = {name.strip() for name in names[1].split(",")} - {"clean", ""}
    assert bugs == WRONG.keys() | REPORTED.keys() | REFUSED.keys() | SANITIZED.keys()


@pytest.mark.parametrize("order", build.ORDERS)
@pytest.mark.parametrize("variant", ["plain", "asan", "tsan"])
def test_nothing_is_found_in_a_clean_kernel(variant, order):
    done = planted(variant, "clean", order)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cudaSuccess, right. \n" * 2, "")


@pytest.mark.parametrize("order", build.ORDERS)
@pytest.mark.parametrize("bug", WRONG)
def test_wrong_results(bug, order):
    expected = "wrong" if order in WRONG[bug] else "right"
    done = planted("plain", bug, order)
    assert done.stdout == f"cudaSuccess, {expected}. \nthen cudaSuccess, right. \n"


@pytest.mark.parametrize("order", build.ORDERS)
@pytest.mark.parametrize("bug", REPORTED)
def test_reports(bug, order):
    """The report names the place, and the process goes on."""
    first, second = planted("plain", bug, order).stdout.splitlines()
    assert re.match(r"cudaErrorLaunchFailure, wrong. kernel planted_kernel, block \d, thread \d+, ", first)
    assert re.search(REPORTED[bug], first)
    assert second == "then cudaSuccess, right. "


@pytest.mark.parametrize("bug", REFUSED)
def test_launches_that_are_refused(bug):
    first, second = planted("plain", bug, "forward").stdout.splitlines()
    assert re.match(rf"{REFUSED[bug]}, wrong. kernel planted_kernel, \d+ blocks of \d+ threads: ", first)
    assert second == "then cudaSuccess, right. "


@pytest.mark.parametrize("bug", SANITIZED)
def test_sanitizers(bug):
    variant, words = SANITIZED[bug]
    done = planted(variant, bug, "forward")
    assert done.returncode and re.search(words, done.stderr), done.stderr


@pytest.mark.parametrize("variant", ["asan", "tsan"])
@pytest.mark.parametrize("bug", ["barrier_divergent", "shuffles_divergent"])
def test_sanitizers_find_nothing_in_abandoned_threads(variant, bug):
    done = planted(variant, bug, "reverse")
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.endswith("then cudaSuccess, right. \n")


@pytest.mark.parametrize("variant", ["plain", "fallbacks"])
def test_intrinsics_orders_and_streams(variant):
    done = run(build.program("self_test", variant))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ops_run_on_their_stream_and_are_recorded():
    build.load()
    build.reset()
    means, sh0, shN = torch.randn(1, 200, 3), torch.randn(200, 1, 3), torch.randn(200, 15, 3)
    colors = torch.ops.gsfields_emulated.spherical_harmonics(means, sh0, shN, None, 3)
    assert torch.isfinite(colors).all()
    assert build.calls() == [build.Call("launch", build.STREAM, 0, "sh_kernel")]
    assert build.count_calls() == {"launch": 1}
    build.reset()
    assert build.calls() == [] and build.report() == ""


def test_products_on_tensor_cores_compile(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    flags = ["-std=c++20", "-O3", "-Icsrc", "-Xptxas=-warn-spills,-warn-lmem-usage", "-Werror=all-warnings"]
    flags += [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (75, 80, 86, 89, 90, 100, 120)]
    command = ["nvcc", *flags, "-c", str(build.EMULATOR / "mma.cu"), "-o", str(tmp_path / "mma.o")]
    done = subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr

"""All CUDA kernels under the sanitizers, on small scenes and in two orders of threads."""

from __future__ import annotations

import subprocess

import pytest

from tests.emulator import build


@pytest.mark.parametrize("variant", build.SANITIZERS)
def test_kernels(variant):
    if problem := build.missing(variant):
        pytest.skip(problem)
    done = subprocess.run(
        [str(build.program("scenes", variant))], capture_output=True, text=True, timeout=200
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer cannot map its memory here")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.kernels.backends import cuda_kernels_on_the_cpu


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The tests' tensors are small: more threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["cpu", "cuda"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Once with the CPU kernels, once with the CUDA kernels as tests/emulator runs them, both on CPU tensors."""
    if request.param == "cpu":
        yield "cpu"
        return
    with cuda_kernels_on_the_cpu("forward"):
        yield "cuda"

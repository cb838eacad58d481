"""On a GPU only: streams, graphs, and what the host must not wait for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gsfields import ops
from tests.kernels.backends import Backend, running
from tests.kernels.compare import assert_relative
from tests.kernels.scenes import Splats, generator, normal, random_splats, uniform


@pytest.fixture(params=["cuda-float32"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with running(request.param) as backend:
        yield backend


def given(backend: Backend, channels: int) -> tuple[Splats, list[Tensor], Tensor]:
    """Splats, the leaves of a blend, and a gradient of its image."""
    splats = backend.move(random_splats(400, 60, 45, seed=channels))
    rng = generator(channels)
    values = backend.move(uniform(rng, 0, 1, 400, channels))
    leaves = [t.clone().requires_grad_() for t in (values, splats.means2d, splats.conics, splats.opacities2d)]
    return splats, leaves, backend.move(normal(rng, 1, 45, 60, channels))


def passes(
    splats: Splats, leaves: list[Tensor], lists: tuple[Tensor, Tensor], v_image: Tensor
) -> list[Tensor]:
    image, transmittance = ops.blend(*leaves, *lists, splats.width, splats.height)
    return [image.detach(), transmittance.detach(), *torch.autograd.grad(image, leaves, v_image)]


@pytest.mark.parametrize("channels", [3, 40])
def test_a_graph_replays_both_passes_of_a_fixed_plan(backend, channels):
    splats, leaves, v_image = given(backend, channels)
    lists = ops.bin_tiles(*splats.binning)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            passes(splats, leaves, lists, v_image)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = passes(splats, leaves, lists, v_image)
    for seed in (1, 2):
        with torch.no_grad():
            leaves[0].copy_(backend.move(uniform(generator(seed), 0, 1, 400, channels)))
        graph.replay()
        torch.cuda.synchronize()
        for actual, expected in zip(captured, passes(splats, leaves, lists, v_image), strict=True):
            assert_relative(actual, expected, 1e-5)


def test_work_is_on_the_current_stream(backend):
    """Another stream, kept busy first: results are right only if nothing runs anywhere else."""
    splats, leaves, v_image = given(backend, 3)
    expected = passes(splats, leaves, ops.bin_tiles(*splats.binning), v_image)
    means2d = splats.means2d.clone()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        splats.means2d.zero_()
        torch.cuda._sleep(20_000_000)
        splats.means2d.copy_(means2d)
        actual = passes(splats, leaves, ops.bin_tiles(*splats.binning), v_image)
        torch.cuda.current_stream().synchronize()
    for a, e in zip(actual, expected, strict=True):
        assert_relative(a, e, 1e-5)


def test_only_binning_waits_for_the_gpu(backend):
    splats, leaves, v_image = given(backend, 3)
    lists = ops.bin_tiles(*splats.binning)
    passes(splats, leaves, lists, v_image)
    ops.ssim_map(v_image, v_image)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    busy = torch.cuda.Event()
    busy.record()
    passes(splats, leaves, lists, v_image)
    ops.ssim_map(v_image, v_image)
    assert not busy.query(), "the host has waited"
    torch.cuda.synchronize()

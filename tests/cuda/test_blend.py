"""The CUDA kernels of the blend beyond what tests/kernels asks of every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gsfields import ops
from tests.emulator import build as emulator
from tests.kernels.compare import assert_bitwise, assert_relative
from tests.kernels.scenes import Splats, generator, normal, random_splats, uniform

CPU: Any = ops._ops
EMULATED: Any = torch.ops.gsfields_emulated


if problem := emulator.missing():
    pytest.skip(problem, allow_module_level=True)
emulator.load()


def given(n: int, channels: int, dtype: torch.dtype, *, width: int = 37, height: int = 30, **options):
    """Splats, values, background and lists."""
    splats = random_splats(n, width, height, seed=n + channels, **options).to(dtype)
    rng = generator(channels)
    values, background = uniform(rng, -1, 1, n, channels).to(dtype), uniform(rng, -1, 1, channels).to(dtype)
    return splats, values, background, CPU.bin_tiles(*splats.binning)


def forward(namespace: Any, splats: Splats, values: Tensor, background: Tensor, lists: tuple) -> tuple:
    geometry = (splats.means2d, splats.conics, splats.opacities2d)
    return namespace.blend(values, *geometry, background, None, *lists, splats.width, splats.height)


def backward(namespace: Any, splats: Splats, values, background, lists, out, wanted=(True, True, True)):
    geometry = (splats.means2d, splats.conics, splats.opacities2d)
    rng = generator(3)
    upstream = (normal(rng, *t.shape).to(t) for t in out[:2])
    size = (splats.width, splats.height)
    return namespace.blend_backward(
        values, *geometry, background, *lists, out[1], out[2], *upstream, *size, *wanted
    )


@pytest.mark.parametrize("channels", [1, 3, 5, 17, 40])
def test_each_pixel_tells_how_much_of_its_list_it_blended(channels):
    case = given(700, channels, torch.float64, opacity=(0.3, 1.0))
    actual, expected = (forward(namespace, *case)[2] for namespace in (EMULATED, CPU))
    assert_bitwise(actual, expected)
    lengths = case[3][1].diff()
    assert 0 < int(actual.max()) < int(lengths.max()), "some pixels end before their list"


@pytest.mark.parametrize("channels", [2, 3, 20], ids=["few", "three", "many"])
@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, False)])
def test_only_gradients_asked_for(channels, wanted):
    case = given(300, channels, torch.float64)
    out = forward(EMULATED, *case)
    actual, expected = (backward(namespace, *case, out, wanted) for namespace in (EMULATED, CPU))
    for a, e in zip(actual, expected, strict=True):
        assert_relative(a, e, 1e-12)


@pytest.mark.parametrize("channels", [3, 20])
def test_nothing_waits_and_everything_is_on_the_callers_stream(channels):
    """So a captured graph can replay both passes."""
    case = given(300, channels, torch.float32)
    emulator.reset()
    out = forward(EMULATED, *case)
    backward(EMULATED, *case, out)
    assert set(emulator.count_calls()) == {"launch", "memset"}


@pytest.mark.parametrize("channels", [3, 20])
def test_wrong_lists_are_not_followed(channels):
    """The host cannot look at lists on a GPU: ids that are none draw nothing, ranges end where ids end."""
    splats, values, background, (ids, offsets) = given(200, channels, torch.float32)
    expected = forward(EMULATED, splats, values, background, (ids, offsets))
    assert int(offsets[3]) > 5, "the first row of tiles lists Gaussians"
    wrong_ids, wrong_offsets = ids.clone(), offsets.clone()
    wrong_ids[:5] = torch.tensor([-1, 200, 2**31 - 1, -(2**31), 10**6], dtype=torch.int32)
    wrong_offsets[-1] += 1000
    wrong_offsets[0] = -50
    case = (splats, values, background, (wrong_ids, wrong_offsets))
    out = forward(EMULATED, *case)
    assert_bitwise(out[0][:, 16:29], expected[0][:, 16:29], "rows of tiles with right lists")
    assert all(grad.isfinite().all() for grad in backward(EMULATED, *case, out))
    wrong_last = (out[0], out[1], torch.full_like(out[2], 10**9))
    assert all(grad.isfinite().all() for grad in backward(EMULATED, *case, wrong_last))

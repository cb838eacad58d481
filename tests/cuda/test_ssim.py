"""The CUDA kernels of SSIM against the CPU kernels, over the shapes at which their tiles and strips end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.emulator import build as emulator
from tests.kernels.compare import assert_bitwise, assert_relative
from tests.kernels.scenes import generator, normal, uniform

CPU: Any = torch.ops.gsfields
EMULATED: Any = torch.ops.gsfields_emulated
NAMES = ("map", "d_mu", "d_var", "d_cov", "v_image1")
STRIP = 45  # rows
TILE = 128  # pixels times channels

if problem := emulator.missing():
    pytest.skip(problem, allow_module_level=True)
emulator.load()


def results(namespace: Any, image1: Tensor, image2: Tensor, v_map: Tensor) -> tuple[Tensor, ...]:
    """All outputs of both passes."""
    outputs = namespace.ssim(image1, image2)
    return *outputs, namespace.ssim_backward(image1, image2, *outputs[1:], v_map)


def images(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Two images and an upstream gradient."""
    rng = generator(sum(shape))
    return tuple(
        t.to(dtype) for t in (uniform(rng, 0, 1, *shape), uniform(rng, 0, 1, *shape), normal(rng, *shape))
    )


SHAPES = {
    "one_pixel": (1, 1, 1, 1),
    "smaller_than_the_window": (1, 3, 4, 3),
    "one_row": (1, 1, TILE + 1, 1),
    "one_column": (1, 2 * STRIP + 1, 1, 2),
    "whole_tiles": (1, STRIP, TILE, 1),
    "a_pixel_more": (1, STRIP + 1, TILE // 3 + 1, 3),
    "a_pixel_less": (1, STRIP - 1, TILE // 2 - 1, 2),
    "four_channels": (1, STRIP, TILE // 4 + 5, 4),
    "seven_channels": (1, 20, TILE // 4 + 1, 7),
    "many_channels": (1, 13, 37, 40),
    "several_images": (3, 50, 60, 3),
    "no_images": (0, 8, 8, 3),
    "no_channels": (1, 8, 8, 0),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_values_and_gradients(shape, dtype):
    given = images(shape, dtype)
    actual, expected = results(EMULATED, *given), results(CPU, *given)
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert_relative(a, e, 1e-11 if dtype == torch.float64 else 1e-5, name)


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_results_do_not_depend_on_the_order_of_threads(order):
    given = images((2, STRIP + 3, 50, 3), torch.float32)
    expected = results(EMULATED, *given)
    with emulator.order(order, seed=1):
        actual = results(EMULATED, *given)
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert_bitwise(a, e, name)


def test_images_do_not_mix():
    image1, image2, v_map = images((2, 30, 40, 3))
    image1[1], v_map[1] = float("nan"), float("nan")
    for name, t in zip(NAMES, results(EMULATED, image1, image2, v_map), strict=True):
        assert t[0].isfinite().all(), name


@pytest.mark.parametrize("channels", [3, 6])
def test_channels_do_not_mix(channels):
    given = images((1, 50, 45, channels))
    together = results(EMULATED, *given)
    for c in range(channels):
        alone = results(EMULATED, *(t[..., c : c + 1].contiguous() for t in given))
        for name, a, e in zip(NAMES, alone, together, strict=True):
            assert_bitwise(a, e[..., c : c + 1], name)


def test_a_window_reaches_five_pixels():
    """One that is not a number spoils its window and nothing else, also across tiles and strips."""
    y, x = STRIP - 1, TILE // 3 - 1
    image1, image2, _ = images((1, 2 * STRIP, 2 * TILE // 3, 3))
    image1[0, y, x, 1] = float("nan")
    spoiled = torch.zeros_like(image1, dtype=torch.bool)
    spoiled[0, y - 5 : y + 6, x - 5 : x + 6, 1] = True
    assert_bitwise(EMULATED.ssim(image1, image2)[0].isnan(), spoiled)


def test_each_pass_is_one_launch():
    given = images((2, 20, 30, 3), torch.float32)
    emulator.reset()
    results(EMULATED, *given)
    assert emulator.count_calls() == {"launch": 2}

"""The CUDA kernels of binning beyond what tests/kernels asks of every backend: the CPU's lists, to the last entry."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.emulator import build as emulator
from tests.kernels.compare import assert_bitwise
from tests.kernels.scenes import Splats, random_scene, random_splats

CPU: Any = torch.ops.gsfields
EMULATED: Any = torch.ops.gsfields_emulated


if problem := emulator.missing():
    pytest.skip(problem, allow_module_level=True)
emulator.load()


@pytest.fixture(autouse=True)
def poisoned_memory():
    """New memory is garbage, so that what is read before it is written is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_same_lists(splats: Splats) -> None:
    actual, expected = EMULATED.bin_tiles(*splats.binning), CPU.bin_tiles(*splats.binning)
    assert_bitwise(actual[1], expected[1], "tile_offsets")
    assert_bitwise(actual[0], expected[0], "ids")


def ellipses(
    n: int, width: int, height: int, sigmas: tuple[float, float], *, views: int = 1, reach: int = 65535
) -> Splats:
    """Splats around the middle of the image that end only `reach` pixels away, `sigmas` wide along x and y."""
    splats = random_splats(n, width, height, views=views, seed=n + width, opacity=(0.5, 1.0))
    conics = torch.tensor([sigmas[0] ** -2, 0, sigmas[1] ** -2], dtype=torch.float64)
    radii = torch.full_like(splats.radii, reach)
    return replace(splats, conics=conics.expand(views, n, 3).contiguous(), radii=radii)


def negative_depths() -> Splats:
    splats = random_splats(400, 50, 31, views=2, seed=6)
    splats.depths[...] = (splats.depths - 4) * 10.0 ** torch.randint(-20, 20, splats.depths.shape)
    splats.depths[:, ::7] = 0.0
    splats.depths[:, ::14] = -0.0
    return splats


def equal_depths() -> Splats:
    splats = random_splats(700, 50, 31, views=2, seed=7)
    splats.depths[0] = 3
    splats.depths[1] = splats.depths[1].round()
    return splats


def hostile() -> Splats:
    """Numbers that a projection does not give."""
    splats = random_splats(300, 50, 31, views=2, seed=8)
    numbers = (float("nan"), float("inf"), -float("inf"), 1e30, -1.0, 0.0)
    for i, number in enumerate(numbers):
        splats.means2d[:, i, i % 2] = number
        splats.conics[:, 10 + i, i % 3] = number
        splats.opacities2d[:, 20 + i] = number
    splats.conics[:, 30:40, 1] *= 50  # not an ellipse
    splats.radii[:, 40:50] = 2**31 - 1
    splats.radii[:, 50:60, 1] = -5
    return splats


def no_views() -> Splats:
    splats = random_splats(10, 20, 40)
    return replace(
        splats, **{f: getattr(splats, f)[:0] for f in ("means2d", "depths", "conics", "opacities2d", "radii")}
    )


def projected(n: int, width: int, height: int, views: int) -> Splats:
    scene = random_scene(n, width, height, views=views, seed=9)
    means2d, depths, conics, opacities2d, radii = CPU.project(*scene.args, 0.01, 1e10, 0.3, False)
    return Splats(means2d, depths, conics, opacities2d, radii, width, height)


SCENES = {
    "ragged": lambda: random_splats(300, 17, 33, views=2, seed=1),
    "projected": lambda: projected(1500, 75, 50, views=3),
    "many_blocks": lambda: random_splats(5000, 120, 70, views=2, seed=2),
    "one_pixel": lambda: random_splats(300, 1, 1, views=2, seed=3, sigma=20.0),
    "one_tile": lambda: random_splats(300, 16, 16, seed=4),
    "more_than_256_tiles": lambda: random_splats(500, 400, 300, seed=5),
    "negative_depths": negative_depths,
    "equal_depths": equal_depths,
    "hostile": hostile,
    "one_gaussian": lambda: ellipses(1, 40, 50, (5.0, 9.0)),
    "no_gaussians": lambda: random_splats(0, 20, 40, views=2),
    "no_views": no_views,
    "huge": lambda: ellipses(40, 700, 500, (300.0, 200.0), views=2),
    "wide": lambda: ellipses(300, 3000, 40, (900.0, 3.0)),
    "tall": lambda: ellipses(300, 40, 3000, (3.0, 900.0)),
    "boxed": lambda: ellipses(300, 300, 400, (400.0, 400.0), reach=60),
    "65536_tiles": lambda: random_splats(60, 65535, 256, seed=10, sigma=30.0),
    "more_than_65536_tiles": lambda: random_splats(60, 65535, 257, seed=11, sigma=30.0),
    "many_views": lambda: random_splats(8, 1024, 1024, views=17, seed=12),
}
all_scenes = pytest.mark.parametrize("make", SCENES.values(), ids=SCENES.keys())


@all_scenes
def test_lists_are_those_of_the_cpu_in_double(make):
    assert_same_lists(make())


@all_scenes
def test_lists_are_those_of_the_cpu_in_float(make):
    """But for splats that end at the very edge of a tile, as far as rounding goes."""
    splats = make().to(torch.float32)
    tiles = -(-splats.width // 16) * -(-splats.height // 16) * len(splats.depths)
    pairs = []
    for namespace in (EMULATED, CPU):
        ids, offsets = namespace.bin_tiles(*splats.binning)
        assert offsets[0] == 0 and offsets[-1] == len(ids) and offsets.shape == (tiles + 1,)
        tile = torch.repeat_interleave(torch.arange(tiles), offsets.diff())
        pairs.append(list(zip(tile.tolist(), ids.tolist(), strict=True)))
    common = set(pairs[0]) & set(pairs[1])
    assert len(common) >= 0.9999 * max(len(pairs[0]), len(pairs[1]))
    assert [p for p in pairs[0] if p in common] == [p for p in pairs[1] if p in common]


@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize("name", ["projected", "huge", "equal_depths", "more_than_65536_tiles"])
def test_lists_do_not_depend_on_the_order_of_threads(name, order):
    with emulator.order(order, seed=5):
        assert_same_lists(SCENES[name]())


def lengths(splats: Splats) -> torch.Tensor:
    return CPU.bin_tiles(*splats.binning)[1].diff()


@pytest.mark.parametrize("name", ["huge", "wide", "tall"])
def test_scenes_hold_splats_that_take_a_whole_warp(name):
    splats = SCENES[name]()
    assert int(lengths(splats).sum()) > 100 * splats.depths.numel()


@pytest.mark.parametrize("name", ["more_than_65536_tiles", "many_views"])
def test_scenes_use_tiles_beyond_16_bits(name):
    each = lengths(SCENES[name]())
    assert (each[2**16 :] > 0).any() and (each == 0).any()


@pytest.mark.parametrize("rows", [7, 8, 9, 10])
@pytest.mark.parametrize("columns", [2, 3, 4, 5, 31, 33, 65])
def test_splats_about_as_large_as_a_thread_takes_alone(rows, columns):
    """A rectangle of so many tiles in the midst of small splats."""
    width, height = 16 * columns, 16 * rows
    splats = random_splats(64, width, height, seed=rows)
    splats.conics[0, 10:60:7] = torch.tensor([1e-8, 0, 1e-8], dtype=torch.float64)
    splats.radii[0, 10:60:7] = 65535
    assert_same_lists(splats)
    assert int(lengths(splats).min()) >= 8


def test_one_copy_to_the_host_and_one_wait():
    splats = projected(1500, 75, 50, views=3)
    emulator.reset()
    EMULATED.bin_tiles(*splats.binning)
    counts = emulator.count_calls()
    assert counts["device_to_host"] == counts["synchronize"] == 1
    assert counts["host_to_device"] == 0 and counts["memset"] == 1
    (copy,) = (call for call in emulator.calls() if call.kind == "device_to_host")
    assert copy.bytes == 16, "both totals at once"


@pytest.mark.parametrize(("size", "copied"), [((16, 16), 0), ((64, 64), 1), ((300, 300), 0)])
def test_lists_are_sorted_in_place_where_the_number_of_passes_is_even(size, copied):
    """Eight bits of the tile's number to a pass, as the sort does on most GPUs; else the ids are copied once."""
    splats = random_splats(100, *size, seed=13)
    emulator.reset()
    assert_same_lists(splats)
    assert emulator.count_calls()["device_to_device"] == copied


def test_a_tile_lists_each_splat_once():
    splats = ellipses(50, 100, 100, (500.0, 500.0))
    ids, offsets = EMULATED.bin_tiles(*splats.binning)
    order = splats.depths[0].argsort(stable=True).int()
    for begin, end in pairwise(offsets.tolist()):
        assert_bitwise(ids[begin:end], order)

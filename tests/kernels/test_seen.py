"""ops.seen_pairs against a walk over the lists in plain Python, and what it is for: shorter lists, the same bits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsfields import ops
from tests.kernels import oracle
from tests.kernels.compare import assert_bitwise, assert_relative
from tests.kernels.scenes import Splats, generator, normal, random_splats, uniform

# n, width, height, views, pixels, options of the scene
CASES = {
    "sparse": (300, 70, 50, 1, 25, {}),
    "dense": (200, 20, 18, 2, 700, {"sigma": 1.5}),
    "opaque": (400, 37, 20, 1, 60, {"opacity": (0.9, 0.98), "sigma": 3.0}),
    "long_lists": (1300, 20, 16, 1, 40, {"opacity": (0.008, 0.02), "sigma": 4.0}),
    "one_pixel": (100, 1, 1, 3, 2, {}),
}


def drawn_pixels(views: int, count: int, width: int, height: int, seed: int = 0) -> torch.Tensor:
    """[B, P, 2] anywhere, some twice."""
    return (uniform(generator(seed), 0, 1, views, count, 2) * torch.tensor([width, height])).long()


def lists_of(splats: Splats) -> tuple[torch.Tensor, torch.Tensor]:
    return ops.bin_tiles(*splats.binning)


def seen_by(splats: Splats, lists: tuple[torch.Tensor, torch.Tensor], sampled: ops.SampledPixels):
    geometry = (splats.means2d, splats.conics, splats.opacities2d)
    return ops.seen_pairs(*geometry, *lists, splats.width, splats.height, sampled)


def by_a_walk(splats: Splats, ids, ends, pixels, rounding: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What pixels (view, x, y) see, bool [I], and where rounding may decide otherwise, bool [I]."""
    seen, doubtful = [False] * len(ids), [False] * len(ids)
    ids, ends = ids.tolist(), ends.tolist()
    tiles_x, tiles_y = (-(-size // oracle.TILE) for size in (splats.width, splats.height))
    means, conics, opacities = (
        t.double().tolist() for t in (splats.means2d, splats.conics, splats.opacities2d)
    )
    for view, x, y in pixels:
        tile = (view * tiles_y + y // oracle.TILE) * tiles_x + x // oracle.TILE
        T, may_be_off, may_have_stopped = 1.0, 10 * rounding, False
        for k in range(ends[tile], ends[tile + 1]):
            i = ids[k]
            dx, dy = x + 0.5 - means[view][i][0], y + 0.5 - means[view][i][1]
            a, b, c = conics[view][i]
            sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
            alpha = min(oracle.ALPHA_MAX, opacities[view][i] * math.exp(-sigma))
            at_the_limit = abs(alpha / oracle.ALPHA_MIN - 1) < rounding
            if at_the_limit:
                may_be_off += 1.01 * oracle.ALPHA_MIN
            if alpha >= oracle.ALPHA_MIN:
                T *= 1 - alpha
                seen[k] = True
            doubtful[k] |= at_the_limit or may_have_stopped
            may_have_stopped |= abs(T / oracle.TRANSMITTANCE_MIN - 1) < may_be_off
            if T <= oracle.TRANSMITTANCE_MIN and not may_have_stopped:
                break
    return torch.tensor(seen), torch.tensor(doubtful)


@pytest.mark.parametrize("case", CASES)
def test_pairs_are_those_of_a_walk(backend, case):
    n, width, height, views, count, options = CASES[case]
    splats = backend.move(random_splats(n, width, height, views=views, seed=n, **options))
    pixels = drawn_pixels(views, count, width, height)
    lists = lists_of(splats)
    seen = seen_by(splats, lists, ops.sample_pixels(pixels.to(backend.device), views, width, height))
    asked = {(view, *pixel) for view in range(views) for pixel in pixels[view].tolist()}
    rounding = backend.tolerance(1e-4, 1e-9)
    expected, doubtful = by_a_walk(splats, *(t.cpu() for t in lists), asked, rounding)
    assert doubtful.float().mean() < 0.2, "the comparison would be vacuous"
    assert expected[~doubtful].any() and not expected.all()
    assert_bitwise(seen.cpu()[~doubtful], expected[~doubtful])


def shorter(lists: tuple[torch.Tensor, torch.Tensor], kept: torch.Tensor):
    """The lists without the pairs that are not kept."""
    ids, ends = lists
    before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
    return ids[kept], before[ends]


def check_the_others_do_not_matter(
    splats: Splats, pixels: torch.Tensor, channels: int, *, same_order: bool = True
) -> int:
    """Returns how many pairs are left."""
    views, n = splats.means2d.shape[:2]
    values = normal(generator(1), n, channels).to(splats.means2d)
    geometry = (splats.means2d, splats.conics, splats.opacities2d)
    sampled = ops.sample_pixels(pixels.to(values.device), views, splats.width, splats.height)
    lists = lists_of(splats)
    few = shorter(lists, seen_by(splats, lists, sampled))
    size = splats.width, splats.height
    image, transmittance = ops.blend(values, *geometry, *few, *size, sampled=sampled)
    whole, expected = ops.blend(values, *geometry, *lists, *size, sampled=sampled)
    assert_bitwise(transmittance, expected)
    if same_order:
        assert_bitwise(image, whole)
    else:
        assert_relative(image, whole, 1e-6)
    return len(few[0])


@pytest.mark.parametrize("channels", [1, 3, 20, 64, 150])
@pytest.mark.parametrize("case", CASES)
def test_pixels_show_the_same_without_the_others(backend, case, channels):
    n, width, height, views, count, options = CASES[case]
    splats = backend.move(random_splats(n, width, height, views=views, seed=n, **options))
    # Products of matrices on CUDA sum the Gaussians of a list in groups, which then are others.
    same_order = backend.name.startswith("cpu") or backend.dtype == torch.float64 or channels < 16
    pixels = drawn_pixels(views, count, width, height)
    left = check_the_others_do_not_matter(splats, pixels, channels, same_order=same_order)
    assert 0 < left < len(lists_of(splats)[0])


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 300), width=st.integers(1, 50), height=st.integers(1, 50), views=st.integers(1, 3),
    count=st.integers(0, 300), seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float32, torch.float64]),
    least=st.sampled_from([0.005, 0.3, 0.95]),
)  # fmt: skip
def test_any_scene_and_pixels(n, width, height, views, count, seed, dtype, least):
    splats = random_splats(n, width, height, views=views, seed=seed, opacity=(least, 1.0)).to(dtype)
    check_the_others_do_not_matter(splats, drawn_pixels(views, count, width, height, seed), 9)


def test_a_gaussian_that_stops_a_pixel_is_seen(backend):
    """Nobody blends it, but without it that pixel would go on to those behind."""
    x = torch.tensor([3.5, 3.5, 3.5, 7.5]).double()
    variance = torch.tensor([1, 1, 1, 36]).double()
    splats = backend.move(
        Splats(
            torch.stack((x, torch.full_like(x, 8.5)), dim=-1)[None],
            torch.arange(1, 5).double()[None],
            torch.stack((1 / variance, 0 * x, 1 / variance), dim=-1)[None],
            torch.tensor([[0.99, 0.985, 0.6, 0.2]]).double(),
            torch.full((1, 4, 2), 20, dtype=torch.int32),
            16,
            16,
        )
    )
    lists = lists_of(splats)
    assert lists[0].tolist() == [0, 1, 2, 3]
    for pixels, expected in (
        ([[3, 8], [12, 8]], [True, True, True, True]),
        ([[3, 8]], [True, True, True, False]),
        ([[12, 8]], [False, False, False, True]),
    ):
        sampled = ops.sample_pixels(torch.tensor([pixels], device=backend.device), 1, 16, 16)
        assert seen_by(splats, lists, sampled).tolist() == expected
        check_the_others_do_not_matter(splats, torch.tensor([pixels]), 4)


def test_nothing_is_seen_of_nothing(backend):
    splats = backend.move(random_splats(50, 19, 18, seed=0))
    nowhere = ops.sample_pixels(torch.zeros(1, 0, 2, dtype=torch.long, device=backend.device), 1, 19, 18)
    lists = lists_of(splats)
    seen = seen_by(splats, lists, nowhere)
    assert seen.shape == lists[0].shape and not seen.any()
    nobody = backend.move(random_splats(0, 19, 18, seed=0))
    sampled = ops.sample_pixels(torch.tensor([[[3, 4]]], device=backend.device), 1, 19, 18)
    assert seen_by(nobody, lists_of(nobody), sampled).shape == (0,)


BAD = [
    (0, torch.zeros(1, 5, 3), r"means2d has shape \[1, 5, 3\]"),
    (1, torch.zeros(1, 4, 3), r"conics has shape \[1, 4, 3\]"),
    (3, torch.zeros(6, dtype=torch.int64), "ids has dtype"),
    (3, torch.full((6,), 5, dtype=torch.int32), r"ids holds an index outside \[0, N\), N being 5"),
    (4, torch.tensor([0, 7]), "tile_offsets must rise from 0 to the length of ids, which is 6"),
    (5, torch.tensor([256]), "pixels holds 256 in the list of tile 0, where it does not lie"),
    (6, torch.tensor([0, 2]), "pixel_offsets must rise from 0 to the length of pixels, which is 1"),
    (7, 0, "width"),
]


@pytest.mark.parametrize(("place", "bad", "message"), BAD)
def test_bad_arguments(place, bad, message):
    given = [
        torch.zeros(1, 5, 2), torch.zeros(1, 5, 3), torch.zeros(1, 5), torch.zeros(6, dtype=torch.int32),
        torch.tensor([0, 6]), torch.tensor([17]), torch.tensor([0, 1]), 16, 16,
    ]  # fmt: skip
    torch.ops.gsfields.seen_pairs(*given)
    given[place] = bad
    with pytest.raises(ValueError, match=message):
        torch.ops.gsfields.seen_pairs(*given)

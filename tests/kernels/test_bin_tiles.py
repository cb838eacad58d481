"""ops.bin_tiles: every tile lists what touches it, front to back, and little else."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from gsfields import ops
from tests.kernels import oracle
from tests.kernels.scenes import Splats, generator, random_splats


def lists_of(splats: Splats) -> list[list[list[int]]]:
    """ops.bin_tiles as [view][tile] -> Gaussians, after checking what holds of any answer."""
    ids, offsets = ops.bin_tiles(*splats.binning)
    views, n = splats.depths.shape
    tiles = -(-splats.width // 16) * -(-splats.height // 16)
    assert ids.dtype == torch.int32 and offsets.dtype == torch.int64
    assert ids.device == offsets.device == splats.means2d.device
    assert offsets.shape == (views * tiles + 1,)
    assert offsets[0] == 0 and offsets[-1] == len(ids) and (offsets.diff() >= 0).all()
    ids, offsets = ids.tolist(), offsets.tolist()
    lists = [ids[a:b] for a, b in pairwise(offsets)]
    grouped = [lists[tiles * b : tiles * (b + 1)] for b in range(views)]
    for b, view in enumerate(grouped):
        depth, seen = splats.depths[b].tolist(), (splats.radii[b] > 0).all(-1).tolist()
        for entries in view:
            assert all(0 <= i < n and seen[i] for i in entries), "a culled or unknown Gaussian is listed"
            keys = [(depth[i], i) for i in entries]
            assert keys == sorted(set(keys)), "not front to back, or listed twice"
    return grouped


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (50, 31), (64, 64), (5, 97)])
def test_lists_hold_every_touching_gaussian_and_few_others(backend, size):
    width, height = size
    splats = backend.move(random_splats(300, width, height, views=2, seed=width))
    listed, touching = 0, 0
    for b, view in enumerate(lists_of(splats)):
        one = splats.double()
        # A hair fainter than the kernel must keep, so that rounding cannot make a list look short.
        wanted = oracle.tile_lists(
            one.means2d[b],
            one.conics[b],
            one.opacities2d[b] * (1 - 1e-4),
            one.depths[b],
            one.radii[b],
            width,
            height,
        )
        for entries, needed in zip(view, wanted, strict=True):
            assert set(needed) <= set(entries), (
                "a Gaussian that reaches alpha >= 1/255 in a tile is not listed"
            )
            listed, touching = listed + len(entries), touching + len(needed)
    assert touching > 0
    if min(size) > 16:  # the tile test is exact on rectangles of pixels, up to the gaps between pixel centres
        assert listed <= 1.15 * touching


def test_ties_in_depth_are_broken_by_index(backend):
    splats = random_splats(120, 40, 24, seed=2)
    splats.depths[...] = splats.depths.round()
    assert max(len(tile) for tile in lists_of(backend.move(splats))[0]) > 20


def test_nothing_visible_gives_empty_lists(backend):
    splats = random_splats(10, 20, 20, views=2)
    splats.radii[...] = 0
    assert lists_of(backend.move(splats)) == [[[]] * 4] * 2
    assert lists_of(backend.move(random_splats(0, 20, 20, views=2))) == [[[]] * 4] * 2


def test_depths_of_every_magnitude_and_sign_sort_like_numbers(backend):
    splats = random_splats(60, 16, 16, seed=4, sigma=20)
    exponents = torch.linspace(-30, 30, 30, dtype=torch.float64)
    shuffle = torch.randperm(60, generator=generator(4))
    splats.depths[0] = torch.cat([10**exponents, -(10**exponents)])[shuffle]
    splats.radii[...] = splats.radii.clamp_min(20)
    (tile,) = lists_of(backend.move(splats))[0]
    assert len(tile) > 30

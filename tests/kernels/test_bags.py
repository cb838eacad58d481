"""ops.sum_bags against loops over the lists in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsfields import ops
from tests.kernels.compare import assert_bitwise, assert_relative
from tests.kernels.scenes import generator, normal


def lists(rng, things, bags, longest):
    """(members, ends) of bags of 0 to `longest` of the things."""
    counts = torch.randint(0, longest + 1, (bags,), generator=rng) if things else torch.zeros(bags).long()
    members = torch.randint(0, max(things, 1), (int(counts.sum()),), generator=rng)
    return members.int(), counts.cumsum(0)


def by_loops(values, members, shares, ends, bags, place):
    expected = torch.zeros(len(bags), values.shape[1], dtype=torch.float64)
    for b, bag in enumerate(bags.tolist()):
        for k in range(int(ends[bag - 1]) if bag else 0, int(ends[bag])):
            row = int(members[k]) if place is None else int(place[members[k]])
            if row >= 0:
                expected[b] += shares[k].double() * values[row].double()
    return expected


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 16, 63, 64, 65, 150, 1024])
def test_sums_are_those_of_loops(backend, channels, placed):
    rng = generator(channels)
    rows, things, count = (23, 40, 31) if placed else (23, 23, 31)
    values = normal(rng, rows, channels)
    members, ends = lists(rng, things, count, 12)
    shares = normal(rng, len(members))
    place = None
    if placed:  # some have no row, and some the same
        place = torch.randint(-5, rows, (things,), generator=rng).int()
    bags = torch.randint(0, count, (50,), generator=rng)
    found = ops.sum_bags(
        backend.move(values),
        members.to(backend.device),
        backend.move(shares),
        ends.to(backend.device),
        bags.to(backend.device),
        place=None if place is None else place.to(backend.device),
    )
    expected = by_loops(values, members, shares, ends, bags, place)
    assert expected.abs().max() > 0.1
    assert_relative(found, expected, backend.tolerance(1e-5, 1e-13))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 7), st.integers(1, 70), st.integers(0, 2**31))
def test_any_sizes(things, count, longest, channels, seed):
    rng = generator(seed)
    values = normal(rng, things, channels)
    members, ends = lists(rng, things, count, longest)
    shares = normal(rng, len(members))
    bags = torch.randperm(count, generator=rng)
    found = ops.sum_bags(values, members, shares, ends, bags)
    assert_relative(found, by_loops(values, members, shares, ends, bags, None), 1e-13)


def test_the_number_of_threads_does_not_matter():
    rng = generator(3)
    values = normal(rng, 4000, 33).float()
    members, ends = lists(rng, 4000, 3000, 20)
    shares, bags = normal(rng, len(members)).float(), torch.arange(3000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ops.sum_bags(values, members, shares, ends, bags)
        torch.set_num_threads(3)
        assert_bitwise(ops.sum_bags(values, members, shares, ends, bags), alone)
    finally:
        torch.set_num_threads(threads)


BAD = {
    "values has dtype": {"values": torch.ones(5, 3).half()},
    "values has shape": {"values": torch.ones(5)},
    "members has dtype": {"members": torch.tensor([0, 1, 4])},
    "members holds 5, but must be below N=5": {"members": torch.tensor([0, 1, 5]).int()},
    "members holds -1, but must be at least 0": {"members": torch.tensor([0, -1, 4]).int()},
    "shares has shape": {"shares": torch.ones(2)},
    "shares has dtype": {"shares": torch.ones(3).double()},
    "ends has dtype": {"ends": torch.tensor([1, 3]).int()},
    "ends holds 1 at 1": {"ends": torch.tensor([2, 1])},
    "ends holds 4 at 1": {"ends": torch.tensor([2, 4])},
    "ends holds -1 at 0": {"ends": torch.tensor([-1, 1])},
    "bags holds 2, but must be below T=2": {"bags": torch.tensor([0, 2])},
    "bags holds -3": {"bags": torch.tensor([-3])},
    "place has dtype": {"place": torch.arange(5)},
    "place holds 5, but must be below M=5": {"place": torch.tensor([0, 5, -7]).int()},
    "members holds 4, but must be below N=2": {"place": torch.tensor([0, 1]).int()},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_lists_get_one_sentence(message):
    given = {
        "values": torch.ones(5, 3), "members": torch.tensor([0, 1, 4]).int(), "shares": torch.ones(3),
        "ends": torch.tensor([1, 3]), "bags": torch.tensor([0, 1]),
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"^{message}"):
        ops.sum_bags(**given | BAD[message])

"""ops.follow_rows against averages that move one step after another in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsfields import ops
from tests.kernels.compare import assert_bitwise, assert_relative
from tests.kernels.scenes import generator, normal


def step_by_step(fast, slow, followed, rows, follows, momentum):
    """The slow rows after all moves that each missed."""
    slow = slow.clone()
    for row in rows.tolist():
        for _ in range(follows - int(followed[row])):
            slow[row] = momentum * slow[row] + (1 - momentum) * fast[row]
    return slow


def some_rows(rng, n, dim, count, most):
    fast, slow = normal(rng, n, dim), normal(rng, n, dim)
    followed = most - torch.randint(0, most + 1, (n,), generator=rng)
    return fast, slow, followed.int(), torch.randperm(n, generator=rng)[:count]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dim", [1, 3, 16, 37, 64, 1024])
def test_rows_make_the_moves_that_they_missed(backend, dim, momentum):
    fast, slow, followed, rows = some_rows(generator(dim), 40, dim, 23, 30)
    average, made = backend.move(slow).clone(), followed.clone().to(backend.device)
    both = ops.follow_rows(
        backend.move(fast), average, made, rows.to(backend.device), follows=30, momentum=momentum
    )
    expected = step_by_step(fast, slow, followed, rows, 30, momentum)
    tolerance = backend.tolerance(1e-5, 1e-13)
    assert both.shape == (23, 2 * dim)
    assert_relative(both[:, :dim], fast[rows], tolerance)
    assert_relative(both[:, dim:], expected[rows], tolerance)
    assert_relative(average, expected, tolerance)
    assert_bitwise(both[:, dim:], average[rows.to(backend.device)])
    assert made[rows.to(backend.device)].eq(30).all()
    others = torch.ones(40).bool().index_fill_(0, rows, False)
    assert torch.equal(made.cpu()[others], followed[others])


def test_who_missed_nothing_stays_as_it_is(backend):
    fast, slow, _, rows = some_rows(generator(5), 20, 7, 20, 1)
    average, made = backend.move(slow).clone(), torch.full((20,), 4, device=backend.device).int()
    for _ in range(3):
        ops.follow_rows(backend.move(fast), average, made, rows.to(backend.device), follows=4, momentum=0.9)
    assert_bitwise(average, backend.move(slow))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9), st.integers(1, 70), st.integers(0, 5000), st.floats(0, 1), st.integers(0, 2**31))
def test_any_numbers(n, dim, most, momentum, seed):
    fast, slow, followed, rows = some_rows(generator(seed), n, dim, n, most)
    left = momentum ** (most - followed.double())[rows, None]
    expected = fast[rows] + left * (slow[rows] - fast[rows])
    both = ops.follow_rows(fast, slow.clone(), followed, rows, follows=most, momentum=momentum)
    torch.testing.assert_close(both, torch.cat((fast[rows], expected), dim=1), rtol=1e-10, atol=1e-12)


def test_the_number_of_threads_does_not_matter():
    fast, slow, followed, rows = some_rows(generator(3), 5000, 17, 4000, 90)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            arguments = (fast.float(), slow.float(), followed.clone(), rows)
            results.append(ops.follow_rows(*arguments, follows=90, momentum=0.9))
    finally:
        torch.set_num_threads(threads)
    assert_bitwise(*results)


BAD = {
    "fast has shape": {"fast": torch.ones(7)},
    "fast has dtype": {"fast": torch.ones(7, 4).half()},
    "slow has shape": {"slow": torch.zeros(7, 3)},
    "slow has dtype": {"slow": torch.zeros(7, 4).double()},
    "slow must be contiguous": {"slow": torch.zeros(4, 7).T},
    "followed has dtype": {"followed": torch.zeros(7).long()},
    "followed has shape": {"followed": torch.zeros(6).int()},
    "followed must be contiguous": {"followed": torch.zeros(7, 2).int()[:, 0]},
    "rows holds 7, but must be below N=7": {"rows": torch.tensor([1, 7])},
    "rows holds -1, but must be at least 0": {"rows": torch.tensor([-1, 0])},
    "rows has dtype": {"rows": torch.tensor([0, 1]).int()},
    "follows is -1": {"follows": -1},
    "follows is 2147483648": {"follows": 2**31},
    "momentum is 1.5": {"momentum": 1.5},
    "momentum is nan": {"momentum": float("nan")},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_rows_get_one_sentence(message):
    given = {
        "fast": torch.ones(7, 4), "slow": torch.zeros(7, 4), "followed": torch.zeros(7).int(),
        "rows": torch.tensor([0, 1]), "follows": 1, "momentum": 0.9,
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"^{message}"):
        ops.follow_rows(**given | BAD[message])

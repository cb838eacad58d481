"""Instance fields: fast embeddings that learn, slow ones that follow, and where both begin."""

import pytest
import torch

from gsfields.fields.instances import FreeField, PositionField, start_at_positions

G = torch.Generator


def cloud(count=50, seed=0):
    return torch.randn(count, 3, generator=G().manual_seed(seed)) * torch.tensor([3.0, 1.0, 0.5]) + 7


def fields(dim=4):
    torch.manual_seed(1)
    return [FreeField(torch.randn(50, dim)), PositionField(cloud(), dim)]


@pytest.mark.parametrize("which", [0, 1])
def test_both_are_fast_and_slow_and_only_fast_learns(which):
    field = fields()[which]
    both = field.both()
    assert both.shape == (50, 8) and field.dim == 4
    torch.testing.assert_close(both[:, :4], field.fast(), rtol=0, atol=0)
    torch.testing.assert_close(both[:, 4:], field.slow(), rtol=0, atol=0)
    assert not field.slow().requires_grad
    both[:, 4:].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in field.parameters())
    field.both()[:, :4].square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in field.parameters())


def test_the_slow_copy_is_a_moving_average():
    """After steps to θ₁, θ₂, …: slow = 0.9ⁿ θ₀ + 0.1 Σ 0.9^(n - k) θₖ."""
    start = torch.randn(6, 2)
    field = FreeField(start)
    expected, value = start.clone(), start.clone()
    for k in range(5):
        value = value + k
        with torch.no_grad():
            field.theta.copy_(value)
        field.follow()
        expected = 0.9 * expected + 0.1 * value
        torch.testing.assert_close(field.slow(), expected)
        torch.testing.assert_close(field.fast().detach(), value)
    assert not torch.equal(start, field.theta)  # the start is a copy


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_slow_rows_catch_up_with_what_they_missed(momentum):
    """Rows that are asked for now and then, and moved only then, follow as if all had been asked for each time."""
    rng = G().manual_seed(4)
    start = torch.randn(30, 3, generator=rng)
    field, slow = FreeField(start, momentum), start.clone()
    for _ in range(40):
        field.follow()
        slow = momentum * slow + (1 - momentum) * field.theta.detach()
        rows = torch.randperm(30, generator=rng)[: int(torch.randint(0, 12, (), generator=rng))]
        torch.testing.assert_close(field.slow(rows), slow[rows])
        with torch.no_grad():
            field.theta[rows] += torch.randn(len(rows), 3, generator=rng)
    torch.testing.assert_close(field.slow(), slow)


@pytest.mark.parametrize("which", [0, 1])
def test_rows_are_those_of_the_whole(which):
    field = fields()[which]
    field.follow()
    rows = torch.tensor([7, 3, 49])
    torch.testing.assert_close(field.both(rows), field.both()[rows])
    field.both(rows).square().sum().backward()
    if which == 0:
        assert field.theta.grad.is_sparse and torch.equal(field.theta.grad._indices()[0], rows)


def test_the_slow_network_follows_weight_by_weight():
    field = PositionField(cloud(), 3, 0.75)
    before = [p.clone() for p in field.average.parameters()]
    fast = [p.clone() for p in field.network.parameters()]
    assert not torch.equal(before[0], fast[0])  # weights of its own
    field.follow()
    for slow, old, new in zip(field.average.parameters(), before, fast, strict=True):
        torch.testing.assert_close(slow, 0.75 * old + 0.25 * new)
    for now, old in zip(field.network.parameters(), fast, strict=True):
        assert torch.equal(now, old)
    assert not any(p.requires_grad for p in field.average.parameters())


def test_the_network_is_that_of_the_paper_and_sees_shape_not_place_nor_scale():
    means = cloud()
    made = []
    for given in (means, 40 * means - 9):
        torch.manual_seed(3)
        made.append(PositionField(given, 3))
    torch.testing.assert_close(made[0].fast(), made[1].fast(), rtol=1e-4, atol=1e-5)
    linear = [m for m in made[0].network if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in linear] == [256] * 4 + [3] and linear[0].in_features == 3
    assert isinstance(made[0].network[-1], torch.nn.Linear)  # no bound
    assert made[0].points.norm(dim=1).quantile(0.9) == pytest.approx(1)
    assert len([m for m in PositionField(means, 2, layers=4).network if isinstance(m, torch.nn.Linear)]) == 4


@pytest.mark.parametrize("dim", [1, 3, 24])
def test_neighbours_begin_as_neighbours(dim):
    means = cloud(400)
    start = start_at_positions(means, dim, G().manual_seed(0))
    assert start.shape == (400, dim)
    torch.testing.assert_close(start, start_at_positions(means, dim, G().manual_seed(0)))
    assert not torch.equal(start, start_at_positions(means, dim, G().manual_seed(1)))
    shared = min(3, dim)
    centred = means - means.mean(dim=0)
    bare = start_at_positions(means, dim, G(), noise=0.0)
    spread = centred.norm(dim=1).quantile(0.9)
    torch.testing.assert_close(bare[:, :shared], (0.5 * centred / spread)[:, :shared])
    assert not bare[:, shared:].any()
    assert (start - bare).std() == pytest.approx(0.05, rel=0.15)


def test_one_gaussian_alone_is_no_trouble():
    one = torch.tensor([[1.0, 2.0, 3.0]])
    assert start_at_positions(one, 3, G()).isfinite().all()
    assert PositionField(one, 2).fast().isfinite().all()


def test_bad_inputs_get_one_sentence():
    for bad in (torch.zeros(0, 3), torch.zeros(4), torch.zeros(4, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"start must be floating point \[N, D\] with N >= 1"):
            FreeField(bad)
        with pytest.raises(ValueError, match="means must be"):
            PositionField(bad, 3)
        with pytest.raises(ValueError, match="means must be"):
            start_at_positions(bad, 3, G())

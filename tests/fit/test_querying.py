"""Queries by few directions: they answer as the whole embeddings do, within the bound that they state."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gsfields
from gsfields.camera import Camera
from gsfields.fields.query_basis import QueryBasis, doubt_allowed, error_of
from gsfields.fit import querying
from gsfields.fit.querying import Askable, ViewQueries, asked_plainly
from gsfields.plans import Plan

N, D, E = 300, 24, 40


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture(scope="module")
def plan() -> Plan:
    g = torch.Generator().manual_seed(0)
    camera = Camera.look_at([0, 0, -4], [0, 0, 0], [0, 1, 0], fov_y_degrees=40, width=45, height=33)
    return gsfields.plan(
        0.7 * torch.randn(N, 3, generator=g), torch.randn(N, 4, generator=g),
        0.05 + 0.1 * torch.rand(N, 3, generator=g), 0.3 + 0.6 * torch.rand(N, generator=g),
        camera.viewmat, camera.K, camera.width, camera.height,
    )  # fmt: skip


def embeddings(decay: float) -> tuple[torch.Tensor, torch.Tensor]:
    """θ [N, D] and W [E, D] whose directions matter less and less."""
    return some(N, D) * decay ** torch.arange(D), some(E, D, seed=1)


@pytest.fixture
def phrases():
    return some(3, E, seed=2)


def test_a_basis_holds_the_embeddings():
    theta, projection = embeddings(0.9)
    basis = QueryBasis.of(theta, projection)
    assert basis.rank == D and len(basis) == N and basis.width == E
    torch.testing.assert_close(basis.directions.T @ basis.directions, torch.eye(D), atol=1e-5, rtol=0)
    whole = theta @ projection.T
    torch.testing.assert_close(basis.coefficients @ basis.directions.T, whole, atol=1e-3, rtol=1e-4)
    texts = some(4, E, seed=3)
    torch.testing.assert_close(basis.products(texts), whole @ texts.T, atol=5e-3, rtol=1e-4)
    torch.testing.assert_close(basis.rows(torch.tensor([5, 2])).coefficients, basis.coefficients[[5, 2]])


def test_directions_are_those_that_say_most():
    """No others of that number leave less: those of a singular value decomposition."""
    theta, projection = embeddings(0.8)
    basis = QueryBasis.of(theta, projection)
    values = torch.linalg.svdvals(theta @ projection.T)
    for count in (0, 5, 10, 15, D):
        left = basis.rest(count).square().sum()
        torch.testing.assert_close(left, values[count:].square().sum(), rtol=1e-3, atol=1e-3)
    nothing = QueryBasis.of(torch.zeros(N, D), projection)
    assert nothing.rank == 1 and not nothing.coefficients.any()


@given(st.floats(0, 3), st.floats(-1, 1), st.floats(0.1, 30))
def test_the_slope_bounds_what_a_length_does(doubt, cosine, temperature):
    """A length that is short by a factor of up to √(1 + δ²) moves no relevancy by more than is said."""
    for share in (0.3, 1.0):
        longer = math.sqrt(1 + share * doubt**2)
        moved = abs(sigmoid(temperature * cosine * longer) - sigmoid(temperature * cosine))
        assert moved <= float(error_of(torch.tensor(doubt, dtype=torch.float64))) + 1e-12
    assert float(error_of(torch.tensor(doubt_allowed(0.02)))) == pytest.approx(0.02)


@pytest.mark.parametrize("decay", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-5])
def test_answers_are_within_the_bound_and_the_tolerance(plan, phrases, decay, tolerance, monkeypatch):
    monkeypatch.setattr(querying, "_FIRST", 3)
    theta, projection = embeddings(decay)
    theta[:, 0] += 3  # embeddings have much in common, as those of CLIP
    askable = Askable(QueryBasis.of(theta, projection), phrases)
    asked = ViewQueries(plan, askable, tolerance=tolerance)
    texts = torch.cat((theta[:2] @ projection.T, some(4, E, seed=3)))
    answer = asked.ask(texts)
    expected = asked_plainly(plan, askable, texts)
    error = (answer.relevancy - expected)[answer.alpha > 0.01].abs().max()
    assert answer.relevancy.shape == (33, 45, 6) and error <= answer.bound + 2e-5
    assert answer.bound <= tolerance * 1.001
    if tolerance == 1e-1:
        assert error > 1e-6  # something was left out
    one_by_one = [asked.ask(text[None]).relevancy[..., 0] for text in texts]
    torch.testing.assert_close(torch.stack(one_by_one, dim=-1), answer.relevancy)


def test_directions_are_blended_where_lengths_are_in_doubt(plan, phrases, monkeypatch):
    monkeypatch.setattr(querying, "_FIRST", 3)
    monkeypatch.setattr(querying, "_MORE", 2)
    theta, projection = embeddings(0.7)
    theta[:, 0] += 3
    basis = QueryBasis.of(theta, projection)
    asked = ViewQueries(plan, Askable(basis, phrases), tolerance=1e-3)
    directions, pixels = zip(*asked.channels)
    assert directions[0] == 3 and pixels[0] == 33 * 45 > pixels[1] > 0
    assert list(pixels) == sorted(pixels, reverse=True) and directions[-1] < basis.rank
    whole = plan.blend(basis.coefficients).norm(dim=-1)
    assert (asked.length <= whole * (1 + 1e-5)).all()
    longest = asked.length * math.sqrt(1 + doubt_allowed(1e-3) ** 2)
    assert (whole <= longest * (1 + 1e-5) + 1e-6).all()


def test_some_of_the_gaussians(phrases):
    """They share what was prepared for all, so that views of some need not prepare it again."""
    asked = Askable(QueryBasis.of(*embeddings(0.9)), phrases)
    index = torch.tensor([7, 3])
    some_of_them = asked.rows(index)
    torch.testing.assert_close(some_of_them.values, asked.values[index])
    assert some_of_them.first == asked.first and asked.values.shape == (N, asked.first + 1 + 3)


def test_nothing_is_as_relevant_as_anything(phrases):
    empty = gsfields.plan(
        torch.zeros(0, 3),
        torch.zeros(0, 4),
        torch.zeros(0, 3),
        torch.zeros(0),
        torch.eye(4),
        torch.eye(3),
        5,
        4,
    )
    basis = QueryBasis.of(torch.zeros(0, D), some(E, D))
    asked = ViewQueries(empty, Askable(basis, phrases))
    answer = asked.ask(some(2, E))
    assert (answer.relevancy == 0.5).all() and not answer.alpha.any() and answer.bound == 0
    assert asked.ask(torch.zeros(0, E)).relevancy.shape == (4, 5, 0)


def test_bad_arguments(plan, phrases):
    basis = QueryBasis.of(*embeddings(0.9))
    with pytest.raises(ValueError, match=r"\[N, R\] and \[E, R\]"):
        replace(basis, coefficients=some(N, 3))
    for bad in (some(3, 39), some(0, E), some(E)):
        with pytest.raises(ValueError, match=r"phrases must be \[K, E=40\] with K >= 1"):
            Askable(basis, bad)
    with pytest.raises(ValueError, match="tolerance must be positive, but is 0"):
        ViewQueries(plan, Askable(basis, phrases), tolerance=0)
    with pytest.raises(ValueError, match=r"texts must be \[Q, E=40\], but is \[2, 41\]"):
        ViewQueries(plan, Askable(basis, phrases)).ask(some(2, 41))

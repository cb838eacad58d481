"""Relevancy: the released code's numbers, the softmax written out, and what must hold for any vectors."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsfields.fields.relevancy import CANONICAL, TEMPERATURE, from_products, relevancy

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "lerf_langsplat.json"
seeds = st.integers(0, 2**31 - 1)


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip("../shared/golden/lerf_langsplat.json is not present")
    return json.loads(GOLDEN.read_text())["relevancy"]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unit(*shape, seed=0):
    vectors = normal(*shape, seed=seed)
    return vectors / vectors.norm(dim=-1, keepdim=True)


def written_out(embedding, query, canonical, temperature=10.0):
    """The softmax against each phrase, of which the least counts, in Python's own floats."""
    least = 1.0
    for phrase in canonical:
        positive = math.exp(temperature * sum(a * b for a, b in zip(embedding, query)))
        negative = math.exp(temperature * sum(a * b for a, b in zip(embedding, phrase)))
        least = min(least, positive / (positive + negative))
    return least


def test_golden_numbers(golden):
    pos, neg, emb = (torch.tensor(golden[name], dtype=torch.float64) for name in ("pos", "neg", "emb"))
    pairs = torch.tensor([golden["out_pos0_pairs[pos,neg]"], golden["out_pos1"]], dtype=torch.float64)
    scores = relevancy(emb, pos, neg)
    torch.testing.assert_close(scores.T, pairs[..., 0], atol=2e-6, rtol=0)
    torch.testing.assert_close(1 - scores.T, pairs[..., 1], atol=2e-6, rtol=0)

    # embeddings that are not of length 1 change the temperature
    tripled = torch.tensor(golden["out_pos0_emb_times3"], dtype=torch.float64)
    as_given = relevancy(3 * emb, pos, neg, normalise=False)
    torch.testing.assert_close(as_given[:, 0], tripled[:, 0], atol=2e-6, rtol=0)
    torch.testing.assert_close(1 - as_given[:, 0], tripled[:, 1], atol=2e-6, rtol=0)
    torch.testing.assert_close(relevancy(3 * emb, pos, neg), scores)

    maps = torch.tensor(golden["max_across[2 levels(emb,3*emb)][2 phrases][1][7]"], dtype=torch.float64)
    levels = torch.stack((emb, 3 * emb))[:, None]  # [level, row, pixel, D]
    levels_of_queries = relevancy(levels, pos, neg, normalise=False).permute(0, 3, 1, 2)
    torch.testing.assert_close(levels_of_queries, maps, atol=2e-6, rtol=0)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.sampled_from([1.0, 10.0]))
def test_is_the_least_softmax(seed, q, k, d, temperature):
    embeddings, queries, canonical = (
        unit(5, d, seed=seed),
        unit(q, d, seed=seed + 1),
        unit(k, d, seed=seed + 2),
    )
    scores = relevancy(embeddings, queries, canonical, temperature=temperature)
    assert scores.shape == (5, q)
    expected = [
        [written_out(e, x, canonical.tolist(), temperature) for x in queries.tolist()]
        for e in embeddings.tolist()
    ]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))
    assert ((scores > 0) & (scores < 1)).all()


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_what_must_hold_for_any_vectors(seed):
    e, q, c = normal(6, 5, seed=seed), normal(3, 5, seed=seed + 1), normal(4, 5, seed=seed + 2)
    scores = relevancy(e, q, c)
    # a rotation of all embeddings, and lengths, change nothing
    rotation = torch.linalg.qr(normal(5, 5, seed=seed + 3)).Q
    torch.testing.assert_close(relevancy(e @ rotation, q @ rotation, c @ rotation), scores)
    lengths = torch.linspace(1e-6, 1e6, 6, dtype=torch.float64)[:, None]
    torch.testing.assert_close(relevancy(e * lengths, 7 * q, 0.01 * c), scores)
    # monotone in e·q: the order of queries is the order of their products
    products = torch.nn.functional.normalize(e, dim=1) @ torch.nn.functional.normalize(q, dim=1).T
    assert torch.equal(scores.argsort(dim=1), products.argsort(dim=1))
    # a query that is the best canonical phrase gets 1/2, another of them at most that
    against_itself = relevancy(e, c, c)
    torch.testing.assert_close(against_itself.amax(dim=1), torch.full((6,), 0.5, dtype=torch.float64))
    # one more canonical phrase never helps
    assert (relevancy(e, q, torch.cat((c, normal(1, 5, seed=seed + 4)))) <= scores + 1e-12).all()


def test_products_of_parts_can_be_summed():
    """Dot products are linear, so a blend of products scores like the blend."""
    parts, weights = normal(9, 8), normal(4, 9, seed=1)
    phrases = normal(5, 8, seed=2)
    blended = relevancy(weights @ parts, phrases[:2], phrases[2:], normalise=False)
    torch.testing.assert_close(from_products(weights @ (parts @ phrases.T), 2), blended)


def test_zeros_are_half_relevant_to_everything():
    embeddings = torch.zeros(2, 3, 4, requires_grad=True)
    scores = relevancy(embeddings, normal(2, 4).float(), normal(3, 4, seed=1).float())
    assert scores.shape == (2, 3, 2)
    assert (scores == 0.5).all()
    scores.sum().backward()
    assert embeddings.grad.isfinite().all()


def test_types_and_shapes():
    e, q, c = normal(7, 4), normal(2, 4, seed=1), normal(3, 4, seed=2)
    exact = relevancy(e, q, c)
    assert exact.dtype == torch.float64
    assert relevancy(e.float(), q, c).dtype == torch.float64
    single = relevancy(e.float(), q.float(), c.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, atol=1e-5, rtol=1e-5)
    half = relevancy(e.half(), q.half(), c.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, atol=2e-2, rtol=0)
    torch.testing.assert_close(relevancy(e[0], q, c), exact[0])
    assert relevancy(e[:0], q, c).shape == (0, 2)
    assert relevancy(e, q[:0], c).shape == (7, 0)
    extreme = relevancy(torch.eye(2), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), temperature=1e4)
    assert extreme.isfinite().all()


def test_the_released_settings():
    assert CANONICAL == ("object", "things", "stuff", "texture")
    assert TEMPERATURE == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": torch.zeros(())}, r"embeddings must be \[..., D\], but are \[\]"),
        ({"embeddings": torch.zeros(3, 4).int()}, "embeddings must be floating point, but are torch.int32"),
        ({"queries": torch.zeros(4)}, r"queries must be \[Q, D\], but are \[4\]"),
        ({"queries": torch.zeros(2, 5)}, r"queries must be \[Q, 4\], as wide as the embeddings"),
        ({"canonical": torch.zeros(2, 5)}, r"canonical must be \[K, 4\].* but are \[2, 5\]"),
        ({"canonical": torch.zeros(0, 4)}, "canonical phrases must be at least one"),
        ({"temperature": 0.0}, "temperature must be a positive number, but is 0.0"),
        ({"temperature": math.nan}, "temperature must be a positive number, but is nan"),
    ],
)
def test_bad_input(change, message):
    arguments = {
        "embeddings": torch.zeros(3, 4),
        "queries": torch.zeros(2, 4),
        "canonical": torch.zeros(2, 4),
    }
    with pytest.raises(ValueError, match=message):
        relevancy(**{**arguments, **change})


def test_bad_products():
    with pytest.raises(ValueError, match="canonical phrases must be at least one, beside the 3 queries"):
        from_products(torch.zeros(5, 3), 3)
    with pytest.raises(ValueError, match="must not be negative, but is -1"):
        from_products(torch.zeros(5, 3), -1)
    with pytest.raises(ValueError, match=r"products must be \[..., Q \+ K\]"):
        from_products(torch.zeros(5, 3, dtype=torch.int64), 1)

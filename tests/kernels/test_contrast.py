"""ops.contrast against matrices of all pairs in float64, and ops.adam_rows against torch's Adam."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from gsfields import ops
from gsfields.losses.pairs import Similarity
from tests.kernels.backends import Backend
from tests.kernels.compare import assert_bitwise, assert_relative
from tests.kernels.scenes import generator, normal

SHAPES = [
    (1, 1, 1),
    (1, 40, 3),
    (5, 1, 2),
    (37, 53, 3),
    (70, 64, 16),
    (130, 200, 17),
    (64, 15, 24),
    (9, 700, 65),
]


def of_all_pairs(features, others, segments, other_segments, similarity: Similarity, own_partner: bool):
    """The losses from matrices [P, Q]."""
    same = segments[:, None] == other_segments
    x = torch.cdist(features, others, compute_mode="donot_use_mm_for_euclid_dist") ** similarity.power
    own = similarity.partner_temperature or similarity.temperature
    scores = -x / torch.where(same, x.new_tensor(own), x.new_tensor(similarity.temperature))
    if similarity.kernel == "double":
        scores = scores.exp()
    partners = same if own_partner else same & ~torch.eye(len(same), dtype=torch.bool)
    partners = partners | ~partners.any(
        1, keepdim=True
    )  # of those without all are partners, and the loss is 0
    return scores.logsumexp(1) - scores.masked_fill(~partners, -torch.inf).logsumexp(1)


def drawn(pixels: int, others: int, dim: int, *, scale=1.0, segments=6, seed=0):
    rng = generator(seed)
    features, other = scale * normal(rng, pixels, dim), scale * normal(rng, others, dim)
    ids = [torch.randint(segments, (n,), generator=rng, dtype=torch.int32) for n in (pixels, others)]
    return features, other, *ids


def compare(inputs, similarity: Similarity, backend: Backend, *, own_partner=True, tolerance: float) -> None:
    """Losses and both gradients, by the backend and in float64 of the same numbers."""
    features, others, segments, other_segments = inputs
    settings = {
        "squared": similarity.power == 2, "two_exponentials": similarity.kernel == "double",
        "temperature": similarity.temperature, "partner_temperature": similarity.partner_temperature,
        "own_partner": own_partner,
    }  # fmt: skip
    mine = [backend.move(t).clone().requires_grad_() for t in (features, others)]
    exact = [t.detach().double().cpu().requires_grad_() for t in mine]
    actual = ops.contrast(*mine, *(s.to(backend.device) for s in (segments, other_segments)), **settings)
    expected = of_all_pairs(*exact, segments, other_segments, similarity, own_partner)
    weights = normal(generator(9), len(features))
    actual.backward(backend.move(weights))
    expected.backward(weights)
    assert_relative(actual, expected, tolerance)
    for a, e in zip(mine, exact, strict=True):
        largest = e.grad.abs().max().clamp_min(1e-12)  # where exp(-x) has all but vanished, it may be 0
        assert (a.grad.double().cpu() - e.grad).abs().max() <= 20 * tolerance * largest


@pytest.mark.parametrize("scale", [0.05, 1.0, 6.0])
@pytest.mark.parametrize("kernel", ["plain", "double"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_losses_and_gradients_are_those_of_all_pairs(backend, shape, power, kernel, scale):
    """From embeddings that nearly coincide to such that exp would underflow without care."""
    tolerance = backend.tolerance(3e-6, 1e-13)
    if scale > 1 and power == 2:
        tolerance *= 10  # x reaches 1e4, and exp(-x) has the error of x
    inputs = drawn(*shape, scale=scale, seed=sum(shape))
    compare(inputs, Similarity(power, kernel, 0.3), backend, tolerance=tolerance)


@pytest.mark.parametrize("own_partner", [True, False])
@pytest.mark.parametrize("partner_temperature", [None, 20.0])
def test_pixels_among_themselves(backend, partner_temperature, own_partner):
    features, _, segments, _ = drawn(83, 1, 5, seed=2)
    segments[:3] = torch.tensor([90, 91, 92])  # alone
    similarity = Similarity(2, "double", 1.0, partner_temperature)
    tolerance = backend.tolerance(1e-6, 1e-13)
    compare(
        (features, features, segments, segments),
        similarity,
        backend,
        own_partner=own_partner,
        tolerance=tolerance,
    )


def test_a_pixel_whose_partners_are_far_beyond_the_others(backend):
    """Relative to the nearest of all, what the partners count is 0 in floats, and the loss is the distance still."""
    features, others = torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [150.0, 0.0], [151.0, 0.0]])
    segments, other_segments = torch.tensor([1]).int(), torch.tensor([0, 1, 1]).int()
    mine, segments, other_segments = (
        backend.move(features).requires_grad_(), *(s.to(backend.device) for s in (segments, other_segments))
    )  # fmt: skip
    loss = ops.contrast(mine, backend.move(others), segments, other_segments, squared=False)
    expected = 150 - torch.tensor(-1.0).exp().log1p()
    torch.testing.assert_close(loss.item(), expected.item(), rtol=1e-6, atol=0)
    loss.sum().backward()
    torch.testing.assert_close(mine.grad, backend.move(torch.tensor([[-1.0, 0.0]])))


def test_no_partner_no_loss_no_gradient(backend):
    features, others, *ids = drawn(20, 30, 4)
    features, others = (backend.move(t).requires_grad_() for t in (features, others))
    segments, other_segments = (t.to(backend.device) for t in ids)
    loss = ops.contrast(features, others, segments + 100, other_segments)
    loss.sum().backward()
    assert not loss.any() and not features.grad.any() and not others.grad.any()
    for pixels, count in ((0, 4), (4, 0), (0, 0)):
        nothing = ops.contrast(features[:pixels], others[:count], segments[:pixels], other_segments[:count])
        assert nothing.shape == (pixels,) and not nothing.any()
        for grad in torch.autograd.grad(nothing.sum(), (features, others)):
            assert not grad.any()


@pytest.mark.parametrize("squared", [True, False])
def test_what_is_not_a_number_is_not_hidden(backend, squared):
    features, others, *ids = drawn(9, 12, 3, segments=2)
    features[4, 1] = torch.nan
    features, others = (backend.move(t).requires_grad_() for t in (features, others))
    loss = ops.contrast(features, others, *(t.to(backend.device) for t in ids), squared=squared)
    assert loss.isnan().nonzero().tolist() == [[4]]
    loss[:4].sum().backward()
    assert features.grad[:4].isfinite().all() and not loss[:4].isnan().any()


def test_coinciding_embeddings_have_a_gradient(backend):
    features = backend.move(torch.ones(6, 3)).requires_grad_()
    segments = torch.tensor([0, 0, 1, 1, 2, 2]).int().to(backend.device)
    loss = ops.contrast(features, features.detach(), segments, segments, squared=False)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), backend.move(torch.full((6,), 3.0)).log())
    assert not features.grad.any()


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("kernel", ["plain", "double"])
@pytest.mark.parametrize("own_partner", [True, False])
def test_finite_differences(exact_backend, power, kernel, own_partner):
    features, others, *ids = drawn(7, 7, 3, segments=3, seed=5)
    features, others = (exact_backend.move(t) for t in (features, others))
    segments, other_segments = (t.to(exact_backend.device) for t in ids)
    if not own_partner:
        other_segments = segments
    inputs = (features.requires_grad_(), others.requires_grad_())

    def loss(f, o):
        return ops.contrast(
            f, o, segments, other_segments, squared=power == 2, two_exponentials=kernel == "double",
            temperature=0.7, partner_temperature=2.0, own_partner=own_partner,
        )  # fmt: skip

    assert gradcheck(loss, inputs, eps=1e-6, atol=1e-7, rtol=1e-5)


@given(
    pixels=st.integers(1, 90), others=st.integers(1, 90), dim=st.integers(1, 20),
    segments=st.integers(1, 40), seed=st.integers(0, 1000), squared=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_any_numbers_of_pixels(pixels, others, dim, segments, seed, squared):
    inputs = drawn(pixels, others, dim, segments=segments, seed=seed)
    exact = Backend("cpu-float64", "cpu", torch.float64)
    compare(inputs, Similarity(2 if squared else 1, "plain", 0.5), exact, tolerance=1e-12)


def test_order_and_threads_change_nothing():
    features, others, segments, other_segments = (
        t.float() if t.is_floating_point() else t for t in drawn(300, 280, 9)
    )
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        f, o = features.clone().requires_grad_(), others.clone().requires_grad_()
        loss = ops.contrast(f, o, segments, other_segments)
        loss.mean().backward()
        results.append((loss.detach(), f.grad, o.grad))
    torch.set_num_threads(1)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_bitwise(a, b)
    names = torch.randperm(50, generator=generator(3)).int()  # other names for the same segments
    assert_bitwise(ops.contrast(features, others, names[segments], names[other_segments]), results[0][0])


BAD_CONTRAST = {
    "features has shape": {"features": torch.ones(5)},
    "features has 0 numbers": {"features": torch.ones(5, 0), "others": torch.ones(4, 0)},
    "features has dtype": {"features": torch.ones(5, 3).half()},
    "others has shape": {"others": torch.ones(4, 2)},
    "others has dtype": {"others": torch.ones(4, 3).double()},
    "segments has shape": {"segments": torch.zeros(4).int()},
    "segments has dtype": {"segments": torch.zeros(5).long()},
    "segments must be 0 or above": {"segments": torch.tensor([0, 1, -2, 3, 0]).int()},
    "other_segments must be 0 or above": {"other_segments": torch.tensor([0, 1, -1, 3]).int()},
    "temperature is 0": {"temperature": 0.0},
    "partner_temperature is -1": {"partner_temperature": -1.0},
    "own_partner is false": {"own_partner": False},
}


@pytest.mark.parametrize("message", BAD_CONTRAST)
def test_bad_pairs_get_one_sentence(message):
    given = {
        "features": torch.ones(5, 3), "others": torch.ones(4, 3),
        "segments": torch.zeros(5).int(), "other_segments": torch.zeros(4).int(),
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"^{message}"):
        ops.contrast(**given | BAD_CONTRAST[message])


# ---- adam_rows ----


@pytest.mark.parametrize("dim", [1, 3, 16, 37])
def test_rows_take_the_steps_of_an_adam_of_their_own(backend, dim):
    rng = generator(dim)
    count, rate, betas, eps = 23, 0.05, (0.8, 0.95), 1e-6
    start = normal(rng, count, dim)
    table, first, second = (backend.move(t).clone() for t in (start, 0 * start, 0 * start))
    powers = torch.ones_like(table[:, :1]).repeat(1, 2)
    own = [start[i].clone().requires_grad_() for i in range(count)]
    adams = [torch.optim.Adam([p], lr=rate, betas=betas, eps=eps) for p in own]
    for _ in range(30):
        rows = torch.randperm(count, generator=rng)[: int(torch.randint(0, 9, (), generator=rng))]
        grads = normal(rng, len(rows), dim)
        where = (rows.to(backend.device), backend.move(grads))
        ops.adam_rows(table, first, second, powers, *where, rate=rate, betas=betas, eps=eps)
        for row, grad in zip(rows.tolist(), grads, strict=True):
            own[row].grad = grad.clone()
            adams[row].step()
    expected = torch.stack([p.detach() for p in own])
    assert (expected != start).any(1).sum() > 15
    assert_relative(table, expected, backend.tolerance(2e-5, 1e-12))


BAD_ROWS = {
    "rows holds 7": {"rows": torch.tensor([1, 7])},
    "rows holds -1": {"rows": torch.tensor([-1, 0])},
    "rows has dtype": {"rows": torch.tensor([0, 1]).int()},
    "grads has shape": {"grads": torch.ones(3, 4)},
    "grads has dtype": {"grads": torch.ones(2, 4).double()},
    "first has shape": {"first": torch.zeros(7, 3)},
    "second must be contiguous": {"second": torch.zeros(4, 7).T},
    "powers has shape": {"powers": torch.ones(7)},
    "table has shape": {"table": torch.ones(7)},
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_bad_rows_get_one_sentence(message):
    given = {
        "table": torch.ones(7, 4), "first": torch.zeros(7, 4), "second": torch.zeros(7, 4),
        "powers": torch.ones(7, 2), "rows": torch.tensor([0, 1]), "grads": torch.ones(2, 4),
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"^{message}"):
        ops.adam_rows(**given | BAD_ROWS[message], rate=0.1)

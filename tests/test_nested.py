"""Nested embeddings: lengths, composites, the triplane, and the loss, against what the paper's formulae say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsfields.fields.nested import (
    DirectField,
    Nested,
    NestedField,
    Triplane,
    at_scale,
    composite,
    lengths,
    scale_weights,
    truncated,
)
from gsfields.losses.nested import hierarchical


def some(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ------------------------------------------------------------------------------------------------------- scales


@given(st.integers(1, 600), st.data())
@settings(deadline=None, max_examples=60)
def test_lengths_of_bins(dim, data):
    """s = j / D has D - j numbers, in either precision."""
    j = data.draw(st.integers(0, dim - 1))
    for dtype in (torch.float32, torch.float64):
        assert int(lengths(torch.tensor(j / dim, dtype=dtype), dim)) == dim - j
    assert int(lengths(torch.tensor(1.0), dim)) == 1 and int(lengths(torch.tensor(0.0), dim)) == dim


def test_lengths_between_bins_are_rounded_up():
    scales = torch.tensor([[0.0, 0.2499], [0.25, 0.99]])
    assert lengths(scales, 4).tolist() == [[4, 4], [3, 1]]
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"scales must be in \[0, 1\]"):
            lengths(torch.tensor([0.5, bad]), 4)
    with pytest.raises(ValueError, match="dim must be at least 1, but is 0"):
        lengths(scales, 0)


def test_at_scale_is_the_product_of_the_first_numbers():
    theta, projection = some(5, 7), some(3, 7, seed=1)
    length = torch.tensor([1, 7, 3, 2, 5])
    for row, m in enumerate(length.tolist()):
        expected = projection[:, :m] @ theta[row, :m]
        torch.testing.assert_close(at_scale(theta, projection, length)[row], expected)
    assert torch.equal(truncated(theta, torch.full((5,), 7)), theta)


# --------------------------------------------------------------------------------------------------- composites


def naive_weights(theta, projection, canonical, temperature, chosen):
    """Equation 4.6, one length at a time."""
    dim = len(theta)
    scores = []
    for d in range(1, dim + 1):
        phi = projection[:, :d] @ theta[:d]
        scores.append(max(float(phi @ c) for c in canonical) / temperature if d in chosen else -math.inf)
    top = max(scores)
    raised = [math.exp(s - top) for s in scores]
    return [r / sum(raised) for r in raised]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 9])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_weights_and_composites_by_their_definition(step, temperature):
    theta, projection, canonical = some(4, 6), some(5, 6, seed=1), some(3, 5, seed=2)
    chosen = {*range(step, 7, step), 6}
    gamma = scale_weights(theta, projection, canonical, temperature=temperature, step=step)
    shown = composite(theta, gamma) @ projection.T
    for row in range(4):
        expected = torch.tensor(
            naive_weights(theta[row], projection, canonical, temperature, chosen), dtype=torch.float64
        )
        torch.testing.assert_close(gamma[row], expected)
        whole = sum(expected[d] * projection[:, : d + 1] @ theta[row, : d + 1] for d in range(6))
        torch.testing.assert_close(shown[row], whole)


def test_one_length_alone_is_that_scale():
    theta, projection = some(4, 6), some(5, 6, seed=1)
    for d in range(6):
        gamma = torch.zeros(4, 6, dtype=torch.float64)
        gamma[:, d] = 1
        alone = composite(theta, gamma) @ projection.T
        torch.testing.assert_close(alone, at_scale(theta, projection, torch.full((4,), d + 1)))
    even = torch.softmax(some(4, 6, seed=3), dim=1)
    torch.testing.assert_close(composite(theta, even)[:, 0], theta[:, 0])  # the weights sum to 1


def test_embeddings_that_are_zero_weigh_all_lengths_alike():
    gamma = scale_weights(torch.zeros(2, 8), some(4, 8).float(), some(3, 4).float())
    torch.testing.assert_close(gamma, torch.full((2, 8), 1 / 8))


def test_a_table_in_parts_is_the_same(monkeypatch):
    nested = Nested(some(37, 6), some(5, 6, seed=1))
    canonical = some(3, 5, seed=2)
    whole = nested.composite(canonical, temperature=0.3, step=2)
    gamma = nested.weights(canonical, temperature=0.3, step=2)
    torch.testing.assert_close(whole, composite(nested.theta, gamma))
    monkeypatch.setattr("gsfields.fields.nested._HELD", 24)  # four rows
    assert torch.equal(nested.composite(canonical, temperature=0.3, step=2), whole)
    assert torch.equal(nested.at(0.5), truncated(nested.theta, torch.tensor(3)))
    empty = Nested(torch.zeros(0, 6), torch.zeros(5, 6))
    assert empty.composite(canonical.float()).shape == (0, 6) == empty.weights(canonical.float()).shape


@pytest.mark.parametrize("heed", [0.3, 1.0])
def test_weights_heed_what_was_said(heed):
    """Uneven groups: of 7 numbers 0-1, 2-3 and 4-6; of one row nothing is known."""
    said = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    nested, canonical = Nested(some(3, 7), some(5, 7, seed=1), said), some(3, 5, seed=2)
    gamma = nested.weights(canonical, temperature=0.5, heed=heed)
    plain = scale_weights(nested.theta, nested.projection, canonical, temperature=0.5)
    shares = torch.tensor([[0.25, 0.25, 0, 0, 0.5 / 3, 0.5 / 3, 0.5 / 3], [0, 0, 0.5, 0.5, 0, 0, 0], [0] * 7])
    expected = plain * (heed * shares + (1 - heed) / 7).clamp_min(1e-12)
    torch.testing.assert_close(gamma, expected / expected.sum(dim=1, keepdim=True))
    torch.testing.assert_close(gamma[2], plain[2])
    torch.testing.assert_close(
        nested.composite(canonical, temperature=0.5, heed=heed), composite(nested.theta, gamma)
    )
    assert torch.equal(
        nested.weights(canonical), Nested(nested.theta, nested.projection).weights(canonical, heed=1)
    )
    with pytest.raises(ValueError, match=r"heed must be in \[0, 1\], but is 2"):
        nested.weights(canonical, heed=2)
    with pytest.raises(ValueError, match=r"said must be \[3, G\] like theta"):
        Nested(nested.theta, nested.projection, said[:2])


def test_bad_tables_and_phrases():
    nested = Nested(some(3, 6), some(5, 6))
    with pytest.raises(ValueError, match=r"must be \[N, D\] and \[E, D\], but are \[3, 6\] and \[5, 7\]"):
        Nested(some(3, 6), some(5, 7))
    for bad in (some(2, 4), some(0, 5), some(5)):
        with pytest.raises(ValueError, match=r"canonical must be \[K, E=5\] with K >= 1"):
            nested.composite(bad)
    with pytest.raises(ValueError, match="temperature must be positive"):
        nested.composite(some(2, 5), temperature=0)
    with pytest.raises(ValueError, match="step must be at least 1, but is 0"):
        nested.composite(some(2, 5), step=0)


# ----------------------------------------------------------------------------------------------------- triplane


def dense_planes(triplane):
    """[3, R, R, C] with the texels that are stored in their places."""
    size = triplane.resolution
    planes = torch.zeros(3 * size * size, triplane.table.shape[1])
    planes[triplane.used] = triplane.table.detach()
    return planes.view(3, size, size, -1)


def test_triplane_against_grid_sample():
    torch.manual_seed(0)
    points = torch.rand(60, 3) * torch.tensor([4.0, 2.0, 1.0]) + 7
    triplane = Triplane(points, resolution=9, channels=5, spread=1.0)
    low, high = points.double().quantile(torch.tensor([0.01, 0.99]).double(), dim=0)
    at = ((points.double() - (low + high) / 2) / ((high - low).max() / 2)).clamp(-1, 1).float()
    expected = torch.zeros(60, 5)
    for plane, (a, b) in zip(dense_planes(triplane), ((0, 1), (0, 2), (1, 2))):
        where = at[:, [b, a]].view(1, 60, 1, 2)  # grid_sample takes columns first
        read = torch.nn.functional.grid_sample(plane.permute(2, 0, 1)[None], where, align_corners=True)
        expected += read[0, :, :, 0].T
    torch.testing.assert_close(triplane(), expected, rtol=1e-4, atol=1e-5)
    rows = torch.tensor([5, 0, 59])
    torch.testing.assert_close(triplane(rows), expected[rows], rtol=1e-4, atol=1e-5)


def test_triplane_stores_and_moves_what_points_read():
    points = torch.rand(10, 3)
    triplane = Triplane(points, resolution=256, channels=2)
    assert len(triplane.table) <= 120 < 3 * 256**2
    triplane(torch.tensor([3, 8])).sum().backward()
    grad = triplane.table.grad
    assert grad.is_sparse and grad._nnz() <= 24
    touched = grad.coalesce()
    assert len(touched.indices()[0].unique()) == grad._nnz()  # once each, as the optimizer needs
    weights = torch.zeros(len(triplane.table)).index_add_(
        0, triplane.texels[[3, 8]].long().flatten(), triplane.weights[[3, 8]].flatten()
    )
    torch.testing.assert_close(touched.to_dense(), weights[:, None].expand(-1, 2))


def test_gradients_of_a_triplane():
    """By the definition, of points in any order; none asked for is no gradient."""
    torch.manual_seed(1)
    points = torch.rand(40, 3).round(decimals=1)  # some share texels
    triplane = Triplane(points, resolution=12, channels=3).double()
    rows = torch.randperm(40)[:17]

    def read(table):
        read = table[triplane.texels[rows].long()]
        return (read * triplane.weights[rows][..., None]).sum(dim=1)

    out = triplane(rows)
    torch.testing.assert_close(out, read(triplane.table))
    cotangent = torch.randn_like(out)
    out.backward(cotangent)
    found = triplane.table.grad.to_dense()
    expected = torch.autograd.grad(read(triplane.table), triplane.table, cotangent)[0]
    torch.testing.assert_close(found, expected)
    triplane.table.grad = None
    none = triplane(rows[:0])
    assert none.shape == (0, 3)
    none.sum().backward()
    assert triplane.table.grad._nnz() == 0


@pytest.mark.parametrize(
    ("points", "message"),
    [(torch.zeros(0, 3), "points must be"), (torch.zeros(4, 2), "points must be")],
)
def test_bad_points(points, message):
    with pytest.raises(ValueError, match=message):
        Triplane(points)
    with pytest.raises(ValueError, match="resolution must be at least 2"):
        Triplane(torch.rand(3, 3), resolution=1)


def test_points_at_one_place_and_far_outliers():
    assert Triplane(torch.ones(5, 3), resolution=4, channels=3)().isfinite().all()
    points = torch.rand(200, 3)
    points[7] = 1e6
    assert (
        Triplane(points, resolution=64, channels=1).used.numel()
    ) > 500  # the outlier does not squeeze the rest


def test_fields_say_the_same_of_gaussians_and_of_pixels_that_show_one():
    torch.manual_seed(0)
    field = NestedField(torch.rand(20, 3), width=7, dim=6, resolution=8, channels=4, hidden=16)
    rows = torch.arange(20)
    torch.testing.assert_close(field.embed(field.values(rows)), field.nested().theta)
    assert not field.nested().projection.any() and field.nested().projection.shape == (7, 6)
    with pytest.raises(ValueError, match=r"projection must be \[7, 6\]"):
        NestedField(torch.rand(4, 3), width=7, dim=6, projection=torch.zeros(6, 7))
    direct = DirectField(Nested(some(20, 6), some(7, 6)))
    assert torch.equal(direct.embed(direct.values(rows)), direct.nested().theta)


# --------------------------------------------------------------------------------------------------------- loss


def test_the_loss_by_its_formula():
    theta, projection, target = some(9, 6), some(5, 6, seed=1), some(9, 5, seed=2)
    length = torch.tensor([1, 2, 3, 4, 5, 6, 6, 1, 3])
    weights = some(9, seed=3).abs()
    total = 0.0
    for row in range(9):
        m = int(length[row])
        phi = [sum(float(projection[e, j] * theta[row, j]) for j in range(m)) for e in range(5)]
        gt = target[row].tolist()
        squares = sum((a - b) ** 2 for a, b in zip(phi, gt))
        dot = sum(a * b for a, b in zip(phi, gt))
        cosine = dot / math.sqrt(sum(a * a for a in phi)) / math.sqrt(sum(b * b for b in gt))
        total += float(weights[row]) * (squares + 0.3 * (1 - cosine))
    loss = hierarchical(theta, projection, length, target, cosine=0.3, weights=weights)
    assert float(loss) == pytest.approx(total / 9, rel=1e-12)


def test_gradients_of_the_loss():
    theta, projection, target = some(4, 5).requires_grad_(), some(3, 5, seed=1).requires_grad_(), some(4, 3)
    length = torch.tensor([1, 5, 3, 2])
    assert torch.autograd.gradcheck(
        lambda t, w: hierarchical(t, w, length, target, cosine=0.5), (theta, projection)
    )


def test_a_projection_of_zeros_is_a_start():
    """θ has no gradient there, W has one, and the cosine's is no larger than the square's."""
    theta, target = some(6, 5).requires_grad_(), torch.nn.functional.normalize(some(6, 4, seed=1), dim=1)
    grads = []
    for cosine in (0.0, 0.001):
        projection = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
        loss = hierarchical(theta, projection, torch.full((6,), 5), target, cosine=cosine)
        from_theta, from_projection = torch.autograd.grad(loss, (theta, projection))
        assert loss.item() == pytest.approx(1 + cosine) and not from_theta.any()
        grads.append(from_projection)
    assert 0 < grads[1].norm() < 2 * grads[0].norm()


def test_no_pixels_and_bad_shapes():
    none = hierarchical(
        some(0, 5).requires_grad_(), some(3, 5), torch.zeros(0, dtype=torch.int64), some(0, 3)
    )
    none.backward()
    assert float(none.detach()) == 0
    good = {"theta": some(4, 5), "projection": some(3, 5), "length": torch.ones(4), "target": some(4, 3)}
    for name, bad, message in (
        ("theta", some(4, 6), r"theta and projection must be \[P, D\] and \[E, D\]"),
        ("target", some(4, 5), r"target must be \[4, 3\], but is \[4, 5\]"),
        ("length", torch.ones(3), r"length must be \[4\] like theta, but is \[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            hierarchical(**(good | {name: bad}))

"""What holds for every contrastive loss: gradients, invariances, no NaN for any labels; and how the forms differ."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsfields.losses.contrastive import (
    associative_embedding,
    concentration,
    dino,
    linear_assignment,
    margin,
    segment_consistency,
    slow_fast,
    vanilla,
)
from tests.test_losses_contrastive import FORMS, both_forms, mean, normal, pixels


# Every loss, as a function of its differentiable input [P, C] and labels [P]: two halves are made of the pixels.
def _split(loss, **options):
    def of(features, labels):
        p = len(labels) // 2
        return loss(features[:p], features[p:], labels[:p], labels[p:], **options)

    return of


LOSSES = {
    **{
        f"slow_fast {form} {kernel}": _split(slow_fast, form=form, kernel=kernel)
        for form in FORMS
        for kernel in ("double", "plain")
    },
    **{f"concentration {form}": _split(concentration, form=form) for form in FORMS},
    "dino": _split(dino),
    **{
        f"vanilla {form} {kernel}": lambda f, l, form=form, kernel=kernel: vanilla(
            f, l, form=form, kernel=kernel
        )
        for form in FORMS
        for kernel in ("double", "plain")
    },
    **{
        f"associative {form}": lambda f, l, form=form: associative_embedding(f, l, form=form)
        for form in FORMS
    },
    "margin": margin,
    **{
        f"linear_assignment {form}": lambda f, l, form=form: linear_assignment(f, l, form=form)
        for form in FORMS
    },
    "segment_consistency hard": lambda f, l: segment_consistency(f.abs(), l),
    "segment_consistency soft": lambda f, l: segment_consistency(f.abs(), l, hard=False),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


# ---------------------------------------------------------------------------------------- what holds for each loss


def constant_half(name):
    return name.startswith(("slow_fast", "concentration", "dino"))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "segment_consistency soft"])
def test_gradcheck(name):  # of the soft target, a constant that follows the input: see its own test
    features, labels = normal(10, 3, seed=4), torch.tensor([2, 2, 5, 0, 5, 2, 5, 5, 9, 2])
    variable, constant = features.split([5, 5] if constant_half(name) else [10, 0])
    variable = variable.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: LOSSES[name](torch.cat([f, constant]), labels), (variable,))


@pytest.mark.parametrize("name", LOSSES)
def test_only_slow_and_void_pixels_have_no_gradient(name):
    features, labels = normal(10, 3, seed=4).requires_grad_(), torch.tensor([2, 2, 5, 0, 5, 2, 5, 5, 0, 2])
    LOSSES[name](features, labels).backward()
    moved = features.grad.abs().sum(1) > 0
    expected = labels > 0
    if constant_half(name):
        expected[5:] = False
    assert torch.equal(moved, expected)


@every_loss
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.uint16])
def test_other_numbers_for_the_segments_change_nothing(loss, dtype):
    features, labels, _ = pixels(20)
    names = torch.tensor([0] + [250] * 2 + [17, 2] + [9] * 36)  # 3 → 17, 4 → 2, 40 → 9
    assert loss(features, names[labels].to(dtype)).item() == pytest.approx(
        loss(features, labels).item(), rel=1e-12
    )


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_pixels_changes_nothing(name):
    features, labels, _ = pixels(20)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    order = torch.cat([order, 19 - order])  # halves stay apart
    expected = LOSSES[name](features, labels).item()
    assert LOSSES[name](features[order], labels[order]).item() == pytest.approx(expected, rel=1e-12)


@every_loss
def test_void_pixels_change_nothing(loss):
    features, labels = normal(10, 3), torch.tensor([2, 2, 5, 0, 5, 2, 5, 5, 0, 2])  # one in each half
    kept = labels > 0
    expected = loss(features[kept], labels[kept]).item()
    assert loss(features, labels).item() == pytest.approx(expected, rel=1e-12)
    assert loss(torch.where(kept[:, None], features, 1e3), labels).item() == pytest.approx(
        expected, rel=1e-12
    )


PATTERNS = {
    "no pixels": [],
    "one pixel": [3],
    "one void pixel": [0],
    "all void": [0] * 6,
    "one label": [3] * 6,
    "no shared label": [1, 1, 2, 3, 3, 4],
    "all different": [1, 2, 3, 4, 5, 6],
    "only the fast half": [1, 1, 2, 0, 0, 0],
    "only the slow half": [0, 0, 0, 1, 1, 2],
}


@every_loss
@pytest.mark.parametrize("labels", PATTERNS.values(), ids=PATTERNS.keys())
@pytest.mark.parametrize("points", ["random", "coinciding", "far apart"])
def test_no_pattern_of_labels_gives_nan(loss, labels, points):
    features = normal(len(labels), 3, dtype=torch.float32)
    features = {"random": features, "coinciding": torch.ones_like(features), "far apart": 1e6 * features}[
        points
    ]
    check_finite(loss, features, torch.tensor(labels, dtype=torch.int32))


def check_finite(loss, features, labels):
    features = features.clone().requires_grad_()
    value = loss(features, labels)
    value.backward()
    assert value.shape == () and value.dtype == features.dtype
    assert torch.isfinite(value) and torch.isfinite(features.grad).all()


coordinate = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 1e-6, -3.0, 1e-30, 1e4])
labelled = st.lists(st.tuples(coordinate, coordinate, st.integers(0, 3)), max_size=12)


@given(labelled, st.sampled_from(list(LOSSES)), st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None, max_examples=300)
def test_no_pixels_at_all_give_nan(rows, name, dtype):
    features = torch.tensor([row[:2] for row in rows], dtype=dtype).reshape(len(rows), 2)
    check_finite(LOSSES[name], features, torch.tensor([row[2] for row in rows], dtype=torch.int64))


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if not name.startswith(("linear", "segment", "dino"))]
)
def test_single_precision_far_from_the_origin(name):
    """Only differences count, and little of them is lost where all embeddings share a large offset."""
    features, labels, _ = pixels(60)
    moved = (features + 100).float()
    expected = LOSSES[name](moved.double(), labels).item()
    assert LOSSES[name](moved, labels).item() == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(LOSSES[name](features, labels).item(), rel=1e-3)


def test_rounding_of_large_embeddings_does_not_blow_up():
    """In single precision ‖a‖² + ‖b‖² - 2 a·b of coinciding embeddings may be far below 0."""
    features, labels = 1e4 * normal(200, 24, dtype=torch.float32), torch.arange(200) % 5 + 1
    floor = math.log(1 + 160 / (40 * math.e))
    for loss in (vanilla(features, labels), slow_fast(features, features, labels, labels)):
        assert floor < loss.item() < math.log(5) + 1e-5


# --------------------------------------------------------------------------------------------- what the forms do


@both_forms
def test_the_double_exponential_has_a_floor_and_the_plain_kernel_has_none(form):
    labels = torch.tensor([1, 1, 2, 2, 2])
    apart = torch.tensor([0.0, 100.0])[labels - 1][:, None].double()
    loss = slow_fast(apart, apart, labels, labels, form=form).item()
    floors = [math.log(1 + m / (n * math.e)) for n, m in [(2, 3)] * 2 + [(3, 2)] * 3]
    assert loss == pytest.approx(mean(floors), rel=1e-12)
    wrong = slow_fast(apart, 100 - apart, labels, labels, form=form).item()
    ceilings = [math.log(1 + m * math.e / n) for n, m in [(2, 3)] * 2 + [(3, 2)] * 3]
    assert wrong == pytest.approx(mean(ceilings), rel=1e-12)
    assert slow_fast(apart, apart, labels, labels, form=form, kernel="plain").item() < 1e-30


@both_forms
def test_only_the_plain_kernel_brings_back_a_pixel_from_afar(form):
    """Of its segment's slow pixel, 10 away in x, the double exponential says almost nothing."""
    slow, labels = torch.tensor([[0.0, 0.0], [10.0, 1.0]]).double(), torch.tensor([1, 2])
    pull = {}
    for kernel in ("double", "plain"):
        fast = torch.tensor([[10.0, 0.0]], dtype=torch.float64, requires_grad=True)
        slow_fast(fast, slow, labels[:1], labels, form=form, kernel=kernel).backward()
        pull[kernel] = fast.grad[0, 0].item()
    assert 0 <= pull["double"] < 1e-4 and pull["plain"] > 0.99


@both_forms
def test_the_unsquared_distance_has_no_slope_at_zero(form):
    fast = torch.zeros(1, 3, requires_grad=True)
    slow = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    slow_fast(fast, slow, torch.tensor([1]), torch.tensor([1, 2]), form=form).backward()
    assert fast.grad[0, 0] > 0 and (fast.grad[0, 1:] == 0).all()  # the other segment pushes, nothing pulls

"""Losses of motion fusion against their formulae, written out pixel by pixel in Python's own floats."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsfields.losses.motion import (
    BETA_MIN,
    mask_entropy,
    negative_motion_fusion,
    positive_motion_fusion,
    robust_rgb,
    sparsity,
)

unit = st.floats(0, 1, width=32)
pixel_masks = st.lists(st.tuples(unit, unit), min_size=1, max_size=30)


def uniform(*shape, seed=0, low=0.0):
    g = torch.Generator().manual_seed(seed)
    return low + (1 - low) * torch.rand(*shape, generator=g, dtype=torch.float64)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


# ---------------------------------------------------------------------------------------------------- robust_rgb


def images(h=4, w=5):
    return uniform(h, w, 3), uniform(h, w, 3, seed=1), uniform(h, w, seed=2, low=BETA_MIN)


def written_out(color, target, beta, form):
    total = []
    for c, t, b in zip(
        color.reshape(-1, 3).tolist(), target.reshape(-1, 3).tolist(), beta.flatten().tolist()
    ):
        squares = [(x - y) ** 2 for x, y in zip(c, t)]
        if form == "paper":
            total.append(sum(squares) / (2 * b**2) + math.log(b**2))
        else:
            total.append(mean(squares) / (2 * b**2) + math.log(b))
    return mean(total)


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("channel", [False, True], ids=["[H, W]", "[H, W, 1]"])
def test_robust_rgb_is_its_formula(form, channel):
    color, target, beta = images()
    loss = robust_rgb(color, target, beta[..., None] if channel else beta, form=form)
    assert loss.item() == pytest.approx(written_out(color, target, beta, form), rel=1e-12)


def test_the_released_form_is_the_default_and_another_one_is_refused():
    color, target, beta = images()
    assert torch.equal(robust_rgb(color, target, beta), robust_rgb(color, target, beta, form="released"))
    with pytest.raises(ValueError, match=r"^form must be 'paper' or 'released', but is 'text'$"):
        robust_rgb(color, target, beta, form="text")


@pytest.mark.parametrize(
    ("form", "best"),
    [("paper", lambda e: (e.square().sum() / 2).sqrt()), ("released", lambda e: e.square().mean().sqrt())],
)
def test_the_uncertainty_at_the_minimum(form, best):
    """B² = ‖e‖² / 2 in the paper's form, mean e² in the released one: there the derivative is zero."""
    error = torch.tensor([[0.1, -0.3, 0.2]], dtype=torch.float64)
    beta = best(error).reshape(1).requires_grad_()
    robust_rgb(error, torch.zeros(1, 3).double(), beta, form=form).backward()
    assert abs(beta.grad.item()) < 1e-9


@pytest.mark.parametrize("form", ["paper", "released"])
def test_an_uncertain_pixel_is_forgiven(form):
    color, target, _ = images()
    color.requires_grad_()
    beta = torch.full((4, 5), 0.1, dtype=torch.float64)
    beta[0, 0] = 10.0
    robust_rgb(color, target, beta, form=form).backward()
    slope = color.grad.abs() / (color - target).abs()
    assert slope[0, 0].max() < 1.01e-4 * slope[1, 1].min()


def test_robust_rgb_gradcheck():
    inputs = tuple(t.requires_grad_() for t in images(2, 2))
    for form in ("paper", "released"):
        assert torch.autograd.gradcheck(lambda *t, form=form: robust_rgb(*t, form=form), inputs)


def test_robust_rgb_refuses_other_shapes():
    color, target, beta = images()
    with pytest.raises(ValueError, match=r"^beta must be \[4, 5\], but is \[5, 4\]$"):
        robust_rgb(color, target, beta.T)
    with pytest.raises(ValueError, match=r"^beta must be \[4, 5\], but is \[4, 5, 3\]$"):
        robust_rgb(color, target, color)
    with pytest.raises(ValueError, match=r"^target must be \[4, 5, 3\] like color, but is \[4, 5, 1\]$"):
        robust_rgb(color, target[..., :1], beta)


# ------------------------------------------------------------------------------------------------- motion fusion


@given(pixel_masks)
@settings(deadline=None)
def test_positive_motion_fusion_is_its_formula_for_soft_scores(pixels):
    dynamic, motion = torch.tensor(pixels, dtype=torch.float64).T
    expected = 1.1 * mean((d - m) ** 2 for d, m in pixels)
    assert positive_motion_fusion(dynamic, motion).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert positive_motion_fusion(motion, motion).item() == 0
    both = [positive_motion_fusion(dynamic, motion, weight=w).item() for w in (1.0, 3.0)]
    assert both[1] == pytest.approx(3 * both[0])


@given(pixel_masks, st.sampled_from([0.2, 0.5, 0.9]))
@settings(deadline=None)
def test_negative_motion_fusion_is_its_formula(pixels, threshold):
    semistatic, motion = torch.tensor(pixels, dtype=torch.float64).T
    chosen = [s**2 for s, m in pixels if m > threshold]
    expected = 0.7 * mean(chosen) if chosen else 0.0
    loss = negative_motion_fusion(semistatic, motion, weight=0.7, threshold=threshold)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_negative_motion_fusion_binarises_above_one_half():
    semistatic = torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64, requires_grad=True)
    loss = negative_motion_fusion(semistatic, torch.tensor([0.5, 0.51, 1.0]).double())
    loss.backward()
    assert loss.item() == pytest.approx((0.4**2 + 0.8**2) / 2)
    assert semistatic.grad.tolist() == pytest.approx([0, 0.4, 0.8])


def test_where_nothing_moves_negative_fusion_and_its_gradient_are_zero():
    semistatic = uniform(4, 5).requires_grad_()
    loss = negative_motion_fusion(semistatic, torch.zeros(4, 5).double())
    loss.backward()
    assert loss.item() == 0 and torch.equal(semistatic.grad, torch.zeros(4, 5).double())


def test_the_gradients_pull_the_masks_the_right_way():
    motion = torch.tensor([0.0, 0.9]).double()
    dynamic = torch.tensor([0.5, 0.5], dtype=torch.float64, requires_grad=True)
    positive_motion_fusion(dynamic, motion).backward()
    assert dynamic.grad[0] > 0 > dynamic.grad[1]  # descent: away where nothing moves, up where it does
    semistatic = torch.tensor([0.5, 0.5], dtype=torch.float64, requires_grad=True)
    negative_motion_fusion(semistatic, motion).backward()
    assert semistatic.grad[0] == 0 and semistatic.grad[1] > 0


def test_fusion_gradcheck():
    motion = uniform(3, 4, seed=3)
    mask = uniform(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: positive_motion_fusion(m, motion), (mask,))
    assert torch.autograd.gradcheck(lambda m: negative_motion_fusion(m, motion), (mask,))


@pytest.mark.parametrize("loss", [positive_motion_fusion, negative_motion_fusion])
def test_fusion_refuses_scores_of_another_shape(loss):
    with pytest.raises(ValueError, match=r"^motion must be \[4, 5\] like the mask, but is \[4, 5, 1\]$"):
        loss(torch.zeros(4, 5), torch.zeros(4, 5, 1))


# ------------------------------------------------------------------------------------------ sparsity and entropy


def test_sparsity_is_the_sum_of_the_means():
    a, b = uniform(3, 4).requires_grad_(), uniform(5, seed=1).requires_grad_()
    expected = 0.3 * (mean(a.flatten().tolist()) + mean(b.tolist()))
    assert sparsity(a, b, weight=0.3).item() == pytest.approx(expected, rel=1e-12)
    assert sparsity(a).item() == pytest.approx(0.01 * mean(a.flatten().tolist()))
    assert torch.autograd.gradcheck(lambda *masks: sparsity(*masks), (a, b))
    with pytest.raises(ValueError, match="sparsity needs at least one mask"):
        sparsity()


@given(st.lists(unit, min_size=1, max_size=30))
@settings(deadline=None)
def test_entropy_is_its_formula_and_lies_between_zero_and_log_2(values):
    mask = torch.tensor(values, dtype=torch.float64)
    kept = [min(max(v, 1e-4), 1 - 1e-4) for v in values]
    expected = mean(-v * math.log(v) - (1 - v) * math.log(1 - v) for v in kept)
    entropy = mask_entropy(mask, weight=1.0).item()
    assert entropy == pytest.approx(expected, rel=1e-9)
    assert 0 < entropy <= math.log(2) + 1e-12


def test_entropy_pushes_masks_to_either_end():
    mask = torch.tensor([0.3, 0.7, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    mask_entropy(mask, weight=1.0).backward()
    assert mask.grad[0] > 0 > mask.grad[1]  # descent goes to 0 and to 1
    assert torch.isfinite(mask.grad).all()
    inner = uniform(6, low=0.2).mul(0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: mask_entropy(m), (inner,))

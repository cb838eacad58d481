"""ops.spherical_harmonics against gsplat's torch code: values and gradients."""

from __future__ import annotations

import pytest
import torch

from gsfields import ops
from tests.kernels import oracle
from tests.kernels.compare import assert_relative
from tests.kernels.scenes import generator, normal
from tests.kernels.test_oracles import reference_harmonics

FLOAT32, FLOAT64 = 5e-6, 1e-10


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("bases", ["exact", "spare"])
def test_values_and_gradients_match_gsplat(backend, degree, bases):
    rng = generator(degree)
    count = (degree + 1) ** 2 if bases == "exact" else 16
    dirs, coeffs = backend.move(normal(rng, 3, 101, 3) * 5), backend.move(normal(rng, 101, count, 3))
    dirs, coeffs = dirs.requires_grad_(), coeffs.requires_grad_()
    exact_dirs, exact_coeffs = (t.detach().double().cpu().requires_grad_() for t in (dirs, coeffs))
    actual = ops.spherical_harmonics(degree, dirs, coeffs)
    expected = reference_harmonics(degree, exact_dirs, exact_coeffs)
    assert_relative(actual.cpu().double(), expected, backend.tolerance(FLOAT32, FLOAT64))
    cotangent = normal(rng, *expected.shape)
    actual.backward(cotangent.to(actual))
    expected.backward(cotangent)
    tolerance = backend.tolerance(FLOAT32, FLOAT64)
    assert_relative(coeffs.grad.cpu().double(), exact_coeffs.grad, tolerance, "coeffs")
    if degree > 0:
        assert_relative(dirs.grad.cpu().double(), exact_dirs.grad, tolerance, "dirs")
    else:
        assert (dirs.grad == 0).all()
    assert (coeffs.grad[:, (degree + 1) ** 2 :] == 0).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 33])
def test_any_number_of_channels(backend, channels):
    rng = generator(channels)
    dirs, coeffs = backend.move(normal(rng, 1, 37, 3)), backend.move(normal(rng, 37, 9, channels))
    actual = ops.spherical_harmonics(2, dirs, coeffs)
    expected = oracle.spherical_harmonics(2, dirs.double().cpu(), coeffs.double().cpu())
    assert_relative(actual.cpu().double(), expected, backend.tolerance(FLOAT32, FLOAT64))


def test_masked_directions_give_zero_and_no_gradient(backend):
    rng = generator(3)
    dirs, coeffs = backend.move(normal(rng, 2, 64, 3)), backend.move(normal(rng, 64, 16, 3))
    masks = (torch.rand(2, 64, generator=rng) < 0.5).to(backend.device)
    dirs[~masks] = float("nan")  # what is masked is not even read
    dirs, coeffs = dirs.requires_grad_(), coeffs.requires_grad_()
    colors = ops.spherical_harmonics(3, dirs, coeffs, masks)
    assert (colors[~masks] == 0).all() and (colors[masks] != 0).all()
    full = ops.spherical_harmonics(3, torch.nan_to_num(dirs.detach(), nan=1.0), coeffs.detach())
    assert torch.equal(colors[masks], full[masks])
    colors.sum().backward()
    assert (dirs.grad[~masks] == 0).all() and dirs.grad.isfinite().all() and coeffs.grad.isfinite().all()
    unseen = ~masks.any(0)
    assert unseen.any() and (coeffs.grad[unseen] == 0).all()

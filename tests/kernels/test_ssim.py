"""ops.ssim_map against a float64 convolution: values and gradient."""

from __future__ import annotations

import pytest
import torch

from gsfields import ops
from tests.kernels import oracle
from tests.kernels.compare import assert_bitwise, assert_relative
from tests.kernels.scenes import generator, normal, uniform

SHAPES = [
    (1, 1, 1, 1),
    (1, 5, 3, 3),
    (1, 11, 11, 3),
    (2, 23, 40, 3),
    (3, 37, 18, 1),
    (1, 64, 70, 5),
    (1, 1, 50, 2),
]


@pytest.mark.parametrize("kind", ["noise", "similar", "flat"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_values_and_gradient_match_convolutions(backend, shape, kind):
    rng = generator(sum(shape))
    second = torch.full(shape, 0.6, dtype=torch.float64) if kind == "flat" else uniform(rng, 0, 1, *shape)
    first = (
        uniform(rng, 0, 1, *shape) if kind == "noise" else (second + 0.02 * normal(rng, *shape)).clamp(0, 1)
    )
    image1, image2 = backend.move(first).requires_grad_(), backend.move(second)
    exact = image1.detach().double().cpu().requires_grad_()
    actual, expected = ops.ssim_map(image1, image2), oracle.ssim_map(exact, image2.double().cpu())
    # In float32 the variances are differences of numbers near 1, against C2 = 9e-4: 1e-7 / 1e-3.
    assert_relative(actual.cpu().double(), expected, backend.tolerance(3e-4))
    cotangent = normal(rng, *shape)
    actual.backward(cotangent.to(actual))
    expected.backward(cotangent)
    assert_relative(image1.grad.cpu().double(), exact.grad, backend.tolerance(1e-3, 1e-10))


def test_identical_images_have_ssim_one_and_no_gradient(backend):
    image = backend.move(uniform(generator(0), 0, 1, 1, 30, 20, 3))
    first = image.clone().requires_grad_()
    similarity = ops.ssim_map(first, image)
    assert_relative(similarity, torch.ones_like(image), backend.tolerance(1e-5, 1e-12))
    similarity.mean().backward()
    assert first.grad.abs().max() < backend.tolerance(1e-6, 1e-13)


def test_batches_are_independent(backend):
    rng = generator(1)
    image1, image2 = (backend.move(uniform(rng, 0, 1, 3, 25, 19, 3)) for _ in range(2))
    together = ops.ssim_map(image1, image2)
    for b in range(3):
        assert_bitwise(together[b : b + 1], ops.ssim_map(image1[b : b + 1], image2[b : b + 1]))

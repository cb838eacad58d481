"""Features trained through rounded products end as well as those trained in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gsfields import ops
from tests.kernels.backends import Backend, running
from tests.kernels.scenes import generator, random_splats, uniform

CHANNELS, WIDTH, HEIGHT, STEPS = 20, 16, 12, 40
EMULATED = "emulated-float32-forward"


@pytest.fixture(params=["cuda-float32", EMULATED])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Those that round."""
    with running(request.param) as backend:
        yield backend


def psnr(image: Tensor, target: Tensor) -> float:
    return -10 * math.log10(float((image - target).square().mean()))


def fit(backend: Backend, precision: ops.blending.Precision) -> float:
    """PSNR of an image of features after a fit of the features and of all that the splats are made of."""
    rng = generator(4)
    splats = backend.move(random_splats(30, WIDTH, HEIGHT, seed=6, sigma=2.5))
    lists = ops.bin_tiles(*splats.binning)
    truth = [
        backend.move(uniform(rng, 0, 1, 30, CHANNELS)),
        splats.means2d,
        splats.conics,
        splats.opacities2d,
    ]
    with torch.no_grad():
        target, _ = ops.blend(*truth, *lists, WIDTH, HEIGHT)
    means2d = splats.means2d + backend.move(uniform(rng, -0.5, 0.5, 1, 30, 2))
    start = [torch.full_like(truth[0], 0.5), means2d, splats.conics, splats.opacities2d.clamp(0.1, 0.9)]
    parameters = [t.clone().requires_grad_() for t in start]
    rates = (0.05, 0.05, 0.001, 0.01)
    adam = torch.optim.Adam([{"params": [p], "lr": lr} for p, lr in zip(parameters, rates, strict=True)])
    before = None
    for _ in range(STEPS):
        image, _ = ops.blend(*parameters, *lists, WIDTH, HEIGHT, precision=precision)
        loss = (image - target).square().mean()
        before = before or psnr(image.detach(), target)
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        image, _ = ops.blend(*parameters, *lists, WIDTH, HEIGHT)  # whatever it was trained in, seen in full
    after = psnr(image, target)
    assert before is not None and after > before + 5, (
        f"{before:.2f} dB became {after:.2f} dB: nothing was learnt"
    )
    return after


@pytest.mark.parametrize(("precision", "bar"), [("tf32", 0.1), ("bf16", 0.5)])
def test_training_in_less_precision_ends_as_well(backend, precision, bar):
    full, rounded = fit(backend, "fp32"), fit(backend, precision)
    assert abs(full - rounded) <= bar, f"{full:.3f} dB in float32, {rounded:.3f} dB in {precision}"
    if backend.name == EMULATED:
        assert full != rounded, "nothing was rounded"

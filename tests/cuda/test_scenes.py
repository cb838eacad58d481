"""The whole chain on scenes as they are trained: CUDA kernels in float32 under the emulator, CPU kernels in float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import gsfields
from benchmarks import scenes
from gsfields.bench.scene import Scene
from tests.kernels.backends import cuda_kernels_on_the_cpu
from tests.kernels.scenes import generator, normal

NAMES = ("means", "quats", "scales", "opacities", "values")


class Result(NamedTuple):
    image: Tensor  # [H, W, C]
    alpha: Tensor  # [H, W, 1]
    depth: Tensor  # [H, W, 1]
    absgrad: Tensor  # [1, N, 2]
    gradients: tuple[Tensor, ...]


def run(scene: Scene, dtype: torch.dtype, mask: Tensor | None = None) -> Result:
    """One view of the scene, and the gradients of a random combination of the pixels that the mask keeps."""
    viewmat, K, width, height = scene.camera(0)
    leaves = [t.to(dtype).detach().requires_grad_() for t in scene.parameters]
    plan = gsfields.plan(*leaves[:4], viewmat[0].to(dtype), K[0].to(dtype), width, height, absgrad=True)
    image, depth = (
        plan.blend(leaves[4], torch.full((leaves[4].shape[1],), 0.5).to(dtype)),
        plan.depth("accumulated"),
    )
    weights = normal(generator(0), *image.shape[:2], image.shape[2] + 2).to(dtype)
    if mask is not None:
        weights = weights * mask[..., None]
    (torch.cat([image, plan.alpha, depth], dim=-1) * weights).sum().backward()
    outputs = (image.detach(), plan.alpha.detach(), depth.detach(), plan.absgrad)
    return Result(*outputs, tuple(t.grad for t in leaves))


@pytest.mark.parametrize("name", [*scenes.SPLATS, "synthetic"])
@pytest.mark.parametrize("channels", [3, 20])
def test_agrees_with_the_cpu_in_float64(name, channels):
    try:
        scene = scenes.load(name, 20_000, 160)
    except scenes.SceneMissing as missing:
        pytest.skip(str(missing))
    scene = scene if channels == 3 else scene.with_channels(channels)
    expected = run(scene, torch.float64)
    with cuda_kernels_on_the_cpu("reverse"):
        actual = run(scene, torch.float32)
    error = (actual.image - expected.image).abs().amax(-1) / scene.values.abs().max()
    error = torch.maximum(error, (actual.alpha - expected.alpha).abs()[..., 0])
    flipped = error > 1e-5  # pixels where rounding has moved a pair over the cutoff, or the end of a pixel
    assert flipped.double().mean() <= 1e-3 and error.max() <= 4 / 255

    expected = run(scene, torch.float64, ~flipped)
    with cuda_kernels_on_the_cpu("reverse"):
        actual = run(scene, torch.float32, ~flipped)
    for what, a, b in zip(NAMES, actual.gradients, expected.gradients, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max(), what
    assert (actual.absgrad - expected.absgrad).abs().max() <= 1e-4 * expected.absgrad.abs().max()

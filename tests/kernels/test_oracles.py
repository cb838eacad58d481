"""The oracles against other people's code and against pencil and paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.kernels import oracle
from tests.kernels.compare import assert_close_outside_band, assert_relative
from tests.kernels.scenes import generator, normal, random_scene, random_splats, uniform

try:
    from gsplat.cuda import _torch_impl as gsplat
except ImportError:  # a machine with a GPU and a bare torch
    gsplat = None
needs_gsplat = pytest.mark.skipif(gsplat is None, reason="gsplat is not installed")


def reference_projection(scene, *, antialiased: bool = False):
    """gsplat's; where it is not installed our oracle's, which a test below compares with it elsewhere."""
    if gsplat is None:
        return oracle.project(*scene.args, antialiased=antialiased)
    return gsplat_projection(scene, antialiased=antialiased)


def gsplat_projection(scene, *, antialiased: bool = False):
    """(means2d, depths, conics, opacities2d, radii) by gsplat 1.5.3's torch code."""
    covariances, _ = gsplat._quat_scale_to_covar_preci(scene.quats, scene.scales, compute_preci=False)
    radii, means2d, depths, conics, compensations = gsplat._fully_fused_projection(
        scene.means,
        covariances,
        scene.viewmats,
        scene.Ks,
        scene.width,
        scene.height,
        calc_compensations=antialiased,
    )
    opacities2d = scene.opacities.expand(depths.shape)
    return means2d, depths, conics, opacities2d * compensations if antialiased else opacities2d, radii


def reference_harmonics(degree: int, dirs: Tensor, coeffs: Tensor) -> Tensor:
    """gsplat's; where it is not installed our oracle's. dirs [B, N, 3], coeffs [N, K, D]."""
    if gsplat is None:
        return oracle.spherical_harmonics(degree, dirs, coeffs)
    return gsplat._spherical_harmonics(degree, dirs, coeffs.expand(len(dirs), *coeffs.shape))


@needs_gsplat
@pytest.mark.parametrize("antialiased", [False, True])
def test_projection_oracle_agrees_with_gsplat(antialiased):
    scene = random_scene(400, 50, 31, views=3, seed=1)
    ours, theirs = (
        oracle.project(*scene.args, antialiased=antialiased),
        gsplat_projection(scene, antialiased=antialiased),
    )
    both = (ours.radii > 0).all(-1) & (theirs[-1] > 0).all(-1)
    assert 0.3 < both.double().mean() < 0.95  # some culled, most not
    for name, a, b in zip(oracle.Projection._fields[:4], ours, theirs, strict=False):
        assert_relative(a[both], b[both], 1e-10, name)


@needs_gsplat
@pytest.mark.parametrize("degree", range(4))
def test_sh_oracle_agrees_with_gsplat(degree):
    rng = generator(degree)
    dirs, coeffs = normal(rng, 2, 50, 3), normal(rng, 50, 16, 3)
    ours = oracle.spherical_harmonics(degree, dirs, coeffs)
    assert_relative(ours, reference_harmonics(degree, dirs, coeffs), 1e-12)


def loop_composite(values: Tensor, splats, background: Tensor) -> Tensor:
    """One view, pixel by pixel, as the rules read, in Python floats."""
    order = sorted(range(values.shape[0]), key=lambda i: (float(splats.depths[0, i]), i))
    image = torch.zeros(splats.height, splats.width, values.shape[1], dtype=torch.float64)
    for row in range(splats.height):
        for column in range(splats.width):
            transmittance = 1.0
            for i in order:
                if not (splats.radii[0, i] > 0).all():
                    continue
                dx, dy = (float(p) for p in torch.tensor([column + 0.5, row + 0.5]) - splats.means2d[0, i])
                a, b, c = (float(v) for v in splats.conics[0, i])
                alpha = float(splats.opacities2d[0, i]) * math.exp(
                    -0.5 * (a * dx * dx + 2 * b * dx * dy + c * dy * dy)
                )
                alpha = min(alpha, 0.99)
                if alpha < 1 / 255:
                    continue
                if transmittance * (1 - alpha) <= 1e-4:
                    break
                image[row, column] += transmittance * alpha * values[i]
                transmittance *= 1 - alpha
            image[row, column] += transmittance * background
    return image


@pytest.mark.parametrize("opacity", [(0.02, 1.0), (0.9, 1.0)], ids=["mixed", "opaque"])
def test_composite_oracle_agrees_with_a_loop(opacity):
    splats = random_splats(40, 7, 5, seed=3, opacity=opacity)
    rng = generator(4)
    values, background = normal(rng, 40, 2), normal(rng, 2)
    image = oracle.composite(values, *splats.composite, background).image[0]
    assert_relative(image, loop_composite(values, splats, background), 1e-12)


def test_composite_of_one_pixel_by_hand():
    splats = random_splats(3, 1, 1).to(torch.float64)
    splats.means2d[...], splats.conics[...], splats.radii[...] = 0.5, torch.tensor([1.0, 0.0, 1.0]), 1
    splats.opacities2d[0], splats.depths[0] = torch.tensor([0.5, 2.0, 0.25]), torch.tensor([3.0, 2.0, 1.0])
    result = oracle.composite(torch.eye(3, dtype=torch.float64), *splats.composite)
    front, middle, back = 0.25, 0.75 * 0.99, 0.75 * 0.01 * 0.5
    assert result.image.flatten().tolist() == pytest.approx([back, middle, front])
    assert result.transmittance.item() == pytest.approx(0.75 * 0.01 * 0.5)


def test_ssim_oracle_on_known_images():
    rng = generator(0)
    image = uniform(rng, 0, 1, 1, 20, 24, 3)
    assert_relative(oracle.ssim_map(image, image), torch.ones_like(image), 1e-12)
    # Two constants a and b: no variance, so SSIM = (2ab + C1) / (a^2 + b^2 + C1), away from the border.
    a, b = (
        torch.full((1, 20, 24, 1), 0.2, dtype=torch.float64),
        torch.full((1, 20, 24, 1), 0.7, dtype=torch.float64),
    )
    expected = (2 * 0.2 * 0.7 + 1e-4) / (0.2**2 + 0.7**2 + 1e-4)
    assert oracle.ssim_map(a, b)[0, 10, 12, 0].item() == pytest.approx(expected)


def test_the_band_comparison_can_fail():
    expected = torch.zeros(1, 4, 4, 1, dtype=torch.float64)
    band = torch.zeros(1, 4, 4, dtype=torch.bool)
    band[0, 0, 0] = True
    flipped, wrong, faint = expected.clone(), expected.clone(), expected.clone()
    flipped[0, 0, 0], wrong[0, 0, 0], faint[0, 1, 1] = 1 / 255, 0.1, 1e-4
    assert_close_outside_band(flipped, expected, band, 1e-5)
    for image, where in ((wrong, band), (faint, band), (expected, ~band)):
        with pytest.raises(AssertionError):
            assert_close_outside_band(image, expected, where, 1e-5)

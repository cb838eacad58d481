"""Photometric losses against a direct evaluation of their definitions."""

import pytest
import torch
from torch.nn.functional import conv2d

from gsfields.losses import l1, photometric, ssim


def images(h=23, w=31, seed=0):
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(h, w, 3, generator=g)
    return (target + 0.1 * torch.randn(h, w, 3, generator=g)).clamp(0, 1), target


def reference_ssim(a, b):
    """SSIM map [H, W, C] from windowed moments in float64, zero padding."""
    x = torch.arange(11, dtype=torch.float64) - 5
    g = torch.exp(-(x**2) / (2 * 1.5**2))
    window = (g[:, None] * g / g.sum() ** 2)[None, None]

    def blur(image):
        return conv2d(image.double().permute(2, 0, 1)[:, None], window, padding=5)[:, 0].permute(1, 2, 0)

    a, b = a.double(), b.double()
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))


def test_photometric_is_its_definition():
    a, b = images()
    expected = 0.8 * (a - b).abs().mean() + 0.2 * (1 - reference_ssim(a, b).mean())
    torch.testing.assert_close(photometric(a, b), expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(photometric(a, b, ssim_weight=0), (a - b).abs().mean())
    torch.testing.assert_close(ssim(b, b), torch.tensor(1.0))
    assert photometric(b, b).item() == pytest.approx(0, abs=1e-6)


def test_gradients_agree_with_the_definition():
    a, b = images()
    a = a.double().requires_grad_()
    b = b.double()
    (expected,) = torch.autograd.grad(0.8 * (a - b).abs().mean() + 0.2 * (1 - reference_ssim(a, b).mean()), a)
    (got,) = torch.autograd.grad(photometric(a, b), a)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-10)


def test_a_mask_weighs_pixels_and_stops_gradients():
    a, b = images()
    mask = torch.ones(23, 31)
    mask[:, 20:] = 0
    torch.testing.assert_close(l1(a, b, mask), (a - b)[:, :20].abs().mean())
    other = a.clone()
    other[:, 20:] = 0
    assert torch.equal(photometric(a, b, mask=mask), photometric(other, b, mask=mask))
    a.requires_grad_()
    photometric(a, b, mask=mask).backward()
    assert (a.grad[:, 20:] == 0).all() and (a.grad[:, :20] != 0).any()


def test_an_empty_mask_has_no_gradient():
    a, b = images()
    a.requires_grad_()
    photometric(a, b, mask=torch.zeros(23, 31)).backward()
    assert (a.grad == 0).all()

"""Image metrics against hand-computed values, and their edge cases."""

import json
import math

import pytest
import torch

from gsfields.evaluate.image import psnr, psnr_parts, score, ssim
from gsfields.files import to_json
from tests.test_losses import images, reference_ssim


def test_psnr_of_a_constant_error():
    target = torch.full((5, 7, 3), 0.5)
    assert psnr(target + 0.1, target) == pytest.approx(20.0, abs=1e-4)
    assert psnr(target, target) == math.inf


def test_renderings_are_clamped_but_not_rounded():
    target = torch.ones(4, 4, 3)
    assert psnr(torch.full((4, 4, 3), 1.5), target) == math.inf
    assert psnr(torch.full((4, 4, 3), 1 - 1e-3), target) == pytest.approx(60, abs=1e-2)


def test_psnr_of_what_moves_and_of_the_rest():
    target = torch.full((4, 6, 3), 0.5)
    image, front = target + 0.01, torch.zeros(4, 6)
    image[:2] += 0.09
    front[:2] = 3  # any label but 0
    whole, inside, outside = psnr_parts(image, target, front)
    assert (inside, outside) == (pytest.approx(20, abs=1e-3), pytest.approx(40, abs=1e-3))
    assert whole == pytest.approx(-10 * math.log10((0.1**2 + 0.01**2) / 2), abs=1e-3)
    assert math.isnan(psnr_parts(image, target, torch.zeros(4, 6)).foreground)
    counts = torch.ones(4, 6)
    counts[1:] = 0
    masked = psnr_parts(image, target, front, counts)
    assert masked.whole == masked.foreground == pytest.approx(20, abs=1e-3) and math.isnan(masked.background)
    with pytest.raises(ValueError, match=r"foreground must be \[4, 6\], but is \[6\]"):
        psnr_parts(image, target, front[0])


def test_ssim_agrees_with_its_definition():
    a, b = images()
    assert ssim(a, b) == pytest.approx(reference_ssim(a, b).mean().item(), abs=1e-5)
    assert ssim(b, b) == pytest.approx(1.0)


def test_masks_restrict_both_metrics():
    a, b = images()
    mask = torch.ones(23, 31)
    mask[10:] = 0
    assert psnr(a, b, mask) == pytest.approx(psnr(a[:10], b[:10]))
    spoilt = a.clone()
    spoilt[10:] = 0
    assert psnr(spoilt, b, mask) == psnr(a, b, mask) and ssim(spoilt, b, mask) == ssim(a, b, mask)
    with pytest.raises(ValueError, match="mask selects no pixel"):
        psnr(a, b, torch.zeros(23, 31))


def test_scores_are_means_of_images_not_of_errors():
    target = torch.full((4, 4, 3), 0.5)
    scores = score([("a", target + 0.1, target, None), ("b", target + 0.01, target, None)])
    assert scores.psnr == pytest.approx(30, abs=1e-3) and scores.as_dict()["per_view"]["b"]["psnr"] > 39.9
    with pytest.raises(ValueError, match="no images"):
        score([])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"must both be \[H, W, C\], but are \[4, 4, 3\] and \[4, 5, 3\]"):
        psnr(torch.zeros(4, 4, 3), torch.zeros(4, 5, 3))


def test_a_score_without_a_number_is_null_in_json():
    text = to_json({"psnr": math.inf, "per_view": [{"psnr": math.nan}, {"psnr": 30.0}]})
    assert json.loads(text) == {"psnr": None, "per_view": [{"psnr": None}, {"psnr": 30.0}]}

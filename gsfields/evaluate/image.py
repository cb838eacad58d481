"""Image quality of novel views: PSNR and SSIM.

Protocol, that of the 3DGS evaluation: renderings are clamped to [0, 1] and not rounded to 8 bits; each metric
is taken per image over all channels, then averaged over the images. (The mean of PSNRs is not the PSNR of the
mean error.) A mask [H, W] restricts both to the pixels where it is above 0.5: those that undistortion left
valid. `psnr_parts` looks at what moves and at all else by themselves. Edge cases: identical images have a
PSNR of infinity; a mask that selects nothing is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gsfields import ops


def psnr(image: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio of two images [H, W, C] with peak 1, dB: -10 log10(mean squared error)."""
    image, target = _checked(image, target)
    error = _masked_mean((image - target).square(), mask)
    return math.inf if error == 0 else -10 * math.log10(error)


class PsnrParts(NamedTuple):
    """PSNR, dB, of an image and of its parts; nan for a part without pixels."""

    whole: float
    foreground: float
    background: float


def psnr_parts(image: Tensor, target: Tensor, foreground: Tensor, mask: Tensor | None = None) -> PsnrParts:
    """PSNR of the whole image, of its foreground [H, W] (nonzero) and of all else.

    In the benchmark the foreground is what the annotation says is dynamic: hands, and objects while they
    move; objects at rest are background. It skips frames without a foreground, in all three numbers.
    """
    if foreground.shape != target.shape[:2]:
        raise ValueError(f"foreground must be {list(target.shape[:2])}, but is {list(foreground.shape)}")
    front = foreground != 0
    counts = torch.ones_like(front) if mask is None else mask > 0.5
    parts = (counts & front, counts & ~front)
    inside, outside = (psnr(image, target, part) if part.any() else math.nan for part in parts)
    return PsnrParts(psnr(image, target, mask), inside, outside)


def ssim(image: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Mean structural similarity of two images [H, W, C] (Wang et al. 2004).

    11 x 11 Gaussian window of sigma 1.5, zero padding, C1 = 0.01^2, C2 = 0.03^2, biased moments: the variant
    of the 3DGS code, which near borders differs from scikit-image's. Masked pixels are zero in both images.
    """
    image, target = _checked(image, target)
    if mask is not None:
        valid = mask[..., None] > 0.5
        image, target = image * valid, target * valid
    return _masked_mean(ops.ssim_map(image[None], target[None])[0], mask)


@dataclass
class ImageScores:
    """Scores per view and their means."""

    names: list[str]
    psnr_per_view: list[float]
    ssim_per_view: list[float]

    @property
    def psnr(self) -> float:
        return sum(self.psnr_per_view) / len(self.psnr_per_view)

    @property
    def ssim(self) -> float:
        return sum(self.ssim_per_view) / len(self.ssim_per_view)

    def as_dict(self) -> dict[str, object]:
        per_view = {
            name: {"psnr": p, "ssim": s}
            for name, p, s in zip(self.names, self.psnr_per_view, self.ssim_per_view, strict=True)
        }
        return {"psnr": self.psnr, "ssim": self.ssim, "views": len(self.names), "per_view": per_view}


@torch.no_grad()
def score(images: Iterable[tuple[str, Tensor, Tensor, Tensor | None]]) -> ImageScores:
    """Scores of (name, image [H, W, C], target [H, W, C], mask [H, W] or None); raises ValueError if there
    are none.
    """
    scores = ImageScores([], [], [])
    for name, image, target, mask in images:
        scores.names.append(name)
        scores.psnr_per_view.append(psnr(image, target, mask))
        scores.ssim_per_view.append(ssim(image, target, mask))
    if not scores.names:
        raise ValueError("there are no images to score")
    return scores


def _checked(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if image.shape != target.shape or image.ndim != 3:
        raise ValueError(
            f"image and target must both be [H, W, C], but are {list(image.shape)} and {list(target.shape)}"
        )
    return image.detach().clamp(0, 1), target


def _masked_mean(values: Tensor, mask: Tensor | None) -> float:
    """Mean over pixels and channels, summed in float64 so that the last digits do not depend on the image
    size.
    """
    if mask is not None:
        values = values[mask > 0.5]
        if len(values) == 0:
            raise ValueError("mask selects no pixel")
    return float(values.double().mean())

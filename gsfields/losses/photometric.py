"""How far a rendering is from a photograph."""

from __future__ import annotations

from torch import Tensor

from gsfields import ops


def l1(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of two images [H, W, C]; over the pixels weighted by mask [H, W] if given."""
    return _mean((image - target).abs(), mask)


def ssim(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean structural similarity of two images [H, W, C] in [0, 1] (Wang et al. 2004); gradient to `image`.

    Window: 11 x 11 Gaussian of sigma 1.5 with zero padding, as in the 3DGS code, so that numbers compare.
    Pixels that a mask [H, W] excludes are zero in both images, as is all that lies outside of them.
    """
    if mask is not None:
        image, target = image * mask[..., None], target * mask[..., None]
    return _mean(ops.ssim_map(image[None], target[None])[0], mask)


def photometric(
    image: Tensor, target: Tensor, *, ssim_weight: float = 0.2, mask: Tensor | None = None
) -> Tensor:
    """(1 - w) L1 + w (1 - SSIM): equation 7 of 3D Gaussian Splatting (Kerbl et al. 2023), w = 0.2 there.

    SSIM is not computed where w = 0. A mask that is zero everywhere gives a loss of zero (and w, from 1 -
    SSIM, as a constant without gradient).
    """
    loss = (1 - ssim_weight) * l1(image, target, mask)
    if ssim_weight > 0:
        loss = loss + ssim_weight * (1 - ssim(image, target, mask))
    return loss


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean()
    weight = mask[..., None]
    return (values * weight).sum() / (mask.sum() * values.shape[-1]).clamp(min=1e-8)

"""Losses of Layered Motion Fusion (Tschernezki et al., CVPR 2025, "LMF") and of NeuralDiff (Tschernezki et al. 2021).

Pure functions of rendered images: they serve any renderer that gives colour, uncertainty and layer masks. LMF
has no released code; where NeuralDiff's, on which it builds, differs from the papers' text, both forms are here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

BETA_MIN = 0.03  # added to the rendered uncertainty (NeuralDiff)

Form = Literal["paper", "released"]


def robust_rgb(color: Tensor, target: Tensor, beta: Tensor, *, form: Form = "released") -> Tensor:
    """Colour error that uncertain pixels are forgiven: LMF equation 4, the negative log-likelihood of a Gaussian.

    "paper": mean over pixels of ‖I - Î‖² / (2 B²) + log B². "released", what NeuralDiff's code computes: the squared
    error is the mean over channels, not their sum, and log B stands instead of log B². With equal B the two differ
    in how fast B grows with the error: B² = ‖I - Î‖² / 2 and B² = mean (I - Î)² at their minima.

    Args:
        color, target: [..., C], rendered and true.
        beta: [...] or [..., 1], uncertainty B > 0 of each pixel, β_min included.
    """
    if form not in ("paper", "released"):
        raise ValueError(f"form must be 'paper' or 'released', but is {form!r}")
    if target.shape != color.shape:
        raise ValueError(f"target must be {list(color.shape)} like color, but is {list(target.shape)}")
    beta = _per_pixel("beta", beta, color)
    squared = (color - target).square()
    if form == "paper":
        return (squared.sum(-1) / (2 * beta.square()) + 2 * beta.log()).mean()
    return (squared.mean(-1) / (2 * beta.square()) + beta.log()).mean()


def positive_motion_fusion(dynamic: Tensor, motion: Tensor, *, weight: float = 1.1) -> Tensor:
    """λ mean over all pixels of (M̂_dy - M)², LMF equation 11: the dynamic layer follows the 2D scores.

    Args:
        dynamic: [...] rendered mask of the dynamic layer.
        motion: the same shape, M in [0, 1], soft as the 2D segmenter gives it.
        weight: λ; 1.1 in the paper.
    """
    _same_shape("motion", motion, dynamic)
    return weight * (dynamic - motion).square().mean()


def negative_motion_fusion(
    semistatic: Tensor, motion: Tensor, *, weight: float = 1.0, threshold: float = 0.5
) -> Tensor:
    """λ mean over {M > threshold} of M̂_ss², LMF equation 12: what moves is not semi-static. 0 if nothing moves.

    The paper binarises M and does not say where; 0.5 is the middle of its range.

    Args:
        semistatic: [...] rendered mask of the semi-static layer.
        motion: the same shape, M in [0, 1].
        weight: λ; 1.0 in the paper.
    """
    _same_shape("motion", motion, semistatic)
    moving = motion > threshold
    # A product instead of a selection: no wait for the count, and zero, not NaN, where there is none.
    return weight * (semistatic.square() * moving).sum() / moving.sum().clamp(min=1)


def sparsity(*masks: Tensor, weight: float = 0.01) -> Tensor:
    """λ times the mean of each moving layer's mask, summed: what need not move is static (NeuralDiff, section 3).

    NeuralDiff takes the mean of the densities σ along the rays; a rasterizer has opacity instead, of which the
    mask is the part that shows.
    """
    if not masks:
        raise ValueError("sparsity needs at least one mask")
    return weight * torch.stack([mask.mean() for mask in masks]).sum()


def impurity(parts: Tensor, masks: Tensor, target: Tensor, beta: Tensor, *, weight: float) -> Tensor:
    """λ mean of Σ_l w_l ‖c_l - I‖² / (2 B²): the colour error of every layer by itself, weighted by what it shows.

    By Jensen's inequality it bounds the error of the composite, and is equal to it where one layer owns the pixel.
    Not of the papers: it closes the way out by which a layer that shows the wrong thing is paid for by another of an
    opposite colour.

    Args:
        parts: [..., L, C], w_l c_l, what each layer adds to the colour.
        masks: [..., L], w_l.
        target: [..., C]; beta: [...], a constant here.
    """
    squared = (parts - masks[..., None] * target[..., None, :]).square().mean(dim=-1)
    errors = (squared / masks.clamp(min=0.02)).sum(dim=-1)
    return weight * (errors / (2 * beta.square())).mean()


def mask_entropy(mask: Tensor, *, weight: float = 0.01, eps: float = 1e-4) -> Tensor:
    """λ times the mean binary entropy of a mask [...], in nats: a pixel shows one layer or another.

    Not of the papers. Colour alone leaves the split between layers open wherever a half-transparent Gaussian of an
    exaggerated colour looks like an opaque one.
    """
    m = mask.clamp(eps, 1 - eps)
    return -weight * (m * m.log() + (1 - m) * (1 - m).log()).mean()


def _per_pixel(name: str, value: Tensor, image: Tensor) -> Tensor:
    value = value.squeeze(-1) if value.ndim == image.ndim else value
    if value.shape != image.shape[:-1]:
        raise ValueError(f"{name} must be {list(image.shape[:-1])}, but is {list(value.shape)}")
    return value


def _same_shape(name: str, value: Tensor, like: Tensor) -> None:
    if value.shape != like.shape:
        raise ValueError(f"{name} must be {list(like.shape)} like the mask, but is {list(value.shape)}")

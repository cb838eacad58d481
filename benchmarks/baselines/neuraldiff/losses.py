"""What is minimised, with the weights of the released code and of LMF."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.neuraldiff.render import Rendered
from gsfields.losses.motion import negative_motion_fusion, positive_motion_fusion, robust_rgb

COARSE_WEIGHT = 0.5
SPARSITY_WEIGHT = 0.01


@dataclass(frozen=True)
class FusionWeights:
    """λ of positive and negative motion fusion; LMF's are 1.1 and 1.0, and 0 leaves a term out."""

    positive: float = 0.0
    negative: float = 0.0


def neuraldiff_loss(rendered: Rendered, target: Tensor) -> dict[str, Tensor]:
    """The terms of NeuralDiff's loss against colours [R, 3]; their sum is minimised.

    coarse: half the squared error. robust: squared error under the rendered uncertainty, and its logarithm (LMF
    equation 4 as released). sparsity: the mean density of each moving layer.
    """
    return {
        "coarse": COARSE_WEIGHT * (rendered.coarse_color - target).square().mean(),
        "robust": robust_rgb(rendered.fine.color, target, rendered.fine.beta, form="released"),
        "sparsity": SPARSITY_WEIGHT * rendered.samples.sigma[..., 1:].mean((0, 1)).sum(),
    }


def fusion_loss(
    masks: dict[str, Tensor], motion: Tensor, known: Tensor, weights: FusionWeights
) -> dict[str, Tensor]:
    """LMF's terms for masks [R] by layer and 2D scores [R], over the rays whose frame has scores, known [R] bool."""
    terms: dict[str, Tensor] = {}
    if not bool(known.any()):
        return terms
    if weights.positive:
        terms["pmf"] = positive_motion_fusion(masks["dynamic"][known], motion[known], weight=weights.positive)
    if weights.negative and "semistatic" in masks:
        terms["nmf"] = negative_motion_fusion(
            masks["semistatic"][known], motion[known], weight=weights.negative
        )
    return terms


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()

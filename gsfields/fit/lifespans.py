"""Which static Gaussians are semi-static: those that are right for a part of the video only.

While the static layer is fitted alone, each of its Gaussians has a birth and a death. An object that is taken away
contradicts the images from then on, so its Gaussians die; what was hidden behind it never contradicts anything, so it
lives on, and comes to light. The lives that end within the video are the semi-static layer's first Gaussians.

Gaussians of a poor reconstruction and of speckles die, too, but alone, and it helps the images little. An end is
believed where nearly all neighbours are mortal (weighted by opacity), and the images would be clearly wrong without.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from gsfields.gaussians import Gaussians

MARGIN = 0.2  # of the first births and deaths, outside the video, in shares of it
_ENDS_WITHIN = 0.03  # a life that begins or ends this far inside the video is mortal
_NEIGHBOURS = 12
_SOFTNESS = (0.15, 0.015)  # of births and deaths, first and last: gradients reach far, then lives are sharp


def immortal(count: int) -> Tensor:
    """[N, 2] births and deaths, in shares of the video, of Gaussians that outlive it."""
    return torch.tensor([[-MARGIN, 1 + MARGIN]]).repeat(count, 1)


def softness(progress: float) -> float:
    """Of births and deaths, share of the video, when `progress` (0 to 1) of the fit is done."""
    first, last = _SOFTNESS
    return float(first * (last / first) ** min(progress, 1.0))


def alive(gaussians: Gaussians, spans: Tensor, time: float, soft: float) -> Gaussians:
    """The Gaussians at a time in [0, 1]: opacity times σ((t - birth) / s) σ((death - t) / s); spans [N, 2]."""
    gate = torch.sigmoid((time - spans[:, 0]) / soft) * torch.sigmoid((spans[:, 1] - time) / soft)
    return replace(gaussians, opacity_logits=torch.logit(gaussians.opacities * gate, eps=1e-6))


@torch.no_grad()
def mortals(
    gaussians: Gaussians, spans: Tensor, agreement: float, contrast: Tensor, least_contrast: float
) -> Tensor:
    """bool [N]: lives that begin or end within the video, as do those of a share `agreement` of their neighbours, and
    without whose ends the errors there would be greater by `least_contrast`, again in the mean of the neighbours.

    contrast [N] is that of each Gaussian itself (evidence.Evidence).
    """
    births, deaths = spans.unbind(1)
    mortal = ((births > _ENDS_WITHIN) | (deaths < 1 - _ENDS_WITHIN)) & (births < deaths)
    k = min(_NEIGHBOURS, len(mortal) - 1)
    if k < 1 or not bool(mortal.any()):
        return mortal & (contrast > least_contrast)
    points = gaussians.means.detach().cpu().numpy()
    near = torch.from_numpy(cKDTree(points).query(points, k=k + 1)[1])  # itself among them
    weights = gaussians.opacities[near]
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
    share = (weights * mortal[near]).sum(dim=1)
    gain = (weights * (contrast * mortal)[near]).sum(dim=1)
    return mortal & (share > agreement) & (gain > least_contrast)


def windows(spans: Tensor, duration: float) -> Tensor:
    """Life spans [N, 2] as a MovingLayer has them, middle and log half length in frames, of births and deaths."""
    births, deaths = (spans * duration).unbind(1)
    half = ((deaths - births) / 2).clamp(min=0.5)
    return torch.stack(((births + deaths) / 2, half.log()), dim=1)

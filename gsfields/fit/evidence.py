"""What the images say, over time, of each static Gaussian: from the errors of renderings, lifted back to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gsfields.fit import lifespans
from gsfields.fit.seeding import Picture, smoothed_residual, widened
from gsfields.layers import LayeredRendering, LayeredScene, render_layers

_BINS = 8  # of time
_LEAST = 0.5  # pixels that a Gaussian must show to say anything


@dataclass
class Evidence:
    """Mean absolute colour errors at the pixels that each of N static Gaussians shows, moving ones left out."""

    # [N]: after death and before birth, were it alive, less those in its life; 0 where it is not seen in both
    contrast: Tensor
    # [N]: in that eighth of the video in which they are smallest, births and deaths as they are; 0 where never seen
    usual: Tensor
    moving: Tensor  # [N]: mean motion score of all the pixels it shows, where there are scores

    def select(self, index: Tensor) -> Evidence:
        """That of some of the Gaussians: index of integers [M], or bool [N]."""
        return Evidence(self.contrast[index], self.usual[index], self.moving[index])


@torch.no_grad()
def gather(
    scene: LayeredScene, spans: Tensor, pictures: Iterable[Picture], soft: float, near: float
) -> Evidence:
    """Render every picture by a scene without moving layers, twice: with the births and deaths of `spans` [N, 2] (of
    softness `soft`) and without. Four times the cost of a rendering.
    """
    n = len(scene.static)
    dead, living, moving = _Mean(n), _Mean(n), _Mean(n)
    bins = [_Mean(n) for _ in range(_BINS)]
    for picture in pictures:
        time = picture.frame / scene.duration
        now = render_layers(
            replace(scene, static=lifespans.alive(scene.static, spans, time, soft)),
            picture.camera,
            time,
            near=near,
        )
        always = render_layers(scene, picture.camera, time, near=near)
        lives = ((spans[:, 0] <= time) & (time <= spans[:, 1])).float()
        errors, weights = (part[:n] for part in _errors(now, picture))
        living.add(errors * lives, weights * lives)
        bins[min(int(time * _BINS), _BINS - 1)].add(errors, weights)
        dead.add(*(part[:n] * (1 - lives) for part in _errors(always, picture)))
        if picture.scored:
            scores, weights = now.plan.lift(picture.motion[..., None])
            moving.add(scores[:n, 0], weights[:n])
    seen = (dead.weight > _LEAST) & (living.weight > _LEAST)
    errors = torch.stack([torch.where(b.weight > _LEAST, b.value, torch.inf) for b in bins])
    usual = errors.amin(dim=0)
    contrast = torch.where(seen, dead.value - living.value, 0.0)
    return Evidence(contrast, torch.where(usual.isfinite(), usual, 0.0), moving.value)


class _Mean:
    """A running mean per Gaussian."""

    def __init__(self, count: int) -> None:
        self.sum, self.weight = torch.zeros(count), torch.zeros(count)

    def add(self, sums: Tensor, weights: Tensor) -> None:
        self.sum += sums
        self.weight += weights

    @property
    def value(self) -> Tensor:
        return self.sum / self.weight.clamp(min=1e-6)


def _errors(rendering: LayeredRendering, picture: Picture) -> tuple[Tensor, Tensor]:
    """(sums, weights) [N] over the pixels that do not move."""
    still = 1 - widened(picture.motion, 30)
    error = smoothed_residual(rendering.color, picture.image)
    sums, weights = rendering.plan.lift(error[..., None], still)
    return sums[:, 0], weights

"""Training of language where blends are of 32 channels and of whole images, as in gsplat's `rasterization`: channels in
turn, each part a walk of its own forward and backward, put together afterwards; lists made anew each step.

The walks are by our kernels, and the loss, the pixels it is taken at, and what is learnt are the same as ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsfields.fields.nested import DirectField
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.language import LanguageTrainer, Lesson
from gsfields.fit.language_labels import LanguageLabels
from gsfields.fit.showing import render_view
from gsfields.language_config import NestedConfig
from gsfields.plans import Plan

CHUNK = 32


@dataclass(frozen=True)
class Habits:
    """What such a renderer does otherwise than ours."""

    chunk: int = CHUNK  # channels of a walk
    whole: bool = True  # blends all pixels, not only those of the loss
    anew: bool = True  # projects and sorts each step


class ChunkedTrainer(LanguageTrainer):
    """A LanguageTrainer with other habits. Without per-view lists kept, all Gaussians have gradients and are moved."""

    def __init__(
        self, views: FrozenViews, labels: LanguageLabels, config: NestedConfig, habits: Habits
    ) -> None:
        super().__init__(views, labels, config)
        self.habits = habits
        if habits.anew and isinstance(self.field, DirectField):
            everything = torch.optim.Adam([self.field.theta], lr=config.rate, eps=1e-15, fused=True)
            self.optimizers = (everything, *self.optimizers[1:])

    def blended(self, lesson: Lesson) -> Tensor:
        plan, values = self._seen(lesson.view)
        pixels = None if self.habits.whole else lesson.pixels
        parts = [plan.blend(part, pixels=pixels) for part in values.split(self.habits.chunk, dim=-1)]
        image = torch.cat(parts, dim=-1)
        if self.habits.whole:
            x, y = lesson.pixels.unbind(dim=1)
            image = image[y, x]
        return image / lesson.alpha[:, None]

    def _seen(self, index: int) -> tuple[Plan, Tensor]:
        """A view's plan, and the values of the Gaussians that it is of."""
        if not self.habits.anew:
            plan, rows = self.views.drawn(index)
            return plan, self.field.values(rows)
        with torch.no_grad():
            gaussians, camera = self.views.gaussians(), self.views.view(index).camera
            plan = render_view(gaussians, camera, self.views.config, 0.0).plan
        if isinstance(self.field, DirectField):
            return plan, self.field.theta
        return plan, self.field.values(torch.arange(len(self.views)))

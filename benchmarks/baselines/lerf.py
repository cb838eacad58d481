"""Language as LERF has it (Kerr et al., ICCV 2023), on our Gaussians: a field that is asked for a place and a scale,
and answers with one embedding of length 1; a prompt takes the best of 30 scales.

LERF learns from crops of the image at every scale. Here it learns from the same segments as the other methods, each at
its own scale in space, with LERF's loss (Huber, δ = 1.25); the place is read from the same triplane, deferred.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss, normalize

from gsfields.fields.nested import NestedField
from gsfields.fields.relevancy import relevancy
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.language import LanguageTrainer, Lesson
from gsfields.fit.language_labels import LanguageLabels
from gsfields.language_config import NestedConfig
from gsfields.plans import Plan

SCALES = 30
_DELTA = 1.25
_ROWS = 1 << 14  # Gaussians whose embeddings are held at once


class ScaledField(NestedField):
    """A triplane, and a network that reads it together with a scale in [0, 1]. Nothing is nested, nor projected."""

    def __init__(self, points: Tensor, width: int, config: NestedConfig) -> None:
        super().__init__(points, width, resolution=config.resolution, channels=config.channels)
        hidden = config.hidden
        self.network = nn.Sequential(
            nn.Linear(config.channels + 1, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, width),
        )  # fmt: skip
        self.projection.requires_grad_(False)

    def at(self, features: Tensor, scales: Tensor) -> Tensor:
        """[P, E] unit embeddings of features [P, C] at scales [P]."""
        return normalize(self.embed(torch.cat((features, scales[:, None]), dim=1)), dim=1)


class Trainer(LanguageTrainer):
    """Of a ScaledField, on the lessons that the others have."""

    field: ScaledField

    def new_field(self) -> ScaledField:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return ScaledField(self.views.gaussians().means.detach(), self.labels.width, self.config)

    def loss(self, lesson: Lesson) -> Tensor:
        """Summed over the numbers of an embedding, mean over pixels."""
        scales = 1 - lesson.length.float() / self.config.dim
        found = self.field.at(self.blended(lesson), scales)
        return huber_loss(found, lesson.target, reduction="sum", delta=_DELTA) / len(found)


@dataclass
class Lerf:
    """What was learnt."""

    field: ScaledField
    features: Tensor  # [N, C] of the triplane

    @torch.no_grad()
    def relevancy(self, plan: Plan, rows: Tensor, texts: Tensor, phrases: Tensor) -> Tensor:
        """[SCALES, H, W, Q] of texts [Q, E] in a view whose plan is of the Gaussians `rows`."""
        features, maps = self.features[rows], []
        for k in range(SCALES):
            parts = features.split(_ROWS)
            values = [self.field.at(part, torch.full((len(part),), k / SCALES)) for part in parts]
            maps.append(relevancy(plan.blend(torch.cat(values)), texts, phrases))
        return torch.stack(maps)


def train(views: FrozenViews, labels: LanguageLabels, config: NestedConfig) -> Lerf:
    """With as many steps as config has, of as many pixels."""
    trainer = Trainer(views, labels, config)
    trainer.run(progress=False)
    field = trainer.field.requires_grad_(False)
    return Lerf(field, field.triplane())

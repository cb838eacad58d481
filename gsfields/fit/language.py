"""Fitting nested embeddings to 2D segments with embeddings, on frozen geometry (N2F2: Bhalgat et al., ECCV 2024)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from gsfields.fields.nested import DirectField, Nested, NestedField, lengths
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.language_labels import LanguageLabels, ViewTeachers
from gsfields.fit.lifted_field import embedding_moments, lifted, principal
from gsfields.fit.row_adam import RowAdam
from gsfields.fit.schedule import ViewOrder
from gsfields.language_config import NestedConfig
from gsfields.losses.nested import hierarchical

_TRIES = 4  # pixels that are drawn for each that a step needs, before all are looked at


@dataclass(frozen=True)
class Lesson:
    """Pixels of one view, each with one segment that covers it."""

    view: int
    pixels: Tensor  # [P, 2] int64 (x, y)
    alpha: Tensor  # [P]
    length: Tensor  # [P] int64, M(s) of the segment
    target: Tensor  # [P, E] its embedding


class LanguageTrainer:
    """Learns a field on the pixels of one view a step. What is blended is the field's values: C numbers of a triplane,
    which its network turns into embeddings pixel by pixel, or the D of the embeddings themselves.
    """

    def __init__(self, views: FrozenViews, labels: LanguageLabels, config: NestedConfig) -> None:
        self.views, self.labels, self.config = views, labels, config
        self.steps = config.steps or max(1000, 10 * len(labels.indices))
        self.generator = torch.Generator().manual_seed(config.seed)
        self.field = self.new_field()
        self.order = ViewOrder(len(labels.indices), self.generator)
        if isinstance(self.field, NestedField):
            table, self._starts = self.field.triplane.table, (config.rate, config.network_rate)
        else:  # begins near its end, and a step of Adam moves all of its D numbers by the rate
            table, self._starts = self.field.theta, (config.direct_rate, config.direct_rate)
        others = [p for p in self.field.parameters() if p is not table and p.requires_grad]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            RowAdam([table], lr=self._starts[0]),
            torch.optim.Adam(others, lr=self._starts[1], eps=1e-15, fused=True),
        )
        self.step = 0

    def new_field(self) -> NestedField | DirectField:
        """What is learnt, as it begins."""
        return make_field(self.views, self.labels, self.config)

    def run(self, *, progress: bool = True) -> float:
        """All steps; returns the seconds they took."""
        started = time.monotonic()
        for _ in tqdm(range(self.steps), disable=not progress, mininterval=1, desc="language"):
            self.train_step()
        return time.monotonic() - started

    def train_step(self) -> float | None:
        """One step; returns its loss, or None where the view has no pixel to learn from."""
        index = self.labels.indices[self.order.next()]
        self.step += 1
        lesson = self.lesson(index)
        if lesson is None:
            return None
        # Half a cosine from 1 to rate_end.
        progress = 0.5 - 0.5 * math.cos(math.pi * self.step / self.steps)
        for optimizer, start in zip(self.optimizers, self._starts):
            for group in optimizer.param_groups:
                group["lr"] = start * (1 - (1 - self.config.rate_end) * progress)
        loss = self.loss(lesson)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def loss(self, lesson: Lesson) -> Tensor:
        """Equation 4.5 of the pixels of a lesson."""
        theta = self.field.embed(self.blended(lesson))
        return hierarchical(
            theta, self.field.projection, lesson.length, lesson.target, cosine=self.config.cosine
        )

    def blended(self, lesson: Lesson) -> Tensor:
        """[P, C] the field's values as the pixels of a lesson show them, over alpha."""
        plan, rows = self.views.drawn(lesson.view, lesson.pixels)
        return plan.blend(self.field.values(rows), pixels=lesson.pixels) / lesson.alpha[:, None]

    @torch.no_grad()
    def lesson(self, index: int) -> Lesson | None:
        """Pixels drawn evenly from those that have a segment, and of each pixel one of its segments."""
        teachers = self.labels.of(index)
        alpha = self.views.alpha(index).flatten()
        chosen = self._drawn_pixels(teachers, alpha)
        if len(chosen) == 0:
            return None
        segment = drawn_segments(teachers, chosen, self.generator)
        width = self.views.view(index).camera.width
        return Lesson(
            index,
            torch.stack((chosen % width, chosen // width), dim=1),
            alpha[chosen],
            self._lengths(teachers.scales[segment]),
            teachers.embeddings[segment],
        )

    def _drawn_pixels(self, teachers: ViewTeachers, alpha: Tensor) -> Tensor:
        """int64 [P] of those that can be used, evenly; none where none can."""
        taught = torch.cat((teachers.scales.isfinite(), torch.zeros(1, dtype=torch.bool)))  # [-1]: no segment

        def usable(pixels: Tensor | slice) -> Tensor:
            return taught[teachers.covers[:, pixels]].any(dim=0) & (alpha[pixels] > self.config.min_alpha)

        count = self.config.pixels
        few = torch.randint(len(alpha), (_TRIES * count,), generator=self.generator)
        chosen = few[usable(few)][:count]
        if len(chosen) == count:
            return chosen
        candidates = usable(slice(None)).nonzero()[:, 0]  # a look at all pixels costs more than a small step
        drawn = torch.randint(max(1, len(candidates)), (count,), generator=self.generator)
        return candidates[drawn] if len(candidates) else candidates

    def _lengths(self, scales: Tensor) -> Tensor:
        return lengths(scales if self.config.nested else torch.zeros_like(scales), self.config.dim)


def drawn_segments(teachers: ViewTeachers, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """[P] of each pixel one segment that covers it, with a probability in proportion to 1 / log(area).

    Areas below e count as e: the logarithm of one pixel is 0. Each pixel must have a segment with a scale.
    """
    weights = 1 / teachers.areas.double().clamp_min(math.e).log()
    weights = torch.where(teachers.scales.isfinite(), weights, 0.0)
    covers = teachers.covers[:, pixels].T
    chances = torch.where(covers >= 0, weights[covers.clamp_min(0)], 0.0)
    level = torch.multinomial(chances, 1, generator=generator)
    return covers.gather(1, level)[:, 0]


def make_field(views: FrozenViews, labels: LanguageLabels, config: NestedConfig) -> NestedField | DirectField:
    """As it begins."""
    if config.model != "triplane":
        return DirectField(lifted(views, labels, config.dim, _groups(config)))
    start = None
    if config.projection == "basis":
        start = torch.zeros(labels.width, config.dim)
        directions = principal(embedding_moments(labels))[:, : config.dim]
        start[:, : directions.shape[1]] = directions
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return NestedField(
            views.gaussians().means.detach(),
            labels.width,
            config.dim,
            resolution=config.resolution,
            channels=config.channels,
            hidden=config.hidden,
            projection=start,
        )


def _groups(config: NestedConfig) -> int:
    return config.groups if config.nested else 1


def fitted(
    views: FrozenViews, labels: LanguageLabels, config: NestedConfig, *, progress: bool = True
) -> tuple[Nested, int]:
    """(the embeddings, steps of training) by the model that is configured."""
    if config.model == "lifted":
        return lifted(views, labels, config.dim, _groups(config), progress=progress), 0
    trainer = LanguageTrainer(views, labels, config)
    trainer.run(progress=progress)
    return trainer.field.nested(), trainer.steps

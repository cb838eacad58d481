"""Fitting an instance field to the 2D segments of a run whose geometry is frozen (Contrastive Lift, section 3)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gsfields.fields.instances import FreeField, InstanceField, PositionField, start_at_positions
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.labels import Labels, ViewLabels
from gsfields.fit.row_adam import RowAdam
from gsfields.fit.schedule import ViewOrder
from gsfields.fit.trainer import Trainer
from gsfields.instances_config import FieldConfig
from gsfields.losses import contrastive

TWO_COPIES = ("slow-fast", "dino")  # losses that compare fast embeddings with slow ones
_TINY = 1e-6
_UNSEEN_THING = 0.05  # probability of a thing where no label says anything


@dataclass(frozen=True)
class Batch:
    """Pixels of one view."""

    view: int
    pixels: Tensor  # [P, 2] int64 (x, y)
    alpha: Tensor  # [P]
    labels: Tensor  # [P] int64, from 1
    confidence: Tensor | None  # [P]


class InstanceTrainer:
    """Learns the embeddings of a scene's Gaussians, one image per step."""

    def __init__(self, views: FrozenViews, labels: Labels, config: FieldConfig) -> None:
        self.views, self.labels, self.config = views, labels, config
        self.steps = config.steps or max(1000, 3 * len(labels.indices))
        self.generator = torch.Generator().manual_seed(config.seed)
        self.field = make_field(views.gaussians().means, config, self.generator)
        self.order = ViewOrder(len(labels.indices), self.generator)
        learnt = [p for p in self.field.parameters() if p.requires_grad]
        self.optimizer: torch.optim.Optimizer
        if isinstance(self.field, FreeField):
            self.optimizer = RowAdam(learnt, lr=config.rate)
        else:
            self.optimizer = torch.optim.Adam(learnt, lr=config.rate, eps=1e-15, fused=True)
        self.center = torch.zeros(self.field.dim)  # of loss dino
        self.step = 0

    def run(self, photos: Trainer | None = None, *, progress: bool = True) -> float:
        """All steps; returns the seconds they took.

        photos: a fit of the same Gaussians to their photos, which does a step of its own before each of ours. Its
        geometry moves under the embeddings and is not moved by them; it must not add or drop Gaussians.
        """
        started = time.monotonic()
        for _ in tqdm(range(self.steps), disable=not progress, mininterval=1, desc="embeddings"):
            if photos is not None:
                photos.train_step()
                self.views = self.views.of(photos.scene)
            self.train_step()
        return time.monotonic() - started

    def train_step(self) -> float | None:
        """One step on pixels of one image; returns its loss, or None where the image has no usable segment."""
        config = self.config
        index = self.labels.indices[self.order.next()]
        self.step += 1
        batch = self.batch(index)
        if batch is None:
            return None
        progress = self.step / self.steps
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate * config.rate_end**progress
        self.field.follow()
        loss = self._loss(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    @torch.no_grad()
    def batch(self, index: int) -> Batch | None:
        """Pixels of a view, in random order, drawn so that small segments count; None where none is usable."""
        config = self.config
        labels = self.labels.of(index)
        alpha = self.views.alpha(index).flatten()
        weights = sampling_weights(labels, alpha > config.min_alpha, config.balance, config.min_segment)
        moving = self.views.moving(index)
        if moving is not None:
            weights = weights * (moving.flatten() <= 0.5)
        usable = int((weights > 0).sum())
        if usable == 0:
            return None
        chosen = torch.multinomial(weights, min(config.pixels, usable), generator=self.generator)
        width = self.views.view(index).camera.width
        pixels = torch.stack((chosen % width, chosen // width), dim=1)
        confidence = None if labels.confidence is None else labels.confidence[chosen]
        return Batch(index, pixels, alpha[chosen], labels.ids[chosen], confidence)

    def _loss(self, batch: Batch) -> Tensor:
        plan, rows = self.views.drawn(batch.view)
        values = self.field.both(rows) if self.config.loss in TWO_COPIES else self.field.fast(rows)
        return self._loss_of(batch, plan.blend(values, pixels=batch.pixels))

    def _loss_of(self, batch: Batch, blended: Tensor) -> Tensor:
        """blended: [P, D] or, for losses that compare with the slow copy, [P, 2 D]; not over alpha."""
        config, dim = self.config, self.field.dim
        if config.normalise:
            blended = blended / batch.alpha[:, None]
        if config.loss not in TWO_COPIES:
            return single_loss(blended, batch, config)
        half = (len(blended) + 1) // 2
        fast, slow = blended[:half, :dim], blended[half:, dim:]
        labels_fast, labels_slow = batch.labels[:half], batch.labels[half:]
        if config.loss == "dino":
            loss = contrastive.dino(fast, slow, labels_fast, labels_slow, self.center)
            self.center = contrastive.dino_center(self.center, slow.detach(), labels_slow)
            return loss
        confidence = None if batch.confidence is None else batch.confidence[:half]
        return contrastive.slow_fast_and_concentration(
            fast, slow, labels_fast, labels_slow, confidence, weight=config.concentration,
            form=config.form, kernel=config.kernel, temperature=config.temperature,
        )  # fmt: skip


def single_loss(features: Tensor, batch: Batch, config: FieldConfig) -> Tensor:
    """The losses that compare fast embeddings among themselves."""
    if config.loss == "vanilla":
        temperature = config.temperature if config.form == "paper" else None  # released: 100 and 1
        return contrastive.vanilla(
            features, batch.labels, form=config.form, kernel=config.kernel, temperature=temperature
        )
    if config.loss == "associative":
        return contrastive.associative_embedding(features, batch.labels, form=config.form)
    if config.loss == "margin":
        return contrastive.margin(features, batch.labels)
    return contrastive.linear_assignment(features, batch.labels, batch.confidence, form=config.form)


def make_field(means: Tensor, config: FieldConfig, generator: torch.Generator) -> InstanceField:
    dim = config.identifiers if config.loss == "linear-assignment" else config.dim
    if config.model == "position":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=generator)))
            return PositionField(means, dim, config.momentum)
    if config.start == "positions" and config.loss != "linear-assignment":
        return FreeField(start_at_positions(means, dim, generator), config.momentum)
    return FreeField(0.1 * torch.randn(len(means), dim, generator=generator), config.momentum)


def sampling_weights(labels: ViewLabels, usable: Tensor, balance: float, min_segment: int) -> Tensor:
    """[H W]: area^-balance of each pixel's segment; 0 without one, where not `usable`, or where it is too small."""
    areas = torch.bincount(labels.ids, minlength=labels.count + 1).float()
    per_segment = torch.where(areas >= max(min_segment, 1), areas.clamp_min(1) ** -balance, 0.0)
    per_segment[0] = 0
    return per_segment[labels.ids] * usable


# ----------------------------------------------------------------------------------------------------- classes


def lifted_votes(views: FrozenViews, labels: Labels) -> Tensor:
    """[N, K] shares of the classes in what each Gaussian shows over all views, weighed by confidence. Where no view
    shows it, or as void only, it is stuff, for a thing has to be seen: even, but for _UNSEEN_THING of things.
    """
    count, things = len(labels.classes), labels.thing_columns
    prior = torch.full((count,), 1 / count)
    if 0 < len(things) < count:
        prior[:] = (1 - _UNSEEN_THING) / (count - len(things))
        prior[things] = _UNSEEN_THING / len(things)
    sums = torch.zeros(len(views), count)
    for index in labels.indices:
        found = labels.of(index)
        camera = views.view(index).camera
        known = (found.columns >= 0).float()
        weights = known if found.confidence is None else known * found.confidence
        image = nn.functional.one_hot(found.columns.clamp_min(0), count).float()
        shape = (camera.height, camera.width)
        sums += views.lift(index, image.view(*shape, count), weights.view(shape)).sums
    sums += _TINY * prior
    return sums / sums.sum(dim=1, keepdim=True)


class ClassTrainer:
    """Class probabilities of Gaussians, blended as probabilities: softmax first, then the blend, then divided by its
    sum (as the released code does along a ray). They start from lifted votes.
    """

    def __init__(self, views: FrozenViews, labels: Labels, config: FieldConfig) -> None:
        self.views, self.labels, self.config = views, labels, config
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        self.logits = nn.Parameter(lifted_votes(views, labels).log())
        self.order = ViewOrder(len(labels.indices), self.generator)
        self.optimizer = RowAdam([self.logits], lr=config.class_rate)

    def run(self, *, progress: bool = True) -> None:
        for step in tqdm(range(self.config.class_steps), disable=not progress, desc="classes"):
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.class_rate * self.config.rate_end ** (
                    step / self.config.class_steps
                )
            self.train_step()

    def probabilities(self) -> Tensor:
        """[N, K]."""
        return self.logits.detach().softmax(dim=1)

    def train_step(self) -> float:
        index = self.labels.indices[self.order.next()]
        found = self.labels.of(index)
        known = (found.columns >= 0).nonzero()[:, 0]
        if len(known) == 0:
            return 0.0
        drawn = torch.randint(len(known), (self.config.pixels,), generator=self.generator)
        chosen = known[drawn]
        width = self.views.view(index).camera.width
        pixels = torch.stack((chosen % width, chosen // width), dim=1)
        plan, rows = self.views.drawn(index)
        shown = nn.functional.embedding(rows, self.logits, sparse=True).softmax(dim=1)
        blended = plan.blend(shown, pixels=pixels)
        confidence = None if found.confidence is None else found.confidence[chosen]
        loss = contrastive.semantic_cross_entropy(blended, found.columns[chosen], confidence)
        if self.config.consistency > 0:
            consistent = contrastive.segment_consistency(blended, found.ids[chosen])
            loss = loss + self.config.consistency * consistent
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


# ------------------------------------------------------------------------------------------------ what they show


@torch.no_grad()
def embeddings_in(views: FrozenViews, index: int, theta: Tensor) -> Tensor:
    """θ [N, D] as an image [H, W, D], over alpha."""
    return views.blend(index, theta) / views.alpha(index).clamp_min(_TINY)[..., None]


def spread_views(indices: list[int], count: int) -> Iterator[int]:
    """`count` of them, evenly spaced; all where there are fewer."""
    count = min(count, len(indices))
    return (indices[k * len(indices) // count] for k in range(count))

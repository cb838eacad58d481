"""Geometry made ready for instances: Gaussians that show nothing go, those that lie across two objects are split.

A Gaussian across a border has one embedding for two objects, and no loss can mend that. Which ones these are is told
by the labels of each view alone, without identities over views (Trace3D: Shen et al. 2025, who split them likewise).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gsfields import config as configuration
from gsfields.config import Config
from gsfields.data.dataset import Dataset
from gsfields.fit.checkpoint import Checkpoint
from gsfields.fit.densify import split
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.labels import Labels
from gsfields.fit.trainer import Trainer
from gsfields.gaussians import Gaussians
from gsfields.instances_config import GeometryConfig

_SEGMENTS = 64  # lifted together: an image with a channel for each of hundreds would be large
_PLAN_BYTES = 256 << 20  # a view is looked at a few times in a row
_LAST_PART = 0.7  # colours are mended as in a run that is that far: rates are low, but not yet at their end


def prepare_geometry(
    checkpoint: Checkpoint,
    dataset: Dataset,
    labels: Labels,
    config: GeometryConfig,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> Gaussians:
    """The Gaussians of a static run without faint ones, those across segments split in rounds.

    After each round the colours (and all else) are fitted for `split_steps` on the training images.
    """
    gaussians = checkpoint.gaussians.detach()
    if config.prune_weight > 0:
        seen = contributions(_frozen(gaussians, dataset, checkpoint.config), labels.indices)
        faint = seen < config.prune_weight
        if bool(faint.any()) and not bool(faint.all()):
            gaussians = gaussians.select(~faint)
            report(f"{int(faint.sum())} of {len(faint)} Gaussians show nothing: dropped")
    generator = torch.Generator().manual_seed(checkpoint.config.fit.seed)
    for number in range(config.split_rounds):
        chosen = straddling(_frozen(gaussians, dataset, checkpoint.config), labels, config).nonzero()[:, 0]
        if len(chosen) == 0:
            report(f"round {number + 1}: no Gaussian lies across segments")
            break
        trainer = mending(gaussians, checkpoint.config, dataset, max(config.split_steps, 1))
        keep = torch.ones(len(gaussians), dtype=torch.bool)
        split(trainer.parameters, keep=keep, chosen=chosen, generator=generator)
        for _ in range(config.split_steps):
            trainer.train_step()
        report(
            f"round {number + 1}: {len(chosen)} of {len(gaussians)} Gaussians lie across segments: split, then "
            f"{config.split_steps} steps"
        )
        gaussians = trainer.scene
    return gaussians


@torch.no_grad()
def contributions(views: FrozenViews, indices: list[int]) -> Tensor:
    """[N] sum of a Gaussian's weights over the pixels of these views."""
    total = torch.zeros(len(views))
    for index in indices:
        camera = views.view(index).camera
        total += views.lift(index, torch.ones(camera.height, camera.width, 1)).total
    return total


@torch.no_grad()
def straddling(views: FrozenViews, labels: Labels, config: GeometryConfig) -> Tensor:
    """[N] bool: no segment has more than `split_share` of what the Gaussian shows, in `split_views` of its views.

    What belongs to no segment counts as one more, so that the border between an object and the room counts, too.
    """
    shown, across = torch.zeros(len(views)), torch.zeros(len(views))
    for index in labels.indices:
        found = labels.of(index)
        camera = views.view(index).camera
        ids = found.ids.view(camera.height, camera.width, 1)
        known = None if found.known is None else found.known.float().view(ids.shape[:2])
        largest, total = torch.zeros(len(views)), torch.zeros(len(views))
        for some in torch.arange(found.count + 1).split(_SEGMENTS):
            sums, total = views.lift(index, (ids == some).float(), known)
            largest = torch.maximum(largest, sums.amax(dim=1))
        counted = total > config.split_pixels
        share = largest / total.clamp_min(1e-12)
        shown += counted
        across += counted & (share < config.split_share)
    return (shown > 0) & (across > config.split_views * shown)


def mending(gaussians: Gaussians, config: Config, dataset: Dataset, steps: int) -> Trainer:
    """A trainer for the last `steps` of a run that long enough for its rates to be low; it adds no Gaussians."""
    own = configuration.from_dict(configuration.to_dict(config))
    total = max(round(steps / (1 - _LAST_PART)), steps + 1)
    own.fit = replace(own.fit, steps=total, model="static")
    own.densify = replace(own.densify, strategy="none")
    own.init = replace(own.init, source="random", random_count=1)  # what a fit starts from is not needed
    trainer = Trainer(own, dataset, Path())
    trainer.parameters = type(trainer.parameters)(gaussians)
    trainer.step = total - steps
    return trainer


def _frozen(gaussians: Gaussians, dataset: Dataset, config: Config) -> FrozenViews:
    return FrozenViews(gaussians, dataset, config, limit_bytes=_PLAN_BYTES)

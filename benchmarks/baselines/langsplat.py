"""Language as LangSplat has it (Qin et al., CVPR 2024), on our Gaussians: an autoencoder of the scene brings embeddings
to 3 numbers, and each of three levels (small, medium and large segments) learns its own for every Gaussian, with L1;
what is rendered is decoded, pixel by pixel, and the best level answers.

Sizes, losses and rates are those of the released code; steps are fewer, for far smaller images.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, embedding, normalize

from gsfields.data.language_features import FeatureSource
from gsfields.fields.relevancy import relevancy
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.row_adam import RowAdam
from gsfields.fit.schedule import ViewOrder
from gsfields.plans import Plan

ENCODER = (256, 128, 64, 32, 3)
DECODER = (16, 32, 64, 128, 256, 256)


@dataclass(frozen=True)
class Recipe:
    """levels: which levels of the features each of the three is made of; where there are several, the first that says
    something of a pixel.
    """

    levels: tuple[tuple[int, ...], ...] = ((0,), (1,), (2, 3))
    epochs: int = 100  # of the autoencoder
    batch: int = 64
    autoencoder_rate: float = 7e-4
    cosine: float = 0.001
    steps: int = 2000  # of each level, on whole images
    rate: float = 2.5e-3
    seed: int = 0


class Autoencoder(nn.Module):
    """Embeddings [n, E] to 3 numbers and back, both of length 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = _layers((width, *ENCODER), norm=True)
        self.decoder = _layers((ENCODER[-1], *DECODER, width), norm=False)

    def encode(self, embeddings: Tensor) -> Tensor:
        return normalize(self.encoder(embeddings), dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        return normalize(self.decoder(codes), dim=-1)


def _layers(sizes: Sequence[int], *, norm: bool) -> nn.Sequential:
    steps: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise(sizes)):
        if k > 0:
            steps += [nn.BatchNorm1d(a), nn.ReLU()] if norm else [nn.ReLU()]
        steps.append(nn.Linear(a, b))
    return nn.Sequential(*steps)


@dataclass
class LangSplat:
    """What was learnt: codes [N, 3] for each level, and the autoencoder."""

    autoencoder: Autoencoder
    codes: list[Tensor]
    seconds: dict[str, float]

    @torch.no_grad()
    def relevancy(self, plan: Plan, texts: Tensor, phrases: Tensor) -> Tensor:
        """[L, H, W, Q] of one view."""
        maps = []
        for codes in self.codes:
            shown = plan.blend(codes)
            pixels = self.autoencoder.decode(shown.flatten(0, 1))
            maps.append(relevancy(pixels, texts, phrases).view(*shown.shape[:2], len(texts)))
        return torch.stack(maps)


def train(views: FrozenViews, source: FeatureSource, indices: Sequence[int], recipe: Recipe) -> LangSplat:
    """On the views `indices`, those that have features."""
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    known = {i: found for i in indices if (found := source.of(views.view(i))) is not None}
    started = time.process_time()
    autoencoder = _autoencoder(torch.cat([found.embeddings for found in known.values()]), recipe, generator)
    seconds = {"autoencoder": time.process_time() - started}
    started = time.process_time()
    codes = []
    for level in recipe.levels:
        images = {i: _image(found.segments, level) for i, found in known.items()}
        taught = {
            i: autoencoder.encode(found.embeddings) for i, found in known.items() if len(found.embeddings)
        }
        codes.append(_level(views, images, taught, recipe, generator))
    seconds["levels"] = time.process_time() - started
    return LangSplat(autoencoder, codes, seconds)


def _autoencoder(embeddings: Tensor, recipe: Recipe, generator: torch.Generator) -> Autoencoder:
    model = Autoencoder(embeddings.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.autoencoder_rate)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(embeddings), generator=generator)
        for some in order.split(recipe.batch):
            if len(some) < 2:  # batch norm needs two
                continue
            target = embeddings[some]
            found = model.decode(model.encode(target))
            # squares are averaged over numbers, too
            loss = (found - target).square().mean() + recipe.cosine * (
                1 - cosine_similarity(found, target)
            ).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


def _image(segments: Tensor, level: tuple[int, ...]) -> Tensor:
    """[H, W] the row of the first of some levels that has one; -1 where none has."""
    image = torch.full_like(segments[0], -1)
    for part in level:
        if part < len(segments):
            image = torch.where(image >= 0, image, segments[part])
    return image.long()


def _level(
    views: FrozenViews,
    images: dict[int, Tensor],
    taught: dict[int, Tensor],
    recipe: Recipe,
    generator: torch.Generator,
) -> Tensor:
    """[N, 3] of one level: L1 on every pixel that has a segment."""
    usable = [i for i in taught if bool((images[i] >= 0).any())]
    codes = nn.Parameter(torch.zeros(len(views), ENCODER[-1]))
    if not usable:
        return codes.detach()
    optimizer = RowAdam([codes], lr=recipe.rate)
    order = ViewOrder(len(usable), generator)
    for _ in range(recipe.steps):
        index = usable[order.next()]
        plan, rows = views.drawn(index)
        shown = plan.blend(embedding(rows, codes, sparse=True))
        inside = images[index] >= 0
        loss = (shown[inside] - taught[index][images[index][inside]]).abs().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return codes.detach()

"""Asking a view of a scene with language for texts: what is blended once, and what each query costs after that."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gsfields.fields.prompt_scales import PromptScales
from gsfields.fields.query_basis import QueryBasis, doubt_allowed, error_of
from gsfields.fields.relevancy import TEMPERATURE, relevancy
from gsfields.plans import Plan

_FIRST = 64  # directions that are blended at first, for all pixels
_MORE = 4  # and how many times as many then, for those pixels whose length is in doubt
_TINY = 1e-12


@dataclass(frozen=True)
class Answer:
    """What a view says of Q texts."""

    relevancy: Tensor  # [H, W, Q] in (0, 1), 1/2 where nothing is
    alpha: Tensor  # [H, W]
    bound: float  # no relevancy is further from that of the whole embeddings


@dataclass
class Askable:
    """Embeddings of N Gaussians, and phrases [K, E], K >= 1, that relevancy compares with: what all views share.

    Raises ValueError for other phrases.
    """

    basis: QueryBasis
    phrases: Tensor

    def __post_init__(self) -> None:
        shape = list(self.phrases.shape)
        if len(shape) != 2 or shape[0] == 0 or shape[1] != self.basis.width:
            raise ValueError(f"phrases must be [K, E={self.basis.width}] with K >= 1, but is {shape}")

    @cached_property
    def first(self) -> int:
        """Directions that are blended for all pixels."""
        return min(_FIRST, self.basis.rank)

    @cached_property
    def values(self) -> Tensor:
        """[N, first + 1 + K]: coefficients of those, what is left of each embedding, products with the phrases."""
        basis = self.basis
        parts = (
            basis.coefficients[:, : self.first],
            basis.rest(self.first)[:, None],
            basis.products(_unit(self.phrases)),
        )
        return torch.cat(parts, dim=1)

    def rows(self, index: Tensor) -> Askable:
        """Of some of the Gaussians."""
        some = Askable(self.basis.rows(index), self.phrases)
        some.first, some.values = self.first, self.values[index]
        return some


class ViewQueries:
    """Queries of one view: a text costs a blend of one channel, several of them one walk together.

    What all texts share is blended at the start: products with the canonical phrases, and the lengths of the pixels'
    embeddings, with as many principal directions as it takes to know them to within `tolerance` of relevancy. Most
    pixels need few; the others, which lie where things meet, are looked at again.
    """

    @torch.no_grad()
    def __init__(self, plan: Plan, asked: Askable, *, tolerance: float = 1e-3) -> None:
        """plan: of one view, of the N Gaussians. Raises ValueError for a tolerance that is not positive."""
        if tolerance <= 0:
            raise ValueError(f"tolerance must be positive, but is {tolerance}")
        self.plan, self.basis = plan, asked.basis
        first, rank = asked.first, asked.basis.rank
        image = plan.blend(asked.values)
        self.alpha = plan.alpha[..., 0]
        self.best = image[..., first + 1 :].amax(dim=-1)  # [H, W] max_k φ·c_k
        lengths = torch.linalg.vector_norm(image[..., :first], dim=-1).flatten()
        rest = image[..., first].flatten()
        # (directions, pixels for which so many were blended)
        self.channels: tuple[tuple[int, int], ...] = ((first, rest.numel()),)
        limit = doubt_allowed(tolerance)
        while first < rank and len(unsure := (rest > limit * lengths).nonzero()[:, 0]):
            more = min(rank, _MORE * first)
            further = (self.basis.coefficients[:, first:more], self.basis.rest(more)[:, None])
            pixels = torch.stack((unsure % plan.width, unsure // plan.width), dim=1)
            added = plan.blend(torch.cat(further, dim=1), pixels=pixels)
            lengths[unsure] = torch.hypot(lengths[unsure], torch.linalg.vector_norm(added[:, :-1], dim=1))
            rest[unsure] = added[:, -1]
            first = more
            self.channels += ((first, len(unsure)),)
        self.length = lengths.view(plan.height, plan.width)
        doubt = torch.where(lengths > _TINY, rest / lengths.clamp_min(_TINY), 0.0)
        self.bound = float(error_of(doubt.max())) if doubt.numel() else 0.0

    @torch.no_grad()
    def ask(self, texts: Tensor) -> Answer:
        """Of texts [Q, E], of any length: relevancy as LERF and LangSplat have it, of normalised vectors.

        σ(t (φ·q - max_k φ·c_k) / ‖φ‖), see fields.relevancy.
        """
        if texts.ndim != 2 or texts.shape[1] != self.basis.width:
            raise ValueError(f"texts must be [Q, E={self.basis.width}], but is {list(texts.shape)}")
        if len(texts) == 0:
            return Answer(self.best.new_empty(*self.best.shape, 0), self.alpha, self.bound)
        margins = self.plan.blend(self.basis.products(_unit(texts)))
        margins -= self.best[..., None]
        margins *= (TEMPERATURE / self.length.clamp_min(_TINY))[..., None]
        return Answer(margins.sigmoid_(), self.alpha, self.bound)


class PromptQueries:
    """Queries of one view by prompts that weigh scales: a text costs a blend of one channel, and nothing is shared."""

    channels: tuple[tuple[int, int], ...] = ()  # as ViewQueries has them
    bound = 0.0

    def __init__(self, plan: Plan, asked: PromptScales, rows: Tensor | None = None) -> None:
        """plan: of one view; rows: which of the N Gaussians it is of, all by default."""
        self.plan, self.asked, self.rows = plan, asked, rows

    @torch.no_grad()
    def ask(self, texts: Tensor) -> Answer:
        """Of texts [Q, E], of any length; see fields.prompt_scales."""
        margins = self.asked.margins(texts)
        if self.rows is not None:
            margins = margins[self.rows]
        both = self.plan.blend(torch.cat((margins, torch.ones_like(margins[:, :1])), dim=1))
        alpha = both[..., -1]  # of the same walk
        means = both[..., :-1] * (TEMPERATURE / alpha.clamp_min(_TINY))[..., None]
        return Answer(means.sigmoid_(), alpha, self.bound)


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


@torch.no_grad()
def asked_plainly(plan: Plan, asked: Askable, texts: Tensor) -> Tensor:
    """[H, W, Q] the same by the paper's way: all E numbers of every pixel, normalised, times the texts."""
    whole = asked.basis.coefficients @ asked.basis.directions.T
    return relevancy(plan.blend(whole), texts.to(whole), asked.phrases.to(whole))

"""Asking a view of a scene with language for texts: what is blended once, and what each query costs after that."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsfields.fields.query_basis import QueryBasis, doubt_allowed, error_of
from gsfields.fields.relevancy import from_products, relevancy
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


class ViewQueries:
    """Queries of one view: a text costs a blend of one channel, several of them one walk together.

    What all texts share is blended at the start: products with the canonical phrases, and the lengths of the pixels'
    embeddings, with as many principal directions as it takes to know them to within `tolerance` of relevancy. Most
    pixels need few; the others, which lie where things meet, are looked at again.
    """

    @torch.no_grad()
    def __init__(self, plan: Plan, basis: QueryBasis, phrases: Tensor, *, tolerance: float = 1e-3) -> None:
        """plan: of one view, of the N Gaussians of the basis; phrases: [K, E] that relevancy compares with, K >= 1.

        Raises ValueError for bad arguments.
        """
        if phrases.ndim != 2 or len(phrases) == 0 or phrases.shape[1] != basis.width:
            raise ValueError(
                f"phrases must be [K, E={basis.width}] with K >= 1, but is {list(phrases.shape)}"
            )
        if tolerance <= 0:
            raise ValueError(f"tolerance must be positive, but is {tolerance}")
        self.plan, self.basis = plan, basis
        first = min(_FIRST, basis.rank)
        values = (basis.coefficients[:, :first], basis.rest(first)[:, None], basis.products(_unit(phrases)))
        image = plan.blend(torch.cat(values, dim=1))
        self.alpha = plan.alpha[..., 0]
        self.best = image[..., first + 1 :].amax(dim=-1)  # [H, W] max_k φ·c_k
        squares = image[..., :first].square().sum(dim=-1).flatten()
        rest = image[..., first].flatten().clone()
        self.channels = [(first, rest.numel())]  # (directions, pixels for which so many were blended)
        limit = doubt_allowed(tolerance) ** 2
        while first < basis.rank and len(unsure := (rest.square() > limit * squares).nonzero()[:, 0]):
            more = min(basis.rank, _MORE * first)
            further = (basis.coefficients[:, first:more], basis.rest(more)[:, None])
            pixels = torch.stack((unsure % plan.width, unsure // plan.width), dim=1)
            added = plan.blend(torch.cat(further, dim=1), pixels=pixels)
            squares[unsure] += added[:, :-1].square().sum(dim=1)
            rest[unsure] = added[:, -1]
            first = more
            self.channels.append((first, len(unsure)))
        self.length = squares.sqrt().view(plan.height, plan.width)
        doubt = torch.where(squares > _TINY**2, rest.square() / squares.clamp_min(_TINY**2), 0.0).sqrt()
        self.bound = float(error_of(doubt.max())) if doubt.numel() else 0.0

    @torch.no_grad()
    def ask(self, texts: Tensor) -> Answer:
        """Of texts [Q, E], of any length: relevancy as LERF and LangSplat have it, of normalised vectors."""
        if texts.ndim != 2 or texts.shape[1] != self.basis.width:
            raise ValueError(f"texts must be [Q, E={self.basis.width}], but is {list(texts.shape)}")
        products = self.best[..., None]
        if len(texts):
            products = torch.cat((self.plan.blend(self.basis.products(_unit(texts))), products), dim=-1)
        products = products / self.length.clamp_min(_TINY)[..., None]
        return Answer(from_products(products, len(texts)), self.alpha, self.bound)


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


@torch.no_grad()
def asked_plainly(plan: Plan, basis: QueryBasis, phrases: Tensor, texts: Tensor) -> Tensor:
    """[H, W, Q] the same by the paper's way: all E numbers of every pixel, normalised, times the texts."""
    whole = basis.coefficients @ basis.directions.T
    return relevancy(plan.blend(whole), texts.to(whole), phrases.to(whole))

"""Nested embeddings asked for a prompt that weighs their scales.

The composite of N2F2 weighs the scales of a Gaussian once and for all, so that some scales always speak of something
else than what is asked. Here the weights are the prompt's own. With φ_g(i) the embedding of Gaussian i at scale g, and

    x_g(i) = cos(φ_g(i), q),    y_gk(i) = cos(φ_g(i), c_k) for each canonical phrase,

the prompt q is met at scale g as well as by the Gaussians that meet it best:

    p_g = the mean of σ(t (x_g(i) - max_k y_gk(i))), its relevancy, over the thousandth of all i where that is highest
    a   = softmax(p / temperature)

which is the same in all views. Of a Gaussian the scales count γ_g(i) ∝ a_g · prior_g(i), the prior being that of
composites, and its margin is

    m(i) = Σ_g γ_g(i) x_g(i) - max_k Σ_g γ_g(i) y_gk(i).

A pixel's margin is the mean of those of the Gaussians that it shows, and σ(t m) its relevancy: one channel to blend for
a prompt, exact, and nothing that has to be made ready for a view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsfields.fields.nested import Nested, group_bounds
from gsfields.fields.relevancy import TEMPERATURE

SCALES = 8  # that are told apart where the embeddings do not say how many
_BEST = 1000  # of so many Gaussians one tells how well a prompt is met
_HELD = 1 << 24  # numbers of an intermediate that are held at once
_UNHEARD = 1e-4  # weights of a prompt's scales that are left out
_TINY = 1e-12


class Met(NamedTuple):
    """How texts are met."""

    texts: Tensor  # [Q, E]
    weights: Tensor  # a [Q, S]
    margins: Tensor  # m [N, Q]


@dataclass
class PromptScales:
    """Of N Gaussians, with phrases [K, E], K >= 1, that relevancy compares with.

    Raises ValueError for other phrases, a temperature that is not positive, and a heed outside [0, 1].
    """

    nested: Nested
    phrases: Tensor
    temperature: float = 0.02
    heed: float = 0.5  # share of the prior that follows what segments said of a Gaussian; the rest is even
    _last: Met | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shape = list(self.phrases.shape)
        if len(shape) != 2 or shape[0] == 0 or shape[1] != self.nested.width:
            raise ValueError(f"phrases must be [K, E={self.nested.width}] with K >= 1, but is {shape}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, but is {self.temperature}")
        if not 0 <= self.heed <= 1:
            raise ValueError(f"heed must be in [0, 1], but is {self.heed}")

    @property
    def count(self) -> int:
        """S."""
        said = self.nested.said
        return min(SCALES, self.nested.dim) if said is None else said.shape[1]

    @property
    def scales(self) -> Tensor:
        """[S] in [0, 1), the largest first: the middle of those that each stands for."""
        bounds = torch.tensor(self._bounds, dtype=torch.float32)
        return 1 - (bounds[1:] + bounds[:-1]) / (2 * self.nested.dim)

    @cached_property
    def prior(self) -> Tensor:
        """[S, N], or [S, 1] where it is the same for all; columns sum to 1."""
        even = torch.full((self.count, 1), 1 / self.count)
        said = self.nested.said
        if said is None or self.heed == 0:
            return even
        known = said.sum(dim=1) > 0
        return torch.where(known, self.heed * said.T + (1 - self.heed) * even, even)

    @cached_property
    def _beside(self) -> tuple[Tensor, Tensor, Tensor]:
        """(‖φ_g‖ [S, N], y [K, S, N], max_k y [S, N])"""
        unit, count = normalize(self.phrases, dim=1), len(self.nested)
        lengths = unit.new_empty(self.count, count)
        y = unit.new_empty(len(unit), self.count, count)
        rows = max(1, _HELD // self.nested.width)
        for start in range(0, count, rows):
            some = slice(start, start + rows)
            theta = self.nested.theta[some]
            shown = theta.new_zeros(len(theta), self.nested.width)
            for g, (low, high) in enumerate(pairwise(self._bounds)):
                shown.addmm_(theta[:, low:high], self.nested.projection[:, low:high].T)
                lengths[g, some] = torch.linalg.vector_norm(shown, dim=1).clamp_min(_TINY)
                y[:, g, some] = unit @ shown.T / lengths[g, some]
        return lengths, y, y.amax(dim=0)

    def weights(self, texts: Tensor) -> Tensor:
        """a [Q, S] of texts [Q, E], of any length."""
        return self._met(texts).weights

    def margins(self, texts: Tensor) -> Tensor:
        """m [N, Q] of texts [Q, E], of any length."""
        return self._met(texts).margins

    @torch.no_grad()
    def _met(self, texts: Tensor) -> Met:
        """Of texts; those that were asked last are known."""
        if self._last is not None and torch.equal(texts, self._last.texts):
            return self._last
        _, y, _ = self._beside
        met = Met(texts.clone(), y.new_empty(len(texts), self.count), y.new_empty(y.shape[2], len(texts)))
        for k, x in enumerate(self._cosines(texts)):
            met.weights[k] = self._weighed(x)
            least = _UNHEARD if self.heed < 1 else 0.0  # each Gaussian must be left a scale
            spoken = (met.weights[k] >= least).nonzero()[:, 0]
            gamma = met.weights[k, spoken, None].clamp_min(_TINY) * self.prior[spoken]
            gamma = gamma / gamma.sum(dim=0)
            beside = [(gamma * of[spoken]).sum(dim=0) for of in y]
            met.margins[:, k] = (gamma * x[spoken]).sum(dim=0) - torch.stack(beside).amax(dim=0)
        self._last = met
        return met

    def _weighed(self, x: Tensor) -> Tensor:
        """a [S] of a prompt's cosines x [S, N]."""
        count = x.shape[1]
        if count == 0:
            return torch.full((self.count,), 1 / self.count)
        best = (x - self._beside[2]).topk(-(-count // _BEST), dim=1).values
        met = best.mul_(TEMPERATURE).sigmoid_().mean(dim=1)
        return (met / self.temperature).softmax(dim=0)

    def _cosines(self, texts: Tensor) -> Iterator[Tensor]:
        """x [S, N] of each of texts [Q, E]."""
        if texts.ndim != 2 or texts.shape[1] != self.nested.width:
            raise ValueError(f"texts must be [Q, E={self.nested.width}], but is {list(texts.shape)}")
        lengths, _, _ = self._beside
        index = torch.arange(self.nested.dim)
        shown = index < torch.tensor(self._bounds[1:])[:, None]  # [S, D] the numbers of each scale
        asked = normalize(texts.to(lengths), dim=1) @ self.nested.projection  # [Q, D]
        for some in asked.split(max(1, _HELD // max(1, lengths.numel()))):
            products = (some[:, None] * shown).flatten(0, 1) @ self.nested.theta.T
            for x in products.unflatten(0, (-1, self.count)):
                yield x / lengths

    @property
    def _bounds(self) -> list[int]:
        return group_bounds(self.nested.dim, self.count)

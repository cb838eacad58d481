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
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsfields.fields.nested import Nested, group_bounds
from gsfields.fields.relevancy import TEMPERATURE

SCALES = 8  # that are told apart where the embeddings do not say how many
_BEST = 1000  # of so many Gaussians one tells how well a prompt is met
_HELD = 1 << 24  # numbers of an intermediate that are held at once
_TINY = 1e-12


@dataclass
class PromptScales:
    """Of N Gaussians, with phrases [K, E], K >= 1, that relevancy compares with.

    Raises ValueError for other phrases, a temperature that is not positive, and a heed outside [0, 1].
    """

    nested: Nested
    phrases: Tensor
    temperature: float = 0.02
    heed: float = 0.5  # share of the prior that follows what segments said of a Gaussian; the rest is even

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
        bounds = torch.tensor(group_bounds(self.nested.dim, self.count), dtype=torch.float32)
        return 1 - (bounds[1:] + bounds[:-1]) / (2 * self.nested.dim)

    @cached_property
    def prior(self) -> Tensor:
        """[N, S], or [1, S] where it is the same for all; rows sum to 1."""
        even = torch.full((1, self.count), 1 / self.count)
        said = self.nested.said
        if said is None or self.heed == 0:
            return even
        known = said.sum(dim=1, keepdim=True) > 0
        return torch.where(known, self.heed * said + (1 - self.heed) * even, even)

    @cached_property
    def _beside(self) -> tuple[Tensor, Tensor]:
        """(‖φ_g‖ [N, S], y [N, S, K])"""
        unit, lengths, cosines = normalize(self.phrases, dim=1), [], []
        for theta in self.nested.theta.split(max(1, _HELD // self.nested.width)):
            shown = theta.new_zeros(len(theta), self.nested.width)
            own, products = [], []
            for block in self._blocks():
                shown.addmm_(theta[:, block], self.nested.projection[:, block].T)
                own.append(torch.linalg.vector_norm(shown, dim=1).clamp_min(_TINY))
                products.append(shown @ unit.T / own[-1][:, None])
            lengths.append(torch.stack(own, dim=1))
            cosines.append(torch.stack(products, dim=1))
        return torch.cat(lengths), torch.cat(cosines)

    @torch.no_grad()
    def weights(self, texts: Tensor) -> Tensor:
        """a [Q, S] of texts [Q, E], of any length."""
        found = [self._weighed(x) for x in self._cosines(texts)]
        return torch.stack(found) if found else texts.new_zeros(0, self.count)

    @torch.no_grad()
    def margins(self, texts: Tensor) -> Tensor:
        """m [N, Q] of texts [Q, E], of any length."""
        _, y = self._beside
        margins = y.new_empty(len(y), len(texts))
        for k, x in enumerate(self._cosines(texts)):
            gamma = self._weighed(x) * self.prior
            gamma = gamma / gamma.sum(dim=1, keepdim=True)
            beside = torch.linalg.vecdot(gamma[:, :, None], y, dim=1).amax(dim=1)
            margins[:, k] = (gamma * x).sum(dim=1) - beside
        return margins

    def _weighed(self, x: Tensor) -> Tensor:
        """a [S] of a prompt's cosines x [N, S]."""
        if len(x) == 0:
            return torch.full((self.count,), 1 / self.count)
        _, y = self._beside
        best = (x - y.amax(dim=2)).mul_(TEMPERATURE).sigmoid_().topk(-(-len(x) // _BEST), dim=0)
        return (best.values.mean(dim=0) / self.temperature).softmax(dim=0)

    def _cosines(self, texts: Tensor) -> Iterator[Tensor]:
        """x [N, S] of each of texts [Q, E]."""
        if texts.ndim != 2 or texts.shape[1] != self.nested.width:
            raise ValueError(f"texts must be [Q, E={self.nested.width}], but is {list(texts.shape)}")
        lengths, _ = self._beside
        for some in normalize(texts.to(lengths), dim=1).split(max(1, _HELD // max(1, lengths.numel()))):
            parts = [
                self.nested.theta[:, block] @ (some @ self.nested.projection[:, block]).T
                for block in self._blocks()
            ]
            products = torch.stack(parts, dim=1).cumsum(dim=1)  # [N, S, Q]
            for x in products.unbind(dim=2):
                yield x / lengths

    def _blocks(self) -> list[slice]:
        """What each scale's embedding has beyond that of the next larger one."""
        return [slice(a, b) for a, b in pairwise(group_bounds(self.nested.dim, self.count))]

"""Embeddings of Gaussians in principal directions: what queries need of them, and how little of it does.

A query asks of each pixel for the angle between its embedding φ = Σ w_i φ_i and that of a text. Products φ · q are
linear: they are blends of one channel, φ_i · q, and exact. The length ‖φ‖ is not linear. With the first r principal
directions V [E, r] let A = Vᵀ φ be the blend of the coefficients Vᵀ φ_i, and ρ = Σ w_i ‖φ_i - V Vᵀ φ_i‖ one more
channel. What is left of φ is orthogonal to V and no longer than ρ, so

    ‖A‖ ≤ ‖φ‖ ≤ ‖A‖ √(1 + δ²),   δ = ρ / ‖A‖:

a length is wrong by the square of a small number. For relevancy σ(t x) with x = (φ·q - φ·c) / ‖φ‖ that means an error
of at most ½ δ² max_u |u σ'(u)| = SLOPE · δ² / 2, whatever the temperature t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsfields.fields.nested import Nested

SLOPE = 0.22397  # max of |u σ'(u)|, at u = 1.5434
_NOTHING = 1e-12  # of the sum of squares: directions with less are rounding


def doubt_allowed(tolerance: float) -> float:
    """The largest δ with which no relevancy is wrong by more than `tolerance`."""
    return float((2 * tolerance / SLOPE) ** 0.5)


def error_of(doubt: Tensor) -> Tensor:
    """How wrong a relevancy may be, of δ."""
    return SLOPE / 2 * doubt.square()


@dataclass
class QueryBasis:
    """Embeddings φ_i of N Gaussians as coefficients of orthonormal directions, those that say most first.

    Raises ValueError for shapes that do not fit.
    """

    coefficients: Tensor  # [N, R]
    directions: Tensor  # V [E, R]

    def __post_init__(self) -> None:
        fits = self.coefficients.ndim == self.directions.ndim == 2
        if not fits or self.coefficients.shape[1] != self.directions.shape[1]:
            raise ValueError(
                f"coefficients and directions must be [N, R] and [E, R], but are {list(self.coefficients.shape)} and "
                f"{list(self.directions.shape)}"
            )

    @classmethod
    @torch.no_grad()
    def of(cls, theta: Tensor, projection: Tensor) -> QueryBasis:
        """Of embeddings φ_i = W θ_i, with θ [N, D] and W [E, D]; none of them is ever held in E numbers."""
        nested = Nested(theta, projection)  # checks shapes
        moments = projection.double() @ (theta.T @ theta).double() @ projection.T.double()
        values, vectors = torch.linalg.eigh(moments)
        kept = int((values > _NOTHING * values.clamp_min(0).sum()).sum())
        directions = vectors.flip(1)[:, : max(kept, 1)].to(theta.dtype)
        return cls(nested.theta @ (projection.T @ directions), directions)

    def __len__(self) -> int:
        return len(self.coefficients)

    @property
    def rank(self) -> int:
        """R."""
        return self.directions.shape[1]

    @property
    def width(self) -> int:
        """E."""
        return self.directions.shape[0]

    def rest(self, count: int) -> Tensor:
        """[N] what is left of the length of each embedding without the first `count` directions."""
        return self.coefficients[:, count:].square().sum(dim=1).sqrt()

    def products(self, texts: Tensor) -> Tensor:
        """φ_i · q [N, Q] of texts [Q, E]."""
        return self.coefficients @ (texts.to(self.directions) @ self.directions).T

    def rows(self, index: Tensor) -> QueryBasis:
        """Of some of the Gaussians."""
        return QueryBasis(self.coefficients[index], self.directions)

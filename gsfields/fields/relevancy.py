"""How relevant a phrase is to an embedding (LERF: Kerr et al., ICCV 2023, section 3.3).

The query q competes with each of a few canonical phrases c_k, which fit anything: p_k is what a softmax with
temperature t gives q over the pair (t e·q, t e·c_k), and the relevancy is the least p_k. As p_k falls when
e·c_k rises,

    min_k p_k = σ(t (e·q - max_k e·c_k))

which needs dot products alone: where an embedding is a sum, the products of its parts can be summed instead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

CANONICAL = ("object", "things", "stuff", "texture")  # the phrases of the released LERF and LangSplat
TEMPERATURE = 10.0


def relevancy(
    embeddings: Tensor,
    queries: Tensor,
    canonical: Tensor,
    *,
    temperature: float = TEMPERATURE,
    normalise: bool = True,
) -> Tensor:
    """[..., Q] in (0, 1): of queries [Q, D] to embeddings [..., D], against canonical phrases [K, D].

    1/2 is where the query does as well as the best canonical phrase; rounding may make the extremes 0 and 1.
    Vectors are first scaled to length 1, as the temperature supposes (a blend of unit vectors is shorter
    wherever they disagree); one of zeros stays zero, and an embedding of zeros is relevant by 1/2 to
    everything. normalise=False takes all vectors as they are. Types of less than 32 bits are computed, and
    returned, in float32.

    Raises ValueError if shapes do not fit, there is no canonical phrase, or temperature is not positive.
    """
    given = {"embeddings": embeddings, "queries": queries, "canonical": canonical}
    forms = {"embeddings": "...", "queries": "Q", "canonical": "K"}
    for name, tensor in given.items():
        form = forms[name]
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, but are {tensor.dtype}")
        if tensor.ndim == 0 or (tensor.ndim != 2 and name != "embeddings"):
            raise ValueError(f"{name} must be [{form}, D], but are {list(tensor.shape)}")
        if tensor.shape[-1] != embeddings.shape[-1]:
            raise ValueError(
                f"{name} must be [{form}, {embeddings.shape[-1]}], as wide as the embeddings, "
                f"but are {list(tensor.shape)}"
            )
    dtype = torch.float32
    for tensor in given.values():
        dtype = torch.promote_types(dtype, tensor.dtype)
    vectors, phrases = embeddings.to(dtype), torch.cat((queries, canonical)).to(dtype)
    if normalise:
        vectors, phrases = normalize(vectors, dim=-1), normalize(phrases, dim=-1)
    return from_products(vectors @ phrases.T, len(queries), temperature)


def from_products(products: Tensor, queries: int, temperature: float = TEMPERATURE) -> Tensor:
    """[..., Q] in (0, 1): relevancy from dot products [..., Q + K] of unit vectors, the first Q with the
    queries, the other K with the canonical phrases.

    Raises ValueError if the width leaves no canonical phrase, or temperature is not positive.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive number, but is {temperature}")
    if queries < 0:
        raise ValueError(f"queries, the number of them, must not be negative, but is {queries}")
    if products.ndim == 0 or not products.is_floating_point():
        raise ValueError(
            f"products must be [..., Q + K] floating point, but are {products.dtype} {list(products.shape)}"
        )
    if products.shape[-1] <= queries:
        raise ValueError(
            f"canonical phrases must be at least one, beside the {queries} queries, but there are products "
            f"with {products.shape[-1]} phrases in all"
        )
    best = products[..., queries:].amax(dim=-1, keepdim=True)
    return torch.sigmoid(temperature * (products[..., :queries] - best))

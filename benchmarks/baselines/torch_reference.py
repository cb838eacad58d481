"""Compositing in plain torch, differentiated by autograd: per tile (fair), and dense (exact, tiny scenes
only).
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 16
ALPHA_CUTOFF = 1.0 / 255.0
ALPHA_MAX = 0.99
TRANSMITTANCE_STOP = 1e-4
DENSE_LIMIT = 1 << 26  # pixels x Gaussians; above this the dense composite would take gigabytes


def composite(
    pixels: Tensor, values: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor
) -> tuple[Tensor, Tensor]:
    """Front-to-back blend of K Gaussians, already in depth order, at pixel centres [P, 2].

    Returns the image [P, C] and the transmittance [P].
    """
    weights, transmittance = blend_weights(pixels, means2d, conics, opacities)
    return weights @ values, transmittance


def blend_weights(
    pixels: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor
) -> tuple[Tensor, Tensor]:
    """What each of K Gaussians in depth order counts in each pixel [P, K], and the transmittance [P].

    alpha and its limits: Kerbl et al. 2023, section 6.
    """
    dx, dy = (means2d[None, :, :] - pixels[:, None, :]).unbind(-1)  # [P, K]
    a, b, c = conics.unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacities * torch.exp(-sigma)).clamp(max=ALPHA_MAX)
    alpha = torch.where((alpha >= ALPHA_CUTOFF) & (sigma >= 0), alpha, 0.0)
    after = torch.cumprod(1 - alpha, dim=1)  # transmittance behind each Gaussian
    before = torch.cat([after.new_ones(len(pixels), 1), after], dim=1)  # [P, K + 1]
    kept = after > TRANSMITTANCE_STOP  # a prefix of each row: the transmittance only falls
    weights = torch.where(kept, alpha * before[:, :-1], 0.0)
    last = kept.sum(dim=1, keepdim=True)
    return weights, before.gather(1, last)[:, 0]


def pixel_centres(x: int, y: int, width: int, height: int, like: Tensor) -> Tensor:
    """Centres [width * height, 2], row by row, of the block of pixels whose first one is (x, y)."""
    xs = torch.arange(x, x + width, dtype=like.dtype) + 0.5
    ys = torch.arange(y, y + height, dtype=like.dtype) + 0.5
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).reshape(-1, 2)


def blend_tiled(
    values: Tensor,
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    ids: Tensor,
    tile_offsets: Tensor,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Blend values [N, C] of one view over its tile lists -> image [1, H, W, C], transmittance [1, H, W].

    size is (width, height). Differentiable in every float argument. Raises ValueError for a batch of views.
    """
    if means2d.shape[0] != 1:
        raise ValueError(f"means2d: the torch reference blends one view, got {means2d.shape[0]}")
    width, height = size
    index = ids.long()
    # One gather and one split for the whole image: backward they are one index_add and one cat, not one per tile.
    counts = tile_offsets.diff().tolist()
    inputs = (values, means2d[0], conics[0], opacities[0])
    lists = zip(*(t.index_select(0, index).split(counts) for t in inputs))
    rows = []
    for y in range(0, height, TILE):
        row = []
        for x in range(0, width, TILE):
            w, h = min(TILE, width - x), min(TILE, height - y)
            image, transmittance = composite(pixel_centres(x, y, w, h, means2d), *next(lists))
            row.append(torch.cat([image, transmittance[:, None]], dim=1).reshape(h, w, -1))
        rows.append(torch.cat(row, dim=1))
    both = torch.cat(rows, dim=0)[None]
    return both[..., :-1], both[..., -1]


def blend_dense(
    values: Tensor,
    means2d: Tensor,
    depths: Tensor,
    conics: Tensor,
    opacities: Tensor,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Every Gaussian at every pixel of one view: no tiles, no lists. For tiny scenes.

    Raises ValueError when pixels x Gaussians exceeds DENSE_LIMIT.
    """
    width, height = size
    work = width * height * values.shape[0]
    if work > DENSE_LIMIT:
        raise ValueError(
            f"size and values give {work} pairs of pixel and Gaussian; at most {DENSE_LIMIT} are allowed"
        )
    order = torch.argsort(depths[0], stable=True)
    ordered = [t.index_select(0, order) for t in (values, means2d[0], conics[0], opacities[0])]
    image, transmittance = composite(pixel_centres(0, 0, width, height, means2d), *ordered)
    return image.reshape(1, height, width, -1), transmittance.reshape(1, height, width)

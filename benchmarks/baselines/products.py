"""The blend as products of torch's: weights, computed beforehand, times values. Every weight of every tile as dense
matrices, or the weights that are not zero as one sparse matrix.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.torch_reference import TILE, blend_weights, pixel_centres
from gsfields.bench.stages import View


@dataclass(frozen=True)
class TileWeights:
    """One tile: which pixels it has, and what the Gaussians of its list count in each."""

    rows: slice
    columns: slice
    ids: Tensor  # [K]
    weights: Tensor  # [pixels, K]


def tile_weights(view: View) -> Iterator[TileWeights]:
    """The weights of each tile that has Gaussians, computed by torch."""
    offsets, ids = view.tile_offsets.tolist(), view.ids.long()
    tile = 0
    for y in range(0, view.height, TILE):
        for x in range(0, view.width, TILE):
            w, h = min(TILE, view.width - x), min(TILE, view.height - y)
            mine = ids[offsets[tile] : offsets[tile + 1]]
            tile += 1
            if len(mine):
                splats = (t[0].index_select(0, mine) for t in (view.means2d, view.conics, view.opacities2d))
                weights, _ = blend_weights(pixel_centres(x, y, w, h, view.means2d), *splats)
                yield TileWeights(slice(y, y + h), slice(x, x + w), mine, weights)


class DenseProducts:
    """Per tile one product of its weights with the values of its list."""

    def __init__(self, view: View) -> None:
        with torch.no_grad():
            self.tiles = list(tile_weights(view))

    def blend(self, view: View) -> tuple[Tensor, Tensor]:
        """The image [1, H, W, C], and nothing for a transmittance; differentiable in values."""
        channels = view.values.shape[1]
        image = view.values.new_zeros(1, view.height, view.width, channels)
        for tile in self.tiles:
            block = image[0, tile.rows, tile.columns]
            block.copy_((tile.weights @ view.values.index_select(0, tile.ids)).view(block.shape))
        return image, image.new_empty(0)

    def lift(self, view: View, image: Tensor) -> Tensor:
        """The product with each tile's transposed weights, added up [N, C]."""
        channels = image.shape[-1]
        sums = image.new_zeros(view.values.shape[0], channels)
        for tile in self.tiles:
            block = image[0, tile.rows, tile.columns].reshape(-1, channels)
            sums.index_add_(0, tile.ids, tile.weights.T @ block)
        return sums


class SparseProduct:
    """One product of a sparse matrix [pixels, N] in rows with all values."""

    def __init__(self, view: View) -> None:
        with torch.no_grad():
            self.matrix = sparse_weights(view)
            with _quiet():
                self.transposed = self.matrix.t().to_sparse_csr()  # [N, pixels], in rows too

    def blend(self, view: View) -> tuple[Tensor, Tensor]:
        """The image [1, H, W, C], and nothing for a transmittance."""
        image = torch.sparse.mm(self.matrix, view.values)
        return image.view(1, view.height, view.width, -1), image.new_empty(0)

    def lift(self, view: View, image: Tensor) -> Tensor:
        """The product with the transposed matrix [N, C]."""
        return torch.sparse.mm(self.transposed, image.view(-1, image.shape[-1]))


def sparse_weights(view: View) -> Tensor:
    """The weights that are not zero, [H * W, N] in compressed rows."""
    pixel = torch.arange(view.height * view.width).view(view.height, view.width)
    pixels, splats, weights = [], [], []
    for tile in tile_weights(view):
        row, column = tile.weights.nonzero(as_tuple=True)
        pixels.append(pixel[tile.rows, tile.columns].reshape(-1)[row])
        splats.append(tile.ids[column])
        weights.append(tile.weights[row, column])
    index = torch.stack([torch.cat(pixels), torch.cat(splats)])
    size = (view.height * view.width, view.values.shape[0])
    with _quiet():
        return torch.sparse_coo_tensor(index, torch.cat(weights), size).coalesce().to_sparse_csr()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that compressed rows are a beta feature."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""What 2D segments with embeddings say of a run's views, and how large these segments are in space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from gsfields.data.images import ImageCache
from gsfields.data.language_features import FeatureSource
from gsfields.fit.frozen import FrozenViews

_OPAQUE = 0.5  # pixels that are less so have no depth
_HELD = 512 << 20  # bytes of features that are kept


@dataclass(frozen=True)
class ViewTeachers:
    """The n segments of one view of H x W pixels."""

    embeddings: Tensor  # [n, E] unit
    covers: Tensor  # [L, H W] int32, segments that cover a pixel, on levels; -1 where there are none
    scales: Tensor  # [n] in [0, 1), of the segment among all; nan where nothing of it has a depth
    areas: Tensor  # [n] pixels


class LanguageLabels:
    """Segments of all of `indices` that have any, with their scales (N2F2, section 4.3 of Bhalgat's thesis).

    The size of a segment is the largest eigenvalue of the covariance of its pixels in space, by expected depth. Sizes
    of one scene are brought to [0, 1) by their quantiles, in `bins` steps: half of all segments are below a half.

    Raises ValueError if no view has a segment that can be used.
    """

    def __init__(
        self,
        source: FeatureSource,
        views: FrozenViews,
        indices: Sequence[int],
        bins: int,
        *,
        progress: bool = False,
    ) -> None:
        self.source, self.views, self.bins = source, views, bins
        self._cache = ImageCache(_HELD)
        self._variances: dict[int, Tensor] = {}
        for index in tqdm(indices, disable=not progress, desc="sizes of segments", unit=" views"):
            if source.has(views.view(index)):
                found = self._measured(index)
                if bool(found.isfinite().any()):
                    self._variances[index] = found
        if not self._variances:
            raise ValueError(
                f"none of the {len(indices)} training views has segments that can be used: some pixel of one must show "
                f"the scene (alpha above {_OPAQUE}), and those of the first view must be called "
                f"{views.view(indices[0]).stem}_f.npy and _s.npy in {source.root}"
            )
        self.indices = list(self._variances)
        every = torch.cat(list(self._variances.values()))
        self._sorted = every[every.isfinite()].sort().values

    @property
    def width(self) -> int:
        """E."""
        return self.source.dim

    def scales_of(self, variances: Tensor) -> Tensor:
        """[n] in [0, 1): the share of all segments that are smaller, equal ones half, in steps of 1 / bins."""
        below = torch.searchsorted(self._sorted, variances)
        upto = torch.searchsorted(self._sorted, variances, right=True)
        share = (below + upto) / (2 * len(self._sorted))
        scales = ((share * self.bins).floor() / self.bins).clamp(0, 1 - 1 / self.bins)
        return torch.where(variances.isfinite(), scales, torch.nan)

    def of(self, index: int) -> ViewTeachers:
        """Of a view in `indices`."""
        embeddings, covers, areas = self._cache.get(index, lambda: self._read(index))
        return ViewTeachers(embeddings, covers, self.scales_of(self._variances[index]), areas)

    def _read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """(embeddings, covers, areas)"""
        view = self.views.view(index)
        found = self.source.of(view)
        assert found is not None  # its stem is known
        covers = found.segments.flatten(1).int()
        if (mask := view.mask()) is not None:  # beyond the photo of a distorting lens nothing is known
            covers = covers.where(mask.flatten() > 0, -1)
        return found.embeddings, covers, torch.bincount(covers[covers >= 0], minlength=len(found.embeddings))

    @torch.no_grad()
    def _measured(self, index: int) -> Tensor:
        """[n] variances, in squared units of the world."""
        embeddings, covers, _ = self._cache.get(index, lambda: self._read(index))
        camera = self.views.view(index).camera
        plan, _ = self.views.drawn(index)
        depth = plan.depth()[..., 0]
        points = on_camera_rays(depth, camera.K)
        usable = self.views.alpha(index) > _OPAQUE
        return largest_variances(points.flatten(0, 1), usable.flatten(), covers, len(embeddings))


def on_camera_rays(depth: Tensor, K: Tensor) -> Tensor:
    """[H, W, 3] points in the camera's frame of a depth map [H, W] along z; K [3, 3] in pixels, centres at +0.5."""
    height, width = depth.shape
    x = (torch.arange(width) + 0.5 - K[0, 2]) / K[0, 0]
    y = (torch.arange(height) + 0.5 - K[1, 2]) / K[1, 1]
    return torch.stack((x * depth, y[:, None] * depth, depth), dim=-1)


def largest_variances(points: Tensor, usable: Tensor, covers: Tensor, count: int) -> Tensor:
    """[count] the largest eigenvalue of the covariance of each segment's points; nan where none is usable.

    Args:
        points: [P, 3]; usable: bool [P]; covers: integers [L, P], segments from 0, -1 for none.
    """
    level, pixel = ((covers >= 0) & usable).nonzero(as_tuple=True)
    segment, at = covers[level, pixel].long(), points[pixel].double()
    pixels = torch.bincount(segment, minlength=count).double()
    means = torch.zeros(count, 3, dtype=torch.double).index_add_(0, segment, at) / pixels[:, None]
    apart = at - means[segment]
    outer = (apart[:, :, None] * apart[:, None, :]).flatten(1)
    moments = torch.zeros(count, 9, dtype=torch.double).index_add_(0, segment, outer)
    seen = pixels > 0
    variances = torch.full((count,), torch.nan, dtype=torch.double)
    covariances = moments[seen].view(-1, 3, 3) / pixels[seen, None, None]
    variances[seen] = torch.linalg.eigvalsh(covariances)[:, -1].clamp_min(0)
    return variances

"""The views of a run whose geometry is frozen: whatever its Gaussians carry is blended from plans that are kept."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from gsfields.config import Config
from gsfields.data.dataset import Dataset, View
from gsfields.fit.checkpoint import Scene
from gsfields.fit.showing import photo_camera, render_view
from gsfields.gaussians import Gaussians
from gsfields.layers import DYNAMIC, LayeredRendering, joined
from gsfields.lifting import Lifted
from gsfields.plan_cache import CacheReport, PlanCache
from gsfields.plans import Plan


class FrozenViews:
    """Blends of values [N, C] in the views of a dataset, at the price of a walk over lists that are sorted once.

    N counts the Gaussians of a static scene, or those of all layers of a layered one (static, shell, semi-static,
    dynamic), of which each view shows those that live at its time. Plans stay in `limit_bytes` of memory; those that
    do not fit are made again.
    """

    def __init__(self, scene: Scene, dataset: Dataset, config: Config, *, limit_bytes: int) -> None:
        self.scene, self.dataset, self.config, self.limit_bytes = scene.detach(), dataset, config, limit_bytes
        self._times = dataset.times().tolist()
        self._cache: PlanCache[int] = PlanCache(self._make, limit_bytes=limit_bytes)
        self._rows: dict[int, Tensor] = {}  # of a layered scene: which Gaussians a view shows, int32
        self._alphas: dict[int, Tensor] = {}  # [H, W] float16
        self._moving: dict[int, Tensor] = {}  # of a layered scene: M̂_dy [H, W] float16

    def of(self, scene: Scene) -> FrozenViews:
        """The same views of another scene; nothing is kept."""
        return FrozenViews(scene, self.dataset, self.config, limit_bytes=self.limit_bytes)

    def __len__(self) -> int:
        """Gaussians."""
        return len(self.scene) if isinstance(self.scene, Gaussians) else len(self.scene.layer_ids())

    def gaussians(self) -> Gaussians:
        """The N; those of moving layers where they rest, the dynamic ones in the frame of the camera."""
        if isinstance(self.scene, Gaussians):
            return self.scene
        moving = (self.scene.semistatic.gaussians, self.scene.dynamic.gaussians)
        return reduce(joined, moving, joined(self.scene.static, self.scene.shell))

    def placed(self) -> Tensor:
        """bool [N]: Gaussians with a place in the world: all but those of a dynamic layer in the camera's frame."""
        if isinstance(self.scene, Gaussians) or self.scene.dynamic.frame == "world":
            return torch.ones(len(self), dtype=torch.bool)
        return self.scene.layer_ids() != DYNAMIC

    def view(self, index: int) -> View:
        return self.dataset.views[index]

    def drawn(self, index: int, pixels: Tensor | None = None) -> tuple[Plan, Tensor]:
        """A plan of the M Gaussians that pixels of the view blend, and which of the N they are: int64 [M].

        pixels: [P, 2] (x, y), those that are of interest; all by default.
        """
        plan, drawn = self._cache.drawn(index)
        if pixels is not None:
            plan, some = plan.narrowed(pixels)
            drawn = drawn[some]
        return plan, drawn if index not in self._rows else self._rows[index][drawn].long()

    def blend(self, index: int, values: Tensor, pixels: Tensor | None = None) -> Tensor:
        """values [N, C] as an image [H, W, C] of the view, or at pixels (x, y) [P, 2] as [P, C]; not over alpha."""
        plan, drawn = self.drawn(index)
        return plan.blend(values.index_select(0, drawn), pixels=pixels)

    def lift(self, index: int, image: Tensor, weights: Tensor | None = None) -> Lifted:
        """What Plan.lift() hands back, for all N Gaussians: sums [N, C] and total [N], zero for those not shown."""
        plan, drawn = self.drawn(index)
        sums, total = plan.lift(image, weights)
        whole = sums.new_zeros(len(self), sums.shape[1]).index_copy_(0, drawn, sums)
        return Lifted(whole, total.new_zeros(len(self)).index_copy_(0, drawn, total))

    def alpha(self, index: int) -> Tensor:
        """[H, W] opacity of the view, rounded to float16."""
        if index not in self._alphas:
            self._cache.drawn(index)  # no plan is kept whose view was not looked at as it was made
        return self._alphas[index].float()

    def moving(self, index: int) -> Tensor | None:
        """[H, W] mask of the dynamic layer, rounded to float16; None for a static scene."""
        if isinstance(self.scene, Gaussians):
            return None
        self.alpha(index)
        return self._moving[index].float()

    @torch.no_grad()
    def as_taken(self, index: int, values: Tensor) -> tuple[Tensor, Tensor]:
        """values [N, C] and alpha over the photo as taken: [h, w, C] and [h, w], before the lens's distortion."""
        camera = photo_camera(self.view(index))
        own = self.view(index).camera
        if (camera.width, camera.height) == (own.width, own.height) and torch.equal(camera.K, own.K):
            return self.blend(index, values), self.alpha(index)
        rendering = render_view(self.scene, camera, self.config, self._times[index])
        shown = values[rendering.index] if isinstance(rendering, LayeredRendering) else values
        return rendering.plan.blend(shown), rendering.plan.alpha[..., 0]

    def report(self) -> CacheReport:
        """Of the plans."""
        return self._cache.report()

    # ---- steps ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _make(self, index: int) -> Plan:
        rendering = render_view(self.scene, self.view(index).camera, self.config, self._times[index])
        if isinstance(rendering, LayeredRendering):
            self._rows[index] = rendering.index.int()
            self._moving[index] = rendering.masks[..., DYNAMIC].half()
        self._alphas[index] = rendering.plan.alpha[..., 0].half()
        return rendering.plan

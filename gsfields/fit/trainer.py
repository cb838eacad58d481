"""Fitting one static set of Gaussians."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from gsfields.config import Config
from gsfields.data.dataset import Dataset
from gsfields.fit.checkpoint import Checkpoint
from gsfields.fit.densify import make_strategy
from gsfields.fit.loop import Loop, Stateful
from gsfields.fit.parameters import Parameters
from gsfields.fit.scene import Photographs, initial_gaussians
from gsfields.fit.schedule import Schedule, ViewOrder
from gsfields.gaussians import Gaussians
from gsfields.losses import photometric
from gsfields.rendering import render


class Trainer(Loop):
    """Fits Gaussians to the training views of a dataset."""

    def __init__(
        self, config: Config, dataset: Dataset, run: str | Path, resume: Checkpoint | None = None
    ) -> None:
        super().__init__(config, dataset, run)
        start = resume.gaussians if resume else initial_gaussians(dataset, config, self.generator)
        self.parameters = Parameters(start)
        self.photographs = Photographs(dataset, config.data)
        self.order = ViewOrder(len(dataset.train), self.generator)
        self.schedule = Schedule(config, dataset.scene_extent)
        self.strategy = make_strategy(config.densify, dataset.scene_extent)
        if resume:
            self.restore(resume)

    @property
    def scene(self) -> Gaussians:
        return self.parameters.gaussians.detach()

    def count(self) -> int:
        return len(self.parameters)

    def train_step(self) -> tuple[float, float]:
        config, step = self.config, self.step
        background = self.photographs.background(self.generator)
        camera, target, mask = self.photographs.get(
            self.order.next(), self.schedule.image_scale(step), background
        )

        gaussians = self.parameters.gaussians
        rendering = render(
            gaussians,
            camera,
            background=background,
            sh_degree=self.schedule.sh_degree(step),
            near=config.fit.near,
            antialiased=config.fit.antialiased,
            absgrad=self.strategy.absgrad,
        )
        loss = photometric(rendering.color, target, ssim_weight=config.fit.ssim_weight, mask=mask)
        total = loss + self._regularisers(gaussians)

        self.strategy.watch(rendering.plan)
        total.backward()
        self.strategy.observe(rendering.plan)
        self.parameters.set_rates(self.schedule.rates(step))
        self.parameters.step()
        self.strategy.update(self.parameters, step, self.schedule.refines_after(step), self.generator)
        self.step += 1

        error = (rendering.color.detach() - target).square()
        if mask is not None:
            error = error[mask > 0]
        return loss.item(), -10 * math.log10(max(error.mean().item(), 1e-10))

    def parts(self) -> dict[str, Stateful]:
        return {"adam": self.parameters, "order": self.order, "strategy": self.strategy}

    def _regularisers(self, gaussians: Gaussians) -> Tensor | float:
        """Penalties on opacity and scale, which 3DGS-MCMC needs to free Gaussians for relocation."""
        d = self.config.densify
        total: Tensor | float = 0.0
        if d.opacity_weight > 0:
            total = total + d.opacity_weight * gaussians.opacities.mean()
        if d.scale_weight > 0:
            total = total + d.scale_weight * gaussians.scales.mean()
        return total

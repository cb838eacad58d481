"""What changes over a run, as functions of the step; and the order in which it visits the images.

Everything is a share of the actual run length, so that a run of 1,000 steps ends as annealed as one of
30,000.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsfields.config import Config


class Schedule:
    """Learning rates, SH degree, image size and densification rounds at each step (counted from 0)."""

    def __init__(self, config: Config, extent: float) -> None:
        self.config = config
        self.extent = extent
        self.steps = config.fit.steps

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate of each parameter: exponential decay, as 3DGS does for the centres."""
        o = self.config.optim
        progress = step / max(self.steps - 1, 1)
        rest = o.decay**progress
        return {
            "means": o.means_lr * self.extent * o.means_decay**progress,
            "quats": o.quats_lr * rest,
            "log_scales": o.scales_lr * rest,
            "opacity_logits": o.opacities_lr * rest,
            "sh0": o.sh0_lr * rest,
            "shN": o.shN_lr * rest,
        }

    def sh_degree(self, step: int) -> int:
        """0 at the start, one more after every `sh_interval` of the run."""
        interval = self.config.fit.sh_interval * self.steps
        highest = self.config.init.sh_degree
        return highest if interval <= 0 else min(highest, int(step / interval))

    def image_scale(self, step: int) -> float:
        """Size of the images relative to the full one: small ones first cost less and settle the large
        shapes.
        """
        fit = self.config.fit
        return fit.coarse_scale if step < fit.coarse * self.steps else 1.0

    def refines_after(self, step: int) -> bool:
        """Whether a densification round follows this step."""
        d = self.config.densify
        done = step + 1
        return (
            done % d.refine_every == 0 and d.refine_start * self.steps <= done <= d.refine_stop * self.steps
        )


class ViewOrder:
    """Indices of the training views, a fresh permutation per epoch, from a generator shared with the rest of
    the run.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator
        self.queue: list[int] = []

    def next(self) -> int:
        if not self.queue:
            self.queue = torch.randperm(self.count, generator=self.generator).tolist()
        return self.queue.pop()

    def state_dict(self) -> dict[str, Tensor]:
        return {"queue": torch.tensor(self.queue, dtype=torch.int64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.queue = state["queue"].tolist()

"""How noisy the gradient of a loss is while it is minimised (figure 3.7 of the thesis).

At some steps of a fit the field is held still. For each of VIEWS views BATCHES batches of pixels are drawn as training
draws them, and g_b [N, D] is the gradient of the loss of batch b with respect to all fast embeddings. Then

    variance = Σ_b ‖g_b - ḡ‖² / (BATCHES - 1)      (the trace of the covariance)
    noise    = variance / ‖ḡ‖²

with ḡ the mean over the batches; both are means over the views. The variance depends on the scale of the loss, the
noise does not: it says how many batches it takes until their mean points more in its direction than elsewhere.
Losses are compared at one number of pixels per batch, each along its own fit.
"""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from benchmarks.trials import Row
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.instances import Batch, InstanceTrainer, spread_views
from gsfields.fit.labels import Labels
from gsfields.instances_config import FieldConfig

VIEWS, BATCHES = 4, 20
SHARES = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the steps, after which it is measured


class ProbedTrainer(InstanceTrainer):
    """One that can be asked for the gradient of a batch without taking a step."""

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(batch)

    def loss_of(self, batch: Batch, blended: Tensor) -> Tensor:
        """Where its pixels are blended already."""
        return self._loss_of(batch, blended)

    def gradient(self, index: int) -> Tensor | None:
        """Of the loss on newly drawn pixels of a view with respect to the fast embeddings, [N D]; None where there are
        no pixels.
        """
        batch = self.batch(index)
        if batch is None:
            return None
        learnt = [p for p in self.field.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(self.loss(batch), learnt)
        return torch.cat([(g.to_dense() if g.is_sparse else g).flatten() for g in gradients])

    def noise(self, index: int) -> tuple[float, float] | None:
        """(variance, noise) on a view; what follows draws the same pixels as if nobody had asked."""
        state = self.generator.get_state()
        drawn = [self.gradient(index) for _ in range(BATCHES)]
        self.generator.set_state(state)
        gradients = [g for g in drawn if g is not None]
        if len(gradients) < BATCHES:
            return None
        mean = torch.stack(gradients).mean(dim=0)
        total = sum(float((g - mean).square().sum()) for g in gradients) / (BATCHES - 1)
        power = float(mean.square().sum())
        return total, total / power if power > 0 else float("nan")


def gradient_variance(views: FrozenViews, labels: Labels, config: FieldConfig) -> Row:
    """Variance and noise of the gradient at SHARES of the fit's steps."""
    trainer = ProbedTrainer(views, labels, config)
    chosen = list(spread_views(labels.indices, VIEWS))
    row: Row = {"steps": [], "variance": [], "noise": []}
    for share in SHARES:
        while trainer.step < round(share * trainer.steps):
            trainer.train_step()
        measured = [both for index in chosen if (both := trainer.noise(index)) is not None]
        if measured and trainer.step not in row["steps"]:
            row["steps"].append(trainer.step)
            row["variance"].append(fmean(v for v, _ in measured))
            row["noise"].append(fmean(n for _, n in measured))
    return row

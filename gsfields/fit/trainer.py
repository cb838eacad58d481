"""The training loop."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from gsfields.camera import Camera
from gsfields.config import Config
from gsfields.data.dataset import Dataset, View
from gsfields.evaluate.image import ImageScores, score
from gsfields.fit.checkpoint import Checkpoint, MetricsLog
from gsfields.fit.densify import make_strategy
from gsfields.fit.parameters import Parameters
from gsfields.fit.scene import COLORS, Photographs, initial_gaussians
from gsfields.fit.schedule import Schedule, ViewOrder
from gsfields.gaussians import Gaussians
from gsfields.losses import photometric
from gsfields.rendering import Rendering, render


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor], /) -> None: ...


@dataclass
class Outcome:
    """How a call of `Trainer.fit` ended."""

    step: int
    seconds: float  # since the start of the run, evaluation included, over all its parts
    count: int  # Gaussians
    ended: str  # "done", "time" or "interrupted"
    scores: ImageScores | None  # on the held-out views; None if interrupted or there are none
    checkpoint: Path


class Trainer:
    """Fits Gaussians to the training views of a dataset.

    A run is a function of its data and configuration: all randomness comes from one generator, which is part
    of a checkpoint as is everything else that a step depends on, so that a resumed run continues bit for bit.
    """

    def __init__(
        self, config: Config, dataset: Dataset, run: str | Path, resume: Checkpoint | None = None
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.run = Path(run)
        self.generator = torch.Generator().manual_seed(config.fit.seed)
        start = resume.gaussians if resume else initial_gaussians(dataset, config, self.generator)
        self.parameters = Parameters(start)
        self.photographs = Photographs(dataset, config.data)
        self.order = ViewOrder(len(dataset.train), self.generator)
        self.schedule = Schedule(config, dataset.scene_extent)
        self.strategy = make_strategy(config.densify, dataset.scene_extent)
        self.step = 0  # steps done
        self.seconds = 0.0  # spent on them, in earlier parts of the run too
        self.metrics: dict[str, Any] = {}
        if resume:
            self._restore(resume)

    @property
    def gaussians(self) -> Gaussians:
        return self.parameters.gaussians.detach()

    def train_step(self) -> tuple[float, float]:
        """One optimisation step on one image; returns its loss and PSNR (dB)."""
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

    def fit(self, *, progress: bool = True) -> Outcome:
        """Train to the configured end, the time limit or an interrupt; evaluate; leave a checkpoint."""
        output, total = self.config.output, self.config.fit.steps
        self.run.mkdir(parents=True, exist_ok=True)
        log = MetricsLog(self.run, self.step)
        board = _tensorboard(self.run) if output.tensorboard else None
        limit = 60 * self.config.fit.max_minutes if self.config.fit.max_minutes is not None else math.inf
        clock = _Clock(self.seconds)
        ended = "done"
        # a terminal is redrawn often; a log file gets a line now and then
        bar = tqdm(
            total=total,
            initial=self.step,
            disable=not progress,
            mininterval=0.2 if sys.stderr.isatty() else 10,
        )
        with _interrupts() as interrupted, bar:
            while self.step < total:
                loss, psnr = self.train_step()
                self.seconds = clock()
                bar.update()
                bar.set_postfix(
                    loss=f"{loss:.4f}", psnr=f"{psnr:.2f}", count=str(len(self.parameters)), refresh=False
                )
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss is {loss} at step {self.step}: lower the learning rates"
                    )
                if self.step % output.log_every == 0:
                    values = {
                        "loss": loss,
                        "psnr": psnr,
                        "count": len(self.parameters),
                        "seconds": self.seconds,
                    }
                    log.write("train", self.step, **values)
                    if board:
                        for name, value in values.items():
                            board.add_scalar(f"train/{name}", value, self.step)
                if interrupted.is_set() or self.seconds >= limit:
                    ended = "interrupted" if interrupted.is_set() else "time"
                    break
                if _due(self.step, output.eval_every) and self.step < total:
                    self._evaluate_and_log(log, board, output.eval_views)
                    self.seconds = clock()
                if _due(self.step, output.checkpoint_every) and self.step < total:
                    self.save()
            # Still under the handlers: an interrupt now lets the run end as it would have.
            scores = None
            if ended != "interrupted":
                scores = self._evaluate_and_log(log, board, None)
                self.seconds = clock()
            checkpoint = self.save()
        if board:
            board.close()
        return Outcome(self.step, self.seconds, len(self.parameters), ended, scores, checkpoint)

    def evaluate(self, limit: int | None = None) -> ImageScores | None:
        """Scores on (the first `limit` of) the held-out views; None if there are none."""
        views = self.dataset.test_views()[:limit]
        return evaluate_views(self.gaussians, views, self.config) if views else None

    def save(self) -> Path:
        """Write a checkpoint of this moment; returns its folder."""
        state = {"generator": self.generator.get_state()}
        for part, owner in self._parts().items():
            state |= {f"{part}.{name}": value for name, value in owner.state_dict().items()}
        checkpoint = Checkpoint(self.gaussians, self.config, self.step, state, self.seconds, self.metrics)
        return checkpoint.save(self.run, keep=self.config.output.keep_checkpoints)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.step, self.seconds, self.metrics = checkpoint.step, checkpoint.seconds, checkpoint.metrics
        for part, owner in self._parts().items():
            prefix = part + "."
            own = {k.removeprefix(prefix): v for k, v in checkpoint.state.items() if k.startswith(prefix)}
            owner.load_state_dict(own)
        self.generator.set_state(checkpoint.state["generator"])

    def _parts(self) -> dict[str, _Stateful]:
        """Whatever carries state from step to step, beside the Gaussians, the generator and the step."""
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

    def _evaluate_and_log(self, log: MetricsLog, board: Any, limit: int | None) -> ImageScores | None:
        scores = self.evaluate(limit)
        if scores:
            self.metrics = {"psnr": scores.psnr, "ssim": scores.ssim, "views": len(scores.names)}
            log.write("eval", self.step, **self.metrics, count=len(self.parameters), seconds=self.seconds)
            if board:
                board.add_scalar("eval/psnr", scores.psnr, self.step)
                board.add_scalar("eval/ssim", scores.ssim, self.step)
        return scores


@torch.no_grad()
def render_view(gaussians: Gaussians, camera: Camera, config: Config) -> Rendering:
    """Render a camera as the run of `config` shows its results."""
    return render(
        gaussians,
        camera,
        background=evaluation_background(config),
        near=config.fit.near,
        antialiased=config.fit.antialiased,
    )


def evaluate_views(gaussians: Gaussians, views: list[View], config: Config) -> ImageScores:
    """Render `views` as the run of `config` does and score them."""
    return score(
        (view.name, render_view(gaussians, view.camera, config).color, view.image(), view.mask())
        for view in views
    )


def evaluation_background(config: Config) -> Tensor:
    """The colour behind evaluated images, [3]: that of the run, or white where it draws one per step."""
    return torch.tensor(COLORS.get(config.data.background, COLORS["white"]))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _Clock:
    """Seconds since the start of the run, those of its earlier parts included."""

    def __init__(self, before: float) -> None:
        self.start = time.monotonic() - before

    def __call__(self) -> float:
        return time.monotonic() - self.start


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one acts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may install handlers
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in signals:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("tensorboard is asked for but not installed: pip install tensorboard") from None
    return SummaryWriter(str(run / "tensorboard"))

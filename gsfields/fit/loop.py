"""The loop that every fit runs in: steps, evaluations, checkpoints, interrupts, and where it ended."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from gsfields.config import Config
from gsfields.data.dataset import Dataset
from gsfields.evaluate.image import ImageScores
from gsfields.fit.checkpoint import Checkpoint, MetricsLog, Scene
from gsfields.fit.showing import evaluate_views


class Stateful(Protocol):
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
    report: list[str] = field(default_factory=list)  # what the stages did, one sentence each


class Loop(ABC):
    """Runs `train_step` to the end of the schedule, and can be resumed bit for bit from any checkpoint.

    A run is a function of its data and configuration: all randomness comes from one generator, which is part
    of a checkpoint as is everything else that a step depends on (`parts`).
    """

    def __init__(self, config: Config, dataset: Dataset, run: str | Path) -> None:
        self.config = config
        self.dataset = dataset
        self.run = Path(run)
        self.generator = torch.Generator().manual_seed(config.fit.seed)
        self.step = 0  # steps done
        self.seconds = 0.0  # spent on them, in earlier parts of the run too
        self.metrics: dict[str, Any] = {}
        self.report: list[str] = []

    @property
    @abstractmethod
    def scene(self) -> Scene:
        """What is fitted, detached."""

    @abstractmethod
    def train_step(self) -> tuple[float, float]:
        """One optimisation step on one image; returns its loss and PSNR (dB)."""

    def evaluate(self, limit: int | None = None) -> ImageScores | None:
        """Scores on (the first `limit` of) the held-out views; None if there are none."""
        views = self.dataset.test[:limit]
        return evaluate_views(self.scene, self.dataset, views, self.config) if views else None

    @abstractmethod
    def parts(self) -> dict[str, Stateful]:
        """Whatever carries state from step to step, beside the scene, the generator and the step."""

    @abstractmethod
    def count(self) -> int:
        """Gaussians now."""

    def finish(self, log: MetricsLog) -> list[str]:
        """After the last checkpoint of a run that was not interrupted: write what else it leaves behind, and say so."""
        return []

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
                    loss=f"{loss:.4f}", psnr=f"{psnr:.2f}", count=str(self.count()), refresh=False
                )
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss is {loss} at step {self.step}: lower the learning rates"
                    )
                if self.step % output.log_every == 0:
                    values = {
                        "loss": loss,
                        "psnr": psnr,
                        "count": self.count(),
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
            if ended != "interrupted":
                self.report += self.finish(log)
        if board:
            board.close()
        return Outcome(self.step, self.seconds, self.count(), ended, scores, checkpoint, self.report)

    def save(self) -> Path:
        """Write a checkpoint of this moment; returns its folder."""
        state = {"generator": self.generator.get_state()}
        for part, owner in self.parts().items():
            state |= {f"{part}.{name}": value for name, value in owner.state_dict().items()}
        checkpoint = Checkpoint(self.scene, self.config, self.step, state, self.seconds, self.metrics)
        return checkpoint.save(self.run, keep=self.config.output.keep_checkpoints)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where `checkpoint` was written."""
        self.step, self.seconds, self.metrics = checkpoint.step, checkpoint.seconds, checkpoint.metrics
        for part, owner in self.parts().items():
            prefix = part + "."
            own = {k.removeprefix(prefix): v for k, v in checkpoint.state.items() if k.startswith(prefix)}
            owner.load_state_dict(own)
        self.generator.set_state(checkpoint.state["generator"])

    def _evaluate_and_log(self, log: MetricsLog, board: Any, limit: int | None) -> ImageScores | None:
        scores = self.evaluate(limit)
        if scores:
            self.metrics = {"psnr": scores.psnr, "ssim": scores.ssim, "views": len(scores.names)}
            log.write("eval", self.step, **self.metrics, count=self.count(), seconds=self.seconds)
            if board:
                board.add_scalar("eval/psnr", scores.psnr, self.step)
                board.add_scalar("eval/ssim", scores.ssim, self.step)
        return scores


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

"""Speed of the instance fit, in a process of its own: `python -m benchmarks.instances_speed TASK`, TASK being JSON as
`Task` has it; the answer is rows by name.

Everything that is compared runs in turn in this process, on rooms whose geometry is frozen, with all plans cached and,
for the neural field, all surfaces: what is left is what a step costs in the long run. Wall-clock milliseconds.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.tensorf import train as tensorf
from benchmarks.baselines.tensorf.rays import LabelledPixels
from benchmarks.baselines.tensorf.surface import SurfaceCache
from benchmarks.instances_trial import Overrides, Room, Trial, prepare
from benchmarks.instances_variance import ProbedTrainer
from benchmarks.measure import in_subprocess
from benchmarks.trials import Row
from gsfields import config as configuration
from gsfields.bench.clock import Effort, Timing, interleaved
from gsfields.bench.clock import Task as Timed
from gsfields.fit.checkpoint import Checkpoint
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.instance_runs import fit_instances
from gsfields.fit.instances import Batch
from gsfields.fit.labels import Labels, ViewLabels
from gsfields.instances_config import FieldConfig, InstancesConfig
from gsfields.losses import contrastive
from gsfields.plans import Plan

IDENTIFIERS = (64, 128, 256, 1024)
OURS = "slow-fast, {} objects"
SHATTERED = "slow-fast, {} objects in {} times as many segments"
PIECES = 20  # of a segment, where the number of Gaussians is to stay what it is
ASSIGNMENT = "linear assignment, {} identifiers"
NEURAL = {  # title -> (surfaces are cached, only the half of the features that the loss uses is rendered)
    "neural field, as released": (False, False),
    "neural field, halves": (False, True),
    "neural field, cached": (True, False),
    "neural field, cached halves": (True, True),
}
BOUND = 0.4  # of the plans' memory: a limit that must hold, too


@dataclass(frozen=True)
class Task:
    """What is timed."""

    rooms: dict[str, dict[str, Any]]  # objects -> Trial
    neural_seconds: float  # of processor time, for the geometry of the neural field
    seconds: float  # for the steps that are compared
    threads: int


class Contest:
    """One room with its labels and cached plans, and the trainers that learn on it."""

    def __init__(self, trial: Trial) -> None:
        prepare(trial)
        self.trial, self.room = trial, Room.of(trial, trial.prepared)
        self.labels: Labels = self.room.labels()
        self.config: FieldConfig = trial.config.field
        self.views: FrozenViews = self.room.views(self.config.plan_mib << 20)
        for index in self.labels.indices:
            self.views.alpha(index)
            self.labels.of(index)

    def trainer(self, **fields: Any) -> ProbedTrainer:
        return ProbedTrainer(self.views, self.labels, replace(self.config, **fields))

    def shattered(self) -> ProbedTrainer:
        """On the same Gaussians and pixels, in PIECES times as many segments."""
        return ProbedTrainer(self.views, Shattered(self.labels), replace(self.config, min_segment=0))

    def plans(self) -> Row:
        """What the cached plans take; and of a cache with less memory than that, the most that it ever held."""
        report = self.views.report()
        limit = int(BOUND * report.memory_bytes)
        small = self.room.views(limit)
        most = 0
        for index in [*self.labels.indices, *self.labels.indices[:8]]:
            small.blend(index, torch.zeros(len(small), 1))
            most = max(most, small.report().memory_bytes)
        bounded = {"small_limit_bytes": limit, "small_most_bytes": most}
        return dataclasses.asdict(report) | {"views": len(self.labels.indices)} | bounded


class Shattered(Labels):
    """Other labels, of which each segment is PIECES: every so many pixels, one after another, are of one."""

    def __init__(self, whole: Labels) -> None:
        super().__init__(whole.source, whole.dataset, whole.indices)
        self._pieces = {index: self._cut(whole.of(index)) for index in whole.indices}

    def of(self, index: int) -> ViewLabels:
        return self._pieces[index]

    @staticmethod
    def _cut(labels: ViewLabels) -> ViewLabels:
        piece = torch.arange(len(labels.ids)) % PIECES
        ids = torch.where(labels.ids > 0, (labels.ids - 1) * PIECES + piece + 1, 0)
        return replace(labels, ids=ids, count=labels.count * PIECES)


def measure(task: Task) -> dict[str, Row]:
    torch.set_num_threads(task.threads)
    contests = {objects: Contest(Trial(**trial)) for objects, trial in task.rooms.items()}
    first = next(iter(contests.values()))
    rows: dict[str, Row] = {f"plans/{objects}": contest.plans() for objects, contest in contests.items()}
    effort = Effort(task.seconds)
    steps: dict[str, Callable[[], object]] = {}
    steps |= {OURS.format(n): contest.trainer().train_step for n, contest in contests.items()}
    steps[SHATTERED.format(next(iter(contests)), PIECES)] = first.shattered().train_step
    for count in IDENTIFIERS:
        assigning = first.trainer(loss="linear-assignment", identifiers=count)
        steps[ASSIGNMENT.format(count)] = assigning.train_step
    # The neural field apart: it is so slow that the others would stand idle, and it has its own caches
    rows |= _rates("steps", steps, effort, against=OURS.format(next(iter(contests))))
    ours = OURS.format(next(iter(contests)))
    neural = {ours: first.trainer().train_step, **neural_steps(first, task.neural_seconds)}
    rows |= _rates("neural", neural, effort, against=ours)
    rows |= {f"parts/{name}": {"ms": t.median} for name, t in interleaved(parts(first), effort).items()}
    return rows | whole_fits(first)


def _rates(
    group: str, steps: dict[str, Callable[[], object]], effort: Effort, against: str
) -> dict[str, Row]:
    """A row for each of `steps`, timed in turn: milliseconds, and how many times as long as `against` it takes."""

    def timed(step: Callable[[], object]) -> Timed:
        return Timed(lambda _: step())

    times: dict[str, Timing] = interleaved({name: timed(step) for name, step in steps.items()}, effort)
    return {
        f"{group}/{name}": {"ms": t.median, "ratio": t.ratio(times[against])} for name, t in times.items()
    }


# ---------------------------------------------------------------------------------------------- the neural field


def neural_steps(contest: Contest, seconds: float) -> dict[str, Callable[[], object]]:
    """A step of the neural field on as many pixels, with the same loss, in each of the ways NEURAL."""
    config, labels = contest.config, contest.labels
    recipe = replace(tensorf.RECIPES["small"], instance_rays=config.pixels)
    trainer = tensorf.Trainer(contest.room.dataset, recipe)
    trainer.train_geometry(seconds)
    trainer.freeze(cache=True)
    trainer.new_head(config.dim)
    cache = trainer.cache
    assert isinstance(cache, SurfaceCache)
    size = [(v.camera.height, v.camera.width) for v in contest.room.dataset.views]
    pixels = LabelledPixels(
        {index: labels.of(index).ids.view(size[index]) for index in labels.indices},
        torch.Generator().manual_seed(0),
    )
    for index in pixels.frames:
        cache.pixels(index, torch.tensor([0]))

    def step(cached: bool, halves: bool) -> Callable[[], object]:
        def run() -> object:
            trainer.cache = cache if cached else None
            loss = _half_loss(config) if halves else _whole_loss(config)
            return trainer.step_instances(*pixels.draw(config.pixels), loss, halves=halves)

        return run

    return {title: step(*how) for title, how in NEURAL.items()}


def _half_loss(config: FieldConfig) -> tensorf.Loss:
    """Ours, of fast features of the first half of the pixels and slow ones of the second."""

    def loss(fast: Tensor, slow: Tensor, labels: Tensor) -> Tensor:
        return contrastive.slow_fast_and_concentration(
            fast, slow, labels[: len(fast)], labels[len(fast) :], weight=config.concentration,
            form=config.form, kernel=config.kernel, temperature=config.temperature,
        )  # fmt: skip

    return loss


def _whole_loss(config: FieldConfig) -> tensorf.Loss:
    """The same where both features of all pixels are rendered."""
    of_halves = _half_loss(config)

    def loss(fast: Tensor, slow: Tensor, labels: Tensor) -> Tensor:
        half = len(labels) // 2
        return of_halves(fast[:half], slow[half:], labels)

    return loss


# ------------------------------------------------------------------------------------------------ what a step costs


def parts(contest: Contest) -> dict[str, Timed]:
    """The stages of one step of ours, and the whole."""
    trainer = contest.trainer()
    indices = trainer.labels.indices

    def batch(round_index: int) -> Batch:
        while (found := trainer.batch(indices[round_index % len(indices)])) is None:
            round_index += 1
        return found

    def values(round_index: int) -> tuple[Plan, Tensor, Batch]:
        of = batch(round_index)
        plan, rows = trainer.views.drawn(of.view)
        return plan, trainer.field.both(rows).detach().requires_grad_(), of

    def blended(given: tuple[Plan, Tensor, Batch]) -> Tensor:
        plan, both, of = given
        return plan.blend(both, pixels=of.pixels)

    def graph(round_index: int) -> tuple[Tensor, Tensor]:
        image = blended(values(round_index))
        return image, torch.randn_like(image)

    def leaf(round_index: int) -> tuple[Batch, Tensor]:
        given = values(round_index)
        return given[2], blended(given).detach().requires_grad_()

    def loss(given: tuple[Batch, Tensor]) -> None:
        trainer.loss_of(*given).backward()

    def rows_of(round_index: int) -> Tensor:
        trainer.field.follow()
        return trainer.views.drawn(batch(round_index).view)[1]

    def with_gradients(round_index: int) -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.loss(batch(round_index)).backward()

    return {
        "the whole step": Timed(lambda _: trainer.train_step()),
        "sampling": Timed(batch),
        "plan": Timed(lambda of: trainer.views.drawn(of.view), batch),
        "embeddings, fast and slow": Timed(trainer.field.both, rows_of),
        "blend": Timed(blended, values),
        "loss, both ways": Timed(loss, leaf),
        "gradient of the blend": Timed(lambda g: g[0].backward(g[1]), graph),
        "Adam": Timed(lambda _: trainer.optimizer.step(), with_gradients),
    }


# ----------------------------------------------------------------------------------------------------- whole fits


def whole_fits(contest: Contest) -> dict[str, Row]:
    """Seconds of `gsfields fit-instances` on the fitted geometry, and on what is made of it before it is frozen."""
    trial, rows = contest.trial, {}
    frozen: Overrides = [("prune_weight", "0"), ("split_rounds", "0")]
    for title, run, more in (
        ("on the fitted geometry", trial.geometry, []),
        ("on prepared geometry", trial.prepared, frozen),
    ):
        config = InstancesConfig()
        configuration.apply(config, [*trial.overrides, *more])
        with tempfile.TemporaryDirectory() as temporary:
            checkpoint = Checkpoint.load(run)
            checkpoint.config.data.path = str(Path(trial.scene).resolve())
            checkpoint.save(temporary)
            start = time.monotonic()
            fit_instances(temporary, config=config, progress=False, say=lambda line: None)
            rows[f"whole/{title}"] = {"seconds": time.monotonic() - start}
    return rows


def in_own_process(task: Task) -> dict[str, Row]:
    """What `measure` answers. Raises RuntimeError with the last line of the complaint where it fails."""
    return in_subprocess("benchmarks.instances_speed", dataclasses.asdict(task), timeout=3 * 3600)


if __name__ == "__main__":
    from gsfields.files import to_json

    print(to_json(measure(Task(**json.loads(sys.argv[1])))))

"""One trial of the instance benchmark in a process of its own: `python -m benchmarks.instances_trial TRIAL`, which is
JSON as `Trial` has it; the answer is {part: row} as JSON.

Geometry is fitted once for a room and prepared once for a configuration of that, a field is fitted once for a
configuration of it on that; all are kept, and trials that ask for the same share them, also those of other studies.
Seconds are processor time of one thread, files included.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import one_hot

from benchmarks.instances_tracking import rendered_depths, track, true_depths
from benchmarks.instances_variance import gradient_variance
from benchmarks.measure import PeakMemory, in_subprocess, threads
from benchmarks.trials import Row, kept
from gsfields import config as configuration
from gsfields.data.dataset import Dataset
from gsfields.data.segments import SegmentSource, open_segments, open_truth
from gsfields.evaluate.panoptic import SIZE, PanopticScores, evaluate_maps, evaluate_run_folder
from gsfields.files import to_json
from gsfields.fit import instance_runs, runs
from gsfields.fit.checkpoint import Checkpoint
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.instances import ClassTrainer, InstanceTrainer
from gsfields.fit.labels import Labels
from gsfields.fit.recognition import FittedField
from gsfields.fit.scene import open_dataset
from gsfields.fit.showing import evaluate_views
from gsfields.fit.straddlers import prepare_geometry
from gsfields.instances_config import FieldConfig, GeometryConfig, InstancesConfig

FITTED = "fitted.json"  # in a folder of what is kept: what it was made with, so that it is used again only for that
Overrides = list[tuple[str, str]]


@dataclass(frozen=True)
class Trial:
    """A room and a configuration of the fit of instances."""

    kind: str  # of TRIALS
    scene: str
    run: str  # folder of all that is kept of the room
    fit: Overrides  # of the default recipe, for the geometry
    overrides: Overrides = field(default_factory=list)  # of InstancesConfig
    clusterings: dict[str, Overrides] = field(
        default_factory=lambda: {"": []}
    )  # part -> of its section objects
    threads: int = 1

    @property
    def place(self) -> tuple[str, str, Overrides, Overrides]:
        return self.scene, self.run, self.fit, self.overrides

    @cached_property
    def config(self) -> InstancesConfig:
        config = InstancesConfig()
        configuration.apply(config, self.overrides)
        return config

    @property
    def geometry(self) -> Path:
        """The run of the geometry as it was fitted."""
        return Path(self.run) / "geometry"

    @property
    def prepared(self) -> Path:
        """The run of that geometry as it is frozen."""
        return Path(self.run) / f"geometry-{_digest(self.config.geometry)}"

    @property
    def fitted(self) -> Path:
        """The folder of the field as it is fitted on that."""
        return self.prepared / f"field-{_digest(self.config.field)}"


def _digest(section: GeometryConfig | FieldConfig) -> str:
    return hashlib.sha256(to_json(dataclasses.asdict(section)).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Room:
    """What a trial works on."""

    checkpoint: Checkpoint  # of the frozen geometry
    dataset: Dataset
    segments: SegmentSource
    truth: SegmentSource

    @classmethod
    def of(cls, trial: Trial, run: Path) -> Room:
        checkpoint = Checkpoint.load(run)
        checkpoint.config.data.path = str(Path(trial.scene).resolve())
        segments, truth = open_segments(trial.scene), open_truth(trial.scene)
        return cls(checkpoint, open_dataset(checkpoint.config.data), segments, truth)

    @property
    def test(self) -> list[str]:
        return [self.dataset.views[i].stem for i in self.dataset.test]

    def labels(self) -> Labels:
        return Labels(self.segments, self.dataset, self.dataset.train)

    def views(self, limit_bytes: int) -> FrozenViews:
        return FrozenViews(
            self.checkpoint.scene, self.dataset, self.checkpoint.config, limit_bytes=limit_bytes
        )


class Stages:
    """What the stages of a trial take: processor seconds and the peak of memory, MiB, of each."""

    def __init__(self, seconds: Row | None = None, peak_mib: Row | None = None) -> None:
        """Goes on from those of stages that are over."""
        self.seconds: dict[str, float] = dict(seconds or {})
        self.peak_mib: dict[str, float] = dict(peak_mib or {})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        memory, start = PeakMemory(), time.process_time()
        yield
        self.seconds[name] = time.process_time() - start
        self.peak_mib[name] = memory.peak()

    def row(self) -> Row:
        return {"seconds": dict(self.seconds), "peak_mib": dict(self.peak_mib)}


# ------------------------------------------------------------------------------------------------------- geometry


def geometry(trial: Trial) -> Row:
    """Fit the room's geometry, unless it is there."""
    config = configuration.load("default")
    configuration.apply(config, trial.fit)
    config.output.checkpoint_every, config.output.keep_checkpoints = 0, 1
    identity = configuration.to_dict(config) | {"room": Path(trial.scene).name}
    config.data.path = str(Path(trial.scene).resolve())

    def fitted() -> Row:
        stages = Stages()
        with stages.stage("geometry"):
            runs.start(config, trial.geometry, overwrite=True, progress=False)
        return stages.row() | _shown(Room.of(trial, trial.geometry))

    return kept(trial.geometry / FITTED, identity, fitted)


def prepare(trial: Trial) -> Row:
    """Prune and split that geometry, unless this was done."""
    fit = geometry(trial)
    identity = {"geometry": dataclasses.asdict(trial.config.geometry), "fit": _marker(trial.geometry)}

    def prepared() -> Row:
        room, stages = Room.of(trial, trial.geometry), Stages()
        said: list[str] = []
        with stages.stage("prepare"):
            gaussians = prepare_geometry(
                room.checkpoint, room.dataset, room.labels(), trial.config.geometry, report=said.append
            )
        Checkpoint(gaussians, room.checkpoint.config, room.checkpoint.step).save(trial.prepared, keep=1)
        before = {"gaussians_before": fit["gaussians"], "psnr_before": fit["psnr"], "said": said}
        return stages.row() | _shown(Room.of(trial, trial.prepared)) | before

    return kept(trial.prepared / FITTED, identity, prepared)


def _marker(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / FITTED).read_text())["identity"])


def _shown(room: Room) -> Row:
    scene = room.checkpoint.gaussians
    scores = evaluate_views(scene, room.dataset, room.dataset.test, room.checkpoint.config)
    return {"gaussians": len(scene), "psnr": scores.psnr}


# ------------------------------------------------------------------------------------------------------ instances


def fit_field(trial: Trial) -> Row:
    """Fit embeddings and classes on the frozen geometry, unless they are there."""
    shaped, config = prepare(trial), trial.config.field
    identity = {"field": dataclasses.asdict(config), "geometry": _marker(trial.prepared)}

    def fitted() -> Row:
        room, stages = Room.of(trial, trial.prepared), Stages()
        labels, views = room.labels(), room.views(config.plan_mib << 20)
        with stages.stage("field"):
            trainer = InstanceTrainer(views, labels, config)
            trainer.run(progress=False)
        with stages.stage("classes"):
            classifier = ClassTrainer(views, labels, config)
            classifier.run(progress=False)
        trial.fitted.mkdir(parents=True, exist_ok=True)
        FittedField(
            trainer.field.fast().detach(),
            classifier.probabilities(),
            labels.classes,
            room.segments.classes.things,
            str(Path(trial.scene).resolve()),
            identifiers=config.loss == "linear-assignment",
        ).save(trial.fitted / "field.safetensors")
        return stages.row() | {
            "gaussians": len(views),
            "steps": trainer.steps,
            "iterations_per_second": trainer.steps / stages.seconds["field"],
            "plans": dataclasses.asdict(views.report()),
            "prepared": shaped,
        }

    return kept(trial.fitted / FITTED, identity, fitted)


def train(trial: Trial) -> dict[str, Row]:
    """Fit instances on the frozen geometry, and score the objects of each clustering of the embeddings."""
    fit, config = fit_field(trial), trial.config
    field = FittedField.load(trial.fitted / "field.safetensors")
    room = Room.of(trial, trial.prepared)
    answer = {}
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary)
        lay_out(run, room.checkpoint, field)
        for part, overrides in trial.clusterings.items():
            # make_objects writes there what it was told, and would go on from it
            (run / instance_runs.FOLDER / "config.yaml").write_text(configuration.dump(config))
            said: list[str] = []
            stages = Stages(fit["seconds"], fit["peak_mib"])
            with stages.stage("objects"):
                table = instance_runs.make_objects(run, overrides, say=said.append)
            answer[part] = scored(run, room) | fit | stages.row() | {"objects": len(table), "said": said}
    return answer


def lay_out(run: Path, checkpoint: Checkpoint, field: FittedField) -> None:
    """What a fit of instances leaves in RUN/instances for `gsfields instances RUN` to work on, but its config."""
    root = run / instance_runs.FOLDER
    checkpoint.save(root, keep=1)
    field.save(root / "field.safetensors")


def scored(run: Path, room: Room) -> Row:
    """A run's objects on the held-out views: as released at 512 x 512 pixels, and on the photos' own grid."""

    def on_grid(size: int | None) -> Row:
        return compact(partial(evaluate_run_folder, run, room.truth, room.test, size=size))

    return on_grid(SIZE) | {"own_grid_pq": on_grid(None)["pq"]}


def compact(evaluate: Callable[..., PanopticScores]) -> Row:
    """What the tables need, in percent.

    A prediction with hardly a thing (less than 0.5 % of the pixels) has the things left out by the released rule, and
    the stuff alone would make its PQ: it is scored with rare classes, too.
    """
    scores = evaluate()
    if math.isnan(scores.pq_things):
        scores = evaluate(robust=0.0)
    names = ("pq", "sq", "rq", "pq_things", "pq_stuff", "per_frame_pq", "miou")
    return {name: 100 * getattr(scores, name) for name in names}


def tracking(trial: Trial) -> dict[str, Row]:
    """The 2D segments, and their identity by tracking with the depth of the geometry that the fields learn on."""
    prepare(trial)
    room = Room.of(trial, trial.prepared)
    depths = {"rendered": rendered_depths(room.views(limit_bytes=0)), "true": true_depths(Path(trial.scene))}
    found = track(room.dataset, room.segments, room.truth, depths)
    return {title: compact(evaluate) | more for title, (evaluate, more) in found.items()}


def ceiling(trial: Trial) -> dict[str, Row]:
    """What the geometry lets any field reach: true ids lifted to its Gaussians from the training views, and rendered.

    For rooms, in which a thing is what has an id.
    """
    prepare(trial)
    room = Room.of(trial, trial.prepared)
    views, dataset = room.views(trial.config.field.plan_mib << 20), room.dataset
    true = {i: found.ids.long() for i in dataset.train if (found := room.truth.of(dataset.views[i]))}
    count = 1 + max(int(ids.max()) for ids in true.values())
    sums = torch.zeros(len(views), count)
    for index, ids in true.items():
        sums += views.lift(index, one_hot(ids, count).float()).sums
    shares = sums / sums.sum(dim=1, keepdim=True).clamp_min(1e-9)
    shown = {dataset.views[i].stem: views.blend(i, shares).argmax(dim=-1) for i in dataset.test}
    return {"": compact(partial(evaluate_maps, lambda stem: (shown[stem], None), room.truth, room.test))}


def variance(trial: Trial) -> dict[str, Row]:
    """The noise of the loss's gradient while the field is trained."""
    prepare(trial)
    room, field = Room.of(trial, trial.prepared), trial.config.field
    return {"": gradient_variance(room.views(field.plan_mib << 20), room.labels(), field)}


TRIALS = {
    "geometry": lambda trial: {"": geometry(trial)},
    "prepare": lambda trial: {"": prepare(trial)},
    "train": train,
    "track": tracking,
    "variance": variance,
    "ceiling": ceiling,
}


def run(trial: Trial) -> dict[str, Row]:
    with threads(trial.threads):
        return TRIALS[trial.kind](trial)


def in_own_process(trial: Trial) -> dict[str, Row]:
    """What `run` answers. Raises RuntimeError with the last line of the complaint where it fails."""
    return in_subprocess("benchmarks.instances_trial", dataclasses.asdict(trial), timeout=6 * 3600)


if __name__ == "__main__":
    print(to_json(run(Trial(**json.loads(sys.argv[1])))))

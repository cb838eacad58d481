"""What the command line does with instances: fit them to a run, make objects of them, select and score them.

RUN/instances/ holds checkpoint-…/ (the geometry as it was frozen), field.safetensors (embeddings and classes of its
Gaussians), objects.safetensors (what tells objects apart), config.yaml, and what object_files writes.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from gsfields import config as configuration
from gsfields.data.segments import SegmentSource, open_segments, open_truth
from gsfields.evaluate import panoptic
from gsfields.files import to_json, written_whole
from gsfields.fit import object_files, recognition
from gsfields.fit.checkpoint import Checkpoint, list_checkpoints
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.instances import ClassTrainer, InstanceTrainer
from gsfields.fit.labels import Labels
from gsfields.fit.recognition import FittedField
from gsfields.fit.runs import opened
from gsfields.fit.straddlers import mending, prepare_geometry
from gsfields.gaussians import Gaussians
from gsfields.instances_config import InstancesConfig, ObjectsConfig

FOLDER = object_files.FOLDER
Say = Callable[[str], None]


def fit_instances(
    run: str | Path,
    segments: str | Path | None = None,
    config: InstancesConfig | None = None,
    *,
    data: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    say: Say = print,
) -> object_files.ObjectTable:
    """Fit an instance field to the 2D segments of a run's training views, and make objects of it.

    Args:
        run: folder of a run, static or layered.
        segments: what gsfields.data.segments.open_segments takes; default: the run's data.
        data: folder of the scene, if it has moved since the fit.
        overwrite: replace the instances that are there.

    Raises ValueError for bad arguments, FileNotFoundError where run, data or segments are missing.
    """
    config = config or InstancesConfig()
    checkpoint, dataset = opened(run, data)
    where = str(Path(segments if segments is not None else checkpoint.config.data.path).resolve())
    source = open_segments(where)
    labels = Labels(source, dataset, dataset.train)
    root = Path(run) / FOLDER
    if (root / "field.safetensors").exists() and not overwrite:
        raise ValueError(f"{root} already holds instances: give --overwrite to replace them")
    say(f"segments of {len(labels.indices)} of {len(dataset.train)} training views, classes {labels.classes}")
    started = time.monotonic()
    scene = checkpoint.scene
    if isinstance(scene, Gaussians):
        scene = prepare_geometry(checkpoint, dataset, labels, config.geometry, report=say)
    views = FrozenViews(scene, dataset, checkpoint.config, limit_bytes=config.field.plan_mib << 20)
    say(f"geometry: {len(views)} Gaussians, {time.monotonic() - started:.1f} s")
    trainer = InstanceTrainer(views, labels, config.field)
    photos = None
    if config.field.joint:
        if not isinstance(scene, Gaussians):
            raise ValueError("joint is for static runs only, but this one is layered")
        photos = mending(scene, checkpoint.config, dataset, trainer.steps)
    seconds = trainer.run(photos, progress=progress)
    if photos is not None:
        scene, views = photos.scene, trainer.views
    say(f"embeddings: {trainer.steps} steps in {seconds:.1f} s; plans: {views.report()}")
    classifier = ClassTrainer(views, labels, config.field)
    classifier.run(progress=progress)
    field = FittedField(
        trainer.field.fast().detach(),
        classifier.probabilities(),
        labels.classes,
        source.classes.things,
        where,
        identifiers=config.field.loss == "linear-assignment",
    )
    if root.exists():
        _forget(root)
    Checkpoint(scene, checkpoint.config, checkpoint.step).save(root, keep=1)
    with written_whole(root / "config.yaml") as temporary:
        temporary.write_text(configuration.dump(config))
    field.save(root / "field.safetensors")
    return _make_objects(Path(run), views, field, source, config.objects, say)


def make_objects(
    run: str | Path,
    overrides: Iterable[tuple[str, str | None]] = (),
    *,
    data: str | None = None,
    say: Say = print,
) -> object_files.ObjectTable:
    """Cluster the embeddings of RUN/instances anew, and write its objects; `overrides` of the section objects.

    Raises ValueError for other overrides: the field is not fitted again.
    """
    overrides = list(overrides)
    own = {name for f in dataclasses.fields(ObjectsConfig) for name in (f.name, f"objects.{f.name}")}
    other = [name for name, _ in overrides if name.replace("-", "_") not in own]
    if other:
        raise ValueError(
            f"{other[0]} is no field of section objects, and only these can be changed without a new fit"
        )
    root = Path(run) / FOLDER
    field = FittedField.load(root / "field.safetensors")
    config = configuration.from_dict(yaml.safe_load((root / "config.yaml").read_text()), InstancesConfig)
    configuration.apply(config, overrides)
    checkpoint, dataset = opened(root, data)
    limit = config.field.plan_mib << 20
    views = FrozenViews(checkpoint.scene, dataset, checkpoint.config, limit_bytes=limit)
    source = open_segments(field.segments) if Path(field.segments).exists() else None
    table = _make_objects(Path(run), views, field, source, config.objects, say)
    with written_whole(root / "config.yaml") as temporary:
        temporary.write_text(configuration.dump(config))
    return table


def select(run: str | Path, at: str, *, say: Say = print) -> int:
    """The object at "stem,x,y" of a run that has objects; 0 for none."""
    stem, x, y = object_files.parse_at(at)
    found = object_files.object_at(run, stem, x, y)
    ply = Path(run) / FOLDER / "objects" / f"{found}.ply"
    if found == 0:
        say(f"no object at pixel ({x}, {y}) of {stem}")
    else:
        say(
            f"object {found}: "
            + (f"its Gaussians are {ply}" if ply.is_file() else "none of the Gaussians is its own")
        )
    return found


def evaluate_panoptic(
    run: str | Path,
    *,
    data: str | None = None,
    truth: str | Path | None = None,
    size: int | None = panoptic.SIZE,
) -> tuple[Path, str]:
    """Score RUN/instances on the held-out views (on all where there are none), and beside it the 2D segments.

    truth: what open_truth takes; default: the run's data. Returns the JSON file written and a table.
    """
    run = Path(run)
    field = FittedField.load(run / FOLDER / "field.safetensors")
    checkpoint, dataset = opened(run / FOLDER, data)
    true = open_truth(truth if truth is not None else checkpoint.config.data.path)
    shown = [dataset.views[i] for i in dataset.test or range(len(dataset.views))]
    shown = [view for view in shown if true.has(view)]
    stems = [view.stem for view in shown]
    if not stems:
        raise ValueError(f"none of the views to be scored has true labels in {true.root}")
    void = None if 0 in (*true.classes.things, *true.classes.stuff) else 0
    rows = {"objects": panoptic.evaluate_run_folder(run, true, stems, size=size, void_class=void)}
    if Path(field.segments).exists():
        flat = open_segments(field.segments)
        if all(flat.has(view) for view in shown):
            rows["2D segments"] = panoptic.evaluate_maps(
                panoptic.maps_of(flat), true, stems, size=size, void_class=void
            )
    path = run / "panoptic.json"
    with written_whole(path) as temporary:
        content = {"views": len(stems)} | {name: scores.to_dict() for name, scores in rows.items()}
        temporary.write_text(to_json(content, indent=2) + "\n")
    return path, panoptic.table(rows)


# ------------------------------------------------------------------------------------------------------- details


def _make_objects(
    run: Path,
    views: FrozenViews,
    field: FittedField,
    source: SegmentSource | None,
    config: ObjectsConfig,
    say: Say,
) -> object_files.ObjectTable:
    labels = None if source is None else Labels(source, views.dataset, views.dataset.train)
    field = recognition.located(views, field, labels, config)
    objects = recognition.find_objects(views, field, labels, config, say)
    objects.save(run / FOLDER / "objects.safetensors")
    gaussian_ids = recognition.objects_of_gaussians(views, field, objects)
    maps = recognition.maps_of_views(views, field, objects, source)
    names = {} if source is None else source.classes.names
    table = object_files.write_objects(
        run, maps, views.gaussians(), gaussian_ids, objects.class_ids(), names=names
    )
    (run / "panoptic.json").unlink(missing_ok=True)  # scores of objects that are no more
    return table


def _forget(root: Path) -> None:
    """Delete what an earlier fit of instances left, and nothing else."""
    folders = [*list_checkpoints(root), *(root / name for name in ("ids", "semantics", "objects"))]
    for path in folders:
        if path.is_dir():
            shutil.rmtree(path)
    for name in ("field.safetensors", "objects.safetensors", "objects.json", "sheet.png", "config.yaml"):
        (root / name).unlink(missing_ok=True)

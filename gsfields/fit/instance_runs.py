"""What the command line does with instances: fit them to a run, make objects of them, select and score them.

RUN/instances/ holds checkpoint-…/ (the geometry as it was frozen), field.safetensors (embeddings and classes of its
Gaussians), objects.safetensors (what tells objects apart), config.yaml, and what object_files writes.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor

from gsfields import config as configuration
from gsfields.data.dataset import Dataset
from gsfields.data.lens import distort
from gsfields.data.segments import SegmentSource, open_segments, open_truth
from gsfields.evaluate import panoptic
from gsfields.fields.clustering import ClusterOptions
from gsfields.fields.objects import Objects, Sweep, cluster, sweep
from gsfields.files import to_json, written_whole
from gsfields.fit import object_files
from gsfields.fit.checkpoint import Checkpoint, list_checkpoints
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.instances import (
    ClassTrainer,
    InstanceTrainer,
    embeddings_in,
    spread_views,
)
from gsfields.fit.labels import Labels
from gsfields.fit.scene import open_dataset
from gsfields.fit.showing import photo_camera
from gsfields.fit.straddlers import mending, prepare_geometry
from gsfields.gaussians import Gaussians
from gsfields.instances_config import InstancesConfig, ObjectsConfig

FOLDER = object_files.FOLDER
_SWEEP_VIEWS = 12  # that sizes of clusters are judged on
_LIFT_VIEWS = 60  # that tell whose Gaussians are
_SHEET_ROWS = 6
Say = Callable[[str], None]


@dataclass
class FittedField:
    """What a fit of instances leaves, beside the geometry."""

    theta: Tensor  # [N, D] fast embeddings
    probabilities: Tensor  # [N, K] of the classes
    class_ids: tuple[int, ...]  # [K]
    things: tuple[int, ...]  # those of them that have instances
    segments: str  # where the 2D segments are
    identifiers: bool = False  # θ are logits of identifiers (linear assignment), not places to be clustered

    def class_at(self, columns: Tensor) -> Tensor:
        """int32: the class id of each column of the probabilities."""
        return torch.tensor(self.class_ids, dtype=torch.int32)[columns]

    def is_thing(self, columns: Tensor) -> Tensor:
        """bool, likewise."""
        return torch.tensor([c in self.things for c in self.class_ids])[columns]

    def save(self, path: Path) -> None:
        tensors = {"theta": self.theta, "probabilities": self.probabilities}
        meta = {
            "classes": " ".join(map(str, self.class_ids)),
            "things": " ".join(map(str, self.things)),
            "segments": self.segments,
            "identifiers": str(int(self.identifiers)),
        }
        with written_whole(path) as temporary:
            safetensors.torch.save_file(
                {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
                temporary,
                metadata=meta,
            )

    @classmethod
    def load(cls, path: Path) -> FittedField:
        """Raises FileNotFoundError where there is none, ValueError where it is damaged."""
        if not path.is_file():
            raise FileNotFoundError(f"no instance field at {path}: `gsfields fit-instances RUN` makes one")
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in ("theta", "probabilities")}
                meta = file.metadata()
            ids, things = (tuple(map(int, meta[key].split())) for key in ("classes", "things"))
            return cls(
                **tensors,
                class_ids=ids,
                things=things,
                segments=meta["segments"],
                identifiers=meta["identifiers"] == "1",
            )
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error})") from None


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
    checkpoint, dataset = _opened(run, data)
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
        photos = mending(scene, checkpoint.config, dataset, config.field.steps)
    seconds = trainer.run(photos, progress=progress)
    if photos is not None:
        scene, views = photos.scene, trainer.views
    say(f"embeddings: {config.field.steps} steps in {seconds:.1f} s; plans: {views.report()}")
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
    checkpoint, dataset = _opened(root, data)
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
    checkpoint, dataset = _opened(run / FOLDER, data)
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


# ------------------------------------------------------------------------------------------------------- objects


def _make_objects(
    run: Path,
    views: FrozenViews,
    field: FittedField,
    source: SegmentSource | None,
    config: ObjectsConfig,
    say: Say,
) -> object_files.ObjectTable:
    objects = _identifiers(field) if field.identifiers else _clustered(views, field, source, config, say)
    objects.save(run / FOLDER / "objects.safetensors")
    gaussian_ids = _objects_of_gaussians(views, field, objects)
    maps = _maps(views, field, objects, source)
    names = {} if source is None else source.classes.names
    table = object_files.write_objects(
        run, maps, views.gaussians(), gaussian_ids, objects.classes, names=names
    )
    (run / "panoptic.json").unlink(missing_ok=True)  # scores of objects that are no more
    return table


def _objects_of_gaussians(views: FrozenViews, field: FittedField, objects: Objects) -> Tensor:
    """int32 [N]: by the mean of what is rendered where a Gaussian shows, of some training views; 0 where none shows it.

    Embeddings are learnt as blends. Against true labels those of single Gaussians are right for 95.4 % of an object's
    Gaussians, the means of blends for 97.6 % (50 objects, 112 views).
    """
    joint = torch.cat((field.theta, field.probabilities), dim=1)
    sums, total = torch.zeros_like(joint), torch.zeros(len(joint))
    for index in spread_views(views.dataset.train, _LIFT_VIEWS):
        lifted = views.lift(index, embeddings_in(views, index, joint))
        sums, total = sums + lifted.sums, total + lifted.total
    shown = total > 1e-3
    theta, chances = (sums / total.clamp_min(1e-12)[:, None]).split(
        [field.theta.shape[1], len(field.class_ids)], dim=1
    )
    best = chances.argmax(dim=1)
    return objects.assign(theta, field.class_at(best), field.is_thing(best) & shown & views.placed())


def _identifiers(field: FittedField) -> Objects:
    """Those of linear assignment that some Gaussian has; that with the largest logit is the nearest unit vector."""
    best = field.probabilities.argmax(dim=1)
    thing = field.is_thing(best)
    taken = torch.stack((field.class_at(best[thing]).long(), field.theta[thing].argmax(dim=1)), dim=1).unique(
        dim=0
    )
    return Objects(torch.eye(field.theta.shape[1])[taken[:, 1]], taken[:, 0].int())


def _clustered(
    views: FrozenViews, field: FittedField, source: SegmentSource | None, config: ObjectsConfig, say: Say
) -> Objects:
    train = views.dataset.train
    generator = torch.Generator().manual_seed(0)
    share = config.samples // min(config.views, len(train)) + 1
    drawn = []
    for index in spread_views(train, config.views):
        features, classes, sure, usable = _samples(views, index, field)
        chosen = usable.nonzero()[:, 0]
        chosen = chosen[torch.randperm(len(chosen), generator=generator)[:share]]
        drawn.append((features[chosen], classes[chosen], sure[chosen]))
    samples, classes, sure = (torch.cat(part) for part in zip(*drawn))
    if len(samples) < 2:
        say("no pixel shows a thing: no objects")
        return Objects(torch.zeros(0, field.theta.shape[1]), torch.zeros(0, dtype=torch.int32))
    options = ClusterOptions(
        method=config.method,
        min_cluster_size=config.min_size or None,
        samples=config.samples,
        min_samples=config.min_samples,
        scale=config.scale,
    )
    if not config.min_size and source is not None:
        found = _swept(views, field, Labels(source, views.dataset, train), options, samples)
        if found is not None:
            total = min(len(samples), config.samples)
            say(f"smallest cluster: {found.size} of {total} samples, chosen by the 2D segments")
            options = dataclasses.replace(options, min_cluster_size=found.size)
    return cluster(samples, classes, sure, options)


def _swept(
    views: FrozenViews, field: FittedField, labels: Labels, options: ClusterOptions, samples: Tensor
) -> Sweep | None:
    """The smallest size of a cluster by the 2D segments of some views; None where these have none."""
    frames, ids = [], []
    for index in spread_views(labels.indices, _SWEEP_VIEWS):
        features, _, _, usable = _samples(views, index, field)
        frames.append(features[usable])
        ids.append(labels.of(index).ids[usable])
    return sweep(frames, ids, options, pool=samples) if any(bool(i.any()) for i in ids) else None


def _samples(views: FrozenViews, index: int, field: FittedField) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a view's P pixels: embeddings [P, D], class [P], its probability [P], and whether it shows an opaque thing."""
    features = embeddings_in(views, index, field.theta).flatten(0, 1)
    blended = views.blend(index, field.probabilities).flatten(0, 1)
    sure, best = (blended / blended.sum(dim=1, keepdim=True).clamp_min(1e-6)).max(dim=1)
    usable = field.is_thing(best) & (views.alpha(index).flatten() > 0.9)
    return features, field.class_at(best), sure, usable


def _maps(
    views: FrozenViews, field: FittedField, objects: Objects, source: SegmentSource | None
) -> Iterator[object_files.ViewObjects]:
    """What each view of the data shows, on the grid of its photo."""
    shown = set(spread_views(list(range(len(views.dataset.views))), _SHEET_ROWS))
    joined = torch.cat((field.theta, field.probabilities), dim=1)
    for index, view in enumerate(views.dataset.views):
        blended, alpha = views.as_taken(index, joined)
        features, chances = blended.split([field.theta.shape[1], len(field.class_ids)], dim=-1)
        best = _most_probable(field, chances, alpha > 0.5)
        classes, thing = field.class_at(best), field.is_thing(best) & (alpha > 0.5)
        ids = objects.assign(features / alpha.clamp_min(1e-6)[..., None], classes, thing)
        maps = torch.stack((ids, classes), dim=-1)
        if view.lens is not None:
            maps = distort(maps.float(), photo_camera(view), view.lens, nearest=True).round().int()
        found = source.of(view) if index in shown and source is not None else None
        yield object_files.ViewObjects(
            view.stem,
            maps[..., 0],
            maps[..., 1],
            image=view.image() if index in shown else None,
            segments=None if found is None else found.ids,
        )


def _most_probable(field: FittedField, chances: Tensor, opaque: Tensor) -> Tensor:
    """[h, w] columns of chances [h, w, K]. Where the scene is not opaque it shows nothing to count: a kind of stuff, if
    there is any, for a thing without an object would be scored as one more object.
    """
    thing = field.is_thing(torch.arange(chances.shape[-1]))
    return chances.where(opaque[..., None] | ~thing, -1.0).argmax(dim=-1)


# ------------------------------------------------------------------------------------------------------- details


def _opened(run: str | Path, data: str | None) -> tuple[Checkpoint, Dataset]:
    """The newest checkpoint and its data. Raises ValueError for a scene that was imported, unless `data` is given."""
    checkpoint = Checkpoint.load(run)
    if data is not None:
        checkpoint.config.data.path = str(Path(data).resolve())
    if not checkpoint.config.data.path:
        raise ValueError(f"{run} was imported, not fitted: --data must name the folder of its photos")
    return checkpoint, open_dataset(checkpoint.config.data)


def _forget(root: Path) -> None:
    """Delete what an earlier fit of instances left, and nothing else."""
    folders = [*list_checkpoints(root), *(root / name for name in ("ids", "semantics", "objects"))]
    for path in folders:
        if path.is_dir():
            shutil.rmtree(path)
    for name in ("field.safetensors", "objects.safetensors", "objects.json", "sheet.png", "config.yaml"):
        (root / name).unlink(missing_ok=True)

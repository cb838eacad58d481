"""What the command line does with runs: start, resume, render, evaluate, import."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from gsfields import config as configuration
from gsfields import paths, pictures
from gsfields.camera import Camera
from gsfields.config import Config
from gsfields.data.dataset import Dataset
from gsfields.evaluate import udos, udos_annotations
from gsfields.evaluate.image import ImageScores
from gsfields.files import to_json, written_whole
from gsfields.fit.checkpoint import Checkpoint, list_checkpoints, remove_run
from gsfields.fit.layered import LayeredTrainer
from gsfields.fit.loop import Loop, Outcome
from gsfields.fit.scene import open_dataset
from gsfields.fit.showing import evaluate_parts, evaluate_views, render_view
from gsfields.fit.trainer import Trainer
from gsfields.gaussians import Gaussians

Overrides = Iterable[tuple[str, str | None]]
LEAST_STEPS = 2000  # where the configuration leaves their number to us
_RESUME_FIELDS = {"max_minutes", "fit.max_minutes"}  # may change without changing what the run computes


def start(config: Config, run: str | Path, *, overwrite: bool = False, progress: bool = True) -> Outcome:
    """Fit the scene config.data.path into the folder `run`, which must hold no run unless `overwrite`."""
    _settle_data(config)
    if list_checkpoints(run) and not overwrite:
        raise ValueError(
            f"{run} already holds a run: give --resume to continue it or --overwrite to replace it"
        )
    trainer = make_trainer(config, open_dataset(config.data), run)
    remove_run(run)
    return trainer.fit(progress=progress)


def opened(run: str | Path, data: str | None) -> tuple[Checkpoint, Dataset]:
    """The newest checkpoint and its data. Raises ValueError for a scene that was imported, unless `data` is given."""
    checkpoint = Checkpoint.load(run)
    if data is not None:
        checkpoint.config.data.path = str(Path(data).resolve())
    if not checkpoint.config.data.path:
        raise ValueError(f"{run} was imported, not fitted: --data must name the folder of its photos")
    return checkpoint, open_dataset(checkpoint.config.data)


def make_trainer(config: Config, dataset: Dataset, run: str | Path, resume: Checkpoint | None = None) -> Loop:
    """The trainer of the model that the configuration names; its own configuration says how many steps."""
    if config.fit.steps == 0:
        steps = max(LEAST_STEPS, config.fit.steps_per_image * len(dataset.train))
        config = replace(config, fit=replace(config.fit, steps=steps))
    kind = LayeredTrainer if config.fit.model == "layered" else Trainer
    return kind(config, dataset, run, resume)


def resume(
    run: str | Path, overrides: Overrides = (), *, data: str | None = None, progress: bool = True
) -> Outcome:
    """Continue the run from its newest checkpoint; only max_minutes and the data's folder may differ."""
    checkpoint = Checkpoint.load(run)
    if not checkpoint.state:
        raise ValueError(f"{run} was imported, not fitted: it holds nothing to resume")
    config = checkpoint.config
    overrides = list(overrides)
    other = [name for name, _ in overrides if name.replace("-", "_") not in _RESUME_FIELDS]
    if other:
        raise ValueError(
            f"a resumed run keeps its configuration: {other[0]} cannot be changed, only max_minutes"
        )
    configuration.apply(config, overrides)
    if data is not None:
        config.data.path = data
        _settle_data(config)
    return make_trainer(config, open_dataset(config.data), run, checkpoint).fit(progress=progress)


def evaluate_run(run: str | Path, *, data: str | None = None) -> tuple[Path, ImageScores]:
    """Score the newest checkpoint on the held-out views; returns the JSON file written and the scores."""
    checkpoint, dataset = _load(run, data)
    if dataset is None or not dataset.test:
        raise ValueError(f"{run} has no held-out views to score")
    scores = evaluate_views(checkpoint.scene, dataset, dataset.test, checkpoint.config)
    path = Path(run) / "eval.json"
    protocol = "clamped, not rounded; per image, then mean; SSIM 11x11 Gaussian, sigma 1.5, zero padding"
    with written_whole(path) as temporary:
        temporary.write_text(
            to_json({"step": checkpoint.step, "protocol": protocol, **scores.as_dict()}, indent=2) + "\n"
        )
    return path, scores


def evaluate_masks_of_run(run: str | Path, *, data: str | None = None) -> tuple[Path, str]:
    """Score RUN/masks, and beside them the 2D masks of the data, against its annotations by the UDOS protocol.

    Returns the JSON file written and a table. Raises FileNotFoundError where there are no masks or annotations.
    """
    run = Path(run)
    root = Path(data) if data is not None else Path(Checkpoint.load(run).config.data.path)
    if not (run / "masks").is_dir():
        raise FileNotFoundError(f"{run} holds no masks: only fits of model layered write them")
    checkpoint, dataset = _load(run, str(root))
    assert dataset is not None
    annotations = udos_annotations.Annotations.open(root)
    refined = {}
    if list_checkpoints(run / "refined"):
        later = Checkpoint.load(run / "refined")
        refined = dict.fromkeys(later.metrics["refined"], later.scene)
    parts = evaluate_parts(checkpoint.scene, dataset, annotations, checkpoint.config, refined=refined)
    rows = {"3D masks": udos.evaluate_run_folder(run / "masks", root)}
    if (root / "motion_masks").is_dir():
        rows = {"2D masks": udos.evaluate_motion_masks(root / "motion_masks", root)} | rows
    path = run / "udos.json"
    with written_whole(path) as temporary:
        content = {name: scores.as_dict() for name, scores in rows.items()} | {"psnr": parts._asdict()}
        temporary.write_text(to_json(content, indent=2) + "\n")
    whole, front, back = parts.whole, parts.foreground, parts.background
    psnr = f"PSNR {whole:.2f} dB, {front:.2f} dB where something moves, {back:.2f} dB elsewhere"
    return path, f"{udos.table(rows)}\n{psnr}"


def render_run(
    run: str | Path,
    *,
    out: str | Path | None = None,
    path: str | None = None,
    frames: int = 120,
    fps: int = 24,
    data: str | None = None,
) -> tuple[Path, int]:
    """Render held-out views, or a camera path (views, orbit, spiral), as PNGs or MP4; returns where, and how
    many. A layered scene is shown at the times of its views, or once from first to last along the path.
    """
    checkpoint, dataset = _load(run, data)
    out = Path(out) if out is not None else Path(run) / "renders"
    if path is None:
        if dataset is None or not dataset.test:
            raise ValueError(f"{run} has no held-out views to render: give --path orbit")
        times = dataset.times().tolist()
        named = [(dataset.views[i].name, dataset.views[i].camera, times[i]) for i in dataset.test]
    else:
        cameras = _camera_path(path, frames, checkpoint, dataset)
        last = max(len(cameras) - 1, 1)
        named = [(f"{i:04d}", camera, i / last) for i, camera in enumerate(cameras)]
    images = (render_view(checkpoint.scene, camera, checkpoint.config, t).color for _, camera, t in named)
    if out.suffix.lower() == ".mp4":
        out.parent.mkdir(parents=True, exist_ok=True)
        return out, pictures.save_video(images, out, fps=fps)
    out.mkdir(parents=True, exist_ok=True)
    for (name, *_), image in zip(named, images, strict=True):
        pictures.save_png(
            image, out / (re.sub(r"[^\w.-]+", "_", Path(name).with_suffix("").as_posix()) + ".png")
        )
    return out, len(named)


def import_ply(ply: str | Path, run: str | Path) -> tuple[Path, Gaussians]:
    """Make a run of a `.ply`: a checkpoint at step 0, without data. Returns its folder and the Gaussians."""
    gaussians = Gaussians.from_ply(ply)
    if list_checkpoints(run):
        raise ValueError(f"{run} already holds a run: choose another --out")
    config = Config()
    config.init.sh_degree = gaussians.sh_degree
    return Checkpoint(gaussians, config, step=0).save(run), gaussians


# ---------------------------------------------------------------------------------------------------- details


def _settle_data(config: Config) -> None:
    """Make the path absolute, so that the run can be rendered from another folder."""
    config.data.path = str(Path(config.data.path).resolve())


def _load(run: str | Path, data: str | None) -> tuple[Checkpoint, Dataset | None]:
    """The newest checkpoint and its data: None for an imported scene, unless `data` is given."""
    checkpoint = Checkpoint.load(run)
    if data is not None:
        checkpoint.config.data.path = data
        _settle_data(checkpoint.config)
    return checkpoint, open_dataset(checkpoint.config.data) if checkpoint.config.data.path else None


def _camera_path(path: str, frames: int, checkpoint: Checkpoint, dataset: Dataset | None) -> list[Camera]:
    if dataset is not None:
        cameras = [view.camera for view in dataset.train_views()]
        cameras = [camera.resized(cameras[0].width, cameras[0].height) for camera in cameras]
    else:
        cameras = paths.around_box(checkpoint.gaussians.means)
    return {"views": paths.between, "orbit": paths.orbit, "spiral": paths.spiral}[path](cameras, frames)

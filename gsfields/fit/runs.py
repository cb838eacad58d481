"""What the command line does with runs: start, resume, render, evaluate, import, demonstrate."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from gsfields import config as configuration
from gsfields import paths, pictures
from gsfields.camera import Camera
from gsfields.config import Config
from gsfields.data.dataset import Dataset
from gsfields.evaluate.image import ImageScores
from gsfields.files import to_json, written_whole
from gsfields.fit.checkpoint import Checkpoint, list_checkpoints, remove_run
from gsfields.fit.scene import open_dataset
from gsfields.fit.trainer import Outcome, Trainer, evaluate_views, render_view
from gsfields.gaussians import Gaussians

Overrides = Iterable[tuple[str, str | None]]
_RESUME_FIELDS = {"max_minutes", "fit.max_minutes"}  # may change without changing what the run computes


def start(config: Config, run: str | Path, *, overwrite: bool = False, progress: bool = True) -> Outcome:
    """Fit the scene config.data.path into the folder `run`, which must hold no run unless `overwrite`."""
    _settle_data(config)
    if list_checkpoints(run) and not overwrite:
        raise ValueError(
            f"{run} already holds a run: give --resume to continue it or --overwrite to replace it"
        )
    trainer = Trainer(config, open_dataset(config.data), run)
    remove_run(run)
    return trainer.fit(progress=progress)


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
    return Trainer(config, open_dataset(config.data), run, checkpoint).fit(progress=progress)


def evaluate_run(run: str | Path, *, data: str | None = None) -> tuple[Path, ImageScores]:
    """Score the newest checkpoint on the held-out views; returns the JSON file written and the scores."""
    checkpoint, dataset = _load(run, data)
    if dataset is None or not dataset.test:
        raise ValueError(f"{run} has no held-out views to score")
    scores = evaluate_views(checkpoint.gaussians, dataset.test_views(), checkpoint.config)
    path = Path(run) / "eval.json"
    protocol = "clamped, not rounded; per image, then mean; SSIM 11x11 Gaussian, sigma 1.5, zero padding"
    with written_whole(path) as temporary:
        temporary.write_text(
            to_json({"step": checkpoint.step, "protocol": protocol, **scores.as_dict()}, indent=2) + "\n"
        )
    return path, scores


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
    many.
    """
    checkpoint, dataset = _load(run, data)
    out = Path(out) if out is not None else Path(run) / "renders"
    if path is None:
        if dataset is None or not dataset.test:
            raise ValueError(f"{run} has no held-out views to render: give --path orbit")
        named = [(view.name, view.camera) for view in dataset.test_views()]
    else:
        named = [
            (f"{i:04d}", camera) for i, camera in enumerate(_camera_path(path, frames, checkpoint, dataset))
        ]
    images = (render_view(checkpoint.gaussians, camera, checkpoint.config).color for _, camera in named)
    if out.suffix.lower() == ".mp4":
        out.parent.mkdir(parents=True, exist_ok=True)
        return out, pictures.save_video(images, out, fps=fps)
    out.mkdir(parents=True, exist_ok=True)
    for (name, _), image in zip(named, images, strict=True):
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


def demo(scene: str | None, run: str | Path, overrides: Overrides = ()) -> tuple[Outcome, Path | None]:
    """Fit `scene`, or the package's own room, by the recipe demo, replacing an earlier demo in `run`.

    The room is made once, as the folder RUN/room. Returns the outcome and the contact sheet (photograph,
    rendering, depth); no sheet after an interrupt.
    """
    config = configuration.load("demo")
    configuration.apply(config, overrides)
    run = Path(run)
    config.data.path = scene if scene is not None else str(run / "room")
    if scene is None and not (run / "room").exists():
        from gsfields.data.synthetic import make_room, save_room

        run.mkdir(parents=True, exist_ok=True)
        save_room(run / "room", make_room())
    outcome = start(config, run, overwrite=True)
    if outcome.ended == "interrupted":
        return outcome, None
    checkpoint, dataset = _load(run, None)
    assert dataset is not None
    sheet = run / "contact_sheet.png"
    pictures.save_png(comparison(checkpoint, dataset), sheet)
    return outcome, sheet


def comparison(checkpoint: Checkpoint, dataset: Dataset, rows: int = 4) -> Tensor:
    """A contact sheet of held-out views (or else training views): photograph, rendering, depth."""
    views = dataset.test_views() or dataset.train_views()
    chosen = [views[i * len(views) // min(rows, len(views))] for i in range(min(rows, len(views)))]
    table = []
    for view in chosen:
        rendering = render_view(checkpoint.gaussians, view.camera, checkpoint.config)
        depth = pictures.depth_colors(rendering.depth, rendering.alpha)
        table.append([view.image(), rendering.color, depth])
    return pictures.contact_sheet(table, ["photograph", "rendering", "depth"])


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

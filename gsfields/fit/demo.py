"""`gsfields demo`: the layers of a made-up egocentric video and what they make of its 2D masks, or a user's scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gsfields import config as configuration
from gsfields import pictures
from gsfields.data.dataset import Dataset, View
from gsfields.evaluate.udos_annotations import Annotations
from gsfields.fit import runs
from gsfields.fit.checkpoint import Checkpoint
from gsfields.fit.loop import Outcome
from gsfields.fit.scene import open_dataset
from gsfields.fit.showing import evaluation_background, render_view
from gsfields.layers import DYNAMIC, SEMISTATIC, LayeredScene, MovingLayer, render_layers

Item = TypeVar("Item")
VIDEO: dict[str, Any] = {"seed": 0, "frames": 48, "width": 228, "height": 128}
ROWS = 4  # of a contact sheet
STORY = ("frame", "2D mask", "static layer", "semi-static mask", "dynamic layer", "dynamic mask", "rendering")


def demo(scene: str | None, run: str | Path, overrides: runs.Overrides = ()) -> tuple[Outcome, Path | None]:
    """Fit `scene` by the recipe demo, or the package's own video by the recipe lmf, replacing an earlier demo in `run`.

    The video is made once, as the folder RUN/video. Returns the outcome, its report ending with the scores of the
    masks, and a contact sheet; no sheet after an interrupt.
    """
    run = Path(run)
    config = configuration.load("demo" if scene is not None else "lmf")
    configuration.apply(config, overrides)
    config.data.path = scene if scene is not None else str(run / "video")
    made = _own_video(run / "video") if scene is None else None
    outcome = runs.start(config, run, overwrite=True)
    if outcome.ended == "interrupted":
        return outcome, None
    checkpoint = Checkpoint.load(run)
    dataset = open_dataset(checkpoint.config.data)
    if made is not None:
        outcome.report.insert(0, made)
    sheet = run / "contact_sheet.png"
    if isinstance(checkpoint.scene, LayeredScene):
        annotations = Annotations.open(checkpoint.config.data.path) if scene is None else None
        if annotations is not None:
            outcome.report += runs.evaluate_masks_of_run(run)[1].splitlines()
        picture = story(checkpoint, dataset, annotations)
    else:
        picture = comparison(checkpoint, dataset)
    pictures.save_png(picture, sheet)
    return outcome, sheet


@torch.no_grad()
def story(
    checkpoint: Checkpoint, dataset: Dataset, annotations: Annotations | None = None, rows: int = ROWS
) -> Tensor:
    """A contact sheet of a layered run: what went in, what each layer shows and masks, and the rendering.

    The frames are some that show something dynamic, by the annotations if they are given.
    """
    scene = checkpoint.scene
    assert isinstance(scene, LayeredScene)
    still = without_motion(scene)
    background = evaluation_background(checkpoint.config)
    table = []
    for view, time in _chosen(dataset, annotations, rows):
        layers = render_layers(
            scene, view.camera, time, parts=True, near=checkpoint.config.fit.near, background=background
        )
        assert layers.parts is not None
        flat = view.motion_mask()
        table.append(
            [
                view.image(),
                pictures.grey(flat if flat is not None else torch.zeros(view.image().shape[:2])),
                render_view(still, view.camera, checkpoint.config, time).color,
                pictures.grey(layers.masks[..., SEMISTATIC]),
                layers.parts[..., DYNAMIC, :],
                pictures.grey(layers.masks[..., DYNAMIC]),
                layers.color,
            ]
        )
    return pictures.contact_sheet(table, STORY)


def comparison(checkpoint: Checkpoint, dataset: Dataset, rows: int = ROWS) -> Tensor:
    """A contact sheet of held-out views (or else training views): photograph, rendering, depth."""
    views = dataset.test_views() or dataset.train_views()
    table = []
    for view in _spread(views, rows):
        rendering = render_view(checkpoint.scene, view.camera, checkpoint.config)
        depth = pictures.depth_colors(rendering.depth, rendering.alpha)
        table.append([view.image(), rendering.color, depth])
    return pictures.contact_sheet(table, ["photograph", "rendering", "depth"])


def without_motion(scene: LayeredScene) -> LayeredScene:
    """Its static layer and shell alone: what the camera would see if nothing had been there."""

    def emptied(layer: MovingLayer) -> MovingLayer:
        return layer.with_parameters({k: v[:0] for k, v in layer.parameters().items()}, layer.basis)

    return replace(scene, semistatic=emptied(scene.semistatic), dynamic=emptied(scene.dynamic))


# ---------------------------------------------------------------------------------------------------- details


def _own_video(folder: Path) -> str | None:
    """Make the demo's video, unless it is there; says what it is."""
    if folder.exists():
        return None
    from gsfields.data.egocentric_files import prepare_egocentric

    folder.parent.mkdir(parents=True, exist_ok=True)
    return prepare_egocentric(folder, **VIDEO)


def _chosen(dataset: Dataset, annotations: Annotations | None, count: int) -> list[tuple[View, float]]:
    """Views spread in time over those that show something dynamic (all, where too few do), with their times."""
    timed = sorted(zip(dataset.views, dataset.times().tolist()), key=lambda pair: pair[1])
    moving = [(view, time) for view, time in timed if _moves(view, annotations)]
    return _spread(moving if len(moving) >= count else timed, count)


def _moves(view: View, annotations: Annotations | None) -> bool:
    """Whether a hundredth of the pixels is dynamic: by the annotation, or else by the 2D mask."""
    if annotations is not None:
        if view.stem not in annotations.files.get("dynamic", {}):
            return False
        return bool((annotations.read("dynamic", view.stem) == 1).mean() > 0.01)
    mask = view.motion_mask()
    return mask is not None and float((mask > 0.5).float().mean()) > 0.01


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of them, evenly spaced; all where there are fewer."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]

"""Rendering and scoring the views of a run, whatever its model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from gsfields.camera import Camera
from gsfields.config import Config
from gsfields.data.dataset import Dataset, View
from gsfields.data.lens import covering
from gsfields.evaluate.image import ImageScores, PsnrParts, psnr_parts, score
from gsfields.evaluate.udos_annotations import Annotations
from gsfields.fit.checkpoint import Scene
from gsfields.fit.scene import COLORS
from gsfields.layers import LayeredRendering, LayeredScene, render_layers
from gsfields.rendering import Rendering, render


def photo_camera(view: View) -> Camera:
    """The pinhole camera that shows all of the view's photo as taken, at its size. With a lens it may show more, and
    what is rendered through it is to be given to `gsfields.data.lens.distort`.
    """
    width, height = view.file_size
    camera = view.camera
    if (camera.width, camera.height) != (width, height):
        camera = camera.resized(width, height)
    return camera if view.lens is None else covering(camera, view.lens)


@torch.no_grad()
def render_view(
    scene: Scene, camera: Camera, config: Config, time: float = 0.0
) -> Rendering | LayeredRendering:
    """Render a camera as the run of `config` shows its results; layered scenes at a time in [0, 1]."""
    background = evaluation_background(config)
    if isinstance(scene, LayeredScene):
        return render_layers(scene, camera, time, near=config.fit.near, background=background)
    return render(
        scene, camera, background=background, near=config.fit.near, antialiased=config.fit.antialiased
    )


def evaluate_views(scene: Scene, dataset: Dataset, indices: Sequence[int], config: Config) -> ImageScores:
    """Render views of a dataset as the run of `config` does and score them."""
    times = dataset.times().tolist()
    chosen = [(dataset.views[i], times[i]) for i in indices]
    return score(
        (view.name, render_view(scene, view.camera, config, time).color, view.image(), view.mask())
        for view, time in chosen
    )


@torch.no_grad()
def evaluate_parts(
    scene: Scene,
    dataset: Dataset,
    annotations: Annotations,
    config: Config,
    frames: Collection[str] | None = None,
    refined: Mapping[str, Scene] | None = None,
) -> PsnrParts:
    """PSNR of the annotated frames (of those in `frames`) that show something dynamic, by parts: mean over frames,
    nan if there are none. A frame counts where its annotation is of the size that was fitted. Frames in `refined`
    are rendered from the scene there.
    """
    refined = refined or {}
    labelled = annotations.files.get("dynamic", {})
    rows = []
    for view, time in zip(dataset.views, dataset.times().tolist()):
        if view.stem not in labelled or (frames is not None and view.stem not in frames):
            continue
        labels = torch.from_numpy(annotations.read("dynamic", view.stem))
        if labels.any() and tuple(labels.shape) == (view.camera.height, view.camera.width):
            color = render_view(refined.get(view.stem, scene), view.camera, config, time).color
            rows.append(psnr_parts(color, view.image(), labels, view.mask()))
    return PsnrParts(*(fmean(part) for part in zip(*rows))) if rows else PsnrParts(*[math.nan] * 3)


def evaluation_background(config: Config) -> Tensor:
    """The colour behind evaluated images, [3]: that of the run, or white where it draws one per step."""
    return torch.tensor(COLORS.get(config.data.background, COLORS["white"]))

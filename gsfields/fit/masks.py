"""The masks that a layered run leaves on disk: RUN/masks/{dynamic,semistatic}/<stem>.png, 16 bits, one per frame, on
the grid of the photo as taken, distorted if that is. The semi-static ones are weighed by their neighbourhoods.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy import ndimage
from torch import Tensor

from gsfields.config import Config
from gsfields.data.dataset import Dataset, View
from gsfields.data.lens import distort
from gsfields.data.motion_masks import write_mask
from gsfields.fit.showing import photo_camera
from gsfields.layers import DYNAMIC, SEMISTATIC, STATIC, LayeredScene, render_layers

FOLDERS = ("dynamic", "semistatic")
_SOLID = 0.64  # mean about a pixel from which on a semi-static score stays as it is


@dataclass
class Shares:
    """How much of the images each layer explains, averaged over frames."""

    frames: int
    static: float  # mean of M̂_st, likewise below
    semistatic: float
    dynamic: float
    moving: float  # share of pixels with M̂_dy > 0.5

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {getattr(self, name):.1%}" for name in ("static", "semistatic", "dynamic"))
        return f"mean masks of {self.frames} frames: {parts}; dynamic above 0.5 on {self.moving:.1%} of the pixels"


@torch.no_grad()
def layer_masks(scene: LayeredScene, view: View, time: float, config: Config) -> Tensor:
    """M̂_st, M̂_ss, M̂_dy [h, w, 3] on the grid of the view's photo as taken."""
    camera = photo_camera(view)
    masks = render_layers(scene, camera, time, near=config.fit.near).masks
    return masks if view.lens is None else distort(masks, camera, view.lens)


def supported(mask: Tensor, reach: float) -> Tensor:
    """A mask [h, w] times the square root of how solid it is about each pixel: its mean, by a Gaussian of `reach`
    image widths, over that of a large thing.

    Things that someone moves are solid: they keep their score. What the semi-static layer explains by mistake, edges
    that a pose puts a pixel off, is thin and loses most of it.
    """
    if reach == 0:
        return mask
    mean = ndimage.gaussian_filter(mask.double().numpy(), reach * mask.shape[1], mode="nearest")
    return mask * (torch.from_numpy(mean) / _SOLID).clamp(0, 1).sqrt().to(mask)


def write_masks(
    scene: LayeredScene,
    dataset: Dataset,
    config: Config,
    run: str | Path,
    indices: Iterable[int] | None = None,
) -> Shares:
    """Render and write the masks of the views at `indices` (default: all); returns what the layers explain.

    M̂_dy is written as rendered, M̂_ss weighed by `supported`.
    """
    times = dataset.times().tolist()
    chosen = range(len(dataset.views)) if indices is None else list(indices)
    totals = torch.zeros(4, dtype=torch.float64)
    for name in FOLDERS:
        (Path(run) / "masks" / name).mkdir(parents=True, exist_ok=True)
    for i in chosen:
        view = dataset.views[i]
        masks = layer_masks(scene, view, times[i], config).clamp(0, 1)
        scores = {
            "dynamic": masks[..., DYNAMIC],
            "semistatic": supported(masks[..., SEMISTATIC], config.motion.support),
        }
        for name in FOLDERS:
            write_mask(Path(run) / "masks" / name / f"{view.stem}.png", scores[name], bits=16)
        means = [masks[..., layer].mean() for layer in (STATIC, SEMISTATIC, DYNAMIC)]
        totals += torch.stack([*means, (masks[..., DYNAMIC] > 0.5).float().mean()]).double()
    return Shares(len(chosen), *(totals / max(len(chosen), 1)).tolist())

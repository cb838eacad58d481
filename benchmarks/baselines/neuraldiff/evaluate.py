"""What a trained model gives: masks as files, PSNR, the benchmark's AP, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.baselines.neuraldiff.train import Trainer
from gsfields.data.dataset import View
from gsfields.data.lens import distort
from gsfields.data.motion_masks import read_mask, write_mask
from gsfields.evaluate.image import psnr
from gsfields.evaluate.udos import evaluate_masks
from gsfields.evaluate.udos_annotations import Annotations
from gsfields.files import to_json
from gsfields.pictures import contact_sheet, save_png

MASK_FOLDERS = ("dynamic", "semistatic")


@dataclass(frozen=True)
class Evaluation:
    """Where masks go, and what they are compared with."""

    out: Path  # masks/{dynamic,semistatic}/<stem>.png, metrics.jsonl and layers.png are written here
    annotations: Annotations | None = None
    pictures: int = 0  # frames on the contact sheet

    def masks_of(self, layer: str) -> Path:
        return self.out / "masks" / layer

    def run(self, trainer: Trainer, frames: Sequence[int] | None = None, **notes: Any) -> dict[str, Any]:
        """Render these frames (all if None), write their masks, append a line to metrics.jsonl -> that line.

        PSNR is of the training frames, which the model has seen as all of the benchmark's task are, and of the frames
        held out, if any.
        """
        views = trainer.dataset.views
        frames = range(len(views)) if frames is None else frames
        for layer in MASK_FOLDERS:
            self.masks_of(layer).mkdir(parents=True, exist_ok=True)
        seconds: list[float] = []
        scores: dict[int, float] = {}
        rows: list[list[Tensor]] = []
        shown = set(list(frames)[:: max(1, len(frames) // self.pictures)]) if self.pictures else set()
        for index in frames:
            start = time.perf_counter()
            rendered = trainer.render_frame(index)
            seconds.append(time.perf_counter() - start)
            scores[index] = psnr(rendered["color"], views[index].image(), views[index].mask())
            self._write_masks(views[index], rendered)
            if index in shown:
                rows.append(_pictures(views[index], rendered))
        if rows:
            titles = ("image", "rendered", "static alone", "2D mask", "semi-static", "dynamic")
            save_png(contact_sheet(rows, titles), self.out / "layers.png")
        trained, iterations = set(trainer.dataset.train), max(1, trainer.iterations)
        line: dict[str, Any] = {
            **notes,
            "seconds": trainer.seconds,
            "iterations": trainer.iterations,
            "seconds_per_iteration": trainer.seconds / iterations,
            "microseconds_per_ray": 1e6 * trainer.seconds / (iterations * trainer.recipe.rays),
            "seconds_per_frame": median(seconds),
            "frames": len(frames),
            "psnr_train": _mean([s for i, s in scores.items() if i in trained]),
            "psnr_test": _mean([s for i, s in scores.items() if i not in trained]),
        }
        if self.annotations is not None:
            line |= self._scores([views[i].stem for i in frames])
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(to_json(line) + "\n")
        return line

    def _scores(self, stems: list[str]) -> dict[str, Any]:
        """AP by column and IoU of the mask files of these images, as far as they are annotated."""
        assert self.annotations is not None
        files = {
            motion: {stem: path for stem, path in paths.items() if stem in stems}
            for motion, paths in self.annotations.files.items()
        }
        wanted = Annotations(self.annotations.video, files)
        scores = evaluate_masks(wanted, self._reader("dynamic"), self._reader("semistatic")).as_dict()
        return {name: scores[name] for name in ("ap", "iou", "best_iou")}

    def _reader(self, layer: str) -> Callable[[str], np.ndarray]:
        return lambda stem: read_mask(self.masks_of(layer) / f"{stem}.png")

    def _write_masks(self, view: View, rendered: dict[str, Tensor]) -> None:
        """On the grid of the image's file, as the annotations are; zero where the model has no such layer."""
        for layer in MASK_FOLDERS:
            mask = rendered.get(layer, torch.zeros_like(rendered["static"]))
            if view.lens is not None:
                mask = distort(mask[..., None], view.camera, view.lens)[..., 0]
            write_mask(self.masks_of(layer) / f"{view.stem}.png", mask)


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def _pictures(view: View, rendered: dict[str, Tensor]) -> list[Tensor]:
    image, given, nothing = view.image(), view.motion_mask(), torch.zeros_like(rendered["static"])
    masks = [nothing if given is None else given, rendered.get("semistatic", nothing), rendered["dynamic"]]
    return [
        image,
        rendered["color"],
        rendered["static_color"],
        *(m[..., None].expand(-1, -1, 3) for m in masks),
    ]

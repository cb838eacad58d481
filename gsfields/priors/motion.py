"""`gsfields prep motion`: the soft masks of what moves in a dataset, as files beside its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from gsfields.data.dataset import View
from gsfields.data.lens import distort
from gsfields.data.load import load_dataset
from gsfields.data.motion_masks import write_mask
from gsfields.files import written_whole
from gsfields.pictures import contact_sheet, save_png
from gsfields.priors.scores import FlowConfig, motion_scores

MASKS, SHEET = "motion_masks", "motion_sheet.png"
_ROWS, _SHEET_WIDTH = 8, 320  # frames shown on the sheet, and how wide each is, pixels


@dataclass(frozen=True)
class MotionSummary:
    """What `prepare_motion` wrote."""

    folder: Path
    sheet: Path
    frames: int
    mean_score: float
    moving: float  # share of all pixels that score above 0.5
    empty: int  # frames with no such pixel

    def __str__(self) -> str:
        return (
            f"{self.frames} masks in {self.folder}: mean score {self.mean_score:.3f}, "
            f"{100 * self.moving:.1f} % of the pixels move, {self.empty} frames with nothing; "
            f"pictures: {self.sheet}"
        )


def prepare_motion(
    data: str | Path,
    *,
    overwrite: bool = False,
    config: FlowConfig | None = None,
    progress: bool = True,
    **options: Any,
) -> MotionSummary:
    """Write DATA/motion_masks/<stem>.png, 8 bits, on the grid of each image file of the dataset, whether it is for
    training or held out, and DATA/motion_sheet.png, which shows some of them. Each is written whole or not at all.

    `options` set fields of `config`, such as gaps=(1, 2, 4). Frames are read from disk as they are needed (see
    `motion_scores`), so the video may be of any length.

    Raises FileNotFoundError or ValueError where the dataset cannot be read, is no video, or already has masks that
    are not to be overwritten; ImportError where OpenCV is missing.
    """
    unknown = set(options) - {item.name for item in fields(FlowConfig)}
    if unknown:
        known = ", ".join(item.name for item in fields(FlowConfig))
        raise ValueError(f"{min(unknown)} is no option of the motion masks: they are {known}")
    config = replace(config or FlowConfig(), **options)
    path = Path(data)
    root = path.parent if path.is_file() else path
    folder, sheet = root / MASKS, root / SHEET
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} already exists: give --overwrite to replace it")
    dataset = load_dataset(path, split_every=0, cache_bytes=0)
    scored = motion_scores(dataset, config)
    shown = set(np.linspace(0, len(dataset.views) - 1, _ROWS).astype(int).tolist())
    rows: list[list[Tensor]] = []
    means, moving = [], []
    with written_whole(folder) as temporary:
        temporary.mkdir()
        for i, (view, score) in enumerate(
            tqdm(scored, total=len(dataset.views), disable=not progress, unit=" frames")
        ):
            mask = _as_photographed(view, torch.from_numpy(score))
            write_mask(temporary / f"{view.stem}.png", mask, bits=8)
            means.append(float(mask.mean()))
            moving.append(float((mask > 0.5).float().mean()))
            if i in shown:
                rows.append(_row(view, torch.from_numpy(score), rows[0][0].shape if rows else None))
    save_png(contact_sheet(rows, ["image", "what moves"]), sheet)
    return MotionSummary(
        folder, sheet, len(means), float(np.mean(means)), float(np.mean(moving)), sum(m == 0 for m in moving)
    )


def parse_options(texts: Mapping[str, str | None]) -> dict[str, Any]:
    """Options of prepare_motion from texts, such as gaps "1,2,4"; names are checked there.

    Raises ValueError for a text that is no number, or not the whole numbers that gaps and width are.
    """
    options: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            if name == "gaps":
                options[name] = tuple(int(gap) for gap in (text or "").split(","))
            else:
                options[name] = int(text or "") if name == "width" else float(text or "")
        except ValueError:
            kind = {"gaps": "whole numbers a,b,c", "width": "a whole number"}.get(name, "a number")
            raise ValueError(f"{name} must be {kind}, but is {text!r}") from None
    return options


def _as_photographed(view: View, score: Tensor) -> Tensor:
    """A score [H, W] at the camera's size on the grid of the image file."""
    return score if view.lens is None else distort(score[..., None], view.camera, view.lens)[..., 0]


def _row(view: View, score: Tensor, shape: torch.Size | None) -> list[Tensor]:
    """The image, and the image with what moves in red and the rest darkened; [h, w, 3] of `shape`, if given."""
    width = min(view.camera.width, _SHEET_WIDTH)
    size = (round(view.camera.height * width / view.camera.width), width) if shape is None else shape[:2]
    stacked = torch.cat([view.image(), score[..., None]], dim=-1).permute(2, 0, 1)[None]
    small = interpolate(stacked, tuple(size), mode="area")[0].permute(1, 2, 0)
    image, moves = small[..., :3], small[..., 3:]
    return [image, torch.lerp(0.4 * image, 0.5 * image + torch.tensor([0.5, 0.0, 0.0]), moves)]

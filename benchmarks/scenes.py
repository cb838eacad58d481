"""The scenes that are timed, besides the package's synthetic cube: a flat one of known density, and trained splats."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from gsfields.bench.scene import Scene, float_tensor, orbited, synthetic
from gsfields.gaussians import SH_C0

SHARED = os.environ.get("GSFIELDS_SHARED") or Path(__file__).resolve().parents[2] / "shared"
DATA = Path(SHARED) / "data"
SPLATS = ("robot_125k", "logo_307k", "chair_112k")


class SceneMissing(Exception):
    """The data of a scene are not on this machine; the message says which file was looked for."""


def load(name: str, count: int, size: int) -> Scene:
    """A scene of `count` Gaussians at size x size pixels: "prototype", "synthetic" or one of SPLATS.

    Raises SceneMissing where the file of a trained splat is absent, ValueError for an unknown name.
    """
    if name == "prototype":
        return prototype(count, size)
    if name == "synthetic":
        return synthetic(count, size)
    if name in SPLATS:
        return splat(name, count, size)
    raise ValueError(f"name must be prototype, synthetic or one of {', '.join(SPLATS)}, but is {name!r}")


def available(names: Sequence[str], size: int, device: torch.device) -> Iterator[Scene]:
    """The prototype scene as the targets have it, and trained splats whole; prints a line for each that is missing."""
    for name in names:
        try:
            yield load(name, 50_000 if name == "prototype" else 1 << 30, size).to(device)
        except SceneMissing as missing:
            print(missing)


def prototype(count: int = 50_000, size: int = 512, seed: int = 0) -> Scene:
    """The scene that the targets are stated for: ellipses of median sigma 2 px strewn evenly over the image.

    At 512 x 512 with 50,000 Gaussians the bounding boxes of alpha >= 1/255 touch about 255,000 tiles, and a
    pixel blends about 43 Gaussians; the two spreads below make it so. Our lists are tighter than boxes, hence
    shorter. At other sizes the density per pixel stays the same only if count grows with size squared.

    The Gaussians are flat along the line of sight and scaled with their depth, so that projecting them gives
    the ellipses that were drawn, and the same scene serves projection, binning and blending.
    """
    rng = np.random.default_rng(seed)
    focal = float(size)
    pixels = rng.uniform(0, size, (count, 2))
    depth = rng.uniform(2, 10, count)
    size_of, stretch = rng.normal(0, SIZE_SPREAD, count), rng.normal(0, STRETCH_SPREAD, count)
    sigma = 2 * np.exp(np.column_stack([size_of + stretch, size_of - stretch]))
    angle = rng.uniform(0, math.pi, count)
    zero = np.zeros(count)
    return Scene(
        name="prototype",
        means=float_tensor(np.column_stack([(pixels - size / 2) * (depth / focal)[:, None], depth])),
        quats=float_tensor(np.column_stack([np.cos(angle / 2), zero, zero, np.sin(angle / 2)])),
        scales=float_tensor(np.column_stack([sigma, np.full(count, 0.1)]) * (depth / focal)[:, None]),
        opacities=float_tensor(rng.uniform(0.05, 0.95, count)),
        values=float_tensor(rng.uniform(0, 1, (count, 3))),
        viewmats=torch.eye(4)[None],
        Ks=torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]]),
        width=size,
        height=size,
    )


SIZE_SPREAD = 0.55  # standard deviation of the log of the geometric mean of an ellipse's two sigmas
STRETCH_SPREAD = 0.64  # and of half the log of their ratio


def splat(name: str, count: int, size: int, seed: int = 0) -> Scene:
    """A random subset of a trained splat, in its colours of SH degree 0."""
    path = DATA / "splats" / f"{name}.npz"
    if not path.is_file():
        raise SceneMissing(f"{name}: no ../shared/data/splats/{path.name}, so its rows are left out")
    with np.load(path) as file:
        total = file["means"].shape[0]
        chosen = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
        scene = Scene(
            name=name,
            means=float_tensor(file["means"][chosen]),
            quats=float_tensor(file["quats"][chosen]),
            scales=float_tensor(np.exp(file["log_scales"][chosen].astype(np.float32))),
            opacities=float_tensor(file["opacities"][chosen]),
            values=float_tensor(np.maximum(0.5 + SH_C0 * file["sh"][chosen][:, 0].astype(np.float32), 0)),
            viewmats=torch.empty(0, 4, 4),
            Ks=torch.empty(0, 3, 3),
            width=size,
            height=size,
        )
    return orbited(scene)

"""A small rendered video with exact labels: two textured planes that stand still, and a textured square that moves."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from gsfields.camera import Camera
from gsfields.data.dataset import Dataset, View

WIDTH, HEIGHT, FOCAL = 192, 144, 150.0


def texture(seed: int, size: int = 512) -> np.ndarray:
    """float32 [size, size, 3] in [0, 1]: colour noise at several scales."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size, size, 3), np.float32)
    for cells in (16, 48, 128):
        noise = rng.uniform(size=(cells, cells, 3)).astype(np.float32)
        total += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return (total / 3).clip(0, 1)


def cameras(count: int) -> list[Camera]:
    """A camera that sways sideways, up and forwards while it turns a little."""
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    t = np.arange(count) / 4
    eyes = np.stack([0.25 * np.sin(t), 0.1 * np.cos(1.3 * t), 0.1 * np.sin(0.7 * t)], axis=1)
    targets = np.stack([0.3 * np.sin(0.6 * t), 0.1 * np.sin(t), np.full(count, 3.0)], axis=1)
    return [
        Camera.look_at(eye.tolist(), to.tolist(), [0.0, -1.0, 0.0], width=WIDTH, height=HEIGHT, K=K)
        for eye, to in zip(eyes, targets)
    ]


def render(camera: Camera, patch: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """(image [H, W, 3], moving [H, W] bool): a wall, a square 1 m before it and, if given, one at `patch` (x, y)."""
    c2w = camera.c2w.double().numpy()
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    rays = (
        np.stack([(x - WIDTH / 2) / FOCAL, (y - HEIGHT / 2) / FOCAL, np.ones_like(x)], axis=-1)
        @ c2w[:3, :3].T
    )
    image, moving = np.zeros((HEIGHT, WIDTH, 3), np.float32), np.zeros((HEIGHT, WIDTH), bool)
    squares = [(1, 4.0, (0.0, 0.0), 4.0), (2, 3.0, (-0.8, 0.2), 0.5)]
    if patch is not None:
        squares.append((3, 2.5, patch, 0.35))
    for seed, depth, (left, top), size in squares:
        hit = c2w[:3, 3] + rays * ((depth - c2w[2, 3]) / rays[..., 2])[..., None]
        u, v = (hit[..., 0] - left) / size, (hit[..., 1] - top) / size
        inside = (abs(u) < 1) & (abs(v) < 1)
        spot = ((np.stack([u, v]) + 1) * 255.5).astype(np.float32)
        color = cv2.remap(texture(seed), spot[0], spot[1], cv2.INTER_LINEAR)
        image[inside], moving[inside] = color[inside], seed == 3
    return image, moving


def make_video(count: int = 10, *, moving: bool = True) -> tuple[Dataset, np.ndarray]:
    """(dataset, labels bool [count, H, W])."""
    views, labels = [], []
    for i, camera in enumerate(cameras(count)):
        patch = (0.5 - 0.09 * i, 0.15 * np.sin(i)) if moving else None
        image, label = render(camera, patch)
        views.append(View.from_image(f"{i:03d}.png", camera, torch.from_numpy(image), time=float(i)))
        labels.append(label)
    return Dataset(views, list(range(count)), []), np.stack(labels)


def save_video(root: Path, dataset: Dataset, **header: float) -> Path:
    """The dataset as a folder with transforms.json; `header` adds lens parameters to it."""
    (root / "images").mkdir(parents=True)
    frames = []
    for view in dataset.views:
        Image.fromarray((view.image().numpy() * 255).round().astype(np.uint8)).save(
            root / "images" / view.name
        )
        pose = view.camera.c2w.double().numpy() * [1, -1, -1, 1]  # OpenGL axes
        frames.append(
            {"file_path": f"images/{view.name}", "time": view.time, "transform_matrix": pose.tolist()}
        )
    lens = {
        "w": WIDTH,
        "h": HEIGHT,
        "fl_x": FOCAL,
        "fl_y": FOCAL,
        "cx": WIDTH / 2,
        "cy": HEIGHT / 2,
        **header,
    }
    (root / "transforms.json").write_text(json.dumps({"camera_model": "OPENCV", **lens, "frames": frames}))
    return root

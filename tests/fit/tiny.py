"""A scene small enough to fit in a test: a coloured ball on transparent ground, in Blender's format."""

import json
import math
from pathlib import Path

import torch
from PIL import Image

from gsfields.camera import Camera

FOV_Y = 40.0


def camera(i: int, size: int) -> Camera:
    """A view of the origin from distance 4; successive i go around by the golden angle, up and down."""
    angle, height = 2.4 * i, math.sin(1.7 * i)
    eye = [4 * math.cos(angle), 4 * math.sin(angle), 2 * height]
    return Camera.look_at(eye, [0, 0, 0], [0, 0, 1], fov_y_degrees=FOV_Y, width=size, height=size)


def picture(view: Camera) -> torch.Tensor:
    """RGBA [H, W, 4] of a ball of radius 1 whose colour is its normal, 4 x 4 samples a pixel."""
    n = 4 * view.width
    u = (torch.arange(n) + 0.5) / 4
    x, y = torch.meshgrid(u, u, indexing="xy")
    rays = torch.stack(
        ((x - view.K[0, 2]) / view.K[0, 0], (y - view.K[1, 2]) / view.K[1, 1], torch.ones(n, n)), -1
    )
    rays = torch.nn.functional.normalize(rays, dim=-1) @ view.c2w[:3, :3].T
    eye = view.position
    b = rays @ eye
    under_root = b**2 - (eye @ eye - 1)
    hit = under_root > 0
    normal = eye + (-b - under_root.clamp(min=0).sqrt())[..., None] * rays
    rgba = torch.cat((0.5 + 0.5 * normal, torch.ones(n, n, 1)), dim=-1) * hit[..., None]
    rgba = torch.nn.functional.avg_pool2d(rgba.permute(2, 0, 1)[None], 4)[0].permute(1, 2, 0)
    rgba[..., :3] /= rgba[..., 3:].clamp(min=1e-6)  # straight, not premultiplied
    return rgba.clamp(0, 1)


def write_scene(folder: Path, *, train: int = 8, test: int = 2, size: int = 24) -> Path:
    """Write transforms_{train,test}.json and PNGs; returns the folder."""
    for split, indices in {"train": range(train), "test": range(train, train + test)}.items():
        (folder / split).mkdir(parents=True)
        frames = []
        for i in indices:
            view = camera(i, size)
            name = f"{split}/r_{i}"
            Image.fromarray((picture(view) * 255).round().byte().numpy()).save(folder / f"{name}.png")
            c2w = view.c2w.clone()
            c2w[:, 1:3] *= -1  # OpenCV axes to OpenGL
            frames.append({"file_path": f"./{name}", "transform_matrix": c2w.tolist()})
        content = {"camera_angle_x": math.radians(FOV_Y), "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content))
    return folder

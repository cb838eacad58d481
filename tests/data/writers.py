"""One small rig of cameras and its photos, written in every format that can be loaded."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from gsfields.camera import Camera
from gsfields.data.lens import CAMERA_MODELS

WIDTH, HEIGHT, FOCAL = 48, 32, 40.0
GL = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass
class Rig:
    names: list[str]
    viewmats: np.ndarray  # [N, 4, 4]
    images: list[np.ndarray]  # uint8 [H, W, 3]
    points: np.ndarray  # [M, 3]
    colors: np.ndarray  # [M, 3] uint8
    model: str = "PINHOLE"
    parameters: tuple[float, ...] = (FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2)
    tracks: list[int] = field(default_factory=list)  # length of each point's track

    @property
    def c2w(self) -> np.ndarray:
        return np.linalg.inv(self.viewmats)


def make_rig(count: int = 9, seed: int = 0) -> Rig:
    rng = np.random.default_rng(seed)
    viewmats, images = [], []
    for i in range(count):
        angle = 2 * np.pi * i / count
        eye = [3 * np.cos(angle), 3 * np.sin(angle), 1 + 0.2 * i]
        camera = Camera.look_at(
            eye, [0.0, 0.1, 0.0], [0.0, 0.0, 1.0], width=WIDTH, height=HEIGHT, fov_y_degrees=50
        )
        rotation = camera.viewmat.double().numpy()
        u, _, vt = np.linalg.svd(rotation[:3, :3])
        rotation[:3, :3] = u @ vt
        viewmats.append(rotation)
        images.append(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    points = rng.normal(size=(20, 3))
    return Rig(
        [f"photo_{i:03d}.png" for i in range(count)],
        np.array(viewmats),
        images,
        points,
        rng.integers(0, 256, (20, 3), dtype=np.uint8),
        tracks=[int(n) for n in rng.integers(0, 5, 20)],
    )


def write_images(folder: Path, rig: Rig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(rig.names, rig.images):
        Image.fromarray(image).save(folder / name)


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """wxyz, by scipy rather than by the code under test."""
    return np.roll(Rotation.from_matrix(rotation).as_quat(), 1)


def write_colmap_binary(root: Path, rig: Rig, folder: str = "sparse/0") -> None:
    write_images(root / "images", rig)
    model = root / folder
    model.mkdir(parents=True, exist_ok=True)
    camera = struct.pack("<QIiQQ", 1, 7, CAMERA_MODELS[rig.model][0], WIDTH, HEIGHT)
    (model / "cameras.bin").write_bytes(camera + struct.pack(f"<{len(rig.parameters)}d", *rig.parameters))
    with (model / "images.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(rig.names)))
        for i, (name, viewmat) in reversed(list(enumerate(zip(rig.names, rig.viewmats)))):
            file.write(struct.pack("<I7dI", i + 1, *quaternion(viewmat[:3, :3]), *viewmat[:3, 3], 7))
            file.write(name.encode() + b"\0" + struct.pack("<Q", i))
            for k in range(i):
                file.write(struct.pack("<ddq", 1.5 * k, 2.5 * k, k - 1))
    with (model / "points3D.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(rig.points)))
        for i, (point, color, length) in enumerate(zip(rig.points, rig.colors, rig.tracks)):
            file.write(struct.pack("<Q3d3BdQ", i, *point, *map(int, color), 0.5 * i, length))
            file.write(struct.pack(f"<{2 * length}i", *range(2 * length)))


def write_colmap_text(root: Path, rig: Rig, folder: str = "sparse/0") -> None:
    write_images(root / "images", rig)
    model = root / folder
    model.mkdir(parents=True, exist_ok=True)
    numbers = " ".join(map(repr, map(float, rig.parameters)))
    header = "# Camera list with one line of data per camera:\n"
    (model / "cameras.txt").write_text(f"{header}7 {rig.model} {WIDTH} {HEIGHT} {numbers}\n")
    lines = ["# Image list with two lines of data per image:"]
    for i, (name, viewmat) in enumerate(zip(rig.names, rig.viewmats)):
        pose = " ".join(repr(float(v)) for v in (*quaternion(viewmat[:3, :3]), *viewmat[:3, 3]))
        lines.append(f"{i + 1} {pose} 7 {name}")
        lines.append(
            " ".join(f"{1.5 * k} {2.5 * k} {k - 1}" for k in range(i))
        )  # none, an empty line, for the first
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    lines = ["# 3D point list with one line of data per point:"]
    for i, (point, color, length) in enumerate(zip(rig.points, rig.colors, rig.tracks)):
        track = " ".join(map(str, range(2 * length)))
        lines.append(
            f"{i} {' '.join(repr(float(v)) for v in point)} {' '.join(map(str, color))} {0.5 * i} {track}"
        )
    (model / "points3D.txt").write_text("\n".join(lines) + "\n")


def nerfstudio_json(rig: Rig) -> dict:
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": (c2w @ GL).tolist()}
        for name, c2w in zip(rig.names, rig.c2w)
    ]
    intrinsics = {"w": WIDTH, "h": HEIGHT, "fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    return {"camera_model": "OPENCV", **intrinsics, "frames": frames}


def write_nerfstudio(root: Path, rig: Rig) -> None:
    write_images(root / "images", rig)
    (root / "points.ply").write_text(
        f"ply\nformat ascii 1.0\nelement vertex {len(rig.points)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
        + "".join(
            f"{' '.join(map(repr, map(float, p)))} {' '.join(map(str, c))}\n"
            for p, c in zip(rig.points, rig.colors)
        )
    )
    (root / "transforms.json").write_text(json.dumps({**nerfstudio_json(rig), "ply_file_path": "points.ply"}))


def write_instant_ngp(root: Path, rig: Rig) -> None:
    """Angles beside focal lengths, ./ before paths, keys for the other program, frames in any order."""
    write_images(root / "images", rig)
    document = nerfstudio_json(rig)
    del document["camera_model"]
    document |= {
        "camera_angle_x": 1.0,
        "aabb_scale": 16,
        "scale": 0.3,
        "offset": [0.5, 0.5, 0.5],
        "k1": 0,
        "is_fisheye": False,
    }
    frames = document["frames"]
    document["frames"] = [
        {
            **f,
            "file_path": "./" + f["file_path"],
            "sharpness": 12.5,
            "transform_matrix": f["transform_matrix"][:3],
        }
        for f in frames[::-1]
    ]
    (root / "transforms.json").write_text(json.dumps(document))


def write_blender(root: Path, rig: Rig, held_out: int = 3) -> None:
    """The first `held_out` photos in test/, the others in train/; one angle, no sizes, no suffixes."""
    angle = 2 * np.arctan(0.5 * WIDTH / FOCAL)
    for part, chosen in (("train", range(held_out, len(rig.names))), ("test", range(held_out))):
        some = Rig(
            [rig.names[i] for i in chosen],
            rig.viewmats[list(chosen)],
            [rig.images[i] for i in chosen],
            rig.points,
            rig.colors,
        )
        write_images(root / part, some)
        frames = [
            {"file_path": f"./{part}/{name.removesuffix('.png')}", "transform_matrix": (c2w @ GL).tolist()}
            for name, c2w in zip(some.names, some.c2w)
        ]
        (root / f"transforms_{part}.json").write_text(
            json.dumps({"camera_angle_x": float(angle), "frames": frames})
        )


def llff_table(rig: Rig) -> np.ndarray:
    rows = []
    for c2w in rig.c2w:
        right, down, forward, center = c2w[:3].T
        matrix = np.stack([down, right, -forward, center, [HEIGHT, WIDTH, FOCAL]], axis=1)
        rows.append([*matrix.ravel(), 0.5, 9.0])
    return np.array(rows)


def write_llff(root: Path, rig: Rig) -> None:
    write_images(root / "images", rig)
    np.save(root / "poses_bounds.npy", llff_table(rig))


WRITERS: dict[str, Callable[[Path, Rig], None]] = {
    "colmap_binary": write_colmap_binary,
    "colmap_text": write_colmap_text,
    "nerfstudio": write_nerfstudio,
    "instant_ngp": write_instant_ngp,
    "blender": write_blender,
    "llff": write_llff,
}

"""Generated egocentric videos as folders, in the layout of EPIC Fields and its UDOS benchmark or with a
transforms.json.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from gsfields.data.egocentric import (
    BODY,
    DYNAMIC,
    SEMISTATIC,
    EgocentricConfig,
    EgocentricFrame,
    EgocentricSequence,
    make_sequence,
)
from gsfields.data.generated import chosen_options, made_in
from gsfields.data.poses import OPENGL_AXES, inverse
from gsfields.data.segmenter import MotionSegmenter, SegmenterConfig
from gsfields.data.solids import Array
from gsfields.data.synthetic import save_points
from gsfields.files import written_whole

LAYOUTS = ("epic_fields", "transforms")
MOTIONS = ("dynamic", "semistatic", "dynamic_semistatic")


def save_sequence(
    folder: str | Path,
    sequence: EgocentricSequence,
    segmenter: SegmenterConfig | None = None,
    *,
    layout: str = "epic_fields",
    frame_step: int = 7,
    workers: int = 1,
) -> None:
    """Render a sequence into a new folder, whole or not at all, frame by frame.

    layout "epic_fields": `S<seed>_01.json` (camera, images, points), frames/frame_%010d.jpg, motion_masks/,
    annotations/test_{dynamic,semistatic,dynamic_semistatic}/<video>/, split/{train,val,test}.json. Frame
    numbers grow by `frame_step`. layout "transforms": images/, transforms.json with times from 0 to 1,
    points.ply, motion_masks/, annotations/{dynamic,semistatic,dynamic_semistatic}/. Both: instances/ (16
    bit), objects.json (what the ids name). Without a segmenter there are no motion_masks.

    Annotations are 8 bit: dynamic has 0 and 1; semistatic 0, 1 and 2 (ambiguous); dynamic_semistatic 0, 1, 2
    and 3 (a part of the body).

    Raises ValueError for another layout or a frame_step below 1, FileExistsError if there is something at
    `folder`, FileNotFoundError if its parent folder does not exist.
    """
    folder = Path(folder)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, but is {layout!r}")
    if not isinstance(frame_step, int) or frame_step < 1:
        raise ValueError(f"frame_step must be a whole number, at least 1, but is {frame_step!r}")
    if folder.exists():
        raise FileExistsError(f"save_sequence writes a new folder, but {folder} exists")
    epic = layout == "epic_fields"
    video = f"S{sequence.config.seed:02d}_01"
    stems = [f"frame_{1 + i * (frame_step if epic else 1):010d}" for i in range(len(sequence))]
    annotations = {
        motion: f"annotations/test_{motion}/{video}" if epic else f"annotations/{motion}"
        for motion in MOTIONS
    }
    images = "frames" if epic else "images"
    eyes = MotionSegmenter(sequence, segmenter) if segmenter is not None else None
    with written_whole(folder) as new:
        for name in (images, "instances", *annotations.values(), *(["motion_masks"] if eyes else [])):
            (new / name).mkdir(parents=True)
        for stem, frame in zip(stems, sequence.stream(workers), strict=True):
            Image.fromarray((frame.image * 255).round().astype(np.uint8)).save(
                new / images / f"{stem}.jpg", quality=95, subsampling=0
            )
            Image.fromarray(frame.instances).save(new / "instances" / f"{stem}.png")
            for motion, labels in annotation_images(frame).items():
                Image.fromarray(labels).save(new / annotations[motion] / f"{stem}.png")
            if eyes:
                scores = (eyes.scores(frame) * 255).round().astype(np.uint8)
                Image.fromarray(scores).save(new / "motion_masks" / f"{stem}.png")
        (new / "objects.json").write_text(json.dumps(sequence.names, indent=1))
        if epic:
            _write_epic_fields(new, video, stems, sequence)
        else:
            _write_transforms(new, stems, sequence)


def prepare_egocentric(
    folder: str | Path, *, overwrite: bool = False, layout: str = "transforms", **options: object
) -> str:
    """Make a video with exact labels and the masks of the simulated segmenter in `folder`; says what is in it.

    options: fields of EgocentricConfig (seed, frames, width, height, speed, …) and of SegmenterConfig (its
    seed apart), as values or as texts. With `overwrite` an earlier generated video in `folder` is replaced.

    Raises ValueError for an option that is none, or not allowed, and where `folder` holds something else.
    """
    folder = Path(folder)
    kinds = (EgocentricConfig, SegmenterConfig)
    (config, segmenter), _ = chosen_options("a generated video", kinds, options, ("layout",))
    if not isinstance(config.revisits, bool):
        raise ValueError(f"revisits must be true or false, but is {config.revisits!r}")
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, but is {layout!r}")
    with made_in(folder, "a generated video", _is_generated, overwrite=overwrite) as new:
        save_sequence(new, make_sequence(config), segmenter, layout=layout, workers=2)
    return _summary(folder, config)


def _is_generated(folder: Path) -> bool:
    return (folder / "objects.json").is_file() and (folder / "instances").is_dir()


def _summary(folder: Path, config: EgocentricConfig) -> str:
    from gsfields.evaluate.udos import evaluate_motion_masks  # here: evaluating needs this package's loaders
    from gsfields.evaluate.udos_annotations import Annotations

    annotations = Annotations.open(folder)
    shares = {
        motion: np.mean([(annotations.read(motion, stem) == 1).mean() for stem in annotations.stems()])
        for motion in ("semistatic", "dynamic")
    }
    ap = evaluate_motion_masks(folder / "motion_masks", folder).mean("dynamic")
    found = "there is nothing dynamic to find" if math.isnan(ap) else f"Dyn AP of the 2D masks {ap:.1f}"
    return (
        f"{folder}: {config.frames} frames of {config.width}x{config.height}, "
        f"{shares['semistatic']:.1%} of the pixels semi-static, {shares['dynamic']:.1%} dynamic; {found}"
    )


def annotation_images(frame: EgocentricFrame) -> dict[str, Array]:
    """The benchmark's three label images uint8 [H, W] of a frame, by their motion."""
    semistatic = (frame.labels == SEMISTATIC).astype(np.uint8)
    both = np.where(frame.labels == BODY, 3, (frame.labels >= SEMISTATIC).astype(np.uint8)).astype(np.uint8)
    semistatic[frame.ambiguous] = 2
    both[frame.ambiguous] = 2
    return {
        "dynamic": (frame.labels >= DYNAMIC).astype(np.uint8),
        "semistatic": semistatic,
        "dynamic_semistatic": both,
    }


def _write_epic_fields(folder: Path, video: str, stems: list[str], sequence: EgocentricSequence) -> None:
    K, config = sequence.K, sequence.config
    points, colors = sequence.points()
    names = [f"{stem}.jpg" for stem in stems]
    description = {
        "camera": {
            "id": 1,
            "model": "OPENCV",
            "width": config.width,
            "height": config.height,
            "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2], 0.0, 0.0, 0.0, 0.0],
        },
        "images": {
            name: [
                *Rotation.from_matrix(w2c[:3, :3]).as_quat(scalar_first=True).tolist(),
                *w2c[:3, 3].tolist(),
            ]
            for name, w2c in zip(names, map(inverse, sequence.poses), strict=True)
        },
        "points": [
            [*map(float, point), *map(int, (color * 255).round())]
            for point, color in zip(points, colors, strict=True)
        ],
    }
    (folder / f"{video}.json").write_text(json.dumps(description))
    (folder / "split").mkdir()
    for split in ("train", "val", "test"):
        listed = {
            "within_action": names if split == "test" else [],
            "outside_action": [],
            "outside_action_easy": [],
        }
        (folder / "split" / f"{split}.json").write_text(json.dumps({video: listed}, indent=1))


def _write_transforms(folder: Path, stems: list[str], sequence: EgocentricSequence) -> None:
    K, config = sequence.K, sequence.config
    header = {
        "camera_model": "OPENCV",
        "w": config.width,
        "h": config.height,
        "fl_x": float(K[0, 0]),
        "fl_y": float(K[1, 1]),
        "cx": float(K[0, 2]),
        "cy": float(K[1, 2]),
    }
    points, colors = sequence.points()
    if len(points):
        header["ply_file_path"] = "points.ply"
        save_points(folder / "points.ply", torch.from_numpy(points), torch.from_numpy(colors))
    frames = [
        {
            "file_path": f"images/{stem}.jpg",
            "time": index / max(len(stems) - 1, 1),
            "transform_matrix": (pose @ OPENGL_AXES).tolist(),
        }
        for index, (stem, pose) in enumerate(zip(stems, sequence.poses, strict=True))
    ]
    (folder / "transforms.json").write_text(json.dumps(header | {"frames": frames}, indent=1))

"""Generated messy rooms as folders, in the layout of the released Messy Rooms data set (Bhalgat et al.,
"Contrastive Lift", NeurIPS 2023), whose names are those of its 2D segmenter, Detic.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from gsfields.data.generated import chosen_options, made_in
from gsfields.data.messy_scene import SENSOR_MILLIMETRES, MessyConfig, MessyFrame, MessyScene
from gsfields.data.panoptic_segmenter import PanopticSegmenter, PanopticSegmenterConfig
from gsfields.data.poses import OPENGL_AXES
from gsfields.data.segments import Segments
from gsfields.files import written_whole

FOLDERS = ("color", "depth", "semantic", "instance")
SEGMENTER_FOLDERS = ("detic_semantic", "detic_instance", "detic_probabilities")


def save_messy(
    folder: str | Path,
    config: MessyConfig | None = None,
    segmenter: PanopticSegmenterConfig | None = None,
    *,
    jobs: int = 1,
) -> None:
    """Render a messy room into a new folder, whole or not at all, view by view, in `jobs` processes.

    color/*.png; instance/*.npy and semantic/*.npy (int32 [H, W], the truth: 0 is the room); detic_instance/,
    detic_semantic/ (int32) and detic_probabilities/*.npy (float32), what the simulated segmenter says;
    metadata.json with the normalised calibration and the cameras' poses (Blender's axes, quaternions wxyz) in
    the order of the stems, which are the views' numbers. Beyond the release: depth/*.npy (float32 [H, W],
    camera z in metres), and in metadata.json the objects and what the room was made from.

    The calibration is that of Kubric, the release's renderer, whose second row and third column are negative:
    readers take absolute values.

    Raises ValueError for jobs below 1, FileExistsError if there is something at `folder`, FileNotFoundError if
    its parent folder does not exist.
    """
    folder, config = Path(folder), config or MessyConfig()
    segmenter = segmenter or PanopticSegmenterConfig()
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise ValueError(f"jobs must be a whole number, at least 1, but is {jobs!r}")
    if folder.exists():
        raise FileExistsError(f"save_messy writes a new folder, but {folder} exists")
    with written_whole(folder) as new:
        for name in (*FOLDERS, *SEGMENTER_FOLDERS):
            (new / name).mkdir(parents=True)
        scene = MessyScene(config)
        metadata = _metadata(scene) | {"generator": {"scene": asdict(config), "segmenter": asdict(segmenter)}}
        (new / "metadata.json").write_text(json.dumps(metadata))
        jobs = min(jobs, len(scene))
        if jobs == 1:
            _write_views(new, config, segmenter, 0, 1)
        else:
            # A fresh process each: one that is forked inherits the locks of threads it does not have.
            with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
                parts = [pool.submit(_write_views, new, config, segmenter, i, jobs) for i in range(jobs)]
                for part in parts:
                    part.result()


def prepare_messy(folder: str | Path, *, overwrite: bool = False, **options: object) -> str:
    """Make a messy room with exact labels and those of the simulated segmenter in `folder`; says what is in it.

    options: fields of MessyConfig (seed, objects, views, width, height, …) and of PanopticSegmenterConfig, and
    `jobs`, as values or as texts. The segmenter's seed is the room's. With `overwrite` an earlier generated
    room in `folder` is replaced.

    Raises ValueError for an option that is none, or not allowed, and where `folder` holds something else.
    """
    folder = Path(folder)
    kinds = (MessyConfig, PanopticSegmenterConfig)
    (config, segmenter), others = chosen_options("a generated messy room", kinds, options, ("jobs",))
    with made_in(folder, "a generated messy room", _is_generated, overwrite=overwrite) as new:
        save_messy(new, config, segmenter, **others)
    return _summary(folder, config)


def _is_generated(folder: Path) -> bool:
    try:
        return "generator" in json.loads((folder / "metadata.json").read_text())
    except (OSError, ValueError):
        return False


def _metadata(scene: MessyScene) -> dict[str, Any]:
    """What metadata.json says of cameras and objects."""
    config, poses = scene.config, scene.poses @ OPENGL_AXES
    width, height = config.width, config.height
    fx, fy, cx, cy = (
        scene.K[0, 0] / width,
        scene.K[1, 1] / height,
        scene.K[0, 2] / width,
        scene.K[1, 2] / height,
    )
    return {
        "metadata": {
            "resolution": [width, height],
            "num_frames": len(scene),
            "num_instances": config.objects,
        },
        "camera": {
            "focal_length": config.focal_millimetres,
            "sensor_width": SENSOR_MILLIMETRES,
            "K": [[fx, 0.0, -cx], [0.0, -fy, -cy], [0.0, 0.0, -1.0]],
            "positions": poses[:, :3, 3].tolist(),
            "quaternions": Rotation.from_matrix(poses[:, :3, :3]).as_quat(scalar_first=True).tolist(),
        },
        "instances": [{"id": i, "name": name} for i, name in enumerate(scene.names) if i > 0],
    }


def _write_views(
    folder: Path, config: MessyConfig, segmenter: PanopticSegmenterConfig, first: int, step: int
) -> None:
    """Render and write views first, first + step, …: each process makes the scene for itself."""
    scene, eyes = MessyScene(config), PanopticSegmenter(segmenter, config.seed)
    for index in range(first, len(scene), step):
        frame = scene.frame(index)
        _write_view(folder, f"{index:05d}", frame, eyes.of(scene, frame))


def _write_view(folder: Path, stem: str, frame: MessyFrame, told: Segments) -> None:
    assert told.semantics is not None and told.confidence is not None
    Image.fromarray((frame.image * 255).round().astype(np.uint8)).save(folder / "color" / f"{stem}.png")
    arrays = {
        "depth": frame.depth,
        "semantic": frame.semantics.astype(np.int32),
        "instance": frame.instances.astype(np.int32),
        "detic_semantic": told.semantics.numpy(),
        "detic_instance": told.ids.numpy(),
        "detic_probabilities": told.confidence.numpy(),
    }
    for name, values in arrays.items():
        np.save(folder / name / f"{stem}.npy", values)


def _summary(folder: Path, config: MessyConfig) -> str:
    from gsfields.data.segments import open_segments, open_truth  # here: only the summary reads files
    from gsfields.evaluate.panoptic import PanopticCounts

    segments, truth = open_segments(folder), open_truth(folder)
    counts = PanopticCounts(truth.classes)
    for stem in truth.stems[:: max(1, len(truth.stems) // 50)]:
        told, true = segments.read(stem), truth.read(stem)
        assert told is not None and true is not None
        counts.add(told.semantics, told.ids, true.semantics, true.ids)  # type: ignore[arg-type]
    return (
        f"{folder}: {config.view_count} views of {config.width}x{config.height}, {config.objects} objects; "
        f"per-frame PQ of the 2D segments {100 * counts.scores().per_frame_pq:.1f}"
    )

"""One trial of the fusion benchmark in a process of its own: `python -m benchmarks.fusion_trial TRIAL`, TRIAL being
JSON as `Trial` has it; the answer is {"fit": scores, "refined": scores or null} as JSON.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import in_subprocess
from benchmarks.trials import kept
from gsfields import config as configuration
from gsfields.data.motion_masks import MaskFolder, read_mask
from gsfields.evaluate import udos
from gsfields.evaluate.udos_annotations import Annotations
from gsfields.files import to_json
from gsfields.fit import runs
from gsfields.fit.checkpoint import Checkpoint, read_metrics
from gsfields.fit.refine import RefineOptions, refine_run
from gsfields.fit.scene import open_dataset
from gsfields.fit.showing import evaluate_parts

FITTED = "fitted.json"  # in a run's folder: what it is a fit of, so that it is used again only for that


@dataclass(frozen=True)
class Trial:
    """A fit of a video, scored, and if asked for a refinement of it, scored too."""

    scene: str
    run: str  # kept, and not fitted again where it holds the fit of the same scene and configuration
    overrides: list[tuple[str, str]] = field(default_factory=list)  # of the recipe lmf
    frames: list[str] | None = None  # stems: refined, and those that scores are means over; None: all
    refine: dict[str, Any] | None = None  # RefineOptions; None: only the fit
    minutes: float | None = None  # fit as many steps as this allows
    threads: int = 1


def run(trial: Trial) -> dict[str, Any]:
    scene, folder = Path(trial.scene), Path(trial.run)
    fitted = fit(trial)
    answer: dict[str, Any] = {"fit": scored(folder, scene, trial.frames) | fitted, "refined": None}
    if trial.refine is not None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            copy = Path(temporary) / "run"
            shutil.copytree(folder, copy)
            names = trial.frames if trial.frames is not None else Annotations.open(scene).stems()
            before = time.process_time()
            done = refine_run(copy, names, RefineOptions(**trial.refine), progress=False)
            cpu_seconds = time.process_time() - before
            scores = scored(copy, scene, trial.frames, done.checkpoint)
            seconds = {
                "seconds": done.seconds,
                "seconds_per_frame": done.seconds / done.frames,
                "cpu_seconds_per_frame": cpu_seconds / done.frames,  # of all threads, files included
            }
            answer["refined"] = scores | seconds | {"frames": done.frames, "fitted": done.fitted}
    return answer


def fit(trial: Trial) -> dict[str, Any]:
    """Fit the trial's run, unless it is there; returns its steps, seconds and Gaussians per layer."""
    config = configuration.load("lmf")
    configuration.apply(config, trial.overrides)
    config.data.path = str(Path(trial.scene).resolve())
    config.output.checkpoint_every = 0
    identity = {"config": configuration.to_dict(config), "minutes": trial.minutes}

    def fitted() -> dict[str, Any]:
        if trial.minutes is not None:
            config.fit.steps = affordable_steps(config, Path(trial.run), trial.minutes)
            config.fit.max_minutes = trial.minutes
        before = time.process_time()
        outcome = runs.start(config, trial.run, overwrite=True, progress=False)
        cpu_seconds = time.process_time() - before
        checkpoint = Checkpoint.load(trial.run)
        return {
            "steps": outcome.step,
            "of_steps": checkpoint.config.fit.steps,
            "seconds": outcome.seconds,
            "cpu_seconds": cpu_seconds,
            "counts": getattr(checkpoint.scene, "counts", {}),
            "report": outcome.report,
        }

    return kept(Path(trial.run) / FITTED, identity, fitted)


def affordable_steps(config: configuration.Config, folder: Path, minutes: float, pilot: int = 300) -> int:
    """How many steps fit into that time, by a short run with the same phases that grows as often as a long one.

    What the slowest stretch takes more than the others is seeding, paid once. A fifth is left over: moving layers grow
    in long runs only.
    """
    short = configuration.from_dict(configuration.to_dict(config))
    short.fit.steps, short.output.log_every = pilot, 10
    short.densify.refine_every = max(1, pilot // 40)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        outcome = runs.start(short, temporary, progress=False)
        logged = [line for line in read_metrics(temporary) if line["kind"] == "train"]
    paces = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in itertools.pairwise(logged)]
    pace = statistics.fmean(sorted(paces)[:-1])
    once = max(outcome.seconds - pilot * pace, 0)
    return max(int(0.8 * (60 * minutes - once) / pace), pilot)


def scored(
    folder: Path, scene: Path, frames: Collection[str] | None, checkpoint: Path | None = None
) -> dict[str, Any]:
    """A run's masks by the UDOS protocol and its images by PSNR, dB, on `frames` (None: all annotated)."""
    annotations = annotated(scene, frames)
    layers = [masks_in(folder / "masks" / layer) for layer in ("dynamic", "semistatic")]
    loaded = Checkpoint.load(checkpoint or folder)
    images = evaluate_parts(loaded.scene, open_dataset(loaded.config.data), annotations, loaded.config)
    return compact(udos.evaluate_masks(annotations, *layers)) | {"psnr": images._asdict()}


def flat_scores(scene: Path, frames: Collection[str] | None = None) -> dict[str, Any]:
    """The 2D masks' own scores."""
    masks = masks_in(scene / "motion_masks")
    return compact(udos.evaluate_masks(annotated(scene, frames), masks, missing="zero"))


def compact(scores: udos.UdosScores) -> dict[str, Any]:
    """What the tables need: AP by column, percent, that of dynamic pixels frame by frame, and IoU."""
    return {
        "ap": {column: scores.mean(column) for column in scores.per_frame},
        "per_frame": scores.per_frame["dynamic"],
        "iou": 100 * scores.iou,
        "best_iou": 100 * scores.best_iou,
        "best_threshold": scores.best_threshold,
    }


def annotated(scene: Path, frames: Collection[str] | None) -> Annotations:
    """The annotations of a video, or those of some of its frames."""
    all_of_it = Annotations.open(scene)
    if frames is None:
        return all_of_it
    files = {m: {s: path for s, path in of.items() if s in frames} for m, of in all_of_it.files.items()}
    return replace(all_of_it, files=files)


def masks_in(folder: Path) -> udos.Masks:
    files = MaskFolder(folder)

    def read(stem: str) -> np.ndarray | None:
        path = files.find(stem)
        return None if path is None else read_mask(path)

    return read


def in_own_process(trial: Trial) -> dict[str, Any]:
    """What `run` answers. Raises RuntimeError with the last line of the complaint where it fails."""
    return in_subprocess("benchmarks.fusion_trial", asdict(trial), timeout=6 * 3600)


if __name__ == "__main__":
    asked = Trial(**json.loads(sys.argv[1]))
    torch.set_num_threads(asked.threads)
    print(to_json(run(asked)))

"""What the fusion benchmark runs: for each study its videos, its trials and how their scores are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks.fusion_real import HandVideo, RoomVideo
from benchmarks.fusion_scenes import Video
from benchmarks.fusion_trial import Trial, flat_scores
from gsfields.evaluate.udos_annotations import Annotations

FLAT = "2D masks"
FIT, REFINED = "-TR", "+TR"
WINDOWS = (0, 2, 5, 20)
FULL = "+PMF +NMF"
RAW = "scores as they are"  # both losses, without consensus: as in the paper
SWITCHES = {"-PMF -NMF": (0, 0), "+PMF -NMF": (1, 0), "-PMF +NMF": (0, 1), FULL: (1, 1)}
NERF, OURS = "NeuralDiff+LMF", "gsfields"  # the contenders of the race
BUDGETS = (0.125, 0.25, 0.5, 1.0)  # where the race is scored, in shares of its minutes
LONG_SEED, LONG_FRAMES, LONG_CHOSEN = 10, 1000, 50

# Options of the generator and of the simulated segmenter, by what they put to the test
DOUBTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as generated": ({}, {}),
    "slow motion (0.4)": ({"speed": 0.4}, {}),
    "fast motion (2)": ({"speed": 2.0}, {}),
    "motion blur (0.5)": ({"motion_blur": 0.5, "supersample": 3}, {}),
    "pose noise (0.3°, 5 mm)": ({"pose_noise_degrees": 0.3, "pose_noise_metres": 0.005}, {}),
    "2D errors independent": ({}, {"correlation": 0.0}),
    "2D errors for ever": ({}, {"correlation": 1.0}),
    "no revisits": ({"revisits": False}, {}),
}


class AnyVideo(Protocol):
    """A video that a study can make and find again."""

    @property
    def name(self) -> str: ...

    def folder(self, scenes: Path) -> Path: ...

    def make(self, scenes: Path, jobs: int = 1) -> Path: ...


@dataclass(frozen=True)
class Settings:
    """How much of a study is run, and where its files are."""

    seeds: tuple[int, ...]
    frames: int
    width: int
    height: int
    overrides: tuple[tuple[str, str], ...]  # of the recipe lmf
    visits: int  # of a refinement
    window: int  # of the long video's
    every: int  # of the frames with something dynamic, this one in so many is refined in table3
    minutes: float  # for the fit of the long video
    mask_free: bool  # table5: also a fit that never sees a mask
    jobs: int
    scenes: Path
    runs: Path

    def video(self, seed: int, options: dict[str, Any] | None = None, **segmenter: Any) -> Video:
        return Video(seed, self.frames, self.width, self.height, options or {}, segmenter)

    def trial(self, video: AnyVideo, name: str = "full", **fields: Any) -> Trial:
        """A trial of the lmf recipe, whose run's folder is shared by all studies."""
        overrides = [*self.overrides, *fields.pop("overrides", [])]
        run = self.runs / video.name / name
        return Trial(str(video.folder(self.scenes)), str(run), overrides, **fields)

    def refinement(self, window: int = 0) -> dict[str, Any]:
        return {"window": window, "visits": self.visits}


@dataclass(frozen=True)
class Job:
    """A trial, and the names its scores get: of the answer's "fit", its "refined", or both."""

    trial: Trial
    names: dict[str, str]


Stages = list[list[Job]]  # the jobs of a stage may run side by side; a stage uses the runs of those before


@dataclass(frozen=True)
class Study:
    """Its videos by the prefix of their rows, and what is run once these exist."""

    videos: Callable[[Settings], Mapping[str, AnyVideo]]
    stages: Callable[[Settings], Stages]


def row_name(prefix: object, *parts: str) -> str:
    return "/".join([str(prefix), *parts])


def stop(contender: str, minutes: float, *, refined: bool = False) -> str:
    """The row of a contender of the race after so many minutes."""
    return row_name(contender, f"{minutes:g} min", *([REFINED] if refined else []))


def _seeds(s: Settings) -> dict[str, Video]:
    return {str(seed): s.video(seed) for seed in s.seeds}


def _table5(s: Settings) -> Stages:
    jobs = []
    for prefix, video in _seeds(s).items():
        for variant, (pmf, nmf) in SWITCHES.items():
            off = [(name, "0") for name, on in (("pmf", pmf), ("nmf", nmf)) if not on]
            folder = "full" if not off else "-".join(f"no-{name}" for name, _ in off)
            trial = s.trial(video, folder, overrides=off, refine=s.refinement())
            names = {"fit": row_name(prefix, variant, FIT), "refined": row_name(prefix, variant, REFINED)}
            jobs.append(Job(trial, names))
        raw = s.trial(video, "raw", overrides=[("consensus", "false")], refine=s.refinement())
        jobs.append(Job(raw, {"fit": row_name(prefix, RAW, FIT), "refined": row_name(prefix, RAW, REFINED)}))
        if s.mask_free:
            trial = s.trial(video, "mask-free", overrides=[("pmf", "0"), ("nmf", "0"), ("from_mask", "0")])
            blind = without_masks(video.folder(s.scenes))
            jobs.append(Job(replace(trial, scene=str(blind)), {"fit": row_name(prefix, "no masks", FIT)}))
    return [jobs]


def _table3(s: Settings) -> Stages:
    fits, refinements = [], []
    for prefix, video in _seeds(s).items():
        frames = moving_frames(video.folder(s.scenes))[:: s.every]
        fits.append(Job(s.trial(video, frames=frames), {"fit": row_name(prefix, FIT)}))
        for window in WINDOWS:
            trial = s.trial(video, frames=frames, refine=s.refinement(window))
            refinements.append(Job(trial, {"refined": row_name(prefix, f"N={window}")}))
    return [fits, refinements]


def _doubt_videos(s: Settings) -> dict[str, Video]:
    return {
        row_name(seed, doubt): s.video(seed, options, **segmenter)
        for doubt, (options, segmenter) in DOUBTS.items()
        for seed in s.seeds
    }


def _doubts(s: Settings) -> Stages:
    return [[Job(s.trial(v), {"fit": row_name(prefix, FIT)}) for prefix, v in _doubt_videos(s).items()]]


def _long_video(s: Settings) -> dict[str, Video]:
    return {str(LONG_SEED): Video(LONG_SEED, s.frames, s.width, s.height)}


def _long(s: Settings) -> Stages:
    (video,) = _long_video(s).values()
    frames = spread(moving_frames(video.folder(s.scenes)), LONG_CHOSEN)
    trial = s.trial(
        video, "long", frames=frames, refine=s.refinement(s.window), minutes=s.minutes, threads=s.jobs
    )
    names = {"fit": row_name(LONG_SEED, FIT), "refined": row_name(LONG_SEED, REFINED)}
    return [[Job(trial, names)]]


def real_videos(s: Settings) -> dict[str, AnyVideo]:
    videos: list[AnyVideo] = [HandVideo()]
    videos += [RoomVideo(seed, back) for back in (False, True) for seed in s.seeds]
    return {video.name: video for video in videos}


def _real(s: Settings) -> Stages:
    jobs = []
    for name, video in real_videos(s).items():
        for prefix, overrides in ((name, []), (row_name(name, RAW), [("consensus", "false")])):
            trial = s.trial(
                video, "-".join(prefix.split("/")[1:]) or "full", overrides=overrides, refine=s.refinement()
            )
            jobs.append(Job(trial, {"fit": row_name(prefix, FIT), "refined": row_name(prefix, REFINED)}))
    return [jobs]


STUDIES = {
    "table5": Study(_seeds, _table5),
    "table3": Study(_seeds, _table3),
    "doubts": Study(_doubt_videos, _doubts),
    "long": Study(_long_video, _long),
    "real": Study(real_videos, _real),
}


# ---------------------------------------------------------------------------------------------------- details


def moving_frames(scene: Path) -> list[str]:
    """Stems of the frames with a dynamic pixel: those that Dyn AP is defined on."""
    annotations = Annotations.open(scene)
    return [stem for stem in annotations.stems() if (annotations.read("dynamic", stem) == 1).any()]


def spread(items: list[str], count: int) -> list[str]:
    """`count` of them, evenly spaced; all where there are fewer."""
    if len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]


def flat_row(stages: Stages, s: Settings, video: AnyVideo) -> dict[str, Any]:
    """The 2D masks' scores, on the frames that the study's trials of that video are scored on."""
    folder = video.folder(s.scenes)
    chosen = [job.trial.frames for stage in stages for job in stage if job.trial.scene == str(folder)]
    return flat_scores(folder, chosen[0] if chosen else None)


def without_masks(scene: Path) -> Path:
    """The same video without motion_masks: a folder of links beside it."""
    blind = scene.with_name(scene.name + "-no-masks")
    if not blind.exists():
        blind.mkdir()
        for path in scene.resolve().iterdir():
            if path.name != "motion_masks":
                (blind / path.name).symlink_to(path)
    return blind

"""One trial of the language benchmark in a process of its own: `python -m benchmarks.language_trial TRIAL`, which is
JSON as `Trial` has it; the answer is {row: scores} as JSON.

Geometry is fitted once for a scene and kept. Seconds are processor time of one thread.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.baselines import langsplat, lerf
from benchmarks.measure import in_subprocess, threads
from benchmarks.trials import Row, kept
from gsfields import config as configuration
from gsfields.data.dataset import Dataset
from gsfields.data.language_features import FeatureSource, TextEmbeddings, open_features
from gsfields.data.openvocab_labels import OpenVocabLabels, QueryTruth, open_labels, view_of
from gsfields.evaluate.openvocab import OpenVocabScores
from gsfields.fields import relevancy as relevance
from gsfields.files import to_json
from gsfields.fit import runs
from gsfields.fit.checkpoint import Checkpoint
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.language import fitted
from gsfields.fit.language_files import protocol_for, relevancy_maps, where_shown
from gsfields.fit.language_labels import LanguageLabels
from gsfields.fit.language_runs import Language
from gsfields.fit.scene import open_dataset
from gsfields.fit.showing import evaluate_views
from gsfields.fit.texts import TEXTS, Texts
from gsfields.language_config import LanguageConfig

Overrides = list[tuple[str, str]]
SCALES = 8  # among which explicit selection chooses
PLAN_BYTES = 1 << 30
Maps = Callable[
    [int, list[str]], Tensor
]  # (view, prompts) -> relevancy [L, H, W, Q], on the grid of the truth


@dataclass(frozen=True)
class Trial:
    """A scene, and what is fitted to it."""

    kind: str  # of TRIALS
    scene: str
    run: str  # folder of its geometry
    fit: Overrides  # of the default recipe, for the geometry
    overrides: Overrides = field(default_factory=list)  # of LanguageConfig
    variants: dict[str, Overrides] = field(default_factory=lambda: {"": []})  # row -> of its section query
    scales: bool = False  # also rows for the choice among scales, by the map and by the truth
    threads: int = 1


@dataclass
class Stage:
    """What a trial works on."""

    trial: Trial

    @cached_property
    def checkpoint(self) -> Checkpoint:
        checkpoint = Checkpoint.load(self.trial.run)
        checkpoint.config.data.path = str(Path(self.trial.scene).resolve())
        return checkpoint

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.checkpoint.config.data)

    @cached_property
    def views(self) -> FrozenViews:
        return FrozenViews(
            self.checkpoint.scene, self.dataset, self.checkpoint.config, limit_bytes=PLAN_BYTES
        )

    @cached_property
    def source(self) -> FeatureSource:
        return open_features(self.trial.scene)

    @cached_property
    def labels(self) -> OpenVocabLabels:
        """Of the held-out views."""
        labels = open_labels(self.trial.scene)
        held_out = {self.dataset.views[i].stem for i in self.dataset.test}
        return dataclasses.replace(labels, stems=[stem for stem in labels.stems if stem in held_out])

    @cached_property
    def texts(self) -> Texts:
        file = TextEmbeddings.load(Path(self.trial.scene) / TEXTS)
        return Texts(file.embeddings.shape[1], file)

    def truths(self) -> list[tuple[str, int, list[QueryTruth]]]:
        """(stem, view, what its prompts mean there) of each labelled view."""
        stems = [view.stem for view in self.dataset.views]
        placed = ((stem, view_of(stem, stems)) for stem in self.labels.stems)
        return [(stem, index, self.labels.of(stem)) for stem, index in placed if index is not None]

    def score(self, maps_of: Maps) -> Row:
        return self.scores(maps_of).row()

    def scores(self, maps_of: Maps) -> Scored:
        scored = Scored(OpenVocabScores(protocol_for(self.dataset.views[0].camera.width), self.labels.kinds))
        for stem, index, truths in self.truths():
            maps = maps_of(index, [truth.prompt for truth in truths])
            for k, truth in enumerate(truths):
                scored.add(stem, maps[..., k], truth)
        return scored


@dataclass
class Scored:
    """Scores by the best level of each map; and of each level alone, for the choice that knows the truth."""

    chosen: OpenVocabScores
    oracle: list[OpenVocabScores] = field(default_factory=list)

    def add(self, stem: str, maps: Tensor, truth: QueryTruth) -> None:
        self.chosen.add(stem, maps, truth)
        if len(maps) > 1:
            while len(self.oracle) < len(maps):
                self.oracle.append(OpenVocabScores(self.chosen.protocol, self.chosen.kinds))
            for level, scores in enumerate(self.oracle):
                scores.add(stem, maps[level], truth)

    def row(self) -> Row:
        return compact(self.chosen)

    def oracle_row(self) -> Row:
        """Of each prompt in each view the level with the best IoU, and whether any level is localised."""
        best = OpenVocabScores(self.chosen.protocol, self.chosen.kinds)
        for rows in zip(*(scores.rows for scores in self.oracle)):
            ious = max(rows, key=lambda row: row.iou)
            best.rows.append(dataclasses.replace(ious, hit=any(row.hit for row in rows)))
        return compact(best)


def compact(scores: OpenVocabScores) -> Row:
    """In percent, of all prompts and of each kind."""
    kinds = [None, *scores.scored_kinds()]
    return {
        "miou": {kind or "all": 100 * scores.miou(kind) for kind in kinds},
        "localisation": {kind or "all": 100 * scores.localisation(kind) for kind in kinds},
        "pairs": len(scores.rows),
    }


# ------------------------------------------------------------------------------------------------------------ trials


def geometry(trial: Trial) -> dict[str, Row]:
    """Fit the scene's geometry, unless it is there."""
    config = configuration.load("default")
    configuration.apply(config, trial.fit)
    config.output.checkpoint_every, config.output.keep_checkpoints = 0, 1
    identity = configuration.to_dict(config) | {"scene": Path(trial.scene).name}
    config.data.path = str(Path(trial.scene).resolve())

    def fit() -> Row:
        started = time.process_time()
        runs.start(config, trial.run, overwrite=True, progress=False)
        stage = Stage(trial)
        shown = evaluate_views(
            stage.checkpoint.scene, stage.dataset, stage.dataset.test, stage.checkpoint.config
        )
        return {
            "psnr": shown.psnr,
            "gaussians": len(stage.views),
            "seconds": time.process_time() - started,
        }

    return {"": kept(Path(trial.run) / "fitted.json", identity, fit)}


def nested(trial: Trial) -> dict[str, Row]:
    """Fit nested embeddings, and score what prompts find in them and, if asked, choices among scales."""
    stage, config = Stage(trial), LanguageConfig()
    configuration.apply(config, trial.overrides)
    started = time.process_time()
    labels = LanguageLabels(stage.source, stage.views, stage.dataset.train, config.field.dim)
    found, steps = fitted(stage.views, labels, config.field, progress=False)
    shared = {"steps": steps, "seconds": time.process_time() - started}
    answer: dict[str, Row] = {}
    for row, overrides in trial.variants.items():
        own = configuration.from_dict(configuration.to_dict(config), LanguageConfig)
        configuration.apply(own, overrides)
        language = Language(stage.checkpoint, stage.dataset, found, stage.texts, own)
        answer[row] = stage.score(levels(language, None)) | shared
    if trial.scales:
        language = Language(stage.checkpoint, stage.dataset, found, stage.texts, config)
        scores = stage.scores(levels(language, [k / SCALES for k in range(SCALES)]))
        answer |= {"explicit": scores.row() | shared, "oracle": scores.oracle_row() | shared}
    return answer


def levels(language: Language, scales: Sequence[float] | None) -> Maps:
    """Of what the language asks by itself, or of each of some scales."""
    asked = [language.asked] if scales is None else [language.at(scale) for scale in scales]

    def maps(index: int, prompts: list[str]) -> Tensor:
        camera = language.camera_of(index)
        return relevancy_maps(language, index, asked, prompts, (camera.height, camera.width))

    return maps


def three_levels(trial: Trial) -> dict[str, Row]:
    """The baseline after LangSplat."""
    stage = Stage(trial)
    found = langsplat.train(stage.views, stage.source, stage.dataset.train, langsplat.Recipe())
    phrases = stage.texts.of(relevance.CANONICAL)

    def maps(index: int, prompts: list[str]) -> Tensor:
        plan, drawn = stage.views.drawn(index)
        own = dataclasses.replace(found, codes=[codes[drawn] for codes in found.codes])
        shown = own.relevancy(plan, stage.texts.of(prompts), phrases)
        return where_shown(shown, stage.views.alpha(index))

    return {"": stage.score(maps) | {"seconds": sum(found.seconds.values()), "stages": found.seconds}}


def thirty_scales(trial: Trial) -> dict[str, Row]:
    """The baseline after LERF."""
    stage, config = Stage(trial), LanguageConfig()
    configuration.apply(config, [*trial.overrides, ("model", "triplane")])
    started = time.process_time()
    labels = LanguageLabels(stage.source, stage.views, stage.dataset.train, config.field.dim)
    found = lerf.train(stage.views, labels, config.field)
    seconds = time.process_time() - started
    phrases = stage.texts.of(relevance.CANONICAL)

    def maps(index: int, prompts: list[str]) -> Tensor:
        shown = found.relevancy(*stage.views.drawn(index), stage.texts.of(prompts), phrases)
        return where_shown(shown, stage.views.alpha(index))

    return {"": stage.score(maps) | {"seconds": seconds}}


def ceiling(trial: Trial) -> dict[str, Row]:
    """What the geometry lets any field reach: true masks lifted from the training views, and rendered; a pixel belongs
    to a prompt whose share of it is above a half.
    """
    stage = Stage(trial)
    every = open_labels(trial.scene)
    stems = [view.stem for view in stage.dataset.views]
    column = {prompt: k for k, prompt in enumerate(every.prompts)}
    sums, total = torch.zeros(len(stage.views), len(column)), torch.zeros(len(stage.views))
    for index in stage.dataset.train:
        stem = stems[index]
        if stem not in every.stems:
            continue
        camera = stage.views.view(index).camera
        image = torch.zeros(camera.height, camera.width, len(column))
        for truth in every.of(stem):
            image[..., column[truth.prompt]] = truth.mask.float()
        found = stage.views.lift(index, image)
        sums, total = sums + found.sums, total + found.total
    shares = sums / total.clamp_min(1e-9)[:, None]
    ious: dict[str, list[float]] = {}
    for _, index, truths in stage.truths():
        shown = stage.views.blend(index, shares)
        for truth in truths:
            mask = shown[..., column[truth.prompt]] > 0.5
            union = int((mask | truth.mask).sum())
            kind = stage.labels.kinds.get(truth.prompt, "all")
            ious.setdefault(kind, []).append(100 * int((mask & truth.mask).sum()) / max(union, 1))
    both = ious | {"all": [iou for some in ious.values() for iou in some]}
    return {
        "": {"miou": {kind: sum(some) / len(some) for kind, some in both.items()}, "pairs": len(both["all"])}
    }


TRIALS = {
    "geometry": geometry,
    "nested": nested,
    "three levels": three_levels,
    "thirty scales": thirty_scales,
    "ceiling": ceiling,
}


def run(trial: Trial) -> dict[str, Row]:
    with threads(trial.threads):
        return TRIALS[trial.kind](trial)


def in_own_process(trial: Trial) -> dict[str, Row]:
    """What `run` answers. Raises RuntimeError with the last line of the complaint where it fails."""
    return in_subprocess("benchmarks.language_trial", dataclasses.asdict(trial), timeout=6 * 3600)


if __name__ == "__main__":
    print(to_json(run(Trial(**json.loads(sys.argv[1])))))

"""The 2D segmenter and tracking in 2D, scored as the objects of a fit are.

Tracking goes through all views in the order of the camera's path, training and test views alike, and is scored on the
test views with the classes that the segmenter gave them. Each method gets the best of MIN_IOUS, and those that need
geometry the better of two depths, that of the fitted Gaussians and the exact one: chosen by the score itself, so that
no tuning is left that would help them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.baselines.tracking import Frame, hungarian, hungarian_warped, on_points
from benchmarks.trials import Row
from gsfields.camera import Camera
from gsfields.data.dataset import Dataset
from gsfields.data.segments import SegmentSource
from gsfields.evaluate.panoptic import PanopticScores, evaluate_maps, maps_of
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.showing import render_view

MIN_IOUS = (0.1, 0.2, 0.3)
POINTS = 50_000  # of the cloud
Depths = Callable[[int], np.ndarray]  # of a view, [H, W], camera z, 0 where there is none
Evaluation = Callable[..., PanopticScores]  # takes `robust`, see gsfields.evaluate.panoptic
Found = dict[str, tuple[Evaluation, Row]]


def track(
    dataset: Dataset, segments: SegmentSource, truth: SegmentSource, depths: Mapping[str, Depths]
) -> Found:
    """What scores the 2D segments, tracking on IoU, after warping and on points; and how the methods were set."""
    test = [dataset.views[i].stem for i in dataset.test]
    tried: dict[str, list[tuple[str, Evaluation, float, float]]] = {}

    def run(title: str, setting: str, ids: Iterable[np.ndarray]) -> None:
        start = time.process_time()
        by_stem = dict(zip((view.stem for view in dataset.views), ids))

        def read(stem: str) -> tuple[np.ndarray, np.ndarray | None]:
            said = segments.read(stem)
            assert said is not None  # it was tracked
            return by_stem[stem], None if said.semantics is None else said.semantics.numpy()

        seconds, scored = time.process_time() - start, partial(evaluate_maps, read, truth, test)
        tried.setdefault(title, []).append((setting, scored, 100 * scored().pq, seconds))

    for least in MIN_IOUS:
        run("tracking on IoU", f"{least:g}", hungarian(frames(dataset, segments), min_iou=least))
    for name, depth in depths.items():
        known = list(frames(dataset, segments, depth))
        cloud = points_of(known)
        for least in MIN_IOUS:
            setting = f"{least:g}, {name} depth"
            run("tracking after warping", setting, hungarian_warped(known, min_iou=least))
            run("tracking on points", setting, on_points(known, cloud, min_iou=least))
    found: Found = {"2D segments": (partial(evaluate_maps, maps_of(segments), truth, test), {})}
    for title, results in tried.items():
        setting, scored, _, seconds = max(results, key=lambda result: result[2])
        all_of_them = {setting: pq for setting, _, pq, _ in results}
        found[title] = scored, {"setting": setting, "tried": all_of_them, "cpu_seconds": seconds}
    return found


def frames(dataset: Dataset, segments: SegmentSource, depth: Depths | None = None) -> Iterator[Frame]:
    """All views with what the 2D segmenter said; without a depth only their ids and classes."""
    for index, view in enumerate(dataset.views):
        said = segments.of(view)
        if said is None:
            raise ValueError(f"view {view.stem} has no segments: tracking needs those of all views")
        semantics = None if said.semantics is None else said.semantics.numpy()
        geometry = (None, None) if depth is None else (depth(index), view.camera)
        yield Frame(said.ids.numpy(), semantics, *geometry)


def rendered_depths(views: FrozenViews) -> Depths:
    """Expected depth of the Gaussians, where they are more opaque than not."""

    @torch.no_grad()
    def depth(index: int) -> np.ndarray:
        plan = render_view(views.scene, views.view(index).camera, views.config).plan
        return np.where(plan.alpha[..., 0].numpy() > 0.5, plan.depth()[..., 0].numpy(), 0)

    return depth


def true_depths(scene: Path) -> Depths:
    """Of a generated room, whose views are numbered."""
    files = sorted((scene / "depth").glob("*.npy"))
    return lambda index: np.load(files[index])


def points_of(known: list[Frame]) -> np.ndarray:
    """[M, 3] points of the world that the pixels of all frames show, evenly drawn."""
    share = POINTS // len(known) + 1
    rng = np.random.default_rng(0)
    found = []
    for frame in known:
        assert frame.depth is not None and frame.camera is not None
        pixels = np.flatnonzero(frame.depth > 0)
        chosen = rng.choice(pixels, min(share, len(pixels)), replace=False)
        found.append(in_world(chosen, frame.depth, frame.camera))
    return np.concatenate(found)


def in_world(pixels: np.ndarray, depth: np.ndarray, camera: Camera) -> np.ndarray:
    """[P, 3] of flat pixels [P]."""
    K, c2w = camera.K.double().numpy(), camera.c2w.double().numpy()
    rows, columns = np.unravel_index(pixels, depth.shape)
    z = depth.ravel()[pixels]
    xy = (np.stack((columns, rows), axis=1) + 0.5 - K[:2, 2]) / K[[0, 1], [0, 1]] * z[:, None]
    return np.concatenate((xy, z[:, None]), axis=1) @ c2w[:3, :3].T + c2w[:3, 3]

"""Generated nested scenes as folders: images and cameras as in transforms.json, segments with embeddings as
LangSplat writes them, masks of queries as in 3D-OVS.
"""

from __future__ import annotations

import json
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from gsfields.data.generated import chosen_options, made_in
from gsfields.data.nested_scene import LEVELS, NestedConfig, NestedFrame, NestedScene, NestedSegmenter
from gsfields.data.nested_texts import CANONICAL, Query, TextConfig, TextEncoder, Vocabulary
from gsfields.data.panoptic_segmenter import PanopticSegmenterConfig
from gsfields.data.poses import OPENGL_AXES
from gsfields.data.solids import Array
from gsfields.data.synthetic import save_points
from gsfields.files import written_whole

FOLDERS = ("images", "depth", "ids", "language_features", "segmentations")
LEAST_PIXELS = 8
"""A view in which a query is visible in fewer pixels has no mask of it."""

_POINTS = 8000  # of points.ply, about


class _Recipe(NamedTuple):
    """All that decides what is written; each process makes the scene from it for itself."""

    config: NestedConfig
    segmenter: PanopticSegmenterConfig
    texts: TextConfig
    vocabulary: Vocabulary

    def encoder(self) -> TextEncoder:
        return TextEncoder(self.vocabulary, self.texts, self.config.seed)


def save_nested(
    folder: str | Path,
    config: NestedConfig | None = None,
    segmenter: PanopticSegmenterConfig | None = None,
    texts: TextConfig | None = None,
    vocabulary: Vocabulary | None = None,
    *,
    jobs: int = 1,
) -> None:
    """Render a nested scene into a new folder, whole or not at all, view by view, in `jobs` processes.

    images/*.png and transforms.json, which names no split: load_dataset holds out every split_every-th view.
    points.ply: some points that are seen, to start a fit from. depth/*.npy: float32 [H, W], camera z in
    metres. ids/*.npy: uint16 [4, H, W], the true ids of parts, objects, groups and regions, which
    objects.json describes.

    language_features/<stem>_f.npy: float32 [n, D], unit embeddings of the view's segments, and <stem>_s.npy:
    float32 [4, H, W], their rows at the levels part, object, group and region, -1 where a level has none;
    LangSplat's layout, whose levels are another four.

    segmentations/<stem>/<prompt>.png: 0 or 255, the exact mask of a query in a view where at least
    LEAST_PIXELS of it are visible; classes.txt: the prompts with a mask in some view; queries.json: their
    kinds; text_embeddings.npz: `prompts`, those and the phrases CANONICAL, and `embeddings` float32 [n, D].

    vocabulary: the word vectors (None: made from the scene's seed, 512 of them).

    Raises ValueError for jobs below 1, FileExistsError if there is something at `folder`, FileNotFoundError
    if its parent folder does not exist.
    """
    folder, config = Path(folder), config or NestedConfig()
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise ValueError(f"jobs must be a whole number, at least 1, but is {jobs!r}")
    if folder.exists():
        raise FileExistsError(f"save_nested writes a new folder, but {folder} exists")
    recipe = _Recipe(
        config,
        segmenter or PanopticSegmenterConfig(),
        texts or TextConfig(),
        vocabulary or Vocabulary(seed=config.seed),
    )
    with written_whole(folder) as new:
        for name in FOLDERS:
            (new / name).mkdir(parents=True)
        jobs = min(jobs, config.views)
        if jobs == 1:
            _write_views(new, recipe, 0, 1)
        else:
            # A fresh process each: one that is forked inherits the locks of threads it does not have.
            with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
                parts = [pool.submit(_write_views, new, recipe, i, jobs) for i in range(jobs)]
                for part in parts:
                    part.result()
        scene = NestedScene(config)
        (new / "objects.json").write_text(json.dumps(_hierarchy(scene, recipe), indent=1))
        _write_cameras(new, scene)
        _write_queries(new, scene.queries, recipe.encoder())


def prepare_nested(folder: str | Path, *, overwrite: bool = False, **options: object) -> str:
    """Make a nested scene with exact masks and embeddings in `folder`; says what is in it.

    options: fields of NestedConfig (seed, objects, views, width, height, …), of PanopticSegmenterConfig and of
    TextConfig, and `jobs`, as values or as texts. With `overwrite` an earlier generated scene in `folder` is replaced.

    Raises ValueError for an option that is none, or not allowed, and where `folder` holds something else.
    """
    folder = Path(folder)
    kinds = (NestedConfig, PanopticSegmenterConfig, TextConfig)
    (config, segmenter, texts), others = chosen_options("a generated nested scene", kinds, options, ("jobs",))
    with made_in(folder, "a generated nested scene", _is_generated, overwrite=overwrite) as new:
        save_nested(new, config, segmenter, texts, **others)
    prompts = len((folder / "segmentations" / "classes.txt").read_text().splitlines())
    return (
        f"{config.views} views of {config.objects} things in {folder}, and {prompts} prompts: gsfields fit {folder} "
        "--out RUN, gsfields fit-language RUN, gsfields eval openvocab RUN"
    )


def _is_generated(folder: Path) -> bool:
    try:
        return "levels" in json.loads((folder / "objects.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def stem_of(index: int) -> str:
    """The name of a view's files, without suffix."""
    return f"{index:05d}"


def _write_views(folder: Path, recipe: _Recipe, first: int, step: int) -> None:
    """Render and write views first, first + step, …"""
    scene = NestedScene(recipe.config)
    eyes = NestedSegmenter(scene, recipe.encoder(), recipe.segmenter)
    for index in range(first, len(scene), step):
        frame = scene.frame(index)
        _write_view(folder, frame, *eyes.of(frame))
        _write_masks(folder / "segmentations" / stem_of(index), frame, scene.queries)


def _write_view(folder: Path, frame: NestedFrame, features: Array, rows: Array) -> None:
    stem = stem_of(frame.index)
    Image.fromarray((frame.image * 255).round().astype(np.uint8)).save(folder / "images" / f"{stem}.png")
    np.save(folder / "depth" / f"{stem}.npy", frame.depth)
    np.save(folder / "ids" / f"{stem}.npy", frame.ids)
    np.save(folder / "language_features" / f"{stem}_f.npy", features)
    np.save(folder / "language_features" / f"{stem}_s.npy", rows)


def _write_masks(folder: Path, frame: NestedFrame, queries: list[Query]) -> None:
    folder.mkdir()
    for query in queries:
        mask = frame.mask(query)
        if mask.sum() >= LEAST_PIXELS:
            Image.fromarray(255 * mask.astype(np.uint8)).save(folder / f"{query.prompt}.png")


def _write_queries(folder: Path, queries: list[Query], encoder: TextEncoder) -> None:
    """The list, kinds and embeddings of the queries that have a mask."""
    root = folder / "segmentations"
    shown = {mask.stem for view in root.iterdir() for mask in view.iterdir()}
    queries = [query for query in queries if query.prompt in shown]
    prompts = [query.prompt for query in queries]
    (root / "classes.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    kinds = {query.prompt: {"kind": query.kind} for query in queries}
    (root / "queries.json").write_text(json.dumps(kinds, indent=1))
    embeddings = np.stack([*(encoder.text(query.meaning) for query in queries), *encoder.phrases(CANONICAL)])
    np.savez(
        folder / "text_embeddings.npz",
        prompts=np.array([*prompts, *CANONICAL]),
        embeddings=embeddings.astype(np.float32),
    )


def _write_cameras(folder: Path, scene: NestedScene) -> None:
    """transforms.json and points.ply."""
    K, config = scene.K, scene.config
    header = {
        "camera_model": "OPENCV",
        "w": config.width,
        "h": config.height,
        "fl_x": float(K[0, 0]),
        "fl_y": float(K[1, 1]),
        "cx": float(K[0, 2]),
        "cy": float(K[1, 2]),
        "ply_file_path": "points.ply",
    }
    frames = [
        {"file_path": f"images/{stem_of(i)}.png", "transform_matrix": (pose @ OPENGL_AXES).tolist()}
        for i, pose in enumerate(scene.poses)
    ]
    (folder / "transforms.json").write_text(json.dumps(header | {"frames": frames}, indent=1))
    points, colors = _seen_points(folder, scene)
    save_points(folder / "points.ply", torch.from_numpy(points), torch.from_numpy(colors))


def _seen_points(folder: Path, scene: NestedScene) -> tuple[Array, Array]:
    """(points [M, 3], colours [M, 3] in [0, 1]) at random pixels of all views, from what has been written."""
    rng = np.random.default_rng([scene.config.seed, 44])
    each = min(math.ceil(_POINTS / len(scene)), scene.config.width * scene.config.height)
    points, colors = [], []
    for index, pose in enumerate(scene.poses):
        depth = np.load(folder / "depth" / f"{stem_of(index)}.npy")
        image = np.asarray(Image.open(folder / "images" / f"{stem_of(index)}.png"))
        rows, columns = np.divmod(rng.choice(depth.size, each, replace=False), depth.shape[1])
        rays = np.stack([columns + 0.5, rows + 0.5, np.ones(each)]).T @ np.linalg.inv(scene.K).T
        local = rays * depth[rows, columns, None]
        points.append(local @ pose[:3, :3].T + pose[:3, 3])
        colors.append(image[rows, columns] / 255)
    return np.concatenate(points), np.concatenate(colors)


def _hierarchy(scene: NestedScene, recipe: _Recipe) -> dict[str, Any]:
    """What objects.json says: what the ids of each level are, and what the scene was made from."""
    objects = [
        {
            "id": number,
            "text": item.meaning.text,
            "category": item.meaning.head,
            "attribute": item.meaning.attribute,
            "background": item.background,
            "group": item.group,
            "region": item.region,
            "parts": [
                {"id": part, "name": name, "text": scene.meanings[0][part].text}  # type: ignore[union-attr]
                for part, name in zip(item.parts, item.names)
            ],
        }
        for number, item in enumerate(scene.objects, 1)
    ]
    above = {}
    for level in (2, 3):
        above[f"{LEVELS[level]}s"] = [
            {
                "id": number,
                "text": meaning.text,
                "objects": np.unique(scene.tables[1][scene.tables[level] == number]).tolist(),
            }
            for number, meaning in enumerate(scene.meanings[level])
            if meaning is not None
        ]
    made_from = {
        "scene": asdict(recipe.config),
        "segmenter": asdict(recipe.segmenter),
        "texts": asdict(recipe.texts),
    }
    return {"levels": LEVELS, "objects": objects, **above, "generator": made_from}

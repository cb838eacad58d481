"""Generated nested scenes: one hierarchy for ids, queries, segments and files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from gsfields.data import nested_files
from gsfields.data.load import load_dataset
from gsfields.data.messy_objects import bounds
from gsfields.data.nested_files import save_nested
from gsfields.data.nested_objects import ATTRIBUTES, FILLINGS, THEMES, covering, heap, thing
from gsfields.data.nested_scene import LEVELS, NestedConfig, NestedScene, NestedSegmenter
from gsfields.data.nested_texts import CANONICAL, KINDS, TextConfig, TextEncoder, Vocabulary
from gsfields.data.panoptic_segmenter import PanopticSegmenterConfig

SMALL = {"width": 56, "height": 48, "supersample": 1}
WORDS = Vocabulary(dimension=64, seed=1)
PERFECT = PanopticSegmenterConfig(errors=0)


@pytest.fixture(scope="module")
def scene():
    return NestedScene(NestedConfig(seed=1, views=16, **SMALL))


@pytest.fixture(scope="module")
def frames(scene):
    return [scene.frame(i) for i in range(0, 16, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nested") / "scene"
    save_nested(folder, NestedConfig(seed=1, objects=6, views=9, **SMALL), vocabulary=WORDS)
    return folder


def by_prompt(scene):
    return {query.prompt: query for query in scene.queries}


# ----------------------------------------------------------------------------------------------------- things


def test_every_design_has_two_to_five_named_parts_and_stands_on_its_support():
    rng = np.random.default_rng(0)
    assert sum(map(len, THEMES.values())) >= 10
    for theme, designs in THEMES.items():
        for category in designs:
            made = thing(rng, theme, category, "red")
            names = [name for name, _ in made.parts]
            assert 2 <= len(set(names)) == len(names) <= 5, category
            low, high = made.bounds
            assert -0.03 < low[2] < 0.02 and 0.03 < high[2] < 0.7, category
            assert category.isalpha() and all(n.isalpha() for n in names)


def test_every_attribute_covers_and_every_container_is_filled():
    rng = np.random.default_rng(0)
    points = rng.normal(0, 0.1, (3, 50)).astype(np.float32)
    for attribute in ATTRIBUTES:
        albedo = covering(rng, attribute).texture(points, points)
        assert albedo.shape == (3, 50) and (albedo > -0.05).all() and (albedo < 1.5).all()
    for category, (choices, _, _) in FILLINGS.items():
        theme = next(theme for theme, designs in THEMES.items() if category in designs)
        container = thing(rng, theme, category, "blue")
        for contents in choices:
            filling = heap(rng, container, contents)
            assert 3 <= len(filling.parts) <= 5
            assert {name for name, _ in filling.parts} == {filling.category}


# ------------------------------------------------------------------------------------------------------ scene


def test_the_same_configuration_gives_the_same_bits_and_another_seed_another_scene(scene, frames):
    again = NestedScene(scene.config)
    assert [q.prompt for q in again.queries] == [q.prompt for q in scene.queries]
    for slot in (3, 1):  # in another order
        frame = again.frame(frames[slot].index)
        for name in ("image", "depth", "ids", "points", "pose"):
            assert np.array_equal(getattr(frame, name), getattr(frames[slot], name)), name
    other = NestedScene(NestedConfig(seed=2, views=16, **SMALL)).frame(0)
    assert abs(other.image - frames[0].image).mean() > 0.03
    with pytest.raises(IndexError, match="view"):
        scene.frame(16)


def test_parts_partition_objects_objects_groups_and_regions(scene, frames):
    for frame in frames:
        assert frame.parts.min() >= 1 and frame.objects.min() >= 1 and frame.regions.min() >= 1
        for number, item in enumerate(scene.objects, 1):
            own = frame.objects == number
            assert np.array_equal(np.isin(frame.parts, item.parts), own)
            assert (frame.groups[own] == item.group).all() and (frame.regions[own] == item.region).all()
    every = [part for item in scene.objects for part in item.parts]
    assert sorted(every) == list(range(1, len(every) + 1))
    assert len(scene.objects) > 12 and scene.tables.shape == (len(LEVELS), len(every) + 1)
    seen = np.unique([n for frame in frames for n in np.unique(frame.objects)])
    assert len(seen) > 0.85 * len(scene.objects)


def test_depths_points_and_poses_agree(scene, frames):
    for frame in frames:
        local = (frame.points.reshape(-1, 3) - frame.pose[:3, 3]) @ frame.pose[:3, :3]
        places = local @ scene.K.T
        y, x = np.mgrid[:48, :56] + 0.5
        assert np.allclose(places[:, :2] / places[:, 2:], np.stack([x.ravel(), y.ravel()], 1), atol=0.01)
        assert np.allclose(local[:, 2], frame.depth.ravel(), rtol=1e-4)
        floor = frame.points[frame.objects == 1]
        assert abs(floor[:, 2]).max() < 1e-3


def test_things_stand_on_their_stand_and_not_in_each_other(scene):
    for meaning in scene.meanings[3][3:]:
        assert meaning.contents in THEMES and meaning.link == "with"
    stands = {item.region: item for item in reversed(scene.objects) if not item.background}
    for item in scene.objects:
        if item.background or item is stands[item.region]:
            continue
        low = bounds_of(scene, item)[0]
        top = bounds_of(scene, stands[item.region])[1]
        assert low[2] > top[2] - 0.04
    rng = np.random.default_rng(0)
    things = [item for item in scene.objects if not item.background]
    for slot, item in enumerate(things):
        points = rng.uniform(*bounds_of(scene, item), (400, 3)).T
        own = points[:, inside(scene, item, points)]
        for other in things[slot + 1 :]:
            if item.group == 0 or other.group != item.group:  # what fills a container is partly in it
                assert inside(scene, other, own).mean() < 0.05, (item.meaning.text, other.meaning.text)


def solids(scene, item):
    return [primitive for part in item.parts for primitive in scene.scene.bodies[part - 1].parts]


def bounds_of(scene, item):
    return bounds(solids(scene, item))


def inside(scene, item, points):
    return np.any([p.solid.contains(p.to_unit(points)) for p in solids(scene, item)], axis=0)


def test_queries_are_unions_of_what_they_say(scene, frames):
    queries = by_prompt(scene)
    assert {query.kind for query in queries.values()} == set(KINDS)
    for prompt, query in queries.items():
        assert prompt.replace(" ", "").isalpha() and prompt == prompt.lower()
        if query.kind == "simple":
            named = [i for i in scene.objects if i.meaning.text == prompt or i.meaning.head == prompt]
            assert query.parts == {part for item in named for part in item.parts}
        elif query.kind == "partitive":
            name, whole = prompt.split(" of ")
            named = [i for i in scene.objects if whole in (i.meaning.text, i.meaning.head)]
            own = {p for i in named for p, n in zip(i.parts, i.names) if n == name}
            assert query.parts == own and own < queries[whole].parts
        else:
            holder = prompt.replace(" with ", " of ").split(" of ")[0]
            assert query.parts > (queries[holder].parts & query.parts) > set()
    filled = next(q for q in queries.values() if q.kind == "compound" and " of " in q.prompt)
    contents = filled.prompt.split(" of ")[1]
    assert filled.parts & queries[contents.removesuffix("s")].parts
    for frame in frames:
        assert np.array_equal(frame.mask(queries["floor"]), frame.objects == 1)


def test_siblings_differ_by_attribute_and_twins_do_not():
    for seed in range(3):
        apart = NestedScene(NestedConfig(seed=seed, objects=16, views=1, siblings=0.8, twins=0, **SMALL))
        things = [i.meaning for i in apart.objects if i.meaning.attribute]
        assert len({m.text for m in things}) == len(things)
        assert len({m.head for m in things}) < len(things)
    alike = NestedScene(NestedConfig(seed=0, objects=12, views=1, siblings=0, twins=1, **SMALL))
    texts = [i.meaning.text for i in alike.objects]
    twin = max(set(texts), key=texts.count)
    assert texts.count(twin) >= 3
    parts = [i.parts for i in alike.objects if i.meaning.text == twin]
    assert by_prompt(alike)[twin].parts == {p for own in parts for p in own}


def test_one_object_is_enough_and_none_may_be_filled():
    lone = NestedScene(NestedConfig(objects=1, views=1, **SMALL))
    assert sum(item.group > 0 for item in lone.objects) == 2 and lone.frame(0).depth.max() < 50
    empty = NestedScene(NestedConfig(objects=8, views=1, filled=0, **SMALL))
    assert empty.meanings[2] == [None]


@pytest.mark.parametrize(
    "bad",
    [{"objects": 0}, {"views": 0}, {"width": 4}, {"seed": -1}, {"twins": 2}, {"siblings": 0.95}],
    ids=str,
)
def test_bad_settings_are_named(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=name):
        NestedConfig(**bad)


# --------------------------------------------------------------------------------------------------- segments


def test_a_perfect_segmenter_gives_the_truth_at_all_levels(scene, frames):
    encoder = TextEncoder(WORDS, TextConfig(crop_cosine=1.0))
    eyes = NestedSegmenter(scene, encoder, PERFECT)
    for frame in frames[:3]:
        features, rows = eyes.of(frame)
        assert features.dtype == rows.dtype == np.float32 and rows.shape == (4, 48, 56)
        assert np.array_equal(np.unique(rows[rows >= 0]), np.arange(len(features)))
        background = np.isin(frame.objects, (1, 2))
        for level in range(4):
            none = background if level < 2 else frame.ids[level] == 0
            assert np.array_equal(rows[level] < 0, none)
            for row in np.unique(rows[level][rows[level] >= 0]).astype(int):
                (number,) = np.unique(frame.ids[level][rows[level] == row])
                clean = encoder.crop(scene.meanings[level][number])
                assert features[row] @ clean == pytest.approx(1, abs=1e-5)


def test_segments_err_and_are_the_same_for_the_same_view(scene, frames):
    encoder = TextEncoder(WORDS)
    eyes = NestedSegmenter(scene, encoder)
    first, second = eyes.of(frames[2]), NestedSegmenter(scene, TextEncoder(WORDS)).of(frames[2])
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    features, rows = first
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert np.array_equal(np.unique(rows[rows >= 0]), np.arange(len(features)))  # levels hold all segments
    perfect, _ = NestedSegmenter(scene, encoder, PERFECT).of(frames[2])
    assert len(features) != len(perfect)


def test_a_query_is_nearer_to_its_segments_than_to_others(scene, frames):
    encoder = TextEncoder(Vocabulary(seed=1))
    eyes = NestedSegmenter(scene, encoder, PERFECT)
    gaps = {kind: [] for kind in KINDS}
    for frame in frames:
        features, rows = eyes.of(frame)
        segments = [(rows == row).any(axis=0) for row in range(len(features))]
        for query in scene.queries:
            mask = frame.mask(query)
            right = np.array([mask[segment].mean() > 0.9 for segment in segments])
            if right.any():
                cosines = features @ encoder.text(query.meaning)
                gaps[query.kind].append(cosines[right].max() - cosines[~right].mean())
    for kind, found in gaps.items():
        assert len(found) > 10 and np.mean(np.array(found) > 0) > 0.9 and np.mean(found) > 0.05, kind


# ------------------------------------------------------------------------------------------------------ files


def test_the_layout(folder):
    stems = [f"{i:05d}" for i in range(9)]
    queries = json.loads((folder / "segmentations/queries.json").read_text())
    classes = (folder / "segmentations/classes.txt").read_text().splitlines()
    assert classes == sorted(queries) and {entry["kind"] for entry in queries.values()} == set(KINDS)
    assert sorted(p.name for p in (folder / "images").iterdir()) == [f"{stem}.png" for stem in stems]
    with np.load(folder / "text_embeddings.npz", allow_pickle=False) as file:
        assert file["prompts"].tolist() == [*classes, *CANONICAL] and file["prompts"].dtype.kind == "U"
        assert file["embeddings"].dtype == np.float32 and file["embeddings"].shape == (len(classes) + 6, 64)
        assert np.allclose(np.linalg.norm(file["embeddings"], axis=1), 1, atol=1e-5)
    shown = set()
    for stem in stems:
        features = np.load(folder / f"language_features/{stem}_f.npy")
        rows = np.load(folder / f"language_features/{stem}_s.npy")
        assert features.shape[1] == 64 and rows.shape == (4, 48, 56) and rows.max() == len(features) - 1
        assert np.load(folder / f"depth/{stem}.npy").dtype == np.float32
        shown |= {p.stem for p in (folder / "segmentations" / stem).iterdir()}
    assert shown == set(classes)


def test_masks_are_those_of_the_ids(folder):
    described = json.loads((folder / "objects.json").read_text())
    assert described["levels"] == list(LEVELS) and described["generator"]["scene"]["seed"] == 1
    for index in (0, 4):
        ids = np.load(folder / f"ids/{index:05d}.npy")
        masks = folder / f"segmentations/{index:05d}"
        for category in {item["category"] for item in described["objects"]}:
            own = [item["id"] for item in described["objects"] if item["category"] == category]
            mask = np.isin(ids[1], own)
            assert (masks / f"{category}.png").exists() == (mask.sum() >= 8)
            if mask.sum() >= 8:
                assert np.array_equal(np.asarray(Image.open(masks / f"{category}.png")), 255 * mask)
        for group in described["groups"]:
            assert np.array_equal(np.isin(ids[1], group["objects"]), ids[2] == group["id"])


def test_load_dataset_reads_it(folder):
    dataset = load_dataset(folder, split_every=4)
    assert len(dataset.views) == 9 and len(dataset.test) == 3
    scene = NestedScene(NestedConfig(seed=1, objects=6, views=9, **SMALL))
    frame, view = scene.frame(5), dataset.views[5]
    assert np.allclose(np.linalg.inv(view.camera.viewmat.numpy()), frame.pose, atol=1e-5)
    assert np.allclose(view.camera.K.numpy(), scene.K, atol=1e-3)
    assert abs(view.image().numpy() - frame.image).max() < 0.003
    assert dataset.points is not None and len(dataset.points) > 5000


@pytest.mark.slow  # each process loads the package anew
def test_several_processes_write_the_same(folder, tmp_path):
    config = NestedConfig(seed=1, objects=6, views=9, **SMALL)
    save_nested(tmp_path / "again", config, vocabulary=WORDS, jobs=2)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes(), path


def test_a_scene_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(nested_files, "_write_view", fail)
    with pytest.raises(OSError, match="disk full"):
        save_nested(tmp_path / "scene", NestedConfig(objects=2, views=2, **SMALL), vocabulary=WORDS)
    assert not list(tmp_path.iterdir())


def test_bad_calls_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="jobs"):
        save_nested(tmp_path / "new", jobs=0)
    with pytest.raises(FileExistsError):
        save_nested(folder)
    with pytest.raises(FileNotFoundError):
        save_nested(tmp_path / "none" / "new", NestedConfig(objects=1, views=1, **SMALL))

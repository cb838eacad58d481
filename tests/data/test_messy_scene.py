"""Generated messy rooms: how many views through which lens, objects that rest and touch, one truth for images,
ids, depths and files in the released layout.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from gsfields.data import messy_files
from gsfields.data.load import load_dataset
from gsfields.data.messy_files import prepare_messy, save_messy
from gsfields.data.messy_objects import Pile, bounds, laid, random_object
from gsfields.data.messy_scene import MessyConfig, MessyScene
from gsfields.data.panoptic_segmenter import PanopticSegmenter, PanopticSegmenterConfig
from gsfields.data.segments import open_segments, open_truth

SMALL = {"width": 48, "height": 40, "supersample": 1}


@pytest.fixture(scope="module")
def scene():
    return MessyScene(MessyConfig(seed=3, views=40, **SMALL))


@pytest.fixture(scope="module")
def frames(scene):
    return [scene.frame(i) for i in range(0, 40, 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messy") / "room"
    save_messy(folder, MessyConfig(seed=3, objects=6, views=10, **SMALL))
    return folder


def project(K, pose, points):
    """World points [N, 3] -> (x, y) [N, 2] and depths [N] in the image of a camera at `pose` (OpenCV axes)."""
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    return (local @ K.T)[:, :2] / local[:, 2:], local[:, 2]


@pytest.mark.parametrize(
    ("objects", "views", "focal"), [(25, 600, 35.0), (50, 848, 49.5), (100, 1200, 70.0), (500, 1200, 156.5)]
)
def test_views_and_lens_are_those_of_the_paper(objects, views, focal):
    config = MessyConfig(objects=objects)
    assert config.view_count == views
    assert config.focal_millimetres == pytest.approx(focal, abs=0.05)
    assert MessyConfig(objects=objects, views=7).view_count == 7


def test_objects_are_equally_close_and_large_however_many_there_are():
    few, many = (MessyScene(MessyConfig(seed=1, objects=n, views=1)) for n in (25, 200))
    places = [np.array([np.mean(bounds(body.parts), axis=0)[:2] for body in s.objects]) for s in (few, many)]
    areas = [np.pi * np.median(np.hypot(*place.T)) ** 2 * 2 / len(place) for place in places]
    assert 0.7 < areas[1] / areas[0] < 1.4
    # a metre at the middle of the floor, in pixels
    assert few.K[0, 0] / few.dome == pytest.approx(many.K[0, 0] / many.dome)


def test_the_same_configuration_gives_the_same_bits_and_another_seed_another_room(scene, frames):
    again = MessyScene(scene.config)
    for slot in (5, 1):  # in another order
        frame = again.frame(frames[slot].index)
        for name in ("image", "instances", "depth", "points", "pose"):
            assert np.array_equal(getattr(frame, name), getattr(frames[slot], name)), name
    other = MessyScene(MessyConfig(seed=4, views=40, **SMALL)).frame(0)
    assert abs(other.image - frames[0].image).mean() > 0.03


def test_ids_depths_and_poses_agree(scene, frames):
    for frame in frames:
        points = frame.points.reshape(-1, 3).astype(float)
        places, depth = project(scene.K, frame.pose, points)
        y, x = np.mgrid[:40, :48] + 0.5
        assert np.allclose(places, np.stack([x.ravel(), y.ravel()], axis=1), atol=0.01)
        assert np.allclose(depth, frame.depth.ravel(), rtol=1e-4)
        for instance in np.unique(frame.instances[frame.instances > 0]):
            low, high = bounds(scene.objects[instance - 1].parts)
            own = points[frame.instances.ravel() == instance]
            assert ((own > low - 1e-3) & (own < high + 1e-3)).all()
        assert np.array_equal(frame.semantics, frame.instances > 0)
    seen = np.unique([i for frame in frames for i in np.unique(frame.instances)])
    assert len(seen) >= 25  # the room and nearly every object
    assert 0.2 < np.mean([frame.semantics.mean() for frame in frames]) < 0.7


def test_what_is_seen_from_two_places_is_one_object(scene, frames):
    """Points of one view, if nothing is in front of them in another, have the same id there."""
    a, b = frames[0], frames[1]
    places, depth = project(scene.K, b.pose, a.points.reshape(-1, 3).astype(float))
    inside = (depth > 0) & (places >= 0).all(axis=1) & (places < [48, 40]).all(axis=1)
    column, row = places[inside].astype(int).T
    visible = abs(depth[inside] - b.depth[row, column]) < 0.03
    assert visible.sum() > 300
    same = a.instances.ravel()[inside][visible] == b.instances[row, column][visible]
    assert same.mean() > 0.93  # but for pixels at borders


def test_objects_rest_on_the_floor_or_on_each_other_and_touch(scene):
    bodies = scene.objects
    lows = np.array([bounds(body.parts)[0][2] for body in bodies])
    assert lows.min() > -0.03  # the boxes of tipped cones are larger than they
    on_others = lows > 0.05
    assert 1 <= on_others.sum() <= len(bodies) / 2
    rng = np.random.default_rng(0)
    touching = 0
    for index, body in enumerate(bodies):
        low, high = bounds(body.parts)
        points = rng.uniform(low, high, (2000, 3)).T
        own = inside(body, points)
        for other in bodies[index + 1 :]:
            assert inside(other, points[:, own]).mean() < 0.02  # no two share room
        near = rng.normal(0, 0.006, (3, int(own.sum()))) + points[:, own]
        touching += any(inside(other, near).any() for other in bodies if other is not body)
    assert touching > 5
    assert any(
        len(a.parts) == len(b.parts) and all(np.array_equal(p.half, q.half) for p, q in zip(a.parts, b.parts))
        for i, a in enumerate(bodies)
        for b in bodies[:i]
    ), "no twins"


def inside(body, points):
    """Whether points [3, N] are inside the body: bool [N]."""
    return np.any([part.solid.contains(part.to_unit(points)) for part in body.parts], axis=0)


def test_an_object_on_top_lies_on_what_is_below():
    rng = np.random.default_rng(5)
    pile = Pile(rng, 0.3)
    for _ in range(12):
        pile.put(laid(rng, random_object(rng)), "on")
    lows = [bounds(body.parts)[0][2] for body in pile.bodies]
    raised = [i for i, low in enumerate(lows) if low > 0.05]
    assert raised
    for i in raised:
        low, high = bounds(pile.bodies[i].parts)
        points = rng.uniform(low, [high[0], high[1], low[2] + 0.25 * (high[2] - low[2])], (20000, 3)).T
        own = points[:, inside(pile.bodies[i], points)] - np.array([[0], [0], [0.02]])
        assert any(inside(other, own).any() for other in pile.bodies if other is not pile.bodies[i])


def test_the_smooth_path_moves_by_small_steps_and_comes_back():
    scene = MessyScene(MessyConfig(seed=2, views=300))
    places, directions = scene.poses[:, :3, 3], scene.poses[:, :3, 2]
    assert np.allclose(np.linalg.norm(places, axis=1), scene.dome)
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert steps.max() < 0.1 * scene.dome
    training, test = places[:240], places[240:]
    nearest = np.linalg.norm(test[:, None] - training, axis=2).min(axis=1)
    assert np.quantile(nearest, 0.9) < 0.3 * scene.dome
    assert (places[:, 2] > 0.5 * scene.dome).all() and (directions[:, 2] < -0.3).all()
    random = MessyScene(MessyConfig(seed=2, views=300, path="random")).poses[:, :3, 3]
    assert np.linalg.norm(np.diff(random, axis=0), axis=1).mean() > 5 * steps.mean()


@pytest.mark.parametrize(
    "bad",
    [
        {"objects": 0},
        {"views": 0},
        {"width": 4},
        {"seed": -1},
        {"path": "zigzag"},
        {"twins": 2},
        {"piled": 0.9},
    ],
    ids=str,
)
def test_bad_settings_are_named(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=name):
        MessyConfig(**bad)


# --------------------------------------------------------------------------------------------------- as files


def test_the_layout_is_the_released_one(folder):
    stems = [f"{i:05d}" for i in range(10)]
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == sorted(
        (*messy_files.FOLDERS, *messy_files.SEGMENTER_FOLDERS)
    )
    for name in ("semantic", "instance", "detic_semantic", "detic_instance", "detic_probabilities", "depth"):
        files = sorted((folder / name).iterdir())
        assert [p.name for p in files] == [f"{stem}.npy" for stem in stems]
        assert np.load(files[0]).shape == (40, 48)
    camera = json.loads((folder / "metadata.json").read_text())["camera"]
    assert np.shape(camera["positions"]) == (10, 3) and np.shape(camera["quaternions"]) == (10, 4)
    assert camera["K"][0][0] == pytest.approx(35 * np.sqrt(6 / 25) / 36)
    background = np.load(folder / "detic_semantic/00003.npy") == 0
    assert (np.load(folder / "detic_probabilities/00003.npy")[background] == 1).all()
    assert (np.load(folder / "detic_instance/00003.npy")[background] == 0).all()


def test_released_cameras_bring_objects_onto_their_pixels(folder):
    """By the formulas of the released loader: K times the size in absolute values, c2w = Blender's times
    diag(1, -1, -1, 1); against the files' ids and depths, not the generator's cameras.
    """
    config = MessyConfig(seed=3, objects=6, views=10, **SMALL)
    scene = MessyScene(config)
    camera = json.loads((folder / "metadata.json").read_text())["camera"]
    K = abs(np.array(camera["K"])) * np.array([[48], [40], [1]])
    found = 0
    for index in range(10):
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_quat(camera["quaternions"][index], scalar_first=True).as_matrix()
        pose[:3, 3] = camera["positions"][index]
        pose = pose @ np.diag([1, -1, -1, 1])
        ids = np.load(folder / "instance" / f"{index:05d}.npy")
        depth = np.load(folder / "depth" / f"{index:05d}.npy")
        for number, body in enumerate(scene.objects, 1):
            center = np.mean(bounds(body.parts), axis=0)
            ((x, y),), (z,) = project(K, pose, center[None])
            shown = 0 <= x < 48 and 0 <= y < 40 and z > 0
            if not shown or not inside(body, center[:, None])[0]:
                continue
            if abs(depth[int(y), int(x)] - z) < 0.25:
                found += 1
                assert ids[int(y), int(x)] == number or depth[int(y), int(x)] < z
            assert depth[int(y), int(x)] < z  # something, if only itself, is before an object's middle
    assert found > 15


def test_the_loaders_read_what_was_written(folder):
    dataset = load_dataset(folder)
    assert len(dataset.views) == 10 and len(dataset.test) == 2
    config = MessyConfig(seed=3, objects=6, views=10, **SMALL)
    scene = MessyScene(config)
    frame = scene.frame(7)
    told = PanopticSegmenter(PanopticSegmenterConfig(), config.seed).of(scene, frame)
    view = dataset.views[7]
    assert np.allclose(np.linalg.inv(view.camera.viewmat.numpy()), frame.pose, atol=1e-5)
    assert np.allclose(view.camera.K.numpy(), scene.K, atol=1e-3)
    assert abs(view.image().numpy() - frame.image).max() < 0.003
    segments, truth = open_segments(folder).read("00007"), open_truth(folder).read("00007")
    assert np.array_equal(truth.ids, frame.instances) and np.array_equal(truth.semantics, frame.semantics)
    assert np.array_equal(segments.ids, told.ids) and np.array_equal(segments.semantics, told.semantics)
    assert np.allclose(segments.confidence, told.confidence)


@pytest.mark.slow  # each process loads the package anew
def test_several_processes_write_the_same(folder, tmp_path):
    save_messy(tmp_path / "again", MessyConfig(seed=3, objects=6, views=10, **SMALL), jobs=2)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes(), path


def test_a_room_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(messy_files, "_write_view", fail)
    with pytest.raises(OSError, match="disk full"):
        save_messy(tmp_path / "room", MessyConfig(objects=2, views=2, **SMALL))
    assert not list(tmp_path.iterdir())


def test_preparing_by_texts_reports_and_replaces_only_its_own(tmp_path):
    options = {"objects": "5", "views": "4", "width": "48", "height": "40", "supersample": "1", "errors": "0"}
    said = prepare_messy(tmp_path / "room", **options)
    assert "4 views of 48x40, 5 objects; per-frame PQ of the 2D segments 100.0" in said
    with pytest.raises(ValueError, match="--overwrite"):
        prepare_messy(tmp_path / "room", **options)
    prepare_messy(tmp_path / "room", overwrite=True, **options | {"views": "3"})
    assert len(list((tmp_path / "room" / "color").iterdir())) == 3
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="something else"):
        prepare_messy(tmp_path / "mine", overwrite=True, **options)
    with pytest.raises(ValueError, match="no option 'object'"):
        prepare_messy(tmp_path / "new", object="5")
    with pytest.raises(ValueError, match="objects must be a whole number"):
        prepare_messy(tmp_path / "new", objects="many")
    with pytest.raises(ValueError, match="jobs"):
        save_messy(tmp_path / "new", jobs=0)
    with pytest.raises(FileExistsError):
        save_messy(tmp_path / "room")
    assert Image.open(tmp_path / "room/color/00000.png").size == (48, 40)

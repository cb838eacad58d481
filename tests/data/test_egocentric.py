"""Generated egocentric videos: one truth for images, cameras, labels and files, and a script that shows what
it promises.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from gsfields.data.egocentric import (
    BODY,
    DYNAMIC,
    SEMISTATIC,
    STATIC,
    EgocentricConfig,
    make_sequence,
)
from gsfields.data.egocentric_files import annotation_images, save_sequence
from gsfields.data.load import load_dataset
from gsfields.data.raytrace import expose
from gsfields.data.segmenter import SegmenterConfig, segment
from gsfields.evaluate.udos import evaluate_motion_masks

SMALL = {"width": 76, "height": 43, "supersample": 1}


@pytest.fixture(scope="module")
def video():
    sequence = make_sequence(EgocentricConfig(seed=2, frames=40, **SMALL))
    return sequence, list(sequence.stream(workers=2))


def project(sequence, pose, points):
    """World points [3, N] -> (x, y, depth) in the image of a camera at `pose`."""
    local = np.linalg.inv(pose)[:3] @ np.vstack([points, np.ones(points.shape[1])])
    return np.vstack([(sequence.K @ local)[:2] / local[2], local[2]])


def unproject(sequence, frame):
    """The world points [3, H·W] that a frame's pixel centres show."""
    height, width = frame.depth.shape
    y, x = np.mgrid[:height, :width] + 0.5
    rays = np.linalg.inv(sequence.K) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    pose = sequence.exact_pose(frame.index)
    return pose[:3, :3] @ (rays * frame.depth.ravel()) + pose[:3, 3:]


def sees(sequence, index, point) -> bool:
    x, y, z = project(sequence, sequence.exact_pose(index), np.asarray(point, float)[:, None])[:, 0]
    return z > 0 and 0 <= x < sequence.config.width and 0 <= y < sequence.config.height


def test_the_same_configuration_gives_the_same_bits_and_another_seed_another_video(video):
    sequence, frames = video
    again = make_sequence(sequence.config)
    for index in (0, 9, 25):  # alone, in another order and thread
        frame = again.frame(index)
        for name in ("image", "labels", "ambiguous", "instances", "depth", "motion", "surface"):
            assert np.array_equal(getattr(frame, name), getattr(frames[index], name)), name
    other = make_sequence(EgocentricConfig(seed=3, frames=40, **SMALL)).frame(0)
    assert abs(other.image - frames[0].image).mean() > 0.05


def test_labels_follow_from_instances_and_the_script(video):
    sequence, frames = video
    act, things = sequence.activity, len(sequence.activity.things)
    assert sequence.names == ["room", *sequence.names[1 : 1 + things], "left arm", "right arm", "tool"]
    kinds_seen = set()
    for frame in frames:
        for instance in np.unique(frame.instances):
            labels = np.unique(frame.labels[frame.instances == instance]).tolist()
            kinds_seen.update(labels)
            if instance == 0:
                assert labels == [STATIC]
            elif instance > things:
                assert labels == [DYNAMIC if sequence.names[instance] == "tool" else BODY]
            else:
                held = any(m.thing == instance - 1 and m.start < frame.time < m.stop for m in act.moves)
                moved = any(m.thing == instance - 1 for m in act.moves)
                assert labels == [DYNAMIC if held else SEMISTATIC if moved else STATIC]
        assert (frame.dynamic >= (frame.labels == BODY)).all()
        assert not (frame.motion > 1e-6)[frame.labels == STATIC].any()
        if not frame.dynamic.any():
            assert frame.motion.max() < 1e-6 or (frame.labels[frame.motion > 1e-6] == SEMISTATIC).all()
    assert kinds_seen == {STATIC, SEMISTATIC, DYNAMIC, BODY}
    shares = np.array([[(f.labels == k).mean() for k in (SEMISTATIC, DYNAMIC, BODY)] for f in frames])
    assert (shares.max(axis=0) > [0.01, 0.005, 0.03]).all() and shares[:, 2].max() < 0.5
    assert (shares[:, 1:].sum(axis=1) == 0).any()  # hands are away at times


def test_exact_poses_bring_static_points_from_frame_to_frame(video):
    """A point of one frame is found in the other at its depth, unless something is before it."""
    sequence, frames = video
    compared = 0
    for a, b in ((0, 2), (8, 10), (30, 33)):
        still = (frames[a].labels == STATIC).ravel()
        x, y, z = project(sequence, sequence.exact_pose(b), unproject(sequence, frames[a])[:, still])
        inside = (z > 0.1) & (x >= 0) & (x < 76) & (y >= 0) & (y < 43)
        column, row = np.floor(x[inside]).astype(int), np.floor(y[inside]).astype(int)
        there, expected = frames[b].depth[row, column], z[inside]
        # In front of what is there nothing static can be; a pixel's side changes the depth by a little.
        assert (expected > there * 0.9).mean() > 0.97
        assert (abs(expected - there) < 0.05 * expected).mean() > 0.7
        compared += inside.sum()
    assert compared > 3000


def test_image_motion_is_that_of_the_tracked_surface(video):
    """A thing in a hand: its points, moved with it by hand, project `motion` pixels away."""
    sequence, frames = video
    move = sequence.activity.moves[0]
    frame = next(f for f in frames if f.time > move.start + 0.3)
    here = (frame.instances == 1 + move.thing).ravel()
    assert here.sum() > 5
    points, gap, track = (
        unproject(sequence, frame)[:, here],
        sequence.config.frame_seconds,
        sequence.activity.things[move.thing],
    )
    lengths = []
    for step in (-gap, gap):
        now, then, pose = (
            track(frame.time),
            track(frame.time + step),
            sequence.activity.camera(frame.time + step),
        )
        turn = Rotation.from_euler("z", then[3] - now[3]).as_matrix()
        moved = turn @ (points - now[:3, None]) + then[:3, None]
        lengths.append(np.hypot(*(project(sequence, pose, moved) - project(sequence, pose, points))[:2]))
    assert np.allclose(np.maximum(*lengths), frame.motion.ravel()[here], atol=1e-3)


def test_a_thing_that_is_carried_is_semistatic_before_and_after_and_elsewhere():
    sequence = make_sequence(EgocentricConfig(seed=2, frames=60, **SMALL))
    spots = sequence.activity.spots
    for move in sequence.activity.moves:
        track = sequence.activity.things[move.thing]
        source, target = spots[move.source].position, spots[move.target].position
        assert np.allclose(track(move.start)[:3], source) and np.allclose(track(move.stop)[:3], target)
        assert np.linalg.norm(source - target) > 0.1
        assert sequence.activity.moving(move.thing, (move.start + move.stop) / 2)
    move = sequence.activity.moves[0]
    for time in (move.start - 0.3, move.stop + 0.3):
        index = round(time / sequence.config.frame_seconds)
        frame = sequence.frame(index)
        seen = frame.labels[frame.instances == 1 + move.thing]
        assert (seen == SEMISTATIC).all()
    shown = [(f.instances == 1 + move.thing).any() for f in (sequence.frame(i) for i in (0, 1, 2))]
    assert any(shown)


def test_hands_hold_what_they_carry():
    """While a thing is carried, a hand's middle is within reach of it, and it moves with it."""
    sequence = make_sequence(EgocentricConfig(seed=2, frames=60, **SMALL))
    things = len(sequence.activity.things)
    for move in sequence.activity.moves:
        for time in np.linspace(move.start + 0.05, move.stop - 0.05, 5):
            scene = sequence.scene(time)
            thing, left, right = (
                scene.bodies[len(sequence.scenery) + i] for i in (move.thing, things, things + 1)
            )
            parts = np.array([p.center for arm in (left, right) for p in arm.parts[3:]])
            away = min(np.linalg.norm(parts - p.center, axis=1).min() for p in thing.parts)
            assert away < 0.12


@pytest.mark.parametrize("frames", [60, 250])
def test_the_camera_sees_again_what_things_have_left_only_if_asked(frames):
    again = {True: [], False: []}
    for revisits, counts in again.items():
        for seed in range(4):
            sequence = make_sequence(EgocentricConfig(seed=seed, frames=frames, revisits=revisits, **SMALL))
            assert sequence.activity.moves
            for move in sequence.activity.moves[:-1]:
                place = sequence.activity.spots[move.source].position + [0, 0, 0.06]
                after = int((move.stop + 0.5) / sequence.config.frame_seconds) + 1
                counts.append(sum(sees(sequence, i, place) for i in range(after, frames)))
    assert min(again[True]) >= 1 and np.mean(again[True]) > 5
    assert max(again[False]) == 0


@pytest.mark.parametrize("frames", [2, 8, 1500])
@pytest.mark.parametrize("speed", [0.4, 2.5])
def test_scripts_of_any_length_end_in_time(frames, speed):
    for seed in range(4):
        sequence = make_sequence(EgocentricConfig(seed=seed, frames=frames, speed=speed, **SMALL))
        act = sequence.activity
        assert all(a.stop <= b.start for a, b in zip(act.moves, act.moves[1:], strict=False))
        assert not act.moves or act.moves[-1].stop <= act.duration
        assert frames < 8 or act.moves
        occupied = [
            int(np.argmin([np.linalg.norm(s.position - t(1e9)[:3]) for s in act.spots])) for t in act.things
        ]
        assert len(set(occupied)) == len(occupied)
        eyes = np.stack([sequence.exact_pose(i)[:3, 3] for i in range(0, frames, 1 + frames // 50)], axis=1)
        assert not sequence.scene(0.0).inside(eyes).any()


def test_speed_changes_how_fast_hands_move():
    def carried(speed: float) -> float:
        moves = [
            m
            for s in range(6)
            for m in make_sequence(EgocentricConfig(seed=s, frames=200, speed=speed)).activity.moves
        ]
        return float(np.median([m.stop - m.start for m in moves]))

    assert carried(0.5) > 1.4 * carried(1.0) > 1.4 * 1.2 * carried(2.0)


def test_motion_blur_mixes_instants_and_marks_the_mixtures(video):
    sequence, frames = video
    blurred = make_sequence(
        EgocentricConfig(seed=2, frames=40, **(SMALL | {"supersample": 2}), motion_blur=0.5)
    )
    sharp = make_sequence(EgocentricConfig(seed=2, frames=40, **(SMALL | {"supersample": 2})))
    move = sequence.activity.moves[0]
    index = next(f.index for f in frames if f.time > move.start + 0.3)
    a, b = blurred.frame(index), sharp.frame(index)
    assert np.array_equal(a.labels, b.labels) and np.array_equal(a.depth, b.depth)
    assert a.ambiguous.sum() > 1.3 * b.ambiguous.sum() > 0
    assert abs(np.diff(a.image, axis=1)).mean() < 0.97 * abs(np.diff(b.image, axis=1)).mean()
    # One shot is what the others are without blur: the mean of four single ones is the image.
    time, pose = b.time, sharp.exact_pose(index)
    image, _ = expose([(sharp.scene(time), pose)] * 4, sharp.K, 76, 43)
    assert np.array_equal(image, b.image)


def test_pose_noise_is_told_but_not_shown():
    noisy = make_sequence(
        EgocentricConfig(seed=2, frames=200, pose_noise_degrees=0.5, pose_noise_metres=0.01, **SMALL)
    )
    exact = np.stack([noisy.exact_pose(i) for i in range(200)])
    shift = (noisy.poses - exact)[:, :3, 3]
    turns = Rotation.from_matrix(noisy.poses[:, :3, :3].transpose(0, 2, 1) @ exact[:, :3, :3]).as_rotvec()
    assert abs(shift.std() - 0.01) < 0.001 and abs(np.degrees(turns).std() - 0.5) < 0.05
    clean = make_sequence(EgocentricConfig(seed=2, frames=200, **SMALL))
    assert np.array_equal(clean.poses, exact)
    assert np.array_equal(clean.frame(7).image, noisy.frame(7).image)


def test_points_lie_on_surfaces_that_never_move(video):
    sequence, frames = video
    points, colors = sequence.points()
    assert 1000 < len(points) == len(colors) and colors.min() >= 0 and colors.max() <= 1
    on_static, on_others = 0, 0
    for frame in frames:
        x, y, z = project(sequence, sequence.exact_pose(frame.index), points.T)
        shown = (z > 0) & (x >= 0) & (x < 76) & (y >= 0) & (y < 43)
        row, column = y[shown].astype(int), x[shown].astype(int)
        there = abs(frame.depth[row, column] - z[shown]) < 0.02
        still = frame.labels[row, column] == STATIC
        on_static += (there & still).sum()
        on_others += (there & ~still).sum()
    assert on_static > 20000
    assert on_others < 0.003 * on_static  # those under things and beside their edges


def test_annotations_tell_bodies_things_and_doubt_apart():
    sequence = make_sequence(EgocentricConfig(seed=2, frames=40, width=76, height=43))
    seen = set()
    for frame in map(sequence.frame, (1, 5, 6, 8)):
        dynamic, semistatic, both = (
            annotation_images(frame)[m] for m in ("dynamic", "semistatic", "dynamic_semistatic")
        )
        sure = ~frame.ambiguous
        assert np.array_equal(dynamic == 1, (frame.labels == DYNAMIC) | (frame.labels == BODY))
        assert np.array_equal(semistatic == 2, frame.ambiguous) and np.array_equal(both == 2, frame.ambiguous)
        assert np.array_equal((semistatic == 1)[sure], (frame.labels == SEMISTATIC)[sure])
        assert np.array_equal((both == 3)[sure], (frame.labels == BODY)[sure])
        things = (frame.labels == SEMISTATIC) | (frame.labels == DYNAMIC)
        assert np.array_equal((both == 1)[sure], things[sure])
        seen |= set(np.unique(both))
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("layout", ["epic_fields", "transforms"])
def test_files_round_trip(tmp_path, layout):
    sequence = make_sequence(EgocentricConfig(seed=2, frames=8, **SMALL))
    frames = list(sequence.stream())
    masks = SegmenterConfig(seed=4)
    save_sequence(tmp_path / "video", sequence, masks, layout=layout)
    folder = tmp_path / "video"
    assert not list(tmp_path.glob(".*"))
    step, images, prefix = (
        (7, "frames", "annotations/test_{}/S02_01")
        if layout == "epic_fields"
        else (1, "images", "annotations/{}")
    )
    stems = [f"frame_{1 + i * step:010d}" for i in range(8)]
    assert sorted(p.stem for p in (folder / images).iterdir()) == stems
    assert json.loads((folder / "objects.json").read_text()) == sequence.names
    values = {"dynamic": {0, 1}, "semistatic": {0, 1, 2}, "dynamic_semistatic": {0, 1, 2, 3}}
    for frame, stem, score in zip(frames, stems, segment(sequence, masks, frames), strict=True):
        assert np.array_equal(np.asarray(Image.open(folder / "instances" / f"{stem}.png")), frame.instances)
        mask = np.asarray(Image.open(folder / "motion_masks" / f"{stem}.png"))
        assert mask.dtype == np.uint8 and abs(mask / 255 - score).max() <= 0.5 / 255 + 1e-6
        for motion, labels in annotation_images(frame).items():
            written = np.asarray(Image.open(folder / prefix.format(motion) / f"{stem}.png"))
            assert written.dtype == np.uint8 and np.array_equal(written, labels)
            assert set(np.unique(written)) <= values[motion]
    if layout == "epic_fields":
        told = json.loads((folder / "S02_01.json").read_text())
        assert told["camera"]["model"] == "OPENCV" and len(told["camera"]["params"]) == 8
        assert list(told["images"]) == [f"{stem}.jpg" for stem in stems]
        split = json.loads((folder / "split/test.json").read_text())
        assert split == {
            "S02_01": {"within_action": list(told["images"]), "outside_action": [], "outside_action_easy": []}
        }
        assert json.loads((folder / "split/train.json").read_text())["S02_01"]["within_action"] == []

    data = load_dataset(folder, split_every=0)
    assert len(data.views) == 8 and data.points is not None
    by_stem = sorted(data.views, key=lambda view: view.name)
    for view, frame in zip(by_stem, frames, strict=True):
        pose = np.linalg.inv(view.camera.viewmat.double().numpy())
        assert np.allclose(pose, sequence.exact_pose(frame.index), atol=1e-5)
        assert abs(view.image().numpy() - frame.image).mean() < 0.03
        assert view.has_motion_mask
    assert np.allclose(data.times().numpy(), np.linspace(0, 1, 8))
    scores = evaluate_motion_masks(folder / "motion_masks", folder)
    assert 0 < scores.mean("dynamic") < 100


def test_saving_refuses_what_it_cannot_do(tmp_path):
    sequence = make_sequence(EgocentricConfig(frames=2, **SMALL))
    with pytest.raises(ValueError, match=r"layout .*colmap"):
        save_sequence(tmp_path / "a", sequence, layout="colmap")
    with pytest.raises(ValueError, match="frame_step"):
        save_sequence(tmp_path / "a", sequence, frame_step=0)
    with pytest.raises(FileExistsError, match="exists"):
        save_sequence(tmp_path, sequence)
    with pytest.raises(FileNotFoundError):
        save_sequence(tmp_path / "missing" / "a", sequence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"seed": -1}, {"frames": 0}, {"width": 4}, {"height": 1.5}, {"supersample": 0}, {"things": 2},
        {"things": 7}, {"fov_degrees": 180}, {"frame_seconds": 0}, {"speed": 0}, {"motion_blur": 1.1},
        {"motion_blur": 0.5, "supersample": 1},
        {"pose_noise_degrees": -1}, {"pose_noise_metres": float("nan")}, {"frames": True},
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings_are_named(bad):
    name, *_ = bad
    with pytest.raises(ValueError, match=name):
        EgocentricConfig(**bad)


def test_a_frame_outside_the_video_is_refused():
    with pytest.raises(IndexError, match="from 0 to 1"):
        make_sequence(EgocentricConfig(frames=2, **SMALL)).frame(2)

"""Tracking in 2D, on balls above a floor: where each baseline must succeed, and where it must fail."""

import numpy as np
import pytest

from benchmarks.baselines.tracking import Frame, _Votes, hungarian, hungarian_warped, on_points
from gsfields.camera import Camera
from gsfields.data.segments import Classes
from gsfields.evaluate.panoptic import PanopticCounts

SIZE = 64
SPACING = 1.2
BALLS = np.array(
    [[x * SPACING, z * SPACING, -0.5] for x in range(-3, 4) for z in range(3)]
)  # radius 0.5, y up
RADIUS = 0.5


def shot(eye, target) -> Frame:
    """True ids, depth and camera: balls that rest on the floor z = -1 (up is z)."""
    camera = Camera.look_at(eye, target, [0, 0, 1], width=SIZE, height=SIZE, fov_y_degrees=50)
    K, c2w = camera.K.double().numpy(), camera.c2w.double().numpy()
    x, y = np.meshgrid(*2 * [np.arange(SIZE) + 0.5])
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], axis=-1)  # z is 1
    rays, origin = rays @ c2w[:3, :3].T, c2w[:3, 3]
    below = rays[..., 2] < 0
    depth = np.where(below, (-1 - origin[2]) / np.where(below, rays[..., 2], -1), np.inf)
    ids = np.zeros((SIZE, SIZE), dtype=int)
    for i, ball in enumerate(BALLS, 1):
        a, b, c = (rays**2).sum(-1), rays @ (origin - ball), ((origin - ball) ** 2).sum() - RADIUS**2
        t = (-b - np.sqrt(np.maximum(b**2 - a * c, 0))) / a
        nearer = (b**2 > a * c) & (t < depth)
        ids[nearer], depth[nearer] = i, t[nearer]
    return Frame(ids, depth=depth, camera=camera)


def circling(step: float, count: int) -> list[Frame]:
    """A camera on a circle around the balls, `step` degrees between frames."""
    angles = np.radians(-90 + step * (np.arange(count) - count / 2))
    return [shot([6 * np.cos(a), 1.2 + 6 * np.sin(a), 4], [0, 1.2, -0.5]) for a in angles]


def shuffled(frames, seed=0) -> list[Frame]:
    """The frames as a segmenter gives them: each numbers its objects as it likes."""
    rng = np.random.default_rng(seed)
    names = (np.append(0, 10 + rng.permutation(500)[: len(BALLS)]) for _ in frames)
    return [frame._replace(ids=name[frame.ids]) for frame, name in zip(frames, names)]


def quality(frames, predicted) -> float:
    """PQ of the things, over the whole scene."""
    counts = PanopticCounts(Classes())
    for frame, ids in zip(frames, predicted, strict=True):
        counts.add(ids > 0, ids, frame.ids > 0, frame.ids)
    return counts.scores().pq_things


def cloud() -> np.ndarray:
    """Points on the balls and the floor."""
    rng, points = np.random.default_rng(0), []
    for ball in BALLS:
        directions = rng.normal(size=(300, 3))
        points.append(ball + RADIUS * directions / np.linalg.norm(directions, axis=1, keepdims=True))
    floor = np.append(rng.uniform(-6, 6, (2000, 2)), np.full((2000, 1), -1.0), axis=1)
    return np.concatenate([*points, floor])


def test_a_camera_that_stands_still():
    frames = [shot([0, -5, 4], [0, 1, -0.5])] * 4
    shown = shuffled(frames)
    for ids in (hungarian(shown), hungarian_warped(shown), on_points(shown, cloud())):
        assert quality(frames, ids) == 1


def test_a_camera_that_moves_slowly():
    frames = circling(step=3, count=10)
    shown = shuffled(frames)
    assert quality(frames, shown_ids(shown)) < 0.05  # ids as given mean nothing
    assert quality(frames, hungarian(shown)) > 0.9
    assert quality(frames, hungarian_warped(shown)) > 0.9
    assert quality(frames, on_points(shown, cloud())) > 0.9


def shown_ids(frames):
    return [frame.ids for frame in frames]


def test_large_steps_need_geometry():
    """The camera moves by one ball per frame: every ball is where its neighbour was, and no image tells."""
    frames = [shot([SPACING * i, -6, 3], [SPACING * i, 1.2, -0.5]) for i in (-1, 0, 1)]
    shown = shuffled(frames)
    in_place = quality(frames, hungarian(shown))
    assert in_place < 0.5
    assert quality(frames, hungarian_warped(shown)) > 0.95
    assert quality(frames, on_points(shown, cloud())) > 0.9
    around = circling(step=25, count=8)
    shown = shuffled(around)
    assert quality(around, hungarian(shown)) < 0.5 < 0.85 < quality(around, hungarian_warped(shown))
    assert quality(around, on_points(shown, cloud())) > 0.85


def strip(*ids, **kwargs) -> Frame:
    """One row of pixels, four for each id."""
    return Frame(np.repeat([ids], 4, axis=1), **kwargs)


def test_tracks_are_remembered_for_a_while():
    seen, missed = strip(7, 0, 9), strip(0, 0, 9)
    frames = [seen, missed, missed, strip(3, 0, 5)]
    first, *_, last = hungarian(frames, memory=2)
    np.testing.assert_array_equal(last, first)
    first, *_, last = hungarian(frames, memory=1)
    assert last[0, -1] == first[0, -1] and last[0, 0] not in first


def test_a_track_is_looked_for_where_it_was_seen_last():
    """An object that went from left to right in small steps is not at its first place any more."""
    path = [
        Frame(np.eye(1, 12, k, dtype=int).repeat(4, 0) + np.eye(1, 12, k + 1, dtype=int)) for k in range(5)
    ]
    path.append(Frame(path[0].ids + 2 * path[4].ids))
    *_, end, both = hungarian(path, memory=10)
    assert len(np.unique(end)) == 2
    assert both[0, 4] == end[0, 4] == 1 and both[0, 0] == 2


def test_one_object_takes_one_track():
    """Two halves of what was one: the larger keeps the id, the other is new."""
    whole, halves = Frame(np.full((1, 10), 4)), Frame(np.array([[8] * 6 + [2] * 4]))
    first, second = hungarian([whole, halves])
    assert first.tolist() == [[1] * 10] and second.tolist() == [[1] * 6 + [2] * 4]


def test_weak_overlaps_do_not_count_and_displace_nothing():
    before, after = Frame(np.array([[1] * 10 + [2] * 10])), Frame(np.array([[0] * 8 + [3] * 12]))
    _, ids = hungarian([before, after], min_iou=0.3)
    assert set(ids[0, 8:]) == {2}
    _, ids = hungarian([before, after], min_iou=0.9)
    assert set(ids[0, 8:]) == {3}
    # IoU 0.39 of track 1 with the first segment; 0.32 of 2 with it and 0.23 of 1 with the other would be more
    before = Frame(np.array([[1] * 20 + [2] * 14 + [0] * 20]))
    after = Frame(np.array([[5] * 9 + [4] * 19 + [0] * 6 + [5] * 20]))
    _, ids = hungarian([before, after], min_iou=0.3)
    assert set(ids[0, 9:28]) == {1} and set(ids[0, :9]) == {3}


def test_a_track_keeps_to_its_class():
    ids = strip(1, 0, 2).ids
    chair_table, table_table = (np.where(ids == 1, c, 5) for c in (4, 5))
    table_table[0, 0] = 4  # one pixel in four is wrong
    first, same, other = hungarian(
        [Frame(ids, chair_table), Frame(ids, chair_table), Frame(ids, table_table)]
    )
    np.testing.assert_array_equal(first, same)
    assert other[0, -1] == first[0, -1] and other[0, 0] not in first

    chairs = np.full_like(ids, 4)
    mistaken = np.where(np.arange(ids.size) == 0, 5, chairs)
    first, second = hungarian([Frame(ids, chairs), Frame(ids, mistaken)])
    np.testing.assert_array_equal(first, second)


def test_hidden_points_are_not_warped():
    """Something hangs before a ball, seen by the first camera; the second sees the ball and not what hid it."""
    front, side = shot([0, -6, 3], [0, 1.2, -0.5]), shot([2, -5.5, 3], [0, 1.2, -0.5])
    ball = front.ids == 10  # the front one in the middle
    hung = front._replace(ids=ball.astype(int), depth=np.where(ball, 1.0, front.depth))
    _, ids = hungarian_warped([hung, side])
    assert 1 not in ids
    _, ids = on_points([hung, side], cloud())
    assert 1 not in ids
    _, ids = hungarian_warped([hung, side], tolerance=100.0)
    assert set(ids[side.ids == 10]) == {1}  # without the test of depths the ball takes the id of what hid it


def test_points_outvote_one_bad_frame():
    """A frame that takes all for one object does not cost the objects their points."""
    good = shot([0, -5, 4], [0, 1, -0.5])
    frames = [good, good, good._replace(ids=(good.ids > 0).astype(int)), good]
    first, _, _, last = on_points(frames, cloud())
    np.testing.assert_array_equal(last, first)


def test_what_points_were_before_counts_by_how_often():
    """Seen whole three times and in halves once, then only the smaller half: the object, not that half."""
    camera = Camera(np.eye(4), [[10.0, 0, 0], [0, 10, 0], [0, 0, 1]], width=10, height=1)
    points = np.stack([np.arange(10) / 10 + 0.05, np.full(10, 0.05), np.ones(10)], axis=1)
    whole, halves, half = [1] * 10, [1] * 6 + [2] * 4, [0] * 6 + [3] * 4
    rows = (whole, whole, whole, halves, half)
    ids = list(on_points([Frame(np.array([r]), None, np.ones((1, 10)), camera) for r in rows], points))
    assert ids[3].tolist() == [halves] and set(ids[4][0, 6:]) == {1}


def test_votes():
    """Shares of what each point got, of the points asked for; none is no vote."""
    votes = _Votes(4)
    for ids in ([5, 0, 7], [5, 0, 0], [2, 6, 7], [5, 6, 0]):
        votes.add(np.array([0, 1, 3]), np.array(ids))
    which, ids, shares = votes.shares(np.array([3, 2, 0]))
    found = {(int(w), int(i)): s for w, i, s in zip(which, ids, shares, strict=True)}
    assert found == {(0, 7): 1, (1, 0): 1, (2, 5): 0.75, (2, 2): 0.25}


def test_bad_input():
    plain = strip(1, 2)
    with pytest.raises(ValueError, match="min_iou"):
        hungarian([plain], min_iou=0)
    with pytest.raises(ValueError, match="memory"):
        hungarian_warped([], memory=-1)
    with pytest.raises(ValueError, match=r"points must be \[M, 3\]"):
        on_points([], np.zeros((4, 2)))
    with pytest.raises(ValueError, match="frame 0 must have a depth and a camera"):
        list(hungarian_warped([plain]))
    with pytest.raises(ValueError, match="one size"):
        list(hungarian([plain, strip(1, 2, 3)]))
    with pytest.raises(ValueError, match="ids of frame 0"):
        list(hungarian([Frame(np.zeros((2, 2)))]))
    with pytest.raises(ValueError, match="semantics of frame 0"):
        list(hungarian([Frame(plain.ids, plain.ids.T)]))
    view = shot([0, -5, 4], [0, 1, -0.5])
    with pytest.raises(ValueError, match="depth of frame 0"):
        list(hungarian_warped([view._replace(depth=np.ones((2, 2)))]))

"""The static world against matches of known 3D points."""

import numpy as np
import pytest
import torch

from gsfields.camera import Camera
from gsfields.priors.static_world import Matches, epipolar_pencil, fit_static_world, project

SIZE = (48, 64)
K = torch.tensor([[60.0, 0, 32], [0, 55.0, 24], [0, 0, 1]])


def camera(x: float = 0.0, y: float = 0.0, z: float = 0.0, turn: float = 0.0) -> Camera:
    """At (x, y, z), turned about the vertical by `turn` radians."""
    c, s = np.cos(turn), np.sin(turn)
    c2w = np.array([[c, 0, s, x], [0, 1, 0, y], [-s, 0, c, z], [0, 0, 0, 1]])
    return Camera(torch.from_numpy(np.linalg.inv(c2w)), K.double(), SIZE[1], SIZE[0])


def depths() -> np.ndarray:
    """Depth [H, W] of a bumpy surface, 1.5 to 4.5 units away."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return 3 + np.sin(x / 7) + 0.5 * np.cos(y / 5)


def seen_from(other: Camera, depth: np.ndarray, offset: np.ndarray | None = None) -> Matches:
    """Matches of the points of the first camera's image, moved by `offset` [3] in the world; by plain projection."""
    x, y = np.meshgrid(np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5)
    points = np.stack([(x - 32) / 60, (y - 24) / 55, np.ones_like(x)], axis=-1) * depth[..., None]
    points = points + (0 if offset is None else offset)
    viewmat = other.viewmat.numpy()
    p = (points @ viewmat[:3, :3].T + viewmat[:3, 3]) @ K.double().numpy().T
    return Matches(other, (p[..., :2] / p[..., 2:]).astype(np.float32), np.ones(SIZE, np.float32))


def lengths(fit) -> np.ndarray:
    return np.linalg.norm(fit.residuals, axis=-1)


OTHERS = [camera(0.2, 0.05, turn=0.03), camera(-0.1, 0.1, 0.1), camera(0.3, -0.2, -0.1, turn=-0.05)]
BOUNDS = (0.05, 2.0)


def test_matches_of_static_points_are_explained_and_give_their_depths():
    depth = depths()
    fit = fit_static_world(camera(), [seen_from(c, depth) for c in OTHERS], bounds=BOUNDS, rounds=4)
    np.testing.assert_allclose(1 / fit.inverse_depth, depth, rtol=2e-3)
    assert lengths(fit).max() < 0.02
    np.testing.assert_allclose(fit.sigmas, 0.2)  # the floor


def test_the_pencil_is_the_epipolar_line():
    a, b = epipolar_pencil(camera(), OTHERS[0])
    for depth in (0.7, 3.0, 50.0):
        expected = seen_from(OTHERS[0], np.full(SIZE, depth)).points
        np.testing.assert_allclose(project(a, b, np.full(SIZE, 1 / depth, np.float32)), expected, atol=2e-3)


@pytest.mark.parametrize("offset", [(0.0, 0.2, 0.0), (0.2, 0.0, 0.0), (0.0, 0.0, -0.5)])
def test_what_moves_is_not_explained(offset: tuple[float, float, float]):
    """Also along the epipolar lines of a camera that only moves sideways: there it is the depths that disagree."""
    depth, part = depths(), np.s_[10:30, 20:40]
    sideways = [camera(0.2), camera(-0.2), camera(0.4), camera(-0.4)]
    matches = []
    for shift, other in zip(
        (1, -1, 0, 0), sideways
    ):  # stands still at the wider gaps, elsewhere at the nearer
        match, moved = seen_from(other, depth), seen_from(other, depth, shift * np.array(offset))
        match.points[part] = moved.points[part]
        matches.append(match)
    worst = lengths(fit_static_world(camera(), matches, bounds=BOUNDS)).max(axis=0)
    still = np.ones(SIZE, bool)
    still[part] = False
    assert worst[still].max() < 0.05 and worst[part].min() > 0.5


def test_a_camera_that_only_turns_sees_motion_as_the_homographys_residual():
    depth, part = depths(), np.s_[10:30, 20:40]
    matches = [seen_from(camera(turn=turn), depth) for turn in (0.02, -0.02, 0.05)]
    for match in matches:
        match.points[part] += np.float32([3.0, 0.0])
    fit = fit_static_world(camera(), matches, bounds=BOUNDS)
    found = lengths(fit)
    still = np.ones(SIZE, bool)
    still[part] = False
    assert np.isfinite(fit.inverse_depth).all() and found[:, still].max() < 0.05
    np.testing.assert_allclose(found[:, part[0], part[1]], 3.0, atol=0.1)


def test_what_would_be_behind_the_camera_moves():
    """A match that goes against the parallax of every depth, along the epipolar line of a single pair."""
    match = seen_from(camera(0.3), depths())
    match.points[20, 30] = [30.5 + 4, 20.5]  # the camera goes right, so whatever stands still goes left
    found = lengths(fit_static_world(camera(), [match], bounds=BOUNDS))[0]
    assert found[20, 30] > 4 and np.delete(found.ravel(), 20 * SIZE[1] + 30).max() < 0.05


def test_a_wrong_pose_is_no_motion():
    depth = depths()
    wrong = []
    for other in OTHERS:
        match = seen_from(other, depth)
        pose = camera(turn=0.01).viewmat @ other.viewmat  # half a degree: about 0.6 pixels
        wrong.append(Matches(Camera(pose, K.double(), SIZE[1], SIZE[0]), match.points, match.weight))
    assert np.median(lengths(fit_static_world(camera(), wrong, bounds=BOUNDS, rounds=6))) < 0.15


def test_pixels_without_matches_count_for_nothing():
    depth = depths()
    matches = [seen_from(c, depth) for c in OTHERS]
    matches[0].points[5:20] = 1e4
    matches[0].weight[5:20] = 0
    fit = fit_static_world(camera(), matches, bounds=BOUNDS)
    np.testing.assert_allclose(1 / fit.inverse_depth, depth, rtol=5e-3)
    assert fit.sigmas[0] == pytest.approx(0.2)

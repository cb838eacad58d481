"""Dense flow and edge-aware smoothing against shifts and regressions known exactly."""

import numpy as np
import pytest

pytest.importorskip("cv2", reason="motion masks need opencv-python-headless")

from gsfields.priors.flow import DenseFlow, follow, round_trip, stays_inside
from gsfields.priors.guided_filter import guided_filter
from tests.priors.video import texture


def test_a_shift_is_found():
    grey = (texture(0, 256).mean(-1) * 255).astype(np.uint8)
    first, second = grey[20:180, 30:230], grey[17:177, 25:225]  # what was at x is now at x + (5, 3)
    flow = DenseFlow()(first, second)
    assert np.abs(np.median(flow, axis=(0, 1)) - [5, 3]).max() < 0.1
    error = round_trip(flow, DenseFlow()(second, first))
    assert np.median(error[:150, :190]) < 0.1 and np.isinf(error[:, -3:]).all()
    assert not stays_inside(flow)[:, -3:].any() and stays_inside(flow)[:150, :190].all()


def test_follow_takes_the_value_that_the_flow_leads_to():
    values = np.arange(30, dtype=np.float32).reshape(5, 6)
    flow = np.zeros((5, 6, 2), np.float32)
    flow[..., 0], flow[..., 1] = 1.5, 2
    np.testing.assert_allclose(follow(values, flow)[:3, :4], (values[2:, 1:5] + values[2:, 2:]) / 2)
    assert (follow(values, flow, outside=-7)[3:] == -7).all()


def test_round_trip_measures_the_disagreement():
    forward, backward = np.zeros((2, 8, 9, 2), np.float32)
    forward[..., 0], backward[..., 0], backward[..., 1] = 2, -2, 0.5
    np.testing.assert_allclose(round_trip(forward, backward)[:, :7], 0.5)


def test_guided_filter_is_a_regression_in_every_window():
    rng = np.random.default_rng(0)
    image = texture(1, 64)[:20, :24]
    values = rng.uniform(size=(20, 24)).astype(np.float32)
    radius, epsilon = 2, 1e-3
    n = (2 * radius + 1) ** 2
    slopes, offsets = {}, {}
    for y in range(8, 13):
        for x in range(8, 13):
            window = np.s_[y - radius : y + radius + 1, x - radius : x + radius + 1]
            colors, target = image[window].reshape(n, 3).astype(np.float64), values[window].ravel()
            centered = colors - colors.mean(0)
            A = centered.T @ centered + n * epsilon * np.eye(3)  # ridge regression, no penalty on the offset
            slopes[y, x] = np.linalg.solve(A, centered.T @ (target - target.mean()))
            offsets[y, x] = target.mean() - slopes[y, x] @ colors.mean(0)
    expected = np.mean(list(slopes.values()), axis=0) @ image[10, 10] + np.mean(list(offsets.values()))
    assert guided_filter(image, values, radius, epsilon)[10, 10] == pytest.approx(expected, abs=1e-4)


def test_guided_filter_keeps_to_the_edges_of_the_image():
    image = np.zeros((40, 60, 3), np.float32)
    image[:, 30:] = 1
    rng = np.random.default_rng(1)
    values = np.where(image[..., 0] > 0, 0.8, 0.1).astype(np.float32)
    smooth = guided_filter(image, values + rng.normal(0, 0.2, values.shape).astype(np.float32), 6)
    assert abs(smooth - values).max() < 0.1
    np.testing.assert_allclose(
        guided_filter(texture(2, 64), np.full((64, 64), 0.3, np.float32), 4), 0.3, atol=1e-4
    )

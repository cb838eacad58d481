import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsfields.camera import Camera

K = [[50.0, 0.0, 32.0], [0.0, 60.0, 24.0], [0.0, 0.0, 1.0]]


def project(camera: Camera, point: torch.Tensor) -> torch.Tensor:
    seen = camera.viewmat[:3, :3] @ point.to(camera.viewmat) + camera.viewmat[:3, 3]
    pixel = camera.K @ seen
    return pixel[:2] / pixel[2]


coordinate = st.floats(-5, 5)


@settings(max_examples=50, deadline=None)
@given(
    eye=st.tuples(coordinate, coordinate, coordinate), target=st.tuples(coordinate, coordinate, coordinate)
)
def test_look_at_puts_the_target_in_the_middle_and_up_upwards(eye, target):
    up = torch.tensor([0.0, 0.0, 1.0])
    line = torch.tensor(target) - torch.tensor(eye)
    if line.norm() < 0.1 or torch.linalg.cross(line / line.norm(), up).norm() < 0.05:
        return
    camera = Camera.look_at(eye, target, up, width=64, height=48, fov_y_degrees=60)
    middle = project(camera, torch.tensor(target))
    assert torch.allclose(middle, torch.tensor([32.0, 24.0]), atol=1e-2)
    assert project(camera, torch.tensor(target) + 0.01 * up)[1] < middle[1]  # y points down
    assert torch.allclose(camera.position, torch.tensor(eye), atol=1e-5)
    rotation = camera.viewmat[:3, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-6) and torch.linalg.det(rotation) > 0


def test_field_of_view_spans_the_height():
    camera = Camera.look_at([0, -2, 0], [0, 0, 0], [0, 0, 1], width=64, height=48, fov_y_degrees=90)
    top = torch.tensor([0.0, 0.0, 2.0])  # at 45 degrees above the axis
    assert torch.allclose(project(camera, top), torch.tensor([32.0, 0.0]), atol=1e-4)


def test_look_at_keeps_dtype_and_values_of_a_given_K():
    camera = Camera.look_at(
        [1, 2, 3], [0, 0, 0], [0, 1, 0], width=64, height=48, K=torch.tensor(K, dtype=torch.float64)
    )
    assert camera.viewmat.dtype == torch.float64 and camera.K.tolist() == K


def test_scaled_rounds_the_size_and_scales_K_by_the_exact_ratio():
    camera = Camera(torch.eye(4), K, 65, 47).scaled(1 / 3)
    assert (camera.width, camera.height) == (22, 16)
    assert torch.allclose(camera.K[0], torch.tensor(K[0]) * 22 / 65)
    assert torch.allclose(camera.K[1], torch.tensor(K[1]) * 16 / 47)
    assert Camera(torch.eye(4), K, 65, 47).scaled(1e-6).width == 1


def test_batches_and_moves():
    viewmats = torch.eye(4).repeat(3, 1, 1)
    viewmats[:, 2, 3] = torch.tensor([1.0, 2.0, 3.0])
    camera = Camera(viewmats, torch.tensor(K).repeat(3, 1, 1), 64, 48).to(torch.float64)
    assert (
        camera.position.tolist() == [[0, 0, -1], [0, 0, -2], [0, 0, -3]] and camera.K.dtype == torch.float64
    )
    assert Camera(np.eye(4), np.array(K), 64, 48).viewmat.dtype == torch.float32  # anything but tensors
    assert torch.allclose(camera.c2w @ camera.viewmat, torch.eye(4, dtype=torch.float64).expand(3, 4, 4))


NAN = torch.full((4, 4), math.nan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.eye(3), K, 64, 48), r"viewmat must be \[4, 4\]"),
        ((torch.eye(4).repeat(2, 1, 1), K, 64, 48), r"K must be \[2, 3, 3\]"),
        ((torch.eye(4), torch.eye(4), 64, 48), r"K must be \[3, 3\]"),
        ((NAN, K, 64, 48), "viewmat must be finite"),
        ((torch.eye(4), [[math.inf, 0, 0], [0, 1, 0], [0, 0, 1]], 64, 48), "K must be finite"),
        ((torch.eye(4), [[0, 0, 0], [0, 1, 0], [0, 0, 1]], 64, 48), "focal lengths"),
        ((torch.eye(4), [[1, 0, 0], [0, -1, 0], [0, 0, 1]], 64, 48), "focal lengths"),
        ((torch.eye(4), [[1, 0.1, 0], [0, 1, 0], [0, 0, 1]], 64, 48), "skew"),
        ((torch.eye(4), [[1, 0, 0], [0, 1, 0], [0, 0, 2]], 64, 48), "last row of K"),
        ((torch.ones(4, 4), K, 64, 48), "last row of viewmat"),
        ((torch.eye(4).double(), torch.tensor(K), 64, 48), "share dtype and device"),
        ((torch.eye(4), K, 0, 48), "width must be a whole number"),
        ((torch.eye(4), K, 64, 4.5), "height must be a whole number"),
        ((torch.eye(4), K, True, 48), "width must be a whole number"),
    ],
)
def test_bad_cameras_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Camera(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": [0, 0, 0]}, "eye and target must differ"),
        ({"up": [0, 1, 0]}, "parallel"),
        ({"up": [0, 0, 0]}, "up must not be zero"),
        ({"eye": [0, math.nan, 0]}, "eye must be three finite numbers"),
        ({"fov_y_degrees": 180.0}, "fov_y_degrees must lie in"),
        ({"fov_y_degrees": None}, "either fov_y_degrees or K"),
        ({"K": K}, "and not both"),
    ],
)
def test_look_at_refuses(change, message):
    arguments = {
        "eye": [0, 0, 0],
        "target": [0, 1, 0],
        "up": [0, 0, 1],
        "width": 64,
        "height": 48,
        "fov_y_degrees": 60.0,
    }
    with pytest.raises(ValueError, match=message):
        Camera.look_at(**(arguments | change))


def test_bad_factor_is_refused():
    with pytest.raises(ValueError, match="factor must be a positive number"):
        Camera(torch.eye(4), K, 64, 48).scaled(0)

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gsfields.camera import Camera
from gsfields.data.dataset import Dataset, View, hold_out, scene_sphere
from tests.data.writers import make_rig

K = [[10.0, 0.0, 4.0], [0.0, 10.0, 3.0], [0.0, 0.0, 1.0]]


def camera_at(x: float, y: float, z: float) -> Camera:
    viewmat = torch.eye(4)
    viewmat[:3, 3] = -torch.tensor([x, y, z])
    return Camera(viewmat, K, 8, 6)


def view(name: str, x: float = 0.0) -> View:
    return View.from_image(name, camera_at(x, 0, 0), torch.rand(6, 8, 3))


@given(count=st.integers(2, 200), every=st.integers(2, 20))
def test_hold_out_is_every_nth_from_the_first(count, every):
    train, test = hold_out(count, every)
    assert test == list(range(0, count, every))
    assert sorted(train + test) == list(range(count))


def test_hold_out_none_and_nonsense():
    assert hold_out(3, 0) == ([0, 1, 2], [])
    with pytest.raises(ValueError, match="split_every must be 0"):
        hold_out(3, 1)
    with pytest.raises(ValueError, match="use split_every=0"):
        hold_out(1, 8)


def test_scene_sphere_is_the_3dgs_rule():
    cameras = [camera_at(0, 0, 0), camera_at(4, 0, 0), camera_at(2, 0, 3)]
    center, extent = scene_sphere(cameras)
    assert torch.allclose(center, torch.tensor([2.0, 0.0, 1.0]))
    assert extent == pytest.approx(1.1 * np.sqrt(5))


def test_scene_sphere_of_one_place_falls_back_on_the_points():
    cameras = [camera_at(1, 2, 3)] * 3
    points = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 6.0], [1.0, 2.0, 13.0]])
    assert scene_sphere(cameras, points)[1] == pytest.approx(3.0)
    assert scene_sphere(cameras)[1] == 1.0


def test_held_out_cameras_do_not_move_the_scene():
    dataset = Dataset([view("a"), view("b", 2.0), view("c", 100.0)], [0, 1], [2])
    assert dataset.scene_center.tolist() == [1, 0, 0] and dataset.scene_extent == pytest.approx(1.1)
    assert [v.name for v in dataset.train_views()] == ["a", "b"] and dataset.test_views()[0].name == "c"


def test_view_in_memory_returns_what_it_was_given():
    image = torch.rand(6, 8, 3)
    mask = torch.zeros(6, 8)
    mask[2] = 0.4
    made = View.from_image("x", camera_at(0, 0, 0), image, mask=mask, time=0.5)
    assert torch.equal(made.image(), image) and made.time == 0.5
    assert torch.equal(made.mask(), (mask > 0).float())
    eight_bits = torch.randint(0, 256, (6, 8, 3), dtype=torch.uint8)
    assert torch.equal(View.from_image("y", camera_at(0, 0, 0), eight_bits).image(), eight_bits / 255)


def test_view_in_memory_must_fit_its_camera():
    with pytest.raises(ValueError, match="image must be"):
        View.from_image("x", camera_at(0, 0, 0), torch.rand(8, 6, 3))
    with pytest.raises(ValueError, match="mask must be"):
        View.from_image("x", camera_at(0, 0, 0), torch.rand(6, 8, 3), mask=torch.ones(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), "no views"),
        ((["a", "a"], [0, 1], []), "'a' stands for two"),
        ((["a", "b"], [0, 2], []), "hold 2"),
        ((["a", "b"], [], [0]), "none of the 2 views"),
        ((["a", "b"], [0, 1], [1]), "share 'b'"),
        ((["a"], [0], [], torch.zeros(4)), r"points must be \[M, 3\]"),
        ((["a"], [0], [], torch.zeros(4, 3), torch.zeros(5, 3)), "point_colors"),
        ((["a"], [0], [], None, torch.zeros(5, 3)), "point_colors"),
        ((["a"], [0], [], None, None, torch.zeros(4)), "background"),
    ],
)
def test_inconsistent_datasets_are_refused(arguments, message):
    names, *rest = arguments
    with pytest.raises(ValueError, match=message):
        Dataset([view(name) for name in names], *rest)


def test_the_rig_of_these_tests_is_rigid():
    for viewmat in make_rig().viewmats:
        assert np.allclose(viewmat[:3, :3] @ viewmat[:3, :3].T, np.eye(3), atol=1e-12)

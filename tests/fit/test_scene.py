"""What a fit starts from: photographs over any background, and points where the cameras look."""

import math

import pytest
import torch

from gsfields.camera import Camera
from gsfields.config import Config, from_dict, to_dict
from gsfields.data.dataset import Dataset, View
from gsfields.data.synthetic import make_room
from gsfields.fit.scene import Photographs, initial_gaussians, open_dataset, random_points
from tests.fit.tiny import camera, picture


def dataset_of(cameras, **more):
    views = [View.from_image(f"{i}", c, torch.zeros(c.height, c.width, 3)) for i, c in enumerate(cameras)]
    return Dataset(views, train=list(range(len(views))), test=[], **more)


def inside(points, view):
    at = points @ view.viewmat[:3, :3].T + view.viewmat[:3, 3]
    pixel = at @ view.K.T
    xy = pixel[:, :2] / pixel[:, 2:]
    return (at[:, 2] > 0) & (xy >= 0).all(dim=1) & (xy[:, 0] <= view.width) & (xy[:, 1] <= view.height)


def test_random_points_around_an_object_lie_in_nearly_every_image_and_fill_it():
    cameras = [camera(i, 32) for i in range(12)]
    points = random_points(dataset_of(cameras), 2000, torch.Generator().manual_seed(0))
    assert torch.stack([inside(points, c) for c in cameras]).float().mean() > 0.8
    assert points.mean(dim=0).norm() < 0.1 and points.abs().max() > 1


@pytest.mark.parametrize("turn", [0.0, 2 * math.pi])
def test_random_points_of_other_cameras_lie_in_some_image(turn):
    """Cameras side by side (turn 0), and a camera turning on the spot."""
    cameras = []
    for i in range(8):
        a = turn * i / 8
        eye = torch.tensor([0.2 * i, 0.0, 0.0]) if turn == 0 else torch.zeros(3)
        target = eye + torch.tensor([math.sin(a), 0.0, math.cos(a)])
        cameras.append(Camera.look_at(eye, target, [0, -1, 0], fov_y_degrees=50, width=32, height=24))
    points = random_points(dataset_of(cameras), 500, torch.Generator().manual_seed(0))
    assert torch.stack([inside(points, c) for c in cameras]).any(dim=0).float().mean() > 0.99


def test_initial_gaussians_take_the_points_of_the_data_and_respect_the_budget():
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    dataset = dataset_of([camera(0, 16)], points=points, point_colors=points)
    config = Config()
    assert torch.equal(initial_gaussians(dataset, config, torch.Generator()).means, points)
    config.densify.max_gaussians = 20
    assert len(initial_gaussians(dataset, config, torch.Generator())) == 20
    config.init.source, config.init.random_count = "random", 7
    assert len(initial_gaussians(dataset, config, torch.Generator())) == 7


def test_points_asked_for_and_missing_are_refused():
    config = Config()
    config.init.source = "points"
    with pytest.raises(ValueError, match="init source is points, but"):
        initial_gaussians(dataset_of([camera(0, 16)]), config, torch.Generator())


def test_any_background_shows_through_exactly(ball):
    config = Config()
    config.data.path, config.data.background = str(ball), "random"
    photographs = Photographs(open_dataset(config.data), config.data)
    color = torch.tensor([0.2, 0.5, 0.9])
    _, image, _ = photographs.get(3, 1.0, color)
    rgba = picture(camera(3, 24))
    torch.testing.assert_close(
        image, rgba[..., :3] * rgba[..., 3:] + color * (1 - rgba[..., 3:]), atol=0.012, rtol=0
    )
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(photographs.background(generator), photographs.background(generator))


def test_smaller_photographs_are_area_averages_with_their_camera(ball):
    config = Config()
    config.data.path = str(ball)
    photographs = Photographs(open_dataset(config.data), config.data)
    full_camera, full, _ = photographs.get(0, 1.0, torch.ones(3))
    half_camera, half, _ = photographs.get(0, 0.5, torch.ones(3))
    expected = full.reshape(12, 2, 12, 2, 3).mean(dim=(1, 3))
    torch.testing.assert_close(half, expected)
    torch.testing.assert_close(half_camera.K[:2], full_camera.K[:2] / 2)
    assert torch.equal(photographs.background(torch.Generator()), torch.ones(3))


def test_a_smaller_pixel_counts_if_all_it_covers_counts():
    view = camera(0, 8)
    mask = torch.ones(8, 8)
    mask[0, 0] = 0
    dataset = Dataset([View.from_image("a", view, torch.zeros(8, 8, 3), mask=mask)], train=[0], test=[])
    _, _, small = Photographs(dataset, Config().data).get(0, 0.5, torch.ones(3))
    assert small.shape == (4, 4) and small.sum() == 15 and small[0, 0] == 0


@pytest.fixture(scope="module")
def room():
    """A textured room without points, and the points of its surfaces."""
    made = make_room(views=24, test_every=0, width=96, height=72, supersample=1)
    bare = Dataset(made.views, made.train, made.test)
    return bare, made.points


def distances(means, points):
    """From each centre to the nearest point of a surface, metres."""
    return torch.cdist(means, points).amin(dim=1)


def test_without_points_a_fit_starts_where_photos_look_alike(room):
    bare, surface = room
    config = Config()
    config.init.random_count = 1500
    swept, random = (
        initial_gaussians(bare, with_source(config, source), torch.Generator().manual_seed(0))
        for source in ("auto", "random")
    )
    assert 1000 < len(swept) <= 1500
    quartiles = torch.tensor([0.25, 0.5])
    near, far = (distances(g.means, surface).quantile(quartiles) for g in (swept, random))
    assert (near < torch.tensor([0.6, 0.8]) * far).all()
    assert (swept.sh0.std(dim=0) > 0.1).all()  # in the colours of the photos


def test_transparent_photos_are_not_swept(room):
    bare, _ = room
    transparent = Dataset(bare.views, bare.train, bare.test, background=torch.ones(3))
    config = Config()
    config.init.random_count = 300
    auto, random = (
        initial_gaussians(transparent, with_source(config, source), torch.Generator().manual_seed(0))
        for source in ("auto", "random")
    )
    assert torch.equal(auto.means, random.means)
    swept = initial_gaussians(transparent, with_source(config, "sweep"), torch.Generator().manual_seed(0))
    assert not torch.equal(swept.means[:100], random.means[:100])


def with_source(config, source):
    changed = from_dict(to_dict(config))
    changed.init.source = source
    return changed

"""Views of frozen geometry: blends and lifts from plans that are kept equal those of a fresh rendering."""

from __future__ import annotations

import pytest
import torch

from gsfields.fit.frozen import FrozenViews
from gsfields.fit.showing import photo_camera, render_view
from gsfields.layers import DYNAMIC, SEMISTATIC
from tests.fit.tiny_room import TinyRoom, layered_room, opened

ROOM = TinyRoom()
KINDS = ("static", "layered")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ROOM.write(tmp_path_factory.mktemp("room") / "data")


def scene_of(kind):
    return ROOM.gaussians if kind == "static" else layered_room(ROOM)


def frozen(data, kind, limit_bytes=1 << 26):
    _, views, _ = opened(ROOM, data, limit_bytes=limit_bytes, scene=scene_of(kind))
    return views


def fresh(views: FrozenViews, index: int):
    """(plan, rows of the scene's Gaussians that it lists) of a rendering made here and now."""
    view = views.dataset.views[index]
    time = index / (len(views.dataset.views) - 1)  # the photos have no times: their places in order
    rendering = render_view(views.scene, view.camera, views.config, time)
    rows = rendering.index if hasattr(rendering, "index") else torch.arange(len(views))
    return rendering, rows


def values_for(views, channels=5, seed=0):
    return torch.randn(len(views), channels, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_blends_are_those_of_a_rendering(data, kind):
    views = frozen(data, kind)
    values = values_for(views)
    for index in (2, 7, 2):
        rendering, rows = fresh(views, index)
        image = views.blend(index, values)
        torch.testing.assert_close(image, rendering.plan.blend(values[rows]), rtol=0, atol=0)
        pixels = torch.tensor([[3, 20], [16, 12], [31, 0], [16, 12]])
        torch.testing.assert_close(views.blend(index, values, pixels), image[pixels[:, 1], pixels[:, 0]])
        torch.testing.assert_close(views.alpha(index), rendering.alpha[..., 0], rtol=0, atol=1e-3)


def test_a_layered_view_shows_what_lives_at_its_time(data):
    views = frozen(data, "layered")
    ids = views.scene.layer_ids()
    brief = int(
        (ids == SEMISTATIC).nonzero()[-1]
    )  # lives about frame 2 of 0 to 10, that is about view 2 of 0 to 9
    only = torch.zeros(len(views), 1)
    only[brief] = 1
    assert views.blend(2, only).max() > 0.2 and not views.blend(7, only).any()
    assert len(fresh(views, 7)[1]) < len(views) == len(fresh(views, 2)[1])
    moving = views.moving(7)
    rendering, _ = fresh(views, 7)
    torch.testing.assert_close(moving, rendering.masks[..., DYNAMIC], rtol=0, atol=1e-3)
    assert moving.max() > 0.5 and frozen(data, "static").moving(0) is None


@pytest.mark.parametrize("kind", KINDS)
def test_lifts_are_the_adjoint_of_blends(data, kind):
    """<blend(v), f> = <v, lift(f)>, Gaussians that a view does not show get nothing, weights count."""
    views = frozen(data, kind)
    image = torch.rand(24, 32, 4, generator=torch.Generator().manual_seed(3))
    weights = torch.rand(24, 32, generator=torch.Generator().manual_seed(4))
    for index in (2, 7):
        values = values_for(views, 4).requires_grad_()
        (views.blend(index, values) * image * weights[..., None]).sum().backward()
        sums, total = views.lift(index, image, weights)
        torch.testing.assert_close(sums, values.grad)
        assert sums.shape == (len(views), 4) and total.shape == (len(views),)
        _, rows = fresh(views, index)
        hidden = torch.ones(len(views), dtype=torch.bool)
        hidden[rows] = False
        assert not sums[hidden].any() and not total[hidden].any()
        ones = views.lift(index, torch.ones(24, 32, 1))
        torch.testing.assert_close(ones.sums[:, 0], ones.total)
        torch.testing.assert_close(ones.total.sum(), views.alpha(index).sum(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_bounded_and_changes_nothing(data, kind):
    whole = frozen(data, kind)
    values = values_for(whole)
    order = [0, 3, 0, 9, 3, 4, 0]
    images = [whole.blend(i, values) for i in order]
    lifts = [whole.lift(i, images[0]) for i in order]
    room_for_all = whole.report()
    assert room_for_all.misses == 4 and room_for_all.plans_in_memory == 4
    for limit in (0, room_for_all.memory_bytes // 2):
        views = frozen(data, kind, limit)
        for i, image, lifted in zip(order, images, lifts, strict=True):
            torch.testing.assert_close(views.blend(i, values), image, rtol=0, atol=0)
            torch.testing.assert_close(views.lift(i, images[0]).sums, lifted.sums, rtol=0, atol=0)
            torch.testing.assert_close(views.alpha(i), whole.alpha(i), rtol=0, atol=0)
            assert views.report().memory_bytes <= limit
        report = views.report()
        assert report.plans_in_memory == 0 if limit == 0 else 0 < report.plans_in_memory < 4
        assert report.misses > 4  # made again


def test_alpha_is_known_before_anything_is_blended(data):
    views = frozen(data, "layered", 0)
    alpha, moving = views.alpha(4), views.moving(5)
    assert alpha.shape == moving.shape == (24, 32) and alpha.dtype == moving.dtype == torch.float32
    assert views.report().misses == 2
    views.alpha(4), views.moving(5)
    assert views.report().misses == 2  # kept, whatever becomes of the plans


@pytest.mark.parametrize("kind", KINDS)
def test_gaussians_come_in_the_order_of_the_values(data, kind):
    views = frozen(data, kind)
    gaussians, placed = views.gaussians(), views.placed()
    assert len(gaussians) == len(views) == len(placed)
    if kind == "static":
        torch.testing.assert_close(gaussians.means, ROOM.gaussians.means)
        assert placed.all()
        return
    ids = views.scene.layer_ids()
    torch.testing.assert_close(gaussians.means[ids == DYNAMIC], views.scene.dynamic.gaussians.means)
    torch.testing.assert_close(gaussians.means[ids == SEMISTATIC], views.scene.semistatic.gaussians.means)
    assert (placed == (ids != DYNAMIC)).all()
    views.scene.dynamic.frame = "world"
    assert views.placed().all()


def test_geometry_is_frozen(data):
    room = TinyRoom()
    room.gaussians.means.requires_grad_()
    _, views, _ = opened(room, data)
    values = values_for(views).requires_grad_()
    views.blend(1, values).sum().backward()
    assert room.gaussians.means.grad is None and values.grad.any()
    assert not views.gaussians().means.requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [None, 16])
def test_as_taken_is_the_size_of_the_photo(data, kind, width):
    from gsfields.fit.scene import open_dataset

    config = ROOM.config(data, width=width, model=kind)
    views = FrozenViews(scene_of(kind), open_dataset(config.data), config, limit_bytes=0)
    values = values_for(views)
    image, alpha = views.as_taken(7, values)
    assert image.shape == (24, 32, 5) and alpha.shape == (24, 32)
    full = frozen(data, kind)
    # the camera's numbers are rounded once more on the way to half the width and back
    torch.testing.assert_close(image, full.blend(7, values), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(alpha, full.alpha(7), rtol=0, atol=2e-3)


def test_as_taken_of_a_lens_covers_what_the_lens_sees(tmp_path):
    room = TinyRoom(k1=-0.25)  # barrel: the photo shows more than the pinhole of its size
    _, views, _ = opened(room, room.write(tmp_path / "data"))
    camera = photo_camera(views.view(1))
    assert camera.width > 32
    image, alpha = views.as_taken(1, values_for(views))
    assert image.shape == (camera.height, camera.width, 5) and alpha.shape == image.shape[:2]

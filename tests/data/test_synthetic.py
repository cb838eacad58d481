"""The synthetic room: its solids against brute force, its cameras against its depths, its files against
its arrays.
"""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.camera import Camera
from gsfields.data import textures
from gsfields.data.furniture import ball, box, cone, furnished_room
from gsfields.data.raytrace import (
    Body,
    Lamp,
    Material,
    Primitive,
    Scene,
    pixel_rays,
    render_geometry,
    render_image,
    subpixel_offsets,
)
from gsfields.data.solids import Ball, Box, Cone
from gsfields.data.synthetic import make_room, save_room

GREY = textures.plain(textures.srgb("#808080"))
SOLIDS = [Box(), Ball(), Cone(), Cone(0.5), Cone(0.0)]


def turned(rng: np.random.Generator) -> np.ndarray:
    """A random rotation [3, 3]."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


def some_primitive(solid, rng: np.random.Generator) -> Primitive:
    return Primitive(solid, rng.normal(0, 0.3, 3), rng.uniform(0.2, 1.0, 3), Material(GREY), turned(rng))


def down(points) -> np.ndarray:
    return np.asarray(points, float).T.copy()


@pytest.fixture(scope="module")
def room():
    return make_room(views=9, width=64, height=48, supersample=1)


@pytest.mark.parametrize("solid", SOLIDS, ids=str)
@pytest.mark.parametrize("inside", [False, True], ids=["from outside", "from inside"])
def test_first_hit_agrees_with_marching_along_the_ray(solid, inside):
    rng = np.random.default_rng(1)
    steps, reach = 4000, 8.0
    t = (np.arange(steps) + 0.5) * (reach / steps)
    for _ in range(25):
        part = some_primitive(solid, rng)
        origin = part.center if inside else part.center + 3 * turned(rng)[0]
        directions = part.center[:, None] + rng.normal(0, 0.5, (3, 20)) - origin[:, None]
        directions /= np.linalg.norm(directions, axis=0)
        hits = part.first_hit(origin, directions)
        for ray, hit in zip(directions.T, hits, strict=True):
            within = solid.contains(part.to_unit(origin[:, None] + t * ray[:, None]))
            crossing = np.flatnonzero(within != inside)
            if len(crossing):
                assert abs(hit - t[crossing[0]]) < reach / steps
            elif np.isfinite(hit):  # a chord too short for the march
                middle = part.to_unit(
                    origin[:, None] + (hit + np.linspace(-1, 1, 2001) * 1e-3) * ray[:, None]
                )
                assert solid.contains(middle).any() and not solid.contains(middle).all()


@pytest.mark.parametrize(
    ("part", "origin", "direction", "expected"),
    [
        (box((0, 0, 0), (2, 2, 2), GREY), (5, 0.3, -0.2), (-1, 0, 0), 4),
        (box((0, 0, 0), (2, 2, 2), GREY), (5, 1.001, 0), (-1, 0, 0), np.inf),
        (box((0, 0, 0), (2, 2, 2), GREY), (5, 0, 0), (1, 0, 0), np.inf),
        (box((1, 0, 0), (2, 4, 6), GREY), (1, 0, 0), (0, 0, 1), 3),
        (box((0, 0, 0), (2, 2, 2), GREY, yaw=np.pi / 4), (5, 0, 0), (-1, 0, 0), 5 - np.sqrt(2)),
        (ball((0, 0, 0), (4, 2, 2), GREY), (5, 0, 0), (-1, 0, 0), 3),
        (ball((0, 0, 0), (4, 2, 2), GREY), (0, 3, 0), (0, -2, 0), 1),
        (ball((0, 0, 0), (2, 2, 2), GREY), (2, 0.6, 0), (-1, 0, 0), 1.2),
        (ball((0, 0, 0), (2, 2, 2), GREY), (2, 1.0001, 0), (-1, 0, 0), np.inf),
        (cone((0, 0, 0), (2, 2, 2), GREY), (0.5, 0.5, 4), (0, 0, -1), 3),
        (cone((0, 0, 0), (2, 2, 2), GREY), (0.8, 0.8, 4), (0, 0, -1), np.inf),
        (cone((0, 0, 0), (2, 2, 2), GREY), (3, 0, 0.5), (-1, 0, 0), 2),
        (cone((0, 0, 0), (2, 2, 2), GREY, top=0.0), (0.25, 0, 4), (0, 0, -1), 3.5),
        (cone((0, 0, 0), (2, 2, 2), GREY, top=0.0), (3, 0, 0), (-1, 0, 0), 2.5),
        (cone((0, 0, 0), (2, 2, 2), GREY, top=0.0), (0, 0, -4), (0, 0, 1), 3),
        (cone((0, 0, 0), (2, 2, 2), GREY, top=0.5), (0.4, 0, 4), (0, 0, -1), 3),
        (cone((0, 0, 0), (2, 2, 2), GREY, top=0.5), (3, 0, 0), (-2, 0, 0), 1.125),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_first_hit_in_closed_form(part, origin, direction, expected, dtype):
    hit = part.first_hit(np.array(origin, float), np.array(direction, dtype)[:, None])
    assert hit.dtype == dtype
    np.testing.assert_allclose(hit, [expected], rtol=1e-6)


@pytest.mark.parametrize("solid", SOLIDS, ids=str)
def test_normals_point_out_and_are_square_to_the_surface(solid):
    rng = np.random.default_rng(2)
    part = some_primitive(solid, rng)
    rays = rng.normal(size=(3, 400))
    points = part.center[:, None] + rays * part.first_hit(part.center, rays)
    local, local_normals, normals = part.surface(points)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1, rtol=1e-9)
    np.testing.assert_allclose(local / part.half[:, None], part.to_unit(points), atol=1e-9)
    np.testing.assert_allclose(part.rotation @ local_normals, normals, atol=1e-12)
    out = solid.contains(part.to_unit(points + 1e-6 * normals))
    into = solid.contains(part.to_unit(points - 1e-6 * normals))
    assert not out.any() and into.all()
    # Away from edges, a small step along the surface leaves it only to second order.
    along = np.cross(normals.T, rng.normal(size=3)).T
    along /= np.linalg.norm(along, axis=0)
    step = 1e-3
    bend = 40 * step**2
    flat = ~solid.contains(part.to_unit(points + step * along + bend * normals))
    flat &= solid.contains(part.to_unit(points + step * along - bend * normals))
    assert flat.mean() > 0.97


def test_float32_rays_stay_accurate_on_small_things_far_away():
    part = ball((4.0, 3.0, 2.0), (0.02, 0.02, 0.02), GREY)
    rng = np.random.default_rng(3)
    offset = rng.normal(size=(3, 500))
    rays = part.center[:, None] + 0.006 * offset / np.linalg.norm(offset, axis=0)
    exact = part.first_hit(np.zeros(3), rays)
    single = part.first_hit(np.zeros(3), rays.astype(np.float32))
    assert np.isfinite(exact).all()
    np.testing.assert_allclose(single, exact, rtol=2e-6)


def test_cast_and_blocked_lose_no_hit_to_culling():
    scene = furnished_room(3)
    rng = np.random.default_rng(4)
    origin = np.array([0.9, -0.7, 1.4])
    rays = rng.normal(size=(3, 3001))  # in no order, and not a multiple of the group's size
    every = np.stack([part.first_hit(origin, rays) for part in scene.primitives])
    hits = scene.cast(origin, rays)
    np.testing.assert_array_equal(hits.t, every.min(axis=0))
    assert len(np.unique(hits.primitive)) > 30
    np.testing.assert_array_equal(every[hits.primitive, np.arange(rays.shape[1])], hits.t)

    casts = [part.casts_shadow and not part.hollow for part in scene.primitives]
    stopped = (every[casts] < 1 - 2e-3).any(axis=0)
    np.testing.assert_array_equal(scene.blocked(origin, rays), stopped)
    assert 0.05 < stopped.mean() < 0.95


@pytest.mark.parametrize("count", [0, 1, 64, 65])
def test_cast_takes_any_number_of_rays(count):
    scene = Scene([Body("ball", (ball((0, 0, 5), (2, 2, 2), GREY),))])
    hits = scene.cast(np.zeros(3), np.tile([[0.0], [0.0], [1.0]], count))
    np.testing.assert_allclose(hits.t, np.full(count, 4.0))
    assert scene.blocked(np.zeros(3), np.tile([[0.0], [0.0], [9.0]], count)).all()
    assert Scene([]).cast(np.zeros(3), np.ones((3, count))).primitive.tolist() == [-1] * count


def test_ids_and_depth_of_a_scene_known_by_heart():
    scene = Scene(
        [
            Body("left", (ball((-1, 0, 4), (1, 1, 1), GREY),)),
            Body("right", (box((1, 0, 5), (1, 1, 1), GREY),)),
        ]
    )
    K = np.array([[10.0, 0, 10], [0, 10, 5], [0, 0, 1]])
    hits = scene.cast(np.zeros(3), pixel_rays(K, np.eye(4), 20, 10))
    ids, depth = scene.object_ids(hits).reshape(10, 20), hits.t.reshape(10, 20)
    assert scene.object_names == ["left", "right"]
    # the ball about columns 7 and 8, the box about 11 and 12; nothing in the middle or the corners
    assert ids[5, 7] == 0 and ids[5, 12] == 1 and ids[5, 10] == -1 and ids[0, 0] == -1
    assert depth[5, 12] == 4.5 and 3.5 < depth[5, 7] < 4 and np.isinf(depth[0, 0])


def test_a_rigid_motion_of_scene_and_camera_changes_nothing():
    rng = np.random.default_rng(5)
    turn, shift = turned(rng), rng.normal(size=3)
    scene = furnished_room(0)
    moved = Scene([Body(b.name, tuple(p.moved(turn, shift) for p in b.parts)) for b in scene.bodies])
    origin, rays = np.array([1.0, 1.0, 1.5]), rng.normal(size=(3, 500))
    before, after = scene.cast(origin, rays), moved.cast(turn @ origin + shift, turn @ rays)
    np.testing.assert_allclose(after.t, before.t, rtol=1e-9)
    np.testing.assert_array_equal(after.primitive, before.primitive)


def test_lamp_light_falls_off_as_the_square_and_is_stopped_by_what_stands_before_it():
    floor = Body("floor", (box((0, 0, -0.5), (20, 20, 1), textures.plain(np.ones(3, np.float32))),))
    disc = Body("disc", (cone((0, 0, 1), (0.5, 0.5, 0.01), GREY),))
    dark = (np.zeros(3), np.zeros(3))
    lamp = Lamp(np.array([0.0, 0.0, 2.0]), np.array([1.0, 0.5, 0.25]), radius=0.2)
    lit, shaded = Scene([floor], [lamp], ambient=dark), Scene([floor, disc], [lamp], ambient=dark)
    eye = np.array([5.0, 0.0, 3.0])
    spots = np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.45, 0.0, 0.0]]).T
    rays = spots - eye[:, None]
    color, _ = lit.radiance(eye, rays)
    np.testing.assert_allclose(color[0, :2], [1 / 4, np.cos(np.pi / 4) / 8], rtol=1e-5)
    np.testing.assert_allclose(color[2], color[0] / 4, rtol=1e-5)
    many = [shaded.radiance(eye, rays, sample=k, samples=16)[0][0] for k in range(16)]
    whole = [lit.radiance(eye, rays, sample=k, samples=16)[0][0] for k in range(16)]
    share = np.mean(many, axis=0) / np.mean(whole, axis=0)
    assert share[0] == 0 and share[1] == 1 and 0.05 < share[2] < 0.95  # umbra, light, penumbra


def test_subpixel_offsets_fill_every_row_and_column_once():
    for count in (1, 2, 3, 5):
        points = np.array(subpixel_offsets(count))
        np.testing.assert_allclose(points.mean(axis=0), 0.5)
        for axis in range(2):
            cells = np.sort(np.floor(points[:, axis] * count**2 + 1e-9))
            np.testing.assert_array_equal(cells, np.arange(count**2))


def test_depth_and_camera_put_a_pixel_back_where_it_was(room):
    for index, view in enumerate(room.views):
        camera = view.camera
        depth, ids = room.geometry(index)
        assert (
            depth.shape == ids.shape == (48, 64) and depth.dtype == torch.float32 and ids.dtype == torch.int32
        )
        assert bool((depth > 0.1).all()) and float(depth.max()) < 6
        assert int(ids.min()) >= 0 and int(ids.max()) < len(room.object_names)
        row, column = torch.meshgrid(torch.arange(48.0) + 0.5, torch.arange(64.0) + 0.5, indexing="ij")
        pixel = torch.stack([column, row, torch.ones_like(row)], dim=-1).double()
        local = pixel @ torch.linalg.inv(camera.K.double()).T * depth[..., None].double()
        world = local @ camera.c2w.double()[:3, :3].T + camera.c2w.double()[:3, 3]
        back = world @ camera.viewmat.double()[:3, :3].T + camera.viewmat.double()[:3, 3]
        image = back @ camera.K.double().T
        torch.testing.assert_close(image[..., :2] / image[..., 2:], pixel[..., :2], rtol=0, atol=1e-4)
        # inside the room, and on its surface where the id is the room's shell
        assert bool((world.abs() <= torch.tensor([2.5, 2.0, 2.6]) + 1e-4).all())
    assert len(np.unique(np.concatenate([room.geometry(i)[1].unique() for i in range(9)]))) > 12


def test_a_lambertian_point_has_one_colour_from_everywhere_and_a_glossy_one_has_not():
    scene = furnished_room(1)
    first, second = np.array([1.6, 0.2, 1.5]), np.array([1.2, 0.7, 1.3])
    rng = np.random.default_rng(6)
    rays = down([0, 0, 0.8] + rng.normal(0, 0.5, (4000, 3)) - first)
    color, hits = scene.radiance(first, rays)
    points = first[:, None] + rays * hits.t
    again, seen = scene.radiance(second, points - second[:, None])
    visible = (np.abs(seen.t - 1) < 1e-6) & (seen.primitive == hits.primitive)
    dull = visible & scene.lambertian(hits)
    shiny = visible & ~scene.lambertian(hits)
    assert dull.sum() > 500 and shiny.sum() > 200
    # a point on the line between two tiles or on a shadow's edge may fall on either side
    assert (np.abs(color - again)[:, dull].max(axis=0) < 1e-6).mean() > 0.995
    assert np.abs(color - again)[:, shiny].max() > 0.01


def test_images_agree_where_depth_carries_one_into_the_other():
    scene = furnished_room(0)
    eyes = ([1.7, 0.2, 1.5], [1.65, 0.45, 1.45])
    cameras = [
        Camera.look_at(eye, [0, 0, 0.8], [0, 0, 1], fov_y_degrees=55, width=160, height=120) for eye in eyes
    ]
    pinholes = [(camera.K.double().numpy(), camera.c2w.double().numpy()) for camera in cameras]
    images = [torch.from_numpy(render_image(scene, *pinhole, 160, 120)) for pinhole in pinholes]
    depth, other = (torch.from_numpy(render_geometry(scene, *pinhole, 160, 120)[0]) for pinhole in pinholes)
    first, second = cameras
    row, column = torch.meshgrid(torch.arange(120.0) + 0.5, torch.arange(160.0) + 0.5, indexing="ij")
    pixel = torch.stack([column, row, torch.ones_like(row)], dim=-1)
    local = pixel @ torch.linalg.inv(first.K).T * depth[..., None]
    world = local @ first.c2w[:3, :3].T + first.c2w[:3, 3]
    there = world @ second.viewmat[:3, :3].T + second.viewmat[:3, 3]
    uv = (there @ second.K.T)[..., :2] / there[..., 2:]
    grid = (uv / torch.tensor([160, 120]) * 2 - 1)[None]
    sample = torch.nn.functional.grid_sample(
        torch.cat([images[1], other[..., None]], -1).permute(2, 0, 1)[None], grid, align_corners=False
    )[0].permute(1, 2, 0)
    seen = (grid[0].abs().amax(-1) < 0.98) & ((sample[..., 3] - there[..., 2]).abs() < 0.01)
    difference = (sample[..., :3] - images[0]).abs().mean(-1)
    shifted = (sample[..., :3].roll(2, dims=1) - images[0]).abs().mean(-1)
    assert float(seen.float().mean()) > 0.5
    assert float(difference[seen].mean()) < 0.03
    assert float(difference[seen].mean()) < 0.4 * float(shifted[seen].mean())


def test_the_seed_decides_every_bit_and_threads_none():
    sizes = {"views": 3, "width": 33, "height": 17}
    first = make_room(seed=5, **sizes)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        second = make_room(seed=5, **sizes)
    finally:
        torch.set_num_threads(threads)
    other = make_room(seed=6, **sizes)
    for a, b, c in zip(first.views, second.views, other.views, strict=True):
        assert torch.equal(a.image(), b.image()) and torch.equal(a.camera.viewmat, b.camera.viewmat)
        assert not torch.equal(a.image(), c.image()) and not torch.equal(a.camera.viewmat, c.camera.viewmat)
    assert torch.equal(first.points, second.points) and torch.equal(first.point_colors, second.point_colors)


def test_points_lie_on_surfaces_that_two_training_views_see(room):
    points, colors = room.points, room.point_colors
    assert points.dtype == colors.dtype == torch.float32 and points.shape == colors.shape
    assert len(points) > 2000 and float(colors.min()) >= 0 and float(colors.max()) <= 1
    # a surface passes within 12 mm (six deviations): not all of the points that far off are on one side
    away = np.random.default_rng(7).normal(size=(3, 40))
    away *= 0.012 / np.linalg.norm(away, axis=0)
    sides = np.stack([room.scene.inside(points.double().numpy().T + step[:, None]) for step in away.T])
    assert (sides.any(axis=0) & ~sides.all(axis=0)).mean() > 0.99

    seen = torch.zeros(len(points))
    for index in room.train:
        camera = room.views[index].camera
        local = points @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
        uv = (local @ camera.K.T)[:, :2] / local[:, 2:]
        column, row = uv[:, 0].floor().long(), uv[:, 1].floor().long()
        shown = (local[:, 2] > 0) & (column >= 0) & (column < 64) & (row >= 0) & (row < 48)
        depth = room.geometry(index)[0][row.clamp(0, 47), column.clamp(0, 63)]
        seen += shown & ((depth - local[:, 2]).abs() < 0.1 * local[:, 2])
    assert float((seen >= 2).float().mean()) > 0.97


def test_the_path_keeps_clear_of_things_for_many_seeds():
    for seed in range(6):
        room = make_room(seed=seed, views=24, test_every=0, width=1, height=1, supersample=1)
        centers = torch.stack([view.camera.position for view in room.views])
        assert not room.scene.inside(centers.double().numpy().T).any()
        steps = (centers - centers.roll(1, 0)).norm(dim=1)
        assert float(steps.min()) > 0.05 and float(steps.max()) < 1  # a closed, smooth walk
    blocked = Scene([Body("block", (box((0, 0, 0), (1, 1, 1), GREY),))])
    assert blocked.inside(np.array([[0.4, 0.6], [0, 0], [0, 0]])).tolist() == [True, False]


@pytest.mark.parametrize(("width", "height", "views"), [(1, 1, 2), (37, 23, 2), (5, 64, 1)])
def test_any_size_of_image(width, height, views):
    room = make_room(views=views, test_every=0, width=width, height=height, supersample=3)
    for index, view in enumerate(room.views):
        image = view.image()
        assert image.shape == (height, width, 3) and image.dtype == torch.float32
        assert float(image.min()) >= 0 and float(image.max()) <= 1 and float(image.mean()) > 0.05
        assert room.geometry(index)[0].shape == (height, width)
        assert (view.camera.width, view.camera.height) == (width, height)
    assert len(room.train) == views and room.test == []


def test_split_and_field_of_view(room):
    assert room.test == [0, 8] and room.train == [1, 2, 3, 4, 5, 6, 7] and room.background is None
    wide = make_room(views=1, test_every=0, width=8, height=6, fov_degrees=90).views[0].camera
    assert wide.K.tolist() == [[4, 0, 4], [0, 4, 3], [0, 0, 1]] or abs(float(wide.K[0, 0]) - 4) < 1e-5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(["views", "width", "height", "supersample"], [0, -3, 1.5, True]),
        ("seed", -1),
        ("test_every", 1),
        ("test_every", -8),
        ("width", 10**6),
        ("supersample", 99),
        *product(["fov_degrees"], [0, -10, 180, float("nan"), float("inf"), "wide"]),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(name, value):
    with pytest.raises(ValueError, match=name) as refusal:
        make_room(**{name: value})
    assert "\n" not in str(refusal.value) and str(value) in str(refusal.value)


def test_one_view_cannot_be_split():
    with pytest.raises(ValueError, match="test_every"):
        make_room(views=1)


def test_saved_room_reads_back(room, tmp_path):
    save_room(tmp_path / "room", room)
    files = sorted(p.name for p in (tmp_path / "room").iterdir())
    assert files == ["depth", "ids", "images", "objects.json", "points.ply", "transforms.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["room"]
    assert json.loads((tmp_path / "room/objects.json").read_text()) == room.object_names
    depth, ids = room.geometry(3)
    stored = np.asarray(Image.open(tmp_path / "room/depth/0003.png")).astype(np.float64) / 1000
    np.testing.assert_allclose(stored, depth, atol=5.1e-4)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "room/ids/0003.png")), ids)

    from gsfields.data import load_dataset

    read = load_dataset(tmp_path / "room")
    assert read.train == room.train and read.test == room.test and len(read.views) == len(room.views)
    for ours, theirs in zip(room.views, read.views, strict=True):
        torch.testing.assert_close(theirs.camera.viewmat, ours.camera.viewmat, rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs.camera.K, ours.camera.K, rtol=1e-6, atol=0)
        torch.testing.assert_close(theirs.image(), ours.image(), rtol=0, atol=0.5 / 255 + 1e-6)
    torch.testing.assert_close(read.points, room.points, rtol=0, atol=1e-6)
    torch.testing.assert_close(read.point_colors, room.point_colors, rtol=0, atol=0.5 / 255 + 1e-6)


def test_saving_replaces_nothing_and_leaves_no_parts(room, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match="taken"):
        save_room(tmp_path / "taken", room)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_room(tmp_path / "nowhere" / "room", room)
    monkeypatch.setattr(type(room), "geometry", lambda self, index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_room(tmp_path / "room", room)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]

"""Where Gaussians start: depths from a plane sweep, an opaque shell, seeds where something moves or has changed."""

import math
from dataclasses import replace

import pytest
import torch

from gsfields.camera import Camera
from gsfields.fit.footage import Footage
from gsfields.fit.layers import LayeredParameters, look, scene_depths, seed_layers, static_only
from gsfields.fit.scene import open_dataset
from gsfields.fit.seeding import (
    Seeds,
    Unexplained,
    dynamic_seeds,
    photo_consistent_points,
    semistatic_seeds,
    shell,
    smoothed_residual,
)
from gsfields.layers import LayeredScene, render_layers
from gsfields.rendering import render
from tests.fit.tiny_video import BALL, BOX, BOX_DEPTH, WALL_DEPTH, Spots, TinyVideo, config_of
from tests.layered_scene import layered, random_scene, rest


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def projected(camera, points):
    """(pixels [M] as flat indices, depths [M]) of world points that lie in the image."""
    local = points @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
    uv = local @ camera.K.T
    x, y = (uv[:, :2] / uv[:, 2:]).floor().long().T
    assert ((x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height) & (local[:, 2] > 0)).all()
    return y * camera.width + x, local[:, 2]


# ------------------------------------------------------------------------------------------------- static layer


@pytest.fixture(scope="module")
def still():
    """The video with a panel before the wall and nothing that is taken away."""
    panel = Spots.grid((0.2, -0.8), (1.4, 0.4), 2.5, 0.1, 7)
    wall = Spots.grid((-3.6, -2.2), (3.6, 2.2), WALL_DEPTH, 0.3, 0)
    scale = torch.cat([torch.full((len(s.means), 1), s.scale) for s in (wall, panel)])
    both = Spots(torch.cat((wall.means, panel.means)), torch.cat((wall.colors, panel.colors)), scale)
    return TinyVideo(width=72, height=48, wall=both, box=Spots(torch.zeros(0, 3), torch.zeros(0, 3), 0.1))


@pytest.fixture(scope="module")
def swept(still):
    pictures = [still.picture(i) for i in range(still.frames)]
    return pictures, *photo_consistent_points(pictures, 1500, (1.5, 12.0), generator())


def test_a_plane_sweep_finds_the_depths(still, swept):
    _, points, colors = swept
    assert 0.7 * 1500 < len(points) <= 1500 and colors.shape == points.shape
    assert colors.min() >= 0 and colors.max() <= 1
    z = points[:, 2]
    error = torch.minimum((z - 2.5).abs(), (z - WALL_DEPTH).abs()) / z
    assert error.median() < 0.05 and (error < 0.12).float().mean() > 0.85
    panel = (points[:, :2] > torch.tensor([0.1, -0.9])).all(1) & (
        points[:, :2] < torch.tensor([1.5, 0.5])
    ).all(1)
    assert (z[panel] < 3).sum() > 100 and (z[~panel] < 3).float().mean() < 0.1  # the panel, and where it is


def test_a_plane_sweep_leaves_out_what_moves(swept):
    """The ball alone has full red without blue: no pixel is drawn there, none is found to look like it."""
    pictures, _, colors = swept
    blind = [replace(p, motion=torch.zeros_like(p.motion)) for p in pictures]
    _, all_colors = photo_consistent_points(blind, 1500, (1.5, 12.0), generator())
    on_ball = [((c[:, 0] > 0.97) & (c[:, 2] < 0.03)).float().mean() for c in (colors, all_colors)]
    assert on_ball[0] == 0 and on_ball[1] > 0.01


def test_a_plane_sweep_is_a_function_of_its_generator(still):
    pictures = [still.picture(i) for i in range(3)]
    one, same, other = (photo_consistent_points(pictures, 50, (1.5, 12.0), generator(s)) for s in (3, 3, 4))
    assert torch.equal(one[0], same[0]) and torch.equal(one[1], same[1])
    assert one[0].shape != other[0].shape or not torch.equal(one[0], other[0])


def look_around(count, size, fov, *, eye=0.3):
    """Cameras that turn on the spot, up and down."""
    cameras = []
    for i in range(count):
        turn, up = 2 * math.pi * i / count, 0.5 * math.sin(3 * i)
        at = [eye * math.sin(i), 0.0, eye * math.cos(i)]
        target = [at[0] + math.cos(turn), up, at[2] + math.sin(turn)]
        cameras.append(
            Camera.look_at(at, target, (0, -1, 0), fov_y_degrees=fov, width=size[0], height=size[1])
        )
    return cameras


@pytest.mark.parametrize("fov", [25, 60, 100])
@pytest.mark.parametrize("count", [1, 9], ids=["one view", "all around"])
def test_the_shell_is_opaque_in_every_view(fov, count):
    cameras = look_around(count, (40, 30), fov)
    made = shell(cameras, 600, 50.0, generator())
    centre = torch.stack([c.position for c in cameras]).mean(0)
    torch.testing.assert_close(
        (made.means - centre).norm(dim=1), torch.full((len(made),), 50.0), rtol=1e-4, atol=0
    )
    assert 0.6 * 600 < len(made) < 2.5 * 600
    for view in cameras:
        r = render(made, view)
        assert r.alpha.min() > 0.95
        assert ((r.color / r.alpha - 0.5).abs() < 0.01).all()  # grey


@pytest.mark.parametrize("count", [1, 3, 50])
def test_a_small_shell_is_a_shell(count):
    made = shell(look_around(5, (40, 30), 50)[2:3], count, 10.0, generator())
    assert len(made) >= 1 and made.means.isfinite().all() and made.log_scales.isfinite().all()


def test_a_shell_for_a_telescope_has_no_holes():
    view = look_around(5, (40, 30), 3)[3:4]
    assert render(shell(view, 600, 50.0, generator()), view[0]).alpha.min() > 0.95


# ------------------------------------------------------------------------------------------------ moving layers


def unexplained(i, video):
    """(frame i with a perfect wall as static layer, its true masks)."""
    color, masks, depth = video.render(i)
    wall = rest(video.wall.means, video.wall.colors, scale=video.wall.scale, opacity=0.95)
    residual = smoothed_residual(render(wall, video.camera(i)).color, color)
    return Unexplained(video.picture(i), residual, depth, torch.zeros_like(residual)), masks


def test_dynamic_seeds_lie_on_the_masks_between_camera_and_surface():
    video = TinyVideo()
    u, masks = unexplained(4, video)
    seeds = dynamic_seeds([u], 300, generator(), from_mask=1.0, most=300)
    assert len(seeds.means) == 300
    camera = u.picture.camera
    own = Camera(torch.eye(4), camera.K, camera.width, camera.height)  # seeds are in the camera's frame
    pixel, depth = projected(own, seeds.means)
    assert (masks[..., BALL].flatten()[pixel] > 0).all()
    assert masks[..., BALL].flatten()[pixel].mean() > 0.8
    k = 2
    h, w = u.depth.shape
    nearest = torch.tensor([
        u.depth[max(0, y - k) : y + k + 1, max(0, x - k) : x + k + 1].min() for y in range(h) for x in range(w)
    ])  # fmt: skip
    share = depth / nearest[pixel]
    assert share.min() > 0.3 - 1e-4 and share.max() < 0.7 + 1e-4 and share.std() > 0.08
    assert torch.equal(seeds.colors, u.picture.image.reshape(-1, 3)[pixel])
    assert (seeds.frames == 4).all() and (seeds.scales > 0).all()


def test_the_other_dynamic_seeds_lie_where_the_static_layer_is_wrong():
    video = TinyVideo()
    u, masks = unexplained(4, video)
    u.picture.motion = torch.zeros_like(u.picture.motion)
    seeds = dynamic_seeds([u], 300, generator(), from_mask=0.0)
    camera = u.picture.camera
    pixel, _ = projected(Camera(torch.eye(4), camera.K, camera.width, camera.height), seeds.means)
    around = torch.nn.functional.max_pool2d(masks[None, ..., 1:].amax(-1), 5, 1, 2)[0].flatten()
    assert len(pixel) > 100 and (around[pixel] > 0.02).float().mean() > 0.95


def test_what_is_large_gets_more_seeds():
    """As many for each pixel from 6 % of the image on, until four times as many, or the most that a frame may have."""
    video, counts = TinyVideo(), {}
    u, _ = unexplained(4, video)
    for share in (0.01, 0.02, 0.06, 0.12, 0.24, 0.5):
        u.picture.motion = torch.full_like(u.picture.motion, share)
        counts[share] = len(dynamic_seeds([u], 100, generator(), from_mask=1.0).means)
    assert list(counts.values()) == [50, 100, 100, 200, 400, 400]
    assert len(dynamic_seeds([u], 100, generator(), from_mask=1.0, most=130).means) == 130


def test_where_nothing_is_unexplained_there_are_no_seeds():
    video = TinyVideo()
    u, _ = unexplained(4, video)
    quiet = replace(u, residual=torch.zeros_like(u.residual))
    quiet.picture.motion = torch.zeros_like(u.depth)
    for make in (dynamic_seeds, semistatic_seeds):
        seeds = make([quiet, quiet], 50, generator())
        assert len(seeds.means) == 0 and len(seeds.gaussians(0.3)) == 0


def test_semistatic_seeds_lie_just_before_the_surface_where_it_is_wrong_and_nothing_moves():
    video = TinyVideo()
    u, masks = unexplained(5, video)
    seeds = semistatic_seeds([u], 200, generator())
    pixel, depth = projected(u.picture.camera, seeds.means)  # in the world
    around = torch.nn.functional.max_pool2d(masks[None, ..., BOX], 5, 1, 2)[0].flatten()
    assert len(pixel) > 20 and (around[pixel] > 0.02).float().mean() > 0.95
    assert (u.picture.motion.flatten()[pixel] < 0.5).all()
    share = depth / u.depth.flatten()[pixel]
    assert share.min() > 0.9 - 1e-4 and share.max() < 0.98 + 1e-4
    assert BOX_DEPTH < depth.median() < WALL_DEPTH + 0.2


def test_semistatic_seeds_are_not_where_the_static_layer_is_always_wrong():
    u, _ = unexplained(5, TinyVideo())
    assert len(semistatic_seeds([u], 200, generator()).means) > 20
    poor = replace(u, usual=u.residual)  # as wrong at its best as now
    assert len(semistatic_seeds([poor], 200, generator()).means) == 0
    left = (torch.arange(u.depth.shape[1]) < u.depth.shape[1] // 2 - 4).expand(u.depth.shape)
    half = replace(u, usual=torch.where(left, u.residual, 0.0))
    seeds = semistatic_seeds([half], 200, generator())
    pixel, _ = projected(u.picture.camera, seeds.means)
    assert len(pixel) > 5 and not left.flatten()[pixel].any()


@pytest.mark.parametrize("halfway", [(3.5, 4.5), (2.0, 4.5), (3.5, 7.0)], ids=["even", "before", "after"])
def test_seeds_live_from_halfway_to_halfway(halfway):
    u, _ = unexplained(4, TinyVideo())
    u.picture.halfway = halfway
    windows = dynamic_seeds([u], 30, generator()).windows
    half = windows[:, 1].exp()
    torch.testing.assert_close(windows[:, 0] - half, torch.full_like(half, halfway[0]))
    torch.testing.assert_close(windows[:, 0] + half, torch.full_like(half, halfway[1]))


def test_frames_that_are_held_out_lie_in_the_life_of_their_neighbours(video):
    """From the first training image to the last, every moment is in the life of one picture's seeds, and one only."""
    config = config_of(video, split_every=4)
    dataset = open_dataset(config.data)
    footage = Footage(dataset, config)
    lives = {p.frame: p.halfway for p in (footage.picture(k, 1.0) for k in range(len(footage)))}
    assert dataset.test == [0, 4, 8]
    assert lives[3] == pytest.approx((2.5, 4.0)) and lives[5] == pytest.approx((4.0, 5.5))
    assert lives[6] == pytest.approx((5.5, 6.5)) and lives[11] == pytest.approx((10.5, 11.5))
    ends = [end for life in sorted(lives.values()) for end in life]
    assert ends[1:-1:2] == pytest.approx(ends[2:-1:2])


def test_the_residual_is_a_mean_over_a_square():
    image, rendered = torch.zeros(9, 12, 3), torch.zeros(9, 12, 3)
    rendered[4, 6] = torch.tensor([0.3, 0.6, 0.9])
    expected = torch.zeros(9, 12)
    expected[3:6, 5:8] = 0.6 / 9
    torch.testing.assert_close(smoothed_residual(rendered, image), expected)


def test_seeds_become_round_gaussians():
    seeds = Seeds(
        torch.eye(3),
        torch.rand(3, 3, generator=generator()),
        torch.tensor([0.1, 0.2, 0.3]),
        torch.arange(3.0),
        torch.zeros(3, 2),
    )
    made = Seeds.joined([seeds, seeds]).gaussians(0.25)
    assert len(made) == 6 and made.sh_degree == 0
    torch.testing.assert_close(made.opacities, torch.full((6,), 0.25))
    torch.testing.assert_close(made.scales, torch.tensor([0.1, 0.2, 0.3] * 2)[:, None].repeat(1, 3))


# ------------------------------------------------------------------------------------------- layers of a scene


def wall_scene(video):
    wall = rest(video.wall.means, video.wall.colors, scale=video.wall.scale, opacity=0.95)
    scene = layered(static=wall)
    scene.duration = float(video.frames - 1)
    return scene


def test_seeding_gives_layers_in_their_frames_with_life_spans():
    video = TinyVideo()
    config = config_of("none", semistatic_count=120, dynamic_count=25, semistatic_span=0.2)
    pictures = [video.picture(i) for i in range(video.frames)]
    scene = wall_scene(video)
    seeds = seed_layers(scene, iter(pictures), config, generator(), len(pictures))
    semistatic, dynamic = seeds["semistatic"], seeds["dynamic"]
    assert (semistatic.frame, dynamic.frame) == ("world", "camera")
    assert 0 < len(semistatic) <= 120 and 100 < len(dynamic) <= 4 * 25 * 12
    assert dynamic.windows[:, 0].unique().tolist() == pytest.approx(list(range(12)))
    torch.testing.assert_close(dynamic.windows[:, 1].exp(), torch.full((len(dynamic),), 0.5))
    torch.testing.assert_close(semistatic.windows[:, 1].exp(), torch.full((len(semistatic),), 0.2 * 11))
    assert not dynamic.response.any() and dynamic.betas.tolist() == pytest.approx([0.03] * len(dynamic))
    shown = LayeredScene(scene.static, scene.shell, semistatic, dynamic, scene.gain, scene.duration)
    masks = [render_layers(shown, p.camera, p.frame / 11).masks[..., 2] for p in pictures]
    for mask, picture in zip(masks, pictures, strict=True):  # already most of it is where the ball is
        assert (mask * picture.motion.clamp(0, 1)).sum() > 0.4 * mask.sum()


def test_the_dynamic_seeds_of_a_long_video_are_bounded():
    video = TinyVideo()
    config = config_of("none", dynamic_count=25, dynamic_total=60, semistatic_count=0)
    pictures = [video.picture(i) for i in range(video.frames)]
    seeds = seed_layers(wall_scene(video), iter(pictures), config, generator(), len(pictures))
    assert len(seeds["semistatic"]) == 0 and 0 < len(seeds["dynamic"]) <= 60


def test_what_the_static_layer_makes_of_a_picture():
    video = TinyVideo()
    scene = random_scene((7, 4, 6, 5), dtype=torch.float32)
    scene.static, scene.shell = wall_scene(video).static, rest(torch.zeros(0, 3), torch.zeros(0, 3))
    scene.static_uncertainty, scene.gain = None, torch.zeros(3, 1)
    alone = static_only(scene)
    assert alone.counts == {"static": len(scene.static), "shell": 0, "semistatic": 0, "dynamic": 0}
    assert scene.counts["dynamic"] == 5  # the scene itself is as it was
    picture = video.picture(0)
    u = look(alone, picture, config_of("none"))
    torch.testing.assert_close(u.depth, video.render(0)[2], rtol=0.02, atol=0.05)
    assert not u.usual.any()
    ball = picture.motion > 0.9
    assert u.residual[ball].mean() > 3 * u.residual[picture.motion < 0.01].median()


def test_what_is_usual_is_seen_where_its_gaussians_are():
    video = TinyVideo()
    scene = wall_scene(video)
    right = scene.static.means[:, 0] > 0
    u = look(scene, video.picture(0), config_of("none"), torch.where(right, 0.3, 0.0))
    columns = u.usual.mean(dim=0)
    assert columns[:12].max() < 0.05 and columns[-12:].min() > 0.25


def test_depths_before_the_cameras_are_sorted_and_never_none():
    view = TinyVideo().camera(0)
    points = torch.tensor([[0.0, 0, 5], [0, 0, 2], [0, 0, -3]])
    depths = scene_depths(points, [view])
    assert len(depths) == 2 and depths[0] < depths[1]
    assert scene_depths(points[2:], [view]).tolist() == [1.0]


@pytest.mark.parametrize("depth", [0.013, 1.0, 3.7, 900.0])
def test_responses_in_units_of_the_depth_lose_no_bit(depth):
    scene = random_scene(dtype=torch.float32)
    parameters = LayeredParameters(scene, depth)
    ours, theirs = scene.tensors(), parameters.scene().tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ratio = scene.dynamic.response / parameters.layers["dynamic"].values["response"].detach()
    assert ((ratio[:, :3] / depth).log2().abs() <= 0.5 + 1e-6).all() and (ratio[:, 3:] == 1).all()


def test_appended_gaussians_start_without_moments_and_the_others_keep_theirs():
    parameters = LayeredParameters(random_scene(dtype=torch.float32), 3.7)
    part = parameters.layers["dynamic"]
    part.values["means"].square().sum().backward()
    part.set_rates({"means": 0.1})
    part.optimizers["means"].step()
    before, moments = part.values["means"].detach().clone(), part.state_dict()["means.exp_avg"].clone()
    more = random_scene((1, 1, 1, 3), seed=5, dtype=torch.float32).dynamic
    parameters.append("dynamic", more)
    scene = parameters.scene()
    assert torch.equal(scene.dynamic.gaussians.means, torch.cat((before, more.gaussians.means)))
    assert torch.equal(scene.dynamic.windows[-3:], more.windows) and len(parameters) == 7 + 4 + 6 + 8
    after = parameters.layers["dynamic"].state_dict()["means.exp_avg"]
    assert torch.equal(after[:5], moments) and not after[5:].any() and moments.any()
    parameters.append("dynamic", static_only(scene).dynamic)  # nothing: nothing changes
    assert len(parameters.scene().dynamic) == 8
    parameters.replace("dynamic", static_only(scene).dynamic)
    parameters.append("dynamic", more)
    assert torch.equal(parameters.scene().dynamic.gaussians.means, more.gaussians.means)

"""The layered scene: one depth order for all layers, what responds to time, what stays put, and its files."""

import math
from itertools import permutations

import pytest
import safetensors.torch
import torch

from gsfields import Camera, plan
from gsfields.gaussians import SH_C0
from gsfields.layers import (
    DYNAMIC,
    RESPONSES,
    SEMISTATIC,
    STATIC,
    LayeredScene,
    MovingLayer,
    initial_basis,
    render_layers,
    time_basis,
)
from gsfields.losses.motion import BETA_MIN
from tests.layered_scene import DURATION, camera, layered, moving, nothing, random_scene, rest

RED, GREEN, BLUE = [[1.0, 0, 0]], [[0, 1.0, 0]], [[0, 0, 1.0]]
AHEAD = [[0.0, 0.0, 2.0]]


def images(scene, view, time, **options):
    r = render_layers(scene, view, time, **options)
    return {"color": r.color, "masks": r.masks, "uncertainty": r.uncertainty, "depth": r.depth}


def wall(depth, color, **more):
    return rest([[0.0, 0.0, depth]], color, scale=20.0, opacity=0.995, **more)


# ---------------------------------------------------------------------------------------------- masks and order


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("parts", [False, True])
def test_masks_sum_to_alpha_and_parts_to_color(dtype, parts):
    r = render_layers(random_scene(dtype=dtype), camera(dtype=dtype), 0.4, parts=parts)
    assert torch.equal(r.alpha[..., 0], r.masks.sum(-1))
    torch.testing.assert_close(r.alpha, r.plan.alpha, rtol=0, atol=2e-6 if dtype == torch.float32 else 1e-12)
    assert (r.masks.amax(dim=(0, 1)) > 0.05).all() and r.color.dtype == dtype
    if parts:
        assert torch.equal(r.parts.sum(dim=-2), r.color)


def test_parts_change_nothing_else():
    scene, view = random_scene(), camera(dtype=torch.float64)
    for name, image in images(scene, view, 0.4).items():
        torch.testing.assert_close(images(scene, view, 0.4, parts=True)[name], image, rtol=0, atol=1e-12)


def test_parts_are_what_each_layer_adds():
    scene, view = random_scene(), camera(dtype=torch.float64)
    scene.dynamic.gaussians.sh0 = torch.full_like(scene.dynamic.gaussians.sh0, -0.5 / SH_C0)  # black
    scene.dynamic.response = torch.zeros_like(scene.dynamic.response)
    parts = render_layers(scene, view, 0.4, parts=True).parts
    assert parts[..., DYNAMIC, :].abs().max() < 1e-12 and parts[..., STATIC, :].max() > 0.1


@pytest.mark.parametrize(("front", "back"), list(permutations(("static", "semistatic", "dynamic"), 2)))
def test_layers_are_sorted_together(front, back):
    """Whatever layer is in front hides the other, although each comes from a tensor of its own."""
    walls = {front: wall(2.0, RED), back: wall(3.0, BLUE)}
    given = {name: g if name == "static" else moving(g, _frame(name)) for name, g in walls.items()}
    r = render_layers(layered(**given), camera(), 0.5, parts=True)
    place = {"static": STATIC, "semistatic": SEMISTATIC, "dynamic": DYNAMIC}
    assert (r.masks[..., place[front]] > 0.98).all() and (r.masks[..., place[back]] < 0.02).all()
    assert (r.color[..., 0] > 0.98).all() and (r.color[..., 2] < 0.02).all()
    assert ((r.depth - 2).abs() < 0.03).all()


def _frame(name):
    return "camera" if name == "dynamic" else "world"


def test_the_shell_is_part_of_the_static_layer():
    r = render_layers(layered(shell=wall(3.0, GREEN)), camera(), 0.5)
    assert (r.masks[..., STATIC] > 0.98).all() and (r.masks[..., 1:] == 0).all()


def test_the_background_shows_through_what_is_left():
    scene, view = random_scene(), camera(dtype=torch.float64)
    background = torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64)
    plain, laid = (render_layers(scene, view, 0.4, background=b) for b in (None, background))
    torch.testing.assert_close(laid.color, plain.color + (1 - plain.alpha) * background)


# ---------------------------------------------------------------------------------------------- frames and time


def test_what_lives_in_the_cameras_frame_stays_put_in_the_image():
    """Stretched, turned Gaussians: their axes must turn with the camera as well."""
    scene = random_scene((0, 0, 0, 5))
    here = camera(dtype=torch.float64)
    there = camera(eye=(3.0, -1.0, 2.0), target=(1.0, 4.0, -1.0), dtype=torch.float64)
    for name, image in images(scene, here, 0.4).items():
        torch.testing.assert_close(images(scene, there, 0.4)[name], image, rtol=0, atol=1e-6)
    means = [scene.dynamic.at(0.4, DURATION, view, 0.5)[0] for view in (here, there)]
    local = means[1] @ there.viewmat[:3, :3].T + there.viewmat[:3, 3]
    assert (means[0] - means[1]).norm(dim=1).min() > 1  # it moves through the world
    torch.testing.assert_close(local, means[0])


@pytest.mark.parametrize("layer", ["static", "semistatic"])
def test_what_lives_in_the_world_moves_in_the_image(layer):
    spot = rest(AHEAD, RED, scale=0.1)
    scene = layered(static=spot) if layer == "static" else layered(semistatic=moving(spot))

    def column(view):
        alpha = render_layers(scene, view, 0.5).alpha[..., 0]
        return float((alpha.sum(0) * (torch.arange(view.width) + 0.5)).sum() / alpha.sum())

    here, there = camera(), camera(eye=(0.3, 0, 0), target=(0.3, 0, 1))
    assert column(here) == pytest.approx(12, abs=0.05)
    assert column(there) == pytest.approx(12 - 0.3 / 2 * float(here.K[0, 0]), abs=0.05)


def by_hand(layer, time, softness):
    """(means, opacities, colours) of a layer from the formulae, Gaussian by Gaussian; the pose is still to come."""
    means, opacities, colors = [], [], []
    waves = layer.basis.shape[1] - layer.steps
    rows = [math.cos(math.pi * k * time) for k in range(waves)]
    rows += [
        1 / (1 + math.exp(-(time - (k + 1) / (layer.steps + 1)) * 8 * (layer.steps + 1)))
        for k in range(layer.steps)
    ]
    code = [sum(z * f for z, f in zip(row, rows, strict=True)) for row in layer.basis.tolist()]
    logistic = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    g, now = layer.gaussians, time * DURATION
    for i in range(len(layer)):
        r = [sum(a * z for a, z in zip(row, code, strict=True)) for row in layer.response[i].tolist()]
        middle, half = float(layer.windows[i, 0]), math.exp(float(layer.windows[i, 1]))
        gate = logistic((now - middle + half) / softness) * logistic((middle + half - now) / softness)
        gate /= logistic(half / softness) ** 2
        means.append([float(g.means[i, k]) + r[k] for k in range(3)])
        opacities.append(logistic(float(g.opacity_logits[i]) + r[3]) * gate)
        colors.append([max(0.5 + SH_C0 * float(g.sh0[i, 0, k]) + r[4 + k], 0.0) for k in range(3)])
    return [torch.tensor(values, dtype=torch.float64) for values in (means, opacities, colors)]


@pytest.mark.parametrize("time", [0.0, 0.31, 0.5, 0.9])
def test_color_masks_and_uncertainty_by_hand(time):
    """Everything again through plan() in the camera's coordinates, from formulae in Python floats."""
    scene, view = random_scene(), camera(dtype=torch.float64)
    identity = torch.eye(4, dtype=torch.float64)
    still = [scene.static, scene.shell]
    parts = [(g.means, g.opacities) for g in still]
    gain = [sum(v * math.cos(math.pi * k * time) for k, v in enumerate(row)) for row in scene.gain.tolist()]
    bright = torch.tensor(gain, dtype=torch.float64).exp()
    degree1 = [0.4886025119029199 * scene.static.shN[:, k] for k in range(3)]
    x, y, z = torch.nn.functional.normalize(scene.static.means, dim=1).T[:, :, None]
    colors = [
        (0.5 + SH_C0 * scene.static.sh0[:, 0] - y * degree1[0] + z * degree1[1] - x * degree1[2]).clamp(min=0)
        * bright,
        (0.5 + SH_C0 * scene.shell.sh0[:, 0]).clamp(min=0) * bright,
    ]
    for layer, factor in ((scene.semistatic, bright), (scene.dynamic, 1.0)):
        means, opacities, shown = by_hand(layer, time, scene.softness)
        parts.append((means, opacities))
        colors.append(shown * factor)
    sets = [*still, scene.semistatic.gaussians, scene.dynamic.gaussians]
    built = plan(
        torch.cat([m for m, _ in parts]), torch.cat([g.quats for g in sets]),
        torch.cat([g.log_scales.exp() for g in sets]), torch.cat([o for _, o in parts]),
        identity, view.K, view.width, view.height,
    )  # fmt: skip
    counts = [len(g) for g in sets]
    ids = torch.repeat_interleave(torch.tensor([0, 0, 1, 2]), torch.tensor(counts))
    color, masks = built.blend(torch.cat(colors), layers=ids, num_layers=3)
    raw = [scene.static_uncertainty, torch.full((counts[1],), -torch.inf).double()]
    betas = torch.cat([*raw, scene.semistatic.uncertainty, scene.dynamic.uncertainty]).exp().log1p()
    r = render_layers(scene, view, time)
    assert torch.equal(view.viewmat, identity) and (masks.amax((0, 1)) > 0.01).all()
    torch.testing.assert_close(r.color, color, rtol=0, atol=1e-10)
    torch.testing.assert_close(r.masks, masks, rtol=0, atol=1e-10)
    torch.testing.assert_close(r.uncertainty, BETA_MIN + built.blend(betas[:, None]), rtol=0, atol=1e-10)
    assert torch.equal(scene.layer_ids(), ids)


def test_without_static_uncertainty_what_is_still_is_sure():
    scene = random_scene((7, 4, 0, 0), static_beta=False)
    assert (render_layers(scene, camera(dtype=torch.float64), 0.4).uncertainty == BETA_MIN).all()


@pytest.mark.parametrize(("row", "changes"), [(0, "place"), (3, "opacity"), (4, "colour")])
def test_the_response_moves_fades_and_recolours(row, changes):
    layer = moving(rest(AHEAD, GREEN, scale=0.15, opacity=0.5), rank=1, rows=2)
    layer.basis = torch.tensor([[0.0, 1.0]])  # z = cos(πt): 1 at the start, 0 in the middle
    layer.response[0, row, 0] = {"place": 0.4, "opacity": -2.0, "colour": 0.6}[changes]
    before, rests = (render_layers(layered(semistatic=layer), camera(), t) for t in (0.0, 0.5))
    plain = render_layers(layered(semistatic=moving(layer.gaussians)), camera(), 0.0)
    torch.testing.assert_close(rests.color, plain.color, rtol=0, atol=1e-6)
    weight = lambda r: r.alpha[..., 0] / r.alpha.sum()  # noqa: E731
    shift = float(((weight(before) - weight(rests)).sum(0) * torch.arange(24)).sum())
    red = float(before.color[..., 0].sum() / before.alpha.sum())
    assert shift == pytest.approx(0.2 * float(camera().K[0, 0]) if changes == "place" else 0, abs=0.15)
    assert red == pytest.approx(0.6 if changes == "colour" else 0, abs=1e-3)
    assert (before.alpha.max() < 0.3 * rests.alpha.max()) == (changes == "opacity")


def test_a_life_span_begins_and_ends():
    layer = moving(wall(2.0, RED), "camera", middle=5.0, half=2.0)
    scene = layered(dynamic=layer)
    scene.softness = 0.1
    at = {frame: float(render_layers(scene, camera(), frame / DURATION).alpha.mean()) for frame in range(11)}
    for frame, alpha in at.items():
        if frame in (3, 7):
            assert alpha == pytest.approx(0.5, abs=0.02)
        elif 3 < frame < 7:
            assert alpha > 0.98
        else:
            assert alpha == 0


def test_anything_that_all_gaussians_carry_is_blended_though_some_do_not_live():
    scene = random_scene((5, 3, 6, 7))
    scene.dynamic.windows[::2, 0] = 40.0  # long after the video
    scene.dynamic.windows[::2, 1] = 0.0
    scene.semistatic.windows[:1] = torch.tensor([-40.0, 0.0]).to(scene.semistatic.windows)
    r = render_layers(scene, camera(dtype=torch.float64), 0.4)
    assert len(r.index) == sum(r.drawn) and r.drawn[0] == 8 and r.drawn[1] < 6 and r.drawn[2] < 7
    member = torch.nn.functional.one_hot(scene.layer_ids(), 3).double()
    torch.testing.assert_close(r.blend(member), r.masks, rtol=0, atol=1e-10)
    behind = r.blend(member[:, :1]) + 1 - r.plan.alpha
    torch.testing.assert_close(r.blend(member[:, :1], torch.ones(1).double()), behind, rtol=0, atol=1e-12)


def test_times_between_the_frames_interpolate():
    scene, view = random_scene(), camera(dtype=torch.float64)
    here, near, there = (images(scene, view, t) for t in (0.4, 0.4 + 1e-5, 0.5))
    for name in ("color", "masks", "uncertainty"):
        step = float((near[name] - here[name]).abs().max())
        assert 0 < step < 1e-3 * float((there[name] - here[name]).abs().max()), name


# ------------------------------------------------------------------------------------------------ basis and code


@pytest.mark.parametrize("steps", [0, 3])
def test_rows_of_the_basis(steps):
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    basis = time_basis(times, 8, steps)
    assert basis.shape == (8, 9)
    for k in range(8 - steps):
        torch.testing.assert_close(basis[k], torch.cos(torch.pi * k * times))
    for k in range(steps):
        row = basis[8 - steps + k]
        assert (row.diff() > 0).all() and row[0] < 1e-3 < 1 - 1e-3 < row[-1]
        middle = time_basis(torch.tensor([(k + 1) / (steps + 1)], dtype=torch.float64), 8, steps)
        assert float(middle[8 - steps + k]) == pytest.approx(0.5)


@pytest.mark.parametrize("steps", [-1, 4, 5])
def test_steps_beyond_the_rows_are_refused(steps):
    with pytest.raises(ValueError, match=rf"^steps must be 0 to rows - 1 = 3, but is {steps}$"):
        time_basis(torch.zeros(1), 4, steps)


def test_the_code_is_the_column_of_the_learned_basis():
    layer = random_scene().semistatic
    times = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    codes = layer.basis @ time_basis(times, 6, 2)
    for i, time in enumerate(times.tolist()):
        torch.testing.assert_close(layer.code(time), codes[:, i])


def test_a_layer_at_rest_does_not_respond():
    g = rest(AHEAD, RED)
    layer = MovingLayer.at_rest(g, torch.tensor([[5.0, 9.0]]), torch.eye(2, 4), "world", beta=0.07)
    assert layer.betas.tolist() == pytest.approx([0.07])
    start, end = (layer.at(t, DURATION, camera(), 0.5) for t in (0.0, 1.0))
    for a, b in zip(start, end, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(start[0], g.means)


def test_initial_basis():
    basis = initial_basis(3, 7, torch.Generator().manual_seed(0))
    assert basis.shape == (3, 7) and 0 < (basis - torch.eye(3, 7)).abs().max() < 0.1
    with pytest.raises(ValueError, match="rank must be 1 to rows = 7, but is 8"):
        initial_basis(8, 7, torch.Generator())


# ----------------------------------------------------------------------------------------- gradients, odd inputs


@pytest.mark.parametrize("output", ["color", "masks", "uncertainty", "parts"])
def test_gradients_of_every_tensor(output):
    scene = random_scene((2, 1, 2, 2), seed=3)
    view = camera(8, 8, eye=(0.1, 0.05, -0.1), target=(0.0, 0.1, 1.0), dtype=torch.float64)
    leaves = scene.tensors()
    for leaf in leaves.values():
        leaf.requires_grad_()

    def rendered(*_):  # gradcheck moves the leaves in place, and the scene holds them
        return getattr(render_layers(scene, view, 0.43, parts=output == "parts"), output)

    image = rendered()
    grads = torch.autograd.grad(image.square().sum(), list(leaves.values()), allow_unused=True)
    silent = {n for n, g in zip(leaves, grads) if g is None or (g.numel() and not g.any())}
    colors = {"gain"} | {name for name in leaves if ".sh" in name}
    uncertain = {name for name in leaves if name.endswith("uncertainty")}
    empty = {name for name, leaf in leaves.items() if not leaf.numel()}
    behind = {name for name in leaves if name.startswith("shell.")}  # has no β, and nothing lies behind it
    expected = {
        "color": uncertain,
        "parts": uncertain,
        "masks": colors | uncertain,
        "uncertainty": colors | behind,
    }
    assert silent - empty == expected[output] - empty
    heard = [leaf for name, leaf in leaves.items() if name not in silent | empty]
    assert torch.autograd.gradcheck(rendered, heard, eps=1e-6, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    "counts", [(0, 4, 6, 5), (7, 0, 6, 5), (7, 4, 0, 5), (7, 4, 6, 0), (0, 0, 0, 0)], ids=str
)
def test_layers_without_gaussians(counts, tmp_path):
    scene = random_scene(counts)
    r = render_layers(scene, camera(dtype=torch.float64), 0.4, parts=True)
    shown = [counts[0] + counts[1] > 0, counts[2] > 0, counts[3] > 0]
    assert [bool(mask.any()) for mask in r.masks.unbind(-1)] == shown
    assert r.color.isfinite().all() and scene.counts["shell"] == counts[1] and len(scene) == sum(counts)
    scene.save(tmp_path / "scene.safetensors")
    assert LayeredScene.load(tmp_path / "scene.safetensors").counts == scene.counts


def test_a_batch_of_cameras_is_refused():
    view = camera()
    batch = Camera(view.viewmat.repeat(2, 1, 1), view.K.repeat(2, 1, 1), view.width, view.height)
    with pytest.raises(ValueError, match=r"^camera must be a single one, but is a batch of 2$"):
        render_layers(layered(wall(2.0, RED)), batch, 0.5)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("response", torch.zeros(1, 6, 2), r"response must be \[1, 7, 2\], but is \[1, 6, 2\]"),
        ("windows", torch.zeros(2, 2), r"windows must be \[1, 2\], but is \[2, 2\]"),
        ("uncertainty", torch.zeros(1, 1), r"uncertainty must be \[1\], but is \[1, 1\]"),
        ("frame", "body", "frame must be 'world' or 'camera', but is 'body'"),
        ("gaussians", rest(AHEAD, RED, degree=2), "moving Gaussians must have SH degree 0, but these have 2"),
    ],
)
def test_bad_layers_are_refused(name, value, sentence):
    good = {
        "gaussians": rest(AHEAD, RED), "response": torch.zeros(1, RESPONSES, 2), "windows": torch.zeros(1, 2),
        "uncertainty": torch.zeros(1), "basis": torch.eye(2, 4), "frame": "world",
    }  # fmt: skip
    MovingLayer(**good)
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        MovingLayer(**good | {name: value})


# -------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("static_beta", [False, True])
def test_a_file_keeps_every_bit(tmp_path, static_beta):
    scene = random_scene(dtype=torch.float32, static_beta=static_beta)
    scene.softness, scene.duration = 0.1, 1 / 3
    scene.save(tmp_path / "scene.safetensors")
    loaded = LayeredScene.load(tmp_path / "scene.safetensors")
    ours, theirs = scene.tensors(), loaded.tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert (loaded.softness, loaded.duration) == (0.1, 1 / 3)
    for name in ("semistatic", "dynamic"):
        a, b = getattr(scene, name), getattr(loaded, name)
        assert (a.frame, a.steps) == (b.frame, b.steps)
    assert torch.equal(*(render_layers(s, camera(), 0.4).color for s in (scene, loaded)))


def test_files_that_hold_no_scene(tmp_path):
    path = tmp_path / "scene.safetensors"
    with pytest.raises(FileNotFoundError, match=f"^no scene file at {path}$"):
        LayeredScene.load(path)
    scene = random_scene(dtype=torch.float32)
    scene.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        LayeredScene.load(path)
    safetensors.torch.save_file({"gain": scene.gain}, path, metadata={})
    with pytest.raises(ValueError, match="holds no layered scene: it lacks 'means'"):
        LayeredScene.load(path)
    safetensors.torch.save_file(scene.tensors(), path)
    with pytest.raises(ValueError, match=r"holds no layered scene: it lacks 'semistatic.frame'"):
        LayeredScene.load(path)


def test_detached_scenes_are_equal_and_take_no_gradients():
    scene = random_scene()
    for value in scene.tensors().values():
        value.requires_grad_()
    apart = scene.detach()
    assert not any(value.requires_grad for value in apart.tensors().values())
    assert all(torch.equal(apart.tensors()[name], value) for name, value in scene.tensors().items())
    assert apart.counts == scene.counts == {"static": 7, "shell": 4, "semistatic": 6, "dynamic": 5}
    assert len(nothing()) == 0

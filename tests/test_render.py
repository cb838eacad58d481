"""Plan and render() against the oracles, end to end: from 3D Gaussians and cameras to images and back."""

from __future__ import annotations

import pytest
import torch

import gsfields
from gsfields import Camera, Gaussians
from tests.kernels import oracle
from tests.kernels.compare import assert_bitwise, assert_close_outside_band, assert_relative
from tests.kernels.scenes import Scene, generator, normal, random_scene, smooth_scene, uniform

pytestmark = pytest.mark.usefixtures("kernels")


def built(scene: Scene, **options) -> gsfields.Plan:
    return gsfields.plan(*scene.args, **options)


def expected_composite(scene: Scene, values, background=None, **options) -> oracle.Composite:
    p = oracle.project(*scene.args, **options)
    geometry = (p.means2d, p.conics, p.opacities2d, p.depths, p.radii)
    return oracle.composite(values, *geometry, scene.width, scene.height, background)


@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (64, 48)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_images_match_the_oracle(size, antialiased):
    scene = random_scene(300, *size, views=2, seed=1, sigma=1.5)
    rng = generator(0)
    values, background = uniform(rng, 0, 1, 300, 3), uniform(rng, 0, 1, 2, 3)
    p = built(scene, antialiased=antialiased)
    expected = expected_composite(scene, values, background, antialiased=antialiased)
    depths = oracle.project(*scene.args).depths.unsqueeze(-1)
    deep = expected_composite(scene, depths, antialiased=antialiased)
    alpha = 1 - expected.transmittance.unsqueeze(-1)
    checks = {
        "color": (p.blend(values, background), expected.image),
        "alpha": (p.alpha, alpha),
        "accumulated depth": (p.depth("accumulated"), deep.image),
        "expected depth": (p.depth("expected"), deep.image / alpha.clamp_min(1e-30)),
        "default depth": (p.depth(), deep.image / alpha.clamp_min(1e-30)),
    }
    for actual, wanted in checks.values():
        assert_close_outside_band(actual, wanted, expected.band, 1e-10, scale=10)


def test_float32_images_match_the_oracle():
    scene = random_scene(800, 60, 44, seed=2, sigma=1.5).to(torch.float32)
    values = uniform(generator(0), 0, 1, 800, 4).float()
    expected = expected_composite(scene.double(), values.double())
    # The projection's rounding moves the cutoff more than the blend's does.
    error = (built(scene).blend(values).double() - expected.image).abs().amax(-1)
    assert (error < 2e-5).double().mean() > 0.99 and error.max() < 4 / 255


def test_gradients_reach_all_inputs():
    scene = random_scene(250, 33, 25, views=2, seed=3, sigma=2.0)
    names = (*Scene.GEOMETRY, "viewmats")
    ours, theirs = scene.requires_grad_(*names), scene.requires_grad_(*names)
    values, background = uniform(generator(0), 0, 1, 250, 3), torch.tensor([0.2, 0.5, 0.9]).double()
    expected = expected_composite(theirs, values, background, antialiased=True)
    assert expected.kink.double().mean() < 0.1
    cotangent = torch.where(expected.kink[..., None], 0, normal(generator(1), *expected.image.shape))
    (expected.image * cotangent).sum().backward()
    (built(ours, antialiased=True).blend(values, background) * cotangent).sum().backward()
    for name in names:
        assert_relative(getattr(ours, name).grad, getattr(theirs, name).grad, 1e-8, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_gradient_of_expected_depth_is_finite_beside_empty_pixels(dtype):
    scene = random_scene(12, 40, 30, seed=1, sigma=1.0).to(dtype).requires_grad_(*Scene.GEOMETRY)
    p = built(scene)
    assert 0.2 < (p.alpha == 0).double().mean() < 0.95
    (p.depth("expected") * 3).sum().backward()
    reference = scene.double().requires_grad_(*Scene.GEOMETRY)
    projected = oracle.project(*reference.args)
    geometry = (projected.means2d, projected.conics, projected.opacities2d, projected.depths, projected.radii)
    deep = oracle.composite(projected.depths.unsqueeze(-1), *geometry, 40, 30)
    alpha = 1 - deep.transmittance
    (torch.where(alpha > 0, deep.image[..., 0] / torch.where(alpha > 0, alpha, 1), 0) * 3).sum().backward()
    for name in Scene.GEOMETRY:
        tolerance = 1e-3 if dtype == torch.float32 else 1e-8
        assert_relative(getattr(scene, name).grad.double(), getattr(reference, name).grad, tolerance, name)


def test_one_view_and_a_batch_of_one_agree_but_for_the_shape():
    scene = random_scene(50, 20, 12, seed=4)
    values = uniform(generator(0), 0, 1, 50, 2)
    batch = built(scene)
    single = gsfields.plan(*scene.gaussians, scene.viewmats[0], scene.Ks[0], 20, 12)
    for one, many in (
        (single.blend(values), batch.blend(values)),
        (single.alpha, batch.alpha),
        (single.depth("expected"), batch.depth("expected")),
        (single.depth("accumulated"), batch.depth("accumulated")),
    ):
        assert_bitwise(one, many[0])
    assert single.blend(values).shape == (12, 20, 2) and single.alpha.shape == single.depth().shape == (
        12,
        20,
        1,
    )
    assert single.means2d.shape == (1, 50, 2) and single.radii.dtype == torch.int32
    assert (single.width, single.height) == (20, 12)


def test_a_plan_can_be_blended_many_times():
    scene = random_scene(80, 30, 20, seed=5)
    p = built(scene)
    rng = generator(0)
    before = p.alpha
    for channels in (1, 3, 40):
        values = uniform(rng, 0, 1, 80, channels)
        assert_bitwise(p.blend(values), p.blend(values))
        assert_bitwise(p.alpha, before)
        assert p.blend(values).shape == (1, 20, 30, channels)


def test_alpha_is_differentiable_whatever_was_blended_before():
    scene = random_scene(80, 30, 20, seed=5).requires_grad_("opacities")
    p = built(scene)
    with torch.no_grad():
        p.blend(torch.ones(80, 3).double())
    (grad,) = torch.autograd.grad(p.alpha.sum(), scene.opacities)
    (wanted,) = torch.autograd.grad(built(scene).alpha.sum(), scene.opacities)
    assert_bitwise(grad, wanted)


def test_absgrad_is_collected_when_asked_for():
    scene = random_scene(60, 24, 18, views=2, seed=6)
    values = uniform(generator(0), 0, 1, 60, 3)
    p = oracle.project(*scene.args)
    copies = p.means2d[:, None].repeat(1, 24 * 18, 1, 1).requires_grad_()
    reference = oracle.composite(values, copies, p.conics, p.opacities2d, p.depths, p.radii, 24, 18)
    cotangent = torch.where(reference.kink[..., None], 0, normal(generator(1), *reference.image.shape))
    reference.image.backward(cotangent)
    scene = scene.requires_grad_("means")
    asked = built(scene, absgrad=True)
    assert asked.absgrad is None
    asked.blend(values).backward(cotangent)
    assert_relative(asked.absgrad, copies.grad.abs().sum(1), 1e-8)
    unasked = built(scene)
    unasked.blend(values).backward(cotangent)
    assert unasked.absgrad is None


@pytest.mark.parametrize("kind", ["no_gaussians", "all_culled", "no_views"])
def test_nothing_to_draw_shows_the_background(kind):
    scene = random_scene(
        0 if kind == "no_gaussians" else 5, 18, 17, views=0 if kind == "no_views" else 2, seed=7
    )
    if kind == "all_culled":
        scene.means[:, 2] = -5
        scene.viewmats[...] = torch.eye(4)
    scene = scene.requires_grad_(*Scene.GEOMETRY)
    background = torch.tensor([0.25, 0.5, 0.75]).double().requires_grad_()
    p = built(scene)
    image = p.blend(torch.ones(len(scene.means), 3).double(), background)
    assert image.shape == (len(scene.viewmats), 17, 18, 3)
    assert_bitwise(image, background.expand_as(image))
    assert (p.alpha == 0).all() and (p.depth() == 0).all() and (p.depth("accumulated") == 0).all()
    (image.sum() + p.depth().sum()).backward()
    assert all((getattr(scene, name).grad == 0).all() for name in Scene.GEOMETRY)
    assert (background.grad == image.numel() / 3).all()


def test_depth_of_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode"):
        built(smooth_scene()).depth("median")


# ---- render() ----


def gaussians_of(scene: Scene, degree: int, seed: int) -> Gaussians:
    n, bases = len(scene.means), (degree + 1) ** 2
    sh = normal(generator(seed), n, bases, 3).to(scene.means)
    return Gaussians(
        scene.means,
        scene.quats,
        scene.scales.log(),
        torch.logit(scene.opacities.clamp(0.02, 0.98)),
        sh[:, :1],
        sh[:, 1:],
    )


def expected_colors(gaussians: Gaussians, scene: Scene, degree: int):
    """[B, N, 3]: clamp(SH(direction from the camera centre) + 1/2)."""
    centres = torch.linalg.inv(scene.viewmats)[:, :3, 3]
    dirs = gaussians.means - centres[:, None]
    coeffs = torch.cat([gaussians.sh0, gaussians.shN], dim=1)
    return (oracle.spherical_harmonics(degree, dirs, coeffs) + 0.5).clamp_min(0)


@pytest.mark.parametrize("limit", [None, 0, 1], ids=["all_degrees", "degree_0", "degree_1"])
@pytest.mark.parametrize("batched", [False, True], ids=["one_view", "batch"])
def test_render_matches_the_oracle(batched, limit):
    scene = random_scene(150, 30, 22, views=2 if batched else 1, seed=8, sigma=2.0)
    gaussians = gaussians_of(scene, 2, 9)
    camera = Camera(*(t if batched else t[0] for t in (scene.viewmats, scene.Ks)), 30, 22)
    background = torch.tensor([0.1, 0.6, 0.3]).double()
    rendering = gsfields.render(gaussians, camera, background=background, sh_degree=limit)
    activated = Scene(*scene.args[:2], gaussians.scales, gaussians.opacities, *scene.args[4:])
    colors = expected_colors(gaussians, scene, 2 if limit is None else limit)
    assert (colors == 0).any() and (colors > 0).any()
    expected = expected_composite(activated, colors, background)
    color, alpha, depth = (
        t if batched else t[None] for t in (rendering.color, rendering.alpha, rendering.depth)
    )
    assert_close_outside_band(color, expected.image, expected.band, 1e-10, scale=5)
    assert_close_outside_band(alpha[..., 0], 1 - expected.transmittance, expected.band, 1e-10)
    assert_bitwise(rendering.depth, rendering.plan.depth("expected"))
    assert depth.shape == alpha.shape == (2 if batched else 1, 22, 30, 1)


def test_gradients_reach_the_parameters_of_the_gaussians():
    scene = random_scene(120, 26, 20, seed=10, sigma=2.0)
    leaves, exact = (
        {k: v.clone().requires_grad_() for k, v in gaussians_of(scene, 3, 11).parameters().items()}
        for _ in range(2)
    )
    camera = Camera(scene.viewmats[0], scene.Ks[0], 26, 20)
    theirs = Gaussians(**exact)
    colors = expected_colors(theirs, scene, 3)
    activated = Scene(theirs.means, theirs.quats, theirs.scales, theirs.opacities, *scene.args[4:])
    expected = expected_composite(activated, colors)
    cotangent = torch.where(expected.kink[..., None], 0, normal(generator(1), *expected.image.shape))
    expected.image.backward(cotangent)
    gsfields.render(Gaussians(**leaves), camera).color.backward(cotangent[0])
    for name, leaf in leaves.items():
        assert_relative(leaf.grad, exact[name].grad, 1e-8, name)


def test_a_gaussian_in_the_middle_of_the_view_is_drawn_in_the_middle():
    """By hand: one unit Gaussian straight ahead, of opacity 1/2, seen from behind a pixel centre."""
    camera = Camera.look_at(
        [0.0, 0.0, -4.0], [0.0, 0.0, 0.0], [0.0, -1.0, 0.0], width=11, height=7, fov_y_degrees=60
    )
    gaussians = Gaussians(
        torch.zeros(1, 3),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.zeros(1, 3),
        torch.zeros(1),
        torch.zeros(1, 1, 3),
        torch.zeros(1, 0, 3),
    )
    rendering = gsfields.render(gaussians, camera)
    assert rendering.alpha[3, 5].item() == pytest.approx(0.5, abs=1e-6)
    assert rendering.color[3, 5].tolist() == pytest.approx([0.25] * 3, abs=1e-6)  # SH 0 is grey
    assert rendering.depth[3, 5].item() == pytest.approx(4.0, abs=1e-5)
    # One pixel to the right: sigma on screen is f / 4, blurred by 0.3.
    variance = (float(camera.K[0, 0]) / 4) ** 2 + 0.3
    assert rendering.alpha[3, 6].item() == pytest.approx(
        0.5 * 2.718281828459045 ** (-0.5 / variance), abs=1e-5
    )

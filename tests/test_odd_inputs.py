"""Odd input, case by case: a defined result and no crash.

On the CPU kernels, and on the CUDA kernels as tests/emulator runs them.
"""

from __future__ import annotations

import pytest
import torch

import gsfields
from gsfields import ops
from tests.kernels import oracle
from tests.kernels.compare import assert_bitwise
from tests.kernels.scenes import Scene, Splats, generator, random_scene, uniform

NAN, INF = float("nan"), float("inf")
W, H, N, B = 22, 19, 12, 2

pytestmark = pytest.mark.usefixtures("kernels")


def render(scene: Scene, values: torch.Tensor, **options) -> torch.Tensor:
    return gsfields.plan(*scene.args, **options).blend(values)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def scene(request: pytest.FixtureRequest) -> Scene:
    return random_scene(40, W, H, views=B, seed=3).to(request.param)


@pytest.fixture
def values(scene: Scene) -> torch.Tensor:
    return uniform(generator(1), 0, 1, 40, 3).to(scene.means)


def without_first(scene: Scene, values: torch.Tensor) -> torch.Tensor:
    return render(Scene(*(t[1:] for t in scene.gaussians), scene.viewmats, scene.Ks, W, H), values[1:])


UNDRAWN = {
    "nan_mean": ("means", [0.0, NAN, 4.0]),
    "infinite_mean": ("means", [INF, 0.0, 4.0]),
    "minus_infinite_depth": ("means", [0.0, 0.0, -INF]),
    "overflowing_mean": ("means", [1e38, 1e38, 4.0]),
    "nan_scale": ("scales", [NAN, 0.1, 0.1]),
    "infinite_scale": ("scales", [INF, INF, INF]),
    "zero_quaternion": ("quats", [0.0, 0.0, 0.0, 0.0]),
    "nan_quaternion": ("quats", [NAN, NAN, NAN, NAN]),
    "nan_opacity": ("opacities", NAN),
    "infinite_opacity": ("opacities", INF),
    "zero_opacity": ("opacities", 0.0),
    "negative_opacity": ("opacities", -3.0),
    "opacity_below_the_cutoff": ("opacities", 0.0039),
}


@pytest.mark.parametrize("case", UNDRAWN)
def test_gaussian_that_makes_no_sense_is_not_drawn(scene, values, case):
    name, number = UNDRAWN[case]
    expected = without_first(scene, values)
    getattr(scene, name)[0] = torch.tensor(number)
    moved = scene.requires_grad_(*Scene.GEOMETRY, "viewmats")
    image = render(moved, values)
    assert_bitwise(image.detach(), expected)
    image.sum().backward()
    for k in (*Scene.GEOMETRY, "viewmats"):
        assert getattr(moved, k).grad.isfinite().all(), k
    assert all((getattr(moved, k).grad[0] == 0).all() for k in Scene.GEOMETRY)


@pytest.mark.parametrize("size", [1e2, 1e6, 1e15])
def test_huge_gaussian_behind_the_camera_is_not_drawn(scene, values, size):
    expected = without_first(scene, values)
    scene.means[0], scene.scales[0] = torch.tensor([0.0, 0.0, -5.0]), size
    assert_bitwise(render(scene, values), expected)


def test_gaussian_wrapped_around_the_camera_gives_finite_results(scene, values):
    scene.means[0], scene.scales[0] = torch.tensor([0.0, 0.0, 0.02]), 1e4
    scene.viewmats[...] = torch.eye(4)
    moved = scene.requires_grad_(*Scene.GEOMETRY)
    image = render(moved, values)
    image.sum().backward()
    assert image.isfinite().all() and all(getattr(moved, k).grad.isfinite().all() for k in Scene.GEOMETRY)


def test_opacity_above_one_is_clamped_where_alpha_is(scene, values):
    scene.opacities[:] = 3.0
    p = oracle.project(*scene.double().args)
    geometry = (p.means2d, p.conics, p.opacities2d, p.depths, p.radii)
    expected = oracle.composite(values.double(), *geometry, W, H)
    error = (render(scene, values).double() - expected.image).abs().amax(-1)
    assert (error < (1e-5 if scene.means.dtype == torch.float32 else 1e-10)).double().mean() > 0.98
    assert (gsfields.plan(*scene.args).alpha < 1).all()


def test_negative_scales_act_as_their_absolute_values(scene, values):
    expected = render(scene, values)
    scene.scales.neg_()
    assert (render(scene, values) - expected).abs().max() < 1e-6


def test_zero_scales_are_points_of_the_size_of_eps2d(scene, values):
    scene.scales.zero_()
    moved = scene.requires_grad_("means", "scales")
    image = render(moved, values)
    image.sum().backward()
    assert image.isfinite().all() and (image != 0).any()
    assert moved.means.grad.isfinite().all() and moved.scales.grad.isfinite().all()
    assert (render(scene, values, eps2d=0.0) == 0).all()


def test_viewmat_that_is_not_rigid_is_taken_as_it_is(scene, values):
    """A scaled or singular world-to-camera map is a linear map like any other."""
    scene.viewmats[0, :3, :3] *= 2
    scene.viewmats[1, :3, :3] = 0
    p = oracle.project(*scene.double().args)
    geometry = (p.means2d, p.conics, p.opacities2d, p.depths, p.radii)
    expected = oracle.composite(values.double(), *geometry, W, H)
    image = render(scene, values).double()
    assert image.isfinite().all()
    error = (image - expected.image).abs().amax(-1)
    assert (error < (1e-4 if scene.means.dtype == torch.float32 else 1e-10)).double().mean() > 0.97


@pytest.mark.parametrize("number", [NAN, INF], ids=["nan", "infinite"])
def test_value_that_is_not_finite_stays_in_the_blocks_it_touches(scene, values, number):
    plan = gsfields.plan(*scene.args)
    clean = plan.blend(values)
    spoilt = values.clone()
    spoilt[7, 1] = number
    image = plan.blend(spoilt)
    assert_bitwise(image[..., [0, 2]], clean[..., [0, 2]])  # other channels are untouched
    bad = ~image[..., 1].isfinite()
    assert bad.any()
    touched = plan.blend(torch.eye(40).to(values)[:, 7:8])[..., 0] > 0
    assert (bad | ~touched).all()  # every pixel it touches shows it
    near = torch.zeros_like(touched)  # 4x4 blocks with a touched pixel
    for y in range(0, H, 4):
        for x in range(0, W, 4):
            block = (slice(None), slice(y, y + 4), slice(x, x + 4))
            near[block] = touched[block].flatten(1).any(1)[:, None, None]
    assert not (bad & ~near).any()
    unspoilt = torch.where(bad, 0, image[..., 1])
    assert_bitwise(unspoilt, torch.where(bad, 0, clean[..., 1]))


def test_background_that_is_not_finite_shows_through(scene, values):
    image = gsfields.plan(*scene.args).blend(values, torch.tensor([0.0, NAN, 1.0]).to(values))
    assert image[..., 1].isnan().all() and image[..., [0, 2]].isfinite().all()


def test_direction_zero_sees_degree_zero_only():
    coeffs = torch.randn(1, 16, 3, dtype=torch.float64)
    for direction in (torch.zeros(1, 1, 3), torch.full((1, 1, 3), NAN), torch.full((1, 1, 3), INF)):
        dirs = direction.double().requires_grad_()
        colors = ops.spherical_harmonics(3, dirs, coeffs)
        assert torch.allclose(colors[0], coeffs[:, 0] * 0.28209479177387814)
        colors.sum().backward()
        assert (dirs.grad == 0).all()


@pytest.mark.parametrize("count", [0, 5], ids=["no_gaussians", "gaussians"])
@pytest.mark.parametrize("views", [0, 2], ids=["no_views", "views"])
@pytest.mark.parametrize("size", [(1, 1), (16, 17)], ids=["one_pixel", "small"])
def test_sizes_of_zero_and_one(count, views, size):
    scene = random_scene(count, *size, views=views, seed=5).to(torch.float32)
    moved = scene.requires_grad_(*Scene.GEOMETRY, "viewmats")
    values = torch.rand(count, 3, requires_grad=True)
    plan = gsfields.plan(*moved.args, absgrad=True)
    image = plan.blend(values, torch.ones(3))
    assert image.shape == (views, size[1], size[0], 3) and image.isfinite().all()
    (image.sum() + plan.alpha.sum() + plan.depth().sum()).backward()
    for k in (*Scene.GEOMETRY, "viewmats"):
        assert getattr(moved, k).grad.isfinite().all()
    assert values.grad.shape == (count, 3) and plan.absgrad.shape == (views, count, 2)
    assert ops.ssim_map(image.detach(), image.detach()).shape == image.shape


def test_large_images_of_few_gaussians_are_drawn():
    """The widest image that is allowed, one row high: 4096 tiles."""
    scene = random_scene(3, 65535, 1, seed=6).to(torch.float32)
    plan = gsfields.plan(*scene.args)
    assert len(plan.tile_offsets) == 4097
    assert plan.blend(torch.rand(3, 1)).isfinite().all()


HOSTILE = [NAN, INF, -INF, 3e38, -3e38, 1e-45, 0.0, -1.0, 1e20]


@pytest.mark.parametrize("seed", range(8))
def test_splats_that_no_projection_makes_do_not_crash(seed):
    """bin_tiles and blend are public: they must stay in bounds whatever the geometry holds."""
    splats = Splats(*ops.project(*random_scene(N, W, H, views=B, seed=1).to(torch.float32).args), W, H)
    rng = generator(seed)
    for name in ("means2d", "depths", "conics", "opacities2d"):
        tensor = getattr(splats, name)
        spots = torch.rand(tensor.shape, generator=rng) < 0.25
        tensor[spots] = torch.tensor(HOSTILE)[torch.randint(len(HOSTILE), (int(spots.sum()),), generator=rng)]
    splats.radii[torch.rand(splats.radii.shape, generator=rng) < 0.3] = [1, -5, 2**30, 2**31 - 1][seed % 4]
    ids, offsets = ops.bin_tiles(*splats.binning)
    assert ((ids >= 0) & (ids < N)).all() and (offsets.diff() >= 0).all()
    values = torch.rand(N, 3, requires_grad=True)
    geometry = [t.clone().requires_grad_() for t in (splats.means2d, splats.conics, splats.opacities2d)]
    image, transmittance = ops.blend(values, *geometry, ids, offsets, W, H)
    assert image.isfinite().all() and ((transmittance > 0.99e-4) & (transmittance <= 1)).all()
    image.sum().backward()


def test_bad_gradients_do_not_crash(scene, values):
    values = values.requires_grad_()
    image = render(scene.requires_grad_(*Scene.GEOMETRY), values)
    image.backward(torch.full_like(image, NAN))
    assert values.grad.shape == (40, 3)


def test_gradient_to_the_second_image_of_ssim_is_refused():
    first, second = torch.rand(1, 8, 8, 3), torch.rand(1, 8, 8, 3, requires_grad=True)
    with pytest.raises(ValueError, match="image2"):
        ops.ssim_map(first, second).sum().backward()

"""gsfields.rasterization as a stand-in for gsplat's: its arguments, its results, its strategy code."""

from __future__ import annotations

import pytest
import torch
from gsplat.strategy import DefaultStrategy

import gsfields
from tests.kernels import oracle
from tests.kernels.compare import assert_bitwise, assert_close_outside_band, assert_relative
from tests.kernels.scenes import Scene, generator, normal, random_scene, uniform

pytestmark = pytest.mark.usefixtures("kernels")


def rasterize(scene: Scene, colors, **options):
    return gsfields.rasterization(
        *scene.gaussians, colors, scene.viewmats, scene.Ks, scene.width, scene.height, **options
    )


def expected_image(scene: Scene, values, backgrounds=None, **options) -> oracle.Composite:
    p = oracle.project(*scene.args, **options)
    geometry = (p.means2d, p.conics, p.opacities2d, p.depths, p.radii)
    return oracle.composite(values, *geometry, scene.width, scene.height, backgrounds)


@pytest.fixture
def scene() -> Scene:
    return random_scene(200, 40, 27, views=2, seed=1, sigma=1.5)


@pytest.mark.parametrize("per_view", [False, True], ids=["shared", "per_view"])
@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_colors_and_alphas(scene, mode, per_view):
    rng = generator(0)
    colors, backgrounds = uniform(rng, 0, 1, *((2,) if per_view else ()), 200, 5), uniform(rng, 0, 1, 2, 5)
    image, alphas, _ = rasterize(scene, colors, backgrounds=backgrounds, rasterize_mode=mode)
    expected = expected_image(scene, colors, backgrounds, antialiased=mode == "antialiased")
    assert_close_outside_band(image, expected.image, expected.band, 1e-10)
    assert_close_outside_band(alphas, 1 - expected.transmittance[..., None], expected.band, 1e-10)


@pytest.mark.parametrize("per_view", [False, True], ids=["shared", "per_view"])
def test_spherical_harmonics(scene, per_view):
    coeffs = 0.3 * normal(generator(0), *((2,) if per_view else ()), 200, 16, 3)
    image, _, _ = rasterize(scene, coeffs, sh_degree=2)
    dirs = scene.means - torch.linalg.inv(scene.viewmats)[:, None, :3, 3]
    shared = [coeffs[b] if per_view else coeffs for b in range(2)]
    values = torch.cat([oracle.spherical_harmonics(2, dirs[b : b + 1], shared[b]) for b in range(2)])
    expected = expected_image(scene, (values + 0.5).clamp_min(0))
    assert_close_outside_band(image, expected.image, expected.band, 1e-10, scale=5)


@pytest.mark.parametrize("mode", ["D", "ED", "RGB+D", "RGB+ED"])
def test_render_modes(scene, mode):
    colors = uniform(generator(0), 0, 1, 200, 3)
    depths = oracle.project(*scene.args).depths[..., None]
    expected = expected_image(scene, torch.cat([colors.expand(2, -1, -1), depths], -1))
    wanted = expected.image.clone()
    if "ED" in mode:
        wanted[..., 3] /= (1 - expected.transmittance).clamp_min(1e-10)
    image, _, _ = rasterize(scene, colors, render_mode=mode)
    wanted = wanted if "RGB" in mode else wanted[..., 3:]
    assert_close_outside_band(image, wanted, expected.band, 1e-9, scale=8)


def test_background_lies_behind_colour_and_not_behind_depth(scene):
    colors, backgrounds = uniform(generator(0), 0, 1, 200, 3), torch.ones(2, 3).double()
    plain, alphas, _ = rasterize(scene, colors, render_mode="RGB+D")
    image, _, _ = rasterize(scene, colors, render_mode="RGB+D", backgrounds=backgrounds)
    assert_bitwise(image[..., 3], plain[..., 3])
    assert_relative(image[..., :3], plain[..., :3] + 1 - alphas, 1e-12)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_meta_has_what_gsplat_has(scene, packed):
    _, _, meta = rasterize(scene, uniform(generator(0), 0, 1, 200, 3), packed=packed)
    assert (meta["width"], meta["height"], meta["tile_size"], meta["n_cameras"]) == (40, 27, 16, 2)
    assert (meta["tile_width"], meta["tile_height"]) == (3, 2)
    projected = oracle.project(*scene.args)
    visible = (projected.radii > 0).all(-1)
    pairs = int(visible.sum())
    wanted = {"means2d": projected.means2d, "depths": projected.depths, "conics": projected.conics}
    for name, tensor in (wanted | {"opacities": projected.opacities2d}).items():
        assert_relative(meta[name], tensor[visible] if packed else tensor, 1e-10, name)
    assert meta["radii"].shape == ((pairs, 2) if packed else (2, 200, 2))
    if packed:
        cameras, gaussians = visible.nonzero(as_tuple=True)
        assert torch.equal(meta["camera_ids"], cameras) and torch.equal(meta["gaussian_ids"], gaussians)
    # flatten_ids point into the (packed or flattened) pairs, tile by tile front to back.
    offsets, ids = meta["isect_offsets"], meta["flatten_ids"].long()
    assert offsets.shape == (2, 2, 3) and ids.max() < (pairs if packed else 400)
    depths = meta["depths"].flatten()
    ends = [*offsets.flatten().tolist()[1:], len(ids)]
    for begin, end in zip(offsets.flatten().tolist(), ends, strict=True):
        assert (depths[ids[begin:end]].diff() >= 0).all()
    assert torch.equal(
        torch.bincount(ids, minlength=depths.numel()), meta["tiles_per_gauss"].flatten().long()
    )


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_gradients_pass_through_the_means2d_of_meta(scene, packed):
    scene = scene.requires_grad_("means")
    image, _, meta = rasterize(scene, uniform(generator(0), 0, 1, 200, 3), packed=packed, absgrad=True)
    meta["means2d"].retain_grad()
    image.square().sum().backward()
    grad, absgrad = meta["means2d"].grad, meta["means2d"].absgrad
    assert grad.shape == absgrad.shape == meta["means2d"].shape
    assert (grad != 0).any() and (absgrad >= grad.abs() * (1 - 1e-9)).all() and (scene.means.grad != 0).any()


def test_radius_clip_hides_small_gaussians(scene):
    colors = uniform(generator(0), 0, 1, 200, 3)
    _, _, everything = rasterize(scene, colors, packed=False)
    _, _, clipped = rasterize(scene, colors, packed=False, radius_clip=4.0)
    before, after = everything["radii"].amax(-1), clipped["radii"].amax(-1)
    assert ((before > 0) & (before <= 4)).any()
    assert torch.equal(after, torch.where(before > 4, before, 0))


@pytest.mark.parametrize("absgrad", [False, True], ids=["grad", "absgrad"])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_default_strategy_of_gsplat_densifies(packed, absgrad):
    """gsplat's own densification runs on our meta, and grows and prunes what it should."""
    torch.manual_seed(0)
    scene = random_scene(150, 40, 27, seed=2).to(torch.float32)
    opacities = torch.logit(scene.opacities.clamp(0.05, 0.9))
    opacities[:5] = -9.0  # to be pruned
    tensors = {
        "means": scene.means,
        "scales": scene.scales.log(),
        "quats": scene.quats,
        "opacities": opacities,
    }
    params = torch.nn.ParameterDict({k: torch.nn.Parameter(v.clone()) for k, v in tensors.items()})
    params["colors"] = torch.nn.Parameter(torch.rand(150, 3))
    optimizers = {k: torch.optim.Adam([v], lr=1e-3) for k, v in params.items()}
    strategy = DefaultStrategy(
        refine_start_iter=0, refine_every=2, grow_grad2d=1e-7, absgrad=absgrad, reset_every=1000
    )
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state(scene_scale=1.0)
    for step in range(1, 4):
        image, _, meta = gsfields.rasterization(
            params["means"],
            params["quats"],
            params["scales"].exp(),
            params["opacities"].sigmoid(),
            params["colors"],
            scene.viewmats,
            scene.Ks,
            width=40,
            height=27,
            packed=packed,
            absgrad=absgrad,
        )
        strategy.step_pre_backward(params, optimizers, state, step, meta)
        image.square().mean().backward()
        strategy.step_post_backward(params, optimizers, state, step, meta, packed=packed)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
    count = len(params["means"])
    assert count > 160  # split and duplicated
    assert params["opacities"].min() > -6  # the transparent ones are gone
    assert all(len(p) == count and p.isfinite().all() for p in params.values())


REFUSED = {
    "sparse_grad": True,
    "distributed": True,
    "with_ut": True,
    "with_eval3d": True,
    "covars": torch.zeros(200, 3, 3),
    "radial_coeffs": torch.zeros(2, 6),
    "tangential_coeffs": torch.zeros(2, 2),
    "thin_prism_coeffs": torch.zeros(2, 4),
    "ftheta_coeffs": object(),
    "viewmats_rs": torch.zeros(2, 4, 4),
    "camera_model": "fisheye",
    "tile_size": 8,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(scene, name):
    with pytest.raises(NotImplementedError, match=name):
        rasterize(scene, torch.rand(200, 3).double(), **{name: REFUSED[name]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("render_mode", "depth"),
        ("rasterize_mode", "sharp"),
        ("backgrounds", torch.zeros(3).double()),
        ("backgrounds", torch.zeros(2, 4).double()),
        ("sh_degree", 1),
    ],
)
def test_bad_arguments_are_named(scene, name, value):
    with pytest.raises(ValueError, match="colors" if name == "sh_degree" else name):
        rasterize(scene, torch.rand(200, 3).double(), **{name: value})


def test_colors_of_the_wrong_shape_are_named(scene):
    for colors in (torch.rand(199, 3), torch.rand(3, 200, 3), torch.rand(200)):
        with pytest.raises(ValueError, match=r"colors|values"):
            rasterize(scene, colors.double())

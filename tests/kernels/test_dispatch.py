"""The ops as torch sees them: schemas, fake kernels, autograd registration, torch.compile."""

from __future__ import annotations

import pytest
import torch

import gsfields
from gsfields import ops
from tests.kernels.compare import assert_relative
from tests.kernels.scenes import Scene, Splats, generator, normal, random_scene, uniform

native = torch.ops.gsfields


def samples(dtype: torch.dtype, n: int, views: int) -> dict[str, tuple]:
    """Arguments of every op that the library defines, by name."""
    scene = random_scene(n, 20, 18, views=views, seed=1).to(dtype)
    rng = generator(0)
    splats = Splats(*ops.project(*scene.args), 20, 18)
    values, background = uniform(rng, 0, 1, n, 3).to(dtype), uniform(rng, 0, 1, 3).to(dtype)
    geometry = (splats.means2d, splats.conics, splats.opacities2d)
    sink = torch.zeros_like(splats.means2d)
    lists = (*ops.bin_tiles(*splats.binning), None, None)
    view = (20, 18, 0)  # and the precision
    _, transmittance, last = native.blend(values, *geometry, background, sink, *lists, *view)
    pixels = (uniform(rng, 0, 1, views, 50, 2) * torch.tensor([20, 18])).long()
    sampled = ops.sample_pixels(pixels, views, 20, 18)
    some = (*lists[:2], sampled.pixels, sampled.offsets)
    rows = normal(rng, len(sampled.pixels), 3).to(dtype)
    dirs, sh0, shN = (normal(rng, *shape).to(dtype) for shape in ((views, n, 3), (n, 1, 4), (n, 8, 4)))
    masks = torch.rand(views, n, generator=rng) < 0.7
    image1, image2 = (uniform(rng, 0, 1, 2, 13, 15, 3).to(dtype) for _ in range(2))
    motion = (
        normal(rng, n, 7, 5),
        normal(rng, 5),
        normal(rng, n, 2),
        torch.tensor([0.6, 0, 0.8, 0, 1, 2, 3]),
    )
    motion = tuple(t.to(dtype) for t in (*motion, torch.tensor(0.4)))
    moved = native.respond(*scene.args[:2], scene.opacities, values, *motion, 0.5)
    upstream = (normal(rng, views, 18, 20, 3).to(dtype), normal(rng, views, 18, 20).to(dtype))
    options = (0.01, 1e10, 0.3, True)
    features = normal(rng, n, 5).to(dtype)
    segments, averages = (
        torch.arange(n, dtype=torch.int32) % 3,
        (features.clone(), features * 0, features * 0),
    )
    pairs, kind = (features, features.flip(0), segments, segments), (False, True, 0.5, 2.0, True)
    return {
        "project": (*scene.args, *options),
        "project_backward": (
            *scene.args[:6], splats.radii, *splats.binning[:4], 20, 18, *options, True,
        ),
        "spherical_harmonics": (dirs, sh0, shN, masks, 2),
        "spherical_harmonics_backward": (dirs, sh0, shN, masks, 2, normal(rng, views, n, 4).to(dtype)),
        "respond": (*scene.args[:2], scene.opacities, values, *motion, 0.5),
        "respond_backward": (*motion, *moved[2:], *(torch.ones_like(t) for t in moved), 0.5, True, n > 5),
        "bin_tiles": splats.binning,
        "blend": (values, *geometry, background, sink, *lists, *view),
        "blend of pixels": (values, *geometry, background, sink, *some, *view),
        "blend_backward": (
            values, *geometry, background, *lists, transmittance, last, *upstream, *view, True, True, True, False,
        ),
        "lift": (upstream[0], upstream[1], *geometry, *lists, *view, False, True, False),
        "lift of pixels": (rows, rows[:, 0].clone(), *geometry, *some, *view, True, True, False),
        "seen_pairs": (*geometry, *some, *view[:2]),
        "ssim": (image1, image2),
        "ssim_backward": (image1, image2, *native.ssim(image1, image2)[1:], image1),
        "contrast": (*pairs, *kind),
        "contrast_backward": (*pairs, native.contrast(*pairs, *kind)[1], features[:, 0].clone(), *kind, True),
        "follow_rows": (
            features, averages[1].clone(), torch.arange(n).int() % 3, torch.arange(n).flip(0), 4, 0.9,
        ),
        "sum_bags": (
            features, segments.clone(), segments, features[:, 0].clone(), torch.arange(n), torch.arange(n).flip(0)
        ),
        "adam_rows": (*averages, features.new_ones(n, 2), torch.arange(n), features, 0.1, 0.9, 0.99, 1e-8),
    }  # fmt: skip


DIFFERENTIABLE = {
    "project": range(5),
    "spherical_harmonics": (0, 1, 2),
    "respond": range(7),
    "blend": range(6),
    "blend of pixels": range(6),
    "lift": range(5),
    "lift of pixels": range(5),
    "ssim": (0,),
    "contrast": (0, 1),
}
SAMPLES = tuple(samples(torch.float64, 3, 1))
OPS = {name.split()[0] for name in SAMPLES}


def test_every_op_of_the_library_is_sampled():
    defined = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("gsfields::")
    }
    assert defined - OPS == {"cpu_isa", "cpu_isa_available", "set_cpu_isa"}


@pytest.mark.parametrize("grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("count", [(30, 2), (0, 1)], ids=["some", "empty"])
@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name, count, grad):
    if grad and name not in DIFFERENTIABLE:
        pytest.skip("not differentiable")
    if grad and count[0] == 0:
        pytest.skip("the gradient of nothing is tested elsewhere")
    args = list(samples(torch.float32, *count)[name])
    for i in DIFFERENTIABLE[name] if grad else ():
        args[i] = args[i].clone().requires_grad_()
    torch.library.opcheck(getattr(native, name.split()[0]).default, tuple(args))


def loss_of(means, quats, scales, opacities, sh, viewmats, Ks, target):
    """A training step's forward: everything that a fit compiles."""
    p = gsfields.plan(means, quats, scales, opacities, viewmats, Ks, 40, 24, antialiased=True)
    dirs = means - torch.linalg.inv(viewmats)[:, None, :3, 3]
    colors = (ops.spherical_harmonics(2, dirs, sh) + 0.5).clamp_min(0)
    image = p.blend(colors, torch.ones(3))
    return (
        (image - target).abs().mean()
        + 0.2 * (1 - ops.ssim_map(image, target).mean())
        + 0.01 * p.depth().mean()
    )


def test_a_rendering_function_compiles_whole_forward_and_backward():
    torch._dynamo.reset()
    scene = random_scene(120, 40, 24, views=2, seed=4).to(torch.float32)
    rng = generator(0)
    sh, target = normal(rng, 120, 9, 3).float(), uniform(rng, 0, 1, 2, 24, 40, 3).float()

    def gradients(function, moved: Scene):
        moved = moved.requires_grad_(*Scene.GEOMETRY, "viewmats")
        coefficients = sh.clone().requires_grad_()
        loss = function(*moved.gaussians, coefficients, moved.viewmats, moved.Ks, target)
        loss.backward()
        return [
            loss.detach(),
            coefficients.grad,
            *(getattr(moved, k).grad for k in (*Scene.GEOMETRY, "viewmats")),
        ]

    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    for shift in (0.0, 0.3):  # the second call lists another number of pairs, and must not compile again
        moved = Scene(scene.means + shift, *scene.args[1:])
        for actual, expected in zip(gradients(compiled, moved), gradients(loss_of, moved), strict=True):
            assert_relative(actual, expected, 1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_a_rendering_function_compiles_with_inductor():
    torch._dynamo.reset()
    scene = random_scene(60, 40, 24, views=2, seed=4).to(torch.float32)
    rng = generator(0)
    arguments = (
        *scene.gaussians,
        normal(rng, 60, 9, 3).float(),
        scene.viewmats,
        scene.Ks,
        uniform(rng, 0, 1, 2, 24, 40, 3).float(),
    )
    compiled = torch.compile(loss_of, fullgraph=True)
    assert_relative(compiled(*arguments), loss_of(*arguments), 1e-5)


def test_fake_kernels_agree_on_shapes_without_data():
    with torch.device("meta"):
        means, quats, scales, opacities = torch.rand(7, 3), torch.rand(7, 4), torch.rand(7, 3), torch.rand(7)
        viewmats, Ks = torch.rand(2, 4, 4), torch.rand(2, 3, 3)
        shapes = [tuple(t.shape) for t in ops.project(means, quats, scales, opacities, viewmats, Ks, 33, 9)]
        similarity = ops.ssim_map(torch.rand(2, 9, 33, 3), torch.rand(2, 9, 33, 3))
        colors = ops.spherical_harmonics(1, torch.rand(2, 7, 3), torch.rand(7, 4, 5))
    assert shapes == [(2, 7, 2), (2, 7), (2, 7, 3), (2, 7), (2, 7, 2)]
    assert similarity.shape == (2, 9, 33, 3) and colors.shape == (2, 7, 5)


def test_instruction_sets_can_be_chosen():
    available = ops.available_cpu_isas()
    assert available[0] == "baseline" and set(available) <= {"baseline", "avx2", "avx512"}
    for name in available:
        ops.set_cpu_isa(name)
        assert ops.cpu_isa() == name
    ops.set_cpu_isa("auto")
    assert ops.cpu_isa() == available[-1]
    with pytest.raises(ValueError, match="sse9"):
        ops.set_cpu_isa("sse9")
    assert ops.cpu_isa() == available[-1]

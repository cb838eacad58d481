"""Plan.lift() and gsfields.lift(): the adjoint of the blend, for one view and for many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import gsfields
from tests.kernels.compare import assert_bitwise, assert_relative
from tests.kernels.scenes import Scene, generator, normal, random_scene, uniform

N, W, H = 120, 41, 30


@pytest.fixture(params=[1, 2], ids=["one_view", "batch"])
def scene(request: pytest.FixtureRequest) -> Scene:
    return random_scene(N, W, H, views=request.param, seed=1, sigma=2.0)


def built(scene: Scene) -> gsfields.Plan:
    """A plan of the scene, without a batch where it has one view."""
    views = (t if len(t) > 1 else t[0] for t in (scene.viewmats, scene.Ks))
    return gsfields.plan(*scene.gaussians, *views, scene.width, scene.height)


def single_views(scene: Scene) -> list[gsfields.Plan]:
    return [
        gsfields.plan(*scene.gaussians, viewmat, K, scene.width, scene.height)
        for viewmat, K in zip(scene.viewmats, scene.Ks, strict=True)
    ]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("channels", [1, 3, 40])
@pytest.mark.parametrize("sampled", [False, True], ids=["image", "sampled"])
def test_lift_is_the_adjoint_of_blend(scene, channels, sampled):
    plan, rng, views = built(scene), generator(0), len(scene.viewmats)
    pixels = None
    if sampled:
        pixels = torch.stack([torch.randint(0, n, (views, 70), generator=rng) for n in (W, H)], -1)
        pixels = pixels if plan.batched else pixels[0]
    values = normal(rng, N, channels)
    image = plan.blend(values, pixels=pixels)
    cotangent, weights = normal(rng, *image.shape), uniform(rng, 0, 1, *image.shape[:-1])
    sums, total = plan.lift(cotangent, weights, pixels=pixels)
    weighted = weights.unsqueeze(-1)
    assert sums.shape == (N, channels) and total.shape == (N,)
    assert_relative((values * sums).sum(), (image * weighted * cotangent).sum(), 1e-12)
    ones = plan.blend(values[:, :1], pixels=pixels)
    assert_relative((values[:, 0] * total).sum(), (ones * weighted).sum(), 1e-12)
    unweighted = plan.lift(cotangent, pixels=pixels)
    assert_relative((values * unweighted.sums).sum(), (image * cotangent).sum(), 1e-12)


@pytest.mark.usefixtures("kernels")
def test_the_mean_of_a_constant_image_is_that_constant_where_something_was_seen(scene):
    plan = built(scene)
    constant = torch.tensor([0.25, -3.0, 7.0]).double()
    lifted = plan.lift(constant.expand(*plan.alpha.shape[:-1], 3))
    seen = lifted.total > 0
    assert seen.any() and not seen.all()
    assert_relative(lifted.mean[seen], constant.expand(int(seen.sum()), 3), 1e-12)
    assert (lifted.mean[~seen] == 0).all()


@pytest.mark.usefixtures("kernels")
def test_many_views_add_up(scene):
    plans, rng = single_views(scene) * 2, generator(0)
    images = [normal(rng, H, W, 5) for _ in plans]
    weights = [None, *(uniform(rng, 0, 1, H, W) for _ in plans[1:])]
    lifted = gsfields.lift(plans, images, weights)
    parts = [p.lift(i, w) for p, i, w in zip(plans, images, weights, strict=True)]
    assert_relative(lifted.sums, sum(part.sums for part in parts), 1e-12)
    assert_relative(lifted.total, sum(part.total for part in parts), 1e-12)
    batch = built(scene)
    if batch.batched:
        together = batch.lift(torch.stack(images[:2]))
        assert_relative(gsfields.lift(plans[:2], images[:2]).sums, together.sums, 1e-12)


def test_views_are_streamed_one_after_the_other():
    scene = random_scene(N, W, H, views=3, seed=1)
    alive, most = 0, 0

    class Image(torch.Tensor):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def load() -> Iterator[torch.Tensor]:
        nonlocal alive, most
        for _ in range(3):
            alive += 1
            most = max(most, alive)
            yield torch.ones(H, W, 2, dtype=torch.float64).as_subclass(Image)

    plans = (plan for plan in single_views(scene))
    lifted = gsfields.lift(plans, load())
    assert most <= 2  # one in use while the next is loaded
    assert_bitwise(lifted.sums[:, 0].as_subclass(torch.Tensor), lifted.total.as_subclass(torch.Tensor))


@pytest.mark.usefixtures("kernels")
def test_images_in_half_are_summed_in_float():
    plan = built(random_scene(N, W, H, seed=3).to(torch.float32))
    image = uniform(generator(0), 0, 1, H, W, 20).bfloat16()
    lifted = plan.lift(image)
    assert lifted.sums.dtype == lifted.total.dtype == torch.float32
    assert_relative(lifted.sums, plan.lift(image.float()).sums, 1e-5)


@pytest.mark.usefixtures("kernels")
def test_lift_is_differentiable():
    scene = random_scene(30, 12, 9, seed=5).requires_grad_(*Scene.GEOMETRY)
    image = normal(generator(0), 9, 12, 3).requires_grad_()
    cotangent = normal(generator(1), 30, 3)
    plan = built(scene)
    ours = torch.autograd.grad((plan.lift(image).sums * cotangent).sum(), [image, *scene.gaussians])
    plan = built(scene)
    theirs = torch.autograd.grad((plan.blend(cotangent) * image).sum(), [image, *scene.gaussians])
    for actual, expected in zip(ours, theirs, strict=True):
        assert_relative(actual, expected, 1e-10)


def test_lengths_must_agree():
    plans = single_views(random_scene(N, W, H, views=2, seed=1))
    image = torch.zeros(H, W, 2).double()
    for arguments, message in (
        ((plans, [image]), "images ends before plans"),
        ((plans[:1], [image] * 2), "plans ends before images"),
        ((plans, [image] * 2, [None]), "weights ends before plans"),
        (([], []), "plans holds no view"),
        ((plans, [image, image[..., :1]]), "a view lifts to"),
    ):
        with pytest.raises(ValueError, match=message):
            gsfields.lift(*arguments)

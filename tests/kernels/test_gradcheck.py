"""Finite differences in float64, for every op and for the whole chain, on scenes without kinks."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from gsfields import ops
from tests.kernels import oracle
from tests.kernels.scenes import Scene, generator, normal, smooth_scene, uniform


def assert_smooth(scene: Scene, **options) -> None:
    """The scene keeps clear of cutoff, clamp and pixel ends, or gradcheck would mean nothing."""
    p = oracle.project(*scene.args, **options)
    for b in range(len(scene.viewmats)):
        geometry = (p.means2d[b], p.conics[b], p.opacities2d[b], p.depths[b], p.radii[b])
        w = oracle.weights_of_view(*geometry, scene.width, scene.height, tolerance=0.1)
        assert len(w.order) == len(scene.means) and not w.kink.any()
        assert w.weights.min() > 1e-2 and w.transmittance.min() > 1e-2


def numerically_right(function, inputs) -> bool:
    # nondet_tol: sums on a GPU have no order.
    return gradcheck(function, inputs, eps=1e-6, atol=1e-7, rtol=1e-5, nondet_tol=1e-12)


def leaves(*tensors):
    return tuple(t.detach().clone().requires_grad_() for t in tensors)


@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
@pytest.mark.parametrize("views", [1, 2])
def test_project(exact_backend, views, antialiased):
    scene = exact_backend.move(smooth_scene(views=views, seed=1))
    if antialiased:
        scene.scales.mul_(0.1)  # so that the compensation is far from 1

    def function(*geometry):
        return ops.project(*geometry, scene.Ks, scene.width, scene.height, antialiased=antialiased)[:4]

    assert numerically_right(function, leaves(*scene.gaussians, scene.viewmats))


@pytest.mark.parametrize("degree", range(4))
def test_spherical_harmonics(exact_backend, degree):
    rng = generator(degree)
    drawn = normal(rng, 2, 5, 3), normal(rng, 5, (degree + 1) ** 2, 3)
    dirs, coeffs = leaves(*map(exact_backend.move, drawn))
    masks = (torch.rand(2, 5, generator=rng) < 0.8).to(exact_backend.device)
    assert numerically_right(lambda d, c: ops.spherical_harmonics(degree, d, c, masks), (dirs, coeffs))


@pytest.mark.parametrize("per_view", [False, True], ids=["shared", "per_view"])
@pytest.mark.parametrize("channels", [1, 3, 18])
def test_blend(exact_backend, channels, per_view):
    scene = exact_backend.move(smooth_scene(views=2, seed=2))
    assert_smooth(scene)
    p = oracle.project(*scene.args)
    lists = ops.bin_tiles(p.means2d, p.depths, p.conics, p.opacities2d, p.radii, scene.width, scene.height)
    rng = generator(0)
    shape = (2,) if per_view else ()
    drawn = uniform(rng, -1, 1, *shape, 5, channels), uniform(rng, -1, 1, *shape, channels)
    values, background = map(exact_backend.move, drawn)

    def function(values, means2d, conics, opacities2d, background):
        return ops.blend(values, means2d, conics, opacities2d, *lists, scene.width, scene.height, background)

    assert numerically_right(function, leaves(values, p.means2d, p.conics, p.opacities2d, background))


def test_ssim_map(exact_backend):
    rng = generator(5)
    (first,) = leaves(exact_backend.move(uniform(rng, 0, 1, 2, 7, 6, 2)))
    second = exact_backend.move(uniform(rng, 0, 1, 2, 7, 6, 2))
    assert numerically_right(lambda image: ops.ssim_map(image, second), (first,))


@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
def test_whole_chain(exact_backend, antialiased):
    from gsfields import plan

    scene = exact_backend.move(smooth_scene(views=2, seed=3))
    assert_smooth(scene, antialiased=antialiased)
    rng = generator(0)
    values, background = map(exact_backend.move, (uniform(rng, 0, 1, 5, 3), uniform(rng, 0, 1, 3)))

    def function(means, quats, scales, opacities, viewmats, values, background):
        geometry = (means, quats, scales, opacities, viewmats)
        p = plan(*geometry, scene.Ks, scene.width, scene.height, antialiased=antialiased)
        return p.blend(values, background), p.alpha, p.depth("expected"), p.depth("accumulated")

    assert numerically_right(function, leaves(*scene.gaussians, scene.viewmats, values, background))

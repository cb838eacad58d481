"""ops.project against gsplat's torch code and our oracle: values, gradients, and what is culled."""

from __future__ import annotations

import pytest
import torch

from gsfields import ops
from tests.kernels import oracle
from tests.kernels.compare import assert_bitwise, assert_relative, relative_error
from tests.kernels.scenes import Scene, generator, normal, random_scene
from tests.kernels.test_oracles import reference_projection

OUTPUTS = oracle.Projection._fields[:4]
INPUTS = (*Scene.GEOMETRY, "viewmats")


def per_gaussian_error(actual, expected) -> float:
    """Largest error of a Gaussian's output relative to the size of that output, for [B, N] or [B, N, k]."""
    if expected.ndim == 2:
        actual, expected = actual[..., None], expected[..., None]
    error = (actual.detach().double().cpu() - expected.detach()).norm(dim=-1)
    return float((error / expected.detach().norm(dim=-1).clamp_min(1e-12)).max())


def wide_scene(seed: int) -> Scene:
    """Large Gaussians far to the sides, whose Jacobian is taken at the clamped point."""
    scene = random_scene(60, 40, 30, views=2, seed=seed)
    scene.means[:, :2] *= 4
    scene.scales.mul_(20)
    return scene


@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
@pytest.mark.parametrize(
    "make", [lambda: random_scene(700, 50, 31, views=3, seed=5), lambda: wide_scene(6)], ids=["mixed", "wide"]
)
def test_values_and_gradients_match_gsplat(backend, make, antialiased):
    moved = backend.move(make()).requires_grad_(*INPUTS)
    exact = moved.to(torch.float64).requires_grad_(*INPUTS)
    actual = ops.project(*moved.args, antialiased=antialiased)
    expected = reference_projection(exact, antialiased=antialiased)
    both = (actual[-1] > 0).all(-1).cpu() & (expected[-1] > 0).all(-1)
    assert both.double().mean() > 0.15

    loss, reference = 0.0, 0.0
    rng = generator(7)
    for name, a, e in zip(OUTPUTS, actual, expected, strict=False):
        e = torch.where(both.reshape(*both.shape, *[1] * (e.ndim - 2)), e, 0)
        a = torch.where(both.reshape(*both.shape, *[1] * (a.ndim - 2)).to(a.device), a, 0)
        error = per_gaussian_error(a, e)
        assert error <= backend.tolerance(1e-4), f"{name}: {error:.3g}"
        cotangent = normal(rng, *e.shape) / e.detach().abs().max()
        loss, reference = loss + (a * cotangent.to(a)).sum(), reference + (e * cotangent).sum()
    loss.backward()
    reference.backward()
    for name in INPUTS:
        assert_relative(
            getattr(moved, name).grad,
            getattr(exact, name).grad.to(moved.means),
            backend.tolerance(1e-4),
            name,
        )


@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
def test_visible_set_and_radii_match_the_oracle(backend, antialiased):
    moved = backend.move(random_scene(1500, 50, 31, views=2, seed=8))
    scene = moved.double()
    actual = ops.project(*moved.args, antialiased=antialiased)
    expected = oracle.project(*scene.args, antialiased=antialiased)
    seen, wanted = (actual[-1] > 0).all(-1).cpu(), (expected.radii > 0).all(-1)
    assert 0.3 < wanted.double().mean() < 0.9
    assert (wanted & ~seen).double().mean() < 1e-3  # float32 may differ right at the border of the image
    assert (seen & ~wanted).double().mean() < 3e-3
    # A radius may exceed the exact extent by the rounding up and by a sliver, and never falls short of it.
    for b in range(2):
        *_, opacities2d, covariances = oracle.project_view(
            *scene.gaussians, scene.viewmats[b], scene.Ks[b], 50, 31, 0.3, antialiased
        )
        radii, both = actual[-1][b].double().cpu(), seen[b] & wanted[b]
        exact = oracle.extents(covariances, opacities2d)
        generous = oracle.extents(covariances, opacities2d * 1.002)
        assert (radii[both] >= exact[both] * (1 - 1e-5)).all()
        assert (radii[both] <= (generous[both] + 1e-3).ceil()).all()
    for a in actual[:4]:
        assert (a[~seen.to(a.device)] == 0).all()


def in_front(scene: Scene, **changes) -> Scene:
    """The scene with its first Gaussian placed in the middle of the view, then changed."""
    scene = scene.to(scene.means.dtype)
    plain = {"means": [0, 0, 4.0], "quats": [1, 0, 0, 0.0], "scales": [0.3, 0.2, 0.1], "opacities": 0.8}
    for name, value in {**plain, **changes}.items():
        getattr(scene, name)[0] = torch.tensor(value).to(scene.means)
    return scene


NAN, INF = float("nan"), float("inf")
CULLED = {
    "behind": {"means": [0.0, 0.0, -4.0]},
    "behind_and_huge": {"means": [0.0, 0.0, -4.0], "scales": [100.0, 100.0, 100.0]},
    "at_the_camera": {"means": [0.0, 0.0, 0.0]},
    "before_near": {"means": [0.0, 0.0, 0.999]},
    "beyond_far": {"means": [0.0, 0.0, 20.001]},
    "off_screen_left": {"means": [-10.0, 0.0, 4.0]},
    "off_screen_below": {"means": [0.0, 10.0, 4.0]},
    "too_faint": {"opacities": 0.0039},
    "no_opacity": {"opacities": 0.0},
    "negative_opacity": {"opacities": -0.5},
    "zero_quaternion": {"quats": [0.0, 0.0, 0.0, 0.0]},
    "nan_mean": {"means": [NAN, 0.0, 4.0]},
    "nan_depth": {"means": [0.0, 0.0, NAN]},
    "infinite_mean": {"means": [0.0, INF, 4.0]},
    "infinite_depth": {"means": [0.0, 0.0, INF]},
    "nan_quaternion": {"quats": [NAN, 0.0, 0.0, 1.0]},
    "infinite_quaternion": {"quats": [INF, 0.0, 0.0, 1.0]},
    "nan_scale": {"scales": [0.1, NAN, 0.1]},
    "infinite_scale": {"scales": [0.1, INF, 0.1]},
    "overflowing_scale": {"scales": [1e200, 1e30, 0.1]},
    "nan_opacity": {"opacities": NAN},
    "infinite_opacity": {"opacities": INF},
}


@pytest.mark.parametrize("case", CULLED)
def test_culled_gaussian_has_zero_outputs_and_gradients(backend, case):
    scene = random_scene(40, 33, 21, views=2, seed=9)
    scene.viewmats[...], scene.Ks[:, 0, 2], scene.Ks[:, 1, 2] = torch.eye(4), 16.5, 10.5
    limits = {"near": 1.0, "far": 20.0, "antialiased": True}
    shown = ops.project(*backend.move(in_front(scene)).args, **limits)
    assert (shown[-1][:, 0] > 0).all(), (
        "the unchanged Gaussian must be visible, or the case would prove nothing"
    )

    moved = backend.move(in_front(scene, **CULLED[case])).requires_grad_(*INPUTS)
    hidden = ops.project(*moved.args, **limits)
    for name, out, before in zip(oracle.Projection._fields, hidden, shown, strict=True):
        assert (out[:, 0] == 0).all(), name
        assert_bitwise(out[:, 1:].detach(), before[:, 1:], f"{name} of the other Gaussians")
    sum(out.sum() for out in hidden[:4]).backward()
    for name in Scene.GEOMETRY:
        grad = getattr(moved, name).grad
        assert (grad[0] == 0).all(), name
        assert grad.isfinite().all() and (grad[1:] != 0).any(), name
    assert moved.viewmats.grad.isfinite().all()


def test_sign_of_a_scale_and_length_of_a_quaternion_do_not_matter(backend):
    scene = backend.move(random_scene(200, 33, 21, seed=10))
    reference = ops.project(*scene.args)
    for flipped in (
        Scene(scene.means, scene.quats, -scene.scales, *scene.args[3:6], 33, 21),
        Scene(scene.means, -2 * scene.quats, scene.scales, *scene.args[3:6], 33, 21),
    ):
        for name, a, b in zip(OUTPUTS, ops.project(*flipped.args), reference, strict=False):
            assert relative_error(a, b) < backend.tolerance(1e-5), name


def test_zero_scale_is_a_point_widened_by_eps2d(backend):
    scene = in_front(random_scene(3, 33, 21, seed=11), scales=[0.0, 0.0, 0.0])
    scene.viewmats[...] = torch.eye(4)
    moved = backend.move(scene).requires_grad_(*INPUTS)
    outputs = ops.project(*moved.args, eps2d=0.5)
    assert outputs[2][0, 0].tolist() == pytest.approx([2.0, 0.0, 2.0], abs=1e-6)
    sum(out.sum() for out in outputs[:4]).backward()
    assert all(getattr(moved, name).grad.isfinite().all() for name in INPUTS)
    # Without eps2d there is nothing to draw; with antialiasing the point has no area.
    assert (ops.project(*backend.move(scene).args, eps2d=0.0)[-1][0, 0] == 0).all()
    assert (ops.project(*backend.move(scene).args, antialiased=True)[-1][0, 0] == 0).all()


def test_a_gradient_to_Ks_is_refused_rather_than_left_out(backend):
    scene = backend.move(random_scene(5, 33, 21, seed=12)).requires_grad_("Ks")
    means2d = ops.project(*scene.args)[0]
    with pytest.raises(ValueError, match=r"^Ks requires a gradient"):
        means2d.sum().backward()

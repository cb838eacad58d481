"""The CUDA kernels of projection and spherical harmonics, and their binding, against those of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.emulator import build as emulator
from tests.kernels.compare import assert_bitwise, assert_relative
from tests.kernels.scenes import Scene, generator, normal, random_scene, uniform

W, H = 50, 31
SETTINGS = (0.01, 1e10, 0.3)  # near, far, eps2d
NAN, INF = float("nan"), float("inf")
CPU: Any = torch.ops.gsfields
EMULATED: Any = torch.ops.gsfields_emulated

double_and_float = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32], ids=["float64", "float32"]
)


def tolerance(dtype: torch.dtype, float32: float = 1e-5) -> float:
    return 1e-11 if dtype == torch.float64 else float32


if problem := emulator.missing():
    pytest.skip(problem, allow_module_level=True)
emulator.load()


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """New tensors start as NaN, so that an output that is not written is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def wide_scene() -> Scene:
    """Large Gaussians far to the sides, whose Jacobian is taken at the clamped point."""
    scene = random_scene(200, W, H, views=2, seed=6)
    scene.means[:, :2] *= 4
    scene.scales.mul_(20)
    return scene


def hostile_scene() -> Scene:
    """Every kind of Gaussian that must not be drawn, among others."""
    scene = random_scene(160, W, H, views=2, seed=7)
    for i, number in enumerate((NAN, INF, -INF, 1e30)):
        scene.means[i, i % 3], scene.quats[4 + i, i % 4], scene.scales[8 + i, i % 3] = number, number, number
        scene.opacities[12 + i] = number
    scene.quats[20], scene.scales[21], scene.opacities[22], scene.opacities[23] = 0, 0, 0, -1
    scene.means[24], scene.means[25, 2] = 0, 1e11
    return scene


SCENES = {
    "mixed": lambda: random_scene(500, W, H, views=3, seed=5),
    "many_blocks": lambda: random_scene(17_000, W, H, seed=4),
    "wide": wide_scene,
    "hostile": hostile_scene,
    "one_block": lambda: random_scene(128, W, H, seed=8),
    "one_gaussian": lambda: random_scene(1, W, H, views=2, seed=9),
    "no_gaussians": lambda: random_scene(0, W, H, views=2, seed=10),
    "no_views": lambda: random_scene(20, W, H, views=0, seed=11),
}
all_scenes = pytest.mark.parametrize("make", SCENES.values(), ids=SCENES.keys())
antialiasing = pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])


@all_scenes
@antialiasing
@double_and_float
def test_projection(make, antialiased, dtype):
    scene = make().to(dtype)
    actual = EMULATED.project(*scene.args, *SETTINGS, antialiased)
    expected = CPU.project(*scene.args, *SETTINGS, antialiased)
    seen, wanted = ((t[-1] > 0).all(-1) for t in (actual, expected))
    both, count = seen & wanted, max(1, wanted.numel())
    assert (seen != wanted).sum() / count <= (0 if dtype == torch.float64 else 3e-3)
    for name, a, e in zip(("means2d", "depths", "conics", "opacities2d"), actual, expected, strict=False):
        assert_relative(a[both], e[both], tolerance(dtype), name)
        assert (a[~seen] == 0).all(), name
    assert actual[-1].dtype == torch.int32 and (actual[-1][~seen] == 0).all()
    radii_off = (actual[-1] - expected[-1])[both].abs()
    assert radii_off.sum() / count <= (0 if dtype == torch.float64 else 3e-3)


def cotangents(scene: Scene, seed: int) -> list[Tensor]:
    rng, views, n = generator(seed), len(scene.viewmats), len(scene.means)
    shapes = ((views, n, 2), (views, n), (views, n, 3), (views, n))
    return [normal(rng, *shape).to(scene.means.dtype) for shape in shapes]


@all_scenes
@antialiasing
@double_and_float
def test_gradients_of_the_projection(make, antialiased, dtype):
    scene = make().to(dtype)
    geometry = (*scene.gaussians, scene.viewmats, scene.Ks)
    radii = CPU.project(*scene.args, *SETTINGS, antialiased)[-1]
    arguments = (*geometry, radii, *cotangents(scene, 1), W, H, *SETTINGS, antialiased, True)
    actual, expected = EMULATED.project_backward(*arguments), CPU.project_backward(*arguments)
    for name, a, e in zip((*Scene.GEOMETRY, "viewmats"), actual, expected, strict=True):
        assert_relative(a, e, tolerance(dtype, 1e-4), name)
    unseen = (radii == 0).all(-1).all(0)
    assert all((grad[unseen] == 0).all() for grad in actual[:4])
    for namespace, all_grads in ((CPU, expected), (EMULATED, actual)):
        *grads, v_viewmats = namespace.project_backward(*arguments[:-1], False)
        assert len(v_viewmats) == 0, "was not asked for"
        for a, b in zip(grads, all_grads, strict=False):
            assert_bitwise(a, b)


def test_results_do_not_depend_on_the_order_of_threads():
    scene = random_scene(700, W, H, views=3, seed=12).to(torch.float32)
    geometry = (*scene.gaussians, scene.viewmats, scene.Ks)
    radii = EMULATED.project(*scene.args, *SETTINGS, True)[-1]
    arguments = (*geometry, radii, *cotangents(scene, 2), W, H, *SETTINGS, True, True)
    forwards = EMULATED.project_backward(*arguments)
    with emulator.order("reverse"):
        backwards = EMULATED.project_backward(*arguments)
    for a, b in zip(forwards, backwards, strict=True):
        assert_bitwise(a, b)


BAD_CAMERAS = {
    "nan_viewmat": ("viewmats", (0, 3), NAN),
    "infinite_last_row": ("viewmats", (3, 1), INF),
    "nan_K": ("Ks", (2, 2), NAN),
    "infinite_centre": ("Ks", (0, 2), INF),
    "zero_focal": ("Ks", (0, 0), 0.0),
    "negative_focal": ("Ks", (1, 1), -30.0),
    "skew": ("Ks", (0, 1), 0.5),
}


@pytest.mark.parametrize("case", BAD_CAMERAS)
@double_and_float
def test_bad_camera_sees_nothing(case, dtype):
    scene = random_scene(150, W, H, views=3, seed=13).to(dtype)
    expected = EMULATED.project(*scene.args, *SETTINGS, False)
    name, entry, number = BAD_CAMERAS[case]
    bad = replace(scene, **{name: getattr(scene, name).clone()})
    getattr(bad, name)[1][entry] = number
    with pytest.raises(ValueError, match=rf"{name}\[1\]"):
        CPU.project(*bad.args, *SETTINGS, False)
    actual = EMULATED.project(*bad.args, *SETTINGS, False)
    for a, e in zip(actual, expected, strict=True):
        assert (a[1] == 0).all()
        assert_bitwise(a[[0, 2]], e[[0, 2]])
    geometry = (*bad.gaussians, bad.viewmats, bad.Ks)
    grads = EMULATED.project_backward(
        *geometry, actual[-1], *cotangents(bad, 3), W, H, *SETTINGS, False, True
    )
    assert all(grad.isfinite().all() for grad in grads) and (grads[4][1] == 0).all()


def harmonics(dtype: torch.dtype, views: int, n: int, channels: int, rest: int, masked: bool) -> list:
    rng = generator(views + n + channels)
    dirs = normal(rng, views, n, 3) * uniform(rng, 0.1, 5.0, views, n, 1)
    if views and n > 3:
        dirs[0, :3] = torch.tensor([[0, 0, 0], [NAN, 0, 1], [0, INF, 0]])
    masks = torch.rand(views, n, generator=rng) < 0.7 if masked else None
    sh0, shN = normal(rng, n, 1, channels), normal(rng, n, rest, channels)
    return [dirs.to(dtype), sh0.to(dtype), shN.to(dtype), masks]


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize(
    ("views", "n", "channels", "rest", "masked"),
    [
        (1, 300, 3, 15, False),
        (3, 200, 3, 15, True),
        (2, 129, 1, 17, True),
        (2, 50, 7, 15, False),
        (0, 10, 3, 15, False),
        (2, 0, 3, 15, True),
        (1, 10, 0, 15, False),
    ],
)
@double_and_float
def test_spherical_harmonics(dtype, degree, views, n, channels, rest, masked):
    arguments = [*harmonics(dtype, views, n, channels, rest, masked), degree]
    assert_relative(
        EMULATED.spherical_harmonics(*arguments), CPU.spherical_harmonics(*arguments), tolerance(dtype)
    )
    v_colors = normal(generator(degree), views, n, channels).to(dtype)
    actual = EMULATED.spherical_harmonics_backward(*arguments, v_colors)
    expected = CPU.spherical_harmonics_backward(*arguments, v_colors)
    for name, a, e in zip(("dirs", "sh0", "shN"), actual, expected, strict=True):
        assert_relative(a, e, tolerance(dtype), name)


def test_coefficients_that_do_not_apply_are_not_read():
    """A zero direction sees degree 0 only, whatever the other coefficients are; so does a lower degree."""
    dirs, sh0, shN, _ = harmonics(torch.float64, 1, 4, 3, 15, False)
    shN[:2] = NAN
    expected = CPU.spherical_harmonics(dirs, sh0, shN, None, 3)[:, :2]
    assert_bitwise(EMULATED.spherical_harmonics(dirs, sh0, shN, None, 3)[:, :2], expected)
    shN[:, 3:] = NAN
    v_colors = torch.ones(1, 4, 3, dtype=torch.float64)
    assert EMULATED.spherical_harmonics(dirs[:, 2:], sh0[2:], shN[2:], None, 1).isfinite().all()
    grads = EMULATED.spherical_harmonics_backward(dirs, sh0, shN, None, 1, v_colors)
    assert all(grad.isfinite().all() for grad in grads)


def test_bad_arguments_are_refused_in_the_same_words():
    scene = random_scene(5, W, H, seed=14).to(torch.float32)
    dirs, sh0, shN, masks = harmonics(torch.float32, 1, 5, 3, 8, True)
    projections = [
        replace(scene, quats=scene.quats[:, :3]),
        replace(scene, scales=scene.scales.double()),
        replace(scene, width=0),
    ]
    calls = [("project", (*bad.args, *SETTINGS, False)) for bad in projections]
    calls += [
        ("spherical_harmonics", (dirs, sh0, shN, masks, 3)),
        ("spherical_harmonics_backward", (dirs, sh0, shN, masks, 2, torch.zeros(1, 5, 4))),
    ]
    for op, arguments in calls:
        messages = []
        for namespace in (CPU, EMULATED):
            with pytest.raises(ValueError) as error:
                getattr(namespace, op)(*arguments)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


def test_arguments_need_not_be_contiguous():
    scene = random_scene(40, W, H, seed=15).to(torch.float32)
    strided = replace(scene, means=scene.means.T.contiguous().T, scales=scene.scales.repeat(1, 2)[:, ::2])
    same = replace(strided, scales=strided.scales.contiguous())
    for a, e in zip(
        EMULATED.project(*strided.args, *SETTINGS, False),
        EMULATED.project(*same.args, *SETTINGS, False),
        strict=True,
    ):
        assert_bitwise(a, e)

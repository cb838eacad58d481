"""Any number of channels: blend, its gradients and lift at every C of the sweep; layers, sampled pixels, half storage.

One dense matrix of weights W [pixels, N] in float64 is the oracle of all: the image is W V + T b, the gradient of the
values W^T G, the lift W^T (m f), and the gradient of the geometry that of <W, G V^T> + <T, v_T + G b>, by autograd.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gsfields import ops
from gsfields.plans import Plan
from tests.kernels import oracle
from tests.kernels.compare import assert_close_outside_band, assert_relative
from tests.kernels.scenes import Splats, generator, normal, random_splats, uniform

SWEEP = (1, 3, 4, 8, 10, 16, 32, 44, 64, 100, 128, 256, 512, 1024)
SOME = (3, 16, 44, 100, 512)
GEOMETRY = ("means2d", "conics", "opacities2d")
N, WIDTH, HEIGHT, VIEWS = 70, 27, 21, 2


class Dense(NamedTuple):
    splats: Splats  # of dtype
    leaves: list[Tensor]  # the geometry in float64
    weights: Tensor  # [B, H, W, N], differentiable in the leaves
    transmittance: Tensor
    band: Tensor
    kink: Tensor


@cache
def dense(dtype: torch.dtype) -> Dense:
    splats = random_splats(N, WIDTH, HEIGHT, views=VIEWS, seed=11, sigma=3.0).to(dtype)
    exact = splats.double().requires_grad_(*GEOMETRY)
    c = oracle.composite(torch.eye(N, dtype=torch.float64), *exact.composite)
    return Dense(splats, [getattr(exact, name) for name in GEOMETRY], *c)


class Case(NamedTuple):
    """Inputs of one number of channels, in float64 but rounded to dtype; even ones have values for every view."""

    values: Tensor
    background: Tensor
    v_image: Tensor  # 0 where float32 may decide otherwise than float64
    v_transmittance: Tensor


@cache
def case(channels: int, dtype: torch.dtype) -> Case:
    rng = generator(channels)
    views = (VIEWS,) if channels % 2 == 0 else ()
    drawn = Case(
        uniform(rng, -1, 1, *views, N, channels),
        uniform(rng, -1, 1, *views, channels),
        normal(rng, VIEWS, HEIGHT, WIDTH, channels),
        normal(rng, VIEWS, HEIGHT, WIDTH),
    )
    kink = dense(dtype).kink
    drawn.v_image[kink], drawn.v_transmittance[kink] = 0, 0
    return Case(*(t.to(dtype).double() for t in drawn))


def over_pixels(per_view: Tensor) -> Tensor:
    """What there is once or per view, to broadcast over [B, H, W, ...]."""
    return per_view if per_view.ndim == 1 else per_view[:, None, None]


def expected_image(d: Dense, c: Case) -> Tensor:
    values = c.values if c.values.ndim == 3 else c.values.expand(VIEWS, -1, -1)
    return torch.einsum("bhwn,bnc->bhwc", d.weights, values) + d.transmittance[..., None] * over_pixels(
        c.background
    )


def expected_gradients(d: Dense, c: Case) -> dict[str, Tensor]:
    per_view = torch.einsum("bhwn,bhwc->bnc", d.weights, c.v_image)
    background = torch.einsum("bhw,bhwc->bc", d.transmittance, c.v_image)
    values = c.values if c.values.ndim == 3 else c.values.expand(VIEWS, -1, -1)
    v_weights = torch.einsum("bnc,bhwc->bhwn", values, c.v_image)
    v_T = c.v_transmittance + (c.v_image * over_pixels(c.background)).sum(-1)
    geometry = torch.autograd.grad(
        [d.weights, d.transmittance], d.leaves, [v_weights, v_T], retain_graph=True
    )
    return {
        "values": per_view if c.values.ndim == 3 else per_view.sum(0),
        "background": background if c.values.ndim == 3 else background.sum(0),
        **dict(zip(GEOMETRY, geometry, strict=True)),
    }


def blended(splats: Splats, leaves: list[Tensor], **options) -> tuple[Tensor, Tensor]:
    values, means2d, conics, opacities2d, background = leaves
    lists = ops.bin_tiles(*splats.binning)
    return ops.blend(
        values, means2d, conics, opacities2d, *lists, splats.width, splats.height, background, **options
    )


def make_leaves(backend, d: Dense, c: Case, dtype: torch.dtype | None = None) -> tuple[Splats, list[Tensor]]:
    """values, means2d, conics, opacities2d, background. dtype: of the values, if not that of the rest."""
    splats = backend.move(d.splats)
    values = c.values.to(backend.device, dtype or backend.dtype)
    geometry = [getattr(splats, name) for name in GEOMETRY]
    leaves = [values, *geometry, backend.move(c.background)]
    return splats, [t.detach().clone().requires_grad_() for t in leaves]


def named(leaves: list[Tensor]) -> dict[str, Tensor]:
    names = ("values", *GEOMETRY, "background")
    return {name: t.grad.double().cpu() for name, t in zip(names, leaves, strict=True) if t.grad is not None}


@pytest.mark.parametrize("channels", SWEEP)
def test_image_and_gradients(backend, channels):
    d, c = dense(backend.dtype), case(channels, backend.dtype)
    splats, leaves = make_leaves(backend, d, c)
    image, transmittance = blended(splats, leaves)
    tolerance = backend.tolerance(1e-5, 1e-12)
    assert_close_outside_band(image, expected_image(d, c).detach(), d.band, tolerance)
    assert_close_outside_band(transmittance, d.transmittance.detach(), d.band, tolerance)
    torch.autograd.backward(
        [image, transmittance], [backend.move(c.v_image), backend.move(c.v_transmittance)]
    )
    actual = named(leaves)
    for name, wanted in expected_gradients(d, c).items():
        assert_relative(actual[name], wanted, backend.gradient_tolerance(1e-9), name)


@pytest.mark.parametrize("channels", SWEEP)
def test_gradient_to_values_alone(backend, channels):
    """Frozen geometry: nothing else is asked for."""
    d, c = dense(backend.dtype), case(channels, backend.dtype)
    splats, leaves = make_leaves(backend, d, c)
    image, _ = blended(splats, [leaves[0], *(t.detach() for t in leaves[1:])])
    image.backward(backend.move(c.v_image))
    wanted = expected_gradients(d, c)["values"]
    assert_relative(leaves[0].grad.double().cpu(), wanted, backend.tolerance(1e-5, 1e-12))


@pytest.mark.parametrize("channels", SWEEP)
def test_with_masks_of_layers(backend, channels):
    """Beside them, in the same walk or in one of their own: the layers' shares of each pixel, with gradients."""
    d, c = dense(backend.dtype), case(channels, backend.dtype)
    splats, leaves = make_leaves(backend, d, c)
    values, means2d, conics, opacities2d, background = leaves
    layers, count = torch.arange(N) % 3 - 1, 2  # every third Gaussian is of none
    projected = (means2d, splats.depths, conics, opacities2d, splats.radii)
    out = Plan(projected, WIDTH, HEIGHT, batched=True).blend(
        {"features": values}, {"features": background}, layers=layers.to(backend.device), num_layers=count
    )
    tolerance = backend.tolerance(1e-5, 1e-12)
    assert_close_outside_band(out["features"], expected_image(d, c).detach(), d.band, tolerance)
    member = (layers[:, None] == torch.arange(count)).double()
    assert_close_outside_band(out["layers"], d.weights.detach() @ member, d.band, tolerance)

    v_masks = torch.where(d.kink[..., None], 0, normal(generator(2), VIEWS, HEIGHT, WIDTH, count))
    v_masks = v_masks.to(backend.dtype).double()
    c = c._replace(v_transmittance=torch.zeros_like(c.v_transmittance))
    torch.autograd.backward(
        [out["features"], out["layers"]], [backend.move(c.v_image), backend.move(v_masks)]
    )
    from_masks = torch.autograd.grad(d.weights, d.leaves, v_masks @ member.T, retain_graph=True)
    expected = expected_gradients(d, c)
    for name, more in zip(GEOMETRY, from_masks, strict=True):
        expected[name] = expected[name] + more
    actual = named(leaves)
    for name, wanted in expected.items():
        assert_relative(actual[name], wanted, backend.gradient_tolerance(1e-9), name)


def draw_pixels(seed: int = 0) -> Tensor:
    """[B, P, 2] anywhere, some twice, and more of one tile than it has pixels."""
    rng = generator(seed)
    anywhere = uniform(rng, 0, 1, VIEWS, 40, 2) * torch.tensor([WIDTH, HEIGHT])
    crowd = 8 + uniform(rng, 0, 3, VIEWS, 300, 2)
    return torch.cat([anywhere, crowd, anywhere[:, :7]], 1).long()


def of_pixels(rows: Tensor, pixels: Tensor, sampled: ops.SampledPixels) -> Tensor:
    """Rows [B, H, W, ...] of the pixels, as ops.blend() returns them."""
    picked = torch.stack([rows[b, p[:, 1], p[:, 0]] for b, p in enumerate(pixels)])
    return picked.flatten(0, 1)[sampled.order.cpu()]


@pytest.mark.parametrize("channels", SWEEP)
def test_sampled_pixels(backend, channels):
    d, c = dense(backend.dtype), case(channels, backend.dtype)
    splats, leaves = make_leaves(backend, d, c)
    pixels = draw_pixels(channels)
    sampled = ops.sample_pixels(pixels.to(backend.device), VIEWS, WIDTH, HEIGHT)
    image, transmittance = blended(splats, leaves, sampled=sampled)
    band = of_pixels(d.band, pixels, sampled)
    for actual, expected in ((image, expected_image(d, c)), (transmittance, d.transmittance)):
        wanted = of_pixels(expected.detach(), pixels, sampled)
        assert_close_outside_band(actual, wanted, band, backend.tolerance(1e-5, 1e-12), max_share=0.2)

    v_image, v_T = of_pixels(c.v_image, pixels, sampled), of_pixels(c.v_transmittance, pixels, sampled)
    torch.autograd.backward([image, transmittance], [backend.move(v_image), backend.move(v_T)])
    # The same as that of the whole image where the gradients of repeated pixels are added up.
    times = torch.zeros(VIEWS, HEIGHT, WIDTH)
    for b, p in enumerate(pixels):
        times[b].index_put_((p[:, 1], p[:, 0]), torch.ones(len(p)), accumulate=True)
    whole = c._replace(v_image=c.v_image * times[..., None], v_transmittance=c.v_transmittance * times)
    actual = named(leaves)
    for name, wanted in expected_gradients(d, whole).items():
        assert_relative(actual[name], wanted, backend.gradient_tolerance(1e-9), name)


def lift(splats: Splats, image: Tensor, weights: Tensor | None = None, **options) -> tuple[Tensor, Tensor]:
    geometry = [getattr(splats, name) for name in GEOMETRY]
    lists = ops.bin_tiles(*splats.binning)
    return ops.lift(image, *geometry, *lists, splats.width, splats.height, weights, **options)


@pytest.mark.parametrize("channels", SWEEP)
def test_lift(backend, channels):
    d, c = dense(backend.dtype), case(channels, backend.dtype)
    splats, tolerance = backend.move(d.splats), backend.tolerance(1e-5, 1e-12)
    factors = torch.where(d.kink, 0, uniform(generator(1), 0, 1, VIEWS, HEIGHT, WIDTH).to(backend.dtype))
    image = backend.move(c.v_image)
    for weights, m in ((None, (~d.kink).double()), (factors, factors.double())):
        # v_image is 0 where float32 may decide otherwise; the weights alone are not.
        sums, total = lift(splats, image, backend.move(m if weights is None else weights))
        expected = torch.einsum("bhwn,bhw,bhwc->bnc", d.weights, m, c.v_image).detach()
        assert_relative(sums.double().cpu(), expected.sum(0), tolerance, "sums")
        share = torch.einsum("bhwn,bhw->bn", d.weights, m).detach()
        assert_relative(total.double().cpu(), share.sum(0), tolerance, "total")
        sums, total = lift(splats, image, backend.move(m), per_view=True)
        assert_relative(sums.double().cpu(), expected, tolerance, "sums per view")
        assert_relative(total.double().cpu(), share, tolerance, "total per view")
    plain = torch.einsum("bhwn,bhwc->nc", d.weights, c.v_image).detach()
    assert_relative(lift(splats, image)[0].double().cpu(), plain, tolerance, "without weights")


@pytest.mark.parametrize("channels", SOME)
def test_lift_of_sampled_pixels(backend, channels):
    d, c = dense(backend.dtype), case(channels, backend.dtype)
    pixels = draw_pixels(channels)
    sampled = ops.sample_pixels(pixels.to(backend.device), VIEWS, WIDTH, HEIGHT)
    image, good = of_pixels(c.v_image, pixels, sampled), of_pixels(~d.kink, pixels, sampled).double()
    sums, total = lift(backend.move(d.splats), backend.move(image), backend.move(good), sampled=sampled)
    weights = of_pixels(d.weights.detach(), pixels, sampled)
    # Weights of both views, of which only the pixel's own is kept.
    assert_relative(sums.double().cpu(), weights.T @ image, backend.tolerance(1e-5, 1e-12), "sums")
    assert_relative(total.double().cpu(), weights.T @ good, backend.tolerance(1e-5, 1e-12), "total")


@pytest.mark.parametrize("channels", SWEEP)
def test_lift_is_the_adjoint_of_blend(exact_backend, channels):
    c = case(channels, torch.float64)
    splats = exact_backend.move(dense(torch.float64).splats)
    values, v_image = exact_backend.move(c.values), exact_backend.move(c.v_image)
    geometry = [getattr(splats, name) for name in GEOMETRY]
    image, _ = ops.blend(values, *geometry, *ops.bin_tiles(*splats.binning), WIDTH, HEIGHT)
    sums, _ = lift(splats, v_image, per_view=values.ndim == 3)
    assert float((image * v_image).sum()) == pytest.approx(float((values * sums).sum()), rel=1e-12)


@pytest.mark.parametrize("channels", [2, 20])
def test_lift_is_differentiable(exact_backend, channels):
    """In image, weights and geometry, by finite differences on a scene without a kink."""
    rng = generator(3)
    splats = random_splats(6, 9, 7, seed=5, sigma=6.0, opacity=(0.2, 0.5))
    splats = exact_backend.move(splats)
    lists = ops.bin_tiles(*splats.binning)
    image = exact_backend.move(normal(rng, 1, 7, 9, channels))
    weights = exact_backend.move(uniform(rng, 0.2, 1, 1, 7, 9))

    def sums_and_total(image, weights, opacities2d):
        return ops.lift(image, splats.means2d, splats.conics, opacities2d, *lists, 9, 7, weights)

    inputs = [t.detach().clone().requires_grad_() for t in (image, weights, splats.opacities2d)]
    assert torch.autograd.gradcheck(sums_and_total, inputs, eps=1e-7, atol=1e-5, rtol=1e-4, nondet_tol=1e-9)


HALF = {"bfloat16": (torch.bfloat16, 2**-8), "float16": (torch.float16, 2**-11)}


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("channels", (1, *SOME))
def test_half_storage(backend, channels, half):
    """Values, images and the gradients of both are rounded when they are stored, and only then."""
    if backend.dtype == torch.float64:
        pytest.skip("float64 is stored in full")
    dtype, rounding = HALF[half]
    d, c = dense(backend.dtype), case(channels, backend.dtype)
    c = c._replace(values=c.values.to(dtype).double(), v_image=c.v_image.to(dtype).double())
    splats, leaves = make_leaves(backend, d, c, dtype)
    image, transmittance = blended(splats, leaves)
    assert image.dtype == dtype and transmittance.dtype == torch.float32
    assert_close_outside_band(image, expected_image(d, c).detach(), d.band, 2 * rounding)
    torch.autograd.backward([image, transmittance], [c.v_image.to(image), backend.move(c.v_transmittance)])
    assert leaves[0].grad.dtype == dtype
    actual, expected = named(leaves), expected_gradients(d, c)
    for name, wanted in expected.items():
        tolerance = rounding if name == "values" else backend.gradient_tolerance()
        assert_relative(actual[name], wanted, tolerance, name)
    sums, _ = lift(splats, c.v_image.to(backend.device, dtype), per_view=c.values.ndim == 3)
    assert sums.dtype == torch.float32
    assert_relative(sums.double().cpu(), expected["values"], backend.tolerance(1e-5), "lift")


PRECISIONS = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 1e-2}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("channels", (10, *SOME))
def test_precision(backend, channels, precision):
    """Relative to the norm: what a product of matrices loses by rounding its factors."""
    d, c = dense(backend.dtype), case(channels, backend.dtype)
    splats, leaves = make_leaves(backend, d, c)
    image, transmittance = blended(splats, leaves, precision=precision)
    torch.autograd.backward(
        [image, transmittance], [backend.move(c.v_image), backend.move(c.v_transmittance)]
    )
    good = ~d.band
    bar = PRECISIONS[precision]

    def error(actual: Tensor, wanted: Tensor) -> float:
        return float((actual.detach().double().cpu() - wanted.detach()).norm() / wanted.detach().norm())

    assert error(image[good.to(image.device)], expected_image(d, c)[good]) <= bar
    actual = named(leaves)
    for name, wanted in expected_gradients(d, c).items():
        assert error(actual[name], wanted) <= max(bar, backend.gradient_tolerance()), name


@pytest.mark.parametrize("channels", SOME)
def test_absgrad(backend, channels):
    """The sum over pixels of |dL/dmeans2d|, which does not depend on how the channels are cut up."""
    d, c = dense(backend.dtype), case(channels, backend.dtype)
    exact = d.splats.double()
    copies = exact.means2d[:, None].repeat(1, WIDTH * HEIGHT, 1, 1).requires_grad_()  # [B, P, N, 2]
    composite = oracle.composite(c.values, copies, *exact.composite[1:], c.background)
    composite.image.backward(c.v_image)
    splats, leaves = make_leaves(backend, d, c)
    sink = torch.zeros(VIEWS, N, 2, dtype=backend.dtype, device=backend.device, requires_grad=True)
    blended(splats, leaves, absgrad_sink=sink)[0].backward(backend.move(c.v_image))
    assert_relative(sink.grad.double().cpu(), copies.grad.abs().sum(1), backend.gradient_tolerance())


def test_a_list_longer_than_a_batch(backend):
    """Of so many Gaussians that the CPU carries sums from one batch to the next, and records do not fit at once."""
    n, channels = (600 if backend.name.startswith("emulated") else 1500), 40
    splats = backend.move(random_splats(n, 20, 16, seed=8, sigma=4.0, opacity=(0.008, 0.02)))
    rng = generator(9)
    values, cotangent = (
        backend.move(uniform(rng, -1, 1, n, channels)),
        backend.move(normal(rng, 1, 16, 20, channels)),
    )
    lists = ops.bin_tiles(*splats.binning)
    geometry = (splats.means2d, splats.conics, splats.opacities2d)

    def run(v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        image = ops.blend(v, *geometry, *lists, 20, 16)[0]
        return image, ops.lift(g, *geometry, *lists, 20, 16)[0]

    wide = run(values, cotangent)
    parts = [run(values[:, i : i + 4], cotangent[..., i : i + 4]) for i in range(0, channels, 4)]
    for i, name in enumerate(("image", "lift")):
        together = torch.cat([p[i] for p in parts], -1)
        assert_relative(wide[i], together, backend.tolerance(1e-5, 1e-13), name)


@pytest.mark.parametrize("channels", [3, 40])
def test_nothing_to_blend(backend, channels):
    """No Gaussians, no pixels sampled, no views."""
    for n, views in ((0, 1), (5, 0), (0, 0)):
        some = random_splats(max(n, 1), 19, 18, seed=1)
        cut = {f: getattr(some, f)[:views, :n] for f in (*GEOMETRY, "depths", "radii")}
        splats = backend.move(replace(some, **cut))
        lists = ops.bin_tiles(*splats.binning)
        geometry = [getattr(splats, name).requires_grad_() for name in GEOMETRY]
        values = backend.move(torch.ones(n, channels)).requires_grad_()
        background = backend.move(torch.full((channels,), 0.5))
        image, _ = ops.blend(values, *geometry, *lists, 19, 18, background)
        assert image.shape == (views, 18, 19, channels) and (image == 0.5).all()
        image.sum().backward()
        assert (values.grad == 0).all()
        sums, total = ops.lift(image.detach(), *geometry, *lists, 19, 18)
        assert (sums == 0).all() and (total == 0).all() and sums.shape == (n, channels)
    splats = backend.move(random_splats(20, 19, 18, seed=1))
    lists = ops.bin_tiles(*splats.binning)
    geometry = [getattr(splats, name) for name in GEOMETRY]
    sampled = ops.sample_pixels(torch.zeros(1, 0, 2, dtype=torch.long, device=backend.device), 1, 19, 18)
    values = backend.move(torch.ones(20, channels)).requires_grad_()
    image, transmittance = ops.blend(values, *geometry, *lists, 19, 18, sampled=sampled)
    assert image.shape == (0, channels) and transmittance.shape == (0,)
    image.sum().backward()
    assert (values.grad == 0).all()

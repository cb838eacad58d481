"""ops.blend against the dense float64 composite: images, transmittance, gradients, absgrad."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from gsfields import ops
from tests.kernels import oracle
from tests.kernels.compare import assert_close_outside_band, assert_relative
from tests.kernels.scenes import Splats, generator, normal, random_splats, uniform

GEOMETRY = ("means2d", "conics", "opacities2d")


def blend(splats: Splats, values, background=None, **options):
    ids, tile_offsets = ops.bin_tiles(
        *(t.detach() if isinstance(t, torch.Tensor) else t for t in splats.binning)
    )
    geometry = (splats.means2d, splats.conics, splats.opacities2d)
    return ops.blend(values, *geometry, ids, tile_offsets, splats.width, splats.height, background, **options)


def draw_values(n: int, channels: int, views: int, seed: int, *, per_view: bool):
    rng = generator(seed)
    values = uniform(rng, -1, 1, *((views, n) if per_view else (n,)), channels)
    return values, uniform(rng, -1, 1, *((views,) if per_view else ()), channels)


OPAQUE: dict[str, Any] = {"opacity": (0.9, 1.0)}
FAINT: dict[str, Any] = {"opacity": (0.008, 0.02)}

# n, width, height, channels, views, values and background per view, options of the scene
CASES: dict[str, tuple[int, int, int, int, int, bool, dict[str, Any]]] = {
    "one_pixel": (200, 1, 1, 3, 1, False, {}),
    "one_tile": (200, 16, 16, 1, 1, False, {}),
    "ragged": (400, 17, 33, 4, 2, True, {"sigma": 1.5}),
    "ragged_wide": (600, 50, 31, 3, 3, False, {"sigma": 1.0}),
    "tiny_splats": (2000, 50, 64, 3, 1, False, {"sigma": 0.3}),
    "dense": (1000, 64, 64, 3, 1, False, {"sigma": 2.0}),
    "opaque": (500, 50, 31, 5, 1, False, OPAQUE),
    "large_splats": (300, 47, 40, 2, 2, True, {"sigma": 12.0}),
    "long_lists": (2500, 20, 16, 3, 1, False, {"sigma": 4.0, **FAINT}),
    "one_row": (150, 70, 1, 3, 1, False, {}),
    "one_column": (150, 1, 70, 3, 1, False, {}),
    **{
        f"channels_{c}": (200, 19, 18, c, 1, False, {})
        for c in (2, 6, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 40)
    },
    **{f"channels_{c}": (60, 9, 5, c, 1, False, {}) for c in (64, 100, 512, 1024)},
}


def draw(case: tuple, dtype: torch.dtype) -> tuple[Splats, torch.Tensor, torch.Tensor]:
    """The splats, values and background of a case, on the CPU."""
    n, width, height, channels, views, per_view, options = case
    splats = random_splats(n, width, height, views=views, seed=n + width, **options).to(dtype)
    values, background = draw_values(n, channels, views, channels, per_view=per_view)
    return splats, values.to(dtype), background.to(dtype)


@cache  # instruction sets share it
def dense_images(name: str, dtype: torch.dtype) -> tuple[oracle.Composite, oracle.Composite]:
    """The float64 composite of a case as rounded to dtype, without and with background."""
    splats, values, background = draw(CASES[name], dtype)
    plain = oracle.composite(values.double(), *splats.double().composite)
    bg = background.double() if background.ndim == 1 else background.double()[:, None, None]
    return plain, plain._replace(image=plain.image + plain.transmittance[..., None] * bg)


@pytest.mark.parametrize("case", CASES)
def test_image_matches_the_dense_composite(backend, case):
    _, width, height, channels, views, _, _ = CASES[case]
    splats, values, background = (backend.move(t) for t in draw(CASES[case], backend.dtype))
    tolerance = backend.tolerance(1e-5, 1e-12)
    for extra, expected in zip(((), (background,)), dense_images(case, backend.dtype), strict=True):
        image, transmittance = blend(splats, values, *extra)
        assert image.dtype == backend.dtype and image.shape == (views, height, width, channels)
        small = width * height < 100  # a share of so few pixels says nothing
        assert_close_outside_band(
            image, expected.image, expected.band, tolerance, max_share=1 if small else 0.1
        )
        assert_close_outside_band(
            transmittance, expected.transmittance, expected.band, tolerance, max_share=1
        )


@pytest.mark.slow
@pytest.mark.parametrize("channels", range(1, 41))
def test_image_matches_at_every_channel_count(backend, channels):
    splats = backend.move(random_splats(300, 37, 22, seed=channels, sigma=2.0))
    values, background = (backend.move(t) for t in draw_values(300, channels, 1, channels, per_view=False))
    expected = oracle.composite(values.double().cpu(), *splats.double().composite, background.double().cpu())
    image, _ = blend(splats, values, background)
    assert_close_outside_band(image, expected.image, expected.band, backend.tolerance(1e-5, 1e-12))


WRONG_RULES = {
    "ALPHA_MAX": 0.999,
    "ALPHA_MIN": 1 / 250,
    "TRANSMITTANCE_MIN": 3e-4,
    "TILE": None,
    "offset": None,
}


@pytest.mark.parametrize("rule", WRONG_RULES)
def test_the_comparison_notices_a_wrong_rule(monkeypatch, rule):
    """The bar of 1e-5 is worth something: an oracle with one rule changed fails it."""
    opacity = OPAQUE["opacity"] if rule in ("ALPHA_MAX", "TRANSMITTANCE_MIN") else (0.02, 1.0)
    splats = random_splats(800, 50, 31, seed=1, sigma=2.0, opacity=opacity)
    values, _ = draw_values(800, 3, 1, 0, per_view=False)
    image, _ = blend(splats, values)
    good = oracle.composite(values, *splats.composite)
    assert_close_outside_band(image, good.image, good.band, 1e-5)
    if rule == "offset":  # pixel centres at +0
        splats.means2d.add_(0.5)
    elif rule == "TILE":  # back to front
        splats.depths.neg_()
    else:
        monkeypatch.setattr(oracle, rule, WRONG_RULES[rule])
    bad = oracle.composite(values, *splats.composite)
    with pytest.raises(AssertionError):
        assert_close_outside_band(image, bad.image, bad.band, 1e-5)


def gradients(function, splats: Splats, values, background, cotangents):
    """Gradients of <image, cotangent> + <T, cotangent> to values, background and geometry, by name."""
    splats = splats.requires_grad_(*GEOMETRY)
    values, background = (
        values.detach().clone().requires_grad_(),
        background.detach().clone().requires_grad_(),
    )
    image, transmittance = function(splats, values, background)
    loss = (image * cotangents[0].to(image)).sum() + (transmittance * cotangents[1].to(image)).sum()
    loss.backward()
    geometry = {name: getattr(splats, name).grad.double().cpu() for name in GEOMETRY}
    return {"values": values.grad.double().cpu(), "background": background.grad.double().cpu(), **geometry}


def dense(splats: Splats, values, background):
    return oracle.composite(values, *splats.composite, background)[:2]


GRADIENT_CASES: dict[str, tuple[int, int, int, int, int, bool, dict[str, Any]]] = {
    "one_pixel": (60, 1, 1, 3, 1, False, {}),
    "ragged": (300, 17, 33, 3, 2, True, {"sigma": 2.0}),
    "wide": (500, 50, 31, 3, 1, False, {"sigma": 1.5}),
    "opaque": (300, 33, 20, 4, 1, False, OPAQUE),
    "large_splats": (100, 30, 30, 3, 2, False, {"sigma": 12.0}),
    "long_lists": (2500, 20, 16, 3, 1, False, {"sigma": 4.0, **FAINT}),
    "channels_1": (200, 20, 18, 1, 1, False, {}),
    "channels_8": (200, 20, 18, 8, 1, False, {}),
    "channels_17": (200, 20, 18, 17, 3, True, {}),
    "channels_40": (200, 20, 18, 40, 1, False, {}),
    "channels_513": (40, 9, 7, 513, 1, False, {}),
}


def draw_cotangents(case: tuple, kink: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Upstream gradients, 0 where float32 may decide differently: the rest is smooth, and must agree."""
    _, width, height, channels, views, _, _ = case
    rng = generator(1)
    cotangents = normal(rng, views, height, width, channels), normal(rng, views, height, width)
    cotangents[0][kink], cotangents[1][kink] = 0, 0
    return cotangents


@cache
def dense_gradients(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The kinks of a case and the gradients by autograd through the composite."""
    splats, values, background = (t.to(torch.float64) for t in draw(GRADIENT_CASES[name], dtype))
    kink = oracle.composite(values, *splats.composite).kink
    cotangents = draw_cotangents(GRADIENT_CASES[name], kink)
    return kink, gradients(dense, splats, values, background, cotangents)


@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_gradients_match_autograd_through_the_composite(backend, case):
    splats, values, background = (backend.move(t) for t in draw(GRADIENT_CASES[case], backend.dtype))
    kink, expected = dense_gradients(case, backend.dtype)
    assert kink.double().mean() < 0.2
    actual = gradients(blend, splats, values, background, draw_cotangents(GRADIENT_CASES[case], kink))
    for name, wanted in expected.items():
        assert_relative(actual[name], wanted, backend.gradient_tolerance(1e-9), name)
        unseen = (splats.radii == 0).any(-1).cpu()
        if name in GEOMETRY:
            assert (actual[name][unseen] == 0).all(), f"{name}: a culled Gaussian got a gradient"


def test_many_channels_over_many_pairs_are_the_sum_of_their_parts(backend):
    """So many records that the backward of the CPU works in several groups of tiles."""
    channels, part, n = 1024, 16, 150 if backend.name.startswith("emulated") else 5000
    splats = backend.move(random_splats(n, 48, 48, seed=3, sigma=5.0, **FAINT))
    rng = generator(2)
    values, cotangent = (
        backend.move(uniform(rng, -1, 1, n, channels)),
        backend.move(normal(rng, 1, 48, 48, channels)),
    )
    if n == 5000:
        assert len(ops.bin_tiles(*splats.binning)[0]) * channels * 4 > 40e6

    def run(columns: slice) -> dict[str, torch.Tensor]:
        moved = splats.requires_grad_(*GEOMETRY)
        some = values[:, columns].clone().requires_grad_()
        blend(moved, some)[0].backward(cotangent[..., columns])
        return {"values": some.grad, **{name: getattr(moved, name).grad for name in GEOMETRY}}

    whole, first = run(slice(None)), run(slice(part))
    rest = run(slice(part, None))
    assert_relative(
        whole["values"], torch.cat([first["values"], rest["values"]], 1), backend.tolerance(1e-6, 1e-14)
    )
    for name in GEOMETRY:
        assert_relative(whole[name], first[name] + rest[name], backend.gradient_tolerance(1e-12), name)


def test_gradient_to_values_alone_is_the_same(backend):
    """Frozen geometry takes another path through the backward."""
    splats = backend.move(random_splats(200, 33, 20, seed=2))
    values, background = (backend.move(t) for t in draw_values(200, 5, 1, 0, per_view=False))
    cotangent = normal(generator(0), 1, 20, 33, 5).to(values)
    whole = values.clone().requires_grad_()
    blend(splats.requires_grad_(*GEOMETRY), whole, background)[0].backward(cotangent)
    frozen = values.clone().requires_grad_()
    blend(splats, frozen, background)[0].backward(cotangent)
    assert_relative(frozen.grad, whole.grad, backend.tolerance(1e-5, 1e-13))


def test_gradient_through_transmittance_alone(backend):
    splats = backend.move(random_splats(150, 30, 20, seed=3)).requires_grad_(*GEOMETRY)
    exact = splats.to(torch.float64).requires_grad_(*GEOMETRY)
    values = backend.move(uniform(generator(0), 0, 1, 150, 3))
    reference = oracle.composite(values.double().cpu(), *exact.composite)
    cotangent = torch.where(reference.kink, 0, normal(generator(1), 1, 20, 30))
    reference.transmittance.backward(cotangent)
    blend(splats, values)[1].backward(cotangent.to(values))
    for name in GEOMETRY:
        assert_relative(
            getattr(splats, name).grad,
            getattr(exact, name).grad.to(values),
            backend.gradient_tolerance(),
            name,
        )


@pytest.mark.parametrize("channels", [1, 3, 20])
def test_absgrad_is_the_sum_over_pixels_of_absolute_gradients(backend, channels):
    n, width, height, views = 120, 33, 20, 2
    splats = backend.move(random_splats(n, width, height, views=views, seed=4))
    values, background = (backend.move(t) for t in draw_values(n, channels, views, 5, per_view=False))
    exact = splats.double()
    copies = exact.means2d[:, None].repeat(1, width * height, 1, 1).requires_grad_()  # [B, P, N, 2]
    arguments = (copies, *exact.composite[1:])
    reference = oracle.composite(values.double().cpu(), *arguments, background.double().cpu())
    cotangent = normal(generator(6), views, height, width, channels)
    cotangent[reference.kink] = 0
    reference.image.backward(cotangent)
    sink = torch.zeros(views, n, 2, dtype=backend.dtype, device=backend.device, requires_grad=True)
    moved = splats.requires_grad_("means2d")
    blend(moved, values, background, absgrad_sink=sink)[0].backward(cotangent.to(values))
    assert_relative(
        sink.grad.double().cpu(), copies.grad.abs().sum(1), backend.gradient_tolerance(), "absgrad"
    )
    assert_relative(
        moved.means2d.grad.double().cpu(), copies.grad.sum(1), backend.gradient_tolerance(), "grad"
    )
    assert (sink.grad >= moved.means2d.grad.abs() * (1 - 1e-5) - 1e-6).all()

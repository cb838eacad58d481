"""Blending of any number of channels, its adjoint, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gsfields.ops.library import TILE, native, same_device

Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS = ("fp32", "tf32", "bf16")
_WINDOW_BYTES = 64 << 20  # of what is held in full where a result is stored in half
_SUMMANDS = 512  # of a sum that is taken at once


class SampledPixels(NamedTuple):
    """Some pixels of B views, sorted by tile: what blend() and lift() take instead of all pixels."""

    pixels: Tensor  # [P] int64 indices into [B, H, W]
    offsets: Tensor  # [B * tiles + 1] int64: pixels[offsets[t]:offsets[t + 1]] lie in tile t
    order: Tensor  # [P] int64: pixels[k] is the order[k]-th of those that were asked for


def sample_pixels(pixels: Tensor, views: int, width: int, height: int) -> SampledPixels:
    """Sorts pixels [B, P, 2] (columns x, rows y, integers) of B views of width x height, repeated ones too.

    Raises ValueError for other shapes or dtypes, and on the CPU for a pixel outside the image; on a GPU the host does
    not wait to read the pixels, and one outside takes the place of the nearest inside.
    """
    if pixels.dim() != 3 or pixels.shape[0] != views or pixels.shape[2] != 2:
        raise ValueError(f"pixels has shape {list(pixels.shape)}, but must be [B={views}, P, 2]")
    if pixels.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"pixels has dtype {pixels.dtype}, but must be int32 or int64")
    limit = torch.tensor([width - 1, height - 1], device=pixels.device)
    inside = pixels.long().clamp(torch.zeros_like(limit), limit)
    readable = pixels.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and not torch.equal(inside, pixels.long()):
        raise ValueError(f"pixels holds one outside the image, which is {width} x {height}")
    x, y = inside.reshape(-1, 2).unbind(-1)
    view = torch.arange(views, device=pixels.device).repeat_interleave(pixels.shape[1])
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    tile = (view * tiles_y + y // TILE) * tiles_x + x // TILE
    # Neighbours within a tile next to each other: kernels cull by small blocks of pixels.
    block = y % TILE // 4 * 4 + x % TILE // 4
    key, order = torch.sort((tile * 16 + block) * 16 + y % 4 * 4 + x % 4, stable=True)
    ends = torch.arange(views * tiles_x * tiles_y + 1, device=pixels.device) * 256
    offsets = torch.searchsorted(key, ends)
    return SampledPixels(((view * height + y) * width + x)[order], offsets, order)


def _precision(name: Precision) -> int:
    if name not in PRECISIONS:
        raise ValueError(f"precision is {name!r}, but must be 'fp32', 'tf32' or 'bf16'")
    return PRECISIONS.index(name)


# ---- blend ----------------------------------------------------------------------------------------------------


def blend(
    values: Tensor,
    means2d: Tensor,
    conics: Tensor,
    opacities2d: Tensor,
    ids: Tensor,
    tile_offsets: Tensor,
    width: int,
    height: int,
    background: Tensor | None = None,
    absgrad_sink: Tensor | None = None,
    *,
    sampled: SampledPixels | None = None,
    precision: Precision = "fp32",
) -> tuple[Tensor, Tensor]:
    """Composites per-Gaussian values front to back (Kerbl et al. 2023, equation 3): out = sum_i w_i v_i + T b.

    w_i = alpha_i T_i, T_i the product of (1 - alpha_j) in front, alpha = min(0.99, opacity exp(-½ dᵀ conic d)).
    Pairs with alpha < 1/255 are skipped; a pixel stops before the Gaussian that would bring T to 1e-4 or below.

    Args:
        values: [N, C], or per view [B, N, C]; any C >= 1. Of the geometry's dtype, or bfloat16 or float16 where that
            is float32; then the image and the gradient of the values are so too, and sums are in float32.
        means2d, conics, opacities2d: from project().
        ids, tile_offsets: from bin_tiles().
        background: [C] or [B, C] in the geometry's dtype, seen through the remaining transmittance.
        absgrad_sink: zeros [B, N, 2]; ignored here, receives as gradient the sum over pixels of |dL/dmeans2d|
            (AbsGS, Ye et al. 2024), in pixels.
        sampled: blend these pixels only, at a cost in proportion to the tiles they lie in.
        precision: of the products over many channels on a GPU, forward and backward: "fp32"; "tf32" and "bf16" round
            the factors and sum in float32 (what "bf16" would cost the gradients of the geometry is more than it gains:
            they are "tf32" then). The CPU computes in float32 whatever is asked for; float64 has no other.

    Returns image [B, H, W, C] and transmittance [B, H, W]; [P, C] and [P] of sampled pixels, in sampled.pixels' order.
    Differentiable in values, means2d, conics, opacities2d and background.
    """
    image, transmittance, _last = native.blend(
        values, means2d, conics, opacities2d, background, absgrad_sink, ids, tile_offsets,
        *_sampled(sampled), width, height, _precision(precision),
    )  # fmt: skip
    return image, transmittance


def last_blended(
    means2d: Tensor,
    conics: Tensor,
    opacities2d: Tensor,
    ids: Tensor,
    tile_offsets: Tensor,
    width: int,
    height: int,
) -> Tensor:
    """How far each pixel reads the list of its tile, [B, H, W] int32: no Gaussian at or after this place is blended."""
    with torch.no_grad():
        ones = opacities2d.new_ones(opacities2d.shape[1], 1)
        *_, last = native.blend(
            ones, means2d, conics, opacities2d, None, None, ids, tile_offsets, None, None, width, height, 0
        )
    return last


def seen_pairs(
    means2d: Tensor,
    conics: Tensor,
    opacities2d: Tensor,
    ids: Tensor,
    tile_offsets: Tensor,
    width: int,
    height: int,
    sampled: SampledPixels,
) -> Tensor:
    """Which of the listed pairs some pixels see: bool [I], of what they blend and of that at which they stop.

    Without the other pairs, these pixels blend to the same. Takes what blend() takes; not differentiable.
    """
    return native.seen_pairs(
        means2d, conics, opacities2d, ids, tile_offsets, sampled.pixels, sampled.offsets, width, height
    )


@torch.library.register_fake("gsfields::seen_pairs")
def _(means2d, conics, opacities, ids, tile_offsets, pixels, pixel_offsets, width, height):  # type: ignore[no-untyped-def]
    same_device(
        means2d=means2d, conics=conics, opacities=opacities, ids=ids, tile_offsets=tile_offsets, pixels=pixels,
        pixel_offsets=pixel_offsets,
    )  # fmt: skip
    return ids.new_empty(ids.shape, dtype=torch.bool)


def _sampled(sampled: SampledPixels | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if sampled is None else (sampled.pixels, sampled.offsets)


def _rows(means2d: Tensor, pixels: Tensor | None, width: int, height: int) -> tuple[int, ...]:
    """The leading shape of what holds something for every pixel."""
    return (means2d.shape[0], height, width) if pixels is None else (pixels.shape[0],)


@torch.library.register_fake("gsfields::blend")
def _(  # type: ignore[no-untyped-def]
    values, means2d, conics, opacities, background, absgrad_sink, ids, tile_offsets, pixels, pixel_offsets,
    width, height, precision,
):  # fmt: skip
    same_device(
        means2d=means2d, values=values, conics=conics, opacities=opacities, background=background,
        absgrad_sink=absgrad_sink, ids=ids, tile_offsets=tile_offsets, pixels=pixels, pixel_offsets=pixel_offsets,
    )  # fmt: skip
    rows = _rows(means2d, pixels, width, height)
    return (
        values.new_empty(*rows, values.shape[-1]),
        means2d.new_empty(rows),
        means2d.new_empty(rows, dtype=torch.int32),
    )


@torch.library.register_fake("gsfields::blend_backward")
def _(  # type: ignore[no-untyped-def]
    values, means2d, conics, opacities, background, ids, tile_offsets, pixels, pixel_offsets, transmittance, last,
    v_image, v_transmittance, width, height, precision, geometry, to_values, absgrad, deterministic,
):  # fmt: skip
    B, N = means2d.shape[0], means2d.shape[1] if geometry else 0
    return (
        means2d.new_empty(values.shape if to_values else (0,)),
        means2d.new_empty(B, N, 2),
        means2d.new_empty(B, N, 3),
        means2d.new_empty(B, N),
        means2d.new_empty(B, N if absgrad else 0, 2),
    )


def _blend_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    values, means2d, conics, opacities, background, _sink, *lists, width, height, precision = inputs
    _image, transmittance, last = output
    ctx.save_for_backward(values, means2d, conics, opacities, background, *lists, transmittance, last)
    ctx.settings = width, height, precision
    ctx.mark_non_differentiable(last)


def _blend_backward(ctx, v_image, v_transmittance, _v_last):  # type: ignore[no-untyped-def]
    inputs = ctx.saved_tensors
    values, means2d, conics, opacities, background, ids, tile_offsets, pixels, pixel_offsets, *_ = inputs
    to_values, *geometry, to_background, absgrad = ctx.needs_input_grad[:6]
    want_geometry = any(geometry) or absgrad
    deterministic = torch.are_deterministic_algorithms_enabled()
    half = values.dtype != means2d.dtype
    v_values = v_means2d = v_conics = v_opacities = v_absgrad = None
    if want_geometry or (to_values and not half):
        v_values, v_means2d, v_conics, v_opacities, v_absgrad = native.blend_backward(
            *inputs, v_image, v_transmittance, *ctx.settings,
            want_geometry, to_values and not half, absgrad, deterministic,
        )  # fmt: skip
    if to_values and half:
        where = (means2d, conics, opacities, ids, tile_offsets, pixels, pixel_offsets, *ctx.settings)
        v_values = torch.empty_like(values)
        per_view = values.dim() == 3
        for some in _windows(values.shape[-1], 4 * v_values[..., 0].numel()):
            v_values[..., some] = native.lift(
                v_image[..., some], None, *where, per_view, False, deterministic
            )[0]
    v_background = None
    if to_background:
        v_background = _background_gradient(background, v_image, inputs[-2], pixels, ctx.settings)
    wanted = (to_values, want_geometry, want_geometry, want_geometry)
    outputs = (
        g if w else None for g, w in zip((v_values, v_means2d, v_conics, v_opacities), wanted, strict=True)
    )
    return *outputs, v_background, v_absgrad if absgrad else None, *[None] * 7


def _windows(count: int, bytes_each: int) -> Iterator[slice]:
    """Slices that cover [0, count), of as many as fit into _WINDOW_BYTES, but 16 at least."""
    step = max(16, _WINDOW_BYTES // max(bytes_each, 1) // 16 * 16)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _background_gradient(  # type: ignore[no-untyped-def]
    background: Tensor, v_image: Tensor, transmittance: Tensor, pixels: Tensor | None, settings
) -> Tensor:
    """Sums of T dL/dimage over the pixels of each view, or of all."""
    width, height, _ = settings
    channels = background.shape[-1]
    views = 1 if background.dim() == 1 else len(background)
    v_rows, T = v_image.reshape(-1, channels), transmittance.reshape(-1)
    total = background.new_zeros(views, channels)
    for some in _windows(len(T), 4 * channels):
        grads, weights = v_rows[some].to(T.dtype), T[some]
        if views > 1:
            index = torch.arange(some.start, some.stop, device=T.device) if pixels is None else pixels[some]
            weights = weights * (index // (width * height) == torch.arange(views, device=T.device)[:, None])
        total += _products(weights.reshape(views, -1), grads)
    return total[0] if background.dim() == 1 else total


def _products(weights: Tensor, rows: Tensor) -> Tensor:
    """weights [V, P] @ rows [P, C], on the CPU in an order of summation that does not depend on the number of threads,
    on which that of a library that multiplies matrices may: as sums over bags of rows, of which each is one thread's.
    """
    if rows.is_cuda:
        return weights @ rows
    return torch.stack([_weighted_sum(view, rows) for view in weights])


def _weighted_sum(weights: Tensor, rows: Tensor) -> Tensor:
    """Sum over p of weights[p] rows[p], [C]."""
    index = torch.arange(len(rows), device=rows.device)
    sums = torch.nn.functional.embedding_bag(
        index, rows, index[::_SUMMANDS], mode="sum", per_sample_weights=weights
    )
    return sums[0] if len(sums) == 1 else _weighted_sum(torch.ones_like(sums[:, 0]), sums)


torch.library.register_autograd("gsfields::blend", _blend_backward, setup_context=_blend_setup)


# ---- lift -----------------------------------------------------------------------------------------------------


def lift(
    image: Tensor,
    means2d: Tensor,
    conics: Tensor,
    opacities2d: Tensor,
    ids: Tensor,
    tile_offsets: Tensor,
    width: int,
    height: int,
    weights: Tensor | None = None,
    *,
    sampled: SampledPixels | None = None,
    precision: Precision = "fp32",
    per_view: bool = False,
) -> tuple[Tensor, Tensor]:
    """Hands an image back to the Gaussians that it shows, the adjoint of blend() in its values.

    With w_i(p) the weight of Gaussian i in pixel p and m(p) that of the pixel (`weights`, else 1):
    sums_i = Σ_p w_i(p) m(p) image(p), total_i = Σ_p w_i(p) m(p). Their ratio is the mean of what was seen of i.

    Args:
        image: [B, H, W, C], or [P, C] of sampled pixels; any C >= 1; the geometry's dtype, or bfloat16 or float16.
        weights: [B, H, W] or [P], in the geometry's dtype.
        per_view: keep the views apart instead of adding them up.
        The others are those of blend().

    Returns sums [N, C] and total [N] ([B, N, C] and [B, N] with per_view), in the geometry's dtype.
    Differentiable in image, weights, means2d, conics and opacities2d.
    """
    return native.lift(
        image, weights, means2d, conics, opacities2d, ids, tile_offsets,
        *_sampled(sampled), width, height, _precision(precision), per_view, True,
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


@torch.library.register_fake("gsfields::lift")
def _(  # type: ignore[no-untyped-def]
    image, weights, means2d, conics, opacities, ids, tile_offsets, pixels, pixel_offsets, width, height, precision,
    per_view, total, deterministic,
):  # fmt: skip
    same_device(
        means2d=means2d, image=image, weights=weights, conics=conics, opacities=opacities, ids=ids,
        tile_offsets=tile_offsets, pixels=pixels, pixel_offsets=pixel_offsets,
    )  # fmt: skip
    (B, N), C = means2d.shape[:2], image.shape[-1]
    views, totals = (B,) if per_view else (), N if total else 0
    return means2d.new_empty(*views, N, C), means2d.new_empty(*views, totals)


def _lift_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:9])
    ctx.settings = inputs[9:]


def _lift_backward(ctx, v_sums, v_total):  # type: ignore[no-untyped-def]
    """<lift(f), v> = <m f, blend(v)>: gradients are blends of v and gradients of such a blend."""
    image, weights, *splats, ids, tile_offsets, pixels, pixel_offsets = ctx.saved_tensors
    width, height, precision, _per_view, total, deterministic = ctx.settings
    to_image, to_weights, *geometry = ctx.needs_input_grad[:5]
    lists = ids, tile_offsets, pixels, pixel_offsets
    values = v_sums.to(image.dtype)
    blended, transmittance, last = native.blend(values, *splats, None, None, *lists, width, height, precision)
    parts: list[tuple[Tensor, Tensor]] = [(values, image)]
    v_weights = None
    if total:
        v_total = v_total.unsqueeze(-1).contiguous()
        parts.append((v_total, torch.ones_like(transmittance).unsqueeze(-1)))
    if to_weights:
        v_weights = torch.linalg.vecdot(image.to(v_sums.dtype), blended.to(v_sums.dtype))
        if total:
            v_weights += native.blend(v_total, *splats, None, None, *lists, width, height, precision)[0][
                ..., 0
            ]
    v_splats: list[Any] = [None] * 3
    if any(geometry):
        zeros = torch.zeros_like(transmittance)
        for v, f in parts:
            f = f if weights is None else f * weights.unsqueeze(-1).to(f.dtype)
            *_, a, b, c, _absgrad = native.blend_backward(
                v, *splats, None, *lists, transmittance, last, f, zeros, width, height, precision,
                True, False, False, deterministic,
            )  # fmt: skip
            v_splats = [a, b, c] if v_splats[0] is None else [x + y for x, y in zip(v_splats, (a, b, c))]
    v_image = blended if weights is None else blended * weights.unsqueeze(-1).to(blended.dtype)
    return v_image if to_image else None, v_weights, *v_splats, *[None] * 10


torch.library.register_autograd("gsfields::lift", _lift_backward, setup_context=_lift_setup)

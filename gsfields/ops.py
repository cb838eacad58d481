"""The ops of gsfields as Python functions: one thin wrapper each, its fake (meta) kernel and its gradient.

Everything else in the package reaches the native kernels through this module. Shapes: N Gaussians, B views,
C channels, H x W pixels, I (Gaussian, tile) pairs. All floating-point tensors of a call share one dtype
(float32 or float64) and one device. Bad arguments raise ValueError with one sentence that names the argument.
Memory that runs out inside an op raises RuntimeError ("API call failed"), not its subclass torch.OutOfMemoryError.

On the CPU forward and backward are bit-identical over repeated runs and over any number of threads, for one
instruction set. On a GPU the forward is; the backward pass of blend() adds in an order that varies, and so do its last
bits: under torch.use_deterministic_algorithms(True) it raises RuntimeError (or warns, with warn_only).
A Gaussian with a non-finite parameter or a zero quaternion is not drawn and receives zero gradients. A non-finite
value reaches at most the 4x4 block of pixels around a pixel that its Gaussian touches, on a GPU that pixel alone.
"""

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

TILE = 16
"""Pixels along each side of a tile."""

_LIBRARY = Path(__file__).with_name("_C.so")
if not _LIBRARY.exists():
    raise ImportError(
        f"{_LIBRARY.name} is missing next to gsfields/ops.py: build it with `pip install .` or `make build`"
    )
torch.ops.load_library(str(_LIBRARY))
_CUDA_LIBRARY = _LIBRARY.with_name("_cuda.so")
if torch.version.cuda and _CUDA_LIBRARY.exists():
    torch.ops.load_library(str(_CUDA_LIBRARY))
_ops = torch.ops.gsfields


def _refuse_cuda(op: str) -> None:
    """Makes an op that has no CUDA kernel say so in one sentence."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"gsfields::{op}", "CUDA"):
        return

    def refuse(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"{op} has no CUDA kernel in this build; move the tensors to the CPU")

    torch.library.impl(f"gsfields::{op}", "cuda", refuse)


for _op in ("project", "spherical_harmonics", "bin_tiles", "blend", "ssim"):
    _refuse_cuda(_op)


# ---- instruction sets -----------------------------------------------------------------------------------------

_ISAS = ("baseline", "avx2", "avx512")


def available_cpu_isas() -> tuple[str, ...]:
    """The instruction sets with kernels in the library that this CPU can run, slowest first."""
    return tuple(name for i, name in enumerate(_ISAS) if _ops.cpu_isa_available(i))


def cpu_isa() -> str:
    """The instruction set whose kernels are in use."""
    return _ISAS[_ops.cpu_isa()]


def set_cpu_isa(name: str) -> None:
    """Uses the kernels of one instruction set, or of the best one for "auto".

    Raises ValueError if this CPU lacks it. The environment variable GSFIELDS_CPU_ISA does the same at import.
    """
    available = available_cpu_isas()
    if name == "auto":
        name = available[-1]
    if name not in available:
        raise ValueError(f"cpu isa is {name!r}, but this CPU can run {', '.join(available)} or 'auto'")
    _ops.set_cpu_isa(_ISAS.index(name))


if os.environ.get("GSFIELDS_CPU_ISA"):
    set_cpu_isa(os.environ["GSFIELDS_CPU_ISA"])


def _same_device(**tensors: Tensor | None) -> None:
    """Refuses mixed devices in the fake kernels, which the dispatcher prefers over those that would check."""
    given = {name: t.device for name, t in tensors.items() if t is not None}
    first = next(iter(given))
    for name, device in given.items():
        if device != given[first]:
            raise ValueError(
                f"{name} is on device {device} and {first} on {given[first]}, but they must share one"
            )


# ---- projection -----------------------------------------------------------------------------------------------


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    near: float = 0.01,
    far: float = 1e10,
    eps2d: float = 0.3,
    antialiased: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Projects 3D Gaussians into views (EWA splatting, as 3D Gaussian Splatting, Kerbl et al. 2023, section 4).

    Args:
        means: centres [N, 3], world frame.
        quats: rotations [N, 4] as w, x, y, z, not necessarily unit.
        scales: standard deviations along the rotated axes [N, 3], world units; the sign does not matter.
        opacities: [N], meant to lie in [0, 1].
        viewmats: world→camera [B, 4, 4], OpenCV axes (x right, y down, z forward).
        Ks: intrinsics [B, 3, 3] in pixels, pixel centres at +0.5, without skew.
        width, height: image size in pixels.
        near, far: depths (camera z, world units) outside which a Gaussian is culled.
        eps2d: variance in pixels² added to both axes of every splat.
        antialiased: multiply opacities by sqrt(det Σ / det(Σ + eps2d I)) (Mip-Splatting, Yu et al. 2024).

    Returns:
        means2d [B, N, 2] in pixels, depths [B, N], conics [B, N, 3] (a, b, c of the inverse 2D covariance),
        opacities2d [B, N], and radii [B, N, 2] int32: half extents in pixels of the ellipse where alpha reaches
        1/255, rounded up. A culled Gaussian has zeros everywhere and zero gradients.

    Differentiable in means, quats, scales, opacities and viewmats.

    A camera that is not finite, has a focal length that is not positive, or has skew raises ValueError on the
    CPU. On a GPU the host does not wait to read the cameras: there everything is culled in such a view.
    """
    return _ops.project(
        means, quats, scales, opacities, viewmats, Ks, width, height, near, far, eps2d, antialiased
    )


@torch.library.register_fake("gsfields::project")
def _(means, quats, scales, opacities, viewmats, Ks, width, height, near, far, eps2d, antialiased):  # type: ignore[no-untyped-def]
    _same_device(means=means, quats=quats, scales=scales, opacities=opacities, viewmats=viewmats, Ks=Ks)
    B, N = viewmats.shape[0], means.shape[0]
    return (
        means.new_empty(B, N, 2),
        means.new_empty(B, N),
        means.new_empty(B, N, 3),
        means.new_empty(B, N),
        means.new_empty(B, N, 2, dtype=torch.int32),
    )


@torch.library.register_fake("gsfields::project_backward")
def _(  # type: ignore[no-untyped-def]
    means, quats, scales, opacities, viewmats, *rest
):
    to_viewmats = rest[-1]
    views = viewmats if to_viewmats else viewmats[:0]
    return tuple(t.new_empty(t.shape) for t in (means, quats, scales, opacities, views))


def _project_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:6], output[4])
    ctx.settings = inputs[6:]
    ctx.mark_non_differentiable(output[4])


def _project_backward(ctx, v_means2d, v_depths, v_conics, v_opacities2d, _v_radii):  # type: ignore[no-untyped-def]
    if ctx.needs_input_grad[5]:
        raise ValueError("Ks requires a gradient, but project is not differentiable in Ks")
    *inputs, radii = ctx.saved_tensors
    upstream = (v_means2d, v_depths, v_conics, v_opacities2d)
    to_viewmats = ctx.needs_input_grad[4]
    *grads, v_viewmats = _ops.project_backward(*inputs, radii, *upstream, *ctx.settings, to_viewmats)
    return *grads, v_viewmats if to_viewmats else None, *([None] * 7)


torch.library.register_autograd("gsfields::project", _project_backward, setup_context=_project_setup)


# ---- spherical harmonics --------------------------------------------------------------------------------------


def spherical_harmonics(degree: int, dirs: Tensor, coeffs: Tensor, masks: Tensor | None = None) -> Tensor:
    """Evaluates real spherical harmonics per view and Gaussian (basis and signs of 3D Gaussian Splatting).

    Args:
        degree: 0 to 3; coefficients of higher degrees are ignored.
        dirs: viewing directions [B, N, 3], world frame, not necessarily unit; a zero one sees degree 0 only.
        coeffs: [N, K, D] with K >= (degree + 1)².
        masks: bool [B, N]; False gives zeros, at no cost.

    Returns [B, N, D]. Differentiable in dirs and coeffs.
    """
    if coeffs.dim() != 3 or coeffs.shape[1] == 0:
        raise ValueError(f"coeffs has shape {list(coeffs.shape)}, but must be [N, K, D] with K >= 1")
    return spherical_harmonics_split(degree, dirs, coeffs[:, :1], coeffs[:, 1:], masks)


def spherical_harmonics_split(
    degree: int, dirs: Tensor, sh0: Tensor, shN: Tensor, masks: Tensor | None = None
) -> Tensor:
    """spherical_harmonics() with the coefficients as [N, 1, D] and [N, K-1, D], as optimisers hold them."""
    return _ops.spherical_harmonics(dirs, sh0, shN, masks, degree)


@torch.library.register_fake("gsfields::spherical_harmonics")
def _(dirs, sh0, shN, masks, degree):  # type: ignore[no-untyped-def]
    _same_device(dirs=dirs, sh0=sh0, shN=shN, masks=masks)
    return dirs.new_empty(dirs.shape[0], dirs.shape[1], sh0.shape[2])


@torch.library.register_fake("gsfields::spherical_harmonics_backward")
def _(dirs, sh0, shN, masks, degree, v_colors):  # type: ignore[no-untyped-def]
    return tuple(t.new_empty(t.shape) for t in (dirs, sh0, shN))


def _sh_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    dirs, sh0, shN, masks, ctx.degree = inputs
    ctx.save_for_backward(dirs, sh0, shN, masks)


def _sh_backward(ctx, v_colors):  # type: ignore[no-untyped-def]
    grads = _ops.spherical_harmonics_backward(*ctx.saved_tensors, ctx.degree, v_colors)
    return *grads, None, None


torch.library.register_autograd("gsfields::spherical_harmonics", _sh_backward, setup_context=_sh_setup)


# ---- binning --------------------------------------------------------------------------------------------------


def bin_tiles(
    means2d: Tensor,
    depths: Tensor,
    conics: Tensor,
    opacities2d: Tensor,
    radii: Tensor,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor]:
    """Lists for every 16x16 tile the Gaussians that reach it, front to back, ties by index.

    Takes the outputs of project(). A Gaussian is listed where its alpha reaches 1/255 at some pixel centre of
    the row of tiles between the listed columns (exact per row).

    Returns ids [I] int32 (indices into N) and tile_offsets [B * tiles_y * tiles_x + 1] int64: the list of tile t
    is ids[tile_offsets[t]:tile_offsets[t + 1]], tiles row by row, view by view. Not differentiable.
    """
    return _ops.bin_tiles(means2d, depths, conics, opacities2d, radii, width, height)


def _tiles(width: int, height: int) -> int:
    return ((width + TILE - 1) // TILE) * ((height + TILE - 1) // TILE)


@torch.library.register_fake("gsfields::bin_tiles")
def _(means2d, depths, conics, opacities, radii, width, height):  # type: ignore[no-untyped-def]
    _same_device(means2d=means2d, depths=depths, conics=conics, opacities=opacities, radii=radii)
    pairs = torch.library.get_ctx().new_dynamic_size()
    offsets = means2d.shape[0] * _tiles(width, height) + 1
    return means2d.new_empty(pairs, dtype=torch.int32), means2d.new_empty(offsets, dtype=torch.int64)


# ---- blending -------------------------------------------------------------------------------------------------


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
) -> tuple[Tensor, Tensor]:
    """Composites per-Gaussian values front to back (Kerbl et al. 2023, equation 3): out = sum_i w_i v_i + T b.

    w_i = alpha_i T_i, T_i the product of (1 - alpha_j) in front, alpha = min(0.99, opacity exp(-½ dᵀ conic d)).
    Pairs with alpha < 1/255 are skipped; a pixel stops before the Gaussian that would bring T to 1e-4 or below.

    Args:
        values: [N, C], or per view [B, N, C]; any C >= 1.
        means2d, conics, opacities2d: from project().
        ids, tile_offsets: from bin_tiles().
        background: [C] or [B, C], seen through the remaining transmittance.
        absgrad_sink: zeros [B, N, 2]; ignored here, receives as gradient the sum over pixels of |dL/dmeans2d|
            (AbsGS, Ye et al. 2024), in pixels.

    Returns image [B, H, W, C] and transmittance [B, H, W].
    Differentiable in values, means2d, conics, opacities2d and background.
    """
    image, transmittance, _last = _ops.blend(
        values, means2d, conics, opacities2d, background, absgrad_sink, ids, tile_offsets, width, height
    )
    return image, transmittance


@torch.library.register_fake("gsfields::blend")
def _(values, means2d, conics, opacities, background, absgrad_sink, ids, tile_offsets, width, height):  # type: ignore[no-untyped-def]
    _same_device(
        means2d=means2d, values=values, conics=conics, opacities=opacities, background=background,
        absgrad_sink=absgrad_sink, ids=ids, tile_offsets=tile_offsets,
    )  # fmt: skip
    B, C = means2d.shape[0], values.shape[-1]
    return (
        means2d.new_empty(B, height, width, C),
        means2d.new_empty(B, height, width),
        means2d.new_empty(B, height, width, dtype=torch.int32),
    )


@torch.library.register_fake("gsfields::blend_backward")
def _(  # type: ignore[no-untyped-def]
    values, means2d, conics, opacities, background, ids, tile_offsets, transmittance, last, v_image, v_transmittance,
    width, height, geometry, to_values, absgrad,
):  # fmt: skip
    B, N = means2d.shape[0], means2d.shape[1] if geometry else 0
    return (
        values.new_empty(values.shape if to_values else (0,)),
        means2d.new_empty(B, N, 2),
        means2d.new_empty(B, N, 3),
        means2d.new_empty(B, N),
        means2d.new_empty(B, N if absgrad else 0, 2),
    )


def _blend_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    values, means2d, conics, opacities, background, _sink, ids, tile_offsets, *ctx.size = inputs
    _image, transmittance, last = output
    ctx.save_for_backward(
        values, means2d, conics, opacities, background, ids, tile_offsets, transmittance, last
    )
    ctx.mark_non_differentiable(last)


def _alert_if_deterministic(op: str) -> None:
    """As torch's own ops that have no deterministic implementation."""
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        f"{op} has no deterministic implementation on CUDA, but torch.use_deterministic_algorithms is on"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def _blend_backward(ctx, v_image, v_transmittance, _v_last):  # type: ignore[no-untyped-def]
    inputs = ctx.saved_tensors
    to_values, *geometry, to_background, absgrad = ctx.needs_input_grad[:6]
    want_geometry = any(geometry) or absgrad
    if v_image.is_cuda and (want_geometry or to_values):
        _alert_if_deterministic("the backward pass of gsfields.ops.blend")
    grads = _ops.blend_backward(
        *inputs, v_image, v_transmittance, *ctx.size, want_geometry, to_values, absgrad
    )
    v_values, v_means2d, v_conics, v_opacities, v_absgrad = grads
    v_background = None
    if to_background:
        background, transmittance = inputs[4], inputs[7]
        v_background = torch.einsum("bhwc,bhw->bc", v_image, transmittance)
        v_background = v_background.sum(0) if background.dim() == 1 else v_background
    wanted = (to_values, want_geometry, want_geometry, want_geometry)
    outputs = (
        g if w else None for g, w in zip((v_values, v_means2d, v_conics, v_opacities), wanted, strict=True)
    )
    return *outputs, v_background, v_absgrad if absgrad else None, None, None, None, None


torch.library.register_autograd("gsfields::blend", _blend_backward, setup_context=_blend_setup)


# ---- structural similarity ------------------------------------------------------------------------------------


def ssim_map(image1: Tensor, image2: Tensor) -> Tensor:
    """Structural similarity per pixel and channel (Wang et al. 2004), for images [B, H, W, C] in [0, 1].

    11x11 Gaussian window of sigma 1.5, zeros outside the image, C1 = 0.01², C2 = 0.03² (the form that 3D Gaussian
    Splatting trains with). Returns [B, H, W, C]; differentiable in image1, not in image2.
    """
    return _ops.ssim(image1, image2)[0]


@torch.library.register_fake("gsfields::ssim")
def _(image1, image2):  # type: ignore[no-untyped-def]
    _same_device(image1=image1, image2=image2)
    return tuple(image1.new_empty(image1.shape) for _ in range(4))


@torch.library.register_fake("gsfields::ssim_backward")
def _(image1, image2, d_mu, d_var, d_cov, v_map):  # type: ignore[no-untyped-def]
    return image1.new_empty(image1.shape)


def _ssim_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no image-sized zeros for the derivatives


def _ssim_backward(ctx, v_map, *_unused):  # type: ignore[no-untyped-def]
    if v_map is None:
        return None, None
    if ctx.needs_input_grad[1]:
        raise ValueError("image2 requires a gradient, but ssim_map is differentiable in image1 only")
    return _ops.ssim_backward(*ctx.saved_tensors, v_map), None


torch.library.register_autograd("gsfields::ssim", _ssim_backward, setup_context=_ssim_setup)

"""Projection, spherical harmonics and binning: from Gaussians to splats in the lists of their tiles."""

import torch
from torch import Tensor

from gsfields.ops.library import TILE, native, same_device


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
    return native.project(
        means, quats, scales, opacities, viewmats, Ks, width, height, near, far, eps2d, antialiased
    )


@torch.library.register_fake("gsfields::project")
def _(means, quats, scales, opacities, viewmats, Ks, width, height, near, far, eps2d, antialiased):  # type: ignore[no-untyped-def]
    same_device(means=means, quats=quats, scales=scales, opacities=opacities, viewmats=viewmats, Ks=Ks)
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
    *grads, v_viewmats = native.project_backward(*inputs, radii, *upstream, *ctx.settings, to_viewmats)
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
    return native.spherical_harmonics(dirs, sh0, shN, masks, degree)


@torch.library.register_fake("gsfields::spherical_harmonics")
def _(dirs, sh0, shN, masks, degree):  # type: ignore[no-untyped-def]
    same_device(dirs=dirs, sh0=sh0, shN=shN, masks=masks)
    return dirs.new_empty(dirs.shape[0], dirs.shape[1], sh0.shape[2])


@torch.library.register_fake("gsfields::spherical_harmonics_backward")
def _(dirs, sh0, shN, masks, degree, v_colors):  # type: ignore[no-untyped-def]
    return tuple(t.new_empty(t.shape) for t in (dirs, sh0, shN))


def _sh_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    dirs, sh0, shN, masks, ctx.degree = inputs
    ctx.save_for_backward(dirs, sh0, shN, masks)


def _sh_backward(ctx, v_colors):  # type: ignore[no-untyped-def]
    grads = native.spherical_harmonics_backward(*ctx.saved_tensors, ctx.degree, v_colors)
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
    return native.bin_tiles(means2d, depths, conics, opacities2d, radii, width, height)


def _tiles(width: int, height: int) -> int:
    return ((width + TILE - 1) // TILE) * ((height + TILE - 1) // TILE)


@torch.library.register_fake("gsfields::bin_tiles")
def _(means2d, depths, conics, opacities, radii, width, height):  # type: ignore[no-untyped-def]
    same_device(means2d=means2d, depths=depths, conics=conics, opacities=opacities, radii=radii)
    pairs = torch.library.get_ctx().new_dynamic_size()
    offsets = means2d.shape[0] * _tiles(width, height) + 1
    return means2d.new_empty(pairs, dtype=torch.int32), means2d.new_empty(offsets, dtype=torch.int64)

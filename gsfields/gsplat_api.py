"""gsplat's rasterization() on gsfields' kernels: code written for gsplat 1.5 runs here by changing an import."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gsfields import ops
from gsfields.plans import Plan
from gsfields.rendering import view_colors

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]


def rasterization(  # gsplat's signature
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,
    render_mode: RenderMode = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: Literal["classic", "antialiased"] = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: Literal["pinhole", "ortho", "fisheye", "ftheta"] = "pinhole",
    segmented: bool = False,
    covars: Tensor | None = None,
    with_ut: bool = False,
    with_eval3d: bool = False,
    radial_coeffs: Tensor | None = None,
    tangential_coeffs: Tensor | None = None,
    thin_prism_coeffs: Tensor | None = None,
    ftheta_coeffs: Any = None,
    rolling_shutter: Any = None,
    viewmats_rs: Tensor | None = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Rasterizes N Gaussians into C views; arguments and results are those of gsplat.rasterization.

    Args:
        means [N, 3], quats [N, 4] wxyz, scales [N, 3], opacities [N]: the Gaussians, world frame.
        colors: [N, D] or [C, N, D]; with sh_degree, SH coefficients [N, K, 3] or [C, N, K, 3].
        viewmats [C, 4, 4] world→camera, Ks [C, 3, 3], width, height: the views.
        near_plane, far_plane, radius_clip, eps2d: culling and blur, as gsplat.
        packed: layout of `meta`, [nnz, ...] over visible pairs or [C, N, ...].
        backgrounds: [C, D].
        render_mode: colours, accumulated (D) or expected (ED) depth as last channel, or depth alone.
        absgrad: after backward, meta["means2d"].absgrad holds the sum over pixels of |gradient|.
        rasterize_mode: "antialiased" compensates opacities for eps2d.
        channel_chunk, segmented: accepted, and without effect: any number of channels takes one pass.

    Returns colours [C, H, W, X], alphas [C, H, W, 1], and meta with gsplat's keys except `isect_ids`.

    Differences from gsplat 1.5: alpha is clamped at 0.99 (as gsplat 1.6; 1.5 has 0.999), and radii are those of the
    ellipse where alpha reaches 1/255.

    Raises NotImplementedError, naming the argument, for what is not supported: leading batch dimensions, covars,
    sparse_grad, distributed, cameras other than pinhole, with_ut, with_eval3d, lens distortion, rolling shutter,
    tile sizes other than 16. Raises ValueError for bad arguments.
    """
    _refuse_unsupported(
        {
            "sparse_grad": sparse_grad,
            "distributed": distributed,
            "with_ut": with_ut,
            "with_eval3d": with_eval3d,
            "covars": covars is not None,
            "radial_coeffs": radial_coeffs is not None,
            "tangential_coeffs": tangential_coeffs is not None,
            "thin_prism_coeffs": thin_prism_coeffs is not None,
            "ftheta_coeffs": ftheta_coeffs is not None,
            "viewmats_rs": viewmats_rs is not None,
            f"rolling_shutter={rolling_shutter}": getattr(rolling_shutter, "name", "GLOBAL") != "GLOBAL",
            f"camera_model={camera_model!r}": camera_model != "pinhole",
            f"tile_size={tile_size}": tile_size != ops.TILE,
            "leading batch dimensions of means": means.dim() != 2,
        }
    )
    if render_mode not in ("RGB", "D", "ED", "RGB+D", "RGB+ED"):
        raise ValueError(f"render_mode is {render_mode!r}, but must be 'RGB', 'D', 'ED', 'RGB+D' or 'RGB+ED'")
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(f"rasterize_mode is {rasterize_mode!r}, but must be 'classic' or 'antialiased'")

    *geometry, radii = ops.project(
        means, quats, scales, opacities, viewmats, Ks, width, height,
        near=near_plane, far=far_plane, eps2d=eps2d, antialiased=rasterize_mode == "antialiased",
    )  # fmt: skip
    radii = radii * (radii > radius_clip).any(-1, keepdim=True)
    visible = (radii > 0).all(-1)
    meta: dict[str, Any] = {}
    means2d = geometry[0]
    if packed:
        camera_ids, gaussian_ids = visible.nonzero(as_tuple=True)
        means2d = geometry[0][camera_ids, gaussian_ids]
        # Gradients must pass through the packed tensor, which callers may retain.
        geometry[0] = torch.zeros_like(geometry[0]).index_put((camera_ids, gaussian_ids), means2d)
        meta |= {
            "batch_ids": torch.zeros_like(camera_ids),
            "camera_ids": camera_ids,
            "gaussian_ids": gaussian_ids,
        }
    else:
        meta |= {"batch_ids": None, "camera_ids": None, "gaussian_ids": None}
    plan = Plan((*geometry, radii), width, height, batched=True, absgrad=absgrad)

    values, background = _channels(plan, means, colors, viewmats, sh_degree, backgrounds, render_mode)
    image = plan.blend(values, background)
    alphas = plan.alpha
    if render_mode in ("ED", "RGB+ED"):
        image = torch.cat([image[..., :-1], image[..., -1:] / alphas.clamp_min(1e-10)], -1)

    def layout(t: Tensor) -> Tensor:
        return t[meta["camera_ids"], meta["gaussian_ids"]] if packed else t

    if absgrad:
        assert plan._absgrad_sink is not None
        plan._absgrad_sink.register_hook(lambda grad: setattr(means2d, "absgrad", layout(grad)))
    views, tiles_x, tiles_y = len(viewmats), -(-width // tile_size), -(-height // tile_size)
    meta |= {
        "means2d": means2d,
        "radii": layout(radii),
        "depths": layout(plan.depths),
        "conics": layout(plan.conics),
        "opacities": layout(plan.opacities),
        "tile_width": tiles_x,
        "tile_height": tiles_y,
        "width": width,
        "height": height,
        "tile_size": tile_size,
        "n_batches": 1,
        "n_cameras": views,
        **_intersections(plan, visible, packed, tiles_x, tiles_y),
    }
    return image, alphas, meta


def _refuse_unsupported(given: dict[str, bool]) -> None:
    for name, asked in given.items():
        if asked:
            raise NotImplementedError(f"{name} is not supported by gsfields.rasterization")


def _channels(
    plan: Plan,
    means: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    sh_degree: int | None,
    backgrounds: Tensor | None,
    render_mode: RenderMode,
) -> tuple[Tensor, Tensor | None]:
    """The values to blend ([N, X] or [C, N, X]) and their background ([C, X])."""
    views, N = plan.depths.shape
    depths = plan.depths.unsqueeze(-1)
    if render_mode in ("D", "ED"):
        return depths, None
    if sh_degree is None:
        values = colors
    elif colors.dim() == 3:
        values = view_colors(means, colors[:, :1], colors[:, 1:], viewmats, sh_degree, plan.visible)
    elif colors.dim() == 4 and len(colors) == views:
        # Coefficients of their own for every view: one view at a time.
        values = torch.cat(
            [
                view_colors(means, colors[v, :, :1], colors[v, :, 1:], viewmats[v : v + 1], sh_degree)
                for v in range(views)
            ]
        )
    else:
        raise ValueError(
            f"colors has shape {list(colors.shape)}, but with sh_degree must be [{N}, K, 3] or [{views}, {N}, K, 3]"
        )
    if values.dim() not in (2, 3) or values.shape[-2] != N:
        raise ValueError(f"colors has shape {list(colors.shape)}, but must be [{N}, D] or [{views}, {N}, D]")
    if backgrounds is not None and backgrounds.shape != (views, values.shape[-1]):
        raise ValueError(
            f"backgrounds has shape {list(backgrounds.shape)}, but must be [{views}, {values.shape[-1]}]"
        )
    if render_mode == "RGB":
        return values, backgrounds
    values = torch.cat([values.expand(views, N, -1), depths], -1)
    if backgrounds is not None:
        backgrounds = torch.cat([backgrounds, backgrounds.new_zeros(views, 1)], -1)
    return values, backgrounds


def _intersections(
    plan: Plan, visible: Tensor, packed: bool, tiles_x: int, tiles_y: int
) -> dict[str, Tensor]:
    """gsplat's tile lists: flatten_ids index the flattened [C * N] pairs, or the packed ones."""
    views, N = visible.shape
    tiles = tiles_x * tiles_y
    offsets = plan.tile_offsets[:-1].reshape(views, tiles_y, tiles_x)
    per_view = plan.tile_offsets[::tiles].diff() if views else plan.tile_offsets[:0]
    flat = plan.ids + torch.repeat_interleave(torch.arange(views, device=visible.device) * N, per_view)
    counts = torch.bincount(flat, minlength=views * N).to(torch.int32).reshape(views, N)
    if packed:
        flat = (visible.flatten().cumsum(0) - 1)[flat]
        counts = counts[visible]
    return {
        "isect_offsets": offsets.to(torch.int32),
        "flatten_ids": flat.to(torch.int32),
        "tiles_per_gauss": counts,
    }

"""Rendering: one projection and one sort per view (a Plan), then as many blends as you like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from gsfields import ops
from gsfields.camera import Camera

if TYPE_CHECKING:
    from gsfields.gaussians import Gaussians


class Plan:
    """Gaussians projected, culled and sorted for one view or B views, ready to blend any values.

    Everything that depends on geometry alone is computed once, in plan(); each blend() then walks the tile lists.
    All results are differentiable with respect to whatever the plan was made from. The lists cost 4 bytes per
    (Gaussian, tile) pair and 8 per tile; the projection costs 36 bytes per Gaussian and view in float32.

    Attributes (N Gaussians, B views):
        means2d: [B, N, 2] in pixels; depths: [B, N] camera z; conics: [B, N, 3]; opacities: [B, N];
        radii: [B, N, 2] int32 in pixels, 0 where culled;
        ids: [I] int32 and tile_offsets: [B * tiles + 1] int64, see ops.bin_tiles();
        width, height: image size in pixels.
    Without a batch (viewmats of shape [4, 4]) images lose their leading B; the attributes keep it, as B = 1.
    """

    def __init__(
        self, projected: tuple[Tensor, ...], width: int, height: int, *, batched: bool, absgrad: bool = False
    ) -> None:
        self.means2d, self.depths, self.conics, self.opacities, self.radii = projected
        self.width, self.height = width, height
        self.batched = batched
        self.ids, self.tile_offsets = ops.bin_tiles(
            self.means2d.detach(), self.depths.detach(), self.conics.detach(), self.opacities.detach(),
            self.radii, width, height,
        )  # fmt: skip
        self._absgrad_sink = torch.zeros_like(self.means2d).requires_grad_() if absgrad else None
        self._transmittance: Tensor | None = None

    @property
    def visible(self) -> Tensor:
        """[B, N] bool: inside the view and able to reach alpha 1/255 at some point of it."""
        return (self.radii > 0).all(-1)

    @property
    def absgrad(self) -> Tensor | None:
        """[B, N, 2] sum over pixels of |dL/dmeans2d|, after backward(); None before, or without absgrad=True."""
        return None if self._absgrad_sink is None else self._absgrad_sink.grad

    def blend(self, values: Tensor, background: Tensor | None = None) -> Tensor:
        """Composites values [N, C] (or one set per view, [B, N, C]) into an image [H, W, C] ([B, H, W, C]).

        Any C >= 1. `background` [C] (or [B, C]) is seen through the remaining transmittance. Raises ValueError
        for wrong shapes, dtypes or devices.
        """
        image, self._transmittance = ops.blend(
            values, self.means2d, self.conics, self.opacities, self.ids, self.tile_offsets,
            self.width, self.height, background, self._absgrad_sink,
        )  # fmt: skip
        return self._unbatch(image)

    @property
    def alpha(self) -> Tensor:
        """Accumulated opacity 1 - T, [H, W, 1] ([B, H, W, 1])."""
        kept = self._transmittance
        # A blend under no_grad leaves a transmittance that gradients could not pass through.
        if kept is None or (
            torch.is_grad_enabled() and self.means2d.requires_grad and not kept.requires_grad
        ):
            self.blend(torch.ones_like(self.depths[0]).unsqueeze(-1))
            kept = self._transmittance
        assert kept is not None
        return self._unbatch(1 - kept.unsqueeze(-1))

    def depth(self, mode: Literal["expected", "accumulated"] = "expected") -> Tensor:
        """Depth along the camera's z axis in world units, [H, W, 1] ([B, H, W, 1]).

        "accumulated": sum of weights times depths; "expected": the same divided by alpha, 0 where alpha is 0.
        """
        if mode not in ("expected", "accumulated"):
            raise ValueError(f"mode is {mode!r}, but must be 'expected' or 'accumulated'")
        image = self.blend(self.depths.unsqueeze(-1))
        if mode == "accumulated":
            return image
        # The smallest alpha of a pixel that anything touches is 1/255.
        return image / self.alpha.clamp_min(1e-6)

    def _unbatch(self, image: Tensor) -> Tensor:
        return image if self.batched else image[0]


def plan(
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
    absgrad: bool = False,
) -> Plan:
    """Projects and sorts Gaussians for one view (viewmats [4, 4], Ks [3, 3]) or B views ([B, 4, 4], [B, 3, 3]).

    The arguments are those of ops.project(); absgrad=True makes the plan collect Plan.absgrad. Raises ValueError
    for bad arguments.
    """
    if viewmats.dim() not in (2, 3) or Ks.dim() != viewmats.dim():
        raise ValueError(
            f"viewmats has shape {list(viewmats.shape)} and Ks {list(Ks.shape)}, but they must be [4, 4] and [3, 3], "
            "or [B, 4, 4] and [B, 3, 3]"
        )
    batched = viewmats.dim() == 3
    projected = ops.project(
        means, quats, scales, opacities,
        viewmats if batched else viewmats.unsqueeze(0), Ks if batched else Ks.unsqueeze(0),
        width, height, near=near, far=far, eps2d=eps2d, antialiased=antialiased,
    )  # fmt: skip
    return Plan(projected, width, height, batched=batched, absgrad=absgrad)


@dataclass
class Rendering:
    """What render() returns: color [H, W, 3], alpha [H, W, 1] (a leading B for batched cameras), and the Plan."""

    color: Tensor
    alpha: Tensor
    plan: Plan

    @property
    def depth(self) -> Tensor:
        """Expected depth along the camera's z axis, [H, W, 1], world units."""
        return self.plan.depth()


def view_colors(
    means: Tensor, sh0: Tensor, shN: Tensor, viewmats: Tensor, degree: int, visible: Tensor | None = None
) -> Tensor:
    """Colours [B, N, D] of Gaussians as seen from the camera centres: SH + 1/2, clamped at 0 (Kerbl et al. 2023)."""
    rotations, translations = viewmats[:, :3, :3], viewmats[:, :3, 3:]
    centres = -(rotations.transpose(1, 2) @ translations)[..., 0]
    dirs = means.unsqueeze(0) - centres.unsqueeze(1)
    colors = ops.spherical_harmonics_split(degree, dirs, sh0, shN, visible)
    return (colors + 0.5).clamp_min(0)


def render(
    gaussians: Gaussians,
    camera: Camera,
    *,
    background: Tensor | None = None,
    sh_degree: int | None = None,
    antialiased: bool = False,
    absgrad: bool = False,
    near: float = 0.01,
    far: float = 1e10,
    eps2d: float = 0.3,
) -> Rendering:
    """Renders colour and alpha of a Gaussian set from a camera.

    sh_degree limits the spherical harmonics (default: all that the set has); background is [3] or [B, 3].
    The other arguments are those of plan().
    """
    built = plan(
        gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, camera.viewmat, camera.K,
        camera.width, camera.height, near=near, far=far, eps2d=eps2d, antialiased=antialiased, absgrad=absgrad,
    )  # fmt: skip
    viewmats = camera.viewmat if built.batched else camera.viewmat.unsqueeze(0)
    degree = gaussians.sh_degree if sh_degree is None else min(sh_degree, gaussians.sh_degree)
    colors = view_colors(gaussians.means, gaussians.sh0, gaussians.shN, viewmats, degree, built.visible)
    color = built.blend(colors, background)
    return Rendering(color, built.alpha, built)

"""Rendering colour, alpha and depth of a Gaussian set from a camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from gsfields import ops
from gsfields.camera import Camera
from gsfields.plans import Plan, plan

if TYPE_CHECKING:
    from gsfields.gaussians import Gaussians


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

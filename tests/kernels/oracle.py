"""Dense references for every kernel, in plain torch, differentiable by autograd.

Nothing here is fast, tiled or clever: each function is the definition of what its kernel must return, written
from the formula and not from the kernel. Shapes and names are those of `gsfields.ops`; run them in float64.
"""

from __future__ import annotations

from math import factorial, pi, sqrt
from typing import NamedTuple

import torch
from numpy.polynomial import legendre, polynomial
from torch import Tensor
from torch.nn import functional as F

ALPHA_MIN = 1 / 255  # a fainter Gaussian is skipped at that pixel
ALPHA_MAX = 0.99  # alpha is clamped here, so that 1 - alpha never reaches 0
TRANSMITTANCE_MIN = 1e-4  # a pixel stops before the Gaussian that would bring T here or below
TILE = 16


class Projection(NamedTuple):
    means2d: Tensor  # [B, N, 2] pixels
    depths: Tensor  # [B, N]
    conics: Tensor  # [B, N, 3]
    opacities2d: Tensor  # [B, N]
    radii: Tensor  # [B, N, 2] int32, 0 where culled


def rotation(quats: Tensor) -> Tensor:
    """Rotation matrices [N, 3, 3] of quaternions [N, 4] (wxyz), through v -> v + 2w(u x v) + 2u x (u x v)."""
    w, u = (quats / quats.norm(dim=-1, keepdim=True)).split([1, 3], dim=-1)
    identity = torch.eye(3, dtype=quats.dtype, device=quats.device)
    columns = []
    for axis in identity:
        v = axis.expand_as(u)
        uv = torch.linalg.cross(u, v)
        columns.append(v + 2 * w * uv + 2 * torch.linalg.cross(u, uv))
    return torch.stack(columns, dim=-1)


def project_view(means, quats, scales, opacities, viewmat, K, width, height, eps2d, antialiased):
    """EWA splatting (Zwicker et al. 2002) of all Gaussians into one view, nothing culled.

    Returns means2d, depths, conics, opacities2d and the 2D covariances [N, 2, 2].
    """
    world_to_camera = viewmat[:3, :3]
    x, y, z = (means @ world_to_camera.T + viewmat[:3, 3]).unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1)

    # The Jacobian is taken at a point clamped to a margin of 0.3 half-widths about the frustum, as in 3DGS.
    u = (x / z).clamp(-(cx + 0.15 * width) / fx, (1.15 * width - cx) / fx)
    v = (y / z).clamp(-(cy + 0.15 * height) / fy, (1.15 * height - cy) / fy)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [torch.stack([fx / z, zero, -fx * u / z], -1), torch.stack([zero, fy / z, -fy * v / z], -1)], dim=-2
    )
    half = jacobian @ world_to_camera @ rotation(quats) @ torch.diag_embed(scales)  # [N, 2, 3]
    sharp = half @ half.mT
    covariances = sharp + eps2d * torch.eye(2, dtype=means.dtype, device=means.device)
    determinants = torch.linalg.det(covariances)
    conics = torch.stack(
        [covariances[:, 1, 1], -covariances[:, 0, 1], covariances[:, 0, 0]], dim=-1
    ) / determinants.unsqueeze(-1)
    if antialiased:
        # det of a [2, 3] half times its transpose = sum of its squared minors: never negative.
        minors = torch.linalg.cross(half[:, 0], half[:, 1])
        opacities = opacities * minors.norm(dim=-1) / determinants.sqrt()
    return means2d, z, conics, opacities, covariances


def extents(covariances: Tensor, opacities2d: Tensor) -> Tensor:
    """Half width and height [N, 2] of the ellipse where alpha >= 1/255; 0 where no pixel can reach it."""
    reach = 2 * torch.log(opacities2d.clamp_min(1e-30) / ALPHA_MIN)
    return (reach.clamp_min(0).unsqueeze(-1) * covariances.diagonal(dim1=-2, dim2=-1)).sqrt()


def project(
    means,
    quats,
    scales,
    opacities,
    viewmats,
    Ks,
    width,
    height,
    *,
    near=0.01,
    far=1e10,
    eps2d=0.3,
    antialiased=False,
) -> Projection:
    views = []
    for viewmat, K in zip(viewmats, Ks, strict=True):

        def splat(index, viewmat=viewmat, K=K):
            chosen = (means[index], quats[index], scales[index], opacities[index])
            return project_view(*chosen, viewmat, K, width, height, eps2d, antialiased)

        with torch.no_grad():
            means2d, depths, conics, opacities2d, covariances = splat(slice(None))
            reach = extents(covariances, opacities2d)
            finite = (
                torch.cat([means2d, conics, opacities2d[:, None], depths[:, None], reach], dim=-1)
                .isfinite()
                .all(-1)
            )
            on_screen = ((means2d + reach > 0) & (means2d - reach < means2d.new_tensor([width, height]))).all(
                -1
            )
            visible = finite & on_screen & (depths > near) & (depths < far) & (opacities2d >= ALPHA_MIN)
            index = visible.nonzero().squeeze(-1)
        # Only the visible are put through autograd: a culled Gaussian has zero outputs and zero gradients.
        outputs = [
            torch.zeros(len(means), *kept.shape[1:], dtype=kept.dtype, device=kept.device).index_put(
                (index,), kept
            )
            for kept in splat(index)[:4]
        ]
        views.append((*outputs, torch.where(visible[:, None], reach.ceil(), 0).int()))
    return Projection(*(torch.stack(parts) for parts in zip(*views, strict=True)))


def spherical_harmonics(degree: int, dirs: Tensor, coeffs: Tensor, masks: Tensor | None = None) -> Tensor:
    """Real spherical harmonics with the Condon-Shortley phase, straight from the Legendre polynomials.

    Y_lm = (-1)^m sqrt(2) N_lm P_l^(m)(z) Re or Im (x + iy)^m, ordered l, then m = -l..l.
    """
    x, y, z = (dirs / dirs.norm(dim=-1, keepdim=True)).unbind(-1)
    basis = []
    for l in range(degree + 1):
        for m in range(-l, l + 1):
            order = abs(m)
            real, imaginary = torch.ones_like(x), torch.zeros_like(x)
            for _ in range(order):
                real, imaginary = real * x - imaginary * y, real * y + imaginary * x
            derivative = polynomial.polyder(legendre.leg2poly([0] * l + [1]), order)
            value = sum(float(c) * z**power for power, c in enumerate(derivative)) * torch.ones_like(z)
            norm = sqrt((2 * l + 1) / (4 * pi) * factorial(l - order) / factorial(l + order))
            norm *= (-1) ** order * (sqrt(2) if order else 1)
            basis.append(norm * value * (imaginary if m < 0 else real))
    colors = torch.einsum("bnk,nkd->bnd", torch.stack(basis, dim=-1), coeffs[:, : len(basis)])
    return colors if masks is None else torch.where(masks.unsqueeze(-1), colors, 0)


class Weights(NamedTuple):
    weights: Tensor  # [P, K] share of each Gaussian in each pixel, front to back
    transmittance: Tensor  # [P]
    order: Tensor  # [K] which Gaussians, front to back
    band: Tensor  # [P] bool: some decision at this pixel is too close to call in float32
    kink: Tensor  # [P] bool: likewise for the gradient (alpha within reach of its clamp)


def pixel_centres(width: int, height: int, like: Tensor) -> Tensor:
    rows, columns = torch.arange(height).to(like) + 0.5, torch.arange(width).to(like) + 0.5
    return torch.cartesian_prod(rows, columns).reshape(-1, 2).flip(-1)  # [P, 2] xy, row-major


def weights_of_view(means2d, conics, opacities2d, depths, radii, width, height, tolerance=1e-4) -> Weights:
    """What every pixel takes from every Gaussian. means2d is [N, 2], or [P, N, 2] with one copy per pixel."""
    order = torch.argsort(depths, stable=True)  # ties by index
    order = order[(radii[order] > 0).all(-1)]
    dx, dy = (pixel_centres(width, height, means2d)[:, None] - means2d[..., order, :]).unbind(-1)
    a, b, c = conics[order].unbind(-1)
    raw = opacities2d[order] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
    alpha = torch.where(raw >= ALPHA_MIN, raw.clamp(max=ALPHA_MAX), 0)
    after = (1 - alpha).cumprod(dim=-1)
    blended = after > TRANSMITTANCE_MIN  # T only falls, so this is a prefix
    alpha = torch.where(blended, alpha, 0)
    after = (1 - alpha).cumprod(dim=-1)
    before = torch.cat([after.new_ones(len(after), 1), after], dim=-1)
    with torch.no_grad():
        uncut = torch.where(raw >= ALPHA_MIN, raw.clamp(max=ALPHA_MAX), 0)
        uncut = (1 - uncut).cumprod(dim=-1)
        alive = before[:, :-1] > TRANSMITTANCE_MIN * (1 - tolerance)
        near_cutoff = ((raw / ALPHA_MIN - 1).abs() < tolerance) & alive
        near_end = ((uncut / TRANSMITTANCE_MIN - 1).abs() < 10 * tolerance) & (raw >= ALPHA_MIN)
        near_clamp = ((raw / ALPHA_MAX - 1).abs() < tolerance) & alive
        band = (near_cutoff | near_end).any(-1)
    return Weights(alpha * before[:, :-1], before[:, -1], order, band, band | near_clamp.any(-1))


class Composite(NamedTuple):
    image: Tensor  # [B, H, W, C]
    transmittance: Tensor  # [B, H, W]
    band: Tensor  # [B, H, W] bool
    kink: Tensor  # [B, H, W] bool


def composite(
    values, means2d, conics, opacities2d, depths, radii, width, height, background=None
) -> Composite:
    """The blend, pixel by pixel over all Gaussians: image = W V + T background.

    values [N, C] or [B, N, C]; means2d [B, N, 2], or [B, P, N, 2] to tell apart what each pixel asks of it.
    """
    views = []
    for b in range(len(conics)):
        w = weights_of_view(means2d[b], conics[b], opacities2d[b], depths[b], radii[b], width, height)
        image = w.weights @ (values if values.ndim == 2 else values[b])[w.order]
        if background is not None:
            image = image + w.transmittance[:, None] * (background if background.ndim == 1 else background[b])
        shape = (height, width)
        views.append(
            (image.reshape(*shape, -1), *(t.reshape(shape) for t in (w.transmittance, w.band, w.kink)))
        )
    return Composite(*(torch.stack(parts) for parts in zip(*views, strict=True)))


def tile_lists(means2d, conics, opacities2d, depths, radii, width, height) -> list[list[int]]:
    """Per tile, the Gaussians with a pixel centre at alpha >= 1/255, front to back. One view."""
    centres = pixel_centres(width, height, means2d)
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    tile_of_pixel = (centres[:, 1] // TILE * tiles_x + centres[:, 0] // TILE).long()
    order = [int(i) for i in torch.argsort(depths, stable=True) if (radii[i] > 0).all()]
    dx, dy = (centres[:, None] - means2d).unbind(-1)
    a, b, c = conics.unbind(-1)
    hit = opacities2d * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy) >= ALPHA_MIN
    touched = torch.zeros(tiles_x * tiles_y, len(means2d), dtype=torch.long, device=means2d.device)
    touched.index_add_(0, tile_of_pixel, hit.long())
    return [[i for i in order if touched[t, i]] for t in range(tiles_x * tiles_y)]


def ssim_map(image1: Tensor, image2: Tensor) -> Tensor:
    """SSIM of Wang et al. 2004 per pixel and channel: 11x11 Gaussian window, sigma 1.5, zeros outside."""
    offsets = torch.arange(-5, 6).to(image1)
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    channels = image1.shape[-1]

    def mean(image: Tensor) -> Tensor:
        return F.conv2d(
            image.movedim(-1, 1), window.expand(channels, 1, 11, 11), padding=5, groups=channels
        ).movedim(1, -1)

    mu1, mu2 = mean(image1), mean(image2)
    variance1, variance2 = mean(image1 * image1) - mu1 * mu1, mean(image2 * image2) - mu2 * mu2
    covariance = mean(image1 * image2) - mu1 * mu2
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mu1 * mu2 + c1) * (2 * covariance + c2)) / (
        (mu1**2 + mu2**2 + c1) * (variance1 + variance2 + c2)
    )

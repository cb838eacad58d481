"""Where the Gaussians of a layered fit start: static points without structure from motion, a far shell, and the
seeds of the moving layers, drawn where motion masks and what the static layer leaves unexplained say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gsfields.camera import Camera
from gsfields.gaussians import Gaussians

_PLANES = 48  # inverse depths that a plane sweep tries
_VIEWS = 12  # images that a candidate is compared with
_QUANTILE = 0.4  # of the errors over those images: up to 60 % of them may be occluded


@dataclass
class Picture:
    """What seeding knows of a training image, at the size it works at."""

    camera: Camera
    image: Tensor  # [H, W, 3]
    motion: Tensor  # [H, W] in [0, 1], 0 where nothing is known
    frame: float  # time in frames
    halfway: tuple[float, float]  # times in frames, to the pictures before and after it
    scored: bool = True  # whether motion is known


@dataclass
class Seeds:
    """Places of new Gaussians: in the world, or in the frame of the camera of their picture."""

    means: Tensor  # [M, 3]
    colors: Tensor  # [M, 3]
    scales: Tensor  # [M], world units
    frames: Tensor  # [M], time in frames
    windows: Tensor  # [M, 2], middle and log half length of the time from halfway to halfway

    @classmethod
    def joined(cls, many: Sequence[Seeds]) -> Seeds:
        """All of them in order; M = 0 where there are none."""
        if not many:
            empty = torch.zeros(0, 3)
            return cls(empty, empty, empty[:, 0], empty[:, 0], empty[:, :2])
        names = ("means", "colors", "scales", "frames", "windows")
        return cls(*(torch.cat([getattr(seeds, name) for seeds in many]) for name in names))

    def gaussians(self, opacity: float) -> Gaussians:
        """Round Gaussians of SH degree 0 at the seeds."""
        if not len(self.means):
            return Gaussians(*(torch.zeros(0, *s) for s in ((3,), (4,), (3,), (), (1, 3), (0, 3))))
        made = Gaussians.from_points(self.means, self.colors, sh_degree=0, opacity=opacity, scale=1.0)
        made.log_scales = self.scales.log()[:, None].repeat(1, 3)
        return made


# ------------------------------------------------------------------------------------------------- static layer


@torch.no_grad()
def photo_consistent_points(
    pictures: Sequence[Picture],
    count: int,
    depths: tuple[float, float],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """(points [M, 3], colours [M, 3]) in the world, from a plane sweep; M is about 0.8 count.

    Random pixels that do not move are put at `_PLANES` depths between `depths` (near, far), evenly in inverse depth;
    the depth whose projections into other images look most alike is kept, and the worst fifth of the points dropped.
    What is compared are colours and gradients of slightly blurred images, which hold what a small patch would.
    """
    near, far = depths
    features = [_features(p.image) for p in pictures]  # each [5, H, W]
    per_picture = torch.randint(len(pictures), (count,), generator=generator).bincount(
        minlength=len(pictures)
    )
    inverse = torch.linspace(1 / near, 1 / far, _PLANES)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for i, (picture, n) in enumerate(zip(pictures, per_picture.tolist(), strict=True)):
        if n == 0:
            continue
        still = (1 - picture.motion).square().flatten() + 1e-6
        pixel = torch.multinomial(still, n, replacement=True, generator=generator)
        rays = _rays(picture.camera, pixel)  # [n, 3], z = 1
        points = _to_world(picture.camera, rays[:, None] / inverse[None, :, None])  # [n, planes, 3]
        own = features[i].flatten(1)[:, pixel].T  # [n, 5]
        others = _neighbours(i, len(pictures), generator)
        error = torch.stack([_mismatch(points, own, pictures[j], features[j]) for j in others])
        best, plane = error.nanquantile(_QUANTILE, dim=0).nan_to_num(nan=math.inf).min(dim=1)
        found.append((points[torch.arange(n), plane], picture.image.reshape(-1, 3)[pixel], best))
    points, colors, errors = (torch.cat(parts) for parts in zip(*found, strict=True))
    good = errors <= errors[errors.isfinite()].quantile(0.8) if bool(errors.isfinite().any()) else errors > -1
    return points[good], colors[good].clamp(0, 1)


def _neighbours(i: int, count: int, generator: torch.Generator) -> list[int]:
    """Indices of other pictures: near ones in time, which overlap, and as many random ones, which revisit."""
    near = [j for step in (1, 2, 4, 8) for j in (i - step, i + step) if 0 <= j < count]
    chosen = near[: _VIEWS // 2 + 2]
    for j in torch.randperm(count, generator=generator).tolist():
        if len(chosen) >= _VIEWS:
            break
        if j != i and j not in chosen:
            chosen.append(j)
    return chosen


def _features(image: Tensor) -> Tensor:
    """[5, H, W]: blurred colours and gradients of brightness, of an image [H, W, 3]."""
    pixels = F.avg_pool2d(image.permute(2, 0, 1)[None], 3, 1, 1, count_include_pad=False)
    gray = pixels.mean(dim=1, keepdim=True)
    padded = F.pad(gray, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) * 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) * 2
    return torch.cat((pixels, across, down), dim=1)[0]


def _mismatch(points: Tensor, own: Tensor, other: Picture, features: Tensor) -> Tensor:
    """Mean absolute difference of features [n, planes] at the projections of points; NaN where not comparable."""
    camera, motion = other.camera, other.motion
    uv, z = _project(camera, points)
    size = uv.new_tensor([camera.width, camera.height])
    grid = (2 * uv / size - 1)[None]
    seen = F.grid_sample(features[None], grid, align_corners=False, padding_mode="border")[
        0
    ]  # [5, n, planes]
    moving = F.grid_sample(motion[None, None], grid, align_corners=False)[0, 0]
    error = (seen - own.T[:, :, None]).abs().mean(dim=0)
    outside = (grid[0].abs() > 1).any(dim=-1) | (z <= 0) | (moving > 0.5)
    return error.masked_fill(outside, math.nan)


def shell(cameras: Sequence[Camera], count: int, radius: float, generator: torch.Generator) -> Gaussians:
    """About `count` opaque Gaussians on a sphere of `radius` about the mean camera, in directions that are seen.

    They are grey; a fit colours them.
    """
    center = torch.stack([c.position for c in cameras]).mean(dim=0)
    n = count
    for _ in range(6):  # the more of the sphere is unseen, the denser it must be
        spacing = radius * math.sqrt(4 * math.pi / n)
        points = center + radius * _fibonacci_sphere(n)
        visible = torch.zeros(n, dtype=torch.bool)
        for camera in cameras[:: max(1, len(cameras) // 100)]:
            uv, z = _project(camera, points)
            margin = 0.25 * max(camera.width, camera.height)
            upper = uv.new_tensor([camera.width, camera.height]) + margin
            visible |= (z > 0) & (uv > -margin).all(dim=-1) & (uv < upper).all(dim=-1)
        found = int(visible.sum())
        if found >= 0.7 * count:
            break
        n = int(n * min(4.0, count / max(found, count / 8)))
    points = points[visible]
    return Gaussians.from_points(
        points, torch.full_like(points, 0.5), sh_degree=0, opacity=0.98, scale=0.7 * spacing
    )


def _fibonacci_sphere(n: int) -> Tensor:
    """[n, 3] unit vectors, evenly spread."""
    i = torch.arange(n, dtype=torch.float64)  # the angle of the last point is large
    z = 1 - (2 * i + 1) / n
    turn = i * (math.pi * (3 - math.sqrt(5)))
    across = (1 - z * z).sqrt()
    return torch.stack((across * turn.cos(), across * turn.sin(), z), dim=-1).float()


# ------------------------------------------------------------------------------------------------ moving layers


@dataclass
class Unexplained:
    """A picture with what the static layer makes of it."""

    picture: Picture
    residual: Tensor  # [H, W] smoothed colour error of the static layer
    depth: Tensor  # [H, W] of the static layer, world units
    usual: Tensor  # [H, W]: the least error of what shows there, over parts of the video


def widened(image: Tensor, share: int) -> Tensor:
    """Each pixel of an image [H, W] becomes the greatest within a square of 1/share of the width, 3 pixels at least."""
    k = max(3, image.shape[1] // share | 1)
    return F.max_pool2d(image[None, None], k, 1, k // 2)[0, 0]


@torch.no_grad()
def smoothed_residual(rendered: Tensor, image: Tensor) -> Tensor:
    """Mean absolute colour error [H, W], smoothed over about 1/40 of the width: single pixels are noise."""
    error = (rendered - image).abs().mean(dim=-1)
    k = max(3, image.shape[1] // 40 | 1)
    return F.avg_pool2d(error[None, None], k, 1, k // 2, count_include_pad=False)[0, 0]


@torch.no_grad()
def dynamic_seeds(
    unexplained: Iterable[Unexplained],
    per_frame: int,
    generator: torch.Generator,
    *,
    from_mask: float = 0.6,
    most: int | None = None,
) -> Seeds:
    """Seeds in the camera's frame: `from_mask` of a frame's drawn in proportion to its motion mask, the others to the
    residual; less of them where little of either is there. At 0.3 to 0.7 of the nearest static depth around.

    per_frame are for a mask of up to 6 % of the image; a larger one gets as many for each pixel, up to four times as
    many, but never more than `most` in a frame.
    """
    made = []
    most = 4 * per_frame if most is None else most
    for u in unexplained:
        motion, residual = u.picture.motion, _excess(u.residual)
        moving, wrong = float(motion.mean()), float(residual.mean())
        mask_count = from_mask * per_frame * min(1.0, moving / 0.02) * min(max(1.0, moving / 0.06), 4.0)
        rest_count = (1 - from_mask) * per_frame * min(1.0, wrong / 0.005)
        share = min(1.0, most / max(mask_count + rest_count, 1.0))
        pixel = torch.cat(
            (
                _draw(motion, round(share * mask_count), generator),
                _draw(residual, int(share * rest_count), generator),
            )
        )
        if not len(pixel):
            continue
        nearest = -widened(-u.depth, 10)
        depth = nearest.flatten()[pixel] * (0.3 + 0.4 * torch.rand(len(pixel), generator=generator))
        area = float((motion > 0.25).float().mean()) * motion.numel()
        spacing = math.sqrt(max(area, 0.02 * motion.numel()) / len(pixel))  # pixels
        made.append(_seeds(u.picture, pixel, depth, 0.8 * spacing, world=False))
    return Seeds.joined(made)


@torch.no_grad()
def semistatic_seeds(unexplained: Iterable[Unexplained], per_frame: int, generator: torch.Generator) -> Seeds:
    """Seeds in the world, just before the static surface, where it is wrong although nothing moves there."""
    made = []
    for u in unexplained:
        moving = widened(u.picture.motion, 30)
        # What is wrong at all times is a poor reconstruction; what came or went is wrong for a part of them.
        wrong = (_excess(u.residual) - 1.5 * u.usual).clamp(min=0) * (1 - moving).square()
        pixel = _draw(wrong, round(per_frame * min(1.0, float(wrong.mean()) / 0.005)), generator)
        if not len(pixel):
            continue
        depth = u.depth.flatten()[pixel] * (0.9 + 0.08 * torch.rand(len(pixel), generator=generator))
        made.append(_seeds(u.picture, pixel, depth, 2.0, world=True))
    return Seeds.joined(made)


def _excess(residual: Tensor) -> Tensor:
    """What of a residual stands out from the whole image: above its median and a noise floor."""
    return (residual - 1.5 * residual.median() - 0.01).clamp(min=0)


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of `count` pixels drawn in proportion to weights [H, W]; none where all are zero."""
    flat = weights.flatten()
    if count <= 0 or float(flat.sum()) <= 0:
        return torch.zeros(0, dtype=torch.int64)
    return torch.multinomial(flat, count, replacement=True, generator=generator)


def _seeds(picture: Picture, pixel: Tensor, depth: Tensor, size: float, *, world: bool) -> Seeds:
    """Seeds at pixels and depths [M], `size` pixels large."""
    points = _rays(picture.camera, pixel) * depth[:, None]
    begin, end = picture.halfway
    window = torch.tensor([(begin + end) / 2, math.log(max((end - begin) / 2, 1e-3))])
    return Seeds(
        _to_world(picture.camera, points) if world else points,
        picture.image.reshape(-1, 3)[pixel],
        (size * depth / picture.camera.K[0, 0]).clamp(min=1e-6),
        torch.full((len(pixel),), picture.frame),
        window.repeat(len(pixel), 1),
    )


# -------------------------------------------------------------------------------------------------- projections


def _rays(camera: Camera, pixel: Tensor) -> Tensor:
    """Directions [n, 3] with z = 1 in the camera's frame, through the centres of pixels (flat indices [n])."""
    x, y = pixel % camera.width + 0.5, pixel.div(camera.width, rounding_mode="floor") + 0.5
    K = camera.K
    return torch.stack(((x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], torch.ones_like(x)), dim=-1)


def _to_world(camera: Camera, points: Tensor) -> Tensor:
    c2w = camera.c2w
    return points @ c2w[:3, :3].T + c2w[:3, 3]


def _project(camera: Camera, points: Tensor) -> tuple[Tensor, Tensor]:
    """(pixels [..., 2], depths [...]) of world points [..., 3]; pixels mean nothing where the depth is not positive."""
    local = points @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
    z = local[..., 2]
    focal, center = camera.K[[0, 1], [0, 1]], camera.K[:2, 2]
    return local[..., :2] / z.clamp(min=1e-9)[..., None] * focal + center, z

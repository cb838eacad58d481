"""Whether a pixel's matches in other frames can all be one point of a world that stands still.

If it does, pixel x of the reference view with inverse depth r (along the camera's z, 1 / world units) shows in
another view at the projection of a + r b, where a = K' R K^-1 x and b = K' t: an epipolar line, walked by r. One r
must explain the matches in all other views at once, and must be that of something in front of the camera and in
the scene. What remains between the matches and the best such points is motion. It is the distance from the
epipolar line for one pair of views; the residual of the rotation's homography where the camera hardly translates
(b ~ 0, r does not matter); and, over several pairs, the disagreement of their depths, which shows motion along
the epipolar lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gsfields.camera import Camera

Array = np.ndarray
_CAUCHY = 2.0  # residuals beyond this many standard deviations lose their hold on the depth


@dataclass
class Matches:
    """Where the pixels of a reference view show in one other view."""

    camera: Camera  # of the other view
    points: Array  # float32 [H, W, 2], pixels of the other view, centres at +0.5
    weight: Array  # float32 [H, W] in [0, 1], 0 where there is no match


@dataclass
class StaticFit:
    """The best static world for one view's matches in n others."""

    inverse_depth: Array  # [H, W], 1 / world units
    information: Array  # [H, W], 1 / variance of the inverse depth
    residuals: Array  # [n, H, W, 2] match minus prediction, pixels
    sigmas: Array  # [n] standard deviation of one coordinate of the residuals of static pixels, pixels


def epipolar_pencil(reference: Camera, other: Camera) -> tuple[Array, Array]:
    """(a [H, W, 3], b [3]) such that the reference's pixels at inverse depth r show in `other` at the projection
    of a + r b; float32.
    """
    K, K_other = reference.K.double().numpy(), other.K.double().numpy()
    pose = other.viewmat.double().numpy() @ np.linalg.inv(reference.viewmat.double().numpy())
    x, y = np.meshgrid(np.arange(reference.width) + 0.5, np.arange(reference.height) + 0.5)
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1)
    a = pixels @ (K_other @ pose[:3, :3] @ np.linalg.inv(K)).T
    return a.astype(np.float32), (K_other @ pose[:3, 3]).astype(np.float32)


def project(a: Array, b: Array, inverse_depth: Array) -> Array:
    """Where the pixels show at `inverse_depth` [H, W]: [H, W, 2]; far outside if behind the camera."""
    p = a + inverse_depth[..., None] * b
    points: Array = p[..., :2] / np.maximum(p[..., 2:], 1e-3)
    return points


def fit_static_world(
    reference: Camera,
    matches: list[Matches],
    *,
    bounds: tuple[float, float],
    floor: float = 0.2,
    rounds: int = 3,
) -> StaticFit:
    """The inverse depth of each pixel within `bounds` that explains its matches best, and what it leaves.

    A Cauchy M-estimate by reweighted least squares: the equation of one match is linear in r once multiplied by
    the depth in the other view, which the round before supplies (Hartley and Zisserman, section 12.2). Errors of
    the poses are estimated as one small rotation per pair and taken out; each pair's noise is the median of its
    residuals, because most pixels stand still, and never below `floor` pixels.
    """
    pencils = [epipolar_pencil(reference, match.camera) for match in matches]
    sigmas = np.full(len(matches), 1.0)
    weights = [match.weight for match in matches]
    r = np.full(matches[0].weight.shape, bounds[0], np.float32)
    information = np.zeros_like(r)
    residuals = np.zeros((len(matches), *r.shape, 2), np.float32)
    for step in range(rounds):
        best, information = _best_inverse_depth(pencils, matches, weights, sigmas, r)
        r = best.clip(*bounds)
        for k, match in enumerate(matches):
            residuals[k] = match.points - project(*pencils[k], r)
            if step < rounds - 1:
                turn = _small_rotation(residuals[k], match)
                pencils[k] = _turned(*pencils[k], turn, match.camera)
                residuals[k] = match.points - project(*pencils[k], r)
            square = (residuals[k] ** 2).sum(-1)
            certain = match.weight > 0.5
            if certain.any():
                # the median of a squared length of two normal coordinates is 2 ln 2 variances
                sigmas[k] = max(float(np.sqrt(np.median(square[certain]) / (2 * np.log(2)))), floor)
            weights[k] = match.weight / (1 + square / (_CAUCHY * sigmas[k]) ** 2)
    return StaticFit(r, information, residuals, sigmas)


def _best_inverse_depth(
    pencils: list[tuple[Array, Array]],
    matches: list[Matches],
    weights: list[Array],
    sigmas: Array,
    r: Array,
) -> tuple[Array, Array]:
    """(r, information) of the weighted linear equations, linearised at `r`."""
    top, bottom = np.zeros_like(r), np.full_like(r, 1e-12)
    for (a, b), match, weight, sigma in zip(pencils, matches, weights, sigmas):
        depth = np.maximum(a[..., 2] + r * b[2], 1e-3 * np.abs(a[..., 2]) + 1e-6)
        w = weight / (np.float32(sigma) * depth) ** 2
        for axis in (0, 1):
            slope = match.points[..., axis] * b[2] - b[axis]
            top -= w * slope * (match.points[..., axis] * a[..., 2] - a[..., axis])
            bottom += w * slope * slope
    return top / bottom, bottom


def _small_rotation(residual: Array, match: Matches, samples: int = 4000) -> Array:
    """The rotation vector [3] of the other camera that explains most of its residuals (robust least squares)."""
    index = np.flatnonzero(match.weight.ravel() > 0.5)
    if len(index) < 100:
        return np.zeros(3)
    index = index[:: max(1, len(index) // samples)]
    K = match.camera.K.double().numpy()
    p = match.points.reshape(-1, 2)[index].astype(np.float64)
    x, y = (p[:, 0] - K[0, 2]) / K[0, 0], (p[:, 1] - K[1, 2]) / K[1, 1]
    # d(projection) / d(rotation vector) of a turned point (Longuet-Higgins and Prazdny 1980)
    rows = np.stack(
        [
            K[0, 0] * np.stack([-x * y, 1 + x * x, -y], axis=1),
            K[1, 1] * np.stack([-(1 + y * y), x * y, x], axis=1),
        ],
        axis=1,
    )
    target = residual.reshape(-1, 2)[index].astype(np.float64)
    turn = np.zeros(3)
    for _ in range(6):
        error = ((target - rows @ turn) ** 2).sum(1)
        w = 1 / (1 + error / max(float(np.median(error)), 1e-4))
        weighted = rows * w[:, None, None]
        normal = np.einsum("nai,naj->ij", weighted, rows) + 1e-9 * np.eye(3)
        turn = np.linalg.solve(normal, np.einsum("nai,na->i", weighted, target))
    return turn


def _turned(a: Array, b: Array, turn: Array, camera: Camera) -> tuple[Array, Array]:
    K = camera.K.double().numpy()
    x, y, z = turn
    small = np.eye(3) + np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    M = (K @ small @ np.linalg.inv(K)).astype(np.float32)
    return a @ M.T, M @ b

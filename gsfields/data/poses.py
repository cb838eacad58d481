"""Rigid motions as files state them: checked, made exactly orthonormal, and turned into world -> camera."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

RIGID_TOLERANCE = 1e-3  # files with five digits are within 1e-5; a scaled or sheared matrix is far beyond
OPENGL_AXES = np.diag([1.0, -1.0, -1.0, 1.0])  # camera axes right, up, back -> right, down, forward


def rigid(matrix: Any, owner: str) -> np.ndarray:
    """The rigid motion nearest to `matrix`, [3, 4] or [4, 4], as float64 [4, 4]; `owner` is named in errors.

    Raises ValueError if it has another shape, holds anything but finite numbers, or is not a rotation with a
    translation to within RIGID_TOLERANCE (it scales, shears or mirrors).
    """
    try:
        given = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"the pose of {owner} is not a matrix of numbers") from None
    if given.shape not in ((3, 4), (4, 4)):
        raise ValueError(f"the pose of {owner} must be [3, 4] or [4, 4], but is {list(given.shape)}")
    if not np.isfinite(given).all():
        raise ValueError(f"the pose of {owner} holds NaN or infinity")
    if given.shape == (4, 4) and abs(given[3] - [0, 0, 0, 1]).max() > RIGID_TOLERANCE:
        raise ValueError(f"the last row of the pose of {owner} must be 0 0 0 1, but is {given[3].tolist()}")
    error = abs(given[:3, :3].T @ given[:3, :3] - np.eye(3)).max()
    if error > RIGID_TOLERANCE:
        raise ValueError(f"the pose of {owner} is not rigid: its rotation is off orthonormal by {error:.2g}")
    if np.linalg.det(given[:3, :3]) < 0:
        raise ValueError(f"the pose of {owner} is not rigid: it mirrors")
    u, _, vt = np.linalg.svd(given[:3, :3])
    return _assembled(u @ vt, given[:3, 3])


def inverse(motion: np.ndarray) -> np.ndarray:
    """The inverse of a rigid [4, 4]."""
    rotation = motion[:3, :3].T
    return _assembled(rotation, -rotation @ motion[:3, 3])


def from_quaternion(quaternion: Sequence[float], translation: Sequence[float], owner: str) -> np.ndarray:
    """The rigid [4, 4] that rotates by a quaternion wxyz of any length but zero, then translates.

    Raises ValueError if a number is not finite or the quaternion is zero.
    """
    q, t = np.asarray(quaternion, dtype=np.float64), np.asarray(translation, dtype=np.float64)
    if not (np.isfinite(q).all() and np.isfinite(t).all()):
        raise ValueError(f"the pose of {owner} holds NaN or infinity")
    length = np.linalg.norm(q)
    if length < 1e-12:
        raise ValueError(f"the pose of {owner} has the zero quaternion, which is no rotation")
    w, x, y, z = q / length
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return _assembled(np.array(rotation), t)


def _assembled(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = rotation, translation
    return motion

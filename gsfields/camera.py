"""The pinhole camera: where it stands, what it sees, and how large its image is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VectorLike = Tensor | Sequence[float]


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera, or B of them that share one image size.

    World and camera axes are right-handed; the camera looks along +z with x right and y down (OpenCV). Pixels
    are squares of side 1 whose centres lie at +0.5, so the image spans [0, width] x [0, height] and a point
    (x, y, z) of the camera frame falls on (fx x / z + cx, fy y / z + cy).

    Floating-point tensors keep their dtype; anything else (lists, integers) becomes float32.

    Raises ValueError if a shape is wrong, a value is not finite, a focal length or size is not positive, K
    holds anything but fx, fy, cx and cy, a bottom row is not that of a matrix of its kind, or dtypes or
    devices differ.
    """

    viewmat: Tensor  # [4, 4] or [B, 4, 4], world -> camera
    K: Tensor  # [3, 3] or [B, 3, 3], pixels
    width: int  # pixels
    height: int  # pixels

    def __post_init__(self) -> None:
        object.__setattr__(self, "viewmat", _floating(self.viewmat))
        object.__setattr__(self, "K", _floating(self.K))
        object.__setattr__(self, "width", _size("width", self.width))
        object.__setattr__(self, "height", _size("height", self.height))
        viewmat, K = self.viewmat, self.K
        if viewmat.shape[-2:] != (4, 4) or viewmat.ndim not in (2, 3):
            raise ValueError(f"viewmat must be [4, 4] or [B, 4, 4], but is {list(viewmat.shape)}")
        if K.shape != (*viewmat.shape[:-2], 3, 3):
            expected = [*viewmat.shape[:-2], 3, 3]
            raise ValueError(
                f"K must be {expected} for a viewmat of {list(viewmat.shape)}, but is {list(K.shape)}"
            )
        if viewmat.dtype != K.dtype or viewmat.device != K.device:
            raise ValueError(
                f"viewmat and K must share dtype and device, but are {viewmat.dtype} on {viewmat.device} "
                f"and {K.dtype} on {K.device}"
            )
        for name, matrix in (("viewmat", viewmat), ("K", K)):
            if not bool(torch.isfinite(matrix).all()):
                raise ValueError(f"{name} must be finite, but holds NaN or infinity")
            last_row = [0.0] * (matrix.shape[-1] - 1) + [1.0]
            if not bool((matrix.detach()[..., -1, :] == matrix.new_tensor(last_row)).all()):
                raise ValueError(
                    f"the last row of {name} must be {last_row}, but is {matrix[..., -1, :].tolist()}"
                )
        focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], dim=-1)
        if not bool((focal > 0).all()):
            raise ValueError(
                f"the focal lengths K[0, 0] and K[1, 1] must be positive, but are {focal.tolist()}"
            )
        if bool((K[..., 0, 1] != 0).any()) or bool((K[..., 1, 0] != 0).any()):
            raise ValueError("K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]: skew is not supported")

    @classmethod
    def look_at(
        cls,
        eye: VectorLike,
        target: VectorLike,
        up: VectorLike,
        *,
        width: int,
        height: int,
        fov_y_degrees: float | None = None,
        K: Tensor | Sequence[Sequence[float]] | None = None,
    ) -> Camera:
        """The camera at `eye` with `target` on its axis and `up` upwards in the image.

        eye, target and up are [3], world units. Give either the vertical field of view (square pixels,
        principal point in the middle) or K [3, 3].

        Raises ValueError if eye and target coincide, if up is parallel to the line of sight, if fov_y_degrees
        is not in (0, 180), or if neither or both of fov_y_degrees and K are given.
        """
        if (fov_y_degrees is None) == (K is None):
            raise ValueError("look_at needs either fov_y_degrees or K, and not both")
        # in float64 until the end, so that the rotation is orthonormal to the last bit of float32
        eye64, target64, up64 = (_vector(n, v) for n, v in (("eye", eye), ("target", target), ("up", up)))
        forward = _unit(target64 - eye64, "eye and target must differ")
        right = _unit(torch.linalg.cross(forward, up64), "up must not be zero or parallel to target - eye")
        rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])  # rows: x, y, z axes
        viewmat = torch.eye(4, dtype=torch.float64)
        viewmat[:3, :3] = rotation
        viewmat[:3, 3] = -rotation @ eye64
        if K is None:
            assert fov_y_degrees is not None
            if not 0 < fov_y_degrees < 180:
                raise ValueError(f"fov_y_degrees must lie in (0, 180), but is {fov_y_degrees}")
            focal = 0.5 * _size("height", height) / math.tan(math.radians(fov_y_degrees) / 2)
            K = [[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]
        K = _floating(K)
        return cls(viewmat.to(K), K, width, height)

    @property
    def c2w(self) -> Tensor:
        """Camera -> world, the inverse of viewmat: [4, 4] or [B, 4, 4]."""
        return torch.linalg.inv(self.viewmat)

    @property
    def position(self) -> Tensor:
        """The camera's centre in the world, [3] or [B, 3]."""
        return self.c2w[..., :3, 3]

    def resized(self, width: int, height: int) -> Camera:
        """The same view on an image of another size; K is scaled by the exact ratios of the sizes."""
        ratio = self.K.new_tensor(
            [[_size("width", width) / self.width], [_size("height", height) / self.height], [1.0]]
        )
        return Camera(self.viewmat, self.K * ratio, width, height)

    def scaled(self, factor: float) -> Camera:
        """The same view, its image `factor` times as large in x and y, rounded to at least one pixel."""
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"factor must be a positive number, but is {factor}")
        return self.resized(max(1, round(self.width * factor)), max(1, round(self.height * factor)))

    def to(self, *args: Any, **kwargs: Any) -> Camera:
        """The camera with viewmat and K moved or cast by `torch.Tensor.to`."""
        return Camera(self.viewmat.to(*args, **kwargs), self.K.to(*args, **kwargs), self.width, self.height)


def _floating(value: Any) -> Tensor:
    tensor = (
        torch.as_tensor(value) if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float32)
    )
    return tensor if tensor.is_floating_point() else tensor.to(torch.float32)


def _size(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise ValueError(f"{name} must be a whole number of pixels, at least 1, but is {value!r}")
    return value.__index__()


def _vector(name: str, value: VectorLike) -> Tensor:
    vector = torch.as_tensor(value).detach().to("cpu", torch.float64)
    if vector.shape != (3,) or not bool(torch.isfinite(vector).all()):
        raise ValueError(f"{name} must be three finite numbers, but is {vector.tolist()}")
    return vector


def _unit(vector: Tensor, complaint: str) -> Tensor:
    length = torch.linalg.vector_norm(vector)
    if length < 1e-12:
        raise ValueError(complaint)
    return vector / length

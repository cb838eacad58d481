"""Intrinsics with radial and tangential lens distortion, the way to a pinhole image, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from gsfields.camera import Camera

# Parameters in file order; COLMAP's ids and names (src/colmap/sensor/models.h lists them all).
CAMERA_MODELS: dict[str, tuple[int, tuple[str, ...]]] = {
    "SIMPLE_PINHOLE": (0, ("f", "cx", "cy")),
    "PINHOLE": (1, ("fx", "fy", "cx", "cy")),
    "SIMPLE_RADIAL": (2, ("f", "cx", "cy", "k1")),
    "RADIAL": (3, ("f", "cx", "cy", "k1", "k2")),
    "OPENCV": (4, ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")),
}


@dataclass(frozen=True)
class Intrinsics:
    """A camera's image size, pinhole and distortion (OpenCV's model, with pixel centres at +0.5).

    With (x, y) the pinhole's normalised coordinates, r2 = x^2 + y^2 and d = 1 + k1 r2 + k2 r2^2 + k3 r2^3,
    the point is imaged at fx x' + cx, fy y' + cy where
        x' = x d + 2 p1 x y + p2 (r2 + 2 x^2),  y' = y d + p1 (r2 + 2 y^2) + 2 p2 x y
    (Brown 1966; COLMAP's SIMPLE_RADIAL, RADIAL and OPENCV are this with some parameters zero).

    Raises ValueError if a value is not finite or a focal length or size is not positive.
    """

    width: int  # pixels
    height: int
    fx: float  # pixels
    fy: float
    cx: float
    cy: float
    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    p1: float = 0.0
    p2: float = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            if not np.isfinite(getattr(self, item.name)):
                raise ValueError(f"{item.name} must be finite, but is {getattr(self, item.name)}")
        for name in ("width", "height", "fx", "fy"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, but is {getattr(self, name)}")

    @classmethod
    def from_model(cls, model: str, width: int, height: int, parameters: Sequence[float]) -> Intrinsics:
        """Intrinsics from a COLMAP camera model's name and its parameters in file order.

        Raises ValueError for a model that is not in CAMERA_MODELS or a wrong number of parameters.
        """
        check_model(model)
        names = CAMERA_MODELS[model][1]
        if len(parameters) != len(names):
            raise ValueError(f"camera model {model} takes {len(names)} parameters, but has {len(parameters)}")
        values = dict(zip(names, map(float, parameters), strict=True))
        if "f" in values:
            values["fx"] = values["fy"] = values.pop("f")
        return cls(width, height, **values)

    @property
    def distorted(self) -> bool:
        return any((self.k1, self.k2, self.k3, self.p1, self.p2))

    @property
    def K(self) -> Tensor:
        """[3, 3] float32, pixels."""
        rows = [[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]]
        return torch.tensor(rows, dtype=torch.float32)

    def resized(self, width: int, height: int) -> Intrinsics:
        """The same camera on an image of another size; distortion is independent of it."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            width=width,
            height=height,
            fx=self.fx * sx,
            cx=self.cx * sx,
            fy=self.fy * sy,
            cy=self.cy * sy,
        )

    def distort(self, xy: np.ndarray) -> np.ndarray:
        """Pinhole pixels [..., 2] to the pixels [..., 2] where the lens images them; float64."""
        x, y = (xy[..., 0] - self.cx) / self.fx, (xy[..., 1] - self.cy) / self.fy
        r2 = x * x + y * y
        d = 1 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
        xd = x * d + 2 * self.p1 * x * y + self.p2 * (r2 + 2 * x * x)
        yd = y * d + self.p1 * (r2 + 2 * y * y) + 2 * self.p2 * x * y
        return np.stack([self.fx * xd + self.cx, self.fy * yd + self.cy], axis=-1)

    def undistort(self, xy: np.ndarray) -> np.ndarray:
        """Pixels [..., 2] of the photo to the pinhole pixels [..., 2] that `distort` takes there; float64.

        By Newton's method from the distorted position itself, kept within the fold of the polynomial: a pixel
        that no direction is imaged at gets the nearest one in reach.
        """
        center, focal = np.array([self.cx, self.cy]), np.array([self.fx, self.fy])
        if not self.distorted:
            return np.array(xy, dtype=np.float64)
        longest = 0.999 * np.sqrt(self.fold_radius2())
        x, y = np.moveaxis((xy - center) / focal, -1, 0)
        for _ in range(20):
            off = (self.distort(np.stack([x, y], axis=-1) * focal + center) - xy) / focal
            (a, b), c = self._slope(x, y)
            # J = [[a, c], [c, b]] is symmetric: the distortion is a gradient field
            determinant = a * b - c * c
            x = x - (b * off[..., 0] - c * off[..., 1]) / determinant
            y = y - (a * off[..., 1] - c * off[..., 0]) / determinant
            inward = np.minimum(1, longest / np.maximum(np.hypot(x, y), 1e-12))
            x, y = x * inward, y * inward
            if not xy.size or abs(off).max() < 1e-12:
                break
        return np.stack([x, y], axis=-1) * focal + center

    def _slope(self, x: np.ndarray, y: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """The derivatives of the distorted (x', y'): ((dx'/dx, dy'/dy), dx'/dy = dy'/dx)."""
        r2 = x * x + y * y
        d = 1 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
        slope = self.k1 + r2 * (2 * self.k2 + 3 * r2 * self.k3)
        return (
            d + 2 * x * x * slope + 2 * self.p1 * y + 6 * self.p2 * x,
            d + 2 * y * y * slope + 6 * self.p1 * y + 2 * self.p2 * x,
        ), 2 * (x * y * slope + self.p1 * x + self.p2 * y)

    def fold_radius2(self) -> float:
        """The squared normalised radius up to which the radial part grows; infinity if it always does.

        Beyond it the polynomial turns back and would show parts of the image a second time. It is the first
        positive root of d/dr [r d(r)] = 1 + 3 k1 r2 + 5 k2 r2^2 + 7 k3 r2^3.
        """
        slope = np.array([7 * self.k3, 5 * self.k2, 3 * self.k1, 1.0])
        roots = np.roots(np.where(abs(slope) < 1e-12, 0, slope))  # smaller terms only upset the root finder
        real = roots.real[(abs(roots.imag) < 1e-9 * (1 + abs(roots.real))) & (roots.real > 0)]
        return float(real.min()) if real.size else float("inf")


def check_model(name: str) -> None:
    """Raise ValueError if `name` is not a camera model whose images can be undistorted here."""
    if name not in CAMERA_MODELS:
        raise ValueError(
            f"camera model {name} is not supported: it must be one of {', '.join(CAMERA_MODELS)}"
        )


@lru_cache(
    maxsize=2
)  # all photos of a scene usually share one camera; a grid of a 12 megapixel camera takes 100 MB
def _source_grid(lens: Intrinsics) -> tuple[Tensor, Tensor]:
    """Where each pinhole pixel lies in the photo: grid [H, W, 2] for grid_sample, inside [H, W] bool."""
    columns, rows = np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5
    pinhole = np.stack(np.meshgrid(columns, rows, indexing="xy"), axis=-1)
    source = lens.distort(pinhole)
    r2 = ((columns - lens.cx) / lens.fx)[None, :] ** 2 + ((rows - lens.cy) / lens.fy)[:, None] ** 2
    size = np.array([lens.width, lens.height])
    inside = ((source >= 0) & (source <= size)).all(-1) & (r2 < lens.fold_radius2())
    # with align_corners=False grid_sample puts -1 and 1 at the outer edges of the image, as our pixels have
    # it
    return torch.from_numpy((2 * source / size - 1).astype(np.float32)), torch.from_numpy(inside)


def undistort(image: Tensor, lens: Intrinsics) -> tuple[Tensor, Tensor]:
    """The image that a pinhole with the same K and the same size would have taken, and where it is known.

    image [H, W, C] float32 taken through `lens` -> (image [H, W, C], inside [H, W] bool).

    K and size are kept rather than chosen anew (as COLMAP's image_undistorter does, to show no blank border),
    so that cameras, resolutions and points stay those of the files, views are comparable with any other
    tool's, and nothing depends on the extremes of a border. The price is a border where `inside` is False
    (pincushion lenses) or parts of the photo that fall outside (barrel lenses). Each pixel takes the bilinear
    sample at its distorted position; where that lies outside the photo, or beyond the fold of the polynomial,
    the nearest edge pixel is repeated.
    """
    grid, inside = _source_grid(lens)
    channels_first = image.permute(2, 0, 1)[None]
    sampled = grid_sample(
        channels_first, grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0].permute(1, 2, 0), inside


def distort(image: Tensor, camera: Camera, lens: Intrinsics, *, nearest: bool = False) -> Tensor:
    """The photo that `lens` would have taken of what the pinhole `camera` shows, `undistort`'s way back.

    image [H, W, C] floating, at the camera's size -> [lens.height, lens.width, C]. Both look the same way, so
    only K counts. Each pixel takes the bilinear sample at its undistorted position, or the nearest one's; beyond
    the border of the image the nearest edge pixel is repeated (see `covering`). An image that already is the photo (no
    distortion, the same size and K) comes back as it is.

    Raises ValueError if the image has not the camera's size.
    """
    if image.ndim != 3 or image.shape[:2] != (camera.height, camera.width):
        raise ValueError(
            f"image must be [H, W, C] with the camera's size {camera.width}x{camera.height}, "
            f"but is {list(image.shape)}"
        )
    K = camera.K.double().cpu()
    same_size = image.shape[:2] == (lens.height, lens.width)
    if same_size and not lens.distorted and bool(torch.allclose(K.float(), lens.K, rtol=1e-5, atol=1e-3)):
        return image
    pinhole = (K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    grid = _photo_grid(lens, tuple(float(value) for value in pinhole), camera.width, camera.height)
    sampled = grid_sample(
        image.permute(2, 0, 1)[None],
        grid[None].to(image),
        mode="nearest" if nearest else "bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return sampled[0].permute(1, 2, 0)


@lru_cache(maxsize=2)
def _photo_grid(lens: Intrinsics, pinhole: tuple[float, ...], width: int, height: int) -> Tensor:
    """Where each pixel of the photo lies in a pinhole image (fx, fy, cx, cy; width, height): [h, w, 2] for
    grid_sample.
    """
    columns, rows = np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5
    xy = lens.undistort(np.stack(np.meshgrid(columns, rows, indexing="xy"), axis=-1))
    directions = (xy - [lens.cx, lens.cy]) / [lens.fx, lens.fy]
    pixels = directions * pinhole[:2] + pinhole[2:]
    return torch.from_numpy((2 * pixels / [width, height] - 1).astype(np.float32))


def covering(camera: Camera, lens: Intrinsics) -> Camera:
    """`camera` with its image enlarged until it shows all that `lens` does: its pose and focal lengths, more
    pixels. A rendering through it, given to `distort`, repeats no edge. It is `camera` if that shows all.

    The image grows to three times its size at most, for lenses that see beyond any pinhole.
    """
    columns, rows = np.arange(lens.width + 1.0), np.arange(lens.height + 1.0)
    border = np.concatenate(
        [np.stack([columns, np.full_like(columns, y)], axis=-1) for y in (0, lens.height)]
        + [np.stack([np.full_like(rows, x), rows], axis=-1) for x in (0, lens.width)]
    )
    directions = (lens.undistort(border) - [lens.cx, lens.cy]) / [lens.fx, lens.fy]
    K = camera.K.double().cpu().numpy()
    pixels = directions * [K[0, 0], K[1, 1]] + [K[0, 2], K[1, 2]]
    size = np.array([camera.width, camera.height])
    low = np.floor(np.clip(pixels.min(0) + 1e-3, -size, 0)).astype(int)
    high = np.ceil(np.clip(pixels.max(0) - 1e-3, size, 2 * size)).astype(int)
    if not low.any() and (high == size).all():
        return camera
    shifted = camera.K.clone()
    shifted[:2, 2] -= torch.as_tensor(low, dtype=camera.K.dtype)
    width, height = (high - low).tolist()
    return Camera(camera.viewmat, shifted, width, height)

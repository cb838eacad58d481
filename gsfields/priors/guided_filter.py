"""Edge-aware smoothing: a map that follows the edges of an image."""

from __future__ import annotations

import numpy as np

from gsfields.priors.flow import require_opencv

Array = np.ndarray


def guided_filter(image: Array, values: Array, radius: int, epsilon: float = 1e-3) -> Array:
    """`values` [H, W], in each window of 2 radius + 1 pixels the best affine function of the colours of `image`
    [H, W, 3]; both float32, the image with a standard deviation of about 0.25 (He et al., ECCV 2010, eq. 14-16).

    `epsilon` is the variance of colour below which a window counts as flat and is averaged.
    """
    cv2 = require_opencv()
    size = (2 * radius + 1, 2 * radius + 1)

    def mean(x: Array) -> Array:
        averaged: Array = cv2.boxFilter(x, -1, size, borderType=cv2.BORDER_REFLECT)
        return averaged

    center = mean(image)
    average = mean(values)
    along = mean(image * values[..., None]) - center * average[..., None]
    # the 3 x 3 covariance of the colours, its six different entries
    rows, columns = (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)
    products = [
        mean(image[..., i] * image[..., j]) - center[..., i] * center[..., j] for i, j in zip(rows, columns)
    ]
    xx, xy, xz, yy, yz, zz = (p + epsilon * (i == j) for p, i, j in zip(products, rows, columns))
    cofactors = np.stack(
        [yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy, xx * zz - xz * xz, xy * xz - xx * yz,
         xx * yy - xy * xy], axis=-1,
    )  # fmt: skip
    determinant = xx * cofactors[..., 0] + xy * cofactors[..., 1] + xz * cofactors[..., 2]
    inverse = cofactors[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(*values.shape, 3, 3)
    slope = (inverse @ along[..., None])[..., 0] / determinant[..., None]
    offset = average - (slope * center).sum(-1)
    smooth: Array = (mean(slope) * image).sum(-1) + mean(offset)
    return smooth

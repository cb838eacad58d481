"""Dense optical flow between two frames, and what can be said from flow alone.

Images are [H, W] arrays with pixel centres at +0.5; flow [H, W, 2] is (right, down) in pixels, from each pixel of
the first frame to where it shows in the second.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray


def require_opencv() -> Any:
    """The module cv2. Raises ImportError, in one sentence, where it is missing."""
    try:
        import cv2
    except ImportError:
        raise ImportError(
            "motion from optical flow needs OpenCV (pip install opencv-python-headless)"
        ) from None
    return cv2


class DenseFlow:
    """Dense inverse search (Kroeger et al., ECCV 2016) down to full resolution, with variational refinement.

    OpenCV's `medium` preset; its patches are 8 pixels wide, so frames narrower than about 200 pixels gain from
    being enlarged first.
    """

    def __init__(self) -> None:
        cv2 = require_opencv()
        self._search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, first: Array, second: Array) -> Array:
        """The flow float32 [H, W, 2] from `first` to `second`, both uint8 [H, W]."""
        flow: Array = self._search.calc(np.ascontiguousarray(first), np.ascontiguousarray(second), None)
        return flow


def follow(values: Array, flow: Array, *, outside: float = 0.0) -> Array:
    """`values` [H, W] or [H, W, C] of the second frame at where `flow` leads from each pixel of the first;
    bilinear, `outside` beyond the border.
    """
    cv2 = require_opencv()
    height, width = flow.shape[:2]
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    border = (outside,) * 4
    found: Array = cv2.remap(
        values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=border
    )
    return found


def stays_inside(flow: Array) -> Array:
    """bool [H, W]: the pixel's match lies in the image."""
    height, width = flow.shape[:2]
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    return (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)


def round_trip(forward: Array, backward: Array) -> Array:
    """How far from itself, in pixels, a pixel lands that follows `forward` and then `backward`; [H, W] float32,
    infinite where it leaves the image on the way.
    """
    back = follow(backward, forward)
    error = np.linalg.norm(forward + back, axis=-1).astype(np.float32)
    return np.where(stays_inside(forward), error, np.float32(np.inf))

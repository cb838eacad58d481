"""Comparisons that know where rounding may change a decision.

A blend is discontinuous where alpha meets 1/255 and where a pixel ends: there, float32 may decide differently
from float64. Such pixels form a thin band which the oracle marks. Outside it we are strict, inside we allow
one flip, and the band must stay small, or the comparison would say nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected magnitude (0 for empty tensors)."""
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert actual.isfinite().all() and expected.isfinite().all(), "a value is not finite"
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def assert_relative(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    assert actual.shape == expected.shape, (
        f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: relative error {error:.3g} exceeds {tolerance:.3g}"


def assert_close_outside_band(
    actual: Tensor,
    expected: Tensor,
    band: Tensor,
    tolerance: float,
    *,
    scale: float = 1.0,
    max_share: float = 0.1,
) -> None:
    """actual, expected [B, H, W, ...]; band [B, H, W] bool. scale: the largest magnitude of the values.

    Outside the band |difference| <= tolerance * scale; inside it <= 4/255 * scale; its share <= max_share.
    """
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    share = float(band.double().mean()) if band.numel() else 0.0
    assert share <= max_share, (
        f"{share:.1%} of the pixels are in the cutoff band: the comparison would be vacuous"
    )
    actual, band = actual.detach().double().cpu(), band.cpu()
    assert actual.isfinite().all(), "a pixel is not finite"
    error = (actual - expected.detach().double().cpu()).abs() / scale
    outside, inside = error[~band], error[band]
    worst = float(outside.max()) if outside.numel() else 0.0
    assert worst <= tolerance, f"error {worst:.3g} outside the band exceeds {tolerance:.3g}"
    worst = float(inside.max()) if inside.numel() else 0.0
    assert worst <= 4 / 255, f"error {worst:.3g} inside the band is more than one flipped decision can cause"


def assert_bitwise(actual: Tensor, expected: Tensor, what: str = "") -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, what
    assert torch.equal(actual, expected), (
        f"{what}: {int((actual != expected).sum())} of {actual.numel()} values differ"
    )

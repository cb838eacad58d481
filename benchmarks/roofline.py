"""What a stage must move and compute, and how near to the device's own limits it came.

Only what no implementation of the stage can avoid is counted, so a share is never flattered by wasted work, and
100 % may be out of reach: traffic is every input read once and every output written once; arithmetic is that of
the Gaussians in view and of the pairs of pixel and Gaussian that are blended. Sorting, lists read again by
neighbouring tiles, and pairs that are looked at and skipped are the implementation's own cost. Everything is
float32 (4 bytes). N Gaussians, V of them in view, I (tile, Gaussian) pairs, P pixels, B blended pairs of pixel and
Gaussian, C channels, R numbers in each of the 7 rows of a response.

    stage            bytes                                                  operations
    respond          N (52 + 28 R + 44)                                     N (75 + 14 R)
    respond backward N (68 + 28 R) + N (52 + 28 R)                          N (79 + 21 R)
    project          N (12 + 36) + V 32                                     V 196
    project backward N (8 + 44) + V (44 + 28)                               V 441
    colour           N (1 + 12) + V (12 + 192)                              V 152
    colour backward  N (1 + 12 + 192) + V (12 + 192 + 12)                   V 306
    bin              N 8 + V 28 + I 4 + T 8                                 none of floating point that must be
    blend            I 4 + T 8 + V (24 + 4 C) + P (4 C + 8)                 B (16 + 2 C)
    blend backward   I 4 + T 8 + (V + N) (24 + 4 C) + P (4 C + 12)          B (42 + 4 C)
    to values        I 4 + T 8 + V 24 + N 4 C + P (4 C + 12)                B (16 + 2 C)
    lift             I 4 + T 8 + V 24 + N (4 C + 4) + P 4 C                 B (16 + 2 C)
    ssim             P C 4 (2 + 4)                                          P C 203
    ssim backward    P C 4 (6 + 1)                                          P C 134

Bytes. A Gaussian's centre is 12, its quaternion, scales and opacity 32, together 44. project writes means2d,
depths, conics, opacities2d and radii for every Gaussian, 8 + 4 + 12 + 4 + 8 = 36, of which all but the radii, 28,
come back as gradients. Coefficients of degree 3 in three channels are 16 · 3 · 4 = 192, directions and colours 12
each, the mask 1. Lists cost 4 per pair and 8 per tile (T = tiles + 1). The blend reads 24 (means2d, conics,
opacities2d) and its values per listed Gaussian, and writes per pixel the image, the transmittance and the end of
what was blended; its backward reads these less the image, the gradients of image and transmittance, and writes
gradients for all N; for the values alone it reads no values. A lift reads an image and writes sums for all N, and
that of the weights. Values and images in half precision take 2 C where it says 4 C. SSIM reads two images and writes
a map and three derivatives; its backward reads these less the map, its gradient, and writes one.
A response reads centres, quaternions, logits, colours and life spans, 12 + 16 + 4 + 12 + 8 = 52, and its rows, and
writes the first four, 44; its backward reads the gradients of these, and opacities, colours and life spans again, in
sum 68, and the rows, and writes a gradient for all that was read.

Operations. An addition, multiplication, division, square root, exponential or logarithm counts as one, a
comparison as none, following csrc/math. Projection: camera frame 18, unit quaternion 13, rotation 39, its scaling
9, into the camera 45, Jacobian 11, half covariance 18, covariance 15 (in sum 168), inverse, extent and bounds 28.
Its backward repeats the 168 and takes 273: conic to covariance 32, to the half covariance and the camera frame 39,
Jacobian 51, centre 15, rotation and scales 69, quaternion 67. Harmonics: unit vector 10, basis 49, sum 93; backward
unit vector and its derivative 24, basis 49, coefficients 48, their products with the gradient 75, slope of the
basis 110. A blended pair: offset 2, exponent 9, alpha 2, weight and transmittance 3, channels 2 C; backward: alpha
again 13, weight and transmittance 3, ⟨value, gradient⟩ and the value's gradient 4 C, alpha's gradient and the sum
behind it 5, to the opacity and the exponent 3, to the conic 10 and the centre 8; a lift, and the gradient of the
values alone, as the blend. SSIM: products 4, four windowed
means 4 · 2 · 21, formula and derivatives 31; backward 3 + 3 · 2 · 21 + 5.
A response: life span 18, products with the code 14 R, opacity 5, sums 6, pose 46; backward life span and slopes 28,
pose 43, logit and window 8, the rows' gradients 7 R, the code's 14 R.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.results import CaseRow, Ceilings
from gsfields.bench.stages import RANK
from gsfields.ops import TILE


@dataclass(frozen=True)
class Work:
    """What one call must do at least."""

    bytes: float
    flops: float

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Achieved:
    """That work over the time it took: GB/s, GFLOP/s, and the share of the limit that binds."""

    gb_per_s: float
    gflop_per_s: float
    share: float  # of the time, what the binding limit alone would have taken
    bound: str  # "memory" or "fp32"


def _respond(c: CaseRow, _: int) -> Work:
    return Work(c.gaussians * (96 + 28 * RANK), c.gaussians * (75 + 14 * RANK))


def _respond_backward(c: CaseRow, _: int) -> Work:
    return Work(c.gaussians * (120 + 56 * RANK), c.gaussians * (79 + 21 * RANK))


def _project(c: CaseRow, _: int) -> Work:
    return Work(c.gaussians * (12 + 36) + c.visible * 32, c.visible * 196)


def _project_backward(c: CaseRow, _: int) -> Work:
    return Work(c.gaussians * (8 + 44) + c.visible * (44 + 28), c.visible * 441)


def _colour(c: CaseRow, _: int) -> Work:
    return Work(c.gaussians * (1 + 12) + c.visible * (12 + 192), c.visible * 152)


def _colour_backward(c: CaseRow, _: int) -> Work:
    return Work(c.gaussians * (1 + 12 + 192) + c.visible * (12 + 192 + 12), c.visible * 306)


def _bin(c: CaseRow, _: int) -> Work:
    return Work(c.gaussians * 8 + c.visible * 28 + _lists(c), 0)


def _blend(c: CaseRow, channels: int, item: int = 4) -> Work:
    given, pixels = c.visible * (24 + item * channels), c.width * c.height
    return Work(_lists(c) + given + pixels * (item * channels + 8), _blended(c) * (16 + 2 * channels))


def _blend_backward(c: CaseRow, channels: int, item: int = 4) -> Work:
    both, pixels = (c.visible + c.gaussians) * (24 + item * channels), c.width * c.height
    return Work(_lists(c) + both + pixels * (item * channels + 12), _blended(c) * (42 + 4 * channels))


def _values_backward(c: CaseRow, channels: int, item: int = 4) -> Work:
    splats, pixels = c.visible * 24 + c.gaussians * item * channels, c.width * c.height
    return Work(_lists(c) + splats + pixels * (item * channels + 12), _blended(c) * (16 + 2 * channels))


def _lift(c: CaseRow, channels: int, item: int = 4) -> Work:
    splats, pixels = c.visible * 24 + c.gaussians * (4 * channels + 4), c.width * c.height
    return Work(_lists(c) + splats + pixels * item * channels, _blended(c) * (16 + 2 * channels))


def _ssim(c: CaseRow, channels: int) -> Work:
    return Work(c.width * c.height * channels * 24, c.width * c.height * channels * 203)


def _ssim_backward(c: CaseRow, channels: int) -> Work:
    return Work(c.width * c.height * channels * 28, c.width * c.height * channels * 134)


def _lists(c: CaseRow) -> float:
    tiles = -(-c.width // TILE) * -(-c.height // TILE)
    return c.pairs * 4 + (tiles + 1) * 8


def _blended(c: CaseRow) -> float:
    return c.blended_per_pixel * c.width * c.height


FORMULAE: dict[str, Callable[..., Work]] = {
    "respond": _respond,
    "respond backward": _respond_backward,
    "project": _project,
    "project backward": _project_backward,
    "colour": _colour,
    "colour backward": _colour_backward,
    "bin": _bin,
    "blend": _blend,
    "blend backward": _blend_backward,
    "blend backward to values": _values_backward,
    "lift": _lift,
    "ssim": _ssim,
    "ssim backward": _ssim_backward,
}


def work(stage: str, case: CaseRow, channels: int, item: int | None = None) -> Work | None:
    """What the stage must do in a case; None for what is made of several stages. item: bytes of a value and of a
    pixel's channel, where the stage can have others than 4.
    """
    formula = FORMULAE.get(stage)
    if formula is None:
        return None
    return formula(case, channels) if item is None else formula(case, channels, item)


def floor_ms(done: Work, gb_per_s: float, gflop_per_s: float) -> float:
    """What that work takes at least, where memory and arithmetic overlap perfectly."""
    return 1e3 * max(done.bytes / (gb_per_s * 1e9), done.flops / (gflop_per_s * 1e9))


def achieved(done: Work, ms: float, ceilings: Ceilings) -> Achieved:
    seconds = ms / 1e3
    moving = done.bytes / (ceilings.memory_gb_per_s * 1e9)
    computing = done.flops / (ceilings.fp32_gflop_per_s * 1e9)
    return Achieved(
        gb_per_s=done.bytes / seconds / 1e9,
        gflop_per_s=done.flops / seconds / 1e9,
        share=max(moving, computing) / seconds,
        bound="memory" if moving >= computing else "fp32",
    )

"""Moving Gaussians at one time of a video: life span, low-rank response to the time code, place in the world."""

import math

import torch
from torch import Tensor

from gsfields.ops.library import native, same_device


def respond(
    means: Tensor,
    quats: Tensor,
    logits: Tensor,
    colors: Tensor,
    response: Tensor,
    code: Tensor,
    windows: Tensor,
    time: float,
    softness: float,
    pose: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """N Gaussians at one time t, after the layers of Layered Motion Fusion (Tschernezki et al. 2025).

    With r = response · code, c and h the middle and half the length of a life span, s the softness and σ the
    logistic function:

        gate      = σ((t - c + h) / s) σ((c + h - t) / s) / σ(h / s)²        1 at t = c
        opacity'  = σ(logit + r₃) gate
        mean'     = mean + r₀₋₂
        colour'   = max(colour + r₄₋₆, 0)

    The blend skips what is below 1/255. So a Gaussian with opacity' below 1/255 gets opacity' = 0 and r = 0: it
    does not respond, and its logit, window and response and the code get no gradient from it. Where the gate alone
    tells, its response is not even read: what a time costs is what lives then. A Gaussian whose opacity' is not a
    number counts as one of these.

    Args:
        means: centres [N, 3], in the frame of the world, or of the camera where `pose` is given.
        quats: rotations [N, 4] as w, x, y, z in that frame, not necessarily unit.
        logits: of the opacities [N].
        colors: [N, 3].
        response: [N, 7, D]: of the centre (3 rows), of the logit (1), of the colour (3). D may be 0.
        code: the time code [D] at t.
        windows: life spans [N, 2]: the middle c, in the unit of `time`, and log h.
        time: t.
        softness: s > 0, in the unit of `time`: how softly a life span begins and ends.
        pose: camera→world as a unit quaternion w, x, y, z and a translation [7] (pose_of() makes it), by which means
            and quats are placed in the world; None leaves them where they are.

    Returns means' [N, 3], quats' [N, 4] (not normalised), opacities' [N], colors' [N, 3].

    Differentiable in all tensors but the pose, and not in the time. The code's gradient is a sum over Gaussians in a
    fixed order on every device.
    """
    # torch.compile would compile anew for every number that is given to an op, or to new_full().
    now = windows.new_zeros(()) + time
    return native.respond(means, quats, logits, colors, response, code, windows, pose, now, softness)


def pose_of(c2w: Tensor) -> Tensor:
    """The pose [7] that respond() takes of a camera→world matrix [4, 4], for any rotation; detached.

    Of w, x, y and z the one that is largest is found first, from the trace, and divides the others (Shepperd 1978,
    "Quaternion from rotation matrix"), so that nothing cancels; w >= 0. In Python floats: one small matrix a frame.
    """
    if c2w.shape != (4, 4):
        raise ValueError(f"c2w has shape {list(c2w.shape)}, but must be [4, 4]")
    rows = c2w.detach().double().tolist()
    R = [row[:3] for row in rows[:3]]
    if not all(math.isfinite(value) for row in rows for value in row):
        raise ValueError("c2w holds a number that is not finite, but must be a camera→world matrix")
    if not _is_rotation(R):
        raise ValueError("c2w[:3, :3] is not a rotation, but must be one to 1e-3")
    trace = R[0][0] + R[1][1] + R[2][2]
    quat = [0.0, R[2][1] - R[1][2], R[0][2] - R[2][0], R[1][0] - R[0][1]]  # 4w (w, x, y, z), but for w itself
    largest = max(range(4), key=lambda i: trace if i == 0 else R[i - 1][i - 1])
    if largest == 0:
        quat[0] = 1 + trace
    else:
        i = largest - 1
        j, k = (i + 1) % 3, (i + 2) % 3
        quat[0] = quat[largest]
        quat[1 + i] = 1 + R[i][i] - R[j][j] - R[k][k]
        quat[1 + j], quat[1 + k] = R[j][i] + R[i][j], R[k][i] + R[i][k]
    length = math.copysign(math.hypot(*quat), quat[0])
    return c2w.new_tensor([*(q / length for q in quat), *(row[3] for row in rows[:3])])


def _is_rotation(R: list[list[float]]) -> bool:
    """Whether the rows of R are orthonormal and right-handed, to 1e-3."""
    for i in range(3):
        for j in range(i, 3):
            if abs(sum(a * b for a, b in zip(R[i], R[j], strict=True)) - (i == j)) > 1e-3:
                return False
    (a, b, c), (d, e, f), (g, h, i_) = R
    return a * (e * i_ - f * h) - b * (d * i_ - f * g) + c * (d * h - e * g) > 0


@torch.library.register_fake("gsfields::respond")
def _(means, quats, logits, colors, response, code, windows, pose, time, softness):  # type: ignore[no-untyped-def]
    same_device(
        means=means,
        quats=quats,
        logits=logits,
        colors=colors,
        response=response,
        code=code,
        windows=windows,
        pose=pose,
        time=time,
    )
    return tuple(t.new_empty(t.shape) for t in (means, quats, logits, colors))


@torch.library.register_fake("gsfields::respond_backward")
def _(response, code, windows, pose, time, opacities_t, colors_t, *rest):  # type: ignore[no-untyped-def]
    v_means_t, v_quats_t, v_opacities_t, v_colors_t, _softness, to_response, to_code = rest
    like = (v_means_t, v_quats_t, v_opacities_t, v_colors_t)
    asked = (response if to_response else response[:0], code if to_code else code[:0], windows)
    return tuple(t.new_empty(t.shape) for t in (*like, *asked))


def _respond_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *_, response, code, windows, pose, time, ctx.softness = inputs
    _, _, opacities_t, colors_t = output
    ctx.save_for_backward(response, code, windows, pose, time, opacities_t, colors_t)


def _respond_backward(ctx, *upstream):  # type: ignore[no-untyped-def]
    if ctx.needs_input_grad[7]:
        raise ValueError("pose requires a gradient, but respond is not differentiable in pose")
    to_response, to_code = ctx.needs_input_grad[4:6]
    *grads, v_response, v_code, v_windows = native.respond_backward(
        *ctx.saved_tensors, *upstream, ctx.softness, to_response, to_code
    )
    asked = (v_response if to_response else None, v_code if to_code else None)
    return *grads, *asked, v_windows, None, None, None


torch.library.register_autograd("gsfields::respond", _respond_backward, setup_context=_respond_setup)

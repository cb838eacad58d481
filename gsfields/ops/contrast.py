"""Losses on pairs of pixels."""

import torch
from torch import Tensor

from gsfields.ops.library import native, same_device


def contrast(
    features: Tensor,
    others: Tensor,
    segments: Tensor,
    other_segments: Tensor,
    *,
    squared: bool = True,
    two_exponentials: bool = False,
    temperature: float = 1.0,
    partner_temperature: float | None = None,
    own_partner: bool = True,
) -> Tensor:
    """How surprising it is that a pixel's partner among the others is of its segment: -log(Σ_same exp s / Σ_all exp s).

    s = -x or, of two exponentials, exp(-x), with x = ‖f - f'‖² / T or, if not squared, ‖f - f'‖ / T. Contrastive Lift,
    equations 3.3 and 3.4, and what their released code does (losses/pairs.py). No matrix of all pairs is kept: memory
    is in proportion to P + Q.

    Args:
        features: [P, D]; others: [Q, D].
        segments: [P], other_segments: [Q] int32, 0 or above; only which are equal matters.
        temperature: T of pairs of two segments; partner_temperature: of one, if not the same.
        own_partner: False where others are the features and no pixel is its own partner; it counts among all still.

    Returns [P]; 0, without gradient, for pixels that have no partner. Differentiable once in features and others; where
    two coincide, the slope of an unsquared distance is taken as 0.
    """
    partner = temperature if partner_temperature is None else partner_temperature
    return native.contrast(
        features,
        others,
        segments,
        other_segments,
        squared,
        two_exponentials,
        temperature,
        partner,
        own_partner,
    )[0]


@torch.library.register_fake("gsfields::contrast")
def _(features, others, segments, other_segments, *_settings):  # type: ignore[no-untyped-def]
    same_device(features=features, others=others, segments=segments, other_segments=other_segments)
    return features.new_empty(len(features)), features.new_empty(len(features), 2)


@torch.library.register_fake("gsfields::contrast_backward")
def _(features, others, segments, other_segments, logsums, v_losses, *settings):  # type: ignore[no-untyped-def]
    to_others = settings[-1]
    return torch.empty_like(features), others.new_empty(len(others) if to_others else 0, others.shape[1])


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, _squared, _two, _temperature, _partner, _own = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.settings = inputs[4:]
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, v_losses, _v_logsums):  # type: ignore[no-untyped-def]
    to_features, to_others = ctx.needs_input_grad[:2]
    v_features, v_others = native.contrast_backward(*ctx.saved_tensors, v_losses, *ctx.settings, to_others)
    return v_features if to_features else None, v_others if to_others else None, *[None] * 7


torch.library.register_autograd("gsfields::contrast", _backward, setup_context=_setup)

"""Losses on images."""

import torch
from torch import Tensor

from gsfields.ops.library import native, same_device


def ssim_map(image1: Tensor, image2: Tensor) -> Tensor:
    """Structural similarity per pixel and channel (Wang et al. 2004), for images [B, H, W, C] in [0, 1].

    11x11 Gaussian window of sigma 1.5, zeros outside the image, C1 = 0.01², C2 = 0.03² (the form that 3D Gaussian
    Splatting trains with). Returns [B, H, W, C]; differentiable in image1, not in image2.
    """
    return native.ssim(image1, image2)[0]


@torch.library.register_fake("gsfields::ssim")
def _(image1, image2):  # type: ignore[no-untyped-def]
    same_device(image1=image1, image2=image2)
    return tuple(image1.new_empty(image1.shape) for _ in range(4))


@torch.library.register_fake("gsfields::ssim_backward")
def _(image1, image2, d_mu, d_var, d_cov, v_map):  # type: ignore[no-untyped-def]
    return image1.new_empty(image1.shape)


def _ssim_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no image-sized zeros for the derivatives


def _ssim_backward(ctx, v_map, *_unused):  # type: ignore[no-untyped-def]
    if v_map is None:
        return None, None
    if ctx.needs_input_grad[1]:
        raise ValueError("image2 requires a gradient, but ssim_map is differentiable in image1 only")
    return native.ssim_backward(*ctx.saved_tensors, v_map), None


torch.library.register_autograd("gsfields::ssim", _ssim_backward, setup_context=_ssim_setup)

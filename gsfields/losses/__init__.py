"""Training losses: pure functions of tensors."""

from gsfields.losses.photometric import l1, photometric, ssim

__all__ = ["l1", "photometric", "ssim"]

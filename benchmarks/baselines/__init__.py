"""What the kernels are measured against. Each baseline blends the very tile lists that our kernel gets."""

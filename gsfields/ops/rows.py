"""Steps of optimisation on some rows of a table."""

import torch
from torch import Tensor

from gsfields.ops.library import native


def adam_rows(
    table: Tensor,
    first: Tensor,
    second: Tensor,
    powers: Tensor,
    rows: Tensor,
    grads: Tensor,
    *,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-15,
) -> None:
    """A step of Adam (Kingma & Ba 2015, algorithm 1) on some rows, in place; a row's averages are corrected for its own
    steps.

    Args:
        table, first, second: [N, D], contiguous; the averages of gradients and of their squares, zeros at first.
        powers: [N, 2], both betas to the power of the steps of each row, ones at first.
        rows: [M] int64, each once; grads: [M, D].

    A row outside the table is refused on the CPU, and passed over on a GPU.
    """
    native.adam_rows(table, first, second, powers, rows, grads, rate, *betas, eps)


@torch.library.register_fake("gsfields::adam_rows")
def _(table, first, second, powers, rows, grads, rate, beta1, beta2, eps):  # type: ignore[no-untyped-def]
    return None

"""Steps of optimisation on some rows of a table, moving averages of them, and sums of rows."""

import torch
from torch import Tensor

from gsfields.ops.library import native, same_device


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


def follow_rows(
    fast: Tensor, slow: Tensor, followed: Tensor, rows: Tensor, *, follows: int, momentum: float
) -> Tensor:
    """Some rows of a table beside those of its moving average, [M, 2 D]: fast, then slow.

    The average moves `follows` times in all, slow <- momentum · slow + (1 - momentum) · fast, of which a slow row has
    made followed[row]. It makes what it missed at once and in place, as if the fast one had not changed meanwhile. No
    gradients.

    Args:
        fast, slow: [N, D], slow contiguous; followed: [N] int32, contiguous; rows: [M] int64, each once.

    A row outside the table is refused on the CPU, and comes as zeros on a GPU.
    """
    return torch.as_tensor(native.follow_rows(fast, slow, followed, rows, follows, momentum))


@torch.library.register_fake("gsfields::follow_rows")
def _(fast, slow, followed, rows, follows, momentum):  # type: ignore[no-untyped-def]
    same_device(fast=fast, slow=slow, followed=followed, rows=rows)
    return fast.new_empty(len(rows), 2 * fast.shape[1])


def sum_bags(
    values: Tensor,
    members: Tensor,
    shares: Tensor,
    ends: Tensor,
    bags: Tensor,
    *,
    place: Tensor | None = None,
) -> Tensor:
    """Sums of rows, [B, C]: of each bag that is asked for, over its members k, Σ shares[k] values[place[members[k]]].

    As torch's embedding_bag, but the bags are listed once and for all, and a step asks for some of them, of whose
    members only some have a row. No gradients: the adjoint is such a sum over the lists turned round.

    Args:
        values: [M, C] float32 or float64.
        members: [K] int32, from 0 to N - 1, those of a bag after those of the bag before; shares: [K], of the dtype of
            values.
        ends: [T] int64, where the members of each bag end.
        bags: [B] int64, from 0 to T - 1, in any order.
        place: [N] int32, which row each member has, below 0 for those that have none; by default its own, N = M.

    Numbers out of range are refused on the CPU; on a GPU they must not occur.
    """
    return torch.as_tensor(native.sum_bags(values, place, members, shares, ends, bags))


@torch.library.register_fake("gsfields::sum_bags")
def _(values, place, members, shares, ends, bags):  # type: ignore[no-untyped-def]
    same_device(values=values, place=place, members=members, shares=shares, ends=ends, bags=bags)
    return values.new_empty(len(bags), values.shape[1])

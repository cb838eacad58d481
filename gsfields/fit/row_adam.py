"""Adam for tables of which a step touches some rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gsfields import ops


class RowAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) for parameters [N, D] whose gradients are sparse, [M, D] for M rows that differ.

    A step moves those rows and no others, and each row's averages are corrected for its own number of steps: rows that
    a view does not show neither drift on what they were last told nor leap when they are told again. What a step costs
    does not depend on N. Float32, or float64.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Raises ValueError for a gradient that is not sparse."""
        if closure is not None:
            raise ValueError("closure is given, but RowAdam takes none")
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._step(table, group)

    def _step(self, table: nn.Parameter, group: dict[str, Any]) -> None:
        grad = table.grad
        if grad is None or grad.layout != torch.sparse_coo or grad.sparse_dim() != 1:
            raise ValueError("RowAdam needs gradients that are sparse in rows, but got a dense one")
        state = self.state[table]
        if not state:
            state["first"], state["second"] = torch.zeros_like(table), torch.zeros_like(table)
            state["powers"] = table.new_ones(len(table), 2)  # betas to the power of each row's steps
        ops.adam_rows(
            table, state["first"], state["second"], state["powers"], grad._indices()[0], grad._values(),
            rate=group["lr"], betas=group["betas"], eps=group["eps"],
        )  # fmt: skip

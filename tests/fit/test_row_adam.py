"""RowAdam: parameters of which a step touches some rows."""

import pytest
import torch
from torch import nn
from torch.nn.functional import embedding

from gsfields.fit.row_adam import RowAdam


def test_rows_of_all_steps_move_as_under_adam_and_others_not_at_all():
    start = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table, dense = nn.Parameter(start.clone()), nn.Parameter(start[[2, 5, 7]].clone())
    rows, adam = RowAdam([table], lr=0.1), torch.optim.Adam([dense], lr=0.1, eps=1e-15)
    shown, target = torch.tensor([2, 5, 7]), torch.linspace(-1, 1, 5, dtype=torch.float64)
    for step in range(20):
        for optimizer in (rows, adam):
            optimizer.param_groups[0]["lr"] = 0.1 * 0.9**step
            optimizer.zero_grad(set_to_none=True)
        (embedding(shown, table, sparse=True) - target).square().sum().backward()
        (dense - target).square().sum().backward()
        rows.step()
        adam.step()
    torch.testing.assert_close(table[shown], dense)
    others = [0, 1, 3, 4, 6, 8]
    assert torch.equal(table[others], start[others])


def test_what_has_no_gradient_stays():
    table = nn.Parameter(torch.ones(3, 2))
    RowAdam([table], lr=0.1).step()
    assert torch.equal(table, torch.ones(3, 2))


def test_dense_gradients_and_closures_are_refused():
    table = nn.Parameter(torch.ones(3, 2))
    table.sum().backward()
    with pytest.raises(ValueError, match="sparse in rows"):
        RowAdam([table], lr=0.1).step()
    with pytest.raises(ValueError, match="closure is given"):
        RowAdam([table], lr=0.1).step(lambda: None)

"""The benchmarks of plans run, and say what they are for."""

from __future__ import annotations

from benchmarks import outputs, plan_store, scenes
from gsfields.bench.clock import Effort

ONCE = Effort(0, min_rounds=1, max_rounds=1, warm_up=1, calls=1)


def test_outputs_are_timed_joined_and_apart(monkeypatch):
    monkeypatch.setattr(outputs, "WIDTHS", (1, 400))
    rows = list(outputs.measure(scenes.prototype(300, 48), ONCE))
    assert [(row.channels, row.backward, row.rule_joins) for row in rows] == [
        (1, False, True),
        (1, True, True),
        (400, False, False),
        (400, True, False),
    ]
    assert all(row.joined.best > 0 and row.apart.best > 0 for row in rows)
    assert outputs.table(rows).count("\n") == 5


def test_a_kept_plan_is_weighed_and_timed():
    row = plan_store.measure(scenes.prototype(300, 48), ONCE)
    assert row.pairs_kept <= row.pairs and row.gaussians_kept <= row.gaussians == 300
    assert row.list_bytes < row.kept.nbytes < row.plain_bytes
    assert "| prototype | 300 |" in plan_store.table([row], 48)

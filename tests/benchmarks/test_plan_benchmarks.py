"""The benchmarks of plans run, and say what they are for."""

from __future__ import annotations

from benchmarks import outputs, plan_store, sampled, scenes
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


def test_sampled_pixels_are_timed_beside_all():
    rows = sampled.measure(scenes.prototype(300, 48), ONCE, 5)
    assert [row[1] for row in rows] == ["all", *(f"{n} anywhere" for n in sampled.COUNTS), "a patch of 48x48"]
    assert rows[0][3] == rows[0][5] == "1.0x" and all(float(row[2]) > 0 for row in rows)
    assert sampled.table(rows).count("\n") == 6

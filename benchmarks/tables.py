"""How figures are set in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, figures to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def three(value: float) -> str:
    """Three figures: what a GPU does in microseconds must not become 0.00."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def count(value: float) -> str:
    return f"{value:,.0f}"


def number(value: float | None) -> float:
    """JSON has no nan."""
    return math.nan if value is None else float(value)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def verdict(value: float, goal: float, *, at_most: bool = False) -> str:
    """Whether a target was met, and by how much."""
    if math.isnan(value):
        return "not measured"
    margin = goal - value if at_most else value - goal
    return f"{value:.2f}: {'met' if margin >= 0 else 'missed'} by {abs(margin):.2f}"

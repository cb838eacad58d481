"""Lines over logarithmic axes as SVG, one panel beside the other; readable on white and on black."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 300, 250  # of a panel's axes
LEFT, TOP, RIGHT, BOTTOM = 48, 28, 14, 34  # around them
LINE = 16  # of the legend
COLORS = ("#2f7ed8", "#d9822b", "#2ca25f", "#b455c6", "#8a8a8a", "#d6336c", "#15a3a3", "#94a300")
STYLE = (
    "text{font:11px sans-serif;fill:#333}.t{font-weight:bold}.g{stroke:#8888;stroke-width:.5}"
    ".l{fill:none;stroke-width:1.6}@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)


@dataclass(frozen=True)
class Series:
    """One line: (x, y) in order of x, all positive."""

    name: str
    points: tuple[tuple[float, float], ...]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Axes of their own."""

    title: str
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Axis:
    """Maps a range of positive numbers to a length."""

    low: float
    high: float
    base: float
    length: float

    @classmethod
    def over(cls, values: Sequence[float], base: float, length: float) -> Axis:
        """From one whole power of the base to another, around all values."""
        low, high = (math.log(f(values), base) for f in (min, max))
        return cls(
            math.floor(low + 1e-9), max(math.ceil(high - 1e-9), math.floor(low + 1e-9) + 1), base, length
        )

    def place(self, value: float) -> float:
        return self.length * (math.log(value, self.base) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        return [self.base**power for power in range(int(self.low), int(self.high) + 1)]


def svg(panels: Sequence[Panel], columns: int, x_label: str, y_label: str) -> str:
    """The panels row by row, with the same axes for all, and one legend below. Raises ValueError without a point."""
    points = [point for panel in panels for series in panel.series for point in series.points]
    if not points:
        raise ValueError("there is nothing to draw: panels has no points")
    x = Axis.over([p[0] for p in points], 4, WIDTH)
    y = Axis.over([p[1] for p in points], 10, HEIGHT)
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    color = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}
    dashed = {series.name for panel in panels for series in panel.series if series.dashed}
    columns = min(columns, len(panels))
    across, down = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM
    grid_height = math.ceil(len(panels) / columns) * down
    size = columns * across, grid_height + LINE * len(names) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}"><style>{STYLE}</style>'
    ]
    for i, panel in enumerate(panels):
        corner = i % columns * across + LEFT, i // columns * down + TOP
        parts.append(f'<g transform="translate({corner[0]} {corner[1]})">')
        parts += [*_frame(panel.title, x, y, x_label, y_label), *_lines(panel, x, y, color), "</g>"]
    for i, name in enumerate(names):
        at = grid_height + LINE * i + 8
        parts.append(_stroke(f"M{LEFT} {at}h24", color[name], name in dashed))
        parts.append(f'<text x="{LEFT + 30}" y="{at + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _frame(title: str, x: Axis, y: Axis, x_label: str, y_label: str) -> Iterator[str]:
    yield f'<text class="t" x="{WIDTH / 2}" y="-10" text-anchor="middle">{escape(title)}</text>'
    yield f'<text x="{WIDTH / 2}" y="{HEIGHT + 29}" text-anchor="middle">{escape(x_label)}</text>'
    yield f'<text transform="translate(-38 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    for value in x.ticks():
        at = x.place(value)
        yield f'<path class="g" d="M{at:.1f} 0v{HEIGHT}"/>'
        yield f'<text x="{at:.1f}" y="{HEIGHT + 14}" text-anchor="middle">{value:g}</text>'
    for value in y.ticks():
        at = HEIGHT - y.place(value)
        yield f'<path class="g" d="M0 {at:.1f}h{WIDTH}"/>'
        yield f'<text x="-5" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>'


def _lines(panel: Panel, x: Axis, y: Axis, color: dict[str, str]) -> Iterator[str]:
    for series in panel.series:
        places = [f"{x.place(a):.1f} {HEIGHT - y.place(b):.1f}" for a, b in series.points]
        if places:
            yield _stroke("M" + "L".join(places), color[series.name], series.dashed)


def _stroke(path: str, color: str, dashed: bool) -> str:
    dash = ' stroke-dasharray="5 3"' if dashed else ""
    return f'<path class="l" stroke="{color}"{dash} d="{path}"/>'

"""Two outputs in one walk or in two: the measurement behind outputs.COPIES_PER_PAIR.

`python -m benchmarks.outputs` times, for each scene and width of the second output, a blend with a colour of three
channels beside it, joined and apart, forward and with gradients to the values. Prints Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

import gsfields
from benchmarks import scenes, tables
from benchmarks.measure import options
from gsfields import outputs
from gsfields.bench.clock import Effort, Task, Timing, clock_of, interleaved
from gsfields.bench.scene import Scene

WIDTHS = (1, 4, 8, 16, 32, 64, 128, 256, 512)
NAMES = ("prototype", *scenes.SPLATS)


@dataclass(frozen=True)
class Row:
    """What a second output of `channels` costs beside a colour, in milliseconds."""

    scene: str
    gaussians: int
    pairs: int
    channels: int
    backward: bool
    joined: Timing
    apart: Timing
    rule_joins: bool

    @property
    def ratio(self) -> float:
        """Of apart to joined: above 1, where sharing a walk pays."""
        return self.apart.ratio(self.joined)

    @property
    def worth(self) -> bool:
        """Whether the rule chose the faster one, or one at most a tenth slower."""
        return self.ratio > 0.9 if self.rule_joins else self.ratio < 1.1


@contextmanager
def copies_per_pair(number: float) -> Iterator[None]:
    """Another rule for what shares a walk."""
    before = outputs.COPIES_PER_PAIR
    outputs.COPIES_PER_PAIR = number  # type: ignore[assignment]
    try:
        yield
    finally:
        outputs.COPIES_PER_PAIR = before


def measure(scene: Scene, effort: Effort) -> Iterator[Row]:
    """A row for each width, forward and with gradients."""
    viewmats, Ks, width, height = scene.camera(0)
    plan = gsfields.plan(*scene.geometry, viewmats[0], Ks[0], width, height)
    clock = clock_of(plan.means2d.device)
    for channels in WIDTHS:
        values = {
            "color": scene.values.clone(),
            "more": torch.rand(len(scene), channels, device=scene.means.device),
        }
        for backward in (False, True):
            tasks = {
                "joined": Task(blending(plan, values, 1e9, backward)),
                "apart": Task(blending(plan, values, 0, backward)),
            }
            times = interleaved(tasks, effort, clock)
            asked = outputs.collect(values, None, plan.depths)
            yield Row(
                scene.name, len(scene), len(plan.ids), channels, backward, times["joined"], times["apart"],
                len(outputs.walks(asked, len(plan.ids))) == 1,
            )  # fmt: skip


def blending(
    plan: gsfields.Plan, values: dict[str, Tensor], copies: float, backward: bool
) -> Callable[[object], None]:
    """Blends, and sends gradients of both images to the values."""

    def run(_: object) -> None:
        leaves = {name: v.detach().requires_grad_(backward) for name, v in values.items()}
        with copies_per_pair(copies):
            images = plan.blend(leaves)
        if backward:
            torch.autograd.backward(list(images.values()), list(images.values()))

    return run


def table(rows: list[Row]) -> str:
    head = [
        "scene",
        "Gaussians",
        "pairs",
        "3 +",
        "",
        "joined, ms",
        "apart, ms",
        "apart / joined",
        "the rule",
        "",
    ]
    return tables.table(
        head,
        [
            [
                row.scene,
                tables.count(row.gaussians),
                tables.count(row.pairs),
                str(row.channels),
                "with gradients" if row.backward else "forward",
                tables.ms(row.joined.median),
                tables.ms(row.apart.median),
                f"{row.ratio:.2f}",
                "joins" if row.rule_joins else "does not",
                "" if row.worth else "wrong",
            ]
            for row in rows
        ],
    )


def main() -> None:
    asked = options(__doc__, seconds=0.5)
    rows: list[Row] = []
    for scene in scenes.available(NAMES, asked.size, asked.device):
        rows += measure(scene, Effort(asked.seconds))
    print(table(rows))


if __name__ == "__main__":
    main()

"""What a plan takes in a PlanCache, and how long it takes to get it: `python -m benchmarks.plan_store`.

For each trained splat: bytes of the plan of one view as it is made and as it is kept, and the time to make it, to pack
it, and to get it from memory and from disk. Prints Markdown.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import gsfields
from benchmarks import scenes, tables
from benchmarks.measure import options
from gsfields import ops
from gsfields.bench.clock import Effort, Task, Timing, clock_of, interleaved
from gsfields.bench.scene import Scene
from gsfields.packed_plan import PackedPlan, plain_bytes


@dataclass(frozen=True)
class Row:
    """One view of a scene."""

    scene: str
    gaussians: int
    pairs: int
    kept: PackedPlan
    plain_bytes: int
    times: dict[str, Timing]

    @property
    def pairs_kept(self) -> int:
        return self.kept.tensors["ids"].shape[0]

    @property
    def gaussians_kept(self) -> int:
        return self.kept.tensors["depths"].shape[0]

    @property
    def list_bytes(self) -> int:
        return sum(self.kept.tensors[name].nbytes for name in ("ids", "counts", "gaps"))


def measure(scene: Scene, effort: Effort) -> Row:
    viewmats, Ks, width, height = scene.camera(0)

    def make(_: object) -> gsfields.Plan:
        return gsfields.plan(*scene.geometry, viewmats[0], Ks[0], width, height)

    def project(_: object) -> tuple[Tensor, ...]:
        return ops.project(*scene.geometry, viewmats, Ks, width, height)

    plan = make(None)
    packed = PackedPlan.pack(plan)
    with tempfile.TemporaryDirectory() as folder:
        memory = gsfields.PlanCache(make, limit_bytes=1 << 40)
        disk = gsfields.PlanCache(make, limit_bytes=0, spill=Path(folder))
        lists = gsfields.PlanCache(make, limit_bytes=1 << 40, project=project)
        memory[0], disk[0], lists[0]
        tasks = {
            "make": Task(make),
            "pack": Task(lambda _: PackedPlan.pack(plan)),
            "from memory": Task(lambda _: memory[0]),
            "lists, projected again": Task(lambda _: lists[0]),
            "from disk": Task(lambda _: disk[0]),
        }
        times = interleaved(tasks, effort, clock_of(plan.means2d.device))
    return Row(scene.name, len(scene), len(plan.ids), packed, plain_bytes(plan), times)


def table(rows: list[Row], size: int) -> str:
    head = [
        "scene",
        "Gaussians",
        "drawn",
        "pairs",
        "kept",
        "plan, MiB",
        "bytes / pair",
        "packed, MiB",
        "bytes / pair",
    ]
    head += ["lists alone", "ms: make", "pack", "from memory", "lists, projected again", "from disk"]
    return f"One view at {size} x {size}.\n\n" + tables.table(
        head,
        [
            [
                row.scene,
                tables.count(row.gaussians),
                tables.count(row.gaussians_kept),
                tables.count(row.pairs),
                tables.count(row.pairs_kept),
                f"{row.plain_bytes / 2**20:.2f}",
                f"{row.plain_bytes / row.pairs:.1f}",
                f"{row.kept.nbytes / 2**20:.2f}",
                f"{row.kept.nbytes / row.pairs:.1f}",
                f"{row.list_bytes / row.pairs:.2f}",
                *(tables.ms(timing.median) for timing in row.times.values()),
            ]
            for row in rows
        ],
    )


def main() -> None:
    asked = options(__doc__, seconds=1.0)
    found = scenes.available(scenes.SPLATS, asked.size, asked.device)
    rows = [measure(scene, Effort(asked.seconds)) for scene in found]
    print(table(rows, asked.size))


if __name__ == "__main__":
    main()

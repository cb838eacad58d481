"""Peak memory of one case, in a process of its own: `python -m benchmarks.memory CASE`, CASE being JSON.

The case is {"scene": name, "gaussians": N, "size": pixels, "threads": T}; the answer is a MemoryRow as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import torch
from torch import Tensor

import gsfields
from benchmarks import scenes
from benchmarks.measure import PeakMemory
from benchmarks.results import MemoryRow
from gsfields.bench.scene import Scene, synthetic
from gsfields.bench.stages import ours, project_and_bin


def measure(case: dict[str, Any]) -> MemoryRow:
    """Peaks of a forward, then of a forward and backward, from the 3D Gaussians of the case's first view."""
    torch.set_num_threads(case["threads"])
    render(synthetic(16, 16), backward=True)  # threads, autograd and allocator are set up before the base
    scene = scenes.load(case["scene"], case["gaussians"], case["size"])
    memory = PeakMemory()
    with torch.no_grad():
        render(scene, backward=False)
    forward = memory.rise
    memory.restart()
    before = memory.base
    render(scene, backward=True)
    both = memory.rise
    viewmats, Ks, width, height = scene.camera(0)
    sizes = plan_bytes(gsfields.plan(*scene.geometry, viewmats[0], Ks[0], width, height))
    pairs = sizes["pairs"]
    return MemoryRow(
        scene=scene.name,
        gaussians=len(scene),
        width=width,
        height=height,
        threads=case["threads"],
        pairs=pairs,
        before=before,
        forward_rise=forward,
        forward_backward_rise=both,
        plan_bytes=sizes["lists"] + sizes["gaussians"] + sizes["offsets"],
        plan_bytes_per_pair=sizes["lists"] / max(pairs, 1),
        plan_bytes_per_gaussian=sizes["gaussians"] / len(scene),
    )


def render(scene: Scene, *, backward: bool) -> None:
    """Project, bin and blend the first view; the results are dropped."""
    if backward:
        scene = scene.with_gradients()
    image, _ = ours(project_and_bin(scene, 0))
    if backward:
        image.sum().backward()


def plan_bytes(plan: gsfields.Plan) -> dict[str, int]:
    """What the tensors that a Plan keeps take, by what they grow with."""

    def total(*tensors: Tensor) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    per_gaussian = (plan.means2d, plan.depths, plan.conics, plan.opacities, plan.radii)
    return {
        "pairs": plan.ids.numel(),
        "lists": total(plan.ids),
        "gaussians": total(*per_gaussian),
        "offsets": total(plan.tile_offsets),
    }


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(measure(json.loads(sys.argv[1])))))

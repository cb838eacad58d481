"""Peak memory of one case, in a process of its own: `python -m benchmarks.memory CASE`, CASE being JSON.

The case is {"scene": name, "gaussians": N, "size": pixels, "threads": T}; the answer is a MemoryRow as JSON. With
"channels", "storage", "task" and "size" as [width, height] it is one task of the channel sweep, and the answer a
WideMemoryRow.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

import gsfields
from benchmarks import scenes
from benchmarks.channel_tasks import (
    Mode,
    input_bytes,
    output_bytes,
    quick_gradient,
    with_periodic_values,
)
from benchmarks.channel_tasks import ours as wide
from benchmarks.measure import PeakMemory
from benchmarks.results import MemoryRow, WideMemoryRow
from gsfields.bench.scene import Scene, resized, synthetic
from gsfields.bench.stages import View, ours, project_and_bin


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


def measure_wide(case: dict[str, Any]) -> WideMemoryRow:
    """The peak of one call of a task. Only a tiny one of its kind has run before in this process."""
    torch.set_num_threads(case["threads"])
    storage, channels, task = getattr(torch, case["storage"]), case["channels"], case["task"]
    wide_row(stored(synthetic(16, 16), channels, storage), task, peak_mib)
    width, height = case["size"]
    scene = scenes.load(case["scene"], case["gaussians"], width)
    if (scene.width, scene.height) != (width, height):
        scene = resized(scene, width, height, 1)
    return wide_row(stored(scene, channels, storage), task, peak_mib, scene.name)


def stored(scene: Scene, channels: int, storage: torch.dtype) -> View:
    view = project_and_bin(with_periodic_values(scene, channels), 0)
    return dataclasses.replace(view, values=view.values.to(storage))


def wide_row(
    view: View, task: str, peak: Callable[[Callable[[], object]], float], scene: str = ""
) -> WideMemoryRow:
    """One task's memory, `peak` telling that of a call in MiB."""
    mode = Mode(storage=view.values.dtype)
    v_image = quick_gradient(view)
    timed = wide(mode).tasks(view, v_image)[task]
    argument = timed.prepare(0)
    rise = peak(lambda: timed.run(argument))
    outputs = output_bytes(view, task) / 2**20
    return WideMemoryRow(
        scene=scene,
        gaussians=len(view.values),
        width=view.width,
        height=view.height,
        channels=view.values.shape[1],
        storage=str(view.values.dtype).removeprefix("torch."),
        task=task,
        inputs=input_bytes(view, task) / 2**20,
        outputs=outputs,
        beyond=rise - outputs,
    )


def peak_mib(call: Callable[[], object]) -> float:
    """What the process held at most during a call, above what it held before."""
    with suppress(OSError, AttributeError):  # what was freed would else be kept, and used again unseen
        ctypes.CDLL(None).malloc_trim(0)
    memory = PeakMemory()
    kept = call()
    rise = memory.rise
    del kept
    return rise


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(dataclasses.asdict(measure_wide(given) if "task" in given else measure(given))))

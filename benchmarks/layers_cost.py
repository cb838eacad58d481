"""What a layered rendering costs beside a plain one of as many Gaussians, on a fitted run.

Processor time of one thread: what else the machine does does not count.
"""

from __future__ import annotations

import time as clocks
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import threads
from gsfields.bench.clock import Effort, Task, WallClock, interleaved
from gsfields.camera import Camera
from gsfields.fit.checkpoint import Checkpoint
from gsfields.fit.scene import open_dataset
from gsfields.gaussians import SH_C0, Gaussians
from gsfields.layers import LayeredScene, render_layers
from gsfields.rendering import render

SIZES = ((228, 128), (456, 256))


class CpuClock(WallClock):
    """Processor time of this process, milliseconds."""

    def ms(self, call: Callable[[], object]) -> float:
        start = clocks.process_time()
        call()
        return 1e3 * (clocks.process_time() - start)


def measure(run: Path, width: int, height: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Rows by task: forward, forward and backward, and that with the colour of each layer apart."""
    checkpoint = Checkpoint.load(run)
    assert isinstance(checkpoint.scene, LayeredScene)
    scene, dataset = checkpoint.scene.detach(), open_dataset(checkpoint.config.data)
    middle = len(dataset.views) // 2
    time = dataset.times().tolist()[middle]
    camera = dataset.views[middle].camera.resized(width, height)
    plain = as_plain(scene, camera, time)
    visible = int(render(plain, camera).plan.visible.sum())
    tasks = {
        "plain": Task(lambda _: _forward(lambda: render(plain, camera).color)),
        "layered": Task(lambda _: _forward(lambda: render_layers(scene, camera, time).color)),
        "plain backward": Task(_plain_step(plain, camera)),
        "layered backward": Task(_layered_step(scene, camera, time, parts=False)),
        "layered backward with parts": Task(_layered_step(scene, camera, time, parts=True)),
    }
    with threads(1):
        timed = interleaved(tasks, Effort(seconds, min_rounds=15), CpuClock())
    pairs = {
        "forward": ("plain", "layered"),
        "forward and backward": ("plain backward", "layered backward"),
        "forward and backward, with parts": ("plain backward", "layered backward with parts"),
    }
    return {
        f"{width}x{height} {task}": {
            "gaussians": len(plain),
            "visible": visible,
            "plain_ms": timed[one].median,
            "layered_ms": timed[other].median,
            "ratio": timed[other].ratio(timed[one]),
        }
        for task, (one, other) in pairs.items()
    }


def as_plain(scene: LayeredScene, camera: Camera, time: float) -> Gaussians:
    """All Gaussians of a layered scene as they are at a time, as one static set of the same SH degree."""
    still = [scene.static, scene.shell]
    moving = []
    for layer in (scene.semistatic, scene.dynamic):
        means, quats, opacities, colors = layer.at(time, scene.duration, camera, scene.softness)
        sh0 = ((colors - 0.5) / SH_C0)[:, None]
        at_rest = layer.gaussians
        logits = torch.logit(opacities, eps=1e-6)
        moving.append(replace(at_rest, means=means, quats=quats, opacity_logits=logits, sh0=sh0))
    sets = [*still, *moving]
    rest = max(g.shN.shape[1] for g in sets)
    fields = {
        name: torch.cat([g.parameters()[name] for g in sets])
        for name in ("means", "quats", "log_scales", "opacity_logits", "sh0")
    }
    padded = [torch.nn.functional.pad(g.shN, (0, 0, 0, rest - g.shN.shape[1])) for g in sets]
    return Gaussians(**fields, shN=torch.cat(padded)).detach()


def _forward(call: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        call()


def _plain_step(plain: Gaussians, camera: Camera) -> Callable[[Any], None]:
    leaves = {name: value.clone().requires_grad_() for name, value in plain.parameters().items()}
    gaussians = Gaussians(**leaves)

    def step(_: Any) -> None:
        color = render(gaussians, camera).color
        torch.autograd.grad([color], list(leaves.values()), [torch.ones_like(color)], allow_unused=True)

    return step


def _layered_step(scene: LayeredScene, camera: Camera, time: float, *, parts: bool) -> Callable[[Any], None]:
    own = scene.detach()
    leaves = [value.requires_grad_() for value in own.tensors().values()]

    def step(_: Any) -> None:
        out = render_layers(own, camera, time, parts=parts)
        images = [out.color, out.masks, out.uncertainty]
        images += [out.parts] if out.parts is not None else []
        torch.autograd.grad(images, leaves, [torch.ones_like(i) for i in images], allow_unused=True)

    return step

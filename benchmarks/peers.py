"""Other rasterizers on our inputs: found, checked to agree, and only then timed beside ours."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.contenders import relative_distance
from benchmarks.results import Agreement
from gsfields.bench.clock import Task
from gsfields.bench.scene import Scene
from gsfields.bench.stages import image_gradient, ours, project_and_bin

# gsplat 1.5 clamps alpha at 0.999 and we at 0.99, as gsplat 1.6: below this opacity there is no difference.
MAX_OPACITY = 0.98

Render = Callable[[Scene, int], Tensor]  # scene, index of the view -> image [1, H, W, C]


@dataclass(frozen=True)
class Peer:
    """A rasterizer that takes what ours takes."""

    name: str
    render: Render


def find(device: torch.device) -> tuple[list[Peer], list[str]]:
    """The peers of this machine, and a line for each that is missing."""
    try:
        gsplat = importlib.import_module("gsplat")
    except ImportError:
        return [], ["gsplat is not installed: no peer"]
    name = f"gsplat {getattr(gsplat, '__version__', '')}".strip()
    if device.type != "cuda":
        return [], [f"{name} is installed, but its rasterizer runs on CUDA only: no peer"]

    return [Peer(name, gsplat_render(gsplat.rasterization))], []


def gsplat_render(rasterization: Callable[..., tuple[Tensor, Tensor, object]]) -> Render:
    """gsplat's rasterization, unpacked, of the scene's values as colours."""

    def render(scene: Scene, index: int) -> Tensor:
        means, quats, scales, opacities, values = scene.parameters
        viewmats, Ks, width, height = scene.camera(index)
        arguments = (means, quats, scales, opacities, values, viewmats, Ks, width, height)
        return rasterization(*arguments, packed=False)[0]

    return render


def our_render(scene: Scene, index: int) -> Tensor:
    return ours(project_and_bin(scene, index))[0]


def compare(scene: Scene, peer: Peer) -> Agreement:
    """The peer's image of the first view against ours, and its gradients of all parameters.

    A pixel where one rounding decides otherwise may differ by about 1/255 of the largest value; few may.
    """
    images, gradients = [], []
    for render in (our_render, peer.render):
        leaf = scene.with_gradients()
        image = render(leaf, 0)
        gradients.append(
            torch.autograd.grad(image, leaf.parameters, image_gradient(project_and_bin(scene, 0)))
        )
        images.append(image.detach())
    error = (images[1] - images[0]).abs().amax(dim=-1) / scene.values.abs().max().clamp(min=1e-12)
    worst, outliers = float(error.max()), float((error > 1e-3).float().mean())
    gradient = max(relative_distance(a, b) for a, b in zip(*gradients))
    return Agreement(worst, outliers, gradient, worst <= 2e-2 and outliers <= 1e-3 and gradient <= 1e-2)


def tasks(scene: Scene, peer: Peer) -> dict[str, Task]:
    """The peer's side of `render` and `render+backward`, named after it."""
    v_image = image_gradient(project_and_bin(scene, 0))

    def forward(i: int) -> Tensor:
        with torch.no_grad():
            return peer.render(scene, i)

    def backward(i: int) -> object:
        leaf = scene.with_gradients()
        return torch.autograd.grad(peer.render(leaf, i), leaf.parameters, v_image)

    return {f"{peer.name} render": Task(forward), f"{peer.name} render+backward": Task(backward)}

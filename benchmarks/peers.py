"""Other rasterizers on our inputs: found, checked to agree, and only then timed beside ours."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import relative_distance
from benchmarks.results import Agreement
from gsfields.bench.clock import Task
from gsfields.bench.scene import Scene
from gsfields.bench.stages import image_gradient, ours, project_and_bin
from gsfields.gaussians import SH_C0

# gsplat 1.5 clamps alpha at 0.999 and we at 0.99, as gsplat 1.6: below this opacity there is no difference.
MAX_OPACITY = 0.98

Render = Callable[[Scene, int], Tensor]  # scene, index of the view -> image [1, H, W, C]


@dataclass(frozen=True)
class Peer:
    """A rasterizer that takes what ours takes."""

    name: str
    render: Render
    otherwise: Render | None = None  # for numbers of channels that `render` refuses


def find(device: torch.device, modules: Sequence[str] = ("gsplat",)) -> tuple[list[Peer], list[str]]:
    """The peers of this machine among these of PEERS, and a line for each that is missing."""
    found, missing = [], []
    for module in modules:
        try:
            library = importlib.import_module(module)
        except ImportError:
            missing.append(f"{module} is not installed: no peer")
            continue
        name = f"{module} {getattr(library, '__version__', '')}".strip()
        if device.type != "cuda":
            missing.append(f"{name} is installed, but its rasterizer runs on CUDA only: no peer")
            continue
        try:
            found.append(PEERS[module](name, library))
        except AttributeError as error:
            missing.append(f"{name} has another interface than the one known here ({error}): no peer")
    return found, missing


# ---- gsplat ---------------------------------------------------------------------------------------------------

GSPLAT_COUNTS = (32, 16, 8, 4, 3, 2, 1)  # of channels, that every build of gsplat has kernels for


def gsplat_peer(name: str, gsplat: Any) -> Peer:
    return Peer(name, gsplat_render(gsplat.rasterization), gsplat_in_parts(gsplat.rasterization))


def gsplat_render(rasterization: Callable[..., tuple[Tensor, Tensor, object]]) -> Render:
    """gsplat's rasterization, unpacked, of the scene's values as colours; it cuts what is wide into chunks of 32."""

    def render(scene: Scene, index: int) -> Tensor:
        means, quats, scales, opacities, values = scene.parameters
        viewmats, Ks, width, height = scene.camera(index)
        arguments = (means, quats, scales, opacities, values, viewmats, Ks, width, height)
        return rasterization(*arguments, packed=False)[0]

    return render


def gsplat_in_parts(rasterization: Callable[..., tuple[Tensor, Tensor, object]]) -> Render:
    """One rasterization for each part of GSPLAT_COUNTS, with a projection and a sort of its own."""
    whole = gsplat_render(rasterization)

    def render(scene: Scene, index: int) -> Tensor:
        parts = scene.values.split(parts_of(scene.values.shape[1]), dim=1)
        return torch.cat([whole(replace(scene, values=part), index) for part in parts], dim=-1)

    return render


def parts_of(channels: int) -> list[int]:
    """As few of GSPLAT_COUNTS as add up to the number."""
    parts: list[int] = []
    while channels:
        parts.append(next(count for count in GSPLAT_COUNTS if count <= channels))
        channels -= parts[-1]
    return parts


# ---- fVDB -----------------------------------------------------------------------------------------------------


def fvdb_peer(name: str, fvdb: Any) -> Peer:
    return Peer(name, fvdb_render(fvdb.GaussianSplat3d.from_tensors))


def fvdb_render(from_tensors: Callable[..., Any]) -> Render:
    """fVDB's images of Gaussians whose harmonics of degree 0 are the scene's values."""

    def render(scene: Scene, index: int) -> Tensor:
        means, quats, scales, opacities, values = scene.parameters
        viewmats, Ks, width, height = scene.camera(index)
        sh0 = ((values - 0.5) / SH_C0).unsqueeze(1)
        shN = sh0.new_empty(len(scene), 0, values.shape[1])
        splats = from_tensors(means, quats, scales.log(), opacities.logit(), sh0, shN)
        image: Tensor = splats.render_images(viewmats, Ks, width, height, 0.01, 1e10)[0]
        return image

    return render


PEERS: dict[str, Callable[[str, Any], Peer]] = {"gsplat": gsplat_peer, "fvdb": fvdb_peer}


# ---- beside ours ----------------------------------------------------------------------------------------------


def our_render(scene: Scene, index: int) -> Tensor:
    return ours(project_and_bin(scene, index))[0]


def compare(scene: Scene, peer: Peer, v_image: Tensor | None = None) -> Agreement:
    """The peer's image of the first view against ours, and its gradients of all parameters.

    A pixel where one rounding decides otherwise may differ by about 1/255 of the largest value; few may.
    """
    if v_image is None:
        v_image = image_gradient(project_and_bin(scene, 0))
    images, gradients = [], []
    for render in (our_render, peer.render):
        leaf = scene.with_gradients()
        image = render(leaf, 0)
        gradients.append(torch.autograd.grad(image, leaf.parameters, v_image))
        images.append(image.detach())
    error = (images[1] - images[0]).abs().amax(dim=-1) / scene.values.abs().max().clamp(min=1e-12)
    worst, outliers = float(error.max()), float((error > 1e-3).float().mean())
    gradient = max(relative_distance(a, b) for a, b in zip(*gradients))
    return Agreement(worst, outliers, gradient, worst <= 2e-2 and outliers <= 1e-3 and gradient <= 1e-2)


def tasks(scene: Scene, peer: Peer) -> dict[str, Task]:
    """The peer's side of `render` and `render+backward`, named after it."""
    made = render_tasks(scene, peer.render, image_gradient(project_and_bin(scene, 0)))
    return {f"{peer.name} render": made[RENDER], f"{peer.name} render+backward": made[RENDER_ALL]}


RENDER, RENDER_VALUES, RENDER_ALL = "render", "render+backward (values)", "render+backward (all)"


def render_tasks(scene: Scene, render: Render, v_image: Tensor) -> dict[str, Task]:
    """From the 3D Gaussians to the image, and back to the gradients of their values, or of all parameters."""

    def forward(i: int) -> Tensor:
        with torch.no_grad():
            return render(scene, i)

    def to_values(i: int) -> object:
        leaf = replace(scene, values=scene.values.detach().requires_grad_())
        return torch.autograd.grad(render(leaf, i), leaf.values, v_image)

    def to_all(i: int) -> object:
        leaf = scene.with_gradients()
        return torch.autograd.grad(render(leaf, i), leaf.parameters, v_image)

    return {RENDER: Task(forward), RENDER_VALUES: Task(to_values), RENDER_ALL: Task(to_all)}

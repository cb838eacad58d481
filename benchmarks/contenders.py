"""Who blends: our kernels and the baselines, all called with the same tile lists.

A contender is a name and one function; another backend or a peer is added by adding an entry (and, for a
device that answers asynchronously, a synchronisation at the end of its function).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.baselines import scalar_loop, torch_reference
from benchmarks.measure import Task
from benchmarks.results import Agreement
from benchmarks.scenes import Scene
from gsfields import ops


@dataclass(frozen=True)
class View:
    """What blending one view takes: values [N, C], projected Gaussians [1, N, ...] and their tile lists."""

    values: Tensor
    means2d: Tensor
    conics: Tensor
    opacities2d: Tensor
    ids: Tensor
    tile_offsets: Tensor
    width: int
    height: int

    @property
    def lists(self) -> tuple[Tensor, Tensor]:
        return self.ids, self.tile_offsets

    @property
    def differentiable(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.values, self.means2d, self.conics, self.opacities2d

    def with_gradients(self) -> View:
        """The same view on fresh leaves."""
        values, means2d, conics, opacities2d = (
            t.detach().clone().requires_grad_() for t in self.differentiable
        )
        return replace(self, values=values, means2d=means2d, conics=conics, opacities2d=opacities2d)


def project_and_bin(scene: Scene, index: int, values: Tensor | None = None) -> View:
    """The view of one of the scene's cameras; differentiable in the scene's tensors where they ask for it."""
    viewmats, Ks, width, height = scene.camera(index)
    means2d, depths, conics, opacities2d, radii = ops.project(*scene.geometry, viewmats, Ks, width, height)
    with torch.no_grad():
        lists = ops.bin_tiles(means2d, depths, conics, opacities2d, radii, width, height)
    values = scene.values if values is None else values
    return View(values, means2d, conics, opacities2d, *lists, width, height)


Blend = Callable[[View], tuple[Tensor, Tensor]]  # -> image [1, H, W, C], transmittance [1, H, W]


def ours(view: View) -> tuple[Tensor, Tensor]:
    return ops.blend(*view.differentiable, *view.lists, view.width, view.height)


def torch_tiled(view: View) -> tuple[Tensor, Tensor]:
    return torch_reference.blend_tiled(*view.differentiable, *view.lists, (view.width, view.height))


def scalar(view: View) -> tuple[Tensor, Tensor]:
    return scalar_blend(view)[:2]


def scalar_blend(view: View) -> scalar_loop.ScalarBlend:
    """The scalar loop on as many threads as torch uses."""
    size = (view.width, view.height)
    return scalar_loop.blend(*view.differentiable, *view.lists, size, threads=torch.get_num_threads())


def forward(blend: Blend, views: list[View]) -> Task:
    """Time the image alone, one view after the other."""
    return Task(run=lambda view: without_gradients(blend, view), prepare=lambda i: views[i % len(views)])


def without_gradients(blend: Blend, view: View) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return blend(view)


def forward_backward(blend: Blend, views: list[View], v_image: Tensor) -> Task:
    """Time the image and the gradients of <image, v_image> to values, means2d, conics and opacities2d."""

    def prepare(i: int) -> View:
        return views[i % len(views)].with_gradients()

    return Task(lambda view: torch.autograd.grad(blend(view)[0], view.differentiable, v_image), prepare)


def backward(blend: Blend, views: list[View], v_image: Tensor) -> Task:
    """As forward_backward, but only the second half is on the clock."""

    def prepare(i: int) -> tuple[Tensor, View]:
        view = views[i % len(views)].with_gradients()
        return blend(view)[0], view

    return Task(lambda built: torch.autograd.grad(built[0], built[1].differentiable, v_image), prepare)


def compare(view: View, v_image: Tensor, *, gradients: bool = True) -> Agreement:
    """Our image against the scalar loop's, our gradients against autograd through the torch reference."""
    image, _ = without_gradients(ours, view)
    worst, outliers = image_error(view, image)
    gradient = None
    if gradients:
        mine, theirs = (
            torch.autograd.grad(blend(v)[0], v.differentiable, v_image)
            for blend, v in ((ours, view.with_gradients()), (torch_tiled, view.with_gradients()))
        )
        gradient = max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(mine, theirs))
    ok = worst <= 1e-2 and outliers <= 2e-3 and (gradient is None or gradient <= 1e-2)
    return Agreement(worst, outliers, gradient, ok)


def image_error(view: View, image: Tensor) -> tuple[float, float]:
    """The largest difference from the scalar loop's image, relative to the largest value, and the share of
    pixels that differ by more than 1e-5 of it.
    """
    error = (image - scalar_blend(view).image).abs().amax(dim=-1) / view.values.abs().max().clamp(min=1e-12)
    return float(error.max()), float((error > 1e-5).float().mean())

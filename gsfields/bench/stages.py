"""The stages of a rendering and of its gradients as tasks to be timed, one view of the scene after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gsfields import ops
from gsfields.bench.clock import Task
from gsfields.bench.scene import Scene, moved

SH_DEGREE = 3
RANK = 8  # numbers in a row of the response of moving Gaussians
GEOMETRY = (
    "respond",
    "respond backward",
    "project",
    "project backward",
    "colour",
    "colour backward",
    "bin",
    "plan",
)
BLENDING = ("blend", "blend backward", "render", "render+backward")
SSIM = ("ssim", "ssim backward")
STAGES = (*GEOMETRY, *BLENDING, *SSIM)


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

    def to(self, device: torch.device | str) -> View:
        return moved(self, device)

    def with_gradients(self) -> View:
        """The same view on fresh leaves."""
        values, means2d, conics, opacities2d = (
            t.detach().clone().requires_grad_() for t in self.differentiable
        )
        return replace(self, values=values, means2d=means2d, conics=conics, opacities2d=opacities2d)


Projected = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def project(scene: Scene, index: int) -> Projected:
    """means2d, depths, conics, opacities2d, radii of one of the scene's cameras."""
    return ops.project(*scene.geometry, *scene.camera(index))


def project_and_bin(scene: Scene, index: int) -> View:
    """The view of one of the scene's cameras; differentiable in the scene's tensors where they ask for it."""
    projected = project(scene, index)
    with torch.no_grad():
        lists = bin_tiles(projected, scene)
    means2d, _, conics, opacities2d, _ = projected
    return View(scene.values, means2d, conics, opacities2d, *lists, scene.width, scene.height)


def bin_tiles(projected: Projected, scene: Scene) -> tuple[Tensor, Tensor]:
    means2d, depths, conics, opacities2d, radii = projected
    return ops.bin_tiles(means2d, depths, conics, opacities2d, radii, scene.width, scene.height)


def all_views(scene: Scene) -> list[View]:
    return [project_and_bin(scene, i) for i in range(scene.viewmats.shape[0])]


Blend = Callable[[View], tuple[Tensor, Tensor]]  # -> image [1, H, W, C], transmittance [1, H, W]


def ours(view: View) -> tuple[Tensor, Tensor]:
    return ops.blend(*view.differentiable, *view.lists, view.width, view.height)


def without_gradients(blend: Blend, view: View) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return blend(view)


def image_gradient(view: View) -> Tensor:
    """dL/dimage [1, H, W, C] of some loss."""
    shape = (1, view.height, view.width, view.values.shape[-1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(view.values.device)


def forward(blend: Blend, views: list[View]) -> Task:
    """Time the image alone, one view after the other."""
    return Task(run=lambda view: without_gradients(blend, view), prepare=lambda i: views[i % len(views)])


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


def geometry_tasks(scene: Scene) -> dict[str, Task]:
    """GEOMETRY: what happens before the blend."""
    count = scene.viewmats.shape[0]
    projected = [project(scene, i) for i in range(count)]

    def built(i: int) -> tuple[list[Tensor], Sequence[Tensor], list[Tensor]]:
        leaf = scene.with_gradients()
        means2d, _, conics, opacities2d, _ = project(leaf, i)
        outputs = [means2d, conics, opacities2d]
        return outputs, leaf.geometry, [torch.ones_like(t) for t in outputs]

    return {
        **_motion_tasks(scene),
        "project": Task(lambda i: project(scene, i)),
        "project backward": Task(differentiate, built),
        **_colour_tasks(scene, [visible(radii) for *_, radii in projected]),
        "bin": Task(lambda i: bin_tiles(projected[i % count], scene)),
        "plan": Task(lambda i: project_and_bin(scene, i)),
    }


def _motion_tasks(scene: Scene) -> dict[str, Task]:
    """The scene's Gaussians, all of which live, as a layer that moves with the camera."""
    noise = torch.Generator().manual_seed(0)
    shapes = {"colors": (len(scene), 3), "response": (len(scene), 7, RANK), "code": (RANK,)}
    drawn = {name: 0.1 * torch.randn(shape, generator=noise) for name, shape in shapes.items()}
    drawn["windows"] = torch.tensor([0.5, 0.0]).repeat(len(scene), 1)  # middle, log of half the length
    given = [scene.means, scene.quats, scene.opacities.clamp(0.05, 0.95).logit()]
    given += [t.to(scene.means.device) for t in drawn.values()]
    pose = given[0].new_tensor([0.6, 0.0, 0.8, 0.0, 1.0, 2.0, 3.0])

    def respond(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        means, quats, logits, colors, response, code, windows = tensors
        return ops.respond(means, quats, logits, colors, response, code, windows, 0.5, 0.1, pose)

    def built(_: int) -> tuple[tuple[Tensor, ...], list[Tensor], list[Tensor]]:
        leaves = [t.detach().requires_grad_() for t in given]
        outputs = respond(leaves)
        return outputs, leaves, [torch.ones_like(t) for t in outputs]

    return {
        "respond": Task(lambda _: respond(given)),
        "respond backward": Task(differentiate, built),
    }


def _colour_tasks(scene: Scene, masks: list[Tensor]) -> dict[str, Task]:
    """Spherical harmonics of SH_DEGREE in three channels, of the Gaussians that each view sees."""
    noise = torch.Generator().manual_seed(0)
    sh0, shN = (
        torch.randn(len(scene), count, 3, generator=noise).to(scene.means.device)
        for count in (1, (SH_DEGREE + 1) ** 2 - 1)
    )
    centres = torch.linalg.inv(scene.viewmats)[:, :3, 3]

    def given(i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        v = i % len(masks)
        return (scene.means - centres[v])[None], sh0, shN, masks[v]

    def colour(dirs: Tensor, sh0: Tensor, shN: Tensor, mask: Tensor) -> Tensor:
        return ops.spherical_harmonics_split(SH_DEGREE, dirs, sh0, shN, mask)

    def built(i: int) -> tuple[Tensor, list[Tensor], Tensor]:
        *inputs, mask = given(i)
        leaves = [t.detach().requires_grad_() for t in inputs]
        colors = colour(leaves[0], leaves[1], leaves[2], mask)
        return colors, leaves, torch.ones_like(colors)

    return {
        "colour": Task(lambda inputs: colour(*inputs), given),
        "colour backward": Task(differentiate, built),
    }


def blend_tasks(scene: Scene, views: list[View]) -> dict[str, Task]:
    """BLENDING: of the scene's values, over given lists and from the 3D Gaussians."""
    v_image = image_gradient(views[0])
    return {
        "blend": forward(ours, views),
        "blend backward": backward(ours, views, v_image),
        "render": Task(lambda i: ours(project_and_bin(scene, i))),
        "render+backward": whole_backward(scene, v_image),
    }


def whole_backward(scene: Scene, v_image: Tensor) -> Task:
    """From the 3D Gaussians to the image and back to the gradients of all their parameters."""

    def call(i: int) -> object:
        leaf = scene.with_gradients()
        image, _ = ours(project_and_bin(leaf, i))
        return torch.autograd.grad(image, leaf.parameters, v_image)

    return Task(call)


def ssim_tasks(views: list[View]) -> dict[str, Task]:
    """SSIM: structural similarity of a rendering and a picture."""
    image = without_gradients(ours, views[0])[0]
    picture = image.roll(1, dims=2)

    def built(_: int) -> tuple[Tensor, list[Tensor], Tensor]:
        leaf = image.clone().requires_grad_()
        similarity = ops.ssim_map(leaf, picture)
        return similarity, [leaf], torch.ones_like(similarity)

    return {
        "ssim": Task(lambda _: ops.ssim_map(image, picture)),
        "ssim backward": Task(differentiate, built),
    }


def differentiate(graph: tuple[Any, Any, Any]) -> object:
    """(outputs, inputs, gradients of the outputs) -> gradients of the inputs."""
    return torch.autograd.grad(*graph)


def visible(radii: Tensor) -> Tensor:
    return (radii > 0).all(-1)

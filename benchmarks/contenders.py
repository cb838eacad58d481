"""Who blends: our kernels and the baselines, all called with the same tile lists. A contender is a name and one
function from a view to (image, transmittance).
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.baselines import scalar_loop, torch_reference
from benchmarks.results import Agreement
from gsfields.bench.stages import Blend, View, ours, without_gradients


def torch_tiled(view: View) -> tuple[Tensor, Tensor]:
    return torch_reference.blend_tiled(*view.differentiable, *view.lists, (view.width, view.height))


def scalar(view: View) -> tuple[Tensor, Tensor]:
    return scalar_blend(view)[:2]


def scalar_blend(view: View) -> scalar_loop.ScalarBlend:
    """The scalar loop on as many threads as torch uses, on the CPU wherever the view is."""
    view = view.to("cpu")
    size = (view.width, view.height)
    return scalar_loop.blend(*view.differentiable, *view.lists, size, threads=torch.get_num_threads())


def compare(view: View, v_image: Tensor, reference: Blend = torch_tiled) -> Agreement:
    """Our image against the scalar loop's, our gradients against the reference's on the CPU."""
    image, _ = without_gradients(ours, view)
    worst, outliers = image_error(view, image)
    host, v_host = view.to("cpu"), v_image.cpu()
    mine, theirs = (
        torch.autograd.grad(blend(v)[0], v.differentiable, v_out)
        for blend, v, v_out in (
            (ours, view.with_gradients(), v_image),
            (reference, host.with_gradients(), v_host),
        )
    )
    gradient = max(relative_distance(a, b) for a, b in zip(mine, theirs))
    ok = worst <= 1e-2 and outliers <= 2e-3 and gradient <= 1e-2
    return Agreement(worst, outliers, gradient, ok)


def relative_distance(ours: Tensor, reference: Tensor) -> float:
    """||ours - reference|| / ||reference||."""
    ours = ours.to(reference.device)
    return float((ours - reference).norm() / reference.norm().clamp(min=1e-12))


def image_error(view: View, image: Tensor) -> tuple[float, float]:
    """The largest difference from the scalar loop's image, relative to the largest value, and the share of
    pixels that differ by more than 1e-5 of it.
    """
    error = (image.cpu() - scalar_blend(view).image).abs().amax(dim=-1)
    error /= view.values.abs().max().clamp(min=1e-12).cpu()
    return float(error.max()), float((error > 1e-5).float().mean())

"""Every op, forward and backward, on scenes small enough for compute-sanitizer: `python -m tests.gpu.small [DEVICE]`.

The results are compared with the CPU backend's in float64, so that what the tools watch is known to be right.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

import gsfields
from gsfields import ops
from gsfields.bench.device import cuda_problem
from gsfields.bench.scene import Scene, resized, synthetic
from gsfields.rendering import view_colors

WIDTH, HEIGHT, VIEWS = 40, 24, 2  # tiles at two borders are cut
CHANNELS = {torch.float32: (1, 3, 8, 33, 150), torch.float64: (3, 33)}  # each is a long time under a tool
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-9}


def scenes() -> Iterator[Scene]:
    """Some Gaussians, enough for lists of several batches in one tile, none at all, and none in view."""
    few = resized(synthetic(300, WIDTH), WIDTH, HEIGHT, VIEWS)
    yield few
    yield resized(synthetic(3000, WIDTH), WIDTH, HEIGHT, VIEWS)
    yield replace(
        few, **{n: getattr(few, n)[:0] for n in ("means", "quats", "scales", "opacities", "values")}
    )
    yield replace(few, opacities=torch.zeros_like(few.opacities))


def outputs(scene: Scene, channels: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Images and the gradients of a loss in all of them, by every op there is."""
    scene = scene.with_channels(channels)
    leaves = [t.to(device, dtype).requires_grad_() for t in (*scene.parameters, *harmonics(len(scene)))]
    means, quats, scales, opacities, values, sh0, shN = leaves
    viewmats, Ks = scene.viewmats.to(device, dtype), scene.Ks.to(device, dtype)
    plan = gsfields.plan(
        means,
        quats,
        scales,
        opacities,
        viewmats,
        Ks,
        scene.width,
        scene.height,
        absgrad=True,
        antialiased=True,
    )
    background = torch.linspace(0, 1, channels, device=device, dtype=dtype)
    image = plan.blend(values, background)
    color = plan.blend(view_colors(means, sh0, shN, viewmats, 3, plan.visible))
    similarity = ops.ssim_map(image, image.detach().roll(1, dims=2))
    pixels = torch.linspace(-1, 1, image[..., 0].numel(), device=device, dtype=dtype).view_as(plan.alpha)
    some = torch.tensor([[3, 4], [39, 23], [3, 4], [20, 17]], device=device).expand(VIEWS, -1, -1)
    rows = plan.blend(values, background, pixels=some)
    lifted = plan.lift(image, plan.alpha.squeeze(-1))
    loss = (
        ((image + color.sum(-1, keepdim=True) + plan.alpha) * pixels).sum()
        + similarity.mean()
        + rows.square().sum()
        + lifted.mean.sum()
    )
    gradients = torch.autograd.grad(loss, leaves)
    return [image, color, plan.alpha, similarity, rows, *lifted, *gradients]


def harmonics(count: int) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(3)
    return torch.randn(count, 1, 3, generator=noise), torch.randn(count, 15, 3, generator=noise)


def worst_error(device: torch.device, dtype: torch.dtype) -> tuple[float, int]:
    """The largest ||result - reference|| / ||reference||, and over how many tensors."""
    errors = []
    for scene in scenes():
        for channels in CHANNELS[dtype]:
            results = outputs(scene, channels, device, dtype)
            references = outputs(scene, channels, torch.device("cpu"), torch.float64)
            errors += [distance(a, b) for a, b in zip(results, references, strict=True)]
    return max(errors), len(errors)


def distance(result: Tensor, reference: Tensor) -> float:
    result, reference = result.detach().double().cpu(), reference.detach()
    if result.shape != reference.shape or not bool(result.isfinite().all()):
        return float("inf")
    return float((result - reference).norm() / reference.norm().clamp(min=1e-3))


def main(argv: Sequence[str]) -> int:
    """The command."""
    device = torch.device(argv[0] if argv else "cuda")
    if device.type == "cuda" and (problem := cuda_problem()) is not None:
        print(f"small scenes: {problem}")
        return 1
    right = True
    for dtype, tolerance in TOLERANCE.items():
        worst, count = worst_error(device, dtype)
        print(f"{dtype}: {count} tensors, largest relative distance {worst:.1e} (at most {tolerance:.0e})")
        right &= worst <= tolerance
    print(f"small scenes: {'ok' if right else 'WRONG'}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

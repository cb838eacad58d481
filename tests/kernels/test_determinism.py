"""Bit-identical results: over runs, over thread counts, and however the memory happens to lie."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gsfields import ops
from tests.kernels.compare import assert_bitwise
from tests.kernels.scenes import Scene, Splats, generator, normal, random_scene, uniform


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def everything(scene: Scene, channels: int) -> dict[str, torch.Tensor]:
    """Forward and backward through every op, all results by name."""
    rng = generator(0)
    scene = scene.requires_grad_(*Scene.GEOMETRY, "viewmats")
    n, views = len(scene.means), len(scene.viewmats)
    means2d, depths, conics, opacities2d, radii = ops.project(*scene.args, antialiased=True)
    splats = Splats(means2d, depths, conics, opacities2d, radii, scene.width, scene.height)
    ids, offsets = ops.bin_tiles(*(t.detach() if isinstance(t, torch.Tensor) else t for t in splats.binning))
    coeffs = uniform(rng, -1, 1, n, 16, channels).to(scene.means).requires_grad_()
    dirs = normal(rng, views, n, 3).to(scene.means).requires_grad_()
    values = ops.spherical_harmonics(3, dirs, coeffs)
    background = uniform(rng, 0, 1, channels).to(scene.means).requires_grad_()
    sink = torch.zeros_like(means2d, requires_grad=True)
    geometry = (means2d, conics, opacities2d)
    image, transmittance = ops.blend(
        values, *geometry, ids, offsets, scene.width, scene.height, background, sink
    )
    target = uniform(rng, 0, 1, *image.shape).to(image)
    similarity = ops.ssim_map(image, target)
    (
        similarity.mean()
        + (image * normal(rng, *image.shape).to(image)).mean()
        + transmittance.mean()
        + depths.mean()
    ).backward()
    inputs = {name: getattr(scene, name) for name in (*Scene.GEOMETRY, "viewmats")}
    inputs |= {"coeffs": coeffs, "dirs": dirs, "background": background, "absgrad": sink}
    outputs = {
        "means2d": means2d,
        "depths": depths,
        "conics": conics,
        "opacities2d": opacities2d,
        "radii": radii,
    }
    outputs |= {
        "ids": ids,
        "offsets": offsets,
        "image": image,
        "transmittance": transmittance,
        "ssim": similarity,
    }
    return {k: v.detach() for k, v in outputs.items()} | {f"grad of {k}": v.grad for k, v in inputs.items()}


@pytest.mark.parametrize("channels", [3, 19])
def test_runs_and_thread_counts_agree_to_the_last_bit(backend, channels):
    scene = backend.move(random_scene(1200, 130, 70, views=2, seed=3))
    torch.set_num_threads(1)
    first = everything(scene, channels)
    assert all(t.isfinite().all() for t in first.values())
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        again = everything(scene, channels)
        for name, tensor in first.items():
            same = backend.assert_repeats if name.startswith("grad of") else assert_bitwise
            same(again[name], tensor, f"{name} with {threads} threads")


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in non-contiguous memory: every other element along each of two dimensions."""
    room = torch.full([2 * s for s in tensor.shape], 77, dtype=tensor.dtype, device=tensor.device)
    view = room[tuple(slice(None, None, 2) for _ in tensor.shape)]
    view.copy_(tensor)
    return view


def test_memory_layout_does_not_matter(backend):
    scene = backend.move(random_scene(150, 40, 23, views=2, seed=4))
    projected = ops.project(*(strided(t) if isinstance(t, torch.Tensor) else t for t in scene.args))
    for actual, expected in zip(projected, ops.project(*scene.args), strict=True):
        assert_bitwise(actual, expected)
    splats = Splats(*projected, 40, 23)
    lists = ops.bin_tiles(*splats.binning)
    for actual, expected in zip(ops.bin_tiles(*map(strided, splats.binning[:5]), 40, 23), lists, strict=True):
        assert_bitwise(actual, expected)
    rng = generator(1)
    values, background = backend.move(normal(rng, 2, 150, 5)), backend.move(normal(rng, 2, 5))
    arguments = (values, splats.means2d, splats.conics, splats.opacities2d, *lists)
    cotangent = normal(rng, 2, 23, 40, 5).to(values)

    def run(lay):
        inputs = [
            lay(t).detach().requires_grad_() if t.is_floating_point() else lay(t)
            for t in (*arguments, background)
        ]
        image, transmittance = ops.blend(*inputs[:6], 40, 23, inputs[6])
        torch.autograd.backward([image, transmittance], [lay(cotangent), lay(cotangent[..., 0])])
        return [image, transmittance, *(t.grad for t in inputs if t.requires_grad)]

    (image, transmittance, *grads), plain = run(strided), run(torch.clone)
    assert_bitwise(image, plain[0])
    assert_bitwise(transmittance, plain[1])
    for actual, expected in zip(grads, plain[2:], strict=True):
        backend.assert_repeats(actual.contiguous(), expected.contiguous())
    dirs, coeffs = backend.move(normal(rng, 2, 150, 3)), backend.move(normal(rng, 150, 9, 3))
    masks = (torch.rand(2, 150, generator=rng) < 0.5).to(backend.device)
    plain = ops.spherical_harmonics(2, dirs, coeffs, masks)
    assert_bitwise(ops.spherical_harmonics(2, strided(dirs), strided(coeffs), strided(masks)), plain)
    image1, image2 = (backend.move(uniform(rng, 0, 1, 1, 20, 21, 3)) for _ in range(2))
    assert_bitwise(ops.ssim_map(strided(image1), strided(image2)), ops.ssim_map(image1, image2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_instruction_sets_agree(dtype):
    """Up to the rounding of fused multiply-adds; a flipped decision would show as 1/255."""
    available = ops.available_cpu_isas()
    assert "baseline" in available
    if len(available) == 1:
        pytest.skip("only the baseline instruction set is available")
    scene = random_scene(500, 61, 45, views=2, seed=5).to(dtype)
    results = {}
    for isa in available:
        ops.set_cpu_isa(isa)
        assert ops.cpu_isa() == isa
        results[isa] = everything(scene, 3)
    ops.set_cpu_isa("auto")
    for isa in available[1:]:
        for name, expected in results[available[0]].items():
            actual = results[isa][name]
            if actual.shape != expected.shape or not actual.is_floating_point():
                continue  # ids: a pair more or less at the edge of a tile is legitimate
            error = (actual - expected).abs() / expected.abs().max()
            bound = 2e-4 if dtype == torch.float32 else 1e-9
            assert (error > bound).double().mean() < 0.002, f"{name}: {isa} differs from {available[0]}"

"""The CUDA kernels of many channels: products on tensor cores in every precision, beyond what tests/kernels asks."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gsfields import ops
from tests.cuda.test_blend import CPU, EMULATED, Case
from tests.emulator import build as emulator
from tests.kernels.compare import assert_bitwise
from tests.kernels.scenes import generator, normal, random_splats, uniform

TOLERANCES = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 1e-2}  # of errors, relative to the norm
CHANNELS = [1, 10, 16, 44, 64, 100, 128, 512, 1030]
LEAST = 16  # fewer channels are for other kernels


def scene(
    channels: int, *, n: int = 90, width: int = 21, height: int = 19, views: int = 1, **options
) -> Case:
    """The last tiles of a row and of a column are not whole."""
    splats = random_splats(n, width, height, views=views, seed=channels, **options).to(torch.float32)
    rng = generator(channels)
    values, background = uniform(rng, -1, 1, n, channels).float(), uniform(rng, -1, 1, channels).float()
    return Case(splats, values, background, CPU.bin_tiles(*splats.binning))


def double(case: Case) -> Case:
    """Exactly the same numbers in float64."""
    return replace(
        case,
        splats=case.splats.double(),
        values=case.values.double(),
        background=case.background.double(),
    )


class Upstream:
    """An image that is lifted and a gradient of the image, and what belongs to their pixels."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32) -> None:
        rng = generator(7)
        self.image = normal(rng, *case.rows, case.values.shape[-1]).to(dtype)
        self.of_pixels = uniform(rng, 0, 1, *case.rows).float()


def forward(namespace, case: Case, precision: str) -> tuple[Tensor, ...]:
    where = (*case.where[:-1], ops.blending.PRECISIONS.index(precision))
    return namespace.blend(case.values, *case.geometry, case.background, None, *where)


def backward(namespace, case: Case, out, upstream: Upstream, precision: str, deterministic=False):
    """Gradients to values, means2d, conics and opacities, and the absolute gradient."""
    image, of_pixels = upstream.image.to(case.values), upstream.of_pixels.to(case.background)
    *lists, width, height, _ = case.where
    return namespace.blend_backward(
        case.values, *case.geometry, case.background, *lists, *out[1:], image, of_pixels, width, height,
        ops.blending.PRECISIONS.index(precision), True, True, True, deterministic,
    )  # fmt: skip


def lift(namespace, case: Case, upstream: Upstream, precision: str, deterministic=False, per_view=False):
    image, of_pixels = upstream.image.to(case.values), upstream.of_pixels.to(case.background)
    where = (*case.where[:-1], ops.blending.PRECISIONS.index(precision))
    return namespace.lift(image, of_pixels, *case.geometry, *where, per_view, True, deterministic)


def everything(namespace, case: Case, precision: str, deterministic: bool = False) -> list[Tensor]:
    upstream = Upstream(case)
    out = forward(namespace, case, precision)
    gradients = backward(namespace, case, out, upstream, precision, deterministic)
    return [*out, *gradients, *lift(namespace, case, upstream, precision, deterministic)]


NAMES = ("image", "T", "last", "v_values", "v_means2d", "v_conics", "v_opacities", "absgrad", "sums", "total")


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Whatever the precision, weights are in float."""
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        error = float((a.double() - e.double()).norm() / e.double().norm().clamp_min(1e-30))
        limit = min(tolerance, 1e-5) if name in ("T", "last", "total") else tolerance
        assert error <= limit, f"{name}: error {error:.3g} of the norm exceeds {limit:.3g}"


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_every_number_of_channels_in_every_precision(channels, precision):
    case = scene(channels)
    actual = everything(EMULATED, case, precision)
    expected = everything(CPU, double(case), "fp32")
    assert_close(actual, expected, TOLERANCES[precision])
    error = float((actual[0].double() - expected[0]).norm() / expected[0].norm())
    rounds = precision != "fp32" and channels >= LEAST
    assert (error > 1e-5) == rounds, "the products were not made in this precision"


@pytest.mark.parametrize("order", ["reverse", "random"])
@pytest.mark.parametrize("channels", [40, 200])
def test_threads_in_any_order(channels, order):
    """The image has the same bits; sums over tiles meet in another order."""
    case = scene(channels, n=200, opacity=(0.02, 0.3))
    expected = everything(EMULATED, case, "tf32")
    with emulator.order(order, 3):
        actual = everything(EMULATED, case, "tf32")
    for a, e in zip(actual[:3], expected[:3], strict=True):
        assert_bitwise(a, e)
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize(("channels", "precision"), [(20, "fp32"), (512, "bf16")])
def test_lists_that_are_longer_than_the_queue(channels, precision):
    case = scene(channels, n=1000, width=15, height=9, opacity=(0.004, 0.02))
    actual = everything(EMULATED, case, precision)
    assert int(actual[2].min()) > 512, "few survive, or pixels end early"
    assert_close(actual, everything(CPU, double(case), "fp32"), TOLERANCES[precision])


def test_pixels_that_end_early_and_a_patch_outside_the_image():
    case = scene(24, n=600, width=39, height=5, opacity=(0.7, 1.0))
    actual = everything(EMULATED, case, "fp32")
    assert float(actual[1].max()) < 0.05 and int(actual[2].max()) < int(case.lists[1].diff().max())
    assert_close(actual, everything(CPU, double(case), "fp32"), TOLERANCES["fp32"])


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("per_view", [False, True], ids=["shared", "per_view"])
def test_values_of_several_views(per_view, precision):
    case = scene(50, views=3)
    rng = generator(1)
    if per_view:
        values, background = uniform(rng, -1, 1, 3, 90, 50).float(), uniform(rng, -1, 1, 3, 50).float()
        case = replace(case, values=values, background=background)
    actual, expected = everything(EMULATED, case, precision), everything(CPU, double(case), "fp32")
    if per_view:
        upstream = Upstream(case)
        actual += lift(EMULATED, case, upstream, precision, per_view=True)
        expected += lift(CPU, double(case), upstream, "fp32", per_view=True)
        for a, e in zip(actual[10:], expected[10:], strict=True):
            assert float((a - e).norm() / e.norm()) <= TOLERANCES[precision]
    assert_close(actual[:10], expected[:10], TOLERANCES[precision])


# ---- sampled pixels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("count", [9, 60, 400], ids=["few", "some", "rounds"])
def test_sampled_pixels(count, precision):
    case = scene(70, views=2, width=37, height=30).sampling(count)
    assert count < 400 or int(case.sampled.offsets.diff().max()) > 5 * 64, "a block takes a second round"
    actual = everything(EMULATED, case, precision)
    assert_close(actual, everything(CPU, double(case), "fp32"), TOLERANCES[precision])
    whole = forward(EMULATED, replace(case, sampled=None), precision)
    for a, e in zip(actual[1:3], whole[1:], strict=True):
        assert_bitwise(a, e.flatten()[case.sampled.pixels], "culled for another box")


# ---- storage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [20, 50, 100])
def test_half_storage_only_rounds_what_is_stored(channels, half):
    """In fours of channels, and where rows are no whole fours."""
    case = scene(channels)
    stored = replace(case, values=case.values.to(half))
    case = replace(case, values=stored.values.float())
    upstream, same = Upstream(case, half), Upstream(case, half)
    same.image = same.image.float()
    (image, *rest), (expected, *others) = forward(EMULATED, stored, "fp32"), forward(EMULATED, case, "fp32")
    assert_bitwise(image, expected.to(half))
    results = [
        (*out, *backward(EMULATED, c, (None, *out), u, "fp32"), *lift(EMULATED, c, u, "fp32"))
        for c, out, u in ((stored, rest, upstream), (case, others, same))
    ]
    for a, e in zip(*results, strict=True):
        assert_bitwise(a, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arrays_that_are_not_aligned(dtype):
    """What is read in fours where it can be gives the same bits where it cannot."""

    def shifted(t: Tensor) -> Tensor:
        memory = torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape)
        return memory.copy_(t)

    case = scene(36)
    case = replace(case, values=case.values.to(dtype))
    upstream = Upstream(case, dtype)
    out = forward(EMULATED, case, "tf32")
    expected = *out, *backward(EMULATED, case, out, upstream, "tf32"), *lift(EMULATED, case, upstream, "tf32")
    case = replace(case, values=shifted(case.values), background=shifted(case.background))
    upstream.image = shifted(upstream.image)
    out = forward(EMULATED, case, "tf32")
    actual = *out, *backward(EMULATED, case, out, upstream, "tf32"), *lift(EMULATED, case, upstream, "tf32")
    for a, e in zip(actual, expected, strict=True):
        assert_bitwise(a, e)


# ---- wrong lists and fixed orders -----------------------------------------------------------------------------


def test_wrong_lists_are_not_followed():
    case = scene(100, width=37, height=30)
    expected = forward(EMULATED, case, "tf32")
    ids, offsets = (t.clone() for t in case.lists)
    assert int(offsets[3]) > 5, "the first row of tiles lists Gaussians"
    ids[:5] = torch.tensor([-1, 90, 2**31 - 1, -(2**31), 10**6], dtype=torch.int32)
    offsets[0], offsets[-1] = -50, offsets[-1] + 1000
    case = replace(case, lists=(ids, offsets))
    results = everything(EMULATED, case, "tf32")
    assert_bitwise(results[0][:, 16:29], expected[0][:, 16:29], "rows of tiles with right lists")
    wrong_last = (results[0], results[1], torch.full_like(results[2], 10**9))
    results += backward(EMULATED, case, wrong_last, Upstream(case), "tf32")
    assert all(t.isfinite().all() for t in results)


@pytest.mark.parametrize("channels", [30, 560])
def test_deterministic_sums_are_the_same_in_every_order(channels):
    case = scene(channels, n=60, width=18, height=33)
    fast, fixed = (everything(EMULATED, case, "bf16", flag) for flag in (False, True))
    assert_close(fixed, fast, 1e-5)
    for seed in (1, 2):
        with emulator.order("random", seed):
            again = everything(EMULATED, case, "bf16", True)
        for name, a, e in zip(NAMES, again, fixed, strict=True):
            assert_bitwise(a, e, name)


# ---- compiled code --------------------------------------------------------------------------------------------

# Products of 64 x 16 x 64: in TF32 a multiplication takes 16 x 8 x 8, in bfloat16 16 x 8 x 16.
LEAST_PRODUCTS = {0: ("m16n8k8", 3 * 64), 1: ("m16n8k8", 64), 2: ("m16n8k16", 32)}  # by Precision


def assembly(nvcc: str, source: str, arch: int, folder: Path) -> str:
    """SASS where it can be had, else PTX."""
    disassembler = shutil.which("nvdisasm")
    kind = "cubin" if disassembler else "ptx"
    output = folder / f"kernels.{kind}"
    code = f"-arch=sm_{arch}" if disassembler else f"-arch=compute_{arch}"
    flags = ["-std=c++20", "-O3", "-Icsrc", f"-{kind}", code, "-o", str(output)]
    subprocess.run([nvcc, *flags, f"csrc/cuda/{source}.cu"], cwd=emulator.ROOT, check=True)
    if not disassembler:
        return output.read_text()
    return subprocess.run([disassembler, str(output)], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("source", ["wide_blend", "wide_lift", "wide_geometry"])
def test_compiled_products_are_on_tensor_cores(source, arch, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    text = assembly(nvcc, source, arch, tmp_path)
    kernels = re.split(r"\.section\s+\.text\.|\.entry ", text)[1:]
    assert len(kernels) >= 3
    for kernel in kernels:
        precision = int(re.match(r"\w*?PrecisionE(\d)", kernel)[1])
        shape, least = LEAST_PRODUCTS[precision]
        sass = shape.replace("m", "").replace("n", "").replace("k", "")  # HMMA.1688, HMMA.16816
        products = re.findall(r"mma\.sync\.aligned\.(m\d+n\d+k\d+)|HMMA\.(\d+)", kernel)
        assert len(products) >= least, f"{kernel[:90]}: {len(products)} products, expected {least}"
        assert all(ptx == shape or code == sass for ptx, code in products), set(products)

"""The CUDA kernels of the blend beyond what tests/kernels asks of every backend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gsfields import ops
from tests.emulator import build as emulator
from tests.kernels.compare import assert_bitwise, assert_relative
from tests.kernels.scenes import Splats, generator, normal, random_splats, uniform

CPU: Any = torch.ops.gsfields
EMULATED: Any = torch.ops.gsfields_emulated


if problem := emulator.missing():
    pytest.skip(problem, allow_module_level=True)
emulator.load()


@dataclass(frozen=True)
class Case:
    """What is blended, where, and which pixels are wanted."""

    splats: Splats
    values: Tensor  # [N, C] or [B, N, C]
    background: Tensor  # [C]
    lists: tuple[Tensor, Tensor]
    sampled: ops.SampledPixels | None = None

    @property
    def where(self) -> tuple:
        """All arguments of an op from means2d on, but for those that only some have."""
        pixels = (None, None) if self.sampled is None else self.sampled[:2]
        return *self.lists, *pixels, self.splats.width, self.splats.height, 0

    @property
    def geometry(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.splats.means2d, self.splats.conics, self.splats.opacities2d

    @property
    def rows(self) -> tuple[int, ...]:
        """The shape of what holds something for every pixel."""
        if self.sampled is not None:
            return (len(self.sampled.pixels),)
        return len(self.splats.means2d), self.splats.height, self.splats.width

    def sampling(self, count: int) -> Case:
        """So many pixels of each view, all of them near each other but for a few, so that some come twice."""
        s, rng = self.splats, generator(count)
        views = len(s.means2d)
        near = 3 + uniform(rng, 0, 1, views, count - 9, 2) * torch.tensor([14, 9])
        far = uniform(rng, 0, 1, views, 9, 2) * torch.tensor([s.width, s.height])
        pixels = torch.cat([near, far], 1).long()
        return replace(self, sampled=ops.sample_pixels(pixels, views, s.width, s.height))


def given(n: int, channels: int, dtype: torch.dtype, *, views: int = 1, **options) -> Case:
    splats = random_splats(n, 37, 30, views=views, seed=n + channels, **options).to(dtype)
    rng = generator(channels)
    values, background = uniform(rng, -1, 1, n, channels).to(dtype), uniform(rng, -1, 1, channels).to(dtype)
    return Case(splats, values, background, CPU.bin_tiles(*splats.binning))


def forward(namespace: Any, c: Case) -> tuple[Tensor, Tensor, Tensor]:
    """image, transmittance, last"""
    return namespace.blend(c.values, *c.geometry, c.background, None, *c.where)


GEOMETRY_AND_VALUES = (True, True, True)  # and absgrad


def backward(
    namespace: Any, c: Case, out: tuple, wanted=GEOMETRY_AND_VALUES, deterministic: bool = False
) -> tuple[Tensor, ...]:
    rng = generator(3)
    upstream = (normal(rng, *t.shape).to(t) for t in out[:2])
    *lists, width, height, precision = c.where
    return namespace.blend_backward(
        c.values, *c.geometry, c.background, *lists, *out[1:], *upstream, width, height, precision, *wanted,
        deterministic,
    )  # fmt: skip


def lift(
    namespace: Any, c: Case, *, per_view: bool = False, deterministic: bool = False
) -> tuple[Tensor, ...]:
    """sums, total"""
    rng = generator(4)
    image = normal(rng, *c.rows, c.values.shape[-1]).to(c.values)
    factors = uniform(rng, 0, 1, *c.rows).to(c.background)
    return namespace.lift(image, factors, *c.geometry, *c.where, per_view, True, deterministic)


@pytest.mark.parametrize("channels", [1, 3, 5, 17, 40])
def test_each_pixel_tells_how_much_of_its_list_it_blended(channels):
    case = given(700, channels, torch.float64, opacity=(0.3, 1.0))
    actual, expected = (forward(namespace, case)[2] for namespace in (EMULATED, CPU))
    assert_bitwise(actual, expected)
    lengths = case.lists[1].diff()
    assert 0 < int(actual.max()) < int(lengths.max()), "some pixels end before their list"


@pytest.mark.parametrize("sampled", [False, True], ids=["all", "sampled"])
@pytest.mark.parametrize("channels", [2, 3, 20], ids=["few", "three", "many"])
@pytest.mark.parametrize("wanted", [GEOMETRY_AND_VALUES, (True, False, False), (False, True, False)])
def test_only_gradients_asked_for(channels, wanted, sampled):
    case = given(300, channels, torch.float64)
    case = case.sampling(400) if sampled else case
    out = forward(EMULATED, case)
    for deterministic in (False, True):
        actual = backward(EMULATED, case, out, wanted, deterministic)
        for a, e in zip(actual, backward(CPU, case, out, wanted), strict=True):
            assert_relative(a, e, 1e-12)


@pytest.mark.parametrize("channels", [3, 20])
def test_nothing_waits_and_everything_is_on_the_callers_stream(channels):
    """So a captured graph can replay both passes."""
    case = given(300, channels, torch.float32)
    emulator.reset()
    out = forward(EMULATED, case)
    for deterministic in (False, True):
        backward(EMULATED, case, out, deterministic=deterministic)
        lift(EMULATED, case, deterministic=deterministic)
    assert set(emulator.count_calls()) == {"launch", "memset"}


# ---- sampled pixels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 7, 20])
@pytest.mark.parametrize("count", [9, 300, 700])
def test_a_sampled_pixel_is_the_pixel_of_the_image(channels, count):
    """More of one tile than a block takes at once, too. Culling by another box changes nothing."""
    case = given(400, channels, torch.float64, views=2)
    some = case.sampling(count)
    assert count < 700 or int(some.sampled.offsets.diff().max()) > 512, "a third round"
    for sampled, whole in zip(forward(EMULATED, some), forward(EMULATED, case), strict=True):
        assert_bitwise(sampled, whole.flatten(0, 2)[some.sampled.pixels])


def test_blocks_of_tiles_without_samples_write_nothing():
    case = given(100, 3, torch.float32)
    nothing = torch.zeros(0, dtype=torch.long)
    sampled = ops.SampledPixels(nothing, torch.zeros(len(case.lists[1]), dtype=torch.long), nothing)
    case = replace(case, sampled=sampled)
    out = forward(EMULATED, case)
    assert all(len(t) == 0 for t in out)
    grads = backward(EMULATED, case, out)
    assert not any(grad.any() for grad in (*grads, *lift(EMULATED, case)))


# ---- half storage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 2, 3, 7, 12])
def test_half_storage_only_rounds_what_is_stored(channels, half):
    case = given(200, channels, torch.float32)
    case = replace(case, values=case.values.to(half).float())
    stored = replace(case, values=case.values.to(half))
    (image, *rest), (expected, *others) = forward(EMULATED, stored), forward(EMULATED, case)
    assert_bitwise(image, expected.to(half))
    for a, e in zip(rest, others, strict=True):
        assert_bitwise(a, e)

    case_out = (image.float(), *rest)
    rounded = [normal(generator(3), *image.shape).to(half), torch.zeros_like(rest[0])]
    *lists, width, height, precision = case.where
    view = (width, height, precision, *GEOMETRY_AND_VALUES, False)

    def gradients(c: Case, v_image: Tensor) -> tuple[Tensor, ...]:
        args = (c.values, *c.geometry, c.background, *lists, *case_out[1:], v_image, rounded[1], *view)
        return EMULATED.blend_backward(*args)

    for a, e in zip(gradients(stored, rounded[0]), gradients(case, rounded[0].float()), strict=True):
        assert_bitwise(a, e)
    lifted = [
        EMULATED.lift(v, None, *case.geometry, *case.where, False, True, False)
        for v in (rounded[0], rounded[0].float())
    ]
    for a, e in zip(*lifted, strict=True):
        assert_bitwise(a, e)


# ---- lift -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampled", [False, True], ids=["all", "sampled"])
@pytest.mark.parametrize("per_view", [False, True], ids=["added", "per_view"])
@pytest.mark.parametrize("channels", [1, 3, 4, 8, 9])
def test_lift_of_any_number_of_columns(channels, per_view, sampled):
    """The total is one column more, which may be the first of its window."""
    case = given(250, channels, torch.float64, views=2)
    case = case.sampling(400) if sampled else case
    expected = lift(CPU, case, per_view=per_view)
    for deterministic in (False, True):
        actual = lift(EMULATED, case, per_view=per_view, deterministic=deterministic)
        for a, e in zip(actual, expected, strict=True):
            assert_relative(a, e, 1e-12)


# ---- deterministic sums ---------------------------------------------------------------------------------------

ORDERS = [("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)]


def in_every_order(run) -> list[tuple[Tensor, ...]]:
    results = []
    for name, seed in ORDERS:
        with emulator.order(name, seed):
            results.append(run())
    return results


@pytest.mark.parametrize("sampled", [False, True], ids=["all", "sampled"])
@pytest.mark.parametrize("channels", [3, 40])
def test_deterministic_sums_are_the_same_in_every_order(channels, sampled):
    case = given(300, channels, torch.float32, views=2)
    case = case.sampling(400) if sampled else case
    out = forward(EMULATED, case)

    def run(deterministic: bool) -> tuple[Tensor, ...]:
        gradients = backward(EMULATED, case, out, deterministic=deterministic)
        return *gradients, *lift(EMULATED, case, deterministic=deterministic)

    emulator.reset()
    first, *others = in_every_order(lambda: run(True))
    parts = sum(call.name.startswith("rows_kernel") for call in emulator.calls())
    assert parts > 3 * len(ORDERS), "the records of a sum do not fit at once"
    for other in others:
        for a, e in zip(other, first, strict=True):
            assert_bitwise(a, e)
    fast = in_every_order(lambda: run(False))
    assert any(not torch.equal(a, b) for a, b in zip(fast[0], fast[1], strict=True)), "the order matters"
    for a, e in zip(fast[0], first, strict=True):
        assert_relative(a, e, 1e-5)


@pytest.mark.parametrize("bits", [torch.float32, torch.float64])
def test_deterministic_sums_of_values_for_each_view(bits):
    case = given(200, 3, bits, views=3)
    values = uniform(generator(1), -1, 1, 3, 200, 3).to(bits)
    case = replace(case, values=values)
    out = forward(EMULATED, case)
    fast, fixed = (backward(EMULATED, case, out, deterministic=flag) for flag in (False, True))
    for a, e in zip(fixed, fast, strict=True):
        assert_relative(a, e, 1e-5 if bits == torch.float32 else 1e-12)


# ---- wrong arguments that only the device sees ----------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 20])
def test_wrong_lists_are_not_followed(channels):
    """The host cannot look at lists on a GPU: ids that are none draw nothing, ranges end where ids end."""
    case = given(200, channels, torch.float32)
    ids, offsets = case.lists
    expected = forward(EMULATED, case)
    assert int(offsets[3]) > 5, "the first row of tiles lists Gaussians"
    wrong_ids, wrong_offsets = ids.clone(), offsets.clone()
    wrong_ids[:5] = torch.tensor([-1, 200, 2**31 - 1, -(2**31), 10**6], dtype=torch.int32)
    wrong_offsets[-1] += 1000
    wrong_offsets[0] = -50
    case = replace(case, lists=(wrong_ids, wrong_offsets))
    out = forward(EMULATED, case)
    assert_bitwise(out[0][:, 16:29], expected[0][:, 16:29], "rows of tiles with right lists")
    for deterministic in (False, True):
        gradients = backward(EMULATED, case, out, deterministic=deterministic)
        lifted = lift(EMULATED, case, deterministic=deterministic)
        assert all(grad.isfinite().all() for grad in (*gradients, *lifted))
    wrong_last = (out[0], out[1], torch.full_like(out[2], 10**9))
    assert all(grad.isfinite().all() for grad in backward(EMULATED, case, wrong_last))


@pytest.mark.parametrize("channels", [3, 20])
def test_wrong_samples_are_not_followed(channels):
    """A pixel outside the image is the nearest inside, ranges end where pixels end."""
    case = given(200, channels, torch.float32).sampling(300)
    expected = forward(EMULATED, case)
    pixels, offsets, order = case.sampled
    wrong_pixels, wrong_offsets = pixels.clone(), offsets.clone()
    wrong_pixels[:3] = torch.tensor([-1, 10**12, -(2**62)])
    wrong_offsets[0], wrong_offsets[-1] = -7, 10**9
    case = replace(case, sampled=ops.SampledPixels(wrong_pixels, wrong_offsets, order))
    out = forward(EMULATED, case)
    assert_relative(out[0][3:], expected[0][3:], 1e-6, "pixels beside them")
    gradients = backward(EMULATED, case, out)
    assert all(grad.isfinite().all() for grad in (*out, *gradients, *lift(EMULATED, case)))

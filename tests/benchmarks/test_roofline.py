"""Work by hand, and what it says of a time."""

from dataclasses import replace

import pytest
import torch

from benchmarks import ceilings, roofline
from benchmarks.results import Agreement, CaseRow, Ceilings
from gsfields.bench.clock import WallClock
from gsfields.bench.stages import BLENDING, STAGES

# 32 x 20 pixels are 2 x 2 tiles; 640 pixels blend 3 Gaussians each: 1920 blended pairs.
CASE = CaseRow("s", 1000, 32, 20, 2, 600.0, 5000.0, 9.0, 3.0, Agreement(0, 0, 0, True))


@pytest.mark.parametrize(
    ("stage", "channels", "size", "operations"),
    [
        ("project", 0, 48_000 + 19_200, 117_600),
        ("project backward", 0, 52_000 + 43_200, 264_600),
        ("colour", 0, 13_000 + 122_400, 91_200),
        ("colour backward", 0, 205_000 + 129_600, 183_600),
        ("bin", 0, 8_000 + 16_800 + 20_000 + 40, 0),
        ("blend", 3, 20_040 + 21_600 + 12_800, 42_240),
        ("blend", 64, 20_040 + 168_000 + 168_960, 276_480),
        ("blend backward", 3, 20_040 + 57_600 + 15_360, 103_680),
        ("ssim", 3, 46_080, 389_760),
        ("ssim backward", 3, 53_760, 257_280),
    ],
)
def test_work_by_hand(stage, channels, size, operations):
    work = roofline.work(stage, CASE, channels)
    assert (work.bytes, work.flops) == (size, operations)


def test_every_stage_has_its_work_unless_it_is_made_of_others():
    composed = {"plan", "render", "render+backward"}
    assert {stage for stage in STAGES if roofline.work(stage, CASE, 3) is None} == composed
    assert composed - {"plan"} < set(BLENDING)


def test_share_is_of_the_limit_that_binds():
    limits = Ceilings(memory_gb_per_s=1000, fp32_gflop_per_s=20_000)
    moving = roofline.achieved(roofline.Work(bytes=2e9, flops=2e9), ms=4, ceilings=limits)
    assert (moving.gb_per_s, moving.gflop_per_s) == pytest.approx((500, 500))
    assert moving.bound == "memory" and moving.share == pytest.approx(0.5)
    computing = roofline.achieved(roofline.Work(bytes=1e6, flops=2e10), ms=4, ceilings=limits)
    assert computing.bound == "fp32" and computing.share == pytest.approx(0.25)


def test_a_cull_or_a_denser_image_changes_the_work():
    hidden = replace(CASE, visible=0.0, pairs=0.0, blended_per_pixel=0.0)
    assert roofline.work("project", hidden, 0).flops == 0
    assert roofline.work("blend", hidden, 3).bytes == 40 + 640 * 20
    assert roofline.work("blend", replace(CASE, blended_per_pixel=6.0), 3).flops == 84_480


def test_ceilings_count_bytes_both_ways_and_operations_twice(monkeypatch):
    class Clock(WallClock):
        def ms(self, call):
            call()
            return 2.0

    before = torch.get_float32_matmul_precision()
    found = ceilings.measure(torch.device("cpu"), Clock(), copy_bytes=1 << 20, matrix=64)
    assert found.memory_gb_per_s == pytest.approx(2 * 2**20 / 2e-3 / 1e9)
    assert found.fp32_gflop_per_s == pytest.approx(2 * 64**3 / 2e-3 / 1e9)
    assert torch.get_float32_matmul_precision() == before

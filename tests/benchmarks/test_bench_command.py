"""`gsfields bench`: the table, the JSON, one stage alone, and calls for a profiler."""

import json
from types import SimpleNamespace

import pytest
import torch

from gsfields.bench import command, stages
from gsfields.bench.clock import Effort, Task, WallClock
from gsfields.bench.command import Size

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(command, "QUICK", {"cpu": (Size(200, 40, 24, (3, 5)),)})
    monkeypatch.setattr(command, "QUICK_EFFORT", {"cpu": Effort(0, min_rounds=2)})


def test_every_stage_once_and_the_blending_ones_for_every_number_of_channels(small, tmp_path):
    lines: list[str] = []
    out = tmp_path / "bench.json"
    rows = command.run(device="cpu", quick=True, out=out, say=lines.append)
    expected = [(stage, 0) for stage in stages.GEOMETRY] + [(stage, 3) for stage in stages.BLENDING]
    expected += [(stage, 3) for stage in stages.SSIM] + [(stage, 5) for stage in stages.BLENDING]
    assert [(row.stage, row.channels) for row in rows] == expected
    assert all(0 < row.p10 <= row.ms <= row.p90 and row.pairs > 0 for row in rows)
    told = json.loads(out.read_text())
    assert told["device"] == lines[0] and [row["stage"] for row in told["rows"]] == [s for s, _ in expected]
    assert "200 Gaussians, 40x24" in lines[1] and lines[1].count("\nblend ") == 4


def test_one_stage_alone(small):
    for stage, channels in (("bin", [0]), ("blend backward", [3, 5]), ("ssim", [3])):
        rows = command.run(device="cpu", quick=True, stage=stage, say=lambda line: None)
        assert [(row.stage, row.channels) for row in rows] == [(stage, c) for c in channels]


def test_profiled_calls_are_warm_and_between_start_and_stop():
    log: list[str] = []
    task = Task(run=log.append, prepare=lambda i: f"call {i}")
    profiler = SimpleNamespace(start=lambda: log.append("start"), stop=lambda: log.append("stop"))
    command.profiled(task, WallClock(), profiler)
    assert log[: command.VIEWS] == [f"call {i}" for i in range(command.VIEWS)]
    assert log[command.VIEWS :] == ["start", "call 0", "call 1", "call 2", "stop"]


def test_the_profilers_command_is_one_that_can_be_pasted():
    assert command.profiler_command("blend backward", quick=True) == (
        "ncu --profile-from-start off --set full -f -o blend_backward gsfields bench --profile 'blend backward' --quick"
    )


@pytest.mark.parametrize("stage", stages.STAGES)
def test_every_stage_can_be_profiled(small, stage):
    scene = command.make(Size(100, 24, 16, (2,)), CPU)
    assert list(command.tasks(scene, 2, (stage,))) == [stage]


def test_gradient_stages_give_the_gradients_of_their_inputs():
    scene = command.make(Size(100, 24, 16, (2,)), CPU)
    made = command.tasks(scene, 2, stages.STAGES)

    def shapes(stage):
        return [tuple(t.shape) for t in made[stage].run(made[stage].prepare(1))]

    parameters = [(100, 3), (100, 4), (100, 3), (100,)]
    rows = [(100, 3), (100, 7, stages.RANK), (stages.RANK,), (100, 2)]
    assert shapes("respond backward") == [(100, 3), (100, 4), (100,), *rows]
    assert shapes("project backward") == parameters
    assert shapes("colour backward") == [(1, 100, 3), (100, 1, 3), (100, 15, 3)]
    assert shapes("blend backward") == [(100, 2), (1, 100, 2), (1, 100, 3), (1, 100)]
    assert shapes("render+backward") == [*parameters, (100, 2)]
    assert shapes("ssim backward") == [(1, 16, 24, 2)]

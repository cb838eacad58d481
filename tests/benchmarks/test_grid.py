"""The grid runs, on the CPU here; peers take part only where they agree; results become tables."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import gsfields
from benchmarks import contenders, grid, kernels, machine, peers, report, report_grid, scenes
from benchmarks.peers import Peer, gsplat_render
from benchmarks.results import Results
from gsfields.bench import device as devices
from gsfields.bench.clock import Effort
from gsfields.bench.scene import resized, synthetic
from gsfields.bench.stages import BLENDING, GEOMETRY, SSIM

CPU = torch.device("cpu")
TINY = grid.Grid(
    "smoke",
    effort=Effort(0, min_rounds=2, warm_up=1, calls=1),
    splats=(),
    synthetic=(300,),
    sizes=((40, 24),),
    channels=(3, 1),
    views=2,
    copy_bytes=1 << 16,
    matrix=32,
    step=(50, 32),
)
GPU = {
    "gpu": "NVIDIA Test 9000",
    "gpu_memory_gib": 80.0,
    "gpu_l2_mib": 50.0,
    "gpu_multiprocessors": 132,
    "gpu_capability": "9.0",
    "cuda": "13.0",
}


def right(*args, packed):
    """gsplat's function as a correct gsplat would compute it."""
    return gsfields.rasterization(*args, packed=packed)


def wrong(*args, packed):
    colors, alphas, meta = right(*args, packed=packed)
    return colors * 0.97, alphas, meta


def wrong_gradient(*args, packed):
    colors, alphas, meta = right(*args, packed=packed)
    return colors.detach() + 0.9 * (colors - colors.detach()), alphas, meta


def broken(*args, packed):
    raise RuntimeError("its extension was not built\nsecond line")


def run(rasterization=None, *, suite=TINY, missing=()):
    rivals = [] if rasterization is None else [Peer("gsplat 9", gsplat_render(rasterization))]
    return grid.run(suite, CPU, say=lambda line: None, found=(rivals, list(missing)))


@pytest.fixture(scope="module")
def results() -> Results:
    """A run with a peer, told as if it had been on a GPU."""
    results = run(right)
    results.machine |= GPU
    results.mode = "full"
    results.times = [replace(row, peak_mib=1.5) for row in results.times]
    return results


def test_every_stage_is_measured_where_it_depends_on_something(results):
    measured = {(row.stage, row.channels) for row in results.times if not row.stage.startswith("gsplat")}
    expected = {(stage, 0) for stage in GEOMETRY} | {(stage, 3) for stage in SSIM}
    assert measured == expected | {(stage, c) for stage in BLENDING for c in (1, 3)}
    assert all(row.p10 <= row.ms <= row.p90 and row.rounds == 2 for row in results.times)
    assert results.ceilings.memory_gb_per_s > 0 and len(results.steps) == 1
    assert not results.disagreements


def test_counts_are_those_of_the_scene(results):
    (case,) = results.cases
    scene = resized(synthetic(300, 16), 40, 24, 2)
    views = [grid.stages.project_and_bin(scene, i) for i in range(2)]
    assert (case.width, case.height, case.views, case.gaussians) == (40, 24, 2, 300)
    assert case.pairs == sum(view.ids.numel() for view in views) / 2
    assert 0 < case.visible <= 300 and 0 < case.blended_per_pixel <= case.visited_per_pixel


def test_a_peer_that_agrees_is_timed_in_turn(results):
    assert [(row.channels, row.agreement.ok) for row in results.peers] == [(3, True), (1, True)]
    assert all(row.speedup.keys() == {"render", "render+backward"} for row in results.peers)
    assert all(ratio > 0 for row in results.peers for ratio in row.speedup.values())
    assert {row.stage for row in results.times} >= {"gsplat 9 render", "gsplat 9 render+backward"}


@pytest.mark.parametrize("rasterization", [wrong, wrong_gradient])
def test_a_peer_that_disagrees_is_reported_and_not_timed(rasterization):
    results = run(rasterization, suite=replace(TINY, channels=(3,), step=None))
    assert [row.agreement.ok for row in results.peers] == [False] and not results.peers[0].speedup
    assert results.disagreements == results.peers
    assert not any(row.stage.startswith("gsplat") for row in results.times)
    assert "| NO |" in report.markdown(results)


def test_a_peer_that_cannot_run_is_a_note():
    results = run(broken, suite=replace(TINY, channels=(3,), step=None))
    assert results.notes == ["gsplat 9 cannot render 3 channels here: its extension was not built"]
    assert not results.peers and results.times


def test_our_own_disagreement_is_seen(monkeypatch):
    kernel = contenders.ours
    monkeypatch.setattr(contenders, "ours", lambda view: (kernel(view)[0] * 0.999, kernel(view)[1]))
    results = run(suite=replace(TINY, channels=(3,), step=None))
    assert results.disagreements == results.cases


def test_peers_are_found_or_missed_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", None)
    assert peers.find(torch.device("cuda")) == ([], ["gsplat is not installed: no peer"])
    fake = SimpleNamespace(__version__="1.5.3", rasterization=right)
    monkeypatch.setitem(sys.modules, "gsplat", fake)
    assert peers.find(CPU)[1] == ["gsplat 1.5.3 is installed, but its rasterizer runs on CUDA only: no peer"]
    found, missing = peers.find(torch.device("cuda"))
    assert [peer.name for peer in found] == ["gsplat 1.5.3"] and not missing
    assert peers.compare(synthetic(200, 32), found[0]).ok


def test_what_does_not_fit_into_the_time_or_the_memory_is_a_note(monkeypatch):
    quick = replace(TINY, step=None)
    late = grid.run(quick, CPU, minutes=0.0, say=lambda line: None, found=([], []))
    assert late.notes == ["synthetic 300 at 40x24: left out, the 0 minutes were over"] and not late.cases

    def too_large(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(grid.stages, "blend_tasks", too_large)
    assert "fits into the device's memory" in run(suite=quick).notes[0]


def test_missing_splats_are_notes(monkeypatch, tmp_path):
    monkeypatch.setattr(scenes, "DATA", tmp_path)
    notes = []
    made = list(grid.cases(replace(TINY, splats=("robot_125k",)), notes))
    assert len(made) == 1 and len(notes) == 1 and "robot_125k.npz" in notes[0]


def test_opacities_stay_below_the_clamps_that_differ(monkeypatch):
    assert peers.MAX_OPACITY < 0.99
    monkeypatch.setattr(peers, "MAX_OPACITY", 0.5)
    (scene,) = grid.cases(TINY, [])
    assert scene.opacities.max() == 0.5


def test_results_are_read_back_and_drawn(results, tmp_path):
    path = tmp_path / "nvidia-test-9000.json"
    results.save(path)
    again = Results.load(path)
    assert again == results
    text = report.markdown(again)
    for heading in ("Limits", "Cases", "Stages", "By channels", "Roofline", "Memory", "Peers"):
        assert f"\n## {heading}\n" in text
    assert "NVIDIA Test 9000, 80.0 GiB, 132 multiprocessors of capability 9.0" in text
    lines = [line for line in text.split("## Roofline")[1].split("\n## ")[0].splitlines() if "%" in line]
    assert len(lines) == len(GEOMETRY) - 1 + 2 * 2 + 2  # all but the plan, the blend's at two C, ssim
    blend = next(row for row in results.times if (row.stage, row.channels) == ("blend", 3))
    assert sum(f"| {report_grid.three(blend.ms)} |" in line for line in lines) >= 1


def test_readme_shows_full_runs_between_its_marks_and_settles(results, tmp_path):
    results.save(tmp_path / "gpu.json")
    replace(results, mode="quick").save(tmp_path / "gpu-quick.json")
    paths = sorted(tmp_path.glob("*.json"))
    text = f"above\n\n{report.BEGIN}\n\nold\n\n{report.END}\n\nbelow\n"
    drawn = report.readme(text, paths)
    assert drawn.startswith("above\n") and drawn.endswith("below\n") and "old" not in drawn
    assert "### NVIDIA Test 9000" in drawn and "(results/gpu.md)" in drawn and "gpu-quick" not in drawn
    assert "| blend backward |" in drawn and "gsplat 9 took" in drawn
    assert report.readme(drawn, paths) == drawn
    with pytest.raises(ValueError, match="must have the lines"):
        report.readme("no marks", paths)


def test_summary_of_a_run_without_peers_says_so(results):
    alone = replace(results, peers=[], notes=["gsplat is not installed: no peer"])
    assert report_grid.summary(alone).endswith("gsplat is not installed: no peer.")
    assert "## Peers\n\ngsplat is not installed: no peer." in report.markdown(alone)


def test_committed_results_are_what_is_drawn_of_them():
    paths = sorted(report.RESULTS.glob("*.json"))
    assert paths
    for path in paths:
        assert report.markdown(Results.load(path)) == path.with_suffix(".md").read_text()
    assert report.readme(report.README.read_text(), paths) == report.README.read_text()


def test_pictures_are_drawn_where_matplotlib_is(results, tmp_path):
    pytest.importorskip("matplotlib")
    assert report.draw(results, tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_are_left_out_where_it_is_not(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not report.draw(results, tmp_path / "gpu.png") and not list(tmp_path.iterdir())


def test_the_command_measures_cuda_where_it_can_and_refuses_it_where_it_cannot(monkeypatch, tmp_path, capsys):
    if devices.cuda_problem():
        assert kernels.main(["--device", "cuda", "--out", str(tmp_path)]) == 2
        assert "device is 'cuda', but torch" in capsys.readouterr().err
    monkeypatch.setattr(devices, "choose", lambda name: torch.device("cuda"))
    measured = replace(run(suite=replace(TINY, step=None)), machine=machine.describe() | GPU)
    asked = []

    def measure(suite, device, minutes):
        asked.append((suite, device.type, minutes))
        return measured

    monkeypatch.setattr(grid, "run", measure)
    assert kernels.main(["--quick", "--minutes", "2", "--out", str(tmp_path)]) == 0
    assert asked == [(grid.QUICK, "cuda", 2.0)]
    assert {path.name for path in tmp_path.glob("*.[jm]*")} == {
        "nvidia-test-9000-quick.json", "nvidia-test-9000-quick.md"
    }  # fmt: skip
    assert json.loads((tmp_path / "nvidia-test-9000-quick.json").read_text())["machine"]["cuda"] == "13.0"


def test_a_disagreement_fails_the_command(results, tmp_path, capsys):
    bad = replace(results.peers[0], agreement=replace(results.peers[0].agreement, ok=False))
    assert kernels.publish(replace(results, peers=[bad]), tmp_path, "x") == 1
    assert "DISAGREEMENT: gsplat 9, synthetic 300 at 40x24, C = 3" in capsys.readouterr().err

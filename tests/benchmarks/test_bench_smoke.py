"""The benchmarks run, their baselines agree with our kernels, and their files can be read back."""

import json
import mmap
from dataclasses import replace

import pytest
import torch

from benchmarks import contenders, kernels, report, scenes
from benchmarks.baselines import scalar_loop, torch_reference
from benchmarks.measure import PeakMemory, threads
from benchmarks.results import Results, Target
from gsfields.bench.clock import Effort
from gsfields.bench.scene import synthetic
from gsfields.bench.stages import View, image_gradient, project_and_bin
from tests.kernels import oracle

TINY = kernels.Suite(
    "smoke",
    blend_effort=Effort(0, min_rounds=2),
    stage_effort=Effort(0, min_rounds=1),
    step_effort=Effort(0, min_rounds=1),
    scenes=("synthetic",),
    counts=(300,),
    sizes=(40,),
    threads=(1,),
    prototype=(400, 48),
    step=(100, 32),
    room_width=None,
    memory=False,
)


@pytest.fixture(scope="module")
def view() -> View:
    """Lists that owe nothing to our kernels; 40 x 24 pixels, so that tiles at two borders are cut."""
    scene = replace(synthetic(200, 40), height=24)
    means2d, depths, conics, opacities2d, radii = oracle.project(*scene.geometry, *scene.camera(0))
    projected = (means2d[0], conics[0], opacities2d[0], depths[0], radii[0])
    lists = oracle.tile_lists(*projected, scene.width, scene.height)
    ids = torch.tensor([i for of_tile in lists for i in of_tile], dtype=torch.int32)
    offsets = torch.tensor([0, *(len(of_tile) for of_tile in lists)]).cumsum(0)
    assert len(ids) > 200
    return View(scene.values, means2d, conics, opacities2d, ids, offsets, scene.width, scene.height)


def test_scalar_loop_is_the_torch_reference(view):
    image, transmittance = contenders.torch_tiled(view)
    loop = contenders.scalar_blend(view)
    torch.testing.assert_close(loop.image, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(loop.transmittance, transmittance, atol=1e-5, rtol=0)
    assert (loop.blended <= loop.visited).all() and loop.blended.max() > 3


def test_tiled_torch_is_the_dense_oracle(view):
    """In float64, where no threshold flips; images and gradients."""
    fields = ("values", "means2d", "conics", "opacities2d")
    exact = replace(view, **{name: getattr(view, name).double() for name in fields})
    scene = replace(synthetic(200, 40), height=24)
    _, depths, _, _, radii = oracle.project(*scene.geometry, *scene.camera(0))
    v_image = image_gradient(view).double()

    def dense(v):
        return oracle.composite(*v.differentiable, depths, radii, v.width, v.height)[:2]

    results = []
    for blend in (contenders.torch_tiled, dense):
        leaf = exact.with_gradients()
        image, transmittance = blend(leaf)
        results.append([image, transmittance, *torch.autograd.grad(image, leaf.differentiable, v_image)])
    for tiled, reference in zip(*results, strict=True):
        torch.testing.assert_close(tiled, reference, atol=1e-9, rtol=1e-6)


def test_dense_reference_is_the_tiled_one_and_refuses_large_scenes(view):
    scene = replace(synthetic(200, 40), height=24)
    depths = oracle.project(*scene.geometry, *scene.camera(0))[1]
    drawn = view.ids.unique().long()
    fields = [
        view.values[drawn],
        *(t[:, drawn] for t in (view.means2d, depths, view.conics, view.opacities2d)),
    ]
    dense, _ = torch_reference.blend_dense(*fields, (view.width, view.height))
    torch.testing.assert_close(dense, contenders.torch_tiled(view)[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="at most"):
        torch_reference.blend_dense(*fields, (10_000, 10_000))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_scalar_loop_any_channels_and_threads_gives_one_image(view, channels):
    values = torch.rand(len(view.values), channels, generator=torch.Generator().manual_seed(0))
    arguments = (values, view.means2d, view.conics, view.opacities2d, *view.lists, (view.width, view.height))
    one, two = scalar_loop.blend(*arguments, threads=1), scalar_loop.blend(*arguments, threads=2)
    assert one.image.shape == (1, 24, 40, channels) and torch.equal(one.image, two.image)
    torch.testing.assert_close(one.image, torch_reference.blend_tiled(*arguments)[0], atol=1e-5, rtol=0)


def test_baselines_refuse_a_batch(view):
    two = replace(view, means2d=view.means2d.expand(2, -1, -1))
    with pytest.raises(ValueError, match="one view"):
        contenders.torch_tiled(two)
    with pytest.raises(ValueError, match="one view"):
        contenders.scalar(two)


def test_our_kernel_agrees_with_the_baselines():
    view = project_and_bin(synthetic(500, 64), 0)
    agreement = contenders.compare(view, image_gradient(view))
    assert agreement.ok
    assert agreement.image_worst < 1e-2 and agreement.gradient < 1e-2


def test_disagreement_is_seen(monkeypatch):
    """A kernel that forgets a thousandth of its image is reported."""
    view = project_and_bin(synthetic(500, 64), 0)
    right = contenders.ours
    monkeypatch.setattr(contenders, "ours", lambda v: (right(v)[0] * 0.999, right(v)[1]))
    assert not contenders.compare(view, image_gradient(view)).ok


def test_prototype_scene_is_as_crowded_as_stated():
    view = project_and_bin(scenes.prototype(12_500, 256), 0)
    work = contenders.scalar_blend(view)
    assert 39 < float(work.blended.float().mean()) < 46


def test_run_writes_what_can_be_read_back(tmp_path):
    with threads(1):
        results = kernels.run(TINY, say=lambda line: None)
    results.save(tmp_path / "machine.json")
    again = Results.load(tmp_path / "machine.json")
    assert again == results
    assert [row.agreement.ok for row in again.blend] == [True]
    assert {row.isa for row in again.stages} == set(results.machine["isas"])
    assert len(again.steps) == 1 and len(again.targets) == 5
    assert all(ms > 0 for row in again.stages for ms in row.ms.values())
    text = report.markdown(again)
    assert text.count("\n| ") > 8 and "verdict" in text and "not part of this mode" in text


def test_results_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "machine.json"
    Results("smoke", {}, targets=[Target("binning", 3, "ms", "at most", 4, 2)]).save(path)
    raw = json.loads(path.read_text())
    for broken in ({"schema": 0}, {"colour": 1}, {"targets": [{"name": "binning"}]}):
        path.write_text(json.dumps(raw | broken))
        with pytest.raises(ValueError, match=r"machine\.json"):
            Results.load(path)
    raw["targets"][0]["name"] = 7
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="name must be str"):
        Results.load(path)


@pytest.mark.parametrize(
    ("value", "sense", "verdict"),
    [
        (1.5, "at most", "goal met"),
        (3, "at most", "met"),
        (5, "at most", "missed"),
        (5, "at least", "goal met"),
    ],
)
def test_verdict_follows_from_the_figures(value, sense, verdict):
    limit, goal = (4, 2) if sense == "at most" else (2, 4)
    assert Target("binning", value, "ms", sense, limit, goal).verdict == verdict


def test_missing_splat_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(scenes, "DATA", tmp_path)
    with pytest.raises(scenes.SceneMissing, match=r"robot_125k\.npz"):
        scenes.load("robot_125k", 10, 16)
    notes: list[str] = []
    assert list(kernels.cases(replace(TINY, scenes=("robot_125k",)), notes)) == [] and len(notes) == 1


def test_peak_memory_sees_what_was_freed_again():
    memory = PeakMemory()
    block = mmap.mmap(-1, 64 << 20)  # malloc may have as much at hand from earlier tests
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    block.close()
    assert 60 < memory.rise < 100

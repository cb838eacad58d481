"""The channel sweep: what it times is right, its baselines agree, it leaves out what cannot be, and is drawn."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

import gsfields
from benchmarks import (
    channel_bars,
    channels,
    channels_report,
    contenders,
    machine,
    peers,
    plot,
    report,
    roofline,
)
from benchmarks import channel_tasks as tasks
from benchmarks.baselines.products import DenseProducts, SparseProduct
from benchmarks.channel_tasks import ALL, BF16, FORWARD, FP32, LIFT, PERIOD, TASKS, TF32, VALUES
from benchmarks.peers import Peer, gsplat_in_parts, gsplat_render
from benchmarks.results import Agreement, CaseRow, Ceilings, Results, WideMemoryRow
from gsfields.bench import device as devices
from gsfields.bench.clock import Effort, Timing, once
from gsfields.bench.scene import resized, synthetic
from gsfields.bench.stages import View, project_and_bin

CPU = torch.device("cpu")
EFFORT = Effort(0, min_rounds=2, warm_up=1, calls=1)
TINY = channels.Sweep(
    "full",
    EFFORT,
    EFFORT,
    splats=("robot_125k", "chair_112k"),
    gaussians=300,
    sizes=((40, 24), (24, 40)),
    channels=(3, 10, 20),
    memory=(),
    dense=(10,),
    limits=(1 << 16, 32),
    prototype=(300, 32),
)


@pytest.fixture(autouse=True)
def splats(monkeypatch):
    """Stand-ins for the trained splats, and one thread: what is small only waits for more."""
    monkeypatch.setattr(machine, "available_cores", lambda: 1)
    made = channels.scenes.load

    def load(name, count, size):
        if name == "prototype":
            return made(name, count, size)
        return replace(synthetic(min(count, 300), size, seed=len(name)), name=name)

    monkeypatch.setattr(channels.scenes, "load", load)


@pytest.fixture(scope="module")
def scene():
    return resized(synthetic(400, 16), 40, 24, 1)


def periodic(scene, count) -> View:
    return project_and_bin(tasks.with_periodic_values(scene, count), 0)


def reference(scene):
    return contenders.scalar_blend(periodic(scene, PERIOD)).image


# ---- tasks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 10, 44])
def test_everybody_agrees_with_the_scalar_loop(scene, count):
    view = periodic(scene, count)
    v_image = tasks.quick_gradient(view)
    given = [
        tasks.given_weights(str(make), make(periodic(scene, PERIOD)))
        for make in (DenseProducts, SparseProduct)
    ]
    for contender in (tasks.ours(), tasks.torch_dense(), *given):
        found = tasks.check(view, v_image, reference(scene), contender, 1e-5)
        assert found.ok and (found.gradient is None) == (LIFT not in contender.can)
        assert found.image_worst < 1e-5


def shifted(contender):
    """Channels one place off."""
    return replace(contender, blend=lambda view: (contender.blend(view)[0].roll(1, -1), None))


def short(contender):
    """The last channel forgotten, as by a kernel that drops a ragged tail."""

    def blend(view):
        image = contender.blend(view)[0].clone()
        image[..., -1] = 0
        return image, None

    return replace(contender, blend=blend)


def small_lift(contender):
    return replace(contender, lift=lambda view, image: 0.999 * contender.lift(view, image)[0])


@pytest.mark.parametrize("broken", [shifted, short, small_lift])
def test_what_disagrees_is_seen(scene, broken):
    view = periodic(scene, 10)
    v_image = tasks.quick_gradient(view)
    assert not tasks.check(view, v_image, reference(scene), broken(tasks.ours()), 1e-5).ok


def test_bands_do_not_change_what_is_compared(scene, monkeypatch):
    view = periodic(scene, 10)
    whole = tasks.check(view, tasks.quick_gradient(view), reference(scene), tasks.ours(), 1e-5)
    monkeypatch.setattr(tasks, "BAND_BYTES", 4 * 40 * 10 * 7)
    bands = tasks.check(view, tasks.quick_gradient(view), reference(scene), tasks.ours(), 1e-5)
    assert (bands.image_worst, bands.image_outliers) == (whole.image_worst, whole.image_outliers)


def test_tasks_give_what_they_are_named_after(scene):
    view = periodic(scene, 10)
    v_image = tasks.quick_gradient(view)
    made = tasks.ours().tasks(view, v_image)
    assert tuple(made) == TASKS
    results = {name: task.run(task.prepare(0)) for name, task in made.items()}
    image, to_values = results[VALUES]
    _, everything = results[ALL]
    sums, total = results[LIFT]
    assert torch.equal(image, results[FORWARD]) and not results[FORWARD].requires_grad
    assert [g.shape for g in everything] == [t.shape for t in view.differentiable]
    torch.testing.assert_close(to_values[0], everything[0])
    torch.testing.assert_close(to_values[0], sums)
    assert total.shape == (400,)
    assert not view.values.requires_grad
    alone = tasks.backward(tasks.ours().blend, view, v_image, "values")
    torch.testing.assert_close(alone.run(alone.prepare(0))[0], sums)
    weights = tasks.given_weights("dense", DenseProducts(view)).tasks(view, v_image)
    torch.testing.assert_close(
        weights[f"dense, weights given {VALUES}"].run(0)[1], sums, atol=1e-4, rtol=1e-4
    )


def test_output_bytes_are_those_of_the_tensors(scene):
    for storage in (torch.float32, torch.bfloat16):
        view = periodic(scene, 10)
        view = replace(view, values=view.values.to(storage))
        made = tasks.ours().tasks(view, tasks.quick_gradient(view))
        sizes = {}
        for name in TASKS:
            found = flat(made[name].run(made[name].prepare(0)))
            sizes[name] = sum(t.numel() * t.element_size() for t in found)
        ends = 2 * 4 * 40 * 24  # transmittance and the end of what was blended, which the graph holds
        kept = {FORWARD: ends, VALUES: ends, ALL: ends, LIFT: 0}
        assert {name: tasks.output_bytes(view, name) for name in TASKS} == {
            n: sizes[n] + kept[n] for n in TASKS
        }


def flat(result):
    return [result] if isinstance(result, torch.Tensor) else [t for part in result for t in flat(part)]


# ---- work -----------------------------------------------------------------------------------------------------

# 32 x 20 pixels are 2 x 2 tiles; 640 pixels blend 3 Gaussians each: 1920 blended pairs.
CASE = CaseRow("s", 1000, 32, 20, 1, 600.0, 5000.0, 9.0, 3.0, Agreement(0, 0, 0, True))


@pytest.mark.parametrize(
    ("task", "item", "size", "operations"),
    [
        (FORWARD, 4, 20_040 + 168_000 + 168_960, 276_480),
        (FORWARD, 2, 20_040 + 600 * (24 + 128) + 640 * (128 + 8), 276_480),
        (VALUES, 4, 2 * 20_040 + 168_000 + 168_960 + 14_400 + 256_000 + 171_520, 2 * 276_480),
        (ALL, 4, 2 * 20_040 + 168_000 + 168_960 + 1600 * 280 + 171_520, 276_480 + 1920 * 298),
        (LIFT, 4, 20_040 + 14_400 + 260_000 + 163_840, 276_480),
    ],
)
def test_work_by_hand(task, item, size, operations):
    work = tasks.work(task, CASE, 64, item)
    assert (work.bytes, work.flops) == (size, operations)
    assert tasks.work("torch dense forward", CASE, 64) is None


def test_floor_is_of_the_units_that_the_precision_uses():
    limits = Ceilings(1000, 20_000, tf32_gflop_per_s=300_000, bf16_gflop_per_s=600_000)
    results = Results("full", {}, kind="channels", ceilings=limits)
    dense = replace(CASE, blended_per_pixel=1e6)
    flops = 640e6 * (16 + 2 * 64)
    for name, rate in ((FORWARD, 20_000), (f"tf32 {FORWARD}", 300_000), (f"bf16 {FORWARD}", 600_000)):
        assert channels_report.floor_ms(results, dense, name, 64) == pytest.approx(flops / rate / 1e6)
    assert channels_report.floor_ms(results, CASE, FORWARD, 64) == pytest.approx(357_000 / 1e9)
    assert channels_report.floor_ms(results, CASE, "scalar loop forward", 64) is None
    assert roofline.floor_ms(roofline.Work(2e9, 0), 1000, 1) == 2


# ---- verdicts -------------------------------------------------------------------------------------------------


def test_cpu_targets_from_the_rounds():
    def made(**ms):
        return {name.replace("_", " "): Timing((value, value)) for name, value in ms.items()}

    timings = {16: made(forward=1, scalar_loop_forward=12), 64: made(forward=2, scalar_loop_forward=13)}
    timings[512] = made(forward=8, scalar_loop_forward=40) | {channel_bars.NARROW_FORWARD: Timing((1.0, 1.0))}
    for count, values, everything in ((64, 3.0, 7.2), (512, 12.8, 20.0)):
        timings[count] |= {
            channel_bars.VALUES_BACKWARD: Timing((values,) * 2), channel_bars.ALL_BACKWARD: Timing((everything,) * 2)
        }  # fmt: skip
    found = channel_bars.cpu_targets(timings)
    assert [t.verdict for t in found] == ["met", "missed", "goal met", "met", "met", "missed"]
    assert [found[i].value for i in (0, 1, 2)] == [12, 6.5, 5]
    assert found[3].value == pytest.approx(8 / 512 * 3)
    assert found[4].value == pytest.approx(1.6) and found[5].value == pytest.approx(3.6)
    assert "(C = 64)" in found[5].name


def test_memory_may_be_the_output_and_64_mb_beyond():
    row = WideMemoryRow("s", 9, 9, 9, 64, "float32", LIFT, 10.0, 100.0, 161.0)
    assert channel_bars.memory([row]).verdict == "met"
    worse = replace(row, channels=3, outputs=1.0, beyond=70.0)
    found = channel_bars.memory([row, worse])
    assert found.verdict == "missed" and "C = 3" in found.name


# ---- a run on the CPU -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            channels.scenes, "load",
            lambda name, count, size: replace(synthetic(min(count, 300), size), name=name),
        )  # fmt: skip
        patch.setattr(machine, "available_cores", lambda: 1)
        patch.setattr(channels.scenes, "prototype", lambda count, size: synthetic(count, size))
        return channels.run(
            TINY, CPU, say=lambda line: None, found=([], ["gsplat is not installed: no peer"])
        )


def test_every_case_and_count_is_measured(results):
    assert [c.scene for c in results.cases] == ["synthetic", *["robot_125k", "chair_112k"] * 2]
    for case in range(1, 5):
        measured = {(r.stage, r.channels) for r in results.times if r.case == case}
        assert {(task, c) for task in TASKS for c in TINY.channels} <= measured
    assert not results.disagreements and results.kind == "channels"
    assert {t.verdict for t in results.targets} <= {"met", "goal met", "missed"} and len(results.targets) == 6


def test_baselines_take_part_on_the_first_splat_only(results):
    names = {"scalar loop", "torch dense", "dense products, weights given", "sparse product, weights given"}
    for case, row in enumerate(results.cases):
        timed = {p.peer for p in results.peers if p.case == case and p.speedup}
        assert timed == (names if row.scene == "robot_125k" else set())
    assert sum(r.stage == channels.BUILDING for r in results.times) == 2
    rows = [p for p in results.peers if p.peer == "torch dense"]
    assert [(p.channels, set(p.speedup)) for p in rows] == [(10, {FORWARD, ALL})] * 2


def test_results_are_read_back_and_drawn(results, tmp_path):
    path = tmp_path / "cpu-channels.json"
    results.save(path)
    again = Results.load(path)
    assert again == results
    report.write(again, path.with_suffix(".md"))
    text = path.with_suffix(".md").read_text()
    for heading in (
        "Targets",
        "Time",
        "Time over the floor",
        "Lift per dimension",
        "Others",
        "Cases",
        "Agreement",
    ):
        assert f"\n## {heading}\n" in text
    assert "gsplat is not installed: no peer" in text
    picture = ElementTree.parse(path.with_suffix(".svg")).getroot()
    titles = [t.text for t in picture.iter("{http://www.w3.org/2000/svg}text") if t.get("class") == "t"]
    assert titles[0] == "synthetic 300 at 32x32" and len(titles) == 5
    assert not path.with_suffix(".png").exists()


def test_readme_shows_targets_and_picture(results, tmp_path):
    path = tmp_path / "cpu-channels.json"
    results.save(path)
    report.write(results, path.with_suffix(".md"))
    text = f"{report.BEGIN}\n{report.END}"
    drawn = report.readme(text, [path])
    assert "(channel sweep)" in drawn and "| verdict |" in drawn and "(results/cpu-channels.svg)" in drawn
    assert report.readme(drawn, [path]) == drawn


def test_a_disagreement_fails_the_command(results, tmp_path, capsys, monkeypatch):
    bad = replace(results.peers[0], agreement=replace(results.peers[0].agreement, ok=False))
    monkeypatch.setattr(channels, "run", lambda *_: replace(results, peers=[bad]))
    assert channels.main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 1
    assert "DISAGREEMENT: ours, robot_125k 300 at 40x24, C = 3" in capsys.readouterr().err
    assert [p.name for p in tmp_path.glob("*.svg")] == [machine.slug(results.machine) + "-channels-quick.svg"]


def test_cuda_is_refused_where_it_cannot_be(capsys):
    if devices.cuda_problem():
        assert channels.main(["--device", "cuda"]) == 2
        assert "device is 'cuda', but" in capsys.readouterr().err


# ---- what is left out -----------------------------------------------------------------------------------------


def quick_run(monkeypatch, **changes):
    monkeypatch.setattr(channel_bars, "on_cpu", lambda *_: None)
    sweep = replace(TINY, splats=("robot_125k",), sizes=((40, 24),), **changes)
    return channels.run(sweep, CPU, minutes=9, say=lambda line: None, found=([], []))


def test_what_has_no_room_is_a_note(monkeypatch):
    once = 4 * 20 * (40 * 24 + 300)
    monkeypatch.setattr(machine, "free_memory", lambda device: 1.5 * once / channels.ROOM)
    results = quick_run(monkeypatch)
    wide = {r.stage for r in results.times if r.channels == 20}
    assert wide == {FORWARD} and {r.stage for r in results.times if r.channels == 10} > set(TASKS)
    assert any("C = 20: only forward" in note for note in results.notes)
    monkeypatch.setattr(machine, "free_memory", lambda device: 0.9 * once / channels.ROOM)
    results = quick_run(monkeypatch)
    assert not any(r.channels == 20 for r in results.times)
    assert any("C = 20 left out" in note for note in results.notes)


def test_what_comes_too_late_is_a_note(monkeypatch):
    monkeypatch.setattr(channels.Runner, "late", lambda self: len(self.results.times) > 3)
    results = quick_run(monkeypatch)
    assert {r.channels for r in results.times} == {0, 3}
    assert any("C = 10, 20 left out" in note for note in results.notes)


def test_memory_that_runs_out_is_a_note(monkeypatch):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")

    monkeypatch.setattr(channels, "quick_gradient", full)
    assert any("C = 3: not all of it fits" in note for note in quick_run(monkeypatch).notes)
    monkeypatch.setattr(channels, "quick_gradient", lambda view: 1 / 0 or view)
    with pytest.raises(ZeroDivisionError):
        quick_run(monkeypatch)


# ---- as on a GPU ----------------------------------------------------------------------------------------------


def right(*args, packed):
    """gsplat's function as a correct gsplat would compute it."""
    return gsfields.rasterization(*args, packed=packed)


def picky(*args, packed):
    """One that has kernels for some numbers of channels only."""
    if args[4].shape[1] not in peers.GSPLAT_COUNTS:
        raise ValueError("Unsupported number of color channels")
    return right(*args, packed=packed)


def wrong(*args, packed):
    colors, alphas, meta = right(*args, packed=packed)
    return colors * 0.97, alphas, meta


def on_gpu(monkeypatch, rasterization):
    """A run whose device is told to be a GPU, and is the CPU."""
    monkeypatch.setattr(channels.Runner, "on_gpu", property(lambda self: True))
    monkeypatch.setattr(channel_bars, "GPU_CASE", ("chair_112k", 300, 20, 30))
    measure = channels.ceilings.measure
    monkeypatch.setattr(
        channels.ceilings, "measure",
        lambda *args: replace(measure(*args), tf32_gflop_per_s=1e4, bf16_gflop_per_s=2e4),
    )  # fmt: skip
    rival = Peer("gsplat 9", gsplat_render(rasterization), gsplat_in_parts(rasterization))
    sweep = replace(TINY, splats=("robot_125k",), sizes=((40, 24),), channels=(3, 4, 10))
    return channels.run(sweep, CPU, say=lambda line: None, found=([rival], []))


def test_peers_and_precisions_on_a_gpu(monkeypatch):
    results = on_gpu(monkeypatch, picky)
    assert not results.disagreements
    first, second = results.cases
    assert (first.scene, first.width, second.width) == ("chair_112k", 20, 40)
    names = {r.stage for r in results.times if (r.case, r.channels) == (0, 512)}
    for mode in (FP32, TF32, BF16):
        assert {f"{mode.name} {task}".strip() for task in TASKS} <= names
    for task in (peers.RENDER, peers.RENDER_VALUES, peers.RENDER_ALL):
        assert {task, f"gsplat 9 {task}"} <= names
    speedups = {(p.case, p.channels): p.speedup for p in results.peers if p.peer == "gsplat 9"}
    assert speedups[0, 512].keys() == {peers.RENDER, peers.RENDER_VALUES, peers.RENDER_ALL}
    assert any("gsplat 9 renders 10 channels as 8 + 2, each" in note for note in results.notes)
    told = [t.name for t in results.targets]
    assert len(told) == 7 and f"{peers.RENDER} of 512 channels against gsplat" in told
    assert (
        "tf32 blend of 512 channels over its floor" in told
        and "lift of 512 channels against 2 ms each" in told
    )
    assert {r.channels for r in results.wide_memory} == {3, 4, 10, 64, 512}
    text = channels_report.markdown(results)
    assert "gsplat 9: render+backward (values)" in text and "bf16 lift" in text
    assert "gsplat 9 render" in channels_report.picture(results)


def test_a_peer_that_disagrees_is_reported_and_not_timed(monkeypatch):
    results = on_gpu(monkeypatch, wrong)
    assert results.disagreements and all(p.peer == "gsplat 9" for p in results.disagreements)
    assert not any(r.stage.startswith("gsplat") for r in results.times)
    assert not any("against gsplat" in t.name for t in results.targets)


def test_parts_are_as_few_as_add_up():
    assert [peers.parts_of(c) for c in (1, 10, 44, 100)] == [[1], [8, 2], [32, 8, 4], [32, 32, 32, 4]]
    scene = synthetic(100, 24).with_channels(10)
    whole = gsplat_render(right)(scene, 0)
    assert torch.equal(gsplat_in_parts(picky)(scene, 0), whole) and whole.shape == (1, 24, 24, 10)


def test_fvdb_is_found_checked_and_missed(monkeypatch):
    """A stand-in with its interface: logarithms, logits and harmonics of degree 0 in, images and alphas out."""

    class Splats:
        def __init__(self, *parameters):
            self.parameters = parameters

        @classmethod
        def from_tensors(cls, *parameters):
            return cls(*parameters)

        def render_images(self, viewmats, Ks, width, height, near, far):
            means, quats, log_scales, logits, sh0, shN = self.parameters
            assert shN.shape == (len(means), 0, sh0.shape[2]) and near < far
            values = sh0[:, 0] * peers.SH_C0 + 0.5
            colors, alphas, _ = gsfields.rasterization(
                means, quats, log_scales.exp(), logits.sigmoid(), values, viewmats, Ks, width, height
            )
            return colors, alphas

    monkeypatch.setitem(sys.modules, "fvdb", SimpleNamespace(GaussianSplat3d=Splats, __version__="1"))
    monkeypatch.setitem(sys.modules, "gsplat", None)
    found, missing = peers.find(torch.device("cuda"), ("gsplat", "fvdb"))
    assert [p.name for p in found] == ["fvdb 1"] and missing == ["gsplat is not installed: no peer"]
    assert peers.compare(synthetic(200, 32).with_channels(5), found[0]).ok
    monkeypatch.setitem(sys.modules, "fvdb", SimpleNamespace())
    assert "another interface" in peers.find(torch.device("cuda"), ("fvdb",))[1][0]


# ---- the picture ----------------------------------------------------------------------------------------------


def test_points_lie_where_their_logarithms_say():
    axis = plot.Axis.over([1, 1024], 4, 100)
    assert (axis.low, axis.high, axis.ticks()) == (0, 5, [1, 4, 16, 64, 256, 1024])
    assert (
        axis.place(1) == 0 and axis.place(1024) == pytest.approx(100) and axis.place(32) == pytest.approx(50)
    )
    assert plot.Axis.over([3, 3], 10, 1).ticks() == [1, 10]
    assert plot.Axis.over([0.02, 300], 10, 1).ticks() == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])


def test_picture_is_well_formed_and_escapes():
    line = plot.Series("a < b & c", ((1, 10.0), (16, 100.0)))
    panels = [plot.Panel("x & y", (line, replace(line, name="d", dashed=True)))] * 3
    root = ElementTree.fromstring(plot.svg(panels, 2, "C", "ms"))
    assert (root.get("width"), int(root.get("height")) > 2 * plot.HEIGHT) == (str(2 * (48 + 300 + 14)), True)
    paths = [p for p in root.iter("{http://www.w3.org/2000/svg}path") if p.get("class") == "l"]
    assert len(paths) == 3 * 2 + 2 and sum(p.get("stroke-dasharray") is not None for p in paths) == 4
    assert paths[0].get("d") == f"M0.0 {plot.HEIGHT:.1f}L{plot.WIDTH:.1f} 0.0"
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.svg([plot.Panel("empty", ())], 1, "C", "ms")


def test_a_task_is_called_once_for_one_time(scene):
    view = periodic(scene, 3)
    task = tasks.ours().tasks(view, tasks.quick_gradient(view))[ALL]
    assert once(task, 0, channels.clock_of(CPU)) > 0

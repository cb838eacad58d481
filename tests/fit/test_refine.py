"""Test-time refinement: only the moving layers change, only the chosen frames are written."""

import shutil

import pytest
import torch

from gsfields.cli import main
from gsfields.data.dataset import Dataset, View
from gsfields.fit.checkpoint import Checkpoint, read_metrics
from gsfields.fit.layered import LayeredTrainer
from gsfields.fit.refine import RefineOptions, Refiner, find_frames, refine_run, with_neighbours
from gsfields.fit.runs import start
from gsfields.fit.scene import open_dataset
from gsfields.layers import LayeredScene
from tests.fit.tiny_video import config_of
from tests.layered_scene import camera

QUICK = RefineOptions(visits=8)


@pytest.fixture
def run(fitted, tmp_path):
    return shutil.copytree(fitted[0], tmp_path / "run")


def layers_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    assert isinstance(checkpoint.scene, LayeredScene)
    return checkpoint.scene.tensors()


def files_of(run):
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in sorted((run / "masks").rglob("*.png"))}


# ------------------------------------------------------------------------------------------ what changes, and what not


@pytest.mark.parametrize("code", [False, True], ids=["codes stay", "codes, too"])
def test_what_is_still_stays_to_the_bit(run, code):
    before = layers_of(Checkpoint.load(run))
    done = refine_run(run, ["3"], RefineOptions(visits=4, code=code), progress=False)
    after = layers_of(Checkpoint.load(done.checkpoint))
    assert before.keys() == after.keys()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    bases = {"semistatic.basis", "dynamic.basis"}
    assert not any(name.startswith(("static.", "shell.")) or name == "gain" for name in changed)
    assert changed & bases == (bases if code else set())
    assert {"dynamic.means", "dynamic.sh0", "semistatic.opacity_logits"} <= changed
    assert Checkpoint.load(run).step == 240  # the run itself stays what resuming finds
    assert all(torch.equal(value, layers_of(Checkpoint.load(run))[name]) for name, value in before.items())


def test_only_the_chosen_frames_are_written_and_they_improve(run):
    before = files_of(run)
    done = refine_run(run, ["frame_0020", "7"], RefineOptions(window=1, visits=8), progress=False)
    after = files_of(run)
    assert (done.frames, done.fitted, done.shares.frames) == (2, 6, 2)
    assert done.loss[1] < done.loss[0] - 0.01
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        f"masks/{layer}/frame_00{i}0.png" for layer in ("dynamic", "semistatic") for i in (2, 7)
    }
    (line,) = (line for line in read_metrics(run) if line["kind"] == "refine")
    assert line["options"] == {"window": 1, "visits": 8, "rate": 0.5, "code": False, "reseed": False}
    assert line["frames"] == 2 and line["fitted"] == 6 and line["loss"] == list(done.loss)
    assert [
        line for line in read_metrics(run) if line["kind"] == "train"
    ]  # the fit's own lines are still there


def test_all_frames_without_a_choice(run):
    done = refine_run(run, options=RefineOptions(visits=1), progress=False)
    assert (done.frames, done.fitted) == (12, 12)


def test_refinement_is_a_function_of_the_run(run):
    scenes = [
        layers_of(Checkpoint.load(refine_run(run, ["4"], QUICK, progress=False).checkpoint)) for _ in range(2)
    ]
    assert all(torch.equal(value, scenes[1][name]) for name, value in scenes[0].items())


def refiner_of(run, views, options):
    checkpoint = Checkpoint.load(run)
    return Refiner(checkpoint.scene, open_dataset(checkpoint.config.data), views, checkpoint.config, options)


def test_the_steps_are_visits_times_frames_and_lower_the_loss(run):
    refiner = refiner_of(run, [2, 3], RefineOptions(visits=10))
    assert refiner.steps == 20
    before = refiner.mean_loss()
    assert refiner.mean_loss() == before  # looking changes nothing
    for _ in range(refiner.steps):
        refiner.train_step()
    layers = refiner.parameters.layers
    assert all(v.grad is None for name in ("static", "shell") for v in layers[name].values.values())
    assert refiner.mean_loss() < before - 0.01


def test_reseeding_adds_dynamic_gaussians_only(run):
    plain, reseeded = (refiner_of(run, [2, 3], RefineOptions(reseed=r)) for r in (False, True))
    a, b = plain.parameters.scene().counts, reseeded.parameters.scene().counts
    assert b["dynamic"] > a["dynamic"] and {**a, "dynamic": 0} == {**b, "dynamic": 0}
    for _ in range(3):
        reseeded.train_step()


# ------------------------------------------------------------------------------------------------- choosing frames


def shuffled(names=("c", "a", "d", "b"), times=(2.0, 0.0, 3.0, 1.0)) -> Dataset:
    """Views whose order in the dataset is not that in time."""
    view = camera(4, 4)
    views = [View.from_image(f"in/{n}.png", view, torch.zeros(4, 4, 3), time=t) for n, t in zip(names, times)]
    return Dataset(views, train=[0, 1, 2, 3], test=[])


def test_frames_by_name_stem_and_place_in_time():
    dataset = shuffled()
    assert find_frames(dataset, ["in/d.png"]) == [2]
    assert find_frames(dataset, ["b", "c"]) == [3, 0]
    assert find_frames(dataset, ["0", "1", "2", "3"]) == [1, 3, 0, 2]
    assert find_frames(dataset, ["a", "0", "in/a.png", "d"]) == [1, 2]  # once each
    assert find_frames(dataset, None) == [0, 1, 2, 3]


def test_a_stem_that_is_a_number_wins_over_the_place():
    dataset = shuffled(names=("3", "7", "0", "9"))
    assert find_frames(dataset, ["3", "0"]) == [0, 2] and find_frames(dataset, ["1"]) == [3]


@pytest.mark.parametrize("frames", [["e"], ["a", "4"], ["-1"], [""]])
def test_unknown_frames_are_refused(frames):
    sentence = "^frames must be names, stems or places 0 to 3 of the video's frames, but one is '(e|4|-1|)'$"
    with pytest.raises(ValueError, match=sentence):
        find_frames(shuffled(), frames)


def test_no_frames_are_refused():
    with pytest.raises(ValueError, match=r"^frames must name at least one frame$"):
        find_frames(shuffled(), [])


def test_neighbours_are_those_in_time():
    dataset = shuffled()  # in time: 1, 3, 0, 2
    assert with_neighbours(dataset, [0], 0) == [0]
    assert with_neighbours(dataset, [0], 1) == [3, 0, 2]
    assert with_neighbours(dataset, [1], 1) == [1, 3]
    assert with_neighbours(dataset, [1, 2], 1) == [1, 3, 0, 2]
    assert with_neighbours(dataset, [2, 1], 0) == [1, 2]
    assert with_neighbours(dataset, [3], 99) == [1, 3, 0, 2]


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"window": -1}, "window must be a whole number, at least 0, but is -1"),
        ({"window": 1.5}, "window must be a whole number, at least 0, but is 1.5"),
        ({"visits": 0}, "visits must be a whole number, at least 1, but is 0"),
        ({"rate": 0.0}, "rate must be positive, but is 0.0"),
        ({"rate": float("nan")}, "rate must be positive, but is nan"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        RefineOptions(**options)


def test_a_static_run_has_nothing_to_refine(ball, tmp_path, capsys):
    start(config_of(ball, model="static", steps=1), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="is a run of model static: only layered ones have layers to refine"):
        refine_run(tmp_path / "run")
    assert main(["refine", str(tmp_path / "run")]) == 2
    assert "gsfields refine: " in capsys.readouterr().err


def test_the_command_refuses_in_one_sentence(run, capsys):
    before = files_of(run)
    for words, sentence in (
        (["--frames", "frame_9999"], "but one is 'frame_9999'"),
        (["--frames", ","], "frames must name at least one frame"),
        (["--window", "-2"], "window must be a whole number, at least 0, but is -2"),
    ):
        assert main(["refine", str(run), *words]) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
    assert files_of(run) == before and not (run / "refined").exists()


def test_a_run_whose_data_have_moved(video, run, tmp_path):
    moved = shutil.copytree(video, tmp_path / "elsewhere")
    config = Checkpoint.load(run).config
    config.data.path = str(tmp_path / "gone")
    checkpoint = Checkpoint.load(run)
    Checkpoint(checkpoint.scene, config, checkpoint.step).save(run)
    with pytest.raises(FileNotFoundError, match="gone"):
        refine_run(run, ["1"], QUICK, progress=False)
    done = refine_run(run, ["1"], QUICK, data=str(moved), progress=False)
    assert Checkpoint.load(done.checkpoint).config.data.path == str(moved)


def test_a_run_is_resumed_after_a_refinement_as_if_there_had_been_none(run):
    checkpoint = Checkpoint.load(run)
    refine_run(run, ["1"], QUICK, progress=False)
    again = Checkpoint.load(run)
    trainer = LayeredTrainer(again.config, open_dataset(again.config.data), run, again)
    assert trainer.step == 240 and again.state.keys() == checkpoint.state.keys()

"""The training loop: it learns, it resumes bit for bit, it ends cleanly."""

import math
import os
import signal

import pytest
import torch

from gsfields import config as configuration
from gsfields.config import Config
from gsfields.data.dataset import Dataset, View
from gsfields.fit.checkpoint import Checkpoint, read_metrics
from gsfields.fit.runs import resume, start
from gsfields.fit.scene import open_dataset
from gsfields.fit.trainer import Trainer
from tests.fit.tiny import camera

SMALL = {
    "random_count": 300, "sh_degree": 1, "max_gaussians": 400, "refine_every": 10, "refine_start": 0.1,
    "refine_stop": 0.9, "log_every": 1, "checkpoint_every": 0, "eval_every": 0,
}  # fmt: skip


def config_of(path, **more):
    config = Config()
    config.data.path = str(path)
    configuration.apply(config, [(name, str(value)) for name, value in (SMALL | more).items()])
    return config


def test_a_short_fit_learns_the_held_out_views(ball, tmp_path):
    outcome = start(config_of(ball, steps=150), tmp_path / "run", progress=False)
    first = Trainer(config_of(ball), open_dataset(config_of(ball).data), tmp_path).evaluate()
    assert outcome.ended == "done" and outcome.step == 150
    assert outcome.scores.psnr > first.psnr + 6 and outcome.scores.ssim > first.ssim
    assert 300 < outcome.count <= 400


@pytest.mark.parametrize("strategy", ["ranked", "mcmc", "gsplat", "none"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(ball, tmp_path, strategy):
    """40 steps at once against 17, a new process's worth of state from disk, and the other 23."""
    if strategy == "gsplat":
        pytest.importorskip("gsplat")
    config = config_of(ball, steps=40, strategy=strategy, background="random")
    dataset = open_dataset(config.data)
    straight = Trainer(config, dataset, tmp_path / "a")
    for _ in range(40):
        straight.train_step()

    first = Trainer(config, dataset, tmp_path / "b")
    for _ in range(17):
        first.train_step()
    first.save()
    second = Trainer(config, open_dataset(config.data), tmp_path / "b", Checkpoint.load(tmp_path / "b"))
    assert second.step == 17
    for _ in range(23):
        second.train_step()

    assert strategy == "none" or len(straight.scene) != 300  # a round did change the set
    for name, value in straight.scene.parameters().items():
        assert torch.equal(value, second.scene.parameters()[name]), name
    a, b = straight.parameters.state_dict(), second.parameters.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(straight.generator.get_state(), second.generator.get_state())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_step_saves_and_resumes_to_the_same_end(
    ball, tmp_path, monkeypatch, number
):
    config = config_of(ball, steps=30)
    whole = start(config_of(ball, steps=30), tmp_path / "a", progress=False)

    real_step = Trainer.train_step

    def step_with_signal(self):
        if self.step == 12:
            os.kill(os.getpid(), number)
        return real_step(self)

    monkeypatch.setattr(Trainer, "train_step", step_with_signal)
    before = signal.getsignal(number)
    outcome = start(config, tmp_path / "b", progress=False)
    assert (outcome.ended, outcome.step, outcome.scores) == ("interrupted", 13, None)
    assert signal.getsignal(number) == before
    monkeypatch.undo()

    end = resume(tmp_path / "b", progress=False)
    assert (end.ended, end.step) == ("done", 30) and end.scores == whole.scores
    assert end.seconds > outcome.seconds
    steps = [line["step"] for line in read_metrics(tmp_path / "b") if line["kind"] == "train"]
    assert steps == list(range(1, 31))


def test_a_time_limit_ends_the_run_with_an_evaluation(ball, tmp_path):
    outcome = start(config_of(ball, steps=1000, max_minutes=0.0001), tmp_path / "run", progress=False)
    assert outcome.ended == "time" and 1 <= outcome.step < 1000 and outcome.scores is not None
    longer = resume(tmp_path / "run", [("max-minutes", "0.0002")], progress=False)
    assert longer.step > outcome.step


def test_checkpoints_and_evaluations_on_the_way(ball, tmp_path):
    config = config_of(ball, steps=20, checkpoint_every=5, keep_checkpoints=2, eval_every=10)
    start(config, tmp_path / "run", progress=False)
    names = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert names == ["checkpoint-000015", "checkpoint-000020", "metrics.jsonl"]
    lines = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "eval"]
    assert [line["step"] for line in lines] == [10, 20]
    assert all(math.isfinite(line["psnr"]) and line["views"] == 2 and line["seconds"] > 0 for line in lines)
    assert Checkpoint.load(tmp_path / "run").metrics["psnr"] == lines[-1]["psnr"]


def test_a_run_is_not_overwritten_unless_asked(ball, tmp_path):
    start(config_of(ball, steps=1), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="already holds a run: give --resume to continue it or --overwrite"):
        start(config_of(ball, steps=1), tmp_path / "run", progress=False)
    start(config_of(ball, steps=2), tmp_path / "run", overwrite=True, progress=False)
    assert Checkpoint.load(tmp_path / "run").step == 2


def test_resume_keeps_its_configuration(ball, tmp_path):
    start(config_of(ball, steps=1), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="a resumed run keeps its configuration: steps cannot be changed"):
        resume(tmp_path / "run", [("steps", "9")], progress=False)


def test_masked_pixels_have_no_influence(tmp_path):
    """Two datasets that differ only where the mask is zero are fitted to the same Gaussians."""
    results = []
    for fill in (0.0, 1.0):
        views = []
        for i in range(3):
            image = torch.full((20, 20, 3), 0.4)
            mask = torch.ones(20, 20)
            mask[:, 12:] = 0
            image[:, 12:] = fill
            views.append(View.from_image(str(i), camera(i, 20), image, mask=mask))
        dataset = Dataset(views, train=[0, 1, 2], test=[])
        trainer = Trainer(config_of("none", steps=12, coarse=0.5), dataset, tmp_path)
        for _ in range(12):
            trainer.train_step()
        results.append(trainer.scene)
    for name, value in results[0].parameters().items():
        assert torch.equal(value, results[1].parameters()[name]), name


def test_tensorboard_missing_is_one_sentence(ball, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        start(config_of(ball, steps=1, tensorboard=True), tmp_path / "run", progress=False)

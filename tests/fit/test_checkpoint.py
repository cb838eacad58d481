"""Checkpoints and metrics: whole or not at all, only the newest kept, nothing but tensors and text."""

import json

import pytest
import safetensors.torch
import torch

from gsfields.config import Config
from gsfields.fit.checkpoint import Checkpoint, MetricsLog, list_checkpoints, read_metrics
from tests.test_gaussians import assert_equal, random_gaussians


def checkpoint(step, seed=0):
    config = Config()
    config.fit.steps = 777
    state = {"generator": torch.Generator().manual_seed(3).get_state(), "order.queue": torch.tensor([3, 1])}
    return Checkpoint(random_gaussians(seed=seed), config, step, state, 12.5, {"psnr": 30.0})


def test_round_trip(tmp_path):
    saved = checkpoint(17)
    path = saved.save(tmp_path / "run")
    assert path.name == "checkpoint-000017"
    assert sorted(p.name for p in path.iterdir()) == [
        "config.yaml", "meta.json", "optimizer.safetensors", "scene.safetensors",
    ]  # fmt: skip
    for source in (path, tmp_path / "run"):
        loaded = Checkpoint.load(source)
        assert_equal(loaded.gaussians, saved.gaussians)
        assert (loaded.config, loaded.step, loaded.seconds, loaded.metrics) == (
            saved.config,
            17,
            12.5,
            {"psnr": 30.0},
        )
        assert loaded.state.keys() == saved.state.keys()
        assert all(torch.equal(loaded.state[k], saved.state[k]) for k in saved.state)


def test_only_the_newest_are_kept_and_the_newest_is_loaded(tmp_path):
    for step in (5, 1000000, 20):
        checkpoint(step).save(tmp_path, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-000020", "checkpoint-1000000"]
    assert Checkpoint.load(tmp_path).step == 1000000


def test_saving_the_same_step_again_replaces_it(tmp_path):
    checkpoint(5).save(tmp_path)
    checkpoint(5, seed=1).save(tmp_path)
    assert_equal(Checkpoint.load(tmp_path).gaussians, random_gaussians(seed=1))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-000005"]


def test_a_failed_save_leaves_the_older_checkpoint_and_no_litter(tmp_path, monkeypatch):
    checkpoint(5).save(tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint(6).save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-000005"]


def test_what_a_kill_leaves_behind_is_ignored(tmp_path):
    checkpoint(5).save(tmp_path)
    (tmp_path / "checkpoint-000009").mkdir()  # no meta.json
    (tmp_path / ".checkpoint-000010.1234.partial").mkdir()
    assert Checkpoint.load(tmp_path).step == 5


def test_what_cannot_be_loaded_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        Checkpoint.load(tmp_path / "nothing")
    path = checkpoint(5).save(tmp_path)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"format": 99}))
    with pytest.raises(ValueError, match="is of format 99, but this gsfields reads format 1"):
        Checkpoint.load(tmp_path)
    (path / "meta.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        Checkpoint.load(tmp_path)


def test_metrics_are_cut_back_to_the_resumed_step(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.write("train", step, loss=1 / step)
    with log.path.open("a") as file:
        file.write('{"kind": "train", "st')  # killed while writing
    MetricsLog(tmp_path, 20).write("train", 21, loss=0.5)
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20, 21]
    MetricsLog(tmp_path, 0)
    assert read_metrics(tmp_path) == []

"""What a step of training costs: the baselines learn the same as ours does, and the figures are written down."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import language_steps
from benchmarks.language_steps import GSPLAT, MODELS, OURS, TRAINED, WAYS, Lessons, Setting

TINY = Setting("synthetic", 400, 56, 40, views=2, pixels=64, threads=1)


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_steps, "WIDTH", 64)
        yield Lessons.of(TINY, str(tmp_path_factory.mktemp("segments")))


@pytest.mark.parametrize("model", TRAINED)
def test_all_ways_are_the_same_step(lessons, model):
    """They have the same loss, and the same gradients of what is learnt."""
    trainers = {way: lessons.trainer(model, way) for way in WAYS}
    lesson = trainers[OURS].lesson(0)
    found = {}
    for way, trainer in trainers.items():
        with torch.no_grad():
            trainer.field.projection.copy_(torch.eye(*trainer.field.projection.shape))
        trainer.loss(lesson).backward()
        grads = {name: p.grad.to_dense() for name, p in trainer.field.named_parameters()}
        found[way] = (float(trainer.loss(lesson).detach()), grads)
    loss, grads = found[OURS]
    assert loss > 0.1 and all(grad.any() for grad in grads.values())
    for way, (other, others) in found.items():
        assert other == pytest.approx(loss, rel=1e-5), way
        for name, grad in grads.items():
            torch.testing.assert_close(others[name], grad, rtol=1e-4, atol=1e-6, msg=f"{way}: {name}")


@pytest.mark.parametrize("model", TRAINED)
def test_a_step_has_parts(lessons, model):
    trainer = lessons.trainer(model, OURS)
    before = trainer.field.projection.detach().clone()
    tasks = language_steps.parts(trainer)
    assert ("network" in tasks) == (model == "triplane")
    for task in tasks.values():
        task.run(task.prepare(0))
    assert not torch.equal(trainer.field.projection, before)
    assert all(v > 0 for v in language_steps.held(trainer).values())


def test_figures_are_written(tmp_path, monkeypatch):
    lifts = {"gaussians": 300, "views": 2, "seconds": 1.25, "embeddings_mib": 3.0}
    answer = {"mib": 7.0} | lifts
    monkeypatch.setattr(language_steps, "in_subprocess", lambda module, case, timeout: answer)
    words = ["--scene", "synthetic", "--count", "300", "--size", "40x40", "--views", "2", "--pixels", "32"]
    assert language_steps.main([*words, "--seconds", "0.05", "--threads", "1", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*-training.json")
    content = json.loads(path.read_text())["models"]
    assert set(content) == set(MODELS) and set(content["direct"]["ms"]) == set(WAYS)
    text = path.with_suffix(".md").read_text()
    gain = content["direct"]["ms"][GSPLAT] / content["direct"]["ms"][OURS]
    assert gain > 0 and f"| {GSPLAT} |" in text and "Target: 5 times" in text
    assert "300 Gaussians from 2 views: 1.2 s, 7 MiB at its worst, of which 3 are" in text
    assert language_steps.main(["--size", "40", "--out", str(tmp_path)]) == 2
    assert language_steps.main(["--models", "direct,none", "--out", str(tmp_path)]) == 2


def test_memory_of_a_step():
    assert language_steps.peak(TINY, "direct", OURS) >= 0


def test_lifting_is_measured_whole():
    found = language_steps.lifting(TINY)
    assert found["gaussians"] == 400 and found["views"] == 2 and found["seconds"] > 0
    assert found["embeddings_mib"] == 400 * 512 * 4 / 2**20

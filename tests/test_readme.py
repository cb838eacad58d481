"""The README's Python examples run as they stand, next to a scene, a set of Gaussians, a video and its run."""

import re
from pathlib import Path

import torch

import gsfields
from gsfields.data.synthetic import make_room, save_room
from gsfields.fit import language_runs
from gsfields.fit.checkpoint import Checkpoint
from gsfields.gaussians import Gaussians
from tests.fit.tiny_room import TinyRoom
from tests.fit.tiny_speech import with_words
from tests.fit.tiny_video import TinyVideo, config_of
from tests.layered_scene import random_scene

README = (Path(__file__).parents[1] / "README.md").read_text()


def python_blocks():
    """Of a scene that stands still, of a video, and of language."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    return blocks


def test_nothing_is_said_twice():
    lines = [line for line in README.splitlines() if line.startswith("#") or len(line) > 100]
    assert len(lines) > 100 and [line for line in set(lines) if lines.count(line) > 1] == []


def test_python_example(tmp_path, monkeypatch):
    room = make_room(views=3, test_every=2, width=40, height=30, supersample=1)
    save_room(tmp_path / "scene", room)
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.5, 1.5, 0.5])
    Gaussians.from_points(points, torch.rand(200, 3)).save(tmp_path / "scene.safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(python_blocks()[0], names)
    assert names["gaussians"].means.grad.isfinite().all()
    assert names["features"].shape == (30, 40, 44)
    assert names["depth"].shape == names["alpha"].shape == (30, 40, 1)
    assert names["out"]["layers"].shape == (30, 40, 2) and names["some"].shape == (1000, 512)
    assert len(names["static"].ids) + len(names["moving"].ids) == len(names["plan"].ids)
    assert names["scores"].shape == (30, 40, 4) and names["lifted"].shape == (200, 3)
    assert callable(names["rasterization"])


def test_layered_example(tmp_path, monkeypatch):
    config = config_of(TinyVideo(frames=8).write(tmp_path / "VIDEO"))
    Checkpoint(random_scene(dtype=torch.float32), config, step=1).save(tmp_path / "RUN")
    monkeypatch.chdir(tmp_path)
    names: dict = {"gsfields": gsfields, "torch": torch}  # as after the first example
    exec(python_blocks()[1], names)
    frame = names["frame"]
    masks = torch.stack([names[name] for name in ("static", "semistatic", "dynamic")], dim=-1)
    assert masks.shape == (32, 48, 3) and torch.equal(masks.sum(-1, keepdim=True), frame.alpha)
    torch.testing.assert_close(names["colors"].sum(dim=-2), frame.color)
    assert names["depth"].shape == names["doubt"].shape == (32, 48, 1)
    assert names["labels"].shape == (32, 48, 16)


def test_language_example(tmp_path, monkeypatch):
    room = TinyRoom()
    data = with_words(room, room.write(tmp_path / "data"))
    language_runs.fit_language(room.run(tmp_path / "RUN", data), progress=False, say=lambda line: None)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(python_blocks()[2].replace("VIEW", room.stem(0)), names)
    assert names["answer"].relevancy.shape == (24, 32, 2) and names["answer"].bound <= 1.001e-3
    assert names["scores"].shape == (len(room.gaussians), 1)
    shown = names["language"].view(0, names["coarse"]).ask(names["language"].texts.of(["toys"]))
    assert shown.relevancy.shape == (24, 32, 1)

"""The README's Python example runs as it stands, next to a scene and a set of Gaussians."""

import re
from pathlib import Path

import torch

from gsfields.data.synthetic import make_room, save_room
from gsfields.gaussians import Gaussians


def test_python_example(tmp_path, monkeypatch):
    readme = Path(__file__).parents[1] / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert len(blocks) == 1
    room = make_room(views=3, test_every=2, width=40, height=30, supersample=1)
    save_room(tmp_path / "scene", room)
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.5, 1.5, 0.5])
    Gaussians.from_points(points, torch.rand(200, 3)).save(tmp_path / "scene.safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(blocks[0], names)
    assert names["gaussians"].means.grad.isfinite().all()
    assert names["features"].shape == (30, 40, 44)
    assert names["depth"].shape == names["alpha"].shape == (30, 40, 1)
    assert names["out"]["layers"].shape == (30, 40, 2) and names["some"].shape == (1000, 512)
    assert len(names["static"].ids) + len(names["moving"].ids) == len(names["plan"].ids)
    assert names["scores"].shape == (30, 40, 4) and names["lifted"].shape == (200, 3)
    assert callable(names["rasterization"])

"""The neural baseline of instances: training on two balls seen from a ring of cameras, and the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.baselines.tensorf import render
from benchmarks.baselines.tensorf.__main__ import main
from benchmarks.baselines.tensorf.fields import (
    FieldSizes,
    InstanceHead,
)
from benchmarks.baselines.tensorf.rays import LabelledPixels, Scene, frusta_box, guessed_depths
from benchmarks.baselines.tensorf.render import Rays
from benchmarks.baselines.tensorf.train import RECIPES, Recipe, Trainer
from gsfields.camera import Camera
from gsfields.data import Dataset
from gsfields.data.dataset import View
from gsfields.evaluate.image import psnr

SIZES = FieldSizes(
    density=4, appearance=4, appearance_features=6, color_width=16, density_shift=-4.0, instance_width=24
)
TINY = Recipe(
    SIZES,
    nodes=(12, 20),
    grow_at=(0.3, 0.6),
    geometry_steps=60,
    rays=256,
    instance_rays=64,
    grid_learning_rate=5e-2,
    network_learning_rate=5e-3,
    instance_learning_rate=1e-2,
    seen_alpha=0.02,
    empty_alpha=0.02,
)
SIZE, VIEWS = 16, 8


def ring(count: int = VIEWS, size: int = SIZE) -> list[Camera]:
    eyes = [[3 * math.cos(a), 3 * math.sin(a), 1.0] for a in (2 * math.pi * k / count for k in range(count))]
    return [
        Camera.look_at(eye, [0, 0, 0], [0, 0, 1], width=size, height=size, fov_y_degrees=35) for eye in eyes
    ]


def balls(camera: Camera) -> tuple[Tensor, Tensor]:
    """Image [H, W, 3] of a red and a green ball on black, and their ids [H, W], by intersection."""
    scene = Scene(Dataset([View.from_image("0.png", camera, torch.zeros(SIZE, SIZE, 3))], [0], []))
    directions = scene.frame_rays(0).directions
    image, ids = torch.zeros(SIZE * SIZE, 3), torch.zeros(SIZE * SIZE, dtype=torch.int32)
    nearest = torch.full((SIZE * SIZE,), torch.inf)
    for label, (x, color) in enumerate(((-0.45, [0.9, 0.2, 0.1]), (0.45, [0.1, 0.7, 0.3])), start=1):
        offset = torch.tensor([x, 0.0, 0.0]) - camera.position
        along = directions @ offset
        hit = (offset.square().sum() - along.square() < 0.4**2) & (along < nearest)
        image[hit], ids[hit], nearest[hit] = torch.tensor(color), label, along[hit]
    return image.reshape(SIZE, SIZE, 3), ids.reshape(SIZE, SIZE)


@pytest.fixture(scope="module")
def ids() -> dict[int, Tensor]:
    return {i: balls(camera)[1] for i, camera in enumerate(ring())}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    views = [View.from_image(f"{i}.png", camera, balls(camera)[0]) for i, camera in enumerate(ring())]
    return Dataset(views, list(range(1, VIEWS)), [0], background=torch.zeros(3))


BOUNDS = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])


@pytest.fixture(scope="module")
def trained(dataset) -> Trainer:
    trainer = Trainer(dataset, TINY, bounds=BOUNDS)
    for _ in range(TINY.geometry_steps):
        trainer.step_geometry()
    return trainer


def test_rays_meet_the_pixels(dataset):
    scene = Scene(dataset, bounds=BOUNDS * 2)
    pixel = torch.tensor([0, 37, 255])
    rays = scene.rays(torch.tensor([0, 3, 5]), pixel)
    for i, frame in enumerate((0, 3, 5)):
        world = (rays.origins[i] + 0.7 * rays.directions[i]) / scene.unit + scene.middle
        camera = dataset.views[frame].camera
        local = camera.viewmat[:3, :3] @ world + camera.viewmat[:3, 3]
        xy = (camera.K @ local)[:2] / local[2]
        assert torch.allclose(xy, torch.stack([pixel[i] % SIZE, pixel[i] // SIZE]) + 0.5, atol=1e-3)


def test_box_holds_what_the_cameras_see(dataset):
    box = frusta_box(dataset)
    depths = guessed_depths(ring(), dataset.scene_extent)
    assert depths == pytest.approx([2 * math.sqrt(10)] * VIEWS, rel=1e-3)  # twice as far as where all look
    eyes = torch.stack([camera.position for camera in ring()[1:]])
    inside = torch.cat([eyes, torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.0, 0.4]])])
    assert (inside >= box[0] - 1e-5).all() and (inside <= box[1] + 1e-5).all()
    parallel = [
        Camera.look_at([x, 0, 0], [x, 1, 0], [0, 0, 1], width=4, height=4, fov_y_degrees=50) for x in (0, 1)
    ]
    assert guessed_depths(parallel, 0.5) == [2.0, 2.0]
    scene = Scene(dataset)
    assert float(scene.box.extent.max()) == pytest.approx(2) and torch.equal(scene.box.low, -scene.box.high)


@pytest.mark.parametrize(
    "bounds", [torch.zeros(2, 3), torch.ones(3), torch.tensor([[0, 0, 0], [1, 1, torch.nan]])]
)
def test_bad_bounds(dataset, bounds):
    with pytest.raises(ValueError, match="bounds must be the lowest and the highest corner"):
        Scene(dataset, bounds)


def test_training_gains_psnr(dataset, trained):
    before = Trainer(dataset, TINY, bounds=BOUNDS).render_frame(0)["color"]
    after = trained.render_frame(0)
    gain = psnr(after["color"], dataset.views[0].image()) - psnr(before, dataset.views[0].image())
    assert gain > 4, gain
    assert trained.grown == 2 and trained.field.density.resolution == trained.grid.resolution
    assert trained.grid.occupied is not None and 0 < float(trained.grid.occupied.float().mean()) < 1
    front = after["opacity"] > 0.9
    assert 2 < float(after["depth"][front].mean()) < 4  # world units, from 3.2 away


def test_gradients_reach_every_parameter(dataset):
    trainer = Trainer(dataset, TINY, bounds=BOUNDS)
    before = {name: p.clone() for name, p in trainer.field.named_parameters()}
    terms = trainer.step_geometry(0.2)
    assert set(terms) == {"color", "density variation", "appearance variation", "distortion"}
    assert all(value.item() > 0 for value in terms.values())
    assert not [name for name, p in trainer.field.named_parameters() if torch.equal(p, before[name])]


def test_growing_crops_to_what_is_seen(dataset):
    """One opaque block: the box shrinks around it, and it stays where it was."""
    trainer = Trainer(dataset, replace(TINY, seen_alpha=0.2), bounds=BOUNDS)
    density = trainer.field.density
    for parameter in density.parameters():
        parameter.data.zero_()
    density.planes[0].data[0, 0, 5:8, 2:6] = 1.0  # y 5 to 7, x 2 to 5 of 12 nodes, and below z 3 to 8
    density.lines[0].data[0, 0, 3:9] = 20.0
    low, high = torch.tensor([2.0, 5.0, 3.0]) * 2 / 11 - 1, torch.tensor([5.0, 7.0, 8.0]) * 2 / 11 - 1
    trainer._grow()
    box = trainer.grid.box
    assert (box.low < low).all() and (box.high > high).all()
    assert (box.low > low - 2.5 / 11).all() and (box.high < high + 2.5 / 11).all()  # a cell more, at most
    middle = (low + high) / 2
    ray = Rays(middle[None] - torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0]]))
    samples = trainer.grid.march(ray, 0.01)
    sigma = trainer.field.sigma(samples.position).detach()
    inside = ((samples.distance - 2).abs() < 4.5 / 11) & (sigma > 10)
    assert int(inside.sum()) > 5 and bool(inside[(samples.distance - 2).abs() < 4.5 / 11].all())


def test_empty_space(dataset, ids):
    """A field without density can still grow one, and rays that meet nothing have a colour and features."""
    trainer = Trainer(dataset, replace(TINY, sizes=replace(SIZES, density_shift=-12.0)), bounds=BOUNDS)
    trainer._grow()
    assert trainer.grid.occupied is None
    trainer.grid.occupied = torch.zeros([n - 1 for n in trainer.grid.resolution], dtype=torch.bool)
    trainer.step_geometry(0.3)  # no ray has a sample
    trainer.freeze()
    trainer.new_head(2)
    trainer.grid.occupied = torch.zeros([n - 1 for n in trainer.grid.resolution], dtype=torch.bool)
    frame = trainer.render_frame(0)
    assert not frame["color"].any() and not frame["features"].any()
    frame_pixels = LabelledPixels(ids, torch.Generator().manual_seed(0)).draw(10)
    assert math.isfinite(trainer.step_instances(*frame_pixels, pull_together))


def pull_together(fast: Tensor, slow: Tensor, labels: Tensor) -> Tensor:
    """A loss for these tests: embeddings at 1 and -1 along the first dimension for the two labels."""
    wanted = torch.where(labels == 1, 1.0, -1.0)
    return (fast[:, 0] - wanted).square().mean()


@pytest.fixture()
def frozen(dataset) -> Trainer:
    trainer = Trainer(dataset, TINY, bounds=BOUNDS)
    for _ in range(10):
        trainer.step_geometry(0.3)
    trainer.freeze()
    trainer.new_head(3)
    return trainer


def test_instances_leave_the_geometry(frozen, ids):
    before = {name: p.clone() for name, p in frozen.field.named_parameters()}
    seen = []

    def loss(fast, slow, labels):
        seen.append((fast.requires_grad, slow.requires_grad, fast.shape, slow.shape))
        return (fast - slow).square().sum() + fast.sum()

    pixels = LabelledPixels(ids, torch.Generator().manual_seed(0))
    start = [p.clone() for p in frozen.head.fast.parameters()]
    frozen.step_instances(*pixels.draw(20), loss)
    assert seen == [(True, False, (20, 3), (20, 3))]
    for name, parameter in frozen.field.named_parameters():
        assert parameter.grad is None and torch.equal(parameter, before[name]), name
    assert all(p.grad is None for p in frozen.head.slow.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(start, frozen.head.fast.parameters(), strict=True))
    with pytest.raises(ValueError, match="frozen"):
        frozen.step_geometry()
    with pytest.raises(ValueError, match="freeze, then new_head"):
        Trainer(frozen.dataset, TINY, bounds=BOUNDS).step_instances(*pixels.draw(20), loss)


def test_slow_network_moves_before_the_loss(frozen, ids):
    """0.9 slow + 0.1 fast, with the fast network as it was before the step; the features are older still."""
    head, pixels = frozen.head, LabelledPixels(ids, torch.Generator().manual_seed(0))
    fast, slow = ([p.clone() for p in net.parameters()] for net in (head.fast, head.slow))
    assert not torch.allclose(fast[0], slow[0])  # random numbers of its own
    at_loss = []

    def loss(fast_features, slow_features, labels):
        at_loss.extend(p.clone() for p in head.slow.parameters())
        return fast_features.sum()

    frozen.step_instances(*pixels.draw(20), loss)
    for now, f, s in zip(at_loss, fast, slow, strict=True):
        torch.testing.assert_close(now, 0.9 * s + 0.1 * f)
    for now, then in zip(head.slow.parameters(), at_loss, strict=True):
        assert torch.equal(now, then)
    copied = InstanceHead(3, SIZES, "copy")
    assert torch.equal(copied.fast[0].weight, copied.slow[0].weight)
    assert not copied.slow[0].weight.requires_grad


def test_features_are_sums_of_the_network(frozen):
    """A pixel's features: weights above 1e-4 times the network's values along its ray, and no division."""
    rendered = frozen.render_frame(2)
    rays = frozen.scene.frame_rays(2, torch.tensor([100, 137]))
    samples = frozen.grid.march(rays, 0.01)
    weights = render.weights_of(samples, frozen.field.sigma(samples.position), frozen.grid.step)
    for i, pixel in enumerate((100, 137)):
        expected = torch.zeros(3)
        for k in ((samples.ray == i) & (weights > 1e-4)).nonzero()[:, 0]:
            expected += weights[k] * frozen.head.fast(samples.position[k : k + 1])[0]
        torch.testing.assert_close(
            rendered["features"].reshape(-1, 3)[pixel], expected.detach(), atol=1e-5, rtol=1e-4
        )


def test_halves_are_parts_of_all(frozen, ids):
    """With the same samples, the loss gets the halves of what it gets otherwise."""
    frozen.freeze(cache=True)
    frozen.instance_optimizer.param_groups[0]["lr"] = 0.0
    frame, pixel, labels = LabelledPixels(ids, torch.Generator().manual_seed(0)).draw(21)
    seen = []

    def loss(fast, slow, given):
        seen.append((fast.detach(), slow, given))
        return fast.sum()

    slow_before = [p.clone() for p in frozen.head.slow.parameters()]
    frozen.step_instances(frame, pixel, labels, loss)
    for parameter, value in zip(frozen.head.slow.parameters(), slow_before, strict=True):
        parameter.copy_(value)
    frozen.step_instances(frame, pixel, labels, loss, halves=True)
    (fast, slow, all_labels), (first, second, same_labels) = seen
    torch.testing.assert_close(first, fast[:10])
    torch.testing.assert_close(second, slow[10:])
    assert torch.equal(all_labels, same_labels)


def test_cached_surfaces_are_those_of_the_rays(frozen):
    pixel = torch.tensor([130, 5, 137, 130])
    fresh = frozen._seen(frozen.grid.march(frozen.scene.frame_rays(3, pixel), 0.01))
    frozen.freeze(cache=True)
    cached = frozen._surface(3, pixel)
    assert torch.equal(cached.ray, fresh.ray) and len(cached.ray) > 0
    torch.testing.assert_close(cached.position, fresh.position)
    torch.testing.assert_close(cached.weight, fresh.weight)
    assert frozen.cache.bytes() >= 16 * len(cached.ray)


def test_instances_are_learnt(trained, ids):
    trained.freeze()
    trained.new_head(2, slow=None)
    pixels = LabelledPixels(ids, torch.Generator().manual_seed(0))
    for _ in range(80):
        trained.step_instances(*pixels.draw(64), pull_together)
    features, opacity = (trained.render_frame(0)[name] for name in ("features", "opacity"))
    shown = (ids[0] > 0) & (opacity > 0.5)
    right = (features[..., 0] > 0) == (ids[0] == 1)
    assert float(right[shown].float().mean()) > 0.9


def test_labelled_pixels():
    ids = {4: torch.zeros(3, 3, dtype=torch.int32), 7: torch.tensor([[0, 5], [9, 0]], dtype=torch.int32)}
    frame, pixel, labels = LabelledPixels(ids, torch.Generator().manual_seed(0)).draw(10)
    assert frame == 7 and sorted(pixel.tolist()) == [1, 2]
    assert labels.tolist() == [{1: 5, 2: 9}[p] for p in pixel.tolist()]
    with pytest.raises(ValueError, match="none of 1 has one"):
        LabelledPixels({4: ids[4]}, torch.Generator())


def test_bad_recipe():
    with pytest.raises(ValueError, match="nodes must be two numbers"):
        Recipe(nodes=(20, 12))
    with pytest.raises(ValueError, match="rays must be at least 1"):
        Recipe(rays=0)


@pytest.fixture()
def folder(tmp_path: Path, dataset: Dataset, ids: dict[int, Tensor]) -> Path:
    """The scene on disk, with its segments."""
    frames = []
    for i, view in enumerate(dataset.views):
        for name, pixels in (
            ("images", (view.image() * 255).byte().numpy()),
            ("segments", ids[i].numpy().astype(np.uint16)),
        ):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
        c2w = view.camera.c2w * torch.tensor([1.0, -1.0, -1.0, 1.0])
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": c2w.tolist()})
    K = dataset.views[0].camera.K.tolist()
    camera = {"w": SIZE, "h": SIZE, "fl_x": K[0][0], "fl_y": K[1][1], "cx": K[0][2], "cy": K[1][2]}
    (tmp_path / "data" / "transforms.json").write_text(json.dumps(camera | {"frames": frames}))
    return tmp_path / "data"


@pytest.mark.parametrize("loss", ["slow-fast", "linear-assignment"])
def test_command(folder, tmp_path, monkeypatch, capsys, loss):
    monkeypatch.setitem(RECIPES, "small", TINY)
    out = tmp_path / "run"
    asked = [str(folder), "--out", str(out), "--recipe", "small", "--minutes", "0.01", "--loss", loss]
    asked += ["--features", "4", "--eval-frames", "1", "--bounds", *["-1"] * 3, *["1"] * 3]
    assert main(asked) == 0
    geometry, instances = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    assert geometry["stage"] == "geometry" and geometry["psnr"] > 5 and geometry["held_out"]
    for line, seconds in ((geometry, 0.42), (instances, 0.18)):
        assert line["iterations"] > 0 and line["seconds"] >= seconds
        assert line["seconds_per_iteration"] == pytest.approx(line["seconds"] / line["iterations"])
    assert math.isfinite(instances["loss"])
    assert (out / "fields.png").is_file() and json.loads((out / "settings.json").read_text())["features"] == 4
    assert main(asked) == 2 and "exists: choose another --out" in capsys.readouterr().err


def test_command_without_segments(folder, tmp_path, capsys):
    for file in (folder / "segments").iterdir():
        Image.fromarray(np.zeros((SIZE, SIZE), np.uint16)).save(file)
    assert main([str(folder), "--out", str(tmp_path / "run")]) == 2
    assert "must hold a segment" in capsys.readouterr().err and not (tmp_path / "run").exists()

"""The radiance-field baselines: the renderer against golden numbers, the networks and training on small scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.baselines.neuraldiff import rays as rays_module
from benchmarks.baselines.neuraldiff import render
from benchmarks.baselines.neuraldiff.__main__ import main
from benchmarks.baselines.neuraldiff.fields import LAYERS, FieldSizes, Samples, time_basis
from benchmarks.baselines.neuraldiff.losses import FusionWeights, fusion_loss, neuraldiff_loss, total
from benchmarks.baselines.neuraldiff.rays import TrainingPixels, Video, depth_range
from benchmarks.baselines.neuraldiff.train import Recipe, Trainer, with_neighbours
from gsfields.camera import Camera
from gsfields.data import Dataset, load_dataset
from gsfields.data.dataset import View
from gsfields.evaluate.image import psnr
from gsfields.evaluate.udos import average_precision

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "neuraldiff_render.json"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    if not GOLDEN.is_file():
        pytest.skip("../shared/golden/neuraldiff_render.json is not present")
    return json.loads(GOLDEN.read_text())


def close(ours: Tensor, theirs: Any, atol: float = 2e-6) -> None:
    torch.testing.assert_close(ours.double(), torch.tensor(theirs, dtype=torch.float64), atol=atol, rtol=1e-5)


def golden_samples(golden: dict[str, Any]) -> Samples:
    raw = torch.tensor(golden["fine_raw"], dtype=torch.float64)
    color = torch.stack([raw[..., 0:3], raw[..., 4:7], raw[..., 9:12]], dim=-2)
    beta = torch.stack([torch.zeros_like(raw[..., 8]), raw[..., 8], raw[..., 13]], dim=-1)
    return Samples(raw[..., [3, 7, 12]], color, beta)


def golden_coarse(golden: dict[str, Any]) -> tuple[Tensor, render.Composite]:
    raw = torch.tensor(golden["coarse_raw_rgb_sigma"], dtype=torch.float64)
    near, far = (torch.full((3,), golden["rays"][k], dtype=torch.float64) for k in ("near", "far"))
    z = render.stratified(near, far, golden["N_samples"])
    samples = Samples(raw[..., 3:], raw[..., None, :3], torch.zeros_like(raw[..., 3:]))
    return z, render.composite(z, samples)


@pytest.mark.parametrize("mode", ["test", "train"])
def test_composite_golden(golden, mode):
    expected = golden["result"][mode]
    samples = golden_samples(golden)
    if mode == "train":
        samples = render.opaque_end(samples)
        samples.color[:, -1, 0] = torch.tensor(expected["static_rgbs_fine"], dtype=torch.float64)[:, -1]
    close(samples.sigma[..., 0], expected["static_sigmas_fine"])
    z = torch.tensor(golden["z_fine"], dtype=torch.float64)
    ours = render.composite(z, samples)
    for i, layer in enumerate(("static", "transient", "person")):
        close(ours.alphas[..., i], expected[f"{layer}_alphas_fine"])
        close(ours.layer_color[:, i], [row[:3] for row in expected[f"_rgb_fine_{layer}"]])
    for i, layer in ((1, "transient"), (2, "person")):
        close(ours.weights[..., i], expected[f"{layer}_weights"])
        close(ours.masks[:, i], expected[f"{layer}_weights_sum"])
    close(ours.transmittance, expected["transmittance_fine"])
    close(ours.sample_weights, expected["weights_fine"])
    close(ours.beta, expected["beta"])
    close(ours.depth, expected["depth_fine"])
    close(ours.color, [row[:3] for row in expected["rgb_fine"]])
    if mode == "test":
        close(ours.masks, [row[3:] for row in expected["rgb_fine"]])


def test_layer_alone_golden(golden):
    samples, z = golden_samples(golden), torch.tensor(golden["z_fine"], dtype=torch.float64)
    for i, layer in enumerate(("static", "transient", "person")):
        ours = render.layer_alone(render.composite(z, samples), samples, i)
        close(ours, [row[:3] for row in golden["result"]["test"][f"rgb_fine_{layer}"]])


def test_samples_golden(golden):
    z, coarse = golden_coarse(golden)
    close(coarse.sample_weights, golden["result"]["test"]["weights_coarse"])
    close(coarse.color, golden["result"]["train"]["rgb_coarse"])
    u = torch.linspace(0, 1, golden["N_importance"], dtype=torch.float64).expand(3, -1)
    both = torch.cat([z, render.importance(z, coarse.sample_weights, u)], dim=1).sort(dim=1).values
    close(both, golden["z_fine"])


def test_loss_golden(golden):
    expected, z = golden["result"]["train"], torch.tensor(golden["z_fine"], dtype=torch.float64)
    samples = render.opaque_end(golden_samples(golden))
    samples.color[:, -1, 0] = torch.tensor(expected["static_rgbs_fine"], dtype=torch.float64)[:, -1]
    rendered = render.Rendered(golden_coarse(golden)[1].color, render.composite(z, samples), samples)
    target = torch.tensor(golden["result"]["loss_target"], dtype=torch.float64)
    ours, theirs = neuraldiff_loss(rendered, target), golden["result"]["loss_train"]
    assert float(ours["coarse"]) == pytest.approx(theirs["c_l"], abs=1e-6)
    assert float(ours["robust"]) == pytest.approx(theirs["f_l"] + theirs["b_l"], abs=2e-6)
    assert float(ours["sparsity"]) == pytest.approx(theirs["s_l"], abs=1e-6)


def test_time_basis_golden(golden):
    rows = time_basis(torch.linspace(0, 1, 1000, dtype=torch.float64))
    for frame, row in golden["lre_P_rows_N1000_K21"].items():
        close(rows[int(frame)], row)


def test_pixel_directions_golden(golden):
    """The golden numbers are for integer pixels and cameras whose y and z axes are negated."""
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    for case in ("ray_dirs", "ray_dirs_undistort"):
        given = golden[case]
        rows, columns = torch.meshgrid(torch.arange(given["H"]), torch.arange(given["W"]), indexing="ij")
        pixels = torch.stack([columns, rows], dim=-1).reshape(-1, 2).double()
        K = torch.tensor(given["K"], dtype=torch.float64)
        ours = render.pixel_directions(K, pixels, tuple(given.get("radial", (0.0, 0.0)))) * flip
        close(ours.reshape(given["H"], given["W"], 3), given["directions"])
        if "rays_d" in given:
            world = (
                torch.nn.functional.normalize(ours, dim=-1)
                @ torch.tensor(given["c2w"], dtype=torch.float64)[:, :3].T
            )
            close(world, given["rays_d"])


FRAMES, WIDTH, HEIGHT = 8, 20, 15
TINY = Recipe(FieldSizes(width=32, depth=2, head_width=24, head_depth=2, appearance=4), (8, 8), 256, 5e-3)


def hand(frame: int) -> tuple[slice, slice]:
    """The pixels (rows, columns) of what moves before the camera."""
    return slice(7, 13), slice(1 + 2 * frame, 6 + 2 * frame)


@pytest.fixture(scope="module")
def video() -> Dataset:
    """A coloured wall at z = 3 seen by a camera that slides along it, and a red patch that crosses the image."""
    views = []
    for i in range(FRAMES):
        x = 0.1 * i
        camera = Camera.look_at(
            [x, 0, 0], [x, 0, 3], [0, -1, 0], width=WIDTH, height=HEIGHT, fov_y_degrees=50
        )
        columns = (torch.arange(WIDTH) + 0.5 - WIDTH / 2) / camera.K[0, 0] * 3 + x
        rows = (torch.arange(HEIGHT) + 0.5 - HEIGHT / 2) / camera.K[1, 1] * 3
        wall = torch.stack(
            [0.2 + 0 * columns, 0.5 + 0.3 * columns.sin(), 0.5 + 0.3 * (2 * columns).cos()], dim=-1
        )
        image = (wall[None] + 0.1 * rows[:, None, None].sin()).clamp(0, 1)
        motion = torch.zeros(HEIGHT, WIDTH)
        motion[hand(i)] = 1
        image[hand(i)] = torch.tensor([0.9, 0.3, 0.1])
        views.append(View.from_image(f"{i}.png", camera, image, motion_mask=motion, time=i / FRAMES))
    grid = torch.linspace(-1, 1, 9)
    points = torch.stack([*torch.meshgrid(grid, grid, torch.tensor([2.9, 3.1]), indexing="ij")], dim=-1)
    return Dataset(views, list(range(FRAMES)), [], points=points.reshape(-1, 3))


def trainer_of(video: Dataset, model: str = "neuraldiff", fusion: FusionWeights | None = None) -> Trainer:
    return Trainer(video, model, TINY, fusion or FusionWeights(1.1, 1.0))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_weights(layers):
    """Shares of a ray sum to what is not transmitted; the last sample alone may give more, as released."""
    generator = torch.Generator().manual_seed(layers)
    z = torch.rand(50, 9, generator=generator, dtype=torch.float64).cumsum(1)
    sigma = torch.rand(50, 9, layers, generator=generator, dtype=torch.float64)
    color = torch.rand(50, 9, layers, 3, generator=generator, dtype=torch.float64)
    ours = render.composite(z, Samples(sigma, color, torch.zeros_like(sigma)))
    before_last = ours.weights[:, :-1].sum((1, 2))
    torch.testing.assert_close(before_last + ours.transmittance[:, -1], torch.ones_like(before_last))
    assert (ours.masks <= 1 + 1e-9).all() and (layers > 1) == bool((ours.masks.sum(1) > 1 + 1e-3).any())
    assert torch.equal(ours.beta, torch.full_like(ours.beta, 0.03))
    empty = render.composite(z, Samples(0 * sigma, color, sigma))
    assert not empty.weights.any() and empty.transmittance.eq(1).all()


def test_opaque_end_is_static():
    sigma = torch.full((4, 5, 3), 0.5)
    samples = Samples(sigma, torch.zeros(4, 5, 3, 3), torch.zeros(4, 5, 3))
    ended = render.opaque_end(samples, torch.Generator().manual_seed(0))
    assert ended.sigma[:, -1, 0].eq(100).all() and ended.color[:, -1, 0].std() > 0.1
    assert torch.equal(ended.sigma[:, :-1], sigma[:, :-1]) and samples.sigma.eq(0.5).all()


def test_importance_draws_where_the_weight_is():
    z = render.stratified(torch.zeros(1), torch.ones(1), 11)
    weights = torch.zeros(1, 11)
    weights[0, 6] = 1
    drawn = render.importance(z, weights, torch.linspace(0.01, 0.99, 50)[None])
    assert ((drawn > 0.55) & (drawn < 0.65)).float().mean() > 0.95


@pytest.mark.parametrize("model", LAYERS)
def test_gradients_reach_every_parameter(video, model):
    trainer = trainer_of(video, model)
    losses = trainer.losses()
    assert set(losses) == {"coarse", "robust", "sparsity", "pmf"} | (
        {"nmf"} if model == "neuraldiff" else set()
    )
    total(losses).backward()
    for module in (trainer.coarse, trainer.fine):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.any()), name


def test_fusion_counts_scored_frames_only():
    masks = {"dynamic": torch.tensor([1.0, 0.0]), "semistatic": torch.tensor([0.5, 0.5])}
    motion = torch.tensor([0.0, 1.0])
    weights = FusionWeights(1.1, 1.0)
    only_first = fusion_loss(masks, motion, torch.tensor([True, False]), weights)
    assert float(only_first["pmf"]) == pytest.approx(1.1) and float(only_first["nmf"]) == 0
    assert float(fusion_loss(masks, motion, torch.tensor([True, True]), weights)["nmf"]) == 0.25
    assert fusion_loss(masks, motion, torch.tensor([False, False]), weights) == {}


def test_rays_meet_the_pixels(video):
    """A ray's points fall on the centre of its pixel, in its own camera's frame as well."""
    rays_of = Video(video)
    pixel = torch.tensor([0, 7, WIDTH * HEIGHT - 1])
    rays = rays_of.rays(torch.tensor([1, 3, 7]), pixel)
    assert torch.allclose(rays.directions.norm(dim=1), torch.ones(3))
    unit = rays.far[0] / depth_range(video.views[1].camera, video.points)[1]
    for i, frame in enumerate((1, 3, 7)):
        camera = video.views[frame].camera
        world = (rays.origins[i] + 0.7 * rays.directions[i]) / unit + video.scene_center
        local = camera.viewmat[:3, :3] @ world + camera.viewmat[:3, 3]
        assert torch.allclose(local, 0.7 * rays.in_camera[i] / unit, atol=1e-4)
        xy = (camera.K @ local)[:2] / local[2]
        assert torch.allclose(xy, torch.stack([pixel[i] % WIDTH, pixel[i] // WIDTH]) + 0.5, atol=1e-3)


def test_depth_range():
    camera = Camera(torch.eye(4), torch.eye(3), 4, 4)
    points = torch.zeros(2001, 3)
    points[:, 2] = torch.cat([torch.linspace(1, 5, 2000), torch.tensor([-3.0])])
    assert depth_range(camera, points) == pytest.approx((1.004, 4.996), abs=1e-3)
    assert depth_range(camera, None) is None and depth_range(camera, -points[:-1]) is None


def test_held_out_frames_use_the_nearest_code(video):
    split = Dataset(video.views, [0, 1, 5, 7], [2, 3, 4, 6], points=video.points)
    assert Video(split).nearest.tolist() == [0, 1, 1, 1, 5, 5, 5, 7]
    trainer = trainer_of(split, "nerf-w")
    same = [trainer.render(trainer.video.frame_rays(i)).fine for i in (1, 2)]
    rays = trainer.video.frame_rays(1)
    rays.frame = torch.full_like(rays.frame, 2)
    assert torch.equal(trainer.render(rays).fine.masks, same[0].masks)
    with torch.no_grad():
        trainer.fine.time.table.weight[2] += 100  # never read
    assert torch.equal(trainer.render(trainer.video.frame_rays(2)).fine.masks, same[1].masks)


def test_long_videos_give_a_part_of_their_pixels(video, monkeypatch):
    monkeypatch.setattr(rays_module, "MAX_PIXELS", 8 * 50)
    pixels = TrainingPixels.of(video, list(range(8)), torch.Generator())
    assert pixels.frame.bincount().tolist() == [50] * 8
    rows = slice(100, 150)
    expected = video.views[2].image().reshape(-1, 3)[pixels.pixel[rows].long()]
    assert torch.allclose(pixels.color[rows] / 255, expected, atol=0.5 / 255 + 1e-6)
    epoch = torch.cat([next(batch) for batch in [pixels.batches(100, torch.Generator())] for _ in range(4)])
    assert epoch.sort().values.tolist() == list(range(400))


def test_window(video):
    assert with_neighbours(video, [0, 4], 0) == [0, 4] and with_neighbours(video, [0, 4], 2) == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
    ]


@pytest.fixture(scope="module")
def trained(video) -> Trainer:
    trainer = trainer_of(video)
    for k in range(150):
        trainer.step(k / 150)
    return trainer


def dynamic_ap(trainer: Trainer, index: int) -> float:
    labels = trainer.dataset.views[index].motion_mask().numpy()
    return average_precision(labels, trainer.render_frame(index)["dynamic"].numpy())


def test_training_separates_the_layers(video, trained):
    rendered = trained.render_frame(3)
    still = 1 - video.views[3].motion_mask()
    assert psnr(rendered["color"], video.views[3].image(), still) > 20
    assert dynamic_ap(trained, 3) > 70  # prevalence: 10
    behind = rendered["static_color"][hand(3)].mean((0, 1))
    assert behind[0] < 0.5  # the wall, which other frames show, and not the red patch
    assert rendered["semistatic"].mean() < 0.3


def test_refinement_changes_only_the_moving_heads(video, trained):
    before = {name: p.clone() for name, p in trained.fine.state_dict().items()}
    coarse = [p.clone() for p in trained.coarse.parameters()]
    trained.refine([3, 4], 5)
    changed = {
        name.split(".")[0]
        for name, p in trained.fine.state_dict().items()
        if not torch.equal(p, before[name])
    }
    assert changed == {"world", "camera"}
    assert all(torch.equal(a, b) for a, b in zip(coarse, trained.coarse.parameters(), strict=True))
    assert trained.pixels.frame.unique().tolist() == [3, 4]


def write_video(root: Path, video: Dataset) -> None:
    for folder in ("images", "motion_masks", "annotations/dynamic"):
        (root / folder).mkdir(parents=True)
    frames = []
    for i, view in enumerate(video.views):
        Image.fromarray((view.image().numpy() * 255).round().astype(np.uint8)).save(root / f"images/{i}.png")
        labels = view.motion_mask().numpy().astype(np.uint8)
        Image.fromarray(labels * 255).save(root / f"motion_masks/{i}.png")
        Image.fromarray(labels).save(root / f"annotations/dynamic/{i}.png")
        c2w = view.camera.c2w.numpy() @ np.diag([1, -1, -1, 1])
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": c2w.tolist(), "time": i / FRAMES})
    K = video.views[0].camera.K
    lens = {
        "w": WIDTH,
        "h": HEIGHT,
        "fl_x": float(K[0, 0]),
        "fl_y": float(K[1, 1]),
        "cx": WIDTH / 2,
        "cy": HEIGHT / 2,
    }
    (root / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))


def test_command(video, tmp_path, capsys):
    write_video(tmp_path / "data", video)
    sizes = "--trunk-width 16 --trunk-depth 2 --head-width 8 --head-depth 1 --samples 6,6 --rays 64"
    budget = "--minutes 0.005 --eval-at 0.002 --eval-frames 2 --clock processor --pmf 1.1 --nmf 1"
    refine = "--refine-frames 3,4 --refine-steps 2"
    run = tmp_path / "run"
    command = [str(tmp_path / "data"), "--out", str(run), *f"{sizes} {budget} {refine}".split()]
    assert main(command) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["frames"] for line in lines] == [2, 8, 2, 2]
    assert [line["stage"] for line in lines] == ["training", "trained", "before refinement", "refined"]
    for line in lines:
        assert 0 < line["ap"]["dynamic"] <= 100 and line["psnr_train"] > 3 and line["psnr_test"] is None
        assert line["seconds_per_frame"] > 0
    assert (
        lines[1]["seconds"] == pytest.approx(0.3, abs=0.2) and lines[1]["iterations"] > lines[0]["iterations"]
    )
    masks = sorted(path.name for path in (run / "masks/dynamic").iterdir())
    assert masks == [f"{i}.png" for i in range(FRAMES)]
    with Image.open(run / "masks/semistatic/3.png") as mask:
        assert mask.size == (WIDTH, HEIGHT) and mask.mode.startswith("I")
    assert (run / "layers.png").is_file()

    assert main(command) == 2 and "metrics.jsonl exists" in capsys.readouterr().err
    command[2] = str(tmp_path / "other")
    assert main([*command, "--refine-frames", "nine"]) == 2 and "'nine'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main([*command, "--samples", "2,4"]) == 2 and "at least 3 coarse" in capsys.readouterr().err
    command[0] = str(tmp_path / "absent")
    assert main(command) == 2 and "absent" in capsys.readouterr().err
    assert load_dataset(tmp_path / "data", split_every=0).views[0].has_motion_mask

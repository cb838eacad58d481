"""The fit of a layered scene: it separates what moves, resumes bit for bit, and says what it needs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gsfields.cli import main
from gsfields.data.motion_masks import read_mask
from gsfields.evaluate.udos import evaluate_motion_masks, evaluate_run_folder
from gsfields.fit.checkpoint import Checkpoint, read_metrics
from gsfields.fit.footage import Footage, Frame
from gsfields.fit.layered import LayeredTrainer, layered_loss, static_loss
from gsfields.fit.runs import start
from gsfields.fit.scene import open_dataset
from gsfields.fit.showing import evaluate_views
from gsfields.layers import DYNAMIC, LayeredScene, render_layers
from gsfields.losses import photometric
from gsfields.losses.motion import (
    impurity,
    mask_entropy,
    negative_motion_fusion,
    positive_motion_fusion,
    robust_rgb,
    sparsity,
)
from tests.fit.tiny_video import SMALL, TinyVideo, config_of
from tests.layered_scene import camera, random_scene

STEPS = 32  # of runs that are compared bit for bit; 8 of them are the warm-up


def trainer_of(video, run, **more):
    few = {"steps": STEPS, "sweep_points": 200, "refine_every": 5, "refine_start": 0.1, "dynamic_count": 20}
    config = config_of(video, **few | more)
    return LayeredTrainer(config, open_dataset(config.data), run)


def trained(trainer, steps):
    for _ in range(steps):
        trainer.train_step()
    return trainer


def assert_same_bits(a: LayeredTrainer, b: LayeredTrainer):
    ours, theirs = a.scene.tensors(), b.scene.tensors()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    ours, theirs = a.parameters.state_dict(), b.parameters.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert torch.equal(a.generator.get_state(), b.generator.get_state())


# -------------------------------------------------------------------------------------------------- what it learns


def test_the_3d_masks_are_better_than_the_2d_masks_they_come_from(video, fitted):
    run, outcome = fitted
    assert outcome.ended == "done" and outcome.scores is None  # nothing held out
    ours, theirs = (
        evaluate_run_folder(run / "masks", video),
        evaluate_motion_masks(video / "motion_masks", video),
    )
    assert 20 < theirs.mean("dynamic") < 60  # half of the ball, and nothing in every fourth frame
    assert ours.mean("dynamic") > theirs.mean("dynamic") + 20
    missed = set(theirs.per_frame["dynamic"]) - theirs.frames_above(15)
    assert missed and ours.mean("dynamic", missed) > theirs.mean("dynamic", missed) + 20


def test_the_colors_are_learned(video, fitted):
    run, _ = fitted
    config = config_of(video, steps=240)
    dataset = open_dataset(config.data)
    before = LayeredTrainer(config, dataset, run).scene
    first, last = (
        evaluate_views(s, dataset, dataset.train, config) for s in (before, Checkpoint.load(run).scene)
    )
    assert last.psnr > first.psnr + 3


def test_every_stage_says_what_it_did(fitted):
    run, outcome = fitted
    scene = Checkpoint.load(run).scene
    assert isinstance(scene, LayeredScene) and outcome.count == len(scene)
    said = " | ".join(outcome.report)
    assert "consensus: mean motion score 0." in said and str(run / "consensus") in said
    assert "moving layers seeded at step 60 from 12 frames: " in said
    assert "Gaussians: " + ", ".join(f"{count} {name}" for name, count in scene.counts.items()) in said
    assert "mean masks of 12 frames: static " in said and str(run / "masks") in said
    (line,) = (line for line in read_metrics(run) if line["kind"] == "layers")
    assert {name: line[name] for name in scene.counts} == scene.counts
    explained = line["explained"]
    assert explained["frames"] == 12
    assert sum(explained[name] for name in ("static", "semistatic", "dynamic")) == pytest.approx(1, abs=0.02)


def test_held_out_frames_are_scored_at_their_own_times(video, tmp_path):
    trainer = trained(trainer_of(video, tmp_path, split_every=4, pmf=0, nmf=0), STEPS)
    dataset, times = trainer.dataset, trainer.dataset.times().tolist()
    assert dataset.test == [0, 4, 8] and len(trainer.footage) == 9
    psnr = []
    for i in dataset.test:
        view = dataset.views[i]
        error = (
            render_layers(trainer.scene, view.camera, times[i]).color.clamp(0, 1) - view.image()
        ).square()
        psnr.append(-10 * error.mean().log10().item())
    assert trainer.evaluate().psnr == pytest.approx(sum(psnr) / 3, abs=1e-3)


def test_what_moves_is_there_in_held_out_frames(tmp_path):
    """No image of them is trained on, but seeds live from halfway to halfway between those that are."""
    data = TinyVideo(frames=24, holes=False).write(tmp_path / "video")
    trainer = trained(trainer_of(data, tmp_path / "run", split_every=4, steps=120), 120)
    times, shown = trainer.dataset.times().tolist(), {}
    for i in trainer.dataset.test:
        view = trainer.dataset.views[i]
        dynamic = render_layers(trainer.scene, view.camera, times[i]).masks[..., DYNAMIC]
        true = view.motion_mask() > 0.5
        shown[i] = float(dynamic[true].mean()), float(dynamic[~true].mean())
    assert list(shown) == [0, 4, 8, 12, 16, 20]
    for i in shown:
        assert shown[i][0] > 0.4 and shown[i][0] > 3 * shown[i][1], shown


# ----------------------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("at", [5, 8, 9, 21], ids=["warm-up", "seeding", "just after", "joint"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(video, tmp_path, at):
    first = trained(trainer_of(video, tmp_path), at)
    first.save()
    trained(first, STEPS - at)
    checkpoint = Checkpoint.load(tmp_path)
    second = LayeredTrainer(checkpoint.config, open_dataset(checkpoint.config.data), tmp_path, checkpoint)
    assert second.step == at
    trained(second, STEPS - at)
    assert first.scene.counts["dynamic"] > 0
    assert_same_bits(first, second)


def test_a_run_depends_on_its_seed_alone(video, tmp_path):
    one, same, other = (trained(trainer_of(video, tmp_path, seed=seed), STEPS) for seed in (0, 0, 1))
    assert_same_bits(one, same)
    assert not torch.equal(one.scene.gain, other.scene.gain) or one.scene.counts != other.scene.counts


@pytest.mark.slow
def test_the_number_of_threads_changes_no_bit(video, tmp_path):
    one = trained(trainer_of(video, tmp_path, steps=16), 16)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two = trained(trainer_of(video, tmp_path, steps=16), 16)
    finally:
        torch.set_num_threads(before)
    assert_same_bits(one, two)


# ------------------------------------------------------------------------------------------------- what it needs


def test_fusion_without_masks_is_refused_and_says_what_to_do(tmp_path):
    data = TinyVideo(frames=4).write(tmp_path / "video", motion=False)
    with pytest.raises(ValueError, match=r"`gsfields prep motion DATA`.*--pmf 0 --nmf 0") as caught:
        trainer_of(data, tmp_path)
    assert "\n" not in str(caught.value)
    trainer = trained(trainer_of(data, tmp_path, pmf=0, nmf=0), STEPS)
    assert trainer.scene.counts["dynamic"] > 0  # seeded by what the static layer cannot explain


def test_a_frame_without_a_mask_is_fitted_without_fusion(video, tmp_path):
    data = shutil.copytree(video, tmp_path / "video")
    (data / "motion_masks" / "frame_0000.png").unlink()
    trainer = trained(trainer_of(data, tmp_path / "run"), STEPS)
    assert trainer.footage.get(0).motion is None and trainer.footage.get(1).motion is not None


def test_strategies_for_one_layer_are_refused(video, tmp_path):
    with pytest.raises(ValueError, match="strategy must be ranked or none for model layered, but is 'mcmc'"):
        trainer_of(video, tmp_path, strategy="mcmc")


def test_footage_of_some_frames_has_their_times_and_the_videos_duration(video):
    config = config_of(video)
    footage = Footage(open_dataset(config.data), config, [7, 2])
    assert len(footage) == 2 and footage.duration == 11
    assert [footage.get(k).time for k in range(2)] == pytest.approx([7 / 11, 2 / 11])
    assert [footage.views[k].stem for k in range(2)] == ["frame_0070", "frame_0020"]


def test_footage_at_half_size(video):
    config = config_of(video)
    footage = Footage(open_dataset(config.data), config)
    whole, half = footage.get(3), footage.get(3, 0.5)
    assert footage.duration == 11 and whole.time == pytest.approx(3 / 11) and half.time == whole.time
    means = whole.motion.reshape(16, 2, 24, 2).mean(dim=(1, 3))
    torch.testing.assert_close(half.motion, means)
    assert (half.camera.width, half.camera.height, *half.image.shape) == (24, 16, 16, 24, 3)
    picture = footage.picture(3, 0.5)
    assert picture.frame == pytest.approx(3) and torch.equal(picture.motion, half.motion)


# -------------------------------------------------------------------------------------------------------- losses


def frame_of(*, counts=None, motion=True, time=0.4):
    view = camera(dtype=torch.float64)
    g = torch.Generator().manual_seed(9)
    image, scores = (torch.rand(20, 24, *c, generator=g, dtype=torch.float64) for c in ((3,), ()))
    return Frame(view, image, counts, scores if motion else None, time)


def test_the_layered_loss_is_the_sum_of_its_terms():
    frame = frame_of()
    m = config_of("none", pmf=0.5, nmf=0.3, sparsity=0.02, purity=0.2, entropy=0.05, nmf_threshold=0.4).motion
    r = render_layers(random_scene(), frame.camera, frame.time, parts=True)
    _, semistatic, dynamic = r.masks.unbind(-1)
    beta = r.uncertainty[..., 0]
    early = (
        robust_rgb(r.color, frame.image, beta, form=m.rgb_form)
        + sparsity(semistatic, dynamic, weight=0.02)
        + positive_motion_fusion(dynamic, frame.motion, weight=0.5)
        + negative_motion_fusion(semistatic, frame.motion, weight=0.3, threshold=0.4)
        + impurity(r.parts, r.masks, frame.image, beta, weight=0.2)
    )
    torch.testing.assert_close(layered_loss(r, frame, m, late=False), early)
    torch.testing.assert_close(
        layered_loss(r, frame, m, late=True), early + mask_entropy(dynamic, weight=0.05)
    )


def test_pixels_that_do_not_count_have_no_influence():
    counts = torch.ones(20, 24, dtype=torch.float64)
    counts[:, 15:] = 0
    m = config_of("none").motion
    r = render_layers(random_scene(), frame_of().camera, 0.4, parts=True)
    losses = []
    for fill in (0.0, 1.0):
        frame = frame_of(counts=counts)
        frame.image[:, 15:], frame.motion[:, 15:] = fill, fill
        resting = torch.zeros_like(frame.motion)  # what moves spreads a little: see the next test
        stills = [static_loss(r, replace(frame, motion=motion), 0.2) for motion in (None, resting)]
        losses.append((layered_loss(r, frame, m, late=True), *stills))
    assert losses[0] == losses[1]


def test_the_static_layer_does_not_see_what_moves():
    r = render_layers(random_scene(), frame_of().camera, 0.4)
    frames = [frame_of(), frame_of()]
    for frame, fill in zip(frames, (0.0, 1.0), strict=True):
        frame.motion[:] = 0
        frame.motion[5:10, 8:12] = 1
        frame.image[4:11, 7:13] = fill  # and a pixel around
    assert static_loss(r, frames[0], 0.2) == static_loss(r, frames[1], 0.2)
    still = frame_of()
    still.motion[:] = 0
    expected = photometric(r.color, still.image, ssim_weight=0.2)
    torch.testing.assert_close(static_loss(r, still, 0.2), expected)


shares = st.lists(st.floats(0.05, 1), min_size=3, max_size=3)
channels = st.lists(st.floats(0, 1), min_size=9, max_size=9)


@given(shares, channels, st.lists(st.floats(0, 1), min_size=3, max_size=3))
@settings(deadline=None)
def test_impurity_bounds_the_error_of_the_composite(weights, colors, target):
    """Jensen's inequality, for masks that sum to one; equal where one layer shows all."""
    masks = torch.tensor(weights, dtype=torch.float64)
    masks = masks / masks.sum()
    c, target = (
        torch.tensor(colors, dtype=torch.float64).view(3, 3),
        torch.tensor(target, dtype=torch.float64),
    )
    beta = torch.tensor(0.5, dtype=torch.float64)
    pure = (c - target).square().mean(dim=-1)
    if masks.min() >= 0.02:
        expected = (masks * pure).sum() / (2 * 0.5**2)
        got = impurity(masks[:, None] * c, masks, target, beta, weight=1.0)
        torch.testing.assert_close(got, expected)
        composite = ((masks[:, None] * c).sum(0) - target).square().mean() / (2 * 0.5**2)
        assert got >= composite - 1e-9
    alone = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    got = impurity(alone[:, None] * c, alone, target, beta, weight=1.0)
    torch.testing.assert_close(got, pure[1] / (2 * 0.5**2))


# ------------------------------------------------------------------------------------------------- the commands


def test_the_commands_from_fit_to_scores(video, tmp_path, capsys):
    run = tmp_path / "run"
    small = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    words = ["fit", str(video), "--config", "lmf", "--out", str(run), *small, "--steps", str(STEPS)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "dynamic above 0.5 on " in said and f"step {STEPS}" in said
    stems = sorted(path.stem for path in (video / "images").iterdir())
    for layer in ("dynamic", "semistatic"):
        assert sorted(path.stem for path in (run / "masks" / layer).iterdir()) == stems
    before = read_mask(run / "masks" / "dynamic" / "frame_0050.png")

    assert main(["refine", str(run), "--frames", "frame_0050,3", "--window", "1", "--visits", "5"]) == 0
    assert "2 frames refined, 5 with their neighbours" in capsys.readouterr().out
    assert (read_mask(run / "masks" / "dynamic" / "frame_0050.png") != before).any()

    assert main(["eval", "udos", str(run)]) == 0
    said = capsys.readouterr().out
    assert "2D masks" in said and "3D masks" in said
    psnr = json.loads((run / "udos.json").read_text())["psnr"]
    whole, front, back = (f"{psnr[part]:.2f} dB" for part in ("whole", "foreground", "background"))
    assert f"PSNR {whole}, {front} where something moves, {back} elsewhere" in said
    assert min(psnr.values()) > 5 and psnr["background"] > psnr["foreground"]
    assert main(["fit", str(video), "--config", "lmf", "--out", str(run)]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_renderings_show_each_moment(video, tmp_path):
    """Held-out views at their own times, a camera path from the first to the last."""
    trainer = trained(trainer_of(video, tmp_path, split_every=4), STEPS)
    trainer.save()
    scene, dataset = trainer.scene, trainer.dataset

    def difference(file, view, time):
        with Image.open(file) as image:
            shown = torch.from_numpy(np.array(image.convert("RGB"))) / 255
        expected = render_layers(scene, view.camera, time, background=torch.zeros(3)).color.clamp(0, 1)
        return float((shown - expected).abs().max())

    assert main(["render", str(tmp_path), "--out", str(tmp_path / "held_out")]) == 0
    for i in dataset.test:
        view = dataset.views[i]
        assert difference(tmp_path / "held_out" / f"{view.stem}.png", view, i / 11) < 0.01
    assert difference(tmp_path / "held_out" / "frame_0080.png", dataset.views[8], 0.0) > 0.05
    assert (
        main(["render", str(tmp_path), "--path", "views", "--frames", "4", "--out", str(tmp_path / "path")])
        == 0
    )
    assert len(list((tmp_path / "path").iterdir())) == 4


def test_masks_are_evaluated_only_where_there_are_some(ball, tmp_path, capsys):
    config = config_of(ball, model="static", steps=1)
    start(config, tmp_path / "run", progress=False)
    assert main(["eval", "udos", str(tmp_path / "run")]) == 2
    assert "holds no masks: only fits of model layered write them" in capsys.readouterr().err

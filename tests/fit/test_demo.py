"""The demo tells the story of its own video, fits a user's scene, and makes its video from options."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.cli import main
from gsfields.data.egocentric_files import prepare_egocentric
from gsfields.data.load import load_dataset
from gsfields.evaluate.udos_annotations import Annotations
from gsfields.fit import demo as demonstration
from gsfields.fit.checkpoint import Checkpoint
from gsfields.fit.showing import evaluate_parts, render_view
from gsfields.layers import render_layers

SMALL = {"frames": "8", "width": "64", "height": "36", "supersample": "1"}
FAST = ["--steps", "24", "--sweep-points", "300", "--shell-count", "200", "--semistatic-count", "300",
        "--dynamic-count", "40"]  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(run, what the command printed) of a demo of a small video."""
    run = tmp_path_factory.mktemp("demo") / "run"
    run.mkdir()
    prepare_egocentric(run / "video", **SMALL)
    outcome, sheet = demonstration.demo(None, run, [(w[2:], v) for w, v in zip(FAST[::2], FAST[1::2])])
    assert sheet == run / "contact_sheet.png"
    return run, outcome.report


def test_the_picture_has_a_row_per_frame_and_a_column_per_stage(told):
    run, _ = told
    width, height = Image.open(run / "contact_sheet.png").size
    assert width == 6 + len(demonstration.STORY) * (64 + 6)
    assert height == 16 + 6 + demonstration.ROWS * (36 + 6)
    first = np.asarray(Image.open(run / "contact_sheet.png"))[22 : 22 + 36, 6 : 6 + 64]
    frames = [np.asarray(Image.open(path)) for path in sorted((run / "video" / "images").iterdir())]
    assert min(abs(first.astype(int) - frame).max() for frame in frames) <= 1  # the input frame, as it is


def test_the_table_compares_2d_and_3d_masks_and_agrees_with_the_file(told):
    run, report = told
    scores = json.loads((run / "udos.json").read_text())
    for name in ("2D masks", "3D masks"):
        (line,) = [line for line in report if line.startswith(name)]
        assert float(line.removeprefix(name).split()[0]) == pytest.approx(
            scores[name]["ap"]["dynamic"], abs=0.05
        )
    assert re.fullmatch(r"PSNR [\d.]+ dB, [\d.]+ dB where something moves, [\d.]+ dB elsewhere", report[-1])


def test_the_static_layer_alone_shows_nothing_that_moves(told):
    checkpoint = Checkpoint.load(told[0])
    dataset = load_dataset(told[0] / "video", split_every=0)
    camera = dataset.views[3].camera
    still = demonstration.without_motion(checkpoint.scene)
    masks = render_layers(still, camera, 0.4).masks
    assert masks[..., 1:].abs().max() == 0 and masks[..., 0].mean() > 0.9
    assert torch.equal(
        render_view(still, camera, checkpoint.config, 0.1).color,
        render_view(still, camera, checkpoint.config, 0.1).color,
    )
    assert render_layers(checkpoint.scene, camera, 0.4).masks[..., 1:].sum() > 0


def test_psnr_by_parts_separates_what_moves(told):
    checkpoint = Checkpoint.load(told[0])
    dataset = load_dataset(told[0] / "video", split_every=0)
    annotations = Annotations.open(told[0] / "video")
    stem = next(stem for stem in annotations.stems() if annotations.read("dynamic", stem).any())
    (index,) = [i for i, view in enumerate(dataset.views) if view.stem == stem]
    view, time = dataset.views[index], float(dataset.times()[index])
    error = (
        render_view(checkpoint.scene, view.camera, checkpoint.config, time).color - view.image()
    ).square()
    moving = torch.from_numpy(annotations.read("dynamic", stem)) == 1
    parts = evaluate_parts(checkpoint.scene, dataset, annotations, checkpoint.config, {stem})
    assert parts.foreground == pytest.approx(-10 * error[moving].mean().log10().item(), abs=1e-3)
    assert parts.background == pytest.approx(-10 * error[~moving].mean().log10().item(), abs=1e-3)
    still = demonstration.without_motion(checkpoint.scene)
    without = evaluate_parts(still, dataset, annotations, checkpoint.config)
    together = evaluate_parts(checkpoint.scene, dataset, annotations, checkpoint.config)
    assert without.foreground < together.foreground  # the dynamic layer is what draws it
    assert math.isnan(evaluate_parts(still, dataset, annotations, checkpoint.config, []).whole)


def test_prepared_videos_are_read_with_masks_and_annotations(tmp_path, capsys):
    text = prepare_egocentric(tmp_path / "new" / "video", seed=2, missed_frames="0.5", **SMALL)
    assert re.search(r"8 frames of 64x36, [\d.]+% of the pixels semi-static, [\d.]+% dynamic; ", text)
    views = load_dataset(tmp_path / "new" / "video", split_every=0).views
    assert len(views) == 8 and all(view.has_motion_mask for view in views)
    again = prepare_egocentric(
        tmp_path / "new" / "video", overwrite=True, seed=3, layout="epic_fields", **SMALL
    )
    assert again != text and (tmp_path / "new" / "video" / "S03_01.json").is_file()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sped": "1"}, "there is no option 'sped' of a generated video; the options are bleed"),
        ({"speed": "quick"}, "speed must be a number from 0.1 to 10, but is 'quick'"),
        ({"frames": "1.5"}, "frames must be a whole number"),
        ({"frames": None}, "--frames needs a value"),
        ({"revisits": "often"}, "revisits must be true or false, but is 'often'"),
        ({"correlation": "2"}, "correlation must be a number from 0 to 1, but is 2"),
        ({"layout": "mp4"}, "layout must be one of epic_fields, transforms, but is 'mp4'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        prepare_egocentric(tmp_path / "a" / "video", **options)
    assert not (tmp_path / "a").exists()


def test_only_generated_videos_are_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(ValueError, match="exists: give --overwrite"):
        prepare_egocentric(tmp_path / "photos", **SMALL)
    with pytest.raises(ValueError, match="holds something else than a generated video"):
        prepare_egocentric(tmp_path / "photos", overwrite=True, **SMALL)
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_the_command_prints_the_table_and_names_the_picture(told, capsys):
    assert main(["demo", "--out", str(told[0]), *FAST]) == 0  # again: the video is there and is used as it is
    text = capsys.readouterr().out
    assert "IoU>=0.5" in text and f"pictures: {told[0] / 'contact_sheet.png'}" in text


def test_shown_frames_show_something_dynamic(told):
    dataset = load_dataset(told[0] / "video", split_every=0)
    annotations = Annotations.open(told[0] / "video")
    share = {stem: (annotations.read("dynamic", stem) == 1).mean() for stem in annotations.stems()}
    moving = sum(value > 0.01 for value in share.values())
    assert 1 <= moving < len(share)
    shown = demonstration._chosen(dataset, annotations, moving)
    assert all(share[view.stem] > 0.01 for view, _ in shown) and len(shown) == moving
    assert [time for _, time in shown] == sorted(time for _, time in shown)
    assert len(demonstration._chosen(dataset, annotations, moving + 1)) == moving + 1  # too few: any frames

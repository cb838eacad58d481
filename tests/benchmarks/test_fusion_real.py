"""Real images for the fusion benchmark: outlines, the simple segmenter, and the videos where the data are there."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import fusion_real
from benchmarks.fusion_real import LABELS, HandVideo, RoomVideo, filled, simple_segmenter
from benchmarks.fusion_trial import flat_scores
from benchmarks.scenes import DATA, SceneMissing
from gsfields.data.load import load_dataset


def test_polygons_fill_the_share_of_a_pixel_that_they_cover():
    shares = filled([[[1, 1], [3.5, 1], [3.5, 3], [1, 3]]], 6, 4)
    expected = np.zeros((4, 6))
    expected[1:3, 1:3], expected[1:3, 3] = 1, 0.5
    assert np.array_equal(shares, expected) and not filled([], 6, 4).any()
    triangle = filled([[[-8, -8], [24, -8], [-8, 24]]], 16, 16)  # x + y <= 16, and beyond the image
    assert triangle.sum() == pytest.approx(16 * 16 / 2, rel=0.02)
    two = filled([[[0, 0], [2, 0], [2, 4], [0, 4]], [[1, 0], [4, 0], [4, 4], [1, 4]]], 6, 4)
    assert two[:, :4].all() and not two[:, 4:].any()  # where they overlap, too


def test_labels_lie_in_the_frames_and_show_a_hand():
    labels = json.loads(LABELS.read_text())
    assert len(labels) == 12
    for stem, outlines in labels.items():
        corners = np.concatenate([np.array(o, float) for o in outlines["moving"]])
        assert (corners >= -1).all() and (corners <= (513, 385)).all(), stem
        share = filled(outlines["moving"], 512, 384).mean()
        assert 0.08 < share < 0.35, stem


def test_the_simple_segmenter_errs():
    moving = np.zeros((60, 100), bool)
    moving[20:40, 30:60] = True
    scores = [simple_segmenter(moving, np.random.default_rng(seed)) for seed in range(40)]
    assert all(s.shape == moving.shape and s.min() >= 0 and s.max() <= 1.05 for s in scores)
    found = np.array([s[moving].mean() for s in scores])
    alarms = np.array([s[~moving].mean() for s in scores])
    assert (found < 0.05).any() and (found > 0.5).any() and found.mean() > 4 * alarms.mean()


@pytest.mark.parametrize("video", [HandVideo(), RoomVideo(0, True)])
def test_what_is_not_at_hand_is_told(tmp_path, monkeypatch, video):
    monkeypatch.setattr(fusion_real, "DATA", tmp_path)
    with pytest.raises(SceneMissing, match="shared/data"):
        video.make(tmp_path / "scenes")


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "colmap_room").is_dir(), reason="no ../shared/data/colmap_room")
def test_a_room_has_exact_masks_and_poor_2d_ones(tmp_path):
    folder = RoomVideo(0, True, width=96).make(tmp_path)
    dataset = load_dataset(folder, split_every=0)
    assert len(dataset.views) == 35 and dataset.times().tolist()[-1] == 1
    moving, standing = (
        np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "annotations" / m).iterdir())])
        for m in ("dynamic", "semistatic")
    )
    assert not (moving & standing).any() and 0.02 < moving.mean() < 0.4 and standing.mean() > 0.002
    assert 40 < flat_scores(folder)["ap"]["dynamic"] < 90
    (tmp_path / "again").mkdir()
    again = RoomVideo(0, True, width=96).make(tmp_path / "again")
    for name in ("images/frame_007.jpg", "motion_masks/frame_007.png"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()

"""The simulated 2D motion segmenter: how good it is, and that its errors are of the kinds it promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from gsfields.data.egocentric import EgocentricConfig, make_sequence
from gsfields.data.segmenter import MotionSegmenter, SegmenterConfig, segment
from gsfields.evaluate.udos import average_precision


def dynamic_ap(sequence, frames, config: SegmenterConfig) -> np.ndarray:
    """AP [F] on the dynamic pixels of every frame that has some, scores as an 8-bit file holds them."""
    scores = segment(sequence, config, frames)
    pairs = [(frame, score) for frame, score in zip(frames, scores, strict=True) if frame.dynamic.any()]
    return np.array([average_precision(frame.dynamic, np.round(score * 255)) for frame, score in pairs])


@pytest.fixture(scope="module")
def video():
    sequence = make_sequence(EgocentricConfig(seed=2, frames=30, width=76, height=43, supersample=1))
    return sequence, list(sequence.stream())


def test_scores_are_soft_and_the_same_in_any_order(video):
    sequence, frames = video
    scores = list(segment(sequence, frames=frames))
    assert all(score.shape == (43, 76) and score.dtype == np.float32 for score in scores)
    assert all(score.min() >= 0 and score.max() <= 1 for score in scores)
    assert len(np.unique(np.concatenate(scores))) > 1000
    again = MotionSegmenter(sequence)
    for index in (29, 3, 17):
        assert np.array_equal(again.scores(frames[index]), scores[index])
    other = next(segment(sequence, SegmenterConfig(seed=1), frames))
    assert not np.array_equal(other, scores[0])


def test_a_perfect_segmenter_is_nearly_perfect(video):
    sequence, frames = video
    ideal = SegmenterConfig(
        missed_frames=0, seen_speed=1e-3, holes=0, parallax=100, bleed=0, shift=0, correlation=0
    )
    assert dynamic_ap(sequence, frames, ideal).mean() > 97


def test_each_kind_of_error_costs_precision(video):
    sequence, frames = video
    rest = {
        "missed_frames": 0.0,
        "seen_speed": 1e-3,
        "holes": 0.0,
        "parallax": 100.0,
        "bleed": 0.0,
        "shift": 0.0,
    }
    best = dynamic_ap(sequence, frames, SegmenterConfig(**rest)).mean()
    defaults = SegmenterConfig()
    for name in rest:
        worse = rest | {name: getattr(defaults, name)}
        if name == "seen_speed":
            worse["parallax"] = defaults.parallax  # slow things are lost among false alarms, not in silence
        assert dynamic_ap(sequence, frames, SegmenterConfig(**worse)).mean() < best - 0.3, name


def test_frames_are_missed_as_often_as_asked(video):
    sequence, frames = video
    long = make_sequence(EgocentricConfig(seed=3, frames=400, width=8, height=8))
    missed = [MotionSegmenter(long, SegmenterConfig(seed=s, missed_frames=0.12))._silent for s in range(5)]
    assert 0.08 < np.mean(missed) < 0.16
    silent = MotionSegmenter(sequence, SegmenterConfig(missed_frames=0.99))
    found = [silent.scores(f).max() for f, quiet in zip(frames, silent._silent, strict=True) if quiet]
    assert max(found) < 0.25


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_errors_are_correlated_in_time_as_asked(correlation):
    """On surfaces that do not move, a frame's scores follow those of the frame before by the coefficient."""
    sequence = make_sequence(EgocentricConfig(seed=3, frames=300, width=16, height=9, supersample=1))
    segmenter = MotionSegmenter(sequence, SegmenterConfig(correlation=correlation))
    frame = sequence.frame(10)
    field = np.stack([segmenter._on_static(i, frame.surface, frame.part).ravel() for i in range(300)])
    follow = np.mean(field[1:] * field[:-1]) / np.mean(field**2)
    assert abs(follow - correlation) < 0.06
    assert 0.8 < np.std(field) < 1.2


def test_errors_stick_to_surfaces(monkeypatch):
    """With lasting errors, a point of the room has one score however the camera turns."""
    sequence = make_sequence(EgocentricConfig(seed=3, frames=12, width=64, height=36, supersample=1))
    lasting = SegmenterConfig(correlation=1.0, missed_frames=0, bleed=0, shift=0, parallax=0.2)
    segmenter = MotionSegmenter(sequence, lasting)
    monkeypatch.setattr(segmenter, "_parallax", lambda frame: np.zeros_like(frame.depth))  # it is not lasting
    seen: dict = {}
    for index in (0, 2):
        frame = sequence.frame(index)
        still = frame.instances == 0
        places = np.round(frame.surface[still] / 0.01).astype(int)
        for part, place, score in zip(frame.part[still], places, segmenter.scores(frame)[still], strict=True):
            seen.setdefault((part, *place), {})[index] = score
    pairs = np.array([list(both.values()) for both in seen.values() if len(both) == 2])
    assert len(pairs) > 20
    assert np.corrcoef(pairs.T)[0, 1] > 0.9


def test_masks_are_precise_but_incomplete_with_false_alarms_on_static_surfaces(video):
    sequence, frames = video
    scores = np.stack(list(segment(sequence, frames=frames)))
    dynamic = np.stack([frame.dynamic for frame in frames])
    found = scores > 0.5
    assert (found & dynamic).sum() > 0.6 * found.sum()
    assert 0.1 < (found & dynamic).sum() / dynamic.sum() < 0.7
    near = np.stack([ndimage.binary_dilation(mask, iterations=6) for mask in dynamic])
    assert ((scores > 0.3) & ~near).any(axis=(1, 2)).mean() > 0.1


@pytest.mark.parametrize(
    "bad",
    [
        {"correlation": 1.5},
        {"missed_frames": 1},
        {"seen_speed": 0},
        {"bleed": -1},
        {"seed": -1},
        {"seed": 0.5},
    ],
    ids=str,
)
def test_bad_settings_are_named(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=name):
        SegmenterConfig(**bad)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # 300 frames of full size
def test_ap_is_that_of_motion_grouping():
    """Mean AP of dynamic pixels between 60 and 68, over seeds 0 to 4, as for the real one (64.3)."""
    means = []
    for seed in range(5):
        sequence = make_sequence(EgocentricConfig(seed=seed))
        means.append(dynamic_ap(sequence, list(sequence.stream()), SegmenterConfig()).mean())
    assert 60 < np.mean(means) < 68, means
    assert min(means) > 55 and max(means) < 72, means

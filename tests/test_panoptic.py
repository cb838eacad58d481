"""Panoptic quality: the released code's numbers, another program's, and the definition on random maps."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gsfields.data.segments import Classes, Segments, open_truth, write_ids
from gsfields.evaluate.panoptic import (
    PanopticCounts,
    evaluate_maps,
    evaluate_run_folder,
    maps_of,
    resized_labels,
    table,
)
from gsfields.files import to_json

SHARED = Path(__file__).resolve().parents[2] / "shared"
ROOM = Classes(things=(1,), stuff=(0,))


def shared(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"../shared/{name} is not present")
    return SHARED / name


def scores_of(frames, classes=ROOM, robust=0.005, void_class=None):
    """`frames` hold (pred_semantics, pred_ids, true_semantics, true_ids)."""
    counts = PanopticCounts(classes, void_class=void_class)
    for frame in frames:
        counts.add(*map(np.asarray, frame))
    return counts.scores(robust)


def room_scores(pairs, **options):
    """Of (predicted ids, true ids) alone."""
    pairs = [(np.asarray(p), np.asarray(t)) for p, t in pairs]
    return scores_of([((p > 0).astype(int), p, (t > 0).astype(int), t) for p, t in pairs], **options)


def test_golden_numbers():
    cases = json.loads(shared("golden/pq_scene.json").read_text())["cases"]
    assert len(cases) == 8
    names = ("pred_sem", "pred_inst", "gt_sem", "gt_inst")
    for case in cases:
        classes = Classes(tuple(case["things"]), tuple(case["stuff"]))
        robust = 0.02 if "0.02" in case["name"] else 0.005
        scores = scores_of([[f[name] for name in names] for f in case["frames"]], classes, robust)
        assert (scores.pq, scores.sq, scores.rq) == pytest.approx(
            (case["pq"], case["sq"], case["rq"]), abs=1e-6
        )
        kept = {thing: [c for c, s in scores.classes.items() if s.thing is thing] for thing in (True, False)}
        assert kept[True] == case["kept_things"] and kept[False] == case["kept_stuff"], case["name"]
        for c, row in case["order"]:
            score = scores.classes[c]
            assert score.iou_sum == pytest.approx(case["iou_sum"][row], abs=1e-6)
            assert (score.tp, score.fp, score.fn) == (case["tp"][row], case["fp"][row], case["fn"][row])


def test_deeplab2_per_image():
    """DeepLab2 counts images one by one, every (class, id) as a segment, and void only in the truth: so here what the
    predictions leave void is a class of its own, whose score is not looked at.
    """
    root = shared("data/metrics/panoptic")
    maps, expected = np.load(root / "pq_cases.npz"), json.loads((root / "pq_expected.json").read_text())
    unlabelled = 99

    def total(images, classes):
        totals = dict.fromkeys(classes, np.zeros(4))
        for image in images:
            predicted = maps[f"{image}_pred_class"].astype(int)
            predicted[predicted == 0] = unlabelled
            others = (maps[f"{image}_{name}"] for name in ("pred_inst", "gt_class", "gt_inst"))
            scores = scores_of(
                [(predicted, *others)], Classes(things=(*classes, unlabelled), stuff=()), robust=0
            )
            for c in totals.keys() & scores.classes.keys():
                score = scores.classes[c]
                totals[c] = totals[c] + [score.iou_sum, score.tp, score.fp, score.fn]
        return np.array(list(totals.values()))

    for images in (["team"], ["bird", "cat", "team"]):
        rule = expected["_".join(images)]
        iou_sum, tp, fp, fn = total(images, range(1, rule["num_classes"])).T
        quality = iou_sum / tp, tp / (tp + fp / 2 + fn / 2)
        assert quality[0].mean() == pytest.approx(rule["SQ"], abs=1e-6)
        assert quality[1].mean() == pytest.approx(rule["RQ"], abs=1e-6)
        assert (quality[0] * quality[1]).mean() == pytest.approx(rule["PQ"], abs=1e-6)
        assert [x.mean() for x in (tp, fn, fp)] == pytest.approx([rule["TP"], rule["FN"], rule["FP"]])


def by_definition(predicted, true, things, stuff, robust):
    """PQ of a list of (class, id) pairs per map, segment by segment with masks over all pixels."""
    maps = [np.array(predicted), np.array(true)]
    rare, seen = set(), set()
    for labels in maps:
        for c in set(labels[:, 0].tolist()):
            seen.add(c)
            if (labels[:, 0] == c).mean() < robust:
                rare.add(c)
    kept = [c for c in (*things, *stuff) if c in seen - rare]
    regions = []  # per map: {(class, id): mask}, and where nothing is
    for labels in maps:
        labels = labels.copy()
        labels[np.isin(labels[:, 0], stuff), 1] = 0
        void = ~np.isin(labels[:, 0], kept)
        names = {tuple(row) for row in labels[~void].tolist()}
        regions.append(({name: (labels == name).all(axis=1) for name in names}, void))
    (segments, void_p), (truths, void_t) = regions
    qualities = []
    for c in kept:
        mine, its = ({k: m for k, m in group.items() if k[0] == c} for group in (segments, truths))
        ious = {
            (p, t): (a & b).sum() / ((a & ~void_t) | (b & ~void_p)).sum()
            for p, a in mine.items()
            for t, b in its.items()
            if (a & b).any()
        }
        pairs = {pair: iou for pair, iou in ious.items() if iou > 0.5}
        fp = [
            p for p, a in mine.items() if p not in {k for k, _ in pairs} and (a & void_t).sum() * 2 <= a.sum()
        ]
        fn = [
            t for t, b in its.items() if t not in {k for _, k in pairs} and (b & void_p).sum() * 2 <= b.sum()
        ]
        total = len(pairs) + len(fp) / 2 + len(fn) / 2
        qualities.append(sum(pairs.values()) / total if total else 0.0)
    return np.mean(qualities) if qualities else math.nan


segment = st.tuples(st.integers(0, 4), st.integers(0, 2))
pixel = st.tuples(segment, segment) | segment.map(lambda s: (s, s))  # half of them agree


@settings(deadline=None)
@given(
    st.lists(st.lists(pixel, min_size=1, max_size=30), min_size=1, max_size=3), st.sampled_from([0, 0.1, 0.3])
)
def test_scene_and_frames_by_the_definition(frames, robust):
    classes = Classes(things=(1, 4), stuff=(0, 2))  # 3 is void
    columns = [np.array([(*p, *t) for p, t in frame]).T for frame in frames]
    scores = scores_of(columns, classes, robust)

    def definition(pixels):
        return by_definition([p for p, _ in pixels], [t for _, t in pixels], (1, 4), (0, 2), robust)

    assert scores.pq == pytest.approx(
        definition([pixel for f in frames for pixel in f]), abs=1e-12, nan_ok=True
    )
    assert scores.per_frame == pytest.approx([definition(f) for f in frames], abs=1e-12, nan_ok=True)


def test_a_segment_spans_all_frames():
    first, second = np.array([[1, 1, 2, 2], [0, 0, 0, 0]]), np.array([[2, 2, 1, 1], [0, 0, 0, 0]])
    swapped = np.array([0, 2, 1])
    same = room_scores([(first, first), (second, second)])
    renamed = room_scores([(first * 7, first), (second * 7, second)])
    confused = room_scores([(first, first), (swapped[second], second)])
    assert same.pq == renamed.pq == 1 and same.per_frame == [1, 1]
    assert confused.pq == 0.5 and confused.pq_things == 0 and confused.pq_stuff == 1
    assert confused.per_frame_pq == 1  # each frame on its own is right


def test_half_is_no_match():
    true = np.array([[1, 1, 1, 1, 0, 0, 0, 0]])
    assert room_scores([(np.array([[1, 1, 0, 0, 0, 0, 0, 0]]), true)]).classes[1].tp == 0
    assert room_scores([(np.array([[1, 1, 1, 0, 0, 0, 0, 0]]), true)]).classes[1].tp == 1


def test_pixels_of_the_void_class_are_dropped():
    """Panoptic Lifting: true class 0 is no truth; a prediction of class 0 elsewhere still scores, as stuff."""
    classes = Classes(things=(4,), stuff=(0, 1))
    true = np.array([[0, 0, 0, 4, 4, 1, 1, 1]])
    good = np.array([[4, 4, 1, 4, 4, 1, 1, 1]])
    ids = np.where(true == 4, 3, 0)
    assert scores_of([(good, ids, true, ids)], classes, void_class=0).pq == 1
    assert scores_of([(good, ids, true, ids)], classes).pq < 1
    bad = np.array([[4, 4, 1, 4, 4, 1, 1, 0]])
    scores = scores_of([(bad, ids, true, ids)], classes, void_class=0)
    assert list(scores.classes) == [4, 0, 1] and scores.classes[0].fp == 1
    assert scores.pq == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_miou_keeps_a_class_that_only_one_map_has():
    """Class 1 is rare in the truth (drops out of PQ) but not in the prediction (counts for mIoU)."""
    true, predicted = np.zeros((10, 20), dtype=int), np.zeros((10, 20), dtype=int)
    true[0, 0], predicted[0, :10] = 1, 1
    scores = scores_of([(predicted, predicted, true, true)], robust=0.01)
    assert list(scores.classes) == [0] and scores.pq == 1  # all that is left is void in the other map
    assert scores.ious == pytest.approx({0: 190 / 199, 1: 1 / 10})
    assert scores.miou == pytest.approx((190 / 199 + 0.1) / 2)
    both_rare = scores_of([(true, true, true, true)], robust=0.01)
    assert both_rare.ious == {0: 1.0}


def test_many_frames_cost_only_their_counts():
    rng = np.random.default_rng(0)
    true = np.kron(rng.integers(0, 26, (8, 8)), np.ones((64, 64), dtype=np.uint16))
    counts = PanopticCounts(ROOM)
    for _ in range(20):
        counts.add(true > 0, torch.from_numpy(true.astype(np.int32)), true > 0, true)
    held = sum(c.nbytes for f in counts._frames for c in (f.predicted, f.true, f.pixels))
    assert len(counts) == 20 and counts.scores().pq == 1 and held <= 20 * 26 * 24


@pytest.mark.parametrize("old", [(480, 640), (968, 1296), (256, 384), (1024, 1024), (33, 700), (512, 512)])
def test_resizing_is_that_of_pillow(old):
    labels = np.random.default_rng(0).integers(0, 65536, old).astype(np.uint16)
    for width, height in ((512, 512), (100, 64)):
        expected = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
        np.testing.assert_array_equal(resized_labels(labels, width, height), expected)


def truth_of(maps, classes=ROOM):
    return SimpleNamespace(classes=classes, read=lambda stem: maps.get(stem), stems=sorted(maps))


def test_maps_of_two_sizes():
    true = torch.tensor([[0, 1], [2, 2]], dtype=torch.int32)
    truth = truth_of({"a": Segments(true)})
    large = np.kron(true.numpy() * 1000, np.ones((8, 6), dtype=int))
    assert evaluate_maps(lambda stem: (large, None), truth, ["a"]).pq == 1
    with pytest.raises(ValueError, match=r"one shape, but are pred_semantics \[16, 12\].* true_ids \[2, 2\]"):
        evaluate_maps(lambda stem: (large, None), truth, ["a"], size=None)
    assert evaluate_maps(maps_of(truth), truth, ["a"], size=None).per_frame == [1]


def test_classes_and_options_reach_the_counts():
    true = torch.tensor([[0, 0, 4, 4, 1, 1, 1, 2]])
    predicted = torch.tensor([[4, 4, 4, 4, 1, 1, 1, 2]])
    truth = truth_of({"a": Segments(true * 0, true)}, Classes(things=(4,), stuff=(0, 1, 2)))

    def score(**options):
        return evaluate_maps(lambda stem: (predicted * 0, predicted), truth, ["a"], size=None, **options)

    assert list(score().classes) == [4, 0, 1, 2] and score().pq == pytest.approx(0.5)
    assert list(score(robust=0.2).classes) == [4, 0, 1]
    dropped = score(void_class=0)
    assert list(dropped.classes) == [4, 1, 2] and dropped.pq == 1


def test_a_run_folder(tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    rng = np.random.default_rng(1)
    for stem in ("001", "002"):
        ids = np.kron(rng.integers(0, 4, (4, 4)), np.ones((8, 8), dtype=int))
        for folder, labels in (
            (data / "annotations/instances", ids),
            (data / "annotations/semantics", (ids > 0).astype(int)),
            (run / "instances/ids", np.where(ids > 0, 70 * ids + 300, 0)),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            write_ids(folder / f"{stem}.png", labels)
    truth = open_truth(data)
    scores = evaluate_run_folder(run, truth, truth.stems)
    assert scores.pq == 1 and len(scores.per_frame) == 2

    semantics = run / "instances/semantics"
    semantics.mkdir()
    write_ids(semantics / "001.png", np.ones((32, 32), dtype=int))
    with pytest.raises(FileNotFoundError, match=r"semantics/002\.png"):
        evaluate_run_folder(run, truth, truth.stems)
    assert evaluate_run_folder(run, truth, ["001"]).miou < 1  # the classes in the folder count, not the ids
    (run / "instances/ids/001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"ids/001\.png"):
        evaluate_run_folder(run, truth, ["001"])
    write_ids(run / "instances/ids/009.png", ids)
    write_ids(semantics / "009.png", ids)
    with pytest.raises(FileNotFoundError, match="image 009 has no true labels"):
        evaluate_run_folder(run, truth, ["009"])


def test_what_is_said_of_the_scores():
    true = np.array([[1, 1, 2, 2], [0, 0, 0, 0]])
    scores = room_scores([(np.array([[1, 1, 1, 0], [0, 0, 0, 0]]), true)])
    classes = Classes(names={1: "chair"})
    named = scores_of([(true > 0, true, true > 0, true)], classes)
    assert "chair" in str(named) and "per-frame PQ 100.0 over 1 frames" in str(named)
    lines = table({"fields": named, "tracker": scores}).splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[1].split()[1] == "100.0"
    saved = json.loads(to_json(scores.to_dict()))
    assert (
        saved["pq"] == pytest.approx(scores.pq) and saved["classes"]["1"]["tp"] == scores.classes[1].tp == 1
    )
    assert saved["classes"]["1"]["fn"] == 1 and saved["frames"] == 1


def test_nothing_to_score():
    with pytest.raises(ValueError, match="there are no frames"):
        PanopticCounts(ROOM).scores()
    blank = np.zeros((2, 2), dtype=int)
    scores = scores_of([(blank, blank, blank, blank)], void_class=0)
    assert math.isnan(scores.pq) and math.isnan(scores.per_frame_pq) and "nan" not in str(scores)
    empty_frame = scores_of([(blank, blank, blank, blank), (blank + 1,) * 4], void_class=0)
    assert empty_frame.per_frame_pq == 1  # a frame without a scored class is left out


def test_bad_input():
    counts, good = PanopticCounts(ROOM), np.zeros((2, 2), dtype=int)
    with pytest.raises(TypeError, match="pred_ids must hold whole numbers, but is float64"):
        counts.add(good, good * 0.5, good, good)
    with pytest.raises(ValueError, match="true_ids must lie in"):
        counts.add(good, good, good, good - 1)
    with pytest.raises(ValueError, match="one shape"):
        counts.add(good, good, good, good[:1])
    assert len(counts) == 0
    counts.add(good, good, good, good)
    with pytest.raises(ValueError, match="robust"):
        counts.scores(robust=1)
    many = truth_of({"a": Segments(torch.zeros(2, 2), torch.zeros(2, 2))}, Classes((1, 2), (0,)))
    with pytest.raises(ValueError, match=r"predicted labels of image a have no semantics.*\(1, 2\)"):
        evaluate_maps(lambda stem: (good, None), many, ["a"])
    with pytest.raises(ValueError, match="size"):
        evaluate_maps(maps_of(many), many, ["a"], size=0)

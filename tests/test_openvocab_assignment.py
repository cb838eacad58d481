"""3D-OVS's scores and those of retrieval: the released code's numbers, scikit-learn's, and definitions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsfields.evaluate.openvocab import (
    AssignmentScores,
    QueryTruth,
    class_ious,
    most_relevant,
    retrieval_recall,
    subset_accuracy,
)
from gsfields.files import to_json

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "lerf_langsplat.json"
seeds = st.integers(0, 2**31 - 1)


def truth_of(mask, prompt="mug"):
    return QueryTruth(prompt, torch.as_tensor(np.asarray(mask, bool)), torch.zeros(0, 4))


# ----------------------------------------------------------------------------------------------------- 3D-OVS


def test_golden_assignment():
    if not GOLDEN.is_file():
        pytest.skip("../shared/golden/lerf_langsplat.json is not present")
    case = json.loads(GOLDEN.read_text())["ovs3d_metric"]
    truth, predicted = (torch.tensor(case[name]).T == 1 for name in ("gt_multi_hot", "pred_one_hot"))
    ious = class_ious(predicted, truth)
    torch.testing.assert_close(ious, torch.tensor(case["iou_per_class"]).double(), atol=1e-6, rtol=0)
    assert ious.mean() == pytest.approx(case["mean"], abs=1e-6)
    assert subset_accuracy(predicted, truth) == case["accuracy_subset"]

    # the same as one view of 2 x 4 pixels
    scores = AssignmentScores()
    truths = [truth_of(mask.reshape(2, 4), prompt=name) for mask, name in zip(truth, "abc")]
    scores.add("00", predicted.float().reshape(3, 2, 4), truths)
    assert scores.miou == pytest.approx(case["mean"], abs=1e-6)
    assert scores.accuracy == case["accuracy_subset"]
    assert list(scores.ious["00"]) == ["a", "b", "c"]


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 5), st.integers(1, 24))
def test_jaccard_is_scikit_learn_s(seed, classes, pixels):
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn")
    rng = np.random.default_rng(seed)
    truth = rng.random((classes + 1, pixels)) < rng.uniform(0, 1, (classes + 1, 1))
    maps = torch.from_numpy(rng.integers(0, 9, (classes + 1, 1, pixels)) / 9)  # with ties
    predicted = most_relevant(maps)[:, 0]
    assert (predicted.sum(dim=0) == 1).all()
    assert torch.equal(predicted.int().argmax(dim=0), torch.from_numpy(maps[:, 0].numpy().argmax(axis=0)))
    expected = metrics.jaccard_score(truth.T, predicted.T.numpy(), average=None, zero_division=0)
    got = class_ious(predicted, torch.from_numpy(truth))
    torch.testing.assert_close(got, torch.from_numpy(expected))
    assert subset_accuracy(predicted, torch.from_numpy(truth)) == pytest.approx(
        metrics.accuracy_score(truth.T, predicted.T.numpy())
    )


def test_assignment_scores():
    scores = AssignmentScores()
    with pytest.raises(ValueError, match="there are no views to score"):
        _ = scores.miou
    with pytest.raises(ValueError, match="there are no views to score"):
        _ = scores.accuracy
    maps = torch.tensor(
        [[[0.9, 0.9, 0.1, 0.5]], [[0.1, 0.2, 0.8, 0.5]]]
    )  # the first two, and the tie, are a's
    truths = [truth_of([[1, 1, 0, 0]], prompt="a"), truth_of([[0, 1, 1, 1]], prompt="b")]
    scores.add("00", maps, truths)
    assert scores.ious["00"] == {"a": 2 / 3, "b": 1 / 3}
    assert scores.accuracy == 0.5  # the second pixel lacks b, the fourth is a's
    scores.add("07", maps[:1], [truth_of(np.zeros((1, 4)), prompt="a")])
    assert scores.ious["07"] == {"a": 0}
    assert (scores.miou, scores.accuracy) == (0.25, 0.25)
    assert json.loads(to_json(scores.to_dict()))["views"]["07"] == {"ious": {"a": 0}, "accuracy": 0}
    with pytest.raises(ValueError, match="view 07 already has scores"):
        scores.add("07", maps, truths)
    with pytest.raises(ValueError, match=r"one per prompt, but are \[1, 1, 4\] for 2 prompts"):
        scores.add("08", maps[:1], truths)
    with pytest.raises(ValueError, match=r"maps must be on the grid of the true mask, \[1, 4\]"):
        scores.add("08", maps[..., :3], truths)
    with pytest.raises(ValueError, match=r"predicted must be of the shape of truth, \[2, 4\]"):
        class_ious(torch.zeros(3, 4).bool(), torch.zeros(2, 4).bool())
    with pytest.raises(ValueError, match=r"truth must be bool \[Q, ...\]"):
        subset_accuracy(torch.zeros(2, 4).bool(), torch.zeros(2, 4))


# -------------------------------------------------------------------------------------------------- retrieval


def test_retrieval():
    relevancies = torch.linspace(0, 1, 40).reshape(4, 10)  # rises by rows
    rows = torch.eye(4, dtype=torch.bool)[:, :, None].expand(4, 4, 10)
    assert retrieval_recall(relevancies, rows, rows[3]) == {1: True, 5: True, 10: True}
    assert retrieval_recall(relevancies, list(rows), rows[1], (1, 2, 3)) == {1: False, 2: False, 3: True}
    # half of the truth is not more than half of it, unless that is asked for
    both = rows[2] | rows[3]
    assert retrieval_recall(relevancies, rows, both, (10,)) == {10: False}
    assert retrieval_recall(relevancies, rows, both, (1,), iou=0.49) == {1: True}
    # of equals the first comes first; empty segments come last and are never right
    flat, empty = torch.full((4, 10), 0.3), torch.zeros(1, 4, 10, dtype=torch.bool)
    assert retrieval_recall(flat, torch.cat((empty, rows)), rows[1], (1, 2)) == {1: False, 2: True}
    assert retrieval_recall(flat, empty, rows[1], (1,)) == {1: False}
    assert retrieval_recall(flat, empty, empty[0], (1,), iou=0) == {1: False}
    assert retrieval_recall(flat, rows, empty[0]) == {1: False, 5: False, 10: False}
    assert retrieval_recall(flat, [], rows[1]) == {1: False, 5: False, 10: False}


@pytest.mark.parametrize("seed", range(20))
def test_retrieval_of_numbered_segments(seed):
    """The same as of their masks, on any levels, with gaps between the numbers."""
    g = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-1, 9, (2, 6, 7), generator=g) // (1 + seed % 3)
    numbers[1] = torch.where(numbers[1] < 0, -1, numbers[1] + 12)
    relevancies, truth = torch.rand(6, 7, generator=g).round(decimals=1), torch.rand(6, 7, generator=g) < 0.4
    masks = torch.stack([(numbers == k).any(dim=0) for k in range(int(numbers.max()) + 1)])
    truth |= masks[int(numbers[0].max())]
    for iou in (0.0, 0.2, 0.5):
        expected = retrieval_recall(relevancies, masks, truth, (1, 2, 5, 10), iou)
        assert retrieval_recall(relevancies, numbers.int(), truth, (1, 2, 5, 10), iou) == expected
    nothing = retrieval_recall(relevancies, torch.full((1, 6, 7), -1), truth)
    assert nothing == {1: False, 5: False, 10: False}
    with pytest.raises(ValueError, match=r"segments must be \[L, 6, 7\], but are \[1, 6, 6\]"):
        retrieval_recall(relevancies, torch.zeros(1, 6, 6, dtype=torch.int32), truth)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 12), st.sampled_from([0.0, 0.3, 0.5]))
def test_retrieval_is_the_definition(seed, count, threshold):
    rng = np.random.default_rng(seed)
    relevancies = rng.random((6, 7))
    segments = rng.random((count, 6, 7)) < rng.uniform(0.2, 0.9, (count, 1, 1))
    segments[:, 0, 0] = True
    truth = segments[rng.integers(count)] ^ (rng.random((6, 7)) < 0.2)
    order = sorted(range(count), key=lambda i: -relevancies[segments[i]].mean())
    right = [(segments[i] & truth).sum() / (segments[i] | truth).sum() > threshold for i in order]
    got = retrieval_recall(
        torch.from_numpy(relevancies), torch.from_numpy(segments), torch.from_numpy(truth), (1, 5), threshold
    )
    assert got == {1: right[0], 5: any(right[:5])}
    assert got[5] or not got[1]


def test_bad_retrieval():
    flat, mask = torch.zeros(4, 5), torch.zeros(4, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"relevancy_map must be \[H, W\], but is \[1, 4, 5\]"):
        retrieval_recall(flat[None], [mask], mask)
    with pytest.raises(ValueError, match="relevancy_map must be on the grid of the true mask"):
        retrieval_recall(flat[:3], [mask], mask)
    with pytest.raises(ValueError, match="each of the segments must be on the grid"):
        retrieval_recall(flat, [mask[:3]], mask)
    with pytest.raises(ValueError, match="each of the segments must be bool"):
        retrieval_recall(flat, [flat], mask)
    with pytest.raises(ValueError, match=r"ks must be 1 or more, but are \[0, 5\]"):
        retrieval_recall(flat, [mask], mask, (0, 5))
    with pytest.raises(ValueError, match=r"iou must lie in \[0, 1\), but is 1"):
        retrieval_recall(flat, [mask], mask, iou=1)

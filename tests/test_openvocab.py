"""Open-vocabulary scores: the released code's numbers, the pipeline as plain loops, parts of it by others."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsfields.evaluate.openvocab import (
    LANGSPLAT,
    LANGSPLAT_V2,
    OpenVocabScores,
    Protocol,
    QueryTruth,
    blurred,
    hits,
    iou,
    locate,
    majority,
    most_relevant,
    overall,
    segment,
)
from gsfields.files import to_json

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "lerf_langsplat.json"
seeds = st.integers(0, 2**31 - 1)
sides = st.integers(1, 24)
protocols = st.builds(
    Protocol,
    kernel=st.sampled_from([1, 2, 5, 10, 29, 30, 70]),
    threshold=st.sampled_from([0.0, 0.4, 0.5]),
    window=st.sampled_from([1, 3, 7]),
    borders=st.sampled_from(["reflected", "ignored"]),
)


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip("../shared/golden/lerf_langsplat.json is not present")
    return json.loads(GOLDEN.read_text())


def random_maps(seed, *shape):
    """Smooth-ish and in steps of 1/256, so that there are ties, and sums are exact."""
    rng = np.random.default_rng(seed)
    return np.round(rng.uniform(0.1, 0.9, shape) ** 2 * 256).astype(np.float32) / 256


def truth_of(mask, boxes=(), prompt="mug"):
    return QueryTruth(
        prompt, torch.as_tensor(np.asarray(mask, bool)), torch.tensor(boxes).reshape(-1, 4).float()
    )


# ------------------------------------------------------------------------------------------ the released code


def stream(golden):
    """(maps [2 prompts, 3 levels, H, W], truths) of the case that is given by formulae."""
    case = golden["stream"]
    y, x = np.mgrid[: case["H"], : case["W"]]
    parameters = case["valid_map_params[level,prompt]=(cy,cx,s,a,b)"]
    maps = np.empty((2, 3, case["H"], case["W"]), np.float32)
    for key, (cy, cx, s, a, b) in parameters.items():
        level, prompt = map(int, key.split(","))
        bump = b + a * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * s**2))
        maps[prompt, level] = np.round(bump + 0.03 * np.sin(0.7 * x + 1.3 * y), 4)
    for key, value in case["valid_map_check"].items():
        level, prompt, row, column = map(int, key.split(","))
        assert maps[prompt, level, row, column] == pytest.approx(value, abs=1e-6)
    masks = [(y - 64) ** 2 + (x - 86) ** 2 < 400, (y >= 66) & (y < 92) & (x >= 10) & (x < 40)]
    assert [int(mask.sum()) for mask in masks] == case["gt_area"]
    truths = [truth_of(m, b, p) for m, b, p in zip(masks, case["bboxes_xyxy"], case["prompts"])]
    return torch.from_numpy(maps), truths


@pytest.mark.parametrize("threshold", [0.4, 0.5])
def test_golden_segmentation_and_localisation(golden, threshold):
    maps, truths = stream(golden)
    expected = golden["stream"]["result"][f"thresh_{threshold}"]
    scores = OpenVocabScores(Protocol(threshold=threshold))
    for prompt, truth in enumerate(truths):
        row = scores.add("frame", maps[prompt], truth)
        mask, level = segment(maps[prompt], scores.protocol)
        assert iou(mask, truth.mask) == row.iou == pytest.approx(expected["iou"][prompt], abs=1e-6)
        assert level == row.level == expected["level"][prompt]
        points, at = locate(maps[prompt], scores.protocol)
        assert (hits(points, truth), at) == (row.hit, row.hit_level)
    assert sum(row.hit for row in scores.rows) == golden["stream"]["localization_hits"]
    assert len(scores.rows) == golden["stream"]["n_labels"]
    assert scores.localisation() == 1
    assert scores.miou() == pytest.approx(np.mean(expected["iou"]), abs=1e-6)


def test_golden_blur(golden):
    maps, _ = stream(golden)
    case = golden["stream"]
    for prompt in (0, 1):
        blur = blurred(maps[prompt])
        for level in range(3):
            assert blur[level].max() == pytest.approx(
                case["filter2D_max[level][prompt]"][level][prompt], abs=1e-6
            )
            points, _ = locate(maps[prompt, level : level + 1])
            y, x = case["filter2D_30x30_argmax_yx[level][prompt]"][level][prompt]
            assert points.tolist() == [[x, y]]
    for key, value in case["filter2D_corner_values[level0][prompt0]"].items():
        row, column = map(int, key.split(","))
        assert blurred(maps[0])[0, row, column] == pytest.approx(value, abs=1e-6)


def test_golden_majority(golden):
    case = golden["smooth"]
    assert torch.equal(majority(torch.tensor(case["in"]) == 1), torch.tensor(case["out"]) == 1)


# -------------------------------------------------------------------------------------- the pipeline as loops


def blurred_by_loops(values, protocol):
    """float32 [H, W]. np.pad mirrors as often as it takes, too."""
    height, width = values.shape
    k, before = protocol.kernel, protocol.kernel // 2
    out = np.empty(values.shape)
    if protocol.borders == "ignored":
        for y in range(height):
            for x in range(width):
                rows = slice(max(y - before, 0), y - before + k)
                out[y, x] = values[rows, max(x - before, 0) : x - before + k].astype(np.float64).mean()
        return out.astype(np.float32)
    padded = np.pad(values.astype(np.float64), (before, k - 1 - before), mode="reflect")
    for y in range(height):
        for x in range(width):
            out[y, x] = padded[y : y + k, x : x + k].mean()
    return out.astype(np.float32)


def majority_by_loops(mask, protocol):
    height, width = mask.shape
    half = protocol.window // 2
    last = 1 if protocol.borders == "reflected" else 0
    out = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            rows = slice(max(0, y - half), max(0, min(y + half + 1, height - last)))
            columns = slice(max(0, x - half), max(0, min(x + half + 1, width - last)))
            square = mask[rows, columns]
            out[y, x] = square.sum() > (~square).sum()
    return out


def scores_by_loops(maps, protocol):
    """(mask, level, points, level)"""
    blurs = [blurred_by_loops(level, protocol) for level in maps]
    blends = [np.float32(0.5) * (blur + level) for blur, level in zip(blurs, maps)]
    level = int(np.argmax([blend.max() for blend in blends]))
    x = blends[level] - blends[level].min()
    x = x / (x.max() + np.float32(1e-9))
    mask = np.clip(x * np.float32(2) - np.float32(1), 0, 1) > np.float32(protocol.threshold)
    at = int(np.argmax([blur.max() for blur in blurs]))
    points = {(int(x), int(y)) for y, x in np.argwhere(blurs[at] == blurs[at].max())}
    return majority_by_loops(mask, protocol), level, points, at


@settings(deadline=None, max_examples=80)
@given(seeds, st.integers(1, 3), sides, sides, protocols)
def test_is_what_the_loops_say(seed, levels, height, width, protocol):
    maps = random_maps(seed, levels, height, width)
    mask, level, points, at = scores_by_loops(maps, protocol)
    given_maps = torch.from_numpy(maps)
    got, got_level = segment(given_maps, protocol)
    assert got.dtype == torch.bool
    assert got_level == level
    assert torch.equal(got, torch.from_numpy(mask))
    got_points, got_at = locate(given_maps, protocol)
    assert got_points.dtype == torch.int64
    assert got_at == at
    assert {tuple(point) for point in got_points.tolist()} == points


@settings(deadline=None, max_examples=60)
@given(seeds, st.sampled_from([0.2, 0.5, 0.8]), sides, sides, protocols)
def test_majority_is_what_the_loops_say(seed, share, height, width, protocol):
    mask = np.random.default_rng(seed).random((height, width)) < share
    got = majority(torch.from_numpy(mask), protocol)
    assert torch.equal(got, torch.from_numpy(majority_by_loops(mask, protocol)))


@pytest.mark.parametrize("window", [127, 129, 401])
def test_majority_of_large_windows(window):
    """Counts must not overflow."""
    ones = torch.ones(450, 430, dtype=torch.bool)
    assert majority(ones, Protocol(window=window)).all()
    assert not majority(~ones, Protocol(window=window)).any()


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2, 70), st.integers(2, 70), st.sampled_from([2, 7, 10, 29, 30]))
def test_blur_is_opencv_s(seed, height, width, kernel):
    cv2 = pytest.importorskip("cv2", reason="compares with OpenCV")
    values = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    expected = cv2.filter2D(values, -1, np.ones((kernel, kernel)) / kernel**2)
    got = blurred(torch.from_numpy(values)[None], Protocol(kernel=kernel))[0]
    torch.testing.assert_close(got, torch.from_numpy(expected), atol=2e-6, rtol=0)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 40), st.integers(1, 40))
def test_the_second_version_is_an_average_pool(seed, height, width):
    values = torch.from_numpy(np.random.default_rng(seed).random((1, height, width)))

    def pooled(x, size):
        return torch.nn.functional.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)

    torch.testing.assert_close(blurred(values, LANGSPLAT_V2), pooled(values, 29).float(), atol=1e-6, rtol=0)
    mask = values > 0.5
    assert torch.equal(majority(mask[0], LANGSPLAT_V2), pooled(mask.double(), 7)[0] > 0.5)


def test_protocols_differ_at_the_border_only_in_the_majority():
    """The released window ends a row and a column early; ones at the end of the image are lost there."""
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[:, -4:] = True
    assert majority(mask, LANGSPLAT_V2)[10].tolist() == 16 * [False] + 4 * [True]
    assert majority(mask, LANGSPLAT)[10].tolist() == 17 * [False] + 3 * [True]  # at 16 it is 3 of 6: a tie
    lone = torch.zeros(9, 9, dtype=torch.bool)
    lone[-1], lone[:, -1] = True, True
    assert not majority(lone, Protocol(window=1)).any()
    assert torch.equal(majority(lone, Protocol(window=1, borders="ignored")), lone)


# ------------------------------------------------------------------------------------------------- odd inputs


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 1, width=32), st.integers(1, 40), st.integers(1, 40), protocols)
def test_constant_maps(value, height, width, protocol):
    """Nothing is segmented, and everything is the greatest."""
    maps = torch.full((2, height, width), value)
    mask, level = segment(maps, protocol)
    assert (int(mask.sum()), level) == (0, 0)
    points, level = locate(maps, protocol)
    assert (len(points), level) == (height * width, 0)
    row = OpenVocabScores(protocol).add("f", maps, truth_of(np.zeros((height, width)), [[0, 0, 0, 0]]))
    assert (row.iou, row.hit) == (0, True)


def test_plateaus_are_candidates_together():
    """Two equal blobs far apart point to two places, though their sums are not those of the same numbers."""
    blob = random_maps(3, 11, 13) / 3
    maps = torch.zeros(1, 90, 140)
    maps[0, 20:31, 20:33] = maps[0, 50:61, 90:103] = torch.from_numpy(blob)
    points = {tuple(p) for p in locate(maps, Protocol(kernel=5))[0].tolist()}
    assert len(points) % 2 == 0
    assert {(x + 70, y + 30) for x, y in points if x < 60} == {(x, y) for x, y in points if x > 60}


def test_levels_can_differ_and_follow_their_maps():
    """A needle raises the blend most, a broad bump the blur: segmentation and localisation part."""
    y, x = np.mgrid[:80, :100]
    needle = np.where((y == 10) & (x == 10), 1.0, 0.1)
    broad = 0.1 + 0.3 * np.exp(-((y - 50) ** 2 + (x - 60) ** 2) / 800)
    maps = torch.tensor(np.stack((needle, broad)))
    assert segment(maps)[1] == 0
    points, level = locate(maps)
    assert level == 1
    for flipped in (maps.flip(0), maps.flip(0).float()):
        assert segment(flipped)[1] == 1
        assert locate(flipped)[1] == 0
        assert locate(flipped)[0].tolist() == points.tolist()
        assert torch.equal(segment(flipped)[0], segment(maps)[0])


def test_maps_are_left_alone():
    maps = torch.from_numpy(random_maps(0, 2, 20, 30)).requires_grad_()
    before = maps.detach().clone()
    assert not segment(maps)[0].requires_grad
    locate(maps)
    assert torch.equal(maps.detach(), before)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (torch.zeros(4, 5), r"maps must be floating point \[L, H, W\].* \[4, 5\]"),
        (torch.zeros(0, 4, 5), r"none of these 0, but are torch.float32 \[0, 4, 5\]"),
        (torch.zeros(1, 0, 5), r"\[1, 0, 5\]"),
        (torch.zeros(1, 4, 5).int(), "but are torch.int32"),
        (torch.full((1, 4, 5), math.nan), "maps must be finite"),
        (torch.full((1, 4, 5), math.inf), "maps must be finite"),
    ],
)
def test_bad_maps(maps, message):
    for function in (segment, locate, blurred, most_relevant):
        with pytest.raises(ValueError, match=message):
            function(maps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": 0}, "kernel must be at least one pixel, but is 0"),
        ({"window": 6}, "window must be an odd number of pixels, but is 6"),
        ({"threshold": 1.0}, r"threshold must lie in \[0, 1\), but is 1.0"),
        ({"threshold": math.nan}, "threshold must lie"),
        ({"borders": "zero"}, "borders must be reflected or ignored, but are 'zero'"),
    ],
)
def test_bad_protocols(settings, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**settings)


# ----------------------------------------------------------------------------------------------------- scores


def test_iou():
    a, b = torch.zeros(2, 4, 5, dtype=torch.bool)
    assert iou(a, b) == 0  # of nothing with nothing
    a[1:3, 1:4] = True
    assert (iou(a, b), iou(a, a)) == (0, 1)
    b[2, 2:] = True
    assert iou(a, b) == iou(b, a) == 2 / 7
    with pytest.raises(ValueError, match=r"grid of the true mask, \[4, 4\], but are on \[4, 5\]"):
        iou(a, b[:, :4])
    with pytest.raises(ValueError, match="predicted must be bool"):
        iou(a.float(), b)


@pytest.mark.parametrize("box", [(2, 3, 6, 8), (6, 8, 2, 3), (2, 8, 6, 3)])
def test_the_sides_of_a_box_belong_to_it(box):
    truth = truth_of(np.zeros((20, 20)), [(15, 15, 16, 16), box])
    for point, inside in {(2, 3): True, (6, 8): True, (4, 5): True, (7, 8): False, (4, 2): False}.items():
        assert hits(torch.tensor([point]), truth) == inside
    assert hits(torch.tensor([[0, 0], [15, 16]]), truth)  # any point in any box
    assert not hits(torch.zeros(0, 2, dtype=torch.int64), truth)
    with pytest.raises(ValueError, match=r"points must be \[n, 2\], but are \[3\]"):
        hits(torch.zeros(3), truth)


def test_without_boxes_the_mask_is_the_target():
    mask = np.zeros((6, 8))
    mask[2, 5] = 1
    truth = truth_of(mask)
    assert hits(torch.tensor([[0, 0], [5, 2]]), truth)
    assert not hits(torch.tensor([[2, 5], [-3, 2], [50, 50]]), truth)
    assert not hits(torch.tensor([[5, 2]]), truth_of(np.zeros((6, 8))))


def bump(x, y, height=40, width=60):
    rows, columns = np.mgrid[:height, :width]
    return torch.tensor(np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 40), dtype=torch.float32)


def test_scores_by_kind():
    protocol = Protocol(kernel=5)
    kinds = {"mug": "simple", "lid of the mug": "partitive"}
    scores = OpenVocabScores(protocol, kinds)
    right = segment(bump(20, 10)[None], protocol)[0]
    scores.add("a", bump(20, 10), truth_of(right, [[15, 5, 25, 15]]))
    scores.add("b", bump(20, 10)[None], truth_of(~right, [[30, 5, 40, 15]]))
    scores.add("a", bump(40, 30), truth_of(right, [[35, 25, 45, 35]], "lid of the mug"))
    scores.add("a", bump(20, 10), truth_of(right, prompt="cup"))  # of no kind; the box is the mask
    assert [row.iou for row in scores.rows] == [1, 0, 0, 1]
    assert [row.hit for row in scores.rows] == [True, False, True, True]
    assert scores.scored_kinds() == ["partitive", "simple"]
    assert (scores.miou(), scores.localisation()) == (0.5, 0.75)
    assert (scores.miou("simple"), scores.localisation("simple")) == (0.5, 0.5)
    assert (scores.miou("partitive"), scores.localisation("partitive")) == (0, 1)
    with pytest.raises(ValueError, match="there are no prompts of kind compound to score"):
        scores.miou("compound")

    values = json.loads(to_json(scores.to_dict()))
    assert (values["miou"], values["pairs"]) == (0.5, 4)
    assert values["kinds"]["simple"] == {"miou": 0.5, "localisation": 0.5, "pairs": 2}
    assert values["protocol"] == {"kernel": 5, "threshold": 0.4, "window": 7, "borders": "reflected"}
    assert values["rows"][2]["prompt"] == "lid of the mug"
    lines = str(scores).splitlines()
    assert [line.split()[-3:] for line in lines[:2]] == [["IoU", "loc", "pairs"], ["50.0", "75.0", "4"]]
    assert [line.split("  ")[0] for line in lines[2:]] == [
        *("partitive", "simple"),
        *("'cup'", "'lid of the mug'", "'mug'"),
    ]

    other = OpenVocabScores(protocol)
    other.add("a", bump(20, 10), truth_of(right))
    assert overall({"one": scores, "two": other}) == {"miou": 0.75, "localisation": 0.875}


def test_bad_scores():
    scores = OpenVocabScores()
    with pytest.raises(ValueError, match="there are no prompts to score"):
        scores.miou()
    with pytest.raises(ValueError, match="there are no scenes to average"):
        overall({})
    with pytest.raises(ValueError, match="there are no prompts to score"):
        overall({"empty": scores})
    scores.add("a", bump(3, 4), truth_of(np.ones((40, 60))))
    with pytest.raises(ValueError, match="frame a already has a score of 'mug'"):
        scores.add("a", bump(3, 4), truth_of(np.ones((40, 60))))
    with pytest.raises(ValueError, match=r"maps must be on the grid of the true mask, \[40, 61\]"):
        scores.add("b", bump(3, 4), truth_of(np.ones((40, 61))))
    assert len(scores.rows) == 1

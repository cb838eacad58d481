"""UDOS scores: the rule of the benchmark's evaluator, its files, and the comparison of 2D and 3D masks."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gsfields.data.motion_masks import write_mask
from gsfields.evaluate.udos import (
    Annotations,
    average_precision,
    benchmark_means,
    best_iou,
    evaluate_masks,
    evaluate_motion_masks,
    evaluate_run_folder,
    frame_ap,
    iou,
    table,
)

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "udos_ap.json"


@pytest.fixture(scope="module")
def golden() -> dict:
    if not GOLDEN.is_file():
        pytest.skip("../shared/golden/udos_ap.json is not present")
    return json.loads(GOLDEN.read_text())


def write_annotation(path: Path, labels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, dtype=np.uint8)).save(path)


def naive_ap(labels, scores) -> float:
    """The definition, threshold by threshold."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        hits = (labels & chosen).sum()
        area += (hits / labels.sum() - recall) * hits / chosen.sum()
        recall = hits / labels.sum()
    return 100 * area


pixels = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])), min_size=1)


@settings(deadline=None)
@given(pixels)
def test_average_precision_by_its_definition(pairs):
    labels, scores = (np.array(column) for column in zip(*pairs))
    ap = average_precision(labels, scores)
    if not labels.any():
        assert math.isnan(ap)
        return
    assert ap == pytest.approx(naive_ap(labels, scores), abs=1e-9)
    assert average_precision(labels, scores**3 - 7) == pytest.approx(ap, abs=1e-9)  # only the ranking counts
    assert average_precision(labels, 0 * scores) == pytest.approx(100 * labels.mean())
    assert average_precision(labels, labels) == pytest.approx(100)
    value, threshold = best_iou(labels, scores)
    assert value == pytest.approx(max(iou(labels, scores, t) for t in {*scores, 0.5}), abs=1e-12)
    assert iou(labels, scores, threshold) == value
    chosen = scores >= 0.25
    assert iou(labels, scores, 0.25) == pytest.approx((labels & chosen).sum() / (labels | chosen).sum())


def test_bad_scores():
    with pytest.raises(ValueError, match=r"one shape, but are \[2\] and \[3\]"):
        average_precision([1, 0], [1, 2, 3])
    with pytest.raises(ValueError, match="nan"):
        average_precision([1, 0], [1, math.nan])
    assert math.isnan(iou(np.zeros(3), np.zeros(3))) and math.isnan(best_iou(np.zeros(0), np.zeros(0))[0])


def test_labels_of_an_annotation():
    scores = np.array([[0.9, 0.8, 0.1, 0.7]])
    assert frame_ap(np.array([[0, 2, 1, 3]]), scores) == pytest.approx(
        naive_ap([False, True, True], [0.9, 0.1, 0.7])
    )
    for other in (0.0, 1.0):  # at an ambiguous pixel any score will do
        assert frame_ap(np.array([[0, 2, 1, 3]]), np.array([[0.9, other, 0.1, 0.7]])) == pytest.approx(
            frame_ap(np.array([[0, 2, 1, 3]]), scores)
        )
    assert frame_ap(np.array([[0, 255, 255, 0]]), scores) == frame_ap(np.array([[0, 1, 1, 0]]), scores)
    softened = np.array([[90, 255, 130, 2]])  # the border of a mask that was resized
    assert frame_ap(softened, scores) == frame_ap(np.array([[0, 1, 1, 0]]), scores)
    assert frame_ap(np.array([[0, 2, 2, 0]]), scores) is None
    with pytest.raises(ValueError, match="labels 0 to 3, or 0 and 255, but this one 7"):
        frame_ap(np.array([[0, 7]]), scores)
    with pytest.raises(ValueError, match=r"the mask is \[1, 4\], but its annotation \[2, 2\]"):
        frame_ap(np.array([[0, 1], [1, 0]]), scores)


def test_the_golden_numbers(golden, tmp_path):
    for case in golden["ap_cases"]:
        assert average_precision(case["y"], case["score"]) == pytest.approx(case["AP_percent"], abs=1e-5)
    keys = ("gt_dynamic_png_div255", "gt_semistatic_png", "gt_dynamic_semistatic_png")
    for motion, key in zip(("dynamic", "semistatic", "dynamic_semistatic"), keys):
        for frame, labels in zip(golden["frames"], golden[key]):
            scale = 255 if motion == "dynamic" else 1
            path = tmp_path / f"annotations/test_{motion}/P01_01" / Path(frame).with_suffix(".png")
            write_annotation(path, scale * np.array(labels))
    (tmp_path / "split").mkdir()
    split = {"P01_01": {"within_action": golden["frames"], "outside_action": ["frame_0000000099.jpg"]}}
    (tmp_path / "split/test.json").write_text(json.dumps(split))
    annotations = Annotations.open(tmp_path)
    stems = [Path(frame).stem for frame in golden["frames"]]
    assert annotations.video == "P01_01" and annotations.stems() == stems
    # in hundredths, as they were listed: sums are exact and ties stay ties
    actor = {stem: np.rint(100 * np.array(mask)) for stem, mask in zip(stems, golden["mask_pers"])}
    transient = {stem: np.rint(100 * np.array(mask)) for stem, mask in zip(stems, golden["mask_tran"])}
    layered = evaluate_masks(annotations, actor.get, transient.get)
    single = evaluate_masks(annotations, lambda stem: actor[stem] + transient[stem])
    for scores, model in ((layered, "neuraldiff"), (single, "nerf-w")):
        for column in ("dynamic", "semistatic", "dynamic_semistatic"):
            expected = golden["result"][f"{column}|{model}"]
            assert scores.mean(column) == pytest.approx(expected["video_mAP"], abs=1e-5)
            frames = {f"{stem}.jpg": ap for stem, ap in scores.per_frame[column].items()}
            assert frames == pytest.approx(expected["per_frame"], abs=1e-5)


DYNAMIC = np.array([[0, 1, 1, 0], [0, 1, 0, 0]])
SEMISTATIC = np.array([[1, 0, 0, 0], [2, 0, 0, 1]])
BOTH = np.array([[1, 3, 1, 0], [2, 1, 0, 1]])


@pytest.fixture
def data(tmp_path) -> Path:
    """Three annotated frames in the plain layout; nothing moves in the third."""
    for motion, labels in (("dynamic", DYNAMIC), ("semistatic", SEMISTATIC), ("dynamic_semistatic", BOTH)):
        for stem, scale in (("a", 1), ("b", 1), ("c", 0)):
            write_annotation(tmp_path / "data/annotations" / motion / f"{stem}.png", scale * labels)
    return tmp_path / "data"


def test_a_run_and_the_2d_masks(data, tmp_path):
    run = tmp_path / "run/masks"
    for layer, labels in (("dynamic", DYNAMIC), ("semistatic", SEMISTATIC == 1)):
        (run / layer).mkdir(parents=True)
        for stem in "abc":
            write_mask(run / layer / f"{stem}.png", 0.4 * labels + 0.3 * (stem == "c"))
    scores = evaluate_run_folder(run, data)
    assert scores.mean("dynamic") == scores.mean("dynamic_semistatic") == scores.mean("semistatic_own") == 100
    # the benchmark's rule: what moves ranks as high as what rests, 2 of 5
    assert scores.mean("semistatic") == pytest.approx(100 * 2 / 5)
    assert set(scores.per_frame["dynamic"]) == {"a", "b"} and scores.frames_above(99) == {"a", "b"}
    # c, where nothing moves, has false alarms of .7 where a and b have hits of .4
    assert scores.iou == 0 and scores.best_iou == pytest.approx(6 / 9)
    assert scores.best_threshold == pytest.approx(0.4, abs=1e-4)
    masks = tmp_path / "motion_masks"
    masks.mkdir()
    write_mask(masks / "a.png", np.repeat(np.repeat(DYNAMIC, 3, 0), 3, 1), bits=8)  # three times the size
    flat = evaluate_motion_masks(masks, data)  # b has no mask: nothing was found
    assert flat.per_frame["dynamic"] == pytest.approx({"a": 100, "b": 100 * 3 / 8})
    assert flat.frames_above(50) == {"a"} and scores.mean("dynamic", flat.frames_above(50)) == 100
    assert flat.iou == pytest.approx(3 / 6) and "semistatic_own" not in flat.per_frame
    text = table({"2D masks": flat, "3D masks": scores})
    header, *rows = (line.split("  ") for line in text.splitlines())
    assert header[-1] == "frames" and rows[0][0] == "2D masks" and rows[0][-1].strip() == "2"
    assert "100.0" in rows[1] and len({len(line) for line in text.splitlines()}) == 1
    assert json.loads(json.dumps(flat.as_dict()))["ap"]["dynamic"] == pytest.approx(68.75)


def test_masks_that_are_missing_or_of_another_size(data, tmp_path):
    run = tmp_path / "run/masks"
    (run / "dynamic").mkdir(parents=True)
    write_mask(run / "dynamic/a.png", DYNAMIC)
    with pytest.raises(FileNotFoundError, match=r"no dynamic mask b\.png, but frame b is annotated"):
        evaluate_run_folder(run, data)
    zero = evaluate_run_folder(run, data, missing="zero")
    assert zero.mean("dynamic") == pytest.approx((100 + 100 * 3 / 8) / 2)
    write_mask(run / "dynamic/b.png", DYNAMIC[:1])
    with pytest.raises(ValueError, match=r"dynamic mask b\.png is \[1, 4\], but its annotation \[2, 4\]"):
        evaluate_run_folder(run, data)
    with pytest.raises(FileNotFoundError, match=r"folder of masks .* does not exist"):
        evaluate_run_folder(tmp_path / "nowhere", data)
    with pytest.raises(ValueError, match="missing must be error or zero, but is 'skip'"):
        evaluate_run_folder(run, data, missing="skip")


def test_annotations_that_are_not_there(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no annotations"):
        Annotations.open(tmp_path / "run")
    (data / "annotations/dynamic").rename(
        data / "annotations/test_dynamic"
    )  # the benchmark's, but no video in it
    for motion in ("semistatic", "dynamic_semistatic"):
        (data / "annotations" / motion).rename(data / "annotations" / f"val_{motion}")
    with pytest.raises(ValueError, match="which of the 0 videos"):
        Annotations.open(data)
    for video in ("P01_01", "P02_02"):
        write_annotation(data / f"annotations/test_dynamic/{video}/frame_1.png", DYNAMIC)
    with pytest.raises(ValueError, match="which of the 2 videos"):
        Annotations.open(data)
    assert Annotations.open(data, video="P02_02").stems() == ["frame_1"]  # without a list: every file
    (data / "P01_01.json").touch()
    assert Annotations.open(data).video == "P01_01"
    (data / "split").mkdir()
    (data / "split/test.json").write_text(
        json.dumps({"P01_01": {"within_action": ["frame_1.jpg", "frame_2.jpg"]}})
    )
    with pytest.raises(FileNotFoundError, match=r"frame_2\.png is missing, though split/test\.json lists it"):
        Annotations.open(data)
    with pytest.raises(ValueError, match="does not list video P02_02"):
        Annotations.open(data, video="P02_02")


def test_annotations_named_by_visor(data):
    names = {data.name: {f"{data.name}_frame_{i}.jpg": f"frame_{i - 1}.jpg" for i in (1, 2)}}
    (data / "frame_mapping_train_val.json").write_text(json.dumps(names))
    write_annotation(data / f"annotations/dynamic/{data.name}_frame_2.png", DYNAMIC)
    assert Annotations.open(data).motions("frame_1") == ["dynamic"]
    assert Annotations.open(data).size("frame_1") == (4, 2)
    (data / "masks").mkdir()
    write_mask(data / f"masks/{data.name}_frame_2.png", DYNAMIC)
    assert evaluate_motion_masks(data / "masks", data).per_frame["dynamic"]["frame_1"] == 100


def test_a_video_without_a_scored_frame_counts_as_0(data):
    annotations = Annotations.open(data)
    good = evaluate_masks(annotations, lambda _: DYNAMIC.astype(float))
    only_c = Annotations("other", {m: {"c": f["c"]} for m, f in annotations.files.items()})
    empty = evaluate_masks(only_c, lambda _: DYNAMIC.astype(float))
    assert math.isnan(empty.mean("dynamic")) and "-" in table({"": empty})
    assert benchmark_means([good, empty])["dynamic"] == pytest.approx(50)
    with pytest.raises(ValueError, match="no videos"):
        benchmark_means([])

"""Panoptic Lifting's layout: photos, cameras, splits, labels, and a pickle that must not run."""

import json
import os
import pickle
from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.data import load_dataset
from gsfields.data.panoptic_lifting import read_plain_pickle
from gsfields.data.segments import open_segments, open_truth

from .writers import FOCAL, HEIGHT, WIDTH, make_rig

STEMS = [f"0_{i:04d}" for i in range(6)]
TRAIN, TEST = STEMS[:3], STEMS[4:]
THINGS = [4, 5, 6, 14, 15, 16, 17, 18, 20]
STUFF = [i for i in range(22) if i not in THINGS]
IDS = np.kron(np.arange(6).reshape(2, 3), np.ones((HEIGHT // 2, WIDTH // 3))).astype(np.int32)


@pytest.fixture
def rig():
    rig = make_rig(len(STEMS))
    rig.images = [
        np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8) for i in range(len(STEMS))
    ]  # as jpeg keeps it
    return rig


def write(root, rig, pickled=None):
    folders = ("color", "pose", "intrinsic", "m2f_instance", "m2f_semantics", "m2f_probabilities", "instance")
    for name in (*folders, "rs_instance", "rs_semantics"):
        (root / name).mkdir(exist_ok=True)
    for i, stem in enumerate(STEMS):
        Image.fromarray(rig.images[i]).save(root / f"color/{stem}.jpg", quality=95)
        np.savetxt(root / f"pose/{stem}.txt", rig.c2w[i])
        Image.fromarray((IDS * 1000).astype(np.uint16)).save(root / f"m2f_instance/{stem}.png")
        Image.fromarray(np.where(IDS > 2, 5, 1).astype(np.uint16)).save(root / f"m2f_semantics/{stem}.png")
        Image.fromarray(IDS.astype(np.uint8)).save(root / f"rs_instance/{stem}.png")
        Image.fromarray(IDS.astype(np.uint8)).save(root / f"rs_semantics/{stem}.png")
        Image.fromarray(255 - IDS.astype(np.uint8)).save(root / f"instance/{stem}.png")  # raw, not folded
        confidence = np.full((HEIGHT, WIDTH), 1 + 1e-6, np.float32)
        np.savez_compressed(
            root / f"m2f_probabilities/{stem}.npz",
            probability=np.zeros((HEIGHT, WIDTH, 22), np.float32),
            confidence=confidence,
            confidence_notta=0 * confidence,
        )
    intrinsic = np.diag([FOCAL, FOCAL + 1, 1.0, 1.0])
    intrinsic[:2, 2] = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    np.savetxt(root / "intrinsic/intrinsic_color.txt", intrinsic)
    (root / "splits.json").write_text(json.dumps({"train": TRAIN, "test": TEST}))
    classes = {"num_semantic_classes": 22, "fg_classes": THINGS, "bg_classes": STUFF}
    (root / "segmentation_data.pkl").write_bytes(pickle.dumps(classes if pickled is None else pickled))


def test_photos_cameras_and_splits(tmp_path, rig):
    write(tmp_path, rig)
    (tmp_path / "invalid").mkdir()
    Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(tmp_path / "invalid/0_0001.jpg")
    dataset = load_dataset(tmp_path)
    assert [view.stem for view in dataset.train_views()] == TRAIN
    assert [view.stem for view in dataset.test_views()] == TEST
    for view in dataset.views:
        np.testing.assert_allclose(view.camera.viewmat, rig.viewmats[STEMS.index(view.stem)], atol=1e-5)
        # the principal point of the file is that of pixels with whole coordinates: here the very middle
        expected = [[FOCAL, 0, WIDTH / 2], [0, FOCAL + 1, HEIGHT / 2], [0, 0, 1]]
        np.testing.assert_allclose(view.camera.K, expected, rtol=1e-6)
        np.testing.assert_allclose(view.image(), rig.images[STEMS.index(view.stem)] / 255, atol=0.01)
        assert (view.mask() is None) == (view.stem != "0_0001")
    assert not dataset.views[1].mask().any()


def test_without_splits_and_where_track_was_lost(tmp_path, rig):
    write(tmp_path, rig)
    (tmp_path / "splits.json").unlink()
    (tmp_path / f"pose/{STEMS[2]}.txt").write_text("\n".join(["-inf -inf -inf -inf"] * 4))
    dataset = load_dataset(tmp_path, split_every=3)
    kept = [stem for stem in STEMS if stem != STEMS[2]]
    assert [view.stem for view in dataset.views] == kept and dataset.test == [0, 3]
    (tmp_path / "splits.json").write_text(json.dumps({"train": TRAIN, "val": TEST[:1]}))
    assert [view.stem for view in load_dataset(tmp_path).test_views()] == TEST[:1]


def test_labels(tmp_path, rig):
    write(tmp_path, rig)
    found, true = open_segments(tmp_path), open_truth(tmp_path)
    assert found.classes == true.classes
    assert list(found.classes.things) == THINGS
    assert list(found.classes.stuff) == STUFF[1:]  # 0 is void
    assert found.classes.names[1] == "wall" and found.classes.names[20] == "bag"
    a, b = found.read(STEMS[1]), true.read(STEMS[1])
    np.testing.assert_array_equal(a.ids, IDS * 1000)
    np.testing.assert_array_equal(a.semantics, np.where(IDS > 2, 5, 1))
    assert (a.confidence == 1).all() and b.confidence is None
    np.testing.assert_array_equal(b.ids, IDS)  # not those of instance/
    np.testing.assert_array_equal(found.of(load_dataset(tmp_path).views[0]).ids, IDS * 1000)
    (tmp_path / "segmentation_data.pkl").unlink()
    assert open_segments(tmp_path).classes == found.classes


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_as_the_exporters_write_them(tmp_path, rig, protocol):
    """Numbers of numpy as classes, tensors as keys, arrays of boxes, tables with defaults."""
    things, stuff = [np.int64(2), np.int8(7)], np.array([0, 1])
    boxes = {0: {"position": np.zeros(3), "extent": np.ones(3, np.float32), "class": np.uint8(2)}}
    plain = {
        "fg_classes": things,
        "bg_classes": stuff,
        "instance_to_semantic": {torch.tensor(3): torch.tensor(2)},
        "m2f_instance_to_semantic": defaultdict(int, {1: 2}),
        "gt_bboxes": boxes,
        "more": {1.5, None, True, "text", b"bytes", (1, frozenset([2]))},
    }
    write(tmp_path, rig)
    path = tmp_path / "segmentation_data.pkl"
    path.write_bytes(pickle.dumps(plain, protocol=protocol))
    classes = open_segments(tmp_path).classes
    assert (classes.things, classes.stuff, dict(classes.names)) == ((2, 7), (1,), {})
    read = read_plain_pickle(path)
    assert read["m2f_instance_to_semantic"] == {1: 2} and read["more"] == plain["more"]
    assert np.array_equal(read["gt_bboxes"][0]["extent"], np.ones(3))
    assert not any(isinstance(key, torch.Tensor) for key in read["instance_to_semantic"])


class Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_a_pickle_that_would_run_something_is_refused(tmp_path, rig):
    ran = tmp_path / "ran"
    for evil in (
        Runs(os.mkdir, str(ran)),
        Runs(eval, f"__import__('os').mkdir({str(ran)!r})"),
        Runs(np.load, "x"),
    ):
        write(tmp_path, rig, {"fg_classes": THINGS, "bg_classes": STUFF, "x": evil})
        with pytest.raises(
            ValueError, match=r"segmentation_data.pkl is not a pickle of plain .* \(it asks for "
        ):
            open_segments(tmp_path)
        assert not ran.exists()


def test_files_that_are_wrong(tmp_path, rig):
    write(tmp_path, rig)
    for name, text, message in (
        ("splits.json", "[]", "must list the stems of train and test"),
        ("intrinsic/intrinsic_color.txt", "1 2\n3 x\n", "must be a matrix of 4 x 4 numbers"),
        (f"pose/{STEMS[0]}.txt", "1 2 3\n", "must be a matrix of 4 x 4 numbers"),
        (f"pose/{STEMS[0]}.txt", "2 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "view 0_0000 of .* is not rigid"),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            load_dataset(tmp_path)
        (tmp_path / name).write_text(before)
    (tmp_path / "splits.json").write_text(json.dumps({"train": [*TRAIN, "9"], "test": []}))
    with pytest.raises(FileNotFoundError, match="lists 9, but color/ has no such photo"):
        load_dataset(tmp_path)
    for classes in ({"fg_classes": [1]}, {"fg_classes": [1], "bg_classes": ["a"]}, [1]):
        (tmp_path / "segmentation_data.pkl").write_bytes(pickle.dumps(classes))
        with pytest.raises(ValueError, match="must list the class ids fg_classes and bg_classes"):
            open_truth(tmp_path)
    (tmp_path / "segmentation_data.pkl").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is not a pickle of plain"):
        open_truth(tmp_path)

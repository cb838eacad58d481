"""Labels of a run's views, as the fit of instances takes them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.data.segments import open_segments, read_labels, write_ids
from gsfields.fit.labels import Labels
from gsfields.fit.scene import open_dataset
from tests.fit.tiny import write_scene
from tests.fit.tiny_room import TEST, TinyRoom, opened

ROOM = TinyRoom()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ROOM.write(tmp_path_factory.mktemp("room") / "data")


@pytest.fixture
def copy(data, tmp_path):
    return shutil.copytree(data, tmp_path / "data")


def semantics_of(folder, make):
    (folder / "semantics").mkdir()
    for i in range(ROOM.views):
        name = f"{ROOM.stem(i)}.png"
        write_ids(folder / "semantics" / name, make(read_labels(folder / "annotations" / "instances" / name)))


def test_segments_are_numbered_anew_in_each_view(data):
    _, _, labels = opened(ROOM, data)
    assert not set(labels.indices) & set(TEST) and len(labels.indices) == 8
    for index in labels.indices:
        found = labels.of(index)
        given = torch.from_numpy(read_labels(data / "segments" / f"{ROOM.stem(index)}.png")).flatten()
        assert found.ids.dtype == torch.int64 and found.ids.unique().tolist() == [0, 1, 2, 3]
        assert found.count == 3 and given.max() > 1000
        assert len(set(zip(found.ids.tolist(), given.tolist()))) == 4  # the same partition
        assert (found.ids[given == 0] == 0).all()
        assert torch.equal(found.columns, (given > 0).long())  # stuff 0, things 1
        assert found.confidence is None and found.known is None
    assert labels.classes == (0, 1) and labels.thing_columns == [1]


def test_an_image_full_of_segments_and_one_without(copy):
    ids = np.arange(24 * 32).reshape(24, 32) // 200 * 7 + 5
    write_ids(copy / "segments" / f"{ROOM.stem(1)}.png", ids)
    write_ids(copy / "segments" / f"{ROOM.stem(2)}.png", 0 * ids)
    _, _, labels = opened(ROOM, copy)
    assert labels.of(1).ids.unique().tolist() == [1, 2, 3, 4] and labels.of(1).count == 4
    assert labels.of(2).count == 0 and not labels.of(2).ids.any() and not labels.of(2).columns.any()


def test_classes_that_are_not_listed_are_unknown(copy):
    semantics_of(copy, lambda ids: np.array([3, 7, 9, 300])[ids])
    (copy / "classes.json").write_text(json.dumps({"things": [9, 7], "stuff": [200, 3]}))
    _, _, labels = opened(ROOM, copy)
    assert labels.classes == (200, 3, 9, 7) and labels.thing_columns == [2, 3]
    truth = torch.from_numpy(read_labels(copy / "annotations" / "instances" / f"{ROOM.stem(3)}.png")).long()
    assert torch.equal(labels.of(3).columns, torch.tensor([1, 3, 2, -1])[truth.flatten()])
    assert labels.of(3).count == 3  # a segment without a class is still one


def test_no_class_at_all_is_refused(copy):
    (copy / "classes.json").write_text(json.dumps({"things": [], "stuff": []}))
    with pytest.raises(ValueError, match=r"have neither things nor stuff: one class is needed$"):
        opened(ROOM, copy)


def test_confidences(copy):
    (copy / "confidences").mkdir()
    image = torch.rand(24, 32, generator=torch.Generator().manual_seed(0))
    Image.fromarray((image * 255).round().byte().numpy()).save(copy / "confidences" / f"{ROOM.stem(1)}.png")
    _, _, labels = opened(ROOM, copy)
    torch.testing.assert_close(labels.of(1).confidence.view(24, 32), image, rtol=0, atol=1 / 500)
    assert labels.of(2).confidence is None


def test_the_bound_on_memory_changes_nothing(data):
    dataset, _, labels = opened(ROOM, data)
    unkept = Labels(open_segments(data), dataset, dataset.train, limit_bytes=0)
    for index in (1, 2, 1):
        for a, b in zip((labels.of(index), labels.of(index)), (unkept.of(index),) * 2, strict=True):
            assert torch.equal(a.ids, b.ids) and torch.equal(a.columns, b.columns) and a.count == b.count


def test_views_without_segments_are_left_out(copy):
    for i in (2, 3):
        (copy / "segments" / f"{ROOM.stem(i)}.png").unlink()
    _, _, labels = opened(ROOM, copy)
    assert labels.indices == [1, 4, 6, 7, 8, 9]


def test_none_of_the_views_has_segments(copy):
    for i in range(ROOM.views):
        if i not in TEST:
            (copy / "segments" / f"{ROOM.stem(i)}.png").unlink()
    with pytest.raises(
        ValueError, match=r"none of the 8 training views has segments.* called photo_01\.png$"
    ):
        opened(ROOM, copy)


@pytest.mark.parametrize("nested", [True, False])
def test_photos_in_folders(tmp_path, nested):
    """Photos train/r_0.png and test/r_8.png; segments in folders likewise, or named by stem."""
    scene = write_scene(tmp_path / "scene")
    for name in [f"train/r_{i}" for i in range(8)]:
        path = scene / "segments" / (f"{name}.png" if nested else f"{name[6:]}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_ids(path, np.full((24, 24), int(name[-1])))
    config = ROOM.config(scene)
    dataset = open_dataset(replace(config.data, split_every=0))
    labels = Labels(open_segments(scene), dataset, range(len(dataset.views)))
    assert [dataset.views[i].name.startswith("train/") for i in labels.indices] == [True] * 8
    assert [labels.of(i).count for i in labels.indices] == [0] + [1] * 7  # r_0 is all 0


def test_nothing_is_known_beyond_the_photo(tmp_path):
    """Undone, the photo of a pincushion lens does not fill its frame: what is around it is no stuff."""
    room = TinyRoom(k1=0.8)
    dataset, _, labels = opened(room, room.write(tmp_path / "data"))
    beyond = dataset.views[1].mask().flatten() == 0
    assert 20 < beyond.sum() < 400
    found = labels.of(1)
    assert torch.equal(found.known, ~beyond)
    assert (found.columns[beyond] == -1).all() and (found.columns[~beyond] >= 0).all()
    assert not found.ids[beyond].any() and found.count == 3

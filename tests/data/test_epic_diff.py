"""EPIC-Diff's meta.json."""

import json

import numpy as np
import pytest
from PIL import Image

from gsfields.data import load_dataset

from .writers import FOCAL, GL, HEIGHT, WIDTH, make_rig

IDS = (5, 7, 9, 100, 101, 102, 240, 241, 242)
TRAIN, VAL, TEST = (5, 7, 100, 102, 240, 242), (9,), (101, 241)


@pytest.fixture
def rig():
    return make_rig(len(IDS))


def write(root, rig, **changes):
    (root / "frames").mkdir(exist_ok=True)
    for name, image in zip(rig.names, rig.images):
        Image.fromarray(image).save(root / "frames" / name)
    meta = {
        "ids_all": list(IDS),
        "ids_train": list(TRAIN),
        "ids_val": list(VAL),
        "ids_test": list(TEST),
        "images": {str(i): name for i, name in zip(IDS, rig.names)},
        "poses": {str(i): (c2w @ GL)[:3].tolist() for i, c2w in zip(IDS, rig.c2w)},
        "nears": {str(i): 0.5 + i for i in IDS},
        "fars": {str(i): 500.0 + i for i in IDS},
        "intrinsics": [[FOCAL, 0, WIDTH / 2], [0, FOCAL + 1, HEIGHT / 2], [0, 0, 1]],
    }
    (root / "meta.json").write_text(json.dumps(meta | changes))


def test_frames_split_and_bounds(tmp_path, rig):
    write(tmp_path, rig)
    dataset = load_dataset(tmp_path)
    assert [view.time for view in dataset.train_views()] == list(TRAIN)
    assert [view.time for view in dataset.test_views()] == list(TEST)
    for view in dataset.views:
        place = IDS.index(int(view.time))
        np.testing.assert_allclose(view.camera.viewmat, rig.viewmats[place], atol=1e-5)
        np.testing.assert_allclose(view.image(), rig.images[place] / 255, atol=1e-6)
        assert view.bounds == (0.5 + view.time, 500 + view.time) and view.stem == f"photo_{place:03d}"
        assert view.camera.K[0, 0] == FOCAL and view.camera.K[1, 1] == FOCAL + 1
    assert dataset.points is None and dataset.name == tmp_path.name
    everything = load_dataset(tmp_path / "meta.json", split_every=0)
    assert [view.time for view in everything.train_views()] == list(IDS) and not everything.test


def test_intrinsics_of_another_size(tmp_path, rig):
    write(tmp_path, rig, image_w=2 * WIDTH, image_h=2 * HEIGHT)
    camera = load_dataset(tmp_path).views[0].camera
    assert camera.width == WIDTH and camera.K[0, 0] == FOCAL / 2 and camera.K[0, 2] == WIDTH / 4


def test_files_that_are_wrong(tmp_path, rig):
    def refused(message, error=ValueError, **changes):
        write(tmp_path, rig, **changes)
        with pytest.raises(error, match=message):
            load_dataset(tmp_path)

    refused("images of .* has nothing for frame 8", ids_test=[8])
    refused("frame 5 .* must have 0 < near < far", nears={str(i): 1000 for i in IDS})
    refused("must be a matrix of 3 x 3", intrinsics=[1, 2])
    refused("pose of frame 5 .* is not rigid", poses={str(i): (2 * np.eye(4)[:3]).tolist() for i in IDS})
    refused("lists no frames to train on", ids_train=[])
    refused("none.png is missing", FileNotFoundError, images={str(i): "none.png" for i in IDS})
    write(tmp_path, rig)
    values = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({k: v for k, v in values.items() if k != "poses"}))
    with pytest.raises(ValueError, match="no known format"):
        load_dataset(tmp_path)

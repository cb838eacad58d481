"""The released layout of Messy Rooms: photos, cameras, split and labels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.data import load_dataset
from gsfields.data.segments import Classes, open_segments, open_truth

from .writers import GL, HEIGHT, WIDTH, make_rig, quaternion

FOCAL = (0.8, 1.3)  # normalised by width and height
COUNT = 12


@pytest.fixture
def rig():
    return make_rig(COUNT)


def write(root, rig, **changes):
    """Photos 0 to 11, numbered without leading zeros, so that name order is not theirs."""
    for name in ("color", "semantic", "instance", "detic_semantic", "detic_instance", "detic_probabilities"):
        (root / name).mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i, image in enumerate(rig.images):
        alpha = rng.integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)
        Image.fromarray(np.concatenate([image, alpha], axis=-1)).save(root / f"color/{i}.png")
        ids = rng.integers(0, 5, (HEIGHT, WIDTH))
        for kind in ("", "detic_"):
            np.save(root / f"{kind}instance/{i}.npy", ids + (3 * i if kind else 0) * (ids > 0))
            np.save(root / f"{kind}semantic/{i}.npy", (ids > 0).astype(np.int32))
        np.save(root / f"detic_probabilities/{i}.npy", np.full((HEIGHT, WIDTH), 0.25, np.float64))
    poses = [c2w @ GL for c2w in rig.c2w]
    camera = {
        "K": [[FOCAL[0], 0, -0.5], [0, -FOCAL[1], -0.5], [0, 0, -1]],
        "positions": [pose[:3, 3].tolist() for pose in poses],
        "quaternions": [quaternion(pose[:3, :3]).tolist() for pose in poses],
    }
    (root / "metadata.json").write_text(json.dumps({"camera": camera | changes}))


def test_cameras_photos_and_split(tmp_path, rig):
    write(tmp_path, rig)
    for path in (tmp_path, tmp_path / "metadata.json"):
        dataset = load_dataset(path)
        assert [view.stem for view in dataset.views] == [str(i) for i in range(COUNT)]
        assert dataset.train == list(range(9)) and dataset.test == [9, 10, 11]
    K = [[FOCAL[0] * WIDTH, 0, WIDTH / 2], [0, FOCAL[1] * HEIGHT, HEIGHT / 2], [0, 0, 1]]
    for i, view in enumerate(dataset.views):
        np.testing.assert_allclose(view.camera.viewmat, rig.viewmats[i], atol=1e-5)
        np.testing.assert_allclose(view.camera.K, K, rtol=1e-6)
        np.testing.assert_allclose(view.image(), rig.images[i] / 255, atol=1e-6)  # whatever their alpha
        assert view.mask() is None
    assert dataset.points is None and dataset.background is None and dataset.name == tmp_path.name
    small = load_dataset(tmp_path, width=WIDTH // 2).views[3].camera
    np.testing.assert_allclose(small.K[:2], np.array(K)[:2] / 2, rtol=1e-6)


def test_pixels_that_do_not_count(tmp_path, rig):
    write(tmp_path, rig)
    (tmp_path / "invalid").mkdir()
    invalid = np.zeros((HEIGHT, WIDTH), np.uint8)
    invalid[8:24, 16:32] = 255  # whole jpeg blocks: no ringing
    Image.fromarray(invalid).save(tmp_path / "invalid/4.jpg")
    views = load_dataset(tmp_path).views
    np.testing.assert_array_equal(views[4].mask(), invalid == 0)
    assert views[5].mask() is None


def test_labels(tmp_path, rig):
    write(tmp_path, rig)
    found, true = open_segments(tmp_path), open_truth(tmp_path)
    assert found.classes == true.classes == Classes(names={0: "background", 1: "object"})
    assert sorted(found.stems, key=int) == [str(i) for i in range(COUNT)]
    view = load_dataset(tmp_path).views[10]
    a, b = found.of(view), true.of(view)
    assert torch.equal(a.ids, b.ids + 30 * (b.ids > 0)) and torch.equal(b.semantics, (b.ids > 0).int())
    assert torch.equal(a.semantics, b.semantics) and b.confidence is None
    assert torch.equal(a.confidence, torch.where(b.ids > 0, 0.25, 1.0))  # the background counts in full
    given = open_segments(tmp_path / "detic_instance").read("10")
    assert all(torch.equal(x, y) for x, y in zip(a, given))
    oracle = open_segments(tmp_path / "instance")  # true labels, to fit to
    assert torch.equal(oracle.read("10").semantics, b.semantics) and oracle.classes == true.classes


def test_files_that_are_wrong(tmp_path, rig):
    def refused(message, error=ValueError, **changes):
        write(tmp_path, rig, **changes)
        with pytest.raises(error, match=message):
            load_dataset(tmp_path)

    refused(r"camera.K of .* must be 3 x 3 numbers", K=[[1, 2, 3]])
    refused(r"camera.K of .* must have no skew", K=[[1, 0.1, 0.5], [0, 1, 0.5], [0, 0, 1]])
    refused(r"camera.K of .*: fx must be positive", K=[[0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    refused(r"camera.positions of .* must be N x 3 numbers", positions=[[1, 2]] * COUNT)
    refused("has 1 positions and 12 quaternions, but .* has 12 photos", positions=[[1, 2, 3]])
    refused("view 0 of .* zero quaternion", quaternions=[[0, 0, 0, 0]] * COUNT)
    write(tmp_path, rig)
    (tmp_path / "color/1.png").rename(tmp_path / "color/one.png")
    with pytest.raises(ValueError, match="must be numbered"):
        load_dataset(tmp_path)
    for photo in (tmp_path / "color").iterdir():
        photo.unlink()
    with pytest.raises(FileNotFoundError, match="holds no photos"):
        load_dataset(tmp_path)

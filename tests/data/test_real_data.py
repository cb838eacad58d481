"""The loaders on photos and models that other programs made. Skipped where the data is not there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.data import load_dataset
from gsfields.data.colmap import read_model
from gsfields.data.lens import Intrinsics

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def scene(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"../shared/data/{name} is not present")
    return DATA / name


def test_lego():
    root = scene("lego")
    dataset = load_dataset(root, width=200)
    assert (len(dataset.train), len(dataset.test)) == (100, 25)
    assert dataset.background.tolist() == [1, 1, 1] and dataset.points is None
    view = dataset.test_views()[1]
    assert view.name == "test/r_8.png" and view.camera.width == view.camera.height == 200
    rgba = np.asarray(Image.open(root / "test/r_8.png"), dtype=np.float64) / 255
    over_white = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    expected = over_white.reshape(200, 2, 200, 2, 3).mean((1, 3))
    np.testing.assert_allclose(view.image(), expected, atol=0.5 / 255 + 1e-6)
    # all cameras stand on a sphere around the origin, which they see in the middle of their images
    for view in dataset.views:
        middle = view.camera.K @ view.camera.viewmat[:3, 3]
        assert torch.allclose(middle[:2] / middle[2], torch.tensor([100.0, 100.0]), atol=1e-2)
        assert middle[2] == pytest.approx(4.031, abs=1e-2)


def test_hand_video():
    dataset = load_dataset(scene("hand_video"))
    assert len(dataset.views) == 86 and dataset.test == list(range(0, 86, 8))
    times = [view.time for view in dataset.views]
    assert times == pytest.approx(np.linspace(0, 1, 86)) and dataset.views[0].image().shape == (384, 512, 3)
    assert dataset.views[0].bounds == pytest.approx((0.0024441, 1.0024441), abs=1e-6)


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation and translation that take the points `source` nearest to `target` (Umeyama 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    scale = (s * sign).sum() / (a**2).sum()
    return scale, rotation, target.mean(0) - scale * rotation @ source.mean(0)


def test_colmap_room_reprojects_to_the_known_error():
    root = scene("colmap_room")
    model = read_model(root / "sparse/0")
    views = {view.name: view for view in load_dataset(root).views}
    row = {int(point_id): i for i, point_id in enumerate(model.points.ids)}
    assert len(row) == 5740
    pinhole_errors, errors, ids = [], [], []
    for image in model.images.values():
        seen = image.point_ids >= 0
        points = model.points.positions[[row[int(i)] for i in image.point_ids[seen]]]
        camera = views[image.name].camera
        local = points @ camera.viewmat[:3, :3].double().numpy().T + camera.viewmat[:3, 3].double().numpy()
        assert (local[:, 2] > 0).all()
        pixels = local @ camera.K.double().numpy().T
        pixels = pixels[:, :2] / pixels[:, 2:]
        lens: Intrinsics = model.cameras[image.camera_id]
        ids.append(image.point_ids[seen])
        errors.append(np.linalg.norm(lens.distort(pixels) - image.keypoints[seen], axis=1))
        pinhole_errors.append(np.linalg.norm(pixels - image.keypoints[seen], axis=1))
    assert np.median(np.concatenate(errors)) == pytest.approx(0.856, abs=0.005)
    assert np.median(np.concatenate(pinhole_errors)) == pytest.approx(0.937, abs=0.005)  # the lens left out
    # a point's error in the file is the mean over its track
    rows = np.array([row[int(i)] for i in np.concatenate(ids)])
    mean = np.bincount(rows, np.concatenate(errors), 5740) / np.bincount(rows, minlength=5740)
    difference = abs(mean - model.points.errors)  # some were written before the last bundle adjustment
    assert np.median(difference) < 0.01 and np.quantile(difference, 0.9) < 0.05


def test_colmap_room_in_json_is_the_same_scene_up_to_a_similarity():
    """instant-ngp's converter turns, moves and scales the world; cameras are compared after undoing that."""
    root = scene("colmap_room")
    colmap, ngp = load_dataset(root), load_dataset(root / "transforms.json")
    assert [v.name for v in colmap.views] == [v.name for v in ngp.views] and colmap.test == ngp.test
    poses = [torch.stack([v.camera.c2w for v in d.views]).double().numpy() for d in (colmap, ngp)]
    scale, rotation, translation = similarity(poses[0][:, :3, 3], poses[1][:, :3, 3])
    moved = scale * poses[0][:, :3, 3] @ rotation.T + translation
    np.testing.assert_allclose(moved, poses[1][:, :3, 3], atol=2e-5)
    np.testing.assert_allclose(rotation @ poses[0][:, :3, :3], poses[1][:, :3, :3], atol=2e-5)
    for a, b in zip(colmap.views, ngp.views):
        assert torch.equal(a.camera.K, b.camera.K)
    assert torch.equal(colmap.views[3].image(), ngp.views[3].image())
    assert json.loads((root / "transforms.json").read_text())["k1"] != 0


def test_colmap_room_small():
    dataset = load_dataset(scene("colmap_room"), width=480)
    assert dataset.points.shape == (5740, 3) and dataset.test == [0, 8, 16, 24, 32]
    view = dataset.views[5]
    assert view.image().shape == (270, 480, 3)
    photo = np.asarray(Image.open(view.image_path), dtype=np.float64) / 255
    shrunk = photo.reshape(270, 4, 480, 4, 3).mean((1, 3))
    # this lens moves pixels by well under one of the small ones, so the undistorted photo is nearly the photo
    assert abs(view.image().numpy() - shrunk).mean() < 0.01

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from gsfields.data import load_dataset
from gsfields.data.colmap import read_model
from gsfields.data.lens import CAMERA_MODELS
from gsfields.data.poses import from_quaternion
from tests.data.test_lens import brown, pattern, without_lens
from tests.data.writers import (
    FOCAL,
    HEIGHT,
    WIDTH,
    Rig,
    make_rig,
    write_colmap_binary,
    write_colmap_text,
)

finite = st.floats(-1e3, 1e3)


@given(q=st.tuples(finite, finite, finite, finite), t=st.tuples(finite, finite, finite))
def test_quaternions_of_any_length_are_rotations(q, t):
    if np.linalg.norm(q) < 1e-6:
        return
    motion = from_quaternion(q, t, "x")
    np.testing.assert_allclose(motion[:3, :3], Rotation.from_quat(np.roll(q, -1)).as_matrix(), atol=1e-12)
    assert motion[:3, 3].tolist() == list(t) and motion[3].tolist() == [0, 0, 0, 1]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), count=st.integers(1, 5), binary=st.booleans())
def test_what_is_written_is_read(tmp_path_factory, seed, count, binary):
    root, rig = tmp_path_factory.mktemp("model"), make_rig(count, seed)
    (write_colmap_binary if binary else write_colmap_text)(root, rig)
    model = read_model(root / "sparse/0")
    assert sorted(image.name for image in model.images.values()) == rig.names
    for image_id, image in model.images.items():
        expected = rig.viewmats[image_id - 1]
        np.testing.assert_allclose(
            from_quaternion(image.quaternion, image.translation, "x"), expected, atol=1e-12
        )
        keypoints = [[1.5 * k, 2.5 * k] for k in range(image_id - 1)]
        np.testing.assert_array_equal(image.keypoints, np.reshape(keypoints, (-1, 2)))
        np.testing.assert_array_equal(image.point_ids, np.arange(image_id - 1) - 1)
    np.testing.assert_array_equal(model.points.positions, rig.points)
    np.testing.assert_array_equal(model.points.colors, rig.colors)
    np.testing.assert_array_equal(model.points.ids, np.arange(len(rig.points)))
    np.testing.assert_array_equal(model.points.errors, 0.5 * np.arange(len(rig.points)))


@pytest.mark.parametrize("folder", ["sparse/0", "sparse", "."])
@pytest.mark.parametrize("write", [write_colmap_binary, write_colmap_text])
def test_the_model_is_found_in_each_place(tmp_path, folder, write):
    write(tmp_path, make_rig(3), folder)
    assert len(load_dataset(tmp_path).views) == 3


def test_binary_is_preferred_and_points_may_be_absent(tmp_path):
    write_colmap_text(tmp_path, make_rig(3))
    (tmp_path / "sparse/0/points3D.txt").unlink()
    assert load_dataset(tmp_path).points is None
    write_colmap_binary(tmp_path, make_rig(4))
    assert len(load_dataset(tmp_path).views) == 4


def test_photos_in_subfolders_and_names_with_spaces(tmp_path):
    rig = make_rig(3)
    write_colmap_text(tmp_path, rig)
    text = (tmp_path / "sparse/0/images.txt").read_text().replace("photo_", "left eye/photo_")
    (tmp_path / "sparse/0/images.txt").write_text(text)
    (tmp_path / "images").rename(tmp_path / "eyes")
    (tmp_path / "images").mkdir()
    (tmp_path / "eyes").rename(tmp_path / "images" / "left eye")
    assert [view.name for view in load_dataset(tmp_path).views] == [f"left eye/{name}" for name in rig.names]


MODELS = {
    "SIMPLE_RADIAL": ((FOCAL, 23.0, 17.0, -0.1), {"k1": -0.1}),
    "RADIAL": ((FOCAL, 23.0, 17.0, -0.1, 0.02), {"k1": -0.1, "k2": 0.02}),
    "OPENCV": (
        (FOCAL, FOCAL + 1, 23.0, 17.0, 0.1, 0.02, 0.004, -0.003),
        {"k1": 0.1, "k2": 0.02, "p1": 0.004, "p2": -0.003},
    ),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("write", [write_colmap_binary, write_colmap_text])
def test_photos_are_undistorted(tmp_path, model, write):
    parameters, lens = MODELS[model]
    rig = make_rig(2)
    rig.model, rig.parameters = model, parameters
    focal = np.array(parameters[:2] if model == "OPENCV" else parameters[:1] * 2)
    center = np.array([23.0, 17.0])
    grid = np.stack(np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5), axis=-1)
    plane = (grid - center) / focal
    slow = 0.25  # stretches the pattern to a period of many pixels at this size
    rig.images = [np.rint(255 * pattern(slow * without_lens(plane, lens))).astype(np.uint8)] * 2
    write(tmp_path, rig)
    view = load_dataset(tmp_path, split_every=0).views[0]
    np.testing.assert_allclose(view.camera.K, [[focal[0], 0, 23], [0, focal[1], 17], [0, 0, 1]], rtol=1e-6)
    keep = np.ones((HEIGHT, WIDTH), bool) if view.mask() is None else view.mask().numpy() > 0
    source = brown(plane, **lens) * focal + center
    outside = ((source < 0) | (source > [WIDTH, HEIGHT])).any(-1)
    assert (outside == ~keep).all() and (model != "OPENCV" or outside.any())
    interior = ((source > 0.5) & (source < [WIDTH - 0.5, HEIGHT - 0.5])).all(-1)
    error = abs(view.image().numpy() - pattern(slow * plane))[interior]
    assert error.max() < 0.008  # two roundings to 8 bits (0.004), bilinear sampling
    distorted_error = abs(rig.images[0] / 255 - pattern(slow * plane))
    assert distorted_error.max() > 0.02  # the lens was worth undoing


def test_a_shrunk_undistorted_photo_masks_what_is_partly_unknown(tmp_path):
    rig = make_rig(2)
    rig.model, rig.parameters = "OPENCV", MODELS["OPENCV"][0]
    write_colmap_binary(tmp_path, rig)
    full = load_dataset(tmp_path, split_every=0).views[0].mask()
    half = load_dataset(tmp_path, split_every=0, downscale=2).views[0].mask()
    blocks = full.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).amin((1, 3))
    assert torch.equal(half, blocks) and 0.5 < half.mean() < 1


def test_each_camera_has_its_size(tmp_path):
    rig = make_rig(2)
    write_colmap_text(tmp_path, rig)
    model = tmp_path / "sparse/0"
    (model / "cameras.txt").write_text("7 PINHOLE 48 32 40 40 24 16\n8 SIMPLE_PINHOLE 20 10 30 10 5\n")
    (model / "images.txt").write_text(
        (model / "images.txt").read_text().replace("7 photo_001", "8 photo_001")
    )
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / "images/photo_001.png")
    views = load_dataset(tmp_path, width=10, split_every=0).views
    assert [(v.camera.width, v.camera.height) for v in views] == [(10, 7), (10, 5)]


@pytest.fixture
def project(tmp_path) -> tuple:
    rig: Rig = make_rig(3)
    write_colmap_binary(tmp_path, rig)
    return tmp_path, tmp_path / "sparse/0"


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin"])
def test_every_truncation_is_noticed(project, file):
    root, model = project
    whole = (model / file).read_bytes()
    for length in (0, 5, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        (model / file).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"{file} is truncated"):
            load_dataset(root)


@pytest.mark.parametrize("file", ["images.bin", "points3D.bin"])
def test_absurd_counts_are_truncations(project, file):
    root, model = project
    (model / file).write_bytes(struct.pack("<Q", 2**60) + (model / file).read_bytes()[8:])
    with pytest.raises(ValueError, match="is truncated"):
        load_dataset(root)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((math.nan, 0, 0, 0, 0, 0, 0), "pose of image photo_002.png .* holds NaN or infinity"),
        ((1, 0, 0, 0, 0, math.inf, 0), "holds NaN or infinity"),
        ((0, 0, 0, 0, 0, 0, 0), "zero quaternion"),
    ],
)
def test_poses_that_are_none(project, values, message):
    root, model = project
    data = bytearray((model / "images.bin").read_bytes())
    struct.pack_into("<7d", data, 12, *values)  # the first record, which the writer makes the last photo's
    (model / "images.bin").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_dataset(root)


@pytest.mark.parametrize("model_id", [5, 6, 99])
def test_unknown_camera_models(project, model_id):
    root, model = project
    data = bytearray((model / "cameras.bin").read_bytes())
    struct.pack_into("<i", data, 12, model_id)
    (model / "cameras.bin").write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"camera 7 of .*cameras.bin: camera model number {model_id} is not supported"
    ):
        load_dataset(root)


def test_no_images_and_no_such_camera(project):
    root, model = project
    whole = (model / "images.bin").read_bytes()
    (model / "images.bin").write_bytes(struct.pack("<Q", 0))
    with pytest.raises(ValueError, match="lists no frames"):
        load_dataset(root)
    (model / "images.bin").write_bytes(whole)
    (model / "cameras.bin").write_bytes(struct.pack("<Q", 0))
    with pytest.raises(ValueError, match="refers to camera 7, which is not in the list"):
        load_dataset(root)
    (model / "images.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no images.bin"):
        load_dataset(root)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("cameras.txt", "7 PINHOLE 48 x 40 40 24 16", "line 1 of .*cameras.txt is not 'CAMERA_ID"),
        ("cameras.txt", "7 PINHOLE 48 32 40 40 24", "PINHOLE takes 4 parameters, but has 3"),
        ("cameras.txt", "7 FOV 48 32 40 40 24 16 0.1", "camera model FOV is not supported"),
        ("cameras.txt", "7 PINHOLE 48 32 nan 40 24 16", "fx must be finite"),
        (
            "images.txt",
            "# poses\n1 1 0 0 0 0 0 7 photo_000.png\n\n",
            "line 2 of .*images.txt is not 'IMAGE_ID",
        ),
        (
            "images.txt",
            "1 1 0 0 0 0 0 0 7 photo_000.png\n3 4\n",
            "line 2 of .*images.txt is not 'X Y POINT3D_ID",
        ),
        ("points3D.txt", "1 0 0 0 255 255\n", "line 1 of .*points3D.txt is not 'POINT3D_ID"),
        ("points3D.txt", "1 0 0 zero 255 255 255 0.5\n", "line 1 of .*points3D.txt is not 'POINT3D_ID"),
    ],
)
def test_malformed_text(tmp_path, file, text, message):
    write_colmap_text(tmp_path, make_rig(3))
    (tmp_path / "sparse/0" / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path)


def test_text_that_is_not_text(tmp_path):
    write_colmap_text(tmp_path, make_rig(3))
    (tmp_path / "sparse/0/images.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"images.txt is not a text file"):
        load_dataset(tmp_path)


def test_points_that_are_not_finite_are_left_out(tmp_path):
    rig = make_rig(3)
    rig.points[4] = math.nan
    write_colmap_binary(tmp_path, rig)
    dataset = load_dataset(tmp_path)
    assert len(dataset.points) == len(dataset.point_colors) == len(rig.points) - 1


def test_the_table_of_models_has_colmaps_ids():
    assert {name: number for name, (number, _) in CAMERA_MODELS.items()} == {
        "SIMPLE_PINHOLE": 0,
        "PINHOLE": 1,
        "SIMPLE_RADIAL": 2,
        "RADIAL": 3,
        "OPENCV": 4,
    }

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.data import load_dataset
from gsfields.data.lens import Intrinsics, undistort
from tests.data.writers import (
    FOCAL,
    HEIGHT,
    WIDTH,
    make_rig,
    nerfstudio_json,
    write_blender,
    write_images,
    write_nerfstudio,
)

RIG = make_rig(4)


@pytest.fixture
def write(tmp_path):
    """Writes transforms.json after `edit` changed the document, and returns its folder."""

    def write_edited(edit=lambda document: None):
        write_images(tmp_path / "images", RIG)
        document = nerfstudio_json(RIG)
        edit(document)
        (tmp_path / "transforms.json").write_text(json.dumps(document))
        return tmp_path

    return write_edited


def test_a_frame_overrides_the_file(write):
    def edit(document):
        document["frames"][2] |= {"fl_x": 55.0, "cx": 20.0, "k1": 0.1, "time": 0.25}
        document["time"] = 0.75

    views = load_dataset(write(edit)).views
    assert views[2].camera.K[0].tolist() == [55, 0, 20] and views[1].camera.K[0].tolist() == [
        FOCAL,
        0,
        WIDTH / 2,
    ]
    assert views[2].mask() is not None and views[1].mask() is None
    assert (views[2].time, views[1].time) == (0.25, 0.75)


def test_intrinsics_are_completed(write):
    def angles(document):
        for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
            del document[key]
        document |= {"camera_angle_x": 2 * math.atan(0.5 * WIDTH / FOCAL)}
        document["frames"][1]["camera_angle_y"] = 2 * math.atan(0.5 * HEIGHT / 33)
        document["frames"][2]["fl_x"] = 44.0

    cameras = [view.camera for view in load_dataset(write(angles)).views]
    focals = [[float(c.K[0, 0]), float(c.K[1, 1])] for c in cameras]
    assert focals == pytest.approx(np.array([[FOCAL, FOCAL], [FOCAL, 33], [44, 44], [FOCAL, FOCAL]]))
    assert cameras[0].K[:2, 2].tolist() == [WIDTH / 2, HEIGHT / 2]


def test_the_angle_of_a_frame_wins_over_the_focal_length_of_the_file(write):
    def edit(document):
        document["frames"][0]["camera_angle_x"] = math.pi / 2

    assert load_dataset(write(edit)).views[0].camera.K[0, 0] == pytest.approx(WIDTH / 2)


def test_distortion_of_every_parameter_is_undone(write):
    lens = {"k1": 0.1, "k2": -0.05, "k3": 0.02, "p1": 0.01, "p2": -0.02}
    view = load_dataset(write(lambda document: document.update(lens, k4=0)), split_every=0).views[0]
    intrinsics = Intrinsics(WIDTH, HEIGHT, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, **lens)
    expected, inside = undistort(torch.from_numpy(RIG.images[0]).float() / 255, intrinsics)
    np.testing.assert_allclose(view.image(), expected, atol=0.5 / 255 + 1e-6)
    assert torch.equal(view.mask() > 0, inside)


def test_masks_are_read_shrunk_and_joined_with_the_border(write, tmp_path):
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[10:12, 20:24] = 0
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "m.png")

    def edit(document):
        document["frames"][0]["mask_path"] = "masks/m.png"

    views = load_dataset(write(edit), split_every=0).views
    np.testing.assert_array_equal(views[0].mask() * 255, mask)
    assert views[1].mask() is None
    half = load_dataset(tmp_path, split_every=0, downscale=2).views[0].mask()
    assert half.sum() == half.numel() - 2 and half[5, 10] == half[5, 11] == 0

    def edit_distorted(document):
        edit(document)
        document["k1"] = 0.2

    joined = load_dataset(write(edit_distorted), split_every=0)
    border, both = joined.views[1].mask(), joined.views[0].mask()
    assert border[0, 0] == 0 and border[11, 22] == 1
    assert (
        both[0, 0] == 0
        and both[11, 22] == 0
        and ((border - both) >= 0).all()
        and 8 <= (border - both).sum() < 30
    )


def test_a_full_size_mask_serves_a_smaller_copy(write, tmp_path):
    (tmp_path / "images_4").mkdir()
    for name in RIG.names:
        Image.fromarray(np.zeros((HEIGHT // 4, WIDTH // 4, 3), np.uint8)).save(tmp_path / "images_4" / name)
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[0, 0] = 0
    Image.fromarray(mask).save(tmp_path / "m.png")

    def edit(document):
        document["frames"][0]["mask_path"] = "m.png"

    small = load_dataset(write(edit), downscale=4).views[0].mask()
    assert small.shape == (HEIGHT // 4, WIDTH // 4) and small[0, 0] == 0 and small.sum() == small.numel() - 1


def test_bounds(write):
    views = load_dataset(write(lambda document: document.update(near=0.5, far=3))).views
    assert views[0].bounds == (0.5, 3.0)


@pytest.mark.parametrize(
    ("lists", "train", "test"),
    [
        ({"train": [0, 1], "test": [2, 3]}, [0, 1], [2, 3]),
        ({"train": [3, 0], "val": [1], "test": [2]}, [0, 3], [2]),
        ({"train": [0, 1], "val": [3]}, [0, 1], [3]),
        ({"train": [0, 1]}, [0, 1], []),
        ({"test": [1]}, [0, 2, 3], [1]),
        ({"val": [1], "test": []}, [0, 2, 3], [1]),
        ({"train": [], "test": []}, [1, 2, 3], [0]),  # empty lists say nothing: the rule decides
    ],
)
def test_lists_of_file_names_decide_the_split(write, lists, train, test):
    def edit(document):
        for key, indices in lists.items():
            document[f"{key}_filenames"] = [f"./images/{RIG.names[i]}" for i in indices]

    dataset = load_dataset(write(edit))
    assert [view.name for view in dataset.train_views()] == [RIG.names[i] for i in train]
    assert [view.name for view in dataset.test_views()] == [RIG.names[i] for i in test]


def test_paths_may_have_backslashes_and_be_absolute(write, tmp_path):
    def edit(document):
        document["frames"][0]["file_path"] = f"images\\{RIG.names[0]}"
        document["frames"][1]["file_path"] = str(tmp_path / "images" / RIG.names[1])

    assert [view.name for view in load_dataset(write(edit)).views] == RIG.names


def test_a_byte_order_mark_is_no_obstacle(write):
    root = write()
    text = (root / "transforms.json").read_text()
    (root / "transforms.json").write_text(text, encoding="utf-8-sig")
    assert len(load_dataset(root).views) == 4


def test_poses_with_few_digits_become_orthonormal(write):
    def edit(document):
        for frame in document["frames"]:
            frame["transform_matrix"] = np.round(frame["transform_matrix"], 5).tolist()

    for view in load_dataset(write(edit)).views:
        rotation = view.camera.viewmat[:3, :3].double().numpy()
        assert abs(rotation @ rotation.T - np.eye(3)).max() < 3e-7


def change_matrix(function):
    def edit(document):
        frame = document["frames"][1]
        frame["transform_matrix"] = function(np.array(frame["transform_matrix"]))

    return edit


def set_nan(matrix):
    matrix[0, 3] = math.nan
    return matrix.tolist()


def set_everywhere(**values):
    return lambda document: document.update(values)


def set_in_frame(**values):
    return lambda document: document["frames"][1].update(values)


def drop(key):
    return lambda document: document["frames"][1].pop(key)


WHO = "frame images/photo_001.png of "


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change_matrix(set_nan), f"the pose of {WHO}.* holds NaN or infinity"),
        (change_matrix(lambda m: (m * [2, 2, 2, 1]).tolist()), f"{WHO}.* is not rigid: its rotation is off"),
        (change_matrix(lambda m: (m * [1, 1, -1, 1]).tolist()), "is not rigid: it mirrors"),
        (change_matrix(lambda m: m[:2].tolist()), r"must be \[3, 4\] or \[4, 4\], but is \[2, 4\]"),
        (change_matrix(lambda m: [*m[:3].tolist(), [0, 0, 0, 2]]), "last row of the pose"),
        (change_matrix(lambda m: "identity"), "is not a matrix of numbers"),
        (change_matrix(lambda m: [[1, 2], [3]]), "is not a matrix of numbers"),
        (drop("transform_matrix"), "has no transform_matrix"),
        (drop("file_path"), "frame 1 of .* has no file_path"),
        (set_everywhere(camera_model="OPENCV_FISHEYE"), "camera model OPENCV_FISHEYE is not supported"),
        (set_in_frame(camera_model="EQUIRECTANGULAR"), f"{WHO}.*: camera model EQUIRECTANGULAR"),
        (set_everywhere(is_fisheye=True), "is a fisheye image"),
        (set_everywhere(k4=0.1), "has k4 = 0.1"),
        (set_everywhere(fl_x="40"), "fl_x of frame .* must be a finite number, but is '40'"),
        (set_everywhere(fl_x=math.nan), "fl_x of frame .* must be a finite number, but is nan"),
        (set_everywhere(fl_x=-3), "fx must be positive"),
        (set_in_frame(camera_angle_x=4.0), r"camera_angle_x of .* must lie in \(0, pi\)"),
        (set_everywhere(fl_x=None, fl_y=None), "states neither fl_x nor camera_angle_x"),
        (set_everywhere(w=48.5), "must be whole pixels"),
        (set_everywhere(w=50), "photo_000.png is 48x32, but its camera states 50x32"),
        (set_in_frame(time=math.inf), "time of frame .* must be a finite number"),
        (set_everywhere(near=2, far=1), "must have 0 < near < far"),
        (set_everywhere(frames=[]), "lists no frames"),
        (set_everywhere(frames=None), "holds no list of frames"),
        (set_everywhere(train_filenames=["images/other.png"]), "train_filenames .* names 'other.png'"),
        (set_everywhere(train_filenames="images"), "train_filenames .* must be a list of file names"),
        (set_in_frame(file_path="images/photo_000.png"), "'photo_000.png' stands for two"),
    ],
)
def test_bad_documents_get_one_sentence(write, edit, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(write(edit))
    assert "\n" not in str(caught.value)


def test_missing_files_are_counted(write, tmp_path):
    root = write(lambda document: document["frames"][0].update(mask_path="no_mask.png"))
    with pytest.raises(FileNotFoundError, match=r"no_mask.png is missing$"):
        load_dataset(root)
    for name in RIG.names[1:]:
        (tmp_path / "images" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"photo_001.png is missing \(and 3 more of 4\)"):
        load_dataset(root)


def test_a_mask_of_another_size(write, tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m.png is 4x4, but its image .*photo_000.png is 48x32"):
        load_dataset(write(lambda document: document["frames"][0].update(mask_path="m.png")))


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"frames": 3}', "\x00\x01"])
def test_unreadable_json(tmp_path, text):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(ValueError, match=r"transforms.json is not (readable json|a transforms.json)"):
        load_dataset(tmp_path)


def test_points_of_a_ply(tmp_path):
    write_nerfstudio(tmp_path, RIG)
    ply = tmp_path / "points.ply"
    header = ["ply", "format ascii 1.0", "element vertex 2", *(f"property float {axis}" for axis in "xyz")]
    ply.write_text("\n".join([*header, "end_header", "1 2 3", "4 nan 6", ""]))
    dataset = load_dataset(tmp_path)
    assert dataset.points.tolist() == [[1, 2, 3]] and dataset.point_colors is None
    ply.write_text("ply\nformat ascii 1.0\nelement face 0\nproperty float x\nend_header\n")
    with pytest.raises(ValueError, match="has no vertices with x, y and z"):
        load_dataset(tmp_path)
    ply.write_text("no ply")
    with pytest.raises(ValueError, match="is not a readable ply"):
        load_dataset(tmp_path)
    ply.unlink()
    with pytest.raises(FileNotFoundError, match=r"point cloud .*points.ply is missing"):
        load_dataset(tmp_path)


def test_blender_views_may_differ_in_size(tmp_path):
    write_blender(tmp_path, RIG, held_out=1)
    path = tmp_path / "train" / RIG.names[2]
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
    camera = load_dataset(tmp_path).views[1].camera
    assert (camera.width, camera.height) == (30, 20) and camera.K[0, 0] == pytest.approx(FOCAL * 30 / WIDTH)

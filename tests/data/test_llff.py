import math

import numpy as np
import pytest

from gsfields.data import load_dataset
from tests.data.writers import FOCAL, HEIGHT, WIDTH, llff_table, make_rig, write_llff

RIG = make_rig(3)


def test_bounds_are_kept(tmp_path):
    write_llff(tmp_path, RIG)
    table = llff_table(RIG)
    table[1, 15:] = [1.25, 77]
    np.save(tmp_path / "poses_bounds.npy", table)
    assert [view.bounds for view in load_dataset(tmp_path).views] == [(0.5, 9), (1.25, 77), (0.5, 9)]


def test_axes_by_hand(tmp_path):
    """A camera at (1, 2, 3) that looks along world +x, with world +z upwards in the image."""
    write_llff(tmp_path, RIG)
    down, right, back = [0, 0, -1], [0, -1, 0], [-1, 0, 0]
    row = np.stack([down, right, back, [1, 2, 3], [HEIGHT, WIDTH, FOCAL]], axis=1).ravel()
    np.save(tmp_path / "poses_bounds.npy", np.array([[*row, 0.5, 9.0]] * 3))
    viewmat = load_dataset(tmp_path).views[0].camera.viewmat.numpy()
    assert (viewmat @ [1 + 5, 2, 3, 1])[:3] == pytest.approx([0, 0, 5])  # ahead is +z
    assert (viewmat @ [1, 2, 3 + 1, 1])[:3] == pytest.approx([0, -1, 0])  # up is -y
    assert (viewmat @ [1, 2 - 1, 3, 1])[:3] == pytest.approx([1, 0, 0])  # right is +x


def set_value(row, column, value):
    def edit(table):
        table[row, column] = value
        return table

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_value(1, 3, math.nan), "the pose of image photo_001.png in .*poses_bounds.npy holds NaN"),
        (set_value(1, 0, 5), "is not rigid"),
        (set_value(2, 14, 0), "photo_002.png .*: fx must be positive"),
        (set_value(2, 14, math.inf), "fx must be finite"),
        (set_value(0, 4, math.nan), "must be whole pixels"),
        (set_value(0, 4, 31), "photo_000.png is 48x32, but its camera states 48x31"),
        (set_value(0, 15, -1), "must have 0 < near < far, but has -1.0 and 9.0"),
        (set_value(0, 16, math.nan), "must have 0 < near < far"),
        (lambda table: table[:, :15], r"must be an \[N, 17\] array of numbers, but is \[3, 15\]"),
        (lambda table: table.astype(str), r"must be an \[N, 17\] array of numbers"),
        (lambda table: table[:0], "lists no frames"),
        (lambda table: table[:2], "has 2 poses, but .*images has 3 images"),
    ],
)
def test_bad_tables_get_one_sentence(tmp_path, edit, message):
    write_llff(tmp_path, RIG)
    np.save(tmp_path / "poses_bounds.npy", edit(llff_table(RIG)))
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path)


def test_a_file_that_is_no_array_and_no_images(tmp_path):
    (tmp_path / "poses_bounds.npy").write_text("hello")
    with pytest.raises(ValueError, match="is not a readable numpy array"):
        load_dataset(tmp_path)
    np.save(tmp_path / "poses_bounds.npy", llff_table(RIG))
    with pytest.raises(FileNotFoundError, match="has neither images/ nor"):
        load_dataset(tmp_path)


def test_no_pickle_is_loaded(tmp_path):
    np.save(tmp_path / "poses_bounds.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="is not a readable numpy array"):
        load_dataset(tmp_path)

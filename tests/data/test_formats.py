"""What holds for every format: one rig of cameras, written in each, is the same dataset."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.data import load_dataset
from gsfields.data.images import shrink
from tests.data.writers import FOCAL, HEIGHT, WIDTH, WRITERS, Rig, make_rig, write_colmap_binary, write_llff

FORMATS = list(WRITERS)


@pytest.fixture(scope="module")
def rig() -> Rig:
    return make_rig()


@pytest.fixture
def load(tmp_path, rig):
    def write_and_load(name: str, **options):
        WRITERS[name](tmp_path, rig)
        return load_dataset(tmp_path, **options)

    return write_and_load


def photo_index(view) -> int:
    return int(view.name.removesuffix(".png")[-3:])


@pytest.mark.parametrize("name", FORMATS)
def test_cameras_and_images_are_those_written(load, rig, name):
    dataset = load(name)
    assert len(dataset.views) == len(rig.names)
    for view in dataset.views:
        i = photo_index(view)
        np.testing.assert_allclose(view.camera.viewmat, rig.viewmats[i], atol=1e-6)
        np.testing.assert_allclose(
            view.camera.K, [[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], rtol=1e-6
        )
        assert (view.camera.width, view.camera.height) == (WIDTH, HEIGHT)
        assert view.camera.viewmat.dtype == view.camera.K.dtype == torch.float32
        image = view.image()
        assert image.dtype == torch.float32 and torch.equal(
            image, torch.from_numpy(rig.images[i]).float() / 255
        )
        assert view.mask() is None and view.image_path.is_file()


@pytest.mark.parametrize("name", FORMATS)
def test_split_names_and_scene(load, rig, name):
    dataset = load(name, split_every=4)
    held_out = [photo_index(view) for view in dataset.test_views()]
    assert held_out == ([0, 1, 2] if name == "blender" else [0, 4, 8])
    if name != "blender":
        assert [view.name for view in dataset.views] == rig.names
    centers = rig.c2w[[photo_index(view) for view in dataset.train_views()], :3, 3]
    np.testing.assert_allclose(dataset.scene_center, centers.mean(0), atol=1e-5)
    radius = np.linalg.norm(centers - centers.mean(0), axis=1).max()
    assert dataset.scene_extent == pytest.approx(1.1 * radius, rel=1e-5)
    assert dataset.background is None


@pytest.mark.parametrize("name", ["colmap_binary", "colmap_text", "nerfstudio"])
def test_points_and_colours(load, rig, name):
    dataset = load(name)
    np.testing.assert_allclose(dataset.points, rig.points, atol=1e-6)
    np.testing.assert_allclose(dataset.point_colors, rig.colors / 255, atol=1e-6)
    assert dataset.points.dtype == dataset.point_colors.dtype == torch.float32


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"downscale": 2}, (24, 16)),
        ({"downscale": 2.5}, (19, 13)),
        ({"width": 30}, (30, 20)),
        ({"width": 48}, (48, 32)),
    ],
)
def test_images_at_any_size(load, rig, name, options, size):
    dataset = load(name, **options)
    for view in dataset.views[:3]:
        width, height = view.camera.width, view.camera.height
        assert (width, height) == size
        expected = shrink(rig.images[photo_index(view)] / 255, width, height)
        np.testing.assert_allclose(view.image(), expected, atol=0.5 / 255 + 1e-6)
        sx, sy = width / WIDTH, height / HEIGHT
        np.testing.assert_allclose(view.camera.K[0], [FOCAL * sx, 0, WIDTH / 2 * sx], rtol=1e-6)
        np.testing.assert_allclose(view.camera.K[1], [0, FOCAL * sy, HEIGHT / 2 * sy], rtol=1e-6)


def write_copies(root, rig, factor, *, suffix=".png", rename=None, extra=0):
    """A folder images_<factor> whose photos are plain grey i + 1, to be told from those shrunk on load."""
    folder = root / f"images_{factor}"
    folder.mkdir()
    for i, name in enumerate(rig.names):
        stem = rename(i) if rename else name.removesuffix(".png")
        size = (HEIGHT // factor + extra, WIDTH // factor + extra, 3)
        Image.fromarray(np.full(size, i + 1, np.uint8)).save(folder / f"{stem}{suffix}")


@pytest.mark.parametrize("name", ["colmap_binary", "nerfstudio", "llff"])
@pytest.mark.parametrize("options", [{"downscale": 4}, {"width": WIDTH // 4}])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_folder_of_smaller_copies_is_used(load, rig, tmp_path, name, options, renamed):
    write_copies(tmp_path, rig, 4, suffix=".bmp", rename=(lambda i: f"image{i:03d}") if renamed else None)
    dataset = load(name, **options)
    for i, view in enumerate(dataset.views):
        assert view.image_path.parent.name == "images_4" and torch.all(view.image() == (i + 1) / 255)
        assert view.camera.width == 12 and view.camera.K[0, 0] == FOCAL / 4


def test_copies_rounded_up_keep_their_size_and_scale_K_exactly(tmp_path, rig):
    write_colmap_binary(tmp_path, rig)
    write_copies(tmp_path, rig, 5, extra=1)  # 48 x 32 by 5 is 9.6 x 6.4: rounded up 10 x 7
    camera = load_dataset(tmp_path, downscale=5).views[0].camera
    assert (camera.width, camera.height) == (10, 7)
    np.testing.assert_allclose(
        [camera.K[0, 0], camera.K[1, 2]], [FOCAL * 10 / 48, HEIGHT / 2 * 7 / 32], rtol=1e-6
    )


def test_copies_for_other_sizes_are_left_alone(tmp_path, rig):
    write_colmap_binary(tmp_path, rig)
    write_copies(tmp_path, rig, 4)
    for options in ({}, {"downscale": 2}, {"downscale": 3.9}, {"width": 13}):
        assert load_dataset(tmp_path, **options).views[0].image_path.parent.name == "images"


def test_only_small_copies_exist(tmp_path, rig):
    write_llff(tmp_path, rig)
    shutil.rmtree(tmp_path / "images")
    write_copies(tmp_path, rig, 4)
    assert load_dataset(tmp_path).views[0].camera.width == 12  # nothing was asked: the largest there are
    assert load_dataset(tmp_path, downscale=8).views[0].camera.width == 6
    assert load_dataset(tmp_path, width=5).views[0].image().shape == (3, 5, 3)
    with pytest.raises(ValueError, match="images_4 are too small for an image 2 times smaller"):
        load_dataset(tmp_path, downscale=2)


def test_transparent_photos_lie_on_the_background(tmp_path, rig):
    WRITERS["blender"](tmp_path, rig)
    for path in tmp_path.glob("*/*.png"):
        Image.fromarray(np.full((HEIGHT, WIDTH, 4), (255, 0, 0, 51), np.uint8)).save(path)
    dataset = load_dataset(tmp_path, background=(0.0, 0.5, 1.0))
    assert dataset.background.tolist() == [0, 0.5, 1]
    np.testing.assert_allclose(dataset.views[0].image()[0, 0], [0.2, 0.4, 0.8], atol=0.5 / 255)


def test_images_load_lazily_and_once(load, tmp_path):
    dataset = load("colmap_binary")
    assert dataset.cache.bytes == 0
    first = dataset.views[0].image()
    assert dataset.cache.bytes == WIDTH * HEIGHT * 3
    dataset.views[0].image_path.unlink()
    assert torch.equal(dataset.views[0].image(), first)  # from memory
    bounded = load_dataset_within(tmp_path, 2 * WIDTH * HEIGHT * 3)
    for view in bounded.views[1:]:
        view.image()
        assert bounded.cache.bytes <= 2 * WIDTH * HEIGHT * 3


def load_dataset_within(root, size):
    write_colmap_binary(root, make_rig())
    return load_dataset(root, cache_bytes=size)


def test_two_loads_are_equal_bit_for_bit(tmp_path, rig):
    write_colmap_binary(tmp_path, rig)
    first, second = (load_dataset(tmp_path, downscale=1.7) for _ in range(2))
    for a, b in zip(first.views, second.views):
        assert torch.equal(a.image(), b.image()) and torch.equal(a.camera.K, b.camera.K)


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_image_is_named(load, tmp_path, rig, name):
    WRITERS[name](tmp_path, rig)
    next(tmp_path.rglob("photo_005.png")).unlink()
    expected = ValueError if name == "llff" else FileNotFoundError  # LLFF names no files, it counts them
    with pytest.raises(
        expected, match="9 poses, but .* 8 images" if name == "llff" else r"photo_005(\.png)? is missing"
    ):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "blender"])
def test_an_image_of_another_size_is_named(tmp_path, rig, name):
    WRITERS[name](tmp_path, rig)
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8)).save(tmp_path / "images" / "photo_002.png")
    with pytest.raises(ValueError, match=r"photo_002.png is 49x32, but its camera states 48x32$"):
        load_dataset(tmp_path)


def test_a_copy_of_another_size_is_named(tmp_path, rig):
    write_colmap_binary(tmp_path, rig)
    write_copies(tmp_path, rig, 4, extra=2)
    with pytest.raises(
        ValueError, match=r"photo_000.png is 14x10, but its camera states 48x32 divided by 4$"
    ):
        load_dataset(tmp_path, downscale=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"downscale": 0.5}, "downscale must be a number of at least 1, but is 0.5"),
        ({"downscale": float("nan")}, "downscale must be"),
        ({"downscale": 2, "width": 10}, "downscale or width, but not both"),
        ({"width": 0}, "width must be a whole number"),
        ({"width": 12.5}, "width must be a whole number"),
        ({"width": 49}, "width must not exceed that of the images, 48, but is 49"),
        ({"background": (1, 1)}, "background must be three numbers"),
        ({"width": float("nan")}, "width must be a whole number"),
        ({"background": None}, "background must be three numbers"),
        ({"background": (1, 1, 2)}, "background must be three numbers"),
        ({"split_every": 1}, "split_every must be 0"),
        ({"split_every": -2}, "split_every must be 0"),
        ({"cache_bytes": -1}, "max_bytes must not be negative"),
    ],
)
def test_bad_options_are_refused(tmp_path, rig, options, message):
    write_colmap_binary(tmp_path, rig)
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path, **options)


def test_no_known_format(tmp_path):
    with pytest.raises(ValueError, match="is in no known format: it must hold a COLMAP model"):
        load_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no dataset at .*nowhere"):
        load_dataset(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="no known format"):
        load_dataset(tmp_path / "notes.txt")


def test_of_several_formats_colmap_is_read_unless_a_file_is_named(tmp_path, rig):
    for name in ("colmap_binary", "instant_ngp", "llff"):
        WRITERS[name](tmp_path, rig)
    assert load_dataset(tmp_path).points is not None
    assert load_dataset(tmp_path / "transforms.json").points is None
    assert load_dataset(tmp_path / "poses_bounds.npy").views[0].bounds == (0.5, 9.0)
    shutil.rmtree(tmp_path / "sparse")
    assert load_dataset(tmp_path).views[0].bounds is None
    (tmp_path / "transforms.json").unlink()
    assert load_dataset(tmp_path).views[0].bounds == (0.5, 9.0)


def test_a_single_blender_file_is_split_by_the_rule(tmp_path, rig):
    WRITERS["blender"](tmp_path, rig)
    dataset = load_dataset(tmp_path / "transforms_train.json")
    assert len(dataset.views) == 6 and dataset.test == [0]
    document = json.loads((tmp_path / "transforms_test.json").read_text())
    (tmp_path / "transforms_val.json").write_text(json.dumps({**document, "frames": document["frames"][:1]}))
    assert len(load_dataset(tmp_path).test) == 3  # val is not read beside test
    (tmp_path / "transforms_test.json").unlink()
    assert len(load_dataset(tmp_path).test) == 1

"""Soft masks: what the files may hold, and how they follow their images onto the grid of a view."""

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.camera import Camera
from gsfields.data import View, load_dataset
from gsfields.data.dataset import Dataset, unique_stems
from gsfields.data.lens import Intrinsics, covering, distort, undistort
from gsfields.data.motion_masks import MaskFolder, fits, read_mask, resampled, write_mask

from .writers import HEIGHT, WIDTH, make_rig, write_colmap_binary, write_nerfstudio

LENS = Intrinsics(96, 64, 60.0, 61.0, 47.0, 33.0, k1=-0.12, k2=0.03, p1=0.004, p2=-0.003)


@pytest.fixture
def soft() -> np.ndarray:
    return np.random.default_rng(0).random((HEIGHT, WIDTH)).astype(np.float32)


@pytest.mark.parametrize(("bits", "levels"), [(8, 255), (16, 65535)])
def test_a_written_mask_is_read_back(tmp_path, soft, bits, levels):
    write_mask(tmp_path / "a.png", torch.from_numpy(soft), bits=bits)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == {8: "L", 16: "I;16"}[bits]
    back = read_mask(tmp_path / "a.png")
    assert back.dtype == np.float32 and abs(back - soft).max() <= 0.5 / levels + 1e-6
    write_mask(tmp_path / "b.png", np.array([[-1.0, 2.0]]), bits=bits)
    assert read_mask(tmp_path / "b.png").tolist() == [[0, 1]]


def palette(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
    return image


LABELS = np.array([[0, 1, 2], [0, 0, 1]], dtype=np.uint8)
COLORS = np.array([[0, 0, 0], [0, 30, 90], [7, 0, 0]], dtype=np.uint8)


def test_kinds_of_images(tmp_path):
    where = (LABELS > 0).astype(np.float32)
    for image in (palette(LABELS), Image.fromarray(LABELS > 0), Image.fromarray(COLORS[LABELS])):
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), where, err_msg=image.mode)
    grey = LABELS * 100
    for image in (Image.fromarray(grey), Image.fromarray(np.stack([grey] * 3, -1))):
        image.save(tmp_path / "a.png")
        np.testing.assert_allclose(read_mask(tmp_path / "a.png"), grey / 255, atol=1e-7, err_msg=image.mode)
    Image.fromarray(grey).convert("LA").save(tmp_path / "a.png")
    np.testing.assert_allclose(read_mask(tmp_path / "a.png"), grey / 255, atol=1e-7)


def test_kinds_of_arrays(tmp_path):
    where = (LABELS > 0).astype(np.float32)
    cases = [(where > 0, where), (where.astype(np.uint8), where), (where.astype(np.float64) / 4, where / 4)]
    cases += [(LABELS * 100, LABELS * (100 / 255)), (where[None, ..., None], where)]
    for given, expected in cases:
        np.save(tmp_path / "a.npy", given)
        np.savez(tmp_path / "b.npz", whatever=given)
        np.savez_compressed(tmp_path / "c.npz", mask=given, other=given[0])
        for name in ("a.npy", "b.npz", "c.npz"):
            np.testing.assert_allclose(read_mask(tmp_path / name), expected, atol=1e-7)


def test_files_that_are_no_masks(tmp_path):
    np.savez(tmp_path / "two.npz", a=LABELS, b=LABELS)
    np.save(tmp_path / "flat.npy", LABELS.ravel())
    np.save(tmp_path / "long.npy", LABELS.astype(np.int64))
    np.save(tmp_path / "logit.npy", LABELS - 0.5)
    (tmp_path / "text.png").write_text("no")
    (tmp_path / "text.npz").write_text("no")
    for name, message in {
        "two.npz": "none is called mask",
        "flat.npy": r"must be \[H, W\], but is \[6\]",
        "long.npy": "bool, uint8 or floating point, but is int64",
        "logit.npy": r"numbers in \[0, 1\] only",
        "text.png": "not a readable image",
        "text.npz": "not a readable numpy array",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_mask(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"mask .*none\.png is missing"):
        read_mask(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"without NaN"):
        write_mask(tmp_path / "a.png", np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="bits must be 8 or 16"):
        write_mask(tmp_path / "a.png", LABELS, bits=12)
    assert not (tmp_path / "a.png").exists()


def test_views_find_their_masks(tmp_path, soft):
    rig = make_rig()
    write_nerfstudio(tmp_path, rig)
    masks = tmp_path / "motion_masks"
    masks.mkdir()
    write_mask(masks / "photo_003.png", soft)
    np.save(masks / "photo_003.npy", 0 * soft)  # the png comes first
    np.save(masks / "photo_005.npy", soft)
    dataset = load_dataset(tmp_path)
    assert [i for i, view in enumerate(dataset.views) if view.has_motion_mask] == [3, 5]
    assert dataset.views[0].motion_mask() is None and dataset.views[0].stem == "photo_000"
    for i in (3, 5):
        np.testing.assert_allclose(dataset.views[i].motion_mask(), soft, atol=1e-5)
    # elsewhere; shrunk by area, as the image is
    masks.rename(tmp_path / "elsewhere")
    assert not load_dataset(tmp_path).views[3].has_motion_mask
    small = load_dataset(tmp_path, motion_masks=tmp_path / "elsewhere", width=WIDTH // 4).views[3]
    expected = soft.reshape(HEIGHT // 4, 4, WIDTH // 4, 4).mean((1, 3))
    np.testing.assert_allclose(small.motion_mask(), expected, atol=1e-5)
    assert small.file_size == (WIDTH, HEIGHT) and small.camera.width == WIDTH // 4


def test_motion_masks_that_do_not_belong(tmp_path, soft):
    write_nerfstudio(tmp_path, make_rig())
    with pytest.raises(FileNotFoundError, match=r"motion_masks names the folder .*nowhere, which does not"):
        load_dataset(tmp_path, motion_masks=tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"no mask of any image: .* must be called photo_000\.png"):
        load_dataset(tmp_path, motion_masks=tmp_path / "other")
    write_mask(tmp_path / "other" / "photo_002.png", soft[:-4])
    with pytest.raises(ValueError, match=r"photo_002\.png is 48x28, but its image is 48x32, .* aspect"):
        load_dataset(tmp_path, motion_masks=tmp_path / "other")


def test_masks_of_another_size_are_resampled(soft):
    assert resampled(soft, WIDTH, HEIGHT) is soft
    half = resampled(soft, WIDTH // 2, HEIGHT // 2)
    np.testing.assert_allclose(half, soft.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).mean((1, 3)), atol=1e-6)
    ramp = np.tile(np.arange(WIDTH, dtype=np.float32), (HEIGHT, 1))
    twice = resampled(ramp, 2 * WIDTH, HEIGHT)
    np.testing.assert_allclose(twice[0, 1:-1], np.arange(1, 2 * WIDTH - 1) / 2 - 0.25, atol=1e-5)
    assert fits((228, 128), (456, 256)) and fits((229, 128), (456, 256)) and fits((912, 511), (456, 256))
    assert not fits((224, 128), (456, 256)) and not fits((256, 456), (456, 256))


def test_masks_follow_the_undistorted_image(tmp_path):
    """A mask that is the image's grey value still is, after both have been undistorted and shrunk."""
    rig = make_rig(3)
    rig.model, rig.parameters = "OPENCV", (40.0, 40.0, 24.0, 16.0, -0.1, 0.02, 0.003, -0.002)
    smooth = np.sin(np.arange(HEIGHT)[:, None] / 5) * np.cos(np.arange(WIDTH) / 7) * 100 + 128
    rig.images = [np.repeat(smooth[..., None], 3, axis=-1).astype(np.uint8)] * 3
    write_colmap_binary(tmp_path, rig)
    (tmp_path / "motion_masks").mkdir()
    for name in rig.names:
        Image.fromarray(rig.images[0][..., 0]).save(tmp_path / "motion_masks" / name)
    view = load_dataset(tmp_path, width=24, split_every=0).views[1]
    assert view.lens.k1 == -0.1 and view.motion_mask().shape == (16, 24)
    np.testing.assert_allclose(view.motion_mask(), view.image()[..., 0], atol=0.5 / 255 + 1e-6)


def test_distort_undoes_undistort():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    photo = torch.stack([torch.sin(rows / 9) + columns / 50, torch.cos(columns / 11)], dim=-1)
    pinhole, inside = undistort(photo, LENS)
    camera = Camera(torch.eye(4), LENS.K, 96, 64)
    again = distort(pinhole, camera, LENS)
    middle = (slice(8, -8), slice(12, -12))  # beyond, the pinhole image does not show what the photo does
    assert inside[middle].all() and float((again - photo)[middle].abs().max()) < 0.01
    half = distort(pinhole[::2, ::2], camera.resized(48, 32), LENS)  # another size, half a pixel off
    assert half.shape == photo.shape and float((half - photo)[middle].abs().max()) < 0.2


def test_undistorted_pixels_are_imaged_where_they_came_from():
    pixels = np.stack(np.meshgrid(np.arange(97.0), np.arange(65.0)), axis=-1)
    np.testing.assert_allclose(LENS.distort(LENS.undistort(pixels)), pixels, atol=1e-9)
    assert abs(LENS.undistort(pixels) - pixels).max() > 1
    # Newton's method converges with wrong derivatives, too, only not for every lens: compare them with differences
    x, y = (pixels[..., 0] - LENS.cx) / LENS.fx, (pixels[..., 1] - LENS.cy) / LENS.fy
    (a, b), c = LENS._slope(x, y)
    step = np.array([1e-4, 0]), np.array([0, 1e-4])
    by_x, by_y = ((LENS.distort(pixels + s) - LENS.distort(pixels - s)) / 2e-4 for s in step)
    for slope, difference in ((a, by_x[..., 0]), (b, by_y[..., 1]), (c, by_x[..., 1] * LENS.fx / LENS.fy)):
        np.testing.assert_allclose(slope, difference, atol=1e-6)
    strong = Intrinsics(96, 64, 40.0, 40.0, 48.0, 32.0, k1=-0.4)
    assert np.isfinite(strong.undistort(pixels)).all()  # corners beyond the fold


def test_distort_leaves_a_photo_without_distortion_as_it_is():
    plain = Intrinsics(96, 64, 60.0, 61.0, 47.0, 33.0)
    image, camera = torch.rand(64, 96, 3), Camera(torch.eye(4), plain.K, 96, 64)
    assert distort(image, camera, plain) is image and covering(camera, plain) is camera
    small = distort(
        image, camera, plain.resized(48, 32)
    )  # bilinear at the middle of 2 x 2 pixels: their mean
    np.testing.assert_allclose(small, image.reshape(32, 2, 48, 2, 3).mean((1, 3)), atol=1e-5)
    with pytest.raises(ValueError, match="camera's size 96x64, but is"):
        distort(image[1:], camera, plain)


def test_a_covering_camera_shows_all_of_the_photo():
    camera = Camera(torch.eye(4), LENS.K, 96, 64).resized(48, 32)
    wide = covering(camera, LENS)
    assert wide.width > 48 and wide.height > 32 and torch.equal(wide.K[0, 0], camera.K[0, 0])
    # the direction of each pixel, as an image: distort must find that of every photo pixel, to the corners
    y, x = torch.meshgrid(torch.arange(wide.height) + 0.5, torch.arange(wide.width) + 0.5, indexing="ij")
    directions = torch.stack([(x - wide.K[0, 2]) / wide.K[0, 0], (y - wide.K[1, 2]) / wide.K[1, 1]], dim=-1)
    seen = distort(directions, wide, LENS)
    pixels = np.stack(np.meshgrid(np.arange(96) + 0.5, np.arange(64) + 0.5), axis=-1)
    exact = (LENS.undistort(pixels) - [LENS.cx, LENS.cy]) / [LENS.fx, LENS.fy]
    half_pixel = 0.5 / 30  # sampling stops at the centres of the border's pixels
    assert np.abs(seen.numpy() - exact).max() < half_pixel + 1e-3
    narrow = distort(
        directions[6:-6, 6:-6], Camera(torch.eye(4), wide.K, wide.width - 12, wide.height - 12), LENS
    )
    assert np.abs(narrow.numpy() - exact).max() > 2 * half_pixel


def test_stems_tell_views_apart(tmp_path):
    assert unique_stems(["images/a.png", "b.png"]) == ["a", "b"]
    assert unique_stems(["train/a.png", "test/a.png"]) == ["train_a", "test_a"]
    assert unique_stems(["a.png", "a.jpg"]) == ["a_png", "a_jpg"]
    assert len(set(unique_stems(["a/b.png", "a_b.png", "a_b.jpg"]))) == 3
    camera = Camera(torch.eye(4), LENS.K, 4, 4)
    views = [View.from_image(name, camera, torch.zeros(4, 4, 3)) for name in ("x/0.png", "y/0.png")]
    assert [view.stem for view in Dataset(views, [0, 1], []).views] == ["x_0", "y_0"]
    (tmp_path / "train").mkdir()
    write_mask(tmp_path / "train" / "a.png", LABELS)
    assert MaskFolder(tmp_path).find("train_a", "train/a") == tmp_path / "train/a.png"


def test_times_run_from_0_to_1():
    camera = Camera(torch.eye(4), LENS.K, 4, 4)

    def times(*given: float | None) -> list[float]:
        names = ["c", "a", "b"]
        views = [View.from_image(n, camera, torch.zeros(4, 4, 3), time=t) for n, t in zip(names, given)]
        return Dataset(views, [0, 1, 2], []).times().tolist()

    assert times(10, 20, 50) == [0, 0.25, 1]
    assert times(10, None, 50) == times(3, 3, 3) == times(None, None, None) == [1, 0, 0.5]  # in name order
    assert Dataset([View.from_image("a", camera, torch.zeros(4, 4, 3))], [0], []).times().tolist() == [0]


def test_a_mask_in_memory():
    camera, mask = Camera(torch.eye(4), LENS.K, 4, 4), torch.rand(4, 4)
    view = View.from_image("a", camera, torch.zeros(4, 4, 3), motion_mask=mask)
    assert view.has_motion_mask and torch.equal(view.motion_mask(), mask) and view.file_size == (4, 4)
    with pytest.raises(ValueError, match=r"motion_mask must be float32 \[4, 4\]"):
        View.from_image("a", camera, torch.zeros(4, 4, 3), motion_mask=mask[1:])

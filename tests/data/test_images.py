import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gsfields.data.images import ImageCache, ImageFile, Pixels, decode, read_header, shrink
from gsfields.data.lens import Intrinsics


def overlap_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: what part of each new pixel each old one covers, from the definition."""
    weights = np.zeros((new, old))
    for i in range(new):
        for j in range(old):
            low, high = max(i * old / new, j), min((i + 1) * old / new, j + 1)
            weights[i, j] = max(0.0, high - low) * new / old
    return weights


@settings(max_examples=40, deadline=None)
@given(old=st.tuples(st.integers(1, 30), st.integers(1, 30)), data=st.data())
def test_shrink_is_the_mean_over_the_covered_area(old, data):
    height, width = data.draw(st.integers(1, old[0])), data.draw(st.integers(1, old[1]))
    image = np.random.default_rng(0).random((*old, 3), dtype=np.float32)
    expected = np.einsum(
        "ih,hwc,jw->ijc", overlap_matrix(old[0], height), image, overlap_matrix(old[1], width)
    )
    result = shrink(image, width, height)
    assert result.dtype == np.float32 and result.shape == (height, width, 3)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_shrink_does_not_enlarge():
    with pytest.raises(ValueError, match="cannot enlarge"):
        shrink(np.zeros((4, 4, 3), np.float32), 5, 4)


def test_transparent_pixels_are_composited(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    Image.fromarray(rgba, "RGBA").save(tmp_path / "a.png")
    background = (0.2, 0.5, 1.0)
    c, a = rgba[..., :3] / 255, rgba[..., 3:] / 255
    assert read_header(tmp_path / "a.png") == (6, 5, True)
    np.testing.assert_allclose(
        decode(tmp_path / "a.png", background), c * a + (1 - a) * background, atol=1e-6
    )


def test_colour_under_transparency_never_bleeds_into_a_shrunk_image(tmp_path):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 0] = 255  # red, but visible only in the left half
    rgba[:, :3, 3] = 255
    Image.fromarray(rgba, "RGBA").save(tmp_path / "a.png")
    lens = Intrinsics(8, 8, 8, 8, 4, 4)
    image = ImageFile(tmp_path / "a.png", lens, 4, 4, (0.0, 0.0, 1.0)).load().image
    assert image[0].tolist() == [[255, 0, 0], [128, 0, 128], [0, 0, 255], [0, 0, 255]]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "1", "CMYK"])
def test_common_kinds_of_images_are_read(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    source = Image.fromarray(np.full((4, 5, 3), 255, np.uint8)).convert(mode)
    source.save(path)
    image = decode(path, (0.0, 0.0, 0.0))
    assert image.shape == (4, 5, 3) and np.all(image == 1)


def test_a_mask_keeps_only_pixels_that_are_kept_whole(tmp_path):
    Image.fromarray(np.full((4, 8, 3), 100, np.uint8)).save(tmp_path / "a.png")
    mask = np.full((4, 8), 1, np.uint8)  # nonzero counts, however small
    mask[0, 2] = 0
    Image.fromarray(mask).save(tmp_path / "m.png")
    lens = Intrinsics(8, 4, 8, 8, 4, 2)
    pixels = ImageFile(tmp_path / "a.png", lens, 4, 2, (1.0, 1.0, 1.0), tmp_path / "m.png").load()
    assert pixels.mask.tolist() == [[True, False, True, True], [True] * 4]


def test_sixteen_bits_and_damage_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="8 bits"):
        read_header(tmp_path / "deep.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match="not a readable image"):
        read_header(tmp_path / "text.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
        tmp_path / "cut.png"
    )
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        decode(tmp_path / "cut.png", (1.0, 1.0, 1.0))


def pixels(value: int, size: int = 10) -> Pixels:
    return Pixels(torch.full((size, size, 3), value, dtype=torch.uint8), None)  # 300 bytes


def test_cache_stays_within_its_bound_and_drops_the_least_recently_used():
    cache = ImageCache(max_bytes=650)
    calls: list[int] = []

    def get(key: int) -> Pixels:
        return cache.get(key, lambda: (calls.append(key), pixels(key))[1])

    for key in (1, 2, 1, 3, 1, 2):  # 3 pushes out 2, the 2 again pushes out 3
        assert int(get(key).image[0, 0, 0]) == key
        assert cache.bytes <= 650
    assert calls == [1, 2, 3, 2]
    get(3)
    assert calls == [1, 2, 3, 2, 3]


def test_cache_of_nothing_still_answers():
    cache = ImageCache(max_bytes=0)
    assert int(cache.get("a", lambda: pixels(9)).image[0, 0, 0]) == 9 and cache.bytes == 0
    with pytest.raises(ValueError, match="max_bytes"):
        ImageCache(-1)

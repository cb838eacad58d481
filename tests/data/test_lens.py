import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from gsfields.data.lens import CAMERA_MODELS, Intrinsics, undistort

WIDTH, HEIGHT = 200, 150
PINHOLE = {"width": WIDTH, "height": HEIGHT, "fx": 170.0, "fy": 160.0, "cx": 104.0, "cy": 71.0}
LENSES = {
    "barrel": {"k1": -0.2, "k2": 0.03},
    "pincushion": {"k1": 0.15},
    "tangential": {"k1": -0.05, "p1": 0.01, "p2": -0.015},
    "sixth order": {"k1": -0.1, "k2": 0.05, "k3": -0.02},
}


def pattern(xy: np.ndarray) -> np.ndarray:
    """A smooth picture on the plane z = 1; its period is about 80 pixels."""
    x, y = xy[..., 0], xy[..., 1]
    waves = [np.sin(13 * x + 3 * y), np.cos(12 * y - 2 * x), np.sin(9 * x) * np.cos(9 * y)]
    return 0.5 + 0.5 * np.stack(waves, axis=-1)


def centres() -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5), axis=-1)


def normalised(pixels: np.ndarray) -> np.ndarray:
    return (pixels - [PINHOLE["cx"], PINHOLE["cy"]]) / [PINHOLE["fx"], PINHOLE["fy"]]


def brown(xy: np.ndarray, k1=0.0, k2=0.0, k3=0.0, p1=0.0, p2=0.0) -> np.ndarray:
    """The lens written out a second time, in the form of OpenCV's documentation."""
    x, y = xy[..., 0], xy[..., 1]
    r = np.hypot(x, y)
    radial = 1 + k1 * r**2 + k2 * r**4 + k3 * r**6
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2),
            y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y,
        ],
        -1,
    )


def without_lens(distorted: np.ndarray, lens: dict) -> np.ndarray:
    """The inverse of `brown`, by fixed-point iteration."""
    xy = distorted
    for _ in range(100):
        xy = xy + distorted - brown(xy, **lens)
    assert abs(brown(xy, **lens) - distorted).max() < 1e-9
    return xy


@pytest.mark.parametrize("name", LENSES)
def test_undistorted_photo_is_the_picture_a_pinhole_takes(name):
    lens = LENSES[name]
    photo = pattern(without_lens(normalised(centres()), lens))  # what the lens images at each pixel
    image, inside = undistort(torch.from_numpy(photo).float(), Intrinsics(**PINHOLE, **lens))
    error = abs(image.numpy() - pattern(normalised(centres())))
    # bilinear sampling is off by up to h^2/8 (f_xx + f_yy), 1e-3 here; half a pixel of shift would make 0.02
    well_inside = torch.from_numpy(
        ((s := Intrinsics(**PINHOLE, **lens).distort(centres())) > 0.5).all(-1)
        & (s < [WIDTH - 0.5, HEIGHT - 0.5]).all(-1)
    )
    assert error[well_inside.numpy()].max() < 2e-3
    assert inside[well_inside].all() and inside.float().mean() > 0.8
    assert error[inside.numpy()].max() < 0.03  # at the rim the nearest pixel is repeated over half a pixel


def test_pincushion_marks_the_border_and_barrel_does_not():
    assert undistort(torch.zeros(HEIGHT, WIDTH, 3), Intrinsics(**PINHOLE, **LENSES["barrel"]))[1].all()
    inside = undistort(torch.zeros(HEIGHT, WIDTH, 3), Intrinsics(**PINHOLE, **LENSES["pincushion"]))[1]
    assert not inside[0, 0] and not inside[-1, -1] and inside[70, 100]


def test_no_distortion_changes_no_pixel():
    image = torch.rand(HEIGHT, WIDTH, 3)
    result, inside = undistort(image, Intrinsics(**PINHOLE))
    assert torch.allclose(result, image, atol=2e-4) and inside.all()


def test_beyond_the_fold_nothing_is_shown_twice():
    lens = Intrinsics(**PINHOLE, k1=-0.8)  # r (1 - 0.8 r^2) turns back at r^2 = 1 / 2.4, inside this image
    inside = undistort(torch.zeros(HEIGHT, WIDTH, 3), lens)[1].numpy()
    r2 = (normalised(centres()) ** 2).sum(-1)
    assert lens.fold_radius2() == pytest.approx(1 / 2.4)
    assert not inside[r2 > 1 / 2.4].any() and inside[r2 < 1 / 2.4].all() and (r2 > 1 / 2.4).any()


@settings(max_examples=60, deadline=None)
@given(k1=st.floats(-0.5, 0.5), k2=st.floats(-0.3, 0.3), k3=st.floats(-0.1, 0.1))
def test_radius_grows_up_to_the_fold_and_no_further(k1, k2, k3):
    fold = math.sqrt(min(Intrinsics(**PINHOLE, k1=k1, k2=k2, k3=k3).fold_radius2(), 100.0))
    r = np.linspace(0, fold, 500)
    imaged = brown(np.stack([r, 0 * r], -1), k1, k2, k3)[:, 0]
    assert (np.diff(imaged) > -1e-9 * (1 + abs(imaged[1:]))).all()
    if fold < 9.9:
        step = 1e-4 * (1 + fold)
        beyond = brown(np.array([[fold, 0.0], [fold + step, 0.0]]), k1, k2, k3)[:, 0]
        assert beyond[1] - beyond[0] < 1e-6 * (1 + abs(beyond[0]))


@settings(max_examples=30, deadline=None)
@given(
    k1=st.floats(-0.1, 0.1), k2=st.floats(-0.05, 0.05), p1=st.floats(-0.01, 0.01), p2=st.floats(-0.01, 0.01)
)
def test_distort_agrees_with_opencvs_documentation_and_can_be_inverted(k1, k2, p1, p2):
    lens = Intrinsics(**PINHOLE, k1=k1, k2=k2, p1=p1, p2=p2)
    pixel = np.array([30.0, 40.0])
    expected = brown(normalised(pixel), k1, k2, 0, p1, p2) * [lens.fx, lens.fy] + [lens.cx, lens.cy]
    np.testing.assert_allclose(lens.distort(pixel), expected)
    found = least_squares(
        lambda p: lens.distort(p) - lens.distort(pixel), pixel + 3, xtol=1e-14, ftol=1e-14
    ).x
    np.testing.assert_allclose(found, pixel, atol=1e-5)


def test_distortion_does_not_depend_on_the_resolution():
    lens = Intrinsics(**PINHOLE, **LENSES["tangential"])
    half = lens.resized(WIDTH // 2, HEIGHT // 2)
    pixels = centres()[::20, ::20]
    np.testing.assert_allclose(half.distort(pixels / 2), lens.distort(pixels) / 2)


def test_models_name_their_parameters():
    assert Intrinsics.from_model("SIMPLE_PINHOLE", 8, 6, (5, 4, 3)) == Intrinsics(8, 6, 5, 5, 4, 3)
    assert Intrinsics.from_model("PINHOLE", 8, 6, (5, 7, 4, 3)) == Intrinsics(8, 6, 5, 7, 4, 3)
    assert Intrinsics.from_model("SIMPLE_RADIAL", 8, 6, (5, 4, 3, 0.1)) == Intrinsics(
        8, 6, 5, 5, 4, 3, k1=0.1
    )
    assert Intrinsics.from_model("RADIAL", 8, 6, (5, 4, 3, 0.1, 0.2)).k2 == 0.2
    opencv = Intrinsics.from_model("OPENCV", 8, 6, (5, 7, 4, 3, 0.1, 0.2, 0.3, 0.4))
    assert opencv == Intrinsics(8, 6, 5, 7, 4, 3, k1=0.1, k2=0.2, p1=0.3, p2=0.4) and opencv.distorted


@pytest.mark.parametrize(
    ("model", "parameters", "message"),
    [
        ("FULL_OPENCV", (1.0,) * 12, "FULL_OPENCV is not supported: it must be one of SIMPLE_PINHOLE"),
        ("PINHOLE", (1.0, 1.0), "takes 4 parameters, but has 2"),
        ("PINHOLE", (0.0, 1.0, 1.0, 1.0), "fx must be positive"),
        ("PINHOLE", (math.nan, 1.0, 1.0, 1.0), "fx must be finite"),
    ],
)
def test_bad_models_are_refused(model, parameters, message):
    assert set(CAMERA_MODELS) >= {"PINHOLE"}
    with pytest.raises(ValueError, match=message):
        Intrinsics.from_model(model, 8, 6, parameters)

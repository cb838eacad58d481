"""Labels of phrases: both layouts as they are released, polygons as OpenCV fills them, and broken files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gsfields.data.openvocab_labels import QueryTruth, open_labels, polygon_mask, view_of

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "lerf_langsplat.json"
HEIGHT, WIDTH = 12, 16


def thing(category, segmentation, bbox=(1, 2, 3, 4)):
    return {"category": category, "bbox": list(bbox), "segmentation": segmentation}


def write_frame(folder, stem, *objects, height=HEIGHT, width=WIDTH):
    folder.mkdir(parents=True, exist_ok=True)
    values = {"info": {"name": f"{stem}.jpg", "width": width, "height": height}, "objects": list(objects)}
    (folder / f"{stem}.json").write_text(json.dumps(values, ensure_ascii=False))


def write_masks(root, view, masks):
    folder = root / "segmentations" / view
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in masks.items():
        Image.fromarray(np.asarray(mask, dtype=np.uint8)).save(folder / f"{name}.png")


def write_classes(root, text):
    (root / "segmentations").mkdir(parents=True, exist_ok=True)
    (root / "segmentations" / "classes.txt").write_text(text)


SQUARE = [[2, 3], [6, 3], [6, 7], [2, 7]]


# --------------------------------------------------------------------------------------------------- polygons


def test_golden_polygon():
    if not GOLDEN.is_file():
        pytest.skip("../shared/golden/lerf_langsplat.json is not present")
    case = json.loads(GOLDEN.read_text())["polygon_to_mask"]
    mask = polygon_mask(np.array(case["points_xy"]), *case["shape"])
    assert np.array_equal(mask, np.array(case["mask"]) == 1)


def opencv_mask(points, height, width, margin=0):
    """cv2.fillPoly on an image that is larger by a margin all around."""
    cv2 = pytest.importorskip("cv2", reason="compares with OpenCV")
    image = np.zeros((height + 2 * margin, width + 2 * margin), np.uint8)
    cv2.fillPoly(image, [(np.asarray(points) + margin).astype(np.int32)], 1)
    return image[margin : margin + height, margin : margin + width] == 1


@st.composite
def polygons(draw, beyond=0):
    """(points, height, width); of any kind: crossing itself, touching itself, of no area."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    x, y = st.integers(-beyond, width - 1 + beyond), st.integers(-beyond, height - 1 + beyond)
    return np.array(draw(st.lists(st.tuples(x, y), min_size=1, max_size=9))), height, width


@settings(deadline=None, max_examples=300)
@given(polygons())
def test_polygons_are_opencv_s(polygon):
    assert np.array_equal(polygon_mask(*polygon), opencv_mask(*polygon))


@settings(deadline=None, max_examples=200)
@given(polygons(beyond=40))
def test_polygons_beyond_the_image_are_cut_off(polygon):
    """As if they were drawn on an image that holds them."""
    assert np.array_equal(polygon_mask(*polygon), opencv_mask(*polygon, margin=40))


def test_polygons_of_photos_are_opencv_s():
    """Long sides: the crossings in 16 binary places are off by more after some hundred rows."""
    rng = np.random.default_rng(0)
    for corners in (3, 5, 40, 200):
        points = np.stack([rng.integers(0, 987, corners), rng.integers(0, 730, corners)], axis=1)
        assert np.array_equal(polygon_mask(points, 730, 987), opencv_mask(points, 730, 987))


@settings(deadline=None, max_examples=15)
@given(polygons(beyond=20))
def test_polygons_hold_their_vertices_and_what_is_well_inside(polygon):
    """Without another program: a pixel more than one from every side is in by the even-odd rule alone."""
    points, height, width = polygon
    mask = polygon_mask(points, height, width)
    assert mask.shape == (height, width)
    for x, y in points:
        if 0 <= x < width and 0 <= y < height:
            assert mask[y, x]
    starts, ends = points.astype(float), np.roll(points, -1, axis=0).astype(float)
    for y in range(height):
        for x in range(width):
            inside, distance = False, np.inf
            for (x0, y0), (x1, y1) in zip(starts, ends):
                side = np.array([x1 - x0, y1 - y0])
                along = np.clip(((x - x0) * side[0] + (y - y0) * side[1]) / max(side @ side, 1e-9), 0, 1)
                distance = min(distance, np.hypot(x0 + along * side[0] - x, y0 + along * side[1] - y))
                if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
                    inside = not inside
            if distance > 1:
                assert mask[y, x] == inside


def test_polygons_far_beyond_the_image():
    everything = np.array([[-(10**6), -(10**6)], [10**6, -(10**6)], [10**6, 10**6], [-(10**6), 10**6]])
    assert polygon_mask(everything, 5, 7).all()
    assert not polygon_mask(everything // 4 + 250_008, 5, 7).any()
    with pytest.raises(ValueError, match="points must lie within 1000000 pixels, but reach 1000001"):
        polygon_mask(np.array([[10**6 + 1, 0]]), 5, 7)
    with pytest.raises(ValueError, match=r"points must be \[n, 2\] whole numbers, but are float64 \[1, 2\]"):
        polygon_mask(np.array([[0.5, 1]]), 5, 7)


# --------------------------------------------------------------------------------------------------- LERF-OVS


def test_lerf_ovs(tmp_path):
    label = tmp_path / "label" / "teatime"
    overlapping = [[5, 1], [12, 1], [12, 4], [5, 4]]
    write_frame(
        label,
        "frame_00041",
        thing("Stainless steel pots ", SQUARE, (2, 3, 6, 7)),
        thing("spoon", [[1, 9], [1, 9], [1, 9]], (0.5, 8, 1.5, 10)),
        thing("Stainless steel pots ", overlapping, (5, 1, 12, 4)),
    )
    write_frame(label, "frame_00002", thing("bœuf", SQUARE))
    write_frame(label, "frame_00003")
    labels = open_labels(tmp_path, "teatime")
    assert (labels.protocol, labels.root, labels.kinds) == ("lerf-ovs", label, {})
    assert labels.stems == ["frame_00002", "frame_00003", "frame_00041"]
    assert labels.prompts == ["Stainless steel pots ", "bœuf", "spoon"]
    assert labels.of("frame_00003") == []

    pots, one = labels.of("frame_00041")
    assert pots.prompt == "Stainless steel pots "  # as it stands
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[3:8, 2:7] = expected[1:5, 5:13] = True  # both objects, boundaries included
    assert torch.equal(pots.mask, torch.from_numpy(expected))
    assert torch.equal(pots.boxes, torch.tensor([[2.0, 3, 6, 7], [5, 1, 12, 4]]))
    assert (one.prompt, one.mask.nonzero().tolist(), one.boxes.tolist()) == (
        "spoon",
        [[9, 1]],
        [[0.5, 8, 1.5, 10]],
    )
    with pytest.raises(ValueError, match="has no labels of view frame_00004, only of frame_00002, "):
        labels.of("frame_00004")


def test_vertices_are_cut_towards_zero(tmp_path):
    """As numpy makes int32 of floats, and the released code with it."""
    write_frame(tmp_path, "frame_00001", thing("a", [[-0.9, 3.9], [6.99, 3.2], [6.5, 7.999], [-0.2, 7]]))
    (truth,) = open_labels(tmp_path).of("frame_00001")
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    expected[3:8, :7] = True
    assert torch.equal(truth.mask, expected)


def test_where_lerf_ovs_is_found(tmp_path):
    for scene in ("ramen", "teatime"):
        write_frame(tmp_path / "label" / scene, "frame_00001", thing(scene, SQUARE))
        (tmp_path / scene / "images").mkdir(parents=True)

    def prompts(*arguments):
        return open_labels(*arguments).prompts

    assert prompts(tmp_path, "ramen") == prompts(str(tmp_path), "ramen") == ["ramen"]
    assert prompts(tmp_path / "label", "ramen") == ["ramen"]
    assert (
        prompts(tmp_path / "label" / "ramen") == prompts(tmp_path / "label" / "ramen", "ramen") == ["ramen"]
    )
    assert prompts(tmp_path / "ramen") == ["ramen"]  # the scene, as LERF-OVS is released
    with pytest.raises(ValueError, match="holds labels of several scenes, ramen, teatime: name one"):
        open_labels(tmp_path)
    for arguments in ((tmp_path, "figurines"), (tmp_path / "label" / "ramen", "teatime"), (tmp_path / "no",)):
        with pytest.raises(FileNotFoundError, match="holds no labels"):
            open_labels(*arguments)
    (tmp_path / "label" / "ramen" / "frame_00001.json").unlink()
    assert prompts(tmp_path) == prompts(tmp_path / "label") == ["teatime"]  # the only one


def broken(**changes):
    """A frame's json with values changed; None takes the key away."""
    values = {
        "info": {"width": WIDTH, "height": HEIGHT},
        "objects": [thing("a", SQUARE)],
    }
    for path, value in changes.items():
        *keys, last = path.split("__")
        entry = values
        for key in keys:
            entry = entry[0] if key == "first" else entry[key]
        if value is None:
            del entry[last]
        else:
            entry[last] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a frame's labels in json"),
        ("[]", "is not a frame's labels in json"),
        (broken(info=None), "lacks 'info'"),
        (broken(info__width=None), "lacks 'width'"),
        (broken(info__width="wide"), "'wide' is not a whole number"),
        (broken(info__width=3.5), "3.5 is not a whole number"),
        (broken(info__height=0), "must be of an image of 1 to 65535 pixels, but says 16 x 0"),
        (broken(info__width=10**7), "must be of an image of 1 to 65535 pixels"),
        (broken(objects={"a": 1}), "is not a frame's labels in json"),
        (broken(objects__first__category=None), "lacks 'category'"),
        (broken(objects__first__category=7), "category 7 is not a text"),
        (broken(objects__first__segmentation=None), "lacks 'segmentation'"),
        (broken(objects__first__segmentation=[]), "segmentation of 'a' is not one polygon"),
        (broken(objects__first__segmentation=[SQUARE, SQUARE]), "segmentation of 'a' is not one polygon"),
        (broken(objects__first__segmentation=[[1, 2], [3]]), "is not a frame's labels in json"),
        (broken(objects__first__segmentation=[[1, float("nan")]]), "has vertices beyond 1000000 pixels"),
        (broken(objects__first__segmentation=[[1, 2e6]]), "has vertices beyond 1000000 pixels"),
        (broken(objects__first__bbox=None), "lacks 'bbox'"),
        (broken(objects__first__bbox=[1, 2, 3]), r"bbox of 'a' is not \[x1, y1, x2, y2\]"),
        (broken(objects__first__bbox=[1, 2, 3, float("inf")]), "bbox of 'a' is not"),
    ],
)
def test_broken_frames(tmp_path, text, message):
    (tmp_path / "frame_00001.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        open_labels(tmp_path)
    assert "frame_00001.json" in str(error.value)
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------- 3D-OVS


def ramp(*values):
    """[HEIGHT, WIDTH] that starts with the values."""
    mask = np.zeros(HEIGHT * WIDTH, np.uint8)
    mask[: len(values)] = values
    return mask.reshape(HEIGHT, WIDTH)


def test_3d_ovs(tmp_path):
    write_classes(tmp_path, " red bag\nbanana \n\nwood wall")
    write_masks(
        tmp_path, "03", {"red bag": ramp(255, 254, 1, 255), "banana": ramp(), "wood wall": ramp(0, 255)}
    )
    write_masks(tmp_path, "00", {"red bag": ramp(255)})
    for root in (tmp_path, tmp_path / "segmentations"):
        labels = open_labels(root)
        assert (labels.protocol, labels.root.resolve()) == ("3d-ovs", (tmp_path / "segmentations").resolve())
        assert labels.stems == ["00", "03"]
        assert labels.prompts == ["banana", "red bag", "wood wall"]  # sorted
        assert labels.kinds == {}
    assert open_labels(tmp_path.parent, tmp_path.name).stems == ["00", "03"]

    banana, bag, wall = labels.of("03")
    assert (banana.prompt, bag.prompt, wall.prompt) == ("banana", "red bag", "wood wall")
    assert bag.mask.shape == (HEIGHT, WIDTH)
    assert bag.mask.nonzero().tolist() == [[0, 0], [0, 3]]  # 254 is not 255
    assert not banana.mask.any()
    assert wall.boxes.shape == (0, 4)
    assert [truth.prompt for truth in labels.of("00")] == ["red bag"]  # the view asks for no more


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_any_png_of_8_bits(tmp_path, mode):
    write_classes(tmp_path, "a\n")
    write_masks(tmp_path, "x", {"a": ramp(255, 0, 255)})
    path = tmp_path / "segmentations" / "x" / "a.png"
    Image.open(path).convert(mode).save(path)
    (truth,) = open_labels(tmp_path).of("x")
    assert truth.mask.nonzero().tolist() == [[0, 0], [0, 2]]


def test_kinds(tmp_path):
    write_classes(tmp_path, "mug\nmug and plate\nhandle of the mug")
    write_masks(tmp_path, "view_1", {"mug": ramp(255)})
    queries = tmp_path / "segmentations" / "queries.json"
    kinds = {"mug": "simple", "mug and plate": "compound", "handle of the mug": "partitive"}
    queries.write_text(json.dumps({prompt: {"kind": kind, "of": [1, 2]} for prompt, kind in kinds.items()}))
    assert open_labels(tmp_path).kinds == kinds
    for text, message in {
        "[]": r'queries.json must be \{"<prompt>"',
        '{"mug": {}}': r'queries.json must be \{"<prompt>"',
        '{"mug": {"kind": "odd"}}': "kind of 'mug' must be one of simple, compound, partitive, but is 'odd'",
        '{"cup": {"kind": "simple"}}': "queries.json has 'cup', which classes.txt does not list",
    }.items():
        queries.write_text(text)
        with pytest.raises(ValueError, match=message):
            open_labels(tmp_path)


def test_broken_3d_ovs(tmp_path):
    write_classes(tmp_path, "\n \n")
    with pytest.raises(ValueError, match=r"classes.txt lists no prompts"):
        open_labels(tmp_path)
    write_classes(tmp_path, "a\n a")
    with pytest.raises(ValueError, match=r"classes.txt lists 'a' twice"):
        open_labels(tmp_path)
    write_classes(tmp_path, "a/b")
    with pytest.raises(ValueError, match=r"lists 'a/b', which cannot be the name of a file"):
        open_labels(tmp_path)
    (tmp_path / "segmentations" / "classes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"classes.txt is not a text"):
        open_labels(tmp_path)
    write_classes(tmp_path, "a\nb")
    with pytest.raises(FileNotFoundError, match="has no views"):
        open_labels(tmp_path)
    write_masks(tmp_path, "00", {"a": ramp(), "B": ramp()})
    with pytest.raises(ValueError, match=r"00 has no b.png, but a B.png, which classes.txt does not list"):
        open_labels(tmp_path).of("00")
    write_masks(tmp_path, "00", {"b": ramp()[:3], "B": ramp()})
    with pytest.raises(ValueError, match=r"b.png is \[3, 16\], but a.png beside it \[12, 16\]"):
        open_labels(tmp_path).of("00")
    (tmp_path / "segmentations" / "00" / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b.png is not a readable image"):
        open_labels(tmp_path).of("00")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(tmp_path / "segmentations" / "00" / "b.png")
    with pytest.raises(ValueError, match=r"b.png must be a png of 8 bits, but is I;16"):
        open_labels(tmp_path).of("00")


# ------------------------------------------------------------------------------------------------------ views


def test_views_of_labels():
    shuffled = ["frame_00003", "frame_00001", "frame_00007"]
    assert view_of("frame_00001", shuffled) == 1
    assert view_of("frame_00002", shuffled) is None  # missing; not the second
    images = ["IMG_7", "IMG_5", "IMG_6"]  # by name: 5, 6, 7
    assert [view_of(f"frame_0000{i}", images) for i in range(5)] == [None, 1, 2, 0, None]
    assert [view_of(str(i), images) for i in range(4)] == [1, 2, 0, None]
    assert view_of("00", images) == 1
    assert view_of("teapot", images) is None
    assert view_of("IMG_6", images) == 2
    numbered = ["000", "001", "005"]
    assert (view_of("05", numbered), view_of("2", numbered), view_of("001", numbered)) == (2, None, 1)
    assert view_of("frame_00002", numbered) == 1
    assert view_of("7", ["07", "007"]) is None  # either
    assert view_of("0", []) is None


def test_truths_are_checked():
    with pytest.raises(ValueError, match=r"mask must be bool \[H, W\], but is torch.float32 \[3, 4\]"):
        QueryTruth("a", torch.zeros(3, 4), torch.zeros(0, 4))
    with pytest.raises(
        ValueError, match=r"boxes must be floating point \[b, 4\], but are torch.float32 \[4\]"
    ):
        QueryTruth("a", torch.zeros(3, 4).bool(), torch.zeros(4))

"""The objects of a run on disk: id maps, classes, Gaussians, the table and the contact sheet; and picking one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.fit.object_files import (
    ViewObjects,
    bounding_box,
    id_colors,
    object_at,
    palette,
    parse_at,
    pick,
    sheet_row,
    write_objects,
)
from gsfields.gaussians import Gaussians

IDS = torch.tensor(
    [[0, 1, 1, 3], [0, 1, 3, 3], [0, 0, 0, 3]]
)  # [h, w]; there is an object 2, but it does not show


@pytest.fixture
def scene():
    """Ten Gaussians, of which number i stands at (i, -i, 2 i); objects 1 and 3 have some, object 2 has none."""
    steps = torch.arange(10.0)[:, None]
    gaussians = Gaussians.from_points(steps * torch.tensor([1.0, -1, 2]), torch.rand(10, 3))
    return gaussians, torch.tensor([0, 1, 1, 3, 0, 3, 3, 1, 0, 3], dtype=torch.int32)


CLASSES = torch.tensor([5, 5, 8], dtype=torch.int32)


def views(**more):
    yield ViewObjects("a", IDS, image=torch.rand(6, 8, 3), segments=IDS * 400, **more)
    yield ViewObjects("b", IDS.flip(0).clamp(max=1))
    yield ViewObjects("c", 0 * IDS, image=torch.rand(3, 4, 3))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_files(tmp_path, scene):
    gaussians, owners = scene
    table = write_objects(tmp_path, views(), gaussians, owners, CLASSES, names={8: "chair"})
    root = tmp_path / "instances"
    names = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    maps = {f"{folder}/{stem}.png" for folder in ("ids", "semantics") for stem in "abc"}
    assert names == maps | {"objects/1.ply", "objects/3.ply", "objects.json", "sheet.png"}
    with Image.open(root / "ids" / "a.png") as image:
        assert image.mode == "I;16"
    np.testing.assert_array_equal(read(root / "ids" / "a.png"), IDS)
    np.testing.assert_array_equal(read(root / "ids" / "b.png"), IDS.flip(0).clamp(max=1))
    expected = np.array([0, 5, 5, 8])[IDS.numpy()]
    np.testing.assert_array_equal(read(root / "semantics" / "a.png"), expected)
    saved = Gaussians.from_ply(root / "objects" / "3.ply")
    torch.testing.assert_close(saved.means, gaussians.means[[3, 5, 6, 9]])
    assert len(Gaussians.from_ply(root / "objects" / "1.ply")) == 3
    with Image.open(root / "sheet.png") as sheet:  # two rows of three images, the size of the first
        assert sheet.width == 3 * (8 + 6) + 6 and sheet.height == 16 + 2 * (6 + 6) + 6

    assert [(o.id, o.class_id, o.class_name, o.pixels, o.views, o.gaussians) for o in table.objects] == [
        (1, 5, "", 3 + 7, 2, 3),
        (2, 5, "", 0, 0, 0),
        (3, 8, "chair", 4, 1, 4),
    ]
    assert table.objects[0].box == [[1, -7, 2], [7, -1, 14]] and table.objects[1].box is None
    written = json.loads((root / "objects.json").read_text())["objects"]
    assert written[2] == {
        "id": 3,
        "class_id": 8,
        "class_name": "chair",
        "pixels": 4,
        "views": 1,
        "gaussians": 4,
        "box": [[3, -9, 6], [9, -3, 18]],
    }
    assert len(table) == 3
    lines = str(table).splitlines()
    assert len(lines) == 4 and lines[2].split() == ["2", "5", "0", "0", "0", "-"]
    assert lines[3].split()[:2] == ["3", "chair"] and lines[3].endswith("3, -9, 6 to 9, -3, 18")


def test_semantics_may_be_given(tmp_path, scene):
    semantics = torch.full((3, 4), 300)
    write_objects(tmp_path, [ViewObjects("a", IDS, semantics)], *scene, CLASSES)
    np.testing.assert_array_equal(read(tmp_path / "instances" / "semantics" / "a.png"), semantics)
    assert not (tmp_path / "instances" / "sheet.png").exists()


def test_no_objects(tmp_path, scene):
    gaussians, owners = scene
    table = write_objects(
        tmp_path, [ViewObjects("a", 0 * IDS)], gaussians, 0 * owners, torch.zeros(0, dtype=torch.int32)
    )
    assert len(table) == 0 and not list((tmp_path / "instances" / "objects").iterdir())
    assert read(tmp_path / "instances" / "semantics" / "a.png").max() == 0


def test_a_second_time_replaces_the_first_unless_it_fails(tmp_path, scene):
    write_objects(tmp_path, views(), *scene, CLASSES)
    (tmp_path / "instances" / "field.safetensors").write_text("of someone else")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def broken():
        yield ViewObjects("z", IDS)
        raise RuntimeError("a view that cannot be rendered")

    with pytest.raises(RuntimeError, match="cannot be rendered"):
        write_objects(tmp_path, broken(), *scene, CLASSES)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    write_objects(tmp_path, [ViewObjects("z", IDS)], *scene, CLASSES)
    assert not (tmp_path / "instances" / "sheet.png").exists()  # it showed the objects of before
    assert [p.name for p in (tmp_path / "instances" / "ids").iterdir()] == ["z.png"]
    assert (tmp_path / "instances" / "field.safetensors").exists()


def test_bad_inputs(tmp_path, scene):
    gaussians, owners = scene
    one = [ViewObjects("a", IDS)]
    for arguments, said in [
        (
            (one, gaussians, owners[:9], CLASSES),
            r"gaussian_ids must be \[10\] like the Gaussians, but is \[9\]",
        ),
        ((one, gaussians, owners, CLASSES[:2]), "gaussian_ids must lie in 0 to 2, the number of objects"),
        ((one, gaussians, owners.float(), CLASSES), "gaussian_ids must be whole numbers"),
        ((one, gaussians, owners, CLASSES[:, None]), r"classes must be \[K\]"),
        (([ViewObjects("a", IDS + 1)], gaussians, owners, CLASSES), "ids of view a must lie in 0 to 3"),
        (([ViewObjects("a", IDS[0])], gaussians, owners, CLASSES), r"ids of view a must be \[h, w\]"),
        (([ViewObjects("a", IDS, IDS[:2])], gaussians, owners, CLASSES), "semantics of view a must be"),
    ]:
        with pytest.raises(ValueError, match=said):
            write_objects(tmp_path, *arguments)
    with pytest.raises(FileNotFoundError, match="no run at"):
        write_objects(tmp_path / "none", one, gaussians, owners, CLASSES)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_few_stray_gaussians_do_not_blow_up_the_box():
    points = torch.rand(1000, 3)
    points[:5] = torch.tensor([1e6, -1e6, 0.5])
    low, high = bounding_box(points)
    assert min(low) >= 0 and max(high) <= 1 and min(b - a for a, b in zip(low, high)) > 0.95
    assert bounding_box(points[:1]) == [points[0].tolist()] * 2 and bounding_box(points[:0]) is None


def test_picking_by_a_pixel(tmp_path, scene):
    gaussians, owners = scene
    write_objects(tmp_path, views(), gaussians, owners, CLASSES)
    assert object_at(tmp_path, "a", 3, 0) == 3 and object_at(tmp_path, "a", 0, 0) == 0
    assert pick(IDS, 1, 1) == 1
    for x, y in ((4, 0), (0, 3), (-1, 0)):
        with pytest.raises(ValueError, match=rf"pixel \({x}, {y}\) lies outside the image, which is 4x3"):
            object_at(tmp_path, "a", x, y)
    with pytest.raises(FileNotFoundError, match="no objects for a view z: it has a to c"):
        object_at(tmp_path, "z", 0, 0)
    with pytest.raises(FileNotFoundError, match="`gsfields instances` writes"):
        object_at(tmp_path / "other", "z", 0, 0)


def test_places_in_words():
    assert parse_at("frame_001,12,34") == ("frame_001", 12, 34)
    assert parse_at("a,b,1,2") == ("a,b", 1, 2)
    for text in ("a,1", "a,1,2.5", "a,x,y", ",1,2", ""):
        with pytest.raises(ValueError, match="must be STEM,X,Y"):
            parse_at(text)


def test_colours_are_distinct_and_stable():
    colors = palette(500)
    assert colors.shape == (501, 3) and not colors[0].any() and colors.min() >= 0 and colors.max() <= 1
    torch.testing.assert_close(palette(3), colors[:4], rtol=0, atol=0)
    assert torch.pdist(colors[:26]).min() > 0.1 and torch.pdist(colors).min() > 0.01
    assert (colors[1:-1] - colors[2:]).norm(dim=1).min() > 0.2  # neighbours in number
    assert colors[1:].amax(dim=1).min() > 0.5  # none so dark as what is no object
    np.testing.assert_array_equal(id_colors(IDS)[0, 3], colors[3])


def test_rows_of_the_sheet():
    """Maps finer or coarser than the image are brought to its size, large ones made smaller."""
    ids = torch.zeros(200, 400, dtype=torch.int32)
    ids[:, 200:] = 7
    image = torch.full((500, 1000, 3), 0.5)
    pictures = sheet_row(ViewObjects("a", ids, image=image))
    assert [p.shape for p in pictures] == [(160, 320, 3)] * 3
    torch.testing.assert_close(pictures[0], torch.full((160, 320, 3), 0.5))
    assert (pictures[1] == 1).all()  # no 2D segments
    torch.testing.assert_close(pictures[2][:, 160:], (0.75 * palette(7)[7]).expand(160, 160, 3))
    torch.testing.assert_close(pictures[2][:, :160], torch.full((160, 160, 3), 0.2))
    assert sheet_row(ViewObjects("b", ids, image=image), torch.Size((30, 60)))[2].shape == (30, 60, 3)

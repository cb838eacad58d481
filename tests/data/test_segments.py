"""Segments: what the files may hold, where they are looked for, and how they follow their images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.camera import Camera
from gsfields.data import View, load_dataset
from gsfields.data.segments import (
    Classes,
    open_segments,
    open_truth,
    read_confidence,
    read_labels,
    write_ids,
)

from .writers import HEIGHT, WIDTH, make_rig, write_blender, write_colmap_binary, write_nerfstudio

IDS = np.kron(np.arange(6).reshape(2, 3), np.ones((HEIGHT // 2, WIDTH // 3))).astype(np.int64)


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def one_view(width=WIDTH, height=HEIGHT, name="photo_000.png"):
    K = torch.tensor([[40.0 * width / WIDTH, 0, width / 2], [0, 40.0, height / 2], [0, 0, 1]])
    return View.from_image(name, Camera(torch.eye(4), K, width, height), torch.zeros(height, width, 3))


def test_written_ids_are_read_back(tmp_path):
    ids = torch.tensor([[0, 1, 65535], [256, 7, 300]])
    for given in (ids, ids.int(), ids.numpy().astype(np.uint16)):
        write_ids(tmp_path / "a.png", given)
        with Image.open(tmp_path / "a.png") as image:
            assert image.mode == "I;16"
        back = read_labels(tmp_path / "a.png")
        assert back.dtype == np.int32 and back.tolist() == ids.tolist()
    for bad in (ids - 1, ids + 1, ids.float(), ids[0]):
        with pytest.raises(ValueError, match="ids must"):
            write_ids(tmp_path / "b.png", bad)
    assert not (tmp_path / "b.png").exists()


def test_kinds_of_label_files(tmp_path):
    small = (IDS * 40).astype(np.uint8)
    palette = Image.fromarray(small).convert("L")
    palette.putpalette([channel for i in range(256) for channel in (i, 255 - i, 7)])
    for image in (Image.fromarray(small), palette):
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), small)
    Image.fromarray(small > 0).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), small > 0)
    for values in (IDS, IDS.astype(np.int16), IDS.astype(np.float32), IDS[..., None] * 100_000, IDS > 2):
        np.save(tmp_path / "a.npy", values)
        np.testing.assert_array_equal(read_labels(tmp_path / "a.npy"), values.reshape(IDS.shape))


def test_files_that_are_no_labels(tmp_path):
    save(tmp_path / "rgb.png", np.zeros((4, 4, 3), np.uint8))
    np.save(tmp_path / "half.npy", IDS + 0.5)
    np.save(tmp_path / "below.npy", IDS - 1)
    np.save(tmp_path / "flat.npy", IDS.ravel())
    np.save(tmp_path / "objects.npy", np.array([[None]]))
    (tmp_path / "text.png").write_text("no")
    for name, message in {
        "rgb.png": "grey or palette png, but are RGB",
        "half.npy": "must be whole numbers, but are float64",
        "below.npy": r"must lie in 0 to 2\^31 - 1",
        "flat.npy": r"must be \[H, W\]",
        "objects.npy": "not a readable numpy array",
        "text.png": "not a readable image",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_labels(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="are missing"):
        read_labels(tmp_path / "none.png")
    for values in (IDS.astype(np.float32), np.full((2, 2), np.nan)):
        np.save(tmp_path / "sure.npy", values)
        with pytest.raises(ValueError, match=r"numbers in \[0, 1\] only"):
            read_confidence(tmp_path / "sure.npy")


def test_all_that_is_said_of_an_image(tmp_path):
    save(tmp_path / "segments/a.png", IDS.astype(np.uint16))
    save(tmp_path / "segments/b.png", IDS.astype(np.uint8))
    save(tmp_path / "semantics/a.png", (IDS % 3).astype(np.uint8)[::2, ::2])  # on a coarser grid
    np.save(tmp_path / "semantics/b.npy", IDS)
    save(tmp_path / "confidences/a.png", (IDS * 51).astype(np.uint8))
    source = open_segments(tmp_path)
    assert source.stems == ["a", "b"] and source.read("c") is None
    a, b = source.read("a"), source.read("b")
    assert (a.ids.dtype, a.semantics.dtype, a.confidence.dtype) == (torch.int32, torch.int32, torch.float32)
    np.testing.assert_array_equal(a.ids, IDS)
    np.testing.assert_array_equal(a.semantics, IDS % 3)
    np.testing.assert_allclose(a.confidence, IDS / 5, atol=1e-6)
    np.testing.assert_array_equal(b.semantics, IDS)
    assert b.confidence is None
    # the same, named by the folder of the maps
    again = open_segments(tmp_path / "segments").read("a")
    assert all(torch.equal(x, y) for x, y in zip(a, again))
    save(tmp_path / "semantics/b.png", np.zeros((HEIGHT, HEIGHT), np.uint8))
    with pytest.raises(ValueError, match=r"b.png is 32x32, but the ids of its image are 48x32, .* aspect"):
        source = open_segments(tmp_path)
        source.read("b")


def test_labels_of_a_smaller_view_are_those_of_the_nearest_pixel(tmp_path):
    ids = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
    save(tmp_path / "segments/photo_000.png", ids)
    source = open_segments(tmp_path)
    for width, height in (
        (WIDTH, HEIGHT),
        (WIDTH // 2, HEIGHT // 2),
        (WIDTH // 3, 11),
        (2 * WIDTH, 2 * HEIGHT),
    ):
        nearest = Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST)
        found = source.of(one_view(width, height))
        np.testing.assert_array_equal(found.ids, np.asarray(nearest))
        assert found.semantics is None and found.confidence is None
    assert source.of(one_view(name="photo_001.png")) is None
    with pytest.raises(ValueError, match=r"photo_000.png in .* are 48x32, but the image is 32x48"):
        source.of(one_view(HEIGHT, WIDTH))


def test_labels_of_a_dataset(tmp_path):
    """Also where the photo's camera is loaded at another size."""
    write_nerfstudio(tmp_path, make_rig(3))
    save(tmp_path / "segments/photo_001.png", np.kron(IDS, np.ones((2, 2))).astype(np.uint16))
    source = open_segments(tmp_path / "transforms.json")
    views = load_dataset(tmp_path).views
    assert source.of(views[0]) is None and not source.has(views[0]) and source.has(views[1])
    np.testing.assert_array_equal(source.of(views[1]).ids, IDS)
    small = load_dataset(tmp_path, width=WIDTH // 2).views[1]
    np.testing.assert_array_equal(source.of(small).ids, IDS[::2, ::2])


def test_labels_of_photos_in_subfolders(tmp_path):
    write_blender(tmp_path, make_rig(4))
    views = load_dataset(tmp_path).views
    for view in views:
        save(tmp_path / "segments" / view.name, IDS.astype(np.uint8))
    source = open_segments(tmp_path)
    for view in views:
        assert (
            source.has(view)
            and source.of(view) is not None
            and source.read(view.name.rpartition(".")[0]) is not None
        )
    assert source.read(views[0].name.rpartition(".")[0].replace("/", "_")) is not None


@pytest.mark.parametrize("k1", [-0.2, 0.2])
def test_labels_follow_the_undistorted_image(tmp_path, k1):
    """Ids that are the photo's grey values still are once both are undistorted, but at edges, which blend."""
    rig = make_rig(3)
    rig.model, rig.parameters = "OPENCV", (40.0, 41.0, 23.0, 17.0, k1, 0.0, 0.003, -0.002)
    rig.images = [np.repeat(IDS[..., None] * 40 + 20, 3, axis=-1).astype(np.uint8)] * 3
    write_colmap_binary(tmp_path, rig)
    for name in rig.names:
        save(tmp_path / "segments" / name, rig.images[0][..., 0])
        save(tmp_path / "semantics" / name, rig.images[0][..., 0])
    source = open_segments(tmp_path)
    for width in (WIDTH, WIDTH // 2):
        view = load_dataset(tmp_path, width=width).views[0]
        found = source.of(view)
        grey = view.image()[..., 0] * 255
        same = (grey - found.ids).abs() < 0.6
        shown = view.mask() > 0 if view.mask() is not None else torch.ones_like(same)
        assert same[shown].float().mean() > (0.85 if width == WIDTH else 0.7)
        flat = torch.nn.functional.max_pool2d(grey[None], 3, 1, 1) == -torch.nn.functional.max_pool2d(
            -grey[None], 3, 1, 1
        )
        assert same[shown & flat[0]].all()
        if k1 > 0:  # pincushion: some of the pinhole image lies beyond the photo
            assert (found.ids[~shown] == 0).float().mean() > 0.5 and (found.ids == 0).any()
            assert (found.ids[shown] > 0).all() and not found.semantics[found.ids == 0].any()


def test_classes_stated_and_told_from_the_labels(tmp_path):
    save(tmp_path / "segments/a.png", IDS.astype(np.uint8))
    assert open_segments(tmp_path).classes == Classes((1,), (0,))
    semantics = np.where(IDS == 5, 9, np.where(IDS > 2, 4, 0)).astype(np.uint8)
    semantics[:3, :16] = 7  # no segment there
    save(tmp_path / "semantics/a.png", semantics)
    # class 0 is 2/3 segment, too, but for the corner that is class 7
    assert open_segments(tmp_path).classes == Classes((0, 4, 9), (7,))
    save(tmp_path / "segments/a.png", np.where(IDS > 2, IDS, 0).astype(np.uint8))
    assert open_segments(tmp_path).classes == Classes((4, 9), (0, 7))
    stated = {"things": [4], "stuff": [0, 9], "names": {"4": "chair"}}
    (tmp_path / "classes.json").write_text(json.dumps(stated))
    assert open_segments(tmp_path).classes == Classes((4,), (0, 9), {4: "chair"})
    for bad, message in (
        ("no", "must be"),
        ('{"things": [1]}', "must be"),
        ('{"things": ["a"], "stuff": []}', "must be"),
        ('{"things": [1], "stuff": [1]}', "class must be a thing or stuff, but 1 is listed as both"),
        ('{"things": [-1], "stuff": []}', "must not be negative"),
    ):
        (tmp_path / "classes.json").write_text(bad)
        with pytest.raises(ValueError, match=rf"classes.json.*{message}"):
            open_segments(tmp_path)


@pytest.mark.parametrize(
    ("ids", "semantics"),
    [
        ("annotations/instances", "annotations/semantics"),
        ("instances", "semantics"),
        ("truth/maps", "truth/semantics"),
    ],
)
def test_true_labels(tmp_path, ids, semantics):
    save(tmp_path / ids / "a.png", IDS.astype(np.uint16))
    save(tmp_path / semantics / "a.png", (IDS > 2).astype(np.uint8))
    source = open_truth(tmp_path / ids if ids == "truth/maps" else tmp_path)
    found = source.read("a")
    np.testing.assert_array_equal(found.ids, IDS)
    np.testing.assert_array_equal(found.semantics, IDS > 2)
    assert found.confidence is None and open_truth(tmp_path / ids).read("a").semantics is not None


def test_folders_without_segments(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no segments at .*nowhere"):
        open_segments(tmp_path / "nowhere")
    write_nerfstudio(tmp_path, make_rig(3))
    save(tmp_path / "sheet.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(
        ValueError, match="holds no segments: it must hold segments, detic_instance, m2f_instance, or"
    ):
        open_segments(tmp_path)
    with pytest.raises(ValueError, match="holds no true labels: it must hold annotations/instances, "):
        open_truth(tmp_path)
    (tmp_path / "segments").mkdir()
    with pytest.raises(ValueError, match="segments is empty"):
        open_segments(tmp_path)

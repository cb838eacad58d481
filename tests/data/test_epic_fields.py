"""EPIC Fields: one video's json, with photos in a folder or a tar, the benchmark's split, and VISOR's names."""

import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.data import load_dataset
from gsfields.data.epic_fields import VisorMapping
from gsfields.data.motion_masks import write_mask

from .writers import FOCAL, HEIGHT, WIDTH, Rig, make_rig, quaternion

VIDEO = "P01_01"
NUMBERS = (3, 10, 12, 40, 41, 77, 90, 91, 120)


@pytest.fixture
def rig() -> Rig:
    rig = make_rig(len(NUMBERS))
    rig.names = [f"frame_{number:010d}.png" for number in NUMBERS]
    return rig


def document(rig: Rig, *, as_list: bool = False, distortion=(0.0, 0.0, 0.0, 0.0)) -> dict:
    poses = {
        name: [*map(float, quaternion(v[:3, :3])), *map(float, v[:3, 3])]
        for name, v in zip(rig.names, rig.viewmats)
    }
    return {
        "camera": {
            "id": 1,
            "model": "OPENCV",
            "width": WIDTH,
            "height": HEIGHT,
            "params": [FOCAL, FOCAL + 1, WIDTH / 2, HEIGHT / 2, *distortion],
        },
        "images": [[*pose, name] for name, pose in poses.items()] if as_list else poses,
        "points": [[*map(float, p), *map(int, c)] for p, c in zip(rig.points, rig.colors)],
    }


def write(root, rig, folder="frames", **kwargs):
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{VIDEO}.json").write_text(json.dumps(document(rig, **kwargs)))
    write_frames(root / folder, rig)


def write_frames(folder, rig):
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(rig.names, rig.images):
        Image.fromarray(image).save(folder / name)


def write_tar(path, folder, prefix="./"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, arcname=prefix + file.name)


@pytest.mark.parametrize("as_list", [False, True])
def test_poses_images_points_and_times(tmp_path, rig, as_list):
    write(tmp_path, rig, as_list=as_list)
    dataset = load_dataset(tmp_path, split_every=0)
    assert dataset.name == VIDEO and [view.name for view in dataset.views] == rig.names
    for view, viewmat, image in zip(dataset.views, rig.viewmats, rig.images):
        np.testing.assert_allclose(view.camera.viewmat, viewmat, atol=1e-6)
        np.testing.assert_allclose(view.image(), image / 255, atol=1e-6)
        assert view.camera.K[1, 1] == FOCAL + 1 and view.lens.fy == FOCAL + 1
    np.testing.assert_allclose(dataset.points, rig.points, atol=1e-6)
    np.testing.assert_allclose(dataset.point_colors, rig.colors / 255, atol=1e-6)
    assert [view.time for view in dataset.views] == list(NUMBERS)
    np.testing.assert_allclose(dataset.times(), (np.array(NUMBERS) - 3) / 117)
    assert dataset.test == [] and load_dataset(tmp_path / f"{VIDEO}.json").test == [0, 8]


PLACES = ["frames", "rgb_frames", f"frames/{VIDEO}", f"rgb_frames/{VIDEO}", "P01/rgb_frames/" + VIDEO, "."]


@pytest.mark.parametrize("place", PLACES)
def test_places_of_the_frames(tmp_path, rig, place):
    write(tmp_path, rig, place)
    view = load_dataset(tmp_path).views[4]
    np.testing.assert_allclose(view.image(), rig.images[4] / 255, atol=1e-6)
    assert view.image_path == tmp_path / place / rig.names[4] and view.stem == "frame_0000000041"


@pytest.mark.parametrize("place", [f"{VIDEO}.tar", f"rgb_frames/{VIDEO}.tar", f"P01/rgb_frames/{VIDEO}.tar"])
@pytest.mark.parametrize("prefix", ["./", "", "some/folder/"])
def test_frames_in_a_tar(tmp_path, rig, place, prefix):
    root = tmp_path / "data"
    write(root, rig, "../unpacked")
    write_tar(root / place, tmp_path / "unpacked", prefix)
    before = sorted(root.rglob("*"))
    dataset = load_dataset(root, width=WIDTH // 2)
    for view, image in zip(dataset.views, rig.images):
        mean = image.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean((1, 3)) / 255
        np.testing.assert_allclose(view.image(), mean, atol=0.5 / 255 + 1e-6)
        assert view.image_path is None
    assert sorted(root.rglob("*")) == before  # nothing was extracted


def test_a_damaged_tar(tmp_path, rig):
    root, unpacked = tmp_path / "data", tmp_path / "unpacked"
    write(root, rig, "../unpacked")
    tar = root / f"{VIDEO}.tar"
    with tarfile.open(tar, "w:gz") as compressed:
        compressed.add(unpacked / rig.names[0], arcname=rig.names[0])
    with pytest.raises(ValueError, match=r"P01_01\.tar is not a readable uncompressed tar"):
        load_dataset(root)
    write_tar(tar, unpacked)
    dataset = load_dataset(root)
    data = tar.read_bytes()
    tar.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cut off: it ends within"):
        dataset.views[-1].image()
    (unpacked / rig.names[5]).unlink()
    write_tar(tar, unpacked)
    with pytest.raises(FileNotFoundError, match=r"frame_0000000077\.png is missing"):
        load_dataset(root)


def test_the_lens_is_undone_and_scaled_to_the_photos(tmp_path, rig):
    rig.images = [image.repeat(2, 0).repeat(2, 1) for image in rig.images]
    write(tmp_path, rig, distortion=(-0.1, 0.01, 0.002, 0.001))
    view = load_dataset(tmp_path).views[0]
    assert view.file_size == (2 * WIDTH, 2 * HEIGHT) and view.lens.fx == 2 * FOCAL and view.lens.p1 == 0.002
    assert view.camera.width == 2 * WIDTH and float(view.camera.K[0, 0]) == 2 * FOCAL
    assert abs(view.image().numpy() - rig.images[0] / 255).max() > 0.1
    rig.images = [image[:-10] for image in rig.images]
    write(tmp_path, rig)
    with pytest.raises(ValueError, match=r"is 96x54, but its camera states 48x32"):
        load_dataset(tmp_path)


def test_photos_are_checked_as_they_are_decoded(tmp_path, rig):
    write(tmp_path, rig)
    Image.fromarray(rig.images[0][1:]).save(tmp_path / "frames" / rig.names[4])
    view = load_dataset(tmp_path).views[4]
    with pytest.raises(ValueError, match=r"frame_0000000041\.png is 48x31, but its camera states 48x32"):
        view.image()


def test_the_split_of_the_benchmark(tmp_path, rig):
    write(tmp_path, rig)
    (tmp_path / "split").mkdir()
    test = {"within_action": rig.names[2:4], "outside_action": [rig.names[6]], "outside_action_easy": []}
    (tmp_path / "split/test.json").write_text(json.dumps({VIDEO: test, "P02_01": {}}))
    (tmp_path / "split/val.json").write_text(json.dumps({VIDEO: {"within_action": [rig.names[0]]}}))
    dataset = load_dataset(tmp_path)
    assert [view.name for view in dataset.test_views()] == [rig.names[i] for i in (2, 3, 6)]
    assert [view.name for view in dataset.train_views()] == [rig.names[i] for i in (1, 4, 5, 7, 8)]
    everything = load_dataset(tmp_path, split_every=0)  # as in UDOS
    assert len(everything.train) == len(NUMBERS) and not everything.test
    (tmp_path / "split/test.json").write_text(json.dumps({VIDEO: {"within_action": rig.names}}))
    (tmp_path / "split/val.json").unlink()
    with pytest.raises(ValueError, match="holds out all 9 frames of P01_01: use split_every=0"):
        load_dataset(tmp_path)
    (tmp_path / "split/test.json").write_text(json.dumps({"P02_01": {}}))
    assert load_dataset(tmp_path).test == [0, 8]


def test_masks_named_by_visor(tmp_path, rig):
    write(tmp_path, rig)
    names = {f"{VIDEO}_frame_{number + 2:010d}.jpg": f"frame_{number:010d}.jpg" for number in NUMBERS}
    (tmp_path / "frame_mapping_train_val.json").write_text(json.dumps({VIDEO: names}))
    mapping = VisorMapping.read(tmp_path / "frame_mapping_train_val.json")
    assert mapping.epic_stem(VIDEO, "P01_01_frame_0000000012") == "frame_0000000010"
    assert mapping.epic_stem(VIDEO, "frame_0000000012") == "frame_0000000012"
    assert mapping.visor_stems(VIDEO, "frame_0000000010") == ("P01_01_frame_0000000012",)
    assert mapping.visor_stems("P09_01", "frame_0000000010") == ()
    (tmp_path / "motion_masks").mkdir()
    mask = torch.rand(HEIGHT, WIDTH)
    write_mask(tmp_path / "motion_masks/P01_01_frame_0000000012.png", mask)
    views = load_dataset(tmp_path).views
    assert [view.has_motion_mask for view in views] == [number == 10 for number in NUMBERS]
    np.testing.assert_allclose(views[1].motion_mask(), mask, atol=1e-5)
    (tmp_path / "motion_masks" / VIDEO).mkdir()  # a folder of many videos
    write_mask(tmp_path / "motion_masks" / VIDEO / rig.names[4], mask)
    assert load_dataset(tmp_path).views[4].has_motion_mask


def test_files_that_are_wrong(tmp_path, rig):
    write(tmp_path, rig)
    path = tmp_path / f"{VIDEO}.json"

    def refused(message, **changes):
        path.write_text(json.dumps(document(rig) | changes))
        with pytest.raises(ValueError, match=message):
            load_dataset(tmp_path)

    refused(r"the camera of .* must have model, width, height and params", camera={"model": "OPENCV"})
    refused("takes 8 parameters, but has 4", camera={**document(rig)["camera"], "params": [1, 2, 3, 4]})
    refused("seven numbers and a name", images={rig.names[0]: [1, 0, 0]})
    refused("the pose of image a.png .* must be seven numbers", images={"a.png": [1, 0, 0, 0, 0, 0, "x"]})
    refused("lists no frames", images={})
    refused("points of .* must be rows of x, y, z, r, g, b", points=[[1, 2]])
    path.write_text(json.dumps(document(rig)))
    (tmp_path / "P01_02.json").write_text(json.dumps(document(rig)))
    with pytest.raises(ValueError, match="holds 2 videos: name the json of one"):
        load_dataset(tmp_path)
    assert len(load_dataset(path).views) == len(NUMBERS)
    for file in (tmp_path / "frames").iterdir():
        file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"frames of P01_01 are missing: frame_0000000003\.png is neither"
    ):
        load_dataset(path)

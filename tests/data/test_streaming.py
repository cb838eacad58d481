"""Long videos: what is opened when they are loaded, and how much of them is held."""

import io
import json
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gsfields.data import Dataset, images, load_dataset
from gsfields.data.motion_masks import write_mask
from gsfields.data.tar_frames import TarFrames, TarMember

WIDTH, HEIGHT = 16, 12
FRAME_BYTES, MASK_BYTES = WIDTH * HEIGHT * 3, WIDTH * HEIGHT * 4


def gray(index: int) -> int:
    return 40 + index % 200


def photo(index: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (gray(index), 0, 0)).save(file, format="PNG")
    return file.getvalue()


def write_video(root: Path, count: int, masks: int = 0) -> None:
    names = [f"frame_{7 * i:010d}.png" for i in range(count)]
    poses = {name: [1.0, 0.0, 0.0, 0.0, 0.001 * i, 0.0, 0.0] for i, name in enumerate(names)}
    camera = {
        "id": 1,
        "model": "OPENCV",
        "width": WIDTH,
        "height": HEIGHT,
        "params": [9, 9, 8, 6, 0, 0, 0, 0],
    }
    (root / "V_1.json").write_text(json.dumps({"camera": camera, "images": poses, "points": []}))
    with tarfile.open(root / "V_1.tar", "w") as tar:
        for i, name in enumerate(names):
            data = photo(i)
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (root / "motion_masks").mkdir()
    for i, name in enumerate(names[:masks]):
        write_mask(root / "motion_masks" / name, np.full((HEIGHT, WIDTH), gray(i) / 255), bits=8)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("video")
    write_video(root, 60, masks=30)
    return root


def check(dataset: Dataset, index: int) -> None:
    view = dataset.views[index]
    assert torch.equal(view.image()[0, 0], torch.tensor([gray(index) / 255, 0, 0]))
    if view.has_motion_mask:
        assert float(view.motion_mask()[0, 0]) == pytest.approx(gray(index) / 255, abs=1e-6)


accesses = st.lists(st.integers(0, 59), max_size=60)


@settings(deadline=None, max_examples=25)
@given(accesses, st.integers(0, 5 * (FRAME_BYTES + MASK_BYTES)))
def test_the_bound_holds_images_and_masks(video, order, bound):
    dataset = load_dataset(video, cache_bytes=bound, split_every=0)
    assert dataset.cache.bytes == 0
    for index in order:
        check(dataset, index)
        assert dataset.cache.bytes <= bound


def test_loading_opens_one_photo_and_one_mask(video, monkeypatch):
    opened = []
    read = TarMember.open
    monkeypatch.setattr(TarMember, "open", lambda member: opened.append(member.name) or read(member))
    open_image = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *a: opened.append(str(file)) or open_image(file, *a))
    dataset = load_dataset(video)
    assert len(dataset.views) == 60 and sum(view.has_motion_mask for view in dataset.views) == 30
    assert {name for name in opened if name.startswith("./")} == {"./frame_0000000000.png"}
    assert [Path(name).name for name in opened if "motion_masks" in name] == ["frame_0000000000.png"]


def test_what_was_used_last_is_held(video, monkeypatch):
    decoded = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda path, *a: decoded.append(str(path)) or decode(path, *a))
    dataset = load_dataset(video, cache_bytes=2 * FRAME_BYTES)
    for index in (3, 4, 3, 5, 3, 4):  # 5 takes the place of 4
        dataset.views[index].image()
    assert [int(name[-8:-4]) // 7 for name in decoded] == [3, 4, 5, 4]


def test_threads_share_a_tar(video):
    dataset = load_dataset(video, cache_bytes=3 * FRAME_BYTES)
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        start.wait()
        for index in np.random.default_rng(seed).integers(0, 60, 50):
            check(dataset, int(index))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert dataset.cache.bytes <= 3 * FRAME_BYTES


def test_members_of_a_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("./x/one.png", "y/two.png", "x/two.png"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(name[-7:-4].encode()))
    frames = TarFrames(tmp_path / "a.tar")
    assert frames.find("./x/one.png").open().read() == frames.find("one.png").open().read() == b"one"
    assert frames.find("y/two.png").open().read() == b"two"
    assert frames.find("two.png") is None  # two of them
    (tmp_path / "b.tar").write_text("no tar")
    with pytest.raises(ValueError, match=r"b\.tar is not a readable uncompressed tar"):
        TarFrames(tmp_path / "b.tar")


@pytest.mark.slow
def test_ten_thousand_frames(tmp_path):
    write_video(tmp_path, 10_000, masks=2)
    bound = 100 * FRAME_BYTES
    dataset = load_dataset(tmp_path, cache_bytes=bound)
    assert len(dataset.views) == 10_000 and dataset.cache.bytes == 0
    for index in range(0, 10_000, 7):
        check(dataset, index)
        assert dataset.cache.bytes <= bound

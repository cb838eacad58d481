"""Language features: what the files may hold, where they are looked for, and how they follow their images."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.camera import Camera
from gsfields.data import View, load_dataset
from gsfields.data.language_features import (
    FeatureSource,
    TextEmbeddings,
    ViewFeatures,
    open_features,
    save_features,
)

from .writers import HEIGHT, WIDTH, make_rig, write_blender, write_colmap_binary, write_nerfstudio

D = 5


def unit(count, dim=D, seed=0):
    values = np.random.default_rng(seed).normal(size=(count, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def rows(count, levels=3, height=HEIGHT, width=WIDTH, seed=0):
    """[L, H, W] of -1 to count - 1."""
    return np.random.default_rng(seed).integers(-1, count, (levels, height, width))


def save(root, stem, embeddings, segments):
    path = root / f"{stem}_f.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, embeddings)
    np.save(root / f"{stem}_s.npy", segments)


def one_view(width=WIDTH, height=HEIGHT, name="a.png"):
    K = torch.tensor([[40.0 * width / WIDTH, 0, width / 2], [0, 40.0, height / 2], [0, 0, 1]])
    return View.from_image(name, Camera(torch.eye(4), K, width, height), torch.zeros(height, width, 3))


@pytest.mark.parametrize("levels", [1, 4, 7])
def test_written_features_are_read_back_to_the_bit(tmp_path, levels):
    given = ViewFeatures(torch.from_numpy(unit(9)), torch.from_numpy(rows(9, levels)))
    save_features(tmp_path, "a", given)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_f.npy", "a_s.npy"]
    assert np.load(tmp_path / "a_f.npy").dtype == np.load(tmp_path / "a_s.npy").dtype == np.float32
    source = FeatureSource(tmp_path)
    assert (source.dim, source.levels, source.stems) == (D, levels, ["a"]) and source.settings == {}
    found = source.read("a")
    assert (found.embeddings.dtype, found.segments.dtype) == (torch.float32, torch.int32)
    assert torch.equal(found.embeddings, given.embeddings) and torch.equal(
        found.segments, given.segments.int()
    )
    assert source.read("b") is None


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_files_as_others_write_them(tmp_path, kind):
    """LangSplat's, with four levels and rows in floating point, and others."""
    embeddings = 3 * unit(6)
    save(tmp_path, "frame_00001", embeddings.astype(kind), rows(6, 4).astype(kind))
    found = FeatureSource(tmp_path).read("frame_00001")
    np.testing.assert_allclose(found.embeddings, embeddings / 3, atol=1e-3 if kind == np.float16 else 1e-6)
    np.testing.assert_allclose(found.embeddings.norm(dim=1), 1, atol=1e-6)
    np.testing.assert_array_equal(found.segments, rows(6, 4))
    raw = FeatureSource(tmp_path).read("frame_00001", normalise=False)
    np.testing.assert_array_equal(raw.embeddings, embeddings.astype(kind).astype(np.float32))
    for whole in (np.int16, np.int64):
        save(tmp_path, "frame_00001", embeddings, rows(6, 4).astype(whole))
        np.testing.assert_array_equal(FeatureSource(tmp_path).read("frame_00001").segments, rows(6, 4))


def test_lengths_that_float32_cannot_square(tmp_path):
    save(tmp_path, "a", unit(3) * np.float32([[1e30], [1e-30], [1]]), rows(3))
    np.testing.assert_allclose(FeatureSource(tmp_path).read("a").embeddings, unit(3), atol=1e-6)


def test_images_with_little_or_nothing_in_them(tmp_path):
    nothing = np.full((2, HEIGHT, WIDTH), -1.0)
    one_pixel = nothing.copy()
    one_pixel[1, 4, 7] = 0
    save(tmp_path, "a", np.zeros((0, D), np.float32), nothing)  # no segment; D is known all the same
    save(tmp_path, "b", unit(3), nothing)  # all void
    save(tmp_path, "c", unit(1), one_pixel)
    source = FeatureSource(tmp_path)
    assert source.dim == D and source.levels == 2
    for stem, count in (("a", 0), ("b", 3), ("c", 1)):
        for found in (source.read(stem), source.of(one_view(name=f"{stem}.png"))):
            assert found.embeddings.shape == (count, D) and found.segments.shape == (2, HEIGHT, WIDTH)
            assert (found.segments >= 0).sum() == (stem == "c")
    assert found.segments[1, 4, 7] == 0
    assert source.read("d") is None and source.of(one_view(name="d.png")) is None
    save_features(tmp_path, "e", source.read("a"))
    assert FeatureSource(tmp_path).read("e").embeddings.shape == (0, D)


def changed(values, place, to):
    values = values.astype(np.float64)
    values[place] = to
    return values


BAD = {
    "high": (unit(3), changed(rows(3), (0, 0, 0), 3), r"a_s.npy names row 3, but must hold -1 .* its 3 emb"),
    "low": (unit(3), changed(rows(3), (0, 0, 0), -2), r"a_s.npy names row -2, but must hold -1"),
    "none": (unit(0), changed(rows(3), (0, 0, 0), 0), r"a_s.npy names row 2, .* its 0 embeddings"),
    "fraction": (unit(3), changed(rows(3), (0, 0, 0), 0.5), r"a_s.npy must hold whole numbers of rows"),
    "NaN row": (unit(3), changed(rows(3), (0, 0, 0), np.nan), r"a_s.npy must hold finite numbers"),
    "bool rows": (unit(3), rows(3) > 0, r"a_s.npy must hold numbers of rows, but holds bool"),
    "flat": (unit(3), rows(3)[0], r"a_s.npy must be \[L, H, W\], but is \[32, 48\]"),
    "no level": (unit(3), rows(3)[:0], r"a_s.npy must be \[L, H, W\], but is \[0, 32, 48\]"),
    "NaN": (changed(unit(3), (1, 1), np.nan), rows(3), r"a_f.npy must hold finite numbers only"),
    "huge": (changed(unit(3), (1, 1), 1e300), rows(3), r"a_f.npy must hold finite numbers only"),
    "zero": (changed(unit(3), 1, 0), rows(3), r"a_f.npy has a zero embedding in row 1"),
    "whole": (
        np.ones((3, D), np.int64),
        rows(3),
        r"a_f.npy must hold floating point numbers, but holds int64",
    ),
    "one": (unit(3)[0], rows(3), r"a_f.npy must be \[n, D\], but is \[5\]"),
    "no D": (unit(3)[:, :0], rows(3), r"a_f.npy must be \[n, D\], but is \[3, 0\]"),
    "wide": (unit(3, D + 1), rows(3), r"a_f.npy holds embeddings of 6 numbers, but the first file's have 5"),
    "object": (np.array([[None] * D]), rows(1), r"a_f.npy is not a readable numpy array \("),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_none(tmp_path, name):
    embeddings, segments, message = BAD[name]
    save(tmp_path, "0", unit(2), rows(2))
    save(tmp_path, "a", embeddings, segments)
    with pytest.raises(ValueError, match=message) as error:
        FeatureSource(tmp_path).read("a")
    assert "\n" not in str(error.value)
    assert FeatureSource(tmp_path).read("0") is not None


@pytest.mark.parametrize("kind", ["f", "s"])
def test_files_that_are_damaged_or_missing(tmp_path, kind):
    save(tmp_path, "a", unit(3), rows(3))
    path = tmp_path / f"a_{kind}.npy"
    whole = path.read_bytes()
    with (tmp_path / "zip").open("wb") as file:
        np.savez(file, a=np.zeros(3))
    for bad in (whole[:-4], whole[:40], b"", b"no", (tmp_path / "zip").read_bytes(), b"PK\x03\x04"):
        path.write_bytes(bad)
        source = FeatureSource(tmp_path)
        header = partial(getattr, source, "dim" if kind == "f" else "levels")
        for ask in (partial(source.read, "a"), header):
            with pytest.raises(ValueError, match=rf"a_{kind}.npy is not a readable numpy array \(.+\)"):
                ask()
    path.unlink()
    with pytest.raises(ValueError, match=rf"the language features of a in .* lack a_{kind}.npy"):
        FeatureSource(tmp_path).read("a")
    with pytest.raises(ValueError, match=rf"holds no language features: no <stem>_{kind}.npy"):
        _ = FeatureSource(tmp_path).dim if kind == "f" else FeatureSource(tmp_path).levels


def test_zero_embeddings_are_read_as_they_are_on_demand(tmp_path):
    save(tmp_path, "a", np.zeros((2, D)), rows(2))
    assert not FeatureSource(tmp_path).read("a", normalise=False).embeddings.any()


def test_segments_of_a_smaller_view_are_those_of_the_nearest_pixel(tmp_path):
    segments = rows(500)
    save(tmp_path, "a", unit(500), segments)
    source = FeatureSource(tmp_path)
    for width, height in (
        (WIDTH, HEIGHT),
        (WIDTH // 2, HEIGHT // 2),
        (WIDTH // 3, 11),
        (2 * WIDTH, 2 * HEIGHT),
    ):
        found = source.of(one_view(width, height))
        for level, expected in zip(found.segments, segments):
            nearest = Image.fromarray(expected.astype(np.int32)).resize(
                (width, height), Image.Resampling.NEAREST
            )
            np.testing.assert_array_equal(level, np.asarray(nearest))
        np.testing.assert_array_equal(found.embeddings, unit(500))
        assert found.segments.dtype == torch.int32
    with pytest.raises(
        ValueError, match=r"features of a.png in .* are 48x32, but the image is 32x48, .* aspect"
    ):
        source.of(one_view(HEIGHT, WIDTH))


def test_features_of_a_dataset(tmp_path):
    """Also where the photo's camera is loaded at another size, and photos lie in subfolders."""
    root = tmp_path / "flat"
    root.mkdir()
    write_nerfstudio(root, make_rig(3))
    save(root / "language_features", "photo_001", unit(9), np.kron(rows(9), np.ones((1, 2, 2))))
    source = open_features(root)
    views = load_dataset(root).views
    assert source.of(views[0]) is None and not source.has(views[0]) and source.has(views[1])
    np.testing.assert_array_equal(source.of(views[1]).segments, rows(9))
    small = load_dataset(root, width=WIDTH // 2).views[1]
    np.testing.assert_array_equal(source.of(small).segments, rows(9)[:, 1::2, 1::2])

    for name in ("nested", "stems"):
        root = tmp_path / name
        root.mkdir()
        write_blender(root, make_rig(4))
        views = load_dataset(root).views
        for i, view in enumerate(views):
            path = view.name.rpartition(".")[0]
            save(
                root / "language_features", path if name == "nested" else view.stem, unit(9, seed=i), rows(9)
            )
        source = open_features(root)
        for i, view in enumerate(views):
            assert source.has(view)
            np.testing.assert_array_equal(source.of(view).embeddings, unit(9, seed=i))
        if name == "nested":
            path = views[0].name.rpartition(".")[0]
            assert source.read(path) is not None and source.read(path.replace("/", "_")) is not None


def test_names_that_several_photos_share(tmp_path):
    for i, stem in enumerate(("train/r_0", "test/r_0", "test/r_1")):
        save(tmp_path, stem, unit(3, seed=i), rows(3))
    source = FeatureSource(tmp_path)
    assert source.stems == ["test/r_0", "test/r_1", "train/r_0"]
    for name, seed in (("train/r_0", 0), ("train_r_0", 0), ("test_r_0", 1), ("r_1", 2)):
        np.testing.assert_array_equal(source.read(name).embeddings, unit(3, seed=seed))
    assert source.read("r_0") is None and not source.has(one_view(name="r_0.png"))
    assert source.has(one_view(name="train/r_0.png"))


@pytest.mark.parametrize("k1", [-0.2, 0.2])
def test_segments_follow_the_undistorted_image(tmp_path, k1):
    """Rows that are told by the photo's grey values still are once both are undistorted, but at edges, which
    blend.
    """
    blocks = np.kron(np.arange(6).reshape(2, 3), np.ones((HEIGHT // 2, WIDTH // 3))).astype(np.int64)
    rig = make_rig(3)
    rig.model, rig.parameters = "OPENCV", (40.0, 41.0, 23.0, 17.0, k1, 0.0, 0.003, -0.002)
    rig.images = [np.repeat(blocks[..., None] * 40 + 20, 3, axis=-1).astype(np.uint8)] * 3
    write_colmap_binary(tmp_path, rig)
    save(tmp_path / "language_features", "photo_000", unit(6), np.stack([blocks, 5 - blocks]))
    view = load_dataset(tmp_path).views[0]
    found = open_features(tmp_path).of(view).segments
    shown = view.mask() > 0 if view.mask() is not None else torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    same = (view.image()[..., 0] * 255 - (found[0] * 40 + 20)).abs() < 0.6
    assert same[shown].float().mean() > 0.85
    void = found[0] < 0
    assert torch.equal(found[1], torch.where(void, -1, 5 - found[0]))
    if k1 > 0:  # pincushion: some of the pinhole image lies beyond the photo
        assert void[~shown].float().mean() > 0.5 and not void[shown].any()


def test_folders(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no language features at .*nowhere: there is no such folder"
    ):
        open_features(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"folder of language features .*nowhere does not exist"):
        FeatureSource(tmp_path / "nowhere")
    message = r"holds no language features: it must hold language_features, or <stem>_f.npy and <stem>_s.npy"
    with pytest.raises(ValueError, match=message):
        open_features(tmp_path)
    (tmp_path / "language_features").mkdir()
    with pytest.raises(ValueError, match=message):
        open_features(tmp_path)
    save(tmp_path / "language_features_dim3", "a", unit(2, 3), rows(2))
    save(tmp_path / "language_features", "a", unit(2), rows(2))
    np.save(tmp_path / "language_features/.b.1.partial_f.npy", unit(2))  # left behind by a crash
    assert open_features(tmp_path / "language_features_dim3").dim == 3
    (tmp_path / "transforms.json").write_text("{}")
    for path in (tmp_path, tmp_path / "language_features", tmp_path / "transforms.json"):
        source = open_features(path)
        assert source.root == tmp_path / "language_features" and source.dim == D and source.stems == ["a"]


def test_settings(tmp_path):
    save(tmp_path, "a", unit(2), rows(2))
    (tmp_path / "settings.json").write_text(json.dumps({"clip": "ViT-B-16 tag"}))
    assert FeatureSource(tmp_path).settings == {"clip": "ViT-B-16 tag"}
    for bad in ("no", "[1]", "[" * 100_000):
        (tmp_path / "settings.json").write_text(bad)
        with pytest.raises(ValueError, match=r"settings.json must be an object in JSON"):
            _ = FeatureSource(tmp_path).settings


def test_features_that_cannot_be_saved(tmp_path):
    good = torch.from_numpy(unit(3)), torch.from_numpy(rows(3))
    for embeddings, segments, message in (
        (good[0][0], good[1], r"embeddings must be floating point \[n, D\], but are torch.float32 \[5\]"),
        (good[0].int(), good[1], r"embeddings must be floating point"),
        (good[0] / 0, good[1], "embeddings of a must be finite"),
        (good[0], good[1][0], r"segments must be whole numbers \[L, H, W\], but are torch.int64 \[32, 48\]"),
        (good[0], good[1].float(), "segments must be whole numbers"),
        (good[0], good[1] + 1, "segments must be -1 or one of the 3 rows of embeddings, but span 0 to 3"),
        (good[0], good[1] - 1, "but span -2 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            save_features(tmp_path, "a", ViewFeatures(embeddings, segments))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        save_features(tmp_path / "nowhere", "a", ViewFeatures(*good))
    assert not list(tmp_path.iterdir())
    save_features(tmp_path, "train/a", ViewFeatures(*good))
    assert FeatureSource(tmp_path).stems == ["train/a"]


PROMPTS = ("old camera", "éclair", "a " * 40 + "chair", "", "5", "6")


def test_texts_are_read_back(tmp_path):
    texts = TextEmbeddings(PROMPTS, 2 * torch.from_numpy(unit(6)))
    texts.save(tmp_path / "texts.npz")
    again = TextEmbeddings.load(tmp_path / "texts.npz")
    assert again.prompts == PROMPTS and torch.equal(again.embeddings, texts.embeddings)
    np.testing.assert_allclose(again.of(["5", "éclair", "5"]), unit(6)[[4, 1, 4]], atol=1e-6)
    assert again.of([]).shape == (0, D)
    with pytest.raises(
        ValueError, match=r"no embedding of the prompt 'Chair': there are 'old camera', .*, \.\.\.$"
    ):
        again.of(["5", "Chair"])
    empty = TextEmbeddings((), torch.empty(0, D))
    empty.save(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match="'x': there are none at all"):
        TextEmbeddings.load(tmp_path / "empty.npz").of(["x"])


def test_texts_that_are_none(tmp_path):
    good = torch.from_numpy(unit(2))
    for prompts, embeddings, message in (
        (("a",), good, r"embeddings must be \[1, D\] like the prompts, but are \[2, 5\]"),
        (("a", "a"), good, "every prompt must be there once, but 'a' is there again"),
        (("a", "b"), good * torch.tensor([[1.0], [0.0]]), "that of 'b' is not"),
        (("a", "b"), good * torch.tensor([[torch.nan], [1.0]]), "that of 'a' is not"),
    ):
        with pytest.raises(ValueError, match=message):
            TextEmbeddings(prompts, embeddings)
    path = tmp_path / "texts.npz"
    with pytest.raises(FileNotFoundError, match=r"text embeddings .* are missing"):
        TextEmbeddings.load(path)
    for arrays, message in (
        ({"prompts": np.array(["a", "b"])}, "embeddings"),
        ({"prompts": np.array(["a", None]), "embeddings": unit(2)}, "pickle"),
        ({"prompts": np.array([b"a", b"b"]), "embeddings": unit(2)}, "prompts are"),
        ({"prompts": np.array(["a", "b"]), "embeddings": np.ones((2, D), int)}, "embeddings are int64"),
        ({"prompts": np.array(["a"]), "embeddings": unit(2)}, "like the prompts"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=rf"texts.npz must be an npz with prompts, .*{message}"):
            TextEmbeddings.load(path)
    for bad in (b"no", b"", b"PK\x03\x04"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"texts.npz must be an npz"):
            TextEmbeddings.load(path)
    with path.open("wb") as file:
        np.save(file, unit(2))
    with pytest.raises(ValueError, match="one array alone"):
        TextEmbeddings.load(path)

"""Language features of images: masks that are known, and tiny random models of segment_anything and
open_clip.
"""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gsfields.data import load_dataset
from gsfields.data.language_features import ViewFeatures, open_features
from gsfields.priors import language
from gsfields.priors.language import (
    LanguagePrepConfig,
    distinct,
    extreme,
    intersections,
    masked_crop,
    parse_options,
    prepare_language,
    segment_features,
    spread,
)
from tests.data.writers import HEIGHT, WIDTH, make_rig, write_colmap_binary
from tests.priors import test_clip, test_segments
from tests.priors.test_clip import DIM, open_clip_package, save_tiny, small_clip
from tests.priors.test_segments import COUNT, scene, tiny

ALL = LanguagePrepConfig(
    points_per_side=2, iou_threshold=0.0, stability=0.0, min_area=1, nms_iou=1.0, min_score=0.0
)  # whatever a random model says


def found(inside, iou=0.9, stability=1.0):
    """A mask as SAM records it."""
    return {"segmentation": inside, "predicted_iou": iou, "stability_score": stability}


def box(rows, columns, shape=(8, 10)):
    inside = np.zeros(shape, bool)
    inside[rows, columns] = True
    return inside


def crop_by_hand(photo, mask):
    """Pixel by pixel."""
    ys, xs = np.nonzero(mask)
    height, width = np.ptp(ys) + 1, np.ptp(xs) + 1
    side = max(height, width)
    crop = np.zeros((side, side, 3), np.uint8)
    for y, x in zip(ys, xs):
        crop[y - ys.min() + (side - height) // 2, x - xs.min() + (side - width) // 2] = photo[y, x]
    return crop


def stored(features):
    """The masks that the levels hold, by row, bool [n, H, W]; each in one level only."""
    rows = torch.arange(len(features.embeddings))[:, None, None, None]
    levels = features.segments[None] == rows
    assert (levels.flatten(2).any(2).sum(1) == 1).all()
    return levels.any(1).numpy()


def check(features, photo, masks, clip):
    """The masks are stored, each as often as it is given, with the embeddings of their crops."""
    back = list(stored(features))
    assert len(back) == len(masks)
    assert sorted(mask.tobytes() for mask in back) == sorted(mask.tobytes() for mask in masks)
    if masks:
        expected = clip.images([crop_by_hand(photo, mask) for mask in back])
        torch.testing.assert_close(features.embeddings, expected)


@st.composite
def overlapping(draw):
    """Masks [6, 7], bool, not empty: boxes, and pixels anywhere; some alike."""
    masks = []
    for _ in range(draw(st.integers(0, 12))):
        kind, seed = draw(st.sampled_from(["box", "pixels", "again"])), draw(st.integers(0, 2**16))
        rng = np.random.default_rng(seed)
        if kind == "again" and masks:
            masks.append(masks[seed % len(masks)].copy())
        elif kind == "pixels":
            masks.append(rng.random((6, 7)) < rng.random())
        else:
            (top, bottom), (left, right) = (np.sort(rng.integers(0, n, 2)) for n in (6, 7))
            masks.append(box(slice(top, bottom + 1), slice(left, right + 1), (6, 7)))
    return [mask for mask in masks if mask.any()]


@settings(deadline=None)
@given(overlapping())
def test_levels_hold_all_masks(masks):
    photo = np.random.default_rng(1).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    clip = small_clip()
    features = segment_features(photo, lambda image: [found(mask) for mask in masks], clip, ALL)
    check(features, photo, masks, clip)
    count = len(features.segments)
    assert features.segments.shape == (count, 6, 7) and features.embeddings.shape == (len(masks), DIM)
    assert 1 <= count <= max(1, len(masks))  # and no more than the most that one mask meets, and itself
    assert count <= 1 + max((sum((a & b).any() for b in masks) - 1 for a in masks), default=0)
    first = [int(level[level >= 0].min()) for level in features.segments if (level >= 0).any()]
    assert first == sorted(first)  # rows go level by level


@settings(deadline=None)
@given(overlapping(), st.sampled_from([0.0, 0.3, 0.8, 1.0]))
def test_near_duplicates_go(masks, iou):
    shared = intersections(masks)
    assert shared.tolist() == [[int((a & b).sum()) for b in masks] for a in masks]
    scores = np.random.default_rng(0).random(len(masks)).round(1)
    kept = distinct(shared, scores, iou).tolist()
    assert kept == sorted(set(kept))

    def above(i, j):
        return (masks[i] & masks[j]).sum() > iou * (masks[i] | masks[j]).sum()

    for i in range(len(masks)):
        better = [j for j in kept if j != i and (scores[j], -j) > (scores[i], -i) and above(i, j)]
        assert (i in kept) == (not better)


def test_which_masks_are_kept():
    whole, almost = box(slice(0, 6), slice(0, 8)), box(slice(0, 6), slice(0, 7))
    part, small, other = (
        box(slice(1, 5), slice(1, 6)),
        box(slice(7, 8), slice(0, 3)),
        box(slice(4, 8), slice(0, 10)),
    )
    masks = [
        found(whole, 0.9, 0.9),
        found(almost, 0.9, 0.95),  # IoU 7/8 with the whole, and better
        found(part, 0.8, 0.9),
        found(small, 1.0, 1.0),
        found(other, 0.8, 0.85),  # score 0.68
        {"segmentation": np.zeros((8, 10), bool), "predicted_iou": 0.0},
    ]
    photo, clip = np.full((8, 10, 3), 200, np.uint8), small_clip()
    config = LanguagePrepConfig(min_area=4)
    for settings_, expected in (
        ({}, [almost, part]),
        ({"min_area": 3}, [almost, part, small]),
        ({"nms_iou": 0.9}, [almost, whole, part]),
        ({"min_score": 0.68}, [almost, part, other]),
        ({"min_score": 0.9}, []),
    ):
        features = segment_features(photo, lambda image: masks, clip, language.replace(config, **settings_))
        check(features, photo, expected, clip)


def test_larger_segments_lie_on_the_first_levels():
    """A chain, a in b in c, on three levels; what is beside it on the first."""
    a, b, c = (box(slice(0, n), slice(0, n)) for n in (2, 4, 6))
    d = box(slice(7, 8), slice(0, 2))
    masks = [a, d, b, c]
    np.testing.assert_array_equal(spread(intersections(masks)), [2, 0, 1, 0])
    photo = np.full((8, 10, 3), 200, np.uint8)
    features = segment_features(photo, lambda image: [found(m) for m in masks], small_clip(), ALL)
    np.testing.assert_array_equal(stored(features), [c, d, b, a])
    expected = np.where(c, 0, np.where(d, 1, -1))
    np.testing.assert_array_equal(extreme(features, largest=True), expected)
    expected[b], expected[a] = 2, 3
    np.testing.assert_array_equal(extreme(features, largest=False), expected)
    nothing = ViewFeatures(torch.empty(0, DIM), torch.full((1, 8, 10), -1))
    assert (extreme(nothing, largest=True) == -1).all() and (extreme(nothing, largest=False) == -1).all()


@pytest.mark.parametrize("seed", range(4))
def test_crops_of_masks(seed):
    rng = np.random.default_rng(seed)
    photo = rng.integers(1, 256, (9, 7, 3), dtype=np.uint8)
    mask = np.zeros((9, 7), bool)
    top, left = rng.integers(0, 5, 2)
    mask[top : top + rng.integers(1, 9), left : left + rng.integers(1, 7)] = True
    mask &= rng.random(mask.shape) < 0.6
    mask[top, left] = True
    crop = masked_crop(photo, mask)
    np.testing.assert_array_equal(crop, crop_by_hand(photo, mask))
    assert (crop > 0).any(-1).sum() == mask.sum()


def stand_in_torchvision():
    """Of what both packages call or name."""
    modules = test_clip.stand_in_torchvision()
    for name, module in test_segments.stand_in_torchvision().items():
        modules.setdefault(name, module).__dict__.update(
            {key: value for key, value in vars(module).items() if not key.startswith("__")}
        )
    return modules


@pytest.fixture
def sam(monkeypatch):
    """The package segment_anything."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name, module in stand_in_torchvision().items():
            monkeypatch.setitem(sys.modules, name, module)
    yield pytest.importorskip(
        "segment_anything", reason="needs segment-anything (pip install 'gsfields[sam]')"
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "segment_anything"]:
        del sys.modules[name]  # it would keep the stand-in


def test_files_of_tiny_models(tmp_path, sam):
    root, model, clip = scene(tmp_path / "scene"), tiny(sam), small_clip()
    summary = prepare_language(
        root, sam_model=model, clip_model=clip, config=ALL, device="cpu", progress=False
    )
    names = [f"photo_{i:03d}_{kind}.npy" for i in range(COUNT) for kind in "fs"]
    assert sorted(p.name for p in summary.folder.iterdir()) == [*names, "settings.json"]
    assert not (root / "language_features.partial").exists()
    generator = sam.SamAutomaticMaskGenerator(
        model, points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    source, counts, covered = open_features(root), [], []
    assert source.dim == DIM and source.levels == summary.levels
    assert source.settings["clip"] == "small" and source.settings["sam_model"] == "Sam"
    for view in load_dataset(root).views:
        photo = (view.image() * 255).round().byte().numpy()
        masks = [
            mask["segmentation"]
            for mask in generator.generate(photo)
            if mask["segmentation"].any() and mask["predicted_iou"] * mask["stability_score"] >= 0
        ]
        features = source.of(view)
        check(features, photo, masks, clip)
        counts.append(len(masks))
        covered.append((features.segments >= 0).any(0).float().mean())
    assert max(counts) > 1 and summary.levels > 1  # else there is nothing to compare
    assert summary.images == COUNT and summary.segments == pytest.approx(np.mean(counts))
    assert summary.empty == counts.count(0) and summary.covered == pytest.approx(float(np.mean(covered)))
    assert f"language features of {COUNT} images in {root / 'language_features'}: " in str(summary)
    assert Image.open(summary.sheet).size[0] > 3 * WIDTH


def test_networks_by_name(tmp_path, sam, monkeypatch):
    """With their weights from files."""
    root = scene(tmp_path / "scene")
    monkeypatch.setitem(sam.sam_model_registry, "vit_b", lambda: tiny(sam))
    torch.save(tiny(sam).state_dict(), tmp_path / "sam.pth")
    with open_clip_package(monkeypatch, stand_in_torchvision) as package:
        _, weights = save_tiny(package, tmp_path / "configs")
        prepare_language(
            root,
            checkpoint=tmp_path / "sam.pth",
            sam_model="vit_b",
            clip_model="tiny",
            clip_pretrained=weights,
            device="cpu",
            config=ALL,
            progress=False,
        )
        source = open_features(root)
        assert source.dim == 24
        expected = {"sam_model": "vit_b", "checkpoint": "sam.pth", "clip_model": "tiny", "dim": 24}
        assert source.settings.items() >= {**expected, "clip_pretrained": str(weights)}.items()
        assert json.loads((source.root / "settings.json").read_text())["nms_iou"] == 1.0
        view = load_dataset(root).views[0]
        photo, features = (view.image() * 255).round().byte().numpy(), source.of(view)
        again = language.load_clip(
            source.settings["clip_model"], source.settings["clip_pretrained"], device="cpu"
        )
        check(features, photo, list(stored(features)), again)


@pytest.fixture
def known(monkeypatch):
    """In place of Segment Anything: the brighter half of the image, its left part, and both; images without
    end fail if asked to. Of an image that is black, nothing.
    """
    seen: list[tuple[int, ...]] = []

    def finder(config, network, fail_after=None):
        def find(image):
            if fail_after is not None and len(seen) == fail_after:
                raise RuntimeError("out of memory")
            seen.append(image.shape)
            bright = image.mean(axis=-1) > 127
            left = np.arange(image.shape[1])[None] < 0.5 * image.shape[1]
            masks = [bright, left & bright, left | bright]
            return [found(mask) for mask in masks if bright.any()] or [
                {"segmentation": bright, "predicted_iou": 0.0}
            ]

        return find

    monkeypatch.setattr(language, "load_network", lambda model, checkpoint, device: None)
    monkeypatch.setattr(language, "mask_finder", finder)
    return seen, lambda n: monkeypatch.setattr(language, "mask_finder", partial(finder, fail_after=n))


def test_a_run_that_was_broken_off_goes_on(tmp_path, known):
    seen, fail_after = known
    root, clip = scene(tmp_path / "scene"), small_clip()
    prepare = partial(prepare_language, root, clip_model=clip, progress=False)
    fail_after(2)
    with pytest.raises(RuntimeError, match="out of memory"):
        prepare()
    assert not (root / "language_features").exists()
    finished = {p.name: p.read_bytes() for p in (root / "language_features.partial").iterdir()}
    assert len(finished) == 5
    (root / "language_features.partial/photo_001_s.npy").unlink()  # broken off between the two files
    fail_after(None)
    other = small_clip()
    other.name = "other"
    for changes in ({"min_area": 7}, {"clip_model": other}, {"sam_model": "vit_b"}, {"checkpoint": "a.pth"}):
        with pytest.raises(
            ValueError, match=r"language_features.partial is of a run with other settings: .* --overwrite"
        ):
            prepare(**changes)
    assert len(seen) == 2
    assert prepare(batch=2).images == COUNT and len(seen) == COUNT + 1
    for name, content in finished.items():
        assert (root / "language_features" / name).read_bytes() == content
    with pytest.raises(ValueError, match="language_features already exists: give --overwrite"):
        prepare()
    (root / "language_features/stale_f.npy").write_bytes(b"")
    fail_after(len(seen) + 1)
    with pytest.raises(RuntimeError, match="out of memory"):
        prepare(overwrite=True)
    assert (root / "language_features/stale_f.npy").exists()  # the old ones are there until new ones are
    fail_after(None)
    prepare(overwrite=True, min_area=7)
    assert len(seen) == 2 * COUNT + 2 and not (root / "language_features/stale_f.npy").exists()
    assert not list(root.glob("*.partial"))


def test_photos_are_taken_as_they_are(tmp_path, known):
    """Not undistorted; no longer than asked for; and in one of them nothing is found."""
    rig = make_rig(3)
    rig.model, rig.parameters = "OPENCV", (40.0, 40.0, 24.0, 16.0, -0.3, 0.1, 0.0, 0.0)
    rig.images[2][:] = 0
    write_colmap_binary(tmp_path, rig)
    clip = small_clip()
    summary = prepare_language(tmp_path, clip_model=clip, progress=False, min_area=1)
    source = open_features(tmp_path)
    bright = rig.images[1].mean(axis=-1) > 127  # of noise: any resampling shows
    left = np.broadcast_to(np.arange(WIDTH)[None] < WIDTH // 2, bright.shape)
    check(source.read("photo_001"), rig.images[1], [bright, left & bright, left | bright], clip)
    nothing = source.read("photo_002")
    assert nothing.embeddings.shape == (0, DIM) and nothing.segments.shape == (1, HEIGHT, WIDTH)
    assert (nothing.segments == -1).all()
    assert (summary.images, summary.empty, summary.levels, summary.segments) == (3, 1, 3, 2.0)
    again = prepare_language(
        tmp_path, clip_model=clip, progress=False, min_area=1, overwrite=True, longest=WIDTH // 2
    )
    assert known[0][-1] == (HEIGHT // 2, WIDTH // 2, 3) and again.images == 3
    view = load_dataset(tmp_path).views[0]
    assert open_features(tmp_path).of(view).segments.shape[1:] == (HEIGHT, WIDTH)


def test_bad_requests(tmp_path, monkeypatch):
    root = scene(tmp_path / "scene")
    for options, message in (
        ({"points_per_side": 0}, "points_per_side must be a whole number from 1 to 256, but is 0"),
        ({"nms_iou": 1.5}, r"nms_iou must be a number from 0 to 1, but is 1\.5"),
        ({"min_score": "x"}, "min_score must be a number from 0 to 1"),
        ({"batch": 0}, "batch must be a whole number from 1 to 65536, but is 0"),
        (
            {"steps": 3},
            "steps is no option of the language features: they are checkpoint, sam_model, clip_model, ",
        ),
        ({"sam_model": "vit_x"}, "sam_model must be vit_h, vit_l, vit_b, but is 'vit_x'"),
        ({"device": "moon"}, "device must be cpu, cuda or cuda:0, but is 'moon'"),
        ({}, "checkpoint must name the file with the weights of Segment Anything's vit_h"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_language(root, **options)
    with pytest.raises(
        FileNotFoundError, match=r"checkpoint names the file .*none.pth, which does not exist"
    ):
        prepare_language(root, checkpoint=tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        prepare_language(tmp_path / "nothing")
    (tmp_path / "some.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "segment_anything", None)  # as if it were not installed
    with pytest.raises(ImportError, match="Segment Anything"):
        prepare_language(root, checkpoint=tmp_path / "some.pth")
    monkeypatch.setattr(language, "load_network", lambda model, checkpoint, device: None)
    monkeypatch.setattr(language, "mask_finder", lambda config, network: None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"language features need open_clip"):
        prepare_language(root)
    assert not list(root.glob("language*"))


def test_options_from_texts():
    texts = {
        "checkpoint": "a.pth",
        "clip_model": "ViT-B-32",
        "longest": "640",
        "nms_iou": "0.9",
        "batch": "8",
    }
    assert parse_options(texts) == {
        "checkpoint": "a.pth",
        "clip_model": "ViT-B-32",
        "longest": 640,
        "nms_iou": 0.9,
        "batch": 8,
    }
    with pytest.raises(ValueError, match=r"min_area must be a whole number, but is '1\.5'"):
        parse_options({"min_area": "1.5"})
    with pytest.raises(ValueError, match="min_score must be a number, but is 'x'"):
        parse_options({"min_score": "x"})
    with pytest.raises(ValueError, match="clip_model needs a value"):
        parse_options({"clip_model": None})

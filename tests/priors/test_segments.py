"""Segments of Segment Anything as files: a tiny random model of its classes, and masks that are known."""

import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.data import load_dataset
from gsfields.data.segments import open_segments, read_confidence, read_labels
from gsfields.priors import segments
from gsfields.priors.segments import SamConfig, overlay, parse_options, prepare_segments
from tests.data.writers import HEIGHT, WIDTH, make_rig, write_colmap_binary, write_nerfstudio

ALL = SamConfig(
    points_per_side=2, iou_threshold=0.0, stability=0.0, min_area=1
)  # whatever a random model says
COUNT = 4


def mask(rows: slice, columns: slice, iou: float = 0.5) -> dict:
    inside = np.zeros((8, 10), bool)
    inside[rows, columns] = True
    return {"segmentation": inside, "predicted_iou": iou}


def test_smaller_masks_lie_on_top_of_larger_ones():
    part, whole = mask(slice(2, 4), slice(2, 5), 0.9), mask(slice(1, 6), slice(1, 9), 0.7)
    other, tiny = mask(slice(6, 8), slice(0, 10), 1.2), mask(slice(0, 1), slice(0, 1))
    ids, confidence = overlay([part, tiny, whole, other], min_area=2)
    expected = np.zeros((8, 10), int)
    expected[1:6, 1:9], expected[6:8] = 1, 2
    expected[2:4, 2:5] = 3
    np.testing.assert_array_equal(ids, expected)
    assert ids.dtype == np.uint16 and confidence.dtype == np.float32
    np.testing.assert_allclose(confidence, np.array([0, 0.7, 1, 0.9], np.float32)[expected])
    again, _ = overlay([whole, other, tiny, part], min_area=2)
    np.testing.assert_array_equal(again, expected)  # the order of the model does not matter


def test_what_is_left_of_a_mask_may_be_too_small():
    whole, upper = mask(slice(0, 4), slice(0, 10)), mask(slice(0, 4), slice(0, 9))
    assert set(np.unique(overlay([whole, upper], min_area=4)[0])) == {0, 1, 2}
    ids, confidence = overlay([whole, upper], min_area=5)
    assert (ids[:4, :9] == 1).all() and ids.sum() == 36 and (confidence[ids == 0] == 0).all()
    empty = overlay([mask(slice(0, 0), slice(0, 0))], min_area=0)
    assert not empty[0].any() and not empty[1].any()


def stand_in_torchvision() -> dict[str, ModuleType]:
    """The four functions of torchvision that Segment Anything calls, for where no torchvision fits this torch."""

    def batched_nms(boxes, scores, groups, iou_threshold):
        low, high = boxes[:, None], boxes[None]
        size = (
            torch.minimum(low[..., 2:], high[..., 2:]) - torch.maximum(low[..., :2], high[..., :2])
        ).clamp(min=0)
        area = box_area(boxes)
        shared = size.prod(-1)
        overlap = shared / (area[:, None] + area[None] - shared).clamp(min=1e-9) > iou_threshold
        keep: list[int] = []
        for i in scores.argsort(descending=True).tolist():
            if not any(overlap[i, j] and groups[i] == groups[j] for j in keep):
                keep.append(i)
        return torch.tensor(keep, dtype=torch.long)

    def box_area(boxes):
        return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])

    names = ("", ".ops", ".ops.boxes", ".transforms", ".transforms.functional")
    modules = {f"torchvision{name}": ModuleType(f"torchvision{name}") for name in names}
    boxes, functional = modules["torchvision.ops.boxes"], modules["torchvision.transforms.functional"]
    boxes.batched_nms, boxes.box_area = batched_nms, box_area
    functional.to_pil_image = Image.fromarray
    functional.resize = lambda image, size: image.resize(tuple(size)[::-1], Image.Resampling.BILINEAR)
    return modules


@pytest.fixture
def sam(monkeypatch):
    """The package segment_anything."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name, module in stand_in_torchvision().items():
            monkeypatch.setitem(sys.modules, name, module)
    package = pytest.importorskip(
        "segment_anything", reason="needs segment-anything (pip install 'gsfields[sam]')"
    )
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "segment_anything"]:
        del sys.modules[name]  # it would keep the stand-in


def tiny(package) -> torch.nn.Module:
    """A random Sam for images of 64x64 that takes no time."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(0)
    return Sam(
        ImageEncoderViT(img_size=64, patch_size=16, embed_dim=16, depth=1, num_heads=2, out_chans=16),
        PromptEncoder(embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4),
        MaskDecoder(
            transformer_dim=16,
            transformer=TwoWayTransformer(depth=1, embedding_dim=16, num_heads=2, mlp_dim=16),
        ),
    ).eval()


def scene(root: Path) -> Path:
    rig = make_rig(COUNT)
    rig.images = [image // 4 + np.uint8(40 * i) for i, image in enumerate(rig.images)]
    root.mkdir(exist_ok=True)
    write_nerfstudio(root, rig)
    return root


def test_files_of_a_tiny_model(tmp_path, sam):
    root = scene(tmp_path / "scene")
    model = tiny(sam)
    summary = prepare_segments(root, model=model, config=ALL, device="cpu", progress=False)
    assert sorted(p.name for p in (root / "segments").iterdir()) == [
        f"photo_{i:03d}.png" for i in range(COUNT)
    ]
    assert not (root / "segments.partial").exists()
    generator = sam.SamAutomaticMaskGenerator(
        model, points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    source, counts = open_segments(root), []
    for view in load_dataset(root).views:
        with Image.open(root / "segments" / f"{view.stem}.png") as image:
            assert image.mode == "I;16" and image.size == (WIDTH, HEIGHT)
        photo = (view.image() * 255).round().byte().numpy()
        ids, confidence = overlay(generator.generate(photo), ALL.min_area)
        found = source.of(view)
        np.testing.assert_array_equal(found.ids, ids)
        np.testing.assert_allclose(found.confidence, confidence, atol=0.5 / 255 + 1e-6)
        counts.append(int(ids.max()))
    assert max(counts) > 1  # else there is nothing to compare
    assert summary.images == COUNT and summary.segments == pytest.approx(np.mean(counts))
    assert summary.empty == counts.count(0) and 0 < summary.covered <= 1
    assert f"{COUNT} id maps in {root / 'segments'}: " in str(summary)
    assert Image.open(root / "segments_sheet.png").size[0] > 2 * WIDTH


def test_weights_are_read_through_the_registry(tmp_path, sam, monkeypatch):
    root = scene(tmp_path / "scene")
    built = []
    monkeypatch.setitem(sam.sam_model_registry, "vit_b", lambda: built.append(tiny(sam)) or built[-1])
    weights = {name: value + 1 for name, value in tiny(sam).state_dict().items()}
    torch.save(weights, tmp_path / "weights.pth")
    prepare_segments(
        root, model="vit_b", checkpoint=tmp_path / "weights.pth", config=ALL, device="cpu", progress=False
    )
    assert all(torch.equal(value, weights[name]) for name, value in built[0].state_dict().items())
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no")
    for name in ("other.pth", "text.pth"):
        with pytest.raises(
            ValueError, match=rf"checkpoint .*{name} does not hold the weights of vit_b \("
        ) as error:
            prepare_segments(root, model="vit_b", checkpoint=tmp_path / name, overwrite=True)
        assert "\n" not in str(error.value)


@pytest.fixture
def known(monkeypatch):
    """In place of the model: one mask, the brighter half of the image; images without end fail if asked to."""
    seen: list[tuple[int, ...]] = []

    def finder(config, network, fail_after=None):
        def find(image):
            if fail_after is not None and len(seen) == fail_after:
                raise RuntimeError("out of memory")
            seen.append(image.shape)
            bright = image.mean(axis=-1) > 127
            return [{"segmentation": bright, "predicted_iou": 0.8}]

        return find

    monkeypatch.setattr(segments, "load_network", lambda model, checkpoint, device: None)
    monkeypatch.setattr(segments, "mask_finder", finder)
    return seen, lambda n: monkeypatch.setattr(segments, "mask_finder", partial(finder, fail_after=n))


def test_a_run_that_was_broken_off_goes_on(tmp_path, known):
    seen, fail_after = known
    root = scene(tmp_path / "scene")
    fail_after(2)
    with pytest.raises(RuntimeError, match="out of memory"):
        prepare_segments(root, progress=False)
    assert not (root / "segments").exists() and not (root / "confidences").exists()
    fail_after(None)
    with pytest.raises(ValueError, match=r"segments.partial is of a run with other settings: .* --overwrite"):
        prepare_segments(root, progress=False, min_area=7)
    assert prepare_segments(root, progress=False).images == COUNT and len(seen) == COUNT
    assert len(list((root / "confidences").iterdir())) == COUNT
    with pytest.raises(ValueError, match="segments already exists: give --overwrite"):
        prepare_segments(root, progress=False)
    (root / "segments/stale.png").write_bytes(b"")
    prepare_segments(root, progress=False, overwrite=True, min_area=7)
    assert len(seen) == 2 * COUNT and not (root / "segments/stale.png").exists()


def test_photos_are_segmented_as_taken(tmp_path, known):
    """Not undistorted; and no longer than asked for."""
    rig = make_rig(3)
    rig.model, rig.parameters = "OPENCV", (40.0, 40.0, 24.0, 16.0, -0.3, 0.1, 0.0, 0.0)
    write_colmap_binary(tmp_path, rig)
    prepare_segments(tmp_path, progress=False, min_area=1)
    found = read_labels(tmp_path / "segments/photo_001.png")
    np.testing.assert_array_equal(found, rig.images[1].mean(axis=-1) > 127)  # of noise: any resampling shows
    assert read_confidence(tmp_path / "confidences/photo_001.png").max() == pytest.approx(0.8)
    prepare_segments(tmp_path, progress=False, min_area=1, overwrite=True, longest=WIDTH // 2)
    assert known[0][-1] == (HEIGHT // 2, WIDTH // 2, 3)
    assert open_segments(tmp_path).of(load_dataset(tmp_path).views[0]).ids.shape == (HEIGHT, WIDTH)


def test_bad_requests(tmp_path, monkeypatch):
    root = scene(tmp_path / "scene")
    for options, message in (
        ({"points_per_side": 0}, "points_per_side must be a whole number from 1 to 256, but is 0"),
        ({"iou_threshold": 1.5}, "iou_threshold must be a number from 0 to 1"),
        (
            {"steps": 3},
            "steps is no option of the segments: they are checkpoint, model, device, points_per_side, ",
        ),
        ({"model": "vit_x"}, "model must be vit_h, vit_l, vit_b, but is 'vit_x'"),
        ({"device": "moon"}, "device must be cpu, cuda or cuda:0, but is 'moon'"),
        ({}, "checkpoint must name the file with the weights of Segment Anything's vit_h"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_segments(root, **options)
    with pytest.raises(
        FileNotFoundError, match=r"checkpoint names the file .*none.pth, which does not exist"
    ):
        prepare_segments(root, checkpoint=tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        prepare_segments(tmp_path / "nothing")
    (tmp_path / "some.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "segment_anything", None)  # as if it were not installed
    with pytest.raises(
        ImportError, match=r"segments need Segment Anything \(pip install 'gsfields\[sam\]'\)"
    ):
        prepare_segments(root, checkpoint=tmp_path / "some.pth")
    assert not list(root.glob("segments*")) and not (root / "confidences").exists()


def test_options_from_texts():
    texts = {"checkpoint": "a.pth", "model": "vit_b", "points_per_side": "16", "stability": "0.9"}
    assert parse_options(texts) == {
        "checkpoint": "a.pth",
        "model": "vit_b",
        "points_per_side": 16,
        "stability": 0.9,
    }
    with pytest.raises(ValueError, match=r"min_area must be a whole number, but is '1\.5'"):
        parse_options({"min_area": "1.5"})
    with pytest.raises(ValueError, match="stability must be a number, but is 'x'"):
        parse_options({"stability": "x"})
    with pytest.raises(ValueError, match="checkpoint needs a value"):
        parse_options({"checkpoint": None})

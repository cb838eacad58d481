"""Motion scores and their files, on a rendered video whose moving pixels are known."""

import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2", reason="motion masks need opencv-python-headless")

from gsfields.cli import main
from gsfields.data import load_dataset
from gsfields.data.dataset import Dataset
from gsfields.data.images import Pixels
from gsfields.evaluate.udos import average_precision
from gsfields.priors import motion
from gsfields.priors.motion import FlowConfig, motion_scores, parse_options, prepare_motion
from tests.priors.video import HEIGHT, WIDTH, make_video, save_video

CONFIG = FlowConfig(width=WIDTH, gaps=(1, 2))  # quick


def test_what_moves_scores_above_what_does_not():
    dataset, labels = make_video()
    scores = [score for _, score in motion_scores(dataset, CONFIG)]
    assert all(s.shape == (HEIGHT, WIDTH) and s.dtype == np.float32 for s in scores)
    assert all(s.min() >= 0 and s.max() <= 1 for s in scores)
    precision = [average_precision(label.ravel(), s.ravel()) for label, s in zip(labels, scores)]
    assert np.mean(precision) > 90 and min(precision) > 70
    found = np.stack(scores) > 0.5
    assert (found & labels).sum() > 0.9 * found.sum()  # what is reported as moving moves
    assert (found & labels).sum() > 0.25 * labels.sum()


def test_where_nothing_moves_nothing_scores():
    """Though the camera moves past things at different depths."""
    dataset, _ = make_video(moving=False)
    scores = np.stack([score for _, score in motion_scores(dataset, CONFIG)])
    assert scores.mean() < 0.1 and (scores > 0.5).mean() < 0.01


def test_views_come_in_time_order_whatever_their_place():
    dataset, _ = make_video(6)
    straight = {view.name: score for view, score in motion_scores(dataset, CONFIG)}
    shuffled = Dataset([dataset.views[i] for i in (3, 0, 5, 1, 4, 2)], list(range(6)), [])
    again = {view.name: score for view, score in motion_scores(shuffled, CONFIG)}
    assert list(again) == sorted(straight) == list(straight)
    assert all((again[name] == straight[name]).all() for name in again)


def test_only_a_window_of_frames_is_read_and_held():
    dataset, _ = make_video(14)
    images = [view.image() for view in dataset.views]
    reads, alive = [], weakref.WeakSet()

    def load(i: int) -> Pixels:
        copy = images[i].clone()
        alive.add(copy)
        reads.append(i)
        return Pixels(copy)

    views = [replace(view, load=lambda i=i: load(i)) for i, view in enumerate(dataset.views)]
    for place, _ in enumerate(motion_scores(Dataset(views, list(range(14)), []), CONFIG)):
        assert max(reads) <= place + 2 + 2 and len(alive) <= 1
    assert sorted(reads) == list(range(14))  # each frame is decoded once


def test_frames_behind_the_window_are_dropped():
    from gsfields.priors.scores import _Video

    video = _Video(make_video(14)[0], CONFIG)
    assert max(len(video.frames) for _ in video.scores()) <= 2 * max(CONFIG.gaps) + 3


def test_masks_are_written_on_the_grid_of_the_files(tmp_path: Path):
    dataset, labels = make_video(6)
    root = save_video(tmp_path / "video", dataset)
    summary = prepare_motion(root, config=CONFIG)
    names = sorted(path.name for path in (root / "motion_masks").iterdir())
    assert names == [f"{i:03d}.png" for i in range(6)]
    with Image.open(root / "motion_masks/003.png") as mask:
        assert mask.mode == "L" and mask.size == (WIDTH, HEIGHT)
    masks = np.stack([np.asarray(Image.open(root / "motion_masks" / name)) for name in names]) / 255
    assert average_precision(labels[3].ravel(), masks[3].ravel()) > 80
    assert summary.frames == 6 and summary.mean_score == pytest.approx(masks.mean(), abs=2e-3)
    assert summary.moving == pytest.approx((masks > 0.5).mean(), abs=2e-3)
    assert summary.empty == sum(not (mask > 0.5).any() for mask in masks)
    assert "6 masks in" in str(summary) and Image.open(root / "motion_sheet.png").size[0] > 2 * WIDTH
    loaded = load_dataset(root)
    assert all(view.has_motion_mask for view in loaded.views)
    np.testing.assert_allclose(loaded.views[3].motion_mask(), masks[3], atol=1e-6)


def test_masks_of_a_distorting_lens_lie_on_the_distorted_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = save_video(tmp_path / "video", make_video(2)[0], k1=-0.15)

    def a_block(dataset: Dataset, config: FlowConfig | None):
        score = np.zeros((HEIGHT, WIDTH), np.float32)
        score[HEIGHT // 2 - 30 : HEIGHT // 2 + 30, WIDTH // 2 - 90 : WIDTH // 2 + 90] = 1
        yield from ((view, score) for view in dataset.views)

    monkeypatch.setattr(motion, "motion_scores", a_block)
    prepare_motion(root)
    mask = np.asarray(Image.open(root / "motion_masks/001.png")) > 127
    half_width = mask[HEIGHT // 2].sum() / 2
    x = 90 / 150  # normalised; the lens images it at x (1 + k1 x^2)
    assert half_width == pytest.approx(90 * (1 - 0.15 * x * x), abs=1)


def test_masks_that_are_there_stay_unless_told_otherwise(tmp_path: Path):
    root = save_video(tmp_path / "video", make_video(3)[0])
    (root / "motion_masks").mkdir()
    (root / "motion_masks/stale.png").write_bytes(b"")
    with pytest.raises(ValueError, match="motion_masks already exists: give --overwrite"):
        prepare_motion(root, config=CONFIG)
    prepare_motion(root, config=CONFIG, overwrite=True)
    assert sorted(path.name for path in (root / "motion_masks").iterdir()) == [
        "000.png",
        "001.png",
        "002.png",
    ]


def test_a_failure_leaves_nothing_behind(tmp_path: Path):
    root = save_video(tmp_path / "video", make_video(5)[0])
    (root / "images/004.png").write_bytes(
        (root / "images/004.png").read_bytes()[:2000]
    )  # the header is whole
    before = sorted(path.name for path in root.iterdir())
    with pytest.raises(ValueError, match=r"004\.png is damaged"):
        prepare_motion(root, config=CONFIG)
    assert sorted(path.name for path in root.iterdir()) == before


def test_bad_requests(tmp_path: Path):
    for bad, message in (
        ({"gaps": ()}, "gaps must be"),
        ({"gaps": (1, 1)}, "gaps must be"),
        ({"gaps": (0,)}, "gaps must be"),
        ({"width": 8}, "width must be at least 32"),
        ({"half": 0.0}, "half must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            FlowConfig(**bad)
    dataset, _ = make_video(2)
    with pytest.raises(ValueError, match="two views or more"):
        motion_scores(Dataset(dataset.views[:1], [0], []), CONFIG)
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        prepare_motion(tmp_path / "nothing")
    with pytest.raises(ValueError, match="step is no option of the motion masks: they are gaps, "):
        prepare_motion(tmp_path, step=3)


def test_options_from_texts():
    texts = {"gaps": "1,2,4", "width": "160", "cut": "0.25"}
    assert parse_options(texts) == {"gaps": (1, 2, 4), "width": 160, "cut": 0.25}
    for name, text, kind in (
        ("gaps", "1,x", "whole numbers a,b,c"),
        ("gaps", None, "whole numbers a,b,c"),
        ("width", "160.5", "a whole number"),
        ("cut", "low", "a number"),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be {kind}, but is "):
            parse_options({name: text})


def test_the_command_takes_options(tmp_path: Path, capsys):
    root = save_video(tmp_path / "video", make_video(3)[0])
    assert main(["prep", "motion", str(root), "--gaps", "1,x"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == "gsfields prep: gaps must be whole numbers a,b,c, but is '1,x'"
    assert not (root / "motion_masks").exists()
    assert main(["prep", "motion", str(root), "--gaps", "1", "--width", "64"]) == 0
    assert f"3 masks in {root / 'motion_masks'}: " in capsys.readouterr().out


def test_every_frame_of_a_standing_camera_gets_a_score():
    """No translation at all: depths are undefined, motion is not."""
    dataset, _ = make_video(2)
    view = dataset.views[0]
    same = [replace(view, name=f"{i}", stem=f"{i}", time=float(i)) for i in range(4)]
    scores = [score for _, score in motion_scores(Dataset(same, [0, 1, 2, 3], []), CONFIG)]
    assert len(scores) == 4 and all(np.isfinite(s).all() and s.max() < 0.5 for s in scores)


DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "hand_video"


@pytest.mark.slow
def test_the_hand_of_a_real_video_scores_above_the_room():
    if not DATA.is_dir():
        pytest.skip("../shared/data/hand_video is not present")
    dataset = load_dataset(DATA, split_every=0)
    dataset.views = dataset.views[20:53]
    score = next(s for view, s in motion_scores(dataset) if view.name.endswith("image000037.png"))
    hand, books, wall = score[30:80, 100:160], score[220:360, 340:430], score[20:130, 330:500]
    assert hand.mean() > 2 * books.mean() and hand.mean() > 2 * wall.mean()

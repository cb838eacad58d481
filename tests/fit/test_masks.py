"""The masks that a run leaves: one file of 16 bits per frame and layer, on the grid of the photo as taken."""

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.data.motion_masks import read_mask
from gsfields.fit.masks import Shares, layer_masks, supported, write_masks
from gsfields.fit.scene import open_dataset
from gsfields.layers import LayeredScene
from tests.fit.tiny_video import BALL, WALL, TinyVideo, config_of
from tests.layered_scene import layered, moving, rest


def truth(video: TinyVideo) -> LayeredScene:
    """The video as layers: wall and box (from frame 0 to the middle), and one ball per frame, in the camera's frame."""
    wall, box = (rest(s.means, s.colors, scale=s.scale, opacity=0.95) for s in (video.wall, video.box))
    balls = [video.ball(i) for i in range(video.frames)]
    ball = rest(
        torch.cat([b.means for b in balls]),
        torch.cat([b.colors for b in balls]),
        scale=balls[0].scale,
        opacity=0.95,
    )
    dynamic, semistatic = moving(ball, "camera", half=0.4), moving(box, half=video.frames / 2)
    dynamic.windows[:, 0] = torch.arange(float(video.frames)).repeat_interleave(len(balls[0].means))
    semistatic.windows[:, 0] = -0.5
    scene = layered(wall, semistatic, dynamic)
    scene.duration, scene.softness = float(video.frames - 1), 0.01
    return scene


@pytest.mark.parametrize("k1", [0.0, -0.3, 0.25], ids=["pinhole", "barrel", "pincushion"])
@pytest.mark.parametrize("width", [None, 24], ids=["whole", "half"])
def test_masks_lie_on_the_photo_as_taken(tmp_path, k1, width):
    """Also where the lens distorts it, and where the fit looks at smaller images."""
    video = TinyVideo(frames=6, k1=k1)
    config = config_of(video.write(tmp_path / "video"), width=width)
    dataset = open_dataset(config.data)
    assert dataset.views[0].camera.width == (width or 48)
    times = dataset.times().tolist()
    for i in (1, 4):
        masks = layer_masks(truth(video), dataset.views[i], times[i], config)
        expected = video.photo(i)[1]
        assert masks.shape == expected.shape == (32, 48, 3)
        torch.testing.assert_close(masks, expected, rtol=0, atol=2e-3)
    straight = TinyVideo(frames=6).photo(4)[1]
    assert k1 == 0 or ((straight - expected).abs() > 0.2).sum() > 20  # the lens does make a difference


def test_every_frame_gets_files_of_16_bits(video, fitted):
    run, _ = fitted
    stems = sorted(path.stem for path in (video / "images").iterdir())
    assert len(stems) == 12
    for layer in ("dynamic", "semistatic"):
        assert sorted(path.name for path in (run / "masks" / layer).iterdir()) == [
            f"{stem}.png" for stem in stems
        ]
        for stem in stems:
            with Image.open(run / "masks" / layer / f"{stem}.png") as image:
                assert image.mode == "I;16" and image.size == (48, 32)
    dynamic = np.stack([read_mask(run / "masks" / "dynamic" / f"{stem}.png") for stem in stems])
    assert len(np.unique(dynamic)) > 256  # more than 8 bits hold


def test_only_the_frames_asked_for_are_written(video, tmp_path):
    config = config_of(video)
    dataset = open_dataset(config.data)
    scene, times = truth(TinyVideo()), dataset.times().tolist()
    shares = write_masks(scene, dataset, config, tmp_path, [2, 7])
    for layer, place in (("dynamic", 2), ("semistatic", 1)):
        files = sorted(path.name for path in (tmp_path / "masks" / layer).iterdir())
        assert files == ["frame_0020.png", "frame_0070.png"]
        for i in (2, 7):
            written = read_mask(tmp_path / "masks" / layer / f"frame_00{i}0.png")
            expected = layer_masks(scene, dataset.views[i], times[i], config)[..., place].clamp(0, 1)
            if layer == "semistatic":
                expected = supported(expected, 0.04)
            assert abs(written - expected.numpy()).max() <= 0.5 / 65535 + 1e-6
    masks = torch.stack([TinyVideo().render(i)[1] for i in (2, 7)])
    assert shares.frames == 2
    assert shares.static == pytest.approx(masks[..., WALL].mean().item(), abs=1e-3)
    assert shares.dynamic == pytest.approx(masks[..., BALL].mean().item(), abs=1e-3)
    assert shares.moving == pytest.approx((masks[..., BALL] > 0.5).float().mean().item(), abs=1e-3)
    write_masks(scene, dataset, config, tmp_path)
    assert len(list((tmp_path / "masks" / "dynamic").iterdir())) == 12


def test_semi_static_scores_are_weighed_by_their_neighbourhood():
    """Against the sums written out: m · min(1, √(Σ w m / Σ w / 0.64)), the image continued by its borders."""
    mask = torch.rand(9, 20, generator=torch.Generator().manual_seed(0))
    reach, reached = 0.1, 8  # pixels of a Gaussian of two, cut off after four deviations
    offsets = torch.arange(-reached, reached + 1)
    weights = torch.exp(-(offsets.double() ** 2) / (2 * (reach * 20) ** 2))
    rows = (torch.arange(9)[:, None] + offsets).clamp(0, 8)  # [9, 17]
    columns = (torch.arange(20)[:, None] + offsets).clamp(0, 19)
    near = mask.double()[rows[:, None, :, None], columns[None, :, None, :]]  # [9, 20, 17, 17]
    mean = torch.einsum("hwij,i,j->hw", near, weights, weights) / weights.sum() ** 2
    torch.testing.assert_close(
        supported(mask, reach), (mask * (mean / 0.64).sqrt().clamp(max=1)).float(), rtol=1e-5, atol=1e-6
    )
    assert supported(mask, 0) is mask


def test_an_edge_loses_more_of_its_score_than_a_thing():
    mask = torch.zeros(60, 100)
    mask[:, 20], mask[20:40, 60:80] = 1, 1
    weighed = supported(mask, 0.04)
    assert weighed[20:40, 60:80].mean() > 2 * weighed[:, 20].max()
    assert (weighed <= mask).all() and (supported(torch.ones(6, 7), 0.04) == 1).all()


def test_what_the_layers_explain_in_words():
    said = str(Shares(frames=7, static=0.625, semistatic=0.25, dynamic=0.125, moving=0.0625))
    assert said == (
        "mean masks of 7 frames: static 62.5%, semistatic 25.0%, dynamic 12.5%; dynamic above 0.5 on 6.2% of the pixels"
    )

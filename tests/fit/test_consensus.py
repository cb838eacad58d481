"""2D scores after the static layer's word: what false alarms, holes and things that hover become."""

import math

import pytest
import torch

from gsfields.data.motion_masks import read_mask
from gsfields.fit import consensus, lifespans
from gsfields.fit.consensus import weighed, write_consensus
from gsfields.fit.evidence import Evidence, gather
from gsfields.fit.footage import Footage, Frame
from gsfields.fit.layers import drop_habitual
from gsfields.fit.parameters import Parameters
from gsfields.fit.runs import make_trainer
from gsfields.fit.scene import open_dataset
from gsfields.layers import render_layers
from tests.fit.tiny_video import BALL, WALL_DEPTH, Spots, TinyVideo, config_of
from tests.layered_scene import layered, rest


def wall_and(more: Spots | None = None, frames=12):
    """A video with its wall as static layer, and the Gaussians of `more` in it; nothing of it dies."""
    video = TinyVideo(frames=frames, wall=Spots.grid((-3.6, -2.2), (3.6, 2.2), WALL_DEPTH, 0.15, 0))
    parts = [video.wall, video.box, *([more] if more else [])]
    g = rest(torch.cat([p.means for p in parts]), torch.cat([p.colors for p in parts]), opacity=0.95)
    scales = torch.cat([torch.as_tensor(p.scale).expand(len(p.means), 1) for p in parts])
    g.log_scales[:] = scales.log()
    scene = layered(static=g)
    scene.duration = float(video.frames - 1)
    return video, scene, lifespans.immortal(len(g))


def by_hand(score, habit, surprise):
    def logit(p):
        return math.log(p / (1 - p))

    word = max(logit(min(max(habit, 0.02), 0.98)) - logit(0.27), 2 * math.log(max(surprise, 1e-6) / 0.08))
    total = logit(min(max(score, 0.03), 0.98)) + min(max(word, -4.0), 2.5)
    return 1 / (1 + math.exp(-total))


def test_log_odds_add():
    values = torch.rand(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[2] *= 0.4
    got = weighed(*values)
    expected = [by_hand(*column) for column in values.T.tolist()]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_who_says_neither_this_nor_that_changes_nothing():
    scores = torch.tensor([0.05, 0.3, 0.9])
    got = weighed(scores, torch.full((3,), 0.27), torch.full((3,), 0.01))
    torch.testing.assert_close(got, scores, atol=1e-5, rtol=0)
    got = weighed(scores, torch.zeros(3), torch.full((3,), 0.08))
    torch.testing.assert_close(got, scores, atol=1e-5, rtol=0)


def test_more_of_anything_is_never_less_motion():
    grid = torch.linspace(0, 1, 21)
    m, h, s = torch.meshgrid(grid, grid, grid * 0.4, indexing="ij")
    got = weighed(m, h, s)
    assert got.isfinite().all() and got.min() > 0 and got.max() < 1
    assert all((got.diff(dim=axis) >= 0).all() for axis in range(3))


def test_a_mean_score_is_that_of_the_pixels_a_gaussian_shows():
    video, scene, spans = wall_and()
    pictures = [video.picture(i) for i in range(video.frames)]
    for k, picture in enumerate(pictures):
        picture.motion = torch.full_like(picture.motion, 0.2 if k % 2 else 0.6)
        if k > 7:  # nothing is known of these
            picture.scored, picture.motion = False, torch.zeros_like(picture.motion)
    evidence = gather(scene, spans, iter(pictures), lifespans.softness(1), 0.01)
    x, y, _ = scene.static.means.T
    seen = (x.abs() < 1.2) & (y.abs() < 0.8)  # in all frames
    assert evidence.moving[seen].mean() == pytest.approx(0.4, abs=0.02)
    assert not evidence.moving[x.abs() > 3.5].any()  # in none


def test_what_hovers_is_dropped_from_the_static_layer():
    """A cloud that the 2D method marks wherever it is seen, and a wall that it marks once."""
    cloud = Spots.grid((-0.3, -0.3), (0.3, 0.3), 2.0, 0.1, 1)
    video, scene, spans = wall_and(cloud)
    pictures = [video.picture(i) for i in range(video.frames)]
    alone = layered(static=scene.static.select(torch.arange(len(spans)) >= len(spans) - len(cloud.means)))
    alone.duration = scene.duration
    for k, picture in enumerate(pictures):
        picture.motion = render_layers(alone, picture.camera, 0.0).alpha[..., 0].clamp(0, 1)
        if k == 3:
            picture.motion[:, :10] = 1.0
    evidence = gather(scene, spans, iter(pictures), lifespans.softness(1), 0.01)
    static = Parameters({**scene.static.parameters(), "spans": spans})
    kept = drop_habitual(static, evidence, 0.5)
    z = static.values["means"][:, 2]
    assert (z > 2.2).all() and len(static) == len(kept.moving) > 0.95 * (len(spans) - len(cloud.means))
    assert torch.equal(static.values["means"], scene.static.means[evidence.moving <= 0.5])


def test_a_static_layer_that_all_moves_is_kept():
    """Masks that call everything moving, inverted ones say, are no reason to be left with nothing."""
    static = Parameters(rest(torch.zeros(10, 3), torch.zeros(10, 3)).parameters())
    evidence = Evidence(torch.zeros(10), torch.zeros(10), torch.arange(10) / 10)
    assert len(drop_habitual(static, evidence, 0.3).moving) == 10 == len(static)
    assert len(drop_habitual(static, evidence, 0.45).moving) == 5 == len(static)


def frames_of(video, change):
    for k in range(video.frames):
        picture = video.picture(k)
        time = k / (video.frames - 1)
        yield f"f{k:02d}", Frame(picture.camera, picture.image, None, change(k, picture.motion), time)


def test_false_alarms_fade_and_holes_are_mended(tmp_path):
    """The masks miss the lower half of the ball, and mark a patch of the wall in every third frame."""
    video, scene, spans = wall_and()

    def noisy(k, motion):
        rows = torch.arange(len(motion))[:, None] * torch.ones_like(motion)
        centre = (rows * motion).sum() / motion.sum().clamp(min=1e-6)
        found = 0.9 * motion * (rows <= centre)
        if k % 3 == 0:
            found[-8:, -12:] = 0.7
        return found

    pictures = [video.picture(i) for i in range(video.frames)]
    evidence = gather(scene, spans, iter(pictures), lifespans.softness(1), 0.01)
    noisy_frames = list(frames_of(video, noisy))
    means = write_consensus(tmp_path / "c", iter(noisy_frames), scene, spans, evidence, 0.01)
    files = sorted((tmp_path / "c").iterdir())
    assert means[0] == pytest.approx(sum(float(f.motion.mean()) for _, f in noisy_frames) / len(noisy_frames))
    assert means[1] == pytest.approx(
        sum(float(read_mask(path).mean()) for path in files) / len(files), abs=2e-3
    )
    before = {"alarm": [], "ball": [], "hole": []}
    after = {"alarm": [], "ball": [], "hole": []}
    for k, (stem, frame) in enumerate(noisy_frames):
        now = torch.from_numpy(read_mask(tmp_path / "c" / f"{stem}.png"))
        assert now.shape == frame.motion.shape
        true = video.render(k)[1][..., BALL] > 0.9
        alarm = torch.zeros_like(true)
        alarm[-8:, -12:] = k % 3 == 0
        where = {
            "alarm": alarm & ~true,
            "ball": true & (frame.motion > 0.5) & ~alarm,
            "hole": true & (frame.motion < 0.1),
        }
        for name, at in where.items():
            before[name].append(frame.motion[at])
            after[name].append(now[at])
    b, a = ({name: float(torch.cat(v).mean()) for name, v in each.items()} for each in (before, after))
    assert b["alarm"] > 0.6 and a["alarm"] < 0.3
    assert b["ball"] > 0.8 and a["ball"] > 0.9
    assert b["hole"] < 0.1 and a["hole"] > b["hole"] + 0.1


def test_frames_without_scores_get_none(tmp_path):
    video, scene, spans = wall_and(frames=4)
    evidence = gather(scene, spans, (video.picture(i) for i in range(4)), lifespans.softness(1), 0.01)
    frames = frames_of(video, lambda k, motion: motion if k % 2 else None)
    write_consensus(tmp_path / "c", frames, scene, spans, evidence, 0.01)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["f01.png", "f03.png"]


@pytest.mark.parametrize("on", [True, False])
def test_a_fit_uses_them_from_the_seeding_on(tmp_path, on):
    data = TinyVideo(frames=8, holes=False).write(tmp_path / "video")
    config = config_of(data, steps=16, split_every=4, consensus=on)
    trainer = make_trainer(config, open_dataset(config.data), tmp_path / "run")
    folder = tmp_path / "run" / consensus.FOLDER
    while trainer.step <= trainer.warmup:
        assert not folder.exists()
        trainer.train_step()
    assert folder.is_dir() == on
    stems = [view.stem for view in trainer.dataset.views]  # held-out views, too: they may be refined
    assert not on or sorted(path.stem for path in folder.iterdir()) == sorted(stems)
    raw = Footage(trainer.dataset, config).get(2).motion
    assert torch.equal(trainer.footage.get(2).motion, raw) != on
    later = Footage(trainer.dataset, config, [0, 2], folder)
    stem = trainer.dataset.views[2].stem
    expected = (
        torch.from_numpy(read_mask(folder / f"{stem}.png")) if on else trainer.dataset.views[2].motion_mask()
    )
    assert torch.equal(later.get(1).motion, expected)


def test_the_number_of_steps_is_the_users_or_grows_with_the_video(tmp_path):
    data = TinyVideo(frames=8).write(tmp_path / "video")
    for steps, per_image, expected in ((5, 400, 5), (0, 33, 2000), (0, 400, 3200)):
        config = config_of(data, steps=steps, steps_per_image=per_image)
        trainer = make_trainer(config, open_dataset(config.data), tmp_path / "run")
        assert trainer.config.fit.steps == expected and config.fit.steps == steps

"""Births and deaths of static Gaussians: what is right for a part of the video only becomes semi-static."""

import math

import pytest
import torch

from gsfields.fit import lifespans
from gsfields.fit.checkpoint import Checkpoint
from gsfields.fit.evidence import Evidence
from gsfields.fit.layered import LayeredTrainer
from gsfields.fit.layers import take_mortals
from gsfields.fit.parameters import Parameters
from gsfields.fit.scene import open_dataset
from gsfields.layers import LayeredScene, render_layers
from tests.fit.tiny_video import TinyVideo, config_of
from tests.layered_scene import layered, moving, random_scene, rest


def cluster(center, count=20, seed=0):
    return torch.tensor(center) + 0.1 * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def spans_of(*lives):
    """[20 per life, 2]"""
    return torch.tensor(lives, dtype=torch.float32).repeat_interleave(20, dim=0)


def two_objects():
    return rest(
        torch.cat((cluster([0.0, 0, 3]), cluster([5.0, 0, 3], seed=1))), torch.full((40, 3), 0.5), opacity=0.5
    )


IMMORTAL, FIRST_HALF = (-0.2, 1.2), (-0.2, 0.5)


def mortals(gaussians, spans, agreement=0.9, contrast=1.0):
    """Where `contrast`, one for all or [N], must be 0.1."""
    contrast = torch.as_tensor(contrast).expand(len(gaussians))
    return lifespans.mortals(gaussians, spans, agreement, contrast, 0.1)


@pytest.mark.parametrize("time", [0.0, 0.45, 0.5, 1.0])
def test_the_opacity_of_a_life(time):
    g = random_scene(dtype=torch.float32).static
    births, deaths = torch.linspace(-0.2, 0.5, 7), torch.linspace(1.2, 0.4, 7)
    living = lifespans.alive(g, torch.stack((births, deaths), dim=1), time, 0.1)
    logistic = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    expected = [
        float(o) * logistic((time - float(b)) / 0.1) * logistic((float(d) - time) / 0.1)
        for o, b, d in zip(g.opacities, births, deaths, strict=True)
    ]
    assert living.opacities.tolist() == pytest.approx(expected, abs=2e-6)
    assert torch.equal(living.means, g.means) and living.opacity_logits is not g.opacity_logits


def test_gradients_reach_births_and_deaths():
    spans = torch.tensor([[0.3, 0.6]], requires_grad=True)
    lifespans.alive(two_objects().select(torch.tensor([0])), spans, 0.7, 0.1).opacities.sum().backward()
    assert spans.grad[0, 0] < 0 < spans.grad[0, 1]  # living longer shows more


def test_softness_falls_from_the_first_to_the_last():
    values = [lifespans.softness(p) for p in (0.0, 0.5, 1.0, 3.0)]
    assert values[0] > values[1] > values[2] == values[3] > 0
    assert values[1] == pytest.approx(math.sqrt(values[0] * values[2]))


def test_the_immortal_outlive_the_video():
    spans = lifespans.immortal(3)
    assert spans.shape == (3, 2) and (spans[:, 0] < 0).all() and (spans[:, 1] > 1).all()
    g = two_objects().select(torch.arange(3))
    assert not mortals(g, spans).any()
    for time in (0.0, 0.5, 1.0):
        sharp = lifespans.alive(g, spans, time, lifespans.softness(1.0))
        torch.testing.assert_close(sharp.opacities, g.opacities, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "life", [FIRST_HALF, (0.5, 1.2), (0.3, 0.7)], ids=["taken away", "put there", "both"]
)
def test_an_object_whose_life_ends_is_mortal_and_another_is_not(life):
    mortal = mortals(two_objects(), spans_of(life, IMMORTAL))
    assert mortal[:20].all() and not mortal[20:].any()


def test_speckles_that_die_alone_are_not_believed():
    spans = spans_of(IMMORTAL, FIRST_HALF)
    spans[3] = torch.tensor(FIRST_HALF)
    mortal = mortals(two_objects(), spans)
    assert not mortal[:20].any() and mortal[20:].all()
    assert mortals(two_objects(), spans, 0.0, 5.0)[3]  # unless no neighbour need agree


def test_faint_neighbours_do_not_count():
    spans = spans_of(FIRST_HALF, IMMORTAL)
    spans[:10] = torch.tensor(IMMORTAL)  # every second of the object …
    g = two_objects()
    assert not mortals(g, spans)[:20].any()
    g.opacity_logits[:10] = -12.0  # … which nobody sees
    assert mortals(g, spans)[10:20].all()


def test_a_life_that_ends_before_it_begins_is_none():
    assert not mortals(two_objects(), spans_of((0.6, 0.4), IMMORTAL)).any()


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_few_gaussians(count):
    g = two_objects().select(torch.arange(count))
    spans = spans_of(FIRST_HALF)[:count]
    assert mortals(g, spans).tolist() == [True] * count
    assert not mortals(g, spans, contrast=0.05).any()


def test_an_end_without_which_the_images_would_be_as_right_is_not_believed():
    spans = spans_of(FIRST_HALF, FIRST_HALF)
    contrast = torch.tensor([0.2, 0.05]).repeat_interleave(20)
    assert mortals(two_objects(), spans, contrast=contrast).tolist() == [True] * 20 + [False] * 20


def test_contrast_is_a_mean_over_neighbours_of_what_is_mortal():
    spans, contrast = spans_of(FIRST_HALF, IMMORTAL), torch.zeros(40)
    contrast[:20:2] = 0.4
    assert mortals(two_objects(), spans, contrast=contrast)[:20].all()  # 0.2 in the mean
    spans[:20:2] = torch.tensor(IMMORTAL)  # those that would gain do not die
    assert not mortals(two_objects(), spans, 0.1, contrast).any()


def test_windows_in_frames():
    windows = lifespans.windows(torch.tensor([[0.2, 0.6], [-0.2, 0.5], [0.5, 0.51]]), 50.0)
    assert windows[:, 0].tolist() == pytest.approx([20, 7.5, 25.25])
    assert windows[:, 1].exp().tolist() == pytest.approx([10, 17.5, 0.5])  # half a frame at least


def test_the_mortal_move_over_and_look_the_same():
    g, spans = two_objects(), spans_of(FIRST_HALF, IMMORTAL)
    static = Parameters({**g.parameters(), "spans": spans})
    evidence = Evidence(contrast=torch.ones(40), usual=torch.arange(40.0), moving=torch.zeros(40))
    like = moving(g.select(torch.arange(0)), rank=2, rows=5)
    taken, left = take_mortals(static, like, evidence, config_of("none").layers, 10.0)
    assert left.usual.tolist() == list(range(20, 40)) and len(left.contrast) == 20
    assert (len(static), len(taken), taken.frame) == (20, 20, "world") and "spans" not in static.values
    assert torch.equal(taken.gaussians.means, g.means[:20]) and torch.equal(
        static.values["means"], g.means[20:]
    )
    video = TinyVideo()
    scene = layered(static.gaussians.detach(), taken)
    scene.softness = 0.05
    for time, expected in ((0.1, g), (0.9, g.select(torch.arange(20, 40)))):
        ours, theirs = (render_layers(s, video.camera(0), time).color for s in (scene, layered(expected)))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_lives_end_or_begin_where_and_when_a_box_is_taken_away(tmp_path):
    """Those of the box end in the middle of the video, those of the wall that it hid may begin then."""
    video = TinyVideo(frames=24, holes=False)
    config = config_of(video.write(tmp_path / "video"), steps=1600, warmup=0.5)
    trainer = LayeredTrainer(config, open_dataset(config.data), tmp_path / "run")
    while trainer.step < trainer.warmup:
        trainer.train_step()
    static = trainer.parameters.layers["static"]
    g, spans = static.gaussians.detach(), static.values["spans"].detach()
    x, y, z = g.means.T
    solid = (g.opacities > 0.2) & (z > 3) & (spans[:, 0] < spans[:, 1])
    on_box = solid & (x > -0.9) & (x < -0.2) & (y > 0.1) & (y < 0.8)
    elsewhere = solid & (x > 0.1) & (x < 1.5)  # which every frame sees
    changes = ((spans - 0.5).abs() < 0.12).any(dim=1)
    assert on_box.sum() >= 8
    share = [float(changes[part].float().mean()) for part in (on_box, elsewhere)]
    assert share[0] > 0.35 and share[0] > 2.5 * share[1]


@pytest.mark.parametrize("warmup", [0.0, 1.0], ids=["no warm-up", "nothing else"])
def test_fits_of_one_phase_only(video, tmp_path, warmup):
    config = config_of(video, steps=6, warmup=warmup, sweep_points=100)
    trainer = LayeredTrainer(config, open_dataset(config.data), tmp_path)
    outcome = trainer.fit(progress=False)
    scene = Checkpoint.load(tmp_path).scene
    assert outcome.ended == "done" and isinstance(scene, LayeredScene)
    assert (scene.counts["dynamic"] > 0) == (warmup == 0)

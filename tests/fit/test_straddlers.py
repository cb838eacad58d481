"""Geometry made ready for instances: Gaussians that show nothing, and those that lie across two objects."""

from dataclasses import replace

import pytest
import torch

from gsfields.data.segments import open_segments, write_ids
from gsfields.fit.checkpoint import Checkpoint
from gsfields.fit.labels import Labels
from gsfields.fit.scene import open_dataset
from gsfields.fit.straddlers import contributions, mending, prepare_geometry, straddling
from gsfields.instances_config import GeometryConfig
from gsfields.layers import joined
from tests.fit.tiny_room import TinyRoom, opened, shuffled
from tests.layered_scene import rest

LEFT, RIGHT = (-0.4, 0.4)  # x of the boxes' middles; they meet at x = 0


class TwoBoxes(TinyRoom):
    """Two boxes that touch, seen from all sides, and nothing else. The segments tell them apart at x = 0."""

    def __post_init__(self):
        grid = torch.linspace(-0.3, 0.3, 4)
        box = torch.cartesian_prod(grid, grid, grid)
        shift = torch.tensor([1.0, 0, 0])
        means = torch.cat((box + LEFT * shift, box + RIGHT * shift))
        self.owners = torch.tensor([1, 2]).repeat_interleave(len(box))
        red, blue = torch.tensor([[0.9, 0.1, 0.1]]), torch.tensor([[0.1, 0.1, 0.9]])
        colors = torch.where((self.owners == 1)[:, None], red, blue)
        self.gaussians = rest(means, colors, scale=0.07, opacity=0.95)
        self.solid = 0.01  # objects end where their Gaussians do: these lie across nothing but x = 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return TwoBoxes(width=64, height=48).write(tmp_path_factory.mktemp("boxes") / "data")


def with_one_across(room):
    """The boxes and, on top of them, a long flat Gaussian that reaches over both."""
    across = rest([[0.0, 0.0, 0.42]], [[0.5, 0.5, 0.5]], opacity=0.9)
    across.log_scales[:] = torch.tensor([[0.35, 0.12, 0.03]]).log()
    return joined(room.gaussians, across)


def frozen(gaussians, data, room):
    _, views, labels = opened(room, data, scene=gaussians)
    return views, labels


CONFIG = GeometryConfig(split_share=0.75, split_views=0.4, split_pixels=2.0, split_steps=3, split_rounds=1)


def test_the_one_across_the_border_is_found_and_no_other(data):
    room = TwoBoxes(width=64, height=48)
    gaussians = with_one_across(room)
    views, labels = frozen(gaussians, data, room)
    found = straddling(views, labels, CONFIG)
    assert found.nonzero()[:, 0].tolist() == [len(gaussians) - 1]


def test_without_it_none_is_found(data):
    room = TwoBoxes(width=64, height=48)
    assert not straddling(*frozen(room.gaussians, data, room), CONFIG).any()


def test_what_it_takes_to_straddle(data):
    """A looser share finds more, a tighter one fewer; views that hardly show a Gaussian do not count."""
    room = TwoBoxes(width=64, height=48)
    views, labels = frozen(with_one_across(room), data, room)

    def count(**values):
        return int(straddling(views, labels, replace(CONFIG, **values)).sum())

    assert count(split_share=0.3) == 0 and count(split_share=0.99) > count() == 1
    assert count(split_pixels=1e4) == 0 == count(split_views=0.0, split_share=0.0)
    assert count(split_views=1.0) == 0  # no share of the views is more than all of them
    assert count(split_views=0.0, split_share=0.95) >= count(split_views=0.4, split_share=0.95)


def test_the_border_to_the_room_counts(data, tmp_path):
    """What belongs to no segment is one more: without the segments of one box the long Gaussian lies half on none."""
    room = TwoBoxes(width=64, height=48)
    gaussians = with_one_across(room)
    dataset, views, _ = opened(room, data, scene=gaussians)
    for i in dataset.train:
        _, ids = room.photo(i)
        write_ids(tmp_path / f"{room.stem(i)}.png", shuffled(ids * (ids == 1), seed=i))
    labels = Labels(open_segments(tmp_path), dataset, dataset.train)
    assert straddling(views, labels, CONFIG).nonzero()[:, 0].tolist() == [len(gaussians) - 1]


def test_contributions_are_sums_of_weights(data):
    room = TwoBoxes(width=64, height=48)
    views, labels = frozen(room.gaussians, data, room)
    seen = contributions(views, labels.indices)
    total = sum(views.alpha(i).sum() for i in labels.indices)
    torch.testing.assert_close(seen.sum(), total, rtol=1e-3, atol=0)
    values = torch.zeros(len(views), 1)
    values[5] = 1
    torch.testing.assert_close(seen[5], sum(views.blend(i, values).sum() for i in labels.indices))


def checkpoint_of(room, data, gaussians):
    return Checkpoint(gaussians, room.config(data), 100)


def test_faint_gaussians_go(data):
    room = TwoBoxes(width=64, height=48)
    hidden = rest([[0.0, 0.0, 30.0], [0.1, 0.1, 0.5]], torch.zeros(2, 3), scale=0.05)  # out of sight; seen
    hidden.opacity_logits[1] = torch.tensor(0.006).logit()  # but faint
    gaussians = joined(room.gaussians, hidden)
    dataset, views, labels = opened(room, data, scene=gaussians)
    lines = []
    config = replace(CONFIG, split_rounds=0, prune_weight=0.2)
    kept = prepare_geometry(
        checkpoint_of(room, data, gaussians), dataset, labels, config, report=lines.append
    )
    seen = contributions(views, labels.indices)
    assert seen[-2] == 0 and seen[-1] < 0.2
    torch.testing.assert_close(kept.means, gaussians.means[seen >= 0.2])
    assert 2 <= len(gaussians) - len(kept) < 30 and "show nothing: dropped" in lines[0]
    none = prepare_geometry(
        checkpoint_of(room, data, gaussians), dataset, labels, replace(config, prune_weight=0.0)
    )
    assert len(none) == len(gaussians)
    all_faint = replace(config, prune_weight=1e9)
    assert len(prepare_geometry(checkpoint_of(room, data, gaussians), dataset, labels, all_faint)) == len(
        gaussians
    )


def test_the_one_across_is_split_and_the_rest_mended(data):
    room = TwoBoxes(width=64, height=48)
    gaussians = with_one_across(room)
    dataset, _, labels = opened(room, data, scene=gaussians)
    before = {name: value.clone() for name, value in gaussians.parameters().items()}
    config = replace(CONFIG, prune_weight=0.0)
    lines: list[str] = []
    args = (checkpoint_of(room, data, gaussians), dataset, labels)
    made = prepare_geometry(*args, config, report=lines.append)
    assert len(made) == len(gaussians) + 1
    assert lines == ["round 1: 1 of 129 Gaussians lie across segments: split, then 3 steps"]
    halves = made.scales[-2:].amax(dim=1)
    assert (halves < 0.35 / 1.4).all()
    assert (made.means[:-2] - gaussians.means[:-1]).abs().max() < 0.02  # the rates are low by now
    assert not torch.equal(made.sh0[:-2], gaussians.sh0[:-1])  # but the colours move
    assert not any(p.requires_grad for p in made.parameters().values())
    for name, value in gaussians.parameters().items():
        assert torch.equal(value, before[name])  # the run's own are left alone
    torch.testing.assert_close(prepare_geometry(*args, config).means, made.means, rtol=0, atol=0)

    unmended = prepare_geometry(*args, replace(config, split_steps=0))
    torch.testing.assert_close(unmended.sh0[:-2], gaussians.sh0[:-1])


def test_rounds_end_when_nothing_is_left(data):
    room = TwoBoxes(width=64, height=48)
    dataset, _, labels = opened(room, data)
    lines: list[str] = []
    config = replace(CONFIG, prune_weight=0.0, split_rounds=5)
    made = prepare_geometry(
        checkpoint_of(room, data, room.gaussians), dataset, labels, config, report=lines.append
    )
    assert lines == ["round 1: no Gaussian lies across segments"]
    torch.testing.assert_close(made.means, room.gaussians.means)


def test_mending_lowers_the_error_and_adds_nothing(data):
    room = TwoBoxes(width=64, height=48)
    gaussians = room.gaussians
    gaussians.sh0 = gaussians.sh0 + 0.5
    config = room.config(data)
    config.densify = replace(config.densify, strategy="mcmc", refine_every=5, refine_stop=1.0)
    trainer = mending(gaussians, config, open_dataset(config.data), 40)
    assert trainer.schedule.steps - trainer.step == 40 and trainer.step >= 0.6 * trainer.schedule.steps
    losses = [trainer.train_step()[0] for _ in range(40)]
    rounds = [sum(losses[i : i + 8]) for i in range(0, 40, 8)]  # of all eight photos
    assert rounds == sorted(rounds, reverse=True) and rounds[-1] < 0.97 * rounds[0]
    assert len(trainer.scene) == len(gaussians)
    assert config.densify.strategy == "mcmc" and config.fit.steps == 100  # the run's own is left alone


def test_what_is_beyond_the_photo_is_no_border(tmp_path):
    """A Gaussian of which the photo of a pincushion lens shows a part only is not across anything."""
    room = TinyRoom(k1=0.8)
    room.gaussians = joined(room.gaussians, rest([[0.0, 0.0, -0.2]], [[0.7, 0.7, 0.7]], scale=3.0))
    room.owners = torch.cat((room.owners, torch.tensor([1])))
    data = room.write(tmp_path / "data")
    dataset, views, labels = opened(room, data)
    for i in dataset.train:  # one segment on all that the photo shows
        write_ids(data / "segments" / f"{room.stem(i)}.png", torch.ones(24, 32, dtype=torch.int32))
    labels = Labels(open_segments(data), dataset, dataset.train)
    assert not straddling(views, labels, CONFIG).any()

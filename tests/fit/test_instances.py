"""Fitting embeddings and classes of frozen Gaussians: what a step draws, what it moves, and what comes of it."""

import dataclasses

import pytest
import torch

from gsfields.data.segments import open_segments, write_ids
from gsfields.fit.instances import (
    ClassTrainer,
    InstanceTrainer,
    embeddings_in,
    lifted_votes,
    sampling_weights,
    spread_views,
)
from gsfields.fit.labels import Labels, ViewLabels
from gsfields.instances_config import FieldConfig
from gsfields.layers import joined
from tests.fit.tiny_room import TEST, TinyRoom, layered_room, opened
from tests.layered_scene import rest

ROOM = TinyRoom()
CONFIG = FieldConfig(steps=120, pixels=256, min_segment=5, class_steps=20, plan_mib=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ROOM.write(tmp_path_factory.mktemp("room") / "data")


@pytest.fixture(scope="module")
def parts(data):
    return opened(ROOM, data)


def trainer(parts, **changes):
    _, views, labels = parts
    return InstanceTrainer(views, labels, dataclasses.replace(CONFIG, **changes))


def means_of(theta):
    """[3, D] mean embedding of the Gaussians of each blob, and their spread about it."""
    groups = [theta[ROOM.owners == k] for k in (1, 2, 3)]
    middle = torch.stack([g.mean(dim=0) for g in groups])
    return middle, torch.stack([(g - m).norm(dim=1).median() for g, m in zip(groups, middle)]).max()


# ------------------------------------------------------------------------------------------------------ what is drawn


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_segments_weigh_by_a_power_of_their_area(balance):
    ids = torch.tensor([0] * 50 + [1] * 100 + [2] * 16 + [3] * 4)
    labels = ViewLabels(ids, 3, ids.clamp(max=1), None)
    usable = torch.ones(170, dtype=torch.bool)
    usable[50:60] = False
    weights = sampling_weights(labels, usable, balance, 5)
    assert not weights[:60].any() and not weights[166:].any()  # none, not usable; too small
    torch.testing.assert_close(weights[60:150], torch.full((90,), 100.0**-balance))
    torch.testing.assert_close(weights[150:166], torch.full((16,), 16.0**-balance))
    assert sampling_weights(labels, usable, balance, 0)[166:].all()


def test_pixels_are_drawn_by_these_weights_and_carry_their_labels(parts):
    _, views, labels = parts
    made = trainer(parts, pixels=60, balance=1.0)
    index = labels.indices[2]
    found, alpha = labels.of(index), views.alpha(index).flatten()
    drawn = torch.zeros(24 * 32)
    for _ in range(300):
        batch = made.batch(index)
        places = batch.pixels[:, 1] * 32 + batch.pixels[:, 0]
        assert len(places.unique()) == 60 and (batch.view, batch.confidence) == (index, None)
        assert torch.equal(batch.labels, found.ids[places]) and batch.labels.min() == 1
        torch.testing.assert_close(batch.alpha, alpha[places])
        assert batch.alpha.min() > CONFIG.min_alpha
        drawn[places] += 1
    shares = torch.stack([drawn[(found.ids == k) & (alpha > 0.9)].sum() for k in (1, 2, 3)])
    areas = torch.bincount(found.ids[alpha > 0.9], minlength=4)[1:].float()
    assert areas.max() > 1.3 * areas.min()
    # small segments are used up, which pulls the shares towards the areas, but not far
    assert shares.max() / shares.min() < 0.6 * float(areas.max() / areas.min()) + 0.4


def test_a_view_without_a_segment_gives_no_batch(data, parts, tmp_path):
    dataset, views, _ = parts
    for i in dataset.train:
        write_ids(tmp_path / f"{ROOM.stem(i)}.png", torch.zeros(24, 32, dtype=torch.int32))
    made = InstanceTrainer(views, Labels(open_segments(tmp_path), dataset, dataset.train), CONFIG)
    start = made.field.fast().detach().clone()
    assert made.batch(dataset.train[0]) is None
    assert [made.train_step() for _ in range(5)] == [None] * 5
    assert torch.equal(made.field.fast(), start)


def test_nothing_is_learnt_from_what_moves(data):
    scene = layered_room(ROOM)
    dataset, views, labels = opened(ROOM, data, scene=scene)
    made = InstanceTrainer(views, labels, CONFIG)
    index = dataset.train[3]
    moving = views.moving(index)
    assert (moving > 0.5).sum() > 3
    everywhere = ViewLabels(torch.ones(24 * 32, dtype=torch.int64), 1, torch.ones(24 * 32).long(), None)
    made.labels.of = lambda index: everywhere
    batch = made.batch(index)
    assert (moving[batch.pixels[:, 1], batch.pixels[:, 0]] <= 0.5).all()


# ------------------------------------------------------------------------------------------------------ what it moves


def test_a_step_moves_fast_embeddings_and_nothing_else(parts):
    made = trainer(parts)
    _, views, _ = parts
    before = {name: value.clone() for name, value in views.gaussians().parameters().items()}
    for _ in range(3):
        fast, slow = (x.detach().clone() for x in (made.field.fast(), made.field.slow()))
        assert isinstance(made.train_step(), float)
        torch.testing.assert_close(made.field.slow(), 0.9 * slow + 0.1 * fast)
        assert not torch.equal(made.field.fast(), fast)
    for name, value in views.gaussians().parameters().items():
        assert torch.equal(value, before[name]) and value.grad is None and not value.requires_grad


@pytest.mark.parametrize("loss", ["slow-fast", "vanilla"])
def test_gaussians_that_no_pixel_shows_stay_where_they_were(data, loss):
    """Behind all cameras, and behind other Gaussians."""
    far = rest([[0.0, 0.0, 60.0], [50.0, 0.0, 0.0]], torch.zeros(2, 3))
    parts = opened(ROOM, data, scene=joined(ROOM.gaussians, far))
    made = trainer(parts, loss=loss)
    start = made.field.fast().detach().clone()
    for _ in range(20):
        made.train_step()
    assert torch.equal(made.field.fast()[-2:], start[-2:])
    moved = (made.field.fast() - start).abs().amax(dim=1) > 0
    assert moved[:-2][ROOM.owners > 0].float().mean() > 0.9


def test_the_seed_decides_and_nothing_else(data):
    results = []
    for seed, limit in ((0, 16), (0, 0), (1, 16)):
        made = trainer(opened(ROOM, data, limit_bytes=limit << 20), seed=seed)
        torch.rand(seed + 3)  # not by torch's own generator
        for _ in range(10):
            made.train_step()
        results.append(made.field.fast().detach())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_a_network_of_the_position_is_reproducible_too(parts):
    results = []
    for _ in range(2):
        made = trainer(parts, model="position", rate=1e-3)
        for _ in range(3):
            made.train_step()
        results.append(made.field.fast().detach())
    assert torch.equal(*results)


# ------------------------------------------------------------------------------------------------------ what it learns


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dim": 3},
        {"start": "random", "dim": 4},
        {"form": "paper"},
        {"kernel": "plain"},
        {"loss": "vanilla", "form": "paper"},
        {"loss": "associative"},
        {"loss": "margin"},
        {"loss": "dino", "start": "random", "dim": 8},
    ],
    ids=str,
)
def test_blobs_part(parts, changes):
    """Embeddings of one blob gather, those of different blobs part, although no view knows another's numbers."""
    made = trainer(parts, **changes)
    made.run(progress=False)
    middle, spread = means_of(made.field.fast().detach())
    assert torch.pdist(middle).min() > 3 * spread
    start, first = means_of(trainer(parts, **changes).field.fast().detach())
    assert spread / torch.pdist(middle).min() < 0.7 * first / torch.pdist(start).min()


def test_linear_assignment_gives_each_blob_an_identifier(parts):
    made = trainer(parts, loss="linear-assignment", identifiers=8)
    made.run(progress=False)
    theta = made.field.fast().detach()
    assert theta.shape[1] == 8
    best = [theta[ROOM.owners == k].argmax(dim=1).mode() for k in (1, 2, 3)]
    assert len({int(b.values) for b in best}) == 3


def test_the_network_learns(parts):
    made = trainer(parts, model="position", rate=1e-3)
    losses = [made.train_step() for _ in range(60)]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_what_a_view_shows_of_the_embeddings(parts):
    _, views, _ = parts
    theta = torch.ones(len(views), 3) * torch.tensor([1.0, -2.0, 0.5])
    image, alpha = embeddings_in(views, 4, theta), views.alpha(4)
    solid = alpha > 0.5
    torch.testing.assert_close(image[solid], theta[0].expand(int(solid.sum()), 3), rtol=2e-3, atol=2e-3)
    plain = views.blend(4, theta)
    torch.testing.assert_close(plain, alpha[..., None] * theta[0], rtol=2e-3, atol=2e-3)


# ------------------------------------------------------------------------------------------------------------- classes


def test_votes_tell_things_from_stuff(parts):
    _, views, labels = parts
    votes = lifted_votes(views, labels)
    torch.testing.assert_close(votes.sum(dim=1), torch.ones(len(views)))
    seen = sum(views.lift(i, torch.ones(24, 32, 1)).total for i in labels.indices) > 1
    thing = ROOM.owners > 0
    assert (votes.argmax(dim=1) == thing.long())[seen].float().mean() > 0.93
    image = views.blend(TEST[0], votes).argmax(dim=-1)
    _, truth = ROOM.photo(TEST[0])
    assert (image == (truth > 0)).float().mean() > 0.95


def test_what_no_view_shows_is_stuff_and_votes_are_weighed_by_confidence(data):
    far = rest([[0.0, 0.0, 60.0]], torch.zeros(1, 3))
    _, views, labels = opened(ROOM, data, scene=joined(ROOM.gaussians, far))
    votes = lifted_votes(views, labels)
    torch.testing.assert_close(votes[-1], torch.tensor([0.95, 0.05]))
    of, sure = labels.of, set(labels.indices[:4])

    def doubted(index):  # all others say the opposite, but are not at all sure
        found = of(index)
        swapped = found.columns if index in sure else 1 - found.columns
        return dataclasses.replace(
            found, columns=swapped, confidence=torch.full_like(found.ids, index in sure).float()
        )

    labels.of = doubted
    weighed = lifted_votes(views, labels)
    assert (weighed[:-1].argmax(dim=1) == votes[:-1].argmax(dim=1)).float().mean() > 0.9


def test_classes_get_no_worse_by_training(parts):
    _, views, labels = parts
    made = ClassTrainer(views, labels, CONFIG)
    torch.testing.assert_close(made.probabilities(), lifted_votes(views, labels))
    made.run(progress=False)
    _, truth = ROOM.photo(TEST[1])
    before, after = (
        (views.blend(TEST[1], p).argmax(dim=-1) == (truth > 0)).float().mean()
        for p in (lifted_votes(views, labels), made.probabilities())
    )
    assert after >= before - 0.003 and after > 0.97
    torch.testing.assert_close(made.probabilities().sum(dim=1), torch.ones(len(views)))


def test_a_view_whose_classes_are_all_unknown_teaches_nothing(parts):
    _, views, labels = opened_copy(parts)
    of = labels.of
    labels.of = lambda index: dataclasses.replace(of(index), columns=torch.full((24 * 32,), -1))
    made = ClassTrainer(views, labels, CONFIG)
    torch.testing.assert_close(made.probabilities(), torch.tensor([[0.95, 0.05]]).expand(len(views), 2))
    assert made.train_step() == 0.0


def opened_copy(parts):
    """The same with labels of their own, to be changed."""
    dataset, views, labels = parts
    return dataset, views, Labels(labels.source, dataset, dataset.train)


def test_views_evenly_spread():
    assert list(spread_views(list(range(100, 110)), 5)) == [100, 102, 104, 106, 108]
    assert list(spread_views([4, 7], 5)) == [4, 7]

"""What a pixel or a Gaussian shows: which share of its views makes it a thing, and whose it is."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("sklearn", reason="clustering needs scikit-learn")
from gsfields.data.segments import write_ids
from gsfields.fields.objects import Objects
from gsfields.fit.instance_runs import make_objects
from gsfields.fit.recognition import FittedField, _widths, located, recognised
from gsfields.instances_config import ObjectsConfig
from tests.fit.test_instance_runs import fit, scores
from tests.fit.tiny_room import TinyRoom, opened, shuffled

ROOM = TinyRoom()
# two objects, the second found in four views of ten; stuff 4, things 7 and 2
FIELD = FittedField(torch.zeros(1, 2), torch.ones(1, 3), (4, 7, 2), (7, 2), "")
OBJECTS = dataclasses.replace(
    Objects.each(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([7, 2], dtype=torch.int32)),
    found=torch.tensor([0.9, 0.4]),
)


def shown(features, chances, opaque=True, field=FIELD):
    ids, classes = recognised(
        field, OBJECTS, torch.tensor([features]), torch.tensor([chances]), torch.tensor([opaque])
    )
    return ids.item(), classes.item()


def test_an_object_ends_where_half_of_its_own_share_is_reached():
    near, far = [1.0, 0.0], [8.0, 0.0]
    assert shown(near, [0.5, 0.45, 0.05]) == (1, 7)  # 0.5 > 0.45
    assert shown(near, [0.6, 0.35, 0.05]) == (0, 4)
    assert shown(far, [0.75, 0.05, 0.2]) == (2, 2)  # most views say stuff, but 0.25 > 0.2
    assert shown(far, [0.85, 0.05, 0.1]) == (0, 4)
    assert shown(far, [7.5, 0.5, 2.0]) == (2, 2)  # only shares count


def test_what_shows_nothing_and_what_has_no_object_is_stuff():
    """A thing without an object would be scored as one more."""
    here = [0.0, 0.0]
    assert shown(here, [0.0, 1.0, 0.0], opaque=False) == (0, 4) and shown(here, [0.0, 0.0, 0.0]) == (0, 4)
    lone = dataclasses.replace(FIELD, things=(7, 4))  # there are no objects of class 4
    assert shown(here, [0.6, 0.3, 0.1], field=lone) == (0, 2)
    only = dataclasses.replace(FIELD, things=(4, 7, 2))
    assert shown(here, [0.1, 0.8, 0.1], field=only) == (1, 7)
    assert shown(here, [0.1, 0.8, 0.1], opaque=False, field=only) == (0, 7)
    none = dataclasses.replace(FIELD, things=())
    assert shown(here, [0.1, 0.8, 0.1], field=none) == (0, 7)


def test_an_object_that_most_views_miss_is_found(tmp_path):
    """Segments of one object are there in a quarter of the views; it is whole, unless more is asked for."""
    data = ROOM.write(tmp_path / "data")
    (tmp_path / "ids").mkdir()
    for i in range(ROOM.views):
        ids = ROOM.photo(i)[1]
        missed = (ids == 2) & (i % 4 > 0)
        write_ids(tmp_path / "ids" / f"{ROOM.stem(i)}.png", shuffled(torch.where(missed, 0, ids), seed=i))
    run = ROOM.run(tmp_path / "run", data)
    assert len(fit(run, tmp_path / "ids")) == 3
    found = scores(run)["objects"]
    assert found["rq"] == 1 and found["pq"] > 0.85
    assert len(fit(run, tmp_path / "ids", overwrite=True, found=0.5)) == 2


def test_places_tell_apart_what_embeddings_do_not(tmp_path):
    """All embeddings are alike but for noise: objects that lie apart are told apart by their places, and only so."""
    data = ROOM.write(tmp_path / "data")
    run = ROOM.run(tmp_path / "run", data)
    fit(run)
    path = run / "instances" / "field.safetensors"
    field = FittedField.load(path)
    alike = 0.01 * torch.randn(field.theta.shape, generator=torch.Generator().manual_seed(0))
    dataclasses.replace(field, theta=alike).save(path)
    assert len(make_objects(run, [("place", "4"), ("merge", "false")], say=lambda line: None)) == 3
    assert scores(run)["objects"]["rq"] == 1
    make_objects(run, [("place", "0")], say=lambda line: None)
    assert scores(run)["objects"]["rq"] < 0.9


def test_places_are_as_wide_as_they_are_told(tmp_path):
    """A 2D segment's width in the added dimensions, in the median, is `place` times that in the others."""
    data = ROOM.write(tmp_path / "data")
    _, views, labels = opened(ROOM, data)
    field = FittedField(
        torch.randn(len(views), 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[0.0, 1.0]]).expand(len(views), 2).contiguous(), (0, 1), (1,), "",
    )  # fmt: skip
    config = ObjectsConfig(place=0.5)
    wide = located(views, field, labels, config).theta
    assert torch.equal(wide[:, :4], field.theta)
    scale = (wide[:, 4:] / views.gaussians().means).median()
    torch.testing.assert_close(wide[:, 4:], scale * views.gaussians().means)
    double = located(views, field, labels, dataclasses.replace(config, place=1.0)).theta
    torch.testing.assert_close(double[:, 4:], 2 * wide[:, 4:])
    pixels = torch.randn(60, 7, generator=torch.Generator().manual_seed(1))
    ((first, other),) = _widths(
        pixels, torch.tensor([3, 0, 5]).repeat_interleave(torch.tensor([30, 25, 5])), 4
    )
    own = pixels[:30] - pixels[:30].mean(dim=0)
    assert first == pytest.approx(float(own[:, :4].square().sum(dim=1).mean().sqrt()))
    assert other == pytest.approx(float(own[:, 4:].square().sum(dim=1).mean().sqrt()))
    for same in (
        located(views, field, None, config),
        located(views, field, labels, ObjectsConfig(place=0.0)),
        located(views, dataclasses.replace(field, identifiers=True), labels, config),
    ):
        assert same.theta.shape[1] == 4

"""What a pixel or a Gaussian shows: which share of its views makes it a thing, and whose it is."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("sklearn", reason="clustering needs scikit-learn")
from gsfields.data.segments import write_ids
from gsfields.fields.objects import Objects
from gsfields.fit.recognition import FittedField, recognised
from tests.fit.test_instance_runs import fit, scores
from tests.fit.tiny_room import TinyRoom, shuffled

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

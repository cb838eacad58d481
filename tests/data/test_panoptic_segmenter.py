"""The simulated 2D panoptic segmenter: how good it is, and that its errors are of the kinds, and as frequent and as
lasting, as it promises.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from gsfields.data.messy_scene import MessyConfig, MessyScene
from gsfields.data.panoptic_segmenter import PanopticSegmenter, PanopticSegmenterConfig
from gsfields.data.segments import Classes
from gsfields.evaluate.panoptic import PanopticCounts

ERRORS = ("missed", "split", "merged", "ragged", "false_segments", "wrong_class")
NONE = PanopticSegmenterConfig(**dict.fromkeys(ERRORS, 0))
USUAL = PanopticSegmenterConfig()


def only(name: str, value: float | None = None) -> PanopticSegmenterConfig:
    return replace(NONE, **{name: getattr(USUAL, name) if value is None else value})


@pytest.fixture(scope="module")
def room():
    scene = MessyScene(MessyConfig(seed=0, views=60, supersample=1))
    return scene, [scene.frame(i) for i in range(0, 60, 7)]


def per_frame_pq(frames, told) -> float:
    counts = PanopticCounts(Classes())
    for frame, segments in zip(frames, told, strict=True):
        counts.add(segments.semantics, segments.ids, frame.semantics, frame.instances)
    return 100 * counts.scores().per_frame_pq


def grid(count: int = 8, side: int = 12, gap: int = 4) -> np.ndarray:
    """count² square objects of `side` pixels, `gap` apart."""
    ids = np.zeros((count * (side + gap),) * 2, dtype=np.int32)
    for k in range(count**2):
        y, x = np.array(divmod(k, count)) * (side + gap) + gap // 2
        ids[y : y + side, x : x + side] = k + 1
    return ids


def segments_on(told, ids, number: int) -> list[int]:
    """Sizes of the segments on object `number`, largest first."""
    _, counts = np.unique(told.ids.numpy()[(ids == number) & (told.ids.numpy() > 0)], return_counts=True)
    return sorted(counts.tolist(), reverse=True)


def test_quality_is_that_of_a_detector_on_clutter(room):
    scene, frames = room
    segmenter = PanopticSegmenter()
    assert 68 < per_frame_pq(frames, [segmenter.of(scene, frame) for frame in frames]) < 80


def test_without_errors_the_truth_is_told_in_numbers_of_each_view(room):
    scene, frames = room
    segmenter = PanopticSegmenter(PanopticSegmenterConfig(errors=0))
    numbers = []
    for frame in frames:
        told = segmenter.of(scene, frame)
        assert np.array_equal(told.semantics, frame.semantics)
        assert (told.confidence == 1).all()
        pairs = np.unique(np.stack([frame.instances.ravel(), told.ids.numpy().ravel()]), axis=1)
        assert len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1]
        numbers.append(dict(pairs.T.tolist()).get(1))
    assert len(set(numbers)) > len(numbers) / 2


def test_each_kind_of_error_costs_quality_and_all_of_them_more(room):
    scene, frames = room
    costs = {}
    for name in ERRORS:
        segmenter = PanopticSegmenter(only(name))
        costs[name] = 100 - per_frame_pq(frames, [segmenter.of(scene, frame) for frame in frames])
    assert min(costs.values()) > 0.5 and max(costs.values()) < 20, costs
    halved = PanopticSegmenter(PanopticSegmenterConfig(errors=0.5))
    half = per_frame_pq(frames, [halved.of(scene, frame) for frame in frames])
    assert half > 4 + per_frame_pq(frames, [PanopticSegmenter().of(scene, frame) for frame in frames])


def test_segments_depend_on_the_view_alone(room):
    scene, frames = room
    first, again = PanopticSegmenter(seed=4), PanopticSegmenter(seed=4)
    told = [first.of(scene, frame) for frame in frames[:4]]
    for slot in (3, 0):  # in another order
        other = again.of(scene, frames[slot])
        assert all(np.array_equal(a, b) for a, b in zip(other, told[slot]))
    assert not np.array_equal(PanopticSegmenter(seed=5).of(scene, frames[0]).ids, told[0].ids)
    assert [str(x.dtype) for x in told[0]] == ["torch.int32", "torch.int32", "torch.float32"]


def test_objects_are_missed_as_often_as_asked_and_small_ones_more():
    ids = grid()
    share = (12 * 12) / ids.size
    rate = 0.2 * np.sqrt(0.008 / share) * 0.4  # these are small by a little, and free
    segmenter = PanopticSegmenter(only("missed", 0.2))
    found = [len(np.unique(segmenter.segment(ids, index=100 * i).ids)) - 1 for i in range(40)]
    assert abs(1 - np.mean(found) / 64 - rate) < 0.03
    large = grid(count=4, side=28)
    found = [len(np.unique(segmenter.segment(large, index=100 * i).ids)) - 1 for i in range(40)]
    assert 1 - np.mean(found) / 16 < 0.7 * rate


def test_crowded_objects_are_missed_more_and_touching_ones_merged():
    free, tight = grid(gap=4), grid(gap=0)
    segmenter = PanopticSegmenter(only("missed", 0.2))

    def found(ids):
        return np.mean([len(np.unique(segmenter.segment(ids, index=100 * i).ids)) - 1 for i in range(20)])

    assert found(tight) < found(free) - 4
    merging = PanopticSegmenter(only("merged", 0.6))
    for ids, merges in ((free, False), (tight, True)):
        told = merging.segment(ids)
        owners = [np.unique(ids[told.ids.numpy() == number]) for number in np.unique(told.ids) if number > 0]
        assert (max(map(len, owners)) == 2) == merges  # pairs, not chains


def test_cuts_leave_two_or_three_large_pieces_of_one_object():
    ids = grid(count=4, side=28)
    told = PanopticSegmenter(only("split", 0.9)).segment(ids)
    pieces = [segments_on(told, ids, number) for number in range(1, 17)]
    assert {len(sizes) for sizes in pieces} >= {2, 3} and max(map(len, pieces)) == 3
    assert all(sizes[-1] > 0.1 * 28 * 28 for sizes in pieces)
    assert all(sum(sizes) == 28 * 28 for sizes in pieces)


def test_borders_are_off_by_as_much_as_asked_and_grow_with_the_image():
    ids = np.zeros((64, 128), dtype=np.int32)
    ids[:, :64] = 1
    for zoom in (1, 3):
        large = ids.repeat(zoom, axis=0).repeat(zoom, axis=1)
        ends = [
            (PanopticSegmenter(only("ragged", 2.0)).segment(large, index=i).ids > 0).sum(dim=1).float() / zoom
            for i in range(24)
        ]
        off = np.concatenate(ends) - 64
        assert 1.2 < off.std() < 2.8, off.std()
        assert abs(off.mean()) < 0.5


def test_false_segments_cover_the_share_asked_for_and_stick_to_surfaces(room):
    scene, frames = room
    told = [PanopticSegmenter(only("false_segments", 0.08)).of(scene, frame) for frame in frames]
    shares = [(t.ids.numpy() > 0)[f.instances == 0].mean() for t, f in zip(told, frames)]
    assert 0.04 < np.mean(shares) < 0.12
    for t, f in zip(told, frames, strict=True):
        of_room, of_objects = (set(np.unique(t.ids[here])) for here in (f.instances == 0, f.instances > 0))
        assert not of_room & of_objects - {0}, "a false segment has the number of an object"
    lasting = PanopticSegmenter(replace(only("false_segments", 0.08), lasting=1.0, gradual=0.0))
    cells: list[set] = []
    for frame in frames[:4]:
        false = (lasting.of(scene, frame).ids.numpy() > 0) & (frame.instances == 0)
        cells.append({tuple(cell) for cell in np.floor(frame.points[false] / 0.08).astype(int)})
        cells.append(
            {tuple(cell) for cell in np.floor(frame.points[frame.instances == 0] / 0.08).astype(int)}
        )
    both = cells[1] & cells[3]
    stay = len(cells[0] & cells[2] & both) / max(len(cells[0] & both), 1)
    assert stay > 0.5


def test_some_objects_are_always_hard_and_neighbouring_views_err_alike():
    ids = grid()

    def likeness(lasting, gradual, gap):
        """Correlation of what is missed in a view and in the one `gap` later."""
        segmenter = PanopticSegmenter(replace(only("missed", 0.5), lasting=lasting, gradual=gradual))
        found = [ids * (segmenter.segment(ids, index=i).ids.numpy() > 0) for i in range(0, 4 * gap, gap)]
        missed = [np.bincount(maps.ravel(), minlength=65)[1:] == 0 for maps in found]
        return np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairwise(missed)])

    far, near = 400, 1
    assert likeness(0.9, 0.0, far) > 0.5
    assert likeness(0.0, 0.9, near) > 0.5
    assert abs(likeness(0.0, 0.9, far)) < 0.3
    assert abs(likeness(0.0, 0.0, near)) < 0.3


def test_confidence_follows_quality_but_not_exactly(room):
    scene, frames = room
    segmenter = PanopticSegmenter()
    sure, good = [], []
    for frame in frames:
        told = segmenter.of(scene, frame)
        ids = told.ids.numpy()
        assert (told.confidence.numpy()[ids == 0] == 1).all()
        for number in np.unique(ids[ids > 0]):
            here = ids == number
            owners, counts = np.unique(frame.instances[here], return_counts=True)
            overlaps = [
                n / (here.sum() + (frame.instances == k).sum() - n) for k, n in zip(owners, counts) if k > 0
            ]
            good.append(max(overlaps, default=0))
            sure.append(told.confidence.numpy()[here][0])
    assert 0.4 < np.corrcoef(sure, good)[0, 1] < 0.95
    assert min(sure) >= 0 and max(sure) <= 1


def test_wrong_classes_are_others_of_those_known():
    ids = grid()
    classes = Classes(things=(3, 5), stuff=(0, 2))
    semantics = np.where(ids == 0, 2, np.where(ids % 2, 3, 5))
    told = PanopticSegmenter(only("wrong_class", 0.4), classes=classes).segment(ids, semantics=semantics)
    wrong = [told.semantics.numpy()[ids == k][0] != semantics[ids == k][0] for k in range(1, 65)]
    assert 0.2 < np.mean(wrong) < 0.6
    assert set(np.unique(told.semantics)) == {0, 2, 3, 5}
    assert (told.semantics.numpy()[ids == 0] == 2).all()
    stuff = np.isin(told.semantics, (0, 2))
    assert (told.ids.numpy()[stuff] == 0).all() and (told.ids.numpy()[~stuff] > 0).all()


@pytest.mark.parametrize(
    "bad", [{"errors": -1}, {"missed": 2}, {"ragged": "much"}, {"view_length": 0}, {"lasting": 0.9}], ids=str
)
def test_bad_settings_are_named(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=name):
        PanopticSegmenterConfig(**bad)


def test_bad_maps_are_named():
    segmenter = PanopticSegmenter()
    with pytest.raises(ValueError, match="ids must be"):
        segmenter.segment(np.zeros((4, 4)))
    with pytest.raises(ValueError, match="ids must be"):
        segmenter.segment(np.full((4, 4), -1))
    with pytest.raises(ValueError, match="semantics must be those of 4x4 ids"):
        segmenter.segment(np.zeros((4, 4), int), semantics=np.zeros((4, 5), int))
    with pytest.raises(ValueError, match="classes"):
        PanopticSegmenter(classes=Classes(things=()))
    empty = segmenter.segment(np.zeros((16, 16), int))
    assert empty.ids.shape == (16, 16)

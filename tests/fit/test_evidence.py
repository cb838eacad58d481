"""What the images say of each static Gaussian over time: whether its end is needed, and where it is always wrong."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gsfields.fit import lifespans
from gsfields.fit.evidence import Evidence, gather
from tests.fit.tiny_video import WALL_DEPTH, Spots, TinyVideo
from tests.layered_scene import layered, rest

IMMORTAL, FIRST_HALF, SECOND_HALF = (-0.2, 1.2), (-0.2, 0.5), (0.5, 1.2)


@dataclass
class Told:
    """Wall and box as static layer, living as told; the images show the box in their first half only."""

    evidence: Evidence
    box: Tensor  # bool [N], its Gaussians
    hidden: Tensor  # those of the wall that the box hides from every camera
    right: Tensor  # those of the wall that are far from box and ball, to the right
    outside: Tensor  # those of the wall that no camera sees
    seen: Tensor  # those of it that the cameras see well


def told(lives=None, *, wrong=False, motion=True):
    """`lives` names parts and when they live; the others are immortal. `wrong`: the right of the wall has colours that
    it has in no image.
    """
    video = TinyVideo(frames=16, wall=Spots.grid((-3.6, -2.2), (3.6, 2.2), WALL_DEPTH, 0.15, 0))
    wall, box = video.wall, video.box
    g = rest(torch.cat((wall.means, box.means)), torch.cat((wall.colors, box.colors)), opacity=0.95)
    is_box = torch.arange(len(g)) >= len(wall.means)
    g.log_scales[:] = torch.where(is_box, box.scale, wall.scale)[:, None].log()
    x, y, _ = g.means.T
    centre = (x > -0.85) & (x < -0.4) & (y > 0.3) & (y < 0.75)
    inside = (x.abs() < 1.5) & (y.abs() < 0.9)
    parts = {
        "box": is_box,
        "hidden": ~is_box & centre,
        "right": ~is_box & inside & (x > 0.8),
        "outside": ~is_box & (x.abs() > 3.4),
    }
    if wrong:
        g.sh0[parts["right"]] *= -1
    scene, spans = layered(static=g), torch.tensor([IMMORTAL] * len(g))
    scene.duration = float(video.frames - 1)
    for name, life in (lives or {}).items():
        spans[parts[name]] = torch.tensor(life)
    pictures = [video.picture(i) for i in range(video.frames)]
    for picture in pictures if not motion else ():
        picture.motion = torch.zeros_like(picture.motion)
    evidence = gather(scene, spans, iter(pictures), lifespans.softness(1), 0.01)
    return Told(evidence, **parts, seen=~is_box & inside)


def test_an_object_that_leaves_has_contrast_and_the_wall_behind_it_none():
    """The box would be wrong after its death; the wall before its birth hides behind the box."""
    t = told({"box": FIRST_HALF, "hidden": SECOND_HALF})
    contrast = t.evidence.contrast
    assert contrast[t.box].median() > 0.1 and t.hidden.sum() >= 4
    assert contrast[t.hidden].median() < 0.01
    assert not contrast[t.right].any()  # immortal: it is never dead


def test_a_wall_that_dies_for_no_reason_has_no_contrast():
    t = told({"right": FIRST_HALF, "box": FIRST_HALF})
    assert t.evidence.contrast[t.right].median() < 0.02 < 0.1 < t.evidence.contrast[t.box].median()
    assert t.evidence.usual[t.right].median() < 0.01  # in the half in which it lives


def test_what_is_wrong_for_a_part_only_is_right_as_usual():
    t = told(wrong=True)  # and the box never leaves
    usual = t.evidence.usual
    assert usual[t.box].median() < 0.04 and usual[t.right].median() > 0.15
    assert usual[t.seen & ~t.right].median() < 0.04


def test_what_moves_is_no_evidence():
    """The ball passes before the wall: an error there says nothing of the wall."""
    errors = [told(motion=m).evidence.usual.mean() for m in (True, False)]
    assert errors[0] < errors[1]


def test_who_is_never_seen_has_no_evidence():
    t = told({"outside": FIRST_HALF})
    assert t.outside.any() and not t.evidence.contrast[t.outside].any()
    assert not t.evidence.usual[t.outside].any()


@pytest.mark.parametrize("index", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_evidence_of_some(index):
    e = Evidence(torch.arange(3.0), 10 + torch.arange(3.0), 20 + torch.arange(3.0)).select(index)
    assert torch.equal(e.contrast, torch.arange(3.0)[index]) and torch.equal(e.usual, e.contrast + 10)
    assert torch.equal(e.moving, e.contrast + 20)

"""2D motion scores weighed by what the static layer knows of the video.

Once fitted, the static layer is a second witness of motion, and one that has seen all frames. Two things speak against
a pixel that stands still: its colour surprises the static layer; or what the static layer shows there is said to move
in most of the frames that see it, as a hand is that hovers so long that the static layer took it in. What neither of
them supports is a false alarm. The witnesses are taken to be independent, so their log-odds add.

LMF fuses the scores as they are (its equations 11 and 12); this is not of the paper.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gsfields.data.motion_masks import write_mask
from gsfields.fit import lifespans
from gsfields.fit.evidence import Evidence
from gsfields.fit.footage import Frame
from gsfields.layers import LayeredScene, render_layers

FOLDER = "consensus"  # in a run: <stem>.png, 8 bits, of the size of the view
_SURE = (0.03, 0.98)  # scores beyond these are not believed more: 2D methods miss things, and are alarmed
_SURPRISE = 0.08  # colour error that says neither this nor that, in images of the usual contrast
_CONTRAST = 0.25  # standard deviation of the colours of such an image
_HABIT = 0.27  # mean score of a surface that says neither this nor that
_LEAST, _MOST = -4.0, 2.5  # log-odds that the static layer's word counts for


def weighed(scores: Tensor, habit: Tensor, surprise: Tensor) -> Tensor:
    """Scores [...] in [0, 1] after the static layer's word, σ(logit M + e), e the greater of two log-odds.

    Args:
        scores: M, of a 2D method.
        habit: [...] the mean score, over the video, of the surfaces that the static layer shows there.
        surprise: [...] its colour error beyond what is usual there, at the usual contrast.
    """
    by_habit = torch.logit(habit, eps=0.02) - torch.logit(torch.tensor(_HABIT))
    by_surprise = 2 * torch.log(surprise.clamp(min=1e-6) / _SURPRISE)
    word = torch.maximum(by_habit, by_surprise).clamp(_LEAST, _MOST)
    return torch.sigmoid(torch.logit(scores.clamp(*_SURE)) + word)


@torch.no_grad()
def write_consensus(
    folder: Path,
    frames: Iterable[tuple[str, Frame]],
    scene: LayeredScene,
    spans: Tensor,
    evidence: Evidence,
    near: float,
) -> tuple[float, float]:
    """Write folder/<stem>.png for each of `frames` (stem, frame) that has scores.

    scene has no moving layers; spans [N, 2] are the births and deaths of its static Gaussians, evidence theirs.
    Returns the mean score before and after.
    """
    means: list[tuple[float, float]] = []
    folder.mkdir(parents=True, exist_ok=True)
    shell = len(scene.shell)
    known = F.pad(torch.stack((evidence.moving, evidence.usual), dim=1), (0, 0, 0, shell))  # [N + shell, 2]
    for stem, frame in frames:
        if frame.motion is None:
            continue
        now = replace(scene, static=lifespans.alive(scene.static, spans, frame.time, lifespans.softness(1)))
        rendering = render_layers(now, frame.camera, frame.time, near=near)
        habit, usual = rendering.plan.blend(known).unbind(-1)
        error = (rendering.color - frame.image).abs().mean(dim=-1)
        error = F.avg_pool2d(error[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
        surprise = (error - usual).clamp(min=0) * _CONTRAST / frame.image.std().clamp(min=0.05)
        scores = weighed(frame.motion, habit, surprise)
        write_mask(folder / f"{stem}.png", scores, bits=8)
        means.append((float(frame.motion.mean()), float(scores.mean())))
    before, after = zip(*means, strict=True) if means else ((0.0,), (0.0,))
    return statistics.fmean(before), statistics.fmean(after)

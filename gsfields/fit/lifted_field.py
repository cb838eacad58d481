"""Nested embeddings without training: what segments mean is handed back to the Gaussians that they show.

Blends are linear, so the mean of what was seen of a Gaussian, weighted as it was blended, is near the least-squares
answer. Here there is one such mean for each of G groups of scales, and they are written as a nested embedding: the
largest scales first, by their principal directions; then, group by group, what the next finer mean adds to those before
it. So φ(s) is what segments of about that scale say, and where none says anything it is what larger ones said.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from tqdm import tqdm

from gsfields.fields.nested import Nested, group_bounds
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.language_labels import LanguageLabels, ViewTeachers

_SEEN = 1e-3  # pixels that must have shown a Gaussian for it to have a mean
_HELD = 1 << 23  # numbers of an intermediate that are held at once
_SEGMENTS = 64  # of a view that are lifted together: an image of hundreds of channels would be large
# Of what any segments say of a Gaussian: with less a group says nothing of it, but of its neighbours
_SHARE = 0.1


@torch.no_grad()
def lifted(
    views: FrozenViews, labels: LanguageLabels, dim: int, groups: int, *, progress: bool = False
) -> Nested:
    """θ [N, D = dim] and W [E, D] from `groups` groups of scales, at most D.

    Where the largest scales say nothing of a Gaussian, the mean of all that is said of it stands in.

    Raises ValueError for groups below 1 or above dim.
    """
    if not 1 <= groups <= dim:
        raise ValueError(f"groups must be from 1 to dim = {dim}, but is {groups}")
    theta, projection = torch.zeros(len(views), dim), torch.zeros(labels.width, dim)
    said_by = torch.zeros(len(views), groups)
    by_any = said_by_any(views, labels)
    least = (_SHARE * by_any).clamp_min(_SEEN)
    step = _rows_held(labels.width)
    for group, (start, stop) in enumerate(
        tqdm(list(pairwise(group_bounds(dim, groups))), disable=not progress, desc="lifting")
    ):
        means, total = mean_said(views, labels, groups, group)
        said_by[:, group] = total
        heard = total > least
        if group == 0:
            if groups > 1:
                silent = (~heard & (by_any > 0)).nonzero()[:, 0]
                means[silent], total[silent] = mean_said(views, labels, 1, 0, among=silent)
            heard = total > 0
        told = heard.nonzero()[:, 0].split(step)
        moments = torch.zeros(labels.width, labels.width)
        for some in told:
            beyond = means[some].addmm_(theta[some, :start], projection[:, :start].T, alpha=-1)
            moments.addmm_(beyond.T, beyond * total[some, None])
            means[some] = beyond
        directions = principal(moments)[:, : stop - start]
        stop = start + directions.shape[1]
        projection[:, start:stop] = directions
        for some in told:
            theta[some, start:stop] = means[some] @ directions
        del means  # before there are those of the next group: they are as large as all that is made here
    return Nested(theta, projection, said_by / said_by.sum(dim=1, keepdim=True).clamp_min(1e-12))


def principal(moments: Tensor) -> Tensor:
    """Orthonormal columns [E, R] that span symmetric moments [E, E], those with the largest share first; R >= 1."""
    values, vectors = torch.linalg.eigh(moments.double())
    needed = max(1, int((values > 1e-9 * values[-1]).sum()))
    return vectors.flip(1)[:, :needed].float().contiguous()


def embedding_moments(labels: LanguageLabels) -> Tensor:
    """Σ f fᵀ [E, E] over the segments of all views."""
    moments = torch.zeros(labels.width, labels.width)
    for index in labels.indices:
        embeddings = labels.of(index).embeddings
        moments += embeddings.T @ embeddings
    return moments


def said_by_any(views: FrozenViews, labels: LanguageLabels) -> Tensor:
    """[N] Σw of the pixels that have a segment of any scale."""
    total = torch.zeros(len(views))
    for index in labels.indices:
        teachers, camera = labels.of(index), views.view(index).camera
        taught = torch.cat((teachers.scales.isfinite(), torch.zeros(1, dtype=torch.bool)))  # [-1]: no segment
        covered = taught[teachers.covers].any(dim=0).float()
        total += views.lift(index, covered.view(camera.height, camera.width, 1)).sums[:, 0]
    return total


def mean_said(
    views: FrozenViews, labels: LanguageLabels, groups: int, group: int, *, among: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(means [M, E], Σw [M]) of what the segments of one group of scales say, group 0 being the largest, of Gaussians
    `among` (int64 [M], no two alike; default: all).

    What is lifted is which segments there are, some dozens of channels. A Gaussian lies in few of a view's, so that
    their embeddings are summed by what is not zero of that.
    """
    place = torch.arange(len(views))
    if among is not None:
        place = torch.full((len(views),), -1).index_copy_(0, among, torch.arange(len(among)))
    count = len(views) if among is None else len(among)
    sums, total = torch.zeros(count, labels.width), torch.zeros(count)
    records: list[_Said] = []
    for index in labels.indices:
        teachers, camera = labels.of(index), views.view(index).camera
        for rows, shares in shares_of(teachers, groups, group):  # none where the group has no segment here
            plan, drawn = views.drawn(index)
            who = place[drawn]
            found = plan.lift(shares.view(camera.height, camera.width, -1)).sums
            found[who < 0] = 0
            row, segment = found.nonzero(as_tuple=True)
            records.append(_Said(who[row], segment, found[row, segment], teachers.embeddings[rows]))
            total.index_add_(0, records[-1].who, records[-1].weights)
            if sum(len(said.who) for said in records) > _HELD:
                _add_said(sums, records)
                records.clear()
    _add_said(sums, records)
    return sums.div_(total.clamp_min(1e-12)[:, None]), total


class _Said(NamedTuple):
    """What the m segments of a view say, of which r times one says something of a Gaussian."""

    who: Tensor  # [r] Gaussians
    which: Tensor  # [r] segments
    weights: Tensor  # [r]
    embeddings: Tensor  # [m, E]


def _add_said(sums: Tensor, records: list[_Said]) -> None:
    """Adds to the rows of sums [N, E] the weighted embeddings of what is said of each Gaussian."""
    if not records:
        return
    firsts = torch.tensor([0, *(len(said.embeddings) for said in records[:-1])]).cumsum(0)
    who, order = torch.cat([said.who for said in records]).sort(stable=True)
    which = torch.cat([said.which + first for said, first in zip(records, firsts)])[order]
    weights = torch.cat([said.weights for said in records])[order]
    embeddings = torch.cat([said.embeddings for said in records])
    rows, counts = who.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    for some in torch.arange(len(rows)).split(_rows_held(sums.shape[1])):
        if len(some):
            starts = ends[some] - counts[some]
            first, last = int(starts[0]), int(ends[some[-1]])
            bags = which[first:last], embeddings, starts - first
            added = embedding_bag(*bags, per_sample_weights=weights[first:last], mode="sum")
            sums.index_add_(0, rows[some], added)


def _rows_held(width: int) -> int:
    """How many rows of `width` numbers are worked on at a time: little beside all of them."""
    return max(1, _HELD // width)


def shares_of(
    teachers: ViewTeachers, groups: int, group: int, together: int = _SEGMENTS
) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows int64 [m], shares [H W, m]) of the segments of a group, m of them at a time, at most `together`: what each
    counts in a pixel, all that cover it alike, and 1 together.
    """
    finest_first = (teachers.scales.nan_to_num(-1.0) * groups).floor()
    own = (finest_first == groups - 1 - group).nonzero()[:, 0]
    column = torch.full((len(teachers.scales) + 1,), -1)
    column[own] = torch.arange(len(own))
    where = column[teachers.covers]  # -1, for no segment, is the last entry
    alike = 1 / (where >= 0).sum(dim=0).clamp_min(1)
    for first, rows in zip(range(0, len(own), together), own.split(together)):
        level, pixel = ((where >= first) & (where < first + len(rows))).nonzero(as_tuple=True)
        shares = torch.zeros(teachers.covers.shape[1], len(rows))
        shares.index_put_((pixel, where[level, pixel] - first), alike[pixel], accumulate=True)
        yield rows, shares

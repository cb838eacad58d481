"""What a 2D segmenter says of a run's views, as the fit of instances takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gsfields.data.dataset import Dataset
from gsfields.data.images import ImageCache
from gsfields.data.segments import SegmentSource


@dataclass(frozen=True)
class ViewLabels:
    """Of one view, flattened to [H W] pixels."""

    ids: Tensor  # int64, 0 = none; 1 to `count` within this view
    count: int
    columns: Tensor  # int64, the place of the pixel's class in `Labels.classes`; -1 for others
    confidence: Tensor | None  # float32
    known: Tensor | None = None  # bool: what View.mask() keeps; other pixels have neither id nor class


class Labels:
    """Labels of all views that have any, read when asked for and kept within `limit_bytes`.

    Raises ValueError if none of `indices` has a label, or if there is no class.
    """

    def __init__(
        self, source: SegmentSource, dataset: Dataset, indices: Sequence[int], limit_bytes: int = 512 << 20
    ) -> None:
        self.source, self.dataset = source, dataset
        self.indices = [i for i in indices if source.has(dataset.views[i])]
        if not self.indices:
            raise ValueError(
                f"none of the {len(indices)} training views has segments: those of the first must be called "
                f"{dataset.views[indices[0]].stem}.png"
            )
        self._cache = ImageCache(limit_bytes)
        self.classes: tuple[int, ...] = (*source.classes.stuff, *source.classes.things)
        if not self.classes:
            raise ValueError(
                f"the segments in {source.root} have neither things nor stuff: one class is needed"
            )
        size = max(self.classes) + 1
        self._column = torch.full((size + 1,), -1)  # by class id; the last stands for all that are unknown
        self._column[list(self.classes)] = torch.arange(len(self.classes))

    @property
    def thing_columns(self) -> list[int]:
        return [self.classes.index(thing) for thing in self.source.classes.things]

    def of(self, index: int) -> ViewLabels:
        """Of a view in `indices`. ids are numbered anew, from 1, without gaps."""
        ids, columns, confidence, known = self._cache.get(index, lambda: self._read(index))
        ids = ids.long()
        return ViewLabels(ids, int(ids.max()), columns.long(), confidence, known)

    def _read(self, index: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        view = self.dataset.views[index]
        found = self.source.of(view)
        assert found is not None  # its stem is known
        # beyond the photo of a distorting lens nothing is known, not even that it is stuff
        mask = view.mask()
        known = None if mask is None else mask.flatten() > 0
        ids = found.ids.flatten().clamp_min(0)
        if known is not None:
            ids = ids * known
        values, places = torch.unique(ids, return_inverse=True)
        if values[0] != 0:
            places = places + 1
        classes = (found.ids > 0).int() if found.semantics is None else found.semantics
        classes = classes.flatten().long()
        last = len(self._column) - 1
        columns = self._column[torch.where((classes >= 0) & (classes < last), classes, last)]
        if known is not None:
            columns = columns.where(known, -1)
        confidence = None if found.confidence is None else found.confidence.flatten()
        return places.int(), columns.to(torch.int16), confidence, known

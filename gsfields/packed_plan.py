"""Plans in as few bytes as their blends need, in memory or in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gsfields import ops
from gsfields.plans import Plan

FORMAT = "gsfields plan 2"
FLOATS = ("means2d", "depths", "conics", "opacities")


class Shape(NamedTuple):
    """What tells how to read the tensors of a packed plan."""

    views: int
    gaussians: int  # drawn or not
    width: int
    height: int
    batched: bool

    def __str__(self) -> str:
        return " ".join(str(int(number)) for number in self)

    @classmethod
    def parse(cls, text: str) -> Shape:
        views, gaussians, width, height, batched = (int(word) for word in text.split())
        return cls(views, gaussians, width, height, bool(batched))


@dataclass(frozen=True)
class PackedPlan:
    """A plan of frozen geometry without what no pixel blends: its images have the same bits, at fewer bytes.

    Lists end where the last of a tile's pixels stops reading. Of the Gaussians only those in the lists are kept, and
    lists name them by their rank among these, in as few whole bytes as the largest needs.

    Tensors (M drawn Gaussians of all views, I' pairs, everything but floating point in bytes):
        gaps [M, bytes] from one drawn Gaussian among the B * N to the next, so that finding them costs no more where
        most are not drawn; counts [B * tiles, bytes] of the lists; ids [I', bytes];
        and, unless they are to be projected again, means2d [M, 2], depths [M], conics [M, 3], opacities [M] as they
        were, and radii [M, 2, bytes].
    """

    shape: Shape
    device: torch.device  # of the plan, and of those to be made of it
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())

    @classmethod
    @torch.no_grad()
    def pack(
        cls, plan: Plan, device: torch.device | str | None = None, *, geometry: bool = True
    ) -> PackedPlan:
        """Packs a plan, or its lists alone, onto a device, by default its own."""
        views, count = plan.depths.shape
        shape = Shape(views, count, plan.width, plan.height, plan.batched)
        ids, lengths = _used_lists(plan)
        view = torch.arange(views, device=ids.device).repeat_interleave(_per_view(lengths, views))
        drawn = torch.zeros_like(plan.depths, dtype=torch.bool)
        drawn[view, ids] = True
        rank = drawn.cumsum(1) - 1
        tensors = {
            "gaps": to_bytes(F.pad(drawn.flatten().nonzero()[:, 0], (1, 0)).diff()),
            "counts": to_bytes(lengths),
            "ids": to_bytes(rank[view, ids]),
        }
        if geometry:
            tensors |= {name: getattr(plan, name)[drawn] for name in FLOATS}
            tensors["radii"] = to_bytes(plan.radii[drawn])
        where = plan.means2d.device if device is None else device
        return cls(shape, plan.means2d.device, {name: t.to(where) for name, t in tensors.items()})

    @property
    def has_geometry(self) -> bool:
        return "radii" in self.tensors

    def unpack(self, projected: tuple[Tensor, ...] | None = None) -> Plan:
        """The plan, of its projection (see Plan) where that is not in here.

        In a plan of what is in here, Gaussians that no pixel blends appear as culled.
        """
        tensors = {name: t.to(self.device) for name, t in self.tensors.items()}
        views, count, width, height, batched = self.shape
        drawn = from_bytes(tensors["gaps"]).cumsum(0)
        if projected is None:
            rows = [*(tensors[name] for name in FLOATS), from_bytes(tensors["radii"])]
            projected = tuple(
                r.new_zeros(views * count, *r.shape[1:]).index_copy_(0, drawn, r).unflatten(0, (views, count))
                for r in rows
            )
        lengths = from_bytes(tensors["counts"]).long()
        ids = from_bytes(tensors["ids"])
        if views == 1:
            ids = drawn.int()[ids]
        else:
            per_view = torch.bincount(drawn // count, minlength=views)
            first = (per_view.cumsum(0) - per_view).repeat_interleave(_per_view(lengths, views))
            ids = (drawn % count).int()[ids + first]
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        return Plan(projected, width, height, batched=batched, lists=(ids, offsets))

    def unpack_drawn(self) -> tuple[Plan, Tensor]:
        """A plan of nothing but the M Gaussians that the pixels of its one view blend, and which these are: int64 [M].

        What its blends cost does not depend on how many Gaussians the view does not show. Raises ValueError for a
        plan of several views, or one that is to be projected again.
        """
        if self.shape.views != 1 or not self.has_geometry:
            raise ValueError("unpack_drawn is for the plan of one view that holds its own projection")
        tensors = {name: t.to(self.device) for name, t in self.tensors.items()}
        drawn = from_bytes(tensors["gaps"]).cumsum(0)
        rows = [*(tensors[name] for name in FLOATS), from_bytes(tensors["radii"])]
        offsets = F.pad(from_bytes(tensors["counts"]).long().cumsum(0), (1, 0))
        lists = (from_bytes(tensors["ids"]), offsets)
        _, _, width, height, batched = self.shape
        return Plan(tuple(r[None] for r in rows), width, height, batched=batched, lists=lists), drawn

    # ---- files ------------------------------------------------------------------------------------------------

    def save(self, path: Path, header: dict[str, str]) -> None:
        """Writes a safetensors file, of which `header` tells whose it is."""
        about = {"format": FORMAT, "shape": str(self.shape), "device": str(self.device), **header}
        save_file({name: t.contiguous().cpu() for name, t in self.tensors.items()}, path, metadata=about)

    @classmethod
    def load(cls, path: Path, header: dict[str, str]) -> PackedPlan | None:
        """Reads such a file through a memory map. None where there is none that is whole and has this header."""
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT or any(about.get(k) != v for k, v in header.items()):
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(Shape.parse(about["shape"]), torch.device(about["device"]), tensors)
        except (OSError, SafetensorError, KeyError, ValueError):
            return None


def plain_bytes(plan: Plan) -> int:
    """What the tensors of a plan take."""
    tensors = (
        plan.means2d, plan.depths, plan.conics, plan.opacities, plan.radii, plan.ids, plan.tile_offsets,
    )  # fmt: skip
    return sum(t.nbytes for t in tensors)


def _used_lists(plan: Plan) -> tuple[Tensor, Tensor]:
    """The lists as far as any pixel of their tile reads them: ids [I'], and the length of each list."""
    last = ops.last_blended(
        plan.means2d, plan.conics, plan.opacities, plan.ids, plan.tile_offsets, plan.width, plan.height
    )
    last = F.pad(last, (0, -plan.width % ops.TILE, 0, -plan.height % ops.TILE))
    tiles = last.unflatten(2, (-1, ops.TILE)).unflatten(1, (-1, ops.TILE))  # [B, tiles_y, 16, tiles_x, 16]
    used = tiles.amax((2, 4)).flatten().long()
    starts = plan.tile_offsets[:-1]
    place = torch.arange(len(plan.ids), device=used.device)
    limit = (starts + used).repeat_interleave(plan.tile_offsets.diff())
    return plan.ids[place < limit], used


def _per_view(lengths: Tensor, views: int) -> Tensor:
    return lengths.reshape(views, len(lengths) // max(views, 1)).sum(1)


# ---- integers in few bytes ------------------------------------------------------------------------------------


def to_bytes(numbers: Tensor) -> Tensor:
    """Integers from 0 to 2³¹ - 1, [...], as [..., bytes]: 1 to 4, little end first, as many as the largest needs."""
    largest = int(numbers.max()) if numbers.numel() else 0
    width = max((largest.bit_length() + 7) // 8, 1)
    return numbers.int().unsqueeze(-1).view(torch.uint8)[..., :width].contiguous()


def from_bytes(packed: Tensor) -> Tensor:
    """The int32 numbers [...] of to_bytes()."""
    return F.pad(packed, (0, 4 - packed.shape[-1])).view(torch.int32).squeeze(-1)

"""Plans of many views of frozen geometry, in a bounded amount of memory."""

from __future__ import annotations

import hashlib
import secrets
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from gsfields.files import written_whole
from gsfields.packed_plan import PackedPlan, plain_bytes
from gsfields.plans import Plan

Key = TypeVar("Key", bound=int | str)


@dataclass(frozen=True)
class CacheReport:
    """How a PlanCache did: plans found in memory, found on disk and made, and what they take, in bytes."""

    hits: int
    disk_hits: int
    misses: int
    evictions: int
    plans_in_memory: int
    memory_bytes: int
    limit_bytes: int
    plans_on_disk: int
    disk_bytes: int
    bytes_per_pair: float  # of all plans packed so far, over the pairs that they listed as they were made
    plain_bytes_per_pair: float  # of the same as Plans

    def __str__(self) -> str:
        return (
            f"{self.hits} hits, {self.disk_hits} from disk, {self.misses} misses, {self.evictions} evictions; "
            f"{self.plans_in_memory} plans of {_mib(self.memory_bytes)} in memory (limit {_mib(self.limit_bytes)}), "
            f"{self.plans_on_disk} of {_mib(self.disk_bytes)} on disk; "
            f"{self.bytes_per_pair:.1f} bytes per pair, {self.plain_bytes_per_pair:.1f} as plans"
        )


class PlanCache(Generic[Key]):
    """cache[view] is the plan of a view: made by make(view) once, then kept in as few bytes as its blends need.

    The plans that were used last stay in memory. What does not fit is written to a folder, or made again. A plan from
    the cache blends to the same bits as the one that was made; it is another object each time, and Gaussians that no
    pixel shows may appear as culled in it. For lifting: `gsfields.lift((cache[view] for view in views), images)`.

    Not to be used from several threads at once.
    """

    def __init__(
        self,
        make: Callable[[Key], Plan],
        *,
        limit_bytes: int,
        device: torch.device | str | None = None,
        spill: str | Path | None = None,
        identity: str | None = None,
        project: Callable[[Key], tuple[Tensor, ...]] | None = None,
    ) -> None:
        """Makes an empty cache.

        Args:
            make: the plan of a view, which is named by an int or a str. Its geometry must not require gradients.
            limit_bytes: of the packed plans in memory.
            device: where packed plans are kept, for example "cpu" for those of a GPU; by default where they were made.
            spill: a folder (made if missing) for what is evicted; files there are read through a memory map.
            identity: names the geometry and views, for example by a hash. Files of an earlier cache with the same
                identity are used again. Without one, files are of this cache alone, and removed with it.
            project: what ops.project() gives for a view. Projecting is quick; only binning is not. With this function
                a cache keeps the lists alone, a few bytes per pair, and projects again at each access.

        Raises ValueError for bad arguments, as cache[view] does for plans that require gradients.
        """
        if limit_bytes < 0:
            raise ValueError(f"limit_bytes is {limit_bytes}, but must not be negative")
        if identity is not None and spill is None:
            raise ValueError("identity is given, but names files, for which spill must be given too")
        self._make, self._project = make, project
        self._limit = limit_bytes
        self._device = device
        self._folder = None if spill is None else Path(spill)
        self._identity = secrets.token_hex(16) if identity is None else identity
        self._packed: OrderedDict[Key, PackedPlan] = OrderedDict()  # the least recently used first
        self._files: dict[Path, int] = {}  # sizes
        self._memory_bytes = 0
        self._hits = self._disk_hits = self._misses = self._evictions = 0
        self._total_packed = self._total_plain = self._total_pairs = 0
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            if identity is None:
                weakref.finalize(self, _remove, self._files)

    def __getitem__(self, key: Key) -> Plan:
        packed = self._find(key)
        return packed.unpack(self._projected(key))

    def drawn(self, key: Key) -> tuple[Plan, Tensor]:
        """A plan of the M Gaussians that pixels of the view blend, and which these are: int64 [M].

        For values [N, C] its blend of values[drawn] is cache[key].blend(values), at a cost that does not depend on N.
        Raises ValueError for plans of several views, and in a cache that projects again.
        """
        return self._find(key).unpack_drawn()

    def __contains__(self, key: Key) -> bool:
        """Whether the plan is in memory."""
        return key in self._packed

    def __len__(self) -> int:
        """How many plans are in memory."""
        return len(self._packed)

    def report(self) -> CacheReport:
        pairs = max(self._total_pairs, 1)
        return CacheReport(
            hits=self._hits,
            disk_hits=self._disk_hits,
            misses=self._misses,
            evictions=self._evictions,
            plans_in_memory=len(self._packed),
            memory_bytes=self._memory_bytes,
            limit_bytes=self._limit,
            plans_on_disk=len(self._files),
            disk_bytes=sum(self._files.values()),
            bytes_per_pair=self._total_packed / pairs,
            plain_bytes_per_pair=self._total_plain / pairs,
        )

    # ---- steps ------------------------------------------------------------------------------------------------

    def _find(self, key: Key) -> PackedPlan:
        """From memory, from disk, or made; the last two are kept."""
        if key in self._packed:
            self._hits += 1
            self._packed.move_to_end(key)
            return self._packed[key]
        packed = self._from_disk(key)
        if packed is not None:
            self._disk_hits += 1
        else:
            packed = self._made(key)
            self._misses += 1
        self._keep(key, packed)
        return packed

    def _made(self, key: Key) -> PackedPlan:
        plan = self._make(key)
        if plan.requires_grad:
            raise ValueError(
                f"make({key!r}) returned a plan that requires grad, but a cache keeps frozen geometry: detach it"
            )
        projected = self._projected(key)
        if projected is not None:
            _compare(key, plan, projected)
        packed = PackedPlan.pack(plan, self._device, geometry=projected is None)
        self._total_packed += packed.nbytes
        self._total_plain += plain_bytes(plan)
        self._total_pairs += len(plan.ids)
        return packed

    @torch.no_grad()
    def _projected(self, key: Key) -> tuple[Tensor, ...] | None:
        return None if self._project is None else self._project(key)

    def _keep(self, key: Key, packed: PackedPlan) -> None:
        """Takes a plan into memory, and the least recently used ones out until all fit."""
        if packed.nbytes > self._limit:  # not even alone
            self._to_disk(key, packed)
            return
        self._packed[key] = packed
        self._memory_bytes += packed.nbytes
        while self._memory_bytes > self._limit:
            oldest, evicted = next(iter(self._packed.items()))
            self._to_disk(oldest, evicted)
            del self._packed[oldest]
            self._memory_bytes -= evicted.nbytes
            self._evictions += 1

    def _to_disk(self, key: Key, packed: PackedPlan) -> None:
        path = self._path(key)
        if path is None or path in self._files:
            return
        with written_whole(path) as temporary:
            packed.save(temporary, self._header(key))
        self._files[path] = path.stat().st_size

    def _from_disk(self, key: Key) -> PackedPlan | None:
        """The plan in its file; a file that is not whole, or of another cache, counts as none."""
        path = self._path(key)
        if path is None:
            return None
        mapped = PackedPlan.load(path, self._header(key))
        if mapped is None or mapped.has_geometry != (self._project is None):
            self._files.pop(path, None)
            return None
        self._files[path] = path.stat().st_size
        where = mapped.device if self._device is None else torch.device(self._device)
        in_memory = {name: t.to(where, copy=True) for name, t in mapped.tensors.items()}
        return PackedPlan(mapped.shape, mapped.device, in_memory)

    def _path(self, key: Key) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.sha256(f"{self._identity}\n{key!r}".encode()).hexdigest()[:32]
        return self._folder / f"{name}.plan"

    def _header(self, key: Key) -> dict[str, str]:
        return {"identity": self._identity, "view": repr(key)}


def _compare(key: int | str, plan: Plan, projected: tuple[Tensor, ...]) -> None:
    ours = (plan.means2d, plan.depths, plan.conics, plan.opacities, plan.radii)
    if len(projected) != len(ours) or not all(torch.equal(a, b) for a, b in zip(ours, projected)):
        raise ValueError(
            f"project({key!r}) differs from the projection of the plan that make({key!r}) returned"
        )


def _remove(files: dict[Path, int]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"

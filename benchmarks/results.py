"""The figures of one run as dataclasses, and as JSON. Reading a file back checks its every field."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gsfields.files import written_whole

SCHEMA = 1  # raised when a field changes its meaning


@dataclass(frozen=True)
class BlendRow:
    """One scene, image size, count and number of threads: our kernels against the baselines.

    Times are medians in milliseconds by task: `plan` (project and bin), `forward` and `forward+backward`
    (blend alone, over given tile lists), `render` and `render+backward` (from the 3D Gaussians, gradients to
    all of their parameters), and the baselines' `scalar forward`, `torch forward`, `torch forward+backward`.
    """

    scene: str
    gaussians: int
    width: int
    height: int
    channels: int
    threads: int
    isa: str
    visible: int  # Gaussians that survived projection; this and the next three are of the first view
    pairs: int  # (tile, Gaussian) pairs in the lists
    visited_per_pixel: float  # Gaussians of its list that a pixel meets before it is full
    blended_per_pixel: float  # of these, the ones with alpha >= 1/255
    rounds: int
    ms: dict[str, float]
    speedup: dict[str, float]  # baseline's time over ours, by the baseline's task
    agreement: Agreement


@dataclass(frozen=True)
class Agreement:
    """How far our results are from the baselines' on the first view.

    Errors are relative to the largest value. Pixels where float32 rounding flips alpha >= 1/255, or the end
    of a full pixel, may differ by up to 0.01; they are few. Gradients are compared as
    ||ours - reference|| / ||reference||, the worst of the four inputs.
    """

    image_worst: float  # against the scalar loop, or the peer's
    image_outliers: float  # share of pixels off by more than 1e-5; from a peer by more than 1e-3
    gradient: float | None  # against autograd through the torch reference, the CPU backend or the peer
    ok: bool


@dataclass(frozen=True)
class StageRow:
    """Every stage of one scene on one instruction set, in milliseconds."""

    scene: str
    gaussians: int
    width: int
    height: int
    threads: int
    isa: str
    pairs: int
    visited_per_pixel: float  # as in BlendRow
    blended_per_pixel: float
    rounds: int
    ms: dict[str, float]
    best_ms: dict[str, float]  # the quickest rounds
    blend_speedup: float  # of the blend's forward over the scalar loop
    backward_over_forward: float  # of the blend
    image_worst: float  # against the scalar loop, as in Agreement


@dataclass(frozen=True)
class MemoryRow:
    """Peak resident memory, MiB, each case in a process of its own, and the size of its Plan."""

    scene: str
    gaussians: int
    width: int
    height: int
    threads: int
    pairs: int
    before: float  # torch, the library and the scene
    forward_rise: float  # above `before`
    forward_backward_rise: float
    plan_bytes: int
    plan_bytes_per_pair: float  # the part that grows with the pairs
    plan_bytes_per_gaussian: float  # the rest of it, less the tile offsets


@dataclass(frozen=True)
class WideMemoryRow:
    """Peak memory of one task of the channel sweep, MiB; on a CPU each in a process of its own."""

    scene: str
    gaussians: int
    width: int
    height: int
    channels: int
    storage: str  # of values and images: "float32", "bfloat16", "float16"
    task: str
    inputs: float  # what the task is given
    outputs: float  # what it leaves: the image too where gradients are asked for
    beyond: float  # the peak above both: what was allocated in between


@dataclass(frozen=True)
class StepRow:
    """A whole training step through the public functions, and the same step cut into stages, in
    milliseconds.
    """

    name: str
    gaussians: int
    width: int
    height: int
    threads: int
    isa: str
    rounds: int
    ms: float
    best_ms: float
    split: dict[str, float]

    @property
    def per_second(self) -> float:
        return 1e3 / self.ms


@dataclass(frozen=True)
class CaseRow:
    """One scene and image size of the grid, whose times rotate over the views: counts are means over these."""

    scene: str
    gaussians: int
    width: int
    height: int
    views: int
    visible: float  # Gaussians that survive projection
    pairs: float  # (tile, Gaussian) pairs in the lists
    visited_per_pixel: float
    blended_per_pixel: float
    agreement: Agreement  # of the first view, in three channels


@dataclass(frozen=True)
class TimeRow:
    """One stage of a case of the grid, in milliseconds."""

    case: int  # its place in Results.cases
    stage: str
    channels: int  # 0: the stage does not depend on it
    ms: float  # median
    p10: float
    p90: float
    rounds: int
    peak_mib: float | None  # of the device's memory, above what its inputs take; None where it is unknown


@dataclass(frozen=True)
class PeerRow:
    """A peer on the inputs of a case: its time over ours by stage, empty where it does not agree with us."""

    case: int
    peer: str
    channels: int
    speedup: dict[str, float]
    agreement: Agreement


@dataclass(frozen=True)
class Ceilings:
    """The device's own limits, see benchmarks/ceilings.py; None where it has no such units."""

    memory_gb_per_s: float
    fp32_gflop_per_s: float
    tf32_gflop_per_s: float | None = None
    bf16_gflop_per_s: float | None = None


@dataclass
class Target:
    """A figure that was promised. `goal` is what we would like better still."""

    name: str
    value: float
    unit: str
    sense: str  # "at most" or "at least"
    limit: float
    goal: float | None = None
    best: float | None = None  # of the quickest round, where it is a time; the verdict goes by the median
    verdict: str = field(default="")  # computed: "missed", "met" or "goal met"

    def __post_init__(self) -> None:
        def reached(bound: float) -> bool:
            return self.value <= bound if self.sense == "at most" else self.value >= bound

        self.verdict = "met" if reached(self.limit) else "missed"
        if self.goal is not None and reached(self.goal):
            self.verdict = "goal met"


@dataclass
class Results:
    """Everything that one run of the benchmarks found."""

    mode: str
    machine: dict[str, Any]
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    stages: list[StageRow] = field(default_factory=list)
    blend: list[BlendRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    memory: list[MemoryRow] = field(default_factory=list)
    cases: list[CaseRow] = field(default_factory=list)
    times: list[TimeRow] = field(default_factory=list)
    peers: list[PeerRow] = field(default_factory=list)
    ceilings: Ceilings | None = None
    kind: str = "kernels"  # or "channels": what measured it
    wide_memory: list[WideMemoryRow] = field(default_factory=list)
    schema: int = SCHEMA

    @property
    def disagreements(self) -> list[BlendRow | CaseRow | PeerRow]:
        rows: list[BlendRow | CaseRow | PeerRow] = [*self.blend, *self.cases, *self.peers]
        return [row for row in rows if not row.agreement.ok]

    def save(self, path: Path) -> None:
        """Write the JSON, whole or not at all."""
        write_whole(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file that `save` wrote.

        Raises ValueError where a field is missing, unknown or of another type, or the schema is another one.
        """
        raw = json.loads(path.read_text())
        if raw.get("schema") != SCHEMA:
            raise ValueError(f"{path.name} has schema {raw.get('schema')!r}, but only {SCHEMA} can be read")
        rows = {
            "targets": Target,
            "stages": StageRow,
            "blend": BlendRow,
            "steps": StepRow,
            "memory": MemoryRow,
            "cases": CaseRow,
            "times": TimeRow,
            "peers": PeerRow,
            "wide_memory": WideMemoryRow,
        }
        try:
            for name, kind in rows.items():
                raw[name] = [_row(kind, entry) for entry in raw.get(name, [])]
            if raw.get("ceilings") is not None:
                raw["ceilings"] = _row(Ceilings, raw["ceilings"])
            return cls(**raw)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path.name} is not a result of these benchmarks: {error}") from error


def write_whole(path: Path, text: str) -> None:
    """Write a text file under a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_text(text)


def _row(kind: type, entry: dict[str, Any]) -> Any:
    if "agreement" in entry:
        entry = {**entry, "agreement": _row(Agreement, entry["agreement"])}
    row = kind(**entry)
    for f in dataclasses.fields(row):
        value = getattr(row, f.name)
        accepted = _ACCEPTED.get(str(f.type))
        if accepted and (
            not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted)
        ):
            raise TypeError(f"{kind.__name__}.{f.name} must be {f.type}, but is {value!r}")
    return row


_ACCEPTED: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (float, int),
    "float | None": (float, int, type(None)),
    "dict[str, float]": (dict,),
}

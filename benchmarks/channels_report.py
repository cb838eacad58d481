"""The channel sweep's results as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import plot, roofline
from benchmarks.channel_bars import LUDVIG_MS
from benchmarks.channel_tasks import BF16, FORWARD, LIFT, TASKS, TF32, scalar_loop, work
from benchmarks.peers import RENDER
from benchmarks.report_grid import case_name, machine_line
from benchmarks.results import CaseRow, Ceilings, Results, Target, WideMemoryRow
from benchmarks.tables import count, table, three

INTRO = (
    "One view of each scene, its tile lists made beforehand: `forward` is the blend, the others add the gradients"
    " of the values or of everything (values, means2d, conics, opacities2d), `lift` hands an image back to the "
    "Gaussians. Times are medians in milliseconds of calls made in turn, with fresh memory for every result."
)
FLOOR = (
    "The time over its floor: what must be moved at the measured bandwidth, or computed at the measured rate of "
    "matrix products, whichever is longer (`benchmarks/roofline.py` has the formulae)."
)
OTHERS = (
    "Times over ours in the same rounds. `torch dense` computes the weights of each tile and multiplies them with"
    " its values, `weights given` does not pay for the weights: a matrix per tile, or one sparse matrix of the "
    "weights that are not zero. Peers start from the 3D Gaussians, and are compared with ours doing so."
)
LIFTS = f"LUDVIG states about {LUDVIG_MS:g} ms per image and dimension of a lift, on a GPU."
MEMORY = (
    "MiB of one call. Outputs are image, transmittance and what else a backward pass will read, and gradients or "
    "sums; `beyond` is the peak above inputs and outputs."
)
AGREEMENT = (
    "Before anything is timed, every image is compared with the scalar loop's, and ⟨blend(v), g⟩ with ⟨v, "
    "lift(g)⟩; the worst over all numbers of channels, and how many these were."
)
HEAD = ("what", "measured", "target", "goal", "verdict")


def markdown(results: Results) -> str:
    """The whole report."""
    m = results.machine
    parts = [
        f"# Channel sweep ({results.mode})",
        f"{machine_line(m)} {m['threads']} threads. Took {results.seconds:.0f} s.",
        INTRO,
        _ceilings(results.ceilings),
        _section("Targets", "", targets(results.targets)),
        _section("Time", "", _times(results)),
        _section("Time over the floor", FLOOR, _floors(results)),
        _section("Lift per dimension", LIFTS, _lifts(results)),
        _section("Others", OTHERS, _others(results)),
        _section("Memory", MEMORY, _memory(results.wide_memory)),
        _section("Cases", "", _cases(results.cases)),
        _section("Agreement", AGREEMENT, _agreement(results)),
        _section("Notes", "", "\n".join(f"- {note}" for note in results.notes)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(results: Results) -> str:
    """What README.md says: the promises; the picture stands below them."""
    return targets(results.targets)


def targets(rows: Sequence[Target]) -> str:
    body = []
    for t in rows:
        goal = "" if t.goal is None else f"{t.goal:g} {t.unit}"
        body.append(
            [t.name, f"{three(t.value)} {t.unit}", f"{t.sense} {t.limit:g} {t.unit}", goal, t.verdict]
        )
    return table(HEAD, body) if body else ""


def picture(results: Results) -> str | None:
    """Time against channels, a panel for each case of more than a few of them; None where there is none."""
    panels = []
    for index, case in enumerate(results.cases):
        measured = {row.channels for row in results.times if row.case == index and row.stage in TASKS}
        lines = [_series(results, index, name) for name in _drawn(results, index)]
        if len(measured) > 2:
            panels.append(plot.Panel(case_name(case), tuple(line for line in lines if len(line.points) > 1)))
    if not any(panel.series for panel in panels):
        return None
    scenes = len({panel.title.split(" at ")[0] for panel in panels})
    return plot.svg(panels, max(1, min(3, scenes)), "channels", "ms")


def _drawn(results: Results, case: int) -> list[str]:
    """Our tasks, and the others' plainest."""
    names = list(dict.fromkeys(row.stage for row in results.times if row.case == case and row.channels))
    extra = [f"{mode.name} {FORWARD}" for mode in (TF32, BF16)]
    others = [n for n in names if n.endswith((f" {FORWARD}", f" {RENDER}")) and n not in extra]
    return [*TASKS, *(name for name in names if name in extra), *others]


def _series(results: Results, case: int, name: str) -> plot.Series:
    points = sorted((r.channels, r.ms) for r in results.times if r.case == case and r.stage == name)
    return plot.Series(name, tuple((float(c), ms) for c, ms in points), dashed=name not in TASKS)


def _section(title: str, text: str, body: str) -> str:
    return "\n\n".join(part for part in (f"## {title}", text, body) if part) if body else ""


def _ceilings(limits: Ceilings | None) -> str:
    if limits is None:
        return ""
    rates = (
        ("fp32", limits.fp32_gflop_per_s),
        ("tf32", limits.tf32_gflop_per_s),
        ("bf16", limits.bf16_gflop_per_s),
    )
    told = ", ".join(
        f"{rate:,.0f} GFLOP/s ({name} matrix product)" for name, rate in rates if rate is not None
    )
    return f"Measured limits: {limits.memory_gb_per_s:,.3g} GB/s (copy), {told}."


def _by_channels(results: Results, cells: dict[tuple[int, str, int], str]) -> str:
    """A table per case, of one line per name and one column per number of channels."""
    parts = []
    for index, case in enumerate(results.cases):
        channels = sorted({c for i, _, c in cells if i == index})
        names = dict.fromkeys(name for i, name, _ in cells if i == index)
        lines = [[name, *(cells.get((index, name, c), "") for c in channels)] for name in names]
        if lines:
            parts.append(f"{case_name(case)}\n\n" + table(["C =", *map(str, channels)], lines))
    return "\n\n".join(parts)


def _times(results: Results) -> str:
    cells = {(r.case, r.stage, r.channels): three(r.ms) for r in results.times if r.channels}
    whole = [
        f"{case_name(results.cases[r.case])}: {r.stage} {three(r.ms)} ms."
        for r in results.times
        if not r.channels
    ]
    return "\n\n".join(part for part in (_by_channels(results, cells), *whole) if part)


def _floors(results: Results) -> str:
    cells = {}
    for row in results.times:
        floor = floor_ms(results, results.cases[row.case], row.stage, row.channels)
        if floor is not None:
            cells[row.case, row.stage, row.channels] = f"{three(row.ms / floor)}x"
    return _by_channels(results, cells)


def floor_ms(results: Results, case: CaseRow, stage: str, channels: int) -> float | None:
    """The floor of one of our tasks, against the rate of the units that its precision uses."""
    limits = results.ceilings
    if limits is None or not channels:
        return None
    rate, item = limits.fp32_gflop_per_s, 4
    for mode, peak in ((TF32, limits.tf32_gflop_per_s), (BF16, limits.bf16_gflop_per_s)):
        if stage.startswith(f"{mode.name} ") and peak is not None:
            stage, rate, item = stage.removeprefix(f"{mode.name} "), peak, mode.storage.itemsize
    done = work(stage, case, channels, item)
    return None if done is None else roofline.floor_ms(done, limits.memory_gb_per_s, rate)


def _lifts(results: Results) -> str:
    """The lift per image and dimension at the most channels of each case."""
    body = []
    for index, case in enumerate(results.cases):
        found = [(r.channels, r.ms) for r in results.times if (r.case, r.stage) == (index, LIFT)]
        if found:
            channels, ms = max(found)
            body.append([case_name(case), str(channels), three(ms / channels)])
    return table(["case", "C", "ms / dimension"], body) if body else ""


def _others(results: Results) -> str:
    cells = {}
    for row in results.peers:
        for task, ratio in row.speedup.items():
            cells[row.case, f"{row.peer}: {task}", row.channels] = f"{three(ratio)}x"
    if cells:
        return _by_channels(results, cells)
    missing = [note for note in results.notes if "no peer" in note]
    return "; ".join(missing) + "." if missing else ""


def _memory(rows: Sequence[WideMemoryRow]) -> str:
    head = ["case", "task", "storage", "C", "inputs", "outputs", "beyond"]
    body = []
    for r in rows:
        name = f"{r.scene} {r.gaussians} at {r.width}x{r.height}"
        sizes = (f"{size:.1f}" for size in (r.inputs, r.outputs, r.beyond))
        body.append([name, r.task, r.storage, str(r.channels), *sizes])
    return table(head, body) if body else ""


def _cases(cases: Sequence[CaseRow]) -> str:
    head = [
        "case",
        "in view",
        "pairs",
        "visited / pixel",
        "blended / pixel",
        "worst pixel",
        "gradients",
        "agree",
    ]
    body = []
    for c in cases:
        a = c.agreement
        line = [case_name(c), count(c.visible), count(c.pairs), f"{c.visited_per_pixel:.1f}"]
        line += [f"{c.blended_per_pixel:.1f}", f"{a.image_worst:.1e}"]
        body.append([*line, "" if a.gradient is None else f"{a.gradient:.1e}", "yes" if a.ok else "NO"])
    return table(head, body) if body else ""


def _agreement(results: Results) -> str:
    """One line per case and contender."""
    groups: dict[tuple[int, str], list[int]] = {}
    for i, row in enumerate(results.peers):
        groups.setdefault((row.case, row.peer), []).append(i)
    body = []
    for (case, name), places in groups.items():
        if name == scalar_loop().name:
            continue
        found = [results.peers[i].agreement for i in places]
        gradients = [a.gradient for a in found if a.gradient is not None]
        line = [
            case_name(results.cases[case]),
            name,
            str(len(found)),
            f"{max(a.image_worst for a in found):.1e}",
        ]
        line += [f"{max(a.image_outliers for a in found):.1e}", f"{max(gradients):.1e}" if gradients else ""]
        body.append([*line, "yes" if all(a.ok for a in found) else "NO"])
    head = ["case", "who", "channel counts", "worst pixel", "outliers", "adjoint or gradients", "agree"]
    return table(head, body) if body else ""

"""The grid's results, those of a GPU, as Markdown, as a picture, and as lines while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import roofline
from benchmarks.results import CaseRow, Ceilings, PeerRow, Results, StepRow, TimeRow
from benchmarks.tables import count, table, three
from gsfields.bench.clock import Timing
from gsfields.bench.stages import BLENDING, GEOMETRY, SSIM

INTRO = (
    "Times are medians in milliseconds between CUDA events around one call, after a warm-up, with the L2 cache "
    "flushed before every call and the calls rotating over the case's views. Opacities are at most 0.98, below which "
    "the clamps of alpha in use elsewhere make no difference."
)
CASES = (
    "Counts are means over the views. The first view's image is compared with the scalar loop's on the CPU, its "
    "gradients with the CPU backend's."
)
ROOFLINE = (
    "What a stage must move and compute at least (`benchmarks/roofline.py` has the formulae) over the time it took, "
    "and the time that the binding one of the two limits would have taken as a share of it."
)
MEMORY = "Peak MiB of the device's memory above the scene's own, by channels."
PEERS = (
    "Times of the peer over ours on the same inputs, called in turn, by channels. The peer's image and gradients are "
    "compared with ours first, and one that disagrees is not timed. `over 1e-3` is the share of pixels off by more."
)
STEP = "One whole training step through the public functions: SH of degree 3, L1 + SSIM, absgrad, Adam."


def markdown(results: Results) -> str:
    """The whole report."""
    m = results.machine
    parts = [f"# GPU benchmarks ({results.mode})", machine_line(m) + f" Took {results.seconds:.0f} s.", INTRO]
    parts += [_ceilings(results), _cases(results), _stages(results), _by_channels(results)]
    parts += [_steps(results.steps), _roofline(results), _memory(results), _peers(results)]
    if results.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in results.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(results: Results) -> str:
    """What README.md says: the headline case at the first number of channels, and the peers."""
    chosen = headline(results)
    if chosen is None or results.ceilings is None:
        return machine_line(results.machine)
    first = min((row.channels for row in _rows(results, chosen) if row.stage == "blend"), default=3)
    channels = 3 if any(row.channels == 3 for row in results.times) else first
    rows = [row for row in _rows(results, chosen) if row.channels in (0, channels)]
    head = ["stage", "ms", "GB/s", "GFLOP/s", "of the limit", "bound by"]
    body = [_roofline_cells(results.cases[chosen], row, results.ceilings) for row in rows]
    lines = table(head, [[row.stage, three(row.ms), *cells] for row, cells in zip(rows, body)])
    about = f"{case_line(results.cases[chosen])}; C = {channels}. {ceilings_line(results.ceilings)}"
    return "\n\n".join([machine_line(results.machine), about, lines, _peer_lines(results)])


def headline(results: Results) -> int | None:
    """The case that the summary shows: among those of 1920x1080, or all, the one with the most pairs."""
    places = range(len(results.cases))
    usual = [i for i in places if (results.cases[i].width, results.cases[i].height) == (1920, 1080)]
    return max(usual or places, key=lambda i: results.cases[i].pairs, default=None)


def machine_line(m: Mapping[str, Any]) -> str:
    if "gpu" not in m:
        return f"{m['cpu']}, {m['cores']} cores; torch {m['torch']}, Python {m['python']}."
    return (
        f"{m['gpu']}, {m['gpu_memory_gib']} GiB, {m['gpu_multiprocessors']} multiprocessors of capability "
        f"{m['gpu_capability']}, {m['gpu_l2_mib']} MiB of L2 cache; CUDA {m['cuda']}, torch {m['torch']}, "
        f"Python {m['python']}."
    )


def ceilings_line(c: Ceilings) -> str:
    return (
        f"Measured limits: {c.memory_gb_per_s:,.0f} GB/s (copy), {c.fp32_gflop_per_s:,.0f} GFLOP/s (fp32 matrix "
        "product without TF32)."
    )


def case_line(c: CaseRow) -> str:
    return (
        f"{case_name(c)}: {count(c.visible)} in view, {count(c.pairs)} (tile, Gaussian) pairs, "
        f"{c.blended_per_pixel:.1f} blended per pixel"
    )


def case_name(c: CaseRow) -> str:
    return f"{c.scene} {c.gaussians} at {c.width}x{c.height}"


def times_line(timings: Mapping[str, Timing]) -> str:
    return ", ".join(f"{stage} {three(timing.median)}" for stage, timing in timings.items()) + " ms"


def disagreement(row: CaseRow | PeerRow, cases: Sequence[CaseRow]) -> str:
    """One row whose comparison failed, in one line."""
    if isinstance(row, PeerRow):
        return f"{row.peer}, {case_name(cases[row.case])}, C = {row.channels}"
    return case_name(row)


def _rows(results: Results, case: int) -> list[TimeRow]:
    return [row for row in results.times if row.case == case]


def _ceilings(results: Results) -> str:
    return "" if results.ceilings is None else f"## Limits\n\n{ceilings_line(results.ceilings)}"


def _cases(results: Results) -> str:
    if not results.cases:
        return ""
    head = ["scene", "Gaussians", "pixels", "in view", "pairs", "visited / pixel", "blended / pixel"]
    head += ["worst pixel", "over 1e-5", "gradients", "agree"]
    body = []
    for c in results.cases:
        a = c.agreement
        gradient = "" if a.gradient is None else f"{a.gradient:.1e}"
        line = [c.scene, count(c.gaussians), f"{c.width}x{c.height}", count(c.visible), count(c.pairs)]
        line += [f"{c.visited_per_pixel:.1f}", f"{c.blended_per_pixel:.1f}", f"{a.image_worst:.1e}"]
        body.append([*line, f"{a.image_outliers:.1e}", gradient, "yes" if a.ok else "NO"])
    return f"## Cases\n\n{CASES}\n\n" + table(head, body)


def _stages(results: Results) -> str:
    """Stages that the number of channels does not touch, or that were measured at one of them only."""
    names = [*GEOMETRY, *SSIM]
    body = []
    for i, c in enumerate(results.cases):
        ms = {row.stage: three(row.ms) for row in _rows(results, i)}
        body.append([case_name(c), *(ms.get(name, "") for name in names)])
    return "## Stages\n\n" + table(["case", *names], body) if body else ""


def _by_channels(results: Results) -> str:
    parts = []
    for stage in BLENDING:
        chosen = {(row.case, row.channels): three(row.ms) for row in results.times if row.stage == stage}
        parts.append(f"### {stage}\n\n{_channel_table(results, chosen)}")
    return "## By channels\n\n" + "\n\n".join(parts) if results.cases else ""


def _channel_table(results: Results, cells: Mapping[tuple[int, int], str]) -> str:
    """One line per case that has any cell, one column per number of channels."""
    channels = sorted({c for _, c in cells})
    lines = [
        [case_name(case), *(cells.get((i, c), "") for c in channels)]
        for i, case in enumerate(results.cases)
        if any((i, c) in cells for c in channels)
    ]
    return table(["case", *(f"C = {c}" for c in channels)], lines)


def _steps(steps: Sequence[StepRow]) -> str:
    if not steps:
        return ""
    body = [[row.name, three(row.ms), three(row.best_ms), f"{row.per_second:.1f}"] for row in steps]
    return f"## Training step\n\n{STEP}\n\n" + table(["step", "ms", "best ms", "steps/s"], body)


def _roofline(results: Results) -> str:
    if results.ceilings is None or not results.times:
        return ""
    head = ["case", "stage", "C", "ms", "p10", "p90", "calls", "GB/s", "GFLOP/s", "of the limit", "bound by"]
    body = []
    for row in results.times:
        case = results.cases[row.case]
        if roofline.work(row.stage, case, row.channels) is None:
            continue
        line = [case_name(case), row.stage, str(row.channels or ""), three(row.ms), three(row.p10)]
        line += [three(row.p90), str(row.rounds), *_roofline_cells(case, row, results.ceilings)]
        body.append(line)
    return f"## Roofline\n\n{ROOFLINE}\n\n" + table(head, body)


def _roofline_cells(case: CaseRow, row: TimeRow, ceilings: Ceilings) -> list[str]:
    """GB/s, GFLOP/s, share and bound; blank for what is made of several stages."""
    work = roofline.work(row.stage, case, row.channels)
    if work is None:
        return ["", "", "", ""]
    found = roofline.achieved(work, row.ms, ceilings)
    return [three(found.gb_per_s), three(found.gflop_per_s), f"{found.share:.1%}", found.bound]


def _memory(results: Results) -> str:
    parts = []
    for stage in ("render", "render+backward"):
        rows = [row for row in results.times if row.stage == stage and row.peak_mib is not None]
        if rows:
            cells = {(row.case, row.channels): three(row.peak_mib or 0.0) for row in rows}
            parts.append(f"### {stage}, MiB\n\n{_channel_table(results, cells)}")
    return f"## Memory\n\n{MEMORY}\n\n" + "\n\n".join(parts) if parts else ""


def _peers(results: Results) -> str:
    if not results.peers:
        return "## Peers\n\n" + _peer_lines(results)
    head = [
        "case",
        "peer",
        "C",
        "worst pixel",
        "over 1e-3",
        "gradients",
        "agree",
        "render",
        "render+backward",
    ]
    body = []
    for row in results.peers:
        a = row.agreement
        line = [case_name(results.cases[row.case]), row.peer, str(row.channels), f"{a.image_worst:.1e}"]
        line += [f"{a.image_outliers:.1e}", "" if a.gradient is None else f"{a.gradient:.1e}"]
        line += ["yes" if a.ok else "NO"]
        ratios = (row.speedup.get(stage) for stage in ("render", "render+backward"))
        body.append([*line, *("" if ratio is None else f"{ratio:.2f}x" for ratio in ratios)])
    return f"## Peers\n\n{PEERS}\n\n" + table(head, body)


def _peer_lines(results: Results) -> str:
    """The peers in a few words: how many times as long they took, or that there are none."""
    timed = [row for row in results.peers if row.speedup]
    if not timed:
        missing = [note for note in results.notes if "no peer" in note]
        return (missing[0] if missing else "no peer agreed with us and was timed") + "."
    lines = []
    for stage in ("render", "render+backward"):
        ratios = sorted(row.speedup[stage] for row in timed)
        lines.append(f"{stage} {ratios[0]:.2f} to {ratios[-1]:.2f} times")
    return f"{timed[0].peer} took {' and '.join(lines)} as long as ours over {len(timed)} comparisons."


def draw(results: Results, figure: Any) -> None:
    """Blend times by channels for every case, and the headline case's shares of its limits."""
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1))
    for place, stage in zip(axes, ("blend", "blend backward")):
        for i, case in enumerate(results.cases):
            points = sorted((row.channels, row.ms) for row in _rows(results, i) if row.stage == stage)
            place.plot([c for c, _ in points], [ms for _, ms in points], marker="o", label=case_name(case))
        channels = sorted({row.channels for row in results.times if row.stage == stage})
        place.set(xscale="log", yscale="log", xlabel="channels", ylabel="ms", title=stage)
        place.set_xticks(channels, [str(c) for c in channels])
        place.minorticks_off()
    axes[0].legend(fontsize=6)
    chosen = headline(results)
    if chosen is not None and results.ceilings is not None:
        bars = {}
        for row in _rows(results, chosen):
            if (work := roofline.work(row.stage, results.cases[chosen], row.channels)) is not None:
                label = f"{row.stage} {row.channels}" if row.channels else row.stage
                bars[label] = 100 * roofline.achieved(work, row.ms, results.ceilings).share
        axes[2].barh(list(bars), list(bars.values()))
        axes[2].invert_yaxis()
        axes[2].set(xlabel="% of the binding limit", title=case_name(results.cases[chosen]))

"""Results as Markdown and as a picture: the channel sweep's always, others where matplotlib is installed.

`python -m benchmarks.report` redraws those of every benchmarks/results/*.json, and the summary in
benchmarks/README.md, from the figures alone; with names of files, theirs only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import channels_report, report_grid
from benchmarks.results import BlendRow, MemoryRow, Results, StageRow, StepRow, Target, write_whole
from benchmarks.step import OPENSPLAT_SECONDS_PER_STEP
from benchmarks.tables import ms, table

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- results: python -m benchmarks.report redraws what follows -->", "<!-- end of results -->"

QUOTED = (
    "The step on colmap_room is to be 20 times as fast as the {} s of OpenSplat's CPU trainer on a machine "
    "of this kind: a figure quoted, not measured here."
)
STAGES = "The last column is the worst pixel's difference from the scalar loop."
STEPS = (
    "Whole steps through the public functions (SH of degree 3, L1 + SSIM, absgrad, Adam); then the same step "
    "with its graph cut between the stages."
)
BLEND = (
    "plan: project and bin. forward, forward+backward: blend alone over given lists, all gradients. render, "
    "render+backward: from the 3D Gaussians and back to them. Splats are random subsets seen from an orbit; "
    "calls rotate over its views."
)
MEMORY = (
    "Peak resident MiB, each case in a process of its own: what torch, the library and the scene hold "
    "before, and the rise of a forward and of a forward and backward above it; then the tensors that a Plan "
    "keeps."
)


def markdown(results: Results) -> str:
    """The whole report."""
    if results.kind == "channels":
        return channels_report.markdown(results)
    if results.ceilings is not None:
        return report_grid.markdown(results)
    m = results.machine
    intro = (
        f"# Kernel benchmarks ({results.mode})\n\n"
        f"{m['cpu']}, {m['cores']} cores, {m['isa']} in use (of {', '.join(m['isas'])}), {m['system']}; "
        f"torch {m['torch']}, Python {m['python']}. Took {results.seconds:.0f} s.\n\n"
        "Times are medians in milliseconds; ratios are medians over rounds in which both sides ran in turn."
    )
    parts = [intro, _targets(results.targets), _stages(results.stages), _steps(results.steps)]
    parts += [_blend(results.blend), _memory(results.memory)]
    if results.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in results.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def write(results: Results, path: Path) -> None:
    """Write the Markdown, and beside it the picture if it can be drawn."""
    write_whole(path, markdown(results))
    if results.kind != "channels":
        draw(results, path.with_suffix(".png"))
    elif (picture := channels_report.picture(results)) is not None:
        write_whole(path.with_suffix(".svg"), picture)


def blend_line(row: BlendRow) -> str:
    """One row of the grid in one line of text."""
    return (
        f"{row.scene} {row.gaussians} at {row.width}x{row.height}, {row.threads} threads: "
        f"blend {row.ms['forward']:.1f} ms, with backward {row.ms['forward+backward']:.1f} ms, "
        f"{row.speedup['scalar forward']:.1f}x the scalar loop, {row.speedup['torch forward']:.1f}x torch"
    )


def _targets(targets: Sequence[Target]) -> str:
    rows = []
    for t in targets:
        goal = "" if t.goal is None else f"{t.goal:g} {t.unit}"
        best = "" if t.best is None else f"{ms(t.best)} {t.unit}"
        rows.append(
            [t.name, f"{ms(t.value)} {t.unit}", best, f"{t.sense} {t.limit:g} {t.unit}", goal, t.verdict]
        )
    note = "\n\n" + QUOTED.format(OPENSPLAT_SECONDS_PER_STEP)
    if not any("colmap_room" in t.name for t in targets):
        note = ""
    return (
        "## Targets\n\n" + table(["what", "measured", "best round", "target", "goal", "verdict"], rows) + note
    )


def _stages(stages: Sequence[StageRow]) -> str:
    if not stages:
        return ""
    first = stages[0]
    names = list(first.ms)
    rows = [
        [
            row.isa,
            *(ms(row.ms[name]) for name in names),
            f"{row.blend_speedup:.1f}x",
            f"{row.backward_over_forward:.1f}x",
            f"{row.image_worst:.1e}",
        ]
        for row in stages
    ]
    title = (
        f"## Stages by instruction set\n\nThe {first.scene} scene: {first.gaussians} Gaussians, "
        f"{first.width}x{first.height}, {first.pairs} (tile, Gaussian) pairs, "
        f"{first.visited_per_pixel:.0f} visited and {first.blended_per_pixel:.1f} blended per pixel, "
        f"{first.threads} threads. {STAGES}\n\n"
    )
    return title + table(["ISA", *names, "blend vs scalar", "backward / forward", "error"], rows)


def _steps(steps: Sequence[StepRow]) -> str:
    if not steps:
        return ""
    stages = list(steps[0].split)
    head = ["step", "Gaussians", "threads", "ms", "steps/s", *stages]
    rows = [
        [
            row.name,
            str(row.gaussians),
            str(row.threads),
            ms(row.ms),
            f"{row.per_second:.1f}",
            *(ms(row.split[stage]) for stage in stages),
        ]
        for row in steps
    ]
    return f"## Training steps\n\n{STEPS}\n\n" + table(head, rows)


def _blend(rows: Sequence[BlendRow]) -> str:
    if not rows:
        return ""
    head = [
        "scene",
        "Gaussians",
        "pixels",
        "threads",
        "pairs",
        "blended / pixel",
        "plan",
        "forward",
        "forward+backward",
    ]
    head += [
        "render",
        "render+backward",
        "vs scalar (fwd)",
        "vs torch (fwd)",
        "vs torch (fwd+bwd)",
        "worst pixel",
    ]
    head += ["gradients", "agree"]
    body = []
    for r in rows:
        times = (r.ms[t] for t in ("plan", "forward", "forward+backward", "render", "render+backward"))
        ratios = (r.speedup[t] for t in ("scalar forward", "torch forward", "torch forward+backward"))
        gradient = "" if r.agreement.gradient is None else f"{r.agreement.gradient:.1e}"
        line = [r.scene, str(r.gaussians), f"{r.width}x{r.height}", str(r.threads), str(r.pairs)]
        line += [f"{r.blended_per_pixel:.1f}", *map(ms, times), *(f"{ratio:.1f}x" for ratio in ratios)]
        line += [f"{r.agreement.image_worst:.1e}", gradient, "yes" if r.agreement.ok else "NO"]
        body.append(line)
    return f"## Blend, C = 3\n\n{BLEND}\n\n" + table(head, body)


def _memory(rows: Sequence[MemoryRow]) -> str:
    if not rows:
        return ""
    head = [
        "scene",
        "Gaussians",
        "pixels",
        "threads",
        "pairs",
        "before",
        "forward",
        "forward+backward",
        "peak",
    ]
    head += ["Plan", "bytes / pair", "bytes / Gaussian"]
    body = []
    for r in rows:
        line = [
            r.scene,
            str(r.gaussians),
            f"{r.width}x{r.height}",
            str(r.threads),
            str(r.pairs),
            f"{r.before:.0f}",
        ]
        line += [
            f"+{r.forward_rise:.1f}",
            f"+{r.forward_backward_rise:.1f}",
            f"{r.before + r.forward_backward_rise:.0f}",
        ]
        line += [
            f"{r.plan_bytes / 2**20:.2f}",
            f"{r.plan_bytes_per_pair:.2f}",
            f"{r.plan_bytes_per_gaussian:.1f}",
        ]
        body.append(line)
    return f"## Memory\n\n{MEMORY}\n\n" + table(head, body)


def draw(results: Results, path: Path) -> bool:
    """The picture of the results.

    Returns False, with nothing written, where matplotlib is missing or there is nothing to draw.
    """
    try:
        import matplotlib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # type: ignore[import-not-found,unused-ignore]

    if not results.blend and not results.cases:
        return False
    if results.cases:
        figure = plt.figure(figsize=(15, 6))
        report_grid.draw(results, figure)
    else:
        figure = plt.figure(figsize=(8, 0.3 * len(results.blend) + 1.5))
        _bars(results.blend, figure)
    figure.tight_layout()
    part: Any = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png", dpi=100)
    part.replace(path)
    plt.close(figure)
    return True


def _bars(rows: Sequence[BlendRow], figure: Any) -> None:
    """The speed over the scalar loop and over torch."""
    axes = figure.subplots()
    labels = [f"{r.scene} {r.gaussians // 1000}k {r.width}² {r.threads}t" for r in rows]
    for offset, task in ((-0.2, "scalar forward"), (0.2, "torch forward")):
        places = [i + offset for i in range(len(labels))]
        axes.barh(places, [r.speedup[task] for r in rows], height=0.4, label=f"over {task}")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast")
    axes.legend()


def summary(results: Results, path: Path) -> str:
    """What README.md shows of one file of results: its main table, and where the rest is."""
    if results.kind == "channels":
        device = results.machine.get("gpu", f"{results.machine['cpu']}, {results.machine['cores']} cores")
        title, text = f"{device} (channel sweep)", channels_report.summary(results)
    elif results.ceilings is not None:
        title, text = f"{results.machine.get('gpu', 'CPU')} (grid)", report_grid.summary(results)
    else:
        title = f"{results.machine['cpu']}, {results.machine['cores']} cores"
        text = _targets(results.targets).removeprefix("## Targets\n\n")
    name = path.with_suffix(".md").name
    parts = [f"### {title}", text, f"All of it: [results/{name}](results/{name})."]
    pictures = (path.with_suffix(suffix) for suffix in (".png", ".svg"))
    parts += [f"![the same as a picture](results/{p.name})" for p in pictures if p.is_file()]
    return "\n\n".join(parts)


def readme(text: str, paths: Sequence[Path]) -> str:
    """The README with the summaries of these files between its marks; those of quick runs are left out.

    Raises ValueError where it has no such marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md must have the lines {BEGIN!r} and {END!r}")
    loaded = [(Results.load(path), path) for path in paths]
    shown = [summary(results, path) for results, path in loaded if results.mode == "full"]
    return "\n\n".join([before + BEGIN, *shown, END + after])


def main(argv: Sequence[str]) -> int:
    """The command."""
    paths = [Path(name) for name in argv] or sorted(RESULTS.glob("*.json"))
    for path in paths:
        write(Results.load(path), path.with_suffix(".md"))
        print(f"written: {path.with_suffix('.md').name}")
    if not argv:
        write_whole(README, readme(README.read_text(), paths))
        print(f"written: {README.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The fusion benchmark's rows as Markdown: means and standard deviations over videos, and the targets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks import plot
from benchmarks.baselines.neuraldiff.fields import LAYERS
from benchmarks.fusion_studies import (
    DOUBTS,
    FIT,
    FLAT,
    FULL,
    LONG_SEED,
    NERF,
    OURS,
    RAW,
    REFINED,
    SWITCHES,
    WINDOWS,
    row_name,
    stop,
)
from benchmarks.tables import number, spread, table, verdict

Rows = Mapping[str, Mapping[str, Any]]
Row = Mapping[str, Any]
Figure = Callable[[Row, Row], float]  # of a row and of its video's 2D row

FOUND_AP = 15.0  # frames where the 2D masks' AP is lower are those that the 2D method missed


def ap(column: str) -> Figure:
    return lambda row, flat: number(row["ap"].get(column))


def psnr(part: str) -> Figure:
    return lambda row, flat: number(row.get("psnr", {}).get(part))


def entry(name: str) -> Figure:
    return lambda row, flat: number(row.get(name))


def on_frames(found: bool) -> Figure:
    """Dyn AP on the frames that the 2D masks found, or on those they missed."""

    def figure(row: Row, flat: Row) -> float:
        chosen = [row["per_frame"][s] for s, ap in flat["per_frame"].items() if (ap >= FOUND_AP) == found]
        return statistics.fmean(chosen) if chosen else math.nan

    return figure


FIGURES: dict[str, Figure] = {
    "Dyn": ap("dynamic"),
    "SS": ap("semistatic"),
    "SS own": ap("semistatic_own"),
    "Dyn+SS": ap("dynamic_semistatic"),
    "IoU≥0.5": entry("iou"),
    "best IoU": entry("best_iou"),
    "Dyn found": on_frames(True),
    "Dyn missed": on_frames(False),
    "PSNR": psnr("whole"),
    "fg": psnr("foreground"),
    "bg": psnr("background"),
}


def over_seeds(rows: Rows, prefixes: Iterable[object], name: str, figure: Figure) -> list[float]:
    """A figure of the row `name` of each video that has one."""
    found = [
        (rows[row_name(p, name)], rows[row_name(p, FLAT)]) for p in prefixes if row_name(p, name) in rows
    ]
    return [value for row, flat in found if not math.isnan(value := figure(row, flat))]


def figures_table(rows: Rows, prefixes: Sequence[object], names: Mapping[str, str], first: str) -> str:
    """A line for each of `names` (title -> name of its rows), a column for each of FIGURES."""
    lines = [
        [title, *(spread(over_seeds(rows, prefixes, name, f)) for f in FIGURES.values())]
        for title, name in names.items()
    ]
    return table([first, *FIGURES], lines)


# --------------------------------------------------------------------------------------------------- the studies


def table5(rows: Rows, seeds: Sequence[int]) -> str:
    names = {FLAT: FLAT}
    names |= {f"{t} {v}": row_name(v, t) for t in (FIT, REFINED) for v in SWITCHES}
    names |= {f"{t} {FULL}, {RAW}": row_name(RAW, t) for t in (FIT, REFINED)}
    blind = row_name("no masks", FIT)
    if over_seeds(rows, seeds, blind, ap("dynamic")):
        names["no masks at all"] = blind
    per_seed = [
        [title, *(spread(over_seeds(rows, [seed], name, ap("dynamic"))) for seed in seeds)]
        for title, name in (
            (FLAT, FLAT),
            (f"{FIT} {FULL}", row_name(FULL, FIT)),
            (f"{REFINED} {FULL}", row_name(FULL, REFINED)),
        )
    ]
    return "\n\n".join(
        [
            "# Ablation: test-time refinement (TR), positive and negative motion fusion (PMF, NMF)",
            figures_table(rows, seeds, names, "masks"),
            "AP and IoU in percent, PSNR in dB; mean ± standard deviation over the seeds. SS is the benchmark's rule, "
            f"SS own scores the semi-static mask alone. Found: frames where the 2D masks' AP is at least {FOUND_AP:g}. "
            "PSNR is of frames with something dynamic. All but `no masks at all` read the 2D masks where the static "
            "layer is fitted first and where Gaussians are seeded, with the fusion losses off too.",
            "## Dyn AP, seed by seed",
            table(["masks", *(f"seed {seed}" for seed in seeds)], per_seed),
            "## Targets",
            targets(rows, seeds),
        ]
    )


def targets(rows: Rows, seeds: Sequence[int]) -> str:
    """Each target, what the fit and the refined fit reach, and by how much they meet or miss it."""

    def of(figure: Figure, name: str) -> list[float]:
        return over_seeds(rows, seeds, name, figure)

    def mean(values: list[float]) -> float:
        return statistics.fmean(values) if values else math.nan

    dyn, found, both = ap("dynamic"), on_frames(True), ap("dynamic_semistatic")
    without = mean(of(ap("semistatic_own"), row_name("-PMF -NMF", FIT)))
    lines = []
    for title, goal, measured in (
        ("Dyn AP above the 2D masks', mean", 15.0, lambda n: mean(_gains(rows, seeds, n, dyn))),
        ("the same, worst seed", 8.0, lambda n: min(_gains(rows, seeds, n, dyn), default=math.nan)),
        ("the same on frames found in 2D, mean", 10.0, lambda n: mean(_gains(rows, seeds, n, found))),
        ("Dyn+SS AP, mean", 80.0, lambda n: mean(of(both, n))),
        (
            "SS own above the fit without fusion, mean",
            0.0,
            lambda n: mean(of(ap("semistatic_own"), n)) - without,
        ),
        (
            "IoU at 0.5 above the best of the 2D masks, mean",
            0.0,
            lambda n: mean(of(entry("iou"), n)) - mean(of(entry("best_iou"), FLAT)),
        ),
    ):
        reached = [measured(row_name(FULL, refined)) for refined in (FIT, REFINED)]
        lines.append([title, f"{goal:g}", *(verdict(value, goal) for value in reached)])
    return table(["target", "goal", f"{FIT} {FULL}", f"{REFINED} {FULL}"], lines)


def table3(rows: Rows, seeds: Sequence[int]) -> str:
    lines = []
    for title, name in {"2D masks": FLAT, "before": FIT, **{f"N = {n}": f"N={n}" for n in WINDOWS}}.items():
        figures = (
            ap("dynamic"),
            entry("fitted"),
            entry("seconds_per_frame"),
            entry("cpu_seconds_per_frame"),
            psnr("whole"),
            psnr("foreground"),
        )
        lines.append([title, *(spread(over_seeds(rows, seeds, name, figure)) for figure in figures)])
    return "\n\n".join(
        [
            "# Test-time refinement of chosen frames with N neighbours on each side",
            table(["window", "Dyn", "frames fitted", "s per chosen frame", "CPU s", "PSNR", "fg"], lines),
            "On the chosen frames alone; mean ± standard deviation over the seeds. One thread.",
        ]
    )


def doubts(rows: Rows, seeds: Sequence[int]) -> str:
    figures = ("Dyn", "SS own", "Dyn+SS", "IoU≥0.5", "PSNR")
    lines = []
    for doubt in DOUBTS:
        prefixes = [row_name(seed, doubt) for seed in seeds]
        flat = over_seeds(rows, prefixes, FLAT, ap("dynamic"))
        gains = _gains(rows, prefixes, FIT, ap("dynamic"))
        cells = [spread(over_seeds(rows, prefixes, FIT, FIGURES[name])) for name in figures]
        lines.append([doubt, spread(flat), cells[0], spread(gains), *cells[1:]])
    return "\n\n".join(
        [
            f"# What might break fusion, seeds {', '.join(map(str, seeds))}",
            table(["video", "2D Dyn", "3D Dyn", "gain", *figures[1:]], lines),
            "The fit without refinement; mean ± standard deviation over the seeds.",
        ]
    )


def real(rows: Rows, seeds: Sequence[int]) -> str:
    videos = dict.fromkeys(name.split("/")[0] for name in rows)
    titles = {FLAT: FLAT}
    titles |= {f"{t}, {RAW}": row_name(RAW, t) for t in (FIT, REFINED)} | {FIT: FIT, REFINED: REFINED}
    columns = ("Dyn", "SS own", "Dyn+SS", "IoU≥0.5", "best IoU", "PSNR", "fg", "bg")
    lines = [
        [video, title, *(spread(over_seeds(rows, [video], name, FIGURES[c])) for c in columns)]
        for video in videos
        for title, name in titles.items()
    ]
    return "\n\n".join(
        [
            "# Real images",
            table(["video", "masks", *columns], lines),
            "`hand`: a real video, the 2D masks from its optical flow, judged on 12 frames outlined by hand. `room`: a "
            "robot and two cubes among photographs of a room, seen once or on the way there and back, and a simple "
            "segmenter's 2D masks. PSNR is of the judged frames.",
        ]
    )


def long(rows: Rows, seeds: Sequence[int]) -> str:
    lines, notes = [], []
    for title, name in ((FLAT, FLAT), ("fitted", FIT), ("refined", REFINED)):
        lines.append([title, *(spread(over_seeds(rows, [LONG_SEED], name, f)) for f in FIGURES.values())])
    if fit := rows.get(row_name(LONG_SEED, FIT)):
        notes.append(f"Fit: {fit['steps']} of {fit['of_steps']} steps in {fit['seconds'] / 60:.1f} min.")
    if done := rows.get(row_name(LONG_SEED, REFINED)):
        seconds = done["seconds_per_frame"]
        notes.append(
            f"Refined: {done['frames']} frames, {seconds:.2f} s each (target 2: {verdict(seconds, 2, at_most=True)})."
        )
    return "\n\n".join(
        ["# A long video on a bounded budget", table(["masks", *FIGURES], lines), " ".join(notes)]
    )


def race(rows: Rows, seeds: Sequence[int]) -> str:
    stops = [stop(contender, m) for m in budgets(rows) for contender in (NERF, OURS)]
    stops += [stop(contender, m, refined=True) for m in budgets(rows)[-1:] for contender in (NERF, OURS)]
    columns = ("Dyn", "SS own", "Dyn+SS", "IoU≥0.5", "PSNR")
    lines = [
        [name.replace("/", " "), *(spread(over_seeds(rows, seeds, name, FIGURES[c])) for c in columns)]
        for name in (FLAT, *stops)
    ]
    speeds = [
        [*name.split("/")[1:], f"{row['neuraldiff_ms']:.0f}", f"{row['ours_ms']:.1f}", f"{row['ratio']:.0f}"]
        for name, row in rows.items()
        if name.startswith("speed/")
    ]
    return "\n\n".join(
        [
            "# Beside a radiance field on the same videos",
            table(["masks", *columns], lines),
            "Wall-clock time of the training; each of our rows is a fit of its own, planned for that time. "
            f"{NERF} is NeuralDiff with both fusion losses in sizes that learn the most in minutes on a CPU (`small`). "
            "Mean ± standard deviation over the seeds.",
            "## Speed, measured in turn",
            table(["sizes of the field", "work", f"{NERF}, ms", f"{OURS}, ms", "ratio"], speeds),
            "Training: an iteration on 1,024 rays (`small`: 256), scaled to the pixels of a frame, beside our step on "
            "that frame with all layers and losses.",
        ]
    )


def race_curves(rows: Rows, seeds: Sequence[int]) -> str | None:
    """What is missing to an AP of 100 over minutes, as SVG; None before anything is measured."""
    panels = []
    for title, column in (("100 - Dyn AP", "Dyn"), ("100 - Dyn+SS AP", "Dyn+SS")):
        series = []
        for contender in (NERF, OURS):
            reached = {m: over_seeds(rows, seeds, stop(contender, m), FIGURES[column]) for m in budgets(rows)}
            points = tuple((m, 100 - statistics.fmean(values)) for m, values in reached.items() if values)
            series.append(plot.Series(contender, points))
        panels.append(plot.Panel(title, tuple(series)))
    if not any(series.points for panel in panels for series in panel.series):
        return None
    return plot.svg(panels, 2, "minutes", "points missing")


def converge(rows: Rows, seeds: Sequence[int]) -> str:
    models = list(LAYERS)
    columns = ("Dyn", "SS own", "Dyn+SS", "IoU≥0.5", "PSNR")
    stops = [stop(model, m) for model in models for m in budgets(rows, models)]
    lines = [
        [name.replace("/", " "), *(spread(over_seeds(rows, seeds, name, FIGURES[c])) for c in columns)]
        for name in (FLAT, *stops)
    ]
    return "\n\n".join(
        [
            "# How far the radiance fields get on a small video",
            table(["masks", *columns], lines),
            "Sizes `small`, positive fusion for all, negative fusion where there is a semi-static layer; PSNR of the "
            "training frames. A field has converged where the last doubling of its time changes little.",
        ]
    )


def budgets(rows: Rows, contenders: Sequence[str] = (NERF, OURS)) -> list[float]:
    """The minutes after which these were scored."""
    stops = [name.split("/")[2] for name in rows if name.split("/")[1] in contenders]
    return sorted({float(text.removesuffix(" min")) for text in stops})


def layers_cost(rows: Rows, seeds: Sequence[int]) -> str:
    lines = []
    for name, row in rows.items():
        ratio = verdict(row["ratio"], 1.4, at_most=True)
        counts = [f"{row['gaussians']:,}", f"{row['visible']:,}"]
        lines.append([name, *counts, f"{row['plain_ms']:.1f}", f"{row['layered_ms']:.1f}", ratio])
    head = ["task", "Gaussians", "visible", "plain, ms", "layered, ms", "ratio (target 1.4)"]
    return "\n\n".join(
        [
            "# What a layered rendering costs beside a plain one of the same Gaussians",
            table(head, lines),
            "Processor time of one thread, medians of calls made in turn.",
            "Plain: three channels, the moving Gaussians where and how opaque they "
            "are at that time. Layered: responses, life spans, colour, uncertainty and three masks; with parts also "
            "what each layer adds to the colour, as the fit needs it.",
        ]
    )


TABLES: dict[str, Callable[[Rows, Sequence[int]], str]] = {
    "table5": table5,
    "table3": table3,
    "doubts": doubts,
    "long": long,
    "race": race,
    "converge": converge,
    "real": real,
    "layers-cost": layers_cost,
}
DRAWINGS: dict[str, Callable[[Rows, Sequence[int]], str | None]] = {"race": race_curves}


# ------------------------------------------------------------------------------------------------------ details


def _gains(rows: Rows, prefixes: Iterable[object], name: str, figure: Figure) -> list[float]:
    """By how much a row's figure lies above its video's 2D masks'."""
    return over_seeds(rows, prefixes, name, lambda row, flat: figure(row, flat) - figure(flat, flat))

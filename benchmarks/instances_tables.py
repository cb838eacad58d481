"""The instance benchmark's rows as Markdown: means and standard deviations over rooms, and the targets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.instances_speed import ASSIGNMENT as ASSIGNING
from benchmarks.instances_speed import IDENTIFIERS, NEURAL
from benchmarks.instances_speed import OURS as STEP
from benchmarks.instances_studies import (
    ASSIGNMENT,
    BARE,
    CEILING,
    FLAT,
    GEOMETRY,
    LARGEST,
    OURS,
    SHORT,
    STUDIES,
    TRACKING,
    VANILLA,
    alone,
)
from benchmarks.tables import number, spread, table, verdict

Rows = Mapping[str, Mapping[str, Any]]
Figure = Callable[[Mapping[str, Any]], float]

COLUMNS = ("PQ", "SQ", "RQ", "things", "stuff", "per frame", "mIoU", "objects")


def at(*keys: str) -> Figure:
    """What lies at these keys of a row, one within the other; nan where there is nothing."""

    def figure(row: Mapping[str, Any]) -> float:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return number(value)

    return figure


pq, per_frame = at("pq"), at("per_frame_pq")
FIGURES: dict[str, Figure] = {
    "PQ": pq,
    "SQ": at("sq"),
    "RQ": at("rq"),
    "things": at("pq_things"),
    "stuff": at("pq_stuff"),
    "per frame": per_frame,
    "mIoU": at("miou"),
    "objects": at("objects"),
    "field, s": at("seconds", "field"),
    "classes, s": at("seconds", "classes"),
    "objects, s": at("seconds", "objects"),
    "steps/s": at("iterations_per_second"),
}


def rooms(rows: Rows, title: str, objects: int | None = None) -> list[str]:
    """The rooms "objects/seed" that have a row of that title."""
    named = [name.split("/", 2) for name in rows]
    return [f"{n[0]}/{n[1]}" for n in named if len(n) == 3 and n[2] == title and objects in (None, int(n[0]))]


def counts(rows: Rows) -> list[int]:
    """The numbers of objects of all rooms."""
    return sorted({int(name.split("/")[0]) for name in rows if name.split("/")[0].isdecimal()})


def over_rooms(rows: Rows, title: str, figure: Figure, objects: int | None = None) -> list[float]:
    found = [figure(rows[f"{room}/{title}"]) for room in rooms(rows, title, objects)]
    return [value for value in found if not math.isnan(value)]


def gains(rows: Rows, title: str, other: str, figure: Figure = pq) -> list[float]:
    """By how much a row's figure lies above that of another row of its room, in all rooms that have both."""
    both = [room for room in rooms(rows, title) if f"{room}/{other}" in rows]
    return [figure(rows[f"{room}/{title}"]) - figure(rows[f"{room}/{other}"]) for room in both]


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def titles(rows: Rows) -> list[str]:
    """Of the rows with a PQ, in the order of the study, then those that it does not know."""
    found = dict.fromkeys(name.split("/", 2)[2] for name, row in rows.items() if "pq" in row)
    return list(found)


def figures_table(rows: Rows, names: Iterable[str], columns: Sequence[str] = COLUMNS) -> str:
    lines = [[title, *(spread(over_rooms(rows, title, FIGURES[c])) for c in columns)] for title in names]
    return table(["", *columns], lines)


def ordered(rows: Rows, study: str) -> list[str]:
    """The titles of a study that have rows, as the study lists them."""
    known: list[str] = []
    for title, variant in STUDIES[study].variants(25).items():
        known += [FLAT, *TRACKING] if variant.kind == "track" else [p or title for p in variant.clusterings]
    have = set(titles(rows))
    return [title for title in known if title in have]


ABOUT = (
    "In percent, on the held-out views at 512x512 pixels; mean ± standard deviation over rooms. Objects: how many were "
    "found. Seconds of one thread's processor time; those of objects include the files of all views."
)


# --------------------------------------------------------------------------------------------------- the studies


def losses(rows: Rows) -> str:
    names = ordered(rows, "losses")
    by_count = [
        [
            title,
            *(spread(over_rooms(rows, title, pq, n)) for n in counts(rows)),
            spread(over_rooms(rows, title, pq)),
        ]
        for title in names
    ]
    frames = [
        [
            str(n),
            *(spread(over_rooms(rows, title, per_frame, n)) for title in (FLAT, OURS)),
            spread(gain),
            worst,
        ]
        for n in counts(rows)
        for gain in [gains(_of(rows, n), OURS, FLAT, per_frame)]
        for worst in [f"{min(gain):.1f}" if gain else "-"]
    ]
    above = "PQ of slow-fast with concentration above"
    costs = ("field, s", "classes, s", "objects, s", "steps/s")
    return "\n\n".join(
        [
            "# Losses: one geometry for all, only the instance field differs",
            figures_table(rows, names),
            ABOUT,
            "## Targets",
            table([above, "goal", "mean over rooms", "the worst"], _targets(rows, lambda title: title)),
            "## Targets, by clusters as in the paper, which have no places and are not merged",
            table([above, "goal", "mean over rooms", "the worst"], _targets(rows, alone)),
            "Tracking: the best method by its mean, each with the threshold and depth that score best in each room.",
            "## PQ by the number of objects",
            table(["", *(f"N = {n}" for n in counts(rows)), "all"], by_count),
            "## What fusion adds to the 2D segmenter within single frames (per-frame PQ)",
            table(["N", FLAT, OURS, "gain", "worst room"], frames),
            "## Cost",
            figures_table(rows, [t for t in names if t not in (FLAT, *TRACKING, CEILING)], costs),
        ]
    )  # fmt: skip


def _targets(rows: Rows, made: Callable[[str], str]) -> list[list[str]]:
    """made: from a title to that of the row in which its objects are made so."""
    trackers = [t for t in TRACKING if rooms(rows, t)]
    best = max(trackers, key=lambda t: mean(over_rooms(rows, t, pq)), default=TRACKING[-1])
    lines = []
    vanilla = [(title, 3.0) for title in (*VANILLA, SHORT)]
    for title, goal in (*vanilla, (ASSIGNMENT, 4.0), (best, 15.0), (BARE, 0.0)):
        other = title if title in (ASSIGNMENT, best) else made(title)
        gain = gains(rows, made(OURS), other)
        if not gain:
            continue
        lines.append([title, f"{goal:g}", verdict(mean(gain), goal), f"{min(gain):.2f}"])
    return lines


def _of(rows: Rows, objects: int) -> Rows:
    return {name: row for name, row in rows.items() if name.startswith(f"{objects}/")}


def compared(study: str, heading: str, columns: Sequence[str], note: str = "") -> Callable[[Rows], str]:
    """A study that is one table, and that of PQ by number of objects where there are several."""

    def text(rows: Rows) -> str:
        names = ordered(rows, study)
        parts = [f"# {heading}", figures_table(rows, names, columns), f"{ABOUT} {note}".strip()]
        if len(counts(rows)) > 1:
            by_count = [[t, *(spread(over_rooms(rows, t, pq, n)) for n in counts(rows))] for t in names]
            parts += [
                "## PQ by the number of objects",
                table(["", *(f"N = {n}" for n in counts(rows))], by_count),
            ]
        return "\n\n".join(parts)  # fmt: skip

    return text


def ablation(rows: Rows) -> str:
    names = ordered(rows, "ablation")
    shaped = [
        [title, *(spread(over_rooms(rows, title, f), d) for f, d in (
            (pq, 1), (at("gaussians"), 0), (at("prepared", "psnr"), 2), (at("prepared", "psnr_before"), 2),
            (at("prepared", "seconds", "prepare"), 0)
        ))]
        for title in names if title == "defaults" or title.startswith("geometry")
    ]  # fmt: skip
    own = compared("ablation", "Ablation: geometry, start, sampling, momentum, field", (*COLUMNS, "steps/s"))
    head = ["", "PQ", "Gaussians", "PSNR", "PSNR as fitted", "seconds"]
    return "\n\n".join([own(rows), "## What is done to the geometry", table(head, shaped)])


def variance(rows: Rows) -> str:
    names = list(dict.fromkeys(name.split("/", 2)[2] for name, row in rows.items() if "noise" in row))
    parts = ["# Variance of the gradient over batches of one view, along the fit"]
    for key, digits in (("noise", 2), ("variance", 6)):
        steps = sorted({step for row in rows.values() for step in row.get("steps", [])})
        lines = [
            [title, *(spread(over_rooms(rows, title, _series(key, step)), digits) for step in steps)]
            for title in names
        ]
        parts += [f"## {key.capitalize()}", table(["step", *map(str, steps)], lines)]
    parts.append(
        "With respect to all embeddings, over batches of pixels of one view. Variance: the trace of the covariance; "
        "noise: that over the squared length of the mean, which does not depend on the loss's scale."
    )
    return "\n\n".join(parts)


def _series(key: str, step: int) -> Figure:
    return lambda row: number(dict(zip(row.get("steps", []), row.get(key, []))).get(step))


def scale(rows: Rows) -> str:
    stages = ("field", "classes", "objects")
    lines = []
    for n in counts(rows):
        seconds = [at("seconds", stage) for stage in stages]
        fit = [spread(over_rooms(rows, GEOMETRY, at("seconds", "geometry"), n), 0)]
        fit.append(spread(over_rooms(rows, OURS, at("prepared", "seconds", "prepare"), n), 0))
        cost = [spread(over_rooms(rows, OURS, figure, n), 0) for figure in seconds]
        peaks = [over_rooms(rows, GEOMETRY, at("peak_mib", "geometry"), n)]
        peaks += [over_rooms(rows, OURS, at("prepared", "peak_mib", "prepare"), n)]
        peaks += [over_rooms(rows, OURS, at("peak_mib", stage), n) for stage in stages]
        peak = max((value for values in peaks for value in values), default=math.nan)
        plans = over_rooms(rows, OURS, lambda row: at("plans", "memory_bytes")(row) / 2**20, n)
        score = [spread(over_rooms(rows, CEILING, pq, n))]
        score += [
            spread(over_rooms(rows, OURS, figure, n)) for figure in (pq, at("pq_things"), at("objects"))
        ]
        memory = "-" if math.isnan(peak) else f"{peak:.0f}"
        lines.append([str(n), *score, *fit, *cost, spread(plans, 0), memory])
    lost, least = (
        mean(over_rooms(rows, title, pq, 25)) - mean(over_rooms(rows, title, pq, LARGEST))
        for title in (OURS, CEILING)
    )
    known = "not measured" if math.isnan(least) else f"{least:.2f}"
    head = [
        "N",
        "true ids",
        "PQ",
        "things",
        "objects",
        "geometry, s",
        "prepare, s",
        "field, s",
        "classes, s",
        "objects, s",
    ]
    return "\n\n".join(
        [
            "# Cost and quality against the number of objects",
            table([*head, "plans, MiB", "peak, MiB"], lines),
            f"Points of PQ lost from 25 to {LARGEST} objects (target 6): {verdict(lost, 6, at_most=True)}; by true ids "
            f"lifted to the same geometry, the most that a field could reach: {known}.",
            f"{ABOUT} Peak: of the resident memory of the process, over all stages.",
        ]
    )


def speed(rows: Rows) -> str:
    steps = [name.split("/", 1)[1] for name in rows if name.startswith("steps/")]
    pieces = [name for name in steps if "segments" in name]
    own = [name for name in steps if name.endswith("objects")]
    own.sort(key=lambda name: int(name.split()[1]))
    first = own[0] if own else STEP.format(25)
    order = [*own, *pieces, *(ASSIGNING.format(count) for count in IDENTIFIERS)]
    rates = [_rate(rows, f"steps/{name}", name) for name in order if f"steps/{name}" in rows]
    neural = [_rate(rows, f"neural/{name}", name) for name in (first, *NEURAL) if f"neural/{name}" in rows]
    ratios = [1 / rows[f"steps/{name}"]["ratio"] for name in own[-1:] if len(own) > 1]
    same = [1 / rows[f"steps/{name}"]["ratio"] for name in pieces]
    fields = [rows[f"neural/{name}"]["ratio"] for name in NEURAL if f"neural/{name}" in rows]
    released = at("ratio")(rows.get(f"neural/{next(iter(NEURAL))}", {}))
    seconds = at("seconds")(rows.get("whole/on the fitted geometry", {}))
    targets = [
        ["steps/s with the most objects over those with the fewest", "0.95", verdict(mean(ratios), 0.95)],
        ["the same where only the number of segments differs", "0.95", verdict(mean(same), 0.95)],
        ["against the neural field, as released", "10", verdict(released, 10)],
        ["against the quickest of its variants", "10", verdict(min(fields, default=math.nan), 10)],
        ["seconds of a whole fit after geometry", "60", verdict(seconds, 60, at_most=True)],
    ]  # fmt: skip
    parts = [[name.split("/", 1)[1], f"{row['ms']:.2f}"] for name, row in rows.items() if "parts/" in name]
    plans = [
        [name.split("/")[1], str(row["views"]), *(f"{row[key] / 2**20:.1f}" for key in _PLANS)]
        for name, row in sorted(rows.items()) if name.startswith("plans/")
    ]  # fmt: skip
    whole = [[name.split("/")[1], f"{row['seconds']:.1f}"] for name, row in rows.items() if "whole/" in name]
    head = ["step", "ms", "steps/s", "times as long as ours"]
    return "\n\n".join(
        [
            "# Speed, measured in turn",
            table(["target", "goal", "measured"], targets),
            "## Independent of the number of objects",
            table(head, rates),
            "## Beside a neural field, at the same pixels per step and with the same loss",
            table(head, neural),
            "## Where a step's time goes",
            table(["part", "ms"], parts),
            "## Memory of the cached plans, MiB",
            table(["N", "views", "plans", "limit", "a smaller limit", "held at most"], plans),
            "## Whole fits of instances, wall-clock seconds",
            table(["", "s"], whole),
        ]
    )


_PLANS = ("memory_bytes", "limit_bytes", "small_limit_bytes", "small_most_bytes")


def _rate(rows: Rows, name: str, title: str) -> list[str]:
    row = rows[name]
    return [title, f"{row['ms']:.2f}", f"{1000 / row['ms']:.0f}", f"{row['ratio']:.2f}"]


TABLES: dict[str, Callable[[Rows], str]] = {
    "losses": losses,
    "sizes": compared("sizes", "Numbers of an embedding, D", (*COLUMNS, "objects, s", "steps/s")),
    "clusterings": compared(
        "clusterings", "Clusterings of the same embeddings", (*COLUMNS, "objects, s"),
        "Sizes are in sampled pixels; the sweep chooses one by the 2D segments of training views.",
    ),
    "ablation": ablation,
    "variance": variance,
    "scale": scale,
    "speed": speed,
}  # fmt: skip

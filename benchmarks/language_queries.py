"""What a query costs: `python -m benchmarks.language_queries`, of a trained splat with made-up language, beside the
paper's way (all numbers of every pixel blended, then multiplied), 30 scales and three levels with a decoder.

Language is made as a fit would leave it: cells of space and groups of them carry words; every view sees them with noise
of its own; what a Gaussian says is the mean over the views that see it. All ways answer from the same plan and, but for
the three levels, from the same embeddings; before anything is timed, ours must agree with the whole embeddings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

import gsfields
from benchmarks import machine, scenes
from benchmarks.baselines.langsplat import ENCODER, Autoencoder
from benchmarks.results import write_whole
from benchmarks.tables import ms, table
from gsfields.bench.clock import Effort, Task, Timing, interleaved
from gsfields.bench.scene import Scene
from gsfields.data.nested_texts import Vocabulary
from gsfields.fields.nested import CANONICAL, Nested
from gsfields.fields.prompt_scales import PromptScales
from gsfields.fields.query_basis import QueryBasis
from gsfields.fields.relevancy import from_products, relevancy
from gsfields.files import to_json
from gsfields.fit.querying import Askable, PromptQueries, ViewQueries, asked_plainly
from gsfields.plans import Plan

RESULTS = Path(__file__).parent / "results" / "language"
CELLS, GROUPS = 60, 10  # of space: what is small and what is large
VIEWS, SEEN = 30, 0.5  # that say something, and the share of them that see a Gaussian
CROP_COSINE = 0.85  # of what a view says of a cell and its word
WIDTH = 512  # E, and D
SCALES = 30  # of LERF
TARGET = 20.0  # times as fast as the paper's way, for ten prompts
PROMPTS = 10


@dataclass(frozen=True)
class Spoken:
    """A view of Gaussians with language."""

    plan: Plan
    nested: Nested
    texts: Tensor  # [PROMPTS, E]
    phrases: Tensor  # [K, E]


def spoken(scene: Scene, width: int, height: int, seed: int = 0) -> Spoken:
    """Half of θ says which group a Gaussian belongs to, the other half which cell beyond that."""
    generator = torch.Generator().manual_seed(seed)
    words = word_vectors(CELLS + GROUPS, seed)
    cell, group = cells_of(scene.means, generator)
    fine = _said(words[:CELLS], cell, generator)
    coarse = _said(words[CELLS:], group, generator)
    half = WIDTH // 2
    bases = [torch.linalg.svd(x, full_matrices=False)[2][:half].T for x in (coarse, fine - coarse)]
    theta = torch.cat((coarse @ bases[0], (fine - coarse) @ bases[1]), dim=1)
    K = scene.Ks[0].clone()
    K[0], K[1] = K[0] * (width / scene.width), K[1] * (width / scene.width)
    K[1, 2] = height / 2
    plan = gsfields.plan(
        scene.means, scene.quats, scene.scales, scene.opacities, scene.viewmats[0], K, width, height
    )
    vocabulary = Vocabulary(dimension=WIDTH, seed=seed)
    phrases = torch.stack([_vector(vocabulary, phrase) for phrase in CANONICAL])
    chosen = torch.randperm(len(words), generator=generator)[:PROMPTS]
    return Spoken(plan, Nested(theta, torch.cat(bases, dim=1)), words[chosen], phrases)


def cells_of(means: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(cell, group), int64 [N]: which of CELLS of space each of means [N, 3] is in, and of GROUPS of cells."""
    centres = means[torch.randperm(len(means), generator=generator)[: CELLS + GROUPS]]
    cell = torch.cdist(means, centres[:CELLS]).argmin(dim=1)
    return cell, torch.cdist(centres[:CELLS], centres[CELLS:]).argmin(dim=1)[cell]


def word_vectors(count: int, seed: int = 0) -> Tensor:
    """[count, WIDTH], unit: what as many names mean."""
    vocabulary = Vocabulary(dimension=WIDTH, seed=seed)
    return torch.stack([_vector(vocabulary, f"thing {k}") for k in range(count)])


def _vector(vocabulary: Vocabulary, name: str) -> Tensor:
    word = vocabulary.word(name)
    mean = torch.as_tensor(vocabulary.mean).float()
    vector = word.common * mean + (1 - word.common**2) ** 0.5 * torch.as_tensor(word.deviation).float()
    return normalize(vector, dim=0)


def _said(words: Tensor, of: Tensor, generator: torch.Generator) -> Tensor:
    """[N, E] the mean of what the views say that see a Gaussian; of: [N] which word is true of it."""
    noise = (1 / CROP_COSINE**2 - 1) ** 0.5
    sums, count = torch.zeros(len(of), words.shape[1]), torch.zeros(len(of), 1)
    for _ in range(VIEWS):
        heard = normalize(
            words + noise * normalize(torch.randn(words.shape, generator=generator), dim=1), dim=1
        )
        seen = (torch.rand(len(of), 1, generator=generator) < SEEN).float()
        sums += seen * heard[of]
        count += seen
    return sums / count.clamp_min(1)


# ------------------------------------------------------------------------------------------------------------- ways


def askable(s: Spoken) -> Askable:
    """Composite embeddings, and what all views share of them, which is there before a view is asked."""
    asked = Askable(QueryBasis.of(s.nested.composite(s.phrases), s.nested.projection), s.phrases)
    assert len(asked.values) == len(s.nested)
    return asked


def ways(s: Spoken, tolerance: float) -> tuple[dict[str, Callable[[], Tensor]], Askable]:
    """Each answers with relevancy [H, W, Q] of what it is named after, the plan being there."""
    asked = askable(s)
    basis = asked.basis
    whole = basis.coefficients @ basis.directions.T
    opened = ViewQueries(s.plan, asked, tolerance=tolerance)
    blended = normalize(s.plan.blend(whole), dim=-1)
    both = torch.cat((s.texts, s.phrases))
    autoencoder = Autoencoder(WIDTH).eval()
    codes = normalize(torch.randn(3, len(whole), ENCODER[-1]), dim=-1)
    one = s.texts[:1]

    def at_a_scale() -> Tensor:
        return relevancy(s.plan.blend(s.nested.at(0.5) @ s.nested.projection.T), one, s.phrases)

    def decoded() -> Tensor:
        maps = [
            relevancy(autoencoder.decode(s.plan.blend(level).flatten(0, 1)), one, s.phrases)
            for level in codes
        ]
        best = max(maps, key=lambda level: float(level.max()))
        return best.view(s.plan.height, s.plan.width, 1)

    by_prompt = PromptScales(s.nested, s.phrases)
    by_prompt.margins(one)  # what does not depend on a prompt
    turn = cycle((s.texts, s.texts.flip(0)))  # what was asked last is known
    weighing = PromptQueries(s.plan, by_prompt)
    return {
        "ours: what all prompts of a view share": lambda: (
            ViewQueries(s.plan, asked, tolerance=tolerance).length
        ),
        "ours: each prompt": lambda: opened.ask(one).relevancy,
        "ours: ten prompts together": lambda: opened.ask(s.texts).relevancy,
        "scales weighed by the prompt: each prompt": lambda: weighing.ask(next(turn)[:1]).relevancy,
        "scales weighed by the prompt: ten prompts together": lambda: weighing.ask(next(turn)).relevancy,
        "the paper's way: a prompt": lambda: relevancy(s.plan.blend(whole), one, s.phrases),
        "the same, blended and normalised once: each further prompt": lambda: from_products(
            blended @ both[[0, *range(PROMPTS, len(both))]].T, 1
        ),
        "30 scales, as LERF: one of them for a prompt": at_a_scale,
        "three levels and a decoder, as LangSplat: a prompt": decoded,
    }, asked


def agreement(s: Spoken, asked: Askable, tolerance: float) -> dict[str, float]:
    """How far ours is from the whole embeddings, where anything is, and what it says of that."""
    opened = ViewQueries(s.plan, asked, tolerance=tolerance)
    answer = opened.ask(s.texts)
    expected = asked_plainly(s.plan, asked, s.texts)
    error = float((answer.relevancy - expected)[answer.alpha > 0.01].abs().max())
    channels = sum(count * pixels for count, pixels in opened.channels) / (s.plan.width * s.plan.height)
    return {"error": error, "bound": answer.bound, "directions_a_pixel": channels, "rank": asked.basis.rank}


def report(times: dict[str, Timing], found: dict[str, float], about: str) -> str:
    """Markdown."""
    first, each, together, own, own_together, paper, further, scales, levels = (
        t.median for t in times.values()
    )
    ours = first + PROMPTS * each
    once = paper + (PROMPTS - 1) * further
    lines = [[name, ms(t.median)] for name, t in times.items()]
    totals = [
        ["ours, one after the other", ms(ours), "1.0"],
        ["ours, all at once", ms(first + together), f"{(first + together) / ours:.2f}"],
        ["scales weighed by the prompt", ms(PROMPTS * own), f"{PROMPTS * own / ours:.2f}"],
        ["the same, all at once", ms(own_together), f"{own_together / ours:.2f}"],
        ["the paper's way", ms(PROMPTS * paper), f"{PROMPTS * paper / ours:.1f}"],
        ["the paper's way, blended once", ms(once), f"{once / ours:.1f}"],
        ["30 scales, as LERF", ms(PROMPTS * SCALES * scales), f"{PROMPTS * SCALES * scales / ours:.0f}"],
        ["three levels and a decoder, as LangSplat", ms(PROMPTS * levels), f"{PROMPTS * levels / ours:.1f}"],
    ]
    gain = PROMPTS * paper / ours
    verdict = "met" if gain >= TARGET else "missed"
    return "\n\n".join(
        [
            "# Queries",
            about,
            table(["", "ms"], lines),
            f"## {PROMPTS} prompts of one view",
            table(["", "ms", "times ours"], totals),
            f"Target: {TARGET:.0f} times as fast as the paper's way: {gain:.1f}, {verdict}. Our relevancy differs from "
            f"that of the whole embeddings by {found['error']:.1e} at most; it says {found['bound']:.1e}. Of "
            f"{found['rank']:.0f} directions a pixel took {found['directions_a_pixel']:.0f}. Each way is charged for "
            "its blends; the plan, and the composite embeddings of the Gaussians, are there before. The decoder's "
            "weights are random: its time is what counts. Each way may share its blends between prompts, as the "
            "seventh line does. Where prompts weigh the scales answers are others, and nothing is left out of them.",
        ]
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "benchmarks.language_queries",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--scene", default="robot_125k", help="a trained splat, or synthetic (default robot_125k)"
    )
    parser.add_argument("--count", type=int, default=1 << 30, help="Gaussians, at most")
    parser.add_argument("--size", default="987x730", help="pixels (default 987x730)")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--seconds", type=float, default=120.0, help="for all timings (default 120)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of JSON and Markdown")
    asked = parser.parse_args(words)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    try:
        width, height = (int(number) for number in asked.size.split("x"))
        scene = scenes.load(asked.scene, asked.count, width)
    except (ValueError, scenes.SceneMissing) as error:
        print(f"benchmarks.language_queries: {error}", file=sys.stderr)
        return 2
    with torch.no_grad():
        s = spoken(scene, width, height)
        calls, embeddings = ways(s, asked.tolerance)
        found = agreement(s, embeddings, asked.tolerance)
        if found["error"] > found["bound"] + 1e-4:
            print(f"benchmarks.language_queries: the answers differ by {found['error']}", file=sys.stderr)
            return 1
        tasks = {name: Task(lambda _, call=call: call()) for name, call in calls.items()}  # type: ignore[misc]
        times = interleaved(tasks, Effort(asked.seconds))
    about = (
        f"{machine.describe()['cpu']}, {asked.threads} threads; {asked.scene}, {len(scene.means):,} Gaussians, "
        f"{width}x{height} pixels, embeddings of {WIDTH} numbers. Medians."
    )
    text = report(times, found, about)
    stem = asked.out / f"{machine.slug(machine.describe())}-queries"
    rows = {name: {"ms": t.median, "rounds": t.rounds} for name, t in times.items()}
    content = {"machine": machine.describe(), "about": about, "agreement": found, "ways": rows}
    write_whole(stem.with_suffix(".json"), to_json(content, indent=1) + "\n")
    write_whole(stem.with_suffix(".md"), text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Answers of a run with language as files: `gsfields query` and `gsfields eval openvocab`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsfields.data.motion_masks import write_mask
from gsfields.data.openvocab_labels import OpenVocabLabels, open_labels, view_of
from gsfields.evaluate import openvocab
from gsfields.evaluate.openvocab import AssignmentScores, OpenVocabScores, Protocol, RetrievalScores
from gsfields.fields.prompt_scales import PromptScales
from gsfields.files import to_json, written_whole
from gsfields.fit.language_runs import FOLDER, Language
from gsfields.fit.querying import Askable
from gsfields.pictures import contact_sheet, grey, save_png

_USUAL_WIDTH = 1000  # pixels of the images that LangSplat's blur is meant for
_OPAQUE = 0.5  # where a scene is less so there is nothing


@dataclass(frozen=True)
class Found:
    """Of one prompt in one view."""

    prompt: str
    x: int  # the best pixel: column
    y: int  # and row
    relevancy: float  # there
    pixels: int  # of the mask
    gaussians: int  # that are selected
    scale: float | None  # that the prompt means, in [0, 1); None where it is not asked


@dataclass(frozen=True)
class QueryReport:
    """What was found, and how long it took."""

    view: str
    folder: Path
    found: tuple[Found, ...]
    opened: float  # seconds until a view can be asked: loading, composite embeddings, directions
    first: float  # seconds of the view: its plan, and the directions that are blended
    further: float  # seconds of all prompts after that
    bound: float  # no relevancy is further from that of the whole embeddings
    channels: tuple[tuple[int, int], ...]  # (principal directions, pixels for which so many were blended)

    def __str__(self) -> str:
        wide = max(len("prompt"), *(len(f.prompt) for f in self.found))
        lines = [
            f"{'prompt':<{wide}}  relevancy  at (x, y)     pixels  Gaussians  scale",
            *(
                f"{f.prompt:<{wide}}  {f.relevancy:9.3f}  {f'({f.x}, {f.y})':<12}  {f.pixels:6d}  {f.gaussians:9d}  "
                + ("    -" if f.scale is None else f"{f.scale:5.2f}")
                for f in self.found
            ),
            f"view {self.view}: {self.opened:.2f} s to begin, {1e3 * self.first:.0f} ms for what all prompts share, "
            f"{1e3 * self.further / len(self.found):.1f} ms a prompt; relevancy "
            + (f"to {self.bound:.0e}" if self.bound else "exact"),
            f"files: {self.folder}",
        ]
        return "\n".join(lines)


def query(
    run: str | Path,
    prompts: Sequence[str],
    *,
    view: str | None = None,
    data: str | None = None,
    embeddings: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Iterable[tuple[str, str | None]] = (),
) -> QueryReport:
    """Ask a view of a run for prompts and write what it answers into a folder, whole or not at all.

    The folder (RUN/language/queries by default) holds, for the prompt number k from 1 on, relevancy/<k>.png (16 bits,
    65535 = 1; see `where_shown`), masks/<k>.png, of all prompts gaussians.npy (float32 [N, Q], relevancy of each
    Gaussian), queries.json and sheet.png: the photo, relevancy and mask of each prompt. An earlier answer there is
    replaced. overrides: of the section query of the configuration.

    Raises ValueError for bad arguments, FileNotFoundError where something is missing.
    """
    prompts = list(dict.fromkeys(prompts))
    if not prompts:
        raise ValueError("prompts are empty, but there must be at least one")
    started = time.monotonic()
    language = Language.open(run, data=data, embeddings=embeddings, overrides=overrides)
    index = language.index_of(view)
    texts, scales = language.texts.of(prompts), language.scales_of(prompts)
    opened = time.monotonic() - started
    queries = language.view(index)
    first = time.monotonic() - started - opened
    answer = queries.ask(texts)
    further = time.monotonic() - started - opened - first
    answer = language.as_taken(index, answer)
    relevancy = where_shown(answer.relevancy, answer.alpha)
    of_gaussians = language.of_gaussians(prompts)
    protocol = protocol_for(relevancy.shape[1])
    masks = [openvocab.segment(maps[None], protocol)[0] for maps in relevancy.unbind(-1)]
    found = []
    for k, prompt in enumerate(prompts):
        best = int(relevancy[..., k].argmax())
        y, x = divmod(best, relevancy.shape[1])
        found.append(
            Found(
                prompt, x, y, float(relevancy[y, x, k]), int(masks[k].sum()),
                int(selected(of_gaussians[:, k], protocol).sum()), scales[k],
            )
        )  # fmt: skip
    folder = Path(out) if out is not None else Path(run) / FOLDER / "queries"
    stem = language.dataset.views[index].stem
    report = QueryReport(stem, folder, tuple(found), opened, first, further, answer.bound, queries.channels)
    photo = _photo(language, index, relevancy.shape[:2])
    _write(folder, report, photo, relevancy, masks, of_gaussians)
    return report


def selected(scores: Tensor, protocol: Protocol) -> Tensor:
    """bool [N]: the Gaussians whose relevancy [N] is as high in its range as a pixel's must be for the mask."""
    if len(scores) == 0:
        return torch.zeros(0, dtype=torch.bool)
    low, high = scores.aminmax()
    return scores > low + 0.5 * (1 + protocol.threshold) * (high - low)


def where_shown(relevancy: Tensor, alpha: Tensor) -> Tensor:
    """Relevancy [..., H, W, Q] by what alpha [H, W] shows: where that is nothing, the least that a map has elsewhere,
    and 0 in a view of nothing at all.

    Masks are cut at a share of a map's range, which ends at what the scene says: relevancies of real embeddings may all
    lie between 0.4 and 0.6, and some empty pixels of 0 would put everything else into the mask.
    """
    seen = alpha[..., None] > _OPAQUE
    if not bool(seen.any()):
        return torch.zeros_like(relevancy)
    least = torch.where(seen, relevancy, 1.0).amin(dim=(-3, -2), keepdim=True)
    return torch.where(seen, relevancy, least)


def protocol_for(width: int) -> Protocol:
    """LangSplat's, with its blur of 30 pixels in proportion to images that are much smaller than it is meant for."""
    usual = openvocab.LANGSPLAT
    if width >= _USUAL_WIDTH // 2:
        return usual
    return replace(usual, kernel=max(1, round(usual.kernel * width / _USUAL_WIDTH)))


def _photo(language: Language, index: int, shape: Sequence[int]) -> Tensor:
    """[H, W, 3] of a view on the grid of its answer."""
    image = language.dataset.views[index].image()
    resized = torch.nn.functional.interpolate(image.permute(2, 0, 1)[None], tuple(shape), mode="area")
    return resized[0].permute(1, 2, 0)


def _write(
    folder: Path, report: QueryReport, photo: Tensor, relevancy: Tensor, masks: list[Tensor], scores: Tensor
) -> None:
    rows = []
    with written_whole(folder) as new:
        for name in ("relevancy", "masks"):
            (new / name).mkdir(parents=True)
        for k, (maps, mask) in enumerate(zip(relevancy.unbind(-1), masks), start=1):
            write_mask(new / "relevancy" / f"{k}.png", maps.numpy())
            write_mask(new / "masks" / f"{k}.png", mask.float().numpy(), bits=8)
            shown = torch.where(mask[..., None], photo, 0.25 * photo)
            rows.append([photo, grey(maps), shown])
        np.save(new / "gaussians.npy", scores.numpy().astype(np.float32))
        table = [vars(found) | {"number": k} for k, found in enumerate(report.found, start=1)]
        times = {"opened": report.opened, "first": report.first, "further": report.further}
        content = {"view": report.view, "prompts": table, "seconds": times, "error": report.bound}
        content |= {"directions_and_pixels": report.channels}
        (new / "queries.json").write_text(to_json(content, indent=1) + "\n")
        save_png(contact_sheet(rows, ["photo", "relevancy", "mask"]), new / "sheet.png")


# -------------------------------------------------------------------------------------------------------- evaluation


def evaluate_openvocab(
    run: str | Path,
    *,
    data: str | None = None,
    truth: str | Path | None = None,
    scene: str | None = None,
    embeddings: str | Path | None = None,
    overrides: Iterable[tuple[str, str | None]] = (),
) -> tuple[Path, str]:
    """Score RUN/language on labelled views: IoU and localisation by LangSplat's pipeline on the one map of each prompt,
    and for layouts of 3D-OVS also by its assignment of each pixel to one prompt.

    truth: what gsfields.data.openvocab_labels.open_labels takes, and the name of the scene there; default: the run's
    data. Labelled views may be training views, as LERF-OVS has them. overrides: of the section query of the
    configuration. Returns RUN/openvocab.json and a table.

    Raises ValueError where no labelled view is in the data, or prompts have no embeddings.
    """
    language = Language.open(run, data=data, embeddings=embeddings, overrides=overrides)
    labels = open_labels(truth if truth is not None else language.checkpoint.config.data.path, scene)
    scores, assigned, retrieved = scored(language, labels)
    content: dict[str, Any] = {"labels": labels.protocol, "views": len({row.frame for row in scores.rows})}
    content |= {"langsplat": scores.to_dict()}
    table = [f"{labels.protocol}, rendered relevancy, blur of {scores.protocol.kernel} pixels", str(scores)]
    if assigned is not None:
        content |= {"assignment": assigned.to_dict()}
        table.append(
            f"each pixel to its most relevant prompt: mIoU {100 * assigned.miou:.1f}, accuracy "
            f"{100 * assigned.accuracy:.1f}"
        )
    if retrieved.hits:
        content |= {"retrieval": retrieved.to_dict()}
        table.append(str(retrieved))
    path = Path(run) / "openvocab.json"
    with written_whole(path) as temporary:
        temporary.write_text(to_json(content, indent=2) + "\n")
    return path, "\n".join(table)


def scored(
    language: Language, labels: OpenVocabLabels, scales: Sequence[float] | None = None
) -> tuple[OpenVocabScores, AssignmentScores | None, RetrievalScores]:
    """Scores of a run's language on labels; those of retrieval are of views whose segments are known, if any.

    scales: those among which each prompt chooses the best in each view, as levels; default: Language.asked, one map.
    """
    views = language.dataset.views
    placed = {stem: view_of(stem, [view.stem for view in views]) for stem in labels.stems}
    chosen = {stem: index for stem, index in placed.items() if index is not None}
    if not chosen:
        raise ValueError(
            f"none of the {len(placed)} labelled views of {labels.root} is in the data of the run"
        )
    asked = [language.asked] if scales is None else [language.at(scale) for scale in scales]
    scores: OpenVocabScores | None = None
    retrieved = RetrievalScores()
    assigned = AssignmentScores() if labels.protocol == "3d-ovs" and scales is None else None
    for stem, index in chosen.items():
        truths = labels.of(stem)
        if not truths:
            continue
        height, width = truths[0].mask.shape
        if scores is None:
            scores = OpenVocabScores(protocol_for(width), labels.kinds)
        maps = relevancy_maps(language, index, asked, [t.prompt for t in truths], (height, width))
        for k, item in enumerate(truths):
            scores.add(stem, maps[..., k], item)
        if scales is None and (segments := _segments(language, index, (height, width))) is not None:
            for k, item in enumerate(truths):
                retrieved.add(maps[0, ..., k], segments, item)
        if assigned is not None:
            assigned.add(stem, maps[0].permute(2, 0, 1), truths)
    if scores is None:
        raise ValueError(f"none of the {len(chosen)} labelled views of {labels.root} has a label")
    return scores, assigned, retrieved


def _segments(language: Language, index: int, shape: tuple[int, int]) -> Tensor | None:
    """int32 [L, H, W] those that the features have of a view's photo, on a grid of it."""
    source, view = language.features, language.dataset.views[index]
    found = None if source is None else source.taken(view)
    if found is None:
        return None
    y, x = (
        ((torch.arange(here) + 0.5) * there / here).long()
        for here, there in zip(shape, found.segments.shape[1:], strict=True)
    )
    return found.segments[:, y[:, None], x]


@torch.no_grad()
def relevancy_maps(
    language: Language,
    index: int,
    asked: Sequence[Askable | PromptScales],
    prompts: Sequence[str],
    shape: tuple[int, int],
) -> Tensor:
    """[L, H, W, Q] in (0, 1), of a view on a grid of its photo, one level for each of `asked`; see `where_shown`."""
    texts = language.texts.of(prompts)
    levels = []
    for embeddings in asked:
        answer = language.as_taken(index, language.view(index, embeddings).ask(texts))
        levels.append(where_shown(answer.relevancy, answer.alpha))
    maps = torch.stack(levels)
    if maps.shape[1:3] == shape:
        return maps
    flat = maps.permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(flat, shape, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1)

"""Train a radiance field for a budget of wall-clock time, and evaluate it on the way."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines.neuraldiff.evaluate import Evaluation
from benchmarks.baselines.neuraldiff.fields import LAYERS
from benchmarks.baselines.neuraldiff.losses import FusionWeights
from benchmarks.baselines.neuraldiff.train import (
    PRESETS,
    Clock,
    Trainer,
    half_is_fast,
    processor_time,
    scaled,
    with_neighbours,
)
from gsfields.data import load_dataset
from gsfields.evaluate.udos_annotations import Annotations
from gsfields.files import to_json

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "processor": processor_time}

OVERRIDES = {  # of a preset: the command's flag -> the recipe's name
    "trunk_width": "width",
    "trunk_depth": "depth",
    "head_width": "head_width",
    "head_depth": "head_depth",
    "time_frequencies": "time_frequencies",
    "rays": "rays",
    "samples": "samples",
    "learning_rate": "learning_rate",
}


def main(arguments: list[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    metrics = asked.out / "metrics.jsonl"
    if metrics.exists():
        print(f"{metrics} exists: choose another --out, or remove it", file=sys.stderr)
        return 2
    try:
        recipe = scaled(PRESETS[asked.preset], **{k: getattr(asked, flag) for flag, k in OVERRIDES.items()})
        dataset = load_dataset(asked.data, width=asked.width, split_every=asked.split_every)
        annotations = Annotations.open(asked.data) if (asked.data / "annotations").is_dir() else None
        refined = _frames(asked.refine_frames, [view.stem for view in dataset.views])
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    fusion = FusionWeights(asked.pmf, asked.nmf)
    device = torch.device(asked.device)
    half = half_is_fast(device) if asked.precision == "auto" else asked.precision == "half"
    trainer = Trainer(dataset, asked.model, recipe, fusion, half=half, seed=asked.seed, device=device)
    asked.out.mkdir(parents=True, exist_ok=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()}
    (asked.out / "settings.json").write_text(
        to_json({**settings, "half": half, "recipe": str(recipe)}, indent=1)
    )
    print(
        f"{asked.model}: {_count(trainer)} parameters, {len(trainer.pixels)} pixels of {len(dataset.train)} frames"
    )

    evaluation = Evaluation(asked.out, annotations, pictures=6)
    clock = CLOCKS[asked.clock]

    def pause() -> None:
        last = trainer.seconds >= 60 * asked.minutes
        some = None if last else _evenly(len(dataset.views), asked.eval_frames)
        _report(evaluation.run(trainer, some, stage="trained" if last else "training"))

    trainer.run(
        60 * asked.minutes, [60 * minutes for minutes in (*asked.eval_at, asked.minutes)], pause, clock
    )
    if refined:
        _report(evaluation.run(trainer, refined, stage="before refinement"))
        seconds = trainer.refine(
            with_neighbours(dataset, refined, asked.refine_window), asked.refine_steps, clock
        )
        notes = {
            "stage": "refined",
            "refine_seconds": seconds,
            "refine_seconds_per_frame": seconds / len(refined),
        }
        _report(evaluation.run(trainer, refined, **notes))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines.neuraldiff", description=__doc__)
    parser.add_argument("data", type=Path, help="a dataset in any format of gsfields")
    parser.add_argument("--out", type=Path, required=True, help="folder for masks and metrics.jsonl")
    parser.add_argument("--model", choices=LAYERS, default="neuraldiff")
    parser.add_argument("--preset", choices=PRESETS, default="released")
    parser.add_argument("--pmf", type=float, default=0.0, help="weight of positive motion fusion (LMF: 1.1)")
    parser.add_argument("--nmf", type=float, default=0.0, help="weight of negative motion fusion (LMF: 1.0)")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time, evaluations not counted")
    parser.add_argument(
        "--eval-at", type=_numbers, default=[], metavar="1,2,5", help="minutes; the end is always"
    )
    parser.add_argument("--eval-frames", type=int, default=0, help="evenly spaced, until the end; 0: all")
    parser.add_argument("--refine-frames", default="", metavar="A,B", help="stems of images, or all")
    parser.add_argument("--refine-steps", type=int, default=1000)
    parser.add_argument("--refine-window", type=int, default=0, help="neighbours on either side (LMF: 0)")
    parser.add_argument("--width", type=int, help="of the images, pixels")
    parser.add_argument("--split-every", type=int, default=0, help="hold out each such view; 0: none")
    parser.add_argument("--precision", choices=("auto", "half", "single"), default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: where others use the machine"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    kinds: dict[str, Callable[[str], Any]] = {"samples": _pair, "learning_rate": float}
    for flag in OVERRIDES:
        parser.add_argument(
            f"--{flag.replace('_', '-')}",
            type=kinds.get(flag, int),
            metavar="N",
            help="instead of the preset's",
        )
    return parser


def _evenly(count: int, wanted: int) -> list[int]:
    wanted = min(wanted or count, count)
    return [k * count // wanted for k in range(wanted)]


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


def _pair(text: str) -> tuple[int, int]:
    coarse, added = text.split(",")
    return int(coarse), int(added)


def _frames(asked: str, stems: list[str]) -> list[int]:
    if asked == "all":
        return list(range(len(stems)))
    names = [name for name in asked.split(",") if name]
    unknown = [name for name in names if name not in stems]
    if unknown:
        raise ValueError(
            f"--refine-frames must name images such as {stems[0]!r}, or be all, but holds {unknown[0]!r}"
        )
    return [stems.index(name) for name in names]


def _count(trainer: Trainer) -> int:
    return sum(p.numel() for module in (trainer.coarse, trainer.fine) for p in module.parameters())


def _report(line: dict[str, object]) -> None:
    print(to_json(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())

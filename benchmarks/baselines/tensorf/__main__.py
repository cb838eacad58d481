"""Train the neural field of Contrastive Lift for a budget of time: geometry and colour, then instances."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.neuraldiff.train import Clock, processor_time
from benchmarks.baselines.tensorf.rays import LabelledPixels
from benchmarks.baselines.tensorf.train import RECIPES, Loss, Trainer
from gsfields.data import Dataset, load_dataset
from gsfields.data.segments import open_segments
from gsfields.evaluate.image import psnr
from gsfields.files import to_json
from gsfields.losses import contrastive
from gsfields.pictures import contact_sheet, save_png

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "processor": processor_time}
PICTURES = 6  # frames on the contact sheet


def slow_fast(fast: Tensor, slow: Tensor, labels: Tensor) -> Tensor:
    """Slow-fast and concentration as released: the first half of the pixels against the second."""
    half = len(labels) // 2
    return contrastive.slow_fast_and_concentration(
        fast[:half], slow[half:], labels[:half], labels[half:], form="released"
    )


def vanilla(fast: Tensor, slow: Tensor, labels: Tensor) -> Tensor:
    return contrastive.vanilla(fast, labels, form="released")


def linear_assignment(logits: Tensor, slow: Tensor, labels: Tensor) -> Tensor:
    return contrastive.linear_assignment(logits, labels, form="released")


LOSSES: dict[str, tuple[Loss, bool]] = {  # and whether it takes a slow network
    "slow-fast": (slow_fast, True),
    "vanilla": (vanilla, False),
    "linear-assignment": (linear_assignment, False),
}


def main(arguments: list[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if (asked.out / "metrics.jsonl").exists():
        print(f"{asked.out / 'metrics.jsonl'} exists: choose another --out, or remove it", file=sys.stderr)
        return 2
    try:
        dataset = load_dataset(asked.data, width=asked.width, split_every=asked.split_every)
        pixels = LabelledPixels(training_ids(dataset, asked.segments or asked.data), _generator(asked.seed))
        bounds = None if asked.bounds is None else torch.tensor(asked.bounds).reshape(2, 3)
        recipe = RECIPES[asked.recipe]
        trainer = Trainer(dataset, recipe, asked.seed, bounds=bounds, device=asked.device)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    asked.out.mkdir(parents=True, exist_ok=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()}
    (asked.out / "settings.json").write_text(to_json({**settings, "recipe": str(recipe)}, indent=1))

    clock, seconds = CLOCKS[asked.clock], 60 * asked.minutes
    trainer.train_geometry(seconds * asked.geometry_share, clock)
    shown = _evenly(dataset.test or dataset.train, asked.eval_frames)
    _report(asked.out, geometry_line(trainer, shown))
    trainer.freeze(cache=asked.cache)
    loss, slow = LOSSES[asked.loss]
    trainer.new_head(asked.features, slow="own" if slow else None, seed=asked.seed)
    last = trainer.train_instances(seconds * (1 - asked.geometry_share), pixels, loss, clock)
    _report(asked.out, {**cost(trainer, "instances"), "loss": last})
    save_png(contact_sheet(*sheet(trainer, shown)), asked.out / "fields.png")
    return 0


def training_ids(dataset: Dataset, segments: Path) -> dict[int, Tensor]:
    """The segments [H, W] of the training frames that have some, 0 where the photo shows nothing."""
    source = open_segments(segments)
    found = {index: source.of(dataset.views[index]) for index in dataset.train}
    return {index: said.ids for index, said in found.items() if said is not None}


def geometry_line(trainer: Trainer, frames: Sequence[int]) -> dict[str, Any]:
    """What training geometry cost, and the PSNR of these frames."""
    scores, seconds = [], []
    for index in frames:
        view, start = trainer.dataset.views[index], time.perf_counter()
        color = trainer.render_frame(index)["color"]
        seconds.append(time.perf_counter() - start)
        scores.append(psnr(color, view.image(), view.mask()))
    occupied = trainer.grid.occupied
    return {
        **cost(trainer, "geometry"),
        "seconds_per_frame": median(seconds),
        "psnr": fmean(scores),
        "held_out": bool(trainer.dataset.test),
        "nodes": trainer.grid.resolution,
        "occupied": None if occupied is None else float(occupied.float().mean()),
    }


def sheet(trainer: Trainer, frames: Sequence[int]) -> tuple[list[list[Tensor]], tuple[str, ...]]:
    """Rows of pictures, and their titles."""
    rows = []
    for index in _evenly(frames, PICTURES):
        rendered = trainer.render_frame(index)
        depth = rendered["depth"] / rendered["depth"].max().clamp(min=1e-6)
        pictures = [rendered["color"], depth[..., None].expand(-1, -1, 3), _as_colors(rendered["features"])]
        rows.append([trainer.dataset.views[index].image(), *pictures])
    return rows, ("image", "rendered", "depth", "features")


def _as_colors(features: Tensor) -> Tensor:
    """The three strongest directions of features [H, W, D] as colours [H, W, 3]."""
    centered = features.flatten(0, 1) - features.mean((0, 1))
    axes = torch.linalg.svd(centered, full_matrices=False).Vh[:3]
    shown = torch.nn.functional.pad(centered @ axes.T, (0, 3 - len(axes)))
    low, high = torch.quantile(shown[:: 1 + len(shown) // 100_000], torch.tensor([0.02, 0.98]), dim=0)
    return ((shown - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).reshape(*features.shape[:2], 3)


def cost(trainer: Trainer, stage: str) -> dict[str, Any]:
    """What this stage of the training took."""
    iterations = trainer.iterations[stage]
    return {
        "stage": stage,
        "iterations": iterations,
        "seconds": trainer.seconds[stage],
        "seconds_per_iteration": trainer.seconds[stage] / max(1, iterations),
        "rays": trainer.recipe.rays if stage == "geometry" else trainer.recipe.instance_rays,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines.tensorf", description=__doc__)
    parser.add_argument("data", type=Path, help="a dataset in any format of gsfields")
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.jsonl and fields.png")
    parser.add_argument("--segments", type=Path, help="2D segments, if they do not lie in the dataset")
    parser.add_argument("--recipe", choices=RECIPES, default="released")
    parser.add_argument("--loss", choices=LOSSES, default="slow-fast")
    parser.add_argument("--features", type=int, default=3, help="embedding dimensions, or identities")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time, evaluations not counted")
    parser.add_argument("--geometry-share", type=_share, default=0.7, help="of the minutes")
    parser.add_argument("--cache", action="store_true", help="keep what training rays see of the geometry")
    parser.add_argument("--bounds", type=float, nargs=6, metavar="X", help="the field's box: its two corners")
    parser.add_argument("--eval-frames", type=int, default=10, help="evenly spaced; 0: all")
    parser.add_argument("--width", type=int, help="of the images, pixels")
    parser.add_argument("--split-every", type=int, default=8, help="hold out each such view; 0: none")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: where others use the machine"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"a share must lie between 0 and 1, but is {text}")
    return share


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _evenly(items: Sequence[int], wanted: int) -> list[int]:
    wanted = min(wanted or len(items), len(items))
    return [items[k * len(items) // wanted] for k in range(wanted)]


def _report(out: Path, line: dict[str, Any]) -> None:
    with (out / "metrics.jsonl").open("a") as file:
        file.write(to_json(line) + "\n")
    print(to_json(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())

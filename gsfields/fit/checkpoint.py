"""What a run leaves on disk: checkpoints, each written whole or not at all, and metrics as JSON lines.

RUN/checkpoint-000123/
    scene.safetensors      the Gaussians, or the layers
    optimizer.safetensors  Adam's moments, the generator, the order of the images, densification statistics
    config.yaml            the configuration of the run
    meta.json              format version, gsfields version, step, seconds, metrics
RUN/metrics.jsonl          one JSON object per line, each with a `kind` and a `step`

No pickle is written or read.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

import gsfields
from gsfields import config as configuration
from gsfields.config import Config
from gsfields.files import to_json, written_whole
from gsfields.gaussians import Gaussians
from gsfields.layers import LayeredScene

FORMAT = 1
Scene = Gaussians | LayeredScene
_NAME = re.compile(r"checkpoint-(\d{6,})")


@dataclass
class Checkpoint:
    """A run at one step."""

    scene: Scene
    config: Config
    step: int
    state: dict[str, Tensor] = field(default_factory=dict)  # all that resuming needs beside the Gaussians
    seconds: float = 0.0  # spent so far
    metrics: dict[str, Any] = field(default_factory=dict)  # of the last evaluation

    @property
    def gaussians(self) -> Gaussians:
        """The scene; of a layered one its static layer."""
        return self.scene.static if isinstance(self.scene, LayeredScene) else self.scene

    def save(self, run: str | Path, *, keep: int = 2) -> Path:
        """Write RUN/checkpoint-<step>, then remove all but the newest `keep`; returns its folder."""
        run = Path(run)
        run.mkdir(parents=True, exist_ok=True)
        path = run / f"checkpoint-{self.step:06d}"
        with written_whole(path) as folder:
            folder.mkdir()
            self.scene.save(folder / "scene.safetensors")
            state = {name: value.detach().cpu().contiguous() for name, value in self.state.items()}
            safetensors.torch.save_file(state, folder / "optimizer.safetensors")
            (folder / "config.yaml").write_text(configuration.dump(self.config))
            meta = {
                "format": FORMAT,
                "gsfields": gsfields.__version__,
                "step": self.step,
                "seconds": self.seconds,
                "gaussians": len(self.scene),
                "metrics": self.metrics,
            }
            (folder / "meta.json").write_text(to_json(meta, indent=2) + "\n")
        for old in list_checkpoints(run)[:-keep]:
            shutil.rmtree(old)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """The checkpoint in folder `path`, or the newest of the run in that folder.

        Raises FileNotFoundError where there is none, ValueError where it is of another format or damaged.
        """
        path = Path(path)
        if not (path / "meta.json").is_file():
            found = list_checkpoints(path)
            if not found:
                raise FileNotFoundError(
                    f"{path} holds no checkpoint: is it the folder that a fit wrote to (--out)?"
                )
            path = found[-1]
        try:
            meta = json.loads((path / "meta.json").read_text())
            written = meta["format"]
            if written == FORMAT:
                config = configuration.load(path / "config.yaml")
                kind = LayeredScene if config.fit.model == "layered" else Gaussians
                return cls(
                    scene=kind.load(path / "scene.safetensors"),
                    config=config,
                    step=int(meta["step"]),
                    state=safetensors.torch.load_file(path / "optimizer.safetensors"),
                    seconds=float(meta["seconds"]),
                    metrics=meta["metrics"],
                )
        except (OSError, KeyError, TypeError, json.JSONDecodeError, safetensors.SafetensorError) as error:
            raise ValueError(f"{path} is damaged ({error})") from None
        raise ValueError(f"{path} is of format {written}, but this gsfields reads format {FORMAT}")


def list_checkpoints(run: str | Path) -> list[Path]:
    """Folders of the run's whole checkpoints, oldest first. Empty where there are none."""
    run = Path(run)
    if not run.is_dir():
        return []
    found = [p for p in run.iterdir() if _NAME.fullmatch(p.name) and (p / "meta.json").is_file()]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]))


def remove_run(run: str | Path) -> None:
    """Delete the checkpoints, masks, instances, scores and metrics in `run`, and nothing else."""
    folders = [
        Path(run) / "refined",
        Path(run) / "consensus",
        Path(run) / "instances",
        *(Path(run) / "masks" / layer for layer in ("dynamic", "semistatic")),
    ]
    for path in [*list_checkpoints(run), *(folder for folder in folders if folder.is_dir())]:
        shutil.rmtree(path)
    for name in ("metrics.jsonl", "eval.json", "udos.json", "panoptic.json"):
        (Path(run) / name).unlink(missing_ok=True)


class MetricsLog:
    """RUN/metrics.jsonl. Starting at step s drops what a killed run wrote after its checkpoint at s."""

    def __init__(self, run: str | Path, start_step: int) -> None:
        self.path = Path(run) / "metrics.jsonl"
        kept = [line for line in read_metrics(run) if line["step"] <= start_step] if start_step else []
        with written_whole(self.path) as temporary:
            temporary.write_text("".join(to_json(line) + "\n" for line in kept))

    def write(self, kind: str, step: int, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(to_json({"kind": kind, "step": step, **values}) + "\n")


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """All whole lines of RUN/metrics.jsonl; a last line cut short by a kill is left out."""
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines

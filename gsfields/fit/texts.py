"""Where the embeddings of prompts come from: a file, or the CLIP that the features of a scene were made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsfields.data.language_features import FeatureSource, TextEmbeddings

TEXTS = "text_embeddings.npz"


@dataclass
class Texts:
    """Embeddings of prompts: those of a file, and others by a model, which is loaded when it is first needed.

    Raises ValueError in `of` for a prompt of which neither knows anything.
    """

    width: int  # E
    file: TextEmbeddings | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # of the features; names the model
    _model: Any = None
    _heard: dict[str, Tensor] = field(default_factory=dict)  # what the model has said

    def known(self, prompts: Sequence[str]) -> list[str]:
        """Those that `of` can answer; all, where there is a model."""
        if self.file is None or self.settings:
            return list(prompts)
        return [prompt for prompt in prompts if prompt in self.file.prompts]

    def of(self, prompts: Sequence[str]) -> Tensor:
        """[n, E] of length 1."""
        if not prompts:
            raise ValueError("prompts are empty, but there must be at least one")
        there = [] if self.file is None else [p for p in prompts if p in self.file.prompts]
        others = [prompt for prompt in prompts if prompt not in there]
        if others and not self.settings:
            assert self.file is not None  # find_texts
            self.file.of(others)  # says what is missing
        found: dict[str, Tensor] = {}
        if there and self.file is not None:
            found |= dict(zip(there, self.file.of(there)))
        if new := [prompt for prompt in dict.fromkeys(others) if prompt not in self._heard]:
            self._heard |= dict(zip(new, self._encoded(new)))
        found |= {prompt: self._heard[prompt] for prompt in others}
        return torch.stack([found[prompt] for prompt in prompts])

    def _encoded(self, prompts: list[str]) -> Tensor:
        if self._model is None:
            from gsfields.priors.clip import load_clip

            self._model = load_clip(self.settings["clip_model"], self.settings["clip_pretrained"])
            if self._model.dim != self.width:
                raise ValueError(
                    f"embeddings of {self.settings['clip_model']} have {self._model.dim} numbers, but those of the "
                    f"run {self.width}"
                )
        return torch.as_tensor(self._model.texts(prompts)).cpu()


def find_texts(embeddings: str | Path | None, nearby: Sequence[Path], origin: Path, width: int) -> Texts:
    """What there is: the file that is given, or text_embeddings.npz in a folder of `nearby`; and the model that the
    features in `origin` were made with.

    Raises ValueError where there is neither, or the file has embeddings of another width.
    """
    path = Path(embeddings) if embeddings is not None else None
    if path is None:
        path = next((folder / TEXTS for folder in nearby if (folder / TEXTS).is_file()), None)
    file = None if path is None else TextEmbeddings.load(path)
    if file is not None and file.embeddings.shape[1] != width:
        raise ValueError(
            f"embeddings in {path} have {file.embeddings.shape[1]} numbers, but those of the run {width}"
        )
    settings = FeatureSource(origin).settings if origin.is_dir() else {}
    if "clip_model" not in settings:
        settings = {}
    if file is None and not settings:
        raise ValueError(
            f"prompts have no embeddings: give --embeddings FILE, an npz with prompts and embeddings, or put it as "
            f"{TEXTS} beside the features (they do not say which CLIP they were made with)"
        )
    return Texts(width, file, dict(settings))

"""The videos of the fusion benchmark, made once each and kept: `<scenes>/seed0-60-228x128[-option=value…]`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from gsfields.data.egocentric import EgocentricConfig, EgocentricFrame, EgocentricSequence
from gsfields.data.egocentric_files import save_sequence
from gsfields.data.segmenter import SegmenterConfig


@dataclass(frozen=True)
class Video:
    """One generated video: a seed, a size, and what differs from the generator's and the segmenter's defaults."""

    seed: int
    frames: int
    width: int
    height: int
    options: dict[str, Any] = field(default_factory=dict)  # of EgocentricConfig
    segmenter: dict[str, Any] = field(default_factory=dict)  # of SegmenterConfig

    @property
    def name(self) -> str:
        options = [f"{name}={value}" for name, value in (self.options | self.segmenter).items()]
        return "-".join([f"seed{self.seed}", str(self.frames), f"{self.width}x{self.height}", *options])

    def folder(self, scenes: Path) -> Path:
        return scenes / self.name

    def make(self, scenes: Path, jobs: int = 1) -> Path:
        """Render the video with its 2D masks, unless it is there; returns its folder."""
        folder = self.folder(scenes)
        if not folder.exists():
            scenes.mkdir(parents=True, exist_ok=True)
            config = EgocentricConfig(
                seed=self.seed, frames=self.frames, width=self.width, height=self.height, **self.options
            )
            sequence = ManyProcesses(config, jobs) if jobs > 1 else EgocentricSequence(config)
            save_sequence(folder, sequence, SegmenterConfig(**self.segmenter), layout="transforms")
        return folder


class ManyProcesses(EgocentricSequence):
    """A sequence whose stream is rendered by several processes: half of a frame's time holds Python's lock."""

    def __init__(self, config: EgocentricConfig, jobs: int) -> None:
        super().__init__(config)
        self.jobs = jobs

    def stream(self, workers: int = 1, first: int = 0) -> Iterator[EgocentricFrame]:
        """All frames in order from `first`; a few per process wait to be taken."""
        context = get_context("spawn")  # a fork would copy torch's threads in whatever state they are
        with ProcessPoolExecutor(self.jobs, context, initializer=_prepare, initargs=(self.config,)) as pool:
            ahead: deque[Future[EgocentricFrame]] = deque()
            for index in range(first, len(self)):
                ahead.append(pool.submit(_render, index))
                if len(ahead) > 4 * self.jobs:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


_sequence: EgocentricSequence  # of a process of the pool


def _prepare(config: EgocentricConfig) -> None:
    global _sequence
    _sequence = EgocentricSequence(config)


def _render(index: int) -> EgocentricFrame:
    return _sequence.frame(index)

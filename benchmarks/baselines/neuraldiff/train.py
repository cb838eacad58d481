"""Training within a budget of wall-clock time, and test-time refinement."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from benchmarks.baselines.neuraldiff.fields import LAYERS, CoarseField, FieldSizes, LayeredField, Model
from benchmarks.baselines.neuraldiff.losses import FusionWeights, fusion_loss, neuraldiff_loss, total
from benchmarks.baselines.neuraldiff.rays import TrainingPixels, Video
from benchmarks.baselines.neuraldiff.render import Rays, Rendered, layer_alone, render_rays
from gsfields.data import Dataset

LAST_LEARNING_RATE = 1e-8  # where the cosine ends
RAYS_AT_ONCE = 2048  # in rendering

Clock = Callable[[], float]


def processor_time() -> float:
    """Seconds of this process on its processors, shared among its threads: what a clock would show if nobody else
    used the machine.
    """
    return time.process_time() / torch.get_num_threads()


@dataclass(frozen=True)
class Recipe:
    """Sizes and optimisation; the defaults are the released code's."""

    sizes: FieldSizes = field(default_factory=FieldSizes)
    samples: tuple[int, int] = (64, 64)  # coarse, and added by importance
    rays: int = 1024  # per iteration
    learning_rate: float = 5e-4

    def __post_init__(self) -> None:
        if self.samples[0] < 3 or self.samples[1] < 1:
            raise ValueError(f"samples must be at least 3 coarse and 1 added, but are {self.samples}")
        counts = {
            k: v for k, v in {**vars(self), **vars(self.sizes)}.items() if k not in ("sizes", "samples")
        }
        for name, count in counts.items():
            if count <= 0:
                raise ValueError(f"{name} must be positive, but is {count}")


# "small" is for minutes on a CPU, where the released sizes see only a part of the pixels once.
PRESETS = {
    "released": Recipe(),
    "small": Recipe(FieldSizes(width=64, depth=4, head_width=64, head_depth=3), (24, 24), 256, 2e-3),
}


def half_is_fast(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32 there; EPIC Fields' code trains in float16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported())


class Trainer:
    """A model under training."""

    def __init__(
        self,
        dataset: Dataset,
        model: Model,
        recipe: Recipe,
        fusion: FusionWeights,
        *,
        half: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        torch.manual_seed(seed)
        self.dataset, self.recipe, self.fusion, self.half = dataset, recipe, fusion, half
        self.device = torch.device(device)
        self.layers = LAYERS[model]
        self.video = Video(dataset, self.device)
        self.coarse = CoarseField(recipe.sizes).to(self.device)
        self.fine = LayeredField(model, self.video.times, self.video.nearest, recipe.sizes).to(self.device)
        self.shuffle = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator(self.device).manual_seed(seed)
        self.seconds, self.iterations = 0.0, 0  # of training; refinement does not count
        self._train_on(dataset.train, [*self.coarse.parameters(), *self.fine.parameters()])

    def _train_on(self, frames: list[int], parameters: list[nn.Parameter]) -> None:
        self.pixels = TrainingPixels.of(self.dataset, frames, self.shuffle)
        self.batches = self.pixels.batches(self.recipe.rays, self.shuffle)
        self.optimizer = torch.optim.Adam(parameters, lr=self.recipe.learning_rate, eps=1e-8, fused=True)

    def render(self, rays: Rays, *, train: bool = False) -> Rendered:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return render_rays(
                self.coarse, self.fine, rays, self.recipe.samples, generator=self.noise, train=train
            )

    def losses(self) -> dict[str, Tensor]:
        """The terms of the loss on the next batch."""
        rows, pixels = next(self.batches), self.pixels
        frame = pixels.frame[rows].long()
        known = pixels.scored[frame].to(self.device)
        rays = self.video.rays(frame.to(self.device), pixels.pixel[rows].to(self.device))
        target = pixels.color[rows].to(self.device).float() / 255
        motion = pixels.motion[rows].to(self.device).float() / 255
        rendered = self.render(rays, train=True)
        masks = dict(zip(self.layers, rendered.fine.masks.unbind(-1), strict=True))
        return neuraldiff_loss(rendered, target) | fusion_loss(masks, motion, known, self.fusion)

    def step(self, progress: float) -> dict[str, Tensor]:
        """One iteration, at the learning rate of this share of the training."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        for group in self.optimizer.param_groups:
            group["lr"] = LAST_LEARNING_RATE + (self.recipe.learning_rate - LAST_LEARNING_RATE) * cosine
        terms = self.losses()
        total(terms).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return terms

    def run(
        self, seconds: float, at: list[float], pause: Callable[[], None], clock: Clock = time.perf_counter
    ) -> None:
        """Train for `seconds` of the clock, and call pause when `at` (seconds) have passed; a pause does not count.
        The learning rate follows the time.
        """
        stops = sorted({min(t, seconds) for t in at})
        while stops:
            start = clock()
            while self.seconds < stops[0]:
                self.step(self.seconds / seconds)
                self.iterations += 1
                now = clock()
                self.seconds, start = self.seconds + now - start, now
            stops.pop(0)
            pause()

    def refine(self, frames: list[int], steps: int, clock: Clock = time.perf_counter) -> float:
        """LMF's test-time refinement: only the moving heads change, on these frames -> seconds it took.

        The trunk, the static layer and the codes of the frames stay. LMF gives neither steps nor learning rate; this
        one's is the training's, with the same cosine.
        """
        start = clock()
        for module in (self.coarse, self.fine):
            module.requires_grad_(False)
        moving = self.fine.moving_parameters()
        for parameter in moving:
            parameter.requires_grad_(True)
        self._train_on(frames, moving)
        for k in range(steps):
            self.step(k / steps)
        return clock() - start

    @torch.no_grad()
    def render_frame(self, index: int) -> dict[str, Tensor]:
        """A frame on the CPU: its color [H, W, 3], the static_color [H, W, 3] of the static layer alone, and the
        masks [H, W] of the layers by their names.
        """
        width, height = self.video.size[index]
        rays, parts = self.video.frame_rays(index), []
        for start in range(0, len(rays), RAYS_AT_ONCE):
            rendered = self.render(rays[start : start + RAYS_AT_ONCE])
            alone = layer_alone(rendered.fine, rendered.samples, 0)
            parts.append(torch.cat([rendered.fine.color, alone, rendered.fine.masks], dim=-1))
        image = torch.cat(parts).reshape(height, width, -1).cpu()
        masks = dict(zip(self.layers, image[..., 6:].unbind(-1), strict=True))
        return {"color": image[..., :3], "static_color": image[..., 3:6], **masks}


def with_neighbours(dataset: Dataset, frames: list[int], window: int) -> list[int]:
    """The frames and up to `window` views on either side of each in time order (LMF equation 17)."""
    order = dataset.times().argsort(stable=True).tolist()
    place = {index: k for k, index in enumerate(order)}
    near = {
        order[k]
        for i in frames
        for k in range(max(0, place[i] - window), place[i] + window + 1)
        if k < len(order)
    }
    return sorted(near)


def scaled(recipe: Recipe, **changes: object) -> Recipe:
    """A recipe with other sizes, samples, rays or learning rate."""
    sizes = {k: v for k, v in changes.items() if v is not None and hasattr(recipe.sizes, k)}
    others = {k: v for k, v in changes.items() if v is not None and k not in sizes}
    return replace(recipe, sizes=replace(recipe.sizes, **sizes), **others)  # type: ignore[arg-type]

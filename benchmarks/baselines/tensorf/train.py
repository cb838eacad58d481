"""Training: first geometry and colour, then instances on the frozen geometry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.baselines.neuraldiff.rays import TrainingPixels
from benchmarks.baselines.neuraldiff.train import Clock, processor_time
from benchmarks.baselines.tensorf.fields import (
    DensityGrid,
    FieldSizes,
    InstanceHead,
    RadianceField,
    SlowStart,
    between,
    resolution_of,
)
from benchmarks.baselines.tensorf.rays import LabelledPixels, Scene
from benchmarks.baselines.tensorf.render import (
    VISIBLE,
    Grid,
    Rays,
    Rendered,
    Samples,
    distortion,
    render_color,
    weights_of,
)
from benchmarks.baselines.tensorf.surface import Surface, SurfaceCache
from gsfields.data import Dataset

NEAR = 0.01  # of rays, in the scene's lengths
EPOCHS = 10  # of the released schedule, which sets the weight of the distortion loss
SLOW_MOMENTUM = 0.9
LAST_LOSSES = 50  # of which train_instances returns the mean
RAYS_AT_ONCE = 4096  # in rendering

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # fast [P, D], slow [P, D], labels [P] -> scalar


@dataclass(frozen=True)
class Recipe:
    """Sizes and optimisation; the defaults are the released code's, its epochs given as shares of the training."""

    sizes: FieldSizes = field(default_factory=FieldSizes)
    nodes: tuple[int, int] = (128, 192)  # of a side of the grid, first and last
    grow_at: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)  # the grid is cropped to what is seen, and refined
    geometry_steps: int = 400_000
    rays: int = 2048
    instance_rays: int = 1024
    grid_learning_rate: float = 1e-2
    network_learning_rate: float = 5e-4
    instance_learning_rate: float = 5e-4
    decay: Literal["late", "exponential"] = "late"  # halved at nine tenths, or to a tenth all along (TensoRF)
    variation: tuple[float, float] = (0.1, 0.01)  # weights of total variation: density, appearance
    distortion: float = 5e-3
    seen_alpha: float = 0.17  # of the cells that the box must hold (in the released code's terms 0.0075)
    empty_alpha: float = 1e-3  # of the cells that are skipped (TensoRF's threshold is 2.5e-3)

    def __post_init__(self) -> None:
        if not 2 <= self.nodes[0] <= self.nodes[1]:
            raise ValueError(
                f"nodes must be two numbers from 2 up, the larger one last, but are {self.nodes}"
            )
        for name in ("geometry_steps", "rays", "instance_rays"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}")

    def learning_rate(self, progress: float) -> float:
        """The share of the learning rates at this share of the training."""
        return 0.1**progress if self.decay == "exponential" else 0.5 if progress >= 0.9 else 1.0


# "small" is for minutes on a CPU at 128 x 128, where the released sizes see few pixels once. Its space is not quite
# empty at first, so that light reaches all of it and density grows at once.
RECIPES = {
    "released": Recipe(),
    "small": Recipe(
        FieldSizes(appearance=16, appearance_features=15, color_width=64, density_shift=-5.0),
        nodes=(32, 80),
        grow_at=(0.15, 0.3, 0.45, 0.6),
        geometry_steps=5000,
        rays=512,
        grid_learning_rate=2e-2,
        network_learning_rate=2e-3,
        decay="exponential",
        seen_alpha=0.01,
        empty_alpha=0.01,
    ),
}


class Trainer:
    """A field under training: step_geometry, freeze, step_instances.

    Args:
        dataset: the scene; its training views are learnt.
        recipe: sizes and optimisation.
        seed: of all random numbers.
        bounds: the box of the field, see rays.Scene.
        device: where all of it lies.
    """

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        seed: int = 0,
        *,
        bounds: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        torch.manual_seed(seed)
        self.dataset, self.recipe, self.device = dataset, recipe, torch.device(device)
        self.scene = Scene(dataset, bounds, self.device)
        resolution = resolution_of(self.scene.box.extent, recipe.nodes[0] ** 3)
        self.field = RadianceField(recipe.sizes, resolution).to(self.device)
        self.grid = Grid(self.scene.box, resolution)
        self.shuffle = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator(self.device).manual_seed(seed)
        self.pixels = TrainingPixels.of(dataset, dataset.train, self.shuffle)
        self.batches = self.pixels.batches(recipe.rays, self.shuffle)
        self.seconds = {"geometry": 0.0, "instances": 0.0}
        self.iterations = {"geometry": 0, "instances": 0}
        self.density: RadianceField | DensityGrid = self.field  # where densities are read
        self.cache: SurfaceCache | None = None
        self.head: InstanceHead | None = None
        self.grown = 0
        self._new_optimizer()

    # Geometry and colour

    def step_geometry(self, progress: float | None = None) -> dict[str, Tensor]:
        """One iteration at this share of the training (by default, of recipe.geometry_steps) -> terms of the loss."""
        if self.frozen:
            raise ValueError("the geometry is frozen: make a new Trainer to train it")
        if progress is None:
            progress = min(1.0, self.iterations["geometry"] / self.recipe.geometry_steps)
        while self.grown < len(self.recipe.grow_at) and progress >= self.recipe.grow_at[self.grown]:
            self._grow()
        rows, pixels = next(self.batches), self.pixels
        rays = self.scene.rays(
            pixels.frame[rows].long().to(self.device), pixels.pixel[rows].long().to(self.device)
        )
        target = pixels.color[rows].to(self.device).float() / 255
        rendered = self.render(rays, self._training_background(), train=True)
        terms = self._losses(rendered, target, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.recipe.learning_rate(progress)
        self.optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()
        self.iterations["geometry"] += 1
        return terms

    def train_geometry(self, seconds: float, clock: Clock = processor_time) -> None:
        """Train for so long by the clock; the schedule follows the time. Then freeze."""
        start = clock()
        while (passed := clock() - start) < seconds:
            self.step_geometry(passed / seconds)
        self.seconds["geometry"] += passed
        self.freeze()

    def render(self, rays: Rays, background: Tensor, *, train: bool = False) -> Rendered:
        samples = self.grid.march(rays, NEAR, self.noise if train else None)
        weights = weights_of(samples, self.density.sigma(samples.position), self.grid.step)
        return render_color(self.field, samples, weights, rays.directions, background)

    def _losses(self, rendered: Rendered, target: Tensor, progress: float) -> dict[str, Tensor]:
        recipe = self.recipe
        spread = recipe.distortion * (1 - math.exp(-0.25 * math.floor(EPOCHS * progress)))
        return {
            "color": mse_loss(rendered.color, target),
            "density variation": recipe.variation[0] * self.field.density.total_variation(),
            "appearance variation": recipe.variation[1] * self.field.appearance.total_variation(),
            "distortion": spread * distortion(rendered.samples, rendered.weights, self.grid.step),
        }

    def _training_background(self) -> Tensor:
        """What transparent images lie on; else black or white by chance, so that no colour can stand for opacity."""
        if self.dataset.background is not None:
            return self.background
        return torch.randint(2, (1,), generator=self.noise, device=self.device).float().expand(3)

    @property
    def background(self) -> Tensor:
        """Behind the field in pictures: that of transparent images, else black."""
        given = self.dataset.background
        return torch.zeros(3, device=self.device) if given is None else given.to(self.device)

    def _grow(self) -> None:
        """Crop the box to the cells that can be seen, refine the grid, and skip empty cells from now on."""
        recipe, old = self.recipe, self.grid
        seen = (old.alpha(self.field) >= recipe.seen_alpha).nonzero()
        low, high = torch.full((3,), -1.0), torch.full((3,), 1.0)
        if len(seen):
            cells = torch.tensor(old.resolution, device=seen.device) - 1
            low, high = seen.amin(0) / cells * 2 - 1, (seen.amax(0) + 1) / cells * 2 - 1
        low, high = low.to(self.device), high.to(self.device)
        box = old.box.part(low, high)
        nodes = between(*recipe.nodes, len(recipe.grow_at))[self.grown]
        resolution = resolution_of(box.extent, nodes)
        self.field.resample(low, high, resolution)
        self.grid = Grid(box, resolution)
        self._skip_empty()
        self.grown += 1
        self._new_optimizer()

    def _skip_empty(self) -> None:
        """Skip cells from now on; none while all are empty, for nothing could grow again."""
        occupied = self.grid.alpha(self.field) > self.recipe.empty_alpha
        self.grid = replace(self.grid, occupied=occupied if bool(occupied.any()) else None)

    def _new_optimizer(self) -> None:
        recipe = self.recipe
        groups = [
            {"params": self.field.grids(), "lr": recipe.grid_learning_rate},
            {"params": self.field.networks(), "lr": recipe.network_learning_rate},
        ]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]

    # Instances

    @property
    def frozen(self) -> bool:
        return isinstance(self.density, DensityGrid)

    def freeze(self, *, cache: bool = False) -> None:
        """End the training of geometry and colour.

        cache: keep what every training ray sees, instead of a new look with randomly shifted samples in each step (as
        released). The neural field at its cheapest: what is left is the network.
        """
        self.field.requires_grad_(False).zero_grad()
        self.density = DensityGrid(self.field)
        self._skip_empty()
        self.cache = SurfaceCache(self._frame_surface) if cache else None

    def new_head(self, features: int, *, slow: SlowStart | None = "own", seed: int = 0) -> None:
        """Start an instance field of this many embedding dimensions or logits; slow: None for losses that need none."""
        if features < 1:
            raise ValueError(f"features must be at least 1, but is {features}")
        torch.manual_seed(seed)
        self.head = InstanceHead(features, self.recipe.sizes, slow).to(self.device)
        self.instance_optimizer = torch.optim.Adam(
            self.head.fast.parameters(), lr=self.recipe.instance_learning_rate, fused=True
        )
        self.seconds["instances"], self.iterations["instances"] = 0.0, 0

    def step_instances(
        self, frame: int, pixel: Tensor, labels: Tensor, loss: Loss, *, halves: bool = False
    ) -> float:
        """One iteration on pixels [P] (row by row) of one frame and their labels [P] -> the loss.

        The slow network moves before the loss is taken, but after its features are rendered, as released; without one
        the loss gets the fast features, detached.

        halves: render only what slow-fast losses use, the fast features of the first half and the slow ones of the
        second, at half the cost (the released code renders both of all): the loss then gets fast [P // 2, D], slow
        [P - P // 2, D] and all labels.
        """
        if not self.frozen or self.head is None:
            raise ValueError("instances are trained on frozen geometry: call freeze, then new_head, first")
        surface = self._surface(frame, pixel.to(self.device))
        count, cut = len(pixel), len(pixel) // 2
        fast = surface.blend(self.head.fast, 0, cut if halves else count)
        if self.head.slow is None and not halves:
            slow = fast.detach()
        else:
            with torch.no_grad():
                slow = surface.blend(self.head.slow or self.head.fast, cut if halves else 0, count)
        self.head.update_slow(SLOW_MOMENTUM)
        value = loss(fast, slow, labels.to(self.device))
        if value.requires_grad:  # not so where a loss found nothing to compare
            self.instance_optimizer.zero_grad()
            value.backward()
            self.instance_optimizer.step()
        self.iterations["instances"] += 1
        return float(value.detach())

    def train_instances(
        self, seconds: float, pixels: LabelledPixels, loss: Loss, clock: Clock = processor_time
    ) -> float:
        """Train for so long by the clock -> the mean of the last losses."""
        start, losses = clock(), []
        while (passed := clock() - start) < seconds:
            losses.append(self.step_instances(*pixels.draw(self.recipe.instance_rays), loss))
        self.seconds["instances"] += passed
        return fmean(losses[-LAST_LOSSES:])

    @torch.no_grad()
    def _surface(self, frame: int, pixel: Tensor) -> Surface:
        if self.cache is not None:
            return self.cache.pixels(frame, pixel)
        return self._seen(self.grid.march(self.scene.frame_rays(frame, pixel), NEAR, self.noise))

    @torch.no_grad()
    def _frame_surface(self, frame: int) -> Surface:
        rays = self.scene.frame_rays(frame)
        return Surface.joined([self._seen(self.grid.march(part, NEAR)) for part in _parts(rays)])

    def _seen(self, samples: Samples) -> Surface:
        weights = weights_of(samples, self.density.sigma(samples.position), self.grid.step)
        seen = weights > VISIBLE
        return Surface(samples.ray[seen], samples.position[seen], weights[seen], samples.rays)

    @torch.no_grad()
    def render_frame(self, index: int) -> dict[str, Tensor]:
        """A frame on the CPU: color [H, W, 3], opacity [H, W], depth [H, W] (expected distance along the ray in world
        units, not divided by the opacity) and, once there is a head, features [H, W, D] (as little divided).
        """
        parts = []
        for rays in _parts(self.scene.frame_rays(index)):
            rendered = self.render(rays, self.background)
            distance = rendered.samples.sums((rendered.weights * rendered.samples.distance)[:, None])
            columns = [rendered.color, rendered.opacity[:, None], distance / self.scene.unit]
            if self.head is not None:
                seen = self._seen(rendered.samples)
                columns.append(seen.blend(self.head.fast, 0, len(rays)))
            parts.append(torch.cat(columns, dim=-1))
        width, height = self.scene.size[index]
        image = torch.cat(parts).reshape(height, width, -1).cpu()
        frame = {"color": image[..., :3], "opacity": image[..., 3], "depth": image[..., 4]}
        return frame | ({"features": image[..., 5:]} if self.head is not None else {})


def _parts(rays: Rays) -> list[Rays]:
    starts = range(0, len(rays), RAYS_AT_ONCE)
    return [Rays(rays.origins[i : i + RAYS_AT_ONCE], rays.directions[i : i + RAYS_AT_ONCE]) for i in starts]

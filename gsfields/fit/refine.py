"""Test-time refinement (LMF section 3.4): the moving layers are fitted once more, to the frames that matter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from gsfields.config import Config
from gsfields.data.dataset import Dataset
from gsfields.fit.checkpoint import Checkpoint, MetricsLog
from gsfields.fit.consensus import FOLDER
from gsfields.fit.footage import Footage
from gsfields.fit.layered import check_footage, layered_loss, moving_rates
from gsfields.fit.layers import MOVING, LayeredParameters, scene_depths, seed_layers
from gsfields.fit.masks import Shares, write_masks
from gsfields.fit.scene import open_dataset
from gsfields.fit.schedule import ViewOrder
from gsfields.layers import LayeredScene, render_layers


@dataclass
class RefineOptions:
    """How frames are refined."""

    window: int = 0  # neighbours on each side that are fitted too (LMF: N; 0 is best there)
    visits: int = 40  # optimisation steps per fitted frame
    rate: float = 0.5  # learning rates, times those in the middle of the fit
    code: bool = False  # also refine the time codes (the paper does not say)
    reseed: bool = (
        False  # new dynamic Gaussians in all fitted frames; held-out ones, which have none, get them anyway
    )

    def __post_init__(self) -> None:
        for name, low in (("window", 0), ("visits", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be a whole number, at least {low}, but is {value!r}")
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, but is {self.rate}")


@dataclass
class Refined:
    """What a refinement did."""

    frames: int  # asked for
    fitted: int  # with their neighbours
    seconds: float
    loss: tuple[float, float]  # mean over the fitted frames, before and after
    shares: Shares
    checkpoint: Path


def refine_run(
    run: str | Path,
    frames: Sequence[str] | None = None,
    options: RefineOptions | None = None,
    *,
    data: str | None = None,
    progress: bool = True,
) -> Refined:
    """Refine a layered run on some frames; writes RUN/refined (a checkpoint) and their masks in RUN/masks.

    Args:
        frames: names, stems or places in time order of the frames; None for all.
        data: folder of the video, if it has moved since the fit.

    Raises ValueError if the run is not layered or has no such frame.
    """
    options = options or RefineOptions()
    checkpoint = Checkpoint.load(run)
    config, scene = checkpoint.config, checkpoint.scene
    if not isinstance(scene, LayeredScene):
        raise ValueError(
            f"{run} is a run of model {config.fit.model}: only layered ones have layers to refine"
        )
    if data is not None:
        config.data.path = str(Path(data).resolve())
    dataset = open_dataset(config.data)
    chosen = find_frames(dataset, frames)
    fitted = with_neighbours(dataset, chosen, options.window)
    started = time.monotonic()
    refiner = Refiner(scene, dataset, fitted, config, options, Path(run) / FOLDER)
    before = refiner.mean_loss()
    for _ in tqdm(range(refiner.steps), disable=not progress, mininterval=1):
        refiner.train_step()
    after = refiner.mean_loss()
    seconds = time.monotonic() - started
    refined = refiner.parameters.scene().detach()
    shares = write_masks(refined, dataset, config, run, chosen)
    stems = [dataset.views[i].stem for i in chosen]
    saved = Checkpoint(refined, config, checkpoint.step, seconds=seconds, metrics={"refined": stems})
    folder = saved.save(Path(run) / "refined", keep=1)
    done = Refined(len(chosen), len(fitted), seconds, (before, after), shares, folder)
    MetricsLog(run, checkpoint.step).write(
        "refine", checkpoint.step, **(asdict(done) | {"checkpoint": str(folder)}), options=asdict(options)
    )
    return done


class Refiner:
    """Fits the moving layers of a scene to some views of a dataset; everything else stays as it is.

    masks: as Footage has it, the motion masks that the fit itself used.
    """

    def __init__(
        self,
        scene: LayeredScene,
        dataset: Dataset,
        views: Sequence[int],
        config: Config,
        options: RefineOptions,
        masks: Path | None = None,
    ) -> None:
        self.config, self.options = config, options
        self.generator = torch.Generator().manual_seed(config.fit.seed)
        self.footage = Footage(dataset, config, views, masks)
        check_footage(self.footage, config)
        cameras = [view.camera for view in dataset.views]
        self.depth = float(scene_depths(scene.static.means, cameras).median())
        self.parameters = LayeredParameters(scene.detach(), self.depth)
        for name in ("static", "shell"):
            for value in self.parameters.layers[name].values.values():
                value.requires_grad_(False)
        for name, value in self.parameters.shared.values.items():
            value.requires_grad_(options.code and name != "gain")
        self.order = ViewOrder(len(self.footage), self.generator)
        self.steps = options.visits * len(self.footage)
        self.step = 0
        known = () if options.reseed else set(dataset.train)
        self._reseed([k for k, view in enumerate(views) if view not in known])

    def train_step(self) -> float:
        """One step on one of the frames, LMF equations 16 and 17; returns its loss."""
        loss = self._loss(self.order.next())
        loss.backward()
        decay = 0.1 ** (self.step / max(self.steps - 1, 1))
        rate = self.options.rate * self.config.optim.decay**0.5 * decay**0.5
        for name in MOVING:
            part = self.parameters.layers[name]
            part.set_rates(moving_rates(self.config.motion, self.depth, rate))
            part.step()
        if self.options.code:
            shared = self.parameters.shared
            shared.set_rates(dict.fromkeys(shared.values, self.config.motion.code_lr * rate))
            shared.step()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def mean_loss(self) -> float:
        """Of all the frames as they are now."""
        return sum(self._loss(i).item() for i in range(len(self.footage))) / len(self.footage)

    def _loss(self, index: int) -> torch.Tensor:
        frame, motion = self.footage.get(index), self.config.motion
        rendering = render_layers(
            self.parameters.scene(),
            frame.camera,
            frame.time,
            parts=motion.purity > 0,
            near=self.config.fit.near,
        )
        return layered_loss(rendering, frame, motion, late=True)

    def _reseed(self, places: Sequence[int]) -> None:
        """New dynamic Gaussians for the fitted frames at `places`."""
        if not places:
            return
        pictures = (self.footage.picture(k, 1.0) for k in places)
        scene = self.parameters.scene().detach()
        seeds = seed_layers(scene, pictures, self.config, self.generator, len(places))
        self.parameters.append("dynamic", seeds["dynamic"])


def find_frames(dataset: Dataset, frames: Sequence[str] | None) -> list[int]:
    """Indices of views by name, stem or place in time order; all of them for None."""
    if frames is None:
        return list(range(len(dataset.views)))
    order = dataset.times().argsort(stable=True).tolist()
    known: dict[str, int] = {str(place): i for place, i in enumerate(order)}
    known |= {view.stem: i for i, view in enumerate(dataset.views)}
    known |= {view.name: i for i, view in enumerate(dataset.views)}
    unknown = [name for name in frames if name not in known]
    if unknown:
        last = len(order) - 1
        raise ValueError(
            f"frames must be names, stems or places 0 to {last} of the video's frames, but one is {unknown[0]!r}"
        )
    if not frames:
        raise ValueError("frames must name at least one frame")
    return list(dict.fromkeys(known[name] for name in frames))


def with_neighbours(dataset: Dataset, chosen: Sequence[int], window: int) -> list[int]:
    """The chosen views and up to `window` before and after each, in time order."""
    order = dataset.times().argsort(stable=True).tolist()
    place = {view: k for k, view in enumerate(order)}
    wanted: set[int] = set()
    for view in chosen:
        k = place[view]
        wanted.update(order[max(0, k - window) : k + window + 1])
    return sorted(wanted, key=lambda view: place[view])

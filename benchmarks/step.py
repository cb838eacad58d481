"""Whole training steps: what one iteration of a fit costs, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

import gsfields
from benchmarks import scenes
from benchmarks.results import StepRow
from benchmarks.scenes import SceneMissing
from gsfields import ops
from gsfields.bench.clock import Clock, Effort, Task, interleaved
from gsfields.bench.scene import Scene, synthetic
from gsfields.bench.stages import SH_DEGREE
from gsfields.camera import Camera
from gsfields.gaussians import SH_C0, Gaussians
from gsfields.losses import photometric

LEARNING_RATES = {
    "means": 1e-4,
    "quats": 1e-3,
    "log_scales": 5e-3,
    "opacity_logits": 5e-2,
    "sh0": 2.5e-3,
    "shN": 1.25e-4,
}

# OpenSplat, the one public trainer that runs on a CPU. Quoted, not measured by this program.
OPENSPLAT_SECONDS_PER_STEP = 0.89


@dataclass
class Fit:
    """A fit under way: the Gaussians, their optimiser, and the photographs to match."""

    name: str
    gaussians: Gaussians
    cameras: list[Camera]
    targets: list[Tensor]  # [H, W, 3] each

    def __post_init__(self) -> None:
        parameters = {
            name: t.detach().clone().requires_grad_() for name, t in self.gaussians.parameters().items()
        }
        self.gaussians = Gaussians(**parameters)
        groups = [{"params": [t], "lr": LEARNING_RATES[name]} for name, t in parameters.items()]
        self.optimizer = torch.optim.Adam(groups, eps=1e-15, fused=True)
        self.background = torch.zeros(3, device=self.gaussians.means.device)

    def to(self, device: torch.device) -> Fit:
        """The same fit from its beginning on another device."""
        cameras = [camera.to(device) for camera in self.cameras]
        return Fit(self.name, self.gaussians.to(device), cameras, [t.to(device) for t in self.targets])

    def step(self, index: int) -> None:
        """One iteration, as a user would write it."""
        view = index % len(self.cameras)
        rendering = gsfields.render(
            self.gaussians, self.cameras[view], background=self.background, sh_degree=SH_DEGREE, absgrad=True
        )
        photometric(rendering.color, self.targets[view]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def split_step(self, index: int) -> dict[str, float]:
        """The same iteration with the graph cut between the stages -> milliseconds by stage."""
        view = index % len(self.cameras)
        camera, target, g = self.cameras[view], self.targets[view], self.gaussians
        width, height = camera.width, camera.height
        laps = Laps()
        with laps("activations"):
            scales, opacities, directions = g.scales, g.opacities, (g.means - camera.position)[None]
        means, quats, leaf_scales, leaf_opacities = leaves(g.means, g.quats, scales, opacities)
        with laps("project"):
            means2d, depths, conics, opacities2d, radii = ops.project(
                means, quats, leaf_scales, leaf_opacities, camera.viewmat[None], camera.K[None], width, height
            )
        dirs, sh0, shN = leaves(directions, g.sh0, g.shN)
        with laps("colour"):
            sh = ops.spherical_harmonics_split(SH_DEGREE, dirs, sh0, shN, (radii > 0).all(-1))
            colors = (sh + 0.5).clamp_min(0)
        with laps("bin"), torch.no_grad():
            lists = ops.bin_tiles(means2d, depths, conics, opacities2d, radii, width, height)
        splats = leaves(colors, means2d, conics, opacities2d)
        sink = torch.zeros_like(means2d, requires_grad=True)
        with laps("blend"):
            image, _ = ops.blend(
                splats[0], splats[1], splats[2], splats[3], *lists, width, height, self.background, sink
            )
        (color,) = leaves(image)
        with laps("loss"):
            loss = photometric(color[0], target)
        with laps("loss backward"):
            loss.backward()
        with laps("blend backward"):
            torch.autograd.backward(image, gradients(color))
        with laps("colour backward"):
            torch.autograd.backward(colors, gradients(splats[0]))
        with laps("project backward"):
            torch.autograd.backward([means2d, conics, opacities2d], gradients(*splats[1:]))
        with laps("activations backward"):
            torch.autograd.backward(
                [g.means, g.quats, scales, opacities, directions, g.sh0, g.shN],
                gradients(means, quats, leaf_scales, leaf_opacities, dirs, sh0, shN),
            )
        with laps("Adam"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return laps.ms


class Laps:
    """Times the stages of a step: `with laps("name"): ...`."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.ms[name] = 1e3 * (time.perf_counter() - start)


def leaves(*tensors: Tensor) -> list[Tensor]:
    """The same values cut off from what made them, each a leaf that collects its gradient."""
    return [t.detach().requires_grad_() for t in tensors]


def gradients(*tensors: Tensor) -> list[Tensor | None]:
    return [t.grad for t in tensors]


def measure(fit: Fit, effort: Effort, clock: Clock | None = None) -> StepRow:
    """Whole steps, on the CPU against split ones in turn. The median of the splits' stages need not add up to the
    whole step: cutting the graph saves autograd some work and costs some copies.
    """
    splits: list[dict[str, float]] = []
    tasks = {"whole": Task(run=fit.step)}
    on_cpu = fit.background.device.type == "cpu"  # elsewhere a stage has not ended when its call returns
    if on_cpu:
        tasks["split"] = Task(run=lambda i: splits.append(fit.split_step(i)))
    timing = interleaved(tasks, effort, clock)["whole"]
    camera = fit.cameras[0]
    return StepRow(
        name=fit.name,
        gaussians=len(fit.gaussians),
        width=camera.width,
        height=camera.height,
        threads=torch.get_num_threads(),
        isa=ops.cpu_isa() if on_cpu else fit.background.device.type,
        rounds=len(timing.rounds),
        ms=timing.median,
        best_ms=timing.best,
        split={
            stage: median(split[stage] for split in splits[2:] or splits) for stage in next(iter(splits), {})
        },
    )


def synthetic_fit(count: int = 20_000, size: int = 256) -> Fit:
    """The synthetic cube, fitted to pictures of itself from before its parameters were disturbed."""
    scene = synthetic(count, size)
    cameras = [Camera(scene.viewmats[v], scene.Ks[v], size, size) for v in range(scene.viewmats.shape[0])]
    truth = gaussians_of(scene)
    with torch.no_grad():
        targets = [gsfields.render(truth, camera).color for camera in cameras]
    noise = torch.Generator().manual_seed(1)
    start = {name: t + 0.02 * torch.randn(t.shape, generator=noise) for name, t in truth.parameters().items()}
    return Fit(f"synthetic {count} at {size}x{size}", Gaussians(**start), cameras, targets)


def gaussians_of(scene: Scene) -> Gaussians:
    """A scene as trainable parameters, its colours in SH of SH_DEGREE."""
    return Gaussians(
        means=scene.means,
        quats=scene.quats,
        log_scales=scene.scales.log(),
        opacity_logits=scene.opacities.clamp(1e-4, 1 - 1e-4).logit(),
        sh0=((scene.values - 0.5) / SH_C0)[:, None],
        shN=torch.zeros(len(scene), (SH_DEGREE + 1) ** 2 - 1, 3),
    )


def room_fit(width: int = 480) -> Fit:
    """A photographed room from its structure-from-motion points. Raises SceneMissing where it is absent."""
    path = scenes.DATA / "colmap_room"
    if not path.is_dir():
        raise SceneMissing("colmap_room: no ../shared/data/colmap_room, so its training step is left out")
    dataset = gsfields.load_dataset(path, width=width)
    if dataset.points is None or dataset.point_colors is None:
        raise SceneMissing("colmap_room: its project has no points, so its training step is left out")
    views = dataset.train_views()[:8]
    start = Gaussians.from_points(dataset.points, dataset.point_colors, sh_degree=SH_DEGREE)
    size = f"{views[0].camera.width}x{views[0].camera.height}"
    return Fit(f"colmap_room at {size}", start, [v.camera for v in views], [v.image() for v in views])

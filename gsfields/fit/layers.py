"""The parameters of a layered scene while it is fitted, and what it starts from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from gsfields.camera import Camera
from gsfields.config import Config, LayersConfig
from gsfields.data.dataset import Dataset
from gsfields.fit import lifespans, seeding
from gsfields.fit.evidence import Evidence
from gsfields.fit.parameters import Parameters
from gsfields.fit.scene import depth_range
from gsfields.fit.seeding import Picture, Seeds, Unexplained
from gsfields.gaussians import Gaussians
from gsfields.layers import LayeredScene, MovingLayer, initial_basis, render_layers

MOVING = ("semistatic", "dynamic")
_BETA_START = 0.03  # uncertainty of new moving Gaussians, as large as β_min


class LayeredParameters:
    """One Parameters per layer, one for what they share; `scene()` puts them together.

    Responses of positions are kept in units of about `depth`, the scene's typical one, so that one learning rate
    serves all rows. The unit is a power of two: nothing is rounded on the way to the scene and back.
    """

    def __init__(self, scene: LayeredScene, depth: float) -> None:
        static = scene.static.parameters()
        if scene.static_uncertainty is not None:
            static["uncertainty"] = scene.static_uncertainty
        self.template = scene
        unit = 2.0 ** round(math.log2(depth))
        self.units = torch.tensor([unit] * 3 + [1.0] * 4)[:, None]  # [7, 1]
        self.layers = {
            "static": Parameters(static),
            "shell": Parameters(scene.shell),
            **{name: Parameters(self._scaled(getattr(scene, name))) for name in MOVING},
        }
        bases = {f"{name}.basis": getattr(scene, name).basis for name in MOVING}
        self.shared = Parameters({"gain": scene.gain, **bases})

    def __len__(self) -> int:
        return sum(len(part) for part in self.layers.values())

    def scene(self) -> LayeredScene:
        """The current scene; gradients flow to the parameters."""
        static, shared = self.layers["static"], self.shared.values
        moving = {
            name: getattr(self.template, name).with_parameters(
                {**values, "response": values["response"] * self.units}, shared[f"{name}.basis"]
            )
            for name, values in ((name, self.layers[name].values) for name in MOVING)
        }
        return LayeredScene(
            static=static.gaussians,
            shell=self.layers["shell"].gaussians,
            **moving,
            gain=shared["gain"],
            duration=self.template.duration,
            softness=self.template.softness,
            static_uncertainty=static.values.get("uncertainty"),
        )

    def replace(self, name: str, layer: MovingLayer) -> None:
        """Give a moving layer other Gaussians, without moments."""
        self.layers[name] = Parameters(self._scaled(layer))

    def _scaled(self, layer: MovingLayer) -> dict[str, Tensor]:
        return layer.parameters() | {"response": layer.response / self.units}

    def append(self, name: str, layer: MovingLayer) -> None:
        """Add Gaussians to a moving layer; those that are there keep their moments."""
        part, more = self.layers[name], self._scaled(layer)
        n, m = len(part), len(layer)
        if m == 0:
            return
        if n == 0:
            self.replace(name, layer)
            return
        index = torch.cat((torch.arange(n), torch.zeros(m, dtype=torch.int64)))
        joined = {key: torch.cat((value.detach(), more[key])) for key, value in part.values.items()}
        part.gather(index, torch.arange(n + m) >= n, joined)

    def state_dict(self) -> dict[str, Tensor]:
        parts = {**self.layers, "shared": self.shared}
        return {f"{name}/{key}": v for name, part in parts.items() for key, v in part.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, part in {**self.layers, "shared": self.shared}.items():
            prefix = f"{name}/"
            part.load_state_dict(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )


def initial_scene(
    dataset: Dataset, pictures: list[Picture], config: Config, generator: torch.Generator
) -> LayeredScene:
    """Static Gaussians where the data or a plane sweep put points, a shell behind them, and nothing that moves yet."""
    points, colors = _static_points(dataset, pictures, config, generator)
    init, layers = config.init, config.layers
    static = Gaussians.from_points(points, colors, sh_degree=init.sh_degree, opacity=init.init_opacity)
    cameras = [picture.camera for picture in pictures]
    far = float(scene_depths(points, cameras).quantile(0.98)) * layers.shell_radius
    shell = seeding.shell(cameras, max(layers.shell_count, 1), far, generator)
    if layers.shell_count == 0:
        shell = shell.select(torch.arange(0))
    frames = len(dataset.views)
    rows = layers.dynamic_rows or min(64, max(21, frames // 4))
    bases = {
        "semistatic": initial_basis(layers.semistatic_rank, layers.semistatic_rows, generator),
        "dynamic": initial_basis(min(layers.dynamic_rank, rows), rows, generator),
    }
    nothing, windows = Seeds.joined([]).gaussians(layers.seed_opacity), torch.zeros(0, 2)
    semistatic = MovingLayer.at_rest(
        nothing, windows, bases["semistatic"], "world", steps=layers.semistatic_steps
    )
    dynamic = MovingLayer.at_rest(nothing, windows, bases["dynamic"], layers.dynamic_frame)
    return LayeredScene(
        static, shell, semistatic, dynamic, torch.zeros(3, layers.gain_rows),
        duration=float(max(frames - 1, 1)), softness=layers.softness,
        static_uncertainty=torch.full((len(static),), -3.5) if layers.static_beta else None,
    )  # fmt: skip


def scene_depths(points: Tensor, cameras: list[Camera]) -> Tensor:
    """Depths of points [M, 3] in front of some of the cameras, [K], sorted; never empty."""
    depths = []
    for camera in cameras[:: max(1, len(cameras) // 32)]:
        z = points @ camera.viewmat[2, :3] + camera.viewmat[2, 3]
        depths.append(z[z > 0])
    found = torch.cat(depths)
    return found.sort().values if len(found) else torch.ones(1)


def _static_points(
    dataset: Dataset, pictures: list[Picture], config: Config, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The points of the data, and those of a plane sweep where there are fewer than `sweep_points`."""
    points, colors = torch.zeros(0, 3), torch.zeros(0, 3)
    if dataset.points is not None and len(dataset.points) and config.init.source != "random":
        points = dataset.points
        colors = torch.full_like(points, 0.5) if dataset.point_colors is None else dataset.point_colors
    if len(points) > config.densify.max_gaussians:
        chosen = torch.randperm(len(points), generator=generator)[: config.densify.max_gaussians]
        points, colors = points[chosen], colors[chosen]
    missing = config.init.sweep_points - len(points)
    if missing > 0 and len(pictures) > 1:
        swept = seeding.photo_consistent_points(
            pictures, round(1.25 * missing), _depth_range(dataset, points, pictures), generator
        )
        points, colors = torch.cat((points, swept[0])), torch.cat((colors, swept[1]))
    if len(points) < 2:
        raise ValueError(f"{dataset.name or 'the data'} has too few images and points to start from")
    return points, colors


def _depth_range(dataset: Dataset, points: Tensor, pictures: list[Picture]) -> tuple[float, float]:
    """(near, far) of what the cameras see: by the points, by the data's bounds, or by how far the cameras move."""
    if len(points) >= 100:
        depths = scene_depths(points, [picture.camera for picture in pictures])
        return 0.7 * float(depths.quantile(0.01)), 1.3 * float(depths.quantile(0.99))
    return depth_range(dataset)


def seed_layers(
    scene: LayeredScene,
    pictures: Iterable[Picture],
    config: Config,
    generator: torch.Generator,
    count: int,
    usual: Tensor | None = None,
) -> dict[str, MovingLayer]:
    """New Gaussians for the moving layers of a scene, from `count` pictures and what its static layer leaves
    unexplained in them; semi-static ones where that is more than the `usual` [N] (see Evidence).
    """
    layers = config.layers
    still = static_only(scene)
    seeds: dict[str, list[Seeds]] = {name: [] for name in MOVING}
    each = max(1, round(layers.semistatic_count / count)) if layers.semistatic_count else 0
    most = -(-layers.dynamic_total // count)
    for picture in pictures:
        unexplained = [look(still, picture, config, usual)]
        seeds["dynamic"].append(
            seeding.dynamic_seeds(
                unexplained, layers.dynamic_count, generator, from_mask=layers.from_mask, most=most,
            )
        )  # fmt: skip
        seeds["semistatic"].append(seeding.semistatic_seeds(unexplained, each, generator))
    half = {"semistatic": max(layers.semistatic_span * scene.duration, 1.0), "dynamic": None}
    return {
        name: _layer(getattr(scene, name), Seeds.joined(seeds[name]), half[name], layers.seed_opacity)
        for name in MOVING
    }


def drop_habitual(static: Parameters, evidence: Evidence, habit: float) -> Evidence:
    """Drop static Gaussians whose pixels score above `habit` in the mean; returns the evidence of the others.

    None where that would be more than half of them: then the scores say little of motion.
    """
    kept = (evidence.moving <= habit).nonzero()[:, 0]
    if 2 * len(kept) < len(static):
        return evidence
    static.gather(kept, torch.zeros(len(kept), dtype=torch.bool))
    return evidence.select(kept)


def take_mortals(
    static: Parameters, like: MovingLayer, evidence: Evidence, layers: LayersConfig, duration: float
) -> tuple[MovingLayer, Evidence]:
    """Take the Gaussians whose lives end within the video out of the static layer, which keeps no births and deaths.

    Returns them as a moving layer such as `like`, and the evidence of those that stay.
    """
    spans = static.values["spans"].detach()
    gaussians = static.gaussians.detach()
    mortal = lifespans.mortals(gaussians, spans, layers.agreement, evidence.contrast, layers.contrast)
    left = (~mortal).nonzero()[:, 0]
    static.gather(left, torch.zeros(len(left), dtype=torch.bool))
    static.drop("spans")
    taken = gaussians.select(mortal)
    taken = replace(taken, shN=taken.shN[:, :0])
    windows = lifespans.windows(spans[mortal], duration)
    layer = MovingLayer.at_rest(taken, windows, like.basis, like.frame, steps=like.steps, beta=_BETA_START)
    return layer, evidence.select(left)


def look(scene: LayeredScene, picture: Picture, config: Config, usual: Tensor | None = None) -> Unexplained:
    """What a scene without moving layers makes of a picture; `usual` [N] as in Evidence (None: zero)."""
    with torch.no_grad():
        rendering = render_layers(scene, picture.camera, picture.frame / scene.duration, near=config.fit.near)
        depth = rendering.depth[..., 0]
        known = depth[rendering.alpha[..., 0] > 0.5]
        fallback = float(known.median()) if len(known) else 1.0
        depth = torch.where(rendering.alpha[..., 0] > 0.5, depth, fallback)
        residual = seeding.smoothed_residual(rendering.color, picture.image)
        if usual is None:
            return Unexplained(picture, residual, depth, torch.zeros_like(residual))
        errors = torch.cat((usual, usual.new_zeros(len(scene.shell))))[:, None]
        return Unexplained(picture, residual, depth, rendering.plan.blend(errors)[..., 0])


def static_only(scene: LayeredScene) -> LayeredScene:
    """The scene without what moves."""
    scene = scene.detach()
    nothing = torch.arange(0)
    for name in MOVING:
        layer = getattr(scene, name)
        values = {key: value[nothing] for key, value in layer.parameters().items()}
        setattr(scene, name, layer.with_parameters(values, layer.basis))
    return scene


def _layer(like: MovingLayer, seeds: Seeds, half: float | None, opacity: float) -> MovingLayer:
    """A layer such as `like` of seeds, each of which lives `half` a span to both sides of its frame, or (None) until
    halfway to the frames before and after it.
    """
    windows = seeds.windows
    if half is not None:
        windows = torch.stack((seeds.frames, torch.full_like(seeds.frames, half).log()), dim=1)
    return MovingLayer.at_rest(
        seeds.gaussians(opacity), windows, like.basis, like.frame, steps=like.steps, beta=_BETA_START
    )

"""Fitting a layered dynamic scene: first the static layer where nothing moves, then all layers with motion fusion."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from gsfields.config import Config, MotionConfig
from gsfields.data.dataset import Dataset
from gsfields.fit import consensus, lifespans
from gsfields.fit.checkpoint import Checkpoint, MetricsLog
from gsfields.fit.densify import Ranked, Rows, Strategy
from gsfields.fit.evidence import Evidence, gather
from gsfields.fit.footage import Footage, Frame
from gsfields.fit.layers import (
    MOVING,
    LayeredParameters,
    drop_habitual,
    initial_scene,
    scene_depths,
    seed_layers,
    static_only,
    take_mortals,
)
from gsfields.fit.loop import Loop, Stateful
from gsfields.fit.masks import write_masks
from gsfields.fit.parameters import Parameters
from gsfields.fit.schedule import Schedule, ViewOrder
from gsfields.fit.seeding import Picture, widened
from gsfields.layers import DYNAMIC, SEMISTATIC, LayeredRendering, LayeredScene, render_layers
from gsfields.losses import photometric
from gsfields.losses.motion import (
    impurity,
    mask_entropy,
    negative_motion_fusion,
    positive_motion_fusion,
    robust_rgb,
    sparsity,
)

_SWEPT = 200  # images, at most, that a plane sweep holds
_GAIN_PRIOR = 0.1  # pull of the brightness towards 1


class LayeredTrainer(Loop):
    """Fits static, semi-static and dynamic Gaussians to a video with 2D motion masks.

    Phase A fits the static layer, each pixel weighted by how little it moves, with births and deaths (`lifespans`).
    At its end it weighs the 2D masks (`consensus`) and the moving layers are seeded; phase B fits everything by LMF's
    losses.
    """

    def __init__(
        self, config: Config, dataset: Dataset, run: str | Path, resume: Checkpoint | None = None
    ) -> None:
        super().__init__(config, dataset, run)
        self.footage = Footage(dataset, config)
        self.masks = self.run / consensus.FOLDER
        check_footage(self.footage, config)
        self.order = ViewOrder(len(self.footage), self.generator)
        self.schedule = Schedule(config, dataset.scene_extent)
        if resume is not None:
            assert isinstance(resume.scene, LayeredScene)
            start = resume.scene
        else:
            start = initial_scene(dataset, list(self._pictures(_SWEPT)), config, self.generator)
        if resume is None:  # typical depth, world units
            cameras = [view.camera for view in self.footage.views]
            self.depth = float(scene_depths(start.static.means, cameras).median())
        else:
            self.depth = float(resume.state["depth.depth"])
        self.parameters = LayeredParameters(start, self.depth)
        self.strategies = self._strategies()
        self.warmup = round(config.motion.warmup * config.fit.steps)
        if resume is None or "lives.spans" in resume.state:
            spans = lifespans.immortal(len(start.static)) if resume is None else resume.state["lives.spans"]
            static = self.parameters.layers["static"].values
            self.parameters.layers["static"] = Parameters({**static, "spans": spans})
        if resume is not None:
            self.restore(resume)
            if self.step > self.warmup and self.masks.is_dir():
                self.footage.masks = self.masks

    @property
    def scene(self) -> LayeredScene:
        return self.parameters.scene().detach()

    def count(self) -> int:
        return len(self.parameters)

    def train_step(self) -> tuple[float, float]:
        step, config = self.step, self.config
        if step == self.warmup:
            self.seed()
        frame = self.footage.get(self.order.next(), self.schedule.image_scale(step))
        joint = step >= self.warmup
        scene = self.parameters.scene()
        if not joint:
            spans = self.parameters.layers["static"].values["spans"]
            scene.static = lifespans.alive(
                scene.static, spans, frame.time, lifespans.softness(step / self.warmup)
            )
        rendering = render_layers(
            scene,
            frame.camera,
            frame.time,
            sh_degree=self.schedule.sh_degree(step),
            parts=joint and config.motion.purity > 0,
            absgrad=True,
            near=config.fit.near,
        )
        if joint:
            loss = layered_loss(rendering, frame, config.motion, late=2 * step > config.fit.steps)
        else:
            loss = static_loss(rendering, frame, config.fit.ssim_weight)
        loss = loss + _GAIN_PRIOR * self.parameters.shared.values["gain"].square().mean()
        loss.backward()
        self._update(rendering, step)
        self.step += 1
        error = (rendering.color.detach() - frame.image).square()
        if frame.counts is not None:
            error = error[frame.counts > 0]
        return loss.item(), -10 * math.log10(max(error.mean().item(), 1e-10))

    @torch.no_grad()
    def seed(self) -> None:
        """Give the moving layers their first Gaussians: lives that ended, and seeds where images are not explained."""
        scene, layers, static = self.scene, self.config.layers, self.parameters.layers["static"]
        evidence = gather(
            static_only(scene), static.values["spans"].detach(), self._pictures(_SWEPT),
            lifespans.softness(1), self.config.fit.near,
        )  # fmt: skip
        if self.config.motion.consensus and any(view.has_motion_mask for view in self.footage.views):
            before, after = self._weigh_masks(evidence)
            count = len(static)
            evidence = drop_habitual(static, evidence, self.config.motion.habit)
            self.report.append(
                f"consensus: mean motion score {before:.3f} of the 2D masks, {after:.3f} as weighed by the "
                f"static layer, which loses {count - len(static)} moving Gaussians; written to {self.masks}"
            )
        promoted, evidence = take_mortals(static, scene.semistatic, evidence, layers, self.footage.duration)
        seeds = seed_layers(
            self.scene, self._pictures(), self.config, self.generator, len(self.footage), evidence.usual
        )
        self.parameters.replace("dynamic", seeds["dynamic"])
        self.parameters.replace("semistatic", promoted)
        self.parameters.append("semistatic", seeds["semistatic"])
        counts = ", ".join(f"{count} {name}" for name, count in self.scene.counts.items())
        self.report.append(
            f"moving layers seeded at step {self.step} from {len(self.footage)} frames: {counts}"
        )

    def _weigh_masks(self, evidence: Evidence) -> tuple[float, float]:
        """From here on, fuse the 2D scores with the static layer's word on them; held-out views get it, too.

        Returns their mean before and after.
        """
        views = Footage(self.dataset, self.config, range(len(self.dataset.views)))
        frames = ((view.stem, views.get(i)) for i, view in enumerate(self.dataset.views))
        spans = self.parameters.layers["static"].values["spans"].detach()
        scene, near = static_only(self.scene), self.config.fit.near
        self.footage.masks = self.masks
        return consensus.write_consensus(self.masks, frames, scene, spans, evidence, near)

    def finish(self, log: MetricsLog) -> list[str]:
        shares = write_masks(self.scene, self.dataset, self.config, self.run)
        counts = self.scene.counts
        log.write("layers", self.step, **counts, explained=asdict(shares))
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        return [f"Gaussians: {listed}", f"{shares}; written to {self.run / 'masks'}"]

    def parts(self) -> dict[str, Stateful]:
        return {
            "adam": self.parameters,
            "order": self.order,
            "depth": _Kept(depth=torch.tensor(self.depth, dtype=torch.float64)),
            "lives": _Kept(
                **{k: v for k, v in self.parameters.layers["static"].values.items() if k == "spans"}
            ),
            **{f"strategy.{name}": strategy for name, strategy in self.strategies.items()},
        }

    # ------------------------------------------------------------------------------------------------- details

    def _pictures(self, most: int | None = None) -> Iterator[Picture]:
        """The training images for seeding, or `most` of them evenly, at the size of the coarse phase; one at a time."""
        count = len(self.footage)
        step = 1 if most is None else max(1, -(-count // most))
        scale = min(1.0, self.config.fit.coarse_scale)
        return (self.footage.picture(i, scale) for i in range(0, count, step))

    def _strategies(self) -> dict[str, Strategy]:
        d = self.config.densify
        if d.strategy not in ("ranked", "none"):
            raise ValueError(f"strategy must be ranked or none for model layered, but is {d.strategy!r}")
        if d.strategy == "none":
            return {}
        return {name: Ranked(d, self.depth, prune_unseen=name == "static") for name in ("static", *MOVING)}

    def _update(self, rendering: LayeredRendering, step: int) -> None:
        """Adam's step on every layer, then growth."""
        layers = self.parameters.layers
        drawn: dict[str, tuple[slice, Rows | None]] = {"static": (slice(len(layers["static"])), None)}
        first, begin = len(layers["static"]) + len(layers["shell"]), rendering.drawn[0]
        for name, count in zip(MOVING, rendering.drawn[1:], strict=True):
            here = slice(begin, begin + count)
            drawn[name] = (here, (rendering.index[here] - first, len(layers[name])))
            begin, first = begin + count, first + len(layers[name])
        for name, strategy in self.strategies.items():
            if len(layers[name]):
                strategy.observe(rendering.plan, *drawn[name])
        for name, rates in self.rates(step).items():
            part = self.parameters.shared if name == "shared" else layers[name]
            part.set_rates({key: rate for key, rate in rates.items() if key in part.values})
            part.step()
        for name, strategy in self.strategies.items():
            if len(layers[name]):
                refine = self.schedule.refines_after(step) and (name == "static" or step > self.warmup + 200)
                strategy.update(layers[name], step, refine, self.generator)

    def rates(self, step: int) -> dict[str, dict[str, float]]:
        """Learning rate of every tensor of every layer."""
        still = self.schedule.rates(step)
        still["means"] *= self.depth / self.schedule.extent
        shell = {"sh0": still["sh0"]}  # where it is and how opaque stays
        left = max(self.config.fit.steps - self.warmup, 1)
        decay = self.config.optim.decay ** (max(step - self.warmup, 0) / left)
        moving = moving_rates(self.config.motion, self.depth, decay)
        shared = dict.fromkeys(("gain", *(f"{m}.basis" for m in MOVING)), self.config.motion.code_lr * decay)
        still["spans"] = self.config.layers.spans_lr  # not decayed: deaths late in the phase count, too
        still["uncertainty"] = self.config.motion.uncertainty_lr * decay
        return {"static": still, "shell": shell, **dict.fromkeys(MOVING, moving), "shared": shared}


def moving_rates(m: MotionConfig, depth: float, decay: float) -> dict[str, float]:
    """Learning rates of a moving layer, in a scene of typical depth `depth`."""
    return {
        "means": m.moving_means_lr * depth * decay,
        "quats": m.moving_quats_lr * decay,
        "log_scales": m.moving_scales_lr * decay,
        "opacity_logits": m.moving_opacities_lr * decay,
        "sh0": m.moving_colors_lr * decay,
        "shN": 0.0,
        "response": m.response_lr * decay,
        "windows": m.windows_lr * decay,
        "uncertainty": m.uncertainty_lr * decay,
    }


def static_loss(rendering: LayeredRendering, frame: Frame, ssim_weight: float) -> Tensor:
    """Photometric loss over the pixels that do not move, (1 - M)² of each, M widened by 1 % of the width."""
    weight = frame.counts
    if frame.motion is not None:
        still = (1 - widened(frame.motion, 50)).square()
        weight = still if weight is None else still * weight
    return photometric(rendering.color, frame.image, ssim_weight=ssim_weight, mask=weight)


def layered_loss(rendering: LayeredRendering, frame: Frame, m: MotionConfig, *, late: bool) -> Tensor:
    """LMF's total (its section 3.3) with NeuralDiff's sparsity, and purity."""
    select = frame.counts > 0 if frame.counts is not None else slice(None)
    color, target = rendering.color[select], frame.image[select]
    beta, masks = rendering.uncertainty[select][..., 0], rendering.masks[select]
    semistatic, dynamic = masks[..., SEMISTATIC], masks[..., DYNAMIC]
    loss = robust_rgb(color, target, beta, form=m.rgb_form)
    loss = loss + sparsity(semistatic, dynamic, weight=m.sparsity)
    if frame.motion is not None:
        motion = frame.motion[select]
        if m.pmf > 0:
            loss = loss + positive_motion_fusion(dynamic, motion, weight=m.pmf)
        if m.nmf > 0:
            loss = loss + negative_motion_fusion(semistatic, motion, weight=m.nmf, threshold=m.nmf_threshold)
    if m.purity > 0:
        assert rendering.parts is not None
        loss = loss + impurity(rendering.parts[select], masks, target, beta.detach(), weight=m.purity)
    if m.entropy > 0 and late:
        loss = loss + mask_entropy(dynamic, weight=m.entropy)
    return loss


def check_footage(footage: Footage, config: Config) -> None:
    """Refuse a fit with motion fusion of data without motion masks."""
    m = config.motion
    if (m.pmf > 0 or m.nmf > 0) and not any(view.has_motion_mask for view in footage.views):
        raise ValueError(
            "motion fusion needs 2D motion masks, but the data has no folder motion_masks: make them with "
            "`gsfields prep motion DATA`, put those of another method there, or give --pmf 0 --nmf 0"
        )


class _Kept:
    """Tensors that a checkpoint keeps and that the trainer reads from it itself."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass

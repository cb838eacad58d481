"""The layered dynamic scene: static, semi-static and dynamic Gaussians in one depth-sorted rasterization.

After NeuralDiff (Tschernezki et al. 2021) and Layered Motion Fusion ("LMF", Tschernezki et al., CVPR 2025), whose
layers are radiance fields. Here they are sets of Gaussians:

    static       in the world, the same at all times; with a far shell behind it, so that every ray ends somewhere
    semi-static  in the world; position, opacity and colour respond to the time code z_t
    dynamic      in the frame of the camera that looks, x̄, placed by its pose; responds to a time code of its own

A moving Gaussian also has a life span: a window in time outside of which it is not drawn (and costs nothing). The
papers have none. With it the time code can be as small as theirs (P ≪ T) where a code alone needs about T/2 rows,
and one model serves 60 frames or 10,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from gsfields import ops
from gsfields.camera import Camera
from gsfields.files import written_whole
from gsfields.gaussians import SH_C0, Gaussians
from gsfields.losses.motion import BETA_MIN
from gsfields.plans import Plan, plan
from gsfields.rendering import view_colors

LAYERS = ("static", "semistatic", "dynamic")
STATIC, SEMISTATIC, DYNAMIC = range(3)
RESPONSES = 7  # numbers of a Gaussian that respond to time: position (3), logit of the opacity, colour (3)
Frame = Literal["world", "camera"]


def time_basis(times: Tensor, rows: int, steps: int = 0) -> Tensor:
    """F, the fixed basis of time codes (LMF section 3: Z = Z̃ F), [rows, T] at times [T] in [0, 1].

    Half-period cosines cos(π k t), k = 0, 1, …, which need not be periodic over the video; the last `steps` rows are
    smooth steps from 0 to 1 at evenly spaced times, because waves ring where something is picked up or put down.
    """
    if not 0 <= steps < rows:
        raise ValueError(f"steps must be 0 to rows - 1 = {rows - 1}, but is {steps}")
    waves = rows - steps
    k = torch.arange(waves, dtype=times.dtype, device=times.device)
    cosines = torch.cos(torch.pi * k[:, None] * times[None])
    if steps == 0:
        return cosines
    at = (torch.arange(steps, dtype=times.dtype, device=times.device) + 1) / (steps + 1)
    return torch.cat((cosines, torch.sigmoid((times[None] - at[:, None]) * 8 * (steps + 1))))


@dataclass
class MovingLayer:
    """N Gaussians that respond to time, in the world's frame or in the camera's.

    `code` at time t is z_t = Z̃ F(t), and the response of Gaussian i is response[i] z_t. Raises ValueError where a
    shape does not fit.
    """

    gaussians: Gaussians  # at rest, of SH degree 0
    response: Tensor  # [N, 7, D]: of x (world units), logit of the opacity, colour
    windows: Tensor  # [N, 2]: middle of the life span, and log of half its length; both in frames
    uncertainty: Tensor  # [N]: β = softplus of it
    basis: Tensor  # Z̃ [D, P]
    frame: Frame
    steps: int = 0  # how many of the P rows are steps

    def __post_init__(self) -> None:
        n, d = len(self.gaussians), self.basis.shape[0]
        expected = {"response": (n, RESPONSES, d), "windows": (n, 2), "uncertainty": (n,)}
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must be {list(shape)}, but is {list(getattr(self, name).shape)}")
        if self.gaussians.sh_degree != 0:
            raise ValueError(
                f"moving Gaussians must have SH degree 0, but these have {self.gaussians.sh_degree}"
            )
        if self.frame not in ("world", "camera"):
            raise ValueError(f"frame must be 'world' or 'camera', but is {self.frame!r}")

    def __len__(self) -> int:
        return len(self.gaussians)

    @property
    def betas(self) -> Tensor:
        """β of each Gaussian, [N], positive."""
        return F.softplus(self.uncertainty)

    def code(self, time: float) -> Tensor:
        """z_t [D] at time t in [0, 1]; between and beyond training frames the basis interpolates."""
        t = self.basis.new_tensor([time])
        return (self.basis @ time_basis(t, self.basis.shape[1], self.steps))[:, 0]

    def at(
        self, time: float, duration: float, camera: Camera, softness: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(means [N, 3], quats [N, 4], opacities [N], colours [N, 3]) in the world at a time in [0, 1].

        duration is that of the video and softness that of the ends of the life spans, both in frames.
        """
        g = self.gaussians
        pose = ops.pose_of(camera.c2w) if self.frame == "camera" else None
        return ops.respond(
            g.means, g.quats, g.opacity_logits, 0.5 + SH_C0 * g.sh0[:, 0], self.response, self.code(time),
            self.windows, time * duration, softness, pose,
        )  # fmt: skip

    def parameters(self) -> dict[str, Tensor]:
        """All per-Gaussian tensors by name, those of the Gaussians among them."""
        own = {name: getattr(self, name) for name in ("response", "windows", "uncertainty")}
        return self.gaussians.parameters() | own

    def with_parameters(self, values: dict[str, Tensor], basis: Tensor) -> MovingLayer:
        """The same layer of other tensors, as `parameters` gives them."""
        return MovingLayer(
            Gaussians(**{name: values[name] for name in Gaussians.__dataclass_fields__}),
            values["response"], values["windows"], values["uncertainty"], basis, self.frame, self.steps,
        )  # fmt: skip

    @classmethod
    def at_rest(
        cls,
        gaussians: Gaussians,
        windows: Tensor,
        basis: Tensor,
        frame: Frame,
        *,
        steps: int = 0,
        beta: float = 0.03,
    ) -> MovingLayer:
        """A layer that does not respond yet, with the life spans `windows` and one uncertainty for all."""
        n = len(gaussians)
        raw = torch.full((n,), beta).expm1().log()  # the inverse of softplus
        return cls(gaussians, torch.zeros(n, RESPONSES, basis.shape[0]), windows, raw, basis, frame, steps)


def initial_basis(rank: int, rows: int, generator: torch.Generator) -> Tensor:
    """Z̃ [D, P]: code d starts as row d of the basis, with a little of all others."""
    if not 1 <= rank <= rows:
        raise ValueError(f"rank must be 1 to rows = {rows}, but is {rank}")
    return torch.eye(rank, rows) + 0.01 * torch.randn(rank, rows, generator=generator)


@dataclass
class LayeredScene:
    """A static layer with its shell, a semi-static and a dynamic layer, and the brightness of each moment."""

    static: Gaussians
    shell: Gaussians  # far away and opaque; part of the static layer in every output
    semistatic: MovingLayer
    dynamic: MovingLayer
    gain: Tensor  # [3, Q]: log brightness of what does not move with the camera, in the time basis of Q rows
    duration: float  # frames from the first to the last
    softness: float = 0.5  # of the ends of life spans, frames
    # β of the static Gaussians before softplus, [N]: LMF equation 4 has one, NeuralDiff's code and this default not
    static_uncertainty: Tensor | None = None

    def __len__(self) -> int:
        return sum(self.counts.values())

    @property
    def counts(self) -> dict[str, int]:
        """How many Gaussians each layer has, the shell apart."""
        return {
            "static": len(self.static),
            "shell": len(self.shell),
            "semistatic": len(self.semistatic),
            "dynamic": len(self.dynamic),
        }

    @property
    def sh_degree(self) -> int:
        """That of the static layer; the others have degree 0."""
        return self.static.sh_degree

    def layer_ids(self) -> Tensor:
        """0, 1 or 2 for each Gaussian, static ones and shell first, [N] int64."""
        counts = (len(self.static) + len(self.shell), len(self.semistatic), len(self.dynamic))
        return torch.arange(3).repeat_interleave(torch.tensor(counts)).to(self.static.device)

    def brightness(self, time: float) -> Tensor:
        """Factor [3] on the colours of static and semi-static Gaussians at a time in [0, 1]."""
        t = self.gain.new_tensor([time])
        return (self.gain @ time_basis(t, self.gain.shape[1])).exp()[:, 0]

    # -------------------------------------------------------------------------------------------------- files

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the scene, named layer.tensor."""
        named = {"gain": self.gain}
        for part in ("static", "shell", "semistatic", "dynamic"):
            named |= {f"{part}.{name}": value for name, value in getattr(self, part).parameters().items()}
        for part in ("semistatic", "dynamic"):
            named[f"{part}.basis"] = getattr(self, part).basis
        if self.static_uncertainty is not None:
            named["static.uncertainty"] = self.static_uncertainty
        return named

    def detach(self) -> LayeredScene:
        """The same tensors without gradients."""
        return self._of({name: value.detach() for name, value in self.tensors().items()}, self._meta())

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.tensors().items()}
        with written_whole(path) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata=self._meta())

    @classmethod
    def load(cls, path: str | Path) -> LayeredScene:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError naming the tensors that are missing."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no scene file at {path}")
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                meta = file.metadata() or {}
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file ({error})") from None
        try:
            return cls._of(tensors, meta)
        except KeyError as error:
            raise ValueError(f"{path} holds no layered scene: it lacks {error}") from None

    def _meta(self) -> dict[str, str]:
        return {
            "duration": repr(self.duration),
            "softness": repr(self.softness),
            **{f"{p}.frame": getattr(self, p).frame for p in ("semistatic", "dynamic")},
            **{f"{p}.steps": str(getattr(self, p).steps) for p in ("semistatic", "dynamic")},
        }

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], meta: dict[str, str]) -> LayeredScene:
        def part(name: str) -> dict[str, Tensor]:
            return {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{name}.")}

        def gaussians(name: str) -> Gaussians:
            return Gaussians(**{field: part(name)[field] for field in Gaussians.__dataclass_fields__})

        def moving(name: str) -> MovingLayer:
            own = {field: part(name)[field] for field in ("response", "windows", "uncertainty", "basis")}
            frame: Frame = "camera" if meta[f"{name}.frame"] == "camera" else "world"
            return MovingLayer(gaussians(name), **own, frame=frame, steps=int(meta[f"{name}.steps"]))

        return cls(
            static=gaussians("static"),
            shell=gaussians("shell"),
            semistatic=moving("semistatic"),
            dynamic=moving("dynamic"),
            gain=tensors["gain"],
            duration=float(meta["duration"]),
            softness=float(meta["softness"]),
            static_uncertainty=tensors.get("static.uncertainty"),
        )


@dataclass
class LayeredRendering:
    """What render_layers() returns, images [H, W, ...] of one camera at one time."""

    color: Tensor  # [H, W, 3]
    masks: Tensor  # [H, W, 3]: M̂_st, M̂_ss, M̂_dy, how much of a pixel each layer shows
    uncertainty: Tensor  # [H, W, 1]: B = β_min + blended β (LMF equation 4)
    plan: Plan  # of the static Gaussians and the shell, then of the moving ones that live at the time
    index: Tensor  # [M] int64: which of the scene's Gaussians those are (static, shell, semi-static, dynamic)
    drawn: tuple[int, int, int]  # how many of them each layer has, the shell's with the static ones
    parts: Tensor | None = None  # [H, W, 3, 3]: what each layer adds to color, [..., layer, channel]

    @property
    def alpha(self) -> Tensor:
        """[H, W, 1]: the sum of the masks, to the bit."""
        return self.masks.sum(dim=-1, keepdim=True)

    @property
    def depth(self) -> Tensor:
        """Expected depth along the camera's z axis, [H, W, 1], world units."""
        return self.plan.depth()

    def blend(self, values: Tensor, background: Tensor | None = None) -> Tensor:
        """Anything else that the scene's Gaussians carry, values [N, C] in its order, as an image [H, W, C]."""
        return self.plan.blend(values[self.index], background)


def render_layers(
    scene: LayeredScene,
    camera: Camera,
    time: float,
    *,
    sh_degree: int | None = None,
    parts: bool = False,
    absgrad: bool = False,
    near: float = 0.01,
    background: Tensor | None = None,
) -> LayeredRendering:
    """Colour, masks and uncertainty of a layered scene, from one projection, one sort and one walk.

    Args:
        camera: one camera, not a batch: the dynamic layer moves with it.
        time: in [0, 1] over the video.
        sh_degree: limits the spherical harmonics of the static layer.
        parts: also what each layer adds to the colour, for losses on layers.
        absgrad, near: as in plan().
        background: [3], behind everything.
    """
    if camera.viewmat.ndim != 2:
        raise ValueError(f"camera must be a single one, but is a batch of {camera.viewmat.shape[0]}")
    still = joined(scene.static, scene.shell)
    moving = [_living(layer, scene, camera, time) for layer in (scene.semistatic, scene.dynamic)]
    built = plan(
        torch.cat([still.means, *(m.means for m in moving)]),
        torch.cat([still.quats, *(m.quats for m in moving)]),
        torch.cat([still.log_scales, *(m.log_scales for m in moving)]).exp(),
        torch.cat([still.opacities, *(m.opacities for m in moving)]),
        camera.viewmat, camera.K, camera.width, camera.height, near=near, absgrad=absgrad,
    )  # fmt: skip
    degree = still.sh_degree if sh_degree is None else min(sh_degree, still.sh_degree)
    seen = built.visible[:, : len(still)]
    still_colors = view_colors(still.means, still.sh0, still.shN, camera.viewmat[None], degree, seen)[0]
    bright = scene.brightness(time)
    layered = (
        (still_colors * bright, _static_betas(scene, still)),
        (moving[0].colors * bright, moving[0].betas),
        (moving[1].colors, moving[1].betas),
    )
    values = torch.cat([_values(*own, layer, parts) for layer, own in enumerate(layered)])
    shown, blended, showing = built.blend(values).split((9 if parts else 3, 1, 2), dim=-1)
    by_layer = shown.unflatten(-1, (3, 3)) if parts else None
    color = shown if by_layer is None else by_layer.sum(dim=-2)
    # what is opaque and neither semi-static nor dynamic is static: a channel less to blend
    masks = torch.cat((built.alpha - showing.sum(dim=-1, keepdim=True), showing), dim=-1)
    if background is not None:
        color = color + (1 - masks.sum(dim=-1, keepdim=True)) * background
    begins = (len(still), len(still) + len(scene.semistatic))
    rows = [begin + layer.rows for begin, layer in zip(begins, moving, strict=True)]
    index = torch.cat((torch.arange(len(still), device=still.device), *rows))
    drawn = (len(still), len(rows[0]), len(rows[1]))
    return LayeredRendering(color, masks, BETA_MIN + blended, built, index, drawn, by_layer)


@dataclass
class _Living:
    """The Gaussians of a moving layer that show at a time, in the world; only they are projected and sorted."""

    rows: Tensor  # [M] int64, which of the layer's they are
    means: Tensor  # [M, 3]
    quats: Tensor  # [M, 4]
    log_scales: Tensor  # [M, 3]
    opacities: Tensor  # [M]
    colors: Tensor  # [M, 3]
    betas: Tensor  # [M]


def _living(layer: MovingLayer, scene: LayeredScene, camera: Camera, time: float) -> _Living:
    means, quats, opacities, colors = layer.at(time, scene.duration, camera, scene.softness)
    rows = opacities.detach().nonzero()[:, 0]

    def of(tensor: Tensor) -> Tensor:
        return tensor.index_select(0, rows)

    scales, betas = of(layer.gaussians.log_scales), F.softplus(of(layer.uncertainty))
    return _Living(rows, of(means), of(quats), scales, of(opacities), of(colors), betas)


def _values(colors: Tensor, betas: Tensor, layer: int, split: bool) -> Tensor:
    """What Gaussians of a layer carry, [N, 6]: colour, β, and whether they are semi-static or dynamic. With `split`
    [N, 12]: the colour stands in three columns of nine, those of its layer.
    """
    if split:
        colors = F.pad(colors, (3 * layer, 6 - 3 * layer))
    values = torch.cat((colors, betas[:, None]), dim=1)
    if layer == STATIC:
        return F.pad(values, (0, 2))
    member = F.one_hot(torch.tensor(layer - 1), 2).to(values).expand(len(values), 2)
    return torch.cat((values, member), dim=1)


def _static_betas(scene: LayeredScene, still: Gaussians) -> Tensor:
    """β of static Gaussians and shell, [N]: zero where there is none."""
    if scene.static_uncertainty is None:
        return still.means.new_zeros(len(still))
    return F.pad(F.softplus(scene.static_uncertainty), (0, len(scene.shell)))


def joined(a: Gaussians, b: Gaussians) -> Gaussians:
    """Both sets; the SH coefficients that one lacks are zero."""
    degrees = max(a.shN.shape[1], b.shN.shape[1])
    other = b.parameters()
    joined = {}
    for name, value in a.parameters().items():
        if name == "shN":
            value, other[name] = (F.pad(v, (0, 0, 0, degrees - v.shape[1])) for v in (value, other[name]))
        joined[name] = torch.cat((value, other[name]))
    return Gaussians(**joined)

"""Densification: how the set of Gaussians grows and shrinks while it is fitted.

A strategy sees every step: `watch` before the backward pass, `observe` after it, `update` after Adam's step.
All randomness comes from the generator it is given; all it remembers is in `state_dict`.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from gsfields.config import DensifyConfig
from gsfields.fit.parameters import Parameters

if TYPE_CHECKING:
    from gsfields.plans import Plan

Rows = tuple[Tensor, int]  # different indices [M], and the size of the set that they are of
_SPLIT_SHRINK = 1.6  # 3DGS: the two halves of a split Gaussian have its scales divided by 0.8 x 2
_MAX_COPIES = 51  # 3DGS-MCMC evaluates its binomial sum up to this many Gaussians in one place


def make_strategy(config: DensifyConfig, extent: float) -> Strategy:
    """The strategy that the configuration names. Raises ImportError where it needs gsplat and that is
    missing.
    """
    kinds = {"none": Strategy, "ranked": Ranked, "mcmc": MCMC, "gsplat": Gsplat}
    return kinds[config.strategy](config, extent)


class Strategy:
    """Keeps the set as it is; the interface of the others."""

    absgrad = False  # whether the plan must collect the sums of |dL/dmeans2d|

    def __init__(self, config: DensifyConfig, extent: float) -> None:
        self.config = config
        self.extent = extent

    def watch(self, plan: Plan) -> None:
        """Before the backward pass."""

    def observe(self, plan: Plan, part: slice = slice(None), rows: Rows | None = None) -> None:
        """After the backward pass: gather statistics of this part of the plan's Gaussians, which are the `rows` of a
        larger set (None: all).
        """

    def update(self, parameters: Parameters, step: int, refine: bool, generator: torch.Generator) -> None:
        """After Adam's step: change the set, if this is a `refine` round."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


class Ranked(Strategy):
    """Density control by rank, with a budget and without opacity resets.

    Each round removes faint, huge and never visible Gaussians, then splits the given share, those with the
    largest mean |dL/dmeans2d| (absgrad: Ye et al. 2024, AbsGS). Ranks need no threshold, whose right value
    depends on the image size. 3DGS clones instead of splitting what is small in the world; splitting
    everything gave 2 dB more on an object at 200 x 200 and 0.1 dB more on photographs, at equal counts.
    """

    absgrad = True

    def __init__(self, config: DensifyConfig, extent: float, *, prune_unseen: bool = True) -> None:
        super().__init__(config, extent)
        self.prune_unseen = prune_unseen  # not where a Gaussian lives for a few frames only
        self.gradient = torch.zeros(0)  # [N] sum over visits of |dL/dmeans2d|
        self.visits = torch.zeros(0)  # [N] steps in which the Gaussian was on screen

    @torch.no_grad()
    def observe(self, plan: Plan, part: slice = slice(None), rows: Rows | None = None) -> None:
        assert plan.absgrad is not None  # rendered with absgrad=True
        gradient, radii = plan.absgrad[:, part], plan.radii[:, part]
        index, n = rows or (slice(None), radii.shape[-2])
        if len(self.gradient) != n:
            self.gradient, self.visits = torch.zeros(n), torch.zeros(n)
        self.gradient[index] += gradient.norm(dim=-1).sum(dim=0)
        self.visits[index] += (radii > 0).all(dim=-1).sum(dim=0)

    @torch.no_grad()
    def update(self, parameters: Parameters, step: int, refine: bool, generator: torch.Generator) -> None:
        if not refine or len(self.gradient) != len(parameters):
            return
        gaussians = parameters.gaussians
        dead = gaussians.opacities < self.config.prune_opacity
        dead |= gaussians.scales.amax(dim=1) > self.config.prune_scale * self.extent
        if self.prune_unseen:
            dead |= self.visits == 0
        if bool(dead.all()):  # black images or a diverged fit: there is nothing sensible to keep, so keep all
            dead[:] = False
        living = int((~dead).sum())
        budget = max(0, min(int(self.config.growth * living), self.config.max_gaussians - living))
        score = self.gradient / self.visits.clamp(min=1)
        score[dead] = 0
        chosen = score.topk(budget).indices
        split(parameters, keep=~dead, chosen=chosen[score[chosen] > 0], generator=generator)
        self.gradient = torch.zeros(0)

    def state_dict(self) -> dict[str, Tensor]:
        return {"gradient": self.gradient, "visits": self.visits}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.gradient, self.visits = state["gradient"].clone(), state["visits"].clone()


def split(parameters: Parameters, *, keep: Tensor, chosen: Tensor, generator: torch.Generator) -> None:
    """Remove the Gaussians not in `keep` (bool [N]) and replace each in `chosen` (integers [M]) by two.

    The two have 1/1.6 of its scales, its opacity and colour, centres drawn from it (Kerbl et al. 2023, section
    5.2) and no moments.
    """
    keep = keep.clone()
    keep[chosen] = False
    kept = keep.nonzero()[:, 0]
    index = torch.cat((kept, chosen, chosen))
    fresh = torch.arange(len(index)) >= len(kept)
    means = parameters.values["means"].detach()[index]
    log_scales = parameters.values["log_scales"].detach()[index]
    rotations = rotation_matrices(parameters.values["quats"].detach()[index[fresh]])
    offsets = log_scales[fresh].exp() * torch.randn(2 * len(chosen), 3, generator=generator)
    means[fresh] += (rotations @ offsets[..., None])[..., 0]
    log_scales[fresh] -= math.log(_SPLIT_SHRINK)
    parameters.gather(index, fresh, {"means": means, "log_scales": log_scales})


class MCMC(Strategy):
    """3D Gaussian Splatting as Markov Chain Monte Carlo (Kheradmand et al. 2024).

    Each round moves dead Gaussians onto living ones, drawn in proportion to opacity, and adds some in the
    same way up to the budget; opacities and scales are chosen so that the image hardly changes (their
    equation 9). Every step adds noise to the centres, shaped by the covariance and large for faint Gaussians
    (their equation 8).
    """

    @torch.no_grad()
    def update(self, parameters: Parameters, step: int, refine: bool, generator: torch.Generator) -> None:
        if refine:
            opacities = parameters.gaussians.opacities
            dead = opacities <= self.config.prune_opacity
            if not bool(dead.all()):
                n = len(dead)
                wanted = max(n, min(self.config.max_gaussians, int((1 + self.config.growth) * n)))
                self._relocate(parameters, dead, wanted - n, generator)
        self._add_noise(parameters, generator)

    @staticmethod
    def _relocate(parameters: Parameters, dead: Tensor, added: int, generator: torch.Generator) -> None:
        """Put the dead ones, and `added` new ones, where living ones are."""
        n = len(dead)
        opacities = parameters.gaussians.opacities.detach()
        moved = dead.nonzero()[:, 0]
        count = len(moved) + added
        if count == 0:
            return
        weights = torch.where(dead, 0.0, opacities)
        source = torch.multinomial(weights, count, replacement=True, generator=generator)
        copies = 1 + torch.bincount(source, minlength=n)  # [N] how many will share the place of each
        new_opacities, shrink = shared_place(opacities, copies)
        index = torch.arange(n + added)
        index[moved] = source[: len(moved)]
        index[n:] = source[len(moved) :]
        log_scales = (parameters.values["log_scales"].detach() + shrink.log()[:, None])[index]
        changed = (copies > 1)[index]
        logits = torch.where(copies > 1, new_opacities.logit(), parameters.values["opacity_logits"].detach())[
            index
        ]
        parameters.gather(index, changed, {"log_scales": log_scales, "opacity_logits": logits})

    def _add_noise(self, parameters: Parameters, generator: torch.Generator) -> None:
        g = parameters.gaussians
        opacities = g.opacities.detach()
        strength = torch.sigmoid(-100 * (opacities - 0.005)) * (self.config.noise * parameters.rate("means"))
        noise = torch.randn(len(parameters), 3, generator=generator) * strength[:, None]
        half = (
            rotation_matrices(g.quats.detach()) * g.scales.detach()[:, None, :]
        )  # R S; the covariance is R S (R S)^T
        noise = (half @ (half.mT @ noise[..., None]))[..., 0]
        parameters.values["means"].data += noise


def shared_place(opacities: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity of each of N Gaussians put in the place of one, and the factor on its scales, so that they look
    like it.

    o' = 1 - (1 - o)^(1/N) and s' = s o / sum_{i=1..N} sum_{k=0..i-1} C(i-1, k) (-1)^k o'^(k+1) / sqrt(k+1)
    (Kheradmand et al. 2024, equation 9). The sum over i of C(i-1, k) is C(N, k+1).

    Args:
        opacities: [M] in (0, 1).
        copies: integers [M], N of each; above 51 taken as 51.

    Returns ([M], [M]); computed in float64, since the sum alternates.
    """
    n = copies.clamp(1, _MAX_COPIES).double()
    o = opacities.double().clamp(0.005, 1 - 1e-6)
    shared = 1 - (1 - o) ** (1 / n)
    k = torch.arange(_MAX_COPIES, dtype=torch.float64)
    log_choose = (
        torch.lgamma(n + 1)[:, None] - torch.lgamma(k + 2) - torch.lgamma((n[:, None] - k).clamp(min=1))
    )
    terms = log_choose.exp() * (-1) ** k * shared[:, None] ** (k + 1) / (k + 1).sqrt()
    total = torch.where(k < n[:, None], terms, 0.0).sum(dim=1)
    factor = torch.where(n > 1, o / total, 1.0)
    return shared.clamp(min=0.005).to(opacities.dtype), factor.to(opacities.dtype)


def rotation_matrices(quats: Tensor) -> Tensor:
    """Rotation matrices [N, 3, 3] of quaternions wxyz [N, 4] of any length but zero."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(-1, 3, 3)


class Gsplat(Strategy):
    """gsplat's DefaultStrategy (thresholds on the gradient, the original 3DGS rule), run on our plans.

    Its growth has no budget: above `max_gaussians` it only observes. It draws from the global generator,
    which is seeded from ours around each call. Opacities are not reset.
    """

    _names: ClassVar = {"log_scales": "scales", "opacity_logits": "opacities"}  # ours to gsplat's
    _never = 1 << 60

    def __init__(self, config: DensifyConfig, extent: float) -> None:
        super().__init__(config, extent)
        try:
            from gsplat.strategy import DefaultStrategy
        except ImportError:
            raise ImportError(
                "strategy gsplat needs the package gsplat: pip install gsplat, or choose another"
            ) from None
        self.rule = DefaultStrategy(
            prune_opa=config.prune_opacity,
            refine_every=1,
            refine_stop_iter=self._never,
            reset_every=self._never,
        )
        self.state: dict[str, Any] = self.rule.initialize_state(scene_scale=extent)
        self.info: dict[str, Any] = {}

    def watch(self, plan: Plan) -> None:
        plan.means2d.retain_grad()

    def observe(self, plan: Plan, part: slice = slice(None), rows: Rows | None = None) -> None:
        n = plan.radii.shape[-2]
        assert plan.means2d.grad is not None  # watch was called
        self.info = {
            "means2d": SimpleNamespace(grad=plan.means2d.grad.reshape(-1, n, 2)),
            "radii": plan.radii.reshape(-1, n, 2),
            "width": plan.width,
            "height": plan.height,
            "n_cameras": plan.radii.numel() // (2 * n),
            "gaussian_ids": None,
        }

    @torch.no_grad()
    def update(self, parameters: Parameters, step: int, refine: bool, generator: torch.Generator) -> None:
        params = {self._names.get(name, name): value for name, value in parameters.values.items()}
        optimizers = {self._names.get(name, name): value for name, value in parameters.optimizers.items()}
        # the schedule is ours: each call either only observes or also refines
        refine = refine and len(parameters) < self.config.max_gaussians
        self.rule.refine_start_iter = -1 if refine else self._never
        with torch.random.fork_rng(devices=[]):
            if refine:
                torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=generator)))
            self.rule.step_post_backward(params, optimizers, self.state, step, self.info)
        for name in parameters.values:
            parameters.values[name] = params[self._names.get(name, name)]

    def state_dict(self) -> dict[str, Tensor]:
        return {key: value for key, value in self.state.items() if isinstance(value, Tensor)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.state.update({key: value.clone() for key, value in state.items()})

"""Densification: who is added, removed and moved, and that images hardly change where they should not."""

import math
from types import SimpleNamespace

import pytest
import torch

from gsfields.config import DensifyConfig
from gsfields.fit.densify import make_strategy, rotation_matrices, shared_place, split
from gsfields.fit.parameters import Parameters
from gsfields.gaussians import Gaussians


def scene(opacities, scale=0.01):
    n = len(opacities)
    g = Gaussians.from_points(
        torch.arange(3.0 * n).reshape(n, 3), torch.full((n, 3), 0.5), sh_degree=0, scale=scale
    )
    g.opacity_logits = torch.tensor(opacities).logit()
    return Parameters(g)


def plan_of(gradients, radii):
    """What a strategy reads of a plan."""
    n = len(gradients)
    absgrad = torch.zeros(1, n, 2)
    absgrad[0, :, 0] = torch.tensor(gradients)
    return SimpleNamespace(
        absgrad=absgrad, radii=torch.tensor(radii, dtype=torch.int32)[None, :, None].repeat(1, 1, 2)
    )


def run_ranked(parameters, gradients, radii, extent=1.0, **config):
    strategy = make_strategy(DensifyConfig(strategy="ranked", **config), extent)
    strategy.observe(plan_of(gradients, radii))
    strategy.update(parameters, 0, True, torch.Generator().manual_seed(0))
    return parameters


def test_ranked_splits_the_largest_gradients_within_the_share():
    parameters = run_ranked(scene([0.5] * 10), [float(i) for i in range(10)], [5] * 10, growth=0.2)
    assert len(parameters) == 12
    before = scene([0.5] * 10).values["means"].detach()
    assert torch.equal(parameters.values["means"][:8], before[:8])
    offsets = parameters.values["means"][8:] - before[[9, 8, 9, 8]]
    assert offsets.norm(dim=1).min() > 0 and offsets.norm(dim=1).max() < 0.05  # scales are 0.01
    torch.testing.assert_close(parameters.gaussians.scales[8:], torch.full((4, 3), 0.01 / 1.6))


def test_ranked_keeps_the_budget_and_the_dead_make_room():
    parameters = run_ranked(scene([0.5] * 10), [1.0] * 10, [5] * 10, growth=0.5, max_gaussians=11)
    assert len(parameters) == 11
    parameters = run_ranked(
        scene([0.001] * 3 + [0.5] * 7), [1.0] * 10, [5] * 10, growth=0.5, max_gaussians=10
    )
    assert len(parameters) == 10 and (parameters.gaussians.opacities > 0.4).all()


def test_ranked_prunes_the_faint_the_huge_and_the_never_visible():
    parameters = scene([0.001, 0.5, 0.5, 0.5])
    parameters.values["log_scales"].data[1] = math.log(0.6)
    kept = parameters.values["means"].detach()[3:].clone()
    run_ranked(parameters, [1.0, 1, 0, 1], [5, 5, 0, 5], growth=0.0)
    assert torch.equal(parameters.values["means"], kept)


def test_ranked_uses_the_mean_over_visits_and_forgets_after_a_round():
    strategy = make_strategy(DensifyConfig(growth=0.5), 1.0)
    strategy.observe(plan_of([3.0, 4.0], [5, 5]))
    strategy.observe(plan_of([3.0, 0.0], [5, 5]))
    parameters = scene([0.5, 0.5])
    strategy.update(parameters, 0, True, torch.Generator())
    assert parameters.values["means"][:, 0].tolist() == pytest.approx(
        [3, 0, 0], abs=0.1
    )  # the first was split
    strategy.update(parameters, 0, True, torch.Generator())  # nothing observed since
    assert len(parameters) == 3


def test_split_samples_follow_the_gaussian():
    n = 4000
    g = Gaussians.from_points(torch.zeros(n, 3) + 1, torch.full((n, 3), 0.5), sh_degree=0, scale=1.0)
    g.log_scales = torch.tensor([1.0, 0.1, 0.5]).log().repeat(n, 1)
    half = math.sqrt(0.5)
    g.quats = torch.tensor([2 * half, 0, 0, 2 * half]).repeat(n, 1)  # 90 degrees about z, not unit
    parameters = Parameters(g)
    everyone = torch.arange(n)
    split(parameters, keep=everyone >= 0, chosen=everyone, generator=torch.Generator().manual_seed(0))
    offsets = parameters.values["means"].detach() - 1
    torch.testing.assert_close(offsets.std(dim=0), torch.tensor([0.1, 1.0, 0.5]), rtol=0.05, atol=0)


@pytest.mark.parametrize("copies", [1, 2, 5, 51])
@pytest.mark.parametrize("opacity", [0.02, 0.5, 0.95])
def test_shared_place_is_equation_nine(copies, opacity):
    new = 1 - (1 - opacity) ** (1 / copies)
    total = 0.0
    for i in range(1, copies + 1):
        for k in range(i):
            total += math.comb(i - 1, k) * (-1) ** k * new ** (k + 1) / math.sqrt(k + 1)
    shared, factor = shared_place(torch.tensor([opacity]).double(), torch.tensor([copies]))
    assert shared.item() == pytest.approx(max(new, 0.005), rel=1e-6)
    assert factor.item() == pytest.approx(opacity / total, rel=1e-6)


def test_shared_place_keeps_the_integral_of_alpha_along_a_line():
    """What equation 9 is for: N copies composited have the same integral over a line as the original."""
    x = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    for copies in (2, 3, 8):
        shared, factor = shared_place(torch.tensor([0.8]).double(), torch.tensor([copies]))
        before = (0.8 * torch.exp(-0.5 * x**2)).mean()
        after = (1 - (1 - shared * torch.exp(-0.5 * (x / factor) ** 2)) ** copies).mean()
        assert after.item() == pytest.approx(before.item(), rel=1e-6)


def test_mcmc_moves_the_dead_and_grows_to_the_budget():
    parameters = scene([0.001] * 4 + [0.6] * 6)
    for value in parameters.values.values():
        value.grad = torch.ones_like(value)
    parameters.set_rates(dict.fromkeys(parameters.values, 0.0))
    parameters.step()
    living = parameters.values["means"].detach()[4:].clone()
    strategy = make_strategy(DensifyConfig(strategy="mcmc", growth=0.5, max_gaussians=12), 1.0)
    strategy.update(parameters, 0, True, torch.Generator().manual_seed(0))
    assert len(parameters) == 12
    distance = torch.cdist(parameters.values["means"].detach(), living).amin(dim=1)
    assert distance.max() == 0  # everyone now stands where a living one stood (the noise has rate 0)
    assert (parameters.gaussians.opacities > 0.005).all()
    moments = parameters.optimizers["means"].state[parameters.values["means"]]["exp_avg"]
    assert (moments[:4] == 0).all() and (moments[10:] == 0).all() and (moments != 0).any()


def test_mcmc_noise_is_shaped_by_the_covariance_and_spares_the_opaque():
    n = 2000
    parameters = scene([0.004] * n + [0.5] * n)
    parameters.values["log_scales"].data[:] = torch.tensor([1.0, 0.5, 0.1]).log()
    parameters.set_rates({"means": 1e-6})
    before = parameters.values["means"].detach().clone()
    strategy = make_strategy(DensifyConfig(strategy="mcmc"), 1.0)
    strategy.update(parameters, 0, False, torch.Generator().manual_seed(0))
    moved = (parameters.values["means"].detach() - before)[:n].std(dim=0)
    torch.testing.assert_close(moved / moved[0], torch.tensor([1.0, 0.25, 0.01]), rtol=0.1, atol=5e-3)
    assert torch.equal(parameters.values["means"][n:], before[n:])


def test_none_changes_nothing_and_unknown_memory_is_empty():
    parameters = scene([0.001] * 3)
    strategy = make_strategy(DensifyConfig(strategy="none"), 1.0)
    strategy.update(parameters, 0, True, torch.Generator())
    assert len(parameters) == 3 and strategy.state_dict() == {}


def test_gsplat_strategy_grows_and_prunes_on_our_parameters():
    pytest.importorskip("gsplat")
    parameters = scene([0.001] + [0.5] * 5, scale=0.02)
    for value in parameters.values.values():
        value.grad = torch.ones_like(value)
    parameters.step()
    strategy = make_strategy(DensifyConfig(strategy="gsplat"), 1.0)
    means2d = torch.zeros(1, 6, 2, requires_grad=True)
    plan = SimpleNamespace(
        means2d=means2d * 1, radii=torch.full((1, 6, 2), 5, dtype=torch.int32), width=100, height=100
    )
    strategy.watch(plan)
    (plan.means2d * torch.tensor([0.0, 0, 0, 0, 0, 1])[None, :, None]).sum().backward()
    strategy.observe(plan)
    before = torch.random.get_rng_state()
    strategy.update(parameters, 0, False, torch.Generator().manual_seed(0))
    assert len(parameters) == 6 and strategy.state_dict()["count"].tolist() == [1.0] * 6
    strategy.update(parameters, 1, True, torch.Generator().manual_seed(0))
    assert len(parameters) == 6  # the first pruned, the last split in two
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in parameters.values.items():
        assert parameters.optimizers[name].state[value]["exp_avg"].shape == value.shape


def test_rotation_matrices_are_rotations_of_the_named_axis():
    rotation = rotation_matrices(torch.tensor([[3.0, 0, 0, 3.0]]))[0]  # 90 degrees about z
    torch.testing.assert_close(
        rotation, torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), atol=1e-6, rtol=0
    )

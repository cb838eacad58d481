"""Adam's moments stay with their Gaussians through every change of the set."""

import torch

from gsfields.fit.parameters import Parameters
from tests.test_gaussians import random_gaussians


def stepped(n=6):
    """Parameters after two steps with known gradients, so that moments are not trivial."""
    parameters = Parameters(random_gaussians(n))
    parameters.set_rates(dict.fromkeys(parameters.values, 0.01))
    for scale in (1.0, 2.0):
        for i, value in enumerate(parameters.values.values()):
            rows = torch.arange(1.0, n + 1).reshape(-1, *[1] * (value.ndim - 1))
            value.grad = torch.ones_like(value) * rows * scale * (i + 1)
        parameters.step()
    return parameters


def test_step_is_adam_and_drops_the_gradients():
    parameters = Parameters(random_gaussians())
    reference = torch.nn.Parameter(parameters.values["means"].detach().clone())
    adam = torch.optim.Adam([reference], lr=0.01, eps=1e-15)
    parameters.set_rates({"means": 0.01})
    for k in range(3):
        reference.grad = torch.full_like(reference, 0.5 + k)
        for value in parameters.values.values():
            value.grad = torch.full_like(value, 0.5 + k)
        adam.step()
        parameters.step()
    torch.testing.assert_close(parameters.values["means"], reference)
    assert parameters.values["means"].grad is None and parameters.rate("means") == 0.01


def test_gather_carries_values_and_moments():
    parameters = stepped()
    before = {name: value.detach().clone() for name, value in parameters.values.items()}
    moments = {name: value.clone() for name, value in parameters.state_dict().items()}
    index = torch.tensor([5, 0, 0, 3])
    fresh = torch.tensor([False, False, True, False])
    parameters.gather(index, fresh, {"opacity_logits": torch.arange(4.0)})
    assert len(parameters) == 4
    for name, value in parameters.values.items():
        expected = torch.arange(4.0) if name == "opacity_logits" else before[name][index]
        assert torch.equal(value, expected)
        for key in ("exp_avg", "exp_avg_sq"):
            moment = parameters.optimizers[name].state[value][key]
            expected = moments[f"{name}.{key}"][index]
            assert (expected != 0).all()
            expected[2] = 0
            assert torch.equal(moment, expected)
        assert parameters.optimizers[name].state[value]["step"] == 2
        assert parameters.optimizers[name].param_groups[0]["params"] == [value]


def test_gather_before_the_first_step_and_steps_after_it():
    parameters = Parameters(random_gaussians())
    parameters.gather(torch.tensor([1, 1]), torch.tensor([False, True]))
    parameters.set_rates(dict.fromkeys(parameters.values, 0.1))
    before = parameters.values["means"].detach().clone()
    for value in parameters.values.values():
        value.grad = torch.ones_like(value)
    parameters.step()
    torch.testing.assert_close(parameters.values["means"], before - 0.1)


def test_state_dict_restores_the_same_next_step():
    first = stepped()
    second = Parameters(first.gaussians)
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    for parameters in (first, second):
        parameters.set_rates(dict.fromkeys(parameters.values, 0.02))
        for value in parameters.values.values():
            value.grad = torch.full_like(value, 0.3)
        parameters.step()
    for name, value in first.values.items():
        assert torch.equal(value, second.values[name])

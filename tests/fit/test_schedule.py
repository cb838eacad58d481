"""Schedules are shares of the run; the order of the views is a permutation per epoch."""

import pytest
import torch

from gsfields import config as configuration
from gsfields.config import Config
from gsfields.fit.schedule import Schedule, ViewOrder


def schedule(**overrides):
    config = Config()
    configuration.apply(config, [(name, str(value)) for name, value in overrides.items()])
    return Schedule(config, extent=2.0)


@pytest.mark.parametrize("steps", [10, 1000])
def test_rates_decay_to_their_share_over_the_actual_run(steps):
    s = schedule(steps=steps, means_lr=1e-3, means_decay=0.01, scales_lr=0.5, decay=0.1)
    first, last = s.rates(0), s.rates(steps - 1)
    assert first["means"] == pytest.approx(2e-3) and last["means"] == pytest.approx(2e-5)
    assert first["log_scales"] == pytest.approx(0.5) and last["log_scales"] == pytest.approx(0.05)
    assert all(last[name] < first[name] for name in first)


def test_a_run_of_one_step_has_rates():
    assert schedule(steps=1).rates(0)["means"] > 0


def test_sh_degree_and_image_scale():
    s = schedule(steps=100, sh_interval=0.2, sh_degree=2, coarse=0.25, coarse_scale=0.5)
    assert [s.sh_degree(step) for step in (0, 19, 20, 40, 60, 99)] == [0, 0, 1, 2, 2, 2]
    assert [s.image_scale(step) for step in (0, 24, 25, 99)] == [0.5, 0.5, 1, 1]
    assert schedule(sh_interval=0).sh_degree(0) == 3 and schedule(coarse=0).image_scale(0) == 1


def test_rounds_lie_between_start_and_stop():
    s = schedule(steps=100, refine_every=10, refine_start=0.2, refine_stop=0.5)
    assert [step for step in range(100) if s.refines_after(step)] == [19, 29, 39, 49]


def test_every_epoch_visits_every_view_once_in_an_order_of_its_own():
    order = ViewOrder(10, torch.Generator().manual_seed(0))
    epochs = [[order.next() for _ in range(10)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_resumes_within_an_epoch():
    generator = torch.Generator().manual_seed(0)
    order = ViewOrder(10, generator)
    for _ in range(13):
        order.next()
    state, generator_state = order.state_dict(), generator.get_state()
    rest = [order.next() for _ in range(20)]
    other_generator = torch.Generator()
    other_generator.set_state(generator_state)
    other = ViewOrder(10, other_generator)
    other.load_state_dict(state)
    assert [other.next() for _ in range(20)] == rest

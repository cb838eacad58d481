"""Prompts that weigh scales: the formulae written out, what they choose, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

import gsfields
from gsfields.camera import Camera
from gsfields.fields.nested import Nested, group_bounds
from gsfields.fields.prompt_scales import SCALES, PromptScales
from gsfields.fit.querying import PromptQueries

N, D, E, S = 2500, 20, 12, 4


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nested(said: bool = True) -> Nested:
    shares = some(N, S, seed=1).softmax(dim=1)
    shares[:5] = 0  # of which nothing is said
    return Nested(some(N, D), some(E, D, seed=2), shares if said else None)


PHRASES, TEXTS = some(3, E, seed=3), 7 * some(5, E, seed=4)


def written_out(of: Nested, text: torch.Tensor, count: int, temperature: float, heed: float):
    """(a, m) in double precision, scale by scale."""
    x, y = [], []
    for stop in group_bounds(of.dim, count)[1:]:
        shown = of.theta[:, :stop].double() @ of.projection[:, :stop].double().T
        x.append(cosine_similarity(shown, text.double()[None], dim=1))
        y.append(torch.stack([cosine_similarity(shown, c.double()[None], dim=1) for c in PHRASES], dim=1))
    best = math.ceil(len(of) / 1000)
    peaks = [
        torch.sigmoid(10 * (at - beside.max(dim=1).values)).sort(descending=True).values[:best].mean()
        for at, beside in zip(x, y)
    ]
    a = torch.exp(torch.stack(peaks) / temperature)
    a = a / a.sum()
    margins = []
    for i in range(len(of)):
        told = of.said is not None and of.said[i].sum() > 0
        share = [heed * float(of.said[i, g]) + (1 - heed) / count if told else 1.0 for g in range(count)]
        gamma = [float(a[g]) * share[g] for g in range(count)]
        gamma = [one / sum(gamma) for one in gamma]
        beside = [sum(gamma[g] * y[g][i, k] for g in range(count)) for k in range(len(PHRASES))]
        margins.append(sum(gamma[g] * x[g][i] for g in range(count)) - max(beside))
    return a, torch.stack(margins)


@pytest.mark.parametrize(("heed", "temperature"), [(0.5, 0.02), (0.0, 0.5), (1.0, 0.1)])
def test_the_formulae(heed, temperature):
    of = nested()
    asked = PromptScales(of, PHRASES, temperature, heed)
    assert asked.count == S
    margins, weights = asked.margins(TEXTS), asked.weights(TEXTS)
    for k in (0, 3):
        a, m = written_out(of, TEXTS[k], S, temperature, heed)
        torch.testing.assert_close(weights[k].double(), a, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(margins[:, k].double(), m, atol=1e-4, rtol=0)
    torch.testing.assert_close(asked.margins(TEXTS / 100), margins, atol=1e-5, rtol=0)


def test_where_it_is_not_known_what_was_said():
    asked = PromptScales(nested(said=False), PHRASES)
    assert asked.count == SCALES
    a, m = written_out(asked.nested, TEXTS[0], SCALES, 0.02, 0.5)
    torch.testing.assert_close(asked.weights(TEXTS[:1])[0].double(), a, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(asked.margins(TEXTS[:1])[:, 0].double(), m, atol=1e-4, rtol=0)
    assert PromptScales(Nested(some(9, 3), some(E, 3)), PHRASES).count == 3  # no more than there are numbers


def test_rows_are_worked_on_in_parts(monkeypatch):
    whole = PromptScales(nested(), PHRASES).margins(TEXTS)
    monkeypatch.setattr("gsfields.fields.prompt_scales._HELD", 2 * N * S)
    torch.testing.assert_close(PromptScales(nested(), PHRASES).margins(TEXTS), whole)


def test_a_prompt_finds_the_scale_at_which_it_is_named():
    """Things are named by their own words at a small scale, and all by one word at a large one."""
    words = torch.linalg.qr(some(E, E, seed=5))[0]
    thing = torch.arange(40) % 4
    theta = torch.cat((words[4].expand(40, E), words[thing] - words[4]), dim=1)
    projection = torch.cat((torch.eye(E), torch.eye(E)), dim=1)
    asked = PromptScales(Nested(theta, projection, torch.full((40, 2), 0.5)), words[8:])
    small, large = asked.weights(words[[2, 4]]) @ asked.scales
    assert small < 0.3 and large > 0.7
    margins = asked.margins(words[[2, 4]])
    assert margins[thing == 2, 0].min() > 0.8 and margins[thing != 2, 0].max() < 0.1
    assert margins[:, 1].min() > 0.8


def test_pixels_say_the_mean_of_what_they_show():
    g = torch.Generator().manual_seed(0)
    camera = Camera.look_at([0, 0, -4], [0, 0, 0], [0, 1, 0], fov_y_degrees=40, width=45, height=33)
    asked = PromptScales(nested(), PHRASES)
    rows = torch.randperm(N, generator=g)[:300]
    plan = gsfields.plan(
        0.7 * torch.randn(300, 3, generator=g), torch.randn(300, 4, generator=g),
        0.05 + 0.1 * torch.rand(300, 3, generator=g), 0.3 + 0.6 * torch.rand(300, generator=g),
        camera.viewmat, camera.K, camera.width, camera.height,
    )  # fmt: skip
    answer = PromptQueries(plan, asked, rows).ask(TEXTS)
    torch.testing.assert_close(answer.alpha, plan.alpha[..., 0])
    means = plan.blend(asked.margins(TEXTS)[rows]) / plan.alpha.clamp_min(1e-9)
    torch.testing.assert_close(answer.relevancy, torch.sigmoid(10 * means), atol=1e-5, rtol=1e-5)
    assert answer.bound == 0 and (answer.relevancy[answer.alpha == 0] == 0.5).all()


def test_nothing_is_asked_or_there():
    asked = PromptScales(nested(), PHRASES)
    assert asked.margins(TEXTS[:0]).shape == (N, 0) and asked.weights(TEXTS[:0]).shape == (0, S)
    empty = PromptScales(Nested(some(0, D), some(E, D)), PHRASES)
    assert empty.margins(TEXTS).shape == (0, 5) and (empty.weights(TEXTS) == 1 / SCALES).all()
    # of a Gaussian that speaks at one scale alone, which nobody asks for, that scale is what there is
    alone = nested()
    assert alone.said is not None
    alone.said[:] = torch.eye(S)[torch.arange(N) % S]
    assert PromptScales(alone, PHRASES, 1e-4, heed=1.0).margins(TEXTS).isfinite().all()
    silent = PromptScales(Nested(torch.zeros(4, D), some(E, D), torch.zeros(4, S)), PHRASES)
    assert not silent.margins(TEXTS).any()  # as relevant as anything: 1/2


def test_bad_arguments():
    for bad in (PHRASES[0], PHRASES[:0], some(3, E + 1)):
        with pytest.raises(ValueError, match=r"phrases must be \[K, E=12\] with K >= 1"):
            PromptScales(nested(), bad)
    with pytest.raises(ValueError, match="temperature must be positive, but is 0"):
        PromptScales(nested(), PHRASES, 0)
    with pytest.raises(ValueError, match=r"heed must be in \[0, 1\], but is 2"):
        PromptScales(nested(), PHRASES, heed=2)
    with pytest.raises(ValueError, match=r"texts must be \[Q, E=12\], but is \[5, 13\]"):
        PromptScales(nested(), normalize(PHRASES)).margins(some(5, 13))

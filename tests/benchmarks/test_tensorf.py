"""The neural baseline of instances: its grids and renderer against sums written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, softplus

from benchmarks.baselines.tensorf import fields, render
from benchmarks.baselines.tensorf.fields import (
    DensityGrid,
    FieldSizes,
    InstanceHead,
    RadianceField,
    VectorMatrix,
)
from benchmarks.baselines.tensorf.render import Box, Grid, Rays, Samples
from benchmarks.baselines.tensorf.surface import Surface
from benchmarks.baselines.tensorf.train import RECIPES

SIZES = FieldSizes(
    density=4, appearance=4, appearance_features=6, color_width=16, density_shift=-4.0, instance_width=24
)


def random_field(
    seed: int = 0, resolution: fields.Resolution = (5, 6, 7), strength: float = 1.0
) -> RadianceField:
    """Of the tiny sizes, with planes and lines strong enough to matter."""
    torch.manual_seed(seed)
    field = RadianceField(SIZES, resolution)
    for parameter in field.grids():
        parameter.data *= strength / fields.FIRST_SIZE
    return field


def points(count: int, seed: int = 1) -> Tensor:
    return 2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 1


def test_vector_matrix_is_a_dense_grid():
    """Planes times lines equal the trilinear interpolation of the sums at the nodes, written out here."""
    torch.manual_seed(0)
    matrix, x = VectorMatrix(3, (4, 5, 6)), points(50)
    assert matrix.resolution == (4, 5, 6)
    dense = torch.zeros(4, 5, 6)
    for i in range(4):
        for j in range(5):
            for k in range(6):
                xy, xz, yz = (p[0] for p in matrix.planes)
                z, y, x_line = (line[0, :, :, 0] for line in matrix.lines)
                dense[i, j, k] = (
                    xy[:, j, i] * z[:, k] + xz[:, k, i] * y[:, j] + yz[:, k, j] * x_line[:, i]
                ).sum()
    torch.testing.assert_close(matrix.nodes(), dense)
    trilinear = grid_sample(
        dense.permute(2, 1, 0)[None, None], x.view(1, -1, 1, 1, 3), align_corners=True
    ).flatten()
    torch.testing.assert_close(sum(product.sum(0) for product in matrix(x)), trilinear, atol=1e-6, rtol=1e-5)


def test_resampling_keeps_the_values_that_it_can():
    """The same nodes again and a part of the box whose nodes lie on old ones change nothing; more nodes hardly."""
    field, x = random_field(resolution=(5, 9, 5)), points(40)
    before = field.sigma(x)
    field.resample(-torch.ones(3), torch.ones(3), (9, 17, 13))  # the old nodes are among the new ones
    torch.testing.assert_close(field.sigma(x), before, atol=1e-5, rtol=1e-4)
    low, high = torch.tensor([-0.5, -1.0, -1.0]), torch.tensor([1.0, 0.5, 0.0])
    middle = (low + high) / 2 + x * (high - low) / 2
    expected = field.sigma(middle)
    field.resample(low, high, (7, 13, 7))
    torch.testing.assert_close(field.sigma(x), expected, atol=1e-5, rtol=1e-4)
    assert all(parameter.requires_grad for parameter in field.grids())


def test_frozen_density_equals_the_field():
    field, x = random_field(), points(100)
    torch.testing.assert_close(DensityGrid(field).sigma(x), field.sigma(x), atol=1e-5, rtol=1e-4)


def ragged(lengths: list[int], seed: int = 0) -> tuple[Samples, Tensor]:
    """Samples of rays with these numbers of samples, and their densities."""
    generator = torch.Generator().manual_seed(seed)
    ray = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.rand(len(ray), generator=generator, dtype=torch.float64)
    for i in range(len(lengths)):
        distance[ray == i] = distance[ray == i].sort().values
    position = 2 * torch.rand(len(ray), 3, generator=generator, dtype=torch.float64) - 1
    sigma = 3 * torch.rand(len(ray), generator=generator, dtype=torch.float64)
    return Samples.of(ray, distance, position, len(lengths)), sigma


LENGTHS = [4, 0, 1, 7, 0]


def test_weights_written_out():
    samples, sigma = ragged(LENGTHS)
    step, row = 0.03, 0
    weights = render.weights_of(samples, sigma, step)
    for length in LENGTHS:
        let_through = 1.0
        for _ in range(length):
            alpha = 1 - math.exp(-float(sigma[row]) * step * 25)
            assert float(weights[row]) == pytest.approx(alpha * let_through, rel=1e-9)
            let_through *= 1 - alpha
            row += 1


def test_blends_written_out():
    samples, sigma = ragged(LENGTHS)
    weights = render.weights_of(samples, sigma, 0.03)
    spread, sums = 0.0, torch.zeros(len(LENGTHS), 3, dtype=torch.float64)
    for i in range(len(LENGTHS)):
        w, t = weights[samples.ray == i], samples.distance[samples.ray == i]
        spread += float((w[:, None] * w * (t[:, None] - t).abs()).sum() + (w**2).sum() * 0.03 / 3)
        sums[i] = (w[:, None] * samples.position[samples.ray == i]).sum(0)
    assert float(render.distortion(samples, weights, 0.03)) == pytest.approx(spread / len(LENGTHS), rel=1e-9)
    surface = Surface(samples.ray, samples.position, weights, samples.rays)
    torch.testing.assert_close(surface.blend(lambda x: x, 0, 5), sums)  # not divided by opacity
    torch.testing.assert_close(surface.blend(lambda x: x, 2, 4), sums[2:4])


def test_march_against_every_sample():
    """Samples fall on the rays, within the box, evenly spaced; empty cells take some out, and nothing else."""
    field, resolution = random_field(), (5, 6, 7)
    grid = Grid(Box(torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([1.0, 2.0, 3.0])), resolution)
    origins = torch.tensor([[0.0, 1.0, -2.0], [-3.0, 0.5, 1.0], [5.0, 5.0, 5.0], [0.0, 1.0, 1.0]])
    directions = torch.nn.functional.normalize(
        torch.tensor([[0.1, 0.0, 1.0], [1.0, 0.2, 0.1], [1.0, 0.0, 0.0], [0.3, -1.0, 0.2]]), dim=1
    )
    rays = Rays(origins, directions)
    every = grid.march(rays, near=0.01)
    expected = torch.bincount(every.ray, minlength=4)
    assert expected[2] == 0 and (expected[[0, 1, 3]] > 3).all()  # the third ray misses the box
    world = origins[every.ray] + every.distance[:, None] * directions[every.ray]
    torch.testing.assert_close(grid.box.low + (every.position + 1) / 2 * grid.box.extent, world)
    assert float(every.distance[every.ray == 3].min()) == pytest.approx(0.01)  # it starts in the box
    same = every.ray[1:] == every.ray[:-1]
    gaps = (every.distance[1:] - every.distance[:-1])[same]
    torch.testing.assert_close(gaps, torch.full_like(gaps, grid.step), atol=1e-5, rtol=0)

    alpha = grid.alpha(field)
    cells = ((every.position + 1) / 2 * (torch.tensor(resolution) - 1)).long()
    cells = torch.minimum(cells, torch.tensor(resolution) - 2)
    own = 1 - torch.exp(-field.sigma(every.position).detach() * grid.step * 25)
    bound = alpha[tuple(cells.unbind(1))]
    assert (own <= bound + 1e-5).all() and float(own.max()) > 0.05
    threshold = float(bound.median())
    grid.occupied = alpha > threshold
    kept = grid.march(rays, near=0.01)
    wanted = bound > threshold
    assert 0 < len(kept) < len(every) and torch.equal(kept.distance, every.distance[wanted])


def test_color_network_sees_direction_and_appearance():
    field, x = random_field(), points(7)
    directions = torch.nn.functional.normalize(points(7, seed=3), dim=1)
    colors = field.color(x, directions)
    assert colors.shape == (7, 3) and not torch.allclose(colors, field.color(x, -directions))
    waves = fields.encoded(directions, 2)
    expected = [f(k * directions[:, i]) for f in (torch.sin, torch.cos) for i in range(3) for k in (1, 2)]
    torch.testing.assert_close(waves, torch.stack(expected, dim=1))


def test_released_sizes():
    recipe = RECIPES["released"]
    field = RadianceField(recipe.sizes, (4, 4, 4))
    assert [tuple(m.weight.shape) for m in field.color_network if isinstance(m, torch.nn.Linear)] == [
        (128, 150),
        (128, 128),
        (3, 128),
    ]
    assert field.basis.weight.shape == (27, 144) and field.density.planes[0].shape[1] == 16
    head = InstanceHead(24, recipe.sizes)
    layers = [m.weight.shape for m in head.fast if isinstance(m, torch.nn.Linear)]
    assert [tuple(shape) for shape in layers] == [(256, 3), (256, 256), (256, 256), (24, 256)]
    x = torch.zeros(1, 3)
    assert float(field.sigma(x).detach()) < 10 * float(softplus(torch.tensor(-10.0)))
    nodes = fields.between(128, 192, 4)
    assert nodes[-1] == 192**3 and nodes[0] / 128**3 == pytest.approx((192 / 128) ** 0.75, rel=1e-5)
    assert fields.resolution_of(torch.tensor([2.0, 2.0, 2.0]), 192**3) == (192, 192, 192)
    rates = [recipe.learning_rate(p) for p in (0, 0.89, 0.9)]
    assert rates == [1, 1, 0.5] and RECIPES["small"].learning_rate(1.0) == pytest.approx(0.1)

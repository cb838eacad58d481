"""What must hold of any scene: invariances of the projection and the blend, on drawn scenes."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gsfields import ops
from tests.kernels.compare import assert_bitwise, assert_relative
from tests.kernels.scenes import Scene, Splats, generator, normal, random_scene, random_splats, skew, uniform
from tests.kernels.test_blend import blend

drawn = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**31)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
counts = st.integers(1, 150)
channel_counts = st.integers(1, 12)


def draw(backend, n, size, channels, seed, **options) -> tuple[Splats, torch.Tensor]:
    splats = backend.move(random_splats(n, *size, seed=seed, **options))
    return splats, backend.move(uniform(generator(seed + 1), 0, 1, n, channels))


def select(splats: Splats, index: torch.Tensor) -> Splats:
    names = ("means2d", "depths", "conics", "opacities2d", "radii")
    return replace(splats, **{name: getattr(splats, name)[:, index] for name in names})


@drawn
@given(counts, sizes, channel_counts, seeds)
def test_order_of_the_gaussians_does_not_matter(backend, n, size, channels, seed):
    splats, values = draw(backend, n, size, channels, seed)
    shuffle = torch.randperm(n, generator=generator(seed)).to(backend.device)
    image, transmittance = blend(splats, values)
    shuffled, shuffled_transmittance = blend(select(splats, shuffle), values[shuffle])
    assert_relative(shuffled, image, backend.tolerance(1e-6, 1e-14))
    assert_relative(shuffled_transmittance, transmittance, backend.tolerance(1e-6, 1e-14))


@drawn
@given(counts, sizes, channel_counts, seeds)
def test_blend_is_linear_in_values(backend, n, size, channels, seed):
    splats, first = draw(backend, n, size, channels, seed)
    second = backend.move(normal(generator(seed), n, channels))
    mixed = blend(splats, 2 * first - 3 * second)[0]
    expected = 2 * blend(splats, first)[0] - 3 * blend(splats, second)[0]
    assert (mixed - expected).abs().max() < backend.tolerance(2e-5, 1e-13)


@drawn
@given(counts, sizes, seeds)
def test_blend_of_ones_is_one_minus_transmittance(backend, n, size, seed):
    splats, ones = draw(backend, n, size, 1, seed)
    image, transmittance = blend(splats, torch.ones_like(ones))
    assert (image[..., 0] + transmittance - 1).abs().max() < backend.tolerance(5e-6, 1e-14)
    assert (transmittance > 1e-4 * (1 - 1e-5)).all() and (transmittance <= 1).all()


@drawn
@given(counts, sizes, st.integers(1, 20), st.integers(1, 20), seeds)
def test_channels_do_not_mix(backend, n, size, left, right, seed):
    splats, values = draw(backend, n, size, left + right, seed)
    background = backend.move(normal(generator(seed), left + right))
    whole = blend(splats, values, background)[0]
    parts = [blend(splats, values[:, c], background[c])[0] for c in (slice(None, left), slice(left, None))]
    assert (whole - torch.cat(parts, dim=-1)).abs().max() < backend.tolerance(5e-6, 1e-13)


@drawn
@given(counts, sizes, channel_counts, seeds)
def test_background_shows_through_the_transmittance(backend, n, size, channels, seed):
    splats, values = draw(backend, n, size, channels, seed)
    background = backend.move(normal(generator(seed), channels))
    plain, transmittance = blend(splats, values)
    on_background, same = blend(splats, values, background)
    assert_bitwise(same, transmittance)
    expected = plain + transmittance[..., None] * background
    assert (on_background - expected).abs().max() < backend.tolerance(5e-6, 1e-14)


@drawn
@given(counts, sizes, channel_counts, seeds)
def test_image_stays_within_the_values(backend, n, size, channels, seed):
    splats, values = draw(backend, n, size, channels, seed)
    image, _ = blend(splats, values, torch.full((channels,), 0.5).to(values))
    low, high = min(0.5, float(values.min())), max(0.5, float(values.max()))
    assert (image >= low - 1e-5).all() and (image <= high + 1e-5).all()


@drawn
@given(counts, sizes, channel_counts, st.integers(1, 20), seeds)
def test_unseen_gaussians_change_nothing(backend, n, size, channels, extra, seed):
    splats, values = draw(backend, n, size, channels, seed)
    unseen = backend.move(random_splats(extra, *size, seed=seed + 7))
    unseen.radii[...] = 0
    names = ("means2d", "depths", "conics", "opacities2d", "radii")
    both = replace(splats, **{k: torch.cat([getattr(unseen, k), getattr(splats, k)], dim=1) for k in names})
    more_values = torch.cat([torch.full((extra, channels), float("nan")).to(values), values])
    for actual, expected in zip(blend(both, more_values), blend(splats, values), strict=True):
        assert_bitwise(actual, expected)


@drawn
@given(counts, sizes, st.tuples(st.integers(0, 40), st.integers(0, 40)), seeds)
def test_moving_the_splats_by_whole_pixels_moves_the_image(backend, n, size, offset, seed):
    (width, height), (right, down) = size, offset
    splats, values = draw(backend, n, size, 3, seed)
    # Multiples of 1/256 pixel, so that moving them is exact in float32.
    splats = replace(splats, means2d=(splats.means2d * 256).round() / 256)
    moved = replace(
        splats,
        means2d=splats.means2d + torch.tensor([right, down]).to(values),
        width=width + right,
        height=height + down,
    )
    image = blend(splats, values)[0]
    assert_relative(blend(moved, values)[0][:, down:, right:], image, backend.tolerance(1e-6, 1e-14))


@drawn
@given(counts, sizes, st.integers(2, 3), seeds)
def test_views_are_independent(backend, n, size, views, seed):
    scene = backend.move(random_scene(n, *size, views=views, seed=seed))
    values = backend.move(uniform(generator(seed), 0, 1, n, 3))
    together = project_and_blend(scene, values)
    for b in range(views):
        alone = replace(scene, viewmats=scene.viewmats[b : b + 1], Ks=scene.Ks[b : b + 1])
        for actual, expected in zip(project_and_blend(alone, values), together, strict=True):
            assert_bitwise(actual[0], expected[b])


def project_and_blend(scene: Scene, values, **options):
    means2d, depths, conics, opacities2d, radii = ops.project(*scene.args, **options)
    splats = Splats(means2d, depths, conics, opacities2d, radii, scene.width, scene.height)
    return (*blend(splats, values), means2d, depths, conics, opacities2d, radii)


@drawn
@given(counts, sizes, seeds)
def test_moving_scene_and_camera_together_changes_nothing(n, size, seed):
    scene = random_scene(n, *size, seed=seed)
    rng = generator(seed)
    values, turn, shift = (
        uniform(rng, 0, 1, n, 3),
        torch.linalg.matrix_exp(skew(normal(rng, 3))),
        5 * normal(rng, 3),
    )
    back = torch.eye(4, dtype=torch.float64)
    back[:3, :3], back[:3, 3] = turn.T, -turn.T @ shift
    moved = replace(
        scene,
        means=scene.means @ turn.T + shift,
        quats=quaternion_product(quaternion_of(turn), scene.quats),
        viewmats=scene.viewmats @ back,
    )
    before, after = project_and_blend(scene, values), project_and_blend(moved, values)
    for actual, expected in zip(after[:2], before[:2], strict=True):
        assert (actual - expected).abs().max() < 1e-9


@drawn
@given(counts, sizes, st.floats(0.01, 100), seeds)
def test_the_unit_of_length_does_not_matter(n, size, factor, seed):
    scene = random_scene(n, *size, seed=seed)
    values = uniform(generator(seed), 0, 1, n, 3)
    viewmats = scene.viewmats.clone()
    viewmats[:, :3, 3] *= factor
    scaled = replace(scene, means=scene.means * factor, scales=scene.scales * factor, viewmats=viewmats)
    before, after = project_and_blend(scene, values), project_and_blend(scaled, values, near=0.01 * factor)
    for actual, expected in zip(after[:2], before[:2], strict=True):
        assert (actual - expected).abs().max() < 1e-9
    assert_relative(after[3], before[3] * factor, 1e-12)


def quaternion_product(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Hamilton product of wxyz quaternions: the rotation of q, then that of p."""
    (pw, pv), (qw, qv) = p.split([1, 3], dim=-1), q.split([1, 3], dim=-1)
    scalar = pw * qw - (pv * qv).sum(-1, keepdim=True)
    return torch.cat([scalar, pw * qv + qw * pv + torch.linalg.cross(pv.expand_as(qv), qv)], dim=-1)


def quaternion_of(turn: torch.Tensor) -> torch.Tensor:
    """The quaternion [4] whose rotation is turn [3, 3]: the null vector of q r = R r q, by eigenvectors."""
    xx, xy, xz, yx, yy, yz, zx, zy, zz = turn.flatten()
    symmetric = torch.stack(
        [
            torch.stack([xx + yy + zz, zy - yz, xz - zx, yx - xy]),
            torch.stack([zy - yz, xx - yy - zz, xy + yx, xz + zx]),
            torch.stack([xz - zx, xy + yx, yy - xx - zz, yz + zy]),
            torch.stack([yx - xy, xz + zx, yz + zy, zz - xx - yy]),
        ]
    )
    return torch.linalg.eigh(symmetric).eigenvectors[:, -1]

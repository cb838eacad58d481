"""ops.respond against the formulae in plain torch: values, gradients, life spans, poses, what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor

from gsfields import ops
from tests.kernels.compare import assert_bitwise, assert_relative
from tests.kernels.scenes import generator, normal, uniform

FLOAT32, FLOAT64 = 1e-5, 1e-10
CUTOFF = 1 / 255


@dataclass
class Moving:
    """The tensors of a call, in the order of the op."""

    means: Tensor
    quats: Tensor
    logits: Tensor
    colors: Tensor
    response: Tensor
    code: Tensor
    windows: Tensor

    def __iter__(self):
        return iter(getattr(self, f.name) for f in fields(self))

    def map(self, f) -> Moving:
        return Moving(*map(f, self))

    def leaves(self) -> Moving:
        return self.map(lambda t: t.detach().clone().requires_grad_())


TIME, SOFTNESS = 4.0, 0.6


def moving(n: int, rank: int, seed: int = 0, scale: float = 0.5) -> Moving:
    """Gaussians of which some live at TIME, some do not, and some are just coming or going; none at the cutoff."""
    rng = generator(seed + n + rank)
    logits, windows = normal(rng, n), torch.stack([uniform(rng, -3, 11, n), uniform(rng, -2, 1.5, n)], -1)
    response, code = normal(rng, n, 7, rank) * scale / max(rank, 1) ** 0.5, normal(rng, rank)
    scene = Moving(normal(rng, n, 3), normal(rng, n, 4), logits, normal(rng, n, 3), response, code, windows)
    near = (unclipped_opacity(scene, TIME, SOFTNESS) / CUTOFF - 1).abs() < 1e-3
    scene.logits[near] += 0.1
    kink = scene.colors + scene.response[:, 4:] @ scene.code
    scene.colors[kink.abs() < 1e-3] += 0.1
    return scene


def a_pose(seed: int) -> Tensor:
    rng = generator(seed)
    quat = normal(rng, 4)
    return torch.cat([quat / quat.norm(), normal(rng, 3)])


def log_gate(windows: Tensor, time: float, softness: float) -> Tensor:
    middle, half = windows[:, 0], windows[:, 1].exp()
    sigmoid = torch.nn.functional.logsigmoid
    ends = sigmoid((time - middle + half) / softness) + sigmoid((middle + half - time) / softness)
    return ends - 2 * sigmoid(half / softness)


def unclipped_opacity(scene: Moving, time: float, softness: float) -> Tensor:
    return (scene.logits + scene.response[:, 3] @ scene.code).sigmoid() * log_gate(
        scene.windows, time, softness
    ).exp()


def product(p: Tensor, q: Tensor) -> Tensor:
    """Hamilton's product: scalars, dot and cross products."""
    pw, pv, qw, qv = p[..., :1], p[..., 1:], q[..., :1], q[..., 1:]
    pv = pv.expand_as(qv)
    return torch.cat(
        [pw * qw - (pv * qv).sum(-1, keepdim=True), pw * qv + qw * pv + torch.linalg.cross(pv, qv)], -1
    )


def oracle(scene: Moving, time: float, softness: float, pose: Tensor | None) -> tuple[Tensor, ...]:
    opacity = unclipped_opacity(scene, time, softness)
    seen = opacity >= CUTOFF
    r = torch.where(seen[:, None], scene.response @ scene.code, 0.0)
    means, quats = scene.means + r[:, :3], scene.quats
    if pose is not None:
        point = torch.cat([torch.zeros_like(means[:, :1]), means], -1)
        turn, back = pose[:4], pose[:4] * pose.new_tensor([1, -1, -1, -1])
        means = product(product(turn, point), back.expand_as(point))[:, 1:] + pose[4:]
        quats = product(turn, quats)
    return means, quats, torch.where(seen, opacity, 0.0), (scene.colors + r[:, 4:]).clamp_min(0)


NAMES = ("means", "quats", "opacities", "colors")


def assert_matches_oracle(
    backend, scene: Moving, time: float, softness: float, pose: Tensor | None, tolerance: float | None = None
) -> None:
    given = scene.map(backend.move).leaves()
    exact = given.map(lambda t: t.detach().double().cpu()).leaves()
    own_pose = None if pose is None else backend.move(pose)
    actual = ops.respond(*given, time, softness, own_pose)
    expected = oracle(exact, time, softness, None if pose is None else own_pose.double().cpu())
    tolerance = tolerance or backend.tolerance(FLOAT32, FLOAT64)
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert_relative(a, e, tolerance, name)
    assert torch.equal(actual[2].cpu() > 0, expected[2] > 0)
    rng = generator(7)
    upstream = [normal(rng, *e.shape) for e in expected]
    torch.autograd.backward(actual, [v.to(a) for v, a in zip(upstream, actual, strict=True)])
    torch.autograd.backward(expected, upstream)
    for field, a, e in zip(fields(Moving), given, exact, strict=True):
        assert_relative(a.grad, e.grad, 4 * tolerance, f"gradient of {field.name}")


@pytest.mark.parametrize("posed", [False, True], ids=["world", "camera"])
@pytest.mark.parametrize(
    ("n", "rank"), [(0, 5), (1, 1), (33, 0), (33, 7), (129, 16), (1000, 31), (33, 100), (70, 512)]
)
def test_values_and_gradients_match_the_formulae(backend, n, rank, posed):
    scene = moving(n, rank)
    if n > 100:
        opacity = oracle(scene, TIME, SOFTNESS, None)[2]
        assert 0.1 < (opacity > 0).double().mean() < 0.9
    assert_matches_oracle(backend, scene, TIME, SOFTNESS, a_pose(n) if posed else None)


@pytest.mark.parametrize("softness", [1e-3, 0.3, 1e3, 1e6])
def test_short_and_long_life_spans(backend, softness):
    """Half lengths of 1e-3 to 1e6 times the softness, at times inside, at the ends and outside.

    The half length is given by its logarithm, so in float32 the ends of long spans are only known to 1e-6 of it.
    """
    scene = moving(96, 6)
    ratio = torch.logspace(-3, 6, 96)
    scene.windows[:, 1] = (ratio * softness).log()
    close = torch.tensor([0.0, 0.4, 1.0, 1.01])[torch.arange(96) % 4]
    clear = torch.tensor([-0.4, 0.8, -1.2, 3.0])[torch.arange(96) % 4]
    scene.windows[:, 0] = TIME - torch.where(ratio < 10, close, clear) * ratio * softness
    for row in range(96):
        while abs(float(unclipped_opacity(scene, TIME, softness)[row]) / CUTOFF - 1) < 0.01:
            scene.logits[row] += 0.1
    assert_matches_oracle(backend, scene, TIME, softness, None, backend.tolerance(1e-4, FLOAT64))


def test_inside_a_long_life_span_the_gate_is_exactly_one(backend):
    scene = moving(64, 4).map(backend.move)
    scene.windows[:, 0], scene.windows[:, 1] = TIME + 10, math.log(1e6)
    plain = (scene.logits + scene.response[:, 3] @ scene.code).sigmoid()
    assert_relative(ops.respond(*scene, TIME, 0.5)[2], plain, backend.tolerance(1e-6, 1e-14))
    scene.windows[:, 1] = 1000.0  # exp of it is infinite
    given = scene.leaves()
    opacity = ops.respond(*given, TIME, 0.5)[2]
    assert_relative(opacity, plain, backend.tolerance(1e-6, 1e-14))
    opacity.sum().backward()
    assert all(t.grad.isfinite().all() for t in given if t.grad is not None)
    assert (given.windows.grad == 0).all()


def test_the_gate_is_one_in_the_middle_whatever_its_length(backend):
    scene = moving(64, 0).map(backend.move)
    scene.windows[:, 0], scene.windows[:, 1] = TIME, backend.move(torch.linspace(-30, 30, 64))
    assert_relative(ops.respond(*scene, TIME, 0.5)[2], scene.logits.sigmoid(), backend.tolerance(1e-6, 1e-14))


def test_what_does_not_live_is_passed_through_without_its_response(backend):
    scene = moving(50, 9).map(backend.move)
    scene.windows[:, 0] = TIME + 1e6
    scene.response[:] = float("nan")  # not even read
    given = scene.leaves()
    pose = backend.move(a_pose(1))
    means, quats, opacities, colors = ops.respond(*given, TIME, SOFTNESS, pose)
    plain = replace(scene, response=torch.zeros_like(scene.response)).map(lambda t: t.double().cpu())
    expected = oracle(plain, TIME, SOFTNESS, pose.double().cpu())
    for a, e in zip((means, quats, opacities, colors), expected, strict=True):
        assert_relative(a, e, backend.tolerance(1e-6, 1e-12))
    (means.sum() + quats.sum() + opacities.sum() + colors.sum()).backward()
    for unchanged in ("logits", "response", "code", "windows"):
        assert (getattr(given, unchanged).grad == 0).all(), unchanged
    assert (given.means.grad != 0).all()


@pytest.mark.parametrize("field", ["logits", "windows", "response"])
def test_numbers_that_are_not_finite_reach_no_other_gaussian(backend, field):
    scene = moving(70, 20)
    scene.windows[:, 1] = 3.0
    clean = scene.map(lambda t: backend.move(t.clone()))
    bad = scene.map(lambda t: backend.move(t.clone()))
    getattr(bad, field)[5:8] = (
        torch.tensor([float("nan"), float("inf"), float("nan")])
        .to(bad.means)
        .view(3, *[1] * (getattr(bad, field).dim() - 1))
    )
    keep = torch.ones(70, dtype=torch.bool)
    keep[5:8] = False
    for a, e in zip(ops.respond(*bad, TIME, SOFTNESS), ops.respond(*clean, TIME, SOFTNESS), strict=True):
        assert_bitwise(a[keep], e[keep])
    given = bad.leaves()
    means, _, opacities, colors = ops.respond(*given, TIME, SOFTNESS)
    weight = keep.to(means)[:, None]  # as a projection that does not draw them
    torch.autograd.backward(
        (means, opacities, colors), (weight.expand_as(means), weight[:, 0], weight.expand_as(colors))
    )
    assert all(t.grad.isfinite().all() for t in (given.means, given.code, given.response))
    assert (given.response.grad[~keep] == 0).all()


@pytest.mark.parametrize("posed", [False, True], ids=["world", "camera"])
@pytest.mark.parametrize("rank", [0, 3])
def test_gradcheck(exact_backend, rank, posed):
    scene = moving(9, rank, seed=3).leaves()
    seen = oracle(scene, TIME, SOFTNESS, None)[2] > 0
    assert seen.any() and not seen.all()
    pose = exact_backend.move(a_pose(5)) if posed else None
    given = scene.map(exact_backend.move).leaves()
    assert torch.autograd.gradcheck(
        lambda *tensors: ops.respond(*tensors, TIME, SOFTNESS, pose), tuple(given)
    )


def test_only_the_gradients_that_are_asked_for(backend):
    scene = moving(40, 12).map(backend.move)
    full = scene.leaves()
    upstream = [torch.ones_like(t) for t in ops.respond(*full, TIME, SOFTNESS)]
    torch.autograd.backward(ops.respond(*full, TIME, SOFTNESS), upstream)
    for names in (("code",), ("response",), ("means", "windows"), ("logits",)):
        some = scene.map(torch.clone)
        for name in names:
            getattr(some, name).requires_grad_()
        torch.autograd.backward(ops.respond(*some, TIME, SOFTNESS), upstream)
        for name in names:
            assert_bitwise(getattr(some, name).grad, getattr(full, name).grad, name)


def test_the_same_bits_with_any_number_of_threads():
    def results(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            given = moving(3000, 21).map(Tensor.float).leaves()
            outputs = ops.respond(*given, TIME, SOFTNESS, a_pose(2).float())
            torch.autograd.backward(outputs, [torch.cos(t.detach()) for t in outputs])
        finally:
            torch.set_num_threads(before)
        return [*outputs, *(t.grad for t in given)]

    expected = results(1)
    for threads in (2, 5):
        for a, e in zip(results(threads), expected, strict=True):
            assert_bitwise(a, e)


def test_arguments_need_not_be_contiguous(backend):
    def strided(t: Tensor) -> Tensor:
        return t.repeat_interleave(2, dim=-1)[..., ::2] if t.shape[-1] > 1 else t

    scene, pose = moving(40, 6).map(backend.move), backend.move(a_pose(3))
    a = ops.respond(*scene.map(strided), TIME, SOFTNESS, strided(pose))
    for actual, expected in zip(a, ops.respond(*scene, TIME, SOFTNESS, pose), strict=True):
        assert_bitwise(actual, expected)


def test_compiles_whole_for_one_time_after_another():
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def loss(scene: tuple[Tensor, ...], time: float) -> Tensor:
        means, quats, opacities, colors = ops.respond(*scene, time, SOFTNESS)
        return (means * opacities[:, None]).sum() + quats.sum() + colors.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for time in (3.0, 3.5, 4.0, 4.5, 5.0):
        a, e = (moving(30, 5).map(Tensor.float).leaves() for _ in range(2))
        compiled(tuple(a), time).backward()
        loss(tuple(e), time).backward()
        for x, y in zip(a, e, strict=True):
            assert_relative(x.grad, y.grad, 1e-6)
    # One for the first time, one for any other.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 2


def bad_arguments() -> dict[str, tuple[dict, str]]:
    return {
        "means": ({"means": torch.zeros(5, 2)}, r"means has shape \[5, 2\], but must be \[N=5, 3\]"),
        "quats": ({"quats": torch.zeros(4, 4)}, r"quats has shape \[4, 4\], but must be \[N=5, 4\]"),
        "logits": ({"logits": torch.zeros(5, 1)}, r"logits has shape \[5, 1\], but must be \[N=5\]"),
        "colors": (
            {"colors": torch.zeros(5, 3, dtype=torch.float64)},
            "colors has dtype Double, but response has",
        ),
        "response": (
            {"response": torch.zeros(5, 6, 4)},
            r"response has shape \[5, 6, 4\], but must be \[N, 7, D\]",
        ),
        "dtype": (
            {"response": torch.zeros(5, 7, 4).half()},
            "response has dtype Half, but must be float32 or",
        ),
        "code": ({"code": torch.zeros(3)}, r"code has shape \[3\], but must be \[D=4\]"),
        "windows": ({"windows": torch.zeros(5)}, r"windows has shape \[5\], but must be \[N=5, 2\]"),
        "time of the op": ({"time": torch.zeros(2)}, r"time has shape \[2\], but must be \[\]"),
        "softness": ({"softness": 0.0}, "softness is 0, but must be finite and above 0"),
        "pose": ({"pose": torch.eye(4)}, r"pose has shape \[4, 4\], but must be \[7\]"),
        "device": ({"code": torch.zeros(4, device="meta")}, "code is on device meta and means on cpu"),
    }


@pytest.mark.parametrize("case", bad_arguments())
def test_bad_arguments_are_named(backend, case):
    changed, message = bad_arguments()[case]
    scene = moving(5, 4).map(lambda t: backend.move(t).float())
    arguments = {f.name: getattr(scene, f.name) for f in fields(scene)} | {
        "time": 0.0,
        "softness": 1.0,
        "pose": None,
    }
    changed = {
        k: t.to(backend.device) if isinstance(t, Tensor) and case != "device" else t
        for k, t in changed.items()
    }
    with pytest.raises(ValueError, match=message.replace("cpu", backend.device)):
        ops.respond(**arguments | changed)


def test_a_time_that_is_none_is_refused_or_shows_nothing(backend):
    """On a GPU the host does not wait to read the time."""
    scene = moving(5, 4).map(backend.move)
    for time in (math.nan, math.inf):
        if backend.name.startswith("cpu"):
            with pytest.raises(ValueError, match=r"time is (nan|inf), but must be finite"):
                ops.respond(*scene, time, SOFTNESS)
        else:
            assert (ops.respond(*scene, time, SOFTNESS)[2] == 0).all()


def test_a_pose_that_is_none_is_refused():
    scene = moving(5, 4)
    with pytest.raises(ValueError, match="pose has a quaternion of length 2, but it must be 1"):
        ops.respond(*scene, 0.0, 1.0, torch.tensor([2.0, 0, 0, 0, 0, 0, 0]).double())
    with pytest.raises(ValueError, match="pose holds inf"):
        ops.respond(*scene, 0.0, 1.0, torch.tensor([1.0, 0, 0, 0, 0, math.inf, 0]).double())
    pose = a_pose(0).requires_grad_()
    with pytest.raises(ValueError, match="pose requires a gradient"):
        ops.respond(*scene.leaves(), TIME, SOFTNESS, pose)[0].sum().backward()


# ---- pose_of --------------------------------------------------------------------------------------------------


def rotations() -> Tensor:
    """Random rotations, half turns about every kind of axis and next to them, and none at all."""
    axes = torch.cat(
        [torch.eye(3), normal(generator(1), 20, 3), torch.tensor([[1.0, 1, 0], [0, 1, 1], [1, 0, 1]])]
    )
    axes = torch.nn.functional.normalize(axes.double())
    angles = torch.tensor([0.0, 1e-9, 0.7, math.pi - 1e-7, math.pi, math.pi + 1e-7, 5.0], dtype=torch.float64)
    x, y, z = axes.T
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 1, 3, 3)
    return torch.linalg.matrix_exp(angles[:, None, None] * cross).flatten(0, 1)


def test_pose_of_any_rotation():
    points = normal(generator(2), 6, 3)
    for R in rotations():
        c2w = torch.eye(4, dtype=torch.float64)
        c2w[:3, :3], c2w[:3, 3] = R, torch.tensor([1.0, -2, 3])
        pose = ops.pose_of(c2w)
        assert abs(float(pose[:4].norm()) - 1) < 1e-12 and pose[0] >= 0
        scene = moving(6, 0)
        scene.means = points
        means, _, _, _ = ops.respond(*scene, TIME, SOFTNESS, pose)
        torch.testing.assert_close(means, points @ R.T + c2w[:3, 3], rtol=0, atol=1e-12)
        single = ops.pose_of(c2w.float())
        assert single.dtype == torch.float32 and abs(float(single[:4].norm()) - 1) < 1e-6


@pytest.mark.parametrize(
    ("c2w", "message"),
    [
        (torch.eye(3), r"c2w has shape \[3, 3\]"),
        (torch.eye(4) * 2, "not a rotation"),
        (torch.diag(torch.tensor([1.0, 1, -1, 1])), "not a rotation"),
        (torch.full((4, 4), math.nan), "not finite"),
    ],
)
def test_what_is_no_pose_is_refused(c2w, message):
    with pytest.raises(ValueError, match=message):
        ops.pose_of(c2w)

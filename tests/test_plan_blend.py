"""Plan.blend() of several outputs, of layers and of sampled pixels, parts of a plan, and linear queries."""

from __future__ import annotations

import pytest
import torch

import gsfields
from gsfields import ops, outputs
from gsfields.outputs import Output
from tests.kernels.compare import assert_bitwise, assert_relative
from tests.kernels.scenes import Scene, generator, normal, random_scene, uniform

N, W, H = 150, 45, 35
TOLERANCE = 1e-12


@pytest.fixture(params=[1, 2], ids=["one_view", "batch"])
def scene(request: pytest.FixtureRequest) -> Scene:
    return random_scene(N, W, H, views=request.param, seed=1, sigma=2.0)


def built(scene: Scene, **options) -> gsfields.Plan:
    """A plan of the scene, without a batch where it has one view."""
    views = (t if len(t) > 1 else t[0] for t in (scene.viewmats, scene.Ks))
    return gsfields.plan(*scene.gaussians, *views, scene.width, scene.height, **options)


def values_of(plan: gsfields.Plan) -> dict[str, torch.Tensor]:
    rng = generator(0)
    return {
        "color": uniform(rng, 0, 1, N, 3),
        "features": normal(rng, N, 40),
        "beta": uniform(rng, 0, 1, len(plan.depths), N, 1),
    }


# ---- several outputs ----


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
def test_several_outputs_are_what_each_is_alone(scene, joined, monkeypatch):
    monkeypatch.setattr(outputs, "COPIES_PER_PAIR", 1000 if joined else 0)
    values = {k: v.requires_grad_() for k, v in values_of(built(scene)).items()}
    background = {"color": torch.tensor([0.3, 0.6, 0.1]).double().requires_grad_()}
    rng = generator(2)
    ours, theirs = scene.requires_grad_(*Scene.GEOMETRY), scene.requires_grad_(*Scene.GEOMETRY)

    images = built(ours).blend(values, background)
    assert list(images) == list(values)
    cotangents = {k: normal(rng, *image.shape) for k, image in images.items()}
    leaves = [*values.values(), *background.values()]
    mine = torch.autograd.grad(
        sum((images[k] * g).sum() for k, g in cotangents.items()), [*leaves, *ours.gaussians]
    )
    plan = built(theirs)
    alone = {k: plan.blend(v, background.get(k)) for k, v in values.items()}
    for k, image in images.items():
        assert_relative(image, alone[k], TOLERANCE, k)
    single = torch.autograd.grad(
        sum((alone[k] * g).sum() for k, g in cotangents.items()), [*leaves, *theirs.gaussians]
    )
    for actual, expected in zip(mine, single, strict=True):
        assert_relative(actual, expected, 1e-10)


def test_an_output_joins_a_walk_only_where_copying_it_is_cheaper():
    def channels(walks: list[list[Output]]) -> list[list[int]]:
        return [[output.channels for output in walk] for walk in walks]

    asked = [Output(str(c), torch.zeros(10, c), None) for c in (3, 512, 1, 64)]
    limit = 64 * 10 / outputs.COPIES_PER_PAIR
    assert channels(outputs.walks(asked, limit)) == [[3, 1, 64], [512]]
    assert channels(outputs.walks(asked, limit - 1)) == [[3, 1], [512], [64]]
    assert channels(outputs.walks(asked, 1e9)) == [[3, 512, 1, 64]]
    stored = [asked[0], Output("half", torch.zeros(10, 2).half(), None), asked[2]]
    assert channels(outputs.walks(stored, 1e9)) == [[3, 1], [2]]


def test_outputs_that_share_a_walk_are_blended_once(scene, monkeypatch):
    calls = []
    blend = ops.blend
    monkeypatch.setattr(ops, "blend", lambda values, *a, **k: calls.append(values) or blend(values, *a, **k))
    plan = built(scene)
    images = plan.blend({"color": torch.rand(N, 3).double(), "beta": torch.rand(N, 1).double()})
    assert [tuple(v.shape) for v in calls] == [(N, 4)]
    plan.alpha  # noqa: B018 - of the same walk
    images["color"].clamp_(0, 0.1)  # parts may be changed in place
    assert len(calls) == 1
    single = torch.rand(N, 300).double()
    plan.blend(single)
    assert calls[-1] is single, "a single output is copied"


@pytest.mark.usefixtures("kernels")
def test_values_in_half_keep_their_dtype_beside_others():
    plan = built(random_scene(N, W, H, seed=3).to(torch.float32))
    rng = generator(0)
    values = {
        "color": uniform(rng, 0, 1, N, 3).float(),
        "features": normal(rng, N, 20).bfloat16(),
        "more": normal(rng, N, 5).half(),
    }
    background = {"features": torch.ones(20).bfloat16()}
    images = plan.blend(values, background)
    for name, v in values.items():
        assert images[name].dtype == v.dtype
        behind = background[name].float() if name in background else None
        error = (images[name].float() - plan.blend(v.float(), behind)).abs().max()
        assert error <= {torch.float32: 1e-6, torch.float16: 1e-2, torch.bfloat16: 5e-2}[v.dtype], name


# ---- layers ----


@pytest.mark.usefixtures("kernels")
def test_masks_of_layers_add_up_to_alpha(scene):
    plan = built(scene)
    ids = torch.randint(0, 3, (N,), generator=generator(4))
    color = uniform(generator(0), 0, 1, N, 3)
    image, masks = plan.blend(color, layers=ids)
    assert masks.shape == (*image.shape[:-1], 3)
    assert_relative(masks.sum(-1, keepdim=True), plan.alpha, TOLERANCE)
    assert_relative(image, plan.blend(color), TOLERANCE)
    named = plan.blend({"color": color}, layers=ids)
    assert list(named) == ["color", "layers"]
    assert_bitwise(named["layers"], masks)
    assert_relative(plan.layers(ids), masks, TOLERANCE)
    for layer in range(3):
        one = plan.blend((ids == layer).double().unsqueeze(-1))
        assert_relative(masks[..., layer : layer + 1], one, TOLERANCE)


def test_a_layer_may_be_empty_and_a_gaussian_of_none(scene):
    plan = built(scene)
    ids = torch.randint(-2, 2, (N,), generator=generator(4), dtype=torch.int32)
    masks = plan.layers(ids, 5)
    assert masks.shape[-1] == 5 and not masks[..., 2:].any() and masks[..., :2].any()
    some = plan.blend((ids >= 0).double().unsqueeze(-1))
    assert_relative(masks.sum(-1, keepdim=True), some, TOLERANCE)


# ---- sampled pixels ----


def sampled(scene: Scene, count: int) -> torch.Tensor:
    """Pixels in no order, the first one twice."""
    rng, views = generator(5), len(scene.viewmats)
    pixels = torch.stack([torch.randint(0, n, (views, count), generator=rng) for n in (W, H)], -1)
    pixels[:, -1] = pixels[:, 0]
    return pixels if views > 1 else pixels[0]


def picked(image: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    if pixels.dim() == 2:
        return image[pixels[:, 1], pixels[:, 0]]
    return torch.stack([picked(i, p) for i, p in zip(image, pixels, strict=True)])


@pytest.mark.usefixtures("kernels")
def test_sampled_pixels_are_those_of_the_image_and_so_are_their_gradients(scene):
    pixels = sampled(scene, 60)
    values = {k: v.requires_grad_() for k, v in values_of(built(scene)).items()}
    background = torch.tensor([0.3, 0.6, 0.1]).double().requires_grad_()
    ours, theirs = scene.requires_grad_(*Scene.GEOMETRY), scene.requires_grad_(*Scene.GEOMETRY)
    plan = built(ours)
    some = plan.blend(values, {"color": background}, pixels=pixels)
    whole = built(theirs).blend(values, {"color": background})
    rng = generator(6)
    losses = [torch.zeros(()).double(), torch.zeros(()).double()]
    for name, rows in some.items():
        expected = picked(whole[name], pixels)
        assert_relative(rows, expected, TOLERANCE, name)
        cotangent = normal(rng, *rows.shape)
        losses = [losses[0] + (rows * cotangent).sum(), losses[1] + (expected * cotangent).sum()]
    leaves = [*values.values(), background]
    for actual, expected in zip(
        torch.autograd.grad(losses[0], [*leaves, *ours.gaussians]),
        torch.autograd.grad(losses[1], [*leaves, *theirs.gaussians]),
        strict=True,
    ):
        assert_relative(actual, expected, 1e-10)


@pytest.mark.usefixtures("kernels")
def test_no_pixels_are_an_empty_image(scene):
    plan = built(scene)
    image = plan.blend(torch.rand(N, 3).double(), pixels=sampled(scene, 4)[..., :0, :])
    assert image.shape == ((2, 0, 3) if plan.batched else (0, 3))


def test_alpha_stays_that_of_the_whole_view(scene):
    plan, expected = built(scene), built(scene).alpha
    values = torch.rand(N, 3).double()
    plan.blend(values, pixels=sampled(scene, 9))
    assert_bitwise(plan.alpha, expected)
    plan.blend(values, pixels=sampled(scene, 9))
    assert_bitwise(plan.alpha, expected)


# ---- parts of a plan ----


@pytest.mark.usefixtures("kernels")
def test_a_part_of_a_plan_is_a_plan_of_that_part(scene):
    mask = torch.rand(N, generator=generator(7)) < 0.4
    values = uniform(generator(0), 0, 1, N, 3)
    ours, theirs = scene.requires_grad_(*Scene.GEOMETRY), scene.requires_grad_(*Scene.GEOMETRY)
    part = built(ours).only(mask)
    fewer = Scene(*(t[mask] for t in theirs.gaussians), *scene.args[4:])
    whole = built(fewer)
    assert_bitwise(part.blend(values), whole.blend(values[mask]))
    assert_bitwise(part.alpha, whole.alpha)
    assert_bitwise(part.visible[:, mask], whole.visible)
    assert not part.visible[:, ~mask].any()
    cotangent = normal(generator(1), *part.alpha.shape[:-1], 3)
    part.blend(values).backward(cotangent)
    whole.blend(values[mask]).backward(cotangent)
    for name in Scene.GEOMETRY:
        assert_relative(getattr(ours, name).grad, getattr(theirs, name).grad, 1e-10, name)


@pytest.mark.usefixtures("kernels")
def test_a_plan_narrowed_to_pixels_shows_the_same_there(scene):
    """To the bit, of no Gaussian more than the pixels blend; so do the gradients."""
    ours, theirs = (scene.requires_grad_(*Scene.GEOMETRY) for _ in range(2))
    values = [uniform(generator(0), 0, 1, N, 40).requires_grad_() for _ in range(2)]
    few = sampled(scene, 9)
    narrow, shown = built(ours).narrowed(few)
    whole = built(theirs)
    assert_bitwise(
        shown, (whole.lift(torch.ones(*few.shape[:-1], 1).double(), pixels=few).total > 0).nonzero()[:, 0]
    )
    assert 0 < len(shown) < N and narrow.depths.shape[1] == len(shown)
    images = [narrow.blend(values[0][shown], pixels=few), whole.blend(values[1], pixels=few)]
    assert_bitwise(*images)
    cotangent = normal(generator(1), *images[0].shape)
    for image in images:
        image.backward(cotangent)
    assert_relative(values[0].grad, values[1].grad, TOLERANCE)
    for name in Scene.GEOMETRY:
        assert_relative(getattr(ours, name).grad, getattr(theirs, name).grad, 1e-10, name)


def test_a_plan_narrowed_to_nothing():
    plan = built(random_scene(N, W, H, seed=1))
    narrow, shown = plan.only(torch.zeros(N, dtype=torch.bool)).narrowed(
        torch.tensor([[3, 4], [W - 1, H - 1]])
    )
    assert len(shown) == 0 and narrow.depths.shape == (1, 0)
    assert not narrow.blend(torch.rand(0, 3).double(), pixels=torch.tensor([[3, 4]])).any()


def test_isolated_layers_have_their_own_transmittance(scene):
    plan = built(scene)
    ids = torch.randint(-1, 3, (N,), generator=generator(4))
    parts = plan.isolated(ids, 4)
    assert len(parts) == 4
    masks = plan.layers(ids, 4)
    for layer, part in enumerate(parts):
        assert_bitwise(part.alpha, built(scene).only(ids == layer).alpha)
        # Nothing of the others is in front, so each shows as much as in the common blend, and somewhere more.
        assert (part.alpha[..., 0] >= masks[..., layer] - 1e-4).all()
    assert (parts[0].alpha[..., 0] > masks[..., 0] + 0.05).any()
    assert not parts[3].alpha.any()


def test_a_part_collects_absgrad():
    scene = random_scene(N, W, H, seed=8).requires_grad_("means")
    plan = built(scene, absgrad=True)
    mask = torch.arange(N) % 2 == 0
    part = plan.only(mask)
    part.blend(torch.rand(N, 3).double()).sum().backward()
    assert part.absgrad[:, mask].any() and not part.absgrad[:, ~mask].any()


def test_absgrad_of_several_outputs_is_that_of_one_walk(monkeypatch):
    """The sum of |gradient| is no sum over outputs."""
    monkeypatch.setattr(outputs, "COPIES_PER_PAIR", 1e-9)
    scene = random_scene(N, W, H, seed=8).requires_grad_("means")
    values = normal(generator(0), N, 4)
    parts = {"a": values[:, :3], "b": values[:, 3:]}
    several, one = (built(scene, absgrad=True) for _ in range(2))
    sum(image.sum() for image in several.blend(parts).values()).backward()
    one.blend(values).sum().backward()
    assert_relative(several.absgrad, one.absgrad, 1e-10)


# ---- linear queries ----


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(40, 2), (2, 40)], ids=["fewer", "more"])
def test_either_order_of_a_linear_query_gives_the_same(scene, shape):
    plan = built(scene)
    values, matrix = normal(generator(0), N, shape[0]), normal(generator(1), *shape)
    background = normal(generator(2), shape[0])
    images = {
        order: plan.blend_project(values, matrix, background, order=order)
        for order in ("values", "image", "auto")
    }
    assert_relative(images["values"], images["image"], TOLERANCE)
    assert_bitwise(images["auto"], images["values" if shape[1] < shape[0] else "image"])
    assert_relative(images["image"], plan.blend(values, background) @ matrix, TOLERANCE)


def test_the_cheaper_order_is_chosen_by_counting(scene):
    plan = built(scene)
    walk, pixels = len(plan.ids) * 256, len(scene.viewmats) * W * H
    to_few, to_many = plan.projection_order(512, 4), plan.projection_order(4, 512)
    assert to_few == ("values", N * 2048 + walk * 4, walk * 512 + pixels * 2048)
    assert to_many == ("image", N * 2048 + walk * 512, walk * 4 + pixels * 2048)
    square = plan.projection_order(64, 64)
    assert square.order == ("values" if pixels >= N else "image")
    per_view = plan.projection_order(8, 8, per_view=True)
    assert per_view.values == len(scene.viewmats) * N * 64 + walk * 8


def test_blends_of_several_outputs_compile_whole():
    torch._dynamo.reset()
    scene = random_scene(60, 40, 24, views=2, seed=4).to(torch.float32)
    ids = torch.arange(60) % 3

    def loss(means, values, features):
        plan = gsfields.plan(means, *scene.args[1:])
        images = plan.blend({"color": values, "features": features}, layers=ids, num_layers=3)
        return sum(image.square().mean() for image in images.values())

    rng = generator(0)
    arguments = [scene.means, uniform(rng, 0, 1, 60, 3).float(), normal(rng, 60, 20).float()]

    def gradients(function):
        leaves = [a.clone().requires_grad_() for a in arguments]
        return torch.autograd.grad(function(*leaves), leaves)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(gradients(compiled), gradients(loss), strict=True):
        assert_relative(actual, expected, 1e-5)

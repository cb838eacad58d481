"""Language on frozen geometry: sizes of segments, what is lifted, what is trained, and what is drawn for that."""

import math
from dataclasses import replace

import pytest
import torch

from gsfields.data.language_features import FeatureSource, ViewFeatures, save_features
from gsfields.fields.nested import at_scale, lengths
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.language import LanguageTrainer, drawn_segments, fitted
from gsfields.fit.language_labels import LanguageLabels, ViewTeachers, largest_variances, on_camera_rays
from gsfields.fit.lifted_field import lifted, mean_said, principal, said_by_any, shares_of
from gsfields.fit.scene import open_dataset
from gsfields.language_config import NestedConfig
from tests.fit.tiny_room import TinyRoom
from tests.fit.tiny_speech import WIDTH, WORDS, speak, vocabulary


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    tiny = TinyRoom()
    folder = tmp_path_factory.mktemp("speech")
    data = tiny.write(folder / "data")
    config = tiny.config(data)
    views = FrozenViews(tiny.gaussians, open_dataset(config.data), config, limit_bytes=1 << 24)
    return tiny, views, speak(tiny, folder / "language_features")


@pytest.fixture(scope="module")
def labels(room):
    _, views, source = room
    return LanguageLabels(source, views, views.dataset.train, bins=64)


def meaning(views, index, nested, scale):
    """[H, W] which word of the vocabulary is nearest to what a view shows at a scale."""
    theta = views.blend(index, nested.at(scale))
    shown = theta @ nested.projection.T
    return (torch.nn.functional.normalize(shown, dim=-1) @ vocabulary().T).argmax(dim=-1)


# ---------------------------------------------------------------------------------------------------------- sizes


def test_variances_by_their_definition():
    g = torch.Generator().manual_seed(0)
    points = torch.randn(50, 3, generator=g) * torch.tensor([3.0, 1.0, 0.2])
    usable = torch.rand(50, generator=g) < 0.8
    covers = torch.randint(-1, 4, (2, 50), generator=g)
    covers[covers == 2] = -1  # of no pixel
    covers[1, 7], usable[7] = 3, True
    covers[covers == 3] = -1
    covers[1, 7] = 3  # of a single one
    found = largest_variances(points, usable, covers, 4)
    for segment in (0, 1):
        inside = torch.cat([points[(row == segment) & usable] for row in covers]).double()
        expected = torch.linalg.eigvalsh(torch.cov(inside.T, correction=0))[-1]
        torch.testing.assert_close(found[segment], expected)
    assert math.isnan(found[2]) and found[3] == 0
    assert largest_variances(points, usable, torch.full((1, 50), -1), 0).shape == (0,)


def test_points_on_rays_project_back(room):
    _, views, _ = room
    camera = views.view(1).camera
    depth = 1 + torch.rand(camera.height, camera.width)
    points = on_camera_rays(depth, camera.K)
    pixels = points @ camera.K.T
    x, y = torch.meshgrid(torch.arange(camera.width), torch.arange(camera.height), indexing="xy")
    torch.testing.assert_close(pixels[..., 0] / pixels[..., 2], x + 0.5)
    torch.testing.assert_close(pixels[..., 1] / pixels[..., 2], y + 0.5)


def test_larger_segments_have_larger_scales(labels):
    """The floor is larger than all things together, and those are larger than any of them."""
    for index in labels.indices:
        teachers = labels.of(index)
        words = (teachers.embeddings @ vocabulary().T).argmax(dim=1)
        scale = {WORDS[w]: float(s) for w, s in zip(words.tolist(), teachers.scales)}
        assert scale["floor"] > scale["toys"] > max(scale[w] for w in ("red", "green", "blue") if w in scale)
        assert all(0 <= s < 1 and (s * 64).is_integer() for s in scale.values())
        assert teachers.areas.tolist() == [int((teachers.covers == i).sum()) for i in range(len(words))]


def test_scales_are_quantiles(labels):
    variances = labels._sorted
    scales = labels.scales_of(variances)
    assert (scales.diff() >= 0).all() and float(scales.mean()) == pytest.approx(0.5, abs=0.02)
    beyond = labels.scales_of(torch.tensor([0.0, 1e9, math.nan], dtype=torch.double))
    assert beyond[0] == 0 and beyond[1] == 1 - 1 / 64 and math.isnan(beyond[2])


def test_views_without_segments_are_left_out(room, tmp_path):
    tiny, views, _ = room
    train = views.dataset.train
    shape = (tiny.height, tiny.width)
    nothing = ViewFeatures(torch.zeros(0, WIDTH), torch.full((1, *shape), -1, dtype=torch.int32))
    void = ViewFeatures(vocabulary()[:1], torch.full((3, *shape), -1, dtype=torch.int32))
    one = ViewFeatures(vocabulary()[:2], torch.full((1, *shape), -1, dtype=torch.int32))
    one.segments[0, 12, 16] = 1  # a single pixel, on the floor
    for index, features in zip(train, (nothing, void, one)):
        save_features(tmp_path, views.view(index).stem, features)
    found = LanguageLabels(FeatureSource(tmp_path), views, train, bins=8)
    assert found.indices == [train[2]]
    teachers = found.of(train[2])
    assert teachers.areas.tolist() == [0, 1] and teachers.scales.isfinite().tolist() == [False, True]
    nested, _ = fitted(views, found, NestedConfig(dim=8, groups=2), progress=False)
    assert nested.theta.isfinite().all() and nested.theta.any()
    trainer = LanguageTrainer(views, found, NestedConfig(model="triplane", dim=8, resolution=8, steps=3))
    assert all(math.isfinite(trainer.train_step()) for _ in range(3))
    for name in ("_f.npy", "_s.npy"):
        (tmp_path / (views.view(train[2]).stem + name)).unlink()
    with pytest.raises(ValueError, match="none of the 8 training views has segments that can be used"):
        LanguageLabels(FeatureSource(tmp_path), views, train, bins=8)


# --------------------------------------------------------------------------------------------------------- lifting


def test_what_is_lifted_says_what_segments_say(room, labels):
    """Small scales name the thing, large ones all of them together, in views that were held out."""
    tiny, views, _ = room
    nested = lifted(views, labels, dim=32, groups=4)
    for index in views.dataset.test:
        ids = tiny.photo(index)[1]
        fine, coarse = meaning(views, index, nested, 0.0), meaning(views, index, nested, 0.6)
        assert (fine == ids)[ids > 0].float().mean() > 0.85
        assert (coarse == 4)[ids > 0].float().mean() > 0.85
        floor = meaning(views, index, nested, 0.85)
        assert (floor == 0)[ids == 0].float().mean() > 0.85
        # what is said of things beside it is not said of the floor
        assert (fine == 0)[ids == 0].float().mean() > 0.85


def test_how_much_each_group_says_is_kept(room, labels):
    """Of the floor it is the largest scales that speak; what nobody speaks of has a row of zeros."""
    tiny, views, _ = room
    said = lifted(views, labels, dim=32, groups=4).said
    totals = said.sum(dim=1)
    torch.testing.assert_close(totals[totals > 0], torch.ones(int((totals > 0).sum())))
    floor = said[(tiny.owners == 0) & (totals > 0)].mean(dim=0)
    toys = said[(tiny.owners > 0) & (totals > 0)].mean(dim=0)
    assert floor[0] > 0.8 > 0.5 > toys[0] and said.shape == (len(views), 4)


def plain_means(views, labels, groups, group):
    """The same by images of embeddings, pixel by pixel."""
    sums, total = torch.zeros(len(views), WIDTH), torch.zeros(len(views))
    for index in labels.indices:
        camera, teachers = views.view(index).camera, labels.of(index)
        image, weights = (
            torch.zeros(camera.height * camera.width, WIDTH),
            torch.zeros(camera.height * camera.width),
        )
        for pixel, covers in enumerate(teachers.covers.T.tolist()):
            own = [
                c for c in covers if c >= 0 and int(float(teachers.scales[c]) * groups) == groups - 1 - group
            ]
            if own:
                image[pixel], weights[pixel] = teachers.embeddings[own].mean(dim=0), 1
        shape = (camera.height, camera.width)
        found = views.lift(index, image.view(*shape, WIDTH), weights.view(shape))
        sums, total = sums + found.sums, total + found.total
    return sums / total.clamp_min(1e-12)[:, None], total


@pytest.mark.parametrize("group", [0, 2, 3])
def test_means_of_what_is_said(room, labels, group):
    found, expected = mean_said(room[1], labels, 4, group), plain_means(room[1], labels, 4, group)
    for value, wanted in zip(found, expected):
        torch.testing.assert_close(value, wanted, atol=1e-4, rtol=1e-4)


def test_means_of_some_are_those_of_all(room, labels):
    views, some = room[1], torch.tensor([7, 2, 90, 31])
    for found, every in zip(mean_said(views, labels, 4, 2, among=some), mean_said(views, labels, 4, 2)):
        assert torch.equal(found, every[some])


def test_what_any_segment_says_is_counted_once(room, labels):
    _, views, _ = room
    torch.testing.assert_close(said_by_any(views, labels), mean_said(views, labels, 1, 0)[1])


def test_with_enough_numbers_groups_have_their_means(room, labels):
    _, views, _ = room
    nested = lifted(views, labels, dim=4 * WIDTH, groups=4)
    every = mean_said(views, labels, 1, 0)[1]
    for group in (1, 3):
        means, total = mean_said(views, labels, 4, group)
        seen = total > 0.11 * every  # else it is said of neighbours rather
        assert seen.sum() > 60
        phi = at_scale(nested.theta, nested.projection, torch.full((len(views),), (group + 1) * WIDTH))
        torch.testing.assert_close(phi[seen], means[seen], rtol=0, atol=1e-4)


def test_shares_of_pixels():
    teachers = ViewTeachers(
        torch.eye(4), torch.tensor([[0, 0, 1, -1], [2, 3, -1, -1]]),
        torch.tensor([0.1, 0.6, 0.2, math.nan]), torch.tensor([2, 1, 1, 1]),
    )  # fmt: skip
    ((rows, shares),) = shares_of(teachers, 2, 1)  # scales below a half
    assert rows.tolist() == [0, 2] and shares.tolist() == [[0.5, 0.5], [1, 0], [0, 0], [0, 0]]
    parts = list(shares_of(teachers, 2, 1, together=1))
    assert [rows.tolist() for rows, _ in parts] == [[0], [2]]
    assert torch.equal(torch.cat([part for _, part in parts], dim=1), shares)
    ((_, shares),) = shares_of(teachers, 2, 0)
    assert shares.tolist() == [[0], [0], [1], [0]]
    assert list(shares_of(teachers, 40, 7)) == []


def test_principal_directions():
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 6, generator=g) @ torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.1, 0.0, 0.0]))
    found = principal(rows.T @ rows)
    assert found.shape == (6, 4)
    torch.testing.assert_close(found.T @ found, torch.eye(4), atol=1e-5, rtol=0)
    left = [(rows - rows @ found[:, :k] @ found[:, :k].T).square().sum() for k in range(5)]
    values = torch.linalg.svdvals(rows).square()
    torch.testing.assert_close(torch.stack(left), values.flip(0).cumsum(0).flip(0)[:5], rtol=1e-3, atol=1e-3)
    assert principal(torch.zeros(3, 3)).shape == (3, 1)


def test_bad_groups(room, labels):
    for groups in (0, 9):
        with pytest.raises(ValueError, match=f"groups must be from 1 to dim = 8, but is {groups}"):
            lifted(room[1], labels, 8, groups)


# -------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "config",
    [
        NestedConfig(model="triplane", dim=32, resolution=32, channels=16, hidden=32, steps=250, pixels=256),
        NestedConfig(model="triplane", dim=32, resolution=32, steps=250, pixels=256, projection="basis"),
        NestedConfig(model="direct", dim=32, groups=4, steps=40, pixels=256),
    ],
    ids=["triplane", "triplane from a basis", "direct"],
)
def test_fields_learn_what_segments_say(room, labels, config):
    tiny, views, _ = room
    nested, steps = fitted(views, labels, config, progress=False)
    assert steps == config.steps and nested.theta.shape == (len(views), 32)
    index = views.dataset.test[0]
    ids = tiny.photo(index)[1]
    assert (meaning(views, index, nested, 0.0) == ids)[ids > 0].float().mean() > 0.8
    assert (meaning(views, index, nested, 0.6) == 4)[ids > 0].float().mean() > 0.8


def losses_about_training(views, labels, config):
    """(before, after) on the same lessons."""
    trainer = LanguageTrainer(views, labels, config)
    lessons = [trainer.lesson(index) for index in labels.indices]

    def mean_loss():
        return sum(trainer.loss(lesson).item() for lesson in lessons) / len(lessons)

    before = mean_loss()
    trainer.run(progress=False)
    return before, mean_loss()


def test_training_improves_on_what_was_lifted(room, labels):
    config = NestedConfig(model="direct", dim=32, groups=4, steps=60, pixels=512, direct_rate=2e-2)
    before, after = losses_about_training(room[1], labels, config)
    assert after < 0.9 * before


def test_training_does_not_wander_off_what_was_lifted(room, tmp_path):
    """Where there are many numbers, of which each is small, and teachers that differ from view to view."""
    tiny, views, _ = room
    source = speak(tiny, tmp_path / "wide", noise=0.05, width=256)
    wide = LanguageLabels(source, views, views.dataset.train, bins=64)
    config = NestedConfig(model="direct", dim=256, steps=30, pixels=64)
    before, after = losses_about_training(views, wide, config)
    assert after < before


def test_a_seed_gives_the_same_fit(room, labels):
    _, views, _ = room
    config = NestedConfig(model="triplane", dim=8, resolution=16, channels=8, hidden=8, steps=5, pixels=64)
    one, again, other = (
        fitted(views, labels, replace(config, seed=seed), progress=False)[0].theta for seed in (1, 1, 2)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_lessons_are_of_segments_that_cover_the_pixel(room, labels):
    _, views, _ = room
    trainer = LanguageTrainer(views, labels, NestedConfig(dim=64, pixels=500, resolution=4))
    index = labels.indices[1]
    teachers, lesson = labels.of(index), trainer.lesson(index)
    at = lesson.pixels[:, 1] * views.view(index).camera.width + lesson.pixels[:, 0]
    assert (views.alpha(index).flatten()[at] > 0.5).all()
    for pixel, target, length in zip(at.tolist(), lesson.target, lesson.length):
        covering = [int(row) for row in teachers.covers[:, pixel] if row >= 0]
        own = [row for row in covering if torch.equal(teachers.embeddings[row], target)]
        assert own and int(length) == int(lengths(teachers.scales[own[0]], 64))


def test_small_segments_are_drawn_more_often():
    """In proportion to 1 / log(area), with areas below e as e."""
    covers = torch.tensor([[0], [1], [2]]).expand(3, 30_000)
    teachers = ViewTeachers(torch.eye(3), covers, torch.tensor([0.1, 0.5, 0.2]), torch.tensor([1000, 20, 1]))
    drawn = drawn_segments(teachers, torch.arange(30_000), torch.Generator().manual_seed(0))
    weights = torch.tensor([1 / math.log(1000), 1 / math.log(20), 1.0])
    torch.testing.assert_close(torch.bincount(drawn) / 30_000, weights / weights.sum(), atol=0.01, rtol=0)
    unscaled = replace(teachers, scales=torch.tensor([0.1, math.nan, math.nan]))
    assert not drawn_segments(unscaled, torch.arange(50), torch.Generator().manual_seed(0)).any()

"""PlanCache: the same images from fewer bytes, within a limit, in memory and on disk."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

import gsfields
from gsfields import packed_plan
from gsfields.packed_plan import PackedPlan
from gsfields.plan_cache import PlanCache
from tests.kernels.compare import assert_bitwise
from tests.kernels.scenes import Scene, generator, normal, random_scene

N, W, H = 400, 50, 37


def opaque_scene(views: int = 1, seed: int = 1) -> Scene:
    """A scene whose pixels end early, so that lists are longer than what is read of them."""
    scene = random_scene(N, W, H, views=views, seed=seed, sigma=8.0).to(torch.float32)
    scene.opacities[:] = 0.95
    return scene


def plan_of(scene: Scene, view: int | None = None) -> gsfields.Plan:
    cameras = (scene.viewmats, scene.Ks) if view is None else (scene.viewmats[view], scene.Ks[view])
    return gsfields.plan(*scene.gaussians, *cameras, scene.width, scene.height)


def projection_of(plan: gsfields.Plan) -> tuple[torch.Tensor, ...]:
    return plan.means2d, plan.depths, plan.conics, plan.opacities, plan.radii


# ---- packing ----


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("view", [0, None], ids=["one_view", "batch"])
@pytest.mark.parametrize("geometry", [True, False], ids=["whole", "lists_alone"])
def test_a_packed_plan_gives_the_same_bits(view, geometry):
    plan = plan_of(opaque_scene(2), view)
    packed = PackedPlan.pack(plan, geometry=geometry)
    assert packed.has_geometry == geometry
    again = packed.unpack(None if geometry else projection_of(plan))
    assert again.batched == plan.batched and (again.width, again.height) == (W, H)
    for channels in (1, 3, 40):
        values = normal(generator(0), N, channels).float()
        background = normal(generator(1), channels).float()
        assert_bitwise(again.blend(values, background), plan.blend(values, background))
    assert_bitwise(again.alpha, plan.alpha)
    assert_bitwise(again.depth(), plan.depth())
    for channels in (2, 40):
        image = normal(generator(2), *plan.alpha.shape[:-1], channels).float()
        for actual, expected in zip(again.lift(image), plan.lift(image), strict=True):
            assert_bitwise(actual, expected)
    ids = torch.arange(N) % 3
    assert_bitwise(again.layers(ids), plan.layers(ids))
    assert_bitwise(again.radii[again.visible], plan.radii[again.visible])
    assert not (again.visible & ~plan.visible).any()


def test_pairs_that_no_pixel_blends_are_dropped():
    plan = plan_of(opaque_scene(2))
    packed = PackedPlan.pack(plan)
    again = packed.unpack()
    assert len(again.ids) < 0.7 * len(plan.ids), "the scene should hide much"
    assert again.visible.sum() < plan.visible.sum()
    assert packed.tensors["ids"].shape == (len(again.ids), 1)  # fewer than 257 are drawn in a view
    assert packed.nbytes < 0.6 * packed_plan.plain_bytes(plan)
    # The last pair of a list is blended by some pixel: without it, the image changes.
    tile = int((again.tile_offsets.diff() > 1).nonzero()[0])
    keep = torch.ones(len(again.ids), dtype=torch.bool)
    keep[again.tile_offsets[tile + 1] - 1] = False
    offsets = again.tile_offsets - (torch.arange(len(again.tile_offsets)) > tile).long()
    shorter = gsfields.Plan(projection_of(again), W, H, batched=True, lists=(again.ids[keep], offsets))
    assert not torch.equal(shorter.alpha, again.alpha)


@pytest.mark.parametrize("views", [0, 1, 2])
@pytest.mark.parametrize("count", [0, 5])
def test_plans_of_nothing_are_packed_too(views, count):
    scene = random_scene(count, W, H, views=views, seed=1)
    scene.means[:, 2] = -3
    plan = plan_of(scene)
    again = PackedPlan.pack(plan).unpack()
    values = torch.ones(count, 2).double()
    assert_bitwise(again.blend(values, torch.ones(2).double()), plan.blend(values, torch.ones(2).double()))


@pytest.mark.parametrize(
    ("largest", "width"), [(0, 1), (255, 1), (256, 2), (65535, 2), (65536, 3), (2**24, 4)]
)
def test_integers_take_as_few_whole_bytes_as_the_largest_needs(largest, width):
    numbers = torch.tensor([[0, largest], [largest // 2, min(7, largest)]])
    packed = packed_plan.to_bytes(numbers)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 2, width)
    assert_bitwise(packed_plan.from_bytes(packed), numbers.int())


@pytest.mark.parametrize("kind", ["first", "last", "none", "some"])
def test_what_is_drawn_is_found_by_the_gaps_between(kind):
    """Gaussians in front of the camera at these places of the scene's, and the others behind it."""
    count = 700
    scene = random_scene(count, W, H, seed=3).to(torch.float32)
    places = {"first": [0], "last": [count - 1], "none": [], "some": [1, 2, 300, 301, 699]}[kind]
    behind = torch.ones(count, dtype=torch.bool)
    behind[places] = False
    scene.means[behind, 2] = -5
    scene.means[~behind] = torch.tensor([0.0, 0.0, 4.0])
    scene.opacities[:] = 0.1
    plan = plan_of(scene, 0)
    small, drawn = PackedPlan.pack(plan).unpack_drawn()
    assert drawn.tolist() == places and len(small.depths[0]) == len(places)
    values = normal(generator(4), count, 3).float()
    assert_bitwise(small.blend(values[drawn]), plan.blend(values))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("channels", [1, 40])
def test_a_plan_of_what_is_drawn_blends_and_lifts_to_the_same_bits(channels):
    plan = plan_of(opaque_scene(), 0)
    small, drawn = PackedPlan.pack(plan).unpack_drawn()
    assert len(drawn) < 0.9 * N and not small.batched
    values = normal(generator(0), N, channels).float()
    pixels = torch.tensor([[0, 0], [W - 1, H - 1], [17, 20]])
    assert_bitwise(small.blend(values[drawn]), plan.blend(values))
    assert_bitwise(small.blend(values[drawn], pixels=pixels), plan.blend(values, pixels=pixels))
    assert_bitwise(small.alpha, plan.alpha)
    image = normal(generator(2), H, W, channels).float()
    for actual, expected in zip(small.lift(image), plan.lift(image), strict=True):
        assert_bitwise(actual, expected[drawn])
        assert expected.abs().sum() == pytest.approx(float(actual.abs().sum()), rel=1e-5)


def test_what_is_drawn_is_told_of_one_view_with_its_projection():
    both = plan_of(opaque_scene(2))
    for packed in (PackedPlan.pack(both), PackedPlan.pack(plan_of(opaque_scene(), 0), geometry=False)):
        with pytest.raises(ValueError, match="one view that holds its own projection"):
            packed.unpack_drawn()


# ---- the cache ----


class Views:
    """Makes plans, and notes which."""

    def __init__(self, views: int = 4) -> None:
        self.scene = opaque_scene(views)
        self.made: list[int] = []

    def __call__(self, view: int) -> gsfields.Plan:
        self.made.append(view)
        return plan_of(self.scene, view)

    def bytes_of(self, *views: int) -> int:
        return sum(PackedPlan.pack(plan_of(self.scene, view)).nbytes for view in views)

    def largest(self) -> int:
        return max(self.bytes_of(view) for view in range(len(self.scene.viewmats)))

    def check(self, cache: PlanCache[int], view: int) -> None:
        values = normal(generator(view), N, 3).float()
        assert_bitwise(cache[view].blend(values), plan_of(self.scene, view).blend(values))


def test_plans_used_last_stay_in_memory():
    views = Views()
    cache = PlanCache(views, limit_bytes=views.bytes_of(0, 1, 2))
    for view in (
        0,
        1,
        2,
        0,
        3,
        0,
        1,
    ):  # 3 takes the place of 1, which then takes that of 2 (and more if it is larger)
        views.check(cache, view)
    assert views.made == [0, 1, 2, 3, 1]
    assert 0 in cache and 1 in cache and 2 not in cache
    report = cache.report()
    assert (report.hits, report.disk_hits, report.misses) == (2, 0, 5)
    assert report.evictions == 5 - len(cache) and report.plans_in_memory == len(cache)
    held = [view for view in range(4) if view in cache]
    assert report.memory_bytes == views.bytes_of(*held) <= report.limit_bytes
    assert report.plans_on_disk == report.disk_bytes == 0


def test_what_is_evicted_is_read_back_from_disk(tmp_path):
    views = Views()
    cache = PlanCache(views, limit_bytes=views.largest(), spill=tmp_path / "plans")
    for view in (0, 1, 2, 0, 1, 2):
        views.check(cache, view)
    assert views.made == [0, 1, 2]
    report = cache.report()
    assert (report.hits, report.disk_hits, report.misses) == (0, 3, 3)
    files = list((tmp_path / "plans").iterdir())
    assert len(files) == report.plans_on_disk > 0
    assert sum(f.stat().st_size for f in files) == report.disk_bytes
    del cache
    gc.collect()
    assert not list((tmp_path / "plans").iterdir()), "files outlive a cache without identity"


def test_a_plan_larger_than_the_limit_pushes_nothing_out(tmp_path):
    scenes = {"small": random_scene(40, W, H, seed=1).to(torch.float32), "large": opaque_scene()}
    limit = PackedPlan.pack(plan_of(scenes["large"], 0)).nbytes - 1
    cache = PlanCache(lambda name: plan_of(scenes[name], 0), limit_bytes=limit, spill=tmp_path)
    cache["small"], cache["large"], cache["small"], cache["large"]
    report = cache.report()
    assert "small" in cache and "large" not in cache
    assert (report.hits, report.disk_hits, report.misses, report.evictions) == (1, 1, 2, 0)


def spilled(tmp_path: Path, views: Views, identity: str) -> PlanCache[int]:
    return PlanCache(views, limit_bytes=0, spill=tmp_path, identity=identity)


def test_files_of_the_same_identity_serve_the_next_cache(tmp_path):
    views = Views()
    spilled(tmp_path, views, "scene a")[0]
    gc.collect()
    views.check(spilled(tmp_path, views, "scene a"), 0)
    assert views.made == [0]
    views.check(spilled(tmp_path, views, "scene b"), 0)
    assert views.made == [0, 0]


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "another_format", "another_identity", "another_view"]
)
def test_a_file_that_is_not_whole_or_of_another_cache_is_made_again(tmp_path, damage):
    views = Views()
    spilled(tmp_path, views, "a")[0]
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage.startswith("another"):
        spilled(tmp_path, views, "b" if damage == "another_identity" else "a")[1]
        (other,) = (f for f in tmp_path.iterdir() if f != path)
        content = b"PK\x03\x04 no plan" if damage == "another_format" else other.read_bytes()
        path.write_bytes(content)
    else:
        path.write_bytes(whole[:-1] if damage == "truncated" else b"")
    views.made.clear()
    cache = spilled(tmp_path, views, "a")
    views.check(cache, 0)
    assert views.made == [0]
    assert path.stat().st_size == len(whole)
    views.check(cache, 0)
    assert views.made == [0]
    path.write_bytes(whole[:100])  # under the cache's hands
    views.check(cache, 0)
    assert views.made == [0, 0] and path.stat().st_size == len(whole)


def test_an_eviction_that_fails_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def half(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(packed_plan, "save_file", half)
    with pytest.raises(OSError, match="no space"):
        spilled(tmp_path, Views(), "a")[0]
    assert not list(tmp_path.iterdir())


def test_where_plans_are_projected_again_only_lists_are_kept(tmp_path):
    views = Views()

    def project(view: int) -> tuple[torch.Tensor, ...]:
        return projection_of(plan_of(views.scene, view))

    cache = PlanCache(views, limit_bytes=10**9, project=project)
    for view in (0, 1, 0):
        views.check(cache, view)
    report = cache.report()
    assert report.hits == 1
    assert report.bytes_per_pair < 1.5, "an id of one byte, and the rest is little"

    spilling = PlanCache(views, limit_bytes=0, project=project, spill=tmp_path, identity="a")
    for _ in range(2):
        views.check(spilling, 0)
    assert spilling.report().disk_hits == 1
    views.check(spilled(tmp_path, views, "a"), 0)  # which needs the geometry, so that file will not do
    assert views.made == [0, 1, 0, 0]

    wrong = PlanCache(views, limit_bytes=10**9, project=lambda view: project(view + 1))
    with pytest.raises(ValueError, match=r"project\(0\) differs"):
        wrong[0]


def test_a_cache_feeds_a_lift():
    views = Views()
    cache = PlanCache(views, limit_bytes=10**9)
    images = [normal(generator(view), H, W, 3).float() for view in range(4)]
    for _ in range(2):
        lifted = gsfields.lift((cache[view] for view in range(4)), images)
    plain = gsfields.lift((plan_of(views.scene, view) for view in range(4)), images)
    assert_bitwise(lifted.sums, plain.sums)
    assert cache.report().hits == 4


def test_the_report_is_one_readable_line():
    views = Views()
    cache = PlanCache(views, limit_bytes=10**6)
    assert "0 hits" in str(cache.report())
    cache[0], cache[0], cache[1]
    report = cache.report()
    text = str(report)
    assert "1 hits, 0 from disk, 2 misses, 0 evictions; 2 plans of" in text and "\n" not in text
    pairs = sum(len(plan_of(views.scene, view).ids) for view in (0, 1))
    assert report.bytes_per_pair == pytest.approx(views.bytes_of(0, 1) / pairs)
    assert report.plain_bytes_per_pair > 1.5 * report.bytes_per_pair


def test_what_a_cache_refuses(tmp_path):
    scene = opaque_scene().requires_grad_("means")
    with pytest.raises(ValueError, match=r"requires grad.*frozen"):
        PlanCache(lambda view: plan_of(scene, 0), limit_bytes=10**6)["a"]
    frozen = gsfields.plan(*opaque_scene().args, absgrad=True)
    with pytest.raises(ValueError, match="requires grad"):
        PlanCache(lambda view: frozen, limit_bytes=10**6)[0]
    with pytest.raises(ValueError, match="limit_bytes is -1"):
        PlanCache(Views(), limit_bytes=-1)
    with pytest.raises(ValueError, match="identity is given"):
        PlanCache(Views(), limit_bytes=1, identity="a")

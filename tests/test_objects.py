"""From embeddings to objects: clusters, nearest centroids, and the smallest size of a cluster chosen by a sweep."""

import builtins
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="clustering needs scikit-learn")
from gsfields.fields import clustering, objects
from gsfields.fields.clustering import RELEASED, ClusterOptions, labeller
from gsfields.fields.objects import Objects, Sweep, cluster, frame_pq, merged, size_grid, sweep


def blobs(counts, dim, *, noise=0.1, apart=4.0, stray=0, seed=0):
    """(features [S, D], truth [S], centres [K, D]): K blobs of unequal size and density, and `stray` samples of none,
    truth -1, shuffled. Any two centres are `apart` or farther from each other.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.empty(0, dim)
    side = 2 * apart * max(1, round(len(counts) ** (1 / min(dim, 3))))
    while len(centres) < len(counts):
        one = side * torch.rand(1, dim, generator=generator)
        if len(centres) == 0 or float(torch.cdist(one, centres).min()) >= apart:
            centres = torch.cat((centres, one))
    truth = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    spread = noise * (0.5 + torch.rand(len(counts), generator=generator))[truth]
    features = centres[truth] + spread[:, None] * torch.randn(len(truth), dim, generator=generator)
    features = torch.cat((features, side * torch.rand(stray, dim, generator=generator)))
    truth = torch.cat((truth, torch.full((stray,), -1)))
    order = torch.randperm(len(truth), generator=generator)
    return features[order], truth[order], centres


def same_groups(ids, truth):
    """Whether ids and truth, above -1, are the same partition, up to numbers."""
    ids, truth = ids[truth >= 0].tolist(), truth[truth >= 0].tolist()
    return len(set(zip(ids, truth))) == len(set(ids)) == len(set(truth))


@pytest.mark.parametrize("method", ["hdbscan", "dbscan", "meanshift"])
@pytest.mark.parametrize("dim", [3, 24])
def test_blobs_of_unequal_size_and_density_become_objects(method, dim):
    features, truth, centres = blobs([400, 200, 100, 60, 300, 80], dim, stray=60)
    found = cluster(features, options=ClusterOptions(method=method, min_cluster_size=40))
    assert len(found) == 6 and found.classes.tolist() == [1] * 6
    assert found.centroids.dtype == torch.float32 and found.classes.dtype == torch.int32
    ids = found.assign(features)
    assert ids.dtype == torch.int32 and ids.min() == 1 and ids.max() == 6
    assert same_groups(ids, truth)
    distances = torch.cdist(centres, found.centroids)
    assert distances.min(dim=1).values.max() < 0.15
    assert (
        distances.argmin(dim=1).tolist() == torch.tensor([0, 2, 3, 5, 1, 4]).tolist()
    )  # the largest is first


@pytest.mark.parametrize(
    "options", [ClusterOptions(min_cluster_size=30), replace(RELEASED, min_cluster_size=30)]
)
def test_one_object(options):
    features, _, centres = blobs([500], 3)
    found = cluster(features, options=options)
    assert len(found) == 1
    torch.testing.assert_close(found.centroids, centres, rtol=0, atol=0.05)
    assert (found.assign(features) == 1).all()


def test_where_no_cluster_is_found_all_is_one_object():
    """A size above all samples is no error, nor are samples that coincide, or too few of them, or none."""
    features, _, _ = blobs([300, 300], 3)
    assert len(cluster(features, options=ClusterOptions(min_cluster_size=10_000))) == 1
    one = torch.ones(50, 3)
    for coinciding in (one, one[:2], one[:1]):
        found = cluster(coinciding)
        assert found.centroids.tolist() == [[1, 1, 1]]
    nothing = cluster(torch.zeros(0, 3))
    assert len(nothing) == 0 and nothing.centroids.shape == (0, 3)
    assert (nothing.assign(features) == 0).all()


def test_many_coinciding_features_are_a_cluster():
    """An embedding that is exactly one vector has an infinite density."""
    features = torch.tensor([[0.0, 0, 0], [5, 0, 0], [0, 5, 0]]).repeat_interleave(50, dim=0)
    found = cluster(features, options=ClusterOptions(min_cluster_size=20))
    assert sorted(found.centroids.tolist()) == [[0, 0, 0], [0, 5, 0], [5, 0, 0]]


def test_every_class_has_its_own_objects():
    """In each the largest first; a class in which nothing is found is one object, not those of the class before."""
    features, truth, _ = blobs([300, 200, 250], 3)
    classes = torch.tensor([7, 7, 4])[truth]
    some = torch.tensor([[90.0, 0, 0], [91.0, 0, 0]])  # of class 9, too few for a cluster
    everything, owners = torch.cat((features, some)), torch.cat((classes, torch.tensor([9, 9])))
    found = cluster(everything, owners, options=ClusterOptions(min_cluster_size=40))
    assert found.classes.tolist() == [4, 7, 7, 9]
    assert found.centroids[3].tolist() == [90.5, 0, 0]
    ids = found.assign(everything, owners)
    assert set(ids[owners == 7].tolist()) == {2, 3} and set(ids[owners == 4].tolist()) == {1}
    without = cluster(everything, owners, things=(7,), options=ClusterOptions(min_cluster_size=40))
    assert without.classes.tolist() == [7, 7]
    torch.testing.assert_close(without.centroids, found.centroids[1:3])
    # the nearest of its own class, be another ever so near; no object where the class has none, or is not valid
    here = found.centroids[:1].expand(3, 3)
    valid = torch.tensor([True, True, False])
    assert found.assign(here, torch.tensor([7, 5, 4]), valid).tolist()[1:] == [0, 0]
    assert int(found.assign(here, torch.tensor([7, 5, 4]))[0]) in (2, 3)
    assert found.assign(here, valid=valid).tolist() == [1, 1, 0]


def test_centroids_are_weighted_means():
    features = torch.cat((torch.zeros(30, 2), torch.full((30, 2), 10.0)))
    features[:10] = 0.3
    weights = torch.ones(60)
    weights[:10] = 4
    weights[30:] = 0  # nothing of the second cluster counts: then all of it does
    options = ClusterOptions(method="dbscan", radius=1.0, min_cluster_size=25)
    found = cluster(features, weights=weights, options=options)
    near = found.centroids[found.centroids.sum(dim=1).argsort()]
    torch.testing.assert_close(near, torch.tensor([[0.2, 0.2], [10, 10]]))


def test_samples_count_as_firmly_as_they_belong():
    """Strays that HDBSCAN counts to a cluster do not pull its centroid."""
    features, _, centres = blobs([400, 300], 3)
    strays = centres[:1] + torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) + 2
    found = cluster(torch.cat((features, strays)), options=ClusterOptions(min_cluster_size=100))
    assert len(found) == 2
    torch.testing.assert_close(found.centroids, centres, rtol=0, atol=0.08)


def test_samples_are_drawn_at_one_rate_and_alike_every_time():
    features, truth, _ = blobs([900, 900, 400], 3, noise=0.2)
    options = ClusterOptions(min_cluster_size=20, samples=500)
    first, again = cluster(features, options=options), cluster(features, options=options)
    assert torch.equal(first.centroids, again.centroids)
    other = cluster(features, options=replace(options, seed=1))
    assert len(first) == len(other) == 3 and not torch.equal(first.centroids, other.centroids)
    assert same_groups(first.assign(features), truth)


def test_nearest_of_500_by_its_definition():
    generator = torch.Generator().manual_seed(0)
    for dim in (3, 24):
        centroids = 100 + torch.rand(500, dim, generator=generator)  # far from the origin: differences cancel
        found = Objects.each(centroids, torch.arange(500, dtype=torch.int32) % 2)
        features = 100 + torch.rand(60, 70, dim, generator=generator)
        distances = torch.cdist(
            features.double(), centroids.double(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        ids = found.assign(features)
        assert ids.shape == (60, 70)
        chosen = distances.gather(2, ids[..., None].long() - 1)[..., 0]
        torch.testing.assert_close(chosen, distances.amin(dim=2), rtol=0, atol=1e-4)
        assert (ids == distances.argmin(dim=2) + 1).float().mean() > 0.999
        odd = found.assign(features, torch.ones(60, 70, dtype=torch.int64))
        assert (odd == 2 * distances[..., 1::2].argmin(dim=2) + 2).float().mean() > 0.999


def test_assign_holds_few_distances(monkeypatch):
    features, _, _ = blobs([50] * 4, 3)
    found = Objects.each(features[:7].clone(), torch.ones(7, dtype=torch.int32))
    whole = found.assign(features)
    monkeypatch.setattr(objects, "_DISTANCES", 20)
    assert torch.equal(found.assign(features), whole)


def test_features_may_be_undefined_where_not_valid():
    found = Objects.each(torch.eye(3), torch.ones(3, dtype=torch.int32))
    features = torch.eye(3)
    features[1] = math.nan
    assert found.assign(features, valid=torch.tensor([True, False, True])).tolist() == [1, 0, 3]
    with pytest.raises(ValueError, match="features must be finite where valid"):
        found.assign(features)


def test_files(tmp_path):
    found = Objects.each(torch.rand(4, 5), torch.tensor([1, 1, 3, 3], dtype=torch.int32))
    found.save(tmp_path / "objects.safetensors")
    back = Objects.load(tmp_path / "objects.safetensors")
    for name in ("centroids", "classes", "owners", "found"):
        assert torch.equal(getattr(back, name), getattr(found, name))
    assert [p.name for p in tmp_path.iterdir()] == ["objects.safetensors"]
    with pytest.raises(FileNotFoundError, match="no objects file at"):
        Objects.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("none")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        Objects.load(tmp_path / "text")


# ------------------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize("single", [True, False])
def test_a_tree_cut_again_is_as_a_new_fit(single, monkeypatch):
    features = blobs([200, 90, 150, 40], 3, noise=0.5, stray=50)[0].numpy()
    options = ClusterOptions(min_samples=5, allow_single_cluster=single)
    cut = labeller(features, options)
    monkeypatch.setitem(sys.modules, "sklearn.cluster._hdbscan._tree", None)
    monkeypatch.setattr(clustering, "_latest", None)
    anew = labeller(features, options)
    sizes = (5, 20, 60, 120, 300, 1000)
    for size in sizes:
        for value, expected in zip(cut(size), anew(size)):
            np.testing.assert_array_equal(value, expected)
    assert len({int(cut(size)[0].max()) for size in sizes}) > 2


def test_the_same_features_are_prepared_once(monkeypatch):
    """A sweep and the clustering after it share the tree; other features or options, and features changed in place,
    do not.
    """
    made = []
    prepared = clustering._prepared
    monkeypatch.setattr(clustering, "_prepared", lambda *a: made.append(a) or prepared(*a))
    monkeypatch.setattr(clustering, "_latest", None)
    features = blobs([200, 90], 3, noise=0.5)[0]
    chosen = sweep([features], [torch.ones(len(features), dtype=torch.long)], merge=False)
    cluster(features, options=ClusterOptions(min_cluster_size=chosen.size))
    assert len(made) == 1
    cluster(features, options=ClusterOptions(min_cluster_size=chosen.size, min_samples=7))
    assert len(made) == 2
    array = features.double().numpy()
    labeller(array, ClusterOptions())
    array[0] += 1
    labeller(array, ClusterOptions())
    assert len(made) == 4


def test_a_loose_whole_does_not_hide_its_parts():
    """Two clouds that touch: allowed to, HDBSCAN takes them for one, as it does many objects that lie close."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(600, 2, generator=generator) + torch.tensor([[0.0, 0.0], [4.0, 0.0]]).repeat(
        300, 1
    )
    both = [
        cluster(features, options=ClusterOptions(min_cluster_size=100, allow_single_cluster=single))
        for single in (True, False)
    ]
    assert [len(found) for found in both] == [1, 2]


def test_released_space():
    """Scaled, a dimension of small range counts as much as another; outliers do not squash the rest."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(600, 2, generator=generator) * torch.tensor([10.0, 0.01])
    features[300:, 1] += 1  # told apart by the second only
    options = ClusterOptions(min_cluster_size=100, allow_single_cluster=True)
    assert len(cluster(features, options=options)) == 1
    scaled = cluster(features, options=replace(options, scale=True))
    assert sorted(scaled.centroids[:, 1].round().tolist()) == [0, 1]  # in the original space
    outliers = torch.cat((torch.tensor([[0.0, 1e4]]).expand(50, 2), features))
    squashed = cluster(outliers, options=replace(options, scale=True))
    assert squashed.centroids[:, 1].max() < 0.9  # both in one
    dropped = cluster(outliers, options=replace(options, scale=True, drop_outliers=True))
    torch.testing.assert_close(
        dropped.centroids[:, 1].sort().values, torch.tensor([0.0, 1]), rtol=0, atol=0.01
    )


def test_a_given_radius():
    features, _, _ = blobs([100, 100], 3, apart=6)
    for method in ("dbscan", "meanshift"):
        options = ClusterOptions(method=method, min_cluster_size=20)
        assert len(cluster(features, options=replace(options, radius=1.0))) == 2
        assert len(cluster(features, options=replace(options, radius=50.0))) == 1


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"method": "kmeans"}, "method must be hdbscan, dbscan or meanshift, but is 'kmeans'"),
        ({"min_cluster_size": 1}, "min_cluster_size must be a whole number of at least 2, but is 1"),
        ({"samples": 10.5}, "samples must be a whole number of at least 2, but is 10.5"),
        ({"min_samples": 0}, "min_samples must be a whole number of at least 1"),
        ({"radius": math.inf}, "radius must be positive and finite, but is inf"),
    ],
)
def test_bad_options(bad, said):
    with pytest.raises(ValueError, match=said):
        ClusterOptions(**bad)


def test_bad_inputs():
    features = torch.rand(10, 3)
    for arguments, said in [
        ((torch.rand(10),), r"features must be \[S, D\], but is \[10\]"),
        ((features, torch.ones(9, dtype=torch.int64)), r"classes must be \[10\] like features, but is \[9\]"),
        ((features, torch.ones(10)), "classes must be whole numbers, but is torch.float32"),
        ((features, None, -torch.ones(10)), "weights must be finite and not negative"),
        ((features / 0,), "features must be finite"),
    ]:
        with pytest.raises(ValueError, match=said):
            cluster(*arguments)
    found = Objects.each(torch.eye(3), torch.ones(3, dtype=torch.int32))
    for arguments, said in [
        ((torch.rand(5, 4),), r"features must be \[..., 3\] like the centroids, but is \[5, 4\]"),
        ((features, torch.ones(9)), r"classes must be \[10\] like features, but is \[9\]"),
        ((features, None, torch.ones(10)), "valid must be bool"),
    ]:
        with pytest.raises(ValueError, match=said):
            found.assign(*arguments)
    with pytest.raises(
        ValueError, match=r"must be \[M, D\], \[M\], \[M\] and \[K\], but are \[3, 3\], \[2\]"
    ):
        Objects.each(torch.eye(3), torch.ones(2, dtype=torch.int32))


def test_without_scikit_learn(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'gsfields\[instances\]'"):
        cluster(torch.rand(50, 3))
    assert clustering._scikit_learn.__module__  # importing the module needs none


# -------------------------------------------------------------------------------------------------------------- sweep


def naive_pq(truth, predicted):
    """The definition, pair by pair."""
    sets = [{i: set(np.flatnonzero(x == i)) for i in np.unique(x) if i > 0} for x in (truth, predicted)]
    ious = [len(a & b) / len(a | b) for a in sets[0].values() for b in sets[1].values()]
    hits = [iou for iou in ious if iou > 0.5]
    total = len(hits) + (len(sets[0]) - len(hits)) / 2 + (len(sets[1]) - len(hits)) / 2
    return sum(hits) / total if total else math.nan


def test_frame_pq_by_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        truth = np.sort(rng.integers(0, 4, 40)) * 1000
        predicted = np.where(rng.random(40) < 0.7, truth // 1000 + 5, rng.integers(0, 9, 40))
        assert frame_pq(truth, predicted) == pytest.approx(naive_pq(truth, predicted), nan_ok=True)
    ids = np.array([0, 3, 3, 9])
    assert (
        frame_pq(ids, ids * 7) == 1 and frame_pq(ids, 0 * ids) == 0 and math.isnan(frame_pq(0 * ids, 0 * ids))
    )
    halves = np.array([1, 1, 1, 1]), np.array([1, 1, 2, 2])  # IoU of exactly a half is no match
    assert frame_pq(*halves) == 0


def images(features, truth, frames=4):
    """Features dealt out to images, with 2D ids that differ between them; in each the strays have none."""
    dealt = [(features[i::frames], truth[i::frames]) for i in range(frames)]
    return [f for f, _ in dealt], [torch.where(t >= 0, 13 * (i + 1) + t, 0) for i, (_, t) in enumerate(dealt)]


@pytest.mark.parametrize("dim", [3, 24])
def test_sweep_separates_what_a_large_size_merges(dim):
    """Two small objects, near each other, and two large ones: a cluster of 200 holds both small ones."""
    features, truth, _ = blobs([800, 600, 100, 90], dim, noise=0.2, stray=40)
    found = sweep(*images(features, truth))
    assert isinstance(found, Sweep) and len(found.sizes) == len(found.pq) == len(found.objects)
    best = cluster(features, options=ClusterOptions(min_cluster_size=found.size))
    assert len(best) == 4 and same_groups(best.assign(features), truth)
    assert max(found.pq) == found.pq[found.sizes.index(found.size)] > 0.99
    given = sweep(*images(features, truth), sizes=(4, 50, 250))
    assert given.size in (4, 50) and given.objects[2] < 4 and given.pq[2] < 0.8
    assert "250" in str(given) and str(given).count("\n") == 3


def test_of_equal_sizes_the_middle_one():
    features, truth, _ = blobs([300, 200], 3)
    assert sweep(*images(features, truth), sizes=(50, 20, 120, 400)).size == 50


def test_what_falls_short_by_little_is_as_good():
    """One view's chance decides between those; the lower of two middles, in whatever order sizes come."""
    scores = {10: 0.70, 20: 0.735, 40: 0.74, 80: 0.75, 160: 0.731, 320: 0.72}
    assert objects._middle(list(scores), list(scores.values())) == 40
    assert objects._middle([80, 20, 320], [0.75, 0.74, 0.5]) == 20
    assert objects._middle([7], [0.0]) == 7


# ------------------------------------------------------------------------------------------------------------ merging


def views_of(parts, *segments):
    """(assigned, ids) of one view per row of `segments`: 40 pixels of each part, and of each the segment it is in."""
    assigned = torch.tensor(parts, dtype=torch.int32).repeat_interleave(40)
    return [assigned] * len(segments), [torch.tensor(row).repeat_interleave(40) for row in segments]


def test_what_most_views_show_in_one_segment_is_one_object():
    """1 and 2 are halves of an object that one view in four cuts; 3 touches them and one view in four merges all."""
    parts = objects.Objects.each(torch.tensor([[0.0, 0], [4, 0], [8, 0]]), torch.ones(3, dtype=torch.int32))
    parts = replace(parts, found=torch.tensor([0.9, 0.8, 0.4]))
    whole = merged(parts, *views_of([1, 2, 3], [5, 5, 6], [1, 1, 9], [7, 7, 7], [2, 3, 4]))
    assert len(whole) == 2 and torch.equal(whole.centroids, parts.centroids)
    assert whole.owners.tolist() == [0, 0, 1] and whole.class_ids().tolist() == [1, 1]
    torch.testing.assert_close(whole.found, torch.tensor([0.9, 0.4]))
    places = torch.tensor([[0.5, 0], [3.6, 0], [7, 0]])
    assert whole.assign(places).tolist() == [1, 1, 2]
    classes = torch.tensor([1, 5, 5], dtype=torch.int32)
    assert len(merged(parts, *views_of([1, 2, 3], [0, 0, 0]))) == 3 and len(merged(parts, [], [])) == 3
    apart = replace(parts, classes=classes)
    assert len(merged(apart, *views_of([1, 2, 3], [5, 5, 6], [1, 1, 9]))) == 3  # of two classes, never one
    one = merged(parts, *views_of([1, 2, 3], [5, 5, 5]))
    assert len(one) == 1 and one.owners.tolist() == [0, 0, 0]


def test_agreement_by_its_definition():
    rng = np.random.default_rng(0)
    views = [(rng.integers(0, 5, 300), rng.integers(0, 6, 300)) for _ in range(3)]
    found = objects._agreement([a for a, _ in views], [i for _, i in views], 4)
    for a in range(4):
        for b in range(4):
            total, weight = 0.0, 0
            for predicted, ids in views:
                here = [ids[(predicted == k + 1) & (ids > 0)] for k in (a, b)]
                least = min(map(len, here))
                shares = [[np.mean(x == s) for s in range(1, 6)] for x in here]
                total, weight = total + least * np.minimum(*shares).sum(), weight + least
            assert found[a, b] == pytest.approx(total / weight)
    empty = objects._agreement([np.array([1, 1, 0])], [np.array([0, 0, 3])], 2)
    assert not empty.any()


def test_the_sweep_scores_merged_objects_unless_told_otherwise():
    """Two blobs are one object to all segments: clusters of their own are right only where they are merged."""
    features, truth, _ = blobs([300, 200, 250], 3)
    truth = torch.where(truth == 2, 1, truth)
    both = [sweep(*images(features, truth), sizes=(30, 60), merge=merge) for merge in (True, False)]
    assert both[0].objects == (2, 2) and both[0].pq == (1.0, 1.0)
    assert both[1].objects == (3, 3) and max(both[1].pq) < 0.9


def test_sweep_clusters_the_pool_as_cluster_will():
    """Half of the samples: sizes count those of the pool."""
    features, truth, _ = blobs([400, 300, 120], 3, noise=0.2)
    found = sweep(*images(features, truth), pool=features[::2], sizes=(30, 100))
    assert found.size == 30 and found.objects == (3, 2)  # the smallest has 60 there
    few = sweep(*images(features, truth), pool=features[::2], sizes=(30, 100), pixels=60)
    assert few == sweep(*images(features, truth), pool=features[::2], sizes=(30, 100), pixels=60)
    assert few.objects == found.objects and few.size == 30


def test_size_grid():
    assert size_grid(20_000)[0] == 5 and size_grid(20_000)[-1] == 2000 and len(size_grid(20_000)) == 12
    assert size_grid(20) == [5]
    ratios = np.diff(np.log(size_grid(1_000_000)))
    assert ratios.max() / ratios.min() == pytest.approx(1, abs=0.05)


def test_bad_sweeps():
    features, ids = torch.rand(10, 3), torch.ones(10, dtype=torch.int64)
    for arguments, options, said in [
        (([features], []), {}, "ids must have one entry per image, 1, but has 0"),
        (([features], [ids[:9]]), {}, r"of image 0 must be \[P, D\] and \[P\], but are \[10, 3\] and \[9\]"),
        (([features], [0 * ids]), {}, "ids must have a pixel above 0 in some image"),
        (
            ([features], [ids]),
            {"sizes": (1, 5)},
            r"sizes must be whole numbers of at least 2, but is \[1, 5\]",
        ),
    ]:
        with pytest.raises(ValueError, match=said):
            sweep(*arguments, **options)

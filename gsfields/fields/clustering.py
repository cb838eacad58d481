"""Clusters of features: scikit-learn's HDBSCAN, DBSCAN and MeanShift behind one question. Which samples belong
together, if a cluster must have at least so many?
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, get_args

import numpy as np
from scipy.spatial import cKDTree

Method = Literal["hdbscan", "dbscan", "meanshift"]
# the smallest size of a cluster -> the cluster of each sample [S], -1 = noise, and how firmly it belongs, in [0, 1]
Labeller = Callable[[int], "tuple[np.ndarray, np.ndarray]"]

_MODES_OF = 5000  # samples whose density MeanShift climbs
_SEEDS = 1000  # where it starts from, and where radii are measured
_NEIGHBOURS = 64  # the farthest neighbour that a radius is taken from


@dataclass(frozen=True)
class ClusterOptions:
    """How features are clustered. Raises ValueError for values out of range.

    Distances are Euclidean in the space of the embeddings, in which the losses are stated. The released code
    clusters in another, each dimension scaled to [0, 1] once outliers are gone, but assigns in the original one;
    `scale` and `drop_outliers` do so. Neither is the default: scaling lifts dimensions that hold only noise to the
    level of the others, and an outlier may be an object.
    """

    method: Method = "hdbscan"
    min_cluster_size: int | None = None  # samples; None: a hundredth of them (`sweep` knows better)
    samples: int = 20_000  # that are clustered at most, of all classes together; the paper has 100,000
    min_samples: int = 5  # neighbours, itself included, that set the density about a sample (HDBSCAN)
    radius: float | None = None  # of DBSCAN (eps) and MeanShift (bandwidth); None: see `_radius`
    allow_single_cluster: bool = False  # HDBSCAN may take all for one cluster although parts are, too
    scale: bool = False  # cluster with each dimension scaled to [0, 1]
    drop_outliers: bool = False  # leave out samples beyond 3 standard deviations in any dimension
    seed: int = 0  # of the choice of samples

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method must be hdbscan, dbscan or meanshift, but is {self.method!r}")
        least = {"min_cluster_size": 2, "samples": 2, "min_samples": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not (value >= low and value % 1 == 0):
                raise ValueError(f"{name} must be a whole number of at least {low}, but is {value}")
        if self.radius is not None and not (self.radius > 0 and math.isfinite(self.radius)):
            raise ValueError(f"radius must be positive and finite, but is {self.radius}")


# As the released code has it (its min_samples is 1, the sample itself not counted)
RELEASED = ClusterOptions(
    min_cluster_size=500,
    samples=50_000,
    min_samples=2,
    allow_single_cluster=True,
    scale=True,
    drop_outliers=True,
)


def drawn(count: int, options: ClusterOptions) -> np.ndarray:
    """Indices [min(count, samples)] of the samples that are used, in order."""
    if count <= options.samples:
        return np.arange(count)
    return np.sort(np.random.default_rng(options.seed).choice(count, options.samples, replace=False))


def labeller(features: np.ndarray, options: ClusterOptions) -> Labeller:
    """The clustering of features [S, D], prepared so that sizes can be tried cheaply.

    The latest is kept: a sweep over sizes and the clustering that it is for ask about the same features.
    """
    global _latest
    options = replace(options, min_cluster_size=None)
    if _latest is None or _latest.options != options or not np.array_equal(_latest.features, features):
        _latest = _Prepared(features.copy(), options, _prepared(features, options))
    return _latest.labels


@dataclass(frozen=True)
class _Prepared:
    features: np.ndarray
    options: ClusterOptions  # but for min_cluster_size
    labels: Labeller


_latest: _Prepared | None = None


def _prepared(features: np.ndarray, options: ClusterOptions) -> Labeller:
    count = len(features)
    keep = np.ones(count, dtype=bool)
    if options.drop_outliers:
        keep = (np.abs(features - features.mean(axis=0)) <= 3 * features.std(axis=0)).all(axis=1)
    kept = features[keep]
    if options.scale and len(kept):
        span = np.ptp(kept, axis=0)
        kept = (kept - kept.min(axis=0)) / np.where(span > 0, span, 1)
    if len(kept) <= options.min_samples or not np.ptp(kept, axis=0).any():
        return lambda size: (np.full(count, -1), np.zeros(count))  # too few for a density, or they coincide
    inner = {"hdbscan": _hdbscan, "dbscan": _dbscan, "meanshift": _meanshift}[options.method](kept, options)

    def labels(size: int) -> tuple[np.ndarray, np.ndarray]:
        found, strength = np.full(count, -1), np.zeros(count)
        found[keep], strength[keep] = inner(size)
        return found, strength

    return labels


def _hdbscan(points: np.ndarray, options: ClusterOptions) -> Labeller:
    """HDBSCAN (Campello et al. 2013). All but a hundredth of the time goes into the tree of merges, which is the same
    for every size; scikit-learn can cut one again, though it does not say so, and where it cannot we start anew.
    """
    HDBSCAN = _scikit_learn().HDBSCAN
    single = options.allow_single_cluster

    def fitted(size: int) -> Any:
        return HDBSCAN(
            min_cluster_size=size, min_samples=options.min_samples, allow_single_cluster=single, copy=True
        ).fit(points)

    try:
        from sklearn.cluster._hdbscan._tree import tree_to_labels

        tree = fitted(2)._single_linkage_tree_
        cut = partial(tree_to_labels, tree, allow_single_cluster=single)
        cut(min_cluster_size=2)
        return lambda size: cut(min_cluster_size=size)
    except (ImportError, AttributeError, TypeError):

        def anew(size: int) -> tuple[np.ndarray, np.ndarray]:
            result = fitted(size)
            return result.labels_, result.probabilities_

        return anew


def _dbscan(points: np.ndarray, options: ClusterOptions) -> Labeller:
    """DBSCAN (Ester et al. 1996)."""
    DBSCAN = _scikit_learn().DBSCAN

    def fit(radius: float, neighbours: int) -> np.ndarray:
        return DBSCAN(eps=radius, min_samples=neighbours).fit(points).labels_

    return _by_radius(fit, points, options)


def _meanshift(points: np.ndarray, options: ClusterOptions) -> Labeller:
    """MeanShift (Comaniciu and Meer 2002) of a part of the points, for it is slow; then each goes to the nearest mode,
    if that is within the radius.
    """
    MeanShift = _scikit_learn().MeanShift
    some = points[:: 1 + len(points) // _MODES_OF]

    def fit(radius: float, neighbours: int) -> np.ndarray:
        modes = MeanShift(bandwidth=radius, seeds=some[:: 1 + len(some) // _SEEDS]).fit(some).cluster_centers_
        distance, label = cKDTree(modes).query(points)
        return np.where(distance <= radius, label, -1)

    return _by_radius(fit, points, options)


def _by_radius(
    fit: Callable[[float, int], np.ndarray], points: np.ndarray, options: ClusterOptions
) -> Labeller:
    """A method that asks for a radius, fitted once for each; a cluster of fewer than `size` samples is noise."""
    fitted = cache(lambda neighbours: fit(_radius(points, neighbours, options), neighbours))
    return lambda size: _without_small(fitted(min(size, _NEIGHBOURS, len(points) - 1)), size)


def _radius(points: np.ndarray, neighbours: int, options: ClusterOptions) -> float:
    """`options.radius`, by default one within which nine points in ten have so many neighbours."""
    if options.radius is not None:
        return options.radius
    some = points[:: 1 + len(points) // _SEEDS]
    distances = cKDTree(points).query(some, k=[neighbours + 1])[0]
    return max(float(np.quantile(distances, 0.9)), 1e-12)


def _without_small(labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with clusters of fewer than `size` samples made noise, and the rest numbered from 0 on; all firm."""
    ids, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept = (ids >= 0) & (counts >= size)
    return np.where(kept, np.cumsum(kept) - 1, -1)[inverse], np.ones(len(labels))


def _scikit_learn() -> Any:
    try:
        import sklearn.cluster
    except ImportError:
        raise ImportError("clustering needs scikit-learn: pip install 'gsfields[instances]'") from None
    return sklearn.cluster

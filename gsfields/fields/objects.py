"""From embeddings to objects: rendered features are clustered; each pixel and Gaussian goes to the nearest centroid.

Contrastive Lift (Bhalgat et al., NeurIPS 2023), section 3.4: features sampled from many views are clustered class by
class, only the centroids are kept, and what is labelled gets the nearest centroid of its class. As no parameter of a
clustering suits every scene, the smallest size of a cluster is chosen by how well the objects agree with the 2D
segments within single images (`sweep`). Beyond the paper, these also tell which clusters are parts of one object
(`merged`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist, squareform
from torch import Tensor

from gsfields.fields.clustering import ClusterOptions, drawn, labeller
from gsfields.files import written_whole

THING = 1  # the class of everything where there are no classes (gsfields.data.segments.Classes)
_TOGETHER = 0.5  # objects whose segments agree more are one
_AS_GOOD = 0.02  # of per-frame PQ: sizes of clusters that differ by less are as good
_DISTANCES = 1 << 20  # held at once by `assign`


@dataclass
class Objects:
    """K objects: what `assign` needs to recognise them. Object k + 1 has row k; id 0 is none.

    Raises ValueError where a shape does not fit.
    """

    centroids: Tensor  # [M, D] in the space of the embeddings
    classes: Tensor  # [M] int32, class id of each
    owners: Tensor  # [M] int32, the object whose centroid it is, from 0 on
    found: Tensor  # [K] the share of its views in which segments claim an object

    def __post_init__(self) -> None:
        if self.centroids.ndim != 2 or not (
            self.centroids.shape[:1] == self.classes.shape == self.owners.shape and self.found.ndim == 1
        ):
            shapes = (list(x.shape) for x in (self.centroids, self.classes, self.owners, self.found))
            raise ValueError(
                "centroids, classes, owners and found must be [M, D], [M], [M] and [K], but are "
                f"{', '.join(map(str, shapes))}"
            )

    @classmethod
    def each(cls, centroids: Tensor, classes: Tensor) -> Objects:
        """One object per centroid, found in all views."""
        count = len(centroids)
        return cls(centroids, classes, torch.arange(count, dtype=torch.int32), torch.ones(count))

    def __len__(self) -> int:
        return len(self.found)

    def class_ids(self) -> Tensor:
        """[K] int32, class id of each object."""
        ids = torch.zeros(len(self), dtype=torch.int32)
        ids[self.owners.long()] = self.classes.int()
        return ids

    @torch.no_grad()
    def assign(self, features: Tensor, classes: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """The id of the nearest centroid, int32 [...]; every feature gets one, however far it is.

        Args:
            features: [..., D], of pixels or of Gaussians.
            classes: integers [...], if given only objects of that class are considered: 0 where it has none.
            valid: bool [...], if given 0 where it is False.

        Raises ValueError for other shapes, and for features that are not finite where valid.
        """
        shape = features.shape[:-1]
        if features.ndim == 0 or features.shape[-1] != self.centroids.shape[1]:
            raise ValueError(
                f"features must be [..., {self.centroids.shape[1]}] like the centroids, "
                f"but is {list(features.shape)}"
            )
        for name, value in (("classes", classes), ("valid", valid)):
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} must be {list(shape)} like features, but is {list(value.shape)}")
        if valid is not None and valid.dtype != torch.bool:
            raise ValueError(f"valid must be bool, but is {valid.dtype}")
        flat = features.reshape(-1, features.shape[-1]).float()
        todo = (
            torch.ones_like(flat[:, 0], dtype=torch.bool)
            if valid is None
            else valid.to(flat.device).reshape(-1)
        )
        if not bool((flat.isfinite().all(dim=1) | ~todo).all()):
            raise ValueError("features must be finite where valid, but hold NaN or infinity")
        centroids, owners = self.centroids.to(flat), self.owners.to(flat.device)
        own = self.classes.to(flat.device)
        ids = torch.zeros(len(flat), dtype=torch.int32, device=flat.device)
        if classes is None:
            groups = [(slice(None), todo)]
        else:
            theirs = classes.to(flat.device).reshape(-1)
            groups = [((own == c).nonzero()[:, 0], todo & (theirs == c)) for c in own.unique().tolist()]
        for among, pixels in groups if len(self) else ():
            ids[pixels] = 1 + owners[among][_nearest(flat[pixels], centroids[among])]
        return ids.reshape(shape)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        with written_whole(path) as temporary:
            safetensors.torch.save_file(
                {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary
            )

    @classmethod
    def load(cls, path: str | Path) -> Objects:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError if the file holds no objects."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no objects file at {path}")
        try:
            tensors = safetensors.torch.load_file(path)
        except Exception as error:  # safetensors raises its own type, derived from Exception only
            raise ValueError(f"{path} is not a readable safetensors file ({error})") from None
        if set(tensors) != {f.name for f in dataclasses.fields(cls)}:
            raise ValueError(f"{path} holds no objects: it has {', '.join(sorted(tensors)) or 'nothing'}")
        return cls(**tensors)


def _nearest(features: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest of centroids [K, D] for features [M, D], in bounded memory.

    By ‖c‖² - 2 f·c, about the centroids' mean so that little is lost to rounding. On a CPU that is as fast as a
    k-d tree at D = 3 (0.1 s for 512 x 512 features and 500 centroids) and six times as fast at D = 24.
    """
    centre = centroids.mean(dim=0)
    centroids = centroids - centre
    squares = centroids.square().sum(dim=1)
    chunks = features.split(max(1, _DISTANCES // len(centroids)))
    return torch.cat(
        [torch.addmm(squares, chunk - centre, centroids.T, alpha=-2).argmin(dim=1) for chunk in chunks]
    )


# ------------------------------------------------------------------------------------------------------------ clusters


def cluster(
    features: Tensor,
    classes: Tensor | None = None,
    weights: Tensor | None = None,
    options: ClusterOptions | None = None,
    *,
    things: Collection[int] | None = None,
) -> Objects:
    """The objects that sampled features show, class by class, in order of class and then of size.

    A class in which no cluster is found is one object: its pixels are said to be things, and have to go somewhere.
    (The released code leaves such a class the centroids of the one before it.)

    Args:
        features: [S, D], of which `options.samples` are used, drawn at one rate from all classes, so that a
            cluster's smallest size stands for the same number of pixels in all of them.
        classes: integers [S], class id of each; default: all of class 1.
        weights: [S], not negative, how much each counts in its centroid, such as the class's probability; times
            how firmly it belongs to the cluster, where the method says so (HDBSCAN; as the released code).
        things: the classes that have objects; default: all in `classes`.

    Raises ValueError for other shapes or values, ImportError where scikit-learn is missing.
    """
    options = options or ClusterOptions()
    points, owner, weight = _checked(features, classes, weights)
    rows = np.arange(len(points)) if things is None else np.flatnonzero(np.isin(owner, list(things)))
    rows = rows[drawn(len(rows), options)]
    size = options.min_cluster_size or max(2, len(rows) // 100)
    centroids = [np.zeros((0, points.shape[1]))]
    owners: list[int] = []
    for own in np.unique(owner[rows]):
        inside = rows[owner[rows] == own]
        labels, strength = labeller(points[inside], options)(size)
        found = _centroids(points[inside], labels, strength, weight[inside])
        centroids.append(found)
        owners += [int(own)] * len(found)
    return Objects.each(
        torch.from_numpy(np.concatenate(centroids)).float(), torch.tensor(owners, dtype=torch.int32)
    )


def _checked(
    features: Tensor, classes: Tensor | None, weights: Tensor | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As numpy arrays [S, D] float64, [S] int64 and [S] float64."""
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"features must be [S, D], but is {list(features.shape)}")
    count = len(features)
    for name, value in (("classes", classes), ("weights", weights)):
        if value is not None and value.shape != (count,):
            raise ValueError(f"{name} must be [{count}] like features, but is {list(value.shape)}")
    if not bool(features.isfinite().all()):
        raise ValueError("features must be finite, but hold NaN or infinity")
    if weights is not None and not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError("weights must be finite and not negative")
    if classes is None:
        classes = torch.full((count,), THING)
    elif classes.is_floating_point() or classes.is_complex():
        raise ValueError(f"classes must be whole numbers, but is {classes.dtype}")
    if weights is None:
        weights = torch.ones(count)
    return (
        features.detach().cpu().double().numpy(),
        classes.detach().cpu().long().numpy(),
        weights.detach().cpu().double().numpy(),
    )


def _centroids(
    features: np.ndarray, labels: np.ndarray, strength: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Means [K, D] of the clusters weighted by strength and weights, the largest first; of all features if there is
    no cluster.
    """
    if not (labels >= 0).any():
        labels, strength = np.zeros(len(features), dtype=np.int64), np.ones(len(features))
    member = labels >= 0
    features, labels, weights = features[member], labels[member], (weights * strength)[member]
    counts = np.bincount(labels)
    empty = np.bincount(labels, weights) == 0  # nothing in the cluster counts: then all of it, alike
    weights = np.where(empty[labels], 1.0, weights)
    total = np.bincount(labels, weights)
    means = np.stack([np.bincount(labels, weights * column) / total for column in features.T], axis=1)
    return means[np.argsort(-counts, kind="stable")]


def merged(objects: Objects, assigned: Sequence[Tensor], ids: Sequence[Tensor]) -> Objects:
    """Objects of one class that 2D segments take for one become one, which keeps all their centroids.

    A clustering that finds the smallest objects cuts some large ones. The 2D segments know: two parts of an object are
    in one segment in most views, two objects that touch are so in few. Of two objects a, b in a view, the shares p of
    their pixels that lie in each of its segments agree by Σ_s min(p_as, p_bs), in [0, 1]; the mean over the views,
    weighted by the pixels of the lesser, is how close they are. Merging is hierarchical, by the average.

    Args:
        assigned: of each of F images, [P], the objects' ids of its pixels as `assign` gives them.
        ids: likewise [P], its 2D segments; only pixels that have both count.
    """
    if len(objects) < 2:
        return objects
    classes = objects.class_ids().numpy()
    predicted, segments = ([x.cpu().numpy() for x in xs] for xs in (assigned, ids))
    group = _groups(_agreement(predicted, segments, len(objects)) * (classes[:, None] == classes))
    first = np.unique(group, return_index=True)[1]
    owners = torch.from_numpy(group)[objects.owners.long()].to(objects.owners)
    return dataclasses.replace(objects, owners=owners, found=objects.found[torch.from_numpy(first)])


def _agreement(assigned: Sequence[np.ndarray], ids: Sequence[np.ndarray], count: int) -> np.ndarray:
    """[count, count], see `merged`; 0 for objects that no view shows together. Ids are from 1 on, 0 is none."""
    agree, seen = np.zeros((count, count)), np.zeros((count, count))
    for predicted, segments in zip(assigned, ids):
        both = (predicted > 0) & (segments > 0)
        shown, row = np.unique(predicted[both] - 1, return_inverse=True)
        _, column = np.unique(segments[both], return_inverse=True)
        if len(shown) < 2:
            continue
        pixels = np.zeros((len(shown), int(column.max()) + 1))
        np.add.at(pixels, (row, column), 1)
        area = pixels.sum(axis=1)
        # Σ min(p, q) = 1 - ½ Σ |p - q| of shares that sum to 1
        overlap = 1 - 0.5 * cdist(pixels / area[:, None], pixels / area[:, None], "cityblock")
        weight = np.minimum(area[:, None], area)
        agree[np.ix_(shown, shown)] += weight * overlap
        seen[np.ix_(shown, shown)] += weight
    return agree / np.maximum(seen, 1)


def _groups(together: np.ndarray) -> np.ndarray:
    """[K] int64, the group of each, numbered by their first members: average linkage, down to _TOGETHER."""
    apart = np.clip(1 - together, 0, 1)
    np.fill_diagonal(apart, 0)
    tree = linkage(squareform(apart, checks=False), "average")
    names = fcluster(tree, 1 - _TOGETHER, "distance")
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


# --------------------------------------------------------------------------------------------------- the smallest size


@dataclass(frozen=True)
class Sweep:
    """Which smallest size of a cluster agrees best with the 2D segments, and how all that were tried do."""

    size: int  # samples
    sizes: tuple[int, ...]
    pq: tuple[float, ...]  # in [0, 1], mean over the frames, for each of sizes
    objects: tuple[int, ...]  # how many were found, likewise

    def __str__(self) -> str:
        rows = [f"{s:>6} {n:>8} {100 * q:>13.1f}" for s, n, q in zip(self.sizes, self.objects, self.pq)]
        return "\n".join([f"{'size':>6} {'objects':>8} {'per-frame PQ':>13}", *rows])


def sweep(
    features: Sequence[Tensor],
    ids: Sequence[Tensor],
    options: ClusterOptions | None = None,
    *,
    pool: Tensor | None = None,
    sizes: Sequence[int] | None = None,
    pixels: int = 16_384,
    merge: bool = True,
) -> Sweep:
    """Choose the smallest size of a cluster without a true label: by the mean per-frame PQ of the objects
    against the 2D segments of a few training images, all things as one class. The released code takes the best, but
    the best of many that are nearly equal is chance, and the 2D segments would rather lose a small object than have its
    outline wrong: here it is the middle one of all that are nearly as good.

    Args:
        features: of each of F images, [P, D] (P may differ), of its pixels.
        ids: likewise [P], its 2D segments; pixels of id 0 are left out, for whether a pixel shows a thing is
            not for clustering to decide.
        pool: [S, D], what `cluster` is going to get; default: the features of the images with an id.
        sizes: to be tried; default: `size_grid` of the number of samples.
        pixels: the most that are scored of an image.
        merge: score objects as `merged` makes them of the clusters.

    Raises ValueError for other shapes, or if no pixel has an id.
    """
    options = options or ClusterOptions()
    frames = _frames(features, ids, pixels, options.seed)
    pool = torch.cat([f for f, _ in frames]) if pool is None else pool
    samples = _checked(pool, None, None)[0]
    samples = samples[drawn(len(samples), options)]
    sizes = tuple(size_grid(len(samples)) if sizes is None else sizes)
    if not sizes or min(sizes) < 2:
        raise ValueError(f"sizes must be whole numbers of at least 2, but is {list(sizes)}")
    label = labeller(samples, options)
    stacked = torch.cat([f for f, _ in frames]).float()
    segments = [np.unique(i.cpu().numpy(), return_inverse=True)[1] + 1 for _, i in frames]
    scores, counts = [], []
    for size in sizes:
        found = _centroids(samples, *label(size), np.ones(len(samples)))
        centroids = torch.from_numpy(found).to(stacked)
        assigned = (_nearest(stacked, centroids) + 1).cpu().numpy()
        parts = np.split(assigned, np.cumsum([len(s) for s in segments])[:-1])
        group = np.arange(len(centroids))
        if merge and len(centroids) > 1:
            group = _groups(_agreement(parts, segments, len(centroids)))
        scores.append(float(np.mean([frame_pq(s, group[p - 1] + 1) for s, p in zip(segments, parts)])))
        counts.append(int(group.max()) + 1)
    return Sweep(_middle(sizes, scores), sizes, tuple(scores), tuple(counts))


def _middle(sizes: Sequence[int], scores: Sequence[float]) -> int:
    """The middle of the sizes that are as good as the best, the lower of two."""
    good = sorted(size for size, score in zip(sizes, scores) if score >= max(scores) - _AS_GOOD)
    return good[(len(good) - 1) // 2]


def size_grid(samples: int, count: int = 12) -> list[int]:
    """Sizes to try, in even ratios from 5 (or a 4000th of the samples) to a tenth of the samples."""
    low, high = max(5, samples // 4000), max(5, samples // 10)
    return sorted({round(size) for size in np.geomspace(low, high, count)})


def frame_pq(truth: np.ndarray, predicted: np.ndarray) -> float:
    """PQ in [0, 1] of one image with all things as one class: Σ IoU / (TP + FP / 2 + FN / 2) over the pairs of
    segments with IoU > 0.5. Two arrays of ids, 0 and above, of one shape; 0 is no segment. nan without segments.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"predicted must be {list(truth.shape)} like truth, but is {list(predicted.shape)}")
    truth, predicted = (np.unique(np.append(0, x), return_inverse=True)[1][1:] for x in (truth, predicted))
    rows, columns = (int(x.max(initial=0)) + 1 for x in (truth, predicted))
    if rows + columns == 2:
        return math.nan
    pairs, both = np.unique(truth.astype(np.int64) * columns + predicted, return_counts=True)
    row, column = pairs // columns, pairs % columns
    areas = [np.bincount(x, minlength=n) for x, n in ((truth, rows), (predicted, columns))]
    iou = both / (areas[0][row] + areas[1][column] - both)
    hits = iou[(row > 0) & (column > 0) & (iou > 0.5)]
    return float(hits.sum() / (0.5 * (rows - 1 + columns - 1)))


def _frames(
    features: Sequence[Tensor], ids: Sequence[Tensor], pixels: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """(features [M, D], ids [M]) of the pixels with an id, at most `pixels` of each image that has any."""
    if len(features) != len(ids):
        raise ValueError(f"ids must have one entry per image, {len(features)}, but has {len(ids)}")
    generator = torch.Generator().manual_seed(seed)
    frames = []
    for i, (feature, label) in enumerate(zip(features, ids)):
        if feature.ndim != 2 or label.shape != feature.shape[:1]:
            raise ValueError(
                f"features and ids of image {i} must be [P, D] and [P], but are "
                f"{list(feature.shape)} and {list(label.shape)}"
            )
        some = label.nonzero()[:, 0]
        if len(some) > pixels:
            some = some[torch.randperm(len(some), generator=generator)[:pixels].to(some.device)]
        if len(some):
            frames.append((feature[some].detach(), label[some]))
    if not frames:
        raise ValueError("ids must have a pixel above 0 in some image, but all are 0")
    return frames

"""From a fitted field to objects: what it holds, which objects there are, and what a pixel or a Gaussian shows.

Segmenters miss an object far more often than they make one up. So a pixel need not be a thing in most views to be part
of an object: it is a candidate where segments claim it in a small share of them (`ObjectsConfig.found`), candidates
are clustered, and each object then has a share of its own, that of the views in which it was found. It ends where
a pixel's share falls below half of that, so that its outline does not depend on how often it was missed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gsfields.data.lens import distort
from gsfields.data.segments import SegmentSource
from gsfields.fields.clustering import ClusterOptions
from gsfields.fields.objects import Objects, cluster, merged, sweep
from gsfields.files import written_whole
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.instances import embeddings_in, sampling_weights, spread_views
from gsfields.fit.labels import Labels
from gsfields.fit.object_files import ViewObjects
from gsfields.fit.showing import photo_camera
from gsfields.instances_config import ObjectsConfig

_JUDGES = 24  # views whose 2D segments clusters are judged by, or one in ten if those are more
_LIFT_VIEWS = 60  # that tell whose Gaussians are
_SHEET_ROWS = 6
Say = Callable[[str], None]


@dataclass
class FittedField:
    """What a fit of instances leaves, beside the geometry."""

    theta: Tensor  # [N, D] fast embeddings
    probabilities: Tensor  # [N, K] of the classes
    class_ids: tuple[int, ...]  # [K]
    things: tuple[int, ...]  # those of them that have instances
    segments: str  # where the 2D segments are
    identifiers: bool = (
        False  # θ are logits of identifiers (linear assignment), not embeddings to be clustered
    )

    def class_at(self, columns: Tensor) -> Tensor:
        """int32: the class id of each column of the probabilities."""
        return torch.tensor(self.class_ids, dtype=torch.int32)[columns]

    def likely(self, chances: Tensor) -> Likely:
        """Of blended probabilities [..., K], which need not sum to 1: zeros are no thing."""
        thing = torch.tensor([c in self.things for c in self.class_ids])

        def best(among: Tensor) -> Tensor:
            among = among if bool(among.any()) else ~among
            return chances.masked_fill(~among, -1.0).argmax(dim=-1)

        total = chances.sum(dim=-1).clamp_min(1e-6)
        return Likely((chances * thing).sum(dim=-1) / total, best(thing), best(~thing))

    def split(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """(embeddings [..., D], probabilities [..., K]) of what was blended together."""
        theta, chances = joined.split([self.theta.shape[1], len(self.class_ids)], dim=-1)
        return theta, chances

    @property
    def joined(self) -> Tensor:
        """[N, D + K] to be blended together."""
        return torch.cat((self.theta, self.probabilities), dim=1)

    def save(self, path: Path) -> None:
        tensors = {"theta": self.theta, "probabilities": self.probabilities}
        meta = {
            "classes": " ".join(map(str, self.class_ids)),
            "things": " ".join(map(str, self.things)),
            "segments": self.segments,
            "identifiers": str(int(self.identifiers)),
        }
        with written_whole(path) as temporary:
            safetensors.torch.save_file(
                {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
                temporary,
                metadata=meta,
            )

    @classmethod
    def load(cls, path: Path) -> FittedField:
        """Raises FileNotFoundError where there is none, ValueError where it is damaged."""
        if not path.is_file():
            raise FileNotFoundError(f"no instance field at {path}: `gsfields fit-instances RUN` makes one")
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in ("theta", "probabilities")}
                meta = file.metadata()
            ids, things = (tuple(map(int, meta[key].split())) for key in ("classes", "things"))
            return cls(
                **tensors,
                class_ids=ids,
                things=things,
                segments=meta["segments"],
                identifiers=meta["identifiers"] == "1",
            )
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error})") from None


@dataclass(frozen=True)
class Likely:
    """What classes [..., K] say of pixels."""

    thing: Tensor  # [...] the share of the classes that have instances
    thing_column: Tensor  # [...] int64, the best of them (of all, if there are none)
    stuff_column: Tensor  # [...] int64, and of the others (likewise)


# ---------------------------------------------------------------------------------------------- what there is


def located(
    views: FrozenViews, field: FittedField, labels: Labels | None, config: ObjectsConfig
) -> FittedField:
    """The field with each Gaussian's place beside its embedding, [N, D + 3], for clustering and recognition.

    Losses compare what is seen together. Two objects that no view shows together may get the same embedding, and do if
    there are many. Places tell them apart: in units in which a 2D segment is, in the median, `config.place` times as
    wide as it is in the space of the embeddings, neighbours differ little and what is far apart much.
    """
    if field.identifiers or labels is None or config.place == 0:
        return field
    both = dataclasses.replace(field, theta=torch.cat((field.theta, views.gaussians().means.detach()), dim=1))
    dim, widths = field.theta.shape[1], []
    for index in spread_views(labels.indices, max(_JUDGES, len(labels.indices) // 10)):
        found, usable = _Samples.of_view(views, index, both, config)
        widths += _widths(found.features, labels.of(index).ids[usable], dim)
    if not widths:
        return field
    embedding, place = torch.tensor(widths).median(dim=0).values.tolist()
    weight = config.place * embedding / max(place, 1e-12)
    return dataclasses.replace(field, theta=torch.cat((field.theta, weight * both.theta[:, dim:]), dim=1))


def _widths(features: Tensor, ids: Tensor, dim: int) -> list[tuple[float, float]]:
    """Of each segment of 10 pixels or more: root mean square distances from its middle, in the first dim dimensions
    and in the others.
    """
    found = []
    for segment in ids.unique().tolist():
        own = features[ids == segment]
        if segment > 0 and len(own) >= 10:
            squares = (own - own.mean(dim=0)).square().mean(dim=0)
            found.append((float(squares[:dim].sum().sqrt()), float(squares[dim:].sum().sqrt())))
    return found


def find_objects(
    views: FrozenViews,
    field: FittedField,
    labels: Labels | None,
    config: ObjectsConfig,
    say: Say = print,
) -> Objects:
    """The objects of a field: clusters of the embeddings of pixels that may show things, of some training views.

    labels: the 2D segments, which choose the smallest size of a cluster if config.min_size is 0, and tell which
    clusters are one object if config.merge.
    """
    count = len(views.dataset.train if labels is None else labels.indices)
    config = dataclasses.replace(
        config,
        samples=config.samples or max(20_000, 50 * count),
        views=config.views or max(30, count // 10),
    )
    samples = _Samples.drawn(views, field, labels, config)
    if len(samples.features) < 2:
        say("no pixel shows a thing: no objects")
        return Objects.each(torch.zeros(0, field.theta.shape[1]), torch.zeros(0, dtype=torch.int32))
    if field.identifiers:
        return _with_found(_identifiers(samples, field), samples)
    frames = [] if labels is None else _frames(views, field, labels, config)
    options = _options(samples, frames, config, say)
    objects = _with_found(cluster(samples.features, samples.classes, samples.thing, options), samples)
    if not config.merge:
        return objects
    whole = merged(objects, [frame.assigned(objects) for frame in frames], [frame.ids for frame in frames])
    if len(whole) < len(objects):
        say(f"{len(objects)} clusters are {len(whole)} objects by the 2D segments")
    return _with_found(whole, samples)


@dataclass
class _Samples:
    """Pixels that may show a thing."""

    features: Tensor  # [S, D]
    classes: Tensor  # [S] int32, the best of the classes with instances
    thing: Tensor  # [S] how likely it is one of them

    @classmethod
    def of_view(
        cls, views: FrozenViews, index: int, field: FittedField, config: ObjectsConfig
    ) -> tuple[_Samples, Tensor]:
        """(those of a view, bool [H W] which pixels they are)"""
        features, chances = field.split(embeddings_in(views, index, field.joined).flatten(0, 1))
        likely = field.likely(chances)
        usable = (likely.thing > config.found) & (views.alpha(index).flatten() > 0.9)
        classes = field.class_at(likely.thing_column)
        return cls(features[usable], classes[usable], likely.thing[usable]), usable

    @classmethod
    def drawn(
        cls, views: FrozenViews, field: FittedField, labels: Labels | None, config: ObjectsConfig
    ) -> _Samples:
        """config.samples pixels of some training views; where there are segments, of those, small ones as often."""
        train = views.dataset.train if labels is None else labels.indices
        generator = torch.Generator().manual_seed(0)
        share = config.samples // min(config.views, len(train)) + 1
        parts = []
        for index in spread_views(train, config.views):
            found, usable = cls.of_view(views, index, field, config)
            weights = torch.ones(len(found.thing))
            if labels is not None:
                weights = sampling_weights(labels.of(index), usable, config.evenness, 0)[usable]
            count = min(share, int((weights > 0).sum()))
            if count:
                some = torch.multinomial(weights, count, generator=generator)
                parts.append((found.features[some], found.classes[some], found.thing[some]))
        if not parts:
            return cls(
                torch.zeros(0, field.theta.shape[1]), torch.zeros(0, dtype=torch.int32), torch.zeros(0)
            )
        features, classes, thing = (torch.cat(part) for part in zip(*parts))
        return cls(features, classes, thing)


@dataclass
class _Frame:
    """Pixels of a view that may show a thing, and the 2D segments there: clusters are judged by these."""

    samples: _Samples
    ids: Tensor  # [S] int64, 0 = none

    def assigned(self, objects: Objects) -> Tensor:
        """[S] int32, objects' ids."""
        ids = objects.assign(self.samples.features, self.samples.classes)
        return ids * (self.samples.thing > _least(objects)[ids])


def _frames(views: FrozenViews, field: FittedField, labels: Labels, config: ObjectsConfig) -> list[_Frame]:
    """Of some training views, those with a segment."""
    frames = []
    for index in spread_views(labels.indices, max(_JUDGES, len(labels.indices) // 10)):
        found, usable = _Samples.of_view(views, index, field, config)
        frames.append(_Frame(found, labels.of(index).ids[usable]))
    return [frame for frame in frames if bool(frame.ids.any())]


def _identifiers(samples: _Samples, field: FittedField) -> Objects:
    """Those of linear assignment that some pixel shows; that with the largest logit is the nearest unit vector."""
    taken = torch.stack((samples.classes.long(), samples.features.argmax(dim=1)), dim=1).unique(dim=0)
    return Objects.each(torch.eye(field.theta.shape[1])[taken[:, 1]], taken[:, 0].int())


def _with_found(objects: Objects, samples: _Samples) -> Objects:
    """How often each is found: the median of its pixels, which its outline hardly moves."""
    ids = objects.assign(samples.features, samples.classes)
    shares = [samples.thing[ids == k + 1] for k in range(len(objects))]
    medians = [float(share.median()) if len(share) else 1.0 for share in shares]
    return dataclasses.replace(objects, found=torch.tensor(medians))


def _options(samples: _Samples, frames: list[_Frame], config: ObjectsConfig, say: Say) -> ClusterOptions:
    """As configured, with the smallest size of a cluster by the 2D segments if it is not."""
    options = ClusterOptions(
        method=config.method,
        min_cluster_size=config.min_size or None,
        samples=config.samples,
        min_samples=config.min_samples,
        scale=config.scale,
    )
    if config.min_size or not frames:
        return options
    features, ids = [frame.samples.features for frame in frames], [frame.ids for frame in frames]
    chosen = sweep(features, ids, options, pool=samples.features, merge=config.merge)
    total = min(len(samples.features), config.samples)
    say(f"smallest cluster: {chosen.size} of {total} samples, chosen by the 2D segments")
    return dataclasses.replace(options, min_cluster_size=chosen.size)


# --------------------------------------------------------------------------------------------- what is shown where


def recognised(
    field: FittedField, objects: Objects, features: Tensor, chances: Tensor, opaque: Tensor
) -> tuple[Tensor, Tensor]:
    """(object ids int32 [...], class ids int32 [...]) of features [..., D] with blended probabilities [..., K].

    What is not of an object is stuff, if there is any: a thing without an object would be scored as one more. So it is
    where the scene is not opaque (bool [...]).
    """
    likely, least = field.likely(chances), _least(objects)
    may = opaque & (likely.thing > least.min())
    ids = objects.assign(features, field.class_at(likely.thing_column), may)
    ids = ids * (likely.thing > least[ids])
    return ids, field.class_at(torch.where(ids > 0, likely.thing_column, likely.stuff_column))


def _least(objects: Objects) -> Tensor:
    """[1 + K] of each id, the probability of a thing at its outline; nothing reaches that of no object."""
    return torch.cat((torch.ones(1), 0.5 * objects.found))


def objects_of_gaussians(views: FrozenViews, field: FittedField, objects: Objects) -> Tensor:
    """int32 [N]: by the mean of what is rendered where a Gaussian shows, of some training views; 0 where none shows it.

    Embeddings are learnt as blends. Against true labels those of single Gaussians are right for 95.4 % of an object's
    Gaussians, the means of blends for 97.6 % (50 objects, 112 views).
    """
    joined = field.joined
    sums, total = torch.zeros_like(joined), torch.zeros(len(joined))
    for index in spread_views(views.dataset.train, _LIFT_VIEWS):
        lifted = views.lift(index, embeddings_in(views, index, joined))
        sums, total = sums + lifted.sums, total + lifted.total
    theta, chances = field.split(sums / total.clamp_min(1e-12)[:, None])
    return recognised(field, objects, theta, chances, (total > 1e-3) & views.placed())[0]


def maps_of_views(
    views: FrozenViews, field: FittedField, objects: Objects, source: SegmentSource | None
) -> Iterator[ViewObjects]:
    """What each view of the data shows, on the grid of its photo."""
    shown = set(spread_views(list(range(len(views.dataset.views))), _SHEET_ROWS))
    joined = field.joined
    for index, view in enumerate(views.dataset.views):
        blended, alpha = views.as_taken(index, joined)
        features, chances = field.split(blended / alpha.clamp_min(1e-6)[..., None])
        maps = torch.stack(recognised(field, objects, features, chances, alpha > 0.5), dim=-1)
        if view.lens is not None:
            maps = distort(maps.float(), photo_camera(view), view.lens, nearest=True).round().int()
        found = source.of(view) if index in shown and source is not None else None
        yield ViewObjects(
            view.stem,
            maps[..., 0],
            maps[..., 1],
            image=view.image() if index in shown else None,
            segments=None if found is None else found.ids,
        )

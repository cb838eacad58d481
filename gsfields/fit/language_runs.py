"""What the command line does with language: fit it to a run, ask it, and score its answers.

RUN/language/ holds checkpoint-…/ (the geometry that it was fitted on), nested.safetensors (the embeddings of its
Gaussians), config.yaml, and queries/, what was asked last.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import safetensors.torch
import torch
import yaml
from torch import Tensor

from gsfields import config as configuration
from gsfields.camera import Camera
from gsfields.data.dataset import Dataset
from gsfields.data.language_features import FeatureSource, open_features
from gsfields.data.lens import distort
from gsfields.fields import nested as nesting
from gsfields.fields import relevancy as relevance
from gsfields.fields.nested import Nested
from gsfields.fields.prompt_scales import PromptScales
from gsfields.fields.query_basis import QueryBasis
from gsfields.files import written_whole
from gsfields.fit.checkpoint import Checkpoint, list_checkpoints
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.language import fitted
from gsfields.fit.language_labels import LanguageLabels
from gsfields.fit.querying import Answer, Askable, PromptQueries, ViewQueries
from gsfields.fit.runs import opened
from gsfields.fit.showing import photo_camera, render_view
from gsfields.fit.texts import Texts, find_texts
from gsfields.language_config import LanguageConfig, QueryConfig
from gsfields.layers import LayeredRendering

FOLDER = "language"
_NESTED, _CONFIG, _ORIGIN = "nested.safetensors", "config.yaml", "features"
Say = Callable[[str], None]


def fit_language(
    run: str | Path,
    features: str | Path | None = None,
    config: LanguageConfig | None = None,
    *,
    data: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    say: Say = print,
) -> Path:
    """Fit a nested language field to what 2D segments of a run's training views mean; returns RUN/language.

    Args:
        run: folder of a run, static or layered.
        features: what gsfields.data.language_features.open_features takes; default: the run's data.
        data: folder of the scene, if it has moved since the fit.
        overwrite: replace the language that is there.

    Raises ValueError for bad arguments, FileNotFoundError where run, data or features are missing.
    """
    config = config or LanguageConfig()
    checkpoint, dataset = opened(run, data)
    where = Path(features if features is not None else checkpoint.config.data.path).resolve()
    source = open_features(where)
    root = Path(run) / FOLDER
    if (root / _NESTED).exists() and not overwrite:
        raise ValueError(f"{root} already holds language: give --overwrite to replace it")
    views = FrozenViews(checkpoint.scene, dataset, checkpoint.config, limit_bytes=config.field.plan_mib << 20)
    labels = LanguageLabels(source, views, dataset.train, config.field.dim, progress=progress)
    say(
        f"segments of {len(labels.indices)} of {len(dataset.train)} training views, embeddings of {labels.width} "
        f"numbers; {len(views)} Gaussians"
    )
    started = time.monotonic()
    nested, steps = fitted(views, labels, config.field, progress=progress)
    trained = f"{steps} steps" if steps else "lifted"
    say(f"{config.field.model}: {trained} in {time.monotonic() - started:.1f} s; plans: {views.report()}")
    if root.exists():
        _forget(root)
    Checkpoint(checkpoint.scene, checkpoint.config, checkpoint.step).save(root, keep=1)
    with written_whole(root / _CONFIG) as temporary:
        temporary.write_text(configuration.dump(config))
    save_nested(nested, root / _NESTED, origin=str(source.root))
    return root


def save_nested(nested: Nested, path: Path, *, origin: str) -> None:
    """Embeddings in half precision: relevancy of what is rounded so differs by some 1e-4."""
    tensors = {"theta": nested.theta.half(), "projection": nested.projection}
    if nested.said is not None:
        tensors["said"] = nested.said
    with written_whole(path) as temporary:
        safetensors.torch.save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            temporary,
            metadata={_ORIGIN: origin},
        )


def load_nested(path: Path) -> tuple[Nested, Path]:
    """(embeddings, the folder of the features that they were fitted to).

    Raises FileNotFoundError where there is none, ValueError where it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no language at {path}: `gsfields fit-language RUN` makes it")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            theta, projection = file.get_tensor("theta").float(), file.get_tensor("projection")
            said = file.get_tensor("said") if "said" in file.keys() else None  # noqa: SIM118
            return Nested(theta, projection, said), Path(file.metadata()[_ORIGIN])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from None


# ------------------------------------------------------------------------------------------------------------ asking


@dataclass
class Language:
    """A run that answers texts: `Language.open(RUN).ask(view, ["mug"])`."""

    checkpoint: Checkpoint
    dataset: Dataset
    nested: Nested
    texts: Texts
    config: LanguageConfig
    features: FeatureSource | None = None  # that it was fitted to, if they are still there

    @classmethod
    def open(
        cls,
        run: str | Path,
        *,
        data: str | None = None,
        embeddings: str | Path | None = None,
        overrides: Iterable[tuple[str, str | None]] = (),
    ) -> Language:
        """The language of a run.

        overrides: of the section query, which need no new fit; ValueError for others.
        embeddings: an npz of prompts and their embeddings (see data.language_features.TextEmbeddings); default:
        text_embeddings.npz with the features or the data, or else the CLIP that the features were made with.
        """
        root = Path(run) / FOLDER
        nested, origin = load_nested(root / _NESTED)
        config = configuration.from_dict(yaml.safe_load((root / _CONFIG).read_text()), LanguageConfig)
        _apply(config, overrides)
        checkpoint, dataset = opened(root, data)
        nearby = [root, origin, origin.parent, Path(checkpoint.config.data.path)]
        texts = find_texts(embeddings, nearby, origin, nested.width)
        return cls(
            checkpoint, dataset, nested, texts, config, FeatureSource(origin) if origin.is_dir() else None
        )

    @cached_property
    def phrases(self) -> Tensor:
        """[K, E] canonical phrases that relevancy compares with."""
        return self.texts.of(relevance.CANONICAL)

    @cached_property
    def asked(self) -> Askable | PromptScales:
        """What prompts are asked of, as query.scales has it."""
        return self.by_prompt if self.config.query.scales == "prompt" else self.composite

    @cached_property
    def by_prompt(self) -> PromptScales:
        """The embeddings of all scales, which each prompt weighs by itself."""
        query = self.config.query
        return PromptScales(self.nested, self.phrases, query.choice, query.heed)

    @cached_property
    def composite(self) -> Askable:
        """The embeddings of all scales at once (N2F2, equations 4.6 and 4.7)."""
        query = self.config.query
        canonical = self.texts.of(self.texts.known(nesting.CANONICAL) or relevance.CANONICAL)
        theta = self.nested.composite(
            canonical, temperature=query.temperature, step=query.step, heed=query.heed
        )
        return self._askable(theta)

    def at(self, scale: float) -> Askable:
        """The embeddings of one scale in [0, 1]: 0 for the smallest segments."""
        return self._askable(self.nested.at(scale))

    def _askable(self, theta: Tensor) -> Askable:
        return Askable(QueryBasis.of(theta, self.nested.projection), self.phrases)

    def index_of(self, name: str | None) -> int:
        """Of a view by its stem, its name or its place; by default the first that was held out."""
        views = self.dataset.views
        if name is None:
            return next(iter(self.dataset.test or range(len(views))))
        for index, view in enumerate(views):
            if name in (view.stem, view.name):
                return index
        if name.isdecimal() and int(name) < len(views):
            return int(name)
        raise ValueError(
            f"view must be a stem such as {views[0].stem} or a number below {len(views)}, but is {name!r}"
        )

    @torch.no_grad()
    def view(self, index: int, asked: Askable | PromptScales | None = None) -> ViewQueries | PromptQueries:
        """Queries of a view on the grid of its photo, before the lens's distortion; by default as `asked` has it."""
        return self.through(self.camera_of(index), self.dataset.times().tolist()[index], asked)

    def camera_of(self, index: int) -> Camera:
        """What shows the photo of a view."""
        return photo_camera(self.dataset.views[index])

    @torch.no_grad()
    def through(
        self, camera: Camera, time: float = 0.0, asked: Askable | PromptScales | None = None
    ) -> ViewQueries | PromptQueries:
        """Queries of what a camera sees."""
        asked = self.asked if asked is None else asked
        rendering = render_view(self.checkpoint.scene, camera, self.checkpoint.config, time)
        rows = rendering.index if isinstance(rendering, LayeredRendering) else None
        if isinstance(asked, PromptScales):
            return PromptQueries(rendering.plan, asked, rows)
        if rows is not None:
            asked = asked.rows(rows)
        return ViewQueries(rendering.plan, asked, tolerance=self.config.query.tolerance)

    def ask(self, view: str | int | None, prompts: Sequence[str]) -> Answer:
        """What a view says of prompts, on the grid of its photo as taken."""
        index = view if isinstance(view, int) else self.index_of(view)
        return self.as_taken(index, self.view(index).ask(self.texts.of(prompts)))

    def as_taken(self, index: int, answer: Answer) -> Answer:
        """The same with the lens's distortion, if the view has a lens."""
        view = self.dataset.views[index]
        if view.lens is None:
            return answer
        camera = self.camera_of(index)
        both = torch.cat((answer.relevancy, answer.alpha[..., None]), dim=-1)
        both = distort(both, camera, view.lens)
        return Answer(both[..., :-1], both[..., -1], answer.bound)

    @torch.no_grad()
    def of_gaussians(self, prompts: Sequence[str]) -> Tensor:
        """[N, Q] in (0, 1): relevancy of each Gaussian by itself."""
        asked, texts = self.asked, self.texts.of(prompts)
        if isinstance(asked, PromptScales):
            return torch.sigmoid(relevance.TEMPERATURE * asked.margins(texts))
        lengths = asked.basis.rest(0).clamp_min(1e-12)
        products = asked.basis.products(torch.cat((texts, self.phrases)))
        return relevance.from_products(products / lengths[:, None], len(prompts))

    @torch.no_grad()
    def scales_of(self, prompts: Sequence[str]) -> list[float | None]:
        """The scale in [0, 1) that each prompt means, 0 for the smallest segments: the mean of those it weighs.
        None for composites, of which it is not asked.
        """
        if not isinstance(self.asked, PromptScales):
            return [None] * len(prompts)
        weights = self.asked.weights(self.texts.of(prompts))
        return [float(scale) for scale in weights @ self.asked.scales]


def _apply(config: LanguageConfig, overrides: Iterable[tuple[str, str | None]]) -> None:
    overrides = list(overrides)
    own = {name for f in dataclasses.fields(QueryConfig) for name in (f.name, f"query.{f.name}")}
    for name, _ in overrides:
        if name.replace("-", "_") not in own:
            raise ValueError(
                f"{name} is no field of section query, and only these can be changed without a new fit"
            )
    configuration.apply(config, overrides)


def _forget(root: Path) -> None:
    """Delete what an earlier fit of language left, and nothing else."""
    for path in [*list_checkpoints(root), root / "queries"]:
        if path.is_dir():
            shutil.rmtree(path)
    for name in (_NESTED, _CONFIG):
        (root / name).unlink(missing_ok=True)

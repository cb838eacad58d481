"""The language of generated nested scenes: what things, their parts and groups of them mean, queries for
them, and how texts and image crops come by their embeddings.

**Words.** A word's unit vector is g m + √(1 - g²) d: a component g along the mean direction m, which all
words share, and a unit deviation d orthogonal to m, which is its own. CLIP's vectors are of that kind: of the
names of LVIS's classes, g is about 0.86, so that the cosine of two random ones is about 0.74.

**Texts and crops.** Both are bags of words: the deviation of a meaning is the normalised weighted sum of
those of its words, put together again with the component along m (that of its head), so that longer texts are
not nearer to everything. The weights of texts and of crops differ (`TextConfig`): a text "handle of red mug"
is nearly as much about the mug as about the handle, the picture of the handle is less so. The text's
embedding then lies close to that of the whole mug, too; yet it is closest to that of the part.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gsfields.data.nested_objects import ATTRIBUTES, STANDS, THEMES, singular
from gsfields.data.solids import Array

CANONICAL = ("object", "things", "stuff", "texture", "thing", "part")
"""The phrases that relevancy (LERF, LangSplat) and composite embeddings (N2F2) compare with."""

KINDS = ("simple", "compound", "partitive")

_COMMON_SHARE = (0.64, 0.76)  # of a made word's squared length, along the mean direction
_CATEGORY_SHARE = 0.35  # of a made deviation's squared length, shared by its category
_FAMILIES: dict[str, Sequence[str]] = {
    **{theme: (theme, *designs) for theme, designs in THEMES.items()},
    "food": tuple(singular(word) for word in ("apples", "lemons", "eggs", "cookies")),
    "stands": STANDS,
    "surfaces": ("floor", "wall"),
    "colours": ATTRIBUTES[:8],
    "materials": ATTRIBUTES[8:],
    "canonical": CANONICAL,
}


@dataclass(frozen=True)
class Meaning:
    """What a segment shows or a query asks for.

    head: a noun. attribute: a word before it, or "". whole: what the head is a part of (partitive). contents:
    a plural of what the head holds (`link` "of") or bears ("with"), or "" (compound).
    """

    head: str
    attribute: str = ""
    whole: Meaning | None = None
    contents: str = ""
    link: str = "of"

    @property
    def text(self) -> str:
        """English, lower-case letters and spaces: "handle of red mug", "bowl of apples"."""
        words = [*([self.attribute] if self.attribute else []), self.head]
        if self.whole is not None:
            words += ["of", self.whole.text]
        elif self.contents:
            words += [self.link, self.contents]
        return " ".join(words)

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return "partitive" if self.whole is not None else "compound" if self.contents else "simple"


@dataclass(frozen=True)
class Query:
    """A text and its truth: the ids of all parts that it means, the union where it is ambiguous."""

    meaning: Meaning
    parts: frozenset[int]

    @property
    def prompt(self) -> str:
        return self.meaning.text

    @property
    def kind(self) -> str:
        return self.meaning.kind


def gather_queries(meant: Iterable[tuple[Meaning, Iterable[int]]]) -> list[Query]:
    """Queries in the order of their prompts; of equal ones, the parts are united."""
    found: dict[str, tuple[Meaning, set[int]]] = {}
    for meaning, parts in meant:
        found.setdefault(meaning.text, (meaning, set()))[1].update(parts)
    return [Query(meaning, frozenset(parts)) for _, (meaning, parts) in sorted(found.items())]


@dataclass(frozen=True)
class TextConfig:
    """How words make up embeddings, and how far those of crops are off. The head of a text weighs 1.

    Texts, which model CLIP's bag of words: attribute, whole, contents: the weights of the attribute, of the
    (unit) deviation of the whole in a partitive text, of the contents in a compound one. With 0, a text is
    nothing but its head; from about 1 on, "handle of mug" is as near to a mug as to its handle. text_cosine:
    the cosine between a text's embedding and the weighted sum, the same noise for the same text.

    Crops, what an image encoder sees of masked segments: crop_attribute, crop_whole, crop_contents: the same
    weights. A part on black tells little of its whole; a bowl with its apples shows both. crop_cosine: the
    cosine between a usual crop's embedding (0.8 % of the image) and its sum. The noise-to-signal ratio, the
    tangent of that angle, grows as (usual side / side)^small_crops, side being the root of the segment's
    area. lasting: the share of the noise's variance that is the same for a thing in all views, which no fit
    over views averages out. gap: the cosine between the embeddings of crops and a direction that is theirs alone,
    0.9 or so with CLIP (the modality gap: Liang et al., "Mind the Gap", NeurIPS 2022); cosines with texts shrink.
    """

    attribute: float = 0.5
    whole: float = 0.9
    contents: float = 0.9
    text_cosine: float = 0.98
    crop_attribute: float = 0.4
    crop_whole: float = 0.35
    crop_contents: float = 1.0
    crop_cosine: float = 0.85
    small_crops: float = 0.5
    lasting: float = 0.3
    gap: float = 0.0

    def __post_init__(self) -> None:
        ranges = {
            "text_cosine": (0.05, 1.0),
            "crop_cosine": (0.05, 1.0),
            "lasting": (0.0, 1.0),
            "gap": (0.0, 0.99),
        }
        for item in fields(self):
            value = getattr(self, item.name)
            low, high = ranges.get(item.name, (0.0, 10.0))
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{item.name} must be a number from {low:g} to {high:g}, but is {value!r}")


class Word(NamedTuple):
    """A word's component `common` along the mean direction, and its unit deviation [D] orthogonal to that."""

    common: float
    deviation: Array


class Vocabulary:
    """Vectors of words, those that are given and, where there is none, vectors made from the seed and the
    word.

    names, vectors: words and their embeddings [N, D], of any length, e.g. CLIP's of class names; they are
    normalised here, and names are compared without case, underscores and what is in brackets. Words that are
    not among them get random combinations of the deviations of those that are. Without them (None), words are
    made so that the cosine of two random ones is about 0.7, and about 0.8 in one family (dishes, toys,
    colours, …), in `dimension` dimensions, two of which are large in all words, as in CLIP. `mean` [D] is the
    mean direction.

    Raises ValueError if the names are not as many as the vectors, or fewer than 2, or the vectors are not
    finite and different from 0.
    """

    def __init__(
        self,
        names: Sequence[str] | None = None,
        vectors: Array | None = None,
        *,
        dimension: int = 512,
        seed: int = 0,
    ) -> None:
        if (names is None) != (vectors is None):
            raise ValueError("names and vectors of words must be given together, but one is missing")
        if not isinstance(dimension, int) or isinstance(dimension, bool) or not 8 <= dimension <= 65536:
            raise ValueError(f"dimension must be a whole number from 8 to 65536, but is {dimension!r}")
        self.seed = seed
        self._given: dict[str, Word] = {}
        self._made: dict[str, Word] = {}
        if names is None or vectors is None:
            large = np.zeros(dimension)
            large[_rng(seed, "large").permutation(dimension)[:2]] = np.sqrt(0.4), -np.sqrt(0.4)
            self.mean = _unit(large + np.sqrt(0.2) * _unit(_rng(seed, "mean").normal(size=dimension)))
            return
        self._take(list(names), np.asarray(vectors))

    @classmethod
    def read(cls, path: str | Path, names: Sequence[str], *, seed: int = 0) -> Vocabulary:
        """The vocabulary of a .npy file of vectors [N, D] with the words `names`.

        Raises FileNotFoundError if there is no such file, ValueError if it is not as Vocabulary demands.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file of word embeddings at {path}")
        return cls(names, np.load(path), seed=seed)

    @property
    def dimension(self) -> int:
        return len(self.mean)

    def _take(self, names: list[str], vectors: Array) -> None:
        if vectors.ndim != 2 or len(vectors) != len(names) or len(names) < 2 or vectors.shape[1] < 8:
            raise ValueError(
                f"vectors must be [N, D] for N names, N at least 2 and D at least 8, but {len(names)} "
                f"names have vectors {list(vectors.shape)}"
            )
        vectors = vectors.astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(vectors).all() or not (lengths > 0).all():
            raise ValueError("vectors of words must be finite and none of them 0")
        vectors = vectors / lengths
        self.mean = _unit(vectors.mean(axis=0))
        common = (vectors @ self.mean).clip(-1, 1)
        deviations = vectors - common[:, None] * self.mean
        lengths = np.linalg.norm(deviations, axis=1, keepdims=True)
        if not (lengths > 1e-6).all():
            raise ValueError("vectors of words must differ, but some are their mean")
        deviations /= lengths
        for name, share, deviation in zip(names, common, deviations):
            self._given.setdefault(_plain(name), Word(float(share), deviation))
        self._all = deviations

    def word(self, word: str) -> Word:
        """The vector of a word; a plural that is not among the names is its singular."""
        word = _plain(word)
        for known in (word, singular(word)):
            if known in self._given:
                return self._given[known]
        word = singular(word)
        if word not in self._made:
            self._made[word] = self._make(word)
        return self._made[word]

    def _make(self, word: str) -> Word:
        rng = _rng(self.seed, word)
        if self._given:
            # Gaussian with the covariance of the given deviations.
            return Word(
                float(np.mean([known.common for known in self._given.values()])),
                self._orthogonal(rng.normal(size=len(self._all)) @ self._all),
            )
        own = self._orthogonal(rng.normal(size=self.dimension))
        families = [name for name, members in _FAMILIES.items() if word in map(singular, members)]
        family = f"family {families[0] if families else 'parts'}"
        shared = self._orthogonal(_rng(self.seed, family).normal(size=self.dimension))
        mixed = np.sqrt(_CATEGORY_SHARE) * shared + np.sqrt(1 - _CATEGORY_SHARE) * own
        return Word(float(np.sqrt(rng.uniform(*_COMMON_SHARE))), self._orthogonal(mixed))

    def _orthogonal(self, vector: Array) -> Array:
        return _unit(vector - (vector @ self.mean) * self.mean)


class TextEncoder:
    """Embeddings of meanings, unit float64 [D]: `text` of queries, `crop` of what a perfect crop shows,
    `seen` of crops as they are.
    """

    def __init__(
        self, vocabulary: Vocabulary | None = None, config: TextConfig | None = None, seed: int = 0
    ) -> None:
        self.vocabulary, self.config = vocabulary or Vocabulary(seed=seed), config or TextConfig()
        self.seed = seed
        self._crops: dict[Meaning, Array] = {}

    def text(self, meaning: Meaning) -> Array:
        """The embedding of a query."""
        c = self.config
        clean = self._mixed(meaning, c.attribute, c.whole, c.contents)
        noise = _rng(self.seed, f"text {meaning.text}").normal(size=len(clean))
        return noisy(clean, c.text_cosine, noise)

    def phrases(self, phrases: Sequence[str]) -> Array:
        """The embeddings [N, D] of texts of one word each."""
        return np.stack([self.text(Meaning(phrase)) for phrase in phrases])

    def crop(self, meaning: Meaning) -> Array:
        """What an image encoder would say of a perfect, large crop."""
        if meaning not in self._crops:
            c = self.config
            self._crops[meaning] = self._mixed(meaning, c.crop_attribute, c.crop_whole, c.crop_contents)
        return self._crops[meaning]

    def seen(
        self, shares: Mapping[Meaning, float], area: float, lasting: str, fresh: np.random.Generator
    ) -> Array:
        """The embedding of a segment that shows several things, by their `shares` of it, as the mean of
        theirs; with noise. area: its share of the image. lasting: whose lasting noise it has. fresh: where
        the rest comes from.
        """
        clean = _unit(
            sum((share * self.crop(m) for m, share in shares.items()), np.zeros(self.vocabulary.dimension))
        )
        own = _rng(self.seed, f"lasting {lasting}").normal(size=len(clean))
        share = self.config.lasting
        noise = np.sqrt(share) * own + np.sqrt(1 - share) * fresh.normal(size=len(clean))
        found = noisy(clean, self.crop_cosine(area), noise)
        gap = self.config.gap
        return _unit(np.sqrt(1 - gap**2) * found + gap * self._aside) if gap else found

    @cached_property
    def _aside(self) -> Array:
        """The direction [D] that embeddings of crops have in common."""
        return _unit(_rng(self.seed, "gap").normal(size=self.vocabulary.dimension))

    def crop_cosine(self, area: float) -> float:
        """The cosine between the embedding of a segment of that share of the image and its clean one."""
        usual = self.config.crop_cosine
        ratio = np.sqrt(1 - usual**2) / usual * (USUAL_AREA / area) ** (0.5 * self.config.small_crops)
        return float(1 / np.sqrt(1 + ratio**2))

    def _mixed(self, meaning: Meaning, attribute: float, whole: float, contents: float) -> Array:
        deviation = self._deviation(meaning, attribute, whole, contents)
        common = self.vocabulary.word(meaning.head).common
        return _unit(common * self.vocabulary.mean + np.sqrt(1 - common**2) * deviation)

    def _deviation(self, meaning: Meaning, attribute: float, whole: float, contents: float) -> Array:
        """The unit deviation [D] of a bag of words with these weights."""
        total = self.vocabulary.word(meaning.head).deviation.copy()
        if meaning.attribute:
            total += attribute * self.vocabulary.word(meaning.attribute).deviation
        if meaning.whole is not None:
            total += whole * self._deviation(meaning.whole, attribute, whole, contents)
        if meaning.contents:
            total += contents * self.vocabulary.word(meaning.contents).deviation
        return _unit(total)


USUAL_AREA = 0.008
"""The share of the image of a segment whose crop is as noisy as TextConfig.crop_cosine says."""


def noisy(vector: Array, cosine: float, noise: Array) -> Array:
    """The unit vector [D] at `cosine` from the unit `vector` [D] in the direction of `noise` [D], which is
    i.i.d. of unit variance: its component along `vector` is taken out, the rest scaled.
    """
    across = _unit(noise - (noise @ vector) * vector)
    return _unit(cosine * vector + np.sqrt(max(1 - cosine**2, 0.0)) * across)


def _plain(name: str) -> str:
    return name.split("(")[0].replace("_", " ").strip().lower()


def _rng(seed: int, key: str) -> np.random.Generator:
    return np.random.default_rng([seed, 61, zlib.crc32(key.encode())])


def _unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)

"""The tiny room with words: its segments, the floor and all toys together among them, carry embeddings."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from gsfields.data.language_features import FeatureSource, TextEmbeddings, ViewFeatures, save_features
from gsfields.fields.relevancy import CANONICAL
from tests.fit.tiny_room import TEST, TinyRoom

WORDS = ("floor", "red", "green", "blue", "toys")  # by id: 0 is the floor; the last one is of all blobs
WIDTH = 12
PROMPTS = ["red", "green", "blue", "toys"]


def vocabulary(width: int = WIDTH) -> Tensor:
    """[5 words and 4 canonical phrases, E] unit vectors, orthogonal to each other."""
    basis = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(1)))[0]
    return basis[: len(WORDS) + 4]


def canonical() -> Tensor:
    return vocabulary()[len(WORDS) :]


def of_ids(ids: Tensor, noise: float = 0.0, seed: int = 0, width: int = WIDTH) -> ViewFeatures:
    """What a teacher says of an image of ids: each id on the first level, the toys together on the second."""
    shown = ids.unique().tolist()
    words = vocabulary(width)[[*shown, 4]]
    g = torch.Generator().manual_seed(seed)
    rows = torch.full((2, *ids.shape), -1, dtype=torch.int32)
    for row, word in enumerate(shown):
        rows[0][ids == word] = row
    rows[1][ids > 0] = len(shown)
    return ViewFeatures(normalize(words + noise * torch.randn(words.shape, generator=g), dim=1), rows)


def speak(room: TinyRoom, folder: Path, noise: float = 0.0, width: int = WIDTH) -> FeatureSource:
    """Write the features of all views of a room into a new folder and open them."""
    folder.mkdir()
    for i in range(room.views):
        save_features(folder, room.stem(i), of_ids(room.photo(i)[1], noise, i, width))
    return FeatureSource(folder)


def embeddings(words=WORDS) -> TextEmbeddings:
    """Of the words, and of phrases that nothing in the room is."""
    known = vocabulary()[[WORDS.index(word) for word in words]]
    return TextEmbeddings((*words, *CANONICAL), torch.cat((known, canonical())))


def with_words(room: TinyRoom, data: Path) -> Path:
    """Features, texts and true masks beside the photos."""
    speak(room, data / "language_features")
    embeddings().save(data / "text_embeddings.npz")
    for i in TEST:
        ids = room.photo(i)[1]
        folder = data / "segmentations" / room.stem(i)
        folder.mkdir(parents=True)
        for number, word in enumerate(PROMPTS, start=1):
            mask = (ids > 0) if word == "toys" else ids == number
            Image.fromarray((255 * mask).byte().numpy()).save(folder / f"{word}.png")
    (data / "segmentations" / "classes.txt").write_text("\n".join(PROMPTS))
    return data

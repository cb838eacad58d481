"""CLIP (Radford et al. 2021), as open_clip loads it: embeddings of images and of texts in one space."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gsfields.priors.preparation import device_of

MODEL, PRETRAINED = "ViT-B-16", "laion2b_s34b_b88k"  # those of LERF, LangSplat and N2F2

Array = np.ndarray
Tokenizer = Callable[[list[str]], Tensor]  # n texts -> [n, context] whole numbers


@dataclass(frozen=True)
class Preprocess:
    """What a network expects of images: square ones of `size` pixels, minus `mean` over `std` for each
    channel.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"  # or bilinear

    def __post_init__(self) -> None:
        if self.size < 1 or not min(self.std) > 0:
            raise ValueError(f"size and std must be above 0, but are {self.size} and {self.std}")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation must be bicubic or bilinear, but is {self.interpolation!r}")

    def __call__(self, image: Tensor) -> Tensor:
        """A square image [s, s, 3], uint8 or floating point in [0, 1] -> float32 [3, size, size].

        Raises ValueError for any other image.
        """
        if image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3 or image.shape[0] == 0:
            raise ValueError(f"images must be square, [s, s, 3], but one is {list(image.shape)}")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ValueError(f"images must be uint8 or floating point in [0, 1], but one is {image.dtype}")
        pixels = image.permute(2, 0, 1).float() / (255 if image.dtype == torch.uint8 else 1)
        if image.shape[0] != self.size:
            size = (self.size, self.size)
            # bicubic weights overshoot at edges
            pixels = interpolate(pixels[None], size, mode=self.interpolation, antialias=True)[0].clamp(0, 1)
        mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (self.mean, self.std))
        return (pixels - mean) / std


class ClipModel:
    """Embeddings of images and texts, of length 1, on the CPU.

    `network` has encode_image([n, 3, size, size]) and encode_text([n, context]), which give [n, dim];
    `tokenizer` makes the latter's input of texts. `name` tells models apart that give different embeddings.
    """

    def __init__(
        self, network: torch.nn.Module, tokenizer: Tokenizer, preprocess: Preprocess, name: str = "custom"
    ) -> None:
        self.network: Any = network.eval()
        self.tokenizer, self.preprocess, self.name = tokenizer, preprocess, name

    @cached_property
    def dim(self) -> int:
        return int(self._encoded(self.network.encode_text, self.tokenizer(["a"])).shape[1])

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def images(self, images: Iterable[Array | Tensor] | Tensor, batch: int = 64) -> Tensor:
        """[n, dim] float32 of square images [s, s, 3], uint8 or floating point in [0, 1], of any sizes: a
        sequence, or a generator, which is taken `batch` at a time; or of a tensor [n, s, s, 3].

        Raises ValueError for other images, or if an embedding is not finite or zero.
        """
        groups = (torch.stack([self._pixels(image) for image in group]) for group in _groups(images, batch))
        return self._joined(self.network.encode_image, groups)

    def texts(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """[n, dim] float32.

        Raises ValueError if `texts` is a single text, or an embedding is not finite or zero.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list, but is the text {texts!r}")
        return self._joined(self.network.encode_text, map(self.tokenizer, _groups(texts, batch)))

    def _pixels(self, image: Array | Tensor) -> Tensor:
        values = image if isinstance(image, Tensor) else torch.from_numpy(np.ascontiguousarray(image))
        return self.preprocess(values.to(self.device))

    def _joined(self, encode: Callable[[Tensor], Tensor], groups: Iterable[Tensor]) -> Tensor:
        parts = [self._encoded(encode, group) for group in groups]
        return torch.cat(parts) if parts else torch.empty(0, self.dim)

    @torch.no_grad()
    def _encoded(self, encode: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        raw = encode(values.to(self.device)).cpu().double()
        length = raw.norm(dim=1, keepdim=True)
        if not ((length > 0) & length.isfinite()).all():
            raise ValueError(f"the network {self.name} gives embeddings that are zero or not finite")
        return (raw / length).float()


def load_clip(
    model: str = MODEL, pretrained: str | Path = PRETRAINED, device: str | torch.device | None = None
) -> ClipModel:
    """The network `model` of open_clip with its weights: `pretrained` is one of the tags that open_clip
    downloads by itself, or a file of weights. `device` defaults to a GPU if there is one.

    Of a file, images are normalised by the mean and standard deviation that OpenAI's models were trained
    with, as open_clip does; only tags can state others.

    Raises ImportError where open_clip is missing or cannot be imported, ValueError if there is no such
    network, device or tag, or the weights cannot be loaded.
    """
    where = device_of(device)
    open_clip = _open_clip()
    if model not in (models := open_clip.list_models()):
        some = ", ".join(name for name in models if name.startswith("ViT-B")) or ", ".join(models[:5])
        raise ValueError(f"there is no CLIP network {model!r}: open_clip knows {some} and others")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not Path(pretrained).is_file() and str(pretrained) not in tags:
        known = f"open_clip has {', '.join(tags)}" if tags else "open_clip has none, so it must be a file"
        raise ValueError(f"there are no weights {str(pretrained)!r} of {model}: {known}")
    try:
        network = open_clip.create_model(model, pretrained=str(pretrained), device="cpu")
    except Exception as error:  # of downloads and of files that are none of its own: a wide range of types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the weights {pretrained} of {model} cannot be loaded ({reason})") from None
    stated = open_clip.get_model_preprocess_cfg(network)
    name = f"{model} {Path(pretrained).name}"
    return ClipModel(network.to(where), open_clip.get_tokenizer(model), _preprocess(stated, model), name)


def _preprocess(stated: dict[str, Any], model: str) -> Preprocess:
    size = stated["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"the network {model} takes images of {size}, but only square ones are supported")
    interpolation = stated.get("interpolation", "bicubic")
    return Preprocess(
        sides.pop(),
        tuple(stated["mean"]),
        tuple(stated["std"]),
        "bilinear" if interpolation == "bilinear" else "bicubic",
    )


def _groups(items: Iterable[Any], batch: int) -> Iterator[list[Any]]:
    if batch < 1:
        raise ValueError(f"batch must be 1 or more, but is {batch}")
    remaining = iter(items)
    while group := list(islice(remaining, batch)):
        yield group


def _open_clip() -> Any:
    try:
        return importlib.import_module("open_clip")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ImportError(
            "language features need open_clip (pip install 'gsfields[language]') and a torchvision that fits "
            f"the installed torch ({reason})"
        ) from None

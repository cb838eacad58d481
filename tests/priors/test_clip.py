"""Embeddings of images and texts: a network that is easily checked, and a tiny random one of open_clip's."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields.priors.clip import ClipModel, Preprocess, load_clip

SIZE, DIM = 16, 12
PREPROCESS = Preprocess(SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


class Small(torch.nn.Module):
    """A network without open_clip: linear in the pixels, and in how often a text has each letter."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.nn.Parameter(torch.randn(3 * SIZE * SIZE, DIM, generator=generator))
        self.letters = torch.nn.Parameter(torch.randn(256, DIM, generator=generator))
        self.batches: list[int] = []

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        return images.flatten(1) @ self.pixels

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(tokens))
        return self.letters[tokens].sum(1)


def letters(texts: list[str]) -> torch.Tensor:
    return torch.tensor([list(text.encode().ljust(20)[:20]) for text in texts])


def small_clip() -> ClipModel:
    return ClipModel(Small(), letters, PREPROCESS, "small")


def stand_in_torchvision() -> dict[str, ModuleType]:
    """What open_clip imports of torchvision, for where none fits this torch: names alone, nothing here calls
    them.
    """
    modules = {}
    for path in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional"):
        modules[f"torchvision{path}"] = ModuleType(f"torchvision{path}")
    modules["torchvision"].__path__ = []
    modules["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (torch.nn.Module,), {})
    for name in (
        *("Normalize", "Compose", "RandomResizedCrop", "ToTensor", "Resize", "CenterCrop", "ColorJitter"),
        *("Grayscale", "InterpolationMode"),
    ):
        setattr(modules["torchvision.transforms"], name, type(name, (), {"BICUBIC": 0, "BILINEAR": 1}))
    modules["torchvision.transforms"].functional = modules["torchvision.transforms.functional"]
    return modules


@contextmanager
def open_clip_package(monkeypatch, modules=stand_in_torchvision) -> Iterator[ModuleType]:
    """The package open_clip; with `modules` in place of torchvision, if need be."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name, module in modules().items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(sys.modules, "timm", None)  # optional, and wants all of torchvision
    reason = "needs open_clip_torch (pip install 'gsfields[language]')"
    try:
        yield pytest.importorskip("open_clip", reason=reason)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "open_clip"]:
            del sys.modules[name]  # it would keep the stand-in, and the network of this test


@pytest.fixture
def open_clip(monkeypatch):
    with open_clip_package(monkeypatch) as package:
        yield package


def save_tiny(package, folder):
    """A random network of two layers, which open_clip then knows as `tiny`, and the file of its weights."""
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }
    folder.mkdir()
    (folder / "tiny.json").write_text(json.dumps(config))
    package.add_model_config(folder)
    torch.manual_seed(0)
    network = package.create_model("tiny").eval()
    torch.save(network.state_dict(), folder / "tiny.pt")
    return network, folder / "tiny.pt"


def crops(*sides: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in sides]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("side", [1, 5, SIZE, 40, 133])
def test_images_are_resized_as_by_pillow(side, interpolation):
    """Which rounds to 8 bits after each of the two axes, and clamps; so no pixel is near either end."""
    image = crops(side)[0] // 2 + np.uint8(64)
    filter = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    expected = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), filter)) / 255
    found = Preprocess(SIZE, PREPROCESS.mean, PREPROCESS.std, interpolation)(torch.from_numpy(image))
    assert found.dtype == torch.float32 and found.shape == (3, SIZE, SIZE)
    pixels = found.permute(1, 2, 0) * torch.tensor(PREPROCESS.std) + torch.tensor(PREPROCESS.mean)
    np.testing.assert_allclose(pixels, expected, atol=1.6 / 255)


def test_resizing_does_not_overshoot():
    image = torch.zeros(6, 6, 3)
    image[3:] = 1
    pixels = Preprocess(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(image)
    assert pixels.min() == 0 and pixels.max() == 1


def test_embeddings_of_images():
    clip, images = small_clip(), crops(3, SIZE, 30, SIZE, 7)
    found = clip.images(images, batch=2)
    assert clip.network.batches == [2, 2, 1]
    assert found.dtype == torch.float32 and found.shape == (5, DIM) == (5, clip.dim)
    pixels = (torch.from_numpy(images[1]) / 255 - torch.tensor(PREPROCESS.mean)) / torch.tensor(
        PREPROCESS.std
    )
    raw = pixels.permute(2, 0, 1).flatten() @ clip.network.pixels.detach()
    torch.testing.assert_close(found[1], raw / raw.norm())
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(clip.images(iter(images)), found)
    torch.testing.assert_close(clip.images([torch.from_numpy(image) / 255 for image in images]), found)
    torch.testing.assert_close(clip.images(torch.from_numpy(np.stack(images[1::2]))), found[1::2])
    assert clip.images([]).shape == (0, DIM)
    found.requires_grad_().sum().backward()  # callers may train with them


def test_embeddings_of_texts():
    clip = small_clip()
    found = clip.texts(["cup", "a mug", "cup"], batch=2)
    assert clip.network.batches == [2, 1] and found.dtype == torch.float32
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    raw = clip.network.letters.detach()[letters(["a mug"])].sum(1)[0]
    torch.testing.assert_close(found[1], raw / raw.norm())
    assert clip.texts([]).shape == (0, DIM)


def test_images_and_texts_that_are_none():
    clip = small_clip()
    for image, message in (
        (np.zeros((4, 5, 3), np.uint8), r"images must be square, \[s, s, 3\], but one is \[4, 5, 3\]"),
        (np.zeros((4, 4), np.uint8), "must be square"),
        (np.zeros((0, 0, 3), np.uint8), "must be square"),
        (np.zeros((4, 4, 3), np.int64), "images must be uint8 or floating point .* one is torch.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            clip.images([image])
    with pytest.raises(ValueError, match="texts must be a list, but is the text 'cup'"):
        clip.texts("cup")
    with pytest.raises(ValueError, match="batch must be 1 or more, but is 0"):
        clip.texts(["cup"], batch=0)
    for weight in (0.0, float("nan")):
        clip.network.pixels.data.fill_(weight)
        with pytest.raises(ValueError, match="network small gives embeddings that are zero or not finite"):
            clip.images(crops(4))
    for changes, message in (
        ({"size": 0}, "size and std must be above 0"),
        ({"std": (1.0, 0.0, 1.0)}, "size and std must be above 0"),
        ({"interpolation": "nearest"}, "interpolation must be bicubic or bilinear"),
    ):
        with pytest.raises(ValueError, match=message):
            Preprocess(**{"size": 4, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **changes})


def test_a_tiny_network_of_open_clip(tmp_path, open_clip):
    network, weights = save_tiny(open_clip, tmp_path / "configs")
    clip = load_clip("tiny", weights, "cpu")
    assert clip.dim == 24 and clip.name == "tiny tiny.pt" and clip.device == torch.device("cpu")
    assert clip.preprocess == Preprocess(32, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    loaded = clip.network.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())
    images, texts = crops(32, 9, 32), ["a red cup", "Stainless steel pots"]
    with torch.no_grad():
        expected = network.encode_image(torch.stack([clip.preprocess(torch.from_numpy(i)) for i in images]))
        said = network.encode_text(open_clip.get_tokenizer("tiny")(texts))
    torch.testing.assert_close(clip.images(images), torch.nn.functional.normalize(expected, dim=1))
    torch.testing.assert_close(clip.texts(texts), torch.nn.functional.normalize(said, dim=1))


def test_networks_and_weights_that_there_are_none_of(tmp_path, open_clip):
    save_tiny(open_clip, tmp_path / "configs")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("other.pt", "text.pt", "empty.pt"):
        with pytest.raises(ValueError, match=rf"weights .*{name} of tiny cannot be loaded \(.+\)") as error:
            load_clip("tiny", tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(
        ValueError, match=r"no weights 'none.pt' of tiny: open_clip has none, so it must be a file"
    ):
        load_clip("tiny", "none.pt")
    with pytest.raises(ValueError, match=r"no weights 'x' of ViT-B-16: open_clip has .*laion2b_s34b_b88k"):
        load_clip("ViT-B-16", "x")
    with pytest.raises(
        ValueError, match=r"no CLIP network 'ViT-B-17': open_clip knows .*ViT-B-16.* and others"
    ):
        load_clip("ViT-B-17")
    with pytest.raises(ValueError, match="device must be cpu, cuda or cuda:0, but is 'moon'"):
        load_clip("tiny", tmp_path / "other.pt", "moon")


def test_networks_of_images_that_are_not_square(tmp_path, open_clip):
    _, weights = save_tiny(open_clip, tmp_path / "configs")
    config = json.loads((tmp_path / "configs/tiny.json").read_text())
    for name, size in (("square", [32, 32]), ("wide", [32, 64])):
        config["vision_cfg"]["image_size"] = size
        (tmp_path / f"configs/{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    assert load_clip("square", weights, "cpu").preprocess.size == 32
    with pytest.raises(ValueError, match=r"network wide takes images of \(?\[?32, 64.*only square ones"):
        load_clip("wide", weights, "cpu")


def test_without_open_clip(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)  # as if it were not installed
    with pytest.raises(
        ImportError, match=r"features need open_clip \(pip install 'gsfields\[language\]'\) and a t"
    ):
        load_clip()

"""Bad input, case by case: one sentence that names the argument, and no crash.

On the CPU kernels, and on the CUDA kernels as tests/emulator runs them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import gsfields
from gsfields import ops
from tests.kernels import oracle
from tests.kernels.scenes import random_scene

NAN, INF = float("nan"), float("inf")
W, H, N, B = 22, 19, 12, 2


pytestmark = pytest.mark.usefixtures("kernels")


def project_arguments() -> dict[str, Any]:
    names = ("means", "quats", "scales", "opacities", "viewmats", "Ks", "width", "height")
    scene = random_scene(N, W, H, views=B, seed=1).to(torch.float32)
    return dict(zip(names, scene.args, strict=True))


def sh_arguments() -> dict[str, Any]:
    return {
        "degree": 2,
        "dirs": torch.randn(B, N, 3),
        "coeffs": torch.randn(N, 9, 3),
        "masks": torch.ones(B, N) > 0,
    }


def bin_arguments() -> dict[str, Any]:
    projected = dict(zip(oracle.Projection._fields, ops.project(**project_arguments()), strict=True))
    return {**projected, "width": W, "height": H}


def blend_arguments() -> dict[str, Any]:
    binning = bin_arguments()
    ids, tile_offsets = ops.bin_tiles(**binning)
    geometry = {k: binning[k] for k in ("means2d", "conics", "opacities2d", "width", "height")}
    values, background = torch.rand(N, 3), torch.rand(3)
    sink = torch.zeros(B, N, 2)
    lists = {"ids": ids, "tile_offsets": tile_offsets, "background": background, "absgrad_sink": sink}
    return {"values": values, **geometry, **lists}


def sampled() -> ops.SampledPixels:
    return ops.sample_pixels(torch.tensor([[[0, 0], [W - 1, H - 1], [3, 4]]] * B), B, W, H)


def blend_pixels_arguments() -> dict[str, Any]:
    return {**blend_arguments(), "sampled": sampled(), "precision": "fp32"}


def lift_arguments() -> dict[str, Any]:
    given = blend_arguments()
    for name in ("values", "background", "absgrad_sink"):
        del given[name]
    return {"image": torch.rand(B, H, W, 3), "weights": torch.rand(B, H, W), **given, "precision": "fp32"}


def ssim_arguments() -> dict[str, Any]:
    return {"image1": torch.rand(B, H, W, 3), "image2": torch.rand(B, H, W, 3)}


def plan_arguments() -> dict[str, Any]:
    return project_arguments()


def single_plan() -> gsfields.Plan:
    scene = random_scene(N, W, H, seed=1).to(torch.float32)
    return gsfields.plan(*scene.gaussians, scene.viewmats[0], scene.Ks[0], W, H)


def plan_blend_arguments() -> dict[str, Any]:
    values = {"color": torch.rand(N, 3), "beta": torch.rand(1, N, 1)}
    lists = {"layers": torch.arange(N) % 3, "num_layers": 3, "pixels": torch.tensor([[0, 0], [W - 1, H - 1]])}
    return {"values": values, "background": {"color": torch.rand(3)}, **lists, "precision": "fp32"}


def plan_lift_arguments() -> dict[str, Any]:
    return {"image": torch.rand(H, W, 3), "weights": torch.rand(H, W), "precision": "fp32"}


def blend_project_arguments() -> dict[str, Any]:
    values, matrix, background = torch.rand(N, 3), torch.rand(3, 2), torch.rand(3)
    return {"values": values, "matrix": matrix, "background": background, "order": "auto"}


FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "project": (ops.project, project_arguments),
    "spherical_harmonics": (ops.spherical_harmonics, sh_arguments),
    "bin_tiles": (ops.bin_tiles, bin_arguments),
    "blend": (ops.blend, blend_arguments),
    "ssim_map": (ops.ssim_map, ssim_arguments),
    "plan": (gsfields.plan, plan_arguments),
    "blend pixels": (ops.blend, blend_pixels_arguments),
    "lift": (ops.lift, lift_arguments),
    "Plan.blend": (lambda **given: tuple(single_plan().blend(**given).values()), plan_blend_arguments),
    "Plan.lift": (lambda **given: single_plan().lift(**given), plan_lift_arguments),
    "Plan.blend_project": (lambda **given: single_plan().blend_project(**given), blend_project_arguments),
    "Plan.only": (lambda **given: single_plan().only(**given), lambda: {"mask": torch.ones(N) > 0}),
    "Plan.narrowed": (
        lambda **given: single_plan().narrowed(**given),
        lambda: {"pixels": torch.zeros(2, 2, dtype=torch.int64)},
    ),
    "Plan.isolated": (
        lambda **given: single_plan().isolated(**given),
        lambda: {"ids": torch.arange(N) % 2, "num_layers": 2},
    ),
}


def at(index: Any, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The tensor with one entry changed."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return change


def half(t: torch.Tensor) -> torch.Tensor:
    return t.half()


def double(t: torch.Tensor) -> torch.Tensor:
    return t.double()


def integer(t: torch.Tensor) -> torch.Tensor:
    return t.int()


def meta(t: torch.Tensor) -> torch.Tensor:
    return t.to("meta")


def shorter(t: torch.Tensor) -> torch.Tensor:
    return t[..., :-1]


def flat(t: torch.Tensor) -> torch.Tensor:
    return t.flatten()


def fewer(t: torch.Tensor) -> torch.Tensor:
    return t[:-1]


# function, argument, what is given instead (a value, or a function of the good value), the message
REFUSED: list[tuple[str, str, Any, str]] = [
    # shapes
    *[
        ("project", name, shorter, rf"{name} has shape")
        for name in ("means", "quats", "scales", "viewmats", "Ks")
    ],
    *[("project", name, fewer, rf"{name} has shape") for name in ("quats", "scales", "opacities", "Ks")],
    ("project", "means", flat, "means has shape"),
    ("project", "opacities", lambda t: t[:, None], "opacities has shape"),
    ("project", "viewmats", lambda t: t[0], "viewmats has shape"),
    ("bin_tiles", "means2d", shorter, "means2d has shape"),
    ("bin_tiles", "depths", shorter, "depths has shape"),
    ("bin_tiles", "conics", shorter, "conics has shape"),
    ("bin_tiles", "opacities2d", fewer, "opacities(2d)? has shape"),
    ("bin_tiles", "radii", lambda t: t[..., 0], "radii has shape"),
    ("blend", "values", flat, "values has shape"),
    ("blend", "values", fewer, "values has shape"),
    ("blend", "values", lambda t: t[:, :0], "values has 0 channels"),
    ("blend", "values", lambda t: t.expand(3, N, 3), "values has shape"),
    ("blend", "conics", shorter, "conics has shape"),
    ("blend", "opacities2d", shorter, "opacities(2d)? has shape"),
    ("blend", "background", torch.rand(4), "background has shape"),
    ("blend", "background", torch.rand(B + 1, 3), "background has shape"),
    ("blend", "background", torch.rand(()), "background has shape"),
    ("blend", "absgrad_sink", shorter, "absgrad_sink has shape"),
    ("blend", "tile_offsets", fewer, "tile_offsets has shape"),
    ("spherical_harmonics", "dirs", shorter, "dirs has shape"),
    ("spherical_harmonics", "coeffs", fewer, "(coeffs|sh0) has shape"),
    ("spherical_harmonics", "coeffs", flat, "coeffs has shape"),
    ("spherical_harmonics", "masks", shorter, "masks has shape"),
    ("ssim_map", "image1", lambda t: t[0], "image1 has shape"),
    ("ssim_map", "image2", shorter, "image2 has shape"),
    ("plan", "viewmats", lambda t: t[0], "viewmats has shape"),
    ("plan", "viewmats", lambda t: t[None], "viewmats has shape"),
    ("blend pixels", "precision", "fp64", "precision is 'fp64'"),
    ("blend pixels", "sampled", lambda s: s._replace(pixels=s.pixels.int()), "pixels has dtype"),
    ("blend pixels", "sampled", lambda s: s._replace(pixels=s.pixels[None]), "pixels has shape"),
    ("blend pixels", "sampled", lambda s: s._replace(offsets=s.offsets[1:]), "pixel_offsets has shape"),
    ("blend pixels", "values", integer, "values has dtype"),
    ("lift", "image", lambda t: t[:, 1:], "image has shape"),
    ("lift", "image", lambda t: t[..., :0], "image has 0 channels"),
    ("lift", "image", double, "image has dtype"),
    ("lift", "image", integer, "image has dtype"),
    ("lift", "weights", lambda t: t[..., None], "weights has shape"),
    ("lift", "weights", half, "weights has dtype"),
    ("Plan.blend", "values", {"color": torch.rand(N + 1, 3)}, r"values\['color'\] has shape"),
    ("Plan.blend", "values", {"color": torch.rand(N, 3).double()}, r"values\['color'\] has dtype"),
    ("Plan.blend", "values", {"color": torch.rand(N, 3, device="meta")}, r"values\['color'\] is on device"),
    ("Plan.blend", "values", {"color": torch.rand(N, 0)}, r"values\['color'\] has 0 channels"),
    ("Plan.blend", "values", {"color": [1.0]}, r"values\['color'\] is a list"),
    ("Plan.blend", "values", [torch.rand(N, 3)], "values is a list"),
    ("Plan.blend", "values", {"color": torch.rand(N, 3), "layers": torch.rand(N, 1)}, "values has the name"),
    ("Plan.blend", "values", {"beta": torch.rand(N, 1)}, "background has the name 'color'"),
    ("Plan.blend", "background", {"color": torch.rand(4)}, r"background\['color'\] has shape"),
    ("Plan.blend", "background", torch.rand(3), "background is a Tensor"),
    ("Plan.blend", "layers", fewer, "ids of layers have shape"),
    ("Plan.blend", "layers", lambda t: t.float(), "ids of layers have dtype"),
    ("Plan.blend", "layers", lambda t: t + 1, "ids of layers reach 3, but num_layers is 3"),
    ("Plan.blend", "num_layers", 0, "num_layers is 0"),
    ("Plan.blend", "pixels", shorter, "pixels has shape"),
    ("Plan.blend", "pixels", lambda t: t[None], "pixels has shape"),
    ("Plan.blend", "pixels", lambda t: t.float(), "pixels has dtype"),
    ("Plan.blend", "pixels", torch.tensor([[W, 0]]), "pixels holds one outside"),
    ("Plan.blend", "pixels", torch.tensor([[0, -1]]), "pixels holds one outside"),
    ("Plan.blend", "precision", "fp16", "precision is 'fp16'"),
    ("Plan.lift", "image", lambda t: t[1:], "image has shape"),
    ("Plan.lift", "image", lambda t: t[None], "image has shape"),
    ("Plan.lift", "image", lambda t: t[..., :0], "image has 0 channels"),
    ("Plan.lift", "image", double, "image has dtype"),
    ("Plan.lift", "weights", lambda t: t[..., None], "weights has shape"),
    ("Plan.lift", "weights", double, "weights has dtype"),
    ("Plan.blend_project", "values", flat, "values has shape"),
    ("Plan.blend_project", "matrix", fewer, "matrix has shape"),
    ("Plan.blend_project", "matrix", double, "matrix has dtype"),
    ("Plan.blend_project", "background", torch.rand(2), "background has shape"),
    ("Plan.blend_project", "order", "cheapest", "order is 'cheapest'"),
    ("Plan.only", "mask", fewer, "mask has"),
    ("Plan.only", "mask", integer, "mask has"),
    ("Plan.narrowed", "pixels", lambda t: t[None], "pixels has shape"),
    ("Plan.isolated", "ids", fewer, "ids of layers have shape"),
    # dtypes
    *[("project", name, integer, f"{name} has dtype") for name in ("means", "quats", "viewmats")],
    *[("project", name, half, f"{name} has dtype") for name in ("means", "opacities", "Ks")],
    *[
        ("project", name, double, f"{name} has dtype")
        for name in ("quats", "scales", "opacities", "viewmats", "Ks")
    ],
    ("bin_tiles", "radii", lambda t: t.float(), "radii has dtype"),
    ("bin_tiles", "radii", lambda t: t.long(), "radii has dtype"),
    ("bin_tiles", "depths", double, "depths has dtype"),
    ("blend", "values", double, "values has dtype"),
    ("blend", "values", integer, "values has dtype"),
    ("blend", "background", double, "background has dtype"),
    ("blend", "ids", lambda t: t.long(), "ids has dtype"),
    ("blend", "tile_offsets", lambda t: t.int(), "tile_offsets has dtype"),
    ("spherical_harmonics", "coeffs", double, "(coeffs|sh0) has dtype"),
    ("spherical_harmonics", "dirs", half, "dirs has dtype"),
    ("spherical_harmonics", "masks", lambda t: t.int(), "masks has dtype"),
    ("ssim_map", "image1", integer, "image1 has dtype"),
    ("ssim_map", "image2", double, "image2 has dtype"),
    # devices
    ("project", "quats", meta, "quats|device"),
    ("bin_tiles", "radii", meta, "radii|device"),
    ("blend", "values", meta, "values|device"),
    ("spherical_harmonics", "coeffs", meta, "coeffs|sh0|device"),
    ("ssim_map", "image2", meta, "image2|device"),
    # sizes and scalars
    *[
        ("project", name, value, f"{name} is")
        for name in ("width", "height")
        for value in (0, -3, 2**31, 2**40)
    ],
    *[
        ("bin_tiles", name, value, f"{name} is")
        for name in ("width", "height")
        for value in (0, -1, 2**31 - 1)
    ],
    *[("blend", name, value, f"{name} is") for name in ("width", "height") for value in (0, -16, 2**33)],
    ("blend", "width", W + 16, "tile_offsets"),
    ("project", "near", 0.0, "near is"),
    ("project", "near", -1.0, "near is"),
    ("project", "near", NAN, "near is"),
    ("project", "far", 0.005, "near is|far is"),
    ("project", "far", NAN, "near is|far is"),
    ("project", "eps2d", -0.1, "eps2d is"),
    ("project", "eps2d", NAN, "eps2d is"),
    ("project", "eps2d", INF, "eps2d is"),
    ("spherical_harmonics", "degree", 4, "degree is 4"),
    ("spherical_harmonics", "degree", -1, "degree is -1"),
    ("spherical_harmonics", "degree", 3, "degree 3 needs"),
    ("spherical_harmonics", "coeffs", lambda t: t[:, :0], "coeffs has shape"),
]

# What only the host can look at. On a GPU, for which it would have to wait, the same draws nothing.
REFUSED_ON_THE_HOST: list[tuple[str, str, Any, str]] = [
    # cameras
    ("project", "Ks", at((1, 0, 0), 0.0), r"Ks\[1\] has focal"),
    ("project", "Ks", at((0, 1, 1), -5.0), r"Ks\[0\] has focal"),
    ("project", "Ks", at((0, 0, 2), NAN), r"Ks\[0\] holds"),
    ("project", "Ks", at((0, 0, 1), 0.5), r"Ks\[0\] has skew"),
    ("project", "viewmats", at((1, 2, 3), NAN), r"viewmats\[1\] holds"),
    ("project", "viewmats", at((0, 0, 0), INF), r"viewmats\[0\] holds"),
    # tile lists that would be read out of bounds
    ("blend", "ids", at(0, N), "ids holds"),
    ("blend", "ids", at(3, -1), "ids holds"),
    ("blend", "ids", at(-1, 2**31 - 1), "ids holds"),
    ("blend", "ids", fewer, "tile_offsets"),
    ("blend", "ids", lambda t: torch.cat([t, t]), "tile_offsets"),
    ("blend", "tile_offsets", at(0, -1), "tile_offsets"),
    ("blend", "tile_offsets", at(-1, 10**6), "tile_offsets"),
    ("blend", "tile_offsets", at(1, 10**6), "tile_offsets"),
    ("blend", "tile_offsets", lambda t: t.flip(0), "tile_offsets"),
    ("lift", "ids", at(0, N), "ids holds"),
    ("blend pixels", "sampled", lambda s: s._replace(pixels=s.pixels.flip(0)), "pixels holds"),
    ("blend pixels", "sampled", lambda s: s._replace(pixels=s.pixels - 10**6), "pixels holds"),
    ("blend pixels", "sampled", lambda s: s._replace(offsets=s.offsets.flip(0)), "pixel_offsets must rise"),
    ("blend pixels", "sampled", lambda s: s._replace(pixels=s.pixels[1:]), "pixel_offsets must rise"),
]


def name_of(case: tuple[str, str, Any, str]) -> str:
    function, argument, change, _ = case
    what = getattr(change, "__name__", str(change) if isinstance(change, int | float) else "value")
    return f"{function}-{argument}-{what.strip('<>')}"


@contextlib.contextmanager
def nan_in_new_memory() -> Iterator[None]:
    """What no kernel has written is seen."""
    torch.use_deterministic_algorithms(True)  # fills new tensors, by torch.utils.deterministic
    try:
        assert torch.empty(1).isnan()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", [*REFUSED, *REFUSED_ON_THE_HOST], ids=name_of)
def test_refused_with_one_sentence(case, kernels):
    function, argument, change, message = case
    call, arguments = FUNCTIONS[function]
    given = arguments()
    call(**given)  # the good arguments are good
    given[argument] = change(given[argument]) if callable(change) else change
    if case in REFUSED_ON_THE_HOST and kernels == "cuda":
        with nan_in_new_memory():
            assert all(output.isfinite().all() for output in call(**given))
        return
    with pytest.raises(ValueError, match=message) as caught:
        call(**given)
    sentence = str(caught.value)
    assert len(sentence) < 250 and "\n" not in sentence, "not one sentence"

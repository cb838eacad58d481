"""What the channel sweep times: blend, blend with gradients, and lift, by ours and by the baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks import contenders, roofline
from benchmarks.baselines.products import DenseProducts, SparseProduct
from benchmarks.results import Agreement, CaseRow
from benchmarks.roofline import Work
from gsfields import ops
from gsfields.bench.clock import Task
from gsfields.bench.scene import Scene
from gsfields.bench.stages import Blend, View
from gsfields.ops.blending import Precision

FORWARD, VALUES, ALL, LIFT = "forward", "forward+backward (values)", "forward+backward (all)", "lift"
TASKS = (FORWARD, VALUES, ALL, LIFT)
VALUES_BACKWARD, ALL_BACKWARD = "backward (values)", "backward (all)"

PERIOD = 7  # values repeat after so many channels: one narrow image of the scalar loop checks them all
BAND_BYTES = 64 << 20  # images are compared in bands of so many bytes


@dataclass(frozen=True)
class Mode:
    """Storage of values and images, precision of the products, and how far a channel may be off for it, relative to
    the largest value.
    """

    name: str = ""
    precision: Precision = "fp32"
    storage: torch.dtype = torch.float32
    tolerance: float = 1e-5


FP32, TF32 = Mode(), Mode("tf32", "tf32", tolerance=2e-3)
BF16 = Mode("bf16", "bf16", torch.bfloat16, tolerance=1e-2)


# ---- inputs ---------------------------------------------------------------------------------------------------


def periodic_values(count: int, channels: int) -> Tensor:
    """[count, channels] in [0, 1]; channel c is channel c % PERIOD again."""
    few = torch.rand(count, PERIOD, generator=torch.Generator().manual_seed(0))
    return few[:, torch.arange(channels) % PERIOD]


def with_periodic_values(scene: Scene, channels: int) -> Scene:
    return replace(scene, values=periodic_values(len(scene), channels).to(scene.means.device))


def quick_gradient(view: View) -> Tensor:
    """dL/dimage [1, H, W, C]: one random row of pixels for all rows, because random numbers are slow to draw."""
    noise = torch.Generator().manual_seed(0)
    row = torch.rand(1, 1, view.width, view.values.shape[1], generator=noise).to(view.values)
    return row.expand(1, view.height, -1, -1).contiguous()


def leaf(view: View, *names: str) -> View:
    """The view with some of its tensors asking for gradients, and no copy of any."""
    return replace(view, **{name: getattr(view, name).detach().requires_grad_() for name in names})


# ---- tasks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """Somebody who blends, and does the tasks named; their names in the results begin with its own."""

    name: str
    blend: Blend
    lift: Callable[[View, Tensor], object]
    can: tuple[str, ...] = TASKS
    gradients: bool = True  # by autograd; else the gradient of the values is the lift

    def title(self, task: str) -> str:
        return f"{self.name} {task}".strip()

    def tasks(self, view: View, v_image: Tensor) -> dict[str, Task]:
        made = {
            FORWARD: Task(lambda _: self.image(view)),
            VALUES: differentiated(self.blend, view, v_image, "values"),
            ALL: differentiated(self.blend, view, v_image, *EVERYTHING),
            LIFT: Task(lambda _: self.lifted(view, v_image)),
        }
        if not self.gradients:
            made[VALUES] = Task(lambda _: (self.image(view), self.lifted(view, v_image)))
        return {self.title(name): made[name] for name in self.can}

    def image(self, view: View) -> Tensor:
        with torch.no_grad():
            return self.blend(view)[0]

    def lifted(self, view: View, image: Tensor) -> object:
        with torch.no_grad():
            return self.lift(view, image)


EVERYTHING = ("values", "means2d", "conics", "opacities2d")


def differentiated(blend: Blend, view: View, v_image: Tensor, *names: str) -> Task:
    """The image and the gradients of <image, v_image> to these tensors of the view."""

    def call(given: View) -> object:
        image = blend(given)[0]
        return image, torch.autograd.grad(image, [getattr(given, name) for name in names], v_image)

    return Task(call, lambda _: leaf(view, *names))


def backward(blend: Blend, view: View, v_image: Tensor, *names: str) -> Task:
    """The gradients alone: the image is made before the clock starts."""

    def built(_: int) -> tuple[Tensor, list[Tensor]]:
        given = leaf(view, *names)
        return blend(given)[0], [getattr(given, name) for name in names]

    return Task(lambda graph: torch.autograd.grad(graph[0], graph[1], v_image), built)


def ours(mode: Mode = FP32) -> Contender:
    def lift(view: View, image: Tensor) -> object:
        splats = view.means2d, view.conics, view.opacities2d
        return ops.lift(image, *splats, *view.lists, view.width, view.height, precision=mode.precision)

    return Contender(mode.name, partial(blend, precision=mode.precision), lift)


def blend(view: View, precision: Precision) -> tuple[Tensor, Tensor]:
    return ops.blend(*view.differentiable, *view.lists, view.width, view.height, precision=precision)


def scalar_loop() -> Contender:
    return Contender("scalar loop", contenders.scalar, _no_lift, (FORWARD,))


def torch_dense() -> Contender:
    """Weights by torch, per tile, and their products with values; gradients by autograd."""
    return Contender("torch dense", contenders.torch_tiled, _no_lift, (FORWARD, ALL))


def given_weights(name: str, products: DenseProducts | SparseProduct) -> Contender:
    """Products alone, the weights having been computed before the clock starts."""
    return Contender(
        f"{name}, weights given", products.blend, products.lift, (FORWARD, VALUES, LIFT), gradients=False
    )


def _no_lift(view: View, image: Tensor) -> object:
    raise NotImplementedError


# ---- agreement ------------------------------------------------------------------------------------------------


def check(
    view: View, v_image: Tensor, reference: Tensor, contender: Contender, tolerance: float
) -> Agreement:
    """An image of periodic values against the scalar loop's of the first channels [1, H, W, PERIOD], and how far
    <blend(v), g> is from <v, lift(g)> where the contender lifts.

    As everywhere, few pixels may be off by up to 0.01 of the largest value, where rounding decides otherwise.
    """
    image = contender.image(view)
    error = torch.cat([e.reshape(-1) for e in _errors(image, reference)])
    largest = float(view.values.abs().max().clamp(min=1e-12))
    worst, outliers = float(error.max()) / largest, float((error > tolerance * largest).float().mean())
    gradient = None
    if LIFT in contender.can:
        sums = contender.lifted(view, v_image)
        sums = sums[0] if isinstance(sums, tuple) else sums
        assert isinstance(sums, Tensor)
        across = _inner(image[0], v_image[0])
        gradient = abs(across - _inner(view.values, sums)) / max(across, 1e-12)
    ok = worst <= 1e-2 + tolerance and outliers <= 2e-3
    return Agreement(worst, outliers, gradient, ok and (gradient or 0.0) <= max(1e-4, tolerance))


def _errors(image: Tensor, reference: Tensor) -> Iterator[Tensor]:
    channels = image.shape[-1]
    repeated = torch.arange(channels) % PERIOD
    for rows in _bands(image[0]):
        yield (image[0, rows].float().cpu() - reference[0, rows][..., repeated]).abs().amax(-1)


def _inner(a: Tensor, b: Tensor) -> float:
    """The inner product of what is not negative; per row in float32, of the rows in float64."""
    return sum(float((a[r].float() * b[r].float()).sum(-1, dtype=torch.float64).sum()) for r in _bands(a))


def _bands(rows: Tensor) -> Iterator[slice]:
    step = max(1, BAND_BYTES // max(1, 4 * rows[0].numel()))
    return (slice(start, start + step) for start in range(0, len(rows), step))


# ---- bytes and operations -------------------------------------------------------------------------------------


def work(task: str, case: CaseRow, channels: int, item: int = 4) -> Work | None:
    """What a task must do at least, see roofline.py; None for one that is not counted there."""
    stages = {
        FORWARD: ("blend",),
        VALUES: ("blend", "blend backward to values"),
        ALL: ("blend", "blend backward"),
        LIFT: ("lift",),
    }.get(task)
    if stages is None:
        return None
    total = Work(0, 0)
    for stage in stages:
        done = roofline.work(stage, case, channels, item)
        assert done is not None
        total = total + done
    return total


def input_bytes(view: View, task: str) -> int:
    """What the task reads: values or image gradient, or both."""
    values, image = _bytes(view.values), _image_bytes(view)
    splats = sum(_bytes(t) for t in (*view.differentiable[1:], *view.lists))
    return splats + (image if task == LIFT else values if task == FORWARD else values + image)


def output_bytes(view: View, task: str) -> int:
    """What the task leaves, or holds until it ends, under autograd: image, transmittance and the end of what was
    blended per pixel, and gradients or sums.
    """
    pixels, (count, channels) = view.width * view.height, view.values.shape
    if task == LIFT:
        return 4 * count * (channels + 1)
    image = _image_bytes(view) + 8 * pixels
    gradients = {FORWARD: 0, VALUES: _bytes(view.values), ALL: _bytes(view.values) + 24 * count}
    return image + gradients[task]


def _image_bytes(view: View) -> int:
    return view.width * view.height * view.values.shape[1] * view.values.element_size()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

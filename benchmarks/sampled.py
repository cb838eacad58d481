"""What sampled pixels cost beside a whole image: `python -m benchmarks.sampled`.

On the prototype scene, for some numbers of channels: a blend of all pixels, of pixels drawn anywhere, and of a square
patch, forward and with gradients to the values. Prints Markdown.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import gsfields
from benchmarks import scenes, tables
from benchmarks.measure import options
from gsfields.bench.clock import Effort, Task, clock_of, interleaved
from gsfields.bench.scene import Scene

CHANNELS = (3, 64, 512)
COUNTS = (256, 1024, 4096)
KINDS = ("", " with gradients")
PATCH = 64  # pixels along each side


def draws(scene: Scene) -> dict[str, Tensor | None]:
    """The pixels to blend, [P, 2]; None for all."""
    noise = torch.Generator().manual_seed(0)
    size = torch.tensor([scene.width, scene.height])
    anywhere = {f"{n} anywhere": (torch.rand(n, 2, generator=noise) * size).long() for n in COUNTS}
    side = min(PATCH, scene.width, scene.height)
    patch = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    return {"all": None, **anywhere, f"a patch of {side}x{side}": patch}


def measure(scene: Scene, effort: Effort, channels: int) -> list[list[str]]:
    """A row for each draw: milliseconds, and how many times as long all pixels take."""
    viewmats, Ks, width, height = scene.camera(0)
    plan = gsfields.plan(*scene.geometry, viewmats[0], Ks[0], width, height)
    device = plan.means2d.device
    values = torch.rand(len(scene), channels, device=device)

    def blending(pixels: Tensor | None, backward: bool) -> Callable[[object], None]:
        def run(_: object) -> None:
            leaf = values.detach().requires_grad_(backward)
            image = plan.blend(leaf, pixels=pixels)
            if backward:
                image.backward(image)

        return run

    drawn = {name: None if p is None else p.to(device) for name, p in draws(scene).items()}
    tasks = {name + kind: Task(blending(p, kind != "")) for name, p in drawn.items() for kind in KINDS}
    times = interleaved(tasks, effort, clock_of(device))
    rows = []
    for name in drawn:
        row = [str(channels), name]
        for kind in KINDS:
            mine, whole = times[name + kind], times["all" + kind]
            row += [tables.ms(mine.median), f"{whole.ratio(mine):.1f}x"]
        rows.append(row)
    return rows


def table(rows: list[list[str]]) -> str:
    return tables.table(["C =", "pixels", "forward, ms", "", "with gradients, ms", ""], rows)


def main() -> None:
    asked = options(__doc__, seconds=3)
    scene = scenes.prototype(size=asked.size).to(asked.device)
    rows = [row for channels in CHANNELS for row in measure(scene, Effort(asked.seconds), channels)]
    print(table(rows))


if __name__ == "__main__":
    main()

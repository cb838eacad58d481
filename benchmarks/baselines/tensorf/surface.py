"""What rays see of a frozen field: the samples that are worth a look-up of their instance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Surface:
    """Samples of more than the visible weight of R rays, in the order of the rays."""

    ray: Tensor  # [V] int64, ascending
    position: Tensor  # [V, 3] in the box, -1 to 1
    weight: Tensor  # [V], no gradient
    rays: int

    @classmethod
    def joined(cls, parts: list[Surface]) -> Surface:
        """The rays of all parts, one part after the other."""
        shifts = [sum(part.rays for part in parts[:k]) for k in range(len(parts))]
        return cls(
            torch.cat([part.ray + shift for part, shift in zip(parts, shifts, strict=True)]),
            torch.cat([part.position for part in parts]),
            torch.cat([part.weight for part in parts]),
            sum(part.rays for part in parts),
        )

    def blend(self, network: Callable[[Tensor], Tensor], first: int, end: int) -> Tensor:
        """Features [end - first, D] of the rays from first to end: weighted sums, not divided by opacity."""
        begin, stop = torch.searchsorted(
            self.ray, torch.tensor([first, end], device=self.ray.device)
        ).tolist()
        features = self.weight[begin:stop, None] * network(self.position[begin:stop])
        return features.new_zeros(end - first, features.shape[1]).index_add(
            0, self.ray[begin:stop] - first, features
        )


class SurfaceCache:
    """The surfaces of whole frames, each looked at once: 16 bytes a sample, and 8 a pixel."""

    def __init__(self, look: Callable[[int], Surface]) -> None:
        self.look = look
        self.frames: dict[
            int, tuple[Tensor, Tensor, Tensor]
        ] = {}  # position, weight, and samples of each pixel

    def pixels(self, frame: int, pixel: Tensor) -> Surface:
        """What pixels [P] of a frame see."""
        if frame not in self.frames:
            seen = self.look(frame)
            self.frames[frame] = seen.position, seen.weight, torch.bincount(seen.ray, minlength=seen.rays)
        position, weight, counts = self.frames[frame]
        first, wanted = (counts.cumsum(0) - counts)[pixel], counts[pixel]
        ray = torch.repeat_interleave(torch.arange(len(pixel), device=pixel.device), wanted)
        within = torch.arange(len(ray), device=pixel.device) - (wanted.cumsum(0) - wanted)[ray]
        row = first[ray] + within
        return Surface(ray, position[row], weight[row], len(pixel))

    def bytes(self) -> int:
        """What it holds."""
        return sum(t.numel() * t.element_size() for tensors in self.frames.values() for t in tensors)

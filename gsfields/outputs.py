"""Several outputs of one blend: what is asked for, and which of it shares a walk over the tile lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LAYERS = "layers"  # the name of the per-layer masks
COPIES_PER_PAIR = (
    12  # values that are copied in the time in which a walk passes one pair: benchmarks/outputs.py
)


class Output(NamedTuple):
    """An image that a blend is to give: its name, the values per Gaussian, and what is seen behind them."""

    name: str  # empty where values were given without one
    values: Tensor  # [N, C] or [B, N, C]
    background: Tensor | None  # [C] or [B, C]

    @property
    def channels(self) -> int:
        return self.values.shape[-1]


# ---- what is asked for ----------------------------------------------------------------------------------------


def collect(values: object, background: object, geometry: Tensor) -> list[Output]:
    """The outputs that Plan.blend() is asked for, of geometry [B, N]. Raises ValueError for bad ones."""
    if isinstance(values, Tensor):
        if background is not None and not isinstance(background, Tensor):
            raise ValueError(
                f"background is a {type(background).__name__}, but must be a Tensor where values is one"
            )
        outputs = [Output("", values, background)]
    elif isinstance(values, Mapping):
        behind = _backgrounds(values, background)
        outputs = [Output(name, v, behind.get(name)) for name, v in values.items()]
    else:
        raise ValueError(
            f"values is a {type(values).__name__}, but must be a Tensor or a mapping of names to Tensors"
        )
    for output in outputs:
        _check(output, geometry)
    return outputs


def _backgrounds(values: Mapping[str, Tensor], background: object) -> Mapping[str, Tensor]:
    if background is None:
        return {}
    if not isinstance(background, Mapping):
        raise ValueError(
            f"background is a {type(background).__name__}, but must be a mapping where values is one"
        )
    for name in background:
        if name not in values:
            raise ValueError(f"background has the name {name!r}, which values lacks")
    return background


def _check(output: Output, geometry: Tensor) -> None:
    """What the op would check too, but for each output before any is blended, and under its own name."""
    views, count = geometry.shape
    name, values, background = output
    at = f"[{name!r}]" if name else ""
    if not isinstance(values, Tensor):
        raise ValueError(f"values{at} is a {type(values).__name__}, but must be a Tensor")
    shape = list(values.shape)
    if shape[:-1] not in ([count], [views, count]):
        raise ValueError(
            f"values{at} has shape {shape}, but must be [N, C] or [B, N, C] with N={count} and B={views}"
        )
    channels = shape[-1]
    if channels == 0:
        raise ValueError(f"values{at} has 0 channels, but must have at least 1")
    half = geometry.dtype == torch.float32 and values.dtype in (torch.bfloat16, torch.float16)
    if values.dtype != geometry.dtype and not half:
        raise ValueError(f"values{at} has dtype {values.dtype}, but the plan has {geometry.dtype}")
    if values.device != geometry.device:
        raise ValueError(f"values{at} is on device {values.device}, but the plan on {geometry.device}")
    if background is None:
        return
    if not isinstance(background, Tensor):
        raise ValueError(f"background{at} is a {type(background).__name__}, but must be a Tensor")
    if list(background.shape) not in ([channels], [views, channels]):
        raise ValueError(
            f"background{at} has shape {list(background.shape)}, but must be [{channels}] or [{views}, {channels}]"
        )


def membership(ids: Tensor, num_layers: int | None, count: int) -> Tensor:
    """[N, L] bool: whether a Gaussian is of a layer. Ids below 0 belong to none.

    Without num_layers there are as many as the largest id needs, for which the host waits.
    """
    check_ids(ids, num_layers, count)
    if num_layers is None:
        num_layers = max(int(ids.max()) + 1, 1) if ids.numel() else 1
    return ids.unsqueeze(-1) == torch.arange(num_layers, device=ids.device)


def check_ids(ids: Tensor, num_layers: int | None, count: int) -> None:
    """Refuses layer ids that are not integers [N] below num_layers (which is looked at on the CPU only)."""
    if list(ids.shape) != [count]:
        raise ValueError(f"the ids of layers have shape {list(ids.shape)}, but must be [N={count}]")
    if ids.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise ValueError(f"the ids of layers have dtype {ids.dtype}, but must be integers")
    if num_layers is None:
        return
    if num_layers < 1:
        raise ValueError(f"num_layers is {num_layers}, but must be at least 1")
    if ids.device.type == "cpu" and count and not torch.compiler.is_compiling() and ids.max() >= num_layers:
        raise ValueError(f"the ids of layers reach {int(ids.max())}, but num_layers is {num_layers}")


# ---- which outputs share a walk -------------------------------------------------------------------------------


def walks(outputs: Sequence[Output], pairs: float) -> list[list[Output]]:
    """Splits outputs into those that are blended together, `pairs` being how many (Gaussian, tile) pairs a walk passes.

    A walk costs the same weights however few channels it has, so outputs share one; but to do so their values must be
    copied next to each other. An output joins where copying its values takes less time than a walk:
    values ≤ COPIES_PER_PAIR · pairs. Wider ones, and those of another dtype, walk on their own.
    """
    shared: dict[torch.dtype, list[Output]] = {}
    alone: list[list[Output]] = []
    for output in outputs:
        if output.values.numel() <= COPIES_PER_PAIR * pairs:
            shared.setdefault(output.values.dtype, []).append(output)
        else:
            alone.append([output])
    return [*shared.values(), *alone]


def joined(outputs: Sequence[Output], geometry: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Values and background of outputs that share a walk, next to each other. No copy of a single one."""
    values = _concatenated([output.values for output in outputs])
    if all(output.background is None for output in outputs):
        return values, None
    behind = [
        values.new_zeros(output.channels) if output.background is None else output.background
        for output in outputs
    ]
    if values.dtype != geometry:  # stored in half; backgrounds are not
        behind = [b.to(geometry) if b.dtype == values.dtype else b for b in behind]
    return values, _concatenated(behind)


def _concatenated(tensors: list[Tensor]) -> Tensor:
    """Along the channels; where one has a set per view, all get one."""
    if len(tensors) == 1:
        return tensors[0]
    leading = torch.broadcast_shapes(*(t.shape[:-1] for t in tensors))
    return torch.cat([t.expand(*leading, -1) for t in tensors], -1)

"""The Gaussians being fitted, with Adam's moments carried through every change of the set."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from gsfields.gaussians import Gaussians

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Parameters:
    """One tensor and one Adam per parameter of a Gaussians, or of any mapping of names to tensors.

    Densification rewrites the set through a single operation, `gather`: every clone, split, removal and
    relocation is "row i of the new set comes from row index[i] of the old".
    """

    def __init__(self, start: Gaussians | Mapping[str, Tensor]) -> None:
        self.values: dict[str, Parameter] = {}
        self.optimizers: dict[str, torch.optim.Adam] = {}
        values = start.parameters() if isinstance(start, Gaussians) else start
        for name, value in values.items():
            self.values[name] = Parameter(value.detach().clone())
            # eps: gradients of a mean over pixels are tiny, so 3DGS sets eps far below them
            self.optimizers[name] = torch.optim.Adam([self.values[name]], lr=0.0, eps=1e-15, fused=True)

    def __len__(self) -> int:
        return len(self.values["means"])

    @property
    def gaussians(self) -> Gaussians:
        """The current set; gradients flow to the parameters."""
        return Gaussians(**{name: self.values[name] for name in Gaussians.__dataclass_fields__})

    def set_rates(self, rates: dict[str, float]) -> None:
        for name, rate in rates.items():
            self.optimizers[name].param_groups[0]["lr"] = rate

    def rate(self, name: str) -> float:
        return float(self.optimizers[name].param_groups[0]["lr"])

    def step(self) -> None:
        """One step of Adam along the gradients, which are then dropped."""
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def gather(self, index: Tensor, fresh: Tensor, changes: dict[str, Tensor] | None = None) -> None:
        """Make the new set from rows of the old.

        Args:
            index: integers [M], the old row of each new one.
            fresh: bool [M], rows whose moments start at zero.
            changes: new values [M, ...] of some parameters, in place of the gathered ones.
        """
        changes = changes or {}
        for name, old in self.values.items():
            new = Parameter(changes[name].to(old.dtype) if name in changes else old.detach()[index])
            optimizer = self.optimizers[name]
            state = optimizer.state.pop(old, {})
            for key in _MOMENTS:
                if key in state:
                    moment = state[key][index]
                    moment[fresh] = 0
                    state[key] = moment
            optimizer.param_groups[0]["params"] = [new]
            if state:
                optimizer.state[new] = state
            self.values[name] = new

    def drop(self, name: str) -> None:
        """Forget a tensor that is needed no more."""
        del self.values[name], self.optimizers[name]

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's state as flat tensors; empty before the first step. The values themselves are the scene."""
        flat = {}
        for name, optimizer in self.optimizers.items():
            for key, value in optimizer.state.get(self.values[name], {}).items():
                flat[f"{name}.{key}"] = value
        return flat

    def load_state_dict(self, flat: dict[str, Tensor]) -> None:
        for name, optimizer in self.optimizers.items():
            state = {
                key: flat[f"{name}.{key}"].clone() for key in ("step", *_MOMENTS) if f"{name}.{key}" in flat
            }
            if state:
                optimizer.state[self.values[name]] = state

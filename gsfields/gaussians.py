"""The set of 3D Gaussians that makes up a scene: its parameters, activations, initial values and files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from gsfields.files import written_whole

SH_C0 = 0.28209479177387814  # the degree-0 real spherical harmonic, 1 / (2 sqrt(pi))
MAX_SH_DEGREE = 3


@dataclass
class Gaussians:
    """N anisotropic 3D Gaussians with view-dependent colour, held as the unconstrained tensors that are
    optimised.

    Colour is 0.5 + SH(direction), clamped at 0 from below, with the degree-0 coefficient kept apart from the
    rest because it learns at another rate (3D Gaussian Splatting, Kerbl et al. 2023, section 5 and its
    released code).

    Raises ValueError where a shape does not fit.
    """

    means: Tensor  # [N, 3] centres, world units
    quats: Tensor  # [N, 4] rotations wxyz, not necessarily unit
    log_scales: Tensor  # [N, 3] log of the standard deviations, world units
    opacity_logits: Tensor  # [N] logit of the opacities
    sh0: Tensor  # [N, 1, 3] SH coefficient of degree 0
    shN: Tensor  # [N, K - 1, 3] SH coefficients of degrees 1 and above, K = (degree + 1)^2

    def __post_init__(self) -> None:
        n = self.means.shape[0] if self.means.ndim else 0
        expected = {
            "means": (n, 3),
            "quats": (n, 4),
            "log_scales": (n, 3),
            "opacity_logits": (n,),
            "sh0": (n, 1, 3),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must be {list(shape)}, but is {list(getattr(self, name).shape)}")
        rest_counts = [(degree + 1) ** 2 - 1 for degree in range(MAX_SH_DEGREE + 1)]
        if (
            self.shN.ndim != 3
            or self.shN.shape[0] != n
            or self.shN.shape[2] != 3
            or self.shN.shape[1] not in rest_counts
        ):
            raise ValueError(
                f"shN must be [{n}, K - 1, 3] with K - 1 one of {rest_counts}, but is {list(self.shN.shape)}"
            )

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def scales(self) -> Tensor:
        """Standard deviations along the three axes, [N, 3], world units."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Tensor:
        """[N], in (0, 1)."""
        return self.opacity_logits.sigmoid()

    @property
    def sh(self) -> Tensor:
        """All SH coefficients, [N, K, 3]."""
        return torch.cat((self.sh0, self.shN), dim=1)

    @property
    def sh_degree(self) -> int:
        return int((self.shN.shape[1] + 1) ** 0.5) - 1

    @property
    def device(self) -> torch.device:
        return self.means.device

    @property
    def dtype(self) -> torch.dtype:
        return self.means.dtype

    def parameters(self) -> dict[str, Tensor]:
        """The six tensors by name, in the order of the fields."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def detach(self) -> Gaussians:
        return Gaussians(**{name: value.detach() for name, value in self.parameters().items()})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Gaussians:
        return Gaussians(
            **{name: value.to(device=device, dtype=dtype) for name, value in self.parameters().items()}
        )

    def select(self, index: Tensor) -> Gaussians:
        """The Gaussians at `index` (a boolean mask [N], or integers [M])."""
        return Gaussians(**{name: value[index] for name, value in self.parameters().items()})

    # ----------------------------------------------------------------------------------------- initial values

    @classmethod
    def from_points(
        cls,
        points: Tensor,
        colors: Tensor,
        *,
        sh_degree: int = MAX_SH_DEGREE,
        opacity: float = 0.1,
        scale: float | None = None,
    ) -> Gaussians:
        """One round Gaussian per point, of the mean distance to its three nearest neighbours (3DGS, 5.1).

        Args:
            points: [M, 3], world units, finite.
            colors: [M, 3] in [0, 1].
            sh_degree: 0 to 3; the coefficients above degree 0 start at zero.
            opacity: of all of them, between 0 and 1.
            scale: a standard deviation for all instead of the neighbour distance (needed where M = 1).

        Raises ValueError on any argument out of the stated range.
        """
        _check_cloud(points, colors)
        _check_range("sh_degree", sh_degree, 0, MAX_SH_DEGREE)
        if not 0 < opacity < 1:
            raise ValueError(f"opacity must lie between 0 and 1, but is {opacity}")
        if scale is not None and not scale > 0:
            raise ValueError(f"scale must be positive, but is {scale}")
        points = points.detach().float().cpu()
        colors = colors.detach().float().cpu()
        m = len(points)
        scales = _neighbour_distances(points) if scale is None else torch.full((m,), scale)
        quats = torch.zeros(m, 4)
        quats[:, 0] = 1
        return cls(
            means=points.clone(),
            quats=quats,
            log_scales=scales.log()[:, None].repeat(1, 3),
            opacity_logits=torch.full((m,), float(np.log(opacity / (1 - opacity)))),
            sh0=((colors - 0.5) / SH_C0)[:, None, :],
            shN=torch.zeros(m, (sh_degree + 1) ** 2 - 1, 3),
        )

    @classmethod
    def random(
        cls,
        n: int,
        center: Tensor,
        extent: Tensor | float,
        *,
        generator: torch.Generator,
        sh_degree: int = MAX_SH_DEGREE,
        opacity: float = 0.1,
        scale: float | None = None,
    ) -> Gaussians:
        """Gaussians with uniform centres in the box `center` ± `extent` (world units) and uniform colours."""
        if n < 1:
            raise ValueError(f"n must be at least 1, but is {n}")
        half = torch.as_tensor(extent, dtype=torch.float32).cpu()
        if not bool((half > 0).all()) or not bool(half.isfinite().all()):
            raise ValueError(f"extent must be positive and finite, but is {extent}")
        center = torch.as_tensor(center, dtype=torch.float32).cpu()
        points = center + (2 * torch.rand(n, 3, generator=generator) - 1) * half
        colors = torch.rand(n, 3, generator=generator)
        return cls.from_points(points, colors, sh_degree=sh_degree, opacity=opacity, scale=scale)

    # -------------------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        with written_whole(path) as temporary:
            safetensors.torch.save_file(self._contiguous(), temporary)

    @classmethod
    def load(cls, path: str | Path) -> Gaussians:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError naming the tensors that are
        missing.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no scene file at {path}")
        try:
            tensors = safetensors.torch.load_file(path)
        except Exception as error:  # safetensors raises its own type, derived from Exception only
            raise ValueError(f"{path} is not a readable safetensors file ({error})") from None
        missing = [name for name in cls.__dataclass_fields__ if name not in tensors]
        if missing:
            raise ValueError(f"{path} holds no Gaussians: it lacks {', '.join(missing)}")
        return cls(**{name: tensors[name] for name in cls.__dataclass_fields__})

    def to_ply(self, path: str | Path) -> None:
        """Write the 3DGS `.ply` that standard viewers open; see gsfields.ply for the layout."""
        from gsfields import ply

        ply.write(self, path)

    @classmethod
    def from_ply(cls, path: str | Path) -> Gaussians:
        """Read a 3DGS `.ply` of any SH degree 0 to 3; a file that lacks fields is refused by naming them."""
        from gsfields import ply

        return cls(**ply.read(path))

    def _contiguous(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in self.parameters().items()}


def _check_cloud(points: Tensor, colors: Tensor) -> None:
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise ValueError(f"points must be [M, 3] with M >= 1, but is {list(points.shape)}")
    if colors.shape != points.shape:
        raise ValueError(f"colors must be {list(points.shape)} like points, but is {list(colors.shape)}")
    bad = int((~points.isfinite()).any(dim=1).sum())
    if bad:
        raise ValueError(f"points must be finite, but {bad} of {len(points)} are not")
    if not bool(((colors >= 0) & (colors <= 1)).all()):
        raise ValueError(f"colors must lie in [0, 1], but span {colors.min():.3g} to {colors.max():.3g}")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low} to {high}, but is {value}")


def _neighbour_distances(points: Tensor) -> Tensor:
    """Mean distance to the three nearest other points, [M]; coinciding points get a millionth of the cloud's
    size.
    """
    if len(points) == 1:
        raise ValueError("one point has no neighbours to take a size from: pass scale")
    k = min(3, len(points) - 1)
    distances, _ = cKDTree(points.numpy()).query(points.numpy(), k=k + 1)
    size = float((points.amax(dim=0) - points.amin(dim=0)).norm())
    floor = 1e-6 * size if size > 0 else 1e-6
    return torch.from_numpy(distances[:, 1:].mean(axis=1)).float().clamp(min=floor)

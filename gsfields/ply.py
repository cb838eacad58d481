"""Gaussians as a `.ply`, in the layout of the 3D Gaussian Splatting code that viewers and editors read.

One element `vertex`, little-endian, float32 properties in this order:

    x y z              centre
    nx ny nz           unused, zero
    f_dc_0..2          SH coefficient of degree 0: red, green, blue
    f_rest_0..R-1      the other SH coefficients, channel-major: all of red, then all of green, then all of
    blue;
                       R = 0, 9, 24 or 45 for degree 0 to 3
    opacity            logit
    scale_0..2         log of the standard deviations
    rot_0..3           quaternion wxyz
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gsfields.files import written_whole

if TYPE_CHECKING:
    from gsfields.gaussians import Gaussians

_CENTRE = ["x", "y", "z"]
_NORMAL = ["nx", "ny", "nz"]
_DC = ["f_dc_0", "f_dc_1", "f_dc_2"]
_SCALE = ["scale_0", "scale_1", "scale_2"]
_ROTATION = ["rot_0", "rot_1", "rot_2", "rot_3"]
_REST_COUNTS = (0, 9, 24, 45)


def _rest(count: int) -> list[str]:
    return [f"f_rest_{i}" for i in range(count)]


def write(gaussians: Gaussians, path: str | Path) -> None:
    """Write `gaussians` to `path`, whole or not at all, in float32 whatever the dtype of the tensors."""
    from plyfile import PlyData, PlyElement

    p = {name: value.detach().cpu().float() for name, value in gaussians.parameters().items()}
    n = len(gaussians)
    rest = p["shN"].transpose(1, 2).reshape(n, -1)  # [N, K-1, 3] -> channel-major [N, 3 (K-1)]
    columns = (
        p["means"],
        torch.zeros(n, 3),
        p["sh0"][:, 0],
        rest,
        p["opacity_logits"][:, None],
        p["log_scales"],
        p["quats"],
    )
    names = _CENTRE + _NORMAL + _DC + _rest(rest.shape[1]) + ["opacity"] + _SCALE + _ROTATION
    table = torch.cat(columns, dim=1).contiguous().numpy()
    vertices = table.view([(name, "<f4") for name in names])[:, 0]
    with written_whole(path) as temporary:
        PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(temporary))


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a Gaussians by name, float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a ply; no `vertex` element; fields missing (named); a count of f_rest that fits no
            degree.
    """
    from plyfile import PlyData, PlyParseError

    if not Path(path).is_file():
        raise FileNotFoundError(f"no ply file at {path}")
    try:
        data = PlyData.read(str(path))
    except (PlyParseError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is not a readable ply file ({error})") from None
    if "vertex" not in data:
        raise ValueError(
            f"{path} has no vertex element, only {', '.join(e.name for e in data.elements) or 'none'}"
        )
    vertex = data["vertex"]
    present = {prop.name for prop in vertex.properties}
    rest_count = sum(name.startswith("f_rest_") for name in present)
    missing = [n for n in _CENTRE + _DC + ["opacity"] + _SCALE + _ROTATION if n not in present]
    if missing:
        raise ValueError(f"{path} is not a 3DGS scene: its vertices lack {', '.join(missing)}")
    if rest_count not in _REST_COUNTS or any(name not in present for name in _rest(rest_count)):
        raise ValueError(
            f"{path} must have {', '.join(map(str, _REST_COUNTS))} f_rest fields, but has {rest_count}"
        )

    def stack(names: list[str]) -> Tensor:
        columns = [np.asarray(vertex[name], dtype=np.float32) for name in names]
        return torch.from_numpy(np.stack(columns, axis=1)) if columns else torch.zeros(len(vertex.data), 0)

    n = len(vertex.data)
    return {
        "means": stack(_CENTRE),
        "quats": stack(_ROTATION),
        "log_scales": stack(_SCALE),
        "opacity_logits": stack(["opacity"])[:, 0].contiguous(),
        "sh0": stack(_DC)[:, None, :],
        "shN": stack(_rest(rest_count)).reshape(n, 3, rest_count // 3).transpose(1, 2).contiguous(),
    }

"""Builds ``scalar_loop.cpp`` on first use and calls it through ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("scalar_loop.cpp")
BUILD_DIR = Path(__file__).parents[2] / "build" / "benchmarks"
FLAGS = ("-O3", "-std=c++20", "-shared", "-fPIC", "-pthread")


class ScalarBlend(NamedTuple):
    image: Tensor  # [1, H, W, C]
    transmittance: Tensor  # [1, H, W]
    visited: Tensor  # [1, H, W] int32, Gaussians of the tile's list that the pixel looked at
    blended: Tensor  # [1, H, W] int32, Gaussians that contributed to the pixel


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled loop. Raises RuntimeError when there is no C++ compiler or it fails."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise RuntimeError("the scalar-loop baseline needs a C++ compiler: install g++ or set CXX")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256("\0".join((SOURCE.read_text(), version, *FLAGS)).encode()).hexdigest()[:16]
    path = BUILD_DIR / f"scalar_loop-{key}.so"
    if not path.exists():
        BUILD_DIR.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        done = subprocess.run(
            [compiler, *FLAGS, str(SOURCE), "-o", str(part)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{compiler} could not build {SOURCE.name}: {done.stderr.strip()}")
        os.replace(part, path)
    return ctypes.CDLL(str(path))


def blend(
    values: Tensor,
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    ids: Tensor,
    tile_offsets: Tensor,
    size: tuple[int, int],
    threads: int = 1,
) -> ScalarBlend:
    """Blend values [N, C] of one view (means2d [1, N, 2], conics [1, N, 3], opacities [1, N]; size is (width,
    height)) in float32. Raises ValueError for a batch of views.
    """
    if means2d.shape[0] != 1:
        raise ValueError(f"means2d: the scalar loop blends one view, got {means2d.shape[0]}")
    width, height = size
    channels = values.shape[-1]
    inputs = [t.detach().float().contiguous() for t in (values, means2d, conics, opacities)]
    lists = [ids.to(torch.int32).contiguous(), tile_offsets.to(torch.int64).contiguous()]
    out = ScalarBlend(
        torch.empty(1, height, width, channels),
        torch.empty(1, height, width),
        torch.empty(1, height, width, dtype=torch.int32),
        torch.empty(1, height, width, dtype=torch.int32),
    )
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*inputs, *lists)]
    numbers = [ctypes.c_int32(n) for n in (width, height, channels, threads)]
    library().scalar_blend(*pointers, *numbers, *(ctypes.c_void_p(t.data_ptr()) for t in out))
    return out

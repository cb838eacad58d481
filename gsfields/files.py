"""Outputs that are written whole or not at all, and JSON that every reader takes."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` (same suffix); on success it replaces `path`, on error it is
    removed.

    The caller creates a file or a folder at the yielded path. The rename is atomic because both names are in
    one folder, so a reader sees the old output or the new one, never a part. An existing *folder* at `path`
    cannot be exchanged atomically: it is moved aside first and deleted last.

    Raises:
        FileNotFoundError: the folder that should hold `path` does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of the output, {path.parent}, does not exist")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        if path.is_dir():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON text; infinite and undefined numbers (the PSNR of identical images), which JSON lacks,
    become null.
    """

    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: plain(item) for key, item in x.items()}
        if isinstance(x, (list, tuple)):
            return [plain(item) for item in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(plain(value), indent=indent, allow_nan=False)

"""Outputs that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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

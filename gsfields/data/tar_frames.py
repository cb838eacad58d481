"""Photos in an uncompressed tar, read where they lie: nothing is extracted and no file is held open."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO


@dataclass(frozen=True)
class TarMember:
    """One file in a tar: where its bytes are."""

    tar: Path
    name: str
    offset: int
    size: int

    def open(self) -> BinaryIO:
        """Its bytes as a file in memory. Each call opens the tar anew, so threads do not share a position.

        Raises ValueError if the tar ends before them.
        """
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise ValueError(f"{self.tar} is cut off: it ends within {self.name}")
        return io.BytesIO(data)

    def __str__(self) -> str:
        return f"{self.tar}:{self.name}"


@dataclass(eq=False)
class TarFrames:
    """The files of an uncompressed tar, listed once by jumping from header to header.

    Raises ValueError if it is compressed (then no member can be read without all before it) or no tar.
    """

    path: Path
    members: dict[str, TarMember] = field(init=False, repr=False)  # by name, without a leading ./

    def __post_init__(self) -> None:
        try:
            with tarfile.open(self.path, "r:") as tar:
                files = [info for info in tar if info.isfile()]
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{self.path} is not a readable uncompressed tar ({error})") from None
        self.members = {
            PurePosixPath(info.name).as_posix(): TarMember(self.path, info.name, info.offset_data, info.size)
            for info in files
        }

    def __str__(self) -> str:
        return str(self.path)

    def find(self, file: str) -> TarMember | None:
        """The member `file`, by its path in the tar or, if only one folder of it has such a name, by that."""
        file = PurePosixPath(file).as_posix()
        return self.members.get(file) or self._by_name.get(file)

    @cached_property
    def _by_name(self) -> dict[str, TarMember]:
        count = Counter(PurePosixPath(name).name for name in self.members)
        named = ((PurePosixPath(name).name, member) for name, member in self.members.items())
        return {name: member for name, member in named if count[name] == 1}

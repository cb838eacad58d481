"""Making a scene in a folder from options, as `gsfields prep` does: what is asked for, and what may be replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from gsfields.files import written_whole


def option_value(name: str, value: object) -> Any:
    """An option from its text; what is no text stays."""
    if value is None:
        raise ValueError(f"--{name} needs a value")
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def chosen_options(
    what: str, kinds: Sequence[type], options: Mapping[str, object], others: Sequence[str] = ()
) -> tuple[list[Any], dict[str, Any]]:
    """(one of each of the dataclasses `kinds`, values of `others`) from options, as values or as texts.

    A name that several kinds have is for the first of them.

    Raises ValueError for an option of `what` that is none, or not allowed.
    """
    values = {name.replace("-", "_"): option_value(name, value) for name, value in options.items()}
    owned: list[set[str]] = []
    for kind in kinds:
        owned.append({f.name for f in fields(kind)} - set().union(*owned))
    known = set(others).union(*owned)
    if unknown := [name for name in values if name not in known]:
        raise ValueError(
            f"there is no option {unknown[0]!r} of {what}; the options are {', '.join(sorted(known))}"
        )
    made = [kind(**{n: v for n, v in values.items() if n in own}) for kind, own in zip(kinds, owned)]
    return made, {name: value for name, value in values.items() if name in others}


@contextmanager
def made_in(
    folder: Path, what: str, is_generated: Callable[[Path], bool], *, overwrite: bool
) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when it is whole.

    Raises ValueError if `folder` exists and `overwrite` is not given, or holds anything but a generated scene.
    """
    if folder.exists():
        if not overwrite:
            raise ValueError(f"{folder} exists: give --overwrite to replace {what} in it")
        if not is_generated(folder):
            raise ValueError(f"{folder} holds something else than {what}, which is not replaced")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(folder) as new:
        yield new

"""What preparations by a network share: options from texts, a device, and going on where one was broken off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from gsfields.files import written_whole

SETTINGS = "settings.json"


def options_from(texts: Mapping[str, str | None], config: type) -> dict[str, Any]:
    """Options from texts, such as min_area "50": fields of the dataclass `config` as its numbers, others as they are.

    Raises ValueError for a text that is missing, or no number where one belongs.
    """
    kinds = {item.name: float if item.type == "float" else int for item in fields(config)}
    options: dict[str, Any] = {}
    for name, text in texts.items():
        if not text:
            raise ValueError(f"{name} needs a value")
        try:
            options[name] = kinds.get(name, str)(text)
        except ValueError:
            kind = "a number" if kinds[name] is float else "a whole number"
            raise ValueError(f"{name} must be {kind}, but is {text!r}") from None
    return options


def fields_among(
    options: dict[str, Any], config: type, arguments: Collection[str], what: str
) -> dict[str, Any]:
    """The options, all of which must be fields of the dataclass `config`; `arguments` are what else `what` takes."""
    known = [item.name for item in fields(config)]
    if unknown := set(options) - set(known):
        names = ", ".join([*arguments, *known])
        raise ValueError(f"{min(unknown)} is no option of {what}: they are {names}")
    return options


def device_of(device: str | torch.device | None) -> torch.device:
    """Where a network is to run: a GPU, if there is one and nothing else is said."""
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda or cuda:0, but is {device!r}") from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device}, but torch finds no GPU")
    return where


def begun(partial: Path, settings: dict[str, Any], folders: Iterable[str] = (), *, overwrite: bool) -> Path:
    """The folder of what is finished, with `folders` in it: empty, or from an earlier run with the same settings."""
    if partial.exists():
        stated = partial / SETTINGS
        if stated.is_file() and json.loads(stated.read_text()) == settings:
            return partial
        if not overwrite:
            raise ValueError(
                f"{partial} is of a run with other settings: give the same ones to go on, or --overwrite to begin anew"
            )
        shutil.rmtree(partial)
    for folder in (partial, *(partial / name for name in folders)):
        folder.mkdir(parents=True)
    with written_whole(partial / SETTINGS) as temporary:
        temporary.write_text(json.dumps(settings))
    return partial

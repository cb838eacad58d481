"""What studies made of many trials share: rows that are kept, trials that run side by side, how they are asked for."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks import machine
from benchmarks.results import write_whole
from gsfields.files import to_json, written_whole

Row = dict[str, Any]


class Named(Protocol):
    """A trial whose answer has parts, each a row of its own: part -> name."""

    @property
    def names(self) -> dict[str, str]: ...


Job = TypeVar("Job", bound=Named)


class Store:
    """The rows of a study in a JSON file, written after each trial, with the settings that they hold for.

    Raises ValueError where the file holds rows of other settings.
    """

    def __init__(self, path: Path, study: str, settings: dict[str, Any], *, fresh: bool = False) -> None:
        self.path, self.study, self.settings = path, study, json.loads(to_json(settings))
        self.rows: dict[str, Row] = {}
        if path.is_file() and not fresh:
            found = json.loads(path.read_text())
            if found["settings"] != self.settings:
                raise ValueError(
                    f"{path} holds rows of other settings: give --fresh to replace them, or --out"
                )
            self.rows = found["rows"]

    def add(self, rows: dict[str, Row]) -> None:
        self.rows |= json.loads(to_json(rows))
        content = {"machine": machine.describe(), "study": self.study, "settings": self.settings}
        write_whole(self.path, to_json(content | {"rows": dict(sorted(self.rows.items()))}, indent=1) + "\n")

    def lacks(self, job: Named) -> bool:
        return not self.rows.keys() >= set(job.names.values())


def run_stage(
    jobs: Iterable[Job],
    answer: Callable[[Job], dict[str, Row]],
    store: Store,
    workers: int,
    told: Callable[[dict[str, Row]], str],
) -> list[str]:
    """Run side by side the jobs whose rows the store lacks; `told` says what rows have reached.

    Returns what failed (a RuntimeError of `answer`), a sentence each; the others go on.
    """

    def timed(job: Job) -> tuple[dict[str, Row], float]:
        start = time.monotonic()
        return answer(job), time.monotonic() - start

    failures = []
    with ThreadPoolExecutor(workers) as pool:
        begun = {pool.submit(timed, job): job for job in jobs if store.lacks(job)}
        for done in as_completed(begun):
            job = begun[done]
            try:
                parts, seconds = done.result()
            except RuntimeError as error:
                failures.append(f"{', '.join(job.names.values())}: {error}")
                print(failures[-1], file=sys.stderr, flush=True)
                continue
            rows = {name: parts[part] for part, name in job.names.items()}
            store.add(rows)
            print(f"{told(rows)} ({seconds:.0f} s)", flush=True)
    return failures


def kept(marker: Path, identity: dict[str, Any], fit: Callable[[], Row]) -> Row:
    """What `fit` answered when it was last called for this identity, which the file `marker` remembers; else calls it.

    The marker is gone while `fit` runs, so that half a result is never taken for one.
    """
    identity = json.loads(to_json(identity))
    if marker.is_file() and (found := json.loads(marker.read_text()))["identity"] == identity:
        return dict(found["fit"])
    marker.unlink(missing_ok=True)
    answer = fit()
    with written_whole(marker) as temporary:
        temporary.write_text(to_json({"identity": identity, "fit": answer}))
    return answer


# ------------------------------------------------------------------------------------------------------- arguments


def parse_seeds(text: str, what: str = "seeds") -> tuple[int, ...]:
    """Whole numbers such as 0-4 or 0,3,7-9. Raises ValueError for other texts."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(last) >= int(first))):
            raise ValueError(f"{what} must look like 0-4 or 0,3,7, but are {text!r}")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(numbers))


def parse_fields(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """What --set was given, field=value each. Raises ValueError for other texts."""
    pairs = [text.partition("=") for text in texts]
    for text, (_, equals, _) in zip(texts, pairs):
        if not equals:
            raise ValueError(f"--set takes field=value, but got {text!r}")
    return tuple((name, value) for name, _, value in pairs)

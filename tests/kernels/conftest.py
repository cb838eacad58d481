"""The `backend` fixture: every kernel test runs once per implementation that this machine can run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernels.backends import ALL, Backend, running


@pytest.fixture(params=ALL)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with running(request.param) as backend:
        yield backend


@pytest.fixture(params=[name for name in ALL if "float64" in name])
def exact_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Only those in float64."""
    with running(request.param) as backend:
        yield backend

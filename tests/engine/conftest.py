"""One session for all tests of a module: starting a node costs more than most tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import shoal


@pytest.fixture(scope="module")
def shoal_session() -> Iterator[None]:
    """A node with 2 CPUs, for the whole module."""
    shoal.shutdown()
    shoal.init(num_cpus=2, log_to_driver=False)
    yield
    shoal.shutdown()

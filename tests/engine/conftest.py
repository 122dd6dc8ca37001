"""One session for all tests of a module: starting a node costs more than most tests. And what a test makes is freed in the end."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from tests.engine.node_counts import settled_counts, wait_for_counts

import shoal


@pytest.fixture(scope="module")
def shoal_session() -> Iterator[None]:
    """A node with 2 CPUs, for the whole module."""
    shoal.shutdown()
    shoal.init(num_cpus=2, log_to_driver=False)
    yield
    shoal.shutdown()


@pytest.fixture
def freed() -> Iterator[None]:
    """Everything that the test has made is soon freed after it."""
    before = settled_counts()
    yield
    gc.collect()
    wait_for_counts(before)

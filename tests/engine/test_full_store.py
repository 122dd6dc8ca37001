"""Tasks whose arguments together are larger than the store: each of them fits, so each of them runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import shoal
from shoal.runtime import core


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    shoal.shutdown()
    shoal.init(num_cpus=4, object_store_memory=32 << 20)
    yield
    shoal.shutdown()


@shoal.remote
def total(*arrays: np.ndarray) -> int:
    return sum(int(array[0]) for array in arrays)


def test_tasks_that_read_from_disk_at_the_same_time_do_not_hold_each_other_up() -> None:
    """Three tasks of 20 MB in 32 MB: when each holds a part, none can go on (ObjectStoreFullError after 3 s)."""
    parts = [[shoal.put(np.full(250_000, task)) for _ in range(10)] for task in range(3)]
    assert shoal.get([total.remote(*part) for part in parts], timeout=60) == [0, 10, 20]
    assert core.current().call("node.stats")["room"] == {"reading": 0, "waiting": 0, "bytes": 0}


def test_a_task_may_hold_its_arguments_and_wait_for_one_that_needs_room_too() -> None:
    mine = [shoal.put(np.full(250_000, 1)) for _ in range(7)]
    its = [[shoal.put(np.full(250_000, 2)) for _ in range(7)]]

    @shoal.remote
    def parent(inner: list[list[shoal.ObjectRef]], *arrays: np.ndarray) -> int:
        return sum(int(array[0]) for array in arrays) + int(shoal.get(total.remote(*inner[0])))

    filler = [shoal.put(np.full(250_000, 0)) for _ in range(16)]  # all else is on disk
    assert shoal.get(parent.remote(its, *mine), timeout=60) == 21
    del filler

"""Tasks whose arguments together are larger than the store: each of them fits, so each of them runs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

import shoal
from shoal import exceptions
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


def test_what_could_not_be_read_once_can_be_when_there_is_room_and_is_freed() -> None:
    """That memory is full is no property of the object: not for its owner, and not for a worker that only has its ref."""

    @shoal.remote
    def read(refs: list[shoal.ObjectRef]) -> int:
        return int(shoal.get(refs[0])[0])

    refs = [
        shoal.put(np.full(250_000, number)) for number in range(18)
    ]  # the last put lies in memory, the first ones on disk
    held = [shoal.get(ref, timeout=60) for ref in refs[2:]]
    for _ in range(2):
        with pytest.raises(exceptions.ObjectStoreFullError):
            shoal.get(refs[0], timeout=60)
    with pytest.raises(exceptions.ObjectStoreFullError):
        shoal.get(read.remote([refs[1]]), timeout=60)
    assert len(held) == 16
    held.clear()
    assert int(shoal.get(refs[0], timeout=60)[0]) == 0
    assert shoal.get([read.remote([ref]) for ref in refs[:2]], timeout=60) == [0, 1]
    refs.clear()
    deadline = time.monotonic() + 60
    while core.current().call("node.stored")["stored"]:
        assert time.monotonic() < deadline, "it is freed as if nothing had been"
        time.sleep(0.01)

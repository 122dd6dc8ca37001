"""Workers are killed at random while work runs: every result is right, nothing hangs, nothing leaks.

Seeds are fixed; the kills' moments are not, as processes run at their own pace. `SHOAL_CHAOS_SECONDS` makes each workload run longer.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import zlib
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

import shoal
from shoal.runtime import core

SECONDS = float(os.environ.get("SHOAL_CHAOS_SECONDS", "2"))
GET_TIMEOUT_S = 60


class Killer:
    """A thread that kills a random worker of this session every 20 to 150 ms."""

    def __init__(self, seed: int) -> None:
        self.kills = 0
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._random.uniform(0.02, 0.15)):
            pids = sorted(process.pid for process in psutil.Process().children(recursive=True) if _is_worker(process))
            if pids:
                try:
                    os.kill(self._random.choice(pids), signal.SIGKILL)
                    self.kills += 1
                except ProcessLookupError:
                    pass


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "shoal:worker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    shoal.shutdown()
    shoal.init(num_cpus=2)
    yield
    shoal.shutdown()


@shoal.remote(max_retries=-1)
def double(x: int) -> int:
    return x * 2


@shoal.remote(max_retries=-1)
def slow(x: int) -> int:
    time.sleep(0.005)
    return x + 1


@shoal.remote(max_retries=-1)
def filled(value: int) -> np.ndarray:
    return np.full(300_000, value)


@shoal.remote(max_retries=-1)
def first_sum(*arrays: np.ndarray) -> int:
    return sum(int(array[0]) for array in arrays)


@shoal.remote(max_retries=-1)
def tree(leaves: int) -> int:
    if leaves <= 1:
        return 1
    return sum(shoal.get([tree.remote(leaves // 2), tree.remote(leaves - leaves // 2)]))


@shoal.remote(max_retries=-1)
def items(count: int) -> Iterator[int]:
    for index in range(count):
        time.sleep(0.001)
        yield index


def run_map() -> None:
    count = 1500
    assert shoal.get([double.remote(i) for i in range(count)], timeout=GET_TIMEOUT_S) == [2 * i for i in range(count)]
    assert shoal.get([slow.remote(i) for i in range(40)], timeout=GET_TIMEOUT_S) == [i + 1 for i in range(40)]


def run_large_objects() -> None:
    assert shoal.get(first_sum.remote(*[filled.remote(i) for i in range(10)]), timeout=GET_TIMEOUT_S) == 45


def run_nested() -> None:
    assert shoal.get(tree.remote(12), timeout=GET_TIMEOUT_S) == 12


def run_streams() -> None:
    assert [shoal.get(ref, timeout=GET_TIMEOUT_S) for ref in items.remote(40)] == list(range(40))


@shoal.remote(max_restarts=-1, max_task_retries=-1)
class Echo:
    def say(self, x: int) -> int:
        return x


def run_actors() -> None:
    actors = [Echo.remote() for _ in range(2)]
    refs = [actor.say.remote(i) for i in range(300) for actor in actors]
    assert shoal.get(refs, timeout=GET_TIMEOUT_S) == [i for i in range(300) for _ in actors]


@pytest.mark.parametrize(
    "workload", [run_map, run_large_objects, run_nested, run_streams, run_actors], ids=lambda w: w.__name__[4:]
)
def test_results_are_right_while_workers_are_killed(workload: object) -> None:
    assert callable(workload)
    end = time.monotonic() + SECONDS
    with Killer(seed=zlib.crc32(workload.__name__.encode())) as killer:
        while time.monotonic() < end:
            workload()
    assert killer.kills > 3


def test_nothing_leaks_in_the_end() -> None:
    deadline = time.monotonic() + 60
    while True:
        stats = core.current().call("node.stats")
        resources = core.current().call("node.resources")
        leaked = stats["objects"]["objects"], stats["store"]["objects"], stats["store"]["resident_bytes"]
        if leaked == (0, 0, 0) and resources["available"]["CPU"] == resources["total"]["CPU"]:
            return
        if time.monotonic() > deadline:
            here = {oid.hex(): entry.count for oid, entry in core.current().objects.table.items()}
            rows = core.current().call("node.objects")["objects"]
            raise AssertionError(f"after all refs were dropped: {rows}, {stats}, {resources}; known here: {here}")
        time.sleep(0.1)

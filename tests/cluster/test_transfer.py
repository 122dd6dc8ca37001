"""Values that lie on other nodes: got, awaited, passed to tasks, freed; and what dies meanwhile."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.testing import Cluster, ClusterNode
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy

StartCluster = Callable[..., Cluster]
SOON_S = 60.0
MB = 1 << 20


@shoal.remote(resources={"two": 0.01})
def make(count: int, number: int = 1) -> np.ndarray:
    return np.full(count, number, dtype=np.uint8)


@shoal.remote(resources={"two": 0.01})
def total_there(*arrays: np.ndarray) -> int:
    return sum(int(array.sum()) for array in arrays)


@pytest.fixture
def two(start_cluster: StartCluster) -> Iterator[tuple[Cluster, ClusterNode]]:
    """A head, where the driver is, and a node with the resource "two"."""
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=2, resources={"two": 1})
    cluster.connect(log_to_driver=False)
    yield cluster, node


def store_of(node: ClusterNode) -> dict[str, Any]:
    return node.call("node.stats")["store"]


def transfers_of(node: ClusterNode) -> dict[str, Any]:
    return node.call("node.stats")["cluster"]


def eventually(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.02)


def test_results_arguments_and_puts_of_other_nodes(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, node = two
    ref = make.remote(3 * MB)
    assert int(shoal.get(ref, timeout=SOON_S).sum()) == 3 * MB
    assert int(shoal.get(ref).sum()) == 3 * MB
    assert transfers_of(cluster.head)["pulled"] == 1, "the copy is used again"
    assert shoal.get(total_there.remote(np.ones(MB, dtype=np.uint8)), timeout=SOON_S) == MB
    put = shoal.put(np.ones(2 * MB, dtype=np.uint8))
    assert shoal.get([total_there.remote(put, ref) for _ in range(20)], timeout=SOON_S) == [5 * MB] * 20
    assert transfers_of(node)["pulled"] == 2
    values = shoal.get([make.remote(200_000, number) for number in range(20)], timeout=SOON_S)
    assert [int(value[7]) for value in values] == list(range(20))


def test_refs_in_refs(two: tuple[Cluster, ClusterNode]) -> None:
    @shoal.remote(resources={"two": 0.01})
    def packed() -> dict[str, Any]:
        return {"inside": shoal.put(np.full(MB, 3, dtype=np.uint8)), "fill": bytes(MB)}

    found = shoal.get(packed.remote(), timeout=SOON_S)
    assert int(shoal.get(found["inside"], timeout=SOON_S).sum()) == 3 * MB


def test_wait_brings_what_is_ready(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, _node = two
    refs = [make.remote(MB, number) for number in range(4)]
    ready, rest = shoal.wait(refs, num_returns=4, timeout=SOON_S)
    assert (ready, rest) == (refs, [])
    assert transfers_of(cluster.head)["pulled"] == 4
    ref = make.remote(MB)
    ready, rest = shoal.wait([ref], timeout=SOON_S, fetch_local=False)
    assert ready == [ref]
    assert transfers_of(cluster.head)["pulled"] == 4


def test_awaited_and_future(two: tuple[Cluster, ClusterNode]) -> None:
    async def both() -> list[int]:
        values = await asyncio.gather(*[make.remote(MB, number) for number in range(5)])
        return [int(value[0]) for value in values]

    assert asyncio.run(both()) == list(range(5))
    assert int(make.remote(MB, 9).future().result(SOON_S)[0]) == 9

    @shoal.remote(num_cpus=0)
    class Reader:
        async def first(self, refs: list[Any]) -> int:
            return int((await refs[0])[0])

    assert shoal.get(Reader.remote().first.remote([make.remote(MB, 8)]), timeout=SOON_S) == 8


def test_an_asyncio_actor_goes_on_while_arguments_travel(two: tuple[Cluster, ClusterNode]) -> None:
    _cluster, node = two

    @shoal.remote(num_cpus=0)
    class Echo:
        async def size(self, array: np.ndarray) -> int:
            return len(array)

        async def ping(self) -> str:
            return "pong"

    echo = Echo.remote()
    assert shoal.get(echo.ping.remote(), timeout=SOON_S) == "pong"
    ref = make.remote(50 * MB)
    shoal.wait([ref], fetch_local=False, timeout=SOON_S)
    os.kill(node.pid, signal.SIGSTOP)
    try:
        size = echo.size.remote(ref)
        assert shoal.get(echo.ping.remote(), timeout=SOON_S) == "pong"
        assert shoal.wait([size], timeout=0) == ([], [size])
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert shoal.get(size, timeout=SOON_S) == 50 * MB


def test_copies_go_with_the_last_ref(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, node = two
    ref = make.remote(MB)
    put = shoal.put(np.ones(MB, dtype=np.uint8))
    shoal.get(total_there.remote(put), timeout=SOON_S)
    value = shoal.get(ref, timeout=SOON_S)
    assert store_of(cluster.head)["copies"] == store_of(node)["copies"] == 1
    del ref, put
    eventually(lambda: store_of(node)["objects"] == 0)
    assert int(value.sum()) == MB, "what is read stays"
    assert store_of(cluster.head)["objects"] == 1
    time.sleep(0.5)  # nothing goes on in this process any more, and it is let go all the same
    del value
    eventually(lambda: store_of(cluster.head)["objects"] == 0)
    assert transfers_of(node)["shared"] == transfers_of(cluster.head)["shared"] == 0


def test_more_than_the_store_holds(two: tuple[Cluster, ClusterNode]) -> None:
    """Copies make room for others, and are pulled again; originals are spilled there and restored."""
    cluster, _node = two
    refs = [make.remote(40 * MB, number) for number in range(1, 11)]
    shoal.wait(refs, num_returns=len(refs), timeout=60, fetch_local=False)
    for _ in range(2):
        for number, ref in enumerate(refs, start=1):
            value = shoal.get(ref, timeout=60)
            assert value[0] == value[-1] == number
            del value
    assert store_of(cluster.head)["spills"] == 0, "copies cost no disk"


def test_no_room_for_a_copy_is_an_error_in_bounded_time(two: tuple[Cluster, ClusterNode]) -> None:
    held = [shoal.get(shoal.put(np.ones(60 * MB, dtype=np.uint8))) for _ in range(4)]
    start = time.monotonic()
    with pytest.raises(shoal.exceptions.ObjectStoreFullError, match="being read"):
        shoal.get(make.remote(60 * MB))
    assert time.monotonic() - start < SOON_S
    del held
    assert int(shoal.get(make.remote(60 * MB), timeout=SOON_S)[0]) == 1


def test_a_timeout_while_it_travels(two: tuple[Cluster, ClusterNode]) -> None:
    _cluster, node = two
    ref = make.remote(100 * MB)
    shoal.wait([ref], fetch_local=False, timeout=SOON_S)
    os.kill(node.pid, signal.SIGSTOP)
    try:
        with pytest.raises(shoal.exceptions.GetTimeoutError):
            shoal.get(ref, timeout=0.3)
        with pytest.raises(shoal.exceptions.GetTimeoutError):
            shoal.get([ref], timeout=0.3)
        assert shoal.wait([ref], timeout=0.3) == ([], [ref])
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert int(shoal.get(ref, timeout=SOON_S)[-1]) == 1


def test_the_node_dies_while_it_sends(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, node = two
    ref = make.options(max_retries=0).remote(200 * MB)
    shoal.wait([ref], fetch_local=False, timeout=SOON_S)
    os.kill(node.pid, signal.SIGSTOP)
    killer = threading.Timer(0.5, os.kill, (node.pid, signal.SIGKILL))
    killer.start()
    start = time.monotonic()
    with pytest.raises(shoal.exceptions.ObjectLostError):
        shoal.get(ref, timeout=60)
    assert time.monotonic() - start < 50
    killer.join()
    eventually(lambda: store_of(cluster.head)["objects"] == 0)
    assert transfers_of(cluster.head)["pulls"] == 0


def test_a_reader_dies_while_it_pulls(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, node = two
    ref = make.remote(100 * MB)
    shoal.wait([ref], fetch_local=False, timeout=SOON_S)

    @shoal.remote(max_retries=0)
    def read_and_die(refs: list[Any]) -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        shoal.get(refs[0])
        time.sleep(SOON_S)

    shoal.get(
        shoal.remote(lambda: None).remote(), timeout=SOON_S
    )  # a worker runs: the node is not to be stopped for long
    os.kill(node.pid, signal.SIGSTOP)
    try:
        with pytest.raises(shoal.exceptions.WorkerCrashedError):
            shoal.get(read_and_die.remote([ref]), timeout=SOON_S)
        eventually(lambda: transfers_of(cluster.head)["pulls"] == 0)
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert int(shoal.get(ref, timeout=SOON_S)[-1]) == 1


class Deadly:
    """Kills the process that pickles it, once what that has said stands in its daemon's socket; harmless where a file stands."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        from shoal.runtime import core

        if not os.path.exists(self.path):
            open(self.path, "w").close()
            core.current().call("node.ping")
            os.kill(os.getpid(), signal.SIGKILL)
        return str, ()


def test_what_a_killed_worker_had_stored_and_not_told_goes(
    two: tuple[Cluster, ClusterNode], tmp_path: pathlib.Path
) -> None:
    """The first of two results is sealed when its worker dies; nobody else knows of it."""
    cluster, node = two

    @shoal.remote(num_returns=2)
    def pair(path: str) -> Any:
        return np.ones(MB, dtype=np.uint8), Deadly(path)

    @shoal.remote
    def items(path: str) -> Any:
        yield np.ones(MB, dtype=np.uint8)
        Deadly(path).__reduce__()

    for where in (cluster.head, node):
        there = NodeAffinitySchedulingStrategy(node_id=where.node_id, soft=False)
        path = str(tmp_path / where.name)
        first, second = pair.options(max_retries=0, scheduling_strategy=there).remote(path)
        with pytest.raises(shoal.exceptions.WorkerCrashedError):
            shoal.get(second, timeout=SOON_S)
        stream = items.options(max_retries=0, num_returns="streaming", scheduling_strategy=there).remote(
            path + "-items"
        )
        with pytest.raises(shoal.exceptions.WorkerCrashedError):
            for ref in stream:
                shoal.get(ref, timeout=SOON_S)
        del first, second, stream, ref
        eventually(lambda where=where: not where.call("node.stored")["stored"])
        os.unlink(path)
        first, second = pair.options(max_retries=1, scheduling_strategy=there).remote(path)
        assert shoal.get(second, timeout=SOON_S) == "" and int(shoal.get(first, timeout=SOON_S).sum()) == MB
        del first, second
        eventually(lambda where=where: not store_of(where)["objects"])


def test_many_nodes_get_the_same(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1)
    nodes = [cluster.add_node(num_cpus=1, resources={f"n{number}": 1}, wait=False) for number in range(3)]
    cluster.wait_for_nodes()
    cluster.connect(log_to_driver=False)
    put = shoal.put(np.arange(32 * MB // 8))

    @shoal.remote
    def check(array: np.ndarray) -> bool:
        return bool((array == np.arange(len(array))).all())

    refs = [check.options(resources={f"n{number}": 1}).remote(put) for number in range(3)]
    assert shoal.get(refs, timeout=60) == [True] * 3
    assert [transfers_of(node)["pulled"] for node in nodes] == [1] * 3
    del put, refs
    for node in nodes:
        eventually(lambda node=node: store_of(node)["objects"] == 0)

"""Tasks go where their inputs are, unless others must wait there for long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import shoal
from shoal.testing import Cluster, ClusterNode

StartCluster = Callable[..., Cluster]
SOON_S = 60.0
MB = 1 << 20


def here() -> str:
    return str(shoal.get_runtime_context().get_node_id())


@shoal.remote(num_cpus=0, resources={"two": 0.01})
def make(count: int) -> np.ndarray:
    return np.ones(count, dtype=np.uint8)


@shoal.remote
def where(*_inputs: np.ndarray) -> str:
    return here()


@pytest.fixture
def two(start_cluster: StartCluster) -> Iterator[tuple[Cluster, ClusterNode]]:
    """A head with 1 CPU, where the driver is, and a node with 1 CPU and the resource "two"."""
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=1, resources={"two": 1})
    cluster.connect(log_to_driver=False)
    yield cluster, node


def test_a_task_goes_where_its_inputs_are(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, node = two
    there = make.remote(20 * MB)
    put = shoal.put(np.ones(20 * MB, dtype=np.uint8))
    shoal.wait([there], fetch_local=False, timeout=SOON_S)
    for _ in range(5):
        assert shoal.get(where.remote(there), timeout=SOON_S) == node.node_id
        assert shoal.get(where.remote(put), timeout=SOON_S) == cluster.head.node_id
    assert shoal.get(where.remote(there, make.remote(MB)), timeout=SOON_S) == node.node_id
    assert cluster.head.call("node.stats")["cluster"]["pulled"] == 0


def test_a_busy_node_is_not_waited_for(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, _node = two

    @shoal.remote(resources={"two": 0.01}, num_returns="streaming")
    def occupy() -> Iterator[None]:
        yield None
        time.sleep(SOON_S)

    there = make.remote(20 * MB)
    shoal.wait([there], fetch_local=False, timeout=SOON_S)
    blocker = occupy.remote()
    next(blocker)  # it runs, and has the node's CPU
    assert shoal.get(where.remote(there), timeout=SOON_S / 2) == cluster.head.node_id
    shoal.cancel(blocker)

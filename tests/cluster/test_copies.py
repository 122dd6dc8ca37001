"""`put(copies=2)`: a value that no task can make outlives the node where it was put."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.exceptions import OwnerDiedError
from shoal.testing import Cluster

StartCluster = Callable[..., Cluster]
SOON_S = 30.0


@shoal.remote(resources={"two": 0.1})
class Putter:
    """An actor: what it puts is made by no task that could run again."""

    def put(self, number: float, copies: int) -> list[Any]:
        return [shoal.put(np.full(50_000, number), copies=copies)]


def objects_at(cluster: Cluster) -> int:
    """How many objects lie in the store of the head, where the driver is."""
    return int(cluster.nodes[0].call("node.stats")["store"]["objects"])


def wait_for_objects_at(cluster: Cluster, count: int) -> None:
    until = time.monotonic() + SOON_S
    while objects_at(cluster) != count:
        assert time.monotonic() < until, "the copies of what nobody refers to stay"
        time.sleep(0.02)


def test_a_put_value_outlives_its_node(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=1, resources={"two": 1})
    cluster.connect(log_to_driver=False)
    putter = Putter.remote()
    [safe] = shoal.get(putter.put.remote(1.0, 2), timeout=SOON_S)
    [single] = shoal.get(putter.put.remote(2.0, 1), timeout=SOON_S)
    [freed] = shoal.get(putter.put.remote(3.0, 2), timeout=SOON_S)
    assert objects_at(cluster) == 2, "copies of the first and the third"
    del freed
    wait_for_objects_at(cluster, 1)
    with pytest.warns(RuntimeWarning, match="a cluster of 2"):
        wide = shoal.put(7, copies=3)
    cluster.remove_node(node, kill=True)
    assert shoal.get(safe, timeout=SOON_S)[0] == 1.0
    with pytest.raises(
        OwnerDiedError, match=rf"{single.hex()}, put by task .*lost with the node.*copies=2.*max_retries"
    ):
        shoal.get(single, timeout=SOON_S)
    assert shoal.get(wide) == 7
    del safe, wide
    wait_for_objects_at(cluster, 0)

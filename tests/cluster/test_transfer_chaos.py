"""Values of all sizes go to and fro between nodes of which some are killed: nothing is wrong, nothing is lost, nothing is left."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.testing import Cluster, ClusterNode

StartCluster = Callable[..., Cluster]
MB = 1 << 20
SOON_S = 60.0
RUN_S = 4.0
KILLS_MAX = 2


@shoal.remote(max_retries=20)
def make(mark: int, size: int) -> np.ndarray:
    return np.full(size, mark, dtype=np.uint8)


@shoal.remote(max_retries=20)
def check(mark: int, array: np.ndarray) -> int:
    assert (array == mark).all()
    return mark


def leftovers(node: ClusterNode) -> dict[str, int]:
    stats: dict[str, Any] = node.call("node.stats")
    found = {"objects": stats["store"]["objects"], "escaped": stats["objects"]["objects"]}
    for name in ("pulls", "active_bytes", "chunks", "shared", "serving", "deferred"):
        found[name] = stats["cluster"][name]
    return {name: count for name, count in found.items() if count}


@pytest.mark.parametrize("seed", [1, 2])
def test_values_cross_while_nodes_die(start_cluster: StartCluster, seed: int) -> None:
    dice = random.Random(seed)
    cluster = start_cluster(num_cpus=1)
    nodes = [cluster.add_node(resources={f"n{number}": 1}, wait=False) for number in range(3)]
    cluster.wait_for_nodes()
    cluster.connect(log_to_driver=False)
    kills = 0
    deadline = time.monotonic() + RUN_S
    while time.monotonic() < deadline:
        mark, size = dice.randrange(251), dice.choice([150_000, MB, 8 * MB, 30 * MB])
        source = dice.choice([-1, 0, 1, 2])
        if source < 0:
            ref = shoal.put(np.full(size, mark, dtype=np.uint8))
        else:
            ref = make.options(resources={f"n{source}": 0.01}).remote(mark, size)
        takers = [number for number in range(3) for _ in range(dice.choice([1, 3]))]
        results = [check.options(resources={f"n{number}": 0.01}).remote(mark, ref) for number in takers]
        if kills < KILLS_MAX and dice.random() < 0.15:
            kills += 1
            number = dice.randrange(3)
            time.sleep(dice.random() * 0.3)
            cluster.remove_node(nodes[number], kill=True)
            nodes[number] = cluster.add_node(resources={f"n{number}": 1})
        assert shoal.get(results, timeout=SOON_S) == [mark] * len(takers)
        if dice.random() < 0.5:
            assert (shoal.get(ref, timeout=SOON_S) == mark).all()
        del ref, results
    settled = time.monotonic() + SOON_S
    while any(leftovers(node) for node in cluster.nodes):
        assert time.monotonic() < settled, [leftovers(node) for node in cluster.nodes]
        time.sleep(0.1)

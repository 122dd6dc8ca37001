"""Nodes are killed and replaced while work runs: every result is right, nothing hangs, nothing is left.

`SHOAL_CHAOS_SECONDS` makes it run longer.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.exceptions import ActorDiedError, ActorUnavailableError
from shoal.testing import Cluster

StartCluster = Callable[..., Cluster]
SECONDS = float(os.environ.get("SHOAL_CHAOS_SECONDS", "3"))
GET_TIMEOUT_S = 60.0


class NodeKiller:
    """A thread that kills a random node of a cluster (never the head) about once a second, and starts another one."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.kills = 0
        self.error: BaseException | None = None
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> NodeKiller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60.0)
        assert self.error is None, self.error

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._random.uniform(0.5, 1.2)):
                victim = self._random.choice([node for node in self.cluster.nodes if not node.is_head])
                self.cluster.remove_node(victim, kill=True)
                self.kills += 1
                self.cluster.add_node(num_cpus=2, resources={"away": 4}, wait=False)
        except BaseException as error:
            self.error = error


@pytest.fixture
def cluster(start_cluster: StartCluster) -> Cluster:
    cluster = start_cluster(num_cpus=1)
    for _ in range(3):
        cluster.add_node(num_cpus=2, resources={"away": 4}, wait=False)
    cluster.wait_for_nodes(4)
    cluster.connect(log_to_driver=False)
    return cluster


def at_rest(cluster: Cluster) -> None:
    """In the end no lease, no waiting task, no object and no line to a dead node is left on any node."""
    deadline = time.monotonic() + 60
    cluster.wait_for_nodes()
    while True:
        left: dict[str, Any] = {}
        for node in cluster.nodes:
            stats = node.call("node.stats")
            scheduler = stats["scheduler"]
            counts = {
                "leases": scheduler["leases"],
                "waiting": scheduler["classes_waiting"],
                "objects": stats["objects"]["objects"],
                "handed": stats["objects"]["handed"],
                # Copies outlive the node of their original for a while: others may be getting them.
                "stored": [row for row in node.call("node.stored")["stored"] if not row["copy_of"]],
                "abroad": stats["cluster"]["classes_abroad"],
            }
            if any(counts.values()):
                left[node.name] = counts
        if not left:
            return
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


@pytest.mark.parametrize("seed", [1])
def test_tasks_survive_their_nodes(cluster: Cluster, seed: int) -> None:
    @shoal.remote(max_retries=-1)
    def leaf(number: int, array: Any) -> int:
        return number + int(array[0])

    @shoal.remote(max_retries=-1)
    def tree(number: int, array: Any) -> int:
        return sum(shoal.get([leaf.options(scheduling_strategy="SPREAD").remote(number, array) for _ in range(4)]))

    array = shoal.put(np.full(200_000, 7, dtype=np.int64))
    until = time.monotonic() + SECONDS
    done = 0
    with NodeKiller(cluster, seed) as killer:
        while time.monotonic() < until:
            refs = [tree.options(scheduling_strategy="SPREAD").remote(number, array) for number in range(12)]
            assert shoal.get(refs, timeout=GET_TIMEOUT_S) == [4 * (number + 7) for number in range(12)]
            done += 60
    assert killer.kills
    assert done > 0
    del array, refs
    at_rest(cluster)


def test_objects_of_dead_nodes_are_made_anew(cluster: Cluster) -> None:
    @shoal.remote(max_retries=-1, resources={"away": 0.5})
    def make(seed: int) -> Any:
        return np.full(100_000, seed, dtype=np.int64)

    @shoal.remote(max_retries=-1, resources={"away": 0.5})
    def add(one: Any, two: Any) -> Any:
        return one + two

    until = time.monotonic() + SECONDS
    with NodeKiller(cluster, 3) as killer:
        while time.monotonic() < until:
            level = [make.remote(seed) for seed in range(8)]
            while len(level) > 1:
                level = [add.remote(one, two) for one, two in zip(level[::2], level[1::2], strict=True)]
            total = shoal.get(level[0], timeout=GET_TIMEOUT_S)
            assert int(total[0]) == int(total[-1]) == sum(range(8))
            del total, level
    assert killer.kills
    at_rest(cluster)


def test_actors_move_from_dead_nodes(cluster: Cluster) -> None:
    """What an actor has answered is never taken back within a life; a call that is retried may be counted twice, none is lost."""

    @shoal.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0, resources={"away": 0.1})
    class Mover:
        def __init__(self) -> None:
            self.born = time.time()
            self.count = 0

        def add(self) -> tuple[float, int]:
            self.count += 1
            return self.born, self.count

    movers = [Mover.remote() for _ in range(4)]
    last: dict[int, tuple[float, int]] = {}
    until = time.monotonic() + SECONDS
    with NodeKiller(cluster, 4) as killer:
        while time.monotonic() < until:
            for number, answer in enumerate(shoal.get([mover.add.remote() for mover in movers], timeout=GET_TIMEOUT_S)):
                born, count = answer
                former = last.get(number, (0.0, 0))
                assert born > former[0] or (born == former[0] and count > former[1]), (former, answer)
                last[number] = (born, count)
    assert killer.kills
    for mover in movers:
        shoal.kill(mover)
    with pytest.raises((ActorDiedError, ActorUnavailableError)):
        shoal.get(movers[0].add.remote(), timeout=GET_TIMEOUT_S)
    del movers, mover
    at_rest(cluster)

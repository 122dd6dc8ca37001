"""Refs inside of containers, in calls that wait at a busy actor and in tasks that wait for resources: their sender's node dies, and they live on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shoal
from shoal.testing import Cluster, ClusterNode

StartCluster = Callable[..., Cluster]
SOON_S = 60.0
SIZE = 200_000


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@shoal.remote(num_cpus=0)
def make(number: int, size: int = 1) -> list[Any]:
    return [number, b"x" * size]


@shoal.remote(num_cpus=0, resources={"keeper": 1})
def keep_waiting(gate: str) -> None:
    wait_until(lambda: os.path.exists(gate))


@shoal.remote(num_cpus=0, resources={"keeper": 1})
def read(refs: list[Any]) -> int:
    return int(shoal.get(refs[0], timeout=SOON_S)[0])


class Reader:
    """An actor that stands at a gate while others call it."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def wait_for(self, gate: str) -> None:
        wait_until(lambda: os.path.exists(gate))

    def add(self, refs: list[Any]) -> None:
        self.read.append(shoal.get(refs[0], timeout=SOON_S)[0])

    def all_read(self) -> list[int]:
        return self.read


class Sender:
    """Sends refs that only it has: of tasks of its own, of both nodes, and of what another process has made."""

    def meet(self, readers: list[Any]) -> int:
        return len(shoal.get([reader.all_read.remote() for reader in readers], timeout=SOON_S))

    def send(self, readers: list[Any], given: list[Any]) -> list[Any]:
        home, away = (make.options(resources={where: 0.01}) for where in ("sender", "keeper"))
        for reader in readers:
            for ref in (home.remote(1), home.remote(2, SIZE), away.remote(3), away.remote(4, SIZE), given[0]):
                reader.add.remote([ref])
        tasks = [read.remote([home.remote(6)]), read.remote([home.remote(7, SIZE)]), read.remote([away.remote(8)])]
        shoal.get(home.remote(0), timeout=SOON_S)  # who waits has sent what was to be sent
        return tasks


def test_the_node_of_the_sender_dies(start_cluster: StartCluster, tmp_path: Path) -> None:
    cluster = start_cluster(num_cpus=2)
    doomed = cluster.add_node(resources={"sender": 4}, wait=False)
    keeper = cluster.add_node(resources={"keeper": 2}, wait=False)
    cluster.wait_for_nodes()
    cluster.connect(log_to_driver=False)
    gate = str(tmp_path / "gate")
    at_keeper = shoal.remote(num_cpus=0, resources={"keeper": 0.1})
    at_sender = shoal.remote(num_cpus=0, resources={"sender": 1})
    readers = [at_keeper(Reader).remote(), at_keeper(Reader).options(checkpoint_interval=3).remote()]
    senders = [at_sender(Sender).remote(), at_sender(Sender).options(checkpoint_interval=3).remote()]
    assert shoal.get([sender.meet.remote(readers) for sender in senders], timeout=SOON_S) == [2, 2]
    waiting = [reader.wait_for.remote(gate) for reader in readers]
    hog = keep_waiting.remote(gate)
    given = make.options(resources={"sender": 0.01}).remote(5)  # the driver's, which lets go of it
    sent = [
        senders[0].send.remote(readers, [given]),
        senders[1].send.remote(readers[1:], [given]),
    ]  # the second will be replayed
    tasks = [task for each in shoal.get(sent, timeout=SOON_S) for task in each]
    del given
    cluster.remove_node(doomed, kill=True)
    cluster.add_node(resources={"sender": 4})
    Path(gate).touch()
    assert shoal.get(tasks, timeout=SOON_S) == [6, 7, 8] * 2
    assert shoal.get([hog, *waiting], timeout=SOON_S) == [None] * 3
    told = shoal.get([reader.all_read.remote() for reader in readers], timeout=SOON_S)
    assert [sorted(numbers) for numbers in told] == [[1, 2, 3, 4, 5], [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]]
    del readers, senders, sent, tasks, hog, waiting
    wait_until(lambda: is_empty(cluster.nodes[0]) and is_empty(keeper))


def is_empty(node: ClusterNode) -> bool:
    """Whether nobody holds anything there."""
    counts = node.call("node.stats")["objects"]
    return not any(counts[name] for name in ("objects", "holds", "underway", "specs", "ghosts"))

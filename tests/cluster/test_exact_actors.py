"""Actors with checkpoints over nodes: what was answered is in the state of a life on another node, once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import shoal
from shoal.runtime.core import current
from shoal.testing import Cluster

StartCluster = Callable[..., Cluster]
SOON_S = 60.0


def get(refs: Any) -> Any:
    return shoal.get(refs, timeout=SOON_S)


@shoal.remote(checkpoint_interval=7, resources={"out": 1})
class Log:
    """Appends, and may have the same appended elsewhere."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self.peer: Any = None
        self.ballast: Any = None

    def meet(self, peers: list[Any]) -> None:
        self.peer = peers[0]

    def append(self, line: Any) -> int:
        self.lines.append(line)
        return len(self.lines)

    def forward(self, line: Any) -> tuple[int, int]:
        self.lines.append(line)
        return len(self.lines), shoal.get(self.peer.append.remote(line))

    def load(self, megabytes: int) -> None:
        self.ballast = np.zeros(megabytes << 20, np.uint8)

    @shoal.method(read_only=True)
    def node(self) -> str:
        return str(shoal.get_runtime_context().get_node_id())

    @shoal.method(read_only=True)
    def ballast_bytes(self) -> int:
        return int(self.ballast.nbytes)

    @shoal.method(read_only=True)
    def all(self) -> list[Any]:
        return self.lines


def test_the_state_survives_its_node(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1)
    nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=2, resources={"out": 2}) for _ in range(3))}
    cluster.connect(log_to_driver=False)
    front, back = Log.remote(), Log.remote()
    get(front.meet.remote([back]))
    count = 0
    for _ in range(2):
        refs = []
        for _ in range(30):
            refs.append(front.forward.remote(count))
            count += 1
        get(refs[10])
        # The node goes with calls in flight and in replies.
        cluster.remove_node(nodes.pop(get(front.node.remote())), kill=True)
        assert get(refs) == [(i + 1, i + 1) for i in range(count - 30, count)]
    assert get(front.all.remote()) == get(back.all.remote()) == list(range(count))


def test_a_life_on_a_node_that_is_taken_for_dead_answers_nobody(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1)
    nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=2, resources={"out": 2}) for _ in range(2))}
    cluster.connect(log_to_driver=False)
    log = Log.remote()
    assert get([log.append.remote(i) for i in range(10)]) == list(range(1, 11))
    frozen = nodes[get(log.node.remote())]
    os.kill(frozen.pid, signal.SIGSTOP)  # the daemon; the actor's worker runs on
    try:
        refs = [log.append.remote(i) for i in range(10, 30)]
        assert get(refs) == list(range(11, 31))
        assert get(log.node.remote()) != frozen.node_id
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    assert get([log.append.remote(i) for i in range(30, 40)]) == list(range(31, 41))
    assert get(log.all.remote()) == list(range(40))


def test_actors_leave_a_node_that_drains(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1)
    nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=2, resources={"out": 2}) for _ in range(2))}
    cluster.connect(log_to_driver=False)
    log = Log.remote()
    get(log.load.remote(20))  # MB: its checkpoints have copies elsewhere
    assert get([log.append.remote(i) for i in range(10)]) == list(range(1, 11))
    left = nodes[get(log.node.remote())]
    current().call("gcs.drain_node", {"node_id": bytes.fromhex(left.node_id), "deadline_s": SOON_S, "reason": "a test"})
    refs = [log.append.remote(i) for i in range(10, 40)]
    assert get(refs) == list(range(11, 41))
    deadline = time.monotonic() + 60
    while get(log.node.remote()) == left.node_id:
        assert time.monotonic() < deadline
    while left.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left.is_alive(), "long before its deadline"
    assert get(log.all.remote()) == list(range(40))


def test_workers_and_the_gcs_are_killed_too(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=2, resources={"out": 2})
    cluster.connect(log_to_driver=False)
    front, back = Log.remote(), Log.remote()
    get(front.meet.remote([back]))
    ends = threading.Event()

    def murder() -> None:
        turn = 0
        while not ends.wait(0.3):
            turn += 1
            if turn % 4 == 0:
                current().call(
                    "gcs.nodes", {}
                )  # one that has answered nobody yet counts as stillborn: three end the node
                os.kill(current().call("node.stats")["gcs"]["pid"], signal.SIGKILL)
                continue
            rows = [row for row in node.call("node.workers")["workers"] if row["actor_id"]]
            if rows:
                try:
                    os.kill(rows[turn % len(rows)]["pid"], signal.SIGKILL)
                except ProcessLookupError:
                    pass

    killer = threading.Thread(target=murder)
    killer.start()
    try:
        answers = [get(front.forward.remote(i)) for i in range(150)]
    finally:
        ends.set()
        killer.join()
    assert answers == [(i + 1, i + 1) for i in range(150)]
    assert get(front.all.remote()) == get(back.all.remote()) == list(range(150))


def test_a_state_of_any_size_survives_its_node(start_cluster: StartCluster) -> None:
    """The checkpoint and a large argument of a later call have copies elsewhere, and nothing of all that is left in the end."""
    cluster = start_cluster(num_cpus=1, object_store_memory=300 << 20)
    nodes = {
        node.node_id: node
        for node in cluster.add_nodes(2, num_cpus=2, resources={"out": 2}, object_store_memory=300 << 20)
    }
    cluster.connect(log_to_driver=False)
    log = Log.remote()
    get(log.load.remote(32))  # MB
    assert get([log.append.remote(i) for i in range(10)]) == list(range(1, 11))
    large = np.arange(5 << 20)  # 40 MB
    assert get(log.append.remote(large)) == 11
    cluster.remove_node(nodes.pop(get(log.node.remote())), kill=True)
    assert get(log.append.remote(11)) == 12
    assert get(log.ballast_bytes.remote()) == 32 << 20
    lines = get(log.all.remote())
    assert lines[:10] + lines[11:] == [*range(10), 11] and (lines[10] == large).all()
    del lines
    # Once more: the life that was recovered has copies of its own.
    cluster.add_node(num_cpus=2, resources={"out": 2}, object_store_memory=300 << 20)
    cluster.remove_node(nodes.pop(get(log.node.remote())), kill=True)
    assert get(log.append.remote(12)) == 13
    assert get(log.ballast_bytes.remote()) == 32 << 20
    shoal.kill(log)
    deadline = time.monotonic() + SOON_S
    while left := [node.call("node.stored")["stored"] for node in cluster.nodes]:
        if not any(left):
            break
        assert time.monotonic() < deadline, left
        time.sleep(0.02)

"""Nodes that leave in order: told to, drained, or stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shoal
from shoal.testing import Cluster

StartCluster = Callable[..., Cluster]
SOON_S = 60.0


def here() -> str:
    return str(shoal.get_runtime_context().get_node_id())


where = shoal.remote(here)


def test_a_node_that_is_stopped_is_missed_by_nobody(start_cluster: StartCluster) -> None:
    """It says that it leaves: nobody waits for its heartbeats."""
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node()
    os.kill(node.pid, 15)
    cluster.wait_for_nodes(1)
    row = next(row for row in cluster.head.call("gcs.nodes")["nodes"] if row["node_id"].hex() == node.node_id)
    assert "it left: it was told to (SIGTERM)" in row["cause"]


def test_draining_waits_for_what_runs(start_cluster: StartCluster, tmp_path: Path) -> None:
    cluster = start_cluster(num_cpus=2)
    node = cluster.add_node(num_cpus=2, resources={"two": 1})
    cluster.connect(log_to_driver=False)

    @shoal.remote(max_retries=0)
    def slow() -> str:
        (tmp_path / "begun").touch()
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        return here()

    running = slow.options(resources={"two": 1}).remote()
    deadline = time.monotonic() + SOON_S
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with ThreadPoolExecutor(1) as pool:
        removed = pool.submit(cluster.remove_node, node)
        while not any(row["State"] == "draining" for row in shoal.nodes()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert set(shoal.get([where.remote() for _ in range(50)], timeout=SOON_S)) == {cluster.head.node_id}
        assert node.is_alive()
        (tmp_path / "go").touch()
        assert shoal.get(running, timeout=SOON_S) == node.node_id
        removed.result(timeout=SOON_S)
    assert not node.is_alive()
    cluster.wait_for_nodes(1)


def test_draining_ends_at_its_deadline(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=2, resources={"two": 1})
    cluster.connect(log_to_driver=False)
    hanging = shoal.remote(lambda: time.sleep(600)).options(resources={"two": 1}, max_retries=0).remote()

    @shoal.remote(max_restarts=1, max_task_retries=1, num_cpus=0)
    class Homeless:
        def where(self) -> str:
            return here()

    actor = Homeless.remote()
    assert shoal.get(actor.where.remote(), timeout=SOON_S)
    while shoal.available_resources().get("two"):
        time.sleep(0.01)
    began = time.monotonic()
    cluster.remove_node(node, timeout=1.0)
    assert 0.9 < time.monotonic() - began < SOON_S
    with pytest.raises(shoal.exceptions.WorkerCrashedError, match=r"not empty at the deadline.*1 tasks that run"):
        shoal.get(hanging, timeout=SOON_S)
    assert shoal.get(actor.where.remote(), timeout=SOON_S) == cluster.head.node_id


def test_a_node_that_drains_leaves_what_it_has_made(start_cluster: StartCluster, tmp_path: Path) -> None:
    """Its objects go to their owners' nodes, so it can leave, and nothing is made again."""
    cluster = start_cluster(num_cpus=2, resources={"home": 1})
    node = cluster.add_node(num_cpus=2, resources={"two": 2})
    cluster.connect(log_to_driver=False)

    @shoal.remote(resources={"two": 1})
    def make(number: int) -> bytes:
        with (tmp_path / "runs").open("a") as file:
            file.write(f"{number} ")
        return bytes([number]) * 300_000

    @shoal.remote(num_cpus=0)
    class Keeper:
        def keep(self, refs: list[shoal.ObjectRef]) -> None:
            self.refs = refs

        def read(self) -> int:
            return int(shoal.get(self.refs[0])[0])

    keeper = Keeper.options(resources={"home": 1}).remote()
    refs = [make.remote(number) for number in range(6)]
    shoal.wait(refs, num_returns=6, timeout=SOON_S, fetch_local=False)
    shoal.get(keeper.keep.remote(refs[:1]), timeout=SOON_S)
    cluster.remove_node(node, timeout=SOON_S)
    row = next(row for row in cluster.head.call("gcs.nodes")["nodes"] if row["node_id"].hex() == node.node_id)
    assert "not empty" not in row["cause"], "it waited for its deadline"
    assert [int(shoal.get(ref, timeout=SOON_S)[0]) for ref in refs] == list(range(6))
    assert shoal.get(keeper.read.remote(), timeout=SOON_S) == 0
    assert sorted((tmp_path / "runs").read_text().split()) == [str(number) for number in range(6)]
    del refs
    shoal.kill(keeper)
    deadline = time.monotonic() + SOON_S
    while left := cluster.head.call("node.stored")["stored"]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def test_draining_many_tasks(start_cluster: StartCluster) -> None:
    """A stream of tasks goes on elsewhere; none is lost, none is charged a retry."""
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=2)
    cluster.connect(log_to_driver=False)

    @shoal.remote(max_retries=0)
    def work(number: int) -> tuple[int, str]:
        time.sleep(0.005)
        return number, here()

    refs = [work.remote(number) for number in range(600)]
    while shoal.wait(refs, num_returns=100)[0] and not any(place == node.node_id for _, place in shoal.get(refs[:100])):
        pass
    cluster.remove_node(node)
    results = shoal.get(refs, timeout=SOON_S)
    assert [number for number, _ in results] == list(range(600))
    assert {place for _, place in results} == {cluster.head.node_id, node.node_id}


def test_the_head_is_not_drained(start_cluster: StartCluster) -> None:
    cluster = start_cluster()
    with pytest.raises(RuntimeError, match="is the head node"):
        cluster.head.call("gcs.drain_node", node_id=bytes.fromhex(cluster.head.node_id))
    with pytest.raises(RuntimeError, match="there is no living node"):
        cluster.head.call("gcs.drain_node", node_id=bytes(16))
    with pytest.raises(ValueError, match="the head cannot be removed"):
        cluster.remove_node(cluster.head)

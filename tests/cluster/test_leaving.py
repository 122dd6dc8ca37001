"""Nodes that leave in order: told to, drained, or stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.testing import Cluster, ClusterNode

StartCluster = Callable[..., Cluster]
SOON_S = 60.0


def here() -> str:
    return str(shoal.get_runtime_context().get_node_id())


where = shoal.remote(here)


def row_of(cluster: Cluster, node: ClusterNode) -> dict[str, Any]:
    rows = cluster.head.call("gcs.nodes")["nodes"]
    return next(row for row in rows if row["node_id"].hex() == node.node_id)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "cause"),
    [(signal.SIGINT, "it left: it was told to (SIGINT)"), (signal.SIGTERM, "it left: it was drained: it was told to")],
)
def test_a_node_that_is_stopped_is_missed_by_nobody(start_cluster: StartCluster, number: int, cause: str) -> None:
    """It says that it leaves: nobody waits for its heartbeats."""
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node()
    os.kill(node.pid, number)
    cluster.wait_for_nodes(1)
    assert cause in row_of(cluster, node)["cause"]


def test_a_preempted_node_hands_on_what_it_has(start_cluster: StartCluster, tmp_path: Path) -> None:
    """SIGTERM: what runs ends, what was made is kept, an actor goes on elsewhere from a fresh checkpoint, and nothing runs twice."""
    cluster = start_cluster(num_cpus=2, resources={"home": 1})
    node = cluster.add_node(num_cpus=3, resources={"two": 3}, drain_grace=600.0)
    cluster.connect(log_to_driver=False)

    def note(line: str) -> None:
        with (tmp_path / "runs").open("a") as file:
            file.write(f"{line}\n")

    @shoal.remote(max_retries=0, resources={"two": 1})
    def make(number: int) -> bytes:
        note(f"make {number}")
        return bytes([number]) * 300_000

    @shoal.remote(max_retries=0, resources={"two": 1})
    def slow() -> str:
        note("slow")
        wait_until((tmp_path / "go").exists)
        return here()

    @shoal.remote(checkpoint_interval=1000, max_restarts=1, resources={"two": 1})
    class Counter:
        count = 0

        def add(self) -> int:
            self.count += 1
            note(f"add {self.count}")
            return self.count

        @shoal.method(read_only=True)
        def where(self) -> str:
            return here()

    counter = Counter.remote()
    assert shoal.get([counter.add.remote() for _ in range(5)], timeout=SOON_S) == [1, 2, 3, 4, 5]
    made = [make.remote(number) for number in range(3)]
    shoal.wait(made, num_returns=3, timeout=SOON_S, fetch_local=False)
    running = slow.remote()
    wait_until(lambda: "slow" in (tmp_path / "runs").read_text())
    other = cluster.add_node(num_cpus=3, resources={"two": 3})
    os.kill(node.pid, signal.SIGTERM)
    wait_until(lambda: shoal.get(counter.where.remote(), timeout=SOON_S) == other.node_id)
    assert shoal.get(counter.add.remote(), timeout=SOON_S) == 6
    assert node.is_alive(), "a task runs there"
    (tmp_path / "go").touch()
    assert shoal.get(running, timeout=SOON_S) == node.node_id
    wait_until(lambda: not node.is_alive())
    assert "not empty" not in row_of(cluster, node)["cause"]
    assert [shoal.get(ref, timeout=SOON_S)[0] for ref in made] == [0, 1, 2]
    expected = [*(f"add {i}" for i in range(1, 7)), "make 0", "make 1", "make 2", "slow"]
    assert sorted((tmp_path / "runs").read_text().split("\n")[:-1]) == sorted(expected)
    # The move was no restart: there is one left.
    pid = next(row["pid"] for row in other.call("node.workers")["workers"] if row["actor_id"])
    os.kill(pid, signal.SIGKILL)
    assert shoal.get(counter.add.remote(), timeout=SOON_S) == 7


def begin_to_hang(begun: Path) -> shoal.ObjectRef:
    """A task that runs on the node that has "two", and does not end."""

    @shoal.remote(resources={"two": 1}, max_retries=0)
    def hang() -> None:
        begun.touch()
        time.sleep(600)

    ref = hang.remote()
    wait_until(begun.exists)
    return ref


def test_a_second_sigterm_ends_a_node_at_once(start_cluster: StartCluster, tmp_path: Path) -> None:
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(resources={"two": 1}, drain_grace=600.0)
    cluster.connect(log_to_driver=False)
    hanging = begin_to_hang(tmp_path / "begun")
    os.kill(node.pid, signal.SIGTERM)
    wait_until(lambda: row_of(cluster, node)["state"] == "draining")
    os.kill(node.pid, signal.SIGTERM)
    with pytest.raises(shoal.exceptions.WorkerCrashedError, match="it was told to"):
        shoal.get(hanging, timeout=SOON_S)


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


def test_draining_ends_at_its_deadline(start_cluster: StartCluster, tmp_path: Path) -> None:
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=2, resources={"two": 1})
    cluster.connect(log_to_driver=False)
    hanging = begin_to_hang(tmp_path / "begun")

    @shoal.remote(max_restarts=1, max_task_retries=1, num_cpus=0)
    class Homeless:
        def where(self) -> str:
            return here()

    actor = Homeless.remote()
    assert shoal.get(actor.where.remote(), timeout=SOON_S)
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


def test_what_has_its_home_on_a_node_that_drains_outlives_it(start_cluster: StartCluster, tmp_path: Path) -> None:
    """Its owners are dead or end with it, holders are elsewhere: nothing is made again, and a put, which could not be, is still there."""
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=3, resources={"two": 3}, drain_grace=600.0)
    cluster.connect(log_to_driver=False)

    @shoal.remote(resources={"two": 1})
    def make(number: int, size: int) -> bytes:
        with (tmp_path / "runs").open("a") as file:
            file.write("x")
        return bytes([number]) * size

    @shoal.remote(resources={"two": 1})
    class Owner:
        def own(self, number: int) -> list[shoal.ObjectRef]:
            refs = [make.remote(number, 300_000), make.remote(number, 3), shoal.put(bytes([number]) * 400_000)]
            shoal.wait(refs, num_returns=3)
            return refs

    owners = [Owner.remote(), Owner.remote()]
    refs = [ref for number, owner in enumerate(owners) for ref in shoal.get(owner.own.remote(number), timeout=SOON_S)]
    shoal.kill(owners[0])
    os.kill(node.pid, signal.SIGTERM)
    wait_until(lambda: row_of(cluster, node)["state"] == "draining")
    shoal.kill(owners[1])
    wait_until(lambda: not node.is_alive())
    assert "not empty" not in row_of(cluster, node)["cause"]
    values = [shoal.get(ref, timeout=SOON_S) for ref in refs]
    assert [(value[0], len(value)) for value in values] == [(i, n) for i in (0, 1) for n in (300_000, 3, 400_000)]
    assert (tmp_path / "runs").read_text() == "x" * 4
    del refs, values
    wait_until(lambda: not cluster.head.call("node.stored")["stored"])


def test_nodes_are_killed_in_the_midst_of_a_move(start_cluster: StartCluster) -> None:
    """First the node that drains: what had not left it is made again. Then the node of the owner: nobody needs its objects any more."""
    cluster = start_cluster(num_cpus=1)
    first, second = cluster.add_nodes(2, num_cpus=2, resources={"makes": 2}, drain_grace=600.0)
    owning = cluster.add_node(resources={"owns": 1})
    cluster.connect(log_to_driver=False)

    @shoal.remote(resources={"makes": 1})
    def make(number: int) -> bytes:
        return bytes([number]) * (4 << 20)

    @shoal.remote(resources={"owns": 1})
    class Owner:
        def own(self) -> None:
            self.refs = [make.remote(number) for number in range(20)]
            shoal.wait(self.refs, num_returns=20, fetch_local=False)

    def lying_at(node: ClusterNode) -> int:
        return len(node.call("node.stored")["stored"])

    refs = [make.remote(number) for number in range(30)]
    shoal.wait(refs, num_returns=30, timeout=SOON_S, fetch_local=False)
    assert lying_at(first) and lying_at(second)
    os.kill(first.pid, signal.SIGTERM)
    wait_until(lambda: lying_at(cluster.head))  # the first has arrived
    cluster.remove_node(first, kill=True)
    assert [shoal.get(ref, timeout=SOON_S)[:1] for ref in refs] == [bytes([number]) for number in range(30)]
    del refs
    owner = Owner.remote()
    shoal.get(owner.own.remote(), timeout=SOON_S)
    cluster.add_node(resources={"makes": 1})
    os.kill(second.pid, signal.SIGTERM)
    wait_until(lambda: not second.is_alive() or lying_at(owning))
    cluster.remove_node(owning, kill=True)
    wait_until(lambda: not second.is_alive())
    assert "not empty" not in row_of(cluster, second)["cause"]
    wait_until(lambda: not any(lying_at(node) for node in cluster.nodes if node.is_alive()))


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

"""Actors and overload over several nodes, and what dies: nodes, the GCS server, connections."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from shoal.protocol.limits import HEARTBEATS_MISSED_S
from shoal.runtime import core
from shoal.testing import Cluster, ClusterNode
from shoal.util import placement_group, placement_group_table, remove_placement_group
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

StartCluster = Callable[..., Cluster]
SOON_S = 60.0


@shoal.remote
class Place:
    """Where it lives, and a number that dies with the process."""

    def __init__(self) -> None:
        self.number = 0

    def node(self) -> str:
        return str(shoal.get_runtime_context().get_node_id())

    def count(self) -> int:
        self.number += 1
        return self.number

    def pid(self) -> int:
        return os.getpid()


@shoal.remote
def ask(actor: Any) -> int:
    """The actor's number, or 0."""
    return int(shoal.get(actor.count.remote())) if actor is not None else 0


@shoal.remote
def made_elsewhere() -> Any:
    """An actor on another node that the driver has not met."""
    return Place.options(num_cpus=0, resources={"out": 1}).remote()


@pytest.fixture
def three(start_cluster: StartCluster) -> tuple[Cluster, list[ClusterNode]]:
    """A head with 1 CPU, where the driver is, and two nodes of 2 CPUs."""
    cluster = start_cluster(num_cpus=1)
    nodes = [cluster.add_node(num_cpus=2, resources={"out": 10}) for _ in range(2)]
    cluster.connect(log_to_driver=False)
    return cluster, nodes


def wait_for(condition: Callable[[], Any], timeout_s: float = SOON_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
    return found


def test_actors_are_spread_over_the_nodes(three: tuple[Cluster, list[ClusterNode]]) -> None:
    cluster, nodes = three
    actors = [Place.options(num_cpus=1).remote() for _ in range(5)]
    counts = Counter(shoal.get([actor.node.remote() for actor in actors], timeout=SOON_S))
    assert counts == {cluster.head.node_id: 1, nodes[0].node_id: 2, nodes[1].node_id: 2}


def test_an_actor_restarts_on_another_node(three: tuple[Cluster, list[ClusterNode]]) -> None:
    cluster, nodes = three
    actor = Place.options(num_cpus=1, max_restarts=1, max_task_retries=-1, resources={"out": 1}).remote()
    home = shoal.get(actor.node.remote(), timeout=SOON_S)
    [dying] = [node for node in nodes if node.node_id == home]
    [other] = [node for node in nodes if node.node_id != home]
    assert shoal.get(actor.count.remote(), timeout=SOON_S) == 1
    cluster.remove_node(dying, kill=True)
    assert shoal.get(actor.count.remote(), timeout=SOON_S) == 1
    # No heartbeats need be missed: nobody listens there any more.
    [row] = [row for row in cluster.head.call("gcs.nodes")["nodes"] if row["node_id"].hex() == home]
    assert row["state"] == "dead" and "its process is gone" in row["cause"]
    assert shoal.get(actor.node.remote(), timeout=SOON_S) == other.node_id
    cluster.remove_node(other, kill=True)
    with pytest.raises(shoal.exceptions.ActorDiedError, match=r"its process is gone.*restarts are used up"):
        shoal.get(actor.count.remote(), timeout=SOON_S)


def test_named_actors_are_found_from_other_nodes(three: tuple[Cluster, list[ClusterNode]]) -> None:
    @shoal.remote(resources={"out": 1})
    def use(name: str) -> int:
        return int(shoal.get(shoal.get_actor(name).count.remote()))

    bob = Place.options(name="bob", num_cpus=0).remote()
    assert sorted(shoal.get([use.remote("bob") for _ in range(6)], timeout=SOON_S)) == [1, 2, 3, 4, 5, 6]
    assert shoal.get(bob.count.remote(), timeout=SOON_S) == 7


@shoal.remote(num_cpus=0)
class Maker:
    """An actor that names and finds others."""

    def make(self, name: str) -> str:
        self.place = Place.options(name=name).remote()
        return str(shoal.get(self.place.node.remote()))

    def finds(self, name: str) -> int:
        return int(shoal.get(shoal.get_actor(name).count.remote()))


def test_actors_of_other_nodes_know_the_namespace_of_their_job(three: tuple[Cluster, list[ClusterNode]]) -> None:
    kept = Place.options(name="ours").remote()
    for number, resources in enumerate(({}, {"out": 1})):
        maker = Maker.options(resources=resources).remote()
        assert shoal.get(maker.finds.remote("ours"), timeout=SOON_S) == number + 1
        shoal.get(maker.make.remote(f"made{number}"), timeout=SOON_S)
        assert shoal.get(shoal.get_actor(f"made{number}").count.remote(), timeout=SOON_S) == 1
    del kept


def test_more_work_than_one_node_can_do_goes_to_others(three: tuple[Cluster, list[ClusterNode]]) -> None:
    @shoal.remote
    def busy(_number: int) -> str:
        time.sleep(0.1)
        return str(shoal.get_runtime_context().get_node_id())

    counts = Counter(shoal.get([busy.remote(number) for number in range(50)], timeout=SOON_S))
    assert len(counts) == 3


def test_the_gcs_dies_and_nobody_else(three: tuple[Cluster, list[ClusterNode]]) -> None:
    cluster, _ = three
    actors = [Place.options(num_cpus=0, resources={"out": 1}).remote() for _ in range(4)]
    pids = shoal.get([actor.pid.remote() for actor in actors], timeout=SOON_S)
    os.kill(cluster.head.call("node.stats")["gcs"]["pid"], signal.SIGKILL)
    assert shoal.get([actor.pid.remote() for actor in actors], timeout=SOON_S) == pids
    late = Place.options(num_cpus=0, resources={"out": 1}).remote()
    assert shoal.get(late.count.remote(), timeout=SOON_S) == 1
    rows = wait_for(lambda: [row for row in cluster.head.call("gcs.nodes")["nodes"] if row["state"] == "alive"])
    wait_for(lambda: len([row for row in cluster.head.call("gcs.nodes")["nodes"] if row["state"] == "alive"]) == 3)
    assert {row["node_no"] for row in rows} <= {0, 1, 2}
    assert shoal.get([actor.pid.remote() for actor in actors], timeout=SOON_S) == pids


def test_a_node_that_stood_still_for_long_is_fenced_and_joins_as_a_new_one(start_cluster: StartCluster) -> None:
    """What it had lives elsewhere, in a placement group too; nothing of its former life counts when a node of its name joins."""
    cluster = start_cluster(num_cpus=1)
    nodes = [cluster.add_node(num_cpus=2, resources={"out": 10}, name=name) for name in ("first", "second")]
    cluster.connect(log_to_driver=False)
    group = placement_group([{"CPU": 1, "out": 2}])
    strategy = PlacementGroupSchedulingStrategy(group)
    there = {"num_cpus": 0, "resources": {"out": 1}, "scheduling_strategy": strategy}
    actor = Place.options(max_restarts=1, max_task_retries=1, **there).remote()
    home = shoal.get(actor.node.remote(), timeout=SOON_S)
    [frozen] = [node for node in nodes if node.node_id == home]
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        rows = lambda: {row["node_id"].hex(): row for row in cluster.head.call("gcs.nodes")["nodes"]}  # noqa: E731
        wait_for(lambda: rows()[home]["state"] == "dead")
        assert "said nothing" in rows()[home]["cause"]
        wait_for(lambda: shoal.get(actor.node.remote(), timeout=SOON_S) != home)
        other = shoal.get(actor.node.remote(), timeout=SOON_S)
        here = shoal.remote(lambda: str(shoal.get_runtime_context().get_node_id()))
        assert shoal.get(here.options(**there).remote(), timeout=SOON_S) == other
        assert [row["state"] for row in placement_group_table().values()] == ["CREATED"]
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    wait_for(lambda: not frozen.is_alive())
    assert "declared dead" in frozen.log()
    again = cluster.add_node(num_cpus=2, resources={"out": 10}, name=frozen.name)
    assert again.node_id != home
    affinity = NodeAffinitySchedulingStrategy(again.node_id, soft=False)
    assert shoal.get(here.options(scheduling_strategy=affinity).remote(), timeout=SOON_S) == again.node_id
    remove_placement_group(group)
    free = lambda node: node.call("node.resources")  # noqa: E731
    for node in (*(node for node in nodes if node is not frozen), again):
        wait_for(lambda node=node: free(node)["available"] == free(node)["total"])


def test_a_join_is_seen_everywhere_soon(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1)
    cluster.add_nodes(2, num_cpus=1)
    cluster.add_node(num_cpus=1, wait=False)
    begun = time.monotonic()
    cluster.wait_for_nodes()
    assert time.monotonic() - begun < SOON_S  # benchmarks/cluster.py measures it: this test's own questions take longer


def test_an_actor_on_a_frozen_node_holds_up_its_own_calls_alone(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=2)
    node = cluster.add_node(num_cpus=1, resources={"out": 1})
    cluster.connect(log_to_driver=False)
    actor = shoal.get(made_elsewhere.remote(), timeout=SOON_S)
    assert shoal.get(ask.remote(actor), timeout=SOON_S) == 1  # it lives; this process has not dialled it
    dials = core.current().submitter.dialler.dials
    os.kill(node.pid, signal.SIGSTOP)
    frozen_at = time.monotonic()

    def may_count_as_dead() -> bool:
        """This machine is so slow that nothing can be said."""
        return time.monotonic() - frozen_at > HEARTBEATS_MISSED_S - 1

    try:
        call = actor.count.remote()
        wait_for(lambda: dials or may_count_as_dead())
        done = 0
        while dials and done < 5:  # was a dial waited for under the lock, it would be over before the second of them
            shoal.get(ask.remote(None), timeout=SOON_S)
            done += 1
        assert done == 5 or may_count_as_dead()
        with pytest.raises((shoal.exceptions.GetTimeoutError, shoal.exceptions.ActorDiedError)) as late:
            shoal.get(call, timeout=0.2)
        assert re.search("cannot be reached|has not answered", str(late.value)) or may_count_as_dead()
    finally:
        os.kill(node.pid, signal.SIGCONT)
    if not may_count_as_dead():
        assert shoal.get(call, timeout=SOON_S) == 2  # frozen for less than DIAL_TIMEOUT_S: the dial has gone on
        assert not dials

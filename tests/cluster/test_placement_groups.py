"""Placement groups over several nodes: where bundles go, and what deaths of nodes, servers and drivers leave."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.engine.explanations import comes_to_say

import shoal
from shoal.exceptions import ActorPlacementGroupRemoved, TaskPlacementGroupRemoved
from shoal.testing import Cluster, ClusterNode
from shoal.util import get_placement_group, placement_group, placement_group_table, remove_placement_group
from shoal.util.scheduling_strategies import (
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

StartCluster = Callable[..., Cluster]
SOON_S = 60.0


def in_group(group: Any, index: int = -1, capture: bool | None = None) -> dict[str, Any]:
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index, capture)}


@shoal.remote
def where() -> str:
    return str(shoal.get_runtime_context().get_node_id())


@shoal.remote
def where_slowly() -> str:
    time.sleep(0.3)
    return str(shoal.get_runtime_context().get_node_id())


@shoal.remote(num_cpus=1)
class Resident:
    def where(self) -> str:
        return str(shoal.get_runtime_context().get_node_id())


@pytest.fixture
def three(start_cluster: StartCluster) -> tuple[Cluster, ClusterNode, ClusterNode]:
    """A head with 1 CPU, where the driver is, and two nodes of 2 CPUs."""
    cluster = start_cluster(num_cpus=1)
    first = cluster.add_node(num_cpus=2, labels={"zone": "a"}, drain_grace=600.0)
    second = cluster.add_node(num_cpus=2, labels={"zone": "b"}, drain_grace=600.0)
    cluster.connect(log_to_driver=False)
    return cluster, first, second


def nodes_of(group: Any) -> list[str]:
    return list(placement_group_table(group)["bundles_to_node_id"].values())


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def all_free(cluster: Cluster, amount: float) -> None:
    """Nothing of any group is left on any node."""
    wait_until(lambda: shoal.available_resources().get("CPU", 0) == amount, f"{shoal.available_resources()}")
    for node in cluster.nodes:
        assert node.call("node.stats")["placement_groups"]["bundles"] == 0


def test_each_bundle_on_another_node(three: tuple[Cluster, ClusterNode, ClusterNode]) -> None:
    cluster, *_ = three
    group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
    assert shoal.get(group.ready(), timeout=SOON_S) == group
    places = nodes_of(group)
    assert sorted(places) == sorted(node.node_id for node in cluster.nodes)
    for index, place in enumerate(places):
        ref = where.options(**in_group(group, index)).remote()
        assert shoal.get(ref, timeout=SOON_S) == place
        assert shoal.get(Resident.options(**in_group(group, index)).remote().where.remote(), timeout=SOON_S) == place
    refs = [where_slowly.options(**in_group(group)).remote() for _ in range(12)]
    assert set(shoal.get(refs, timeout=SOON_S)) == set(places), "any bundle: all of them work"
    remove_placement_group(group)
    all_free(cluster, 5)


def test_strategies(three: tuple[Cluster, ClusterNode, ClusterNode]) -> None:
    cluster, first, second = three
    packed = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_PACK")
    assert packed.wait(SOON_S)
    assert len(set(nodes_of(packed))) == 1 and nodes_of(packed)[0] in (first.node_id, second.node_id)
    labelled = placement_group(
        [{"CPU": 1}], bundle_label_selector=[{"zone": "a" if nodes_of(packed)[0] == second.node_id else "b"}]
    )
    assert labelled.wait(SOON_S)
    assert nodes_of(labelled) != nodes_of(packed)[:1]
    never = placement_group([{"CPU": 1}] * 4, strategy="STRICT_SPREAD")
    assert not never.wait(0.3)
    assert "4 different nodes" in placement_group_table(never)["reason"]
    node = cluster.add_node(num_cpus=1)
    again = placement_group([{"CPU": 1}], bundle_label_selector=[{"zone": "c"}])
    remove_placement_group(packed)
    remove_placement_group(labelled)
    assert never.wait(SOON_S), "a node has joined"
    assert node.node_id in nodes_of(never)
    comes_to_say(again.ready(), "with the labels")
    remove_placement_group(never)
    remove_placement_group(again)
    all_free(cluster, 6)


def test_actors_of_any_bundle_fill_all_nodes(three: tuple[Cluster, ClusterNode, ClusterNode]) -> None:
    _, first, second = three
    group = placement_group([{"CPU": 2}] * 2, strategy="SPREAD")
    assert group.wait(SOON_S)
    actors = [Resident.options(**in_group(group)).remote() for _ in range(4)]
    places = shoal.get([actor.where.remote() for actor in actors], timeout=SOON_S)
    assert sorted(places) == sorted([first.node_id, second.node_id] * 2)
    remove_placement_group(group)
    for actor in actors:
        with pytest.raises(ActorPlacementGroupRemoved):
            shoal.get(actor.where.remote(), timeout=SOON_S)


def test_children_are_captured_on_other_nodes(three: tuple[Cluster, ClusterNode, ClusterNode]) -> None:
    _, first, second = three

    @shoal.remote
    def parent() -> list[str]:
        return shoal.get([where_slowly.remote() for _ in range(6)])

    group = placement_group([{"CPU": 1}] * 2, bundle_label_selector=[{"zone": "a"}, {"zone": "b"}])
    places = shoal.get(parent.options(**in_group(group, 0, True)).remote(), timeout=SOON_S)
    assert set(places) == {first.node_id, second.node_id}


def test_a_dead_node_costs_its_bundles_and_no_others(three: tuple[Cluster, ClusterNode, ClusterNode]) -> None:
    cluster, first, second = three
    group = placement_group([{"CPU": 2}, {"CPU": 2}], strategy="STRICT_SPREAD")
    assert group.wait(SOON_S)
    index = nodes_of(group).index(second.node_id)
    actor = Resident.options(max_restarts=1, max_task_retries=-1, **in_group(group, index)).remote()
    kept = Resident.options(**in_group(group, 1 - index)).remote()
    assert shoal.get(actor.where.remote(), timeout=SOON_S) == second.node_id
    assert shoal.get(kept.where.remote(), timeout=SOON_S) == first.node_id
    slow = where_slowly.options(max_retries=5, **in_group(group, index))
    refs = [slow.remote() for _ in range(3)]
    cluster.remove_node(second, kill=True)
    wait_until(lambda: placement_group_table(group)["state"] == "RESCHEDULING", "the loss is seen")
    assert shoal.get(kept.where.remote(), timeout=SOON_S) == first.node_id
    third = cluster.add_node(num_cpus=2)
    wait_until(lambda: placement_group_table(group)["state"] == "CREATED", "the bundle has a new place")
    assert shoal.get(refs, timeout=SOON_S) == [third.node_id] * 3
    assert shoal.get(actor.where.remote(), timeout=SOON_S) == third.node_id
    remove_placement_group(group)
    all_free(cluster, 5)


def test_the_server_dies_in_between(three: tuple[Cluster, ClusterNode, ClusterNode]) -> None:
    cluster, *_ = three
    groups: list[Any] = []
    removed: list[Any] = []
    for round_no in range(4):
        for _ in range(3):
            groups.append(placement_group([{"CPU": 0.2}, {"CPU": 0.2}], strategy="SPREAD"))
        os.kill(cluster.head.call("node.stats")["gcs"]["pid"], signal.SIGKILL)
        if round_no % 2:
            removed.append(groups.pop(0))
            remove_placement_group(removed[-1])
    for group in groups:
        assert group.wait(SOON_S)
        assert (
            shoal.get(where.options(num_cpus=0.1, **in_group(group, 1)).remote(), timeout=SOON_S) == nodes_of(group)[1]
        )
    for group in removed:
        with pytest.raises(TaskPlacementGroupRemoved):
            shoal.get(group.ready(), timeout=SOON_S)
    for group in groups:
        remove_placement_group(group)
    all_free(cluster, 5)


def test_a_node_that_drains_takes_nothing_new(three: tuple[Cluster, ClusterNode, ClusterNode]) -> None:
    cluster, first, second = three
    group = placement_group([{"CPU": 1}] * 2, bundle_label_selector=[{"zone": "a"}, {"zone": "b"}])
    assert group.wait(SOON_S)
    assert shoal.get(where.options(**in_group(group, 0)).remote(), timeout=SOON_S) == first.node_id
    resident = Resident.options(num_cpus=0, **in_group(group, 1)).remote()
    assert shoal.get(resident.where.remote(), timeout=SOON_S) == second.node_id
    running = resident.where.remote()
    del resident
    cluster.remove_node(second)
    late = where.options(**in_group(group, 1)).remote()
    any_bundle = where.options(**in_group(group)).remote()
    assert shoal.get(running, timeout=SOON_S) == second.node_id, "what was there has come to its end"
    assert shoal.get(any_bundle, timeout=SOON_S) == first.node_id
    assert shoal.wait([late], timeout=0.3)[0] == []
    third = cluster.add_node(num_cpus=2, labels={"zone": "b"})
    assert shoal.get(late, timeout=SOON_S) == third.node_id


@shoal.remote(num_cpus=1, checkpoint_interval=100)
class Counter:
    count = 0

    def add(self) -> tuple[int, str]:
        self.count += 1
        return self.count, self.where()

    @shoal.method(read_only=True)
    def where(self) -> str:
        return str(shoal.get_runtime_context().get_node_id())


def test_bundles_leave_a_node_that_drains(
    three: tuple[Cluster, ClusterNode, ClusterNode], tmp_path: pathlib.Path
) -> None:
    """A task that runs there ends there; the actor and new tasks go with the bundle, while the old node still drains."""
    cluster, first, second = three
    group = placement_group([{"CPU": 2}], name="movable")
    assert group.wait(SOON_S)
    old, new = (first, second) if nodes_of(group) == [first.node_id] else (second, first)

    @shoal.remote(max_retries=0)
    def slow() -> str:
        (tmp_path / "begun").touch()
        wait_until((tmp_path / "go").exists, "it may go on")
        return str(shoal.get_runtime_context().get_node_id())

    counter = Counter.options(**in_group(group, 0)).remote()
    assert shoal.get([counter.add.remote() for _ in range(3)], timeout=SOON_S)[-1] == (3, old.node_id)
    running = slow.options(**in_group(group)).remote()
    wait_until((tmp_path / "begun").exists, "it runs")
    os.kill(old.pid, signal.SIGTERM)
    wait_until(lambda: shoal.get(counter.where.remote(), timeout=SOON_S) == new.node_id, "the actor goes too")
    assert shoal.get(counter.add.remote(), timeout=SOON_S) == (4, new.node_id)
    assert nodes_of(group) == [new.node_id] and placement_group_table(group)["state"] == "CREATED"
    assert shoal.get(where.options(**in_group(group)).remote(), timeout=SOON_S) == new.node_id
    assert old.is_alive(), "a task runs there"
    (tmp_path / "go").touch()
    assert shoal.get(running, timeout=SOON_S) == old.node_id
    wait_until(lambda: not old.is_alive(), "nobody needs it")
    os.kill(new.pid, signal.SIGTERM)
    wait_until(lambda: "drains" in placement_group_table(group)["reason"], "there is no room")
    assert placement_group_table(group)["state"] == "RESCHEDULING"
    third = cluster.add_node(num_cpus=2, wait=False)
    wait_until(lambda: shoal.get(counter.where.remote(), timeout=SOON_S) == third.node_id, "there is a place again")
    assert shoal.get(counter.add.remote(), timeout=SOON_S) == (5, third.node_id)


DRIVER = """
import sys, time, shoal
from shoal.util import placement_group
shoal.init(address=sys.argv[1], namespace="n", log_to_driver=False)
stays = placement_group([{"CPU": 1}], name="stays", lifetime="detached")
goes = placement_group([{"CPU": 1}] * 2, name="goes", strategy="STRICT_SPREAD")
never = placement_group([{"CPU": 50}], name="never")
assert stays.wait(60) and goes.wait(60)
print("ready", flush=True)
time.sleep(600)
"""


def test_a_driver_that_is_killed_leaves_only_what_is_detached(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=2)
    cluster.add_node(num_cpus=2)
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, cluster.head.node_socket], stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == "ready\n"
        driver.kill()
    cluster.connect(namespace="n", log_to_driver=False)
    states = lambda: {row["name"]: row["state"] for row in placement_group_table().values()}  # noqa: E731
    wait_until(lambda: states()["goes"] == "REMOVED", "its groups go with the job")
    assert states() == {"stays": "CREATED", "goes": "REMOVED", "never": "REMOVED"}
    group = get_placement_group("stays")
    assert shoal.get(where.options(**in_group(group, 0)).remote(), timeout=SOON_S) == nodes_of(group)[0]
    remove_placement_group(group)
    all_free(cluster, 4)


def test_affinity_labels_and_spread(three: tuple[Cluster, ClusterNode, ClusterNode]) -> None:
    cluster, first, second = three

    def run(strategy: Any) -> str:
        return str(shoal.get(where.options(scheduling_strategy=strategy).remote(), timeout=SOON_S))

    refs = [where_slowly.options(scheduling_strategy="SPREAD").remote() for _ in range(5)]
    assert len(set(shoal.get(refs, timeout=SOON_S))) >= 2
    assert run(NodeAffinitySchedulingStrategy(second.node_id, soft=False)) == second.node_id
    assert run(NodeLabelSchedulingStrategy({"zone": In("a")})) == first.node_id
    # Soft rules hold as long as there is room: workers that are kept for the next task of a kind take some.
    wait_until(lambda: shoal.available_resources().get("CPU", 0) == 5, "the workers are given back")
    assert run(NodeLabelSchedulingStrategy(soft={"zone": In("b")})) == second.node_id
    selected = where.options(label_selector={"zone": "!a"}).remote()
    assert shoal.get(selected, timeout=SOON_S) in (second.node_id, cluster.head.node_id)
    actor = Resident.options(scheduling_strategy=NodeAffinitySchedulingStrategy(first.node_id, soft=False)).remote()
    assert shoal.get(actor.where.remote(), timeout=SOON_S) == first.node_id
    gone = NodeAffinitySchedulingStrategy("00" * 16, soft=False)
    with pytest.raises(shoal.exceptions.TaskUnschedulableError, match="never part of this cluster"):
        run(gone)
    assert run(NodeAffinitySchedulingStrategy("00" * 16, soft=True))

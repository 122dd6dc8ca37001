"""A GCS of several shards: everything works as with one, and each may die."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import shoal
from shoal.testing import Cluster
from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy

StartCluster = Callable[..., Cluster]
SOON_S = 60.0


@shoal.remote
class Counter:
    def __init__(self) -> None:
        self.number = 0

    def count(self) -> int:
        self.number += 1
        return self.number


def put_and_get(cluster: Cluster, numbers: range) -> None:
    for number in numbers:
        body = {"namespace": "s", "key": b"%d" % number}
        assert cluster.nodes[number % len(cluster.nodes)].call("gcs.kv_put", **body, value=b"v") == {"added": True}
    for number in numbers:
        body = {"namespace": "s", "key": b"%d" % number}
        assert cluster.nodes[-1 - number % len(cluster.nodes)].call("gcs.kv_get", **body) == {"value": b"v"}


def test_a_cluster_with_three_shards(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1, gcs_shards=3)
    other = cluster.add_node(num_cpus=1, resources={"out": 2})
    cluster.connect(log_to_driver=False)
    counter = Counter.options(resources={"out": 1}).remote()
    assert shoal.get(counter.count.remote(), timeout=SOON_S) == 1
    functions = [shoal.remote(resources={"out": 0.01})(lambda number=number: number) for number in range(12)]
    assert shoal.get([function.remote() for function in functions], timeout=SOON_S) == list(range(12))
    put_and_get(cluster, range(30))
    shards = other.call("gcs.statistics")["shards"]
    assert [shard["kv"] for shard in shards] != [30, 0, 0] and sum(shard["kv"] for shard in shards) == 30
    assert len(other.call("gcs.kv_list", namespace="s", prefix=b"1")["keys"]) == 11
    pids = [child for child in _children(cluster.head.pid) if _title(child).startswith("shoal:gcs")]
    assert len(pids) == 3
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        assert shoal.get(counter.count.remote(), timeout=SOON_S) > 1
    put_and_get(cluster, range(100, 130))
    assert other.call("gcs.kv_del", namespace="s", key=b"", prefix=True) == {"deleted": 60}
    late = shoal.remote(resources={"out": 0.01})(lambda: "late")
    assert shoal.get(late.remote(), timeout=SOON_S) == "late"
    deadline = time.monotonic() + SOON_S
    while len(cluster.head.call("gcs.task_events")["events"]) < 13:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_shard_places_leases_and_each_may_die(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1, gcs_shards=3)
    cluster.add_nodes(2, num_cpus=2)
    cluster.connect(log_to_driver=False)

    @shoal.remote(num_cpus=0)
    def submits(count: int) -> int:
        @shoal.remote
        def slow(number: int) -> int:
            time.sleep(0.02)
            return number

        return sum(shoal.get([slow.remote(number) for number in range(count)]))

    def placed() -> list[int]:
        return [shard["scheduler"]["placed"] for shard in cluster.head.call("gcs.statistics")["shards"]]

    refs = [submits.remote(20) for _ in range(10)]
    assert shoal.get(refs, timeout=60) == [190] * 10
    assert sum(placed()[1:]) > 0
    refs = [submits.remote(40) for _ in range(10)]
    for pid in [child for child in _children(cluster.head.pid) if _title(child).startswith("shoal:gcs")]:
        time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
    assert shoal.get(refs, timeout=60) == [780] * 10


def test_groups_names_and_results_outlive_any_shard(start_cluster: StartCluster) -> None:
    """Shards die by dice while things are made; what was made once is there, once."""
    dice = random.Random(5)
    cluster = start_cluster(num_cpus=0, gcs_shards=2)
    node = cluster.add_node(num_cpus=4)
    cluster.connect(node, log_to_driver=False)

    @shoal.remote(num_cpus=0.1)
    def square(number: int) -> int:
        return number * number

    def strike() -> None:
        """Kill one, when all have answered: one that dies before it ever answers, again and again, is given up."""
        deadline = time.monotonic() + SOON_S
        while True:
            pids = [child for child in _children(cluster.head.pid) if _title(child).startswith("shoal:gcs")]
            lines = cluster.head.call("node.gcs")
            if len(pids) == 2 and lines["connected"] and lines["shards"][0]["connected"]:
                break
            assert time.monotonic() < deadline
            time.sleep(0.01)
        struck = dice.choice(pids)
        os.kill(struck, signal.SIGKILL)
        while _title(struck):  # until it is dead
            assert time.monotonic() < deadline
            time.sleep(0.001)

    counters, groups, results = [], [], []
    for number in range(3):
        counters.append(Counter.options(num_cpus=0.1, name=f"counter {number}", lifetime="detached").remote())
        if dice.random() < 0.5:
            strike()
        groups.append(shoal.util.placement_group([{"CPU": 0.1}], name=f"group {number}", lifetime="detached"))
        if dice.random() < 0.5:
            strike()
        inside = PlacementGroupSchedulingStrategy(groups[-1])
        results.append(square.options(scheduling_strategy=inside).remote(number))
        results.append(square.remote(number))
        strike()
        assert shoal.get(counters[-1].count.remote(), timeout=SOON_S) == 1
    assert shoal.get(results, timeout=SOON_S) == [number**2 for number in range(3) for _ in range(2)]
    strike()
    for number in range(3):
        assert shoal.get(shoal.get_actor(f"counter {number}").count.remote(), timeout=SOON_S) == 2
        assert shoal.util.get_placement_group(f"group {number}").id == groups[number].id
    kept = cluster.head.call("gcs.groups")["groups"]
    assert len(kept) == 3 and len(cluster.head.call("gcs.actors_list")["actors"]) == 3


def test_a_session_of_this_program_alone(tmp_path: Path) -> None:
    shoal.shutdown()
    kept = f"sqlite:{tmp_path / 'kept'}"
    try:
        shoal.init(num_cpus=1, _system={"gcs_shards": 2, "gcs_storage": kept})
        assert shoal.get(shoal.remote(lambda: 5).remote(), timeout=SOON_S) == 5
        deadline = time.monotonic() + SOON_S
        while not (tmp_path / "kept.1").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        shoal.shutdown()
    try:
        with pytest.raises(Exception, match="start with gcs_shards=2"):
            shoal.init(num_cpus=1, _system={"gcs_storage": kept})
            shoal.get(Counter.remote().count.remote(), timeout=SOON_S)
    finally:
        shoal.shutdown()


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:  # it has ended
        return ""

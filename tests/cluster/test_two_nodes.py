"""Two nodes: tasks and refs across them, and the death of one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from shoal.testing import Cluster, ClusterNode

StartCluster = Callable[..., Cluster]
SOON_S = 60.0


def here() -> str:
    return str(shoal.get_runtime_context().get_node_id())


@shoal.remote
def where(*_inputs: Any) -> str:
    return here()


def test_a_task_runs_where_its_resource_is(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, node = two
    on_two = where.options(resources={"two": 0.1})
    assert shoal.get(on_two.remote(), timeout=SOON_S) == node.node_id
    assert shoal.get([on_two.remote(number) for number in range(200)], timeout=SOON_S) == [node.node_id] * 200
    assert shoal.get(where.remote(), timeout=SOON_S) == cluster.head.node_id


def test_inputs_and_results_cross(two: tuple[Cluster, ClusterNode]) -> None:
    @shoal.remote(resources={"two": 0.1})
    def join(*parts: Any, **named: Any) -> list[Any]:
        return [*parts, *named.values()]

    @shoal.remote
    def make(number: int) -> dict[str, int]:
        return {"number": number}

    assert shoal.get(join.remote(1, shoal.put("two"), make.remote(3), four=make.remote(4)), timeout=SOON_S) == [
        1,
        "two",
        {"number": 3},
        {"number": 4},
    ]
    with pytest.raises(ZeroDivisionError):
        shoal.get(shoal.remote(lambda: 1 / 0).options(resources={"two": 0.1}).remote(), timeout=SOON_S)


def test_nested_tasks(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, node = two

    @shoal.remote(resources={"two": 0.1})
    def parent(depth: int) -> list[str]:
        if depth == 0:
            return [here()]
        return [here(), *shoal.get(parent.remote(depth - 1))]

    @shoal.remote(resources={"two": 0.1})
    def fan_out(count: int) -> set[str]:
        return set(shoal.get([where.options(num_cpus=0.5).remote() for _ in range(count)]))

    assert shoal.get(parent.remote(5), timeout=SOON_S) == [node.node_id] * 6
    assert shoal.get(fan_out.remote(50), timeout=SOON_S) <= {node.node_id, cluster.head.node_id}


def test_short_nested_tasks_reach_an_idle_neighbour(two: tuple[Cluster, ClusterNode]) -> None:
    """Their class on the node with the parents is granted a slice every few milliseconds, and still too much waits there."""
    cluster, node = two

    @shoal.remote
    def leaf() -> str:
        time.sleep(0.003)
        return here()

    @shoal.remote(resources={"two": 1})
    def parent() -> set[str]:
        return set(shoal.get([leaf.remote() for _ in range(60)]))

    deadline = time.monotonic() + SOON_S
    found: set[str] = set()
    while found != {node.node_id, cluster.head.node_id} and time.monotonic() < deadline:
        found = set().union(*shoal.get([parent.remote(), parent.remote()], timeout=SOON_S))
    assert found == {node.node_id, cluster.head.node_id}


def test_refs_cross(two: tuple[Cluster, ClusterNode]) -> None:
    @shoal.remote(resources={"two": 0.1})
    def make_refs(count: int) -> list[Any]:
        return [shoal.put(number) for number in range(count)]

    @shoal.remote(resources={"two": 0.1})
    def look(refs: list[Any]) -> list[Any]:
        return list(shoal.get(refs))

    @shoal.remote
    def look_here(refs: list[Any]) -> list[Any]:
        return list(shoal.get(refs))

    refs = shoal.get(make_refs.remote(20), timeout=SOON_S)
    assert shoal.get(refs, timeout=SOON_S) == list(range(20))
    assert shoal.get(look.remote(refs), timeout=SOON_S) == list(range(20))
    assert shoal.get(look_here.remote(refs), timeout=SOON_S) == list(range(20))
    mine = [shoal.put(str(number)) for number in range(20)]
    assert shoal.get(look.remote(mine), timeout=SOON_S) == [str(number) for number in range(20)]
    slow = shoal.remote(lambda: time.sleep(0.3) or "slow").remote()
    assert shoal.get(look.remote([slow]), timeout=SOON_S) == ["slow"]
    nested = shoal.put([refs, mine])
    assert shoal.get(look.remote([nested]), timeout=SOON_S)[0][0] == refs


def test_a_time_out_says_what_is_missing(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, node = two
    on_two = shoal.remote(lambda: bytes(200_000)).options(resources={"two": 0.1})

    @shoal.remote(resources={"two": 0.1}, max_restarts=1, max_task_retries=-1)
    class OnTwo:
        def there(self) -> bool:
            return True

    actor, lost = OnTwo.remote(), on_two.remote()
    assert shoal.get(actor.there.remote(), timeout=SOON_S)
    shoal.wait([lost], timeout=SOON_S, fetch_local=False)
    cluster.remove_node(node, kill=True)
    cluster.wait_for_nodes(1)
    for ref in (on_two.remote(), lost, actor.there.remote()):
        text, deadline = "", time.monotonic() + SOON_S
        while "0.1 two" not in text and time.monotonic() < deadline:
            with pytest.raises(shoal.exceptions.GetTimeoutError) as late:
                shoal.get(ref, timeout=0.1)
            text = str(late.value)
        assert "no node that is there now can give that" in text


def test_a_node_that_dies_costs_a_retry(start_cluster: StartCluster, tmp_path: Any) -> None:
    cluster = start_cluster(num_cpus=1)
    first = cluster.add_node(num_cpus=2, resources={"two": 2})
    cluster.connect(log_to_driver=False)
    marks = tmp_path

    @shoal.remote(resources={"two": 1}, max_retries=2)
    def once(number: int) -> str:
        (marks / f"{number}.{os.getpid()}").touch()
        if len(list(marks.glob(f"{number}.*"))) == 1:
            time.sleep(600)
        return here()

    refs = [once.remote(number) for number in range(2)]
    deadline = time.monotonic() + SOON_S
    while len(list(marks.iterdir())) < 2:
        assert time.monotonic() < deadline, "the tasks do not run"
        time.sleep(0.01)
    cluster.remove_node(first, kill=True)
    second = cluster.add_node(num_cpus=2, resources={"two": 2}, wait=False)
    assert shoal.get(refs, timeout=SOON_S) == [second.node_id] * 2
    cluster.wait_for_nodes(2)

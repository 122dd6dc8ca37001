"""Actors of a cluster: placed where their resources are, called from everywhere, restarted elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorDiedError
from shoal.testing import Cluster, ClusterNode

StartCluster = Callable[..., Cluster]
SOON_S = 60.0


def here() -> str:
    return str(shoal.get_runtime_context().get_node_id())


@shoal.remote
def where() -> str:
    return here()


@shoal.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.count = start

    def add(self, more: int = 1) -> int:
        self.count += more
        return self.count

    def slow(self, seconds: float) -> int:
        time.sleep(seconds)
        return self.count

    def where(self) -> str:
        return here()

    def where_from_task(self) -> list[str]:
        """Where a task that this actor submits runs, with node 2's resource and without."""
        return [shoal.get(where.options(resources={"two": 0.1}).remote()), shoal.get(where.remote())]


def test_an_actor_on_the_other_node(two: tuple[Cluster, ClusterNode]) -> None:
    _, node = two
    counter = Counter.options(resources={"two": 0.1}).remote(10)
    assert shoal.get(counter.where.remote(), timeout=SOON_S) == node.node_id
    assert shoal.get([counter.add.remote() for _ in range(100)], timeout=SOON_S) == list(range(11, 111))
    assert shoal.get(counter.where_from_task.remote(), timeout=SOON_S)[0] == node.node_id

    @shoal.remote
    def call(handle: Any) -> int:
        return int(shoal.get(handle.add.remote(1000)))

    assert shoal.get(call.remote(counter), timeout=SOON_S) == 1110
    assert shoal.get(call.options(resources={"two": 0.1}).remote(counter), timeout=SOON_S) == 2110
    local = Counter.remote()
    assert shoal.get(call.options(resources={"two": 0.1}).remote(local), timeout=SOON_S) == 1000
    shoal.kill(counter)
    with pytest.raises(ActorDiedError):
        shoal.get(counter.add.remote(), timeout=SOON_S)


def test_named_actors_are_the_clusters(two: tuple[Cluster, ClusterNode]) -> None:
    _, node = two
    Counter.options(name="counter", lifetime="detached", resources={"two": 0.1}).remote(5)

    @shoal.remote(resources={"two": 0.1})
    def add() -> int:
        return int(shoal.get(shoal.get_actor("counter").add.remote()))

    assert shoal.get(add.remote(), timeout=SOON_S) == 6
    assert shoal.get(shoal.get_actor("counter").where.remote(), timeout=SOON_S) == node.node_id


def test_actors_restart_elsewhere(start_cluster: StartCluster) -> None:
    cluster = start_cluster(num_cpus=1)
    first = cluster.add_node(num_cpus=2, resources={"two": 2})
    cluster.connect(log_to_driver=False)
    counter = Counter.options(resources={"two": 0.001}, max_restarts=1, max_task_retries=3).remote(3)
    fragile = Counter.options(resources={"two": 0.001}).remote(3)
    assert shoal.get([counter.add.remote(), fragile.add.remote()], timeout=SOON_S) == [4, 4]
    slow = counter.slow.remote(1.0)
    cluster.remove_node(first, kill=True)
    second = cluster.add_node(num_cpus=2, resources={"two": 2}, wait=False)
    with pytest.raises(ActorDiedError):
        shoal.get(fragile.add.remote(), timeout=SOON_S)
    assert shoal.get(counter.where.remote(), timeout=SOON_S) == second.node_id
    assert shoal.get(slow, timeout=SOON_S) == 3, "its state began anew"


def test_many_actors_everywhere(two: tuple[Cluster, ClusterNode]) -> None:
    """Actors on both nodes call each other."""

    @shoal.remote(num_cpus=0)
    class Friend:
        def meet(self, others: list[Any]) -> None:
            self.others = others

        def name(self) -> str:
            return here()

        def ask_all(self) -> list[str]:
            return list(shoal.get([other.name.remote() for other in self.others]))

    _, node = two
    friends = [Friend.options(resources={"two": 0.01} if number % 2 else {}).remote() for number in range(8)]
    names = shoal.get([friend.name.remote() for friend in friends], timeout=SOON_S)
    assert set(names[1::2]) == {node.node_id}
    shoal.get([friend.meet.remote(friends[:number] + friends[number + 1 :]) for number, friend in enumerate(friends)])
    for number, friend in enumerate(friends):  # one after the other: two that ask each other would wait for ever
        assert shoal.get(friend.ask_all.remote(), timeout=SOON_S) == names[:number] + names[number + 1 :]

"""Actors with checkpoints, and what they refer to on other nodes: it is there for their next life, or the actor says that it is not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.exceptions import ActorDiedError, ObjectLostError
from shoal.testing import Cluster
from shoal.testing.cluster import ClusterNode

StartCluster = Callable[..., Cluster]
SOON_S = 60.0


def get(refs: Any) -> Any:
    return shoal.get(refs, timeout=SOON_S)


@shoal.remote(num_cpus=0, resources={"far": 0.1})
def made(number: int) -> Any:
    return np.full(30_000, number)


@shoal.remote(num_cpus=0, resources={"here": 0.1}, checkpoint_interval=100)
class Sums:
    """Adds what it is given, itself or by a ref."""

    def __init__(self) -> None:
        self.total = 0
        self.refs: list[Any] = []

    def add(self, values: Any) -> int:
        self.total += int(values[0])
        return self.total

    def look(self, refs: list[Any]) -> int:
        self.refs += refs
        self.total += int(shoal.get(refs[0])[0])
        return self.total

    def look_if_there(self, refs: list[Any]) -> int:
        try:
            self.look(refs)
        except ObjectLostError:
            self.total += 1000
        return self.total

    def look_and_die(self, refs: list[Any], died: Path) -> int:
        self.look_if_there(refs)
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.total

    def look_when(self, begun: Path, go: Path, refs: list[Any]) -> int:
        begun.touch()
        while not go.exists():
            time.sleep(0.01)
        return self.look(refs)

    @shoal.method(read_only=True)
    def process(self) -> int:
        return os.getpid()


@shoal.remote(num_cpus=0, checkpoint_interval=100)
class Account:
    def __init__(self) -> None:
        self.balance = 0

    def book(self, amount: int) -> int:
        self.balance += amount
        return self.balance


@shoal.remote(num_cpus=0, resources={"out": 1}, checkpoint_interval=3)
class Bank:
    """Has the only refs and handles of what it is given, and of what it makes."""

    def __init__(self) -> None:
        self.refs: list[Any] = []
        self.accounts: list[Any] = []

    def take(self, refs: list[Any], accounts: list[Any]) -> None:
        assert [int(values[0]) for values in shoal.get(refs)] == [3]
        self.refs += refs
        self.accounts += accounts

    def make(self, number: int) -> None:
        self.refs.append(made.remote(number))
        self.accounts.append(Account.remote())
        assert int(shoal.get(self.refs[-1])[0]) == number

    def hand(self, sums: Any, begun: Path, go: Path) -> None:
        sums.look_when.remote(begun, go, [shoal.put(np.full(30_000, 50))])

    def book(self, amount: int) -> list[int]:
        return list(shoal.get([account.book.remote(amount) for account in self.accounts]))

    @shoal.method(read_only=True)
    def values(self) -> list[int]:
        return [int(values[0]) for values in shoal.get(self.refs)]

    @shoal.method(read_only=True)
    def node(self) -> str:
        return str(shoal.get_runtime_context().get_node_id())


def node_of(cluster: Cluster, bank: Any) -> ClusterNode:
    node_id = get(bank.node.remote())
    return next(node for node in cluster.nodes if node.node_id == node_id)


def held_for_logs(cluster: Cluster) -> int:
    return sum(node.call("node.stats")["actors"]["log_holds_kept"] for node in cluster.nodes)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def replaced(cluster: Cluster, node: ClusterNode, **options: Any) -> ClusterNode:
    """Kill a node; another one like it."""
    cluster.remove_node(node, kill=True)
    return cluster.add_node(num_cpus=1, **options)


def test_what_is_lost_is_made_anew_or_said(start_cluster: StartCluster, tmp_path: Path) -> None:
    cluster = start_cluster(num_cpus=1, resources={"here": 1})
    options: dict[str, Any] = {"resources": {"far": 1}}
    far = cluster.add_node(num_cpus=1, **options)
    cluster.connect(log_to_driver=False)
    sums = Sums.remote()
    assert get(sums.add.remote([1])) == 1

    # An argument is lost: its call is made when it was made anew, and those behind it do not wait.
    argument = made.remote(20)
    shoal.wait([argument], fetch_local=False)
    far = replaced(cluster, far, **options)
    assert sorted(get([sums.add.remote(argument), sums.add.remote([300])])) in ([301, 321], [21, 321])

    # A loss that a call has met with belongs to what it did: it is not asked for again.
    kept, lost = made.options(max_retries=0).remote(1), made.options(max_retries=0).remote(5)
    shoal.wait([kept, lost], num_returns=2, fetch_local=False)
    assert get(sums.look.remote([kept])) == 322
    far = replaced(cluster, far, **options)
    assert get(sums.look_if_there.remote([lost])) == 1322
    os.kill(get(sums.process.remote()), signal.SIGKILL)
    assert get(sums.add.remote([1])) == 1323
    assert get(sums.look_and_die.remote([lost], tmp_path / "died")) == 2323, "also when it was killed within that call"

    # One that it had not met with ends the actor: its state cannot be had again.
    lost, beside = made.options(max_retries=0).remote(7), made.options(max_retries=0).remote(8)
    shoal.wait([beside], fetch_local=False)
    assert get(sums.look_if_there.remote([lost])) == 2330
    replaced(cluster, far, **options)
    with pytest.raises(ObjectLostError):
        get(beside)  # until the death is known here there is a copy of the other one
    os.kill(get(sums.process.remote()), signal.SIGKILL)
    with pytest.raises(ActorDiedError, match=r"(?s)call \d+, Sums.look_if_there, .*could not be had"):
        get(sums.add.remote([1]))


def test_what_only_an_actor_refers_to_outlives_its_node(start_cluster: StartCluster, tmp_path: Path) -> None:
    """Killed with records since the checkpoint, then drained; in the end nothing is held. A call that it has made waits for what it had put."""
    cluster = start_cluster(num_cpus=1, resources={"far": 1, "here": 1})
    cluster.add_nodes(2, num_cpus=1, resources={"out": 1})
    cluster.connect(log_to_driver=False)
    bank = Bank.remote()
    get(bank.take.remote([made.remote(3)], [Account.options(resources={"here": 0.1}).remote()]))
    get(bank.make.remote(4))
    assert get([bank.book.remote(1) for _ in range(2)])[-1] == [2, 2]
    sums, begun, go = Sums.remote(), tmp_path / "begun", tmp_path / "go"
    get(bank.hand.remote(sums, begun, go))
    wait_until(begun.exists)
    cluster.remove_node(node_of(cluster, bank), kill=True)
    go.touch()
    assert get(sums.add.remote([1])) == 51
    assert get(bank.book.remote(1)) == [3, 3]
    assert get(bank.values.remote()) == [3, 4]

    cluster.add_node(num_cpus=1, resources={"out": 1})
    cluster.remove_node(node_of(cluster, bank))
    assert get(bank.book.remote(1)) == [4, 4]
    assert get(bank.values.remote()) == [3, 4]

    assert held_for_logs(cluster) > 0
    del bank, sums
    wait_until(lambda: held_for_logs(cluster) == 0)
    wait_until(lambda: not any(node.call("node.objects")["objects"] for node in cluster.nodes))

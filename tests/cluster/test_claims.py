"""The owner of tasks that run on another node is killed, or its node: they go on, and nothing of them runs twice.

Each task notes that it runs, and waits until it may end. `parent`, on the node that has the resource "owner", submits to the one that has "worker",
and hands the refs to the driver on the head.
"""

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
from shoal.exceptions import OwnerDiedError, TaskCancelledError
from shoal.testing import Cluster, ClusterNode

StartCluster = Callable[..., Cluster]
SOON_S = 60.0
ITEM = 300_000


def note(folder: str, name: str) -> None:
    with open(os.path.join(folder, "runs"), "a") as file:
        file.write(name + "\n")


def runs(folder: Path) -> dict[str, int]:
    names = (folder / "runs").read_text().split()
    return {name: names.count(name) for name in names}


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def result_of(kind: str) -> Any:
    if kind == "large":
        return np.full(ITEM, 7.0)
    return [shoal.put(np.full(ITEM, 7.0))] if kind == "refs" else 7


def number_in(value: Any) -> float:
    if isinstance(value, list):
        value = shoal.get(value[0], timeout=SOON_S)
    return float(value[0]) if isinstance(value, np.ndarray) else float(value)


@shoal.remote(resources={"worker": 1}, num_cpus=0)
def child(folder: str, name: str, kind: str) -> Any:
    note(folder, name)
    if kind != "ended":
        wait_for(os.path.join(folder, "go"))
    return result_of("large" if kind == "ended" else kind)


@shoal.remote(resources={"worker": 1}, num_cpus=0, num_returns=2)
def failing(folder: str, name: str, kind: str) -> Any:
    note(folder, name)
    wait_for(os.path.join(folder, "go"))
    raise ValueError("on purpose")


@shoal.remote(resources={"worker": 1}, num_cpus=0)
class Actor:
    def run(self, folder: str, name: str) -> int:
        note(folder, name)
        wait_for(os.path.join(folder, "go"))
        return 7


@shoal.remote(resources={"owner": 1}, num_cpus=0)
def parent(folder: str, actor: Any) -> list[Any]:
    """Long tasks of each kind, one that has ended, and a call; owned by this process, which lives on."""
    refs = [child.remote(folder, kind, kind) for kind in ("small", "large", "refs", "ended")]
    refs += [child.options(max_retries=0).remote(folder, "once", "once"), actor.run.remote(folder, "call")]
    refs += failing.remote(folder, "failing", "")
    shoal.wait([refs[3]], timeout=SOON_S, fetch_local=False)
    Path(folder, "pid-").write_text(str(os.getpid()))
    os.rename(os.path.join(folder, "pid-"), os.path.join(folder, "pid"))
    return refs


NAMES = ["small", "large", "refs", "ended", "once", "call", "failing"]


@pytest.fixture
def three(start_cluster: StartCluster) -> tuple[Cluster, ClusterNode, ClusterNode]:
    """The head with the driver, the node of the owners, and the node of the workers."""
    cluster = start_cluster(num_cpus=2)
    owner = cluster.add_node(resources={"owner": 4}, wait=False)
    worker = cluster.add_node(resources={"worker": 32}, wait=False)
    cluster.wait_for_nodes()
    cluster.connect(log_to_driver=False)
    return cluster, owner, worker


def begin(folder: Path) -> list[Any]:
    """All of it runs, and the driver has the refs."""
    folder.mkdir()
    refs = shoal.get(parent.remote(str(folder), Actor.remote()), timeout=SOON_S)
    wait_until(lambda: (folder / "pid").exists() and len(runs(folder)) == len(NAMES))
    return refs


def pid_of(folder: Path) -> int:
    return int((folder / "pid").read_text())


def check(folder: Path, refs: list[Any], cancelled: int = -1) -> None:
    """Every ref has its value, but one perhaps, and everything has run once."""
    (folder / "go").touch()
    assert [number_in(shoal.get(ref, timeout=SOON_S)) for ref in refs[:6] if ref is not refs[cancelled]] == [7.0] * (
        5 if cancelled >= 0 else 6
    )
    for ref in refs[6:]:
        with pytest.raises(ValueError, match="on purpose"):
            shoal.get(ref, timeout=SOON_S)
    assert runs(folder) == dict.fromkeys(NAMES, 1)


def wait_for_claims(node: ClusterNode) -> None:
    """All its workers have said what they have of the dead owner: all but what had ended."""

    def are_told() -> bool:
        counts = node.call("node.stats")["objects"]
        return counts["claims"] >= len(NAMES) - 1 and not counts["estates_asked"]

    wait_until(are_told)


def cancel(ref: Any, force: bool) -> None:
    """What a dead owner had running is cancelled."""
    shoal.cancel(ref, force=force)
    with pytest.raises(
        TaskCancelledError, match="child was cancelled by killing" if force else "cancelled while it ran"
    ):
        shoal.get(ref, timeout=SOON_S)


def test_an_owner_is_frozen_and_another_is_killed(
    three: tuple[Cluster, ClusterNode, ClusterNode], tmp_path: Path
) -> None:
    """One stands still, with its daemon for a moment, as behind a partition that heals: nobody adopts from it, though its tasks have ended."""
    _, owner, worker = three
    folder = tmp_path / "frozen"
    refs = begin(folder)
    os.kill(pid_of(folder), signal.SIGSTOP)
    try:
        (folder / "go").touch()
        os.kill(owner.pid, signal.SIGSTOP)
        ready, _ = shoal.wait([refs[0]], timeout=0.5)
        os.kill(owner.pid, signal.SIGCONT)
        assert not ready and not shoal.wait([refs[0]], timeout=0.5)[0], "it is waited for"
        assert runs(folder) == dict.fromkeys(NAMES, 1)
    finally:
        os.kill(pid_of(folder), signal.SIGCONT)
    check(folder, refs)

    folder = tmp_path / "killed"
    refs = begin(folder)
    os.kill(pid_of(folder), signal.SIGKILL)
    wait_for_claims(worker)
    cancel(refs[0], False)
    check(folder, refs, cancelled=0)


def test_the_node_of_the_owner_dies_and_then_the_claimer_too(
    three: tuple[Cluster, ClusterNode, ClusterNode], tmp_path: Path
) -> None:
    """With both nodes gone, what may run again does, on the node that comes in their place; what may not says why."""
    cluster, owner, worker = three
    folder = tmp_path / "owner"
    refs = begin(folder)
    cluster.remove_node(owner, kill=True)
    wait_for_claims(worker)
    cancel(refs[1], True)
    check(folder, refs, cancelled=1)

    owner = cluster.add_node(resources={"owner": 1})
    folder = tmp_path / "both"
    refs = begin(folder)
    cluster.remove_node(owner, kill=True)
    cluster.remove_node(worker, kill=True)
    cluster.add_node(resources={"worker": 8})
    (folder / "go").touch()
    assert [number_in(shoal.get(ref, timeout=SOON_S)) for ref in refs[:4]] == [7.0] * 4
    with pytest.raises(OwnerDiedError, match="max_retries=0"):
        shoal.get(refs[4], timeout=SOON_S)
    assert runs(folder)["once"] == 1

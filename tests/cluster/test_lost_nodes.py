"""A node dies with what lay in its store: whoever needs it gets it, made anew on another node."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.exceptions import ObjectReconstructionFailedError
from shoal.testing import Cluster, ClusterNode

StartCluster = Callable[..., Cluster]
SOON_S = 40.0
ITEM = 250_000


def note(path: str, name: str) -> None:
    with open(path, "a") as file:
        file.write(name + "\n")


def runs(path: Path, name: str) -> int:
    return path.read_text().split().count(name) if path.exists() else 0


def here() -> str:
    return str(shoal.get_runtime_context().get_node_id())


@shoal.remote(resources={"gripper": 1})
def made(path: str, name: str, number: float, *inputs: Any) -> Any:
    note(path, name)
    return np.full(ITEM, number) + sum(value[0] for value in inputs)


@shoal.remote
def first_of(value: Any) -> float:
    return float(value[0])


@shoal.remote
def first_inside(refs: Any) -> float:
    return float(shoal.get(refs[0])[0])


@pytest.fixture
def two(start_cluster: StartCluster) -> tuple[Cluster, ClusterNode]:
    """A head with the driver, and a node that has the resource which `made` asks for."""
    cluster = start_cluster(num_cpus=2)
    node = cluster.add_node(num_cpus=2, resources={"gripper": 4})
    cluster.connect(log_to_driver=False)
    return cluster, node


def replace(cluster: Cluster, node: ClusterNode) -> ClusterNode:
    """Kill a node, and give the cluster another one like it."""
    cluster.remove_node(node, kill=True)
    return cluster.add_node(num_cpus=2, resources={"gripper": 4})


def test_results_are_made_anew(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path = tmp_path / "runs"
    first = made.remote(str(path), "first", 1.0)
    second = made.remote(str(path), "second", 10.0, first)
    shoal.wait([second], timeout=SOON_S, fetch_local=False)
    replace(cluster, node)
    assert shoal.get(second, timeout=SOON_S)[0] == 11
    assert shoal.get(first, timeout=SOON_S)[0] == 1
    assert runs(path, "first") == runs(path, "second") == 2


def test_a_freed_input_is_made_anew_too(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path = tmp_path / "runs"
    first = made.remote(str(path), "first", 1.0)
    second = made.remote(str(path), "second", 10.0, first)
    shoal.wait([second], timeout=SOON_S, fetch_local=False)
    del first
    replace(cluster, node)
    assert shoal.get(second, timeout=SOON_S)[0] == 11
    assert runs(path, "first") == runs(path, "second") == 2


def test_a_task_elsewhere_finds_its_argument_lost(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path = tmp_path / "runs"
    ref = made.remote(str(path), "a", 7.0)
    shoal.wait([ref], timeout=SOON_S, fetch_local=False)
    replace(cluster, node)
    assert shoal.get([first_of.remote(ref) for _ in range(4)], timeout=SOON_S) == [7.0] * 4
    assert runs(path, "a") == 2


def test_borrowers_find_it_lost(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path = tmp_path / "runs"
    ref = made.remote(str(path), "a", 7.0)
    shoal.wait([ref], timeout=SOON_S, fetch_local=False)
    replace(cluster, node)
    assert shoal.get([first_inside.remote([ref]) for _ in range(3)], timeout=SOON_S) == [7.0] * 3
    assert shoal.get(first_inside.options(resources={"gripper": 1}).remote([ref]), timeout=SOON_S) == 7
    assert runs(path, "a") == 2


def test_a_chain_that_runs_while_its_node_dies(two: tuple[Cluster, ClusterNode], tmp_path: Path) -> None:
    cluster, node = two
    path = tmp_path / "runs"
    ref = made.remote(str(path), "0", 0.0)
    for number in range(1, 40):
        ref = made.remote(str(path), str(number), 1.0, ref)
    time.sleep(0.5)
    replace(cluster, node)
    assert shoal.get(ref, timeout=SOON_S)[0] == 39


def test_a_put_says_why_not(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, node = two

    @shoal.remote(resources={"gripper": 1}, max_retries=0)
    def once() -> Any:
        return np.zeros(ITEM)

    ref = once.remote()
    shoal.wait([ref], timeout=SOON_S, fetch_local=False)
    replace(cluster, node)
    with pytest.raises(ObjectReconstructionFailedError, match=r"(?s)once\(\).*node.*max_retries=0"):
        shoal.get(ref, timeout=SOON_S)

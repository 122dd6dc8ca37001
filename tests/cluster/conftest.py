"""Clusters for tests: ended whatever happens, and nothing of them may be left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shoal
from shoal.testing import Cluster, ClusterNode


@pytest.fixture
def start_cluster() -> Iterator[Callable[..., Cluster]]:
    """`start_cluster(**options of Cluster)`."""
    shoal.shutdown()
    started: list[Cluster] = []
    folders: list[str] = []

    def start(**options: Any) -> Cluster:
        cluster = Cluster(**options)
        started.append(cluster)
        return cluster

    yield start
    for cluster in started:
        folders += [node.session_dir for node in cluster.nodes]
        cluster.shutdown()
    shoal.shutdown()
    assert [folder for folder in folders if os.path.exists(folder)] == []


@pytest.fixture
def two(start_cluster: Callable[..., Cluster]) -> tuple[Cluster, ClusterNode]:
    """A head with 1 CPU, where the driver is, and a node of 2 CPUs with the resource "two"."""
    cluster = start_cluster(num_cpus=1)
    node = cluster.add_node(num_cpus=2, resources={"two": 2})
    cluster.connect(log_to_driver=False)
    return cluster, node

"""Joining a cluster and leaving it: who is there, and what a wrong way in says."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import shoal
from shoal.launch.nodes import NodeOptions, NodeStartError, start_node
from shoal.system.process import open_pidfd, wait_readable
from shoal.system.token_file import make_token
from shoal.testing import Cluster

StartCluster = Callable[..., Cluster]


@pytest.fixture
def token_of_somebody(tmp_path: Path) -> str:
    """The token of no cluster that runs."""
    return make_token(str(tmp_path / "somebody" / "token"))


def test_a_driver_joins_by_address(start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = start_cluster(num_cpus=2)
    for environment, address in (
        ({}, cluster.address),
        ({}, f"localhost:{cluster.address.rpartition(':')[2]}"),
        ({}, cluster.head.node_socket),
        ({"SHOAL_ADDRESS": cluster.address}, None),
        ({"RAY_ADDRESS": cluster.address}, None),
    ):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            context = shoal.init(address, namespace="mine")
            assert context["gcs_address"] == cluster.address
            assert shoal.get_runtime_context().gcs_address == cluster.address
            assert shoal.get_runtime_context().get_node_id() == cluster.head.node_id
            assert shoal.get(shoal.remote(lambda: shoal.get_runtime_context().gcs_address).remote()) == cluster.address
            shoal.shutdown()
            assert cluster.head.is_alive(), "the node outlives a session"


def test_options_of_a_node_that_runs_already(start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = start_cluster()
    with pytest.raises(ValueError, match=r"num_cpus=3.*runs already.*address=\"local\""):
        shoal.init(cluster.address, num_cpus=3)
    monkeypatch.setenv("SHOAL_ADDRESS", cluster.address)
    with pytest.warns(UserWarning, match=r"num_cpus=3.*SHOAL_ADDRESS.*ignored"):
        shoal.init(num_cpus=3)
    assert shoal.cluster_resources()["CPU"] == 1


def test_nobody_at_the_address(token_of_somebody: str) -> None:
    shoal.shutdown()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=r"no node of the cluster at .*Nobody answers.*shoal start --head"):
            shoal.init(address)
        with pytest.raises(ConnectionError, match=r"nobody answers at .*refused"):
            start_node(NodeOptions(token_path=token_of_somebody), address)
    for nonsense in ("nowhere", "host:port", "host:99999"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            shoal.init(nonsense)


def test_a_node_needs_the_token(start_cluster: StartCluster, token_of_somebody: str, tmp_path: Path) -> None:
    cluster = start_cluster()
    assert stat.S_IMODE(os.stat(cluster.token_path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(cluster.token_path)).st_mode) == 0o700
    with pytest.raises(ConnectionError, match=r"does not belong to this cluster.*another cluster's token"):
        start_node(NodeOptions(token_path=token_of_somebody), cluster.address)
    with pytest.raises(FileNotFoundError, match=r"no cluster token.*copy that file"):
        start_node(NodeOptions(token_path=str(tmp_path / "none")), cluster.address)
    readable = tmp_path / "readable"
    readable.write_bytes(Path(cluster.token_path).read_bytes())
    readable.chmod(0o644)
    with pytest.raises(PermissionError, match=r"mode 644.*chmod 600"):
        start_node(NodeOptions(token_path=str(readable)), cluster.address)
    short = tmp_path / "short"
    short.touch(0o600)
    short.write_text("secret")
    with pytest.raises(ValueError, match="no cluster token"):
        start_node(NodeOptions(token_path=str(short)), cluster.address)


def test_a_port_that_is_taken(start_cluster: StartCluster) -> None:
    cluster = start_cluster()
    port = int(cluster.address.rpartition(":")[2])
    with pytest.raises(
        NodeStartError, match=r"cannot listen on 127.0.0.1:\d+.*another program listens there.*choose another port"
    ) as taken:
        Cluster(port=port)
    assert "log" not in str(taken.value), "the sentence says all"
    with pytest.raises(NodeStartError, match=r"cannot listen on 192.0.2.1:\d+.*no address of this machine"):
        Cluster(host="192.0.2.1")


def test_somebody_silent_at_the_address(token_of_somebody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.launch.nodes.CONNECT_TIMEOUT_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ConnectionError, match=r"did not prove within 0\.5 s that it belongs to this cluster"):
            start_node(NodeOptions(token_path=token_of_somebody), f"127.0.0.1:{silent.getsockname()[1]}")


def test_a_cluster_ends_with_its_process() -> None:
    """Also when that process is killed."""
    program = """
import os, signal
from shoal.testing import Cluster
cluster = Cluster()
node = cluster.add_node(wait=False)
print(cluster.head.pid, node.pid, cluster.head.session_dir, node.session_dir, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    *pids, first, second = result.stdout.split()
    for pid in pids:
        _wait_gone(int(pid))
    assert not os.path.exists(first)
    assert not os.path.exists(second)


def _wait_gone(pid: int) -> None:
    pidfd = open_pidfd(pid)
    if pidfd >= 0:
        assert wait_readable(pidfd, 5.0), f"process {pid} is left"
        os.close(pidfd)

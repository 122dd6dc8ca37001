"""Clusters whose nodes speak TLS: everything works through the gateways, and nobody else gets in."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import shoal
from shoal.launch.nodes import NodeOptions, start_node
from shoal.node.io import tls_process
from shoal.system.tls_files import find_tls_files, make_tls_files
from shoal.system.token_file import cluster_token
from shoal.testing import Cluster, ClusterNode
from shoal.wire.tcp import connect_authenticated, set_options
from shoal.wire.tls import client_context, dial_through, server_context

StartCluster = Callable[..., Cluster]
SOON_S = 60.0
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command makes the certificates")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cluster's certificates."""
    path = str(tmp_path_factory.mktemp("tls"))
    make_tls_files(path)
    return path


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Those of another cluster."""
    path = str(tmp_path_factory.mktemp("other"))
    make_tls_files(path)
    return path


@pytest.fixture
def two(start_cluster: StartCluster, folder: str) -> tuple[Cluster, ClusterNode]:
    cluster = start_cluster(tls_folder=folder, num_cpus=1)
    node = cluster.add_node(num_cpus=2, resources={"two": 2})
    cluster.connect(log_to_driver=False)
    return cluster, node


def listeners(cluster: Cluster) -> list[str]:
    """The addresses on which a cluster listens."""
    return [cluster.address, *(node._started.ready["node_address"] for node in cluster.nodes)]


def test_everything_crosses(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, node = two

    @shoal.remote(resources={"two": 0.1})
    def there(*inputs: bytes) -> tuple[str, int]:
        return shoal.get_runtime_context().get_node_id(), sum(len(each) for each in inputs)

    @shoal.remote(resources={"two": 0.1})
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def add(self) -> int:
            self.count += 1
            return self.count

    for size in (1, 50_000, 20_000_000):
        assert shoal.get(there.remote(bytes(size)), timeout=SOON_S) == (node.node_id, size)
        made = shoal.remote(lambda size: bytes(size)).options(resources={"two": 0.1}).remote(size)
        assert len(shoal.get(made, timeout=SOON_S)) == size
    assert shoal.get([there.remote() for _ in range(300)], timeout=SOON_S) == [(node.node_id, 0)] * 300
    counter = Counter.remote()
    assert shoal.get([counter.add.remote() for _ in range(300)], timeout=SOON_S) == list(range(1, 301))
    assert shoal.get_runtime_context().gcs_address == cluster.address


def test_who_has_no_certificate_of_the_authority(two: tuple[Cluster, ClusterNode], other_folder: str) -> None:
    """Also with the token: without TLS, with TLS but no certificate, with another authority's."""
    cluster, _ = two
    token = cluster_token(cluster.token_path)
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname = False
    nobody.verify_mode = ssl.CERT_NONE
    for address in listeners(cluster):
        with pytest.raises(ConnectionError, match=r"uses TLS \(--tls\) and the other does not"):
            connect_authenticated(address, token, 5.0)
        with pytest.raises(ConnectionError, match=r"does not speak TLS.*(?i:certificate.verify.failed)"):
            connect_authenticated(address, token, 5.0, tls_folder=other_folder)
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), 5.0) as sock, pytest.raises(OSError):  # noqa: PT011
            # TLS 1.3 tells the client of its refusal only with the first bytes.
            with nobody.wrap_socket(sock) as wrapped:
                wrapped.sendall(b"SHOAL1\n")
                while wrapped.recv(100):
                    pass
                raise ConnectionResetError("it was closed")


def test_garbage_and_silence(two: tuple[Cluster, ClusterNode]) -> None:
    cluster, _ = two
    socks = []
    for address in listeners(cluster):
        host, _, port = address.rpartition(":")
        for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(1000), b"", b"\x16\x03\x01\x02\x00\x01"):
            socks.append(socket.create_connection((host, int(port)), 5.0))
            socks[-1].sendall(data)
    began = time.monotonic()
    for sock in socks:
        sock.settimeout(15.0)
        try:
            while piece := sock.recv(1000):
                assert b"SHOAL" not in piece
        except ConnectionResetError:
            pass
        sock.close()
    assert time.monotonic() - began < SOON_S
    assert shoal.get(shoal.remote(lambda: 7).options(resources={"two": 0.1}).remote(), timeout=SOON_S) == 7


def test_all_or_none(start_cluster: StartCluster, folder: str, other_folder: str) -> None:
    with_tls, plain = start_cluster(tls_folder=folder), start_cluster()
    with pytest.raises(ConnectionError, match=r"uses TLS \(--tls\) and the other does not"):
        start_node(NodeOptions(token_path=with_tls.token_path), with_tls.address)
    with pytest.raises(ConnectionError, match=r"does not speak TLS \(--tls\)"):
        start_node(NodeOptions(token_path=plain.token_path, tls_folder=folder), plain.address)
    with pytest.raises(ConnectionError, match=r"does not speak TLS.*(?i:certificate.verify.failed)"):
        start_node(NodeOptions(token_path=with_tls.token_path, tls_folder=other_folder), with_tls.address)
    with pytest.raises(FileNotFoundError, match="shoal certificates"):
        start_node(NodeOptions(token_path=with_tls.token_path, tls_folder=f"{folder}/none"), with_tls.address)


def test_a_gateway_that_is_killed(two: tuple[Cluster, ClusterNode], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one takes its place, at the same address; what was on its way is retried when it has not come back for long."""
    monkeypatch.setattr("shoal.runtime.submitter.DEATH_TOLD_WITHIN_S", 1.0)
    cluster, node = two
    where = shoal.remote(lambda: shoal.get_runtime_context().get_node_id()).options(
        resources={"two": 0.1}, max_retries=5
    )
    refs = [where.remote() for _ in range(50)]
    gateway = gateway_of(node)
    os.kill(gateway, signal.SIGKILL)
    assert shoal.get(refs + [where.remote() for _ in range(50)], timeout=SOON_S) == [node.node_id] * 100
    deadline = time.monotonic() + SOON_S
    while gateway_of(node) in (0, gateway):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    cluster.wait_for_nodes(2)
    cluster.add_node()


def gateway_of(node: ClusterNode) -> int:
    """The pid of a node's gateway; 0 while there is none."""
    for task in Path(f"/proc/{node.pid}/task").iterdir():
        for pid in (task / "children").read_text().split():
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"shoal:tls"):
                return int(pid)
    return 0


def test_only_the_line_to_the_gcs_ends_when_nothing_is_acknowledged(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that vanishes without a word is noticed by its line's gateway; peers that are slow to read keep theirs."""
    given: list[int] = []

    def note(sock: socket.socket, silent_s: float = 0.0) -> None:
        set_options(sock, silent_s)
        given.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    monkeypatch.setattr(tls_process, "set_options", note)
    door = str(tmp_path / "door")

    async def run() -> None:
        far = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=server_context(folder))
        gateway = await asyncio.start_unix_server(tls_process._Outward(client_context(folder)).accepted, door)
        port = far.sockets[0].getsockname()[1]
        for silent_s in (0.0, 12.5):
            near = await asyncio.to_thread(dial_through, door, "127.0.0.1", port, SOON_S, silent_s)
            near.close()
        for server in (gateway, far):
            server.close()

    asyncio.run(run())
    assert given == [0, 12_500]


def test_files(folder: str, tmp_path: Path) -> None:
    files = find_tls_files(folder)
    assert all(stat.S_IMODE(os.stat(path).st_mode) == 0o600 for path in (files.ca, files.certificate, files.key))
    assert sorted(os.listdir(folder)) == ["ca.pem", "node.key", "node.pem"], "the authority's key is not kept"
    client_context(folder)
    with pytest.raises(FileExistsError, match="remove the folder"):
        make_tls_files(folder)
    with pytest.raises(FileNotFoundError, match="shoal certificates"):
        find_tls_files(str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "node.key").chmod(0o640)
    with pytest.raises(PermissionError, match=r"mode 640.*chmod 600"):
        Cluster(tls_folder=str(copy))

"""Who does not belong to the cluster gets nothing out of its listeners, and cannot keep them from their work.

Every attack goes against both TCP listeners there are: the GCS server's and a node's.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

import shoal
from shoal.protocol.gcs_messages import RegisterNode
from shoal.protocol.limits import FRAME_BYTES_MAX, PROTOCOL_VERSION
from shoal.protocol.messages import Hello
from shoal.protocol.node_messages import LinkHello, OpenTransfer, RouteToWorker
from shoal.system.token_file import cluster_token
from shoal.testing import Cluster
from shoal.wire import handshake
from shoal.wire.framing import encode_frame
from shoal.wire.handshake import ClientHandshake
from shoal.wire.tcp import connect_authenticated
from shoal.wire.tcp_listener import PROOF_WITHIN_S, UNPROVED_MAX

SOON_S = 60.0
LISTENERS = ["gcs", "node"]


class Target:
    """A cluster under attack: its two listeners, and whether it is well."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.node = cluster.add_node(num_cpus=1, resources={"two": 1})
        cluster.connect(log_to_driver=False)
        self.addresses = {"gcs": cluster.address, "node": self.node._started.ready["node_address"]}
        self.token = cluster_token(cluster.token_path)
        gcs_pid = cluster.head.call("node.stats")["gcs"]["pid"]
        self.pids = {"gcs": gcs_pid, "node": self.node.pid}
        self.work()
        self.files = {name: self.open_files(name) for name in LISTENERS}

    def connect(self, listener: str) -> socket.socket:
        """A TCP connection that has said nothing yet."""
        host, _, port = self.addresses[listener].rpartition(":")
        return socket.create_connection((host, int(port)), 5.0)

    def authenticated(self, listener: str) -> socket.socket:
        """A connection of somebody who knows the token."""
        sock = connect_authenticated(self.addresses[listener], self.token, 5.0)
        sock.settimeout(10.0)
        return sock

    def open_files(self, listener: str) -> int:
        """How many descriptors the process behind a listener has."""
        return len(os.listdir(f"/proc/{self.pids[listener]}/fd"))

    def work(self) -> None:
        """The cluster does what it is for, through both listeners."""
        where = shoal.remote(lambda: shoal.get_runtime_context().get_node_id()).options(resources={"two": 0.1})
        assert shoal.get(where.remote(), timeout=SOON_S) == self.node.node_id
        assert len(shoal.nodes()) == 2

    def check(self) -> None:
        """It works as before, the same processes live, and nothing of the attack is left in them."""
        self.work()
        deadline = time.monotonic() + SOON_S
        for name in LISTENERS:
            os.kill(self.pids[name], 0)
            while self.open_files(name) > self.files[name] + 1:
                assert time.monotonic() < deadline, f"the {name} keeps files of connections that are gone"
                time.sleep(0.02)


@pytest.fixture(scope="module")
def module_cluster() -> Iterator[Target]:
    shoal.shutdown()
    with Cluster(num_cpus=1) as cluster:
        yield Target(cluster)


@pytest.fixture(params=LISTENERS)
def attack(request: pytest.FixtureRequest, module_cluster: Target) -> Iterator[tuple[Target, str]]:
    """The target and the listener to attack; afterwards the target is well."""
    yield module_cluster, request.param
    module_cluster.check()


def all_of(sock: socket.socket, timeout_s: float = 2 * PROOF_WITHIN_S) -> bytes:
    """What comes until the other side closes."""
    got = b""
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        assert left_s > 0, f"the connection stays open; it said {got!r}"
        sock.settimeout(left_s)
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return got
        if not piece:
            return got
        got += piece


MESSAGES = {
    "gcs": [
        Hello(PROTOCOL_VERSION, b"n" * 16, b"", 1),
        RegisterNode(b"n" * 16, 1, "evil", "tcp:127.0.0.1:1", {"CPU": 10_000_000}),
    ],
    "node": [LinkHello(PROTOCOL_VERSION, b"n" * 16, b"m" * 16)],
}


def test_without_a_token(attack: tuple[Target, str]) -> None:
    """Frames instead of a proof: closed at the first byte, nothing is answered, nothing happens."""
    target, listener = attack
    with target.connect(listener) as sock:
        sock.sendall(b"".join(bytes(encode_frame(message)) for message in MESSAGES[listener]))
        assert all_of(sock) == b""
    assert "evil" not in str(shoal.nodes())


def test_http_and_garbage(attack: tuple[Target, str]) -> None:
    target, listener = attack
    for data in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /api HTTP/1.1\r\nContent-Length: 4\r\n\r\n\x80\x04N.",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 100_000,
        os.urandom(100_000),
        b"SHOAL0\n" + bytes(60),
    ):
        with target.connect(listener) as sock:
            try:
                sock.sendall(data)
            except OSError:
                continue  # it was closed meanwhile
            assert all_of(sock) == b""


def test_a_wrong_token(attack: tuple[Target, str]) -> None:
    """The server does not learn the token, and the client neither; with the client's own check left out, the server refuses."""
    target, listener = attack
    with pytest.raises(ConnectionError, match="another cluster's token"):
        connect_authenticated(target.addresses[listener], b"0" * 64, 5.0)
    with target.connect(listener) as sock:
        liar = ClientHandshake(b"0" * 64)
        sock.sendall(liar.hello)
        hello = sock.recv(handshake.HELLO_BYTES)
        sock.sendall(handshake._proof(handshake._key(b"0" * 64), b"client", liar.hello, hello))
        said = all_of(sock)
        assert handshake.WELCOME not in said[handshake.PROOF_BYTES :]
        assert len(said) <= handshake.PROOF_BYTES


def test_replay(attack: tuple[Target, str]) -> None:
    """All that an eavesdropper heard of a good conversation, said again."""
    target, listener = attack
    recorded = record_conversation(target, listener)
    assert len(recorded) > handshake.HELLO_BYTES + handshake.PROOF_BYTES
    with target.connect(listener) as sock:
        sock.sendall(recorded)
        said = all_of(sock)
    assert len(said) <= handshake.HELLO_BYTES + handshake.PROOF_BYTES, "no welcome, and nothing after it"
    # The server's own proof, sent back to it in a conversation of our own.
    with target.connect(listener) as sock:
        sock.sendall(recorded[: handshake.HELLO_BYTES])
        answer = b""
        while len(answer) < handshake.HELLO_BYTES + handshake.PROOF_BYTES:
            answer += sock.recv(1024)
        sock.sendall(answer[handshake.HELLO_BYTES :])
        assert all_of(sock) == b""


def record_conversation(target: Target, listener: str) -> bytes:
    """What an honest client sends, its first frames too, seen by somebody in the middle."""
    heard = bytearray()
    with socket.socket() as middle:
        middle.bind(("127.0.0.1", 0))
        middle.listen()

        def relay() -> None:
            client, _ = middle.accept()
            with client, target.connect(listener) as server:
                while True:
                    ready, _, _ = select.select([client, server], [], [], 10.0)
                    for sock in ready:
                        data = sock.recv(65536)
                        if not data:
                            return
                        if sock is client:
                            heard.extend(data)
                        (server if sock is client else client).sendall(data)

        thread = threading.Thread(target=relay)
        thread.start()
        with connect_authenticated(f"127.0.0.1:{middle.getsockname()[1]}", target.token, 5.0) as honest:
            honest.sendall(bytes(encode_frame(MESSAGES[listener][0])))
            time.sleep(0.1)
        thread.join(SOON_S)
    return bytes(heard)


def test_a_proof_cut_short(attack: tuple[Target, str]) -> None:
    target, listener = attack
    hello = ClientHandshake(target.token).hello
    for length in range(0, len(hello) + 1, 7):
        with target.connect(listener) as sock:
            sock.sendall(hello[:length])
    with target.connect(listener) as sock:
        sock.sendall(hello + bytes(handshake.PROOF_BYTES - 1))
        sock.recv(1024)


def test_broken_frames_of_one_who_knows_the_token(attack: tuple[Target, str]) -> None:
    """Cut short, too long, no message, out of place: that connection ends, with a reason or without, and no other."""
    target, listener = attack
    frame = bytes(encode_frame(MESSAGES[listener][0]))
    for data in (
        frame[:-1],
        frame[:3],
        struct.pack("<I", FRAME_BYTES_MAX + 1) + b"x",
        struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<I", 5) + b"\xff" * 5,
        struct.pack("<I", 0),
        bytes(encode_frame(RegisterNode(b"n" * 16, 1, "evil", "addr", {}))),
        bytes(encode_frame(RouteToWorker(PROTOCOL_VERSION, b"w" * 16, b"n" * 16, b"p" * 16))),
        bytes(encode_frame(OpenTransfer(PROTOCOL_VERSION + 1, b"n" * 16))),
        bytes(encode_frame(LinkHello(PROTOCOL_VERSION, b"n" * 16, b"m" * 16))),
    ):
        with target.authenticated(listener) as sock:
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                continue
            all_of(sock)
    assert "evil" not in str(shoal.nodes())


def test_the_silent_and_the_slow(module_cluster: Target) -> None:
    """Many that say nothing, and some that say a byte now and then: closed in time, and nobody is kept out meanwhile."""
    target = module_cluster
    began = time.monotonic()
    for listener in LISTENERS:
        target.authenticated(listener).close()
    target.work()
    undisturbed_s = time.monotonic() - began
    hello = ClientHandshake(target.token).hello
    silent = [target.connect(listener) for listener in LISTENERS for _ in range(UNPROVED_MAX + 40)]
    dripping = [target.connect(listener) for listener in LISTENERS]
    began = time.monotonic()
    for listener in LISTENERS:
        target.authenticated(listener).close()
    target.work()
    assert time.monotonic() - began < PROOF_WITHIN_S + 5 * undisturbed_s, "they wait for the silent ones"
    for number in range(len(hello)):
        for sock in dripping[:]:
            if closed_after(sock, hello[number : number + 1]):
                dripping.remove(sock)
        if not dripping:
            break
        time.sleep(0.3)
    assert not dripping, "a byte now and then moves the deadline"
    for sock in silent:
        assert all_of(sock) == b""
        sock.close()
    assert time.monotonic() - began < SOON_S
    target.check()


def closed_after(sock: socket.socket, data: bytes) -> bool:
    """Whether a connection is over, seen when more is said on it."""
    sock.setblocking(False)
    try:
        sock.send(data)
        over = sock.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        over = True
    if over:
        sock.close()
    return over


def test_files_are_private(module_cluster: Target) -> None:
    """Folders are closed to others; sockets, the token and what is said of the cluster are too, each by itself."""
    cluster = module_cluster.cluster
    for node in cluster.nodes:
        for folder, _, names in os.walk(node.session_dir):
            assert os.stat(folder).st_mode & 0o077 == 0, folder
            for name in names:
                if name.endswith((".sock", ".give", ".json", ".log", "token")):
                    assert os.stat(os.path.join(folder, name)).st_mode & 0o077 == 0, name
    assert os.stat(cluster.token_path).st_mode & 0o777 == 0o600


def test_listeners_stay_on_their_address(module_cluster: Target) -> None:
    """Nothing of a cluster listens anywhere else than where it was told to."""
    ours = {pid for node in module_cluster.cluster.nodes for pid in descendants(node.pid)}
    listening = {
        connection.laddr.ip
        for pid in ours
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def descendants(pid: int) -> list[int]:
    """A process and all that came of it."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]

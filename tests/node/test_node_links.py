"""Lines between daemons: once, in order, over broken connections, until a node is dead."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop

from shoal.node.io.node_links import Arrivals, NodeLinks
from shoal.protocol.gcs_messages import ClusterNodes, NodeEntry
from shoal.protocol.limits import PROTOCOL_VERSION
from shoal.protocol.messages import ReturnLease
from shoal.protocol.node_messages import LinkHello, RouteToWorker
from shoal.wire.framing import encode_frame


class Node:
    """Links behind a plain TCP listener (the proof of the token is tested elsewhere)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: bytes) -> None:
        self.loop = loop
        self.node_id = name * 16
        self.links = NodeLinks(loop, self.node_id, self.dial)
        self.routed: list[Any] = []
        self.arrivals = Arrivals(
            loop,
            {LinkHello: self.links.accepted, RouteToWorker: lambda sock, message: self.routed.append((sock, message))},
        )
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        loop.add_reader(self.listener.fileno(), self.accept)
        self.heard: list[tuple[bytes, int]] = []
        self.dialled: list[socket.socket] = []
        self.died: list[tuple[bytes, str]] = []
        self.links.handlers[ReturnLease] = lambda sender, message: self.heard.append((sender, message.lease_id))
        self.links.on_died.append(lambda node_id, cause: self.died.append((node_id, cause)))

    def accept(self) -> None:
        self.arrivals.accepted(self.listener.accept()[0])

    def dial(self, address: str) -> socket.socket:
        _, host, port = address.split(":")
        sock = socket.create_connection((host, int(port)), 5)
        self.dialled.append(sock)
        return sock

    def entry(self, alive: bool = True) -> NodeEntry:
        port = self.listener.getsockname()[1]
        return NodeEntry(self.node_id, self.node_id[0], f"tcp:127.0.0.1:{port}", "h", {}, {}, alive, cause="killed")

    def close(self) -> None:
        self.links.close()
        self.arrivals.close()
        self.loop.remove_reader(self.listener.fileno())
        self.listener.close()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture
def pair(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[Node, Node]]:
    a, b = Node(loop, b"a"), Node(loop, b"b")
    yield a, b
    a.close()
    b.close()


def until(loop: asyncio.AbstractEventLoop, condition: Any) -> None:
    async def wait() -> None:
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it did not happen within 10 s")

    loop.run_until_complete(wait())


def introduce(a: Node, b: Node) -> None:
    a.links.on_cluster(ClusterNodes(1, [a.entry(), b.entry()]))
    b.links.on_cluster(ClusterNodes(1, [a.entry(), b.entry()]))


def test_both_speak_in_order(loop: asyncio.AbstractEventLoop, pair: tuple[Node, Node]) -> None:
    a, b = pair
    introduce(a, b)
    for number in range(1000):
        assert a.links.send(b.node_id, ReturnLease(number)) and b.links.send(a.node_id, ReturnLease(number))
    until(loop, lambda: len(a.heard) == len(b.heard) == 1000)
    assert a.heard == [(b.node_id, number) for number in range(1000)]
    assert b.heard == [(a.node_id, number) for number in range(1000)]
    until(loop, lambda: a.links.statistics()["unconfirmed"] == b.links.statistics()["unconfirmed"] == 0)


def test_what_was_said_before_the_node_was_known_arrives(
    loop: asyncio.AbstractEventLoop, pair: tuple[Node, Node]
) -> None:
    a, b = pair
    a.links.send(b.node_id, ReturnLease(1))
    introduce(a, b)
    until(loop, lambda: b.heard == [(a.node_id, 1)])


def test_broken_connections_lose_and_repeat_nothing(loop: asyncio.AbstractEventLoop, pair: tuple[Node, Node]) -> None:
    a, b = pair
    introduce(a, b)
    said = 0
    for cut in range(10):
        for _ in range(300):
            a.links.send(b.node_id, ReturnLease(said))
            said += 1
        until(loop, lambda cut=cut: len(b.heard) > 300 * cut)
        a.dialled[-1].shutdown(socket.SHUT_RDWR)
    until(loop, lambda: len(b.heard) == said)
    assert [number for _, number in b.heard] == list(range(said))


def test_a_dead_node_is_told_nothing_and_refused(loop: asyncio.AbstractEventLoop, pair: tuple[Node, Node]) -> None:
    a, b = pair
    introduce(a, b)
    a.links.send(b.node_id, ReturnLease(1))
    until(loop, lambda: b.heard)
    a.links.on_cluster(ClusterNodes(2, [b.entry(alive=False)]))
    assert a.died == [(b.node_id, "killed")]
    assert not a.links.send(b.node_id, ReturnLease(2))
    b.links.send(a.node_id, ReturnLease(3))  # it does not know yet
    until(loop, lambda: len(b.dialled) >= 2)
    assert a.heard == []


def test_a_node_that_is_told_dead_before_its_connection_is_seen_to_end(
    loop: asyncio.AbstractEventLoop, pair: tuple[Node, Node]
) -> None:
    a, b = pair
    introduce(a, b)
    a.links.send(b.node_id, ReturnLease(1))
    until(loop, lambda: b.heard)
    a.dialled[-1].shutdown(socket.SHUT_RDWR)
    a.links.on_cluster(ClusterNodes(2, [b.entry(alive=False)]))
    assert a.died == [(b.node_id, "killed")]


def test_a_new_line_is_taken_also_where_the_end_of_the_former_was_not_read_yet(
    loop: asyncio.AbstractEventLoop, pair: tuple[Node, Node]
) -> None:
    a, b = pair
    introduce(a, b)
    a.links.send(b.node_id, ReturnLease(1))
    until(loop, lambda: b.heard)
    a.dialled[-1].shutdown(socket.SHUT_RDWR)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    b.links.accepted(ours, LinkHello(PROTOCOL_VERSION, a.node_id, b.node_id))
    theirs.sendall(encode_frame(ReturnLease(2)))
    until(loop, lambda: len(b.heard) == 2)
    theirs.close()


def test_first_frames_are_read_exactly(loop: asyncio.AbstractEventLoop, pair: tuple[Node, Node]) -> None:
    _a, b = pair
    client = socket.create_connection(b.listener.getsockname())
    frame = encode_frame(RouteToWorker(1, b"w" * 16, b"a" * 16, b"p" * 16))
    for byte in frame:
        client.send(bytes([byte]))
    until(loop, lambda: b.routed)
    sock, message = b.routed[0]
    assert message.worker_id == b"w" * 16
    client.send(b"next")
    sock.setblocking(True)
    assert sock.recv(10) == b"next"
    sock.close()
    client.close()


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff", b"\x03\0\0\0\x93\x01\x02"])
def test_garbage_is_closed(loop: asyncio.AbstractEventLoop, pair: tuple[Node, Node], garbage: bytes) -> None:
    _, b = pair
    client = socket.create_connection(b.listener.getsockname())
    client.setblocking(False)
    client.send(garbage)

    def closed() -> bool:
        try:
            return client.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    until(loop, closed)
    client.close()


def test_who_joins_is_told_of_those_that_had_died_before(loop: asyncio.AbstractEventLoop) -> None:
    """An heir asks it too what it has of them: it must know that there is nothing."""
    node = Node(loop, b"a")
    before: list[bytes] = []
    node.links.on_died_before.append(before.append)
    gone = NodeEntry(b"g" * 16, 7, "tcp:127.0.0.1:1", "h", {}, {}, False, cause="killed")
    for version in (1, 2):
        node.links.on_cluster(ClusterNodes(version, [gone]))
    assert before == [gone.node_id] and node.died == []
    node.close()

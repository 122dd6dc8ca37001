"""Connections are made without waiting: whoever does not answer holds up what is for him, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, perf_counter
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.protocol.node_messages import RouteToWorker
from shoal.runtime.abroad import RouteHello
from shoal.runtime.dialling import DIAL_TIMEOUT_S, REDIAL_PAUSE_S, SLOW_DIAL_S, Dial, Dialler
from shoal.runtime.reactor import Reactor
from shoal.wire.framing import FrameDecoder
from shoal.wire.handshake import HELLO_BYTES, PROOF_BYTES, ServerHandshake

TOKEN = b"a token of a test"
WORKER = b"w" * 16
BOUND_S = 60.0


# ---------------------------------------------------------------- what is said


def talk(hello: RouteHello, server: ServerHandshake) -> bytes:
    """Both ends, byte by byte, up to the route; returns what the server got after the proof."""
    to_server = hello.first
    while True:
        answer = server.receive(to_server)
        if server.done:
            assert len(answer) == 1
            return hello.receive(answer)
        to_server = b"".join(hello.receive(bytes([byte])) for byte in answer)


def test_the_route_follows_the_proof_and_one_byte_ends_it() -> None:
    hello = RouteHello(TOKEN, b"route")
    assert talk(hello, ServerHandshake(TOKEN)) == b"route"
    assert not hello.done
    assert hello.receive(b"1") == b"" and hello.done


def test_a_gateway_is_asked_first() -> None:
    hello = RouteHello(TOKEN, b"route", "[::1]:77")
    assert hello.first == b"[::1]:77 0\n"
    assert hello.receive(b"+") == b""
    hello.first = hello.receive(b"\n")
    assert len(hello.first) == HELLO_BYTES
    assert talk(hello, ServerHandshake(TOKEN)) == b"route"


def test_who_does_not_belong_to_the_cluster_or_lacks_the_worker_is_refused() -> None:
    hello = RouteHello(TOKEN, b"route")
    server = ServerHandshake(b"another token")
    with pytest.raises(ConnectionError, match="another cluster's token"):
        hello.receive(server.receive(hello.first))
    hello = RouteHello(TOKEN, b"route", "host:1")
    with pytest.raises(ConnectionError, match="nobody listens"):
        for byte in b"-nobody listens\n":
            hello.receive(bytes([byte]))
    hello = RouteHello(TOKEN, b"route", "host:1")
    with pytest.raises(ConnectionError, match="no sense"):
        while True:
            hello.receive(b"x")
    hello = RouteHello(TOKEN, b"route")
    talk(hello, ServerHandshake(TOKEN))
    with pytest.raises(ConnectionError, match="no such worker"):
        hello.receive(b"0")


# ---------------------------------------------------------------- sockets


class Dialling:
    """A dialler with nothing around it, and what it told."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.ended: list[tuple[Dial, socket.socket | None]] = []
        self.slow: list[Dial] = []
        runtime: Any = SimpleNamespace(
            reactor=self.reactor, config={"cluster_token": TOKEN}, node_id=b"n" * 16, worker_id=b"p" * 16
        )
        self.dialler = Dialler(runtime, lambda dial, sock: self.ended.append((dial, sock)), self.slow.append)

    def read_until_it_ends(self) -> socket.socket | None:
        until = monotonic() + BOUND_S
        while not self.ended:
            assert monotonic() < until
            self.reactor.poll_once()
        dial, sock = self.ended.pop()
        assert dial.worker_id == WORKER and not self.dialler.dials
        assert not self.reactor._listeners
        return sock


@pytest.fixture
def dialling() -> Iterator[Dialling]:
    mine = Dialling()
    yield mine
    with mine.reactor.lock:
        mine.dialler.close()
    assert not mine.reactor._listeners
    mine.reactor.stop()


@contextmanager
def listening(backlog: int = 8) -> Iterator[tuple[socket.socket, str]]:
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        server.settimeout(BOUND_S)
        yield server, f"tcp:127.0.0.1:{server.getsockname()[1]}/{WORKER.hex()}"


def test_a_node_that_says_nothing_is_given_up_in_time(dialling: Dialling) -> None:
    with listening() as (_, address):
        assert dialling.dialler.dial(WORKER, address, 77) is None
        dialling.reactor.poll_once()  # connected by the kernel; the other end is frozen
        dialling.reactor.poll_once()
        (dial,) = dialling.dialler.dials.values()
        dialling.dialler.tick(dial.began + SLOW_DIAL_S / 2)
        assert not dialling.slow
        for _ in range(2):
            dialling.dialler.tick(dial.began + 2 * SLOW_DIAL_S)
        assert dialling.slow == [dial] and "has not answered for" in dialling.dialler.why(WORKER)
        assert dialling.dialler.dial(WORKER, address, 77) is None, "asked again: the one dial goes on"
        assert list(dialling.dialler.dials.values()) == [dial]
        dialling.dialler.tick(dial.began + DIAL_TIMEOUT_S + 1)
        assert dialling.ended == [(dial, None)] and dial.sock.fileno() < 0
        why = dialling.dialler.why(WORKER)
        assert (
            why.startswith(f"its process (pid 77) on the node at {address.partition('/')[0]} cannot be")
            and "frozen" in why
        )
        assert dialling.dialler.dial(WORKER, address, 77) is None and not dialling.dialler.dials, "a pause comes first"
        dialling.dialler.tick(perf_counter() + REDIAL_PAUSE_S)
        dialling.dialler.dial(WORKER, address, 77)
        assert WORKER in dialling.dialler.dials


def test_a_port_where_nobody_listens(dialling: Dialling) -> None:
    with listening() as (_, address):
        pass
    assert dialling.dialler.dial(WORKER, address, 77) is None
    assert dialling.read_until_it_ends() is None
    assert "refused" in dialling.dialler.why(WORKER)


@pytest.mark.parametrize("read", [0, HELLO_BYTES, HELLO_BYTES + PROOF_BYTES])
def test_a_node_that_dies_while_it_is_dialled(dialling: Dialling, read: int) -> None:
    with listening() as (server, address):
        dialling.dialler.dial(WORKER, address, 77)
        sock, _ = server.accept()
        handshake = ServerHandshake(TOKEN)
        with sock:
            sock.setblocking(False)
            got, until = 0, monotonic() + BOUND_S
            while got < read:
                assert monotonic() < until
                dialling.reactor.poll_once()
                try:
                    data = sock.recv(read - got)
                except BlockingIOError:
                    continue
                got += len(data)
                sock.send(handshake.receive(data))
        assert dialling.read_until_it_ends() is None
        assert dialling.dialler.why(WORKER)


def test_the_worker_gets_the_socket_and_nothing_of_what_it_says_is_lost(dialling: Dialling) -> None:
    with listening() as (server, address):
        dialling.dialler.dial(WORKER, address, 77)
        sock, _ = server.accept()
        with sock:
            sock.setblocking(False)
            handshake, routed = ServerHandshake(TOKEN), FrameDecoder[Any](RouteToWorker)
            messages: list[Any] = []
            until = monotonic() + BOUND_S
            while not messages:
                assert monotonic() < until
                dialling.reactor.poll_once()
                try:
                    data = sock.recv(1000)
                except BlockingIOError:
                    continue
                if handshake.done:
                    routed.writable()[: len(data)] = data
                    messages += routed.received(len(data))
                else:
                    sock.send(handshake.receive(data))
            assert type(messages[0]) is RouteToWorker and messages[0].worker_id == WORKER
            sock.send(b"1and more")
            mine = dialling.read_until_it_ends()
            assert mine is not None and mine.recv(100) == b"and more"
            mine.close()
        assert dialling.dialler.why(WORKER) == ""


def test_a_worker_that_is_known_to_be_dead_is_not_dialled_on(dialling: Dialling) -> None:
    with listening() as (_, address):
        dialling.dialler.dial(WORKER, address, 77)
        dialling.dialler.worker_died(WORKER)
        ((dial, sock),) = dialling.ended
        assert sock is None and dial.sock.fileno() < 0 and dialling.dialler.why(WORKER) == ""
        dialling.dialler.worker_died(WORKER)
        assert len(dialling.ended) == 1


def test_a_worker_of_this_node_with_a_full_queue_is_tried_again(dialling: Dialling, tmp_path: Path) -> None:
    path = str(tmp_path / "worker.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(0)
        others = []
        while (sock := dialling.dialler.dial(WORKER, path, 77)) is not None:
            others.append(sock)
        assert others and WORKER in dialling.dialler.dials
        dialling.dialler.tick(perf_counter())
        assert not dialling.ended
        accepted, _ = server.accept()
        dialling.dialler.tick(perf_counter())
        ((_, mine),) = dialling.ended
        assert mine is not None
        for each in [*others, accepted, mine]:
            each.close()
        dialling.ended.clear()
    assert dialling.dialler.dial(WORKER, path, 77) is None, "nobody listens any more"
    assert not dialling.dialler.dials and not dialling.ended

"""Connections: messages both ways, garbage, slow readers, order between two sockets."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from shoal.node.io import connections
from shoal.node.io.connections import Connection, Listener, Outbox
from shoal.protocol.messages import Blocked, Escape, FromDaemon, LeaseGranted, Notice, Unblocked
from shoal.wire.framing import FrameDecoder, encode_frame


class Fixture:
    """A connection in the loop and the peer's plain end of it."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.lost: list[str] = []
        self.outbox = Outbox(asyncio.get_running_loop())

    def pair(self) -> tuple[Connection, socket.socket]:
        ours, theirs = socket.socketpair()
        return Connection(ours, self.outbox, self.on_message, lambda _c, reason: self.lost.append(reason)), theirs

    def on_message(self, _connection: Connection, message: Any) -> None:
        if message == Unblocked(13):
            raise RuntimeError("a bug")
        self.messages.append(message)


def run(scenario: Any) -> None:
    asyncio.run(scenario())


def test_messages_both_ways_and_an_orderly_end() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        connection, peer = fixture.pair()
        peer.sendall(bytes(encode_frame(Blocked(1)) + encode_frame(Unblocked(1))))
        connection.send(Notice("info", "a"))
        connection.send(Notice("info", "b"))
        await asyncio.sleep(0.01)
        assert fixture.messages == [Blocked(1), Unblocked(1)]
        got = list(FrameDecoder(FromDaemon).receive_data(peer.recv(4096)))
        assert got == [Notice("info", "a"), Notice("info", "b")]
        peer.sendall(bytes(encode_frame(Blocked(2))))
        peer.close()
        await asyncio.sleep(0.01)
        assert fixture.messages[-1] == Blocked(2) and fixture.lost == [""]

    run(scenario)


def test_garbage_and_internal_errors_close_that_connection_only() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        (_a, peer_a), (b, peer_b), (c, peer_c) = fixture.pair(), fixture.pair(), fixture.pair()
        peer_a.sendall(b"GET / HTTP/1.0\r\n\r\n")
        peer_b.sendall(bytes(encode_frame(Unblocked(13))))
        peer_c.sendall(bytes(encode_frame(Blocked(3))))
        await asyncio.sleep(0.01)
        assert len(fixture.lost) == 2 and b.closed and not c.closed
        assert "exceeds the limit" in fixture.lost[0] and "a bug" in fixture.lost[1]
        assert fixture.messages == [Blocked(3)]

    run(scenario)


def test_a_slow_reader_is_closed(monkeypatch: Any) -> None:
    monkeypatch.setattr(connections, "OUT_BYTES_MAX", 1 << 20)

    async def scenario() -> None:
        fixture = Fixture()
        connection, _peer = fixture.pair()
        for _ in range(30):
            connection.send(Notice("info", "x" * 100_000))
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert connection.closed and "does not read" in fixture.lost[0]

    run(scenario)


def test_when_written_waits_for_the_kernel() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        worker, worker_peer = fixture.pair()
        submitter, submitter_peer = fixture.pair()
        grant = LeaseGranted(1, 2, b"w", "address", 3)
        worker.send(Notice("info", "x" * 2_000_000))  # fills the socket's buffer
        worker.when_written(lambda: submitter.send(grant))
        await asyncio.sleep(0.01)
        submitter_peer.setblocking(False)
        try:
            submitter_peer.recv(100)
            raise AssertionError("granted before the worker could know")
        except BlockingIOError:
            pass
        worker_peer.setblocking(False)
        for _ in range(1000):
            try:
                worker_peer.recv(1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0.001)
            if not worker.waiting_bytes:
                break
        await asyncio.sleep(0.01)
        assert list(FrameDecoder(FromDaemon).receive_data(submitter_peer.recv(4096))) == [grant]

    run(scenario)


def test_frames_arrive_in_pieces_and_large_ones_too() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        pairs = [fixture.pair() for _ in range(3)]
        frames = [bytes(encode_frame(Escape([bytes(20)], bytes([n]) * (n * 300_000)))) for n in range(3)]
        for piece in range(0, len(frames[2]), 50_000):
            for frame, (_connection, peer) in zip(frames, pairs, strict=True):
                peer.sendall(frame[piece : piece + 50_000])
            await asyncio.sleep(0)
            await asyncio.sleep(0.0005)
        await asyncio.sleep(0.01)
        assert sorted(len(message.lineage) for message in fixture.messages) == [0, 300_000, 600_000]
        for _connection, peer in pairs:
            peer.sendall(bytes(encode_frame(Blocked(1))))
        await asyncio.sleep(0.01)
        assert fixture.messages[3:] == [Blocked(1)] * 3

    run(scenario)


def test_drain_sees_everything_that_was_written_before() -> None:
    async def scenario() -> None:
        fixture = Fixture()
        connection, peer = fixture.pair()
        for lease in range(100):
            peer.sendall(bytes(encode_frame(Blocked(lease))))
        peer.close()
        assert connection.drain()
        assert len(fixture.messages) == 100 and fixture.lost == [""]

    run(scenario)


def test_the_listener_accepts_with_a_private_socket_file(tmp_path: Any) -> None:
    async def scenario() -> None:
        accepted: list[socket.socket] = []
        path = str(tmp_path / "node.sock")
        listener = Listener(path, asyncio.get_running_loop(), accepted.append)
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        await asyncio.sleep(0.01)
        assert len(accepted) == 1 and (tmp_path / "node.sock").stat().st_mode & 0o777 == 0o600
        listener.close()

    run(scenario)

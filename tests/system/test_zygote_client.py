"""The daemon's side of the zygote's socket, against a zygote played by the test."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from shoal.system.zygote_client import REQUEST_BYTES_MAX, SpawnReply, SpawnRequest, ZygoteClient


@pytest.fixture
def pair() -> Iterator[tuple[ZygoteClient, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(5)
    client = ZygoteClient(ours.detach())
    yield client, theirs
    client.close()
    theirs.close()


def receive(zygote: socket.socket) -> tuple[SpawnRequest, list[int]]:
    packet, fds, _, _ = socket.recv_fds(zygote, REQUEST_BYTES_MAX, 2)
    return msgspec.msgpack.decode(packet, type=SpawnRequest), fds


def reply(zygote: socket.socket, *arguments: object) -> None:
    zygote.send(msgspec.msgpack.encode(SpawnReply(*arguments)))  # type: ignore[arg-type]


def test_request_and_reply(pair: tuple[ZygoteClient, socket.socket]) -> None:
    client, zygote = pair
    read, write = os.pipe()
    client.spawn(5, b"w" * 16, {"env_vars": {"A": "1"}}, write, write)
    os.close(write)
    assert client.pending == {5: b"w" * 16}
    assert client.read_replies() == []
    request, fds = receive(zygote)
    assert (request.token, request.worker_id, request.environment) == (5, b"w" * 16, {"env_vars": {"A": "1"}})
    os.write(fds[0], b"out")
    assert os.read(read, 10) == b"out"
    reply(zygote, 5, 1234)
    assert client.read_replies() == [SpawnReply(5, 1234, "")]
    assert client.pending == {} and not client.closed
    for fd in (read, *fds):
        os.close(fd)


def test_more_than_the_socket_takes_waits_here(pair: tuple[ZygoteClient, socket.socket]) -> None:
    client, zygote = pair
    before = len(os.listdir("/proc/self/fd"))
    read, write = os.pipe()
    count = 1500
    for token in range(count):
        client.spawn(token, b"w", {"text": "x" * 500}, write, write)
    os.close(write)
    seen = []
    for token in range(count):
        request, fds = receive(zygote)
        seen.append(request.token)
        for fd in fds:
            os.close(fd)
        reply(zygote, token, 1)
        assert client.read_replies() == [SpawnReply(token, 1)]
    assert seen == list(range(count))
    assert client.pending == {}
    assert os.read(read, 1) == b"", "no copy of the write end is left"
    os.close(read)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_dead_zygote_leaves_its_requests_pending(pair: tuple[ZygoteClient, socket.socket]) -> None:
    client, zygote = pair
    client.spawn(1, b"a", {}, 1, 2)
    zygote.close()
    assert client.read_replies() == []
    assert client.closed and list(client.pending) == [1]
    client.spawn(2, b"b", {}, 1, 2)
    assert list(client.pending) == [1, 2]
    client.close()
    client.close()


def test_a_huge_environment_is_refused(pair: tuple[ZygoteClient, socket.socket]) -> None:
    client, _ = pair
    with pytest.raises(ValueError, match="exceeds the limit"):
        client.spawn(1, b"a", {"x": "y" * REQUEST_BYTES_MAX}, 1, 2)
    assert client.pending == {}

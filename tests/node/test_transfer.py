"""Transfers over real sockets, between real stores: what breaks, dies, fills up, stalls or lies on the way."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.node.transfer_nodes import Slow, TransferNode, put

from shoal.node import pulls as pulls_module
from shoal.node.io import movers as movers_module
from shoal.node.io import transfer as transfer_module
from shoal.node.io.movers import HEADER, MAGIC
from shoal.node.io.transfer import Transfer
from shoal.node.pull_events import AskChunk, CancelChunk, ChunkFailed
from shoal.protocol.messages import Sealed, Stored
from shoal.protocol.node_messages import ChunkReferred, FetchChunk

MB = 1 << 20
MakeNodes = Callable[..., list[TransferNode]]


@pytest.fixture
def make_nodes(tmp_path: Path) -> Iterator[MakeNodes]:
    """`make_nodes(count, capacity, **options of the store)`."""
    world: dict[bytes, TransferNode] = {}

    def make(count: int, capacity: int = 64 * MB, **options: object) -> list[TransferNode]:
        return [TransferNode(world, tmp_path, capacity, **options) for _ in range(count)]

    yield make
    for node in world.values():
        node.close()


def noise(size: int) -> bytes:
    return os.urandom(1 << 16) * (size // (1 << 16)) + bytes(size % (1 << 16))


def eventually(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.01)


@pytest.mark.parametrize("size", [0, 1, 4095, 300_000, 5 * MB + 17, 40 * MB])
def test_the_same_bytes_arrive(make_nodes: MakeNodes, size: int) -> None:
    origin, here = make_nodes(2)
    value = noise(size)
    stored = put(origin, origin.local_process(b"writer"), value)
    place = here.pull(stored)
    assert isinstance(place, Stored) and (place.oid, place.size) == (stored.oid, size)
    assert here.bytes_of(place) == value
    assert here.pull(stored) == place, "it is there already"
    assert here.transfers()["pulled"] == 1
    eventually(lambda: origin.transfers()["serving"] == 0 and not origin.shell._sending)


def test_a_copy_is_read_pinned_and_freed_with_its_original(make_nodes: MakeNodes) -> None:
    origin, here = make_nodes(2)
    writer = origin.local_process(b"writer")
    stored = put(origin, writer, noise(MB))
    reader = here.local_process(b"a reader")
    place = here.pull(stored)
    assert isinstance(place, Stored)
    view = reader.client.read(place)
    writer.free(stored, shown=True)
    eventually(lambda: origin.statistics().objects == 0)
    assert here.statistics().copies == 1, "it is being read"
    assert bytes(view) == here.bytes_of(place)
    del view
    reader.client.drain()
    eventually(lambda: here.statistics().objects == 0)


def test_a_kept_copy_outlives_its_original(make_nodes: MakeNodes) -> None:
    origin, here = make_nodes(2)
    writer = origin.local_process(b"writer")
    value = noise(MB)
    stored = put(origin, writer, value)
    fetched: list[tuple[Stored | None, str]] = []
    here.call(here.transfer.fetch, stored, lambda place, reason: fetched.append((place, reason)))
    eventually(lambda: bool(fetched))
    place, reason = fetched.pop()
    assert place is not None and not reason
    kept = here.call(here.shell.keep_copy, stored.oid, b"owner")
    assert kept == place
    writer.free(stored, shown=True)
    eventually(lambda: origin.statistics().objects == 0)
    assert here.call(here.shell.owned_by, b"owner") == [stored.oid]
    here.call(here.transfer.fetch, stored, lambda place, reason: fetched.append((place, reason)))
    eventually(lambda: fetched == [(place, "")])  # it is here already
    assert here.bytes_of(place) == value
    here.call(here.shell.free, [stored.oid])
    eventually(lambda: here.statistics().objects == 0)
    # Nothing is left to be kept.
    assert here.call(here.shell.keep_copy, stored.oid, b"owner") is None
    here.call(here.transfer.fetch, stored, lambda place, reason: fetched.append((place, reason)))
    eventually(lambda: len(fetched) == 2)
    assert fetched[1][0] is None and "not in the object store" in fetched[1][1]


def test_broken_connections_cost_what_was_on_its_way(make_nodes: MakeNodes) -> None:
    origin, here = make_nodes(2)
    slow = origin.pump = Slow(60e6)
    value = noise(20 * MB)
    stored = put(origin, origin.local_process(b"writer"), value)
    number = here.begin_pull(stored)
    for share in (0.2, 0.5):
        eventually(lambda share=share: slow.moved > share * len(value))
        slow.cut()
    place = here.end_pull(number)
    assert isinstance(place, Stored) and here.bytes_of(place) == value
    asked = [message for message in here.links.sent if isinstance(message, FetchChunk)]
    assert len(asked) <= 40 + 2 * pulls_module.WINDOW, "what had come was not asked for again"


def test_a_chain_of_nodes_and_the_death_of_one(make_nodes: MakeNodes) -> None:
    origin, first, second, third = make_nodes(4)
    for node in (origin, first, second):
        node.pump = Slow(20e6)
    value = noise(16 * MB)
    stored = put(origin, origin.local_process(b"writer"), value)

    def referred_to() -> set[tuple[bytes, ...]]:
        return {tuple(message.sources) for message in list(origin.links.sent) if isinstance(message, ChunkReferred)}

    numbers = [(first, first.begin_pull(stored))]
    eventually(lambda: origin.transfers()["serving"] > 0)
    numbers.append((second, second.begin_pull(stored)))
    eventually(lambda: referred_to() == {(first.node_id,)})
    numbers.append((third, third.begin_pull(stored)))
    eventually(lambda: referred_to() == {(first.node_id,), (second.node_id, first.node_id)})
    eventually(lambda: third.transfers()["chunks"] > 0 and second.pump.moved > 2 * MB)  # type: ignore[union-attr]
    second.pump.cut()  # type: ignore[union-attr]
    second.die()
    for node, number in numbers:
        if node is not second:
            place = node.end_pull(number)
            assert isinstance(place, Stored) and node.bytes_of(place) == value


def test_the_origin_dies_in_the_middle(make_nodes: MakeNodes) -> None:
    origin, here = make_nodes(2)
    slow = origin.pump = Slow(10e6)
    stored = put(origin, origin.local_process(b"writer"), noise(20 * MB))
    number = here.begin_pull(stored)
    eventually(lambda: slow.moved > MB)
    origin.die()
    error = here.end_pull(number)
    assert isinstance(error, list) and error[0] == "ObjectLost" and "dead" in error[1]
    assert here.lost_abroad[0][:2] == (stored.oid, origin.node_id)
    eventually(lambda: here.statistics().objects == 0)
    assert here.pull(stored) == ["ObjectLost", error[1]]


def test_who_only_looks_hears_what_is_here_and_what_is_dead(make_nodes: MakeNodes) -> None:
    origin, here = make_nodes(2)
    copied, left = (put(origin, origin.local_process(b"writer"), noise(1000 + number)) for number in range(2))
    assert here.pull(copied, look=True) == ["NotHere", here.pull(copied, look=True)[1]]  # type: ignore[index]
    assert here.statistics().objects == 0, "nothing was brought"
    place = here.pull(copied)
    origin.die()
    assert here.pull(copied, look=True) == place
    error = here.pull(left, look=True)
    assert isinstance(error, list) and error[0] == "ObjectLost" and "dead" in error[1]


def test_freed_while_it_is_pulled(make_nodes: MakeNodes) -> None:
    origin, here = make_nodes(2)
    slow = origin.pump = Slow(4e6)
    writer = origin.local_process(b"writer")
    stored = put(origin, writer, noise(20 * MB))
    number = here.begin_pull(stored)
    eventually(lambda: slow.moved > MB)
    writer.free(stored, shown=True)
    error = here.end_pull(number)
    assert isinstance(error, list) and "freed" in error[1]
    eventually(lambda: here.statistics().objects == 0 and origin.statistics().objects == 0)


def test_what_is_on_disk_there_comes_back_first(make_nodes: MakeNodes) -> None:
    origin, here = make_nodes(2, 20 * MB)
    writer = origin.local_process(b"writer")
    values = [noise(6 * MB) for _ in range(5)]
    places = [put(origin, writer, value) for value in values]
    assert origin.statistics().spilled_objects > 0
    for _ in range(2):
        for value, stored in zip(values, places, strict=True):
            place = here.pull(stored)
            assert isinstance(place, Stored) and here.bytes_of(place) == value


def test_no_room_here(make_nodes: MakeNodes) -> None:
    origin, here = make_nodes(2, 20 * MB)
    stored = put(origin, origin.local_process(b"writer"), noise(10 * MB))
    mine = here.local_process(b"mine")
    held = [mine.client.read(put(here, mine, noise(6 * MB))) for _ in range(2)]
    start = time.monotonic()
    error = here.pull(stored)
    assert isinstance(error, list) and error[0] == "ObjectStoreFull" and "being read" in error[1]
    assert time.monotonic() - start < 60
    assert not here.lost_abroad, "it is there still"
    held.clear()
    mine.client.drain()
    assert isinstance(here.pull(stored), Stored)
    error = here.pull(Stored(b"x" * 20, 1, 0, 30 * MB, 1, [], origin.node_id))
    assert isinstance(error, list) and "object_store_memory" in error[1]


def test_an_object_that_the_daemon_has_not_read_of_yet(make_nodes: MakeNodes) -> None:
    origin, here = make_nodes(2)
    writer = origin.local_process(b"writer")
    stored = writer.client.put(b"o" * 20, noise(MB))
    stored.node = origin.node_id
    sealed = Sealed([(stored.oid, stored.segment, stored.offset, stored.size, stored.generation, b"writer")])
    origin.readers.append(lambda: origin.shell.on_sealed(b"writer", sealed))
    assert isinstance(here.pull(stored), Stored)
    nowhere = Stored(b"n" * 20, 1, 0, 1000, 1, [], origin.node_id)
    error = here.pull(nowhere)
    assert isinstance(error, list) and error[0] == "ObjectLost"


def test_a_dead_reader_ends_its_pull(make_nodes: MakeNodes) -> None:
    origin, here = make_nodes(2)
    slow = origin.pump = Slow(10e6)
    stored = put(origin, origin.local_process(b"writer"), noise(20 * MB))
    here.begin_pull(stored)
    eventually(lambda: slow.moved > MB)
    here.call(here.transfer.process_died, b"reader")
    eventually(lambda: here.statistics().objects == 0 and here.transfers()["pulls"] == 0)
    eventually(lambda: origin.transfers()["shared"] == 0)
    assert isinstance(here.pull(stored), Stored), "somebody else wants it"


def test_a_peer_that_takes_nothing_is_left(make_nodes: MakeNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers_module, "SEND_STALL_S", 0.3)
    monkeypatch.setattr(movers_module, "LOOK_S", 0.1)
    origin, here, other = make_nodes(3)
    taken: list[socket.socket] = []

    def nothing(far: socket.socket, near: socket.socket) -> None:
        near.sendall(far.recv(65536))
        far.sendall(near.recv(1))
        taken.extend((far, near))

    value = noise(20 * MB)
    stored = put(origin, origin.local_process(b"writer"), value)
    origin.pump = nothing
    number = here.begin_pull(stored)
    eventually(lambda: len(taken) >= 2)
    origin.pump = None
    # Others are served meanwhile, and at last it as well, on another connection.
    assert isinstance(other.pull(stored), Stored)
    eventually(lambda: origin.transfers()["outlets"] == 0 or not origin.shell._sending)
    for sock in taken:
        sock.close()
    place = here.end_pull(number)
    assert isinstance(place, Stored) and here.bytes_of(place) == value


@pytest.mark.parametrize(
    "lie",
    [
        b"GET / HTTP/1.1\r\n\r\n" + bytes(100),
        HEADER.pack(MAGIC, 1 << 31, 1, 7),
        HEADER.pack(MAGIC, 999_999, 1, 7) + bytes(999_999),
        HEADER.pack(MAGIC, 1000, 0, 7),
        HEADER.pack(MAGIC, 1000, 1, 0),
        HEADER.pack(MAGIC, 1000, 77, 7) + b"a" * 1000,
        HEADER.pack(MAGIC, 1000, 1, 7) + b"b" * 10,
        b"",
    ],
)
def test_a_source_that_lies_spoils_nothing(make_nodes: MakeNodes, lie: bytes) -> None:
    """Garbage costs its connection; bytes under a number that nobody waits for are thrown away."""
    origin, here = make_nodes(2)
    value = noise(1000)
    stored = put(origin, origin.local_process(b"writer"), value)
    neighbours = [here.pull(put(origin, origin.local_process(b"w%d" % n), noise(70_000))) for n in range(2)]
    before = [here.bytes_of(place) for place in neighbours]  # type: ignore[arg-type]
    here.call(here.transfer._close_idle)
    for inlet in list(here.transfer._inlets.values()):
        here.call(here.transfer._movers.close_lane, inlet.lane)
    eventually(lambda: here.transfers()["inlets"] == 0)

    def liar(far: socket.socket, near: socket.socket) -> None:
        near.sendall(far.recv(65536))
        far.sendall(near.recv(1))
        origin.pump = None
        far.sendall(lie)
        far.close()
        near.close()

    origin.pump = liar
    place = here.pull(stored)
    assert isinstance(place, Stored) and here.bytes_of(place) == value
    assert [here.bytes_of(place) for place in neighbours] == before  # type: ignore[arg-type]


def test_none_of_many_small_ones_is_forgotten(make_nodes: MakeNodes) -> None:
    """An order to a thread that is not heeded would cost seconds (LOOK_S)."""
    origin, here = make_nodes(2)
    writer = origin.local_process(b"writer")
    slowest_s = 0.0
    for number in range(300):
        stored = put(origin, writer, b"%d" % number)
        start = time.monotonic()
        place = here.pull(stored)
        slowest_s = max(slowest_s, time.monotonic() - start)
        assert isinstance(place, Stored) and here.bytes_of(place) == b"%d" % number
    assert slowest_s < movers_module.LOOK_S / 2


def test_many_at_once(make_nodes: MakeNodes) -> None:
    origin, here, other = make_nodes(3, 48 * MB)
    writer, theirs = origin.local_process(b"writer"), other.local_process(b"theirs")
    values = [noise(size) for size in (10, 70_000, MB, 3 * MB)] * 6
    places = [put(origin, writer, value) for value in values[::2]] + [
        put(other, theirs, value) for value in values[1::2]
    ]
    expected = values[::2] + values[1::2]
    numbers = [here.begin_pull(stored) for stored in places]
    for number, stored, value in zip(numbers, places, expected, strict=True):
        place = here.end_pull(number)
        assert isinstance(place, Stored)
        if here.call(here.shell.place_of, stored.oid) == place:
            assert here.bytes_of(place) == value
    assert here.transfers()["pulls"] == here.transfers()["active_bytes"] == 0


def test_the_failure_of_one_chunk_has_the_others_cancelled() -> None:
    """A node dies while it is dialled: each chunk that waits for that is told of once, also when the first one's failure ends the whole pull."""
    transfer: Any = object.__new__(Transfer)
    inlet = transfer_module._Inlet(1, b"n" * 16, False, 0.0)
    inlet.waiting = {number: AskChunk(number, inlet.node, b"o" * 20, 0, 0, 1, True) for number in (1, 2, 3)}
    transfer._inlets, transfer._inlets_from = {1: inlet}, {(inlet.node, False): [inlet]}
    transfer._inlet_of, transfer._said = dict.fromkeys((1, 2, 3), inlet), {}
    told: list[int] = []

    def feed(event: ChunkFailed) -> None:
        told.append(event.number)
        for other in {1, 2, 3} - {*told}:
            transfer._cancel_chunk(CancelChunk(other))

    transfer._feed = feed
    transfer._inlet_closed(inlet, "nobody answers")
    assert told == [1, 2, 3] and not transfer._inlet_of and not transfer._inlets_from

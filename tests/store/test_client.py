"""The client over one real segment, with a daemon of a few lines."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from shoal.protocol.errors import ObjectStoreFullError, OutOfDiskError
from shoal.protocol.limits import BLOCK_HEADER_BYTES
from shoal.protocol.messages import FreeBlocks, SegmentBudget, Stored, TrimBudget
from shoal.store.client import StaleBlock, StoreClient
from shoal.store.page import ProcessPage
from shoal.store.segment import EVICTED, LEFT, TAKEN, Segment, first_generation

MEGABYTE = 1 << 20


class SmallDaemon:
    """One segment and a pool; grants what is asked while there is any."""

    def __init__(self, pool_bytes: int = 64 * MEGABYTE, step_bytes: int = 4 * MEGABYTE) -> None:
        self.segment = Segment.create(3, 4 * pool_bytes)
        self.left_bytes = pool_bytes
        self.step_bytes = step_bytes
        self.pages: list[ProcessPage] = []
        self.reason = "the pool is full"
        self.asked = 0

    def client(self) -> StoreClient:
        page = ProcessPage.create()
        self.pages.append(page)
        return StoreClient(os.getpid(), ProcessPage.open(os.getpid(), page.fd), self.open_segment)

    def open_segment(self, need: int) -> SegmentBudget:
        self.asked += 1
        capacity = self.segment.mapping.size_bytes
        if need > self.left_bytes:
            return SegmentBudget(self.asked, self.segment.number, capacity, 0, self.reason)
        granted = min(max(need, self.step_bytes), self.left_bytes)
        self.left_bytes -= granted
        return SegmentBudget(self.asked, self.segment.number, capacity, granted)

    def close(self) -> None:
        self.segment.close()
        for page in self.pages:
            page.close()


@pytest.fixture
def daemon() -> Iterator[SmallDaemon]:
    made = SmallDaemon()
    yield made
    made.close()


def oid(number: int) -> bytes:
    return number.to_bytes(20, "big")


def test_another_process_reads_what_was_put_without_a_copy(daemon: SmallDaemon) -> None:
    writer, reader = daemon.client(), daemon.client()
    payload = os.urandom(3 * MEGABYTE)
    stored = writer.put(oid(1), payload)
    view = reader.read(stored)
    assert view.readonly and view.nbytes == len(payload) and view == payload
    assert stored.generation == first_generation(daemon.segment.number)
    with pytest.raises(TypeError):
        view[0] = 1
    with pytest.raises(ValueError):
        np.frombuffer(view, dtype=np.uint8)[0] = 1


def test_values_that_write_themselves(daemon: SmallDaemon) -> None:
    class Pattern:
        total_bytes = 100_000

        def write_into(self, target: memoryview) -> None:
            target[:] = b"shoal" * 20_000

    writer = daemon.client()
    assert bytes(writer.read(writer.put(oid(1), Pattern()))) == b"shoal" * 20_000
    assert bytes(writer.read(writer.put(oid(2), b""))) == b""


def test_a_value_that_fails_to_write_itself_leaves_nothing(daemon: SmallDaemon) -> None:
    class Broken:
        total_bytes = MEGABYTE

        def write_into(self, target: memoryview) -> None:
            raise ZeroDivisionError

    writer = daemon.client()
    with pytest.raises(ZeroDivisionError):
        writer.put(oid(1), Broken())
    assert writer.statistics().live_blocks == 0


def test_no_message_while_the_budget_lasts(daemon: SmallDaemon) -> None:
    writer = daemon.client()
    writer.free(writer.put(oid(0), bytes(MEGABYTE)))
    asked = daemon.asked
    for number in range(50):
        assert writer.free(writer.put(oid(number), bytes(MEGABYTE)))
    assert daemon.asked == asked


def test_a_pin_lives_as_long_as_anything_made_from_the_view(daemon: SmallDaemon) -> None:
    writer, reader = daemon.client(), daemon.client()
    stored = writer.put(oid(1), bytes(range(256)) * 16)
    place = {(stored.segment, stored.offset)}
    array = np.frombuffer(reader.read(stored), dtype=np.uint16)[5:10]
    second = reader.read(stored)
    gc.collect()
    reader.drain()
    assert daemon.pages[1].pins() == place
    del array
    reader.drain()
    assert daemon.pages[1].pins() == place
    del second
    reader.drain()
    assert daemon.pages[1].pins() == set()
    assert reader.statistics().pinned_blocks == 0


def test_a_block_freed_while_it_is_read_here_is_reused_only_afterwards(daemon: SmallDaemon) -> None:
    client = daemon.client()
    stored = client.put(oid(1), b"a" * 100_000)
    view = client.read(stored)
    assert client.free(stored)
    assert daemon.segment.get_freed(stored.offset) == TAKEN
    others = [client.put(oid(n), b"b" * 100_000) for n in range(2, 5)]
    assert stored.offset not in {other.offset for other in others}
    assert view == b"a" * 100_000
    del view
    assert client.put(oid(9), b"c" * 100_000).offset == stored.offset


def test_stale_places_are_refused(daemon: SmallDaemon) -> None:
    writer, reader = daemon.client(), daemon.client()
    stored = writer.put(oid(1), b"x" * 1000)
    writer.free(stored)
    with pytest.raises(StaleBlock):
        reader.read(stored)
    again = writer.put(oid(2), b"y" * 1000)
    assert again.offset == stored.offset
    with pytest.raises(StaleBlock):
        reader.read(stored)
    assert bytes(reader.read(again)) == b"y" * 1000
    with pytest.raises(StaleBlock):
        reader.read(Stored(oid(1), 99 << 20 | 7, 4096, 10, 5))
    reader.drain()
    assert daemon.pages[1].pins() == set()


def test_a_block_that_the_daemon_is_taking_is_neither_read_nor_reused(daemon: SmallDaemon) -> None:
    writer, reader = daemon.client(), daemon.client()
    stored = writer.put(oid(1), b"x" * 1000)
    assert daemon.segment.list_evicting(stored.offset)
    with pytest.raises(StaleBlock):
        reader.read(stored)
    assert not writer.free(stored)
    assert daemon.segment.get_freed(stored.offset) == LEFT
    daemon.segment.set_state(stored.offset, EVICTED)
    daemon.segment.unlist_evicting(stored.offset)
    assert writer.put(oid(2), b"y" * 1000).offset != stored.offset
    writer.on_free_blocks(FreeBlocks(stored.segment, [(stored.offset, stored.generation, False)]))
    assert writer.put(oid(3), b"z" * 1000).offset == stored.offset


def test_an_eviction_that_was_called_off_leaves_the_block_readable(daemon: SmallDaemon) -> None:
    writer, reader = daemon.client(), daemon.client()
    stored = [writer.put(oid(n), b"x" * 1000) for n in range(3)]
    for each in stored:
        daemon.segment.list_evicting(each.offset)
    daemon.segment.unlist_evicting(stored[1].offset)
    assert bytes(reader.read(stored[1])) == b"x" * 1000
    with pytest.raises(StaleBlock):
        reader.read(stored[2])
    daemon.segment.unlist_evicting(stored[2].offset)
    daemon.segment.unlist_evicting(stored[0].offset)
    assert bytes(reader.read(stored[2])) == b"x" * 1000


def test_messages_about_blocks_of_another_generation_change_nothing(daemon: SmallDaemon) -> None:
    writer = daemon.client()
    stored = writer.put(oid(1), b"x" * 1000)
    writer.on_free_blocks(
        FreeBlocks(stored.segment, [(stored.offset, stored.generation + 1, False), (1 << 30, 1, True)])
    )
    assert bytes(writer.read(stored)) == b"x" * 1000
    assert writer.free(stored)
    assert not writer.free(stored)


def test_punched_blocks_cost_budget_and_their_range_is_populated_anew(daemon: SmallDaemon) -> None:
    writer = daemon.client()
    stored = writer.put(oid(1), b"x" * MEGABYTE)
    before = writer.statistics().budget_bytes
    daemon.segment.set_state(stored.offset, EVICTED)
    daemon.segment.punch(stored.offset, MEGABYTE + 4096)
    writer.on_free_blocks(FreeBlocks(stored.segment, [(stored.offset, stored.generation, True)]))
    assert writer.statistics().budget_bytes == before - MEGABYTE - 4096
    again = writer.put(oid(2), b"y" * MEGABYTE)
    assert again.offset == stored.offset and bytes(writer.read(again)) == b"y" * MEGABYTE


def test_trim_gives_budget_back_and_keeps_what_lives(daemon: SmallDaemon) -> None:
    writer = daemon.client()
    kept = writer.put(oid(1), b"k" * MEGABYTE)
    writer.free(writer.put(oid(2), bytes(16 * MEGABYTE)))
    budget = writer.statistics().budget_bytes
    answer = writer.on_trim(TrimBudget(8 * MEGABYTE))
    assert answer.returned == 8 * MEGABYTE == budget - writer.statistics().budget_bytes
    assert bytes(writer.read(kept)) == b"k" * MEGABYTE
    assert writer.on_trim(TrimBudget(1 << 40)).returned < 1 << 30
    assert bytes(writer.read(kept)) == b"k" * MEGABYTE


def test_fragments_become_room_for_a_large_object(daemon: SmallDaemon) -> None:
    writer = daemon.client()
    blocks = [writer.put(oid(n), bytes(2 * MEGABYTE - 64)) for n in range(32)]
    for stored in blocks[::2]:
        writer.free(stored)
    assert daemon.left_bytes == 0
    large = writer.put(oid(100), b"L" * (20 * MEGABYTE))
    assert bytes(writer.read(large)) == b"L" * (20 * MEGABYTE)
    assert bytes(writer.read(blocks[1])) == bytes(2 * MEGABYTE - 64)


def test_a_full_store_and_a_full_disk_say_so(daemon: SmallDaemon) -> None:
    writer = daemon.client()
    with pytest.raises(ObjectStoreFullError, match=r"cannot put an object of 104\.9 MB.*the pool is full"):
        writer.put(oid(1), bytes(100 * MEGABYTE))
    daemon.reason = "disk: no space"
    with pytest.raises(OutOfDiskError, match="no space"):
        writer.put(oid(1), bytes(100 * MEGABYTE))
    assert bytes(writer.read(writer.put(oid(2), b"still works"))) == b"still works"


def test_threads_put_read_and_free(daemon: SmallDaemon) -> None:
    client = daemon.client()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(60):
                letter = bytes([number * 60 + turn])
                stored = client.put(oid(number * 1000 + turn), letter * 70_000)
                view = client.read(stored)
                client.free(stored)
                assert view == letter * 70_000
                del view
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    client.drain()
    assert client.statistics().live_blocks == 0


def test_a_forked_child_is_inert(daemon: SmallDaemon) -> None:
    client = daemon.client()
    stored = client.put(oid(1), b"x" * 1000)
    view = client.read(stored)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            del view
            client.drain()
            for forbidden in (lambda: client.put(oid(2), b"y"), lambda: client.read(stored)):
                with pytest.raises(RuntimeError, match="forked"):
                    forbidden()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert daemon.pages[0].pins() == {(stored.segment, stored.offset)}
    assert view == b"x" * 1000


def test_views_outlive_the_client(daemon: SmallDaemon) -> None:
    client = daemon.client()
    view = client.read(client.put(oid(1), b"x" * 100_000))
    client.close()
    del client
    gc.collect()
    assert view == b"x" * 100_000
    assert BLOCK_HEADER_BYTES == 64

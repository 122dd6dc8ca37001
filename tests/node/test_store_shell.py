"""The store of a node with real memory, disk and processes."""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # children import the bodies by these names too

import store_node
from store_bodies import churn, content, hold_until_killed, oid, put_then_hang_in_the_middle

from shoal.node import store_table
from shoal.protocol.errors import ObjectLostError, ObjectStoreFullError, OutOfDiskError
from shoal.protocol.messages import FreeObjects, Stored

MEGABYTE = 1 << 20


@pytest.fixture
def make_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setattr(store_table, "FULL_WAIT_S", 0.5)
    nodes: list[Any] = []

    def make(capacity_bytes: int, **options: Any) -> Any:
        nodes.append(store_node.StoreNode(tmp_path, capacity_bytes, **options))
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


def test_three_times_the_pool_is_spilled_and_comes_back_intact(make_node: Callable[..., Any], tmp_path: Path) -> None:
    node = make_node(24 * MEGABYTE)
    writer, reader = node.local_process(b"writer"), node.local_process(b"reader")
    size = 2 * MEGABYTE
    stored = [writer.put(oid(n), content(n, size)) for n in range(36)]
    statistics = node.statistics()
    assert statistics.spilled_bytes >= 48 * MEGABYTE and statistics.budget_bytes <= 24 * MEGABYTE
    order = list(range(36))
    random.Random(1).shuffle(order)
    for n in order:
        view = reader.get(stored[n])
        assert view == content(n, size)
        del view
    for each in stored:
        writer.free(each, shown=True)
    reader.client.drain()
    wait_until(lambda: node.statistics().objects == 0)
    assert os.listdir(tmp_path / "spill") == []
    assert not node.lost


def test_what_is_read_stays_and_the_rest_goes(make_node: Callable[..., Any]) -> None:
    node = make_node(16 * MEGABYTE)
    writer, reader = node.local_process(b"writer"), node.local_process(b"reader")
    size = 2 * MEGABYTE
    first = writer.put(oid(0), content(0, size))
    array = np.frombuffer(reader.get(first), dtype=np.uint8)
    for n in range(1, 20):
        writer.put(oid(n), content(n, size))
    assert node.call(node.shell.place_of, oid(0)) == first
    assert array.tobytes() == content(0, size)


def test_the_store_is_full_only_of_what_is_read(make_node: Callable[..., Any]) -> None:
    node = make_node(16 * MEGABYTE)
    writer, reader = node.local_process(b"writer"), node.local_process(b"reader")
    views = [reader.get(writer.put(oid(n), bytes(2 * MEGABYTE))) for n in range(7)]
    with pytest.raises(ObjectStoreFullError, match=r"14\.7 MB are being read \(14\.7 MB by pid \d+ \(reader\)\)"):
        writer.put(oid(100), bytes(4 * MEGABYTE))
    with pytest.raises(
        ObjectStoreFullError, match=r"the whole store has 16\.8 MB; give it more with object_store_memory"
    ):
        writer.put(oid(100), bytes(20 * MEGABYTE))
    views.clear()
    gc.collect()
    reader.client.drain()
    assert writer.put(oid(101), bytes(4 * MEGABYTE)).size == 4 * MEGABYTE


def test_a_waiting_put_goes_on_when_a_reader_lets_go(make_node: Callable[..., Any]) -> None:
    node = make_node(16 * MEGABYTE)
    writer, reader = node.local_process(b"writer"), node.local_process(b"reader")
    views = [reader.get(writer.put(oid(n), bytes(2 * MEGABYTE))) for n in range(7)]

    def let_go() -> None:
        views.clear()
        reader.client.drain()

    node.loop.call_soon_threadsafe(node.loop.call_later, 0.3, let_go)
    assert writer.put(oid(100), bytes(4 * MEGABYTE)).size == 4 * MEGABYTE


def test_free_pages_move_from_one_writer_to_another(make_node: Callable[..., Any]) -> None:
    node = make_node(16 * MEGABYTE)
    one, two = node.local_process(b"one"), node.local_process(b"two")
    kept = one.put(oid(1), content(1, MEGABYTE))
    one.free(one.put(oid(2), bytes(12 * MEGABYTE)))
    two.put(oid(3), bytes(12 * MEGABYTE))
    assert node.statistics().spills == 0
    assert two.get(kept) == content(1, MEGABYTE)


def test_without_spilling_a_full_store_is_an_error(make_node: Callable[..., Any]) -> None:
    node = make_node(8 * MEGABYTE, spill_allowed=False)
    writer = node.local_process(b"writer")
    with pytest.raises(ObjectStoreFullError):
        for n in range(9):
            writer.put(oid(n), bytes(MEGABYTE))


def test_a_disk_that_refuses_is_told_and_loses_nothing(make_node: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "spill").write_text("a file where the folder should be")
    node = make_node(8 * MEGABYTE)
    writer = node.local_process(b"writer")
    stored: list[Stored] = []
    with pytest.raises(OutOfDiskError, match="cannot write a spilled object to"):
        for n in range(9):
            stored.append(writer.put(oid(n), content(n, MEGABYTE)))
    for n, each in enumerate(stored):
        assert writer.get(each) == content(n, MEGABYTE)


def test_a_damaged_file_is_a_lost_object_not_a_wrong_value(make_node: Callable[..., Any], tmp_path: Path) -> None:
    node = make_node(8 * MEGABYTE)
    writer = node.local_process(b"writer")
    stored = [writer.put(oid(n), content(n, MEGABYTE)) for n in range(16)]
    files = sorted((tmp_path / "spill").iterdir())
    damaged, missing = files[0], files[1]
    with damaged.open("r+b") as file:
        file.seek(500_000)
        file.write(b"?")
    missing.unlink()
    for path, reason in ((damaged, "is damaged"), (missing, "No such file")):
        name = bytes.fromhex(path.name.split("-")[0])
        with pytest.raises(ObjectLostError, match=reason):
            node.ensure_resident(name)
        assert reason in node.lost[name]
    survivor = int(files[2].name.split("-")[0], 16)
    assert writer.get(stored[survivor]) == content(survivor, MEGABYTE)


def test_freed_before_sealed(make_node: Callable[..., Any]) -> None:
    """The owner's FreeObjects may be read before the writer's Sealed: they come by different sockets."""
    node = make_node(8 * MEGABYTE)
    writer = node.local_process(b"writer")
    node.local_process(b"owner")
    node.call(node.receive, b"owner", FreeObjects([oid(1)]))
    stored = writer.client.put(oid(1), bytes(MEGABYTE))
    item = (oid(1), stored.segment, stored.offset, stored.size, stored.generation, b"owner")
    node.call(node.receive, b"writer", store_node.Sealed([item]))
    wait_until(lambda: node.statistics().objects == 0 and writer.client.statistics().live_blocks == 0)


def test_a_writer_killed_in_the_middle_leaves_its_objects_and_nothing_else(make_node: Callable[..., Any]) -> None:
    node = make_node(32 * MEGABYTE)
    child = node.start_process(b"writer", put_then_hang_in_the_middle, 3)
    wait_until(lambda: node.call(node.shell.place_of, oid(1000)) is not None)
    places = {n: node.call(node.shell.place_of, oid(n)) for n in range(3)}
    child.kill()
    wait_until(lambda: node.statistics().budget_bytes < 4 * MEGABYTE)
    reader = node.local_process(b"reader")
    for n, stored in places.items():
        assert reader.get(stored) == content(n, MEGABYTE)
    reader.client.drain()
    node.call(node.shell.free, [*map(oid, range(3)), oid(1000)])
    wait_until(lambda: node.statistics().segments == 0)
    assert node.statistics().budget_bytes == 0


def test_a_dead_reader_holds_nothing(make_node: Callable[..., Any]) -> None:
    node = make_node(16 * MEGABYTE)
    writer = node.local_process(b"writer")
    stored = writer.put(oid(1), content(1, 2 * MEGABYTE))
    child = node.start_process(b"reader", hold_until_killed, stored, oid(2))
    wait_until(lambda: node.call(node.shell.place_of, oid(2)) is not None, 30)
    writer.free(stored, shown=True)
    time.sleep(0.2)
    assert writer.client.statistics().live_blocks == 1
    child.kill()
    wait_until(lambda: writer.client.statistics().live_blocks == 0)


def test_an_object_is_restored_once_for_all_who_ask(make_node: Callable[..., Any]) -> None:
    node = make_node(8 * MEGABYTE)
    writer = node.local_process(b"writer")
    for n in range(16):
        writer.put(oid(n), content(n, MEGABYTE))
    restores = node.statistics().restores

    async def all_at_once() -> list[Stored]:
        import asyncio

        return await asyncio.gather(*(node.shell.ensure_resident(oid(0)) for _ in range(10)))

    import asyncio

    places = asyncio.run_coroutine_threadsafe(all_at_once(), node.loop).result(60)
    assert len({place.generation for place in places}) == 1
    assert node.statistics().restores == restores + 1
    assert (oid(0), places[0]) in node.moves


def test_processes_that_compete_for_a_small_pool_see_what_they_put(make_node: Callable[..., Any]) -> None:
    node = make_node(24 * MEGABYTE)
    children = [node.start_process(b"churn%d" % seed, churn, seed, 60) for seed in (1, 2, 3)]
    wait_until(lambda: all(node.call(node.shell.place_of, oid(seed)) is not None for seed in (1, 2, 3)), 60)
    assert node.statistics().spills > 0
    for child in children:
        child.kill()
    node.call(node.shell.free, [oid(seed) for seed in (1, 2, 3)])
    wait_until(lambda: node.statistics().objects == 0 and node.statistics().waiting == 0)
    wait_until(lambda: node.statistics().budget_bytes <= 24 * MEGABYTE and node.statistics().segments <= 1)

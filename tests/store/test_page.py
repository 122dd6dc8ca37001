"""The process page: the started task, and pins, as both sides see them."""

from __future__ import annotations

import os
import random
import threading

import pytest

from shoal.store.mapping import create_shared_memory
from shoal.store.page import RECORD_PAGE_BYTES, ProcessPage, RecordPage


def both_sides() -> tuple[ProcessPage, ProcessPage]:
    ours = ProcessPage.create()
    return ours, ProcessPage.open(os.getpid(), ours.fd)


def test_shared_memory_has_a_fixed_size() -> None:
    fd = create_shared_memory("shoal-test", 1 << 20)
    try:
        assert os.fstat(fd).st_size == 1 << 20
        for size in (0, 2 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        os.pwrite(fd, b"x", 100)
    finally:
        os.close(fd)


def test_the_daemon_reads_what_the_process_has_started() -> None:
    daemon, process = both_sides()
    assert daemon.read_started() == (0, 0)
    process.set_started(7, (1 << 63) + 5)
    assert daemon.read_started() == (7, (1 << 63) + 5)
    daemon.close()


def test_the_daemon_reads_whether_the_task_may_run_once_only() -> None:
    daemon, process = both_sides()
    assert not daemon.runs_once()
    process.set_started(1, 1)
    assert not daemon.runs_once()
    process.set_runs_once(1, 2)
    assert not daemon.runs_once()
    process.set_started(1, 2)
    assert daemon.runs_once()
    process.set_started(2, 2)
    assert not daemon.runs_once()
    daemon.close()


def test_a_torn_read_is_read_again() -> None:
    daemon, process = both_sides()
    stop = threading.Event()

    def write() -> None:
        seq = 0
        while not stop.is_set():
            seq += 1
            process.set_started(seq, 2 * seq)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(5000):
            lease_id, seq = daemon.read_started()
            assert seq == 2 * lease_id
    finally:
        stop.set()
        thread.join()
        daemon.close()


def test_pins_appear_and_vanish_and_the_lowest_slot_is_taken_first() -> None:
    daemon, process = both_sides()
    slots = [process.pin(9, 64 * i) for i in range(5)]
    assert slots == [0, 1, 2, 3, 4]
    assert daemon.pins() == {(9, 64 * i) for i in range(5)}
    process.unpin(3)
    process.unpin(1)
    assert daemon.pins() == {(9, 0), (9, 128), (9, 256)}
    assert process.pin(9, 1000) == 1
    daemon.close()


def test_pins_agree_with_a_dictionary() -> None:
    daemon, process = both_sides()
    rng = random.Random(5)
    twin: dict[int, tuple[int, int]] = {}
    for _ in range(2000):
        if twin and rng.random() < 0.5:
            slot = rng.choice(sorted(twin))
            process.unpin(slot)
            del twin[slot]
        else:
            place = (rng.randrange(1, 1 << 40), rng.randrange(1 << 40))
            slot = process.pin(*place)
            assert slot not in twin
            twin[slot] = place
    assert daemon.pins() == set(twin.values())
    daemon.close()


def test_threads_never_share_a_slot() -> None:
    daemon, process = both_sides()
    got: list[list[int]] = [[] for _ in range(4)]

    def pin_many(mine: list[int]) -> None:
        for i in range(500):
            mine.append(process.pin(1, i))
            if i % 3 == 0:
                process.unpin(mine.pop())

    threads = [threading.Thread(target=pin_many, args=(mine,)) for mine in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slots = [slot for mine in got for slot in mine]
    assert len(slots) == len(set(slots))
    daemon.close()


def test_a_page_that_the_daemon_has_closed_cannot_be_opened() -> None:
    daemon = ProcessPage.create()
    fd = daemon.fd
    daemon.close()
    with pytest.raises(FileNotFoundError):
        ProcessPage.open(os.getpid(), fd)
    other = os.open("/dev/null", os.O_RDWR)
    try:
        with pytest.raises(FileNotFoundError):
            ProcessPage.open(os.getpid(), other)
    finally:
        os.close(other)


def test_records_outlive_their_writer_and_end_when_there_is_no_room() -> None:
    daemon = RecordPage.create()
    writer = RecordPage.open(os.getpid(), daemon.fd)
    assert daemon.entries() == []
    for index in range(1, 20):
        assert writer.append(index, b"x" * index)
    assert daemon.entries() == [(index, b"x" * index) for index in range(1, 20)]
    assert not writer.append(20, bytes(RECORD_PAGE_BYTES))
    assert len(daemon.entries()) == 19
    writer.clear()
    assert daemon.entries() == []
    count = 0
    while writer.append(count, b"y" * 1000):
        count += 1
    assert count > 200
    assert writer.entries() == daemon.entries() == [(index, b"y" * 1000) for index in range(count)]
    daemon.close()


def test_half_a_record_is_none() -> None:
    page = RecordPage.create()
    page.append(1, b"one")
    used = page._words[0]
    page.append(2, b"two")
    page._words[0] = used  # killed before the last store
    assert page.entries() == [(1, b"one")]
    page.close()

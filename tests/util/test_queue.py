"""The shared queue: order, room, time-outs, batches, asyncio."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Iterator
from types import ModuleType

import pytest

from shoal.util.queue import Empty, Full, Queue


@pytest.fixture
def small(shoal_shared: ModuleType) -> Iterator[Queue]:
    made = Queue(maxsize=3, actor_options={"num_cpus": 0})
    yield made
    made.shutdown(force=True)


def test_first_in_first_out(small: Queue) -> None:
    assert small.empty()
    for item in ["a", None, {"b": 1}]:
        small.put(item)
    assert small.full()
    assert len(small) == small.size() == small.qsize() == 3
    assert [small.get() for _ in range(3)] == ["a", None, {"b": 1}]


def test_errors_are_those_of_the_standard_queue(small: Queue) -> None:
    with pytest.raises(Empty):
        small.get_nowait()
    with pytest.raises(queue.Empty):
        small.get(timeout=0.05)
    for item in range(3):
        small.put_nowait(item)
    with pytest.raises(Full):
        small.put_nowait(3)
    with pytest.raises(queue.Full):
        small.put(3, timeout=0.05)
    with pytest.raises(ValueError, match="negative"):
        small.put(3, timeout=-1)
    with pytest.raises(ValueError, match="negative"):
        small.get(timeout=-1)
    assert [small.get() for _ in range(3)] == [0, 1, 2], "what was refused did not enter"


def test_batches_are_all_or_nothing(small: Queue) -> None:
    small.put_nowait_batch([1, 2])
    with pytest.raises(Full):
        small.put_nowait_batch([3, 4])
    with pytest.raises(Empty):
        small.get_nowait_batch(3)
    assert small.get_nowait_batch(2) == [1, 2]
    assert small.get_nowait_batch(0) == []
    with pytest.raises(TypeError):
        small.put_nowait_batch(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        small.get_nowait_batch("1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        small.get_nowait_batch(-1)


def test_a_blocked_get_is_woken_by_a_put_elsewhere(shoal_shared: ModuleType, small: Queue) -> None:
    @shoal_shared.remote(num_cpus=0)
    def put_later(where: Queue, seconds: float) -> None:
        time.sleep(seconds)
        where.put("late")

    done = put_later.remote(small, 0.2)
    assert small.get(timeout=30) == "late"
    shoal_shared.get(done)


def test_producers_and_consumers(shoal_shared: ModuleType, small: Queue) -> None:
    @shoal_shared.remote(num_cpus=0)
    def produce(where: Queue, first: int) -> None:
        for item in range(first, first + 20):
            where.put(item)

    @shoal_shared.remote(num_cpus=0)
    def consume(where: Queue) -> list[int]:
        return [where.get() for _ in range(20)]

    producers = [produce.remote(small, 0), produce.remote(small, 100)]
    consumers = [consume.remote(small), consume.remote(small)]
    taken = shoal_shared.get(consumers)
    shoal_shared.get(producers)
    assert sorted(taken[0] + taken[1]) == [*range(20), *range(100, 120)]


def test_asyncio(small: Queue) -> None:
    async def both() -> list[int]:
        await small.put_async(1)
        await small.put_async(2, block=False)
        taken = [await small.get_async(), await small.get_async(block=False)]
        with pytest.raises(Empty):
            await small.get_async(block=False)
        with pytest.raises(Empty):
            await small.get_async(timeout=0.05)
        waiting = asyncio.ensure_future(small.get_async())
        await asyncio.sleep(0.05)
        await small.put_async(3)
        taken.append(await waiting)
        return taken

    assert asyncio.run(both()) == [1, 2, 3]


def test_shutdown(shoal_shared: ModuleType) -> None:
    made = Queue(actor_options={"num_cpus": 0})
    made.put(1)
    actor = made.actor
    made.shutdown()
    made.shutdown()
    with pytest.raises(shoal_shared.exceptions.ActorDiedError):
        for _ in range(500):  # what arrived before it left is still answered
            shoal_shared.get(actor.qsize.remote(), timeout=30)
            time.sleep(0.01)

"""Generators: streams, backpressure, failures in the middle, retries, the dynamic form."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal import exceptions
from shoal.runtime import core

pytestmark = [pytest.mark.usefixtures("shoal_session")]


def fetch(refs: Any, timeout: float = 60.0) -> Any:
    return shoal.get(refs, timeout=timeout)


def await_true(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@shoal.remote
def numbers(count: int, pause_s: float = 0) -> Any:
    for number in range(count):
        if pause_s:
            time.sleep(pause_s)
        yield number


def test_a_generator_streams_by_default() -> None:
    items = numbers.remote(1000)
    assert isinstance(items, shoal.ObjectRefGenerator)
    assert [fetch(ref) for ref in items] == list(range(1000))
    assert items.is_finished()
    with pytest.raises(StopIteration):
        next(items)
    assert list(numbers.remote(0)) == []
    assert [fetch(ref) for ref in numbers.options(num_returns="streaming").remote(3)] == [0, 1, 2]


@shoal.remote
def gated(folder: Path, count: int) -> Any:
    """Yields each number when there is a file of that name."""
    for number in range(count):
        await_true((folder / str(number)).exists)
        yield number


def test_items_come_while_the_task_runs(tmp_path: Path) -> None:
    items = gated.remote(tmp_path, 2)
    for number in range(2):
        (tmp_path / str(number)).touch()
        assert fetch(next(items)) == number
    assert list(items) == []


def test_a_list_collects_a_generator_of_known_length() -> None:
    assert fetch(numbers.options(num_returns=3).remote(3)) == [0, 1, 2]


def test_dynamic_gives_an_iterable_of_refs() -> None:
    made = fetch(numbers.options(num_returns="dynamic").remote(5))
    assert len(made) == 5
    assert [fetch(ref) for ref in made] == [0, 1, 2, 3, 4]


def test_large_items_and_refs_inside_items() -> None:
    @shoal.remote
    def arrays(count: int) -> Any:
        for number in range(count):
            yield np.full(100_000, number)

    sums = [int(fetch(ref)[0]) for ref in arrays.remote(5)]
    assert sums == [0, 1, 2, 3, 4]

    @shoal.remote
    def nested() -> Any:
        for number in range(3):
            yield [shoal.put(number)]

    assert [fetch(fetch(ref)[0]) for ref in nested.remote()] == [0, 1, 2]


def test_items_are_arguments() -> None:
    @shoal.remote
    def double(x: int) -> int:
        return 2 * x

    assert fetch([double.remote(ref) for ref in numbers.remote(10)]) == [2 * i for i in range(10)]


def test_an_exception_stands_where_it_was_raised_then_the_stream_ends() -> None:
    @shoal.remote
    def broken() -> Any:
        yield 1
        yield 2
        raise KeyError("broken")

    items = broken.remote()
    assert fetch(next(items)) == 1
    assert fetch(next(items)) == 2
    with pytest.raises(KeyError, match="broken"):
        fetch(next(items))
    with pytest.raises(StopIteration):
        next(items)


def test_an_item_that_cannot_travel_ends_the_stream_with_the_reason() -> None:
    import threading

    @shoal.remote
    def odd() -> Any:
        yield 1
        yield threading.Lock()

    items = odd.remote()
    assert fetch(next(items)) == 1
    with pytest.raises(TypeError, match="lock"):
        fetch(next(items))
    with pytest.raises(StopIteration):
        next(items)


def test_backpressure_holds_the_producer(tmp_path: Path) -> None:
    @shoal.remote(_generator_backpressure_num_objects=2)
    def counted(path: Path) -> Any:
        for number in range(8):
            with path.open("a") as file:
                file.write("x")
            yield number

    path = tmp_path / "made"
    items = counted.remote(path)
    await_true(path.exists)
    time.sleep(0.3)
    assert len(path.read_text()) <= 3
    assert fetch(next(items)) == 0
    time.sleep(0.3)
    assert len(path.read_text()) <= 4
    assert [fetch(ref) for ref in items] == list(range(1, 8))


def test_a_held_back_producer_lends_its_cpu() -> None:
    streams = [numbers.options(_generator_backpressure_num_objects=1).remote(3) for _ in range(3)]
    time.sleep(0.2)
    assert fetch(shoal.remote(lambda: "ran").remote()) == "ran"
    assert [[fetch(ref) for ref in items] for items in streams] == [[0, 1, 2]] * 3


def test_async_for() -> None:
    async def consume() -> list[int]:
        return [await ref async for ref in numbers.remote(30, 0.001)]

    async def both() -> Any:
        return await asyncio.gather(consume(), consume())

    assert asyncio.run(both()) == [list(range(30))] * 2


def test_wait_on_streams(tmp_path: Path) -> None:
    items = gated.remote(tmp_path, 2)
    assert shoal.wait([items], timeout=0) == ([], [items])
    (tmp_path / "0").touch()
    ready, rest = shoal.wait([items], timeout=60)
    assert ready == [items] and rest == []
    assert fetch(next(items)) == 0
    done = shoal.put(1)
    (tmp_path / "1").touch()
    ready, rest = shoal.wait([items, done], num_returns=2, timeout=60)
    assert ready == [items, done]
    assert fetch(next(items)) == 1
    ready, rest = shoal.wait([items], timeout=60)  # the end counts as ready
    assert ready == [items]


def test_next_with_a_timeout_and_next_ready(tmp_path: Path) -> None:
    items = gated.remote(tmp_path, 1)
    assert not items.next_ready()
    with pytest.raises(exceptions.GetTimeoutError):
        items._next_sync(0.05)
    (tmp_path / "0").touch()
    assert fetch(items._next_sync(60)) == 0


def test_completed_is_ready_when_the_stream_has_ended() -> None:
    items = numbers.remote(3)
    assert fetch(items.completed()) is None
    assert [fetch(ref) for ref in items] == [0, 1, 2]


def test_a_crashed_stream_is_made_again_and_repeats_nothing(tmp_path: Path) -> None:
    @shoal.remote(max_retries=2)
    def crashing(path: Path) -> Any:
        for number in range(10):
            yield number
            if number == 5 and not path.exists():
                path.touch()
                time.sleep(0.1)
                os._exit(1)

    assert [fetch(ref) for ref in crashing.remote(tmp_path / "once")] == list(range(10))


@pytest.mark.parametrize("how", ["crash", "error"])
def test_what_has_come_already_is_not_stored_again(tmp_path: Path, how: str) -> None:
    """Items that were taken and let go before the second attempt leave nothing in the store."""

    @shoal.remote(max_retries=2, retry_exceptions=True)
    def large(path: Path) -> Any:
        for number in range(4):
            if number == 3 and not path.exists():
                await_true(path.with_suffix(".taken").exists)
                path.touch()
                if how == "crash":
                    os._exit(1)
                raise ValueError("once")
            yield np.full(40_000, number)

    def first_of_next() -> int:
        return int(fetch(next(items))[0])

    items = large.remote(tmp_path / "once")
    assert [first_of_next() for _ in range(3)] == [0, 1, 2]
    (tmp_path / "once.taken").touch()
    assert first_of_next() == 3
    assert list(items) == []
    await_true(lambda: not core.current().call("node.stored")["stored"])


@shoal.remote(max_retries=1)
def shorter(path: Path, count: int) -> Any:
    """The second time it yields two items."""
    yield from range(2 if path.exists() else count)
    if not path.exists():
        await_true(path.with_suffix(".taken").exists)
        path.touch()
        os._exit(1)


@pytest.mark.parametrize("count", [2, 3])
def test_a_retried_stream_that_is_shorter_than_what_has_come_says_so(tmp_path: Path, count: int) -> None:
    items = shorter.remote(tmp_path / "once", count)
    assert [fetch(next(items)) for _ in range(count)] == list(range(count))
    (tmp_path / "once.taken").touch()
    rest = list(items)
    if count == 2:
        assert rest == []
        return
    with pytest.raises(exceptions.StreamingGeneratorReplayInconsistentError, match=r"shorter yielded 3.*and 2 when"):
        fetch(rest[0])
    assert len(rest) == 1


def test_a_stream_that_fails_is_retried_when_asked(tmp_path: Path) -> None:
    @shoal.remote(max_retries=2, retry_exceptions=True)
    def flaky(path: Path) -> Any:
        yield 0
        yield 1
        if not path.exists():
            path.touch()
            raise ValueError("once")
        yield 2

    assert [fetch(ref) for ref in flaky.remote(tmp_path / "once")] == [0, 1, 2]


def test_a_crash_without_retries_ends_the_stream(tmp_path: Path) -> None:
    @shoal.remote(max_retries=0)
    def crashing(came: Path) -> Any:
        yield 1
        await_true(came.exists)
        os._exit(1)

    items = crashing.remote(tmp_path / "came")
    assert fetch(next(items)) == 1
    (tmp_path / "came").touch()
    with pytest.raises(exceptions.WorkerCrashedError):
        fetch(next(items))
    with pytest.raises(StopIteration):
        next(items)


def test_an_abandoned_stream_that_is_held_back_ends(tmp_path: Path) -> None:
    @shoal.remote(_generator_backpressure_num_objects=1)
    def endless(path: Path) -> Any:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            path.touch()

    items = endless.remote(tmp_path / "closed")
    for number in range(5):
        assert fetch(next(items)) == number
    del items
    await_true((tmp_path / "closed").exists)


@shoal.remote
def large_numbers(count: int, fails: bool) -> Any:
    yield from (np.full(40_000, number) for number in range(count))
    if fails:
        raise ValueError("after all items")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("taken", [0, 2])
def test_items_that_nobody_took_go_with_the_consumer(taken: int, fails: bool) -> None:
    """They are freed, though the record of how to make them again keeps their stream."""
    items = large_numbers.remote(4, fails)
    fetch(items.completed())
    assert [int(fetch(next(items))[0]) for _ in range(taken)] == list(range(taken))
    del items
    await_true(lambda: not core.current().call("node.stored")["stored"])


def test_items_that_came_before_the_consumer_went_are_freed_while_the_task_runs(tmp_path: Path) -> None:
    @shoal.remote
    def large(path: Path) -> Any:
        yield np.zeros(40_000)
        yield np.zeros(40_000)
        await_true(path.exists)

    items = large.remote(tmp_path / "end")
    await_true(lambda: len(core.current().call("node.stored")["stored"]) == 2)
    await_true(items.next_ready)
    del items
    await_true(lambda: not core.current().call("node.stored")["stored"])
    (tmp_path / "end").touch()


def test_a_stream_inside_a_task() -> None:
    @shoal.remote
    def total(count: int) -> int:
        return sum(shoal.get(ref) for ref in numbers.remote(count))

    assert fetch(total.remote(20)) == 190


def test_generators_do_not_travel() -> None:
    with pytest.raises(TypeError, match="send the refs"):
        shoal.put(numbers.remote(1))

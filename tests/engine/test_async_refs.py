"""`await ref`, futures and as_completed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from typing import Any

import pytest

import shoal
from shoal.util import as_completed

pytestmark = pytest.mark.usefixtures("shoal_session")


@shoal.remote(num_cpus=0)
def slow(value: Any, seconds: float = 0.05) -> Any:
    time.sleep(seconds)
    return value


@shoal.remote
def fail() -> None:
    raise KeyError("no")


def test_await_in_the_driver() -> None:
    async def main() -> Any:
        ref = shoal.put("put")
        return await ref, await slow.remote("task"), await ref

    assert asyncio.run(main()) == ("put", "task", "put")


def test_gather_and_wait_for() -> None:
    async def main() -> Any:
        values = await asyncio.gather(*[slow.remote(i, 0.01 * (5 - i)) for i in range(5)])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(slow.remote(1, 100), 0.05)
        return values

    start = time.perf_counter()
    assert asyncio.run(main()) == list(range(5))
    assert time.perf_counter() - start < 60


def test_await_raises() -> None:
    async def main() -> None:
        with pytest.raises(KeyError):
            await fail.remote()

    asyncio.run(main())


def test_many_awaits_while_the_loop_lives() -> None:
    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticker = asyncio.ensure_future(tick())
        await asyncio.gather(*[slow.remote(i, 0.1) for i in range(4)])
        ticker.cancel()
        return ticks

    assert asyncio.run(main()) >= 5


def test_await_of_borrowed_refs_in_an_asyncio_actor() -> None:
    @shoal.remote
    class Fetcher:
        async def fetch(self, refs: list[Any]) -> Any:
            return await asyncio.gather(*refs)

        async def make(self) -> Any:
            return await slow.remote("made", 0.02)

        async def both(self, value: Any) -> Any:
            return value

    fetcher = Fetcher.remote()
    assert shoal.get(fetcher.fetch.remote([slow.remote(i) for i in range(4)]), timeout=60) == [0, 1, 2, 3]
    assert shoal.get(fetcher.make.remote(), timeout=60) == "made"
    assert shoal.get(fetcher.both.remote(slow.remote(3)), timeout=60) == 3
    with pytest.raises(KeyError):
        shoal.get(fetcher.fetch.remote([fail.remote()]), timeout=60)


def test_futures() -> None:
    future = slow.remote(4).future()
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(60) == 4
    assert shoal.put(5).future().result(60) == 5
    with pytest.raises(KeyError):
        fail.remote().future().result(60)
    called = threading.Event()
    slow.remote(1).future().add_done_callback(lambda done: called.set())
    assert called.wait(60)


def test_futures_with_concurrent_wait() -> None:
    futures = [slow.remote(i, 0.02 * i).future() for i in range(4)]
    done, rest = concurrent.futures.wait(futures, 10)
    assert not rest
    assert sorted(future.result() for future in done) == [0, 1, 2, 3]


def test_wrapped_as_asyncio_futures() -> None:
    async def main() -> Any:
        return await asyncio.wrap_future(slow.remote(9).future())

    assert asyncio.run(main()) == 9


def test_a_future_whose_ref_is_dropped() -> None:
    future = slow.remote([shoal.put(1)]).future()
    assert shoal.get(future.result(60)[0]) == 1


def test_as_completed() -> None:
    refs = [slow.remote(i, 0.15 * (2 - i)) for i in range(3)]
    assert list(as_completed(refs)) == [2, 1, 0]
    assert set(as_completed(refs, yield_obj_refs=True)) == set(refs)
    assert list(as_completed([])) == []


def test_get_inside_a_running_loop() -> None:
    async def main() -> Any:
        return shoal.get(slow.remote(2))

    assert asyncio.run(main()) == 2


def test_awaits_in_two_loops_at_once() -> None:
    async def main(n: int) -> Any:
        return await asyncio.gather(*[slow.remote(n * 10 + i, 0.01) for i in range(5)])

    results: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: asyncio.run(main(n))})) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {n: [n * 10 + i for i in range(5)] for n in range(3)}


def test_a_cancelled_await_leaves_the_task_alone() -> None:
    async def main() -> Any:
        ref = slow.remote("kept", 0.2)
        waiting = asyncio.ensure_future(_value(ref))
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return await ref

    assert asyncio.run(main()) == "kept"


async def _value(ref: Any) -> Any:
    return await ref

"""Local mode: everything in this process, with the same errors."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import shoal
from shoal import exceptions

pytestmark = [pytest.mark.usefixtures("local_session")]


@pytest.fixture(autouse=True, scope="module")
def local_session() -> Iterator[None]:
    shoal.shutdown()
    shoal.init(local_mode=True, num_cpus=2, num_gpus=1, resources={"sea": 1}, namespace="here")
    yield
    shoal.shutdown()


@shoal.remote
def add(a: int, b: int = 2) -> int:
    return a + b


def test_tasks_run_here_and_at_once() -> None:
    seen: list[int] = []

    @shoal.remote
    def pid() -> tuple[int, int]:
        seen.append(1)
        return os.getpid(), threading.get_ident()

    ref = pid.remote()
    assert seen == [1]
    assert shoal.get(ref) == (os.getpid(), threading.get_ident())
    assert shoal.get([add.remote(1), add.remote(add.remote(1), b=add.remote(0))]) == [3, 5]
    assert shoal.wait([ref], timeout=0) == ([ref], [])


def test_values_are_copies_and_read_only_arrays() -> None:
    @shoal.remote
    def change(items: list[int]) -> list[int]:
        items.append(1)
        return items

    mine = [0]
    assert shoal.get(change.remote(mine)) == [0, 1]
    assert mine == [0]
    assert not shoal.get(shoal.put(np.zeros(200_000))).flags.writeable


def test_nested_tasks_and_nested_refs() -> None:
    @shoal.remote
    def fib(n: int) -> int:
        return n if n < 2 else sum(shoal.get([fib.remote(n - 1), fib.remote(n - 2)]))

    @shoal.remote
    def look(refs: list[Any]) -> Any:
        return [shoal.put(shoal.get(refs[0]) + 1)]

    assert shoal.get(fib.remote(8)) == 21
    (ref,) = shoal.get(look.remote([shoal.put(1)]))
    assert shoal.get(ref) == 2


def test_errors_have_the_same_types() -> None:
    class MyError(Exception):
        pass

    @shoal.remote
    def fail() -> None:
        raise MyError("mine")

    for ref in (fail.remote(), add.remote(fail.remote())):
        with pytest.raises(MyError, match="mine") as caught:
            shoal.get(ref)
        assert isinstance(caught.value, exceptions.TaskError)
    with pytest.raises(TypeError):
        add.remote()
    with pytest.raises(TypeError, match="lock"):
        add.remote(threading.Lock())
    with pytest.raises(TypeError, match="lock"):
        shoal.get(shoal.remote(lambda: threading.Lock()).remote())
    with pytest.raises(exceptions.TaskUnschedulableError, match="99 CPU"):
        shoal.get(add.options(num_cpus=99).remote(1))
    with pytest.raises(exceptions.WorkerCrashedError) as crashed:
        shoal.get(shoal.remote(lambda: sys.exit(3)).remote())
    assert crashed.value.exit_code == 3


def test_retries_and_several_returns() -> None:
    tries: list[int] = []

    @shoal.remote(retry_exceptions=True, max_retries=2)
    def flaky() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError
        return len(tries)

    assert shoal.get(flaky.remote()) == 3
    assert shoal.get(shoal.remote(num_returns=2)(lambda: (1, 2)).remote()) == [1, 2]
    with pytest.raises(ValueError, match="returned 2 values"):
        shoal.get(shoal.remote(num_returns=3)(lambda: (1, 2)).remote()[0])


def test_streams_run_as_far_as_they_are_read() -> None:
    made: list[int] = []

    @shoal.remote
    def count() -> Any:
        number = 0
        while True:
            made.append(number)
            yield number
            number += 1

    items = count.remote()
    assert [shoal.get(next(items)) for _ in range(3)] == [0, 1, 2]
    assert made == [0, 1, 2]
    assert shoal.wait([items])[0] == [items]
    shoal.cancel(items)
    assert shoal.get(next(items)) == 3
    with pytest.raises(exceptions.TaskCancelledError):
        shoal.get(next(items))
    with pytest.raises(StopIteration):
        next(items)

    @shoal.remote
    def broken() -> Any:
        yield 1
        raise KeyError("k")

    items = broken.remote()
    assert shoal.get(next(items)) == 1
    with pytest.raises(KeyError):
        shoal.get(next(items))
    assert list(items) == []
    made_refs = shoal.get(shoal.remote(num_returns="dynamic")(broken_free).remote())
    assert [shoal.get(ref) for ref in made_refs] == [1, 2]


def broken_free() -> Any:
    yield 1
    yield 2


def test_actors() -> None:
    @shoal.remote
    class Counter:
        def __init__(self, start: int = 0) -> None:
            self.count = start

        def add(self, n: int = 1) -> int:
            self.count += n
            return self.count

        def fail(self) -> None:
            raise KeyError("inside")

        def leave(self) -> None:
            shoal.exit_actor()

        def numbers(self, n: int) -> Any:
            yield from range(n)

        @shoal.method(num_returns=2)
        def two(self) -> Any:
            return 1, 2

    counter = Counter.remote(5)
    assert shoal.get([counter.add.remote(), counter.add.remote(2)]) == [6, 8]
    with pytest.raises(KeyError):
        shoal.get(counter.fail.remote())
    assert shoal.get(counter.two.remote()) == [1, 2]
    assert [shoal.get(ref) for ref in counter.numbers.remote(3)] == [0, 1, 2]

    @shoal.remote
    def use(handle: Any) -> int:
        return int(shoal.get(handle.add.remote(10)))

    assert shoal.get(use.remote(counter)) == 18
    with pytest.raises(exceptions.ActorDiedError):
        shoal.get(counter.leave.remote())
    with pytest.raises(exceptions.ActorDiedError):
        shoal.get(counter.add.remote())

    class Broken:
        def __init__(self) -> None:
            raise ValueError("no")

        def call(self) -> None: ...

    with pytest.raises(exceptions.ActorDiedError, match="no") as caught:
        shoal.get(shoal.remote(Broken).remote().call.remote())
    assert caught.value.actor_init_failed


def test_named_actors_kill_and_restart() -> None:
    class Plain:
        def __init__(self) -> None:
            self.calls = 0

        def call(self) -> int:
            self.calls += 1
            return self.calls

    named = shoal.remote(Plain).options(name="one", max_restarts=1).remote()
    with pytest.raises(ValueError):
        shoal.remote(Plain).options(name="one").remote()
    assert shoal.remote(Plain).options(name="one", get_if_exists=True).remote() == named
    assert shoal.get(shoal.get_actor("one").call.remote()) == 1
    shoal.kill(named, no_restart=False)
    assert shoal.get(named.call.remote()) == 1
    shoal.kill(named)
    with pytest.raises(exceptions.ActorDiedError):
        shoal.get(named.call.remote())
    with pytest.raises(ValueError):
        shoal.get_actor("one")
    other = shoal.remote(Plain).options(name="two").remote()
    assert shoal.get(other.call.remote()) == 1
    del other
    shoal.put(0)
    with pytest.raises(ValueError):
        shoal.get_actor("two")


def test_async_actors_and_await() -> None:
    @shoal.remote
    class Slow:
        async def double(self, x: int) -> int:
            await asyncio.sleep(0)
            return 2 * x

        async def stream(self) -> Any:
            for number in range(3):
                await asyncio.sleep(0)
                yield number

    slow = Slow.remote()
    assert shoal.get(slow.double.remote(4)) == 8
    assert [shoal.get(ref) for ref in slow.stream.remote()] == [0, 1, 2]

    async def main() -> Any:
        return await slow.double.remote(1), [await ref async for ref in slow.stream.remote()]

    assert asyncio.run(main()) == (2, [0, 1, 2])
    assert slow.double.remote(3).future().result(60) == 6


def test_what_is_told_about_the_session() -> None:
    @shoal.remote(num_gpus=1)
    def ids() -> Any:
        return shoal.get_gpu_ids(), shoal.get_runtime_context().get_task_id()

    gpus, task_id = shoal.get(ids.remote())
    assert gpus == [0] and task_id
    assert shoal.cluster_resources()["sea"] == 1
    assert shoal.get_runtime_context().namespace == "here"
    assert len(shoal.nodes()) == 1
    assert shoal.is_initialized()


def test_no_objects_are_left() -> None:
    from shoal.runtime import core

    runtime = core.current()
    for _ in range(100):
        shoal.get(add.remote([shoal.put(1)] and 1))
        shoal.get(shoal.put([shoal.put(1), shoal.put(2)]))
    shoal.put(0)
    assert len(runtime.objects.table) < 20

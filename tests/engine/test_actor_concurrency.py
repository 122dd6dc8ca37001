"""Threaded and asyncio actors, concurrency groups, and cancelling calls of every kind of actor."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.exceptions import TaskCancelledError

pytestmark = pytest.mark.usefixtures("shoal_session")

WAIT_S = 60


def get(refs: Any) -> Any:
    """The values, in bounded time."""
    return shoal.get(refs, timeout=WAIT_S)


@shoal.remote
class Threaded:
    def __init__(self) -> None:
        self.barrier = threading.Barrier(3)
        self.running = 0
        self.most = 0
        self.gate = threading.Event()
        self.ran: list[int] = []

    def meet(self) -> int:
        return self.barrier.wait(WAIT_S)

    def count(self, seconds: float) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(seconds)
        self.running -= 1
        return self.most

    def thread(self) -> str:
        return threading.current_thread().name

    def wait_gate(self) -> bool:
        return self.gate.wait(WAIT_S)

    def open_gate(self) -> None:
        self.gate.set()

    def note(self, number: int) -> None:
        self.ran.append(number)

    def noted(self) -> list[int]:
        return self.ran

    def until_cancelled(self) -> bool:
        self.gate.set()
        context = shoal.get_runtime_context()
        deadline = time.perf_counter() + WAIT_S
        while not context.is_canceled():
            if time.perf_counter() > deadline:
                return False
            time.sleep(0.005)
        self.ran.append(-1)
        return True

    def nested(self, refs: list[Any]) -> Any:
        return shoal.get(refs[0])

    def items(self, count: int) -> Any:
        yield from range(count)


@shoal.remote
class Loop:
    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.order: list[int] = []
        self.cancelled = 0
        self.event: asyncio.Event | None = None

    async def count(self, seconds: float) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(seconds)
        self.running -= 1
        return self.most

    def plain(self) -> bool:
        return asyncio.get_running_loop().is_running()

    async def note(self, number: int) -> None:
        self.order.append(number)

    async def noted(self) -> list[int]:
        return self.order

    async def awaits(self, refs: list[Any]) -> Any:
        return await refs[0]

    async def gathers(self, refs: list[Any]) -> Any:
        return await asyncio.gather(*refs)

    async def blocks(self, refs: list[Any]) -> Any:
        return shoal.get(refs)

    async def waits(self, refs: list[Any]) -> int:
        return len(shoal.wait(refs, num_returns=len(refs))[0])

    async def submits(self, count: int) -> int:
        return sum([await double.remote(index) for index in range(count)])

    async def items(self, count: int) -> Any:
        for index in range(count):
            await asyncio.sleep(0)
            yield index

    async def items_then_fail(self) -> Any:
        yield 1
        raise ValueError("no more")

    async def fail(self) -> None:
        raise KeyError("asynchronous")

    async def sleep(self, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "slept"

    async def cancellations(self) -> int:
        return self.cancelled

    async def name(self) -> tuple[Any, Any]:
        context = shoal.get_runtime_context()
        before = context.get_task_id()
        await asyncio.sleep(0.01)
        return before, context.get_task_id()

    async def in_executor(self, refs: list[Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, shoal.get, refs)


@shoal.remote
class Plain:
    def __init__(self) -> None:
        self.ran: list[int] = []

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def spin(self, seconds: float) -> str:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return "spun"

    def nested(self, refs: list[Any]) -> Any:
        return shoal.get(refs[0])

    def note(self, number: int) -> int:
        self.ran.append(number)
        return number

    def noted(self) -> list[int]:
        return self.ran


@shoal.remote
def double(value: int) -> int:
    return 2 * value


@shoal.remote
def later(value: Any, seconds: float = 0.3) -> Any:
    time.sleep(seconds)
    return value


@shoal.remote
def once_there(value: Any, path: Path) -> Any:
    while not path.exists():
        time.sleep(0.01)
    return value


# ---------------------------------------------------------------- threads


def test_threads_run_calls_side_by_side() -> None:
    actor = Threaded.options(max_concurrency=3).remote()
    assert sorted(get([actor.meet.remote() for _ in range(3)])) == [0, 1, 2]
    assert max(get([actor.count.remote(0.02) for _ in range(12)])) == 3


def test_a_slow_argument_does_not_hold_back_calls_of_a_threaded_actor(tmp_path: Path) -> None:
    actor = Threaded.options(max_concurrency=2).remote()
    slow = actor.note.remote(once_there.remote(1, tmp_path / "noted"))
    get(actor.note.remote(2))
    (tmp_path / "noted").touch()
    get(slow)
    assert get(actor.noted.remote()) == [2, 1]


def test_one_call_may_wait_for_another() -> None:
    actor = Threaded.options(max_concurrency=2).remote()
    waiting = actor.wait_gate.remote()
    get(actor.open_gate.remote())
    assert get(waiting) is True


def test_threads_get_refs_and_stream() -> None:
    actor = Threaded.options(max_concurrency=4).remote()
    assert get([actor.nested.remote([later.remote(index, 0.05)]) for index in range(8)]) == list(range(8))
    assert [get(ref) for ref in actor.items.remote(5)] == [0, 1, 2, 3, 4]


def test_concurrency_groups() -> None:
    @shoal.remote(concurrency_groups={"io": 2, "compute": 1})
    class Grouped:
        def __init__(self) -> None:
            self.together = threading.Barrier(3)

        @shoal.method(concurrency_group="io")
        def io(self) -> str:
            self.together.wait(WAIT_S)
            return threading.current_thread().name

        @shoal.method(concurrency_group="compute")
        def compute(self) -> str:
            self.together.wait(WAIT_S)
            return threading.current_thread().name

        def default(self) -> str:
            return threading.current_thread().name

    actor = Grouped.remote()
    get(actor.__ray_ready__.remote())
    names = get([actor.io.remote(), actor.io.remote(), actor.compute.remote(), actor.default.remote()])
    assert len(set(names)) == 4
    assert get(actor.default.options(concurrency_group="io").remote()) in names[:2]
    with pytest.raises(ValueError, match=r"nothing.*io"):
        actor.default.options(concurrency_group="nothing").remote()


def test_a_method_of_an_unknown_group_is_refused_at_creation() -> None:
    @shoal.remote
    class Wrong:
        @shoal.method(concurrency_group="absent")
        def call(self) -> None: ...

    with pytest.raises(ValueError, match="absent"):
        Wrong.remote()


def test_groups_of_coroutines() -> None:
    @shoal.remote(concurrency_groups={"one": 1})
    class Grouped:
        def __init__(self) -> None:
            self.running = {"one": 0, "all": 0}
            self.most = {"one": 0, "all": 0}

        async def _run(self, group: str) -> int:
            self.running[group] += 1
            self.most[group] = max(self.most[group], self.running[group])
            await asyncio.sleep(0.02)
            self.running[group] -= 1
            return self.most[group]

        @shoal.method(concurrency_group="one")
        async def one(self) -> int:
            return await self._run("one")

        async def all(self) -> int:
            return await self._run("all")

    actor = Grouped.remote()
    assert max(get([actor.one.remote() for _ in range(5)])) == 1
    assert max(get([actor.all.remote() for _ in range(5)])) == 5


# ---------------------------------------------------------------- asyncio


def test_a_thousand_awaits_at_once() -> None:
    actor = Loop.remote()
    assert max(get([actor.count.remote(0.5) for _ in range(1000)])) == 1000


def test_max_concurrency_bounds_coroutines() -> None:
    actor = Loop.options(max_concurrency=3).remote()
    assert max(get([actor.count.remote(0.01) for _ in range(20)])) == 3
    one = Loop.options(max_concurrency=1).remote()
    assert max(get([one.count.remote(0.005) for _ in range(5)])) == 1


def test_coroutines_start_in_order() -> None:
    actor = Loop.remote()
    for number in range(500):
        actor.note.remote(number)
    assert get(actor.noted.remote()) == list(range(500))


def test_plain_methods_run_on_the_loop() -> None:
    assert get(Loop.remote().plain.remote()) is True


def test_coroutines_await_and_get_refs() -> None:
    actor = Loop.remote()
    assert get(actor.awaits.remote([later.remote("value", 0.05)])) == "value"
    assert get(actor.gathers.remote([later.remote(index, 0.02) for index in range(4)])) == [0, 1, 2, 3]
    assert get(actor.blocks.remote([later.remote("blocking", 0.05)])) == ["blocking"]
    assert get(actor.waits.remote([later.remote(index, 0.02) for index in range(3)])) == 3
    assert get(actor.submits.remote(10)) == 90
    assert get(actor.in_executor.remote([later.remote(1, 0.02)])) == [1]
    assert get([actor.awaits.remote([later.remote(index, 0.02)]) for index in range(10)]) == list(range(10))


def test_coroutines_stream() -> None:
    actor = Loop.remote()
    assert [get(ref) for ref in actor.items.remote(5)] == [0, 1, 2, 3, 4]
    stream = actor.items.options(_generator_backpressure_num_objects=1).remote(4)
    assert [get(ref) for ref in stream] == [0, 1, 2, 3]
    got = []
    with pytest.raises(ValueError, match="no more"):
        for ref in actor.items_then_fail.remote():
            got.append(get(ref))
    assert got == [1]


def test_coroutine_errors() -> None:
    actor = Loop.remote()
    with pytest.raises(KeyError, match="asynchronous"):
        get(actor.fail.remote())
    assert get(actor.plain.remote())


def test_each_coroutine_has_its_own_context() -> None:
    actor = Loop.remote()
    names = get([actor.name.remote() for _ in range(5)])
    assert all(before == after for before, after in names)
    assert len(set(names)) == 5


def test_actors_from_asyncio_code() -> None:
    actor = Loop.remote()

    async def main() -> list[Any]:
        values = await asyncio.gather(*(actor.count.remote(0.01) for _ in range(20)))
        streamed = [await ref async for ref in actor.items.remote(3)]
        return [len(values), *streamed]

    assert asyncio.run(asyncio.wait_for(main(), WAIT_S)) == [20, 0, 1, 2]


# ---------------------------------------------------------------- cancelling


def test_cancel_a_queued_call_answers_at_once() -> None:
    actor = Plain.remote()
    running = actor.sleep.remote(100)
    queued = [actor.note.remote(number) for number in range(4)]
    time.sleep(0.05)
    shoal.cancel(queued[1])
    with pytest.raises(TaskCancelledError, match="before it ran"):
        get(queued[1])
    shoal.cancel(running)
    assert get([queued[0], queued[2], queued[3]]) == [0, 2, 3]
    assert get(actor.noted.remote()) == [0, 2, 3]


def test_cancel_right_after_submitting_loses_nothing() -> None:
    actor = Plain.remote()
    for number in range(50):
        cancelled = actor.note.remote(-1)
        shoal.cancel(cancelled)
        assert get(actor.note.remote(number)) == number
        try:
            get(cancelled)
        except TaskCancelledError:
            pass
    assert [number for number in get(actor.noted.remote()) if number >= 0] == list(range(50))


@pytest.mark.parametrize("method", ["sleep", "spin"])
def test_cancel_a_running_call(method: str) -> None:
    actor = Plain.remote()
    get(actor.note.remote(0))
    running = getattr(actor, method).remote(100)
    time.sleep(0.1)
    shoal.cancel(running)
    with pytest.raises(TaskCancelledError):
        get(running)
    assert get(actor.note.remote(1)) == 1


def test_cancel_a_call_that_waits_in_get() -> None:
    actor = Plain.remote()
    awaited = later.remote(1, 100)
    running = actor.nested.remote([awaited])
    time.sleep(0.1)
    shoal.cancel(running)
    with pytest.raises(TaskCancelledError):
        get(running)
    assert get(actor.note.remote(1)) == 1
    shoal.cancel(awaited)


def test_cancel_concerns_only_the_callers_own_call() -> None:
    actor = Plain.remote()

    @shoal.remote
    def call(handles: list[Any]) -> str:
        return str(shoal.get(handles[0].sleep.remote(0.3)))

    other = call.remote([actor])
    time.sleep(0.15)
    mine = actor.note.remote(1)
    shoal.cancel(mine)
    assert get(other) == "slept"


def test_cancel_a_call_that_waits_for_its_argument() -> None:
    actor = Plain.remote()
    waiting = actor.note.remote(later.remote(1))
    following = actor.note.remote(2)
    shoal.cancel(waiting)
    with pytest.raises(TaskCancelledError):
        get(waiting)
    assert get(following) == 2
    assert get(actor.noted.remote()) == [2]


def test_cancel_in_a_thread_sets_a_flag() -> None:
    actor = Threaded.options(max_concurrency=2).remote()
    get(actor.noted.remote())
    running = actor.until_cancelled.remote()
    assert get(actor.wait_gate.remote()), "it runs"
    shoal.cancel(running)
    with pytest.raises(TaskCancelledError):
        get(running)
    assert get(actor.noted.remote()) == [-1]


def test_cancel_a_call_that_waits_for_a_thread() -> None:
    actor = Threaded.options(max_concurrency=2).remote()
    waiting = [actor.wait_gate.remote(), actor.wait_gate.remote()]
    queued = actor.note.remote(1)
    time.sleep(0.05)
    shoal.cancel(queued)
    with pytest.raises(TaskCancelledError, match="before it ran"):
        get(queued)
    for ref in waiting:
        shoal.cancel(ref)
    shoal.kill(actor)


def test_cancel_a_coroutine() -> None:
    actor = Loop.remote()
    get(actor.plain.remote())
    running = actor.sleep.remote(100)
    assert get(actor.sleep.remote(0.0)) == "slept", "what was called before runs"
    others = [actor.sleep.remote(0.2) for _ in range(3)]
    shoal.cancel(running)
    with pytest.raises(TaskCancelledError):
        get(running)
    assert get(others) == ["slept"] * 3
    assert get(actor.cancellations.remote()) == 1


def test_cancel_a_coroutine_that_waits_its_turn() -> None:
    actor = Loop.options(max_concurrency=1).remote()
    first = actor.sleep.remote(100)
    second = actor.note.remote(1)
    time.sleep(0.05)
    shoal.cancel(second)
    with pytest.raises(TaskCancelledError):
        get(second)
    shoal.cancel(first)
    assert get(actor.noted.remote()) == []


def test_cancel_a_stream() -> None:
    @shoal.remote
    class Endless:
        def items(self) -> Any:
            number = 0
            while True:
                yield number
                number += 1
                time.sleep(0.01)

        def alive(self) -> bool:
            return True

    actor = Endless.remote()
    stream = actor.items.remote()
    assert get(next(stream)) == 0
    shoal.cancel(stream)
    with pytest.raises(TaskCancelledError):
        for ref in stream:
            get(ref)
    assert get(actor.alive.remote())


def test_cancel_is_recursive() -> None:
    @shoal.remote
    def long() -> None:
        time.sleep(100)

    @shoal.remote
    class Parent:
        def run(self) -> None:
            shoal.get(long.remote())

        def alive(self) -> bool:
            return True

    actor = Parent.remote()
    running = actor.run.remote()
    time.sleep(0.2)
    shoal.cancel(running)
    with pytest.raises(TaskCancelledError):
        get(running)
    assert get(actor.alive.remote())
    deadline = time.perf_counter() + 60
    while shoal.available_resources().get("CPU") != 2 and time.perf_counter() < deadline:
        time.sleep(0.02)
    assert shoal.available_resources()["CPU"] == 2


def test_cancel_with_force_is_refused() -> None:
    actor = Plain.remote()
    ref = actor.sleep.remote(0.1)
    with pytest.raises(ValueError, match="kill"):
        shoal.cancel(ref, force=True)
    assert get(ref) == "slept"


def test_cancel_of_a_finished_call_does_nothing() -> None:
    actor = Plain.remote()
    ref = actor.note.remote(1)
    assert get(ref) == 1
    shoal.cancel(ref)
    assert get(ref) == 1
    assert get(actor.note.remote(2)) == 2

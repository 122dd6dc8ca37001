"""Who waits long with empty hands is told why, seldom; who waits a little, or holds something, is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal.node.io.patience import FIRST_S, LOOK_S, Patience
from shoal.node.io.processes import Driver, ProcessTable
from shoal.protocol.messages import Notice
from shoal.scheduling import events
from shoal.scheduling.local_scheduler import LocalScheduler

JOB = b"\0\0\0\1"


class FakeLoop:
    """A clock that is turned by hand, and its timers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, call: Callable[[], None]) -> object:
        self.timers.append((self.now + delay_s, call))
        return object()

    def run_until(self, end: float) -> None:
        while due := [timer for timer in self.timers if timer[0] <= end]:
            timer = min(due, key=lambda each: each[0])
            self.timers.remove(timer)
            self.now = timer[0]
            timer[1]()
        self.now = end


class FakeConnection:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


def make() -> tuple[LocalScheduler, FakeLoop, Patience, FakeConnection]:
    machine = LocalScheduler({"CPU": 10_000})
    machine.handle(events.WorkerReady(b"w" * 16, ""), 0.0)
    table = ProcessTable()
    connection = FakeConnection()
    for worker_id, job_id in ((b"d" * 16, JOB), (b"e" * 16, b"\0\0\0\2")):
        driver = Driver(worker_id, 1, job_id=job_id)
        driver.connection = connection if job_id == JOB else None  # type: ignore[assignment]
        table.by_id[worker_id] = driver
    loop = FakeLoop()
    return machine, loop, Patience(machine, table, loop), connection  # type: ignore[arg-type]


def place(machine: LocalScheduler, actor_id: bytes, now: float) -> None:
    need = {"CPU": 10_000}
    machine.handle(events.ActorPlacementRequested(actor_id, 1, JOB, need, need, {}, {}, "Server"), now)


def test_told_once_and_again_much_later() -> None:
    machine, loop, patience, connection = make()
    place(machine, b"a" * 16, 0.0)
    place(machine, b"b" * 16, 0.0)
    patience.attend()
    loop.run_until(FIRST_S - 0.1)
    assert connection.sent == []
    loop.run_until(FIRST_S + LOOK_S)
    assert len(connection.sent) == 1
    notice = connection.sent[0]
    assert isinstance(notice, Notice) and "Server asks for 1 CPU" in notice.text and "held by 1 x actor" in notice.text
    loop.run_until(5 * FIRST_S)
    assert len(connection.sent) == 1
    loop.run_until(6 * FIRST_S + LOOK_S)
    assert len(connection.sent) == 2


def test_no_timer_when_nobody_waits() -> None:
    machine, loop, patience, connection = make()
    place(machine, b"a" * 16, 0.0)
    patience.attend()
    assert loop.timers == []
    place(machine, b"b" * 16, 0.0)
    patience.attend()
    assert len(loop.timers) == 1
    machine.handle(events.ActorPlacementWithdrawn(b"b" * 16), 1.0)
    loop.run_until(100.0)
    assert loop.timers == [] and connection.sent == []


def test_many_of_a_kind_are_one_line_with_a_count() -> None:
    machine, loop, patience, connection = make()
    for number in range(300):
        place(machine, number.to_bytes(16, "big"), 0.0)
    patience.attend()
    loop.run_until(FIRST_S + LOOK_S)
    assert len(connection.sent) == 1
    assert "298 more like it wait" in connection.sent[0].text


def test_nothing_is_said_of_workers_that_start_while_there_is_progress() -> None:
    machine, loop, patience, connection = make()
    for number in range(100):
        machine.handle(events.ActorPlacementRequested(number.to_bytes(16, "big"), 1, JOB, {}, {}, {}, {}, "Light"), 0.0)
    patience.attend()
    for number in range(10):
        loop.run_until(2.0 * number)
        machine.handle(events.WorkerReady(number.to_bytes(16, "little"), ""), loop.now)
    assert connection.sent == []
    loop.run_until(loop.now + 2 * FIRST_S)  # no more workers come
    assert len(connection.sent) == 1 and "starting" in connection.sent[0].text

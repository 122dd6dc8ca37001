"""The guard of a node's memory, over played workers and a played machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shoal.node.io import memory_watch
from shoal.node.io.memory_watch import DYING_S, FAR_S, NEAR_S, RECOVERY_S, MemoryWatch
from shoal.node.io.processes import Worker
from shoal.store.page import ProcessPage

MB = 1 << 20


class Clock:
    """An event loop with one timer and a clock that goes when told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None], list[bool]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        alive = [True]
        self.timers.append((self.now + delay_s, callback, alive))
        return type("Timer", (), {"cancel": lambda _self: alive.__setitem__(0, False)})()

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while due := sorted(((at, i) for i, (at, _, alive) in enumerate(self.timers) if alive[0] and at <= until)):
            at, index = due[0]
            _, callback, alive = self.timers[index]
            alive[0] = False
            self.now = at
            callback()
        self.now = until


class World:
    """A machine of 1,000 MB with 100 MB in use by others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, threshold: float = 0.9) -> None:
        self.loop = Clock()
        self.workers: dict[int, Worker] = {}
        self.holds: dict[int, int] = {}
        self.killed: list[tuple[int, str]] = []
        monkeypatch.setattr(memory_watch, "memory_used", lambda: ((100 + sum(self.holds.values())) * MB, 1000 * MB))
        monkeypatch.setattr(memory_watch, "private_bytes", lambda pid: self.holds.get(pid, 0) * MB)
        pool, leases = self, self
        self.watch = MemoryWatch(pool, leases, self.loop, threshold)  # type: ignore[arg-type]

    def kill(self, worker: Worker, reason: str) -> None:
        """The pool's: it is dead when `buried`."""
        self.killed.append((worker.pid, reason))

    def bury(self, pid: int) -> None:
        del self.workers[pid], self.holds[pid]

    def work(self, number: int, megabytes: int, *, once: bool = False, asked: int = 0) -> Worker:
        worker = Worker(bytes([number]), number, b"")
        worker.lease_id = number
        worker.memory_asked = asked * MB
        worker.page = ProcessPage.create()
        if once:
            worker.page.set_runs_once(number, 1)
        worker.page.set_started(number, 1)
        self.workers[number] = worker
        self.holds[number] = megabytes
        self.watch.attend()
        return worker


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_nobody_dies_while_there_is_room(world: World) -> None:
    world.work(1, 300)
    world.work(2, 300)
    world.loop.pass_time(5)
    assert not world.killed


def test_the_newest_task_that_can_be_run_again_dies_first(world: World) -> None:
    world.work(1, 300)
    world.work(2, 250)
    world.work(3, 300, once=True)
    world.loop.pass_time(FAR_S)
    ((pid, reason),) = world.killed
    assert pid == 2
    for part in ("950 of 1000 MB were in use", "more than 90%", "250 MB of them by this worker"):
        assert part in reason
    world.bury(2)
    world.loop.pass_time(5)
    assert len(world.killed) == 1


def test_nobody_else_dies_while_a_victim_goes(world: World) -> None:
    for number in (1, 2, 3):
        world.work(number, 300)
    world.loop.pass_time(FAR_S + 2 * RECOVERY_S)
    assert [pid for pid, _ in world.killed] == [3]
    world.loop.pass_time(DYING_S)  # it does not go
    assert [pid for pid, _ in world.killed] == [3, 2]


def test_what_runs_once_dies_when_it_must(world: World) -> None:
    world.work(1, 850, once=True)
    world.loop.pass_time(FAR_S)
    assert [pid for pid, _ in world.killed] == [1]


def test_who_takes_more_than_asked_for_dies_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, threshold=0.0)  # switched off otherwise
    world.work(1, 400)
    world.loop.pass_time(FAR_S)
    world.work(2, 10, asked=50)
    world.loop.pass_time(NEAR_S)
    assert not world.killed
    world.holds[2] = 150
    world.loop.pass_time(NEAR_S)
    ((pid, reason),) = world.killed
    assert pid == 2 and "used 150 MB of memory, and had asked for 50 MB (memory=52428800)" in reason
    world.bury(2)
    world.loop.pass_time(5)
    assert len(world.killed) == 1

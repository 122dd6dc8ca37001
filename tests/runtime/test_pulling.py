"""What `wait` and `get` know of values that lie on other nodes: what cannot be had is not ready, what came late is not asked for again, and a daemon
that stands still is not waited for in silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.protocol import errors
from shoal.protocol.messages import Answer, Failed, Pull, Stored
from shoal.runtime import own_daemon, waiting
from shoal.runtime.objects import ObjectEntry, ObjectRef
from shoal.runtime.pulling import Pulling

LOST, FULL = ["ObjectLost", "its node is dead"], ["ObjectStoreFull", "no room"]


class World:
    """A process whose daemon does while it is waited for what the test says."""

    def __init__(self) -> None:
        self.asked: list[Pull] = []
        self.script: list[Callable[[], None]] = []
        self.lost_for_good: set[bytes] = set()
        self.reported: list[bytes] = []
        self.is_slow = False  #: one step of the script for each wait
        runtime: Any = SimpleNamespace(
            node_id=b"here", lost=None, store=None, daemon_pid=0, _requests=0, _answers={}, wait_for=self.wait_for
        )
        runtime.reactor = SimpleNamespace(
            lock=threading.RLock(),
            causal=SimpleNamespace(send_now=self.asked.append),
            stopping=False,
            wait=self.wait_for,
        )
        runtime.remaker = SimpleNamespace(report_lost=self.report_lost)
        runtime.objects = SimpleNamespace(resolve=lambda entries: None, drain_dropped=lambda: None)
        runtime.pulling = Pulling(runtime)
        self.runtime = runtime
        self.refs = [ObjectRef(ObjectEntry(bytes([number]) * 20)) for number in range(3)]
        for ref in self.refs:
            ref._entry.count = 100  # whoever counts these refs down when they are gone frees nothing
            ref._entry.value = Stored(ref._entry.oid, 1, 0, 1000, 1, [], b"there")

    def wait_for(self, waiter: Any, timeout: float | None = None) -> bool:
        while self.script and not waiter.done and timeout != 0:
            self.script.pop(0)()
            if self.is_slow:
                time.sleep(timeout or 0.0)
                break
        return bool(waiter.done)

    def report_lost(self, entry: ObjectEntry, place: Stored, reason: str) -> None:
        assert entry.value is place and "its node is dead" in reason
        self.reported.append(entry.oid)
        entry.value = Failed(b"") if entry.oid in self.lost_for_good else None

    def answer(self, *errors_of: list[str]) -> None:
        """The daemon answers the oldest questions."""
        for error in errors_of:
            question = self.asked.pop(0)
            place = Stored(question.stored.oid, 7, 0, 1000, 1, [], b"here")
            told, answers = self.runtime._answers[question.request]
            answers.append(Answer(question.request, None if error else {"stored": place}, error))
            told.arrived()

    def wait(self, num_returns: int = 3, timeout_s: float | None = 0.0, fetch_local: bool = True) -> list[int]:
        ready, rest = waiting.wait_here(self.runtime, self.refs, num_returns, timeout_s, fetch_local)
        assert len(ready) + len(rest) == 3
        return [self.refs.index(ref) for ref in ready]

    def remake(self, number: int) -> None:
        entry = self.refs[number]._entry
        entry.value = b"made anew"
        for waiter in entry.waiters or ():
            waiter.arrived()


def test_who_polls_finds_what_came_in_between() -> None:
    world = World()
    assert world.wait() == []
    world.answer([], [])
    assert world.wait() == [0, 1]
    world.answer([])
    assert world.wait() == [0, 1, 2] and not world.asked and not world.runtime._answers, "each was asked for once"


def test_what_is_lost_is_not_ready_before_it_is_made_anew() -> None:
    world = World()
    world.script = [lambda: world.answer([], LOST, []), lambda: world.remake(1)]
    assert world.wait(timeout_s=None) == [0, 1, 2]
    assert world.reported == [world.refs[1].binary()] and not world.script


def test_what_is_lost_is_not_ready_in_time() -> None:
    world = World()
    assert world.wait() == []
    world.answer([], LOST, FULL)
    assert world.wait() == [0, 2], "a get of the last raises at once"
    assert world.wait(fetch_local=False) == [0, 2]


def test_what_does_not_come_is_passed_over_for_what_is_here_or_comes() -> None:
    world = World()
    world.refs[2]._entry.value = b"here"
    assert world.wait(num_returns=1) == [2] and len(world.asked) == 1
    world.refs[2]._entry.value = Stored(world.refs[2]._entry.oid, 1, 0, 1000, 1, [], b"there")

    def answer_the_last() -> None:
        world.asked.insert(0, world.asked.pop())
        world.answer([])

    assert world.wait(num_returns=1) == []
    world.is_slow = True  # each wait ends with nothing
    world.script = [lambda: None, answer_the_last]
    assert world.wait(num_returns=1, timeout_s=None) == [1]


def test_what_is_lost_for_good_is_ready() -> None:
    world = World()
    world.lost_for_good = {world.refs[1].binary()}
    world.script = [lambda: world.answer([], LOST, [])]
    assert world.wait(timeout_s=None) == [0, 1, 2]


def test_others_are_taken_for_what_is_lost() -> None:
    world = World()
    world.script = [lambda: world.answer(LOST), lambda: world.answer([])]
    assert world.wait(num_returns=1, timeout_s=None) == [1]


def test_without_fetching_it_is_looked_whose_node_is_dead() -> None:
    world = World()
    world.script = [lambda: world.answer(["NotHere", "its node lives"], LOST, [])]
    assert world.wait(fetch_local=False) == [0, 2] and world.reported == [world.refs[1].binary()]
    world.remake(1)
    world.script = [lambda: world.answer([], [])]
    assert world.wait(fetch_local=False) == [0, 1, 2]


def test_the_failure_of_one_place_is_not_that_of_the_next() -> None:
    world = World()
    entry = world.refs[0]._entry
    world.script = [lambda: world.answer(LOST)]
    assert world.runtime.pulling.bring([entry], None)
    entry.value = Stored(entry.oid, 1, 0, 1000, 2, [], b"yonder")
    assert not world.runtime.pulling.is_here(entry) and not world.runtime.pulling.report_losses([entry])
    world.script = [lambda: world.answer([])]
    assert world.runtime.pulling.bring([entry], None) and world.runtime.pulling.is_here(entry)


def test_the_end_of_the_session_ends_the_wait() -> None:
    world = World()

    def end() -> None:
        world.runtime.lost = errors.NodeDaemonDiedError("the node daemon died")
        for told, _ in list(world.runtime._answers.values()):
            told.finish()

    world.script = [end]
    with pytest.raises(errors.NodeDaemonDiedError):
        world.wait(timeout_s=None)
    assert not world.runtime._answers and not world.runtime.pulling.coming


def test_a_daemon_that_stands_still_is_named_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr(own_daemon, "LOOK_S", 0.0)
    silent = [True, False, True, True]

    def call(method: str, timeout_s: float) -> None:
        if silent.pop(0):
            raise errors.RpcError("no answer")
        monkeypatch.setattr(own_daemon, "SILENT_MAX_S", 0.0)

    world.runtime.call = call
    with pytest.warns(RuntimeWarning, match="did not answer"), pytest.raises(errors.RpcError, match="did not answer"):
        world.wait(timeout_s=None)
    assert silent == [True] and not world.runtime.pulling.coming[world.refs[0].binary(), False].waiters
    world.answer([], [], [])
    assert world.wait() == [0, 1, 2], "it came all the same"

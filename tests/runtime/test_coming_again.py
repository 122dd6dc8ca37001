"""Refs in a call's arguments that were lost with their caller's node, and come again with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.protocol import errors
from shoal.protocol.ids import task_id_of
from shoal.protocol.messages import REPLAYS, Failed, Hold, Resolve
from shoal.runtime.coming_again import ComingAgain
from shoal.runtime.objects import ObjectTable

CALLER, NODE, LATER = b"a" * 16, b"n" * 16, b"l" * 16
X = b"x" * 16 + b"\0\0\0\1"


class World:
    """An actor's process that reads its sockets while it waits: there `arrivals` happen, one in each wait."""

    def __init__(self, *arrivals: Callable[[], None]) -> None:
        self.arrivals = list(arrivals)
        self.alive = {LATER}
        self.caller: Any = SimpleNamespace(death=None)
        self.entry: Any = SimpleNamespace(oid=X, value=Failed(b"lost"))
        self.lost = None
        self.reactor = SimpleNamespace(lock=threading.RLock())
        self.actor_calls = SimpleNamespace(queue_of=lambda *args, **kwargs: self.caller)
        self.read: list[Any] = []
        self.brings = True
        self.coming = ComingAgain(self, self.on_read)  # type: ignore[arg-type]

    def call(self, method: str) -> Any:
        return {"nodes": [{"node_id": node, "alive": node in self.alive} for node in (NODE, LATER)]}

    def wait_for(self, waiter: Any, timeout_s: float) -> None:
        assert self.arrivals, "it would wait for ever"
        self.arrivals.pop(0)()

    def on_read(self, job: Any) -> None:
        self.read.append(job)
        if self.brings:
            self.entry.value = None

    def job(self, number: int, connection: str, node: bytes = NODE) -> Any:
        wire = SimpleNamespace(options={REPLAYS: [CALLER, node]})
        template = SimpleNamespace(wire=wire)
        return SimpleNamespace(task_id=task_id_of(b"p" * 12, number), connection=connection, template=template)

    def begin(self) -> None:
        running = self.job(5, "first")
        self.coming.begins(running, [X], running, running)


def test_it_waits_for_the_call_that_its_caller_makes_again() -> None:
    world = World()
    again = world.job(5, "second", LATER)
    world.arrivals = [lambda: world.coming.came(world.job(4, "second", LATER)), lambda: world.coming.came(again)]
    world.begin()
    assert world.coming.brings_back(world.entry, None)
    assert world.read == [again]


def test_what_has_arrived_already_is_read_at_once() -> None:
    world = World()
    running, again = world.job(5, "first"), world.job(5, "second", LATER)
    world.coming.begins(running, [X], running, again)
    world.coming.came(world.job(6, "second", LATER))
    assert world.coming.brings_back(world.entry, None)
    world.entry.value = Failed(b"lost with the second node too")
    world.alive.clear()
    third = world.job(5, "third", LATER)
    world.arrivals = [lambda: world.coming.came(third)]
    assert world.coming.brings_back(world.entry, None)
    assert world.read == [again, third]


def test_the_loss_is_what_it_is() -> None:
    world = World()
    assert not world.coming.brings_back(world.entry, None), "no call runs"
    world.begin()
    assert not world.coming.brings_back(SimpleNamespace(oid=b"y" * 20, value=Failed(b"lost")), None), "no argument"  # type: ignore[arg-type]
    world.alive.add(NODE)
    assert not world.coming.brings_back(world.entry, None), "its caller's node lives"
    world.coming.ends()
    assert not world.coming.brings_back(world.entry, None)


def test_nobody_is_waited_for_who_will_not_ask_again() -> None:
    world = World()
    world.arrivals = [lambda: world.coming.came(world.job(6, "second", LATER))]
    world.begin()
    assert not world.coming.brings_back(world.entry, None), "its next life has another way"
    world.begin()
    world.arrivals = [lambda: setattr(world.caller, "death", errors.ActorDiedError("for good"))]
    assert not world.coming.brings_back(world.entry, None)


def test_a_get_with_a_time_limit_ends() -> None:
    world = World()
    world.begin()
    with pytest.raises(errors.GetTimeoutError):
        world.coming.brings_back(world.entry, 0.0)


def test_what_comes_again_without_the_ref_does_not_bring_it() -> None:
    world = World()
    world.brings = False
    world.begin()
    world.coming.came(world.job(5, "second", LATER))
    assert not world.coming.brings_back(world.entry, None), "that one's node lives"


def table_of(sent: list[Any]) -> ObjectTable:
    reactor: Any = SimpleNamespace(
        lock=threading.RLock(),
        causal=SimpleNamespace(send=sent.append),
        handlers={},
        has_notes=False,
        attend=lambda: None,
        await_confirmation=lambda: None,
    )
    return ObjectTable(reactor, lambda entry: None, lambda name, value: None)


def test_a_ref_that_outlives_its_session_says_nothing_in_the_next_one() -> None:
    sent: list[Any] = []
    former = table_of(sent)
    entry = former.borrow(X, NODE)._entry
    former._write_notes()
    assert sent == [Hold([X], home=NODE)]
    former.close()
    later = table_of(sent)
    entry.count = 0
    later.free(entry)
    later._write_notes()
    assert len(sent) == 1, "there nobody has counted it"


def test_a_ref_that_names_another_home_is_asked_for_there_when_it_was_lost() -> None:
    sent: list[Any] = []
    table = table_of(sent)
    dead, alive = b"dead" * 4, b"live" * 4
    ref = table.borrow(X, dead)
    entry = ref._entry
    table._write_notes()
    sent.clear()
    assert table.borrow(X, alive) is ref
    table._write_notes()
    assert sent == [], "nobody says that it is lost"
    entry.value = Failed(b"lost with its home")
    assert table.borrow(X, alive) is ref and entry.value is None
    table._write_notes()
    table.resolve([entry])
    assert sent == [Hold([X], home=alive), Resolve([X], 0, alive)]

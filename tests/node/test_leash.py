"""The leash of restartable actors: how long they may answer, and when they are told that they may again."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.node.io import leash as leash_module
from shoal.node.io.leash import Leash
from shoal.node.leash_rule import WITHHELD_AFTER_NS, LeashRule
from shoal.protocol.messages import MayAnswer
from shoal.store import page as page_module
from shoal.store.page import ProcessPage


class FakeWorker:
    def __init__(self, name: bytes) -> None:
        self.worker_id = name
        self.dead = False
        self.page: ProcessPage | None = ProcessPage.create()
        self.told: list[Any] = []

    def send(self, message: Any) -> None:
        self.told.append(message)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [10**9]
    monkeypatch.setattr(leash_module, "monotonic_ns", lambda: now[0])
    monkeypatch.setattr(page_module, "monotonic_ns", lambda: now[0])
    return now


def test_an_actor_is_silent_when_its_node_is_not_heard_and_speaks_again(clock: list[int]) -> None:
    leash, worker = Leash(), FakeWorker(b"w")
    page = worker.page
    assert page is not None and not page.is_leashed() and not page.is_silenced()
    leash.hold(worker)  # type: ignore[arg-type]
    assert page.is_leashed() and page.is_silenced()  # never registered: it knows of no GCS that wants it
    leash.registered(clock[0])
    assert not page.is_silenced() and worker.told == [MayAnswer()]
    begun = clock[0]
    leash.sent(1)
    clock[0] += WITHHELD_AFTER_NS
    assert not page.is_silenced()
    clock[0] += 1
    assert page.is_silenced()
    leash.acknowledged(1)  # heard, but so long ago that it says nothing
    assert page.is_silenced() and clock[0] - begun > WITHHELD_AFTER_NS
    leash.sent(2)
    leash.sent(3)
    clock[0] += 10**9
    leash.acknowledged(2)
    assert not page.is_silenced() and worker.told == [MayAnswer()] * 2
    clock[0] += WITHHELD_AFTER_NS - 10**9  # it counts from the sending
    assert not page.is_silenced()
    clock[0] += 1
    assert page.is_silenced()


def test_a_new_connection_counts_heartbeats_anew_and_the_dead_are_forgotten(clock: list[int]) -> None:
    leash, worker = Leash(), FakeWorker(b"w")
    leash.registered(clock[0])
    leash.hold(worker)  # type: ignore[arg-type]
    for count in range(1, 9):
        leash.sent(count)
    leash.registered(clock[0])
    clock[0] += WITHHELD_AFTER_NS // 2
    leash.sent(1)
    leash.acknowledged(1)
    clock[0] += WITHHELD_AFTER_NS
    assert worker.page is not None and not worker.page.is_silenced()
    worker.dead, worker.page = True, None
    leash.registered(clock[0])
    assert leash._workers == {}


def test_what_counts_is_when_it_was_sent() -> None:
    rule = LeashRule()
    assert rule.withholds(2)
    rule.registered(10)  # the answer may have come much later
    assert not rule.withholds(10 + WITHHELD_AFTER_NS) and rule.withholds(11 + WITHHELD_AFTER_NS)
    rule.sent(1, 20)
    rule.sent(2, 30)
    rule.registered(15)
    rule.acknowledged(2)  # of the connection before
    assert rule.until_ns == 15 + WITHHELD_AFTER_NS

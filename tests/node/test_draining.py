"""How a node leaves: when it begins to, what it waits for, and when it waits no more."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from shoal.node.io.draining import LOOK_S, Draining


class Node:
    """What Draining sees of a node, with a clock that is set by hand."""

    def __init__(self, grace_s: float = 30.0) -> None:
        self.now = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.leases = 0
        self.said: list[str] = []
        self.ended: list[str] = []
        statistics = lambda: SimpleNamespace(leases=self.leases, actors=0)  # noqa: E731
        leases: Any = SimpleNamespace(
            machine=SimpleNamespace(statistics=statistics), handle=lambda event: self.said.append(type(event).__name__)
        )
        table: Any = SimpleNamespace(drivers=list, by_id={})
        moving: Any = SimpleNamespace(empty=lambda: None)
        self.draining = Draining(
            self,  # type: ignore[arg-type]
            leases,
            table,
            moving,
            dict,
            lambda reason: self.said.append(reason),
            lambda: self.said.append("changed"),
            self.ended.append,
            grace_s,
        )

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.due.append((self.now + delay_s, call))

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while not self.ended and self.due and min(self.due, key=lambda each: each[0])[0] <= until:
            self.now, call = first = min(self.due, key=lambda each: each[0])
            self.due.remove(first)
            call()
        self.now = until


def test_an_idle_node_leaves_at_once() -> None:
    node = Node()
    assert node.draining.on_signal(others=1)
    assert node.said == ["changed", "NodeDrains", "it was told to end (SIGTERM)"]
    node.pass_time(LOOK_S)
    assert node.ended == ["it was drained: it was told to end (SIGTERM)"]


def test_what_runs_is_waited_for() -> None:
    node = Node()
    node.leases = 1
    assert node.draining.on_signal(others=1)
    node.pass_time(29.0)
    assert not node.ended
    node.leases = 0
    node.pass_time(LOOK_S)
    assert len(node.ended) == 1


def test_not_longer_than_the_grace() -> None:
    node = Node(grace_s=2.0)
    node.leases = 1
    assert node.draining.on_signal(others=1)
    node.pass_time(1.9)
    assert not node.ended
    node.pass_time(0.2)
    assert node.ended == [
        "it was drained, but not empty at the deadline (1 tasks that run): it was told to end (SIGTERM)"
    ]


def test_a_second_signal_is_no_notice_any_more() -> None:
    node = Node()
    assert node.draining.on_signal(others=1)
    assert not node.draining.on_signal(others=1)


def test_who_cannot_hand_on_anything_does_not_drain() -> None:
    assert not Node().draining.on_signal(others=0)
    assert not Node(grace_s=0.0).draining.on_signal(others=5)


def test_a_signal_hurries_a_node_that_drains() -> None:
    node = Node()
    node.leases = 1
    node.draining.begin("maintenance", 300.0)
    assert node.draining.on_signal(others=1)
    assert node.said.count("NodeDrains") == 1
    node.pass_time(30.0 + LOOK_S)
    assert node.ended
    node = Node()
    node.leases = 1
    node.draining.begin("maintenance", 1.0)
    node.draining.begin("again", 300.0)
    node.pass_time(1.0 + LOOK_S)
    assert node.ended, "the earlier deadline counts"

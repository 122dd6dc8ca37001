"""Refs that died on the way: the receiver's count against what the giver held in its name, in every order of reading."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.node.handed_refs import HandedRefs
from shoal.node.object_directory import ObjectDirectory
from shoal.node.object_events import Held, ProcessDied, ProcessJoined, RefsReceived, Released

GIVER, RECEIVER, OTHER = b"giver", b"receiver", b"other"


def oid(number: int) -> bytes:
    return number.to_bytes(20, "big")


@given(
    sizes=st.lists(st.integers(1, 4), max_size=12),
    arrived=st.integers(0, 12),
    told_after=st.lists(st.integers(0, 12), max_size=6),
    read_late=st.booleans(),
)
def test_what_never_arrived_is_what_stands_behind_the_count(
    sizes: list[int], arrived: int, told_after: list[int], read_late: bool
) -> None:
    """The twin is a plain list: results reach the receiver in order, up to some one; each count it tells is of a moment of its own."""
    handed = HandedRefs()
    numbers = iter(range(100))
    results = [[oid(next(numbers)) for _ in range(size)] for size in sizes]
    arrived = min(arrived, len(results))
    counts = [sum(map(len, results[:done])) for done in range(arrived + 1)]
    tellings = sorted(min(moment, arrived) for moment in told_after)
    if read_late:  # the receiver's socket is read before the giver's
        for moment in tellings:
            handed.receive(GIVER, RECEIVER, counts[moment])
    for done, refs in enumerate(results):
        handed.give(GIVER, RECEIVER, refs)
        if not read_late and done + 1 in tellings:
            handed.receive(GIVER, RECEIVER, counts[done + 1])
    told = counts[tellings[-1]] if tellings else 0
    given = [ref for refs in results for ref in refs]
    if read_late or (tellings and tellings[-1] > 0):
        assert handed.underway() == len(given) - told
    assert handed.close(GIVER, RECEIVER, counts[arrived]) == given[counts[arrived] :]
    assert handed.underway() == 0


def directory() -> ObjectDirectory:
    machine = ObjectDirectory(lambda error: str(error).encode())
    for process in (GIVER, RECEIVER, OTHER):
        machine.handle(ProcessJoined(process), 0.0)
    return machine


def test_holds_on_refs_that_never_came_end() -> None:
    machine = directory()
    first, second, third = oid(1), oid(2), oid(3)
    machine.handle(Held(GIVER, [first, second], RECEIVER), 0.0)
    machine.handle(Held(GIVER, [second, third], RECEIVER), 0.0)
    machine.handle(Held(OTHER, [third], RECEIVER), 0.0)
    machine.handle(ProcessDied(GIVER, "killed"), 0.0)
    machine.handle(RefsReceived(RECEIVER, GIVER, 2, True), 0.0)
    assert [machine.holders(each).get(RECEIVER, 0) for each in (first, second, third)] == [1, 1, 1]
    machine.handle(RefsReceived(RECEIVER, OTHER, 0, True), 0.0)
    assert machine.holders(third) == {}


def test_what_came_and_was_let_go_is_not_let_go_again() -> None:
    machine = directory()
    machine.handle(RefsReceived(RECEIVER, GIVER, 1), 0.0)  # read before the giver's socket
    machine.handle(Released(RECEIVER, [oid(1)]), 0.0)
    machine.handle(Held(GIVER, [oid(1)], RECEIVER), 0.0)
    machine.handle(RefsReceived(RECEIVER, GIVER, 1, True), 0.0)
    assert machine.holders(oid(1)) == {}
    assert machine.statistics()["underway"] == 0


def test_a_dead_receiver_is_forgotten() -> None:
    machine = directory()
    machine.handle(Held(GIVER, [oid(1)], RECEIVER), 0.0)
    machine.handle(ProcessDied(RECEIVER, "killed"), 0.0)
    assert machine.statistics()["underway"] == 0
    machine.handle(RefsReceived(RECEIVER, GIVER, 0, True), 0.0)

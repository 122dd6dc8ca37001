"""Refs that died on the way: the receiver's count against what the giver held in its name, in every order of reading."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.node.foreign_holds import ConfirmHolds, SendHoldForDone, SendNodeHold
from shoal.node.handed_refs import HandedRefs, as_caller
from shoal.node.object_directory import ObjectDirectory
from shoal.node.object_events import (
    AskClaims,
    Claimed,
    Escaped,
    ForeignProcessDied,
    HandedAbroad,
    Held,
    HoldForArrived,
    HoldForConfirmed,
    MirrorItem,
    NodeDied,
    NodeHoldConfirmed,
    NodeJoined,
    ProcessDied,
    ProcessJoined,
    RefsReceived,
    Released,
    SendHoldFor,
    SendMirrors,
)

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


# ---------------------------------------------------------------- in calls

HERE, THERE, THIRD = b"H" * 16, b"T" * 16, b"3" * 16


def of_cluster() -> ObjectDirectory:
    machine = ObjectDirectory(lambda error: str(error).encode(), HERE)
    machine.inherit()
    for process in (GIVER, RECEIVER):
        machine.handle(ProcessJoined(process), 0.0)
    for node in (THERE, THIRD):
        machine.handle(NodeJoined(node), 0.0)
    return machine


def test_refs_in_calls_outlive_the_caller_if_they_came() -> None:
    """Who was called is asked how many came, whether the daemon knows of the connection or not. Results are counted apart."""
    machine = directory()
    arrived, lost, result = oid(1), oid(2), oid(3)
    machine.handle(Held(GIVER, [arrived], RECEIVER, in_call=True), 0.0)
    machine.handle(Held(GIVER, [result], RECEIVER), 0.0)
    machine.handle(Held(GIVER, [lost], RECEIVER, in_call=True), 0.0)
    machine.handle(RefsReceived(RECEIVER, as_caller(GIVER), 1), 0.0)
    assert AskClaims(RECEIVER, GIVER) in machine.handle(ProcessDied(GIVER, "killed"), 0.0)
    machine.handle(Claimed(RECEIVER, GIVER, [], False, 1), 0.0)
    assert [RECEIVER in machine.holders(each) for each in (arrived, lost, result)] == [True, False, True]
    machine.handle(RefsReceived(RECEIVER, GIVER, 1, True), 0.0)
    machine.handle(Released(RECEIVER, [arrived, result]), 0.0)
    assert machine.statistics()["holds"] == machine.statistics()["underway"] == 0


def test_a_call_to_another_node_leaves_when_that_holds_what_is_inside_and_can_make_it() -> None:
    machine = of_cluster()
    machine.handle(Escaped(GIVER, [oid(1)], b"task"), 0.0)
    effects = machine.handle(HandedAbroad(GIVER, [oid(1)], b"actor", THERE, HERE, in_call=True), 0.0)
    mirrors = SendMirrors(THERE, [MirrorItem(oid(1), b"task", [], b"", b"", None)])
    assert effects == [mirrors, SendHoldFor(THERE, 1, b"actor", [oid(1)], HERE, as_caller(GIVER))]
    assert machine.handle(HoldForConfirmed(THERE, 1), 0.0) == [ConfirmHolds(GIVER, 1)]
    assert machine.holders(oid(1)) == {GIVER: 1, THERE: 1}


def test_nor_before_that_node_holds_what_is_of_a_third() -> None:
    machine = of_cluster()
    machine.handle(Held(GIVER, [oid(1)], home=THIRD), 0.0)
    machine.handle(NodeHoldConfirmed(THIRD, 1), 0.0)
    effects = machine.handle(HandedAbroad(GIVER, [oid(1)], b"actor", THERE, THIRD, in_call=True), 0.0)
    assert effects == [SendHoldFor(THERE, 1, b"actor", [oid(1)], THIRD, as_caller(GIVER))]
    assert machine.handle(HoldForConfirmed(THERE, 1), 0.0) == [ConfirmHolds(GIVER, 2)]


def test_refs_whose_home_the_caller_does_not_know_are_held_where_they_are_at_home() -> None:
    """One message then becomes several, and the call waits for the answers to all."""
    machine = of_cluster()
    machine.handle(Escaped(GIVER, [oid(1)]), 0.0)
    machine.handle(Held(GIVER, [oid(2)], home=THIRD), 0.0)
    machine.handle(NodeHoldConfirmed(THIRD, 1), 0.0)
    effects = machine.handle(HandedAbroad(GIVER, [oid(1), oid(2)], b"actor", THERE, HERE, in_call=True), 0.0)
    told = [(each.oids, each.home) for each in effects if type(each) is SendHoldFor]
    assert told == [([oid(1)], HERE), ([oid(2)], THIRD)]
    assert machine.handle(HoldForConfirmed(THERE, 1), 0.0) == []
    assert machine.handle(HoldForConfirmed(THERE, 1), 0.0) == [ConfirmHolds(GIVER, 2)]


def test_a_call_to_a_node_that_dies_need_not_wait() -> None:
    machine = of_cluster()
    machine.handle(Escaped(GIVER, [oid(1)]), 0.0)
    machine.handle(HandedAbroad(GIVER, [oid(1)], b"actor", THERE, HERE, in_call=True), 0.0)
    assert ConfirmHolds(GIVER, 1) in machine.handle(NodeDied(THERE, "killed"), 0.0)
    assert machine.handle(HandedAbroad(GIVER, [oid(1)], b"actor", THERE, HERE, in_call=True), 0.0) == [
        ConfirmHolds(GIVER, 2)
    ]


def test_the_receivers_node_answers_when_its_hold_counts() -> None:
    machine, caller = of_cluster(), as_caller(b"caller")
    done = machine.handle(HoldForArrived(THERE, 5, RECEIVER, [oid(1)], THERE, caller), 0.0)
    assert done == [SendHoldForDone(THERE, 5)], "the home has counted it"
    asked = machine.handle(HoldForArrived(THERE, 6, RECEIVER, [oid(2)], THIRD, caller), 0.0)
    assert asked == [SendNodeHold(THIRD, 1, [oid(2)])]
    assert machine.handle(NodeHoldConfirmed(THIRD, 1), 0.0) == [SendHoldForDone(THERE, 6)]
    machine.handle(Escaped(RECEIVER, [oid(3)]), 0.0)
    back = machine.handle(HoldForArrived(THERE, 7, RECEIVER, [oid(3)], HERE, caller), 0.0)
    assert back == [SendHoldForDone(THERE, 7)], "its own"
    assert AskClaims(RECEIVER, b"caller") in machine.handle(ForeignProcessDied(b"caller", THERE, []), 0.0)
    machine.handle(Claimed(RECEIVER, b"caller", [], False, 2), 0.0)
    assert machine.holders(oid(3)) == {RECEIVER: 1}, "the last of the three never came: only its owner holds it"
    assert [machine.holders(oid(number)) for number in (1, 2)] == [{RECEIVER: 1}] * 2

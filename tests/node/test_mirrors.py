"""What other nodes are told so that they can make a dead node's objects again, and who becomes their home."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tests.node.cluster_of_refs import PlayedLoop
from tests.node.test_object_directory import stored

from shoal.node.foreign_holds import ConfirmHolds, SendHoldForDone, SendNodeHold, SendNodeRelease
from shoal.node.io.objects import Objects
from shoal.node.mirrors import HEIR_OF
from shoal.node.object_directory import ObjectDirectory
from shoal.node.object_events import (
    Adopted,
    AskClaimsOf,
    AskHeir,
    Claimed,
    ClaimsTold,
    CodeTold,
    DropMirrors,
    Escaped,
    EstateExpired,
    ExpireLater,
    ForgetHeir,
    FreeStored,
    HandedAbroad,
    HeirTold,
    Held,
    HoldForArrived,
    HoldForConfirmed,
    MirrorItem,
    MirrorsArrived,
    MirrorsDropped,
    NodeDied,
    NodeHoldArrived,
    NodeHoldConfirmed,
    NodeJoined,
    NodeReleaseArrived,
    OrphansSettled,
    ProcessDied,
    ProcessJoined,
    Published,
    RefsReceived,
    Released,
    RequestSweep,
    ResolveAsked,
    ResolvedAbroad,
    SendHoldFor,
    SendMirrors,
    SendNodeHeld,
    SendResolved,
    SendResolveFor,
    Swept,
)
from shoal.protocol.messages import Containing, Failed
from shoal.protocol.node_messages import FreeStored as FreeStoredMessage

A, B = b"a" * 16, b"b" * 16
HERE, THERE, THIRD = b"H" * 16, b"T" * 16, b"3" * 16
X, Y = b"x" * 16 + b"\0\0\0\1", b"y" * 16 + b"\0\0\0\1"


class Node:
    """A directory of a node in a cluster."""

    def __init__(self, *processes: bytes) -> None:
        self.directory = ObjectDirectory(lambda error: f"{type(error).__name__}: {error}".encode(), HERE)
        self.directory.inherit()
        self.token = 0
        #: of dead homes from which it has inherited: their other holders have time until it settles
        self.inherited: list[bytes] = []
        for process in processes:
            self.tell(ProcessJoined(process))
        self.tell(NodeJoined(THERE), NodeJoined(THIRD))

    def tell(self, *events: Any) -> list[Any]:
        out = []
        for event in events:
            for effect in self.directory.handle(event, 0.0):
                if type(effect) is RequestSweep:
                    self.token = effect.token
                elif type(effect) is ExpireLater and effect.of.startswith(HEIR_OF):
                    self.inherited.append(effect.of)
                else:
                    out.append(effect)
        return out

    def sweep(self) -> list[Any]:
        out = []
        while self.token:
            token, self.token = self.token, 0
            out += self.tell(Swept(token))
        return out

    def settle(self) -> list[Any]:
        inherited, self.inherited = self.inherited, []
        return self.tell(*map(EstateExpired, inherited)) + self.sweep()


def counts_of(node: Node) -> dict[str, int]:
    """What is left, but for what always is."""
    return {name: count for name, count in node.directory.statistics().items() if name not in ("processes", "sweeps")}


def item(oid: bytes, lineage: bytes = b"", needs: Any = (), value: bytes | None = None) -> MirrorItem:
    return MirrorItem(oid, lineage, list(needs), b"", b"", value)


def test_a_holder_is_told_how_objects_are_made_with_what_that_needs() -> None:
    node = Node(A)
    node.tell(
        CodeTold(A, b"f", b"code"), Escaped(A, [Y]), Published(A, Y, b"small"), Escaped(A, [X], b"task", [Y], b"f")
    )
    told, held = node.tell(NodeHoldArrived(THERE, 1, [X]))
    assert held == SendNodeHeld(THERE, 1), "the mirrors go before what the holder may rely on"
    assert told == SendMirrors(THERE, [MirrorItem(X, b"task", [Y], b"f", b"code", None), item(Y, value=b"small")])
    assert node.tell(NodeHoldArrived(THERE, 2, [X])) == [SendNodeHeld(THERE, 2)], "once"


def test_what_becomes_known_later_is_told_later() -> None:
    node = Node(A)
    node.tell(Escaped(A, [X]))
    assert node.tell(NodeHoldArrived(THERE, 1, [X])) == [SendNodeHeld(THERE, 1)]
    assert node.tell(Published(A, X, b"small")) == [SendMirrors(THERE, [item(X, value=b"small")])]


def test_mirrors_go_with_what_they_mirror() -> None:
    node = Node(A)
    node.tell(Escaped(A, [X], b"task"), Published(A, X, stored(X)), NodeHoldArrived(THERE, 1, [X]), Released(A, [X]))
    node.tell(NodeReleaseArrived(THERE, [(X, 1)]))
    assert DropMirrors(THERE, [X]) in node.settle()


def test_the_first_that_asks_is_the_heir_and_makes_it_anew() -> None:
    node = Node(A)
    node.tell(Held(A, [X], home=THERE), MirrorsArrived(THERE, [item(X, b"task", [Y]), item(Y, value=b"small")]))
    node.tell(ResolveAsked(A, [X], home=THERE))
    assert node.tell(NodeDied(THERE, "killed"))[-1] == AskHeir(X, True)
    asked = node.tell(HeirTold(X, HERE))
    assert asked == [AskClaimsOf(THIRD, THERE, True), AskClaimsOf(HERE, THERE, True), ExpireLater(THERE)]
    [asked_too, adopted] = node.tell(ClaimsTold(THIRD, THERE, []), ClaimsTold(HERE, THERE, []))
    assert asked_too == AskHeir(Y, True), "others may read it inside of arguments"
    assert isinstance(adopted, Adopted) and (adopted.process, adopted.oids, adopted.needs) == (A, [X], [Y])
    assert node.tell(ResolveAsked(A, [Y])) == [SendResolved(A, Y, b"small")]
    assert node.tell(Published(A, X, b"value")) == [SendResolved(A, X, b"value")]
    # Refs still name the former home.
    assert node.tell(ResolveAsked(A, [X], home=THERE)) == [SendResolved(A, X, b"value")]


def inherit_what_needs(node: Node) -> None:
    """X, of a home that is dead, is made anew, for which Y is needed, of the same home."""
    node.tell(Held(A, [X], home=THERE), MirrorsArrived(THERE, [item(X, b"task", [Y]), item(Y, b"another")]))
    node.tell(ResolveAsked(A, [X], home=THERE), NodeDied(THERE, "killed"), HeirTold(X, HERE))
    [asked, adopted] = node.tell(ClaimsTold(THIRD, THERE, []), ClaimsTold(HERE, THERE, []))
    assert asked == AskHeir(Y, True) and isinstance(adopted, Adopted) and adopted.oids == [X]


def test_what_an_heir_needs_has_an_heir_as_well() -> None:
    """A task's arguments name Y's former home: whoever reads them asks the GCS. There must be one answer for all."""
    node = Node(A)
    inherit_what_needs(node)
    [adopted] = node.tell(HeirTold(Y, HERE))
    assert isinstance(adopted, Adopted) and adopted.oids == [Y], "all have said what they have of that home"
    assert node.tell(NodeHoldArrived(THIRD, 1, [Y]))[-1] == SendNodeHeld(THIRD, 1)
    assert node.tell(ResolveAsked(THIRD, [Y])) == []
    assert node.tell(Published(A, Y, b"value"))[-1] == SendResolved(THIRD, Y, b"value")
    node.tell(Published(A, X, b"made"), Released(A, [X, Y, X, Y]), NodeReleaseArrived(THIRD, [(Y, 1)]))
    assert [each for each in node.settle() if type(each) is ForgetHeir] == [ForgetHeir(X), ForgetHeir(Y)]
    node.tell(EstateExpired(THERE))
    assert not any(counts_of(node).values())


def test_what_an_heir_needs_may_be_anothers() -> None:
    node = Node(A)
    inherit_what_needs(node)
    assert node.tell(HeirTold(Y, THIRD)) == [SendNodeHold(THIRD, 2, [Y])], "it is made there"
    node.tell(NodeHoldConfirmed(THIRD, 2), ResolveAsked(A, [Y]), ResolvedAbroad(THIRD, Y, b"value"))
    assert node.tell(ResolveAsked(A, [Y])) == [SendResolved(A, Y, b"value")]
    node.tell(Published(A, X, b"made"), Released(A, [X, Y, X]))
    assert SendNodeRelease(THIRD, [(Y, 1)]) in node.settle()
    node.tell(EstateExpired(THERE))
    assert not any(counts_of(node).values())


def test_results_of_one_task_that_are_inherited_one_by_one_are_made_by_one_run() -> None:
    """Also when all nodes have said what they have of the dead home before the GCS has said whose the second one is; or that it is another's."""
    first, second, other = X, X[:-1] + b"\2", X[:-1] + b"\3"
    node = Node(A)
    node.tell(Held(A, [first, second, other, Y], home=THERE))
    node.tell(MirrorsArrived(THERE, [item(each, b"task") for each in (first, second, other)] + [item(Y, b"another")]))
    node.tell(NodeDied(THERE, "killed"), HeirTold(Y, HERE))
    [adopted] = node.tell(ClaimsTold(THIRD, THERE, []), ClaimsTold(HERE, THERE, []))
    assert isinstance(adopted, Adopted) and adopted.oids == [Y]
    assert node.tell(HeirTold(first, HERE), EstateExpired(THERE), HeirTold(second, HERE)) == [ExpireLater(THERE)]
    told = node.tell(HeirTold(other, THIRD))
    assert [each.oids for each in told if isinstance(each, Adopted)] == [[first, second]]
    assert node.tell(EstateExpired(THERE)) == [] and node.directory.statistics()["seeks"] == 0


def test_nobody_adopts_from_a_node_that_is_cut_off() -> None:
    """Its silence says nothing: only the GCS says that a node is dead. Whoever asks waits, whatever else dies meanwhile."""
    node = Node(A, B)
    node.tell(Held(A, [X], home=THERE), Held(B, [X], home=THERE), MirrorsArrived(THERE, [item(X, b"task")]))
    assert node.tell(ResolveAsked(A, [X], home=THERE)) == [SendResolveFor(THERE, [X])]
    assert node.tell(ResolveAsked(B, [X], home=THERE)) == [] == node.settle(), "it is asked for already"
    quiet = node.tell(NodeDied(THIRD, "killed"), ProcessDied(B, "killed", [A])) + node.settle()
    assert not [each for each in quiet if isinstance(each, Adopted | AskHeir | SendResolved)]
    assert node.tell(ResolvedAbroad(THERE, X, b"value")) == [SendResolved(A, X, b"value")]


def test_a_small_value_is_there_at_once() -> None:
    node = Node(A)
    node.tell(Held(A, [X], home=THERE), MirrorsArrived(THERE, [item(X, value=b"small")]), NodeDied(THERE, "killed"))
    node.tell(ResolveAsked(A, [X], home=THERE))
    assert node.tell(HeirTold(X, HERE)) == [SendResolved(A, X, b"small")]


def test_another_heir_is_held_and_asked() -> None:
    node = Node(A)
    node.tell(Held(A, [X], home=THERE), ResolveAsked(A, [X], home=THERE), NodeDied(THERE, "killed"))
    hold, ask = node.tell(HeirTold(X, THIRD))
    assert (hold.node, hold.oids) == (THIRD, [X]) and ask == SendResolveFor(THIRD, [X])
    assert node.tell(ResolveAsked(A, [X], home=THERE)) == [], "it is asked for already, of the heir"


def test_without_an_heir_it_fails() -> None:
    node = Node(A)
    node.tell(Held(A, [X], home=THERE), ResolveAsked(A, [X], home=THERE))
    assert node.tell(NodeDied(THERE, "killed"))[-1] == AskHeir(X, False)
    [answer] = node.tell(HeirTold(X, b""))
    assert type(answer.value) is Failed and b"killed" in answer.value.error


def test_what_was_dropped_cannot_be_made() -> None:
    node = Node(A)
    node.tell(Held(A, [X], home=THERE), MirrorsArrived(THERE, [item(X, b"task")]), MirrorsDropped(THERE, [X]))
    assert node.tell(NodeDied(THERE, "killed"))[-1] == AskHeir(X, False)


def test_nobody_left_who_wants_it() -> None:
    node = Node(A, B)
    node.tell(Held(A, [X], home=THERE), MirrorsArrived(THERE, [item(X, b"task")]), NodeDied(THERE, "killed"))
    node.tell(Released(A, [X]))
    node.settle()
    assert node.tell(HeirTold(X, HERE)) == [ForgetHeir(X)], "nobody need ask here"
    assert node.directory.statistics()["objects"] == 0


def heir_of_x() -> Node:
    node = Node(A)
    node.tell(Held(A, [X], home=THERE), MirrorsArrived(THERE, [item(X, value=b"small")]), NodeDied(THERE, "killed"))
    node.tell(HeirTold(X, HERE))
    return node


def test_the_gcs_forgets_an_heir_with_the_last_ref() -> None:
    node = heir_of_x()
    assert node.directory.statistics()["inherited"] == 1
    node.tell(Released(A, [X]))
    assert ForgetHeir(X) in node.settle()
    assert node.directory.statistics()["inherited"] == 0


def test_what_a_replay_submits_again_may_be_at_home_elsewhere() -> None:
    """Its owner dies when nobody here holds it any more: nothing is owed for it."""
    node = Node(A, B)
    node.tell(Held(B, [X], home=THERE), Escaped(A, [X], b"task"), Released(B, [X]), Released(A, [X]))
    node.tell(NodeHoldConfirmed(THERE, 1))
    node.settle()
    node.tell(ProcessDied(A, "killed", [B]))
    assert node.tell(Claimed(B, A, [])) == [OrphansSettled(A)]
    assert not any(counts_of(node).values())


def test_who_hands_on_what_it_has_inherited_says_so() -> None:
    """Its process has the ref of the former home. Whoever gets it holds it here before it asks the GCS, so this node may die soon."""
    node = Node(A)
    node.tell(Held(A, [X], home=THERE), NodeHoldConfirmed(THERE, 1), MirrorsArrived(THERE, [item(X, b"task")]))
    node.tell(NodeDied(THERE, "killed"), HeirTold(X, HERE), ClaimsTold(THIRD, THERE, []), ClaimsTold(HERE, THERE, []))
    told, handed = node.tell(HandedAbroad(A, [X], b"reader", THIRD, THERE))
    assert told == SendMirrors(THIRD, [item(X, b"task")])
    assert handed == SendHoldFor(THIRD, 1, b"reader", [X], HERE, A)
    assert node.tell(HoldForConfirmed(THIRD, 1)) == [ConfirmHolds(A, 2)]


def test_what_an_heir_hands_on_is_held_there_once() -> None:
    """Also where the dead home was known, and its heir is being asked for: by another ref, or by this one."""
    node = Node(A)
    node.tell(Held(A, [X], home=THERE), NodeHoldConfirmed(THERE, 1))
    assert AskHeir(X, False) in node.tell(NodeDied(THERE, "killed"))
    node.tell(ResolveAsked(A, [X], home=THERE))
    told = node.tell(HoldForArrived(THIRD, 5, A, [X], THIRD, b"giver"))
    assert told == [SendResolveFor(THIRD, [X]), SendHoldForDone(THIRD, 5)]
    assert node.tell(HeirTold(X, THIRD)) == [SendResolveFor(THIRD, [X])], "it is held there already"
    assert node.tell(ResolvedAbroad(THIRD, X, b"value")) == [SendResolved(A, X, b"value")]
    node.tell(Released(A, [X, X]), RefsReceived(A, b"giver", 1, True))
    assert SendNodeRelease(THIRD, [(X, 1)]) in node.settle()
    assert not any(counts_of(node).values())


def test_an_heir_that_is_dead_too_is_asked_after_once_more() -> None:
    node = Node(A)
    node.tell(Held(A, [X], home=THERE), MirrorsArrived(THERE, [item(X, value=b"small")]))
    node.tell(ResolveAsked(A, [X], home=THERE), NodeDied(THIRD, "killed"))
    assert node.tell(NodeDied(THERE, "killed"))[-1] == AskHeir(X, True)
    assert node.tell(HeirTold(X, THIRD)) == [AskHeir(X, True)]
    assert node.tell(HeirTold(X, HERE)) == [SendResolved(A, X, b"small")]


def test_the_same_dead_heir_twice_is_the_end() -> None:
    node = Node(A)
    node.tell(Held(A, [X], home=THERE), ResolveAsked(A, [X], home=THERE), NodeDied(THIRD, "killed"))
    node.tell(NodeDied(THERE, "killed"), HeirTold(X, THIRD))
    [answer] = node.tell(HeirTold(X, THIRD))
    assert type(answer.value) is Failed


def reader_of_x(value: Any = b"small") -> tuple[Node, list[Any]]:
    """A node that had read X, of which it was told nothing, before the home of X died."""
    node = Node(A, B)
    node.tell(Held(A, [X], home=THERE), ResolveAsked(A, [X], home=THERE), ResolvedAbroad(THERE, X, value))
    return node, [each for each in node.tell(NodeDied(THERE, "killed")) if type(each) is not ConfirmHolds]


def test_who_has_read_a_small_value_can_be_its_heir() -> None:
    node, asked = reader_of_x()
    assert asked == [AskHeir(X, True)]
    assert node.tell(ResolveAsked(B, [X], home=THERE)) == [SendResolved(B, X, b"small")], "it need not wait for that"
    assert node.tell(HeirTold(X, HERE)) == []
    assert node.tell(NodeHoldArrived(THIRD, 1, [X]))[-1] == SendNodeHeld(THIRD, 1)
    assert node.tell(ResolveAsked(THIRD, [X])) == [SendResolved(THIRD, X, b"small")]
    node.tell(Released(A, [X]), NodeReleaseArrived(THIRD, [(X, 1)]))
    assert ForgetHeir(X) in node.settle()
    assert node.directory.statistics()["objects"] == node.directory.statistics()["mirrors"] == 0


def test_who_has_read_a_small_value_holds_it_at_another_heir() -> None:
    node, _ = reader_of_x()
    [hold] = node.tell(HeirTold(X, THIRD))
    assert (hold.node, hold.oids) == (THIRD, [X])
    assert node.tell(ResolveAsked(A, [X], home=THERE)) == [SendResolved(A, X, b"small")]
    assert node.tell(NodeDied(THIRD, "killed")) == [AskHeir(X, True)], "and may be the next"
    assert node.tell(HeirTold(X, HERE)) == []


def test_a_small_value_that_is_let_go_and_held_again_while_its_heir_is_asked_for() -> None:
    node, _ = reader_of_x()
    node.tell(Released(A, [X]))
    node.settle()
    assert node.tell(Held(B, [X], home=THERE)) == [ConfirmHolds(B, 1)]
    assert node.tell(ResolveAsked(B, [X], home=THERE)) == [], "it is asked for already"
    assert node.tell(HeirTold(X, HERE)) == [SendResolved(B, X, b"small")]


def test_what_was_read_and_let_go_needs_no_heir() -> None:
    node, _ = reader_of_x()
    node.tell(Released(A, [X]))
    node.settle()
    assert node.tell(HeirTold(X, HERE)) == [ForgetHeir(X)]
    assert node.directory.statistics()["objects"] == node.directory.statistics()["mirrors"] == 0
    _, asked = reader_of_x(Failed(b"its task raised"))
    assert asked == [], "an error is known to who has read it"


def test_an_heir_keeps_what_it_has_inherited_until_others_have_said_that_they_hold_it() -> None:
    """Another node was told of this heir, and its hold is on its way when nothing here refers to the object any more."""
    node, _ = reader_of_x()
    node.tell(HeirTold(X, HERE), Released(A, [X]))
    assert node.sweep() == [], "not yet"
    node.tell(NodeHoldArrived(THIRD, 1, [X]))
    assert ForgetHeir(X) not in node.settle()
    assert node.tell(ResolveAsked(THIRD, [X])) == [SendResolved(THIRD, X, b"small")]
    node.tell(NodeReleaseArrived(THIRD, [(X, 1)]))
    assert ForgetHeir(X) in node.settle()
    assert node.directory.statistics()["objects"] == node.directory.statistics()["fresh"] == 0


# ---------------------------------------------------------------- refs inside of values


@pytest.mark.parametrize("value", [Containing(b"list", [Y]), stored(X, nested=[Y])])
def test_who_is_sent_a_value_is_told_how_what_is_inside_is_made(value: Any) -> None:
    """The refs that are read there, and those in a container that lies in the store, must outlive this node."""
    node = Node(A)
    node.tell(Escaped(A, [Y], b"task"), Escaped(A, [X]), Published(A, X, value))
    held, told = node.tell(NodeHoldArrived(THERE, 1, [X])), node.tell(ResolveAsked(THERE, [X]))
    inside = [SendMirrors(THERE, [item(Y, b"task")]), SendHoldFor(THERE, 0, b"", [Y], HERE)]
    if type(value) is Containing:  # it may be lost with this node before it is asked for
        assert held == [SendNodeHeld(THERE, 1), SendResolved(THERE, X, value), *inside]
        assert told == [SendResolved(THERE, X, value)], "that node has what is inside"
    else:
        assert held == [SendNodeHeld(THERE, 1)] and told == [SendResolved(THERE, X, value), *inside]
    assert node.directory.holders(Y) == {A: 1, THERE: 1}


def test_who_waits_for_a_value_with_refs_of_third_nodes_holds_them_there() -> None:
    node = Node(A)
    node.tell(Escaped(A, [X]), Held(A, [Y], home=THIRD), NodeHoldConfirmed(THIRD, 1))
    node.tell(NodeHoldArrived(THERE, 1, [X]), ResolveAsked(THERE, [X]))
    value = Containing(b"list", [Y])
    told = [each for each in node.tell(Published(A, X, value)) if type(each) is not ConfirmHolds]
    assert told == [SendResolved(THERE, X, value), SendHoldFor(THERE, 1, b"", [Y], THIRD)]
    node.tell(Released(A, [X, Y]), NodeReleaseArrived(THERE, [(X, 1)]))
    assert not [each for each in node.settle() if type(each) is SendNodeRelease], "kept until that node holds it"
    node.tell(HoldForConfirmed(THERE, 1))
    assert SendNodeRelease(THIRD, [(Y, 1)]) in node.settle()


def test_a_node_that_holds_a_value_again_is_told_it_again() -> None:
    """It let go of what is inside, too."""
    node = Node(A)
    value = Containing(b"list", [Y])
    node.tell(Escaped(A, [Y], b"task"), Escaped(A, [X]), Published(A, X, value))
    first, again = node.tell(NodeHoldArrived(THERE, 1, [X])), node.tell(NodeHoldArrived(THERE, 2, [X]))
    assert SendResolved(THERE, X, value) in first and again == [SendNodeHeld(THERE, 2)]
    node.tell(NodeReleaseArrived(THERE, [(X, 2)]))
    assert SendResolved(THERE, X, value) in node.tell(NodeHoldArrived(THERE, 3, [X]))
    assert SendResolved(THERE, X, value) not in node.tell(HandedAbroad(A, [X], B, THERE))
    assert SendResolved(THERE, X, value) in node.tell(NodeReleaseArrived(THERE, [(X, 1)])), (
        "that was before X was handed to it"
    )


def test_a_small_value_with_refs_inside_is_told_to_those_who_hold_it_when_it_is_known() -> None:
    node = Node(A)
    value = Containing(b"list", [Y])
    node.tell(Escaped(A, [Y], b"task"), Escaped(A, [X], b"maker"), NodeHoldArrived(THERE, 1, [X]))
    assert node.tell(Published(A, X, value)) == [
        SendResolved(THERE, X, value),
        SendMirrors(THERE, [item(Y, b"task")]),
        SendHoldFor(THERE, 0, b"", [Y], HERE),
    ]


def reader_of_list(*mirrors: Any, value: Any = None) -> Node:
    """A node that has read X, with Y inside, both of one home, which has told the mirrors."""
    node = Node(A)
    node.tell(Held(A, [X], home=THERE), NodeHoldConfirmed(THERE, 1), ResolveAsked(A, [X], home=THERE))
    node.tell(ResolvedAbroad(THERE, X, value or Containing(b"list", [Y])))
    node.tell(MirrorsArrived(THERE, list(mirrors)), HoldForArrived(THERE, 0, b"", [Y], THERE))
    assert node.settle() == [], "held as long as what it is in"
    return node


@pytest.mark.parametrize("value", [Containing(b"list", [Y]), stored(X, nested=[Y])])
def test_what_was_read_inside_of_a_value_outlives_the_home_of_both(value: Any) -> None:
    node = reader_of_list(item(Y, b"another"), value=value)
    asked = [each for each in node.tell(NodeDied(THERE, "killed")) if type(each) is AskHeir]
    assert AskHeir(Y, True) in asked
    node.tell(HeirTold(Y, HERE), ClaimsTold(THIRD, THERE, []))
    [adopted] = node.tell(ClaimsTold(HERE, THERE, []))
    assert isinstance(adopted, Adopted) and adopted.oids == [Y]
    node.tell(ResolveAsked(A, [Y], home=THERE))
    assert node.tell(Published(A, Y, b"value")) == [SendResolved(A, Y, b"value")]


def test_what_is_inside_is_let_go_with_the_value() -> None:
    node = reader_of_list(item(Y, b"another"))
    node.tell(Released(A, [X]))
    released = [each.items for each in node.settle() if type(each) is SendNodeRelease]
    assert sorted(each for items in released for each in items) == [(X, 1), (Y, 1)]
    node.tell(MirrorsDropped(THERE, [Y]))
    assert not any(counts_of(node).values())


def test_who_has_read_a_list_of_refs_can_be_its_heir() -> None:
    value = Containing(b"list", [Y])
    node = reader_of_list(item(Y, b"another"), item(X, b"task"))
    node.tell(NodeDied(THERE, "killed"), HeirTold(X, HERE), HeirTold(Y, HERE))
    assert node.tell(ResolveAsked(A, [X], home=THERE)) == [SendResolved(A, X, value)], "it is not made again"
    mirrored = node.tell(NodeHoldArrived(THIRD, 1, [X]))
    assert mirrored[:2] == [SendMirrors(THIRD, [item(X, b"task")]), SendNodeHeld(THIRD, 1)], "should this node die, too"
    assert mirrored[2] == SendResolved(THIRD, X, value) and mirrored[-1] == SendHoldFor(THIRD, 0, b"", [Y], HERE)
    assert node.tell(ResolveAsked(THIRD, [X]))[0] == SendResolved(THIRD, X, value)


def test_how_a_list_of_refs_is_made_is_told_when_it_is_there_too() -> None:
    """Its value is not mirrored: whoever holds it from now on could not have it otherwise."""
    node = Node(A)
    node.tell(Escaped(A, [X], b"task"), Escaped(A, [Y]), Published(A, X, Containing(b"list", [Y])))
    assert node.tell(NodeHoldArrived(THERE, 1, [X]))[0] == SendMirrors(THERE, [item(X, b"task")])


# ---------------------------------------------------------------- the shell


def test_who_asks_for_the_heir_and_is_not_answered_is_none_and_asks_again() -> None:
    """Two nodes that both took themselves for the heir would make the object twice."""
    told: list[Any] = []
    asked: list[tuple[str, Any]] = []
    machine: Any = SimpleNamespace(inherit=lambda: None, handle=lambda event, now: told.append(event) or [])
    links: Any = SimpleNamespace(on_joined=[], on_died=[], on_died_before=[], handlers={})
    nothing: Any = None
    loop: Any = PlayedLoop()
    shell = Objects(machine, nothing, nothing, loop, list, nothing, links, HERE, nothing)
    shell.inherit(lambda method, body, then: asked.append((method, then)), nothing)

    def answer(expected: str, body: Any, error: list[str]) -> None:
        method, then = asked.pop()
        assert method == expected and not asked
        then(body, error)
        while loop.due:
            call, args = loop.due.pop()
            call(*args)

    shell._ask_heir(AskHeir(X, True))
    answer("gcs.kv_put", None, ["GcsUnavailable", "too much waits"])
    answer("gcs.kv_put", {"added": False}, [])
    answer("gcs.kv_get", None, ["GcsUnavailable", "too much waits"])
    assert told == []
    answer("gcs.kv_put", {"added": False}, [])
    answer("gcs.kv_get", {"value": THERE}, [])
    assert told == [HeirTold(X, THERE)] and not asked
    told.clear()
    shell._ask_heir(AskHeir(X, True))
    answer("gcs.kv_put", {"added": True}, [])
    assert told == [HeirTold(X, HERE)]


def test_a_ref_from_a_living_home_brings_back_what_was_lost_with_a_dead_one() -> None:
    """An actor's replay on another node has made it once more."""
    node = Node(A, B)
    node.tell(Held(A, [X], home=THERE), NodeDied(THERE, "killed"))
    [failed] = node.tell(HeirTold(X, b""), ResolveAsked(A, [X], home=THERE))
    assert isinstance(failed.value, Failed)
    assert SendNodeHold(THIRD, 2, [X]) in node.tell(Held(B, [X], home=THIRD))
    assert node.tell(ResolveAsked(B, [X], home=THIRD)) == [SendResolveFor(THIRD, [X])]
    assert node.tell(ResolvedAbroad(THIRD, X, b"again")) == [SendResolved(B, X, b"again")]
    node.tell(NodeHoldConfirmed(THIRD, 2), Released(A, [X]), Released(B, [X]))
    assert node.settle() == [SendNodeRelease(THIRD, [(X, 1)])]


def test_it_waits_until_it_is_known_that_there_is_no_heir() -> None:
    node = Node(A, B)
    node.tell(Held(A, [X], home=THERE), ResolveAsked(A, [X], home=THERE), NodeDied(THERE, "killed"))
    node.tell(Held(B, [X], home=THIRD))
    assert node.tell(HeirTold(X, b"")) == [SendNodeHold(THIRD, 2, [X]), SendResolveFor(THIRD, [X])]


def test_what_an_owner_here_makes_once_more_is_this_nodes_own() -> None:
    node = Node(A, B)
    node.tell(Held(B, [X], home=THERE), NodeHoldConfirmed(THERE, 1))
    node.tell(Escaped(A, [X], b"task"), Published(A, X, stored(X)))
    assert node.directory.home_of(X) == b""
    assert node.settle() == [SendNodeRelease(THERE, [(X, 1)])]
    assert node.tell(ResolveAsked(B, [X], home=THERE))[0].value.oid == X
    node.tell(Released(A, [X]), Released(B, [X]))
    assert node.settle() == [FreeStored(X)], "its block does not stay behind"
    assert node.directory.statistics()["objects"] == 0


def test_what_is_made_here_while_its_heir_is_asked_for_is_not_forgotten() -> None:
    node = Node(A, B)
    node.tell(Held(B, [X], home=THERE), MirrorsArrived(THERE, [item(X, b"task")]), NodeDied(THERE, "killed"))
    node.tell(Escaped(A, [X], b"task"))
    assert node.tell(HeirTold(X, HERE)) == [], "nobody else is to be the heir, and it is not made twice"
    node.tell(Published(A, X, b"small"), Released(A, [X]), Released(B, [X]))
    assert ForgetHeir(X) in node.settle()


def test_a_ref_that_says_that_it_is_at_home_here_waits_for_its_owners_word() -> None:
    node = Node(A, B)
    node.tell(Held(A, [X], home=THERE), NodeDied(THERE, "killed"), HeirTold(X, b""))
    assert node.tell(Held(A, [X]), ResolveAsked(A, [X], home=HERE)) == [], "which may stand in another socket"
    assert node.tell(Escaped(B, [X]), Published(B, X, b"again")) == [SendResolved(A, X, b"again")]


def test_it_may_be_that_nobody_makes_it() -> None:
    node = Node(A, B)
    node.tell(Held(A, [X], home=THERE), ResolveAsked(A, [X], home=THERE), NodeDied(THERE, "killed"))
    node.tell(ResolveAsked(A, [X], home=HERE))
    assert node.tell(HeirTold(X, b"")) == []
    [told] = node.settle()
    assert isinstance(told, SendResolved) and isinstance(told.value, Failed)


def test_what_lies_here_by_now_is_not_freed_for_another_home() -> None:
    """One name has one block in a store, though it may have two homes: of an actor's former life, and of its replay."""
    node = Node(A)
    freed: list[tuple[list[bytes], bool]] = []
    shell: Any = Objects.__new__(Objects)
    shell.machine, shell._kept_for, shell._with_refs, shell._copy_for = node.directory, {}, set(), {X: THERE, Y: THERE}
    shell._store = SimpleNamespace(free=lambda oids, of_dead=False: oids and freed.append((oids, of_dead)))
    node.tell(Escaped(A, [X]), Published(A, X, stored(X)))
    shell._on_free_stored(THERE, FreeStoredMessage([X, Y]))
    assert freed == [([Y], True)], "and what is sealed under that name from now on is meant by who seals it"
    shell._kept_for = {X: THERE, Y: THERE}
    shell._free_orphaned(THERE)
    assert freed[1:] == [([Y], False)]


def test_what_one_home_counts_is_not_let_go_at_another() -> None:
    """Two nodes have made what has this name: an heir, and an actor's replay."""
    node = Node(A)
    node.tell(Held(A, [X], home=THERE), NodeHoldConfirmed(THERE, 1))
    node.tell(HoldForArrived(THIRD, 7, A, [X], THIRD))
    assert node.settle() == [SendNodeRelease(THERE, [(X, 1)])]
    node.tell(Released(A, [X]), Released(A, [X]))
    assert node.settle() == [SendNodeRelease(THIRD, [(X, 1)])]
    assert node.directory.statistics()["objects"] == 0


def test_what_is_this_nodes_own_is_not_counted_elsewhere() -> None:
    node = Node(A, B)
    node.tell(Escaped(B, [X]), Published(B, X, b"small"))
    assert SendHoldForDone(THIRD, 7) in node.tell(HoldForArrived(THIRD, 7, A, [X], THIRD))
    assert node.settle() == [SendNodeRelease(THIRD, [(X, 1)])]
    assert node.directory.holders(X) == {A: 1, B: 1}

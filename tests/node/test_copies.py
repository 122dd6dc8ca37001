"""Further copies of put objects: made before `put` returns, made again when nodes die, found when the first is lost, freed with the last ref."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.node.test_mirrors import HERE, THERE, THIRD, A, B, Node, X, Y
from tests.node.test_object_directory import stored

from shoal.node.object_directory import ObjectDirectory
from shoal.node.object_events import (
    AnswerCopies,
    AskCopy,
    AskHeir,
    CopiesAsked,
    CopyKept,
    Escaped,
    FreeStored,
    HeirTold,
    Held,
    HomeLeaves,
    Lost,
    MirrorItem,
    MirrorsArrived,
    NodeDied,
    NodeHoldArrived,
    NodeJoined,
    ProcessDied,
    ProcessJoined,
    Published,
    Released,
    RequestSweep,
    ResolveAsked,
    SendMirrors,
    SendNodeHeld,
    SendResolved,
    Swept,
)
from shoal.protocol.messages import Failed, Stored


def at(node: bytes, oid: bytes = X, generation: int = 7) -> Stored:
    return Stored(oid, 2, 64, 100, generation, [], node)


def put_with(number: int) -> tuple[Node, list[Any]]:
    """A node of three whose process A has put X."""
    node = Node(A, B)
    node.tell(Escaped(A, [X]), Published(A, X, stored(X)))
    return node, node.tell(CopiesAsked(A, 5, X, number))


def test_put_is_answered_when_its_copies_are_made() -> None:
    node, asked = put_with(3)
    assert {ask.node for ask in asked if type(ask) is AskCopy} == {THERE, THIRD} and len(asked) == 2
    assert all(ask.stored.node == HERE for ask in asked)
    assert node.tell(CopyKept(THERE, X, at(THERE))) == []
    assert node.tell(CopyKept(THIRD, X, at(THIRD))) == [AnswerCopies(A, 5, 3, 3, "")]


def test_a_node_without_room_is_made_up_for() -> None:
    node, [first] = put_with(2)
    [second] = node.tell(CopyKept(first.node, X, None, "full"))
    assert {first.node, second.node} == {THERE, THIRD}
    why = f"node {first.node.hex()[:8]}: full"
    assert node.tell(CopyKept(second.node, X, at(second.node))) == [AnswerCopies(A, 5, 2, 3, why)]


def test_fewer_nodes_than_copies() -> None:
    node, _ = put_with(5)
    assert node.tell(CopyKept(THERE, X, at(THERE)), CopyKept(THIRD, X, None, "full")) == [
        AnswerCopies(A, 5, 2, 3, f"node {THIRD.hex()[:8]}: full")
    ]
    asked = node.tell(NodeJoined(b"N" * 16))
    assert {ask.node for ask in asked} == {THIRD, b"N" * 16}, (
        "who joins gets what is lacking, and who was full is asked again"
    )


def test_a_lost_value_is_replaced_and_its_copies_restored() -> None:
    node, [ask] = put_with(2)
    node.tell(CopyKept(ask.node, X, at(ask.node)), Held(B, [X]))
    resolved, again = node.tell(ResolveAsked(B, [X], 1), Lost(X, "its file is damaged", A))[-2:]
    assert resolved == SendResolved(B, X, at(ask.node))
    assert type(again) is AskCopy and again.node != ask.node and again.stored == at(ask.node)


def test_the_death_of_a_keeper_is_made_up_for() -> None:
    node, [ask] = put_with(2)
    node.tell(CopyKept(ask.node, X, at(ask.node)))
    [again] = node.tell(NodeDied(ask.node, "killed"))
    assert type(again) is AskCopy and again.node not in (ask.node, HERE)


def test_a_keeper_that_lost_its_copy_may_get_another() -> None:
    node, _ = put_with(3)
    node.tell(CopyKept(THERE, X, at(THERE)), CopyKept(THIRD, X, at(THIRD)))
    assert node.tell(CopyKept(THERE, X, None, "its file is damaged")) == [AskCopy(THERE, X, stored_here())]


def stored_here() -> Stored:
    return Stored(X, 1, 0, 100, 1, [], HERE)


def test_copies_are_freed_with_the_object() -> None:
    node, _ = put_with(3)
    node.tell(CopyKept(THERE, X, at(THERE)), Released(A, [X]))
    freed = [effect for effect in node.settle() if type(effect) is FreeStored]
    assert sorted(effect.node for effect in freed) == sorted([b"", THERE, THIRD]), "also where it is still on its way"
    assert node.tell(CopyKept(THIRD, X, at(THIRD))) == [FreeStored(X, THIRD)]
    assert node.directory.statistics()["copied"] == 0


def test_a_dead_owner_takes_nothing_with_it() -> None:
    node, [ask] = put_with(2)
    node.tell(CopyKept(ask.node, X, at(ask.node)), Held(B, [X]), ProcessDied(A, "killed"))
    assert node.settle() == []
    assert node.tell(ResolveAsked(B, [X])) == [SendResolved(B, X, stored_here())]


def test_holders_are_told_of_copies() -> None:
    node, [ask] = put_with(2)
    node.tell(CopyKept(ask.node, X, at(ask.node)))
    told = [SendMirrors(THERE, [MirrorItem(X, b"", [], b"", b"", None, 2, [at(ask.node)])]), SendNodeHeld(THERE, 1)]
    assert node.tell(NodeHoldArrived(THERE, 1, [X])) == told
    other = THERE if ask.node == THIRD else THIRD
    if ask.node == THIRD:  # THERE, which holds it, hears where the copy is now
        node.tell(NodeDied(THIRD, "killed"))
        [told_again] = node.tell(CopyKept(other, X, at(other)))
        assert told_again == SendMirrors(THERE, [MirrorItem(X, b"", [], b"", b"", None, 2, [at(other)])])


def heir() -> Node:
    """A node that holds X, whose home is dead and had copies on this node and on another one."""
    node = Node(A)
    places = [at(THIRD), at(HERE)]
    node.tell(Held(A, [X], home=THERE), MirrorsArrived(THERE, [MirrorItem(X, b"", [], b"", b"", None, 3, places)]))
    node.tell(ResolveAsked(A, [X], home=THERE))
    assert node.tell(NodeDied(THERE, "killed"))[-1] == AskHeir(X, True)
    return node


def test_the_heir_asks_for_the_copies_of_a_dead_home() -> None:
    node = heir()
    assert node.tell(HeirTold(X, HERE)) == [AskCopy(THIRD, X, at(THIRD)), AskCopy(HERE, X, at(HERE))]
    assert node.tell(CopyKept(HERE, X, None, "it was never there")) == []
    again = [SendResolved(A, X, at(THIRD)), AskCopy(HERE, X, at(THIRD))]
    assert node.tell(CopyKept(THIRD, X, at(THIRD))) == again, "what is lacking is made anew from what is left"


def test_an_heir_that_finds_no_copy_says_so() -> None:
    node = heir()
    node.tell(HeirTold(X, HERE), CopyKept(THIRD, X, None, "gone"))
    [answer] = node.tell(CopyKept(HERE, X, None, "gone"))
    assert type(answer.value) is Failed and b"none is left" in answer.value.error and b"copies=" in answer.value.error


def home_of_x(value: Any) -> Node:
    """A node whose process A owns X, which THERE holds."""
    node = Node(A)
    node.tell(Escaped(A, [X]), Published(A, X, value), NodeHoldArrived(THERE, 1, [X]))
    return node


def test_what_others_hold_outlives_a_home_that_leaves() -> None:
    node = home_of_x(stored(X))
    copies = node.directory.copies()
    assert copies.left_over([X, Y]) == (1, 2), "what is not known here is needed by somebody"
    [ask] = node.tell(HomeLeaves([]))
    assert type(ask) is AskCopy and ask.node in (THERE, THIRD) and ask.stored == stored_here()
    assert node.tell(HomeLeaves([])) == [], "said again and again"
    assert copies.left_over([X]) == (1, 1)
    told = MirrorItem(X, b"", [], b"", b"", None, 1, [at(ask.node)])
    assert node.tell(CopyKept(ask.node, X, at(ask.node))) == [SendMirrors(THERE, [told])]
    assert copies.left_over([X]) == (0, 0)
    if ask.node == THIRD:  # else the only holder is gone
        [again] = node.tell(NodeDied(THIRD, "killed"))
        assert again == AskCopy(THERE, X, stored_here()) and copies.left_over([X]) == (1, 1)
    node = home_of_x(stored(X))
    [ask] = node.tell(HomeLeaves([THERE]))
    assert ask.node == THIRD, "the other one leaves too"
    assert node.tell(CopyKept(THIRD, X, None, "full")) == []
    assert node.directory.copies().left_over([X]) == (1, 1)


def test_a_copy_on_a_node_that_leaves_too_is_none() -> None:
    node, [ask] = put_with(2)
    first, other = ask.node, THERE if ask.node == THIRD else THIRD
    node.tell(CopyKept(first, X, at(first)), NodeHoldArrived(other, 1, [X]))
    assert node.tell(HomeLeaves([])) == [], "one outlives this node"
    assert node.tell(HomeLeaves([first])) == [AskCopy(other, X, stored_here())]
    assert node.tell(HomeLeaves([first])) == [] and node.directory.copies().left_over([X]) == (1, 1)
    [told] = node.tell(CopyKept(other, X, at(other)))
    assert told == SendMirrors(other, [MirrorItem(X, b"", [], b"", b"", None, 2, [at(first), at(other)])])
    assert node.tell(HomeLeaves([first])) == [] and node.directory.copies().left_over([X]) == (0, 0)


def test_a_copy_on_its_way_to_a_node_that_leaves_is_none_and_who_joins_gets_one() -> None:
    node, [ask] = put_with(2)
    other = THERE if ask.node == THIRD else THIRD
    node.tell(NodeHoldArrived(other, 1, [X]))
    assert node.tell(HomeLeaves([ask.node, other])) == [], "nobody stays"
    assert node.tell(CopyKept(ask.node, X, at(ask.node)))[-1] == AnswerCopies(A, 5, 2, 3, "")
    assert node.tell(NodeJoined(LAST)) == [AskCopy(LAST, X, stored_here())]


def test_inline_values_outlive_their_home_and_refs_inside_do_not() -> None:
    node = home_of_x(b"inline")
    assert node.tell(HomeLeaves([])) == [] and node.directory.copies().left_over([]) == (0, 0)
    node = Node(A)
    place = stored(X)
    place.nested = [Y]
    node.tell(Escaped(A, [Y]), Escaped(A, [X]), Published(A, X, place), NodeHoldArrived(THERE, 1, [X]))
    assert node.tell(HomeLeaves([])) == [] and node.directory.copies().left_over([X]) == (1, 1)


def test_nothing_to_copy() -> None:
    node = Node(A)
    assert node.tell(CopiesAsked(A, 1, Y, 2)) == [AnswerCopies(A, 1, 0, 1, "it was freed")]


NODES = [bytes([65 + number]) * 16 for number in range(5)]
LAST = b"L" * 16


class World:
    """A home with real rows, and stores of other nodes that are sets; messages to and from them wait until they are let through."""

    def __init__(self, number: int) -> None:
        self.directory = ObjectDirectory(lambda error: str(error).encode(), HERE)
        self.directory.inherit()
        self.number = number
        self.stores: dict[bytes, bool] = {HERE: True}
        self.living: dict[bytes, None] = {}
        self.dead: set[bytes] = set()
        self.waiting: list[tuple[str, bytes, Stored | None]] = []
        self.token = 0
        self.freed = False
        self.tell(ProcessJoined(A), Escaped(A, [X]), Published(A, X, stored(X)), CopiesAsked(A, 1, X, number))

    def tell(self, *events: Any) -> None:
        for event in events:
            for effect in self.directory.handle(event, 0.0):
                if type(effect) is RequestSweep:
                    self.token = effect.token
                elif type(effect) is AskCopy:
                    assert effect.node in self.living or effect.node == HERE
                    self.waiting.append(("ask", effect.node, effect.stored))
                elif type(effect) is FreeStored:
                    self.waiting.append(("free", effect.node or HERE, None))

    def step(self, full: bool) -> None:
        """The oldest message arrives."""
        what, node, source = self.waiting.pop(0)
        if what == "lost":
            self.tell(Lost(X, "its file is damaged", A))
        elif what == "free":
            self.stores.pop(node, None)
        elif what == "kept":
            if node not in self.dead:
                self.tell(CopyKept(node, X, source, "" if source is not None else "it cannot"))
        elif node in self.living or node == HERE:
            assert source is not None
            comes = source.node in self.stores and not full
            if comes:
                self.stores[node] = True
            self.waiting.append(("kept", node, at(node) if node in self.stores else None))

    def settle(self) -> None:
        while self.waiting or self.token:
            while self.waiting:
                self.step(False)
            token, self.token = self.token, 0
            if token:
                self.tell(Swept(token))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(2, 4), st.lists(st.tuples(st.sampled_from(["join", "die", "step", "full", "lose"]), st.integers(0, 4)))
)
def test_as_many_copies_as_asked_for_while_one_is_left(number: int, program: list[tuple[str, int]]) -> None:
    world = World(number)
    for what, which in program:
        node = NODES[which]
        if what == "join" and node not in world.dead:
            world.living[node] = None
            world.tell(NodeJoined(node))
        elif what == "die" and node in world.living:
            del world.living[node]
            world.dead.add(node)
            world.stores.pop(node, None)
            world.tell(NodeDied(node, "killed"))
        elif what == "lose" and HERE in world.stores and world.directory.statistics()["places"]:
            del world.stores[HERE]
            world.waiting.append(("lost", HERE, None))  # after what this store has said before
        elif what in ("step", "full") and world.waiting:
            world.step(what == "full")
    world.settle()
    world.living[LAST] = None
    world.tell(NodeJoined(LAST))
    world.settle()
    value = world.directory.value_of(X)
    if type(value) is Stored and value.node not in world.stores:  # nobody has read it since its node died
        world.tell(Lost(X, "its node is dead", A, value.node))
        world.settle()
        value = world.directory.value_of(X)
    if type(value) is Stored:
        assert value.node in world.stores, "it is where the home says"
        assert len(world.stores) >= min(number, 1 + len(world.living))
    else:
        assert not world.stores, "given up while there was a copy"
    world.tell(Released(A, [X]))
    world.settle()
    assert not world.stores and world.directory.statistics()["copied"] == 0

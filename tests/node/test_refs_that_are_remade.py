"""Refs to what tasks make, while processes die and stores lose blocks: each gives its value, and in the end nothing is left."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from tests.node.cluster_that_remakes import Remaking
from tests.node.test_mirrors import HERE, THERE, A, B, Node, X, Y, item

from shoal.node.object_events import (
    Adopted,
    AskClaims,
    DropMirrors,
    EnsureResident,
    Escaped,
    FreeStored,
    Held,
    Lost,
    NodeHoldArrived,
    NotMadeTold,
    ProcessDied,
    Published,
    Released,
    ResolveAsked,
    ResolvedAbroad,
    SendBeingRemade,
    SendMirrors,
    SendRemake,
    SendResolveFor,
)
from shoal.protocol.messages import Failed, Stored

STEPS = 500


def play(seed: int) -> Counter[str]:
    """One seed: it says how large the cluster is, and which faults there are."""
    dice = random.Random(seed)
    world = Remaking(seed, dice.randint(1, 4), dice.randint(1, 3))
    deadly, world.losses = dice.random() < 0.7, dice.choice([0.0, 0.3, 1.0])
    dice = world.dice
    busy = dice.choice([0.3, 0.6, 0.85])
    for _ in range(STEPS):
        world.step(busy)
        if deadly and dice.random() < 0.004:
            alive = [process for process in world.processes if process.alive]
            if len(alive) > 2:
                world.kill(dice.choice(alive))
    world.finish()
    world.counts["runs"] = sum(world.executions.values())
    return world.counts


@pytest.mark.parametrize("seed", range(40))
def test_every_ref_gives_its_value(seed: int) -> None:
    play(seed)


# ---------------------------------------------------------------- what it found, each alone


def place(oid: bytes, node: bytes) -> Stored:
    return Stored(oid, 1, 0, 1, 7, [], node)


def test_what_a_mirror_told_of_a_third_nodes_object_goes_with_it() -> None:
    third = b"3" * 16
    node = Node(A)
    node.tell(Held(A, [Y], home=third), ResolveAsked(A, [Y], home=third), ResolvedAbroad(third, Y, b"small"))
    node.tell(Escaped(A, [X], b"task", [Y]), Released(A, [Y]))
    told, _ = node.tell(NodeHoldArrived(THERE, 1, [X]))
    assert isinstance(told, SendMirrors) and told.items[1:] == [item(Y, value=b"small")]
    node.settle()
    assert Y in node.directory._mirrors.told[THERE], "who makes X needs it"
    dropped = node.tell(Published(A, X, b"value"))
    assert DropMirrors(THERE, [Y]) in dropped


def test_executors_are_asked_also_when_nothing_is_owed() -> None:
    """What they store in the name of the dead must be known before what is of no use there is freed."""
    node = Node(A, B)
    assert AskClaims(B, A) in node.tell(ProcessDied(A, "killed", [B]))


def test_what_its_owner_has_let_go_is_made_by_whoever_knows_how() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X], b"task"), Held(B, [X]), Published(A, X, place(X, HERE)))
    assert [type(each) for each in node.tell(Lost(X, "its file is gone", A))] == [SendRemake]
    node.tell(Released(A, [X]))
    [adopted] = node.tell(NotMadeTold(A, [X], Failed(b"unknown")))
    assert isinstance(adopted, Adopted) and adopted.oids == [X]


def test_a_block_of_another_home_that_is_lost_is_asked_for_there() -> None:
    node = Node(A)
    node.tell(Held(A, [X], home=THERE))
    assert node.tell(ResolveAsked(A, [X], 7)) == [EnsureResident(X, A)]
    assert node.tell(Lost(X, "its file is gone")) == [SendResolveFor(THERE, [X], 7, HERE)]


def test_an_owner_that_asks_for_what_is_lost_makes_it() -> None:
    """It had no place for the object when that escaped: the directory took it for pending."""
    node = Node(A)
    assert node.tell(ResolveAsked(A, [X], 7)) == [EnsureResident(X, A)]
    node.tell(Escaped(A, [X], b"task"))
    assert SendRemake(A, X, f"its file is gone (node {HERE.hex()[:8]})") in node.tell(Lost(X, "its file is gone", A))


def test_what_lies_elsewhere_by_now_is_freed_where_it_could_not_be_had() -> None:
    node = Node(A, B)
    node.tell(Escaped(A, [X], b"task"), Held(B, [X]), Published(A, X, place(X, THERE)))
    lost = node.tell(ResolveAsked(B, [X], 7, stale_node=THERE))
    assert SendBeingRemade(B, X) in lost
    assert FreeStored(X, THERE) in node.tell(Published(A, X, b"value"))


def test_what_was_lost_before_others_knew_it_is_made_by_those_when_its_owner_has_let_it_go() -> None:
    """The owner answers "make it again" with how that is done (tests/runtime/test_told_of_losses.py): no Escape comes when refs leave it."""
    node = Node(A, B)
    node.tell(ResolveAsked(A, [X], 7))
    assert SendRemake(A, X, f"its file is gone (node {HERE.hex()[:8]})", True) in node.tell(
        Lost(X, "its file is gone", A)
    )
    node.tell(Escaped(A, [X], b"task"), Published(A, X, place(X, HERE)), Held(B, [X]), Released(A, [X]))
    lost = node.tell(Lost(X, "its file is gone", A))
    assert [each.oids for each in lost if type(each) is Adopted] == [[X]]

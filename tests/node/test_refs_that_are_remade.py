"""Refs to what tasks make, while processes die and stores lose blocks: each gives its value, and in the end nothing is left."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from tests.node.cluster_that_remakes import Remaking
from tests.node.test_mirrors import HERE, THERE, THIRD, A, B, Node, X, Y, item

from shoal.node.io.objects import Objects
from shoal.node.object_events import (
    Adopted,
    AskClaims,
    AskHeir,
    Claimed,
    DropMirrors,
    EnsureResident,
    Escaped,
    FreeStored,
    HeirTold,
    Held,
    Lost,
    MirrorsArrived,
    NeedsTold,
    NodeDied,
    NodeHoldArrived,
    NodeHoldConfirmed,
    NodeReleaseArrived,
    NotMadeTold,
    OrphansSettled,
    ProcessDied,
    Published,
    Released,
    ResolveAsked,
    ResolvedAbroad,
    SendBeingRemade,
    SendMirrors,
    SendNodeHold,
    SendNodeRelease,
    SendRemake,
    SendResolved,
    SendResolveFor,
    TellNeeds,
)
from shoal.protocol.errors import ObjectLostError
from shoal.protocol.messages import Failed, Stored

STEPS = 500


def play(seed: int, node_deaths: int = 0) -> Counter[str]:
    """One seed: it says how large the cluster is, and which faults there are."""
    dice = random.Random(seed)
    world = Remaking(seed, dice.randint(2 if node_deaths else 1, 4), dice.randint(1, 3))
    deadly, world.losses = dice.random() < 0.7, dice.choice([0.0, 0.3, 1.0])
    dice = world.dice
    busy = dice.choice([0.3, 0.6, 0.85])
    for _ in range(STEPS):
        world.step(busy)
        if deadly and dice.random() < 0.004:
            alive = [process for process in world.processes if process.alive]
            if len(alive) > 2:
                world.kill(dice.choice(alive))
        if world.counts["nodes"] < node_deaths and dice.random() < 0.004:
            node = dice.choice(world.nodes)
            if sum(process.alive and process.node is not node for process in world.processes) > 1:
                world.kill_node(node)
    world.finish()
    world.counts["runs"] = sum(world.executions.values())
    return world.counts


@pytest.mark.parametrize("seed", range(40))
def test_every_ref_gives_its_value(seed: int) -> None:
    play(seed)


@pytest.mark.parametrize("seed", range(10))
def test_every_ref_gives_its_value_or_died_with_its_nodes(seed: int) -> None:
    play(seed, node_deaths=2)


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


def test_what_a_dead_owners_task_had_on_a_dead_node_is_made_by_one_run() -> None:
    """Not what a living node may have: it did not have the first one, and that is all that is known. Nor what was put."""
    second, third, put = (X[:16] + index for index in (b"\0\0\0\2", b"\0\0\0\3", b"\x80\0\0\1"))
    for cause in ("", "killed"):
        node = Node(A, B)
        for oid, where in ((X, THERE), (second, THERE), (third, THIRD), (put, THERE), (Y, THERE)):
            node.tell(Escaped(A, [oid], oid[:16]), Held(B, [oid]), Published(A, oid, place(oid, where)))
        node.tell(ProcessDied(A, "killed"))
        node.tell(*([NodeDied(THERE, cause)] if cause else []))
        lost = node.tell(ResolveAsked(B, [X], 7, stale_node=THERE))
        [adopted] = [each for each in lost if type(each) is Adopted]
        assert adopted.oids == ([X, second] if cause else [X])
        node.tell(*(Published(B, oid, b"value") for oid in adopted.oids))
        assert node.directory.statistics()["fallen"] == (2 if cause else 0), (
            "what was put, and Y, which another task made"
        )
        node.tell(Released(B, [put, Y]))
        node.settle()
        assert node.directory.statistics()["fallen"] == 0


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


@pytest.mark.parametrize("value", [b"value", None])
def test_what_comes_back_is_freed_again_if_who_asked_dies_before_it_holds_it(value: bytes | None) -> None:
    """A freed object that another one needs: its value, or why it cannot be made again, as nobody is left who could."""
    node = Node(A, B)
    node.tell(Escaped(A, [X], b"first"), Escaped(A, [Y], b"second", [X]))
    node.tell(
        Published(A, X, value or place(X, HERE)), Published(A, Y, place(Y, THERE)), NodeHoldArrived(THERE, 1, [Y])
    )
    node.tell(Released(A, [X, Y]))
    node.settle()
    assert node.directory.statistics()["ghosts"] == 1
    if value is None:
        node.tell(ProcessDied(A, "killed"), ProcessDied(B, "killed"))
    [asked] = [each for each in node.tell(ResolveAsked(THIRD, [X])) if type(each) is SendResolved]
    assert asked.value == value if value is not None else b"no process is left" in asked.value.error
    node.settle()
    assert node.directory.statistics()["ghosts"] == 1 and node.directory.statistics()["objects"] == 1
    node.tell(NodeReleaseArrived(THERE, [(Y, 1)]))
    node.settle()
    assert not [
        node.directory.statistics()[name]
        for name in ("objects", "ghosts", "specs")
        if node.directory.statistics()[name]
    ]


def test_what_another_home_has_is_asked_for_there_when_it_is_needed_again() -> None:
    """Nobody here held it any more, but a task of this home whose result others hold was made from it. Its home was told in time."""
    node = Node(A)
    node.tell(Held(A, [Y], home=THERE), Escaped(A, [X], b"task", [Y]), Published(A, X, place(X, HERE)))
    node.tell(NodeHoldConfirmed(THERE, 1), NodeHoldArrived(THIRD, 1, [X]), Released(A, [X, Y]))
    assert node.settle() == [TellNeeds(THERE, [Y]), SendNodeRelease(THERE, [(Y, 1)])]
    assert node.directory.home_of(Y) == b"" and node.directory.statistics()["homes"] == 1
    lost = node.tell(Lost(X, "its file is gone", A))
    assert [(each.node, each.oids) for each in lost if type(each) is SendNodeHold] == [(THERE, [Y])]
    assert [each.needs for each in lost if type(each) is Adopted] == [[Y]]
    assert SendResolveFor(THERE, [Y], 0) in node.tell(ResolveAsked(A, [Y]))


def test_the_home_of_what_is_needed_is_forgotten_with_what_needs_it() -> None:
    node = Node(A)
    node.tell(
        Held(A, [Y], home=THERE), Escaped(A, [X], b"task", [Y]), Published(A, X, place(X, HERE)), Released(A, [Y])
    )
    node.settle()
    assert node.directory.statistics()["homes"] == 1
    node.tell(Released(A, [X]))
    assert TellNeeds(THERE, [Y], True) in node.settle()
    assert node.directory.statistics()["homes"] == 0


@pytest.mark.parametrize("ends", ["said", "dies"])
@pytest.mark.parametrize("who", [THERE, B], ids=["node", "process"])
def test_what_somebody_needs_stays_a_ghost_at_its_home(who: bytes, ends: str) -> None:
    node = Node(A, B)
    takes = NodeHoldArrived(who, 1, [Y]) if who == THERE else Held(who, [Y])
    lets_go = NodeReleaseArrived(who, [(Y, 1)]) if who == THERE else Released(who, [Y])
    node.tell(Escaped(A, [Y], b"task"), Published(A, Y, place(Y, HERE)), takes, Released(A, [Y]))
    node.tell(NeedsTold(who, [Y], False), lets_go)
    assert FreeStored(Y) in node.settle(), "not its value"
    node.tell(takes)
    [adopted] = [each for each in node.tell(ResolveAsked(who, [Y])) if type(each) is Adopted]
    assert adopted.oids == [Y]
    runner = adopted.process
    assert SendResolved(who, Y, place(Y, HERE)) in node.tell(Published(runner, Y, place(Y, HERE)))
    node.tell(Released(runner, [Y]), lets_go)
    node.settle()
    assert node.directory.statistics()["ghosts"] == node.directory.statistics()["needs told"] == 1
    died = NodeDied(who, "killed") if who == THERE else ProcessDied(who, "killed")
    node.tell(NeedsTold(who, [Y], True) if ends == "said" else died)
    left = {name: count for name, count in node.directory.statistics().items() if name not in ("processes", "sweeps")}
    assert not any(left.values()), left


def test_what_a_dead_home_told_is_kept_while_something_may_be_made_from_it() -> None:
    node = Node(A)
    node.tell(Held(A, [Y], home=THERE), NodeHoldConfirmed(THERE, 1), MirrorsArrived(THERE, [item(Y, b"how")]))
    node.tell(Escaped(A, [X], b"task", [Y]), Published(A, X, place(X, HERE)), Released(A, [Y]))
    node.settle()
    node.tell(NodeDied(THERE, "killed"))
    assert AskHeir(Y, True) in node.tell(
        ResolveAsked(A, [X], 7), Lost(X, "its file is gone"), NotMadeTold(A, [X], Failed(b""))
    )
    node.tell(HeirTold(Y, b""))
    assert node.directory.statistics()["mirrors"] == 1
    node.tell(Published(A, X, b"value"))
    assert node.directory.statistics()["mirrors"] == 0


@pytest.mark.parametrize("claimed", [False, True])
def test_what_a_dead_worker_stored_for_a_dead_owner_and_never_told_is_freed(claimed: bool) -> None:
    """Unless a worker that lives has the task: then it may be what that has just stored."""
    node, freed = Node(A, B, THIRD), []
    store = SimpleNamespace(
        owned_by=lambda owner: [X],
        written_by=lambda process: [],
        free=lambda oids, of_dead=False: freed.append((oids, of_dead)),
        free_of=lambda giver, oids: None,
    )
    shell: Any = Objects.__new__(Objects)
    shell.machine, shell._store, shell._settled_owners = node.directory, store, {}
    node.tell(Escaped(A, [X], b"task"), Held(THIRD, [X]), ProcessDied(A, "killed", [B]))
    settled = node.tell(Claimed(B, A, [X[:16]]) if claimed else ProcessDied(B, "killed"))
    assert [each.process for each in settled if type(each) is Adopted] == ([] if claimed else [THIRD])
    shell._settled(next(each for each in settled if type(each) is OrphansSettled and each.process == A))
    assert freed == ([] if claimed else [([X], True)])


@pytest.mark.parametrize("heir", [HERE, THERE])
def test_an_heir_hears_that_what_it_took_was_lost_here(heir: bytes) -> None:
    """It was kept for a home that is dead, and its file is found damaged when its place is to be told."""
    shell: Any = Objects.__new__(Objects)
    said: list[Any] = []
    shell._node_id, shell._kept_for = HERE, {X: heir}
    shell._say = lambda node, message, hear: said.append((node, message.oid, message.value))

    async def ensure_resident(oid: bytes) -> Stored:
        shell._kept_for.pop(oid)  # as `lost` does
        raise ObjectLostError("its file is gone", object_id=oid.hex())

    shell._store = SimpleNamespace(ensure_resident=ensure_resident)
    asyncio.run(shell._give(X, heir))
    assert said == [(heir, X, None)] and not shell._kept_for

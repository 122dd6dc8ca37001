"""Copies of what logs of actors keep: on one other node that stays, whoever refuses, drains or dies, and none is left behind."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from shoal.node import log_copies as lc
from shoal.node.log_copies import LogCopies
from shoal.protocol.messages import Stored

ACTOR, OTHER = b"a" * 16, b"b" * 16


def stored(oid: bytes, node: bytes = b"me") -> Stored:
    return Stored(oid, 1, 0, 1 << 25, 1, [], node)


class World:
    """LogCopies of a node, and other nodes as it sees them, whose messages take their time."""

    def __init__(self, *nodes: bytes) -> None:
        self.machine = LogCopies()
        self.settled: list[bytes] = []
        self.kept: dict[bytes, set[bytes]] = {}
        self.refuse: set[bytes] = set()  #: nodes that have no room
        self.draining: set[bytes] = set()
        self.queues: dict[bytes, deque[Any]] = {}
        for node in nodes:
            self.join(node)

    def join(self, node: bytes) -> None:
        self.kept[node], self.queues[node] = set(), deque()
        self.do(lc.NodeSeen(node, False))

    def die(self, node: bytes) -> None:
        del self.kept[node], self.queues[node]
        self.do(lc.NodeGone(node))

    def do(self, event: lc.Event) -> None:
        for effect in self.machine.handle(event):
            if isinstance(effect, lc.CopiesSettled):
                self.settled.append(effect.actor_id)
            else:
                self.queues[effect.node].append(effect)  # who is dead is told nothing

    def step(self, node: bytes) -> None:
        """A node takes its next message, or its answer arrives."""
        effect = self.queues[node].popleft()
        if isinstance(effect, lc.FreeCopy):
            self.kept[node].discard(effect.oid)
        elif isinstance(effect, lc.AskCopy):
            able = node not in self.refuse
            if able:
                self.kept[node].add(effect.stored.oid)
            self.queues[node].append(
                lc.CopyTold(node, effect.stored.oid, stored(effect.stored.oid, node) if able else None)
            )
        else:
            self.do(effect)

    def rest(self) -> None:
        for _ in range(1000):
            busy = [node for node, queue in self.queues.items() if queue]
            if not busy:
                return
            self.step(busy[0])
        raise AssertionError("it does not come to rest")

    def nodes_of(self, oid: bytes) -> list[bytes]:
        return [place.node for place in self.machine.places(oid)]


def test_a_copy_is_made_and_goes_with_the_checkpoint() -> None:
    world = World(b"x", b"y")
    world.do(lc.CopyWanted(ACTOR, 1, stored(b"1")))
    assert not world.machine.is_settled(b"1") and world.settled == []
    world.rest()
    assert world.settled == [ACTOR] and world.machine.is_settled(b"1")
    [_, node] = world.nodes_of(b"1")
    assert world.kept[node] == {b"1"}
    world.do(lc.CopyUnwanted([b"1"]))
    world.rest()
    assert not any(world.kept.values()) and world.machine.places(b"1") == []


def test_without_another_node_nobody_waits() -> None:
    world = World()
    world.do(lc.CopyWanted(ACTOR, 1, stored(b"1")))
    assert world.settled == [ACTOR] and world.nodes_of(b"1") == [b"me"]
    world.join(b"x")
    world.rest()
    assert world.nodes_of(b"1") == [b"me", b"x"] and world.settled == [ACTOR] * 2, "the new place is told, too"


def test_who_cannot_is_passed_over_until_another_node_joins() -> None:
    world = World(b"x", b"y")
    world.refuse = {b"x", b"y"}
    world.do(lc.CopyWanted(ACTOR, 1, stored(b"1")))
    world.rest()
    assert world.settled == [ACTOR] and world.nodes_of(b"1") == [b"me"]
    world.refuse = {b"z"}
    world.join(b"z")
    world.rest()
    assert world.nodes_of(b"1")[1] in (b"x", b"y")


def test_a_node_that_drains_is_replaced_before_it_lets_go() -> None:
    world = World(b"x")
    world.do(lc.CopyWanted(ACTOR, 1, stored(b"1")))
    world.rest()
    world.do(lc.NodeSeen(b"x", True))
    world.rest()
    assert world.nodes_of(b"1") == [b"me", b"x"], "there is no other"
    world.join(b"y")
    while world.queues[b"y"]:
        world.step(b"y")
    assert world.nodes_of(b"1") == [b"me", b"y"] and world.kept[b"x"] == {b"1"}
    world.rest()
    assert world.kept == {b"x": set(), b"y": {b"1"}}


def test_a_copy_that_comes_too_late_is_freed_and_one_of_a_life_elsewhere_stays() -> None:
    world = World(b"x")
    world.do(lc.CopyWanted(ACTOR, 1, stored(b"1")))
    world.do(lc.CopyUnwanted([b"1"]))
    world.do(lc.CopyWanted(ACTOR, 1, stored(b"2")))
    world.rest()
    assert world.kept[b"x"] == {b"2"}
    world.do(lc.CopyForgotten([b"2"]))
    world.rest()
    assert world.kept[b"x"] == {b"2"} and world.machine.statistics() == {"log_objects": 0, "log_copies": 0}


@pytest.mark.parametrize("seed", range(40))
def test_every_object_has_a_copy_where_one_can_be_and_none_is_left(seed: int) -> None:
    dice = random.Random(seed)
    world = World(*(b"n%d" % each for each in range(dice.randint(0, 3))))
    names, wanted = 10, set[bytes]()
    for number in range(150):
        what = dice.random()
        nodes = list(world.queues)
        if what < 0.2:
            oid = b"%d" % number
            wanted.add(oid)
            world.do(lc.CopyWanted(dice.choice([ACTOR, OTHER]), 1, stored(oid)))
        elif what < 0.3 and wanted:
            gone = set(dice.sample(sorted(wanted), dice.randint(1, len(wanted))))
            wanted -= gone
            world.do(lc.CopyUnwanted(sorted(gone)))
        elif what < 0.35:
            names += 1
            world.join(b"n%d" % names)
        elif what < 0.4 and nodes:
            world.die(dice.choice(nodes))
        elif what < 0.43 and nodes:
            node = dice.choice(nodes)
            world.draining.add(node)
            world.do(lc.NodeSeen(node, True))
        elif what < 0.46 and nodes:
            world.refuse ^= {dice.choice(nodes)}
        elif busy := [node for node in nodes if world.queues[node]]:
            world.step(dice.choice(busy))
    world.rest()
    able = {node for node in world.queues if node not in world.draining and node not in world.refuse}
    for oid in wanted:
        assert world.machine.is_settled(oid)
        [me, *others] = world.nodes_of(oid)
        assert me == b"me" and all(oid in world.kept[node] for node in others)
        refused = world.machine._rows[oid].refused
        assert others or not able - set(refused)
        assert all(node not in world.draining for node in others) or not able - set(refused)
    there = {(node, oid) for node, oids in world.kept.items() for oid in oids}
    assert there == {(node, oid) for oid in wanted for node in world.nodes_of(oid)[1:]}
    world.do(lc.CopyUnwanted(sorted(wanted)))
    world.rest()
    assert not any(world.kept.values())

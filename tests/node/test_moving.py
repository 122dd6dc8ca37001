"""Objects leave a node that drains, and somebody is killed in the midst of it: after every step of the exchange, in every order."""

from __future__ import annotations

import random
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.node.io.moving import AGAIN_S, Moving
from shoal.protocol.messages import FreeObjects, Relocated, Stored
from shoal.protocol.node_messages import MoveStored

SOURCE, TARGET, OWNER = b"s" * 16, b"t" * 16, b"o" * 16
OIDS = [b"%d" % number * 20 for number in range(3)]


class Store:
    """The objects of a node: oid -> owner."""

    def __init__(self) -> None:
        self.owned: dict[bytes, bytes] = {}
        self.copies: set[bytes] = set()  #: brought here, and nobody's yet

    def kept_for_others(self, processes: Any) -> list[Any]:
        return [
            SimpleNamespace(oid=oid, owner=owner, segment=1, offset=0, size=9, generation=1)
            for oid, owner in self.owned.items()
            if owner not in processes
        ]

    def keep_copy(self, oid: bytes, owner: bytes) -> Stored | None:
        if oid in self.copies:
            self.copies.discard(oid)
            self.owned[oid] = owner
        return Stored(oid, 7, 0, 9, 1) if oid in self.owned else None

    def free(self, oids: list[bytes]) -> None:
        for oid in oids:
            self.owned.pop(oid, None)


class Pair:
    """The node that drains, that of the owner, and the owner; what they say to each other takes its time, and keeps its order."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.now = 0.0
        self.dead: set[bytes] = set()
        self.queue: dict[str, deque[Any]] = {name: deque() for name in ("to target", "to source", "owner", "to owner")}
        self.fetches: list[tuple[bytes, Any]] = []
        self.brought: list[tuple[bytes, Any]] = []  #: the bytes have come, or not, and nobody has been told
        self.stores = {SOURCE: Store(), TARGET: Store()}
        self.stores[SOURCE].owned = dict.fromkeys(OIDS, OWNER)
        self.places: dict[bytes, bytes | None] = dict.fromkeys(
            OIDS, SOURCE
        )  #: the owner's values; None: to be made anew
        owner = SimpleNamespace(send=self.queue["to owner"].append)
        self.processes: dict[bytes, Any] = {OWNER: owner}
        self.source = self.node(SOURCE, {}, "to target")
        self.target = self.node(TARGET, self.processes, "to source")

    def node(self, node_id: bytes, processes: dict[bytes, Any], out: str) -> Moving:
        links: Any = SimpleNamespace(handlers={}, send=lambda node, message: self.queue[out].append(message))
        loop: Any = SimpleNamespace(time=lambda: self.now)
        transfer: Any = SimpleNamespace(fetch=lambda stored, then: self.fetches.append((stored.oid, then)))
        table: Any = SimpleNamespace(by_id=processes)
        return Moving(
            loop,
            node_id,
            links,
            table,
            self.stores[node_id],  # type: ignore[arg-type]
            transfer,
            lambda process: TARGET if TARGET not in self.dead and OWNER in self.processes else None,
        )

    def steps(self) -> list[str]:
        able = [name for name, waiting in self.queue.items() if waiting]
        return able + (["fetch"] if self.fetches else []) + (["brought"] if self.brought else [])

    def step(self, name: str) -> None:
        if name == "fetch":
            oid, then = self.fetches.pop(self.dice.randrange(len(self.fetches)))
            target = self.stores[TARGET]
            had = oid in target.owned or (SOURCE not in self.dead and oid in self.stores[SOURCE].owned)
            if had and oid not in target.owned:
                target.copies.add(oid)
            self.brought.append((oid, then))
            return
        if name == "brought":
            oid, then = self.brought.pop(self.dice.randrange(len(self.brought)))
            had = oid in self.stores[TARGET].owned or oid in self.stores[TARGET].copies
            then(Stored(oid, 7, 0, 9, 1) if had else None, "" if had else "it cannot be had")
            return
        message = self.queue[name].popleft()
        if name == "to target":
            self.target._on_move(SOURCE, message)
        elif name == "to source":
            self.stores[SOURCE].free(message.oids)
        elif name == "owner":  # the target's daemon hears what the owner lets go
            if message.node == SOURCE:
                self.queue["to source"].append(message)
            else:
                self.stores[TARGET].free(message.oids)
        else:
            self.relocated(message)

    def relocated(self, message: Relocated) -> None:
        """As `runtime.remaking` does."""
        oid, place = message.stored.oid, self.places.get(message.stored.oid)
        if place == message.node:
            self.places[oid] = TARGET
            self.queue["owner"].append(FreeObjects([oid], SOURCE))
        elif place != TARGET:
            self.queue["owner"].append(FreeObjects([oid]))

    def drop(self, oid: bytes) -> None:
        """The owner lets an object go."""
        place = self.places.pop(oid, None)
        if place is not None:
            self.queue["owner"].append(FreeObjects([oid], place if place == SOURCE else b""))

    def kill(self, what: bytes) -> None:
        self.dead.add(what)
        if what == SOURCE:
            self.queue["to target"].clear()
            self.queue["to source"].clear()
            self.places = {oid: None if place == SOURCE else place for oid, place in self.places.items()}
            return
        self.processes.clear()
        self.queue["to owner"].clear()
        self.queue["owner"].clear()
        self.places.clear()
        self.stores[TARGET].owned.clear()  # what a dead process owned and nobody else knows
        if what == TARGET:
            self.fetches.clear()
            self.brought.clear()
            self.queue["to target"].clear()
            self.queue["to source"].clear()
        self.stores[SOURCE].owned.clear()  # every node frees what the dead owned there

    def run(self, until: int = 1_000) -> int:
        """Drain, for so many steps or until nothing happens any more, also after a while; how many were made."""
        for made in range(until):
            if SOURCE not in self.dead and self.dice.random() < 0.3:
                self.source.empty()
            able = self.steps()
            if not able:
                self.now += AGAIN_S
                if SOURCE not in self.dead:
                    self.source.empty()
                able = self.steps()
            if not able:
                return made
            self.step(self.dice.choice(able))
        return until


def test_all_objects_move_and_each_is_in_one_place() -> None:
    pair = Pair(random.Random(1))
    assert pair.run() < 1_000
    assert pair.places == dict.fromkeys(OIDS, TARGET)
    assert not pair.stores[SOURCE].owned and pair.stores[TARGET].owned == dict.fromkeys(OIDS, OWNER)


@pytest.mark.parametrize("victim", [SOURCE, TARGET, OWNER])
def test_a_death_after_any_step_leaves_nothing_and_loses_only_what_had_not_moved(victim: bytes) -> None:
    for seed in range(20):
        for after in range(40):
            pair = Pair(random.Random(seed))
            if pair.run(after) < after:
                break
            pair.kill(victim)
            assert pair.run() < 1_000, "it comes to rest"
            there = pair.stores[TARGET].owned
            if victim == SOURCE:
                assert set(there) == {oid for oid, place in pair.places.items() if place == TARGET}, (seed, after)
            else:
                assert not pair.stores[SOURCE].owned and not there, (seed, after)


def test_what_is_freed_meanwhile_is_nowhere() -> None:
    for seed in range(20):
        for after in range(40):
            pair = Pair(random.Random(seed))
            pair.run(after)
            pair.drop(OIDS[0])
            assert pair.run() < 1_000
            assert OIDS[0] not in pair.stores[SOURCE].owned and OIDS[0] not in pair.stores[TARGET].owned, (seed, after)
            assert pair.places == dict.fromkeys(OIDS[1:], TARGET)


def test_a_message_that_was_not_heeded_is_said_again() -> None:
    pair = Pair(random.Random(0))
    pair.source.empty()
    assert [type(each) for each in pair.queue["to target"]] == [MoveStored]
    pair.queue["to target"].clear()
    pair.source.empty()
    assert not pair.queue["to target"], "not at once"
    pair.now += AGAIN_S
    pair.source.empty()
    assert len(pair.queue["to target"]) == 1

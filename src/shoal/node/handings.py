"""Refs that a process of this node hands on to another node: kept until that one holds them.

Purpose: who hands a ref on lets go of it when it likes; whoever gets it must hold it by then.

Design: a pure part of the object directory.

    HandedAbroad   a worker holds refs in the name of a process of another node. Here at home: that node is counted at once. At the
                   receiver's node: it hears of it before anything that this node lets go. Elsewhere: kept here until HoldForDone.
                   `in_call`: refs inside of a call to an actor there, which may wait for long. The call leaves when that node has holds of its
                   own, and mirrors: whoever dies from then on, the refs are alive when the actor reads them
    bequeath       the same for what is inside of a value that another node is told next: that value holds them there
    hand_inside    the same for what is inside of an object's value that another node has asked for

What it does not do: count what processes of this node hold (`object_directory`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.node.foreign_holds import PROMISED
from shoal.node.handed_refs import as_caller
from shoal.node.object_events import (
    Effect,
    HandedAbroad,
    HoldForArrived,
    HoldForConfirmed,
    SendHoldFor,
    SendResolveFor,
)
from shoal.node.object_rows import Abroad
from shoal.protocol.values import Value, refs_inside

if TYPE_CHECKING:
    from shoal.node.object_directory import ObjectDirectory

#: promises below minus this stand for refs handed to other nodes; above, for records of the GCS
HANDED_PROMISES = 1 << 60


class Kept:
    """Refs handed on to one node, in one message to it for each home."""

    __slots__ = ("node", "oids", "unconfirmed")

    def __init__(self, node: bytes, oids: list[bytes], unconfirmed: int) -> None:
        self.node = node
        self.oids = oids
        self.unconfirmed = unconfirmed


class Handings:
    """See the module's page."""

    def __init__(self, directory: ObjectDirectory) -> None:
        self._directory = directory
        #: refs handed on to other nodes, kept here until these hold them
        self.kept: dict[int, Kept] = {}
        self._count = 0

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {"handed": len(self.kept)}

    # ------------------------------------------------------------ from here

    def on_handed(self, event: HandedAbroad, effects: list[Effect]) -> None:
        """A worker hands refs on to a process of another node."""
        directory = self._directory
        if event.sender not in directory._held:
            return
        if event.in_call or (event.home and any(self._home(oid, event.home) != event.home for oid in event.oids)):
            self._hand_over(event, effects)
            return
        home, node, oids = event.home or directory._node_id, event.node, event.oids
        number = 0
        if home == directory._node_id:
            if node in directory._nodes:
                if event.home:  # the sender's reply waits until that node knows them
                    number = self._keep(node, [])
                    directory._holds_abroad.promise(event.sender, -HANDED_PROMISES - number, effects)
                self._lend(node, oids, effects)
                effects.append(SendHoldFor(node, number, event.process, oids, home, event.sender))
            elif event.home:
                directory._holds_abroad.confirm_later(event.sender, 0, effects)
            return
        if node in directory._nodes:
            number = self._hand(node, oids, home, event.process, event.sender, effects)
        directory._holds_abroad.confirm_later(event.sender, number, effects)

    def _home(self, oid: bytes, said: bytes) -> bytes:
        """The home of an object: `said` by who hands it on, unless that is dead and it has an heir, or this node knows better."""
        row = self._directory._objects.get(oid)
        if row is None or (row.abroad is None and not row.known):
            return said
        return row.abroad.home if row.abroad is not None else self._directory._node_id

    def _hand_over(self, event: HandedAbroad, effects: list[Effect]) -> None:
        """What they are handed on with waits for the receiver's node. Until then the giver holds them; if it dies before, that has not left."""
        directory, node = self._directory, event.node
        if node not in directory._nodes:
            directory._holds_abroad.confirm_later(event.sender, 0, effects)
            return
        here = directory._node_id
        giver = as_caller(event.sender) if event.in_call else event.sender
        by_home: dict[bytes, list[bytes]] = {}
        for oid in event.oids:
            by_home.setdefault(self._home(oid, event.home), []).append(oid)
        number = self._keep(node, [], len(by_home))
        directory._holds_abroad.promise(event.sender, -HANDED_PROMISES - number, effects)
        for home, oids in by_home.items():
            if home == here:
                self._lend(node, oids, effects)
            effects.append(SendHoldFor(node, number, event.process, oids, home, giver))

    def bequeath(self, node: bytes, oids: list[bytes], effects: list[Effect]) -> None:
        """Another node, which lives, is told a value next that has these refs inside."""
        directory = self._directory
        by_home: dict[bytes, list[bytes]] = {}
        for oid in oids:
            by_home.setdefault(directory.home_of(oid) or directory._node_id, []).append(oid)
        for home, inside in by_home.items():
            if home == directory._node_id:
                self._lend(node, inside, effects)
                effects.append(SendHoldFor(node, 0, b"", inside, home))
            else:
                self._hand(node, inside, home, b"", b"", effects)

    def hand_inside(self, node: bytes, value: Value, effects: list[Effect]) -> None:
        """Another node was told an object's value. Who reads it there refers to what is inside: that node holds it as long as it knows of the
        object, and is told how it is made. The home of a ref of which nothing was read yet is not known here: its reader will tell."""
        directory = self._directory
        if directory._mirrors.inherits:
            rows = ((oid, directory._objects.get(oid)) for oid in refs_inside(value))
            known = [oid for oid, row in rows if row is not None and (row.known or row.abroad is not None)]
            self.bequeath(node, known, effects)

    def _lend(self, node: bytes, oids: list[bytes], effects: list[Effect]) -> None:
        """Objects of this home are held by another node from now on."""
        self._directory._count(self._directory._held[node], oids, 1)
        self._directory._mirrors.hold(node, oids, effects)

    def _hand(
        self, node: bytes, oids: list[bytes], home: bytes, process: bytes, giver: bytes, effects: list[Effect]
    ) -> int:
        """Objects of another home: returns the number of the NodeHold that must be confirmed before who hands them on lets go; 0 for none."""
        directory = self._directory
        for oid in oids:
            directory._foreign_row(oid, home, effects)
        if home == node:
            effects.append(SendHoldFor(node, 0, process, oids, home, giver))
            return 0
        for oid in oids:
            row = directory._objects[oid]
            row.rows += 1
            row.stamp = directory._issued
        kept = self._keep(node, oids)
        number = directory._take(home, oids, effects)
        effects.append(SendHoldFor(node, kept, process, oids, home, giver))
        return number

    def _keep(self, node: bytes, oids: list[bytes], unconfirmed: int = 1) -> int:
        self._count += 1
        self.kept[self._count] = Kept(node, oids, unconfirmed)
        return self._count

    def on_confirmed(self, event: HoldForConfirmed, effects: list[Effect]) -> None:
        """A node holds what was handed to it."""
        handed = self.kept.get(event.number)
        if handed is not None and handed.node == event.node:
            handed.unconfirmed -= 1
            if not handed.unconfirmed:
                self._let_go(event.number, effects)

    def node_died(self, node: bytes, effects: list[Effect]) -> None:
        """Nothing need be kept for a dead node."""
        for number in [number for number, handed in self.kept.items() if handed.node == node]:
            self._let_go(number, effects)

    def _let_go(self, number: int, effects: list[Effect]) -> None:
        directory = self._directory
        directory._holds_abroad.confirmed(PROMISED, -HANDED_PROMISES - number, effects)
        for oid in self.kept.pop(number).oids:
            row = directory._objects[oid]
            row.rows -= 1
            row.stamp = directory._issued
            if not row.rows:
                directory._candidates[oid] = None

    # ------------------------------------------------------------ to here

    def on_hold_for(self, event: HoldForArrived, effects: list[Effect]) -> None:
        """A process of this node, or (without one) a value that comes next, was handed refs by another node."""
        directory = self._directory
        held = directory._held.get(event.process)
        if held is not None and event.giver:
            directory._underway.give(event.giver, event.process, event.oids)
        if event.home == directory._node_id:
            if held is not None:
                directory._count(held, event.oids, 1)
            if event.number:
                directory._holds_abroad.done_later(event.node, event.number, 0, effects)
            return
        own = []
        homes = {event.home: None}
        is_counted = event.home == event.node and directory._holds_abroad.cause_of_death(event.home) is None
        for oid in event.oids:
            abroad = directory._foreign_row(oid, event.home, effects)
            if abroad is not None:
                if abroad.home != event.home:
                    abroad = self._move(oid, abroad, event, effects)
                own.append(oid)
                homes[abroad.home] = None
            if not is_counted:
                continue
            if abroad is not None and abroad.home == event.home:
                abroad.taken += 1
            else:  # this node is a home of it, too: both have made it, an heir and an actor's replay
                self._let_go_at(event.home, oid, 1)
        if held is not None:
            directory._count(held, event.oids, 1)
        number = max(directory._take(home, own, effects) for home in homes)
        for oid in own:
            row = directory._objects[oid]
            row.stamp = directory._issued
            if not row.rows:  # let go already, perhaps to others of this node who have not been read
                directory._candidates[oid] = None
        if event.number:
            directory._holds_abroad.done_later(event.node, event.number, number, effects)

    def _move(self, oid: bytes, abroad: Abroad, event: HoldForArrived, effects: list[Effect]) -> Abroad:
        """An object is said to have another home than is known here: its heir, if that says so itself or the former is dead."""
        directory, home = self._directory, event.home
        cause_of_death = directory._holds_abroad.cause_of_death
        if cause_of_death(home) is not None or (home != event.node and cause_of_death(abroad.home) is None):
            return abroad
        row = directory._objects[oid]
        if abroad.taken:
            self._let_go_at(abroad.home, oid, abroad.taken)
        row.abroad = Abroad(home)
        if row.waiters is not None:
            row.abroad.asked = True
            effects.append(SendResolveFor(home, [oid]))
        return row.abroad

    def _let_go_at(self, home: bytes, oid: bytes, count: int) -> None:
        """One of two homes need not count this node: after the next sweep, as whatever is let go."""
        self._directory._holds_abroad.release(home, oid, count)
        self._directory._candidates[oid] = None


HANDLERS: dict[type, Any] = {
    HandedAbroad: lambda directory, event, effects: directory._handings.on_handed(event, effects),
    HoldForArrived: lambda directory, event, effects: directory._handings.on_hold_for(event, effects),
    HoldForConfirmed: lambda directory, event, effects: directory._handings.on_confirmed(event, effects),
}

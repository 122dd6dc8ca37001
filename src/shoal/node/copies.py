"""Further copies of put objects, which outlive their node: `shoal.put(value, copies=n)`.

Purpose: a value that no task could make again is on as many nodes as its program asked for, for as long as anybody refers to it.

Design: a pure part of the object directory. At its home an object may have `places` beside its value: stores of other nodes that keep it as an
original of their own (never dropped to make room, but moved to disk), and free it when the home says so.

    CopiesAsked(n)        n - 1 other nodes are asked for a copy (AskCopy), chosen by a hash of object and node, so that copies spread
    CopyKept              a node keeps it; or it cannot, and another is asked. The process hears when n are made, or no node is left to ask
    NodeJoined, NodeDied  what lacks copies gets them, where there are nodes
    the value is lost     the next place takes its stead (`instead`), before anybody would make it again
    the home dies         holders know the places by its mirrors; the heir asks those nodes to keep their copies for it (`inherit`)
    the object is freed   FreeStored to all of them
    this node leaves      (HomeLeaves) what other nodes hold, and nobody wanted to be on several, gets one more place, which holders know: an heir
                          has the value there. `outlives` says when a holder need not fear the home's end

What it does not do: move bytes, keep refs that are inside the value, or wait: who keeps a copy for a dead home frees it if no heir comes (the
shell).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from zlib import crc32

from shoal.node.mirrors import VALUE_TOLD
from shoal.node.object_events import (
    AnswerCopies,
    AskCopy,
    CopiesAsked,
    CopyKept,
    Effect,
    FreeStored,
    HomeLeaves,
    MirrorItem,
)
from shoal.node.object_rows import ObjectRow
from shoal.protocol.errors import ObjectLostError
from shoal.protocol.messages import Failed, Stored

if TYPE_CHECKING:
    from shoal.node.object_directory import ObjectDirectory


class Copied:
    """One object of this home that is to be on several nodes."""

    __slots__ = ("asked", "askers", "moves", "number", "places", "refused")

    def __init__(self, number: int, moves: bool = False) -> None:
        #: on how many nodes, with that of its value
        self.number = number
        #: one of them only because this node leaves
        self.moves = moves
        #: the other nodes that keep it, and where
        self.places: dict[bytes, Stored] = {}
        #: nodes that were asked, and have not answered
        self.asked: dict[bytes, None] = {}
        #: nodes that could not keep it, and why; they are asked again when nodes come or go
        self.refused: dict[bytes, str] = {}
        #: (process, request) of those who wait
        self.askers: list[tuple[bytes, int]] = []


class Copies:
    """See the module's page. Writes `value` and `resident` of the directory's rows, and only of objects in `rows`."""

    def __init__(self, directory: ObjectDirectory) -> None:
        self._directory = directory
        self.rows: dict[bytes, Copied] = {}
        #: nodes that get no copies: this one when it leaves, and others that do
        self.unfit: set[bytes] = set()

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {"copied": len(self.rows), "places": sum(len(row.places) for row in self.rows.values())}

    def told(self, oid: bytes) -> tuple[int, list[Stored]]:
        """What holders on other nodes are told of an object: on how many nodes it is to be, and the places beside this one."""
        copied = self.rows.get(oid)
        if copied is None:
            return 0, []
        value = self._directory._objects[oid].value
        here = [value] if type(value) is Stored and value.node != self._directory._node_id else []
        return copied.number - copied.moves, [*here, *copied.places.values()]

    # ------------------------------------------------------------ copies are made

    def on_asked(self, event: CopiesAsked, effects: list[Effect]) -> None:
        """A process has put an object, and wants it to be on several nodes."""
        row = self._directory._objects.get(event.oid)
        if row is None or type(row.value) is not Stored:
            effects.append(AnswerCopies(event.process, event.request, 0, 1, "it was freed"))
            return
        copied = self.rows.setdefault(event.oid, Copied(event.number))
        copied.number = max(copied.number, event.number)
        copied.askers.append((event.process, event.request))
        self._fill(event.oid, copied, effects)

    def _fill(self, oid: bytes, copied: Copied, effects: list[Effect]) -> None:
        """Ask as many nodes as copies are lacking, and answer who waits if there is nothing more to wait for."""
        value = self._directory._objects[oid].value
        if type(value) is Stored and self._directory._holds_abroad.cause_of_death(value.node) is None:
            lacking = self._lacking(copied) - sum(node not in self.unfit for node in copied.asked)
            for node in self._candidates(oid, copied, value)[: max(lacking, 0)]:
                copied.asked[node] = None
                effects.append(AskCopy(node, oid, value))
        if copied.askers and (len(copied.places) >= copied.number - 1 or not copied.asked):
            living = 1 + len(self._directory._nodes)
            why = "; ".join(f"node {node.hex()[:8]}: {reason}" for node, reason in copied.refused.items())
            made = 1 + len(copied.places)
            effects.extend(AnswerCopies(*asker, made, living, why) for asker in copied.askers)
            copied.askers = []

    def _lacking(self, copied: Copied) -> int:
        """How many places are to be found yet. What lies on nodes that leave will soon be gone."""
        return copied.number - 1 - sum(node not in self.unfit for node in copied.places)

    def _candidates(self, oid: bytes, copied: Copied, value: Stored) -> list[bytes]:
        nodes = [*self._directory._nodes, self._directory._node_id]
        taken = {value.node, *copied.places, *copied.asked, *copied.refused, *self.unfit}
        return sorted((node for node in nodes if node not in taken), key=lambda node: crc32(oid + node))

    def on_kept(self, event: CopyKept, effects: list[Effect]) -> None:
        """A node keeps a copy, or cannot."""
        oid, place = event.oid, event.stored
        copied = self.rows.get(oid)
        if copied is None or (event.node not in copied.asked and place is not None):
            if place is not None:  # nobody refers to it any more
                self._free_at(event.node, oid, effects)
            return
        if event.node not in copied.asked:
            self.place_lost(oid, event.node, effects)
            return
        del copied.asked[event.node]
        row = self._directory._objects[oid]
        if place is None:
            copied.refused[event.node] = event.reason
        else:
            copied.places[event.node] = place
            place.nested = row.nested
        self._settle(oid, row, copied, effects)

    def place_lost(self, oid: bytes, node: bytes, effects: list[Effect]) -> None:
        """A node has lost a copy, which it kept: it may get another."""
        copied = self.rows.get(oid)
        if copied is not None and copied.places.pop(node, None) is not None:
            self._settle(oid, self._directory._objects[oid], copied, effects)

    def _settle(self, oid: bytes, row: ObjectRow, copied: Copied, effects: list[Effect]) -> None:
        """What is known of an object's places has changed. An inherited one may have its value now, or nowhere any more."""
        if row.value is None and not row.owner:
            if not self._take_place(oid, row, copied, effects) and not copied.asked:
                self._is_lost(oid, row, copied, effects)
                return
        elif type(row.value) is Stored and self._directory._holds_abroad.cause_of_death(row.value.node) is not None:
            self._take_place(oid, row, copied, effects)  # nobody has asked for it since
        self._directory._mirrors.known(oid, effects)
        self._fill(oid, copied, effects)

    def _is_lost(self, oid: bytes, row: ObjectRow, copied: Copied, effects: list[Effect]) -> None:
        """No node has a copy."""
        directory = self._directory
        del self.rows[oid]
        reason = f"its home is dead, and of its {copied.number} copies none is left"
        if oid in directory._succession.specs:
            directory._succession.make_anew([oid], reason, True, effects)
            return
        error = ObjectLostError(
            f"object {oid.hex()} is lost: {reason}. More copies= at shoal.put outlive more nodes", object_id=oid.hex()
        )
        row.value = Failed(directory._dump_error(error))
        directory._answer_waiters(oid, row, row.value, effects)

    # ------------------------------------------------------------ the home leaves

    def on_leaves(self, event: HomeLeaves, effects: list[Effect]) -> None:
        """This node is to leave."""
        directory = self._directory
        self.unfit = {directory._node_id, *event.unfit}
        for _, oid in self.held_abroad():
            row = directory._objects.get(oid)
            if row is not None and row.abroad is None and type(row.value) is Stored and not row.nested:
                if oid not in self.rows:
                    self.rows[oid] = Copied(2, moves=True)
                self._fill(oid, self.rows[oid], effects)

    def outlives(self, node: bytes, oid: bytes) -> bool:
        """Whether a node that holds an object of this home has all that it needs should the home be gone. (Refs inside a value would be lost.)"""
        row, told = self._directory._objects.get(oid), self._directory._mirrors.told.get(node, {})
        if row is None or oid not in told:
            return False
        if type(row.value) is bytes:
            return told[oid] == VALUE_TOLD
        copied = self.rows.get(oid)
        return copied is not None and not row.nested and any(place not in self.unfit for place in copied.places)

    def held_abroad(self) -> list[tuple[bytes, bytes]]:
        """(node, object): what other nodes hold of this home."""
        directory = self._directory
        return [(node, oid) for node in directory._nodes for oid in directory._held[node]]

    def left_over(self, lying: list[bytes]) -> tuple[int, int]:
        """How many refs of other nodes, also on their way there, end with this home; and how many of the objects `lying` here, whose owner does
        not live here, somebody needs who does not outlive it."""
        ending = [oid for node, oid in self.held_abroad() if not self.outlives(node, oid)]
        known, objects = set(ending), self._directory._objects
        needed = sum(oid in known or (row := objects.get(oid)) is None or row.abroad is not None for oid in lying)
        return len(ending) + len(self._directory._handings.kept), needed

    # ------------------------------------------------------------ copies are needed

    def instead(self, oid: bytes, row: ObjectRow, effects: list[Effect]) -> bool:
        """Whether another copy takes the place of an object's value, which is lost."""
        copied = self.rows.get(oid)
        if copied is None or type(row.value) is not Stored or not self._take_place(oid, row, copied, effects):
            return False
        self._directory._mirrors.known(oid, effects)
        self._fill(oid, copied, effects)
        return True

    def _take_place(self, oid: bytes, row: ObjectRow, copied: Copied, effects: list[Effect]) -> bool:
        if not copied.places:
            return False
        row.value = copied.places.pop(next(iter(copied.places)))
        copied.refused.clear()  # who could not have it from where it lay may have it from there
        row.resident = True
        self._directory._answer_waiters(oid, row, row.value, effects)
        return True

    def inherit(self, item: MirrorItem, row: ObjectRow, effects: list[Effect]) -> bool:
        """Whether copies may be left of an object whose home is dead and that is this node's now: they are asked for."""
        directory = self._directory
        living = [place for place in item.places if place.node == directory._node_id or place.node in directory._nodes]
        if not living:
            return False
        copied = self.rows[item.oid] = Copied(item.copies)
        for place in living:
            copied.asked[place.node] = None
            effects.append(AskCopy(place.node, item.oid, place))
        return True

    # ------------------------------------------------------------ the end

    def freed(self, oid: bytes, effects: list[Effect]) -> None:
        """Nobody refers to an object any more."""
        copied = self.rows.pop(oid, None)
        if copied is not None:
            for node in [*copied.places, *copied.asked]:
                self._free_at(node, oid, effects)
            effects.extend(AnswerCopies(*asker, 0, 1, "it was freed") for asker in copied.askers)

    def _free_at(self, node: bytes, oid: bytes, effects: list[Effect]) -> None:
        effects.append(FreeStored(oid, node if node != self._directory._node_id else b""))

    def node_joined(self, effects: list[Effect]) -> None:
        """There is one more node to keep copies."""
        for oid, copied in self.rows.items():
            if self._lacking(copied) > 0:
                copied.refused.clear()
                self._fill(oid, copied, effects)

    def node_died(self, node: bytes, effects: list[Effect]) -> None:
        """What a node kept is gone; what it had as value is seen to by the directory."""
        for oid, copied in list(self.rows.items()):
            copied.refused.pop(node, None)
            kept, asked = copied.places.pop(node, None), node in copied.asked
            copied.asked.pop(node, None)
            if kept is not None or asked:
                copied.refused.clear()
                self._settle(oid, self._directory._objects[oid], copied, effects)


HANDLERS: dict[type, Any] = {
    CopiesAsked: lambda directory, event, effects: directory._copies.on_asked(event, effects),
    CopyKept: lambda directory, event, effects: directory._copies.on_kept(event, effects),
    HomeLeaves: lambda directory, event, effects: directory._copies.on_leaves(event, effects),
}

"""Copies, on other nodes, of what the logs of actors keep in this node's store: checkpoints and arguments too large for the GCS.

Purpose: a state of any size survives its node.

Design: a pure table, one row for each such object. One other node is asked for a copy, chosen by a hash of object and node, and the next when that
one cannot; the log is told to the GCS when the copy is there, or nobody is left to ask. A node that dies is replaced. One that drains is replaced
too, and lets its copy go when the other one is made.

    CopyWanted ----> AskCopy(node) <---- the node is dead, or cannot: the next one
                        |
    CopyTold(place) ----+--> CopiesSettled: the places may be told
    CopyUnwanted ----------> FreeCopy, now or when it turns out that there is one

A row ends with the checkpoint that replaces it (CopyUnwanted, when the GCS has that), or without a word when the actor lives elsewhere
(CopyForgotten): its next life needs the copies, and lets them go (`io.recoveries`).

What it does not do: move bytes, or make more than one copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from shoal.protocol.messages import Stored

# ---------------------------------------------------------------- events


@dataclass(slots=True)
class CopyWanted:
    """An object of this node belongs to the log of an actor, in this life of it."""

    actor_id: bytes
    incarnation: int
    stored: Stored


@dataclass(slots=True)
class CopyUnwanted:
    """The log needs these no more."""

    oids: list[bytes]


@dataclass(slots=True)
class CopyForgotten:
    """The log goes on elsewhere, with the copies."""

    oids: list[bytes]


@dataclass(slots=True)
class CopyTold:
    """A node has a copy, or (None) cannot have one."""

    node: bytes
    oid: bytes
    place: Stored | None


@dataclass(slots=True)
class NodeSeen:
    """Another node lives, and may drain."""

    node: bytes
    draining: bool


@dataclass(slots=True)
class NodeGone:
    """Another node is dead."""

    node: bytes


Event = CopyWanted | CopyUnwanted | CopyForgotten | CopyTold | NodeSeen | NodeGone


# ---------------------------------------------------------------- effects


@dataclass(slots=True)
class AskCopy:
    """Ask a node to have a copy."""

    node: bytes
    actor_id: bytes
    incarnation: int
    stored: Stored


@dataclass(slots=True)
class FreeCopy:
    """Tell a node to let its copy go."""

    node: bytes
    oid: bytes


@dataclass(slots=True)
class CopiesSettled:
    """For an object of this actor's log it has become clear where it is, or is to be no more."""

    actor_id: bytes


Effect = AskCopy | FreeCopy | CopiesSettled


@dataclass(slots=True)
class Copied:
    """One object. Written by LogCopies alone."""

    actor_id: bytes
    incarnation: int
    stored: Stored
    #: where its copy is
    place: Stored | None = None
    #: the node that was asked for one, and has not answered
    asked: bytes = b""
    #: nodes that cannot; they are asked again when another node joins
    refused: dict[bytes, None] = field(default_factory=dict)
    #: nobody need wait for a copy (any more)
    settled: bool = False


class LogCopies:
    """The copies of one node's logs. Queries are free; only `handle` changes anything."""

    def __init__(self) -> None:
        self._rows: dict[bytes, Copied] = {}
        #: the other nodes that live, and whether they drain
        self._nodes: dict[bytes, bool] = {}

    # ------------------------------------------------------------ queries

    def is_settled(self, oid: bytes) -> bool:
        """Whether nobody need wait for a copy of it."""
        row = self._rows.get(oid)
        return row is None or row.settled

    def places(self, oid: bytes) -> list[Stored]:
        """Where an object is: here first."""
        row = self._rows.get(oid)
        if row is None:
            return []
        return [row.stored] if row.place is None else [row.stored, row.place]

    def statistics(self) -> dict[str, int]:
        """Sizes of the table."""
        return {"log_objects": len(self._rows), "log_copies": sum(row.place is not None for row in self._rows.values())}

    # ------------------------------------------------------------ the door

    def handle(self, event: Event) -> list[Effect]:
        """Take in what happened; what to do about it, in this order."""
        effects: list[Effect] = []
        _HANDLERS[type(event)](self, event, effects)
        return effects

    def _on_wanted(self, event: CopyWanted, effects: list[Effect]) -> None:
        row = self._rows[event.stored.oid] = Copied(event.actor_id, event.incarnation, event.stored)
        self._fill(row, effects)

    def _on_unwanted(self, event: CopyUnwanted, effects: list[Effect]) -> None:
        for oid in event.oids:
            row = self._rows.pop(oid, None)
            if row is not None and row.place is not None:
                effects.append(FreeCopy(row.place.node, oid))

    def _on_forgotten(self, event: CopyForgotten, effects: list[Effect]) -> None:
        for oid in event.oids:
            self._rows.pop(oid, None)

    def _on_told(self, event: CopyTold, effects: list[Effect]) -> None:
        row = self._rows.get(event.oid)
        if row is None or row.asked != event.node:
            if event.place is not None and (row is None or row.place is None or row.place.node != event.node):
                effects.append(FreeCopy(event.node, event.oid))  # it came too late
            return
        row.asked = b""
        if event.place is None:
            row.refused[event.node] = None
            self._fill(row, effects)
            return
        if row.place is not None:
            effects.append(FreeCopy(row.place.node, event.oid))
        row.place, row.settled = event.place, True
        effects.append(CopiesSettled(row.actor_id))
        self._fill(row, effects)

    def _on_seen(self, event: NodeSeen, effects: list[Effect]) -> None:
        known = self._nodes.get(event.node)
        self._nodes[event.node] = event.draining
        if known == event.draining:
            return
        for row in self._rows.values():
            if known is None:
                row.refused.clear()
            self._fill(row, effects)

    def _on_gone(self, event: NodeGone, effects: list[Effect]) -> None:
        self._nodes.pop(event.node, None)
        for row in self._rows.values():
            row.refused.pop(event.node, None)
            if row.place is not None and row.place.node == event.node:
                row.place = None
            if row.asked == event.node:
                row.asked = b""
            self._fill(row, effects)

    def _fill(self, row: Copied, effects: list[Effect]) -> None:
        """Ask for a copy, if there is none on a node that stays, or settle for what there is."""
        oid = row.stored.oid
        if row.asked or (row.place is not None and not self._nodes.get(row.place.node, True)):
            return
        able = [node for node, drains in self._nodes.items() if not drains and node not in row.refused]
        if able:
            row.asked = min(able, key=lambda node: crc32(oid + node))
            effects.append(AskCopy(row.asked, row.actor_id, row.incarnation, row.stored))
        elif not row.settled:
            row.settled = True
            effects.append(CopiesSettled(row.actor_id))


_HANDLERS: dict[type, Callable[[LogCopies, Any, list[Effect]], None]] = {
    CopyWanted: LogCopies._on_wanted,
    CopyUnwanted: LogCopies._on_unwanted,
    CopyForgotten: LogCopies._on_forgotten,
    CopyTold: LogCopies._on_told,
    NodeSeen: LogCopies._on_seen,
    NodeGone: LogCopies._on_gone,
}

"""Holds, on other nodes, of what the logs of this node's actors refer to; and those that this node keeps for the logs of others.

Purpose: a ref in a state, answer or recorded argument is good in a life on another node: between the death of the one and the beginning of the
other nobody else may hold what it refers to.

Design: two pure tables. Each ref of a log has a *keeper*, a node that holds it in the actor's name: its home, or, for what has its home on the
actor's own node, two others, which thereby are told how the object is made (`mirrors`): one inherits it, and may die before the next life holds it.

    node of the actor                     keeper
       |---HoldForLog(position, oids)------->|  holds them, and follows the actor: with its death all its holds end
       |<--HeldForLog------------------------|  before that the GCS is not told of the record, and so nobody gets its answer
       |  the GCS has a checkpoint           |
       |---FreeLogHolds(below)-------------->|  what only the log before it needed is let go
       x killed                              |
           next life ---FreeLogHolds(below, former)--> to all, when the GCS has a checkpoint of it that covers all that it found

A *position* is the place in the order of calls: twice a record's index, and one more for a checkpoint that covers it. An object is held once, at the
last position that named it. As the GCS has at least the checkpoint that anything was let go for, whoever is next finds what its log needs.

A keeper that dies is replaced, when it is known who the home is by then (`lacking`).

What it does not do: count processes (the object directory does, for which the keeper's side is a process of its own).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from zlib import crc32


@dataclass(slots=True)
class AskHold:
    """Ask `node` to hold objects of this home for an actor; answered by LogHolds.told."""

    node: bytes
    number: int
    actor_id: bytes
    position: int
    oids: list[bytes]
    home: bytes
    life: int


@dataclass(slots=True)
class Wanted:
    """One object of a log here. Written by LogHolds alone."""

    position: int
    #: the nodes that hold it, or were asked to
    keepers: list[bytes] = field(default_factory=list)
    #: its home is the actor's own node
    is_own: bool = False


def position_of(index: int, is_checkpoint: bool) -> int:
    """The place of a record, or of a checkpoint that covers it."""
    return 2 * index + is_checkpoint


KEEPERS_OF_OWN = 2  #: of what has its home on the actor's own node


class LogHolds:
    """What the logs of one node refer to, and who keeps it."""

    def __init__(self) -> None:
        self._logs: dict[bytes, dict[bytes, Wanted]] = {}
        #: actor -> keepers that may hold something for it
        self._keepers: dict[bytes, dict[bytes, None]] = {}
        #: actor -> askings without an answer: number -> keeper
        self._asked: dict[bytes, dict[int, bytes]] = {}
        #: actor -> its life that wrote last
        self._lives: dict[bytes, int] = {}
        self._numbers = 0
        #: the other nodes that live, and whether they drain
        self._nodes: dict[bytes, bool] = {}

    # ------------------------------------------------------------ queries

    def is_settled(self, actor_id: bytes) -> bool:
        """Whether nobody need wait for a keeper's answer."""
        return actor_id not in self._asked

    def lacking(self) -> list[tuple[bytes, bytes, int]]:
        """(actor, object, position) of what has too few keepers, if there are nodes to be some."""
        own = min(KEEPERS_OF_OWN, len(self._able()))
        least = min(1, len(self._nodes))
        return [
            (actor_id, oid, row.position)
            for actor_id, rows in self._logs.items()
            for oid, row in rows.items()
            if len(row.keepers) < (max(own, least) if row.is_own else least)
        ]

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {"log_holds": sum(map(len, self._logs.values())), "log_holds_asked": sum(map(len, self._asked.values()))}

    # ------------------------------------------------------------ logs

    def want(self, actor_id: bytes, position: int, homes: dict[bytes, bytes], life: int = 0) -> list[AskHold]:
        """The log refers to these objects (and their homes) from now on, as this life of the actor says."""
        life = self._lives[actor_id] = max(life, self._lives.get(actor_id, 0))
        rows = self._logs.setdefault(actor_id, {})
        groups: dict[tuple[bytes, bytes], list[bytes]] = {}
        for oid, home in homes.items():
            row = rows.get(oid)
            if row is None:
                row = rows[oid] = Wanted(position)
            row.position = max(row.position, position)
            self._choose(actor_id, home, row)
            for keeper in row.keepers:
                groups.setdefault((keeper, home), []).append(oid)
        asks = []
        for (keeper, home), oids in groups.items():
            self._numbers += 1
            self._asked.setdefault(actor_id, {})[self._numbers] = keeper
            self._keepers.setdefault(actor_id, {})[keeper] = None
            asks.append(AskHold(keeper, self._numbers, actor_id, position, oids, home, life))
        return asks

    def _able(self) -> list[bytes]:
        return [node for node, drains in self._nodes.items() if not drains]

    def _choose(self, actor_id: bytes, home: bytes, row: Wanted) -> None:
        """Find the keepers that an object of this home lacks."""
        if home in self._nodes:
            row.is_own = False
            if not row.keepers:
                row.keepers.append(home)
            return
        row.is_own = True
        for node in sorted(self._able(), key=lambda node: crc32(actor_id + node)):
            if len(row.keepers) < KEEPERS_OF_OWN and node not in row.keepers:
                row.keepers.append(node)
        if not row.keepers and self._nodes:
            row.keepers.append(min(self._nodes))  # it drains, as all others do

    def told(self, actor_id: bytes, number: int) -> bool:
        """A keeper holds what it was asked to. Returns whether nobody need wait any more who did."""
        asked = self._asked.get(actor_id)
        if asked is None or asked.pop(number, None) is None or asked:
            return False
        del self._asked[actor_id]
        return True

    def covered(self, actor_id: bytes, below: int) -> list[bytes]:
        """The GCS has a checkpoint: nothing before this position is needed. Returns whom to tell that."""
        rows = self._logs.get(actor_id, {})
        for oid in [oid for oid, row in rows.items() if row.position < below]:
            del rows[oid]
        told = list(self._keepers.pop(actor_id, {}))
        if rows:
            self._keepers[actor_id] = {keeper: None for row in rows.values() for keeper in row.keepers}
        else:
            self._logs.pop(actor_id, None)
        return told

    def forget(self, actor_id: bytes) -> None:
        """The actor is dead, of which its keepers hear, or lives elsewhere, where its next life says what is not needed."""
        for table in (self._logs, self._keepers, self._asked, self._lives):
            table.pop(actor_id, None)

    # ------------------------------------------------------------ nodes

    def node_seen(self, node: bytes, draining: bool) -> None:
        """Another node lives, and may drain."""
        self._nodes[node] = draining

    def node_gone(self, node: bytes) -> list[bytes]:
        """Another node is dead, and will not answer. Returns the actors for which nobody need wait any more."""
        self._nodes.pop(node, None)
        for rows in self._logs.values():
            for row in rows.values():
                if node in row.keepers:
                    row.keepers.remove(node)
        for keepers in self._keepers.values():
            keepers.pop(node, None)
        settled = []
        for actor_id, asked in list(self._asked.items()):
            for number in [number for number, keeper in asked.items() if keeper == node]:
                if self.told(actor_id, number):
                    settled.append(actor_id)
        return settled


class KeptHolds:
    """What this node holds for the logs of actors of other nodes."""

    def __init__(self) -> None:
        #: actor -> object -> (the last position that named it, its home by then, the last life that named it)
        self._kept: dict[bytes, dict[bytes, tuple[int, bytes, int]]] = {}
        #: actor -> the life before which nothing is needed that lives have asked for
        self._former: dict[bytes, int] = {}

    def hold(
        self, actor_id: bytes, position: int, oids: list[bytes], home: bytes, life: int = 0
    ) -> tuple[list[bytes], list[bytes]]:
        """Objects of this home are to be held, says a life of the actor. Returns which of them were not held for it yet, and which were, but of
        another home: it may be that they were lost there, and made anew."""
        rows = self._kept.setdefault(actor_id, {})
        fresh: list[bytes] = []
        moved: list[bytes] = []
        if life < self._former.get(actor_id, 0):
            return fresh, moved  # it comes late: another life goes on without what this one wrote
        for oid in dict.fromkeys(oids):
            known = rows.get(oid)
            if known is None:
                fresh.append(oid)
            elif known[1] != home:
                moved.append(oid)
            rows[oid] = (max(position, known[0]), home, max(life, known[2])) if known else (position, home, life)
        return fresh, moved

    def knows(self, actor_id: bytes) -> bool:
        """Whether anything was ever held for the actor."""
        return actor_id in self._kept

    def free(self, actor_id: bytes, below: int, former: int = 0) -> list[bytes]:
        """What only positions before this one named, or lives before `former`: it is to be let go."""
        rows = self._kept.get(actor_id, {})
        if former:
            self._former[actor_id] = max(former, self._former.get(actor_id, 0))
        gone = [oid for oid, (position, _, life) in rows.items() if position < below or life < former]
        for oid in gone:
            del rows[oid]
        return gone

    def drop(self, actor_id: bytes) -> bool:
        """The actor is dead. Returns whether anything was ever held for it."""
        self._former.pop(actor_id, None)
        return self._kept.pop(actor_id, None) is not None

    def statistics(self) -> dict[str, int]:
        """Sizes of the table."""
        return {"log_holds_kept": sum(map(len, self._kept.values()))}

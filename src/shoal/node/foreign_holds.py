"""What this node holds at other nodes: asked for, confirmed, let go.

Purpose: the other end of a home's row. A node holds an object of another node as a whole, however many of its processes do.

Design: part of the machine `object_directory`; it is told what to hold and let go, and keeps these promises:

    a process hears `HoldsConfirmed` of its foreign `Hold` messages in their order, each when the home counts it
    a node that handed refs on hears `HoldForDone` when this node holds them at their home
    records of calls of actors with checkpoints stand in the same line (`promise`): the GCS confirms them
    nothing is let go while a hold asked for earlier is unconfirmed: what is let go may have contained what is held now, and its home could
    hear of the end of the one before the beginning of the other

Holds at a node that is dead count as confirmed: nobody waits for the dead.

What it does not do: count processes, or know values (`object_directory`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

DEAD_NODES_MAX = 10_000  #: so many are remembered
PROMISED = b""  #: in the place of a node: what the GCS is to have before answers leave


@dataclass(slots=True)
class SendNodeHold:
    """Tell `node` that this node holds its objects `oids`; answered by NodeHoldConfirmed(number)."""

    node: bytes
    number: int
    oids: list[bytes]


@dataclass(slots=True)
class SendNodeRelease:
    """Tell `node` that this node ends holds: (oid, count)."""

    node: bytes
    items: list[tuple[bytes, int]]


@dataclass(slots=True)
class SendHoldForDone:
    """Tell `node` that the refs of its HoldFor `number` are held by this node."""

    node: bytes
    number: int


@dataclass(slots=True)
class ConfirmHolds:
    """Tell a process of this node that its first `count` holds with a foreign home are known there."""

    process: bytes
    count: int


class _Asked:
    """One NodeHold on its way."""

    __slots__ = ("handed", "node", "processes")

    def __init__(self, node: bytes) -> None:
        self.node = node
        #: processes with a Hold that waits for it, perhaps among others
        self.processes: list[bytes] = []
        #: (node, number) of each HoldFor that waits for it
        self.handed: list[tuple[bytes, int]] = []


class _Confirmations:
    """The foreign Hold messages of one process."""

    __slots__ = ("told", "waiting")

    def __init__(self) -> None:
        self.told = 0
        #: for each that was not told: the NodeHold that it waits for
        self.waiting: deque[int] = deque()


class ForeignHolds:
    """The holds of one node at all others."""

    __slots__ = ("_asked", "_confirmations", "_dead", "_numbers", "_releases")

    def __init__(self) -> None:
        self._numbers = 0
        #: by number, the first asked first
        self._asked: dict[int, _Asked] = {}
        self._confirmations: dict[bytes, _Confirmations] = {}
        #: (numbers given when it was let go, home, oid, count)
        self._releases: deque[tuple[int, bytes, bytes, int]] = deque()
        self._dead: dict[bytes, str] = {}

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {
            "asked": len(self._asked),
            "releases": len(self._releases),
            "confirmations": sum(len(each.waiting) for each in self._confirmations.values()),
        }

    def cause_of_death(self, node: bytes) -> str | None:
        """Why a node is dead; None while it lives."""
        return self._dead.get(node)

    # ------------------------------------------------------------ holding

    def hold(self, node: bytes, oids: list[bytes], effects: list[Any]) -> int:
        """Ask for one hold on each of `oids` at `node`; returns the number of the asking."""
        assert node not in self._dead, "nothing is held at the dead"
        self._numbers += 1
        self._asked[self._numbers] = _Asked(node)
        effects.append(SendNodeHold(node, self._numbers, oids))
        return self._numbers

    def confirm_later(self, process: bytes, number: int, effects: list[Any]) -> None:
        """A process has written a Hold, covered by NodeHold `number` (0: by nothing that is on its way): tell it when that counts."""
        confirmations = self._confirmations.get(process)
        if confirmations is None:
            confirmations = self._confirmations[process] = _Confirmations()
        confirmations.waiting.append(number)
        asked = self._asked.get(number)
        if asked is not None:
            asked.processes.append(process)
        else:
            self._tell(process, effects)

    def promise(self, process: bytes, number: int, effects: list[Any]) -> None:
        """What a process has written counts like a Hold when the GCS has it: `confirmed(PROMISED, number)`. Numbers are negative, each new."""
        self._asked[number] = _Asked(PROMISED)
        self.confirm_later(process, number, effects)

    def done_later(self, node: bytes, handed: int, number: int, effects: list[Any]) -> None:
        """Tell `node` that its HoldFor `handed` is done when NodeHold `number` counts."""
        asked = self._asked.get(number)
        if asked is not None:
            asked.handed.append((node, handed))
        elif node not in self._dead:
            effects.append(SendHoldForDone(node, handed))

    def _tell(self, process: bytes, effects: list[Any]) -> None:
        confirmations = self._confirmations.get(process)
        if confirmations is None:
            return
        waiting = confirmations.waiting
        before = confirmations.told
        while waiting and waiting[0] not in self._asked:
            waiting.popleft()
            confirmations.told += 1
        if confirmations.told > before:
            effects.append(ConfirmHolds(process, confirmations.told))

    def confirmed(self, node: bytes, number: int, effects: list[Any]) -> None:
        """The home counts the holds of NodeHold `number`."""
        asked = self._asked.get(number)
        if asked is not None and asked.node == node:
            del self._asked[number]
            self._end(asked, effects)
            self.flush(effects)

    def _end(self, asked: _Asked, effects: list[Any]) -> None:
        for process in dict.fromkeys(asked.processes):
            self._tell(process, effects)
        for node, handed in asked.handed:
            if node not in self._dead:
                effects.append(SendHoldForDone(node, handed))

    # ------------------------------------------------------------ letting go

    def release(self, node: bytes, oid: bytes, count: int) -> None:
        """End `count` holds on an object, at the next `flush` that may."""
        if node not in self._dead:
            self._releases.append((self._numbers, node, oid, count))

    def flush(self, effects: list[Any]) -> None:
        """Say what is let go and need not wait for anything."""
        releases = self._releases
        if not releases:
            return
        first = next((number for number in self._asked if number > 0), self._numbers + 1)
        by_node: dict[bytes, list[tuple[bytes, int]]] = {}
        while releases and releases[0][0] < first:
            _, node, oid, count = releases.popleft()
            by_node.setdefault(node, []).append((oid, count))
        effects.extend(SendNodeRelease(node, items) for node, items in by_node.items())

    # ------------------------------------------------------------ ends

    def process_died(self, process: bytes) -> None:
        """Nobody is to be told of its holds."""
        self._confirmations.pop(process, None)
        for number in [n for n, asked in self._asked.items() if asked.node == PROMISED and process in asked.processes]:
            del self._asked[number]

    def node_died(self, node: bytes, cause: str, effects: list[Any]) -> None:
        """What was held there is lost."""
        self._dead[node] = cause
        if len(self._dead) > DEAD_NODES_MAX:
            del self._dead[next(iter(self._dead))]
        ended = {number: asked for number, asked in self._asked.items() if asked.node == node}
        for number in ended:
            del self._asked[number]
        for asked in ended.values():
            self._end(asked, effects)
        if any(entry[1] == node for entry in self._releases):
            self._releases = deque(entry for entry in self._releases if entry[1] != node)
        self.flush(effects)

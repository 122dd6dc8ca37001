"""Which tasks of a node may wait for their arguments with some of them in hand: a pure machine.

Purpose: a task reads its arguments one after the other, and keeps what it has read in memory. Tasks that all hold some and all wait for room for
the next would wait for ever. So who must wait is let in by the order of asking, while the arguments of all who are in fit into a share of the store.

    asks (holding nothing) -> queue -> in: waits for argument after argument, runs, holds them all -> left
                                ^        | one is lost and made anew by a task that needs room itself,
                                +--------+ or there is no room after all: lets go of all that it has read

Design: what is let in comes to an end, for it waits for nobody who waits for it: room for what is missing is there, or is given back by
tasks that hold all that they need. A task that waits for its children counts, as it holds its arguments; but when all that are in only wait,
the next is let in, however large it is. So is one that is larger than the share, once it is alone. A task may wait in a way that nobody sees (for a
file, say): after STANDSTILL_S without any change the next is let in, too, and the store has the last word.

An object that several read counts once. Tasks that find all their arguments in memory do not ask: they hold a CPU, never wait, and are few.

What it does not do: give memory (`store_table`), bring objects (`pulls`), or lend CPUs (`scheduling.local_scheduler`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import inf

from shoal.protocol.memory_messages import ROOM_LEFT, ROOM_RUNS

ROOM_SHARE = 0.5  #: of the store; the rest is for results, for values that are sent, and for tasks that need not ask
STANDSTILL_S = 10.0


@dataclass(slots=True)
class RoomAsked:
    """A task, known by its process and its number there, wants to read `parts`."""

    process: bytes
    number: int
    parts: list[tuple[bytes, int]]


@dataclass(slots=True)
class RoomUsed:
    """What a task does now: one of the ROOM_ constants."""

    process: bytes
    number: int
    state: int


@dataclass(slots=True)
class ReaderDied:
    """A process is dead, and holds nothing any more."""

    process: bytes


@dataclass(slots=True)
class Tick:
    """Time has passed."""


Event = RoomAsked | RoomUsed | ReaderDied | Tick
Key = tuple[bytes, int]


@dataclass(slots=True)
class Admit:
    """A task may read its arguments."""

    process: bytes
    number: int


@dataclass(slots=True)
class _Reader:
    parts: list[tuple[bytes, int]]
    runs: bool = True


class ReadingRoom:
    """The machine. `capacity_bytes` is the store's."""

    def __init__(self, capacity_bytes: int) -> None:
        self.room_bytes = int(capacity_bytes * ROOM_SHARE)
        self._queue: OrderedDict[Key, list[tuple[bytes, int]]] = OrderedDict()
        self._readers: dict[Key, _Reader] = {}
        self._running = 0  #: of the readers, those that do not wait for others
        self._uses: dict[bytes, tuple[int, int]] = {}  #: object -> (its bytes, how many readers use it)
        self._used_bytes = 0
        self._changed_at = 0.0  #: when somebody came in or left, or the queue began
        #: when it wants to see a Tick
        self.tick_at = inf

    def handle(self, event: Event, now: float) -> list[Admit]:
        """Who is let in because of an event at time `now`."""
        if isinstance(event, RoomAsked):
            if not self._queue:
                self._changed_at = now
            self._queue[event.process, event.number] = event.parts
        elif isinstance(event, RoomUsed):
            self._on_used((event.process, event.number), event.state, now)
        elif isinstance(event, ReaderDied):
            for key in [key for key in (*self._queue, *self._readers) if key[0] == event.process]:
                self._on_used(key, ROOM_LEFT, now)
        admitted = []
        while self._queue and self._lets_in(now):
            key, parts = self._queue.popitem(last=False)
            self._enter(key, parts)
            self._changed_at = now
            admitted.append(Admit(*key))
        self.tick_at = self._changed_at + STANDSTILL_S if self._queue else inf
        return admitted

    def statistics(self) -> dict[str, int]:
        """Who is in, who waits, and what those who are in hold."""
        return {"reading": len(self._readers), "waiting": len(self._queue), "bytes": self._used_bytes}

    def _lets_in(self, now: float) -> bool:
        """Whether the first in the queue may read."""
        if not self._running or now >= self._changed_at + STANDSTILL_S:
            return True
        parts = dict(next(iter(self._queue.values())))
        more = sum(size for oid, size in parts.items() if oid not in self._uses)
        return self._used_bytes + more <= self.room_bytes

    def _enter(self, key: Key, parts: list[tuple[bytes, int]]) -> None:
        self._readers[key] = _Reader(parts)
        self._running += 1
        for oid, size in parts:
            known, users = self._uses.get(oid, (size, 0))
            self._uses[oid] = (known, users + 1)
            if not users:
                self._used_bytes += known

    def _on_used(self, key: Key, state: int, now: float) -> None:
        if state == ROOM_LEFT:
            self._queue.pop(key, None)
        reader = self._readers.get(key)
        if reader is None:
            return
        runs = state == ROOM_RUNS
        self._running += runs - reader.runs
        reader.runs = runs
        if state != ROOM_LEFT:
            return
        del self._readers[key]
        self._changed_at = now
        for oid, _ in reader.parts:
            size, users = self._uses[oid]
            if users > 1:
                self._uses[oid] = (size, users - 1)
            else:
                del self._uses[oid]
                self._used_bytes -= size

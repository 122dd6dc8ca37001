"""Refs that processes have handed to others in results and calls: which of them are known to have arrived.

Purpose: a worker holds the refs inside a result in the name of the process that the result goes to, before it writes the result; so does a caller
with the refs inside a call of an actor. If it dies in between, that process has holds on refs that it never heard of; they must not last as long as
it lives.

Design: for each giver and receiver the refs handed over, in order, which the receiver has not acknowledged. It counts the refs that came from
each worker, over all results, and tells the number now and then; after a worker's death, when it has read everything that the worker wrote,
for the last time: what stands behind that number never arrived. The number may come before the refs that it counts, as these travel by
another socket. Calls and results between the same two travel by different sockets, too, so they are counted apart: `as_caller`.

What it does not do: count holds (`object_directory`, of which this is a part).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

CALLS = b"c"


def as_caller(process: bytes) -> bytes:
    """The name under which what a process hands over in calls is counted."""
    return process + CALLS


class Handed:
    """What one process has handed to another."""

    __slots__ = ("given", "received", "underway")

    def __init__(self) -> None:
        #: refs handed over so far, and how many of them the receiver has counted
        self.given = self.received = 0
        #: numbers `received` + 1 to `given`
        self.underway: deque[bytes] = deque()


class HandedRefs:
    """All that is handed to processes of this node."""

    __slots__ = ("_by_receiver",)

    def __init__(self) -> None:
        #: receiver -> giver -> refs
        self._by_receiver: dict[bytes, dict[bytes, Handed]] = {}

    def underway(self) -> int:
        """How many refs have not been acknowledged."""
        return sum(len(handed.underway) for givers in self._by_receiver.values() for handed in givers.values())

    def give(self, giver: bytes, receiver: bytes, oids: Iterable[bytes]) -> None:
        """Note refs that `giver` holds in the name of `receiver`."""
        handed = self._of(giver, receiver)
        for oid in oids:
            handed.given += 1
            if handed.given > handed.received:
                handed.underway.append(oid)

    def receive(self, giver: bytes, receiver: bytes, count: int) -> None:
        """The receiver has had `count` refs from the giver so far."""
        handed = self._of(giver, receiver)
        if count > handed.received:
            handed.received = count
            underway = handed.underway
            while underway and handed.given - len(underway) < count:
                underway.popleft()

    def close(self, giver: bytes, receiver: bytes, count: int) -> list[bytes]:
        """The giver is dead, and no more than `count` refs came from it. Returns those that got lost on the way."""
        self.receive(giver, receiver, count)
        givers = self._by_receiver[receiver]
        lost = list(givers.pop(giver).underway)
        if not givers:
            del self._by_receiver[receiver]
        return lost

    def receivers_of(self, giver: bytes) -> list[bytes]:
        """To whom something was handed by one who has not been closed."""
        return [receiver for receiver, givers in self._by_receiver.items() if giver in givers]

    def forget(self, receiver: bytes) -> None:
        """The receiver is dead."""
        self._by_receiver.pop(receiver, None)

    def _of(self, giver: bytes, receiver: bytes) -> Handed:
        givers = self._by_receiver.setdefault(receiver, {})
        handed = givers.get(giver)
        if handed is None:
            handed = givers[giver] = Handed()
        return handed

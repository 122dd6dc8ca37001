"""The ledger of an actor with checkpoints: which calls it has run, in which order, and what it answered.

Purpose: exactly one effect for every call, whoever is killed whenever, as long as the methods are deterministic.

Design: a pure machine. A call is named by its TaskID, 12 bytes of its caller and a number that grows from call to call of that caller, so the
highest number that ran (its *mark*) says of every later arrival whether it is new. A call gets an *index* when it begins; index, name and
arguments are its *record*, which stands in the daemon's socket before anything that the call causes.

    arrives    NEW        run it
               AWAITED    it is queued, runs, or is to be replayed: answer it together with the first
               KNOWN      it ran: answer from `kept`
               FORGOTTEN  it ran, and its answer was given and let go (or was too much to keep): an error, never a second effect

A value that a call asks for and cannot have is recorded behind the call, before anything that follows from it: a replay is told the same. One that
meets with a loss of its own is wrong, and ends.

A call that did not begin because an argument was lost is *postponed*: its caller has that made anew and sends it again, when later calls may have
begun. So the calls that are postponed stand beside the marks, and in the record of each call that begins meanwhile.

    life 1     c0 ---- 1 ---- 2 ---- c2 ---- 3 ---- 4 --x        c: checkpoint; x: killed within call 4
    life 2                           c2 ---- 3 ---- 4 ---- 5     3 and 4 are replayed from their records; then what callers ask anew

Answers are kept until their caller has *settled* them: a driver or task when it has received them, an actor with checkpoints when its own
checkpoint lies behind the call, for until then a replay of it may ask again. They are part of the checkpoint.

How to extend: what a new life must know belongs in `Snapshot`; append fields with defaults.

What it does not do: run calls, write records, pickle states (`exact_actor`), or keep records (`node.actor_logs`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from shoal.protocol.ids import TASK_PREFIX_BYTES
from shoal.protocol.limits import CALLERS_MARKED_MAX, CALLS_POSTPONED_MAX, REPLIES_KEPT_BYTES_MAX, REPLIES_KEPT_MAX
from shoal.protocol.messages import Containing, Failed, Many, Value

NEW = "new"
AWAITED = "awaited"
KNOWN = "known"
FORGOTTEN = "forgotten"

#: a ref as the ledger writes it: (ObjectID, its home)
Place = tuple[bytes, bytes]


class Record(msgspec.Struct, array_like=True):
    """One call, as it is replayed. The daemon holds the refs inside its arguments, and what of them lies in the store, while it keeps the record."""

    index: int
    task_id: bytes
    method: str
    name: str
    num_returns: int
    arguments: Value
    dependencies: list[tuple[int | str, Value]] | None = None
    postponed: list[bytes] = []  #: calls that came before it, and are to come again
    #: not a call but a loss, which the call before it has met with: the object, and the error that was raised
    loss: tuple[bytes, bytes] | None = None


class KeptReply(msgspec.Struct, array_like=True):
    """An answer that its caller may ask for again; `refs` are those inside."""

    task_id: bytes
    value: Value | Many
    refs: list[Place] = []


class Snapshot(msgspec.Struct, array_like=True):
    """What a checkpoint has beside the actor's own state: the calls that it covers are those up to `index`."""

    index: int
    marks: list[tuple[bytes, int]]
    kept: list[KeptReply]
    calls_made: int = 0  #: of this actor to others with checkpoints
    postponed: list[bytes] = []


class ReplayGap(Exception):
    """The records do not follow each other, or do not follow the checkpoint: the state cannot be had again."""


def size_of(value: Value | Many) -> int:
    """Bytes of an inline value, roughly."""
    if type(value) is bytes:
        return len(value)
    if type(value) is Containing:
        return len(value.blob)
    if type(value) is Failed:
        return len(value.error)
    if type(value) is Many:
        return sum(size_of(part) for part in value.values)
    return 0


def number_of(task_id: bytes) -> int:
    """Which call of its caller it is."""
    return int.from_bytes(task_id[TASK_PREFIX_BYTES:], "big")


class CallLedger:
    """The calls of one life of an actor, and what came before. All methods are the events."""

    __slots__ = ("_awaited", "_kept", "_kept_bytes", "_marks", "_postponed", "dropped", "index", "plan")

    def __init__(self) -> None:
        #: index of the last call that began; 0 before the first
        self.index = 0
        #: caller -> number of its last call that began; the callers that called last at the end
        self._marks: dict[bytes, int] = {}
        #: answers that may be asked for again, oldest first
        self._kept: dict[bytes, KeptReply] = {}
        self._kept_bytes = 0
        #: calls that are queued, run, or are in `plan`
        self._awaited: set[bytes] = set()
        #: calls that came, have not begun, and come again: in spite of the marks they are new; the oldest first
        self._postponed: dict[bytes, None] = {}
        #: what is to be replayed before anything else
        self.plan: list[Record] = []
        #: answers dropped, until `exact_actor`, which counts the refs inside, has let them go
        self.dropped: list[KeptReply] = []

    # ------------------------------------------------------------ a life begins

    def restore(self, snapshot: Snapshot | None, records: Iterable[Record]) -> None:
        """Begin where a former life was: its last checkpoint, and the calls since, which become the plan.

        Raises:
            ReplayGap: a call is missing.
        """
        if snapshot is not None:
            self.index = snapshot.index
            self._marks = dict(snapshot.marks)
            self._postponed = dict.fromkeys(snapshot.postponed)
            for reply in snapshot.kept:
                self._keep(reply)
        following = self.index
        for record in records:
            following += 1
            if record.index != following:
                raise ReplayGap(f"call {following} is missing in its record, which goes on with call {record.index}")
            self.plan.append(record)
            if record.loss is None:
                self._awaited.add(record.task_id)

    def snapshot(self, calls_made: int) -> Snapshot:
        """What a checkpoint taken now must have beside the state."""
        kept = list(self._kept.values())
        return Snapshot(self.index, list(self._marks.items()), kept, calls_made, list(self._postponed))

    # ------------------------------------------------------------ calls

    def arrive(self, task_id: bytes) -> str:
        """A call came: NEW (and AWAITED from now on), AWAITED, KNOWN or FORGOTTEN."""
        if task_id in self._kept:
            return KNOWN
        if task_id in self._awaited:
            return AWAITED
        if number_of(task_id) <= self._marks.get(task_id[:TASK_PREFIX_BYTES], 0) and task_id not in self._postponed:
            return FORGOTTEN
        self._awaited.add(task_id)
        return NEW

    def withdraw(self, task_id: bytes) -> None:
        """A call that had not begun was cancelled."""
        self._awaited.discard(task_id)

    def postpone(self, task_id: bytes) -> None:
        """A call that had not begun is to come again, perhaps after later ones of its caller."""
        self._awaited.discard(task_id)
        self._postponed[task_id] = None
        if len(self._postponed) > CALLS_POSTPONED_MAX:
            del self._postponed[next(iter(self._postponed))]

    def postponed(self) -> list[bytes]:
        """The calls that are to come again."""
        return list(self._postponed)

    def begin(self, task_id: bytes, postponed: Iterable[bytes] | None = None) -> int:
        """A call begins, in life or in replay: its index. In replay also which ones were postponed then."""
        caller = task_id[:TASK_PREFIX_BYTES]
        mark = self._marks.pop(caller, 0)
        self._marks[caller] = max(mark, number_of(task_id))
        if postponed is not None:
            self._postponed = dict.fromkeys(postponed)
        self._postponed.pop(task_id, None)
        if len(self._marks) > CALLERS_MARKED_MAX:
            del self._marks[next(iter(self._marks))]
        self.index += 1
        return self.index

    def lose(self) -> int:
        """The call that runs has met with a loss, in life or in replay: the index of its record."""
        self.index += 1
        return self.index

    def finish(self, reply: KeptReply) -> None:
        """A call has ended with this answer."""
        self._awaited.discard(reply.task_id)
        self._keep(reply)
        kept = self._kept
        while len(kept) > REPLIES_KEPT_MAX or (self._kept_bytes > REPLIES_KEPT_BYTES_MAX and len(kept) > 1):
            self._let_go(next(iter(kept)))

    def answer(self, task_id: bytes) -> KeptReply:
        """What a KNOWN call was answered."""
        return self._kept[task_id]

    # ------------------------------------------------------------ settling

    def settle(self, task_ids: Iterable[bytes]) -> None:
        """Callers have these answers, and will not ask again."""
        for task_id in task_ids:
            if task_id in self._kept:
                self._let_go(task_id)

    def settle_below(self, caller: bytes, below: int) -> None:
        """A caller will never again ask for calls of it numbered below."""
        gone = [each for each in self._kept if each.startswith(caller) and number_of(each) < below]
        self.settle(gone)

    def _keep(self, reply: KeptReply) -> None:
        self._kept[reply.task_id] = reply
        self._kept_bytes += size_of(reply.value)

    def _let_go(self, task_id: bytes) -> None:
        reply = self._kept.pop(task_id)
        self._kept_bytes -= size_of(reply.value)
        if reply.refs:
            self.dropped.append(reply)

    # ------------------------------------------------------------ queries

    def statistics(self) -> dict[str, Any]:
        """Sizes of the tables."""
        return {
            "index": self.index,
            "callers": len(self._marks),
            "kept": len(self._kept),
            "kept_bytes": self._kept_bytes,
            "awaited": len(self._awaited),
            "postponed": len(self._postponed),
        }


def encode(part: Record | Snapshot) -> bytes:
    """A record or snapshot as bytes."""
    return _encoder.encode(part)


_encoder = msgspec.msgpack.Encoder()
_record_decoder = msgspec.msgpack.Decoder(Record)
_snapshot_decoder = msgspec.msgpack.Decoder(Snapshot)


def decode_record(encoded: bytes) -> Record:
    """The counterpart of `encode`."""
    return _record_decoder.decode(encoded)


def decode_snapshot(encoded: bytes) -> Snapshot:
    """The counterpart of `encode`."""
    return _snapshot_decoder.decode(encoded)

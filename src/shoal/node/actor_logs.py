"""What this node keeps of actors with checkpoints, for their next life: the last checkpoint and the calls since.

Purpose: an actor's worker may be killed at any moment; what it wrote to this daemon before is enough to have its state again.

Design: a pure table, one `ActorLog` for each such actor that lives here. Records are opaque bytes in the order of their indexes. A checkpoint
replaces the one before and drops the records that it covers (those in the page of a living worker never came here); what was held for both is given
back to the caller of `checkpointed`, who lets it go. A log belongs to one life after the other; what a former one says late is refused.

A life that ends before it has come as far as the one before has gained nothing. RECOVERIES_MAX such lives in a row mean that a recorded call
kills its process each time, and the actor is given up with a text that says so.

What it does not do: read records, hold refs (`io.recoveries` tells the object directory), decide on restarts (the GCS).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.protocol.limits import RECOVERIES_MAX
from shoal.protocol.messages import RecordCall, Recovery, StoreCheckpoint, Stored, Value


@dataclass(slots=True)
class Kept:
    """What was kept for a part of a log, and is not needed any more."""

    #: refs, one hold each
    refs: list[bytes] = field(default_factory=list)
    #: objects in the store
    stored: list[bytes] = field(default_factory=list)

    def take(self, refs: list[bytes], stored: list[bytes]) -> None:
        """These too."""
        self.refs.extend(refs)
        self.stored.extend(stored)


@dataclass(slots=True)
class ActorLog:
    """The log of one actor. Written by ActorLogs alone."""

    #: the life that writes it, or is to read it
    incarnation: int
    #: index of the last call that `checkpoint` covers
    index: int = 0
    checkpoint: Value | None = None
    #: what is held for the checkpoint
    kept: Kept = field(default_factory=Kept)
    #: the calls after `index` that have been sent, without a gap: (record, refs held for it, objects stored for it)
    records: list[tuple[bytes, list[bytes], list[bytes]]] = field(default_factory=list)
    #: of the log of a life elsewhere: where objects in its records are here
    places: list[Stored] = field(default_factory=list)
    #: why nothing can be recovered from it
    broken: str = ""
    #: lives in a row that began with it and added nothing
    vain: int = 0

    @property
    def last(self) -> int:
        """Index of the last call."""
        return self.index + len(self.records)

    def stored(self) -> list[bytes]:
        """Its objects in the store."""
        return [*self.kept.stored, *(oid for _, _, stored in self.records for oid in stored)]


class ActorLogs:
    """All logs of one node, by ActorID."""

    def __init__(self) -> None:
        self._logs: dict[bytes, ActorLog] = {}

    def get(self, actor_id: bytes) -> ActorLog | None:
        """The log of an actor that has one."""
        return self._logs.get(actor_id)

    def is_outdated(self, actor_id: bytes, incarnation: int) -> bool:
        """Whether the actor has lived elsewhere since its log was written."""
        log = self._logs.get(actor_id)
        return log is not None and log.incarnation < incarnation - 1

    def begin(self, actor_id: bytes, incarnation: int) -> bool:
        """A life of the actor is to begin here. Returns whether its log begins with it."""
        log = self._logs.get(actor_id)
        if log is None:
            self._logs[actor_id] = ActorLog(incarnation)
            return True
        log.incarnation = incarnation
        log.vain += 1
        return False

    def put(
        self,
        actor_id: bytes,
        incarnation: int,
        index: int,
        checkpoint: Value | None,
        records: list[bytes],
        places: list[Stored],
        lost: str = "",
        vain: int = 0,
    ) -> None:
        """The log of a former life on another node; with the objects that were brought from there, and why one could not be."""
        log = self._logs[actor_id] = ActorLog(incarnation, index, checkpoint)
        log.vain = vain
        log.broken = lost
        log.records = [(record, [], []) for record in records]
        log.places = places
        # The next checkpoint covers all of them.
        log.kept.stored = [place.oid for place in places]
        if type(checkpoint) is Stored:
            log.kept.stored.append(checkpoint.oid)

    def recovery(self, actor_id: bytes) -> Recovery | None:
        """What the next life needs; None when the actor begins from nothing."""
        log = self._logs[actor_id]
        problem = log.broken
        if not problem and log.vain > RECOVERIES_MAX:
            problem = (
                f"its process died {log.vain} times in a row while it recovered, at call {log.last} at the latest: "
                "that call seems to kill it each time"
            )
        if log.checkpoint is None and not problem:
            return None  # no constructor has returned yet, so there are no calls either
        records = [record for record, _, _ in log.records]
        return Recovery(log.index, log.checkpoint or b"", records, problem, log.places)

    def record(self, message: RecordCall) -> bool:
        """A call begins. Returns whether it is noted: not when another life writes the log by now."""
        log = self._logs.get(message.actor_id)
        if log is None or log.incarnation != message.incarnation:
            return False
        if message.index != log.last + 1:
            log.broken = (
                log.broken or f"call {log.last + 1} is missing in its record, which goes on with {message.index}"
            )
        log.records.append((message.record, message.refs, message.stored))
        log.vain = 0
        return True

    def checkpointed(self, message: StoreCheckpoint) -> Kept:
        """A checkpoint. Returns what is not needed any more: of one that comes too late that is its own."""
        log = self._logs.get(message.actor_id)
        own = Kept(message.refs, [message.state.oid] if type(message.state) is Stored else [])
        if log is None or log.incarnation != message.incarnation:
            return own
        gone = log.kept
        covered = message.index - log.index
        for _, refs, stored in log.records[:covered]:
            gone.take(refs, stored)
        if covered < 0:
            log.broken = f"its checkpoint covers call {message.index}, the one before had covered call {log.index}"
        log.records = log.records[covered:]
        log.index, log.checkpoint = message.index, message.state
        log.kept, log.places = own, []
        log.vain = 0
        return gone

    def drop(self, actor_id: bytes) -> ActorLog | None:
        """The actor is dead, or lives elsewhere. Returns the log that it had."""
        return self._logs.pop(actor_id, None)

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {"logs": len(self._logs), "records": sum(len(log.records) for log in self._logs.values())}

"""The logs of actors with checkpoints, for a life on another node: the last checkpoint and the records since.

Purpose: when an actor's node is lost, what it had answered is not.

Design: a table of shard 0, one row for the head of each log (who writes it, its checkpoint) and one for each record, so that a batch of records
writes only itself. The node of the present life says what is new (`append`, in the order of indexes, repeats change nothing); the node of the next
one asks for all (`claim`), and from then on the former one is refused: of two nodes that both believe to have the actor, one can answer.

What it does not do: read records, checkpoints or places, or know when an actor is dead (`shard` tells).
"""

from __future__ import annotations

from typing import Any

import msgspec

from shoal.gcs.storage.backend import Write
from shoal.protocol.ids import TASK_ID_BYTES

_HEAD = b"c"
_RECORD = b"r"


class LogHead(msgspec.Struct, array_like=True):
    """What there is of a log beside its records."""

    #: the life that may write
    incarnation: int
    #: index of the last call that the checkpoint covers
    index: int = 0
    #: None before there was one; empty for one that is too large for this table
    checkpoint: bytes | None = None
    #: where such ones are, and arguments that are; as the nodes wrote it, empty if there never was one
    places: bytes = b""
    #: the last life that added anything; 0 for none
    gained: int = 0


class StoredLog:
    """One log."""

    __slots__ = ("head", "records")

    def __init__(self, head: LogHead) -> None:
        self.head = head
        #: of the calls after `head.index`, without a gap
        self.records: list[bytes] = []

    @property
    def last(self) -> int:
        """Index of the last call."""
        return self.head.index + len(self.records)


class StoredLogs:
    """All logs, by ActorID."""

    TABLE = "actor_logs"

    def __init__(self) -> None:
        self._logs: dict[bytes, StoredLog] = {}

    def __len__(self) -> int:
        return len(self._logs)

    def restore(self, key: bytes, value: bytes) -> None:
        """Take back a stored row; in the order of keys."""
        actor_id = key[:TASK_ID_BYTES]
        if key[TASK_ID_BYTES:] == _HEAD:
            self._logs[actor_id] = StoredLog(msgspec.msgpack.decode(value, type=LogHead))
        else:
            self._logs[actor_id].records.append(value)

    def append(self, body: dict[str, Any], writes: list[Write]) -> dict[str, Any]:
        """What is new of a log: a checkpoint (None for none, empty for one that is too large), then records from index `first` on, and where its
        large objects are (None for no news).

        Returns:
            Whether the life may write, and the index of the last call that is here now: less than was sent if something before is missing.
        """
        actor_id, incarnation = bytes(body["actor_id"]), int(body["incarnation"])
        index, checkpoint = int(body["index"]), body["checkpoint"]
        first, records = int(body["first"]), list(body["records"])
        log = self._claimed(actor_id, incarnation, writes)
        if log.head.incarnation > incarnation:
            return {"accepted": False, "last": log.last}
        if checkpoint is not None and index >= log.head.index:
            covered = log.records[: index - log.head.index]
            for number in range(log.head.index + 1, log.head.index + 1 + len(covered)):
                writes.append(Write(self.TABLE, _record_key(actor_id, number), None))
            log.records = log.records[len(covered) :] if index <= log.last else []
            log.head.index, log.head.checkpoint = index, bytes(checkpoint)
        places = body["places"]
        if places is not None:
            log.head.places = bytes(places)
        gains = checkpoint is not None or first <= log.last + 1 < first + len(records)
        gains_first = gains and log.head.gained != incarnation
        if gains_first:
            log.head.gained = incarnation
        if places is not None or checkpoint is not None or gains_first:
            self._write_head(actor_id, log, writes)
        for number, record in enumerate(records, first):
            if number == log.last + 1:
                log.records.append(bytes(record))
                writes.append(Write(self.TABLE, _record_key(actor_id, number), log.records[-1]))
        return {"accepted": True, "last": log.last}

    def claim(self, actor_id: bytes, incarnation: int, writes: list[Write]) -> dict[str, Any]:
        """A life begins on a node that has no log: all there is, which only this life may add to from now on. And how many lives, on whatever nodes,
        have begun since one that added anything."""
        log = self._claimed(actor_id, incarnation, writes)
        head = log.head
        if head.incarnation > incarnation:
            return {"accepted": False}
        return {
            "accepted": True,
            "index": head.index,
            "checkpoint": head.checkpoint,
            "records": list(log.records),
            "places": head.places,
            "vain": incarnation - head.gained if head.gained else 0,
        }

    def _claimed(self, actor_id: bytes, incarnation: int, writes: list[Write]) -> StoredLog:
        log = self._logs.get(actor_id)
        if log is None:
            log = self._logs[actor_id] = StoredLog(LogHead(incarnation))
            self._write_head(actor_id, log, writes)
        elif log.head.incarnation < incarnation:
            log.head.incarnation = incarnation
            self._write_head(actor_id, log, writes)
        return log

    def _write_head(self, actor_id: bytes, log: StoredLog, writes: list[Write]) -> None:
        writes.append(Write(self.TABLE, actor_id + _HEAD, msgspec.msgpack.encode(log.head)))

    def drop(self, actor_id: bytes, writes: list[Write]) -> None:
        """The actor is dead."""
        log = self._logs.pop(actor_id, None)
        if log is None:
            return
        writes.append(Write(self.TABLE, actor_id + _HEAD, None))
        for number in range(log.head.index + 1, log.last + 1):
            writes.append(Write(self.TABLE, _record_key(actor_id, number), None))


def _record_key(actor_id: bytes, index: int) -> bytes:
    return actor_id + _RECORD + index.to_bytes(8, "big")

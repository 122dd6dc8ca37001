"""The plain tables of the GCS: jobs, functions, key-value pairs and trace events.

Purpose: each class owns one table and is its only writer; `shard` composes them.

Design: rows live in memory. A mutating method appends the rows to store to `writes`, which the shard makes durable before it answers; `restore`
takes a stored row back at start. Listings return plain dictionaries. Trace events stay in the bytes in which they came (a task's event costs
the GCS nothing until someone asks), in a ring that drops the oldest and counts them; a row in storage is a batch.

How to extend: a class with `TABLE`, `restore`, and methods; then give `shard` the calls.

What it does not do: actors (`actor_manager`), nodes (`node_table`), answering, or publishing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from typing import Any

import msgspec

from shoal.gcs.storage.backend import Write
from shoal.protocol.gcs_messages import TaskEventBatch
from shoal.protocol.limits import JOBS_ENDED_MAX, TASK_EVENT_SENDERS_MAX, TASK_EVENTS_MAX
from shoal.protocol.sharding import kv_row_key

JOB_ID_BYTES = 4
LIST_ROWS_MAX = 10_000  #: rows of a listing whose caller names no limit

_encode = msgspec.msgpack.encode


class TableError(Exception):
    """A request that the tables refuse; `kind` as in GcsAnswer.error."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


def bytes_of(body: dict[str, Any], key: str) -> bytes:
    """A part of a call's body that must be bytes.

    Raises:
        KeyError, TypeError: it is not there, or is something else.
    """
    value = body[key]
    if not isinstance(value, bytes):
        raise TypeError(f"{key} must be bytes, not {type(value).__name__}")
    return value


class JobRecord(msgspec.Struct):
    """One driver's program."""

    job_id: bytes
    namespace: str
    pid: int
    node_id: bytes
    config: dict[str, Any]
    started_s: float
    ended_s: float = 0.0  #: 0 while it runs
    end_reason: str = ""

    def row(self) -> dict[str, Any]:
        """What listings show."""
        return {**msgspec.structs.asdict(self), "state": "ended" if self.ended_s else "running"}


class Jobs:
    """The table of jobs: all that run and the last that ended."""

    TABLE = "jobs"

    def __init__(self) -> None:
        self._rows: dict[bytes, JobRecord] = {}
        #: ended jobs, oldest first
        self._ended: deque[bytes] = deque()
        #: no job number up to this one is given out again
        self._last_number = 0

    def restore(self, stored: bytes) -> None:
        """Take back a stored row."""
        job = msgspec.msgpack.decode(stored, type=JobRecord)
        self._add(job)
        if job.ended_s:
            self._ended.append(job.job_id)

    def register(
        self, job_id: bytes | None, node_id: bytes, body: dict[str, Any], now: float, writes: list[Write]
    ) -> JobRecord:
        """A driver began. Without `job_id` it gets the next number; an id that exists is the same driver saying it again."""
        if job_id is None:
            job_id = (self._last_number + 1).to_bytes(JOB_ID_BYTES, "big")
        known = self._rows.get(job_id)
        if known is not None:
            return known
        job = JobRecord(job_id, str(body["namespace"]), int(body["pid"]), node_id, body.get("config") or {}, now)
        self._add(job)
        writes.append(Write(self.TABLE, job_id, _encode(job)))
        return job

    def end(self, job_id: bytes, reason: str, now: float, writes: list[Write]) -> bool:
        """A driver is gone. False if it is not known or had ended."""
        job = self._rows.get(job_id)
        if job is None or job.ended_s:
            return False
        job.ended_s, job.end_reason = now, reason
        writes.append(Write(self.TABLE, job_id, _encode(job)))
        self._ended.append(job_id)
        if len(self._ended) > JOBS_ENDED_MAX:
            forgotten = self._ended.popleft()
            del self._rows[forgotten]
            writes.append(Write(self.TABLE, forgotten, None))
        return True

    def has_ended(self, job_id: bytes) -> bool:
        """Whether a job is known to have ended."""
        job = self._rows.get(job_id)
        return job is not None and bool(job.ended_s)

    def rows(self) -> list[dict[str, Any]]:
        """All jobs, in the order of starting."""
        return [job.row() for job in self._rows.values()]

    def running_on(self, node_id: bytes) -> list[bytes]:
        """Ids of the jobs whose driver runs on a node."""
        return [job.job_id for job in self._rows.values() if job.node_id == node_id and not job.ended_s]

    def _add(self, job: JobRecord) -> None:
        self._rows[job.job_id] = job
        if len(job.job_id) == JOB_ID_BYTES:
            self._last_number = max(self._last_number, int.from_bytes(job.job_id, "big"))


class Functions:
    """Code by the hash of it: written once, never changed."""

    TABLE = "functions"

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}

    def restore(self, function_id: bytes, code: bytes) -> None:
        """Take back a stored row."""
        self._rows[function_id] = code

    def put(self, function_id: bytes, code: bytes, writes: list[Write]) -> bool:
        """Keep code; False if it is there already."""
        if function_id in self._rows:
            return False
        self._rows[function_id] = code
        writes.append(Write(self.TABLE, function_id, code))
        return True

    def get(self, function_id: bytes) -> bytes | None:
        """The code, None if unknown."""
        return self._rows.get(function_id)

    def __len__(self) -> int:
        return len(self._rows)


class KeyValues:
    """Key-value pairs in namespaces. A row's key in storage is the namespace, a zero byte, the key: `row_key`."""

    TABLE = "kv"

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        #: the keys of `_rows`, sorted, for prefixes
        self._sorted: list[bytes] = []

    @staticmethod
    def row_key(namespace: str, key: bytes) -> bytes:
        """The key of a row; also the key of the channel kv.

        Raises:
            TableError: the namespace contains a zero byte.
        """
        if "\0" in namespace:
            raise TableError("BadRequest", f"the namespace {namespace!r} contains a zero byte")
        return kv_row_key(namespace, key)

    def restore(self, row_key: bytes, value: bytes) -> None:
        """Take back a stored row."""
        self._rows[row_key] = value
        insort(self._sorted, row_key)

    def put(self, row_key: bytes, value: bytes, overwrite: bool, writes: list[Write]) -> bool:
        """Set a value; False (and no change) if it exists and may not be overwritten."""
        exists = row_key in self._rows
        if exists and not overwrite:
            return False
        if not exists:
            insort(self._sorted, row_key)
        self._rows[row_key] = value
        writes.append(Write(self.TABLE, row_key, value))
        return True

    def get(self, row_key: bytes) -> bytes | None:
        """The value, None if there is none."""
        return self._rows.get(row_key)

    def delete(self, row_key: bytes, prefix: bool, writes: list[Write]) -> list[bytes]:
        """Delete one row, or all whose key begins so; the row keys that existed."""
        doomed = self.keys(row_key) if prefix else [row_key] if row_key in self._rows else []
        for key in doomed:
            del self._rows[key]
            writes.append(Write(self.TABLE, key, None))
        if doomed:
            start = bisect_left(self._sorted, doomed[0])
            del self._sorted[start : start + len(doomed)]
        return doomed

    def keys(self, prefix: bytes) -> list[bytes]:
        """Row keys that begin with `prefix`, sorted."""
        found = []
        for index in range(bisect_left(self._sorted, prefix), len(self._sorted)):
            key = self._sorted[index]
            if not key.startswith(prefix):
                break
            found.append(key)
        return found

    def __len__(self) -> int:
        return len(self._rows)


class Answers:
    """What was answered to calls of nodes that changed something, until the node has the answer: a call that is repeated is not done twice."""

    TABLE = "answers"

    def __init__(self) -> None:
        #: node -> number of the call -> body of the answer, in the order of numbers
        self._rows: dict[bytes, dict[int, Any]] = {}
        #: rows whose answer has arrived, to be deleted with the next write: a deletion alone is not worth a commit
        self._settled: list[bytes] = []

    def restore(self, key: bytes, stored: bytes) -> None:
        """Take back a stored row; in the order of keys."""
        node_id, number = key[:-8], int.from_bytes(key[-8:], "big")
        self._rows.setdefault(node_id, {})[number] = msgspec.msgpack.decode(stored)

    def find(self, node_id: bytes, number: int) -> tuple[bool, Any]:
        """Whether this call was answered before, and what."""
        rows = self._rows.get(node_id)
        if rows is None or number not in rows:
            return False, None
        return True, rows[number]

    def keep(self, node_id: bytes, number: int, body: Any, writes: list[Write]) -> None:
        """A call changed something and is answered by `body`."""
        self._rows.setdefault(node_id, {})[number] = body
        writes += [Write(self.TABLE, key, None) for key in self._settled]
        self._settled.clear()
        writes.append(Write(self.TABLE, self._key(node_id, number), _encode(body)))

    def settle(self, node_id: bytes, settled: int) -> None:
        """The node has all answers up to the number `settled`."""
        rows = self._rows.get(node_id)
        while rows:
            number = next(iter(rows))
            if number > settled:
                break
            del rows[number]
            self._settled.append(self._key(node_id, number))

    def nodes(self) -> list[bytes]:
        """The nodes for which something is kept."""
        return list(self._rows)

    def forget(self, node_id: bytes) -> None:
        """A node is dead."""
        self._settled += [self._key(node_id, number) for number in self._rows.pop(node_id, {})]

    @staticmethod
    def _key(node_id: bytes, number: int) -> bytes:
        return node_id + number.to_bytes(8, "big")

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))


class TaskEvents:
    """A ring of trace events, in the batches in which they came."""

    TABLE = "task_events"

    def __init__(self, events_max: int = TASK_EVENTS_MAX) -> None:
        self._events_max = events_max
        self._batches: deque[TaskEventBatch] = deque()
        #: number of the first batch of `_batches`, and so its row's key; they are numbered without gaps
        self._first_number = 1
        #: events in `_batches`
        self._count = 0
        #: sender -> number of its last batch; the senders heard last are at the end
        self._last_seq: OrderedDict[bytes, int] = OrderedDict()
        #: events that made room for others, since this server started
        self.dropped = 0

    def restore(self, key: bytes, stored: bytes) -> None:
        """Take back a stored row; in the order of keys."""
        batch = msgspec.msgpack.decode(stored, type=TaskEventBatch)
        if not self._batches:
            self._first_number = int.from_bytes(key, "big")
        self._keep(batch)

    def add(self, batch: TaskEventBatch, writes: list[Write]) -> bool:
        """Keep a batch; False if it came before."""
        if batch.seq <= self._last_seq.get(batch.sender, 0):
            return False
        self._keep(batch)
        writes.append(Write(self.TABLE, self._key(len(self._batches) - 1), _encode(batch)))
        while self._count > self._events_max and len(self._batches) > 1:
            oldest = self._batches.popleft()
            writes.append(Write(self.TABLE, self._key(0), None))
            self._first_number += 1
            self._count -= oldest.count
            self.dropped += oldest.count
        return True

    def _keep(self, batch: TaskEventBatch) -> None:
        self._last_seq[batch.sender] = batch.seq
        self._last_seq.move_to_end(batch.sender)
        if len(self._last_seq) > TASK_EVENT_SENDERS_MAX:
            self._last_seq.popitem(last=False)
        self._batches.append(batch)
        self._count += batch.count

    def _key(self, index: int) -> bytes:
        return (self._first_number + index).to_bytes(8, "big")

    def rows(self, limit: int, job_id: bytes | None) -> list[dict[str, Any]]:
        """The last `limit` events (of a job), oldest first. A batch that does not decode is left out."""
        found: list[dict[str, Any]] = []
        for batch in reversed(self._batches):
            if job_id is not None and batch.job_id != job_id:
                continue
            try:
                events = msgspec.msgpack.decode(batch.events)
                rows = [_event_row(batch, event) for event in events]
            except (msgspec.DecodeError, TypeError, ValueError):
                continue
            found.extend(reversed(rows))
            if len(found) >= limit:
                break
        return found[:limit][::-1]

    def __len__(self) -> int:
        return self._count


def _event_row(batch: TaskEventBatch, event: list[Any]) -> dict[str, Any]:
    task_id, name, attempt, state, started_s, ended_s, error_type = event
    return {
        "task_id": task_id,
        "name": name,
        "attempt": attempt,
        "state": state,
        "started_s": started_s,
        "ended_s": ended_s,
        "error_type": error_type,
        "job_id": batch.job_id,
        "worker_id": batch.sender,
        "pid": batch.pid,
        "node_id": batch.node_id,
    }

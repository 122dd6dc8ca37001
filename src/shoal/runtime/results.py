"""Results and errors of tasks, as values of messages; streams, item by item.

Purpose: everything between what user code returned, raised or yields and the reply's value.

What it does not do: gather and send replies (`executor`).
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from shoal import serialization
from shoal.protocol import errors, ids
from shoal.protocol.limits import (
    INLINE_CROWDED_BYTES_MAX,
    INLINE_RESULT_BYTES_MAX,
    INLINE_TASK_BYTES_MAX,
    REPLY_FLUSH_S,
)
from shoal.protocol.messages import (
    NUM_RETURNS_DYNAMIC,
    NUM_RETURNS_STREAMING,
    Containing,
    Failed,
    FreeObjects,
    Many,
    Stored,
    StreamItem,
    Value,
)
from shoal.runtime.reactor import Waiter
from shoal.runtime.streams import DynamicObjectRefGenerator

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.jobs import Job
    from shoal.runtime.objects import ObjectEntry, ObjectRef


class ArgumentLost(Exception):  # noqa: N818  not an error of its own
    """A task cannot begin: an argument is not where its submitter believes it to be."""

    def __init__(self, place: Stored, error: errors.ObjectLostError) -> None:
        super().__init__(str(error))
        self.place = place
        self.error = error


class ResultWriter:
    """Writes the results of one worker's tasks.

    Args:
        actor_instance: the actor of this process once it is constructed, else None; its repr stands in errors.
    """

    def __init__(self, runtime: Runtime, actor_instance: Callable[[], Any]) -> None:
        self.runtime = runtime
        self.reactor = runtime.reactor
        self.actor_instance = actor_instance
        self.last_error = ""  #: class of the last exception written, for the trace

    def encode_result(self, job: Job, value: Any) -> Value | Many:
        """A task's return value as a message's value."""
        count = job.template.num_returns
        if count == 1:
            if value is None:
                return self.runtime.none_blob
            return self.encode_value(job, value, 1)
        if count == NUM_RETURNS_STREAMING:
            return self._stream(job, value)
        if count == NUM_RETURNS_DYNAMIC:
            refs = [self.runtime.put(item) for item in value]
            return self.encode_value(job, DynamicObjectRefGenerator(refs), 1)
        if count == 0:
            return Many([])
        try:
            values = list(value)
        except TypeError:
            if hasattr(type(value), "__iter__"):
                raise
            raise TypeError(
                f"{job.template.wire.name} returned {type(value).__name__}, which is no sequence; num_returns={count} promises {count} values"
            ) from None
        if len(values) != count:
            raise ValueError(
                f"{job.template.wire.name} returned {len(values)} values; num_returns={count} promises {count}"
            )
        handed: list[ObjectEntry] = []
        try:
            parts = self._encode_parts(job, values, handed)
            if handed:  # all of them can be sent: the submitter counts the refs that it gets, in their order
                with self.reactor.lock:
                    self._hold_for_submitter(job, handed)
        finally:
            if handed:
                with self.reactor.lock:
                    self.runtime.objects.unuse(handed)
        return Many(parts)

    def _encode_parts(self, job: Job, values: list[Any], handed: list[ObjectEntry]) -> list[Value]:
        parts: list[Value] = []
        room = INLINE_TASK_BYTES_MAX
        for index, part in enumerate(values):
            inline_max = INLINE_RESULT_BYTES_MAX if room > 0 else INLINE_CROWDED_BYTES_MAX
            encoded = self.encode_value(job, part, index + 1, inline_max, handed)
            if type(encoded) is bytes:
                room -= len(encoded)
            elif type(encoded) is Containing:
                room -= len(encoded.blob)
            parts.append(encoded)
        return parts

    def discard(self, stored: list[bytes]) -> None:
        """Nobody was told of these values, or will be: what they take in the store is free. Caller holds the lock."""
        daemon = self.reactor.causal
        if stored and daemon is not None:
            daemon.send(FreeObjects(stored, giver=self.runtime.worker_id))

    def _discard_untold(self, job: Job) -> None:
        untold, job.untold = job.untold, None
        if untold is not None:
            self.discard(untold)

    def tells(self, job: Job) -> None:
        """An item is about to be sent. If there is nobody to take it, what was known to be the dead consumer's was freed before it was stored. Caller
        holds the lock."""
        if job.connection.closed:
            self._discard_untold(job)
        job.untold = None

    def _store(self, job: Job, oid: bytes, blob: Any, nested: list[bytes] | None = None) -> Stored:
        if job.untold is None:
            job.untold = []
        job.untold.append(oid)
        return self.runtime.store_blob(oid, blob, job.connection.attachment.worker_id, nested)

    def encode_value(
        self,
        job: Job,
        value: Any,
        index: int,
        inline_max: int = INLINE_RESULT_BYTES_MAX,
        handed: list[ObjectEntry] | None = None,
    ) -> Value:
        """One value: inline when small, sealed in the store when large; refs inside are handed to the submitter, or (in use) put into `handed`."""
        try:
            blob, nested = serialization.dumps(value)
        except TypeError as error:
            raise TypeError(f"the result of {job.template.wire.name}() cannot be sent: {error}") from None
        if nested is None:
            if isinstance(blob, bytes):
                if len(blob) <= inline_max:
                    return blob
            elif blob.total_bytes <= inline_max:
                return blob.to_bytes()
            oid = ids.result_id(job.task_id, index)
            if job.template.wanted is not None and oid not in job.template.wanted:
                return self.runtime.none_blob  # it is there, and others may be reading it
            return self._store(job, oid, blob)
        return self._hand_over(job, blob, nested, ids.result_id(job.task_id, index), inline_max, handed)

    def put_again(self, job: Job, oid: bytes, blob: Any, nested: list[ObjectRef] | None) -> ObjectRef:
        """A lost object is put once more: it belongs to whoever has the task run again, and is sent like an item of a stream."""
        value: Value
        if nested is not None:
            value = self._hand_over(job, blob, nested, oid, INLINE_RESULT_BYTES_MAX)
        elif (len(blob) if isinstance(blob, bytes) else blob.total_bytes) <= INLINE_RESULT_BYTES_MAX:
            value = blob if isinstance(blob, bytes) else blob.to_bytes()
        else:
            value = self._store(job, oid, blob)
        index = int.from_bytes(oid[ids.TASK_ID_BYTES :], "big")
        with self.reactor.lock:
            self.tells(job)
            job.connection.send_now(StreamItem(job.held_lease.lease_id, job.seq, index, value))
        return self.runtime.objects.borrow(oid, job.template.wire.options["home"])

    def _hand_over(
        self,
        job: Job,
        blob: Any,
        nested: list[ObjectRef],
        oid: bytes,
        inline_max: int,
        handed: list[ObjectEntry] | None = None,
    ) -> Value:
        """A value with refs inside: the submitter holds them before it knows, from now on or (`handed`) when the caller says so."""
        runtime = self.runtime
        entries = runtime.objects.escape(nested)
        if handed is not None:
            handed.extend(entries)
        oids = [entry.oid for entry in entries]
        result: Value
        try:
            if (len(blob) if isinstance(blob, bytes) else blob.total_bytes) <= inline_max:
                result = Containing(blob if isinstance(blob, bytes) else blob.to_bytes(), oids)
            else:
                if job.template.wanted is not None and oid not in job.template.wanted:
                    result = Containing(runtime.none_blob, oids)
                else:
                    result = self._store(job, oid, blob, oids)
            if handed is None:
                with self.reactor.lock:
                    self._hold_for_submitter(job, entries)
        finally:
            if handed is None:
                with self.reactor.lock:
                    runtime.objects.unuse(entries)
        return result

    def _hold_for_submitter(self, job: Job, entries: list[ObjectEntry]) -> None:
        submitter = job.connection.attachment
        self.runtime.objects.hold_for(entries, submitter.worker_id, submitter.abroad)

    def encode_error(self, job: Job, error: BaseException) -> Failed:
        """A task's exception as a value. What was stored before it is of no use."""
        if job.untold is not None:
            with self.reactor.lock:
                self._discard_untold(job)
        if type(error) is ArgumentLost:
            self.last_error = "ObjectLostError"
            return Failed(serialization.dumps_error(error.error), lost=error.place)
        if job.cancelled and isinstance(error, errors.TaskCancelledError):
            # Its children are cancelled with it, and it may hear of that, by `get`, before it is interrupted itself.
            error = KeyboardInterrupt().with_traceback(error.__traceback__)
        self.last_error = type(error).__name__
        instance = self.actor_instance()
        actor = _safe_repr(instance) if instance is not None else None
        wrapped = errors.make_task_error(error, job.template.wire.name, self.runtime.pid, "127.0.0.1", actor)
        retriable = isinstance(error, Exception) and not job.cancelled
        return Failed(serialization.dumps_error(wrapped), retriable)

    def _stream(self, job: Job, items: Any) -> Value:
        """Send the items of a generator one by one; its end is the reply."""
        limit = job.template.wire.backpressure
        lease_id = job.held_lease.lease_id
        connection = job.connection
        last_flush = perf_counter()
        index = 0
        wanted = job.template.wanted
        for item in items:
            index += 1
            if wanted is not None:
                if not wanted:
                    break
                oid = ids.result_id(job.task_id, index)
                if oid not in wanted:
                    continue
                wanted = wanted - {oid}
            if index <= job.template.resume_from:
                _check_consumer(job)
                continue
            value = self.encode_value(job, item, index)
            with self.reactor.lock:
                self.tells(job)
                connection.send(StreamItem(lease_id, job.seq, index, value))
                now = perf_counter()
                if now - last_flush > REPLY_FLUSH_S / 4 or index < 3:
                    last_flush = now
                    connection.flush()
            while (
                limit > 0
                and wanted is None
                and index - job.credit >= limit
                and not connection.closed
                and not job.cancelled
            ):
                self._await_credit(job, index - limit)
            _check_consumer(job)
        return self.end_of_stream(job, index)

    def end_of_stream(self, job: Job, count: int) -> Value:
        """The reply of a generator that has yielded `count` items."""
        had = job.template.resume_from
        if count >= had:
            return self.runtime.none_blob
        why = f"{job.template.wire.name} yielded {had} items or more before it was interrupted, and {count} when it was run again"
        return Failed(serialization.dumps_error(errors.StreamingGeneratorReplayInconsistentError(why)))

    def _await_credit(self, job: Job, consumed: int) -> None:
        with self.reactor.lock:
            if job.credit > consumed or job.cancelled:
                return
            job.connection.flush()
            waiter = job.waiter = Waiter()
        self.runtime.wait_for(waiter)
        job.waiter = None


def _check_consumer(job: Job) -> None:
    if job.connection.closed or job.cancelled:
        raise KeyboardInterrupt("the consumer of the stream is gone")


def _safe_repr(instance: Any) -> str:
    """An actor as its class shows it; a `__repr__` that raises must not cost the call its answer."""
    try:
        return repr(instance)
    except Exception as error:
        return f"<{type(instance).__name__}, whose repr raises {type(error).__name__}>"

"""Values in the shared-memory store, as the runtime uses it.

Purpose: seal large values, read them where they lie, and follow those that were moved.

Design: the store's client knows memory; the daemon knows who refers to it. What the client does is said to the daemon here, in the order of
frames: `Sealed` before anybody is told of the object. A place that became stale (spilled, moved) is asked for again, any number of times.
That memory has no room for it just then (`NoRoomFor`) is an error for those who asked, not the object's value: it lies where it lay.

What it does not do: allocate or pin (`store.client`), or count references (`objects`).
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from shoal import serialization
from shoal.protocol import errors
from shoal.protocol.messages import Failed, FreeBlocks, NoRoomFor, Sealed, SegmentBudget, Stored, TrimBudget
from shoal.protocol.messages import OpenSegment as OpenSegmentMessage
from shoal.runtime import unread_errors
from shoal.runtime.objects import ObjectEntry, SharedState, dropped
from shoal.runtime.waiting import explain
from shoal.store.client import StaleBlock

REMADE_LOOK_S = 0.02  #: how often a reader of arguments looks whether they are being made anew

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.reactor import Connection


def load_stored(runtime: Runtime, value: Stored) -> Any:
    """Deserialize from the store a value that somebody else holds for us; a place that became stale is asked for again."""
    if runtime.pulling.is_abroad(value):
        return serialization.loads(runtime.pulling.read(value, for_task=True))
    store = runtime.store
    if store is not None:
        try:
            return serialization.loads(store.read(value))
        except StaleBlock:
            pass
    with runtime.reactor.lock:
        entry = runtime.objects.table.get(value.oid)
        if entry is None:
            entry = ObjectEntry(value.oid)
            entry.count = 0
            entry.shared = SharedState(owned=False)
        entry.count += 1
        entry.value = value
        runtime.objects.resolve_again(entry)
    try:
        while not runtime.wait_entries((entry,), REMADE_LOOK_S):
            if entry.shared is not None and entry.shared.being_remade and runtime.executor is not None:
                # Its task needs a CPU, and may get the one that this one has.
                runtime.executor.wait_as_a_task()
                runtime.wait_entries((entry,), None)
                break
        return load(runtime, entry, asked=True)
    finally:
        with runtime.reactor.lock:
            runtime.objects.unuse([entry])


def view_at_once(runtime: Runtime, value: Stored) -> memoryview | None:
    """The bytes of a stored value, pinned, if it is where it is said to be; of another node's, where its copy was last."""
    place: Any = runtime.pulling.places.get(value.oid) if runtime.pulling.is_abroad(value) else value
    if runtime.store is None or type(place) is not Stored:
        return None
    try:
        return runtime.store.read(place)
    except StaleBlock:
        return None


def load(runtime: Runtime, entry: ObjectEntry, until: float | None = None, asked: bool = False) -> Any:
    """Deserialize a known value; one that lies on another node is waited for until then. `asked`: it was asked for just now: a refusal counts.

    Raises:
        the error that stands in its place.
    """
    while True:
        try:
            return _load(runtime, entry, until, asked)
        except errors.ShoalError as error:
            names = runtime.call_names
            if names is None:
                raise
            if not names.is_made_anew(entry, error, until):
                names.note_loss(error, entry.oid)
                raise


def _load(runtime: Runtime, entry: ObjectEntry, until: float | None, asked: bool) -> Any:
    while True:
        value = entry.value
        refusal = entry.shared.refusal if asked and entry.shared is not None else None
        if refusal is not None:
            raise serialization.loads_error(refusal.error)
        if type(value) is bytes:
            return serialization.loads(value)
        if type(value) is Failed:
            unread_errors.read(entry.oid)
            raise serialization.loads_error(value.error)
        if type(value) is Stored:
            store = runtime.store
            if store is None:
                raise errors.ObjectLostError(
                    f"object {entry.oid.hex()} was stored by a session that has ended", object_id=entry.oid.hex()
                )
            if value.node != runtime.node_id and value.node:
                try:
                    return serialization.loads(runtime.pulling.read(value, until))
                except errors.ObjectLostError as error:
                    if type(error) is not errors.ObjectLostError:
                        raise
                    runtime.remaker.report_lost(entry, value, str(error))
            else:
                try:
                    return serialization.loads(store.read(value))
                except StaleBlock:
                    with runtime.reactor.lock:
                        if entry.value is value:
                            runtime.objects.resolve_again(entry)
                    asked = True
        left_s = None if until is None else max(until - perf_counter(), 0.0)
        if not runtime.wait_entries((entry,), left_s):
            why = explain(runtime, entry)
            raise errors.GetTimeoutError(f"object {entry.oid.hex()} was lost, and was not made anew in time: {why}")


def store_blob(runtime: Runtime, oid: bytes, blob: Any, owner: bytes, nested: list[bytes] | None = None) -> Stored:
    """Seal a serialized value in the store and tell the daemon of it."""
    store = runtime.store
    if store is None:
        raise RuntimeError("shoal.shutdown() was called")
    if dropped:
        with runtime.reactor.lock:
            runtime.objects.drain_dropped()  # room may be given back by refs that are gone
    stored = store.put(oid, blob)
    stored.node = runtime.node_id
    if nested:
        stored.nested = nested
    with runtime.reactor.lock:
        daemon = runtime.reactor.causal
        if daemon is not None:
            daemon.send(Sealed([(oid, stored.segment, stored.offset, stored.size, stored.generation, owner)]))
    return stored


def free(runtime: Runtime, entry: ObjectEntry) -> None:
    """A stored object that never left this process ends. Caller holds the lock."""
    if runtime.store is not None and type(entry.value) is Stored:
        runtime.store.free(entry.value)


def on_no_room(runtime: Runtime, message: NoRoomFor) -> None:
    """The daemon cannot bring a spilled value back into memory: those who wait for it are told, who asks later asks again. Caller holds the lock."""
    entry = runtime.objects.table.get(message.oid)
    if entry is None or entry.value is not None:
        return
    shared = entry.shared
    assert shared is not None, "entries in the table are shared"
    shared.resolving = shared.being_remade = False
    place, shared.place = shared.place or message.place, None
    shared.shown = True
    shared.refusal = message.error
    entry.value = place or message.error
    escaped, shared.escaped = shared.escaped, False  # it is no news to the daemon
    runtime.announce(entry)
    shared.escaped = escaped


def on_free_blocks(runtime: Runtime, message: FreeBlocks) -> None:
    """Blocks of our segment hold nothing any more."""
    if runtime.store is not None:
        runtime.store.on_free_blocks(message)


def on_trim(runtime: Runtime, connection: Connection, message: TrimBudget) -> None:
    """Others need room: give back what we do not use."""
    if runtime.store is not None:
        connection.send(runtime.store.on_trim(message))


def open_segment(runtime: Runtime, need_bytes: int) -> SegmentBudget:
    """Ask the daemon for a segment, or more budget; waits for the answer."""
    answer = runtime.request(lambda number: OpenSegmentMessage(number, need_bytes), None)
    assert isinstance(answer, SegmentBudget), "OpenSegment is answered by SegmentBudget"
    return answer

"""`put`: a value gets a ref.

Purpose: keep a value where its size says, and on as many nodes as its program asks for.

Design: a small value stays in this process until it leaves it; a large one is sealed in the node's store. With `copies` it always is, its node's
daemon knows it, and `put` waits until the other nodes have theirs: who has the ref can rely on them. What is put in a task is named by the task, so
that a task that runs again makes the same objects.

What it does not do: choose the nodes, or make the copies anew (`node.copies`).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from shoal import serialization
from shoal.protocol import errors, ids
from shoal.protocol.limits import INLINE_RESULT_BYTES_MAX, PUT_COPIES_WAIT_S
from shoal.protocol.messages import KeepCopies
from shoal.runtime.objects import ObjectEntry, ObjectRef, dropped
from shoal.runtime.tasks import running_task

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime


def put(self: Runtime, value: Any, copies: int = 1) -> ObjectRef:
    """Store a value, a method of Runtime; small ones stay in this process until they leave it."""
    if self.lost is not None:
        raise self.lost
    blob, nested = serialization.dumps(value)
    context = running_task.get() or self.root
    prefix = context.prefix
    if not prefix:
        prefix = context.prefix = ids.child_prefix(context.task_id, context.attempt)
    entry = ObjectEntry(prefix + b"\0\0\0\0" + (ids.PUT_INDEX_FLAG | next(context.puts)).to_bytes(4, "big"))
    names = self.call_names
    if names is not None:
        names.lose_again([entry.oid])
    if context.repeats and entry.oid in context.job.template.wanted:
        return self.executor.results.put_again(context.job, entry.oid, blob, nested)  # type: ignore[no-any-return]
    if nested:
        with self.reactor.lock:
            self.objects.contain(entry, self.objects.escape(nested))
    size = len(blob) if isinstance(blob, bytes) else blob.total_bytes
    if size <= INLINE_RESULT_BYTES_MAX and copies == 1:
        entry.value = blob if isinstance(blob, bytes) else blob.to_bytes()
    else:
        try:
            inside = [inner.oid for inner in entry.shared.nested or ()] if entry.shared is not None else []
            entry.value = self.store_blob(entry.oid, blob, self.worker_id, inside)
            if context.job is not None:
                self.closures.putters[entry.oid] = context.job
        except BaseException as error:
            with self.reactor.lock:
                self.objects.free(entry)  # lets go what is inside
            if names is not None:
                names.note_loss(error, entry.oid)  # another time there may be room
            raise
    if dropped:
        with self.reactor.lock:
            self.objects.drain_dropped()
    ref = ObjectRef(entry)
    if copies > 1:
        try:
            _copy(self, ref, copies, size)
        except errors.ShoalError as error:
            if names is not None:
                names.note_loss(error, entry.oid)
            raise
    return ref


def _copy(runtime: Runtime, ref: ObjectRef, copies: int, size: int) -> None:
    """Wait until an object is on so many nodes, or on all that there are."""
    with runtime.reactor.lock:
        used = runtime.objects.escape([ref])
    oid = ref.binary()
    try:
        answer = runtime.request(lambda number: KeepCopies(number, oid, copies), PUT_COPIES_WAIT_S)
    except errors.RpcError as error:
        raise errors.ObjectFetchTimedOutError(
            f"put(copies={copies}): {size / 1e6:.1f} MB were not copied to other nodes within {PUT_COPIES_WAIT_S:.0f} s. Nothing is kept: "
            "put the value again, with fewer copies, or when the nodes and the network have less to do",
            object_id=oid.hex(),
        ) from error
    finally:
        with runtime.reactor.lock:
            runtime.objects.unuse(used)
    made, nodes, reason = answer.body["made"], answer.body["nodes"], answer.body["reason"]
    if made >= copies:
        return
    if nodes >= copies:
        raise errors.ObjectStoreFullError(
            f"put(copies={copies}): only {made} of {nodes} nodes have room for {size / 1e6:.1f} MB ({reason}). Nothing is kept: "
            "free what is not needed, ask for fewer copies, or give the stores more with object_store_memory"
        )
    warnings.warn(
        f"put(copies={copies}) in a cluster of {nodes}: the value is on {made} for now, and is lost with "
        f"{'it' if made == 1 else 'them'}; nodes that join get the missing copies",
        RuntimeWarning,
        stacklevel=4,
    )

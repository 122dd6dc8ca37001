"""Cancelling tasks: verbs of the runtime, in a file of their own.

Purpose: a task stops wherever it is: waiting for inputs, queued here, pushed to a worker, or running there; or of another process, whose owner is
told through the daemon.

What it does not do: the worker's part (`executor`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.protocol import errors, ids
from shoal.protocol.messages import CancelObject, CancelTask, KillWorker, SignalWorker
from shoal.runtime.streams import ObjectRefGenerator

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.objects import ObjectRef
    from shoal.runtime.reactor import Connection
    from shoal.runtime.tasks import PendingTask


def cancel(runtime: Runtime, ref: ObjectRef | ObjectRefGenerator, force: bool, recursive: bool) -> None:
    """Cancel the task that makes `ref`, queued or running; no effect when it has ended.

    A task of another process is cancelled by its owner, who is told through the daemon.
    """
    if isinstance(ref, ObjectRefGenerator):
        task: PendingTask | None = ref._state.task
    else:
        task = ref._entry.task
        shared = ref._entry.shared
        if task is None and ref._entry.value is None and shared is not None and not shared.owned:
            with runtime.reactor.lock:
                daemon = runtime.reactor.causal
                if daemon is not None:
                    daemon.send_now(CancelObject(ref._entry.oid, force, recursive, shared.home))
            return
    if task is not None:
        runtime.submitter.flush()
        with runtime.reactor.lock:
            runtime.cancel_task(task, force, recursive)


def on_cancel_object(runtime: Runtime, connection: Connection, message: CancelObject) -> None:
    """Another process cancels a task of ours, or one of a dead process that runs here."""
    for task in runtime.submitter.tasks_of(message.oid[: ids.TASK_ID_BYTES]):
        runtime.cancel_task(task, message.force and task.queue is None, message.recursive)
    if runtime.executor is not None:
        runtime.executor.orphans.cancel(message)


def cancel_task(runtime: Runtime, task: PendingTask, force: bool, recursive: bool) -> None:
    """Cancel one task of this process. Caller holds the lock."""
    if force and task.queue is not None:
        raise ValueError("force=True is for tasks: to end an actor, use shoal.kill")
    if task.cancelled and not force:
        return
    task.cancelled = True
    lease = task.lease
    if lease is not None and task.seq in lease.inflight:
        runtime.submitter.send_pushes(lease)
        daemon = runtime.reactor.causal
        lease.connection.send_now(CancelTask(lease.lease_id, task.seq, recursive, force))
        if daemon is not None:
            message = KillWorker(lease.lease_id, task.seq) if force else SignalWorker(lease.lease_id, task.seq)
            daemon.send_now(message)
        return
    if task.queue is not None:
        if task in task.queue.unsent:
            task.queue.unsent.remove(task)
            runtime.actor_calls.advance(task.queue)  # it may have held back others
        else:
            return
    elif task.template.klass is not None and not task.missing:
        try:
            task.template.klass.queue.remove(task)
        except ValueError:
            return
    runtime.submitter.fail(
        task,
        errors.TaskCancelledError(
            f"{task.template.wire.name}() was cancelled before it ran", task_id=task.task_id.hex()
        ),
    )


def cancel_children(runtime: Runtime, prefix: bytes) -> None:
    """Cancel every task of this process whose parent's prefix is `prefix`. Caller holds the lock."""
    for task in runtime.submitter.tasks_of(prefix):
        runtime.cancel_task(task, False, True)

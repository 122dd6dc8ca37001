"""Tasks whose submitter is dead: this worker finishes what it has begun, and tells the node.

Purpose: nothing runs twice because somebody died who was to be told.

Design: the daemon asks (`SubmitterDied`) after it has read the dead process's socket. This worker reads what that process had written to it, and
answers:

    ended, and told     replies that may not have been read (`SubmitterPeer.unread`) are published. Not those with refs inside: the holds on these
                        were the dead process's. Such tasks run again
    runs, or is queued  claimed (calls of an actor are kept, queued tasks are not): what they make is published when they have ended
    streams             not claimed: they stop, as their consumer is gone
    refs in calls       were held in this worker's name before they came (`actor_calls`); it says how many came, and takes no more of that process

What is claimed is cancelled here, too: the daemon knows of the claim (`Objects.on_cancel`).

An actor that must be silent (`node/io/leash.py`) does all this when it may speak again.

What it does not do: decide what happens to the rest (`node.succession`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from shoal.protocol import ids
from shoal.protocol.messages import (
    CancelObject,
    CancelTask,
    Claims,
    Containing,
    Many,
    Publish,
    Stored,
    SubmitterDied,
    Value,
)

if TYPE_CHECKING:
    from shoal.runtime.executor import Executor
    from shoal.runtime.jobs import Job, SubmitterPeer
    from shoal.runtime.reactor import Connection

#: submitters without a task here whose connection ended and of whom the daemon has not spoken: their replies are kept so long
GONE_MAX = 64
DEAD_MAX = 1024  #: so many dead submitters are remembered


class OrphanTasks:
    """What a worker has of dead submitters."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._reactor = executor.reactor
        #: connections of submitters that ended, the oldest first; beyond GONE_MAX only of those that have tasks here
        self._gone: deque[Connection] = deque()
        #: of whom the daemon has spoken, the oldest first: nothing is taken from them any more
        self._dead: dict[bytes, None] = {}
        self._reactor.handlers[SubmitterDied] = self._on_submitter_died

    def note_gone(self, connection: Connection) -> None:
        """A submitter's connection has ended."""
        gone = self._gone
        gone.append(connection)
        if (
            len(gone) > GONE_MAX
        ):  # the daemon may never speak of them: they only left, or it knows that none of theirs is wanted
            busy = {job.connection for job in self._jobs()}
            idle = [each for each in gone if each not in busy]
            for each in idle[: max(0, len(idle) - GONE_MAX)]:
                gone.remove(each)

    def _on_submitter_died(self, daemon: Connection, message: SubmitterDied) -> None:
        # What an actor has answered to the dead it answers to others now: not while it must be silent.
        self._reactor.unless_silenced(lambda: self._tell(daemon, message.process))

    def is_dead(self, process: bytes) -> bool:
        """Whether all that a process has left here is told: what still comes of it came too late."""
        return process in self._dead

    def _tell(self, daemon: Connection, process: bytes) -> None:
        self._executor.accept()
        for connection in list(self._reactor.connections.values()):
            if _peer_is(connection, b""):  # it has not said yet whose it is
                self._reactor.drain(connection)
        self._dead[process] = None
        if len(self._dead) > DEAD_MAX:
            del self._dead[next(iter(self._dead))]
        for connection in list(self._reactor.connections.values()):
            if _peer_is(connection, process):
                self._reactor.drain(connection)
                self._reactor._ended(
                    connection
                )  # it is dead, so this is the end, also if a child of its holds the socket
        claims: list[bytes] = []
        begun = False
        for connection in [each for each in self._gone if _peer_is(each, process)]:
            self._gone.remove(connection)
            peer: SubmitterPeer = connection.attachment
            claims.extend(job.task_id for job in self._jobs() if job.connection is connection and _is_claimed(job))
            for replies, task_ids in peer.unread:
                begun = begun or any(_refs_in(value) for _, value in replies)
                self.publish(process, replies, task_ids, told=True)
            peer.unread.clear()
        daemon.send_now(Claims(process, claims, begun, self._executor.called.end(process)))

    def cancel(self, message: CancelObject) -> None:
        """Somebody cancels a task whose submitter is dead: there is nobody else to be told. Caller holds the lock."""
        executor = self._executor
        for job in self._jobs():
            if job.task_id != message.oid[: ids.TASK_ID_BYTES] or not job.connection.closed or job.cancelled:
                continue
            force = message.force and not job.held_lease.is_actor
            if force and job is executor.running:
                executor.answer_cancelled(job, "by killing its process")  # before it is: or it would be run again
            cancel = CancelTask(job.held_lease.lease_id, job.seq, message.recursive, force)
            executor.on_cancel(job.connection, cancel)

    def _jobs(self) -> list[Job]:
        """What runs or is queued here."""
        executor = self._executor
        jobs = list(executor.queue)
        if executor.running is not None:
            jobs.append(executor.running)
        if executor.actor is not None:
            jobs.extend(executor.actor.jobs())
        return jobs

    def publish(
        self, process: bytes, replies: list[tuple[int, Value | Many]], tasks: list[bytes], told: bool = False
    ) -> None:
        """Results that their submitter cannot take. With `told` the refs inside were held in its name, which is of no use. `tasks` are as
        `BoundTemplate.tail` says. Caller holds the lock."""
        self._reactor.unless_silenced(lambda: self._publish(process, replies, tasks, told))

    def _publish(self, process: bytes, replies: list[tuple[int, Value | Many]], tasks: list[bytes], told: bool) -> None:
        daemon = self._reactor.causal
        if daemon is None:
            return
        for (_, value), task in zip(replies, tasks, strict=True):
            if not task:
                if not told:  # else the dead process may have published it
                    parts = value.values if isinstance(value, Many) else [value]
                    self._executor.results.discard([part.oid for part in parts if type(part) is Stored])
                continue
            task_id, tail = task[: ids.TASK_ID_BYTES], task[ids.TASK_ID_BYTES :]
            # A failure is that of all results.
            parts = value.values if isinstance(value, Many) else [value] * (int.from_bytes(tail, "big") or 1)
            known = [(index, part) for index, part in enumerate(parts, start=1) if not (told and _refs_in(part))]
            for left, (index, part) in zip(range(len(known))[::-1], known, strict=True):
                daemon.send(Publish(ids.result_id(task_id, index), part, process, left))


def _peer_is(connection: Connection, process: bytes) -> bool:
    return getattr(connection.attachment, "worker_id", b"") == process and hasattr(connection.attachment, "unread")


def _refs_in(value: Value | Many) -> bool:
    if isinstance(value, Many):
        return any(map(_refs_in, value.values))
    return (type(value) is Containing or type(value) is Stored) and bool(value.nested)


def _is_claimed(job: Job) -> bool:
    return job.template.outlives and not job.cancelled

"""Checkpoints and records of the actors that live here: messages go into the logs, and what the logs keep is held.

Purpose: an actor's next life finds what its former one wrote to this daemon.

Design: the log of an actor (`node.actor_logs`) is there from the first life on this node until the actor is dead or lives elsewhere. In the eyes of
the object directory it is a process named by the ActorID: it holds the refs in states, answers and recorded arguments, and owns the checkpoint when
that lies in the store. So what an actor has kept outlives its workers, and goes when the log goes.

What it does not do: decide anything (`node.actor_logs`), or read a record.
"""

from __future__ import annotations

from collections.abc import Callable

from shoal.node import object_events as events
from shoal.node.actor_logs import ActorLogs, Kept
from shoal.node.io.objects import Objects
from shoal.node.io.processes import Process
from shoal.protocol.messages import ActorSpec, RecordCall, Recovery, StoreCheckpoint


class Recoveries:
    """The logs of this node.

    Args:
        free: lets objects in the store go.
    """

    def __init__(self, objects: Objects, free: Callable[[list[bytes]], None]) -> None:
        self._objects = objects
        self._free = free
        self._logs = ActorLogs()

    def begin(self, spec: ActorSpec, incarnation: int) -> None:
        """A life of an actor is to begin here."""
        if self._logs.is_outdated(spec.actor_id, incarnation):
            self.drop(spec.actor_id)
        if self._logs.begin(spec.actor_id, incarnation):
            self._objects.handle(events.ProcessJoined(spec.actor_id, runs=False))

    def recovery(self, spec: ActorSpec) -> Recovery | None:
        """What the life that begins is to start from; None for nothing."""
        return self._logs.recovery(spec.actor_id) if spec.takes_checkpoints else None

    def on_record(self, process: Process, message: RecordCall) -> None:
        """A call begins."""
        if not self._logs.record(message):
            self._let_go(process.worker_id, message.actor_id, Kept(message.refs, message.stored))

    def on_checkpoint(self, process: Process, message: StoreCheckpoint) -> None:
        """A state is to be kept."""
        self._let_go(process.worker_id, message.actor_id, self._logs.checkpointed(message))

    def _let_go(self, sender: bytes, actor_id: bytes, gone: Kept) -> None:
        if gone.refs:
            self._objects.handle(events.Released(sender, gone.refs, actor_id))
        if gone.stored:
            self._free(gone.stored)

    def drop(self, actor_id: bytes) -> None:
        """The actor is dead, or lives elsewhere."""
        if self._logs.drop(actor_id):
            self._objects.handle(events.ProcessDied(actor_id, "its actor is dead"))
            self._objects.owner_gone(actor_id)

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return self._logs.statistics()

"""The object directory's shell: messages become its events, its effects become messages, frees and sweeps.

Purpose: refs that left their owners are held, resolved and freed as the directory says.

Design: a sweep (rule 2 of "Causality" in docs/ARCHITECTURE.md) waits RELEASE_SWEEP_S, so that one sweep serves many frees, then reads every
local socket until it is seen empty; sockets that never are, because their peer floods, are looked at again in later turns of the loop.

How to extend: a new message gets a method, listed by `daemon` in its table; a new effect a row in `_PERFORM`.

What it does not do: decide (`node.object_directory`), or touch blocks of the store (`store`, behind `StoreDoor`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from shoal.node import object_directory as directory
from shoal.node.io.connections import Connection
from shoal.node.io.processes import Process, ProcessTable
from shoal.node.object_directory import ObjectDirectory
from shoal.protocol import messages
from shoal.protocol.limits import RELEASE_SWEEP_S

if TYPE_CHECKING:
    import asyncio


class StoreDoor(Protocol):
    """What the directory wants of the store."""

    def free(self, oid: bytes) -> None:
        """Nobody refers to a stored object any more."""

    def ensure_resident(self, oid: bytes, process: bytes) -> None:
        """Bring an object into memory; answered through `Objects.moved` or `Objects.lost`."""


class Objects:
    """The escaped refs of this node.

    Args:
        connections: lists all sockets that are open now, registered or not.
        on_handles_gone: gets the id of an actor of which nobody here holds a handle any more.
    """

    def __init__(
        self,
        machine: ObjectDirectory,
        table: ProcessTable,
        store: StoreDoor,
        loop: asyncio.AbstractEventLoop,
        connections: Callable[[], Iterable[Connection]],
        on_handles_gone: Callable[[bytes], None],
    ) -> None:
        self.machine = machine
        self._table = table
        self._store = store
        self._loop = loop
        self._connections = connections
        self._on_handles_gone = on_handles_gone

    def handle(self, event: directory.Event) -> None:
        """Give the machine an event and do what it says. Its effects never come back here before this returns, but through the loop."""
        for effect in self.machine.handle(event, 0.0):
            _PERFORM[type(effect)](self, effect)

    # ---------------------------------------------------------------- messages

    def on_escape(self, process: Process, message: messages.Escape) -> None:
        """Refs leave their owner."""
        self.handle(directory.Escaped(process.worker_id, message.oids, message.lineage))

    def on_publish(self, process: Process, message: messages.Publish) -> None:
        """A value is known."""
        self.handle(directory.Published(process.worker_id, message.oid, message.value))

    def on_hold(self, process: Process, message: messages.Hold) -> None:
        """One hold more on each."""
        self.handle(directory.Held(process.worker_id, message.oids, message.holder))

    def on_release(self, process: Process, message: messages.Release) -> None:
        """One hold fewer on each."""
        self.handle(directory.Released(process.worker_id, message.oids, message.holder))

    def on_resolve(self, process: Process, message: messages.Resolve) -> None:
        """A process wants values."""
        self.handle(directory.ResolveAsked(process.worker_id, message.oids, message.stale_generation))

    def joined(self, process: Process) -> None:
        """A process registered."""
        self.handle(directory.ProcessJoined(process.worker_id))

    def process_died(self, process: Process, cause: str) -> None:
        """A process is dead and its socket was read to the end."""
        self.handle(directory.ProcessDied(process.worker_id, cause))

    # ---------------------------------------------------------------- effects

    def _send_resolved(self, effect: directory.SendResolved) -> None:
        process = self._table.by_id.get(effect.process)
        if process is not None:
            process.send(messages.Resolved(effect.oid, effect.value))

    def _free(self, effect: directory.FreeStored) -> None:
        self._store.free(effect.oid)

    def _ensure_resident(self, effect: directory.EnsureResident) -> None:
        # Not from within the machine's effects: the store may answer at once.
        self._loop.call_soon(self._store.ensure_resident, effect.oid, effect.process)

    def _request_sweep(self, effect: directory.RequestSweep) -> None:
        self._loop.call_later(RELEASE_SWEEP_S, self._begin_sweep, effect.token)

    def _handle_gone(self, effect: directory.ActorHandleGone) -> None:
        self._on_handles_gone(effect.actor_id)

    # ---------------------------------------------------------------- sweeps

    def _begin_sweep(self, token: int) -> None:
        self._sweep(token, list(self._connections()))

    def _sweep(self, token: int, unseen: list[Connection]) -> None:
        left = [connection for connection in unseen if not connection.closed and not connection.drain()]
        if left:
            self._loop.call_soon(self._sweep, token, left)
        else:
            self.handle(directory.Swept(token))


_PERFORM: dict[type, Callable[[Objects, Any], None]] = {
    directory.SendResolved: Objects._send_resolved,
    directory.FreeStored: Objects._free,
    directory.EnsureResident: Objects._ensure_resident,
    directory.RequestSweep: Objects._request_sweep,
    directory.ActorHandleGone: Objects._handle_gone,
}

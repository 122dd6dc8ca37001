"""The object directory's shell: messages become its events, its effects become messages, frees and sweeps.

Purpose: refs that left their owners are held, resolved and freed as the directory says.

Design: a sweep (rule 2 of "Causality" in docs/ARCHITECTURE.md) waits RELEASE_SWEEP_S, so that one sweep serves many frees, then reads every
local socket until it is seen empty; sockets that never are, because their peer floods, are looked at again in later turns of the loop.

How to extend: a new message gets a method, listed by `daemon` in its table; a new effect a row in `_PERFORM`.

What it does not do: decide (`node.object_directory`), or touch blocks of the store (`store_shell`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from shoal.node import object_directory as directory
from shoal.node.io.connections import Connection
from shoal.node.io.processes import Process, ProcessTable
from shoal.node.io.store_shell import StoreShell
from shoal.node.object_directory import ObjectDirectory
from shoal.protocol import messages
from shoal.protocol.errors import ObjectLostError, ShoalError
from shoal.protocol.limits import RELEASE_SWEEP_S
from shoal.protocol.messages import Failed, Stored
from shoal.serialization.failures import dumps_error


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
        store: StoreShell,
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
        #: stored objects freed by the event being handled: the store hears of them at once
        self._freed: list[bytes] = []
        self._bringing: set[asyncio.Task[None]] = set()

    def handle(self, event: directory.Event) -> None:
        """Give the machine an event and do what it says. The store may answer from within, so an event can come while another's effects
        are performed; the directory's own effects are complete by then."""
        for effect in self.machine.handle(event, 0.0):
            _PERFORM[type(effect)](self, effect)
        if self._freed:
            freed, self._freed = self._freed, []
            self._store.free(freed)

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

    def on_cancel(self, process: Process, message: messages.CancelObject) -> None:
        """Somebody cancels the task that makes an object: only its owner can."""
        if not self._cancel(message):
            # Its Escape may still stand in the owner's socket (see "Causality"); it is read by then.
            self._loop.call_later(RELEASE_SWEEP_S, self._cancel, message)

    def _cancel(self, message: messages.CancelObject) -> bool:
        owner = self._table.by_id.get(self.machine.owner_of(message.oid))
        if owner is not None:
            owner.send(message)
        return owner is not None

    def joined(self, process: Process) -> None:
        """A process registered."""
        self.handle(directory.ProcessJoined(process.worker_id))

    def process_died(self, process: Process, cause: str) -> None:
        """A process is dead and its socket was read to the end."""
        self.handle(directory.ProcessDied(process.worker_id, cause))
        # What it owned in the store and had never let go of is of use to nobody.
        value_of = self.machine.value_of
        private = [oid for oid in self._store.owned_by(process.worker_id) if type(value_of(oid)) is not Stored]
        if private:
            self._store.free(private)

    def owner_gone(self, process_id: bytes) -> None:
        """A process of another node is dead: what it owned in this node's store and had never let go of is of use to nobody."""
        value_of = self.machine.value_of
        private = [oid for oid in self._store.owned_by(process_id) if type(value_of(oid)) is not Stored]
        if private:
            self._store.free(private)

    # ---------------------------------------------------------------- from the store

    def moved(self, oid: bytes, stored: Stored | None) -> None:
        """An object lies somewhere else, or (None) on disk only."""
        self.handle(directory.Moved(oid, stored))

    def lost(self, oid: bytes, reason: str) -> None:
        """An object's bytes are gone."""
        self.handle(directory.Lost(oid, reason))

    # ---------------------------------------------------------------- effects

    def _send_resolved(self, effect: directory.SendResolved) -> None:
        process = self._table.by_id.get(effect.process)
        if process is not None:
            process.send(messages.Resolved(effect.oid, effect.value))
            if type(effect.value) is Stored:
                self._store.used(effect.oid)

    def _free(self, effect: directory.FreeStored) -> None:
        self._freed.append(effect.oid)

    def _ensure_resident(self, effect: directory.EnsureResident) -> None:
        task = self._loop.create_task(self._bring(effect.oid, effect.process))
        self._bringing.add(task)
        task.add_done_callback(self._bringing.discard)

    async def _bring(self, oid: bytes, process_id: bytes) -> None:
        try:
            stored = await self._store.ensure_resident(oid)
        except ObjectLostError as error:
            self.lost(oid, str(error))
        except ShoalError as error:
            # No room for it now: an answer for who asked, not the object's end.
            process = self._table.by_id.get(process_id)
            if process is not None:
                process.send(messages.Resolved(oid, Failed(dumps_error(error))))
        else:
            self.moved(oid, stored)

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

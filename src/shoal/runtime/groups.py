"""Placement groups as this process knows them: their states, and the refs that wait for them.

Purpose: `ready()` is a ref like any other, and needs no task and no worker for it: the daemon tells of the group's state, and that gives the ref its
value.

Design: a group that this process made or asked about is followed (FollowGroup) until it is removed. Everything is written under the reactor's lock.

What it does not do: place groups (the GCS), say what users see of them (`api.placement_groups`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal import serialization
from shoal.protocol import errors, ids
from shoal.protocol.gcs_messages import GroupSpec
from shoal.protocol.group_messages import FollowGroup, GroupState
from shoal.protocol.messages import Failed
from shoal.runtime.objects import ObjectEntry, ObjectRef

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.reactor import Connection

PLACED = "placed"
REMOVED = "removed"


class GroupTable:
    """The placement groups of one process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: groups that are followed; None until the daemon has told
        self._states: dict[bytes, GroupState | None] = {}
        #: refs that wait until their group is placed, and the value that they get then
        self._waiting: dict[bytes, list[tuple[ObjectEntry, bytes]]] = {}
        runtime.reactor.handlers[GroupState] = self.on_state

    def create(self, spec: GroupSpec) -> None:
        """Ask for a group; it is placed some time later.

        Raises:
            ValueError: its name is taken.
        """
        self._runtime.call("gcs.group_create", {"spec": spec})
        with self._runtime.reactor.lock:
            self._follow(spec.group_id)

    def _follow(self, group_id: bytes) -> None:
        daemon = self._runtime.reactor.causal
        if group_id not in self._states:
            self._states[group_id] = None
            if daemon is not None:
                daemon.send_now(FollowGroup(group_id))

    def ready(self, group_id: bytes, value: bytes) -> ObjectRef:
        """A ref that gets the serialized `value` when the group is placed, or an error when it is removed."""
        runtime = self._runtime
        context = runtime.context()
        if not context.prefix:
            context.prefix = ids.child_prefix(context.task_id, context.attempt)
        entry = ObjectEntry(context.prefix + ids.put_id(bytes(4), next(context.puts)))
        with runtime.reactor.lock:
            if runtime.lost is not None:
                raise runtime.lost
            state = self._states.get(group_id)
            if state is not None and state.state == PLACED:
                entry.value = value
            else:
                self._waiting.setdefault(group_id, []).append((entry, value))
                self._follow(group_id)
        return ObjectRef(entry)

    def on_state(self, connection: Connection | None, message: GroupState) -> None:
        """A group has changed, or is what it is."""
        group_id = message.group_id
        self._states[group_id] = message
        if message.state == REMOVED:
            del self._states[group_id]  # who asks later asks anew
            text = f"placement group {group_id.hex()} is removed: {message.reason}"
            failed = Failed(serialization.dumps_error(errors.TaskPlacementGroupRemoved(text)))
            for entry, _ in self._waiting.pop(group_id, ()):
                self._runtime.store_value(entry, failed)
        elif message.state == PLACED:
            for entry, value in self._waiting.pop(group_id, ()):
                self._runtime.store_value(entry, value)

    def explain(self, entry: ObjectEntry) -> str:
        """Why a ref has no value yet, if it waits for a group."""
        for group_id, waiting in self._waiting.items():
            if any(each is entry for each, _ in waiting):
                state = self._states.get(group_id)
                why = f": {state.reason}" if state is not None and state.reason else ""
                return f"placement group {group_id.hex()} is {state.state if state is not None else 'asked for'}{why}"
        return ""

    def fail_everything(self, value: Failed) -> None:
        """The node is gone. Caller holds the lock."""
        for waiting in self._waiting.values():
            for entry, _ in waiting:
                if entry.value is None:
                    self._runtime.store_value(entry, value)
        self._waiting.clear()

    def record(self, group_id: bytes) -> dict[str, Any] | None:
        """What the GCS knows of a group, None when it has forgotten it."""
        rows = self._runtime.call("gcs.groups", {"group_id": group_id})["groups"]
        return rows[0] if rows else None

"""Where the objects of this node's store lie: in memory, at a new place, on disk, or on disk with no room for them in memory.

Purpose: who has asked for a value whose place was stale is answered when the store knows where it is, or why it cannot be brought.

Design: a pure part of the object directory: `EnsureResident` asks the store's table; these are its answers. That there is no room is no property of
the object: who asks later asks anew.

What it does not do: choose what is spilled (`store_table`), or objects that are gone (`succession`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.node.object_events import Effect, Moved, NoRoom, SendResolved
from shoal.protocol.messages import Stored

if TYPE_CHECKING:
    from shoal.node.object_directory import ObjectDirectory


def on_moved(directory: ObjectDirectory, event: Moved, effects: list[Effect]) -> None:
    """An object lies somewhere else now: who waits for it hears where."""
    oid, stored = event.oid, event.stored
    row = directory._objects.get(oid)
    if row is None:
        return
    if type(row.value) is Stored:
        if row.value.node != directory._node_id:
            return  # a copy of it
        if stored is None:
            row.resident = False
            return
        row.resident = True
        row.value = Stored(
            oid, stored.segment, stored.offset, stored.size, stored.generation, row.nested, directory._node_id
        )
        directory._answer_waiters(oid, row, row.value, effects)
    elif stored is not None and not row.known:
        stored.node = stored.node or directory._node_id
        directory._answer_waiters(oid, row, stored, effects)
        directory._drop_if_idle(oid, row)


def on_no_room(directory: ObjectDirectory, event: NoRoom, effects: list[Effect]) -> None:
    """Who had asked was told why it cannot be had, and waits no longer."""
    oid, process = event.oid, event.process
    row = directory._objects.get(oid)
    if row is None or row.waiters is None or process not in row.waiters:
        return
    row.waiters.remove(process)
    row.waiters = row.waiters or None
    if process in directory._nodes and row.value is not None:
        effects.append(SendResolved(process, oid, row.value))  # who pulls it from here hears what the store says then
    if not row.known:
        directory._drop_if_idle(oid, row)


HANDLERS: dict[type, Any] = {Moved: on_moved, NoRoom: on_no_room}

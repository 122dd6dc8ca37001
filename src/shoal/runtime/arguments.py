"""The stored arguments of a task: all of them in hand, or none.

Purpose: tasks that each hold some of their arguments in memory, and wait for room for the others, must not hold each other up for ever.

    all are in memory: read them                                          (nothing is asked; the usual way)
    else: let go of those that were read -> AskRoom, wait with empty hands -> read them, waiting for each -> run -> UseRoom(left)
                         ^                                                       |
                         +--- one is being made anew, or there was no room ------+

A task with one stored argument never waits with another in hand, and asks nobody. One that waits for room keeps its CPU, or ever more tasks would
begin and wait. One whose argument is made anew lends it, and has left the room: whoever makes it may need both.

What it does not do: decide who may read (`node.reading_room`); arguments of asyncio methods, whose loop must not stand still.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

from shoal import serialization
from shoal.protocol import errors
from shoal.protocol.memory_messages import ROOM_LEFT, ROOM_RUNS, ROOM_WAITS
from shoal.protocol.messages import AskRoom, Stored, UseRoom, Value
from shoal.runtime.stored import view_at_once

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.tasks import TaskContext

FULL_WAIT_S = 120.0  #: a task that could fit finds the store full for so long, again and again, before it fails
FULL_PAUSE_S = 0.05  #: before it asks again; the store itself looks for room for some seconds


class Room:
    """What a task may wait for its arguments by: what it has read of them, and its number at the daemon."""

    __slots__ = ("loaded", "number", "runtime")

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.number = 0  #: 0 while it has none
        self.loaded: list[Any] = []

    def ask(self, parts: list[tuple[bytes, int]]) -> None:
        """Wait until they may be read, with nothing in hand."""
        if self.runtime.store is not None:
            self.runtime.store.drain()

        def make(number: int) -> AskRoom:
            self.number = number
            return AskRoom(number, parts)

        try:
            self.runtime.request(make, None)
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Let go of everything: others may read."""
        self.loaded.clear()
        self.tell(ROOM_LEFT)
        self.number = 0
        if self.runtime.store is not None:
            self.runtime.store.drain()

    def tell(self, state: int) -> None:
        """Tell the daemon what the task does."""
        with self.runtime.reactor.lock:
            daemon = self.runtime.reactor.causal
            if self.number and daemon is not None:
                daemon.send_now(UseRoom(self.number, state))


class Arguments:
    """Reads the arguments of a worker's tasks. `load_value` reads one, however long it takes."""

    def __init__(self, runtime: Runtime, load_value: Callable[[Value], Any]) -> None:
        self.runtime = runtime
        self._load_value = load_value

    def load(self, context: TaskContext, values: Sequence[Value]) -> list[Any]:
        """The values of a task's arguments.

        Raises:
            ArgumentLost: one is not where it is said to be.
            ObjectStoreFullError: there is no room for all of them, whatever others let go, or they have not for FULL_WAIT_S.
            whatever stands in the place of one.
        """
        parts = [(value.oid, value.size) for value in values if type(value) is Stored]
        if len(parts) < 2:
            return [self._load_value(value) for value in values]
        loaded = self._load_at_once(values)
        if loaded is not None:
            return loaded
        room = context.room = Room(self.runtime)
        began = 0.0
        while True:
            context.loads_arguments = True  # the CPU is not lent
            room.ask(parts)
            context.loads_arguments = False
            try:
                complete = self._load_each(room, values)
            except errors.ObjectStoreFullError as error:
                # What others have in memory that the room does not know of, they let go one day, unless not even the whole store would do.
                began = began or perf_counter()
                fits = sum(dict(parts).values()) <= self.runtime.config["object_store_memory"]
                if not fits or perf_counter() - began >= FULL_WAIT_S or isinstance(error, errors.TaskError):
                    raise
                error.__traceback__ = None  # its frames hold what was read
                complete = False
            if complete:
                if context.lease is not None:
                    context.lease.rooms.append(room)
                loaded, room.loaded = room.loaded, []
                return loaded
            room.give_up()
            if began:
                sleep(FULL_PAUSE_S)

    def leave(self, context: TaskContext) -> None:
        """The task has ended."""
        room, context.room = context.room, None
        if room is not None:
            if context.lease is not None and room in context.lease.rooms:
                context.lease.rooms.remove(room)
            room.give_up()

    def _load_at_once(self, values: Sequence[Value]) -> list[Any] | None:
        """All of them, if none has to be waited for."""
        loaded: list[Any] = []
        for value in values:
            if type(value) is Stored:
                view = view_at_once(self.runtime, value)
                if view is None:
                    return None
                loaded.append(serialization.loads(view))
                del view
            else:
                loaded.append(self._load_value(value))
        return loaded

    def _load_each(self, room: Room, values: Sequence[Value]) -> bool:
        """All of them, one after the other; False when the room was given up meanwhile."""
        for value in values:
            room.loaded.append(self._load_value(value))
            if not room.number:
                return False
        return True


def tell_rooms(rooms: Sequence[Room], waits: bool) -> None:
    """The tasks of a lease, who hold their arguments, wait for others, or go on."""
    for room in rooms:
        room.tell(ROOM_WAITS if waits else ROOM_RUNS)

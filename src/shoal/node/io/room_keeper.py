"""The shell of `reading_room`: messages become its events, who is let in gets an Answer.

What it does not do: decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Any

from shoal.node.reading_room import Event, ReaderDied, ReadingRoom, RoomAsked, RoomUsed, Tick
from shoal.protocol.messages import Answer, AskRoom, UseRoom


class RoomKeeper:
    """Lets tasks read, on the daemon's event loop. `send` reaches a process of this node."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, capacity_bytes: int, send: Callable[[bytes, Any], None]
    ) -> None:
        self._loop = loop
        self._send = send
        self._machine = ReadingRoom(capacity_bytes)
        self._timer: asyncio.TimerHandle | None = None

    def on_ask(self, worker_id: bytes, message: AskRoom) -> None:
        """A task has to wait for some of its arguments."""
        self._feed(RoomAsked(worker_id, message.request, message.parts))

    def on_use(self, worker_id: bytes, message: UseRoom) -> None:
        """A task that asked does something else now."""
        self._feed(RoomUsed(worker_id, message.request, message.state))

    def process_died(self, worker_id: bytes) -> None:
        """A process is dead."""
        self._feed(ReaderDied(worker_id))

    def statistics(self) -> dict[str, int]:
        """Who reads and who waits to."""
        return self._machine.statistics()

    def _feed(self, event: Event) -> None:
        for admitted in self._machine.handle(event, self._loop.time()):
            self._send(admitted.process, Answer(admitted.number, None))
        if self._machine.tick_at != inf and self._timer is None:
            self._timer = self._loop.call_at(self._machine.tick_at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._feed(Tick())

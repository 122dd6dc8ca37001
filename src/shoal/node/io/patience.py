"""Tells a program what it waits for, when it waits long.

Purpose: a program that waits for resources which nobody gives back (actors hold them, or other jobs) looks like a hang. Its user is told who
waits, for what, and who holds it.

Design: a class or actor that holds nothing and was granted nothing for FIRST_S is worth a sentence to the drivers of its job, and again after
AGAIN_FACTOR times as long. While anybody waits there is a look every LOOK_S; otherwise no timer runs.

What it does not do: change anything about the waiting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.node.io.processes import ProcessTable
from shoal.protocol.messages import Notice
from shoal.scheduling.local_scheduler import LocalScheduler

if TYPE_CHECKING:
    import asyncio

FIRST_S = 10.0
LOOK_S = 2.0
AGAIN_FACTOR = 6


class Patience:
    """One node's watch over those who wait. `attend` whenever somebody may wait."""

    def __init__(self, machine: LocalScheduler, table: ProcessTable, loop: asyncio.AbstractEventLoop) -> None:
        self._machine = machine
        self._table = table
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        #: how long who waits must wait until the next sentence
        self._told_next_s: dict[tuple[bytes, int], float] = {}

    def attend(self) -> None:
        """Somebody may wait."""
        if self._timer is None and self._machine.is_waited_for():
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        stuck = self._machine.empty_handed(now, FIRST_S)
        for key, job_id, waited_s in stuck:
            told_next_s = self._told_next_s.get(key, FIRST_S)
            if waited_s >= told_next_s:
                self._told_next_s[key] = AGAIN_FACTOR * told_next_s
                self._tell(job_id, f"for {waited_s:.0f} s now, {self._machine.explain(*key)}")
        waiting = {key for key, _, _ in stuck}
        for key in [key for key in self._told_next_s if key not in waiting]:
            del self._told_next_s[key]
        self.attend()

    def _tell(self, job_id: bytes, text: str) -> None:
        for driver in self._table.drivers():
            if driver.job_id == job_id:
                driver.send(Notice("warning", text))

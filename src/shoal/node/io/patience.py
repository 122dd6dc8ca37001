"""Tells a program what it waits for, when it waits long.

Purpose: a program that waits for resources which nobody gives back (actors hold them, or other jobs) looks like a hang. Its user is told who
waits, for what, and who holds it.

Design: a class or actor that holds nothing and was granted nothing for FIRST_S is worth a sentence to the drivers of its job, and again after
AGAIN_FACTOR times as long. Those of the same name and need share one, with their number. Who only awaits a worker that is starting is told
nothing while others are granted theirs. While anybody waits there is a look every LOOK_S; otherwise no timer runs.

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
        #: (job, kind) -> how long one of them must wait until the next sentence
        self._told_next_s: dict[tuple[bytes, str], float] = {}
        #: leases granted at the last look, and when there were more than at the one before
        self._granted = (0, float("-inf"))

    def attend(self) -> None:
        """Somebody may wait."""
        if self._timer is None and self._machine.is_waited_for():
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        machine = self._machine
        granted = machine.granted_total()
        if granted != self._granted[0]:
            self._granted = (granted, now)
        proceeds = now - self._granted[1] < FIRST_S
        #: of each kind: the one that waits longest, for how long, and how many there are
        kinds: dict[tuple[bytes, str], tuple[tuple[bytes, int], float, int]] = {}
        for key, job_id, waited_s in machine.empty_handed(now, FIRST_S):
            if proceeds and machine.awaits_only_workers(*key):
                continue
            kind = (job_id, machine.kind_of(*key))
            first, longest_s, count = kinds.get(kind, (key, waited_s, 0))
            kinds[kind] = (first, longest_s, count + 1)
        for kind, (key, waited_s, count) in kinds.items():
            told_next_s = self._told_next_s.get(kind, FIRST_S)
            if waited_s >= told_next_s:
                self._told_next_s[kind] = AGAIN_FACTOR * told_next_s
                others = f" ({count - 1} more like it wait)" if count > 1 else ""
                self._tell(kind[0], f"for {waited_s:.0f} s now, {machine.explain(*key)}{others}")
        for kind in [kind for kind in self._told_next_s if kind not in kinds]:
            del self._told_next_s[kind]
        self.attend()

    def _tell(self, job_id: bytes, text: str) -> None:
        for driver in self._table.drivers():
            if driver.job_id == job_id:
                driver.send(Notice("warning", text))

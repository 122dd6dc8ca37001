"""Watches the memory of the node while workers run, and kills one before the kernel would.

Purpose: a program that needs too much memory gets an OutOfMemoryError that says who used how much, and the rest of the node lives on.

Design: a look every FAR_S, or NEAR_S once NEAR_SHARE is used or somebody has asked for `memory`, and none at all while no worker has a lease. What is
used is what the kernel could not give to anybody: the machine's total less `MemAvailable`, or the cgroup's charge less its inactive file cache,
whichever is nearer to its limit. Above `threshold` one worker dies (`memory_policy`), and the next look waits until it is gone. Whoever has
taken more than it asked for dies at once.

What it does not do: decide (`memory_policy`); see what is taken and given back between two looks.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from shoal.node.io.leases import Leases
from shoal.node.io.processes import Worker
from shoal.node.io.workers import WorkerPool
from shoal.node.memory_policy import Candidate, Loss, choose_victim, over_what_they_asked, taken_bytes
from shoal.system.machine import numbers_of, private_bytes

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("shoal.node")

THRESHOLD = 0.95
NEAR_SHARE = 0.8
NEAR_S = 0.1
FAR_S = 1.0
#: a killed worker's memory is gone after this
RECOVERY_S = 0.5
#: nobody else is killed while it is going, for so long
DYING_S = 5.0
CGROUP = "/sys/fs/cgroup/"
MB = 1 << 20

assert NEAR_S < RECOVERY_S < FAR_S and NEAR_SHARE < THRESHOLD


class MemoryWatch:
    """One node's guard. `attend` when a lease began; it stops looking by itself. A `threshold` of 0 or less switches it off, except for those who
    ask for memory."""

    def __init__(
        self, pool: WorkerPool, leases: Leases, loop: asyncio.AbstractEventLoop, threshold: float = THRESHOLD
    ) -> None:
        self._pool = pool
        self._leases = leases
        self._loop = loop
        self._threshold = threshold
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = 0.0  #: what the timer was set to
        self._killed_at = 0.0

    def attend(self) -> None:
        """Somebody works now."""
        asked = self._asked()
        if asked and self._timer is not None and self._pause_s > NEAR_S:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and (asked or self._threshold > 0):
            self._pause(NEAR_S if asked else FAR_S)

    def _asked(self) -> bool:
        return any(worker.memory_asked for worker in self._leases.workers.values())

    def _pause(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._timer = self._loop.call_later(pause_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._leases.workers:
            return
        asked = self._asked()
        if asked:
            self._kill_greedy()
        pause_s = NEAR_S if asked else FAR_S
        if self._threshold > 0:
            used, limit = memory_used()
            share = used / limit if limit else 0.0
            if self._somebody_dies():
                pause_s = NEAR_S  # and gives back what it holds
            elif share > self._threshold and self._kill_one(used, limit):
                pause_s = RECOVERY_S
            elif share > NEAR_SHARE:
                pause_s = NEAR_S
        elif not asked:
            return
        self._pause(pause_s)

    def _somebody_dies(self) -> bool:
        """Whether a worker that was killed has not gone yet: one in the midst of a system call may take its time, but not for ever."""
        dying = any(worker.out_of_memory for worker in self._leases.workers.values())
        return dying and self._loop.time() - self._killed_at < DYING_S

    def _workers(self) -> dict[bytes, Worker]:
        """Those that work and are not being killed."""
        return {worker.worker_id: worker for worker in self._leases.workers.values() if not worker.out_of_memory}

    def _kill_one(self, used: int, limit: int) -> bool:
        workers = self._workers()
        victim = choose_victim([candidate_of(worker) for worker in workers.values()], limit)
        if victim is None:
            return False
        self._kill(
            workers[victim.worker_id],
            f"killed because the node ran out of memory: {used // MB} of {limit // MB} MB were in use, more than "
            f"{self._threshold:.0%}, {victim.private_bytes // MB} MB of them by this worker. Use fewer workers at a time "
            "(num_cpus or memory of the task), or less memory in each",
        )
        return True

    def _kill_greedy(self) -> None:
        workers = {key: worker for key, worker in self._workers().items() if worker.memory_asked}
        for victim in over_what_they_asked([candidate_of(worker) for worker in workers.values()]):
            self._kill(
                workers[victim.worker_id],
                f"killed because it used {taken_bytes(victim) // MB} MB of memory, and had asked for "
                f"{victim.asked_bytes / MB:.4g} MB (memory={victim.asked_bytes}). Ask for more, or use less",
            )

    def _kill(self, worker: Worker, reason: str) -> None:
        worker.out_of_memory = True
        self._killed_at = self._loop.time()
        self._pool.kill(worker, reason)
        log.warning("worker %d was %s", worker.pid, reason)


def candidate_of(worker: Worker) -> Candidate:
    """A worker as the policy sees it."""
    if worker.actor_id:
        loss = Loss.RECOVERY if worker.recoverable else Loss.STATE if worker.restartable else Loss.ACTOR
    else:
        loss = Loss.TASK if worker.page is not None and worker.page.runs_once() else Loss.TIME
    return Candidate(
        worker.worker_id,
        worker.lease_id,
        loss,
        private_bytes(worker.pid),
        worker.memory_asked,
        worker.memory_before,
    )


def memory_threshold(options: dict[str, Any]) -> float:
    """The share of memory at which a worker is killed: the node's option, the environment's word, or THRESHOLD."""
    said = options.get("memory_usage_threshold", os.environ.get("SHOAL_MEMORY_USAGE_THRESHOLD", THRESHOLD))
    try:
        return float(said)
    except ValueError:
        log.error("SHOAL_MEMORY_USAGE_THRESHOLD is %r, which is no number: using %s", said, THRESHOLD)
        return THRESHOLD


def memory_used() -> tuple[int, int]:
    """(used, limit) in bytes, of the machine or of the cgroup, whichever is fuller; (0, 0) where the system does not say."""
    fields = numbers_of("/proc/meminfo")
    total = fields.get("MemTotal:", 0) << 10
    used = total - (fields.get("MemAvailable:", 0) << 10)
    try:
        with open(CGROUP + "memory.max", encoding="ascii") as file:
            limit = int(file.read())
        with open(CGROUP + "memory.current", encoding="ascii") as file:
            charged = int(file.read())
        charged -= numbers_of(CGROUP + "memory.stat").get("inactive_file", 0)
    except (OSError, ValueError):
        return used, total
    return (charged, limit) if charged * total > used * limit else (used, total)

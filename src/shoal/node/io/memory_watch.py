"""Watches the memory of the node while workers run, and kills one before the kernel would.

Purpose: a program that needs too much memory gets an OutOfMemoryError that says who used how much, and the rest of the node lives on.

Design: a look every FAR_S, or NEAR_S once NEAR_SHARE is used, and none at all while no worker has a lease. What is used is what the kernel
could not give to anybody: the machine's total less `MemAvailable`, or the cgroup's charge less its inactive file cache, whichever
is nearer to its limit. Above `threshold` one worker dies (`memory_policy`), and the next look waits until it is gone.

What it does not do: limit what a task that asked for `memory` uses; that is a promise for placement only.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from shoal.node.io.leases import Leases
from shoal.node.io.processes import Worker
from shoal.node.io.workers import WorkerPool
from shoal.node.memory_policy import Candidate, choose_victim

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("shoal.node")

THRESHOLD = 0.95
NEAR_SHARE = 0.8
NEAR_S = 0.1
FAR_S = 1.0
#: a killed worker's memory is gone after this
RECOVERY_S = 0.5
CGROUP = "/sys/fs/cgroup/"

assert NEAR_S < RECOVERY_S < FAR_S and NEAR_SHARE < THRESHOLD


class MemoryWatch:
    """One node's guard. `attend` when a lease began; it stops looking by itself. A `threshold` of 0 or less switches it off."""

    def __init__(
        self, pool: WorkerPool, leases: Leases, loop: asyncio.AbstractEventLoop, threshold: float = THRESHOLD
    ) -> None:
        self._pool = pool
        self._leases = leases
        self._loop = loop
        self._threshold = threshold
        self._timer: asyncio.TimerHandle | None = None

    def attend(self) -> None:
        """Somebody works now."""
        if self._timer is None and self._threshold > 0:
            self._timer = self._loop.call_later(FAR_S, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._leases.workers:
            return
        used, limit = memory_used()
        share = used / limit if limit else 0.0
        pause_s = NEAR_S if share > NEAR_SHARE else FAR_S
        if share > self._threshold and self._kill_one(used, limit):
            pause_s = RECOVERY_S
        self._timer = self._loop.call_later(pause_s, self._look)

    def _kill_one(self, used: int, limit: int) -> bool:
        workers: dict[bytes, Worker] = {worker.worker_id: worker for worker in self._leases.workers.values()}
        candidates = [
            Candidate(worker.worker_id, worker.lease_id, bool(worker.actor_id), private_bytes(worker.pid))
            for worker in workers.values()
        ]
        victim = choose_victim(candidates, limit)
        if victim is None:
            return False
        worker = workers[victim.worker_id]
        worker.out_of_memory = True
        mb = 1 << 20
        self._pool.kill(
            worker,
            f"killed because the node ran out of memory: {used // mb} of {limit // mb} MB were in use, "
            f"{victim.private_bytes // mb} MB of them by this worker. Use fewer workers at a time (num_cpus or memory "
            "of the task), or less memory in each",
        )
        log.warning("worker %d was killed: %d of %d MB of memory were in use", worker.pid, used // mb, limit // mb)
        return True


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
    fields = _fields("/proc/meminfo")
    total = fields.get("MemTotal:", 0) << 10
    used = total - (fields.get("MemAvailable:", 0) << 10)
    try:
        with open(CGROUP + "memory.max", encoding="ascii") as file:
            limit = int(file.read())
        with open(CGROUP + "memory.current", encoding="ascii") as file:
            charged = int(file.read())
        charged -= _fields(CGROUP + "memory.stat").get("inactive_file", 0)
    except (OSError, ValueError):
        return used, total
    return (charged, limit) if charged * total > used * limit else (used, total)


def private_bytes(pid: int) -> int:
    """What the death of a process would give back: its anonymous memory and its swap."""
    fields = _fields(f"/proc/{pid}/status")
    return (fields.get("RssAnon:", 0) + fields.get("VmSwap:", 0)) << 10


def _fields(path: str) -> dict[str, int]:
    """The lines of a file of "name number" as a dict; empty when it cannot be read."""
    found: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split()
                if len(words) > 1 and words[1].isdigit():
                    found[words[0]] = int(words[1])
    except OSError:
        pass
    return found

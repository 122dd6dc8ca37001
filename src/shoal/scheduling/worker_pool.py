"""The worker processes of a node: which are idle, how many are starting, when to start and stop some.

Purpose: bookkeeping of workers for the local scheduler.

Design: workers are pooled by environment key; a worker serves only its own. A worker's life:

    (starting, a number) --WorkerReady--> idle <--> leased --> leaving (LeaseFinished(exiting), or stopped when surplus) --> dead
                                            +-----> an actor's, until it dies

An idle worker is chosen by acquaintance (the submitter that had it last is still connected to it), else the one that ran last, which
is warm; the one idle longest stops first. The plain pool keeps some warm: what the CPUs could use now, and WORKER_SPARES.

A start that fails is tried again after a pause that doubles, one at a time; after START_FAILURES_MAX failed rounds with no living
worker in that pool, those who wait for it are told.

What it does not do: start or stop anything (the scheduler returns effects), or know resources.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import islice

from shoal.protocol.limits import WORKER_IDLE_S, WORKER_SPARES
from shoal.scheduling.events import Environment, environment_key_of

WORKERS_WARM_MAX = 8  #: at most so many are kept for idle CPUs, besides the spares
WORKERS_MAX = 10_000  #: a node never has more
ACQUAINTANCE_SEARCH = 8  #: idle workers looked at for one that the submitter knows
START_PAUSE_S = 0.1
START_PAUSE_MAX_S = 5.0
START_FAILURES_MAX = 5


@dataclass(slots=True, eq=False)
class Worker:
    """One registered worker process."""

    worker_id: bytes
    pool: EnvironmentPool
    lease_id: int = 0  #: what it serves, 0 for nothing
    leaving: bool = False  #: never used again
    last_process: bytes = b""  #: the submitter of its last lease
    idle_since: float = 0.0


@dataclass(slots=True, eq=False)
class EnvironmentPool:
    """The workers of one environment."""

    key: str
    environment: Environment
    #: ready and without a lease; the one idle longest first
    idle: dict[bytes, Worker] = field(default_factory=dict)
    starting: int = 0
    serving: int = 0  #: with a lease or an actor
    waiting: int = 0  #: scheduling classes that wait for a worker of this pool
    failures: int = 0  #: failed rounds of starting since the last success
    retry_at: float = -math.inf
    failure: str = ""  #: the last reason


class WorkerPool:
    """All workers of a node."""

    __slots__ = ("cpus", "plain", "pools", "starts_max", "workers", "workers_max")

    def __init__(self, cpus: int, workers_max: int = WORKERS_MAX) -> None:
        """`cpus`: whole CPUs of the node, which bound how many start at once."""
        self.cpus = cpus
        self.workers_max = workers_max
        self.starts_max = 2 * cpus + 4
        #: every registered worker that is not known dead
        self.workers: dict[bytes, Worker] = {}
        self.plain = EnvironmentPool("", {})
        self.pools: dict[str, EnvironmentPool] = {"": self.plain}

    def pool_of(self, environment: Environment) -> EnvironmentPool:
        """The pool for `environment`, made when it is new."""
        if not environment:
            return self.plain
        key = environment_key_of(environment)
        pool = self.pools.get(key)
        if pool is None:
            pool = self.pools[key] = EnvironmentPool(key, environment)
        return pool

    def ready(self, worker_id: bytes, key: str, now: float) -> None:
        """A worker has registered."""
        assert worker_id not in self.workers, f"worker {worker_id.hex()} registered twice"
        pool = self.pools.get(key)
        if pool is None:  # those who wanted it are gone; it will stop as surplus
            pool = self.pools[key] = EnvironmentPool(key, {})
        pool.starting = max(0, pool.starting - 1)
        pool.failures = 0
        worker = Worker(worker_id, pool, idle_since=now)
        self.workers[worker_id] = worker
        pool.idle[worker_id] = worker

    def start_failed(self, key: str, reason: str, now: float) -> EnvironmentPool | None:
        """A worker did not come up. Returns its pool when nobody should wait for it any longer."""
        pool = self.pools.get(key)
        if pool is None:
            return None
        pool.starting = max(0, pool.starting - 1)
        pool.failure = reason
        if now >= pool.retry_at:  # those started together fail together: that is one failure
            pool.retry_at = now + min(START_PAUSE_S * 2**pool.failures, START_PAUSE_MAX_S)
            pool.failures += 1
        if pool.failures >= START_FAILURES_MAX and not pool.idle and not pool.serving and not pool.starting:
            pool.failures = 0
            return pool
        return None

    def take(self, pool: EnvironmentPool, process: bytes, lease_id: int) -> Worker:
        """An idle worker of `pool` for `process`."""
        chosen = None
        for worker in islice(reversed(pool.idle.values()), ACQUAINTANCE_SEARCH):
            if worker.last_process == process:
                chosen = worker
                break
            if chosen is None:
                chosen = worker
        assert chosen is not None
        del pool.idle[chosen.worker_id]
        pool.serving += 1
        chosen.lease_id = lease_id
        chosen.last_process = process
        return chosen

    def give_back(self, worker: Worker, exiting: bool, now: float) -> None:
        """`worker` serves nothing any more; with `exiting` it never will."""
        assert worker.lease_id
        worker.lease_id = 0
        worker.pool.serving -= 1
        if exiting:
            worker.leaving = True
        else:
            worker.idle_since = now
            worker.pool.idle[worker.worker_id] = worker

    def died(self, worker_id: bytes) -> Worker | None:
        """Forget a worker; what it served is the caller's to free."""
        worker = self.workers.pop(worker_id, None)
        if worker is not None:
            worker.pool.idle.pop(worker_id, None)
            if worker.lease_id:
                worker.pool.serving -= 1
        return worker

    def count_starts(self, pool: EnvironmentPool, wanted: int, running: int, now: float) -> int:
        """How many workers to start in `pool` now, and count them as starting.

        `wanted` requests could be granted at once if there were workers; `running` leases use CPUs now.
        """
        target = wanted
        if pool is self.plain:
            target += max(0, self.spares(running + wanted) - len(pool.idle))  # those wanted will use CPUs themselves
        elif pool.waiting and not pool.idle:
            target = max(wanted, 1)
        if target <= pool.starting or now < pool.retry_at:
            return 0
        limit = 1 if pool.failures else self.starts_max
        room = self.workers_max - len(self.workers) - sum(each.starting for each in self.pools.values())
        count = max(0, min(target - pool.starting, limit - pool.starting, room))
        pool.starting += count
        return count

    def spares(self, running: int) -> int:
        """How many idle plain workers are worth keeping while `running` leases use CPUs."""
        return max(0, min(self.cpus, WORKERS_WARM_MAX) - running) + WORKER_SPARES

    def stop_surplus(self, running: int, now: float) -> list[Worker]:
        """Workers that were idle too long and are not worth keeping: they count as leaving from now on."""
        stopped = []
        for pool in list(self.pools.values()):
            surplus = self._surplus(pool, running)
            for worker in list(islice(pool.idle.values(), max(0, surplus))):
                if worker.idle_since + WORKER_IDLE_S > now:
                    break
                del pool.idle[worker.worker_id]
                worker.leaving = True
                stopped.append(worker)
            if pool is not self.plain and not (pool.idle or pool.serving or pool.starting or pool.waiting):
                del self.pools[pool.key]
        return stopped

    def wake_at(self, running: int, now: float) -> float:
        """When `stop_surplus` or `count_starts` may have something to do, if nothing else happens; infinity for never."""
        wake_at = math.inf
        for pool in self.pools.values():
            if pool.idle and self._surplus(pool, running) > 0:
                wake_at = min(wake_at, next(iter(pool.idle.values())).idle_since + WORKER_IDLE_S)
            if pool.failures and pool.retry_at > now:
                wake_at = min(wake_at, pool.retry_at)
        return wake_at

    def _surplus(self, pool: EnvironmentPool, running: int) -> int:
        return len(pool.idle) - (self.spares(running) if pool is self.plain else 0)

"""Who waits for workers, in which order.

Purpose: the waiting side of the local scheduler, kept sorted so that choosing the next grant looks at a few heads, not at everybody.

Design: a *scheduling class* is all tasks of one submitter that any worker granted to it may run; an actor waiting for its worker is
one too, and so is a bundle of a placement group that waits to be reserved. Classes of one job with the same needs and environment share a
*lane*: when one of them cannot be served now, none can.

    RequestQueue -- jobs --> JobQueue -- lanes --> Lane -- entries --> [(-depth, running, turn, class), ...]   best first

`running` is the number of leases that the class has and that are not blocked: among equally deep classes the poorest comes first.
A turn is a number that only grows: a class gets a new one when it begins to wait and at every grant, so equals take turns.
Actors come before all tasks of their job.

What it does not do: know what is free (`grant_policy` compares), or change anything by itself.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import takewhile
from typing import Any

from shoal.protocol.resources import ACCELERATOR_RESOURCES, CPU, Resources
from shoal.scheduling.bundles import ANY_BUNDLE, Bundle, BundleKey, base_name
from shoal.scheduling.events import Environment
from shoal.scheduling.offers import WaitingTasks, side_by_side
from shoal.scheduling.worker_pool import EnvironmentPool

ACTOR_DEPTH = 1 << 30  #: actors stand before all tasks of their job
ACTOR_CLASS_NO = -1
BUNDLE_CLASS_NO = -2


@dataclass(slots=True, eq=False)
class JobQueue:
    """One job's waiting classes and what it holds."""

    job_id: bytes
    #: units of CPU held by the job's leases and actors now, without what blocked ones have lent
    cpu_granted: int = 0
    #: turn of the job's last grant; among jobs that hold equally much the one served longest ago comes first
    last_turn: int = 0
    #: classes and leases that refer to this job; at 0 it is forgotten
    references: int = 0
    #: only lanes that have entries
    lanes: dict[tuple[Any, ...], Lane] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Lane:
    """The waiting classes of one job that need the same: `entries` is sorted, best first."""

    job: JobQueue
    key: tuple[Any, ...]
    need: Resources
    pool: EnvironmentPool
    #: whether free amounts are not enough and ids must be free too
    accelerated: bool
    #: the resource looked at first: the scarce one at the last look
    probe: str
    probe_units: int
    entries: list[Entry] = field(default_factory=list)
    #: any bundle of this group will do, and `need` is for the one aimed at; b"": not so
    group_id: bytes = b""
    asked: Resources = field(default_factory=dict)  #: of any bundle

    def aim(self, bundle: Bundle) -> None:
        """From now on all who wait here ask for a part of `bundle`."""
        self.need = bundle.inside(self.asked)
        for entry in self.entries:
            entry[3].aim(bundle)


@dataclass(slots=True, eq=False)
class SchedulingClass:
    """What one submitter asked for and has, or one actor that waits. It lives while `backlog` or `leases` is positive."""

    key: tuple[bytes, int]  #: (process, class_no), (actor id, ACTOR_CLASS_NO), or (group id and index, BUNDLE_CLASS_NO)
    job: JobQueue
    need: Resources  #: must be free to be granted
    hold: Resources  #: is taken by a grant; more than `need` in nothing
    depth: int
    pool: EnvironmentPool
    environment: Environment
    strategy: dict[str, Any]
    name: str
    incarnation: int = -1  #: of the actor; -1 for tasks
    task_s: float = 0.0  #: how long its tasks take; 0: not known
    backlog: int = 0  #: leases wanted in addition to those held
    leases: int = 0  #: held now
    blocked: int = 0  #: of these, blocked
    entry: Entry | None = None  #: its place in its lane while it waits
    waiting_since: float = 0.0  #: of its first, or since its last grant
    grant_after: float = 0.0  #: not before this (a class that grows beyond the CPUs grows slowly)
    lane: Lane | None = None  #: while it waits
    rests_until: float = 0.0  #: no reservation for it before this
    patience_s: float = 0.0  #: how long its last reservation was, 0 for none since its last grant
    group_id: bytes = b""  #: the placement group in which it runs; b"": in none
    bundle: int = ANY_BUNDLE  #: the index of its bundle there
    asked: Resources = field(default_factory=dict)  #: `need` outside of bundles
    keeps: Resources = field(default_factory=dict)  #: `hold` outside of bundles
    cpu: str = CPU  #: the name of the CPU that it holds
    slices: int = (
        1  #: its leases are left alone for so many LEASE_SLICE_S; more while they end before anything has come to run
    )

    @property
    def is_actor(self) -> bool:
        """Whether this is an actor's placement."""
        return self.incarnation >= 0

    @property
    def is_bundle(self) -> bool:
        """Whether this is a bundle to be reserved."""
        return self.key[1] == BUNDLE_CLASS_NO

    @property
    def is_task(self) -> bool:
        """Whether tasks wait."""
        return self.key[1] >= 0

    def aim(self, bundle: Bundle) -> None:
        """From now on it asks for a part of `bundle`."""
        self.need, self.hold, self.cpu = bundle.inside(self.asked), bundle.inside(self.keeps), bundle.cpu


def waiter_key(bundle: BundleKey) -> tuple[bytes, int]:
    """The key of the class in which a bundle waits."""
    return bundle[0] + bundle[1].to_bytes(4, "big"), BUNDLE_CLASS_NO


def bundle_key(waiter: SchedulingClass) -> BundleKey:
    """The bundle that waits in a class."""
    return waiter.key[0][:-4], int.from_bytes(waiter.key[0][-4:], "big")


#: (-depth, running, turn, class): the turn differs always, so classes are never compared
Entry = tuple[int, int, int, SchedulingClass]


class RequestQueue:
    """All that wait. `jobs` and `waiting` are read by the policy; only the methods change them."""

    __slots__ = ("_turn", "jobs", "waiting")

    def __init__(self) -> None:
        #: jobs that wait or hold, in order of first appearance
        self.jobs: dict[bytes, JobQueue] = {}
        #: classes that wait, in order of `waiting_since`
        self.waiting: dict[tuple[bytes, int], SchedulingClass] = {}
        self._turn = 0

    def refer(self, job_id: bytes) -> JobQueue:
        """The job's queue, with one more reference."""
        job = self.jobs.get(job_id)
        if job is None:
            job = self.jobs[job_id] = JobQueue(job_id)
        job.references += 1
        return job

    def release(self, job: JobQueue) -> None:
        """One reference fewer."""
        job.references -= 1
        assert job.references >= 0
        if not job.references:
            assert not job.lanes and not job.cpu_granted, f"job {job.job_id.hex()} is forgotten with something left"
            del self.jobs[job.job_id]

    def push(self, waiter: SchedulingClass, now: float) -> None:
        """`waiter` begins to wait."""
        assert waiter.lane is None and waiter.backlog > 0
        waiter.waiting_since = now
        waiter.pool.waiting += 1
        self.waiting[waiter.key] = waiter
        self._enter(waiter)

    def withdraw(self, waiter: SchedulingClass) -> None:
        """`waiter` waits no more."""
        waiter.pool.waiting -= 1
        del self.waiting[waiter.key]
        self._leave(waiter)

    def granted(self, waiter: SchedulingClass, now: float) -> None:
        """`waiter` got one of what it waits for: it goes behind its equals, or waits no more."""
        waiter.backlog -= 1
        self._turn += 1
        waiter.job.last_turn = self._turn
        if not waiter.backlog:
            self.withdraw(waiter)
            return
        waiter.waiting_since = now
        waiter.patience_s = 0.0
        del self.waiting[waiter.key]
        self.waiting[waiter.key] = waiter
        self._place(waiter, self._turn)

    def leases_changed(self, waiter: SchedulingClass) -> None:
        """One of the leases of `waiter` ended, blocked or went on."""
        if waiter.entry is not None:
            self._place(waiter, waiter.entry[2])

    def in_order(self) -> Iterator[SchedulingClass]:
        """Everybody, in the order in which they would be served if everything fitted."""
        for job in self.jobs_in_order():
            lanes = [lane.entries for lane in job.lanes.values()]
            for entry in lanes[0] if len(lanes) == 1 else merge(*lanes):
                yield entry[3]

    def waiting_tasks(self, total: Resources, now: float, waited_s: float) -> list[WaitingTasks]:
        """The classes of tasks outside of placement groups that wait on a node that has `total`: all in the order of service, or those that were
        granted nothing for `waited_s`, longest first."""
        chosen: Iterable[SchedulingClass] = self.in_order()
        if waited_s:  # they stand in the order of `waiting_since`
            chosen = takewhile(lambda each: now - each.waiting_since >= waited_s, self.waiting.values())
        return [
            WaitingTasks(
                each.key,
                each.backlog,
                each.task_s,
                side_by_side(each.need, total),
                each.leases - each.blocked,
                now - each.waiting_since,
            )
            for each in chosen
            if each.is_task and not each.group_id
        ]

    def jobs_in_order(self) -> list[JobQueue]:
        """Jobs with waiting classes: those that hold the fewest CPUs first, then those served longest ago."""
        jobs = [job for job in self.jobs.values() if job.lanes]
        if len(jobs) > 1:
            jobs.sort(key=_job_order)
        return jobs

    def empty_handed(self, now: float, after_s: float) -> list[tuple[tuple[bytes, int], bytes, float]]:
        """Who holds nothing and was granted nothing for `after_s`: (key, job, seconds), longest first."""
        found = []
        for key, waiter in self.waiting.items():
            waited_s = now - waiter.waiting_since
            if waited_s < after_s:
                break  # they stand in the order of `waiting_since`
            if not waiter.leases:
                found.append((key, waiter.job.job_id, waited_s))
        return found

    def demands(self, limit: int) -> list[tuple[Resources, int]]:
        """What the first `limit` who wait ask for, and how often."""
        found: list[tuple[Resources, int]] = []
        for waiter in self.waiting.values():
            if len(found) == limit:
                break
            if not waiter.group_id and not waiter.is_bundle:
                found.append((dict(waiter.need), waiter.backlog))
        return found

    def _enter(self, waiter: SchedulingClass) -> None:
        self._turn += 1
        wild = bool(waiter.group_id) and waiter.bundle == ANY_BUNDLE
        key: tuple[Any, ...] = (waiter.pool.key, *sorted(waiter.need.items()))
        if wild:
            key = (waiter.pool.key, waiter.group_id, *sorted(waiter.asked.items()))
        lanes = waiter.job.lanes
        lane = lanes.get(key)
        if lane is None:
            need = waiter.need
            accelerated = any(base_name(name) in ACCELERATOR_RESOURCES for name in need)
            lane = Lane(waiter.job, key, need, waiter.pool, accelerated, waiter.cpu, need.get(waiter.cpu, 0))
            if wild:
                lane.probe, lane.probe_units = "", 0
                lane.group_id, lane.asked = waiter.group_id, waiter.asked
            lanes[key] = lane
        waiter.lane = lane
        self._place(waiter, self._turn)

    def _place(self, waiter: SchedulingClass, turn: int) -> None:
        """Put `waiter` where it belongs in its lane now."""
        lane = waiter.lane
        assert lane is not None
        entries = lane.entries
        entry = (-waiter.depth, waiter.leases - waiter.blocked, turn, waiter)
        if waiter.entry is not None:
            if len(entries) == 1:
                entries[0] = waiter.entry = entry
                return
            del entries[bisect_left(entries, waiter.entry)]
        waiter.entry = entry
        insort(entries, entry)

    def _leave(self, waiter: SchedulingClass) -> None:
        lane = waiter.lane
        assert lane is not None and waiter.entry is not None
        entries = lane.entries
        del entries[bisect_left(entries, waiter.entry)]
        if not entries:
            del lane.job.lanes[lane.key]
        waiter.lane = waiter.entry = None


def _job_order(job: JobQueue) -> tuple[int, int]:
    return job.cpu_granted, job.last_turn

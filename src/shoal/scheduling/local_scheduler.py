"""The local scheduler of a node: leases on workers, for tasks and actors, within the node's resources.

Purpose: the machine behind RequestLeases and CreateActor. It sees leases and backlogs, never single tasks.

Design: one door, `handle(event, now) -> list[Effect]`; afterwards the shell reads `tick_at` and sends a Tick at that time. The parts:

    request_queue   who waits, in which order          grant_policy   who is next, who must end, who starved
    worker_pool     which workers there are            protocol.resources   what is free, which accelerators

A lease's life:

    (wanted) --GrantLease--> held <--WorkerBlocked / WorkerUnblocked--> held, CPUs lent
                              | RevokeLease (others wait; LeaseReturned; ProcessDied)
                              v
                            ending --LeaseFinished--> resources and worker are free      (WorkerDied at any time: the same, no worker)

An actor's lease is like that, but ends only with its worker and is never revoked.

Invariants (`check` tests them): what leases hold (without what is lent) and what is available is the total; a lease has a live worker
of its environment and a worker one lease; CPU alone may be available in the negative, by blocked leases that went on, and
then nothing that needs CPU is granted.

How to extend: a new event is a row of `_handlers` and a method; a new rule of who goes first belongs into `grant_policy`.

What it does not do: clocks, sockets, processes; deciding between nodes; killing what a dead driver left running (`workers_of_job`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.protocol.limits import RESOURCE_UNIT
from shoal.protocol.resources import (
    ACCELERATOR_RESOURCES,
    CPU,
    AcceleratorPool,
    Resources,
    add,
    fits,
    format_resources,
    subtract,
)
from shoal.scheduling.events import (
    REVOKED_DRAINING,
    REVOKED_RETURNED,
    REVOKED_SLICE,
    REVOKED_SUBMITTER_DIED,
    ActorPlacementRequested,
    ActorPlacementWithdrawn,
    AssignActor,
    Effect,
    Event,
    GrantLease,
    LeaseFinished,
    LeaseReturned,
    LeasesRequested,
    NodeDrains,
    ProcessDied,
    RefuseActor,
    RefuseClass,
    RevokeLease,
    StartWorkers,
    StopWorker,
    Tick,
    WorkerBlocked,
    WorkerDied,
    WorkerReady,
    WorkerStartFailed,
    WorkerUnblocked,
)
from shoal.scheduling.explanation import awaits_only_workers, explain_waiting
from shoal.scheduling.grant_policy import (
    GROWTH_PAUSE_S,
    Lease,
    NodeView,
    choose_next,
    choose_reservations,
    choose_victims,
    count_lacking_workers,
)
from shoal.scheduling.request_queue import ACTOR_CLASS_NO, ACTOR_DEPTH, RequestQueue, SchedulingClass
from shoal.scheduling.worker_pool import WORKERS_MAX, EnvironmentPool, WorkerPool

TICK_S = 0.005  #: between ticks while somebody waits
TICK_SLOW_S = 0.16  #: the same after a long time in which nothing changed
LEASE_TIME_WEIGHT = 0.1  #: of the newest lease in the average
QUIET_TICKS = 16  #: ticks without an effect before they slow down: more than the longest slice

#: events after which somebody may lack what others hold
_PLANNING = frozenset({LeasesRequested, ActorPlacementRequested, Tick})

Handler = Callable[[Any, float, list[Effect]], None]


@dataclass(slots=True)
class SchedulerStatistics:
    """The local scheduler at a glance. `_total` counts since the start."""

    leases: int
    leases_blocked: int
    leases_ending: int
    actors: int
    classes_waiting: int
    tasks_waiting: int
    actors_waiting: int
    workers_idle: int
    workers_starting: int
    workers_serving: int
    granted_total: int
    revoked_total: int


class LocalScheduler:
    """The machine. `tick_at` is when it wants its next Tick (same clock as `now`): infinity for never."""

    def __init__(
        self,
        total: Resources,
        accelerator_ids: Mapping[str, Sequence[int]] | None = None,
        *,
        workers_max: int = WORKERS_MAX,
    ) -> None:
        """`total`: what the node has, in units. `accelerator_ids`: 0, 1, ... for every accelerator that is not named there."""
        ids = {
            name: list(range(-(-units // RESOURCE_UNIT)))
            for name, units in total.items()
            if name in ACCELERATOR_RESOURCES
        }
        ids.update({name: list(numbers) for name, numbers in (accelerator_ids or {}).items()})
        cpus = max(1, total.get(CPU, 0) // RESOURCE_UNIT)
        self._view = NodeView(dict(total), dict(total), AcceleratorPool(ids), cpus)
        self._queue = RequestQueue()
        self._pool = WorkerPool(cpus, workers_max)
        #: every class that waits or holds leases
        self._classes: dict[tuple[bytes, int], SchedulingClass] = {}
        #: all leases by id, and three disjoint parts of them; actors' unblocked leases are in none
        self._leases: dict[int, Lease] = {}
        self._active: dict[int, Lease] = {}  #: may be revoked: a task's, not blocked, not revoked
        self._ending: dict[int, Lease] = {}  #: revoked
        #: by submitter, its leases (tasks only)
        self._leases_of: dict[bytes, dict[int, Lease]] = {}
        self._held_by_actors: Resources = {}
        self._last_lease_id = 0
        self._running = 0  #: unblocked leases that hold CPU
        self._blocked = 0
        self._actors = 0
        #: how long tasks' leases last, an exponential average; 0 before the first one ended
        self.lease_time_s = 0.0
        self._granted_total = 0
        self._revoked_total = 0
        self._quiet_ticks = 0
        self._draining = ""  #: why the node takes nothing new; "" while it does
        self.tick_at = -math.inf  #: the first tick starts the warm workers
        self._handlers: dict[type, Handler] = {
            LeasesRequested: self._on_leases_requested,
            LeaseReturned: self._on_lease_returned,
            LeaseFinished: self._on_lease_finished,
            WorkerReady: self._on_worker_ready,
            WorkerDied: self._on_worker_died,
            WorkerStartFailed: self._on_worker_start_failed,
            ProcessDied: self._on_process_died,
            WorkerBlocked: self._on_worker_blocked,
            WorkerUnblocked: self._on_worker_unblocked,
            ActorPlacementRequested: self._on_actor_placement_requested,
            ActorPlacementWithdrawn: self._on_actor_placement_withdrawn,
            NodeDrains: self._on_node_drains,
            Tick: self._on_tick,
        }

    def handle(self, event: Event, now: float) -> list[Effect]:
        """The one door: `event` happened at `now` (seconds, monotonic). The effects are to be performed in order."""
        effects: list[Effect] = []
        kind = type(event)
        self._handlers[kind](event, now, effects)
        self._settle(kind, now, effects)
        return effects

    # ------------------------------------------------------------ requests

    def _on_leases_requested(self, event: LeasesRequested, now: float, effects: list[Effect]) -> None:
        key = (event.process, event.class_no)
        known = self._classes.get(key)
        if known is not None:
            if known.hold == event.demand and known.depth == event.depth and known.environment == event.environment:
                self._set_backlog(known, event.backlog, now)
                return
            self._set_backlog(known, 0, now)  # its leases end by themselves; the number now means something else
            self._classes.pop(key, None)
        if event.backlog <= 0:
            return
        reason = self._infeasible(event.demand, event.name or "the task")
        if reason:
            effects.append(RefuseClass(event.process, event.class_no, reason))
            return
        waiter = SchedulingClass(
            key,
            self._queue.refer(event.job_id),
            event.demand,
            event.demand,
            event.depth,
            self._pool.pool_of(event.environment),
            event.environment,
            event.strategy,
            event.name,
        )
        self._classes[key] = waiter
        self._set_backlog(waiter, event.backlog, now)

    def _on_actor_placement_requested(self, event: ActorPlacementRequested, now: float, effects: list[Effect]) -> None:
        self._withdraw_actor(event.actor_id)
        need = {name: max(units, event.demand.get(name, 0)) for name, units in event.placement.items()}
        need = {**event.demand, **need}
        reason = self._infeasible(need, event.name or "the actor")
        if reason:
            effects.append(RefuseActor(event.actor_id, event.incarnation, reason))
            return
        waiter = SchedulingClass(
            (event.actor_id, ACTOR_CLASS_NO),
            self._queue.refer(event.job_id),
            need,
            event.demand,
            ACTOR_DEPTH,
            self._pool.pool_of(event.environment),
            event.environment,
            event.strategy,
            event.name,
            event.incarnation,
        )
        self._classes[waiter.key] = waiter
        self._set_backlog(waiter, 1, now)

    def _on_actor_placement_withdrawn(self, event: ActorPlacementWithdrawn, now: float, effects: list[Effect]) -> None:
        self._withdraw_actor(event.actor_id)

    def _withdraw_actor(self, actor_id: bytes) -> None:
        waiter = self._classes.get((actor_id, ACTOR_CLASS_NO))
        if waiter is not None:
            self._set_backlog(waiter, 0, 0.0)

    def _set_backlog(self, waiter: SchedulingClass, backlog: int, now: float) -> None:
        """Wait, wait no more, or wait for another number."""
        if waiter.lane is not None:
            if backlog > 0:
                waiter.backlog = backlog
            else:
                waiter.backlog = 0
                self._queue.withdraw(waiter)
                self._maybe_forget(waiter)
        elif backlog > 0:
            waiter.backlog = backlog
            self._queue.push(waiter, now)

    def _maybe_forget(self, waiter: SchedulingClass) -> None:
        """Drop a class that neither waits nor holds."""
        if waiter.lane is None and not waiter.leases:
            if self._classes.get(waiter.key) is waiter:
                del self._classes[waiter.key]
            self._queue.release(waiter.job)

    def _infeasible(self, need: Resources, name: str) -> str:
        """Why this node can never give `need`, or "" when it can."""
        if self._draining:
            return f"{name} was not taken: {self._draining}"
        total = self._view.total
        if fits(need, total):
            return ""
        missing = {each: units - total.get(each, 0) for each, units in need.items() if units > total.get(each, 0)}
        return (
            f"{name} asks for {format_resources(need)}, but this node has {format_resources(total)} in total: "
            f"it lacks {format_resources(missing)}. Ask for less, or give the node more at init()."
        )

    def _on_node_drains(self, event: NodeDrains, now: float, effects: list[Effect]) -> None:
        """Who waits goes elsewhere; who works here finishes what it has begun."""
        self._draining = f"this node drains and takes no new work ({event.reason})"
        self._refuse_waiting(list(self._queue.waiting.values()), self._draining, effects)
        for lease in list(self._leases.values()):
            self._revoke(lease, REVOKED_DRAINING, now, effects)

    # ------------------------------------------------------------ leases

    def _grant(self, waiter: SchedulingClass, now: float, effects: list[Effect]) -> None:
        """Give `waiter` one lease on an idle worker of its environment; the policy has made sure that it fits."""
        view = self._view
        hold = waiter.hold
        assigned = view.accelerators.assign(hold)
        assert assigned is not None
        subtract(view.available, hold)
        self._last_lease_id = lease_id = self._last_lease_id + 1
        process, number = waiter.key
        worker = self._pool.take(waiter.pool, process, lease_id)
        cpu_units = hold.get(CPU, 0)
        lease = Lease(lease_id, waiter, worker, hold, cpu_units, assigned, now)
        self._leases[lease_id] = lease
        waiter.job.cpu_granted += cpu_units
        waiter.job.references += 1
        waiter.leases += 1
        self._granted_total += 1
        if cpu_units:
            self._running += 1
        if waiter.leases - waiter.blocked >= view.cpus:
            waiter.grant_after = now + GROWTH_PAUSE_S
        self._queue.granted(waiter, now)
        job_id = waiter.job.job_id
        environment = waiter.environment
        if waiter.incarnation >= 0:
            self._actors += 1
            add(self._held_by_actors, hold)
            del self._classes[waiter.key]
            effects.append(
                AssignActor(
                    process, waiter.incarnation, lease_id, worker.worker_id, job_id, hold, assigned, environment
                )
            )
            return
        self._active[lease_id] = lease
        of_process = self._leases_of.get(process)
        if of_process is None:
            of_process = self._leases_of[process] = {}
        of_process[lease_id] = lease
        effects.append(
            GrantLease(process, number, lease_id, worker.worker_id, job_id, hold, assigned, environment, waiter.depth)
        )

    def _free(self, lease: Lease) -> None:
        """The lease is over: give back what it holds. Its worker is the caller's."""
        view = self._view
        lease_id = lease.lease_id
        holder = lease.holder
        del self._leases[lease_id]
        self._active.pop(lease_id, None)
        self._ending.pop(lease_id, None)
        add(view.available, lease.held())
        view.accelerators.release(lease.hold, lease.assigned)
        if lease.blocked:
            self._blocked -= 1
            holder.blocked -= 1
        elif lease.cpu_units:
            self._running -= 1
            holder.job.cpu_granted -= lease.cpu_units
        holder.leases -= 1
        self._queue.leases_changed(holder)
        if holder.is_actor:
            self._actors -= 1
            subtract(self._held_by_actors, lease.hold)
        else:
            process = holder.key[0]
            of_process = self._leases_of[process]
            del of_process[lease_id]
            if not of_process:
                del self._leases_of[process]
        self._queue.release(holder.job)
        self._maybe_forget(holder)

    def _revoke(self, lease: Lease, reason: str, now: float, effects: list[Effect]) -> None:
        """Ask the worker to end a task's lease, once."""
        if lease.revoked or lease.holder.is_actor:
            return
        lease.revoked = True
        lease.revoked_at = now
        self._active.pop(lease.lease_id, None)
        self._ending[lease.lease_id] = lease
        self._revoked_total += 1
        effects.append(RevokeLease(lease.worker.worker_id, lease.lease_id, reason))

    def _on_lease_returned(self, event: LeaseReturned, now: float, effects: list[Effect]) -> None:
        lease = self._leases.get(event.lease_id)
        if lease is not None:
            self._revoke(lease, REVOKED_RETURNED, now, effects)

    def _on_lease_finished(self, event: LeaseFinished, now: float, effects: list[Effect]) -> None:
        lease = self._leases.get(event.lease_id)
        if lease is None:
            return
        if not lease.holder.is_actor:
            held_s = now - lease.granted_at
            self.lease_time_s += (held_s - self.lease_time_s) * (LEASE_TIME_WEIGHT if self.lease_time_s else 1)
        self._free(lease)
        # an actor's process is never another's, whatever it says
        self._pool.give_back(lease.worker, event.exiting or lease.holder.is_actor, now)

    def _on_worker_blocked(self, event: WorkerBlocked, now: float, effects: list[Effect]) -> None:
        lease = self._leases.get(event.lease_id)
        if lease is None or lease.blocked:
            return
        lease.blocked = True
        lease.holder.blocked += 1
        self._queue.leases_changed(lease.holder)
        self._blocked += 1
        self._active.pop(lease.lease_id, None)
        if lease.cpu_units:
            self._running -= 1
            self._view.available[CPU] += lease.cpu_units
            lease.holder.job.cpu_granted -= lease.cpu_units

    def _on_worker_unblocked(self, event: WorkerUnblocked, now: float, effects: list[Effect]) -> None:
        lease = self._leases.get(event.lease_id)
        if lease is None or not lease.blocked:
            return
        lease.blocked = False
        lease.holder.blocked -= 1
        self._queue.leases_changed(lease.holder)
        self._blocked -= 1
        if not lease.revoked and not lease.holder.is_actor:
            self._active[lease.lease_id] = lease
        if lease.cpu_units:
            self._running += 1
            self._view.available[CPU] -= lease.cpu_units
            lease.holder.job.cpu_granted += lease.cpu_units

    # ------------------------------------------------------------ processes

    def _on_worker_ready(self, event: WorkerReady, now: float, effects: list[Effect]) -> None:
        self._pool.ready(event.worker_id, event.environment_key, now)

    def _on_worker_died(self, event: WorkerDied, now: float, effects: list[Effect]) -> None:
        worker = self._pool.died(event.worker_id)
        if worker is None or not worker.lease_id:
            return
        lease = self._leases[worker.lease_id]
        waiter = lease.holder
        # The submitter may never have heard of the lease. One lease too many comes back; one too few would be waited for in vain.
        if not lease.revoked and self._classes.get(waiter.key) is waiter:
            self._set_backlog(waiter, waiter.backlog + 1, now)
        self._free(lease)

    def _on_worker_start_failed(self, event: WorkerStartFailed, now: float, effects: list[Effect]) -> None:
        pool = self._pool.start_failed(event.environment_key, event.reason, now)
        if pool is not None:
            self._refuse_all(pool, f"no worker process could be started for it: {event.reason}", effects)

    def _on_process_died(self, event: ProcessDied, now: float, effects: list[Effect]) -> None:
        process = event.process
        for waiter in [each for each in self._queue.waiting.values() if each.key[0] == process]:
            self._set_backlog(waiter, 0, now)
        for lease in list(self._leases_of.get(process, {}).values()):
            self._revoke(lease, REVOKED_SUBMITTER_DIED, now, effects)

    def _refuse_all(self, pool: EnvironmentPool, reason: str, effects: list[Effect]) -> None:
        """Give up on everybody who waits for a worker of `pool`."""
        self._refuse_waiting([each for each in self._queue.waiting.values() if each.pool is pool], reason, effects)

    def _refuse_waiting(self, waiters: list[SchedulingClass], reason: str, effects: list[Effect]) -> None:
        for waiter in waiters:
            sentence = f"{waiter.name or 'it'} cannot run on this node: {reason}"
            if waiter.is_actor:
                effects.append(RefuseActor(waiter.key[0], waiter.incarnation, sentence))
            else:
                effects.append(RefuseClass(*waiter.key, sentence))
            self._set_backlog(waiter, 0, 0.0)

    # ------------------------------------------------------------ after every event

    def _on_tick(self, event: Tick, now: float, effects: list[Effect]) -> None:
        self.tick_at = math.inf
        for worker in self._pool.stop_surplus(self._running, now):
            effects.append(StopWorker(worker.worker_id, "it was idle and others are too"))
        if self._queue.waiting or self._view.reservations:
            choose_reservations(self._queue, self._view, self._held_by_actors, now)

    def _settle(self, kind: type, now: float, effects: list[Effect]) -> None:
        """Grant what can be granted, revoke and start what that lacks, and say when to look again."""
        view = self._view
        queue = self._queue
        view.lacks_workers = False
        view.growth_at = 0.0
        if queue.waiting:
            while (waiter := choose_next(queue, view, now)) is not None:
                self._grant(waiter, now, effects)
            if self._active and kind in _PLANNING:
                for lease in choose_victims(queue, view, self._active.values(), self._ending.values(), now):
                    self._revoke(lease, REVOKED_SLICE, now, effects)
        self._start_workers(now, effects)
        self._set_timer(kind, now, effects)

    def _start_workers(self, now: float, effects: list[Effect]) -> None:
        wanted: dict[str, int] = {}
        if self._view.lacks_workers:
            wanted = count_lacking_workers(self._queue, self._view, self._pool.starts_max, now)
        for pool in self._pool.pools.values():
            count = self._pool.count_starts(pool, wanted.get(pool.key, 0), self._running, now)
            if count:
                effects.append(StartWorkers(pool.key, pool.environment, count))

    def _set_timer(self, kind: type, now: float, effects: list[Effect]) -> None:
        if kind is not Tick or effects:
            self._quiet_ticks = 0
        elif self._quiet_ticks < QUIET_TICKS + 8:
            self._quiet_ticks += 1
        tick_at = self._pool.wake_at(self._running, now)
        if self._queue.waiting:
            pause = min(TICK_S * 2 ** max(0, self._quiet_ticks - QUIET_TICKS), TICK_SLOW_S)
            tick_at = min(tick_at, now + pause)
            if self._view.growth_at:
                tick_at = min(tick_at, max(self._view.growth_at, now + GROWTH_PAUSE_S))
        # a tick that is due stays due, however many events come before it
        self.tick_at = min(tick_at, self.tick_at) if self.tick_at > now else min(tick_at, now)

    # ------------------------------------------------------------ questions

    def total(self) -> Resources:
        """What the node has, in units."""
        return dict(self._view.total)

    def available(self) -> Resources:
        """What is free now, in units; never negative."""
        return {name: max(0, units) for name, units in self._view.available.items()}

    def holder_of(self, lease_id: int) -> bytes | None:
        """The submitter that holds a task's lease, or the id of the actor whose it is; None when there is no such lease."""
        lease = self._leases.get(lease_id)
        return None if lease is None else lease.holder.key[0]

    def submits(self, process: bytes) -> bool:
        """Whether a process waits for leases or holds some: what it has submitted has not ended."""
        return bool(self._leases_of.get(process)) or any(key[0] == process for key in self._queue.waiting)

    def lease_of(self, worker_id: bytes) -> int:
        """The lease that a worker serves, 0 for none."""
        worker = self._pool.workers.get(worker_id)
        return 0 if worker is None else worker.lease_id

    def workers_of_job(self, job_id: bytes) -> list[bytes]:
        """The workers that serve tasks (not actors) of a job now: what a dead driver may have left running."""
        return [
            lease.worker.worker_id
            for lease in self._leases.values()
            if lease.holder.job.job_id == job_id and not lease.holder.is_actor
        ]

    def explain(self, process: bytes, class_no: int = ACTOR_CLASS_NO) -> str:
        """Why a class (or the actor with the id `process`) waits now: a sentence for the user, "" when it does not wait."""
        waiter = self._queue.waiting.get((process, class_no))
        if waiter is None:
            return ""
        return explain_waiting(waiter, self._view, self._leases, self._pool)

    def kind_of(self, process: bytes, class_no: int) -> str:
        """What waiters that a user takes for the same have in common: name and need."""
        waiter = self._queue.waiting[(process, class_no)]
        return f"{waiter.name} {format_resources(waiter.need)}"

    def awaits_only_workers(self, process: bytes, class_no: int) -> bool:
        """Whether a waiter could be granted what it asks for as soon as a worker has started."""
        return awaits_only_workers(self._queue.waiting[(process, class_no)], self._view, self._pool)

    def granted_total(self) -> int:
        """Leases granted so far."""
        return self._granted_total

    def is_waited_for(self) -> bool:
        """Whether any class or actor waits."""
        return bool(self._queue.waiting)

    def empty_handed(self, now: float, after_s: float) -> list[tuple[tuple[bytes, int], bytes, float]]:
        """Who holds nothing and was granted nothing for `after_s`: (what `explain` takes, job, seconds), longest first."""
        found = []
        for key, waiter in self._queue.waiting.items():
            waited_s = now - waiter.waiting_since
            if waited_s < after_s:
                break  # they stand in the order of `waiting_since`
            if not waiter.leases:
                found.append((key, waiter.job.job_id, waited_s))
        return found

    def overdue(self, now: float, after_s: float) -> list[tuple[tuple[bytes, int], int]]:
        """Classes that were granted nothing for `after_s`, with their backlogs."""
        found = []
        for key, waiter in self._queue.waiting.items():
            if now - waiter.waiting_since < after_s:
                break  # they stand in the order of `waiting_since`
            if not waiter.is_actor:
                found.append((key, waiter.backlog))
        return found

    def demands(self, limit: int) -> list[tuple[Resources, int]]:
        """What the first `limit` who wait ask for, and how often."""
        found: list[tuple[Resources, int]] = []
        for waiter in self._queue.waiting.values():
            if len(found) == limit:
                break
            found.append((dict(waiter.need), waiter.backlog))
        return found

    def actors(self) -> int:
        """How many actors live or wait here."""
        return self._actors + sum(each.is_actor for each in self._queue.waiting.values())

    def waiting(self, limit: int) -> list[dict[str, Any]]:
        """The first `limit` who wait, as people read it: name, demand, count, and why."""
        found: list[dict[str, Any]] = []
        for (process, class_no), waiter in self._queue.waiting.items():
            if len(found) == limit:
                break
            why = self.explain(process, class_no)
            found.append({"name": waiter.name, "demand": dict(waiter.need), "count": waiter.backlog, "why": why})
        return found

    def backlog_of(self, process: bytes, class_no: int) -> int:
        """How many leases a class waits for."""
        waiter = self._queue.waiting.get((process, class_no))
        return 0 if waiter is None else waiter.backlog

    def number_leases_from(self, first: int) -> None:
        """Leases get numbers above `first`: those of a cluster's nodes do not meet. Before the first grant."""
        assert not self._granted_total, "no lease was granted yet"
        self._last_lease_id = first

    def statistics(self) -> SchedulerStatistics:
        """Counts for status pages and tests."""
        actors_waiting = sum(each.is_actor for each in self._queue.waiting.values())
        pools = self._pool.pools.values()
        return SchedulerStatistics(
            leases=len(self._leases) - self._actors,
            leases_blocked=self._blocked,
            leases_ending=len(self._ending),
            actors=self._actors,
            classes_waiting=len(self._queue.waiting) - actors_waiting,
            tasks_waiting=sum(each.backlog for each in self._queue.waiting.values()) - actors_waiting,
            actors_waiting=actors_waiting,
            workers_idle=sum(len(pool.idle) for pool in pools),
            workers_starting=sum(pool.starting for pool in pools),
            workers_serving=sum(pool.serving for pool in pools),
            granted_total=self._granted_total,
            revoked_total=self._revoked_total,
        )

    # ------------------------------------------------------------ invariants

    def check(self) -> None:
        """Assert every invariant: for tests and simulations (it looks at everything)."""
        view = self._view
        held: Resources = {}
        for lease in self._leases.values():
            add(held, lease.held())
        for name in {**view.total, **held, **view.available}:
            total, free, used = view.total.get(name, 0), view.available.get(name, 0), held.get(name, 0)
            assert total == free + used, f"{name}: {used} held and {free} free are not {total}"
            assert free >= 0 or name == CPU, f"{name} is over-granted: {free}"
        self._check_leases()
        self._check_workers()
        self._check_queue()

    def _check_leases(self) -> None:
        leases = self._leases
        actors = {number: lease for number, lease in leases.items() if lease.holder.is_actor}
        tasks = {number: lease for number, lease in leases.items() if number not in actors}
        assert self._active == {n: each for n, each in tasks.items() if not each.blocked and not each.revoked}
        assert self._ending == {n: each for n, each in tasks.items() if each.revoked}
        assert tasks == {n: each for part in self._leases_of.values() for n, each in part.items()}
        assert self._actors == len(actors)
        assert self._blocked == sum(each.blocked for each in leases.values())
        assert self._running == sum(1 for each in leases.values() if each.cpu_units and not each.blocked)
        held_by_actors: Resources = dict.fromkeys(self._held_by_actors, 0)
        for lease in actors.values():
            add(held_by_actors, lease.hold)
        assert held_by_actors == self._held_by_actors
        used: dict[tuple[str, int], int] = {}
        for lease in leases.values():
            for name, ids in lease.assigned.items():
                assert len(ids) == -(-lease.hold[name] // RESOURCE_UNIT)
                for number in ids:
                    units = used.get((name, number), 0) + min(lease.hold[name], RESOURCE_UNIT)
                    assert units <= RESOURCE_UNIT, f"{name} {number} is shared beyond 1"
                    used[name, number] = units

    def _check_workers(self) -> None:
        for lease in self._leases.values():
            worker = lease.worker
            assert self._pool.workers.get(worker.worker_id) is worker, "a lease has no live worker"
            assert worker.lease_id == lease.lease_id and worker.pool is lease.holder.pool and not worker.leaving
        for worker in self._pool.workers.values():
            idle = worker.worker_id in worker.pool.idle
            assert idle + worker.leaving + bool(worker.lease_id) == 1
            assert not worker.lease_id or worker.lease_id in self._leases
        for pool in self._pool.pools.values():
            serving = sum(1 for each in self._leases.values() if each.worker.pool is pool)
            assert pool.serving == serving and pool.starting >= 0
            assert pool.waiting == sum(1 for each in self._queue.waiting.values() if each.pool is pool)

    def _check_queue(self) -> None:
        queue = self._queue
        entries = [entry for job in queue.jobs.values() for lane in job.lanes.values() for entry in lane.entries]
        assert sorted(entry[2] for entry in entries) == sorted(
            each.entry[2] for each in queue.waiting.values() if each.entry
        )
        since = [each.waiting_since for each in queue.waiting.values()]
        assert since == sorted(since), "the queue has lost its order"
        for waiter in queue.waiting.values():
            assert waiter.backlog > 0 and waiter.lane is not None and self._classes[waiter.key] is waiter
        for job in queue.jobs.values():
            for lane in job.lanes.values():
                assert lane.entries and lane.entries == sorted(lane.entries, key=lambda entry: entry[:3])
                for depth, running, _, waiter in lane.entries:
                    assert waiter.lane is lane
                    assert (depth, running) == (-waiter.depth, waiter.leases - waiter.blocked)
            mine = [each for each in self._leases.values() if each.holder.job is job]
            assert job.cpu_granted == sum(each.cpu_units for each in mine if not each.blocked)
        for holder in [*self._classes.values(), *(lease.holder for lease in self._leases.values())]:
            mine = [each for each in self._leases.values() if each.holder is holder]
            assert holder.leases == len(mine) and holder.blocked == sum(each.blocked for each in mine)
            assert holder.leases or holder.lane is not None

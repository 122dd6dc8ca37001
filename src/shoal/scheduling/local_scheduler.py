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

An actor's lease is like that, but ends only with its worker and is never revoked. A bundle of a placement group waits as an actor does, needs no
worker, and what is reserved for it becomes resources of their own (`bundles`), which tasks and actors of its group ask for.

Invariants (`check` tests them): what leases hold (without what is lent) and what is available is the total; a lease has a live worker
of its environment and a worker one lease; CPU alone may be available in the negative, by blocked leases that went on, and
then nothing that needs CPU is granted.

How to extend: a new event is a row of `_handlers` and a method; a new rule of who goes first belongs into `grant_policy`.

What it does not do: clocks, sockets, processes; deciding between nodes; killing what a dead driver left running (`workers_of_job`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shoal.protocol.limits import LEASE_NUMBER_BITS, RESERVE_WAIT_S, RESOURCE_UNIT
from shoal.protocol.messages import UNSCHEDULABLE_BUNDLE_GONE, UNSCHEDULABLE_GROUP_REMOVED
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
from shoal.protocol.strategies import KIND, PLACEMENT_GROUP
from shoal.scheduling.bundles import Bundle, BundleKey, base_name, is_mark, outside, outside_ids, without_bundles
from shoal.scheduling.events import (
    REVOKED_DRAINING,
    REVOKED_RETURNED,
    REVOKED_SLICE,
    REVOKED_SUBMITTER_DIED,
    ActorPlacementRequested,
    ActorPlacementWithdrawn,
    AssignActor,
    BundleCommitted,
    BundleDone,
    BundleRequested,
    BundleReturned,
    Effect,
    Event,
    GrantLease,
    KillWorker,
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
from shoal.scheduling.explanation import SchedulerStatistics, awaits_only_workers, explain_never, explain_waiting
from shoal.scheduling.grant_policy import (
    GROWTH_PAUSE_S,
    Lease,
    NodeView,
    aim_elsewhere,
    choose_next,
    choose_reservations,
    choose_victims,
    count_lacking_workers,
    note_use,
)
from shoal.scheduling.invariants import check_invariants
from shoal.scheduling.offers import WaitingTasks
from shoal.scheduling.request_queue import (
    ACTOR_CLASS_NO,
    ACTOR_DEPTH,
    RequestQueue,
    SchedulingClass,
    bundle_key,
    waiter_key,
)
from shoal.scheduling.worker_pool import WORKERS_MAX, EnvironmentPool, Worker, WorkerPool

TICK_S = 0.005  #: between ticks while somebody waits
TICK_SLOW_S = 0.16  #: the same after a long time in which nothing changed
LEASE_TIME_WEIGHT = 0.1  #: of the newest lease in the average
QUIET_TICKS = 16  #: ticks without an effect before they slow down: more than the longest slice

#: events after which somebody may lack what others hold
_PLANNING = frozenset({LeasesRequested, ActorPlacementRequested, BundleRequested, Tick})

Handler = Callable[[Any, float, list[Effect]], None]


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
        #: bundles wait in this one: they need no worker
        self._no_worker = EnvironmentPool("bundle", {})
        self._no_worker.idle[b""] = Worker(b"", self._no_worker)
        #: bundles that wait to be reserved: (what was asked, until when)
        self._bundles_asked: dict[BundleKey, tuple[BundleRequested, float]] = {}
        #: every class that waits or holds leases
        self._classes: dict[tuple[bytes, int], SchedulingClass] = {}
        #: all leases by id, and three disjoint parts of them; actors' unblocked leases are in none
        self._leases: dict[int, Lease] = {}
        self._active: dict[int, Lease] = {}  #: may be revoked: a task's, not blocked, not revoked
        self._ending: dict[int, Lease] = {}  #: revoked
        #: by submitter, its leases (tasks only)
        self._leases_of: dict[bytes, dict[int, Lease]] = {}
        self.held_by_actors: Resources = {}  #: to be read only
        self._last_lease_id = 0
        self._running = 0  #: unblocked leases that hold CPU
        self._blocked = 0
        self._actors = 0
        #: how long tasks' leases are in use, an exponential average; 0 before the first one ended
        self.lease_time_s = 0.0
        self._granted_total = 0
        self._revoked_total = 0
        self._quiet_ticks = 0
        self.draining = ""  #: why the node takes nothing new; "" while it does
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
            BundleRequested: self._on_bundle_requested,
            BundleCommitted: self._on_bundle_committed,
            BundleReturned: self._on_bundle_returned,
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
            if known.keeps == event.demand and known.depth == event.depth and known.environment == event.environment:
                known.task_s = event.task_s
                self._set_backlog(known, event.backlog, now)
                return
            self._set_backlog(known, 0, now)  # its leases end by themselves; the number now means something else
            self._classes.pop(key, None)
        if event.backlog <= 0:
            return
        bundle, kind, reason = self._find_room(event.demand, event.strategy, event.name or "the task")
        if reason:
            effects.append(RefuseClass(event.process, event.class_no, reason, kind))
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
            task_s=event.task_s,
        )
        self._enter(waiter, bundle, event.backlog, now)

    def _on_actor_placement_requested(self, event: ActorPlacementRequested, now: float, effects: list[Effect]) -> None:
        self._withdraw_actor(event.actor_id)
        need = {name: max(units, event.demand.get(name, 0)) for name, units in event.placement.items()}
        need = {**event.demand, **need}
        bundle, _, reason = self._find_room(need, event.strategy, event.name or "the actor")
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
        self._enter(waiter, bundle, 1, now)

    def _enter(self, waiter: SchedulingClass, bundle: Bundle | None, backlog: int, now: float) -> None:
        """A new class waits, inside a bundle if it is of a placement group."""
        waiter.asked, waiter.keeps = waiter.need, waiter.hold
        if bundle is not None:
            waiter.group_id, waiter.bundle = bundle.group_id, waiter.strategy["bundle"]
            waiter.aim(bundle)
        self._classes[waiter.key] = waiter
        self._set_backlog(waiter, backlog, now)

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

    def _find_room(self, need: Resources, strategy: Mapping[str, Any], name: str) -> tuple[Bundle | None, str, str]:
        """The bundle in which it may run (None outside of groups), or the kind of refusal and its reason."""
        if strategy.get(KIND) != PLACEMENT_GROUP:
            return None, "", self._infeasible(need, name)
        if self.draining:
            return None, UNSCHEDULABLE_BUNDLE_GONE, f"{name} was not taken: {self.draining}"
        return self._view.bundles.find(need, strategy, name)

    def _infeasible(self, need: Resources, name: str) -> str:
        """Why this node can never give `need`, or "" when it can."""
        if self.draining:
            return f"{name} was not taken: {self.draining}"
        total = self._view.total
        if fits(need, total):
            return ""
        total = without_bundles(total)
        return explain_never(need, total, name)

    def _on_node_drains(self, event: NodeDrains, now: float, effects: list[Effect]) -> None:
        """Who waits goes elsewhere; who works here finishes what it has begun."""
        self.draining = f"this node drains and takes no new work ({event.reason})"
        self._refuse_waiting(list(self._queue.waiting.values()), self.draining, effects)
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
        cpu_units = hold.get(waiter.cpu, 0)
        lease = Lease(lease_id, waiter, worker, hold, cpu_units, assigned, now, cpu=waiter.cpu)
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
        group: dict[str, Any] = {}
        demand = hold
        if waiter.group_id:
            group, demand, assigned = waiter.strategy, waiter.keeps, outside_ids(assigned)
        if waiter.incarnation >= 0:
            self._actors += 1
            add(self.held_by_actors, hold)
            del self._classes[waiter.key]
            effects.append(
                AssignActor(
                    process,
                    waiter.incarnation,
                    lease_id,
                    worker.worker_id,
                    job_id,
                    demand,
                    assigned,
                    environment,
                    group,
                )
            )
            return
        self._active[lease_id] = lease
        self._leases_of.setdefault(process, {})[lease_id] = lease
        effects.append(
            GrantLease(
                process, number, lease_id, worker.worker_id, job_id, demand, assigned, environment, waiter.depth, group
            )
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
            subtract(self.held_by_actors, lease.hold)
        else:
            of_process = self._leases_of[holder.key[0]]
            del of_process[lease_id]
            if not of_process:
                del self._leases_of[holder.key[0]]
        self._queue.release(holder.job)
        self._maybe_forget(holder)

    def _revoke(self, lease: Lease, reason: str, now: float, effects: list[Effect]) -> None:
        """Ask the worker to end a task's lease, once."""
        lease.wanted &= reason not in (REVOKED_RETURNED, REVOKED_SUBMITTER_DIED)
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
            lease.granted_at += event.idle_s  # it could have been taken away from then on
            self._revoke(lease, REVOKED_RETURNED, now, effects)

    def _on_lease_finished(self, event: LeaseFinished, now: float, effects: list[Effect]) -> None:
        lease = self._leases.get(event.lease_id)
        if lease is None:
            return
        if not lease.holder.is_actor:
            held_s = max(0.0, now - lease.granted_at)
            self.lease_time_s += (held_s - self.lease_time_s) * (LEASE_TIME_WEIGHT if self.lease_time_s else 1)
            note_use(lease, event.used)
        self._free(lease)
        self._pool.give_back(lease.worker, event.exiting or lease.holder.is_actor, now)  # never an actor's

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
            self._view.available[lease.cpu] += lease.cpu_units
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
            self._view.available[lease.cpu] -= lease.cpu_units
            lease.holder.job.cpu_granted += lease.cpu_units

    # ------------------------------------------------------------ processes

    def _on_worker_ready(self, event: WorkerReady, now: float, effects: list[Effect]) -> None:
        self._pool.ready(event.worker_id, event.environment_key, now)

    def _on_worker_died(self, event: WorkerDied, now: float, effects: list[Effect]) -> None:
        worker = self._pool.died(event.worker_id)
        if worker is None or not worker.lease_id:
            return
        waiter = (lease := self._leases[worker.lease_id]).holder
        # The submitter may not have heard of it, also if it was revoked. One lease too many comes back; one too few is waited for in vain.
        if lease.wanted and self._classes.get(waiter.key) is waiter:
            self._set_backlog(waiter, waiter.backlog + 1, now)
            if self.draining:
                self._refuse_waiting([waiter], self.draining, effects)
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
            if waiter.is_bundle:
                self._give_up_bundle(bundle_key(waiter), reason, 0.0, effects)
                continue
            if waiter.is_actor:
                effects.append(RefuseActor(waiter.key[0], waiter.incarnation, sentence))
            else:
                kind = UNSCHEDULABLE_BUNDLE_GONE if waiter.group_id and self.draining else ""
                effects.append(RefuseClass(*waiter.key, sentence, kind))
            self._set_backlog(waiter, 0, 0.0)

    # ------------------------------------------------------------ bundles

    def _on_bundle_requested(self, event: BundleRequested, now: float, effects: list[Effect]) -> None:
        key = (event.group_id, event.index)
        known = self._view.bundles.get(*key)
        asked = self._bundles_asked.get(key)
        attempt = max(known.attempt if known is not None else 0, asked[0].attempt if asked is not None else 0)
        if event.attempt < attempt:
            return
        if event.attempt == attempt:
            if known is not None:
                effects.append(BundleDone(event.group_id, event.index, attempt, True))
            return  # it is being tried
        if attempt:
            self._drop_bundle(key, "the bundle was to be reserved anew", False, now, effects)
        reason = self._infeasible(event.resources, f"bundle {event.index}")
        if reason:
            effects.append(BundleDone(event.group_id, event.index, event.attempt, False, reason))
            return
        need = event.resources
        self._bundles_asked[key] = (event, now + RESERVE_WAIT_S)
        waiter = SchedulingClass(
            waiter_key(key),
            self._queue.refer(event.job_id),
            need,
            need,
            ACTOR_DEPTH,
            self._no_worker,
            {},
            {},
            f"bundle {event.index} of placement group {event.group_id.hex()[:8]}",
        )
        self._enter(waiter, None, 1, now)

    def _reserve(self, waiter: SchedulingClass, now: float, effects: list[Effect]) -> None:
        """Set aside what a bundle needs; the policy has made sure that it is free."""
        group_id, index = bundle_key(waiter)
        event, _ = self._bundles_asked.pop((group_id, index))
        bundle = Bundle(group_id, index, event.attempt, event.job_id, event.resources, {})
        assigned = self._view.accelerators.carve(event.resources, bundle.suffix)
        assert assigned is not None
        bundle.assigned = assigned
        subtract(self._view.available, event.resources)
        self._view.bundles.add(bundle)
        self._queue.granted(waiter, now)
        self._maybe_forget(waiter)
        effects.append(BundleDone(group_id, index, event.attempt, True))

    def _on_bundle_committed(self, event: BundleCommitted, now: float, effects: list[Effect]) -> None:
        bundle = self._view.bundles.get(event.group_id, event.index)
        if bundle is None or bundle.attempt != event.attempt or bundle.committed:
            return
        bundle.committed = True
        contents = bundle.contents()
        self._view.total.update(contents)
        self._view.available.update(contents)

    def _on_bundle_returned(self, event: BundleReturned, now: float, effects: list[Effect]) -> None:
        key = (event.group_id, event.index)
        known, asked = self._view.bundles.get(*key), self._bundles_asked.get(key)
        attempt = known.attempt if known is not None else asked[0].attempt if asked is not None else 0
        if event.attempt >= attempt > 0:
            self._drop_bundle(key, event.reason, event.removed, now, effects)

    def _drop_bundle(self, key: BundleKey, reason: str, removed: bool, now: float, effects: list[Effect]) -> None:
        """The bundle is not here any more, or not to come: what is free of it is the node's again, what runs in it ends."""
        if self._bundles_asked.pop(key, None) is not None:
            waiter = self._classes[waiter_key(key)]
            self._set_backlog(waiter, 0, now)
            return
        bundle = self._view.bundles.get(*key)
        assert bundle is not None, "somebody asked for it"
        self._view.bundles.remove(bundle)
        self._dissolve(bundle)
        for lease in self._leases.values():
            if lease.holder.group_id != bundle.group_id or bundle.cpu != lease.cpu:
                continue
            self._move_out(lease)
            if not lease.holder.is_actor and not lease.revoked:
                lease.revoked, lease.revoked_at = True, now
                self._active.pop(lease.lease_id, None)
                self._ending[lease.lease_id] = lease
            effects.append(KillWorker(lease.worker.worker_id, lease.lease_id, reason, removed))
        kind = UNSCHEDULABLE_GROUP_REMOVED if removed else UNSCHEDULABLE_BUNDLE_GONE
        for waiter in [each for each in self._classes.values() if each.group_id == bundle.group_id]:
            if waiter.bundle == bundle.index or not aim_elsewhere(waiter, self._view):
                text = f"{waiter.name or 'it'} was to run in bundle {bundle.index} of placement group {key[0].hex()}: {reason}"
                self._refuse_waiter(waiter, text, kind, now, effects)

    def _dissolve(self, bundle: Bundle) -> None:
        """The names of a bundle's resources exist no more; what is free of them, also in the negative, is the node's."""
        view = self._view
        if bundle.committed:
            for name in bundle.contents():
                del view.total[name]
                free = view.available.pop(name)
                self.held_by_actors.pop(name, None)
                view.reservations.pop(name, None)
                if not is_mark(name):
                    view.available[base_name(name)] += free
        else:
            add(view.available, bundle.resources)
        view.accelerators.uncarve(bundle.assigned, bundle.suffix)

    def _move_out(self, lease: Lease) -> None:
        """A lease in a bundle that is gone holds of the node itself what it held there."""
        lease.hold, lease.assigned, lease.cpu = outside(lease.hold), outside_ids(lease.assigned), CPU
        if lease.holder.is_actor:
            add(self.held_by_actors, lease.hold)

    def _refuse_waiter(
        self, waiter: SchedulingClass, reason: str, kind: str, now: float, effects: list[Effect]
    ) -> None:
        """A class whose bundle is gone is forgotten: its number may mean a new one."""
        waits = waiter.lane is not None
        self._classes.pop(waiter.key, None)
        if waiter.is_actor:
            effects.append(RefuseActor(waiter.key[0], waiter.incarnation, reason))
        elif waits:
            effects.append(RefuseClass(*waiter.key, reason, kind))
        if waits:
            self._set_backlog(waiter, 0, now)

    def _give_up_bundles(self, now: float, effects: list[Effect]) -> None:
        """Bundles that could not be reserved in time."""
        for key, (_, until) in list(self._bundles_asked.items()):
            if now >= until:
                self._give_up_bundle(key, self.explain(*waiter_key(key)), now, effects)

    def _give_up_bundle(self, key: BundleKey, reason: str, now: float, effects: list[Effect]) -> None:
        attempt = self._bundles_asked[key][0].attempt
        self._drop_bundle(key, reason, False, now, effects)
        effects.append(BundleDone(*key, attempt, False, reason))

    # ------------------------------------------------------------ after every event

    def _on_tick(self, event: Tick, now: float, effects: list[Effect]) -> None:
        self.tick_at = math.inf
        if self._bundles_asked:
            self._give_up_bundles(now, effects)
        for worker in self._pool.stop_surplus(self._running, now):
            effects.append(StopWorker(worker.worker_id, "it was idle and others are too"))
        if self._queue.waiting or self._view.reservations:
            choose_reservations(self._queue, self._view, self.held_by_actors, now)

    def _settle(self, kind: type, now: float, effects: list[Effect]) -> None:
        """Grant what can be granted, revoke and start what that lacks, and say when to look again."""
        view = self._view
        queue = self._queue
        view.lacks_workers = False
        view.growth_at = 0.0
        if queue.waiting:
            while (waiter := choose_next(queue, view, now)) is not None:
                if waiter.is_bundle:
                    self._reserve(waiter, now, effects)
                else:
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
        return without_bundles(self._view.total)

    def available(self) -> Resources:
        """What is free now, in units; never negative."""
        return {name: max(0, units) for name, units in without_bundles(self._view.available).items()}

    def has_bundle(self, group_id: bytes, index: int) -> bool:
        """Whether a bundle is reserved here."""
        return self._view.bundles.get(group_id, index) is not None

    def bundles(self) -> list[Bundle]:
        """The bundles of placement groups that are reserved here."""
        return self._view.bundles.all()

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
        return "" if waiter is None else explain_waiting(waiter, self._view, self._leases, self._pool)

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
        return self._queue.empty_handed(now, after_s)

    def waiting_tasks(self, now: float, waited_s: float = 0.0) -> list[WaitingTasks]:
        """Classes of tasks that wait outside of placement groups: all, in the order of service, or who was granted nothing for `waited_s`."""
        return self._queue.waiting_tasks(self._view.total, now, waited_s)

    def demands(self, limit: int) -> list[tuple[Resources, int]]:
        """What the first `limit` who wait ask for, and how often."""
        return self._queue.demands(limit)

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

    def number_leases_of(self, node_no: int) -> None:
        """Leases get numbers of this node: those of a cluster's nodes do not meet. Before the first grant."""
        assert not self._granted_total, "no lease was granted yet"
        self._last_lease_id = node_no << LEASE_NUMBER_BITS

    def statistics(self) -> SchedulerStatistics:
        """Counts for status pages and tests."""
        actors_waiting = sum(not each.is_task for each in self._queue.waiting.values())
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

    def check(self) -> None:
        """Assert every invariant: for tests and simulations (it looks at everything)."""
        check_invariants(self)

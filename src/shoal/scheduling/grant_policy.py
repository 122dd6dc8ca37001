"""Who is served next, whose lease ends for it, and who has waited too long: the decisions of the local scheduler.

Purpose: three functions of what there is; they change nothing but the look-up hints of lanes and the notes in `NodeView`.

Design.
*Next* (`choose_next`): jobs that hold the fewest CPUs first, within a job the deepest class, among equals the one that has
fewest leases, then by turns. Deepest first runs
children before more parents start; parents that wait lend their CPUs, so somebody can always run.

*Revocation* (`choose_victims`): a lease is pipelined, so a submitter could keep its workers for ever. When somebody's needs do not
fit, leases that are older than a slice end after their current task. After LEASE_SLICE_S that happens where it is plainly right: for a
deeper class, for an equal class or a job that would still have less after it. After LEASE_SLICE_LONG_S it happens for anybody:
the scheduler does not see whether a lease is idle, and a busy one comes back at the price of one bounce in 50 ms. No more leases end than
are needed; those that end soon are counted first, those whose task goes on for a long slice are not relied on. Slices of a class double while its
leases end before a task of it has come (`note_use`): to a submitter far away that takes longer than a slice, and two such would take turns for ever.

*Starvation* (`choose_reservations`): "whatever fits first" would never serve wide needs beside a stream of narrow ones, and "deepest
first" never a shallow class beside a fountain of deep ones. Who waited STARVED_AFTER_S goes first and has what it needs kept free
for it: one such class in STARVED_AFTER_S, so that a deep recursion does not turn into a broad one, and for RESERVED_S at first. When
that was in vain it rests four times as long, then tries for twice as long: needs that take minutes to come free are met some day, and those that
nobody frees idle the node for a third of the time at worst.

What it does not do: grant or revoke.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.protocol.limits import LEASE_IDLE_S, LEASE_SLICE_S
from shoal.protocol.resources import CPU, AcceleratorPool, Assigned, Resources, add, fits, subtract
from shoal.scheduling.bundles import BundleTable, base_name, is_mark
from shoal.scheduling.request_queue import Entry, JobQueue, Lane, RequestQueue, SchedulingClass
from shoal.scheduling.worker_pool import Worker

LEASE_SLICE_LONG_S = 5 * LEASE_SLICE_S
SLICES_MAX = 32  #: of a class that is far away
STARVED_AFTER_S = 0.5
RESERVED_S = 2.0
RESERVED_MAX_S = 64.0
RESERVATION_REST_FACTOR = 4.0
GROWTH_PAUSE_S = 0.001  #: between grants to a class that has more leases running than the node has CPUs
WAITERS_PLANNED_MAX = 64  #: waiting classes for whom leases are revoked in one go

assert LEASE_SLICE_S < LEASE_SLICE_LONG_S < LEASE_IDLE_S


@dataclass(slots=True, eq=False)
class Lease:
    """A worker's bond to a scheduling class, or to an actor for its life."""

    lease_id: int
    holder: SchedulingClass
    worker: Worker
    hold: Resources
    cpu_units: int  #: the CPU part of `hold`, lent out while blocked
    assigned: Assigned
    granted_at: float
    revoked_at: float = 0.0  #: when revocation was sent
    revoked: bool = False
    wanted: bool = True  #: its submitter has not returned it, and lives
    blocked: bool = False
    cpu: str = CPU  #: the name of its CPU: that of a bundle is lent inside the bundle

    def held(self) -> Resources:
        """What comes back to the node when the lease ends now."""
        if not self.blocked or not self.cpu_units:
            return self.hold
        return {name: units for name, units in self.hold.items() if name != self.cpu}


@dataclass(slots=True, eq=False)
class NodeView:
    """What the policy sees of the node besides the queue."""

    total: Resources
    available: Resources  #: CPU may be negative for a while: blocked leases resume at once
    accelerators: AcceleratorPool
    cpus: int  #: whole CPUs
    bundles: BundleTable = field(default_factory=BundleTable)
    #: who has which resource kept free for it, until when
    reservations: dict[str, tuple[SchedulingClass, float]] = field(default_factory=dict)
    #: when one who starved was served last
    starved_served_at: float = -math.inf
    #: notes of the last look: somebody fitted but had no worker; somebody may grow at this time (0 for nobody)
    lacks_workers: bool = False
    growth_at: float = 0.0


# ---------------------------------------------------------------- next


def choose_next(queue: RequestQueue, view: NodeView, now: float) -> SchedulingClass | None:
    """The class to be granted a lease now: its needs fit and an idle worker is there. None when there is no such class."""
    view.lacks_workers = False
    view.growth_at = 0.0
    if view.reservations:
        for waiter, _ in view.reservations.values():
            lane = waiter.lane
            if lane is not None and lane.pool.idle and _lane_fits(lane, view, waiter) and _may_grow(waiter, view, now):
                return waiter
    for job in queue.jobs_in_order():
        best = _best_of_job(job, view, now)
        if best is not None:
            return best
    return None


def _best_of_job(job: JobQueue, view: NodeView, now: float) -> SchedulingClass | None:
    """The first class of the job's order that can be granted."""
    best: Entry | None = None
    get = view.available.get
    for lane in job.lanes.values():
        if get(lane.probe, 0) < lane.probe_units:
            continue
        if (best is not None and best < lane.entries[0]) or not _lane_fits(lane, view, None):
            continue
        if not lane.pool.idle:
            view.lacks_workers = True
            continue
        for entry in lane.entries:
            if best is not None and best < entry:
                break
            waiter = entry[3]
            if _may_grow(waiter, view, now):
                best = entry
                break
            view.growth_at = min(view.growth_at or waiter.grant_after, waiter.grant_after)
    return None if best is None else best[3]


def _may_grow(waiter: SchedulingClass, view: NodeView, now: float) -> bool:
    """Whether one more lease of the class may run: what costs no CPU would otherwise start a worker for every tiny task."""
    return waiter.leases - waiter.blocked < view.cpus or waiter.grant_after <= now


def _lane_fits(lane: Lane, view: NodeView, holder: SchedulingClass | None) -> bool:
    """Whether the lane's needs are free and, unless asked for the `holder` of a reservation, not kept for somebody else."""
    if lane.group_id:
        return _aims_well(lane, view, holder)
    available = view.available
    for name, units in lane.need.items():
        if available.get(name, 0) < units:
            lane.probe, lane.probe_units = name, units
            return False
    if not _ids_fit(lane, view):
        return False
    if view.reservations and holder is None:
        return not any(name in view.reservations for name in lane.need)
    return True


def _aims_well(lane: Lane, view: NodeView, holder: SchedulingClass | None) -> bool:
    """Aim a lane that may use any bundle of its group at the first in which it fits now; by turns when there is none, so that leases end in all."""
    bundles = view.bundles.of(lane.group_id, lane.asked)
    following = None
    for bundle in bundles:
        need = bundle.inside(lane.asked)
        if (
            fits(need, view.available)
            and (not lane.accelerated or view.accelerators.fits(need))
            and (holder is not None or not any(name in view.reservations for name in need))
        ):
            if need != lane.need:
                lane.aim(bundle)
            return True
        if need == lane.need:
            following = bundles.index(bundle) + 1
    if len(bundles) > 1 and following is not None:
        lane.aim(bundles[following % len(bundles)])
    return False


def aim_elsewhere(waiter: SchedulingClass, view: NodeView) -> bool:
    """Aim a class that may use any bundle at one that is still here; whether there is one in which it has room."""
    able = view.bundles.of(waiter.group_id, waiter.asked)
    if able:
        (waiter.lane or waiter).aim(able[0])
    return bool(able)


def _take_one(waiter: SchedulingClass, lane: Lane, view: NodeView, left: Resources) -> bool:
    """Take one lease's worth out of `left`, if it fits."""
    if not lane.group_id:
        if not fits(waiter.need, left):
            return False
        subtract(left, waiter.hold)
        return True
    for bundle in view.bundles.of(lane.group_id, lane.asked):
        if fits(bundle.inside(lane.asked), left):
            subtract(left, bundle.inside(waiter.keeps))
            return True
    return False


def _ids_fit(lane: Lane, view: NodeView) -> bool:
    """Whether accelerators with enough room on them are free, if the lane needs any."""
    return not lane.accelerated or view.accelerators.fits(lane.need)


def count_lacking_workers(queue: RequestQueue, view: NodeView, limit: int, now: float) -> dict[str, int]:
    """How many workers of each environment would be granted at once if they were there; at most `limit` of each."""
    wanted: dict[str, int] = {}
    left = dict(view.available)
    for job in queue.jobs_in_order():
        for lane in job.lanes.values():
            if lane.pool.idle or not _ids_fit(lane, view):
                continue
            key = lane.pool.key
            for _, _, _, waiter in lane.entries:
                count = wanted.get(key, 0)
                backlog = waiter.backlog if _may_grow(waiter, view, now) else 0
                backlog = min(backlog, max(1, view.cpus - waiter.leases + waiter.blocked)) if not waiter.is_actor else 1
                while backlog > 0 and count < limit and _take_one(waiter, lane, view, left):
                    count += 1
                    backlog -= 1
                wanted[key] = count
                if count >= limit or backlog > 0:
                    break
    return wanted


# ---------------------------------------------------------------- revocation


def choose_victims(
    queue: RequestQueue, view: NodeView, active: Iterable[Lease], ending: Iterable[Lease], now: float
) -> list[Lease]:
    """Leases to revoke now, so that those who wait can be served.

    `active`: tasks' leases that are neither blocked nor revoked, held longest first. `ending`: revoked ones that have not ended.
    """
    candidates = [lease for lease in active if now - lease.granted_at >= LEASE_SLICE_S * lease.holder.slices]
    if not candidates:
        return []
    future = dict(view.available)
    leaving: dict[SchedulingClass, int] = {}
    leaving_cpu: dict[JobQueue, int] = {}
    for lease in ending:
        if now - lease.revoked_at < LEASE_SLICE_LONG_S:
            add(future, lease.held())
            _count_leaving(lease, leaving, leaving_cpu)
    victims: list[Lease] = []
    for number, waiter in enumerate(queue.in_order()):
        if number >= WAITERS_PLANNED_MAX or not candidates:
            break
        if fits(waiter.need, future) and (waiter.lane is None or _ids_fit(waiter.lane, view)):
            subtract(future, waiter.hold)
            continue
        chosen = _victims_for(waiter, view, candidates, future, leaving, leaving_cpu, now)
        for lease in chosen:
            candidates.remove(lease)
            add(future, lease.held())
            _count_leaving(lease, leaving, leaving_cpu)
        if chosen:
            subtract(future, waiter.hold)
            victims += chosen
    return victims


def _victims_for(
    waiter: SchedulingClass,
    view: NodeView,
    candidates: list[Lease],
    future: Resources,
    leaving: dict[SchedulingClass, int],
    leaving_cpu: dict[JobQueue, int],
    now: float,
) -> list[Lease]:
    """The leases that make room for one grant to `waiter`; none when no set of them would."""
    pool = waiter.pool
    needs_worker = not pool.idle
    if needs_worker and not pool.serving:
        return []
    reserved = any(view.reservations.get(name, (None, 0.0))[0] is waiter for name in waiter.need)
    room = dict(future)
    scattered = fits(waiter.need, room)  # enough in sum, but not on one accelerator: any that shares one may help
    chosen: list[Lease] = []
    for lease in candidates:
        holder = lease.holder
        if holder is waiter or (needs_worker and lease.worker.pool is not pool):
            continue
        held = lease.held()
        if not any(
            held.get(name) and (name in lease.assigned if scattered else room.get(name, 0) < units)
            for name, units in waiter.need.items()
        ):
            continue
        long_held = now - lease.granted_at >= LEASE_SLICE_LONG_S * holder.slices
        if not (reserved or long_held or _is_fair(waiter, lease, leaving, leaving_cpu)):
            continue
        chosen.append(lease)
        add(room, held)
        if fits(waiter.need, room):
            return chosen
    return []


def _is_fair(
    waiter: SchedulingClass, lease: Lease, leaving: dict[SchedulingClass, int], leaving_cpu: dict[JobQueue, int]
) -> bool:
    """Whether `waiter` plainly deserves the lease more: it is deeper, or would not have more than the holder after it."""
    holder = lease.holder
    if waiter.job is not holder.job:
        theirs = holder.job.cpu_granted - leaving_cpu.get(holder.job, 0)
        ours = waiter.job.cpu_granted - leaving_cpu.get(waiter.job, 0)
        if lease.cpu_units:
            return theirs - lease.cpu_units >= ours
    elif waiter.depth != holder.depth:
        return waiter.depth > holder.depth
    theirs = holder.leases - holder.blocked - leaving.get(holder, 0)
    ours = waiter.leases - waiter.blocked - leaving.get(waiter, 0)
    return theirs - 1 >= ours


def note_use(lease: Lease, used: bool) -> None:
    """A task's lease has ended, and something has run in it or not."""
    holder = lease.holder
    if used:
        holder.slices = max(1, holder.slices // 2)
    elif lease.revoked and lease.wanted:
        holder.slices = min(SLICES_MAX, 2 * holder.slices)


def _count_leaving(lease: Lease, leaving: dict[SchedulingClass, int], leaving_cpu: dict[JobQueue, int]) -> None:
    holder = lease.holder
    if not lease.blocked:
        leaving[holder] = leaving.get(holder, 0) + 1
        leaving_cpu[holder.job] = leaving_cpu.get(holder.job, 0) + lease.cpu_units


# ---------------------------------------------------------------- starvation


def choose_reservations(queue: RequestQueue, view: NodeView, held_by_actors: Resources, now: float) -> None:
    """Renew `view.reservations`: drop those that were served or lapsed, add who starves. Called at ticks."""
    for name, (waiter, until) in list(view.reservations.items()):
        if waiter.lane is None or now - waiter.waiting_since < STARVED_AFTER_S:
            del view.reservations[name]  # it was served, or went away
            view.starved_served_at = now
        elif now >= until:
            del view.reservations[name]
            waiter.rests_until = now + RESERVATION_REST_FACTOR * waiter.patience_s
    if now - view.starved_served_at < STARVED_AFTER_S:
        return
    reachable = dict(view.total)
    subtract(reachable, held_by_actors)
    for waiter in queue.waiting.values():
        if now - waiter.waiting_since < STARVED_AFTER_S:
            break
        if waiter.rests_until > now or not waiter.pool.idle or not fits(waiter.need, reachable):
            continue
        names = _names_to_reserve(waiter.need, view.available)
        if not names or any(name in view.reservations for name in names):
            continue
        waiter.patience_s = min(2 * waiter.patience_s, RESERVED_MAX_S) or RESERVED_S
        for name in names:
            view.reservations[name] = (waiter, now + waiter.patience_s)


def _names_to_reserve(need: Resources, available: Resources) -> list[str]:
    """What is kept free for one who starves: everything when at most CPUs are short, all but the CPUs when something else is."""
    names = [name for name in need if not is_mark(name)]
    for name in names:
        if base_name(name) != CPU and available.get(name, 0) < need[name]:
            return [each for each in names if base_name(each) != CPU]
    return names

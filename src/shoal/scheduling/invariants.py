"""What always holds in the local scheduler, looked at as a whole: for tests and simulations.

Purpose: `check_invariants` asserts that amounts add up, that leases, workers and queues agree with each other, and that bundles of placement groups
are neither lost nor counted twice.

How to extend: an assertion with the invariant of a new attribute.

What it does not do: run in production.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.protocol.limits import RESOURCE_UNIT
from shoal.protocol.resources import CPU, Resources, add
from shoal.scheduling.bundles import base_name

if TYPE_CHECKING:
    from shoal.scheduling.local_scheduler import LocalScheduler


def check_invariants(scheduler: LocalScheduler) -> None:
    """Assert every invariant: for tests and simulations (it looks at everything)."""
    view = scheduler._view
    held: Resources = {}
    for lease in scheduler._leases.values():
        add(held, lease.held())
    for bundle in view.bundles.all():
        add(held, bundle.resources)
    for name in {**view.total, **held, **view.available}:
        total, free, used = view.total.get(name, 0), view.available.get(name, 0), held.get(name, 0)
        assert total == free + used, f"{name}: {used} held and {free} free are not {total}"
        assert free >= 0 or base_name(name) == CPU, f"{name} is over-granted: {free}"
    _check_leases(scheduler)
    _check_workers(scheduler)
    _check_queue(scheduler)


def _check_leases(scheduler: LocalScheduler) -> None:
    leases = scheduler._leases
    actors = {number: lease for number, lease in leases.items() if lease.holder.is_actor}
    tasks = {number: lease for number, lease in leases.items() if number not in actors}
    assert scheduler._active == {n: each for n, each in tasks.items() if not each.blocked and not each.revoked}
    assert scheduler._ending == {n: each for n, each in tasks.items() if each.revoked}
    assert tasks == {n: each for part in scheduler._leases_of.values() for n, each in part.items()}
    assert scheduler._actors == len(actors)
    assert scheduler._blocked == sum(each.blocked for each in leases.values())
    assert scheduler._running == sum(1 for each in leases.values() if each.cpu_units and not each.blocked)
    held_by_actors: Resources = dict.fromkeys(scheduler.held_by_actors, 0)
    for lease in actors.values():
        add(held_by_actors, lease.hold)
    assert held_by_actors == scheduler.held_by_actors
    used: dict[tuple[str, int], int] = {}
    for lease in leases.values():
        for name, ids in lease.assigned.items():
            assert len(ids) == -(-lease.hold[name] // RESOURCE_UNIT)
            for number in ids:
                units = used.get((name, number), 0) + min(lease.hold[name], RESOURCE_UNIT)
                assert units <= RESOURCE_UNIT, f"{name} {number} is shared beyond 1"
                used[name, number] = units


def _check_workers(scheduler: LocalScheduler) -> None:
    for lease in scheduler._leases.values():
        worker = lease.worker
        assert scheduler._pool.workers.get(worker.worker_id) is worker, "a lease has no live worker"
        assert worker.lease_id == lease.lease_id and worker.pool is lease.holder.pool and not worker.leaving
    for worker in scheduler._pool.workers.values():
        idle = worker.worker_id in worker.pool.idle
        assert idle + worker.leaving + bool(worker.lease_id) == 1
        assert not worker.lease_id or worker.lease_id in scheduler._leases
    for pool in scheduler._pool.pools.values():
        serving = sum(1 for each in scheduler._leases.values() if each.worker.pool is pool)
        assert pool.serving == serving and pool.starting >= 0
        assert pool.waiting == sum(1 for each in scheduler._queue.waiting.values() if each.pool is pool)


def _check_queue(scheduler: LocalScheduler) -> None:
    queue = scheduler._queue
    entries = [entry for job in queue.jobs.values() for lane in job.lanes.values() for entry in lane.entries]
    assert sorted(entry[2] for entry in entries) == sorted(
        each.entry[2] for each in queue.waiting.values() if each.entry
    )
    since = [each.waiting_since for each in queue.waiting.values()]
    assert since == sorted(since), "the queue has lost its order"
    for waiter in queue.waiting.values():
        assert waiter.backlog > 0 and waiter.lane is not None and scheduler._classes[waiter.key] is waiter
    for job in queue.jobs.values():
        for lane in job.lanes.values():
            assert lane.entries and lane.entries == sorted(lane.entries, key=lambda entry: entry[:3])
            for depth, running, _, waiter in lane.entries:
                assert waiter.lane is lane
                assert (depth, running) == (-waiter.depth, waiter.leases - waiter.blocked)
        mine = [each for each in scheduler._leases.values() if each.holder.job is job]
        assert job.cpu_granted == sum(each.cpu_units for each in mine if not each.blocked)
    for holder in [*scheduler._classes.values(), *(lease.holder for lease in scheduler._leases.values())]:
        mine = [each for each in scheduler._leases.values() if each.holder is holder]
        assert holder.leases == len(mine) and holder.blocked == sum(each.blocked for each in mine)
        assert holder.leases or holder.lane is not None

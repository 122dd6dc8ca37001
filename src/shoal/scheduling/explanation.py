"""Why somebody waits: one paragraph from the state of the local scheduler, for `shoal status`, warnings and error messages.

Purpose: a pending task or actor explains itself: what it asks, what is free, who holds the rest, which workers are starting.

What it does not do: decide anything; it may be wrong a moment later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.protocol.resources import Resources, fits, format_resources, format_total
from shoal.scheduling.grant_policy import Lease, NodeView
from shoal.scheduling.request_queue import SchedulingClass
from shoal.scheduling.worker_pool import WorkerPool

HOLDERS_SHOWN_MAX = 5


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


def explain_waiting(waiter: SchedulingClass, view: NodeView, leases: Mapping[int, Lease], pool: WorkerPool) -> str:
    """The reasons why `waiter` has not been granted (more) leases by now."""
    name = waiter.name or ("an actor" if waiter.is_actor else "a task")
    many = f" ({waiter.backlog} wait)" if waiter.backlog > 1 else ""
    parts = [f"{name}{many} asks for {format_resources(waiter.need)}"]
    available = {each: max(0, units) for each, units in view.available.items()}
    short = [each for each, units in waiter.need.items() if available.get(each, 0) < units]
    if short:
        free = {each: available.get(each, 0) for each in short}
        total = {each: view.total.get(each, 0) for each in short}
        parts.append(f"free: {format_resources(free)} of {format_resources(total)}")
        parts.append(f"held by {_holders(short, leases)}")
    elif not view.accelerators.fits(waiter.need):
        parts.append("enough accelerators are free in sum, but in pieces on different ones")
    if kept := _kept_for(waiter, view):
        parts.append(f"the next free {kept[0]} is kept for {kept[1]}, which has waited longer")
    if not short and not waiter.pool.idle:
        parts.append(_workers(waiter, pool))
    return "; ".join(parts) + "."


def awaits_only_workers(waiter: SchedulingClass, view: NodeView, pool: WorkerPool) -> bool:
    """Whether nothing is short, and workers are starting for `waiter`."""
    return (
        all(view.available.get(each, 0) >= units for each, units in waiter.need.items())
        and view.accelerators.fits(waiter.need)
        and waiter.pool.starting > 0
        and not waiter.pool.failures
    )


def _holders(short: list[str], leases: Mapping[int, Lease]) -> str:
    """Who holds what is short, by name, the largest first."""
    amounts: dict[str, Resources] = {}
    counts: dict[str, int] = {}
    for lease in leases.values():
        held = lease.held()
        part = {each: held[each] for each in short if held.get(each)}
        if not part:
            continue
        kind = "actor" if lease.holder.is_actor else "task"
        name = f"{kind} {lease.holder.name}" if lease.holder.name else f"an unnamed {kind}"
        counts[name] = counts.get(name, 0) + 1
        sums = amounts.setdefault(name, {})
        for each, units in part.items():
            sums[each] = sums.get(each, 0) + units
    order = sorted(amounts, key=lambda name: (-sum(amounts[name].values()), name))
    shown = [f"{counts[name]} x {name} ({format_resources(amounts[name])})" for name in order[:HOLDERS_SHOWN_MAX]]
    if len(order) > HOLDERS_SHOWN_MAX:
        shown.append(f"{len(order) - HOLDERS_SHOWN_MAX} more")
    return ", ".join(shown) or "nobody any more"


def _kept_for(waiter: SchedulingClass, view: NodeView) -> tuple[str, str] | None:
    for name in waiter.need:
        other = view.reservations.get(name)
        if other is not None and other[0] is not waiter and fits(other[0].need, view.total):
            return name, other[0].name or "another class"
    return None


def _workers(waiter: SchedulingClass, pool: WorkerPool) -> str:
    """Why there is no worker for it."""
    mine = waiter.pool
    if len(pool.workers) >= pool.workers_max:
        return f"the node has {len(pool.workers)} workers, its limit"
    if mine.failures:
        return f"workers could not be started {mine.failures} times ({mine.failure}); it is being tried again"
    return f"{mine.starting} workers for it are starting"


def explain_never(need: Resources, total: Resources, name: str) -> str:
    """Why a node with `total` can never give `need`."""
    missing = {each: units - total.get(each, 0) for each, units in need.items() if units > total.get(each, 0)}
    return (
        f"{name} asks for {format_resources(need)}, but this node has {format_total(total, need)} in total: "
        f"it lacks {format_resources(missing)}. Ask for less, or give the node more at init()."
    )

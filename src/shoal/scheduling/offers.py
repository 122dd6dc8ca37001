"""Which waiting tasks are offered to other nodes: those that would start sooner there.

Purpose: the decision between "it waits here" and "the global scheduler shall name a node" (paper 4.2.2: a node that is overloaded forwards).

Design: what counts is not how long the head of the queue has waited, since every slice that a class is granted begins that anew, but how long its
tail will. A submitter says with its backlog how long its tasks take. In the order in which they are served, classes queue up behind each other:

    wait of a class's last task = sum over it and all before it of   backlog x task time / how many run side by side

What would wait longer than LEASE_ABROAD_S is *over*; leases are asked for it as if each took LEASE_ABROAD_S of work off the queue, or one task.
Tasks under SHORT_TASK_S stay: their submitter spends as long on one as a worker does, so more workers do not help it.

*Starving*: a class whose tasks are of unknown length is offered whole when it was granted nothing for OVERDUE_S; one of known length when it has no
worker at all and is not served in its turn either, for STARVING_S (the CPUs are with long tasks, whatever the sum above says).

*Restraint* (`Offers`). In a busy cluster every node is overloaded, and what is asked for is served at home before anybody else has room. Each such
question in vain doubles a pause in which only the starving are offered anew, up to PAUSE_MAX_S; a placement ends it. At most NEW_MAX classes are
offered at one look, those with most first.

What it does not do: know nodes (`gcs.global_scheduler` does), remember what is asked of whom (`forwarding`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal.protocol.limits import LEASE_SLICE_S, SHORT_TASK_S
from shoal.protocol.resources import Resources

#: a lease elsewhere costs a tenth of it on a quiet machine, and may be taken back after it
LEASE_ABROAD_S = LEASE_SLICE_S
OVERDUE_S = 0.02
STARVING_S = 0.1  #: more than the turns of others take, whose leases are slices of LEASE_SLICE_S
PAUSE_MIN_S = 0.04
PAUSE_MAX_S = 0.32
NEW_MAX = 8
SIDE_BY_SIDE_MAX = 1 << 20  #: of what asks for nothing

Key = tuple[bytes, int]  #: (process, class number)

assert SHORT_TASK_S < LEASE_ABROAD_S < OVERDUE_S <= PAUSE_MIN_S < PAUSE_MAX_S
assert STARVING_S >= 5 * LEASE_SLICE_S


@dataclass(slots=True)
class WaitingTasks:
    """A class of tasks that waits, as this decision sees it."""

    key: Key
    backlog: int
    task_s: float  #: how long one takes; 0: not known
    side_by_side: int  #: how many of its tasks fit on the node
    running: int  #: leases that it has and that are not blocked
    waited_s: float  #: since it began to wait, or was granted something


#: who waits: (now, 0) all in the order of service; (now, seconds) those that were granted nothing for so long
Waiting = Callable[[float, float], Sequence[WaitingTasks]]


def side_by_side(need: Resources, total: Resources) -> int:
    """How many times `need` fits into all that the node has; 1 at least."""
    return max(1, min((total.get(name, 0) // units for name, units in need.items() if units), default=SIDE_BY_SIDE_MAX))


def starving(waiting: Sequence[WaitingTasks]) -> list[tuple[Key, int]]:
    """Classes that got nothing for too long, whatever is known of their tasks, with all that they wait for."""
    return [
        (each.key, each.backlog)
        for each in waiting
        if each.waited_s >= OVERDUE_S and (not each.task_s or (not each.running and each.waited_s >= STARVING_S))
    ]


def over(waiting: Sequence[WaitingTasks]) -> list[tuple[Key, int]]:
    """Classes (in the order of service) whose tails would wait too long here, with the leases that are worth asking for."""
    found = []
    ahead_s = 0.0
    for each in waiting:
        own_s = each.backlog * each.task_s / each.side_by_side
        ahead_s += own_s
        over_s = min(own_s, ahead_s - LEASE_ABROAD_S)
        if over_s > 0 and each.task_s >= SHORT_TASK_S:
            work_s = over_s * each.side_by_side
            found.append((each.key, min(each.backlog, max(1, round(work_s / max(each.task_s, LEASE_ABROAD_S))))))
    return found


class Offers:
    """What one node offers, look by look."""

    __slots__ = ("_offered", "_pause_s", "_quiet_until")

    def __init__(self) -> None:
        #: classes that were offered and neither placed since nor served here
        self._offered: dict[Key, None] = {}
        self._pause_s = 0.0
        self._quiet_until = 0.0

    def look(self, waiting_tasks: Waiting, now: float) -> list[tuple[Key, int]]:
        """What is offered now: (class, leases in all that are asked of others)."""
        if now < self._quiet_until:
            return starving(waiting_tasks(now, OVERDUE_S))
        waiting = waiting_tasks(now, 0.0)
        found = dict(starving(waiting))
        here = {each.key for each in waiting}
        served = [key for key in self._offered if key not in here]
        for key in served:
            del self._offered[key]
        if served:
            self._pause_s = min(PAUSE_MAX_S, max(PAUSE_MIN_S, 2 * self._pause_s))
            self._quiet_until = now + self._pause_s
            return list(found.items())
        room = NEW_MAX
        for key, count in sorted(over(waiting), key=lambda each: -each[1]):
            if key in found:
                continue
            if key not in self._offered:
                if not room:
                    continue
                room -= 1
                self._offered[key] = None
            found[key] = count
        return list(found.items())

    def placed(self, key: Key) -> None:
        """Others had room for a class: they may have more."""
        self._offered.pop(key, None)
        self._pause_s = self._quiet_until = 0.0

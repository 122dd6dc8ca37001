"""How long a class's backlog will keep workers busy: what a submitter tells its daemon, and when it is worth telling anew.

Purpose: the daemon decides from it what it offers to other nodes (`scheduling.offers`), and never sees single tasks.

Design: every request for leases carries the average time of a task. After that only a change by half is news: of the backlog as it shrinks,
and of the time as it gets known. Tasks under SHORT_TASK_S stay here however many they are, so only that is told of them, once: they are done before
anything else matters.

    time of a task     0: not known | < SHORT_TASK_S: told once, until it is twice SHORT_TASK_S | longer: told when it has doubled or halved

A running task that does not end takes at least as long as it runs already, if nothing is known; what contradicts an average must have lasted for
STUCK_AFTER_S, since replies come in batches. Beyond LONG_TASK_S nobody wants to know more exactly.

What it does not do: send (`submitter`), decide (`scheduling.offers`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.protocol.limits import LONG_TASK_S, QUEUED_WORK_S, SHORT_TASK_S, STUCK_AFTER_S

if TYPE_CHECKING:
    from shoal.runtime.tasks import SchedulingClass

#: a backlog up to this may come and go with every reply: that fewer wait is told at a tick (`lease_requests`)
FEW_WAITING = 8


def estimate_s(klass: SchedulingClass, now: float) -> float:
    """How long the next task of a class takes: by the average of its function, or longer if one runs longer already. Caller holds the lock."""
    average_s = klass.queue[0].template.estimate_s
    runs_s = max((now - lease.progress_at for lease in klass.leases.values() if lease.inflight), default=0.0)
    return lasting_s(average_s, runs_s)


def lasting_s(average_s: float, runs_s: float) -> float:
    """How long a task is taken to last: by the average, or what has been running for `runs_s` if that says more."""
    return runs_s if runs_s > average_s and (average_s == QUEUED_WORK_S or runs_s >= STUCK_AFTER_S) else average_s


def is_news(waiting: int, task_s: float, backlog_told: int, task_s_told: float) -> bool:
    """Whether the daemon shall hear of a backlog that has become smaller, or of tasks that take another time than it was told.

    QUEUED_WORK_S exactly is the time of a task that nobody knows.
    """
    if task_s == QUEUED_WORK_S:
        return False
    if task_s < SHORT_TASK_S:
        return not task_s_told or task_s_told >= 2 * SHORT_TASK_S
    fewer = 2 * waiting <= backlog_told and backlog_told > FEW_WAITING
    return fewer or task_s >= 2 * task_s_told or 2 * task_s <= task_s_told


def may_grow(task_s_told: float) -> bool:
    """Whether it would change anything if the tasks that run were found to take longer than was told."""
    return task_s_told < LONG_TASK_S

"""What a submitter tells its daemon of the tasks that wait for leases: a part of `submitter`.

Purpose: the daemon knows each class's backlog, and a queue that goes up and down between 0 and 4 costs nobody a message a task.

Design: more is told at once, when the backlog has doubled: tasks wait for it. Fewer is told at once beyond FEW_WAITING. Up to that a queue may
empty and fill with every reply (35 us of CPU time for each message), so it is told at the tick, and only if since the last one the queue was never
longer than half of what the daemon knows. Until then, 5 to 10 ms, a grant may come for which there is no task: it is returned. A worker that has
nothing to do says so at once. The daemon counts down what was told with each grant, and so does `submitter.on_granted`.

What it does not do: judge what is news (`outlook`), or use what is granted (`submitter`).
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from shoal.protocol.limits import QUEUED_WORK_S
from shoal.protocol.messages import RequestLeases
from shoal.protocol.strategies import LOCALITY
from shoal.runtime import outlook

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.tasks import SchedulingClass


class LeaseRequests:
    """The backlogs of one process's classes, as its daemon knows them. Guarded by the reactor's lock."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.reactor = runtime.reactor
        #: classes of which fewer tasks wait than was told
        self._fewer: dict[SchedulingClass, None] = {}

    def tell(self, klass: SchedulingClass, backlog: int) -> None:
        """Tell the daemon how many tasks of a class wait."""
        if backlog and LOCALITY in klass.strategy:
            backlog = max(self.runtime.locality.leases_wanted(klass), klass.backlog_told)
        task_s = klass.task_s_told
        if klass.queue:
            found_s = outlook.estimate_s(klass, perf_counter())
            if found_s != QUEUED_WORK_S:
                task_s = found_s
        if backlog == klass.backlog_told and not outlook.is_news(
            backlog, task_s or QUEUED_WORK_S, backlog, klass.task_s_told
        ):
            return
        daemon = self.reactor.causal
        if daemon is None:
            return
        klass.backlog_told = backlog
        klass.task_s_told = task_s
        if klass.queue:
            klass.name = klass.queue[0].template.wire.name
        daemon.send_now(
            RequestLeases(
                klass.number,
                self.runtime.job_id,
                klass.demand,
                klass.depth,
                backlog,
                klass.strategy,
                klass.environment,
                klass.name,
                task_s,
            )
        )
        if backlog:
            self.reactor.attend()

    def refilled(self, klass: SchedulingClass, waited: int) -> None:
        """Leases were filled from a class's queue, in which `waited` tasks stood before."""
        queue, told = klass.queue, klass.backlog_told
        if told and waited > klass.waited_most:
            klass.waited_most = waited
        if queue:
            if outlook.is_news(len(queue), queue[0].template.estimate_s, told, klass.task_s_told):
                self.tell(klass, len(queue))
            elif 2 * len(queue) <= told <= outlook.FEW_WAITING:
                self._tell_later(klass)
        elif told > outlook.FEW_WAITING or (told and LOCALITY in klass.strategy):
            self.tell(klass, 0)
        elif told:
            self._tell_later(klass)

    def _tell_later(self, klass: SchedulingClass) -> None:
        self._fewer[klass] = None
        self.reactor.attend()

    def tick(self) -> None:
        """Tell of classes of which fewer tasks wait for some time."""
        fewer, self._fewer = self._fewer, {}
        if self.reactor.causal is None:
            return
        for klass in fewer:
            waited, klass.waited_most = max(klass.waited_most, len(klass.queue)), len(klass.queue)
            if 2 * waited <= klass.backlog_told:
                self.tell(klass, waited)
            if klass.backlog_told >= max(1, 2 * len(klass.queue)):
                self._tell_later(klass)

    def tell_outlook(self, klass: SchedulingClass, now: float) -> None:
        """Tasks of a class wait, and those before them may take longer than thought."""
        waiting = len(klass.queue)
        if LOCALITY in klass.strategy or outlook.is_news(
            waiting, outlook.estimate_s(klass, now), klass.backlog_told, klass.task_s_told
        ):
            self.tell(klass, waiting)

    def tell_none(self) -> None:
        """This worker has nothing to do: what is told late is told now."""
        fewer, self._fewer = self._fewer, {}
        for klass in fewer:
            if klass.backlog_told and not klass.queue:
                self.tell(klass, 0)

    def is_late(self) -> bool:
        """Whether something is to be told at a tick."""
        return bool(self._fewer)

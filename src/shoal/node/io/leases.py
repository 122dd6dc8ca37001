"""The local scheduler's shell: messages become its events, its effects become messages.

Purpose: leases requested, granted, revoked, returned; workers started and stopped as the machine says; tasks killed or interrupted.

Design: events are queued while effects are performed, so the machine is never entered twice. One timer stands at the machine's `tick_at`, and none
when it wants none. The order that matters is kept here: `LeaseStarted` is in the worker's socket before `LeaseGranted` is written.

    RequestLeases -> LeasesRequested -> machine -> GrantLease -> LeaseStarted -> (in the kernel) -> LeaseGranted

How to extend: a new message gets a method, listed by `daemon` in its table; a new effect a row in `_PERFORM`.

What it does not do: decide (`scheduling.local_scheduler`), or know why a process died (`daemon`).
"""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.node.io.patience import Patience
from shoal.node.io.processes import Process, ProcessTable, Worker
from shoal.node.io.workers import EXIT_GRACE_S, WorkerPool
from shoal.protocol import messages
from shoal.protocol.limits import RESOURCE_UNIT
from shoal.protocol.messages import (
    UNSCHEDULABLE_BUNDLE_GONE,
    UNSCHEDULABLE_GROUP_REMOVED,
    KillWorker,
    LeaseGranted,
    LeaseStarted,
    LeasesUnschedulable,
    SignalWorker,
)
from shoal.protocol.resources import MEMORY
from shoal.protocol.strategies import KIND, PLACEMENT_GROUP
from shoal.scheduling import events
from shoal.scheduling.local_scheduler import LocalScheduler
from shoal.scheduling.node_policy import NodeView, Wish, can_ever, why_never
from shoal.system.machine import private_bytes

if TYPE_CHECKING:
    import asyncio

    from shoal.node.io.foreign_leases import ForeignLeases
    from shoal.node.io.groups import Groups

#: workers receive this when the task they run shall be interrupted
INTERRUPT_SIGNAL = signal.SIGUSR1
#: a worker whose task is cancelled with force has this long to cancel the task's children and kill itself
KILL_AFTER_S = 0.1
#: how often a surplus worker is looked at that still owes results to others
STOP_LOOK_S = 0.5


def _nothing() -> None:
    pass


class Leases:
    """Who works for whom on this node.

    Args:
        on_actor: gets AssignActor and RefuseActor effects.
        on_work: called when a worker gets a lease.
        owes: whether others wait for values that a process has yet to publish.
    """

    def __init__(
        self,
        machine: LocalScheduler,
        table: ProcessTable,
        pool: WorkerPool,
        loop: asyncio.AbstractEventLoop,
        on_actor: Callable[[Any], None],
        on_work: Callable[[], None] = lambda: None,
        owes: Callable[[bytes], bool] = lambda process: False,
    ) -> None:
        self.machine = machine
        self._table = table
        self._pool = pool
        self._loop = loop
        self._on_actor = on_actor
        self._owes = owes
        self._on_work = on_work
        self._events: deque[Any] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0  #: uvloop's handles do not tell
        self.patience = Patience(machine, table, loop)
        #: worker of every lease (also of actors) that was granted and has not ended
        self.workers: dict[int, Worker] = {}
        #: of a node in a cluster: leases across nodes
        self.foreign: ForeignLeases | None = None
        #: how policies see this node; the daemon puts it here
        self.view: Callable[[], NodeView]
        #: placement groups; they put themselves here
        self.groups: Groups
        #: called when the machine has handled something
        self.on_change: Callable[[], None] = _nothing

    # ---------------------------------------------------------------- the machine's door

    def handle(self, event: Any) -> None:
        """Give the machine an event and do what it says, also when called from within what it says."""
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                for effect in self.machine.handle(self._events.popleft(), self._loop.time()):
                    _PERFORM[type(effect)](self, effect)
        finally:
            self._busy = False
        self._arm()
        self.patience.attend()
        self.on_change()

    def _arm(self) -> None:
        """Keep the timer no later than the machine wants it; one that fires too early is set again."""
        at = self.machine.tick_at
        if at == math.inf:
            return
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._tick)
        self._timer_at = at

    def _tick(self) -> None:
        self._timer = None
        if self.machine.tick_at <= self._loop.time():
            self.handle(events.Tick())
        else:
            self._arm()

    def begin(self) -> None:
        """The node is up: let the machine start its first workers."""
        self.handle(events.Tick())

    # ---------------------------------------------------------------- messages

    def on_request(self, process: Process, message: messages.RequestLeases) -> None:
        """A submitter has a backlog."""
        if self.foreign is not None:
            self.foreign.on_request(process, message)
        elif message.strategy:
            self._request_alone(process, message)
        else:
            self.request(process.worker_id, message, message.backlog)

    def _request_alone(self, process: Process, message: messages.RequestLeases) -> None:
        """A request with a strategy, on a node that is the whole cluster."""
        if message.strategy.get(KIND) == PLACEMENT_GROUP:
            self.groups.request(process.worker_id, message, message.backlog)
            return
        wish = Wish(message.demand, message.strategy)
        view = self.view()
        if message.backlog and not can_ever(view, wish):
            process.send(LeasesUnschedulable(message.class_no, why_never([view], wish, message.name)))
        else:
            self.request(process.worker_id, message, message.backlog)

    def request(self, process: bytes, message: messages.RequestLeases, backlog: int) -> None:
        """Ask the machine for `backlog` leases of a class."""
        self.handle(
            events.LeasesRequested(
                process,
                message.class_no,
                message.job_id,
                message.demand,
                message.depth,
                backlog,
                message.strategy,
                message.environment,
                message.name,
                message.task_s,
            )
        )

    def on_return(self, process: Process, message: messages.ReturnLease) -> None:
        """A submitter needs a lease no more."""
        if self.foreign is None or not self.foreign.on_lease_message(message):
            self.return_lease(message)

    def return_lease(self, message: messages.ReturnLease) -> None:
        """A lease of this node is needed no more."""
        if message.lease_id in self.workers:
            self.handle(events.LeaseReturned(message.lease_id, message.idle_s))

    def on_finished(self, process: Process, message: messages.LeaseFinished) -> None:
        """A worker ended its lease."""
        worker = self.workers.get(message.lease_id)
        if worker is not process:
            return
        del self.workers[message.lease_id]
        worker.lease_id = 0
        if message.exiting:
            worker.leaving = worker.leaving or "it left after its last task"
            self._pool.kill_later(worker, EXIT_GRACE_S)
        if self.foreign is not None:
            self.foreign.lease_finished(message.lease_id)
        used = worker.page is None or worker.page.read_started()[0] == message.lease_id
        self.handle(events.LeaseFinished(message.lease_id, message.exiting, used))

    def on_blocked(self, process: Process, message: messages.Blocked) -> None:
        """A worker's task waits."""
        if self.workers.get(message.lease_id) is process:
            self.handle(events.WorkerBlocked(message.lease_id))

    def on_unblocked(self, process: Process, message: messages.Unblocked) -> None:
        """A worker's task goes on."""
        if self.workers.get(message.lease_id) is process:
            self.handle(events.WorkerUnblocked(message.lease_id))

    def on_kill(self, process: Process, message: KillWorker) -> None:
        """A task is cancelled with force."""
        if self.foreign is None or not self.foreign.on_lease_message(message):
            self.kill_soon(message)

    def kill_soon(self, message: KillWorker) -> None:
        """The worker kills itself, once it has cancelled the task's children; one that cannot is killed."""
        self._loop.call_later(KILL_AFTER_S, self._kill, message)

    def _kill(self, message: KillWorker) -> None:
        worker = self._running(message)
        if worker is not None:
            self._pool.kill(worker, "killed by shoal.cancel(force=True)")

    def on_signal(self, process: Process, message: SignalWorker) -> None:
        """A task is to be interrupted."""
        if self.foreign is None or not self.foreign.on_lease_message(message):
            self.signal(message)

    def signal(self, message: SignalWorker) -> None:
        """Interrupt a task of this node."""
        worker = self._running(message)
        if worker is not None and worker.watch is not None:
            worker.watch.kill(INTERRUPT_SIGNAL)

    def _running(self, message: KillWorker | SignalWorker) -> Worker | None:
        """The worker that runs exactly this task now."""
        worker = self.workers.get(message.lease_id)
        if worker is None or worker.page is None or worker.page.read_started() != (message.lease_id, message.seq):
            return None
        return worker

    # ---------------------------------------------------------------- lives

    def worker_ready(self, worker: Worker) -> None:
        """A worker has registered."""
        self.handle(events.WorkerReady(worker.worker_id, worker.environment_key))

    def process_died(self, process: Process) -> None:
        """A registered process is dead; those concerned were told."""
        if isinstance(process, Worker):
            if process.lease_id:
                self.workers.pop(process.lease_id, None)
            self.handle(events.WorkerDied(process.worker_id))
        for worker in self._table.workers():
            worker.submitters.pop(process.worker_id, None)
        self.handle(events.ProcessDied(process.worker_id))

    def start_failed(self, environment_key: str, reason: str) -> None:
        """A worker that was asked for did not come up."""
        self.handle(events.WorkerStartFailed(environment_key, reason))

    def start_lease(
        self, worker: Worker, effect: events.GrantLease | events.AssignActor, submitter_id: bytes, depth: int
    ) -> None:
        """Tell a worker of its new lease."""
        self.workers[effect.lease_id] = worker
        worker.lease_id = effect.lease_id
        worker.job_id = effect.job_id
        worker.memory_asked = effect.demand.get(MEMORY, 0) // RESOURCE_UNIT
        worker.memory_before = private_bytes(worker.pid) if worker.memory_asked else 0
        self._on_work()
        worker.send(
            LeaseStarted(
                effect.lease_id,
                submitter_id,
                effect.job_id,
                effect.demand,
                effect.assigned,
                effect.environment,
                depth,
                self._table.namespaces.get(effect.job_id, ""),
                effect.group,
            )
        )

    # ---------------------------------------------------------------- effects

    def _grant(self, effect: events.GrantLease) -> None:
        worker = self._table.worker(effect.worker_id)
        submitter = self._table.by_id.get(effect.process)
        if worker is None or worker.connection is None:
            return  # dying: the machine hears of it next
        worker.submitters[effect.process] = None
        self.start_lease(worker, effect, effect.process, effect.depth)
        granted = LeaseGranted(effect.class_no, effect.lease_id, effect.worker_id, worker.address, worker.pid)
        foreign = self.foreign
        if submitter is not None:
            worker.connection.when_written(lambda: submitter.send(granted))
            if foreign is not None:
                foreign.granted_here(effect.process, effect.class_no)
        elif foreign is not None and foreign.node_of(effect.process) is not None:
            worker.connection.when_written(lambda: foreign.tell(effect.process, granted))
        else:
            self.handle(events.LeaseReturned(effect.lease_id))

    def _revoke(self, effect: events.RevokeLease) -> None:
        worker = self._table.worker(effect.worker_id)
        if worker is not None:
            worker.send(messages.RevokeLease(effect.lease_id))

    def _refuse(self, effect: events.RefuseClass) -> None:
        if self.foreign is not None:
            self.foreign.refused_here(effect.process, effect.class_no, effect.reason, effect.kind)
            return
        kind = effect.kind
        if kind == UNSCHEDULABLE_BUNDLE_GONE:  # and there is no other node
            kind = UNSCHEDULABLE_GROUP_REMOVED
        self._table.send(effect.process, LeasesUnschedulable(effect.class_no, effect.reason, kind))

    def _start(self, effect: events.StartWorkers) -> None:
        self._pool.start_workers(effect.environment_key, effect.environment, effect.count)

    def _stop(self, effect: events.StopWorker) -> None:
        """A worker that is not needed stops once the tasks that it has submitted have ended."""
        worker = self._table.worker(effect.worker_id)
        if worker is None:
            return
        abroad = self.foreign is not None and self.foreign.machine.has_abroad(effect.worker_id)
        if abroad or self._owes(effect.worker_id) or self.machine.submits(effect.worker_id):
            self._loop.call_later(STOP_LOOK_S, self._stop, effect)
        else:
            self._pool.stop(worker, effect.reason)

    def _actor(self, effect: Any) -> None:
        self._on_actor(effect)

    def _bundle(self, effect: events.BundleDone) -> None:
        self.groups.on_done(effect)

    def _end_worker(self, effect: events.KillWorker) -> None:
        worker = self._table.worker(effect.worker_id)
        if worker is not None:
            worker.group_removed = effect.group_removed
            self._pool.kill(worker, f"killed with its placement group: {effect.reason}")


_PERFORM: dict[type, Callable[[Leases, Any], None]] = {
    events.GrantLease: Leases._grant,
    events.RevokeLease: Leases._revoke,
    events.RefuseClass: Leases._refuse,
    events.StartWorkers: Leases._start,
    events.StopWorker: Leases._stop,
    events.AssignActor: Leases._actor,
    events.RefuseActor: Leases._actor,
    events.BundleDone: Leases._bundle,
    events.KillWorker: Leases._end_worker,
}

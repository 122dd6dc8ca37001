"""Submitting tasks: classes, leases, pushes, replies, retries.

Purpose: take a ready task to a leased worker in one send, and its reply back to its entry, at about 3 us each.

Design: this is the hot path, so it is procedural and tight. All of it runs under the reactor's lock. A ready task goes straight to a lease of
its class that has room, else into the class's queue, and the daemon is told the backlog. Room is counted in time: 1-2 ms of work (by the
template's average) may queue at a worker, and one task whose time is unknown or long. Pushes are gathered (`lease.out`) unless the worker is idle;
they leave with the 32nd task, at the next get, or at the next tick (5 ms).

    push      idle lease first, then the open one that is being filled
    reply     the entry gets its value; the lease is refilled from the queue
    bounce    the worker gives tasks back (revoked, recalled, blocked): they are queued again in front
    recall    a lease that makes no progress while others idle gives back its unstarted tasks
    death     WorkerDied (from the daemon) and the end of the connection together: the started task is charged a retry

What it does not do: dependencies and arguments (`core`), actors' calls (`actor_calls`), or granting leases (the daemon).
"""

from __future__ import annotations

from collections import deque
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from shoal import serialization
from shoal.protocol import errors
from shoal.protocol.limits import (
    FLUSH_TASKS,
    FRAME_BYTES_MAX,
    INLINE_FEW,
    INLINE_TASK_BYTES_MAX,
    LEASE_IDLE_S,
    PROTOCOL_VERSION,
    QUEUED_WORK_S,
    STUCK_AFTER_S,
)
from shoal.protocol.messages import (
    UNSCHEDULABLE_GROUP_REMOVED,
    DefineFunction,
    Failed,
    ForgetFunction,
    FreeObjects,
    Hello,
    LeaseGranted,
    LeasesUnschedulable,
    PushTasks,
    RecallTasks,
    ReturnLease,
    TaskReplies,
    TasksBounced,
    WorkerDied,
)
from shoal.protocol.strategies import LOCALITY
from shoal.runtime import outlook, unread_errors
from shoal.runtime.abroad import is_abroad, shun_dead_node
from shoal.runtime.dialling import Dial, Dialler
from shoal.runtime.lease_requests import LeaseRequests
from shoal.runtime.objects import ObjectEntry, sendable
from shoal.runtime.received_refs import ReceivedRefs
from shoal.runtime.streams import count_retry, untold_results
from shoal.runtime.task_errors import crash_error, oversize_error
from shoal.runtime.tasks import PendingTask, SchedulingClass, Template, WorkerLease, WorkerPeer, started_under

if TYPE_CHECKING:
    import socket

    from shoal.runtime.core import Runtime
    from shoal.runtime.reactor import Connection

LAST_REPLIES_WITHIN_S = 2.0  #: after the news of a death on another node its last replies come, or never
DEATH_TOLD_WITHIN_S = 10.0  #: after the end of a connection the daemon tells of the worker's, long before this


class Submitter:
    """The submitting side of one process."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.reactor = runtime.reactor
        #: all classes by number, and by what makes them one; they live as long as templates, leases or `_busy` refer to them
        self.classes: WeakValueDictionary[int, SchedulingClass] = WeakValueDictionary()
        self._class_of: WeakValueDictionary[Any, SchedulingClass] = WeakValueDictionary()
        self._class_count = 0
        #: classes with leases, or with tasks that wait for one
        self._busy: dict[SchedulingClass, None] = {}
        self._peers: dict[bytes, Connection] = {}
        self.dialler = Dialler(runtime, self._on_dialled, self._on_slow_dial)
        #: leases with gathered pushes
        self._unsent: list[WorkerLease] = []
        #: numbers of templates with which nobody can submit any more; filled by finalizers
        self.gone_templates: deque[int] = deque()
        self.lease_count = 0  #: leases of tasks (not of actors)
        self.pending = 0  #: submitted tasks whose result is not known
        #: connections that ended, before the daemon said how their workers did
        self._unexplained: list[Connection] = []
        self.received = ReceivedRefs(self.reactor)
        self.requests = LeaseRequests(runtime)
        self.waiting: dict[bytes, PendingTask] = {}  #: tasks whose arguments are not all known, by TaskID
        handlers = self.reactor.handlers
        handlers[TaskReplies] = self.on_replies
        handlers[TasksBounced] = self.on_bounced
        handlers[LeaseGranted] = self.on_granted
        handlers[LeasesUnschedulable] = self.on_unschedulable
        handlers[WorkerDied] = self.on_worker_died

    # ------------------------------------------------------------ classes

    def class_of(
        self, demand: dict[str, int], depth: int, strategy: dict[str, Any], environment: dict[str, Any], name: str
    ) -> SchedulingClass:
        """The scheduling class of these properties."""
        key = (tuple(sorted(demand.items())), depth, repr(strategy), repr(environment))
        # Under the lock: the first calls of two threads must not make two classes of one number, of which the daemon's grants reach only one.
        with self.reactor.lock:
            klass = self._class_of.get(key)
            if klass is None:
                klass = SchedulingClass(self._class_count, demand, depth, strategy, environment, name)
                self._class_count += 1
                self.classes[klass.number] = klass
                self._class_of[key] = klass
        return klass

    # ------------------------------------------------------------ pushing

    def enqueue(self, task: PendingTask) -> None:
        """A ready task: push it, or queue it. Caller holds the lock."""
        klass = task.template.klass
        assert klass is not None, "a task has a scheduling class"
        is_open = klass.open
        if is_open and not klass.queue:
            lease = is_open[0]
            if lease.inflight and not lease.out and len(is_open) > 1:
                # A batch was sent: the next goes elsewhere. An idle front lease keeps its place, so one task at a time stays on one worker.
                is_open.rotate(-1)
                lease = is_open[0]
            if not lease.inflight:
                self.push(lease, task)
                self.send_pushes(lease)
                lease.gather = 2
            else:
                self.push(lease, task)
                if len(lease.out) >= lease.gather:
                    self.send_pushes(lease)
                    lease.gather = min(
                        FLUSH_TASKS, 2 * lease.gather
                    )  # a worker that had nothing is fed in growing batches
            return
        if klass.unschedulable:
            self.fail(task, _unschedulable(klass, task))
            return
        klass.queue.append(task)
        self._busy[klass] = None
        waiting = len(klass.queue)
        if waiting >= 2 * klass.backlog_told:
            self.requests.tell(klass, waiting)

    def push(self, lease: WorkerLease, task: PendingTask) -> None:
        """Append one task to what goes to a lease's worker. Caller holds the lock."""
        seq = lease.next_seq
        lease.next_seq = seq + 1
        template = task.template
        task.seq = seq
        task.lease = lease
        estimate_s = template.estimate_s
        task.estimate_s = estimate_s
        lease.load_s += estimate_s
        if not lease.inflight:
            lease.progress_at = perf_counter()
        lease.inflight[seq] = task
        if not lease.out:
            self._unsent.append(lease)
        wire = template.wire
        peer = lease.connection.attachment
        if wire.number not in peer.templates:
            self._define(lease, peer, template)
        deps = None
        if task.deps is not None:
            deps = [(key, sendable(entry)) for key, entry in task.deps]
        lease.out.append((seq, wire.number, task.task_id, task.attempt, task.args, deps))
        if deps is not None and len(deps) > INLINE_FEW:
            self.send_pushes(lease)  # a frame has its limit
        if lease.load_s >= QUEUED_WORK_S and lease.is_open:
            lease.is_open = False
            klass = lease.klass
            if klass is not None:
                if klass.open[0] is lease:
                    klass.open.popleft()
                else:
                    klass.open.remove(lease)

    def _define(self, lease: WorkerLease, peer: WorkerPeer, template: Template) -> None:
        """First use of a template on a connection: send its code and itself, after what was gathered before."""
        connection = lease.connection
        if lease.out:
            connection.send(PushTasks(lease.lease_id, lease.out, peer.read))
            lease.out = []
        wire = template.wire
        if wire.function_id and wire.function_id not in peer.functions:
            peer.functions.add(wire.function_id)
            connection.send(DefineFunction(wire.function_id, template.code))
        peer.templates.add(wire.number)
        connection.send(wire)

    def forget_function(self, function_id: bytes) -> None:
        """Nobody here can call a function any more: those it was sent to may drop it. Caller holds the lock."""
        for connection in self._peers.values():
            peer: WorkerPeer = connection.attachment
            if function_id in peer.functions:
                peer.functions.discard(function_id)
                connection.send(ForgetFunction(function_id, []))

    def forget_templates(self) -> None:
        """Tell workers which templates they need not keep: `f.options(...).remote()` makes one a call. Caller holds the lock."""
        numbers: set[int] = set()
        while self.gone_templates:
            numbers.add(self.gone_templates.popleft())
        for connection in self._peers.values():
            known = connection.attachment.templates
            gone = numbers & known
            if gone:
                known -= gone
                connection.send(ForgetFunction(b"", sorted(gone)))  # no function

    def send_pushes(self, lease: WorkerLease) -> None:
        """Send what is gathered for a lease. Caller holds the lock."""
        out = lease.out
        if out:
            lease.out = []
            connection = lease.connection
            connection.send_now(PushTasks(lease.lease_id, out, connection.attachment.read))

    def flush(self) -> None:
        """Send everything gathered: before this thread sleeps."""
        if self._unsent:
            with self.reactor.lock:
                unsent, self._unsent = self._unsent, []
                for lease in unsent:
                    self.send_pushes(lease)

    def refill(self, klass: SchedulingClass) -> None:
        """Leases have room: give them queued tasks. Caller holds the lock."""
        queue = klass.queue
        is_open = klass.open
        waited = len(queue)
        while queue and is_open:
            lease = is_open[0]
            self.push(lease, queue.popleft())
            if len(lease.out) >= FLUSH_TASKS or not lease.is_open:
                self.send_pushes(lease)
                if lease.is_open and len(is_open) > 1:
                    is_open.rotate(-1)
            elif len(lease.inflight) == 1 and len(is_open) > 1:
                is_open.rotate(-1)
        self.flush()
        self.requests.refilled(klass, waited)

    # ------------------------------------------------------------ replies

    def on_replies(self, connection: Connection, message: TaskReplies) -> None:
        """Results from a worker."""
        peer: WorkerPeer = connection.attachment
        peer.read += 1
        lease = peer.leases.get(message.lease_id)
        if lease is None:
            return
        items = message.items
        inflight = lease.inflight
        if lease.queue is not None and lease.queue.exact:
            self.runtime.actor_calls.answered(lease, message)
        spent_s = message.busy_us * 1e-6 / len(items)
        complete = self.complete
        for seq, value in items:
            task = inflight.pop(seq, None)
            if type(value) is not bytes:
                self.received.count(peer, value)
            if task is None:
                continue
            lease.load_s -= task.estimate_s
            template = task.template
            template.estimate_s += (
                0.2 * (spent_s - template.estimate_s)
                if template.estimate_s > spent_s
                else 0.5 * (spent_s - template.estimate_s)
            )
            if type(value) is bytes and type(task.result) is ObjectEntry:
                entry = task.result
                entry.value = value
                entry.task = None
                self.pending -= 1
                if task.held is not None:
                    self.runtime.objects.unuse(task.held)
                if entry.waiters is not None or entry.shared is not None:
                    self.runtime.announce(entry)
            else:
                complete(task, value)
        now = perf_counter()
        lease.progress_at = now
        if not inflight:
            lease.load_s = 0.0
            lease.idle_since = now
        elif lease.out and len(inflight) <= len(lease.out):
            self.send_pushes(lease)  # the worker has nothing left but what is gathered here
        self.reopen(lease)

    def reopen(self, lease: WorkerLease) -> None:
        """A lease may have room again. Caller holds the lock."""
        klass = lease.klass
        if klass is None:
            return
        if not lease.is_open and not lease.ending and (not lease.inflight or lease.load_s < QUEUED_WORK_S):
            lease.is_open = True
            if lease.inflight:
                klass.open.append(lease)
            else:
                klass.open.appendleft(lease)
        if klass.queue:
            self.refill(klass)

    def complete(self, task: PendingTask, value: Any) -> None:
        """A result that is not the plain case: an error, a stored or containing value, several values, a stream's end. Caller holds the lock."""
        if type(value) is Failed and value.lost is not None and self.runtime.remaker.input_lost(task, value):
            return
        if type(value) is Failed and value.retriable and task.template.retry_exceptions:
            if task.template.retry_exceptions is True:
                self._retry_or_finish(task, value, True)
            else:
                self.reactor.later.append(partial(self._judge_error, task, value))
            return
        self.pending -= 1
        self.runtime.finish_task(task, value)

    def _judge_error(self, task: PendingTask, value: Failed) -> None:
        """Whether a user's error is one of those that lead to a retry. Without the lock: unpickling it runs the user's code."""
        error = serialization.loads_error(value.error)
        rule = task.template.retry_exceptions
        retries = isinstance(error, rule) or isinstance(getattr(error, "cause", None), rule)
        with self.reactor.lock:
            self._retry_or_finish(task, value, retries)

    def _retry_or_finish(self, task: PendingTask, value: Failed, retries: bool) -> None:
        if retries and task.retries_left != 0 and not task.cancelled and self.runtime.lost is None:
            self.retry(task)
        else:
            self.pending -= 1
            self.runtime.finish_task(task, value)

    def retry(self, task: PendingTask) -> None:
        """Run the task again, as a new attempt. Caller holds the lock."""
        count_retry(self.runtime, task)
        self.requeue([task])

    def requeue(self, tasks: list[PendingTask]) -> None:
        """Unstarted or retried tasks, in order, go before the others. Caller holds the lock."""
        touched = []
        for task in reversed(tasks):
            task.lease = None
            klass = task.template.klass
            if task.cancelled:
                self.fail(
                    task, errors.TaskCancelledError(f"task {task.template.wire.name} was cancelled before it ran")
                )
                continue
            if klass is None:
                self.runtime.actor_calls.requeue(task)
                continue
            klass.queue.appendleft(task)
            self._busy[klass] = None
            if klass not in touched:
                touched.append(klass)
        for klass in touched:
            self.refill(klass)
            if len(klass.queue) > klass.backlog_told:
                self.requests.tell(klass, len(klass.queue))

    def fail(self, task: PendingTask, error: BaseException) -> None:
        """The task will never have a value. Caller holds the lock."""
        self.pending -= 1
        self.runtime.finish_task(task, Failed(serialization.dumps_error(error)))

    def fail_on_dependency(self, task: PendingTask) -> bool:
        """Whether an input failed, or the inputs are too large together; then the task fails too, soon. Caller holds the lock."""
        size = 0
        for _, entry in task.deps or ():
            value = entry.value
            if type(value) is bytes:
                size += len(value)
            elif type(value) is Failed:
                unread_errors.read(entry.oid)
                self.reactor.later.append(partial(self._fail_like, task, value))
                self.reactor.attend()
                return True
        if size > INLINE_TASK_BYTES_MAX:
            self.fail(task, oversize_error(task, size))
            return True
        return False

    def _fail_like(self, task: PendingTask, value: Failed) -> None:
        """Fail a task with the error of an input. Without the lock: unpickling it runs the user's code."""
        error = errors.dependency_error(serialization.loads_error(value.error), task.template.wire.name)
        failed = Failed(serialization.dumps_error(error))
        with self.reactor.lock:
            self.pending -= 1
            self.runtime.finish_task(task, failed)

    # ------------------------------------------------------------ leases

    def on_granted(self, connection: Connection, message: LeaseGranted) -> None:
        """The daemon leased a worker to one of our classes."""
        klass = self.classes.get(message.class_no)
        if klass is None:
            self._refuse(message)
            return
        klass.backlog_told = max(0, klass.backlog_told - 1)  # the daemon counts a grant as one task served
        self._take(klass, message)

    def _take(self, klass: SchedulingClass, message: LeaseGranted) -> None:
        """Use a granted lease, now or when its worker is connected. Caller holds the lock."""
        try:
            peer_connection = self.connect(message.worker_id, message.address, message.pid) if klass.queue else None
        except OSError as error:
            self._refuse(message)
            if not klass.leases:  # else those go on with it
                queue = list(klass.queue)
                klass.queue.clear()
                for task in queue:
                    self.fail(task, error)
            return
        if peer_connection is None:
            dial = self.dialler.dials.get(message.worker_id) if klass.queue else None
            if dial is None:
                self._refuse(message)
            else:
                dial.grants.append(message)
            if dial is None or dial.is_slow:
                self._request_more(klass)
            return
        lease = WorkerLease(message.lease_id, klass, peer_connection)
        lease.idle_since = perf_counter()
        klass.leases[message.lease_id] = lease
        self._busy[klass] = None
        peer_connection.attachment.leases[message.lease_id] = lease
        self.lease_count += 1
        lease.is_open = True
        klass.open.appendleft(lease)
        self.refill(klass)
        self._request_more(klass)

    def _request_more(self, klass: SchedulingClass) -> None:
        """The daemon has served all that it was told of, or a lease for which others of its class waited has ended: tell it of those that wait."""
        if klass.queue and klass.backlog_told == 0:
            self.requests.tell(klass, len(klass.queue))

    def _refuse(self, message: LeaseGranted) -> None:
        daemon = self.reactor.causal
        if daemon is not None:
            daemon.send(ReturnLease(message.lease_id))

    def connect(self, worker_id: bytes, address: str, pid: int) -> Connection | None:
        """The connection to a worker, made at need; None when it is gone, or is being dialled (`dialler.dials`). Caller holds the lock.

        Raises:
            OSError: no more files can be opened in this process.
        """
        connection = self._peers.get(worker_id)
        if connection is not None:
            return None if connection.closed else connection  # closed: its tasks wait to be told of its death
        sock = self.dialler.dial(worker_id, address, pid)
        return None if sock is None else self._meet(worker_id, address, pid, sock)

    def _meet(self, worker_id: bytes, address: str, pid: int, sock: socket.socket) -> Connection:
        connection = self.reactor.add(sock, self.on_peer_closed)
        connection.attachment = WorkerPeer(worker_id, address, pid)
        self._peers[worker_id] = connection
        runtime = self.runtime
        connection.send(Hello(PROTOCOL_VERSION, runtime.worker_id, runtime.job_id, runtime.pid))
        return connection

    def _on_dialled(self, dial: Dial, sock: socket.socket | None) -> None:
        """A worker that was being dialled is connected, or cannot be. Caller holds the lock."""
        if sock is not None:
            self._meet(dial.worker_id, dial.address, dial.pid, sock)
            self.runtime.actor_calls.on_reached(dial.worker_id)
        for message in dial.grants:
            klass = self.classes.get(message.class_no)
            if klass is None:
                self._refuse(message)
            else:
                self._take(klass, message)

    def _on_slow_dial(self, dial: Dial) -> None:
        """What waits for a worker that does not answer may find another. Caller holds the lock."""
        for message in dial.grants:
            klass = self.classes.get(message.class_no)
            if klass is not None:
                self._request_more(klass)

    def on_unschedulable(self, connection: Connection, message: LeasesUnschedulable) -> None:
        """No node can ever run tasks of this class."""
        klass = self.classes.get(message.class_no)
        if klass is None:
            return
        klass.unschedulable = message.reason
        klass.group_removed = message.kind == UNSCHEDULABLE_GROUP_REMOVED
        klass.backlog_told = 0
        queue = list(klass.queue)
        klass.queue.clear()
        for task in queue:
            self.fail(task, _unschedulable(klass, task))

    def on_bounced(self, connection: Connection, message: TasksBounced) -> None:
        """A worker gave tasks back unstarted."""
        lease = connection.attachment.leases.get(message.lease_id)
        if lease is None:
            return
        tasks = [task for task in (lease.inflight.pop(seq, None) for seq in message.seqs) if task is not None]
        for task in tasks:
            lease.load_s -= task.estimate_s
        if message.ended:
            self.forget_lease(lease)
            self._acknowledge(lease)
            tasks.extend(lease.inflight.values())  # pushed after the worker had ended the lease
            tasks.sort(key=lambda task: task.seq)
            lease.inflight.clear()
            lease.out.clear()
        elif lease.inflight:
            # The worker is busy with a long or blocked task: what was given back must find another.
            lease.load_s = max(lease.load_s, QUEUED_WORK_S)
            self._close_to_pushes(lease)
        else:
            # It was between two tasks, and has nothing now. No reply will come that could open the lease.
            lease.load_s = 0.0
            lease.idle_since = perf_counter()
            self.reopen(lease)
        self.requeue(tasks)
        if message.ended and lease.klass is not None:
            self._request_more(lease.klass)

    def _acknowledge(self, lease: WorkerLease) -> None:
        """No more pushes say what was read of a worker's replies: what it takes for unread it would keep for heirs, should this process end."""
        connection = lease.connection
        peer: WorkerPeer = connection.attachment
        if peer.read != peer.acknowledged and not connection.closed:
            peer.acknowledged = peer.read
            connection.send_now(PushTasks(lease.lease_id, [], peer.read))

    def _close_to_pushes(self, lease: WorkerLease) -> None:
        if lease.is_open and lease.klass is not None:
            lease.is_open = False
            lease.klass.open.remove(lease)

    def forget_lease(self, lease: WorkerLease) -> None:
        """The lease is over. Caller holds the lock."""
        lease.ending = True
        klass = lease.klass
        if klass is not None:
            self.lease_count -= klass.leases.get(lease.lease_id) is lease
            self._close_to_pushes(lease)
            klass.leases.pop(lease.lease_id, None)
        lease.connection.attachment.leases.pop(lease.lease_id, None)

    # ------------------------------------------------------------ deaths

    def on_worker_died(self, connection: Connection, message: WorkerDied) -> None:
        """The daemon says how a worker ended; its replies may still stand in the socket."""
        peer_connection = self._peers.get(message.worker_id)
        self.dialler.worker_died(message.worker_id)
        if peer_connection is None:  # given up before
            self.received.end(message.worker_id)
            return
        peer: WorkerPeer = peer_connection.attachment
        peer.death = message
        shun_dead_node(self, message)
        if not peer_connection.closed:
            self.reactor.drain(peer_connection)
            if is_abroad(peer.address) and not peer_connection.closed:
                # Its last replies may still be on their way: the end of the connection comes after them, but a dead machine does not send it.
                peer.closed_at = perf_counter()
                self._unexplained.append(peer_connection)
                return
            self.reactor.close(peer_connection)  # a process that the worker left behind may hold the other end open
        self._bury(peer_connection)

    def on_peer_closed(self, connection: Connection) -> None:
        """A worker's connection ended; its daemon says why."""
        peer: WorkerPeer = connection.attachment
        if peer.death is not None or self.reactor.causal is None:
            self._bury(connection)
        else:
            peer.closed_at = perf_counter()
            self._unexplained.append(connection)
            for lease in peer.leases.values():  # what went there now would be lost, and perhaps count as begun
                if lease.klass is not None:
                    lease.ending = True
                    self._close_to_pushes(lease)

    def _give_up_unexplained(self, now: float) -> None:
        """Connections ended whose workers did not die, it seems: what they had counts as started and lost. Caller holds the lock."""
        for connection in list(self._unexplained):
            peer: WorkerPeer = connection.attachment
            patience_s = DEATH_TOLD_WITHIN_S if peer.death is None else LAST_REPLIES_WITHIN_S
            if now - peer.closed_at < patience_s and not (connection.closed and peer.death is not None):
                continue
            self._unexplained.remove(connection)
            if peer.death is not None:
                if not connection.closed:
                    self.reactor.close(connection)
                    self._bury(connection)
                continue
            lease = next(iter(peer.leases.values()), None)
            started = max(lease.inflight, default=0) if lease is not None else 0
            cause = (
                f"the connection to the worker with pid {peer.pid} broke, though it lives: "
                f"it refuses messages over {FRAME_BYTES_MAX} bytes; pass large arguments as refs of shoal.put"
            )
            if is_abroad(peer.address):
                cause = f"the connection to the worker with pid {peer.pid} on the node at {peer.address.partition('/')[0]} broke"
            peer.death = WorkerDied(peer.worker_id, lease.lease_id if lease is not None else 0, started, cause, 0)
            queues = [each.queue for each in peer.leases.values() if each.queue is not None]
            daemon = self.reactor.causal
            if daemon is not None:
                for lease_id in peer.leases:
                    daemon.send(ReturnLease(lease_id))
            self._bury(connection)
            for queue in queues:
                self.runtime.actor_calls.ask_again(queue)

    def _bury(self, connection: Connection) -> None:
        """The worker is dead and all that it sent was read: decide what happens to its tasks."""
        peer: WorkerPeer = connection.attachment
        death: WorkerDied | None = peer.death
        if self._peers.get(peer.worker_id) is connection:
            del self._peers[peer.worker_id]
        self.received.bury(peer)
        for lease in list(peer.leases.values()):
            self.forget_lease(lease)
            tasks = sorted(lease.inflight.values(), key=lambda task: task.seq)
            lease.inflight.clear()
            lease.out.clear()
            if lease.klass is None:
                self.runtime.actor_calls.on_lease_lost(lease, tasks, death)
            else:
                self._settle(lease, tasks, death)

    def _settle(self, lease: WorkerLease, tasks: list[PendingTask], death: WorkerDied | None) -> None:
        """Retry or fail what a dead worker had; what it had not started is resent free."""
        again = []
        started = started_under(death, lease.lease_id)
        for task in tasks:
            if task.seq > started:
                again.append(task)
                continue
            self.free_untold(task, death)
            if task.cancelled:
                self.fail(task, errors.TaskCancelledError(f"task {task.template.wire.name} was cancelled"))
            elif death is not None and death.group_removed:
                self.fail(task, errors.TaskPlacementGroupRemoved(f"{task.template.wire.name}() ended: {death.cause}"))
            elif task.retries_left == 0:
                assert death is not None, "a started task's worker was declared dead"
                self.fail(task, crash_error(task, death))
            else:
                # Also one that had ended, if its reply was lost: it will have run once more.
                count_retry(self.runtime, task)
                again.append(task)
        self.requeue(again)
        if lease.klass is not None:
            self._request_more(lease.klass)

    def free_untold(self, task: PendingTask, death: WorkerDied | None) -> None:
        """A dead worker may have stored results of a task in our name, of which it could not tell. Caller holds the lock."""
        daemon = self.reactor.causal
        if daemon is not None and death is not None and death.node and (untold := untold_results(task)):
            node = death.node if death.node != self.runtime.node_id else b""
            daemon.send(FreeObjects(untold, node, death.worker_id))

    # ------------------------------------------------------------ time

    def tick(self, now: float) -> None:
        """Return idle leases, recall queues that do not move, send what is gathered. Caller holds the lock."""
        if self._unsent:
            self.flush()
        if self._unexplained:
            self._give_up_unexplained(now)
        self.dialler.tick(now)
        if self.received.givers:
            self.received.tell()
        if self.gone_templates:
            self.forget_templates()
        if self.requests.is_late():
            self.requests.tick()
        for klass in list(self._busy):
            if not klass.leases and not klass.queue and not klass.backlog_told:
                del self._busy[klass]
            elif klass.queue:
                self.requests.tell_outlook(klass, now)
            for lease in list(klass.leases.values()):
                if not lease.inflight:
                    if now - lease.idle_since > LEASE_IDLE_S and not lease.ending:
                        self.return_lease(lease)
                    elif LOCALITY in klass.strategy and not lease.ending and self.runtime.locality.is_misplaced(lease):
                        self.return_lease(lease)  # else the next tasks would go there, too
                elif len(lease.inflight) > 1 and now - lease.progress_at > STUCK_AFTER_S:
                    lease.progress_at = now
                    lease.connection.send(RecallTasks(lease.lease_id))

    def return_idle_leases(self) -> None:
        """This worker has nothing to do: others may need what its tasks had leased."""
        with self.reactor.lock:
            for klass in list(self._busy):
                for lease in list(klass.leases.values()):
                    if not lease.inflight:
                        self.return_lease(lease)
            self.requests.tell_none()

    def return_lease(self, lease: WorkerLease) -> None:
        """Give a lease back to the daemon. Caller holds the lock."""
        self.forget_lease(lease)
        self._acknowledge(lease)
        daemon = self.reactor.causal
        if daemon is not None:
            daemon.send(ReturnLease(lease.lease_id, perf_counter() - lease.idle_since))

    def is_quiet(self) -> bool:
        """Whether every lease runs one task at most and nothing stands to be sent or told: only replies can change anything."""
        if self._unsent or self.dialler.dials:
            return False
        for klass in list(self._busy):
            if klass.queue and klass.leases and outlook.may_grow(klass.task_s_told):
                return False
            if any(len(lease.inflight) > 1 for lease in list(klass.leases.values())):
                return False
        return True

    def is_active(self) -> bool:
        """Whether replies are expected, leases held, or workers dialled, or the daemon is to be told something."""
        return self.pending > 0 or self.lease_count > 0 or bool(self.dialler.dials) or self.requests.is_late()

    def tasks_of(self, prefix: bytes) -> list[PendingTask]:
        """Pending tasks whose names begin with `prefix`: the children of one attempt. Caller holds the lock."""
        found = [task for task in self.waiting.values() if task.task_id.startswith(prefix) and not task.cancelled]
        for klass in list(self._busy):
            found.extend(task for task in klass.queue if task.task_id.startswith(prefix))
        for connection in self._peers.values():
            for lease in connection.attachment.leases.values():
                found.extend(task for task in lease.inflight.values() if task.task_id.startswith(prefix))
        for queue in self.runtime.actor_calls.queues.values():
            found.extend(task for task in queue.unsent if task.task_id.startswith(prefix) and not task.missing)
        return found

    def fail_everything(self, error: BaseException) -> None:
        """The node is gone: nothing pending will ever come. Caller holds the lock."""
        self.dialler.close()
        for klass in list(self._busy):
            tasks = list(klass.queue)
            klass.queue.clear()
            for lease in list(klass.leases.values()):
                tasks.extend(lease.inflight.values())
                lease.inflight.clear()
                lease.out.clear()
                self.forget_lease(lease)
            for task in tasks:
                self.fail(task, error)


def _unschedulable(klass: SchedulingClass, task: PendingTask) -> BaseException:
    """Why a task of a class will never run."""
    error = errors.TaskPlacementGroupRemoved if klass.group_removed else errors.TaskUnschedulableError
    return error(klass.in_name_of(task, klass.unschedulable))

"""Drivers and workers: a small model of `runtime.submitter` and `runtime.executor`.

Those two are procedural, so they cannot run here themselves. The model keeps what the machines see of them: when leases are asked for and returned,
how many tasks stand at a worker (1.5 ms of work by the class's running average, one of an unknown or long kind), bounces, recalls after 10 ms without
progress, the CPU that a waiting task lends, the retry that a started task is charged. tests/runtime holds the real ones to the same rules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.protocol.limits import BLOCKED_AFTER_S, LEASE_IDLE_S, QUEUED_WORK_S, REPLY_FLUSH_S, STUCK_AFTER_S
from shoal.protocol.messages import LeaseGranted, LeasesUnschedulable, RequestLeases, ReturnLease, WorkerDied
from shoal.runtime.outlook import is_news, lasting_s
from shoal.simulator.tasks import Task
from shoal.simulator.world import Channel, Station, World

if TYPE_CHECKING:
    from shoal.simulator.actors import CallQueue, Life
    from shoal.simulator.node import Node

TICK_S = 0.005


class TaskClass:
    """Tasks of one submitter that need the same."""

    __slots__ = (
        "backlog_told",
        "demand",
        "depth",
        "estimate_s",
        "leases",
        "number",
        "queue",
        "strategy",
        "task_s_told",
    )

    def __init__(self, number: int, task: Task) -> None:
        self.number = number
        self.demand, self.strategy, self.depth = task.demand, task.strategy, task.depth
        self.queue: deque[Task] = deque()
        self.leases: dict[int, HeldLease] = {}
        self.backlog_told = 0
        self.task_s_told = 0.0
        self.estimate_s = QUEUED_WORK_S


class HeldLease:
    """A lease as its submitter sees it."""

    __slots__ = ("channel", "idle_since", "inflight", "klass", "lease_id", "open", "progress_at", "worker")

    def __init__(self, lease_id: int, klass: TaskClass, worker: Worker, channel: Channel, now: float) -> None:
        self.lease_id, self.klass, self.worker, self.channel = lease_id, klass, worker, channel
        self.inflight: dict[int, Task] = {}
        self.open = True
        self.idle_since = self.progress_at = now


class Process:
    """A submitter: a driver, or the submitting half of a worker."""

    def __init__(self, world: World, node: Node, process_id: bytes, job_id: bytes) -> None:
        self.world, self.node, self.process_id, self.job_id = world, node, process_id, job_id
        self.station = Station(world, node.place, "submitter")
        self.to_daemon = Channel(world, node.place, node.place)
        self.from_daemon = Channel(world, node.place, node.place)
        self.dead = False
        self._classes: dict[tuple[Any, ...], TaskClass] = {}
        self._by_number: list[TaskClass] = []
        self._seq = 0
        self._ticks = False
        self.actor_calls: list[CallQueue] = []

    # ---------------------------------------------------------------- submitting

    def submit(self, tasks: list[Task]) -> None:
        """Tasks that are ready to run."""
        touched: dict[int, TaskClass] = {}
        for task in tasks:
            klass = self._class_of(task)
            task.submitted_at = self.world.now
            klass.queue.append(task)
            touched[klass.number] = klass
        self.station.spend(self.world.costs.submit_s * len(tasks))
        for klass in touched.values():
            self._refill(klass)
            self._tell_backlog(klass)
        self._tick_later()

    def _class_of(self, task: Task) -> TaskClass:
        key = (task.depth, *sorted(task.demand.items()), repr(task.strategy))
        klass = self._classes.get(key)
        if klass is None:
            klass = self._classes[key] = TaskClass(len(self._by_number), task)
            self._by_number.append(klass)
        return klass

    def _tell_backlog(self, klass: TaskClass) -> None:
        waiting = len(klass.queue)
        if waiting and waiting >= 2 * klass.backlog_told:
            self._request(klass, waiting)

    def _request(self, klass: TaskClass, backlog: int) -> None:
        task_s = self._estimate_s(klass)
        if task_s == QUEUED_WORK_S:
            task_s = klass.task_s_told
        if backlog == klass.backlog_told and not is_news(backlog, task_s or QUEUED_WORK_S, backlog, klass.task_s_told):
            return
        klass.backlog_told, klass.task_s_told = backlog, task_s
        request = RequestLeases(
            klass.number, self.job_id, klass.demand, klass.depth, backlog, klass.strategy, {}, "task", task_s
        )
        self.world.after(self.world.costs.added_scheduling_s, self._to_daemon, request)

    def _to_daemon(self, message: Any) -> None:
        if not self.dead:
            self.node.hear(self.to_daemon, self, message)

    def _refill(self, klass: TaskClass) -> None:
        room = max(1, int(QUEUED_WORK_S / max(klass.estimate_s, 1e-7)))
        for lease in list(klass.leases.values()):
            if not klass.queue:
                break
            if lease.open and len(lease.inflight) < room:
                count = min(room - len(lease.inflight), len(klass.queue))
                self._push(lease, [klass.queue.popleft() for _ in range(count)])
        if not klass.queue:
            if klass.backlog_told:
                self._request(klass, 0)
        else:
            self._tell_outlook(klass)

    def _estimate_s(self, klass: TaskClass) -> float:
        runs = [self.world.now - lease.progress_at for lease in klass.leases.values() if lease.inflight]
        return lasting_s(klass.estimate_s, max(runs, default=0.0))

    def _tell_outlook(self, klass: TaskClass) -> None:
        if is_news(len(klass.queue), self._estimate_s(klass), klass.backlog_told, klass.task_s_told):
            self._request(klass, len(klass.queue))

    def _push(self, lease: HeldLease, tasks: list[Task]) -> None:
        if not lease.inflight:
            lease.progress_at = self.world.now
        items = []
        for task in tasks:
            self._seq += 1
            lease.inflight[self._seq] = task
            items.append((self._seq, task))
        worker = lease.worker
        lease.channel.send(worker.station, 0.0, worker.on_push, self, lease.lease_id, items)

    # ---------------------------------------------------------------- answers

    def on_message(self, message: Any) -> None:
        """From the daemon."""
        if self.dead:
            return
        kind = type(message)
        if kind is LeaseGranted:
            self._on_granted(message)
        elif kind is WorkerDied:
            self._on_worker_died(message)
            for queue in self.actor_calls:
                queue.on_worker_died(message)
        elif kind is LeasesUnschedulable:
            klass = self._by_number[message.class_no]
            klass.backlog_told = 0
            while klass.queue:
                klass.queue.popleft().finish(f"unschedulable: {message.reason}", self.world.now)

    def _on_granted(self, message: LeaseGranted) -> None:
        klass = self._by_number[message.class_no]
        klass.backlog_told = max(0, klass.backlog_told - 1)
        worker = self.node.cluster.worker(message.worker_id)
        if worker is None or not klass.queue:
            self._to_daemon(ReturnLease(message.lease_id))
        else:
            channel = Channel(self.world, self.node.place, worker.node.place)
            klass.leases[message.lease_id] = HeldLease(message.lease_id, klass, worker, channel, self.world.now)
            self._refill(klass)
        if klass.queue and klass.backlog_told == 0:
            self._request(klass, len(klass.queue))
        self._tick_later()

    def on_replies(self, lease_id: int, seqs: list[int], busy_s: float) -> None:
        """A worker has done tasks."""
        lease = self._lease(lease_id)
        if self.dead or lease is None:
            return
        klass = lease.klass
        done = [task for task in (lease.inflight.pop(seq, None) for seq in seqs) if task is not None]
        each = busy_s / len(seqs)
        klass.estimate_s += (0.2 if klass.estimate_s > each else 0.5) * (each - klass.estimate_s)
        lease.progress_at = self.world.now
        lease.open = True
        if not lease.inflight:
            lease.idle_since = self.world.now
        for task in done:
            task.finish("done", self.world.now)
        self._refill(klass)

    def on_bounced(self, lease_id: int, seqs: list[int], ended: bool) -> None:
        """A worker gives tasks back that it has not started."""
        lease = self._lease(lease_id)
        if self.dead or lease is None:
            return
        tasks = [task for task in (lease.inflight.pop(seq, None) for seq in seqs) if task is not None]
        if ended:
            tasks += lease.inflight.values()
            lease.inflight.clear()
            del lease.klass.leases[lease_id]
        else:
            lease.open = not lease.inflight
        self._requeue(lease.klass, tasks)

    def _lease(self, lease_id: int) -> HeldLease | None:
        for klass in self._by_number:
            found = klass.leases.get(lease_id)
            if found is not None:
                return found
        return None

    def _requeue(self, klass: TaskClass, tasks: list[Task]) -> None:
        klass.queue.extendleft(reversed(tasks))
        self._refill(klass)
        if len(klass.queue) > klass.backlog_told:
            self._request(klass, len(klass.queue))

    def _on_worker_died(self, message: WorkerDied) -> None:
        for klass in self._by_number:
            for lease in [each for each in klass.leases.values() if each.worker.process_id == message.worker_id]:
                lease.channel.closed = True
                del klass.leases[lease.lease_id]
                started = message.started_seq if message.lease_id == lease.lease_id else 0
                again = []
                for seq, task in lease.inflight.items():
                    if seq <= started:
                        if task.retries_left == 0:
                            task.finish("worker died", self.world.now)
                            continue
                        task.retries_left -= 1
                    again.append(task)
                self._requeue(klass, again)

    # ---------------------------------------------------------------- time

    def _tick_later(self) -> None:
        if not self._ticks and not self.dead:
            self._ticks = True
            self.world.after(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticks = False
        if self.dead:
            return
        now, active = self.world.now, False
        for klass in self._by_number:
            active = active or bool(klass.queue or klass.leases)
            if klass.queue:
                self._tell_outlook(klass)
            for lease in list(klass.leases.values()):
                if not lease.inflight:
                    if now - lease.idle_since > LEASE_IDLE_S:
                        self._return(lease)
                elif len(lease.inflight) > 1 and now - lease.progress_at > STUCK_AFTER_S:
                    lease.progress_at = now
                    worker = lease.worker
                    lease.channel.send(worker.station, 0.0, worker.on_recall, lease.lease_id)
        if active:
            self._tick_later()

    def _return(self, lease: HeldLease) -> None:
        del lease.klass.leases[lease.lease_id]
        self._to_daemon(ReturnLease(lease.lease_id, self.world.now - lease.idle_since))

    def return_idle(self) -> None:
        """This worker has nothing to do: what its tasks had leased may be needed by others."""
        for klass in self._by_number:
            for lease in [each for each in klass.leases.values() if not each.inflight]:
                self._return(lease)

    def die(self) -> None:
        """The process is gone; so is what stood in its channels."""
        self.dead = True
        self.from_daemon.closed = True


class Worker(Process):
    """A worker: one lease at a time, one task at a time; and a submitter for what its tasks submit."""

    def __init__(self, world: World, node: Node, process_id: bytes) -> None:
        super().__init__(world, node, process_id, b"")
        self.lease_id = 0
        self.submitter: Process | None = None
        self.actor: Life | None = None  #: what this worker has become
        self.callers: dict[bytes, None] = {}  #: processes of other nodes that call it
        self._ending = False
        self._queue: deque[tuple[int, Task]] = deque()
        #: what runs: its number and task, and the life of that run (a bounce or a death makes it void)
        self.running: tuple[int, Task] | None = None
        self.started_seq = self.started_lease = 0
        self._blocked = False
        self._replies: list[int] = []
        self._replies_busy_s = 0.0
        self._back: Channel | None = None
        self._backs: dict[bytes, Channel] = {}

    # ---------------------------------------------------------------- leases

    def on_lease_started(self, lease_id: int, submitter: Process, job_id: bytes) -> None:
        """From the daemon: whose worker it is now."""
        self.lease_id, self.submitter, self.job_id = lease_id, submitter, job_id
        self._ending = False
        self.started_seq = 0
        self._back = self._channel_to(submitter)

    def _channel_to(self, submitter: Process) -> Channel:
        """One for all leases of a submitter, as they share a connection: a refusal does not overtake replies."""
        channel = self._backs.get(submitter.process_id)
        if channel is None:
            channel = self._backs[submitter.process_id] = Channel(self.world, self.node.place, submitter.node.place)
        return channel

    def on_revoke(self, lease_id: int) -> None:
        """From the daemon: end the lease."""
        if lease_id != self.lease_id or self.dead:
            return
        self._ending = True
        self._bounce()
        if self.running is None:
            self._finish_lease()

    def _finish_lease(self) -> None:
        self._flush()
        lease_id, self.lease_id = self.lease_id, 0
        self._answer("on_bounced", lease_id, [seq for seq, _ in self._queue], True)
        self._queue.clear()
        self.return_idle()
        self.node.hear_finished(self.to_daemon, self, lease_id)

    def on_push(self, submitter: Process, lease_id: int, items: list[tuple[int, Task]]) -> None:
        """Tasks under a lease; bounced if it is not the present one."""
        if self.dead:
            return
        if lease_id != self.lease_id:
            back = self._channel_to(submitter)
            back.send(submitter.station, 0.0, submitter.on_bounced, lease_id, [seq for seq, _ in items], True)
            return
        self._queue.extend(items)
        if self._ending or self._blocked:
            self._bounce()
        elif self.running is None:
            self._next()

    def on_recall(self, lease_id: int) -> None:
        """Give back what has not started."""
        if lease_id == self.lease_id and not self.dead:
            self._bounce()

    def _bounce(self) -> None:
        if self._queue:
            self._flush()
            self._answer("on_bounced", self.lease_id, [seq for seq, _ in self._queue], False)
            self._queue.clear()

    def _answer(self, method: str, *args: Any) -> None:
        submitter, back = self.submitter, self._back
        if submitter is not None and back is not None and not submitter.dead:
            cost = self.world.costs.submit_s * len(args[1]) if method == "on_replies" else 0.0
            back.send(submitter.station, cost, getattr(submitter, method), *args)

    # ---------------------------------------------------------------- running

    def _next(self) -> None:
        """Run what is queued: short tasks together, up to the time after which replies are sent."""
        costs, now = self.world.costs, self.world.now
        spent = 0.0
        while self._queue and spent < REPLY_FLUSH_S:
            seq, task = self._queue.popleft()
            self.started_seq, self.started_lease = seq, self.lease_id
            task.executions += 1
            self.node.executed += 1
            if task.started_at < 0:
                task.started_at = now + spent
            takes = costs.execute_s + task.duration_s
            if task.children is not None or takes > REPLY_FLUSH_S / 2:
                if spent and self._replies:  # those before it are not kept waiting
                    self.world.after(spent, self._flush_if, self._replies)
                    self._replies = []
                self.running = (seq, task)
                self.world.after(spent + takes, self._computed, task)
                return
            spent += takes
            self._replies.append(seq)
            self._replies_busy_s += takes
        if spent:
            self.running = (self.started_seq, _BATCH)
            self.world.after(spent, self._batch_done)
        else:
            self._idle()

    def _flush_if(self, replies: list[int]) -> None:
        if not self.dead and self.lease_id:
            self._answer("on_replies", self.lease_id, replies, self._replies_busy_s or 1e-6)
            self._replies_busy_s = 0.0

    def _batch_done(self) -> None:
        if self.dead:
            return
        self.running = None
        self._flush()
        self._go_on()

    def _computed(self, task: Task) -> None:
        if self.dead:
            return
        if task.children is None:
            self._done(task)
            return
        children = task.children()
        left = len(children)
        life = task.executions

        def ended(_child: Task) -> None:
            nonlocal left
            left -= 1
            if not left and not self.dead and self.running is not None and task.executions == life:
                self._children_done(task)

        for child in children:
            child.on_end = _both(child.on_end, ended)
        self.submit(children)
        self.world.after(BLOCKED_AFTER_S, self._still_waiting, task, lambda: left)

    def _still_waiting(self, task: Task, left: Callable[[], int]) -> None:
        if not self.dead and left() and self.running is not None and self.running[1] is task:
            self._blocked = True
            self._bounce()
            self.node.hear_blocked(self.to_daemon, self, self.lease_id, True)

    def _children_done(self, task: Task) -> None:
        if self._blocked:
            self._blocked = False
            self.node.hear_blocked(self.to_daemon, self, self.lease_id, False)
        self._done(task)

    def _done(self, task: Task) -> None:
        assert self.running is not None
        seq, _ = self.running
        self.running = None
        self._replies.append(seq)
        self._replies_busy_s += self.world.costs.execute_s + task.duration_s
        self._flush()
        self._go_on()

    def _go_on(self) -> None:
        if self._ending:
            self._finish_lease()
        else:
            self._next()

    def _idle(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._replies:
            replies, self._replies = self._replies, []
            self._answer("on_replies", self.lease_id, replies, self._replies_busy_s)
            self._replies_busy_s = 0.0


_BATCH = Task(0.0)


def _both(first: Callable[[Task], None] | None, second: Callable[[Task], None]) -> Callable[[Task], None]:
    if first is None:
        return second

    def call(task: Task) -> None:
        first(task)
        second(task)

    return call

"""Executing tasks: the worker's side of a lease.

Purpose: take pushed tasks in order, run each on the main thread, and answer in batches, at about 4 us a task beyond the user's code.

Design: the worker is the arbiter of its lease. Pushes arrive in `queue` (by whichever thread reads); the main thread takes them one by one. Taking a
task, marking it as running and noting the reply of the one before happen under one hold of the reactor's lock, so that a revocation, a recall or
a cancel sees each task either queued, running or answered.

    revoke (daemon)     bounce what is queued; when nothing runs under the lease: TasksBounced(ended), LeaseFinished
    recall (submitter)  bounce what is queued, keep the lease
    blocked in get      bounce what is queued (a task's lease only), lend the CPU
    cancel              queued: answered at once; running: SIGUSR1 raises KeyboardInterrupt in the main thread
    unknown lease       read the daemon's connection first: LeaseStarted was written before the push could be; then bounce

Replies are gathered per connection and leave when the queue is empty, before a task that is slow (over 100 us on average), after a slow one, and
after 1 ms.

What it does not do: actors with threads or an event loop (`actor_host`), which reuse `run_task` and the replies.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from time import clock_gettime, perf_counter, pthread_getcpuclockid, time
from typing import TYPE_CHECKING, Any

import msgspec

from shoal import serialization
from shoal.protocol import errors, ids
from shoal.protocol.limits import REPLY_FLUSH_S
from shoal.protocol.messages import (
    Blocked,
    CancelTask,
    Containing,
    DefineFunction,
    Failed,
    ForgetFunction,
    LeaseFinished,
    LeaseStarted,
    Many,
    PushTasks,
    RecallTasks,
    RevokeLease,
    SignalWorker,
    Stored,
    StreamCredit,
    TaskEvents,
    TaskReplies,
    TasksBounced,
    TaskTemplate,
    Unblocked,
    Value,
    WorkerExiting,
)
from shoal.runtime.actor_host import ActorHost, exit_process
from shoal.runtime.arguments import Arguments, Room, tell_rooms
from shoal.runtime.assignment import apply_assignment, remember_environment
from shoal.runtime.core import Runtime
from shoal.runtime.delegation import Delegation
from shoal.runtime.jobs import SLOW_TASK_S, UNREAD_REPLIES_MAX, BoundTemplate, HeldLease, Job, SubmitterPeer
from shoal.runtime.objects import ObjectRef
from shoal.runtime.orphans import OrphanTasks
from shoal.runtime.reactor import Connection, Reactor, Waiter
from shoal.runtime.received_refs import CalledRefs
from shoal.runtime.results import ArgumentLost, ResultWriter
from shoal.runtime.stored import store_blob
from shoal.runtime.tasks import TaskContext, running_task

if TYPE_CHECKING:
    from shoal.store.page import ProcessPage

IDLE_MAIN_S = 0.012  #: a main thread is watched for so long before its CPU is lent because of what others wait for
EVENTS_PER_FLUSH_MAX = 500
EVENTS_EVERY_S = 0.5
EVENTS_IDLE_S = 0.02  #: the trace is sent so long after the first event when nothing runs
LINGER_LOOK_S = 0.01
REPLIES_WITHHELD_S = 2.0  #: another caller's task waits so long for replies that wait for holds on other nodes


def _nothing() -> None:
    pass


class Executor:
    """The executing side of a worker."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.reactor = runtime.reactor
        self.page: ProcessPage = None  # type: ignore[assignment]  # known after registration
        self.queue: deque[Job] = deque()
        self.leases: dict[int, HeldLease] = {}
        self.functions: dict[bytes, bytes] = {}
        self.loaded: dict[bytes, Callable[..., Any]] = {}
        self.running: Job | None = None
        self.arguments = Arguments(runtime, self.load_value)
        self.results = ResultWriter(runtime, lambda: self.actor.instance if self.actor is not None else None)
        #: runs a task on the main thread; an actor with checkpoints does more than `run_task`
        self.perform: Callable[[Job], Value | Many] = self.run_task
        self.host: ActorHost = ActorHost(self)
        self.called = CalledRefs(runtime)
        self.orphans = OrphanTasks(self)
        self.accept: Callable[[], None] = _nothing  #: takes connections of callers that knock
        self.actor: ActorHost | None = None  #: the host, once it is an actor
        self.exit_reason = ""
        self._lingering: HeldLease | None = None  #: its last task has run, but not all that it has submitted
        self.flush_output: Callable[[], None] = _nothing  #: writes lines that are not complete
        self._idle: Waiter | None = None
        self._answered: list[Connection] = []  #: connections with gathered replies
        self._served: Connection | None = None  #: whose task ran last, and under which lease
        self._served_lease: HeldLease | None = None
        self._calls_made: dict[bytes, int] = {}
        #: waits in threads that run no task themselves, and what they and awaiting coroutines may lend: see `_watch_main`
        self._outside_waits = 0
        self._lent: HeldLease | None = None
        self._watched: HeldLease | None = None
        self._watched_cpu_s = self._watched_since = 0.0
        self._cancel_target: Job | None = None
        self._main_thread_id = threading.get_ident()
        self._main_clock = pthread_getcpuclockid(self._main_thread_id)
        self._events: list[tuple[bytes, str, int, str, float, float, str]] = []
        self._events_at = 0.0
        self._clock_offset = time() - perf_counter()
        runtime.executor = self
        remember_environment()
        handlers = self.reactor.handlers
        handlers[DefineFunction] = self._on_function
        handlers[ForgetFunction] = self._on_forget
        handlers[TaskTemplate] = self._on_template
        handlers[PushTasks] = self._on_push
        handlers[RecallTasks] = self._on_recall
        handlers[CancelTask] = self.on_cancel
        handlers[StreamCredit] = self._on_credit
        handlers[LeaseStarted] = self._on_lease_started
        handlers[RevokeLease] = self._on_revoke
        handlers[SignalWorker] = lambda connection, message: None
        self.reactor.before_sleep.append(self.flush_replies)
        self.reactor.on_tick.append(self._on_tick)
        submitter = self.runtime.submitter
        submitter_active = submitter.is_active
        self.reactor.is_quiet = lambda: self._waits_only() and not self.queue and submitter.is_quiet()
        self.reactor.is_active = lambda: self.running is not None or submitter_active()
        signal.signal(signal.SIGUSR1, self._on_interrupt)

    # ------------------------------------------------------------ messages

    def _on_function(self, connection: Connection, message: DefineFunction) -> None:
        connection.attachment.functions.add(message.function_id)
        self.functions[message.function_id] = message.code

    def _on_forget(self, connection: Connection, message: ForgetFunction) -> None:
        peer: SubmitterPeer = connection.attachment
        for number in message.templates:
            peer.templates.pop(number, None)
        if message.function_id:
            peer.functions.discard(message.function_id)
            self._drop_function(message.function_id)

    def _drop_function(self, function_id: bytes) -> None:
        """Unload a function unless another submitter may call it. Caller holds the lock."""
        for connection in self.reactor.connections.values():
            peer = connection.attachment
            if isinstance(peer, SubmitterPeer) and function_id in peer.functions:
                return
        self.functions.pop(function_id, None)
        self.loaded.pop(function_id, None)

    def _on_template(self, connection: Connection, message: TaskTemplate) -> None:
        connection.attachment.templates[message.number] = BoundTemplate(message)

    def _on_lease_started(self, connection: Connection, message: LeaseStarted) -> None:
        self.leases[message.lease_id] = HeldLease(message)
        self.runtime.job_id = message.job_id
        self.runtime.root.job_id = message.job_id
        self.runtime.namespace = message.namespace
        apply_assignment(message)

    def _on_push(self, connection: Connection, message: PushTasks) -> None:
        peer: SubmitterPeer = connection.attachment
        if peer.read < message.read:
            peer.has_read(message.read)
        if not message.items:
            return
        held = self.leases.get(message.lease_id)
        if held is None:
            daemon = self.reactor.causal
            if daemon is not None:
                self.reactor.drain(daemon)
            held = self.leases.get(message.lease_id)
        if held is None or held.revoked:
            for item in message.items:
                self.called.answered(self.called.take_over(connection, item[4]) or [])
            connection.send(TasksBounced(message.lease_id, [item[0] for item in message.items], held is None))
            return
        held.connection = connection
        templates = peer.templates
        jobs = [Job(connection, held, templates[item[1]], item) for item in message.items]
        for job in jobs:
            if job.deps is not None or type(job.args) is not bytes:
                job.held = self.called.take_over(connection, job.args)
                self.runtime.pulling.prefetch(job)
        if self.actor is not None and self.actor.takes(jobs):
            return
        self.queue.extend(jobs)
        idle = self._idle
        if idle is not None:
            self._idle = None
            idle.finish()

    def _on_recall(self, connection: Connection, message: RecallTasks) -> None:
        self._bounce(message.lease_id)

    def _bounce(self, lease_id: int) -> None:
        """Give back what is queued under a lease. Caller holds the lock."""
        held = self.leases.get(lease_id)
        if held is None or held.is_actor:
            return
        queue = self.queue
        bounced: list[int] = []
        kept: list[Job] = []
        connection: Connection | None = None
        while queue:
            job = queue.pop()
            if job.held_lease is held:
                bounced.append(job.seq)
                connection = job.connection
            else:
                kept.append(job)
        queue.extend(reversed(kept))
        if bounced and connection is not None:
            bounced.reverse()
            self._flush_replies_of(connection)
            connection.send(TasksBounced(lease_id, bounced, False))

    def _on_revoke(self, connection: Connection, message: RevokeLease) -> None:
        held = self.leases.get(message.lease_id)
        if held is None:
            return
        held.revoked = True
        self._bounce(message.lease_id)
        running = self.running
        if (running is None or running.held_lease is not held) and held is not self._lingering:
            self._end_lease(held)

    def _end_lease(self, held: HeldLease, exiting: bool = False) -> None:
        """Nothing of the lease runs any more: tell both sides. Caller holds the lock."""
        if self.leases.pop(held.lease_id, None) is None:
            return
        connection = held.connection
        if connection is not None and not connection.closed:
            self._flush_replies_of(connection)
            connection.send_now(TasksBounced(held.lease_id, [], True))
        daemon = self.reactor.causal
        if daemon is not None:
            daemon.send_now(LeaseFinished(held.lease_id, exiting))

    def on_cancel(self, connection: Connection, message: CancelTask) -> None:
        """A task is to end. Caller holds the lock."""
        running = self.running
        if running is not None and running.seq == message.seq and running.connection is connection:
            if self.host.exact is not None:
                return  # half a call could not be replayed
            running.cancelled = True
            self._cancel_children(running, message.recursive)
            if message.force:
                self._end_by_force()
            self._cancel_target = running
            self._interrupt_main()
            return
        if self.actor is not None and self.actor.cancel(connection, message.seq):
            return
        for job in self.queue:
            if job.seq == message.seq and job.connection is connection:
                self.queue.remove(job)
                if self.host.exact is not None:
                    self.host.exact.withdraw(job)
                self.answer_cancelled(job)
                return

    def _end_by_force(self) -> None:
        """Kill this process, after what it has to say was written. Caller holds the lock."""
        for connection in list(self._answered):
            self._flush_replies_of(connection)
        daemon = self.reactor.causal
        if daemon is not None:
            daemon.send(WorkerExiting("killed by shoal.cancel(force=True)"))
        self.reactor.flush_dirty()
        os.kill(os.getpid(), signal.SIGKILL)

    def answer_cancelled(self, job: Job, how: str = "before it ran") -> None:
        """Answer a task that was cancelled, and will not do so itself. Caller holds the lock."""
        job.cancelled = True
        error = errors.TaskCancelledError(f"{job.template.wire.name} was cancelled {how}")
        self.add_reply(job, Failed(serialization.dumps_error(error)), 0.0, perf_counter())
        self._flush_replies_of(job.connection)

    def _cancel_children(self, job: Job, recursive: bool) -> None:
        if recursive:
            prefix = ids.child_prefix(job.task_id, job.attempt)
            self.runtime.cancel_children(prefix)

    def _on_credit(self, connection: Connection, message: StreamCredit) -> None:
        job = self.running
        if job is None or job.seq != message.seq or job.connection is not connection:
            job = self.actor.find(connection, message.seq) if self.actor is not None else None
        if job is not None:
            job.credit = message.consumed
            if job.waiter is not None:
                job.waiter.finish()

    # ------------------------------------------------------------ interrupting

    def _interrupt_main(self) -> None:
        self.reactor.attend()  # the ticks repeat what strikes at a bad moment
        if threading.get_ident() != self._main_thread_id:
            signal.pthread_kill(self._main_thread_id, signal.SIGUSR1)
        # else: the main thread reads, so it does not run user code beyond a get, whose loop sees the target

    def _on_interrupt(self, signum: int, frame: Any) -> None:
        """SIGUSR1: raise in the task that is to be cancelled, if it still runs."""
        reactor = self.reactor
        if reactor.lock._is_owned() or (frame is not None and frame.f_code in _UNINTERRUPTIBLE):  # type: ignore[attr-defined]
            return  # in the middle of the runtime's own work: the next tick interrupts again
        if self._cancel_target is None and not reactor._lead._is_owned():  # type: ignore[attr-defined]
            reactor.poll_once()  # the daemon's signal came first: the cancel stands in a socket
        self.raise_if_cancelled()

    def raise_if_cancelled(self) -> None:
        """Raise KeyboardInterrupt if the running task is to be cancelled."""
        target = self._cancel_target
        if target is not None:
            self._cancel_target = None
            if target is self.running:
                raise KeyboardInterrupt("the task was cancelled")

    # ------------------------------------------------------------ the main loop

    def wake(self) -> None:
        """Make the idle main thread look around."""
        idle = self._idle
        if idle is not None:
            self._idle = None
            idle.finish()

    def on_submitter_gone(self, connection: Connection) -> None:
        """A submitter's connection ended: what it pushed and nobody started is dropped, except calls of an actor. Caller holds the lock."""
        kept = [job for job in self.queue if job.connection is not connection or job.held_lease.is_actor]
        if len(kept) != len(self.queue):
            self.queue.clear()
            self.queue.extend(kept)
        for function_id in connection.attachment.functions:
            self._drop_function(function_id)
        running = self.running
        if running is not None and running.connection is connection and running.waiter is not None:
            running.waiter.finish()  # a producer waiting for a consumer that is gone
        if self.actor is not None:
            self.actor.on_submitter_gone(connection)
        self.orphans.note_gone(connection)

    def run(self) -> None:
        """Execute until the process is to leave."""
        reactor = self.reactor
        lock = reactor.lock
        queue = self.queue
        last_poll = perf_counter()
        while not self.exit_reason:
            with lock:
                job = self.running = queue.popleft() if queue else None
                if job is None:
                    self.flush_replies()
                    idle = self._idle = Waiter()
            if job is None:
                host = self.host
                if host.has_work():
                    host.attend_to()
                    continue
                if self.runtime.submitter.lease_count:
                    self.runtime.submitter.return_idle_leases()
                reactor.wait(idle)
                last_poll = perf_counter()
                continue
            try:
                if reactor._parked or reactor._background_idle:
                    reactor.attend()  # nobody else writes what a stream gathers
                now = self._run_job(job)
            except KeyboardInterrupt as interrupt:
                now = self._answer_interrupted(job, interrupt)
            if now - last_poll > REPLY_FLUSH_S:
                last_poll = now
                if queue:
                    self.flush_replies()
                    reactor.poll_once()
        if self._lingering is not None:
            self._linger(self._lingering)

    def _run_job(self, job: Job) -> float:
        """Run one task on this thread and gather its reply; returns the time."""
        template = job.template
        connection = job.connection
        peer: SubmitterPeer = connection.attachment
        if template.estimate_s > SLOW_TASK_S and peer.replies:
            self.flush_replies()
        held = job.held_lease
        if connection is not self._served or held is not self._served_lease:
            # What the page says now is about this caller: the others must have their replies, or they would take them for not started.
            before, self._served, self._served_lease = self._served, connection, held
            self.flush_replies()
            if self.reactor.unconfirmed and self.host.exact is None:  # its callers send again whatever has no answer
                self.reactor.wait_confirmed(REPLIES_WITHHELD_S)
            if before is not None and before.out:  # the kernel takes no more: the caller does not read
                self.page.keep_started()
        if template.wire.prompt_reply:
            self.page.set_runs_once(held.lease_id, job.seq)  # so that it is not the first to die when memory runs out
        self.page.set_started(held.lease_id, job.seq)
        start = perf_counter()
        value = self.perform(job)
        now = perf_counter()
        spent_s = now - start
        template.estimate_s += 0.3 * (spent_s - template.estimate_s)
        self.note_event(job, start, now, value)
        with self.reactor.lock:
            self.running = None
            self.add_reply(job, value, spent_s, now)
            if (
                spent_s > SLOW_TASK_S
                or now - peer.first_reply_at > REPLY_FLUSH_S
                or template.wire.prompt_reply
                or connection.closed
            ):
                self._flush_replies_of(connection)
            max_calls = template.wire.max_calls
            if max_calls and self._count_call(template.wire.function_id) >= max_calls:
                self._leave(held, f"{template.wire.name} was called {max_calls} times (max_calls)")
            elif held.revoked:
                self._end_lease(held)
        return now

    def _answer_interrupted(self, job: Job, interrupt: KeyboardInterrupt) -> float:
        """A cancel struck outside of the task's own code: before it, while its result was written, or after it was answered."""
        context = running_task.get()
        if context is not None:
            self.arguments.leave(context)
        running_task.set(None)
        now = perf_counter()
        if self.running is job:  # nobody interrupts twice, and nobody after this is None
            value = self.results.encode_error(job, interrupt)
            with self.reactor.lock:
                self.running = None
                self.add_reply(job, value, 0.0, now)
                self._flush_replies_of(job.connection)
                if job.held_lease.revoked:
                    self._end_lease(job.held_lease)
        return now

    def _count_call(self, function_id: bytes) -> int:
        made = self._calls_made[function_id] = self._calls_made.get(function_id, 0) + 1
        return made

    def _leave(self, held: HeldLease, reason: str) -> None:
        """This process ends after this task, and after what it has submitted: others may hold refs to that. Caller holds the lock."""
        held.revoked = True
        self._bounce(held.lease_id)
        self.exit_reason = reason
        daemon = self.reactor.causal
        if self.runtime.submitter.pending and daemon is not None:
            self._lingering = held
            connection = held.connection
            if connection is not None and not connection.closed:
                # The submitter must not take this for a lease with room while the children run.
                self._flush_replies_of(connection)
                connection.send_now(TasksBounced(held.lease_id, [], True))
            daemon.send_now(Blocked(held.lease_id))
        else:
            self._end_lease(held, exiting=True)

    def _linger(self, held: HeldLease) -> None:
        """Stay, without a CPU, until nothing that this process has submitted is pending."""
        self.flush_replies()
        while self.runtime.submitter.pending:
            self.reactor.wait(Waiter(), perf_counter() + LINGER_LOOK_S)
        with self.reactor.lock:
            self._end_lease(held, exiting=True)

    def run_task(self, job: Job) -> Value | Many:
        """Run a task's code in this thread: its result, or its error, as a value."""
        template = job.template
        wire = template.wire
        held = job.held_lease
        context = TaskContext(job.task_id, job.attempt, b"", held.started.depth, held.started.job_id, wire.name)
        context.lease = held
        context.job = job
        context.repeats = template.wanted is not None
        context.assigned = held.started.assigned
        if held.started.group:
            context.enter_group(held.started.group)
        if self.actor is not None:
            context.actor_id = self.actor.actor_id
        token = running_task.set(context)
        try:
            if job.cancelled:
                raise KeyboardInterrupt
            function = template.function or self.load_function(template)
            args = job.args
            if type(args) is Containing:
                args = args.blob
            plain = serialization.loads(args) if type(args) is bytes and job.deps is None else None
            if type(plain) is tuple:
                value = function(*plain)
            else:
                positional, named = self._load_arguments(context, job) if plain is None else plain
                value = function(*positional, **named)
            while type(value) is Delegation:
                value = value.run(held.started.demand, self.runtime.get)
            return self.results.encode_result(job, value)
        except SystemExit as error:
            return self._on_system_exit(job, error)
        except BaseException as error:
            return self.results.encode_error(job, error)
        finally:
            if context.room is not None:
                positional = named = None
                self.arguments.leave(context)
            running_task.reset(token)

    def _load_arguments(self, context: TaskContext, job: Job) -> tuple[list[Any], dict[str, Any]]:
        """A task's arguments, wherever they are."""
        deps = job.deps or ()
        plain, *loaded = self.arguments.load(context, [job.args, *(value for _, value in deps)])
        return _in_places(plain, [key for key, _ in deps], loaded)

    def with_dependencies(
        self, plain: Any, deps: list[tuple[int | str, Value]] | None
    ) -> tuple[list[Any], dict[str, Any]]:
        """Arguments with the values of refs in their places."""
        deps = deps or []
        return _in_places(plain, [key for key, _ in deps], [self.load_value(value) for _, value in deps])

    def load_value(self, value: Value) -> Any:
        """Deserialize an argument, wherever it is."""
        if type(value) is bytes:
            return serialization.loads(value)
        if type(value) is Containing:
            return serialization.loads(value.blob)
        if type(value) is Failed:
            raise serialization.loads_error(value.error)
        assert type(value) is Stored, "an argument is inline, an error or stored"
        context = running_task.get()
        assert context is not None, "arguments are read in their task's context"
        context.loads_arguments = not self.runtime.pulling.is_abroad(value)  # one that travels may take long
        try:
            return self.runtime.load_stored(value)
        except errors.ObjectLostError as error:
            if type(error) is not errors.ObjectLostError:
                raise  # it is known why it cannot be had
            raise ArgumentLost(value, error) from error
        finally:
            context.loads_arguments = False

    def load_function(self, template: BoundTemplate) -> Callable[..., Any]:
        """The callable of a template, unpickled at its first use."""
        wire = template.wire
        if template.is_call:
            assert self.actor is not None, "calls go to actors"
            function = self.actor.method(wire.method)
        else:
            loaded = self.loaded.get(wire.function_id)
            if loaded is None:
                code = self.functions.get(wire.function_id)
                assert code is not None, "the code of a function is sent before its first task"
                loaded = self.loaded[wire.function_id] = serialization.loads(code)
                self.runtime.exports.register(loaded, wire.function_id, code)
            function = loaded
        template.function = function
        return function

    def _on_system_exit(self, job: Job, error: SystemExit) -> Value:
        """sys.exit in a task is a crash of its worker; in an actor's method it is the actor's end."""
        if self.actor is not None:
            return self.actor.exit_value(job, error)
        code = error.code if isinstance(error.code, int) else (0 if error.code is None else 1)
        self.flush_replies()
        with self.reactor.lock:
            daemon = self.reactor.causal
            if daemon is not None:
                daemon.send_now(WorkerExiting(f"the task called sys.exit({error.code!r})"))
        self.reactor.wait_confirmed(REPLIES_WITHHELD_S)
        self.reactor.wait_written(REPLIES_WITHHELD_S)
        exit_process(code)
        raise AssertionError("unreachable")

    # ------------------------------------------------------------ replies

    def add_reply(self, job: Job, value: Value | Many, spent_s: float, now: float) -> None:
        """Gather one reply. Caller holds the lock."""
        connection = job.connection
        peer: SubmitterPeer = connection.attachment
        lease_id = job.held_lease.lease_id
        if peer.replies:
            if peer.lease_id != lease_id:
                self._flush_replies_of(connection)
        if not peer.replies:
            peer.lease_id = lease_id
            peer.first_reply_at = now
            peer.busy_s = 0.0
            self._answered.append(connection)
        peer.replies.append((job.seq, value))
        peer.task_ids.append(job.task_id + job.template.tail if job.template.outlives else b"")
        peer.busy_s += spent_s
        if job.held is not None:
            held, job.held = job.held, None
            self.called.answered(held)

    def _flush_replies_of(self, connection: Connection) -> None:
        peer: SubmitterPeer = connection.attachment
        replies = peer.replies
        if replies:
            task_ids = peer.task_ids
            peer.replies, peer.task_ids = [], []
            if connection in self._answered:
                self._answered.remove(connection)
            if not connection.closed:
                self.flush_output()  # what a task printed comes before its result
                connection.send_now(TaskReplies(peer.lease_id, replies, int(peer.busy_s * 1e6)))
                if len(peer.unread) == UNREAD_REPLIES_MAX:
                    peer.read += 1  # the oldest goes
                peer.unread.append((replies, task_ids))
            else:
                self.orphans.publish(peer.worker_id, replies, task_ids)

    def flush_replies(self) -> None:
        """Send all gathered replies."""
        if self._answered:
            with self.reactor.lock:
                for connection in list(self._answered):
                    self._flush_replies_of(connection)

    # ------------------------------------------------------------ blocking

    def wait_as_a_task(self) -> None:
        """What this thread's task reads as an argument will take long: from now on its wait lends the CPU, as any other."""
        context = running_task.get()
        if context is not None:
            context.loads_arguments = False
            if context.room is not None:
                context.room.give_up()  # what makes the argument may need it

    def runs_here(self) -> bool:
        """Whether this thread runs a task's own code, whose waits lend its CPU."""
        context = running_task.get()
        return context is not None and not context.loads_arguments

    def brings_argument_back(self) -> bool:
        """Whether this thread reads an argument of its task from this node's store. Its CPU is not lent, or ever more tasks would begin, each
        of which keeps in memory what it has read already."""
        context = running_task.get()
        return context is not None and context.loads_arguments

    def block(self, held: HeldLease | None = None) -> None:
        """A task waits: give back what is queued behind it and lend its CPU. Without `held` it is the task of this thread."""
        held = held or running_task.get().lease  # type: ignore[union-attr]
        if held is None:
            return
        with self.reactor.lock:
            held.blocked += 1
            if held.blocked == 1:
                self._bounce(held.lease_id)
                self.flush_replies()
                tell_rooms(held.rooms, waits=True)
                daemon = self.reactor.causal
                if daemon is not None:
                    daemon.send_now(Blocked(held.lease_id))

    def unblock(self, held: HeldLease | None = None) -> None:
        """The counterpart of `block`: the task goes on."""
        held = held or running_task.get().lease  # type: ignore[union-attr]
        if held is None:
            return
        with self.reactor.lock:
            held.blocked -= 1
            if held.blocked == 0:
                tell_rooms(held.rooms, waits=False)
                daemon = self.reactor.causal
                if daemon is not None:
                    daemon.send_now(Unblocked(held.lease_id))
                self.reactor.attend()  # it computes from now on: somebody must read

    def _waits_only(self) -> bool:
        """Whether the task that runs, if any, does nothing but wait."""
        running = self.running
        return running is None or running.held_lease.blocked > 0

    def count_outside_wait(self, change: int) -> None:
        """A thread that runs no task of its own begins or ends to wait."""
        with self.reactor.lock:
            self._outside_waits += change

    def _watch_main(self, now: float) -> None:
        """Threads of the task, its futures or its coroutines wait: when its main thread does no work either, the CPU is lent.

        A thread blocked in `Future.result()` or in an event loop cannot be seen to wait for us; that it uses no CPU time can.
        """
        running = self.running
        held = running.held_lease if running is not None else self.host.lease_of_loop()
        if held is None or not (self._outside_waits or self.reactor.awaits):
            held = None
        if held is not self._watched or held is None:
            self._take_back()
            self._watched = held
            if held is None:
                return
            self._watched_cpu_s, self._watched_since = self._main_cpu_s(), now
            return
        spent_s = now - self._watched_since
        if spent_s < IDLE_MAIN_S:
            return
        cpu_s = self._main_cpu_s()
        if cpu_s - self._watched_cpu_s > 0.3 * spent_s:
            self._take_back()
        elif self._lent is None:
            self._lent = held
            self.block(held)
        self._watched_cpu_s, self._watched_since = cpu_s, now

    def _take_back(self) -> None:
        lent, self._lent = self._lent, None
        if lent is not None:
            self.unblock(lent)

    def _main_cpu_s(self) -> float:
        return clock_gettime(self._main_clock)

    # ------------------------------------------------------------ time

    def note_event(self, job: Job, start: float, end: float, value: Any) -> None:
        """One line of the trace, best effort."""
        events = self._events
        if len(events) < EVENTS_PER_FLUSH_MAX:
            offset = self._clock_offset
            failed = type(value) is Failed
            state = "FAILED" if failed else "FINISHED"
            error = self.results.last_error if failed else ""
            events.append(
                (job.task_id, job.template.wire.name, job.attempt, state, start + offset, end + offset, error)
            )
            if len(events) == 1:
                self._events_at = end

    def _on_tick(self, now: float) -> None:
        if self._answered:
            self.flush_replies()
        self.called.tell()
        if self._outside_waits or self.reactor.awaits or self._lent is not None:
            self._watch_main(now)
        if self._cancel_target is not None and self._cancel_target is self.running:
            signal.pthread_kill(self._main_thread_id, signal.SIGUSR1)
        if self._events and now - self._events_at > (EVENTS_IDLE_S if self.running is None else EVENTS_EVERY_S):
            daemon = self.reactor.causal
            if daemon is not None:
                events, self._events = self._events, []
                daemon.send(TaskEvents(len(events), msgspec.msgpack.encode(events)))


def _in_places(plain: Any, keys: list[int | str], loaded: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments, with loaded values where refs stood."""
    positional, named = plain if type(plain) is list else (list(plain), {})
    for key, value in zip(keys, loaded, strict=True):
        if type(key) is int:
            positional[key] = value
        else:
            named[key] = value
    return positional, named


#: code between whose lines no exception may strike; what it calls may be interrupted
_UNINTERRUPTIBLE = frozenset(
    function.__code__
    for function in (
        Runtime.wait_for,
        Executor.block,
        Executor.unblock,
        Arguments.leave,
        Room.give_up,
        Room.tell,
        Reactor.wait,
        Reactor.poll_once,
        Reactor._leave,
        Reactor._lead_is_free,
        Reactor._promote,
        ObjectRef.__del__,
        store_blob,
    )
)

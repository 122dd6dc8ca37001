"""Hosting an actor: construct it, and run its methods on the main thread, in threads, or on an event loop.

Purpose: one class of object that is the actor's process from the constructor to the exit.

Design: three ways to run calls, chosen by the actor's options.

    plain      methods run on the main thread in the executor's own loop: the same path as tasks
    threaded   max_concurrency > 1 or concurrency groups: `takes` hands calls to groups of threads
    asyncio    any method is `async def`: the main thread runs an event loop that reads the sockets itself (it leads for good);
               calls become asyncio tasks, bounded by a semaphore per group; plain methods run on the loop as well

Replies use the executor's gathering; on the loop they are flushed once an iteration.

What it does not do: order or retry calls (the caller's `actor_calls`), restart (the GCS).
"""

from __future__ import annotations

import inspect
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any

from shoal import serialization
from shoal.protocol import errors
from shoal.protocol.messages import (
    NUM_RETURNS_STREAMING,
    ActorStarted,
    BecomeActor,
    Failed,
    Many,
    MayAnswer,
    Stored,
    StreamItem,
    TerminateActor,
    Value,
    WorkerExiting,
)
from shoal.runtime.reactor import Waiter
from shoal.runtime.results import ArgumentLost
from shoal.runtime.tasks import TaskContext, running_task

if TYPE_CHECKING:
    import asyncio

    from shoal.runtime.exact_actor import ExactActor
    from shoal.runtime.executor import Executor
    from shoal.runtime.jobs import HeldLease, Job
    from shoal.runtime.reactor import Connection


class ActorHost:
    """The actor of this process."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.runtime = executor.runtime
        self.reactor = executor.reactor
        self.actor_id = b""
        self.spec: Any = None
        self.instance: Any = None
        self.incarnation = 0
        self.ending = ""  #: why the actor leaves after what is queued
        self.moving = ""  #: why it goes on elsewhere, after what runs
        self._threads: dict[str, ThreadGroup] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._semaphores: dict[str, asyncio.Semaphore] = {}
        self._async_jobs: dict[tuple[int, int], tuple[Job, asyncio.Task[Any]]] = {}
        self._arrived: deque[Job] = deque()
        self._flush_scheduled = False
        self._stop: asyncio.Event | None = None
        #: calls that threads were given and have not answered, by connection and number
        self._active: dict[tuple[int, int], Job] = {}
        self._begun: set[tuple[int, int]] = set()  #: those of them that run
        self.reactor.handlers[BecomeActor] = self._on_become
        self.reactor.handlers[TerminateActor] = self._on_terminate
        self.reactor.handlers[MayAnswer] = lambda connection, message: self.reactor.on_may_answer()
        self._become: BecomeActor | None = None
        #: the actor's lease, from its construction on
        self.held: HeldLease = None  # type: ignore[assignment]
        self.exact: ExactActor | None = None  #: of an actor with checkpoints

    # ------------------------------------------------------------ birth

    def _on_become(self, connection: Connection, message: BecomeActor) -> None:
        """The daemon made this worker an actor; the main thread constructs it."""
        self._become = message
        self.executor.wake()

    def has_work(self) -> bool:
        """Whether the idle main thread has something to do for the actor."""
        if self._become is not None:
            return True
        return not self.executor.exit_reason and (bool(self.ending) or (bool(self.moving) and self.exact is not None))

    def attend_to(self) -> None:
        """Do it: construct the actor, or leave when drained. On the main thread."""
        message, self._become = self._become, None
        if message is not None:
            # Not when the message comes: that may be read together with the answer to the registration, before the page is known.
            if self.executor.page.is_leashed():
                self.reactor.leash = self.executor.page
            self._construct(message)
        elif self.moving and self.exact is not None:
            self.exact.move(self.moving)
        elif self.ending:
            self.leave_if_drained()
            if not self.executor.exit_reason:
                waiter = Waiter()
                self.reactor.wait(waiter, perf_counter() + 0.05)  # threads still run calls

    def _construct(self, message: BecomeActor) -> None:
        spec = self.spec = message.spec
        self.actor_id = spec.actor_id
        self.incarnation = message.incarnation
        held: HeldLease = self.executor.leases[message.lease_id]
        held.is_actor = True
        self.held = held
        executor = self.executor
        context = TaskContext(
            spec.actor_id, message.incarnation, b"", held.started.depth, spec.job_id, f"{spec.class_name}.__init__"
        )
        context.lease = held
        context.actor_id = spec.actor_id
        context.assigned = held.started.assigned
        if held.started.group:
            context.enter_group(held.started.group)
        token = running_task.set(context)
        error, cause = b"", ""
        try:
            self._check_arguments(spec)
            cls = self._load_class(spec)
            if spec.takes_checkpoints:
                from shoal.runtime.exact_actor import ExactActor

                self.exact = ExactActor(self)
                self.exact.begin(cls, lambda: self._instantiate(cls), message.recovery, message.records_fd)
            else:
                self.instance = self._instantiate(cls)
            self._prepare_concurrency()
        except InputFailed as failed:
            error, cause = failed.error, failed.cause
        except BaseException as exception:
            wrapped = errors.make_task_error(exception, f"{spec.class_name}.__init__", self.runtime.pid, "127.0.0.1")
            error = serialization.dumps_error(wrapped)
        finally:
            running_task.reset(token)
        with self.reactor.lock:
            daemon = self.reactor.causal
            if daemon is not None:
                daemon.send_now(ActorStarted(spec.actor_id, message.incarnation, error, cause))
        if error:
            executor.exit_reason = "its constructor failed"
        elif spec.is_async:
            self._run_loop()

    def _instantiate(self, cls: type) -> Any:
        """Run the constructor."""
        executor, spec = self.executor, self.spec
        positional, named = executor.with_dependencies(self._argument(spec.arguments), None)
        for key, value in spec.dependencies or ():
            loaded = self._argument(value)
            if type(key) is int:
                positional[key] = loaded
            else:
                named[key] = loaded
        executor.actor = self
        return cls(*positional, **named)

    def _argument(self, value: Value) -> Any:
        """An argument of the constructor. One that is not where the spec says is asked for again, as any ref: its owner, or who is in the owner's
        place, makes it anew."""
        try:
            return self.executor.load_value(value)
        except ArgumentLost as lost:
            oid, error = lost.place.oid, lost.error
        except errors.ObjectLostError as known:
            assert type(value) is Stored, "of values that lie in stores"
            oid, error = value.oid, known
        spec = self.spec
        home, maker = next(((home, maker) for each, home, maker in spec.needs if each == oid), (b"", ""))
        if home:
            try:
                return self.runtime.get(self.runtime.objects.borrow(oid, home))
            except errors.ObjectLostError as last:
                error = last
        text = (
            f"{spec.class_name}.__init__ was not called: its argument, object {oid.hex()}{maker and f' ({maker})'}, is lost: "
            f"{str(error).rstrip('.')}. "
            "An argument outlives its node if its task may run again (max_retries) or it was stored by shoal.put(value, copies=2)"
        )
        cause = "an argument of its constructor is lost, and cannot be made again"
        raise InputFailed(serialization.dumps_error(type(error)(text, object_id=oid.hex())), cause) from error

    def _check_arguments(self, spec: Any) -> None:
        """Raises InputFailed when an argument of the constructor could not be computed."""
        for _, value in spec.dependencies or ():
            if type(value) is Failed:
                error = errors.dependency_error(serialization.loads_error(value.error), f"{spec.class_name}.__init__")
                raise InputFailed(serialization.dumps_error(error))

    def _load_class(self, spec: Any) -> type:
        code = self.executor.functions.get(spec.class_id)
        if code is None:
            code = self.runtime.call("gcs.function_get", {"function_id": spec.class_id})
            if isinstance(code, dict):
                code = code["code"]
        cls: type = serialization.loads(code)
        return cls

    def _prepare_concurrency(self) -> None:
        spec = self.spec
        if spec.is_async:
            return
        if spec.max_concurrency > 1 or spec.concurrency_groups:
            self._threads[""] = ThreadGroup(self, "", max(1, spec.max_concurrency))
            for name, size in spec.concurrency_groups.items():
                self._threads[name] = ThreadGroup(self, name, size)

    def method(self, name: str) -> Callable[..., Any]:
        """The bound method of the actor, or one of the methods every actor has."""
        if name in ("__ray_ready__", "__shoal_ready__"):
            return lambda: True
        if name in ("__ray_terminate__", "__shoal_terminate__"):
            return self._terminate
        if name in ("__ray_call__", "__shoal_call__"):
            return lambda function, *args, **kwargs: function(self.instance, *args, **kwargs)
        found: Callable[..., Any] = getattr(self.instance, name)
        return found

    def lease_of_loop(self) -> HeldLease | None:
        """The lease of an asyncio actor that runs calls now."""
        for job, _ in list(self._async_jobs.values()):
            return job.held_lease
        return None

    def printed_name(self) -> str:
        """Who prints, for the driver's terminal: the instance's own repr if its class has one, else the class."""
        instance = self.instance
        own_repr: Any = type(instance).__repr__
        if instance is not None and own_repr is not object.__repr__:
            try:
                return repr(instance).replace("\n", " ")[:100]
            except Exception:
                return str(self.spec.class_name)  # a user's broken repr must not break printing
        return str(self.spec.class_name)

    # ------------------------------------------------------------ death

    def _terminate(self) -> None:
        """`__ray_terminate__`: what runs beside it finishes first."""
        if self._threads or self._loop is not None:
            self.ending = "it was asked to terminate"
        else:
            self.leave("it was asked to terminate")

    def leave(self, reason: str, moves: bool = False) -> None:
        """Exit after the replies of what ran before were sent. `moves`: to go on elsewhere."""
        executor = self.executor
        with self.reactor.lock:
            daemon = self.reactor.causal
            if daemon is not None:
                executor.flush_replies()
                daemon.send_now(WorkerExiting(reason, moves))
            executor.exit_reason = reason
        executor.wake()
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    def exit_value(self, job: Job, exit_request: SystemExit) -> Value:
        """sys.exit or exit_actor in a method: the process leaves, the call fails as the actor's end."""
        asked = "exit_actor()" if type(exit_request) is ActorExit else f"sys.exit({exit_request.code!r})"
        reason = f"the actor left by its own will: {job.template.wire.name} called {asked}"
        self.leave(reason)
        error = errors.ActorDiedError(reason, actor_id=self.actor_id.hex(), class_name=self.spec.class_name)
        return Failed(serialization.dumps_error(error))

    def _on_terminate(self, connection: Connection, message: TerminateActor) -> None:
        """No handle is left: leave when what is queued has run. Or the node leaves: the actor begins nothing more here."""
        if message.move:
            self.moving = message.reason
            self.executor.queue.clear()  # nobody has seen anything of these calls, and their callers ask again
        else:
            self.ending = message.reason
            self.leave_if_drained()
        self.executor.wake()

    def leave_if_drained(self) -> None:
        """Leave if the actor is ending and nothing is queued or runs."""
        executor = self.executor
        if (
            self.ending
            and not executor.queue
            and executor.running is None
            and not self._active
            and not self._async_jobs
        ):
            self.leave(self.ending)

    # ------------------------------------------------------------ calls

    def takes(self, jobs: list[Job]) -> bool:
        """Whether calls go to threads or the loop instead of the executor's queue. Caller holds the lock."""
        if self._loop is not None:
            self._arrived.extend(jobs)
            if threading.get_ident() == self.executor._main_thread_id:
                self._start_arrived()
            else:
                self._loop.call_soon_threadsafe(self._start_arrived)
            return True
        if self.exact is not None:
            self.exact.takes(jobs)
            return True
        if self._threads:
            for job in jobs:
                self._active[(id(job.connection), job.seq)] = job
                group = job.template.wire.concurrency_group
                (self._threads.get(group) or self._threads[""]).add(job)
            return True
        return False

    def find(self, connection: Connection, seq: int) -> Job | None:
        """A call that is queued or runs in a thread or on the loop."""
        key = (id(connection), seq)
        entry = self._async_jobs.get(key)
        return entry[0] if entry is not None else self._active.get(key)

    def jobs(self) -> list[Job]:
        """All calls that threads or the loop were given and have not answered."""
        return [*self._active.values(), *(job for job, _ in self._async_jobs.values()), *self._arrived]

    def cancel(self, connection: Connection, seq: int) -> bool:
        """Cancel a call in a thread (a flag it may ask for) or on the loop (asyncio's cancellation). Caller holds the lock."""
        key = (id(connection), seq)
        entry = self._async_jobs.get(key)
        if entry is not None:
            job, task = entry
            job.cancelled = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(task.cancel)
            return True
        waiting = self._active.get(key)
        if waiting is None:
            return False
        if key in self._begun:
            waiting.cancelled = True
            if waiting.waiter is not None:
                waiting.waiter.finish()  # a producer that waits for its consumer can be stopped
        else:
            del self._active[key]
            self.executor.answer_cancelled(waiting)
        return True

    def on_submitter_gone(self, connection: Connection) -> None:
        """A caller's connection ended: producers that wait for it must not wait for ever. Caller holds the lock."""
        for job in [*self._active.values(), *(job for job, _ in self._async_jobs.values())]:
            if job.connection is connection and job.waiter is not None:
                job.waiter.finish()

    def run_in_thread(self, job: Job) -> None:
        """Run a call in one of the threads and answer it."""
        executor = self.executor
        key = (id(job.connection), job.seq)
        with self.reactor.lock:
            if key not in self._active:
                return  # it was cancelled, and answered
            self._begun.add(key)
        start = perf_counter()
        value = executor.run_task(job)
        now = perf_counter()
        if job.cancelled and type(value) is not Failed:
            value = executor.results.encode_error(job, KeyboardInterrupt())  # the method saw the flag, or never looked
        with self.reactor.lock:
            self._begun.discard(key)
            self._active.pop(key, None)
            executor.add_reply(job, value, now - start, now)
            executor.flush_replies()
        executor.note_event(job, start, now, value)
        self.leave_if_drained()

    # ------------------------------------------------------------ the event loop

    def _run_loop(self) -> None:
        """Run the actor on an event loop, in this (the main) thread, until it leaves."""
        import asyncio

        try:
            import uvloop

            loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        except ImportError:
            loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        self._stop = asyncio.Event()
        self._semaphores[""] = asyncio.Semaphore(self.spec.max_concurrency)
        for name, size in self.spec.concurrency_groups.items():
            self._semaphores[name] = asyncio.Semaphore(size)
        reactor = self.reactor
        reactor.claim_lead()
        try:
            self._loop = loop
            loop.add_reader(reactor.epoll.fileno(), reactor.poll_once)
            while self.executor.queue:  # arrived while the constructor ran
                self._arrived.append(self.executor.queue.popleft())
            self._start_arrived()
            loop.run_until_complete(self._stop.wait())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            self._loop = None
            loop.remove_reader(reactor.epoll.fileno())
            self.executor.flush_replies()
            reactor.release_lead()

    def _start_arrived(self) -> None:
        loop = self._loop
        if loop is None:
            return
        while self._arrived:
            job = self._arrived.popleft()
            self._async_jobs[(id(job.connection), job.seq)] = (job, loop.create_task(self._run_async(job)))

    async def _run_async(self, job: Job) -> None:
        executor = self.executor
        semaphore = self._semaphores.get(job.template.wire.concurrency_group) or self._semaphores[""]
        start = perf_counter()
        try:
            if semaphore.locked():
                async with semaphore:
                    value = await self._call_async(job)
            else:
                await semaphore.acquire()
                try:
                    value = await self._call_async(job)
                finally:
                    semaphore.release()
        except BaseException as error:
            value = executor.results.encode_error(job, error)
        now = perf_counter()
        with self.reactor.lock:
            self._async_jobs.pop((id(job.connection), job.seq), None)
            executor.add_reply(job, value, now - start, now)
        if not self._flush_scheduled and self._loop is not None:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)
        if self.ending:
            self.leave_if_drained()

    def _flush(self) -> None:
        self._flush_scheduled = False
        self.executor.flush_replies()

    async def _call_async(self, job: Job) -> Value | Many:
        executor = self.executor
        template = job.template
        held = job.held_lease
        context = TaskContext(
            job.task_id, job.attempt, b"", held.started.depth, held.started.job_id, template.wire.name
        )
        context.lease = held
        context.job = job
        context.assigned = held.started.assigned
        if held.started.group:
            context.enter_group(held.started.group)
        context.actor_id = self.actor_id
        running_task.set(context)
        function = template.function or executor.load_function(template)
        try:
            if job.deps is not None or type(job.args) is not bytes:
                # Those of other nodes travel while the loop goes on.
                await self.runtime.pulling.come((job.args, *(value for _, value in job.deps or ())))
            plain = executor.load_value(job.args)
            if type(plain) is tuple and job.deps is None:
                result = function(*plain)
            else:
                positional, named = executor.with_dependencies(plain, job.deps)
                result = function(*positional, **named)
            if inspect.isasyncgen(result):
                return await self._stream_async(job, result)
            if inspect.isawaitable(result):
                result = await result
            return executor.results.encode_result(job, result)
        except SystemExit as error:
            return self.exit_value(job, error)

    async def _stream_async(self, job: Job, items: Any) -> Value | Many:
        import asyncio

        executor = self.executor
        if job.template.num_returns != NUM_RETURNS_STREAMING:
            return executor.results.encode_result(job, [item async for item in items])
        limit = job.template.wire.backpressure
        index = 0
        async for item in items:
            index += 1
            if index <= job.template.resume_from:
                continue
            value = executor.results.encode_value(job, item, index)
            with self.reactor.lock:
                executor.results.tells(job)
                job.connection.send_now(StreamItem(job.held_lease.lease_id, job.seq, index, value))
            while limit > 0 and index - job.credit >= limit:
                if job.connection.closed:
                    raise KeyboardInterrupt("the consumer of the stream is gone")
                arrived = asyncio.Event()
                job.waiter = _EventWaiter(arrived)
                await arrived.wait()
                job.waiter = None
        return executor.results.end_of_stream(job, index)


class InputFailed(Exception):
    """The constructor is not to run: the error that stands for it, and why the actor is dead if its constructor is not to blame."""

    def __init__(self, error: bytes, cause: str = "") -> None:
        super().__init__(cause)
        self.error = error
        self.cause = cause


class ActorExit(SystemExit):
    """What `exit_actor` raises."""


class _EventWaiter(Waiter):
    """A waiter that sets an asyncio event; finished on the loop's own thread."""

    __slots__ = ("_event",)

    def __init__(self, event: asyncio.Event) -> None:
        super().__init__()
        self._event = event

    def finish(self) -> None:
        self.done = True
        self._event.set()


class ThreadGroup:
    """A bounded set of threads that run the calls of one concurrency group, started as they are needed."""

    def __init__(self, host: ActorHost, name: str, size: int) -> None:
        self._host = host
        self._name = name
        self._size = size
        self._started = 0
        self._unfinished = 0  #: calls that wait or run
        self._jobs: SimpleQueue[Job] = SimpleQueue()

    def add(self, job: Job) -> None:
        """Queue a call. Caller holds the reactor's lock."""
        self._unfinished += 1
        self._jobs.put(job)
        if self._started < self._size and self._unfinished > self._started:
            name = f"shoal-{self._name or 'call'}-{self._started + 1}"
            try:
                threading.Thread(target=self._run, name=name, daemon=True).start()
            except RuntimeError:  # the machine gives no more threads
                if not self._started:
                    raise  # nobody would ever run it: the process ends, and its callers are told
            else:
                self._started += 1

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            self._host.run_in_thread(job)
            with self._host.reactor.lock:
                self._unfinished -= 1


def exit_process(code: int) -> None:
    """Leave this process at once, after its output was written."""
    import sys

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)

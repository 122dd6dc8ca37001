"""The runtime of one process: submit, get, put, wait, cancel.

Purpose: join the reactor, the object table, the submitter and the store into the verbs of the public API, for driver and worker alike.

Design: one `Runtime` a process, found by `current()`. The verbs are written for their common case first: a submission without refs among its
arguments, a get of an inline value. Everything that other threads also write is written under `reactor.lock`.

Measured cost (2-core VM): submit 4 us, reply 1.5 us, get of an inline value 0.7 us.

What it does not do: execute tasks (`executor`), start processes (`launch`), or check users' options (`api`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

from shoal import serialization
from shoal.protocol import errors, ids
from shoal.protocol.limits import (
    BLOCKED_AFTER_S,
    CALL_TIMEOUT_S,
    GOODBYE_S,
    INLINE_ARGUMENT_BYTES_MAX,
    LINEAGE_BYTES_MAX,
)
from shoal.protocol.messages import (
    KIND_TASK,
    NUM_RETURNS_DYNAMIC,
    NUM_RETURNS_STREAMING,
    Answer,
    BudgetReturned,
    Call,
    CancelObject,
    Containing,
    Failed,
    FreeBlocks,
    Many,
    NoRoomFor,
    Resolved,
    SegmentBudget,
    Shutdown,
    Stored,
    StreamItem,
    TaskTemplate,
    TrimBudget,
    Value,
)
from shoal.runtime import actor_calls, awaiting, cancelling, putting, stored, unread_errors, waiting
from shoal.runtime import objects as objects_module
from shoal.runtime.actor_calls import ActorCalls, ActorQueue
from shoal.runtime.closures import Closures
from shoal.runtime.exports import Exports, forgotten
from shoal.runtime.groups import GroupTable
from shoal.runtime.lineage import LineageTable
from shoal.runtime.locality import Locality
from shoal.runtime.objects import ObjectEntry, ObjectRef, ObjectTable, SharedState, dropped
from shoal.runtime.own_daemon import wait_for_answer
from shoal.runtime.pulling import Pulling, Told
from shoal.runtime.reactor import Connection, Reactor, Waiter
from shoal.runtime.remaking import Remaker, Rerun
from shoal.runtime.spares import Spares
from shoal.runtime.streams import ObjectRefGenerator, StreamState, abandoned, end_stream, let_go_of_abandoned, on_item
from shoal.runtime.submitter import Submitter
from shoal.runtime.tasks import CallNames, PendingTask, TaskContext, Template
from shoal.runtime.tasks import running_task as running_task  # the public packages find it here
from shoal.store.client import StoreClient
from shoal.system.heap import learn_large_blocks

_current: Runtime | None = None
#: called by `current` when there is no runtime: the API's implicit init
initialize: Callable[[], Runtime] | None = None

POLL_EVERY = 64  #: submissions between looks at the sockets, so that a long submitting loop keeps the workers fed


_forked = False  #: this process was forked by a user from one that has a runtime


def current() -> Runtime:
    """The runtime of this process; begins a session if there is none.

    Raises:
        RuntimeError: this process was forked from one that has a runtime.
    """
    runtime = _current
    if runtime is not None:
        return runtime
    if _forked:
        raise RuntimeError(
            "this process was forked from one that uses Shoal, and cannot use that session. "
            "Use remote functions instead of fork, start the process with the 'spawn' method, or call shoal.init() here."
        )
    if initialize is None:
        raise RuntimeError("Shoal is not initialized in this process")
    return initialize()


def current_or_none() -> Runtime | None:
    """The runtime of this process, if it has one."""
    return _current


def set_current(runtime: Runtime | None) -> None:
    """Make `runtime` the one of this process."""
    global _current, _forked
    _current = runtime
    _forked = False


def _become_inert() -> None:
    """In a fork made by a user: the sockets belong to the parent, so nothing here may touch them."""
    global _current, _forked
    if _current is not None:
        _current = None
        _forked = True
        objects_module.become_inert()


os.register_at_fork(after_in_child=_become_inert)


class Runtime:
    """The in-process side of Shoal. Made by `driver` and `worker`, which connect it to the node daemon."""

    def __init__(self, role: str, worker_id: bytes) -> None:
        learn_large_blocks()
        self.role = role
        self.worker_id = worker_id
        self.pid = os.getpid()
        self.job_id = b"\0" * 4
        self.node_id = b"\0" * 16
        self.daemon_pid = 0
        self.namespace = ""
        self.session_dir = ""
        self.config: dict[str, Any] = {}
        self.reactor = Reactor()
        self.objects = ObjectTable(
            self.reactor,
            lambda entry: stored.free(self, entry),
            self._on_unread,
            lambda oid: self.closures.forget(oid),
        )
        self.spares = Spares(self)
        self.lineage = LineageTable(LINEAGE_BYTES_MAX, self.objects.unuse, self.spares.free, self.objects.unneed)
        self.objects.needed = self.lineage.borrowed
        self.submitter = Submitter(self)
        self.actor_calls = ActorCalls(self)
        self.remaker = Remaker(self)
        self.pulling = Pulling(self)
        self.locality = Locality(self)
        self.closures = Closures(self)
        self.objects.describe = self.closures.describe
        self.objects.pattern_of = self.closures.pattern_of
        self.store: StoreClient | None = None
        self.root = TaskContext(
            os.urandom(16),
            0,
            os.urandom(ids.TASK_PREFIX_BYTES),
            0,
            self.job_id,
            "driver" if role == "driver" else "worker",
        )
        self.none_blob = serialization.dumps_inline(None)
        self.empty_args = serialization.dumps_inline(())
        self.closed = False
        self._tells_errors = not unread_errors.is_off()
        unread_errors.forget_all()
        self._goodbye: Waiter | None = None  #: done when the daemon has answered our leave
        self.lost: BaseException | None = None  #: why the node is gone
        self.explain_loss: Callable[[], str] = (
            str  #: what the starter of the node knows of its death, to be put after "died"
        )
        self.executor: Any = None  #: of a worker
        self.call_names: CallNames | None = None  #: of a worker that hosts an actor with checkpoints
        self._template_numbers = 0
        self._requests = 0
        self._answers: dict[int, tuple[Waiter | Told, list[Any]]] = {}
        self._since_poll = 0
        self.exports = Exports(self)
        self.groups = GroupTable(self)
        handlers = self.reactor.handlers
        handlers[Resolved] = self._on_resolved
        handlers[StreamItem] = lambda connection, message: on_item(self, connection, message)
        handlers[Answer] = self._on_answer
        handlers[SegmentBudget] = self._on_answer
        handlers[CancelObject] = self._on_cancel_object
        handlers[FreeBlocks] = lambda connection, message: stored.on_free_blocks(self, message)
        handlers[NoRoomFor] = lambda connection, message: stored.on_no_room(self, message)
        handlers[TrimBudget] = lambda connection, message: stored.on_trim(self, connection, message)
        self.reactor.is_active = self.submitter.is_active
        self.reactor.is_quiet = self.submitter.is_quiet
        self.reactor.before_sleep.append(self.submitter.flush)
        self.reactor.on_tick.append(self._on_tick)

    # ------------------------------------------------------------ submitting

    def context(self) -> TaskContext:
        """The context in which this thread names its children."""
        return running_task.get() or self.root

    def export(self, code: Any) -> tuple[bytes, bytes]:
        """The id and the serialized form of a function or class; serialized once a process.

        Raises:
            TypeError: it captures something that cannot be serialized.
        """
        exported = self.exports.export(code)
        return exported.function_id, exported.blob

    def new_template(
        self, function_id: bytes, code: bytes, name: str, kind: int, num_returns: int, **more: Any
    ) -> Template:
        """A template for calls of one function with one set of options.

        Args:
            more: `klass`, `max_retries`, `retry_exceptions`, and fields of TaskTemplate.
        """
        klass = more.pop("klass", None)
        max_retries = more.pop("max_retries", 0)
        retry_exceptions = more.pop("retry_exceptions", False)
        more["prompt_reply"] = kind == KIND_TASK and max_retries == 0
        wire = TaskTemplate(self.new_number(), function_id, name, kind, num_returns, self.job_id, **more)
        template = Template(wire, code, klass, max_retries, retry_exceptions, self.submitter.gone_templates)
        template.exported = self.exports.code_of(function_id) if function_id else None
        return template

    def new_number(self) -> int:
        """A number for one more template."""
        with self.reactor.lock:
            self._template_numbers += 1
            return self._template_numbers

    def submit(
        self,
        template: Template,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        queue: ActorQueue | None = None,
        handle: ObjectEntry | None = None,
    ) -> Any:
        """Submit a task, or a call of the actor behind `queue`. Returns a ref, a list of refs, a generator of refs, or None (num_returns=0)."""
        if self.lost is not None or self.closed:
            raise self.lost or RuntimeError("shoal.shutdown() was called")
        deps = held = None
        blob: Value
        if not args and not kwargs:
            blob = self.empty_args
        else:
            blob, deps, held = self.encode_arguments(args, kwargs)
        context = running_task.get() or self.root
        prefix = context.prefix
        if not prefix:
            prefix = context.prefix = ids.child_prefix(context.task_id, context.attempt)
        task_id = prefix + next(context.children).to_bytes(4, "big")
        if context.repeats:
            known = self.closures.made_before(task_id, template, blob, deps, held)
            if known is not None:
                return known
        with self.reactor.lock:
            if dropped:
                self.objects.drain_dropped()
            if self.lost is not None:  # meanwhile: nobody would end what is submitted now
                self.objects.unuse(held or ())
                raise self.lost
            if queue is not None:
                if queue.exact:
                    task_id = self._name_exact(context)
                if held is not None:
                    blob = actor_calls.with_refs(blob, len(deps or ()), held)
            if handle is not None:
                handle.count += 1
                held = [handle] if held is None else [*held, handle]
            task = PendingTask(template, task_id, blob, deps, held)
            if template.multiple:
                result = self._make_results(task)
            else:
                entry = ObjectEntry(task_id + ids.RESULT_1, task)
                task.result = entry
                result = ObjectRef(entry)
            self.submitter.pending += 1
            if deps is not None and self._await_dependencies(task, deps):
                if queue is not None:
                    self.actor_calls.enqueue(queue, task)
            elif queue is not None:
                self.actor_calls.enqueue(queue, task)
            elif deps is None or not self.submitter.fail_on_dependency(task):
                if deps is not None or type(blob) is Stored:
                    self.locality.choose(task)
                self.submitter.enqueue(task)
            if self.reactor._parked or self.reactor._background_idle:
                self.reactor.attend()
        self._since_poll += 1
        if self._since_poll >= POLL_EVERY:
            self._since_poll = 0
            self.reactor.poll_once()
        return result

    def _name_exact(self, context: TaskContext) -> bytes:
        """The name of a call to an actor with checkpoints, later than all before of this caller. Caller holds the lock, so that they arrive in
        that order."""
        names = self.call_names
        if names is not None and names.active and context.actor_id:
            names.made += 1
            return ids.task_id_of(names.prefix, names.made)
        return ids.task_id_of(context.prefix, next(context.children))

    def _make_results(self, task: PendingTask) -> Any:
        """The results of a task that has not just one."""
        count = task.template.wire.num_returns
        if count == NUM_RETURNS_STREAMING:
            state = task.result = StreamState()
            state.task = task
            return ObjectRefGenerator(self, state)
        if count == NUM_RETURNS_DYNAMIC:
            entry = task.result = ObjectEntry(task.task_id + ids.RESULT_1, task)
            return ObjectRef(entry)
        entries = task.result = [ObjectEntry(ids.result_id(task.task_id, index + 1), task) for index in range(count)]
        return [ObjectRef(entry) for entry in entries] if count else None

    def encode_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Value, list[tuple[int | str, ObjectEntry]] | None, list[ObjectEntry] | None]:
        """Serialize arguments; top-level refs become dependencies, nested ones are held until the task ends."""
        deps: list[tuple[int | str, ObjectEntry]] | None = None
        for index, value in enumerate(args):
            if type(value) is ObjectRef:
                if deps is None:
                    deps = []
                    args = tuple(args)
                deps.append((index, value._entry))
        if kwargs:
            named = {}
            for key, value in kwargs.items():
                if type(value) is ObjectRef:
                    deps = deps or []
                    deps.append((key, value._entry))
                    value = None
                named[key] = value
            plain: Any = [[None if type(value) is ObjectRef else value for value in args], named]
        elif deps is not None:
            plain = tuple(None if type(value) is ObjectRef else value for value in args)
        else:
            plain = args
        blob, nested = serialization.dumps(plain)
        held: list[ObjectEntry] | None = None
        if nested or deps is not None:
            held = self.objects.escape(nested) if nested else []
            if deps is not None:
                with self.reactor.lock:
                    for _, entry in deps:
                        entry.count += 1
                        held.append(entry)
        value_out: Value
        if isinstance(blob, bytes):
            value_out = blob
            size = len(blob)
        else:
            size = blob.total_bytes
            value_out = b"" if size > INLINE_ARGUMENT_BYTES_MAX else blob.to_bytes()
        if size > INLINE_ARGUMENT_BYTES_MAX:
            entry = ObjectEntry(os.urandom(ids.OBJECT_ID_BYTES))
            try:
                entry.value = value_out = self.store_blob(entry.oid, blob, self.worker_id)
            except BaseException:
                with self.reactor.lock:
                    self.objects.unuse(held or ())
                raise
            entry.shared = SharedState(owned=True)
            entry.shared.shown = True
            held = [entry] if held is None else [*held, entry]
        return value_out, deps, held

    def _await_dependencies(self, task: PendingTask, deps: list[tuple[int | str, ObjectEntry]]) -> bool:
        """Register for dependencies that are not known yet; whether there are any. Caller holds the lock."""
        unknown = [entry for _, entry in deps if entry.value is None]
        if not unknown:
            return False
        task.missing = len(unknown)
        waiting = self.submitter.waiting
        waiting[task.task_id] = task

        def arrived(entry: ObjectEntry) -> None:
            task.missing -= 1
            if task.missing == 0:
                waiting.pop(task.task_id, None)
                self._dependencies_arrived(task)

        for entry in unknown:
            self.when_known(entry, arrived)
        return True

    def when_known(self, entry: ObjectEntry, callback: Callable[[ObjectEntry], None]) -> None:
        """Call `callback(entry)` under the lock when the entry has a value."""
        with self.reactor.lock:
            if entry.value is not None:
                callback(entry)
                return
            if entry.waiters is None:
                entry.waiters = []
            entry.waiters.append(callback)
            self.objects.resolve([entry])

    def _dependencies_arrived(self, task: PendingTask) -> None:
        if task.queue is not None:
            self.actor_calls.dependency_arrived(task)
        elif not task.cancelled and not self.submitter.fail_on_dependency(task):
            self.locality.choose(task)
            self.submitter.enqueue(task)

    # ------------------------------------------------------------ results

    def finish_task(self, task: PendingTask, value: Value | Many) -> None:
        """The task has ended: give its results their values. Caller holds the lock."""
        result = task.result
        if type(value) is Failed:
            self._note_failure(task, value)
        if type(result) is ObjectEntry:
            assert not isinstance(value, Many), "one result was asked for"
            self.store_value(result, value)
        elif type(result) is StreamState:
            assert not isinstance(value, Many), "a stream ends with one value"
            end_stream(self, result, task, value)
        elif type(result) is Rerun:
            self.remaker.finished(result, value)
        elif isinstance(value, Many):
            for entry, part in zip(result, value.values, strict=True):
                self.store_value(entry, part)
        else:
            for entry in result:
                self.store_value(entry, value)
        if task.held is not None:
            held, task.held = task.held, None
            self.objects.unuse(held)

    def _note_failure(self, task: PendingTask, value: Failed) -> None:
        """An error that nobody reads is to be told. Caller holds the lock."""
        if self.lost is not None or task.cancelled or not self._tells_errors:
            return
        result = task.result
        if type(result) is ObjectEntry:
            unread_errors.note(result.oid, task.template.wire.name)
        elif type(result) is list and result:
            unread_errors.note(result[0].oid, task.template.wire.name)
        elif type(result) is list:
            self._on_unread(task.template.wire.name, value)

    def _on_unread(self, name: str, value: Failed) -> None:
        """A failed task's refs are gone, unread. Caller holds the lock."""
        if self.lost is None and not self.closed:
            self.reactor.later.append(lambda: unread_errors.tell(name, value))
            self.reactor.attend()

    def store_value(self, entry: ObjectEntry, value: Value) -> None:
        """An object's value is known. Caller holds the lock."""
        task, entry.task = entry.task, None
        nested: list[bytes] = []
        if type(value) is Containing:
            nested = value.nested
            value = value.blob
        elif type(value) is Stored:
            nested = value.nested
            if task is not None:
                self.spares.consider(self.lineage.keep(task, entry), entry, value)
        if nested:
            self.objects.replace_nested(entry, self.objects.adopt_held(nested))
        entry.value = value
        self.announce(entry)
        if entry.count <= 0:
            self.objects.free(entry)

    def announce(self, entry: ObjectEntry) -> None:
        """Tell those who wait for an entry, and the daemon if it escaped. Caller holds the lock."""
        shared = entry.shared
        if shared is not None and shared.escaped:
            self.objects.publish(entry)
        waiters = entry.waiters
        if waiters is not None:
            entry.waiters = None
            failed = type(entry.value) is Failed
            for waiter in waiters:
                if isinstance(waiter, Waiter):
                    if failed and waiter.fail_fast:
                        waiter.finish()
                    else:
                        waiter.arrived()
                else:
                    waiter(entry)

    def _on_resolved(self, connection: Connection, message: Resolved) -> None:
        entry = self.objects.table.get(message.oid)
        if entry is None:
            return
        shared = entry.shared
        assert shared is not None, "entries in the table are shared"
        shared.resolving = shared.being_remade = False
        shared.place = None
        value = message.value
        nested = value.nested if type(value) is Containing or type(value) is Stored else []
        if nested and shared.nested is None:
            self.objects.contain_borrowed(entry, nested)
        if type(value) is Containing:
            value = value.blob
        if entry.value is None:
            entry.value = value
            escaped, shared.escaped = shared.escaped, False
            self.announce(entry)
            shared.escaped = escaped

    # ------------------------------------------------------------ waiting

    def wait_for(self, waiter: Waiter, timeout_s: float | None = None) -> bool:
        """Wait in this thread; a worker's task that waits long lends its CPU."""
        self.submitter.flush()
        if timeout_s == 0:
            self.reactor.poll_once()
            return waiter.done
        deadline = None if timeout_s is None else perf_counter() + timeout_s
        executor = self.executor
        if executor is None or executor.brings_argument_back():
            done = self.reactor.wait(waiter, deadline)
        elif not executor.runs_here():
            executor.count_outside_wait(1)
            try:
                done = self.reactor.wait(waiter, deadline)
            finally:
                executor.count_outside_wait(-1)
        else:
            soon = perf_counter() + BLOCKED_AFTER_S
            done = self.reactor.wait(waiter, soon if deadline is None else min(soon, deadline))
            if not done and (deadline is None or deadline > soon):
                executor.block()
                try:
                    done = self.reactor.wait(waiter, deadline)
                finally:
                    executor.unblock()
        if self.lost is not None and not done and self.closed:
            raise self.lost
        return done

    def wait_entries(self, entries: Iterable[ObjectEntry], timeout_s: float | None) -> bool:
        """Wait until all entries have values, or one has failed."""
        waiter = Waiter(0, fail_fast=True)
        unknown, failed = [], False
        with self.reactor.lock:
            if dropped:
                self.objects.drain_dropped()
            for entry in entries:
                if entry.value is None:
                    if entry.waiters is None:
                        entry.waiters = [waiter]
                    else:
                        entry.waiters.append(waiter)
                    unknown.append(entry)
                elif type(entry.value) is Failed:  # before anybody waited
                    failed = True
            if failed or not unknown:
                waiting.forget(waiter, unknown)
                return True
            if self.lost is not None:
                raise self.lost
            waiter.pending = len(unknown)
            waiter.done = False
            self.objects.resolve(unknown)
        if self.wait_for(waiter, timeout_s):
            return True
        with self.reactor.lock:
            waiting.forget(waiter, unknown)
        return all(entry.value is not None for entry in unknown)

    def get(self, refs: ObjectRef | list[ObjectRef], timeout_s: float | None = None) -> Any:
        """The value of a ref, or of each ref in a list; raises what the tasks raised."""
        until = None if timeout_s is None else perf_counter() + timeout_s
        if self.call_names is not None and self.call_names.lost_before:
            self.call_names.lose_again(refs if type(refs) is list else [refs])
        if type(refs) is ObjectRef:
            entry = refs._entry
            if entry.value is None and not self.wait_entries((entry,), timeout_s):
                raise waiting.timed_out(self, [entry], timeout_s)
            value = entry.value
            return serialization.loads(value) if type(value) is bytes else self.load(entry, until)
        entries = [ref._entry for ref in refs]  # type: ignore[union-attr]
        while True:
            for entry in entries:
                if entry.value is None:
                    left_s = None if until is None else max(until - perf_counter(), 0.0)
                    if not self.wait_entries(entries, left_s):
                        raise waiting.timed_out(self, entries, timeout_s)
                    break
            for entry in entries:
                if type(entry.value) is Failed:
                    self.load(entry)
            if "cluster_token" not in self.config:
                break
            stored = [entry for entry in entries if type(entry.value) is Stored]
            self.pulling.bring(stored, until)
            if not self.pulling.report_losses(stored):  # what is lost is made anew all at once
                break
        loads = serialization.loads
        return [loads(entry.value) if type(entry.value) is bytes else self.load(entry, until) for entry in entries]

    def wait(
        self, refs: list[Any], num_returns: int, timeout_s: float | None, fetch_local: bool = True
    ) -> tuple[list[Any], list[Any]]:
        """Split `refs` into at most `num_returns` ready ones and the rest, both in order."""
        if "cluster_token" not in self.config:
            return waiting.wait(self, refs, num_returns, timeout_s)
        return waiting.wait_here(self, refs, num_returns, timeout_s, fetch_local)

    def poll(self) -> None:
        """Look at the sockets without waiting."""
        self.submitter.flush()
        self.reactor.poll_once()

    # ------------------------------------------------------------ async

    on_ready = awaiting.on_ready
    future = awaiting.future
    await_ref = awaiting.await_ref

    # ------------------------------------------------------------ objects

    load = stored.load
    load_stored = stored.load_stored
    store_blob = stored.store_blob
    open_segment = stored.open_segment

    put = putting.put

    # ------------------------------------------------------------ calls to the daemon and the GCS

    def request(self, make: Callable[[int], Any], timeout_s: float | None) -> Any:
        """Send the daemon a numbered message and wait for its answer."""
        waiter = Waiter()
        answer: list[Any] = []
        number = self.ask(make, waiter, answer)
        try:
            return self.await_answer(waiter, answer, timeout_s)
        finally:
            self.forget_question(number)

    def ask(self, make: Callable[[int], Any], waiter: Waiter, answer: list[Any]) -> int:
        """Send the daemon a numbered message. What it says is put into `answer`, and `waiter` told, until `forget_question`."""
        with self.reactor.lock:
            daemon = self.reactor.causal
            if daemon is None or self.lost is not None:  # lost, and still connected: nobody would end the wait
                raise self.lost or errors.NodeDaemonDiedError("the node daemon is gone")
            self._requests += 1
            number = self._requests
            self._answers[number] = (waiter, answer)
            daemon.send_now(make(number))
        return number

    def await_answer(self, waiter: Waiter, answer: list[Any], timeout_s: float | None) -> Any:
        """Wait for the answer to a question."""
        wait_for_answer(self, waiter, timeout_s)
        if not answer:
            raise self.lost or errors.NodeDaemonDiedError("the node daemon is gone")
        return answer[0]

    def forget_question(self, number: int) -> None:
        """Nobody waits for this answer, or it is there."""
        self._answers.pop(number, None)

    def _on_answer(self, connection: Connection, message: Answer | SegmentBudget) -> None:
        slot = self._answers.get(message.request)
        if slot is not None:
            slot[1].append(message)
            slot[0].arrived()
        elif type(message) is SegmentBudget and message.granted > 0:  # who wanted it has given up
            connection.send(BudgetReturned(message.segment, message.granted))

    def call(self, method: str, body: dict[str, Any] | None = None, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """A rare request: "node.x" to the daemon, "gcs.x" to the GCS through it.

        Raises:
            ShoalError: what the other side said, or that it did not answer in time.
        """
        try:
            return self.unpack(self.request(lambda number: Call(number, method, body or {}), timeout_s))
        except errors.RpcError as error:
            if method.startswith("gcs.") and timeout_s >= CALL_TIMEOUT_S and (trouble := waiting.gcs_trouble(self)):
                raise errors.RpcError(f"{method} was not answered within {timeout_s:g} s: {trouble}") from error
            raise

    def unpack(self, answer: Answer) -> Any:
        """The body of an answer, or its error raised."""
        if answer.error:
            kind, text = answer.error[0], answer.error[1]
            raise _ERROR_OF.get(kind, errors.ShoalError)(text)
        return answer.body

    # ------------------------------------------------------------ cancelling

    cancel = cancelling.cancel
    _on_cancel_object = cancelling.on_cancel_object
    cancel_task = cancelling.cancel_task
    cancel_children = cancelling.cancel_children

    # ------------------------------------------------------------ time and end

    def _on_tick(self, now: float) -> None:
        if abandoned:
            let_go_of_abandoned(self)
        if dropped:
            self.objects.drain_dropped()
        if forgotten:
            self.exports.forget()
        self.submitter.tick(now)
        if self.spares.waiting or self.spares.copied is not None:
            self.spares.next()
        if self.store is not None:
            self.store.drain()

    def on_daemon_lost(self, connection: Connection) -> None:
        """The daemon's connection ended: nothing pending will come."""
        if self._goodbye is not None:
            self._goodbye.finish()
            return
        self.lose(
            errors.NodeDaemonDiedError(
                f"the node daemon died{self.explain_loss()}. This session is over: its tasks, actors and objects are lost. "
                "Call shoal.shutdown() and shoal.init() to begin anew."
            )
        )

    def on_node_ends(self, reason: str) -> None:
        """The daemon takes its leave; everything that workers had printed has come before."""
        if self._goodbye is not None:
            self._goodbye.finish()
        else:
            self.lose(
                errors.NodeDaemonDiedError(
                    f"{reason}. This session is over: its tasks, actors and objects are lost. "
                    "Call shoal.shutdown() and shoal.init() to begin anew."
                )
            )

    def lose(self, error: BaseException) -> None:
        """The session is over: everything pending fails with `error`. Caller holds the lock."""
        if self.lost is not None:
            return
        self.lost = error
        self.submitter.fail_everything(error)
        self.actor_calls.fail_everything(error)
        value = Failed(serialization.dumps_error(error))
        self.groups.fail_everything(value)
        for entry in list(self.objects.table.values()):
            if entry.value is None:
                entry.value = value
                shared = entry.shared
                if shared is not None:
                    shared.escaped = False
                self.announce(entry)
        for waiter, _ in list(self._answers.values()):
            waiter.finish()

    def say_goodbye(self) -> None:
        """Tell the daemon that this driver leaves, and read what workers have printed until it answers, for GOODBYE_S at most."""
        with self.reactor.lock:
            daemon = self.reactor.causal
            if daemon is None or self.closed:
                return
            waiter = self._goodbye = Waiter()
            daemon.send_now(Shutdown("the driver called shutdown"))
        self.reactor.wait(waiter, perf_counter() + GOODBYE_S)

    def close(self) -> None:
        """End this process's part in the session. Idempotent."""
        if self.closed or self.pid != os.getpid():
            return
        self.closed = True
        with self.reactor.lock:
            self.lose(RuntimeError("shoal.shutdown() was called"))
        self.reactor.stop()
        self.reactor.run_later()  # futures and coroutines that waited: no thread reads any more
        with self.reactor.lock:
            self.objects.close()
        if self._tells_errors:
            unread_errors.tell_rest()
        if self.store is not None:
            self.store.close()
            self.store = None


#: errors that the other side names by a word
_ERROR_OF: dict[str, type[Exception]] = {
    "ActorAlreadyExists": errors.ActorAlreadyExistsError,
    "ActorNotFound": ValueError,
    "GroupAlreadyExists": ValueError,
    "GroupNotFound": ValueError,
}

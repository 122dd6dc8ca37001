"""Local mode: the whole system inside one process, one call after the other, for debugging.

Purpose: `init(local_mode=True)`: a breakpoint in a remote function is a breakpoint in the program, and errors have the types that they have on
a real node.

Design: `LocalRuntime` stands in the place of the `Runtime` and uses its table of objects. `submit` runs the call at once, in the calling thread,
and returns refs that are ready. Arguments and results are serialized as ever, so what cannot travel fails here too and nobody changes another's
value. Streams run as far as they are read. Actors are instances in a table (`LocalActors`, in the place of `ActorCalls`); a coroutine
method runs on a loop of its actor's own until it is done.

What it does not do: anything in parallel (a call that waits for a later call waits for ever), resources beyond "could this ever run", retries
of processes that die (this one would), runtime environments, the store.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from inspect import isasyncgen, isawaitable
from typing import Any

import msgspec

from shoal import serialization
from shoal.protocol import errors, ids
from shoal.protocol.gcs_messages import GroupSpec
from shoal.protocol.group_messages import GroupState
from shoal.protocol.messages import NUM_RETURNS_DYNAMIC, NUM_RETURNS_STREAMING, ActorSpec, Failed
from shoal.protocol.resources import Resources, fits, format_resources, to_floats
from shoal.runtime.actor_calls import ActorQueue
from shoal.runtime.core import Runtime
from shoal.runtime.delegation import Delegation
from shoal.runtime.objects import ObjectEntry, ObjectRef, SharedState, dropped
from shoal.runtime.streams import DynamicObjectRefGenerator, ObjectRefGenerator, StreamState
from shoal.runtime.tasks import PendingTask, TaskContext, Template, running_task

_LOCALHOST = "127.0.0.1"


class LocalRuntime(Runtime):
    """A session without processes.

    Args:
        total: what a task may ask for, in units.
        namespace: where names of actors are looked up.
    """

    def __init__(self, total: Resources, namespace: str) -> None:
        super().__init__("driver", os.urandom(16))
        self.total = total
        self.namespace = namespace or os.urandom(8).hex()
        self.job_id = self.root.job_id = b"\0\0\0\1"
        self.node_id = os.urandom(16)
        self.actors = LocalActors(self)
        self._groups: dict[bytes, dict[str, Any]] = {}  #: placement groups, as the GCS would list them
        self.actor_calls = self.actors  # type: ignore[assignment]  # what of it the API uses
        #: functions and classes as the user wrote them, by the id under which they were exported
        self.code: dict[bytes, Any] = {}
        self._ids: dict[int, bytes] = {}

    # ------------------------------------------------------------ calls

    def export(self, code: Any) -> tuple[bytes, bytes]:
        """As in any session; the object itself is kept, and that is what runs."""
        _, blob = super().export(code)
        function_id = self._ids.get(id(code))
        if function_id is None or self.code[function_id] is not code:
            function_id = self._ids[id(code)] = (len(self.code) + 1).to_bytes(20, "big")
            self.code[function_id] = code
        return function_id, blob

    def submit(
        self,
        template: Template,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        queue: ActorQueue | None = None,
        handle: ObjectEntry | None = None,
    ) -> Any:
        """Run a task, or a call of an actor, and return the refs of its results."""
        if self.closed:
            raise self.lost or RuntimeError("shoal.shutdown() was called")
        self._tidy()
        parent = self.context()
        if not parent.prefix:
            parent.prefix = ids.child_prefix(parent.task_id, parent.attempt)
        task = PendingTask(template, ids.task_id_of(parent.prefix, next(parent.children)), b"", None, None)
        arguments = self._copied(args, kwargs)  # what cannot travel fails at the call
        count = template.wire.num_returns
        if count == NUM_RETURNS_STREAMING:
            return LocalStream(self, task, queue, arguments)
        entries = [
            ObjectEntry(ids.result_id(task.task_id, index + 1))
            for index in range(1 if count in (1, NUM_RETURNS_DYNAMIC) else count)
        ]
        refs = [ObjectRef(entry) for entry in entries]
        try:
            values = self._attempts(task, queue, arguments)
            for entry, value in zip(entries, values, strict=True):
                self.fill(entry, value)
        except _CallFailedError as failure:
            for entry in entries:
                self.announce_value(entry, failure.value)
        if count in (1, NUM_RETURNS_DYNAMIC):
            return refs[0]
        return refs or None

    def _attempts(self, task: PendingTask, queue: ActorQueue | None, arguments: Any) -> list[Any]:
        """The values of a call's results, after as many attempts as its options allow."""
        template = task.template
        while True:
            try:
                return self._attempt(task, queue, arguments)
            except _CallFailedError as failure:
                rule = template.retry_exceptions
                matches = rule is True or (rule and isinstance(failure.error, rule))
                if not failure.by_user or not matches or task.retries_left == 0:
                    raise
                task.retries_left -= 1 if task.retries_left > 0 else 0
                task.attempt += 1

    def _attempt(self, task: PendingTask, queue: ActorQueue | None, arguments: Any) -> list[Any]:
        token = running_task.set(self.context_of(task, queue))
        try:
            result = self.run(task, queue, arguments)
            return self._split(task, result)
        except _CallFailedError:
            raise
        except (Exception, SystemExit) as error:
            raise self.failure(task, queue, error) from None
        finally:
            running_task.reset(token)

    def context_of(self, task: PendingTask, queue: ActorQueue | None) -> TaskContext:
        """Who runs, for the children it names and for the runtime context."""
        wire = task.template.wire
        context = TaskContext(task.task_id, task.attempt, b"", wire.depth, self.job_id, wire.name)
        context.actor_id = queue.actor_id if queue is not None else b""
        klass = task.template.klass
        if klass is not None and klass.demand.get("GPU"):
            context.assigned = {"GPU": list(range(-(-klass.demand["GPU"] // 10_000)))}
        return context

    def run(self, task: PendingTask, queue: ActorQueue | None, arguments: Any) -> Any:
        """Run the user's code once; returns what it returned."""
        wire = task.template.wire
        positional, named = self._loaded(wire.name, arguments)
        if queue is not None:
            return self.actors.invoke(queue, wire.method, positional, named)
        klass = task.template.klass
        if klass is not None and not fits(klass.demand, self.total):
            text = f"{wire.name} asks for {format_resources(klass.demand)}, but this session (local mode) has {format_resources(self.total)} in total"
            raise _CallFailedError(Failed(serialization.dumps_error(errors.TaskUnschedulableError(text))))
        value = self.code[wire.function_id](*positional, **named)
        while type(value) is Delegation:
            value = value.run(self.total, self.get)
        return value

    def _split(self, task: PendingTask, result: Any) -> list[Any]:
        """What a function returned, as the values of its results."""
        count = task.template.wire.num_returns
        if isasyncgen(result):
            raise TypeError("an async generator streams: call it with num_returns='streaming'")
        if count == 1:
            return [result]
        if count == NUM_RETURNS_DYNAMIC:
            return [DynamicObjectRefGenerator([self.put(item) for item in result])]
        values = list(result) if count else []
        if len(values) != count:
            raise ValueError(
                f"{task.template.wire.name} returned {len(values)} values; num_returns={count} promises {count}"
            )
        return values

    def failure(self, task: PendingTask, queue: ActorQueue | None, error: BaseException) -> _CallFailedError:
        """What became of a call that raised."""
        name = task.template.wire.name
        if isinstance(error, SystemExit):
            ended: Exception
            if queue is not None:
                ended = self.actors.end(queue, "exit_actor() was called")
            else:
                code = error.code if isinstance(error.code, int) else int(error.code is not None)
                ended = errors.WorkerCrashedError(
                    f"task {name}() called sys.exit({error.code!r}), which ends its process (local mode: only the task)",
                    exit_code=code,
                    function_name=name,
                    pid=self.pid,
                )
            return _CallFailedError(Failed(serialization.dumps_error(ended)))
        actor = self.actors.repr_of(queue) if queue is not None else None
        wrapped = errors.make_task_error(error, name, self.pid, _LOCALHOST, actor)
        return _CallFailedError(Failed(serialization.dumps_error(wrapped), True), error, True)

    # ------------------------------------------------------------ values

    def _copied(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Arguments as bytes beside the refs at top level, and the refs inside, which live as long as the call needs them."""
        refs: dict[int | str, ObjectRef] = {
            index: value for index, value in enumerate(args) if type(value) is ObjectRef
        }
        refs.update({name: value for name, value in kwargs.items() if type(value) is ObjectRef})
        plain = (
            [None if type(value) is ObjectRef else value for value in args],
            {name: None if type(value) is ObjectRef else value for name, value in kwargs.items()},
        )
        blob, nested = serialization.dumps(plain)
        if nested:
            with self.reactor.lock:
                self.objects.unuse(self.objects.escape(nested))
        return blob if isinstance(blob, bytes) else blob.to_bytes(), refs, nested

    def _loaded(self, name: str, arguments: Any) -> tuple[list[Any], dict[str, Any]]:
        """Fresh arguments for one attempt."""
        blob, refs, _ = arguments
        positional, named = serialization.loads(blob)
        for key, ref in refs.items():
            value = ref._entry.value
            if type(value) is Failed:
                error = errors.dependency_error(serialization.loads_error(value.error), name)
                raise _CallFailedError(Failed(serialization.dumps_error(error)))
            (positional if type(key) is int else named)[key] = self.load(ref._entry)
        return positional, named

    def fill(self, entry: ObjectEntry, value: Any) -> None:
        """Give an entry a value, serialized; refs inside are held by it."""
        blob, nested = serialization.dumps(value)
        if nested:
            entry.shared = entry.shared or SharedState(owned=True)
            entry.shared.nested = self.objects.escape(nested)
        self.announce_value(entry, blob if isinstance(blob, bytes) else blob.to_bytes())

    def announce_value(self, entry: ObjectEntry, value: Any) -> None:
        """An entry has its value; tell those who wait for it in other threads."""
        with self.reactor.lock:
            entry.value = value
            self.announce(entry)

    def put(self, value: Any, copies: int = 1) -> ObjectRef:
        """Keep a serialized value; there are no nodes to copy it to."""
        self._tidy()
        context = self.context()
        prefix = context.prefix or ids.child_prefix(context.task_id, context.attempt)
        entry = ObjectEntry(ids.put_id(ids.task_id_of(prefix, 0), next(context.puts)))
        ref = ObjectRef(entry)
        self.fill(entry, value)
        return ref

    def _tidy(self) -> None:
        """Count down what was dropped; nobody is to be told."""
        with self.reactor.lock:
            self.objects.drain_dropped()
            for notes in (self.objects._holds, self.objects._releases, self.objects._frees):
                notes.clear()
            self.submitter.gone_templates.clear()
        self.actors.drop_unused()

    def wait(
        self, refs: list[Any], num_returns: int, timeout_s: float | None, fetch_local: bool = True
    ) -> tuple[list[Any], list[Any]]:
        """Everything is ready; of streams the next item is made first."""
        for ref in refs:
            if isinstance(ref, LocalStream):
                ref.pull()
        return super().wait(refs, num_returns, timeout_s, fetch_local)

    def cancel(self, ref: ObjectRef | ObjectRefGenerator, force: bool, recursive: bool) -> None:
        """A task has always ended; a stream ends here."""
        if isinstance(ref, LocalStream):
            ref.cancel()

    def call(self, method: str, body: dict[str, Any] | None = None, timeout_s: float = 0) -> Any:
        """What the API asks of a node and of the GCS."""
        if method == "node.resources":
            return {"total": to_floats(self.total), "available": to_floats(self.total)}
        if method == "gcs.nodes":
            return {"nodes": [{"node_id": self.node_id, "hostname": os.uname().nodename, "resources": self.total}]}
        if method == "gcs.task_events":
            return {"events": []}
        if method.startswith("gcs.group"):
            return self._call_groups(method, body or {})
        if method == "gcs.named_actors":
            wanted = (body or {}).get("namespace")
            return {
                "actors": [
                    {"name": name, "namespace": space} for space, name in self.actors.names if wanted in (None, space)
                ]
            }
        raise errors.ShoalError(f"{method} is not there in local mode")

    def _call_groups(self, method: str, body: dict[str, Any]) -> Any:
        """Placement groups are placed at once, wherever they fit: nothing runs beside anything."""
        if method == "gcs.group_create":
            spec: GroupSpec = body["spec"]
            nodes = [self.node_id] * len(spec.bundles)
            self._groups[spec.group_id] = row = {
                **msgspec.structs.asdict(spec),
                "state": "placed",
                "nodes": nodes,
                "reason": "",
            }
            self.groups.on_state(None, GroupState(spec.group_id, "placed", nodes, spec.bundles))
            return row
        if method == "gcs.group_remove":
            if body["group_id"] in self._groups:
                self._groups[body["group_id"]]["state"] = "removed"
            return {}
        if method == "gcs.group_by_name":
            for row in self._groups.values():
                if row["name"] == body["name"] and row["state"] != "removed":
                    return row
            raise ValueError(f"there is no placement group named {body['name']!r}")
        wanted = body.get("group_id")
        return {"groups": [row for group_id, row in self._groups.items() if wanted in (None, group_id)]}

    def close(self) -> None:
        """End the session: actors are dropped."""
        self.actors.close()
        super().close()


class _CallFailedError(Exception):
    """A call has an error in the place of its results."""

    def __init__(self, value: Failed, error: BaseException | None = None, by_user: bool = False) -> None:
        super().__init__()
        self.value = value
        self.error = error
        self.by_user = by_user


# ---------------------------------------------------------------- streams


class LocalStream(ObjectRefGenerator):
    """A generator task that runs as far as its consumer reads."""

    def __init__(self, runtime: LocalRuntime, task: PendingTask, queue: ActorQueue | None, arguments: Any) -> None:
        super().__init__(runtime, StreamState())
        self._local = runtime
        self._task = task
        self._queue = queue
        self._arguments = arguments
        self._context = runtime.context_of(task, queue)
        self._items: Any = None

    def __del__(self) -> None:
        """Nothing is left to be done: items go with the state, and the task runs no further than this was read."""

    def pull(self) -> None:
        """Have an item ready, unless the stream has ended."""
        state = self._state
        if state.items or state.ended:
            return
        token = running_task.set(self._context)
        entry = ObjectEntry(ids.result_id(self._task.task_id, state.produced + 1))
        ref = ObjectRef(entry)
        try:
            if self._items is None:
                self._items = _as_iterator(self._local.run(self._task, self._queue, self._arguments))
            self._local.fill(entry, next(self._items))
        except StopIteration:
            state.ended = True
            return
        except _CallFailedError as failure:
            self._fail(entry, failure)
        except (Exception, SystemExit) as error:
            self._fail(entry, self._local.failure(self._task, self._queue, error))
        finally:
            running_task.reset(token)
        state.produced += 1
        state.items.append(ref)

    def _fail(self, entry: ObjectEntry, failure: _CallFailedError) -> None:
        self._local.announce_value(entry, failure.value)
        self._state.ended = True

    def cancel(self) -> None:
        """End the stream; its last ref says that it was cancelled."""
        state = self._state
        if state.ended:
            return
        if self._items is not None:
            self._items.close()
        error = errors.TaskCancelledError(f"{self._task.template.wire.name}() was cancelled")
        entry = ObjectEntry(ids.result_id(self._task.task_id, state.produced + 1))
        state.items.append(ObjectRef(entry))
        self._fail(entry, _CallFailedError(Failed(serialization.dumps_error(error))))

    def _take(self) -> ObjectRef | None:
        self.pull()
        return super()._take()

    def next_ready(self) -> bool:
        """Always: nothing runs beside the consumer."""
        return True

    def completed(self) -> ObjectRef:
        """Runs the stream to its end."""
        state = self._state
        kept = []
        while True:
            self.pull()
            if not state.items:
                break
            kept.append(state.items.popleft())
        state.items.extend(kept)
        return super().completed()


def _as_iterator(made: Any) -> Any:
    """A generator, or an async generator driven step by step."""
    if not isasyncgen(made):
        return iter(made)

    def steps() -> Any:
        loop = asyncio.new_event_loop()
        try:
            while True:
                try:
                    yield _run_coroutine(loop, made.__anext__())
                except StopAsyncIteration:
                    return
        finally:
            _run_coroutine(loop, made.aclose())
            loop.close()

    return steps()


def _run_coroutine(loop: asyncio.AbstractEventLoop, awaitable: Any) -> Any:
    """The result of an awaitable, run on `loop`: in a thread of its own where this one runs a loop already."""

    async def finish() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return loop.run_until_complete(finish())
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(loop.run_until_complete(finish()))
        except BaseException as error:
            outcome.append(error)

    import contextvars

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,))
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


# ---------------------------------------------------------------- actors


class LocalActor(ActorQueue):
    """One actor: its instance, or why there is none."""

    __slots__ = ("construct", "entry", "instance", "loop", "name", "restarts_left", "spec")

    def __init__(self, spec: ActorSpec, construct: Callable[[], Any], entry: ObjectEntry, in_order: bool) -> None:
        super().__init__(spec.actor_id, spec.class_name, in_order)
        self.spec = spec
        self.construct = construct
        self.entry = entry
        self.instance: Any = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.name = (spec.namespace, spec.name)
        self.restarts_left = spec.max_restarts

    def pending_calls(self) -> int:
        """No call is ever pending."""
        return 0


class LocalActors:
    """All actors of a session in local mode; the API sees it as its `ActorCalls`."""

    def __init__(self, runtime: LocalRuntime) -> None:
        self._runtime = runtime
        self.queues: dict[bytes, LocalActor] = {}
        self.names: dict[tuple[str, str], LocalActor] = {}

    def publish_code(self, class_id: bytes, code: bytes) -> None:
        """Nobody needs it."""

    def queue_of(
        self, actor_id: bytes, class_name: str, in_order: bool, home: bytes = b"", exact: bool = False
    ) -> ActorQueue:
        """The actor; one that is gone is a queue that is dead."""
        actor = self.queues.get(actor_id)
        if actor is not None:
            return actor
        gone = ActorQueue(actor_id, class_name, in_order)
        gone.death = errors.ActorDiedError("all handles were gone", actor_id=actor_id.hex(), class_name=class_name)
        return gone

    def create(
        self, spec: ActorSpec, args: tuple[Any, ...], kwargs: dict[str, Any], get_if_exists: bool, in_order: bool
    ) -> tuple[ObjectRef | None, ActorSpec | None]:
        """Construct an actor; a failing constructor is its death, told at the first call."""
        runtime = self._runtime
        runtime._tidy()
        name = (spec.namespace, spec.name)
        if spec.name and name in self.names:
            if get_if_exists:
                return None, self.names[name].spec
            raise errors.ActorAlreadyExistsError(
                f"there is an actor named {spec.name!r} in namespace {spec.namespace!r} already"
            )
        parent = runtime.context()
        if not parent.prefix:
            parent.prefix = ids.child_prefix(parent.task_id, parent.attempt)
        spec.actor_id = ids.task_id_of(parent.prefix, next(parent.children))
        arguments = runtime._copied(args, kwargs)
        cls = runtime.code[spec.class_id]

        def construct() -> Any:
            positional, named = runtime._loaded(f"{spec.class_name}.__init__", arguments)
            return cls(*positional, **named)

        entry = ObjectEntry(ids.actor_handle_id(spec.actor_id))
        entry.value = runtime.none_blob
        ref = ObjectRef(entry)
        with runtime.reactor.lock:
            runtime.objects.unuse(runtime.objects.escape([ref]))
        actor = self.queues[spec.actor_id] = LocalActor(spec, construct, entry, in_order)
        if spec.name:
            self.names[name] = actor
        self._construct(actor)
        return ref, None

    def _construct(self, actor: LocalActor) -> None:
        spec = actor.spec
        cause: BaseException | None = None
        context = TaskContext(spec.actor_id, 0, b"", 0, self._runtime.job_id, f"{spec.class_name}.__init__")
        context.actor_id = spec.actor_id
        token = running_task.set(context)
        try:
            if not fits(spec.placement, self._runtime.total):
                has = format_resources(self._runtime.total)
                text = f"{spec.class_name} asks for {format_resources(spec.placement)}, but this session (local mode) has {has} in total"
                actor.death = errors.ActorUnschedulableError(text)
                actor.state = "dead"
                return
            actor.instance = actor.construct()
            actor.state = "alive"
            if spec.is_async:
                actor.loop = asyncio.new_event_loop()
        except _CallFailedError as failure:
            cause = serialization.loads_error(failure.value.error)
        except (Exception, SystemExit) as error:
            cause = errors.make_task_error(error, f"{spec.class_name}.__init__", self._runtime.pid, _LOCALHOST)
        finally:
            running_task.reset(token)
        if cause is not None:
            actor.state = "dead"
            self.names.pop(actor.name, None)
            actor.death = errors.ActorDiedError(
                "its constructor failed",
                actor_id=spec.actor_id.hex(),
                class_name=spec.class_name,
                actor_init_failed=True,
                cause=cause,
            )

    def invoke(self, queue: ActorQueue, method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Run a method."""
        if queue.death is not None:
            raise _CallFailedError(Failed(serialization.dumps_error(queue.death)))
        assert isinstance(queue, LocalActor), "only actors that are gone are plain queues"
        if method in ("__ray_ready__", "__shoal_ready__"):
            return True
        if method in ("__ray_terminate__", "__shoal_terminate__"):
            self.end(queue, "it was asked to terminate")
            return None
        if method in ("__ray_call__", "__shoal_call__"):
            return args[0](queue.instance, *args[1:], **kwargs)
        result = getattr(queue.instance, method)(*args, **kwargs)
        if queue.loop is not None and isawaitable(result):
            return _run_coroutine(queue.loop, result)
        return result

    def repr_of(self, queue: ActorQueue) -> str | None:
        """How an actor's error names it."""
        return repr(queue.instance) if isinstance(queue, LocalActor) and queue.instance is not None else None

    def named(self, name: str, namespace: str) -> ActorSpec:
        """The spec of a named actor.

        Raises:
            ValueError: there is none.
        """
        actor = self.names.get((namespace, name))
        if actor is None:
            raise ValueError(f"there is no actor named {name!r} in namespace {namespace!r}")
        return actor.spec

    def kill(self, actor_id: bytes, no_restart: bool) -> None:
        """End an actor, or make it anew."""
        actor = self.queues.get(actor_id)
        if actor is None or actor.death is not None:
            return
        if no_restart or actor.restarts_left == 0:
            self.end(actor, "killed by shoal.kill()")
            return
        actor.restarts_left -= 1 if actor.restarts_left > 0 else 0
        self._construct(actor)

    def end(self, queue: ActorQueue, reason: str) -> errors.ActorDiedError:
        """An actor is dead; returns what its calls raise from now on."""
        death = errors.ActorDiedError(reason, actor_id=queue.actor_id.hex(), class_name=queue.class_name)
        queue.death = death
        queue.state = "dead"
        if isinstance(queue, LocalActor):
            queue.instance = None
            if self.names.get(queue.name) is queue:
                del self.names[queue.name]
            if queue.loop is not None and not queue.loop.is_running():
                queue.loop.close()
        return death

    def drop_unused(self) -> None:
        """End the actors whose handles are all gone."""
        if dropped:
            return
        for actor_id, actor in list(self.queues.items()):
            if actor.entry.count <= 0 and not actor.spec.detached:
                del self.queues[actor_id]
                if actor.death is None:
                    self.end(actor, "all handles were gone")

    def fail_everything(self, error: BaseException) -> None:
        """The session ends."""
        self.close()

    def close(self) -> None:
        """Drop all actors."""
        for actor in list(self.queues.values()):
            if actor.death is None:
                self.end(actor, "the session has ended")

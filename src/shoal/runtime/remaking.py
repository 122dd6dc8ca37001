"""Making lost objects anew: their tasks run again, under the same names.

Purpose: whoever holds a ref to a lost object gets its value all the same, or an error that says why not.

Design: the daemon tells the owner of a loss (`Remake`). The owner's record of the task says what it was given; a `Rerun` is one repetition:

    checking    every input is looked at: a place in the store is asked for anew (the daemon brings it back from disk, or tells that it is
                lost, too), a freed input is remade or escapes again. So are the task's other stored results: what is lost together is remade
                together. Each answer is an event; nothing recurses, so chains may be of any length.
    pushed      the task goes to a worker with a template of its own, which names the objects that are wanted. The worker writes nothing else.
    finished    the wanted entries get their values; whoever waits for them is told as for any result.

A re-run uses one of the task's retries, and repeats the attempt that made the object: what the task puts and submits gets the same names.

What it does not do: keep records (`lineage`), or decide who is told of a loss (`node.object_directory`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal import serialization
from shoal.protocol import errors, ids
from shoal.protocol.limits import LINEAGE_BYTES_MAX
from shoal.protocol.messages import (
    NUM_RETURNS_STREAMING,
    BeingRemade,
    Failed,
    FreeObjects,
    Many,
    NotMade,
    Publish,
    Relocated,
    Remake,
    Stored,
    Value,
)
from shoal.runtime import unread_errors
from shoal.runtime.objects import ObjectEntry, ObjectRef, SharedState
from shoal.runtime.tasks import PendingTask, Template

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.lineage import Record
    from shoal.runtime.reactor import Connection

FREED = "it was freed, as nobody referred to it any more"


class Rerun:
    """One repetition of a task; stands in the place of its result. Written by the remaker under the reactor's lock."""

    __slots__ = (
        "checking",
        "deps",
        "later",
        "pushed",
        "puts",
        "puts_later",
        "reason",
        "record",
        "task",
        "used",
        "wanted",
    )

    def __init__(self, record: Record, reason: str) -> None:
        self.record = record
        self.reason = reason  #: of the loss that began it
        #: what it is to make, by id
        self.wanted: dict[bytes, ObjectEntry] = {}
        #: what it is to put, for the daemon
        self.puts: list[bytes] = []
        self.puts_later: list[bytes] = []
        #: inputs and other results whose state is not known yet
        self.checking: dict[bytes, None] = {}
        #: lost since it was pushed
        self.later: dict[bytes, str] = {}
        #: inputs, each counted once
        self.used: list[ObjectEntry] = []
        self.deps: list[tuple[int | str, ObjectEntry]] | None = None
        self.pushed = False
        self.task: PendingTask | None = None


class Remaker:
    """Remakes what this process owns, and what it is asked to."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.reruns = 0  #: begun so far
        #: what is to be done next: a chain may be longer than the stack is deep
        self._steps: deque[Callable[[], None]] = deque()
        self._stepping = False
        runtime.reactor.handlers[Remake] = self.on_remake
        runtime.reactor.handlers[BeingRemade] = self._on_being_remade
        runtime.reactor.handlers[Relocated] = self.on_relocated

    # ------------------------------------------------------------ asked

    def on_remake(self, connection: Connection, message: Remake) -> None:
        """The daemon says that an object of ours is lost."""
        oid = message.oid
        objects = self.runtime.objects
        _, entry = self._known(oid)
        is_lost = entry is not None and (entry.value is None or type(entry.value) is Stored)
        if entry is None or (is_lost and _is_borrowed(entry)):
            # Freed here meanwhile, or never known by its name, or ours only in that we ran the task of a dead owner, and have a ref to it now: others
            # may know how it is made; if nobody does, who asked for it is told.
            connection.send(NotMade([oid], self._failed(oid, None, message.reason)))
            return
        shared = entry.shared
        if shared is None:
            shared = entry.shared = SharedState(owned=True)
        if is_lost:
            objects.displace(entry)
        if message.held:
            objects.escape_held(entry)
        if is_lost:
            self.request(entry, message.reason)
        else:
            objects.publish(entry)
            if entry.count <= 0:  # only its record knew it
                objects.free(entry)

    def _known(self, oid: bytes) -> tuple[Record | None, ObjectEntry | None]:
        """What this process knows of an object that it owns or has owned."""
        record = self.runtime.lineage.records.get(oid[: ids.TASK_ID_BYTES])
        entry = self.runtime.objects.table.get(oid)
        if entry is None and record is not None:
            entry = record.entries.get(oid)
        return record, entry

    def on_relocated(self, connection: Connection, message: Relocated) -> None:
        """An object of ours lies on this node as well, for the node where it lay leaves."""
        place = message.stored
        record, entry = self._known(place.oid)
        value = entry.value if entry is not None else None
        place.node = self.runtime.node_id
        if entry is not None and type(value) is Stored and value.node == message.node:
            self.runtime.spares.take(record)  # if there is one, it is this one
            place.nested = value.nested
            entry.value = place
            if entry.shared is not None and entry.shared.escaped:
                self.runtime.objects.publish(entry)
            connection.send(FreeObjects([place.oid], message.node))
        elif (record is None or record.spare is None) and not (type(value) is Stored and value.node == place.node):
            connection.send(FreeObjects([place.oid]))  # freed meanwhile, or it lies on yet another node

    def report_lost(self, entry: ObjectEntry, place: Stored, reason: str) -> None:
        """A value that lay on another node cannot be had: the owner makes it anew, others ask its home."""
        with self.runtime.reactor.lock:
            if entry.value is not place:
                return  # it lies somewhere else by now
            objects = self.runtime.objects
            objects.displace(entry)
            shared = entry.shared
            assert shared is not None, "made by `displace`"
            if shared.owned and entry.oid not in self.runtime.closures.putters:
                self.request(entry, reason)
            else:
                objects.resolve_lost(entry, place)

    def input_lost(self, task: PendingTask, value: Failed) -> bool:
        """Whether a task did not run because of a lost argument that can be made anew; then it runs when it is. Caller holds the lock."""
        place = value.lost
        assert place is not None, "the place of the argument"
        entry = next((entry for _, entry in task.deps or () if entry.oid == place.oid), None)
        if entry is None or task.cancelled:
            return False
        known = entry.value
        if type(known) is Stored and (known.node, known.generation) == (place.node, place.generation):
            self.report_lost(
                entry, known, str(serialization.loads_error(value.error))
            )  # ours: see `ResultWriter.encode_error`
        submitter = self.runtime.submitter
        task.lease = None

        def again(entry: ObjectEntry) -> None:
            if task.cancelled:
                submitter.fail(task, errors.TaskCancelledError(f"task {task.template.wire.name} was cancelled"))
            elif not submitter.fail_on_dependency(task):
                submitter.requeue([task])

        self.runtime.when_known(entry, again)
        return True

    def _on_being_remade(self, connection: Connection, message: BeingRemade) -> None:
        entry = self.runtime.objects.table.get(message.oid)
        if entry is not None and entry.shared is not None:
            entry.shared.being_remade = True

    def _soon(self, step: Callable[[], None]) -> None:
        """Do something now, or after what is being done."""
        self._steps.append(step)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._steps:
                self._steps.popleft()()
        finally:
            self._stepping = False

    # ------------------------------------------------------------ beginning

    def request(self, entry: ObjectEntry, reason: str) -> None:
        """An entry of ours is displaced, and lost: see that it gets a value, or an error. Caller holds the lock."""
        self._soon(lambda: self._request(entry, reason))

    def _request(self, entry: ObjectEntry, reason: str) -> None:
        oid = entry.oid
        record = self.runtime.lineage.records.get(oid[: ids.TASK_ID_BYTES])
        run: Rerun | None = record.run if record is not None else None
        if run is not None:
            if run.pushed and run.wanted.get(oid) is not entry:  # one that was freed is known anew
                run.later[oid] = reason
            elif not run.pushed:
                run.wanted[oid] = entry
                self._checked(run, oid)
            return
        spare = self.runtime.spares.take(record)
        if spare is not None:
            self.give(entry, spare)
            return
        if record is None or _cannot_run(record):
            self.give(entry, self._failed(oid, record, reason))
            return
        self._begin(Rerun(record, reason), entry)

    def run_for_others(
        self, record: Record, entries: list[ObjectEntry], puts: list[bytes], reason: str, begun: bool
    ) -> None:
        """Run the task of a dead owner: the entries are ours from now on, what it puts is of whoever runs it. Caller holds the lock."""
        if record.run is not None:
            for entry in entries:
                self.request(entry, reason)
            if puts:
                self._soon(lambda: self._put_later(record, puts, reason))
            return
        run = Rerun(record, reason)
        run.wanted = {entry.oid: entry for entry in entries}
        run.puts = puts
        record.run = run
        self._soon(lambda: self._begin(run, None, charged=begun))

    def _put_later(self, record: Record, puts: list[bytes], reason: str) -> None:
        """What a task that is running again is to put, too: it may have done so already, so it runs once more."""
        run: Rerun | None = record.run
        if run is None:
            self.run_for_others(record, [], puts, reason, True)
        elif not run.pushed:
            run.puts.extend(puts)
        else:
            run.puts_later.extend(puts)

    def _begin(self, run: Rerun, entry: ObjectEntry | None, charged: bool = True) -> None:
        record = run.record
        task = record.task
        record.run = run
        if entry is not None:
            run.wanted[entry.oid] = entry
        self.reruns += 1
        self.runtime.submitter.pending += 1
        if charged and task.retries_left > 0:
            task.retries_left -= 1
        # All that is to be checked is noted before the first answer can come.
        run.checking[b""] = None
        live = {inner.oid: self._live(inner) for inner in record.inputs}
        run.deps = [(key, live[dependency.oid]) for key, dependency in task.deps] if task.deps is not None else None
        direct = {dependency.oid for _, dependency in run.deps or ()}
        for inner in live.values():
            self._use(run, inner, inner.oid in direct, nested=inner.oid not in direct)
        for other in list(record.entries.values()):
            if other.oid not in run.wanted and type(other.value) is Stored:
                self._check_other(run, other)
        self._checked(run, b"")

    def _check_other(self, run: Rerun, other: ObjectEntry) -> None:
        """Another result of the task may be lost as well; then this run makes it, too. On another node it is, if a pull has told so or that node is
        dead: what a living node may have is not taken for lost, as the run may fail."""
        place, pulling = other.value, self.runtime.pulling
        assert type(place) is Stored, "only what is stored can be lost"
        if not pulling.is_abroad(place):
            self._check(run, other)
        elif (other.shared is not None and not other.shared.owned) or other.oid in self.runtime.closures.putters:
            return
        elif pulling.take_loss(place):
            self._want_too(run, other)
        elif self.runtime.reactor.causal is not None and self.runtime.lost is None:

            def looked(reason: str) -> None:
                if reason and other.value is place:  # else it is asked for, or freed, by now
                    self._want_too(run, other)
                self._checked(run, other.oid)

            run.checking[other.oid] = None
            pulling.look(place, looked)

    def _want_too(self, run: Rerun, other: ObjectEntry) -> None:
        self.runtime.objects.displace(other)
        run.wanted[other.oid] = other

    def _checked(self, run: Rerun, oid: bytes) -> None:
        if oid not in run.checking:
            return
        del run.checking[oid]
        if not run.checking:
            self._soon(lambda: self._push(run))

    def _live(self, entry: ObjectEntry) -> ObjectEntry:
        """The entry that stands for an object now: one that was freed may have come back as another."""
        return self.runtime.objects.table.get(entry.oid, entry)

    def _use(self, run: Rerun, entry: ObjectEntry, direct: bool, nested: bool) -> None:
        """Count an input, and see that it can be had."""
        objects = self.runtime.objects
        run.used.append(entry)
        freed = entry.count <= 0
        entry.count = max(entry.count, 0) + 1
        shared = entry.shared
        owned = shared is None or shared.owned
        if freed and not owned and (nested or entry.value is None):
            assert shared is not None, "borrowed objects are shared"
            objects.hold_again(entry)
        elif freed and owned and (nested or (shared is not None and shared.escaped)):
            # The worker asks the daemon for it, or the daemon knows it as an input that nobody holds: it must be known as ours again, or what
            # is made anew would be freed as soon as it is published.
            objects.unescape(entry)
            ref = ObjectRef(entry)
            entry.count += 1
            objects.unuse(objects.escape([ref]))
        if direct and type(entry.value) is Stored:
            self._check(run, entry)
        elif entry.value is None:
            if freed and owned:
                objects.displace(entry)
                self._watch(run, entry)
                self.request(entry, FREED)
            elif direct:
                self._watch(run, entry)

    def _check(self, run: Rerun, entry: ObjectEntry) -> None:
        """A stored value may be lost as well: ask for its place anew."""
        value = entry.value
        assert type(value) is Stored, "only what is stored can be lost"
        if value.node and value.node != self.runtime.node_id:
            return  # whoever reads it pulls it, and tells of its loss
        self.runtime.objects.resolve_again(entry)
        self._watch(run, entry)

    def _watch(self, run: Rerun, entry: ObjectEntry) -> None:
        run.checking[entry.oid] = None
        self.runtime.when_known(entry, lambda entry: self._checked(run, entry.oid))

    # ------------------------------------------------------------ running

    def _push(self, run: Rerun) -> None:
        """All inputs are there: run the task."""
        record = run.record
        task = record.task
        run.pushed = True
        again = run.task = PendingTask(
            self._template_for(task.template, [*run.wanted, *run.puts]), task.task_id, task.args, run.deps, run.used
        )
        again.attempt = task.attempt
        again.retries_left = task.retries_left
        again.result = run
        for entry in run.wanted.values():
            entry.task = again
        for _, dependency in run.deps or ():
            if type(dependency.value) is Failed:
                self._fail_on_input(run, again, dependency)
                return
        if task.queue is not None:
            self.runtime.actor_calls.enqueue(task.queue, again)
        else:
            self.runtime.submitter.enqueue(again)

    def _template_for(self, template: Template, wanted: list[bytes]) -> Template:
        """A task's template for one re-run: it tells the worker what is wanted."""
        again = template.with_options(self.runtime.new_number(), wanted=wanted, home=self.runtime.node_id)
        again.retry_exceptions = False
        return again

    def _fail_on_input(self, run: Rerun, again: PendingTask, dependency: ObjectEntry) -> None:
        assert type(dependency.value) is Failed, "the input could not be had"
        unread_errors.read(dependency.oid)
        cause = serialization.loads_error(dependency.value.error)
        self.runtime.submitter.fail(
            again, errors.ObjectReconstructionFailedError(f"its input cannot be had: {cause}", object_id="")
        )

    def on_item(self, run: Rerun, index: int, value: Value) -> None:
        """An item of a stream that runs again, or what a task puts once more. Caller holds the lock."""
        if index & ids.PUT_INDEX_FLAG:
            self._publish_put(run, index, value)
            return
        entry = run.wanted.get(ids.result_id(run.record.task.task_id, index))
        if entry is None or entry.value is not None:
            self.runtime.objects.let_go(value)
        else:
            self.give(entry, value)

    def _publish_put(self, run: Rerun, index: int, value: Value) -> None:
        suffix = index.to_bytes(4, "big")
        oid = next((oid for oid in run.puts if oid.endswith(suffix)), None)
        daemon = self.runtime.reactor.causal
        if oid is not None and daemon is not None:
            run.puts.remove(oid)
            daemon.send(Publish(oid, value))
        self.runtime.objects.let_go(value)

    def finished(self, run: Rerun, value: Value | Many) -> None:
        """The task has run again, or failed to. Caller holds the lock."""
        record = run.record
        task, again = record.task, run.task
        assert again is not None, "what was pushed has a task"
        task.retries_left = again.retries_left
        if type(value) is Failed:
            self._failed_again(run, value)
        else:
            results = value.values if isinstance(value, Many) else [value]
            is_stream = task.template.wire.num_returns == NUM_RETURNS_STREAMING
            for index, part in enumerate([] if is_stream else results, start=1):
                entry = run.wanted.get(ids.result_id(task.task_id, index))
                if entry is None:
                    self.runtime.objects.let_go(part)
                else:
                    self.give(entry, part)
            for entry in run.wanted.values():
                if entry.value is None and entry.task is again:
                    why = (
                        f"{_story(entry.oid, record, run.reason)}. It ran again and did not make it: the program takes another way each "
                        "time, as with random numbers or the time of day."
                    )
                    kind = errors.StreamingGeneratorReplayInconsistentError if is_stream else None
                    self.give(entry, _failure(entry.oid, why, kind))
        record.run = None
        self._tell_not_made(run, value)
        if run.puts_later:
            self.run_for_others(record, [], run.puts_later, run.reason, True)
        if run.later:
            self._soon(lambda: self._request_later(run))
        self.runtime.lineage.drop_idle(record)

    def _request_later(self, run: Rerun) -> None:
        """What was lost since it was pushed is made by one run: a step of its own, so that none is pushed before all are asked for."""
        for oid, reason in run.later.items():
            entry = run.record.entries.get(oid)
            if entry is not None and entry.value is None:
                self.request(entry, reason)

    def _tell_not_made(self, run: Rerun, value: Value | Many) -> None:
        """What the task should have put and has not, it never will."""
        daemon = self.runtime.reactor.causal
        if not run.puts or daemon is None:
            return
        oid, name = run.puts[0], run.record.task.template.wire.name
        story = f"object {oid.hex()}, put by {name}(), is lost: {_briefly(oid, run.reason)}"
        if type(value) is Failed:
            failed = _run_failed(run, oid, story, serialization.loads_error(value.error))
        else:
            why = "the program takes another way each time, as with random numbers or the time of day."
            failed = _failure(oid, f"{story}. Its task, {name}(), ran again and did not put it: {why}")
        daemon.send(NotMade(run.puts, failed))

    def _failed_again(self, run: Rerun, value: Failed) -> None:
        cause = serialization.loads_error(value.error)
        for entry in run.wanted.values():
            if entry.value is None:
                self.give(entry, _run_failed(run, entry.oid, _story(entry.oid, run.record, run.reason), cause))

    def give(self, entry: ObjectEntry, value: Value) -> None:
        """An entry's wait is over."""
        shared = entry.shared
        if shared is not None:
            former, shared.place = shared.place, None
            shared.being_remade = shared.resolving = False
            if former is not None and type(value) is Stored:
                self._forsake(former, value)
        self.runtime.store_value(entry, value)

    def _forsake(self, former: Stored, now: Stored) -> None:
        """A lost object lies on another node now. It may be there still where it could not be had: that node was busy, or out of reach."""
        own, daemon = self.runtime.node_id, self.runtime.reactor.causal
        if daemon is not None and (former.node or own) != (now.node or own):
            daemon.send(FreeObjects([former.oid], former.node if former.node != own else b""))

    # ------------------------------------------------------------ why not

    def _failed(self, oid: bytes, record: Record | None, reason: str) -> Failed:
        """Why an object cannot be made again, and what would have saved it."""
        story = _story(oid, record, reason, "this driver" if self.runtime.role == "driver" else "a worker")
        if record is None:
            if oid[16] & 0x80:
                return _failure(
                    oid,
                    f"{story}. What shoal.put stores is made by no task that could run again: shoal.put(value, copies=2) keeps it on two "
                    "nodes; or let a task return the value, then it can be made again.",
                )
            return _failure(oid, f"{story}. What made it is not known any more.")
        template = record.task.template
        is_call = record.task.queue is not None
        option = "max_task_retries" if is_call else "max_retries"
        if record.evicted:
            limit = f"{LINEAGE_BYTES_MAX >> 20} MB"
            return _failure(
                oid,
                f"{story}. How it was made is forgotten: a process keeps {limit} of the arguments of finished tasks, and newer ones took the "
                "room. Fewer refs to large results at a time, or smaller arguments (refs instead of values), leave more.",
                errors.ObjectReconstructionFailedLineageEvictedError,
            )
        if template.max_retries:
            return _failure(
                oid,
                f"{story}. It has used up what {option}={template.max_retries} allows; a higher {option} would have had it run again.",
                errors.ObjectReconstructionFailedMaxAttemptsExceededError,
            )
        default = "the default for actors" if is_call else "it may run only once"
        return _failure(
            oid, f"{story}. It cannot run again: {option}=0, {default}; {option}=1 or more would have saved it."
        )


def _is_borrowed(entry: ObjectEntry) -> bool:
    return entry.shared is not None and not entry.shared.owned


def _cannot_run(record: Record) -> bool:
    return record.evicted or not record.task.template.max_retries or record.task.retries_left == 0


def _story(oid: bytes, record: Record | None, reason: str, maker: str = "") -> str:
    """Which object, who made it, where it was lost."""
    if record is not None:
        made = f"made by {record.task.template.wire.name}()"
    else:
        made = f"put by {maker}" if oid[16] & 0x80 else f"made for {maker}"
    return f"object {oid.hex()}, {made}, is lost: {_briefly(oid, reason)}"


def _briefly(oid: bytes, reason: str) -> str:
    """A reason that begins with the name of the object, after that was said."""
    prefix = f"object {oid.hex()} "
    return f"it {reason.removeprefix(prefix)}" if reason.startswith(prefix) else reason


def _run_failed(run: Rerun, oid: bytes, story: str, cause: BaseException) -> Failed:
    """What stands for an object whose task was to run again, and could not, or was cancelled."""
    task = run.task
    if task is not None and task.cancelled and isinstance(cause, errors.TaskCancelledError):
        text = f"{cause}. It was to run again: {story}"
        return Failed(serialization.dumps_error(errors.TaskCancelledError(text, task_id=task.task_id.hex())))
    return _failure(oid, f"{story}. It was to run again, but that failed: {cause}")


def _failure(oid: bytes, text: str, kind: type[errors.ShoalError] | None = None) -> Failed:
    if kind is errors.StreamingGeneratorReplayInconsistentError:
        return Failed(serialization.dumps_error(kind(text)))
    lost = kind or errors.ObjectReconstructionFailedError
    return Failed(serialization.dumps_error(lost(text, object_id=oid.hex())))  # type: ignore[call-arg]

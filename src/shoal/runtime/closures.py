"""How an object is made, in a form that another process can run: written when a ref escapes, read by the successor of a dead owner.

Purpose: refs outlive their owners.

Design: `describe` gives the `TaskLineage` of an entry whose value is not known yet, or lies in the store: of a pending task, of a finished one
(its record), or, for what a task has put, of that task. Inline values that are known stand in it; all else it needs is named, and escapes
as well (`objects.escape`). `adopt` is the other side: the daemon hands over a lineage, this process makes a record of it, as if the task had been its
own, and has it run by the remaker.

What it does not do: decide who adopts (`node.succession`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from shoal import serialization
from shoal.protocol import errors, ids
from shoal.protocol.limits import CALL_TIMEOUT_S, MAX_RETRIES_DEFAULT
from shoal.protocol.lineage_pattern import ARGUMENTS_BYTES_MAX, fill
from shoal.protocol.messages import (
    KIND_TASK,
    Adopt,
    Call,
    Failed,
    LineageCode,
    NotMade,
    Stored,
    TaskLineage,
    TaskTemplate,
    Value,
)
from shoal.runtime.lineage import Record
from shoal.runtime.objects import ObjectEntry, ObjectRef, SharedState
from shoal.runtime.reactor import Waiter
from shoal.runtime.tasks import PendingTask, Template

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.jobs import Job
    from shoal.runtime.reactor import Connection

_encode = msgspec.msgpack.Encoder().encode
#: stand for a TaskID and for arguments in the form of which `_Plain` is made
_TASK_MARK, _ARGUMENTS_MARK = os.urandom(ids.TASK_ID_BYTES), os.urandom(16)


class Pattern:
    """The lineage of a template's plain tasks (first attempt, short arguments without refs) in its encoded form, but for what differs from task to
    task: it is told for many refs at once, and filled by the few that ever need it."""

    __slots__ = ("cuts", "function_id", "needs", "text")

    def __init__(self, lineage: bytes, needs: list[ObjectEntry], function_id: bytes) -> None:
        before, rest = lineage.split(_TASK_MARK)
        between, after = rest.split(_ARGUMENTS_MARK)
        between = between[:-2]  # without the length of the mark
        self.text = before + between + after
        self.cuts = (len(before), len(before) + len(between))
        self.needs = needs
        self.function_id = function_id


class Closures:
    """The lineage that this process has told, and was told."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        #: stored puts of tasks that run or have run here -> that task
        self.putters: dict[bytes, Job] = {}
        #: functions whose code the daemon has from us
        self._told: set[bytes] = set()
        runtime.reactor.handlers[Adopt] = self.on_adopt

    def forget(self, oid: bytes) -> None:
        """An object of ours that lay in the store is freed."""
        self.putters.pop(oid, None)
        self.runtime.lineage.forget(oid)

    # ------------------------------------------------------------ telling

    def describe(self, entry: ObjectEntry) -> tuple[bytes, list[ObjectEntry], list[bytes], bytes] | None:
        """How an entry is made: (lineage, entries that it needs, ids that it needs besides, function id). None when it cannot be lost or be made
        again. Caller holds the lock."""
        pattern = self.pattern_of(entry)
        if pattern is not None:
            lineage = fill(pattern.text, pattern.cuts, entry.task.task_id, entry.task.args)
            return lineage, pattern.needs, [], pattern.function_id
        value = entry.value
        task: PendingTask | None = entry.task
        if value is not None and type(value) is not Stored:
            return None
        job = self.putters.get(entry.oid)
        if job is not None:
            return self._describe_job(job)
        if task is None:
            record = self.runtime.lineage.records.get(entry.oid[: ids.TASK_ID_BYTES])
            if record is None or record.evicted or not record.task.template.max_retries:
                return None
            task, inputs, argument = record.task, record.inputs, record.argument
        else:
            args = task.args
            inputs, argument = task.held or [], None
            if type(args) is Stored:
                argument = next((held for held in inputs if held.oid == args.oid), None)
                inputs = [held for held in inputs if held is not argument]
        return self._describe_task(task, inputs, argument)

    def pattern_of(self, entry: ObjectEntry) -> Pattern | None:
        """What the lineage of a pending plain task shares with that of others of its template; None if it is not plain. Caller holds the lock."""
        task: PendingTask | None = entry.task
        if entry.value is not None or task is None or task.held is not None:
            return None
        args, template = task.args, task.template
        if type(args) is not bytes or len(args) > ARGUMENTS_BYTES_MAX or task.attempt or task.queue is not None:
            return None
        if task.retries_left != template.max_retries:
            return None
        pattern: Pattern | None = template.pattern
        if pattern is None:
            like = PendingTask(template, _TASK_MARK, _ARGUMENTS_MARK, None, None)
            lineage, needs, _, function_id = self._describe_task(like, [], None)  # which tells the code, too
            pattern = template.pattern = Pattern(lineage, needs, function_id)
        return pattern

    def _describe_task(
        self, task: PendingTask, inputs: list[ObjectEntry], argument: ObjectEntry | None
    ) -> tuple[bytes, list[ObjectEntry], list[bytes], bytes]:
        template = task.template
        klass, queue = template.klass, task.queue
        deps: list[tuple[int | str, bytes, Value | None]] | None = None
        inline = set()
        if task.deps is not None:
            deps = []
            for key, entry in task.deps:
                value = entry.value
                plain = type(value) is bytes and (entry.shared is None or not entry.shared.nested)
                deps.append((key, entry.oid, value if plain else None))
                if plain:
                    inline.add(entry.oid)
        direct = {oid for _, oid, _ in deps or ()}
        needs = [entry for entry in inputs if entry.oid not in inline or entry.oid not in direct]
        if argument is not None:
            needs.append(argument)
        if template.exported is not None:
            needs.extend(template.exported.held)
        same: Any = template.encoded
        if same is None:
            of_class = (klass.demand, klass.strategy, klass.environment) if klass is not None else ({}, {}, {})
            wire, demand, strategy, environment = (msgspec.Raw(_encode(part)) for part in (template.wire, *of_class))
            same = template.encoded = (wire, demand, strategy, environment)
        lineage = TaskLineage(
            task.task_id,
            task.attempt,
            same[0],
            task.args,
            deps,
            same[1],
            same[2],
            same[3],
            template.max_retries,
            task.retries_left,
            (queue.actor_id, queue.class_name, queue.in_order, queue.home) if queue is not None else None,
        )
        self._tell_code(template.wire.function_id, template.code)
        return _encode(lineage), list(dict.fromkeys(needs)), [], template.wire.function_id

    def _describe_job(self, job: Job) -> tuple[bytes, list[ObjectEntry], list[bytes], bytes] | None:
        """The task that has put an object, as its worker knows it."""
        wire = job.template.wire
        if wire.kind != KIND_TASK or wire.prompt_reply:
            return None  # an actor's method, or what may run once only
        started = job.held_lease.started
        deps: list[tuple[int | str, bytes, Value | None]] | None = None
        needs: list[bytes] = []
        for key, value in job.deps or ():
            deps = deps if deps is not None else []
            if type(value) is Stored:
                needs.append(value.oid)
                deps.append((key, value.oid, value))
            else:
                deps.append((key, b"", value))
        if type(job.args) is Stored:
            needs.append(job.args.oid)
        code = self.runtime.executor.functions.get(wire.function_id)
        if code is None:
            return None
        retries = MAX_RETRIES_DEFAULT
        lineage = TaskLineage(
            job.task_id, job.attempt, wire, job.args, deps, started.demand, {}, started.environment, retries, retries
        )
        self._tell_code(wire.function_id, code)
        return _encode(lineage), [], needs, wire.function_id

    def _tell_code(self, function_id: bytes, code: bytes) -> None:
        daemon = self.runtime.reactor.causal
        if function_id and function_id not in self._told and daemon is not None:
            self._told.add(function_id)
            daemon.send(LineageCode(function_id, code))

    # ------------------------------------------------------------ repeating

    def made_before(
        self,
        task_id: bytes,
        template: Template,
        args: Value,
        deps: list[tuple[int | str, ObjectEntry]] | None,
        held: list[ObjectEntry] | None,
    ) -> ObjectRef | list[ObjectRef] | None:
        """The results of a child that a former run of this task has submitted under the same name, if others know them; None: submit it.

        Raises:
            ObjectReconstructionFailedError: the child of that name was another one.
        """
        count = template.wire.num_returns
        if count < 1:
            return None
        runtime = self.runtime
        oids = [ids.result_id(task_id, index + 1) for index in range(count)]
        question = _Recorded(runtime, oids)
        try:
            answer = question.ask()
            self._check_same(answer, template, args, deps)
            if not answer["known"]:
                return None
            with runtime.reactor.lock:
                refs = [runtime.objects.borrow(oid, runtime.node_id) for oid in oids]
                held, used = None, held or ()
                runtime.objects.unuse(used)
        except BaseException:
            with runtime.reactor.lock:
                runtime.objects.unuse(held or ())
            raise
        finally:
            question.close()
        return refs[0] if count == 1 else refs

    def _check_same(
        self, answer: dict[str, Any], template: Template, args: Value, deps: list[tuple[int | str, ObjectEntry]] | None
    ) -> None:
        """See that the child of a name is the one that it was."""
        if answer["lineage"]:
            before = msgspec.msgpack.decode(answer["lineage"], type=TaskLineage)
            then = _outline(before.template, before.arguments, [oid for _, oid, _ in before.dependencies or ()])
            now = _outline(template.wire, args, [entry.oid for _, entry in deps or ()])
            if then != now:
                raise errors.ObjectReconstructionFailedError(
                    f"the task that runs again to make a lost object takes another way than before: where it submitted {then[0]}, it now "
                    f"submits {now[0]} with other arguments. Objects of one name must not get two values: make what the task "
                    "does depend on its arguments only, not on random numbers, the time of day, or what other tasks have changed.",
                    object_id=ids.result_id(before.task_id, 1).hex(),
                )

    # ------------------------------------------------------------ adopting

    def on_adopt(self, connection: Connection, message: Adopt) -> None:
        """Objects of a dead owner are ours now: make them."""
        lineage = msgspec.msgpack.decode(message.lineage, type=TaskLineage)
        runtime = self.runtime
        objects = runtime.objects
        needs = objects.adopt_held(message.needs)
        puts = [oid for oid in message.oids if oid[ids.TASK_ID_BYTES] & 0x80]
        entries = [self._own(oid) for oid in message.oids if oid not in puts]
        record = runtime.lineage.records.get(lineage.task_id)
        if record is None or record.evicted:
            record = self._record_of(lineage, {entry.oid: entry for entry in needs}, message.code)
            runtime.lineage.add(record)
        for entry in entries:
            record.entries[entry.oid] = entry
        if message.begun and record.task.retries_left == 0 and record.run is None:
            option = "max_task_retries" if lineage.actor is not None else "max_retries"
            error = errors.OwnerDiedError(
                f"{lineage.template.name}() may have run already, and cannot run again ({option}={lineage.max_retries}): {message.reason}. "
                f"A higher {option} would have saved what it makes.",
                object_id=message.oids[0].hex(),
            )
            failed = Failed(serialization.dumps_error(error))
            for entry in entries:
                runtime.remaker.give(entry, failed)
            if puts:
                connection.send(NotMade(puts, failed))
            runtime.lineage.drop_idle(record)
        else:
            runtime.remaker.run_for_others(record, entries, puts, message.reason, message.begun)
        objects.unuse(needs)

    def _own(self, oid: bytes) -> ObjectEntry:
        """An object's entry, owned by this process from now on."""
        objects = self.runtime.objects
        entry = objects.table.get(oid)
        if entry is None:
            entry = objects.table[oid] = ObjectEntry(oid)
            entry.count = 0
            entry.shared = SharedState(owned=True)
        shared = entry.shared
        assert shared is not None, "entries in the table are shared"
        shared.owned = shared.escaped = True
        shared.holds += 1
        shared.resolving = False
        if entry.value is not None:
            objects.displace(entry)
        return entry

    def _record_of(self, lineage: TaskLineage, needs: dict[bytes, ObjectEntry], code: bytes) -> Record:
        """A record of another process's task, as if it were ours."""
        runtime = self.runtime
        options = {name: value for name, value in lineage.template.options.items() if name not in ("wanted", "home")}
        wire = msgspec.structs.replace(lineage.template, options=options)
        queue = klass = None
        if lineage.actor is not None:
            queue = runtime.actor_calls.queue_of(*lineage.actor)
        else:
            klass = runtime.submitter.class_of(
                lineage.demand, wire.depth, lineage.strategy, lineage.environment, wire.name
            )
        wire = msgspec.structs.replace(wire, number=runtime.new_number())
        template = Template(wire, code, klass, lineage.max_retries, False, runtime.submitter.gone_templates)
        template.exported = runtime.exports.keep_code(wire.function_id, code) if wire.function_id else None
        deps: Any = None
        inputs = list(needs.values())
        if lineage.dependencies is not None:
            deps = []
            for key, oid, value in lineage.dependencies:
                entry = needs.get(oid)
                if entry is None:
                    entry = ObjectEntry(oid)
                    entry.count = 0
                    inputs.append(entry)
                if value is not None and entry.value is None:
                    entry.value = value
                deps.append((key, entry))
        task = PendingTask(template, lineage.task_id, lineage.arguments, deps, None)
        task.attempt, task.retries_left, task.queue = lineage.attempt, lineage.retries_left, queue
        record = Record(task)
        record.inputs = [entry for entry in inputs if type(task.args) is not Stored or entry.oid != task.args.oid]
        if type(task.args) is Stored:
            record.argument = needs.get(task.args.oid)
            if record.argument is not None:
                record.argument.count += 1
        record.bytes += len(task.args) if type(task.args) is bytes else 0
        return record


class _Recorded(Waiter):
    """The question whether others know results. The node holds them in our name when it answers that they do: what reads the answer takes note of
    that, be whoever has asked interrupted meanwhile."""

    __slots__ = ("_answer", "_closed", "_entries", "_oids", "_runtime")

    def __init__(self, runtime: Runtime, oids: list[bytes]) -> None:
        super().__init__()
        self._runtime = runtime
        self._oids = oids
        self._answer: list[Any] = []
        self._entries: list[ObjectEntry] = []
        self._closed = False

    def ask(self) -> dict[str, Any]:
        """What the node says; what it holds for us is counted once until `close`."""
        runtime = self._runtime
        runtime.ask(lambda number: Call(number, "node.recorded", {"oids": self._oids}), self, self._answer)
        answered: dict[str, Any] = runtime.unpack(runtime.await_answer(self, self._answer, CALL_TIMEOUT_S))
        return answered

    def arrived(self) -> None:
        """The answer was read. Caller holds the lock."""
        [answer] = self._answer
        self._runtime.forget_question(answer.request)
        if not answer.error and answer.body["known"]:
            self._entries = self._runtime.objects.adopt_held(self._oids)
            if self._closed:
                self._let_go()
        super().arrived()

    def close(self) -> None:
        """Nobody waits any more."""
        with self._runtime.reactor.lock:
            self._closed = True
            self._let_go()

    def _let_go(self) -> None:
        entries, self._entries = self._entries, []
        self._runtime.objects.unuse(entries)


def _outline(template: TaskTemplate, args: Value, deps: list[bytes]) -> tuple[str, str, int, int, list[bytes]]:
    """What must be the same when a task is submitted once more under one name. Of the arguments the length: how a set, say, is written may differ
    from process to process."""
    size = args.size if type(args) is Stored else len(args) if type(args) is bytes else 0
    return f"{template.name}()", template.method, template.num_returns, size, deps

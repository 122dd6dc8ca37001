"""Actors whose state survives their process exactly: checkpoints, records of calls, replay.

Purpose: the worker's side of `checkpoint_interval` and `checkpoint_seconds`. A call that was answered is in the state of every later life, and no
call is in it twice.

Design: the decisions are `replay.CallLedger`'s; here they meet sockets. Everything rests on one order of bytes (docs/ARCHITECTURE.md,
"Causality"): a record is in a page that outlives this process, or in the daemon's buffer, before its call runs, and whatever that call says to
another process is written after it.
So either nobody has seen anything of a call, or the daemon knows it.

    a call          record -> run -> keep the answer -> (every interval: StoreCheckpoint) -> reply
    a new life      load the checkpoint -> run the records again, in their order -> answer who asked meanwhile -> go on

What a method of such an actor asks of another such actor is named by this one's ActorID and a number that counts only these calls: a replay names
them alike, and is answered instead of being run again (`CallNames`). The number is part of the checkpoint, which is taken only when all of them are
answered: what is on its way would be lost with the process.

A read-only method is neither recorded nor replayed, except when it is called by such an actor, whose replay must be told the same again.

What it does not do: keep records (the daemon), restart (the GCS), or call others anew (`actor_calls` does, for what has no answer).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import takewhile
from time import perf_counter
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from shoal import serialization
from shoal.protocol import errors, ids
from shoal.protocol.limits import (
    CLUSTER_LOG_BYTES_MAX,
    INLINE_RESULT_BYTES_MAX,
    RECORD_ARGUMENT_BYTES_MAX,
    RECORDS_BYTES_MAX,
)
from shoal.protocol.messages import (
    CHECKPOINT_INTERVAL,
    CHECKPOINT_SECONDS,
    KIND_ACTOR_CALL,
    CallsSettled,
    Containing,
    Failed,
    Many,
    RecordCall,
    Recovery,
    StoreCheckpoint,
    Stored,
    TaskTemplate,
    Value,
)
from shoal.runtime import replay
from shoal.runtime.coming_again import ComingAgain
from shoal.runtime.jobs import BoundTemplate, Job
from shoal.runtime.objects import ObjectRef, home_of
from shoal.runtime.replay import AWAITED, FORGOTTEN, KNOWN, CallLedger, KeptReply, Record, ReplayGap
from shoal.runtime.results import ArgumentLost, ResultWriter
from shoal.runtime.tasks import CallNames
from shoal.store.page import RecordPage

if TYPE_CHECKING:
    from shoal.runtime.actor_host import ActorHost
    from shoal.runtime.objects import ObjectEntry
    from shoal.runtime.reactor import Connection

#: a checkpoint that is overdue waits so long for the answers of calls that this actor has made and does not wait for
OVERDUE_WAIT_S = 1.0
#: an actor that moves waits so long until its last checkpoint is out of its node's reach
MOVE_CONFIRMED_S = 60.0


class ExactActor:
    """What `actor_host` has more when its actor takes checkpoints."""

    def __init__(self, host: ActorHost) -> None:
        self.host = host
        self.executor = host.executor
        self.runtime = host.runtime
        self.reactor = host.reactor
        self.ledger = CallLedger()
        self.names = self.runtime.call_names = CallNames(ids.child_prefix(host.actor_id, 0), host.actor_id)
        self.coming = ComingAgain(self.runtime, self._read_arguments)
        self.names.brings_back = self.coming.brings_back
        self.names.on_loss = self._record_loss
        self.in_cluster = "cluster_token" in self.runtime.config
        options = host.spec.options
        self._interval: int = options.get(CHECKPOINT_INTERVAL, 0)
        self._seconds: float = options.get(CHECKPOINT_SECONDS, 0)
        self._calls = 0  #: recorded since the last checkpoint
        self._owes = False  #: one of them is not to be replayed
        self._lost: set[bytes] = set()  #: what the call that runs could not have
        self._bytes = 0  #: of arguments, likewise
        self._checkpointed_at = 0.0
        self._told_failure = ""
        #: where large arguments of records lie that were written on another node
        self._places: dict[bytes, Stored] = {}
        #: where records go; None while (or when) they are sent
        self._page: RecordPage | None = None
        self._whole_page: RecordPage | None = None
        #: refs inside answers that the ledger keeps, alive as long as it does
        self._refs: dict[bytes, list[ObjectRef]] = {}
        #: calls that came again before they were answered
        self._again: dict[bytes, list[Job]] = {}
        self._results = self.executor.results = RecoverableResults(self.runtime, lambda: host.instance)
        self.executor.actor = host
        self.executor.perform = self.perform
        self.reactor.handlers[CallsSettled] = self._on_settled

    # ------------------------------------------------------------ the beginning of a life

    def begin(self, cls: type, construct: Callable[[], Any], recovery: Recovery | None, records_fd: int = -1) -> None:
        """Construct the actor, or bring it to where its former life was.

        Raises:
            ActorDiedError: its state cannot be had again.
        """
        if records_fd >= 0:
            self._page = self._whole_page = RecordPage.open(self.runtime.daemon_pid, records_fd)
        if recovery is None:
            self.host.instance = construct()
            self.checkpoint()
            return
        try:
            if recovery.problem:
                raise ReplayGap(recovery.problem)
            self._load(cls, construct, recovery)
            self._replay()
        except (ReplayGap, errors.ObjectLostError) as error:
            spec = self.host.spec
            text = f"the state of actor {spec.class_name} cannot be recovered: {error}"
            raise errors.ActorDiedError(text, actor_id=spec.actor_id.hex(), class_name=spec.class_name) from None
        self._checkpoint_or_tell()  # what was replayed need not be again, and what is kept is held by this node

    def _load(self, cls: type, construct: Callable[[], Any], recovery: Recovery) -> None:
        value = recovery.checkpoint
        if type(value) is Stored:
            encoded, state = self.runtime.load_stored(value)
        else:
            assert type(value) is bytes, "a checkpoint is inline or stored"
            encoded, state = serialization.loads(value)
        snapshot = replay.decode_snapshot(encoded)
        self.names.made = self.names.settled = snapshot.calls_made
        for reply in snapshot.kept:
            if reply.refs:
                self._refs[reply.task_id] = [self.runtime.objects.borrow(oid, home) for oid, home in reply.refs]
        self._places = {place.oid: place for place in recovery.places}
        self.host.instance = restored(cls, construct, state)
        self.ledger.restore(snapshot, map(replay.decode_record, recovery.records))
        self._checkpointed_at = perf_counter()

    def _replay(self) -> None:
        """Run what the former life had begun after its checkpoint, once more."""
        plan = self.ledger.plan
        self._results.recovers = True
        try:
            for number, record in enumerate(plan):
                if record.loss is not None:
                    continue
                losses = [each.loss for each in takewhile(lambda each: each.loss is not None, plan[number + 1 :])]
                self.names.lost_before = dict(loss for loss in losses if loss is not None)
                with self.reactor.lock:
                    self.ledger.begin(record.task_id, record.postponed)
                    for _ in losses:
                        self.ledger.lose()
                self._finish(record.task_id, self._run(self._job_of(record)))
                if self.names.loss:
                    raise ReplayGap(
                        f"call {record.index}, {record.name}, is not known to have met with any loss when it ran, but in its replay a value "
                        f"that it asked for could not be had, so it would have led to another state. {self.names.loss}\nA checkpoint after "
                        "that call would have made the replay superfluous (a shorter checkpoint_interval); so would have what keeps the value: "
                        "shoal.put(value, copies=2), or a task's max_retries"
                    )
        finally:
            self._results.recovers = False
            self.names.lost_before = {}
        self._calls = len(plan)
        plan.clear()
        self._places.clear()

    def _job_of(self, record: Record) -> Job:
        """A recorded call as the executor runs it; its reply goes to nobody."""
        daemon = self.reactor.causal
        assert daemon is not None, "a worker ends with its daemon"
        wire = TaskTemplate(
            0, b"", record.name, KIND_ACTOR_CALL, record.num_returns, self.host.spec.job_id, method=record.method
        )
        arguments = self._here(record.arguments)
        dependencies = record.dependencies and [(key, self._here(value)) for key, value in record.dependencies]
        item = (0, 0, record.task_id, 0, arguments, dependencies)
        return Job(daemon, self.host.held, BoundTemplate(wire), item)

    def _here(self, value: Value) -> Value:
        """A recorded argument; one in the store where it lies now."""
        if type(value) is Stored:
            place = self._places.get(value.oid)
            value = value if place is None else replace(place, nested=value.nested)
            self.runtime.load_stored(value)  # one that is lost is no error of the call
        return value

    # ------------------------------------------------------------ calls

    def takes(self, jobs: list[Job]) -> None:
        """Calls came: queue what is new, answer what is known. Caller holds the lock."""
        queue = self.executor.queue
        for job in jobs:
            if self.host.moving:
                continue  # its next life is asked again
            if not job.template.recorded:
                queue.append(job)
                continue
            self.coming.came(job)
            verdict = self.ledger.arrive(job.task_id)
            if verdict is KNOWN:
                self._answer(job, self.ledger.answer(job.task_id))
            elif verdict is AWAITED:
                self._again.setdefault(job.task_id, []).append(job)
            elif verdict is FORGOTTEN:
                self._answer(job, KeptReply(job.task_id, self._forgotten(job)))
            else:
                queue.append(job)
        self.executor.wake()

    def withdraw(self, job: Job) -> None:
        """A call was cancelled before it began. Caller holds the lock."""
        self.ledger.withdraw(job.task_id)

    def perform(self, job: Job) -> Value | Many:
        """Run one call on the main thread: in place of `Executor.run_task`."""
        if not job.template.recorded:
            return self.executor.run_task(job)
        last = self._again.get(job.task_id, [job])[-1]
        job.args, job.deps = last.args, last.deps  # where what is in them is counted by now
        try:
            arguments, dependencies, refs, stored = self._recordable(job)
        except (
            errors.ShoalError,
            MemoryError,
            ArgumentLost,
        ) as error:  # nothing has happened yet: not a call of the record
            failed = self.executor.results.encode_error(job, error)
            with self.reactor.lock:
                if type(error) is ArgumentLost:
                    self.ledger.postpone(job.task_id)
                else:
                    self.ledger.withdraw(job.task_id)
                for again in self._again.pop(job.task_id, ()):
                    self._answer(again, KeptReply(job.task_id, failed))
            return failed
        wire = job.template.wire
        record = Record(
            self.ledger.index + 1,
            job.task_id,
            wire.method,
            wire.name,
            wire.num_returns,
            arguments,
            dependencies,
            self.ledger.postponed(),
        )
        job.args, job.deps = arguments, dependencies  # what it was sent may be lost meanwhile, and a replay has these
        encoded = replay.encode(record)
        with self.reactor.lock:
            index = self.ledger.begin(job.task_id)
            daemon = self.reactor.causal
            if daemon is not None:
                self._record(daemon, index, encoded, refs, stored)
            if refs:
                self.coming.begins(job, [ref.binary() for ref in refs], last, self._again.get(job.task_id, [last])[-1])
        value = self._run(job)
        self.coming.ends()
        self._calls += 1
        self._bytes += len(encoded)
        self._finish(job.task_id, value)
        # Nobody knows what a call would meet with in a replay that has met with a loss; and one that made an actor would make it again on another
        # node, which would count handles beside the first. So these are not to be replayed.
        overdue = bool(self.names.loss) or (self.names.creates and self.in_cluster)
        self._owes = self._owes or overdue
        if (self._owes or self._is_due()) and not self.executor.exit_reason:
            self._checkpoint_or_tell(last=overdue)
        return value

    def _record(
        self, daemon: Connection, index: int, encoded: bytes, refs: list[ObjectRef], stored: list[bytes]
    ) -> None:
        """Write a record. Caller holds the lock."""
        if self._page is None or refs or stored or not self._page.append(index, encoded):
            self._leave_page(daemon)
            oids = self._hold(daemon, refs) if refs else []
            host = self.host
            self._write(daemon, RecordCall(host.actor_id, host.incarnation, index, encoded, oids, stored))

    def _record_loss(self, oid: bytes, error: BaseException) -> None:
        """The call that runs is told that it cannot have a value: so is its replay, whatever can be had by then."""
        if self._results.recovers or oid in self._lost:
            return  # the replay ends; or it is known
        self._lost.add(oid)
        dumped = serialization.dumps_error(error)
        with self.reactor.lock:
            daemon = self.reactor.causal
            if daemon is not None:
                index = self.ledger.lose()
                record = Record(index, b"", "", "", 0, b"", loss=(oid, dumped))
                self._record(daemon, index, replay.encode(record), [], [])

    def _read_arguments(self, job: Job) -> None:
        """See what a call brings: the refs inside become known, with their homes."""
        for value in (job.args, *(value for _, value in job.deps or ())):
            if type(value) is not Failed:
                self.executor.load_value(value)

    def _leave_page(self, daemon: Connection) -> None:
        """From now on, until a checkpoint, records are sent: those in the page come first. Caller holds the lock."""
        page, self._page = self._page, None
        if page is not None:
            for index, record in page.entries():
                daemon.send(RecordCall(self.host.actor_id, self.host.incarnation, index, record))

    def _run(self, job: Job) -> Value | Many:
        names = self.names
        names.active, names.creates, names.loss = True, False, ""
        self._results.handed = []
        self._lost.clear()
        try:
            return self.executor.run_task(job)
        finally:
            names.active = False

    def _finish(self, task_id: bytes, value: Value | Many) -> None:
        """A call has ended: keep its answer, and give it to all who asked."""
        handed = self._results.handed
        if type(value) is bytes and not handed:
            kept = KeptReply(task_id, value)
        else:
            kept = KeptReply(task_id, self._inlined(value), [(ref.binary(), home_of(ref)) for ref in handed])
        with self.reactor.lock:
            if handed:
                self._refs[task_id] = handed
                self._results.handed = []
            self.ledger.finish(kept)
            self._drop_refs()
            for job in self._again.pop(task_id, ()):
                self._answer(job, kept)

    def _answer(self, job: Job, reply: KeptReply) -> None:
        """Answer a call from what was kept. Caller holds the lock."""
        objects = self.runtime.objects
        refs = self._refs.get(reply.task_id)
        if refs and reply.refs:
            entries = objects.escape(refs)
            objects.hold_for(entries, job.connection.attachment.worker_id)
            objects.unuse(entries)
        self.executor.add_reply(job, reply.value, 0.0, perf_counter())
        self.executor.flush_replies()

    def _forgotten(self, job: Job) -> Failed:
        name = job.template.wire.name
        text = (
            f"{name} was called again, by a caller that began anew; it ran once, and its answer is not kept any more. "
            "Actors keep answers until the checkpoint of the calling actor: let that take checkpoints more often"
        )
        spec = self.host.spec
        error = errors.ActorUnavailableError(text, actor_id=spec.actor_id.hex(), class_name=spec.class_name)
        return Failed(serialization.dumps_error(error))

    def _on_settled(self, connection: Connection, message: CallsSettled) -> None:
        """A caller will not ask for these again."""
        self.ledger.settle(message.task_ids)
        if message.below:
            self.ledger.settle_below(message.caller, message.below)
        self._drop_refs()

    def _drop_refs(self) -> None:
        ledger = self.ledger
        if ledger.dropped:
            dropped, ledger.dropped = ledger.dropped, []
            for reply in dropped:
                self._refs.pop(reply.task_id, None)

    # ------------------------------------------------------------ values that outlive the process

    def _recordable(self, job: Job) -> tuple[Value, list[tuple[int | str, Value]] | None, list[ObjectRef], list[bytes]]:
        """A call's arguments as they can be read in another life: arguments, dependencies, refs inside, objects stored for them."""
        arguments, dependencies = job.args, job.deps
        if type(arguments) is bytes and dependencies is None:
            return arguments, None, [], []
        refs: list[ObjectRef] = []
        stored: list[bytes] = []
        arguments = self._lasting(arguments, refs, stored)
        if dependencies is not None:
            dependencies = [(key, self._lasting(value, refs, stored)) for key, value in dependencies]
        return arguments, dependencies, refs, stored

    def _lasting(self, value: Value, refs: list[ObjectRef], stored: list[bytes]) -> Value:
        """An argument as a value that belongs to nobody else."""
        if type(value) is bytes or type(value) is Failed:
            return value
        # Its owner lets it go after the reply. Reading it makes the refs inside known, with their homes.
        if type(value) is Stored:
            try:
                plain = self.runtime.load_stored(value)
            except errors.ObjectLostError as error:
                if type(error) is not errors.ObjectLostError:
                    raise  # it is known why it cannot be had
                raise ArgumentLost(value, error) from error
        else:
            plain = serialization.loads(value.blob)  # type: ignore[union-attr]
        blob, nested = serialization.dumps(plain)
        refs.extend(nested or ())
        oids = [ref.binary() for ref in nested or ()]
        size = len(blob) if isinstance(blob, bytes) else blob.total_bytes
        if size > (CLUSTER_LOG_BYTES_MAX if self.in_cluster else RECORD_ARGUMENT_BYTES_MAX):
            place = self.runtime.store_blob(os.urandom(ids.OBJECT_ID_BYTES), blob, self.host.actor_id, oids)
            stored.append(place.oid)
            return place
        whole = blob if isinstance(blob, bytes) else blob.to_bytes()
        return Containing(whole, oids) if oids else whole

    def _inlined(self, value: Value | Many) -> Value | Many:
        """An answer that needs no place in the store: its caller may free that."""
        if type(value) is Many:
            return Many([self._inlined(part) for part in value.values])  # type: ignore[misc]
        if type(value) is not Stored:
            return value
        store = self.runtime.store
        assert store is not None, "it was stored just now"
        whole = bytes(store.read(value))
        return Containing(whole, value.nested) if value.nested else whole

    def _write(self, daemon: Connection, message: RecordCall | StoreCheckpoint) -> None:
        """Tell the daemon. In a cluster what comes after waits until the GCS has it: the node may be lost. Caller holds the lock."""
        if self.host.incarnation > 1:
            # The call that comes now may be what ended the former life. Noted only with its answer, it would be sent and would kill without end.
            daemon.send_now(message)
        else:
            daemon.send(message)
        if self.in_cluster:
            self.reactor.await_confirmation()

    def _hold(self, daemon: Connection, refs: list[ObjectRef]) -> list[bytes]:
        """Have the daemon hold refs in the actor's name. Caller holds the lock."""
        objects = self.runtime.objects
        entries = objects.escape(refs)
        objects.hold_for(entries, self.host.actor_id)
        objects.unuse(entries)
        return [entry.oid for entry in entries]

    # ------------------------------------------------------------ checkpoints

    def move(self, reason: str) -> None:
        """The node leaves, and nothing runs: take a checkpoint, so that the next life has nothing to replay, and end this one when it is safe."""
        if self._calls:
            self._checkpoint_or_tell(last=True)
        self.reactor.wait_confirmed(MOVE_CONFIRMED_S)
        self.host.leave(reason, moves=True)

    def _is_due(self) -> bool:
        if 0 < self._interval <= self._calls or self._bytes > RECORDS_BYTES_MAX:
            return True
        return self._seconds > 0 and perf_counter() - self._checkpointed_at >= self._seconds

    def _checkpoint_or_tell(self, last: bool = False) -> None:
        """Take a checkpoint; one that fails costs the next life time, not the call its answer. The `last` one is overdue."""
        pending = self.runtime.actor_calls.exact_pending()
        if pending:
            overdue = last or self._calls > 2 * self._interval > 0 or self._bytes > RECORDS_BYTES_MAX
            # Due again after the next call. An answer may wait for this very call, so not even what is overdue is waited for long.
            if not overdue or not self.runtime.wait_entries(pending, OVERDUE_WAIT_S):
                return
        try:
            self.checkpoint()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if text != self._told_failure:
                self._told_failure = text
                name = self.host.spec.class_name
                print(
                    f"actor {name} could not take a checkpoint after call {self.ledger.index}: {text}. "
                    "Its calls are recorded since the last one that succeeded.",
                    file=sys.stderr,
                )

    def checkpoint(self) -> None:
        """Write the state after the last call.

        Raises:
            TypeError: it cannot be serialized.
            ObjectStoreFullError: there is no room for it.
        """
        host = self.host
        snapshot = self.ledger.snapshot(self.names.made)
        blob, refs = serialization.dumps_whole((replay.encode(snapshot), state_of(host.instance)))
        refs.extend(ref for kept in self._refs.values() for ref in kept)
        value: Value = blob
        if len(blob) > (CLUSTER_LOG_BYTES_MAX if self.in_cluster else INLINE_RESULT_BYTES_MAX):
            value = self.runtime.store_blob(os.urandom(ids.OBJECT_ID_BYTES), blob, host.actor_id)
        with self.reactor.lock:
            daemon = self.reactor.causal
            if daemon is None:
                return
            oids = self._hold(daemon, refs) if refs else []
            self._write(daemon, StoreCheckpoint(host.actor_id, host.incarnation, snapshot.index, value, oids))
            self.names.settled = snapshot.calls_made
            self.runtime.actor_calls.settle_names()
            daemon.flush()
            if not daemon.out:  # the checkpoint is safe, and the records before it are needed no more
                self._page = self._whole_page
                if self._page is not None:
                    self._page.clear()
        self._calls = self._bytes = 0
        self._owes = False
        self._checkpointed_at = perf_counter()


class RecoverableResults(ResultWriter):
    """Results whose refs are remembered; in a replay they are not sent, so they are written inline."""

    recovers = False
    handed: list[ObjectRef]

    def encode_value(
        self,
        job: Job,
        value: Any,
        index: int,
        inline_max: int = INLINE_RESULT_BYTES_MAX,
        handed: list[ObjectEntry] | None = None,
    ) -> Value:
        """See ResultWriter."""
        if not self.recovers:
            return super().encode_value(job, value, index, inline_max, handed)
        blob, nested = serialization.dumps(value)
        whole = blob if isinstance(blob, bytes) else blob.to_bytes()
        if nested is None:
            return whole
        self.handed.extend(nested)
        return Containing(whole, [ref.binary() for ref in nested])

    def _hand_over(
        self,
        job: Job,
        blob: Any,
        nested: list[ObjectRef],
        oid: bytes,
        inline_max: int,
        handed: list[ObjectEntry] | None = None,
    ) -> Value:
        self.handed.extend(nested)
        return super()._hand_over(job, blob, nested, oid, inline_max, handed)


def state_of(instance: Any) -> Any:
    """The state of an actor as its class gives it.

    Raises:
        TypeError: the class has half of what it needs.
    """
    if hasattr(instance, "save_checkpoint"):
        return instance.save_checkpoint()
    return instance.__getstate__()


def restored(cls: Any, construct: Callable[[], Any], state: Any) -> Any:
    """An instance with that state: the counterpart of `state_of`."""
    if hasattr(cls, "load_checkpoint"):
        instance = construct()
        instance.load_checkpoint(state)
        return instance
    instance = cls.__new__(cls)
    if hasattr(instance, "__setstate__"):
        instance.__setstate__(state)
        return instance
    plain, slots = state if type(state) is tuple else (state, None)
    if plain:
        instance.__dict__.update(plain)
    for name, value in (slots or {}).items():
        setattr(instance, name, value)
    return instance

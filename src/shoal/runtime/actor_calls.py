"""Calling actors: one ordered queue of calls for each actor this process calls.

Purpose: a call goes straight to the actor's worker, in the order submitted, at the cost of a task push.

Design: an `ActorQueue` follows the actor's state (ActorState, sent by the daemon on subscription). Alive: calls are pushed under the
actor's lease as soon as their dependencies are known, in order: a call whose dependency is missing holds back the later ones. Pending or
restarting: they queue. Dead: they fail, with the cause.

    in flight when the actor dies    retried if max_task_retries allows, else ActorUnavailableError (restarting) or ActorDiedError (dead)
    not started when it dies         pushed again after the restart, free; failed when it is dead
    an actor with checkpoints        all are pushed again after the restart: it knows which ones it has run (`exact_actor`)

An actor has many callers, and its page tells one started call: each caller numbers its calls from a base of its own, so that the number says
whose call it was. Calls to threaded and asyncio actors count as started once they are sent.

What it does not do: decide an actor's fate (the GCS does), or count handles (they are refs, see `objects`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from shoal import serialization
from shoal.protocol import errors, ids
from shoal.protocol.gcs_messages import DEATH_GROUP_REMOVED, DEATH_UNSCHEDULABLE
from shoal.protocol.limits import ACTORS_DEAD_MAX, ALL_STARTED, CALL_TIMEOUT_S, FLUSH_TASKS, SETTLE_BATCH
from shoal.protocol.messages import (
    ActorSpec,
    ActorState,
    Call,
    CallsSettled,
    Containing,
    CreateActor,
    Failed,
    KillActor,
    Stored,
    SubscribeActor,
    TaskReplies,
    Value,
    WorkerDied,
)
from shoal.protocol.values import refs_inside
from shoal.runtime.abroad import is_abroad
from shoal.runtime.objects import ObjectEntry, ObjectRef, home_of_entry, sendable
from shoal.runtime.streams import count_retry
from shoal.runtime.tasks import PendingTask, WorkerLease, started_under

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.reactor import Connection


class ActorQueue:
    """The calls of this process to one actor. Written under the reactor's lock."""

    __slots__ = (
        "actor_id",
        "class_name",
        "death",
        "exact",
        "home",
        "in_order",
        "kept",
        "killed",
        "last_end",
        "lease",
        "lost",
        "node",
        "settled",
        "state",
        "unsent",
    )

    def __init__(self, actor_id: bytes, class_name: str, in_order: bool, home: bytes = b"") -> None:
        self.actor_id = actor_id
        self.home = home  #: the node that counts its handles, if that is known
        self.class_name = class_name
        #: whether a call with a missing dependency holds back later ones
        self.in_order = in_order
        #: it takes checkpoints: it knows again a call that it has run, so all that were lost are sent anew
        self.exact = False
        #: calls answered, of which it has not been told so
        self.settled: list[bytes] = []
        self.state = "pending"
        self.node = b""  #: where it lives, if that is not this process's node
        self.lease: WorkerLease | None = None
        self.killed = False  #: this process killed it for good: nothing is pushed any more, its death is on the way
        #: calls not pushed yet, in order
        self.unsent: deque[PendingTask] = deque()
        #: in flight when the connection broke; settled when the actor's next state is known
        self.lost: list[tuple[PendingTask, bool]] = []
        self.death: BaseException | None = None
        self.last_end = ""  #: how the actor's process ended the last time
        #: what the constructor's arguments refer to: a restart needs it again (creator's process only)
        self.kept: list[ObjectEntry] = []

    def pending_calls(self) -> int:
        """Calls without a result."""
        return len(self.unsent) + len(self.lost) + (len(self.lease.inflight) if self.lease is not None else 0)


class ActorCalls:
    """All actors that this process calls."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.reactor = runtime.reactor
        self.queues: dict[bytes, ActorQueue] = {}
        self._published: set[bytes] = set()
        #: actors whose death this process knows, the oldest first: the first ones are forgotten
        self._dead: deque[bytes] = deque()
        #: alive, but they could not be connected to: tried again at every tick
        self._unreached: dict[bytes, ActorState] = {}
        self._unsettled: list[ActorQueue] = []
        #: numbers of calls carry their caller in the upper half, below 2**63
        self._first_seq = ((int.from_bytes(runtime.worker_id[:4], "big") & 0x7FFFFFFF) << 32) + 1
        runtime.reactor.handlers[ActorState] = self.on_state
        runtime.reactor.on_tick.append(self._reach)

    def queue_of(
        self, actor_id: bytes, class_name: str, in_order: bool, home: bytes = b"", exact: bool = False
    ) -> ActorQueue:
        """The queue to an actor; subscribes to its state at first use. Caller holds the lock."""
        queue = self.queues.get(actor_id)
        if queue is None:
            queue = self.queues[actor_id] = ActorQueue(actor_id, class_name, in_order, home)
            self._subscribe(actor_id, home)
        queue.exact = exact
        return queue

    def _subscribe(self, actor_id: bytes, home: bytes = b"") -> None:
        daemon = self.reactor.causal
        if daemon is not None:
            daemon.send_now(SubscribeActor(actor_id, home))

    # ------------------------------------------------------------ birth and names

    def publish_code(self, class_id: bytes, code: bytes) -> None:
        """Give the class to the GCS, once a process: the actor's worker fetches it from there."""
        if class_id in self._published:
            return
        with self.reactor.lock:  # whoever sees it published may send what needs it
            if class_id in self._published:
                return
            self._published.add(class_id)
            daemon = self.reactor.causal
            if daemon is not None:
                daemon.send(Call(0, "gcs.function_put", {"function_id": class_id, "code": code}))

    def create(
        self, spec: ActorSpec, args: tuple[Any, ...], kwargs: dict[str, Any], get_if_exists: bool, in_order: bool
    ) -> tuple[ObjectRef | None, ActorSpec | None]:
        """Have an actor made. Fills in the spec's id and arguments.

        Returns:
            The ref that stands for its handles, or the spec of the actor that has the name already.

        Raises:
            ActorAlreadyExistsError: the name is taken.
        """
        runtime = self.runtime
        arguments, deps, held = runtime.encode_arguments(args, kwargs)
        context = runtime.context()
        prefix = context.prefix
        if not prefix:
            prefix = context.prefix = ids.child_prefix(context.task_id, context.attempt)
        spec.actor_id = ids.task_id_of(prefix, next(context.children))
        spec.arguments = arguments
        spec.home = runtime.node_id
        if runtime.call_names is not None:
            runtime.call_names.creates = True
        entry = ObjectEntry(ids.actor_handle_id(spec.actor_id))
        entry.value = runtime.none_blob
        ref = ObjectRef(entry)
        with self.reactor.lock:
            if held:
                # A restart needs what the arguments refer to, also when this process is gone: the handle's object contains it.
                runtime.objects.contain(entry, runtime.objects.escape([ObjectRef(inner) for inner in held]))
                for inner in held:
                    inner.count += 1  # for the refs made in the line above
                spec.needs = [(inner.oid, home_of_entry(inner), self._maker(inner)) for inner in dict.fromkeys(held)]
            runtime.objects.unuse(runtime.objects.escape([ref]))
            queue = self.queues[spec.actor_id] = ActorQueue(spec.actor_id, spec.class_name, in_order)
            queue.kept = held or []
        if spec.name:
            if deps is not None:
                runtime.wait_entries([entry for _, entry in deps], None)
            existing = True
            try:
                answer = runtime.unpack(
                    runtime.request(lambda number: self._creation(number, spec, deps, get_if_exists), CALL_TIMEOUT_S)
                )
                existing = answer["existing"] is not None
            finally:
                if existing:  # or refused
                    with self.reactor.lock:
                        runtime.objects.unuse(queue.kept)
                        del self.queues[spec.actor_id]
            if existing:
                return None, msgspec.convert(answer["existing"], ActorSpec)
            with self.reactor.lock:
                self._subscribe(spec.actor_id)
            return ref, None
        unknown = [entry for _, entry in deps or () if entry.value is None]
        if not unknown:
            self._send_creation(queue, spec, deps)
            return ref, None
        missing = len(unknown)
        handle = entry
        handle.count += 1  # an actor whose last handle goes before it was asked for would never end

        def arrived(entry: ObjectEntry) -> None:
            nonlocal missing
            missing -= 1
            if missing == 0:
                self._send_creation(queue, spec, deps)
                runtime.objects.unuse([handle])

        for entry in unknown:
            runtime.when_known(entry, arrived)
        return ref, None

    def _maker(self, entry: ObjectEntry) -> str:
        """What made an object, as far as this process knows; for the error of an actor that needs it in vain."""
        task = entry.task
        if task is None and (record := self.runtime.lineage.records.get(entry.oid[: ids.TASK_ID_BYTES])) is not None:
            task = record.task
        if task is not None:
            return f"made by {task.template.wire.name}()"
        return "stored by shoal.put" if entry.oid[ids.TASK_ID_BYTES] & 0x80 else ""

    def _creation(
        self,
        number: int,
        spec: ActorSpec,
        deps: list[tuple[int | str, ObjectEntry]] | None,
        get_if_exists: bool = False,
    ) -> CreateActor:
        if deps is not None:
            spec.dependencies = [(key, sendable(entry)) for key, entry in deps]
        return CreateActor(number, spec, get_if_exists)

    def _send_creation(
        self, queue: ActorQueue, spec: ActorSpec, deps: list[tuple[int | str, ObjectEntry]] | None
    ) -> None:
        with self.reactor.lock:
            # Also with a failed argument: the worker finds it, and then everybody who has a handle is told by the GCS.
            daemon = self.reactor.causal
            if daemon is not None:
                daemon.send(self._creation(0, spec, deps))
                self._subscribe(spec.actor_id)  # after: the GCS must know the actor first
                if queue.killed:
                    daemon.send(KillActor(spec.actor_id, True))  # it was killed before anybody knew it

    def named(self, name: str, namespace: str) -> ActorSpec:
        """The spec of a named actor.

        Raises:
            ValueError: there is none.
        """
        answer = self.runtime.call("gcs.actor_by_name", {"name": name, "namespace": namespace})
        return msgspec.convert(answer["spec"], ActorSpec)

    def kill(self, actor_id: bytes, no_restart: bool) -> None:
        """Kill an actor's process; calls in flight fail, and so do all that this process makes from now on (no_restart)."""
        with self.reactor.lock:
            queue = self.queues.get(actor_id)
            if queue is not None and no_restart and queue.death is None:
                queue.killed = True
            daemon = self.reactor.causal
            if daemon is not None:
                daemon.send_now(KillActor(actor_id, no_restart))

    # ------------------------------------------------------------ calls

    def enqueue(self, queue: ActorQueue, task: PendingTask) -> None:
        """A call, in the order submitted. Caller holds the lock."""
        task.queue = queue
        lease = queue.lease
        if lease is not None and not queue.unsent and not task.missing and not queue.killed:
            if task.deps is not None and self.runtime.submitter.fail_on_dependency(task):
                return
            submitter = self.runtime.submitter
            idle = not lease.inflight
            if type(task.args) is not bytes:
                self._hand_over(queue, lease, task.args)
            submitter.push(lease, task)
            if idle or len(lease.out) >= FLUSH_TASKS:
                submitter.send_pushes(lease)
            return
        if queue.death is not None:
            self._fail(queue, task, queue.death)
            return
        queue.unsent.append(task)
        if lease is not None:
            self.advance(queue)

    def advance(self, queue: ActorQueue) -> None:
        """Push what can be pushed. Caller holds the lock."""
        lease = queue.lease
        if lease is None or queue.killed:
            return
        unsent = queue.unsent
        submitter = self.runtime.submitter
        waiting: list[PendingTask] = []
        while unsent:
            task = unsent[0]
            if task.cancelled:
                unsent.popleft()
                self._fail(
                    queue,
                    task,
                    errors.TaskCancelledError(f"call {task.template.wire.name} was cancelled before it ran"),
                )
            elif not task.missing:
                unsent.popleft()
                if task.deps is None or not self.runtime.submitter.fail_on_dependency(task):
                    if type(task.args) is not bytes:
                        self._hand_over(queue, lease, task.args)
                    submitter.push(lease, task)
            elif queue.in_order:
                break
            else:
                waiting.append(unsent.popleft())
        unsent.extendleft(reversed(waiting))
        submitter.send_pushes(lease)
        if waiting and any(not task.missing for task in waiting):
            self.advance(queue)  # a call that failed above was what another one waited for

    def _hand_over(self, queue: ActorQueue, lease: WorkerLease, args: Value) -> None:
        """A call may wait for long where it is sent, and its caller be dead when it is read: what its arguments refer to is held there from now on.
        Caller holds the lock."""
        nested = refs_inside(args)
        if nested:
            if queue.node:  # not before that node holds them, and knows how to make them anew
                lease.connection.withholds = True
            self.runtime.objects.hand_over(nested, lease.connection.attachment.worker_id, queue.node)

    def dependency_arrived(self, task: PendingTask) -> None:
        """A call's last missing dependency is known. Caller holds the lock."""
        if task.queue is not None:
            self.advance(task.queue)

    def on_state(self, connection: Connection, message: ActorState) -> None:
        """The actor's state, at subscription and at every change."""
        queue = self.queues.get(message.actor_id)
        if queue is None:
            return
        queue.state = message.state
        self._unreached.pop(message.actor_id, None)
        if message.state == "alive":
            if queue.lease is not None:
                if queue.lease.lease_id == message.lease_id:
                    return
                self._lose_lease(queue)  # it lives elsewhere now
            try:
                peer = self.runtime.submitter.connect(message.worker_id, message.address, message.pid)
            except OSError as error:
                peer = None
                unsent = list(queue.unsent)
                queue.unsent.clear()
                for task in unsent:
                    self._fail(queue, task, error)
            if peer is None:
                self._unreached[message.actor_id] = message  # it is being dialled, or died just now
                return
            queue.node = message.node_id if is_abroad(peer.attachment.address) else b""
            lease = queue.lease = WorkerLease(message.lease_id, None, peer)
            lease.queue = queue
            lease.next_seq = self._first_seq
            peer.attachment.leases[message.lease_id] = lease
            if queue.exact:
                # What an exact actor calls must not be known before the record of the call that calls it.
                peer.withholds = peer.withholds or self.runtime.call_names is not None
                self._settle_names(queue)
            self._settle_lost(queue)
            self.advance(queue)
        elif message.state == "restarting":
            if queue.lease is not None:
                # Its connection's end may still stand in the socket: what it holds is read first.
                self.reactor.drain(queue.lease.connection)
            if queue.lease is None:
                self._settle_lost(queue)
        elif message.state == "dead":
            queue.death = death_error(queue, message)
            kept, queue.kept = queue.kept, []
            self.runtime.objects.unuse(kept)
            self._lose_lease(queue)
            self._settle_lost(queue)
            self._fail_unsent(queue)
            self._forget_oldest_dead(queue)

    def ask_again(self, queue: ActorQueue) -> None:
        """The connection to an actor broke, though it lives: what was lost is settled when its state is told again. Caller holds the lock."""
        self._subscribe(queue.actor_id, queue.home)

    # ------------------------------------------------------------ actors with checkpoints

    def answered(self, lease: WorkerLease, message: TaskReplies) -> None:
        """Answers of an actor with checkpoints are here: it need not keep them. Caller holds the lock.

        In a worker that takes checkpoints itself only these make the answers superfluous, see `settle_names`.
        """
        queue = lease.queue
        if self.runtime.call_names is not None or queue is None:
            return
        inflight = lease.inflight
        if not queue.settled:
            self._unsettled.append(queue)
        queue.settled.extend(
            inflight[seq].task_id
            for seq, value in message.items
            if seq in inflight and (type(value) is not Failed or value.lost is None)  # such a call is made again
        )
        if len(queue.settled) >= SETTLE_BATCH:
            self._tell_settled(queue)

    def _tell_settled(self, queue: ActorQueue) -> None:
        lease, settled = queue.lease, queue.settled
        if lease is not None and settled:
            queue.settled = []
            lease.connection.send(CallsSettled(lease.lease_id, settled))

    def settle_names(self) -> None:
        """This worker's actor has taken a checkpoint: no replay will ask again what came before. Caller holds the lock."""
        for queue in self.queues.values():
            if queue.exact:
                self._settle_names(queue)

    def _settle_names(self, queue: ActorQueue) -> None:
        names = self.runtime.call_names
        if names is not None and names.settled and queue.lease is not None:
            queue.lease.connection.send(CallsSettled(queue.lease.lease_id, [], names.prefix, names.settled + 1))

    def exact_pending(self) -> list[ObjectEntry]:
        """Results of calls to actors with checkpoints that have no answer yet: one of each call."""
        pending: list[PendingTask] = []
        with self.reactor.lock:
            for queue in self.queues.values():
                if queue.exact and queue.pending_calls():
                    pending += [*queue.unsent, *(task for task, _ in queue.lost)]
                    if queue.lease is not None:
                        pending += queue.lease.inflight.values()
            results = [
                task.result if type(task.result) is ObjectEntry else task.result[0] for task in pending if task.result
            ]
        return results

    # ------------------------------------------------------------ time

    def _reach(self, now: float) -> None:
        """Try again to connect to actors that could not be reached; tell of answers received. Caller holds the lock."""
        if self._unsettled:
            unsettled, self._unsettled = self._unsettled, []
            for queue in unsettled:
                self._tell_settled(queue)
        if self._unreached:
            daemon = self.reactor.causal
            if daemon is not None:
                for message in list(self._unreached.values()):
                    self.on_state(daemon, message)

    def on_reached(self, worker_id: bytes) -> None:
        """A worker that was being dialled is connected. Caller holds the lock."""
        daemon = self.reactor.causal
        if daemon is not None:
            for message in [each for each in self._unreached.values() if each.worker_id == worker_id]:
                self.on_state(daemon, message)

    def why_unreached(self, actor_id: bytes) -> str:
        """What keeps an actor that lives from being called; "" for nothing."""
        with self.reactor.lock:
            message = self._unreached.get(actor_id)
            return "" if message is None else self.runtime.submitter.dialler.why(message.worker_id)

    def _lose_lease(self, queue: ActorQueue) -> None:
        """The actor is dead, though its process may be about to be killed: what it has answered is read, the rest is lost."""
        lease = queue.lease
        if lease is None:
            return
        self.reactor.drain(lease.connection)
        if queue.lease is not lease:
            return  # the connection's end was read
        self.runtime.submitter.forget_lease(lease)
        tasks = sorted(lease.inflight.values(), key=lambda task: task.seq)
        lease.inflight.clear()
        lease.out.clear()
        self.on_lease_lost(lease, tasks, lease.connection.attachment.death)

    def _forget_oldest_dead(self, queue: ActorQueue) -> None:
        """Handles keep their queue; a handle that comes later than ACTORS_DEAD_MAX deaths asks the GCS."""
        self._dead.append(queue.actor_id)
        if len(self._dead) > ACTORS_DEAD_MAX:
            self.queues.pop(self._dead.popleft(), None)

    def on_lease_lost(self, lease: WorkerLease, tasks: list[PendingTask], death: WorkerDied | None) -> None:
        """The actor's worker is gone; `tasks` had no reply. Caller holds the lock."""
        queue = lease.queue
        if queue is None or queue.lease is not lease:
            return
        queue.lease = None
        for task in tasks:
            task.lease = None  # it waits for the next life: so `get`'s time-out says
        if death is None or not queue.in_order or death.started_seq == ALL_STARTED:
            queue.lost.extend((task, True) for task in tasks)  # nobody knows
        else:
            started = started_under(death, lease.lease_id, self._first_seq >> 32)
            queue.lost.extend((task, task.seq <= started) for task in tasks)
        if death is not None:
            queue.last_end = death.cause
        if not queue.exact:  # its next life answers from the record, with what lies in the store
            for task, may_have_begun in queue.lost:
                if may_have_begun:
                    self.runtime.submitter.free_untold(task, death)
        if queue.death is not None:
            self._settle_lost(queue)
            self._fail_unsent(queue)
        elif queue.state == "restarting":
            self._settle_lost(queue)

    def _settle_lost(self, queue: ActorQueue) -> None:
        """Decide on calls that were in flight when the actor's worker ended."""
        lost, queue.lost = queue.lost, []
        again = []
        for task, started in lost:
            if task.cancelled:
                self._fail(queue, task, errors.TaskCancelledError(f"call {task.template.wire.name} was cancelled"))
            elif queue.death is not None:
                self._fail(queue, task, _lost_with(queue, queue.death, task) if started else queue.death)
            elif not started or queue.exact:
                again.append(task)
            elif task.retries_left != 0:
                count_retry(self.runtime, task)
                again.append(task)
            else:
                limit = task.template.max_retries
                advice = (
                    f"It was tried {task.attempt + 1} times, which is all that max_task_retries={limit} allows."
                    if limit
                    else "Set max_task_retries to have such calls repeated."
                )
                self._fail(
                    queue,
                    task,
                    errors.ActorUnavailableError(
                        f"{queue.last_end or 'the process of the actor died'}. It ran {task.template.wire.name}, which is lost "
                        f"with its result, object {ids.result_id(task.task_id, 1).hex()}; the actor restarts. {advice}",
                        actor_id=queue.actor_id.hex(),
                        class_name=queue.class_name,
                    ),
                )
        queue.unsent.extendleft(reversed(again))

    def _fail_unsent(self, queue: ActorQueue) -> None:
        if queue.death is None:
            return
        unsent = list(queue.unsent)
        queue.unsent.clear()
        for task in unsent:
            self._fail(queue, task, queue.death)

    def _fail(self, queue: ActorQueue, task: PendingTask, error: BaseException) -> None:
        submitter = self.runtime.submitter
        submitter.pending -= 1
        self.runtime.finish_task(task, Failed(serialization.dumps_error(error)))

    def requeue(self, task: PendingTask) -> None:
        """A call to be made again (retry_exceptions), or bounced by a worker that is not the actor any more. Caller holds the lock."""
        queue = task.queue
        assert queue is not None, "a call belongs to an actor"
        if queue.lease is None or queue.lease.ending:
            queue.lease = None
            queue.unsent.appendleft(task)
            self._fail_unsent(queue)
        else:
            self.enqueue(queue, task)

    def fail_everything(self, error: BaseException) -> None:
        """The node is gone. Caller holds the lock."""
        for queue in self.queues.values():
            if queue.death is not None:
                continue
            queue.death = error
            tasks = [task for task, _ in queue.lost]
            queue.lost = []
            if queue.lease is not None:
                tasks.extend(queue.lease.inflight.values())
                queue.lease.inflight.clear()
                queue.lease = None
            for task in tasks:
                self._fail(queue, task, queue.death)
            self._fail_unsent(queue)


def _lost_with(queue: ActorQueue, death: BaseException, task: PendingTask) -> BaseException:
    """What a call raises that may have begun when its actor died for good."""
    if type(death) is not errors.ActorDiedError:
        return death
    name, result = task.template.wire.name, ids.result_id(task.task_id, 1).hex()
    return errors.ActorDiedError(
        f"{death}. {name}() may have begun, and is lost with its result, object {result} (max_task_retries={task.template.max_retries})",
        actor_id=queue.actor_id.hex(),
        class_name=queue.class_name,
    )


def with_refs(args: Value, dependencies: int, held: list[ObjectEntry]) -> Value:
    """A call's arguments, with the refs inside named: these are the first of what it holds, before its dependencies and what lies in the store."""
    nested = [entry.oid for entry in held[: len(held) - dependencies - (type(args) is Stored)]]
    if not nested:
        return args
    if type(args) is Stored:
        return msgspec.structs.replace(args, nested=nested)  # its own entry does not contain them: the call holds them
    assert type(args) is bytes, "arguments are inline or stored"
    return Containing(args, nested)


def death_error(queue: ActorQueue, message: ActorState) -> BaseException:
    """What a call to a dead actor raises."""
    cause: Any = None
    if message.creation_error:
        cause = serialization.loads_error(message.creation_error)
    if message.death == DEATH_UNSCHEDULABLE:
        return errors.ActorUnschedulableError(message.cause)
    if message.death == DEATH_GROUP_REMOVED:
        return errors.ActorPlacementGroupRemoved(
            message.cause, actor_id=queue.actor_id.hex(), class_name=queue.class_name
        )
    return errors.ActorDiedError(
        message.cause or "the actor is dead",
        actor_id=queue.actor_id.hex(),
        class_name=queue.class_name,
        actor_init_failed=bool(message.creation_error),
        cause=cause,
    )

"""Streams: the results of generators, one ref an item.

Purpose: `for ref in f.remote()` sees items while the task still makes them; the consumer's pace can hold the producer back.

Design: the submitter keeps a `StreamState` in the place of a task's result. `StreamItem` messages append entries; the task's reply ends it
(with an error, that error stands in one last ref). Taking an item tells the producer (`StreamCredit`), when backpressure was asked for.

What it does not do: the producer's side (`executor`).
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any

from shoal.protocol import errors
from shoal.protocol.ids import OBJECT_ID_BYTES, result_id
from shoal.protocol.messages import Failed, StreamCredit, StreamItem, Value
from shoal.runtime.objects import ObjectEntry, ObjectRef
from shoal.runtime.reactor import Waiter
from shoal.runtime.remaking import Rerun

if TYPE_CHECKING:
    import asyncio

    from shoal.runtime.core import Runtime
    from shoal.runtime.reactor import Connection
    from shoal.runtime.tasks import PendingTask

#: a generator that is killed has made no more items than these of which nobody has heard
UNTOLD_ITEMS_MAX = 64
#: streams whose consumer is gone, for the next tick
abandoned: deque[StreamState] = deque()


class StreamState:
    """The items of one generator task, as its submitter knows them. Written under the reactor's lock."""

    __slots__ = ("abandoned", "consumed", "ended", "items", "produced", "task", "waiters")

    def __init__(self) -> None:
        self.items: deque[ObjectRef] = deque()
        self.produced = 0
        self.consumed = 0
        self.ended = False
        self.abandoned = False
        self.waiters: list[Waiter] = []
        self.task: PendingTask | None = None

    def wake_all(self) -> None:
        """Tell everybody who waits for an item or the end."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.arrived()


def untold_results(task: PendingTask) -> list[bytes]:
    """What a task may have stored, and its submitter has not heard of."""
    first, count = 1, task.template.wire.num_returns
    if count < 0:
        stream = task.result
        first += stream.produced if type(stream) is StreamState else 0
        count = first + UNTOLD_ITEMS_MAX
    wanted = task.template.wire.options.get("wanted")  # of a re-run, which writes nothing else
    made = [result_id(task.task_id, index) for index in range(first, count + 1)]
    return made if wanted is None else [oid for oid in made if oid in wanted]


def count_retry(runtime: Runtime, task: PendingTask) -> None:
    """A task is run again: a generator yields anew what has come already, and its worker is told to let that be: stored once more under the same
    names it would be nobody's. Caller holds the lock."""
    task.count_retry()
    state = task.result
    if type(state) is StreamState and state.produced:
        task.template = task.template.with_options(runtime.new_number(), resume_from=state.produced)


def let_go_of_abandoned(runtime: Runtime) -> None:
    """Free the items that nobody can take any more (the record of their task, which they keep, keeps them), and cancel the producers that wait for
    their consumer. Caller holds the lock."""
    while abandoned:
        state = abandoned.popleft()
        state.items.clear()
        if state.task is not None and state.task.template.wire.backpressure > 0:
            runtime.cancel_task(state.task, False, True)


def on_item(runtime: Runtime, connection: Connection, message: StreamItem) -> None:
    """An item of a generator, or of one that is run again for what was lost. Caller holds the lock."""
    lease = connection.attachment.leases.get(message.lease_id)
    runtime.submitter.received.count(connection.attachment, message.value)
    task = lease.inflight.get(message.seq) if lease is not None else None
    if task is None:
        return
    if type(task.result) is StreamState:
        add_item(runtime, task.result, task, message.index, message.value)
    elif type(task.result) is Rerun:
        runtime.remaker.on_item(task.result, message.index, message.value)


def add_item(runtime: Runtime, state: StreamState, task: PendingTask, index: int, value: Value) -> None:
    """An item came. Caller holds the lock."""
    state.produced = index
    entry = ObjectEntry(result_id(task.task_id, index), task)
    if state.abandoned:
        entry.count = 0  # freed at once
        runtime.store_value(entry, value)
        return
    ref = ObjectRef(entry)
    runtime.store_value(entry, value)
    state.items.append(ref)
    state.wake_all()


def give_credit(state: StreamState, task: PendingTask) -> None:
    """Tell a producer that waits for its consumer how many items were taken. Caller holds the lock."""
    if task.template.wire.backpressure > 0 and task.lease is not None:
        task.lease.connection.send_now(StreamCredit(task.lease.lease_id, task.seq, state.consumed))


def end_stream(runtime: Runtime, state: StreamState, task: PendingTask, value: Value) -> None:
    """The task ended: with an error, one last ref raises it. Caller holds the lock."""
    if type(value) is Failed:
        add_item(runtime, state, task, state.produced + 1, value)
    state.ended = True
    state.task = None
    state.wake_all()


class ObjectRefGenerator:
    """An iterator over the refs that a generator task yields, in order. Also `async for`.

    An exception in the task stands in the ref at which it was raised; then the iteration ends.
    """

    def __init__(self, runtime: Runtime, state: StreamState) -> None:
        self._runtime = runtime
        self._state = state

    def __iter__(self) -> ObjectRefGenerator:
        return self

    def __next__(self) -> ObjectRef:
        return self._next_sync(None)

    def _next_sync(self, timeout_s: float | None = None) -> ObjectRef:
        """The next ref.

        Raises:
            StopIteration: there are no more.
            GetTimeoutError: none came within `timeout_s` seconds.
        """
        state = self._state
        while True:
            ref = self._take()
            if ref is not None:
                return ref
            if state.ended:
                if state.items:
                    continue
                raise StopIteration
            waiter = Waiter()
            with self._runtime.reactor.lock:
                if state.items or state.ended:
                    continue
                state.waiters.append(waiter)
            if not self._runtime.wait_for(waiter, timeout_s):
                raise errors.GetTimeoutError(f"the next item of the stream did not come within {timeout_s} s")

    def _take(self) -> ObjectRef | None:
        state = self._state
        with self._runtime.reactor.lock:
            if not state.items:
                return None
            ref = state.items.popleft()
            state.consumed += 1
            task = state.task
            if task is not None:
                give_credit(state, task)
            return ref

    def __aiter__(self) -> ObjectRefGenerator:
        return self

    async def __anext__(self) -> ObjectRef:
        import asyncio

        state = self._state
        runtime = self._runtime
        loop = asyncio.get_running_loop()
        while True:
            ref = self._take()
            if ref is not None:
                return ref
            if state.ended and not state.items:
                raise StopAsyncIteration
            arrived = asyncio.Event()
            with runtime.reactor.lock:
                if state.items or state.ended:
                    continue
                state.waiters.append(_LoopWaiter(loop, arrived))
            runtime.submitter.flush()
            runtime.reactor.async_wait_began()
            try:
                await arrived.wait()
            finally:
                runtime.reactor.async_wait_ended()

    def completed(self) -> ObjectRef:
        """A ref that is ready when the task has ended (its value is None)."""
        state = self._state
        entry = ObjectEntry(os.urandom(OBJECT_ID_BYTES))
        runtime = self._runtime
        with runtime.reactor.lock:
            if state.ended:
                entry.value = runtime.none_blob
            else:
                state.waiters.append(_CompletionWaiter(runtime, state, entry))
        return ObjectRef(entry)

    def next_ready(self) -> bool:
        """Whether `next` would return or raise at once."""
        self._runtime.poll()
        return bool(self._state.items) or self._state.ended

    def is_finished(self) -> bool:
        """Whether the task has ended and all of its refs were taken."""
        return self._state.ended and not self._state.items

    def __del__(self) -> None:
        state = self._state
        state.abandoned = True
        if state.task is None and not state.items:  # in this order: the last item comes before the task is forgotten
            return
        if abandoned is None:  # the interpreter ends and has emptied this module
            return
        abandoned.append(state)
        self._runtime.reactor.attend()

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._state.produced} produced, {self._state.consumed} taken)"

    def __reduce__(self) -> tuple[Any, ...]:
        raise errors.OutOfBandObjectRefSerializationError(
            "an ObjectRefGenerator belongs to the process that made it: send the refs that it yields instead"
        )


class _LoopWaiter(Waiter):
    """Wakes a coroutine in the place of a thread."""

    __slots__ = ("_event", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        super().__init__()
        self._loop = loop
        self._event = event

    def finish(self) -> None:
        self.done = True
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            pass  # the loop was closed meanwhile


class _CompletionWaiter(Waiter):
    """Fills an entry when the stream has ended."""

    __slots__ = ("_entry", "_runtime", "_state")

    def __init__(self, runtime: Runtime, state: StreamState, entry: ObjectEntry) -> None:
        super().__init__()
        self._runtime = runtime
        self._state = state
        self._entry = entry

    def arrived(self) -> None:
        if self._state.ended:
            self._runtime.store_value(self._entry, self._runtime.none_blob)
        else:
            self._state.waiters.append(self)


class DynamicObjectRefGenerator:
    """An iterable of the refs that a task with num_returns="dynamic" made."""

    def __init__(self, refs: list[ObjectRef]) -> None:
        self._refs = refs

    def __iter__(self) -> Any:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

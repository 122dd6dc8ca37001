"""Waiting for some of many refs: `wait`, and why something is not ready.

Purpose: `while refs: ready, refs = shoal.wait(refs)` over thousands of refs costs each call a few microseconds, not a scan of all of them.

Design: the rest that `wait` returns is a `Rest`: a list that remembers how it came about. When it is passed to the next `wait`, a `WaitSession`
registers once with every ref that is not ready; from then on each completion puts the ref's number into a heap, and every `wait` on the next rest
takes the smallest numbers: the first ready ones in the order of the list.

The user may change a rest as any list; each method that changes it makes it forget its session.

    first wait       scan; sleep with a waiter of its own; returns a Rest without a session
    wait(rest)       takes over the rest's session, or begins one; hands it on to the new rest
    a rest dies      its session is put into `_ended`; the next one that begins takes it off the entries

What it does not do: read sockets (`reactor`), or wait for all of some refs (`core.wait_entries`).
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from time import perf_counter
from typing import TYPE_CHECKING, Any

from shoal.protocol import errors
from shoal.protocol.messages import Stored
from shoal.runtime.objects import ObjectEntry, ObjectRef, dropped
from shoal.runtime.own_daemon import Watch
from shoal.runtime.reactor import Waiter
from shoal.runtime.remaking import Rerun

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.tasks import PendingTask

EXPLAIN_DEPTH_MAX = 5  #: of a chain of tasks that wait for each other
SESSION_REFS_MIN = 8  #: shorter lists are scanned
PATIENCE_S = 0.05  #: what does not come to this node for so long may be passed over
PATIENCE_MAX_S = 0.25


class Rest(list[Any]):
    """What is left after a `wait`: a list of refs that the next `wait` need not look through, unless somebody has changed it."""

    __slots__ = ("session",)

    def __init__(self, refs: list[Any]) -> None:
        super().__init__(refs)
        self.session: WaitSession | None = None

    def forget(self) -> None:
        """From now on it is a list as any other."""
        session, self.session = self.session, None
        if session is not None:
            _ended.append(session)

    __del__ = forget

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def _forgetful(name: str) -> Any:
    change = getattr(list, name)

    def method(self: Rest, *args: Any, **kwargs: Any) -> Any:
        self.forget()
        return change(self, *args, **kwargs)

    return functools.wraps(change)(method)


for _name in ("append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse"):
    setattr(Rest, _name, _forgetful(_name))
for _name in ("__setitem__", "__delitem__", "__iadd__", "__imul__"):
    setattr(Rest, _name, _forgetful(_name))
_delete = list.__delitem__


class WaitSession:
    """One registration with many refs, kept over the calls of a `wait` loop. Written under the reactor's lock."""

    __slots__ = ("numbers", "order", "ready", "waiter")

    def __init__(self, runtime: Runtime, refs: list[Any]) -> None:
        #: the numbers of the refs that are left, in the order of the list
        self.order = list(range(len(refs)))
        #: heap of the numbers of ready refs
        self.ready: list[int] = []
        #: of those that are not
        self.numbers: dict[ObjectEntry, int] = {}
        self.waiter: Waiter | None = None  #: who sleeps for the session now
        unknown = []
        for number, ref in enumerate(refs):
            entry = ref._entry
            if entry.value is not None:
                self.ready.append(number)  # ascending: a heap already
            else:
                self.numbers[entry] = number
                if entry.waiters is None:
                    entry.waiters = []
                entry.waiters.append(self)
                unknown.append(entry)
        runtime.objects.resolve(unknown)

    def __call__(self, entry: ObjectEntry) -> None:
        """An entry has a value."""
        number = self.numbers.pop(entry, None)
        if number is not None:
            heappush(self.ready, number)
            if self.waiter is not None:
                self.waiter.arrived()

    def end(self) -> None:
        """Nobody asks any more."""
        forget(self, self.numbers)
        self.numbers.clear()


def forget(waiter: Waiter | WaitSession, entries: Iterable[ObjectEntry]) -> None:
    """The waiter need not be told of these entries any more."""
    for entry in entries:
        if entry.waiters is not None and waiter in entry.waiters:
            entry.waiters.remove(waiter)


#: sessions whose rest is gone, to be taken off their entries; filled by finalizers
_ended: deque[WaitSession] = deque()


def session_of_refs() -> Runtime:
    """The runtime of this process, for what is asked about refs: those of a session that has ended must not begin another.

    Raises:
        RuntimeError: there is no session.
    """
    from shoal.runtime import core

    if core._current is None and not core._forked:
        raise RuntimeError(
            "there is no Shoal session: the one that these refs are from has ended, and what was not read by then is gone. "
            "Get results before shoal.shutdown()"
        )
    return core.current()


def wait(runtime: Runtime, refs: list[Any], num_returns: int, timeout_s: float | None) -> tuple[list[Any], list[Any]]:
    """Split `refs` into at most `num_returns` ready ones and the rest, both in order."""
    if type(refs) is Rest and len(refs) >= SESSION_REFS_MIN:
        found = _wait_on_rest(runtime, refs, num_returns, timeout_s)
        if found is not None:
            return found
    return _wait_anew(runtime, refs, num_returns, timeout_s)


def wait_here(
    runtime: Runtime, refs: list[Any], num_returns: int, timeout_s: float | None, fetch_local: bool
) -> tuple[list[Any], list[Any]]:
    """As `wait`, in a cluster: what is lost with its node is not ready before it is made anew, or cannot be. With `fetch_local` what is ready is also
    brought to this node; what does not come soon is passed over if others are here, and what does not come in time is not ready."""
    pulling = runtime.pulling
    until = None if timeout_s is None else perf_counter() + timeout_s
    patience_s, asked = PATIENCE_S, num_returns
    watch: Watch | None = None
    while True:
        left_s = None if until is None else max(until - perf_counter(), 0.0)
        ready, rest = wait(runtime, refs, num_returns, left_s)
        entries = [ref._entry for ref in ready if type(ref) is ObjectRef and type(ref._entry.value) is Stored]
        if not entries and watch is None:
            return ready, rest
        watch = watch or Watch(runtime, until)
        came, enough = True, num_returns
        if fetch_local:
            if asked > num_returns:  # some do not come: others are asked for, too
                enough -= len(_here(runtime, refs))
                entries = [ref._entry for ref in refs if type(ref) is ObjectRef and not pulling.is_here(ref._entry)][
                    :asked
                ]
            now = perf_counter()
            soon = now + patience_s
            if until is not None:  # what was known late has a moment to come
                soon = min(soon, max(until, now + PATIENCE_S)) if timeout_s else now
            came = pulling.bring(entries, soon, max(enough, 1), watch)
        any_lost = pulling.report_losses(entries) or (not fetch_local and pulling.look_at(entries))
        if came and not any_lost and asked == num_returns:
            return ready, rest
        here = _here(runtime, refs) if fetch_local else [ref for ref in ready if _is_ready(ref)]
        if len(here) >= num_returns or (until is not None and perf_counter() >= until):
            # New lists: what `rest` remembers is not true of them.
            taken = {id(ref) for ref in here[:num_returns]}
            return here[:num_returns], [ref for ref in refs if id(ref) not in taken]
        if not came:
            asked, patience_s = 2 * asked, min(2 * patience_s, PATIENCE_MAX_S)


def _here(runtime: Runtime, refs: list[Any]) -> list[Any]:
    """Those of the refs that are ready and, as far as is known, on this node."""
    is_here = runtime.pulling.is_here
    return [ref for ref in refs if _is_ready(ref) and (type(ref) is not ObjectRef or is_here(ref._entry))]


def _wait_on_rest(
    runtime: Runtime, refs: Rest, num_returns: int, timeout_s: float | None
) -> tuple[list[Any], list[Any]] | None:
    """Wait with the session of a rest, or a new one; None when it holds generators, or the node is lost."""
    with runtime.reactor.lock:
        if dropped:
            runtime.objects.drain_dropped()
        session, refs.session = refs.session, None
        if session is None:
            if runtime.lost is not None or not all(type(ref) is ObjectRef for ref in refs):
                return None
            while _ended:
                _ended.popleft().end()
            session = WaitSession(runtime, refs)
    rest = Rest(refs)  # before the sleep: another thread may change `refs` meanwhile
    try:
        if len(session.ready) < num_returns:
            _sleep(runtime, session, num_returns, timeout_s)
        ready: list[Any] = []
        order = session.order
        with runtime.reactor.lock:
            while session.ready and len(ready) < num_returns:
                index = bisect_left(order, heappop(session.ready))
                ready.append(rest[index])
                del order[index]
                _delete(rest, index)
            rest.session = session
    except BaseException:
        with runtime.reactor.lock:
            session.end()
        raise
    return ready, rest


def _sleep(runtime: Runtime, session: WaitSession, num_returns: int, timeout_s: float | None) -> None:
    with runtime.reactor.lock:
        missing = num_returns - len(session.ready)
        if missing <= 0:
            return
        waiter = session.waiter = Waiter(missing)
    try:
        runtime.wait_for(waiter, timeout_s)
    finally:
        session.waiter = None


def _wait_anew(
    runtime: Runtime, refs: list[Any], num_returns: int, timeout_s: float | None
) -> tuple[list[Any], list[Any]]:
    """Wait by looking at every ref."""
    waiter = Waiter(0)
    registered: list[Any] = []
    with runtime.reactor.lock:
        if dropped:
            runtime.objects.drain_dropped()
        missing = num_returns
        for ref in refs:
            if _is_ready(ref):
                missing -= 1
                if missing == 0:
                    break
        if missing > 0:
            if runtime.lost is not None:
                raise runtime.lost
            registered = [ref for ref in refs if not _is_ready(ref)]
            for ref in registered:
                _waiters_of(ref).append(waiter)
            waiter.pending = missing
            waiter.done = False
            runtime.objects.resolve([ref._entry for ref in registered if type(ref) is ObjectRef])
    if registered:
        try:
            runtime.wait_for(waiter, timeout_s)
        finally:
            with runtime.reactor.lock:
                for ref in registered:
                    waiters = _waiters_of(ref)
                    if waiter in waiters:
                        waiters.remove(waiter)
    return _split(refs, num_returns)


def _split(refs: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
    ready: list[Any] = []
    others: list[Any] = []
    for index, ref in enumerate(refs):
        if _is_ready(ref):
            ready.append(ref)
            if len(ready) == num_returns:
                others += refs[index + 1 :]
                break
        else:
            others.append(ref)
    return ready, Rest(others)


def _is_ready(ref: Any) -> bool:
    if type(ref) is ObjectRef:
        return ref._entry.value is not None
    state = ref._state
    return bool(state.items) or state.ended


def _waiters_of(ref: Any) -> list[Any]:
    if type(ref) is ObjectRef:
        entry = ref._entry
        if entry.waiters is None:
            entry.waiters = []
        return entry.waiters
    waiters: list[Any] = ref._state.waiters
    return waiters


# ---------------------------------------------------------------- why


def timed_out(runtime: Runtime, entries: list[ObjectEntry], timeout_s: float | None) -> errors.GetTimeoutError:
    """What a `get` raises when its time is over."""
    pending = [entry for entry in entries if entry.value is None]
    # The same reason may hold for many: it is told once.
    reasons = "; ".join(dict.fromkeys(explain(runtime, entry).rstrip(".") for entry in pending[:3]))
    more = f" (and {len(pending) - 3} more)" if len(pending) > 3 else ""
    trouble = gcs_trouble(runtime)
    text = f"{len(pending)} of {len(entries)} objects were not ready within {timeout_s} s: {reasons}{more}"
    return errors.GetTimeoutError(f"{text}. Besides, {trouble}" if trouble else text)


def gcs_trouble(runtime: Runtime) -> str:
    """Why the GCS does not answer, as the node knows; "" when it does, or the node does not answer either."""
    try:
        return str(runtime.call("node.gcs", timeout_s=1.0)["trouble"])
    except errors.ShoalError:
        return ""


def explain(runtime: Runtime, entry: ObjectEntry, depth: int = 0) -> str:
    """Why an object has no value yet, in a sentence."""
    task: PendingTask | None = entry.task
    why = _why_unmade(runtime, entry, task, depth)
    if task is not None and type(task.result) is Rerun:
        return f"{why}, as the object was lost ({task.result.reason})"
    return why


def _why_unmade(runtime: Runtime, entry: ObjectEntry, task: PendingTask | None, depth: int) -> str:
    if task is None:
        if why := runtime.groups.explain(entry):
            return why
        return f"object {entry.oid.hex()[:12]} is made by a task of another process"
    name = task.template.wire.name
    if task.missing:
        text = f"{name} waits for {task.missing} of its arguments"
        unknown = [dependency for _, dependency in task.deps or () if dependency.value is None]
        if not unknown or depth >= EXPLAIN_DEPTH_MAX:
            return text
        return f"{text}: {explain(runtime, unknown[0], depth + 1)}"
    if task.lease is not None:
        peer = task.lease.connection.attachment
        return f"{name} was sent to the worker with pid {peer.pid} and runs or waits its turn there"
    if task.queue is not None:
        actor_id = task.queue.actor_id
        why = runtime.actor_calls.why_unreached(actor_id) or _ask(runtime, {"actor_id": actor_id})
        return f"{name} waits for its actor, which is {task.queue.state}{': ' + why if why else ''}"
    klass = task.template.klass
    why = klass.in_name_of(task, _ask(runtime, {"class_no": klass.number})) if klass is not None else ""
    return f"{name} waits for a worker{': ' + why if why else ''}"


def _ask(runtime: Runtime, body: dict[str, Any]) -> str:
    """What the node knows of somebody who waits, or else the GCS; empty when neither says."""
    try:
        if why := str(runtime.call("node.explain", body, timeout_s=1.0)):
            return why
        # It is no node's matter: nobody has room, or what it needs. While the GCS is away nobody waits for its opinion.
        return str(runtime.call("gcs.explain", {"process": runtime.worker_id, **body}, timeout_s=0.2)["why"])
    except errors.ShoalError:
        return ""

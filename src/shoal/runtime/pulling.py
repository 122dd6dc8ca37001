"""Values that lie on other nodes, as the runtime uses them.

Purpose: `get`, `wait` and tasks read such a value like one of this node: the daemon brings a copy into the node's store first.

Design: an entry keeps the place of the original, which is what other processes are told; where this node's copy lies is remembered here, by
object, for as long as that place is good. A copy may make room for others at any time, then its place is stale and it is pulled again; many
threads may ask for the same object, the daemon brings it once.

    load -> place known? -> read it, pinned -> value
              |  ^             `- stale: forget the place
              v  |
             Pull, and wait for the answer: like a `get` that waits, so a worker's CPU is lent

Threads that want the same value wait for one answer, and it is noted also when nobody waits any more: who polls finds it the next time.
`_failed` is where a value that cannot be had becomes an error; `report_losses` has what is lost made anew.

What it does not do: move bytes (the daemons), or count references (`objects`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.protocol import errors
from shoal.protocol.messages import Answer, Pull, Stored
from shoal.runtime.own_daemon import Watch, stopped, wait_beside
from shoal.runtime.reactor import Waiter
from shoal.store.client import StaleBlock

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.jobs import Job
    from shoal.runtime.objects import ObjectEntry

PLACES_MAX = 4096  #: of copies that are remembered; the oldest are forgotten
LOOK_MAX_S = 1.0  #: for the daemon to say which of some values are lost


class Told:
    """Stands where a Waiter does, for those who do not wait in a thread: passes the answer on."""

    __slots__ = ("then",)

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def arrived(self) -> None:
        """The answer is here."""
        self.then()

    finish = arrived


class _Coming:
    """A value that was asked for, and the threads that wait for it. Stands where a Waiter does; written under the reactor's lock."""

    __slots__ = ("key", "number", "pulling", "value", "waiters")

    def __init__(self, pulling: Pulling, value: Stored, key: tuple[bytes, bool]) -> None:
        self.pulling = pulling
        self.value = value
        self.key = key
        self.number = 0
        self.waiters: list[Waiter] = []

    def arrived(self) -> None:
        """The daemon has answered, or nothing will come any more."""
        pulling = self.pulling
        slot = pulling.runtime._answers.pop(self.number, None)
        if pulling.coming.get(self.key) is self:
            del pulling.coming[self.key]
        if slot is not None and slot[1]:
            pulling._take(self.value, slot[1][0])
        for waiter in self.waiters:
            waiter.arrived()

    finish = arrived


class Pulling:
    """What one process knows of copies. Written under the reactor's lock."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        #: by object: where the copy lies, or which place has none and why (told once; the object may lie elsewhere by then)
        self.places: dict[bytes, Stored | tuple[Stored, Exception]] = {}
        #: by object, and whether it is for a task: what threads have asked for and the daemon has not answered
        self.coming: dict[tuple[bytes, bool], _Coming] = {}

    def is_abroad(self, value: Any) -> bool:
        """Whether a value lies in another node's store."""
        return type(value) is Stored and value.node != self.runtime.node_id and value.node != b""

    # ---------------------------------------------------------------- reading

    def read(self, stored: Stored, until: float | None = None, for_task: bool = False) -> memoryview:
        """The bytes of a value of another node, pinned in this node's store.

        Raises:
            ObjectLostError: no copy can be had.
            ObjectStoreFullError, OutOfDiskError: this node has no room for one.
            GetTimeoutError: it did not come until then.
        """
        runtime = self.runtime
        while True:
            place = self.places.get(stored.oid)
            store = runtime.store
            if isinstance(place, tuple):
                self.places.pop(stored.oid, None)
                failed, error = place
                del place
                try:
                    if _is_same(failed, stored):
                        raise error
                finally:
                    del error  # its traceback refers to this frame, and to those that have the ref
            elif place is not None and store is not None:
                try:
                    return store.read(place)
                except StaleBlock:
                    self.places.pop(stored.oid, None)
            if not self._fetch([stored], until, for_task):
                why = stopped(runtime.daemon_pid)
                why = f". Of this node's daemon: {why}" if why else ""
                raise errors.GetTimeoutError(f"object {stored.oid.hex()} did not come from its node in time{why}")

    def bring(
        self, entries: list[ObjectEntry], until: float | None, enough: int = 0, watch: Watch | None = None
    ) -> bool:
        """See that the values of these entries, which are known, are on this node, at the same time: of all, or of `enough`; False when the time is
        over.

        What cannot be had counts as brought: see `report_losses`.
        """
        missing = {entry.oid: entry.value for entry in entries if not self.is_here(entry)}
        needed = min(len(missing), (enough or len(entries)) - (len(entries) - len(missing)))
        return needed <= 0 or self._fetch(list(missing.values()), until, False, needed, watch)  # type: ignore[arg-type]

    def is_here(self, entry: ObjectEntry) -> bool:
        """Whether a known value can be read without pulling it, as far as this process knows; what cannot be had is."""
        value = entry.value
        if not self.is_abroad(value):
            return True
        place = self.places.get(entry.oid)
        return place is not None and (not isinstance(place, tuple) or _is_same(place[0], value))  # type: ignore[arg-type]

    def report_losses(self, entries: Iterable[ObjectEntry]) -> bool:
        """Have made anew what could not be brought as it is lost; whether anything was. Its entries have no value then, or the reason why not."""
        any_lost = False
        for entry in entries:
            value = entry.value
            if type(value) is not Stored or entry.oid not in self.places or not self.is_abroad(value):
                continue
            with self.runtime.reactor.lock:
                reason = self.take_loss(value)
                if reason:
                    any_lost = True
                    self.runtime.remaker.report_lost(entry, value, reason)
        return any_lost

    def look_at(self, entries: Iterable[ObjectEntry]) -> bool:
        """Have made anew what lay on nodes that are dead, as the daemon knows; nothing is brought. Whether anything was.

        What the daemon does not answer in time is left alone.
        """
        abroad = [(entry, entry.value) for entry in entries if not self.is_here(entry)]
        if not abroad or self.runtime.lost is not None:
            return False
        waiter = Waiter(len(abroad))
        lost: list[tuple[ObjectEntry, Stored, str]] = []
        with self.runtime.reactor.lock:
            for entry, value in abroad:

                def looked(reason: str, entry: ObjectEntry = entry, value: Any = value) -> None:
                    if reason:
                        lost.append((entry, value, reason))
                    waiter.arrived()

                self.look(value, looked)  # type: ignore[arg-type]
        self.runtime.reactor.wait(waiter, perf_counter() + LOOK_MAX_S)
        with self.runtime.reactor.lock:
            for entry, value, reason in lost:
                self.runtime.remaker.report_lost(entry, value, reason)
            return bool(lost)

    def take_loss(self, value: Stored) -> str:
        """Why this very place was found lost, if nobody was told of that yet; else empty. Caller holds the lock."""
        told = self.places.get(value.oid)
        if not isinstance(told, tuple) or type(told[1]) is not errors.ObjectLostError or not _is_same(told[0], value):
            return ""
        self.places.pop(value.oid, None)
        return str(told[1])

    def look(self, value: Stored, then: Callable[[str], None]) -> None:
        """Ask whether a value is lost with the other node that it lay on; nothing is brought. `then` is told why it is lost, or nothing, under the
        lock. Caller holds the lock."""
        runtime = self.runtime
        number = 0

        def answered() -> None:
            slot = runtime._answers.pop(number, None)
            error = slot[1][0].error if slot is not None and slot[1] else []
            then(error[1] if error and error[0] == "ObjectLost" else "")

        number = self._ask(value, Told(answered), False, look=True)

    def _fetch(
        self,
        values: list[Stored],
        until: float | None,
        for_task: bool,
        enough: int = 0,
        watch: Watch | None = None,
    ) -> bool:
        """Wait until each, or `enough`, has its place, or the reason why not; False when the time is over."""
        runtime = self.runtime
        waiter = Waiter(enough or len(values))
        awaited: list[_Coming] = []
        try:
            with runtime.reactor.lock:
                awaited += [self._come(value, waiter, for_task) for value in values]
            done = wait_beside(runtime, waiter, until, watch or Watch(runtime, until))
        finally:
            with runtime.reactor.lock:
                for coming in awaited:
                    if waiter in coming.waiters:
                        coming.waiters.remove(waiter)
        if runtime.lost is not None and not all(value.oid in self.places for value in values):
            raise runtime.lost
        return done

    def _come(self, value: Stored, waiter: Waiter, for_task: bool) -> _Coming:
        """Ask for a value, or wait with those who have. Caller holds the lock."""
        key = (value.oid, for_task)
        coming = self.coming.get(key)
        if coming is None or not _is_same(coming.value, value):
            coming = _Coming(self, value, key)
            coming.number = self._ask(value, coming, for_task)
            self.coming[key] = coming
        coming.waiters.append(waiter)
        return coming

    def _ask(self, value: Stored, waiter: Any, for_task: bool, look: bool = False) -> int:
        """Send a Pull; its answer will be told to `waiter`. Caller holds the lock."""
        runtime = self.runtime
        daemon = runtime.reactor.causal
        if daemon is None or runtime.lost is not None:
            raise runtime.lost or errors.NodeDaemonDiedError("the node daemon is gone")
        runtime._requests += 1
        number = runtime._requests
        runtime._answers[number] = (waiter, [])
        daemon.send_now(Pull(number, value, False, for_task, look))
        return number

    def _take(self, value: Stored, answer: Answer) -> None:
        """Note what the daemon has said of a value."""
        self.places.pop(value.oid, None)
        self.places[value.oid] = (
            (value, self._failed(value, answer.error))
            if answer.error
            else msgspec.convert(answer.body["stored"], Stored)
        )
        while len(self.places) > PLACES_MAX:
            self.places.pop(next(iter(self.places)), None)

    def _failed(self, value: Stored, error: list[str]) -> Exception:
        """The error for a value that cannot be had."""
        kind, text = error
        if kind == "ObjectLost":
            return errors.ObjectLostError(text, object_id=value.oid.hex())
        if kind == "ObjectFetchTimedOut":
            return errors.ObjectFetchTimedOutError(text, object_id=value.oid.hex())
        return errors.OutOfDiskError(text) if kind == "OutOfDisk" else errors.ObjectStoreFullError(text)

    # ---------------------------------------------------------------- without waiting

    def when_here(self, entry: ObjectEntry, then: Callable[[], None]) -> bool:
        """See that a known value is on this node; if it is not, `then` is called outside of the lock when it is, or cannot be had.

        Returns:
            Whether it is here: then nothing is called.
        """
        return self._when_value_here(entry.value, then, entry)

    def _when_value_here(self, value: Any, then: Callable[[], None], entry: ObjectEntry | None = None) -> bool:
        """As `when_here`; without an entry, what is lost is left to who reads it."""
        runtime = self.runtime
        if not self.is_abroad(value) or value.oid in self.places or runtime.lost is not None:
            return True
        number = 0

        def answered() -> None:
            slot = runtime._answers.pop(number, None)
            if slot is not None and slot[1] and runtime.lost is None:
                self._take(value, slot[1][0])
                reason = self.take_loss(value) if entry is not None else ""
                if entry is not None and reason:
                    runtime.remaker.report_lost(entry, value, reason)
                    runtime.when_known(entry, known)
                    return
            runtime.reactor.later.append(then)

        def known(entry: ObjectEntry) -> None:
            if self.when_here(entry, then):
                runtime.reactor.later.append(then)

        with runtime.reactor.lock:
            number = self._ask(value, Told(answered), False)
            runtime.reactor.attend()
        return False

    async def come(self, values: Iterable[Any]) -> None:
        """In asyncio code: see that these values of a task are on this node; what cannot be had counts as here."""
        missing = [value for value in values if self.is_abroad(value) and value.oid not in self.places]
        if not missing:
            return
        import asyncio

        loop = asyncio.get_running_loop()
        for value in missing:
            here: asyncio.Future[None] = loop.create_future()

            def finish(here: asyncio.Future[None] = here) -> None:
                if not here.done():
                    here.set_result(None)

            def deliver(finish: Callable[[], None] = finish) -> None:
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    loop.call_soon_threadsafe(finish)

            if not self._when_value_here(value, deliver):
                await here

    def prefetch(self, job: Job) -> None:
        """A task's arguments that lie elsewhere are on their way before it begins. Caller holds the lock."""
        daemon = self.runtime.reactor.causal
        for value in (job.args, *(value for _, value in job.deps or ())):
            if daemon is not None and self.is_abroad(value) and value.oid not in self.places:
                daemon.send(Pull(0, value, True, True))


def _is_same(one: Stored, other: Stored) -> bool:
    """Whether two places of an object are one."""
    return (one.node, one.generation) == (other.node, other.generation)

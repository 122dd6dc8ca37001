"""The crew of a pool: actors that work off a queue of chunks, and the jobs whose chunks these are.

Purpose: what `multiprocessing.Pool` (`util.multiprocessing`) stands on.

Design: a crew gives each of its actors as many chunks as fill about two milliseconds, so that small ones are pipelined and uneven ones balance
themselves. Who waits for a result collects the replies of all jobs; a tender thread does so while results are expected and nobody waits.

    job --chunks--> crew: queue --> actors (in flight, oldest first)
     ^----------------- results

When an actor's process dies, the chunk that ran gets the error, the chunks behind it go to others, and a new actor takes its place.

How to extend: a kind of result is a `Job` with `_keep`.

What it does not do: cut work into chunks, or call users back.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic, perf_counter, sleep
from typing import Any

import cloudpickle

import shoal
from shoal import exceptions
from shoal.util.causes import RemoteTraceback, original

QUEUED_WORK_S = 0.002  #: what an actor is given in advance
IN_FLIGHT_MAX = 64  #: chunks that one actor has
TENDER_TICK_S = 0.01
PROCESS_GONE = (exceptions.ActorDiedError, exceptions.ActorUnavailableError, exceptions.WorkerCrashedError)


class Raised:
    """An exception in the place of a result."""

    def __init__(self, error: BaseException, text: str) -> None:
        self.error = error
        self.text = text

    def to_raise(self) -> BaseException:
        """The exception with its remote traceback."""
        if self.text and self.error.__cause__ is None:
            self.error.__cause__ = RemoteTraceback(self.text)
        return self.error


class PoolProcess:
    """What runs in an actor."""

    def __init__(self, initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]) -> None:
        if initializer is not None:
            initializer(*initargs)

    def run(self, function: bytes, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> tuple[float, list[Any]]:
        """Do the calls of a chunk; gives the seconds it took and a value or a `Raised` for each."""
        start = perf_counter()
        call = cloudpickle.loads(function)
        results: list[Any] = []
        for args, kwargs in calls:
            try:
                results.append(call(*args, **kwargs))
            except Exception as error:
                results.append(Raised(error, traceback.format_exc()))
        return perf_counter() - start, results


class Chunk:
    """Calls that travel together. `first` is the number of the first one within its job."""

    __slots__ = ("calls", "first", "function", "job", "ref")

    def __init__(self, job: Job, first: int, function: Any, calls: list[Any]) -> None:
        self.job = job
        self.first = first
        self.function = function
        self.calls = calls
        self.ref: Any = None


class Member:
    """One actor of a crew. `in_flight` is in the order of submission: the actor works on its first."""

    __slots__ = ("actor", "depth", "given", "gone", "in_flight")

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.in_flight: list[Chunk] = []
        self.depth = 2  #: chunks that may be in flight, by how long the last one took
        self.given = 0  #: chunks that it has ever had
        self.gone = False  #: its process is dead, or was told to end


class Crew:
    """The actors and the queue. All state is written under `lock`; the engine is called outside of it."""

    def __init__(self, size: int, make_actor: Callable[[], Any], chunks_per_actor: int | None) -> None:
        self.lock = threading.Lock()
        self._make_actor = make_actor
        self._chunks_per_actor = chunks_per_actor
        self.members = [Member(make_actor()) for _ in range(size)]
        self._waiting: deque[Chunk] = deque()
        self._pumping = False
        self._again = False
        self.terminated = False
        #: held by the thread that waits for the actors' replies
        self._collecting = threading.Lock()
        #: user threads that wait for results, and when the last of them collected: the tender stays out of their way
        self._users = 0
        self._last_user_s = 0.0
        self._tender_wanted = threading.Event()
        self._tender: threading.Thread | None = None

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Queue chunks and hand out what the actors can take."""
        with self.lock:
            self._waiting.extend(chunks)
        self._pump()

    def collect(self, timeout_s: float, patience_s: float) -> bool:
        """Take in what the actors have done, waiting at most `timeout_s` for the first of it.

        One thread at a time does this; whether this one did. Others give up after `patience_s`.
        """
        if not self._collecting.acquire(timeout=patience_s):
            return False
        try:
            with self.lock:
                flying = {
                    chunk.ref: (member, chunk)
                    for member in self.members
                    for chunk in member.in_flight
                    if chunk.ref is not None
                }
            if not flying:
                return False
            ready, rest = shoal.wait(list(flying), num_returns=1, timeout=timeout_s)
            if ready and rest:
                more, _ = shoal.wait(rest, num_returns=len(rest), timeout=0)
                ready = [*ready, *more]
            for ref in ready:
                self._arrived(*flying[ref])
        finally:
            self._collecting.release()
        if ready:
            self._pump()
        return True

    def user_waits(self, begins: bool) -> None:
        """A user thread begins or ends to wait for results."""
        with self.lock:
            self._users += 1 if begins else -1
            self._last_user_s = monotonic()

    def tend(self) -> None:
        """Somebody expects progress without waiting: see to it that there is a thread for it."""
        with self.lock:
            if self._tender is None:
                self._tender = threading.Thread(target=self._run_tender, name="shoal-pool-tender", daemon=True)
                self._tender.start()
        self._tender_wanted.set()

    def _run_tender(self) -> None:
        while not self.terminated:
            with self.lock:
                if not self.busy():
                    self._tender_wanted.clear()
                user_there = self._users > 0 or monotonic() - self._last_user_s < TENDER_TICK_S
            if not self._tender_wanted.wait(1.0):
                continue
            try:
                if user_there or not self.collect(TENDER_TICK_S, 0.0):
                    sleep(TENDER_TICK_S)
            except Exception:
                if not shoal.is_initialized():
                    return  # the session ended under the pool
                traceback.print_exc()
                sleep(1.0)

    def busy(self) -> bool:
        """Whether chunks wait or run. Call it under the lock."""
        return bool(self._waiting) or any(member.in_flight for member in self.members)

    def stop(self) -> list[Chunk]:
        """Kill the actors; gives the chunks that will not be done."""
        with self.lock:
            self.terminated = True
            lost = [*self._waiting, *(chunk for member in self.members for chunk in member.in_flight)]
            members, self.members = self.members, []
            self._waiting.clear()
        for member in members:
            member.gone = True
            shoal.kill(member.actor)
        for chunk in lost:
            if chunk.ref is not None:
                chunk.ref.future()  # somebody who takes the error: it is of our own making
        return lost

    def _pump(self) -> None:
        """One thread at a time hands chunks out, so that each actor gets them in order; others leave a note."""
        with self.lock:
            self._again = True
            if self._pumping:
                return
            self._pumping = True
        while True:
            with self.lock:
                pairs = self._assign() if self._again else []
                if not pairs:
                    self._again = False
                    self._pumping = False
                    return
            for member, chunk in pairs:
                chunk.ref = member.actor.run.remote(chunk.function, chunk.calls)

    def _assign(self) -> list[tuple[Member, Chunk]]:
        pairs = []
        while self._waiting and not self.terminated:
            free = [
                member for member in self.members if len(member.in_flight) < member.depth and not self._spent(member)
            ]
            if not free:
                break
            member = min(free, key=lambda member: len(member.in_flight))
            chunk = self._waiting.popleft()
            member.in_flight.append(chunk)
            member.given += 1
            pairs.append((member, chunk))
        return pairs

    def _spent(self, member: Member) -> bool:
        return self._chunks_per_actor is not None and member.given >= self._chunks_per_actor

    def _arrived(self, member: Member, chunk: Chunk) -> None:
        """The reply to a chunk can be had."""
        try:
            seconds, results = shoal.get(chunk.ref)
        except PROCESS_GONE as error:
            self._process_gone(member, chunk, error)
        except Exception as error:
            self._finished(member, chunk, 0.0)
            chunk.job.arrived(chunk, [Raised(original(error), "")] * len(chunk.calls))
        else:
            self._finished(member, chunk, seconds)
            chunk.job.arrived(chunk, results)

    def _finished(self, member: Member, chunk: Chunk, seconds: float) -> None:
        retired = None
        with self.lock:
            if chunk in member.in_flight:
                member.in_flight.remove(chunk)
            member.depth = min(IN_FLIGHT_MAX, 1 + int(QUEUED_WORK_S / max(seconds, 1e-5)))
            if self._spent(member) and not member.in_flight and member in self.members:
                retired = member
                self.members[self.members.index(member)] = Member(self._make_actor())
        if retired is not None:
            retired.gone = True
            shoal.kill(retired.actor)

    def _process_gone(self, member: Member, chunk: Chunk, error: BaseException) -> None:
        """Charge the chunk that ran, requeue those behind it, and replace the actor. Only the first report of a death counts."""
        with self.lock:
            if member.gone or self.terminated:
                return
            member.gone = True
            taken_back, member.in_flight = member.in_flight, []
            charged = taken_back[0] if taken_back else chunk
            self._waiting.extendleft(reversed(taken_back[1:]))
            if member in self.members:
                self.members[self.members.index(member)] = Member(self._make_actor())
        charged.job.arrived(charged, [Raised(error, "")] * len(charged.calls))


class Job:
    """What one call of the pool's API asked for, as its chunks come back."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._changed = threading.Condition()
        #: chunks not yet back, in the order of submission
        self._open: dict[Chunk, None] = {}

    def begin(self, chunks: list[Chunk]) -> None:
        """Send chunks off."""
        with self._changed:
            for chunk in chunks:
                self._open[chunk] = None
        self._crew.add(chunks)

    def arrived(self, chunk: Chunk, results: list[Any]) -> None:
        """A chunk is back. Called from any thread."""
        with self._changed:
            if self._open.pop(chunk, self) is self:
                return
            self._keep(chunk, results)
            self._changed.notify_all()

    def _keep(self, chunk: Chunk, results: list[Any]) -> None:
        """Take the results; under the condition's lock."""
        raise NotImplementedError

    def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Collect replies until `condition` holds, at most `timeout_s` seconds; whether it does."""
        if condition():
            return True
        crew = self._crew
        deadline = None if timeout_s is None else monotonic() + timeout_s
        crew.user_waits(True)
        try:
            while not condition():
                left_s = None if deadline is None else deadline - monotonic()
                if left_s is not None and left_s <= 0:
                    return False
                # Never for long: another thread may hand out chunks of this job that this one does not wait for.
                slice_s = 0.2 if left_s is None else min(0.2, left_s)
                if not crew.collect(slice_s, 0.0):
                    with self._changed:
                        self._changed.wait_for(condition, min(slice_s, TENDER_TICK_S / 2))
        finally:
            crew.user_waits(False)
        return True

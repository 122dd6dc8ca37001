"""`multiprocessing.Pool` on actors: a program changes its import and runs on the cluster.

Design: a pool is a crew of actors, one per "process", so that what an initializer sets up stays. Work is cut into chunks; a crew keeps a
queue and gives each actor as many chunks as fill about two milliseconds, so small ones are pipelined and uneven ones balance themselves.
Who waits for a result collects the replies of all jobs; a tender thread does so while results are expected and nobody waits. Callbacks
run in a thread of their own, before `get` returns.

    map, starmap, apply, imap ... --> job --chunks--> crew: queue --> actors (in flight, oldest first)
                                       ^------------------ results

When an actor's process dies, the chunk that ran gets the error, the chunks behind it go to others, and a new actor takes its place: unlike
the original, the pool does not hang.

What it does not do: share memory by `Manager` or `Value`; locks and queues of the original cannot travel (use `shoal.util.queue`).
"""

from __future__ import annotations

import itertools
import queue as stdlib_queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import TimeoutError as PoolTimeoutError
from multiprocessing import cpu_count
from time import monotonic, perf_counter, sleep
from typing import Any

import cloudpickle

import shoal
from shoal import exceptions
from shoal.util.causes import RemoteTraceback, original

__all__ = ["AsyncResult", "IMapIterator", "IMapUnorderedIterator", "MapResult", "Pool", "TimeoutError", "cpu_count"]

TimeoutError = PoolTimeoutError  # the name the original has

FUNCTION_INLINE_BYTES_MAX = 8192  #: larger pickled functions go through the store, once
QUEUED_WORK_S = 0.002
IN_FLIGHT_MAX = 64
TENDER_TICK_S = 0.01
CHUNKS_PER_PROCESS = 4  #: of a map without a chunksize, as in the original
PROCESS_GONE = (exceptions.ActorDiedError, exceptions.ActorUnavailableError, exceptions.WorkerCrashedError)


class _Raised:
    """An exception in the place of a result."""

    def __init__(self, error: BaseException, text: str) -> None:
        self.error = error
        self.text = text

    def to_raise(self) -> BaseException:
        """The exception with its remote traceback."""
        if self.text and self.error.__cause__ is None:
            self.error.__cause__ = RemoteTraceback(self.text)
        return self.error


class _Process:
    """What runs in an actor."""

    def __init__(self, initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]) -> None:
        if initializer is not None:
            initializer(*initargs)

    def run(self, function: bytes, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> tuple[float, list[Any]]:
        """Do the calls of a chunk; gives the seconds it took and a value or a `_Raised` for each."""
        start = perf_counter()
        call = cloudpickle.loads(function)
        results: list[Any] = []
        for args, kwargs in calls:
            try:
                results.append(call(*args, **kwargs))
            except Exception as error:
                results.append(_Raised(error, traceback.format_exc()))
        return perf_counter() - start, results


class _Chunk:
    """Calls that travel together. `first` is the number of the first one within its job."""

    __slots__ = ("calls", "first", "function", "job", "ref")

    def __init__(self, job: _Job, first: int, function: Any, calls: list[Any]) -> None:
        self.job = job
        self.first = first
        self.function = function
        self.calls = calls
        self.ref: Any = None


class _Worker:
    """One actor of a crew. `in_flight` is in the order of submission: the actor works on its first."""

    __slots__ = ("actor", "depth", "given", "gone", "in_flight")

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.in_flight: list[_Chunk] = []
        self.depth = 2
        self.given = 0
        self.gone = False


class _Crew:
    """The actors and the queue. All state is written under `lock`; the engine is called outside of it."""

    def __init__(self, size: int, make_actor: Callable[[], Any], chunks_per_actor: int | None) -> None:
        self.lock = threading.Lock()
        self._make_actor = make_actor
        self._chunks_per_actor = chunks_per_actor
        self.workers = [_Worker(make_actor()) for _ in range(size)]
        self._waiting: deque[_Chunk] = deque()
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

    def add(self, chunks: Iterable[_Chunk]) -> None:
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
                    chunk.ref: (worker, chunk)
                    for worker in self.workers
                    for chunk in worker.in_flight
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
        return bool(self._waiting) or any(worker.in_flight for worker in self.workers)

    def stop(self) -> list[_Chunk]:
        """Kill the actors; gives the chunks that will not be done."""
        with self.lock:
            self.terminated = True
            lost = [*self._waiting, *(chunk for worker in self.workers for chunk in worker.in_flight)]
            workers, self.workers = self.workers, []
            self._waiting.clear()
        for worker in workers:
            worker.gone = True
            shoal.kill(worker.actor)
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
            for worker, chunk in pairs:
                chunk.ref = worker.actor.run.remote(chunk.function, chunk.calls)

    def _assign(self) -> list[tuple[_Worker, _Chunk]]:
        pairs = []
        while self._waiting and not self.terminated:
            free = [
                worker for worker in self.workers if len(worker.in_flight) < worker.depth and not self._spent(worker)
            ]
            if not free:
                break
            worker = min(free, key=lambda worker: len(worker.in_flight))
            chunk = self._waiting.popleft()
            worker.in_flight.append(chunk)
            worker.given += 1
            pairs.append((worker, chunk))
        return pairs

    def _spent(self, worker: _Worker) -> bool:
        return self._chunks_per_actor is not None and worker.given >= self._chunks_per_actor

    def _arrived(self, worker: _Worker, chunk: _Chunk) -> None:
        """The reply to a chunk can be had."""
        try:
            seconds, results = shoal.get(chunk.ref)
        except PROCESS_GONE as error:
            self._process_gone(worker, chunk, error)
        except Exception as error:
            self._finished(worker, chunk, 0.0)
            chunk.job.arrived(chunk, [_Raised(original(error), "")] * len(chunk.calls))
        else:
            self._finished(worker, chunk, seconds)
            chunk.job.arrived(chunk, results)

    def _finished(self, worker: _Worker, chunk: _Chunk, seconds: float) -> None:
        retired = None
        with self.lock:
            if chunk in worker.in_flight:
                worker.in_flight.remove(chunk)
            worker.depth = min(IN_FLIGHT_MAX, 1 + int(QUEUED_WORK_S / max(seconds, 1e-5)))
            if self._spent(worker) and not worker.in_flight and worker in self.workers:
                retired = worker
                self.workers[self.workers.index(worker)] = _Worker(self._make_actor())
        if retired is not None:
            retired.gone = True
            shoal.kill(retired.actor)

    def _process_gone(self, worker: _Worker, chunk: _Chunk, error: BaseException) -> None:
        """Charge the chunk that ran, requeue those behind it, and replace the actor. Only the first report of a death counts."""
        with self.lock:
            if worker.gone or self.terminated:
                return
            worker.gone = True
            orphans, worker.in_flight = worker.in_flight, []
            charged = orphans[0] if orphans else chunk
            self._waiting.extendleft(reversed(orphans[1:]))
            if worker in self.workers:
                self.workers[self.workers.index(worker)] = _Worker(self._make_actor())
        charged.job.arrived(charged, [_Raised(error, "")] * len(charged.calls))


class _Job:
    """What one call of the pool's API asked for, as its chunks come back."""

    def __init__(self, crew: _Crew) -> None:
        self._crew = crew
        self._changed = threading.Condition()
        #: chunks not yet back, in the order of submission
        self._open: dict[_Chunk, None] = {}

    def begin(self, chunks: list[_Chunk]) -> None:
        """Send chunks off."""
        with self._changed:
            for chunk in chunks:
                self._open[chunk] = None
        self._crew.add(chunks)

    def arrived(self, chunk: _Chunk, results: list[Any]) -> None:
        """A chunk is back. Called from any thread."""
        with self._changed:
            if self._open.pop(chunk, self) is self:
                return
            self._keep(chunk, results)
            self._changed.notify_all()

    def _keep(self, chunk: _Chunk, results: list[Any]) -> None:
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


class AsyncResult(_Job):
    """The result of `apply_async`, `map_async` or `starmap_async`, when it is there."""

    def __init__(self, pool: Pool, single: bool, callback: Any, error_callback: Any) -> None:
        super().__init__(pool._crew)
        self._pool = pool
        self._single = single
        self._callback = callback
        self._error_callback = error_callback
        self._values: list[Any] = []
        self._done = False

    def expect(self, count: int) -> None:
        """Make room for `count` values; none at all means that it is done."""
        self._values = [None] * count
        if count == 0:
            self._complete()

    def _keep(self, chunk: _Chunk, results: list[Any]) -> None:
        self._values[chunk.first : chunk.first + len(results)] = results
        if not self._open:
            self._complete()

    def _first_error(self) -> _Raised | None:
        return next((value for value in self._values if type(value) is _Raised), None)

    def _complete(self) -> None:
        error = self._first_error()
        callback, argument = (self._error_callback, error.to_raise()) if error else (self._callback, self._outcome())
        if callback is None:
            self._done = True
            return

        def run() -> None:
            try:
                callback(argument)
            except Exception:
                traceback.print_exc()
            with self._changed:
                self._done = True
                self._changed.notify_all()

        self._pool._call_back(run)

    def _outcome(self) -> Any:
        return self._values[0] if self._single else self._values

    def ready(self) -> bool:
        """Whether the result is there."""
        return self.wait_until(lambda: self._done, 0.0)

    def successful(self) -> bool:
        """Whether no call raised. ValueError when the result is not there yet."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._first_error() is None

    def wait(self, timeout: float | None = None) -> None:
        """Sleep until the result is there, at most `timeout` seconds."""
        self.wait_until(lambda: self._done, timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The result; raises what the call raised, or multiprocessing.TimeoutError after `timeout` seconds."""
        if not self.wait_until(lambda: self._done, timeout):
            raise PoolTimeoutError(f"no result within {timeout} s")
        error = self._first_error()
        if error is not None:
            raise error.to_raise()
        return self._outcome()


MapResult = AsyncResult


class _IMap(_Job):
    """An iterator over results whose input is read only some way ahead."""

    def __init__(self, pool: Pool, function: Any, items: Iterable[Any], chunksize: int) -> None:
        super().__init__(pool._crew)
        self._function = function
        self._items = iter(items)
        self._chunksize = chunksize
        self._window = max(64, 16 * pool._processes)
        self._sent = 0
        self._input_error: BaseException | None = None
        self._exhausted = False
        self._fill()
        self._crew.tend()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.next()

    def _fill(self) -> None:
        chunks: list[_Chunk] = []
        while not self._exhausted and len(self._open) + self._kept() + len(chunks) < self._window:
            calls: list[Any] = []
            try:
                for item in itertools.islice(self._items, self._chunksize):
                    calls.append(((item,), {}))
            except Exception as error:
                self._input_error, self._exhausted = error, True
            if len(calls) < self._chunksize:
                self._exhausted = True
            if calls:
                chunks.append(_Chunk(self, self._sent, self._function, calls))
                self._sent += len(calls)
        if chunks:
            self.begin(chunks)

    def next(self, timeout: float | None = None) -> Any:
        """The next result. StopIteration at the end, multiprocessing.TimeoutError after `timeout` seconds."""
        self._fill()
        if not self.wait_until(lambda: self._available() or not self._open, timeout):
            raise PoolTimeoutError(f"no result within {timeout} s")
        if not self._available():
            if self._input_error is not None:
                error, self._input_error = self._input_error, None
                raise error
            raise StopIteration
        value = self._take()
        if type(value) is _Raised:
            raise value.to_raise()
        return value

    def _kept(self) -> int:
        raise NotImplementedError

    def _available(self) -> bool:
        raise NotImplementedError

    def _take(self) -> Any:
        raise NotImplementedError


class IMapIterator(_IMap):
    """Results in the order of the input."""

    def __init__(self, *arguments: Any) -> None:
        self._by_number: dict[int, Any] = {}
        self._next = 0
        super().__init__(*arguments)

    def _keep(self, chunk: _Chunk, results: list[Any]) -> None:
        self._by_number.update(enumerate(results, chunk.first))

    def _kept(self) -> int:
        return len(self._by_number) // self._chunksize

    def _available(self) -> bool:
        return self._next in self._by_number

    def _take(self) -> Any:
        value = self._by_number.pop(self._next)
        self._next += 1
        return value


class IMapUnorderedIterator(_IMap):
    """Results in the order in which they become ready."""

    def __init__(self, *arguments: Any) -> None:
        self._ready: deque[Any] = deque()
        super().__init__(*arguments)

    def _keep(self, chunk: _Chunk, results: list[Any]) -> None:
        self._ready.extend(results)

    def _kept(self) -> int:
        return len(self._ready) // self._chunksize

    def _available(self) -> bool:
        return bool(self._ready)

    def _take(self) -> Any:
        return self._ready.popleft()


class Pool:
    """A pool of `processes` actors (default: the cluster's CPUs) with the interface of multiprocessing.Pool.

    Args:
        processes: how many; more than CPUs is allowed.
        initializer, initargs: called once in each process before its first work.
        maxtasksperchild: replace a process after so many chunks of work.
        context: ignored; there is one way to start a process here.
        address: of the session to use when none is open, as for `shoal.init`.
        remote_args: options of the actors, as for `shoal.remote`.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        address: str | None = None,
        remote_args: dict[str, Any] | None = None,
        *,
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
    ) -> None:
        address = address or ray_address
        if not shoal.is_initialized():
            shoal.init(address=address)
        if processes is None:
            processes = max(1, int(shoal.cluster_resources().get("CPU", 1)))
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if maxtasksperchild is not None and maxtasksperchild < 1:
            raise ValueError("maxtasksperchild must be a positive int or None")
        # No CPU while alive, so that a pool never keeps tasks of the same program from running.
        options = {"num_cpus": 0, **(remote_args or ray_remote_args or {})}
        process_class = shoal.remote(_Process).options(**options)
        arguments = tuple(initargs)
        self._processes = processes
        self._crew = _Crew(processes, lambda: process_class.remote(initializer, arguments), maxtasksperchild)
        self._closed = False
        self._callbacks: stdlib_queue.SimpleQueue[Callable[[], None]] | None = None
        self._callback_lock = threading.Lock()

    # ------------------------------------------------------------ one call

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: dict[str, Any] | None = None) -> Any:
        """`func(*args, **kwds)` in a process of the pool."""
        return self._apply(func, args, kwds, None, None).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: dict[str, Any] | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """`apply` without waiting."""
        result = self._apply(func, args, kwds, callback, error_callback)
        self._crew.tend()
        return result

    def _apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any],
        kwds: dict[str, Any] | None,
        callback: Any,
        error_callback: Any,
    ) -> AsyncResult:
        self._check_open()
        result = AsyncResult(self, True, callback, error_callback)
        result.expect(1)
        result.begin([_Chunk(result, 0, self._pickled(func), [(tuple(args), dict(kwds or {}))])])
        return result

    # ------------------------------------------------------------ many calls

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """`[func(item) for item in iterable]`, in parallel."""
        values: list[Any] = self._map(func, [((item,), {}) for item in iterable], chunksize, None, None).get()
        return values

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """`map` without waiting."""
        result = self._map(func, [((item,), {}) for item in iterable], chunksize, callback, error_callback)
        self._crew.tend()
        return result

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """`[func(*item) for item in iterable]`, in parallel."""
        values: list[Any] = self._map(func, [(tuple(item), {}) for item in iterable], chunksize, None, None).get()
        return values

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """`starmap` without waiting."""
        result = self._map(func, [(tuple(item), {}) for item in iterable], chunksize, callback, error_callback)
        self._crew.tend()
        return result

    def imap(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = 1) -> IMapIterator:
        """Results one by one in order. The input is read only some way ahead, so it may be endless."""
        self._check_open()
        return IMapIterator(self, self._pickled(func), iterable, _checked_chunksize(chunksize))

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> IMapUnorderedIterator:
        """Results one by one, whichever is ready."""
        self._check_open()
        return IMapUnorderedIterator(self, self._pickled(func), iterable, _checked_chunksize(chunksize))

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Take no more work."""
        self._closed = True

    def terminate(self) -> None:
        """End the processes now; what was not done raises RuntimeError at its `get`."""
        self._closed = True
        lost = _Raised(RuntimeError("the pool was terminated before this was done"), "")
        for chunk in self._crew.stop():
            chunk.job.arrived(chunk, [lost] * len(chunk.calls))
        self._end_callbacks()

    def join(self) -> None:
        """Wait until all work is done. ValueError unless the pool was closed or terminated."""
        if not self._closed:
            raise ValueError("Pool is still running")
        while True:
            with self._crew.lock:
                if self._crew.terminated or not self._crew.busy():
                    break
            if not self._crew.collect(0.2, TENDER_TICK_S):
                sleep(TENDER_TICK_S / 2)
        if not self._crew.terminated:
            self._crew.stop()
        self._end_callbacks()

    def __enter__(self) -> Pool:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    # ------------------------------------------------------------ inside

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("Pool not running")

    def _map(
        self, func: Callable[..., Any], calls: list[Any], chunksize: int | None, callback: Any, error_callback: Any
    ) -> AsyncResult:
        self._check_open()
        if chunksize is None:
            chunksize = max(1, -(-len(calls) // (self._processes * CHUNKS_PER_PROCESS)))
        chunksize = _checked_chunksize(chunksize)
        function = self._pickled(func)
        result = AsyncResult(self, False, callback, error_callback)
        result.expect(len(calls))
        result.begin(
            [
                _Chunk(result, first, function, calls[first : first + chunksize])
                for first in range(0, len(calls), chunksize)
            ]
        )
        return result

    @staticmethod
    def _pickled(func: Callable[..., Any]) -> Any:
        """The function as it travels: bytes, or a ref to them when they are many."""
        if not callable(func):
            raise TypeError(f"a pool needs a callable, got {type(func).__name__}")
        pickled = cloudpickle.dumps(func)
        return pickled if len(pickled) <= FUNCTION_INLINE_BYTES_MAX else shoal.put(pickled)

    def _call_back(self, run: Callable[[], None]) -> None:
        with self._callback_lock:
            if self._callbacks is None:
                self._callbacks = stdlib_queue.SimpleQueue()
                threading.Thread(target=_run_callbacks, args=(self._callbacks,), name="shoal-pool", daemon=True).start()
            self._callbacks.put(run)

    def _end_callbacks(self) -> None:
        with self._callback_lock:
            if self._callbacks is not None:
                self._callbacks.put(_END)
                self._callbacks = None


def _END() -> None:  # noqa: N802
    """The last entry of a pool's callbacks."""


def _run_callbacks(callbacks: stdlib_queue.SimpleQueue[Callable[[], None]]) -> None:
    for run in iter(callbacks.get, _END):
        run()


def _checked_chunksize(chunksize: int | None) -> int:
    if chunksize is None:
        return 1
    if chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize}")
    return chunksize

"""`multiprocessing.Pool` on actors: a program changes its import and runs on the cluster.

Design: a pool is a crew of actors (`crew`), one per "process", so that what an initializer sets up stays. Each call of the pool's API is a job,
whose work is cut into chunks:

    map, starmap, apply, imap ... --> job --chunks--> crew --> actors

Callbacks run in a thread of their own, before `get` returns. Unlike the original, the pool does not hang when a process dies: the chunk that ran
gets the error, and a new process takes the place.

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
from time import sleep
from typing import Any

import cloudpickle

import shoal
from shoal.util.crew import TENDER_TICK_S, Chunk, Crew, Job, PoolProcess, Raised

__all__ = ["AsyncResult", "IMapIterator", "IMapUnorderedIterator", "MapResult", "Pool", "TimeoutError", "cpu_count"]

TimeoutError = PoolTimeoutError  # the name the original has

FUNCTION_INLINE_BYTES_MAX = 8192  #: larger pickled functions go through the store, once
CHUNKS_PER_PROCESS = 4  #: of a map without a chunksize, as in the original


class AsyncResult(Job):
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

    def _keep(self, chunk: Chunk, results: list[Any]) -> None:
        self._values[chunk.first : chunk.first + len(results)] = results
        if not self._open:
            self._complete()

    def _first_error(self) -> Raised | None:
        return next((value for value in self._values if type(value) is Raised), None)

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


class _IMap(Job):
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
        chunks: list[Chunk] = []
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
                chunks.append(Chunk(self, self._sent, self._function, calls))
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
        if type(value) is Raised:
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

    def _keep(self, chunk: Chunk, results: list[Any]) -> None:
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

    def _keep(self, chunk: Chunk, results: list[Any]) -> None:
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
        process_class = shoal.remote(PoolProcess).options(**options)
        arguments = tuple(initargs)
        self._processes = processes
        self._crew = Crew(processes, lambda: process_class.remote(initializer, arguments), maxtasksperchild)
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
        result.begin([Chunk(result, 0, self._pickled(func), [(tuple(args), dict(kwds or {}))])])
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
        lost = Raised(RuntimeError("the pool was terminated before this was done"), "")
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
                Chunk(result, first, function, calls[first : first + chunksize])
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

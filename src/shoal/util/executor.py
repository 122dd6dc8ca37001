"""The standard library's Executor over tasks: code written for concurrent.futures runs on the cluster.

Design: every call is a task. A future's `result` drives the engine itself instead of sleeping on a condition, so that waiting for one costs
what `shoal.get` costs. Functions that are importable become remote functions once; others (lambdas, partials, bound methods) travel with
each call, as their state may have changed. With `max_workers` the surplus waits here, not at the workers.

What it does not do: own processes. `shutdown` ends this executor, not the session.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from time import monotonic
from types import FunctionType
from typing import Any

import shoal
from shoal.util.causes import original


class TaskFuture(futures.Future[Any]):
    """A concurrent.futures.Future of a task. `ref` is its ObjectRef once it was submitted, else None."""

    def __init__(self) -> None:
        super().__init__()
        self.ref: Any = None

    def cancel(self) -> bool:
        """Give the call up if it has not started, as far as this side knows; True when it did."""
        cancelled = super().cancel()
        if cancelled and self.ref is not None:
            shoal.cancel(self.ref)
        return cancelled

    def result(self, timeout: float | None = None) -> Any:
        """The value; raises what the call raised, TimeoutError after `timeout` seconds, or CancelledError."""
        return super().result(self._drive(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None."""
        return super().exception(self._drive(timeout))

    def _drive(self, timeout_s: float | None) -> float | None:
        """Wait in the engine while there is something to wait for; gives the time that is left."""
        if self.done() or self.ref is None:
            return timeout_s
        start = monotonic()
        shoal.wait([self.ref], num_returns=1, timeout=timeout_s)
        return None if timeout_s is None else max(0.0, timeout_s - (monotonic() - start)) + 0.05


class Executor(futures.Executor):
    """Runs calls as tasks.

    Args:
        max_workers: how many calls may be submitted at a time; None leaves it to the cluster's resources.
        options: of the tasks, as for `shoal.remote` (num_cpus, resources, max_retries, ...).
    """

    def __init__(self, max_workers: int | None = None, **options: Any) -> None:
        if max_workers is not None and max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, got {max_workers}")
        self._max_workers = max_workers
        self._options = options
        self._any_call = self._remote(_call)
        #: remote functions of importable functions; the executor keeps nobody's function alive
        self._known: weakref.WeakKeyDictionary[Callable[..., Any], Any] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._flying: set[TaskFuture] = set()
        self._waiting: deque[tuple[TaskFuture, Callable[[], Any]]] = deque()
        self._shut = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Call `fn(*args, **kwargs)` somewhere. Arguments that are ObjectRefs arrive as their values."""
        future = TaskFuture()
        remote = self._remote_of(fn)
        if remote is None:
            send = lambda: self._any_call.remote(fn, *args, **kwargs)  # noqa: E731
        else:
            send = lambda: remote.remote(*args, **kwargs)  # noqa: E731
        with self._lock:
            if self._shut:
                raise RuntimeError("this executor was shut down; make a new one")
            if self._max_workers is not None and len(self._flying) >= self._max_workers:
                self._waiting.append((future, send))
                return future
            self._flying.add(future)
        self._send(future, send)
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **more: Any,
    ) -> Iterator[Any]:
        """Like `map(fn, *iterables)`, submitted at once, results in order; `chunksize` calls make one task."""
        if chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, got {chunksize}")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **more)
        calls = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        results = super().map(_call_chunk, itertools.repeat(fn), chunks, timeout=timeout, **more)
        return itertools.chain.from_iterable(results)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. `wait` until all are done; `cancel_futures` gives up those that did not start."""
        with self._lock:
            self._shut = True
            given_up = list(self._waiting) if cancel_futures else []
            if cancel_futures:
                self._waiting.clear()
            flying = list(self._flying)
        for future, _ in given_up:
            future.cancel()
            future.set_running_or_notify_cancel()
        if cancel_futures:
            for future in flying:
                future.cancel()
        while wait:
            with self._lock:
                flying = list(self._flying)
            if not flying:
                return
            refs = [future.ref for future in flying if future.ref is not None]
            if refs:
                shoal.wait(refs, num_returns=len(refs))
            futures.wait(flying, timeout=1.0)

    # ------------------------------------------------------------ inside

    def _remote(self, function: Callable[..., Any]) -> Any:
        return shoal.remote(**self._options)(function) if self._options else shoal.remote(function)

    def _remote_of(self, fn: Callable[..., Any]) -> Any:
        """The remote function of an importable function; None for a callable that must travel as a value."""
        if type(fn) is not FunctionType or fn.__module__ == "__main__" or "<locals>" in fn.__qualname__:
            return None
        found = self._known.get(fn)
        if found is None:
            module = sys.modules.get(fn.__module__)
            if getattr(module, fn.__qualname__, None) is not fn:
                return None
            found = self._known[fn] = self._remote(fn)
        return found

    def _send(self, future: TaskFuture, send: Callable[[], Any]) -> None:
        """Submit, outside the lock: the engine may call `_done` of others from here."""
        try:
            ref = send()
        except BaseException as error:
            with self._lock:
                self._flying.discard(future)
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return
        future.ref = ref
        ref.future().add_done_callback(lambda done: self._done(future, done))
        if future.cancelled():
            shoal.cancel(ref)

    def _done(self, future: TaskFuture, done: futures.Future[Any]) -> None:
        following: tuple[TaskFuture, Callable[[], Any]] | None = None
        with self._lock:
            self._flying.discard(future)
            while self._waiting and following is None:
                candidate = self._waiting.popleft()
                if candidate[0].cancelled():
                    candidate[0].set_running_or_notify_cancel()
                    continue
                following = candidate
                self._flying.add(candidate[0])
        if following is not None:
            self._send(*following)
        if not future.set_running_or_notify_cancel():
            return
        error = done.exception()
        if error is not None:
            future.set_exception(original(error))
        else:
            future.set_result(done.result())


def _call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)


def _call_chunk(fn: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
    return [fn(*arguments) for arguments in calls]

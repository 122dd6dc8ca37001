"""A pool of equal actors that share a stream of work.

Design: one call at a time per actor, so an uneven stream balances itself. Whoever asks for a result also hands new work to every actor that
became free meanwhile: a slow first task does not keep the others idle. Results that were not asked for yet wait as refs.

What it does not do: create, restart or kill the actors. They belong to the caller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, Generic, TypeVar

import shoal

Value = TypeVar("Value")


class ActorPool(Generic[Value]):
    """Spreads calls over `actors`, a collection of actor handles.

    >>> pool = ActorPool([Adder.remote(), Adder.remote()])
    >>> list(pool.map(lambda actor, value: actor.double.remote(value), [1, 2, 3, 4]))
    [2, 4, 6, 8]
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle: deque[Any] = deque(actors)
        #: calls in flight: ref -> (number of the submission, actor). An actor is here, or in `_idle`, or popped; never in two places
        self._running: dict[Any, tuple[int, Any]] = {}
        #: finished, not yet handed out: number -> ref, in the order of finishing
        self._finished: dict[int, Any] = {}
        #: submitted while all actors were busy
        self._waiting: deque[tuple[int, Callable[[Any, Value], Any], Value]] = deque()
        self._submitted = 0
        self._next_ordered = 0
        #: numbers that `get_next_unordered` handed out of turn
        self._taken: set[int] = set()

    def map(self, fn: Callable[[Any, Value], Any], values: Iterable[Value]) -> Iterator[Any]:
        """Apply `fn(actor, value)`, which returns a ref, to every value; results in the order of `values`.

        The work is submitted at once, not at the first `next`. Results of earlier submissions are dropped.
        """
        self._drop_all()
        for value in values:
            self.submit(fn, value)
        return self._drain(self.get_next)

    def map_unordered(self, fn: Callable[[Any, Value], Any], values: Iterable[Value]) -> Iterator[Any]:
        """Like `map`, with each result as soon as it is there."""
        self._drop_all()
        for value in values:
            self.submit(fn, value)
        return self._drain(self.get_next_unordered)

    def submit(self, fn: Callable[[Any, Value], Any], value: Value) -> None:
        """Call `fn(actor, value)` on an idle actor, or on the first that becomes idle."""
        number = self._submitted
        self._submitted += 1
        if self._idle:
            self._start(number, fn, value)
        else:
            self._waiting.append((number, fn, value))

    def has_next(self) -> bool:
        """Whether results are outstanding."""
        return bool(self._running or self._finished or self._waiting)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of submission.

        Args:
            timeout: seconds to wait; None waits as long as it takes.
            ignore_if_timedout: on a time-out give that result up, and count it as handed out.

        Raises:
            StopIteration: nothing is outstanding.
            TimeoutError: it was not there in time.
            Whatever the call itself raised.
        """
        if not self.has_next():
            raise StopIteration("no more results to get")
        while self._next_ordered in self._taken:
            self._taken.discard(self._next_ordered)
            self._next_ordered += 1
        number = self._next_ordered
        if not self._wait_until(lambda: number in self._finished, timeout):
            if not ignore_if_timedout:
                raise TimeoutError(f"result number {number} was not ready within {timeout} s")
            self._give_up(number)
            self._next_ordered += 1
            return None
        self._next_ordered += 1
        return shoal.get(self._finished.pop(number))

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Any result, the first to finish first. Arguments and errors as in `get_next`."""
        if not self.has_next():
            raise StopIteration("no more results to get")
        if not self._wait_until(lambda: bool(self._finished), timeout):
            if ignore_if_timedout:
                return None
            raise TimeoutError(f"no result was ready within {timeout} s")
        number = next(iter(self._finished))
        self._taken.add(number)
        return shoal.get(self._finished.pop(number))

    def has_free(self) -> bool:
        """Whether an actor is idle and nothing waits for one."""
        self._collect(0)
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> Any:
        """Take an idle actor out of the pool; None when all are busy."""
        return self._idle.popleft() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Add an actor, new or popped before.

        Raises:
            ValueError: it is in the pool already.
        """
        if any(actor is other or actor == other for other in [*self._idle, *(a for _, a in self._running.values())]):
            raise ValueError("this actor belongs to the pool already")
        self._free(actor)

    # ------------------------------------------------------------ inside

    def _start(self, number: int, fn: Callable[[Any, Value], Any], value: Value) -> None:
        actor = self._idle.popleft()
        try:
            ref = fn(actor, value)
            if isinstance(ref, list):  # a method with several returns
                raise TypeError("ActorPool needs a call with one result; this one gave a list of refs")
        except BaseException:
            self._idle.append(actor)
            raise
        self._running[ref] = (number, actor)

    def _free(self, actor: Any) -> None:
        self._idle.append(actor)
        while self._waiting and self._idle:
            self._start(*self._waiting.popleft())

    def _collect(self, timeout_s: float | None) -> bool:
        """Move calls that finished (at least one, unless time runs out) and give their actors new work."""
        if not self._running:
            return False
        running = list(self._running)
        ready, rest = shoal.wait(running, num_returns=1, timeout=timeout_s)
        if ready and rest:
            more, _ = shoal.wait(rest, num_returns=len(rest), timeout=0)
            ready = [*ready, *more]
        for ref in ready:
            number, actor = self._running.pop(ref)
            self._finished[number] = ref
            self._free(actor)
        return bool(ready)

    def _wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        deadline = None if timeout_s is None else monotonic() + timeout_s
        while not condition():
            if not self._running:  # every actor was popped, and work waits for one
                raise RuntimeError("the pool has no actors left for the work that waits; push() one")
            left_s = None if deadline is None else max(0.0, deadline - monotonic())
            if not self._collect(left_s) and left_s == 0.0:
                return condition()
        return True

    def _give_up(self, number: int) -> None:
        """Forget one submission: its actor comes back when it is done with it."""
        self._waiting = deque(item for item in self._waiting if item[0] != number)
        for ref, (running, actor) in list(self._running.items()):
            if running == number:
                del self._running[ref]
                self._free(actor)

    def _drop_all(self) -> None:
        self._waiting.clear()
        while self._running:
            self._collect(None)
        self._finished.clear()
        self._taken.clear()
        self._next_ordered = self._submitted

    def _drain(self, take: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield take()

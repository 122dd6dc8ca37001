"""Batched functions: calls that wait at the same time are answered by one call of the function.

Purpose: `@shoal.remote(batch=64)` for functions that are as fast for many inputs as for one: a model, a query (what TensorFlow Fold calls dynamic
batching).

Design: an asyncio actor, made at the first call of a session. A call joins those that wait; when BATCH_WAIT_S have passed, or `batch` have come,
the function is called with a list for each argument and gives a list of results. Refs among the arguments are awaited by the callers' side, as
ever, so calls of a graph meet level by level. The actor ends with the function's last handle, as actors do.

What it does not do: keyword arguments, generators, several returns; run several batches at once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shoal.api.actors import ActorClass
from shoal.api.options import ActorOptions
from shoal.runtime import core

if TYPE_CHECKING:
    import asyncio

BATCH_WAIT_S = 0.002


class _Batcher:
    """The actor: gathers calls and makes one of them."""

    def __init__(self, function: Callable[..., Sequence[Any]], batch: int) -> None:
        self._function, self._batch = function, batch
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._calls = 0

    async def call(self, *args: Any) -> Any:
        """One caller's call."""
        import asyncio  # not with the package: it costs 30 ms

        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((args, answer))
        if len(self._waiting) >= self._batch:
            self._serve()
        elif self._timer is None:
            self._timer = loop.call_later(BATCH_WAIT_S, self._serve)
        return await answer

    async def calls(self) -> int:
        """How often the function was called."""
        return self._calls

    def _serve(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
        if self._waiting:
            import asyncio

            self._timer = asyncio.get_running_loop().call_later(0, self._serve)
        self._calls += 1
        name = self._function.__name__
        try:
            results = self._function(*map(list, zip(*(args for args, _ in batch), strict=True)))
            if len(results) != len(batch):
                raise ValueError(
                    f"{name} is batched: it must give a list of {len(batch)} results, one for each input, not {len(results)}"
                )
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), result in zip(batch, results, strict=True):
            if not answer.done():  # its caller may have cancelled
                answer.set_result(result)


class BatchedFunction:
    """What `@shoal.remote(batch=n)` makes of a function: `f.remote(x)` gives a ref to its result for x.

    Args:
        function: takes a list for each argument and gives a list of as many results.
        batch: at most so many in one call.
        options: of the actor that runs it.
    """

    def __init__(self, function: Callable[..., Sequence[Any]], batch: int, options: dict[str, Any]) -> None:
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            raise ValueError(f"batch must be a whole number from 1, not {batch!r}")
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{function.__name__}: a batched function must be a plain one that returns a list")
        functools.update_wrapper(self, function)
        self._function, self._batch, self._options = function, batch, dict(options)
        self._arity = len(inspect.signature(function).parameters)
        ActorOptions.parse(self._actor_options())  # wrong ones are refused here
        self._runtime: core.Runtime | None = None
        self._actor: Any = None

    def _actor_options(self) -> dict[str, Any]:
        return {"num_cpus": 0, "max_concurrency": 100_000, **self._options}

    def remote(self, /, *args: Any) -> Any:
        """Call it for one input; a ref.

        Raises:
            TypeError: another number of arguments.
        """
        if len(args) != self._arity:
            raise TypeError(f"{self._function.__name__} takes {self._arity} arguments, not {len(args)}")
        return self._batcher().call.remote(*args)

    def calls(self) -> Any:
        """A ref to how often the function itself was called in this session."""
        return self._batcher().calls.remote()

    def _batcher(self) -> Any:
        runtime = core.current()
        if self._runtime is not runtime:
            made = ActorClass(_Batcher, ActorOptions.parse(self._actor_options()))
            self._actor, self._runtime = made.remote(self._function, self._batch), runtime
        return self._actor

    def __call__(self, *args: Any) -> Any:
        name = self._function.__name__
        raise TypeError(f"batched function {name}() cannot be called directly: call {name}.remote()")

    def __reduce__(self) -> Any:
        # With the actor, if there is one: calls from tasks meet those from here.
        return _restored, (self._function, self._batch, self._options, self._batcher())


def _restored(function: Any, batch: int, options: dict[str, Any], actor: Any) -> BatchedFunction:
    made = BatchedFunction(function, batch, options)
    made._actor, made._runtime = actor, core.current()
    return made

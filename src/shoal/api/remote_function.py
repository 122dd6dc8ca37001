"""Remote functions: what `@shoal.remote` makes of a function.

Design: a `RemoteFunction` keeps the template under which its calls are submitted, made at the first call in a session (and at each depth
of nesting), so that a call costs a signature check and a submission.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

from shoal.api.environments import merged_environment
from shoal.api.options import TaskOptions, resolve_num_returns
from shoal.api.scheduling_strategies import inherited_strategy
from shoal.api.signatures import SignatureChecker
from shoal.protocol.messages import KIND_TASK
from shoal.runtime import core
from shoal.runtime.delegation import Delegation
from shoal.runtime.tasks import Template


class RemoteFunction:
    """A function whose calls run as tasks: `f.remote(...)` returns a ref at once.

    Args:
        function: the plain function; still reachable as `f._function`.
        options: how its tasks run.
    """

    def __init__(self, function: Callable[..., Any], options: TaskOptions) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._options = options
        self._is_generator = inspect.isgeneratorfunction(function)
        self._num_returns = resolve_num_returns(options.num_returns, self._is_generator, function.__name__)
        self._check: Callable[[tuple[Any, ...], dict[str, Any]], None] = SignatureChecker(function).check
        self._template: Template | None = None
        self._runtime: core.Runtime | None = None
        self._bound_for: Any = -1

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Submit a task. Refs at top level of the arguments are replaced by their values before it runs.

        Returns:
            A ref; a list of them for num_returns > 1; an ObjectRefGenerator for generators; None for num_returns=0.

        Raises:
            TypeError: the arguments do not fit the function, or cannot be serialized.
        """
        runtime = core._current
        if runtime is None:
            runtime = core.current()
        task = core.running_task.get()
        bound_for = 0 if task is None else task.bound_for
        template = self._template
        if template is None or runtime is not self._runtime or bound_for != self._bound_for:
            template = self._bind(runtime, bound_for)
        self._check(args, kwargs)
        return runtime.submit(template, args, kwargs)

    def delegate(self, /, *args: Any, **kwargs: Any) -> Delegation:
        """To be returned by a task: its result is then what this call gives. A loop of any length runs on one worker like this, without
        depth. A call that asks for what the task does not hold becomes a task of its own. (CIEL's delegation; paper section 6)

        Raises:
            TypeError: the arguments do not fit the function, or it is a generator.
        """
        if self._is_generator:
            raise TypeError(
                f"{self._function.__name__} is a generator: a task cannot delegate to it, only return its ref"
            )
        self._check(args, kwargs)
        options = self._options
        here = not options.environment and not options.strategy
        return Delegation(
            self._function,
            args,
            kwargs,
            functools.partial(self.remote, *args, **kwargs),
            options.demand if here else None,
        )

    def _bind(self, runtime: core.Runtime, bound_for: Any) -> Template:
        options = self._options
        depth = bound_for if type(bound_for) is int else bound_for[0]
        if inspect.iscoroutinefunction(self._function):
            raise ValueError(
                f"{self._function.__name__} is an async function, which cannot be a remote function. Wrap it: "
                "def f(*args): return asyncio.run(g(*args)), or make it a method of an actor."
            )
        function_id, code = runtime.export(self._function)
        environment = merged_environment(runtime, options.environment)
        klass = runtime.submitter.class_of(
            options.demand,
            depth + 1,
            inherited_strategy(options.strategy, options.capture),
            environment,
            options.name or self._function.__name__,
        )
        template = runtime.new_template(
            function_id,
            code,
            options.name or self._function.__name__,
            KIND_TASK,
            self._num_returns,
            klass=klass,
            max_retries=options.max_retries,
            retry_exceptions=options.retry_exceptions,
            depth=depth + 1,
            max_calls=options.max_calls,
            backpressure=options.backpressure,
        )
        self._template, self._runtime, self._bound_for = template, runtime, bound_for
        return template

    def options(self, **options: Any) -> RemoteFunction:
        """The same function with other options; may be chained.

        Raises:
            ValueError, TypeError: an option is unknown or out of range.
        """
        return RemoteFunction(self._function, self._options.merge(options))

    def _remote(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any) -> Any:
        return (self.options(**options) if options else self).remote(*args, **(kwargs or {}))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self._function.__name__
        raise TypeError(
            f"remote function {name}() cannot be called directly: call {name}.remote(), or {name}._function() to run it here"
        )

    def __repr__(self) -> str:
        return f"RemoteFunction({self._function.__qualname__})"

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self._function, "given": self._options.given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The function may still be an empty shell here, when it refers to itself: nothing of it is read before its first call.
        self._pending = state

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"a remote function has no attribute {name!r}")
        with _completing:  # several threads of a task may call it first
            pending = self.__dict__.get("_pending")
            if pending is not None:
                self.__init__(pending["function"], TaskOptions.parse(pending["given"]))  # type: ignore[misc]
                self.__dict__.pop("_pending", None)
            try:
                return self.__dict__[name]
            except KeyError:
                raise AttributeError(f"a remote function has no attribute {name!r}") from None


_completing = threading.RLock()

"""Tail delegation: a task that ends by handing its output to another call, so that loops of any length need neither stack nor waiting workers.

Purpose: what CIEL (NSDI'11) calls delegation: `return f.delegate(x)` in a task means that the task's result is what `f(x)` will give.

Design: the worker runs the delegated call in the same task, one after the other, as long as it needs nothing that the task does not hold; the stack
is empty each time. A call that asks for more (another resource, environment or strategy) is submitted as a task of its own, and waited for: then
the CPU is lent meanwhile. A retry begins with the first call.

What it does not do: generators; delegation out of actors' methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal.protocol.resources import Resources, fits
from shoal.runtime.objects import ObjectRef


class Delegation:
    """What `f.delegate(...)` gives, to be returned by a task.

    Args:
        function: the plain function.
        submit: submits the call as a task of its own; a ref.
        demand: what it asks for; None if it must be a task of its own.
    """

    __slots__ = ("_args", "_demand", "_function", "_kwargs", "_submit")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        submit: Callable[[], Any],
        demand: Resources | None,
    ) -> None:
        self._function, self._args, self._kwargs, self._submit, self._demand = function, args, kwargs, submit, demand

    def run(self, held: Resources, get: Callable[[Any], Any]) -> Any:
        """The call's value: made here if `held` is enough for it. `get` waits for refs."""
        if self._demand is None or not fits(self._demand, held):
            return get(self._submit())
        args = [get(arg) if type(arg) is ObjectRef else arg for arg in self._args]
        kwargs = {name: get(arg) if type(arg) is ObjectRef else arg for name, arg in self._kwargs.items()}
        return self._function(*args, **kwargs)

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self._function.__name__}.delegate(...) is to be returned by a task: return it as it is, not inside of something "
            "else; in a driver or an actor call .remote(...)"
        )

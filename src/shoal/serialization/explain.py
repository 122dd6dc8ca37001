"""Why a value cannot be serialized: the part that is to blame, by its path.

Purpose: `explain_unserializable`, used for arguments, closures, results and exceptions; and `find_culprits` behind
`shoal.util.inspect_serializability`.

Design: pickle the parts one by one and go down into the first that fails: attributes, slots, items, closures, globals that a
function names, bound instances. The search is bounded in depth, in the number of parts tried and in time, so that it ends on any graph.

What it does not do: serialize anything for use.
"""

from __future__ import annotations

import functools
import time
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from shoal.protocol.errors import OutOfBandObjectRefSerializationError
from shoal.serialization import values
from shoal.serialization.code import pickle_by_value

_DEPTH_MAX = 12
_TRIES_MAX = 300
_SEARCH_S_MAX = 2.0
_ITEMS_MAX = 100
_REPR_CHARS_MAX = 120

_HINTS = (
    (("lock", "RLock", "Condition", "Semaphore", "Event"), "create the lock inside the task or actor"),
    (("generator", "coroutine", "async_generator"), "pass the items as a list, or make the generator inside the task"),
    (("socket", "TextIOWrapper", "BufferedReader", "BufferedWriter", "FileIO"), "open it inside the task or actor"),
    (("module",), "import it inside the function"),
    (("Thread", "ThreadPoolExecutor", "ProcessPoolExecutor", "Process"), "start it inside the task or actor"),
    (("Connection", "Cursor", "Engine"), "connect inside the task or actor"),
)


class Culprit(NamedTuple):
    """A part that cannot be serialized though all its own parts can: where it is, what holds it, and the pickler's words."""

    path: str
    value: Any
    holder: Any
    error: str


def explain_unserializable(value: Any, error: BaseException) -> TypeError:
    """A TypeError that names the part of `value` that cannot be serialized, and what to do about it. Never raises."""
    try:
        culprits = find_culprits(value, "value", depth=_DEPTH_MAX, stop_at_first=True)
    except Exception:
        culprits = []
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, RecursionError) or "recursion" in reason:
        return TypeError(
            f"cannot serialize {_short(value)}: it is nested too deeply ({reason}). "
            "Flatten it, or raise sys.setrecursionlimit in the driver and the workers."
        )
    if not culprits:
        return TypeError(f"cannot serialize {_short(value)} ({type(value).__name__}): {reason}")
    culprit = culprits[0]
    where = "" if culprit.path == "value" else f": {culprit.path} is {_short(culprit.value)}, which"
    name = type(culprit.value).__name__
    hint = next((hint for names, hint in _HINTS if name in names), f"give {name} a __reduce__")
    return TypeError(
        f"cannot serialize {_short(value)}{where or ', which'} cannot be pickled ({culprit.error}). To help: {hint}, or register "
        "a serializer with shoal.util.serialization.register_serializer."
    )


def find_culprits(value: Any, name: str, *, depth: int, stop_at_first: bool = False) -> list[Culprit]:
    """The parts of `value` that cannot be serialized, at most `depth` steps down; empty when it can be."""
    search = _Search(stop_at_first)
    search.descend(value, name, None, depth)
    return search.found


class _Search:
    __slots__ = ("found", "deadline_s", "seen", "stop_at_first", "tries")

    def __init__(self, stop_at_first: bool) -> None:
        self.found: list[Culprit] = []
        self.seen: set[int] = set()
        self.stop_at_first = stop_at_first
        self.tries = 0
        self.deadline_s = time.monotonic() + _SEARCH_S_MAX

    def descend(self, value: Any, path: str, holder: Any, depth: int) -> bool:
        """Whether `value` cannot be serialized; what is to blame is added to `found`."""
        if id(value) in self.seen or self.tries >= _TRIES_MAX or time.monotonic() > self.deadline_s:
            return False
        self.tries += 1
        problem = _problem(value)
        if problem is None:
            return False
        self.seen.add(id(value))
        blamed = False
        if depth > 0:
            for label, part in _parts(value):
                if self.descend(part, label.replace("{}", path), value, depth - 1):
                    blamed = True
                    if self.stop_at_first:
                        return True
        if not blamed:
            self.found.append(Culprit(path, value, holder, problem))
        return True


def _problem(value: Any) -> str | None:
    with values.collecting() as collected:
        try:
            pickle_by_value(value, collected.append)
        except OutOfBandObjectRefSerializationError:
            return None
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of `value` with a template of their path, in which {} stands for the path of `value`."""
    if isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
        return
    if isinstance(value, types.MethodType):
        yield "{}.__self__", value.__self__
        yield "{}.__func__", value.__func__
        return
    if isinstance(value, functools.partial):
        yield "{}.func", value.func
        yield from ((f"{{}}.args[{index}]", item) for index, item in enumerate(value.args))
        yield from ((f"{{}}.keywords[{key!r}]", item) for key, item in value.keywords.items())
        return
    if isinstance(value, type):
        for name, member in list(vars(value).items())[:_ITEMS_MAX]:
            if name not in ("__dict__", "__weakref__"):
                function = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
                yield f"{{}}.{name}", function
        return
    if isinstance(value, dict):
        for key, item in list(value.items())[:_ITEMS_MAX]:
            yield f"{{}}[{_short(key)}]", item
            yield f"key {_short(key)} of {{}}", key
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"{{}}[{index}]", item) for index, item in enumerate(list(value)[:_ITEMS_MAX]))
    elif isinstance(value, BaseException):
        yield from ((f"{{}}.args[{index}]", item) for index, item in enumerate(value.args[:_ITEMS_MAX]))
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield from ((f"{{}}.{name}", item) for name, item in list(attributes.items())[:_ITEMS_MAX])
    for cls in type(value).__mro__:
        for name, member in vars(cls).items():
            if isinstance(member, types.MemberDescriptorType) and cls.__flags__ & (1 << 9) and hasattr(value, name):
                yield f"{{}}.{name}", getattr(value, name)
    if type(value).__module__ == "__main__":
        yield f"class {type(value).__name__}", type(value)


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    name = function.__name__
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"closure variable {variable!r} of {name}()", cell.cell_contents
        except ValueError:  # not filled yet
            continue
    for variable in _names_used(function.__code__):
        if variable in function.__globals__:
            yield f"global variable {variable!r} of {name}()", function.__globals__[variable]
    for index, item in enumerate(function.__defaults__ or ()):
        yield f"default {index} of {name}()", item
    for key, item in (function.__kwdefaults__ or {}).items():
        yield f"default of {key!r} of {name}()", item
    yield from ((f"{{}}.{key}", item) for key, item in vars(function).items())


def _names_used(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_used(constant)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _REPR_CHARS_MAX else text[: _REPR_CHARS_MAX - 3] + "..."

"""Wrong arguments raise where the call is written, not later in a worker.

Purpose: `SignatureChecker`, asked at every `.remote()`.

Design: counting positional arguments decides most calls in 0.1 us. All others are put to a *stub*: an empty function with the
same parameters and the same name, so that the interpreter itself decides, and words the TypeError as the real function would.
The stub is compiled when it is first needed.

What it does not do: types of arguments; follow `__wrapped__` (what counts is what the wrapper accepts).
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_UNLIMITED = 1 << 62
_FLAG_VARARGS = inspect.CO_VARARGS
_FLAG_VARKEYWORDS = inspect.CO_VARKEYWORDS


class SignatureChecker:
    """Checks calls of one function.

    Args:
        function: anything callable; what has no signature (some C functions) accepts everything.
        skip_first: its first parameter (`self`) is given by the system, not by the caller.
    """

    __slots__ = ("_function", "_leading", "_least", "_most", "_stub")

    def __init__(self, function: Callable[..., Any], skip_first: bool = False) -> None:
        self._function: Callable[..., Any] | None = function
        self._leading: tuple[None, ...] = (None,) if skip_first else ()
        self._stub: Callable[..., Any] | None = None
        #: with this many positional arguments and nothing else, the call is right; _least > _most when that never is
        self._least, self._most = _positional_range(function, len(self._leading))

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> None:
        """Raises TypeError, worded by the interpreter, when the function cannot be called so."""
        if not kwargs and self._least <= len(args) <= self._most:
            return
        stub = self._stub
        if stub is None:
            assert self._function is not None
            stub = self._stub = _make_stub(self._function, bool(self._leading))
            self._function = None  # nothing else needs it: do not keep a user's closure alive
        stub(*self._leading, *args, **(kwargs or {}))


def constructor_checker(cls: type) -> SignatureChecker:
    """The checker for `cls(...)`."""
    initializer: Any = inspect.getattr_static(cls, "__init__")
    maker: Any = cls.__new__
    if isinstance(initializer, types.FunctionType):
        return SignatureChecker(initializer, skip_first=True)
    if initializer is object.__init__:
        if maker is object.__new__:
            return SignatureChecker(_takes_nothing(cls.__name__))
        if isinstance(maker, types.FunctionType):
            return SignatureChecker(maker, skip_first=True)
    return SignatureChecker(_accepts_everything)


def _accepts_everything(*args: Any, **kwargs: Any) -> None:
    """Stands for functions whose signature nobody knows."""


def _takes_nothing(name: str) -> Callable[..., None]:
    def stub(*args: Any, **kwargs: Any) -> None:
        raise TypeError(f"{name}() takes no arguments")

    def empty() -> None:
        pass

    # A call without arguments is decided by counting those of `empty`; every other goes to `stub`.
    empty.__dict__["_shoal_stub"] = stub
    return empty


def _positional_range(function: Callable[..., Any], leading: int) -> tuple[int, int]:
    if not isinstance(function, types.FunctionType):
        return 1, 0
    code = function.__code__
    if code.co_kwonlyargcount > len(function.__kwdefaults__ or ()):
        return 1, 0  # some keyword must be given
    most = code.co_argcount - leading
    least = max(0, most - len(function.__defaults__ or ()))
    if code.co_flags & _FLAG_VARARGS:
        return least, _UNLIMITED
    return least, most


def _make_stub(function: Callable[..., Any], has_first: bool) -> Callable[..., Any]:
    if isinstance(function, types.FunctionType):
        ready: Callable[..., Any] | None = function.__dict__.get("_shoal_stub")
        return ready or _stub_of_code(function)
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (ValueError, TypeError):
        return _accepts_everything
    parameters = list(signature.parameters.values())
    if has_first:
        parameters.insert(0, inspect.Parameter("_self", inspect.Parameter.POSITIONAL_ONLY))
    named = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    blank = [p if p.default is p.empty else p.replace(default=None) for p in named]
    try:
        text = str(inspect.Signature(blank))
        return _compiled(text, getattr(function, "__name__", type(function).__name__), "")
    except (SyntaxError, ValueError):  # a signature that no Python function can have
        return _accepts_everything


def _stub_of_code(function: types.FunctionType) -> Callable[..., Any]:
    code = function.__code__
    names = code.co_varnames
    plain = list(names[: code.co_argcount])
    keywords = names[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    position = code.co_argcount + code.co_kwonlyargcount
    with_default = code.co_argcount - len(function.__defaults__ or ())
    parts = [f"{name}=None" if index >= with_default else name for index, name in enumerate(plain)]
    if code.co_posonlyargcount:
        parts.insert(code.co_posonlyargcount, "/")
    if code.co_flags & _FLAG_VARARGS:
        parts.append("*" + names[position])
        position += 1
    elif keywords:
        parts.append("*")
    given = function.__kwdefaults__ or {}
    parts += [f"{name}=None" if name in given else name for name in keywords]
    if code.co_flags & _FLAG_VARKEYWORDS:
        parts.append("**" + names[position])
    try:
        return _compiled(f"({', '.join(parts)})", function.__name__, function.__qualname__)
    except SyntaxError:  # names that only the compiler can make
        return _accepts_everything


def _compiled(parameters: str, name: str, qualname: str) -> Callable[..., Any]:
    namespace: dict[str, Any] = {}
    exec(f"def stub{parameters}: pass", namespace)  # parameter names of a compiled function, no user text
    stub: Any = namespace["stub"]
    stub.__name__ = name
    stub.__qualname__ = qualname or name
    made: Callable[..., Any] = stub
    return made

"""Serializers that users register for their classes.

Purpose: `register_serializer` and `deregister_serializer`.

Design: registered classes are found by exact type through a dispatch table of the C pickler; the plain path of `values.dumps` is
swapped for one with that table only while something is registered. What travels is (capsule, what the serializer returned),
where the capsule is both functions by value: a process that meets it for the first time registers the class too, so that
the object can travel on. Functions and classes sent to workers carry all registrations with them.

What it does not do: subclasses (as for Ray's users, each class is registered by itself).
"""

from __future__ import annotations

import copyreg
import io
from _pickle import Pickler
from collections.abc import Callable
from typing import Any

from shoal.serialization import values

#: class -> (serializer, deserializer, capsule); the capsule is made when first needed
registered: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any], bytes | None]] = {}
_deserializer_of: dict[bytes, Callable[[Any], Any]] = {}


def register_serializer(cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]) -> None:
    """Use `serializer(obj)` for instances of exactly `cls`, and `deserializer(what it returned)` where they are read.

    Raises:
        TypeError: `cls` is no class, or a function is not callable.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_serializer needs a class, got {cls!r}")
    if not callable(serializer) or not callable(deserializer):
        raise TypeError("serializer and deserializer must be callable")
    registered[cls] = (serializer, deserializer, None)
    _swap_plain_path()


def deregister_serializer(cls: type) -> None:
    """Forget the serializer of `cls`; without effect when there is none."""
    registered.pop(cls, None)
    _swap_plain_path()


def reduce(obj: Any) -> tuple[Any, ...]:
    """What the picklers use in the place of `obj.__reduce__`."""
    cls = type(obj)
    serializer = registered[cls][0]
    return _restore, (_capsule(cls), serializer(obj))


def _capsule(cls: type) -> bytes:
    serializer, deserializer, capsule = registered[cls]
    if capsule is None:
        from shoal.serialization.code import pickle_by_value

        with values.collecting():
            capsule = pickle_by_value((cls, serializer, deserializer), None)
        registered[cls] = (serializer, deserializer, capsule)
        _deserializer_of[capsule] = deserializer
    return capsule


def _restore(capsule: bytes, state: Any) -> Any:
    deserializer = _deserializer_of.get(capsule)
    if deserializer is None:
        deserializer = _adopt(capsule)
    return deserializer(state)


def _adopt(capsule: bytes) -> Callable[[Any], Any]:
    cls, serializer, deserializer = values.loads(capsule)
    _deserializer_of[capsule] = deserializer
    if cls not in registered:
        registered[cls] = (serializer, deserializer, capsule)
        _swap_plain_path()
    made: Callable[[Any], Any] = deserializer
    return made


class _Carrying:
    """Code together with the serializers registered where it was written; loading it gives the code."""

    __slots__ = ("code",)

    def __init__(self, code: Any) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return _unload, (self.code, [_capsule(cls) for cls in registered])


def with_serializers(code: Any) -> Any:
    """`code`, made to bring the registered serializers along when there are any."""
    return _Carrying(code) if registered else code


def _unload(code: Any, capsules: list[bytes]) -> Any:
    for capsule in capsules:
        if capsule not in _deserializer_of:
            _adopt(capsule)
    return code


def _swap_plain_path() -> None:
    values.plain_dumps = _dumps_with_table if registered else values.c_dumps


def _dumps_with_table(value: Any, protocol: int, *, buffer_callback: Callable[[Any], Any]) -> bytes:
    file = io.BytesIO()
    pickler = Pickler(file, protocol, buffer_callback=buffer_callback)
    pickler.dispatch_table = {**copyreg.dispatch_table, **dict.fromkeys(registered, reduce)}
    pickler.dump(value)
    return file.getvalue()

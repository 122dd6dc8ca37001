"""Functions and classes to bytes, and values that refer to code which workers cannot import.

Purpose: `dumps_code`, and the by-value pickler behind `values.dumps`.

Design: cloudpickle does the work; this adds two things. Classes of `__main__` (and of other modules that travel by value)
are pickled once, as a *capsule* of bytes that is loaded once a process: cloudpickle alone would write and execute the class with
every value (100 us each way). Both sides remember capsule and class, so a value that comes back finds the class that it left
with. A capsule is remade when an attribute of the class was replaced since; classes that hold mutable attributes are never
cached. And arrays that are not contiguous are made so, to be read without a copy like others.

What it does not do: decide when a value needs this (`values`).
"""

from __future__ import annotations

import enum
import io
import types
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import cloudpickle
from cloudpickle import cloudpickle as _cloud

from shoal.protocol.errors import ShoalError
from shoal.serialization import custom, values

_CAPSULES_MAX = 10_000
_FILE_NAME_AT = 10  #: among the arguments of types.CodeType

#: class -> (capsule, the attributes that it was made from)
_capsule_of: WeakKeyDictionary[type, tuple[bytes, dict[str, Any]]] = WeakKeyDictionary()
#: capsule -> what it holds
_loaded: dict[bytes, Any] = {}
#: classes that were sent by value and are at home here, and those that came by value
_native: WeakSet[type] = WeakSet()
_received: WeakSet[type] = WeakSet()


class ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's pickler with capsules for classes, custom serializers, and arrays made contiguous."""

    def __init__(self, file: io.BytesIO, buffer_callback: Callable[[Any], Any] | None, in_capsule: type | None = None):
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self._in_capsule = in_capsule

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is types.CodeType:
            return _reduce_code(obj)
        if custom.registered and kind in custom.registered:
            return custom.reduce(obj)
        if kind.__name__ == "ndarray" and kind.__module__ == "numpy":
            return _reduce_array(obj)
        if self._in_capsule is None and isinstance(obj, type):
            capsule = _class_capsule(obj)
            if capsule is not None:
                return load_capsule, (capsule,)
        reduced = super().reducer_override(obj)
        if isinstance(obj, type) and type(reduced) is tuple and len(reduced) == 6:
            if obj not in _received:
                _native.add(obj)
            return (*reduced[:5], _set_class_state)
        return reduced


def _reduce_code(code: types.CodeType) -> Any:
    """Code with the name of its file, which tracebacks show; cloudpickle leaves it out from 3.1.3 on."""
    make, arguments = _cloud._code_reduce(code)
    place = _FILE_NAME_AT
    return make, (*arguments[:place], "".join(code.co_filename), *arguments[place + 1 :])


def pickle_by_value(value: Any, buffer_callback: Callable[[Any], Any] | None) -> bytes:
    """`value` as a pickle that brings the code that it needs."""
    file = io.BytesIO()
    ByValuePickler(file, buffer_callback).dump(value)
    return file.getvalue()


def dumps_code(code: Any) -> tuple[bytes, list[Any] | None]:
    """A function or class with its closure, as bytes for `values.loads`, and the references captured by it.

    Raises:
        TypeError: it captures something that cannot be serialized; the text names it.
    """
    refresh_by_value_modules()
    with values.collecting() as collected:
        try:
            file = io.BytesIO()
            ByValuePickler(file, None).dump(custom.with_serializers(code))
        except ShoalError:
            raise
        except Exception as error:
            from shoal.serialization.explain import explain_unserializable

            raise explain_unserializable(code, error) from error
    return file.getvalue(), collected or None


def loads_code(code: bytes | memoryview) -> Any:
    """The function or class in `code`, and the serializers that came with it registered."""
    return values.loads(code)


def refresh_by_value_modules() -> None:
    """Look which modules users have registered with cloudpickle, because workers cannot import them."""
    values.by_value_needles = tuple(sorted(name.encode() for name in cloudpickle.list_registry_pickle_by_value()))


# ---------------------------------------------------------------- classes


def load_capsule(capsule: bytes) -> Any:
    """The class in `capsule`, executed once a process."""
    try:
        return _loaded[capsule]
    except KeyError:
        pass
    cls = values.loads(capsule)
    _remember(capsule, cls)
    return cls


def _set_class_state(cls: type, state: Any) -> type:
    """Fill a class that came by value; a class that this process itself defined stays as it is.

    (cloudpickle would put copies into it when it comes home: its methods would no longer see the globals of their module.)
    """
    if cls not in _native:
        _received.add(cls)
        _cloud._class_setstate(cls, state)
    return cls


def _remember(capsule: bytes, cls: type) -> None:
    if len(_loaded) >= _CAPSULES_MAX:
        _loaded.clear()
    _loaded[capsule] = cls
    _capsule_of[cls] = (capsule, dict(vars(cls)))


def _class_capsule(cls: type) -> bytes | None:
    """The capsule of a class that must travel by value; None when cloudpickle should do as it likes."""
    try:
        made = _capsule_of.get(cls)
    except TypeError:  # a metaclass whose classes cannot be hashed
        return None
    if made is not None and _same_attributes(made[1], vars(cls)):
        return made[0]
    if cls.__module__ in ("builtins", "typing") or _cloud._should_pickle_by_reference(cls):
        return None
    if not _can_be_kept(cls):
        return None
    file = io.BytesIO()
    with values.collecting() as collected:
        # Its bases and the classes that its methods name are written in full inside: one capsule, whole.
        ByValuePickler(file, None, in_capsule=cls).dump(cls)
    if collected:  # it captures references, which belong to each value that carries them
        return None
    capsule = file.getvalue()
    _remember(capsule, cls)
    return capsule


def _same_attributes(before: dict[str, Any], now: Any) -> bool:
    if len(before) != len(now):
        return False
    return all(name in before and before[name] is value for name, value in now.items())


_FIXED_TYPES = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    staticmethod,
    classmethod,
    property,
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    type,
    types.GenericAlias,
    enum.Enum,
)


def _can_be_kept(cls: type) -> bool:
    """Whether replacing an attribute is the only way to change the class: nothing of it is a mutable object."""
    if issubclass(cls, enum.Enum):
        return True
    for base in cls.__mro__:
        if _cloud._should_pickle_by_reference(base):
            continue
        for name, value in vars(base).items():
            if name.startswith("__") and name.endswith("__"):
                continue
            if isinstance(value, tuple):
                if not all(isinstance(item, _FIXED_TYPES) for item in value):
                    return False
            elif not isinstance(value, _FIXED_TYPES):
                return False
    return True


# ---------------------------------------------------------------- arrays


def _reduce_array(array: Any) -> Any:
    """Arrays leave their memory out of the pickle; those with gaps in it are copied together first."""
    dtype = array.dtype
    if dtype.hasobject or not dtype.itemsize:
        return array.__reduce_ex__(5)
    flags = array.flags
    if not (flags.c_contiguous or flags.f_contiguous):
        array = array.copy()
    if dtype.kind not in "mMV":
        return array.__reduce_ex__(5)
    # Dates and some structures have no buffer format, so numpy would put them into the pickle.
    order = "C" if array.flags.c_contiguous else "F"
    return _restore_array, (PickleBuffer(array.ravel(order=order).view("u1")), dtype, array.shape, order)


def _restore_array(buffer: Any, dtype: Any, shape: tuple[int, ...], order: str) -> Any:
    import numpy

    return numpy.frombuffer(buffer, dtype="u1").view(dtype).reshape(shape, order=order)

"""User values to bytes and back: the hot path of every argument, result and put.

Purpose: `dumps` and `loads`.

Design: the plain C pickler with protocol 5 first (0.2 us for a small tuple); buffers that objects offer (numpy, Arrow, pandas)
stay out of the pickle and are copied once, when the blob is written. Only when that fails, or when the pickle names `__main__`
or a module that must travel by value, the by-value pickler of `code` does it again. One list collects both buffers and the
references met on the way: `ObjectRef.__reduce__` calls `collect`. What was collected is sorted out only when there is something.

How to extend: a kind of value that needs its own form gets a mark in `format` and a branch in `loads`; classes of users get a
reducer through `custom`.

What it does not do: know what a reference is, or copy values between processes.
"""

from __future__ import annotations

import _pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pickle import PickleBuffer
from typing import Any

from shoal.protocol.errors import OutOfBandObjectRefSerializationError, ShoalError
from shoal.serialization.format import (
    ALIGN_BYTES,
    BYTEARRAY_MARK,
    BYTES_MARK,
    CONTAINER_MARK,
    PICKLE_MARK,
    Serialized,
    container_parts,
    raw_parts,
    split_container,
)

RAW_BYTES_MIN = 4096  #: shorter bytes are cheaper as a pickle
#: no shorter pickle can hold `\x8c\x08__main__` and the name of a global; scanning costs 0.15 us
_SCAN_BYTES_MIN = 28
#: nor a shorter one an array that numpy pickled in band
_ARRAY_SCAN_BYTES_MIN = 100
_SECOND_PASS_BYTES_MAX = 256 << 10

Blob = bytes | Serialized

c_dumps = _pickle.dumps
_c_loads = _pickle.loads


class _Progress(threading.local):
    #: what the call of `dumps` that is in progress in this thread has collected (buffers and references); None when there is none
    collected: list[Any] | None = None
    #: depth of `allow_out_of_band`
    out_of_band = 0


_progress = _Progress()
#: replaced by `custom` while serializers are registered, so that the plain path does not pay for them
plain_dumps: Callable[..., bytes] = c_dumps
_PLAIN_TYPES = frozenset((bytes, str, int, float, bool, type(None)))
_LONG_BYTES_MIN = 1000  #: below, scanning costs less than looking at the types
#: names of modules that travel by value; maintained by `code`
by_value_needles: tuple[bytes, ...] = ()


def dumps(value: Any) -> tuple[Blob, list[Any] | None]:
    """`value` as a blob, and the references nested in it (None if there are none).

    Raises:
        TypeError: it cannot be serialized; the text names the part that cannot.
    """
    kind = type(value)
    if (kind is bytes or kind is bytearray) and len(value) >= RAW_BYTES_MIN:
        return raw_parts(BYTES_MARK if kind is bytes else BYTEARRAY_MARK, value), None
    collected: list[Any] = []
    progress = _progress
    before = progress.collected
    progress.collected = collected
    try:
        head = plain_dumps(value, 5, buffer_callback=collected.append)
    except (ShoalError, MemoryError):
        raise
    except Exception as error:
        return _dumps_by_value(value, error)
    finally:
        progress.collected = before
    if (
        len(head) >= _SCAN_BYTES_MIN
        and not (len(head) > _LONG_BYTES_MIN and _is_plain(value))
        and _must_travel_by_value(head)
    ):
        return _dumps_by_value(value, None)
    if collected:
        return _sorted_out(head, collected)
    return head, None


def dumps_inline(value: Any) -> bytes:
    """`value` as bytes, whatever its size; it must contain no references.

    Raises:
        TypeError: it cannot be serialized.
    """
    blob, nested = dumps(value)
    assert nested is None, "a value with references is not written inline"
    return blob if isinstance(blob, bytes) else blob.to_bytes()


def dumps_whole(value: Any) -> tuple[bytes, list[Any]]:
    """`value` with its buffers inside, so that what `loads` makes of it may be changed where the original might; and the references in it.

    Raises:
        TypeError: it cannot be serialized; the text names the part that cannot.
    """
    with collecting() as collected:
        try:
            head = plain_dumps(value, 5)
        except (ShoalError, MemoryError):
            raise
        except Exception as error:
            head = b""
            first_error: Exception | None = error
        else:
            first_error = None
        if first_error is not None or _must_travel_by_value(head):
            collected.clear()
            head = _pickled_by_value(value, None, first_error)
    return head, collected


def loads(blob: bytes | memoryview) -> Any:
    """The value of `blob`. Buffers are views of `blob`, read-only: it must not change or move while the value lives.

    Raises:
        ValueError: these bytes are no blob, or are cut short.
        Exception: whatever a class raises when it is unpickled.
    """
    mark = blob[0]
    if mark == PICKLE_MARK:
        return _c_loads(blob)
    view = memoryview(blob)
    if not view.readonly:
        view = view.toreadonly()
    if mark == CONTAINER_MARK:
        head, buffers = split_container(view)
        return _c_loads(head, buffers=buffers)
    if mark == BYTES_MARK:
        return bytes(view[ALIGN_BYTES:])
    if mark == BYTEARRAY_MARK:
        return bytearray(view[ALIGN_BYTES:])
    raise ValueError(f"not a serialized value: it starts with byte {mark:#x}")


def _is_plain(value: Any) -> bool:
    """Whether a value (or each item of a tuple) is text or a number, which needs no scan however long it is."""
    if type(value) is tuple:
        return all(type(item) in _PLAIN_TYPES for item in value)
    return type(value) in _PLAIN_TYPES


def _must_travel_by_value(head: bytes) -> bool:
    if b"__main__" in head:
        return True
    if len(head) >= _ARRAY_SCAN_BYTES_MIN and b"_reconstruct" in head:
        # An array that numpy put into the pickle because it has gaps or holds objects or dates: the other pickler gets most of them
        # out again. Not worth a second pass over many objects (a data frame of strings).
        if len(head) < _SECOND_PASS_BYTES_MAX or b"\x8c\x02O8" not in head:
            return True
    return any(needle in head for needle in by_value_needles)


def _dumps_by_value(value: Any, first_error: Exception | None) -> tuple[Blob, list[Any] | None]:
    with collecting() as collected:
        head = _pickled_by_value(value, collected.append, first_error)
    if collected:
        return _sorted_out(head, collected)
    return head, None


def _pickled_by_value(value: Any, buffer_callback: Callable[[Any], Any] | None, first_error: Exception | None) -> bytes:
    """`value` by the pickler of `code`, or a TypeError that says why not: by `first_error`, that of the plain pickler, if it failed first."""
    from shoal.serialization.code import pickle_by_value

    try:
        return pickle_by_value(value, buffer_callback)
    except (ShoalError, MemoryError):
        raise
    except Exception as error:
        from shoal.serialization.explain import explain_unserializable

        raise explain_unserializable(value, first_error or error) from (first_error or error)


def _sorted_out(head: bytes, collected: list[Any]) -> tuple[Blob, list[Any] | None]:
    buffers = [item.raw() for item in collected if type(item) is PickleBuffer]
    nested = [item for item in collected if type(item) is not PickleBuffer]
    return (container_parts(head, buffers) if buffers else head), (nested or None)


# ---------------------------------------------------------------- references


def collect(reference: Any) -> bool:
    """Called by the `__reduce__` of references and handles: note that `reference` is part of the value being serialized.

    Returns:
        True when a `dumps` is in progress and will report the reference; False inside `allow_out_of_band`.

    Raises:
        OutOfBandObjectRefSerializationError: (a TypeError) something else pickles it, which nobody could follow.
    """
    collected = _progress.collected
    if collected is not None:
        collected.append(reference)
        return True
    if _progress.out_of_band:
        return False
    raise OutOfBandObjectRefSerializationError(
        f"{reference!r} cannot be pickled here: outside a task argument, a result or shoal.put nobody would know that the "
        "pickle refers to the object, which could be freed. Pass the reference itself to a task or actor, or pickle the value "
        "that shoal.get(reference) returns."
    )


@contextmanager
def allow_out_of_band() -> Iterator[None]:
    """Inside, `collect` lets references be pickled by anyone; whoever does so answers for their lives."""
    _progress.out_of_band += 1
    try:
        yield
    finally:
        _progress.out_of_band -= 1


@contextmanager
def collecting() -> Iterator[list[Any]]:
    """Inside, references and buffers go to the list given: for picklers other than `dumps`."""
    before = _progress.collected
    collected: list[Any] = []
    _progress.collected = collected
    try:
        yield collected
    finally:
        _progress.collected = before

"""Exceptions to bytes and back; both directions always succeed.

Purpose: `dumps_error` and `loads_error`.

Design: the blob is a plain pickle of (text, class name, story, inner blob): what every process can read, around what only a process that
has the user's classes can. The inner blob is tried out where it is made, because many exception classes pickle well and then
fail to unpickle.

What it does not do: tracebacks (`protocol.errors.make_task_error`), or references inside exceptions: nobody could hold them.
"""

from __future__ import annotations

import pickle
from typing import Any

from shoal.protocol.errors import ShoalError, TaskError, UnserializableException, format_traceback
from shoal.serialization.format import Serialized
from shoal.serialization.values import dumps, loads

_STORY_FIELDS = 5
_TEXT_CHARS_MAX = 100_000


def dumps_error(error: BaseException) -> bytes:
    """`error` as bytes; when it cannot be pickled, its text, with a word on what could not."""
    name = type(error).__name__
    story = error.__dict__.get("_story") if isinstance(error, TaskError) else None
    inner: bytes | None = None
    try:
        blob, nested = dumps(error)
        if nested:
            raise TypeError(f"it holds {len(nested)} ObjectRefs, which an exception cannot carry")
        inner = blob.to_bytes() if isinstance(blob, Serialized) else blob
        loads(inner)
    except Exception as failure:
        inner = None
        note = f"(the {_cause_name(error)} itself could not travel: {_shortened(str(failure))})"
        if story is not None:
            story = (story[0], f"{story[1]}\n{note}", *story[2:])
        text = f"{_text_of(error)}\n{note}"
    else:
        text = _text_of(error)
    return pickle.dumps((_shortened(text), name, story, inner), 5)


def loads_error(blob: bytes | memoryview) -> BaseException:
    """The exception in `blob`; a TaskError or ShoalError with its text when its class cannot be had here."""
    try:
        text, name, story, inner = pickle.loads(blob)
    except Exception as failure:
        return UnserializableException(f"an error came that cannot be read: {type(failure).__name__}: {failure}")
    note = ""
    if inner is not None:
        try:
            error = loads(inner)
            if isinstance(error, BaseException):
                return error
            note = f"\n(it was written as {type(error).__name__}, which is no exception)"
        except Exception as failure:
            note = f"\n(the exception itself cannot be read here: {type(failure).__name__}: {failure})"
    if story is not None:
        return TaskError(story[0], story[1] + note, None, *story[2:_STORY_FIELDS])
    return ShoalError(f"{name}: {text}{note}")


def _cause_name(error: BaseException) -> str:
    cause: Any = error.cause if isinstance(error, TaskError) else error
    return type(cause).__name__


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return format_traceback(error)


def _shortened(text: str) -> str:
    if len(text) <= _TEXT_CHARS_MAX:
        return text
    return f"{text[: _TEXT_CHARS_MAX // 2]}\n... {len(text) - _TEXT_CHARS_MAX} characters ...\n{text[-_TEXT_CHARS_MAX // 2 :]}"

"""Errors that nobody asked for: a failed task whose refs are dropped unread is told once, on stderr.

Purpose: `f.remote()` without a `get` must not fail in silence.

Design: a failed task notes the ids of its results; whoever reads one (get, await, a task that takes it as argument, a process that
it travels to) takes it out; an entry that is freed while it stands here is told. All of it costs only failures anything. Of the same function
and kind of error TOLD_MAX within REPEAT_WINDOW_S are shown, the others counted, and their number is told with the next one that is shown, or when the
session ends. SHOAL_IGNORE_UNHANDLED_ERRORS=1 turns it off.

What it does not do: items of streams, tasks that were cancelled, and what is pending when a session ends.
"""

from __future__ import annotations

import os
import sys
from time import monotonic

from shoal import serialization
from shoal.protocol.errors import TaskCancelledError
from shoal.protocol.messages import Failed

REPEAT_WINDOW_S = 60.0
TOLD_MAX = 3
UNREAD_MAX = 100_000  #: beyond, older ones are forgotten

#: object id -> name of the task that failed
_unread: dict[bytes, str] = {}
#: (name, kind of error) -> when the first was told, and how many there were since
_told: dict[tuple[str, str], tuple[float, int]] = {}


def is_off() -> bool:
    """Whether the user does not want to hear of them."""
    return any(os.environ.get(f"{prefix}_IGNORE_UNHANDLED_ERRORS") == "1" for prefix in ("SHOAL", "RAY"))


def note(oid: bytes, name: str) -> None:
    """The task `name` failed; its error stands at `oid`."""
    if len(_unread) >= UNREAD_MAX:
        del _unread[next(iter(_unread))]
    _unread[oid] = name


def read(oid: bytes) -> None:
    """Somebody has the error of `oid`."""
    _unread.pop(oid, None)


def take(oid: bytes) -> str | None:
    """The object is freed: the task's name if nobody has read its error."""
    return _unread.pop(oid, None)


def forget_all() -> None:
    """A session begins or ends."""
    _unread.clear()
    _told.clear()


def tell_rest() -> None:
    """The session ends: how many were not shown."""
    for (name, kind), (_, count) in _told.items():
        if count > TOLD_MAX:
            _say(f"{count - TOLD_MAX} more unhandled errors like {kind} in {name} were not shown.")
    forget_all()


def tell(name: str, value: Failed) -> None:
    """Print an error that nobody will read any more. Unpickles it, so not under a lock."""
    error = serialization.loads_error(value.error)
    if isinstance(error, TaskCancelledError):
        return
    kind = (name, type(error).__name__)
    now = monotonic()
    since, count = _told.get(kind, (float("-inf"), 0))
    more = rest = ""
    if now - since < REPEAT_WINDOW_S:
        _told[kind] = (since, count + 1)
        if count >= TOLD_MAX:
            return
        if count == TOLD_MAX - 1:
            rest = "\nMore like it are only counted for a while."
    else:
        _told[kind] = (now, 1)
        if count > TOLD_MAX:
            more = f" ({count - TOLD_MAX} more like it were not shown)"
    _say(
        f"Unhandled error in {name}: its refs were dropped before anyone read the result{more}.\n{error}\n"
        f"(Call shoal.get on the ref to handle it; SHOAL_IGNORE_UNHANDLED_ERRORS=1 hides these.){rest}"
    )


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        pass  # there is no terminal

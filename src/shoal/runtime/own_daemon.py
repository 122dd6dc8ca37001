"""Waiting for an answer of this node's own daemon.

Purpose: a daemon that stands still (stopped by a signal or a debugger, starved, swapped out) is named, and nobody waits for it without end.

Design: most questions have a time limit. Room in the store has none: the daemon may have to spill gigabytes first, and says itself when it gives up.
So while that is waited for the daemon is asked now and then for something that it answers at once. Silence is warned of, and is an error in the end.

What it does not do: notice that the daemon is dead (its connection ends, see `core.on_daemon_lost`).
"""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from shoal.protocol import errors
from shoal.protocol.limits import CALL_TIMEOUT_S
from shoal.runtime.reactor import Waiter

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime

LOOK_S = 5.0
SILENT_MAX_S = CALL_TIMEOUT_S


def wait_for_answer(runtime: Runtime, waiter: Waiter, timeout_s: float | None) -> None:
    """Wait until the daemon has answered, or the session is over.

    Raises:
        RpcError: it did not within `timeout_s`, or (None) it answers nothing at all any more.
    """
    if timeout_s is not None:
        if not runtime.reactor.wait(waiter, perf_counter() + timeout_s) and not runtime.reactor.stopping:
            raise errors.RpcError(f"{_silence(runtime.daemon_pid, timeout_s)}")
        return
    heard, warned = perf_counter(), False
    while not runtime.reactor.wait(waiter, perf_counter() + LOOK_S) and not runtime.reactor.stopping:
        if _answers(runtime):
            heard = perf_counter()
            continue
        silent_s = perf_counter() - heard
        text = _silence(runtime.daemon_pid, silent_s)
        if silent_s >= SILENT_MAX_S:
            raise errors.RpcError(text)
        if not warned:
            warned = True
            warnings.warn(f"{text}. It is waited for, {SILENT_MAX_S:.0f} s at most", RuntimeWarning, stacklevel=5)


def _answers(runtime: Runtime) -> bool:
    """Whether the daemon answers what needs no work."""
    try:
        runtime.call("node.gcs", timeout_s=LOOK_S)
    except errors.RpcError:
        return False
    return True


def _silence(pid: int, silent_s: float) -> str:
    """What to say of a daemon that does not answer."""
    text = f"the node daemon (pid {pid}) did not answer within {silent_s:g} s"
    state = ""
    with contextlib.suppress(OSError, IndexError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    if state in ("T", "t"):
        return f"{text}: it is stopped, by a signal (SIGSTOP, Ctrl-Z) or a debugger; `kill -CONT {pid}` lets it go on"
    return text

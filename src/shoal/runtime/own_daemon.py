"""Waiting for an answer of this node's own daemon.

Purpose: a daemon that stands still (stopped by a signal or a debugger, starved, swapped out) is named, and nobody waits for it without end.

Design: most questions have a time limit. Room in the store has none, nor has what comes from other nodes: the daemon may have to spill gigabytes,
or bring them, and says itself when it gives up. So while that is waited for the daemon is asked now and then for something that it answers at once.
Silence is warned of, and is an error in the end.

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
ANSWER_MIN_S = 1.0  #: with less time left it is not asked: a busy one may need so long
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
    watch = Watch(runtime, None)
    while not runtime.reactor.wait(waiter, watch.due) and not runtime.reactor.stopping:
        watch.look()


def wait_beside(runtime: Runtime, waiter: Waiter, until: float | None, watch: Watch) -> bool:
    """As `Runtime.wait_for`, for what the daemon has to bring: false when the time is over.

    Raises:
        RpcError: the daemon answers nothing at all any more.
    """
    while True:
        wake = watch.due if until is None else min(until, watch.due)
        done = runtime.wait_for(waiter, max(wake - perf_counter(), 0.0))
        if done or runtime.lost is not None or runtime.reactor.stopping:
            return waiter.done
        if until is not None and perf_counter() >= until:
            return False
        if perf_counter() >= watch.due:
            watch.look()


class Watch:
    """Whether a daemon that is waited for, in one wait or several, answers at all. `until`: how long, if not without end."""

    __slots__ = ("due", "heard", "runtime", "until", "warned")

    def __init__(self, runtime: Runtime, until: float | None) -> None:
        self.runtime = runtime
        self.until = until
        self.heard = perf_counter()
        self.due = self.heard + LOOK_S  #: when it is to be asked
        self.warned = False

    def look(self) -> None:
        """Ask for something that needs no work; a silence is warned of once, and raised as RpcError in the end."""
        left_s = LOOK_S if self.until is None else min(LOOK_S, self.until - perf_counter())
        answers = left_s < min(LOOK_S, ANSWER_MIN_S) or _answers(self.runtime, left_s)
        self.due = perf_counter() + LOOK_S
        if answers:
            self.heard = perf_counter()
            return
        silent_s = perf_counter() - self.heard
        text = _silence(self.runtime.daemon_pid, silent_s)
        if silent_s >= SILENT_MAX_S:
            raise errors.RpcError(text)
        if not self.warned:
            self.warned = True
            warnings.warn(f"{text}. It is waited for, {SILENT_MAX_S:.0f} s at most", RuntimeWarning, stacklevel=6)


def _answers(runtime: Runtime, timeout_s: float) -> bool:
    """Whether the daemon answers what needs no work."""
    try:
        runtime.call("node.gcs", timeout_s=timeout_s)
    except errors.RpcError:
        return False
    return True


def _silence(pid: int, silent_s: float) -> str:
    """What to say of a daemon that does not answer."""
    text = f"the node daemon (pid {pid}) did not answer within {silent_s:.3g} s"
    why = stopped(pid)
    return f"{text}: {why}" if why else text


def stopped(pid: int) -> str:
    """That a process was stopped, and what lets it go on; empty when it was not."""
    state = ""
    with contextlib.suppress(OSError, IndexError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    if state in ("T", "t"):
        return f"it is stopped, by a signal (SIGSTOP, Ctrl-Z) or a debugger; `kill -CONT {pid}` lets it go on"
    return ""

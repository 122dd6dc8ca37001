"""What Linux offers about processes, beyond `os`: parent-death signals, subreapers, titles, descriptors, ends.

Purpose: one place for each wrapped call, with an error that says what to do.

Design: `prctl` through ctypes (no dependency); everything else from the standard library.

What it does not do: start processes (`interpreter`), or decide when they end.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterable

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

FILES_MIN = 256  #: fewer open files than this cannot even hold a handful of workers


class UnsupportedSystemError(RuntimeError):
    """This machine lacks something that Shoal cannot do without."""


def require_linux() -> None:
    """Raise unless this is a Linux that has what the processes here use.

    Raises:
        UnsupportedSystemError: it is not.
    """
    if sys.platform != "linux":
        raise UnsupportedSystemError(
            f"Shoal runs on Linux; this is {sys.platform!r}. Use a Linux machine or container (on Windows: WSL 2)."
        )
    if not hasattr(os, "pidfd_open") or not hasattr(os, "memfd_create"):
        raise UnsupportedSystemError(
            "this Python was built without pidfd_open or memfd_create: Shoal needs Linux 5.3 and glibc 2.27"
        )


def _prctl(option: int, value: int | ctypes.Array[ctypes.c_char], what: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    argument = ctypes.c_ulong(value) if isinstance(value, int) else value
    if libc.prctl(option, argument, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        code = ctypes.get_errno()
        raise UnsupportedSystemError(f"this kernel refused to {what}: {os.strerror(code)}")


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send this process signal `number` when the *thread* that is its parent ends.

    The caller must look at `os.getppid()` afterwards: the parent may have died just before.

    Raises:
        UnsupportedSystemError: the kernel refuses.
    """
    _prctl(_PR_SET_PDEATHSIG, int(number), "set a parent-death signal")


def become_subreaper() -> None:
    """Have orphaned descendants become children of this process, not of init.

    Raises:
        UnsupportedSystemError: the kernel refuses.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "make this process a subreaper")


# ---------------------------------------------------------------- titles

_argv_room: tuple[int, int] | None = None  #: address and length of this process's argv memory; inherited by fork


def set_process_title(title: str) -> None:
    """Show `title` in `ps`, `top` and /proc instead of the command line. Cut to the length of the original command line.

    Best effort: where /proc is hidden nothing changes. Only for processes that are ours: a user's program keeps its name.
    """
    global _argv_room
    text = title.encode()
    try:
        _prctl(_PR_SET_NAME, ctypes.create_string_buffer(text[:15]), "set a process name")
        if _argv_room is None:
            with open("/proc/self/stat", "rb") as stat:
                # The second field, in parentheses, may hold spaces; fields after it count from 3.
                words = stat.read().rpartition(b")")[2].split()
            start, end = int(words[48 - 3]), int(words[49 - 3])
            with open("/proc/self/cmdline", "rb") as cmdline:
                # What is there must be what the kernel shows, or the addresses are not to be trusted.
                if not start or end - start < 2 or ctypes.string_at(start, end - start) != cmdline.read():
                    return
            _argv_room = start, end - start
    except (OSError, ValueError, IndexError, UnsupportedSystemError):
        return
    address, room = _argv_room
    # The last byte must stay 0: otherwise the kernel believes that the title goes on in the environment's memory.
    ctypes.memmove(address, text[: room - 1].ljust(room, b"\0"), room)


# ---------------------------------------------------------------- descriptors


def close_all_except(kept: Iterable[int], first: int = 3) -> None:
    """Close every file descriptor from `first` up that is not in `kept`."""
    low = first
    for fd in sorted(set(kept)):
        if fd >= low:
            os.closerange(low, fd)
            low = fd + 1
    os.closerange(low, 1 << 20)


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one, and return it.

    Raises:
        UnsupportedSystemError: even the hard limit is below `FILES_MIN`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass  # some containers forbid it: the soft limit may do
    limit = (1 << 20) if soft == resource.RLIM_INFINITY else soft
    if limit < FILES_MIN:
        raise UnsupportedSystemError(
            f"only {limit} open files are allowed, Shoal needs at least {FILES_MIN}: raise the limit with `ulimit -n 4096` "
            "or in /etc/security/limits.conf"
        )
    return limit


def require_files() -> None:
    """See that this process may open FILES_MIN files; the soft limit is raised only if it is lower.

    Raises:
        UnsupportedSystemError: the hard limit is lower too.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES_MIN:
        raise_file_limit()


# ---------------------------------------------------------------- ends


def exit_text(status: int) -> str:
    """How a process ended, for people: `status` is an exit code, or the negative number of a signal (as in `subprocess`)."""
    if status >= 0:
        return f"exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "a signal"
    return f"killed by {name} ({-status})"


def exit_status(wait_status: int) -> int:
    """The exit code, or the negative number of the signal, out of what `os.waitpid` returned."""
    return os.waitstatus_to_exitcode(wait_status)


def send_signal(pid: int, number: int) -> bool:
    """Send a signal; False when there is no such process any more."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill_group(pid: int) -> None:
    """Kill a worker together with what it started (workers lead a process group of their own)."""
    kill_orphans_of(pid)
    send_signal(pid, signal.SIGKILL)


def kill_orphans_of(pid: int) -> None:
    """Kill what the dead leader `pid` of a process group leaves in it."""
    if pid > 1:
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def reap(pid: int) -> int | None:
    """The exit status of the child `pid` if it has ended (it is then gone), None if it runs or is no child of ours."""
    try:
        done, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return exit_status(status) if done else None


def open_pidfd(pid: int) -> int:
    """A descriptor that is readable when `pid` has ended; -1 when there is no such process."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def wait_readable(fd: int, timeout_s: float) -> bool:
    """Wait until `fd` is readable (for a pidfd: its process has ended; for a pipe: data or its end). False after `timeout_s`."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        if poller.poll(left_s * 1000):
            return True
        if left_s == 0.0:
            return False


def wait_ended(pids: Iterable[int], timeout_s: float) -> list[int]:
    """Wait until all of `pids` have ended, reaping those that are children of this process.

    Returns:
        Those that still run after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    left: list[int] = []
    for pid in pids:
        pidfd = open_pidfd(pid) if pid > 0 else -1
        if pidfd >= 0:
            try:
                if not wait_readable(pidfd, deadline - time.monotonic()):
                    left.append(pid)
            finally:
                os.close(pidfd)
        if pid > 0:
            reap(pid)
    return left

"""Sessions on disk: make their folder, tell the living from the dead, and leave nothing behind.

Purpose: whoever sees a session's daemon end removes its folder: the daemon itself at a normal end, else the zygote or the GCS server; and
the next start removes what a dead machine left.

Design: `<base>/shoal-<uid>/<8 hex digits>/`, both folders 0700. A session lives while someone holds the flock on its `lock` file: the starter
takes it and hands it to the daemon, so there is no moment without a holder. Making and collecting are serialized by a lock beside them.

    remove_session(path)       idempotent, may run in several processes at once
    clear_session(path)        the same, after killing what is left of the session's processes: for a daemon that was killed
    guard_session(pid, path)   a thread that ends this process and clears the session when the daemon dies
    end_children(...)          a daemon's last act

Workers die with their daemon by the parent-death signal; what they had started does not, and is found by SESSION_VARIABLE in its environment.

What it does not do: kill processes of other sessions.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import stat
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from shoal.system.process import kill_group, open_pidfd, send_signal, wait_ended, wait_readable
from shoal.system.start_plan import SESSION_VARIABLE

LOCK_NAME = "lock"
SOCKET_FOLDER = "w"
MEMBERSHIP_NAME = "cluster.json"
_GUARDS = (b"shoal:zygote", b"shoal:gcs")  #: titles of the processes that clear up after a killed daemon
_SESSION_NAME = re.compile(r"[0-9a-f]{8}")
_LOCK_WAIT_S = 5.0
_REMOVE_TRIES = 20
_REMOVE_PAUSE_S = 0.01


def session_base(parent: str = "/tmp") -> str:
    """The folder of all sessions of this user, made if it is not there.

    Raises:
        PermissionError: it exists, but is another user's, or is not a folder.
    """
    base = os.path.join(parent, f"shoal-{os.geteuid()}")
    try:
        os.mkdir(base, 0o700)
    except FileExistsError:
        pass
    facts = os.lstat(base)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        raise PermissionError(
            f"{base} is not a folder of yours (owner: uid {facts.st_uid}), so sockets in it would not be safe. "
            "Remove it, or ask its owner or an administrator to."
        )
    if stat.S_IMODE(facts.st_mode) != 0o700:
        os.chmod(base, 0o700)
    return base


def create_session(parent: str = "/tmp") -> tuple[str, int]:
    """Remove the folders of dead sessions and make one for a new session.

    Returns:
        Its path and the fd that holds its lock (closed on exec); the session lives while a duplicate of it is open.

    Raises:
        PermissionError: see `session_base`.
        TimeoutError: another start has held the base folder for seconds.
        OSError: the folder cannot be made (disk full, read-only).
    """
    base = session_base(parent)
    base_lock = os.open(os.path.join(base, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock_base(base_lock, base)
        _remove_dead_sessions(base)
        while True:
            session_dir = os.path.join(base, os.urandom(4).hex())
            try:
                os.mkdir(session_dir, 0o700)
                break
            except FileExistsError:
                continue
        lock_fd = os.open(os.path.join(session_dir, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        os.mkdir(os.path.join(session_dir, SOCKET_FOLDER), 0o700)
        return session_dir, lock_fd
    finally:
        os.close(base_lock)


def live_sessions(parent: str = "/tmp") -> list[str]:
    """The folders of this user's sessions whose daemon lives, newest first."""
    base = session_base(parent)
    paths = [os.path.join(base, name) for name in os.listdir(base) if _SESSION_NAME.fullmatch(name)]
    live = [(os.stat(path).st_mtime, path) for path in paths if os.path.isdir(path) and not _is_dead(path)]
    return [path for _, path in sorted(live, reverse=True)]


def write_membership(session_dir: str, facts: dict[str, Any]) -> None:
    """Say in the session's folder which cluster its node belongs to, whole or not at all."""
    path = os.path.join(session_dir, MEMBERSHIP_NAME)
    with open(path + ".new", "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(facts, file)
    os.replace(path + ".new", path)


def read_membership(session_dir: str) -> dict[str, Any]:
    """What `write_membership` wrote: address (of the cluster, "HOST:PORT"), node_id, name, is_head, ...; empty for a node that is alone."""
    try:
        with open(os.path.join(session_dir, MEMBERSHIP_NAME)) as file:
            facts: dict[str, Any] = json.load(file)
    except (OSError, ValueError):
        return {}
    return facts


def remove_session(path: str) -> bool:
    """Remove a session's folder, whoever else is at it. For seconds at most; never raises for what it finds there.

    Args:
        path: a session folder; anything that does not look like one, or is another user's, is left alone.

    Returns:
        Whether it is gone.
    """
    base_name = os.path.basename(os.path.dirname(path))
    if base_name != f"shoal-{os.geteuid()}" or not _SESSION_NAME.fullmatch(os.path.basename(path)):
        return False
    for _ in range(_REMOVE_TRIES):
        # A dying worker may bind its socket between our listing and our rmdir: look again.
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return True
        time.sleep(_REMOVE_PAUSE_S)
    return False


def clear_session(path: str) -> None:
    """The daemon of this session was killed: kill what the dead workers had started, and remove the folder."""
    mark = f"{SESSION_VARIABLE}={path}".encode()
    own_pid = os.getpid()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == own_pid:
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as environment, open(f"/proc/{name}/cmdline", "rb") as title:
                # The others that guard the session end by themselves, and one of them must stay to the last.
                stray = mark in environment.read().split(b"\0") and not title.read().startswith(_GUARDS)
        except OSError:  # it has ended, or is not ours
            continue
        if stray:
            send_signal(int(name), signal.SIGKILL)
    remove_session(path)


def guard_session(daemon_pid: int, session_dir: str) -> threading.Thread:
    """In a child of the daemon: when the daemon has died, remove the session's folder and end this process at once.

    Raises:
        RuntimeError: `daemon_pid` is not the parent of this process (any more).
    """
    pidfd = open_pidfd(daemon_pid)
    if pidfd < 0 or os.getppid() != daemon_pid:
        raise RuntimeError("the node daemon is gone")

    def watch() -> None:
        while not wait_readable(pidfd, 3600.0):
            pass
        clear_session(session_dir)
        os._exit(0)

    thread = threading.Thread(target=watch, name="shoal-guard", daemon=True)
    thread.start()
    return thread


def end_children(
    session_dir: str, zygote_pid: int, gcs_pids: Sequence[int], worker_pids: Iterable[int], grace_s: float = 0.1
) -> list[int]:
    """A daemon's last act: end all its processes, wait for them, remove the folder. Takes a few milliseconds when all obey.

    The GCS servers are asked first (SIGTERM) and have `grace_s` to finish writing; workers and the zygote have nothing to lose.
    Close the `ZygoteClient` before or after: the zygote is killed here.

    Returns:
        Pids that did not end even so (stuck in the kernel): they die with it.
    """
    workers = list(worker_pids)
    for pid in gcs_pids:
        send_signal(pid, signal.SIGTERM)
    send_signal(zygote_pid, signal.SIGKILL)
    for pid in workers:
        kill_group(pid)
    for pid in wait_ended(gcs_pids, grace_s):
        send_signal(pid, signal.SIGKILL)
    left = wait_ended([zygote_pid, *gcs_pids, *workers], 1.0)
    kill_children()
    remove_session(session_dir)
    return left


def kill_children() -> None:
    """Kill and reap every child of this process.

    As subreaper a daemon inherits what its workers started, and workers that nobody had heard of.
    """
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        pids: list[int] = []
        for thread in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{thread}/children") as file:
                    pids += [int(word) for word in file.read().split()]
            except OSError:  # the thread has ended, or the kernel does not list children
                continue
        if not pids:
            return
        for pid in pids:
            send_signal(pid, signal.SIGKILL)
        wait_ended(pids, 0.5)


def _lock_base(lock_fd: int, base: str) -> None:
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"another process has held {base}/.lock for {_LOCK_WAIT_S} s: `fuser {base}/.lock` names it"
                ) from None
            time.sleep(0.005)


def _remove_dead_sessions(base: str) -> None:
    for name in os.listdir(base):
        path = os.path.join(base, name)
        if _SESSION_NAME.fullmatch(name) and _is_dead(path):
            remove_session(path)


def _is_dead(path: str) -> bool:
    """Whether nobody holds the session's lock. Under the base folder's lock a session without a lock file is a half-removed one."""
    try:
        lock_fd = os.open(os.path.join(path, LOCK_NAME), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask do not disturb each other
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(lock_fd)

"""What the processes of all sessions of a test run write into their logs: an unexpected exception there fails the test that runs.

Daemon, GCS servers and workers catch what they did not expect, write "internal error ... please report it" with a traceback, and go on: so a bug
may show as a hang of something else, or as nothing. A session's folder goes with the session, often before its test ends; so a thread waits
(inotify) for new folders and opens the logs as they appear. An open file can be read when its name is gone.

`watch(parent)` is for tests whose sessions lie elsewhere. A test that provokes such an error is marked `internal_errors`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import tempfile
import threading
import time
from pathlib import Path

import psutil

MARK = b"internal error"
SHOWN_BYTES = 6000
GONE_WITHIN_S = 60.0

_IN_CREATE, _IN_MOVED_TO, _IN_ISDIR, _IN_IGNORED = 0x100, 0x80, 0x40000000, 0x8000
_EVENT = struct.Struct("iIII")


class SessionLogs:
    """The logs of the sessions under some folders."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_CLOEXEC)
        assert self._fd >= 0, os.strerror(ctypes.get_errno())
        self._lock = threading.Lock()
        self._folders: dict[int, Path] = {}
        #: name of every session -> the test in which it began
        self.begun: dict[str, str] = {}
        #: path -> fd, how much was read
        self._logs: dict[Path, list[int]] = {}
        self._thread = threading.Thread(target=self._follow, name="session-logs", daemon=True)
        self._thread.start()

    def watch(self, parent: str | Path) -> Path:
        """Follow the sessions in `parent` (SHOAL_TMPDIR); returns the folder that they lie in."""
        base = Path(parent) / f"shoal-{os.geteuid()}"
        base.mkdir(0o700, exist_ok=True)
        with self._lock:
            self._add_folder(base)
        return base

    def new_errors(self) -> str:
        """What was written since the last call, from the first unexpected exception on; empty if there is none."""
        found = []
        with self._lock:
            for path, log in list(self._logs.items()):
                fd, offset = log
                facts = os.fstat(fd)
                if facts.st_size > offset:
                    text = os.pread(fd, facts.st_size - offset, offset)
                    log[1] = facts.st_size
                    at = text.find(MARK)
                    if at >= 0:
                        found.append(f"{path}:\n{text[at : at + SHOWN_BYTES].decode(errors='replace')}")
                if not facts.st_nlink:
                    os.close(fd)
                    del self._logs[path]
        return "\n".join(found)

    def _follow(self) -> None:
        while True:
            events = os.read(self._fd, 1 << 16)
            with self._lock:
                while events:
                    watch, mask, _, size = _EVENT.unpack_from(events)
                    name = events[_EVENT.size : _EVENT.size + size].rstrip(b"\0").decode()
                    events = events[_EVENT.size + size :]
                    if mask & _IN_IGNORED:
                        self._folders.pop(watch, None)
                    elif watch in self._folders:
                        self._found(self._folders[watch] / name, bool(mask & _IN_ISDIR))

    def _found(self, path: Path, is_folder: bool) -> None:
        if is_folder:
            # shoal-0/SESSION and shoal-0/SESSION/logs, nothing deeper
            if path.parent.name.startswith("shoal-"):
                self.begun[path.name] = os.environ.get("PYTEST_CURRENT_TEST", "")
                self._add_folder(path)
            elif path.name == "logs":
                self._add_folder(path)
        elif (path.name == "node.log" or path.parent.name == "logs") and path not in self._logs:
            try:
                self._logs[path] = [os.open(path, os.O_RDONLY | os.O_CLOEXEC), 0]
            except OSError:
                pass

    def _add_folder(self, path: Path) -> None:
        watch = self._libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_CREATE | _IN_MOVED_TO)
        if watch < 0:
            return  # it is gone again
        self._folders[watch] = path
        for inside in list(path.iterdir()) if path.is_dir() else ():  # what was there before the watch
            self._found(inside, inside.is_dir())


LOGS = SessionLogs()


def private_folder() -> str:
    """Give the sessions of this test run, also those of its programs, a folder of their own, which is followed."""
    parent = tempfile.mkdtemp(
        prefix="sht", dir=os.environ.get("SHOAL_TMPDIR") or "/tmp"
    )  # names of sockets must be short
    os.environ["SHOAL_TMPDIR"] = parent
    LOGS.watch(parent)
    return parent


def remove_private_folder(parent: str) -> None:
    """Fail unless all sessions of the run end within a minute: a killed daemon's are ended by others. What a machine that loses power leaves, as
    some tests have it, the next start would remove."""
    from shoal.system.janitor import live_sessions

    deadline = time.monotonic() + GONE_WITHIN_S
    while left := live_sessions(parent):
        assert time.monotonic() < deadline, "sessions are left behind:\n" + "\n".join(map(_describe, left))
        time.sleep(0.05)
    shutil.rmtree(parent)


def _describe(session: str) -> str:
    """A session that is left: the test in which it began, its processes, and the end of its daemon's log."""
    ours = [f"{each.pid} {each.name()}" for each in psutil.process_iter() if _is_of(each, session)]
    try:
        log = (Path(session) / "node.log").read_text(errors="replace")[-SHOWN_BYTES:]
    except OSError as error:
        log = str(error)
    return f"{session}, begun in {LOGS.begun.get(Path(session).name)}; processes: {', '.join(ours)}; node.log:\n{log}"


def _is_of(process: psutil.Process, session: str) -> bool:
    """Whether a process has a file of a session open, or was started for it."""
    try:
        return any(session in each for each in process.cmdline()) or any(
            session in each.path for each in process.open_files()
        )
    except psutil.Error:
        return False

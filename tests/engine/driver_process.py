"""Drivers as processes of their own, and what they leave behind.

`Driver(script)` runs a script that imports shoal. Every process that comes of it inherits a mark in its environment, so `left_behind` finds all of
them, also those that lost their parents.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import TracebackType

SOURCE = Path(__file__).resolve().parents[2] / "src"
MARK = "SHOAL_TEST_MARK"

HEARD = """
import sys, time
class Heard:
    '''A stream that knows what was written: lines of other nodes may come some time after the results of their tasks.'''
    def __init__(self, stream):
        self.stream, self.text = stream, ""
    def write(self, text):
        self.text += text
        return self.stream.write(text)
    def flush(self):
        self.stream.flush()
    def wait_for(self, words):
        deadline = time.monotonic() + 60
        while words not in self.text:
            assert time.monotonic() < deadline, words
            time.sleep(0.01)
"""

PRELUDE = """
import os, signal, subprocess, sys, threading, time
import shoal
def session(**options):
    context = shoal.init(**{"num_cpus": 2, **options})
    print("SESSION", context["session_dir"], flush=True)
    return context
@shoal.remote
def one():
    return 1
@shoal.remote
def pid():
    return os.getpid()
@shoal.remote
def slow(seconds):
    time.sleep(seconds)
@shoal.remote(num_cpus=0)
class Actor:
    def pid(self):
        return os.getpid()
    def child(self):
        return subprocess.Popen(["sleep", "100"]).pid
    def slow(self, seconds):
        time.sleep(seconds)
@shoal.remote
def child():
    return subprocess.Popen(["sleep", "100"]).pid
def daemon_pid():
    from shoal.api import session as module
    return module._head.pid
def role_pid(role, within_s=30):
    for pid in os.listdir("/proc"):
        try:
            status = open(f"/proc/{pid}/stat").read()
            title = open(f"/proc/{pid}/cmdline", "rb").read()
        except OSError:
            continue
        if title.startswith(f"shoal:{role}".encode()) and int(status.rpartition(")")[2].split()[1]) == daemon_pid():
            return int(pid)
    if within_s <= 0:
        raise LookupError(role)
    time.sleep(0.05)
    return role_pid(role, within_s - 0.05)
"""


class Driver:
    """A script run by an interpreter of its own; `with` kills it at the end, with all that came of it."""

    def __init__(self, script: str, *, prelude: str = PRELUDE, **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        self.folder: str | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", prelude + script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE), MARK: self.mark, **environment},
            start_new_session=True,
        )

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def wait_line(self, word: str) -> str:
        """Read stdout until a line begins with `word`; the rest of that line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            first, _, rest = line.strip().partition(" ")
            if first == "SESSION":
                self.folder = rest
            if first == word:
                return rest
        assert self.process.stderr is not None
        raise AssertionError(f"the driver ended without saying {word}: {self.process.stderr.read()}")

    def finish(self, timeout_s: float = 90.0) -> tuple[int, str, str]:
        """Wait for the end: exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=timeout_s)
        for line in out.splitlines():
            if line.startswith("SESSION "):
                self.folder = line.partition(" ")[2]
        return self.process.returncode, out, err

    def processes(self) -> list[int]:
        """Pids of the living processes that came of the driver, except itself."""
        mark = f"{MARK}={self.mark}".encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != self.process.pid:
                try:
                    with open(f"/proc/{name}/environ", "rb") as file:
                        if mark in file.read():
                            found.append(int(name))
                except OSError:
                    continue
        return found

    def left_behind(self, within_s: float = 30.0) -> list[str]:
        """What there still is `within_s` after the end; an empty list as soon as there is nothing."""
        deadline = time.monotonic() + within_s
        while True:
            left = [_describe(pid) for pid in self.processes()]
            if self.folder is not None and os.path.exists(self.folder):
                left.append(self.folder)
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.01)


def _describe(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return f"{pid}: {file.read().replace(bytes(1), b' ').decode(errors='replace').strip()[:80]}"
    except OSError:
        return str(pid)


def run(script: str, timeout_s: float = 90.0, **environment: str) -> tuple[str, str]:
    """Run a script to its good end, check that nothing is left, and return what it printed."""
    with Driver(script, **environment) as driver:
        code, out, err = driver.finish(timeout_s)
        assert code == 0, f"exit code {code}\n{out}\n{err}"
        assert driver.left_behind() == []
        return out, err

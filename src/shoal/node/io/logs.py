"""What workers print: from their pipes to files and to drivers.

Purpose: every complete line that a worker writes to stdout or stderr reaches the driver of the job it works for, in order, under the name
of what ran, and stands in a file of the session; a flood of lines slows neither the worker nor the daemon.

Design: one `LogStream` a pipe. A wake-up reads once (READ_BYTES at most), so the loop's other work waits for a bounded time; all complete
lines of that read leave as one batch. A line `\\x01shoal:name:<text>` is not printed: it names the lines that follow. The tail of
stderr is kept for death notices.

    pipe -> read <= 64 kB -> split -> file (capped, one older part kept) + deliver(pid, name, stream, lines) + tail

What it does not do: choose the driver or drop lines for a slow one (`deliver` belongs to the caller), or format.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("shoal.node")

NAME_MARKER = b"\x01shoal:name:"
STDOUT = 1
STDERR = 2
READ_BYTES = 64 << 10
LINE_BYTES_MAX = 64 << 10  #: a longer line is cut in pieces
FILE_BYTES_MAX = 10 << 20
TAIL_LINES = 20
DRAIN_READS_MAX = 1024  #: bounds what is read after a worker's death, if a child of it still writes

Deliver = Callable[[int, str, int, list[str]], None]  #: (pid, name, stream, lines)


class LineSplitter:
    """Bytes in, (name, lines) out. Pure; one a stream.

    A marker line sets the name of the lines after it. `tail` holds the last lines.
    """

    __slots__ = ("_partial", "name", "tail")

    def __init__(self) -> None:
        self._partial = b""
        self.name = ""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    def split(self, chunk: bytes) -> list[tuple[str, bytes]]:
        """The complete lines (ending in a newline) that `chunk` finishes, as runs of one name."""
        head, newline, rest = chunk.rpartition(b"\n")
        if not newline:
            self._partial += chunk
            if len(self._partial) <= LINE_BYTES_MAX:
                return []
            head, rest = self._partial, b""
        else:
            head = self._partial + head
        self._partial = rest
        if NAME_MARKER not in head:
            return [(self.name, head + b"\n")]
        return self._split_named(head)

    def _split_named(self, block: bytes) -> list[tuple[str, bytes]]:
        runs: list[tuple[str, bytes]] = []
        lines: list[bytes] = []
        for line in block.split(b"\n"):
            if line.startswith(NAME_MARKER):
                if lines:
                    runs.append((self.name, b"\n".join(lines) + b"\n"))
                    lines = []
                self.name = line[len(NAME_MARKER) :].decode("utf-8", "replace")
            else:
                lines.append(line)
        if lines:
            runs.append((self.name, b"\n".join(lines) + b"\n"))
        return runs

    def finish(self) -> list[tuple[str, bytes]]:
        """The unfinished last line, if there is one."""
        rest, self._partial = self._partial, b""
        return self.split(rest + b"\n") if rest else []


class CappedFile:
    """Appends to `path`; past FILE_BYTES_MAX the file becomes `<path>.1` (replacing an older one) and a new one begins."""

    __slots__ = ("_fd", "_size", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1  # opened at the first line: most workers print nothing
        self._size = 0

    def write(self, block: bytes) -> None:
        """Append; an error (a full disk) ends the file, not the worker."""
        if self._fd == -2:
            return
        try:
            if self._size > FILE_BYTES_MAX:
                os.close(self._fd)
                self._fd = -1
                os.replace(self.path, self.path + ".1")
            if self._fd == -1:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                self._size = 0
            self._size += os.write(self._fd, block)
        except OSError as error:
            log.warning("cannot write %s: %s; its further lines reach drivers only", self.path, error)
            self.close()
            self._fd = -2

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class LogStream:
    """One pipe of one worker, read as it fills.

    Args:
        fd: the read end; owned by the stream from now on.
        stream: STDOUT or STDERR.
        path: file that keeps the lines; "" for none.
        deliver: gets every batch of lines, in order.
    """

    __slots__ = ("_deliver", "_file", "_loop", "_splitter", "fd", "pid", "stream")

    def __init__(
        self, fd: int, pid: int, stream: int, path: str, deliver: Deliver, loop: asyncio.AbstractEventLoop
    ) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.pid = pid
        self.stream = stream
        self._splitter = LineSplitter()
        self._file = CappedFile(path) if path else None
        self._deliver = deliver
        self._loop = loop
        loop.add_reader(fd, self._read_ready)

    @property
    def tail(self) -> list[str]:
        """The last lines, oldest first."""
        return list(self._splitter.tail)

    def _read_ready(self) -> None:
        if self._read_once() == 0:
            self.close()

    def _read_once(self) -> int:
        """Bytes read and taken; 0 at the end of the pipe, -1 when nothing is there now."""
        if self.fd < 0:
            return 0
        try:
            chunk = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return -1
        except OSError:
            return 0
        if chunk:
            self._take(self._splitter.split(chunk))
        return len(chunk)

    def _take(self, runs: list[tuple[str, bytes]]) -> None:
        for name, block in runs:
            if self._file is not None:
                self._file.write(block)
            lines = block.decode("utf-8", "replace").split("\n")
            lines.pop()
            self._splitter.tail.extend(lines[-TAIL_LINES:])
            self._deliver(self.pid, name, self.stream, lines)

    def drain(self) -> None:
        """Read all that is there: after the worker's death, before it is announced."""
        for _ in range(DRAIN_READS_MAX):
            if self._read_once() <= 0:
                return

    def close(self) -> None:
        """Deliver the unfinished line, then stop."""
        if self.fd < 0:
            return
        self._loop.remove_reader(self.fd)
        os.close(self.fd)
        self.fd = -1
        self._take(self._splitter.finish())
        if self._file is not None:
            self._file.close()

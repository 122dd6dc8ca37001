"""What workers print: from their pipes to files and to drivers.

Purpose: every complete line that a worker writes to stdout or stderr reaches the driver of the job it works for, in order, under the name
of what ran, and stands in a file of the session; a flood of lines slows neither the worker nor the daemon.

Design: one `LogStream` a pipe. A wake-up reads once (READ_BYTES at most), so the loop's other work waits for a bounded time; all complete
lines of that read leave as one batch. A line `\\x01shoal:name:<text>` is not printed: it names the lines that follow. The tail of
stderr is kept for death notices.

    pipe -> read <= 64 kB -> split -> file (capped, one older part kept) + deliver(worker, name, stream, lines) + tail

`LogRouter` sends them to the drivers of the job. A driver that does not read (busy in a long computation) must not stop the workers, so
past DRIVER_WAITING_BYTES_MAX its lines are dropped, counted, and the count is told when it reads again; the file has them all.

What it does not do: format or colour lines, or merge equal ones (the driver does).
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.protocol.messages import LogLines

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from shoal.node.io.processes import Driver, Worker

log = logging.getLogger("shoal.node")

NAME_MARKER = b"\x01shoal:name:"
STDOUT = 1
STDERR = 2
READ_BYTES = 64 << 10
LINE_BYTES_MAX = 64 << 10  #: a longer line is cut in pieces
FILE_BYTES_MAX = 10 << 20
TAIL_LINES = 20
DRIVER_WAITING_BYTES_MAX = 64 << 20  #: far below OUT_BYTES_MAX, where the connection ends
FLUSH_READS = 4  #: more than a pipe holds
DRAIN_READS_MAX = 1024  #: bounds what is read after a worker's death, if a child of it still writes

Deliver = Callable[[Any, str, int, list[str]], None]  #: (worker, name, stream, lines)


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
    """Appends to a file, named by `path()` at the first line; past FILE_BYTES_MAX it becomes `<path>.1` (replacing an older one)."""

    __slots__ = ("_fd", "_path", "_size")

    def __init__(self, path: Callable[[], str]) -> None:
        self._path = path
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
                os.replace(self._path(), self._path() + ".1")
            if self._fd == -1:
                self._fd = os.open(self._path(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                self._size = 0
            self._size += os.write(self._fd, block)
        except OSError as error:
            log.warning("cannot write %s: %s; its further lines reach drivers only", self._path(), error)
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
        path: names the file that keeps the lines, when there are any; a pid may not be known before.
        deliver: gets every batch of lines, in order, and `worker` with it.
    """

    __slots__ = ("_deliver", "_file", "_loop", "_splitter", "_worker", "fd", "stream")

    def __init__(
        self,
        fd: int,
        stream: int,
        path: Callable[[], str],
        deliver: Deliver,
        worker: Any,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.stream = stream
        self._splitter = LineSplitter()
        self._file = CappedFile(path)
        self._worker = worker
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
            self._file.write(block)
            lines = block.decode("utf-8", "replace").split("\n")
            lines.pop()
            self._splitter.tail.extend(lines[-TAIL_LINES:])
            self._deliver(self._worker, name, self.stream, lines)

    def drain(self) -> None:
        """Read all that is there: after the worker's death, before it is announced."""
        for _ in range(DRAIN_READS_MAX):
            if self._read_once() <= 0:
                return

    def flush(self) -> None:
        """Deliver what is there now and the unfinished line; a worker that goes on printing does not keep us."""
        for _ in range(FLUSH_READS):
            if self._read_once() <= 0:
                break
        self._take(self._splitter.finish())

    def close(self) -> None:
        """Deliver the unfinished line, then stop."""
        if self.fd < 0:
            return
        self._loop.remove_reader(self.fd)
        os.close(self.fd)
        self.fd = -1
        self._take(self._splitter.finish())
        self._file.close()


class LogRouter:
    """Lines of workers to the drivers of their jobs. `drivers()` lists the drivers there are."""

    __slots__ = ("_drivers", "abroad")

    def __init__(self, drivers: Callable[[], Iterable[Driver]]) -> None:
        self._drivers = drivers
        #: takes the lines of jobs that have no driver here; None on a node that is alone
        self.abroad: Deliver | None = None

    def deliver(self, worker: Worker, name: str, stream: int, lines: list[str]) -> None:
        """Send `lines` to the driver of the job that `worker` works (or worked last) for."""
        for driver in self._drivers():
            if driver.job_id == worker.job_id:
                send_lines(driver, LogLines(worker.pid, name, stream, lines))
                return
        if self.abroad is not None:
            self.abroad(worker, name, stream, lines)


def send_lines(driver: Driver, message: LogLines) -> None:
    """Send lines to a driver that wants them; while it does not read, they are dropped and counted."""
    if not driver.log_to_driver or driver.connection is None:
        return
    who = (message.node, message.pid)
    if driver.connection.waiting_bytes > DRIVER_WAITING_BYTES_MAX:
        driver.lines_dropped[who] = driver.lines_dropped.get(who, 0) + len(message.lines)
        return
    dropped = driver.lines_dropped.pop(who, 0)
    if dropped:
        note = f"[{dropped} lines are not shown: they came faster than this program read them; the session's log file has them]"
        message.lines = [note, *message.lines]
    driver.send(message)

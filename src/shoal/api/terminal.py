"""What workers print, on the driver's terminal: prefixed with who printed, repeated lines counted instead of printed.

Design: a line that another process printed within the last 5 s is counted; the count is told when the line comes again after that, when the
5 s are over, or at the session's end, so a thousand workers that warn of the same thing fill two lines. Lines that differ in anything, digits
too, are all printed. SHOAL_DEDUP_LOGS=0 prints everything.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from time import monotonic

from shoal.protocol.messages import LogLines, Notice

REPEAT_WINDOW_S = 5.0
REMEMBERED_LINES_MAX = 1000


class _Seen:
    """A line that was printed, and how often others have printed it since."""

    __slots__ = ("count", "message", "since")

    def __init__(self, message: LogLines, since: float) -> None:
        self.message = message
        self.since = since
        self.count = 0


class LogPrinter:
    """Prints what workers print and what the node has to say; one for each session.

    Messages are taken (`take`) under the runtime's lock and printed (`drain`) outside of it: a terminal that is stopped must not stop
    submissions. Whoever prints prints everything taken so far, in order; a second thread leaves it to the first.
    """

    def __init__(self) -> None:
        #: text -> who printed it first; in the order of `since`
        self._seen: dict[str, _Seen] = {}
        self._taken: deque[LogLines | Notice] = deque()
        self._printing = threading.Lock()
        self._deduplicate = os.environ.get("SHOAL_DEDUP_LOGS", os.environ.get("RAY_DEDUP_LOGS", "1")) != "0"

    def take(self, message: LogLines | Notice) -> None:
        """Keep a message until `drain`."""
        self._taken.append(message)

    def drain(self) -> None:
        """Print what was taken."""
        while self._taken and self._printing.acquire(False):
            try:
                while self._taken:
                    message = self._taken.popleft()
                    if isinstance(message, LogLines):
                        self.print_lines(message)
                    else:
                        self.print_notice(message)
            finally:
                self._printing.release()

    def print_lines(self, message: LogLines) -> None:
        """Print what is new of a message, with one write."""
        now = monotonic()
        self.tell_repeats(now)
        prefix = _prefix(message)
        out = [f"{prefix}{line}\n" for line in message.lines if self._is_new(line, message, now)]
        if out:
            _write(message.stream, "".join(out))

    def _is_new(self, line: str, message: LogLines, now: float) -> bool:
        """Whether to print a line; another process's repetition of it is counted."""
        if not self._deduplicate or not line.strip():
            return True
        seen = self._seen.get(line)
        if seen is None:
            if len(self._seen) >= REMEMBERED_LINES_MAX:
                oldest = next(iter(self._seen))
                self._tell(oldest, self._seen.pop(oldest))
            self._seen[line] = _Seen(message, now)
            return True
        if (seen.message.node, seen.message.pid) == (message.node, message.pid):
            return True
        seen.count += 1
        return False

    def tell_repeats(self, now: float = float("inf")) -> None:
        """Print the counts of lines whose time is over; of all, without `now`."""
        while self._seen:
            line = next(iter(self._seen))
            if now - self._seen[line].since <= REPEAT_WINDOW_S:
                return
            self._tell(line, self._seen.pop(line))

    def _tell(self, line: str, seen: _Seen) -> None:
        if seen.count:
            times = f"{seen.count} time{'s' if seen.count > 1 else ''}"
            _write(seen.message.stream, f"{_prefix(seen.message)}{line} [repeated {times} by other workers]\n")

    def print_notice(self, message: Notice) -> None:
        """Print a sentence of the node for the user."""
        _write(2, f"shoal: {message.level}: {message.text}\n")


def _prefix(message: LogLines) -> str:
    where = f", node={message.node}" if message.node else ""
    return f"({message.name or 'worker'} pid={message.pid}{where}) "


def _write(stream: int, text: str) -> None:
    try:
        # Looked up each time: notebooks and tests replace them.
        file = sys.stdout if stream == 1 else sys.stderr
        file.write(text)
        file.flush()
    except (OSError, ValueError, AttributeError):
        pass  # the terminal is gone; that is no reason to end a session

"""What workers print, on the driver's terminal: prefixed with who printed, repeated lines counted instead of printed.

Design: a line that another process printed within the last 5 s is counted; the count is printed when the line comes again after that, so a
thousand workers that warn of the same thing fill one line. Lines that differ in anything, digits too, are all printed.
"""

from __future__ import annotations

import os
import sys
from time import monotonic

from shoal.protocol.messages import LogLines, Notice

REPEAT_WINDOW_S = 5.0
REMEMBERED_LINES_MAX = 1000


class LogPrinter:
    """Prints LogLines messages; one for each session."""

    def __init__(self) -> None:
        #: text -> (pid that printed it first, when, how often suppressed)
        self._recent: dict[str, tuple[int, float, int]] = {}
        self._deduplicate = os.environ.get("SHOAL_DEDUP_LOGS", os.environ.get("RAY_DEDUP_LOGS", "1")) != "0"

    def print_lines(self, message: LogLines) -> None:
        """Print what is new of a message, with one write."""
        stream = sys.stdout if message.stream == 1 else sys.stderr
        prefix = f"({message.name or 'worker'} pid={message.pid}) "
        now = monotonic()
        out = []
        for line in message.lines:
            note = self._judge(line, message.pid, now)
            if note is not None:
                out.append(f"{prefix}{line}{note}\n")
        if out:
            try:
                stream.write("".join(out))
                stream.flush()
            except (OSError, ValueError):
                pass  # the terminal is gone; that is no reason to end a session

    def _judge(self, line: str, pid: int, now: float) -> str | None:
        """None for a line to suppress, else what to append to it."""
        if not self._deduplicate or not line.strip():
            return ""
        known = self._recent.get(line)
        if known is None or now - known[1] > REPEAT_WINDOW_S or known[0] == pid:
            if len(self._recent) >= REMEMBERED_LINES_MAX:
                self._recent.pop(next(iter(self._recent)))
            self._recent[line] = (pid, now, 0)
            return f" [repeated {known[2]} times by others]" if known is not None and known[2] else ""
        self._recent[line] = (known[0], known[1], known[2] + 1)
        return None

    def print_notice(self, message: Notice) -> None:
        """Print a sentence of the node for the user."""
        print(f"shoal: {message.level}: {message.text}", file=sys.stderr, flush=True)

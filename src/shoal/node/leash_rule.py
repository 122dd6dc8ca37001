"""Until when the restartable actors of a node may answer: the rule of `node/io/leash.py`, without clocks.

Purpose: one small machine for the daemon and for simulations of partitions.

Design: times are arguments, in ns of the node's own clock; what counts is when something was *sent* that the GCS has confirmed, never when the
confirmation came: that may have been on its way for long.

What it does not do: know actors.
"""

from __future__ import annotations

from collections import deque

from shoal.protocol.limits import ANSWERS_WITHHELD_AFTER_S

WITHHELD_AFTER_NS = int(ANSWERS_WITHHELD_AFTER_S * 1e9)


class LeashRule:
    """What a node knows of the GCS having heard it."""

    __slots__ = ("_sent", "until_ns")

    def __init__(self) -> None:
        #: heartbeats sent and not acknowledged: (number, when)
        self._sent: deque[tuple[int, int]] = deque()
        #: until then restartable actors may answer; not 0, which would mean that there is no leash
        self.until_ns = 1

    def registered(self, sent_ns: int) -> None:
        """The GCS has accepted the RegisterNode of `sent_ns`. Heartbeats are numbered anew."""
        self._sent.clear()
        self._extend(sent_ns)

    def sent(self, count: int, now_ns: int) -> None:
        """Heartbeat number `count` is about to be sent."""
        self._sent.append((count, now_ns))

    def acknowledged(self, count: int) -> None:
        """The GCS has heard heartbeat number `count`."""
        while self._sent and self._sent[0][0] <= count:
            self._extend(self._sent.popleft()[1])

    def withholds(self, now_ns: int) -> bool:
        """Whether restartable actors may say nothing now."""
        return self.until_ns < now_ns

    def _extend(self, sent_ns: int) -> None:
        self.until_ns = max(self.until_ns, sent_ns + WITHHELD_AFTER_NS)

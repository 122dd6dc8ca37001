"""When a node gives up its cluster's head: a machine without clocks and sockets.

Purpose: whoever waits for what ran on a lost head waits in vain, as nobody is left who could declare it dead. After a while that can be set, a node
that hears nothing of its head ends, and its programs are told why.

Design: the GCS may be away for as long as it likes while the head's *daemon* lives: that starts another one, or gives up and ends itself. So while
the GCS is silent the daemon is asked whether it is there (`ProbeHead`, answered by `HeadProbed`), and only time in which neither was heard counts.
When another head may take this one's place (tables in Redis) the node waits without end, unless it was told how long.

    GcsAway --> ProbeHead --> HeadProbed(lives) --> WakeAt --> TimePassed --> ProbeHead ... GcsAnswers: nothing is asked any more
                                       `- not for `patience_s`: GiveUp

What it does not do: ask (`node/io/head_watch.py`); end the node (`daemon`).
"""

from __future__ import annotations

from dataclasses import dataclass

PROBE_PAUSE_S = 5.0  #: between two questions; less when there is less patience


@dataclass(slots=True)
class GcsAway:
    """There has been no connection to the GCS since `since`."""

    since: float


@dataclass(slots=True)
class GcsAnswers:
    """This node is registered there (again)."""


@dataclass(slots=True)
class HeadProbed:
    """The head's daemon has proved that it lives, or not."""

    lives: bool


@dataclass(slots=True)
class TimePassed:
    """The time of the last `WakeAt` has come."""


@dataclass(slots=True)
class ProbeHead:
    """Ask the head's daemon whether it lives."""


@dataclass(slots=True)
class WakeAt:
    """Say `TimePassed` then."""

    at: float


@dataclass(slots=True)
class GiveUp:
    """Nothing has been heard of the head since `since`: the node is to end."""

    since: float


Event = GcsAway | GcsAnswers | HeadProbed | TimePassed
Effect = ProbeHead | WakeAt | GiveUp


class HeadPatience:
    """One node's patience with its head. `patience_s` is infinite for one that waits without end."""

    __slots__ = ("_asking", "heard_at", "is_away", "is_lost", "patience_s")

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self.is_away = False  #: the GCS
        self.is_lost = False  #: the head's daemon has not answered the last question either
        self.heard_at = 0.0  #: when the GCS or the head's daemon was heard last, while the GCS is away
        self._asking = False  #: a question is under way

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what happened; returns what to do about it."""
        if type(event) is GcsAway:
            if self.is_away:
                return []
            self.is_away = True
            self.heard_at = event.since
            return self._ask()
        if type(event) is GcsAnswers:
            self.is_away = self.is_lost = False
            return []
        if type(event) is HeadProbed:
            self._asking = False
            return self._probed(event.lives, now) if self.is_away else []
        return self._ask() if self.is_away else []

    def _ask(self) -> list[Effect]:
        if self._asking:
            return []
        self._asking = True
        return [ProbeHead()]

    def _probed(self, lives: bool, now: float) -> list[Effect]:
        self.is_lost = not lives
        if lives:
            self.heard_at = now
        ends_at = self.heard_at + self.patience_s
        if now >= ends_at:
            self.is_away = False  # said once
            return [GiveUp(self.heard_at)]
        return [WakeAt(min(now + PROBE_PAUSE_S, ends_at))]

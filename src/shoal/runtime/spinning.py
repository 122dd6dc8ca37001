"""Whether a thread that waits for its sockets should poll for a moment before it sleeps.

Purpose: round trips of 20 us where both ends have a CPU, and no waste where they have not.

Design: polling ("spinning") saves two wake-ups where the other end runs on a CPU of its own. Where both share one, which the kernel likes on
a small machine because the one wakes the other, it is the spinning itself that keeps the other end from running: each wait then lasts as long as
the spinning does. Nobody can tell a process which of the two it is, so it tries:

    after a pause of so many waits, or when it has spun in vain several times in a row, a few waits are begun the other way; the medians of
    these and of the waits just before decide. The pause doubles while the answer stays the same, up to a tenth of a second of waits.

Medians, because one preemption would outweigh everything. What spinning gains is partly gained by the other end, which this one does not see;
so it is given up only when sleeping is clearly shorter.

What it does not do: wait. `Reactor` does, and tells it how long each wait was. Measured: 0.25 us a wait.
"""

from __future__ import annotations

BIAS = 1.25  #: how much longer the waits may be with spinning
COMPARED_WAIT_S = 1e-3  #: longer waits say nothing
TRIAL_WAITS = 6  #: the first of them is not counted: it meets what the other way has left
PAUSE_MIN = 32
PAUSE_MAX = 2048
VAIN_MAX = 4
_RECENT = 7


class Spinning:
    """The rule of one process. `spins` says how the next wait is to begin."""

    __slots__ = ("_left", "_pause", "_place", "_recent", "_trial", "_vain", "spins")

    def __init__(self) -> None:
        self.spins = True
        #: the last waits of the way that was chosen
        self._recent = [0.0] * _RECENT
        self._place = 0
        #: waits until the next trial
        self._left = self._pause = PAUSE_MIN
        self._vain = 0  #: waits in a row that had to sleep although they had spun
        self._trial: list[float] | None = None  #: the waits of a trial that is going on

    def waited(self, seconds: float, in_vain: bool) -> None:
        """A wait has ended; `in_vain`: it had spun, and slept all the same."""
        if seconds > COMPARED_WAIT_S:
            return
        trial = self._trial
        if trial is not None:
            trial.append(seconds)
            if len(trial) == TRIAL_WAITS:
                self._decide(trial)
            return
        place = self._place
        self._recent[place] = seconds
        self._place = place + 1 if place < _RECENT - 1 else 0
        self._left -= 1
        if in_vain:
            self._vain += 1
            if self._vain == VAIN_MAX and self._pause - self._left >= PAUSE_MIN // 2:
                self._left = 0
        else:
            self._vain = 0
        if self._left <= 0:
            self._trial = []
            self.spins = not self.spins

    def _decide(self, trial: list[float]) -> None:
        """The trial is over: stay with its way, or go back."""
        self._trial = None
        self._vain = 0
        tried_s = sorted(trial[1:])[(TRIAL_WAITS - 1) // 2]
        before_s = sorted(self._recent)[_RECENT // 2]
        if self.spins:
            stays = tried_s < BIAS * before_s
        else:
            stays = before_s >= BIAS * tried_s
        if stays:
            self._pause = PAUSE_MIN
            self._recent = [tried_s] * _RECENT
        else:
            self.spins = not self.spins
            self._pause = min(PAUSE_MAX, 2 * self._pause)
        self._left = self._pause

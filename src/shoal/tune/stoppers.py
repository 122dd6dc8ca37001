"""When a trial, or the whole experiment, has done enough."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from typing import Any


class Stopper:
    """Asked after every result of every trial."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the trial ends."""
        raise NotImplementedError

    def replay(self, trial_id: str, result: dict[str, Any]) -> None:
        """Hear of a result from before the experiment was restored, in the order of those days; what it meant then is known."""
        self(trial_id, result)

    def stop_all(self) -> bool:
        """Whether the experiment ends."""
        return False


class MaximumIterationStopper(Stopper):
    """A trial ends at its `max_iter`-th result."""

    def __init__(self, max_iter: int) -> None:
        self.max_iter = max_iter

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """See `Stopper`."""
        return bool(result["training_iteration"] >= self.max_iter)


class TrialPlateauStopper(Stopper):
    """A trial ends when its last `num_results` values of `metric` vary by no more than a standard deviation of `std`."""

    def __init__(self, metric: str, std: float = 0.01, num_results: int = 4, grace_period: int = 4) -> None:
        self.metric = metric
        self.std = std
        self.num_results = num_results
        self.grace_period = grace_period
        self._values: dict[str, deque[float]] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """See `Stopper`."""
        values = self._values.setdefault(trial_id, deque(maxlen=self.num_results))
        values.append(result[self.metric])
        full = len(values) == self.num_results and result["training_iteration"] >= self.grace_period
        return full and statistics.pstdev(values) <= self.std


class TimeoutStopper(Stopper):
    """The experiment ends `timeout` seconds after its first result.

    When it was restored, the time in which its trials ran before counts; not the time in which nobody ran it.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout_s = timeout
        self._end: float | None = None
        self._spent_s = 0.0  #: before the experiment was restored
        self._until = 0.0  #: moments up to this one are in `_spent_s`

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """See `Stopper`."""
        self._begin()
        return False

    def _begin(self) -> None:
        if self._end is None:
            self._end = time.monotonic() + self.timeout_s - self._spent_s

    def replay(self, trial_id: str, result: dict[str, Any]) -> None:
        """See `Stopper`."""
        moment = float(result["timestamp"])
        if self._until:  # the first result is where time begins
            self._spent_s += max(0.0, moment - max(self._until, moment - result["time_this_iter_s"]))
        self._until = max(self._until, moment)

    def stop_all(self) -> bool:
        """See `Stopper`."""
        if self._until:  # it was restored: its time has begun
            self._begin()
        return self._end is not None and time.monotonic() >= self._end


class CombinedStopper(Stopper):
    """Ends what any of several stoppers ends."""

    def __init__(self, *stoppers: Stopper) -> None:
        self.stoppers = stoppers

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """See `Stopper`."""
        answers = [one(trial_id, result) for one in self.stoppers]  # all are asked: they count
        return any(answers)

    def replay(self, trial_id: str, result: dict[str, Any]) -> None:
        """See `Stopper`."""
        for one in self.stoppers:
            with contextlib.suppress(Exception):
                one.replay(trial_id, result)

    def stop_all(self) -> bool:
        """See `Stopper`."""
        return any(one.stop_all() for one in self.stoppers)


class _Thresholds(Stopper):
    """`{"accuracy": 0.9}`: a trial ends when a metric reaches its value."""

    def __init__(self, limits: dict[str, float]) -> None:
        self.limits = limits

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """See `Stopper`."""
        for name, limit in self.limits.items():
            if name not in result:
                raise KeyError(
                    f"stop={{{name!r}: {limit}}}: the trial reported no {name!r}, but {', '.join(sorted(result))}"
                )
            if result[name] >= limit:
                return True
        return False


class _Function(Stopper):
    """A function of trial id and result."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """See `Stopper`."""
        return bool(self.function(trial_id, result))


def stopper_of(stop: Any) -> Stopper | None:
    """What `RunConfig.stop` may be, as a stopper."""
    if stop is None or isinstance(stop, Stopper):
        return stop
    if isinstance(stop, dict):
        return _Thresholds(stop)
    if isinstance(stop, (list, tuple)):
        return CombinedStopper(*[one for one in map(stopper_of, stop) if one is not None])
    if callable(stop):
        return _Function(stop)
    raise TypeError(
        f"stop must be a dict of thresholds, a function of (trial_id, result) or a tune.Stopper, not {stop!r}"
    )

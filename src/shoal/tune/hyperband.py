"""Schedulers that wait: synchronous successive halving, and HyperBand, which runs several of them with different odds.

Design: trials are dealt into brackets. A bracket runs all of its trials to a milestone, where they pause; when the last one is there, the best
1 / `reduction_factor` go on to the next milestone and the others end. A bracket is closed to new trials when it is full, when the searcher has no
more, or when nothing else could run. Pure like all schedulers: `judge` proposes a verdict, which counts once it comes back as `on_judged`, from the
controller or from the journal of a killed driver.

    HyperBand with max_t=9, reduction_factor=3:      trials at 1   at 3   at 9
                               the first bracket          9   ->   3  ->   1
                               the second                         5   ->   1
                               the third                                   3

Between milestones a trial lies in its checkpoint: class trainables are saved when they pause, functions must report checkpoints, or begin again.

What it does not do: bring back a trial that has lost. ASHA (`schedulers`) does the same job without waiting for the slowest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from shoal.tune.schedulers import Continue, Decision, Pause, Stop, TrialScheduler, Verdict
from shoal.tune.trial import Trial


@dataclass(slots=True)
class _Bracket:
    """Trials that are compared with each other."""

    size: int | None  #: how many trials it takes; None: all there are
    milestones: list[float]  #: where its trials pause, growing
    taken: int = 0  #: trials that were ever in it
    closed: bool = False  #: no trial comes any more, whatever `size` says
    rung: int = 0  #: how many milestones lie behind its trials
    racing: dict[str, None] = field(default_factory=dict)  #: its trials that have not ended, in the order they came
    scores: dict[str, float] = field(default_factory=dict)  #: of those that stand at milestone number `rung`

    @property
    def is_open(self) -> bool:
        """Whether it takes another trial."""
        return not self.closed and (self.size is None or self.taken < self.size)


class _SynchronousHalving(TrialScheduler):
    """What both have in common: everything but the shapes of the brackets."""

    resumes_first = True

    def __init__(
        self, time_attr: str, metric: str | None, mode: str | None, max_t: float, factor: float, stop_last: bool
    ) -> None:
        super().__init__(metric, mode)
        self.time_attr = time_attr
        self.max_t = max_t
        self.reduction_factor = factor
        self.stop_last_trials = stop_last
        self._brackets: list[_Bracket] = []
        self._bracket_of: dict[str, _Bracket] = {}  #: of trials that have not ended

    def _next_bracket(self) -> _Bracket:
        """An empty one."""
        raise NotImplementedError

    def on_add(self, trial: Trial) -> None:
        """See `TrialScheduler`."""
        if not self._brackets or not self._brackets[-1].is_open:
            self._brackets.append(self._next_bracket())
        bracket = self._bracket_of[trial.trial_id] = self._brackets[-1]
        bracket.taken += 1
        bracket.racing[trial.trial_id] = None

    def on_end(self, trial: Trial) -> None:
        """See `TrialScheduler`."""
        bracket = self._bracket_of.pop(trial.trial_id, None)
        if bracket is not None:
            bracket.racing.pop(trial.trial_id)
            bracket.scores.pop(trial.trial_id, None)

    def on_result(self, trial: Trial, result: dict[str, Any], trials: Iterable[Trial], others_wait: bool) -> Decision:
        """See `TrialScheduler`."""
        time = result[self.time_attr]
        if time >= self.max_t and self.stop_last_trials:
            return Stop()
        bracket = self._bracket_of.get(trial.trial_id)  # None: it had ended and was reopened by the user
        if bracket is None or bracket.rung == len(bracket.milestones) or time < bracket.milestones[bracket.rung]:
            return Continue()
        bracket.scores[trial.trial_id] = self.score(result)
        return Pause()

    def may_resume(self, trial: Trial) -> bool:
        """See `TrialScheduler`: not while its verdict is open."""
        bracket = self._bracket_of.get(trial.trial_id)
        return bracket is None or trial.trial_id not in bracket.scores

    def judge(self, no_more: bool) -> Iterator[Verdict]:
        """See `TrialScheduler`."""
        for bracket in self._brackets:
            if (bracket.is_open and not no_more) or not bracket.racing or len(bracket.scores) < len(bracket.racing):
                continue
            places = max(1, int(len(bracket.scores) / self.reduction_factor))
            # Stable: of equals those that came first. What reported no number never goes on.
            ranked = sorted(bracket.racing, key=lambda trial_id: -bracket.scores[trial_id])
            best = [trial_id for trial_id in ranked[:places] if bracket.scores[trial_id] > -math.inf]
            yield Verdict(best, [trial_id for trial_id in ranked if trial_id not in best])

    def on_judged(self, verdict: Verdict) -> None:
        """See `TrialScheduler`."""
        bracket = self._bracket_of[[*verdict.go_on, *verdict.end][0]]
        bracket.closed = True
        bracket.rung += 1
        bracket.scores.clear()


class SuccessiveHalvingScheduler(_SynchronousHalving):
    """Successive halving (Jamieson and Talwalkar): all trials to `grace_period`, the best 1 / `reduction_factor` of them on to
    `reduction_factor` times as much, and so on.

    Args:
        time_attr: what counts as time, a metric that grows.
        max_t: where a trial ends at the latest.
        grace_period: the first milestone.
        bracket_size: how many trials compete with each other; by default all of the search.
        stop_last_trials: whether trials end at `max_t`.
    """

    def __init__(
        self,
        time_attr: str = "training_iteration",
        metric: str | None = None,
        mode: str | None = None,
        max_t: float = 81,
        grace_period: float = 1,
        reduction_factor: float = 3,
        bracket_size: int | None = None,
        stop_last_trials: bool = True,
    ) -> None:
        if not 0 < grace_period <= max_t or reduction_factor <= 1 or (bracket_size is not None and bracket_size < 1):
            raise ValueError(
                f"SuccessiveHalvingScheduler: 0 < grace_period ({grace_period}) <= max_t ({max_t}), reduction_factor "
                f"({reduction_factor}) > 1 and bracket_size ({bracket_size}) >= 1 are needed"
            )
        super().__init__(time_attr, metric, mode, max_t, reduction_factor, stop_last_trials)
        self.grace_period = grace_period
        self.bracket_size = bracket_size

    def _next_bracket(self) -> _Bracket:
        return _Bracket(self.bracket_size, milestones(self.grace_period, self.max_t, self.reduction_factor))


class HyperBandScheduler(_SynchronousHalving):
    """HyperBand (Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization").

    Brackets from bold (many trials, the first milestone early) to careful (few trials that run to their end); after the last it begins again.

    Args:
        time_attr: what counts as time, a metric that grows.
        max_t: where a trial ends at the latest: the paper's R.
        reduction_factor: the paper's eta.
        stop_last_trials: whether trials end at `max_t`.
    """

    def __init__(
        self,
        time_attr: str = "training_iteration",
        metric: str | None = None,
        mode: str | None = None,
        max_t: float = 81,
        reduction_factor: float = 3,
        stop_last_trials: bool = True,
    ) -> None:
        if max_t < 1 or reduction_factor <= 1:
            raise ValueError(
                f"HyperBandScheduler: max_t ({max_t}) >= 1 and reduction_factor ({reduction_factor}) > 1 are needed"
            )
        super().__init__(time_attr, metric, mode, max_t, reduction_factor, stop_last_trials)
        #: how often the boldest bracket halves; the tolerance is for logarithms such as log(243, 3) = 4.999...
        self._boldest = int(math.log(max_t, reduction_factor) + 1e-9)

    def _next_bracket(self) -> _Bracket:
        halvings = self._boldest - len(self._brackets) % (self._boldest + 1)
        factor = self.reduction_factor
        # The tolerance keeps 5 * 3**0 from becoming 6 where floats are not exact.
        size = math.ceil((self._boldest + 1) / (halvings + 1) * factor**halvings - 1e-9)
        return _Bracket(size, milestones(self.max_t / factor**halvings, self.max_t, factor))


def milestones(first: float, end: float, factor: float) -> list[float]:
    """From `first`, each `factor` times the one before, below `end`."""
    found = []
    while first < end * (1 - 1e-9):
        found.append(first)
        first *= factor
    return found

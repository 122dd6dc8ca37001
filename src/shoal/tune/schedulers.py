"""Schedulers: which trials go on, which end early, which take over from better ones.

Design: pure decisions. A scheduler sees the results in the order in which they came and answers each with one decision; it has no clock, and its
dice come from its seed. An experiment that is resumed shows a fresh scheduler the same results again, so nothing of it is saved.

How to extend: subclass `TrialScheduler` and write `on_result`; who compares trials that wait for each other writes `judge` too (see `hyperband`).

What it does not do: PB2 and BOHB.
"""

from __future__ import annotations

import bisect
import copy
import math
import random
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from shoal.tune.space import Domain
from shoal.tune.trial import UNFINISHED, Trial


@dataclass(slots=True)
class Continue:
    """The trial goes on."""


@dataclass(slots=True)
class Stop:
    """The trial ends here."""


@dataclass(slots=True)
class Pause:
    """The trial gives its place to others and goes on from its checkpoint later."""


@dataclass(slots=True)
class Exploit:
    """The trial goes on from another one's checkpoint with another configuration."""

    config: dict[str, Any]
    checkpoint: str
    donor: str


Decision = Continue | Stop | Pause | Exploit


@dataclass(slots=True)
class Verdict:
    """What becomes of paused trials that were compared with each other, by id."""

    go_on: list[str]
    end: list[str]


class TrialScheduler:
    """What a scheduler does. `metric` and `mode` come from `TuneConfig` unless the scheduler has its own."""

    needs_metric = True
    #: whether a paused trial that may go on comes before a new one
    resumes_first = False

    def __init__(self, metric: str | None = None, mode: str | None = None) -> None:
        if mode not in (None, "min", "max"):
            raise ValueError(f'mode must be "min" or "max", not {mode!r}')
        self.metric = metric
        self.mode = mode

    def set_search_properties(self, metric: str | None, mode: str | None) -> None:
        """Called once before anything else."""
        self.metric = self.metric or metric
        self.mode = self.mode or mode
        if self.needs_metric and (self.metric is None or self.mode is None):
            raise ValueError(f"{type(self).__name__} needs metric and mode: TuneConfig(metric='accuracy', mode='max')")

    def check_space(self, space: dict[str, Any]) -> None:
        """Called once with the search space: ValueError if this scheduler cannot do with it what it was told to."""

    def score(self, result: dict[str, Any]) -> float:
        """The metric, larger is better; what is not a number is the worst."""
        value = float(result[self.metric])  # type: ignore[index]
        if math.isnan(value):
            return -math.inf
        return value if self.mode == "max" else -value

    def on_result(self, trial: Trial, result: dict[str, Any], trials: Iterable[Trial], others_wait: bool) -> Decision:
        """What becomes of `trial` after `result`. `trials`: all of them, this one with the result already; `others_wait`: for its place."""
        raise NotImplementedError

    def on_add(self, trial: Trial) -> None:
        """A trial was created."""

    def on_end(self, trial: Trial) -> None:
        """A trial has ended, however."""

    def may_resume(self, trial: Trial) -> bool:
        """Whether a paused trial may go on when there is a place for it."""
        return True

    def judge(self, no_more: bool) -> Iterable[Verdict]:
        """Verdicts that are due on paused trials; nothing changes before `on_judged`. `no_more`: no trial will be created for now."""
        return ()

    def on_judged(self, verdict: Verdict) -> None:
        """A verdict counts."""

    def checkpoint_frequency(self) -> int:
        """After how many steps a class trainable must save for this scheduler (0: never)."""
        return 0


class FIFOScheduler(TrialScheduler):
    """Every trial runs to its end, in the order created."""

    needs_metric = False

    def on_result(self, trial: Trial, result: dict[str, Any], trials: Iterable[Trial], others_wait: bool) -> Decision:
        """See `TrialScheduler`."""
        return Continue()


class ASHAScheduler(TrialScheduler):
    """Asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning").

    At `grace_period`, and then at each `reduction_factor` times as much, a trial goes on only if it is among the best 1 / `reduction_factor`
    of those that were there before it; nobody waits for anybody.

    Args:
        time_attr: what counts as time, a metric that grows.
        max_t: where a trial ends at the latest.
        grace_period: no trial ends before.
        brackets: with s > 1, trials are dealt in turn to s sets of milestones, each beginning `reduction_factor` times later.
    """

    def __init__(
        self,
        time_attr: str = "training_iteration",
        metric: str | None = None,
        mode: str | None = None,
        max_t: float = 100,
        grace_period: float = 1,
        reduction_factor: float = 4,
        brackets: int = 1,
        stop_last_trials: bool = True,
    ) -> None:
        super().__init__(metric, mode)
        if max_t < grace_period or grace_period <= 0 or reduction_factor <= 1 or brackets < 1:
            raise ValueError(
                f"ASHAScheduler: 0 < grace_period ({grace_period}) <= max_t ({max_t}), reduction_factor ({reduction_factor}) > 1 and "
                f"brackets ({brackets}) >= 1 are needed"
            )
        self.time_attr = time_attr
        self.max_t = max_t
        self.reduction_factor = reduction_factor
        self.stop_last_trials = stop_last_trials
        #: for each bracket its rungs, the latest first: (milestone, {trial id: score})
        self._brackets = [self._rungs(grace_period * reduction_factor**bracket) for bracket in range(brackets)]

    def _rungs(self, first: float) -> list[tuple[float, dict[str, float]]]:
        """Empty rungs from `first` up to below `max_t`."""
        rungs: list[tuple[float, dict[str, float]]] = []
        milestone = first
        while milestone < self.max_t:
            rungs.insert(0, (milestone, {}))
            milestone *= self.reduction_factor
        return rungs

    def on_result(self, trial: Trial, result: dict[str, Any], trials: Iterable[Trial], others_wait: bool) -> Decision:
        """See `TrialScheduler`."""
        time = result[self.time_attr]
        if time >= self.max_t and self.stop_last_trials:
            return Stop()
        for milestone, scores in self._brackets[trial.index % len(self._brackets)]:
            if time < milestone:
                continue
            if trial.trial_id in scores:
                return Continue()
            score = self.score(result)
            scores[trial.trial_id] = score
            # The best 1/factor of those seen here, rounded down, but at least one: the first has nobody to be worse than.
            places = max(1, int(len(scores) / self.reduction_factor))
            better = sum(other > score for other in scores.values())
            return Continue() if better < places and score > -math.inf else Stop()
        return Continue()


AsyncHyperBandScheduler = ASHAScheduler


class MedianStoppingRule(TrialScheduler):
    """A trial ends when its best result is worse than the median of the others' averages up to the same time (Google Vizier).

    Args:
        time_attr: what counts as time.
        grace_period: no trial ends before.
        min_samples_required: how many other trials must have been there.
    """

    def __init__(
        self,
        time_attr: str = "time_total_s",
        metric: str | None = None,
        mode: str | None = None,
        grace_period: float = 60.0,
        min_samples_required: int = 3,
    ) -> None:
        super().__init__(metric, mode)
        self.time_attr = time_attr
        self.grace_period = grace_period
        self.min_samples_required = min_samples_required
        self._curves: dict[str, _Curve] = {}  #: by trial id

    def on_result(self, trial: Trial, result: dict[str, Any], trials: Iterable[Trial], others_wait: bool) -> Decision:
        """See `TrialScheduler`."""
        time = result[self.time_attr]
        own = self._curves.setdefault(trial.trial_id, _Curve())
        own.add(time, self.score(result))
        if time < self.grace_period:
            return Continue()
        averages = []
        for trial_id, curve in self._curves.items():
            average = curve.average(time)
            if trial_id != trial.trial_id and average is not None and curve.times[-1] >= self.grace_period:
                averages.append(average)
        if len(averages) < self.min_samples_required:
            return Continue()
        return Stop() if own.best[-1] < statistics.median(averages) else Continue()


class _Curve:
    """The scores of a trial over time, with what its average and its best up to any time take."""

    __slots__ = ("best", "counts", "sums", "times")

    def __init__(self) -> None:
        self.times: list[float] = []  #: growing
        self.sums: list[float] = []  #: of the scores so far that are numbers
        self.counts: list[int] = []  #: of those scores
        self.best: list[float] = []  #: the largest so far

    def add(self, time: float, score: float) -> None:
        """A further result; what a restart does again replaces what was there."""
        known = bisect.bisect_left(self.times, time)
        for column in (self.times, self.sums, self.counts, self.best):
            del column[known:]
        usable = score > -math.inf
        self.sums.append((self.sums[-1] if self.sums else 0.0) + (score if usable else 0.0))
        self.counts.append((self.counts[-1] if self.counts else 0) + usable)
        self.best.append(max(score, self.best[-1]) if self.best else score)
        self.times.append(time)

    def average(self, time: float) -> float | None:
        """Of the scores up to `time`; None without any."""
        position = bisect.bisect_right(self.times, time) - 1
        if position < 0 or not self.counts[position]:
            return None
        return self.sums[position] / self.counts[position]


class PopulationBasedTraining(TrialScheduler):
    """Population-based training (Jaderberg et al.).

    At each `perturbation_interval` a trial among the worst takes over checkpoint and configuration of one among the best that still run, and
    changes the configuration a little. Trials must report checkpoints (class trainables save by themselves). When there are more trials than
    places, they take turns.

    Args:
        time_attr: what counts as time.
        perturbation_interval: in units of `time_attr`.
        burn_in_period: no trial is replaced before.
        hyperparam_mutations: name -> list of values, domain, or function without arguments; nested dicts for nested configurations.
        quantile_fraction: how large a part is "worst" and "best", at most 0.5.
        resample_probability: that a value is drawn anew instead of changed.
        perturbation_factors: what numbers are multiplied with; values of lists move to a neighbour.
        custom_explore_fn: changes the new configuration at last, `f(config) -> config`.
        seed: of the dice.
    """

    def __init__(
        self,
        time_attr: str = "time_total_s",
        metric: str | None = None,
        mode: str | None = None,
        perturbation_interval: float = 60.0,
        burn_in_period: float = 0.0,
        hyperparam_mutations: dict[str, Any] | None = None,
        quantile_fraction: float = 0.25,
        resample_probability: float = 0.25,
        perturbation_factors: tuple[float, float] = (1.2, 0.8),
        custom_explore_fn: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(metric, mode)
        if not hyperparam_mutations and custom_explore_fn is None:
            raise ValueError("PopulationBasedTraining: give hyperparam_mutations or custom_explore_fn")
        if not 0 <= quantile_fraction <= 0.5:
            raise ValueError(f"quantile_fraction must be between 0 and 0.5, not {quantile_fraction}")
        if perturbation_interval <= 0:
            raise ValueError(f"perturbation_interval must be above 0, not {perturbation_interval}")
        self.time_attr = time_attr
        self.interval = perturbation_interval
        self.burn_in_period = burn_in_period
        self.mutations = hyperparam_mutations or {}
        self.quantile_fraction = quantile_fraction
        self.resample_probability = resample_probability
        self.factors = perturbation_factors
        self.custom_explore_fn = custom_explore_fn
        self._dice = random.Random(seed)
        self._last: dict[str, float] = {}  #: trial id -> time of its last perturbation
        self._scores: dict[str, float] = {}  #: trial id -> score at its last perturbation

    def check_space(self, space: dict[str, Any]) -> None:
        """See `TrialScheduler`."""
        _check_names(self.mutations, space, "")

    def checkpoint_frequency(self) -> int:
        """See `TrialScheduler`."""
        return max(1, int(self.interval)) if self.time_attr == "training_iteration" else 1

    def on_result(self, trial: Trial, result: dict[str, Any], trials: Iterable[Trial], others_wait: bool) -> Decision:
        """See `TrialScheduler`."""
        time = result[self.time_attr]
        if time - self._last.get(trial.trial_id, 0) < self.interval:
            return Continue()
        self._last[trial.trial_id] = time
        self._scores[trial.trial_id] = self.score(result)
        if time >= self.burn_in_period:
            donors = self._donors(trial, trials)
            if donors:
                donor = self._dice.choice(donors)
                checkpoint = donor.checkpoints[-1]
                # Never before its own time: or a trial would take over from one that waits, be the worst again soon, and take over again,
                # for ever, where scores fall with time.
                self._last[trial.trial_id] = max(checkpoint.result.get(self.time_attr, time), time)
                self._scores.pop(trial.trial_id)  # what it did before says nothing of what it is now
                return Exploit(self.explore(donor.config), checkpoint.path, donor.trial_id)
        return Pause() if others_wait and trial.checkpoints else Continue()

    def _donors(self, trial: Trial, trials: Iterable[Trial]) -> list[Trial]:
        """The best trials to take over from, if `trial` is among the worst; empty otherwise."""
        ranked = sorted(
            (other for other in trials if other.trial_id in self._scores and other.status in UNFINISHED),
            key=lambda other: (self._scores[other.trial_id], -other.index),
        )
        number = min(math.ceil(len(ranked) * self.quantile_fraction), len(ranked) // 2)
        if not number or trial not in ranked[:number]:
            return []
        # One that has only taken over since its last checkpoint has other weights there than its configuration says.
        return [donor for donor in ranked[-number:] if donor.checkpoints and donor.taken_over is None]

    def explore(self, config: dict[str, Any]) -> dict[str, Any]:
        """A changed copy of `config`."""
        changed = self._mutated(copy.deepcopy(config), self.mutations)
        return changed if self.custom_explore_fn is None else self.custom_explore_fn(changed)

    def _mutated(self, config: dict[str, Any], mutations: dict[str, Any]) -> dict[str, Any]:
        """`config` with each of `mutations` applied."""
        for name, choices in mutations.items():
            value = config.get(name)
            if isinstance(choices, dict):
                config[name] = self._mutated(value or {}, choices)
            elif name not in config or self._dice.random() < self.resample_probability:
                config[name] = self._resampled(choices)
            elif isinstance(choices, (list, tuple)):
                config[name] = self._neighbour(value, list(choices))
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                config[name] = type(value)(value * self._dice.choice(self.factors))
            else:
                config[name] = self._resampled(choices)
        return config

    def _resampled(self, choices: Any) -> Any:
        """A fresh value."""
        if isinstance(choices, Domain):
            return choices.sample(self._dice)
        return self._dice.choice(list(choices)) if isinstance(choices, (list, tuple)) else choices()

    def _neighbour(self, value: Any, choices: list[Any]) -> Any:
        """The value before or after in the list."""
        if value not in choices:
            return self._dice.choice(choices)
        position = choices.index(value) + self._dice.choice((-1, 1))
        return choices[min(max(position, 0), len(choices) - 1)]


def _check_names(mutations: dict[str, Any], space: dict[str, Any], where: str) -> None:
    """ValueError for what shall be changed and is not in the space."""
    for name, choices in mutations.items():
        if name not in space:
            has = ", ".join(f"{where}{known}" for known in space)
            raise ValueError(
                f"hyperparam_mutations changes {where + name!r}, which param_space does not have: it has {has}. "
                "A name that trials shall get later needs a first value there"
            )
        if isinstance(choices, dict) and isinstance(space[name], dict):
            _check_names(choices, space[name], f"{where}{name}/")

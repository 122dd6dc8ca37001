"""Optuna as a searcher: TPE by default, CMA-ES, Gaussian processes, or any other of its samplers.

Design: the study lives in memory and is rebuilt from the trials when an experiment is resumed: Optuna takes ended trials as they were. It is made
at the first suggestion, when it is known how many trials there are: dice and points to evaluate go on from there.
Optuna is imported when a search begins, not with this module.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

from shoal.tune import space as spaces
from shoal.tune.search import FINISHED, Searcher

SAMPLERS = {"tpe": "TPESampler", "cmaes": "CmaEsSampler", "gp": "GPSampler", "random": "RandomSampler"}
#: what a sampler needs beside Optuna
NEEDED = {"cmaes": ("cmaes",), "gp": ("scipy", "torch")}


def _optuna() -> Any:
    """The module, quiet; or an error that says how to get it."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError("OptunaSearch needs Optuna: pip install 'shoal[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _check_installed(sampler: Any) -> None:
    """ImportError, now and not in the midst of a search, if a sampler lacks a package."""
    name = next((key for key, kind in SAMPLERS.items() if sampler == key or type(sampler).__name__ == kind), "")
    missing = [package for package in NEEDED.get(name, ()) if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f"OptunaSearch(sampler={name!r}) needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def distribution_of(name: str, domain: Any) -> Any:
    """Optuna's distribution for a domain of ours; ValueError for what it has none for."""
    distributions = _optuna().distributions
    if isinstance(domain, spaces.Float):
        step = None if domain.log else domain.step  # Optuna has no steps on a logarithmic scale
        return distributions.FloatDistribution(domain.low, domain.high, log=domain.log, step=step)
    if isinstance(domain, spaces.Integer):
        return distributions.IntDistribution(
            domain.low, domain.high, log=domain.log, step=1 if domain.log else domain.step
        )
    if isinstance(domain, spaces.Categorical):
        # By position: Optuna's categories are numbers, strings or None, ours anything.
        return distributions.CategoricalDistribution(list(range(len(domain.categories))))
    raise ValueError(
        f"{name}: OptunaSearch cannot search over {domain!r}; use uniform, loguniform, randint, choice and their relatives "
        "(grids and normal distributions: without search_alg)"
    )


class OptunaSearch(Searcher):
    """Search by Optuna.

    Args:
        space: the search space; `param_space` of the Tuner if not given.
        metric, mode: what to optimize; from `TuneConfig` if not given.
        points_to_evaluate: (partial) configurations to try first, by parameter name (`"model/units"` for nested ones).
        sampler: "tpe", "cmaes", "gp" (Gaussian processes, for few and dear trials; needs torch and scipy), "random", or a sampler object of Optuna's.
        seed: for samplers given by name.
    """

    def __init__(
        self,
        space: dict[str, Any] | None = None,
        metric: str | None = None,
        mode: str | None = None,
        points_to_evaluate: list[dict[str, Any]] | None = None,
        sampler: Any = "tpe",
        seed: int | None = None,
    ) -> None:
        super().__init__(metric, mode)
        if isinstance(sampler, str) and sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {sampler!r}: one of {', '.join(SAMPLERS)}, or an object of Optuna's")
        self.space = space
        self.points = points_to_evaluate or []
        self.sampler = sampler
        self.seed = seed
        self._study: Any = None
        self._asked: dict[str, Any] = {}  #: trials of the study that run
        self._adopted: dict[str, dict[str, Any]] = {}  #: parameters of unfinished trials that another process asked for
        self._ended: list[Any] = []  #: trials of another process that ended before the study was made

    def set_search_properties(self, metric: str | None, mode: str | None, space: dict[str, Any], samples: int) -> None:
        """See `Searcher`."""
        super().set_search_properties(metric, mode, space, samples)
        if self.metric is None:
            raise ValueError("OptunaSearch needs to know what to optimize: TuneConfig(metric=..., mode=...)")
        self.space = self.space or space
        spaces.check(self.space)
        _optuna()
        _check_installed(self.sampler)
        self._total = samples
        self._domains = {"/".join(map(str, path)): (path, node) for path, node in spaces.leaves(self.space)}
        self._distributions = {
            name: distribution_of(name, node)
            for name, (_, node) in self._domains.items()
            if not isinstance(node, spaces.Function)
        }
        if not self._distributions:
            raise ValueError("OptunaSearch: the search space has nothing to search over")

    def _open(self, index: int) -> Any:
        """The study; made at the first suggestion, so that a resumed search does not repeat its dice."""
        if self._study is None:
            optuna = _optuna()
            sampler = self.sampler
            if isinstance(sampler, str):
                seed = None if self.seed is None else self.seed + index
                sampler = getattr(optuna.samplers, SAMPLERS[sampler])(seed=seed)
            elif index:  # a resumed search: the object is as new, and would throw the same dice again
                sampler.reseed_rng()
            direction = "maximize" if self.mode == "max" else "minimize"
            self._study = optuna.create_study(sampler=sampler, direction=direction)
            for point in self.points[index:]:
                self._study.enqueue_trial(self._internal(spaces.flattened(point)))
            self._study.add_trials(self._ended)
            self._ended = []
        return self._study

    def _internal(self, point: dict[str, Any]) -> dict[str, Any]:
        """Values as Optuna knows them: categories by position."""
        values = {}
        for name, value in point.items():
            if name not in self._distributions:
                raise ValueError(
                    f"points_to_evaluate: no parameter {name!r} to search over; there are {', '.join(self._distributions)}"
                )
            node = self._domains[name][1]
            if isinstance(node, spaces.Categorical):
                if value not in node.categories:
                    raise ValueError(f"points_to_evaluate: {name}={value!r} is none of its choices, {node.categories}")
                value = node.categories.index(value)
            elif not node.low <= value <= node.high:
                raise ValueError(f"points_to_evaluate: {name}={value!r} is not between {node.low} and {node.high}")
            values[name] = value
        return values

    def suggest(self, trial_id: str, index: int) -> dict[str, Any] | str | None:
        """See `Searcher`."""
        if 0 <= self._total <= index:
            return FINISHED
        trial = self._open(index).ask(self._distributions)
        self._asked[trial_id] = trial
        values = {}
        for name, value in trial.params.items():
            path, node = self._domains[name]
            values[path] = node.categories[value] if isinstance(node, spaces.Categorical) else value
        return spaces.place(self.space, values)

    def register(self, trial_id: str, index: int, config: dict[str, Any]) -> None:
        """See `Searcher`."""
        values = {}
        for name in self._distributions:
            value: Any = config
            for key in self._domains[name][0]:
                value = value[key]
            values[name] = value
        self._adopted[trial_id] = self._internal(values)

    def complete(self, trial_id: str, metrics: dict[str, Any] | None, error: bool = False) -> None:
        """See `Searcher`."""
        optuna = _optuna()
        value = None if metrics is None else metrics.get(self.metric or "")
        usable = not error and isinstance(value, (int, float)) and math.isfinite(value)
        state = optuna.trial.TrialState.COMPLETE if usable else optuna.trial.TrialState.FAIL
        trial = self._asked.pop(trial_id, None)
        if trial is not None:
            self._study.tell(trial, float(value) if usable and value is not None else None, state=state)
        elif usable and trial_id in self._adopted:
            ended = optuna.trial.create_trial(
                params=self._adopted.pop(trial_id), distributions=self._distributions, value=float(value or 0.0)
            )
            if self._study is None:
                self._ended.append(ended)
            else:
                self._study.add_trial(ended)

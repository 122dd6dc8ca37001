"""What a search has found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shoal.tune.board import board_of, html_table
from shoal.tune.checkpoint import Checkpoint
from shoal.tune.experiment import Experiment
from shoal.tune.space import flattened
from shoal.tune.storage import Storage
from shoal.tune.trial import TERMINATED, Trial, is_finite


class TrialError(RuntimeError):
    """The failure of a trial in an earlier process, of which only the text is left."""


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError("data frames of results need pandas: pip install 'shoal[tune]'") from error
    return pandas


@dataclass(slots=True)
class Result:
    """One trial. `metrics`: its last result; `path`: its folder; `error`: the exception it failed with; `checkpoint`: its newest."""

    metrics: dict[str, Any]
    config: dict[str, Any]
    checkpoint: Checkpoint | None
    error: BaseException | None
    path: str
    trial_id: str
    status: str
    best_checkpoints: list[tuple[Checkpoint, dict[str, Any]]] = field(default_factory=list, repr=False)
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def metrics_dataframe(self) -> Any:
        """All its results, a row each."""
        return _pandas().DataFrame([flattened(row) for row in self.history])

    def get_best_checkpoint(self, metric: str, mode: str) -> Checkpoint | None:
        """Of those that still exist, the one reported with the best `metric`."""
        sign = _sign(mode)
        usable = [(sign * row[metric], one) for one, row in self.best_checkpoints if is_finite(row.get(metric))]
        return max(usable, key=lambda pair: pair[0])[1] if usable else None


def _sign(mode: str | None) -> int:
    if mode not in ("min", "max"):
        raise ValueError(f'mode must be "min" or "max", not {mode!r}: give it here or in TuneConfig')
    return 1 if mode == "max" else -1


def result_of(trial: Trial, storage: Storage) -> Result:
    """What the user sees of a trial."""
    pairs = [(Checkpoint(storage.full(one.path)), one.result) for one in trial.checkpoints]
    error = trial.error
    if error is None and trial.error_text is not None and trial.status != TERMINATED:
        error = TrialError(trial.error_text)
    metrics = {**trial.last_result, "config": trial.config} if trial.history else {}
    return Result(
        metrics=metrics,
        config=trial.config,
        checkpoint=pairs[-1][0] if pairs else None,
        error=error,
        path=storage.full(trial.folder),
        trial_id=trial.trial_id,
        status=trial.status,
        best_checkpoints=pairs,
        history=trial.history,
    )


class ResultGrid:
    """The results of all trials, in the order created: `len`, iteration, index."""

    def __init__(self, experiment: Experiment, storage: Storage) -> None:
        self._results = [result_of(trial, storage) for trial in experiment.trials.values()]
        self._rules = experiment.rules
        self._board = board_of(experiment.trials.values(), experiment.rules)
        self.experiment_path = storage.location

    def __len__(self) -> int:
        return len(self._results)

    def __getitem__(self, index: int) -> Result:
        return self._results[index]

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    def __repr__(self) -> str:
        return f"ResultGrid({len(self)} trials, {self.num_terminated} terminated, {self.num_errors} errors, in {self.experiment_path})"

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        return html_table(self._board)

    @property
    def metric(self) -> str | None:
        """That of `TuneConfig`."""
        return self._rules.metric

    @property
    def mode(self) -> str | None:
        """That of `TuneConfig`."""
        return self._rules.mode

    @property
    def errors(self) -> list[BaseException]:
        """Of the trials that failed."""
        return [one.error for one in self._results if one.error is not None]

    @property
    def num_errors(self) -> int:
        """How many failed."""
        return len(self.errors)

    @property
    def num_terminated(self) -> int:
        """How many ended well."""
        return sum(one.status == TERMINATED for one in self._results)

    def get_best_result(self, metric: str | None = None, mode: str | None = None, scope: str = "last") -> Result:
        """The best trial; values that are not finite never win.

        Args:
            metric, mode: those of `TuneConfig` if not given.
            scope: "last": by last results; "all": by each trial's best; "avg": by its average; "last-5-avg", "last-10-avg": of so many.

        Raises:
            ValueError: no metric is known. RuntimeError: no trial has a finite value of it.
        """
        name = metric or self._rules.metric
        if name is None:
            raise ValueError('no metric: get_best_result(metric="loss", mode="min"), or give it in TuneConfig')
        sign = _sign(mode or self._rules.mode)
        if scope not in ("last", "all", "avg", "last-5-avg", "last-10-avg"):
            raise ValueError(f"unknown scope {scope!r}: last, all, avg, last-5-avg or last-10-avg")
        best: tuple[float, Result] | None = None
        for one in self._results:
            values = [sign * row[name] for row in one.history if is_finite(row.get(name))]
            if scope == "last":
                values = values[-1:] if one.history and is_finite(one.history[-1].get(name)) else []
            if not values:
                continue
            if scope.startswith("last-"):
                values = values[-int(scope.split("-")[1]) :]
            value = sum(values) / len(values) if scope.endswith("avg") else max(values)
            if best is None or value > best[0]:
                best = (value, one)
        if best is None:
            failed = next((f"; first error: {error}" for error in self.errors), "")
            raise RuntimeError(f"no trial has reported a finite {name!r} ({self!r}){failed}")
        return best[1]

    def get_dataframe(self, filter_metric: str | None = None, filter_mode: str | None = None) -> Any:
        """A row for each trial with a result: its last one, or with `filter_metric` the one where that was best; configuration as `config/...`."""
        sign = _sign(filter_mode) if filter_metric is not None else 1
        if filter_metric is not None and not any(filter_metric in row for one in self._results for row in one.history):
            known = sorted(
                {name for one in self._results for name in flattened(one.history[-1] if one.history else {})}
            )
            raise ValueError(f"no trial has reported {filter_metric!r}; there are {', '.join(known) or 'no results'}")
        rows = []
        for one in self._results:
            if not one.history:
                continue
            row = one.history[-1]
            if filter_metric is not None:
                name = filter_metric
                usable = [each for each in one.history if is_finite(each.get(name))]
                row = max(usable, key=lambda each: sign * each[name], default=row)
            rows.append({**flattened(row), **flattened(one.config, "config/")})
        return _pandas().DataFrame(rows)

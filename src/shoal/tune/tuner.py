"""The front door: `Tuner(trainable, param_space=..., tune_config=..., run_config=...).fit()`."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

import shoal
from shoal.tune import experiment as events
from shoal.tune.callbacks import Callback, CSVLoggerCallback, JsonLoggerCallback
from shoal.tune.controller import Controller, Plan
from shoal.tune.experiment import Experiment, Rules
from shoal.tune.journal import JOURNAL, Journal
from shoal.tune.progress import ProgressReporter
from shoal.tune.results import ResultGrid
from shoal.tune.schedulers import FIFOScheduler, TrialScheduler
from shoal.tune.search import BasicVariantGenerator, Searcher
from shoal.tune.space import check as check_space
from shoal.tune.stoppers import stopper_of
from shoal.tune.storage import Storage
from shoal.tune.trainable import BoundTrainable, bound, check_parameters
from shoal.tune.trial import ERROR

STORAGE_DEFAULT = "~/shoal_results"
DEFINITION = "tuner.pkl"


@dataclass(slots=True)
class TuneConfig:
    """How to search.

    Args:
        metric, mode: what to optimize, and whether "min" or "max" is good.
        num_samples: configurations to try (with grids: how often all of the grid); -1: no end, until time or a stopper says so.
        search_alg: a `Searcher`; grid and random search by default.
        scheduler: a `TrialScheduler`; every trial runs to its end by default.
        max_concurrent_trials: at once; as many as resources allow by default.
        time_budget_s: the search ends after so many seconds; trials that run then keep what they have reported.
        reuse_actors: give a process one trial after the other. False: a process of its own for each.
        seed: of grid and random search.
    """

    metric: str | None = None
    mode: str | None = None
    num_samples: int = 1
    search_alg: Searcher | None = None
    scheduler: TrialScheduler | None = None
    max_concurrent_trials: int | None = None
    time_budget_s: float | None = None
    reuse_actors: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in (None, "min", "max"):
            raise ValueError(f'TuneConfig: mode must be "min" or "max", not {self.mode!r}')
        if self.search_alg is not None and not isinstance(self.search_alg, Searcher):
            raise TypeError(
                f"TuneConfig: search_alg must be a tune.Searcher such as OptunaSearch(), not {self.search_alg!r}"
            )
        if self.scheduler is not None and not isinstance(self.scheduler, TrialScheduler):
            raise TypeError(
                f"TuneConfig: scheduler must be a tune.TrialScheduler such as ASHAScheduler(), not {self.scheduler!r}"
            )
        if type(self.num_samples) is not int or (self.num_samples < 1 and self.num_samples != -1):
            raise ValueError(
                f"TuneConfig: num_samples must be a whole number from 1, or -1 for no end, not {self.num_samples!r}"
            )
        if self.max_concurrent_trials is not None and not self.max_concurrent_trials >= 0:
            raise ValueError(
                f"TuneConfig: max_concurrent_trials must be at least 1, or None or 0 for no limit, not {self.max_concurrent_trials!r}"
            )
        if self.time_budget_s is not None and not self.time_budget_s > 0:
            raise ValueError(f"TuneConfig: time_budget_s must be seconds above 0, or None, not {self.time_budget_s!r}")


@dataclass(slots=True)
class FailureConfig:
    """What a failed trial means.

    Args:
        max_failures: how often a trial may fail and go on from its last checkpoint; -1: always.
        fail_fast: the first failure ends the search; "raise": and is raised by `fit`.
        report_timeout_s: a trial that neither reports nor ends for so long hangs: its process is killed, and it has failed. No limit by
            default. Counted from when its process is ready, so waiting for a place in the cluster is no silence.
    """

    max_failures: int = 0
    fail_fast: bool | str = False
    report_timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.fail_fast not in (True, False, "raise"):
            raise ValueError(f'FailureConfig: fail_fast must be True, False or "raise", not {self.fail_fast!r}')
        limit = self.report_timeout_s
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0):
            raise ValueError(f"FailureConfig: report_timeout_s must be seconds above 0, or None, not {limit!r}")


@dataclass(slots=True)
class CheckpointConfig:
    """Which checkpoints stay, and when class trainables are saved.

    Args:
        num_to_keep: for each trial; all by default.
        checkpoint_score_attribute, checkpoint_score_order: keep the best by this metric instead of the newest (which always stays).
        checkpoint_frequency: class trainables: save after so many steps; 0: never.
        checkpoint_at_end: class trainables: save when `step` returns `done=True`.
    """

    num_to_keep: int | None = None
    checkpoint_score_attribute: str | None = None
    checkpoint_score_order: str = "max"
    checkpoint_frequency: int = 0
    checkpoint_at_end: bool = False

    def __post_init__(self) -> None:
        if self.num_to_keep is not None and not self.num_to_keep >= 1:
            raise ValueError(
                f"CheckpointConfig: num_to_keep must be at least 1, or None for all, not {self.num_to_keep!r}"
            )
        if self.checkpoint_score_order not in ("min", "max"):
            raise ValueError(
                f'CheckpointConfig: checkpoint_score_order must be "min" or "max", not {self.checkpoint_score_order!r}'
            )


@dataclass(slots=True)
class RunConfig:
    """Where the search is kept and when it ends.

    Args:
        name: of the experiment's folder below `storage_path`.
        storage_path: local folder or fsspec URL; `~/shoal_results` by default.
        stop: `{"accuracy": 0.9}` (reaching it ends a trial), a function of (trial_id, result), or a `Stopper`.
        callbacks: further `Callback`s.
        failure_config, checkpoint_config: see there.
        verbose: 1 shows the table, 0 nothing; by default it is shown on a terminal and in notebooks.
    """

    name: str | None = None
    storage_path: str | None = None
    stop: Any = None
    callbacks: list[Callback] = field(default_factory=list)
    failure_config: FailureConfig = field(default_factory=FailureConfig)
    checkpoint_config: CheckpointConfig = field(default_factory=CheckpointConfig)
    verbose: int | None = None

    def __post_init__(self) -> None:
        if self.name is not None and (self.name in ("", ".", "..") or "/" in self.name):
            raise ValueError(f"RunConfig: name is that of a folder below storage_path, not {self.name!r}")
        if not isinstance(self.callbacks, (list, tuple)) or not all(
            isinstance(one, Callback) for one in self.callbacks
        ):
            raise TypeError(f"RunConfig: callbacks is a list of tune.Callback objects, not {self.callbacks!r}")
        for name, kind in (("failure_config", FailureConfig), ("checkpoint_config", CheckpointConfig)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"RunConfig: {name} must be a tune.{kind.__name__}, not {getattr(self, name)!r}")


class Tuner:
    """A search over the configurations of a trainable.

    Args:
        trainable: a function of the configuration that calls `tune.report` or returns a dict of metrics, or a subclass of `tune.Trainable`;
            `with_parameters` and `with_resources` add to it.
        param_space: the search space, a dict.
        tune_config, run_config: how and where.
    """

    def __init__(
        self,
        trainable: Any,
        *,
        param_space: dict[str, Any] | None = None,
        tune_config: TuneConfig | None = None,
        run_config: RunConfig | None = None,
    ) -> None:
        if param_space is not None and not isinstance(param_space, dict):
            raise TypeError(f"param_space must be a dict, not {type(param_space).__name__}")
        check_space(param_space or {})
        self._trainable: BoundTrainable = bound(trainable)
        check_parameters(self._trainable)
        self._space = param_space or {}
        self._tune = tune_config or TuneConfig()
        self._run = run_config or RunConfig()
        self._identity = f"{random.SystemRandom().getrandbits(20):05x}"
        self._storage: Storage | None = None
        self._restored = False
        self._reopen: str | None = None

    @classmethod
    def can_restore(cls, path: str) -> bool:
        """Whether `path` is the folder of an experiment."""
        return Storage(str(path)).read(DEFINITION) is not None

    @classmethod
    def restore(
        cls, path: str, trainable: Any, *, resume_errored: bool = False, restart_errored: bool = False
    ) -> Tuner:
        """The search in the folder `path`, whose driver has ended somehow; `fit` goes on with it.

        Trials that have ended stay as they are, those that ran go on from their last checkpoint, the rest of the search follows.

        Args:
            trainable: the same as before.
            resume_errored: failed trials go on from their last checkpoint. restart_errored: they begin again.

        Raises:
            ValueError: there is no experiment in the folder.
        """
        storage = Storage(str(path))
        definition = storage.read(DEFINITION)
        if definition is None:
            raise ValueError(f"{path} is no folder of a search: it has no {DEFINITION}")
        try:
            saved = cloudpickle.loads(definition)
        except Exception as error:
            raise ValueError(
                f"{path}/{DEFINITION} cannot be read: it is damaged, or needs a module that is not here ({type(error).__name__}: {error})"
            ) from error
        tuner = cls(trainable, param_space=saved["space"], tune_config=saved["tune"], run_config=saved["run"])
        tuner._identity = saved["identity"]
        tuner._storage = storage
        tuner._restored = True
        tuner._reopen = "restart" if restart_errored else "resume" if resume_errored else None
        return tuner

    def fit(self) -> ResultGrid:
        """Run the search to its end.

        Raises:
            ValueError: the configuration makes no sense. The failures of trials are in the results, unless `fail_fast="raise"`.
            RuntimeError: another driver that lives runs this search (told on local folders).
        """
        if not shoal.is_initialized():
            shoal.init()
        experiment = self._experiment()  # before the folder: what is wrong with the search does not use up its name
        fresh = self._storage is None
        storage = self._open()
        with storage.owned():
            return self._search(experiment, storage, fresh)

    def _search(self, experiment: Experiment, storage: Storage, fresh: bool) -> ResultGrid:
        """`fit`, with the folder its own."""
        if self._restored:
            self._revive(experiment, storage)
        callbacks: list[Callback] = [JsonLoggerCallback(), CSVLoggerCallback(), *self._run.callbacks]
        reporter = ProgressReporter(self._run.verbose)
        try:
            controller = Controller(experiment, storage, self._plan(storage), callbacks, reporter)
            controller.set_up()
        except BaseException:
            if fresh:  # nothing was tried yet: a trainable that cannot be sent or a callback that cannot begin uses up no name either
                storage.remove(DEFINITION)
                self._storage = None
            raise
        self._restored = True  # a second `fit` goes on with the first one's experiment
        try:
            controller.run()
        except KeyboardInterrupt:
            print(f"interrupted; Tuner.restore({storage.location!r}, trainable).fit() goes on with it", file=sys.stderr)
            raise
        grid = ResultGrid(experiment, storage)
        if self._run.failure_config.fail_fast == "raise" and grid.errors:
            raise grid.errors[0]
        return grid

    def get_results(self) -> ResultGrid:
        """The results of a search that was restored, as they are now."""
        experiment = self._experiment()
        storage = self._open()
        Journal(storage).replay(experiment)
        return ResultGrid(experiment, storage)

    def _open(self) -> Storage:
        """The experiment's folder, with the definition of the search in it."""
        if self._storage is not None:
            return self._storage
        run = self._run
        if run.name is None:
            run.name = f"{self._trainable.name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}_{self._identity}"
        storage = Storage(f"{str(run.storage_path or STORAGE_DEFAULT).rstrip('/')}/{run.name}")
        if storage.read(DEFINITION) is not None or storage.read_lines(JOURNAL):
            raise ValueError(
                f"{storage.location} holds a search already: choose another RunConfig.name, or go on with it by "
                f"Tuner.restore({storage.location!r}, trainable)"
            )
        saved = {"space": self._space, "tune": self._tune, "run": run, "identity": self._identity}
        storage.write(DEFINITION, cloudpickle.dumps(saved))
        self._storage = storage
        return storage

    def _experiment(self) -> Experiment:
        """A fresh machine; searcher and scheduler are copies, so that the user's objects stay as they are."""
        tune, failure = self._tune, self._run.failure_config
        searcher: Searcher = cloudpickle.loads(cloudpickle.dumps(tune.search_alg))
        if searcher is None:
            # Without a seed of the user's the name is the seed: a resumed search draws what it would have drawn.
            searcher = BasicVariantGenerator(
                random_state=tune.seed if tune.seed is not None else int(self._identity, 16)
            )
        searcher.set_search_properties(tune.metric, tune.mode, self._space, tune.num_samples)
        scheduler: TrialScheduler = cloudpickle.loads(cloudpickle.dumps(tune.scheduler)) or FIFOScheduler()
        scheduler.set_search_properties(tune.metric, tune.mode)
        if self._space:  # some searchers have a space of their own
            scheduler.check_space(self._space)
        stopper = stopper_of(self._run.stop)
        rules = Rules(
            metric=tune.metric,
            mode=tune.mode,
            max_failures=failure.max_failures,
            fail_fast=bool(failure.fail_fast),
            stop=stopper,
            stop_all=stopper.stop_all if stopper is not None else None,
            replay_stop=stopper.replay if stopper is not None else None,
        )
        return Experiment(searcher, scheduler, rules, self._identity)

    def _revive(self, experiment: Experiment, storage: Storage) -> None:
        """Bring a fresh machine to where the last driver was."""
        journal = Journal(storage)
        journal.replay(experiment)
        experiment.stopped = None
        experiment.interrupt()
        if self._reopen is None:
            return
        for trial in list(experiment.trials.values()):
            if trial.status == ERROR:
                event = events.TrialReopened(trial.trial_id, self._reopen == "restart")
                experiment.handle(event)
                journal.write(event)
        self._reopen = None

    def _plan(self, storage: Storage) -> Plan:
        """How the controller runs it."""
        tune, kept = self._tune, self._run.checkpoint_config
        limit = tune.max_concurrent_trials or 0
        if isinstance(tune.search_alg, BasicVariantGenerator):
            limit = limit or tune.search_alg.max_concurrent
        return Plan(
            trainable=self._trainable,
            experiment_name=storage.location.rsplit("/", 1)[-1],
            max_concurrent=limit,
            reuse_runners=tune.reuse_actors,
            time_budget_s=tune.time_budget_s,
            report_timeout_s=self._run.failure_config.report_timeout_s,
            num_to_keep=kept.num_to_keep,
            score_attribute=kept.checkpoint_score_attribute,
            score_order=kept.checkpoint_score_order,
            checkpoint_frequency=kept.checkpoint_frequency,
            checkpoint_at_end=kept.checkpoint_at_end,
        )

"""Hyperparameter search on Shoal.

    from shoal import tune

    def objective(config):
        return {"loss": (config["x"] - 3) ** 2}

    grid = tune.Tuner(objective, param_space={"x": tune.uniform(0, 10)},
                      tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=20)).fit()
    print(grid.get_best_result().config)

The names are those of Ray Tune. Reading order: `tuner` (the front door), `experiment` (the pure machine), `controller` (the loop), `runner`
(the trial's process), then `search`, `schedulers`, `journal`. Only the public API of Shoal is used. docs/guide/10_tune.md says what is there.
"""

from __future__ import annotations

from shoal.tune import plots
from shoal.tune.callbacks import Callback, CSVLoggerCallback, JsonLoggerCallback, LoggerCallback
from shoal.tune.checkpoint import Checkpoint, CheckpointError
from shoal.tune.context import TrialContext, get_checkpoint, get_context, report
from shoal.tune.hyperband import HyperBandScheduler, SuccessiveHalvingScheduler
from shoal.tune.loggers import MLflowLoggerCallback, TBXLoggerCallback
from shoal.tune.optuna_search import OptunaSearch
from shoal.tune.results import Result, ResultGrid, TrialError
from shoal.tune.schedulers import (
    ASHAScheduler,
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from shoal.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher
from shoal.tune.space import (
    choice,
    grid_search,
    lograndint,
    loguniform,
    qlograndint,
    qloguniform,
    qrandint,
    qrandn,
    quniform,
    randint,
    randn,
    sample_from,
    uniform,
)
from shoal.tune.stoppers import CombinedStopper, MaximumIterationStopper, Stopper, TimeoutStopper, TrialPlateauStopper
from shoal.tune.trainable import Trainable, with_parameters, with_resources
from shoal.tune.tuner import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner

__all__ = [
    "ASHAScheduler",
    "AsyncHyperBandScheduler",
    "BasicVariantGenerator",
    "CSVLoggerCallback",
    "Callback",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointError",
    "CombinedStopper",
    "ConcurrencyLimiter",
    "FIFOScheduler",
    "FailureConfig",
    "HyperBandScheduler",
    "JsonLoggerCallback",
    "LoggerCallback",
    "MLflowLoggerCallback",
    "MaximumIterationStopper",
    "MedianStoppingRule",
    "OptunaSearch",
    "PopulationBasedTraining",
    "Result",
    "ResultGrid",
    "RunConfig",
    "Searcher",
    "Stopper",
    "SuccessiveHalvingScheduler",
    "TBXLoggerCallback",
    "TimeoutStopper",
    "Trainable",
    "TrialContext",
    "TrialError",
    "TrialPlateauStopper",
    "TrialScheduler",
    "TuneConfig",
    "Tuner",
    "choice",
    "get_checkpoint",
    "get_context",
    "grid_search",
    "lograndint",
    "loguniform",
    "plots",
    "qlograndint",
    "qloguniform",
    "qrandint",
    "qrandn",
    "quniform",
    "randint",
    "randn",
    "report",
    "sample_from",
    "uniform",
    "with_parameters",
    "with_resources",
]

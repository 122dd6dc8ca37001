"""Loggers for TensorBoard and MLflow: callbacks that hand results to other programs.

Design: neither package is imported before a search with its logger begins; where it is missing, the search says so then, before any trial has run.
Event files of TensorBoard lie in the trials' folders, so `tensorboard --logdir EXPERIMENT` shows all trials.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import OrderedDict
from typing import Any

from shoal.tune.callbacks import Callback, LoggerCallback
from shoal.tune.space import flattened
from shoal.tune.storage import Storage
from shoal.tune.trial import ERROR, TERMINATED, Trial

WRITERS_MAX = 64  #: event files open at once: each has a thread. One that is opened again continues in a further file


def numbers_of(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of a result that a curve can show."""
    return {
        name: float(value)
        for name, value in flattened(result).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _summary_writer() -> Any:
    """The class that writes event files."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TBXLoggerCallback needs tensorboardX (pip install tensorboardX), or torch with tensorboard"
            ) from error
    return SummaryWriter


class TBXLoggerCallback(LoggerCallback):
    """Event files for TensorBoard: a curve for each metric over `training_iteration`, the configuration as text."""

    def setup(self, storage: Storage, **info: Any) -> None:
        """See `Callback`."""
        super().setup(storage, **info)
        self._class = _summary_writer()
        self._writers: OrderedDict[str, Any] = OrderedDict()  #: by trial id, the one used last at the end
        # Event files are appended to, which object stores cannot do: there they are uploaded when they are complete.
        self._local = None if storage.is_local else tempfile.mkdtemp(prefix="shoal-tune-tensorboard-")

    def _writer(self, trial: Trial) -> Any:
        """The open event file of a trial."""
        writer = self._writers.get(trial.trial_id)
        if writer is None:
            if len(self._writers) >= WRITERS_MAX:
                self._writers.popitem(last=False)[1].close()
            root = self._local or self.storage.location
            writer = self._writers[trial.trial_id] = self._class(f"{root}/{trial.folder}")
        self._writers.move_to_end(trial.trial_id)
        return writer

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See `Callback`."""
        lines = [f"    {name}: {value}" for name, value in flattened(trial.config).items()]
        self._writer(trial).add_text("config", "\n".join(lines))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """See `Callback`."""
        writer = self._writer(trial)
        for name, value in numbers_of(result).items():
            writer.add_scalar(name, value, result["training_iteration"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See `Callback`."""
        writer = self._writers.pop(trial.trial_id, None)
        if writer is not None:
            writer.close()

    on_trial_error = on_trial_complete

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """See `Callback`."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        if self._local is not None:
            self.storage.upload(self._local, "")
            shutil.rmtree(self._local, ignore_errors=True)


class MLflowLoggerCallback(Callback):
    """A run of MLflow for each trial: configuration as parameters, results as metrics.

    Args:
        tracking_uri: of the server or folder; MLflow's own settings by default.
        experiment_name: in MLflow.
        tags: of every run.
    """

    def __init__(
        self, tracking_uri: str | None = None, experiment_name: str = "shoal", tags: dict[str, Any] | None = None
    ) -> None:
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self.tags = tags or {}

    def setup(self, storage: Storage, **info: Any) -> None:
        """See `Callback`."""
        try:
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ImportError("MLflowLoggerCallback needs MLflow: pip install mlflow") from error
        self._metric, self._param = Metric, Param
        self._client = MlflowClient(tracking_uri=self.tracking_uri)
        known = self._client.get_experiment_by_name(self.experiment_name)
        self._experiment = known.experiment_id if known else self._client.create_experiment(self.experiment_name)
        self._runs: dict[str, str] = {}  #: trial id -> id of its run

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See `Callback`. A trial that is started again goes on with its run."""
        if trial.trial_id in self._runs:
            return
        tags = {**self.tags, "trial_id": trial.trial_id, "mlflow.runName": trial.trial_id}
        run = self._client.create_run(self._experiment, tags={name: str(value) for name, value in tags.items()})
        self._runs[trial.trial_id] = run.info.run_id
        params = [self._param(name, str(value)) for name, value in flattened(trial.config).items()]
        self._client.log_batch(run.info.run_id, params=params)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """See `Callback`."""
        moment, step = int(result["timestamp"] * 1000), int(result["training_iteration"])
        metrics = [self._metric(name, value, moment, step) for name, value in numbers_of(result).items()]
        self._client.log_batch(self._runs[trial.trial_id], metrics=metrics)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See `Callback`."""
        self._end(trial, "FINISHED")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See `Callback`."""
        self._end(trial, "FAILED")

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """See `Callback`. What the end of the search cut short was killed, unless it had a result."""
        states = {TERMINATED: "FINISHED", ERROR: "FAILED"}
        for trial in trials:
            self._end(trial, states.get(trial.status, "KILLED"))

    def _end(self, trial: Trial, status: str) -> None:
        run = self._runs.pop(trial.trial_id, None)
        if run is not None:
            self._client.set_terminated(run, status)

"""Callbacks of the controller, among them the loggers.

Design: all run in the driver, between two results; slow ones slow the search. The loggers write one line a result into the trial's
folder: `result.json` (JSON lines) and `progress.csv`, beside `params.json`.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from shoal.tune.space import flattened
from shoal.tune.storage import Storage
from shoal.tune.trial import Trial


class Callback:
    """Override what you want to hear of. `trials` are all trials, `iteration` counts the controller's turns.

    A callback that raises in `setup` ends the search before it begins. One that raises later is told no more, and a warning says so: the search
    goes on.
    """

    def setup(self, storage: Storage, **info: Any) -> None:
        """Before the first trial; `storage` is the experiment's folder."""

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial was given to a runner."""

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has reported."""

    def on_checkpoint(self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: str, **info: Any) -> None:
        """A trial has saved a checkpoint, of this path in the experiment's folder."""

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has ended well."""

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has failed for good."""

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """All is over."""


class LoggerCallback(Callback):
    """A callback that writes into the trials' folders."""

    storage: Storage

    def setup(self, storage: Storage, **info: Any) -> None:
        """See `Callback`."""
        self.storage = storage


class JsonLoggerCallback(LoggerCallback):
    """`params.json` and `result.json`."""

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See `Callback`."""
        content = json.dumps(trial.config, indent=1, default=repr, skipkeys=True).encode()
        self.storage.write(f"{trial.folder}/params.json", content, durable=False)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """See `Callback`."""
        self.storage.append(f"{trial.folder}/result.json", json.dumps(result, default=repr).encode() + b"\n")


class CSVLoggerCallback(LoggerCallback):
    """`progress.csv`; its columns are those of the trial's first result."""

    def __init__(self) -> None:
        self._columns: dict[str, list[str]] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """See `Callback`."""
        row = flattened(result)
        path = f"{trial.folder}/progress.csv"
        columns = self._columns.get(trial.trial_id)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if columns is None:
            columns = list(row)
            earlier = self.storage.read(path) if self.storage.is_local else None
            if earlier:  # a resumed experiment
                columns = next(csv.reader(io.StringIO(earlier.decode())))
            else:
                writer.writerow(columns)
            self._columns[trial.trial_id] = columns
        writer.writerow([row.get(name, "") for name in columns])
        self.storage.append(path, text.getvalue().encode())

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See `Callback`."""
        self._columns.pop(trial.trial_id, None)

    on_trial_error = on_trial_complete

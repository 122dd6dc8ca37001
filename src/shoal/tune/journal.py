"""The experiment's memory on disk: a line for every event, and a snapshot for people.

Design: `journal.jsonl` is the truth. An event is written, and committed, before its effects are performed, so a driver killed at any moment
resumes with everything it had acted upon; on a local folder also with what it had only been told. `experiment_state.json` is replaced atomically
now and then; nothing reads it but people and their tools.
"""

from __future__ import annotations

import base64
import json
import pickle
from dataclasses import fields
from typing import Any

import cloudpickle

from shoal.tune import experiment as events
from shoal.tune.experiment import Event, Experiment
from shoal.tune.storage import Storage

JOURNAL = "journal.jsonl"
STATE = "experiment_state.json"
PICKLED = "__pickled__"
TUPLE = "__tuple__"

_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        events.TrialCreated,
        events.TrialStarted,
        events.TrialReported,
        events.TrialSaved,
        events.TrialsJudged,
        events.TrialFinished,
        events.TrialFailed,
        events.CheckpointDeleted,
        events.TrialReopened,
        events.ExperimentStopped,
    )
}
_FIELDS = {name: [field.name for field in fields(kind)] for name, kind in _KINDS.items()}


def _marked(value: Any) -> Any:
    """A value such that JSON gives the same back: it makes lists of tuples, and texts of a dict's keys."""
    kind = type(value)
    if kind is str or kind is float or kind is int:
        return value
    if kind is list:
        return [_marked(one) for one in value]
    if kind is tuple:
        return {TUPLE: [_marked(one) for one in value]}
    if isinstance(value, tuple):
        return _pickled(value)
    if isinstance(value, dict):
        if all(type(key) is str for key in value) and PICKLED not in value and TUPLE not in value:
            return {key: _marked(one) for key, one in value.items()}
        return _pickled(value)
    return value


def _pickled(value: Any) -> dict[str, str]:
    """A value that only Python can read."""
    return {PICKLED: base64.b64encode(cloudpickle.dumps(value)).decode()}


def _unknown(value: Any) -> Any:
    """What JSON cannot say: numbers of numpy and torch as numbers, the rest pickled."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", None) == 1:
        return item()
    return _pickled(value)


def _known(node: dict[str, Any]) -> Any:
    """The reverse."""
    if PICKLED in node:
        return pickle.loads(base64.b64decode(node[PICKLED]))
    if TUPLE in node:
        return tuple(node[TUPLE])
    return node


def encode(event: Event) -> bytes:
    """An event as a line."""
    name = type(event).__name__
    values = [_marked(getattr(event, field)) for field in _FIELDS[name]]
    return json.dumps([name, *values], default=_unknown).encode() + b"\n"


def decode(line: bytes) -> Event:
    """The event of a line."""
    name, *values = json.loads(line, object_hook=_known)
    event: Event = _KINDS[name](*values)
    return event


class Journal:
    """Writes and reads the events of one experiment's folder."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def write(self, event: Event) -> None:
        """Remember an event."""
        self.storage.append(JOURNAL, encode(event))

    def commit(self) -> None:
        """What was written survives this process from here on."""
        self.storage.flush(JOURNAL)

    def replay(self, experiment: Experiment) -> None:
        """Let a fresh experiment live through everything that was written."""
        for number, line in enumerate(self.storage.read_lines(JOURNAL), 1):
            try:
                experiment.handle(decode(line))
            except Exception as error:
                raise ValueError(
                    f"{self.storage.full(JOURNAL)}: event number {number} cannot be read ({type(error).__name__}: {error}); "
                    "what comes before it can: cut the file there, and the search goes on from then"
                ) from error

    def snapshot(self, experiment: Experiment) -> None:
        """The state for people."""
        trials = [
            {
                "trial_id": trial.trial_id,
                "status": trial.status,
                "config": trial.config,
                "last_result": trial.last_result,
                "checkpoints": [one.path for one in trial.checkpoints],
                "failures": trial.failures,
                "error": trial.error_text,
            }
            for trial in experiment.trials.values()
        ]
        # A line for each trial; `indent` would be nicer, and ten times as slow (it is not written in C).
        lines = ",\n".join(json.dumps(trial, default=repr, skipkeys=True) for trial in trials)
        head = json.dumps({"stopped": experiment.stopped, "exhausted": experiment.exhausted})[:-1]
        self.storage.write(STATE, f'{head}, "trials": [\n{lines}\n]}}\n'.encode())
        self.storage.flush()

"""What a trial's code calls: `report`, `get_checkpoint`, `get_context`.

Design: a process runs one trial at a time, so the running one is a module variable. `report` hands its result to the runner's thread
and waits to be told to go on; told to stop, it raises `TrialStopped`, which passes `except Exception` and lets `finally` do its work.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from typing import Any

from shoal.tune.checkpoint import Checkpoint


class TrialStopped(BaseException):
    """Ends a function trainable from inside of `report`."""


@dataclass(slots=True)
class TrialContext:
    """Where a trial runs and what it is."""

    trial_id: str
    trial_name: str
    trial_dir: str
    experiment_name: str
    config: dict[str, Any]
    trial_resources: dict[str, float] = field(default_factory=dict)

    def get_trial_id(self) -> str:
        """The id."""
        return self.trial_id

    def get_trial_name(self) -> str:
        """The trainable's name and the id."""
        return self.trial_name

    def get_trial_dir(self) -> str:
        """The folder of the trial's files, path or URL."""
        return self.trial_dir

    def get_experiment_name(self) -> str:
        """The name of the run."""
        return self.experiment_name

    def get_trial_resources(self) -> dict[str, float]:
        """What the trial holds."""
        return dict(self.trial_resources)

    def get_local_rank(self) -> int:
        """A trial is one process."""
        return 0

    get_world_rank = get_local_rank
    get_node_rank = get_local_rank

    def get_world_size(self) -> int:
        """A trial is one process."""
        return 1


class FunctionSession:
    """Between the thread of a function trainable and its runner."""

    def __init__(self, context: TrialContext, checkpoint: Checkpoint | None) -> None:
        self.context = context
        self.checkpoint = checkpoint
        self.stopping = False
        self.failure: Exception | None = None  #: why the result could not be taken
        self.said: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()  #: (kind, value, checkpoint)
        self.go = threading.Semaphore(0)

    def report(self, metrics: dict[str, Any], checkpoint: Checkpoint | None) -> None:
        """Hand over a result and wait for the word to go on."""
        if self.stopping:
            raise TrialStopped
        self.said.put(("report", dict(metrics), checkpoint))
        self.go.acquire()
        if self.stopping:
            raise TrialStopped
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure


#: the session of the function trainable that runs in this process, or None
running: FunctionSession | None = None
#: the context of the trial that runs in this process, or None
context: TrialContext | None = None


def report(metrics: dict[str, Any], *, checkpoint: Checkpoint | None = None) -> None:
    """Report a result of the trial that calls this. It returns when the trial shall go on.

    Args:
        metrics: names and values; the scheduler and `TuneConfig.metric` look here.
        checkpoint: files to go on from; they are copied before this returns.

    Raises:
        RuntimeError: no trial runs in this process.
        TypeError: metrics that are no dict.
        FileNotFoundError: the checkpoint's folder does not exist.
    """
    if running is None:
        raise RuntimeError("tune.report was called outside of a trial: only a function that a Tuner runs may call it")
    if not isinstance(metrics, dict):
        raise TypeError(
            f"tune.report takes a dict of metrics, not {type(metrics).__name__}: tune.report({{'loss': 0.1}})"
        )
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise TypeError(f"checkpoint must be a tune.Checkpoint, not {type(checkpoint).__name__}")
    running.report(metrics, checkpoint)


def get_checkpoint() -> Checkpoint | None:
    """The checkpoint to go on from; None at a fresh start."""
    if running is None:
        raise RuntimeError("tune.get_checkpoint was called outside of a trial")
    return running.checkpoint


def get_context() -> TrialContext:
    """Facts about the trial that calls this."""
    if context is None:
        raise RuntimeError("tune.get_context was called outside of a trial")
    return context

"""The process of a trial: an actor that runs one trial after the other.

Design: `run`, `proceed` and `release` are the whole conversation; each of the first two brings the next result. A function trainable
runs in a thread of its own and stands still between `report` and the next `proceed`, so no step is computed that the scheduler has forbidden.
Starting the next trial costs one actor call.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import shoal
from shoal.tune import context as trial_context
from shoal.tune.checkpoint import Checkpoint, check_complete, reported_files, store_checkpoint
from shoal.tune.context import FunctionSession, TrialContext, TrialStopped
from shoal.tune.space import flattened
from shoal.tune.storage import Storage
from shoal.tune.trainable import Trainable

RELEASE_GRACE_S = 5.0  #: how long a stopped function may take to end


@dataclass(slots=True)
class Assignment:
    """A trial as its runner needs it."""

    trial_id: str
    trial_name: str
    experiment_name: str
    folder: str
    config: dict[str, Any]
    resources: dict[str, float]
    restore_path: str | None = None
    iteration: int = 0  #: steps before this start
    time_total_s: float = 0.0  #: seconds before this start
    checkpoint_number: int = 0  #: of the next one
    checkpoint_frequency: int = 0  #: class trainables: save after so many steps
    checkpoint_at_end: bool = False


#: (result or None, checkpoint's path in the experiment's folder or None, whether the trainable has ended)
Outcome = tuple[dict[str, Any] | None, str | None, bool]


class Runner:
    """The actor's class. `parameters` are refs."""

    def __init__(self, target: Any, parameters: dict[str, Any], location: str) -> None:
        self._target = target
        self._parameters = {name: shoal.get(ref) for name, ref in parameters.items()}
        self._storage = Storage(location)
        self._constant = {"pid": os.getpid(), "hostname": socket.gethostname()}
        self._object: Trainable | None = None
        self._session: FunctionSession | None = None
        self._thread: threading.Thread | None = None
        self._assignment: Assignment | None = None

    def run(self, assignment: Assignment) -> Outcome:
        """Begin a trial; its first result."""
        if self._session is not None:  # a trial whose result could not be sent
            self.release()
        self._assignment = assignment
        self._steps = 0
        self._saved_at = assignment.iteration if assignment.restore_path is not None else -1
        self._number = assignment.checkpoint_number
        self._elapsed = 0.0
        self._resumed = time.perf_counter()
        storage = self._storage
        where = TrialContext(
            assignment.trial_id,
            assignment.trial_name,
            storage.full(assignment.folder),
            assignment.experiment_name,
            assignment.config,
            assignment.resources,
        )
        trial_context.context = where
        checkpoint = None
        if assignment.restore_path is not None:
            check_complete(storage, assignment.restore_path)
            checkpoint = Checkpoint(storage.full(assignment.restore_path))
        if isinstance(self._target, type):
            self._prepare(assignment, checkpoint)
            return self._step()
        session = self._session = trial_context.running = FunctionSession(where, checkpoint)
        self._thread = threading.Thread(target=self._call, args=(session,), name="trial", daemon=True)
        self._thread.start()
        return self._listen()

    def proceed(self) -> Outcome:
        """Let the trial go on; its next result."""
        self._resumed = time.perf_counter()
        if self._session is None:
            return self._step()
        self._session.go.release()
        return self._listen()

    def release(self, save: bool = False) -> tuple[bool, str | None]:
        """End the trial here. `save`: a class trainable goes on later, elsewhere.

        Returns:
            Whether the process can run another trial (False: the function does not end), and the path of the checkpoint, if one was made.
        """
        path = self._save() if save and self._object is not None and self._saved_at != self._object.iteration else None
        if self._object is not None and not _becomes_others(self._object):
            self._give_up()
        session, thread = self._session, self._thread
        if session is not None and thread is not None:
            session.stopping = True
            session.go.release()
            thread.join(RELEASE_GRACE_S)
            if thread.is_alive():
                return False, path
        self._forget()
        return True, path

    def _forget(self) -> None:
        """No trial runs here."""
        self._session = self._thread = trial_context.running = trial_context.context = None

    # ------------------------------------------------------------ functions

    def _call(self, session: FunctionSession) -> None:
        """The thread of a function trainable."""
        try:
            value = self._target(session.context.config, **self._parameters)
            session.said.put(("done", value, None))
        except TrialStopped:
            session.said.put(("done", None, None))
        except SystemExit as error:
            session.said.put(("raised", RuntimeError(f"the trainable called sys.exit({error.code!r})"), None))
        except BaseException as error:
            session.said.put(("raised", error, None))

    def _listen(self) -> Outcome:
        """The function's next result."""
        while (outcome := self._heard()) is None:
            pass
        return outcome

    def _heard(self) -> Outcome | None:
        """Wait for what the function says next; None if it cannot be taken, which the function has been told."""
        assert self._session is not None
        kind, value, checkpoint = self._session.said.get()
        if kind == "raised":
            self._forget()
            raise value
        if kind == "done":
            self._forget()
            if value is None:
                return None, None, True
            if isinstance(value, (int, float)):
                value = {"_metric": value}
            if not isinstance(value, dict):
                raise TypeError(f"a trainable returns a dict of metrics, a number or None, not {type(value).__name__}")
            return self._dressed(value), None, True
        result = self._dressed(value)
        path = None
        if checkpoint is not None:
            try:
                with reported_files(checkpoint) as folder:
                    path = self._store(folder)
            except Exception as error:
                # `report` raises it: the function's own traceback says where, and its thread ends.
                self._steps -= 1  # it was no step
                self._resumed = time.perf_counter()
                self._session.failure = error
                self._session.go.release()
                return None
        return result, path, False

    # ------------------------------------------------------------ classes

    def _prepare(self, assignment: Assignment, checkpoint: Checkpoint | None) -> None:
        """An object of the class, ready for its first step."""
        reused = self._object is not None and self._object.reset_config(assignment.config)
        if self._object is not None and reused:
            self._object.config = assignment.config
            self._object.trial_id = assignment.trial_id
        else:
            self._give_up()
            self._object = self._target(assignment.config, assignment.trial_id, **self._parameters)
        self._object.iteration = assignment.iteration
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                try:
                    self._object.load_from(folder)
                except BaseException:
                    self._give_up()
                    raise

    def _give_up(self) -> None:
        """An object that no other trial shall get: its trial has ended, or its code has raised. What its cleanup raises harms neither trial."""
        one, self._object = self._object, None
        if one is not None:
            try:
                one.cleanup()
            except Exception:
                print(f"{type(one).__name__}.cleanup raised:\n{traceback.format_exc()}", file=sys.stderr)

    def _step(self) -> Outcome:
        """One step of the object, and its checkpoint if one is due."""
        one, assignment = self._object, self._assignment
        assert one is not None
        assert assignment is not None
        try:
            metrics = one.step()
        except BaseException:
            self._give_up()
            raise
        if not isinstance(metrics, dict):
            raise TypeError(f"{type(one).__name__}.step returns a dict of metrics, not {type(metrics).__name__}")
        one.iteration += 1
        result = self._dressed(metrics)
        finished = bool(result.get("done"))
        frequency = assignment.checkpoint_frequency
        path = None
        if (frequency and one.iteration % frequency == 0) or (finished and assignment.checkpoint_at_end):
            path = self._save()
        if finished:
            self.release()
        return result, path, finished

    def _save(self) -> str:
        """A checkpoint of the object as it is; its path in the experiment's folder."""
        assert self._object is not None
        folder = tempfile.mkdtemp(prefix="shoal-tune-")
        try:
            self._object.save_to(folder)
            path = self._store(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._saved_at = self._object.iteration
        return path

    # ------------------------------------------------------------ both

    def _store(self, folder: str) -> str:
        """Copy a checkpoint to the experiment's folder; its path there."""
        assert self._assignment is not None
        path = f"{self._assignment.folder}/checkpoint_{self._number:06d}"
        store_checkpoint(folder, self._storage, path)
        self._number += 1
        return path

    def _dressed(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """The metrics with what every result has."""
        assignment = self._assignment
        assert assignment is not None
        now = time.perf_counter()
        step_s = now - self._resumed
        self._elapsed += step_s
        self._steps += 1
        moment = time.time()
        return {
            "done": False,
            "training_iteration": assignment.iteration + self._steps,
            **_named(metrics),
            "trial_id": assignment.trial_id,
            "time_this_iter_s": step_s,
            "time_total_s": assignment.time_total_s + self._elapsed,
            "iterations_since_restore": self._steps,
            "timestamp": int(moment),
            "date": datetime.fromtimestamp(moment).strftime("%Y-%m-%d_%H-%M-%S"),
            **self._constant,
        }


def _named(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics, plain; those of nested dicts also by their path: `{"eval": {"loss": 1}}` has "eval/loss" for metric, stop rules and schedulers."""
    plain = {name: _plain(value) for name, value in metrics.items()}
    nested = {name: value for name, value in metrics.items() if isinstance(value, dict)}
    return {**{name: _plain(value) for name, value in flattened(nested).items()}, **plain}


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's, in nested dicts too."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else value


def _becomes_others(one: Trainable) -> bool:
    """Whether the object's class can become another trial in place."""
    return type(one).reset_config is not Trainable.reset_config

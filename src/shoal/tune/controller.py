"""The loop of a search: `shoal.wait` over the runners, events into the experiment, its effects back to the runners.

Design: runners (actors) are kept and given trial after trial; as many as the cluster's resources and `max_concurrent_trials` allow. An
event is handled and written to the journal before its effects are performed. A runner has at most one call under way; when its process dies, the
trial fails (and perhaps tries again) and a new one takes the place.

Code that neither reports nor returns cannot be interrupted: its process is killed, after `report_timeout_s` or when the whole search ends.

What it does not do: decide anything about trials (`experiment`, `schedulers`).
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

import shoal
from shoal.exceptions import ShoalError, TaskError
from shoal.tune import experiment as events
from shoal.tune.callbacks import Callback
from shoal.tune.checkpoint import CheckpointError
from shoal.tune.experiment import Effect, Event, Experiment, Proceed, Release, StopAll
from shoal.tune.journal import Journal
from shoal.tune.progress import ProgressReporter
from shoal.tune.runner import Assignment, Runner
from shoal.tune.storage import Storage
from shoal.tune.trainable import BoundTrainable, actor_options, demand_of
from shoal.tune.trial import ERROR, PAUSED, PENDING, TERMINATED, UNFINISHED, Trial

TURN_S = 0.5  #: the longest sleep of the loop: the table, time budgets and stoppers want attention
SNAPSHOT_S = 10.0
RESOURCES_S = 2.0  #: nodes join and leave
KILL_GRACE_S = 5.0


@dataclass(slots=True)
class Plan:
    """How trials are run."""

    trainable: BoundTrainable
    experiment_name: str
    max_concurrent: int = 0  #: 0: as many as fit
    reuse_runners: bool = True
    time_budget_s: float | None = None
    report_timeout_s: float | None = None
    num_to_keep: int | None = None
    score_attribute: str | None = None
    score_order: str = "max"
    checkpoint_frequency: int = 0
    checkpoint_at_end: bool = False


@dataclass(slots=True)
class Slot:
    """A runner and what it does."""

    actor: Any
    options: dict[str, Any]
    demand: dict[str, float]
    trial_id: str | None = None
    begun: bool = False  #: it has answered, so it has a place in the cluster
    answer_due: float | None = None  #: monotonic time at which its silence is a failure


class Controller:
    """Runs one experiment to its end."""

    def __init__(
        self,
        experiment: Experiment,
        storage: Storage,
        plan: Plan,
        callbacks: list[Callback],
        reporter: ProgressReporter,
    ) -> None:
        self.experiment = experiment
        self.storage = storage
        self.plan = plan
        self.callbacks = callbacks
        self.reporter = reporter
        self.journal = Journal(storage)
        self.turns = 0
        self._slots: list[Slot] = []
        self._calls: dict[Any, tuple[Slot, str]] = {}  #: ref -> (slot, "ready", "result", "release" or "killed")
        self._total = shoal.cluster_resources()
        self._ever = dict(self._total)  #: the most there was of each resource: a node that is away may come back
        self._target = shoal.put(plan.trainable.target)
        self._parameters = {name: shoal.put(value) for name, value in plan.trainable.parameters.items()}
        self._actor_class = shoal.remote(Runner)
        self._next_snapshot = self._next_count = 0.0
        self._said = ""

    def set_up(self) -> None:
        """Before the first trial: callbacks get their place, and may raise if they cannot work."""
        for callback in self.callbacks:
            callback.setup(self.storage)

    def run(self) -> None:
        """Until every trial has ended, or time is over."""
        plan = self.plan
        deadline = None if plan.time_budget_s is None else time.monotonic() + plan.time_budget_s
        try:
            while True:
                if deadline is not None and time.monotonic() >= deadline:
                    self._apply(events.ExperimentStopped(f"the time budget of {plan.time_budget_s} s is over"))
                stop_all = self.experiment.rules.stop_all
                if self.experiment.stopped is None and stop_all is not None and stop_all():
                    self._apply(events.ExperimentStopped("a stopper ended the experiment"))
                if self.experiment.stopped is not None:
                    break
                lacking = self._fill()
                self._make_room()
                pause = self._pause(deadline)
                if self._calls:
                    ready, _ = shoal.wait(list(self._calls), num_returns=1, timeout=pause)
                    for ref in ready:
                        self._hear(ref)
                    self._end_silent()
                elif lacking is not None:  # until a node joins, time is over, or the user has enough of it
                    self._say_once(f"the search waits: {lacking}")
                    time.sleep(pause)
                else:  # nothing runs and nothing can be started
                    break
                self._attend()
        finally:
            self._close()

    def _pause(self, deadline: float | None) -> float:
        """How long the loop may sleep: until the next thing that is due."""
        due = [slot.answer_due for slot in self._slots if slot.answer_due is not None]
        due += [] if deadline is None else [deadline]
        return min(TURN_S, max(0.0, min(due) - time.monotonic())) if due else TURN_S

    def _attend(self) -> None:
        """Between two results: the table and the snapshot."""
        self.turns += 1
        self.journal.commit()
        self.reporter.update(self.experiment)
        now = time.monotonic()
        if now >= self._next_count:
            self._total = shoal.cluster_resources()
            for name, amount in self._total.items():
                self._ever[name] = max(amount, self._ever.get(name, 0.0))
            self._next_count = now + RESOURCES_S
        if now >= self._next_snapshot:
            self.journal.snapshot(self.experiment)
            self._next_snapshot = now + SNAPSHOT_S

    def _close(self) -> None:
        """However it ended: no runner stays, everything is written."""
        for slot in self._slots:
            shoal.kill(slot.actor)
        self._slots.clear()
        if self._calls:  # their errors are ours: nobody else shall be told of them
            ended, _ = shoal.wait(list(self._calls), num_returns=len(self._calls), timeout=KILL_GRACE_S)
            for ref in ended:
                with contextlib.suppress(Exception):
                    shoal.get(ref)
            self._calls.clear()
        self._call_back("on_experiment_end", list(self.experiment.trials.values()))
        self.journal.snapshot(self.experiment)
        self.reporter.update(self.experiment, final=True)

    # ------------------------------------------------------------ places

    def _fill(self) -> str | None:
        """Give waiting and new trials to runners until none is free. What the next trial lacks, if it is room."""
        limit = self.plan.max_concurrent
        while not limit or sum(slot.trial_id is not None for slot in self._slots) < limit:
            if self._calls and not self._may_place():
                return None
            trial = self._next_trial()
            if trial is None:
                return None
            try:
                options = self._options(trial)
            except Exception as error:
                self._fail(trial, f"its resources: {type(error).__name__}: {error}", error, fatal=True)
                if not callable(self.plan.trainable.resources):  # nor can any other trial
                    self._apply(events.ExperimentStopped(f"no trial can be placed: {error}"))
                    return None
                continue
            slot = self._place(options)
            if slot is None:
                return f"trial {trial.trial_id} asks for {demand_of(options)}, the cluster has {self._total} now"
            self._start(slot, trial)
        return None

    def _say_once(self, text: str) -> None:
        """To the user, unless it was the last thing said."""
        if text != self._said:
            print(text, file=sys.stderr)
        self._said = text

    def _next_trial(self) -> Trial | None:
        """Who is next: trials that wait for a start, new ones, paused ones. It stays the next until it is started."""
        leaving = {slot.trial_id for slot in self._slots if slot.trial_id is not None}
        trial = self.experiment.waiting(PENDING, leaving)
        if trial is None and self.experiment.scheduler.resumes_first:
            trial = self._resumed(leaving, no_more=False)
        if trial is not None:
            return trial
        event = self.experiment.create()
        if event is not None:
            self._apply(event)
            return self.experiment.trials[event.trial_id]
        # Where nothing runs either, trials that wait for others to join them would wait for ever.
        return self._resumed(leaving, no_more=not self._calls)

    def _resumed(self, leaving: set[str], no_more: bool) -> Trial | None:
        """The paused trial that goes on next, after the verdicts that are due."""
        while (event := self.experiment.judge(no_more)) is not None:
            self._apply(event)
            for trial_id in event.end:
                self._tell("on_trial_complete", self.experiment.trials[trial_id])
        return self.experiment.waiting(PAUSED, leaving)

    def _options(self, trial: Trial) -> dict[str, Any]:
        """The actor's options for a trial; ValueError if it can never be placed."""
        resources = self.plan.trainable.resources
        options = actor_options(resources(trial.config) if callable(resources) else resources)
        for name, amount in demand_of(options).items():
            if amount > self._ever.get(name, 0.0):
                raise ValueError(f"a trial asks for {amount:g} {name}, the cluster has {self._ever.get(name, 0.0):g}")
        return options

    def _may_place(self) -> bool:
        """Whether a trial could start now: searchers are not asked before, as they learn from every result."""
        resources = self.plan.trainable.resources
        if callable(resources) or any(slot.trial_id is None for slot in self._slots):
            return True
        demand = demand_of(actor_options(resources))
        return self._has_room(demand) or any(amount > self._ever.get(name, 0.0) for name, amount in demand.items())

    def _place(self, options: dict[str, Any]) -> Slot | None:
        """An idle runner with these resources: a known one or a new one; None if there is no room."""
        for slot in self._slots:
            if slot.trial_id is None and slot.options == options:
                return slot
        demand = demand_of(options)
        idle = [slot for slot in self._slots if slot.trial_id is None]
        while not self._has_room(demand):
            if not idle:
                return None
            self._discard(idle.pop())
        actor = self._actor_class.options(**options).remote(self._target, self._parameters, self.storage.location)
        slot = Slot(actor, options, demand)
        self._slots.append(slot)
        return slot

    def _has_room(self, demand: dict[str, float]) -> bool:
        """Whether a further runner fits beside those there are."""
        if not demand:  # nothing asked for: as many as there are CPUs
            return len(self._slots) < max(1, int(self._total.get("CPU", 1)))
        for name, amount in demand.items():
            used = sum(slot.demand.get(name, 0.0) for slot in self._slots)
            if used + amount > self._total.get(name, 0.0) + 1e-6:
                return False
        return True

    def _make_room(self) -> None:
        """Idle runners, for whom there is no trial, leave their place to runners that wait for one: a node has died, others use the cluster too."""
        if any(not slot.begun for slot in self._slots):
            for slot in [slot for slot in self._slots if slot.trial_id is None]:
                self._discard(slot)

    def _discard(self, slot: Slot) -> None:
        """End a runner."""
        self._slots.remove(slot)
        shoal.kill(slot.actor)

    def _start(self, slot: Slot, trial: Trial) -> None:
        """Give a trial to a runner."""
        experiment, plan = self.experiment, self.plan
        slot.trial_id = trial.trial_id
        self._apply(events.TrialStarted(trial.trial_id))
        before = trial.restore_from.result if trial.restore_from else {}
        assignment = Assignment(
            trial_id=trial.trial_id,
            trial_name=f"{plan.trainable.name}_{trial.trial_id}",
            experiment_name=plan.experiment_name,
            folder=trial.folder,
            config=trial.config,
            resources=slot.demand,
            restore_path=trial.restore_from.path if trial.restore_from else None,
            iteration=before.get("training_iteration", 0),
            time_total_s=before.get("time_total_s", 0.0),
            checkpoint_number=trial.checkpoints_made,
            checkpoint_frequency=plan.checkpoint_frequency or experiment.scheduler.checkpoint_frequency(),
            checkpoint_at_end=plan.checkpoint_at_end,
        )
        self.journal.commit()
        if plan.report_timeout_s is not None and not slot.begun:  # its time begins when it has a place
            self._calls[slot.actor.__shoal_ready__.remote()] = (slot, "ready")
        self._expect(slot, slot.actor.run.remote(assignment), "result")
        self._tell("on_trial_start", trial)

    # ------------------------------------------------------------ news

    def _expect(self, slot: Slot, ref: Any, kind: str) -> None:
        """A runner was asked for something."""
        self._calls[ref] = (slot, kind)
        limit = self.plan.report_timeout_s
        slot.answer_due = time.monotonic() + limit if limit is not None and slot.begun else None

    def _end_silent(self) -> None:
        """Kill the runners whose answer is overdue; their trials fail, and perhaps try again."""
        now = time.monotonic()
        overdue = {
            ref: (slot, kind)
            for ref, (slot, kind) in self._calls.items()
            if slot.answer_due is not None and slot.answer_due <= now and kind in ("result", "release")
        }
        if not overdue:
            return
        # This process may have been the slow one: what has come meanwhile is in time.
        came, _ = shoal.wait(list(overdue), num_returns=len(overdue), timeout=0)
        for ref in came:
            del overdue[ref]
            self._hear(ref)
        for ref, (slot, kind) in overdue.items():
            self._calls[ref] = (slot, "killed")
            self._discard(slot)
            if kind == "result":
                assert slot.trial_id is not None
                error = TimeoutError(
                    f"the trial neither reported nor ended for {self.plan.report_timeout_s:g} s "
                    "(FailureConfig.report_timeout_s), so its process was killed"
                )
                self._fail(self.experiment.trials[slot.trial_id], str(error), error)

    def _hear(self, ref: Any) -> None:
        """A call has ended."""
        slot, kind = self._calls.pop(ref)
        if kind in ("ready", "killed"):
            with contextlib.suppress(Exception):  # "result" has the same error, and is heard too
                shoal.get(ref)
            if kind == "ready" and not slot.begun and self.plan.report_timeout_s is not None:
                slot.begun, slot.answer_due = True, time.monotonic() + self.plan.report_timeout_s
            return
        slot.begun = True
        assert slot.trial_id is not None
        trial = self.experiment.trials[slot.trial_id]
        try:
            answer = shoal.get(ref)
        except TaskError as error:
            self._idle(slot)
            # What is not written will not be there the next time either.
            fatal = kind == "release" and isinstance(error, NotImplementedError)
            self._fail(trial, str(error), error, fatal, self._lost(trial, error))
            return
        except Exception as error:
            # Its process or its node died, or what it said cannot be read here: in any case this runner is of no further use.
            self._discard(slot)
            if kind == "result":
                died = isinstance(error, ShoalError)
                reason = "the process of the trial died" if died else "the result of the trial cannot be read"
                self._fail(trial, f"{reason}: {error}", error, fatal=not died)
            return
        if kind == "release":
            ended, checkpoint = answer
            if ended:
                self._idle(slot)
            else:  # its function does not end
                self._discard(slot)
            if checkpoint is not None:
                self._apply(events.TrialSaved(trial.trial_id, checkpoint))
                self._saved(trial, checkpoint)
            return
        result, checkpoint, finished = answer
        if finished:
            self._idle(slot)
        if result is None:
            self._apply(events.TrialFinished(trial.trial_id))
            self._tell("on_trial_complete", trial)
            return
        self._take(slot, trial, result, checkpoint, finished)

    def _take(self, slot: Slot, trial: Trial, result: dict[str, Any], checkpoint: str | None, finished: bool) -> None:
        """A result has come."""
        wrong = self.experiment.missing_metric(result)
        if wrong is not None:
            self._fail(trial, wrong, ValueError(wrong), fatal=True)
            if not finished:
                self._release(slot)
            return
        try:
            effects = self._handle(events.TrialReported(trial.trial_id, result, checkpoint, finished))
        except Exception as error:  # the user's stop rule or scheduler
            self._fail(trial, f"{type(error).__name__}: {error}", error, fatal=True)
            if not finished:
                self._release(slot)
            return
        if checkpoint is not None:
            self._saved(trial, checkpoint)
        self._tell("on_trial_result", trial, result=result)
        if trial.status == TERMINATED:
            self._tell("on_trial_complete", trial)
        self._perform(effects, slot)

    def _lost(self, trial: Trial, error: BaseException) -> bool:
        """Whether a trial failed because the checkpoint that it was to start from cannot be read; not any other that its code opens."""
        start = trial.restore_from
        return (
            isinstance(error, CheckpointError)
            and start is not None
            and f"checkpoint {self.storage.full(start.path)}:" in str(error)
        )

    def _saved(self, trial: Trial, checkpoint: str) -> None:
        """A trial has a further checkpoint."""
        self._prune(trial)
        self._tell("on_checkpoint", trial, checkpoint=checkpoint)

    def _fail(
        self, trial: Trial, text: str, error: BaseException, fatal: bool = False, lost_checkpoint: bool = False
    ) -> None:
        """A trial has failed."""
        if trial.status not in UNFINISHED:
            return
        trial.error = error
        lost = trial.restore_from if lost_checkpoint else None
        self._apply(events.TrialFailed(trial.trial_id, text, fatal, lost_checkpoint))
        if lost is not None and trial.status == PENDING:
            self.journal.commit()
            if lost.path.startswith(f"{trial.folder}/"):
                self.storage.remove(lost.path)
            begin = trial.restore_from.path if trial.restore_from else "the beginning"
            print(f"trial {trial.trial_id} goes on from {begin}: {text.strip().splitlines()[-1]}", file=sys.stderr)
        if trial.status == ERROR:
            self.storage.write(f"{trial.folder}/error.txt", text.encode(), durable=False)
            self._tell("on_trial_error", trial)

    def _apply(self, event: Event) -> None:
        """Handle an event that needs no answer to its runner."""
        self._handle(event)

    def _handle(self, event: Event) -> list[Effect]:
        """The experiment's answer to an event, which is then remembered: the answer is part of it."""
        effects = self.experiment.handle(event)
        self.journal.write(event)
        return effects

    def _perform(self, effects: list[Effect], slot: Slot) -> None:
        """Do what the experiment wants of a trial's runner."""
        self.journal.commit()
        for effect in effects:
            if isinstance(effect, Proceed):
                self._expect(slot, slot.actor.proceed.remote(), "result")
            elif isinstance(effect, Release):
                self._release(slot, effect.save)
            else:
                assert isinstance(effect, StopAll)

    def _release(self, slot: Slot, save: bool = False) -> None:
        """Take a trial that has not ended from its runner. `save`: a class trainable, as it is."""
        self._expect(slot, slot.actor.release.remote(save), "release")

    def _idle(self, slot: Slot) -> None:
        """A runner is free."""
        slot.trial_id = slot.answer_due = None
        if not self.plan.reuse_runners:
            self._discard(slot)

    def _tell(self, hook: str, trial: Trial, **more: Any) -> None:
        """Call a hook of every callback."""
        if self.callbacks:
            self._call_back(hook, self.turns, list(self.experiment.trials.values()), trial, **more)

    def _call_back(self, hook: str, *arguments: Any, **more: Any) -> None:
        """Call a hook of every callback; one that fails is called no more."""
        for callback in list(self.callbacks):
            try:
                getattr(callback, hook)(*arguments, **more)
            except Exception:
                self.callbacks.remove(callback)
                print(
                    f"the callback {type(callback).__name__} failed in {hook} and is told no more; the search goes on\n"
                    f"{traceback.format_exc()}",
                    file=sys.stderr,
                )

    def _worth(self, score: Any) -> float:
        """A checkpoint's score, larger is better; none, or what is not a number, is the worst."""
        if not isinstance(score, (int, float)) or math.isnan(score):
            return -math.inf
        return score if self.plan.score_order == "max" else -score

    def _prune(self, trial: Trial) -> None:
        """Delete checkpoints beyond `num_to_keep`, but never the newest, nor one that a trial is to start from."""
        keep = self.plan.num_to_keep
        if keep is None or len(trial.checkpoints) <= keep:
            return
        name = self.plan.score_attribute
        wanted = {one.restore_from.path for one in self.experiment.unfinished() if one.restore_from}
        candidates = [one for one in trial.checkpoints[:-1] if one.path not in wanted]
        if name is not None:
            candidates.sort(key=lambda one: self._worth(one.result.get(name)))
        for record in candidates[: len(trial.checkpoints) - keep]:
            self._apply(events.CheckpointDeleted(trial.trial_id, record.path))
            self.journal.commit()
            self.storage.remove(record.path)

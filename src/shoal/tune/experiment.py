"""The experiment as a pure machine: trials, and what each event makes of them.

House rules: no clock, no dice, no files, no engine. `handle(event)` is the only door through which trials change; it answers with effects
that the controller performs. Every event is a plain record that the journal writes down, and the machine's state follows from the
events alone: handling the journal of a killed driver again gives its experiment back, down to the schedulers' memory. What a scheduler decided is
written into the event (`decision`), so a replay repeats the decisions even where dice or code have changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from shoal.tune.schedulers import Continue, Decision, Exploit, Pause, Stop, TrialScheduler, Verdict
from shoal.tune.search import FINISHED, Searcher
from shoal.tune.trial import ERROR, PAUSED, PENDING, RUNNING, TERMINATED, UNFINISHED, CheckpointRecord, Trial


@dataclass(slots=True)
class TrialCreated:
    """The searcher suggested a configuration."""

    trial_id: str
    index: int
    config: dict[str, Any]


@dataclass(slots=True)
class TrialStarted:
    """A runner was given the trial."""

    trial_id: str


@dataclass(slots=True)
class TrialReported:
    """A result, with the path of the checkpoint that came with it. `finished`: the trainable has ended with it."""

    trial_id: str
    result: dict[str, Any]
    checkpoint: str | None = None
    finished: bool = False
    decision: list[Any] | None = None  #: filled in by the machine


@dataclass(slots=True)
class TrialSaved:
    """A trial that paused was saved as its last result left it."""

    trial_id: str
    checkpoint: str


@dataclass(slots=True)
class TrialsJudged:
    """Paused trials were compared by the scheduler: some go on, the others end."""

    go_on: list[str]
    end: list[str]


@dataclass(slots=True)
class TrialFinished:
    """The trainable ended without a further result."""

    trial_id: str


@dataclass(slots=True)
class TrialFailed:
    """The trainable raised, or its process died. `fatal`: trying again cannot help. `lost_checkpoint`: the one to start from is unreadable."""

    trial_id: str
    text: str
    fatal: bool = False
    lost_checkpoint: bool = False


@dataclass(slots=True)
class CheckpointDeleted:
    """A checkpoint that nobody needs is gone."""

    trial_id: str
    path: str


@dataclass(slots=True)
class TrialReopened:
    """The user wants an ended trial to go on (`resume_errored`), or to begin again (`restart_errored`)."""

    trial_id: str
    from_scratch: bool


@dataclass(slots=True)
class ExperimentStopped:
    """Time is over, or a stopper said so: what is unfinished ends as it is."""

    reason: str


Event = (
    TrialCreated
    | TrialStarted
    | TrialReported
    | TrialSaved
    | TrialsJudged
    | TrialFinished
    | TrialFailed
    | CheckpointDeleted
    | TrialReopened
    | ExperimentStopped
)


@dataclass(slots=True)
class Proceed:
    """Let the trial take its next step."""

    trial_id: str


@dataclass(slots=True)
class Release:
    """Take the trial from its runner; it has ended, or waits for another start. `save`: it is to go on from where it is."""

    trial_id: str
    save: bool = False


@dataclass(slots=True)
class StopAll:
    """End every runner."""

    reason: str


Effect = Proceed | Release | StopAll

#: does this result end its trial? (and, through `stop_all`, the experiment)
StopRule = Callable[[str, dict[str, Any]], bool]


@dataclass(slots=True)
class Rules:
    """What an experiment is told once."""

    metric: str | None = None
    mode: str | None = None
    max_failures: int = 0  #: -1: no end
    fail_fast: bool = False
    stop: StopRule | None = None
    stop_all: Callable[[], bool] | None = None
    #: hears in place of `stop` of results from before a restore
    replay_stop: Callable[[str, dict[str, Any]], object] | None = None


class Experiment:
    """All trials of a search. `searcher` and `scheduler` are fresh; `identity` begins the trials' ids."""

    def __init__(self, searcher: Searcher, scheduler: TrialScheduler, rules: Rules, identity: str) -> None:
        self.searcher = searcher
        self.scheduler = scheduler
        self.rules = rules
        self.identity = identity
        self.trials: dict[str, Trial] = {}  #: in the order created
        self.exhausted = False  #: the searcher has no more
        self.stopped: str | None = None  #: why the experiment ended early
        self._asked = False  #: the searcher's last configuration came from `create`, so it knows of it
        self._unfinished: dict[str, Trial] = {}
        self._handlers: dict[type, Callable[[Any], list[Effect]]] = {
            TrialCreated: self._created,
            TrialStarted: self._started,
            TrialReported: self._reported,
            TrialSaved: self._saved,
            TrialsJudged: self._judged,
            TrialFinished: self._finished,
            TrialFailed: self._failed,
            CheckpointDeleted: self._deleted,
            TrialReopened: self._reopened,
            ExperimentStopped: self._stopped,
        }

    def handle(self, event: Event) -> list[Effect]:
        """The only door."""
        return self._handlers[type(event)](event)

    def create(self) -> TrialCreated | None:
        """The searcher's next configuration as an event, not handled yet; None when there is none (now)."""
        if self.exhausted or self.stopped:
            return None
        index = len(self.trials)
        trial_id = f"{self.identity}_{index:05d}"
        config = self.searcher.suggest(trial_id, index)
        if config == FINISHED:
            self.exhausted = True
            return None
        if not isinstance(config, dict):
            return None
        self._asked = True
        return TrialCreated(trial_id, index, config)

    def judge(self, no_more: bool) -> TrialsJudged | None:
        """The scheduler's next verdict on paused trials as an event, not handled yet. `no_more`: no trial can be created now."""
        for verdict in self.scheduler.judge(no_more or self.exhausted):
            # One that failed since then is on its way to where it was.
            if all(self.trials[trial_id].status == PAUSED for trial_id in (*verdict.go_on, *verdict.end)):
                return TrialsJudged(verdict.go_on, verdict.end)
        return None

    def waiting(self, status: str, leaving: Collection[str] = ()) -> Trial | None:
        """The next trial of those that wait for a place: the first pending one, the paused one that has had the least.

        `leaving`: trials whose last process has not let go of them yet.
        """
        found = [
            trial for trial in self._unfinished.values() if trial.status == status and trial.trial_id not in leaving
        ]
        if status == PAUSED:
            found = [trial for trial in found if self.scheduler.may_resume(trial)]
            found.sort(key=lambda trial: (trial.last_result.get("time_total_s", 0.0), trial.index))
        return found[0] if found else None

    def interrupt(self) -> None:
        """After a replay: what ran in a process that is gone waits for another start, from its last checkpoint."""
        for trial in self._unfinished.values():
            if trial.status == RUNNING:
                self._rewind(trial)

    def unfinished(self) -> list[Trial]:
        """Trials that are neither terminated nor errored."""
        return list(self._unfinished.values())

    def missing_metric(self, result: dict[str, Any]) -> str | None:
        """What to say of a result that lacks what the search needs; None if it has all."""
        wanted = {self.rules.metric, self.scheduler.metric if self.scheduler.needs_metric else None}
        wanted |= {getattr(self.scheduler, "time_attr", None), self.searcher.metric}
        for name in sorted(name for name in wanted if name is not None):
            if name not in result:
                has = ", ".join(sorted(result)) or "nothing"
                return f"the trial reported no {name!r}, which the search needs; it reported {has}"
            if not isinstance(result[name], (int, float)):
                return f"the trial reported {name}={result[name]!r}, which is not a number"
        return None

    def _created(self, event: TrialCreated) -> list[Effect]:
        trial = Trial(event.trial_id, event.index, event.config)
        self.trials[event.trial_id] = self._unfinished[event.trial_id] = trial
        if not self._asked:
            self.searcher.register(event.trial_id, event.index, event.config)
        self._asked = False
        self.scheduler.on_add(trial)
        return []

    def _started(self, event: TrialStarted) -> list[Effect]:
        trial = self.trials[event.trial_id]
        if trial.status == RUNNING:  # its driver died; what `interrupt` did then is no event
            self._rewind(trial)
        trial.status = RUNNING
        trial.starts += 1
        self._undo(trial)
        return []

    def _reported(self, event: TrialReported) -> list[Effect]:
        trial = self.trials[event.trial_id]
        trial.history.append(event.result)
        if event.checkpoint is not None:
            self._keep(trial, event.checkpoint, event.result)
        others_wait = any(other.status in (PENDING, PAUSED) for other in self._unfinished.values())
        decision = self.scheduler.on_result(
            trial, event.result, self.trials.values(), others_wait or not self.exhausted
        )
        if event.decision is not None:  # a replay
            decision = _decision_from(event.decision)
            replay = self.rules.replay_stop or self.rules.stop
            if replay is not None:
                # Stop rules count; what this one says now no longer matters.
                with contextlib.suppress(Exception):
                    replay(event.trial_id, event.result)
        elif event.finished or event.result.get("done") is True:  # a function may say it, too
            decision = Stop()
            if self.rules.stop is not None:
                with contextlib.suppress(Exception):  # the same: it has ended
                    self.rules.stop(event.trial_id, event.result)
        elif self.rules.stop is not None and self.rules.stop(event.trial_id, event.result):
            decision = Stop()
        event.decision = _decision_record(decision)
        if isinstance(decision, Stop):
            event.result["done"] = True
            self._end(trial, TERMINATED)
            return [] if event.finished else [Release(trial.trial_id)]
        if isinstance(decision, Pause):
            trial.status = PAUSED
            trial.restore_from = self._last_saved(trial)
            return [Release(trial.trial_id, save=True)]
        if isinstance(decision, Exploit):
            trial.config = decision.config
            trial.restore_from = CheckpointRecord(decision.checkpoint, self._result_at(decision))
            trial.taken_over, trial.taken_at = trial.restore_from, len(trial.history)
            trial.status = PAUSED  # it takes its turn: those from which it took go on, too
            return [Release(trial.trial_id)]
        return [Proceed(trial.trial_id)]

    def _result_at(self, decision: Exploit) -> dict[str, Any]:
        """What the donor had reported with the checkpoint."""
        for record in self.trials[decision.donor].checkpoints:
            if record.path == decision.checkpoint:
                return record.result
        return self.trials[decision.donor].last_result

    def _saved(self, event: TrialSaved) -> list[Effect]:
        trial = self.trials[event.trial_id]
        self._keep(trial, event.checkpoint, trial.last_result)
        if trial.status == PAUSED:
            trial.restore_from = trial.checkpoints[-1]
        return []

    def _keep(self, trial: Trial, checkpoint: str, result: dict[str, Any]) -> None:
        """A trial has a further checkpoint of its own."""
        trial.checkpoints.append(CheckpointRecord(checkpoint, result))
        trial.checkpoints_made += 1
        trial.taken_over = None

    def _last_saved(self, trial: Trial) -> CheckpointRecord | None:
        """Where a trial goes on that ends now; None: at the beginning."""
        return trial.taken_over or (trial.checkpoints[-1] if trial.checkpoints else None)

    def _judged(self, event: TrialsJudged) -> list[Effect]:
        self.scheduler.on_judged(Verdict(event.go_on, event.end))
        for trial_id in event.end:
            self.trials[trial_id].last_result["done"] = True
            self._end(self.trials[trial_id], TERMINATED)
        return []

    def _finished(self, event: TrialFinished) -> list[Effect]:
        trial = self.trials[event.trial_id]
        if trial.history:
            trial.history[-1]["done"] = True
        self._end(trial, TERMINATED)
        return []

    def _failed(self, event: TrialFailed) -> list[Effect]:
        trial = self.trials[event.trial_id]
        trial.error_text = event.text
        if event.lost_checkpoint and trial.restore_from is not None:
            # Not the trial's fault, and it comes to an end: with each there is one checkpoint less.
            lost = trial.restore_from.path
            trial.checkpoints = [one for one in trial.checkpoints if one.path != lost]
            if trial.taken_over is trial.restore_from:
                trial.taken_over = None
            self._rewind(trial)
            return []
        trial.failures += 1
        may_retry = self.rules.max_failures < 0 or trial.failures <= self.rules.max_failures
        if may_retry and not event.fatal and not self.rules.fail_fast:
            self._rewind(trial)
            return []
        self._end(trial, ERROR)
        return [StopAll(f"trial {trial.trial_id} failed and fail_fast is set")] if self.rules.fail_fast else []

    def _rewind(self, trial: Trial) -> None:
        """Back to the last checkpoint, or the beginning."""
        trial.status = PENDING
        trial.restore_from = self._last_saved(trial)
        self._undo(trial)

    def _undo(self, trial: Trial) -> None:
        """Forget what was reported after the checkpoint to start from: it will be reported again."""
        if trial.restore_from is None:
            trial.history = []
        elif trial.restore_from is trial.taken_over:
            del trial.history[trial.taken_at :]
        else:
            # By identity: results may hold arrays, which do not compare to a truth value.
            for index, row in enumerate(trial.history):
                if row is trial.restore_from.result:
                    del trial.history[index + 1 :]
                    break

    def _end(self, trial: Trial, status: str) -> None:
        trial.status = status
        del self._unfinished[trial.trial_id]
        if status == TERMINATED:
            trial.error_text = trial.error = None
        self.scheduler.on_end(trial)
        self.searcher.complete(trial.trial_id, trial.last_result or None, error=status == ERROR)

    def _deleted(self, event: CheckpointDeleted) -> list[Effect]:
        trial = self.trials[event.trial_id]
        trial.checkpoints = [one for one in trial.checkpoints if one.path != event.path]
        return []

    def _reopened(self, event: TrialReopened) -> list[Effect]:
        trial = self.trials[event.trial_id]
        assert trial.status not in UNFINISHED, trial
        if event.from_scratch:
            trial.checkpoints = []
            trial.taken_over = None
        trial.failures = 0
        self._unfinished[trial.trial_id] = trial
        self._rewind(trial)
        return []

    def _stopped(self, event: ExperimentStopped) -> list[Effect]:
        self.stopped = event.reason
        for trial in self.unfinished():
            # A trial that never ran has no result to show: it stays pending.
            if trial.status != PENDING or trial.history:
                self._end(trial, TERMINATED)
        return [StopAll(event.reason)]


def _decision_record(decision: Decision) -> list[Any]:
    """A decision as the journal writes it."""
    if isinstance(decision, Exploit):
        return ["Exploit", decision.config, decision.checkpoint, decision.donor]
    return [type(decision).__name__]


def _decision_from(record: list[Any]) -> Decision:
    """The same read back."""
    kinds: dict[str, Any] = {"Continue": Continue, "Stop": Stop, "Pause": Pause, "Exploit": Exploit}
    decision: Decision = kinds[record[0]](*record[1:])
    return decision

"""Schedulers, searchers and the experiment's machine, without a process: they are pure."""

from __future__ import annotations

import math
import random

import pytest

from shoal import tune
from shoal.tune import experiment as events
from shoal.tune import journal
from shoal.tune.experiment import Experiment, Proceed, Release, Rules
from shoal.tune.schedulers import Continue, Exploit, Pause, Stop
from shoal.tune.trial import ERROR, PAUSED, PENDING, TERMINATED, CheckpointRecord, Trial


def properties(scheduler, mode="max"):
    scheduler.set_search_properties("score", mode)
    return scheduler


def trial(index: int, **config) -> Trial:
    return Trial(f"t{index}", index, config)


def tell(scheduler, one: Trial, time: int, score: float, trials=(), others_wait=False):
    result = {"training_iteration": time, "time_total_s": float(time), "score": score}
    one.history.append(result)
    return scheduler.on_result(one, result, trials or [one], others_wait)


def test_asha_keeps_the_best_of_each_rung() -> None:
    scheduler = properties(tune.ASHAScheduler(max_t=9, reduction_factor=3))
    kept = [i for i in range(9) if isinstance(tell(scheduler, trial(i), 1, score=i), Continue)]
    assert kept == list(range(9))  # each was the best so far
    scheduler = properties(tune.ASHAScheduler(max_t=9, reduction_factor=3))
    kept = [i for i in range(9) if isinstance(tell(scheduler, trial(i), 1, score=-i), Continue)]
    assert kept == [0]
    scheduler = properties(tune.ASHAScheduler(max_t=9, reduction_factor=3), mode="min")
    kept = [i for i in range(9) if isinstance(tell(scheduler, trial(i), 1, score=i), Continue)]
    assert kept == [0]
    assert isinstance(tell(scheduler, trial(0), 9, score=0), Stop)


def test_asha_of_random_scores_halves_as_it_should() -> None:
    dice = random.Random(1)
    scheduler = properties(tune.ASHAScheduler(max_t=64, reduction_factor=4))
    steps = 0
    for index in range(400):
        one, quality = trial(index), dice.random()
        for time in range(1, 65):
            steps += 1
            if isinstance(tell(scheduler, one, time, quality), Stop):
                break
    assert steps < 400 * 64 / 8


def test_asha_takes_nan_as_the_worst() -> None:
    scheduler = properties(tune.ASHAScheduler(max_t=9, reduction_factor=3))
    assert isinstance(tell(scheduler, trial(0), 1, math.nan), Stop)
    assert isinstance(tell(scheduler, trial(1), 1, -5), Continue)


def test_median_rule_stops_what_is_below_the_median() -> None:
    scheduler = properties(
        tune.MedianStoppingRule(time_attr="training_iteration", grace_period=2, min_samples_required=3)
    )
    for index in range(3):
        for time in (1, 2, 3):
            assert isinstance(tell(scheduler, trial(index), time, 10 + index), Continue)
    bad, good = trial(3), trial(4)
    assert isinstance(tell(scheduler, bad, 1, 0), Continue)  # in the grace period
    assert isinstance(tell(scheduler, bad, 2, 0), Stop)
    assert isinstance(tell(scheduler, good, 2, 20), Continue)


def test_pbt_lets_the_worst_take_over_from_the_best() -> None:
    scheduler = properties(
        tune.PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=2,
            hyperparam_mutations={"lr": tune.uniform(0, 1), "kind": ["a", "b", "c"]},
        )
    )
    trials = [trial(i, lr=0.1 * (i + 1), kind="b") for i in range(4)]
    for one in reversed(trials):
        one.checkpoints.append(CheckpointRecord(f"c{one.index}", {"training_iteration": 2}))
        assert isinstance(tell(scheduler, one, 1, one.index, trials), Continue)
        decision = tell(scheduler, one, 2, one.index, trials)
    assert isinstance(decision, Exploit)
    assert (decision.donor, decision.checkpoint) == ("t3", "c3")
    assert decision.config["kind"] in "abc" and trials[3].config == {"lr": 0.4, "kind": "b"}
    waits = tell(scheduler, trials[3], 4, 9, trials, others_wait=True)
    assert isinstance(waits, Pause)


def make(samples=2, scheduler=None, **rules) -> Experiment:
    searcher = tune.BasicVariantGenerator(random_state=7)
    searcher.set_search_properties("score", "max", {"x": tune.uniform(0, 1)}, samples)
    return Experiment(searcher, scheduler or tune.FIFOScheduler(), Rules("score", "max", **rules), "e")


def begin(machine: Experiment) -> Trial:
    event = machine.create()
    assert event is not None
    machine.handle(event)
    machine.handle(events.TrialStarted(event.trial_id))
    return machine.trials[event.trial_id]


def reported(one: Trial, iteration: int, checkpoint=None, finished=False, score=1.0) -> events.TrialReported:
    return events.TrialReported(one.trial_id, {"training_iteration": iteration, "score": score}, checkpoint, finished)


def test_a_trial_runs_and_ends() -> None:
    machine = make()
    one = begin(machine)
    assert machine.handle(reported(one, 1)) == [Proceed(one.trial_id)]
    assert machine.handle(reported(one, 2, finished=True)) == []
    assert one.status == TERMINATED and one.last_result["done"]
    begin(machine)
    assert machine.create() is None and machine.exhausted


def test_a_failed_trial_goes_on_from_its_checkpoint_and_fails_for_good() -> None:
    machine = make(max_failures=1)
    one = begin(machine)
    machine.handle(reported(one, 1, "c1"))
    machine.handle(reported(one, 2))
    machine.handle(events.TrialFailed(one.trial_id, "oops"))
    assert one.status == PENDING and one.restore_from is not None and one.restore_from.path == "c1"
    assert [row["training_iteration"] for row in one.history] == [1]
    machine.handle(events.TrialStarted(one.trial_id))
    machine.handle(events.TrialFailed(one.trial_id, "again"))
    assert one.status == ERROR and one.error_text == "again" and machine.unfinished() == []


def test_an_unreadable_checkpoint_gives_way_to_the_one_before() -> None:
    machine = make(max_failures=2)
    one = begin(machine)
    machine.handle(reported(one, 1, "c1"))
    machine.handle(reported(one, 2, "c2"))
    machine.handle(events.TrialFailed(one.trial_id, "oops"))
    machine.handle(events.TrialStarted(one.trial_id))
    machine.handle(events.TrialFailed(one.trial_id, "torn", lost_checkpoint=True))
    assert one.restore_from is not None and one.restore_from.path == "c1"


def test_stop_rule_and_pause() -> None:
    machine = make(stop=lambda trial_id, result: result["score"] > 5)
    one = begin(machine)
    assert machine.handle(reported(one, 1, score=6)) == [Release(one.trial_id)]
    assert one.status == TERMINATED

    class Pauses(tune.FIFOScheduler):
        def on_result(self, trial, result, trials, others_wait):
            return Pause()

    machine = make(scheduler=Pauses())
    one = begin(machine)
    assert machine.handle(reported(one, 1, "c1")) == [Release(one.trial_id)]
    assert one.status == PAUSED and machine.waiting(PAUSED) is one


def test_replaying_the_journal_gives_the_same_experiment() -> None:
    dice = random.Random(3)
    machine = make(30, properties(tune.ASHAScheduler(max_t=9, reduction_factor=3)), max_failures=1)
    lines = []
    running: list[Trial] = []

    def happen(event) -> None:
        machine.handle(event)
        lines.append(journal.encode(event))

    for _ in range(400):
        event = machine.create() if len(running) < 3 else None
        if event is not None:
            happen(event)
            happen(events.TrialStarted(event.trial_id))
            running.append(machine.trials[event.trial_id])
        if not running:
            break
        one = dice.choice(running)
        if one.status == PENDING:
            happen(events.TrialStarted(one.trial_id))
        elif dice.random() < 0.1:
            happen(events.TrialFailed(one.trial_id, "oops"))
        else:
            step = one.last_result.get("training_iteration", 0) + 1
            happen(reported(one, step, f"c{step}" if step % 2 else None, score=dice.random()))
        running = [each for each in running if each in machine.unfinished()]
    again = make(30, properties(tune.ASHAScheduler(max_t=9, reduction_factor=3)), max_failures=1)
    for line in lines:
        again.handle(journal.decode(line))
    assert len(machine.trials) == 30
    assert again.trials == machine.trials
    assert again.scheduler._brackets == machine.scheduler._brackets  # type: ignore[attr-defined]


def test_optuna_is_rebuilt_from_trials() -> None:
    space = {"x": tune.uniform(-5, 5), "kind": tune.choice([(1,), (2,)]), "n": {"k": tune.randint(1, 5)}}

    def search():
        one = tune.OptunaSearch(seed=1, points_to_evaluate=[{"x": 1.0}])
        one.set_search_properties("score", "max", space, 20)
        return one

    first, told = search(), []
    for index in range(12):
        config = first.suggest(f"t{index}", index)
        assert isinstance(config, dict) and config["kind"] in [(1,), (2,)] and 1 <= config["n"]["k"] < 5
        first.complete(f"t{index}", {"score": -((config["x"] - 2) ** 2)})
        told.append(config)
    assert told[0]["x"] == 1.0
    second = search()
    for index, config in enumerate(told):
        second.register(f"t{index}", index, config)
        second.complete(f"t{index}", {"score": -((config["x"] - 2) ** 2)})
    assert len(second._study.trials) >= 12 and second._study.best_value == first._study.best_value
    assert isinstance(second.suggest("t12", 12), dict)
    assert second.suggest("t20", 20) == "finished"


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random"])
def test_samplers_find_a_minimum(sampler: str) -> None:
    search = tune.OptunaSearch(sampler=sampler, seed=0)
    search.set_search_properties("loss", "min", {"x": tune.uniform(-5, 5), "y": tune.uniform(-5, 5)}, 60)
    losses = []
    for index in range(60):
        config = search.suggest(f"t{index}", index)
        assert isinstance(config, dict)
        losses.append(config["x"] ** 2 + config["y"] ** 2)
        search.complete(f"t{index}", {"loss": losses[-1]})
    assert min(losses) < 1.5


def test_optuna_tells_what_it_cannot_search() -> None:
    with pytest.raises(ValueError, match="x: OptunaSearch cannot"):
        tune.OptunaSearch().set_search_properties("a", "min", {"x": tune.grid_search([1])}, 1)
    with pytest.raises(ValueError, match="needs to know what to optimize"):
        tune.OptunaSearch().set_search_properties(None, None, {"x": tune.uniform(0, 1)}, 1)
    with pytest.raises(ValueError, match="unknown sampler"):
        tune.OptunaSearch(sampler="tpee")


def test_limiter_and_points() -> None:
    limited = tune.ConcurrencyLimiter(tune.BasicVariantGenerator(points_to_evaluate=[{"x": 9}]), 1)
    limited.set_search_properties("a", "min", {"x": tune.uniform(0, 1)}, 3)
    assert limited.suggest("t0", 0) == {"x": 9}
    assert limited.suggest("t1", 1) is None
    limited.complete("t0", {"a": 1})
    assert isinstance(limited.suggest("t1", 1), dict)

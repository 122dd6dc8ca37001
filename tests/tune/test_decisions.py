"""Schedulers, searchers and the experiment's machine, without a process: they are pure."""

from __future__ import annotations

import collections
import copy
import math
import random

import numpy
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
    machine = make(max_failures=1)
    one = begin(machine)
    machine.handle(reported(one, 1, "c1"))
    machine.handle(reported(one, 2, "c2"))
    machine.handle(events.TrialFailed(one.trial_id, "oops"))
    machine.handle(events.TrialStarted(one.trial_id))
    machine.handle(events.TrialFailed(one.trial_id, "torn", lost_checkpoint=True))
    assert one.restore_from is not None and one.restore_from.path == "c1"
    machine.handle(events.TrialStarted(one.trial_id))
    machine.handle(events.TrialFailed(one.trial_id, "torn too", lost_checkpoint=True))
    assert one.status == PENDING and one.restore_from is None and one.history == []
    machine.handle(events.TrialStarted(one.trial_id))
    machine.handle(events.TrialFailed(one.trial_id, "now it is the trial's", lost_checkpoint=True))
    assert one.status == ERROR


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
    assert machine.handle(reported(one, 1, "c1")) == [Release(one.trial_id, save=True)]
    assert one.status == PAUSED and machine.waiting(PAUSED) is one


class TakesOver(tune.FIFOScheduler):
    """Whoever scores below zero takes over c2 of the first trial."""

    def on_result(self, trial, result, trials, others_wait):
        if result["score"] >= 0:
            return Continue()
        return Pause() if result["score"] < -1 else Exploit({"x": "new"}, "good/c2", next(iter(trials)).trial_id)


def took_over() -> tuple[Experiment, Trial]:
    machine = make(scheduler=TakesOver(), max_failures=5)
    good, bad = begin(machine), begin(machine)
    machine.handle(reported(good, 2, "good/c2"))
    machine.handle(reported(bad, 1, "bad/c1"))
    machine.handle(reported(bad, 2, score=-1))
    assert bad.status == PAUSED and bad.restore_from == CheckpointRecord("good/c2", good.last_result)
    machine.handle(events.TrialStarted(bad.trial_id))
    machine.handle(reported(bad, 3))
    return machine, bad


def stands(one: Trial) -> tuple[str | None, list[int]]:
    return one.restore_from and one.restore_from.path, [row["training_iteration"] for row in one.history]


def test_what_was_taken_over_is_not_lost_before_the_next_checkpoint() -> None:
    machine, bad = took_over()
    for _ in range(2):
        machine.handle(events.TrialFailed(bad.trial_id, "oops"))
        assert stands(bad) == ("good/c2", [1, 2]) and bad.config == {"x": "new"}
        machine.handle(events.TrialStarted(bad.trial_id))
        machine.handle(reported(bad, 3))
    machine.interrupt()  # its driver died
    assert stands(bad) == ("good/c2", [1, 2])
    machine.handle(events.TrialStarted(bad.trial_id))
    machine.handle(reported(bad, 3, score=-2))
    assert bad.status == PAUSED and stands(bad) == ("good/c2", [1, 2, 3])
    machine.handle(events.TrialStarted(bad.trial_id))
    machine.handle(reported(bad, 3, "bad/c3"))
    machine.handle(reported(bad, 4))
    machine.handle(events.TrialFailed(bad.trial_id, "oops"))
    assert stands(bad) == ("bad/c3", [1, 2, 3])


def test_what_was_taken_over_and_cannot_be_read_gives_way() -> None:
    machine, bad = took_over()
    machine.handle(events.TrialFailed(bad.trial_id, "oops"))
    machine.handle(events.TrialStarted(bad.trial_id))
    machine.handle(events.TrialFailed(bad.trial_id, "torn", lost_checkpoint=True))
    assert stands(bad) == ("bad/c1", [1])
    machine, bad = took_over()
    machine.handle(events.TrialFailed(bad.trial_id, "oops", fatal=True))
    machine.handle(events.TrialReopened(bad.trial_id, from_scratch=True))
    assert stands(bad) == (None, [])


def test_results_may_hold_arrays() -> None:
    machine = make(max_failures=1)
    one = begin(machine)
    for iteration in (1, 2, 3):
        event = reported(one, iteration, f"c{iteration}" if iteration == 2 else None)
        event.result = {"confusion": numpy.full(2, iteration), **event.result}
        machine.handle(event)
    machine.handle(events.TrialFailed(one.trial_id, "oops"))
    machine.handle(events.TrialStarted(one.trial_id))
    assert stands(one) == ("c2", [1, 2])


def test_stop_rules_remember_what_a_replay_tells_them() -> None:
    def fresh() -> Experiment:
        return make(stop=tune.stoppers.TrialPlateauStopper("score", num_results=4))

    machine = fresh()
    one = begin(machine)
    seen = [reported(one, iteration) for iteration in (1, 2, 3)]
    for event in seen:
        assert machine.handle(event) == [Proceed(one.trial_id)]
    again = fresh()
    for event in (events.TrialCreated(one.trial_id, 0, one.config), events.TrialStarted(one.trial_id), *seen):
        again.handle(event)
    assert again.handle(reported(one, 4)) == [Release(one.trial_id)]


def test_stop_rules_hear_of_last_results_too() -> None:
    machine = make(samples=3, stop=tune.TimeoutStopper(0))
    assert machine.rules.stop is not None
    machine.handle(reported(begin(machine), 1, finished=True))
    assert machine.rules.stop.stop_all()
    machine.rules.stop = tune.stoppers.stopper_of({"never": 1})  # what it lacks no longer matters
    one = begin(machine)
    machine.handle(reported(one, 1, finished=True))
    assert one.status == TERMINATED


SCHEDULERS = {
    "asha": lambda: tune.ASHAScheduler(max_t=9, reduction_factor=3),
    "hyperband": lambda: tune.HyperBandScheduler(max_t=9, reduction_factor=3),
    "median": lambda: tune.MedianStoppingRule("training_iteration", grace_period=2),
    "pbt": lambda: tune.PopulationBasedTraining(
        "training_iteration", perturbation_interval=2, hyperparam_mutations={"x": tune.uniform(0, 1)}
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_replaying_the_journal_gives_the_same_experiment(kind: str) -> None:
    dice = random.Random(3)
    machine = make(30, properties(SCHEDULERS[kind]()), max_failures=1)
    lines = []
    running: list[Trial] = []

    def happen(event) -> None:
        machine.handle(event)
        lines.append(journal.encode(event))

    for _ in range(2000):
        event = machine.create() if len(running) < 3 else None
        if event is not None:
            happen(event)
            happen(events.TrialStarted(event.trial_id))
            running.append(machine.trials[event.trial_id])
        while (verdict := machine.judge(not running)) is not None:
            happen(verdict)
        paused = machine.waiting(PAUSED)
        if paused is not None and len(running) < 3:
            running.append(paused)
        if not running:
            break
        one = dice.choice(running)
        if one.status in (PENDING, PAUSED):
            happen(events.TrialStarted(one.trial_id))
        elif dice.random() < 0.1:
            happen(events.TrialFailed(one.trial_id, "oops"))
        else:
            step = one.last_result.get("training_iteration", 0) + 1
            event = reported(one, step, f"c{step}" if step % 2 else None, score=dice.random())
            event.result["time_total_s"] = step
            happen(event)
            if one.status == PAUSED and dice.random() < 0.5:
                happen(events.TrialSaved(one.trial_id, f"s{step}"))
        running = [each for each in running if each in machine.unfinished() and each.status != PAUSED]
    again = make(30, properties(SCHEDULERS[kind]()), max_failures=1)
    for line in lines:
        again.handle(journal.decode(line))
    assert len(machine.trials) == 30
    assert again.trials == machine.trials
    assert vars_of(again.scheduler) == vars_of(machine.scheduler)


def vars_of(scheduler) -> str:
    """All that a scheduler remembers, dice and lambdas aside."""
    return repr({name: _plain(value) for name, value in vars(scheduler).items() if name not in ("_dice", "mutations")})


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    slots = getattr(type(value), "__slots__", None)
    return {name: getattr(value, name) for name in slots} if slots and not isinstance(value, (str, int)) else value


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
    assert isinstance(second.suggest("t12", 12), dict)
    assert len(second._study.trials) == 13 and second._study.best_value == first._study.best_value
    assert second.suggest("t20", 20) == "finished"


def test_a_resumed_optuna_search_goes_on_and_does_not_repeat_itself() -> None:
    tried: list[dict] = []

    def resumed(more: int) -> None:
        one = tune.OptunaSearch(seed=1, sampler="random", points_to_evaluate=[{"x": 0.1}, {"x": 0.2}, {"x": 0.3}])
        one.set_search_properties("score", "max", {"x": tune.uniform(0, 1)}, -1)
        for index, config in enumerate(tried):
            one.register(f"t{index}", index, config)
            if index != len(tried) - 1:  # the last one still runs
                one.complete(f"t{index}", {"score": config["x"]})
        known = len(tried)
        for index in range(known, known + more):
            config = one.suggest(f"t{index}", index)
            assert isinstance(config, dict)
            tried.append(config)
        if known:
            one.complete(f"t{known - 1}", {"score": tried[known - 1]["x"]})
        assert sum(trial.state.is_finished() for trial in one._study.trials) == known

    for more in (2, 4, 2, 3):
        resumed(more)
    assert [config["x"] for config in tried[:3]] == [0.1, 0.2, 0.3]
    assert len({config["x"] for config in tried}) == 11


def test_a_restored_config_equals_the_original() -> None:
    Point = collections.namedtuple("Point", "x y")
    config = {
        "kind": (1, (2.5, [(3,)])),
        "named": Point(1, 2),
        "plain": [None, True, "text", {"deep": ()}],
        "keys": {1: "a", (2, 3): ("b",)},
        "marks": {"__tuple__": 1, "__pickled__": "x"},
    }
    created = journal.decode(journal.encode(events.TrialCreated("t", 0, config)))
    assert isinstance(created, events.TrialCreated)
    assert created.config == config and type(created.config["named"]) is Point
    event = reported(Trial("t", 0, config), 1, "c1")
    event.decision = ["Exploit", config, "c0", "other"]
    assert journal.decode(journal.encode(event)) == event
    search = tune.OptunaSearch(seed=1)
    search.set_search_properties("score", "max", {"kind": tune.choice([(3, 3), (5, 5)])}, 3)
    drawn = search.suggest("t", 0)
    assert isinstance(drawn, dict)
    line = journal.encode(events.TrialCreated("t", 0, drawn))
    again = tune.OptunaSearch(seed=1)
    again.set_search_properties("score", "max", {"kind": tune.choice([(3, 3), (5, 5)])}, 3)
    again.register("t", 0, journal.decode(line).config)  # a list is none of the choices
    assert isinstance(again.suggest("u", 1), dict)


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 60), ("cmaes", 60), ("random", 60), ("gp", 12)])
def test_samplers_find_a_minimum(sampler: str, trials: int) -> None:
    search = tune.OptunaSearch(sampler=sampler, seed=0)
    search.set_search_properties("loss", "min", {"x": tune.uniform(-5, 5), "y": tune.uniform(-5, 5)}, trials)
    losses = []
    for index in range(trials):
        config = search.suggest(f"t{index}", index)
        assert isinstance(config, dict)
        losses.append(config["x"] ** 2 + config["y"] ** 2)
        search.complete(f"t{index}", {"loss": losses[-1]})
    assert min(losses) < 2.0


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


def race(scheduler, samples: int, places: int, seed: int) -> Experiment:
    """Run a machine to its end as the controller would, `places` trials at once, whose results come in any order."""
    dice = random.Random(seed)
    machine = make(samples, properties(scheduler))
    running: list[Trial] = []
    while True:
        while len(running) < places:
            one = machine.waiting(PENDING)
            if one is None:
                while (verdict := machine.judge(False)) is not None:
                    machine.handle(verdict)
                one = machine.waiting(PAUSED)
            if one is None:
                event = machine.create()
                if event is not None:
                    machine.handle(event)
                    one = machine.trials[event.trial_id]
            if one is None and not running:
                while (verdict := machine.judge(True)) is not None:
                    machine.handle(verdict)
                one = machine.waiting(PAUSED)
            if one is None:
                break
            machine.handle(events.TrialStarted(one.trial_id))
            running.append(one)
        if not running:
            return machine
        one = dice.choice(running)
        step = one.last_result.get("training_iteration", 0) + 1
        effects = machine.handle(reported(one, step, f"c{step}", score=one.config["x"]))
        if not isinstance(effects[0], Proceed):
            running.remove(one)


def lengths(machine: Experiment) -> list[int]:
    return sorted((one.last_result["training_iteration"] for one in machine.trials.values()), reverse=True)


@pytest.mark.parametrize("places", [1, 2, 5, 50])
def test_successive_halving_halves_exactly_and_keeps_the_best(places: int) -> None:
    machine = race(tune.SuccessiveHalvingScheduler(max_t=9, reduction_factor=3), 18, places, seed=places)
    assert lengths(machine) == [9] * 2 + [3] * 4 + [1] * 12
    assert not machine.unfinished() and all(one.last_result["done"] for one in machine.trials.values())
    best = sorted(machine.trials.values(), key=lambda one: -one.config["x"])[:2]
    assert [one.last_result["training_iteration"] for one in best] == [9, 9]


@pytest.mark.parametrize("places", [1, 3, 40])
def test_hyperband_has_the_brackets_of_its_paper(places: int) -> None:
    # R = 9, eta = 3: 9 trials from 1, 5 from 3, 3 from 9; then the first bracket again, which stays with the one trial left.
    machine = race(tune.HyperBandScheduler(max_t=9, reduction_factor=3), 9 + 5 + 3 + 1, places, seed=places)
    assert lengths(machine) == sorted([9] + [3] * 2 + [1] * 6 + [9] + [3] * 4 + [9] * 3 + [9], reverse=True)
    shapes = [tune.HyperBandScheduler(max_t=81, reduction_factor=3)]
    for _ in range(5):  # the table of the paper: n and r for R = 81, eta = 3
        shapes[0]._brackets.append(shapes[0]._next_bracket())
    table = [(one.size, one.milestones[0] if one.milestones else 81) for one in shapes[0]._brackets]
    assert table == [(81, 1), (34, 3), (15, 9), (8, 27), (5, 81)]


def test_a_rung_waits_for_failed_trials_and_passes_over_lost_ones() -> None:
    machine = make(3, properties(tune.SuccessiveHalvingScheduler(max_t=4, reduction_factor=3)), max_failures=1)
    first, second, third = begin(machine), begin(machine), begin(machine)
    assert machine.create() is None and machine.exhausted
    assert machine.handle(reported(first, 1, "c1", score=1)) == [Release(first.trial_id, save=True)]
    machine.handle(reported(second, 1, score=2))  # without a checkpoint: it will begin again
    assert machine.judge(False) is None and machine.waiting(PAUSED) is None
    machine.handle(events.TrialFailed(first.trial_id, "could not be saved"))  # while it paused
    machine.handle(events.TrialFailed(third.trial_id, "oops", fatal=True))
    assert first.status == PENDING and machine.judge(False) is None
    machine.handle(events.TrialStarted(first.trial_id))
    machine.handle(reported(first, 2, "c2", score=1))
    verdict = machine.judge(False)
    assert verdict == events.TrialsJudged([second.trial_id], [first.trial_id])
    machine.handle(verdict)
    assert first.status == TERMINATED and machine.waiting(PAUSED) is second
    assert second.last_result["training_iteration"] == 1
    machine.handle(events.TrialSaved(second.trial_id, "late"))
    assert second.restore_from is not None and second.restore_from.path == "late"
    machine.handle(events.TrialStarted(second.trial_id))
    assert machine.handle(reported(second, 2)) == [Proceed(second.trial_id)]
    assert machine.handle(reported(second, 4)) == [Release(second.trial_id)]


def test_hyperband_does_not_wait_for_trials_that_cannot_come() -> None:
    """A searcher that gives two configurations and wants results first: the open bracket of nine is closed with two."""
    searcher = tune.ConcurrencyLimiter(tune.BasicVariantGenerator(random_state=1), 2)
    searcher.set_search_properties("score", "max", {"x": tune.uniform(0, 1)}, 9)
    scheduler = properties(tune.HyperBandScheduler(max_t=9, reduction_factor=3))
    machine = Experiment(searcher, scheduler, Rules("score", "max"), "e")
    for score in (1.0, math.nan):
        machine.handle(reported(begin(machine), 1, "c", score=score))
    assert machine.create() is None and not machine.exhausted
    assert machine.judge(False) is None
    verdict = machine.judge(True)
    assert verdict == events.TrialsJudged(["e_00000"], ["e_00001"])
    machine.handle(verdict)
    assert machine.create() is not None  # of the next bracket


def test_a_replay_over_a_drivers_death_gives_the_same_history() -> None:
    """What `interrupt` does after a replay is no event: the next replay must come to the same."""
    lived, written = make(), []

    def handle(event) -> None:
        written.append(event)
        lived.handle(event)

    handle(lived.create())
    one = next(iter(lived.trials.values()))
    handle(events.TrialStarted(one.trial_id))
    for number in (1, 2, 3):
        handle(reported(one, number, f"c{number}" if number < 3 else None))
    lived.interrupt()  # its driver was killed
    handle(events.TrialStarted(one.trial_id))
    for number in (3, 4):
        handle(reported(one, number))
    again = make()
    for event in written:
        again.handle(copy.deepcopy(event))
    rows = [row["training_iteration"] for row in again.trials[one.trial_id].history]
    assert rows == [row["training_iteration"] for row in one.history] == [1, 2, 3, 4]


def test_population_based_training_ends_where_scores_fall_with_time() -> None:
    """Young trials that wait look best then: who took over from them was the worst again after its next steps, for ever."""
    scheduler = tune.PopulationBasedTraining(
        "training_iteration", "score", "max", perturbation_interval=2, hyperparam_mutations={"x": [1, 2, 3]}
    )
    machine = make(6, scheduler)
    turns = 0
    while (event := machine.create()) is not None:
        machine.handle(event)
    while (one := machine.waiting(PENDING) or machine.waiting(PAUSED)) is not None:
        turns += 1
        assert turns < 200
        machine.handle(events.TrialStarted(one.trial_id))
        at = one.restore_from.result["training_iteration"] if one.restore_from else 0
        while one.status == "RUNNING":
            at += 1
            report = reported(one, at, f"{one.trial_id}/c{at}-{turns}", score=-at)
            report.result["time_total_s"] = at
            report.finished = at == 20
            machine.handle(report)
    assert all(one.last_result["training_iteration"] == 20 for one in machine.trials.values())

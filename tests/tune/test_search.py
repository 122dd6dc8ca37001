"""Whole searches on real processes."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tests.tune import kill_driver

from shoal import tune
from shoal.tune.storage import Storage
from shoal.tune.trial import Trial

pytestmark = pytest.mark.usefixtures("shoal_shared")
ROOT = Path(__file__).resolve().parents[2]


def search(trainable, space, folder, *, run=None, **config):
    run_config = tune.RunConfig(storage_path=str(folder), name="search", **(run or {}))
    tune_config = tune.TuneConfig(**{"metric": "loss", "mode": "min", **config})
    return tune.Tuner(trainable, param_space=space, tune_config=tune_config, run_config=run_config)


def parabola(config):
    for step in range(1, 4):
        tune.report({"loss": (config["x"] - 3) ** 2 + 1 / step})


def test_grid_results_files_and_frame(tmp_path) -> None:
    grid = search(parabola, {"x": tune.grid_search([0, 3, 5])}, tmp_path, num_samples=2).fit()
    assert len(grid) == 6 and grid.num_terminated == 6 and grid.num_errors == 0
    best = grid.get_best_result()
    assert best.config == {"x": 3} and best.metrics["training_iteration"] == 3 and best.metrics["done"]
    frame = grid.get_dataframe()
    assert sorted(frame["config/x"]) == [0, 0, 3, 3, 5, 5] and len(best.metrics_dataframe) == 3
    assert json.loads(Path(best.path, "params.json").read_text()) == {"x": 3}
    assert len(Path(best.path, "result.json").read_text().splitlines()) == 3
    assert len(Path(best.path, "progress.csv").read_text().splitlines()) == 4
    assert len(set(frame["pid"])) <= 4  # processes are used again
    state = json.loads((tmp_path / "search" / "experiment_state.json").read_text())
    assert {one["status"] for one in state["trials"]} == {"TERMINATED"}


class Odd(Exception):
    """Cannot be pickled with its argument."""


def not_here():
    raise OSError("not here")


class Unreadable:
    """Can be pickled, but not read back."""

    def __reduce__(self):
        return not_here, ()


def test_failures_are_told_and_harm_nobody(tmp_path) -> None:
    def objective(config):
        if config["x"] == 1:
            raise KeyError("no such column")
        if config["x"] == 2:
            os._exit(3)
        if config["x"] == 3:
            return {"other": 1}
        if config["x"] == 4:
            return {"loss": math.nan}
        if config["x"] == 5:
            sys.exit(1)
        if config["x"] == 6:
            return {"loss": 0.0, "lock": threading.Lock()}
        if config["x"] == 7:
            raise Odd(threading.Lock())
        if config["x"] == 8:
            return {"loss": 0.0, "odd": Unreadable()}
        return {"loss": 1.0}

    grid = search(objective, {"x": tune.grid_search(list(range(9)))}, tmp_path).fit()
    assert grid.num_errors == 7 and grid.num_terminated == 2
    assert "lock" in str(grid[6].error) and "Odd" in str(grid[7].error)
    assert "the result of the trial cannot be read: not here" in Path(grid[8].path, "error.txt").read_text()
    assert isinstance(grid[1].error, KeyError)
    assert "process of the trial died" in Path(grid[2].path, "error.txt").read_text()
    assert "reported no 'loss'" in str(grid[3].error)
    assert "sys.exit" in str(grid[5].error)
    assert grid.get_best_result().config == {"x": 0}


def test_retries_go_on_from_the_checkpoint_even_past_a_torn_one(tmp_path, capsys) -> None:
    def objective(config):
        begin, saved = 0, tune.get_checkpoint()
        if saved is not None:
            with saved.as_directory() as folder:
                begin = int(Path(folder, "step").read_text())
        marks = Path(config["marks"])
        work = marks / "work"
        work.mkdir(exist_ok=True)
        for step in range(begin, 5):
            (work / "step").write_text(str(step + 1))
            tune.report({"loss": step, "begin": begin}, checkpoint=tune.Checkpoint.from_directory(work))
            if step == 2 and not (marks / "once").exists():
                (marks / "once").touch()
                newest = sorted(Path(tune.get_context().get_trial_dir()).glob("checkpoint_*"))[-1]
                (newest / "step").write_text("")
                os.kill(os.getpid(), signal.SIGKILL)

    marks = tmp_path / "marks"
    marks.mkdir()
    run = {
        "failure_config": tune.FailureConfig(max_failures=1),
        "checkpoint_config": tune.CheckpointConfig(num_to_keep=2),
    }
    grid = search(objective, {"marks": str(marks)}, tmp_path, run=run).fit()
    assert grid.errors == []
    assert grid[0].metrics["loss"] == 4 and grid[0].metrics["begin"] == 2
    told = capsys.readouterr().err
    assert "the file step has 0 of 1 bytes" in told and f"trial {grid[0].trial_id} goes on from trial_" in told
    assert grid[0].metrics["training_iteration"] == 5
    assert len(grid[0].best_checkpoints) == 2
    assert len(list(Path(grid[0].path).glob("checkpoint_*"))) == 2


def test_a_report_that_fails_is_raised_where_it_was_made_and_costs_no_checkpoint(tmp_path) -> None:
    def objective(config):
        begin, saved = 0, tune.get_checkpoint()
        if saved is not None:
            with saved.as_directory() as folder:
                begin = int(Path(folder, "step").read_text())
        for step in range(begin, 3):
            (Path(config["work"]) / "step").write_text(str(step + 1))
            tune.report({"loss": step}, checkpoint=tune.Checkpoint.from_directory(config["work"]))
        if begin == 0:
            with tune.Checkpoint(config["work"] + "/another").as_directory():  # is not the trial's, so it loses nothing
                pass
        with contextlib.suppress(FileNotFoundError):
            tune.report({"loss": 3}, checkpoint=tune.Checkpoint.from_directory("/no/where"))
        names = [thread.name for thread in threading.enumerate()]
        tune.report({"loss": 4, "begin": begin, "threads": names.count("trial")})
        tune.report({"loss": 5}, checkpoint=tune.Checkpoint.from_directory("/no/where"))

    (tmp_path / "work").mkdir()
    grids = {"work": str(tmp_path / "work"), "n": tune.grid_search([0, 1])}
    run = {"failure_config": tune.FailureConfig(max_failures=1)}
    for trial in search(objective, grids, tmp_path, run=run, max_concurrent_trials=1).fit():
        assert isinstance(trial.error, FileNotFoundError) and "in objective" in str(trial.error)
        assert [trial.metrics[name] for name in ("begin", "threads", "training_iteration")] == [3, 1, 4]
        assert len(trial.best_checkpoints) == 3


def test_a_trial_that_hangs_is_killed_and_harms_nobody(tmp_path, monkeypatch) -> None:
    """The clock leaps while a trial says that it hangs, so that no machine is measured; one trial at a time, for it leaps for all."""
    import ctypes
    import types

    from shoal.tune import controller

    hung = tmp_path / "hung"
    hung.touch()

    def objective(config):
        saved = tune.get_checkpoint()
        if config["x"] == 1:
            with open(hung, "a") as file:
                file.write("x")
            ctypes.PyDLL(None).sleep(1000)  # with the GIL held
        if config["x"] == 2 and saved is None:
            (tmp_path / "work").mkdir()
            tune.report({"loss": 2}, checkpoint=tune.Checkpoint.from_directory(tmp_path / "work"))
            with open(hung, "a") as file:
                file.write("x")
            time.sleep(1000)
        return {"loss": config["x"], "again": saved is not None}

    killed, leapt = [], [0]

    def monotonic() -> float:
        leapt[0] += 100 * (hung.stat().st_size > len(killed))
        return time.monotonic() + leapt[0]

    def fail(self, trial, text, error, *args, _fail=controller.Controller._fail, **more):
        killed.append(error)
        _fail(self, trial, text, error, *args, **more)

    monkeypatch.setattr(controller.Controller, "_fail", fail)
    monkeypatch.setattr(controller, "time", types.SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    monkeypatch.setattr(controller, "TURN_S", 0.05)
    run = {"failure_config": tune.FailureConfig(max_failures=1, report_timeout_s=500)}
    grid = search(objective, {"x": tune.grid_search([1, 2, 3])}, tmp_path, run=run, max_concurrent_trials=1).fit()
    assert hung.stat().st_size == 3  # the first hung again when it was tried again
    assert isinstance(grid[0].error, TimeoutError) and "neither reported nor ended for 500 s" in str(grid[0].error)
    assert "report_timeout_s" in Path(grid[0].path, "error.txt").read_text()
    assert grid.num_errors == 1 and [one.metrics["loss"] for one in (grid[1], grid[2])] == [2, 3]
    assert grid[1].metrics["again"] and grid[1].metrics["training_iteration"] == 2


class Counter(tune.Trainable):
    def setup(self, config, offset=0):
        self.value = offset

    def step(self):
        self.value += self.config["by"]
        return {"value": self.value, "loss": -self.value, "done": self.iteration >= 9}

    def save_checkpoint(self, checkpoint_dir):
        return {"value": self.value}

    def load_checkpoint(self, checkpoint):
        self.value = checkpoint["value"]

    def reset_config(self, new_config):
        self.value = 100
        return True


def test_classes_parameters_and_fractions(tmp_path) -> None:
    trainable = tune.with_resources(tune.with_parameters(Counter, offset=100), {"cpu": 0.5})
    run = {"checkpoint_config": tune.CheckpointConfig(checkpoint_frequency=4, checkpoint_at_end=True)}
    grid = search(trainable, {"by": tune.grid_search([1, 2, 3, 4])}, tmp_path, run=run).fit()
    assert [one.metrics["value"] for one in grid] == [110, 120, 130, 140]
    assert [len(one.best_checkpoints) for one in grid] == [3] * 4


def test_stops_and_early_ends(tmp_path) -> None:
    grid = search(Counter, {"by": 1}, tmp_path / "a", run={"stop": {"value": 5}}).fit()
    assert grid[0].metrics["training_iteration"] == 5

    def endless(config):
        while True:
            try:
                time.sleep(0.01)
                tune.report({"loss": 1.0})
            except Exception:  # a stop is none
                pass

    grid = search(endless, {}, tmp_path / "b", run={"stop": tune.MaximumIterationStopper(3)}, num_samples=5).fit()
    assert [one.metrics["training_iteration"] for one in grid] == [3] * 5
    grid = search(endless, {}, tmp_path / "c", num_samples=-1, time_budget_s=0.6).fit()  # or it would never end
    assert grid.num_errors == 0 and len(grid) <= 5


def test_never_more_at_once_than_allowed(tmp_path) -> None:
    def objective(config):
        begin = time.time()
        time.sleep(0.05)
        return {"loss": 0, "begin": begin, "end": time.time()}

    grid = search(objective, {}, tmp_path, num_samples=6, max_concurrent_trials=2).fit()
    spans = [(one.metrics["begin"], one.metrics["end"]) for one in grid]
    assert max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans) <= 2


def test_asha_ends_most_trials_early(tmp_path) -> None:
    def objective(config):
        for step in range(1, 17):
            tune.report({"loss": config["x"] + 1 / step})

    scheduler = tune.ASHAScheduler(max_t=16, reduction_factor=2)
    grid = search(objective, {"x": tune.uniform(0, 1)}, tmp_path, num_samples=24, scheduler=scheduler, seed=1).fit()
    steps = [one.metrics["training_iteration"] for one in grid]
    assert max(steps) == 16 and min(steps) < 16  # how many exactly depends on who comes first
    assert grid.get_best_result().metrics["training_iteration"] == 16


class Runner(tune.Trainable):
    """Runs at its own pace; its distance must survive every pause."""

    def setup(self, config):
        self.distance = 0.0

    def step(self):
        self.distance += self.config["pace"]
        return {"distance": self.distance, "loss": -self.config["pace"]}

    def save_checkpoint(self, checkpoint_dir):
        Path(checkpoint_dir, "distance").write_text(str(self.distance))

    def load_checkpoint(self, checkpoint):
        self.distance = float(Path(checkpoint, "distance").read_text())


def test_hyperband_pauses_trials_and_goes_on_with_the_best(tmp_path) -> None:
    scheduler = tune.HyperBandScheduler(max_t=9, reduction_factor=3)
    space = {"pace": tune.grid_search([3, 1, 9, 2, 8, 4, 6, 5, 7])}
    grid = search(Runner, space, tmp_path, scheduler=scheduler).fit()
    assert grid.num_errors == 0, grid.errors
    steps = {one.config["pace"]: one.metrics["training_iteration"] for one in grid}
    assert steps == {9: 9, 8: 3, 7: 3, **dict.fromkeys(range(1, 7), 1)}
    assert all(one.metrics["distance"] == pace * steps[pace] for one in grid for pace in [one.config["pace"]])


def test_functions_without_checkpoints_begin_again_after_a_pause(tmp_path) -> None:
    scheduler = tune.SuccessiveHalvingScheduler(max_t=4, reduction_factor=2)
    grid = search(parabola, {"x": tune.grid_search([3, 5, 4, 9])}, tmp_path, scheduler=scheduler).fit()
    assert grid.num_errors == 0, grid.errors
    assert [len(one.history) for one in grid] == [3, 1, 2, 1]
    assert [row["training_iteration"] for row in grid[0].history] == [1, 2, 3]


def test_population_based_training_improves_the_worst(tmp_path) -> None:
    class Climber(tune.Trainable):
        def setup(self, config):
            self.height = 0.0

        def step(self):
            self.height += self.config["rate"]
            return {"height": self.height, "loss": -self.height}

        def save_checkpoint(self, checkpoint_dir):
            Path(checkpoint_dir, "height").write_text(str(self.height))

        def load_checkpoint(self, checkpoint):
            self.height = float(Path(checkpoint, "height").read_text())

    scheduler = tune.PopulationBasedTraining(
        time_attr="training_iteration", perturbation_interval=3, hyperparam_mutations={"rate": tune.uniform(0, 1)}
    )
    space = {"rate": tune.grid_search([0.0, 0.1, 0.2, 0.3, 0.9, 1.0])}
    run = {"stop": {"training_iteration": 18}}
    # One at a time they take turns whatever the machine does; else the 0.0 might begin when the others have ended.
    grid = search(Climber, space, tmp_path, run=run, scheduler=scheduler, max_concurrent_trials=1).fit()
    assert grid.num_errors == 0, grid.errors
    assert min(one.metrics["height"] for one in grid) > 18 * 0.1  # the 0.0 took over from a better one
    assert len(grid) == 6 and all(one.metrics["training_iteration"] == 18 for one in grid)


def test_events_on_a_storage_that_cannot_append_are_written_before_they_have_effects(tmp_path) -> None:
    def objective(config):
        for step in range(3):
            parts = sorted(Path(config["folder"]).glob("journal.jsonl.*"))
            tune.report({"loss": step, "known": "".join(part.read_text() for part in parts).count("TrialReported")})

    folder = tmp_path / "search"
    grid = search(objective, {"folder": str(folder)}, f"local://{tmp_path}").fit()
    assert [row["known"] for row in grid[0].history] == [0, 1, 2], grid.errors
    assert len(list(folder.glob("journal.jsonl.*"))) == 1
    assert len(tune.Tuner.restore(f"local://{folder}", objective).get_results()[0].history) == 3
    assert len(sorted((folder / grid[0].path.rpartition("/")[2]).glob("result.json.*"))) == 1


def test_runners_that_find_no_place_get_that_of_idle_ones(tmp_path, monkeypatch) -> None:
    """As after the death of a node: more runners are started than there is room for, and there are no trials for the others any more."""
    import shoal

    there_were = {**shoal.cluster_resources(), "CPU": 6.0}
    monkeypatch.setattr(shoal, "cluster_resources", lambda: there_were)
    grid = search(parabola, {"x": 1}, tmp_path, num_samples=6).fit()
    assert grid.num_terminated == 6


def test_a_search_waits_for_nodes_that_have_left(tmp_path, monkeypatch, capsys) -> None:
    import shoal
    from shoal.tune import controller

    class Leave(tune.Callback):
        looks: int | None = None

        def on_trial_complete(self, *args, **info):
            if self.looks is None:
                self.looks = 0

    here, leave = shoal.cluster_resources(), Leave()

    def resources():
        if leave.looks is None or leave.looks >= 3:
            return here
        leave.looks += 1
        return {}

    monkeypatch.setattr(shoal, "cluster_resources", resources)
    monkeypatch.setattr(controller, "RESOURCES_S", 0.0)
    monkeypatch.setattr(controller, "TURN_S", 0.05)
    grid = search(
        parabola,
        {"x": 1},
        tmp_path,
        run={"callbacks": [leave]},
        num_samples=2,
        max_concurrent_trials=1,
        reuse_actors=False,
    ).fit()
    assert grid.num_terminated == 2 and leave.looks == 3
    assert capsys.readouterr().err.count("the search waits: trial") == 1


def test_a_callback_that_fails_harms_nobody(tmp_path, capsys) -> None:
    class Fails(tune.Callback):
        def on_trial_result(self, *args, **info):
            raise OSError("no space left")

    class Counts(tune.Callback):
        results = 0

        def on_trial_result(self, *args, **info):
            self.results += 1

    counts = Counts()
    grid = search(parabola, {"x": 1}, tmp_path, run={"callbacks": [Fails(), counts]}).fit()
    assert grid.num_errors == 0 and counts.results == 3
    told = capsys.readouterr().err
    assert told.count("the callback Fails failed in on_trial_result") == 1 and "no space left" in told


def test_what_can_never_run_is_told_at_once(tmp_path) -> None:
    grid = search(tune.with_resources(parabola, {"cpu": 64}), {"x": 1}, tmp_path).fit()
    assert "asks for 64 CPU" in str(grid[0].error)
    with pytest.raises(TypeError, match="takes no argument"):
        tune.Tuner(lambda: 1)
    with pytest.raises(RuntimeError, match="outside of a trial"):
        tune.report({"loss": 1})
    with pytest.raises(ValueError, match="holds a search already"):
        search(parabola, {"x": 1}, tmp_path).fit()
    with pytest.raises(KeyError):

        def objective(config):
            raise KeyError("x")

        search(objective, {}, tmp_path / "raise", run={"failure_config": tune.FailureConfig(fail_fast="raise")}).fit()


def test_failed_trials_can_be_resumed(tmp_path) -> None:
    def objective(config):
        if not Path(config["flag"]).exists():
            raise OSError("the disk is away")
        return {"loss": 1.0}

    flag = tmp_path / "flag"
    assert search(objective, {"flag": str(flag)}, tmp_path, num_samples=3).fit().num_errors == 3
    flag.touch()
    folder = str(tmp_path / "search")
    assert tune.Tuner.can_restore(folder) and not tune.Tuner.can_restore(str(tmp_path))
    assert tune.Tuner.restore(folder, objective).get_results().num_errors == 3
    grid = tune.Tuner.restore(folder, objective, resume_errored=True).fit()
    assert len(grid) == 3 and grid.num_terminated == 3


def test_a_killed_driver_loses_nothing(tmp_path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    driver = subprocess.Popen([sys.executable, kill_driver.__file__, str(tmp_path)], env=environment)
    folder = tmp_path / "killed"
    journal = folder / "journal.jsonl"
    try:
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.read_text().count("TrialReported") < 15:
            assert time.monotonic() < deadline and driver.poll() is None
            time.sleep(0.01)
    finally:
        driver.kill()
        driver.wait(60)
    (tmp_path / "go").touch()
    with open(journal, "ab") as file:
        file.write(b'["TrialReported", "torn')  # as if killed within a write
    before = tune.Tuner.restore(str(folder), kill_driver.train).get_results()
    known = {one.trial_id: (one.config, len(one.history), one.status) for one in before}
    assert sum(length for _, length, _ in known.values()) >= 15

    grid = tune.Tuner.restore(str(folder), kill_driver.train).fit()
    assert len(grid) == kill_driver.TRIALS and grid.num_terminated == kill_driver.TRIALS
    for one in grid:
        assert [row["step"] for row in one.history] == list(range(kill_driver.STEPS))
        steps = Path(one.path, "steps").read_text().split()
        config, length, status = known.get(one.trial_id, (one.config, 0, "PENDING"))
        assert one.config == config
        # Only the step whose report the dead driver never took may be done twice.
        assert len(steps) <= kill_driver.STEPS + 1, (steps, length, status)
        if status == "TERMINATED":
            assert len(steps) == kill_driver.STEPS
    unkilled = tune.BasicVariantGenerator(random_state=5)
    space = {"x": tune.uniform(0, 1), "go": tmp_path / "go"}
    unkilled.set_search_properties("x", "max", space, kill_driver.TRIALS)
    assert [one.config for one in grid] == [unkilled.suggest("", index) for index in range(kill_driver.TRIALS)]


def test_two_trials_share_a_gpu(tmp_path, shoal_start) -> None:
    shoal_start(num_cpus=2, num_gpus=1)

    def objective(config):
        begin = time.monotonic()
        Path(config["folder"], f"{tune.get_context().get_trial_id()}").touch()
        while len(list(Path(config["folder"]).iterdir())) < 2 and time.monotonic() < begin + 60:
            time.sleep(0.01)  # for the other one
        return {"loss": 0, "gpu": os.environ["CUDA_VISIBLE_DEVICES"], "waited": time.monotonic() - begin}

    (tmp_path / "here").mkdir()
    trainable = tune.with_resources(objective, {"cpu": 0.25, "gpu": 0.5})
    grid = search(trainable, {"folder": str(tmp_path / "here")}, tmp_path, num_samples=2).fit()
    assert [one.metrics["gpu"] for one in grid] == ["0", "0"], grid.errors
    assert max(one.metrics["waited"] for one in grid) < 60


def test_nested_metrics_have_their_paths(tmp_path) -> None:
    def nested(config):
        for step in range(6):
            tune.report({"eval": {"loss": config["x"] + step, "deep": {"step": np.float32(step)}}})

    run = {"stop": {"eval/deep/step": 2}}
    grid = search(nested, {"x": tune.grid_search([5, 4])}, tmp_path, run=run, metric="eval/loss").fit()
    best = grid.get_best_result()
    assert best.config == {"x": 4} and len(best.metrics_dataframe) == 3
    assert best.metrics["eval"] == {"loss": 6, "deep": {"step": 2.0}} and best.metrics["eval/loss"] == 6


def test_a_function_says_that_it_is_done(tmp_path) -> None:
    def ends_at_its_second(config):
        for step in range(5):
            tune.report({"loss": step, "done": step == 1})

    grid = search(ends_at_its_second, {"x": tune.grid_search([1, 2])}, tmp_path).fit()
    assert [len(one.metrics_dataframe) for one in grid] == [2, 2] and grid.num_terminated == 2


def test_a_score_that_is_no_number_is_the_worst(tmp_path) -> None:
    def scored(config):
        for score in (1.0, 9.0, math.nan, 2.0, 3.0, 4.0):
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "score").write_text(str(score))
                tune.report({"loss": score}, checkpoint=tune.Checkpoint.from_directory(folder))

    kept = tune.CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="loss", checkpoint_score_order="max")
    grid = search(scored, {"x": 1}, tmp_path, run={"checkpoint_config": kept}).fit()
    assert [row["loss"] for _, row in grid[0].best_checkpoints] == [9.0, 4.0]


class RaisesAtTheEnd(tune.Trainable):
    def step(self):
        return {"loss": self.iteration, "done": self.iteration == 2}

    def cleanup(self):
        raise ValueError("cannot clean up")


def test_a_cleanup_that_raises_harms_no_trial(tmp_path, capfd) -> None:
    grid = search(RaisesAtTheEnd, {"x": tune.grid_search([1, 2, 3])}, tmp_path, max_concurrent_trials=1).fit()
    assert [len(one.metrics_dataframe) for one in grid] == [3, 3, 3] and grid.num_terminated == 3


def test_a_search_has_one_driver(tmp_path) -> None:
    first = search(parabola, {"x": 1}, tmp_path)
    grid = first.fit()
    with Storage(grid.experiment_path).owned():
        again = tune.Tuner.restore(grid.experiment_path, parabola)
        with pytest.raises(RuntimeError, match=rf"written by process {os.getpid()} on .*end that one first"):
            again.fit()
    assert again.fit().num_terminated == 1


def test_names_with_commas_are_columns_after_a_restore(tmp_path) -> None:
    def odd(config):
        tune.report({"loss": 1, "a,b": 2})

    grid = search(odd, {"x": tune.grid_search([1, 2])}, tmp_path).fit()
    logger = tune.CSVLoggerCallback()
    logger.setup(Storage(grid.experiment_path))
    trial = Trial(grid[0].trial_id, 0, {})
    logger.on_trial_result(0, [trial], trial, {"loss": 3, "a,b": 4})
    with open(tmp_path / "search" / trial.folder / "progress.csv", newline="") as file:
        assert [row["a,b"] for row in csv.DictReader(file)] == ["2", "4"]

"""Plots and loggers, on a search of numbers without processes."""

from __future__ import annotations

import math
import struct
import sys
import types
from pathlib import Path

import pytest

from shoal import tune
from shoal.tune import experiment as events
from shoal.tune.experiment import Experiment, Rules
from shoal.tune.results import ResultGrid
from shoal.tune.storage import Storage

SPACE = {
    "model": {"rate": tune.loguniform(1e-5, 1), "kind": tune.choice(["small", "large"])},
    "seed": tune.randint(0, 1000),
    "constant": 3,
}


def searched(trials: int = 40, steps: int = 5) -> ResultGrid:
    """The rate decides nearly everything, the kind a little, the seed nothing; one trial fails, one reports NaN."""
    searcher = tune.BasicVariantGenerator(random_state=2)
    searcher.set_search_properties("loss", "min", SPACE, trials)
    machine = Experiment(searcher, tune.FIFOScheduler(), Rules("loss", "min"), "e")
    while (event := machine.create()) is not None:
        machine.handle(event)
        model = event.config["model"]
        floor = (math.log10(model["rate"]) + 3) ** 2 + (model["kind"] == "small") * 0.5
        for step in range(1, steps + 1):
            loss = math.nan if event.index == 1 else floor + 3 / step
            result = {"loss": loss, "training_iteration": step, "timestamp": 10, "name": "x"}
            machine.handle(events.TrialReported(event.trial_id, result, None, step == steps and event.index > 0))
    machine.handle(events.TrialFailed("e_00000", "ValueError: no", fatal=True))
    return ResultGrid(machine, Storage("/nowhere"))


def test_importances_are_what_was_put_in() -> None:
    shares = tune.plots.importances(searched(150))
    assert list(shares)[:2] == ["model/rate", "model/kind"]
    assert shares["model/rate"] > 0.6 and shares["seed"] < 0.1 and "constant" not in shares


def test_plots(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    grid = searched()
    curves = tune.plots.learning_curves(grid)
    axes = curves.axes[0]
    assert len(axes.lines) == 39  # the one of NaN is none
    best = grid.get_best_result()
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named[0] == best.trial_id and len(named) == 39 // 4
    parallel = tune.plots.parallel_coordinates(grid)
    assert [text.get_text() for text in parallel.axes[0].get_xticklabels()] == [
        "model/rate", "model/kind", "seed", "loss"
    ]  # fmt: skip
    effects = tune.plots.parameter_effects(grid)
    labels = [panel.get_xlabel() for panel in effects.axes]
    assert labels[0] == "model/rate" and sorted(labels[1:]) == ["model/kind", "seed"]
    assert effects.axes[0].get_xscale() == "log"
    assert effects._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    for number, figure in enumerate((curves, parallel)):
        figure.savefig(tmp_path / f"{number}.png", dpi=40)
        assert (tmp_path / f"{number}.png").stat().st_size > 3000
    with pytest.raises(ValueError, match="no trial has reported a finite 'los'"):
        tune.plots.parallel_coordinates(grid, "los", "min")
    assert "e_00000 failed: ValueError: no" in grid._repr_html_()
    assert "history" not in repr(best) and best.trial_id in repr(best) and len(best.history) == 5


def events_of(folder: Path) -> list:
    """What lies in the event files of a folder, in order: the records of TensorFlow's format."""
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.glob("events.*")):
        content, position = path.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            found.append(proto.Event.FromString(content[position + 12 : position + 12 + length]))
            position += 12 + length + 4
    return found


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_tensorboard_gets_every_number(tmp_path, scheme) -> None:
    pytest.importorskip("tensorboardX")
    logger = tune.TBXLoggerCallback()
    logger.setup(Storage(f"{scheme}{tmp_path}"))
    trials = [tune.trial.Trial(f"t{number}", number, {"rate": number}) for number in range(2)]
    for one in trials:
        logger.on_trial_start(0, trials, one)
        for step in (1, 2):
            result = {
                "loss": 1.5 * step,
                "deep": {"acc": math.nan},
                "done": False,
                "name": "x",
                "training_iteration": step,
            }
            logger.on_trial_result(0, trials, one, result)
    logger.on_trial_complete(0, trials, trials[0])
    logger.on_experiment_end(trials)
    for one in trials:
        values = [(event.step, value) for event in events_of(tmp_path / one.folder) for value in event.summary.value]
        losses = [(step, value.simple_value) for step, value in values if value.tag == "loss"]
        assert losses == [(1, 1.5), (2, 3.0)]
        assert {value.tag for _, value in values} == {"config/text_summary", "loss", "deep/acc", "training_iteration"}


def test_mlflow_has_a_run_for_each_trial(tmp_path) -> None:
    mlflow = pytest.importorskip("mlflow")
    logger = tune.MLflowLoggerCallback(f"sqlite:///{tmp_path}/runs.db", "digits", tags={"by": "test"})
    logger.setup(Storage(str(tmp_path)))
    trials = [tune.trial.Trial(f"t{number}", number, {"rate": number}) for number in range(2)]
    for one in trials:
        logger.on_trial_start(0, trials, one)
        logger.on_trial_result(0, trials, one, {"loss": 0.5, "timestamp": 10, "training_iteration": 1})
    logger.on_trial_complete(0, trials, trials[0])
    logger.on_trial_error(0, trials, trials[1])
    logger.on_experiment_end(trials)
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path}/runs.db")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert sorted((run.data.params["rate"], run.info.status, run.data.metrics["loss"], run.data.tags["by"]) for run in runs) == [
        ("0", "FINISHED", 0.5, "test"), ("1", "FAILED", 0.5, "test")
    ]  # fmt: skip


class StandIn:
    """MLflow's part that the logger uses: a client that writes down what it is told, with MLflow's names of parameters."""

    told: list = []

    def __init__(self, tracking_uri: str | None = None) -> None:
        self.told.append(("server", tracking_uri))

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        self.told.append(("experiment", name))
        return "7"

    def create_run(self, experiment_id: str, tags: dict[str, str]) -> types.SimpleNamespace:
        assert all(isinstance(text, str) for text in tags.values())
        self.told.append(("run", experiment_id, tags["mlflow.runName"], tags["by"]))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run {tags['trial_id']}"))

    def log_batch(self, run_id: str, metrics: tuple = (), params: tuple = ()) -> None:
        self.told.append(("batch", run_id, [*params, *metrics]))

    def set_terminated(self, run_id: str, status: str) -> None:
        self.told.append(("end", run_id, status))


def test_mlflow_is_told_what_a_search_did(tmp_path, monkeypatch) -> None:
    """Against a stand-in, as MLflow itself is larger than Shoal; the test above uses it where it is installed."""
    monkeypatch.setattr(StandIn, "told", [])
    entities = types.SimpleNamespace(
        Metric=lambda key, value, timestamp, step: (key, value, timestamp, step), Param=lambda key, value: (key, value)
    )
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", types.SimpleNamespace(MlflowClient=StandIn))
    logger = tune.MLflowLoggerCallback("http://here:5000", "digits", tags={"by": "test"})
    logger.setup(Storage(str(tmp_path)))
    trials = [tune.trial.Trial(f"t{number}", number, {"model": {"rate": number}}) for number in range(3)]
    for one in trials:
        logger.on_trial_start(0, trials, one)
        logger.on_trial_start(0, trials, one)  # it was started again: the same run
    result = {"loss": 0.5, "timestamp": 10, "training_iteration": 1, "date": "today"}
    logger.on_trial_result(0, trials, trials[0], result)
    logger.on_trial_complete(0, trials, trials[0])
    logger.on_trial_error(0, trials, trials[1])
    logger.on_experiment_end(trials)
    told = StandIn.told
    assert told[:2] == [("server", "http://here:5000"), ("experiment", "digits")]
    assert [one[1:] for one in told if one[0] == "run"] == [("7", f"t{number}", "test") for number in range(3)]
    batches = [one[1:] for one in told if one[0] == "batch"]
    assert batches[:3] == [(f"run t{number}", [("model/rate", str(number))]) for number in range(3)]
    (run, metrics), *more = batches[3:]
    assert run == "run t0" and not more and ("loss", 0.5, 10_000, 1) in metrics
    assert {key for key, *_ in metrics} <= {"loss", "timestamp", "training_iteration"}
    ends = [one[1:] for one in told if one[0] == "end"]
    assert ends == [("run t0", "FINISHED"), ("run t1", "FAILED"), ("run t2", "KILLED")]

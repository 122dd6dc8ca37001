"""What is wrong with a search is said before its first trial, with the name of what is wrong; packages that are absent are named."""

from __future__ import annotations

import sys
import threading

import pytest

from shoal import tune
from shoal.tune.experiment import Experiment, Rules
from shoal.tune.results import ResultGrid
from shoal.tune.storage import Storage


def objective(config):
    return {"loss": 0}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"model": {"rate": tune.uniform}}, r"model/rate: tune\.uniform was not called"),
        ({"rate": "tune.loguniform(1e-4, 1)"}, "rate: .* is text"),
        ({"rate": " uniform(0, 1)"}, "rate: .* is text"),
        ({"layers": [{"grid_search": 3}]}, "layers/0: a grid is a list of values"),
        ({"rate": {"grid_serach": [1, 2]}}, "rate: a grid is spelt 'grid_search', not 'grid_serach'"),
        ({"rate": {"grid_search": [1, 2], "unit": 1}}, "rate: a grid stands alone"),
    ],
)
def test_a_typo_in_the_space_is_told_with_its_place(space, message) -> None:
    with pytest.raises(ValueError, match=message):
        tune.Tuner(objective, param_space=space)


def test_distributions_of_other_libraries_are_told() -> None:
    frozen = type("rv_frozen", (), {"__module__": "scipy.stats._distn_infrastructure"})
    with pytest.raises(ValueError, match=r"rate: .* is of scipy\.stats"):
        tune.Tuner(objective, param_space={"rate": frozen()})


def test_values_that_only_look_odd_are_values() -> None:
    space = {
        "activation": max,
        "text": "uniform",
        "layer": type,
        "search": {"grid": [1]},
        "none": None,
        "nan": float("nan"),
    }
    assert tune.Tuner(objective, param_space=space)


def test_points_are_checked_and_may_be_nested() -> None:
    space = {"model": {"rate": tune.uniform(0, 1), "units": tune.choice([1, 2])}, "seed": tune.grid_search([1, 2])}
    for point, message in (
        ({"model": {"rat": 0.5}}, "no parameter 'model/rat'; did you mean 'rate'"),
        ({"sed": 1}, "no parameter 'sed'; did you mean 'seed'"),
    ):
        searcher = tune.BasicVariantGenerator([point])
        with pytest.raises(ValueError, match=message):
            searcher.set_search_properties(None, None, space, 1)
    searcher = tune.BasicVariantGenerator([{"model": {"rate": 7}, "seed": 9}])
    searcher.set_search_properties(None, None, space, 1)
    config = searcher.suggest("t", 0)
    assert isinstance(config, dict)
    assert config["model"]["rate"] == 7 and config["model"]["units"] in (1, 2) and config["seed"] == 9


def test_a_function_of_the_config_that_fails_is_named() -> None:
    searcher = tune.BasicVariantGenerator()
    searcher.set_search_properties(None, None, {"a": 1, "b": {"c": tune.sample_from(lambda config: config["d"])}}, 1)
    with pytest.raises(ValueError, match="b/c: its sample_from raised KeyError: 'd'"):
        searcher.suggest("t", 0)


def test_parameters_that_do_not_fit_are_told() -> None:
    def two(config, data):
        return {}

    class Two(tune.Trainable):
        def setup(self, config, data):
            pass

    for trainable in (two, Two):
        with pytest.raises(TypeError, match="'data'"):
            tune.Tuner(trainable)
        with pytest.raises(TypeError, match="'dta'"):
            tune.with_parameters(trainable, dta=1)
        assert tune.Tuner(tune.with_parameters(trainable, data=1))
    with pytest.raises(TypeError, match=r"search_alg must be a tune\.Searcher"):
        tune.TuneConfig(search_alg="optuna")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"scheduler must be a tune\.TrialScheduler"):
        tune.TuneConfig(scheduler=tune.ASHAScheduler)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bracket_size"):
        tune.SuccessiveHalvingScheduler(bracket_size=0)
    with pytest.raises(ValueError, match="max_t"):
        tune.HyperBandScheduler(max_t=0)
    with pytest.raises(ValueError, match=r"fail_fast must be True, False or .raise., not 'rise'"):
        tune.FailureConfig(fail_fast="rise")
    with pytest.raises(ValueError, match=r"checkpoint_score_order must be .*, not 'maximum'"):
        tune.CheckpointConfig(checkpoint_score_order="maximum")
    with pytest.raises(ValueError, match="report_timeout_s must be seconds above 0"):
        tune.FailureConfig(report_timeout_s=0)
    for wrong in ({"num_samples": 2.5}, {"num_samples": 0}, {"max_concurrent_trials": -1}, {"time_budget_s": -1}):
        with pytest.raises(ValueError, match=f"TuneConfig: {next(iter(wrong))} must be"):
            tune.TuneConfig(**wrong)
    with pytest.raises(ValueError, match="num_to_keep must be at least 1"):
        tune.CheckpointConfig(num_to_keep=0)
    for wrong in (
        {"callbacks": tune.JsonLoggerCallback()},
        {"callbacks": [tune.JsonLoggerCallback]},
        {"failure_config": {}},
    ):
        with pytest.raises(TypeError, match=f"RunConfig: {next(iter(wrong))}"):
            tune.RunConfig(**wrong)
    with pytest.raises(ValueError, match="that of a folder below storage_path"):
        tune.RunConfig(name="../q")
    with pytest.raises(TypeError, match="a bound is a number, not '0'"):
        tune.uniform("0", "1")


def test_a_search_that_is_refused_does_not_use_up_its_name(tmp_path) -> None:
    run = tune.RunConfig(name="mine", storage_path=str(tmp_path), verbose=0)
    wrong = tune.BasicVariantGenerator([{"rat": 1}])
    with pytest.raises(ValueError, match="did you mean 'rate'"):
        tune.Tuner(
            objective,
            param_space={"rate": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(search_alg=wrong),
            run_config=run,
        ).get_results()
    assert list(tmp_path.iterdir()) == []


class CannotBegin(tune.Callback):
    def setup(self, storage, **info):
        raise ImportError("no such package")


def test_what_fails_before_the_first_trial_does_not_use_up_the_name(shoal_shared, tmp_path) -> None:
    lock = threading.Lock()

    def cannot_be_sent(config):
        with lock:
            return {"loss": 0}

    for trainable, callbacks, error in ((objective, [CannotBegin()], ImportError), (cannot_be_sent, [], TypeError)):
        with pytest.raises(error):
            named(tmp_path, trainable, callbacks).fit()
    assert named(tmp_path, objective, []).fit().num_terminated == 1


def named(folder, trainable, callbacks) -> tune.Tuner:
    run = tune.RunConfig(name="mine", storage_path=str(folder), verbose=0, callbacks=callbacks)
    return tune.Tuner(trainable, run_config=run)


def grid() -> ResultGrid:
    searcher = tune.BasicVariantGenerator()
    searcher.set_search_properties("loss", "min", {}, 1)
    return ResultGrid(Experiment(searcher, tune.FIFOScheduler(), Rules("loss", "min"), "e"), Storage("/nowhere"))


def test_a_search_without_a_best_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"no trial has reported a finite 'loss' \(.*\)$"):
        grid().get_best_result()


def optuna_search(sampler: str) -> None:
    tune.OptunaSearch(sampler=sampler).set_search_properties("loss", "min", {"x": tune.uniform(0, 1)}, 1)


@pytest.mark.parametrize(
    ("absent", "use", "message"),
    [
        (["optuna"], lambda: optuna_search("tpe"), r"OptunaSearch needs Optuna: pip install 'shoal\[tune\]'"),
        (["cmaes"], lambda: optuna_search("cmaes"), r"OptunaSearch\(sampler='cmaes'\) needs cmaes: pip install cmaes"),
        (["torch"], lambda: optuna_search("gp"), r"OptunaSearch\(sampler='gp'\) needs torch: pip install torch"),
        (["torch", "scipy"], lambda: optuna_search("gp"), "needs scipy and torch: pip install scipy torch"),
        (["matplotlib.figure"], lambda: tune.plots._figure(1, 1), "plots need matplotlib"),
        (["pandas"], lambda: grid().get_dataframe(), "need pandas"),
        (["fsspec"], lambda: Storage("s3://bucket"), "s3://bucket needs fsspec"),
        (["mlflow.entities"], lambda: tune.MLflowLoggerCallback().setup(Storage("/nowhere")), "pip install mlflow"),
        (
            ["tensorboardX", "torch.utils.tensorboard"],
            lambda: tune.TBXLoggerCallback().setup(Storage("/nowhere")),
            "pip install tensorboardX",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_an_absent_package_is_named(monkeypatch, absent, use, message) -> None:
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=message):
        use()


def test_a_mutation_of_what_is_not_in_the_space_is_told(tmp_path) -> None:
    def search(mutations):
        scheduler = tune.PopulationBasedTraining(hyperparam_mutations=mutations)
        return tune.Tuner(
            objective,
            param_space={"rate": tune.uniform(0, 1), "net": {"units": 3}},
            tune_config=tune.TuneConfig("loss", "min", scheduler=scheduler),
            run_config=tune.RunConfig(name="search", storage_path=str(tmp_path)),
        )._experiment()

    search({"rate": [0.1], "net": {"units": [1, 2]}})
    for typo, name in (({"rte": [0.1]}, "'rte'"), ({"net": {"unit": [1]}}, "'net/unit'")):
        with pytest.raises(ValueError, match=f"hyperparam_mutations changes {name}"):
            search(typo)

"""The joblib backend, plain and under scikit-learn."""

from __future__ import annotations

import os
from types import ModuleType

import pytest

joblib = pytest.importorskip("joblib")


@pytest.fixture(autouse=True)
def registered(shoal_shared: ModuleType) -> None:
    from shoal.util.joblib import register_shoal

    register_shoal()


def test_parallel_runs_elsewhere_and_keeps_order() -> None:
    def both(x: int) -> tuple[int, int]:
        return x * x, os.getpid()

    with joblib.parallel_config("shoal"):
        results = joblib.Parallel(n_jobs=2)(joblib.delayed(both)(x) for x in range(30))
    assert [value for value, _ in results] == [x * x for x in range(30)]
    assert os.getpid() not in {pid for _, pid in results}


def test_errors_and_reuse() -> None:
    def fail(x: int) -> float:
        return 1 / x

    with joblib.parallel_config("shoal"):
        parallel = joblib.Parallel(n_jobs=2)
        with pytest.raises(ZeroDivisionError):
            parallel(joblib.delayed(fail)(x) for x in [1, 0])
        assert parallel(joblib.delayed(fail)(x) for x in [1, 2]) == [1.0, 0.5]


def test_large_arrays_travel_once() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(200_000)

    def part(a: object, start: int) -> tuple[int, bool]:
        piece = a[start : start + 10]  # type: ignore[index]
        return int(piece.sum()), bool(a.flags.writeable)  # type: ignore[attr-defined]

    with joblib.parallel_config("shoal", n_jobs=2):
        results = joblib.Parallel()(joblib.delayed(part)(array, n) for n in range(20))
    assert [total for total, _ in results] == [int(array[n : n + 10].sum()) for n in range(20)]
    assert not any(writeable for _, writeable in results), "the tasks see the store's memory, read-only"


def test_nested_work_stays_in_its_task() -> None:
    def outer(x: int) -> list[int]:
        return joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-x) for _ in range(3))

    with joblib.parallel_config("shoal", n_jobs=2):
        assert joblib.Parallel()(joblib.delayed(outer)(x) for x in range(3)) == [[0] * 3, [1] * 3, [2] * 3]


@pytest.mark.slow
def test_grid_search() -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    digits = load_digits()
    features, labels = digits.data[:400], digits.target[:400]
    grid = {"C": [1, 10], "gamma": [0.001, 0.01]}
    with joblib.parallel_config("shoal", n_jobs=2):
        search = GridSearchCV(SVC(), grid, cv=3).fit(features, labels)
    serial = GridSearchCV(SVC(), grid, cv=3).fit(features, labels)
    assert search.best_params_ == serial.best_params_
    assert (search.cv_results_["mean_test_score"] == serial.cv_results_["mean_test_score"]).all()

"""Ray Tune's half of tune_overhead.py: the same trials, run by Ray's own Python. Prints a JSON line for each figure.

    .venv-ray/bin/python benchmarks/tune_ray.py [--trials 100]

`pip install 'ray[tune]==2.60.*' psutil` into that environment first. Started by `tune_overhead.py --ray`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from typing import Any

import ray
from ray import tune

from measuring import realtime

CPUS = 2


def sleep(config: dict[str, Any]) -> dict[str, Any]:
    """A trial of a known length."""
    time.sleep(config["seconds"])
    return {"value": config["x"]}


def run(storage: str, trials: int, seconds: float, reuse: bool) -> float:
    """Seconds that a search takes."""
    with realtime(family_too=True):
        begin = time.perf_counter()
        grid = tune.Tuner(
            sleep,
            param_space={"x": tune.uniform(0, 1), "seconds": seconds},
            tune_config=tune.TuneConfig(metric="value", mode="max", num_samples=trials, reuse_actors=reuse),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        ).fit()
        took = time.perf_counter() - begin
    assert not grid.errors
    return took


def main() -> None:
    """All figures."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--trials", type=int, default=100)
    trials = arguments.parse_args().trials
    storage = tempfile.mkdtemp(prefix="ray-tune-benchmark-")
    ray.init(num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        run(storage, 4, 0.0, True)
        for figure, seconds, reuse, number in (
            ("empty trials", 0.0, True, trials),
            ("trials of 50 ms", 0.05, True, trials),
            ("empty trials, a process each", 0.0, False, 6),
        ):
            took = run(storage, number, seconds, reuse)
            line = {"system": f"Ray Tune {ray.__version__}", "figure": figure, "trials": number, "seconds": took}
            line["of_ideal"] = number * seconds / CPUS / took
            print(json.dumps({**line, "ms_a_trial": took / number * 1000, "load": os.getloadavg()[0]}), flush=True)
    finally:
        ray.shutdown()
        shutil.rmtree(storage, ignore_errors=True)


if __name__ == "__main__":
    main()

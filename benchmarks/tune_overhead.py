"""What a search costs beyond its trials, beside Ray Tune, and what ASHA saves.

    python benchmarks/tune_overhead.py [--trials 1000] [--samples 36] [--epochs 27,81] [--ray .venv-ray/bin/python] [--realtime]

1. 1,000 trials of 50 ms on 2 CPUs; ideal is 25 s. 2. The same, shorter, and empty trials, beside Ray Tune in the same run (`--ray` names the
Python of an environment with `ray[tune]==2.60.*`): processes used again for trial after trial, and a process for each. 3. A network for
scikit-learn's digits, so many epochs at most: the time to the best accuracy with FIFO and with ASHA on the same configurations, and what of it
passes before the first result (processes start and import scikit-learn). Prints a JSON line for each. With `--realtime` (root) what is measured has
the CPUs before everything else on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import shoal
from measuring import REALTIME_VARIABLE, realtime
from shoal import tune

CPUS, TRIAL_S, SEED = 2, 0.05, 3
BESIDE_RAY = 100  #: trials
RAY_TIMEOUT_S = 400


def sleep(config: dict[str, Any]) -> dict[str, Any]:
    """A trial of a known length."""
    time.sleep(config["seconds"])
    return {"value": config["x"]}


def train(config: dict[str, Any], data: list[Any]) -> None:
    """Real training steps: an epoch of a network."""
    from sklearn.neural_network import MLPClassifier

    train_x, test_x, train_y, test_y = data
    network = MLPClassifier(
        (config["units"],), learning_rate_init=config["rate"], alpha=config["alpha"], batch_size=32, random_state=0
    )
    for _ in range(config["epochs"]):
        network.partial_fit(train_x, train_y, classes=range(10))
        tune.report({"accuracy": float(network.score(test_x, test_y))})


class FirstResult(tune.Callback):
    """Notes when the first result came."""

    begin = 0.0
    moment: float | None = None

    def setup(self, *args: Any, **info: Any) -> None:
        """See `Callback`."""
        self.begin = time.perf_counter()

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        """See `Callback`."""
        self.moment = self.moment or time.perf_counter()


def run(
    trainable: Any, space: dict[str, Any], storage: str, name: str, *callbacks: tune.Callback, **config: Any
) -> tuple[tune.ResultGrid, float]:
    """A search and its seconds."""
    with realtime(family_too=True):
        begin = time.perf_counter()
        grid = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(mode="max", seed=SEED, **config),
            run_config=tune.RunConfig(storage_path=storage, name=name, verbose=0, callbacks=list(callbacks)),
        ).fit()
        return grid, time.perf_counter() - begin


def sleeps(storage: str, figure: str, trials: int, seconds: float, reuse: bool = True) -> None:
    """One figure of trials that only wait."""
    space = {"x": tune.uniform(0, 1), "seconds": seconds}
    name = f"{figure} {trials}"
    grid, took = run(sleep, space, storage, name, metric="value", num_samples=trials, reuse_actors=reuse)
    assert grid.num_terminated == trials, grid.errors
    line = {"system": "Shoal", "figure": figure, "trials": trials, "seconds": took}
    line["of_ideal"] = trials * seconds / CPUS / took
    print(json.dumps({**line, "ms_a_trial": took / trials * 1000, "load": os.getloadavg()[0]}), flush=True)


def digits(storage: str, samples: int, epochs: int) -> None:
    """The same configurations with FIFO and with ASHA."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    data = train_test_split(images / 16, labels, test_size=0.3, random_state=0)
    space = {
        "units": tune.choice([16, 32, 64]),
        "rate": tune.loguniform(1e-5, 3e-1),
        "alpha": tune.loguniform(1e-5, 1e-1),
        "epochs": epochs,
    }
    trainable = tune.with_parameters(train, data=data)
    found = {}
    asha = tune.ASHAScheduler(max_t=epochs, grace_period=1, reduction_factor=3)
    for name, scheduler in (("FIFO", tune.FIFOScheduler()), ("ASHA", asha)):
        first = FirstResult()
        grid, seconds = run(
            trainable,
            space,
            storage,
            f"{name} {epochs}",
            first,
            metric="accuracy",
            num_samples=samples,
            scheduler=scheduler,
        )
        best = grid.get_best_result(scope="all")
        assert first.moment is not None
        found[name] = {
            "seconds": round(seconds, 3),
            "first_result_s": round(first.moment - first.begin, 3),
            "accuracy": round(max(row["accuracy"] for row in best.history), 3),
            "epochs": sum(len(result.history) for result in grid),
            "errors": grid.num_errors,
        }
    ratios = {
        f"{key}_of_ASHA_by_FIFO": round(found["ASHA"][key] / found["FIFO"][key], 3) for key in ("seconds", "epochs")
    }
    line = {"figure": "digits", "epochs": epochs, **found, **ratios, "load": os.getloadavg()[0]}
    print(json.dumps(line), flush=True)


def main() -> None:
    """All measurements."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--trials", type=int, default=1000)
    arguments.add_argument("--samples", type=int, default=36)
    arguments.add_argument("--epochs", default="27,81", help="at most, for the digits; 0 samples leave them out")
    arguments.add_argument("--ray", help="Python of an environment with ray[tune]")
    arguments.add_argument("--realtime", action="store_true", help="before everything else on the machine (root)")
    options = arguments.parse_args()
    if options.realtime:
        os.environ[REALTIME_VARIABLE] = "1"
    storage = tempfile.mkdtemp(prefix="shoal-tune-benchmark-")
    shoal.init(num_cpus=CPUS)
    try:
        if options.trials:
            sleeps(storage, "warm-up", 4, 0.0)
            sleeps(storage, "trials of 50 ms", options.trials, TRIAL_S)
            beside = min(options.trials, BESIDE_RAY)
            sleeps(storage, "empty trials", beside, 0.0)
            sleeps(storage, "trials of 50 ms, fewer", beside, TRIAL_S)
            sleeps(storage, "empty trials, a process each", 6, 0.0, reuse=False)
        if options.samples:
            for epochs in options.epochs.split(","):
                digits(storage, options.samples, int(epochs))
    finally:
        shoal.shutdown()
        shutil.rmtree(storage, ignore_errors=True)
    if options.ray and options.trials:
        script = Path(__file__).with_name("tune_ray.py")
        beside = min(options.trials, BESIDE_RAY)
        subprocess.run([options.ray, str(script), "--trials", str(beside)], timeout=RAY_TIMEOUT_S, check=True)


if __name__ == "__main__":
    main()

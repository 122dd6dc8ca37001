"""A search that its test kills: the trials write a line for each step, so that the test knows when, and what was done twice.

It cannot end before its test allows it: all trials but the first two wait for the file `go` before their last step.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import shoal
from shoal import tune

TRIALS, STEPS = 8, 6


def train(config):
    folder = Path(tune.get_context().get_trial_dir())
    folder.mkdir(parents=True, exist_ok=True)
    begin = 0
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as saved:
            begin = int(Path(saved, "step").read_text())
    for step in range(begin, STEPS):
        time.sleep(0.01)
        while step == STEPS - 1 and not config["go"].exists() and int(folder.name[-5:]) > 1:
            time.sleep(0.01)
        with open(folder / "steps", "a") as file:
            file.write(f"{step}\n")
        (folder / "work").mkdir(exist_ok=True)
        (folder / "work" / "step").write_text(str(step + 1))
        tune.report({"step": step, "x": config["x"]}, checkpoint=tune.Checkpoint.from_directory(folder / "work"))


if __name__ == "__main__":
    shoal.init(num_cpus=2)
    tune.Tuner(
        train,
        param_space={"x": tune.uniform(0, 1), "go": Path(sys.argv[1], "go")},
        tune_config=tune.TuneConfig(metric="x", mode="max", num_samples=TRIALS, seed=5),
        run_config=tune.RunConfig(storage_path=sys.argv[1], name="killed"),
    ).fit()

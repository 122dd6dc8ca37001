"""Hyperparameter search: a torch model for scikit-learn's handwritten digits, and every kind of trainable, searcher and scheduler on small ones."""

import math
import os
import shutil
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits

import shoal
from shoal import tune

shoal.init(num_cpus=2)
storage = tempfile.mkdtemp(prefix="shoal-tune-example-")


# A trainable is a function of a configuration. It may simply return its metrics.
def parabola(config):
    return {"loss": (config["x"] - 3) ** 2 + config["offset"]}


grid = tune.Tuner(
    parabola,
    param_space={"x": tune.grid_search([1, 2, 3, 4]), "offset": 0.5},
    tune_config=tune.TuneConfig(metric="loss", mode="min"),
    run_config=tune.RunConfig(storage_path=storage, name="parabola"),
).fit()
print("best of the grid:", grid.get_best_result().config, "of", len(grid))


# Or it reports after each step, so that a scheduler can end it early. A checkpoint lets it go on after a failure.
def train(config, images, labels):
    torch.manual_seed(0)
    hidden = config["units"]
    model = torch.nn.Sequential(torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=config["rate"])
    first, checkpoint = 0, tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            first, weights = torch.load(Path(folder, "state.pt"))
            model.load_state_dict(weights)
    x, y = torch.tensor(images), torch.tensor(labels)
    for epoch in range(first, 9):
        for batch in torch.randperm(1400).split(64):
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy = (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
        with tempfile.TemporaryDirectory() as folder:
            torch.save((epoch + 1, model.state_dict()), Path(folder, "state.pt"))
            tune.report({"accuracy": accuracy}, checkpoint=tune.Checkpoint.from_directory(folder))


# Large arguments lie once in the object store. ASHA stops what is not among the best third at 1 and 3 epochs.
images, labels = load_digits(return_X_y=True)
trainable = tune.with_parameters(train, images=(images / 16).astype("float32"), labels=labels)
grid = tune.Tuner(
    tune.with_resources(trainable, {"cpu": 1}),
    param_space={"units": tune.choice([16, 32, 64]), "rate": tune.loguniform(1e-5, 1e-1)},
    tune_config=tune.TuneConfig(
        metric="accuracy",
        mode="max",
        num_samples=16,
        seed=1,
        scheduler=tune.ASHAScheduler(max_t=9, reduction_factor=3),
    ),
    run_config=tune.RunConfig(
        storage_path=storage,
        name="digits",
        failure_config=tune.FailureConfig(max_failures=2),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        callbacks=[tune.TBXLoggerCallback()],
    ),
).fit()
best = grid.get_best_result()
print(f"{len(grid)} trials, {grid.num_errors} errors; above 0.85: {best.metrics['accuracy'] > 0.85}")
print("some ended early:", any(len(result.history) < 9 for result in grid))

# The best model, from its last checkpoint.
with best.checkpoint.as_directory() as folder:
    epochs, weights = torch.load(Path(folder, "state.pt"))
print("epochs of the best:", epochs, "- its units:", len(weights["0.weight"]) == best.config["units"])

# The results as a data frame, as pictures, and for TensorBoard: `tensorboard --logdir` of the experiment's folder.
frame = grid.get_dataframe()
print("as a table:", frame.shape[0], "rows with", [name for name in frame.columns if name.startswith("config/")])
tune.plots.learning_curves(grid).savefig(Path(storage, "curves.png"))
tune.plots.parallel_coordinates(grid).savefig(Path(storage, "parallel.png"))
tune.plots.parameter_effects(grid).savefig(Path(storage, "effects.png"))
print("what mattered most:", next(iter(tune.plots.importances(grid))))
print("TensorBoard:", len(list(Path(grid.experiment_path).glob("trial_*/events.*"))), "event files")

# Everything is on disk: after any death of this program, these lines go on with the search.
print("can be restored:", tune.Tuner.can_restore(grid.experiment_path))
restored = tune.Tuner.restore(grid.experiment_path, trainable).fit()
print("nothing is done twice:", [one.metrics for one in restored] == [one.metrics for one in grid])


# Searchers of Optuna learn where to look next: sampler="tpe", "cmaes", "gp" (Gaussian processes), or any object of Optuna's.
grid = tune.Tuner(
    parabola,
    param_space={"x": tune.uniform(-10, 10), "offset": tune.choice([0.5, 1.5])},
    tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=30, search_alg=tune.OptunaSearch(seed=0)),
    run_config=tune.RunConfig(storage_path=storage, name="optuna"),
).fit()
print("Optuna is closer than 0.5:", abs(grid.get_best_result().config["x"] - 3) < 0.5)


# A trainable may be a class: it is built once, makes steps, and is saved and loaded where a scheduler needs it.
class Climber(tune.Trainable):
    def setup(self, config):
        self.height = 0.0

    def step(self):
        self.height += self.config["pace"]
        return {"height": self.height}

    def save_checkpoint(self, checkpoint_dir):
        return {"height": self.height}

    def load_checkpoint(self, checkpoint):
        self.height = checkpoint["height"]


# HyperBand: all nine run to step 1 and pause, the best three go on to 3, the best one to 9. Two share a CPU.
grid = tune.Tuner(
    tune.with_resources(Climber, {"cpu": 0.5}),
    param_space={"pace": tune.grid_search([1, 2, 3, 4, 5, 6, 7, 8, 9])},
    tune_config=tune.TuneConfig(
        metric="height", mode="max", scheduler=tune.HyperBandScheduler(max_t=9, reduction_factor=3)
    ),
    run_config=tune.RunConfig(storage_path=storage, name="hyperband"),
).fit()
print("steps by pace:", {one.config["pace"]: one.metrics["training_iteration"] for one in grid})

# Population-based training: every 3 steps the worst take over from the best, with another pace. A stop condition ends them. (One at a
# time, they take turns; if each had a CPU, the first might be done before another has begun.)
grid = tune.Tuner(
    Climber,
    param_space={"pace": tune.grid_search([0.0, 0.1, 0.2, 1.0])},
    tune_config=tune.TuneConfig(
        metric="height",
        mode="max",
        max_concurrent_trials=1,
        time_budget_s=60,
        scheduler=tune.PopulationBasedTraining(
            "training_iteration", perturbation_interval=3, hyperparam_mutations={"pace": tune.uniform(0, 1)}
        ),
    ),
    run_config=tune.RunConfig(storage_path=storage, name="population", stop={"training_iteration": 12}),
).fit()
print("who stood still took over:", min(one.metrics["height"] for one in grid) > 0)


# What goes wrong in a trial harms no other; a process that dies does not either.
def fragile(config):
    if config["case"] == "raises":
        raise KeyError("no such column")
    if config["case"] == "dies":
        os._exit(1)
    if config["case"] == "typo":
        return {"los": 0.5}
    return {"loss": math.nan if config["case"] == "not a number" else 0.5}


# A callback hears of everything: another logger, a message to yourself.
class Failures(tune.Callback):
    def on_trial_error(self, iteration, trials, trial, **info):
        print("failed:", trial.config["case"], "-", type(trial.error).__name__)


grid = tune.Tuner(
    fragile,
    param_space={"case": tune.grid_search(["raises", "dies", "typo", "not a number", "works"])},
    tune_config=tune.TuneConfig(metric="loss", mode="min", max_concurrent_trials=1),
    run_config=tune.RunConfig(storage_path=storage, name="failures", callbacks=[Failures()]),
).fit()
print(grid.num_errors, "errors; the best:", grid.get_best_result().config)

# What is wrong with the search itself is said before its first trial.
try:
    tune.Tuner(parabola, param_space={"x": tune.uniform, "offset": 0.5})
except ValueError as error:
    print(error)

shutil.rmtree(storage)
shoal.shutdown()

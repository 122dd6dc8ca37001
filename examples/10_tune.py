"""Hyperparameter search: a small neural network for scikit-learn's handwritten digits."""

import shutil
import tempfile
from pathlib import Path

import joblib
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

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
    train_x, test_x, train_y, test_y = train_test_split(images, labels, random_state=0)
    network = MLPClassifier((config["units"],), learning_rate_init=config["rate"], random_state=0)
    begin, checkpoint = 0, tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            begin, network = joblib.load(Path(folder, "network"))
    for epoch in range(begin, 9):
        network.partial_fit(train_x, train_y, classes=range(10))
        with tempfile.TemporaryDirectory() as folder:
            joblib.dump((epoch + 1, network), Path(folder, "network"))
            accuracy = network.score(test_x, test_y)
            tune.report({"accuracy": accuracy}, checkpoint=tune.Checkpoint.from_directory(folder))


# Large arguments lie once in the object store. ASHA stops what is not among the best third at 1, 3 and 9 epochs.
images, labels = load_digits(return_X_y=True)
tuner = tune.Tuner(
    tune.with_resources(tune.with_parameters(train, images=images / 16, labels=labels), {"cpu": 1}),
    param_space={"units": tune.choice([16, 32, 64]), "rate": tune.loguniform(1e-4, 1e-1)},
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
    ),
)
grid = tuner.fit()
best = grid.get_best_result()
print(f"{len(grid)} trials, {grid.num_errors} errors; above 0.9: {best.metrics['accuracy'] > 0.9}")
print("some ended early:", any(len(result.history) < 9 for result in grid))
frame = grid.get_dataframe()
print("as a table:", frame.shape[0], "rows with", [name for name in frame.columns if name.startswith("config/")])

# The best network, from its last checkpoint.
with best.checkpoint.as_directory() as folder:
    epochs, network = joblib.load(Path(folder, "network"))
print("epochs of the best:", epochs, "- a three is a", network.predict(images[3:4] / 16)[0])

# Everything is on disk: after any death of this program, these lines go on with the search.
print("can be restored:", tune.Tuner.can_restore(grid.experiment_path))
restored = tune.Tuner.restore(
    grid.experiment_path, tune.with_parameters(train, images=images / 16, labels=labels)
).fit()
print("nothing is done twice:", [one.metrics for one in restored] == [one.metrics for one in grid])

# Optuna suggests where to look next.
grid = tune.Tuner(
    parabola,
    param_space={"x": tune.uniform(-10, 10), "offset": tune.choice([0.5, 1.5])},
    tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=30, search_alg=tune.OptunaSearch(seed=0)),
    run_config=tune.RunConfig(storage_path=storage, name="optuna"),
).fit()
print("Optuna is closer than 0.5:", abs(grid.get_best_result().config["x"] - 3) < 0.5)

shutil.rmtree(storage)
shoal.shutdown()

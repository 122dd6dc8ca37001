"""Utilities: pools, queues, executors and joblib. Ends with a hyperparameter sweep over scikit-learn's digits."""

import operator
from concurrent.futures import as_completed as futures_as_completed

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC

import shoal
from shoal.util import ActorPool, Executor, as_completed
from shoal.util.joblib import register_shoal
from shoal.util.multiprocessing import Pool
from shoal.util.queue import Queue

shoal.init(num_cpus=2)


# ActorPool: give the next value to whichever actor is free.
@shoal.remote
class Squarer:
    def square(self, x):
        return x * x


pool = ActorPool([Squarer.remote() for _ in range(2)])
print("ActorPool:", list(pool.map(lambda actor, x: actor.square.remote(x), range(6))))

# Queue: between any tasks and actors. `put` waits while the queue is full.
queue = Queue(maxsize=3)


@shoal.remote
def produce(queue, count):
    for number in range(count):
        queue.put(number)
    queue.put(None)


produce.remote(queue, 5)
print("Queue:", list(iter(queue.get, None)))

# Pool: the standard library's multiprocessing.Pool, by another name.
with Pool(2) as processes:
    print("Pool:", processes.map(abs, [-1, -2, -3]), processes.starmap(operator.add, [(1, 2), (3, 4)]))

# Executor: the standard library's concurrent.futures.
with Executor() as executor:
    futures = [executor.submit(pow, 2, exponent) for exponent in range(5)]
    print("Executor:", sorted(future.result() for future in futures_as_completed(futures)))

# joblib, and so everything in scikit-learn that has n_jobs.
digits = load_digits()
register_shoal()
with joblib.parallel_config("shoal", n_jobs=2):
    search = GridSearchCV(SVC(), {"C": [1, 10], "gamma": [0.0005, 0.001]}, cv=3)
    search.fit(digits.data[:500], digits.target[:500])
print("GridSearchCV:", search.best_params_)

# The same by hand. The data are stored once; results are looked at as they come, so that a bad setting could be dropped early.
images, labels = shoal.put(digits.data[:500]), shoal.put(digits.target[:500])


@shoal.remote
def score(images, labels, gamma):
    return gamma, cross_val_score(SVC(gamma=gamma), images, labels, cv=3).mean()


sweep = [score.remote(images, labels, gamma) for gamma in np.logspace(-5, -1, 9)]
best = (None, 0.0)
for gamma, accuracy in as_completed(sweep):
    best = max(best, (gamma, accuracy), key=lambda found: found[1])
print(f"the best gamma of {len(sweep)} is {best[0]:.4f}, with an accuracy of {best[1]:.2f}")

shoal.shutdown()

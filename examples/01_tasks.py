"""Tasks: functions that run in other processes. Ends with an estimate of pi by many small tasks."""

import random

import shoal

shoal.init(num_cpus=2)


# A remote function is an ordinary function with a decorator. `.remote()` starts it and returns at once.
@shoal.remote
def square(x):
    return x * x


refs = [square.remote(i) for i in range(5)]
print("squares:", shoal.get(refs))


# A ref passed as an argument is replaced by its value before the task runs: this is how tasks depend on tasks.
@shoal.remote
def add(a, b):
    return a + b


level = [square.remote(i) for i in range(8)]
while len(level) > 1:
    level = [add.remote(left, right) for left, right in zip(level[::2], level[1::2], strict=True)]
print("sum of squares, as a tree of tasks:", shoal.get(level[0]))


# Several results, each with its own ref: whoever needs only one of them waits only for the task, and gets only that value.
@shoal.remote(num_returns=2)
def divide(a, b):
    return a // b, a % b


quotient, remainder = divide.remote(17, 5)
print("17 = 5 *", shoal.get(quotient), "+", shoal.get(remainder))


# Tasks may start tasks. A task that waits lends its CPU to others, so this cannot block itself however deep it goes.
@shoal.remote
def fibonacci(n):
    if n < 2:
        return n
    return sum(shoal.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)]))


print("fibonacci(8):", shoal.get(fibonacci.remote(8)))


# Monte Carlo: each task throws its own darts, with its own seed, so the result is the same in every run.
@shoal.remote
def hits(seed, darts):
    rng = random.Random(seed)
    return sum(rng.random() ** 2 + rng.random() ** 2 < 1 for _ in range(darts))


tasks, darts = 40, 25_000
total = sum(shoal.get([hits.remote(seed, darts) for seed in range(tasks)]))
print(f"pi is about {4 * total / (tasks * darts):.3f} ({tasks} tasks, {tasks * darts:,} darts)")

shoal.shutdown()

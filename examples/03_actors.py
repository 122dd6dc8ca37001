"""Actors: objects that live in a process of their own. Ends with a sharded counter and a parameter server."""

import numpy as np

import shoal

shoal.init(num_cpus=4)


# The same decorator on a class. `Counter.remote()` starts a process that holds the instance and returns a handle.
@shoal.remote
class Counter:
    def __init__(self, start=0):
        self.value = start

    def add(self, amount=1):
        self.value += amount
        return self.value


counter = Counter.remote(10)
print("three calls, in order:", shoal.get([counter.add.remote() for _ in range(3)]))


# A handle can be given to tasks and other actors: they all talk to the same instance.
@shoal.remote
def count_to(counter, number):
    for _ in range(number):
        shoal.get(counter.add.remote())


shoal.get([count_to.remote(counter, 20) for _ in range(4)])
print("after 4 tasks with 20 calls each:", shoal.get(counter.add.remote(0)))

# An actor may have a name, by which any process of the session finds it.
registry = Counter.options(name="registry").remote()
shoal.get(registry.add.remote(5))
print("found by name:", shoal.get(shoal.get_actor("registry").add.remote()))


# One actor handles one call after the other. Many of them share the work: here each key belongs to one shard.
@shoal.remote
class Shard:
    def __init__(self):
        self.counts = {}

    def add(self, keys):
        for key in keys:
            self.counts[key] = self.counts.get(key, 0) + 1

    def most_common(self, number):
        return sorted(self.counts.items(), key=lambda item: -item[1])[:number]


class ShardedCounter:
    """The caller's side: an ordinary object that knows which shard a key belongs to."""

    def __init__(self, shards):
        self.shards = [Shard.remote() for _ in range(shards)]

    def add(self, keys):
        shares = [[] for _ in self.shards]
        for key in keys:
            shares[key % len(self.shards)].append(key)
        return [shard.add.remote(share) for shard, share in zip(self.shards, shares, strict=True)]

    def most_common(self, number):
        parts = shoal.get([shard.most_common.remote(number) for shard in self.shards])
        return sorted((item for part in parts for item in part), key=lambda item: (-item[1], item[0]))[:number]


sharded = ShardedCounter(3)
added = [ref for n in range(1, 200) for ref in sharded.add(divisor for divisor in range(1, n + 1) if n % divisor == 0)]
shoal.get(added)
print("most common divisors below 200:", sharded.most_common(3))


# A parameter server: workers compute gradients on their part of the data, one actor keeps the weights.
@shoal.remote
class ParameterServer:
    def __init__(self, size):
        self.weights = np.zeros(size)

    def apply(self, *gradients):
        self.weights -= 0.5 * np.mean(gradients, axis=0)
        return self.weights


@shoal.remote
class GradientWorker:
    def __init__(self, seed, true_weights):
        rng = np.random.default_rng(seed)
        self.inputs = rng.normal(size=(2000, len(true_weights)))
        self.targets = self.inputs @ true_weights + rng.normal(scale=0.1, size=2000)

    def gradient(self, weights):
        return self.inputs.T @ (self.inputs @ weights - self.targets) / len(self.targets)


truth = np.array([3.0, -1.0, 0.5])
server = ParameterServer.remote(len(truth))
workers = [GradientWorker.remote(seed, truth) for seed in range(2)]
weights = server.apply.remote(np.zeros(len(truth)))
for _ in range(20):  # refs in, a ref out: nothing waits here
    gradients = [worker.gradient.remote(weights) for worker in workers]
    weights = server.apply.remote(*gradients)
print("learned weights:", np.round(shoal.get(weights), 1))

# An actor ends when its last handle goes, or when it is killed.
shoal.kill(counter)
try:
    shoal.get(counter.add.remote())
except shoal.exceptions.ActorDiedError as error:
    print("after kill:", type(error).__name__)

shoal.shutdown()

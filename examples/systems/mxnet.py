"""MXNet (2015): parameters updated in place under read/write ordering, by an engine that knows who reads and who writes.

    python examples/systems/mxnet.py

MXNet's dependency engine lets tasks mutate arrays, and orders readers and writers of each. Here an actor holds a versioned buffer: writes are its
methods, so they are ordered; a read gives the newest version as an immutable object in shared memory, made once a version, which every reader
of the node maps without a copy. A reader therefore never sees half a write, and a write never waits for readers.
"""

import time

import numpy as np

import shoal


@shoal.remote(num_cpus=0)
class Buffer:
    """An array with versions."""

    def __init__(self, array):
        self.array, self.version, self.published = np.array(array), 0, None

    def write(self, function, *args):
        """Change the array in place; the new version's number."""
        function(self.array, *args)
        self.version, self.published = self.version + 1, None
        return self.version

    def read(self):
        """(version, a ref to it): the same object for all readers of a version."""
        if self.published is None:
            self.published = shoal.put(self.array)
        return self.version, [self.published]


def descend(weights, gradient, rate):
    weights -= rate * gradient


@shoal.remote
def gradient(buffer, inputs, targets):
    _, (ref,) = shoal.get(buffer.read.remote())
    weights = shoal.get(ref)  # zero-copy, read-only, whole
    return 2 * inputs.T @ (inputs @ weights - targets) / len(inputs)


def main(size=200_000):
    shoal.init(num_cpus=2, log_to_driver=False)
    rng = np.random.default_rng(1)
    truth = rng.normal(size=8)
    inputs = rng.normal(size=(256, 8))
    buffer = Buffer.remote(np.zeros(8))
    for _ in range(30):
        found = [gradient.remote(buffer, part, part @ truth) for part in np.array_split(inputs, 4)]
        shoal.get([buffer.write.remote(descend, one, 0.05) for one in found])
    version, (ref,) = shoal.get(buffer.read.remote())
    print("learned:", bool(np.allclose(shoal.get(ref), truth, atol=0.02)), "- version:", version)

    # Readers beside a writer: each sees one version, whole.
    large = Buffer.remote(np.zeros(size))

    @shoal.remote
    def look(buffer, times):
        whole = True
        for _ in range(times):
            _, (ref,) = shoal.get(buffer.read.remote())
            array = shoal.get(ref)
            whole = whole and array.min() == array.max()
        return whole

    def add_one(array):
        array += 1

    began = time.perf_counter()
    readers = [look.remote(large, 50) for _ in range(2)]
    shoal.get([large.write.remote(add_one) for _ in range(100)])
    print("no reader saw half a write:", all(shoal.get(readers)))
    print(f"reads and writes a second: {200 / (time.perf_counter() - began):.0f}")
    shoal.shutdown()


if __name__ == "__main__":
    main()

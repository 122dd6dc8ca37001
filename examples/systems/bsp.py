"""Bulk-synchronous parallel (Valiant 1990; Pregel, MPI): supersteps with a barrier and an allreduce, a checkpoint, and a kill in the middle; then
the same job asynchronous with `wait`.

    python examples/systems/bsp.py

PageRank on a random graph, its vertices in actors. The synchronous run writes a checkpoint every third superstep; a worker is killed, all go back
to it, and the result is that of an undisturbed run. The asynchronous run takes contributions as they come and needs no barrier.
"""

import itertools
import os
import random
import time

import numpy as np

import shoal

VERTICES, WORKERS, DAMPING = 400, 4, 0.85


def random_graph():
    rng = np.random.default_rng(2)
    return (
        (rng.random((VERTICES, VERTICES)) < 0.02)
        | np.eye(VERTICES, k=1, dtype=bool)
        | np.eye(VERTICES, k=1 - VERTICES, dtype=bool)
    )


def pagerank(graph, supersteps):
    """The plain program."""
    spread = graph / graph.sum(axis=1, keepdims=True)
    ranks = np.full(VERTICES, 1 / VERTICES)
    for _ in range(supersteps):
        ranks = (1 - DAMPING) / VERTICES + DAMPING * ranks @ spread
    return ranks


@shoal.remote(num_cpus=0, max_restarts=2)
class Part:
    """Some of the vertices."""

    def __init__(self, rows, slow_s=0.0):
        self.spread, self.slow_s = rows / rows.sum(axis=1, keepdims=True), slow_s

    def send(self, ranks, die=False):
        """What these vertices give to all others."""
        if die:
            os._exit(1)
        time.sleep(random.expovariate(1) * self.slow_s)
        return ranks @ self.spread


@shoal.remote
def allreduce(*shares):
    return (1 - DAMPING) / VERTICES + DAMPING * np.sum(shares, axis=0)


def synchronous(parts, supersteps, kill_at=None):
    """Supersteps; the barrier is the allreduce that takes all shares. Returns ranks and how many supersteps ran."""
    bounds = np.linspace(0, VERTICES, WORKERS + 1).astype(int)
    checkpoint = (0, np.full(VERTICES, 1 / VERTICES))
    step, ranks = checkpoint
    ran = 0
    while step < supersteps:
        slices = [ranks[begin:end] for begin, end in itertools.pairwise(bounds)]
        dies = [step == kill_at and number == 1 for number in range(WORKERS)]
        if step == kill_at:
            kill_at = None
        try:
            shares = [part.send.remote(*each) for part, *each in zip(parts, slices, dies, strict=True)]
            ranks = shoal.get(allreduce.remote(*shares), timeout=30)
        except shoal.exceptions.ActorError:
            step, ranks = checkpoint  # all go back together
            shoal.get([part.__shoal_ready__.remote() for part in parts], timeout=30)
            continue
        step, ran = step + 1, ran + 1
        if step % 3 == 0:
            checkpoint = (step, ranks)
    return ranks, ran


def asynchronous(parts, rounds, enough=lambda ranks: False):
    """Each part's share is replaced whenever it comes; nobody waits for the slowest. Returns ranks and how many shares came."""
    bounds = np.linspace(0, VERTICES, WORKERS + 1).astype(int)
    slices = [slice(begin, end) for begin, end in itertools.pairwise(bounds)]
    ranks = np.full(VERTICES, 1 / VERTICES)
    shares = [ranks / len(parts) for _ in parts]
    waiting = {
        part.send.remote(ranks[rows]): number for number, (part, rows) in enumerate(zip(parts, slices, strict=True))
    }
    came = 0
    while came < rounds * len(parts):
        (done,), _ = shoal.wait(list(waiting), num_returns=1)
        number, came = waiting.pop(done), came + 1
        shares[number] = shoal.get(done)
        ranks = (1 - DAMPING) / VERTICES + DAMPING * np.sum(shares, axis=0)
        ranks /= ranks.sum()  # shares of different times do not add up to 1
        if enough(ranks):
            break
        waiting[parts[number].send.remote(ranks[slices[number]])] = number
    return ranks, came


def main(supersteps=20):
    shoal.init(num_cpus=2, log_to_driver=False)
    graph = random_graph()
    parts = [Part.remote(rows) for rows in np.array_split(graph, WORKERS)]
    expected = pagerank(graph, supersteps)
    began = time.perf_counter()
    ranks, ran = synchronous(parts, supersteps)
    elapsed = time.perf_counter() - began
    print("supersteps give the plain program's ranks:", bool(np.allclose(ranks, expected)), "- ran:", ran)
    ranks, ran = synchronous(parts, supersteps, kill_at=10)
    print("after a kill too:", bool(np.allclose(ranks, expected)), "- ran:", ran)
    limit = pagerank(graph, 200)
    ranks, _ = asynchronous(parts, 150)
    print("asynchronous, the same limit:", bool(np.allclose(ranks, limit, atol=1e-6)))
    print(f"supersteps a second: {supersteps / elapsed:.0f}")
    shoal.shutdown()


if __name__ == "__main__":
    main()

"""Five programs whose result is known: each is run on the cluster, and compared with the same thing computed here."""

from __future__ import annotations

import random
import time

import numpy as np

import shoal

GET_TIMEOUT_S = 120


# ---------------------------------------------------------------- map


@shoal.remote(max_retries=-1)
def square(x: int) -> int:
    return x * x


@shoal.remote(max_retries=-1)
def slow_square(x: int) -> int:
    time.sleep(0.01)
    return x * x


def run_map(dice: random.Random) -> None:
    """Independent tasks, short ones and some that take a while."""
    numbers = [dice.randrange(1000) for _ in range(500)]
    refs = [square.remote(number) for number in numbers] + [slow_square.remote(number) for number in numbers[:60]]
    wanted = [number * number for number in [*numbers, *numbers[:60]]]
    assert shoal.get(refs, timeout=GET_TIMEOUT_S) == wanted


# ---------------------------------------------------------------- tree of 1 MB objects


@shoal.remote(max_retries=-1)
def block(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, 131_072)


@shoal.remote(max_retries=-1)
def add(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left + right


def run_tree_reduce(dice: random.Random) -> None:
    """Objects of 1 MB, added up in a tree: intermediate ones are lost with their nodes, and made anew."""
    seeds = [dice.randrange(1 << 30) for _ in range(16)]
    level = [block.remote(seed) for seed in seeds]
    while len(level) > 1:
        level = [add.remote(*level[at : at + 2]) for at in range(0, len(level), 2)]
    wanted = sum(np.random.default_rng(seed).integers(0, 1000, 131_072) for seed in seeds)
    np.testing.assert_array_equal(shoal.get(level[0], timeout=GET_TIMEOUT_S), wanted)


# ---------------------------------------------------------------- nested


@shoal.remote(max_retries=-1)
def leaves(low: int, high: int) -> list[int]:
    """Submits tasks and waits for them; every worker that runs this is an owner."""
    if high - low <= 2:
        time.sleep(0.002)
        return list(range(low, high))
    middle = (low + high) // 2
    left, right = leaves.remote(low, middle), leaves.remote(middle, high)
    return shoal.get(left) + shoal.get(right)


@shoal.remote(max_retries=-1)
def handed_on(count: int) -> list[shoal.ObjectRef]:
    """Gives refs to tasks of its own away: they outlive it."""
    return [slow_square.remote(number) for number in range(count)]


def run_nested(dice: random.Random) -> None:
    """A tree of waiting tasks, and refs whose owners may be dead when they are read."""
    count = dice.randrange(20, 40)
    tree, given = leaves.remote(0, count), handed_on.remote(12)
    assert shoal.get(tree, timeout=GET_TIMEOUT_S) == list(range(count))
    refs = shoal.get(given, timeout=GET_TIMEOUT_S)
    assert shoal.get(refs, timeout=GET_TIMEOUT_S) == [number * number for number in range(12)]


# ---------------------------------------------------------------- actors with exact state


@shoal.remote(max_restarts=-1, max_task_retries=-1, checkpoint_interval=10, num_cpus=0)
class Ledger:
    """Every entry once, in order, or its total is wrong."""

    def __init__(self) -> None:
        self.entries: list[int] = []

    def enter(self, amount: int) -> int:
        self.entries.append(amount)
        return len(self.entries)

    def all(self) -> list[int]:
        return self.entries


def run_actors(dice: random.Random) -> None:
    """Two actors whose state must be exact, whatever is killed."""
    ledgers = [Ledger.remote() for _ in range(2)]
    amounts = [dice.randrange(100) for _ in range(60)]
    refs = [ledger.enter.remote(amount) for amount in amounts for ledger in ledgers]
    assert shoal.get(refs, timeout=GET_TIMEOUT_S) == [place + 1 for place in range(60) for _ in ledgers]
    assert shoal.get([ledger.all.remote() for ledger in ledgers], timeout=GET_TIMEOUT_S) == [amounts] * 2


# ---------------------------------------------------------------- shuffle


@shoal.remote(max_retries=-1, num_returns=4)
def split(seed: int) -> list[np.ndarray]:
    numbers = np.random.default_rng(seed).integers(0, 1 << 30, 500_000)
    return [numbers[numbers % 4 == part] for part in range(4)]


@shoal.remote(max_retries=-1)
def merge(*parts: np.ndarray) -> tuple[int, int]:
    return sum(len(part) for part in parts), int(sum(int(part.sum()) for part in parts))


def run_shuffle(dice: random.Random) -> None:
    """More than the stores hold: parts are spilled, moved and made anew."""
    seeds = [dice.randrange(1 << 30) for _ in range(12)]
    columns = zip(*[split.remote(seed) for seed in seeds], strict=True)
    found = shoal.get([merge.remote(*column) for column in columns], timeout=GET_TIMEOUT_S)
    numbers = np.concatenate([np.random.default_rng(seed).integers(0, 1 << 30, 500_000) for seed in seeds])
    wanted = [(int((numbers % 4 == part).sum()), int(numbers[numbers % 4 == part].sum())) for part in range(4)]
    assert found == wanted


WORKLOADS = {
    "map": run_map,
    "tree_reduce": run_tree_reduce,
    "nested": run_nested,
    "actors": run_actors,
    "shuffle": run_shuffle,
}

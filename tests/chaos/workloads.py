"""Programs whose result is known: each is run on the cluster, and compared with the same thing computed here.

Each takes dice and how large it shall be, and returns how many results were compared. Those in `MORE` are of the long version only.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import shoal
from shoal.util.placement_group import placement_group, remove_placement_group
from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy

GET_TIMEOUT_S = 180


@dataclass
class Size:
    """How large: numbers that `split` makes, how often, and into how many parts; `owners` is where owners say that they are."""

    splits: int
    numbers: int
    parts: int
    owners: str


def same(found: Any, wanted: Any) -> None:
    """Two results are equal, or it is said where they differ."""
    if found != wanted:
        differs = [(at, one, other) for at, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other]
        raise AssertionError(f"{len(differs)} of {len(wanted)} results are wrong: {differs[:5]}")


# ---------------------------------------------------------------- map


@shoal.remote(max_retries=-1)
def square(x: int) -> int:
    return x * x


@shoal.remote(max_retries=-1)
def slow_square(x: int) -> int:
    time.sleep(0.01)
    return x * x


def run_map(dice: random.Random, size: Size) -> int:
    """Independent tasks, short ones and some that take a while."""
    numbers = [dice.randrange(1000) for _ in range(500)]
    refs = [square.remote(number) for number in numbers] + [slow_square.remote(number) for number in numbers[:60]]
    wanted = [number * number for number in [*numbers, *numbers[:60]]]
    same(shoal.get(refs, timeout=GET_TIMEOUT_S), wanted)
    return len(wanted)


# ---------------------------------------------------------------- tree of 1 MB objects


@shoal.remote(max_retries=-1)
def block(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, 131_072)


@shoal.remote(max_retries=-1)
def add(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left + right


def run_tree_reduce(dice: random.Random, size: Size) -> int:
    """Objects of 1 MB, added up in a tree: intermediate ones are lost with their nodes, and made anew."""
    seeds = [dice.randrange(1 << 30) for _ in range(16)]
    level = [block.remote(seed) for seed in seeds]
    while len(level) > 1:
        level = [add.remote(*level[at : at + 2]) for at in range(0, len(level), 2)]
    wanted = sum(np.random.default_rng(seed).integers(0, 1000, 131_072) for seed in seeds)
    np.testing.assert_array_equal(shoal.get(level[0], timeout=GET_TIMEOUT_S), wanted)
    return 1


# ---------------------------------------------------------------- nested


def own(folder: str) -> None:
    """This process is an owner from now on."""
    with open(os.path.join(folder, str(os.getpid())), "w"):
        pass


@shoal.remote(max_retries=-1)
def leaves(low: int, high: int, folder: str) -> list[int]:
    """Submits tasks and waits for them; every worker that runs this is an owner."""
    if high - low <= 2:
        time.sleep(0.002)
        return list(range(low, high))
    own(folder)
    middle = (low + high) // 2
    left, right = leaves.remote(low, middle, folder), leaves.remote(middle, high, folder)
    return shoal.get(left) + shoal.get(right)


@shoal.remote(max_retries=-1)
def handed_on(count: int, folder: str) -> list[shoal.ObjectRef]:
    """Gives refs to tasks of its own away: they outlive it."""
    own(folder)
    return [slow_square.remote(number) for number in range(count)]


def run_nested(dice: random.Random, size: Size) -> int:
    """A tree of waiting tasks, and refs whose owners may be dead when they are read."""
    count = dice.randrange(20, 40)
    tree, given = leaves.remote(0, count, size.owners), handed_on.remote(12, size.owners)
    same(shoal.get(tree, timeout=GET_TIMEOUT_S), list(range(count)))
    refs = shoal.get(given, timeout=GET_TIMEOUT_S)
    same(shoal.get(refs, timeout=GET_TIMEOUT_S), [number * number for number in range(12)])
    return count + 12


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


def run_actors(dice: random.Random, size: Size) -> int:
    """Two actors whose state must be exact, whatever is killed."""
    ledgers = [Ledger.remote() for _ in range(2)]
    amounts = [dice.randrange(100) for _ in range(60)]
    refs = [ledger.enter.remote(amount) for amount in amounts for ledger in ledgers]
    same(shoal.get(refs, timeout=GET_TIMEOUT_S), [place + 1 for place in range(60) for _ in ledgers])
    same(shoal.get([ledger.all.remote() for ledger in ledgers], timeout=GET_TIMEOUT_S), [amounts] * 2)
    return len(refs) + len(ledgers)


# ---------------------------------------------------------------- shuffle


@shoal.remote(max_retries=-1)
def split(seed: int, numbers: int, parts: int) -> list[np.ndarray]:
    drawn = np.random.default_rng(seed).integers(0, 1 << 30, numbers)
    return [drawn[drawn % parts == part] for part in range(parts)]


@shoal.remote(max_retries=-1)
def merge(*parts: np.ndarray) -> tuple[int, int]:
    return sum(len(part) for part in parts), int(sum(int(part.sum()) for part in parts))


def run_shuffle(dice: random.Random, size: Size) -> int:
    """More than the stores hold: parts are spilled, moved and made anew."""
    seeds = [dice.randrange(1 << 30) for _ in range(size.splits)]
    rows = [split.options(num_returns=size.parts).remote(seed, size.numbers, size.parts) for seed in seeds]
    found = shoal.get([merge.remote(*column) for column in zip(*rows, strict=True)], timeout=GET_TIMEOUT_S)
    numbers = np.concatenate([np.random.default_rng(seed).integers(0, 1 << 30, size.numbers) for seed in seeds])
    columns = [numbers[numbers % size.parts == part] for part in range(size.parts)]
    same(found, [(len(column), int(column.sum())) for column in columns])
    return size.parts


# ---------------------------------------------------------------- placement groups


def run_group(dice: random.Random, size: Size) -> int:
    """Tasks and an exact actor in a group whose bundles' nodes die or leave."""
    group = placement_group([{"CPU": 1, "spare": 1}, {"CPU": 1, "spare": 1}], strategy="SPREAD")
    places = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=at) for at in range(2)]
    numbers = [dice.randrange(1000) for _ in range(100)]
    refs = [slow_square.options(scheduling_strategy=places[at % 2]).remote(n) for at, n in enumerate(numbers)]
    ledger = Ledger.options(scheduling_strategy=places[0]).remote()
    entered = [ledger.enter.remote(number) for number in numbers]
    same(shoal.get(refs, timeout=GET_TIMEOUT_S), [number * number for number in numbers])
    same(shoal.get(entered, timeout=GET_TIMEOUT_S), list(range(1, 101)))
    same(shoal.get(ledger.all.remote(), timeout=GET_TIMEOUT_S), numbers)
    remove_placement_group(group)
    return 201


# ---------------------------------------------------------------- calls that wait


@shoal.remote(max_restarts=-1, max_task_retries=-1, checkpoint_interval=10, num_cpus=0)
class Reader:
    """Reads what it is called with, one after the other, so that calls wait here."""

    def read(self, refs: list[shoal.ObjectRef]) -> int:
        return int(shoal.get(refs[0], timeout=GET_TIMEOUT_S))


@shoal.remote(max_retries=-1)
def ask(reader: Any, count: int, folder: str) -> list[shoal.ObjectRef]:
    """Sends refs to tasks of its own inside of calls that wait, and gives away what will come of these."""
    own(folder)
    return [reader.read.remote([slow_square.remote(number)]) for number in range(count)]


def run_waiting(dice: random.Random, size: Size) -> int:
    """Calls whose senders, and the owners of what is inside, may be dead when they begin."""
    reader = Reader.remote()
    given = [ask.remote(reader, 8, size.owners) for _ in range(4)]
    for refs in shoal.get(given, timeout=GET_TIMEOUT_S):
        same(shoal.get(refs, timeout=GET_TIMEOUT_S), [number * number for number in range(8)])
    return 32


# ---------------------------------------------------------------- all at once


def run_mixed(dice: random.Random, size: Size) -> int:
    """Objects, an exact actor and waiting tasks at the same time, so that a node that leaves has some of each."""
    ledger = Ledger.remote()
    amounts = [dice.randrange(100) for _ in range(50)]
    blocks = [block.remote(seed) for seed in range(8)]
    entered = [ledger.enter.remote(amount) for amount in amounts]
    sums = [add.remote(one, other) for one, other in zip(blocks[::2], blocks[1::2], strict=True)]
    tree = leaves.remote(0, 16, size.owners)
    same(shoal.get(entered, timeout=GET_TIMEOUT_S), list(range(1, 51)))
    made = [np.random.default_rng(seed).integers(0, 1000, 131_072) for seed in range(8)]
    for found, one, other in zip(shoal.get(sums, timeout=GET_TIMEOUT_S), made[::2], made[1::2], strict=True):
        np.testing.assert_array_equal(found, one + other)
    same(shoal.get(tree, timeout=GET_TIMEOUT_S), list(range(16)))
    same(shoal.get(ledger.all.remote(), timeout=GET_TIMEOUT_S), amounts)
    return 50 + 4 + 16 + 50


WORKLOADS: dict[str, Callable[[random.Random, Size], int]] = {
    "map": run_map,
    "tree_reduce": run_tree_reduce,
    "nested": run_nested,
    "actors": run_actors,
    "shuffle": run_shuffle,
}
MORE: dict[str, Callable[[random.Random, Size], int]] = {
    "group": run_group,
    "waiting": run_waiting,
    "mixed": run_mixed,
}

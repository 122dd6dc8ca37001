"""The shared noise table: directions of evolution strategies are slices of one array that lies once on each node.

Design (paper 5.3.1, and Salimans et al. 2017): a block of normally distributed numbers is made from a seed and put into the object store. A
direction is named by its offset; so what travels for a perturbed policy is one integer, and every process of a node reads the same memory.
"""

from __future__ import annotations

import numpy as np

from shoal.rl.environments import Floats


def noise_table(size: int, seed: int) -> Floats:
    """`size` standard normal numbers; the same ones for the same seed, on every machine."""
    return np.random.default_rng([0x5EED, seed]).standard_normal(size, dtype=np.float32)


def offsets(table_size: int, direction_size: int, count: int, seed: list[int]) -> np.ndarray:
    """Where `count` directions begin.

    Raises:
        ValueError: the table is too small for directions of this size.
    """
    room = table_size - direction_size
    if room < count:
        raise ValueError(
            f"a noise table of {table_size} numbers is too small for {count} directions of {direction_size}: raise noise_size"
        )
    return np.random.default_rng(seed).integers(0, room + 1, size=count)


def weighted_sum(table: Floats, starts: np.ndarray, weights: Floats, size: int) -> Floats:
    """The sum of the directions at `starts`, each times its weight; shape (size,)."""
    total = np.zeros(size, dtype=np.float32)
    for start, weight in zip(starts.tolist(), weights.tolist(), strict=True):
        if weight:
            total += np.float32(weight) * table[start : start + size]
    return total

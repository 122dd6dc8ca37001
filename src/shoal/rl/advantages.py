"""Generalized advantage estimation (Schulman et al. 2016), in numpy: a pure function with a plain twin in the tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.rl.environments import Floats


def advantages_of(
    rewards: Floats,
    values: Floats,
    ended: npt.NDArray[np.bool_],
    cut: npt.NDArray[np.bool_],
    after_cut: Floats,
    last_values: Floats,
    gamma: float,
    lambda_: float,
) -> Floats:
    """How much better each action was than expected.

    Args:
        rewards, values, ended, cut: by step and environment, shape (steps, environments); `values` are the critic's of what was seen before.
        after_cut: the value of the observation with which an episode was cut, where one was; the same shape.
        last_values: of what is seen after the last step, shape (environments,).
        gamma: discount of a step.
        lambda_: from 0 (trust the critic) to 1 (trust the returns).

    Returns:
        Shape (steps, environments). What the critic shall learn is this plus `values`.
    """
    found = np.zeros_like(rewards)
    running = np.zeros_like(last_values)
    following = last_values
    for step in range(len(rewards) - 1, -1, -1):
        over = ended[step] | cut[step]
        ahead = np.where(ended[step], 0.0, np.where(cut[step], after_cut[step], following))
        surprise = rewards[step] + gamma * ahead - values[step]
        running = surprise + gamma * lambda_ * np.where(over, 0.0, running)
        found[step] = running
        following = values[step]
    return found
